// SPDX-License-Identifier: GPL-2.0
//! Filters that read no more of a request than the flags of its SQE: the set of flags
//! that each allows is held against an interpreter of classic BPF.

use crate::cases;
use crate::classic::context::WORDS;
use crate::classic::verdict::Verdict;
use crate::classic::{Context, allowed_flags, evaluate, insn::*, interpreter, run};
use crate::filter_programs::{opcode, program, requests, word_test};
use crate::io_uring::sqe_flags::FlagSet;
use proptest::prelude::*;

const NOP: (u8, u16) = (0, 0);

/// Returns the words of a context.
fn words(context: &Context) -> [Option<u32>; WORDS] {
    let mut words = [None; WORDS];
    for (word, bytes) in words.iter_mut().zip(context.chunks(4)) {
        *word = Some(u32::from_ne_bytes(bytes.try_into().unwrap()));
    }
    words
}

/// Generates a filter that loads the opcode, the flags and the size, and words that are
/// the same in all requests for NOP.
fn flags_test() -> impl Strategy<Value = Vec<Insn>> {
    program(12).prop_map(|mut program| {
        for insn in &mut program {
            if insn.code == LD_ABS {
                insn.k = [8, 8, 8, 12, 16][insn.k as usize / 4 % 5];
            }
        }
        program
    })
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// A set says what the filter decides, whatever else the request has.
    #[test]
    fn sets_say_what_filters_decide(
        program in prop_oneof![program(20), word_test(), flags_test()],
        (of, contexts) in requests(),
    ) {
        if let Some(set) = allowed_flags(&program, of) {
            for mut context in contexts {
                for flags in 0..128 {
                    context[9] = flags;
                    prop_assert_eq!(set.contains(flags), run(&program, &context) != 0, "{}", flags);
                }
            }
        }
    }

    /// There is a set for each short filter that loads nothing else.
    #[test]
    fn sets_are_found(program in flags_test()) {
        let set = allowed_flags(&program, NOP);
        prop_assert!(set.is_some());
        match evaluate(&program, NOP) {
            Verdict::Allow => prop_assert_eq!(set, Some(FlagSet::ALL)),
            Verdict::Deny => prop_assert_eq!(set, Some(FlagSet::NONE)),
            Verdict::Depends => {}
        }
    }

    /// Stacked filters allow what each allows.
    #[test]
    fn stacking_is_an_and(one in flags_test(), other in flags_test(), flags in 0u8..128) {
        let (one, other) = (allowed_flags(&one, NOP).unwrap(), allowed_flags(&other, NOP).unwrap());
        let both = one.and(other);
        prop_assert_eq!(both.contains(flags), one.contains(flags) && other.contains(flags));
    }

    /// The kernel's interpreter does what the model does.
    #[test]
    fn interpreters_agree(program in program(30), (_, contexts) in requests()) {
        for context in &contexts {
            prop_assert_eq!(interpreter::run(&program, &words(context)), Some(run(&program, context)));
        }
    }

    /// A word that is not known has no influence, or there is no result.
    #[test]
    fn unknown_words_are_not_guessed(
        program in program(20), missing in 0..WORDS, (_, contexts) in requests(),
    ) {
        for context in &contexts {
            let mut known = words(context);
            known[missing] = None;
            if let Some(result) = interpreter::run(&program, &known) {
                prop_assert_eq!(result, run(&program, context));
            }
        }
    }
}

/// A long filter of few flags has a set, although there is no time to run it for each
/// value of the flags, nor to find these flags by trying all.
#[test]
fn long_filters_of_few_flags_have_a_set() {
    for denied in [0x40, 0x60] {
        let mut program = vec![Insn::new(LD_IMM, 0); 1000];
        let test = |skipped| Insn::jump(JMP | JSET | K, skipped, 0, flags_word(denied));
        program.extend([ld(8), test(2), test(1), ret(1), ret(0)]);
        let set = allowed_flags(&program, NOP).expect("no set");
        for flags in 0..128 {
            assert_eq!(set.contains(flags), flags & denied == 0, "{flags:#x}");
        }
    }
}

/// A program with an instruction that the checker refuses or replaces has no result.
#[test]
fn unchecked_programs_have_no_result() {
    let codes = [LD_LEN, LDX_LEN, LD | 0x40, ALU | MOD, JMP | 0x50, RET | X];
    for code in codes {
        let program = [Insn::new(code, 1), ret(1)];
        assert_eq!(
            interpreter::run(&program, &[Some(0); WORDS]),
            None,
            "{code:#x}"
        );
    }
}

fn ld(k: u32) -> Insn {
    Insn::new(LD_ABS, k)
}

fn ret(k: u32) -> Insn {
    Insn::new(RET_K, k)
}

/// Returns the word in which the flags are `flags`.
fn flags_word(flags: u8) -> u32 {
    u32::from_ne_bytes([0, flags, 0, 0])
}

