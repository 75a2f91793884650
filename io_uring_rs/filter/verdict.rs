// SPDX-License-Identifier: GPL-2.0

//! Verdicts: what a program decides on all requests of an opcode, as far as that is certain.
//!
//! A program is followed with the values that are the same for all requests of its opcode: the
//! opcode, the size of its arguments, the padding, and the zeroes behind the arguments. At a branch
//! that this leaves open, both arms are followed. Where paths meet, only what they agree on is
//! kept, so that each instruction is looked at once. The contents of scratch words are not
//! followed.
//!
//! Invariant: [`Verdict::Allow`] is never given to a program that can return zero, nor
//! [`Verdict::Deny`] to one that can return anything else. When in doubt, the verdict is
//! [`Verdict::Depends`].
//!
//! Uses nothing but `core`, the instructions and the layout of the context.

use super::context::{
    OPCODE,
    PAYLOAD,
    PDU_SIZE,
    SQE_FLAGS,
    VALID_SQE_FLAGS,
    WORDS, //
};
use kernel::bpf::insn::{
    self,
    Insn, //
};

/// The verdict of a program on all requests of an opcode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The program never returns zero.
    Allow,
    /// The program always returns zero.
    Deny,
    /// The result depends on the request, or is not certain.
    Depends,
}

/// A word of which some bits are known.
///
/// # Invariants
///
/// Bits that are not known are zero in `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bits {
    known: u32,
    value: u32,
}

impl Bits {
    const UNKNOWN: Self = Self { known: 0, value: 0 };

    /// Creates a word of which all bits are known.
    const fn exact(value: u32) -> Self {
        Self {
            known: u32::MAX,
            value,
        }
    }

    /// Creates a word whose bits in `known` are known to be as in `value`.
    const fn partial(known: u32, value: u32) -> Self {
        // INVARIANT: The bits that are not known are cleared.
        Self {
            known,
            value: value & known,
        }
    }

    /// Returns what is known if also the bits in `known` are as in `value`.
    pub(crate) fn with(self, known: u32, value: u32) -> Self {
        Self::partial(self.known | known, (self.value & !known) | (value & known))
    }

    /// Returns the value, if all bits are known.
    pub(crate) fn get(self) -> Option<u32> {
        (self.known == u32::MAX).then_some(self.value)
    }

    /// Returns the smallest value that the word can have.
    fn min(self) -> u32 {
        self.value
    }

    /// Returns the largest value that the word can have.
    fn max(self) -> u32 {
        self.value | !self.known
    }

    /// Returns what is known of a word that is either `self` or `other`.
    fn meet(self, other: Self) -> Self {
        Self::partial(
            self.known & other.known & !(self.value ^ other.value),
            self.value,
        )
    }
}

/// The known bits of A and X at one point of a program.
#[derive(Clone, Copy)]
pub(crate) struct State {
    a: Bits,
    x: Bits,
}

impl State {
    /// Every program starts with A and X set to zero.
    const START: Self = Self {
        a: Bits::exact(0),
        x: Bits::exact(0),
    };

    /// Keeps only what is also known in `other`, the state on another path.
    fn meet(&mut self, other: &Self) {
        self.a = self.a.meet(other.a);
        self.x = self.x.meet(other.x);
    }

    /// Returns what is known of the second operand of `insn`.
    fn operand(&self, insn: &Insn) -> Bits {
        if insn.has_x() {
            self.x
        } else {
            Bits::exact(insn.k)
        }
    }
}

/// Returns what is known of the context of all requests for `opcode`. Filters see `pdu_size` bytes
/// of its arguments.
pub(crate) fn context(opcode: u8, pdu_size: u16) -> [Bits; WORDS] {
    let mut words = [Bits::UNKNOWN; WORDS];
    let arguments = PAYLOAD..PAYLOAD + usize::from(pdu_size);

    for (index, word) in words.iter_mut().enumerate() {
        let mut known = [0; 4];
        let mut value = [0; 4];

        for (offset, (known, value)) in (4 * index..).zip(known.iter_mut().zip(value.iter_mut())) {
            (*known, *value) = match offset {
                OPCODE => (u8::MAX, opcode),
                SQE_FLAGS => (!VALID_SQE_FLAGS, 0),
                PDU_SIZE => u8::try_from(pdu_size).map_or((0, 0), |size| (u8::MAX, size)),
                // `user_data`.
                0..OPCODE => (0, 0),
                _ if arguments.contains(&offset) => (0, 0),
                _ => (u8::MAX, 0),
            };
        }
        *word = Bits::partial(u32::from_ne_bytes(known), u32::from_ne_bytes(value));
    }
    words
}

