// SPDX-License-Identifier: GPL-2.0

//! Sets of values of the SQE flags, which are plain data.
//!
//! This module uses only `core` and the number below, so that it is also built and tested outside
//! the kernel. There, the parent module defines the number.

pub use super::SQE_FLAG_VALUES;

/// The number of bits of a word.
const BITS: usize = usize::BITS as usize;

/// A set of values of the SQE flags, with the layout of the kernel's bitmaps.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::sqe_flags::FlagSet;
///
/// // `IOSQE_IO_LINK`, and not `IOSQE_IO_DRAIN`
/// let set = FlagSet::containing(0b0100).and(FlagSet::containing(0b0010).complement());
/// assert!(set.contains(0b0000_0100));
/// assert!(!set.contains(0b0000_0110));
/// assert_eq!(FlagSet::containing(0b0100_0000).halves(), [u64::MAX, 0]);
/// assert_eq!(FlagSet::containing(0b0000_0001).complement().halves(), [0x5555_5555_5555_5555; 2]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct FlagSet([usize; SQE_FLAG_VALUES / BITS]);

impl FlagSet {
    /// The set of all values.
    pub const ALL: Self = Self([usize::MAX; SQE_FLAG_VALUES / BITS]);

    /// The empty set.
    pub const NONE: Self = Self([0; SQE_FLAG_VALUES / BITS]);

    /// Returns the set of the values that contain all of `flags`.
    pub const fn containing(flags: u8) -> Self {
        let mut set = Self::NONE;
        let mut value = 0;

        while value < SQE_FLAG_VALUES {
            if value & flags as usize == flags as usize {
                set.0[value / BITS] |= 1 << (value % BITS);
            }
            value += 1;
        }
        set
    }

    /// Returns whether `flags` is one of the values. Flags that no request can have never are.
    #[inline]
    pub fn contains(&self, flags: u8) -> bool {
        let value = usize::from(flags);

        self.0
            .get(value / BITS)
            .is_some_and(|word| word >> (value % BITS) & 1 != 0)
    }

    /// Returns the set as a number of 128 bits, its upper half first. Bit `n` is set if `n` is one
    /// of the values.
    pub fn halves(&self) -> [u64; 2] {
        let half = |first: u8| {
            (0..64)
                .filter(|bit| self.contains(first + bit))
                .fold(0, |half, bit| half | 1 << bit)
        };

        [half(64), half(0)]
    }

    /// Returns the values that are in both sets.
    pub fn and(self, other: Self) -> Self {
        self.combine(other, |one, other| one & other)
    }

    /// Returns the values that are in at least one of the sets.
    pub fn or(self, other: Self) -> Self {
        self.combine(other, |one, other| one | other)
    }

    /// Returns the values that are not in the set.
    pub fn complement(self) -> Self {
        self.combine(self, |one, _| !one)
    }

    /// Combines each word with the one of `other`.
    fn combine(mut self, other: Self, operation: fn(usize, usize) -> usize) -> Self {
        for (word, other) in self.0.iter_mut().zip(other.0) {
            *word = operation(*word, other);
        }
        self
    }
}
