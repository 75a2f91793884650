// SPDX-License-Identifier: GPL-2.0
//! The handling of filter programs before they run, by the files that the kernel is
//! built from: finding verdicts that no request can change, and fusing two programs
//! into one. Both are compared with an interpreter of classic BPF.

use crate::cases;
use crate::classic::bpf::Action;
use crate::classic::context::{PAYLOAD, WORDS, reads_payload};
use crate::classic::verdict::Verdict;
use crate::classic::{self, insn::*};
use crate::classic::{Context, as_requests_have_it, evaluate, fused, judge, run, valid};
use proptest::prelude::*;

const SOCKET: (u8, u16) = (45, 12);
const OPENAT: (u8, u16) = (18, 24);
const NOP: (u8, u16) = (0, 0);

/// Generates a number that is likely to matter.
pub(crate) fn number() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => 0u32..4,
        2 => Just(45u32),
        1 => Just(0xffu32),
        1 => Just(0x000c_002d_u32),
        2 => any::<u32>(),
        1 => (0u32..32).prop_map(|bit| 1 << bit),
    ]
}

fn any_jump() -> impl Strategy<Value = Insn> {
    let test = prop_oneof![Just(JEQ), Just(JGT), Just(JGE), Just(JSET)];
    prop_oneof![
        1 => any::<u32>().prop_map(|k| Insn::new(JMP_JA, k)),
        6 => (test, any::<bool>(), number(), any::<u8>(), any::<u8>())
            .prop_map(|(op, x, k, jt, jf)| Insn::jump(JMP | op | if x { X } else { K }, jt, jf, k)),
    ]
}

fn any_end() -> impl Strategy<Value = Insn> {
    prop_oneof![
        3 => number().prop_map(|k| Insn::new(RET_K, k)),
        1 => Just(Insn::new(RET_A, 0)),
    ]
}

/// Generates any instruction. The caller limits its jumps to the program.
fn any_insn() -> impl Strategy<Value = Insn> {
    let alu = prop_oneof![
        Just(ADD),
        Just(SUB),
        Just(MUL),
        Just(DIV),
        Just(OR),
        Just(AND),
        Just(LSH),
        Just(RSH),
        Just(XOR)
    ];
    prop_oneof![
        4 => (0u32..10).prop_map(|word| Insn::new(LD_ABS, 4 * word)),
        2 => Just(Insn::new(LD_ABS, 8)),
        1 => number().prop_map(|k| Insn::new(LD_IMM, k)),
        1 => number().prop_map(|k| Insn::new(LDX_IMM, k)),
        1 => (0u32..2).prop_map(|k| Insn::new(LD_MEM, k)),
        1 => (0u32..2).prop_map(|k| Insn::new(LDX_MEM, k)),
        1 => (0u32..2).prop_map(|k| Insn::new(ST, k)),
        1 => (0u32..2).prop_map(|k| Insn::new(STX, k)),
        1 => Just(Insn::new(MISC_TAX, 0)),
        1 => Just(Insn::new(MISC_TXA, 0)),
        1 => Just(Insn::new(ALU | NEG, 0)),
        4 => (alu, any::<bool>(), number()).prop_map(|(op, x, k)| {
            let k = match op {
                LSH | RSH => k % 32,
                DIV => k.max(1),
                _ => k,
            };
            Insn::new(ALU | op | if x { X } else { K }, k)
        }),
        7 => any_jump(),
        4 => any_end(),
    ]
}

/// Generates a program that the kernel accepts, of up to `longest` instructions plus a
/// few.
pub(crate) fn program(longest: usize) -> impl Strategy<Value = Vec<Insn>> {
    let body = prop::collection::vec(any_insn(), 0..longest);
    (any::<bool>(), body, any_end()).prop_map(|(scratch, body, end)| {
        let mut program = Vec::new();
        if scratch {
            program.extend([Insn::new(ST, 0), Insn::new(STX, 1)]);
        }
        program.extend(
            body.into_iter()
                .filter(|insn| scratch || !matches!(insn.code, LD_MEM | LDX_MEM)),
        );
        program.push(end);
        keep_jumps_inside(&mut program);
        program
    })
}

fn keep_jumps_inside(program: &mut [Insn]) {
    let len = program.len();
    for (pc, insn) in program.iter_mut().enumerate() {
        let room = len - pc - 1;
        if insn.code == JMP_JA {
            insn.k %= room as u32;
        } else if insn.class() == JMP {
            insn.jt = (usize::from(insn.jt) % room) as u8;
            insn.jf = (usize::from(insn.jf) % room) as u8;
        }
    }
}

