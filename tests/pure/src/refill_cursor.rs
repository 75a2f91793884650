// SPDX-License-Identifier: GPL-2.0
//! Property tests of positions in a refill queue and of the decoding of its entries.

use crate::cases;
use crate::refill::cursor::{AREA_SHIFT, Cursor};
use crate::refill::{check_entry, judge};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(20_000))]

    /// Positions hold for any moves of user space.
    #[test]
    fn positions_hold_for_any_moves_of_user_space(data in prop::collection::vec(any::<u8>(), 0..400)) {
        judge(&data);
    }

    /// Entries are decoded correctly for buffers of any size.
    #[test]
    fn entries_decode_as_in_the_model(offset: u64, padding in prop_oneof![4 => Just(0), 1 => any::<u32>()], shift in 12..31u32) {
        check_entry(offset, padding, shift);
    }

    /// Entries are decoded correctly if few bits of their offset are set.
    #[test]
    fn entries_with_few_bits_decode_as_in_the_model(bits in prop::collection::vec(0..64u32, 0..4), shift in 12..31u32) {
        check_entry(bits.iter().fold(0, |offset, bit| offset | 1 << bit), 0, shift);
    }
}

/// Goes around a queue of each size several times, with the queue always full.
#[test]
fn full_queue_of_every_size_goes_around() {
    for bits in 0..16 {
        let entries = 1u32 << bits;
        let mut cursor = Cursor::new(entries);

        for round in 0..3 {
            let head = round * entries;
            assert_eq!(cursor.available(head), 0);
            assert_eq!(cursor.available(head + entries), entries);
            assert_eq!(cursor.available(head + entries + 1), entries);
            assert_eq!(cursor.available(head.wrapping_sub(1)), entries);
            // The entries are taken in two parts.
            assert!(cursor.take(entries / 2).eq(0..entries / 2));
            assert!(cursor.take(entries - entries / 2).eq(entries / 2..entries));
            assert_eq!(cursor.head(), head + entries);
        }
    }
    assert_eq!(AREA_SHIFT, 48);
}

/// Checks the inputs that `make fuzz` found worth keeping.
#[test]
fn corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
    for file in std::fs::read_dir(corpus).unwrap() {
        judge(&std::fs::read(file.unwrap().path()).unwrap());
    }
}
