// SPDX-License-Identifier: GPL-2.0

//! Unit tests of the pool that a buffer goes to when user space gives it back.

#[macros::kunit_tests(rust_kernel_net_page_pool_recycle)]
mod tests {
    use super::super::{
        test_pool::TestPool,
        AllocCache,
        MemoryProvider,
        ProvidedQueue,
        ProviderKind,
        Unused, //
    };
    use crate::{
        net::netmem::{
            AfterPut,
            NetIovs, //
        },
        page::PAGE_SHIFT,
        prelude::*,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        }, //
    };

    /// A provider of one buffer, which user space may have. A pool that asks for buffers takes that
    /// one back, as io_uring's does with what the refill queue names.
    struct OneBuffer {
        iovs: NetIovs,
        /// One if the buffer was never in a pool, otherwise zero.
        is_new: Atomic<u32>,
    }

    impl MemoryProvider for OneBuffer {
        const KIND: ProviderKind = ProviderKind::IoUring;

        fn alloc(&self, cache: &mut AllocCache<'_>) {
            if self.is_new.xchg(0, Relaxed) == 1 {
                assert_eq!(cache.push_free(&self.iovs, &[0]), 1);
            } else if let AfterPut::Pooled(iov) = self.iovs.take_back(0, 1) {
                cache.recycle(iov);
            }
        }

        fn release(&self, _tag: u64, index: usize) {
            assert_eq!(index, 0);
        }

        fn unmap(&self, _unused: &Unused<'_>) {}
    }

    fn queue_of_one() -> Result<Arc<ProvidedQueue<OneBuffer>>> {
        let provider = OneBuffer {
            iovs: NetIovs::new(ProviderKind::IoUring, 1, PAGE_SHIFT as u32)?,
            is_new: Atomic::new(1),
        };

        Arc::pin_init(
            ProvidedQueue::new::<Error>(PAGE_SHIFT as u32, Ok(provider)),
            GFP_KERNEL,
        )
    }

    /// Receives into the buffer and grants it to user space, which then has the only references.
    fn receive_and_grant(pool: &mut TestPool<OneBuffer>) -> bool {
        pool.receive().map(|packet| packet.iov().grant()).is_some()
    }

    /// A pool takes its own buffer back, and hands it out again at once.
    #[test]
    fn pool_gets_its_own_buffer() -> Result {
        let queue = queue_of_one()?;
        let mut pool = TestPool::new(&queue)?;

        assert!(receive_and_grant(&mut pool));
        assert!(receive_and_grant(&mut pool));
        // Nobody gives it back twice.
        assert_eq!(pool.in_flight(), 1);
        assert!(pool.receive().is_some());
        Ok(())
    }

    /// A pool that takes back the buffer of another one does not keep it: the other pool counts it,
    /// and must have it back before it can end.
    #[test]
    fn buffer_goes_back_to_the_pool_that_it_is_from() -> Result {
        let queue = queue_of_one()?;
        let mut pools = (TestPool::new(&queue)?, TestPool::new(&queue)?);

        assert!(receive_and_grant(&mut pools.0));
        assert!(pools.1.receive().is_none());
        assert_eq!((pools.0.in_flight(), pools.1.in_flight()), (1, 0));
        assert!(pools.0.receive().is_some());
        Ok(())
    }

    /// A task that gives a buffer back leaves the cache of the pool alone, because the driver may
    /// be using it on another CPU.
    #[test]
    fn task_leaves_the_cache_alone() -> Result {
        let queue = queue_of_one()?;
        let mut pool = TestPool::new(&queue)?;
        let packet = pool.receive().ok_or(ENOMEM)?;

        assert_eq!(pool.cached(), 0);
        drop(packet);
        assert_eq!((pool.cached(), pool.in_flight()), (0, 1));
        Ok(())
    }

    /// The number of buffers of [`ManyBuffers`].
    const MANY: u32 = AllocCache::CAPACITY as u32 + 6;

    /// A provider that offers a pool more buffers than its cache has room for.
    struct ManyBuffers {
        iovs: NetIovs,
    }

    impl MemoryProvider for ManyBuffers {
        const KIND: ProviderKind = ProviderKind::IoUring;

        fn alloc(&self, cache: &mut AllocCache<'_>) {
            let mut all = [0; MANY as usize];

            for (index, place) in all.iter_mut().enumerate() {
                *place = index as u32;
            }
            assert_eq!(cache.push_free(&self.iovs, &all), AllocCache::CAPACITY);
            assert_eq!(cache.room(), 0);
        }

        fn release(&self, _tag: u64, _index: usize) {}

        fn unmap(&self, _unused: &Unused<'_>) {}
    }

    #[test]
    fn cache_takes_no_more_than_it_has_room_for() -> Result {
        let provider = ManyBuffers {
            iovs: NetIovs::new(ProviderKind::IoUring, MANY, PAGE_SHIFT as u32)?,
        };
        let queue = Arc::pin_init(
            ProvidedQueue::new::<Error>(PAGE_SHIFT as u32, Ok(provider)),
            GFP_KERNEL,
        )?;
        let mut pool = TestPool::new(&queue)?;

        assert!(pool.receive().is_some());
        assert_eq!(pool.in_flight(), AllocCache::CAPACITY as u32);
        Ok(())
    }
}
