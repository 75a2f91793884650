// SPDX-License-Identifier: GPL-2.0
//! D2: the verdicts that programs compute, compared with a model and with C, in each
//! mode of the JIT compiler. The programs that registration accepts are in `program`.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use fastrand::Rng;
use libc::{BPF_ALU, BPF_DIV, BPF_LSH, BPF_NEG, BPF_RSH};

use super::program::nop_context;
use super::{NOTE, Outcome, Test, TestResult, seed, tests};
use crate::bpf::{self, Program, USER_DATA_LO, insn, ld};
use crate::kernel::{self, BPF_MAXINSNS, expect_eq};
use crate::model::{self, ALU_OPS, Context};
use crate::register;
use crate::ring::Ring;
use crate::sandbox::Sysctl;
use crate::sqe::{OpenHow, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::program" {
        FP10 checksums_and_random_programs_agree_with_the_model (30 s);
        FP12 verdicts_are_the_same_in_every_jit_mode;
        FP12oracle verdicts_are_those_of_c_in_every_jit_mode (240 s);
        FP14 verdicts_are_the_same_with_bpf_statistics;
    }
};

/// The slot in which [`checksum`] keeps the sum.
const SUM: u32 = 10;

/// Builds a program that uses every slot and every ALU operation, folds the whole
/// context into A, and returns the bit that the low five bits of `user_data` select.
fn checksum() -> Program {
    let mut program = Vec::new();
    let words = (0..16).filter(|slot| *slot != SUM);
    // Some words are folded in twice.
    for slot in words.clone() {
        let offset = slot % 11 % 10 * 4;
        let salt = 0x9e37_79b9u32.wrapping_mul(slot + 1);
        program.extend([ld(offset), bpf::alu(libc::BPF_XOR, salt), bpf::st(slot)]);
    }
    program.push(bpf::ld_imm(0x1234_5678));
    for slot in words {
        for (i, &operation) in ALU_OPS.iter().enumerate() {
            program.extend([bpf::st(SUM), bpf::ldx_mem(slot)]);
            if operation == BPF_DIV {
                // This avoids a division by zero.
                program.extend([bpf::txa(), bpf::alu(libc::BPF_OR, 1), bpf::tax()]);
                program.push(bpf::ld_mem(SUM));
            }
            program.push(match operation {
                BPF_LSH | BPF_RSH => bpf::alu(operation, 1 + slot % 4),
                _ if i % 2 == slot as usize % 2 || operation == BPF_DIV => bpf::alu_x(operation),
                _ => bpf::alu(operation, (0x0101_0101 * (slot + 3)) | 1),
            });
            // Most operations lose bits of the sum, so the old sum is mixed in again.
            program.extend([
                bpf::tax(),
                bpf::ld_mem(SUM),
                bpf::alu(libc::BPF_MUL, 0x5bd1_e995),
                bpf::alu_x(libc::BPF_ADD),
            ]);
        }
        program.push(insn(BPF_ALU | BPF_NEG, 0, 0, 0));
    }
    program.extend([
        bpf::st(SUM),
        ld(USER_DATA_LO),
        bpf::alu(libc::BPF_AND, 31),
        bpf::tax(),
    ]);
    program.extend([
        bpf::ld_mem(SUM),
        bpf::alu_x(BPF_RSH),
        bpf::alu(libc::BPF_AND, 1),
    ]);
    program.push(bpf::ret_a());
    program
}

/// Checks that the checksum of a context depends on each of its words but the first,
/// which selects the bit of the sum.
fn each_word_counts(program: &Program, context: &Context) -> anyhow::Result<()> {
    let sum = |mut context: Context| {
        let bits = (0..32).map(|bit| {
            context[0] = bit;
            model::run(program, &context) << bit
        });
        bits.sum::<u32>()
    };
    for word in 1..context.len() {
        for bit in [0, 13, 31] {
            let mut other = *context;
            other[word] ^= 1 << bit;
            let differs = sum(other) != sum(*context);
            ensure!(differs, "bit {bit} of word {word} is not in the checksum");
        }
    }
    Ok(())
}

