// SPDX-License-Identifier: GPL-2.0
//! The greatest length of a chain of filters. In the Rust implementation the sum of the
//! lengths, each plus four, is at most 32,768; one more filter is refused with ENOMEM
//! and changes nothing. The C implementation has no bound: the same registrations
//! succeed there.

use std::os::fd::RawFd;

use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::bpf::{self, Program, USER_DATA_LO};
use crate::kernel::{
    BPF_MAXINSNS, CHAIN_BOUND, CHAIN_OVERHEAD, Implementation, expect_eq, expect_result,
    implementation, is_debug,
};
use crate::register::{self, DENY_REST, Registration, TASK};
use crate::ring::Ring;
use crate::sandbox;
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::bounds" {
        BD01 further_long_filters_are_refused (60 s);
        BD02 chain_may_reach_exactly_the_bound (30 s);
        BD03 short_filters_reach_the_bound_by_their_overhead (60 s);
        BD04 each_opcode_has_its_own_bound (30 s);
        BD05 inherited_filters_count (30 s);
        BD06 refused_deny_rest_denies_nothing (30 s);
        BD07 filters_with_a_constant_verdict_count (30 s);
        BD08 other_errors_come_before_the_bound (30 s);
    }
};

const DENIED: i32 = -libc::EACCES;

/// Returns the result of a registration past the bound.
fn past_bound() -> i32 {
    match implementation() {
        Implementation::Rust => -libc::ENOMEM,
        Implementation::C => 0,
    }
}

/// The number of filters of the greatest length that fit into one chain.
const LONGEST: usize = CHAIN_BOUND / (BPF_MAXINSNS + CHAIN_OVERHEAD);
/// The length of the filter that fills the chain up after those.
pub const LAST: usize = CHAIN_BOUND - LONGEST * (BPF_MAXINSNS + CHAIN_OVERHEAD) - CHAIN_OVERHEAD;

const _: () = assert!(LONGEST == 7 && LAST == 4064);

/// Returns the lengths of the filters of a chain that is exactly at the bound.
pub fn full_chain() -> impl Iterator<Item = usize> {
    std::iter::repeat_n(BPF_MAXINSNS, LONGEST).chain([LAST])
}

/// Fills an opcode's chain up to exactly the bound. The filters allow, and their
/// verdicts cannot be known without running them.
pub fn fill(fd: RawFd, opcode: u8) -> anyhow::Result<()> {
    for len in full_chain() {
        let what = format!("filter of {len} for opcode {opcode}");
        expect_result(&what, register::filter(fd, opcode, &bpf::long(len, 1)), 0)?;
    }
    Ok(())
}

/// Checks that a NOP with `user_data` 1 is denied and one with 0 is not.
fn denies_one(what: &str, ring: &mut Ring) -> anyhow::Result<()> {
    ring.expect(&format!("{what}: NOP 0"), Sqe::nop(), 0)?;
    ring.expect(&format!("{what}: NOP 1"), Sqe::nop().user_data(1), DENIED)
}

