// SPDX-License-Identifier: GPL-2.0

//! Requests that receive without copying, while they are issued.
//!
//! C header: [`io_uring/io_uring.h`](srctree/io_uring/io_uring.h)

use crate::bindings;
use core::{
    cell::Cell,
    marker::PhantomData,
    mem::size_of,
    ptr::null_mut, //
};

/// An entry of the completion queue, or half an entry of double size.
type Entry = bindings::io_uring_cqe;

/// An `IORING_OP_RECV_ZC` request that is being issued.
///
/// Stands for the kernel's `struct io_kiocb`.
///
/// While the handle exists, it has the entries of the completion queue that the ring has looked up
/// and not used: it fills them without looking at the ring. The ring is told when they are used up,
/// and when the handle is dropped.
///
/// # Invariants
///
/// For the duration of `'a`:
///
/// - The request is valid, and so is its ring, `ctx`.
/// - The current task holds the ring's `uring_lock` and may post completions: the ring was set up
///   with `IORING_SETUP_DEFER_TASKRUN`, and this task is the one that runs the ring's task work.
/// - The entries of the ring's completion queue have double size, or can have either size.
/// - Nobody else posts completions to the ring.
/// - From `next` to `end`, there are free entries in consecutive memory. From `first` to `next`,
///   there are entries that were filled and that the ring does not count yet. All three pointers
///   may be null.
pub struct Receive<'a> {
    ctx: *mut bindings::io_ring_ctx,
    issue_flags: u32,
    /// The flags of the completions.
    cqe_flags: u32,
    user_data: u64,
    first: Cell<*mut Entry>,
    next: Cell<*mut Entry>,
    end: Cell<*mut Entry>,
    request: PhantomData<&'a mut bindings::io_kiocb>,
}