/// A kind of request whose `user_data` varies, and the context that filters see for it.
enum Requests {
    /// NOPs, for which the context holds nothing but `user_data`.
    Nop,
    /// Opens whose context has a value in each word but the one that is always zero.
    /// They are not valid, so those that are allowed fail.
    Open(OpenHow),
}

impl Requests {
    fn random_open(rng: &mut Rng) -> Self {
        // The kernel's value. The kernel adds this flag.
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

    /// Returns the expected result of a request.
    fn result(&self, allowed: bool) -> i32 {
        match self {
            _ if !allowed => -libc::EACCES,
            Requests::Nop => 0,
            Requests::Open(_) => -libc::EINVAL,
        }
    }

    /// Checks that the kernel's verdict on a chain is the model's for every
    /// `user_data`. Returns the number of requests that were denied, and of those that
    /// were allowed.
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

/// Checks that a checksum of the whole context, random programs, and chains of them
/// give the model's verdicts.
fn checksums_and_random_programs_agree_with_the_model() -> TestResult {
    let mut rng = Rng::with_seed(seed());
    println!("{NOTE}seed {}", seed());
    let program = [checksum()];
    for high in [0u64, 1, 0xdead_beef] {
        let bits: Vec<u64> = (0..64).map(|bit| high << 32 | bit).collect();
        for requests in [Requests::Nop, Requests::random_open(&mut rng)] {
            each_word_counts(&program[0], &requests.context(high << 32))?;
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
    // A chain of random programs allows what all its programs allow.
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
    anyhow::ensure!(
        seen[0] > 50 && seen[1] > 50,
        "random programs gave too few denials or permissions"
    );
    Ok(Outcome::Passed)
}

/// Checks that the checksum agrees with the model on a new ring.
fn checksum_agrees(what: &str) -> anyhow::Result<()> {
    let values: Vec<u64> = (0..32).map(|bit| 0xabcd_1234 << 32 | bit).collect();
    let requests = Requests::Nop;
    requests.agree(what, &[checksum()], &values)?;
    requests.agree(what, &[bpf::divide_by_zero()], &[0])?;
    requests.agree(what, &[bpf::long(BPF_MAXINSNS, 0)], &[0])?;
    Ok(())
}

/// The sysctls of the JIT compiler, enable and harden, as they are after boot.
const AS_BOOTED: (&str, &str) = ("1", "0");

/// Runs `check` in each of `modes` that the kernel supports. A mode says whether the
/// JIT compiler is on, and how hardened its code is.
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

/// Checks that a checksum of the context gives the model's verdicts with the JIT
/// compiler off, on and hardened.
fn verdicts_are_the_same_in_every_jit_mode() -> TestResult {
    with_jit(
        &[AS_BOOTED, ("0", "0"), ("1", "2"), ("0", "2")],
        checksum_agrees,
    )
}

/// Checks that Rust agrees with the C code in the same kernel about thousands of random
/// programs in each JIT mode but that of the boot.
///
/// In C, the test is skipped.
///
/// Hardening applies only with the compiler on.
fn verdicts_are_those_of_c_in_every_jit_mode() -> TestResult {
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
    // The cases of the suite share the programs.
    const CASES: u32 = 4;
    let programs = if kernel::is_debug() { 800 } else { 8000 };
    parameter("programs", programs)?;
    let mut rng = Rng::with_seed(seed());
    with_jit(&[("0", "0"), ("1", "2")], |what| {
        // A seed other than at boot gives other programs.
        let first = rng.u32(1..u32::MAX - CASES);
        parameter("seed", first)?;
        fs::write(suite.join("run"), "1").context("running the suite again")?;
        let results = fs::read_to_string(suite.join("results")).context("its results")?;
        ensure!(
            results.contains("\nok 1 io_uring_filter_oracle") && !results.contains("not ok"),
            "{what}: Rust and C differ, see the console: {results}"
        );
        // The results must be of this run, and complete.
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

/// Checks that a checksum of the context gives the model's verdicts while
/// kernel.bpf_stats_enabled is on.
fn verdicts_are_the_same_with_bpf_statistics() -> TestResult {
    let _stats = Sysctl::set("kernel/bpf_stats_enabled", "1")?;
    checksum_agrees("bpf_stats_enabled 1")?;
    Ok(Outcome::Passed)
}
