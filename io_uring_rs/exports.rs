// SPDX-License-Identifier: GPL-2.0

//! The functions that C calls.
//!
//! Each takes raw pointers in, makes safe types of them, makes one call, and gives an errno out.

use crate::filter::{
    self,
    Filters, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_result,
    ffi::c_int,
    io_uring::{
        request::Request,
        restriction::{
            FilterSet,
            Restriction, //
        },
    },
    prelude::*,
    uaccess::UserPtr, //
};

/// Decides whether `req` may run: zero, or [`EACCES`] if a filter denies it.
///
/// # Safety
///
/// - `filters` must be the ring's cached `bpf_filters`, not null.
/// - `req` must be a request of that ring whose opcode was validated and whose `prep` succeeded.
/// - The ring's `uring_lock` must be held.
#[export]
pub unsafe extern "C" fn __io_uring_run_bpf_filters(
    filters: *mut *mut bindings::io_bpf_filter,
    req: *mut bindings::io_kiocb,
) -> c_int {
    // SAFETY: The cache stands for the set that the ring holds a reference to, and which is only
    // exchanged, together with the cache, under the lock that the caller holds.
    let filters: &Filters = unsafe { FilterSet::contents_from_raw(filters) };
    // SAFETY: The caller guarantees a prepared request, which it alone works on.
    let request = unsafe { Request::from_raw(req) };

    from_result(|| filter::run(filters, request).map(|()| 0))
}

/// Registers a filter with the ring or task that `res` belongs to.
///
/// # Safety
///
/// `res` must be valid and not null; the ring's `uring_lock` must be held, or `res` belong to the
/// current task.
#[export]
pub unsafe extern "C" fn io_register_bpf_filter(
    res: *mut bindings::io_restriction,
    arg: *mut bindings::io_uring_bpf,
) -> c_int {
    from_result(|| {
        let res = NonNull::new(res).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that `res` is valid and that nobody else accesses its
        // filters. All of these are set by functions of this file.
        let mut owner = unsafe { Restriction::from_raw(res) };

        filter::register(&mut owner, UserPtr::from_ptr(arg.cast())).map(|()| 0)
    })
}

/// Drops the filters of a ring or task that goes away. Possible in any context.
///
/// # Safety
///
/// `res` must be valid, not null, and nobody else may access it.
#[export]
pub unsafe extern "C" fn io_put_bpf_filters(res: *mut bindings::io_restriction) {
    if let Some(res) = NonNull::new(res) {
        // SAFETY: The caller guarantees that `res` is valid and that nobody else accesses it. All
        // filters are set by functions of this file.
        let mut owner = unsafe { Restriction::<Filters>::from_raw(res) };

        drop(owner.take_filters());
    }
}

/// Lets `dst`, a ring or task that is being made, share the filters of `src`.
///
/// # Safety
///
/// `dst` and `src` must be valid and not the same; `dst` must have no filters and nobody else may
/// access it; `src` must belong to the current task.
#[export]
pub unsafe extern "C" fn io_bpf_filter_clone(
    dst: *mut bindings::io_restriction,
    src: *mut bindings::io_restriction,
) {
    if let (Some(dst), Some(src)) = (NonNull::new(dst), NonNull::new(src)) {
        // SAFETY: The caller guarantees that both are valid and that nobody else accesses their
        // filters. All filters are set by functions of this file.
        let (mut dst, src) = unsafe {
            (
                Restriction::<Filters>::from_raw(dst),
                Restriction::<Filters>::from_raw(src),
            )
        };

        if let Some(set) = src.filters() {
            dst.set_filters(set.into());
        }
    }
}
