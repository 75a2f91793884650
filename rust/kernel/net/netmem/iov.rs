// SPDX-License-Identifier: GPL-2.0

//! A single buffer, its references, and what happens to it when the last one is dropped.
//!
//! The parent module makes, maps and takes buffers; `provided` finds them in packets.

use super::{
    counts::{
        Grants,
        References, //
    },
    NET_IOV, //
};
use crate::{
    bindings,
    dma_memory::DmaMemory,
    prelude::*,
    sync::{
        atomic::Atomic,
        Mutex, //
    },
    types::Opaque, //
};
use core::ptr::NonNull;

/// The state that the buffers of one piece of memory share.
///
/// C finds it through the `owner` of each `net_iov`, which points to `area`.
#[repr(C)]
#[pin_data]
pub(super) struct Owner {
    pub(super) area: Opaque<bindings::net_iov_area>,
    /// The value that [`ProvidedIov::tag`](super::ProvidedIov::tag) returns.
    pub(super) tag: Atomic<u64>,
    /// The provider that has claimed the buffers for its pools. Null until one has.
    pub(super) provider: Atomic<*mut c_void>,
    /// The device for which the memory is mapped. Null while it is not mapped.
    pub(super) dev: Atomic<*mut bindings::device>,
    /// The base-2 logarithm of the size of a buffer, in bytes.
    pub(super) shift: u32,
    pub(super) iovs: KVVec<Opaque<bindings::net_iov>>,
    /// The number of grants of each buffer.
    pub(super) granted: KVVec<Atomic<i32>>,
    #[pin]
    pub(super) memory: Mutex<Option<KBox<dyn DmaMemory>>>,
}

impl Owner {
    /// Returns the buffer with an index.
    ///
    /// # Safety
    ///
    /// `index` must be less than the number of buffers.
    #[inline]
    pub(super) unsafe fn iov_unchecked(&self, index: usize) -> Iov<'_> {
        // SAFETY: The caller guarantees that there is such a buffer.
        let iov = unsafe { self.iovs.get_unchecked(index) }.get();

        // INVARIANT: The `net_iov` is one of this owner's.
        Iov {
            // SAFETY: A reference is not null.
            iov: unsafe { NonNull::new_unchecked(iov) },
            owner: self,
        }
    }
}

/// One `net_iov`.
///
/// # Invariants
///
/// For the duration of `'a`, `iov` is a valid `net_iov` of `owner`.
#[derive(Clone, Copy)]
pub(super) struct Iov<'a> {
    pub(super) iov: NonNull<bindings::net_iov>,
    pub(super) owner: &'a Owner,
}

impl<'a> Iov<'a> {
    /// Creates an `Iov` from the pointer that C has.
    ///
    /// # Safety
    ///
    /// For the duration of `'a`, `iov` must be a valid buffer of a [`NetIovs`](super::NetIovs).
    #[inline]
    pub(super) unsafe fn from_raw(iov: NonNull<bindings::net_iov>) -> Self {
        // INVARIANT: The caller guarantees that `iov` is valid; `owner` is the one it points to.
        Self {
            iov,
            // SAFETY: The caller guarantees that the `net_iov` is valid. Its `owner` never changes:
            // it is the pointer to the whole `Owner` that `NetIovs::new` stored, and the `Owner`
            // lives as long as its buffers.
            owner: unsafe { &*(*iov.as_ptr()).owner.cast::<Owner>() },
        }
    }

    /// Returns the index of the buffer in the owner's array.
    #[inline]
    pub(super) fn index(self) -> usize {
        let first = self.owner.iovs.as_ptr().addr();

        self.iov.addr().get().wrapping_sub(first) / size_of::<bindings::net_iov>()
    }

