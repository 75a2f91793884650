// SPDX-License-Identifier: GPL-2.0
//! The module in which the kernel's files look for their neighbours.

/// The numbers of opcodes and of values of the SQE flags in Linux 7.3, which the kernel
/// takes from its own headers.
pub const OP_LAST: usize = 65;
pub const REGISTER_LAST: usize = 38;
pub const SQE_FLAG_VALUES: usize = 128;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../rust/kernel/io_uring/rules.rs"]
pub mod rules;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../rust/kernel/io_uring/sqe_flags.rs"]
pub mod sqe_flags;
