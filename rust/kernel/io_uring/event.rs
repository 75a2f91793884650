// SPDX-License-Identifier: GPL-2.0

//! References to rings, and completions that are posted to a ring from outside of its requests.
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

/// A counted reference to a ring, in `io_ring_ctx::refs`.
///
/// It keeps the memory of the ring, but does not keep the ring open. A ring that was closed is only
/// freed once these references are gone, so the owner of a reference must then drop it. If a
/// reference is leaked, or stored in an object that is freed only with the ring, the ring is never
/// freed.
///
/// May be dropped in any context: dropping the last reference wakes the worker that frees the ring.
///
/// # Invariants
///
/// The ring is valid, and this object owns one reference to it.
pub struct RingRef(NonNull<bindings::io_ring_ctx>);

// SAFETY: A reference may be dropped by another task than the one that took it, and all methods may
// be called by any task.
unsafe impl Send for RingRef {}

// SAFETY: The methods can be called by several tasks at once: flags are loaded atomically, and
// task work is added without locks.
unsafe impl Sync for RingRef {}

/// Returns the reference count of a ring.
///
/// # Safety
///
/// `ctx` must point to a ring that was allocated.
unsafe fn refs(ctx: NonNull<bindings::io_ring_ctx>) -> *mut bindings::percpu_ref {
    // SAFETY: The caller guarantees that the ring was allocated. This takes the address of the
    // field and reads nothing.
    unsafe { &raw mut (*ctx.as_ptr()).__bindgen_anon_1.refs }
}

impl RingRef {
    /// Takes a reference, unless the last one is gone already.
    ///
    /// # Safety
    ///
    /// `ctx` must point to a valid ring that is not freed during the call.
    pub(super) unsafe fn try_get(ctx: NonNull<bindings::io_ring_ctx>) -> Option<Self> {
        // INVARIANT: The object owns the reference that was just taken.
        // SAFETY: The ring is valid, and so is its count until the ring is freed.
        unsafe { bindings::percpu_ref_tryget(refs(ctx)) }.then(|| Self(ctx))
    }

    /// Returns whether this is a reference to the ring `ctx`. Only the address is compared.
    #[inline]
    pub fn refers_to(&self, ctx: NonNull<bindings::io_ring_ctx>) -> bool {
        self.0 == ctx
    }

    /// Returns the ring's flags, `IORING_SETUP_*`.
    ///
    /// If `IORING_SETUP_R_DISABLED` is seen cleared, then all that was written before it was
    /// cleared is seen, too.
    fn flags(&self) -> u32 {
        // SAFETY: By the type invariants, the ring is valid.
        let flags = unsafe { &raw mut (*self.0.as_ptr()).__bindgen_anon_1.flags };

        // SAFETY: The field is aligned, and valid as long as `self` is. Once the ring is set up, C
        // writes to it only by `smp_store_release()`.
        unsafe { Atomic::<u32>::from_ptr(flags) }.load(Acquire)
    }

    /// Makes the ring's task post a completion with this `user_data` and `res`, and no flags.
    ///
    /// The task posts it when it runs its task work. If the completion queue is full then, the
    /// completion overflows as others do.
    ///
    /// Returns `false` and posts nothing in these cases:
    ///
    /// - There is no memory.
    /// - The ring was set up without `IORING_SETUP_DEFER_TASKRUN`: it has no task work of its own.
    /// - The ring was set up with `IORING_SETUP_R_DISABLED` and has not been enabled yet: it may
    ///   have no task to wake.
    ///
    /// May be called in any context except interrupt handlers, even with spinlocks held. Does not
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
        // SAFETY: The cache of requests is created at boot, before the first ring, and stays.
        let req = unsafe { bindings::kmem_cache_alloc(bindings::req_cachep, gfp.as_raw()) };
        let req = req.cast::<bindings::io_kiocb>();

        if req.is_null() {
            return false;
        }

        // SAFETY: By the type invariants, this object has a reference to the ring, so that another
        // one can be taken, which belongs to the request.
        unsafe { bindings::percpu_ref_get(refs(self.0)) };

        // SAFETY: The request was just allocated and belongs to this function. It was zeroed, and
        // zero is valid for all its fields.
        unsafe {
            // The opcode has eight bits.
            (*req).opcode = bindings::io_uring_op_IORING_OP_NOP as u8;
            (*req).cqe.user_data = user_data;
            (*req).cqe.res = res;
            (*req).ctx = self.0.as_ptr();
            (*req).tctx = core::ptr::null_mut();
            (*req).__bindgen_anon_4.io_task_work.func = Some(post);
        }

        // SAFETY:
        // - The ring defers task work and has a task, so that the request needs no task context. It
        //   has the ring and the function to call.
        // - The request now belongs to the ring, which calls `post` for it once.
        // - `self` keeps the ring, even if `post` is called before this returns.
        unsafe { bindings::io_req_task_work_add(req) };
        true
    }
}

impl Drop for RingRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the ring is valid, and this object owns one reference.
        unsafe { bindings::percpu_ref_put(refs(self.0)) };
    }
}

/// Posts the completion of a request that [`RingRef::post_later`] made, and frees the request.
///
/// # Safety
///
/// Must be called once, as task work of the request, with the `uring_lock` of its ring held.
unsafe extern "C" fn post(tw_req: bindings::io_tw_req, _token: bindings::io_tw_token_t) {
    let req = tw_req.req;
    // SAFETY: The request is valid until it is freed below.
    let (ctx, user_data, res) = unsafe { ((*req).ctx, (*req).cqe.user_data, (*req).cqe.res) };

    // SAFETY: The request has a reference to the ring, and task work may post to the ring.
    unsafe { bindings::io_post_aux_cqe(ctx, user_data, res, 0) };

    // SAFETY:
    // - This drops the reference that `post_later` took for the request.
    // - The request came from this cache, and nobody uses it any more.
    unsafe {
        bindings::percpu_ref_put(&raw mut (*ctx).__bindgen_anon_1.refs);
        bindings::io_poison_req(req);
        bindings::kmem_cache_free(bindings::req_cachep, req.cast());
    }
}
