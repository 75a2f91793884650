// SPDX-License-Identifier: GPL-2.0

//! Pseudo-random numbers for unit tests.

/// A generator of pseudo-random numbers: xorshift, which repeats after 2^32 - 1 numbers. The same
/// seed gives the same numbers, so that a test that fails does so again.
///
/// # Invariants
///
/// The state is not zero, which it would never leave.
pub(crate) struct Random(u32);

impl Random {
    /// Creates a generator. Any `seed` is a good one but zero, which counts as one.
    pub(crate) fn new(seed: u32) -> Self {
        // INVARIANT: The state is 1 at least.
        Self(seed.max(1))
    }

    /// Returns the next number, below `end`, which must not be zero.
    pub(crate) fn below(&mut self, end: u32) -> u32 {
        // INVARIANT: Each step can be undone, so that only zero leads to zero.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 % end
    }
}
