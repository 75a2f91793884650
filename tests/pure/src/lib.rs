// SPDX-License-Identifier: GPL-2.0
//! The files of the kernel code that need only `core`, the same that the kernel is
//! built from, with models to compare them with: [`classic`] for filter programs,
//! [`refill`] for refill queues. There is a module of property tests for each topic.
//! Fuzzers run `judge` of either model.

// Only the kernel and the tests use some of this.
#![cfg_attr(not(test), allow(dead_code))]

#[cfg(test)]
use proptest::prelude::ProptestConfig;

extern crate self as kernel;

/// The kernel's files look for `bpf` at the root.
pub use classic::bpf;
pub mod classic;
pub mod refill;

pub mod io_uring;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../io_uring_rs/restriction/parse.rs"]
mod parse;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../io_uring_rs/filter/payload/address.rs"]
mod address;

#[cfg(test)]
mod connect_address;
#[cfg(test)]
mod filter_flags;
#[cfg(test)]
mod filter_programs;
#[cfg(test)]
mod filter_translation;
#[cfg(test)]
mod refill_cursor;
#[cfg(test)]
mod restriction_rules;

/// Makes property tests run this number of cases, or as many as PROPTEST_CASES says in the
/// environment. Failures are not stored, as `judge` has a corpus.
#[cfg(test)]
fn cases(cases: u32) -> ProptestConfig {
    let of_environment = std::env::var_os("PROPTEST_CASES").is_some();
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: if of_environment { default.cases } else { cases },
        failure_persistence: None,
        ..default
    }
}
