// SPDX-License-Identifier: GPL-2.0

//! The buffers of an area, and who has which of them.
//!
//! A buffer is free, or user space has it, or, if there is a device, a page pool has it. User space
//! is granted a buffer by a completion, and gives it back through the refill queue. User space can
//! also be granted a buffer that a pool has: the pool keeps such a buffer until it was given back.
//! The grants of each buffer are counted, so that user space cannot give back more than it got.
//!
//! Lock: `Buffers::free`, the free list, which disables bottom halves. Nothing is locked under it.
//! A buffer must not be given to a pool while it is held: the pool may release the buffer at once,
//! and that takes the lock.

use super::free_list::{
    FreeAreas,
    FreeList, //
};
use core::ops::Range;
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma_memory::DmaMemory,
    net::{
        netmem::{
            AfterPut, //
            NetIovs,
            PooledIov,
        },
        page_pool::{
            AllocCache,
            ProviderKind,
            Unused, //
        }, //
    },
    nospec,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        lock::spinlock_bh::{
            SpinLockBh,
            SpinLockBhGuard, //
        },
        new_spinlock_bh,
        Arc, //
    },
    task::cond_resched, //
};

/// The number of buffers after which a loop over all of them lets other tasks run.
const RESCHED_EVERY: u32 = 4096;

/// Returns the numbers below `count`, of which there may be millions, in ranges. Other tasks may
/// run before each range, so the caller must be able to sleep.
pub(super) fn ranges(count: u32) -> impl Iterator<Item = Range<u32>> {
    ranges_with(count, cond_resched)
}

/// Implements [`ranges`], with `resched` as the function that lets other tasks run.
fn ranges_with(count: u32, resched: impl Fn()) -> impl Iterator<Item = Range<u32>> {
    let range = move |first: u32| first..first.saturating_add(RESCHED_EVERY).min(count);

    (0..count)
        .step_by(RESCHED_EVERY as usize)
        .inspect(move |_| resched())
        .map(range)
}

/// The number of times that user space was granted each buffer and has not given it back.
enum Granted {
    /// Buffers without a device, with a count for each.
    Counts(KVVec<Atomic<i32>>),
    /// Buffers for a device, which hold their counts themselves.
    Iovs(NetIovs),
}

/// The locked free list of an area, or [`None`] as long as nothing was put there.
pub(super) type LockedFreeList<'a> = Option<SpinLockBhGuard<'a, FreeList>>;

/// The buffers of an area, by their numbers.
#[pin_data]
pub(super) struct Buffers {
    /// The buffers that nobody has.
    #[pin]
    free: SpinLockBh<FreeList>,
    granted: Granted,
}

impl Buffers {
    /// Creates `count` free buffers of `1 << shift` bytes. `has_device` says whether a device will
    /// receive into them. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(count: u32, shift: u32, has_device: bool) -> Result<impl PinInit<Self>> {
        let free = FreeList::new(count)?;
        let granted = if has_device {
            Granted::Iovs(NetIovs::new(ProviderKind::IoUring, count, shift)?)
        } else {
            let mut counts = KVVec::with_capacity(count as usize, GFP_KERNEL_ACCOUNT)?;

            for range in ranges(count) {
                for _ in range {
                    counts.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
                }
            }
            Granted::Counts(counts)
        };

