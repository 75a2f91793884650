// SPDX-License-Identifier: GPL-2.0
//! A ring for tests: it can have any setup flag, submits exact numbers of SQEs, and
//! takes CQEs one by one.

use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, bail, ensure};
use io_uring::{IoUring, Parameters};

use crate::bpf::{self, CONTEXT_SIZE, Insn};
use crate::kernel::{describe, expect_result, result};
use crate::register::{self, opcodes};
use crate::sqe::Sqe;

pub const IORING_SETUP_SQPOLL: u32 = 1 << 1;
pub const IORING_SETUP_CQSIZE: u32 = 1 << 3;
pub const IORING_SETUP_R_DISABLED: u32 = 1 << 6;
pub const IORING_SETUP_SUBMIT_ALL: u32 = 1 << 7;
pub const IORING_SETUP_SINGLE_ISSUER: u32 = 1 << 12;
pub const IORING_SETUP_SQE_MIXED: u32 = 1 << 19;

/// Makes `io_uring_enter(2)` run deferred work and wait for completions.
pub const IORING_ENTER_GETEVENTS: u32 = 1 << 0;

/// Says that more CQEs of the same request follow.
pub const IORING_CQE_F_MORE: u32 = 1 << 1;
/// Says that a zero-copy send no longer needs its buffer.
pub const IORING_CQE_F_NOTIF: u32 = 1 << 3;

/// The size of `struct io_uring_params` in bytes.
pub const PARAMS_SIZE: usize = 120;

/// A `struct io_uring_params` that the kernel filled in, as words of 32 bits.
pub type RawParams = [u32; PARAMS_SIZE / 4];

const _: () = assert!(size_of::<Parameters>() == PARAMS_SIZE);

/// A completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cqe {
    pub user_data: u64,
    pub res: i32,
    pub flags: u32,
}

/// Builds a completion to compare with.
pub fn cqe(user_data: u64, res: i32, flags: u32) -> Cqe {
    Cqe {
        user_data,
        res,
        flags,
    }
}

/// A ring with 64-byte SQEs and 16-byte CQEs.
pub struct Ring {
    inner: IoUring,
    params: RawParams,
}

/// Calls `io_uring_setup(2)` itself.
pub fn setup(entries: u32, params: &mut RawParams) -> i32 {
    // SAFETY: `params` has the size of the kernel's structure.
    result(unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, params.as_mut_ptr()) })
}

/// Calls `io_uring_enter(2)` itself, without a signal mask.
pub fn enter(fd: RawFd, to_submit: u32, min_complete: u32, flags: u32) -> i32 {
    let none = std::ptr::null::<libc::c_void>();
    // SAFETY: the call passes no pointer but a null one.
    result(unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            fd,
            to_submit,
            min_complete,
            flags,
            none,
            0usize,
        )
    })
}

impl Ring {
    /// Makes a ring without setup flags.
    pub fn new(entries: u32) -> anyhow::Result<Self> {
        Self::with(entries, 0)
    }

    /// Makes a ring with `IORING_SETUP_*` flags.
    pub fn with(entries: u32, flags: u32) -> anyhow::Result<Self> {
        let mut params = RawParams::default();
        params[2] = flags;
        if flags & IORING_SETUP_CQSIZE != 0 {
            params[1] = 2 * entries;
        }
        let fd = setup(entries, &mut params);
        ensure!(fd >= 0, "io_uring_setup: {}", describe(fd));
        Self::attach(fd, params)
    }

    /// Maps a ring that other code has set up.
    pub fn attach(fd: RawFd, params: RawParams) -> anyhow::Result<Self> {
        // SAFETY: the types have the same size, and the kernel filled `params` in for
        // this very ring.
        let inner = unsafe {
            let parameters: Parameters = std::mem::transmute(params);
            IoUring::from_fd(fd, parameters)
        };
        Ok(Ring {
            inner: inner.context("mapping the ring")?,
            params,
        })
    }

    pub fn fd(&self) -> RawFd {
        self.inner.as_raw_fd()
    }

    /// Returns the parameters that the kernel wrote back on setup.
    pub fn params(&self) -> RawParams {
        self.params
    }

    /// Puts an SQE into the queue without telling the kernel. The memory that it points
    /// to must stay until its completion.
    pub fn push(&mut self, sqe: Sqe) -> anyhow::Result<()> {
        // SAFETY: the tests keep the buffers of their SQEs alive.
        let pushed = unsafe { self.inner.submission().push(&sqe.into()) };
        pushed.context("the submission queue is full")
    }

    /// Counts the SQEs that the kernel has not taken yet.
    pub fn queued(&mut self) -> usize {
        self.inner.submission().len()
    }

    /// Submits everything queued. Returns the number of SQEs that the kernel took.
    pub fn submit(&mut self) -> anyhow::Result<usize> {
        Ok(self.inner.submit()?)
    }

    /// Takes a completion if there is one.
    pub fn try_cqe(&mut self) -> Option<Cqe> {
        self.inner.completion().next().map(|entry| Cqe {
            user_data: entry.user_data(),
            res: entry.result(),
            flags: entry.flags(),
        })
    }

