// SPDX-License-Identifier: GPL-2.0
//! Sets of filters (`rust/kernel/io_uring/filter_set.rs`, `task.rs`): rings and tasks
//! read a set and drop it, and the last of them frees it.
//!
//! This is modelled by hand. All of the orderings are those of `refcount_t`, in C; what
//! is ours is that a reference is held while a set is read, and passed on by another.

use crate::check::{Order::*, Source, check};
use crate::sync::Refcount;
use loom::{cell::UnsafeCell, sync::Arc, thread};

const REFCOUNT: Source = Source("tests/loom/src/shim/refcount.rs");

struct Set {
    refs: Refcount,
    /// Whether the set has its contents, as it has until it is freed.
    contents: UnsafeCell<bool>,
}

impl Set {
    /// Runs the filters, as a request does.
    fn run(&self) {
        self.contents.with(|contents| assert!(unsafe { *contents }));
    }

    fn put(&self) {
        if self.refs.dec_and_test() {
            self.contents
                .with_mut(|contents| unsafe { *contents = false });
        }
    }
}

/// A set is freed after all rings and tasks that shared it are done with it, and once.
#[test]
fn last_reference_frees_the_set_after_all_others_have_run_it() {
    fn model() {
        let set = Arc::new(Set {
            refs: Refcount::new(2),
            contents: UnsafeCell::new(true),
        });
        // A task, whose child is created and ends meanwhile.
        let task = set.clone();
        let task = thread::spawn(move || {
            task.refs.inc();
            let child = task.clone();
            let child = thread::spawn(move || {
                child.run();
                child.put();
            });
            task.run();
            task.put();
            child.join().unwrap();
        });
        // A ring.
        set.run();
        set.put();
        task.join().unwrap();
        set.contents.with(|contents| assert!(unsafe { !*contents }));
    }

    check(
        model,
        [
            REFCOUNT.weaken(
                "fn dec_and_test",
                "let is_zero = self.0.fetch_sub(1, Release) == 1;",
                Relaxed,
            ),
            REFCOUNT.weaken(
                "fn dec_and_test",
                "barrier::smp_mb(barrier::Acquired);",
                Relaxed,
            ),
        ],
    );
}
