// SPDX-License-Identifier: GPL-2.0

//! The memory provider, which gives buffers of an interface queue to the page pools of the device
//! to which the queue is bound.
//!
//! Lock order: the instance lock of the network device, then the state of the interface queue's
//! binding, then the memory of an area or the reservation of an id. `alloc` takes no lock that
//! sleeps.

use super::{
    area::{
        Area,
        Reservation, //
    },
    ifq::{
        Ifq,
        Queue, //
    }, //
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
            ProviderKind,
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
    const KIND: ProviderKind = ProviderKind::IoUring;

    fn init(&self, pool: &mut NewPool<'_>) -> Result {
        // If the kernel cannot write to the areas, all of them are dma-bufs, and it is up to their
        // exporters to keep CPU caches coherent.
        if !self.writable {
            pool.leave_caches_to_exporter();
        }
        Ok(())
    }

    fn alloc(&self, cache: &mut AllocCache<'_>) {
        self.refill.fill_cache(&self.areas, cache);
        if cache.is_empty() {
            self.areas.fill_cache(cache);
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

/// Adds `area` to `ifq` as its first one, and binds `ifq` to the receive queue that `reg` names.
///
/// # Errors
///
/// - [`ENODEV`] if the network device has gone, or has another device than `ifq` now.
/// - The errors of [`Area::map`] and [`ProvidedQueue::open`].
pub(super) fn open(
    ifq: &Arc<Queue>,
    reg: &IfqReg,
    first: Reservation<'_>,
    area: Pin<KBox<Area>>,
) -> Result {
    let netdev = NetDevice::find(reg.if_idx)?;
    let netdev = netdev.lock();
    let dev = netdev.dma_device(reg.if_rxq)?;
    let is_same = |bound: &ARef<Device>| ptr::addr_eq(&**bound, dev);

    if !ifq.dev.as_ref().is_some_and(is_same) {
        return Err(ENODEV);
    }
    // Zero leaves the size to the driver. It is only set if user space asks for one.
    let page_size = match reg.rx_buf_len {
        0 => 0,
        _ => 1u32.checked_shl(ifq.areas.shift()).ok_or(EINVAL)?,
    };

    area.map(dev)?;
    first.publish(area);
    ProvidedQueue::open(ifq, &netdev, reg.if_rxq, page_size)
}

/// Adds `area` to `ifq`, and maps it for the device if there is one.
///
/// # Errors
///
/// [`EFAULT`] if the device has gone, and the errors of [`Area::map`].
pub(super) fn add(ifq: &Queue, reservation: Reservation<'_>, area: Pin<KBox<Area>>) -> Result {
    if ifq.dev.is_none() {
        reservation.publish(area);
        return Ok(());
    }
    ifq.with_device(|dev| {
        area.map(dev)?;
        reservation.publish(area);
        Ok(())
    })
    .unwrap_or(Err(EFAULT))
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_provider)]
mod tests {
    use super::*;
    use crate::{
        test_random::Random,
        zcrx::{
            buffers::Buffers,
            walk::{
                Taker,
                Walk, //
            }, //
        }, //
    };
    use kernel::{
        net::{
            netmem::{
                Lookup,
                PooledIov, //
            },
            page_pool::test_pool::{
                Packet,
                TestPool, //
            },
            skbuff::{
                owned::OwnedSkBuff,
                Chunk,
                SkBuff, //
            }, //
        },
        page::PAGE_SHIFT,
        sync::atomic::{
            Atomic,
            Relaxed, //
        }, //
    };

    const COUNT: u32 = 150;

    /// A provider with one area, without memory, whose buffers go to pools.
    #[pin_data]
    struct Provider {
        #[pin]
        buffers: Buffers,
        /// The number of times that user space names each buffer, which the pool sees when it wants
        /// some.
        pending_returns: [Atomic<u32>; COUNT as usize],
        /// The number of times that a pool has asked for buffers.
        pool_lookups: Atomic<u32>,
    }

    impl MemoryProvider for Provider {
        const KIND: ProviderKind = ProviderKind::IoUring;

        fn alloc(&self, cache: &mut AllocCache<'_>) {
            let mut buffers = [0; 7];

            for (buffer, pending_returns) in self.pending_returns.iter().enumerate() {
                if cache.room() != 0 {
                    let count = pending_returns.xchg(0, Relaxed);

                    self.buffers
                        .take_back(buffer as u64, count, &mut None, &mut |iov| {
                            cache.recycle(iov)
                        });
                }
            }
            self.pool_lookups.add(1, Relaxed);
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
                    pending_returns: [const { Atomic::new(0) }; COUNT as usize],
                    pool_lookups: Atomic::new(0),
                }),
            ),
            GFP_KERNEL,
        )
    }

    /// Returns the number of free buffers, and leaves them free.
    fn free(provider: &Provider) -> u32 {
        let mut all = [0; COUNT as usize];
        let count = provider.buffers.take(&mut all);

        provider.buffers.put(&all[..count]);
        count as u32
    }

    /// Gives a buffer back `count` times, as user space does.
    fn give_back(provider: &Provider, buffer: usize, count: u32) {
        let buffers = &provider.buffers;

        buffers.take_back(buffer as u64, count, &mut None, &mut |iov| iov.put());
    }

    /// Gives a buffer back until only its pool has it. Returns the number of times.
    fn given_back_after(provider: &Provider, buffer: usize) -> Option<u32> {
        let mut is_back = false;
        let mut give_back = || {
            let pooled = &mut |iov: PooledIov<'_>| {
                is_back = true;
                iov.put();
            };

            provider
                .buffers
                .take_back(buffer as u64, 1, &mut None, pooled);
            is_back
        };

        (1..10).find(|_| give_back())
    }

    /// The expected state of a buffer.
    #[derive(Default)]
    struct Model {
        /// The packets that have it.
        packets: KVec<Packet<'static>>,
        /// The number of times that user space has it.
        granted: u32,
        /// Whether it was copied to, and is not in the pool.
        copied: bool,
        /// The number of times that user space has named it since a pool last asked for buffers.
        pending_returns: u32,
    }

    impl Model {
        fn given_back(&mut self, count: u32) {
            self.granted -= self.granted.min(count);
            self.copied &= self.granted != 0;
        }
    }

    /// Compares random sequences of what a driver, packets, user space and copying do with a model.
    /// Each buffer is in one place, and none is lost.
    #[test]
    fn random_operations_match_the_model() -> Result {
        let provider = provider()?;
        let mut pool = TestPool::new(&provider)?;
        let mut model = KVec::new();
        let mut random = Random::new(0x9e37_79b9);

        for _ in 0..COUNT {
            model.push(Model::default(), GFP_KERNEL)?;
        }
        for step in 0..1_000_000 {
            let any = random.below(COUNT) as usize;

            match random.below(8) {
                0 | 1 => {
                    let packet = pool.receive();

                    if provider.pool_lookups.xchg(0, Relaxed) != 0 {
                        for (at, pending) in model.iter_mut().zip(&provider.pending_returns) {
                            // The cache had room for this one.
                            if pending.load(Relaxed) == 0 {
                                let count = core::mem::take(&mut at.pending_returns);
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
                    // User space receives the packet, as a whole or in pieces.
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
                    // Now and then, this is more often than user space has the buffer.
                    let count = 1 + random.below(3);
                    let at = &mut model[any];

                    if random.below(2) == 0 {
                        give_back(&provider, any, count);
                        at.given_back(count);
                    } else {
                        provider.pending_returns[any].add(count, Relaxed);
                        at.pending_returns += count;
                    }
                }
                6 => {
                    let mut buffer = [0];

                    if provider.buffers.take(&mut buffer) != 0 {
                        let at = &mut model[buffer[0] as usize];

                        assert!(at.packets.is_empty() && at.granted == 0);
                        if random.below(4) == 0 {
                            provider.buffers.put(&buffer);
                        } else {
                            provider.buffers.grant(buffer[0]);
                            at.granted = 1;
                            at.copied = true;
                        }
                    }
                }
                _ if random.below(500) == 0 => {
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

    /// Checks that a buffer of user space stays in the pool until it was given back as often as it
    /// was granted.
    #[test]
    fn buffer_in_user_space_stays_in_the_pool() -> Result {
        let provider = provider()?;
        let mut pool = TestPool::new(&provider)?;
        let packet = pool.receive().ok_or(ENOMEM)?;
        let index = packet.iov().index();

        assert_eq!(pool.in_flight(), AllocCache::CAPACITY as u32);
        packet.iov().grant();
        packet.iov().grant();
        drop(packet);
        assert_eq!(pool.in_flight(), AllocCache::CAPACITY as u32);

        // All other buffers can be received into, but not that one.
        let mut others = KVec::new();
        while let Some(packet) = pool.receive() {
            assert_ne!(packet.iov().index(), index);
            others.push(packet, GFP_KERNEL)?;
        }
        assert_eq!(others.len() as u32, COUNT - 1);
        give_back(&provider, index, 1);
        assert!(pool.receive().is_none());

        // User space gives it back no more often than it has it.
        give_back(&provider, index, 2);
        let again = pool.receive().ok_or(ENOMEM)?;
        assert_eq!(again.iov().index(), index);
        drop((again, others));
        give_back(&provider, index, 2);
        drop(pool);
        assert_eq!(free(&provider), COUNT);
        Ok(())
    }

    /// A taker that grants user space the buffers of a provider, and notes number, offset and
    /// length of each.
    struct Recorder<'p> {
        provider: &'p ProvidedQueue<Provider>,
        handed_out: KVec<(usize, usize, usize)>,
    }

    impl<'p> Taker for Recorder<'p> {
        type Packet<'a> = Lookup<'a, 'p, Provider>;

        fn begin<'a>(&self, skb: &'a SkBuff) -> Self::Packet<'a> {
            Lookup::new(skb, self.provider)
        }

        fn hand_out<'a>(
            &mut self,
            packet: &mut Self::Packet<'a>,
            chunk: Chunk<'a>,
            wanted: usize,
        ) -> Result {
            let iov = packet.find(&chunk).ok_or(EFAULT)?;

            self.handed_out
                .push((iov.index(), iov.offset(), wanted), GFP_KERNEL)?;
            iov.grant();
            Ok(())
        }

        fn copy(&mut self, chunk: Chunk<'_>, _left: usize) -> Result<usize> {
            Ok(chunk.len())
        }
    }

    /// Hands out the bytes of a packet from `offset` on. Returns the result, and its chunks.
    fn hand_out(
        provider: &ProvidedQueue<Provider>,
        skb: &SkBuff,
        offset: usize,
    ) -> (Result<usize>, KVec<(usize, usize, usize)>) {
        let mut recorder = Recorder {
            provider,
            handed_out: KVec::new(),
        };
        let result = Walk::default().take(skb, offset, skb.len() - offset, &mut recorder);

        (result, recorder.handed_out)
    }

    /// Checks that what a device has received into memory of another provider is not handed out,
    /// wherever it is in a packet (ZV21).
    #[test]
    fn memory_of_others_is_not_handed_out() -> Result {
        let (own, other) = (provider()?, provider()?);
        let (mut own_pool, mut other_pool) = (TestPool::new(&own)?, TestPool::new(&other)?);
        let mut skb = OwnedSkBuff::new(0)?;
        let mut numbers = [0; 5];
        // Each part: whether `own` has it, its offset in the buffer, and its length.
        let parts = [
            (true, 3, 10),
            (true, 0, 20),
            (false, 7, 30),
            (true, 4000, 40),
        ];

        for ((is_own, offset, len), number) in parts.into_iter().zip(&mut numbers) {
            let pool = if is_own {
                &mut own_pool
            } else {
                &mut other_pool
            };
            let packet = pool.receive().ok_or(ENOMEM)?;

            *number = packet.iov().index();
            skb.add_received(packet, offset, len)?;
        }
        // This part is in no pool.
        skb.add_net_iov(50)?;
        let mut list = OwnedSkBuff::new(0)?;
        let packet = own_pool.receive().ok_or(ENOMEM)?;
        numbers[4] = packet.iov().index();
        list.add_received(packet, 1, 60)?;
        skb.append(list)?;
        assert_eq!(skb.len(), 210);

        let [first, second, foreign, third, last] = numbers;
        let check =
            |provider, offset, want: Result<usize>, handed_out: &[(usize, usize, usize)]| {
                let (got, chunks) = hand_out(provider, &skb, offset);

                assert_eq!(got, want);
                assert_eq!(chunks[..], *handed_out);
            };

        check(&own, 0, Ok(30), &[(first, 3, 10), (second, 0, 20)]);
        check(&own, 5, Ok(25), &[(first, 8, 5), (second, 0, 20)]);
        check(&own, 30, Err(EFAULT), &[]);
        check(&own, 59, Err(EFAULT), &[]);
        check(&own, 60, Ok(40), &[(third, 4000, 40)]);
        check(&own, 100, Err(EFAULT), &[]);
        check(&own, 150, Ok(60), &[(last, 1, 60)]);
        check(&other, 0, Err(EFAULT), &[]);
        check(&other, 30, Ok(30), &[(foreign, 7, 30)]);
        check(&other, 60, Err(EFAULT), &[]);
        check(&other, 150, Err(EFAULT), &[]);

        // User space has each buffer as often as it was told of it, and no others.
        drop(skb);
        drop((own_pool, other_pool));
        assert_eq!(free(&own), COUNT - 4);
        assert_eq!(free(&other), COUNT - 1);
        for (provider, number, count) in [
            (&own, first, 2),
            (&own, second, 2),
            (&own, third, 1),
            (&own, last, 1),
            (&other, foreign, 1),
        ] {
            assert_eq!(given_back_after(provider, number), Some(count));
        }
        Ok(())
    }
}
