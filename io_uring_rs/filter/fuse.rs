// SPDX-License-Identifier: GPL-2.0

//! Fusing: making one program that denies what either of two programs denies.
//!
//! The newer program comes first. Its `ret` instructions that allow become jumps to the older
//! program, which finds A and X as at its start: zero. Those that deny stay as they are, or become
//! jumps to one in the older program. Scratch words need no care: a checked program writes them
//! before it reads them.
//!
//! Stacked filters tend to test the same word. So that each costs little more than its test, the
//! word that the older program loads first is not loaded again if A still holds it.
//!
//! Uses nothing but `core` and the instructions. Both programs must have been checked.

use kernel::bpf::insn::{
    self,
    Insn, //
};

/// The most instructions that [`fuse`] makes from one instruction of the newer program.
pub(crate) const EXPANSION_MAX: usize = 3;

/// The most instructions that [`fuse`] adds between the two programs.
pub(crate) const GLUE_MAX: usize = 2;

/// The use of a register by an instruction.
#[derive(Clone, Copy, Default)]
struct Use {
    read: bool,
    written: bool,
}

/// Returns how `insn` uses A and X, in this order.
fn uses(insn: &Insn) -> [Use; 2] {
    let (mut a, mut x) = (Use::default(), Use::default());

    match insn.class() {
        insn::LD => a.written = true,
        insn::LDX => x.written = true,
        insn::ST => a.read = true,
        insn::STX => x.read = true,
        insn::ALU => {
            a = Use {
                read: true,
                written: true,
            };
            x.read = insn.has_x();
        }
        insn::JMP => {
            a.read = insn.op() != insn::JA;
            x.read = insn.has_x();
        }
        insn::RET => a.read = insn.code == insn::RET_A,
        _ if insn.code == insn::MISC_TAX => (a.read, x.written) = (true, true),
        _ => (a.written, x.read) = (true, true),
    }
    [a, x]
}

/// Checks whether `program` may read A and X, in this order, before it writes to them. Looks no
/// further than the first jump.
fn reads_at_start(program: &[Insn]) -> [bool; 2] {
    [0, 1].map(|register| {
        let of = |insn: &Insn| uses(insn).get(register).copied().unwrap_or_default();
        let first = program
            .iter()
            .take_while(|insn| insn.class() != insn::JMP)
            .map(of)
            .find(|used| used.read || used.written);

        match first {
            Some(used) => used.read,
            None => program.iter().any(|insn| of(insn).read),
        }
    })
}

/// Returns the offset of the word of the context that A holds wherever `program` ends, if `program`
/// loads that word first and writes nothing else to A.
fn word_kept_in_a(program: &[Insn]) -> Option<u32> {
    let (first, rest) = program.split_first()?;
    let kept = first.code == insn::LD_ABS
        && rest.iter().all(|insn| {
            let [a, _] = uses(insn);
            !a.written
        });

    kept.then_some(first.k)
}

/// Returns whether `insn` is a `ret` that denies.
fn denies(insn: &Insn) -> bool {
    insn.code == insn::RET_K && insn.k == 0
}

/// Returns the position of the first `ret` of `program` that denies, if there is one. Also returns
/// [`None`] if the program reads scratch words: the kernel's checker assumes that a program
/// continues past a `ret`, so a jump to that `ret` would make it see reads of words that are not
/// written yet.
fn shared_deny(program: &[Insn]) -> Option<usize> {
    let reads_scratch = |insn: &Insn| matches!(insn.code, insn::LD_MEM | insn::LDX_MEM);

    if program.iter().any(reads_scratch) {
        return None;
    }
    program.iter().position(denies)
}

/// Returns whether the instruction at `pc` is reached by jumps only, not from the one before it.
fn only_by_jumps(program: &[Insn], pc: usize) -> bool {
    pc.checked_sub(1)
        .and_then(|before| program.get(before))
        .is_some_and(|before| matches!(before.class(), insn::JMP | insn::RET))
}

