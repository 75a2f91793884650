// SPDX-License-Identifier: GPL-2.0

//! Requests that receive without copying, while they are issued.
//!
//! C header: [`io_uring/io_uring.h`](srctree/io_uring/io_uring.h)

use crate::bindings;
use core::marker::PhantomData;

/// An `IORING_OP_RECV_ZC` request that is being issued.
///
/// Wraps a pointer to the kernel's `struct io_kiocb`.
///
/// # Invariants
///
/// For the duration of `'a`:
///
/// - The request is valid, and so is its ring, `ctx`.
/// - The current task holds the ring's `uring_lock` and may post completions: the ring was set up
///   with `IORING_SETUP_DEFER_TASKRUN`, and this task is the one that runs the ring's task work.
/// - The entries of the ring's completion queue have double size, or can have either size.
pub struct Receive<'a> {
    req: *mut bindings::io_kiocb,
    ctx: *mut bindings::io_ring_ctx,
    issue_flags: u32,
    /// The flags of the completions.
    cqe_flags: u32,
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
    ///   runs its task work, and must hold its `uring_lock`.
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
        // demand, and the flags show that the entries have the size.
        Some(Self {
            req,
            ctx,
            issue_flags,
            cqe_flags,
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
        let mut cqe: *mut bindings::io_uring_cqe = core::ptr::null_mut();
        // SAFETY: By the type invariants, the ring is valid, and completions may be posted to it by
        // this task. They are flushed afterwards.
        if !unsafe { bindings::io_defer_get_uncommited_cqe(self.ctx, &mut cqe) } {
            return false;
        }

        // The offset is only looked up now, so that it need not be kept during the call above.
        let off = off();
        // SAFETY: By the type invariants, the request is valid.
        let user_data = unsafe { (*self.req).cqe.user_data };

        // SAFETY: By the type invariants, `cqe` is the first of two consecutive entries, which
        // belong to this function until they are flushed. User space can access them at any time:
        // they are only written to, one field at a time, and there is no reference to them.
        unsafe {
            (&raw mut (*cqe).user_data).write_volatile(user_data);
            (&raw mut (*cqe).res).write_volatile(res);
            (&raw mut (*cqe).flags).write_volatile(self.cqe_flags);

            let second = cqe.add(1).cast::<bindings::io_uring_zcrx_cqe>();

            (&raw mut (*second).off).write_volatile(off);
            (&raw mut (*second).__pad).write_volatile(0);
        }
        true
    }
}