    /// Returns the number of references.
    #[inline]
    pub(super) fn references(self) -> References<'a> {
        // SAFETY: By the type invariants, the `net_iov` is valid. C accesses this field only while
        // the `net_iov` is in a pool, and by atomic operations. An `atomic_long_t` has one member,
        // of the size of an `isize`.
        References(unsafe {
            Atomic::from_ptr((&raw mut (*self.iov.as_ptr()).desc.pp_ref_count).cast())
        })
    }

    /// Returns the pool that the buffer is in, or null. It does not change while anybody has a
    /// reference to the buffer.
    #[inline]
    pub(super) fn pool(self) -> *mut bindings::page_pool {
        // SAFETY: By the type invariants, the `net_iov` is valid. Only the sole owner of all
        // references writes this field. The read is volatile, since another CPU may be that owner.
        unsafe { (&raw const (*self.iov.as_ptr()).desc.pp).read_volatile() }
    }

    /// Returns the number of grants.
    #[inline]
    pub(super) fn granted(self) -> Grants<'a> {
        // SAFETY: There is a count for each `net_iov` of the owner, and this is one of them.
        Grants(unsafe { self.owner.granted.get_unchecked(self.index()) })
    }

    /// Returns the buffer as a `netmem_ref`.
    #[inline]
    pub(super) fn netmem(self) -> bindings::netmem_ref {
        self.iov.addr().get() as bindings::netmem_ref | NET_IOV
    }

    /// Drops `count` references, which the caller must own. Returns the state that the buffer is in
    /// afterwards.
    #[inline]
    pub(super) fn put(self, count: i32) -> AfterPut<'a> {
        let references = self.references();

        if !references.remove(count) {
            return AfterPut::Held;
        }
        if self.pool().is_null() {
            references.set_free();
            return AfterPut::Free;
        }
        references.set_pooled();
        // INVARIANT: The buffer is in a pool, and nobody else has a reference to it.
        AfterPut::Pooled(PooledIov(self))
    }
}

/// The state of a buffer after references to it were dropped.
#[must_use = "a buffer that is not given back to where it belongs is lost"]
pub enum AfterPut<'a> {
    /// User space had no grant, or others still have references.
    Held,
    /// The buffer is free.
    Free,
    /// The buffer is in a pool, and nobody else has a reference to it.
    Pooled(PooledIov<'a>),
}

/// A buffer in a pool to which nobody has a reference any more.
///
/// The owner of this value gives it back to the pool. Dropping the value loses the buffer for as
/// long as the pool exists.
///
/// # Invariants
///
/// The `net_iov` is in a pool, has one reference, and nobody else refers to it.
#[must_use = "a buffer that is not given back to its pool is lost"]
pub struct PooledIov<'a>(Iov<'a>);

impl PooledIov<'_> {
    /// Returns the pool that the buffer is in.
    #[inline]
    pub(in crate::net) fn pool(&self) -> *mut bindings::page_pool {
        self.0.pool()
    }

    /// Returns the buffer as a `netmem_ref`, and transfers the reference with it.
    #[inline]
    pub(in crate::net) fn into_netmem(self) -> bindings::netmem_ref {
        self.0.netmem()
    }

    /// Gives the buffer back to its pool. May be called in tasks and in softirqs, but neither in
    /// interrupt handlers nor with interrupts disabled, where the lock of the pool may not be
    /// taken.
    ///
    /// C counterpart: `page_pool_put_unrefed_netmem`.
    #[inline]
    pub fn put(self) {
        // The device may write to all of the buffer, so all of it is synced (`u32::MAX`). The
        // caller need not be the pool's own softirq, so the pool's cache is not used
        // unconditionally (`false`).
        let (pool, netmem) = (self.pool(), self.0.netmem());

        // SAFETY: By the type invariants, the buffer is in that pool, and nobody refers to the
        // buffer. The pool stays until all its buffers are back.
        unsafe { bindings::page_pool_put_unrefed_netmem(pool, netmem, u32::MAX, false) };
    }
}

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_net_netmem_iov)]
mod tests {
    use super::*;
    use crate::{
        net::{
            netmem::{
                counts::FREE,
                NetIovs,
                ProvidedIov, //
            },
            page_pool::ProviderKind, //
        },
        sync::{
            atomic::{
                Acquire,
                Full,
                Relaxed,
                Release, //
            },
            Arc,
            Completion, //
        },
        task::cond_resched,
        workqueue, //
    };

    /// The number of times that each of the two tasks repeats its part.
    const TIMES: i32 = 300_000;