/// Returns what is known of A after the ALU instruction `insn`, from what is known of A and the
/// second operand. Returns [`None`] for an unknown operation. The caller handles division by zero.
fn compute(insn: &Insn, a: Bits, b: Bits) -> Option<Bits> {
    let exactly = |compute: fn(u32, u32) -> Option<u32>| {
        let (Some(a), Some(b)) = (a.get(), b.get()) else {
            return Bits::UNKNOWN;
        };
        compute(a, b).map_or(Bits::UNKNOWN, Bits::exact)
    };
    let zeroes = |bits: Bits| bits.known & !bits.value;

    Some(match insn.op() {
        insn::ADD => exactly(|a, b| Some(a.wrapping_add(b))),
        insn::SUB => exactly(|a, b| Some(a.wrapping_sub(b))),
        insn::MUL => exactly(|a, b| Some(a.wrapping_mul(b))),
        insn::DIV => exactly(|a, b| a.checked_div(b)),
        insn::AND => Bits::partial(
            (a.known & b.known) | zeroes(a) | zeroes(b),
            a.value & b.value,
        ),
        insn::OR => Bits::partial((a.known & b.known) | a.value | b.value, a.value | b.value),
        insn::XOR => Bits::partial(a.known & b.known, a.value ^ b.value),
        // The zeroes that are shifted in are known, and unknown bits stay so.
        insn::LSH => b.get().map_or(Bits::UNKNOWN, |n| {
            Bits::partial(!(!a.known).wrapping_shl(n), a.value.wrapping_shl(n))
        }),
        insn::RSH => b.get().map_or(Bits::UNKNOWN, |n| {
            Bits::partial(!(!a.known).wrapping_shr(n), a.value.wrapping_shr(n))
        }),
        insn::NEG => a
            .get()
            .map_or(Bits::UNKNOWN, |a| Bits::exact(a.wrapping_neg())),
        _ => return None,
    })
}

/// Returns whether the conditional jump `insn` is taken, or [`None`] if that is not certain.
fn decide(insn: &Insn, a: Bits, b: Bits) -> Option<bool> {
    let (always, never) = match insn.op() {
        insn::JEQ => (
            a.get().is_some() && a.get() == b.get(),
            (a.value ^ b.value) & a.known & b.known != 0,
        ),
        insn::JGT => (a.min() > b.max(), a.max() <= b.min()),
        insn::JGE => (a.min() >= b.max(), a.max() < b.min()),
        insn::JSET => (a.value & b.value != 0, a.max() & b.max() == 0),
        _ => (false, false),
    };

    match (always, never) {
        (true, _) => Some(true),
        (_, true) => Some(false),
        _ => None,
    }
}

/// The results that a program was found to be able to return.
#[derive(Default)]
struct Results {
    zero: bool,
    other: bool,
}

impl Results {
    /// Adds the values that `result` may have.
    fn add(&mut self, result: Bits) {
        self.zero |= result.min() == 0;
        self.other |= result.max() != 0;
    }
}

/// Returns what `program` decides on requests of which `context` is known.
///
/// The program must have been checked. `jumps` is scratch memory, one [`None`] for each
/// instruction: it holds what is known of the jumps that lead there.
pub(crate) fn evaluate(
    program: &[Insn],
    context: &[Bits; WORDS],
    jumps: &mut [Option<State>],
) -> Verdict {
    let mut results = Results::default();
    let mut state = State::START;
    // Whether the instruction can be reached from the one before it, in `state`.
    let mut reached = true;

    for (pc, insn) in program.iter().enumerate() {
        let Some((jump, ahead)) = jumps.get_mut(pc..).and_then(<[_]>::split_first_mut) else {
            return Verdict::Depends;
        };
        match jump {
            Some(other) if reached => state.meet(other),
            Some(other) => state = *other,
            None if reached => {}
            None => continue,
        }
        // The places where the program can continue, as offsets from the next instruction.
        let mut next = [Some(0), None];

        match (insn.class(), insn.code) {
            (_, insn::LD_ABS) => {
                let word = usize::try_from(insn.k / 4).ok();

                state.a = word
                    .and_then(|word| context.get(word).copied())
                    .unwrap_or(Bits::UNKNOWN);
            }
            (_, insn::LD_IMM) => state.a = Bits::exact(insn.k),
            (_, insn::LD_MEM) => state.a = Bits::UNKNOWN,
            (_, insn::LDX_IMM) => state.x = Bits::exact(insn.k),
            (_, insn::LDX_MEM) => state.x = Bits::UNKNOWN,
            (_, insn::ST | insn::STX) => {}
            (_, insn::MISC_TAX) => state.x = state.a,
            (_, insn::MISC_TXA) => state.a = state.x,
            (insn::ALU, _) => {
                let operand = state.operand(insn);

                // A program that divides by zero ends and returns zero.
                if insn.op() == insn::DIV && operand.min() == 0 {
                    results.zero = true;
                }
                if insn.op() == insn::DIV && operand.max() == 0 {
                    next = [None, None];
                }
                let Some(result) = compute(insn, state.a, operand) else {
                    return Verdict::Depends;
                };
                state.a = result;
            }
            (_, insn::JMP_JA) => next = [Some(insn.k), None],
            (insn::JMP, _) => {
                let (jt, jf) = (Some(insn.jt.into()), Some(insn.jf.into()));

                next = match decide(insn, state.a, state.operand(insn)) {
                    Some(true) => [jt, None],
                    Some(false) => [jf, None],
                    None => [jt, jf],
                };
            }
            (_, insn::RET_K) => {
                results.add(Bits::exact(insn.k));
                next = [None, None];
            }
            (_, insn::RET_A) => {
                results.add(state.a);
                next = [None, None];
            }
            _ => return Verdict::Depends,
        }
        reached = next.contains(&Some(0));
        for offset in next.into_iter().flatten().filter(|&offset| offset != 0) {
            let target = usize::try_from(offset).ok();

            match target.and_then(|target| ahead.get_mut(target)) {
                Some(Some(other)) => other.meet(&state),
                Some(target) => *target = Some(state),
                None => return Verdict::Depends,
            }
        }
    }

    match (results.zero, results.other) {
        // The program ran past its end.
        _ if reached => Verdict::Depends,
        (false, true) => Verdict::Allow,
        (true, false) => Verdict::Deny,
        _ => Verdict::Depends,
    }
}
