// SPDX-License-Identifier: GPL-2.0

//! Page pools whose buffers somebody else provides.
//!
//! A [`MemoryProvider`] has buffers, as [`NetIovs`], and is bound to a receive queue of a network
//! device by way of a [`ProvidedQueue`]. The pools that the device's driver makes for that queue
//! then get their buffers of it.
//!
//! Lock order: the instance lock of the network device, then the mutex of [`ProvidedQueue`].
//!
//! C headers:
//! [`include/net/page_pool/memory_provider.h`](srctree/include/net/page_pool/memory_provider.h),
//! [`include/net/page_pool/types.h`](srctree/include/net/page_pool/types.h)

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
pub mod test_pool;

use super::{
    device::{
        LockedNetDevice,
        NetDevice, //
    },
    netmem::{
        NetIovs,
        PooledIov,
        NET_IOV, //
    }, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::{
        from_result,
        to_result, //
    },
    new_mutex,
    num::casts::u32_as_usize,
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        aref::ARef,
        Arc,
        ArcBorrow,
        Mutex, //
    },
    warn_on, //
};
use core::{
    marker::PhantomData,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

/// Who has buffers for page pools.
///
/// Pools keep a reference to the provider of their buffers until they have given all of them back.
///
/// C counterpart: `struct memory_provider_ops`.
pub trait MemoryProvider: Sized + Send + Sync + 'static {
    /// The queue that it is bound to.
    fn queue(&self) -> &ProvidedQueue<Self>;

    /// Looks at a pool that a driver makes, and may refuse it. May sleep.
    ///
    /// # Errors
    ///
    /// Whatever the driver is to be told.
    fn init(&self, pool: &mut NewPool<'_>) -> Result;

    /// Puts buffers into the empty cache of a pool. May be called in softirqs.
    ///
    /// The device writes to where [`NetIovs::set_dma`] said that they are: they are to be mapped
    /// for it, until [`Self::unmap`].
    fn alloc(&self, cache: &mut AllocCache<'_>);

    /// A pool has let go of a buffer, which is free now: the one with this number of the
    /// [`NetIovs`] that has this tag. May be called in softirqs.
    fn release(&self, tag: u64, index: usize);

    /// The size of the buffers in bytes, to be told to who asks for it by netlink.
    fn buffer_size(&self) -> u64;

    /// The device is about to go, or uses the buffers no more: they are to be unmapped. May sleep.
    fn unmap(&self);
}

/// A pool that is being made.
pub struct NewPool<'a> {
    pool: NonNull<bindings::page_pool>,
    new: PhantomData<&'a mut bindings::page_pool>,
}

impl NewPool<'_> {
    /// Whether it is for transfers by `dev`.
    pub fn is_of(&self, dev: &Device) -> bool {
        // SAFETY: The pool is valid.
        unsafe { (*self.pool.as_ptr()).p.dev == dev.as_raw() }
    }

    /// Whether its buffers are mapped for DMA.
    pub fn is_mapped(&self) -> bool {
        // SAFETY: The pool is valid.
        unsafe { bindings::page_pool_maps_dma(self.pool.as_ptr()) }
    }

    /// Whether the device only writes to buffers.
    pub fn is_from_device(&self) -> bool {
        // SAFETY: The pool is valid.
        unsafe { (*self.pool.as_ptr()).p.dma_dir == bindings::dma_data_direction::DMA_FROM_DEVICE }
    }

    /// The base-2 logarithm of the size of its buffers, in bytes.
    pub fn shift(&self) -> u32 {
        // SAFETY: The pool is valid.
        let order = unsafe { (*self.pool.as_ptr()).p.order };

        order.saturating_add(PAGE_SHIFT as u32)
    }

    /// Has the pool's buffers not be synced for DMA, neither for the device nor for the CPU, in
    /// unit tests that have no device.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub fn stop_sync(&mut self) {
        // SAFETY: The pool is valid, and nobody else uses it yet.
        unsafe { bindings::page_pool_stop_sync(self.pool.as_ptr()) };
    }
}

/// The cache of a pool that has to be filled.
///
/// # Invariants
///
/// The pool is valid, and its cache ours for the duration of `'a`.
pub struct AllocCache<'a> {
    pool: NonNull<bindings::page_pool>,
    cache: PhantomData<&'a mut bindings::page_pool>,
}

