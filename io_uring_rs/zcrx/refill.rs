// SPDX-License-Identifier: GPL-2.0

//! The refill queue: a ring in memory that user space maps, through which it gives buffers back.
//!
//! Locks: one, which disables bottom halves. It protects the kernel's position. Buffers are given
//! back while it is held, for which free lists and page pools have locks of their own.

use super::{
    area::Areas,
    cursor::{
        Cursor,
        Place, //
    },
    returns::Returns, //
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
            RQ_HEADER,
            RQ_TAIL,
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
    sched,
    sizes::SZ_1K,
    sync::{
        lock::spinlock_bh::SpinLockBh,
        new_spinlock_bh, //
    }, //
};

/// How many entries are read at once when a queue is flushed.
const BATCH: u32 = 32;

/// How many entries one refill of a pool looks at: enough for a full cache of buffers that come
/// back in pieces of a KiB each, and 1,024 at most.
const REFILL_CAP: u32 = if PAGE_SIZE > 16 * SZ_1K {
    1024
} else {
    (64 * PAGE_SIZE / SZ_1K) as u32
};

/// Returns the bytes that a queue of so many entries takes.
pub(super) fn size(entries: u32) -> Option<usize> {
    RQE_SIZE
        .checked_mul(entries as usize)?
        .checked_add(RQ_ENTRIES)
}

/// Checks the `offset` at which user space wants the statistics, in a region of `size` bytes,
/// behind the queue.
///
/// # Errors
///
/// [`EINVAL`] if they are not aligned, [`ERANGE`] if they are not behind the entries, or not inside
/// the region.
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

/// A refill queue, and the statistics that user space may have asked for behind it.
#[pin_data]
pub(super) struct Refill {
    region: Region,
    entries: u32,
    /// Where the statistics are, in bytes.
    stats: Option<usize>,
    #[pin]
    cursor: SpinLockBh<Cursor>,
}

impl Refill {
    /// Creates a queue of `entries`, a power of two, in `region`, which is large enough for it.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] for statistics that are not aligned, [`ERANGE`] for such that are not between the
    /// entries and the end of the region.
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
            region,
            entries,
            stats,
            cursor <- new_spinlock_bh!(cursor, "zcrx_refill"),
        }))
    }

    /// Returns the memory, for those who map it.
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Counts a completion of so many bytes that were copied.
    pub(super) fn count_copy(&self, bytes: u64) {
        if let Some(stats) = self.stats {
            self.region.add_u64(stats, 1);
            self.region.add_u64(stats + STATS_BYTES, bytes);
        }
    }

    /// Reads up to `most` entries, and gives back the buffers that they name, of `1 << shift`
    /// bytes: how many. Those that name nothing are passed over.
    ///
    /// All of them are back before others may read: who finds the queue empty then finds the
    /// buffers where they belong.
    fn read<'a, F: FnMut(PooledIov<'a>)>(
        &self,
        most: u32,
        shift: u32,
        returns: &mut Returns<'a, F>,
    ) -> u32 {
        let mut cursor = self.cursor.lock();
        let tail = self.region.load_acquire_u32(RQ_TAIL);
        let count = cursor.available(tail).min(most);

        let Some(entries) = self.region.entries::<RQE_SIZE>(RQ_ENTRIES, self.entries) else {
            return 0;
        };

        for entry in cursor.take(count) {
            let offset = entries.read_u64::<RQE_OFF>(entry);
            let padding = entries.read_u32::<RQE_PAD>(entry);

            if let Some(place) = Place::of_entry(offset, padding, shift) {
                returns.push(place);
            }
        }
        returns.finish();
        self.region.store_release_u32(RQ_HEAD, cursor.head());
        count
    }

    /// Reads entries until the cache of a pool is full, and puts the buffers into it that they
    /// name. Looks at no more than [`REFILL_CAP`] entries.
    pub(super) fn refill(&self, areas: &Areas, cache: &mut AllocCache<'_>) {
        let mut total = 0;

        while total < REFILL_CAP && cache.room() != 0 {
            // There is room for 64 at most.
            let most = REFILL_CAP.saturating_sub(total).min(cache.room() as u32);
            let mut returns = Returns::new(areas, |iov| cache.recycle(iov));
            let count = self.read(most, areas.shift(), &mut returns);

            drop(returns);
            total += count;
            if count < most {
                return;
            }
        }
    }

    /// Returns the number of entries that the queue has.
    pub(super) fn entries(&self) -> u32 {
        self.entries
    }

    /// Consumes entries, and gives back the buffers that they name, until `is_enough`, which is
    /// asked after each few of them. Returns whether it was, and not the queue drained in vain.
    ///
    /// No free list may be locked, as those are taken under the lock of the queue.
    ///
    /// `left` is the number of entries that may be looked at, and is lowered: whoever needs several
    /// buffers passes it again, so that user space, which can go on filling the queue, cannot keep
    /// the kernel at it. May sleep.
    pub(super) fn drain_until(
        &self,
        areas: &Areas,
        left: &mut u32,
        mut is_enough: impl FnMut() -> bool,
    ) -> bool {
        while *left != 0 {
            // Not shared with `flush`, whose loop is faster with a copy of `read` in it.
            let mut returns = Returns::new(areas, |iov| iov.put());
            let count = self.read(BATCH, areas.shift(), &mut returns);

            drop(returns);
            *left = left.saturating_sub(count);
            if count != 0 && is_enough() {
                return true;
            }
            if count < BATCH {
                return false;
            }
            sched::cond_resched();
        }
        false
    }

    /// Reads what there is, and gives back the buffers that it names. Looks at no more entries than
    /// the queue has, so that user space cannot keep the kernel at it.
    pub(super) fn flush(&self, areas: &Areas) {
        let mut total = 0;

        while total < self.entries {
            let mut returns = Returns::new(areas, |iov| iov.put());
            let count = self.read(BATCH, areas.shift(), &mut returns);

            drop(returns);
            total += count;
            if count < BATCH || sched::fatal_signal_pending() {
                return;
            }
            sched::cond_resched();
        }
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_refill)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size(1), Some(RQ_ENTRIES + 16));
        assert_eq!(size(32768), Some(RQ_ENTRIES + (1 << 19)));
    }

    #[test]
    fn where_statistics_may_be() {
        let used = (RQ_ENTRIES + 4 * RQE_SIZE) as u64;
        let last = (PAGE_SIZE - STATS_SIZE) as u64;
        let stats = |offset| stats(offset, 4, PAGE_SIZE);

        assert_eq!(stats(used), Ok(used as usize));
        assert_eq!(stats(last), Ok(last as usize));
        assert_eq!(stats(0), Err(ERANGE));
        assert_eq!(stats(used - 8), Err(ERANGE));
        assert_eq!(stats(last + 8), Err(ERANGE));
        assert_eq!(stats(u64::MAX - 7), Err(ERANGE));
        // What is wrong in both ways.
        assert_eq!(stats(4), Err(EINVAL));
        assert_eq!(stats(u64::MAX), Err(EINVAL));
    }
}
