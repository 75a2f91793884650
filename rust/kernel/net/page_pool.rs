// SPDX-License-Identifier: GPL-2.0

//! Page pools that get their buffers from a provider of memory.
//!
//! A [`MemoryProvider`] has buffers, as [`NetIovs`]. It stands in a [`ProvidedQueue`], which binds
//! it to a receive queue of a network device. The page pools that the device's driver creates for
//! that queue then get their buffers from it. The queue keeps a list of these pools: the memory
//! stays mapped for as long as one of them can give a buffer to the device.
//!
//! Lock order: the instance lock of the network device, the mutex of [`ProvidedQueue`], and then
//! that of [`NetIovs`].
//!
//! C headers:
//! [`include/net/page_pool/memory_provider.h`](srctree/include/net/page_pool/memory_provider.h),
//! [`include/net/page_pool/types.h`](srctree/include/net/page_pool/types.h)

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
mod nl_fill_test;
mod queue;
#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
pub mod test_pool;

pub use self::queue::{
    ProvidedQueue,
    Unused, //
};

use super::netmem::{
    NetIovs,
    PooledIov,
    NET_IOV, //
};
use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    num::casts::u32_as_usize,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
    warn_on_once, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A provider of buffers for page pools.
///
/// Pools keep a reference to the [`ProvidedQueue`] of their provider until they have given all
/// buffers back. None of the methods may call one of that queue.
///
/// C counterpart: `struct memory_provider_ops`.
pub trait MemoryProvider: Sized + Send + Sync + 'static {
    /// Looks at a pool that a driver creates for the queue, and may refuse it. May sleep; the
    /// network device is locked.
    ///
    /// The pool is one of the device that the queue is bound for, which writes to its buffers by
    /// DMA, and its buffers have the size of the queue's.
    ///
    /// # Errors
    ///
    /// Those that the driver shall get.
    fn init(&self, _pool: &mut NewPool<'_>) -> Result {
        Ok(())
    }

    /// Puts buffers into the empty cache of a pool.
    ///
    /// Called in softirqs, and where a driver fills its ring also in tasks. Must not sleep.
    fn alloc(&self, cache: &mut AllocCache<'_>);

    /// Takes note that a pool has let go of a buffer, which is free now: number `index` of the
    /// [`NetIovs`] that has this tag.
    ///
    /// Called in softirqs and in tasks. Must not sleep.
    fn release(&self, tag: u64, index: usize);

    /// Unmaps the memory, by [`NetIovs::unmap`] of all buffers.
    ///
    /// Called when the queue is not bound any more and no pool can give a buffer to the device, as
    /// `unused` shows. May sleep. The network device may be locked.
    fn unmap(&self, unused: &Unused<'_>);
}

/// A pool that a driver is creating.
///
/// # Invariants
///
/// `pool` is valid for the duration of `'a`, and nobody uses it yet. Its parameters are set.
pub struct NewPool<'a> {
    pool: NonNull<bindings::page_pool>,
    new: PhantomData<&'a mut bindings::page_pool>,
}

impl NewPool<'_> {
    /// Leaves it to the exporter of a dma-buf to keep CPU caches and memory the same.
    ///
    /// On a device that is not coherent, the pool syncs nothing from then on: the memory may be
    /// none that the CPU has caches for, or even addresses for. On one that is coherent, a sync
    /// touches no cache: it only copies what stands in a bounce buffer, which must go on.
    pub fn leave_caches_to_exporter(&mut self) {
        // SAFETY: By the type invariants, the pool is valid and nobody else uses it.
        unsafe { bindings::page_pool_sync_bounced_only(self.pool.as_ptr()) };
    }
}

/// The cache of a pool that wants buffers.
///
/// # Invariants
///
/// For the duration of `'a`, the pool is valid and nobody else accesses its cache.
pub struct AllocCache<'a> {
    pool: NonNull<bindings::page_pool>,
    cache: PhantomData<&'a mut bindings::page_pool>,
}