impl AllocCache<'_> {
    /// How many buffers the cache should have at most.
    pub const CAPACITY: usize = bindings::PP_ALLOC_CACHE_REFILL as usize;

    #[inline]
    fn cache(&mut self) -> &mut bindings::pp_alloc_cache {
        // SAFETY: By the type invariants, the pool is valid and its cache ours.
        unsafe { &mut (*self.pool.as_ptr()).alloc }
    }

    /// How many more buffers it should get.
    #[inline]
    pub fn room(&mut self) -> usize {
        Self::CAPACITY.saturating_sub(u32_as_usize(self.cache().count))
    }

    /// Whether there is nothing in it.
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

    /// Puts a buffer into the pool that is free. Returns whether it was, and there was room.
    pub fn adopt(&mut self, iovs: &NetIovs, index: u32) -> bool {
        if self.room() == 0 {
            return false;
        }
        // SAFETY: The pool is valid, and its provider does not change.
        let provider = NonNull::new(unsafe { (*self.pool.as_ptr()).mp_priv });
        let Some(iov) = provider.and_then(|provider| iovs.take(index, provider)) else {
            return false;
        };

        // SAFETY: The pool is valid, and its counts are ours as its cache is. The buffer was free,
        // so that it is in no pool, and stays as long as it is in this one.
        unsafe { bindings::net_mp_niov_set_page_pool(self.pool.as_ptr(), iov.as_ptr()) };
        self.push(iov.addr().get() as bindings::netmem_ref | NET_IOV);
        true
    }

    /// Gives a buffer back to its pool: if it is this one and there is room, into the cache.
    #[inline]
    pub fn recycle(&mut self, iov: PooledIov<'_>) {
        if iov.pool() == self.pool.as_ptr() && self.room() != 0 {
            self.push(iov.into_netmem());
        } else {
            iov.put();
        }
    }

    /// Gives what is in the cache to the device.
    fn sync(&mut self) {
        let pool = self.pool.as_ptr();

        // SAFETY: By the type invariants, the pool is valid.
        if !unsafe { bindings::page_pool_syncs_dma(pool) } {
            return;
        }
        // SAFETY: As above. These parameters do not change, but others next to them may.
        let (dev, dir, offset, order) = unsafe {
            (
                (*pool).p.dev,
                (*pool).p.dma_dir,
                (*pool).p.offset,
                (*pool).p.order,
            )
        };
        // No further than the buffer goes.
        let size = 1usize
            .checked_shl(order.saturating_add(PAGE_SHIFT as u32))
            .unwrap_or(0)
            .saturating_sub(u32_as_usize(offset));
        let cache = self.cache();

        for &netmem in cache.cache.iter().take(u32_as_usize(cache.count)) {
            // SAFETY: All that is in the cache is the provider's, and valid.
            let address = unsafe { bindings::page_pool_get_dma_addr_netmem(netmem) };

            if address == 0 {
                continue;
            }
            // SAFETY: The pool's device is valid. What is not zero is where `NetIovs::set_dma` was
            // told that there is memory.
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

/// The functions that C calls, by which a provider is known to page pools.
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

    /// The provider of a pool.
    ///
    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, for the duration of `'a`.
    unsafe fn provider<'a>(pool: *mut bindings::page_pool) -> ArcBorrow<'a, P> {
        // SAFETY: The caller guarantees that the pool is valid. With these functions goes an
        // `Arc`'s pointer, of which the pool, or the queue that it is being made for, has a count.
        unsafe { ArcBorrow::from_raw((*pool).mp_priv.cast_const().cast()) }
    }

    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, whose cache the caller may access.
    unsafe extern "C" fn alloc_netmems(
        pool: *mut bindings::page_pool,
        _gfp: bindings::gfp_t,
    ) -> bindings::netmem_ref {
        // SAFETY: The caller guarantees it.
        let provider = unsafe { Self::provider(pool) };
        let Some(pool) = NonNull::new(pool) else {
            return 0;
        };
        // INVARIANT: The caller guarantees it.
        let mut cache = AllocCache {
            pool,
            cache: PhantomData,
        };

        if warn_on!(cache.cache().count != 0) {
            return 0;
        }
        provider.alloc(&mut cache);
        cache.sync();
        cache.pop()
    }

    /// # Safety
    ///
    /// `pool` must be a valid pool with these functions, and `netmem` a buffer of it that it lets
    /// go of.
    unsafe extern "C" fn release_netmem(
        pool: *mut bindings::page_pool,
        netmem: bindings::netmem_ref,
    ) -> bool {
        // SAFETY: The caller guarantees it.
        let provider = unsafe { Self::provider(pool) };

        // SAFETY: The caller guarantees that the buffer is of a pool that only gets them by
        // `AllocCache`, and that nobody refers to it.
        let (tag, index) = unsafe { NetIovs::release(netmem) };
        provider.release(tag, index);
        // There is no page to be put.
        false
    }

    /// # Safety
    ///
    /// `pool` must be a pool that is being made for a queue to which a provider with these
    /// functions is bound.
    unsafe extern "C" fn init(pool: *mut bindings::page_pool) -> c_int {
        from_result(|| {
            // SAFETY: The caller guarantees it.
            let provider = unsafe { Self::provider(pool) };

            provider.init(&mut NewPool {
                pool: NonNull::new(pool).ok_or(EINVAL)?,
                new: PhantomData,
            })?;
            // The pool's own count.
            let _ = Arc::into_raw(Arc::from(provider));
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `pool` must be a valid pool for which [`Self::init`] succeeded, and have all its buffers
    /// back.
    unsafe extern "C" fn destroy(pool: *mut bindings::page_pool) {
        // SAFETY: The caller guarantees that the pool is valid. The count is that of `init`.
        drop(unsafe { Arc::<P>::from_raw((*pool).mp_priv.cast_const().cast()) });
    }

    /// # Safety
    ///
    /// `mp_priv` must be what stands beside these functions, `rsp` a valid message.
    unsafe extern "C" fn nl_fill(
        mp_priv: *mut c_void,
        rsp: *mut bindings::sk_buff,
        rxq: *mut bindings::netdev_rx_queue,
    ) -> c_int {
        // SAFETY: The caller guarantees that the provider is bound, or has a pool.
        let provider = unsafe { ArcBorrow::<P>::from_raw(mp_priv.cast_const().cast()) };
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
            // SAFETY: As above.
            let put = to_result(unsafe {
                bindings::nla_put_uint(
                    rsp,
                    bindings::NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN as c_int,
                    provider.buffer_size(),
                )
            });

            if put.is_err() {
                // SAFETY: As above, and the nest was started in it.
                unsafe { bindings::nla_nest_cancel(rsp, nest) };
                return Err(EMSGSIZE);
            }
            // SAFETY: Likewise.
            unsafe { bindings::nla_nest_end(rsp, nest) };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `mp_priv` must be what stands beside these functions in `rxq`, whose network device is
    /// locked.
    unsafe extern "C" fn uninstall(mp_priv: *mut c_void, rxq: *mut bindings::netdev_rx_queue) {
        // SAFETY: The caller guarantees that the provider is bound.
        let provider = unsafe { ArcBorrow::<P>::from_raw(mp_priv.cast_const().cast()) };
        // The binding gives up its own.
        let provider = Arc::from(provider);

        provider.queue().uninstalled(mp_priv);
        // SAFETY: The caller guarantees that the queue is valid, and its device locked.
        unsafe { bindings::netdev_rx_queue_clear_mp(rxq) };
    }
}

/// A queue to which a provider is bound.
///
/// # Invariants
///
/// Once `netdev` can be locked, its receive queue `queue` has `params`, which point to `provider`,
/// or the network stack is uninstalling that.
struct Binding<P> {
    netdev: NetDevice,
    dev: ARef<Device>,
    queue: u32,
    params: bindings::pp_memory_provider_params,
    provider: Arc<P>,
}

// SAFETY: `params` is constant, and a copy of what the network stack has.
unsafe impl<P: Send + Sync> Send for Binding<P> {}

/// Where a provider notes which receive queue it is bound to.
///
/// A provider that is bound is kept: [`Self::close`] it.
#[pin_data]
pub struct ProvidedQueue<P> {
    #[pin]
    binding: Mutex<Option<Binding<P>>>,
}

impl<P: MemoryProvider> ProvidedQueue<P> {
    /// None yet.
    pub fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            binding <- new_mutex!(None, "ProvidedQueue"),
        })
    }

    /// Binds `provider` to the receive queue `queue` of `netdev`, which is restarted.
    ///
    /// `page_size` is how large the driver is asked to make buffers, in bytes; zero is as it likes.
    ///
    /// C counterpart: `netif_mp_open_rxq`.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if the provider is bound already.
    /// - What [`LockedNetDevice::dma_device`] and `netif_mp_open_rxq` give.
    pub fn open(
        provider: Arc<P>,
        netdev: &LockedNetDevice<'_>,
        queue: u32,
        page_size: u32,
    ) -> Result {
        let dev = ARef::from(netdev.dma_device(queue)?);
        let params = bindings::pp_memory_provider_params {
            mp_priv: Arc::as_ptr(&provider).cast_mut().cast(),
            mp_ops: Adapter::<P>::OPS,
            rx_page_size: page_size,
        };

        let bound = &provider.queue().binding;
        {
            let mut binding = bound.lock();

            if binding.is_some() {
                return Err(EBUSY);
            }
            // Before it is bound: if another device is behind the queue, the lock of which is not
            // ours, that may go as soon as it is.
            // INVARIANT: The device is locked until the queue has the parameters.
            *binding = Some(Binding {
                netdev: netdev.reference(),
                dev,
                queue,
                params,
                provider: provider.clone(),
            });
        }
        // SAFETY: The device is valid and locked. The functions are constant, and what goes with
        // them stays: the binding has it, or who uninstalls.
        to_result(unsafe {
            bindings::netif_mp_open_rxq(netdev.as_ptr(), queue, &params, null_mut())
        })
        .inspect_err(|_| {
            drop(bound.lock().take_if(|binding| netdev.is(&binding.netdev)));
        })
    }

    /// Whether there is a binding.
    pub fn is_bound(&self) -> bool {
        self.binding.lock().is_some()
    }

    /// Does something that takes the device that transfers, which does not go away meanwhile.
    /// Returns [`None`] if it has already.
    pub fn while_bound<R>(&self, f: impl FnOnce(&Device<Bound>) -> R) -> Option<R> {
        let binding = self.binding.lock();
        let binding = binding.as_ref()?;

        // SAFETY: It has a driver: before that goes, the provider is uninstalled, which takes the
        // lock that is held here. While it is being bound, the network device stays locked, also
        // until a binding that failed is taken back, which takes that lock, too.
        Some(f(unsafe { binding.dev.as_bound() }))
    }

    /// Ends the binding, if there is any: the queue is restarted without, and the provider's memory
    /// unmapped. May sleep.
    ///
    /// C counterpart: `netif_mp_close_rxq`.
    pub fn close(&self) {
        let bound = |binding: &Binding<P>| binding.netdev.clone();

        loop {
            let Some(netdev) = self.binding.lock().as_ref().map(bound) else {
                return;
            };
            let netdev = netdev.lock();
            // It may have been uninstalled, and bound elsewhere, meanwhile.
            let is_its = |binding: &mut Binding<P>| netdev.is(&binding.netdev);
            let Some(binding) = self.binding.lock().take_if(is_its) else {
                continue;
            };

            // SAFETY: The device is valid and locked. By the type invariants of `Binding`, the
            // queue has these parameters, unless it was just uninstalled, which the function sees.
            unsafe {
                bindings::netif_mp_close_rxq(netdev.as_ptr(), binding.queue, &binding.params)
            };
            binding.unmap();
            return;
        }
    }

    /// The network stack lets go of the provider that it has as `mp_priv`. The device is locked.
    fn uninstalled(&self, mp_priv: *mut c_void) {
        let is_its = |binding: &mut Binding<P>| binding.params.mp_priv == mp_priv;
        // That of another provider keeps that one alive.
        let binding = self.binding.lock().take_if(is_its);

        if let Some(binding) = binding {
            binding.unmap();
        }
    }
}

impl<P: MemoryProvider> Binding<P> {
    /// Has the provider unmap its memory. The device uses it no more.
    fn unmap(&self) {
        // SAFETY: The device is valid, as a reference is ours.
        if unsafe { bindings::dma_dev_need_sync(self.dev.as_raw()) } {
            // Pools may be syncing buffers that they just got back.
            // SAFETY: The function has to be called where it may sleep, as here.
            unsafe { bindings::synchronize_net() };
        }
        self.provider.unmap();
    }
}
