// SPDX-License-Identifier: GPL-2.0

//! An interpreter of classic BPF for contexts that are known when a filter is registered.
//!
//! Uses nothing but `core` and the instructions.

use kernel::bpf::insn::{
    self,
    Insn, //
};

/// The number of scratch words of a program: C's `BPF_MEMWORDS`.
const SCRATCH_WORDS: usize = 16;

/// Runs `program`, which must have been checked, on a context that consists of `words`. Returns its
/// result, or [`None`] if it loads a word that is not known, or is no program that was checked.
pub(crate) fn run(program: &[Insn], words: &[Option<u32>]) -> Option<u32> {
    let (mut a, mut x, mut scratch) = (0u32, 0u32, [0; SCRATCH_WORDS]);
    let mut rest = program.iter();

    // Jumps only lead forward, so that this ends.
    while let Some(insn) = rest.next() {
        let operand = if insn.has_x() { x } else { insn.k };
        let index = usize::try_from(insn.k).ok()?;
        let mut skipped = 0;

        match (insn.class(), insn.code) {
            (_, insn::LD_ABS) => a = *words.get(index / 4)?.as_ref()?,
            (_, insn::LD_IMM) => a = insn.k,
            (_, insn::LD_MEM) => a = *scratch.get(index)?,
            (_, insn::LDX_IMM) => x = insn.k,
            (_, insn::LDX_MEM) => x = *scratch.get(index)?,
            (_, insn::ST) => *scratch.get_mut(index)? = a,
            (_, insn::STX) => *scratch.get_mut(index)? = x,
            (_, insn::MISC_TAX) => x = a,
            (_, insn::MISC_TXA) => a = x,
            (insn::ALU, _) => {
                a = match insn.op() {
                    insn::ADD => a.wrapping_add(operand),
                    insn::SUB => a.wrapping_sub(operand),
                    insn::MUL => a.wrapping_mul(operand),
                    // A program that divides by zero ends and returns zero.
                    insn::DIV => match a.checked_div(operand) {
                        Some(quotient) => quotient,
                        None => return Some(0),
                    },
                    insn::OR => a | operand,
                    insn::AND => a & operand,
                    insn::LSH => a.wrapping_shl(operand),
                    insn::RSH => a.wrapping_shr(operand),
                    insn::NEG => a.wrapping_neg(),
                    insn::XOR => a ^ operand,
                    _ => return None,
                }
            }
            (_, insn::JMP_JA) => skipped = index,
            (insn::JMP, _) => {
                let taken = match insn.op() {
                    insn::JEQ => a == operand,
                    insn::JGT => a > operand,
                    insn::JGE => a >= operand,
                    insn::JSET => a & operand != 0,
                    _ => return None,
                };
                skipped = usize::from(if taken { insn.jt } else { insn.jf });
            }
            (_, insn::RET_K) => return Some(insn.k),
            (_, insn::RET_A) => return Some(a),
            _ => return None,
        }
        if skipped != 0 {
            rest.nth(skipped - 1)?;
        }
    }
    // It ran past its end.
    None
}
