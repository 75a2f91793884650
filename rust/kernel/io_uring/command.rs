// SPDX-License-Identifier: GPL-2.0

//! The arguments of requests to connect, after `prep`. Programs load those of other requests: see
//! [`filter_words`](super::filter_words).
//!
//! C header: [`io_uring/net.h`](srctree/io_uring/net.h)

use super::{
    request::Request,
    Opcode, //
};
use crate::bindings;
use core::mem::size_of;

/// The arguments of `IORING_OP_CONNECT`: `struct io_connect`.
///
/// # Invariants
///
/// The request's opcode is `IORING_OP_CONNECT`.
pub struct Connect<'a>(&'a Request);

impl<'a> Connect<'a> {
    /// Returns the arguments of `request` if it is one to connect.
    #[inline]
    pub fn of(request: &'a Request) -> Option<Self> {
        // INVARIANT: The opcode is checked.
        (request.opcode() == Opcode::CONNECT).then_some(Self(request))
    }

    /// Returns the address as user space gave it: the part of a `struct sockaddr_storage` that
    /// `prep` filled, at most 128 bytes.
    #[inline]
    pub fn address(&self) -> &'a [u8] {
        const { assert!(size_of::<bindings::io_connect>() <= size_of::<bindings::io_cmd_data>()) };
        // SAFETY: The request is valid. This takes the address of the field, `io_kiocb_to_cmd()`,
        // and reads nothing.
        let cmd = unsafe { &raw const (*self.0.as_ptr()).__bindgen_anon_1 };
        let connect = cmd.cast::<bindings::io_connect>();
        // SAFETY: By the type invariants, this is a request to connect, and its `prep` filled this
        // structure.
        let len = usize::try_from(unsafe { (*connect).addr_len }).unwrap_or(0);
        // SAFETY: The request is valid.
        let data = unsafe { (*self.0.as_ptr()).async_data };

        if data.is_null() {
            return &[];
        }
        // SAFETY: `prep` allocated a `struct sockaddr_storage` and copied `addr_len` bytes from
        // user space into it; the rest may be uninitialised. It does not change between `prep` and
        // the issue of the request, which is as long as the reference to the request exists.
        unsafe {
            core::slice::from_raw_parts(
                data.cast::<u8>(),
                len.min(size_of::<bindings::__kernel_sockaddr_storage>()),
            )
        }
    }
}