/// Checks that a ring accepts seven filters of 4,096 instructions, and refuses further
/// ones with ENOMEM.
///
/// In C, no chain has a bound: the same registrations succeed.
fn further_long_filters_are_refused() -> TestResult {
    // C accepts every filter. With checkers each registration takes long, so fewer must
    // do.
    let attempts = if implementation() == Implementation::C && is_debug() {
        20
    } else {
        200
    };
    let mut ring = Ring::new(2)?;
    let long = bpf::long(BPF_MAXINSNS, 1);
    let mut accepted = 0;
    for attempt in 0..attempts {
        let want = if attempt < LONGEST { 0 } else { past_bound() };
        let got = ring.filter(op::NOP, &long);
        expect_result(&format!("filter {}", attempt + 1), got, want)?;
        accepted += usize::from(got == 0);
    }
    println!("{NOTE}{accepted} of {attempts} accepted");
    ring.expect("NOP", Sqe::nop(), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a chain may reach exactly the bound, one instruction more gives ENOMEM,
/// and the chain stays as it was.
///
/// In C, no chain has a bound: the same registrations succeed.
fn chain_may_reach_exactly_the_bound() -> TestResult {
    let mut ring = Ring::new(2)?;
    // The oldest filter shows whether the chain is still whole.
    let mut first = bpf::deny_if(USER_DATA_LO, 1);
    let padding = BPF_MAXINSNS - first.len();
    first.splice(0..0, std::iter::repeat_n(bpf::ld_imm(0), padding));
    ring.must_filter(op::NOP, &first)?;
    for _ in 1..LONGEST {
        ring.must_filter(op::NOP, &bpf::long(BPF_MAXINSNS, 1))?;
    }
    if implementation() == Implementation::Rust {
        let too_long = ring.filter(op::NOP, &bpf::long(LAST + 1, 0));
        expect_result("one instruction past the bound", too_long, -libc::ENOMEM)?;
        denies_one("after the refusal", &mut ring)?;
    }
    ring.must_filter(op::NOP, &bpf::long(LAST, 1))?;
    denies_one("at the bound", &mut ring)?;
    for len in [1, 2, BPF_MAXINSNS] {
        let program = bpf::filler(len);
        expect_result(
            &format!("{len} more"),
            ring.filter(op::NOP, &program),
            past_bound(),
        )?;
        denies_one("after more", &mut ring)?;
    }
    let deny = ring.filter(op::NOP, &bpf::deny());
    expect_result("a filter that denies", deny, past_bound())?;
    let want = if deny == 0 { DENIED } else { 0 };
    ring.expect("NOP 0 in the end", Sqe::nop(), want)?;
    Ok(Outcome::Passed)
}

/// Checks that short filters reach the bound by the four instructions that each counts
/// in addition.
///
/// In C, no chain has a bound: the same registrations succeed.
fn short_filters_reach_the_bound_by_their_overhead() -> TestResult {
    let mut ring = Ring::new(2)?;
    // With checkers each registration takes long, so fewer and longer filters add up to
    // the same sum there.
    let len = if is_debug() { 68 } else { 1 };
    let filter: Program = bpf::filler(len);
    let first = bpf::deny_if(USER_DATA_LO, 1);
    let left = CHAIN_BOUND - (first.len() + CHAIN_OVERHEAD);
    expect_eq("left over", left % (len + CHAIN_OVERHEAD), 0)?;
    let fitting = left / (len + CHAIN_OVERHEAD);
    ring.must_filter(op::NOP, &first)?;
    for i in 0..fitting {
        expect_result(&format!("filter {i}"), ring.filter(op::NOP, &filter), 0)?;
    }
    println!("{NOTE}{fitting} filters of {len} fit");
    let shortest = bpf::allow();
    expect_result("one more", ring.filter(op::NOP, &shortest), past_bound())?;
    denies_one("in the end", &mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a full chain of one opcode does not count for another opcode or ring.
///
/// In C, no chain has a bound: the same registrations succeed.
fn each_opcode_has_its_own_bound() -> TestResult {
    let mut ring = Ring::new(2)?;
    for opcode in [op::NOP, op::CLOSE, op::SOCKET] {
        fill(ring.fd(), opcode)?;
    }
    for opcode in [op::NOP, op::CLOSE, op::SOCKET] {
        let got = ring.filter(opcode, &bpf::allow());
        expect_result(
            &format!("opcode {opcode} past the bound"),
            got,
            past_bound(),
        )?;
    }
    expect_result(
        "an opcode without a filter",
        ring.filter(op::READ, &bpf::deny()),
        0,
    )?;
    ring.expect("NOP", Sqe::nop(), 0)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
    ring.expect("READ", Sqe::new(op::READ), DENIED)?;
    // Another ring has chains of its own.
    let mut other = Ring::new(2)?;
    other.must_filter(op::NOP, &bpf::long(BPF_MAXINSNS, 0))?;
    other.expect("NOP of another ring", Sqe::nop(), DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that inherited filters count towards the bound of a ring or child, and what
/// these add does not count for the task.
///
/// In C, no chain has a bound: the same registrations succeed.
fn inherited_filters_count() -> TestResult {
    sandbox::sandboxed()?;
    let long = bpf::long(BPF_MAXINSNS, 1);
    let add = |what: &str, fd, count: usize| -> anyhow::Result<()> {
        for i in 0..count {
            expect_result(
                &format!("{what} {i}"),
                register::filter(fd, op::NOP, &long),
                0,
            )?;
        }
        Ok(())
    };
    add("task", TASK, 4)?;
    let mut ring = Ring::new(2)?;
    add("ring on top of the task's", ring.fd(), LONGEST - 4)?;
    expect_result(
        "ring past the bound",
        ring.filter(op::NOP, &long),
        past_bound(),
    )?;
    sandbox::in_child(|| {
        add("child on top of its parent's", TASK, LONGEST - 4)?;
        let got = register::filter(TASK, op::NOP, &long);
        expect_result("child past the bound", got, past_bound())?;
        let mut ring = Ring::new(2)?;
        let got = ring.filter(op::NOP, &long);
        expect_result("child's ring past the bound", got, past_bound())?;
        ring.expect("child's NOP", Sqe::nop(), 0)
    })?;
    // The filters that the ring and the child added do not count for the task.
    add("task again", TASK, LONGEST - 4)?;
    let got = register::filter(TASK, op::NOP, &long);
    expect_result("task past the bound", got, past_bound())?;
    ring.expect("NOP", Sqe::nop(), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a registration with IO_URING_BPF_FILTER_DENY_REST past the bound denies
/// nothing, and filters of denied opcodes do not count.
///
/// In C, no chain has a bound: the same registrations succeed.
fn refused_deny_rest_denies_nothing() -> TestResult {
    let mut ring = Ring::new(2)?;
    fill(ring.fd(), op::NOP)?;
    let before = ring.verdicts()?;
    let got = register::filter_with(ring.fd(), op::NOP, &bpf::deny(), DENY_REST);
    expect_result("DENY_REST past the bound", got, past_bound())?;
    let after = ring.verdicts()?;
    if got == 0 {
        expect_eq("CLOSE", after[2 * usize::from(op::CLOSE)], DENIED)?;
    } else {
        expect_eq("verdicts", after, before)?;
    }
    // A filter for a denied opcode has nothing left to deny: Rust does not keep it, so
    // that it does not count.
    let mut other = Ring::new(2)?;
    let got = register::filter_with(other.fd(), op::CLOSE, &bpf::allow(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    fill(other.fd(), op::NOP)?;
    let got = other.filter(op::NOP, &bpf::allow());
    expect_result("past the bound for a denied opcode", got, 0)?;
    let denied = other.verdicts()?[2 * usize::from(op::NOP)];
    expect_eq("NOP in the end", denied, DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that filters whose verdict is constant count towards the bound.
///
/// In C, no chain has a bound: the same registrations succeed.
fn filters_with_a_constant_verdict_count() -> TestResult {
    for verdict in [1, 0] {
        let mut ring = Ring::new(2)?;
        let mut constant = bpf::filler(BPF_MAXINSNS);
        constant[BPF_MAXINSNS - 1] = bpf::ret(verdict);
        for _ in 0..LONGEST {
            ring.must_filter(op::NOP, &constant)?;
        }
        let got = ring.filter(op::NOP, &constant);
        expect_result(
            &format!("past the bound, verdict {verdict}"),
            got,
            past_bound(),
        )?;
        let want = if verdict == 0 { DENIED } else { 0 };
        ring.expect("NOP", Sqe::nop(), want)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that invalid arguments past the bound give their own errors, and the pdu_size
/// is written back.
///
/// In C, no chain has a bound: the same registrations succeed.
fn other_errors_come_before_the_bound() -> TestResult {
    let mut ring = Ring::new(2)?;
    fill(ring.fd(), op::SOCKET)?;
    let allow = bpf::allow();
    let valid = Registration::new(op::SOCKET, &allow);
    let mut small = Registration {
        pdu_size: 8,
        ..valid
    };
    expect_result("smaller pdu", small.register(ring.fd()), past_bound())?;
    expect_eq("pdu size written back", small, valid)?;
    let mut strict = small.flags(register::SZ_STRICT);
    strict.pdu_size = 8;
    expect_result("strict", strict.register(ring.fd()), -libc::EMSGSIZE)?;
    let invalid = [bpf::ld_imm(1)];
    expect_result(
        "program without RET",
        ring.filter(op::SOCKET, &invalid),
        -libc::EINVAL,
    )?;
    let mut unmapped = valid;
    unmapped.filter_ptr = 8;
    expect_result(
        "filter_ptr unmapped",
        unmapped.register(ring.fd()),
        -libc::EFAULT,
    )?;
    let socket = Sqe::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    let fd = ring.run(socket)?;
    anyhow::ensure!(fd >= 0, "SOCKET: {fd}");
    Ok(Outcome::Passed)
}
