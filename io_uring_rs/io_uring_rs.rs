// SPDX-License-Identifier: GPL-2.0

//! Parts of io_uring in Rust, in place of their C counterparts.
//!
//! - `filter`: what requests may do, as programs decide.
//! - `restriction`: what requests and registrations may do, as lists say, and how tasks hand both
//!   to rings and children.
//! - `zcrx`: receiving into memory that user space has lent.
//! - `exports`, `zcrx_exports`: the functions that C calls, and the only unsafe code.
//!
//! What needs more than safe Rust is in `kernel::io_uring` and its neighbours.

#![deny(unsafe_code)]

#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[expect(unsafe_code)]
pub mod exports;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[forbid(unsafe_code)]
mod filter;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[forbid(unsafe_code)]
mod restriction;
#[cfg(CONFIG_IO_URING_ZCRX_RUST)]
#[forbid(unsafe_code)]
mod zcrx;
#[cfg(CONFIG_IO_URING_ZCRX_RUST)]
#[path = "zcrx/exports.rs"]
#[expect(unsafe_code)]
pub mod zcrx_exports;

// What `vtable` takes for the owner of what it is put on.
#[cfg(CONFIG_IO_URING_ZCRX_RUST)]
use self::zcrx_exports::LocalModule;

/// Prefix to appear before log messages printed from within this crate.
const __LOG_PREFIX: &[u8] = b"io_uring\0";
