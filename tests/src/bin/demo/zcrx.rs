// SPDX-License-Identifier: GPL-2.0
//! The part of the demonstration that shows zero-copy receive: a file that a web server
//! sends arrives in memory that this program has lent to the kernel.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use io_uring_rs_tests::kernel::{self, describe};
use io_uring_rs_tests::nic::{Nic, QUEUE};
use io_uring_rs_tests::wide::{WideRing, ZCRX_SETUP};
use io_uring_rs_tests::zcrx::{Ifq, pattern, recv_zc};

use crate::Story;

const SIZE: usize = 4 << 20;
const FOLDER: &str = "www";
/// The server's address on this machine, and at the other end of the wire.
const HERE: &str = "127.0.0.1:8080";
const THERE: &str = "10.9.0.2:8080";

/// The number of buffers that are lent, and of entries of the refill queue. A device
/// takes some of the buffers for its ring.
const BUFFERS: usize = 64;
const DEVICE_BUFFERS: usize = 256;

/// A web server. Dropping it ends the server.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the command line of busybox's web server, which knows nothing of io_uring.
fn httpd(address: &str) -> String {
    format!("/bin/httpd -f -p {address} -h {FOLDER}")
}

/// Starts a server and requests the file from it once it listens. Returns both the
/// server and the connection.
fn ask(mut server: Command, address: &str) -> anyhow::Result<(Server, TcpStream)> {
    let server = Server(server.spawn().context("starting busybox httpd")?);
    let start = Instant::now();
    loop {
        match TcpStream::connect(address) {
            Ok(mut stream) => {
                stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;
                return Ok((server, stream));
            }
            Err(error) if start.elapsed() > kernel::limit(5) => {
                return Err(error).context("connecting to busybox httpd");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// The data received, and counts of how it arrived.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    completions: usize,
    /// The number of times that each buffer was handed out.
    used: Vec<usize>,
    requests: usize,
}

/// Receives to the end of the stream. Reads the bytes where the kernel put them, and
/// gives each buffer back with an entry of the refill queue.
fn receive(stream: &TcpStream, ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<Received> {
    let mut received = Received {
        used: vec![0; ifq.entries as usize],
        ..Received::default()
    };
    loop {
        ring.push(recv_zc(stream.as_raw_fd(), ifq.id, 0))?;
        received.requests += 1;
        let last = loop {
            let cqe = ring.cqe()?;
            if cqe.res <= 0 {
                break cqe.res;
            }
            let data = ifq.data(&cqe)?;
            received.bytes.extend_from_slice(data);
            received.completions += 1;
            let offset = cqe.offset()?;
            let buffer = received.used.get_mut((offset >> 12) as usize);
            *buffer.context("a completion names a buffer outside the area")? += 1;
            ifq.return_buffer(offset);
            if ifq.pending() >= ifq.entries / 2 {
                ifq.flush_all(ring.fd())?;
            }
        };
        match last {
            0 => return Ok(received),
            // No buffer or no completion was free: go on with another request.
            _ if last == -libc::ENOMEM || last == -libc::ENOSPC => ifq.flush_all(ring.fd())?,
            _ => anyhow::bail!("receiving: {}", describe(last)),
        }
    }
}

impl Received {
    /// Shows whether the data is the file, and how it arrived.
    fn tell(&self, story: &mut Story, asked: &str, content: &[u8]) -> anyhow::Result<()> {
        let end = self.bytes.windows(4).position(|end| end == b"\r\n\r\n");
        let (header, body) = self.bytes.split_at(end.context("no HTTP header")? + 4);
        ensure!(
            header.starts_with(b"HTTP/1.") && header.windows(5).any(|word| word == b" 200 "),
            "the server answered with an error: {}",
            String::from_utf8_lossy(header)
        );
        let right = body == content;
        let result = match right {
            true => "the same bytes",
            false => "other bytes",
        };
        let who = format!("zero-copy receive in {}", kernel::zcrx_implementation());
        story.line(asked, &who, result, right);
        println!(
            "      {} bytes, {} completions of {} requests; each of {} pages used {} to {} times",
            self.bytes.len(),
            self.completions,
            self.requests,
            self.used.len(),
            self.used.iter().min().unwrap_or(&0),
            self.used.iter().max().unwrap_or(&0),
        );
        Ok(())
    }
}

pub fn tell(story: &mut Story) -> anyhow::Result<()> {
    let content = pattern(0, SIZE);
    std::fs::create_dir_all(FOLDER)?;
    std::fs::write(format!("{FOLDER}/file"), &content)?;

    story.scene("A file from a web server arrives by RECV_ZC in memory lent to the kernel.");
    let words = httpd(HERE);
    let mut words = words.split(' ');
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words);
    let (server, stream) = ask(command, HERE)?;
    let mut ring = WideRing::with(8, 4 * BUFFERS as u32, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), BUFFERS as u32, BUFFERS)?;
    let received = receive(&stream, &mut ring, &ifq)?;
    received.tell(story, "GET /file from busybox httpd, 4 MiB", &content)?;
    drop((server, stream));
    over_a_device(story, &content)
}

/// Receives over a network device, which writes to the lent memory itself.
fn over_a_device(story: &mut Story, content: &[u8]) -> anyhow::Result<()> {
    story.scene("A network device writes a file from another machine to lent memory itself.");
    let nic = Nic::new()?;
    nic.ethtool(&format!("-X zsim0 start {QUEUE} equal 1"))?;
    let mut ring = WideRing::with(8, 4 * DEVICE_BUFFERS as u32, ZCRX_SETUP)?;
    let ifq = nic.ifq(&ring, DEVICE_BUFFERS as u32, DEVICE_BUFFERS)?;
    let (_server, stream) = ask(nic.peer_command(&httpd(THERE))?, THERE)?;
    let received = receive(&stream, &mut ring, &ifq)?;
    received.tell(story, "GET /file over zsim0, 4 MiB", content)?;

    let counts = nic.counts()?;
    // A segment that TCP sends twice is delivered twice and received once.
    let right = counts.page_frags == 0 && received.completions as u64 <= counts.niov_frags;
    let result = match right {
        true => "none",
        false => "some",
    };
    story.line("fragments elsewhere", "counters of zsim0", result, right);
    println!(
        "      {} fragments written to lent memory, {} elsewhere; {} buffers given back",
        counts.niov_frags, counts.page_frags, received.completions,
    );
    Ok(())
}
