// SPDX-License-Identifier: GPL-2.0
//! D11: registering filters while memory runs out and user memory is unreadable.
//! Restrictions, fork and the threads of rings are in `fault_tasks`.

use anyhow::ensure;

use super::fault_points::{Points, Scenario, TaskFilter, prepare, ring_denies, sweep, task_denies};
use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, Program, USER_DATA_LO};
use crate::kernel::{self, BPF_MAXINSNS, expect_eq, expect_result};
use crate::register::{self, DENY_REST, TASK};
use crate::ring::Ring;
use crate::sandbox::{self, Sysctl};
use crate::sqe::op;

pub const TESTS: &[Test] = tests! {
    "filters::fault" {
        FI01 first_filter_of_a_task_fails_without_effect (30 s);
        FI02 ring_filter_fails_without_effect (60 s);
        FI03 long_filter_fails_without_effect (60 s);
        FI04 filters_work_without_jit_memory;
        FI09 failed_user_copies_change_nothing;
    }
};

/// A second filter of a task whose set a ring shares.
struct SharedTaskFilter {
    ring: Ring,
    program: Program,
}

impl Scenario for SharedTaskFilter {
    fn setup() -> anyhow::Result<Self> {
        TaskFilter::setup()?.act();
        Ok(SharedTaskFilter {
            ring: Ring::new(2)?,
            program: bpf::deny_if(USER_DATA_LO, 2),
        })
    }
    fn act(&mut self) -> i32 {
        register::filter(TASK, op::NOP, &self.program)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)?;
        ring_denies(&mut self.ring, &[1], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        task_denies(&[1, 2], false)?;
        ring_denies(&mut self.ring, &[1], false)
    }
}

/// Checks that the first filter of a task, and one for a shared set, fails at each
/// allocation and user copy without effect.
fn first_filter_of_a_task_fails_without_effect() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<TaskFilter>("first filter")?;
    ensure!(met.no_memory >= 5, "too few allocations failed: {met:?}");
    expect_eq("user copies that failed", met.fault, 3)?;
    let met = sweep::<SharedTaskFilter>("second filter, set shared")?;
    ensure!(met.no_memory >= 5, "too few allocations failed: {met:?}");
    Ok(Outcome::Passed)
}

/// The first filter of a ring, which also denies the rest.
struct FirstOfRing(Ring, Program);

impl Scenario for FirstOfRing {
    fn setup() -> anyhow::Result<Self> {
        Ok(FirstOfRing(Ring::new(2)?, bpf::deny_if(USER_DATA_LO, 1)))
    }
    fn act(&mut self) -> i32 {
        register::filter_with(self.0.fd(), op::NOP, &self.1, DENY_REST)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1], true)
    }
}

/// The second filter of a ring that shares its set with nobody.
struct SecondOfRing(Ring, Program);

impl Scenario for SecondOfRing {
    fn setup() -> anyhow::Result<Self> {
        let ring = Ring::new(2)?;
        ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 1))?;
        Ok(SecondOfRing(ring, bpf::deny_if(USER_DATA_LO, 2)))
    }
    fn act(&mut self) -> i32 {
        self.0.filter(op::NOP, &self.1)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1, 2], false)
    }
}

/// A filter of a ring that shares its set with the task from which it inherited the
/// set.
struct InheritedByRing(Ring, Program);

impl Scenario for InheritedByRing {
    fn setup() -> anyhow::Result<Self> {
        TaskFilter::setup()?.act();
        Ok(InheritedByRing(
            Ring::new(2)?,
            bpf::deny_if(USER_DATA_LO, 2),
        ))
    }
    fn act(&mut self) -> i32 {
        register::filter_with(self.0.fd(), op::NOP, &self.1, DENY_REST)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1], false)?;
        task_denies(&[1], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1, 2], true)?;
        task_denies(&[1], false)
    }
}

/// Checks that the first and second filter of a ring, and one for an inherited set,
/// fails at each allocation and user copy without effect.
fn ring_filter_fails_without_effect() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    for met in [
        sweep::<FirstOfRing>("first filter, DENY_REST")?,
        sweep::<SecondOfRing>("second filter")?,
        sweep::<InheritedByRing>("inherited set, DENY_REST")?,
    ] {
        ensure!(met.no_memory >= 4, "too few allocations failed: {met:?}");
        expect_eq("user copies that failed", met.fault, 3)?;
    }
    Ok(Outcome::Passed)
}

/// A program of the greatest length on top of two other filters.
struct LongOnTop(Ring, Program);

impl Scenario for LongOnTop {
    fn setup() -> anyhow::Result<Self> {
        let ring = Ring::new(2)?;
        ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 1))?;
        ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 2))?;
        let mut program = bpf::deny_if(USER_DATA_LO, 3);
        let padding = BPF_MAXINSNS - program.len();
        program.splice(0..0, std::iter::repeat_n(bpf::ld_imm(0), padding));
        Ok(LongOnTop(ring, program))
    }
    fn act(&mut self) -> i32 {
        self.0.filter(op::NOP, &self.1)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1, 2], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1, 2, 3], false)
    }
}

/// Checks that a long filter on top of others fails at each allocation without effect.
fn long_filter_fails_without_effect() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<LongOnTop>("long program on top of two")?;
    ensure!(met.no_memory >= 4, "too few allocations failed: {met:?}");
    Ok(Outcome::Passed)
}

/// Checks that without memory for the JIT compiler, filters are interpreted, or refused
/// with ENOTSUPP if the kernel has no interpreter.
fn filters_work_without_jit_memory() -> TestResult {
    let _limit = Sysctl::set("net/core/bpf_jit_limit", "1")?;
    // The kernel does not apply the limit to processes that may use BPF.
    sandbox::in_child(|| {
        sandbox::sandboxed()?;
        let mut ring = Ring::new(2)?;
        let program = bpf::deny_if(USER_DATA_LO, 1);
        if kernel::has_option("CONFIG_BPF_JIT_ALWAYS_ON") {
            const ENOTSUPP: i32 = 524;
            expect_result(
                "without interpreter",
                ring.filter(op::NOP, &program),
                -ENOTSUPP,
            )?;
            return ring_denies(&mut ring, &[], false);
        }
        ring.must_filter(op::NOP, &program)?;
        ring.must_filter(op::NOP, &bpf::long(BPF_MAXINSNS, 1))?;
        ring_denies(&mut ring, &[1], false)?;
        let got = register::filter(TASK, op::NOP, &bpf::deny_if(USER_DATA_LO, 2));
        expect_result("task filter", got, 0)?;
        task_denies(&[2], false)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that each of the three user copies of a registration gives EFAULT without
/// effect when it fails.
fn failed_user_copies_change_nothing() -> TestResult {
    if let Some(skipped) = prepare(Points::UserCopies)? {
        return Ok(skipped);
    }
    for met in [
        sweep::<SecondOfRing>("ring, user copies")?,
        sweep::<InheritedByRing>("inherited set, user copies")?,
        sweep::<TaskFilter>("task, user copies")?,
    ] {
        // The kernel copies the registration, its write-back, and the program.
        expect_eq("EFAULT, ENOMEM", [met.fault, met.no_memory], [3, 0])?;
    }
    Ok(Outcome::Passed)
}
