// SPDX-License-Identifier: GPL-2.0
//! D2: which programs are accepted, and what they compute.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use libc::{
    BPF_ABS, BPF_ALU, BPF_B, BPF_DIV, BPF_H, BPF_IND, BPF_JA, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD,
    BPF_LDX, BPF_LSH, BPF_MEM, BPF_MISC, BPF_MOD, BPF_MSH, BPF_NEG, BPF_RET, BPF_RSH, BPF_ST,
    BPF_STX, BPF_W, BPF_X,
};

use super::{NOTE, Outcome, Test, TestResult, seed, slow, test};
use crate::bpf::{
    self, CONTEXT_SIZE, OPCODE_WORD, Program, USER_DATA_HI, USER_DATA_LO, insn, ld, ret,
};
use crate::kernel::{self, BPF_MAXINSNS, expect_eq, expect_result};
use crate::model::{self, ALU_OPS, Context};
use crate::register;
use crate::ring::Ring;
use crate::sandbox::Sysctl;
use crate::sqe::{OpenHow, Sqe, op};

pub const TESTS: &[Test] = &[
    test("FP02 instructions outside the whitelist", fp02),
    test("FP03 loads at every offset", fp03),
    test("FP04 LD LEN and LDX LEN are 40", fp04),
    test("FP05 programs that the classic checker refuses", fp05),
    test("FP06 every non-zero value allows", fp06),
    test("FP07 zero denies, A starts at zero, X too", fp07),
    test("FP08 division by a zero X denies", fp08),
    test("FP09 4096 instructions, verdict in the last", fp09),
    slow(
        "FP10 checksum of the context, and random programs",
        30,
        fp10,
    ),
    test("FP12 same verdicts with JIT off, on and hardened", fp12),
    slow(
        "FP12oracle verdicts as C's with JIT off, on and hardened",
        240,
        fp12oracle,
    ),
    test("FP13 internal load LDX W ABS from user space", fp13),
    test("FP14 same verdicts with BPF statistics on", fp14),
    test("FP15 order of words and bytes, little endian", fp15),
    test("FP15be order of words and bytes, big endian", fp15be),
];

/// That a program is refused with EINVAL and the ring stays without filter.
fn refused(ring: &mut Ring, what: &str, program: &[bpf::Insn]) -> anyhow::Result<()> {
    expect_result(what, ring.filter(op::NOP, program), -libc::EINVAL)?;
    ring.expect(&format!("NOP after {what}"), Sqe::nop(), 0)
}

/// The verdict on a NOP with `user_data` of a ring that has only this filter.
fn verdict(program: &[bpf::Insn], user_data: u64) -> anyhow::Result<i32> {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, program)?;
    ring.run(Sqe::nop().user_data(user_data))
}

