// SPDX-License-Identifier: GPL-2.0

//! Page pools without a driver, for unit tests of memory providers.
//!
//! C header: [`include/net/page_pool/helpers.h`](srctree/include/net/page_pool/helpers.h)

use super::{
    MemoryProvider,
    ProvidedQueue, //
};
use crate::{
    bindings,
    device::Device,
    error::from_err_ptr,
    net::netmem::{
        AfterPut,
        ProvidedIov,
        NET_IOV, //
    },
    page::PAGE_SIZE,
    prelude::*,
    sync::Arc,
    types::ScopeGuard, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// Creates a pool that gets its buffers from the provider of `provided`.
///
/// The pool has no DMA device. Its network device is the loopback device, which stays for as long
/// as any buffers of the pool are in use.
///
/// # Errors
///
/// The errors of `page_pool_create`.
///
/// # Safety
///
/// The provider and its functions must be valid until this returns, and if it succeeds, as long as
/// the pool exists.
unsafe fn create_provided(
    provided: bindings::pp_memory_provider_params,
) -> Result<*mut bindings::page_pool> {
    let mut params = bindings::page_pool_params::default();

    params.__bindgen_anon_1.fast.pool_size = 64;
    params.__bindgen_anon_1.fast.nid = bindings::NUMA_NO_NODE;
    params.__bindgen_anon_1.fast.dma_dir = bindings::dma_data_direction::DMA_FROM_DEVICE;
    params.__bindgen_anon_1.fast.max_len = u32::try_from(PAGE_SIZE)?;
    params.__bindgen_anon_2.slow.flags = bindings::PP_FLAG_DMA_MAP
        | bindings::PP_FLAG_DMA_SYNC_DEV
        | bindings::PP_FLAG_ALLOW_UNREADABLE_NETMEM;

    // SAFETY: The function has no preconditions. Other readers of the device's queues hold this
    // lock.
    unsafe { bindings::rtnl_lock() };
    let _rtnl = ScopeGuard::new(|| {
        // SAFETY: The lock was taken above.
        unsafe { bindings::rtnl_unlock() }
    });
    // SAFETY: The initial network namespace is always valid.
    let dev = unsafe {
        bindings::netdev_get_by_index_lock(
            &raw mut bindings::init_net,
            c_int::try_from(bindings::LOOPBACK_IFINDEX)?,
        )
    };
    let dev = NonNull::new(dev).ok_or(ENODEV)?.as_ptr();
    let _locked = ScopeGuard::new(|| {
        // SAFETY: `netdev_get_by_index_lock` has locked the device, which stays.
        unsafe { bindings::netdev_unlock(dev) }
    });
    // SAFETY: The device is valid, and has at least one receive queue. The array never changes.
    let queue = unsafe { (*dev)._rx };

    params.__bindgen_anon_2.slow.netdev = dev;
    // SAFETY: The queue is valid. The locks that are held protect its parameters.
    unsafe { (*queue).mp_params = provided };
    // SAFETY: The parameters are valid, and their device has this queue and is locked.
    let pool = from_err_ptr(unsafe { bindings::page_pool_create(&params) });
    // SAFETY: The queue is valid. The locks that are held protect its parameters.
    unsafe { (*queue).mp_params = pin_init::zeroed() };
    let pool = pool?;

    // SAFETY: The pool is new, so that nobody else uses it. It has no DMA device to sync for.
    unsafe {
        bindings::page_pool::set_dma_sync_raw(pool, false);
        bindings::page_pool::set_dma_sync_for_cpu_raw(pool, false);
    }
    Ok(pool)
}

/// A page pool that gets its buffers from a provider.
///
/// # Invariants
///
/// `pool` is a valid pool with the functions of `P`, and its cache is accessed only through a
/// mutable reference to `self`.
pub struct TestPool<P: MemoryProvider> {
    pool: NonNull<bindings::page_pool>,
    provider: PhantomData<Arc<ProvidedQueue<P>>>,
}

impl<P: MemoryProvider> TestPool<P> {
    /// Creates a pool whose buffers have the size of a page, and which serves no queue of a device.
    /// Takes RTNL and then a device's lock, and calls [`MemoryProvider::init`] with both held.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of [`MemoryProvider::init`].
    pub fn new(provider: &Arc<ProvidedQueue<P>>) -> Result<Self> {
        // SAFETY: The functions are those of the provider, and constant. The provider stays valid
        // while the pool is created, which takes a reference of its own.
        let pool = unsafe { create_provided(provider.params(0)) }?;

        // INVARIANT: The pool was just created with the functions of `P`.
        Ok(Self {
            pool: NonNull::new(pool).ok_or(ENOMEM)?,
            provider: PhantomData,
        })
    }

    /// Makes `dev` the device for which the pool's buffers may have to be synced.
    ///
    /// # Safety
    ///
    /// The device must outlive the pool, which exists until all its buffers are back. No buffer may
    /// come back while this runs.
    pub unsafe fn set_device(&mut self, dev: &Device) {
        // SAFETY: By the type invariants, the pool is valid. Taking buffers from it needs `self`,
        // and the caller guarantees that no buffer comes back.
        unsafe { (*self.pool.as_ptr()).p.dev = dev.as_raw() };
    }

    /// Takes a buffer and puts it into a packet, as a driver does.
    pub fn receive(&mut self) -> Option<Packet<'static>> {
        // SAFETY: By the type invariants, the pool is valid, and nobody else accesses its cache.
        let netmem =
            unsafe { bindings::page_pool_alloc_netmems(self.pool.as_ptr(), GFP_KERNEL.as_raw()) };
        let iov = NonNull::new((netmem & !NET_IOV) as *mut bindings::net_iov)?;

        // SAFETY: All buffers of the pool are from `NetIovs`. This one was just taken, and its only
        // reference belongs to this function.
        let iov = unsafe { ProvidedIov::whole(iov) };

        // INVARIANT: The packet gets that reference.
        Some(Packet {
            iov,
            pool: PhantomData,
        })
    }

    /// Returns the number of buffers in the cache of the pool.
    pub fn cached(&self) -> u32 {
        // SAFETY: By the type invariants, the pool is valid, and its cache is accessed only through
        // a mutable reference to `self`.
        unsafe { (*self.pool.as_ptr()).alloc.count }
    }

    /// Returns the number of buffers that the pool has taken and not released yet, wherever they
    /// are.
    pub fn in_flight(&self) -> u32 {
        let pool = self.pool.as_ptr();
        // SAFETY: By the type invariants, the pool is valid. Only `receive` changes the first
        // count; the second is atomic.
        let (hold, release) = unsafe {
            (
                (*pool).pages_state_hold_cnt,
                (&raw const (*pool).pages_state_release_cnt.counter).read_volatile(),
            )
        };

        hold.wrapping_sub(release as u32)
    }
}

impl<P: MemoryProvider> Drop for TestPool<P> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the pool is valid. It frees itself once all its buffers
        // are back.
        unsafe { bindings::page_pool_destroy(self.pool.as_ptr()) };
    }
}

/// A packet that is one whole buffer of a pool.
///
/// # Invariants
///
/// The packet owns a reference to the buffer.
pub struct Packet<'a> {
    iov: ProvidedIov<'a>,
    pool: PhantomData<&'a ()>,
}

impl Packet<'_> {
    /// Returns the bytes of the packet.
    pub fn iov(&self) -> &ProvidedIov<'_> {
        &self.iov
    }
}

impl Drop for Packet<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the packet owns a reference, and it gives it up here.
        if let AfterPut::Pooled(iov) = unsafe { self.iov.unreference() } {
            iov.put();
        }
    }
}
