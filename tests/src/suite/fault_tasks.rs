// SPDX-License-Identifier: GPL-2.0
//! D11: restrictions, fork, and the threads of rings while memory runs out; and forks
//! that fail late for other reasons.
//!
//! The C implementation allocates for a list of restrictions and for every fork of a
//! restricted task. The Rust implementation does neither. A KUnit test shows that its
//! fork hook allocates nothing.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::ensure;
use nix::sched::{CloneFlags, unshare};

use super::fault_points::{Points, Scenario, TaskFilter, prepare, ring_denies, sweep, task_denies};
use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{self, Implementation, expect_eq, expect_result, implementation};
use crate::register::{self, Restriction, TASK};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SQPOLL, RawParams, Ring, setup};
use crate::sandbox::{self, MemoryGroup, Shared, TaskGroup};
use crate::sqe::{IOSQE_ASYNC, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::fault" {
        FI05 restricting_fails_without_effect (30 s);
        FI06 failed_fork_changes_nothing (60 s);
        FI07 late_failures_of_fork_leak_nothing (60 s);
        FI08 sqpoll_threads_and_workers_fail_without_effect (60 s);
    }
};

/// Builds three entries of a list that allows nothing but NOP.
fn nop_only() -> [Restriction; 3] {
    [
        Restriction::flags_allowed(IOSQE_ASYNC),
        Restriction::flags_required(0),
        Restriction::sqe_op(op::NOP),
    ]
}

/// A task's own restrictions.
struct TaskRestrictions;

impl Scenario for TaskRestrictions {
    fn setup() -> anyhow::Result<Self> {
        Ok(TaskRestrictions)
    }
    fn act(&mut self) -> i32 {
        register::restrict_task(&nop_only())
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        task_denies(&[], true)?;
        expect_result("a second time", self.act(), -libc::EPERM)
    }
}

/// The restrictions of a ring that inherited filters.
struct RingRestrictions(Ring);

impl Scenario for RingRestrictions {
    fn setup() -> anyhow::Result<Self> {
        TaskFilter::setup()?.act();
        let disabled = Ring::with(2, IORING_SETUP_R_DISABLED)?;
        Ok(RingRestrictions(disabled))
    }
    fn act(&mut self) -> i32 {
        register::restrict_ring(self.0.fd(), &nop_only())
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        task_denies(&[1], false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        expect_result("enabling", register::enable(self.0.fd()), 0)?;
        ring_denies(&mut self.0, &[1], true)
    }
}

/// Checks that restricting a task or a ring fails at each allocation and user copy
/// without effect; only the task's object is allocated.
///
/// In C, the list is allocated, too.
fn restricting_fails_without_effect() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let task = sweep::<TaskRestrictions>("restrictions of a task")?;
    let ring = sweep::<RingRestrictions>("restrictions of a ring")?;
    let no_memory = [task.no_memory, ring.no_memory];
    match implementation() {
        Implementation::C => {
            expect_eq("allocations: object and list, list", no_memory, [2, 1])?;
            expect_eq(
                "copies: header and list, list",
                [task.fault, ring.fault],
                [2, 1],
            )?;
        }
        Implementation::Rust => {
            expect_eq("allocations: object, none", no_memory, [1, 0])?;
            // The test does not say in how many pieces the list is read.
            let entries = nop_only().len() as u32;
            ensure!((2..=1 + entries).contains(&task.fault), "copies: {task:?}");
            ensure!((1..=entries).contains(&ring.fault), "copies: {ring:?}");
        }
    }
    Ok(Outcome::Passed)
}

/// Gives the calling task restrictions that allow only NOP and a filter that denies NOP
/// 1.
fn restrict_and_filter() -> anyhow::Result<()> {
    let got = register::restrict_task(&nop_only());
    expect_result("restrictions", got, 0)?;
    let program = bpf::deny_if(USER_DATA_LO, 1);
    expect_result("filter", register::filter(TASK, op::NOP, &program), 0)
}

/// Checks that the calling task has those restrictions and that filter.
fn restricted_and_filtered() -> anyhow::Result<()> {
    task_denies(&[1], true)
}

