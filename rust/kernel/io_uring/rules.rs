// SPDX-License-Identifier: GPL-2.0

//! Rules: which requests and registrations a ring or task may make. They are plain data.
//!
//! This module uses only `core` and the numbers below, so that it is also built and tested outside
//! the kernel. There, the parent module defines the numbers.

pub use super::{
    OP_LAST,
    REGISTER_LAST,
    SQE_FLAG_VALUES, //
};

/// A set of opcodes, with the layout of the kernel's bitmaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpSet<const WORDS: usize>(pub(super) [usize; WORDS]);

/// Returns the number of words of a bitmap of `bits` bits: `BITS_TO_LONGS`.
pub const fn words(bits: usize) -> usize {
    bits.div_ceil(usize::BITS as usize)
}

impl<const WORDS: usize> OpSet<WORDS> {
    /// The empty set.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// Adds an opcode. Opcodes beyond the last word of the bitmap are ignored.
    pub fn insert(&mut self, op: usize) {
        if let Some(word) = self.0.get_mut(op / usize::BITS as usize) {
            *word |= 1 << (op % usize::BITS as usize);
        }
    }

    /// Returns whether an opcode is in the set.
    pub fn contains(&self, op: usize) -> bool {
        self.0
            .get(op / usize::BITS as usize)
            .is_some_and(|word| word >> (op % usize::BITS as usize) & 1 != 0)
    }
}

impl<const WORDS: usize> FromIterator<usize> for OpSet<WORDS> {
    fn from_iter<I: IntoIterator<Item = usize>>(ops: I) -> Self {
        let mut set = Self::EMPTY;

        for op in ops {
            set.insert(op);
        }
        set
    }
}

/// The rules in a `struct io_restriction`: all of it except for the filters.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::rules::{OpSet, Rules};
///
/// let rules = Rules {
///     registers_restricted: true,
///     register_ops: OpSet::from_iter([12]),
///     ..Rules::default()
/// };
///
/// assert!(rules.allows_register(12));
/// assert!(!rules.allows_register(11));
/// assert!(Rules::default().allows_register(11));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Whether `register_ops` applies: `reg_registered`.
    pub registers_restricted: bool,
    /// The opcodes of `io_uring_register()` that are allowed.
    pub register_ops: OpSet<{ words(REGISTER_LAST) }>,
    /// Whether `sqe_ops` and the flags apply: `op_registered`.
    pub sqes_restricted: bool,
    /// The request opcodes that are allowed.
    pub sqe_ops: OpSet<{ words(OP_LAST) }>,
    /// The `IOSQE_*` flags that a request may have.
    pub sqe_flags_allowed: u8,
    /// The `IOSQE_*` flags that a request must have.
    pub sqe_flags_required: u8,
}

impl Default for Rules {
    /// Returns rules that restrict nothing.
    fn default() -> Self {
        Self {
            registers_restricted: false,
            register_ops: OpSet::EMPTY,
            sqes_restricted: false,
            sqe_ops: OpSet::EMPTY,
            sqe_flags_allowed: 0,
            sqe_flags_required: 0,
        }
    }
}

impl Rules {
    /// Returns whether anything is restricted.
    pub fn restricts_anything(&self) -> bool {
        self.registers_restricted || self.sqes_restricted
    }

    /// Returns whether `io_uring_register()` may be called with this opcode.
    pub fn allows_register(&self, op: usize) -> bool {
        !self.registers_restricted || self.register_ops.contains(op)
    }

    /// Returns whether a request with this opcode and these `IOSQE_*` flags is allowed:
    /// `io_check_restriction()`.
    pub fn allows_request(&self, op: usize, flags: u8) -> bool {
        let (allowed, required) = (self.sqe_flags_allowed, self.sqe_flags_required);

        !self.sqes_restricted
            || (self.sqe_ops.contains(op)
                && flags & required == required
                && flags & !(allowed | required) == 0)
    }

    /// Returns whether a request with this opcode is allowed with any flags that a request can
    /// have.
    pub fn allows_opcode(&self, op: usize) -> bool {
        (0..=u8::MAX)
            .take(SQE_FLAG_VALUES)
            .any(|flags| self.allows_request(op, flags))
    }
}
