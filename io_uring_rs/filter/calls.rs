// SPDX-License-Identifier: GPL-2.0

//! The filters of system calls: of registrations, by their opcode, and of setting up rings.
//!
//! Each call has a list of filters, whose cost is bounded as for an opcode of requests. Calls are
//! rare, so that their programs are not fused, and the context is built anew for each call that has
//! any.

use super::{
    add_cost, //
    context::{
        OPCODE,
        PAYLOAD,
        SQE_FLAGS,
        WORDS, //
    },
    verdict::{
        self,
        Bits,
        Verdict, //
    },
};
use kernel::{
    alloc::KVVec,
    bpf::{
        Insn,
        Program, //
    },
    io_uring::{
        call::Call,
        request::FilterContext, //
    },
    prelude::*,
    sync::Arc,
};

/// The programs of a call, of which each must allow it.
type Programs = KVVec<Arc<Program<FilterContext>>>;

/// The filters of one call.
#[derive(Clone)]
pub(crate) struct CallSlot {
    /// The sum of the costs of all filters that were registered for the call: zero if there were
    /// none.
    cost: u16,
    /// Whether the call is denied whatever its arguments.
    is_denied: bool,
    programs: Option<Arc<Programs>>,
}

/// Returns what is known of the context of `call`. It has neither `user_data` nor flags.
fn known(call: Call) -> [Bits; WORDS] {
    let mut words = verdict::context(call.opcode(), call.pdu_size());

    for (index, word) in words.iter_mut().enumerate().take(PAYLOAD / 4) {
        let mut zero = [0; 4];

        for (offset, byte) in (4 * index..).zip(&mut zero) {
            if offset < OPCODE || offset == SQE_FLAGS {
                *byte = u8::MAX;
            }
        }
        *word = word.with(u32::from_ne_bytes(zero), 0);
    }
    words
}

impl CallSlot {
    /// The slot of a call without a filter.
    pub(super) const FREE: Self = Self {
        cost: 0,
        is_denied: false,
        programs: None,
    };

    /// Returns the slot that replaces this one of `call` when `filter` is registered for it. If the
    /// call was denied because it had no filter, it stays denied, and the filter costs nothing.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of [`add_cost`] and [`Program::new`].
    fn with_filter(&self, call: Call, filter: &[Insn]) -> Result<Self> {
        if self.cost == 0 && self.is_denied {
            return Ok(self.clone());
        }
        let cost = add_cost(self.cost, filter)?;
        let mut states = KVVec::from_elem(None, filter.len(), GFP_KERNEL)?;

        Ok(match verdict::evaluate(filter, &known(call), &mut states) {
            _ if self.is_denied => Self {
                cost,
                ..self.clone()
            },
            Verdict::Deny => Self {
                cost,
                is_denied: true,
                programs: None,
            },
            Verdict::Allow => Self {
                cost,
                ..self.clone()
            },
            Verdict::Depends => Self {
                cost,
                is_denied: false,
                programs: Some(self.with_program(filter)?),
            },
        })
    }

    /// Returns the programs of the slot and the one that `filter` is compiled to.
    ///
    /// # Errors
    ///
    /// As for [`Self::with_filter`].
    fn with_program(&self, filter: &[Insn]) -> Result<Arc<Programs>> {
        let old = self.programs.as_ref().map_or(&[][..], |old| old.as_slice());
        let mut programs = KVVec::with_capacity(1 + old.len(), GFP_KERNEL_ACCOUNT)?;
        let program = Program::new(filter, ())?;

        programs.push(Arc::new(program, GFP_KERNEL_ACCOUNT)?, GFP_KERNEL_ACCOUNT)?;
        for program in old {
            programs.push(program.clone(), GFP_KERNEL_ACCOUNT)?;
        }
        Ok(Arc::new(programs, GFP_KERNEL_ACCOUNT)?)
    }

    /// Returns whether the call is allowed. `context` creates the context if a program needs it.
    pub(super) fn allows(&self, context: impl FnOnce() -> FilterContext) -> bool {
        match &self.programs {
            _ if self.is_denied => false,
            None => true,
            Some(programs) => {
                let context = context();

                programs.iter().all(|program| program.run(&context) != 0)
            }
        }
    }

    /// Returns whether the call is denied whatever its arguments.
    pub(crate) fn is_denied(&self) -> bool {
        self.is_denied
    }

    /// Returns the number of programs.
    pub(crate) fn programs(&self) -> usize {
        self.programs.as_ref().map_or(0, |programs| programs.len())
    }

    /// Returns the sum of the costs of all filters of the call.
    pub(crate) fn cost(&self) -> u16 {
        self.cost
    }

    /// Removes the programs. Returns the number of them.
    fn release(&mut self) -> usize {
        self.programs.take().map_or(0, |programs| programs.len())
    }
}

/// The filters of all calls.
pub(crate) struct Calls([CallSlot; Call::COUNT]);

impl Calls {
    /// Creates calls that are all allowed, or those of `old`.
    fn inherit(old: Option<&Self>) -> Self {
        Self(core::array::from_fn(|index| {
            old.and_then(|old| old.0.get(index))
                .cloned()
                .unwrap_or(CallSlot::FREE)
        }))
    }

