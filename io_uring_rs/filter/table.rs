// SPDX-License-Identifier: GPL-2.0

//! Tables: what happens to the requests of each opcode.
//!
//! A table is immutable: registering a filter makes a new table, which shares the chains of all
//! other opcodes with the old one.
//!
//! A filter whose verdict no request can change is in no chain. If it always allows, its opcode
//! stays as it is; if it always denies, no filter of its opcode is run any more.

use super::{
    chain::{
        Chain,
        Compile, //
    },
    verdict::{
        self,
        Verdict, //
    },
};
use kernel::{
    alloc::KVVec,
    bpf::Insn,
    io_uring::{
        filter_set::Contents,
        Opcode,
        PerOpcode, //
    },
    prelude::*,
    sync::Arc, //
};

/// The number of programs after which freeing a table lets other work run. A chain is freed as a
/// whole, so that one step may free more.
const RELEASE_BUDGET: usize = 64;

/// The most that the filters of an opcode may cost, as for a path of seccomp filters. Without a
/// bound, a task could register so many that it cannot be killed while they run.
const MAX_COST: u32 = 32_768;

/// The cost of a filter besides its instructions.
const FILTER_COST: u32 = 4;

/// A slot of a table: what happens to the requests of one opcode.
///
/// `cost` is the sum of the costs of all filters that were registered for the opcode: zero if there
/// were none.
pub(super) enum Slot<P> {
    /// The requests are allowed.
    Allow { cost: u32 },
    /// The requests are denied. No filter that is registered later changes that.
    Deny { cost: u32 },
    /// The requests are allowed if all filters of the chain allow them.
    Filter { cost: u32, chain: Arc<Chain<P>> },
}

impl<P> Slot<P> {
    /// The slot of an opcode without a filter.
    const UNFILTERED: Self = Slot::Allow { cost: 0 };
    /// The slot of an opcode without a filter, when such opcodes are denied.
    const DENIED_UNFILTERED: Self = Slot::Deny { cost: 0 };
}

impl<P> Clone for Slot<P> {
    fn clone(&self) -> Self {
        match *self {
            Slot::Allow { cost } => Slot::Allow { cost },
            Slot::Deny { cost } => Slot::Deny { cost },
            Slot::Filter { cost, ref chain } => Slot::Filter {
                cost,
                chain: chain.clone(),
            },
        }
    }
}

/// Returns what `program` decides on all requests for `opcode`.
///
/// # Errors
///
/// [`ENOMEM`] if memory is short.
fn evaluate(program: &[Insn], opcode: Opcode) -> Result<Verdict> {
    let context = verdict::context(opcode.as_u8(), opcode.pdu_size());
    let mut states = KVVec::from_elem(None, program.len(), GFP_KERNEL)?;

    Ok(verdict::evaluate(program, &context, &mut states))
}

/// A table: what happens to the requests of each opcode.
pub(crate) struct Table<P> {
    slots: PerOpcode<Slot<P>>,
    /// Whether the requests of all opcodes are allowed.
    allows_all: bool,
}

impl<P: Compile> Slot<P> {
    /// Returns the slot that replaces this one of `opcode` when `filter` is registered for it. If
    /// the opcode was denied because it had no filter, it stays denied, and the filter costs
    /// nothing.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the opcode's filters would cost more than [`MAX_COST`], and the errors of
    /// [`Chain::push`].
    fn with_filter(&self, opcode: Opcode, filter: KVVec<Insn>) -> Result<Self> {
        let cost = match self {
            Slot::Deny { cost: 0 } => return Ok(Self::DENIED_UNFILTERED),
            Slot::Allow { cost } | Slot::Deny { cost } | Slot::Filter { cost, .. } => *cost,
        };
        // Neither `cost` nor the length is above 2^16, so that the sum cannot overflow.
        let cost = cost + filter.len() as u32 + FILTER_COST;

        if cost > MAX_COST {
            return Err(ENOMEM);
        }
        let older = match (self, evaluate(&filter, opcode)?) {
            // A filter can only deny more, and here every request is denied.
            (Slot::Deny { .. }, _) | (_, Verdict::Deny) => return Ok(Slot::Deny { cost }),
            (Slot::Allow { .. }, Verdict::Allow) => return Ok(Slot::Allow { cost }),
            (Slot::Filter { chain, .. }, Verdict::Allow) => {
                let chain = chain.clone();
                return Ok(Slot::Filter { cost, chain });
            }
            (Slot::Allow { .. }, Verdict::Depends) => None,
            (Slot::Filter { chain, .. }, Verdict::Depends) => Some(chain),
        };
        let chain = Chain::push(older, filter, GFP_KERNEL_ACCOUNT)?;

        Ok(Slot::Filter { cost, chain })
    }
}