/// Filters as people write them.
#[test]
fn usual_filters_have_their_sets() {
    let denies = |flags: u8| {
        let test = Insn::jump(JMP | JSET | K, 0, 1, flags_word(flags));
        vec![ld(8), test, ret(0), ret(1)]
    };
    for refused in [0x01u8, 0x20, 0x40, 0x21, 0x7f] {
        let set = allowed_flags(&denies(refused), NOP).unwrap();
        for flags in 0..128 {
            assert_eq!(
                set.contains(flags),
                flags & refused == 0,
                "{refused:#x} {flags:#x}"
            );
        }
    }
    // Only these flags, the opcode masked away.
    let mask = Insn::new(ALU | AND | K, flags_word(0x7f));
    for wanted in [0x10, 0x7f] {
        let test = Insn::jump(JMP_JEQ_K, 0, 1, flags_word(wanted));
        let set = allowed_flags(&[ld(8), mask, test, ret(1), ret(0)], NOP).unwrap();
        assert!((0..128).all(|flags| set.contains(flags) == (flags == wanted)));
    }
    // By way of a scratch word, and whether the number of flags is odd.
    let kept = [
        ld(8),
        mask,
        Insn::new(ST, 3),
        Insn::new(LD_IMM, 0),
        Insn::new(LD_MEM, 3),
        Insn::new(RET_A, 0),
    ];
    let set = allowed_flags(&kept, NOP).unwrap();
    assert!((0..128).all(|flags| set.contains(flags) == (flags != 0)));
}

/// Filters that ask for more have no set.
#[test]
fn filters_of_other_words_have_no_set() {
    for offset in [0, 4] {
        assert_eq!(allowed_flags(&[ld(offset), Insn::new(RET_A, 0)], NOP), None);
    }
    // The arguments of SOCKET, but not what is behind them.
    let word = |offset| allowed_flags(&[ld(offset), Insn::new(RET_A, 0)], (45, 12));
    assert_eq!(word(16), None);
    assert_eq!(word(24), None);
    assert_eq!(word(28), Some(FlagSet::NONE));
    // A program that is no program.
    assert_eq!(allowed_flags(&[ld(8)], NOP), None);
    assert_eq!(allowed_flags(&[ld(40), ret(1)], NOP), None);
}

/// A set as a number has the bits of its values.
#[test]
fn sets_as_numbers() {
    for flags in 0..128u8 {
        let [high, low] = FlagSet::containing(flags).halves();
        let number = u128::from(high) << 64 | u128::from(low);
        for value in 0..128u8 {
            assert_eq!(number >> value & 1 != 0, value & flags == flags);
        }
    }
}

/// Values that are in one of two sets, or in both, are in their union.
#[test]
fn unions_have_the_values_of_both() {
    let union = FlagSet::containing(1).or(FlagSet::containing(2));
    for flags in 0..128u8 {
        assert_eq!(union.contains(flags), flags & 3 != 0);
    }
}

/// A long filter that decides by each flag at its end takes too long.
#[test]
fn long_filters_of_each_flag_have_no_set() {
    let parity = |len: usize| {
        let mut program = vec![ld(8)];
        for shift in [16, 8, 4, 2, 1] {
            program.extend([
                Insn::new(MISC_TAX, 0),
                Insn::new(ALU | RSH | K, shift),
                Insn::new(ALU | XOR | X, 0),
            ]);
        }
        program.push(Insn::new(ALU | AND | K, 1));
        program.resize(len, Insn::new(ALU | OR | K, 0));
        program.push(Insn::new(RET_A, 0));
        program
    };
    let set = allowed_flags(&parity(17), NOP).unwrap();
    assert!((0..128).all(|flags: u8| set.contains(flags) == (flags.count_ones() % 2 == 1)));
    // It runs some 140 times; the time that is granted is just enough for 32 instructions.
    assert!(allowed_flags(&parity(31), NOP).is_some());
    assert_eq!(allowed_flags(&parity(32), NOP), None);
    assert_eq!(allowed_flags(&parity(4000), NOP), None);
    // What is certain takes one look, however long it is.
    let mut long = vec![ld(8); 4000];
    long.push(ret(1));
    assert_eq!(allowed_flags(&long, NOP), Some(FlagSet::ALL));
}

proptest! {
    /// Opcodes differ in what is known of them.
    #[test]
    fn opcodes_are_known((op, size) in opcode()) {
        let is = |op: u8| {
            let mask = Insn::new(ALU | AND | K, u32::from_ne_bytes([0xff, 0, 0, 0]));
            let test = Insn::jump(JMP_JEQ_K, 0, 1, u32::from_ne_bytes([op, 0, 0, 0]));
            vec![ld(8), mask, test, ret(1), ret(0)]
        };
        prop_assert_eq!(allowed_flags(&is(op), (op, size)), Some(FlagSet::ALL));
        prop_assert_eq!(allowed_flags(&is(op ^ 1), (op, size)), Some(FlagSet::NONE));
    }
}
