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
    use crate::zcrx::{
        buffers::Buffers,
        walk::{
            Taker,
            Walk, //
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
                Piece,
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

    /// Gives a buffer back until nobody has it but its pool. Returns the number of times.
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

    /// Gives user space what is in buffers of a provider: number, offset and bytes of each.
    struct Lender<'p> {
        provider: &'p ProvidedQueue<Provider>,
        lent: KVec<(usize, usize, usize)>,
    }

    impl<'p> Taker for Lender<'p> {
        type Packet<'a> = Lookup<'a, 'p, Provider>;

        fn begin<'a>(&self, skb: &'a SkBuff) -> Self::Packet<'a> {
            Lookup::new(skb, self.provider)
        }

        fn lend<'a>(
            &mut self,
            packet: &mut Self::Packet<'a>,
            piece: Piece<'a>,
            wanted: usize,
        ) -> Result {
            let iov = packet.find(&piece).ok_or(EFAULT)?;

            self.lent
                .push((iov.index(), iov.offset(), wanted), GFP_KERNEL)?;
            iov.grant();
            Ok(())
        }

        fn copy(&mut self, piece: Piece<'_>, _left: usize) -> Result<usize> {
            Ok(piece.len())
        }
    }

    /// Lends the rest of a packet, from `offset` on. Returns the result, and the pieces.
    fn lend(
        provider: &ProvidedQueue<Provider>,
        skb: &SkBuff,
        offset: usize,
    ) -> (Result<usize>, KVec<(usize, usize, usize)>) {
        let mut lender = Lender {
            provider,
            lent: KVec::new(),
        };
        let result = Walk::default().take(skb, offset, skb.len() - offset, &mut lender);

        (result, lender.lent)
    }

    /// ZV21: what a device has received into memory of another provider is not handed out,
    /// wherever it is in a packet.
    #[test]
    fn memory_of_others_is_not_lent() -> Result {
        let (own, other) = (provider()?, provider()?);
        let (mut own_pool, mut other_pool) = (TestPool::new(&own)?, TestPool::new(&other)?);
        let mut skb = OwnedSkBuff::new(0)?;
        let mut numbers = [0; 5];
        // Which one has it, where it begins, and how much it is.
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
        // In no pool at all.
        skb.add_net_iov(50)?;
        let mut list = OwnedSkBuff::new(0)?;
        let packet = own_pool.receive().ok_or(ENOMEM)?;
        numbers[4] = packet.iov().index();
        list.add_received(packet, 1, 60)?;
        skb.append(list)?;
        assert_eq!(skb.len(), 210);

        let [first, second, foreign, third, last] = numbers;
        let check = |provider, offset, want: Result<usize>, lent: &[(usize, usize, usize)]| {
            let (got, pieces) = lend(provider, &skb, offset);

            assert_eq!(got, want);
            assert_eq!(pieces[..], *lent);
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

        // User space has what it was told of, as often, and nothing else.
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
