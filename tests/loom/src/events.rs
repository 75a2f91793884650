// SPDX-License-Identifier: GPL-2.0
//! Events that were sent and not armed again (`io_uring_rs/zcrx/fired.rs`): CPUs send
//! them while user space arms them.

// This is formatted as the kernel is.
#[allow(dead_code)] // `Fired::is_any_wanted`
#[rustfmt::skip]
#[path = "../../../io_uring_rs/zcrx/fired.rs"]
mod fired;

use crate::check::{Order::*, Source, check};
use crate::prelude::EINVAL;
use crate::sync::atomic::{Atomic, Relaxed as Unordered};
use fired::Fired;
use loom::{
    sync::{Arc, Mutex},
    thread,
};

const FIRED: Source = Source("io_uring_rs/zcrx/fired.rs");
const EVENT: u32 = 1;

/// The events of a queue, as `Events` has them.
struct Events {
    fired: Fired,
    /// The number of events that were posted, in place of the ring.
    posted: Mutex<u32>,
    /// Statistics in memory that user space has mapped.
    copies: Atomic<u64>,
}

impl Events {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            fired: Fired::new(1 << EVENT),
            posted: Mutex::new(0),
            copies: Atomic::new(0),
        })
    }

    fn send(&self) {
        let posted = std::cell::Cell::new(false);
        let mut guard = None;
        let lock = || guard = Some(self.posted.lock().unwrap());
        self.fired.send(EVENT, lock, |()| {
            posted.set(true);
            true
        });
        if let (true, Some(mut count)) = (posted.get(), guard) {
            *count += 1;
        }
    }

    fn arm(&self) -> bool {
        self.fired.arm(EVENT, || self.posted.lock().unwrap()) != Err(EINVAL)
    }

    fn posted(&self) -> u32 {
        *self.posted.lock().unwrap()
    }
}

/// Two CPUs that send an event at the same time send it once, or once more if it was
/// armed between.
#[test]
fn event_is_sent_once_until_it_is_armed() {
    fn model() {
        let events = Events::new();
        let sender = events.clone();
        let sender = thread::spawn(move || sender.send());
        events.send();
        let armed = events.arm();
        sender.join().unwrap();
        assert!(armed);
        assert!((1..=2).contains(&events.posted()));
        events.send();
        events.send();
        assert_eq!(events.posted(), 2);
    }

    check(model, []);
}

/// User space that arms an event and then reads the statistics misses no copy: it sees
/// the copy counted, or gets an event.
#[test]
fn copy_is_counted_or_announced_once_the_event_is_armed() {
    fn model() {
        let events = Events::new();
        events.send();
        let receiver = events.clone();
        let receiver = thread::spawn(move || {
            receiver.copies.add(1, Unordered);
            receiver.send();
        });
        assert!(events.arm());
        let copies = events.copies.load(Unordered);
        receiver.join().unwrap();
        assert!(copies == 1 || events.posted() == 2, "a copy is missed");
    }

    check(
        model,
        [
            FIRED.weaken("fn send<", "barrier::smp_mb(Full);", Relaxed),
            FIRED.weaken("fn arm<", "barrier::smp_mb(Full);", Relaxed),
        ],
    );
}
