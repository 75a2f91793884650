// SPDX-License-Identifier: GPL-2.0

//! Page pools that get their buffers from a memory provider.
//!
//! A page pool is the allocator from which a network driver takes receive buffers. Usually it
//! allocates pages; here, a [`MemoryProvider`] hands it buffers from [`NetIovs`] instead. The
//! provider is part of a [`ProvidedQueue`], which binds it to a receive queue of a network device.
//! The page pools that the driver then creates for that queue get their buffers from the provider.
//! The [`ProvidedQueue`] keeps a list of these pools: the memory stays mapped as long as one of
//! them can give a buffer to the device.
//!
//! Lock order: the instance lock of the network device, the mutex of [`ProvidedQueue`], and then
//! that of [`NetIovs`].
//!
//! C headers:
//! [`include/net/page_pool/memory_provider.h`](srctree/include/net/page_pool/memory_provider.h),
//! [`include/net/page_pool/types.h`](srctree/include/net/page_pool/types.h)

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
mod nl_fill_test;
mod queue;
#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
mod recycle_test;
#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
pub mod test_pool;

pub use self::queue::{
    ProvidedQueue,
    Unused, //
};
pub use super::netmem::ProviderKind;

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
    ptr::{
        null,
        null_mut,
        NonNull, //
    }, //
};

/// A provider of buffers for page pools.
///
/// A pool keeps a reference to the [`ProvidedQueue`] of its provider until it has released all its
/// buffers. None of the methods may call a method of that queue.
///
/// C counterpart: `struct memory_provider_ops`.
pub trait MemoryProvider: Sized + Send + Sync + 'static {
    /// The kind of the provider, of which its buffers must be, too.
    const KIND: ProviderKind;

    /// Checks a pool that a driver is creating for the queue, and may refuse it. May sleep. The
    /// network device is locked.
    ///
    /// The pool belongs to the device that the queue is bound to, which writes to its buffers by
    /// DMA. Its buffers have the size of those of the queue.
    ///
    /// # Errors
    ///
    /// The driver gets the error that this returns.
    fn init(&self, _pool: &mut NewPool<'_>) -> Result {
        Ok(())
    }

    /// Puts buffers into the empty cache of a pool.
    ///
    /// Called in softirqs, and also in tasks when a driver fills its ring. Must not sleep.
    fn alloc(&self, cache: &mut AllocCache<'_>);

    /// Accounts for a buffer that a pool has released and that is free now: the one with this
    /// `index` in the [`NetIovs`] that have this `tag`.
    ///
    /// Called in softirqs and in tasks. Must not sleep.
    fn release(&self, tag: u64, index: usize);

    /// Unmaps the memory by calling [`NetIovs::unmap`] for all buffers.
    ///
    /// Called when the queue is no longer bound and no pool can give a buffer to the device, as
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
    /// Leaves cache maintenance to the exporter of a dma-buf.
    ///
    /// If the device is not cache-coherent, the pool syncs nothing from then on: the CPU may have
    /// no cached copy of the memory, or not even an address for it. If the device is coherent,
    /// syncs touch no cache and only copy to and from bounce buffers, so that the pool must go on
    /// syncing.
    pub fn leave_caches_to_exporter(&mut self) {
        // SAFETY: By the type invariants, the pool is valid, and its parameters are set.
        let dev = unsafe { (*self.pool.as_ptr()).p.dev };

        // SAFETY: The device of a valid pool is valid. Pools of unit tests have none.
        if !dev.is_null() && !unsafe { bindings::dev_is_dma_coherent(dev) } {
            self.stop_syncing();
        }
    }

    /// Makes the pool sync no buffers for its device or for the CPU.
    fn stop_syncing(&mut self) {
        // SAFETY: By the type invariants, the pool is valid and nobody else uses it.
        unsafe {
            bindings::page_pool::set_dma_sync_raw(self.pool.as_ptr(), false);
            bindings::page_pool::set_dma_sync_for_cpu_raw(self.pool.as_ptr(), false);
        }
    }
}

/// The cache of a pool that needs buffers.
///
/// # Invariants
///
/// For the duration of `'a`, the pool is valid and nobody else accesses its cache.
pub struct AllocCache<'a> {
    pool: NonNull<bindings::page_pool>,
    cache: PhantomData<&'a mut bindings::page_pool>,
}

