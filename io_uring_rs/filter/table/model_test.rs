// SPDX-License-Identifier: GPL-2.0

//! Unit tests of tables, most of which compare them with plain lists of filters.

#[kernel::macros::kunit_tests(io_uring_filter_table)]
mod tests {
    use super::super::*;
    use crate::test_random::Random;
    use kernel::{
        bpf::insn,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };

    /// The number of programs that exist.
    static LIVE: Atomic<i32> = Atomic::new(0);

    /// The number of programs that were compiled so far.
    static COMPILED: Atomic<i32> = Atomic::new(0);

    /// A program that is not run: it holds the constants that its instructions compare with.
    struct Numbers(KVec<u32>);

    impl Compile for Numbers {
        fn compile(insns: &[Insn], _opcode: Opcode) -> Result<Self> {
            let mut numbers = KVec::new();

            for insn in insns.iter().filter(|insn| insn.code == insn::JMP_JEQ_K) {
                numbers.push(insn.k, GFP_KERNEL)?;
            }
            LIVE.fetch_add(1, Relaxed);
            COMPILED.fetch_add(1, Relaxed);
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

    fn register_as(
        old: Option<&Set>,
        op: Opcode,
        filter: KVVec<Insn>,
        deny_rest: bool,
        exemptions: Exemptions,
    ) -> Result<Set> {
        Table::with_filter(old.map(|set| &**set), op, filter, deny_rest, exemptions)
    }

    fn register(
        old: Option<&Set>,
        op: Opcode,
        filter: KVVec<Insn>,
        deny_rest: bool,
    ) -> Result<Set> {
        register_as(old, op, filter, deny_rest, Exemptions::ALL)
    }

    fn opcode(number: u32) -> Result<Opcode> {
        Opcode::new(number).ok_or(EINVAL)
    }

    /// Waits up to ten seconds until no more than `count` programs exist. Returns the number.
    fn settle(count: i32) -> i32 {
        for _ in 0..1_000 {
            if LIVE.load(Relaxed) <= count {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        LIVE.load(Relaxed)
    }

    /// Returns whether no request is filtered.
    fn allows_all(set: &Set) -> bool {
        Opcode::all().all(|op| set.unfiltered(op) == FlagSet::ALL)
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
            match (self, slot.unfiltered(), &slot.chain) {
                (Model::Allow, FlagSet::ALL, None) | (Model::Deny, FlagSet::NONE, None) => true,
                (Model::Filters(numbers), _, Some(chain)) => {
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
                Opcode::new(opcode).is_some_and(|op| {
                    model.matches(&Table::slot(set, op))
                        && Table::refuses(set, op) == matches!(model, Model::Deny)
                })
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
        assert_eq!(settle(0), 0);
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
        assert_eq!(settle(0), 0);
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

        assert_eq!(settle(0), 0);
        let mut set = None;

        for number in 0..LAST {
            let (op, filter) = (opcode(number)?, filter(number)?);
            set = Some(register(set.as_ref(), op, filter, false)?);
        }
        // The sets are released by another thread, this table is not.
        let mut table = {
            let set = set.ok_or(EINVAL)?;

            KBox::init(
                init!(Table {
                    chains <- PerOpcode::init(|op| set.chains[op].clone()),
                    costs <- PerOpcode::init(|_| 0),
                    #[cfg(CONFIG_IO_URING_BPF_CALLS)]
                    calls: None,
                }),
                GFP_KERNEL,
            )?
        };
        assert_eq!(LIVE.load(Relaxed), LAST as i32);
        assert!(table.release_step());
        assert_eq!(settle(LEFT), LEFT);
        assert!(!table.release_step());
        assert_eq!(settle(0), 0);
        Ok(())
    }

    /// Checks that the programs of calls are freed with the last table that has them, and are part
    /// of the budget of a step.
    #[test]
    #[cfg(CONFIG_IO_URING_BPF_CALLS)]
    fn programs_of_calls_are_released_in_steps() -> Result {
        /// Returns a table with `calls` and no chain.
        fn table(calls: Arc<Calls>) -> Result<KBox<Table<Numbers>>> {
            KBox::init(
                init!(Table {
                    chains <- PerOpcode::init(|_| None),
                    costs <- PerOpcode::init(|_| 0),
                    calls: Some(calls),
                }),
                GFP_KERNEL,
            )
        }

        /// Returns the number of programs of the first three registrations.
        fn left(table: &Table<Numbers>) -> usize {
            (0..3)
                .filter_map(Call::register)
                .map(|call| table.call(call).programs())
                .sum()
        }

        let mut calls = None;

        for call in (0..3).filter_map(Call::register) {
            for number in 0..32 {
                let filter = [
                    Insn::new(insn::LD_ABS, 16),
                    Insn::jump(insn::JMP_JEQ_K, 0, 1, number),
                    Insn::new(insn::RET_K, 0),
                    Insn::new(insn::RET_K, 1),
                ];
                calls = Some(Calls::with_filter(calls.as_ref(), call, &filter, false)?);
            }
        }
        let calls = Arc::new(calls.ok_or(EINVAL)?, GFP_KERNEL)?;
        let mut first = table(calls.clone())?;
        let mut last = table(calls)?;

        assert!(!first.release_step());
        assert_eq!(left(&first), 0);
        assert_eq!(left(&last), 96);
        assert!(last.release_step());
        assert_eq!(left(&last), 96 - RELEASE_BUDGET);
        assert!(!last.release_step());
        assert_eq!(left(&last), 0);
        Ok(())
    }

    /// Checks that filters whose verdict is certain are in no chain, and still count as filters.
    #[test]
    fn certain_verdicts_are_not_run() -> Result {
        let (nop, other) = (opcode(0)?, opcode(1)?);
        let allow: Set = register(None, nop, constant(1, 1)?, false)?;
        assert!(Model::Allow.matches(&Table::slot(&allow, nop)) && allows_all(&allow));

        // `nop` has a filter, so that it is not denied with the rest.
        let rest = register(Some(&allow), other, constant(1, 1)?, true)?;
        assert!(Model::Allow.matches(&Table::slot(&rest, nop)) && !allows_all(&rest));
        assert!(Model::Allow.matches(&Table::slot(&rest, other)));
        assert!(Model::Deny.matches(&Table::slot(&rest, opcode(2)?)));

        let filtered = register(Some(&allow), nop, filter(7)?, false)?;
        let still = register(Some(&filtered), nop, constant(1, 1)?, false)?;
        assert!(
            Model::Filters(kernel::kvec![7]?).matches(&Table::slot(&still, nop))
                && !allows_all(&still)
        );

        let deny = register(Some(&still), nop, constant(1, 0)?, false)?;
        assert!(Model::Deny.matches(&Table::slot(&deny, nop)) && !allows_all(&deny));
        let later = register(Some(&deny), nop, filter(7)?, false)?;
        assert!(Model::Deny.matches(&Table::slot(&later, nop)));
        Ok(())
    }

    /// Returns the number of programs of the chain for `op`.
    fn programs(set: &Set, op: Opcode) -> Result<usize> {
        let table: &Table<Numbers> = set;

        table.chain(op).map(Chain::len).ok_or(EINVAL)
    }

    /// Builds a filter like [`filter`], but of `len` instructions.
    fn long(number: u32, len: usize) -> Result<KVVec<Insn>> {
        let mut insns = KVVec::from_elem(Insn::new(insn::LD_IMM, 0), len - 4, GFP_KERNEL)?;

        insns.extend_from_slice(&filter(number)?, GFP_KERNEL)?;
        Ok(insns)
    }

    /// Returns the numbers of the fused program for `op`, newest first, if there is one.
    fn fused(set: &Set, op: Opcode) -> Option<&[u32]> {
        let table: &Table<Numbers> = set;
        let chain = table.chain(op)?;

        chain.fuse_once(GFP_KERNEL);
        chain.whole().map(|program| program.0.as_slice())
    }

    /// Checks that each registration compiles its own filter, and that the filters are fused when
    /// that is asked for.
    #[test]
    fn filters_are_fused_once_they_are_needed() -> Result {
        let op = opcode(0)?;
        let mut set = register(None, op, filter(0)?, false)?;

        assert_eq!(fused(&set, op), Some(&[0u32][..]));
        for number in 1..5 {
            set = register(Some(&set), op, filter(number)?, false)?;
            assert_eq!(programs(&set, op)?, number as usize + 1);
        }
        let table: &Table<Numbers> = &set;
        assert!(table.chain(op).is_some_and(|chain| chain.whole().is_none()));
        let compiled = COMPILED.load(Relaxed);
        for _ in 0..2 {
            assert_eq!(fused(&set, op), Some(&[4u32, 3, 2, 1, 0][..]));
            assert_eq!(COMPILED.load(Relaxed), compiled + 1);
        }
        assert!(Model::Filters(kernel::kvec![0, 1, 2, 3, 4]?).matches(&Table::slot(&set, op)));
        Ok(())
    }

    /// Checks that filters of a task without privileges are not fused by one that has some, for
    /// which mitigations would be left out.
    #[test]
    fn privileged_task_does_not_fuse_filters_of_others() -> Result {
        let op = opcode(0)?;
        const JMP_JSET_K: u16 = insn::JMP | insn::JSET | insn::K;
        let mut by_flags = KVVec::new();

        by_flags.extend_from_slice(
            &[
                Insn::new(insn::LD_ABS, 8),
                Insn::jump(JMP_JSET_K, 0, 1, u32::from_ne_bytes([0, 4, 0, 0])),
                Insn::new(insn::RET_K, 0),
                Insn::new(insn::RET_K, 1),
            ],
            GFP_KERNEL,
        )?;
        let mut set = register_as(None, op, filter(0)?, false, Exemptions::NONE)?;

        assert_eq!(fused(&set, op), Some(&[0u32][..]));
        for filter in [filter(1)?, by_flags, filter(2)?] {
            set = register(Some(&set), op, filter, false)?;
            assert_eq!(fused(&set, op).is_none(), programs(&set, op)? > 1);
        }
        set = register(None, op, filter(0)?, false)?;
        set = register_as(Some(&set), op, filter(1)?, false, Exemptions::NONE)?;
        assert_eq!(fused(&set, op), None);
        assert_eq!(programs(&set, op)?, 2);
        Ok(())
    }

    /// Checks the number of instructions up to which filters are fused.
    #[test]
    fn long_filters_are_not_fused() -> Result {
        let op = opcode(0)?;
        let mut set = register(None, op, filter(0)?, false)?;

        // Each further filter that tests the same word takes one instruction more, and another one
        // when jumps become too far.
        for number in 1..249 {
            set = register(Some(&set), op, filter(number)?, false)?;
        }
        assert_eq!(fused(&set, op).map(<[u32]>::len), Some(249));
        set = register(Some(&set), op, filter(249)?, false)?;
        assert_eq!(fused(&set, op), None);
        assert_eq!(programs(&set, op)?, 250);

        let op = opcode(1)?;
        set = register(Some(&set), op, long(1, 4096)?, false)?;
        set = register(Some(&set), op, filter(2)?, false)?;
        assert_eq!(fused(&set, op), None);
        assert_eq!(programs(&set, op)?, 2);
        Ok(())
    }
}
