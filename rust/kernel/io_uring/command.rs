// SPDX-License-Identifier: GPL-2.0

//! The arguments of requests after `prep`: a typed view for each opcode whose arguments filters can
//! see.
//!
//! C headers: [`io_uring/net.h`](srctree/io_uring/net.h),
//! [`io_uring/openclose.h`](srctree/io_uring/openclose.h)

use super::{
    request::Request,
    Opcode, //
};
use crate::bindings;
use core::mem::size_of;

/// The arguments of a request.
pub enum Command<'a> {
    /// The arguments of `IORING_OP_SOCKET`.
    Socket(Socket<'a>),
    /// The arguments of `IORING_OP_OPENAT` or `IORING_OP_OPENAT2`.
    Open(Open<'a>),
    /// The arguments of `IORING_OP_CONNECT`.
    Connect(Connect<'a>),
    /// The arguments of any other opcode, which filters cannot see.
    Other,
}

impl Request {
    /// Returns the request's arguments.
    #[inline]
    pub fn command(&self) -> Command<'_> {
        // INVARIANT: Each view is created for its own opcodes, whose `prep` filled the structure.
        match self.opcode() {
            Opcode::SOCKET => Command::Socket(Socket(self)),
            Opcode::OPENAT | Opcode::OPENAT2 => Command::Open(Open(self)),
            Opcode::CONNECT => Command::Connect(Connect(self)),
            _ => Command::Other,
        }
    }

    /// Returns the address of the structure that `prep` filled: `io_kiocb_to_cmd()`.
    #[inline]
    fn cmd<T>(&self) -> *const T {
        const { assert!(size_of::<T>() <= size_of::<bindings::io_cmd_data>()) };

        // SAFETY: The request is valid. This takes the address of the field and reads nothing.
        unsafe { (&raw const (*self.as_ptr()).__bindgen_anon_1).cast() }
    }
}

/// The arguments of `IORING_OP_SOCKET`: `struct io_socket`.
///
/// # Invariants
///
/// The request's opcode is `IORING_OP_SOCKET`.
pub struct Socket<'a>(&'a Request);

impl Socket<'_> {
    #[inline]
    fn cmd(&self) -> *const bindings::io_socket {
        self.0.cmd()
    }

    /// Returns the address family.
    #[inline]
    pub fn domain(&self) -> i32 {
        // SAFETY: By the type invariants, `prep` filled this structure.
        unsafe { (*self.cmd()).domain }
    }

    /// Returns the type, without the flags that user space may combine with it.
    #[inline]
    pub fn socket_type(&self) -> i32 {
        // SAFETY: By the type invariants, `prep` filled this structure.
        unsafe { (*self.cmd()).type_ & bindings::SOCK_TYPE_MASK as i32 }
    }

    /// Returns the protocol.
    #[inline]
    pub fn protocol(&self) -> i32 {
        // SAFETY: By the type invariants, `prep` filled this structure.
        unsafe { (*self.cmd()).protocol }
    }
}

/// The arguments of `IORING_OP_OPENAT` and `IORING_OP_OPENAT2`: `struct io_open`.
///
/// # Invariants
///
/// The request's opcode is one of these two.
pub struct Open<'a>(&'a Request);

impl Open<'_> {
    #[inline]
    fn how(&self) -> *const bindings::open_how {
        let open: *const bindings::io_open = self.0.cmd();

        // SAFETY: The request is valid. This takes the address of the field and reads nothing.
        unsafe { &raw const (*open).how }
    }

    /// Returns the flags, `O_*`, which may include invalid ones.
    #[inline]
    pub fn flags(&self) -> u64 {
        // SAFETY: By the type invariants, `prep` filled this structure.
        unsafe { (*self.how()).flags }
    }

    /// Returns the mode of a file that is created.
    #[inline]
    pub fn mode(&self) -> u64 {
        // SAFETY: By the type invariants, `prep` filled this structure.
        unsafe { (*self.how()).mode }
    }

    /// Returns the flags of the lookup, `RESOLVE_*`, which may include invalid ones.
    #[inline]
    pub fn resolve(&self) -> u64 {
        // SAFETY: By the type invariants, `prep` filled this structure.
        unsafe { (*self.how()).resolve }
    }
}

/// The arguments of `IORING_OP_CONNECT`: `struct io_connect`.
///
/// # Invariants
///
/// The request's opcode is `IORING_OP_CONNECT`.
pub struct Connect<'a>(&'a Request);

impl<'a> Connect<'a> {
    /// Returns the address as user space gave it: the part of a `struct sockaddr_storage` that
    /// `prep` filled, at most 128 bytes.
    #[inline]
    pub fn address(&self) -> &'a [u8] {
        let connect: *const bindings::io_connect = self.0.cmd();
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