/// Writes the program that denies what `newer` or `older` denies. Calls `push` for each
/// instruction, the last one first.
///
/// `insns_to_end` is scratch memory, with one element more than `newer` has instructions.
///
/// # Errors
///
/// The first error that `push` returns.
pub(crate) fn fuse<E>(
    newer: &[Insn],
    older: &[Insn],
    insns_to_end: &mut [u32],
    mut push: impl FnMut(Insn) -> Result<(), E>,
) -> Result<(), E> {
    let [a, x] = reads_at_start(older);
    let older = match (word_kept_in_a(newer), older.split_first()) {
        (Some(word), Some((first, rest))) if *first == Insn::new(insn::LD_ABS, word) => rest,
        _ => older,
    };

    older.iter().rev().try_for_each(|insn| push(*insn))?;
    if x {
        push(Insn::new(insn::LDX_IMM, 0))?;
    }
    if a {
        push(Insn::new(insn::LD_IMM, 0))?;
    }
    // The number of instructions from the end of the newer program to a `ret` of the older one that
    // denies, if any jump can reach that far: conditional ones have eight bits for it.
    let shared_deny = shared_deny(older)
        .map(|position| usize::from(a) + usize::from(x) + position)
        .filter(|behind| behind + EXPANSION_MAX * newer.len() <= usize::from(u8::MAX))
        .map(|behind| behind as u32);

    // Jumps only go forward. So, going backward, all that a jump skips is written already. For each
    // instruction, `insns_to_end` holds the number of instructions from it to the end of the newer
    // program.
    let mut here = 0u32;
    for (pc, insn) in newer.iter().enumerate().rev() {
        let end = here;
        let skip = |offset: u32| {
            let target = (pc + 1).saturating_add(offset as usize);

            match (newer.get(target), shared_deny) {
                // A `ret` that allows becomes a jump to the end, so jump there at once.
                (
                    Some(&Insn {
                        code: insn::RET_K,
                        k: 1..,
                        ..
                    }),
                    _,
                ) => end,
                // A `ret` that denies is shared with the older program.
                (Some(insn), Some(behind)) if denies(insn) => end + behind,
                _ => end.saturating_sub(insns_to_end.get(target).copied().unwrap_or(0)),
            }
        };
        let mut emit = |insn| {
            here += 1;
            push(insn)
        };

        match (insn.class(), insn.code) {
            (_, insn::RET_K) if insn.k != 0 => match end {
                0 => {}
                skipped => emit(Insn::new(insn::JMP_JA, skipped))?,
            },
            // All jumps to this `ret` lead to the older program's, so it is left out.
            (_, insn::RET_K) if shared_deny.is_some() && only_by_jumps(newer, pc) => {}
            (_, insn::RET_A) => {
                let deny = Insn::new(insn::RET_K, 0);
                let shared = shared_deny.and_then(|behind| u8::try_from(end + behind).ok());

                if let (Some(jt), Ok(jf)) = (shared, u8::try_from(end)) {
                    emit(Insn::jump(insn::JMP_JEQ_K, jt, jf, 0))?;
                // If A is not zero, jumps over `deny` to the end.
                } else if let Ok(skipped) = u8::try_from(end + 1) {
                    emit(deny)?;
                    emit(Insn::jump(insn::JMP_JEQ_K, 0, skipped, 0))?;
                } else {
                    emit(Insn::new(insn::JMP_JA, end))?;
                    emit(deny)?;
                    emit(Insn::jump(insn::JMP_JEQ_K, 0, 1, 0))?;
                }
            }
            (_, insn::JMP_JA) => match skip(insn.k) {
                0 => {}
                skipped => emit(Insn::new(insn::JMP_JA, skipped))?,
            },
            (insn::JMP, _) => {
                let (far_t, far_f) = (skip(insn.jt.into()), skip(insn.jf.into()));

                if let (Ok(jt), Ok(jf)) = (u8::try_from(far_t), u8::try_from(far_f)) {
                    emit(Insn { jt, jf, ..*insn })?;
                } else {
                    emit(Insn::new(insn::JMP_JA, far_f))?;
                    emit(Insn::new(insn::JMP_JA, far_t + 1))?;
                    emit(Insn {
                        jt: 0,
                        jf: 1,
                        ..*insn
                    })?;
                }
            }
            _ => emit(*insn)?,
        }
        if let Some(to_end) = insns_to_end.get_mut(pc) {
            *to_end = here;
        }
    }
    Ok(())
}