        Ok(pin_init!(Self {
            free <- new_spinlock_bh!(free, "zcrx_buffers"),
            granted,
        }))
    }

    fn iovs(&self) -> Option<&NetIovs> {
        match &self.granted {
            Granted::Counts(_) => None,
            Granted::Iovs(iovs) => Some(iovs),
        }
    }

    /// Sets the token of the area: the offset by which user space knows its first byte. The buffers
    /// carry it, so that the area of a buffer in a packet can be found.
    pub(super) fn set_token(&self, token: u64) {
        if let Some(iovs) = self.iovs() {
            iovs.set_tag(token);
        }
    }

    /// Starts noting in `areas` whether area `id`, whose buffers these are, has free buffers.
    pub(super) fn note_in(&self, areas: Arc<FreeAreas>, id: u32) {
        self.free.lock().note_in(areas, id);
    }

    /// Maps the buffers for `dev`, which finds them in `memory`. Does nothing if the area has no
    /// device.
    ///
    /// # Errors
    ///
    /// The errors of [`NetIovs::map`].
    pub(super) fn map(&self, memory: KBox<dyn DmaMemory>, dev: &Device<Bound>) -> Result {
        self.iovs().map_or(Ok(()), |iovs| iovs.map(memory, dev))
    }

    /// Unmaps the buffers, if there is a device. `unused` shows that no pool gives them to it. May
    /// sleep.
    pub(super) fn unmap(&self, unused: &Unused<'_>) {
        if let Some(iovs) = self.iovs() {
            iovs.unmap(unused);
        }
    }

    /// Takes up to `buffers.len()` buffers off the free list. Returns the number of buffers taken.
    /// The one to be used first comes last.
    pub(super) fn take(&self, buffers: &mut [u32]) -> usize {
        self.free.lock().take(buffers)
    }

    /// Puts buffers that nobody has on the free list.
    pub(super) fn put(&self, buffers: &[u32]) {
        let mut free = self.free.lock();

        for &buffer in buffers {
            free.push(buffer);
        }
    }

    /// Puts buffers that [`Self::take`] took into the cache of a pool. Returns whether the cache
    /// took all of them; the others are put back on the free list.
    pub(super) fn adopt(&self, buffers: &[u32], cache: &mut AllocCache<'_>) -> bool {
        let adopted = self.iovs().map_or(0, |iovs| cache.push_free(iovs, buffers));
        let refused = buffers.get(adopted..).unwrap_or(&[]);

        if !refused.is_empty() {
            self.put(refused);
        }
        refused.is_empty()
    }

    /// Grants user space a buffer that [`Self::take`] took.
    pub(super) fn grant(&self, buffer: u32) {
        match &self.granted {
            Granted::Counts(counts) => {
                if let Some(count) = counts.get(buffer as usize) {
                    count.add(1, Relaxed);
                }
            }
            Granted::Iovs(iovs) => {
                iovs.take_and_grant(buffer);
            }
        }
    }

    /// Takes back a buffer that user space names `count` times, but no more often than it was
    /// granted.
    ///
    /// A buffer that nobody has then goes to `pooled` if a pool keeps it, and on the free list
    /// otherwise. Without a device, that list is locked when it is first needed, and stays locked
    /// in `free`.
    // Always inline: this is most of the cost of an entry of the refill queue.
    #[inline(always)]
    pub(super) fn take_back<'a>(
        &'a self,
        buffer: u64,
        count: u32,
        free: &mut LockedFreeList<'a>,
        pooled: &mut impl FnMut(PooledIov<'a>),
    ) {
        match &self.granted {
            Granted::Counts(counts) => {
                if let Some(buffer) = take_back_counted(counts, buffer, count) {
                    free.get_or_insert_with(|| self.free.lock()).push(buffer);
                }
            }
            Granted::Iovs(iovs) => match iovs.take_back(buffer, count) {
                AfterPut::Held => {}
                // User space had the buffer, so its number fits.
                AfterPut::Free => self.put(&[buffer as u32]),
                AfterPut::Pooled(iov) => pooled(iov),
            },
        }
    }

    /// Takes back all buffers that user space has. May sleep.
    pub(super) fn scrub(&self) {
        let count = match &self.granted {
            Granted::Counts(counts) => counts.len(),
            Granted::Iovs(iovs) => iovs.len(),
        };

        // The number is the one that `new` was called with, so it fits.
        for buffer in ranges(count as u32).flatten() {
            match &self.granted {
                Granted::Counts(counts) => {
                    // Most counts are zero, and a load is cheaper than an exchange.
                    let user_had =
                        |count: &Atomic<i32>| count.load(Relaxed) != 0 && count.xchg(0, Full) != 0;

                    if counts.get(buffer as usize).is_some_and(user_had) {
                        self.put(&[buffer]);
                    }
                }
                Granted::Iovs(iovs) => match iovs.take_back_all(buffer) {
                    AfterPut::Held => {}
                    AfterPut::Free => self.put(&[buffer]),
                    AfterPut::Pooled(iov) => iov.put(),
                },
            }
        }
    }
}

/// Subtracts `count` from the count of `buffer` in `counts`, but no more than user space was
/// granted. Returns the number of the buffer if user space had it and has it no more.
fn take_back_counted(counts: &[Atomic<i32>], buffer: u64, count: u32) -> Option<u32> {
    let index = nospec::index_in(counts, usize::try_from(buffer).ok()?)?;
    let granted = counts.get(index)?;
    let mut old = granted.load(Relaxed);

    while old > 0 {
        // This is below `old`, so it fits.
        let left = old.unsigned_abs().saturating_sub(count) as i32;

        match granted.cmpxchg(old, left, Full) {
            Ok(_) if left == 0 => return u32::try_from(index).ok(),
            Ok(_) => return None,
            Err(now) => old = now,
        }
    }
    None
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_buffers)]
mod tests {
    use super::*;
    use crate::test_random::Random;
    use core::cell::Cell;
    use kernel::{
        impl_has_work,
        new_work,
        sync::atomic::{
            Acquire,
            Release, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        },
        workqueue::{
            self,
            Work,
            WorkItem, //
        }, //
    };

