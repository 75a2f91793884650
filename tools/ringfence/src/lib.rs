// SPDX-License-Identifier: GPL-2.0
//! ringfence confines the io_uring of a command: it registers the kernel's opcode filters
//! for a policy, and runs the command under them.
//!
//! - [`policy`] reads policies, whose names are in [`names`], and `merge` adds them;
//!   [`verdict`] says what they decide, and [`program`] has the filters that enforce them.
//! - [`kernel`] has the system calls, and [`doctor`] tries what the running kernel can do.
//! - [`run`], [`learn`], [`check`], [`show`] and [`bundle`] are the commands, whose
//!   arguments are in [`cli`].

pub mod bundle;
pub mod check;
pub mod cli;
pub mod doctor;
pub mod kernel;
pub mod learn;
mod merge;
pub mod names;
pub mod policy;
pub mod program;
pub mod run;
pub mod show;
pub mod trace;
pub mod verdict;