impl AllocCache<'_> {
    /// The number of buffers that the cache should have at most.
    pub const CAPACITY: usize = bindings::PP_ALLOC_CACHE_REFILL as usize;

    #[inline]
    fn cache(&mut self) -> &mut bindings::pp_alloc_cache {
        // SAFETY: By the type invariants, the pool is valid and nobody else accesses its cache.
        unsafe { &mut (*self.pool.as_ptr()).alloc }
    }

    /// Returns the number of buffers that the cache still has room for.
    #[inline]
    pub fn room(&mut self) -> usize {
        Self::CAPACITY.saturating_sub(u32_as_usize(self.cache().count))
    }

    /// Returns whether the cache is empty.
    pub fn is_empty(&mut self) -> bool {
        self.cache().count == 0
    }

    #[inline]
    fn push(&mut self, netmem: bindings::netmem_ref) {
        let cache = self.cache();
        let count = u32_as_usize(cache.count);

        if let Some(place) = cache.cache.get_mut(count) {
            *place = netmem;
            cache.count = cache.count.wrapping_add(1);
        }
    }

    /// Puts free buffers into the pool, as many of `indices` as there is room for. Returns how many
    /// it took, which are the first ones.
    ///
    /// None are taken if the buffers are not mapped for the pool's device, have another size, or
    /// are another provider's. It ends, with a warning, at one that is not free.
    pub fn adopt(&mut self, iovs: &NetIovs, indices: &[u32]) -> usize {
        let pool = self.pool.as_ptr();
        // SAFETY: By the type invariants, the pool is valid. These fields do not change.
        let (provider, dev, order) = unsafe { ((*pool).mp_priv, (*pool).p.dev, (*pool).p.order) };
        let shift = order.saturating_add(PAGE_SHIFT as u32);
        let room = self.room();
        let mut adopted = 0;

        if !NonNull::new(provider).is_some_and(|provider| iovs.fit(provider, dev, shift)) {
            return 0;
        }
        for &index in indices.iter().take(room) {
            let iov = iovs.take(index);
            warn_on_once!(iov.is_none());
            let Some(iov) = iov else {
                break;
            };

            // SAFETY: By the type invariants, the pool is valid, and its counts are ours as its
            // cache is. The buffer was free, so that it is in no pool, and it stays as long as it
            // is in this one.
            unsafe { bindings::net_mp_niov_set_page_pool(pool, iov.as_ptr()) };
            self.push(iov.addr().get() as bindings::netmem_ref | NET_IOV);
            adopted += 1;
        }
        adopted
    }

    /// Gives a buffer back to its pool. If that is this one and there is room, it goes into the
    /// cache.
    #[inline]
    pub fn recycle(&mut self, iov: PooledIov<'_>) {
        if iov.pool() == self.pool.as_ptr() && self.room() != 0 {
            self.push(iov.into_netmem());
        } else {
            iov.put();
        }
    }

    /// Gives the buffers in the cache to the device.
    fn sync(&mut self) {
        let pool = self.pool.as_ptr();

        // SAFETY: By the type invariants, the pool is valid.
        if !unsafe { bindings::page_pool_syncs_dma(pool) } {
            return;
        }
        // SAFETY: By the type invariants, the pool is valid. These parameters do not change, but
        // others next to them may, so that there is no reference to all of them.
        let (dev, dir, offset, order) = unsafe {
            (
                (*pool).p.dev,
                (*pool).p.dma_dir,
                (*pool).p.offset,
                (*pool).p.order,
            )
        };
        // A sync must not go past the end of the buffer.
        let size = 1usize
            .checked_shl(order.saturating_add(PAGE_SHIFT as u32))
            .unwrap_or(0)
            .saturating_sub(u32_as_usize(offset));
        let cache = self.cache();

        for &netmem in cache.cache.iter().take(u32_as_usize(cache.count)) {
            // SAFETY: All buffers in the cache are the provider's, and valid.
            let address = unsafe { bindings::page_pool_get_dma_addr_netmem(netmem) };

            // SAFETY: The pool's device is valid. `NetIovs::fit` made sure that the address is one
            // that the memory is mapped at for it; it stays mapped while this pool asks for
            // buffers.
            unsafe {
                bindings::dma_sync_single_for_device(
                    dev,
                    address.wrapping_add(offset.into()),
                    size,
                    dir,
                )
            };
        }
    }

    fn pop(&mut self) -> bindings::netmem_ref {
        let cache = self.cache();
        let Some(last) = cache.count.checked_sub(1) else {
            return 0;
        };

        cache.count = last;
        cache.cache.get(u32_as_usize(last)).map_or(0, |last| *last)
    }
}

/// The functions that C calls, by which page pools know a provider.
struct Adapter<P>(PhantomData<P>);

