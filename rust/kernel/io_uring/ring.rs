// SPDX-License-Identifier: GPL-2.0

//! Rings, as far as their restrictions go.
//!
//! C header: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h)

use super::{
    filter_set::Contents,
    restriction::Restriction,
    rules::Rules, //
};
use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A handle to a ring whose `uring_lock` is held, or which nobody else knows of.
///
/// Wraps a pointer to the kernel's `struct io_ring_ctx`.
///
/// # Invariants
///
/// For the duration of `'a`, the ring is valid, nobody else writes to its flags or accesses its
/// restrictions, and those hold a set of filters of type `T` or none.
pub struct Ring<'a, T: Contents> {
    ctx: NonNull<bindings::io_ring_ctx>,
    restrictions: PhantomData<&'a mut Restriction<T>>,
}

impl<T: Contents> Ring<'_, T> {
    /// Makes a handle from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// - While the handle exists, `ctx` must be valid, and its `uring_lock` held, or nobody else
    ///   have access to it; there must be no other handle.
    /// - All filters of rings must be set through types of this module's parent with the same `T`.
    pub unsafe fn from_raw(ctx: NonNull<bindings::io_ring_ctx>) -> Self {
        // INVARIANT: The caller guarantees it.
        Self {
            ctx,
            restrictions: PhantomData,
        }
    }

    /// Returns whether the ring was set up with `IORING_SETUP_R_DISABLED` and not enabled yet.
    pub fn is_disabled(&self) -> bool {
        // SAFETY: By the type invariants, the ring is valid, and nobody else writes to its flags.
        let flags = unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.flags };

        flags & bindings::IORING_SETUP_R_DISABLED != 0
    }

    /// Returns the ring's restrictions.
    pub fn restriction(&self) -> &Restriction<T> {
        // SAFETY: By the type invariants, the ring is valid, and nobody else accesses its
        // restrictions, of which `Restriction` is a transparent wrapper.
        unsafe { &*(&raw const (*self.ctx.as_ptr()).restrictions).cast() }
    }

    /// Returns the ring's restrictions, to be changed.
    fn restriction_mut(&mut self) -> &mut Restriction<T> {
        // SAFETY: By the type invariants, the ring is valid, and nobody else accesses its
        // restrictions, of which `Restriction` is a transparent wrapper. `self` is borrowed
        // mutably, so that no reference to them exists. The one caller that drops their filters,
        // `inherit`, renews `bpf_filters` before it returns.
        unsafe { &mut *(&raw mut (*self.ctx.as_ptr()).restrictions).cast() }
    }

    /// Sets flags of `io_ring_ctx::int_flags`.
    fn set_flags(&mut self, flags: u32) {
        // SAFETY: By the type invariants, the ring is valid and the flags ours to write to.
        unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.int_flags |= flags };
    }

    /// Puts rules in the place of the present ones, and has C obey them.
    pub fn restrict(&mut self, rules: &Rules) {
        self.restriction_mut().set_rules(rules);
        if rules.sqes_restricted {
            self.set_flags(bindings::IO_RING_F_OP_RESTRICTED);
        }
        if rules.registers_restricted {
            self.set_flags(bindings::IO_RING_F_REG_RESTRICTED);
        }
    }

    /// Gives the ring, which has none yet, the restrictions of the task that makes it.
    ///
    /// Rules on registrations that come from a task hold also while the ring is disabled. The copy
    /// that C has of the filters is renewed, so that it never points into a set that was dropped.
    pub fn inherit(&mut self, from: &Restriction<T>) {
        let rules = from.rules();

        *self.restriction_mut() = from.clone();
        self.restrict(&rules);
        if rules.registers_restricted {
            self.set_flags(bindings::IO_RING_F_RESTRICT_INHERITED);
        }

        let filters = self.restriction().raw_filters();
        // SAFETY: By the type invariants, the ring is valid, and nobody else reads this copy of
        // the pointer but under the lock.
        unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.bpf_filters = filters };
    }
}