    /// Waits for a completion. The runner ends a test that waits for ever.
    pub fn cqe(&mut self) -> anyhow::Result<Cqe> {
        loop {
            if let Some(cqe) = self.try_cqe() {
                return Ok(cqe);
            }
            // Waits without submitting what a test left in the queue.
            // SAFETY: the call passes no pointer.
            let waited = unsafe { self.inner.submitter().enter::<()>(0, 1, 1, None) };
            match waited {
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINTR) => {}
                Err(error) => return Err(error).context("waiting for a completion"),
            }
        }
    }

    /// Waits for `count` completions.
    pub fn cqes(&mut self, count: usize) -> anyhow::Result<Vec<Cqe>> {
        (0..count).map(|_| self.cqe()).collect()
    }

    /// Runs one request and returns its result. Takes the notification too if one
    /// follows.
    pub fn run(&mut self, sqe: Sqe) -> anyhow::Result<i32> {
        self.push(sqe)?;
        let submitted = self.submit()?;
        // An SQPOLL thread completes a request before it frees its slot.
        if self.params[2] & IORING_SETUP_SQPOLL == 0 {
            ensure!(submitted == 1, "submitted {submitted} SQEs, expected 1");
        }
        let cqe = self.cqe()?;
        ensure!(
            cqe.user_data == sqe.user_data,
            "completion of another request: {cqe:x?}"
        );
        if cqe.flags & IORING_CQE_F_MORE != 0 {
            let follows = self.cqe()?;
            ensure!(
                follows.flags & IORING_CQE_F_NOTIF != 0,
                "something other than a notification follows: {follows:x?}"
            );
        }
        Ok(cqe.res)
    }

    /// Pushes all SQEs, submits once, and takes as many completions as there are SQEs.
    pub fn run_all(&mut self, sqes: &[Sqe]) -> anyhow::Result<Vec<Cqe>> {
        for sqe in sqes {
            self.push(*sqe)?;
        }
        let submitted = self.submit()?;
        ensure!(
            submitted == sqes.len(),
            "submitted {submitted} SQEs, expected {}",
            sqes.len()
        );
        self.cqes(sqes.len())
    }

    /// Registers a filter for the ring.
    pub fn filter(&self, opcode: u8, program: &[Insn]) -> i32 {
        register::filter(self.fd(), opcode, program)
    }

    /// Registers a filter for the ring, which must be accepted.
    pub fn must_filter(&self, opcode: u8, program: &[Insn]) -> anyhow::Result<()> {
        let what = format!("registering a filter for opcode {opcode}");
        expect_result(&what, self.filter(opcode, program), 0)
    }

    /// Runs one request whose result must be `want`.
    pub fn expect(&mut self, what: &str, sqe: Sqe, want: i32) -> anyhow::Result<()> {
        let got = self.run(sqe).with_context(|| what.to_string())?;
        expect_result(what, got, want)
    }

    /// Checks that no completion comes. What is still under way gets time to complete.
    pub fn expect_no_cqe(&mut self) -> anyhow::Result<()> {
        // An FSYNC goes to a worker and comes back by task work, behind what was there
        // before.
        const MARK: u64 = 0xfeed_face_dead_beef;
        let mark = Sqe::new(crate::sqe::op::FSYNC).user_data(MARK);
        self.push(mark)?;
        self.submit()?;
        let cqe = self.cqe()?;
        ensure!(cqe.user_data == MARK, "unexpected completion {cqe:x?}");
        match self.try_cqe() {
            Some(cqe) => bail!("unexpected completion {cqe:x?}"),
            None => Ok(()),
        }
    }

    /// Runs a zeroed request of every opcode with each of two values of `user_data`.
    /// Returns the results, which show what is allowed and denied.
    pub fn verdicts(&mut self) -> anyhow::Result<Vec<i32>> {
        let mut results = Vec::new();
        for opcode in opcodes() {
            for user_data in [7, 8] {
                let sqe = Sqe::new(opcode).user_data(user_data);
                results.push(self.run(sqe)?);
            }
        }
        Ok(results)
    }
}

/// Reads the context that filters see for a request, word by word. The two words of
/// `user_data` are 0 in the result. Each bit takes one submission of the request on a
/// new ring; `-EACCES` stands for a 0, any other result for a 1.
pub fn read_context(opcode: u8, make: impl Fn() -> Sqe) -> anyhow::Result<[u32; 10]> {
    let mut ring = Ring::new(8)?;
    ring.must_filter(opcode, &bpf::read_bit())?;
    read_context_on(&mut ring, make)
}

/// Reads the context on a ring that already has the filter [`bpf::read_bit`].
pub fn read_context_on(ring: &mut Ring, make: impl Fn() -> Sqe) -> anyhow::Result<[u32; 10]> {
    let mut context = [0; 10];
    for (index, word) in context.iter_mut().enumerate().skip(2) {
        for bit in 0..32 {
            let res = ring.run(make().user_data((index as u64) << 32 | bit))?;
            if res != -libc::EACCES {
                *word |= 1 << bit;
            }
        }
    }
    debug_assert_eq!(context.len() * 4, CONTEXT_SIZE as usize);
    Ok(context)
}
