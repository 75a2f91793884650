// SPDX-License-Identifier: GPL-2.0

//! The parser of a list of restrictions.
//!
//! Uses nothing but `core` and plain data, so that it is also built and tested outside the kernel.

use kernel::io_uring::rules::{
    Rules,
    OP_LAST,
    REGISTER_LAST, //
};

/// The number of kinds of entries: `IORING_RESTRICTION_LAST`.
pub(crate) const KINDS: usize = 4;

/// The largest number of entries of a list: `IORING_MAX_RESTRICTIONS`. No list needs more to name
/// all opcodes and flags.
pub(crate) const MAX_ENTRIES: usize = KINDS + REGISTER_LAST + OP_LAST;

/// A parser that is given the entries of a list one by one.
pub(crate) struct Parser {
    rules: Rules,
    /// Whether there was no entry yet.
    empty: bool,
    /// Whether all entries were valid.
    valid: bool,
}

impl Parser {
    /// Creates a parser for a new list.
    pub(crate) fn new() -> Self {
        Self {
            rules: Rules::default(),
            empty: true,
            valid: true,
        }
    }

    /// Parses the next entry. `kind` is one of `IORING_RESTRICTION_*`, and `value` the opcode or
    /// the flags beside it.
    pub(crate) fn entry(&mut self, kind: u16, value: u8) {
        let op = usize::from(value);

        self.empty = false;
        match kind {
            0 if op < REGISTER_LAST => {
                self.rules.register_ops.insert(op);
                self.rules.registers_restricted = true;
            }
            1 if op < OP_LAST => {
                self.rules.sqe_ops.insert(op);
                self.rules.sqes_restricted = true;
            }
            2 => {
                self.rules.sqe_flags_allowed = value;
                self.rules.sqes_restricted = true;
            }
            3 => {
                self.rules.sqe_flags_required = value;
                self.rules.sqes_restricted = true;
            }
            _ => self.valid = false,
        }
    }

    /// Returns the rules of the list, or [`None`] if an entry was of an unknown kind or its opcode
    /// out of range. A list without entries allows nothing.
    pub(crate) fn finish(mut self) -> Option<Rules> {
        if self.empty {
            self.rules.registers_restricted = true;
            self.rules.sqes_restricted = true;
        }
        self.valid.then_some(self.rules)
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_restriction_parse)]
mod tests {
    use super::*;
    use kernel::io_uring::rules::OpSet;

    // Both numbers are below 256, because an entry has one byte for an opcode.
    const LAST_REGISTER: u8 = (REGISTER_LAST - 1) as u8;
    const LAST_OP: u8 = (OP_LAST - 1) as u8;

    fn parse(entries: &[(u16, u8)]) -> Option<Rules> {
        let mut parser = Parser::new();

        for &(kind, value) in entries {
            parser.entry(kind, value);
        }
        parser.finish()
    }

    #[test]
    fn each_kind_of_entry_sets_its_rule() {
        let registers = Rules {
            registers_restricted: true,
            register_ops: OpSet::from_iter([0, LAST_REGISTER.into()]),
            ..Rules::default()
        };
        let sqes = Rules {
            sqes_restricted: true,
            sqe_ops: OpSet::from_iter([0, LAST_OP.into()]),
            ..Rules::default()
        };
        let flags = Rules {
            sqes_restricted: true,
            sqe_flags_allowed: 0xff,
            sqe_flags_required: 0x80,
            ..Rules::default()
        };
        let nothing = Rules {
            registers_restricted: true,
            sqes_restricted: true,
            ..Rules::default()
        };

        for (entries, expected) in [
            (
                &[(0, LAST_REGISTER), (0, 0), (0, LAST_REGISTER)][..],
                Some(registers),
            ),
            (&[(1, LAST_OP), (1, 0)], Some(sqes)),
            // The last flags win.
            (&[(2, 1), (3, 2), (3, 0x80), (2, 0xff)], Some(flags)),
            (&[], Some(nothing)),
            (&[(0, LAST_REGISTER + 1)], None),
            (&[(1, LAST_OP + 1)], None),
            (&[(1, 255)], None),
            (&[(4, 0)], None),
            (&[(0xffff, 0)], None),
            // One bad entry spoils the list, wherever it stands.
            (&[(4, 0), (0, 1)], None),
            (&[(0, 1), (1, LAST_OP + 1), (1, 2)], None),
        ] {
            assert!(parse(entries) == expected);
        }
    }

    #[test]
    fn register_opcodes_are_free_unless_listed() {
        let all = |rules: &Rules| (0..REGISTER_LAST).all(|op| rules.allows_register(op));

        assert!(parse(&[(1, 3)]).is_some_and(|rules| all(&rules)));
        assert!(parse(&[(0, 3)]).is_some_and(|rules| rules.allows_register(3) && !all(&rules)));
        assert!(parse(&[]).is_some_and(|rules| !rules.allows_register(3)));
    }
}
