// SPDX-License-Identifier: GPL-2.0

//! Opcode filters: registering them, and asking them.
//!
//! - `import`: reads and checks what user space hands in.
//! - `check`: which instructions a filter may contain.
//! - `chain`: the filters of one opcode.
//! - `table`: the chains of all opcodes, as rings and tasks share them.
//! - `payload`: what filters see of the arguments of a request.
//!
//! C counterpart: `io_uring/bpf_filter.c`.

mod chain;
mod check;
mod import;
mod payload;
mod table;

use self::table::{
    Slot,
    Table, //
};
use kernel::{
    bpf::{
        self,
        Checker,
        Program, //
    },
    io_uring::{
        filter_set::FilterSet,
        request::{
            FilterContext,
            Request, //
        }, //
    },
    prelude::*,
    sync::aref::ARef,
    uaccess::UserPtr, //
};

/// Admits the instructions that a filter may contain.
pub(crate) struct FilterChecker;

impl Checker for FilterChecker {
    type Context = FilterContext;

    fn check(code: u16, k: u32) -> Result<bpf::Action> {
        check::check(code, k, FilterContext::SIZE).ok_or(EINVAL)
    }
}

/// The filters of a ring or task.
pub(crate) type Filters = Table<Program<FilterChecker>>;

/// Makes a set of filters out of `old`, or out of none, and the filter that `arg` describes, a
/// `struct io_uring_bpf` in user space.
///
/// # Errors
///
/// - [`EFAULT`], [`EINVAL`] and [`EMSGSIZE`] for a bad argument, see `import::read`; the first two
///   also for a bad program, see [`Program::from_user`].
/// - [`ENOMEM`] if memory is short, or the filters of the opcode would be longer than is allowed.
pub(crate) fn read(
    old: Option<&FilterSet<Filters>>,
    arg: UserPtr,
) -> Result<ARef<FilterSet<Filters>>> {
    let request = import::read(arg)?;
    let program = Program::from_user(request.insns, request.len)?;
    let table = Table::with_filter(
        old.map(|set| &**set),
        request.opcode,
        program,
        request.len,
        request.deny_rest,
    )?;

    FilterSet::new(table, GFP_KERNEL_ACCOUNT)
}

/// Writes the arguments of `request` to `context`, if its opcode has any for filters to see.
pub(crate) fn populate(context: &mut FilterContext, request: &Request) {
    payload::show(request, context);
}

/// Asks the filters whether `request` may run.
///
/// The newest filter is asked first, and the first that returns zero ends it.
///
/// # Errors
///
/// [`EACCES`] if a filter, or the lack of one, denies the request.
#[inline]
pub(crate) fn run(filters: &Filters, request: &Request) -> Result {
    match filters.slot(request.opcode()) {
        Slot::Allow => Ok(()),
        Slot::Deny => Err(EACCES),
        Slot::Filter(chain) => {
            let mut context =
                FilterContext::new(request.opcode(), request.sqe_flags(), request.user_data());
            populate(&mut context, request);

            if chain.iter().all(|program| program.run(&context) != 0) {
                Ok(())
            } else {
                Err(EACCES)
            }
        }
    }
}
