// SPDX-License-Identifier: GPL-2.0
//! The areas of a queue (`io_uring_rs/zcrx/table.rs`, `free_list.rs`): areas are
//! published and looked up without a lock, and so are those that have free buffers.
//!
//! `SetOnce`, by which the table publishes its entries, is a part of the kernel crate
//! that this project does not change. It is modelled by hand.

// These are formatted as the kernel is.
#[allow(dead_code)]
#[rustfmt::skip]
#[path = "../../../io_uring_rs/zcrx/free_list.rs"]
mod free_list;
#[allow(dead_code)]
#[rustfmt::skip]
#[path = "../../../io_uring_rs/zcrx/table.rs"]
mod table;

/// What `free_list.rs` uses of its neighbour.
mod buffers {
    pub(super) fn ranges(count: u32) -> impl Iterator<Item = std::ops::Range<u32>> {
        std::iter::once(0..count)
    }
}

use crate::check::{Order::*, Source, check};
use crate::sync::atomic::{Acquire as Acq, Atomic, Release as Rel};
use free_list::{FreeAreas, FreeList};
use loom::{
    cell::UnsafeCell,
    sync::{Arc, Mutex},
    thread,
};
use table::Table;

const TABLE: Source = Source("io_uring_rs/zcrx/table.rs");
const SET_ONCE: Source = Source("tests/loom/src/shim/set_once.rs");

struct Area {
    /// The token of the area, which is set right before the area is published.
    token: UnsafeCell<u32>,
}

fn token(area: &Area) -> u32 {
    area.token.with(|token| unsafe { *token })
}

/// A CPU that finds an area by its id sees all of it.
#[test]
fn area_that_is_found_is_complete() {
    fn model() {
        let areas = Arc::new(Table::new());
        let finder = areas.clone();
        let finder = thread::spawn(move || {
            if let Some(area) = finder.get(0) {
                assert_eq!(token(area), 7);
            }
        });
        let (id, entry) = areas.reserve().unwrap();
        let area = Area {
            token: UnsafeCell::new(0),
        };
        area.token.with_mut(|token| unsafe { *token = 7 });
        entry.populate(area);
        assert_eq!(id, 0);
        finder.join().unwrap();
        assert!(areas.get(0).is_some());
    }

    check(
        model,
        [
            SET_ONCE.weaken("fn populate", "self.state.store(2, Release);", Relaxed),
            SET_ONCE.weaken("fn as_ref", "if self.state.load(Acquire) != 2 {", Relaxed),
        ],
    );
}

/// A CPU that sees that an id is in use finds the areas that were published before the
/// id was reserved.
#[test]
fn area_is_found_once_a_later_id_is_in_use() {
    fn model() {
        let areas = Arc::new(Table::new());
        let finder = areas.clone();
        let finder = thread::spawn(move || {
            if finder.len() == 2 {
                assert!(finder.get(0).is_some(), "an area is missed");
            }
        });
        areas.reserve().unwrap().1.populate(1);
        areas.reserve().unwrap();
        finder.join().unwrap();
    }

    check(
        model,
        [
            TABLE.weaken(
                "fn reserve",
                "self.len.store(id.wrapping_add(1), Release);",
                Relaxed,
            ),
            TABLE.weaken("fn len", "self.len.load(Acquire)", Relaxed),
        ],
    );
}

/// A CPU that knows that a buffer was freed finds its area, although another area gets
/// its first free buffer and loses its last one at the same time.
#[test]
fn area_with_a_freed_buffer_is_found() {
    fn model() {
        let areas = FreeAreas::new(2).unwrap();
        let lists = [FreeList::new(1).unwrap(), FreeList::new(1).unwrap()];
        let lists = Arc::new(lists.map(Mutex::new));
        let lock = |number: usize| lists[number].lock().unwrap();
        for id in 0..2 {
            lock(id).note_in(areas.clone(), id as u32);
            assert_eq!(lock(id).take(&mut [0]), 1);
        }
        let is_freed = Arc::new(Atomic::new(0u32));

        let (freed, flag) = (lists.clone(), is_freed.clone());
        let freeing = thread::spawn(move || {
            freed[0].lock().unwrap().push(0);
            flag.store(1, Rel);
        });
        let busy = lists.clone();
        let busy = thread::spawn(move || {
            busy[1].lock().unwrap().push(0);
            assert_eq!(busy[1].lock().unwrap().take(&mut [0]), 1);
        });
        if is_freed.load(Acq) == 1 {
            assert!(areas.find(0).is_some());
        }
        freeing.join().unwrap();
        busy.join().unwrap();
        assert_eq!(areas.find(1), Some(0));
        assert_eq!(lock(0).take(&mut [0]), 1);
        assert_eq!(areas.find(0), None);
    }

    check(model, []);
}
