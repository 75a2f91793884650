// SPDX-License-Identifier: GPL-2.0

//! Page pools that no driver has, for unit tests of who provides them with memory.
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
        ProvidedIov,
        TakenBack,
        NET_IOV, //
    },
    prelude::*,
    sync::Arc, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A page pool that gets its buffers of a provider.
///
/// # Invariants
///
/// `pool` is a pool with the functions of `P`, and its cache is only accessed by who has `self` for
/// itself.
pub struct TestPool<P: MemoryProvider> {
    pool: NonNull<bindings::page_pool>,
    provider: PhantomData<Arc<ProvidedQueue<P>>>,
}

impl<P: MemoryProvider> TestPool<P> {
    /// Creates a pool of buffers of a page, for no queue of a device. Takes RTNL and then a
    /// device's lock, under which the provider sees the pool.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and what the provider refuses it with.
    pub fn new(provider: &Arc<ProvidedQueue<P>>) -> Result<Self> {
        let params = provider.params(0);
        // SAFETY: The functions are those of the provider, and constant. It stays while the pool is
        // made, which takes a reference of its own.
        let pool = from_err_ptr(unsafe { bindings::page_pool_create_provided(&params) })?;

        // INVARIANT: It was just made, with the functions of `P`.
        Ok(Self {
            pool: NonNull::new(pool).ok_or(ENOMEM)?,
            provider: PhantomData,
        })
    }

    /// Makes `dev` the device that the pool's buffers may have to be synced for.
    ///
    /// # Safety
    ///
    /// The device must stay as long as the pool, which is until all of its buffers are back. None
    /// of them may come back meanwhile.
    pub unsafe fn set_device(&mut self, dev: &Device) {
        // SAFETY: By the type invariants, the pool is valid. Those who take buffers need `self`,
        // and the caller guarantees that nobody brings any back.
        unsafe { (*self.pool.as_ptr()).p.dev = dev.as_raw() };
    }

    /// Takes a buffer and puts it into a packet, as a driver does.
    pub fn receive(&mut self) -> Option<Packet<'static>> {
        // SAFETY: By the type invariants, the pool is valid, and its cache ours.
        let netmem =
            unsafe { bindings::page_pool_alloc_netmems(self.pool.as_ptr(), GFP_KERNEL.as_raw()) };
        let iov = NonNull::new((netmem & !NET_IOV) as *mut bindings::net_iov)?;

        // SAFETY: All that the pool has is out of `NetIovs`. The one reference is ours.
        let iov = unsafe { ProvidedIov::whole(iov) };

        // INVARIANT: It is the only one.
        Some(Packet {
            iov,
            pool: PhantomData,
        })
    }

    /// Returns the number of buffers of the pool, wherever they are.
    pub fn in_flight(&self) -> u32 {
        let pool = self.pool.as_ptr();
        // SAFETY: By the type invariants, the pool is valid. The first count changes in `receive`
        // only, the second is atomic.
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
        // SAFETY: By the type invariants, the pool is valid. It frees itself once it has all of its
        // buffers back.
        unsafe { bindings::page_pool_destroy(self.pool.as_ptr()) };
    }
}

/// A packet with one buffer of a pool, whole.
///
/// # Invariants
///
/// A reference to the buffer is the packet's.
pub struct Packet<'a> {
    iov: ProvidedIov<'a>,
    pool: PhantomData<&'a ()>,
}

impl Packet<'_> {
    /// Returns its bytes.
    pub fn iov(&self) -> &ProvidedIov<'_> {
        &self.iov
    }
}

impl Drop for Packet<'_> {
    fn drop(&mut self) {
        // SAFETY: The reference is the packet's, which goes.
        if let TakenBack::Pooled(iov) = unsafe { self.iov.unreference() } {
            iov.put();
        }
    }
}
