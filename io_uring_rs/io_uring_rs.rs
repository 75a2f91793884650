// SPDX-License-Identifier: GPL-2.0

//! Parts of io_uring that are written in Rust and replace their C counterparts.
//!
//! - `filter`: classic BPF programs that decide which requests may run.
//! - `report`: what the fdinfo of a ring says about filters and restrictions.
//! - `restriction`: lists of the requests and registrations that rings and tasks may make, and how
//!   rings and child tasks inherit restrictions and filters.
//! - `zcrx`: zero-copy receive into memory that user space has registered.
//! - `exports`, `calls_exports`, `zcrx_exports`: the functions that C calls. All unsafe code is in
//!   these three modules.
//!
//! At boot, the kernel log says which of these parts are built.
//!
//! Abstractions that need unsafe code are in `kernel::io_uring` and its neighbours.

#![deny(unsafe_code)]

#[cfg(CONFIG_IO_URING_BPF_CALLS)]
#[path = "calls/exports.rs"]
#[expect(unsafe_code)]
pub mod calls_exports;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[expect(unsafe_code)]
pub mod exports;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[forbid(unsafe_code)]
mod filter;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[forbid(unsafe_code)]
mod report;
#[cfg(CONFIG_IO_URING_BPF_RUST)]
#[forbid(unsafe_code)]
mod restriction;
#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[forbid(unsafe_code)]
mod test_random;
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

/// The module, which is always built in.
struct IoUring;

impl kernel::Module for IoUring {
    /// Logs which parts are in Rust, so that administrators know that C does not implement them
    /// here.
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