/// Generates a filter that loads one word and tests it, as most filters do.
pub(crate) fn word_test() -> impl Strategy<Value = Vec<Insn>> {
    let word = prop_oneof![Just(0u32), Just(8), Just(16)];
    let insn = prop_oneof![
        6 => any_jump(),
        2 => any_end(),
        1 => Just(Insn::new(MISC_TAX, 0)),
    ];
    (word, prop::collection::vec(insn, 0..8), 0u32..2).prop_map(|(word, body, verdict)| {
        let mut program = vec![Insn::new(LD_ABS, word)];
        program.extend(body);
        program.push(Insn::new(RET_K, verdict));
        keep_jumps_inside(&mut program);
        program
    })
}

pub(crate) fn opcode() -> impl Strategy<Value = (u8, u16)> {
    prop_oneof![
        Just(NOP),
        Just(SOCKET),
        Just(OPENAT),
        (0u8..65).prop_map(|op| (op, 0))
    ]
}

/// Generates a context that a request of the given opcode can have.
pub(crate) fn context(of: (u8, u16)) -> impl Strategy<Value = Context> {
    let words = prop::collection::vec(number(), WORDS);
    words.prop_map(move |words| {
        let mut context = [0; 40];
        for (bytes, word) in context.chunks_mut(4).zip(words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        as_requests_have_it(&mut context, of);
        context
    })
}

/// Generates an opcode with its pdu size, and contexts of its requests.
pub(crate) fn requests() -> impl Strategy<Value = ((u8, u16), Vec<Context>)> {
    opcode().prop_flat_map(|of| (Just(of), prop::collection::vec(context(of), 8)))
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// A verdict is never "allow" for a program that can deny, nor "deny" for one that
    /// can allow.
    #[test]
    fn constant_verdicts_hold_for_every_request(program in program(30), (of, contexts) in requests()) {
        let verdict = evaluate(&program, of);
        for context in &contexts {
            match (verdict, run(&program, context)) {
                (Verdict::Allow, 0) => prop_assert!(false, "denies {context:?}"),
                (Verdict::Deny, 1..) => prop_assert!(false, "allows {context:?}"),
                _ => {}
            }
        }
    }

    /// A fused chain decides as its filters do one by one.
    #[test]
    fn fused_chain_decides_as_its_filters(
        chain in prop::collection::vec(prop_oneof![program(30), word_test()], 1..6),
        (_, contexts) in requests(),
    ) {
        let mut one = chain[0].clone();
        for newer in &chain[1..] {
            one = fused(newer, &one);
            prop_assert_eq!(valid(&one), Ok(()));
        }
        for context in &contexts {
            let all = chain.iter().all(|program| run(program, context) != 0);
            prop_assert_eq!(run(&one, context) != 0, all);
        }
    }
}

proptest! {
    #![proptest_config(cases(20_000))]

    /// Checks that a filter that is said not to read the payload decides without it as with
    /// it.
    #[test]
    fn unread_payload_does_not_matter(
        program in prop_oneof![program(8), word_test()], (_, contexts) in requests(),
    ) {
        for context in contexts.iter().filter(|_| !reads_payload(&program)) {
            let mut without = *context;
            without[PAYLOAD..].fill(0);
            prop_assert_eq!(run(&program, &without), run(&program, context));
        }
    }
}

/// Checks which words of the context are the payload.
#[test]
fn words_of_payload() {
    for word in 0..WORDS as u32 {
        let program = [Insn::new(LD_ABS, 4 * word), Insn::new(RET_A, 0)];
        assert_eq!(reads_payload(&program), 4 * word as usize >= PAYLOAD);
    }
    // The same number is no offset here.
    assert!(!reads_payload(&[Insn::new(LD_IMM, 16)]));
}

proptest! {
    #![proptest_config(cases(300))]

    /// The fused programs have jumps that no longer fit their eight bits.
    #[test]
    fn long_programs_with_far_jumps_fuse(
        newer in program(1200), older in program(600), (_, contexts) in requests(),
    ) {
        let one = fused(&newer, &older);
        prop_assert_eq!(valid(&one), Ok(()));
        for context in &contexts {
            let all = run(&newer, context) != 0 && run(&older, context) != 0;
            prop_assert_eq!(run(&one, context) != 0, all);
        }
    }
}

/// Checks an example of each kind of filter that people write.
#[test]
fn constant_verdicts_are_found() {
    let ret = |k| Insn::new(RET_K, k);
    let ld = |k| Insn::new(LD_ABS, k);
    let and = |k| Insn::new(ALU | AND | K, k);
    let jeq = |k, jt, jf| Insn::jump(JMP_JEQ_K, jt, jf, k);
    let opcode_is = |op| vec![ld(8), and(0xff), jeq(op, 0, 1), ret(1), ret(0)];
    let computed = |op, k, is| {
        let compute = Insn::new(ALU | op | K, k);
        vec![ld(8), and(0xff), compute, jeq(is, 0, 1), ret(1), ret(0)]
    };
    let compared = |op, k| {
        let test = Insn::jump(JMP | op | K, 0, 1, k);
        vec![ld(8), and(0xff), test, ret(1), ret(0)]
    };
    let size_is = |size: u32| vec![ld(8), and(0xff_0000), jeq(size << 16, 0, 1), ret(1), ret(0)];

    for (program, of, expected) in [
        (vec![ret(1)], NOP, Verdict::Allow),
        (vec![ret(u32::MAX)], NOP, Verdict::Allow),
        (vec![ret(0)], NOP, Verdict::Deny),
        (vec![Insn::new(RET_A, 0)], NOP, Verdict::Deny),
        (opcode_is(45), SOCKET, Verdict::Allow),
        (opcode_is(44), SOCKET, Verdict::Deny),
        (size_is(12), SOCKET, Verdict::Allow),
        (size_is(0), SOCKET, Verdict::Deny),
        (size_is(0), NOP, Verdict::Allow),
        // Padding, and what follows the opcode's data.
        (
            vec![ld(12), jeq(0, 0, 1), ret(1), ret(0)],
            OPENAT,
            Verdict::Allow,
        ),
        (
            vec![ld(28), jeq(0, 0, 1), ret(1), ret(0)],
            SOCKET,
            Verdict::Allow,
        ),
        (
            vec![ld(24), jeq(0, 0, 1), ret(1), ret(0)],
            SOCKET,
            Verdict::Depends,
        ),
        (
            vec![ld(36), jeq(0, 0, 1), ret(1), ret(0)],
            OPENAT,
            Verdict::Depends,
        ),
        (
            vec![ld(16), jeq(2, 0, 1), ret(1), ret(0)],
            NOP,
            Verdict::Deny,
        ),
        // `user_data` and the SQE flags.
        (
            vec![ld(0), jeq(0, 0, 1), ret(1), ret(0)],
            NOP,
            Verdict::Depends,
        ),
        (
            vec![ld(4), jeq(0, 0, 1), ret(1), ret(0)],
            NOP,
            Verdict::Depends,
        ),
        (
            vec![ld(8), and(0x7f00), jeq(0, 0, 1), ret(1), ret(0)],
            NOP,
            Verdict::Depends,
        ),
        // A bit that is set, whatever `user_data` is.
        (
            vec![
                ld(0),
                Insn::new(ALU | OR | K, 1),
                Insn::jump(JMP | JSET | K, 0, 1, 1),
                ret(1),
                ret(0),
            ],
            NOP,
            Verdict::Allow,
        ),
        // All bits of the result are known, whether they are set or not.
        (computed(OR, 7, 47), SOCKET, Verdict::Allow),
        (computed(XOR, 1, 44), SOCKET, Verdict::Allow),
        (computed(LSH, 4, 45 << 4), SOCKET, Verdict::Allow),
        (computed(RSH, 2, 45 >> 2), SOCKET, Verdict::Allow),
        (vec![ld(0), and(0), ret(1)], NOP, Verdict::Allow),
        (compared(JGT, 44), SOCKET, Verdict::Allow),
        (compared(JGT, 45), SOCKET, Verdict::Deny),
        (compared(JGE, 45), SOCKET, Verdict::Allow),
        (compared(JGE, 46), SOCKET, Verdict::Deny),
        // Padding behind the size.
        (
            vec![
                ld(8),
                Insn::jump(JMP | JSET | K, 0, 1, 1 << 31),
                ret(1),
                ret(0),
            ],
            NOP,
            Verdict::Deny,
        ),
        // A bit that is set on both ways.
        (
            vec![
                ld(0),
                jeq(7, 0, 2),
                Insn::new(LD_IMM, 1),
                Insn::new(JMP_JA, 1),
                Insn::new(LD_IMM, 3),
                Insn::jump(JMP | JSET | K, 0, 1, 1),
                ret(1),
                ret(0),
            ],
            NOP,
            Verdict::Allow,
        ),
        // Both arms of a branch that depends on the request allow.
        (
            vec![ld(0), jeq(7, 0, 1), ret(1), ret(2)],
            NOP,
            Verdict::Allow,
        ),
        // The divisor may be zero, or is zero.
        (
            vec![
                ld(0),
                Insn::new(MISC_TAX, 0),
                Insn::new(ALU | DIV | X, 0),
                ret(1),
            ],
            NOP,
            Verdict::Depends,
        ),
        (
            vec![
                ld(12),
                Insn::new(MISC_TAX, 0),
                Insn::new(ALU | DIV | X, 0),
                ret(1),
            ],
            NOP,
            Verdict::Deny,
        ),
        // An unknown instruction could do anything.
        (
            vec![Insn::new(ALU | 0x90 | X, 0), ret(1)],
            NOP,
            Verdict::Depends,
        ),
    ] {
        assert_eq!(evaluate(&program, of), expected, "{program:?} for {of:?}");
    }
}

/// A filter that tests the same word as the one before it costs one instruction.
#[test]
fn second_test_of_a_word_costs_one_instruction() {
    let test = |k| {
        vec![
            Insn::new(LD_ABS, 0),
            Insn::jump(JMP_JEQ_K, 0, 1, k),
            Insn::new(RET_K, 0),
            Insn::new(RET_K, 1),
        ]
    };
    let one = fused(&test(2), &test(1));
    assert_eq!(
        one,
        [
            Insn::new(LD_ABS, 0),
            Insn::jump(JMP_JEQ_K, 1, 0, 2),
            Insn::jump(JMP_JEQ_K, 0, 1, 1),
            Insn::new(RET_K, 0),
            Insn::new(RET_K, 1),
        ]
    );
}

/// A and X are zero again at the start of the older program, if it reads them.
#[test]
fn registers_start_at_zero_in_every_filter() {
    let newer = [
        Insn::new(LD_IMM, 7),
        Insn::new(MISC_TAX, 0),
        Insn::new(RET_K, 1),
    ];
    for older in [
        vec![Insn::new(RET_A, 0)],
        vec![Insn::new(MISC_TXA, 0), Insn::new(RET_A, 0)],
        vec![Insn::new(ALU | ADD | K, 2), Insn::new(RET_A, 0)],
        vec![
            Insn::jump(JMP_JEQ_K, 0, 1, 0),
            Insn::new(RET_K, 5),
            Insn::new(RET_K, 0),
        ],
        vec![
            Insn::new(LD_IMM, 1),
            Insn::jump(JMP | JEQ | X, 0, 1, 0),
            Insn::new(RET_K, 5),
            Insn::new(RET_K, 0),
        ],
    ] {
        let one = fused(&newer, &older);
        assert_eq!(run(&one, &[0; 40]), run(&older, &[0; 40]), "{one:?}");
    }
}

/// A program that the kernel refuses never gets a constant verdict. Its codes may be
/// unknown, and its jumps or its end may lead out of it.
#[test]
fn refused_programs_get_no_constant_verdict() {
    let judge = |program: &[Insn], room: usize| {
        let context = classic::verdict::context(NOP.0, NOP.1);
        classic::verdict::evaluate(program, &context, &mut vec![None; room])
    };
    let allow = Insn::new(RET_K, 1);
    // A = `user_data`, which is unknown.
    let load = Insn::new(LD_ABS, 0);

    assert_eq!(judge(&[load, allow], 2), Verdict::Allow);
    for program in [
        // ALU | MOD, LD | B | ABS, and JMP with an operation that does not exist.
        vec![load, Insn::new(ALU | 0x90, 1), allow],
        vec![Insn::new(0x30, 0), allow],
        vec![
            load,
            Insn::jump(JMP | 0x50, 1, 0, 1),
            Insn::new(RET_K, 0),
            allow,
        ],
        vec![],
        vec![load],
        vec![Insn::new(JMP_JA, 1), allow],
        vec![Insn::new(JMP_JA, u32::MAX), allow],
        vec![load, Insn::jump(JMP_JEQ_K, 1, 0, 7), allow],
    ] {
        assert_eq!(
            judge(&program, program.len()),
            Verdict::Depends,
            "{program:?}"
        );
    }
    assert_eq!(judge(&[load, allow], 1), Verdict::Depends);
}

/// A filter may have only the codes that the interpreter knows, and may load only
/// aligned words of the context.
#[test]
fn only_known_codes_and_aligned_loads_are_accepted() {
    for code in 0..=u16::MAX {
        let known = classic::CODES.contains(&code);
        for k in [
            0,
            1,
            2,
            3,
            4,
            36,
            37,
            38,
            39,
            40,
            44,
            u32::MAX - 3,
            u32::MAX,
        ] {
            let want = match code {
                LD_ABS if k > 36 || k % 4 != 0 => None,
                LD_ABS => Some(Action::Keep),
                LD_LEN | LDX_LEN => Some(Action::LoadConstant(40)),
                _ => known.then_some(Action::Keep),
            };
            assert_eq!(classic::check::check(code, k, 40), want, "{code:#x}, {k}");
        }
    }
}

/// Checks the inputs that `make fuzz` found worth keeping.
#[test]
fn corpus_passes() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../fuzz/corpus");
    let files: Vec<_> = std::fs::read_dir(corpus).unwrap().collect();
    assert!(files.len() >= 20, "{} files in {corpus}", files.len());
    for file in files {
        judge::judge(&std::fs::read(file.unwrap().path()).unwrap());
    }
}
