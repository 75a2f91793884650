// SPDX-License-Identifier: GPL-2.0
//! Zero-copy receive from a TCP connection over loopback, which compares every byte
//! with what was sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::ensure;
use nix::sys::socket::{setsockopt, sockopt};

use crate::kernel::{describe, expect_eq, expect_result, limit};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::sqe::Sqe;
use crate::wide::{IORING_CQE_F_32, WideCqe, WideRing};
use crate::zcrx::{Ifq, pattern, recv_zc, tcp_pair};

/// One direction of a TCP connection. Every byte received is compared with the pattern.
pub struct Stream {
    pub sender: TcpStream,
    pub receiver: TcpStream,
    /// The `user_data` of its requests.
    pub user_data: u64,
    sent: usize,
    taken: usize,
}

/// Makes closing `sender` reset the connection, so that what has not arrived is not sent
/// again, to whatever the receiver's queue has by then.
pub fn reset_at_close(sender: &TcpStream) -> anyhow::Result<()> {
    let at_once = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(sender, sockopt::Linger, &at_once)?)
}

impl Stream {
    /// Makes a stream that starts at the beginning of the pattern.
    pub fn new() -> anyhow::Result<Self> {
        Self::starting_at(0, 1)
    }

    /// Makes a stream that starts at byte `start` of the pattern.
    pub fn starting_at(start: usize, user_data: u64) -> anyhow::Result<Self> {
        let (sender, receiver) = tcp_pair()?;
        Ok(Stream {
            sender,
            receiver,
            user_data,
            sent: start,
            taken: start,
        })
    }

    /// Uses an existing connection, given as sender and receiver.
    pub fn over((sender, receiver): (TcpStream, TcpStream), user_data: u64) -> Self {
        Stream {
            sender,
            receiver,
            user_data,
            sent: 0,
            taken: 0,
        }
    }

    /// Builds a request for at most `len` bytes, or without a limit if `len` is 0.
    pub fn recv(&self, ifq: &Ifq, len: usize) -> Sqe {
        recv_zc(self.receiver.as_raw_fd(), ifq.id, len as u32).user_data(self.user_data)
    }

    /// Sends `len` more bytes and waits until they can be received. They must fit into
    /// the buffers of the sockets.
    pub fn send(&mut self, len: usize) -> anyhow::Result<()> {
        let bytes = self.next(len);
        self.sender.write_all(&bytes)?;
        self.wait_arrived()
    }

