// SPDX-License-Identifier: GPL-2.0
//! The translation of filters to eBPF: the crate `rbpf`, which knows nothing of the
//! kernel's code, runs the result, and the interpreter of classic BPF the original.

use crate::cases;
use crate::classic::translate::{Field, Load, stack_size, translate};
use crate::classic::translated::{plain, run_translated, translated};
use crate::classic::{Context, insn::*, run};
use crate::filter_programs::program;
use proptest::prelude::*;

/// The size of the objects from which programs load.
const OBJECT: usize = 256;

/// A way to load a word, as the model understands it.
#[derive(Clone, Copy, Debug)]
enum Word {
    Constant(u32),
    Whole {
        at: usize,
        mask: u32,
    },
    Byte {
        at: usize,
        mask: u8,
        index: usize,
        constant: [u8; 4],
    },
}

impl Word {
    fn load(&self) -> Load {
        match *self {
            Word::Constant(value) => Load::Constant(value),
            Word::Whole { at, mask } => Load::Field(Field::word(at).masked(mask)),
            Word::Byte {
                at,
                mask,
                index,
                constant,
            } => Load::Field(
                Field::byte(at)
                    .masked(mask.into())
                    .at_byte(index)
                    .with(u32::from_ne_bytes(constant)),
            ),
        }
    }

    fn value(&self, object: &[u8; OBJECT]) -> u32 {
        match *self {
            Word::Constant(value) => value,
            Word::Whole { at, mask } => {
                u32::from_ne_bytes(object[at..at + 4].try_into().unwrap()) & mask
            }
            Word::Byte {
                at,
                mask,
                index,
                mut constant,
            } => {
                constant[index] |= object[at] & mask;
                u32::from_ne_bytes(constant)
            }
        }
    }
}

fn word() -> impl Strategy<Value = Word> {
    let mask = prop_oneof![Just(u32::MAX), any::<u32>()];
    let constant = prop_oneof![Just([0; 4]), any::<[u8; 4]>()];
    prop_oneof![
        any::<u32>().prop_map(Word::Constant),
        (0..OBJECT / 4, mask).prop_map(|(word, mask)| Word::Whole { at: 4 * word, mask }),
        (0..OBJECT, any::<u8>(), 0usize..4, constant).prop_map(|(at, mask, index, constant)| {
            Word::Byte {
                at,
                mask,
                index,
                constant,
            }
        }),
    ]
}

/// Returns the context that programs see.
fn context(words: &[Word; 10], object: &[u8; OBJECT]) -> Context {
    let mut context = [0; 40];
    for (word, bytes) in words.iter().zip(context.chunks_mut(4)) {
        bytes.copy_from_slice(&word.value(object).to_ne_bytes());
    }
    context
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// A translated program returns what the classic one returns, wherever its words are.
    #[test]
    fn translations_agree(
        program in prop_oneof![program(6), program(40)],
        words in prop::array::uniform10(word()),
        mut object in prop::array::uniform32(prop::array::uniform8(any::<u8>())),
    ) {
        let object: &mut [u8; OBJECT] = object.as_flattened_mut().try_into().unwrap();
        let code = translated(&program, &words.map(|word| word.load())).unwrap();
        prop_assert_eq!(run_translated(&code, object), run(&program, &context(&words, object)));
        prop_assert_eq!(stack_size(&program), 4 * scratch_words(&program));
    }
}

/// Returns the number of scratch words up to the last that a program accesses.
fn scratch_words(program: &[Insn]) -> u32 {
    let accesses = |insn: &&Insn| [ST, STX, LD_MEM, LDX_MEM].contains(&insn.code);
    let last = program.iter().filter(accesses).map(|insn| insn.k).max();
    last.map_or(0, |last| last + 1)
}

/// Returns the number of eBPF instructions.
fn count(program: &[Insn]) -> usize {
    translated(program, &plain()).unwrap().len() / 8
}

