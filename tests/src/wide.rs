// SPDX-License-Identifier: GPL-2.0
//! A ring with completions of 32 bytes: with `CQE32` all are, with `CQE_MIXED` a flag
//! marks those that are. The ring uses `DEFER_TASKRUN` and a single issuer, as rings
//! for zero-copy receive do, and is driven without a library.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};

use crate::kernel::describe;
use crate::ring::{
    self, IORING_ENTER_GETEVENTS, IORING_SETUP_CQSIZE, IORING_SETUP_SINGLE_ISSUER, RawParams,
};
use crate::sqe::Sqe;

pub const IORING_SETUP_CLAMP: u32 = 1 << 4;
pub const IORING_SETUP_CQE32: u32 = 1 << 11;
pub const IORING_SETUP_DEFER_TASKRUN: u32 = 1 << 13;
pub const IORING_SETUP_CQE_MIXED: u32 = 1 << 18;

/// The setup flags that zero-copy receive requires of a ring.
pub const ZCRX_SETUP: u32 =
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE32;

/// Marks a completion that only fills the end of a mixed queue.
pub const IORING_CQE_F_SKIP: u32 = 1 << 5;
/// Marks a completion of 32 bytes in a mixed queue.
pub const IORING_CQE_F_32: u32 = 1 << 15;

const IORING_OFF_CQ_RING: i64 = 0x800_0000;
const IORING_OFF_SQES: i64 = 0x1000_0000;

/// A completion. `extra` is its second half, if it has one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WideCqe {
    pub user_data: u64,
    pub res: i32,
    pub flags: u32,
    pub extra: Option<[u64; 2]>,
}

impl WideCqe {
    /// Returns the offset of the data that a receive completion hands out.
    pub fn offset(&self) -> anyhow::Result<u64> {
        let [off, _] = self.extra.context("a completion without an offset")?;
        Ok(off)
    }
}

/// Mapped memory that can be read and written.
pub struct Mapping {
    address: *mut u8,
    len: usize,
}

// SAFETY: a mapping is plain memory, which any thread can use and unmap.
unsafe impl Send for Mapping {}

// SAFETY: the kernel changes the memory under every reader anyhow; all access is atomic
// or volatile.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of a file at `offset`.
    pub fn new(fd: RawFd, offset: i64, len: usize) -> anyhow::Result<Self> {
        Self::map(fd, offset, len, libc::MAP_SHARED | libc::MAP_POPULATE)
    }

    /// Maps new memory without a file. `flags` are further `MAP_*` flags.
    pub fn anonymous(len: usize, flags: libc::c_int) -> anyhow::Result<Self> {
        Self::map(-1, 0, len, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | flags)
    }

    /// Maps new memory at address 0, which only root may do.
    pub fn at_zero(len: usize) -> anyhow::Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
        Self::map(-1, 0, len, flags)
    }

    fn map(fd: RawFd, offset: i64, len: usize, flags: libc::c_int) -> anyhow::Result<Self> {
        // SAFETY: the kernel chooses a free address for the new mapping, or takes address 0
        // if nothing is there.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error()).context("mmap");
        }
        Ok(Mapping {
            address: address.cast(),
            len,
        })
    }

    pub fn address(&self) -> *mut u8 {
        self.address
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a word that is shared with the kernel.
    pub fn word(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4) && offset + 4 <= self.len);
        // SAFETY: the word is inside the mapping, and aligned because pages are.
        unsafe { AtomicU32::from_ptr(self.address.add(offset).cast()) }
    }

    /// Reads a value at a byte offset.
    pub fn read<T: Copy>(&self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= self.len);
        // SAFETY: the value is inside the mapping.
        unsafe { std::ptr::read_volatile(self.address.add(offset).cast()) }
    }

    /// Writes a value at a byte offset.
    pub fn write<T: Copy>(&self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= self.len);
        // SAFETY: the value is inside the mapping.
        unsafe { std::ptr::write_volatile(self.address.add(offset).cast(), value) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: `self` owns the mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.address.cast(), self.len) };
    }
}

/// A ring with wide completions.
pub struct WideRing {
    fd: OwnedFd,
    params: RawParams,
    rings: Mapping,
    sqes: Mapping,
    sq_tail: u32,
}

impl AsFd for WideRing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl WideRing {
    /// Makes a ring with the flags that zero-copy receive requires.
    pub fn new(entries: u32) -> anyhow::Result<Self> {
        Self::with(entries, 0, ZCRX_SETUP)
    }

    /// Makes a ring with `IORING_SETUP_*` flags. `cq_entries` is the size of its
    /// completion queue, or 0 for the default.
    pub fn with(entries: u32, cq_entries: u32, flags: u32) -> anyhow::Result<Self> {
        let mut params = RawParams::default();
        params[2] = flags;
        if cq_entries != 0 {
            params[1] = cq_entries;
            params[2] |= IORING_SETUP_CQSIZE;
        }
        let fd = ring::setup(entries, &mut params);
        ensure!(fd >= 0, "io_uring_setup: {}", describe(fd));
        // SAFETY: the descriptor is new, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Self::attach(fd, params)
    }

