// SPDX-License-Identifier: GPL-2.0
//! D11: every allocation and user copy of a registration made to fail, one after
//! the other, through `/proc/self/fail-nth`. Each failure must return its error
//! and change nothing; the same call must succeed right afterwards.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, bail, ensure};

use super::{NOTE, Outcome, Test, TestResult, slow};
use crate::bpf::{self, Program, USER_DATA_LO};
use crate::kernel::{self, BPF_MAXINSNS, describe, expect_eq, expect_result};
use crate::register::{self, DENY_REST, Restriction, TASK};
use crate::ring::Ring;
use crate::sandbox::{self, Shared, Sysctl};
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = &[
    slow("FI01 first filter of a task", 30, fi01),
    slow(
        "FI02 filters of a ring: first, second, after sharing",
        60,
        fi02,
    ),
    slow("FI03 long program, stacked on others", 60, fi03),
    slow("FI04 JIT memory used up", 10, fi04),
    slow("FI05 restrictions of a task and of a ring", 30, fi05),
    slow("FI06 fork of a filtered task", 60, fi06),
    slow("FI09 user copies of a registration", 10, fi09),
];

const DENIED: i32 = -libc::EACCES;

/// Makes the n-th fault point that this process meets fail.
struct FailNth(File);

impl FailNth {
    fn open() -> anyhow::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).open("/proc/self/fail-nth");
        Ok(FailNth(file.context("/proc/self/fail-nth")?))
    }

    /// Runs `body` with its `n`-th fault point failing: its result, and whether
    /// there were as many.
    fn during(&self, n: usize, body: impl FnOnce() -> i32) -> anyhow::Result<(i32, bool)> {
        let number = n.to_string();
        self.0
            .write_all_at(number.as_bytes(), 0)
            .context("fail-nth")?;
        let ret = body();
        // Reading copies to user space, a fault point itself: it can only fail
        // if the fault was still to come.
        let mut left = [0; 16];
        let hit = match self.0.read_at(&mut left, 0) {
            Ok(len) => left[..len].trim_ascii() == b"0",
            Err(_) => false,
        };
        // The same goes for switching it off.
        while self.0.write_all_at(b"0", 0).is_err() {}
        Ok((ret, hit))
    }
}

/// Which fault points count.
enum Points {
    /// Allocations and user copies.
    All,
    /// User copies only.
    UserCopies,
}

/// Sets the fault points up, or says why there are none.
fn prepare(points: Points) -> anyhow::Result<Option<Outcome>> {
    if !kernel::has_fault_injection() {
        let reason = "the kernel has no CONFIG_FAILSLAB and CONFIG_FAULT_INJECTION_USERCOPY";
        return Ok(Some(Outcome::Skipped(reason.to_string())));
    }
    let set = |knob: &str, value: &str| {
        let path = format!("/sys/kernel/debug/{knob}");
        fs::write(&path, value).with_context(|| format!("{value} > {path}"))
    };
    set("failslab/ignore-gfp-wait", "N")?;
    // No cache is marked for it, so this leaves allocations alone.
    let marked_caches_only = matches!(points, Points::UserCopies);
    set(
        "failslab/cache-filter",
        if marked_caches_only { "Y" } else { "N" },
    )?;
    // Thousands of stack traces help nobody.
    for attribute in ["failslab", "fail_usercopy"] {
        set(&format!("{attribute}/verbose"), "0")?;
    }
    Ok(None)
}

/// A system call that may fail half way, and how to see what it left behind.
trait Scenario: Sized {
    /// What is there before the call.
    fn setup() -> anyhow::Result<Self>;
    /// The call itself.
    fn act(&mut self) -> i32;
    /// That nothing changed.
    fn unchanged(&mut self) -> anyhow::Result<()>;
    /// That the call had its effect.
    fn done(&mut self) -> anyhow::Result<()>;
}

/// What a sweep met, by kind of outcome.
#[derive(Default, Debug)]
struct Met {
    no_memory: u32,
    fault: u32,
    /// The call succeeded in spite of the failure, as the JIT lets it.
    absorbed: u32,
}