impl Receive<'_> {
    /// Creates a handle from the pointer and the flags that C passes to `io_issue_def::issue`.
    ///
    /// Returns [`None`] if the ring's completions cannot have a second half.
    ///
    /// # Safety
    ///
    /// While the handle exists:
    ///
    /// - `req` must point to a valid request that is being issued, to which nobody else has access.
    ///   Its ring must be valid, and must not be resized or set up again.
    /// - The ring must have `IORING_SETUP_DEFER_TASKRUN`. The current task must be the one that
    ///   runs its task work, and must hold its `uring_lock`. It must neither post completions to
    ///   the ring in another way nor flush them.
    /// - Completions must be flushed some time afterwards, as they are after a request was issued.
    #[inline]
    pub unsafe fn from_raw(req: *mut bindings::io_kiocb, issue_flags: u32) -> Option<Self> {
        // SAFETY: The caller guarantees that the request is valid.
        let ctx = unsafe { (*req).ctx };
        // SAFETY: The caller guarantees that the ring is valid. Its lock keeps others from writing
        // to its flags.
        let ring_flags = unsafe { (*ctx).__bindgen_anon_1.flags };
        let cqe_flags = if ring_flags & bindings::IORING_SETUP_CQE_MIXED != 0 {
            bindings::IORING_CQE_F_MORE | bindings::IORING_CQE_F_32
        } else if ring_flags & bindings::IORING_SETUP_CQE32 != 0 {
            bindings::IORING_CQE_F_MORE
        } else {
            return None;
        };

        // INVARIANT: The caller guarantees that the request and the ring are as the type invariants
        // demand, and the flags show that the entries have the size. There are no entries yet.
        Some(Self {
            ctx,
            issue_flags,
            cqe_flags,
            // SAFETY: The caller guarantees that the request is valid.
            user_data: unsafe { (*req).cqe.user_data },
            first: Cell::new(null_mut()),
            next: Cell::new(null_mut()),
            end: Cell::new(null_mut()),
            request: PhantomData,
        })
    }

    /// Returns whether the request may post completions before its last one, and be issued again.
    #[inline]
    pub fn is_multishot(&self) -> bool {
        // The enumeration is signed because of another flag. The cast keeps this bit.
        const MULTISHOT: u32 = bindings::io_uring_cmd_flags_IO_URING_F_MULTISHOT as u32;

        self.issue_flags & MULTISHOT != 0
    }

    /// Posts a completion of the request that is not its last one. The completion says that `res`
    /// bytes were received, at the offset that `off` returns.
    ///
    /// The completion takes two entries of the queue, or one entry of double size: its second half
    /// is a `struct io_uring_zcrx_cqe` with `off`.
    ///
    /// `off` is called when there is room, before the completion is filled in. It may post other
    /// completions, which come after this one. Safe code cannot flush completions, so user space
    /// does not see this one before it is complete.
    ///
    /// Returns `false` and posts nothing if the queue is full. Does not sleep.
    ///
    /// C counterpart: `io_zcrx_queue_cqe()` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c).
    #[inline]
    pub fn post(&self, res: i32, off: impl FnOnce() -> u64) -> bool {
        let Some(cqe) = self.take_entry() else {
            return false;
        };

        // The offset is only looked up now, so that it need not be kept during the call above.
        let off = off();

        // SAFETY: By the type invariants, `cqe` is the first of two consecutive entries, which
        // belong to this function until they are flushed. User space can access them at any time:
        // they are only written to, one field at a time, and there is no reference to them.
        unsafe {
            (&raw mut (*cqe).user_data).write_volatile(self.user_data);
            (&raw mut (*cqe).res).write_volatile(res);
            (&raw mut (*cqe).flags).write_volatile(self.cqe_flags);

            let second = cqe.add(1).cast::<bindings::io_uring_zcrx_cqe>();

            (&raw mut (*second).off).write_volatile(off);
            (&raw mut (*second).__pad).write_volatile(0);
        }
        true
    }

    /// Takes two consecutive entries, or one of double size. Returns [`None`] if the queue is full.
    #[inline]
    fn take_entry(&self) -> Option<*mut Entry> {
        let cqe = self.next.get();
        let next = cqe.wrapping_add(2);

        // If the pointers are null, this is past the end.
        if next > self.end.get() {
            return self.look_up_entry();
        }
        // INVARIANT: The two entries are no more free, and are about to be filled.
        self.next.set(next);
        Some(cqe)
    }

    /// Takes an entry as [`Self::take_entry`] does, and takes over those that the ring finds with
    /// it.
    #[cold]
    fn look_up_entry(&self) -> Option<*mut Entry> {
        let mut cqe = null_mut();

        self.commit();
        // SAFETY: By the type invariants, the ring is valid, and completions may be posted to it by
        // this task. They are flushed afterwards. `commit` has told it of all that were.
        let (found, next, end) = unsafe {
            let found = bindings::io_defer_get_uncommited_cqe(self.ctx, &mut cqe);
            let cache = &raw const (*self.ctx).__bindgen_anon_3;

            (found, (*cache).cqe_cached, (*cache).cqe_sentinel)
        };

        // INVARIANT: The ring has looked up the entries from `next` to `end`, and does not use them
        // as long as nobody else posts completions.
        self.first.set(next);
        self.next.set(next);
        self.end.set(end);
        found.then_some(cqe)
    }

    /// Tells the ring which of its entries were filled.
    #[inline]
    fn commit(&self) {
        let next = self.next.get();
        let filled = (next.addr() - self.first.get().addr()) / size_of::<Entry>();

        if filled == 0 {
            return;
        }
        // A ring whose entries can have either size counts both halves.
        let counted = if self.cqe_flags & bindings::IORING_CQE_F_32 != 0 {
            filled
        } else {
            filled / 2
        };

        // SAFETY: By the type invariants, the ring is valid, and its lock is held, which protects
        // these fields.
        unsafe {
            let cache = &raw mut (*self.ctx).__bindgen_anon_3;

            (*cache).cqe_cached = next;
            (*cache).cached_cq_tail = (*cache).cached_cq_tail.wrapping_add(counted as u32);
        }
        // INVARIANT: The ring counts all entries before `next`.
        self.first.set(next);
    }
}

impl Drop for Receive<'_> {
    #[inline]
    fn drop(&mut self) {
        self.commit();
    }
}