    /// Maps a ring that other code has set up, given the parameters that the kernel
    /// wrote back.
    pub fn attach(fd: OwnedFd, params: RawParams) -> anyhow::Result<Self> {
        let flags = params[2];
        let cqe = if flags & IORING_SETUP_CQE32 != 0 {
            32
        } else {
            16
        };
        // The ends of the CQEs and of the array of SQE indices.
        let cqes = params[20 + 5] as usize + cqe * params[1] as usize;
        let array = params[10 + 6] as usize + 4 * params[0] as usize;
        let rings = Mapping::new(fd.as_raw_fd(), IORING_OFF_CQ_RING, cqes.max(array))
            .context("mapping the rings")?;
        let sqes = Mapping::new(fd.as_raw_fd(), IORING_OFF_SQES, 64 * params[0] as usize)
            .context("mapping the SQEs")?;
        Ok(WideRing {
            fd,
            params,
            rings,
            sqes,
            sq_tail: 0,
        })
    }

    pub fn fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Returns the parameters that the kernel wrote back on setup.
    pub fn params(&self) -> RawParams {
        self.params
    }

    /// Returns a word of the submission queue, by its index in `struct io_sqring_offsets`.
    fn sq(&self, index: usize) -> &AtomicU32 {
        self.rings.word(self.params[10 + index] as usize)
    }

    /// Returns a word of the completion queue, by its index in `struct io_cqring_offsets`.
    fn cq(&self, index: usize) -> &AtomicU32 {
        self.rings.word(self.params[20 + index] as usize)
    }

    /// Returns the number of completions that found no room so far.
    pub fn overflow(&self) -> u32 {
        self.cq(4).load(Ordering::Relaxed)
    }

    /// Returns the head of the completion queue, which increases for ever and wraps.
    pub fn position(&self) -> u32 {
        self.cq(0).load(Ordering::Relaxed)
    }

    /// Returns the number of slots that are filled and not yet taken.
    pub fn waiting(&self) -> u32 {
        self.cq(1)
            .load(Ordering::Acquire)
            .wrapping_sub(self.position())
    }

    /// Returns the completion at a position, including fillers, whether it has been
    /// taken or not.
    pub fn slot(&self, position: u32) -> WideCqe {
        let cqes = self.params[20 + 5] as usize;
        let slot = (position & (self.params[1] - 1)) as usize;
        let all_wide = self.params[2] & IORING_SETUP_CQE32 != 0;
        let at = cqes + slot * if all_wide { 32 } else { 16 };
        let flags: u32 = self.rings.read(at + 12);
        let wide = all_wide || flags & IORING_CQE_F_32 != 0;
        WideCqe {
            user_data: self.rings.read(at),
            res: self.rings.read(at + 8),
            flags,
            extra: wide.then(|| self.rings.read(at + 16)),
        }
    }

    /// Puts an SQE into the queue. The memory that it points to must stay until its
    /// completion.
    pub fn push(&mut self, sqe: Sqe) -> anyhow::Result<()> {
        let entries = self.params[0];
        let taken = self.sq(0).load(Ordering::Acquire);
        ensure!(
            self.sq_tail.wrapping_sub(taken) < entries,
            "the submission queue is full"
        );
        let slot = self.sq_tail & (entries - 1);
        self.sqes.write(64 * slot as usize, sqe);
        let array = self.params[10 + 6] as usize;
        self.rings
            .word(array + 4 * slot as usize)
            .store(slot, Ordering::Relaxed);
        self.sq_tail = self.sq_tail.wrapping_add(1);
        self.sq(1).store(self.sq_tail, Ordering::Release);
        Ok(())
    }

    /// Submits what is queued, runs deferred work, and waits for `wait` completions.
    /// Returns the number of SQEs that the kernel took.
    pub fn submit_and_wait(&mut self, wait: u32) -> anyhow::Result<u32> {
        let queued = self
            .sq_tail
            .wrapping_sub(self.sq(0).load(Ordering::Acquire));
        let got = ring::enter(self.fd(), queued, wait, IORING_ENTER_GETEVENTS);
        ensure!(got >= 0, "io_uring_enter: {}", describe(got));
        Ok(got as u32)
    }

    /// Submits what is queued and runs deferred work, without waiting.
    pub fn submit(&mut self) -> anyhow::Result<u32> {
        self.submit_and_wait(0)
    }

    /// Takes a completion if there is one. Skips fillers.
    pub fn try_cqe(&mut self) -> Option<WideCqe> {
        loop {
            let head = self.cq(0).load(Ordering::Relaxed);
            if head == self.cq(1).load(Ordering::Acquire) {
                return None;
            }
            let cqe = self.slot(head);
            let all_wide = self.params[2] & IORING_SETUP_CQE32 != 0;
            let slots = if cqe.extra.is_some() && !all_wide {
                2
            } else {
                1
            };
            self.cq(0)
                .store(head.wrapping_add(slots), Ordering::Release);
            if cqe.flags & IORING_CQE_F_SKIP == 0 {
                return Some(cqe);
            }
        }
    }

    /// Submits what is queued and waits for a completion. The runner ends a test that
    /// waits for ever.
    pub fn cqe(&mut self) -> anyhow::Result<WideCqe> {
        loop {
            if let Some(cqe) = self.try_cqe() {
                return Ok(cqe);
            }
            self.submit_and_wait(1)?;
        }
    }

    /// Runs one request that completes once. Returns its result.
    pub fn run(&mut self, sqe: Sqe) -> anyhow::Result<i32> {
        self.push(sqe)?;
        let cqe = self.cqe()?;
        ensure!(
            cqe.user_data == sqe.user_data,
            "completion of another request: {cqe:x?}"
        );
        Ok(cqe.res)
    }
}