/// How one attempt ended, told by the child that made it.
const NO_MEMORY: u32 = 1;
const FAULT: u32 = 2;
const ABSORBED: u32 = 3;
const UNTOUCHED: u32 = 4;

/// Fails the first, second, … fault point of a scenario, each in a fresh child,
/// until the call has no more of them.
fn sweep<S: Scenario>(what: &str) -> anyhow::Result<Met> {
    const MOST: usize = 2000;
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    let outcome = &shared[0];
    let mut met = Met::default();
    for n in 1..MOST {
        outcome.store(0, SeqCst);
        sandbox::in_child(|| {
            outcome.store(attempt::<S>(n)?, SeqCst);
            Ok(())
        })
        .with_context(|| format!("{what}: fault point {n}"))?;
        match outcome.load(SeqCst) {
            NO_MEMORY => met.no_memory += 1,
            FAULT => met.fault += 1,
            ABSORBED => met.absorbed += 1,
            UNTOUCHED => {
                let Met {
                    no_memory,
                    fault,
                    absorbed,
                } = met;
                println!("{NOTE}{what}: {no_memory} ENOMEM, {fault} EFAULT, {absorbed} absorbed");
                return Ok(met);
            }
            other => bail!("{what}: fault point {n}: the child says {other}"),
        }
    }
    bail!("{what}: no end after {MOST} fault points")
}

/// One attempt, in a process of its own.
fn attempt<S: Scenario>(n: usize) -> anyhow::Result<u32> {
    let fail = FailNth::open()?;
    let mut scenario = S::setup().context("setup")?;
    let (ret, hit) = fail.during(n, || scenario.act())?;
    let outcome = match (ret, hit) {
        (0, true) => ABSORBED,
        (0, false) => UNTOUCHED,
        (errno, true) if errno == -libc::ENOMEM => NO_MEMORY,
        (errno, true) if errno == -libc::EFAULT => FAULT,
        (other, hit) => bail!("result {}, fault point hit: {hit}", describe(other)),
    };
    if ret != 0 {
        scenario.unchanged().context("after the failure")?;
        expect_result("again, without failure", scenario.act(), 0)?;
    }
    scenario.done().context("after success")?;
    Ok(outcome)
}

/// Results of NOP 0 to 3 and of CLOSE on a ring.
fn verdicts(ring: &mut Ring) -> anyhow::Result<[i32; 5]> {
    let mut results = [0; 5];
    for (user_data, result) in results.iter_mut().take(4).enumerate() {
        *result = ring.run(Sqe::nop().user_data(user_data as u64))?;
    }
    results[4] = ring.run(Sqe::new(op::CLOSE))?;
    Ok(results)
}

/// What [`verdicts`] says where these NOPs, or CLOSE, are denied.
fn denying(nops: &[usize], close: bool) -> [i32; 5] {
    let mut results = [0, 0, 0, 0, if close { DENIED } else { -libc::EBADF }];
    for &user_data in nops {
        results[user_data] = DENIED;
    }
    results
}

/// That a ring denies exactly these.
fn ring_denies(ring: &mut Ring, nops: &[usize], close: bool) -> anyhow::Result<()> {
    expect_eq("verdicts", verdicts(ring)?, denying(nops, close))
}

/// That a ring made now denies exactly these.
fn task_denies(nops: &[usize], close: bool) -> anyhow::Result<()> {
    ring_denies(&mut Ring::new(2)?, nops, close)
}

/// The first filter of a task.
struct TaskFilter(Program);

impl Scenario for TaskFilter {
    fn setup() -> anyhow::Result<Self> {
        Ok(TaskFilter(bpf::deny_if(USER_DATA_LO, 1)))
    }
    fn act(&mut self) -> i32 {
        register::filter(TASK, op::NOP, &self.0)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[], false)?;
        // A task that has an object already would be refused with EPERM.
        sandbox::in_child(|| {
            let got = register::restrict_task(&[Restriction::sqe_op(op::NOP)]);
            expect_result("restrictions", got, 0)
        })
    }
    fn done(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)
    }
}

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

