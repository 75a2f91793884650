// SPDX-License-Identifier: GPL-2.0

//! The functions of filters of system calls that C calls.
//!
//! The neighbour `exports` of this module sets all filters of rings and tasks. SAFETY comments rely
//! on this as "`exports` sets all filters".

use crate::filter::{
    self,
    Filters, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_result,
    ffi::{
        c_int,
        c_uint, //
    },
    io_uring::{
        call::{
            Call,
            SetupArguments, //
        },
        request::FilterContext,
        restriction::Restriction,
        ring::Ring,
        task::TaskRestriction, //
    },
    prelude::*, //
};

/// Returns zero if `io_uring_register()` may be called with `opcode` and `nr_args`, and [`EACCES`]
/// if a filter denies that. The filters are those of `ctx`, or of the current task if it is null.
///
/// # Safety
///
/// - If `ctx` is not null, it must be a valid ring whose `uring_lock` is held.
/// - Only C may call this, in a system call, so that no other [`TaskRestriction`] exists for the
///   current task.
#[export]
pub unsafe extern "C" fn io_filter_register(
    ctx: *mut bindings::io_ring_ctx,
    opcode: c_uint,
    nr_args: c_uint,
) -> c_int {
    from_result(|| {
        let call = Call::register(opcode).ok_or(EINVAL)?;
        let context = || FilterContext::for_register(call, nr_args);

        if let Some(ctx) = NonNull::new(ctx) {
            // SAFETY: The caller guarantees that the ring is valid and its lock held, and this is
            // the only handle. `exports` sets all filters.
            let ring = unsafe { Ring::<Filters>::from_raw(ctx) };

            filter::check_call(ring.restriction().filters(), call, context)?;
        } else {
            // SAFETY: The caller guarantees that there is no other handle. `exports` sets all
            // restrictions of tasks.
            let task = unsafe { TaskRestriction::<Filters>::current() };

            filter::check_call(task.get().and_then(Restriction::filters), call, context)?;
        }
        Ok(0)
    })
}

/// Returns zero if the current task may set up a ring of `entries` entries with `params`, and
/// [`EACCES`] if a filter denies that.
///
/// # Safety
///
/// - `params` must be valid, and nobody else may write to it.
/// - Only C may call this, in a system call, so that no other [`TaskRestriction`] exists for the
///   current task.
#[export]
pub unsafe extern "C" fn io_filter_setup(
    params: *const bindings::io_uring_params,
    entries: u32,
) -> c_int {
    // SAFETY: The caller guarantees that `params` is valid, and that nobody else writes to it.
    let params = unsafe { &*params };
    // SAFETY: The caller guarantees that there is no other handle. `exports` sets all restrictions
    // of tasks.
    let task = unsafe { TaskRestriction::<Filters>::current() };
    let context = || {
        FilterContext::for_setup(&SetupArguments {
            flags: params.flags,
            entries,
            cq_entries: params.cq_entries,
            sq_thread_idle: params.sq_thread_idle,
            sq_thread_cpu: params.sq_thread_cpu,
        })
    };

    from_result(|| {
        filter::check_call(
            task.get().and_then(Restriction::filters),
            Call::SETUP,
            context,
        )
        .map(|()| 0)
    })
}
