// SPDX-License-Identifier: GPL-2.0

//! What is to be done with requests, by opcode.
//!
//! A table is immutable: registering a filter makes a new one, which shares the chains of all
//! other opcodes with the old.

use super::chain::{
    self,
    Chain, //
};
use kernel::{
    io_uring::{
        filter_set::Contents,
        Opcode,
        PerOpcode, //
    },
    prelude::*,
    sync::Arc, //
};

/// How many filters are freed before other work is let through.
const RELEASE_BUDGET: u32 = 64;

/// What is to be done with requests of one opcode.
pub(super) enum Slot<P> {
    /// They may run.
    Allow,
    /// They may not run, for good: nothing that is registered later changes that.
    Deny,
    /// They may run if all filters allow it.
    Filter(Arc<Chain<P>>),
}

impl<P> Clone for Slot<P> {
    fn clone(&self) -> Self {
        match self {
            Slot::Allow => Slot::Allow,
            Slot::Deny => Slot::Deny,
            Slot::Filter(chain) => Slot::Filter(chain.clone()),
        }
    }
}

impl<P> Slot<P> {
    /// What becomes of the slot when a filter of `len` instructions is registered for it.
    ///
    /// # Errors
    ///
    /// Those of [`Chain::push`].
    fn with_filter(&self, payload: P, len: u16) -> Result<Self> {
        let before = match self {
            Slot::Allow => None,
            // A filter can only tighten, and there is nothing left to tighten.
            Slot::Deny => return Ok(Slot::Deny),
            Slot::Filter(chain) => Some(chain),
        };

        Chain::push(before, payload, len, GFP_KERNEL_ACCOUNT).map(Slot::Filter)
    }
}

/// What is to be done with requests, by opcode.
pub(crate) struct Table<P> {
    slots: PerOpcode<Slot<P>>,
}

impl<P> Table<P> {
    /// Makes a table out of `old`, or out of one that allows everything, by registering a filter of
    /// `len` instructions for `opcode`. With `deny_rest`, every other opcode that has no filter is
    /// denied.
    ///
    /// # Errors
    ///
    /// Those of [`Chain::push`].
    pub(super) fn with_filter(
        old: Option<&Self>,
        opcode: Opcode,
        payload: P,
        len: u16,
        deny_rest: bool,
    ) -> Result<impl Init<Self> + use<'_, P>> {
        let slot = |op| old.map_or(&Slot::Allow, |old: &Self| old.slot(op));
        let mut changed = Some(slot(opcode).with_filter(payload, len)?);

        let slots = PerOpcode::init(move |op| {
            // Taken once: no opcode comes twice.
            let changed = if op == opcode { changed.take() } else { None };

            match (changed, old.map_or(&Slot::Allow, |old: &Self| old.slot(op))) {
                (Some(changed), _) => changed,
                (None, Slot::Allow) if deny_rest => Slot::Deny,
                (None, unchanged) => unchanged.clone(),
            }
        });
        Ok(init!(Self { slots <- slots }))
    }

    /// What is to be done with requests of this opcode.
    #[inline]
    pub(super) fn slot(&self, opcode: Opcode) -> &Slot<P> {
        &self.slots[opcode]
    }
}

