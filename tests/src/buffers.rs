// SPDX-License-Identifier: GPL-2.0
//! Finds out which buffers of an interface queue without a device are free, by
//! receiving from a connection until no buffer is left. Also counts the files and the
//! pinned memory that a process holds.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::kernel::{self, expect_eq, expect_result};
use crate::register::{IORING_REGISTER_FILES, PAGE_SIZE, register};
use crate::ring::IORING_CQE_F_MORE;
use crate::sandbox::{open_files, own_memory};
use crate::wide::{Mapping, WideCqe, WideRing};
use crate::zcrx::{AREA_SHIFT, RefillQueue, Registration, memory, recv_zc, tcp_pair};

/// The `user_data` of receives, which tells their completions from others.
const RECEIVE: u64 = 0x7265_6376;

/// A buffer that a receive handed out, and the byte that must be in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TakenBuffer {
    pub offset: u64,
    pub byte: u8,
}

impl TakenBuffer {
    /// Checks that the byte is at the offset of the completion, in the area with the
    /// number that is in that offset.
    pub fn check(&self, areas: &[&Mapping]) -> anyhow::Result<()> {
        let area = areas.get((self.offset >> AREA_SHIFT) as usize);
        let at = (self.offset & ((1 << AREA_SHIFT) - 1)) as usize;
        let area = area.with_context(|| format!("no area has {self:x?}"))?;
        ensure!(at < area.len(), "{self:x?} is behind its area");
        expect_eq("a byte in its buffer", area.read::<u8>(at), self.byte)
    }
}

/// Returns the offset of the buffer with the given index in the first area.
pub fn offset(index: usize) -> u64 {
    (index * PAGE_SIZE) as u64
}

/// A connection, each byte of which takes up one buffer.
struct Connection {
    sender: TcpStream,
    receiver: TcpStream,
    last: u8,
    /// Whether the last byte still waits for a buffer.
    waits: bool,
}

impl Connection {
    fn new() -> anyhow::Result<Self> {
        let (sender, receiver) = tcp_pair()?;
        Ok(Connection {
            sender,
            receiver,
            last: 0,
            waits: false,
        })
    }
}

/// A ring, its interface queue, and a connection whose data the queue receives.
pub struct Consumer {
    pub ring: WideRing,
    pub refill: RefillQueue,
    connection: Connection,
    /// A connection without data, for which a receive waits.
    idle: Option<(TcpStream, TcpStream)>,
    /// The completions that are not those of receives.
    pub others: Vec<WideCqe>,
}

impl std::ops::Deref for Consumer {
    type Target = RefillQueue;

    fn deref(&self) -> &RefillQueue {
        &self.refill
    }
}

impl Consumer {
    /// Registers a queue of `entries` entries, whose area has `pages` pages, with a new
    /// ring.
    pub fn new(entries: u32, pages: usize) -> anyhow::Result<(Self, Mapping)> {
        let area = memory(pages)?;
        let registration = Registration::new(entries, &area);
        Ok((Self::register(registration)?, area))
    }

    /// Registers a queue as `registration` says with a new ring.
    pub fn register(mut registration: Registration) -> anyhow::Result<Self> {
        let ring = WideRing::new(8)?;
        let got = registration.register(ring.fd());
        expect_result("registering zcrx", got, 0)?;
        Self::attach(ring, registration.reg.zcrx_id, registration.reg.rq_entries)
    }

    /// Takes over a ring that has a queue with the given id and number of entries.
    pub fn attach(ring: WideRing, id: u32, entries: u32) -> anyhow::Result<Self> {
        let refill = RefillQueue::map(ring.fd(), id, entries)?;
        Ok(Consumer {
            ring,
            refill,
            connection: Connection::new()?,
            idle: None,
            others: Vec::new(),
        })
    }

    /// Waits for the next completion of a receive.
    fn received(&mut self) -> anyhow::Result<WideCqe> {
        loop {
            let cqe = self.ring.cqe()?;
            if cqe.user_data == RECEIVE {
                return Ok(cqe);
            }
            self.others.push(cqe);
        }
    }

    /// Takes a buffer. Returns `None` if none is free.
    pub fn try_take(&mut self) -> anyhow::Result<Option<TakenBuffer>> {
        let connection = &mut self.connection;
        if !connection.waits {
            // Never 0, the value of fresh memory.
            connection.last = connection.last % 255 + 1;
            connection.sender.write_all(&[connection.last])?;
            connection.waits = true;
        }
        let (socket, byte) = (connection.receiver.as_raw_fd(), connection.last);
        self.ring
            .push(recv_zc(socket, self.id, 1).user_data(RECEIVE))?;
        let first = self.received()?;
        if first.res == -libc::ENOMEM {
            expect_eq("flags without a buffer", first.flags, 0)?;
            return Ok(None);
        }
        let got = (first.res, first.flags);
        expect_eq("result and flags", got, (1, IORING_CQE_F_MORE))?;
        let [offset, pad] = first.extra.context("a completion without an offset")?;
        expect_eq("padding", pad, 0)?;
        let last = self.received()?;
        expect_eq("result and flags at last", (last.res, last.flags), (0, 0))?;
        self.connection.waits = false;
        Ok(Some(TakenBuffer { offset, byte }))
    }

