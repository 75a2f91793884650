// SPDX-License-Identifier: GPL-2.0

//! Unit tests of when the memory of a provider is unmapped.

#[macros::kunit_tests(rust_kernel_net_page_pool_queue)]
mod tests {
    use super::super::test_queue::bound_queue;
    use crate::{
        device::{
            Bound,
            Device, //
        },
        faux,
        net::page_pool::test_pool::TestPool,
        prelude::*,
        sync::atomic::Relaxed, //
    };
    #[cfg(CONFIG_DMA_NEED_SYNC)]
    use crate::{
        impl_has_work,
        net::page_pool::{
            queue::test_queue::Provider,
            ProvidedQueue, //
        },
        new_work,
        sync::{
            atomic::Atomic,
            rcu,
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta,
            Instant,
            Monotonic, //
        },
        workqueue::{
            self,
            Work,
            WorkItem, //
        }, //
    };
    use core::ptr::NonNull;

    /// Memory stays mapped while a driver goes on with its pool, through which it still writes to
    /// it.
    #[test]
    fn memory_stays_mapped_until_the_last_pool_is_gone() -> Result {
        let registration = faux::Registration::new(c"page_pool_queue", None)?;
        let dev: &Device<Bound> = registration.as_ref().as_ref();
        let (queue, mapped) = bound_queue(dev)?;
        let pools = (TestPool::new(&queue)?, TestPool::new(&queue)?);
        let provider = NonNull::new(queue.params(0).mp_priv).ok_or(EINVAL)?;
        let can_be_pooled = || queue.provider.mapped.claim_for(provider, dev.as_raw(), 12);

        queue.remove_binding(|_| true);
        assert_eq!(mapped.load(Relaxed), 1);
        drop(pools.0);
        assert_eq!(mapped.load(Relaxed), 1);
        assert!(can_be_pooled());
        drop(pools.1);
        assert_eq!(mapped.load(Relaxed), 0);
        assert!(!can_be_pooled());
        Ok(())
    }

    /// Memory may be unmapped while packets have buffers of a pool that the driver has destroyed.
    #[test]
    fn packets_of_a_destroyed_pool_do_not_keep_memory_mapped() -> Result {
        let dev = faux::Registration::new(c"page_pool_queue", None)?;
        let (queue, mapped) = bound_queue(dev.as_ref().as_ref())?;
        let mut pool = TestPool::new(&queue)?;
        let packet = pool.receive().ok_or(ENOMEM)?;

        drop(pool);
        assert_eq!(mapped.load(Relaxed), 1);
        queue.remove_binding(|_| true);
        assert_eq!(mapped.load(Relaxed), 0);
        assert_eq!(queue.state.lock().pools.len(), 1);
        drop(packet);
        Ok(())
    }

    /// A task that ends a binding, and its progress.
    #[cfg(CONFIG_DMA_NEED_SYNC)]
    #[pin_data]
    struct Ending {
        queue: Arc<ProvidedQueue<Provider>>,
        state: Atomic<i32>,
        #[pin]
        work: Work<Ending>,
    }

    #[cfg(CONFIG_DMA_NEED_SYNC)]
    impl_has_work! {
        impl HasWork<Self> for Ending { self.work }
    }

    #[cfg(CONFIG_DMA_NEED_SYNC)]
    impl Ending {
        const STARTED: i32 = 1;
        const MAY_END: i32 = 2;
        const ENDED: i32 = 3;

        /// Waits until the other side has set `state`.
        fn wait(&self, state: i32) {
            while self.state.load(Relaxed) != state {
                fsleep(Delta::from_micros(100));
            }
        }
    }

    #[cfg(CONFIG_DMA_NEED_SYNC)]
    impl WorkItem for Ending {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            this.state.store(Self::STARTED, Relaxed);
            this.wait(Self::MAY_END);
            this.queue.remove_binding(|_| true);
            this.state.store(Self::ENDED, Relaxed);
        }
    }

    /// Unmapping waits for a softirq in which a pool may be syncing a buffer for its device.
    #[cfg(CONFIG_DMA_NEED_SYNC)]
    #[test]
    fn end_waits_for_dma_syncs() -> Result {
        let dev = faux::Registration::new(c"page_pool_queue", None)?;
        let (queue, mapped) = bound_queue(dev.as_ref().as_ref())?;
        let mut pool = TestPool::new(&queue)?;
        // The packet keeps the pool after it was destroyed.
        let packet = pool.receive().ok_or(ENOMEM)?;
        // SAFETY: The device is dropped last.
        unsafe { pool.set_device(dev.as_ref().as_ref()) };
        let ending = Arc::pin_init(
            pin_init!(Ending {
                queue,
                state: Atomic::new(0),
                work <- new_work!("page_pool_queue_test"),
            }),
            GFP_KERNEL,
        )?;

        drop(pool);
        // The work was not queued before, so that this cannot fail.
        let _ = workqueue::system_dfl().enqueue(ending.clone());
        ending.wait(Ending::STARTED);

        // To `synchronize_net`, this is the same as a softirq that runs.
        let guard = rcu::read_lock();
        let begin = Instant::<Monotonic>::now();
        let is_over = || ending.state.load(Relaxed) == Ending::ENDED;
        ending.state.store(Ending::MAY_END, Relaxed);
        while !is_over() && begin.elapsed() < Delta::from_millis(50) {
            core::hint::spin_loop();
        }
        let seen = (is_over(), mapped.load(Relaxed));
        drop(guard);
        ending.wait(Ending::ENDED);
        drop(packet);

        assert_eq!(seen, (false, 1));
        assert_eq!(mapped.load(Relaxed), 0);
        Ok(())
    }

    /// Memory is unmapped once, and not while the queue is bound.
    #[test]
    fn memory_without_pools_is_unmapped_at_once() -> Result {
        let dev = faux::Registration::new(c"page_pool_queue", None)?;
        let (queue, mapped) = bound_queue(dev.as_ref().as_ref())?;

        queue.remove_binding(|_| true);
        assert_eq!(mapped.load(Relaxed), 0);
        queue.remove_binding(|_| true);
        drop(TestPool::new(&queue)?);
        assert_eq!(mapped.load(Relaxed), 0);
        Ok(())
    }
}