impl<P: Send + Sync + 'static> Contents for Table<P> {
    fn release_some(&mut self) -> bool {
        let mut budget = RELEASE_BUDGET;

        for slot in self.slots.iter_mut() {
            let Slot::Filter(chain) = core::mem::replace(slot, Slot::Allow) else {
                continue;
            };
            let mut chain = Some(chain);

            chain::release(&mut chain, &mut budget);
            if let Some(rest) = chain {
                *slot = Slot::Filter(rest);
                return true;
            }
            if budget == 0 {
                return true;
            }
        }
        false
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_table)]
mod tests {
    use super::*;
    use kernel::{
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

    /// A filter that can be told from others. Counts how many there are.
    struct Numbered {
        number: u32,
        live: Arc<Atomic<i32>>,
    }

    impl Numbered {
        fn new(number: u32, live: &Arc<Atomic<i32>>) -> Self {
            live.fetch_add(1, Relaxed);
            Self {
                number,
                live: live.clone(),
            }
        }
    }

    impl Drop for Numbered {
        fn drop(&mut self) {
            self.live.fetch_add(-1, Relaxed);
        }
    }

    type Set = ARef<FilterSet<Table<Numbered>>>;

    fn register(old: Option<&Set>, op: Opcode, filter: Numbered, deny_rest: bool) -> Result<Set> {
        let table = Table::with_filter(old.map(|set| &***set), op, filter, 1, deny_rest)?;

        FilterSet::new(table, GFP_KERNEL_ACCOUNT)
    }

    fn counter() -> Result<Arc<Atomic<i32>>> {
        Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
    }

    /// Waits up to ten seconds for all filters to be gone, and returns how many are left.
    fn settle(live: &Atomic<i32>) -> i32 {
        for _ in 0..1_000 {
            if live.load(Relaxed) == 0 {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        live.load(Relaxed)
    }

    /// What a slot should be, kept the simple way: a list of filters of its own.
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

        fn matches(&self, slot: &Slot<Numbered>) -> bool {
            match (self, slot) {
                (Model::Allow, Slot::Allow) | (Model::Deny, Slot::Deny) => true,
                (Model::Filters(numbers), Slot::Filter(chain)) => {
                    let newest_first = numbers.iter().rev().copied();

                    chain.iter().map(|filter| filter.number).eq(newest_first)
                }
                _ => false,
            }
        }
    }

    /// The opcodes that the model follows. Filters are only registered for the first four.
    const FOLLOWED: [u32; 5] = [0, 5, 45, 64, 30];

    /// A ring or task: its set, and what should be in it.
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

        /// Inherits what `parent` has.
        fn inherit(parent: &Self) -> Result<Self> {
            let mut child = Self::new();

            child.set = parent.set.clone();
            for (to, from) in child.model.iter_mut().zip(&parent.model) {
                *to = from.copy()?;
            }
            Ok(child)
        }

        fn register(&mut self, which: usize, filter: Numbered, deny_rest: bool) -> Result {
            let opcode = FOLLOWED.get(which).copied().and_then(Opcode::new);
            let number = filter.number;

            self.set = Some(register(
                self.set.as_ref(),
                opcode.ok_or(EINVAL)?,
                filter,
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

    /// Random registrations, inheritance and exits, compared with the model after each.
    #[test]
    fn owners_follow_the_model() -> Result {
        const OWNERS: u32 = 12;
        // KASAN makes each of them dear.
        const STEPS: u32 = if cfg!(CONFIG_KASAN) { 2_000 } else { 20_000 };
        let mut seed = 0x9e37_79b9u32;
        let mut random = |below: u32| {
            // xorshift
            seed ^= seed << 13;
            seed ^= seed >> 17;
            seed ^= seed << 5;
            seed % below
        };
        let live = counter()?;
        let mut owners = KVec::new();

        for _ in 0..OWNERS {
            owners.push(Owner::new(), GFP_KERNEL)?;
        }
        for step in 0..STEPS {
            let which = random(OWNERS) as usize;

            match random(8) {
                0 => {
                    if let Some(owner) = owners.get_mut(which) {
                        *owner = Owner::new();
                    }
                }
                1 | 2 => {
                    let child = match owners.get(random(OWNERS) as usize) {
                        Some(parent) => Owner::inherit(parent)?,
                        None => continue,
                    };
                    if let Some(owner) = owners.get_mut(which) {
                        *owner = child;
                    }
                }
                _ => {
                    let filter = Numbered::new(step, &live);
                    let deny_rest = random(16) == 0;

                    if let Some(owner) = owners.get_mut(which) {
                        owner.register(random(4) as usize, filter, deny_rest)?;
                    }
                }
            }
            assert!(owners.iter().all(Owner::is_as_modelled));
        }
        drop(owners);
        assert_eq!(settle(&live), 0);
        Ok(())
    }

    /// Full chains for every opcode, all freed by their last owner.
    #[test]
    fn full_table_freed() -> Result {
        let live = counter()?;
        let mut set = None;

        for op in Opcode::all() {
            for number in 0..100 {
                set = Some(register(
                    set.as_ref(),
                    op,
                    Numbered::new(number, &live),
                    false,
                )?);
            }
        }
        assert_eq!(live.load(Relaxed), 65 * 100);
        let shared = set.clone();
        drop(set);
        fsleep(Delta::from_millis(20));
        assert_eq!(live.load(Relaxed), 65 * 100);
        drop(shared);
        assert_eq!(settle(&live), 0);
        Ok(())
    }

    /// A step of a release frees no more than its budget.
    #[test]
    fn release_is_bounded() -> Result {
        let live = counter()?;
        let (nop, last) = (
            Opcode::new(0).ok_or(EINVAL)?,
            Opcode::new(64).ok_or(EINVAL)?,
        );
        let mut table = KBox::init(
            Table::with_filter(None, nop, Numbered::new(0, &live), 1, false)?,
            GFP_KERNEL,
        )?;

        for number in 1..200 {
            let op = if number % 2 == 0 { nop } else { last };
            let filter = Numbered::new(number, &live);

            let next = Table::with_filter(Some(&table), op, filter, 1, false)?;

            table = KBox::init(next, GFP_KERNEL)?;
        }
        assert_eq!(live.load(Relaxed), 200);
        for left in [136, 72, 8] {
            assert!(table.release_some());
            assert_eq!(live.load(Relaxed), left);
        }
        assert!(!table.release_some());
        assert_eq!(live.load(Relaxed), 0);
        Ok(())
    }
}