    fn buffers(count: u32) -> Result<Pin<KBox<Buffers>>> {
        KBox::pin_init(Buffers::new(count, 12, false)?, GFP_KERNEL)
    }

    /// Gives back each buffer in `named` the number of times beside it, as user space does.
    fn give_back<const N: usize>(buffers: &Buffers, named: [(u64, u32); N]) {
        let mut free = None;

        for (buffer, count) in named {
            buffers.take_back(buffer, count, &mut free, &mut |iov| iov.put());
        }
    }

    /// Takes all free buffers, the next one to be used first.
    fn drain(buffers: &Buffers) -> Result<KVec<u32>> {
        let mut all = KVec::new();
        let mut one = [0];

        while buffers.take(&mut one) != 0 {
            all.push(one[0], GFP_KERNEL)?;
        }
        Ok(all)
    }

    /// Checks that other tasks may run before each few thousand buffers, and that none is left out.
    #[test]
    fn loops_let_others_run() {
        const MAX: u32 = RESCHED_EVERY;

        for (count, pieces) in [
            (0, 0),
            (1, 1),
            (MAX, 1),
            (MAX + 1, 2),
            (3 * MAX - 1, 3),
            (u32::MAX, 1 << 20),
        ] {
            let rescheds = Cell::new(0);
            let mut end = 0;

            for (number, range) in
                ranges_with(count, || rescheds.set(rescheds.get() + 1)).enumerate()
            {
                assert_eq!(range.start, end);
                assert!(!range.is_empty() && range.len() <= MAX as usize);
                assert_eq!(rescheds.get(), number + 1);
                end = range.end;
            }
            assert_eq!(end, count);
            assert_eq!(rescheds.get(), pieces);
        }
    }

    #[test]
    fn last_returned_buffer_is_taken_first() -> Result {
        let buffers = buffers(6)?;
        let mut taken = [99; 4];

        assert_eq!(buffers.take(&mut taken), 4);
        assert_eq!(taken, [2, 3, 4, 5]);
        buffers.put(&taken[..3]);
        assert_eq!(drain(&buffers)?[..], [4, 3, 2, 1, 0]);
        assert_eq!(buffers.take(&mut taken), 0);

        buffers.put(&[1]);
        assert_eq!(buffers.take(&mut taken), 1);
        assert_eq!(taken[0], 1);
        Ok(())
    }

    /// Checks that user space gives back only buffers that it was granted, and only as often.
    #[test]
    fn buffer_is_free_after_as_many_returns_as_grants() -> Result {
        let buffers = buffers(4)?;

        assert_eq!(drain(&buffers)?.len(), 4);
        give_back(&buffers, [(0, 1), (1, 1), (2, 1), (3, 1)]);
        assert_eq!(drain(&buffers)?.len(), 0);

        buffers.grant(2);
        buffers.grant(0);
        give_back(
            &buffers,
            [
                (2, 2),
                (4, 1),
                (u64::MAX, 1),
                (1 << 32 | 3, 1),
                (3, 1),
                (0, 1),
            ],
        );
        assert_eq!(drain(&buffers)?[..], [0, 2]);

        // A buffer that was granted twice is free when it was given back twice.
        buffers.grant(1);
        buffers.grant(1);
        give_back(&buffers, [(1, 1)]);
        assert_eq!(drain(&buffers)?.len(), 0);
        give_back(&buffers, [(1, 1), (1, u32::MAX)]);
        assert_eq!(drain(&buffers)?[..], [1]);

        // There is no such buffer.
        buffers.grant(4);
        Ok(())
    }

    #[test]
    fn scrub_frees_all_granted_buffers_once() -> Result {
        let buffers = buffers(RESCHED_EVERY + 3)?;

        assert_eq!(drain(&buffers)?.len(), 4099);
        for granted in [0, 7, 4096, 4098] {
            buffers.grant(granted);
        }
        buffers.grant(7);
        buffers.scrub();
        assert_eq!(drain(&buffers)?[..], [4098, 4096, 7, 0]);
        // User space does not have them any more.
        give_back(&buffers, [(0, 1), (7, 1), (4096, 1), (4098, 1)]);
        buffers.scrub();
        assert_eq!(drain(&buffers)?.len(), 0);
        Ok(())
    }