    /// Sends up to `most` more bytes, as many as the sockets have room for, and does
    /// not wait for them to arrive.
    pub fn send_some(&mut self, most: usize) -> anyhow::Result<()> {
        match self.sender.write(&pattern(self.sent, most)) {
            Ok(sent) => self.sent += sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Returns the next `len` bytes of the pattern, which the caller must send.
    pub fn next(&mut self, len: usize) -> Vec<u8> {
        let bytes = pattern(self.sent, len);
        self.sent += len;
        bytes
    }

    /// Starts a thread that sends `len` more bytes and then shuts the sender down.
    pub fn send_later(&mut self, len: usize) -> anyhow::Result<JoinHandle<std::io::Result<()>>> {
        const CHUNK: usize = 1 << 20;
        let (from, mut sender) = (self.sent, self.sender.try_clone()?);
        self.sent += len;
        Ok(std::thread::spawn(move || {
            for at in (0..len).step_by(CHUNK) {
                sender.write_all(&pattern(from + at, CHUNK.min(len - at)))?;
            }
            sender.shutdown(Shutdown::Write)
        }))
    }

    /// Returns the number of bytes that were sent and not yet taken.
    pub fn untaken(&self) -> usize {
        self.sent - self.taken
    }

    /// Waits until all bytes that were sent and not taken can be received.
    pub fn wait_arrived(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let mut there: libc::c_int = 0;
            // SAFETY: FIONREAD writes an int.
            let ret = unsafe { libc::ioctl(self.receiver.as_raw_fd(), libc::FIONREAD, &mut there) };
            ensure!(ret == 0, "FIONREAD: {}", std::io::Error::last_os_error());
            if there as usize == self.untaken() {
                return Ok(());
            }
            ensure!(
                start.elapsed() < limit(5),
                "{there} bytes of {} arrived",
                self.untaken()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Shuts the sender down, and waits until the receiver knows of it.
    pub fn finish(&self) -> anyhow::Result<()> {
        // TCP_CLOSE_WAIT in the kernel's `net/tcp_states.h`.
        const CLOSE_WAIT: u8 = 8;
        let start = Instant::now();
        self.sender.shutdown(Shutdown::Write)?;
        while tcp_info(&self.receiver)?.tcpi_state != CLOSE_WAIT {
            ensure!(start.elapsed() < limit(5), "the FIN did not arrive");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Waits until the sender knows that all was received. Until then, it may send more than
    /// once what has arrived.
    pub fn wait_acknowledged(&self) -> anyhow::Result<()> {
        let start = Instant::now();
        while tcp_info(&self.sender)?.tcpi_unacked != 0 {
            ensure!(start.elapsed() < limit(5), "no acknowledgement");
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Counts the segments that TCP has sent more than once.
    pub fn retransmissions(&self) -> anyhow::Result<u32> {
        Ok(tcp_info(&self.sender)?.tcpi_total_retrans)
    }

    /// Compares the bytes that a completion hands out with those sent. Returns the
    /// offset of their buffer.
    pub fn take(&mut self, ifq: &Ifq, cqe: &WideCqe) -> anyhow::Result<u64> {
        let from = self.taken;
        ensure!(
            (cqe.user_data, cqe.flags & !IORING_CQE_F_32) == (self.user_data, IORING_CQE_F_MORE)
                && cqe.res > 0,
            "not a completion with data, from {from} on: {cqe:x?}, {}",
            describe(cqe.res)
        );
        let data = ifq.data(cqe)?;
        ensure!(
            data == pattern(from, data.len()),
            "other bytes than were sent, from {from} on"
        );
        self.taken += data.len();
        ensure!(self.taken <= self.sent, "more bytes than were sent");
        cqe.offset()
    }

    /// Takes all bytes that were sent, and gives every buffer back at once.
    pub fn take_all(&mut self, ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<()> {
        while self.untaken() != 0 {
            let cqe = ring.cqe()?;
            let offset = self.take(ifq, &cqe)?;
            ifq.return_buffer(offset);
            ifq.flush_all(ring.fd())?;
        }
        Ok(())
    }

    /// Takes data and gives every buffer back at once, until the request ends. Returns
    /// its last completion.
    pub fn take_until_end(&mut self, ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<WideCqe> {
        loop {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                return Ok(cqe);
            }
            let offset = self.take(ifq, &cqe)?;
            ifq.return_buffer(offset);
            ifq.flush_all(ring.fd())?;
        }
    }

    /// Closes the connection, on which a request of `ring` waits for data. Checks that
    /// this ends the request, with no error.
    pub fn end(self, ring: &mut WideRing) -> anyhow::Result<()> {
        let want = ended(self.user_data, 0);
        expect_eq("bytes that are not taken", self.untaken(), 0)?;
        drop(self);
        expect_eq("the end of a stream", ring.cqe()?, want)
    }

    /// Fills `data` by read(2) and compares it with what was sent.
    pub fn read(&mut self, data: &mut [u8]) -> anyhow::Result<()> {
        self.receiver.read_exact(data)?;
        self.compare(data)
    }

    /// Compares bytes that the caller has read from the connection with what was sent.
    pub fn compare(&mut self, data: &[u8]) -> anyhow::Result<()> {
        ensure!(
            data == pattern(self.taken, data.len()),
            "other bytes were read than were sent, from {} on",
            self.taken
        );
        self.taken += data.len();
        Ok(())
    }

    /// Reads what is left by read(2), and checks that it is all that was sent and no
    /// more.
    pub fn read_left(&mut self) -> anyhow::Result<()> {
        let mut data = vec![0; self.untaken()];
        self.read(&mut data)?;
        self.receiver.set_nonblocking(true)?;
        let more = self.receiver.read(&mut [0]);
        self.receiver.set_nonblocking(false)?;
        ensure!(
            matches!(&more, Ok(0)) || more.is_err_and(|e| e.kind() == ErrorKind::WouldBlock),
            "more bytes than were sent are left, or the stream is broken"
        );
        Ok(())
    }
}

/// Returns what TCP tells about a socket.
fn tcp_info(socket: &TcpStream) -> anyhow::Result<libc::tcp_info> {
    // SAFETY: all zeroes is a valid structure.
    let mut info: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut size = size_of_val(&info) as libc::socklen_t;
    let address = (&raw mut info).cast();
    let fd = socket.as_raw_fd();
    // SAFETY: the buffer is one structure of the given size.
    let got =
        unsafe { libc::getsockopt(fd, libc::IPPROTO_TCP, libc::TCP_INFO, address, &mut size) };
    expect_result("TCP_INFO", got, 0)?;
    Ok(info)
}

/// Builds the last completion of a request on a ring whose completions are all wide.
pub fn ended(user_data: u64, res: i32) -> WideCqe {
    WideCqe {
        user_data,
        res,
        flags: 0,
        extra: Some([0; 2]),
    }
}

/// Checks that exactly `count` buffers are free: takes them until none is left,
/// compares their offsets, and gives them back.
pub fn expect_free(ring: &mut WideRing, ifq: &Ifq, count: usize) -> anyhow::Result<()> {
    const MARK: u64 = 0xb0ffe25;
    let mut stream = Stream::starting_at(0, MARK)?;
    // The stream has more than can be taken, so nobody waits for its end.
    let thread = stream.send_later((count + 16) * PAGE_SIZE)?;
    ring.push(stream.recv(ifq, 0))?;
    let mut offsets = Vec::new();
    let last = loop {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE == 0 {
            break cqe;
        }
        offsets.push(stream.take(ifq, &cqe)?);
    };
    expect_eq(
        "the completion without a buffer",
        last,
        ended(MARK, -libc::ENOMEM),
    )?;
    drop(stream);
    let _ = thread.join();
    expect_eq("free buffers", offsets.len(), count)?;
    for &offset in &offsets {
        if ifq.pending() == ifq.entries {
            ifq.flush_all(ring.fd())?;
        }
        ifq.return_buffer(offset);
    }
    ifq.flush_all(ring.fd())?;
    offsets.sort_unstable();
    offsets.dedup();
    expect_eq("different buffers", offsets.len(), count)
}