fn fp02() -> TestResult {
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
    // Ancillary loads of packet filters: SKF_AD_OFF + n.
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

fn fp03() -> TestResult {
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

fn fp04() -> TestResult {
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
    // The instruction's own k counts for nothing.
    let mut program = from_a(40);
    program[0].k = 1234;
    expect_result("LD LEN with k", verdict(&program, 0)?, 0)?;
    Ok(Outcome::Passed)
}

fn fp05() -> TestResult {
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
    // The neighbours of these are fine.
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

fn fp06() -> TestResult {
    for value in [1, 2, 0x8000_0000, u32::MAX] {
        let constant = vec![ret(value)];
        let from_a = vec![bpf::ld_imm(value), bpf::ret_a()];
        // Not to be told without running it.
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

fn fp07() -> TestResult {
    let deny = -libc::EACCES;
    expect_result("return 0", verdict(&[ret(0)], 0)?, deny)?;
    expect_result("return A", verdict(&[bpf::ret_a()], 0)?, deny)?;
    let from_x = [bpf::ld_imm(1), bpf::txa(), bpf::ret_a()];
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

fn fp08() -> TestResult {
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
    // Ends the whole chain, whatever older filters say.
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &bpf::allow())?;
    ring.must_filter(op::NOP, &by_word)?;
    ring.must_filter(op::NOP, &bpf::allow())?;
    ring.expect("in a chain, X = 0", Sqe::nop(), deny)?;
    ring.expect("in a chain, X = 3", Sqe::nop().user_data(3), 0)?;
    Ok(Outcome::Passed)
}

fn fp09() -> TestResult {
    let deny = -libc::EACCES;
    let denies = bpf::long(BPF_MAXINSNS, 0);
    expect_eq("length", denies.len(), BPF_MAXINSNS)?;
    expect_result("denies in the last", verdict(&denies, 3)?, deny)?;
    expect_result(
        "allows in the last",
        verdict(&bpf::long(BPF_MAXINSNS, 1), 3)?,
        0,
    )?;
    // What 4,095 instructions computed decides.
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

/// What filters see of a NOP.
fn nop_context(user_data: u64) -> Context {
    let mut context = [0; 10];
    context[0] = user_data as u32;
    context[1] = (user_data >> 32) as u32;
    context
}

/// A program with every slot and every ALU operation: folds the whole context
/// into A, and returns the bit that the low five bits of `user_data` name.
fn checksum() -> Program {
    let mut program = Vec::new();
    for slot in 0..16 {
        program.extend([
            ld(slot % 10 * 4),
            bpf::alu(libc::BPF_XOR, 0x9e37_79b9 * (slot + 1)),
        ]);
        program.push(bpf::st(slot));
    }
    program.push(bpf::ld_imm(0x1234_5678));
    for slot in 0..16 {
        program.push(bpf::ldx_mem(slot));
        for (i, &operation) in ALU_OPS.iter().enumerate() {
            if operation == BPF_DIV {
                // Never by zero, and not so often that nothing is left.
                program.extend([
                    bpf::st(slot),
                    bpf::txa(),
                    bpf::alu(libc::BPF_OR, 1),
                    bpf::tax(),
                ]);
                program.extend([bpf::ld_mem(slot), bpf::alu(libc::BPF_OR, 1 << 31)]);
            }
            if operation == BPF_LSH || operation == BPF_RSH {
                program.push(bpf::alu(operation, slot % 4));
                program.push(bpf::alu(libc::BPF_ADD, slot));
            } else if i % 2 == slot as usize % 2 || operation == BPF_DIV {
                program.push(bpf::alu_x(operation));
            } else {
                program.push(bpf::alu(operation, (0x0101_0101 * (slot + 3)) | 1));
            }
            program.push(bpf::alu(libc::BPF_XOR, 0x5bd1_e995));
        }
        program.push(insn(BPF_ALU | BPF_NEG, 0, 0, 0));
    }
    program.extend([
        bpf::st(0),
        ld(USER_DATA_LO),
        bpf::alu(libc::BPF_AND, 31),
        bpf::tax(),
    ]);
    program.extend([
        bpf::ld_mem(0),
        bpf::alu_x(BPF_RSH),
        bpf::alu(libc::BPF_AND, 1),
    ]);
    program.push(bpf::ret_a());
    program
}

/// Requests that differ in their `user_data`, and what filters see of them.
enum Requests {
    /// NOPs, of which filters see nothing else but the opcode.
    Nop,
    /// Opens of which each word is something, but for the one that always is zero. They
    /// are not valid, and those that are allowed fail for that.
    Open(OpenHow),
}

impl Requests {
    fn random_open(rng: &mut Rng) -> Self {
        // As the kernel spells it. It adds this one.
        const O_LARGEFILE: u64 = 0o100000;
        Requests::Open(OpenHow {
            flags: rng.u64(..) << 32 | 1 << 40 | O_LARGEFILE | libc::O_WRONLY as u64,
            mode: rng.u64(..),
            resolve: rng.u64(..) | 1 << 50,
        })
    }

    fn opcode(&self) -> u8 {
        match self {
            Requests::Nop => op::NOP,
            Requests::Open(_) => op::OPENAT2,
        }
    }

    fn request(&self, user_data: u64) -> Sqe {
        match self {
            Requests::Nop => Sqe::nop(),
            Requests::Open(how) => Sqe::openat2(c"no/such/file", how, size_of_val(how) as u32),
        }
        .user_data(user_data)
    }

    fn context(&self, user_data: u64) -> Context {
        let mut context = nop_context(user_data);
        if let Requests::Open(how) = self {
            let size = register::pdu_size(op::OPENAT2);
            context[2] = u32::from_le_bytes([op::OPENAT2, 0, size, 0]);
            for (i, value) in [how.flags, how.mode, how.resolve].into_iter().enumerate() {
                context[4 + 2 * i] = value as u32;
                context[5 + 2 * i] = (value >> 32) as u32;
            }
        }
        context
    }

    /// The result of a request.
    fn result(&self, allowed: bool) -> i32 {
        match self {
            _ if !allowed => -libc::EACCES,
            Requests::Nop => 0,
            Requests::Open(_) => -libc::EINVAL,
        }
    }

    /// That the kernel gives the model's verdict of a chain for every `user_data`.
    fn agree(&self, what: &str, chain: &[Program], values: &[u64]) -> anyhow::Result<[usize; 2]> {
        let mut ring = Ring::new(2)?;
        for program in chain {
            ring.must_filter(self.opcode(), program)?;
        }
        let mut seen = [0; 2];
        for &user_data in values {
            let context = self.context(user_data);
            let allowed = chain
                .iter()
                .all(|program| model::run(program, &context) != 0);
            seen[usize::from(allowed)] += 1;
            let what = format!("{what}, opcode {}, {user_data:#x}", self.opcode());
            ring.expect(&what, self.request(user_data), self.result(allowed))?;
        }
        Ok(seen)
    }
}

fn fp10() -> TestResult {
    let mut rng = Rng::with_seed(seed());
    println!("{NOTE}seed {}", seed());
    let program = [checksum()];
    for high in [0u64, 1, 0xdead_beef] {
        let bits: Vec<u64> = (0..64).map(|bit| high << 32 | bit).collect();
        for requests in [Requests::Nop, Requests::random_open(&mut rng)] {
            let [denied, allowed] = requests.agree("checksum", &program, &bits)?;
            anyhow::ensure!(
                denied > 5 && allowed > 5,
                "checksum: {denied} zeros, {allowed} ones"
            );
        }
    }
    let mut seen = [0; 2];
    for round in 0..150 {
        let requests = match round % 2 {
            0 => Requests::Nop,
            _ => Requests::random_open(&mut rng),
        };
        let program = [model::random_program(&mut rng)];
        let values: Vec<u64> = (0..6).map(|_| rng.u64(..) >> rng.u32(0..64)).collect();
        let what = format!("random program {round}");
        let [denied, allowed] = requests.agree(&what, &program, &values)?;
        seen[0] += denied;
        seen[1] += allowed;
    }
    // Chains of random programs: the conjunction of what they say.
    for round in 0..30 {
        let requests = match round % 2 {
            0 => Requests::Nop,
            _ => Requests::random_open(&mut rng),
        };
        let chain: Vec<Program> = (0..rng.usize(2..6))
            .map(|_| model::random_program(&mut rng))
            .collect();
        let values: Vec<u64> = (0..20).map(|_| rng.u64(..) >> rng.u32(0..64)).collect();
        requests.agree(&format!("chain {round}"), &chain, &values)?;
    }
    println!(
        "{NOTE}random programs: {} denials, {} permissions",
        seen[0], seen[1]
    );
    anyhow::ensure!(seen[0] > 50 && seen[1] > 50, "one-sided random programs");
    Ok(Outcome::Passed)
}

/// That the checksum agrees with the model on a ring made now.
fn checksum_agrees(what: &str) -> anyhow::Result<()> {
    let values: Vec<u64> = (0..32).map(|bit| 0xabcd_1234 << 32 | bit).collect();
    let requests = Requests::Nop;
    requests.agree(what, &[checksum()], &values)?;
    requests.agree(what, &[bpf::divide_by_zero()], &[0])?;
    requests.agree(what, &[bpf::long(BPF_MAXINSNS, 0)], &[0])?;
    Ok(())
}

/// Sysctls of the JIT compiler, as they are when the kernel comes up.
const AS_BOOTED: (&str, &str) = ("1", "0");

/// Does something with the JIT in modes that the kernel has: whether it is on, and how
/// hardened its code is.
fn with_jit(
    modes: &[(&str, &str)],
    mut check: impl FnMut(&str) -> anyhow::Result<()>,
) -> TestResult {
    for (enable, harden) in modes {
        if *enable == "0" && kernel::has_option("CONFIG_BPF_JIT_ALWAYS_ON") {
            continue;
        }
        let _enable = Sysctl::set("net/core/bpf_jit_enable", enable)?;
        let _harden = Sysctl::set("net/core/bpf_jit_harden", harden)?;
        check(&format!("bpf_jit_enable {enable}, bpf_jit_harden {harden}"))?;
    }
    Ok(Outcome::Passed)
}

fn fp12() -> TestResult {
    with_jit(
        &[AS_BOOTED, ("0", "0"), ("1", "2"), ("0", "2")],
        checksum_agrees,
    )
}

/// The KUnit suite that compares with C, once more in each mode that it was not in at
/// boot; without the compiler there is nothing to harden.
fn fp12oracle() -> TestResult {
    if !kernel::has_option("CONFIG_IO_URING_RS_KUNIT_TEST") {
        return Ok(Outcome::Skipped("this kernel has no oracle".to_string()));
    }
    let suite = Path::new("/sys/kernel/debug/kunit/io_uring_filter_oracle");
    let parameter = |name: &str, value: u32| {
        let path = format!("/sys/module/oracle_test/parameters/{name}");
        fs::write(&path, value.to_string()).context(path)
    };
    let (enable, harden) = AS_BOOTED;
    for (name, value) in [("enable", enable), ("harden", harden)] {
        let path = format!("/proc/sys/net/core/bpf_jit_{name}");
        expect_eq(&path, fs::read_to_string(&path)?.trim(), value)?;
    }
    // The cases of the suite share them.
    const CASES: u32 = 4;
    let programs = if kernel::is_debug() { 800 } else { 8000 };
    parameter("programs", programs)?;
    let mut rng = Rng::with_seed(seed());
    with_jit(&[("0", "0"), ("1", "2")], |what| {
        // Other programs than at boot.
        let first = rng.u32(1..u32::MAX - CASES);
        parameter("seed", first)?;
        fs::write(suite.join("run"), "1").context("running the suite again")?;
        let results = fs::read_to_string(suite.join("results")).context("its results")?;
        ensure!(
            results.contains("\nok 1 io_uring_filter_oracle") && !results.contains("not ok"),
            "{what}: Rust and C differ, see the console: {results}"
        );
        // They are the results of this run, and of all of it.
        for seed in first..first + CASES {
            let began = format!("seed {seed}: repeat with oracle_test.seed={first}");
            ensure!(results.contains(&began), "{what}: no {began:?}: {results}");
        }
        let counts = results.lines().filter_map(|line| {
            let (_, rest) = line.split_once(" chains of ")?;
            rest.split(' ').next()?.parse::<u32>().ok()
        });
        let counts: Vec<u32> = counts.collect();
        expect_eq("cases", counts.len(), CASES as usize)?;
        let least = counts.into_iter().min().unwrap_or_default();
        ensure!(least >= programs / CASES, "{what}: only {least} programs");
        Ok(())
    })
}

fn fp13() -> TestResult {
    let mut ring = Ring::new(2)?;
    for offset in [0, 8, 36] {
        let code = BPF_LDX | BPF_W | BPF_ABS;
        refused(&mut ring, "LDX W ABS", &[insn(code, 0, 0, offset), ret(1)])?;
    }
    // Its neighbours in the encoding are the legal forms.
    for code in [BPF_LDX | BPF_MEM, BPF_LD | BPF_MEM] {
        let program = [insn(BPF_ST, 0, 0, 0), insn(code, 0, 0, 0), ret(1)];
        expect_result("MEM", verdict(&program, 0)?, 0)?;
    }
    let both = [insn(BPF_STX, 0, 0, 1), insn(BPF_MISC, 0, 0, 0), ret(1)];
    expect_result("STX and TAX", verdict(&both, 0)?, 0)?;
    Ok(Outcome::Passed)
}

fn fp14() -> TestResult {
    let _stats = Sysctl::set("kernel/bpf_stats_enabled", "1")?;
    checksum_agrees("bpf_stats_enabled 1")?;
    Ok(Outcome::Passed)
}

fn fp15() -> TestResult {
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

fn fp15be() -> TestResult {
    if cfg!(target_endian = "big") {
        anyhow::bail!("no expectation is written down for this machine");
    }
    Ok(Outcome::Skipped(
        "this machine is little endian".to_string(),
    ))
}
