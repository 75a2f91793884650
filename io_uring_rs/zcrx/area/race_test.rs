// SPDX-License-Identifier: GPL-2.0

//! A unit test that reserves ids of areas on two CPUs.

#[kernel::macros::kunit_tests(io_uring_zcrx_area_race)]
mod tests {
    use super::super::*;
    use kernel::{
        impl_has_work,
        new_work,
        sync::Completion,
        workqueue::{
            self,
            Work,
            WorkItem, //
        }, //
    };

    /// The number of ids that each of two tasks reserves.
    const EACH: usize = 100;

    /// Areas for which two tasks reserve ids.
    #[pin_data]
    struct Numbered {
        #[pin]
        areas: Areas,
        /// The number of times that each id was reserved.
        reserved: [Atomic<u32>; 2 * EACH],
        /// The number of turns that the tasks have begun.
        turns: Atomic<u32>,
        #[pin]
        ended: Completion,
        #[pin]
        work: Work<Numbered>,
    }

    impl_has_work! {
        impl HasWork<Self> for Numbered { self.work }
    }

    impl Numbered {
        /// The number of times that a task looks for the other one. If it does not come in this
        /// time, there is one CPU, and the other task runs later.
        const PATIENCE: u32 = 1_000_000;

        /// Waits until the tasks have begun `turns` turns together. Returns whether they have.
        fn meet(&self, turns: u32) -> bool {
            for _ in 0..Self::PATIENCE {
                if self.turns.load(Relaxed) >= turns {
                    return true;
                }
                core::hint::spin_loop();
            }
            false
        }

        /// Reserves ids, each at the same time as the other task does.
        fn reserve_ids(&self) {
            let mut both = true;

            for turn in 1..=EACH as u32 {
                self.turns.add(1, Relaxed);
                both = both && self.meet(2 * turn);
                if let Ok(reservation) = self.areas.reserve() {
                    if let Some(count) = self.reserved.get(reservation.id() as usize) {
                        count.add(1, Relaxed);
                    }
                    // Dropping it would give the id up.
                    core::mem::forget(reservation);
                }
            }
        }
    }

    impl WorkItem for Numbered {
        type Pointer = Arc<Self>;

        fn run(this: Arc<Self>) {
            this.reserve_ids();
            this.ended.complete_all();
        }
    }

    /// An id is reserved once, although two tasks reserve ids at the same time.
    #[test]
    fn tasks_never_get_the_same_id() -> Result {
        for _ in 0..50 {
            let areas = Areas::new(PAGE_SHIFT as u32)?;
            let numbered = Arc::pin_init(
                pin_init!(Numbered {
                    areas <- areas,
                    reserved: [const { Atomic::new(0) }; 2 * EACH],
                    turns: Atomic::new(0),
                    ended <- Completion::new(),
                    work <- new_work!("zcrx_area_test"),
                }),
                GFP_KERNEL,
            )?;

            // The work item is in no queue yet.
            let _ = workqueue::system_dfl().enqueue(numbered.clone());
            numbered.reserve_ids();
            numbered.ended.wait_for_completion();
            for count in &numbered.reserved {
                assert_eq!(count.load(Relaxed), 1);
            }
        }
        Ok(())
    }
}
