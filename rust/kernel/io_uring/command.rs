// SPDX-License-Identifier: GPL-2.0

//! The arguments of requests, as their `prep` left them: a typed view for each opcode that shows
//! them to filters.
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
    /// `IORING_OP_SOCKET`.
    Socket(Socket<'a>),
    /// `IORING_OP_OPENAT` or `IORING_OP_OPENAT2`.
    Open(Open<'a>),
    /// `IORING_OP_CONNECT`.
    Connect(Connect<'a>),
    /// Of another opcode.
    Other,
}

impl Request {
    /// Returns the request's arguments.
    #[inline]
    pub fn command(&self) -> Command<'_> {
        // INVARIANT: Each view is made for its own opcodes, of which `prep` filled the structure.
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

        // SAFETY: The request is valid; the field's address is taken, nothing is read.
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

    /// Returns the type, without the flags that may be given with it.
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
/// The request's opcode is one of these.
pub struct Open<'a>(&'a Request);

impl Open<'_> {
    #[inline]
    fn how(&self) -> *const bindings::open_how {
        let open: *const bindings::io_open = self.0.cmd();

        // SAFETY: The request is valid; the field's address is taken, nothing is read.
        unsafe { &raw const (*open).how }
    }

    /// Returns the flags, `O_*`, not all of which need be valid.
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

    /// Returns the flags of the lookup, `RESOLVE_*`, not all of which need be valid.
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
    /// Returns the address as user space gave it: a `struct sockaddr_storage` as far as it was
    /// filled, 128 bytes at most.
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
        // SAFETY: `prep` allocated a `struct sockaddr_storage` and copied `addr_len` bytes of user
        // space into it; the rest may be uninitialised. It stays unchanged while the request is
        // prepared and not yet issued, as long as the reference to it exists.
        unsafe {
            core::slice::from_raw_parts(
                data.cast::<u8>(),
                len.min(size_of::<bindings::__kernel_sockaddr_storage>()),
            )
        }
    }
}
