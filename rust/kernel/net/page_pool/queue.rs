// SPDX-License-Identifier: GPL-2.0

//! Receive queues whose page pools get their buffers from a provider.
//!
//! [`ProvidedQueue::close`] ends a binding, and so does the network stack when it unregisters the
//! device. Neither guarantees that the device has stopped writing to the memory: a driver that
//! cannot restart its queue goes on with the page pool that it has, and a driver may hide a queue
//! and keep its pool. So the state of the pools decides. A pool that its driver has not destroyed
//! may give a buffer to the device, even one that comes back from a packet. The memory stays mapped
//! until no such pool is left, but no longer than the device has a driver, which
//! [`DmaMemory`](crate::dma_memory::DmaMemory) ensures.
//!
//! Locks: the state of a queue has a mutex, under which the provider maps and unmaps memory. This
//! calls the exporter of a dma-buf, and the task that unregisters the network device waits for it.
//! It waits in C, too.

#[cfg(all(CONFIG_RUST_NET_KUNIT_TEST, CONFIG_IO_URING_ZCRX_SIM = "y"))]
mod device_test;
#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
mod test_queue;
#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
mod unmap_test;

use super::{
    Adapter,
    MemoryProvider,
    NewPool, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::to_result,
    net::device::{
        LockedNetDevice,
        NetDevice, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    static_lock_class,
    sync::{
        aref::ARef,
        Arc,
        Mutex,
        MutexGuard, //
    },
    warn_on_once, //
};
use core::{
    marker::PhantomData,
    ops::Deref,
    ptr::{
        from_ref,
        null_mut,
        NonNull, //
    }, //
};

/// The name of the lock class of the state of all queues.
///
/// All kinds of providers share one class, and lockdep requires that its name is a single object. A
/// literal would be a separate object in each crate that has a provider.
static STATE_NAME: &CStr = c"ProvidedQueue";

/// Evidence that no page pool gives buffers of a provider to a device.
///
/// # Invariants
///
/// For the duration of `'a`, the drivers have destroyed all existing pools of `provider`, which
/// only wait for buffers that packets and user space have, and no new pool is created.
pub struct Unused<'a> {
    provider: NonNull<c_void>,
    state: PhantomData<&'a ()>,
}

impl Unused<'_> {
    /// Returns the address that pools have as `mp_priv`.
    pub(in crate::net) fn provider(&self) -> NonNull<c_void> {
        self.provider
    }
}

/// A page pool that gets its buffers from a provider.
///
/// # Invariants
///
/// The pool is valid.
struct Pool(NonNull<bindings::page_pool>);

// SAFETY: Only fields that do not change are read, and one that any task may read.
unsafe impl Send for Pool {}

impl Pool {
    /// Returns whether the driver has destroyed the pool. From then on, the pool only waits for its
    /// buffers to come back: it asks its provider for no more buffers, and gives none to the
    /// driver.
    fn is_destroyed(&self) -> bool {
        // SAFETY: By the type invariants, the pool is valid. The read is volatile, like C's
        // `READ_ONCE`, since the driver may be destroying the pool.
        unsafe { (&raw const (*self.0.as_ptr()).destroy_cnt).read_volatile() != 0 }
    }

    /// Returns whether the pool may be syncing a buffer that is on its way back.
    fn may_sync(&self) -> bool {
        // SAFETY: By the type invariants, the pool is valid. This field does not change.
        let dev = unsafe { (*self.0.as_ptr()).p.dev };

        // SAFETY: The device of a valid pool is valid. Pools of unit tests may have none.
        !dev.is_null() && unsafe { bindings::dma_dev_need_sync(dev) }
    }
}

