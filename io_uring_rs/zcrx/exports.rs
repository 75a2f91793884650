// SPDX-License-Identifier: GPL-2.0

//! The functions of zero-copy receive that C calls.
//!
//! Each function takes raw pointers, makes safe types of them, makes one call, and returns an
//! errno.
//!
//! Only functions of this file register queues with rings, so that the entries of `zcrx_ctxs` are
//! `Queue`s. To C, they are pointers to a `struct io_zcrx_ifq`, which it only passes back.

use crate::zcrx::{
    self,
    Queue,
    Received, //
};
use core::ptr::{
    null_mut,
    NonNull, //
};
use kernel::{
    bindings,
    error::from_result,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    io_uring::{
        queues::{
            self,
            Queues, //
        },
        receive::Receive, //
    },
    net::tcp::TcpSocket,
    prelude::*,
    uaccess::UserPtr, //
};

/// Registers an interface queue with a ring.
///
/// # Safety
///
/// - `ctx` must be a valid ring, not null, and the current task must hold its `uring_lock` during
///   the call.
/// - The ring's `user` and `mm_account` must not have been released.
#[export]
pub unsafe extern "C" fn io_register_zcrx(
    ctx: *mut bindings::io_ring_ctx,
    arg: *mut bindings::io_uring_zcrx_ifq_reg,
) -> c_int {
    from_result(|| {
        let ctx = NonNull::new(ctx).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the ring is valid and its lock held. Its queues are
        // `Queue`s.
        let mut queues = unsafe { Queues::<Queue>::from_raw(ctx) };

        zcrx::register(&mut queues, UserPtr::from_ptr(arg.cast())).map(|()| 0)
    })
}

/// Carries out an operation on a queue for user space.
///
/// # Safety
///
/// As for [`io_register_zcrx`].
#[export]
pub unsafe extern "C" fn io_zcrx_ctrl(
    ctx: *mut bindings::io_ring_ctx,
    arg: *mut c_void,
    nr_args: c_uint,
) -> c_int {
    from_result(|| {
        let ctx = NonNull::new(ctx).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the ring is valid and its lock held. Its queues are
        // `Queue`s.
        let queues = unsafe { Queues::<Queue>::from_raw(ctx) };

        if nr_args != 0 {
            return Err(EINVAL);
        }
        zcrx::control(&queues, UserPtr::from_ptr(arg)).map(|()| 0)
    })
}

/// Ends the use of its queues by a ring that is being closed. Its remaining requests may still use
/// them.
///
/// # Safety
///
/// As for [`io_register_zcrx`].
#[export]
pub unsafe extern "C" fn io_terminate_zcrx(ctx: *mut bindings::io_ring_ctx) {
    if let Some(ctx) = NonNull::new(ctx) {
        // SAFETY: The caller guarantees that the ring is valid and its lock held. Its queues are
        // `Queue`s.
        zcrx::terminate(&unsafe { Queues::from_raw(ctx) });
    }
}

/// Takes the queues from a ring that is about to be freed and has no requests left.
///
/// # Safety
///
/// As for [`io_register_zcrx`], and no request of the ring may exist any more.
#[export]
pub unsafe extern "C" fn io_unregister_zcrx(ctx: *mut bindings::io_ring_ctx) {
    if let Some(ctx) = NonNull::new(ctx) {
        // SAFETY: The caller guarantees that the ring is valid and its lock held. Its queues are
        // `Queue`s.
        zcrx::unregister(unsafe { Queues::from_raw(ctx) });
    }
}

/// Receives the data of a socket into buffers of a queue. Returns the number of bytes, zero at the
/// end of the stream, `IOU_REQUEUE`, or an errno. Subtracts the number of bytes from `len`, unless
/// that is zero.
///
/// # Safety
///
/// - `req` must be a request that is being issued to receive from `sock`, which is open, and its
///   ring must have the queue that `ifq` came from.
/// - `len` must be valid for reads and writes, and accessed by nobody else.
/// - The ring must have deferred task work, of the current task; its `uring_lock` must be held, and
///   its completions be flushed later.
#[export]
pub unsafe extern "C" fn io_zcrx_recv(
    req: *mut bindings::io_kiocb,
    ifq: *mut bindings::io_zcrx_ifq,
    sock: *mut bindings::socket,
    _flags: c_uint,
    issue_flags: c_uint,
    len: *mut c_uint,
) -> c_int {
    // SAFETY: The caller guarantees that the pointer came from the ring's array. Queues stay there
    // as long as the ring has requests.
    let ifq = unsafe { &*ifq.cast::<Queue>() };
    // SAFETY: The caller keeps the length in the request, and guarantees that nobody else accesses
    // it.
    let len = unsafe { &mut *len };

    from_result(|| {
        // SAFETY: The caller guarantees that the request is being issued, and that nobody else
        // works on it. The ring is the current task's, it cannot be resized while its lock is held,
        // and completions are flushed after the request was issued.
        let request = unsafe { Receive::from_raw(req, issue_flags) }.ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the socket is open: the request keeps it.
        let socket = unsafe { TcpSocket::from_raw(sock) }.ok_or(EPROTONOSUPPORT)?;

        match zcrx::receive(ifq, &request, &socket, len)? {
            Received::Bytes(bytes) => Ok(c_int::try_from(bytes)?),
            Received::Requeue => Ok(bindings::IOU_REQUEUE),
        }
    })
}

/// Returns the memory of the refill queue with this `id`, or null if the ring has none. The memory
/// is valid as long as `mmap_lock` is held.
///
/// # Safety
///
/// `ctx` must be a valid ring, not null, whose `mmap_lock` is held.
#[export]
pub unsafe extern "C" fn io_zcrx_get_region(
    ctx: *mut bindings::io_ring_ctx,
    id: c_uint,
) -> *mut bindings::io_mapped_region {
    NonNull::new(ctx)
        .and_then(|ctx| {
            // SAFETY: The caller guarantees that the ring is valid and the lock held. Its queues
            // are `Queue`s.
            unsafe { queues::with_queue(ctx, id, |ifq: &Queue| ifq.region().as_raw()) }
        })
        .unwrap_or(null_mut())
}