/// Usual filters become as few instructions as possible: nothing is cleared that is not
/// read.
#[test]
fn usual_filters_are_short() {
    let ret = |k| Insn::new(RET_K, k);
    let ld = Insn::new(LD_ABS, 0);
    assert_eq!(count(&[ret(1)]), 2);
    // A load, a jump, and twice a constant and an exit.
    assert_eq!(
        count(&[ld, Insn::jump(JMP_JEQ_K, 0, 1, 7), ret(0), ret(1)]),
        6
    );
    assert_eq!(
        count(&[ld, Insn::jump(JMP | JSET | K, 1, 0, 7), ret(0), ret(1)]),
        6
    );
    assert_eq!(
        count(&[ld, Insn::jump(JMP | JSET | K, 0, 1, 7), ret(0), ret(1)]),
        7
    );
    assert_eq!(count(&[ld, Insn::new(RET_A, 0)]), 2);
    assert_eq!(
        count(&[ld, Insn::new(ALU | AND | K, 7), Insn::new(RET_A, 0)]),
        3
    );
    // Registers that are read at once, or perhaps, are cleared.
    assert_eq!(count(&[Insn::new(RET_A, 0)]), 2);
    assert_eq!(
        count(&[ld, Insn::new(ALU | ADD | X, 0), Insn::new(RET_A, 0)]),
        4
    );
    // X has a value before it is read.
    let add = [Insn::new(ALU | ADD | X, 0), Insn::new(RET_A, 0)];
    assert_eq!(
        count(&[&[ld, Insn::new(MISC_TAX, 0)], &add[..]].concat()),
        4
    );
    assert_eq!(count(&[&[Insn::new(LDX_IMM, 5), ld], &add[..]].concat()), 4);
    let (tax, txa) = (Insn::new(MISC_TAX, 0), Insn::new(MISC_TXA, 0));
    let returned = Insn::new(RET_A, 0);
    assert_eq!(count(&[Insn::new(LDX_IMM, 5), txa, returned]), 3);
    assert_eq!(count(&[tax, txa, returned]), 4);
    let maybe = [
        ld,
        Insn::jump(JMP_JEQ_K, 0, 1, 7),
        Insn::new(MISC_TAX, 0),
        Insn::new(MISC_TXA, 0),
        Insn::new(RET_A, 0),
    ];
    assert_eq!(count(&maybe), 6);
}

/// A division by zero ends the program with zero, whether the quotient or the remainder is
/// asked for.
#[test]
fn divisions_by_zero_end_the_program() {
    for (op, by_five) in [(DIV, 4), (MOD, 3)] {
        for (divisor, want) in [(5, by_five + 1), (0, 0)] {
            let program = [
                Insn::new(LDX_IMM, divisor),
                Insn::new(LD_IMM, 23),
                Insn::new(ALU | op | X, 0),
                Insn::new(ALU | ADD | K, 1),
                Insn::new(RET_A, 0),
            ];
            let code = translated(&program, &plain()).unwrap();
            assert_eq!(run_translated(&code, &mut [0; OBJECT]), want);
        }
    }
}

/// What is no checked program is refused.
#[test]
fn other_programs_are_refused() {
    let refused = |program: &[Insn]| translated(program, &plain()).is_none();
    let ret = Insn::new(RET_K, 1);
    // A load outside the context, jumps outside the program, and unknown codes.
    assert!(refused(&[Insn::new(LD_ABS, 40), ret]));
    assert!(refused(&[Insn::new(JMP_JA, 1), ret]));
    assert!(refused(&[Insn::new(JMP_JA, u32::MAX), ret]));
    assert!(refused(&[Insn::jump(JMP_JEQ_K, 1, 0, 0), ret]));
    assert!(refused(&[Insn::jump(JMP_JEQ_K, 0, 1, 0), ret]));
    assert!(refused(&[Insn::new(LD_LEN, 0), ret]));
    assert!(refused(&[Insn::new(ST, u32::MAX), ret]));
    assert!(refused(&[Insn::new(0xffff, 0), ret]));
    // Scratch memory for the starts that is too small.
    assert!(translate(&[ret], |_| None, &mut [], |_| Some(())).is_none());
    // Memory for the result that is full.
    assert!(translate(&[ret], |_| None, &mut [0], |_| None).is_none());
}

/// The longest programs fit.
#[test]
fn longest_programs_fit() {
    let mut program = vec![Insn::new(ALU | DIV | X, 0); 4095];
    program[0] = Insn::new(JMP_JA, 4094);
    program.push(Insn::new(RET_K, 7));
    let code = translated(&program, &plain()).unwrap();
    assert_eq!(run_translated(&code, &mut [0; OBJECT]), 7);
}
