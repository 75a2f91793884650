// SPDX-License-Identifier: GPL-2.0

//! Opcode filters: classic BPF programs that decide whether a request may run.
//!
//! A ring or a task has one set of filters, which never changes once it is published: registering a
//! filter makes a new set. A request runs only if all filters of its opcode return non-zero.
//!
//! - `context`: has the layout of the context that filters run on.
//! - `import`: reads and checks the argument of a registration.
//! - `check`: says which instructions a filter may contain.
//! - `verdict`: finds filters that decide the same for every request of an opcode.
//! - `fuse`: joins two programs into one.
//! - `chain`: holds the filters of one opcode, as few programs.
//! - `table`: holds the chains of all opcodes. This is what rings and tasks share.
//! - `payload`: writes those arguments of a request that filters see.
//!
//! C counterpart: `io_uring/bpf_filter.c`.

mod chain;
mod check;
pub(crate) mod context;
mod fuse;
mod import;
mod payload;
mod table;
mod verdict;

use self::{
    chain::{
        Chain,
        Compile,
        Link, //
    },
    table::{
        Slot,
        Table, //
    },
};
use kernel::{
    bpf::{
        self,
        Checker,
        Insn,
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
    sync::{
        aref::ARef,
        Arc, //
    },
    uaccess::UserPtr, //
};

/// The checker of the instructions that a filter may contain.
pub(crate) struct FilterChecker;

impl Checker for FilterChecker {
    type Context = FilterContext;

    fn check(code: u16, k: u32) -> Result<bpf::Action> {
        check::check(code, k, FilterContext::SIZE).ok_or(EINVAL)
    }
}

impl Compile for Program<FilterChecker> {
    fn compile(insns: &[Insn]) -> Result<Self> {
        Self::new(insns)
    }
}

/// The filters of a ring or task, by opcode.
pub(crate) type Filters = Table<Program<FilterChecker>>;

/// Creates a set from the filters of `old`, if there is an old set, and the filter that `arg`
/// describes, a `struct io_uring_bpf` in user space. `old` is left as it is.
///
/// # Errors
///
/// - [`EFAULT`], [`EINVAL`] and [`EMSGSIZE`] for a bad argument, see `import::import`; the first
///   two also for a bad program, see [`bpf::read_program`].
/// - [`ENOMEM`] if memory is short, or if the filters of the opcode would be longer than allowed.
pub(crate) fn register(
    old: Option<&FilterSet<Filters>>,
    arg: UserPtr,
) -> Result<ARef<FilterSet<Filters>>> {
    let registration = import::import(arg)?;
    let filter = bpf::read_program::<FilterChecker>(
        registration.insns,
        registration.len,
        GFP_KERNEL_ACCOUNT,
    )?;
    let table = Table::with_filter(
        old.map(|set| &**set),
        registration.opcode,
        filter,
        registration.deny_rest,
    )?;

    FilterSet::new(table, GFP_KERNEL_ACCOUNT)
}

/// Writes the arguments of `request` to `context`, if its opcode has arguments that filters see.
pub(crate) fn populate(context: &mut FilterContext, request: &Request) {
    payload::populate(request, context);
}

/// Checks whether `request` may run.
///
/// # Errors
///
/// [`EACCES`] if a filter denies the request, or the lack of one does.
#[inline]
pub(crate) fn run(filters: &Filters, request: &Request) -> Result {
    match filters.slot(request.opcode()) {
        Slot::Allow { .. } => Ok(()),
        Slot::Deny { .. } => Err(EACCES),
        Slot::Filter { chain, .. } => run_chain(chain, request),
    }
}

/// Runs the filters of `chain` on `request`. Not inlined, so that [`run`] prepares nothing for it
/// when there is no chain.
///
/// # Errors
///
/// [`EACCES`] if a filter denies the request.
#[inline(never)]
fn run_chain(chain: &Chain<Program<FilterChecker>>, request: &Request) -> Result {
    let mut context =
        FilterContext::new(request.opcode(), request.sqe_flags(), request.user_data());

    if chain.reads_arguments() {
        populate(&mut context, request);
    }
    let (newest, older) = chain.split();

    if newest.run(&context) == 0 {
        return Err(EACCES);
    }
    if older.is_empty() {
        return Ok(());
    }
    run_older(older, &context)
}

/// Runs the older programs of a chain. Not inlined, as few chains have any.
///
/// # Errors
///
/// [`EACCES`] if a filter denies the request.
#[inline(never)]
fn run_older(older: &[Arc<Link<Program<FilterChecker>>>], context: &FilterContext) -> Result {
    if older.iter().all(|link| link.program().run(context) != 0) {
        Ok(())
    } else {
        Err(EACCES)
    }
}
