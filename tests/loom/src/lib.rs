// SPDX-License-Identifier: GPL-2.0
//! Models of the protocols in which CPUs share memory without a lock.
//!
//! Each module builds the files of the kernel code that hold the atomic operations of
//! a protocol, and lets a few threads use them. `loom` runs these threads in all orders,
//! and lets each load return all values that the orderings of the code allow on a
//! machine whose CPUs reorder accesses. [`check`] then weakens orderings of the code,
//! one at a time, and expects that the model fails.
//!
//! What the kernel's files use of the kernel crate is in [`shim`], made of what loom has.

#![cfg(test)]

extern crate self as kernel;

/// The parts of the kernel crate that the kernel's files look for at the root.
pub(crate) use shim::{bitmap, io_uring, net, nospec, prelude, sync};
mod check;
mod shim;

mod areas;
mod buffer_counts;
mod events;
mod filter_sets;
mod refill_ring;
