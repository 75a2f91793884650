// SPDX-License-Identifier: GPL-2.0
//! `kernel::io_uring::region`: the memory of a refill queue. The names of its methods
//! say which orderings they have.

use super::atomic::{Acquire, Atomic, Release};
use loom::cell::UnsafeCell;

pub const RQ_HEAD: usize = 0;
pub const RQ_TAIL: usize = 4;
pub const RQ_ENTRIES: usize = 64;
pub const RQE_SIZE: usize = 16;
pub const RQE_OFF: usize = 0;
pub const RQE_PAD: usize = 12;

pub struct Region {
    head: Atomic<u32>,
    tail: Atomic<u32>,
    /// The offsets in the entries. Loom notices if one is read while it is written.
    entries: Vec<UnsafeCell<u64>>,
}

impl Region {
    pub fn new(entries: u32) -> Self {
        Self {
            head: Atomic::new(0),
            tail: Atomic::new(0),
            entries: (0..entries).map(|_| UnsafeCell::new(u64::MAX)).collect(),
        }
    }

    fn word(&self, offset: usize) -> &Atomic<u32> {
        match offset {
            RQ_HEAD => &self.head,
            RQ_TAIL => &self.tail,
            _ => panic!("there is no word at {offset}"),
        }
    }

    #[track_caller]
    pub fn load_acquire_u32(&self, offset: usize) -> u32 {
        self.word(offset).load(Acquire)
    }

    #[track_caller]
    pub fn store_release_u32(&self, offset: usize, value: u32) {
        self.word(offset).store(value, Release);
    }

    pub fn entries<const SIZE: usize>(&self, _offset: usize, count: u32) -> Option<Entries<'_>> {
        assert_eq!((SIZE, count as usize), (RQE_SIZE, self.entries.len()));
        Some(Entries(&self.entries))
    }

    /// Writes an entry, as user space does.
    pub fn write(&self, entry: u32, offset: u64) {
        self.entries[entry as usize].with_mut(|place| unsafe { *place = offset });
    }
}

pub struct Entries<'a>(&'a [UnsafeCell<u64>]);

impl Entries<'_> {
    pub fn read_u64<const AT: usize>(&self, entry: u32) -> u64 {
        self.0[entry as usize].with(|offset| unsafe { *offset })
    }

    /// Reads the padding, which is zero.
    pub fn read_u32<const AT: usize>(&self, _entry: u32) -> u32 {
        0
    }
}
