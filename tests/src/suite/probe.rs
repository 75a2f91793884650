// SPDX-License-Identifier: GPL-2.0
//! D6: the opcodes that IORING_REGISTER_PROBE reports as supported on rings with
//! restrictions and filters. C reports all that the kernel has. Rust leaves out those
//! that the ring always refuses.

use anyhow::{Context, ensure};
use fastrand::Rng;

use super::restrictions::{disabled, restricted};
use super::{NOTE, Outcome, Test, TestResult, seed, tests};
use crate::bpf::{self, OPCODE_WORD, Program, USER_DATA_LO, jset, ld, ret};
use crate::kernel::{
    IORING_OP_LAST, Implementation, expect_eq, expect_result, implementation, is_debug,
};
use crate::register::{
    self, DENY_REST, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_ENABLE_RINGS,
    IORING_REGISTER_PROBE, PAGE_SIZE, Page, Restriction, TASK, opcodes,
};
use crate::ring::Ring;
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, IOSQE_CQE_SKIP_SUCCESS, IOSQE_IO_DRAIN, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::probe" {
        PB01 free_ring_reports_all_opcodes;
        PB02 unlisted_opcodes_are_unsupported;
        PB03 flags_that_no_request_can_have_leave_nothing;
        PB04 opcodes_without_a_filter_are_unsupported_after_deny_rest;
        PB05 only_certain_denials_count (30 s);
        PB06 rings_report_what_their_task_lost;
        PB07 program_that_probes_falls_back;
        PB08 malformed_argument_is_refused;
        PB09 unsupported_opcodes_are_denied_with_all_flags (60 s);
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// The size of `struct io_uring_probe` without its opcodes, and that of each opcode.
const HEADER: usize = 16;
const ENTRY: usize = 8;

/// Returns the `struct io_uring_probe` of a ring, for `count` opcodes.
fn raw_probe(ring: &Ring, count: u32) -> anyhow::Result<Vec<u8>> {
    let mut bytes = vec![0u8; HEADER + count as usize * ENTRY];
    let got = register::register(
        ring.fd(),
        IORING_REGISTER_PROBE,
        bytes.as_mut_ptr().cast(),
        count,
    );
    expect_result("probe", got, 0)?;
    Ok(bytes)
}

/// Builds the `struct io_uring_probe` that reports which of `count` opcodes are
/// supported.
fn built(count: u8, supported: impl Fn(u8) -> bool) -> Vec<u8> {
    let mut bytes = vec![0u8; HEADER];
    bytes[0] = IORING_OP_LAST as u8 - 1;
    bytes[1] = count;
    for opcode in 0..count {
        bytes.extend([opcode, 0, u8::from(supported(opcode)), 0, 0, 0, 0, 0]);
    }
    bytes
}

/// Checks that a ring reports those opcodes as supported that `supported` names. In C,
/// it reports all.
fn expect_probe(what: &str, ring: &Ring, supported: impl Fn(u8) -> bool) -> anyhow::Result<()> {
    let is_truthful = implementation() == Implementation::Rust;
    let want = built(IORING_OP_LAST as u8, |opcode| {
        !is_truthful || supported(opcode)
    });
    expect_eq(what, raw_probe(ring, IORING_OP_LAST)?, want)
}

