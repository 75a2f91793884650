// SPDX-License-Identifier: GPL-2.0

//! Tables: what happens to the requests of each opcode.
//!
//! A table is immutable: registering a filter makes a new table, which shares the chains of all
//! other opcodes with the old one.
//!
//! A filter is in a chain only if its verdict depends on more than the flags of a request. All
//! other filters of an opcode are one set: the flags with which they allow requests.

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
mod model_test;

#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use super::calls::{
    CallSlot,
    Calls, //
};
use super::{
    chain::{
        Chain,
        Compile, //
    },
    flags,
    verdict::{
        self,
        Verdict, //
    },
};
#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use kernel::io_uring::call::Call;
use kernel::{
    alloc::KVVec,
    bpf::{
        exemptions::Exemptions,
        Insn, //
    },
    io_uring::{
        denial::Denial,
        filter_set::{
            Contents,
            FilterSet, //
        },
        sqe_flags::FlagSet,
        Opcode,
        PerOpcode, //
    },
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

/// The number of programs after which freeing a table lets other work run. A chain is freed as a
/// whole, so that one step may free more.
const RELEASE_BUDGET: usize = 64;

/// The most that the filters of an opcode may cost, as for a path of seccomp filters. Without a
/// bound, a task could register so many that it cannot be killed while they run.
pub(crate) const MAX_COST: u16 = 32_768;

/// The cost of a filter besides its instructions.
const FILTER_COST: usize = 4;

/// The number of instructions of which the states fit on the stack, 20 bytes each.
const FEW: usize = 16;

/// Returns the cost of filters that cost `cost` and of `filter` together.
///
/// # Errors
///
/// [`ENOMEM`] if that is more than [`MAX_COST`].
pub(super) fn add_cost(cost: u16, filter: &[Insn]) -> Result<u16> {
    (usize::from(cost) + filter.len())
        .checked_add(FILTER_COST)
        .and_then(|cost| u16::try_from(cost).ok())
        .filter(|cost| *cost <= MAX_COST)
        .ok_or(ENOMEM)
}

/// The filters of one opcode, and what they do.
pub(super) struct Slot<P> {
    /// The sum of the costs of all filters that were registered for the opcode: zero if there were
    /// none.
    cost: u16,
    /// The flags with which requests are allowed, if the chain allows them, too.
    allowed: FlagSet,
    chain: Option<Arc<Chain<P>>>,
}

impl<P> Slot<P> {
    /// The slot of an opcode without a filter.
    const UNFILTERED: Self = Self {
        cost: 0,
        allowed: FlagSet::ALL,
        chain: None,
    };
    /// The slot of an opcode without a filter, when such opcodes are denied.
    const DENIED_UNFILTERED: Self = Self {
        cost: 0,
        allowed: FlagSet::NONE,
        chain: None,
    };

    /// Returns the flags with which requests are allowed without running a program.
    fn unfiltered(&self) -> FlagSet {
        match self.chain {
            None => self.allowed,
            Some(_) => FlagSet::NONE,
        }
    }
}

/// Returns the flags with which `program` allows requests for `opcode`, or [`None`] if that depends
/// on more than the flags.
///
/// # Errors
///
/// [`ENOMEM`] if memory is short.
fn allowed_flags(program: &[Insn], opcode: Opcode) -> Result<Option<FlagSet>> {
    let context = verdict::context(opcode.as_u8(), opcode.pdu_size());
    // Most filters are short, and need no memory for this.
    let mut few = [None; FEW];
    let mut many;
    let states = match few.get_mut(..program.len()) {
        Some(states) => states,
        None => {
            many = KVVec::from_elem(None, program.len(), GFP_KERNEL)?;
            &mut many
        }
    };

    Ok(match verdict::evaluate(program, &context, states) {
        Verdict::Allow => Some(FlagSet::ALL),
        Verdict::Deny => Some(FlagSet::NONE),
        Verdict::Depends => flags::allowed(program, &context, states),
    })
}

/// A summary of the filters of one opcode.
pub(crate) struct Summary {
    /// The sum of the costs of all filters, [`MAX_COST`] at most.
    pub(crate) cost: u16,
    /// The flags with which requests are allowed, if the programs allow them, too.
    pub(crate) allowed: FlagSet,
    /// The number of programs.
    pub(crate) programs: usize,
}

/// A table: the chains and costs of all opcodes. The set that it is in also has the flags of
/// requests that are allowed without running a program.
pub(crate) struct Table<P> {
    chains: PerOpcode<Option<Arc<Chain<P>>>>,
    costs: PerOpcode<u16>,
    #[cfg(CONFIG_IO_URING_BPF_CALLS)]
    calls: Option<Arc<Calls>>,
}

impl<P: Compile> Slot<P> {
    /// Returns the slot that replaces this one of `opcode` when a task with `exemptions` registers
    /// `filter` for it. If the opcode was denied because it had no filter, it stays denied, and the
    /// filter costs nothing.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the opcode's filters would cost more than [`MAX_COST`], and the errors of
    /// [`Chain::push`].
    fn with_filter(
        &self,
        opcode: Opcode,
        filter: KVVec<Insn>,
        exemptions: Exemptions,
    ) -> Result<Self> {
        if self.cost == 0 && self.allowed == FlagSet::NONE {
            return Ok(Self::DENIED_UNFILTERED);
        }
        let cost = add_cost(self.cost, &filter)?;

        // A filter can only deny more, so that what was denied needs no look at it.
        let by_flags = match self.allowed {
            FlagSet::NONE => Some(FlagSet::ALL),
            _ => allowed_flags(&filter, opcode)?,
        };
        let allowed = self.allowed.and(by_flags.unwrap_or(FlagSet::ALL));
        let chain = match &self.chain {
            _ if allowed == FlagSet::NONE => None,
            older if by_flags.is_none() => Some(Chain::push(
                older.as_ref(),
                opcode,
                filter,
                allowed,
                exemptions,
                GFP_KERNEL_ACCOUNT,
            )?),
            Some(chain) if allowed != self.allowed => {
                Some(chain.with_allowed(allowed, GFP_KERNEL_ACCOUNT)?)
            }
            chain => chain.clone(),
        };

        Ok(Self {
            cost,
            allowed,
            chain,
        })
    }
}

impl<P: Compile + Send + Sync + 'static> Table<P> {
    /// Creates a set from `old`, or from one that allows everything, by adding `filter`, which must
    /// have been checked, to the filters of `opcode`. With `deny_rest`, all other opcodes without a
    /// filter are denied. `exemptions` are those of the current task.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short or the opcode's filters would cost more than [`MAX_COST`], and
    /// the errors of [`Chain::push`].
    pub(super) fn with_filter(
        old: Option<&FilterSet<Self>>,
        opcode: Opcode,
        filter: KVVec<Insn>,
        deny_rest: bool,
        exemptions: Exemptions,
    ) -> Result<ARef<FilterSet<Self>>> {
        let new = old
            .map_or(Slot::UNFILTERED, |old| Self::slot(old, opcode))
            .with_filter(opcode, filter, exemptions)?;
        let (cost, chain) = (new.cost, new.chain.clone());
        let unfiltered = PerOpcode::init(|op| old.map_or(FlagSet::ALL, |old| old.unfiltered(op)))
            .chain(|unfiltered| {
                if deny_rest {
                    for op in Opcode::all() {
                        if old.is_none_or(|old| old.costs[op] == 0) {
                            unfiltered[op] = FlagSet::NONE;
                        }
                    }
                }
                unfiltered[opcode] = new.unfiltered();
                Ok(())
            });
        let table = init!(Self {
            chains <- PerOpcode::init(|op| old.and_then(|old| old.chains[op].clone()))
                .chain(|chains| {
                    chains[opcode] = chain;
                    Ok(())
                }),
            costs <- PerOpcode::init(|op| old.map_or(0, |old| old.costs[op])).chain(|costs| {
                costs[opcode] = cost;
                Ok(())
            }),
            #[cfg(CONFIG_IO_URING_BPF_CALLS)]
            calls: old.and_then(|old| old.calls.clone()),
        });

        FilterSet::new(unfiltered, table, GFP_KERNEL_ACCOUNT)
    }

    /// Creates a set from `old`, or from one that allows everything, by adding `filter`, which must
    /// have been checked, to the filters of `call`. With `deny_rest`, all other registrations
    /// without a filter are denied, if `call` is one, too.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of [`Calls::with_filter`].
    #[cfg(CONFIG_IO_URING_BPF_CALLS)]
    pub(super) fn with_call_filter(
        old: Option<&FilterSet<Self>>,
        call: Call,
        filter: &[Insn],
        deny_rest: bool,
    ) -> Result<ARef<FilterSet<Self>>> {
        let calls = old.and_then(|old| old.calls.as_deref());
        let calls = Calls::with_filter(calls, call, filter, deny_rest)?;
        let calls = Some(Arc::new(calls, GFP_KERNEL_ACCOUNT)?);
        let unfiltered = PerOpcode::init(|op| old.map_or(FlagSet::ALL, |old| old.unfiltered(op)));
        let table = init!(Self {
            chains <- PerOpcode::init(|op| old.and_then(|old| old.chains[op].clone())),
            costs <- PerOpcode::init(|op| old.map_or(0, |old| old.costs[op])),
            calls,
        });

        FilterSet::new(unfiltered, table, GFP_KERNEL_ACCOUNT)
    }
}

