// SPDX-License-Identifier: GPL-2.0
//! The parser of restriction lists, by the file that the kernel is built from, compared
//! with a naive reading of such lists.

use std::collections::BTreeSet;

use crate::io_uring::rules::{OpSet, Rules};
use crate::io_uring::{OP_LAST, REGISTER_LAST};
use crate::parse::{MAX_ENTRIES, Parser};
use proptest::prelude::*;

/// An entry: its kind and its value.
type Entry = (u16, u8);

const REGISTER_OP: u16 = 0;
const SQE_OP: u16 = 1;
const FLAGS_ALLOWED: u16 = 2;
const FLAGS_REQUIRED: u16 = 3;

/// The numbers of register and SQE opcodes in the uapi of Linux 7.3.
const REGISTER_OPCODES: u8 = 38;
const SQE_OPCODES: u8 = 65;

/// The meaning of a list, as sets of numbers.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
struct Meaning {
    register_ops: BTreeSet<u8>,
    sqe_ops: BTreeSet<u8>,
    sqe_flags_allowed: u8,
    sqe_flags_required: u8,
    sqes_restricted: bool,
    registers_restricted: bool,
}

/// Returns the members of a bitmap among all numbers of eight bits.
fn members<const WORDS: usize>(set: &OpSet<WORDS>) -> BTreeSet<u8> {
    (0..=u8::MAX)
        .filter(|&op| set.contains(op.into()))
        .collect()
}

fn meaning(rules: Rules) -> Meaning {
    Meaning {
        register_ops: members(&rules.register_ops),
        sqe_ops: members(&rules.sqe_ops),
        sqe_flags_allowed: rules.sqe_flags_allowed,
        sqe_flags_required: rules.sqe_flags_required,
        sqes_restricted: rules.sqes_restricted,
        registers_restricted: rules.registers_restricted,
    }
}

fn parse(entries: &[Entry]) -> Option<Meaning> {
    let mut parser = Parser::new();
    for &(kind, value) in entries {
        parser.entry(kind, value);
    }
    parser.finish().map(meaning)
}

/// Returns the values of the entries of one kind, in order.
fn of_kind(entries: &[Entry], wanted: u16) -> impl DoubleEndedIterator<Item = u8> {
    entries
        .iter()
        .filter(move |&&(kind, _)| kind == wanted)
        .map(|&(_, value)| value)
}

/// Computes the meaning of a list, or `None` if it is invalid, one field after the
/// other.
fn model(entries: &[Entry]) -> Option<Meaning> {
    let known = |&(kind, value): &Entry| match kind {
        REGISTER_OP => value < REGISTER_OPCODES,
        SQE_OP => value < SQE_OPCODES,
        FLAGS_ALLOWED | FLAGS_REQUIRED => true,
        _ => false,
    };
    if !entries.iter().all(known) {
        return None;
    }
    let about_sqes = |&(kind, _): &Entry| kind != REGISTER_OP;
    Some(Meaning {
        register_ops: of_kind(entries, REGISTER_OP).collect(),
        sqe_ops: of_kind(entries, SQE_OP).collect(),
        sqe_flags_allowed: of_kind(entries, FLAGS_ALLOWED).next_back().unwrap_or(0),
        sqe_flags_required: of_kind(entries, FLAGS_REQUIRED).next_back().unwrap_or(0),
        sqes_restricted: entries.is_empty() || entries.iter().any(about_sqes),
        registers_restricted: entries.is_empty() || !entries.iter().all(about_sqes),
    })
}

/// Generates a valid entry.
fn valid() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (Just(REGISTER_OP), 0..REGISTER_OPCODES),
        (Just(SQE_OP), 0..SQE_OPCODES),
        (Just(FLAGS_ALLOWED), any::<u8>()),
        (Just(FLAGS_REQUIRED), any::<u8>()),
    ]
}

/// Generates an invalid entry.
fn invalid() -> impl Strategy<Value = Entry> {
    prop_oneof![
        (Just(REGISTER_OP), REGISTER_OPCODES..),
        (Just(SQE_OP), SQE_OPCODES..),
        (4u16.., any::<u8>()),
    ]
}

/// Generates a list of valid entries, up to the greatest length.
fn list() -> impl Strategy<Value = Vec<Entry>> {
    prop::collection::vec(valid(), 0..=MAX_ENTRIES)
}

proptest! {
    /// The entries may be any.
    #[test]
    fn random_lists_agree_with_the_model(entries in prop::collection::vec(any::<Entry>(), 0..8)) {
        prop_assert_eq!(parse(&entries), model(&entries));
    }

    #[test]
    fn valid_lists_agree_with_the_model(entries in list()) {
        let rules = parse(&entries);
        prop_assert!(rules.is_some());
        prop_assert_eq!(rules, model(&entries));
    }

    /// The position of the invalid entry does not matter.
    #[test]
    fn single_invalid_entry_refuses_the_list(
        mut entries in list(),
        invalid in invalid(),
        at in any::<prop::sample::Index>(),
    ) {
        entries.insert(at.index(entries.len() + 1), invalid);
        prop_assert_eq!(parse(&entries), None);
    }

    /// Only flag entries can override each other.
    #[test]
    fn order_of_opcodes_does_not_matter(
        entries in list(),
        other in any::<prop::sample::Index>(),
    ) {
        let (ops, flags): (Vec<Entry>, Vec<Entry>) = entries
            .iter()
            .partition(|&&(kind, _)| kind == REGISTER_OP || kind == SQE_OP);
        let mut ops = ops;
        if !ops.is_empty() {
            let middle = other.index(ops.len());
            ops.rotate_left(middle);
        }
        let apart: Vec<Entry> = ops.into_iter().chain(flags).collect();
        prop_assert_eq!(parse(&apart), parse(&entries));
    }

    #[test]
    fn repeated_entries_change_nothing(entries in list()) {
        let twice: Vec<Entry> = entries.iter().chain(&entries).copied().collect();
        prop_assert_eq!(parse(&twice), parse(&entries));
    }

    /// The last entry of each kind of flags counts.
    #[test]
    fn last_flags_entry_of_each_kind_counts(entries in list(), allowed: u8, required: u8) {
        let mut entries = entries;
        entries.extend([(FLAGS_REQUIRED, required), (FLAGS_ALLOWED, allowed)]);
        let rules = parse(&entries).expect("a valid list");
        prop_assert_eq!(
            (rules.sqe_flags_allowed, rules.sqe_flags_required),
            (allowed, required)
        );
    }
}

