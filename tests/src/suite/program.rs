// SPDX-License-Identifier: GPL-2.0
//! D2: the programs that registration accepts, and the verdicts that they compute.

use libc::{
    BPF_ABS, BPF_ALU, BPF_B, BPF_DIV, BPF_H, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD,
    BPF_LDX, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MOD, BPF_MSH, BPF_RET, BPF_RSH, BPF_ST, BPF_STX,
    BPF_W, BPF_X,
};

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{
    self, CONTEXT_SIZE, OPCODE_WORD, Program, USER_DATA_HI, USER_DATA_LO, insn, ld, ret,
};
use crate::kernel::{BPF_MAXINSNS, expect_eq, expect_result};
use crate::model::{self, Context};
use crate::ring::Ring;
use crate::sqe::{
    IOSQE_ASYNC, IOSQE_BUFFER_SELECT, IOSQE_CQE_SKIP_SUCCESS, IOSQE_FIXED_FILE, IOSQE_IO_DRAIN,
    IOSQE_IO_LINK, Sqe, op,
};

pub const TESTS: &[Test] = tests! {
    "filters::program" {
        FP02 instructions_outside_the_whitelist_are_refused;
        FP03 only_aligned_loads_inside_the_context_are_accepted;
        FP04 length_loads_return_40;
        FP05 programs_that_the_classic_checker_refuses_are_refused;
        FP06 any_nonzero_return_value_allows;
        FP07 zero_denies_and_registers_start_at_zero;
        FP08 division_by_zero_denies;
        FP09 verdict_may_be_in_instruction_4096;
        FP13 internal_context_load_is_refused;
        FP15 words_are_in_host_order_on_little_endian;
        FP15be words_are_in_host_order_on_big_endian;
        FP16 stacked_tests_of_flags_agree_with_the_model (20 s);
    }
};

/// Checks that a program is refused with EINVAL and that the ring stays without a
/// filter.
fn refused(ring: &mut Ring, what: &str, program: &[bpf::Insn]) -> anyhow::Result<()> {
    expect_result(what, ring.filter(op::NOP, program), -libc::EINVAL)?;
    ring.expect(&format!("NOP after {what}"), Sqe::nop(), 0)
}

/// Returns the result of a NOP with `user_data` on a ring that has only this filter.
fn verdict(program: &[bpf::Insn], user_data: u64) -> anyhow::Result<i32> {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, program)?;
    ring.run(Sqe::nop().user_data(user_data))
}

/// Checks that every load but that of an aligned word of the context, MOD, RET X and
/// unknown codes give EINVAL.
fn instructions_outside_the_whitelist_are_refused() -> TestResult {
    let mut ring = Ring::new(2)?;
    let mut codes = vec![
        ("MOD K", BPF_ALU | BPF_MOD | BPF_K, 1),
        ("MOD X", BPF_ALU | BPF_MOD | BPF_X, 0),
        ("LD H ABS", BPF_LD | BPF_H | BPF_ABS, 0),
        ("LD B ABS", BPF_LD | BPF_B | BPF_ABS, 0),
        ("LD W IND", BPF_LD | BPF_W | BPF_IND, 0),
        ("LD H IND", BPF_LD | BPF_H | BPF_IND, 0),
        ("LD B IND", BPF_LD | BPF_B | BPF_IND, 0),
        ("LDX B MSH", BPF_LDX | BPF_B | BPF_MSH, 0),
        ("RET X", BPF_RET | BPF_X, 0),
        ("ALU MOV K", BPF_ALU | 0xb0 | BPF_K, 0),
        ("unknown code", 0xffff, 0),
    ];
    // The ancillary loads of packet filters: SKF_AD_OFF + n.
    let ancillary: Vec<String> = (0..=64)
        .step_by(4)
        .map(|n| format!("ancillary {n}"))
        .collect();
    for (n, name) in ancillary.iter().enumerate() {
        codes.push((name, BPF_LD | BPF_W | BPF_ABS, 0xffff_f000 + 4 * n as u32));
    }
    for (name, code, k) in codes {
        refused(&mut ring, name, &[insn(code, 0, 0, k), ret(1)])?;
    }
    Ok(Outcome::Passed)
}

