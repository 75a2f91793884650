// SPDX-License-Identifier: GPL-2.0
//! The module in which the parser of restrictions looks for its neighbours.

/// The numbers of opcodes in Linux 7.3, which the kernel takes from its own headers.
pub const OP_LAST: usize = 65;
pub const REGISTER_LAST: usize = 38;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../rust/kernel/io_uring/rules.rs"]
pub mod rules;
