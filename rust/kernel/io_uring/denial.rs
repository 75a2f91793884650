// SPDX-License-Identifier: GPL-2.0

//! The trace event of requests that restrictions or filters deny: `io_uring:io_uring_denied`.
//!
//! C headers: [`include/linux/io_uring/denial.h`](srctree/include/linux/io_uring/denial.h),
//! [`include/trace/events/io_uring.h`](srctree/include/trace/events/io_uring.h)

// `declare_trace!` expands the names of the event's parameters in its unsafe block.
#![expect(clippy::macro_metavars_in_unsafe)]

use super::Opcode;
use crate::{
    bindings,
    ffi::c_void,
    tracepoint::declare_trace, //
};

/// The reason for which a request is denied: `enum io_denial`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Denial {
    /// The list of restrictions does not have the opcode.
    Opcode = bindings::io_denial_IO_DENIAL_OPCODE as u8,
    /// The list has the opcode, but does not allow the flags.
    Flags = bindings::io_denial_IO_DENIAL_FLAGS as u8,
    /// The opcode had no filter when opcodes without one were denied.
    Rest = bindings::io_denial_IO_DENIAL_REST as u8,
    /// Filters deny each request with the opcode.
    Filter = bindings::io_denial_IO_DENIAL_FILTER as u8,
    /// Filters deny each request with the opcode and the flags.
    FilterFlags = bindings::io_denial_IO_DENIAL_FILTER_FLAGS as u8,
    /// A filter was run, and denied the request.
    Program = bindings::io_denial_IO_DENIAL_PROGRAM as u8,
}

declare_trace! {
    /// Traces that a request is denied.
    ///
    /// # Safety
    ///
    /// Always safe to call: `ctx` is printed and not followed.
    unsafe fn io_uring_denied(ctx: *mut c_void, user_data: u64, opcode: u8, flags: u8, reason: u8);
}

/// A request that is denied, as the trace event describes it.
#[derive(Clone, Copy, Debug)]
pub struct DeniedRequest {
    /// The opcode.
    pub opcode: Opcode,
    /// The flags, `IOSQE_*`: those that decided.
    pub flags: u8,
    /// The value by which user space identifies the request.
    pub user_data: u64,
    /// The reason.
    pub denial: Denial,
}

impl DeniedRequest {
    /// Traces a request that a task made without a ring.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::io_uring::{denial::{DeniedRequest, Denial}, Opcode};
    ///
    /// let denied = DeniedRequest {
    ///     opcode: Opcode::MSG_RING,
    ///     flags: 0,
    ///     user_data: 7,
    ///     denial: Denial::Program,
    /// };
    /// denied.trace_without_ring();
    /// ```
    pub fn trace_without_ring(&self) {
        self.trace(core::ptr::null_mut());
    }

    /// Traces a request of the ring `ctx`.
    #[inline]
    pub(super) fn trace(&self, ctx: *mut bindings::io_ring_ctx) {
        // SAFETY: This is always safe to call.
        unsafe {
            io_uring_denied(
                ctx.cast(),
                self.user_data,
                self.opcode.as_u8(),
                self.flags,
                self.denial as u8,
            )
        };
    }
}
