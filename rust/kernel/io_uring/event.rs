// SPDX-License-Identifier: GPL-2.0

//! References to rings, and completions that are posted to them from elsewhere.
//!
//! C headers: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h),
//! [`io_uring/io_uring.h`](srctree/io_uring/io_uring.h), [`io_uring/tw.h`](srctree/io_uring/tw.h)

use crate::{
    bindings,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic, //
    }, //
};
use core::ptr::NonNull;

/// A counted reference to a ring: of `io_ring_ctx::refs`.
///
/// It keeps the ring's memory, not the ring itself: a ring that was closed waits for these
/// references to go before it is freed, so whoever has one has to drop it then. A reference that is
/// leaked, or stored in what only goes with the ring, keeps the ring's memory for good.
///
/// May be dropped in any context: the last one wakes the worker that frees the ring.
///
/// # Invariants
///
/// The ring is valid, and one of its references is owned by this object.
pub struct RingRef(NonNull<bindings::io_ring_ctx>);

// SAFETY: A reference may be dropped by another task than took it, and all methods are for any.
unsafe impl Send for RingRef {}

// SAFETY: The methods can be called by several tasks at once: flags are loaded atomically, and
// task work is added without locks.
unsafe impl Sync for RingRef {}

/// Returns the count of references of a ring.
///
/// # Safety
///
/// `ctx` must point to a ring that was allocated.
unsafe fn refs(ctx: NonNull<bindings::io_ring_ctx>) -> *mut bindings::percpu_ref {
    // SAFETY: The caller guarantees validity; the field's address is taken, nothing is read.
    unsafe { &raw mut (*ctx.as_ptr()).__bindgen_anon_1.refs }
}

impl RingRef {
    /// Takes a reference, unless the last one is gone already.
    ///
    /// # Safety
    ///
    /// `ctx` must point to a valid ring that is not freed during the call.
    pub(super) unsafe fn try_get(ctx: NonNull<bindings::io_ring_ctx>) -> Option<Self> {
        // INVARIANT: The reference just taken is the object's.
        // SAFETY: The ring is valid, and its count is until the ring is freed.
        unsafe { bindings::percpu_ref_tryget(refs(ctx)) }.then(|| Self(ctx))
    }

    /// Returns whether this is a reference to the ring `ctx`, of which only the address counts.
    #[inline]
    pub fn same(&self, ctx: NonNull<bindings::io_ring_ctx>) -> bool {
        self.0 == ctx
    }

    /// Returns the ring's flags, `IORING_SETUP_*`.
    ///
    /// What was written before `IORING_SETUP_R_DISABLED` was cleared is seen after the flag is seen
    /// cleared.
    fn flags(&self) -> u32 {
        // SAFETY: By the type invariants, the ring is valid.
        let flags = unsafe { &raw mut (*self.0.as_ptr()).__bindgen_anon_1.flags };

        // SAFETY: The field is aligned and valid as long as `self` is. C only writes to it with
        // `smp_store_release()` once the ring is set up.
        unsafe { Atomic::<u32>::from_ptr(flags) }.load(Acquire)
    }

    /// Makes the ring's task post a completion with this `user_data` and `res`, and no flags.
    ///
    /// The task does so when it runs its task work. If the completion queue is full then, the
    /// completion overflows as others do.
    ///
    /// Returns `false`, and nothing is posted, if there is no memory; if the ring was not set up
    /// with `IORING_SETUP_DEFER_TASKRUN`, as its task work is not its own then; or if it was set up
    /// with `IORING_SETUP_R_DISABLED` and not enabled yet, as it may have no task to wake.
    ///
    /// May be called in any context but interrupt handlers, also with spinlocks held, and does not
    /// sleep.
    ///
    /// C counterpart: `zcrx_send_notif()` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c).
    pub fn post_later(&self, user_data: u64, res: i32) -> bool {
        const DEFERRED: u32 = bindings::IORING_SETUP_DEFER_TASKRUN;
        const DISABLED: u32 = bindings::IORING_SETUP_R_DISABLED;

        if self.flags() & (DEFERRED | DISABLED) != DEFERRED {
            return false;
        }

        let gfp = GFP_ATOMIC | __GFP_NOWARN | __GFP_ZERO;
        // SAFETY: The cache of requests is made at boot, before the first ring, and stays.
        let req = unsafe { bindings::kmem_cache_alloc(bindings::req_cachep, gfp.as_raw()) };
        let req = req.cast::<bindings::io_kiocb>();

        if req.is_null() {
            return false;
        }

        // SAFETY: By the type invariants, there is a reference to the ring, so that another one,
        // which the request gets, can be taken.
        unsafe { bindings::percpu_ref_get(refs(self.0)) };

        // SAFETY: The request was just allocated and zeroed, for which all its fields are valid,
        // and is ours.
        unsafe {
            // The opcode is an eight-bit number.
            (*req).opcode = bindings::io_uring_op_IORING_OP_NOP as u8;
            (*req).cqe.user_data = user_data;
            (*req).cqe.res = res;
            (*req).ctx = self.0.as_ptr();
            (*req).tctx = core::ptr::null_mut();
            (*req).__bindgen_anon_4.io_task_work.func = Some(post);
        }

        // SAFETY:
        // - The request belongs to a ring with deferred task work, so that no task context is
        //   needed, and it has the ring and the function to be called. The ring has its task.
        // - The request becomes the ring's, which calls `post` for it once.
        // - `self` keeps the ring also if `post` is called before this returns.
        unsafe { bindings::io_req_task_work_add(req) };
        true
    }
}

impl Drop for RingRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the ring is valid, and one reference is ours.
        unsafe { bindings::percpu_ref_put(refs(self.0)) };
    }
}

/// Posts the completion of a request made by [`RingRef::post_later`], and frees the request.
///
/// # Safety
///
/// To be called as task work of the request, once, with `uring_lock` of its ring held.
unsafe extern "C" fn post(tw_req: bindings::io_tw_req, _token: bindings::io_tw_token_t) {
    let req = tw_req.req;
    // SAFETY: The request is valid until it is freed below.
    let (ctx, user_data, res) = unsafe { ((*req).ctx, (*req).cqe.user_data, (*req).cqe.res) };

    // SAFETY: The request has a reference to the ring, and task work may post to it.
    unsafe { bindings::io_post_aux_cqe(ctx, user_data, res, 0) };

    // SAFETY:
    // - The reference that `post_later` took for the request goes with it.
    // - The request came from this cache, and nobody has it any more.
    unsafe {
        bindings::percpu_ref_put(&raw mut (*ctx).__bindgen_anon_1.refs);
        bindings::io_poison_req(req);
        bindings::kmem_cache_free(bindings::req_cachep, req.cast());
    }
}
