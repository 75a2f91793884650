// SPDX-License-Identifier: GPL-2.0

//! Requests, and the context in which opcode filters see them.
//!
//! C headers: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h),
//! [`include/uapi/linux/io_uring/bpf_filter.h`](srctree/include/uapi/linux/io_uring/bpf_filter.h)

use super::Opcode;
use crate::{
    bindings,
    transmute::AsBytes,
    types::Opaque, //
};
use core::mem::{
    offset_of,
    size_of, //
};

/// The flags that an SQE may have: `SQE_VALID_FLAGS`.
///
/// The low bits of `io_kiocb::flags` have the same meaning.
const SQE_VALID_FLAGS: u8 = 1 << bindings::io_uring_sqe_flags_bit_IOSQE_FIXED_FILE_BIT
    | 1 << bindings::io_uring_sqe_flags_bit_IOSQE_IO_DRAIN_BIT
    | 1 << bindings::io_uring_sqe_flags_bit_IOSQE_IO_LINK_BIT
    | 1 << bindings::io_uring_sqe_flags_bit_IOSQE_IO_HARDLINK_BIT
    | 1 << bindings::io_uring_sqe_flags_bit_IOSQE_ASYNC_BIT
    | 1 << bindings::io_uring_sqe_flags_bit_IOSQE_BUFFER_SELECT_BIT
    | 1 << bindings::io_uring_sqe_flags_bit_IOSQE_CQE_SKIP_SUCCESS_BIT;

/// A request that was prepared and has not been issued yet.
///
/// Wraps the kernel's `struct io_kiocb`.
///
/// # Invariants
///
/// `opcode` is less than `IORING_OP_LAST`. Either the opcode's `prep` succeeded, or all but the
/// opcode and `user_data` is zero.
#[repr(transparent)]
pub struct Request(Opaque<bindings::io_kiocb>);

impl Request {
    /// Makes a reference from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// For the duration of `'a`, `req` must point to a valid request whose opcode was validated
    /// and whose `prep` succeeded, and nobody else may write to it.
    #[inline]
    pub unsafe fn from_raw<'a>(req: *mut bindings::io_kiocb) -> &'a Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        // SAFETY: The caller guarantees that the request is valid, and `Self` is a transparent
        // wrapper.
        unsafe { &*req.cast::<Self>() }
    }

    /// Creates a request that only filters see: one without flags, ring and file, all of whose
    /// arguments are zero. It is never issued.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::io_uring::{request::Request, Opcode};
    ///
    /// let nop = Opcode::new(0).ok_or(EINVAL)?;
    /// let request = Request::without_ring(nop, 7);
    ///
    /// assert_eq!(request.opcode(), nop);
    /// assert_eq!((request.user_data(), request.sqe_flags()), (7, 0));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn without_ring(opcode: Opcode, user_data: u64) -> Self {
        let mut request: bindings::io_kiocb = pin_init::zeroed();

        request.opcode = opcode.as_u8();
        request.cqe.user_data = user_data;
        // INVARIANT: The opcode is in range. Arguments that are zero are initialised, and null is
        // no asynchronous data.
        Self(Opaque::new(request))
    }

    /// Returns the request as a C pointer.
    #[inline]
    pub(super) fn as_ptr(&self) -> *mut bindings::io_kiocb {
        self.0.get()
    }

    /// Returns the opcode of the request.
    #[inline]
    pub fn opcode(&self) -> Opcode {
        // SAFETY: By the type invariants, the request is valid and its opcode in range.
        unsafe { Opcode::new_unchecked((*self.0.get()).opcode) }
    }

    /// Returns the value by which user space identifies the request.
    #[inline]
    pub fn user_data(&self) -> u64 {
        // SAFETY: By the type invariants, the request is valid.
        unsafe { (*self.0.get()).cqe.user_data }
    }

    /// Returns the SQE's flags after `prep`, which may have set more of them, such as `IOSQE_ASYNC`
    /// for requests that always go to a worker.
    #[inline]
    pub fn sqe_flags(&self) -> u8 {
        // SAFETY: By the type invariants, the request is valid.
        let flags = unsafe { (*self.0.get()).flags };

        // The cast keeps all bits of the mask.
        flags as u8 & SQE_VALID_FLAGS
    }
}

/// The context that a filter program loads from: `struct io_uring_bpf_ctx`, 40 bytes.
///
/// # Examples
///
/// ```
/// use kernel::{
///     io_uring::{request::FilterContext, Opcode},
///     transmute::AsBytes, //
/// };
///
/// let nop = Opcode::new(0).ok_or(EINVAL)?;
/// let context = FilterContext::new(nop, 0x10, 0x1122334455667788);
/// let bytes = context.as_bytes();
///
/// assert_eq!(bytes.len(), 40);
/// assert_eq!(bytes[..8], 0x1122334455667788u64.to_ne_bytes());
/// assert_eq!(bytes[8..10], [0, 0x10]);
/// assert!(bytes[10..].iter().all(|&byte| byte == 0));
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct FilterContext(bindings::io_uring_bpf_ctx);

const _: () = {
    assert!(size_of::<FilterContext>() == FilterContext::SIZE as usize);
    assert!(offset_of!(bindings::io_uring_bpf_ctx, opcode) == 8);
    assert!(offset_of!(bindings::io_uring_bpf_ctx, sqe_flags) == 9);
    assert!(offset_of!(bindings::io_uring_bpf_ctx, pdu_size) == 10);
    assert!(offset_of!(bindings::io_uring_bpf_ctx, __bindgen_anon_1) == 16);
};

// SAFETY: The structure has no padding: it is a word, eight single bytes, and a union of 24 bytes,
// all of which `new` initialises.
unsafe impl AsBytes for FilterContext {}

impl FilterContext {
    /// The structure's size in bytes. Programs that load the packet length get this value.
    pub const SIZE: u32 = 40;

    /// Creates the context of a request whose arguments, if any, are not set yet: all other bytes
    /// are zero.
    #[inline]
    pub fn new(opcode: Opcode, sqe_flags: u8, user_data: u64) -> Self {
        let mut context: bindings::io_uring_bpf_ctx = pin_init::zeroed();

        context.user_data = user_data;
        context.opcode = opcode.as_u8();
        context.sqe_flags = sqe_flags;
        Self(context)
    }

    /// Creates a context with these contents.
    pub(super) fn from_raw(context: bindings::io_uring_bpf_ctx) -> Self {
        Self(context)
    }

    /// Sets the arguments of a request that connects a socket, 24 bytes. The port and the address
    /// are in network byte order. An IPv4 address is in the first 4 bytes of `addr`.
    #[inline]
    pub fn set_connect(&mut self, family: u16, port: [u8; 2], addr: [u8; 16]) {
        let mut connect: bindings::io_uring_bpf_ctx__bindgen_ty_1__bindgen_ty_3 =
            pin_init::zeroed();

        connect.family = family.into();
        connect.port = u16::from_ne_bytes(port);
        connect.__bindgen_anon_1.v6_addr = addr;
        self.0.pdu_size = 24;
        self.0.__bindgen_anon_1.connect = connect;
    }
}