/// Checks that loads of words are accepted at each multiple of 4 below the context's 40
/// bytes, and give EINVAL elsewhere.
fn only_aligned_loads_inside_the_context_are_accepted() -> TestResult {
    for offset in 0..=44 {
        let valid = offset < CONTEXT_SIZE && offset % 4 == 0;
        let mut ring = Ring::new(2)?;
        let program = [ld(offset), ret(0)];
        let want = if valid { 0 } else { -libc::EINVAL };
        expect_result(
            &format!("load at {offset}"),
            ring.filter(op::NOP, &program),
            want,
        )?;
        let want = if valid { -libc::EACCES } else { 0 };
        ring.expect(&format!("NOP after load at {offset}"), Sqe::nop(), want)?;
    }
    for offset in [0x7fff_fffc, 0x8000_0000, 0xffff_ef00, 0xffff_fffc] {
        let mut ring = Ring::new(2)?;
        refused(
            &mut ring,
            &format!("load at {offset:#x}"),
            &[ld(offset), ret(1)],
        )?;
    }
    Ok(Outcome::Passed)
}

/// Checks that LD LEN and LDX LEN give the 40 bytes of the context.
fn length_loads_return_40() -> TestResult {
    let from_x = |k| {
        vec![
            bpf::ldx_len(),
            bpf::txa(),
            bpf::jeq(k, 0, 1),
            ret(1),
            ret(0),
        ]
    };
    let from_a = |k| vec![bpf::ld_len(), bpf::jeq(k, 0, 1), ret(1), ret(0)];
    for (len, want) in [(40, 0), (39, -libc::EACCES), (0, -libc::EACCES)] {
        expect_result(&format!("LD LEN == {len}"), verdict(&from_a(len), 0)?, want)?;
        expect_result(
            &format!("LDX LEN == {len}"),
            verdict(&from_x(len), 0)?,
            want,
        )?;
    }
    // The `k` of this instruction has no effect.
    let mut program = from_a(40);
    program[0].k = 1234;
    expect_result("LD LEN with k", verdict(&program, 0)?, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that jumps past the end, division by a constant 0, shifts by 32, memory slots
/// that do not exist or are unset, and programs without an end give EINVAL.
fn programs_that_the_classic_checker_refuses_are_refused() -> TestResult {
    let mut ring = Ring::new(2)?;
    let jump = |jt, jf| insn(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, 0);
    let cases: Vec<(&str, Program)> = vec![
        ("no RET at the end", vec![ret(1), bpf::ld_imm(1)]),
        ("JEQ true past the end", vec![jump(1, 0), ret(1)]),
        ("JEQ false past the end", vec![jump(0, 1), ret(1)]),
        ("JEQ far past the end", vec![jump(255, 255), ret(1)]),
        ("JA past the end", vec![bpf::ja(1), ret(1)]),
        ("JA that wraps", vec![bpf::ja(u32::MAX), ret(1)]),
        ("DIV by constant 0", vec![bpf::alu(BPF_DIV, 0), ret(1)]),
        ("LSH by 32", vec![bpf::alu(BPF_LSH, 32), ret(1)]),
        ("RSH by 32", vec![bpf::alu(BPF_RSH, 32), ret(1)]),
        ("ST M[16]", vec![bpf::st(16), ret(1)]),
        ("STX M[16]", vec![bpf::stx(16), ret(1)]),
        ("LD M[16]", vec![bpf::ld_mem(16), ret(1)]),
        ("LDX M[16]", vec![bpf::ldx_mem(16), ret(1)]),
        ("LD of unset M[0]", vec![bpf::ld_mem(0), ret(1)]),
        ("LDX of unset M[15]", vec![bpf::ldx_mem(15), ret(1)]),
        (
            "M[3] set on one of two paths",
            vec![jump(1, 0), bpf::st(3), bpf::ld_mem(3), ret(1)],
        ),
    ];
    for (what, program) in &cases {
        refused(&mut ring, what, program)?;
    }
    // Similar programs are valid.
    for program in [
        vec![jump(0, 0), ret(1)],
        vec![bpf::ja(0), ret(1)],
        vec![bpf::alu(BPF_LSH, 31), bpf::alu(BPF_RSH, 31), ret(1)],
        vec![bpf::st(15), bpf::ld_mem(15), ret(1)],
        vec![insn(BPF_JMP | BPF_JA, 0, 0, 1), ret(0), ret(1)],
    ] {
        expect_result("valid program", verdict(&program, 0)?, 0)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a request is allowed by each return value other than zero, constant or
/// computed.
fn any_nonzero_return_value_allows() -> TestResult {
    for value in [1, 2, 0x8000_0000, u32::MAX] {
        let constant = vec![ret(value)];
        let from_a = vec![bpf::ld_imm(value), bpf::ret_a()];
        // The kernel cannot know this verdict without running the program.
        let computed = vec![
            ld(USER_DATA_LO),
            bpf::alu(libc::BPF_OR, value),
            bpf::ret_a(),
        ];
        for program in [constant, from_a, computed] {
            expect_result(&format!("return {value:#x}"), verdict(&program, 0)?, 0)?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that a return value of zero denies, and A and X start at zero in every filter
/// of a chain.
fn zero_denies_and_registers_start_at_zero() -> TestResult {
    let deny = -libc::EACCES;
    expect_result("return 0", verdict(&[ret(0)], 0)?, deny)?;
    expect_result("return A", verdict(&[bpf::ret_a()], 0)?, deny)?;
    let from_x = [
        insn(libc::BPF_LD | libc::BPF_IMM, 0, 0, 1),
        bpf::txa(),
        bpf::ret_a(),
    ];
    expect_result("return X", verdict(&from_x, 0)?, deny)?;
    let from_word = [ld(USER_DATA_LO), bpf::ret_a()];
    expect_result("return a word that is 0", verdict(&from_word, 0)?, deny)?;
    expect_result("return a word that is 1", verdict(&from_word, 1)?, 0)?;
    // A and X start at zero in every filter of a chain, not only in the first.
    let mut ring = Ring::new(2)?;
    let a_is_zero = [bpf::jeq(0, 0, 1), ret(1), ret(0)];
    let leaves_values = [ld(USER_DATA_LO), bpf::tax(), ret(1)];
    let x_is_zero = [bpf::txa(), bpf::jeq(0, 0, 1), ret(1), ret(0)];
    for program in [&a_is_zero[..], &x_is_zero, &leaves_values] {
        ring.must_filter(op::NOP, program)?;
    }
    ring.expect("registers of the next filter", Sqe::nop().user_data(5), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a division by an X that is zero denies the request, whatever other
/// filters of the chain say.
fn division_by_zero_denies() -> TestResult {
    let deny = -libc::EACCES;
    expect_result("constant", verdict(&bpf::divide_by_zero(), 0)?, deny)?;
    let by_word = [
        ld(USER_DATA_LO),
        bpf::tax(),
        bpf::ld_imm(6),
        bpf::alu_x(BPF_DIV),
        ret(1),
    ];
    expect_result("X = 0", verdict(&by_word, 0)?, deny)?;
    expect_result("X = 3", verdict(&by_word, 3)?, 0)?;
    // It ends the whole chain, whatever older filters say.
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &bpf::allow())?;
    ring.must_filter(op::NOP, &by_word)?;
    ring.must_filter(op::NOP, &bpf::allow())?;
    ring.expect("in a chain, X = 0", Sqe::nop(), deny)?;
    ring.expect("in a chain, X = 3", Sqe::nop().user_data(3), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that programs of 4,096 instructions are run to their last, on whose result
/// the verdict depends.
fn verdict_may_be_in_instruction_4096() -> TestResult {
    let deny = -libc::EACCES;
    let denies = bpf::long(BPF_MAXINSNS, 0);
    expect_eq("length", denies.len(), BPF_MAXINSNS)?;
    expect_result("denies in the last", verdict(&denies, 3)?, deny)?;
    expect_result(
        "allows in the last",
        verdict(&bpf::long(BPF_MAXINSNS, 1), 3)?,
        0,
    )?;
    // Here the verdict depends on what the 4,095 instructions before the last compute.
    let mut computes = bpf::long(BPF_MAXINSNS, 0);
    computes[BPF_MAXINSNS - 2] = bpf::alu(libc::BPF_AND, 1);
    computes[BPF_MAXINSNS - 1] = bpf::ret_a();
    for user_data in [0, 1] {
        let context = nop_context(user_data);
        let want = if model::run(&computes, &context) != 0 {
            0
        } else {
            deny
        };
        expect_result(
            &format!("sum for {user_data}"),
            verdict(&computes, user_data)?,
            want,
        )?;
    }
    Ok(Outcome::Passed)
}

/// Builds the context of a NOP.
pub(super) fn nop_context(user_data: u64) -> Context {
    let mut context = [0; 10];
    context[0] = user_data as u32;
    context[1] = (user_data >> 32) as u32;
    context
}

/// Checks that the kernel's internal load LDX W ABS gives EINVAL in a program of user
/// space.
fn internal_context_load_is_refused() -> TestResult {
    let mut ring = Ring::new(2)?;
    for offset in [0, 8, 36] {
        let code = BPF_LDX | BPF_W | BPF_ABS;
        refused(&mut ring, "LDX W ABS", &[insn(code, 0, 0, offset), ret(1)])?;
    }
    // The legal forms that are encoded similarly.
    for code in [BPF_LDX | BPF_MEM, BPF_LD | BPF_MEM] {
        let program = [insn(BPF_ST, 0, 0, 0), insn(code, 0, 0, 0), ret(1)];
        expect_result("MEM", verdict(&program, 0)?, 0)?;
    }
    let both = [insn(BPF_STX, 0, 0, 1), insn(BPF_MISC, 0, 0, 0), ret(1)];
    expect_result("STX and TAX", verdict(&both, 0)?, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that the words of the context are in the byte order of a little-endian
/// machine.
fn words_are_in_host_order_on_little_endian() -> TestResult {
    let user_data = 0x1122_3344_5566_7788;
    for (offset, word) in [
        (USER_DATA_LO, 0x5566_7788),
        (USER_DATA_HI, 0x1122_3344),
        (OPCODE_WORD, u32::from(op::NOP)),
    ] {
        let what = format!("word at {offset}");
        expect_result(&what, verdict(&bpf::allow_if(offset, word), user_data)?, 0)?;
        let denied = verdict(&bpf::deny_if(offset, word), user_data)?;
        expect_result(&what, denied, -libc::EACCES)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that (not tested yet) the words of the context are in the byte order of a
/// big-endian machine.
fn words_are_in_host_order_on_big_endian() -> TestResult {
    if cfg!(target_endian = "big") {
        anyhow::bail!("no expectation is written down for this machine");
    }
    Ok(Outcome::Skipped(
        "this machine is little endian".to_string(),
    ))
}

/// Returns a filter that denies requests with any of `flags`.
fn deny_flags(flags: u8) -> Program {
    let word = u32::from_le_bytes([0, flags, 0, 0]);
    vec![ld(OPCODE_WORD), bpf::jset(word, 0, 1), ret(0), ret(1)]
}

/// Returns a filter that allows requests with exactly `flags`, by way of a scratch word.
fn only_flags(flags: u8) -> Program {
    let word = |byte| u32::from_le_bytes([0, byte, 0, 0]);
    vec![
        ld(OPCODE_WORD),
        bpf::alu(libc::BPF_AND, word(0xff)),
        bpf::st(7),
        insn(libc::BPF_LD | libc::BPF_IMM, 0, 0, 1),
        bpf::ld_mem(7),
        bpf::jeq(word(flags), 0, 1),
        ret(1),
        ret(0),
    ]
}

/// Checks that one filter, two, and two with one between them that tests user_data deny
/// requests with the flags that they name, for all 128 values of the flags.
fn stacked_tests_of_flags_agree_with_the_model() -> TestResult {
    let refused = IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
    let linked = IOSQE_IO_LINK;
    let dynamic = bpf::deny_if(USER_DATA_LO, 7);
    for flags in 0..=0x7f {
        // Requests that drain cannot skip completions, and show ASYNC as well.
        let drains = flags & IOSQE_IO_DRAIN != 0;
        let invalid = drains && flags & IOSQE_CQE_SKIP_SUCCESS != 0;
        let shown = if drains { flags | IOSQE_ASYNC } else { flags };
        let denies = |mask: u8| shown & mask != 0;
        let stacks: [(&str, Vec<Program>, bool); 4] = [
            ("one", vec![deny_flags(refused)], denies(refused)),
            ("exact", vec![only_flags(refused)], shown != refused),
            (
                "two",
                vec![deny_flags(refused), deny_flags(linked)],
                denies(refused | linked),
            ),
            (
                "three",
                vec![deny_flags(refused), dynamic.clone(), deny_flags(linked)],
                denies(refused | linked),
            ),
        ];
        for (what, filters, denied) in stacks {
            let mut ring = Ring::new(2)?;
            for filter in &filters {
                ring.must_filter(op::RECV, filter)?;
            }
            // There is no such file.
            let recv = Sqe::new(op::RECV).fd(-1).flags(flags);
            let want = match (invalid, denied) {
                (true, _) => -libc::EOPNOTSUPP,
                (_, true) => -libc::EACCES,
                _ => -libc::EBADF,
            };
            ring.expect(&format!("{what}, flags {flags:#x}"), recv, want)?;
        }
    }
    Ok(Outcome::Passed)
}
