// SPDX-License-Identifier: GPL-2.0
//! Where the parser of restrictions looks for its neighbours.

/// How many opcodes there are, which the kernel takes from its own headers: those
/// of Linux 7.3.
pub const OP_LAST: usize = 65;
pub const REGISTER_LAST: usize = 38;

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../rust/kernel/io_uring/rules.rs"]
pub mod rules;
