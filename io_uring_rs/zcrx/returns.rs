// SPDX-License-Identifier: GPL-2.0

//! Giving back the buffers that entries of a refill queue name.

use super::{
    area::{
        Area,
        Areas, //
    },
    buffers::LockedFreeList,
    cursor::Place, //
};
use kernel::net::netmem::PooledIov;

/// A batch of buffers that user space gives back. Entries in a row that name the same buffer are
/// taken together, and the area is looked up once for entries in a row that name the same area.
pub(super) struct ReturnBatch<'a, F: FnMut(PooledIov<'a>)> {
    areas: &'a Areas,
    /// The buffer that was named last, and the number of times that it was named in a row.
    run: Place,
    count: u32,
    /// The area of the last buffer, and its free list if that was needed. It stays locked as long
    /// as entries name the same area.
    area: Option<&'a Area>,
    free: LockedFreeList<'a>,
    /// The function that takes the buffers of page pools.
    pooled: F,
}

impl<'a, F: FnMut(PooledIov<'a>)> ReturnBatch<'a, F> {
    /// Creates a batch for buffers of `areas`. Those that page pools have go to `pooled`.
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

    /// Adds the buffer that an entry names. A buffer that user space does not have is skipped.
    #[inline]
    pub(super) fn push(&mut self, place: Place) {
        // Usually, the entry names another buffer of the same area.
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

    /// Gives back the buffer that was named last as well.
    // Not inlined, so that the loop over entries stays short.
    #[inline(never)]
    pub(super) fn finish(&mut self) {
        self.end_run();
    }

    #[inline(always)]
    fn end_run(&mut self) {
        // There is no area before the first entry, and none if the entry names an unknown one.
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