/// The binding of a provider to a receive queue of a network device.
///
/// # Invariants
///
/// Whenever `netdev` is locked anew, one of these holds:
///
/// - The receive queue `queue` has `params`, which point to the provider.
/// - The network stack is uninstalling the provider.
/// - The receive queue is being closed.
struct Binding<P> {
    netdev: NetDevice,
    dev: ARef<Device>,
    queue: u32,
    params: bindings::pp_memory_provider_params,
    // Keeps the object that `params` points to.
    _provider: Arc<ProvidedQueue<P>>,
}

// SAFETY: `params` is constant, and only a copy of the parameters that the network stack has.
unsafe impl<P: Send + Sync> Send for Binding<P> {}

/// The state of a queue.
///
/// # Invariants
///
/// `pools` holds all existing pools of the provider.
struct State<P> {
    binding: Option<Binding<P>>,
    pools: KVec<Pool>,
    /// Whether the provider was bound, and was not told to unmap its memory since then.
    may_be_mapped: bool,
}

/// A provider of memory, and the receive queue that it is bound to, if any.
///
/// While the provider is bound, the binding keeps this object: call [`Self::close`] to free it.
#[pin_data]
pub struct ProvidedQueue<P> {
    /// The base-2 logarithm of the size of a buffer, in bytes.
    shift: u32,
    /// The functions that C calls for pools of the provider.
    ops: &'static bindings::memory_provider_ops,
    #[pin]
    state: Mutex<State<P>>,
    #[pin]
    provider: P,
}

impl<P> Deref for ProvidedQueue<P> {
    type Target = P;

    #[inline]
    fn deref(&self) -> &P {
        &self.provider
    }
}

impl<P: MemoryProvider> ProvidedQueue<P> {
    /// Creates a queue that is not bound. Its buffers have `1 << shift` bytes.
    ///
    /// # Errors
    ///
    /// The errors of `provider`.
    pub fn new<E>(shift: u32, provider: impl PinInit<P, E>) -> impl PinInit<Self, Error>
    where
        Error: From<E>,
    {
        try_pin_init!(Self {
            shift,
            ops: Adapter::<P>::OPS,
            state <- Mutex::new(
                State {
                    binding: None,
                    pools: KVec::new(),
                    may_be_mapped: false,
                },
                STATE_NAME,
                static_lock_class!()
            ),
            provider <- provider,
        })
    }

    /// Returns the size of a buffer in bytes.
    pub(super) fn buffer_size(&self) -> u64 {
        1u64.checked_shl(self.shift).unwrap_or(0)
    }

    /// Returns whether a pool gets its buffers from this provider.
    ///
    /// # Safety
    ///
    /// `pool` must be valid.
    pub(in crate::net) unsafe fn provides(&self, pool: NonNull<bindings::page_pool>) -> bool {
        // SAFETY: The caller guarantees that the pool is valid. A pool never changes its provider.
        let (ops, provider) = unsafe { ((*pool.as_ptr()).mp_ops, (*pool.as_ptr()).mp_priv) };

        ops == from_ref(self.ops) && provider.cast_const() == from_ref(self).cast()
    }

    /// Returns the parameters by which a receive queue is bound to the provider. `page_size` is the
    /// buffer size that is requested from the driver, in bytes; zero leaves it to the driver.
    pub(super) fn params(&self, page_size: u32) -> bindings::pp_memory_provider_params {
        bindings::pp_memory_provider_params {
            mp_priv: from_ref(self).cast_mut().cast(),
            mp_ops: self.ops,
            rx_page_size: page_size,
        }
    }

