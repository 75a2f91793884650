// SPDX-License-Identifier: GPL-2.0

//! Lists of free buffers, and the set of areas that have any.
//!
//! Each area has a [`FreeList`], with a lock around it. [`FreeAreas`] has a bit for each area, so
//! that no lock is needed to see that all buffers of a queue are used up. A bit is set and counted
//! before another CPU can take a buffer off the list, and cleared when the last buffer is taken.
//! Both happen while the list is locked, so that no area with free buffers is overlooked for good.

use kernel::{
    bitmap::BitmapVec,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    warn_on_once, //
};

/// The areas of a queue that may have free buffers.
pub(super) struct FreeAreas {
    /// A bit for each area.
    bits: BitmapVec,
    /// The number of bits that are set. A queue whose buffers are used up is asked often, and need
    /// not search the bits.
    count: Atomic<i32>,
}

impl FreeAreas {
    /// Creates a set for `count` areas, none of which has free buffers.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(count: usize) -> Result<Arc<Self>> {
        let areas = Self {
            bits: BitmapVec::new(count, GFP_KERNEL_ACCOUNT)?,
            count: Atomic::new(0),
        };

        Ok(Arc::new(areas, GFP_KERNEL_ACCOUNT)?)
    }

    /// Returns the first area from `from` on that may have free buffers. After the last area, the
    /// search goes on with the first one.
    pub(super) fn find(&self, from: u32) -> Option<u32> {
        if self.count.load(Relaxed) == 0 {
            return None;
        }
        let from = from as usize;
        let behind = (from < self.bits.len()).then(|| self.bits.next_bit(from));
        let found = behind.flatten().or_else(|| self.bits.next_bit(0))?;

        u32::try_from(found).ok()
    }

    /// Notes that area `id` has free buffers, and had none before.
    fn add(&self, id: u32) {
        self.bits.set_bit_atomic(id as usize);
        self.count.add(1, Relaxed);
    }

    /// Notes that area `id` has no free buffers any more.
    fn remove(&self, id: u32) {
        self.bits.clear_bit_atomic(id as usize);
        self.count.add(-1, Relaxed);
    }
}

/// The free buffers of an area, by their numbers.
pub(super) struct FreeList {
    buffers: KVVec<u32>,
    /// The set in which to note whether there are free buffers, and the id of the area. [`None`]
    /// until the area belongs to a queue.
    noted: Option<(Arc<FreeAreas>, u32)>,
}

impl FreeList {
    /// Creates a list of `count` buffers, all of which are free. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(count: u32) -> Result<Self> {
        let mut buffers = KVVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;

        for range in super::buffers::ranges(count) {
            for buffer in range {
                buffers.push(buffer, GFP_KERNEL_ACCOUNT)?;
            }
        }
        Ok(Self {
            buffers,
            noted: None,
        })
    }

    /// Starts noting in `areas` whether area `id`, whose list this is, has free buffers.
    pub(super) fn note_in(&mut self, areas: Arc<FreeAreas>, id: u32) {
        self.noted = Some((areas, id));
        if !self.buffers.is_empty() {
            self.note_some();
        }
    }

    /// Puts a buffer on the list.
    #[inline]
    pub(super) fn push(&mut self, buffer: u32) {
        if self.buffers.is_empty() {
            self.note_some();
        }
        // There is room for all buffers of the area, and each of them is on the list at most once.
        warn_on_once!(self.buffers.push_within_capacity(buffer).is_err());
    }

    /// Takes up to `to.len()` buffers, the ones that were freed last. Returns the number of buffers
    /// taken. The one to be used first comes last: it was freed last, and is still in the CPU's
    /// cache.
    pub(super) fn take(&mut self, to: &mut [u32]) -> usize {
        let left = self.buffers.len().saturating_sub(to.len());
        let taken = self.buffers.get(left..).unwrap_or(&[]);
        let count = taken.len();

        for (to, from) in to.iter_mut().zip(taken) {
            *to = *from;
        }
        self.buffers.truncate(left);
        if left == 0 && count != 0 {
            self.note_none();
        }
        count
    }

    #[cold]
    fn note_some(&self) {
        if let Some((areas, id)) = &self.noted {
            areas.add(*id);
        }
    }

    fn note_none(&self) {
        if let Some((areas, id)) = &self.noted {
            areas.remove(*id);
        }
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_free_list)]
mod tests {
    use super::*;

    #[test]
    fn search_for_an_area_wraps_around() -> Result {
        let areas = FreeAreas::new(1024)?;

        assert_eq!(areas.find(0), None);
        for id in [3, 64, 1023] {
            areas.add(id);
        }
        for (from, found) in [(0, 3), (3, 3), (4, 64), (65, 1023), (1023, 1023), (1024, 3)] {
            assert_eq!(areas.find(from), Some(found));
        }
        areas.remove(1023);
        assert_eq!(areas.find(65), Some(3));
        assert_eq!(areas.find(u32::MAX), Some(3));
        areas.remove(3);
        areas.remove(64);
        assert_eq!(areas.find(0), None);
        Ok(())
    }

    /// Checks that the bit of an area follows its list.
    #[test]
    fn area_bit_is_set_while_buffers_are_free() -> Result {
        let areas = FreeAreas::new(1024)?;
        let mut list = FreeList::new(3)?;
        let mut none = FreeList::new(0)?;
        let mut to = [0; 2];

        list.note_in(areas.clone(), 700);
        none.note_in(areas.clone(), 5);
        assert_eq!(areas.find(0), Some(700));
        assert_eq!((list.take(&mut to), to), (2, [1, 2]));
        assert_eq!(areas.find(0), Some(700));
        assert_eq!((list.take(&mut to), to[0]), (1, 0));
        assert_eq!(areas.find(0), None);
        // What is taken from an empty list is not counted.
        assert_eq!(list.take(&mut to), 0);
        assert_eq!(areas.find(0), None);

        list.push(2);
        assert_eq!(areas.find(0), Some(700));
        assert_eq!(list.take(&mut to[..0]), 0);
        assert_eq!(areas.find(0), Some(700));
        assert_eq!((list.take(&mut to), to[0]), (1, 2));
        assert_eq!(areas.find(0), None);
        Ok(())
    }
}
