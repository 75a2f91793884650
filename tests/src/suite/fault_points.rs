// SPDX-License-Identifier: GPL-2.0
//! Makes every allocation and user copy of a system call fail, one after the other,
//! through `/proc/self/fail-nth`. Or makes all allocations fail from one on, because
//! some are retried. Each failure must return its error and change nothing; the same
//! call must succeed right afterwards.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, bail, ensure};

use super::{NOTE, Outcome};
use crate::bpf::{self, Program, USER_DATA_LO};
use crate::kernel::{self, describe, expect_eq, expect_result};
use crate::register::{self, Restriction, TASK};
use crate::ring::Ring;
use crate::sandbox::{self, Shared};
use crate::sqe::{Sqe, op};

const DENIED: i32 = -libc::EACCES;

/// A file that makes the n-th fault point that this process reaches fail.
pub struct FailNth(File);

impl FailNth {
    pub fn open() -> anyhow::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).open("/proc/self/fail-nth");
        Ok(FailNth(file.context("/proc/self/fail-nth")?))
    }

    /// Runs `body` with its `n`-th fault point failing. Returns its result, and whether
    /// it reached that many fault points.
    pub fn during(&self, n: usize, body: impl FnOnce() -> i32) -> anyhow::Result<(i32, bool)> {
        let number = n.to_string();
        self.0
            .write_all_at(number.as_bytes(), 0)
            .context("fail-nth")?;
        let ret = body();
        // Reading this file is a user copy and so a fault point itself. It fails only
        // if `body` did not reach the n-th one.
        let mut left = [0; 16];
        let hit = match self.0.read_at(&mut left, 0) {
            Ok(len) => left[..len].trim_ascii() == b"0",
            Err(_) => false,
        };
        // Writing this file is a fault point as well.
        while self.0.write_all_at(b"0", 0).is_err() {}
        Ok((ret, hit))
    }
}

/// The number of bytes that may still be allocated.
const BYTES: &str = "/sys/kernel/debug/failslab/space";

/// A file that makes the kernel's allocations for this process fail once a number of
/// bytes is used up.
struct Budget(File);

impl Budget {
    fn open() -> anyhow::Result<Self> {
        let file = File::options().write(true).open("/proc/self/make-it-fail");
        Ok(Budget(file.context("/proc/self/make-it-fail")?))
    }

    /// Runs `body` with `bytes` bytes to allocate. Returns its result, and the number
    /// of bytes used.
    fn during(&self, bytes: u32, body: impl FnOnce() -> i32) -> anyhow::Result<(i32, u32)> {
        fs::write(BYTES, bytes.to_string()).context(BYTES)?;
        self.0.write_all_at(b"1", 0).context("make-it-fail")?;
        let ret = body();
        self.0.write_all_at(b"0", 0).context("make-it-fail")?;
        let left: u32 = fs::read_to_string(BYTES)?.trim().parse()?;
        Ok((ret, bytes - left))
    }
}

/// The fault points that a sweep covers.
pub enum Points {
    /// Allocations and user copies.
    All,
    /// User copies only.
    UserCopies,
}

/// Sets a knob of fault injection.
fn set(knob: &str, value: &str) -> anyhow::Result<()> {
    let path = format!("/sys/kernel/debug/{knob}");
    fs::write(&path, value).with_context(|| format!("{value} > {path}"))
}

/// Sets up the fault points. Returns the reason for skipping the test if the kernel has
/// none.
pub fn prepare(points: Points) -> anyhow::Result<Option<Outcome>> {
    if !kernel::has_fault_injection() {
        let reason = "the kernel has no CONFIG_FAILSLAB and CONFIG_FAULT_INJECTION_USERCOPY";
        return Ok(Some(Outcome::Skipped(reason.to_string())));
    }
    set("failslab/ignore-gfp-wait", "N")?;
    // No cache is marked for this filter, so it keeps allocations from failing.
    let marked_caches_only = matches!(points, Points::UserCopies);
    set(
        "failslab/cache-filter",
        if marked_caches_only { "Y" } else { "N" },
    )?;
    // No page allocation has so high an order: failing pages are for `without_pages`.
    set("fail_page_alloc/min-order", "99")?;
    // Thousands of stack traces would only hide other messages.
    for attribute in ["failslab", "fail_usercopy"] {
        set(&format!("{attribute}/verbose"), "0")?;
    }
    Ok(None)
}