    /// Binds `provider` to the receive queue `queue` of `netdev`, which restarts that queue.
    ///
    /// The provider's memory must have been mapped for the device that
    /// [`LockedNetDevice::dma_device`] returns. If `netif_mp_open_rxq` fails,
    /// [`MemoryProvider::unmap`] is called as soon as no pool uses the memory any more; on other
    /// errors, the memory stays mapped.
    ///
    /// `page_size` is the buffer size that is requested from the driver, in bytes; zero leaves it
    /// to the driver.
    ///
    /// C counterpart: `netif_mp_open_rxq`.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if the provider is bound already.
    /// - The errors of [`LockedNetDevice::dma_device`] and of `netif_mp_open_rxq`.
    pub fn open(
        provider: &Arc<Self>,
        netdev: &LockedNetDevice<'_>,
        queue: u32,
        page_size: u32,
    ) -> Result {
        let dev = ARef::from(netdev.dma_device(queue)?);
        let params = provider.params(page_size);

        {
            let mut state = provider.state.lock();

            if state.binding.is_some() {
                return Err(EBUSY);
            }
            // Note the binding before the receive queue has it. A leased queue belongs to another
            // device, whose lock is not held here, and which may be unregistered as soon as its
            // queue is bound: `uninstall` must find the binding then.
            // INVARIANT: The device stays locked until the queue has the parameters.
            state.binding = Some(Binding {
                netdev: netdev.reference(),
                dev,
                queue,
                params,
                _provider: provider.clone(),
            });
            state.may_be_mapped = true;
        }
        // SAFETY: The device is valid and locked. The functions are constant, and the provider that
        // goes with them stays valid: the binding has a reference to it, and if it is uninstalled,
        // so has the function that does this.
        to_result(unsafe {
            bindings::netif_mp_open_rxq(netdev.as_ptr(), queue, &params, null_mut())
        })
        .inspect_err(|_| provider.remove_binding(|binding| netdev.is(&binding.netdev)))
    }

    /// Returns whether the provider is bound.
    pub fn is_bound(&self) -> bool {
        self.state.lock().binding.is_some()
    }

    /// Calls `f` with the device that writes to the buffers, which keeps its driver while `f` runs.
    /// Returns [`None`] if the provider is not bound any more. May sleep.
    ///
    /// A task that unregisters the network device waits for `f`.
    pub fn with_device<R>(&self, f: impl FnOnce(&Device<Bound>) -> R) -> Option<R> {
        let state = self.state.lock();
        let binding = state.binding.as_ref()?;

        // SAFETY: `dma_device` found that the device has a driver. Before the driver is unbound,
        // the provider is uninstalled, which takes the lock that is held here. While the provider
        // is being bound, the network device stays locked. It also stays locked until a binding
        // that failed has been removed, which takes the lock that is held here, too.
        Some(f(unsafe { binding.dev.as_bound() }))
    }

    /// Ends the binding, if there is one. This restarts the receive queue without the provider, and
    /// the memory is unmapped as soon as no pool is left that gives buffers to the device. May
    /// sleep.
    ///
    /// C counterpart: `netif_mp_close_rxq`.
    pub fn close(&self) {
        let bound = |binding: &Binding<P>| binding.netdev.clone();

        loop {
            // The lock of the device comes before that of the state, so the binding is only looked
            // up here to find the device. It is looked up again once the device is locked.
            let Some(netdev) = self.state.lock().binding.as_ref().map(bound) else {
                return;
            };
            let netdev = netdev.lock();
            let is_its = |binding: &&Binding<P>| netdev.is(&binding.netdev);
            let params_of = |binding: &Binding<P>| (binding.queue, binding.params);
            let Some((queue, params)) = self
                .state
                .lock()
                .binding
                .as_ref()
                .filter(is_its)
                .map(params_of)
            else {
                // The provider was uninstalled meanwhile, and perhaps bound to another device.
                continue;
            };

            // The binding stays until this returns. If the device that owns a leased queue is
            // unregistered at the same time, `uninstall` finds the binding, and unmaps the memory
            // before the driver is unbound.
            // SAFETY: The device is valid and locked. By the type invariants of `Binding`, the
            // queue has these parameters, unless it was just uninstalled, for which the function
            // checks.
            unsafe { bindings::netif_mp_close_rxq(netdev.as_ptr(), queue, &params) };
            self.remove_binding(|binding| netdev.is(&binding.netdev));
            return;
        }
    }