impl<P: MemoryProvider> Adapter<P> {
    /// Constant and without a constructor, as C demands of it.
    const OPS: &'static bindings::memory_provider_ops = &bindings::memory_provider_ops {
        alloc_netmems: Some(Self::alloc_netmems),
        release_netmem: Some(Self::release_netmem),
        init: Some(Self::init),
        destroy: Some(Self::destroy),
        nl_fill: Some(Self::nl_fill),
        uninstall: Some(Self::uninstall),
    };

    /// Returns the queue whose provider a pool has.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, for the duration of `'a`.
    unsafe fn queue<'a>(pool: *mut bindings::page_pool) -> ArcBorrow<'a, ProvidedQueue<P>> {
        // SAFETY: The caller guarantees that the pool is valid. With these functions goes an
        // `Arc`'s pointer, of which the pool, or the queue that it is being created for, has a
        // count.
        unsafe { ArcBorrow::from_raw((*pool).mp_priv.cast_const().cast()) }
    }

    /// Fills the cache of a pool, and returns one buffer of it, or zero if there is none.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, whose cache the caller may access.
    unsafe extern "C" fn alloc_netmems(
        pool: *mut bindings::page_pool,
        _gfp: bindings::gfp_t,
    ) -> bindings::netmem_ref {
        // SAFETY: The caller guarantees that the pool is valid and has these functions.
        let queue = unsafe { Self::queue(pool) };
        let Some(pool) = NonNull::new(pool) else {
            return 0;
        };
        // INVARIANT: The caller guarantees that the pool is valid and its cache not accessed by
        // others.
        let mut cache = AllocCache {
            pool,
            cache: PhantomData,
        };

        if warn_on_once!(cache.cache().count != 0) {
            return 0;
        }
        queue.alloc(&mut cache);
        cache.sync();
        cache.pop()
    }

    /// Frees a buffer that a pool lets go of. Returns false, as there is no page to be put.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, and `netmem` a buffer of it that it lets
    /// go of.
    unsafe extern "C" fn release_netmem(
        pool: *mut bindings::page_pool,
        netmem: bindings::netmem_ref,
    ) -> bool {
        // SAFETY: The caller guarantees that the pool is valid and has these functions.
        let queue = unsafe { Self::queue(pool) };

        // Pages never get into such a pool. As in C, one that does all the same is not freed.
        if warn_on_once!(netmem & NET_IOV == 0) {
            return false;
        }
        // SAFETY: The caller guarantees that the buffer is of a pool that only gets them by
        // `AllocCache`, and that nobody refers to it.
        let (tag, index) = unsafe { NetIovs::release(netmem) };
        queue.release(tag, index);
        // There is no page to be put.
        false
    }

    /// Accepts or refuses a pool that a driver creates. Returns zero or an errno.
    ///
    /// # Safety
    ///
    /// `pool` must be a pool that is being created for a queue to which a provider with these
    /// functions is bound.
    unsafe extern "C" fn init(pool: *mut bindings::page_pool) -> c_int {
        from_result(|| {
            // SAFETY: The caller guarantees that the pool is valid and has these functions.
            let queue = Arc::from(unsafe { Self::queue(pool) });

            // SAFETY: The caller guarantees that the pool is valid and new.
            unsafe { queue.add_pool(NonNull::new(pool).ok_or(EINVAL)?) }?;
            // The count is the pool's own.
            let _ = Arc::into_raw(queue);
            Ok(0)
        })
    }

    /// Lets go of a pool that ends.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool for which [`Self::init`] succeeded, and have all its buffers
    /// back.
    unsafe extern "C" fn destroy(pool: *mut bindings::page_pool) {
        // SAFETY: The caller guarantees that the pool is valid. The count is that of `init`.
        let queue =
            unsafe { Arc::<ProvidedQueue<P>>::from_raw((*pool).mp_priv.cast_const().cast()) };

        queue.remove_pool(pool);
    }

    /// Tells netlink the size of the buffers. Returns zero or an errno.
    ///
    /// # Safety
    ///
    /// `mp_priv` must be what stands beside these functions, `rsp` a valid message.
    unsafe extern "C" fn nl_fill(
        mp_priv: *mut c_void,
        rsp: *mut bindings::sk_buff,
        rxq: *mut bindings::netdev_rx_queue,
    ) -> c_int {
        // SAFETY: The caller guarantees that the queue is bound, or has a pool.
        let queue = unsafe { ArcBorrow::<ProvidedQueue<P>>::from_raw(mp_priv.cast_const().cast()) };
        let kind = if rxq.is_null() {
            bindings::NETDEV_A_PAGE_POOL_IO_URING
        } else {
            bindings::NETDEV_A_QUEUE_IO_URING
        };

        from_result(|| {
            // SAFETY: The caller guarantees that the message is valid.
            let nest = unsafe { bindings::nla_nest_start(rsp, kind as c_int) };

            if nest.is_null() {
                return Err(EMSGSIZE);
            }
            // SAFETY: The caller guarantees that the message is valid.
            let put = to_result(unsafe {
                bindings::nla_put_uint(
                    rsp,
                    bindings::NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN as c_int,
                    queue.buffer_size(),
                )
            });

            if put.is_err() {
                // SAFETY: The message is valid, and the nest was started in it.
                unsafe { bindings::nla_nest_cancel(rsp, nest) };
                return Err(EMSGSIZE);
            }
            // SAFETY: The message is valid, and the nest was started in it.
            unsafe { bindings::nla_nest_end(rsp, nest) };
            Ok(0)
        })
    }

    /// Ends the binding of a queue whose device goes.
    ///
    /// # Safety
    ///
    /// `mp_priv` must be what stands beside these functions in `rxq`, whose network device is
    /// locked.
    unsafe extern "C" fn uninstall(mp_priv: *mut c_void, rxq: *mut bindings::netdev_rx_queue) {
        // SAFETY: The caller guarantees that the queue is bound. The count that is taken here keeps
        // it when the binding gives up its own.
        let queue = Arc::from(unsafe {
            ArcBorrow::<ProvidedQueue<P>>::from_raw(mp_priv.cast_const().cast())
        });

        queue.uninstalled();
        // SAFETY: The caller guarantees that the queue is valid, and its device locked.
        unsafe { bindings::netdev_rx_queue_clear_mp(rxq) };
    }
}
