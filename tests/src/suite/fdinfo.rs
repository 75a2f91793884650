// SPDX-License-Identifier: GPL-2.0
//! D6: the restrictions and filters of a ring in its fdinfo, which are shown by the Rust
//! code alone.

use std::fs;

use anyhow::Context;

use super::restrictions::{disabled, restricted};
use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, OPCODE_WORD, USER_DATA_LO, jset, ld, ret};
use crate::kernel::{
    CHAIN_BOUND, IORING_OP_LAST, Implementation, expect_eq, expect_result, implementation,
};
use crate::register::{
    self, DENY_REST, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_PROBE, Restriction, TASK,
};
use crate::ring::Ring;
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, IOSQE_CQE_SKIP_SUCCESS, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::fdinfo" {
        FD01 free_ring_shows_nothing;
        FD02 lists_are_shown;
        FD03 filters_are_shown_by_opcode;
        FD04 inherited_restrictions_are_shown;
        FD05 full_chain_shows_the_bound (30 s);
    }
};

const ALL_FLAGS: &str = "ffffffffffffffffffffffffffffffff";
/// The set of flags without IOSQE_ASYNC: of each 32 values, the first 16.
const NO_ASYNC: &str = "0000ffff0000ffff0000ffff0000ffff";
/// The set of flags without IOSQE_CQE_SKIP_SUCCESS: the lower 64 values.
const NO_SKIP: &str = "0000000000000000ffffffffffffffff";

/// Returns the lines of a ring's fdinfo from the first one about restrictions or filters.
fn shown(ring: &Ring) -> anyhow::Result<Vec<String>> {
    let path = format!("/proc/self/fdinfo/{}", ring.fd());
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    anyhow::ensure!(text.contains("NAPI:"), "{path} has nothing about the ring");
    Ok(text
        .lines()
        .skip_while(|line| !line.starts_with("Restrictions:") && !line.starts_with("Filters:"))
        .map(str::to_string)
        .collect())
}

/// Checks the lines about restrictions and filters. In C, there are none.
fn expect_shown(what: &str, ring: &Ring, want: &[&str]) -> anyhow::Result<()> {
    let mut want: Vec<String> = want.iter().map(|line| line.to_string()).collect();
    if implementation() == Implementation::C {
        want.clear();
    }
    expect_eq(what, shown(ring)?, want)
}

/// Checks that fdinfo has no more lines than in C for a ring without restrictions and
/// filters, and for one whose filters allow everything.
fn free_ring_shows_nothing() -> TestResult {
    let ring = Ring::new(2)?;
    expect_shown("free", &ring, &[])?;
    ring.must_filter(op::NOP, &bpf::allow())?;
    expect_shown("filter that allows", &ring, &[])?;
    Ok(Outcome::Passed)
}

/// Checks that the opcodes and flags of a list are shown, also before the ring is
/// enabled.
///
/// In C, nothing is shown.
fn lists_are_shown() -> TestResult {
    let list = [
        Restriction::sqe_op(op::READ),
        Restriction::sqe_op(op::NOP),
        Restriction::sqe_op(op::NOP128),
        Restriction::sqe_op(IORING_OP_LAST as u8 - 1),
        Restriction::flags_allowed(0x70),
        Restriction::flags_required(IOSQE_ASYNC),
    ];
    let want = [
        "Restrictions:",
        "  sqe: 0 22 63 64",
        "  sqe_flags: allowed 0x70, required 0x10",
    ];
    let ring = disabled()?;
    expect_shown("not restricted yet", &ring, &[])?;
    expect_result("list", register::restrict_ring(ring.fd(), &list), 0)?;
    expect_shown("disabled", &ring, &want)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    expect_shown("enabled", &ring, &want)?;

    let registers = [IORING_REGISTER_BPF_FILTER, IORING_REGISTER_PROBE];
    let ring = restricted(&registers.map(Restriction::register_op))?;
    let want = ["Restrictions:", "  register: 8 37"];
    expect_shown("register opcodes", &ring, &want)?;
    ring.must_filter(op::READ, &bpf::deny())?;
    let want = [
        want[0],
        want[1],
        "Filters:",
        "  22 READ: denied, cost 5 of 32768",
    ];
    expect_shown("both", &ring, &want)?;

    let ring = restricted(&[])?;
    let want = [
        "Restrictions:",
        "  register:",
        "  sqe:",
        "  sqe_flags: allowed 0x0, required 0x0",
    ];
    expect_shown("empty list", &ring, &want)?;
    Ok(Outcome::Passed)
}