/// Turns EAGAIN, the error when a task or a pid cannot be made, into ENOMEM.
fn as_no_memory(result: i32) -> i32 {
    if result == -libc::EAGAIN {
        -libc::ENOMEM
    } else {
        result
    }
}

/// A fork of a restricted and filtered task. The result is 0 if the child has both.
struct Fork;

impl Scenario for Fork {
    fn setup() -> anyhow::Result<Self> {
        restrict_and_filter()?;
        Ok(Fork)
    }
    fn act(&mut self) -> i32 {
        // SAFETY: the process has one thread, and the child leaves by `_exit`.
        match unsafe { libc::fork() } {
            -1 => as_no_memory(-nix::errno::Errno::last_raw()),
            0 => {
                let both = restricted_and_filtered().is_ok();
                // SAFETY: this leaves at once, without running the parent's
                // destructors.
                unsafe { libc::_exit(i32::from(!both)) }
            }
            pid => {
                let child = nix::unistd::Pid::from_raw(pid);
                sandbox::join(child).map_or(-libc::ECHILD, |()| 0)
            }
        }
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        restricted_and_filtered()
    }
    fn done(&mut self) -> anyhow::Result<()> {
        restricted_and_filtered()
    }
}

/// Checks that fork of a restricted and filtered task fails at each allocation without
/// effect.
fn failed_fork_changes_nothing() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<Fork>("fork")?;
    ensure!(met.no_memory >= 5, "too few allocations failed: {met:?}");
    Ok(Outcome::Passed)
}

/// `struct clone_args` up to `set_tid_size`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
}

/// Calls `clone3(2)` `rounds` times, which must fail with `error`.
fn failing_clones(what: &str, rounds: usize, args: CloneArgs, error: i32) -> anyhow::Result<()> {
    // If a child is made in spite of that, it runs off the top of a stack of its own
    // while its parent waits. Sharing memory makes a failed call cheaper to undo.
    let stack = [0u64; 64];
    let args = CloneArgs {
        flags: args.flags | (libc::CLONE_VM | libc::CLONE_VFORK) as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_ptr() as u64,
        stack_size: size_of_val(&stack) as u64 - 16,
        ..args
    };
    for _ in 0..rounds {
        // SAFETY: the arguments are laid out as the kernel's, and a child cannot touch
        // the parent's stack.
        let ret = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
        expect_result(what, kernel::result(ret), error)?;
    }
    Ok(())
}

/// Makes one task more than the cgroup allows, which is refused when the child is all
/// but complete.
fn too_many_tasks(rounds: usize) -> anyhow::Result<()> {
    let _group = TaskGroup::enter(1)?;
    let thread = std::thread::Builder::new().spawn(|| ());
    ensure!(thread.is_err(), "a thread was made in spite of the limit");
    failing_clones(
        "too many tasks",
        rounds,
        CloneArgs::default(),
        -libc::EAGAIN,
    )
}

/// Makes a task with a pid that is in use already.
fn pid_in_use(rounds: usize) -> anyhow::Result<()> {
    let own = std::process::id();
    let args = CloneArgs {
        set_tid: (&raw const own) as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    };
    failing_clones("a pid in use", rounds, args, -libc::EEXIST)
}

/// Makes a task whose pidfd is to be written to an unmapped address.
fn pidfd_unmapped(rounds: usize) -> anyhow::Result<()> {
    let args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64,
        pidfd: 8,
        ..CloneArgs::default()
    };
    failing_clones("pidfd unmapped", rounds, args, -libc::EFAULT)
}

/// Makes a task in a pid namespace whose first process is gone. The later children of
/// the caller go there too.
fn namespace_without_init(rounds: usize) -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    sandbox::in_child(|| Ok(()))?;
    let args = CloneArgs::default();
    failing_clones("namespace without init", rounds, args, -libc::ENOMEM)
}

