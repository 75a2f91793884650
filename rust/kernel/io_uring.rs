// SPDX-License-Identifier: GPL-2.0

//! io_uring, as seen by the parts of it that are written in Rust.
//!
//! - [`opcode`]: request opcodes, and tables indexed by them.
//! - [`request`]: requests, and what opcode filters see of them.
//! - [`uapi`]: structures that user space hands in.
//! - [`restriction`]: the restrictions of a ring or task, and the shared set of filters in them.
//!
//! C headers: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h),
//! [`io_uring/opdef.h`](srctree/io_uring/opdef.h)

pub mod opcode;
pub mod request;
pub mod restriction;
pub mod uapi;

pub use self::opcode::{
    Opcode,
    PerOpcode, //
};