impl<P: Compile> Table<P> {
    /// Creates a table from `old`, or from one that allows everything, by adding `filter`, which
    /// must have been checked, to the filters of `opcode`. With `deny_rest`, all other opcodes
    /// without a filter are denied.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the opcode's filters would cost more than [`MAX_COST`], and the errors of
    /// [`Chain::push`].
    pub(super) fn with_filter(
        old: Option<&Self>,
        opcode: Opcode,
        filter: KVVec<Insn>,
        deny_rest: bool,
    ) -> Result<impl Init<Self> + use<'_, P>> {
        let unfiltered = if deny_rest {
            &Slot::DENIED_UNFILTERED
        } else {
            &Slot::UNFILTERED
        };
        let carried_slot = move |op| match old.map(|old| old.slot(op)) {
            None | Some(Slot::Allow { cost: 0 }) => unfiltered,
            Some(slot) => slot,
        };
        let old_slot = old.map_or(&Slot::UNFILTERED, |old| old.slot(opcode));
        let new_slot = old_slot.with_filter(opcode, filter)?;
        let allows_all = matches!(new_slot, Slot::Allow { .. })
            && Opcode::all()
                .filter(|&op| op != opcode)
                .all(|op| matches!(carried_slot(op), Slot::Allow { .. }));

        let slots = PerOpcode::init(move |op| {
            if op == opcode {
                new_slot.clone()
            } else {
                carried_slot(op).clone()
            }
        });
        Ok(init!(Self {
            slots <- slots,
            allows_all,
        }))
    }
}

impl<P> Table<P> {
    /// Returns the slot of `opcode`.
    #[inline]
    pub(super) fn slot(&self, opcode: Opcode) -> &Slot<P> {
        &self.slots[opcode]
    }
}

