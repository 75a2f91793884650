// SPDX-License-Identifier: GPL-2.0
//! The part of the demonstration that is about zero-copy receive: a file that a
//! web server sends arrives in memory that this program has lent to the kernel.

use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use io_uring_rs_tests::kernel::{self, describe};
use io_uring_rs_tests::wide::{WideRing, ZCRX_SETUP};
use io_uring_rs_tests::zcrx::{Ifq, pattern, recv_zc};

use crate::Story;

const SIZE: usize = 4 << 20;
const FOLDER: &str = "www";
const SERVER: &str = "127.0.0.1:8080";

/// Buffers that are lent, and entries of the refill queue.
const BUFFERS: usize = 64;

/// A web server that ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// busybox's, which knows nothing of io_uring.
fn serve() -> anyhow::Result<Server> {
    let child = Command::new("/bin/httpd")
        .args(["-f", "-p", SERVER, "-h", FOLDER])
        .spawn();
    Ok(Server(child.context("starting busybox httpd")?))
}

/// Connects, once the server listens.
fn connect() -> anyhow::Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(SERVER) {
            Ok(stream) => return Ok(stream),
            Err(error) if start.elapsed() > kernel::limit(5) => {
                return Err(error).context("connecting to busybox httpd");
            }
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

/// What was received, and how.
#[derive(Default)]
struct Received {
    bytes: Vec<u8>,
    completions: usize,
    /// How often each buffer was handed out.
    used: Vec<usize>,
    requests: usize,
}

/// Receives to the end of the stream. The bytes are looked at where the kernel
/// put them, and the buffer goes back by an entry of the refill queue.
fn receive(stream: &TcpStream) -> anyhow::Result<Received> {
    let mut ring = WideRing::with(8, 4 * BUFFERS as u32, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), BUFFERS as u32, BUFFERS)?;
    let mut received = Received {
        used: vec![0; BUFFERS],
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
            *buffer.context("a buffer that was not lent")? += 1;
            ifq.give_back(offset);
            if ifq.unread() >= BUFFERS as u32 / 2 {
                ifq.flush_all(ring.fd())?;
            }
        };
        match last {
            0 => return Ok(received),
            // All buffers were out, or all places of completions: go on.
            _ if last == -libc::ENOMEM || last == -libc::ENOSPC => ifq.flush_all(ring.fd())?,
            _ => anyhow::bail!("receiving: {}", describe(last)),
        }
    }
}

pub fn tell(story: &mut Story) -> anyhow::Result<()> {
    story.scene("A web server's file comes by RECV_ZC into memory that this program has lent.");
    let content = pattern(0, SIZE);
    std::fs::create_dir_all(FOLDER)?;
    std::fs::write(format!("{FOLDER}/file"), &content)?;
    let _server = serve()?;
    let mut stream = connect()?;
    stream.write_all(b"GET /file HTTP/1.0\r\n\r\n")?;

    let received = receive(&stream)?;
    let end = received.bytes.windows(4).position(|end| end == b"\r\n\r\n");
    let (header, body) = received.bytes.split_at(end.context("no HTTP header")? + 4);
    ensure!(
        header.starts_with(b"HTTP/1.") && header.windows(5).any(|word| word == b" 200 "),
        "the server refuses: {}",
        String::from_utf8_lossy(header)
    );
    let right = body == content;
    story.line(
        "GET /file from busybox httpd, 4 MiB",
        &format!("zero-copy receive in {}", kernel::zcrx_implementation()),
        if right {
            "the same bytes"
        } else {
            "other bytes"
        },
        right,
    );
    println!(
        "      {} bytes, {} completions of {} requests; each of {BUFFERS} pages came {} to {} times",
        received.bytes.len(),
        received.completions,
        received.requests,
        received.used.iter().min().unwrap_or(&0),
        received.used.iter().max().unwrap_or(&0),
    );
    Ok(())
}
