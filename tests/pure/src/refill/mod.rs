// SPDX-License-Identifier: GPL-2.0
//! Positions in a refill queue and what its entries mean, the same file that the
//! kernel is built from, held against a naive reading: `judge`.

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/zcrx/cursor.rs"]
pub mod cursor;

use cursor::{Cursor, Place};

/// The bit of an offset from which on it names the area.
const AREA_BIT: u32 = 48;

/// Returns what an entry means, in arithmetic of unlimited width.
fn meaning(offset: u64, padding: u32, shift: u32) -> Option<(u32, u64)> {
    let size = 1u128 << shift;
    let (area, within) = (
        u128::from(offset) / (1 << AREA_BIT),
        u128::from(offset) % (1 << AREA_BIT),
    );
    (padding == 0).then_some((area as u32, (within / size) as u64))
}

/// Checks one entry, with buffers of `1 << shift` bytes.
pub fn check_entry(offset: u64, padding: u32, shift: u32) {
    let place = Place::of_entry(offset, padding, shift);
    let got = place.map(|place| (place.area, place.buffer));
    assert_eq!(got, meaning(offset, padding, shift));

    // The buffer's first byte, if the offset is in it.
    if let Some(place) = place {
        assert_eq!(place.offset(shift), offset >> shift << shift);
    }
}

/// Takes bytes as a user's moves: where it says that it is, and how many of the
/// entries the kernel takes. The kernel never takes more than the queue has, nor
/// loses its own place.
pub fn judge(data: &[u8]) {
    let Some((&first, moves)) = data.split_first() else {
        return;
    };
    let entries = 1u32 << (first % 16);
    let mut cursor = Cursor::new(entries);
    // Counts on where the kernel's wraps around.
    let mut head = 0u64;

    for chunk in moves.chunks_exact(13) {
        let word = |at: usize| u32::from_ne_bytes(chunk[at..at + 4].try_into().unwrap());
        let tail = if chunk[12] & 1 == 0 {
            word(0)
        } else {
            // Near where the kernel is.
            (head as u32).wrapping_add(word(0) % (2 * entries))
        };
        // As far ahead as it can be, for numbers of 32 bits.
        let ahead = (u64::from(tail) + (1 << 32) - head % (1 << 32)) % (1 << 32);
        let available = cursor.available(tail);
        assert_eq!(u64::from(available), ahead.min(entries.into()));

        for slot in cursor.take(available.min(u32::from(chunk[12] >> 1))) {
            assert_eq!(u64::from(slot), head % u64::from(entries));
            head += 1;
        }
        assert_eq!(u64::from(cursor.head()), head % (1 << 32));

        let offset = u64::from(word(4)) << 32 | u64::from(word(8));
        check_entry(offset, word(0) & 1, 12 + u32::from(chunk[12] % 10));
    }
}