impl<P: Send + Sync + 'static> Contents for Table<P> {
    fn release_step(&mut self) -> bool {
        let mut released = 0;

        for slot in self.slots.iter_mut() {
            let Slot::Filter { chain, .. } = core::mem::replace(slot, Slot::UNFILTERED) else {
                continue;
            };

            released += chain.len();
            drop(chain);
            if released >= RELEASE_BUDGET {
                return true;
            }
        }
        false
    }

    fn allows_all(&self) -> bool {
        self.allows_all
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_table)]
mod tests {
    use super::*;
    use crate::test_random::Random;
    use kernel::{
        bpf::insn,
        io_uring::filter_set::FilterSet,
        sync::{
            aref::ARef,
            atomic::{
                Atomic,
                Relaxed, //
            }, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    /// The number of programs that exist.
    static LIVE: Atomic<i32> = Atomic::new(0);

    /// A program that is not run: it holds the constants that its instructions compare with.
    struct Numbers(KVec<u32>);

    impl Compile for Numbers {
        fn compile(insns: &[Insn]) -> Result<Self> {
            let mut numbers = KVec::new();

            for insn in insns.iter().filter(|insn| insn.code == insn::JMP_JEQ_K) {
                numbers.push(insn.k, GFP_KERNEL)?;
            }
            LIVE.fetch_add(1, Relaxed);
            Ok(Self(numbers))
        }
    }

    impl Drop for Numbers {
        fn drop(&mut self) {
            LIVE.fetch_add(-1, Relaxed);
        }
    }

    /// Builds a filter that denies requests whose `user_data` has `number` as its first word.
    fn filter(number: u32) -> Result<KVVec<Insn>> {
        let mut insns = KVVec::new();

        insns.extend_from_slice(
            &[
                Insn::new(insn::LD_ABS, 0),
                Insn::jump(insn::JMP_JEQ_K, 0, 1, number),
                Insn::new(insn::RET_K, 0),
                Insn::new(insn::RET_K, 1),
            ],
            GFP_KERNEL,
        )?;
        Ok(insns)
    }

    /// Builds a filter of `len` instructions that returns a constant.
    fn constant(len: usize, verdict: u32) -> Result<KVVec<Insn>> {
        Ok(KVVec::from_elem(
            Insn::new(insn::RET_K, verdict),
            len,
            GFP_KERNEL,
        )?)
    }

    type Set = ARef<FilterSet<Table<Numbers>>>;

    fn register(
        old: Option<&Set>,
        op: Opcode,
        filter: KVVec<Insn>,
        deny_rest: bool,
    ) -> Result<Set> {
        let table = Table::with_filter(old.map(|set| &***set), op, filter, deny_rest)?;

        FilterSet::new(table, GFP_KERNEL_ACCOUNT)
    }

    fn opcode(number: u32) -> Result<Opcode> {
        Opcode::new(number).ok_or(EINVAL)
    }

    /// Waits up to ten seconds for all programs to be freed. Returns the number of those that are
    /// left.
    fn settle() -> i32 {
        for _ in 0..1_000 {
            if LIVE.load(Relaxed) == 0 {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        LIVE.load(Relaxed)
    }

    /// The expected content of a slot: a list of filters of its own, shared with no other.
    enum Model {
        Allow,
        Deny,
        Filters(KVec<u32>),
    }

    impl Model {
        fn copy(&self) -> Result<Self> {
            Ok(match self {
                Model::Allow => Model::Allow,
                Model::Deny => Model::Deny,
                Model::Filters(numbers) => {
                    let mut copy = KVec::new();
                    copy.extend_from_slice(numbers, GFP_KERNEL)?;
                    Model::Filters(copy)
                }
            })
        }

        fn matches(&self, slot: &Slot<Numbers>) -> bool {
            match (self, slot) {
                (Model::Allow, Slot::Allow { .. }) | (Model::Deny, Slot::Deny { .. }) => true,
                (Model::Filters(numbers), Slot::Filter { chain, .. }) => {
                    let newest_first = numbers.iter().rev().copied();

                    chain
                        .iter()
                        .flat_map(|program| program.0.iter().copied())
                        .eq(newest_first)
                }
                _ => false,
            }
        }
    }

    /// The opcodes that the model follows. Filters are only registered for the first four.
    const FOLLOWED: [u32; 5] = [0, 5, 45, 64, 30];

    /// A ring or task, with its set and what should be in it.
    struct Owner {
        set: Option<Set>,
        model: [Model; FOLLOWED.len()],
    }

    impl Owner {
        fn new() -> Self {
            Self {
                set: None,
                model: [const { Model::Allow }; FOLLOWED.len()],
            }
        }

        /// Creates a child that inherits the set of `parent`.
        fn inherit(parent: &Self) -> Result<Self> {
            let mut child = Self::new();

            child.set = parent.set.clone();
            for (to, from) in child.model.iter_mut().zip(&parent.model) {
                *to = from.copy()?;
            }
            Ok(child)
        }

        fn register(&mut self, which: usize, number: u32, deny_rest: bool) -> Result {
            let opcode = FOLLOWED.get(which).copied().and_then(Opcode::new);

            self.set = Some(register(
                self.set.as_ref(),
                opcode.ok_or(EINVAL)?,
                filter(number)?,
                deny_rest,
            )?);
            for (index, model) in self.model.iter_mut().enumerate() {
                match model {
                    Model::Allow if index == which => {
                        let mut numbers = KVec::new();
                        numbers.push(number, GFP_KERNEL)?;
                        *model = Model::Filters(numbers);
                    }
                    Model::Filters(numbers) if index == which => {
                        numbers.push(number, GFP_KERNEL)?
                    }
                    Model::Allow if deny_rest => *model = Model::Deny,
                    _ => {}
                }
            }
            Ok(())
        }

        fn is_as_modelled(&self) -> bool {
            let Some(set) = &self.set else {
                return self.model.iter().all(|model| matches!(model, Model::Allow));
            };

            FOLLOWED.iter().zip(&self.model).all(|(&opcode, model)| {
                Opcode::new(opcode).is_some_and(|op| model.matches(set.slot(op)))
            })
        }
    }

    /// Compares owners with the model after each of many random registrations, inheritances and
    /// exits.
    #[test]
    fn random_owners_match_the_model() -> Result {
        const OWNERS: u32 = 12;
        // With KASAN, each step takes much longer.
        const STEPS: u32 = if cfg!(CONFIG_KASAN) { 2_000 } else { 20_000 };
        let mut random = Random::new(0x9e37_79b9);
        let mut owners = KVec::new();

        for _ in 0..OWNERS {
            owners.push(Owner::new(), GFP_KERNEL)?;
        }
        for step in 0..STEPS {
            let which = random.below(OWNERS) as usize;

            match random.below(8) {
                0 => {
                    if let Some(owner) = owners.get_mut(which) {
                        *owner = Owner::new();
                    }
                }
                1 | 2 => {
                    let child = match owners.get(random.below(OWNERS) as usize) {
                        Some(parent) => Owner::inherit(parent)?,
                        None => continue,
                    };
                    if let Some(owner) = owners.get_mut(which) {
                        *owner = child;
                    }
                }
                _ => {
                    let deny_rest = random.below(16) == 0;

                    if let Some(owner) = owners.get_mut(which) {
                        owner.register(random.below(4) as usize, step, deny_rest)?;
                    }
                }
            }
            assert!(owners.iter().all(Owner::is_as_modelled));
        }
        drop(owners);
        assert_eq!(settle(), 0);
        Ok(())
    }

    /// Checks that a table with a chain for every opcode is freed by its last owner, and not
    /// before.
    #[test]
    fn last_owner_frees_all_filters() -> Result {
        let mut set = None;

        for op in Opcode::all() {
            for number in 0..20 {
                set = Some(register(set.as_ref(), op, filter(number)?, false)?);
            }
        }
        let shared = set.clone();
        drop(set);
        fsleep(Delta::from_millis(20));
        // Programs of earlier sets may not be freed yet.
        assert!(LIVE.load(Relaxed) >= Opcode::COUNT as i32);
        drop(shared);
        assert_eq!(settle(), 0);
        Ok(())
    }

    /// Checks the bound on costs. Filters whose verdict is certain cost as much as others.
    #[test]
    fn cost_limit_is_exact() -> Result {
        let op = opcode(0)?;

        for verdict in [1, 0] {
            let mut set = None;

            // 7 * (4096 + 4) = 28,700, which leaves room for 4,064 more instructions.
            for _ in 0..7 {
                set = Some(register(set.as_ref(), op, constant(4096, 1)?, false)?);
            }
            for (len, expected) in [(4096, Some(ENOMEM)), (4065, Some(ENOMEM)), (4064, None)] {
                let result = register(set.as_ref(), op, constant(len, verdict)?, false);

                assert_eq!(result.err(), expected);
            }
        }
        Ok(())
    }

    /// Checks that one step of a release frees no more than its budget and a chain.
    #[test]
    fn one_release_step_frees_at_most_its_budget() -> Result {
        const LAST: u32 = Opcode::COUNT as u32;
        const LEFT: i32 = (Opcode::COUNT - RELEASE_BUDGET) as i32;

        assert_eq!(settle(), 0);
        let mut table: KBox<Table<Numbers>> = KBox::init(
            Table::with_filter(None, opcode(0)?, filter(0)?, false)?,
            GFP_KERNEL,
        )?;

        for number in 1..LAST {
            let next = Table::with_filter(Some(&table), opcode(number)?, filter(number)?, false)?;

            table = KBox::init(next, GFP_KERNEL)?;
        }
        assert_eq!(LIVE.load(Relaxed), LAST as i32);
        assert!(table.release_step());
        assert_eq!(LIVE.load(Relaxed), LEFT);
        assert!(!table.release_step());
        assert_eq!(LIVE.load(Relaxed), 0);
        Ok(())
    }

    /// Checks that filters whose verdict is certain are in no chain, and still count as filters.
    #[test]
    fn certain_verdicts_are_not_run() -> Result {
        let (nop, other) = (opcode(0)?, opcode(1)?);
        let allow: Set = register(None, nop, constant(1, 1)?, false)?;
        assert!(matches!(allow.slot(nop), Slot::Allow { .. }) && allow.allows_all());

        // `nop` has a filter, so that it is not denied with the rest.
        let rest = register(Some(&allow), other, constant(1, 1)?, true)?;
        assert!(matches!(rest.slot(nop), Slot::Allow { .. }) && !rest.allows_all());
        assert!(matches!(rest.slot(other), Slot::Allow { .. }));
        assert!(matches!(rest.slot(opcode(2)?), Slot::Deny { .. }));

        let filtered = register(Some(&allow), nop, filter(7)?, false)?;
        let still = register(Some(&filtered), nop, constant(1, 1)?, false)?;
        assert!(Model::Filters(kernel::kvec![7]?).matches(still.slot(nop)) && !still.allows_all());

        let deny = register(Some(&still), nop, constant(1, 0)?, false)?;
        assert!(matches!(deny.slot(nop), Slot::Deny { .. }) && !deny.allows_all());
        let later = register(Some(&deny), nop, filter(7)?, false)?;
        assert!(matches!(later.slot(nop), Slot::Deny { .. }));
        Ok(())
    }

    /// Returns the number of programs of the chain for `op`.
    fn programs(set: &Set, op: Opcode) -> Result<usize> {
        match set.slot(op) {
            Slot::Filter { chain, .. } => Ok(chain.len()),
            _ => Err(EINVAL),
        }
    }

    /// Builds a filter like [`filter`], but of `len` instructions.
    fn long(number: u32, len: usize) -> Result<KVVec<Insn>> {
        let mut insns = KVVec::from_elem(Insn::new(insn::LD_IMM, 0), len - 4, GFP_KERNEL)?;

        insns.extend_from_slice(&filter(number)?, GFP_KERNEL)?;
        Ok(insns)
    }

    /// Checks that filters that are too long for one program become two, the newer one first.
    #[test]
    fn filters_too_long_to_merge_stay_separate() -> Result {
        let op = opcode(0)?;
        let mut set = register(None, op, long(1, 4096)?, false)?;
        // Together, they would be longer than a program may be.
        set = register(Some(&set), op, long(2, 4096)?, false)?;
        assert_eq!(programs(&set, op)?, 2);
        set = register(Some(&set), op, filter(3)?, false)?;
        set = register(Some(&set), op, filter(4)?, false)?;
        assert_eq!(programs(&set, op)?, 3);

        assert!(Model::Filters(kernel::kvec![1, 2, 3, 4]?).matches(set.slot(op)));
        Ok(())
    }

    /// Checks that registering a filter compiles at most twice its instructions, or a few more.
    #[test]
    fn registering_recompiles_only_short_programs() -> Result {
        let op = opcode(0)?;
        let mut set = register(None, op, filter(0)?, false)?;

        // Eight that test the same word have eleven instructions together.
        for number in 1..20 {
            set = register(Some(&set), op, filter(number)?, false)?;
            assert_eq!(programs(&set, op)?, number as usize / 8 + 1);
        }

        // Longer ones go together in pairs.
        let op = opcode(1)?;
        for (number, expected) in [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3)] {
            set = register(Some(&set), op, long(number, 20)?, false)?;
            assert_eq!(programs(&set, op)?, expected);
        }
        Ok(())
    }
}
