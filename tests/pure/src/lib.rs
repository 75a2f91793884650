// SPDX-License-Identifier: GPL-2.0
//! The files of the kernel code that need nothing but `core`, the same that the
//! kernel is built from, with models to hold them against: [`classic`] for
//! filter programs, [`refill`] for refill queues. Property tests of them are in a
//! module for each topic; what fuzzers ask is `judge` in either model.

// What only the kernel and the tests use.
#![cfg_attr(not(test), allow(dead_code))]

extern crate self as kernel;

/// Where the kernel's files look for what they use.
pub use classic::bpf;
pub mod classic;
pub mod refill;

pub mod io_uring;

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../io_uring_rs/restriction/parse.rs"]
mod parse;

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../io_uring_rs/filter/payload/address.rs"]
mod address;

#[cfg(test)]
mod connect_address;
#[cfg(test)]
mod filter_programs;
#[cfg(test)]
mod refill_cursor;
#[cfg(test)]
mod restriction_rules;