/// Checks that forks that fail late, of a restricted and filtered task, leak no
/// reference.
fn late_failures_of_fork_leak_nothing() -> TestResult {
    // With checkers, kmemleak finds what a single one of these calls leaks.
    let rounds = if kernel::is_debug() { 100 } else { 1000 };
    let failures: [fn(usize) -> anyhow::Result<()>; 4] = [
        too_many_tasks,
        pid_in_use,
        pidfd_unmapped,
        namespace_without_init,
    ];
    let group = MemoryGroup::new()?;
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    sandbox::in_child(|| {
        group.enter()?;
        restrict_and_filter()?;
        for opcode in (1..60).chain(1..60) {
            let long = bpf::long(kernel::BPF_MAXINSNS, 1);
            let got = register::filter(TASK, opcode, &long);
            expect_result("a long filter", got, 0)?;
        }
        for fail in failures {
            sandbox::in_child(|| {
                fail(rounds)?;
                restricted_and_filtered()
            })?;
            restricted_and_filtered()?;
            sandbox::in_child(restricted_and_filtered)?;
        }
        shared[0].store((group.charged()? >> 10) as u32, SeqCst);
        Ok(())
    })?;
    let held = u64::from(shared[0].load(SeqCst)) << 10;
    println!("{NOTE}{} KiB charged before the end", held >> 10);
    // A leaked reference would keep all of it charged.
    ensure!(held > 4 << 20, "too little is charged to tell");
    group.falls_to(held / 2, kernel::limit(5))?;
    group.remove()?;
    Ok(Outcome::Passed)
}

/// A ring with an SQPOLL thread, set up by a restricted task.
#[derive(Default)]
struct PolledRing {
    fd: i32,
    params: RawParams,
}

impl Scenario for PolledRing {
    fn setup() -> anyhow::Result<Self> {
        restrict_and_filter()?;
        Ok(PolledRing::default())
    }
    fn act(&mut self) -> i32 {
        self.params = RawParams::default();
        self.params[2] = IORING_SETUP_SQPOLL;
        self.fd = setup(4, &mut self.params);
        as_no_memory(self.fd.min(0))
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        restricted_and_filtered()
    }
    fn done(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut Ring::attach(self.fd, self.params)?, &[1], true)?;
        restricted_and_filtered()
    }
}

/// The first request of a restricted task that goes to a worker.
struct FirstWorker(Ring);

impl Scenario for FirstWorker {
    fn setup() -> anyhow::Result<Self> {
        restrict_and_filter()?;
        Ok(FirstWorker(Ring::new(4)?))
    }
    fn act(&mut self) -> i32 {
        let ring = &mut self.0;
        if ring.queued() == 0 && ring.push(to_worker()).is_err() {
            return -libc::EBUSY;
        }
        let submitted = ring.submit();
        match submitted.map(|_| ring.cqe()) {
            Ok(Ok(cqe)) if cqe.res == -libc::ECANCELED => -libc::ENOMEM,
            Ok(Ok(cqe)) => cqe.res,
            Ok(Err(_)) => -libc::EBADF,
            Err(error) => {
                let error = error.downcast_ref::<std::io::Error>();
                let errno = error.and_then(|error| error.raw_os_error());
                as_no_memory(-errno.unwrap_or(libc::EBADF))
            }
        }
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        restricted_and_filtered()
    }
    fn done(&mut self) -> anyhow::Result<()> {
        ring_denies(&mut self.0, &[1], true)?;
        restricted_and_filtered()
    }
}

/// Builds a NOP that runs on a worker.
fn to_worker() -> Sqe {
    Sqe::nop().flags(IOSQE_ASYNC)
}

/// Checks that rings with SQPOLL threads and the first worker of a restricted and
/// filtered task fail at each allocation without effect.
fn sqpoll_threads_and_workers_fail_without_effect() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let met = sweep::<PolledRing>("ring with a thread")?;
    ensure!(met.no_memory >= 5, "too few allocations failed: {met:?}");
    let met = sweep::<FirstWorker>("first worker")?;
    ensure!(met.no_memory + met.absorbed >= 5, "too few points: {met:?}");
    Ok(Outcome::Passed)
}