    /// Creates calls from `old`, or from calls that are all allowed, by adding `filter`, which must
    /// have been checked, to the filters of `call`. With `deny_rest`, all other registrations
    /// without a filter are denied, if `call` is one, too.
    ///
    /// # Errors
    ///
    /// Those of [`CallSlot::with_filter`].
    pub(super) fn with_filter(
        old: Option<&Self>,
        call: Call,
        filter: &[Insn],
        deny_rest: bool,
    ) -> Result<Self> {
        let mut new = Self::inherit(old);

        if deny_rest && call != Call::SETUP {
            for (index, slot) in new.0.iter_mut().enumerate() {
                let is_other = index != call.index() && index != Call::SETUP.index();

                slot.is_denied |= is_other && slot.cost == 0;
            }
        }
        if let Some(slot) = new.0.get_mut(call.index()) {
            *slot = slot.with_filter(call, filter)?;
        }
        Ok(new)
    }

    /// Returns what happens to `call`.
    pub(crate) fn slot(&self, call: Call) -> &CallSlot {
        self.0.get(call.index()).unwrap_or(&CallSlot::FREE)
    }

    /// Frees the programs of one call after the other until `budget` of them are freed. Returns
    /// whether that many were, so that there may be more.
    pub(super) fn release_step(&mut self, budget: usize) -> bool {
        let mut released = 0;

        self.0.iter_mut().any(|slot| {
            released += slot.release();
            released >= budget
        })
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_calls)]
mod tests {
    use super::*;
    use kernel::bpf::insn;

    /// Returns the filter that denies calls whose word at `offset` is `value`.
    fn deny_if(offset: u32, value: u32) -> [Insn; 4] {
        [
            Insn::new(insn::LD_ABS, offset),
            Insn::jump(insn::JMP_JEQ_K, 0, 1, value),
            Insn::new(insn::RET_K, 0),
            Insn::new(insn::RET_K, 1),
        ]
    }

    /// Returns a registration.
    fn registration(opcode: u32) -> Result<Call> {
        Call::register(opcode).ok_or(EINVAL)
    }

    /// Returns whether the slot allows a registration of `call` with `nr_args`.
    fn allows(calls: &Calls, call: Call, nr_args: u32) -> bool {
        calls
            .slot(call)
            .allows(|| FilterContext::for_register(call, nr_args))
    }

    /// Checks that only filters that load arguments have programs, and all cost the same.
    #[test]
    fn certain_verdicts_are_not_run() -> Result {
        let call = registration(7)?;
        let word = u32::from_ne_bytes([7, 0, 4, 0]);

        for (offset, value, programs, denied) in [
            (0, 0, 0, true),
            (0, 1, 0, false),
            (4, 0, 0, true),
            (8, word, 0, true),
            (8, word ^ 0x100, 0, false),
            (12, 0, 0, true),
            (16, 3, 1, false),
            (20, 0, 0, true),
            (36, 1, 0, false),
        ] {
            let calls = Calls::with_filter(None, call, &deny_if(offset, value), false)?;
            let slot = calls.slot(call);

            assert_eq!(slot.programs(), programs);
            assert_eq!(slot.is_denied(), denied);
            assert_eq!(slot.cost(), 8);
            assert_eq!(allows(&calls, call, 3), !denied && programs == 0);
            assert_eq!(allows(&calls, call, 4), !denied);
        }
        Ok(())
    }

    /// Checks which calls are denied with the rest, and that later filters do not change that.
    #[test]
    fn rest_are_registrations_without_a_filter() -> Result {
        let (first, second, third) = (registration(1)?, registration(2)?, registration(3)?);
        let calls = Calls::with_filter(None, first, &deny_if(16, 3), false)?;
        let calls = Calls::with_filter(Some(&calls), second, &deny_if(16, 4), true)?;
        let calls = Calls::with_filter(Some(&calls), third, &deny_if(16, 5), false)?;

        assert!(allows(&calls, first, 4) && !allows(&calls, first, 3));
        assert!(allows(&calls, second, 3) && !allows(&calls, second, 4));
        assert!(!allows(&calls, third, 3));
        assert_eq!(calls.slot(third).cost(), 0);
        assert!(!calls.slot(Call::SETUP).is_denied());

        let calls = Calls::with_filter(None, Call::SETUP, &deny_if(16, 3), true)?;
        assert!(allows(&calls, first, 3));
        assert_eq!(calls.slot(Call::SETUP).programs(), 1);
        Ok(())
    }

    /// Checks the bound on costs, and that a release takes the programs of all slots.
    #[test]
    fn cost_limit_is_exact() -> Result {
        let call = registration(5)?;
        let mut filter = KVVec::from_elem(Insn::new(insn::LD_IMM, 0), 1_016, GFP_KERNEL)?;
        let mut calls = Calls::inherit(None);

        // Each costs 1,024: its instructions, and 4.
        filter.extend_from_slice(&deny_if(16, 3), GFP_KERNEL)?;
        for _ in 0..32 {
            calls = Calls::with_filter(Some(&calls), call, &filter, false)?;
        }
        let past = Calls::with_filter(Some(&calls), call, &filter, false);
        assert_eq!(past.err(), Some(ENOMEM));
        let other = Calls::with_filter(Some(&calls), Call::SETUP, &filter, false)?;
        assert_eq!(other.slot(call).programs(), 32);
        drop(other);
        assert!(calls.release_step(32));
        assert_eq!(calls.slot(call).programs(), 0);
        assert!(!calls.release_step(1));
        Ok(())
    }
}