fn fi01() -> TestResult {
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

/// A second filter of a ring that has its set for itself.
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

/// A filter of a ring that shares its set with the task it inherited from.
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

fn fi02() -> TestResult {
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

/// A program of the greatest length on top of two others.
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

fn fi03() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<LongOnTop>("long program on top of two")?;
    ensure!(met.no_memory >= 4, "too few allocations failed: {met:?}");
    Ok(Outcome::Passed)
}

fn fi04() -> TestResult {
    let _limit = Sysctl::set("net/core/bpf_jit_limit", "1")?;
    // The limit does not hold for those who may use BPF.
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

/// Restrictions of a task.
struct TaskRestrictions;

impl Scenario for TaskRestrictions {
    fn setup() -> anyhow::Result<Self> {
        Ok(TaskRestrictions)
    }
    fn act(&mut self) -> i32 {
        register::restrict_task(&[Restriction::sqe_op(op::NOP)])
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        task_denies(&[], true)?;
        expect_result("a second time", self.act(), -libc::EPERM)
    }
}

/// Restrictions of a ring that inherited filters.
struct RingRestrictions(Ring);

impl Scenario for RingRestrictions {
    fn setup() -> anyhow::Result<Self> {
        TaskFilter::setup()?.act();
        let disabled = Ring::with(2, crate::ring::IORING_SETUP_R_DISABLED)?;
        Ok(RingRestrictions(disabled))
    }
    fn act(&mut self) -> i32 {
        register::restrict_ring(self.0.fd(), &[Restriction::sqe_op(op::NOP)])
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        expect_result("enabling", register::enable(self.0.fd()), 0)?;
        ring_denies(&mut self.0, &[1], true)
    }
}

fn fi05() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<TaskRestrictions>("restrictions of a task")?;
    ensure!(met.no_memory >= 2, "too few allocations failed: {met:?}");
    let met = sweep::<RingRestrictions>("restrictions of a ring")?;
    ensure!(met.no_memory >= 1, "too few allocations failed: {met:?}");
    expect_eq("user copies that failed", met.fault, 1)?;
    Ok(Outcome::Passed)
}

/// A fork that a filtered task makes: 0 once the child saw its filters.
struct Fork;

impl Scenario for Fork {
    fn setup() -> anyhow::Result<Self> {
        TaskFilter::setup()?.act();
        Ok(Fork)
    }
    fn act(&mut self) -> i32 {
        // SAFETY: one thread; the child does nothing but leave.
        let pid = unsafe { libc::fork() };
        match pid {
            -1 => match nix::errno::Errno::last_raw() {
                // Failing to make a pid gives the same as too many of them.
                libc::EAGAIN => -libc::ENOMEM,
                errno => -errno,
            },
            0 => {
                let filtered = task_denies(&[1], false).is_ok();
                // SAFETY: leaves at once, without the parent's destructors.
                unsafe { libc::_exit(i32::from(!filtered)) }
            }
            pid => {
                let child = nix::unistd::Pid::from_raw(pid);
                match sandbox::join(child) {
                    Ok(()) => 0,
                    Err(_) => -libc::ECHILD,
                }
            }
        }
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)
    }
}

fn fi06() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<Fork>("fork")?;
    ensure!(met.no_memory >= 5, "too few allocations failed: {met:?}");
    Ok(Outcome::Passed)
}

fn fi09() -> TestResult {
    if let Some(skipped) = prepare(Points::UserCopies)? {
        return Ok(skipped);
    }
    for met in [
        sweep::<SecondOfRing>("ring, user copies")?,
        sweep::<InheritedByRing>("inherited set, user copies")?,
        sweep::<TaskFilter>("task, user copies")?,
    ] {
        // The registration, its write-back, the program.
        expect_eq("EFAULT, ENOMEM", [met.fault, met.no_memory], [3, 0])?;
    }
    Ok(Outcome::Passed)
}
