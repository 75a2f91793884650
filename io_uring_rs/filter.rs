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
//! - `flags`: finds filters that decide by the flags of a request, and the flags that they allow.
//! - `interpreter`: runs a filter when it is registered, to that end.
//! - `fuse`: joins two programs into one.
//! - `chain`: holds the filters of one opcode, and the program into which they are fused.
//! - `table`: holds the chains of all opcodes. This is what rings and tasks share.
//! - `calls`: holds the filters of system calls, if the kernel has such filters.
//! - `payload`: copies the address of a request to connect to where programs can load it.
//!
//! C counterpart: `io_uring/bpf_filter.c`.

#[cfg(CONFIG_IO_URING_BPF_CALLS)]
pub(crate) mod calls;
mod chain;
mod check;
pub(crate) mod context;
mod flags;
mod fuse;
mod import;
mod interpreter;
mod payload;
mod table;
mod verdict;

#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use self::table::add_cost;
use self::{
    chain::{
        Chain,
        Compile, //
    },
    import::Target,
    table::Table, //
};
pub(crate) use self::{
    import::Owner,
    table::MAX_COST, //
};
#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use kernel::io_uring::call::Call;
use kernel::{
    bpf::{
        self,
        exemptions::Exemptions,
        Checker,
        Insn,
        Program, //
    },
    io_uring::{
        denial::DeniedRequest,
        filter_set::FilterSet,
        request::{
            FilterContext,
            Request, //
        },
        Opcode, //
    },
    prelude::*,
    sync::aref::ARef,
    uaccess::UserPtr, //
};

/// The checker of the instructions that a filter may contain.
pub(crate) struct FilterChecker;

impl Checker for FilterChecker {
    fn check(code: u16, k: u32) -> Result<bpf::Action> {
        check::check(code, k, FilterContext::SIZE).ok_or(EINVAL)
    }
}

/// A compiled program.
pub(crate) enum FilterProgram {
    /// The program loads all that it reads from the request.
    OnRequest(Program<Request>),
    /// The program reads the address of a request to connect, which is not in the request.
    OnContext(Program<FilterContext>),
}

impl FilterProgram {
    /// Compiles `insns` for requests with this opcode.
    ///
    /// # Errors
    ///
    /// Those of [`Program::new`].
    pub(crate) fn new(insns: &[Insn], opcode: Opcode) -> Result<Self> {
        if opcode == Opcode::CONNECT && context::reads_payload(insns) {
            Ok(Self::OnContext(Program::new(insns, ())?))
        } else {
            Ok(Self::OnRequest(Program::new(insns, opcode)?))
        }
    }

    /// Runs the program on `request` and returns its result. If it needs the request's context, and
    /// `context` has none, that is created.
    pub(crate) fn run(&self, request: &Request, context: &mut Option<FilterContext>) -> u32 {
        match self {
            Self::OnRequest(program) => program.run(request),
            Self::OnContext(program) => {
                program.run(context.get_or_insert_with(|| payload::context(request)))
            }
        }
    }
}

impl Compile for FilterProgram {
    fn compile(insns: &[Insn], opcode: Opcode) -> Result<Self> {
        Self::new(insns, opcode)
    }
}

/// The filters of a ring or task, by opcode.
pub(crate) type Filters = Table<FilterProgram>;

/// Creates a set from the filters of `old`, if there is an old set, and the filter that `arg`
/// describes, a `struct io_uring_bpf` in user space. `old` is left as it is. The set is for
/// `owner`.
///
/// # Errors
///
/// - [`EFAULT`], [`EINVAL`] and [`EMSGSIZE`] for a bad argument, see `import::import`; the first
///   two also for a bad program, see [`bpf::read_program`].
/// - [`ENOMEM`] if memory is short, or if the filters of the opcode would be longer than allowed.
pub(crate) fn register(
    old: Option<&FilterSet<Filters>>,
    arg: UserPtr,
    owner: Owner,
) -> Result<ARef<FilterSet<Filters>>> {
    let registration = import::import(arg, owner)?;
    let filter = bpf::read_program::<FilterChecker>(
        registration.insns,
        registration.len,
        GFP_KERNEL_ACCOUNT,
    )?;

    let (deny_rest, exemptions) = (registration.deny_rest, Exemptions::current());

    match registration.target {
        Target::Request(op) => Table::with_filter(old, op, filter, deny_rest, exemptions),
        #[cfg(CONFIG_IO_URING_BPF_CALLS)]
        Target::Call(call) => Table::with_call_filter(old, call, &filter, deny_rest),
    }
}

/// Checks whether `request` may run. It must be one that has to be filtered. May sleep.
///
/// # Errors
///
/// [`EACCES`] if a filter denies the request, or the lack of one does.
#[inline]
pub(crate) fn run(filters: &Filters, request: &Request) -> Result {
    let chain = filters.chain(request.opcode()).ok_or(EACCES)?;

    if !chain.allows_flags(request.sqe_flags()) {
        return Err(EACCES);
    }
    let allowed = match chain.whole() {
        Some(FilterProgram::OnRequest(program)) => program.run(request) != 0,
        _ => run_all(chain, request),
    };

    if allowed {
        Ok(())
    } else {
        Err(EACCES)
    }
}

/// Checks whether `set`, if there is one, allows `call`. `context` creates the context if a program
/// needs it.
///
/// # Errors
///
/// [`EACCES`] if a filter denies the call, or the lack of one does.
#[cfg(CONFIG_IO_URING_BPF_CALLS)]
pub(crate) fn check_call(
    set: Option<&FilterSet<Filters>>,
    call: Call,
    context: impl FnOnce() -> FilterContext,
) -> Result {
    match set {
        Some(set) if !set.call(call).allows(context) => Err(EACCES),
        _ => Ok(()),
    }
}

/// Describes `request`, which `set` denies, for the trace event.
pub(crate) fn denied(set: &FilterSet<Filters>, request: &Request) -> DeniedRequest {
    let (opcode, flags) = (request.opcode(), request.sqe_flags());

    DeniedRequest {
        opcode,
        flags,
        user_data: request.user_data(),
        denial: Table::denial(set, opcode, flags),
    }
}

/// Returns whether all programs of `chain` allow `request`. May sleep. Not inlined, as most chains
/// are one program, which needs no context.
#[inline(never)]
fn run_all(chain: &Chain<FilterProgram>, request: &Request) -> bool {
    let mut context = None;

    if let Some(program) = chain.whole() {
        return program.run(request, &mut context) != 0;
    }
    // The next request is the first to profit from the fused program.
    chain.fuse_once(GFP_KERNEL_ACCOUNT);
    chain
        .iter()
        .all(|program| program.run(request, &mut context) != 0)
}
