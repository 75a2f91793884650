// SPDX-License-Identifier: GPL-2.0

//! Parts of io_uring in Rust, in place of their C counterparts.
//!
//! - `filter`: what requests may do, as programs decide.
//! - `restriction`: what requests and registrations may do, as lists say, and how tasks hand both
//!   to rings and children.
//! - `zcrx`: receiving into memory that user space has lent.
//! - `exports`, `zcrx_exports`: the functions that C calls, and the only unsafe code.
//!
//! The kernel's log tells at boot which of them there are.
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

use kernel::prelude::*;

module! {
    type: IoUring,
    name: "io_uring_rs",
    description: "Parts of io_uring in Rust",
    license: "GPL v2",
}

/// The crate, which is always part of the kernel.
struct IoUring;

impl kernel::Module for IoUring {
    /// Tells administrators what C does not implement here.
    fn init(_module: &'static ThisModule) -> Result<Self> {
        if cfg!(CONFIG_IO_URING_BPF_RUST) {
            pr_info!("filters and restrictions in Rust\n");
        }
        if cfg!(CONFIG_IO_URING_ZCRX_RUST) {
            pr_info!("zero-copy receive in Rust\n");
        }
        Ok(Self)
    }
}
