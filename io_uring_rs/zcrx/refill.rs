// SPDX-License-Identifier: GPL-2.0

//! The refill queue: a ring through which user space gives buffers back, in memory that it maps.
//!
//! Lock: `RefillQueue::cursor`, which protects the kernel's position and disables bottom halves.
//! Buffers are given back while it is held, under the locks of free lists and page pools.

use super::{
    area::Areas,
    cursor::Cursor,
    refill_ring::RefillRing,
    returns::ReturnBatch, //
};
use kernel::{
    io_uring::{
        region::Region,
        zcrx::{
            RQE_SIZE,
            RQ_ENTRIES,
            RQ_HEADER,
            STATS_ALIGN,
            STATS_BYTES,
            STATS_SIZE, //
        }, //
    },
    net::{
        netmem::PooledIov,
        page_pool::AllocCache, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sizes::SZ_1K,
    sync::{
        lock::spinlock_bh::SpinLockBh,
        new_spinlock_bh, //
    },
    task::cond_resched, //
};

/// The number of entries that are consumed at once when a queue is flushed.
const BATCH: u32 = 32;

/// The largest number of entries that one refill of a pool consumes: enough for a full cache of
/// buffers that come back in pieces of a KiB each, and 1,024 at most.
const REFILL_CAP: u32 = if PAGE_SIZE > 16 * SZ_1K {
    1024
} else {
    (64 * PAGE_SIZE / SZ_1K) as u32
};

/// Returns the number of bytes that a queue of `entries` entries takes.
pub(super) fn size(entries: u32) -> Option<usize> {
    RQE_SIZE
        .checked_mul(entries as usize)?
        .checked_add(RQ_ENTRIES)
}

/// Checks `offset`, at which user space wants the statistics in a region of `size` bytes, after the
/// entries of the queue. Returns it as a `usize`.
///
/// # Errors
///
/// [`EINVAL`] if the offset is not aligned, [`ERANGE`] if the statistics would not be between the
/// entries and the end of the region.
fn stats(offset: u64, entries: u32, size: usize) -> Result<usize> {
    let offset = usize::try_from(offset).map_err(|_| ERANGE)?;
    let used = self::size(entries).ok_or(ERANGE)?;

    if !offset.is_multiple_of(STATS_ALIGN) {
        return Err(EINVAL);
    }
    let end = offset.checked_add(STATS_SIZE).ok_or(ERANGE)?;

    if offset < used || end > size {
        return Err(ERANGE);
    }
    Ok(offset)
}

/// A refill queue, and the statistics after it, if user space asked for them.
#[pin_data]
pub(super) struct RefillQueue {
    ring: RefillRing,
    /// The offset of the statistics in bytes, if user space asked for them.
    stats: Option<usize>,
    #[pin]
    cursor: SpinLockBh<Cursor>,
}

impl RefillQueue {
    /// Creates a queue of `entries` entries, a power of two, in `region`, which must be large
    /// enough.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] or [`ERANGE`] if the statistics cannot be at `stats_offset`, see [`stats`].
    pub(super) fn new(
        region: Region,
        entries: u32,
        stats_offset: Option<u64>,
    ) -> Result<impl PinInit<Self>> {
        let stats = stats_offset
            .map(|offset| stats(offset, entries, region.size()))
            .transpose()?;

        if let Some(stats) = stats {
            region.zero(stats, STATS_SIZE)?;
        }
        region.zero(0, RQ_HEADER)?;
        let cursor = Cursor::new(entries);

        Ok(pin_init!(Self {
            ring: RefillRing::new(region, entries),
            stats,
            cursor <- new_spinlock_bh!(cursor, "zcrx_refill"),
        }))
    }

    /// Returns the memory of the queue, which user space maps.
    pub(super) fn region(&self) -> &Region {
        self.ring.region()
    }

    /// Counts in the statistics one completion for `bytes` bytes that were copied.
    pub(super) fn count_copy(&self, bytes: u64) {
        if let Some(stats) = self.stats {
            self.region().add_u64(stats, 1);
            self.region().add_u64(stats + STATS_BYTES, bytes);
        }
    }

    /// Consumes up to `max` entries, and gives back the buffers of `1 << shift` bytes that they
    /// name. Returns the number of entries consumed. Entries that name no buffer are skipped.
    ///
    /// The buffers are given back before the queue is unlocked. So if another CPU then finds the
    /// queue empty, it finds the buffers on the free lists and in the pools.
    fn drain<'a, F: FnMut(PooledIov<'a>)>(
        &self,
        max: u32,
        shift: u32,
        returns: &mut ReturnBatch<'a, F>,
    ) -> u32 {
        self.ring
            .drain(&mut self.cursor.lock(), max, shift, returns)
    }

    /// Consumes entries until the cache of a pool is full, and puts the buffers that they name into
    /// it. Consumes no more than [`REFILL_CAP`] entries.
    pub(super) fn fill_cache(&self, areas: &Areas, cache: &mut AllocCache<'_>) {
        let mut total = 0;

        while total < REFILL_CAP && cache.room() != 0 {
            // The cache has room for 64 buffers at most.
            let max = REFILL_CAP.saturating_sub(total).min(cache.room() as u32);
            let mut returns = ReturnBatch::new(areas, |iov| cache.recycle(iov));
            let count = self.drain(max, areas.shift(), &mut returns);

            drop(returns);
            total += count;
            if count < max {
                return;
            }
        }
    }

    /// Returns the number of entries that the queue has.
    pub(super) fn entries(&self) -> u32 {
        self.ring.entries()
    }

    /// Consumes entries, and gives back the buffers that they name, until `is_enough`, which is
    /// called after each batch of them, returns `true`. Returns whether it did.
    ///
    /// No free list may be locked, because their locks are taken under the lock of the queue.
    ///
    /// `budget` is the number of entries that may be consumed, and is lowered by the number of
    /// those that were. A caller that needs several buffers passes it again. So user space, which
    /// can go on filling the queue, cannot keep the kernel busy. May sleep.
    pub(super) fn drain_until(
        &self,
        areas: &Areas,
        budget: &mut u32,
        mut is_enough: impl FnMut() -> bool,
    ) -> bool {
        while *budget != 0 {
            // This loop is not shared with `flush`, which is faster with its own copy of `drain`.
            let mut returns = ReturnBatch::new(areas, |iov| iov.put());
            let count = self.drain(BATCH, areas.shift(), &mut returns);

            drop(returns);
            *budget = budget.saturating_sub(count);
            if count != 0 && is_enough() {
                return true;
            }
            if count < BATCH {
                return false;
            }
            cond_resched();
        }
        false
    }

    /// Consumes all entries, and gives back the buffers that they name. Consumes no more entries
    /// than the queue has, so that user space, which can go on filling the queue, cannot keep the
    /// kernel busy. Ends early if the task is being killed. May sleep.
    pub(super) fn flush(&self, areas: &Areas) {
        let mut total = 0;

        while total < self.entries() {
            let mut returns = ReturnBatch::new(areas, |iov| iov.put());
            let count = self.drain(BATCH, areas.shift(), &mut returns);

            drop(returns);
            total += count;
            if count < BATCH || current!().fatal_signal_pending() {
                return;
            }
            cond_resched();
        }
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_refill)]
mod tests {
    use super::*;

    #[test]
    fn region_size_fits_header_and_entries() {
        assert_eq!(size(1), Some(RQ_ENTRIES + 16));
        assert_eq!(size(32768), Some(RQ_ENTRIES + (1 << 19)));
    }

    #[test]
    fn statistics_must_follow_the_entries() {
        let used = (RQ_ENTRIES + 4 * RQE_SIZE) as u64;
        let last = (PAGE_SIZE - STATS_SIZE) as u64;
        let stats = |offset| stats(offset, 4, PAGE_SIZE);

        assert_eq!(stats(used), Ok(used as usize));
        assert_eq!(stats(last), Ok(last as usize));
        assert_eq!(stats(0), Err(ERANGE));
        assert_eq!(stats(used - 8), Err(ERANGE));
        assert_eq!(stats(last + 8), Err(ERANGE));
        assert_eq!(stats(u64::MAX - 7), Err(ERANGE));
        // These are wrong in both ways.
        assert_eq!(stats(4), Err(EINVAL));
        assert_eq!(stats(u64::MAX), Err(EINVAL));
    }
}
