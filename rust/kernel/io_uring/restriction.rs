// SPDX-License-Identifier: GPL-2.0

//! The restrictions of a ring or task: rules, and a set of filters.
//!
//! C header: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h)

use super::{
    filter_set::{
        Contents,
        FilterSet, //
    },
    rules::{
        OpSet,
        Rules, //
    },
};
use crate::{
    bindings,
    sync::aref::ARef, //
};
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// The restrictions of a ring or task: its rules, and its reference to a set of filters.
///
/// Wraps the kernel's `struct io_restriction`. Cloning takes a reference to the set and allocates
/// nothing. May be dropped in any context.
///
/// # Invariants
///
/// `bpf_filters` is null or a reference to a `FilterSet<T>`, which this structure owns.
#[repr(transparent)]
pub struct Restriction<T: Contents> {
    raw: bindings::io_restriction,
    filters: PhantomData<ARef<FilterSet<T>>>,
}

// SAFETY: The structure consists of plain data and a reference that can be sent.
unsafe impl<T: Contents> Send for Restriction<T> {}

// SAFETY: The structure consists of plain data and a reference that can be shared.
unsafe impl<T: Contents> Sync for Restriction<T> {}

impl<T: Contents> Restriction<T> {
    /// Creates restrictions from rules and filters. Allocates nothing.
    pub fn new(rules: &Rules, filters: Option<ARef<FilterSet<T>>>) -> Self {
        // INVARIANT: There are no filters yet.
        let mut this = Self {
            raw: pin_init::zeroed(),
            filters: PhantomData,
        };

        this.set_rules(rules);
        if let Some(filters) = filters {
            this.set_filters(filters);
        }
        this
    }

    /// Makes a reference from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// - For the duration of `'a`, `restriction` must be valid and unchanged.
    /// - Its `bpf_filters` must be null, or have been set through this type with the same `T`.
    pub unsafe fn from_raw<'a>(restriction: NonNull<bindings::io_restriction>) -> &'a Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        // SAFETY: The caller guarantees that the pointer is valid, and `Self` is a transparent
        // wrapper.
        unsafe { restriction.cast().as_ref() }
    }

    /// Makes a mutable reference from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// - For the duration of `'a`, `restriction` must be valid, and nobody else may access it:
    ///   either the ring's `uring_lock` is held, or the ring is being created or torn down.
    /// - Its `bpf_filters` must be null, or have been set through this type with the same `T`.
    /// - A ring also has a copy of the set's `filters`, `io_ring_ctx::bpf_filters`. If
    ///   `restriction` belongs to a ring, that copy must be updated once `'a` is over, and before
    ///   anybody else can use it, that is, before `uring_lock` is released or the ring is
    ///   published: the set that the copy points into may have been dropped through the reference.
    ///   For a ring that runs no more requests, this is not necessary.
    pub unsafe fn from_raw_mut<'a>(restriction: NonNull<bindings::io_restriction>) -> &'a mut Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        // SAFETY: The caller guarantees that the pointer is valid, and `Self` is a transparent
        // wrapper.
        unsafe { restriction.cast().as_mut() }
    }

    /// Returns the rules.
    pub fn rules(&self) -> Rules {
        let raw = &self.raw;

        Rules {
            registers_restricted: raw.reg_registered,
            register_ops: OpSet(raw.register_op),
            sqes_restricted: raw.op_registered,
            sqe_ops: OpSet(raw.sqe_op),
            sqe_flags_allowed: raw.sqe_flags_allowed,
            sqe_flags_required: raw.sqe_flags_required,
        }
    }

    /// Replaces the rules.
    pub fn set_rules(&mut self, rules: &Rules) {
        let raw = &mut self.raw;

        raw.reg_registered = rules.registers_restricted;
        raw.register_op = rules.register_ops.0;
        raw.op_registered = rules.sqes_restricted;
        raw.sqe_op = rules.sqe_ops.0;
        raw.sqe_flags_allowed = rules.sqe_flags_allowed;
        raw.sqe_flags_required = rules.sqe_flags_required;
    }

    /// Returns the set of filters, if there is one.
    pub fn filters(&self) -> Option<&FilterSet<T>> {
        // SAFETY: By the type invariants, the pointer is null or a reference, which is not dropped
        // while `self` is borrowed.
        unsafe { self.raw.bpf_filters.cast::<FilterSet<T>>().as_ref() }
    }

    /// Removes the set of filters and returns it.
    ///
    /// C's copy of the pointer dangles once the result is dropped: see [`Self::set_filters`].
    pub fn take_filters(&mut self) -> Option<ARef<FilterSet<T>>> {
        // INVARIANT: `bpf_filters` becomes null.
        let set = core::mem::replace(&mut self.raw.bpf_filters, core::ptr::null_mut());

        // SAFETY: By the type invariants, a pointer that is not null was a reference to a
        // `FilterSet<T>`. It was removed from the structure, so that `ARef` owns it now.
        NonNull::new(set).map(|set| unsafe { ARef::from_raw(set.cast()) })
    }

    /// Replaces the set of filters, if any, and drops the old one. May sleep, unless there is none.
    ///
    /// C's copy of the old set's pointer becomes invalid. The caller of [`Self::from_raw_mut`] that
    /// created this reference has promised to update the copy. [`Ring`](super::ring::Ring) does so
    /// itself.
    pub fn set_filters(&mut self, set: ARef<FilterSet<T>>) {
        let old = self.take_filters();

        // INVARIANT: The field becomes a reference to a `FilterSet<T>`, which begins with a `struct
        // io_bpf_filters`.
        self.raw.bpf_filters = ARef::into_raw(set).as_ptr().cast();
        if let Some(old) = old {
            FilterSet::put(old);
        }
    }

    /// Returns the pointer that C copies to `io_ring_ctx::bpf_filters`: null if there are no
    /// filters.
    ///
    /// The copy is valid until the set is replaced, or the last reference to it is dropped.
    pub(super) fn raw_filters(&self) -> *mut *mut bindings::io_bpf_filter {
        let shared = self.raw.bpf_filters;

        if shared.is_null() {
            core::ptr::null_mut()
        } else {
            // SAFETY: By the type invariants, the pointer is valid.
            unsafe { (*shared).filters }
        }
    }
}

impl<T: Contents> Clone for Restriction<T> {
    fn clone(&self) -> Self {
        Self::new(&self.rules(), self.filters().map(ARef::from))
    }
}

impl<T: Contents> Drop for Restriction<T> {
    fn drop(&mut self) {
        drop(self.take_filters());
    }
}