/// A system call that may fail half way, and checks of the state that it left behind.
pub trait Scenario: Sized {
    /// Prepares the state before the call.
    fn setup() -> anyhow::Result<Self>;
    /// Makes the call itself.
    fn act(&mut self) -> i32;
    /// Checks that nothing changed.
    fn unchanged(&mut self) -> anyhow::Result<()>;
    /// Checks that the call had its effect.
    fn done(&mut self) -> anyhow::Result<()>;
    /// Uses what the call made, where no fault point was hit: in the last attempt of a
    /// sweep alone, as this may take longer than everything else.
    fn works(&mut self) -> anyhow::Result<()> {
        Ok(())
    }
}

/// The number of outcomes of each kind in a sweep.
#[derive(Default, Debug)]
pub struct Outcomes {
    pub no_memory: u32,
    pub fault: u32,
    /// Calls that succeeded in spite of the failure, as the JIT allows.
    pub absorbed: u32,
}

/// The outcome of one attempt, as the child that made it reports.
const NO_MEMORY: u32 = 1;
const FAULT: u32 = 2;
const ABSORBED: u32 = 3;
const UNTOUCHED: u32 = 4;

/// Fails the first, second, … fault point of a scenario, each in a new child, until the
/// call has no more of them.
pub fn sweep<S: Scenario>(what: &str) -> anyhow::Result<Outcomes> {
    const MOST: usize = 2000;
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    let outcome = &shared[0];
    let mut met = Outcomes::default();
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
                let Outcomes {
                    no_memory,
                    fault,
                    absorbed,
                } = met;
                println!("{NOTE}{what}: {no_memory} ENOMEM, {fault} EFAULT, {absorbed} absorbed");
                return Ok(met);
            }
            other => bail!("{what}: fault point {n}: unknown outcome {other} from the child"),
        }
    }
    bail!("{what}: no end after {MOST} fault points")
}

/// Makes one attempt in a process of its own.
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
    if outcome == UNTOUCHED {
        scenario.works().context("in use")?;
    }
    finish(scenario, ret)?;
    Ok(outcome)
}

/// Checks the state after a call, whether the call failed or not.
fn finish<S: Scenario>(mut scenario: S, ret: i32) -> anyhow::Result<()> {
    if ret != 0 {
        scenario.unchanged().context("after the failure")?;
        expect_result("again, without failure", scenario.act(), 0)?;
    }
    scenario.done().context("after success")
}

/// Gives a scenario more and more memory, each time in a new child, until it has
/// enough. Returns the number of points at which it was refused. Smaller steps would
/// find more points, which is the purpose of [`sweep`].
pub fn exhaust<S: Scenario>(what: &str) -> anyhow::Result<u32> {
    const STEP: usize = 128;
    const MOST: u32 = 1 << 18;
    // Every allocation past the budget fails, but only in processes that ask for it.
    for (knob, value) in [
        ("task-filter", "Y"),
        ("times", "-1"),
        ("probability", "100"),
    ] {
        set(&format!("failslab/{knob}"), value)?;
    }
    let shared = Shared::<[AtomicU32; 2]>::new()?;
    let [result, used] = &*shared;
    let (mut points, mut last) = (0, None);
    for bytes in (0..MOST).step_by(STEP) {
        sandbox::in_child(|| {
            let budget = Budget::open()?;
            let mut scenario = S::setup().context("setup")?;
            let (ret, consumed) = budget.during(bytes, || scenario.act())?;
            result.store(ret as u32, SeqCst);
            used.store(consumed, SeqCst);
            finish(scenario, ret)
        })
        .with_context(|| format!("{what}: {bytes} bytes"))?;
        match result.load(SeqCst) as i32 {
            0 => {
                println!("{NOTE}{what}: refused at {points} points, {bytes} bytes will do");
                return Ok(points);
            }
            got => expect_result(what, got, -libc::ENOMEM)?,
        }
        let consumed = used.load(SeqCst);
        points += u32::from(last.replace(consumed) != Some(consumed));
    }
    bail!("{what}: {MOST} bytes are not enough")
}

