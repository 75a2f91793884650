// SPDX-License-Identifier: GPL-2.0

//! Positions in a refill queue, and the meaning of its entries.
//!
//! User space produces entries, and the kernel consumes them. The position of user space is not
//! trusted: it only decides how many entries are looked at, and that is never more than the queue
//! has.
//!
//! Uses nothing but `core`.

/// The number of the lowest bit of an offset that belongs to the id of the area:
/// `IORING_ZCRX_AREA_SHIFT`.
pub(crate) const AREA_SHIFT: u32 = 48;

/// The kernel's position in a refill queue.
///
/// # Invariants
///
/// `mask` is a power of two less one.
pub(crate) struct Cursor {
    head: u32,
    mask: u32,
}

impl Cursor {
    /// Creates a cursor at the beginning of a queue of `entries` entries, at most 2^31. The number
    /// is rounded up to a power of two.
    pub(crate) fn new(entries: u32) -> Self {
        // INVARIANT: This is a power of two less one.
        Self {
            head: 0,
            mask: entries
                .checked_next_power_of_two()
                .map_or(0, |entries| entries - 1),
        }
    }

    /// Returns the number of entries that can be taken when user space is at `tail`.
    pub(crate) fn available(&self, tail: u32) -> u32 {
        tail.wrapping_sub(self.head).min(self.mask.wrapping_add(1))
    }

    /// Takes `count` entries, no more than are available. Returns their indices in the queue.
    pub(crate) fn take(&mut self, count: u32) -> impl Iterator<Item = u32> + use<> {
        let (head, mask) = (self.head, self.mask);

        self.head = head.wrapping_add(count);
        (0..count).map(move |entry| head.wrapping_add(entry) & mask)
    }

    /// Returns the kernel's position, which is shown to user space.
    pub(crate) fn head(&self) -> u32 {
        self.head
    }
}

/// A buffer, as an entry of a refill queue names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// The id of the area.
    pub(crate) area: u32,
    /// The number of the buffer in the area. It is not narrowed to 32 bits, so that an offset past
    /// the end of the area is recognised.
    pub(crate) buffer: u64,
}

impl Place {
    /// Decodes an entry with this `offset` and `padding`, for buffers of `1 << shift` bytes.
    /// Returns [`None`] if the padding is not zero.
    pub(crate) fn decode(offset: u64, padding: u32, shift: u32) -> Option<Self> {
        const WITHIN: u64 = (1 << AREA_SHIFT) - 1;

        (padding == 0).then(|| Self {
            // The shift leaves 16 bits.
            area: (offset >> AREA_SHIFT) as u32,
            buffer: (offset & WITHIN).wrapping_shr(shift),
        })
    }

    /// Returns the offset of the buffer's first byte, for buffers of `1 << shift` bytes.
    pub(crate) fn offset(self, shift: u32) -> u64 {
        u64::from(self.area) << AREA_SHIFT | self.buffer.wrapping_shl(shift)
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_cursor)]
mod tests {
    use super::*;

    /// Checks a full queue, an empty one, and a nonsensical position, also where numbers wrap.
    #[test]
    fn available_entries_never_exceed_the_ring() {
        for head in [0, 1, 255, 256, u32::MAX - 3, u32::MAX] {
            let mut cursor = Cursor { head, mask: 255 };

            assert_eq!(cursor.available(head), 0);
            assert_eq!(cursor.available(head.wrapping_add(1)), 1);
            assert_eq!(cursor.available(head.wrapping_add(256)), 256);
            assert_eq!(cursor.available(head.wrapping_add(257)), 256);
            assert_eq!(cursor.available(head.wrapping_sub(1)), 256);
            assert!(cursor.take(1).eq([head & 255]));
            assert_eq!(cursor.head(), head.wrapping_add(1));
            assert_eq!(cursor.available(head.wrapping_add(256)), 255);
        }
    }

    #[test]
    fn entry_offset_gives_area_and_buffer() {
        let place = |area, buffer| Some(Place { area, buffer });

        assert_eq!(Place::decode(0, 0, 12), place(0, 0));
        assert_eq!(Place::decode(0, 1, 12), None);
        assert_eq!(Place::decode(0x5fff, 0, 12), place(0, 5));
        assert_eq!(Place::decode(3 << 48 | 0x5000, 0, 12), place(3, 5));
        assert_eq!(Place::decode(u64::MAX, 0, 12), place(0xffff, (1 << 36) - 1));
        // C drops the upper bits of this one.
        assert_eq!(Place::decode(1 << 44, 0, 12), place(0, 1 << 32));
        assert_eq!(Place { area: 3, buffer: 5 }.offset(12), 3 << 48 | 0x5000);
    }
}