    /// Ends the binding because the network stack uninstalls the provider. The network device is
    /// locked, and was stopped before.
    pub(super) fn uninstalled(&self) {
        self.remove_binding(|_| true);
    }

    /// Drops the binding if `is_its` returns true for it. Unmaps the memory if no pool uses it any
    /// more.
    fn remove_binding(&self, is_its: impl FnOnce(&mut Binding<P>) -> bool) {
        let mut state = self.state.lock();
        let binding = state.binding.take_if(is_its);

        self.unmap_if_unused(&mut state);
        // The binding may have the last reference to the network device, so drop it without the
        // lock.
        drop(state);
        drop(binding);
    }

    /// Tells the provider to unmap its memory, unless it has done so or a pool can still give a
    /// buffer to the device.
    fn unmap_if_unused(&self, state: &mut MutexGuard<'_, State<P>>) {
        let is_used = state.binding.is_some() || !state.pools.iter().all(Pool::is_destroyed);

        if is_used || !state.may_be_mapped {
            return;
        }
        if state.pools.iter().any(Pool::may_sync) {
            // A pool may be syncing a buffer that it just got back. It does so with bottom halves
            // disabled, and starts no new sync once it was destroyed.
            // SAFETY: The function must be called where sleeping is allowed, as it is here.
            unsafe { bindings::synchronize_net() };
        }
        // INVARIANT: All pools have been destroyed, as was checked above. No pool is added while
        // the state is locked.
        self.provider.unmap(&Unused {
            provider: NonNull::from(self).cast(),
            state: PhantomData,
        });
        state.may_be_mapped = false;
    }

    /// Adds a pool that a driver is creating for the queue.
    ///
    /// # Errors
    ///
    /// The same as those of C's `io_pp_zc_init` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c),
    /// and of the provider:
    ///
    /// - [`EINVAL`] if the pool belongs to another device, or its buffers have another size.
    /// - [`EOPNOTSUPP`] if the pool does not map its buffers, or the device does not only write to
    ///   them.
    /// - [`ENOMEM`] if memory is short.
    /// - The errors of [`MemoryProvider::init`].
    ///
    /// # Safety
    ///
    /// `pool` must be valid until [`Self::remove_pool`], and nobody may use it yet.
    pub(super) unsafe fn add_pool(&self, pool: NonNull<bindings::page_pool>) -> Result {
        let mut state = self.state.lock();
        // Without a binding, a pool must have no device: unit tests create such pools.
        let dev = state
            .binding
            .as_ref()
            .map_or(null_mut(), |binding| binding.dev.as_raw());
        // SAFETY: The caller guarantees that the pool is valid.
        let params = unsafe { &(*pool.as_ptr()).p };

        if warn_on_once!(params.dev != dev) {
            return Err(EINVAL);
        }
        // SAFETY: The caller guarantees that the pool is valid.
        let is_mapped = unsafe { bindings::page_pool::dma_map_raw(pool.as_ptr()) };
        if warn_on_once!(!is_mapped) {
            return Err(EOPNOTSUPP);
        }
        if params.order.saturating_add(PAGE_SHIFT as u32) != self.shift {
            return Err(EINVAL);
        }
        if params.dma_dir != bindings::dma_data_direction::DMA_FROM_DEVICE {
            return Err(EOPNOTSUPP);
        }
        // INVARIANT: The caller guarantees that the pool is valid and nobody uses it.
        self.provider.init(&mut NewPool {
            pool,
            new: PhantomData,
        })?;
        // INVARIANT: The caller guarantees that the pool is valid until it is removed.
        state.pools.push(Pool(pool), GFP_KERNEL)?;
        Ok(())
    }

    /// Removes a pool that is about to be freed.
    pub(super) fn remove_pool(&self, pool: *mut bindings::page_pool) {
        let mut state = self.state.lock();

        state.pools.retain(|known| known.0.as_ptr() != pool);
        self.unmap_if_unused(&mut state);
    }
}