/// Runs a scenario that allocates pages, and makes it fail because there are none.
pub fn without_pages<S: Scenario>(what: &str) -> anyhow::Result<()> {
    const TIMES: &str = "fail_page_alloc/times";
    const MOST: i32 = 50;
    // `exhaust` may have left this set. Here, objects can be allocated.
    set("failslab/probability", "0")?;
    for (knob, value) in [
        ("task-filter", "Y"),
        ("ignore-gfp-wait", "N"),
        ("min-order", "0"),
        ("verbose", "0"),
        ("probability", "100"),
    ] {
        set(&format!("fail_page_alloc/{knob}"), value)?;
    }
    sandbox::in_child(|| {
        let who = File::options().write(true).open("/proc/self/make-it-fail");
        let who = who.context("/proc/self/make-it-fail")?;
        let mut scenario = S::setup().context("setup")?;
        // Retries and fallbacks must fail as well.
        set(TIMES, &MOST.to_string())?;
        who.write_all_at(b"1", 0).context("make-it-fail")?;
        let got = scenario.act();
        who.write_all_at(b"0", 0).context("make-it-fail")?;
        let left = fs::read_to_string(format!("/sys/kernel/debug/{TIMES}"))?;
        set(TIMES, "0")?;
        ensure!(
            left.trim() != MOST.to_string(),
            "the call allocated no page"
        );
        expect_result("without pages", got, -libc::ENOMEM)?;
        finish(scenario, got)
    })
    .with_context(|| what.to_string())
}

/// Returns the results of NOP 0 to 3 and of CLOSE on a ring.
fn verdicts(ring: &mut Ring) -> anyhow::Result<[i32; 5]> {
    let mut results = [0; 5];
    for (user_data, result) in results.iter_mut().take(4).enumerate() {
        *result = ring.run(Sqe::nop().user_data(user_data as u64))?;
    }
    results[4] = ring.run(Sqe::new(op::CLOSE))?;
    Ok(results)
}

/// Returns the result of [`verdicts`] on a ring that denies these NOPs, and CLOSE if
/// `close`.
fn denying(nops: &[usize], close: bool) -> [i32; 5] {
    let mut results = [0, 0, 0, 0, if close { DENIED } else { -libc::EBADF }];
    for &user_data in nops {
        results[user_data] = DENIED;
    }
    results
}

/// Checks that a ring denies exactly these NOPs, and CLOSE if `close`.
pub fn ring_denies(ring: &mut Ring, nops: &[usize], close: bool) -> anyhow::Result<()> {
    expect_eq("verdicts", verdicts(ring)?, denying(nops, close))
}

/// Checks that a new ring denies exactly these NOPs, and CLOSE if `close`.
pub fn task_denies(nops: &[usize], close: bool) -> anyhow::Result<()> {
    ring_denies(&mut Ring::new(2)?, nops, close)
}

/// The first filter of a task.
pub struct TaskFilter(Program);

impl Scenario for TaskFilter {
    fn setup() -> anyhow::Result<Self> {
        Ok(TaskFilter(bpf::deny_if(USER_DATA_LO, 1)))
    }
    fn act(&mut self) -> i32 {
        register::filter(TASK, op::NOP, &self.0)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[], false)?;
        // The kernel would refuse with EPERM if the failed call had left an object with
        // the task.
        sandbox::in_child(|| {
            let got = register::restrict_task(&[Restriction::sqe_op(op::NOP)]);
            expect_result("restrictions", got, 0)
        })
    }
    fn done(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)
    }
}
