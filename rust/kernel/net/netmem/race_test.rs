// SPDX-License-Identifier: GPL-2.0

//! A unit test that gives back one buffer on two CPUs.

#[macros::kunit_tests(rust_kernel_net_netmem_race)]
mod tests {
    use super::super::*;
    use crate::{
        impl_has_work,
        new_work,
        sync::{
            Arc,
            Completion, //
        },
        workqueue::{
            self,
            Work,
            WorkItem, //
        }, //
    };

    /// A buffer that two tasks give back.
    #[pin_data]
    struct Shared {
        iovs: NetIovs,
        /// The number of tasks that are ready to begin.
        ready: Atomic<u32>,
        /// The number of times that the buffer became free.
        freed: Atomic<u32>,
        #[pin]
        ended: Completion,
        #[pin]
        work: Work<Shared>,
    }

    impl_has_work! {
        impl HasWork<Self> for Shared { self.work }
    }

    impl Shared {
        /// The number of grants that each task gives back.
        const GRANTS: i32 = 100_000;
        /// The number of times that a task looks for the other one. If it does not come in this
        /// time, there is one CPU, and the other task runs later.
        const PATIENCE: u32 = 1_000_000;

        /// Gives back half of the grants, one by one, while the other task does.
        fn give_back(&self) {
            self.ready.fetch_add(1, Relaxed);
            for _ in 0..Self::PATIENCE {
                if self.ready.load(Relaxed) == 2 {
                    break;
                }
                core::hint::spin_loop();
            }
            for _ in 0..Self::GRANTS {
                if let AfterPut::Free = self.iovs.take_back(0, 1) {
                    self.freed.fetch_add(1, Relaxed);
                }
            }
        }
    }

    impl WorkItem for Shared {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            this.give_back();
            this.ended.complete_all();
        }
    }

    /// Each grant is taken back once, and the last one frees the buffer.
    #[test]
    fn each_grant_is_taken_back_once() -> Result {
        let shared = Arc::pin_init(
            pin_init!(Shared {
                iovs: NetIovs::new(ProviderKind::IoUring, 1, 12)?,
                ready: Atomic::new(0),
                freed: Atomic::new(0),
                ended <- Completion::new(),
                work <- new_work!("netmem_race_test"),
            }? Error),
            GFP_KERNEL,
        )?;
        let iov = shared.iovs.iov(0).ok_or(EINVAL)?;

        assert!(shared.iovs.take_and_grant(0));
        iov.granted().0.store(2 * Shared::GRANTS, Relaxed);
        iov.references()
            .0
            .store(2 * Shared::GRANTS as isize, Relaxed);
        // The work item is in no queue yet.
        let _ = workqueue::system_dfl().enqueue(shared.clone());
        shared.give_back();
        shared.ended.wait_for_completion();

        let (granted, references) = (
            iov.granted().0.load(Relaxed),
            iov.references().0.load(Relaxed),
        );

        // A buffer that is in use must not be freed.
        iov.granted().0.store(0, Relaxed);
        iov.references().0.store(FREE, Relaxed);
        assert_eq!((granted, references), (0, FREE));
        assert_eq!(shared.freed.load(Relaxed), 1);
        Ok(())
    }
}
