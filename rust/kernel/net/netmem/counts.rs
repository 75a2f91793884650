// SPDX-License-Identifier: GPL-2.0

//! The two counts of a buffer: its references, and those of them that are grants.
//!
//! All atomic operations on them are here.
//!
//! Uses nothing but atomics.

use crate::{
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        barrier, //
    },
    warn_on_once, //
};

/// The number of references that marks a buffer as free. Buffers that are not free never have it:
/// those in a pool may have zero references for a moment.
pub(super) const FREE: isize = isize::MIN;

/// The number of grants of a buffer at which counting stops, on machines where references have 32
/// bits. On those with 64 bits, grants cannot add up to [`FREE`].
///
/// A grant compares before it adds, so that each CPU may exceed this number by one.
pub(super) const GRANTED_MAX: i32 = 1 << 30;

/// The number of references to a buffer, which is [`FREE`] if the buffer is free.
///
/// C changes this number as well, while the buffer is in a pool, and by fully ordered operations.
#[derive(Clone, Copy)]
pub(super) struct References<'a>(pub(super) &'a Atomic<isize>);

impl References<'_> {
    /// Takes the buffer if it is free. Returns whether it was free. The caller then owns the only
    /// reference.
    #[inline]
    pub(super) fn take(self) -> bool {
        // Acquire pairs with the release in `set_free` and `set_free_by_pool`: all that others did
        // with the buffer is over.
        self.0.cmpxchg(FREE, 1, Acquire).is_ok()
    }

    /// Drops `count` references, which the caller must own. Returns whether nobody has a reference
    /// any more. The caller must then call [`Self::set_free`] or [`Self::set_pooled`].
    #[inline]
    pub(super) fn remove(self, count: i32) -> bool {
        let count = count as isize;

        // Most often, nobody else has a reference. Then nobody else can change the number, so that
        // no atomic read-modify-write is needed. Acquire pairs with the operation by which the last
        // of the others dropped its reference: all that it did with the buffer is over.
        self.0.load(Acquire) == count || {
            let before = self.0.fetch_sub(count, Full);

            // As C does, warn if more references were dropped than there were.
            warn_on_once!(before < count);
            before == count
        }
    }

    /// Marks a buffer as free that is in no pool, and to which nobody has a reference.
    #[inline]
    pub(super) fn set_free(self) {
        self.0.store(FREE, Release);
    }

    /// Marks a buffer as free that its pool is releasing, and that was taken out of the pool.
    #[inline]
    pub(super) fn set_free_by_pool(self) {
        self.0.store(FREE, Release);
        // Next, the pool counts the buffer as returned, by a relaxed operation. When all buffers
        // are back, the pool drops its reference to the provider, perhaps on another CPU. The
        // barrier makes sure that the CPU which then drops the buffers sees the store above, and
        // the one that took the buffer out of the pool.
        barrier::smp_mb(barrier::Write);
    }

    /// Leaves one reference, that of the pool, to a buffer in a pool to which nobody else has a
    /// reference. A buffer that is given back to its pool has one.
    #[inline]
    pub(super) fn set_pooled(self) {
        self.0.store(1, Relaxed);
    }

    /// Returns whether the buffer is neither free nor only granted.
    #[inline]
    pub(super) fn exceed(self, grants: Grants<'_>) -> bool {
        let left = match grants.0.load(Relaxed) {
            0 => FREE,
            granted => granted as isize,
        };

        self.0.load(Acquire) != left
    }
}

/// The number of grants of a buffer: references that user space has.
#[derive(Clone, Copy)]
pub(super) struct Grants<'a>(pub(super) &'a Atomic<i32>);

impl Grants<'_> {
    /// Turns the caller's reference into a grant.
    #[inline]
    pub(super) fn add(self) {
        // Release: user space may give back a grant as soon as it is counted, and perhaps that CPU
        // then finds that nobody else has a reference. It must see the number of references that
        // includes the grant.
        self.0.fetch_add(1, Release);
    }

    /// Adds a grant and its reference, unless there are too many, see [`GRANTED_MAX`]. The caller
    /// must own another reference.
    #[inline]
    pub(super) fn add_with(self, references: References<'_>) {
        if isize::BITS < 64 && self.0.load(Relaxed) >= GRANTED_MAX {
            return;
        }
        references.0.add(1, Relaxed);
        // The reference comes first: user space may give back a grant as soon as it is counted.
        self.add();
    }

    /// Takes back up to `count` grants. Returns the number of grants taken, which are the caller's
    /// references then, or [`None`] if there were none.
    #[inline]
    pub(super) fn take_back(self, count: u32) -> Option<i32> {
        let mut old = self.0.load(Relaxed);

        // A flush and a page pool may take back at the same time: together, they must not take back
        // more than user space was granted.
        while old > 0 {
            // At most `old`, so that the cast loses nothing.
            let taken = old.unsigned_abs().min(count) as i32;

            match self.0.cmpxchg(old, old.wrapping_sub(taken), Full) {
                Ok(_) => return Some(taken),
                Err(now) => old = now,
            }
        }
        None
    }

    /// Takes back all grants. Returns their number, as [`Self::take_back`] does.
    #[inline]
    pub(super) fn take_back_all(self) -> Option<i32> {
        // Most buffers have no grants: spare them the atomic read-modify-write.
        if self.0.load(Relaxed) == 0 {
            return None;
        }
        match self.0.xchg(0, Full) {
            0 => None,
            count => Some(count),
        }
    }
}