impl AllocCache<'_> {
    /// The number of buffers up to which a provider should fill the cache.
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

    /// Puts free buffers into the pool: the first of `indices` for which there is room. Returns the
    /// number of buffers put.
    ///
    /// Puts none if the buffers are not mapped for the pool's device, have another size, or belong
    /// to another provider. Stops, with a warning, at a buffer that is not free.
    pub fn push_free(&mut self, iovs: &NetIovs, indices: &[u32]) -> usize {
        let pool = self.pool.as_ptr();
        // SAFETY: By the type invariants, the pool is valid. These fields do not change.
        let (provider, dev, order) = unsafe { ((*pool).mp_priv, (*pool).p.dev, (*pool).p.order) };
        let shift = order.saturating_add(PAGE_SHIFT as u32);
        let room = self.room();
        let mut pushed = 0;

        if !NonNull::new(provider).is_some_and(|provider| iovs.claim_for(provider, dev, shift)) {
            return 0;
        }
        for &index in indices.iter().take(room) {
            let iov = iovs.take(index);
            warn_on_once!(iov.is_none());
            let Some(iov) = iov else {
                break;
            };

            // SAFETY:
            // - By the type invariants, the pool is valid and nobody else accesses its cache, which
            //   also keeps others from changing its count of buffers.
            // - The buffer was free, so that it is in no pool. It stays as long as it is in this
            //   one.
            unsafe { bindings::net_mp_niov_set_page_pool(pool, iov.as_ptr()) };
            self.push(iov.addr().get() as bindings::netmem_ref | NET_IOV);
            pushed += 1;
        }
        pushed
    }

    /// Gives a buffer back to its pool. If that is this pool and there is room, the buffer goes
    /// straight into the cache.
    #[inline]
    pub fn recycle(&mut self, iov: PooledIov<'_>) {
        if iov.pool() == self.pool.as_ptr() && self.room() != 0 {
            self.push(iov.into_netmem());
        } else {
            iov.put();
        }
    }

    /// Syncs the buffers in the cache for the device, which writes to them next.
    fn sync(&mut self) {
        let pool = self.pool.as_ptr();

        // SAFETY: By the type invariants, the pool is valid. The field and these parameters do not
        // change, but fields next to them may, so that this must not make a reference to all of
        // them.
        let (syncs, dev, dir, offset, order) = unsafe {
            (
                bindings::page_pool::dma_sync_raw(pool),
                (*pool).p.dev,
                (*pool).p.dma_dir,
                (*pool).p.offset,
                (*pool).p.order,
            )
        };

        // SAFETY: A pool that syncs buffers has a valid device.
        if !syncs || !unsafe { bindings::dma_dev_need_sync(dev) } {
            return;
        }
        // The sync begins at `offset`, and must not go past the end of the buffer.
        let size = 1usize
            .checked_shl(order.saturating_add(PAGE_SHIFT as u32))
            .unwrap_or(0)
            .saturating_sub(u32_as_usize(offset));
        let cache = self.cache();

        for &netmem in cache.cache.iter().take(u32_as_usize(cache.count)) {
            // SAFETY: All buffers in the cache came from the provider, and are valid.
            let address = unsafe { bindings::page_pool_get_dma_addr_netmem(netmem) };

            // SAFETY: The pool's device is valid. `NetIovs::claim_for` made sure that the memory is
            // mapped for this device at this address, and it stays mapped while the pool asks for
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

    /// Takes a buffer out of the cache. Returns zero if the cache is empty.
    fn pop(&mut self) -> bindings::netmem_ref {
        let cache = self.cache();
        let Some(last) = cache.count.checked_sub(1) else {
            return 0;
        };

        cache.count = last;
        cache.cache.get(u32_as_usize(last)).map_or(0, |last| *last)
    }
}

/// The functions of a provider that C calls through `struct memory_provider_ops`.
struct Adapter<P>(PhantomData<P>);

impl<P: MemoryProvider> Adapter<P> {
    /// The table of these functions. C refuses one that is not in the kernel's read-only data.
    const OPS: &'static bindings::memory_provider_ops = &bindings::memory_provider_ops {
        alloc_netmems: Some(Self::alloc_netmems),
        release_netmem: Some(Self::release_netmem),
        init: Some(Self::init),
        destroy: Some(Self::destroy),
        nl_fill: Some(Self::nl_fill),
        uninstall: Some(Self::uninstall),
    };

    /// Returns the queue of the provider of a pool.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, for the duration of `'a`.
    unsafe fn queue<'a>(pool: *mut bindings::page_pool) -> ArcBorrow<'a, ProvidedQueue<P>> {
        // SAFETY: The caller guarantees that the pool is valid and has these functions. Then
        // `mp_priv` came from an `Arc`, to which the pool has a reference, or the receive queue
        // that the pool is being created for.
        unsafe { ArcBorrow::from_raw((*pool).mp_priv.cast_const().cast()) }
    }

    /// Fills the cache of a pool. Returns one buffer from it, or zero if the provider has none.
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
        // INVARIANT: The caller guarantees that the pool is valid, and that nobody else accesses
        // its cache.
        let mut cache = AllocCache {
            // SAFETY: The caller guarantees that the pool is valid, so the pointer is not null.
            pool: unsafe { NonNull::new_unchecked(pool) },
            cache: PhantomData,
        };

        // A pool asks its provider only when its cache is empty.
        if warn_on_once!(cache.cache().count != 0) {
            return 0;
        }
        queue.alloc(&mut cache);
        cache.sync();
        cache.pop()
    }

    /// Marks a buffer that its pool releases as free, and tells the provider. Returns false, since
    /// C need not call `put_page`.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, and `netmem` one of its buffers, which it
    /// releases.
    unsafe extern "C" fn release_netmem(
        pool: *mut bindings::page_pool,
        netmem: bindings::netmem_ref,
    ) -> bool {
        // SAFETY: The caller guarantees that the pool is valid and has these functions.
        let queue = unsafe { Self::queue(pool) };

        // Such a pool never gets pages. If it releases one all the same, leak it, as C does.
        if warn_on_once!(netmem & NET_IOV == 0) {
            return false;
        }
        // SAFETY: The caller guarantees that the pool releases the buffer, and nobody refers to it.
        // The pool gets buffers only through `AllocCache`.
        let (tag, index) = unsafe { NetIovs::release(netmem) };
        queue.release(tag, index);
        // C need not call `put_page`.
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
            // The pool keeps this reference until `destroy`.
            let _ = Arc::into_raw(queue);
            Ok(0)
        })
    }

    /// Drops a pool that is about to be freed, and its reference to the queue.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool for which [`Self::init`] succeeded, and have all its buffers
    /// back.
    unsafe extern "C" fn destroy(pool: *mut bindings::page_pool) {
        // SAFETY: The caller guarantees that the pool is valid. `init` gave it this reference.
        let queue =
            unsafe { Arc::<ProvidedQueue<P>>::from_raw((*pool).mp_priv.cast_const().cast()) };

        queue.remove_pool(pool);
    }

    /// Adds the size of the buffers to a netlink message. Returns zero or an errno.
    ///
    /// # Safety
    ///
    /// `mp_priv` must be the one that is stored beside these functions in a receive queue or a
    /// pool, and `rsp` must be a valid message.
    unsafe extern "C" fn nl_fill(
        mp_priv: *mut c_void,
        rsp: *mut bindings::sk_buff,
        rxq: *mut bindings::netdev_rx_queue,
    ) -> c_int {
        // SAFETY: The caller guarantees that a receive queue or a pool has `mp_priv`. It keeps the
        // `ProvidedQueue`.
        let queue = unsafe { ArcBorrow::<ProvidedQueue<P>>::from_raw(mp_priv.cast_const().cast()) };
        let attribute = if rxq.is_null() {
            P::KIND.pool_attribute()
        } else {
            P::KIND.queue_attribute()
        };

        from_result(|| {
            // SAFETY: The caller guarantees that the message is valid.
            let nest = unsafe { bindings::nla_nest_start(rsp, attribute as c_int) };

            if nest.is_null() {
                return Err(EMSGSIZE);
            }
            // SAFETY: The caller guarantees that the message is valid.
            let put = to_result(unsafe {
                bindings::nla_put_uint(
                    rsp,
                    P::KIND.buffer_size_attribute() as c_int,
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

    /// Ends the binding of a receive queue whose network device is being unregistered.
    ///
    /// # Safety
    ///
    /// `mp_priv` must be the one that is stored beside these functions in `rxq`, whose network
    /// device must be locked.
    unsafe extern "C" fn uninstall(mp_priv: *mut c_void, rxq: *mut bindings::netdev_rx_queue) {
        // SAFETY: The caller guarantees that the queue is bound. The reference that is taken here
        // keeps the `ProvidedQueue` when the binding drops its own.
        let queue = Arc::from(unsafe {
            ArcBorrow::<ProvidedQueue<P>>::from_raw(mp_priv.cast_const().cast())
        });

        queue.uninstalled();
        // SAFETY: The caller guarantees that `rxq` is valid, and its device locked, which protects
        // these fields.
        unsafe {
            (*rxq).mp_params.mp_ops = null();
            (*rxq).mp_params.mp_priv = null_mut();
        }
    }
}