    /// Buffers that are shared by two tasks.
    #[pin_data]
    struct Shared {
        #[pin]
        buffers: Buffers,
        /// The number of rounds that the first task has begun, and that the second one has ended.
        begun: Atomic<u32>,
        ended: Atomic<u32>,
        /// The work item that is the second task.
        #[pin]
        work: Work<Shared>,
    }

    impl_has_work! {
        impl HasWork<Self> for Shared { self.work }
    }

    impl Shared {
        /// The number of buffers.
        const COUNT: u32 = 64;
        /// The value of `begun` that ends the second task.
        const STOP: u32 = u32::MAX;

        /// Gives back all buffers. This is done one by one, since the tasks cannot meet while one
        /// of them has the free list locked.
        fn give_all_back(&self) {
            for buffer in 0..Self::COUNT {
                give_back(&self.buffers, [(buffer.into(), 1)]);
            }
        }
    }

    impl WorkItem for Shared {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            let mut round = changed(&this.begun, 0);

            while round != Self::STOP {
                this.give_all_back();
                this.ended.store(round, Release);
                round = changed(&this.begun, round);
            }
        }
    }

    /// Waits until `number` is not `old`, and returns its value.
    fn changed(number: &Atomic<u32>, old: u32) -> u32 {
        loop {
            // Usually the other task runs on another CPU.
            for _ in 0..10_000 {
                let now = number.load(Acquire);

                if now != old {
                    return now;
                }
                core::hint::spin_loop();
            }
            fsleep(Delta::from_micros(100));
        }
    }

    /// Checks that no buffer is lost and none is free twice when two tasks give back buffers at
    /// once, or when one does while all buffers are taken back.
    #[test]
    fn concurrent_returns_and_scrubs_lose_no_buffer() -> Result {
        let buffers = Buffers::new(Shared::COUNT, 12, false)?;
        let shared = Arc::pin_init(
            pin_init!(Shared {
                buffers <- buffers,
                begun: Atomic::new(0),
                ended: Atomic::new(0),
                work <- new_work!("zcrx_buffers_test"),
            }),
            GFP_KERNEL,
        )?;

        // The work item is in no queue yet.
        let _ = workqueue::system_dfl().enqueue(shared.clone());
        let start = Instant::<Monotonic>::now();
        let (mut round, mut wrong) = (0, 0);
        while round < 100 || start.elapsed() < Delta::from_millis(500) {
            let taken = drain(&shared.buffers)?;
            let each_is_there = (0..Shared::COUNT).all(|buffer| taken.contains(&buffer));

            if !each_is_there || taken.len() != Shared::COUNT as usize {
                wrong += 1;
            }
            for &buffer in &taken {
                shared.buffers.grant(buffer);
            }
            round += 1;
            shared.begun.store(round, Release);
            match round % 2 {
                0 => shared.give_all_back(),
                _ => shared.buffers.scrub(),
            }
            changed(&shared.ended, round - 1);
        }
        shared.begun.store(Shared::STOP, Release);
        assert_eq!(wrong, 0);
        assert_eq!(drain(&shared.buffers)?.len(), Shared::COUNT as usize);
        Ok(())
    }

    /// Compares random sequences of operations with a model, which has one place for each buffer.
    #[test]
    fn random_operations_match_the_model() -> Result {
        const COUNT: u32 = 37;
        let buffers = buffers(COUNT)?;
        // The number of times that each was granted. A buffer that is taken or granted is not free.
        let mut granted = [0; COUNT as usize];
        let mut free = COUNT as usize;
        let mut random = Random::new(0x2545_f491);

        for _ in 0..20_000 {
            match random.below(3) {
                0 => {
                    let mut taken = [0; 5];
                    let wanted = 1 + random.below(5) as usize;
                    let count = buffers.take(&mut taken[..wanted]);

                    assert_eq!(count, wanted.min(free));
                    for &buffer in &taken[..count] {
                        assert_eq!(granted[buffer as usize], 0);
                        granted[buffer as usize] = 1;
                        buffers.grant(buffer);
                    }
                    free -= count;
                }
                1 => {
                    // These buffers may be free, or may not exist.
                    let named = [(); 3].map(|()| random.below(COUNT + 4));

                    give_back(&buffers, named.map(|buffer| (buffer.into(), 1)));
                    for buffer in named {
                        if let Some(granted @ 1) = granted.get_mut(buffer as usize) {
                            *granted = 0;
                            free += 1;
                        }
                    }
                }
                _ => {
                    let mut taken = [0; 2];
                    let count = buffers.take(&mut taken);

                    assert_eq!(count, free.min(2));
                    buffers.put(&taken[..count]);
                }
            }
        }
        assert_eq!(drain(&buffers)?.len(), free);
        Ok(())
    }
}
