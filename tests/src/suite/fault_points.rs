// SPDX-License-Identifier: GPL-2.0
//! Makes every allocation and user copy of a system call fail, one after the
//! other, through `/proc/self/fail-nth`; or every allocation from one on, as some
//! are tried again. Each failure must return its error and change nothing; the
//! same call must succeed right afterwards.

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

/// Makes the n-th fault point that this process meets fail.
pub struct FailNth(File);

impl FailNth {
    pub fn open() -> anyhow::Result<Self> {
        let mut options = File::options();
        let file = options.read(true).write(true).open("/proc/self/fail-nth");
        Ok(FailNth(file.context("/proc/self/fail-nth")?))
    }

    /// Runs `body` with its `n`-th fault point failing: its result, and whether
    /// there were as many.
    pub fn during(&self, n: usize, body: impl FnOnce() -> i32) -> anyhow::Result<(i32, bool)> {
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

/// Where the kernel has how many bytes may still be allocated.
const BYTES: &str = "/sys/kernel/debug/failslab/space";

/// Leaves this process so much memory for the kernel's objects, and then none.
struct Budget(File);

impl Budget {
    fn open() -> anyhow::Result<Self> {
        let file = File::options().write(true).open("/proc/self/make-it-fail");
        Ok(Budget(file.context("/proc/self/make-it-fail")?))
    }

    /// Runs `body` with so many bytes: its result, and how many were used.
    fn during(&self, bytes: u32, body: impl FnOnce() -> i32) -> anyhow::Result<(i32, u32)> {
        fs::write(BYTES, bytes.to_string()).context(BYTES)?;
        self.0.write_all_at(b"1", 0).context("make-it-fail")?;
        let ret = body();
        self.0.write_all_at(b"0", 0).context("make-it-fail")?;
        let left: u32 = fs::read_to_string(BYTES)?.trim().parse()?;
        Ok((ret, bytes - left))
    }
}

/// Which fault points are swept.
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

/// Sets the fault points up, or says why there are none.
pub fn prepare(points: Points) -> anyhow::Result<Option<Outcome>> {
    if !kernel::has_fault_injection() {
        let reason = "the kernel has no CONFIG_FAILSLAB and CONFIG_FAULT_INJECTION_USERCOPY";
        return Ok(Some(Outcome::Skipped(reason.to_string())));
    }
    set("failslab/ignore-gfp-wait", "N")?;
    // No cache is marked for it, so this leaves allocations alone.
    let marked_caches_only = matches!(points, Points::UserCopies);
    set(
        "failslab/cache-filter",
        if marked_caches_only { "Y" } else { "N" },
    )?;
    // Of pages, none is of such an order: `without_pages` is about those.
    set("fail_page_alloc/min-order", "99")?;
    // Thousands of stack traces help nobody.
    for attribute in ["failslab", "fail_usercopy"] {
        set(&format!("{attribute}/verbose"), "0")?;
    }
    Ok(None)
}

/// A system call that may fail half way, and how to see what it left behind.
pub trait Scenario: Sized {
    /// Makes what is there before the call.
    fn setup() -> anyhow::Result<Self>;
    /// Makes the call itself.
    fn act(&mut self) -> i32;
    /// Checks that nothing changed.
    fn unchanged(&mut self) -> anyhow::Result<()>;
    /// Checks that the call had its effect.
    fn done(&mut self) -> anyhow::Result<()>;
}

/// What a sweep met, by kind of outcome.
#[derive(Default, Debug)]
pub struct Met {
    pub no_memory: u32,
    pub fault: u32,
    /// The call succeeded in spite of the failure, as the JIT lets it.
    pub absorbed: u32,
}

/// How one attempt ended, told by the child that made it.
const NO_MEMORY: u32 = 1;
const FAULT: u32 = 2;
const ABSORBED: u32 = 3;
const UNTOUCHED: u32 = 4;

/// Fails the first, second, … fault point of a scenario, each in a fresh child,
/// until the call has no more of them.
pub fn sweep<S: Scenario>(what: &str) -> anyhow::Result<Met> {
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

/// Makes one attempt, in a process of its own.
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
    finish(scenario, ret)?;
    Ok(outcome)
}

/// Checks what must be true after a call, whether it failed or not.
fn finish<S: Scenario>(mut scenario: S, ret: i32) -> anyhow::Result<()> {
    if ret != 0 {
        scenario.unchanged().context("after the failure")?;
        expect_result("again, without failure", scenario.act(), 0)?;
    }
    scenario.done().context("after success")
}

/// Lets a scenario have more and more memory, each time in a fresh child, until
/// it has enough: at how many points it was refused. Finer steps would find more
/// of them; they are for [`sweep`].
pub fn exhaust<S: Scenario>(what: &str) -> anyhow::Result<u32> {
    const STEP: usize = 128;
    const MOST: u32 = 1 << 18;
    // For those only who say so, at every allocation that is past the budget.
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

/// Runs a scenario, which takes pages for itself, and lets it fail for want of them.
pub fn without_pages<S: Scenario>(what: &str) -> anyhow::Result<()> {
    const TIMES: &str = "fail_page_alloc/times";
    const MOST: i32 = 50;
    // Of what `exhaust` has left. Objects are there.
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
        // What is tried again, or in another way, fails again.
        set(TIMES, &MOST.to_string())?;
        who.write_all_at(b"1", 0).context("make-it-fail")?;
        let got = scenario.act();
        who.write_all_at(b"0", 0).context("make-it-fail")?;
        let left = fs::read_to_string(format!("/sys/kernel/debug/{TIMES}"))?;
        set(TIMES, "0")?;
        ensure!(left.trim() != MOST.to_string(), "no page was wanted");
        expect_result("without pages", got, -libc::ENOMEM)?;
        finish(scenario, got)
    })
    .with_context(|| what.to_string())
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

/// Returns what [`verdicts`] says where these NOPs, or CLOSE, are denied.
fn denying(nops: &[usize], close: bool) -> [i32; 5] {
    let mut results = [0, 0, 0, 0, if close { DENIED } else { -libc::EBADF }];
    for &user_data in nops {
        results[user_data] = DENIED;
    }
    results
}

/// Checks that a ring denies exactly these.
pub fn ring_denies(ring: &mut Ring, nops: &[usize], close: bool) -> anyhow::Result<()> {
    expect_eq("verdicts", verdicts(ring)?, denying(nops, close))
}

/// Checks that a ring made now denies exactly these.
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
