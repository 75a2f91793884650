// SPDX-License-Identifier: GPL-2.0

//! The device that receives into the areas of a queue: its page pools get their buffers here.
//!
//! Lock order: the instance lock of the network device, what binds its queue to ours, the mapping
//! of an area. Allocation takes no sleeping lock.

use super::{
    area::{
        Area,
        Reservation, //
    },
    Ifq, //
};
use kernel::{
    io_uring::zcrx::EVENT_ALLOC_FAIL,
    net::{
        device::NetDevice,
        page_pool::{
            AllocCache,
            MemoryProvider,
            NewPool,
            ProvidedQueue, //
        }, //
    },
    prelude::*,
    sync::Arc,
    warn_on, //
};

impl MemoryProvider for Ifq {
    fn queue(&self) -> &ProvidedQueue<Self> {
        &self.queue
    }

    fn init(&self, pool: &mut NewPool<'_>) -> Result {
        let is_ours = self.dev.as_ref().is_some_and(|dev| pool.is_of(dev));

        if warn_on!(!is_ours) {
            return Err(EINVAL);
        }
        if warn_on!(!pool.is_mapped()) {
            return Err(EOPNOTSUPP);
        }
        if pool.shift() != self.areas.shift() {
            return Err(EINVAL);
        }
        if !pool.is_from_device() {
            return Err(EOPNOTSUPP);
        }
        if !self.writable {
            // A dma-buf is synced by who exports it.
            pool.stop_sync();
        }
        Ok(())
    }

    fn alloc(&self, cache: &mut AllocCache<'_>) {
        self.refill.refill(&self.areas, cache);
        if cache.is_empty() {
            self.areas.fill(cache);
        }
        if cache.is_empty() {
            self.events.send(EVENT_ALLOC_FAIL);
        }
    }

    fn release(&self, id: u32, index: usize) {
        self.areas.release(id, index);
    }

    fn buffer_size(&self) -> u64 {
        1u64.checked_shl(self.areas.shift()).unwrap_or(0)
    }

    fn unmap(&self) {
        self.areas.unmap();
    }
}

/// Makes `area` the first one of `ifq`, and has the receive queue `rxq` of `netdev` receive into
/// it. The driver is asked for buffers of `page_size` bytes if that is not zero.
///
/// # Errors
///
/// - [`ENODEV`] if the device has gone.
/// - Those of [`Area::map`] and [`ProvidedQueue::open`].
pub(super) fn open(
    ifq: &Arc<Ifq>,
    netdev: &NetDevice,
    rxq: u32,
    page_size: u32,
    first: Reservation<'_>,
    area: Pin<KBox<Area>>,
) -> Result {
    let netdev = netdev.lock();

    area.map(netdev.dma_device(rxq)?)?;
    first.fill(area);
    ProvidedQueue::open(ifq.clone(), &netdev, rxq, page_size).inspect_err(|_| ifq.areas.unmap())
}

/// Makes `area` one more of `ifq`, mapped for its device if it has any.
///
/// # Errors
///
/// [`EFAULT`] if the device has gone, and those of [`Area::map`].
pub(super) fn add(ifq: &Ifq, reservation: Reservation<'_>, area: Pin<KBox<Area>>) -> Result {
    if ifq.dev.is_none() {
        reservation.fill(area);
        return Ok(());
    }
    ifq.queue
        .while_bound(|dev| {
            area.map(dev)?;
            reservation.fill(area);
            Ok(())
        })
        .unwrap_or(Err(EFAULT))
}
