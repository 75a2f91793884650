// SPDX-License-Identifier: GPL-2.0
//! Positions in a refill queue and the decoding of its entries, by the file that the
//! kernel is built from, compared with a naive reading in `judge`.

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/zcrx/cursor.rs"]
pub mod cursor;

use cursor::{Cursor, Place};

/// The lowest bit of the area's number in an offset.
const AREA_BIT: u32 = 48;

/// Decodes an entry in arithmetic of unlimited width. Returns the numbers of the area
/// and of the buffer in it.
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
    let place = Place::decode(offset, padding, shift);
    let got = place.map(|place| (place.area, place.buffer));
    assert_eq!(got, meaning(offset, padding, shift));

    // The offset of the buffer's first byte, if the entry names a buffer.
    if let Some(place) = place {
        assert_eq!(place.offset(shift), offset >> shift << shift);
    }
}

/// Turns bytes into moves of user space: a tail, and the number of entries that the
/// kernel takes. Checks that the kernel never takes more than the queue has, and never
/// loses its own position.
pub fn judge(data: &[u8]) {
    let Some((&first, moves)) = data.split_first() else {
        return;
    };
    let entries = 1u32 << (first % 16);
    let mut cursor = Cursor::new(entries);
    // This count goes on where the kernel's wraps around.
    let mut head = 0u64;

    for chunk in moves.chunks_exact(13) {
        let word = |at: usize| u32::from_ne_bytes(chunk[at..at + 4].try_into().unwrap());
        let tail = if chunk[12] & 1 == 0 {
            word(0)
        } else {
            // A position near the kernel's.
            (head as u32).wrapping_add(word(0) % (2 * entries))
        };
        // The distance between the two in numbers of 32 bits.
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