    /// A buffer that a packet has, while two tasks change the number of its grants.
    #[pin_data]
    struct Race {
        iovs: NetIovs,
        /// The number of tasks that are about to begin.
        ready: Atomic<u32>,
        /// Whether the worker has done its part.
        worker_done: Atomic<u32>,
        #[pin]
        done: Completion,
    }

    impl Race {
        fn new() -> Result<Arc<Self>> {
            let iovs = NetIovs::new(ProviderKind::IoUring, 1, 12)?;

            iovs.take(0).ok_or(EINVAL)?;
            Arc::pin_init(
                pin_init!(Self {
                    iovs,
                    ready: Atomic::new(0),
                    worker_done: Atomic::new(0),
                    done <- Completion::new(),
                }),
                GFP_KERNEL,
            )
        }

        /// Waits until both tasks are about to begin. Returns the buffer.
        fn start(&self) -> Option<Iov<'_>> {
            self.ready.fetch_add(1, Full);
            while self.ready.load(Relaxed) < 2 {
                cond_resched();
            }
            self.iovs.iov(0)
        }

        /// Starts a worker that does its part and then reports that it is done.
        fn spawn(race: &Arc<Self>, part: fn(&Self, Iov<'_>)) -> Result {
            let race = race.clone();

            workqueue::system_dfl().try_spawn(GFP_KERNEL, move || {
                if let Some(iov) = race.start() {
                    part(&race, iov);
                }
                race.worker_done.store(1, Release);
                race.done.complete_all();
            })?;
            Ok(())
        }

        /// Takes back one grant. The packet still has a reference.
        fn take_back(&self) {
            let _ = self.iovs.take_back(0, 1);
        }

        /// Waits for the worker and marks the buffer as free. Returns the number of grants and the
        /// number of references that were left.
        fn finish(&self, iov: Iov<'_>) -> (i32, isize) {
            self.done.wait_for_completion();
            let left = (
                iov.granted().0.load(Relaxed),
                iov.references().0.load(Relaxed),
            );

            iov.granted().0.store(0, Relaxed);
            iov.references().0.store(FREE, Relaxed);
            left
        }
    }

    /// Calls `f` repeatedly while a worker grants the buffer. Returns the number of grants and the
    /// number of references that are left.
    fn grant_while(f: impl Fn(&Race)) -> Result<(i32, isize)> {
        let race = Race::new()?;

        Race::spawn(&race, |_, iov| {
            let received = ProvidedIov::new(iov, 0);

            for _ in 0..TIMES {
                received.grant();
            }
        })?;
        let iov = race.start().ok_or(EINVAL)?;

        while race.worker_done.load(Acquire) == 0 {
            f(&race);
        }
        Ok(race.finish(iov))
    }

    /// No grant is lost while another one is given back on another CPU.
    #[test]
    fn grant_racing_with_a_return_is_not_lost() -> Result {
        let (granted, references) = grant_while(Race::take_back)?;

        assert!((0..=TIMES).contains(&granted));
        assert_eq!(references, granted as isize + 1);
        Ok(())
    }

    /// No grant is given back twice, as could happen if one task flushes the refill queue while a
    /// page pool refills from it.
    #[test]
    fn racing_returns_never_return_a_grant_twice() -> Result {
        let race = Race::new()?;
        let iov = race.iovs.iov(0).ok_or(EINVAL)?;

        iov.granted().0.store(2 * TIMES, Relaxed);
        iov.references().0.store(2 * TIMES as isize + 1, Relaxed);
        Race::spawn(&race, |race, _| {
            for _ in 0..TIMES {
                race.take_back();
            }
        })?;
        race.start();
        for _ in 0..TIMES {
            race.take_back();
        }
        assert_eq!(race.finish(iov), (0, 1));
        Ok(())
    }

    /// Each grant counts once if all are taken back while more are made.
    #[test]
    fn grant_racing_with_take_back_all_counts_once() -> Result {
        let (granted, references) = grant_while(|race| {
            let _ = race.iovs.take_back_all(0);
        })?;

        assert!((0..=TIMES).contains(&granted));
        assert_eq!(references, granted as isize + 1);
        Ok(())
    }
}
