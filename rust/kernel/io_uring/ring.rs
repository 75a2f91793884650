// SPDX-License-Identifier: GPL-2.0

//! The restrictions of rings.
//!
//! C header: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h)

#[cfg(CONFIG_IO_URING_BPF_RUST)]
use super::denial::DeniedRequest;
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

/// A handle to a ring whose `uring_lock` is held, or to which nobody else has access.
///
/// Wraps a pointer to the kernel's `struct io_ring_ctx`.
///
/// # Invariants
///
/// For the duration of `'a`:
///
/// - The ring is valid.
/// - Nobody else writes to its flags or accesses its restrictions.
/// - Its restrictions have no filters, or a set of filters of type `T`.
pub struct Ring<'a, T: Contents> {
    ctx: NonNull<bindings::io_ring_ctx>,
    restrictions: PhantomData<&'a mut Restriction<T>>,
}

impl<T: Contents> Ring<'_, T> {
    /// Creates a handle from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// - While the handle exists, `ctx` must be valid, and either its `uring_lock` must be held or
    ///   nobody else may have access to it. There must be no other handle.
    /// - Filters of rings must only ever be set through the types of this module's parent, always
    ///   with the same `T`.
    pub unsafe fn from_raw(ctx: NonNull<bindings::io_ring_ctx>) -> Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        Self {
            ctx,
            restrictions: PhantomData,
        }
    }

    /// Returns whether the ring was set up with `IORING_SETUP_R_DISABLED` and has not been enabled
    /// yet.
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

    /// Traces a request of the ring that is denied.
    #[cfg(CONFIG_IO_URING_BPF_RUST)]
    pub fn trace_denied(&self, denied: &DeniedRequest) {
        denied.trace(self.ctx.as_ptr());
    }

    /// Returns the ring's restrictions, for changing them.
    fn restriction_mut(&mut self) -> &mut Restriction<T> {
        // SAFETY: By the type invariants, the ring is valid, and nobody else accesses its
        // restrictions, of which `Restriction` is a transparent wrapper. `self` is borrowed
        // mutably, so that no reference to them exists. The only caller that drops their filters is
        // `inherit`, which updates `bpf_filters` before it returns.
        unsafe { &mut *(&raw mut (*self.ctx.as_ptr()).restrictions).cast() }
    }

    /// Sets flags of `io_ring_ctx::int_flags`.
    fn set_flags(&mut self, flags: u32) {
        // SAFETY: By the type invariants, the ring is valid and nobody else writes to its flags.
        unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.int_flags |= flags };
    }

    /// Replaces the rules of the ring, and sets the flags by which C enforces them.
    pub fn restrict(&mut self, rules: &Rules) {
        self.restriction_mut().set_rules(rules);
        if rules.sqes_restricted {
            self.set_flags(bindings::IO_RING_F_OP_RESTRICTED);
        }
        if rules.registers_restricted {
            self.set_flags(bindings::IO_RING_F_REG_RESTRICTED);
        }
    }

    /// Gives the ring, which has no restrictions yet, those of the task that creates it.
    ///
    /// Rules on registrations that come from a task apply even while the ring is disabled. C keeps
    /// a copy of the pointer to the filters. It is updated here, so that it never points to a set
    /// that was dropped.
    pub fn inherit(&mut self, from: &Restriction<T>) {
        let rules = from.rules();

        *self.restriction_mut() = from.clone();
        self.restrict(&rules);
        if rules.registers_restricted {
            self.set_flags(bindings::IO_RING_F_RESTRICT_INHERITED);
        }

        let filters = self.restriction().raw_filters();
        // SAFETY: By the type invariants, the ring is valid, and nobody else reads this copy of the
        // pointer without the lock.
        unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.bpf_filters = filters };
    }
}
