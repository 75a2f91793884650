// SPDX-License-Identifier: GPL-2.0
//! Who has which buffer of an interface queue without a device, told from what
//! a connection can still get; and what a process holds of files and memory.

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

/// `user_data` of receives, by which other completions are told from them.
const RECEIVE: u64 = 0x7265_6376;

/// A buffer that was handed out, and the byte in it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Taken {
    pub offset: u64,
    pub byte: u8,
}

impl Taken {
    /// Checks that the byte is where the completion says, in the area of that number.
    pub fn check(&self, areas: &[&Mapping]) -> anyhow::Result<()> {
        let area = areas.get((self.offset >> AREA_SHIFT) as usize);
        let at = (self.offset & ((1 << AREA_SHIFT) - 1)) as usize;
        let area = area.with_context(|| format!("no area has {self:x?}"))?;
        ensure!(at < area.len(), "{self:x?} is behind its area");
        expect_eq("a byte in its buffer", area.read::<u8>(at), self.byte)
    }
}

/// Returns the offset of the buffer with this index of the first area.
pub fn offset(index: usize) -> u64 {
    (index * PAGE_SIZE) as u64
}

/// A connection that takes a buffer for each byte that it sends.
struct Connection {
    sender: TcpStream,
    receiver: TcpStream,
    last: u8,
    /// The last byte found no buffer yet.
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

/// A ring, an interface queue that it has, and a connection into it.
pub struct Consumer {
    pub ring: WideRing,
    pub refill: RefillQueue,
    connection: Connection,
    /// A connection without data, of which a receive waits.
    idle: Option<(TcpStream, TcpStream)>,
    /// Completions that were not of receives.
    pub others: Vec<WideCqe>,
}

impl std::ops::Deref for Consumer {
    type Target = RefillQueue;

    fn deref(&self) -> &RefillQueue {
        &self.refill
    }
}

impl Consumer {
    /// Registers a queue of so many buffers with a new ring.
    pub fn new(entries: u32, pages: usize) -> anyhow::Result<(Self, Mapping)> {
        let area = memory(pages)?;
        let registration = Registration::new(entries, &area);
        Ok((Self::register(registration)?, area))
    }

    /// Registers with a new ring.
    pub fn register(mut registration: Registration) -> anyhow::Result<Self> {
        let ring = WideRing::new(8)?;
        let got = registration.register(ring.fd());
        expect_result("registering zcrx", got, 0)?;
        Self::attach(ring, registration.reg.zcrx_id, registration.reg.rq_entries)
    }

    /// Uses a ring that has a queue with this id.
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

    /// Takes a buffer, if one is free.
    pub fn try_take(&mut self) -> anyhow::Result<Option<Taken>> {
        let connection = &mut self.connection;
        if !connection.waits {
            // Never 0, which fresh memory has.
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
        Ok(Some(Taken { offset, byte }))
    }

    /// Takes a buffer, of which one must be free.
    pub fn take(&mut self) -> anyhow::Result<Taken> {
        self.try_take()?.context("no buffer is free")
    }

    /// Takes so many buffers, which must be free.
    pub fn take_some(&mut self, count: usize) -> anyhow::Result<Vec<Taken>> {
        (0..count).map(|_| self.take()).collect()
    }

    /// Takes every free buffer, each as often as the kernel thinks that it is.
    pub fn take_all(&mut self) -> anyhow::Result<Vec<Taken>> {
        std::iter::from_fn(|| self.try_take().transpose()).collect()
    }

    /// Takes every free buffer: those at `want` and no others, each once.
    pub fn expect_free(&mut self, what: &str, want: &[u64]) -> anyhow::Result<Vec<Taken>> {
        let taken = self.take_all().with_context(|| what.to_string())?;
        let mut got: Vec<u64> = taken.iter().map(|taken| taken.offset).collect();
        let mut want = want.to_vec();
        got.sort_unstable();
        want.sort_unstable();
        expect_eq(what, got, want)?;
        Ok(taken)
    }

    /// Takes the completions that are there and are not of receives.
    pub fn take_others(&mut self) -> anyhow::Result<Vec<WideCqe>> {
        self.ring.submit()?;
        while let Some(cqe) = self.ring.try_cqe() {
            ensure!(cqe.user_data != RECEIVE, "of no receive: {cqe:x?}");
            self.others.push(cqe);
        }
        Ok(std::mem::take(&mut self.others))
    }

    /// Leaves a receive waiting for data on another connection.
    pub fn wait_for_data(&mut self) -> anyhow::Result<()> {
        let idle = tcp_pair()?;
        self.ring.push(recv_zc(idle.1.as_raw_fd(), self.id, 0))?;
        self.idle = Some(idle);
        expect_eq("receives submitted", self.ring.submit()?, 1)
    }

    /// Sends what that receive waits for.
    pub fn send_data(&mut self) -> anyhow::Result<()> {
        let idle = self.idle.as_mut().context("no receive waits")?;
        Ok(idle.0.write_all(&[1])?)
    }

    /// Puts entries for buffers into the refill queue.
    pub fn push_offsets(&self, offsets: &[u64]) {
        for &offset in offsets {
            self.give_back(offset);
        }
    }

    /// Makes the kernel read the refill queue.
    pub fn flush(&self) -> anyhow::Result<()> {
        expect_result("flush", self.refill.flush(self.ring.fd()), 0)
    }

    /// Makes the kernel read the refill queue, which must be up to `head` then.
    pub fn flush_to(&self, head: u32) -> anyhow::Result<()> {
        self.flush()?;
        expect_eq("head", self.head(), head)
    }
}

/// What a process holds that an error must not leave behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Held {
    files: usize,
    /// Pinned and locked memory, in bytes.
    pub pinned: u64,
    locked: u64,
}

impl Held {
    pub fn now() -> anyhow::Result<Self> {
        Ok(Held {
            files: open_files()?,
            pinned: own_memory("VmPin:")?,
            locked: own_memory("VmLck:")?,
        })
    }

    /// Checks that nothing has been added or taken away since.
    pub fn expect(self, what: &str) -> anyhow::Result<()> {
        expect_eq(&format!("held after {what}"), Held::now()?, self)
    }

    /// Expects so many more pages to be pinned.
    pub fn with_pages(self, pages: usize) -> Self {
        Held {
            pinned: self.pinned + (pages * PAGE_SIZE) as u64,
            ..self
        }
    }

    /// Expects so many more files.
    pub fn with_files(self, files: usize) -> Self {
        Held {
            files: self.files + files,
            ..self
        }
    }

    /// Waits until that is all again, as rings are taken down by a worker.
    pub fn wait(self, what: &str) -> anyhow::Result<()> {
        let start = Instant::now();
        while Held::now()? != self && start.elapsed() < kernel::limit(3) {
            std::thread::sleep(Duration::from_millis(5));
        }
        self.expect(what)
    }
}

/// Tells when a ring is taken down, by the end of a pipe that the ring has.
pub struct Gone(OwnedFd);

impl Gone {
    /// Gives a pipe to the ring.
    pub fn watch(fd: RawFd) -> anyhow::Result<Self> {
        let (reader, writer) = nix::unistd::pipe()?;
        let files = [writer.as_raw_fd()];
        let got = register(fd, IORING_REGISTER_FILES, files.as_ptr().cast(), 1);
        expect_result("registering a pipe", got, 0)?;
        Ok(Gone(reader))
    }

    /// Waits for that; the runner ends a test that waits for ever.
    pub fn wait(self) -> anyhow::Result<()> {
        let got = File::from(self.0).read(&mut [0])?;
        expect_eq("bytes in the pipe", got, 0)
    }
}
