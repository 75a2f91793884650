// SPDX-License-Identifier: GPL-2.0

//! Giving back buffers that user space names, one after the other.

use super::{
    area::{
        Area,
        Areas, //
    },
    buffers::LockedFreeList,
    cursor::Place, //
};
use kernel::net::netmem::PooledIov;

/// Takes what user space names. Entries that name the same buffer are taken together, and an area
/// is looked up once for those of it.
pub(super) struct Returns<'a, F: FnMut(PooledIov<'a>)> {
    areas: &'a Areas,
    /// What was named last, and how often in a row.
    run: Place,
    count: u32,
    /// The area of the last run, and its free list if that was needed. Buffers go there without
    /// unlocking it, as long as it is of the same area.
    area: Option<&'a Area>,
    free: LockedFreeList<'a>,
    /// Gets those that are in page pools.
    pooled: F,
}

impl<'a, F: FnMut(PooledIov<'a>)> Returns<'a, F> {
    /// Starts a batch for buffers of these areas. Those that are in page pools go to `pooled`.
    pub(super) fn new(areas: &'a Areas, pooled: F) -> Self {
        Self {
            areas,
            run: Place {
                area: u32::MAX,
                buffer: 0,
            },
            count: 0,
            area: None,
            free: None,
            pooled,
        }
    }

    /// Takes what an entry names. It is passed over if user space does not have it.
    #[inline]
    pub(super) fn push(&mut self, place: Place) {
        // Mostly it is another buffer of the same area.
        if place.area != self.run.area {
            self.begin_area(place);
        } else if place.buffer != self.run.buffer {
            self.end_run();
            self.run.buffer = place.buffer;
        }
        self.count = self.count.wrapping_add(1);
    }

    #[cold]
    fn begin_area(&mut self, place: Place) {
        self.end_run();
        self.free = None;
        self.area = self.areas.get(place.area);
        self.run = place;
    }

    /// Gives back what was named last, too.
    // Not inline, so that the loop over entries is short.
    #[inline(never)]
    pub(super) fn finish(&mut self) {
        self.end_run();
    }

    #[inline(always)]
    fn end_run(&mut self) {
        // There is none before the first entry.
        if let Some(area) = self.area {
            area.buffers().take_back(
                self.run.buffer,
                self.count,
                &mut self.free,
                &mut self.pooled,
            );
        }
        self.count = 0;
    }
}
