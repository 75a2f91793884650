// SPDX-License-Identifier: GPL-2.0
//! `kernel::sync::atomic` and `kernel::sync::barrier`.
//!
//! The kernel's memory model is not that of Rust. A fully ordered operation acquires,
//! releases, and is followed by a full barrier. There is none before it: it would add
//! nothing, as a read-modify-write in loom reads the latest value, and would hide
//! orders of the threads, as loom does not let others run between a barrier and what
//! follows. A barrier for writes is a release fence, which also orders earlier loads,
//! as the kernel's does not.

use crate::check::{self, Order};
use loom::sync::atomic::{AtomicI64, Ordering as Loom, fence};
use std::{marker::PhantomData, panic::Location};

/// The orderings of the kernel crate, which are types there.
pub trait Ordering {
    const ORDER: Order;
}

macro_rules! orderings {
    ($($name:ident)*) => {$(
        pub struct $name;

        impl Ordering for $name {
            const ORDER: Order = Order::$name;
        }
    )*};
}

orderings!(Relaxed Acquire Release Full);

/// A type that an [`Atomic`] may hold, which fits in 64 bits.
pub trait Word: Copy + PartialEq {
    fn to_bits(self) -> i64;
    fn from_bits(bits: i64) -> Self;
}

macro_rules! words {
    ($($name:ty)*) => {$(
        impl Word for $name {
            fn to_bits(self) -> i64 {
                self as i64
            }

            fn from_bits(bits: i64) -> Self {
                bits as Self
            }
        }
    )*};
}

words!(i32 u32 u64 isize);

/// An atomic variable. Additions do not wrap around, as no model comes near the bounds.
#[derive(Debug)]
pub struct Atomic<T> {
    bits: AtomicI64,
    holds: PhantomData<T>,
}

impl<T: Word> Atomic<T> {
    pub fn new(value: T) -> Self {
        Self {
            bits: AtomicI64::new(value.to_bits()),
            holds: PhantomData,
        }
    }

    #[track_caller]
    pub fn load<O: Ordering>(&self, _: O) -> T {
        T::from_bits(
            self.bits
                .load(match check::order(O::ORDER, Location::caller()) {
                    Order::Acquire | Order::Full => Loom::Acquire,
                    _ => Loom::Relaxed,
                }),
        )
    }

    #[track_caller]
    pub fn store<O: Ordering>(&self, value: T, _: O) {
        self.bits.store(
            value.to_bits(),
            match check::order(O::ORDER, Location::caller()) {
                Order::Release | Order::Full => Loom::Release,
                _ => Loom::Relaxed,
            },
        );
    }

    #[track_caller]
    pub fn add(&self, value: T, _: Relaxed) {
        modify(Order::Relaxed, Location::caller(), |order| {
            self.bits.fetch_add(value.to_bits(), order)
        });
    }

    #[track_caller]
    pub fn fetch_add<O: Ordering>(&self, value: T, _: O) -> T {
        T::from_bits(modify(O::ORDER, Location::caller(), |order| {
            self.bits.fetch_add(value.to_bits(), order)
        }))
    }

    #[track_caller]
    pub fn fetch_sub<O: Ordering>(&self, value: T, _: O) -> T {
        T::from_bits(modify(O::ORDER, Location::caller(), |order| {
            self.bits.fetch_sub(value.to_bits(), order)
        }))
    }

    #[track_caller]
    pub fn xchg<O: Ordering>(&self, value: T, _: O) -> T {
        T::from_bits(modify(O::ORDER, Location::caller(), |order| {
            self.bits.swap(value.to_bits(), order)
        }))
    }

    /// Orders nothing if it fails, except that one that is fully ordered is followed by a
    /// barrier.
    #[track_caller]
    pub fn cmpxchg<O: Ordering>(&self, old: T, new: T, _: O) -> Result<T, T> {
        modify(O::ORDER, Location::caller(), |order| {
            self.bits
                .compare_exchange(old.to_bits(), new.to_bits(), order, Loom::Relaxed)
        })
        .map(T::from_bits)
        .map_err(T::from_bits)
    }
}

/// Runs a read-modify-write at `place`.
fn modify<R>(own: Order, place: &Location<'_>, operation: impl FnOnce(Loom) -> R) -> R {
    match check::order(own, place) {
        Order::Relaxed => operation(Loom::Relaxed),
        Order::Acquire => operation(Loom::Acquire),
        Order::Release => operation(Loom::Release),
        Order::Full => {
            let result = operation(Loom::AcqRel);
            fence(Loom::SeqCst);
            result
        }
    }
}

pub mod barrier {
    use super::{Full as FullOrdering, Loom, Order, check, fence};
    use std::panic::Location;

    pub struct Write;

    /// What the success of a decrement of a reference count orders, which is no barrier
    /// of its own in the kernel crate.
    pub struct Acquired;

    pub trait MemoryBarrier {
        const FENCE: Loom;
    }

    impl MemoryBarrier for Write {
        const FENCE: Loom = Loom::Release;
    }

    impl MemoryBarrier for Acquired {
        const FENCE: Loom = Loom::Acquire;
    }

    impl MemoryBarrier for FullOrdering {
        const FENCE: Loom = Loom::SeqCst;
    }

    /// Runs a barrier. One that is weakened does nothing.
    #[track_caller]
    pub fn smp_mb<B: MemoryBarrier>(_: B) {
        if check::order(Order::Full, Location::caller()) == Order::Full {
            fence(B::FENCE);
        }
    }
}
