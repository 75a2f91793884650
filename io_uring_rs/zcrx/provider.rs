// SPDX-License-Identifier: GPL-2.0

//! The device that receives into the areas of a queue: its page pools get their buffers here.
//!
//! Lock order: the instance lock of the network device, the state of its queue's binding, then the
//! memory of an area or the reservation of an id. Allocation takes no sleeping lock.

use super::{
    area::{
        Area,
        Reservation, //
    },
    Ifq,
    Queue, //
};
use core::ptr;
use kernel::{
    device::Device,
    io_uring::zcrx::{
        IfqReg,
        EVENT_ALLOC_FAIL, //
    },
    net::{
        device::NetDevice,
        page_pool::{
            AllocCache,
            MemoryProvider,
            NewPool,
            ProvidedQueue,
            Unused, //
        }, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

impl MemoryProvider for Ifq {
    fn init(&self, pool: &mut NewPool<'_>) -> Result {
        // What is not pages is a dma-buf, all of it.
        if !self.writable {
            pool.leave_caches_to_exporter();
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

    fn release(&self, tag: u64, index: usize) {
        self.areas.release(tag, index);
    }

    fn unmap(&self, unused: &Unused<'_>) {
        self.areas.unmap(unused);
    }
}

/// Makes `area` the first one of `ifq`, and binds the receive queue that `reg` names to it.
///
/// # Errors
///
/// - [`ENODEV`] if the device has gone, or is another than that of `ifq`.
/// - Those of [`Area::map`] and [`ProvidedQueue::open`].
pub(super) fn open(
    ifq: &Arc<Queue>,
    reg: &IfqReg,
    first: Reservation<'_>,
    area: Pin<KBox<Area>>,
) -> Result {
    let netdev = NetDevice::find(reg.if_idx)?;
    let netdev = netdev.lock();
    let dev = netdev.dma_device(reg.if_rxq)?;
    let is_its = |its: &ARef<Device>| ptr::addr_eq(&**its, dev);

    if !ifq.dev.as_ref().is_some_and(is_its) {
        return Err(ENODEV);
    }
    // As large as the driver likes, unless user space says.
    let page_size = match reg.rx_buf_len {
        0 => 0,
        _ => 1u32.checked_shl(ifq.areas.shift()).ok_or(EINVAL)?,
    };

    area.map(dev)?;
    first.fill(area);
    ProvidedQueue::open(ifq, &netdev, reg.if_rxq, page_size)
}

/// Makes `area` one more of `ifq`, and maps it for the device if there is one.
///
/// # Errors
///
/// [`EFAULT`] if the device has gone, and those of [`Area::map`].
pub(super) fn add(ifq: &Queue, reservation: Reservation<'_>, area: Pin<KBox<Area>>) -> Result {
    if ifq.dev.is_none() {
        reservation.fill(area);
        return Ok(());
    }
    ifq.while_bound(|dev| {
        area.map(dev)?;
        reservation.fill(area);
        Ok(())
    })
    .unwrap_or(Err(EFAULT))
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_provider)]
mod tests {
    use super::*;
    use crate::zcrx::buffers::Buffers;
    use kernel::{
        net::page_pool::test_pool::{
            Packet,
            TestPool, //
        },
        page::PAGE_SHIFT,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    const COUNT: u32 = 150;

    /// One area without memory, whose buffers go to pools.
    #[pin_data]
    struct Provider {
        #[pin]
        buffers: Buffers,
        /// How often user space names each buffer, for the pool to see when it wants some.
        named: [Atomic<u32>; COUNT as usize],
        /// How often it has looked.
        looked: Atomic<u32>,
    }

    impl MemoryProvider for Provider {
        fn alloc(&self, cache: &mut AllocCache<'_>) {
            let mut buffers = [0; 7];

            for (buffer, named) in self.named.iter().enumerate() {
                if cache.room() != 0 {
                    let count = named.xchg(0, Relaxed);

                    self.buffers
                        .take_back(buffer as u64, count, &mut None, &mut |iov| {
                            cache.recycle(iov)
                        });
                }
            }
            self.looked.add(1, Relaxed);
            while cache.room() != 0 {
                let wanted = cache.room().min(buffers.len());
                let count = self.buffers.take(&mut buffers[..wanted]);

                if count == 0 {
                    return;
                }
                self.buffers.adopt(&buffers[..count], cache);
            }
        }

        fn release(&self, _tag: u64, index: usize) {
            self.buffers.put(&[index as u32]);
        }

        fn unmap(&self, unused: &Unused<'_>) {
            self.buffers.unmap(unused);
        }
    }

    fn provider() -> Result<Arc<ProvidedQueue<Provider>>> {
        let buffers = Buffers::new(COUNT, PAGE_SHIFT as u32, true)?;

        Arc::pin_init(
            ProvidedQueue::new(
                PAGE_SHIFT as u32,
                pin_init!(Provider {
                    buffers <- buffers,
                    named: [const { Atomic::new(0) }; COUNT as usize],
                    looked: Atomic::new(0),
                }),
            ),
            GFP_KERNEL,
        )
    }

    /// How many buffers are free. They are afterwards, too.
    fn free(provider: &Provider) -> u32 {
        let mut all = [0; COUNT as usize];
        let count = provider.buffers.take(&mut all);

        provider.buffers.put(&all[..count]);
        count as u32
    }

    /// User space names a buffer so often.
    fn give_back(provider: &Provider, buffer: usize, count: u32) {
        let buffers = &provider.buffers;

        buffers.take_back(buffer as u64, count, &mut None, &mut |iov| iov.put());
    }

    /// What should be the case of a buffer.
    #[derive(Default)]
    struct Model {
        packets: KVec<Packet<'static>>,
        granted: u32,
        /// It is not in the pool: it was copied to.
        copied: bool,
        /// How often user space has named it since the pool has looked.
        named: u32,
    }

    impl Model {
        fn given_back(&mut self, count: u32) {
            self.granted -= self.granted.min(count);
            self.copied &= self.granted != 0;
        }
    }

    /// Any sequence of what a driver, packets, user space and copying do: each buffer is in one
    /// place, and none is lost.
    #[test]
    fn follows_the_model() -> Result {
        let provider = provider()?;
        let mut pool = TestPool::new(&provider)?;
        let mut model = KVec::new();
        let mut seed = 0x9e37_79b9_u32;
        let mut random = |below: u32| {
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed % below
        };

        for _ in 0..COUNT {
            model.push(Model::default(), GFP_KERNEL)?;
        }
        for step in 0..1_000_000 {
            let any = random(COUNT) as usize;

            match random(8) {
                0 | 1 => {
                    let packet = pool.receive();

                    if provider.looked.xchg(0, Relaxed) != 0 {
                        for (at, named) in model.iter_mut().zip(&provider.named) {
                            // Where the cache had room for it.
                            if named.load(Relaxed) == 0 {
                                let count = core::mem::take(&mut at.named);
                                at.given_back(count);
                            }
                        }
                    }
                    if let Some(packet) = packet {
                        let at = &mut model[packet.iov().index()];

                        assert!(at.packets.is_empty() && at.granted == 0);
                        at.packets.push(packet, GFP_KERNEL)?;
                    }
                }
                2 | 3 => {
                    // Received, as a whole or piece by piece.
                    let at = &mut model[any];

                    for packet in &at.packets {
                        packet.iov().grant();
                        at.granted += 1;
                    }
                }
                4 => {
                    model[any].packets.pop();
                }
                5 => {
                    // More than it has, now and then.
                    let count = 1 + random(3);
                    let at = &mut model[any];

                    if random(2) == 0 {
                        give_back(&provider, any, count);
                        at.given_back(count);
                    } else {
                        provider.named[any].add(count, Relaxed);
                        at.named += count;
                    }
                }
                6 => {
                    let mut buffer = [0];

                    if provider.buffers.take(&mut buffer) != 0 {
                        let at = &mut model[buffer[0] as usize];

                        assert!(at.packets.is_empty() && at.granted == 0);
                        if random(4) == 0 {
                            provider.buffers.put(&buffer);
                        } else {
                            provider.buffers.grant(buffer[0]);
                            at.granted = 1;
                            at.copied = true;
                        }
                    }
                }
                _ if random(500) == 0 => {
                    provider.buffers.scrub();
                    for at in &mut model {
                        at.granted = 0;
                        at.copied = false;
                    }
                }
                _ => {}
            }
            if step % 1000 == 0 {
                let copied = model.iter().filter(|at| at.copied).count() as u32;

                assert_eq!(free(&provider) + copied + pool.in_flight(), COUNT);
            }
        }
        for at in &mut model {
            at.packets.clear();
        }
        provider.buffers.scrub();
        assert_eq!(free(&provider) + pool.in_flight(), COUNT);
        drop(pool);
        assert_eq!(free(&provider), COUNT);
        Ok(())
    }

    /// A buffer that user space has is the pool's, until it was given back as often.
    #[test]
    fn what_user_space_has_stays_in_the_pool() -> Result {
        let provider = provider()?;
        let mut pool = TestPool::new(&provider)?;
        let packet = pool.receive().ok_or(ENOMEM)?;
        let index = packet.iov().index();

        assert_eq!(pool.in_flight(), AllocCache::CAPACITY as u32);
        packet.iov().grant();
        packet.iov().grant();
        drop(packet);
        assert_eq!(pool.in_flight(), AllocCache::CAPACITY as u32);

        // All others can be received, that one cannot.
        let mut others = KVec::new();
        while let Some(packet) = pool.receive() {
            assert_ne!(packet.iov().index(), index);
            others.push(packet, GFP_KERNEL)?;
        }
        assert_eq!(others.len() as u32, COUNT - 1);
        give_back(&provider, index, 1);
        assert!(pool.receive().is_none());

        // No more than it has.
        give_back(&provider, index, 2);
        let again = pool.receive().ok_or(ENOMEM)?;
        assert_eq!(again.iov().index(), index);
        drop((again, others));
        give_back(&provider, index, 2);
        drop(pool);
        assert_eq!(free(&provider), COUNT);
        Ok(())
    }
}