    /// Takes a buffer, and fails if none is free.
    pub fn take(&mut self) -> anyhow::Result<TakenBuffer> {
        self.try_take()?.context("no buffer is free")
    }

    /// Takes `count` buffers, and fails if fewer are free.
    pub fn take_some(&mut self, count: usize) -> anyhow::Result<Vec<TakenBuffer>> {
        (0..count).map(|_| self.take()).collect()
    }

    /// Takes all free buffers. A buffer that the kernel wrongly has on its free list
    /// twice is taken twice.
    pub fn take_all(&mut self) -> anyhow::Result<Vec<TakenBuffer>> {
        std::iter::from_fn(|| self.try_take().transpose()).collect()
    }

    /// Takes all free buffers, which must be those at the offsets `want`, each once.
    pub fn expect_free(&mut self, what: &str, want: &[u64]) -> anyhow::Result<Vec<TakenBuffer>> {
        let taken = self.take_all().with_context(|| what.to_string())?;
        let mut got: Vec<u64> = taken.iter().map(|taken| taken.offset).collect();
        let mut want = want.to_vec();
        got.sort_unstable();
        want.sort_unstable();
        expect_eq(what, got, want)?;
        Ok(taken)
    }

    /// Takes the completions that are there. None of them may be of a receive.
    pub fn take_others(&mut self) -> anyhow::Result<Vec<WideCqe>> {
        self.ring.submit()?;
        while let Some(cqe) = self.ring.try_cqe() {
            ensure!(cqe.user_data != RECEIVE, "a receive completed: {cqe:x?}");
            self.others.push(cqe);
        }
        Ok(std::mem::take(&mut self.others))
    }

    /// Starts a receive on another connection, which waits as there is no data.
    pub fn wait_for_data(&mut self) -> anyhow::Result<()> {
        let idle = tcp_pair()?;
        self.ring.push(recv_zc(idle.1.as_raw_fd(), self.id, 0))?;
        self.idle = Some(idle);
        expect_eq("receives submitted", self.ring.submit()?, 1)
    }

    /// Sends data to the receive of [`Self::wait_for_data`].
    pub fn send_data(&mut self) -> anyhow::Result<()> {
        let idle = self.idle.as_mut().context("no receive waits")?;
        Ok(idle.0.write_all(&[1])?)
    }

    /// Puts entries for buffers into the refill queue.
    pub fn push_offsets(&self, offsets: &[u64]) {
        for &offset in offsets {
            self.return_buffer(offset);
        }
    }

    /// Makes the kernel consume the entries of the refill queue.
    pub fn flush(&self) -> anyhow::Result<()> {
        expect_result("flush", self.refill.flush(self.ring.fd()), 0)
    }

    /// Makes the kernel consume the entries of the refill queue, after which its head
    /// must be `head`.
    pub fn flush_to(&self, head: u32) -> anyhow::Result<()> {
        self.flush()?;
        expect_eq("head", self.head(), head)
    }
}

/// The files and the memory that a process holds, which an error must not change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Resources {
    files: usize,
    /// The pinned memory in bytes.
    pub pinned: u64,
    locked: u64,
}

impl Resources {
    pub fn now() -> anyhow::Result<Self> {
        Ok(Resources {
            files: open_files()?,
            pinned: own_memory("VmPin:")?,
            locked: own_memory("VmLck:")?,
        })
    }

    /// Checks that the process holds the same now.
    pub fn expect(self, what: &str) -> anyhow::Result<()> {
        expect_eq(&format!("held after {what}"), Resources::now()?, self)
    }

    /// Returns what the process holds with `pages` more pages pinned.
    pub fn with_pages(self, pages: usize) -> Self {
        Resources {
            pinned: self.pinned + (pages * PAGE_SIZE) as u64,
            ..self
        }
    }

    /// Returns what the process holds with `files` more files open.
    pub fn with_files(self, files: usize) -> Self {
        Resources {
            files: self.files + files,
            ..self
        }
    }

    /// Waits until the process holds the same again: a worker takes rings down later.
    pub fn wait(self, what: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while Resources::now()? != self && start.elapsed() < kernel::limit(20) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.expect(what)
    }
}

/// A pipe that tells when a ring has been taken down: the ring holds its writing end.
pub struct RingClosed(OwnedFd);

impl RingClosed {
    /// Registers a new pipe's writing end with the ring `fd`.
    pub fn watch(fd: RawFd) -> anyhow::Result<Self> {
        let (reader, writer) = nix::unistd::pipe()?;
        let files = [writer.as_raw_fd()];
        let got = register(fd, IORING_REGISTER_FILES, files.as_ptr().cast(), 1);
        expect_result("registering a pipe", got, 0)?;
        Ok(RingClosed(reader))
    }

    /// Waits until the ring has been taken down. The runner ends a test that waits for
    /// ever.
    pub fn wait(self) -> anyhow::Result<()> {
        let got = File::from(self.0).read(&mut [0])?;
        expect_eq("bytes in the pipe", got, 0)
    }
}
