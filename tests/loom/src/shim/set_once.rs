// SPDX-License-Identifier: GPL-2.0
//! `kernel::sync::SetOnce`, with the orderings that it has in Linux 7.3.

use super::atomic::{Acquire, Atomic, Relaxed, Release};
use loom::cell::UnsafeCell;

/// A value that is stored once.
pub struct SetOnce<T> {
    /// 0 without a value, 1 while it is stored, 2 with a value.
    state: Atomic<u32>,
    value: UnsafeCell<Option<T>>,
}

impl<T> SetOnce<T> {
    pub fn new() -> Self {
        Self {
            state: Atomic::new(0),
            value: UnsafeCell::new(None),
        }
    }

    pub fn as_ref(&self) -> Option<&T> {
        if self.state.load(Acquire) != 2 {
            return None;
        }
        // Loom has checked that the value was stored before. It is not stored again.
        self.value.with(|value| unsafe { (*value).as_ref() })
    }

    pub fn populate(&self, value: T) -> bool {
        let is_first = self.state.cmpxchg(0, 1, Relaxed).is_ok();
        if is_first {
            self.value.with_mut(|place| unsafe { *place = Some(value) });
            self.state.store(2, Release);
        }
        is_first
    }
}
