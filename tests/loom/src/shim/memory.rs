// SPDX-License-Identifier: GPL-2.0
//! The kernel's allocations, which do not fail here, and `kernel::bitmap`.

use super::atomic::{Atomic, Relaxed};
use std::ops::Deref;

/// The error of an allocation that fails.
pub struct AllocError;

type Result<T = ()> = std::result::Result<T, AllocError>;

/// Flags of an allocation, which have no meaning here.
pub struct Flags;

pub const GFP_KERNEL_ACCOUNT: Flags = Flags;

pub struct KBox<T>(Box<T>);

impl<T> KBox<T> {
    pub fn new(value: T, _: Flags) -> Result<Self> {
        Ok(Self(Box::new(value)))
    }
}

impl<T> Deref for KBox<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// `kernel::sync::Arc`.
pub struct Arc<T>(std::sync::Arc<T>);

impl<T> Arc<T> {
    pub fn new(value: T, _: Flags) -> Result<Self> {
        Ok(Self(std::sync::Arc::new(value)))
    }
}

impl<T> Clone for Arc<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Deref for Arc<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

pub struct KVVec<T>(Vec<T>);

impl<T> KVVec<T> {
    pub fn with_capacity(capacity: usize, _: Flags) -> Result<Self> {
        Ok(Self(Vec::with_capacity(capacity)))
    }

    pub fn push(&mut self, value: T, _: Flags) -> Result {
        self.0.push(value);
        Ok(())
    }

    pub fn push_within_capacity(&mut self, value: T) -> std::result::Result<(), T> {
        if self.0.len() == self.0.capacity() {
            return Err(value);
        }
        self.0.push(value);
        Ok(())
    }

    pub fn truncate(&mut self, len: usize) {
        self.0.truncate(len);
    }
}

impl<T> Deref for KVVec<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.0
    }
}

/// `kernel::bitmap::BitmapVec`, which can be read while bits are changed. A change of a
/// bit does not order other accesses.
pub struct BitmapVec(Vec<Atomic<u32>>);

impl BitmapVec {
    pub fn new(count: usize, _: Flags) -> Result<Self> {
        Ok(Self((0..count).map(|_| Atomic::new(0)).collect()))
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn set_bit_atomic(&self, index: usize) {
        self.0[index].xchg(1, Relaxed);
    }

    pub fn clear_bit_atomic(&self, index: usize) {
        self.0[index].xchg(0, Relaxed);
    }

    pub fn next_bit(&self, start: usize) -> Option<usize> {
        (start..self.len()).find(|&index| self.0[index].load(Relaxed) != 0)
    }
}
