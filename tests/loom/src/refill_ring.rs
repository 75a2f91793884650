// SPDX-License-Identifier: GPL-2.0
//! The ring of a refill queue (`io_uring_rs/zcrx/refill_ring.rs`): user space writes
//! entries, and the kernel reads them.
//!
//! The kernel's loads and stores of the positions are those of `Region`, which this
//! models by hand: its memory is mapped by user space, so that there are no atomic
//! variables to share. The names of the methods say which orderings they have.

// These are formatted as the kernel is.
#[allow(dead_code)] // `Place::offset`
#[rustfmt::skip]
#[path = "../../../io_uring_rs/zcrx/cursor.rs"]
mod cursor;
#[allow(dead_code)] // what the kernel needs to map the ring
#[rustfmt::skip]
#[path = "../../../io_uring_rs/zcrx/refill_ring.rs"]
mod ring;

/// The buffers that entries name, in place of giving them back.
mod returns {
    use super::cursor::Place;
    use crate::net::netmem::PooledIov;
    use std::marker::PhantomData;

    pub(super) struct ReturnBatch<'a, F: FnMut(PooledIov<'a>)> {
        pub(super) buffers: Vec<u64>,
        pooled: PhantomData<(&'a (), F)>,
    }

    impl<'a, F: FnMut(PooledIov<'a>)> ReturnBatch<'a, F> {
        pub(super) fn new(_pooled: F) -> Self {
            Self {
                buffers: Vec::new(),
                pooled: PhantomData,
            }
        }

        pub(super) fn push(&mut self, place: Place) {
            self.buffers.push(place.buffer);
        }

        pub(super) fn finish(&mut self) {}
    }
}

use crate::check::{Order::*, Source, check};
use crate::io_uring::{
    region::Region,
    zcrx::{RQ_HEAD, RQ_TAIL},
};
use cursor::Cursor;
use loom::{sync::Arc, thread};
use returns::ReturnBatch;
use ring::RefillRing;

const RING: Source = Source("io_uring_rs/zcrx/refill_ring.rs");
const SHIFT: u32 = 12;
/// The number of entries of the ring, and of those that user space writes.
const ENTRIES: u32 = 2;
const WRITTEN: u32 = 3;

/// The kernel reads each entry once, after user space has written it and before user
/// space writes to it again.
#[test]
fn entries_are_read_after_they_are_written_and_before_they_are_reused() {
    fn model() {
        let ring = Arc::new(RefillRing::new(Region::new(ENTRIES), ENTRIES));
        let user = ring.clone();
        let user = thread::spawn(move || {
            let region = user.region();
            for entry in 0..WRITTEN {
                while entry - region.load_acquire_u32(RQ_HEAD) == ENTRIES {
                    thread::yield_now();
                }
                region.write(entry % ENTRIES, u64::from(entry) << SHIFT);
                region.store_release_u32(RQ_TAIL, entry + 1);
            }
        });
        let mut cursor = Cursor::new(ENTRIES);
        let mut returns = ReturnBatch::new(drop);
        while cursor.head() != WRITTEN {
            if ring.drain(&mut cursor, ENTRIES, SHIFT, &mut returns) == 0 {
                thread::yield_now();
            }
        }
        user.join().unwrap();
        assert_eq!(returns.buffers, [0, 1, 2]);
    }

    check(
        model,
        [
            RING.weaken(
                "fn drain<",
                "let tail = self.region.load_acquire_u32(RQ_TAIL);",
                Relaxed,
            ),
            RING.weaken(
                "fn drain<",
                "self.region.store_release_u32(RQ_HEAD, cursor.head());",
                Relaxed,
            ),
        ],
    );
}
