// SPDX-License-Identifier: GPL-2.0
//! `kernel::sync::Refcount`, whose orderings are those of `refcount_t`.

use super::atomic::{Atomic, Relaxed, Release, barrier};

pub struct Refcount(Atomic<i32>);

impl Refcount {
    pub fn new(value: i32) -> Self {
        Self(Atomic::new(value))
    }

    pub fn as_atomic(&self) -> &Atomic<i32> {
        &self.0
    }

    pub fn inc(&self) {
        assert!(self.0.fetch_add(1, Relaxed) > 0, "counted up from zero");
    }

    /// Drops a reference. Releases, and acquires if the count becomes zero.
    pub fn dec_and_test(&self) -> bool {
        let is_zero = self.0.fetch_sub(1, Release) == 1;
        if is_zero {
            barrier::smp_mb(barrier::Acquired);
        }
        is_zero
    }
}
