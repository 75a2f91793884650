// SPDX-License-Identifier: GPL-2.0

//! Restrictions: lists of the requests and registrations that a ring or a task may make.
//!
//! - `parse`: turns the list that user space passes into rules.
//!
//! The restrictions of a task are one object that never changes. Children share it, and a
//! registration replaces it by a new one. A ring gets a copy of the restrictions of the task that
//! creates it.
//!
//! C counterparts: `io_parse_restrictions()`, `io_register_restrictions()`,
//! `io_register_restrictions_task()`, `io_register_bpf_filter_task()` and
//! `io_uring_register_blind()` in `io_uring/register.c`, `__io_uring_fork()` in `io_uring/tctx.c`.

mod parse;

use self::parse::Parser;
use crate::filter::{
    self,
    Filters, //
};
use kernel::{
    cred::{
        current_ns_capable_noaudit,
        Capability, //
    },
    io_uring::{
        denial::{
            Denial,
            DeniedRequest, //
        },
        request::Request,
        restriction::Restriction,
        ring::Ring,
        rules::{
            Rules,
            REGISTER_LAST, //
        },
        task::TaskRestriction,
        uapi::{
            RestrictionEntry,
            TaskRestrictionHeader, //
        },
        Opcode, //
    },
    nospec,
    prelude::*,
    sync::Arc,
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

/// Reads the list of `count` restrictions that is at `list` in user space.
///
/// # Errors
///
/// - [`EINVAL`] if `list` is null, if there are too many entries, or if one is unknown.
/// - [`EFAULT`] if the list cannot be read as a whole, even if what can be read is invalid.
fn read_list(list: UserPtr, count: usize) -> Result<Rules> {
    if list.as_const_ptr().is_null() || count > parse::MAX_ENTRIES {
        return Err(EINVAL);
    }
    let mut reader = UserSlice::new(list, count * size_of::<RestrictionEntry>()).reader();
    let mut parser = Parser::new();

    for _ in 0..count {
        let entry: RestrictionEntry = reader.read()?;

        parser.entry(entry.kind(), entry.value());
    }
    parser.finish().ok_or(EINVAL)
}

/// Registers the list of `count` restrictions at `list` in user space with a ring, for
/// `IORING_REGISTER_RESTRICTIONS`. If this fails, the ring is left as it was.
///
/// # Errors
///
/// - [`EBADFD`] if the ring is enabled: restrictions are for a ring that was created disabled.
/// - [`EBUSY`] if the ring has such restrictions already, its own or those of the task that created
///   it.
/// - The errors of [`read_list`].
pub(crate) fn register_ring(ring: &mut Ring<'_, Filters>, list: UserPtr, count: u32) -> Result {
    if !ring.is_disabled() {
        return Err(EBADFD);
    }
    if ring.restriction().rules().restricts_anything() {
        return Err(EBUSY);
    }
    let rules = read_list(list, usize::try_from(count)?)?;

    ring.restrict(&rules);
    Ok(())
}

/// Checks whether the current task may restrict itself. As for seccomp, it must have `no_new_privs`
/// set or be privileged in its user namespace: restrictions are kept across exec, and could confuse
/// a program that gains privileges there.
///
/// # Errors
///
/// [`EACCES`] if the task may not.
fn check_may_restrict() -> Result {
    if current!().no_new_privs() || current_ns_capable_noaudit(Capability::SYS_ADMIN) {
        Ok(())
    } else {
        Err(EACCES)
    }
}

/// Registers the restrictions that `arg` describes, a `struct io_uring_task_restriction` in user
/// space, with the current task. The task must have no restrictions and no filters.
///
/// # Errors
///
/// - [`EPERM`] if the task has restrictions or filters.
/// - [`EACCES`] if the task may not restrict itself.
/// - [`EINVAL`] if `count` is not 1, or if a reserved field is not zero.
/// - [`EFAULT`] if `arg` cannot be read.
/// - [`ENOMEM`] if memory is short.
/// - The errors of [`read_list`].
pub(crate) fn register_task(
    task: &mut TaskRestriction<'_, Filters>,
    arg: UserPtr,
    count: u32,
) -> Result {
    if task.get().is_some() {
        return Err(EPERM);
    }
    check_may_restrict()?;
    if count != 1 {
        return Err(EINVAL);
    }
    let header_size = size_of::<TaskRestrictionHeader>();
    let header: TaskRestrictionHeader = UserSlice::new(arg, header_size).reader().read()?;
    if !header.reserved_is_zero() {
        return Err(EINVAL);
    }
    let rules = read_list(
        arg.wrapping_byte_add(header_size),
        usize::from(header.entries()),
    )?;

    task.set(Arc::new(
        Restriction::new(&rules, None),
        GFP_KERNEL_ACCOUNT,
    )?);
    Ok(())
}

/// Adds the filter that `arg` describes, a `struct io_uring_bpf` in user space, to those of the
/// current task.
///
/// # Errors
///
/// - [`EACCES`] if the task may not restrict itself.
/// - [`EINVAL`] if `count` is not 1.
/// - The errors of [`filter::register`].
pub(crate) fn register_task_filter(
    task: &mut TaskRestriction<'_, Filters>,
    arg: UserPtr,
    count: u32,
) -> Result {
    check_may_restrict()?;
    if count != 1 {
        return Err(EINVAL);
    }
    let old = task.get();
    let filters = filter::register(old.and_then(Restriction::filters), arg, filter::Owner::Task)?;
    let rules = old.map(Restriction::rules).unwrap_or_default();

    task.set(Arc::new(
        Restriction::new(&rules, Some(filters)),
        GFP_KERNEL_ACCOUNT,
    )?);
    Ok(())
}

/// Returns whether a ring with `restriction` refuses all requests with `opcode`, so that its probe
/// does not report the opcode as supported. An opcode is not refused if some of its requests may be
/// allowed.
pub(crate) fn refuses(restriction: &Restriction<Filters>, opcode: Opcode) -> bool {
    !restriction.rules().allows_opcode(opcode.index())
        || restriction
            .filters()
            .is_some_and(|filters| Filters::refuses(filters, opcode))
}

/// Returns the reason for which `rules` deny a request with `opcode`, which they must deny.
pub(crate) fn denial(rules: &Rules, opcode: Opcode) -> Denial {
    if rules.sqe_ops.contains(opcode.index()) {
        Denial::Flags
    } else {
        Denial::Opcode
    }
}

/// Checks whether the list of the current task allows `request`, which the task makes without a
/// ring.
///
/// # Errors
///
/// [`EACCES`] if it does not.
pub(crate) fn check_request(task: &TaskRestriction<'_, Filters>, request: &Request) -> Result {
    let rules = task.get().map(Restriction::rules).unwrap_or_default();
    let (opcode, flags) = (request.opcode(), request.sqe_flags());

    if rules.allows_request(opcode.index(), flags) {
        return Ok(());
    }
    DeniedRequest {
        opcode,
        flags,
        user_data: request.user_data(),
        denial: denial(&rules, opcode),
    }
    .trace_without_ring();
    Err(EACCES)
}

/// Checks whether the filters of the current task allow `request`, which the task makes without a
/// ring. May sleep.
///
/// # Errors
///
/// [`EACCES`] if they do not.
pub(crate) fn filter_request(task: &TaskRestriction<'_, Filters>, request: &Request) -> Result {
    let Some(set) = task.get().and_then(Restriction::filters) else {
        return Ok(());
    };

    if set
        .unfiltered(request.opcode())
        .contains(request.sqe_flags())
    {
        return Ok(());
    }
    filter::run(set, request).inspect_err(|_| filter::denied(set, request).trace_without_ring())
}

/// Returns whether the current task may call `io_uring_register()` with `opcode` and no ring.
pub(crate) fn allows_register(task: &TaskRestriction<'_, Filters>, opcode: u32) -> bool {
    task.get().is_none_or(|restriction| {
        usize::try_from(opcode)
            .ok()
            .and_then(|op| nospec::checked_index(op, REGISTER_LAST))
            .is_some_and(|op| restriction.rules().allows_register(op))
    })
}
