// SPDX-License-Identifier: GPL-2.0

//! The ring of a refill queue: entries that user space produces, and the kernel consumes.
//!
//! User space stores the tail after it has written entries, and the kernel stores the head after it
//! has read them. Each loads what the other one stores before it reads or writes entries.

use super::{
    cursor::{
        Cursor,
        Place, //
    },
    returns::ReturnBatch, //
};
use kernel::{
    io_uring::{
        region::Region,
        zcrx::{
            RQE_OFF,
            RQE_PAD,
            RQE_SIZE,
            RQ_ENTRIES,
            RQ_HEAD,
            RQ_TAIL, //
        }, //
    },
    net::netmem::PooledIov, //
};

/// The ring of a refill queue.
pub(super) struct RefillRing {
    region: Region,
    entries: u32,
}

impl RefillRing {
    /// Creates a ring of `entries` entries, a power of two, in `region`, which must be large
    /// enough.
    pub(super) fn new(region: Region, entries: u32) -> Self {
        Self { region, entries }
    }

    /// Returns the memory of the ring, which user space maps.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the number of entries that the ring has.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Consumes up to `max` entries, and gives back the buffers of `1 << shift` bytes that they
    /// name. Returns the number of entries consumed. Entries that name no buffer are skipped.
    ///
    /// `cursor` is the kernel's position in this ring.
    #[inline]
    pub(super) fn drain<'a, F: FnMut(PooledIov<'a>)>(
        &self,
        cursor: &mut Cursor,
        max: u32,
        shift: u32,
        returns: &mut ReturnBatch<'a, F>,
    ) -> u32 {
        let tail = self.region.load_acquire_u32(RQ_TAIL);
        let count = cursor.available(tail).min(max);

        let Some(entries) = self.region.entries::<RQE_SIZE>(RQ_ENTRIES, self.entries) else {
            return 0;
        };

        for entry in cursor.take(count) {
            let offset = entries.read_u64::<RQE_OFF>(entry);
            let padding = entries.read_u32::<RQE_PAD>(entry);

            if let Some(place) = Place::decode(offset, padding, shift) {
                returns.push(place);
            }
        }
        returns.finish();
        self.region.store_release_u32(RQ_HEAD, cursor.head());
        count
    }
}