/// Checks that a ring without restrictions and filters reports all opcodes as
/// supported, and so does one whose filters allow everything.
fn free_ring_reports_all_opcodes() -> TestResult {
    let ring = Ring::new(2)?;
    expect_probe("free", &ring, |_| true)?;
    for count in [0, 1, 40] {
        let got = raw_probe(&ring, count)?;
        expect_eq("fewer opcodes", got, built(count as u8, |_| true))?;
    }
    for opcode in opcodes() {
        ring.must_filter(opcode, &bpf::allow())?;
    }
    expect_probe("filters that allow", &ring, |_| true)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring with a list of opcodes reports only these, also before it is
/// enabled.
///
/// In C, all opcodes are reported.
fn unlisted_opcodes_are_unsupported() -> TestResult {
    let listed = [op::NOP, op::READ, op::NOP128];
    let mut list = listed.map(Restriction::sqe_op).to_vec();
    list.push(Restriction::flags_allowed(IOSQE_ASYNC));
    let ring = disabled()?;
    expect_probe("not restricted yet", &ring, |_| true)?;
    expect_result("list", register::restrict_ring(ring.fd(), &list), 0)?;
    expect_probe("disabled", &ring, |opcode| listed.contains(&opcode))?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    expect_probe("enabled", &ring, |opcode| listed.contains(&opcode))?;

    let registers = [IORING_REGISTER_PROBE, IORING_REGISTER_ENABLE_RINGS];
    let ring = restricted(&registers.map(Restriction::register_op))?;
    expect_probe("a list of register opcodes", &ring, |_| true)?;
    Ok(Outcome::Passed)
}

/// Checks that required flags leave the listed opcodes supported, unless one of them is
/// a flag that no request can have.
///
/// In C, all opcodes are reported.
fn flags_that_no_request_can_have_leave_nothing() -> TestResult {
    for (required, possible) in [(0, true), (IOSQE_ASYNC, true), (0x7f, true), (0x80, false)] {
        let ring = restricted(&[
            Restriction::sqe_op(op::NOP),
            Restriction::flags_required(required),
        ])?;
        let what = format!("required {required:#x}");
        expect_probe(&what, &ring, |opcode| possible && opcode == op::NOP)?;
    }
    let ring = restricted(&[Restriction::flags_allowed(0xff)])?;
    expect_probe("flags without opcodes", &ring, |_| false)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring no longer reports the opcodes that had no filter when
/// IO_URING_BPF_FILTER_DENY_REST was given, also if they get one later.
///
/// In C, all opcodes are reported.
fn opcodes_without_a_filter_are_unsupported_after_deny_rest() -> TestResult {
    let ring = Ring::new(2)?;
    ring.must_filter(op::CLOSE, &bpf::deny_if(USER_DATA_LO, 1))?;
    let got = register::filter_with(ring.fd(), op::NOP, &bpf::allow(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    let allowed = |opcode| opcode == op::NOP || opcode == op::CLOSE;
    expect_probe("after DENY_REST", &ring, allowed)?;
    ring.must_filter(op::READ, &bpf::allow())?;
    expect_probe("with a later filter", &ring, allowed)?;
    Ok(Outcome::Passed)
}

/// Builds a program that denies requests with one of `flags`.
fn deny_flags(flags: u8) -> Program {
    vec![
        ld(OPCODE_WORD),
        jset(u32::from(flags) << 8, 0, 1),
        ret(0),
        ret(1),
    ]
}

/// Builds a program that denies requests without any of `flags`.
fn require_flags(flags: u8) -> Program {
    vec![
        ld(OPCODE_WORD),
        jset(u32::from(flags) << 8, 1, 0),
        ret(0),
        ret(1),
    ]
}

/// Checks that an opcode is unsupported if filters deny it whatever a request says, and
/// stays supported if any request may be allowed.
///
/// In C, all opcodes are reported.
fn only_certain_denials_count() -> TestResult {
    let all = 0x7f;
    for (what, filters, supported) in [
        ("deny", vec![bpf::deny()], false),
        (
            "by the word of its opcode",
            vec![bpf::deny_if(OPCODE_WORD, 0)],
            true,
        ),
        ("by user_data", vec![bpf::deny_if(USER_DATA_LO, 7)], true),
        (
            "by most user_data",
            vec![bpf::allow_if(USER_DATA_LO, 7)],
            true,
        ),
        ("by a flag", vec![deny_flags(IOSQE_ASYNC)], true),
        ("by any flag", vec![deny_flags(all)], true),
        ("without flags", vec![require_flags(all)], true),
        (
            "with and without",
            vec![deny_flags(IOSQE_ASYNC), require_flags(IOSQE_ASYNC)],
            false,
        ),
        (
            "any and none",
            vec![deny_flags(all), require_flags(all)],
            false,
        ),
        (
            "after user_data",
            vec![bpf::deny_if(USER_DATA_LO, 7), bpf::deny()],
            false,
        ),
        (
            "before user_data",
            vec![bpf::deny(), bpf::deny_if(USER_DATA_LO, 7)],
            false,
        ),
        ("by a long program", vec![bpf::long(300, 0)], true),
    ] {
        for opcode in [op::NOP, op::OPENAT, op::CONNECT] {
            let ring = Ring::new(2)?;
            for filter in &filters {
                ring.must_filter(opcode, filter)?;
            }
            let what = format!("opcode {opcode}, {what}");
            expect_probe(&what, &ring, |other| other != opcode || supported)?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that rings report what their task could not do when it made them, and
/// neither earlier rings nor the task's later filters count.
///
/// In C, all opcodes are reported.
fn rings_report_what_their_task_lost() -> TestResult {
    sandbox::sandboxed()?;
    let earlier = Ring::new(2)?;
    sandbox::in_child(|| {
        let list = [op::NOP, op::CLOSE].map(Restriction::sqe_op);
        expect_result("list", register::restrict_task(&list), 0)?;
        let first = Ring::new(2)?;
        let listed = |opcode| opcode == op::NOP || opcode == op::CLOSE;
        expect_probe("list", &first, listed)?;
        let got = register::filter(TASK, op::NOP, &bpf::deny());
        expect_result("filter", got, 0)?;
        let both = Ring::new(2)?;
        expect_probe("list and filter", &both, |opcode| opcode == op::CLOSE)?;
        expect_probe("ring made before the filter", &first, listed)?;
        expect_probe("ring made before both", &earlier, |_| true)?;
        sandbox::in_child(|| {
            let ring = Ring::new(2)?;
            expect_probe("child", &ring, |opcode| opcode == op::CLOSE)
        })
    })?;
    Ok(Outcome::Passed)
}

/// Returns whether an opcode is reported as supported on a new ring, as libraries ask
/// that choose between ways to do something.
fn is_supported(opcode: u8) -> anyhow::Result<bool> {
    let probe = raw_probe(&Ring::new(2)?, 256)?;
    let ops = usize::from(probe[1]);
    ensure!(ops == IORING_OP_LAST as usize, "{ops} opcodes");
    let entry = &probe[HEADER + usize::from(opcode) * ENTRY..];
    Ok(u16::from_ne_bytes([entry[2], entry[3]]) & 1 != 0)
}

/// Checks that a program that probes for OPENAT and falls back to `open(2)` opens a
/// file in a sandbox that refuses OPENAT.
///
/// In C, the probe reports OPENAT, and the request fails with EACCES.
fn program_that_probes_falls_back() -> TestResult {
    sandbox::sandboxed()?;
    let got = register::filter(TASK, op::OPENAT, &bpf::deny());
    expect_result("filter", got, 0)?;
    let opened = if is_supported(op::OPENAT)? {
        Ring::new(2)?.run(Sqe::openat(c"/proc/self/stat", libc::O_RDONLY, 0))?
    } else {
        std::fs::File::open("/proc/self/stat")
            .map(|_| 0)
            .context("open(2)")?
    };
    let want = match implementation() {
        Implementation::Rust => 0,
        Implementation::C => DENIED,
    };
    expect_result("opening", opened, want)?;
    Ok(Outcome::Passed)
}

/// Checks that a probe of a restricted ring gives EINVAL for memory that is not zero
/// and EFAULT for memory that cannot be read or written, and leaves both as they were.
fn malformed_argument_is_refused() -> TestResult {
    let ring = Ring::new(2)?;
    let got = register::filter_with(ring.fd(), op::NOP, &bpf::deny(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    let probe = |arg: *mut u8, count| {
        register::register(ring.fd(), IORING_REGISTER_PROBE, arg.cast(), count)
    };
    let size = HEADER + IORING_OP_LAST as usize * ENTRY;
    for at in [0, 1, 5, HEADER, HEADER + 2, size - 1] {
        let mut bytes = vec![0u8; size];
        bytes[at] = 1;
        let before = bytes.clone();
        expect_result(
            &format!("byte {at}"),
            probe(bytes.as_mut_ptr(), IORING_OP_LAST),
            INVALID,
        )?;
        expect_eq("unchanged", bytes, before)?;
    }
    expect_result("null", probe(std::ptr::null_mut(), 1), INVALID)?;
    expect_result("unmapped", probe(8 as *mut u8, 1), -libc::EFAULT)?;
    let page = Page::new()?;
    let past_the_end = page.address.wrapping_add(PAGE_SIZE - size + 1);
    let got = probe(past_the_end, IORING_OP_LAST);
    expect_result("one byte missing", got, -libc::EFAULT)?;
    let fits = page.address.wrapping_add(PAGE_SIZE - size);
    page.protect(libc::PROT_READ)?;
    expect_result("read-only", probe(fits, IORING_OP_LAST), -libc::EFAULT)?;
    page.protect(libc::PROT_READ | libc::PROT_WRITE)?;
    expect_result("fits", probe(fits, IORING_OP_LAST), 0)?;
    Ok(Outcome::Passed)
}

/// Builds a filter at random, of those that decide by flags, by `user_data`, or not at
/// all.
fn random_filter(rng: &mut Rng) -> Program {
    let flags = rng.u8(1..0x80);
    match rng.u8(0..8) {
        0 => bpf::allow(),
        1 => bpf::deny(),
        2 => bpf::deny_if(USER_DATA_LO, rng.u32(0..3)),
        3..6 => deny_flags(flags),
        _ => require_flags(flags),
    }
}

/// Makes a ring with a list at random: one of register opcodes, or one with flags, and
/// mostly with RECV.
fn random_ring(rng: &mut Rng) -> anyhow::Result<Ring> {
    if rng.bool() {
        let registers = [IORING_REGISTER_PROBE, IORING_REGISTER_BPF_FILTER];
        return restricted(&registers.map(Restriction::register_op));
    }
    let mut list = vec![Restriction::flags_allowed(rng.u8(..))];
    if rng.bool() {
        let required = rng.u8(..) & rng.u8(..) & rng.u8(..);
        list.push(Restriction::flags_required(required));
    }
    if rng.u8(0..8) != 0 {
        list.push(Restriction::sqe_op(op::RECV));
    }
    restricted(&list)
}

/// Checks on rings with random lists and filters that an opcode that is not reported is
/// denied with every combination of flags.
///
/// In C, opcodes are reported that are always denied.
fn unsupported_opcodes_are_denied_with_all_flags() -> TestResult {
    let mut rng = Rng::with_seed(seed());
    let rounds = if is_debug() { 40 } else { 150 };
    let (mut unsupported, mut free) = (0, 0);
    for round in 0..rounds {
        let mut ring = random_ring(&mut rng)?;
        for _ in 0..rng.u8(0..4) {
            ring.must_filter(op::RECV, &random_filter(&mut rng))?;
        }
        let probe = raw_probe(&ring, IORING_OP_LAST)?;
        let supported = probe[HEADER + usize::from(op::RECV) * ENTRY + 2] != 0;
        // The ring refuses DRAIN after the first request with CQE_SKIP_SUCCESS.
        let no_drain = IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_DRAIN;
        let mut combinations: Vec<u8> = (0..=0x7f).collect();
        combinations.retain(|flags| flags & no_drain != no_drain);
        combinations.sort_by_key(|flags| flags & IOSQE_CQE_SKIP_SUCCESS);
        let mut allowed = 0;
        for flags in combinations {
            // Without a file, RECV fails at once.
            let got = ring.run(Sqe::new(op::RECV).flags(flags).user_data(9))?;
            allowed += u32::from(got != DENIED);
        }
        ensure!(
            supported || allowed == 0,
            "round {round}: unsupported, but allowed with {allowed} combinations"
        );
        unsupported += u32::from(!supported);
        free += u32::from(allowed > 0);
    }
    println!("{NOTE}{unsupported} of {rounds} unsupported, {free} allowed");
    let want = implementation() == Implementation::Rust;
    expect_eq("any unsupported", unsupported > 0, want)?;
    ensure!(free > 0, "no round allowed anything");
    Ok(Outcome::Passed)
}