#[test]
fn limits_are_those_of_the_uapi() {
    assert_eq!(REGISTER_LAST, REGISTER_OPCODES.into());
    assert_eq!(OP_LAST, SQE_OPCODES.into());
    assert_eq!(MAX_ENTRIES, 107);
}

#[test]
fn empty_list_denies_everything() {
    let nothing = Meaning {
        sqes_restricted: true,
        registers_restricted: true,
        ..Meaning::default()
    };
    assert_eq!(parse(&[]), Some(nothing));
}

#[test]
fn every_single_entry_agrees_with_the_model() {
    for kind in (0..8).chain([0x100, 0x101, u16::MAX]) {
        for value in 0..=u8::MAX {
            let entry = [(kind, value)];
            assert_eq!(parse(&entry), model(&entry), "kind {kind}, value {value}");
        }
    }
}

#[test]
fn first_and_last_opcodes_are_members() {
    let list = [
        (REGISTER_OP, 0),
        (REGISTER_OP, 37),
        (SQE_OP, 63),
        (SQE_OP, 64),
    ];
    let want = Meaning {
        register_ops: [0, 37].into(),
        sqe_ops: [63, 64].into(),
        sqes_restricted: true,
        registers_restricted: true,
        ..Meaning::default()
    };
    assert_eq!(parse(&list), Some(want));
}

/// Checks the answers that the kernel gets from the rules.
#[test]
fn answers_are_those_of_the_list() {
    for (list, anything) in [
        (&[][..], true),
        (&[(REGISTER_OP, 5)], true),
        (&[(SQE_OP, 5)], true),
        (&[(FLAGS_ALLOWED, 0)], true),
    ] {
        let mut parser = Parser::new();
        list.iter()
            .for_each(|&(kind, value)| parser.entry(kind, value));
        let rules = parser.finish().expect("a valid list");
        assert_eq!(rules.restricts_anything(), anything, "{list:?}");
        let free = list.iter().any(|&(kind, _)| kind != REGISTER_OP);
        for op in 0..300 {
            let listed = list.contains(&(REGISTER_OP, op as u8)) && op < 256;
            assert_eq!(rules.allows_register(op), free || listed, "{list:?}, {op}");
        }
    }
    assert!(!Rules::default().restricts_anything());
    assert!((0..300).all(|op| Rules::default().allows_register(op)));
}

/// Checks for each opcode and all flags which requests a list allows.
#[test]
fn listed_requests_are_allowed_with_the_right_flags() {
    for (allowed, required) in [(0, 0), (0x7f, 0), (0x10, 0x10), (0x30, 0x05), (0, 0x80)] {
        let rules = rules_of(&[
            (SQE_OP, 5),
            (SQE_OP, 64),
            (FLAGS_ALLOWED, allowed),
            (FLAGS_REQUIRED, required),
        ]);
        for op in 0..300 {
            let listed = op == 5 || op == 64;
            for flags in 0..=u8::MAX {
                let has_required = (0..8).all(|bit| required >> bit & 1 <= flags >> bit & 1);
                let has_others = (0..8).any(|bit| flags & !allowed & !required & 1 << bit != 0);
                let want = listed && has_required && !has_others;
                assert_eq!(rules.allows_request(op, flags), want, "{op}, {flags:#x}");
            }
            // No request has the uppermost flag.
            assert_eq!(rules.allows_opcode(op), listed && required < 0x80);
        }
    }
    for free in [Rules::default(), rules_of(&[(REGISTER_OP, 5)])] {
        assert!((0..300).all(|op| free.allows_opcode(op) && free.allows_request(op, 0x7f)));
    }
    assert!(!rules_of(&[]).allows_opcode(0));
    assert!(!rules_of(&[(FLAGS_ALLOWED, 0x7f)]).allows_opcode(0));
}

/// Returns the rules of a valid list.
fn rules_of(entries: &[Entry]) -> Rules {
    let mut parser = Parser::new();
    for &(kind, value) in entries {
        parser.entry(kind, value);
    }
    parser.finish().expect("a valid list")
}

/// A number beyond the bitmap is never a member, and inserting one changes nothing.
#[test]
fn opcode_beyond_the_bitmap_is_never_a_member() {
    let mut set = OpSet::<2>::EMPTY;
    for op in [128, 129, 192, 1 << 20, usize::MAX] {
        set.insert(op);
        assert!(!set.contains(op) && set == OpSet::EMPTY);
    }
    set.insert(127);
    assert_eq!(members(&set), [127].into());
}