impl<P: Send + Sync + 'static> Table<P> {
    /// Returns whether all requests of `opcode` are denied, whatever else is in them.
    pub(crate) fn refuses(set: &FilterSet<Self>, opcode: Opcode) -> bool {
        set.unfiltered(opcode) == FlagSet::NONE && set.chains[opcode].is_none()
    }

    /// Returns the reason for which `set` denies a request with `opcode` and `flags` that it was
    /// found to deny.
    pub(super) fn denial(set: &FilterSet<Self>, opcode: Opcode, flags: u8) -> Denial {
        match &set.chains[opcode] {
            None if set.costs[opcode] == 0 => Denial::Rest,
            None if set.unfiltered(opcode) == FlagSet::NONE => Denial::Filter,
            Some(chain) if chain.allows_flags(flags) => Denial::Program,
            _ => Denial::FilterFlags,
        }
    }

    /// Returns what is reported about the filters of `opcode` in `set`.
    pub(crate) fn summary(set: &FilterSet<Self>, opcode: Opcode) -> Summary {
        let slot = Self::slot(set, opcode);

        Summary {
            cost: slot.cost,
            allowed: slot.allowed,
            programs: slot.chain.map_or(0, |chain| chain.len()),
        }
    }

    /// Returns what happens to the requests of `opcode` in `set`.
    fn slot(set: &FilterSet<Self>, opcode: Opcode) -> Slot<P> {
        let chain = set.chains[opcode].clone();
        let allowed = match &chain {
            Some(chain) => *chain.allowed(),
            None => set.unfiltered(opcode),
        };

        Slot {
            cost: set.costs[opcode],
            allowed,
            chain,
        }
    }
}

impl<P> Table<P> {
    /// Returns what happens to `call`.
    #[cfg(CONFIG_IO_URING_BPF_CALLS)]
    pub(crate) fn call(&self, call: Call) -> &CallSlot {
        let calls = self.calls.as_deref();

        calls.map_or(&CallSlot::FREE, |calls| calls.slot(call))
    }

    /// Returns the programs that decide on requests of `opcode` that are filtered. If there are
    /// none, these requests are denied.
    #[inline]
    pub(super) fn chain(&self, opcode: Opcode) -> Option<&Chain<P>> {
        self.chains[opcode].as_deref()
    }
}

impl<P: Send + Sync + 'static> Contents for Table<P> {
    fn release_step(&mut self) -> bool {
        let mut released = 0;

        for chain in self.chains.iter_mut().filter_map(Option::take) {
            released += chain.len();
            drop(chain);
            if released >= RELEASE_BUDGET {
                return true;
            }
        }
        #[cfg(CONFIG_IO_URING_BPF_CALLS)]
        if let Some(mut calls) = self.calls.take().and_then(Arc::into_unique_or_drop) {
            if calls.release_step(RELEASE_BUDGET - released) {
                self.calls = Some(calls.into());
                return true;
            }
        }
        false
    }
}