/// Checks that each opcode that is not free is shown as denied, or with the flags that
/// are allowed and the number of programs, and with the cost of its filters.
///
/// In C, nothing is shown.
fn filters_are_shown_by_opcode() -> TestResult {
    let mut ring = Ring::new(2)?;
    let deny_flag = |flag: u8| {
        [
            ld(OPCODE_WORD),
            jset(u32::from(flag) << 8, 0, 1),
            ret(0),
            ret(1),
        ]
    };
    let deny_async = deny_flag(IOSQE_ASYNC);
    ring.must_filter(op::CLOSE, &bpf::deny())?;
    ring.must_filter(op::READ, &deny_async)?;
    ring.must_filter(op::WRITE, &deny_flag(IOSQE_CQE_SKIP_SUCCESS))?;
    for value in 1..4 {
        ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, value))?;
    }
    ring.must_filter(op::RECV, &bpf::deny_if(USER_DATA_LO, 1))?;
    ring.must_filter(op::RECV, &deny_async)?;
    let nop = format!("  0 NOP: flags {ALL_FLAGS}, programs 3, cost 24 of 32768");
    let close = "  19 CLOSE: denied, cost 5 of 32768";
    let read = format!("  22 READ: flags {NO_ASYNC}, programs 0, cost 8 of 32768");
    let write = format!("  23 WRITE: flags {NO_SKIP}, programs 0, cost 8 of 32768");
    let recv = format!("  27 RECV: flags {NO_ASYNC}, programs 1, cost 16 of 32768");
    let want = ["Filters:", &nop, close, &read, &write, &recv];
    expect_shown("filters", &ring, &want)?;
    ring.expect("fuses the programs", Sqe::nop(), 0)?;
    expect_shown("afterwards", &ring, &want)?;

    let got = register::filter_with(ring.fd(), op::STATX, &bpf::allow(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    if implementation() == Implementation::Rust {
        let lines = shown(&ring)?;
        // All but the title, less STATX, which is free.
        expect_eq("opcodes", lines.len(), IORING_OP_LAST as usize)?;
        for line in [&nop, close, &read, "  1 READV: denied, cost 0 of 32768"] {
            anyhow::ensure!(
                lines.iter().any(|other| other == line),
                "no '{line}': {lines:?}"
            );
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that a ring shows what its task had registered when it was made.
///
/// In C, nothing is shown.
fn inherited_restrictions_are_shown() -> TestResult {
    sandbox::sandboxed()?;
    let earlier = Ring::new(2)?;
    let list = [Restriction::sqe_op(op::NOP)];
    expect_result("list", register::restrict_task(&list), 0)?;
    let got = register::filter(TASK, op::NOP, &bpf::deny_if(USER_DATA_LO, 1));
    expect_result("filter", got, 0)?;
    let nop = format!("  0 NOP: flags {ALL_FLAGS}, programs 1, cost 8 of 32768");
    let want = [
        "Restrictions:",
        "  sqe: 0",
        "  sqe_flags: allowed 0x0, required 0x0",
        "Filters:",
        &nop,
    ];
    expect_shown("ring", &Ring::new(2)?, &want)?;
    expect_shown("ring made before", &earlier, &[])?;
    sandbox::in_child(|| expect_shown("child", &Ring::new(2)?, &want))?;
    Ok(Outcome::Passed)
}

/// Checks that a chain that is as long as it may be shows a cost of 32,768.
///
/// In C, nothing is shown.
fn full_chain_shows_the_bound() -> TestResult {
    let ring = Ring::new(2)?;
    super::bounds::fill(ring.fd(), op::NOP)?;
    let line = format!("  0 NOP: flags {ALL_FLAGS}, programs 8, cost {CHAIN_BOUND} of 32768");
    expect_shown("at the bound", &ring, &["Filters:", &line])?;
    Ok(Outcome::Passed)
}
