// SPDX-License-Identifier: GPL-2.0

//! Abstractions of io_uring, for the parts of it that are written in Rust.
//!
//! - [`opcode`]: request opcodes, and tables indexed by them.
//! - [`request`], [`command`], [`filter_words`]: requests, their arguments, and the part of them
//!   that opcode filters see.
//! - [`call`]: system calls that filters can deny.
//! - [`uapi`]: structures that user space passes in.
//! - [`filter_set`]: sets of filters that rings and tasks share.
//! - [`sqe_flags`]: sets of values of the SQE flags.
//! - [`rules`]: which requests and registrations are allowed.
//! - [`denial`]: the trace event of requests that are denied.
//! - [`restriction`]: rules together with filters. A [`ring`] or a [`task`] can have one.
//! - [`zcrx`], [`queues`], [`event`], [`receive`]: the interface between zero-copy receive and a
//!   ring.
//! - [`account`], [`region`], [`pinned`], [`mapping`]: memory shared with user space and devices,
//!   and the users that it is charged to.
//!
//! # Why they are part of the kernel crate
//!
//! Several of these modules ([`ring`], [`task`], [`queues`], [`receive`], [`event`],
//! [`filter_set`], [`restriction`]) wrap what io_uring's private headers declare, and have one
//! user: `io_uring_rs`, which is the implementation. They stand here and not beside it:
//!
//! - Bindings are for this crate to wrap. So are functions that it keeps to itself, such as those
//!   that turn allocation flags and devices into what C takes. Private headers are in the bindings
//!   for other subsystems as well, such as Binder.
//! - C's rules on locks and lifetimes can be kept by unsafe code only. `io_uring_rs` has none but
//!   in the functions that C calls, which the compiler checks. The boundary of the crate is what
//!   makes that possible: what is here must be sound for any safe caller, and is reviewed and
//!   tested as such, without the implementation.
//! - Nothing else in this crate depends on these modules. If abstractions move beside the C code
//!   that they wrap one day, all of this folder can go to `io_uring/` as it is.
//!
//! C headers: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h),
//! [`io_uring/opdef.h`](srctree/io_uring/opdef.h)

#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod account;
pub mod call;
pub mod command;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
pub mod denial;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod event;
pub mod filter_set;
pub mod filter_words;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod mapping;
pub mod opcode;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod pinned;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod queues;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod receive;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod region;
pub mod request;
pub mod restriction;
pub mod ring;
pub mod rules;
pub mod sqe_flags;
pub mod task;
pub mod uapi;
#[cfg(CONFIG_IO_URING_ZCRX)]
pub mod zcrx;

pub use self::opcode::{
    Opcode,
    PerOpcode, //
};

use crate::bindings;

/// The number of request opcodes: `IORING_OP_LAST`.
pub const OP_LAST: usize = bindings::io_uring_op_IORING_OP_LAST as usize;

/// The number of opcodes of `io_uring_register()`: `IORING_REGISTER_LAST`.
pub const REGISTER_LAST: usize = bindings::io_uring_register_op_IORING_REGISTER_LAST as usize;

/// The number of values that the SQE flags of a request can have. They are the lowest ones.
pub const SQE_FLAG_VALUES: usize = bindings::IO_SQE_FLAG_VALUES as usize;
