// SPDX-License-Identifier: GPL-2.0
//! D5: the tasks and rings to which a filter applies, how filters stack, and what is
//! inherited.

use std::process::ExitStatus;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::CloneFlags;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, Insn, USER_DATA_LO};
use crate::kernel::{self, BPF_MAXINSNS, describe, expect_eq, expect_result};
use crate::register::{
    self, DENY_REST, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_RESTRICTIONS, Restriction, TASK,
};
use crate::ring::{PARAMS_SIZE, RawParams, Ring};
use crate::sandbox::{self, MemoryGroup, Shared};
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::ownership" {
        FO01 task_filter_applies_to_new_rings_only;
        FO02 ring_filter_applies_to_that_ring_only;
        FO03 children_inherit_and_can_only_tighten;
        FO04 deny_rest_cannot_be_undone;
        FO05 repeated_deny_rest_denies_the_same_opcodes;
        FO06 deny_rest_keeps_earlier_filters_in_force;
        FO07 filters_of_ring_and_task_are_independent;
        FO08 new_threads_inherit_and_siblings_do_not;
        FO11 restrictions_must_come_before_filters;
        FO12 restricted_task_may_filter_if_its_list_allows;
        FO19 any_filter_of_a_chain_can_deny;
    }
    "filters::inherit" {
        FO09 exec_keeps_filters;
        FO10 posix_spawn_and_vfork_children_inherit;
        FO17 child_keeps_filters_after_the_parent_ends;
        FO18 ring_keeps_its_filters_in_another_task;
    }
};

const DENIED: i32 = -libc::EACCES;

/// Registers a filter for the calling task, which must be accepted.
pub fn task_filter(opcode: u8, program: &[Insn]) -> anyhow::Result<()> {
    let what = format!("task filter for opcode {opcode}");
    expect_result(&what, register::filter(TASK, opcode, program), 0)
}

/// Checks that exactly the NOPs in `denied` are denied, of those with a `user_data`
/// from 0 to 4.
pub fn denied_nops(what: &str, ring: &mut Ring, denied: &[u64]) -> anyhow::Result<()> {
    for user_data in 0..5 {
        let want = if denied.contains(&user_data) {
            DENIED
        } else {
            0
        };
        let what = format!("{what}: NOP {user_data}");
        ring.expect(&what, Sqe::nop().user_data(user_data), want)?;
    }
    Ok(())
}

/// Checks the same as [`denied_nops`] on a new ring of the calling task.
pub fn denied_on_new_ring(what: &str, denied: &[u64]) -> anyhow::Result<()> {
    denied_nops(what, &mut Ring::new(2)?, denied)
}

/// Builds a filter that denies NOPs with this `user_data`.
pub fn deny_nop(user_data: u32) -> Vec<Insn> {
    bpf::deny_if(USER_DATA_LO, user_data)
}

/// Checks that a task's filter applies to rings that the task makes later, and not to
/// earlier ones.
fn task_filter_applies_to_new_rings_only() -> TestResult {
    sandbox::sandboxed()?;
    let mut earlier = Ring::new(2)?;
    task_filter(op::NOP, &deny_nop(1))?;
    let mut later = Ring::new(2)?;
    task_filter(op::NOP, &deny_nop(2))?;
    denied_nops("ring made before", &mut earlier, &[])?;
    denied_nops("ring made between", &mut later, &[1])?;
    denied_on_new_ring("ring made after", &[1, 2])?;
    Ok(Outcome::Passed)
}

/// Checks that a ring's filter applies to no other ring.
fn ring_filter_applies_to_that_ring_only() -> TestResult {
    let mut first = Ring::new(2)?;
    let mut second = Ring::new(2)?;
    first.must_filter(op::NOP, &deny_nop(1))?;
    denied_nops("filtered", &mut first, &[1])?;
    denied_nops("made before", &mut second, &[])?;
    denied_on_new_ring("made after", &[])?;
    second.must_filter(op::NOP, &deny_nop(2))?;
    denied_nops("first again", &mut first, &[1])?;
    denied_nops("second", &mut second, &[2])?;
    Ok(Outcome::Passed)
}

/// Checks that children inherit filters, which a filter that allows does not loosen,
/// and what they add applies to themselves and their children only.
fn children_inherit_and_can_only_tighten() -> TestResult {
    sandbox::sandboxed()?;
    task_filter(op::NOP, &deny_nop(1))?;
    sandbox::in_child(|| {
        denied_on_new_ring("child", &[1])?;
        task_filter(op::NOP, &bpf::allow())?;
        denied_on_new_ring("child that tries to loosen", &[1])?;
        task_filter(op::NOP, &deny_nop(2))?;
        denied_on_new_ring("child that tightens", &[1, 2])?;
        sandbox::in_child(|| {
            denied_on_new_ring("grandchild", &[1, 2])?;
            let got = register::filter_with(TASK, op::CLOSE, &bpf::allow(), DENY_REST);
            expect_result("grandchild denies the rest", got, 0)?;
            let mut ring = Ring::new(2)?;
            denied_nops("grandchild after DENY_REST", &mut ring, &[1, 2])?;
            ring.expect("its CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
            ring.expect("its FSYNC", Sqe::new(op::FSYNC), DENIED)
        })?;
        let mut ring = Ring::new(2)?;
        denied_nops("child afterwards", &mut ring, &[1, 2])?;
        ring.expect("child's FSYNC", Sqe::new(op::FSYNC), -libc::EBADF)
    })?;
    denied_on_new_ring("parent afterwards", &[1])?;
    task_filter(op::NOP, &deny_nop(3))?;
    denied_on_new_ring("parent that tightens later", &[1, 3])?;
    Ok(Outcome::Passed)
}

/// Returns the opcodes of which a zeroed request is denied. Requests that prep refuses
/// are not among them.
fn denied_opcodes(ring: &mut Ring) -> anyhow::Result<Vec<u8>> {
    let verdicts = ring.verdicts()?;
    let denied = register::opcodes().filter(|&op| verdicts[2 * usize::from(op)] == DENIED);
    Ok(denied.collect())
}

/// Checks that opcodes that IO_URING_BPF_FILTER_DENY_REST denied stay denied when
/// filters for them are registered, on the ring and in children.
fn deny_rest_cannot_be_undone() -> TestResult {
    let mut ring = Ring::new(2)?;
    let got = register::filter_with(ring.fd(), op::NOP, &bpf::allow(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    ring.expect("NOP", Sqe::nop(), 0)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), DENIED)?;
    ring.must_filter(op::CLOSE, &bpf::allow())?;
    ring.expect(
        "CLOSE after a filter that allows",
        Sqe::new(op::CLOSE),
        DENIED,
    )?;
    ring.must_filter(op::CLOSE, &deny_nop(1))?;
    ring.expect("CLOSE after another", Sqe::new(op::CLOSE), DENIED)?;
    ring.must_filter(op::NOP, &deny_nop(2))?;
    denied_nops("NOP", &mut ring, &[2])?;

    sandbox::sandboxed()?;
    let flags = DENY_REST | register::SZ_STRICT;
    let got = register::filter_with(TASK, op::NOP, &bpf::allow(), flags);
    expect_result("both flags for the task", got, 0)?;
    sandbox::in_child(|| {
        task_filter(op::CLOSE, &bpf::allow())?;
        let mut ring = Ring::new(2)?;
        ring.expect("NOP in a child", Sqe::nop(), 0)?;
        ring.expect("CLOSE in a child", Sqe::new(op::CLOSE), DENIED)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that IO_URING_BPF_FILTER_DENY_REST denies no more opcodes when it is given
/// again, for an allowed or a denied opcode.
fn repeated_deny_rest_denies_the_same_opcodes() -> TestResult {
    let mut ring = Ring::new(2)?;
    let mut registered: Vec<Vec<u8>> = Vec::new();
    for opcode in [op::NOP, op::NOP, op::CLOSE, op::CLOSE] {
        let got = register::filter_with(ring.fd(), opcode, &bpf::allow(), DENY_REST);
        expect_result("DENY_REST", got, 0)?;
        registered.push(denied_opcodes(&mut ring)?);
    }
    let first = registered[0].clone();
    for opcode in [op::CLOSE, op::POLL_ADD, op::READ, op::SOCKET, op::FSYNC] {
        ensure!(first.contains(&opcode), "opcode {opcode} is not denied");
    }
    ensure!(!first.contains(&op::NOP), "NOP is denied");
    for (i, denied) in registered.into_iter().enumerate() {
        expect_eq(
            &format!("denied opcodes after {}", i + 1),
            denied,
            first.clone(),
        )?;
    }
    Ok(Outcome::Passed)
}

/// The errors with which prep refuses a zeroed request before filters run, and the
/// opcodes of each.
const PREP_ERRORS: &[(i32, &[u8])] = &[
    (
        libc::EFAULT,
        &[9, 10, 18, 21, 29, 35, 36, 37, 38, 39, 41, 42, 43, 44, 48],
    ),
    (
        libc::EINVAL,
        &[11, 15, 20, 28, 32, 49, 51, 52, 53, 58, 62, 63, 64],
    ),
    (libc::E2BIG, &[31]),
    (libc::EBADF, &[54]),
];

/// Checks that IO_URING_BPF_FILTER_DENY_REST leaves opcodes with a filter to it and
/// denies every other one.
fn deny_rest_keeps_earlier_filters_in_force() -> TestResult {
    let mut ring = Ring::new(2)?;
    let (inet, unix) = (libc::AF_INET as u32, libc::AF_UNIX);
    ring.must_filter(op::NOP, &deny_nop(1))?;
    ring.must_filter(op::SOCKET, &bpf::allow_if(bpf::PDU, inet))?;
    let got = register::filter_with(
        ring.fd(),
        op::CLOSE,
        &bpf::deny_if(USER_DATA_LO, 3),
        DENY_REST,
    );
    expect_result("DENY_REST", got, 0)?;
    denied_nops("NOP", &mut ring, &[1])?;
    let socket = |family| Sqe::socket(family, libc::SOCK_STREAM, 0);
    let fd = ring.run(socket(libc::AF_INET))?;
    ensure!(fd >= 0, "AF_INET socket: {fd}");
    ring.expect("AF_UNIX socket", socket(unix), DENIED)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE).fd(fd), 0)?;
    ring.expect("CLOSE 3", Sqe::new(op::CLOSE).user_data(3), DENIED)?;
    let mut wrong = Vec::new();
    for opcode in register::opcodes() {
        if [op::NOP, op::SOCKET, op::CLOSE].contains(&opcode) {
            continue;
        }
        let of_prep = PREP_ERRORS
            .iter()
            .find(|(_, opcodes)| opcodes.contains(&opcode));
        let want = of_prep.map_or(DENIED, |(errno, _)| -errno);
        let got = ring.run(Sqe::new(opcode))?;
        if got != want {
            wrong.push((opcode, describe(got), describe(want)));
        }
    }
    expect_eq("opcodes with an unexpected result", wrong, Vec::new())?;
    Ok(Outcome::Passed)
}

/// Checks that what a ring or a task adds to the filters that they share applies to
/// itself only, even after the other has ended.
fn filters_of_ring_and_task_are_independent() -> TestResult {
    sandbox::sandboxed()?;
    task_filter(op::NOP, &deny_nop(0))?;
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &deny_nop(1))?;
    task_filter(op::NOP, &deny_nop(2))?;
    let mut second = Ring::new(2)?;
    second.must_filter(op::NOP, &deny_nop(3))?;
    denied_nops("first ring", &mut ring, &[0, 1])?;
    denied_nops("second ring", &mut second, &[0, 2, 3])?;
    denied_on_new_ring("task", &[0, 2])?;
    // The additions of one to its set stay hidden from the other after the first is
    // gone, too.
    drop(ring);
    task_filter(op::NOP, &deny_nop(4))?;
    denied_nops("second ring again", &mut second, &[0, 2, 3])?;
    denied_on_new_ring("task again", &[0, 2, 4])?;
    Ok(Outcome::Passed)
}

/// Checks that new threads inherit the filters of the thread that starts them, and
/// running ones do not get any.
fn new_threads_inherit_and_siblings_do_not() -> TestResult {
    sandbox::sandboxed()?;
    let (go, wait) = mpsc::channel();
    let sibling = std::thread::spawn(move || -> anyhow::Result<()> {
        wait.recv()?;
        denied_on_new_ring("thread from before", &[])?;
        let inherited = std::thread::spawn(|| denied_on_new_ring("its own new thread", &[]));
        inherited.join().expect("the thread does not panic")?;
        task_filter(op::NOP, &deny_nop(2))?;
        denied_on_new_ring("thread from before, filtered by itself", &[2])
    });
    task_filter(op::NOP, &deny_nop(1))?;
    let later = std::thread::spawn(|| denied_on_new_ring("thread from after", &[1]));
    later.join().expect("the thread does not panic")?;
    go.send(())?;
    sibling.join().expect("the thread does not panic")?;
    denied_on_new_ring("first thread", &[1])?;
    Ok(Outcome::Passed)
}

/// Checks that a task keeps its filters over exec.
fn exec_keeps_filters() -> TestResult {
    sandbox::sandboxed()?;
    let probe = || -> anyhow::Result<i32> {
        let child = sandbox::spawn(|| {
            let error = std::os::unix::process::CommandExt::exec(&mut sandbox::nop_probe());
            Err(error).context("exec")
        })?;
        match waitpid(child, None)? {
            WaitStatus::Exited(_, code) => Ok(-code),
            status => anyhow::bail!("{status:?}"),
        }
    };
    expect_result("before", probe()?, 0)?;
    task_filter(op::NOP, &bpf::deny())?;
    expect_result("after", probe()?, DENIED)?;
    Ok(Outcome::Passed)
}

/// Returns the result of a NOP in a child that shares the memory of its suspended
/// parent.
pub fn vfork_probe() -> anyhow::Result<i32> {
    let mut stack = vec![0u8; 256 << 10];
    let child = Box::new(
        || match Ring::new(1).and_then(|mut ring| ring.run(Sqe::nop())) {
            Ok(res) => -res as isize,
            Err(_) => 255,
        },
    );
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK;
    // SAFETY: the parent is suspended until the child is gone.
    let pid = unsafe { nix::sched::clone(child, &mut stack, flags, Some(libc::SIGCHLD)) }?;
    match waitpid(pid, None)? {
        WaitStatus::Exited(_, code) => Ok(-code),
        status => anyhow::bail!("{status:?}"),
    }
}

/// Checks that children that posix_spawn or vfork makes have the filters of their
/// parent.
fn posix_spawn_and_vfork_children_inherit() -> TestResult {
    sandbox::sandboxed()?;
    let spawned = || -> anyhow::Result<i32> {
        let status: ExitStatus = sandbox::nop_probe().status().context("posix_spawn")?;
        sandbox::probe_result(status)
    };
    expect_result("posix_spawn before", spawned()?, 0)?;
    expect_result("vfork before", vfork_probe()?, 0)?;
    task_filter(op::NOP, &bpf::deny())?;
    expect_result("posix_spawn after", spawned()?, DENIED)?;
    expect_result("vfork after", vfork_probe()?, DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that a task can be restricted before it registers a filter, and gets EPERM
/// afterwards.
fn restrictions_must_come_before_filters() -> TestResult {
    sandbox::sandboxed()?;
    let nop_and_close = [Restriction::sqe_op(op::NOP), Restriction::sqe_op(op::CLOSE)];
    sandbox::in_child(|| {
        expect_result("restrictions", register::restrict_task(&nop_and_close), 0)?;
        task_filter(op::NOP, &deny_nop(1))?;
        let mut ring = Ring::new(2)?;
        denied_nops("both", &mut ring, &[1])?;
        ring.expect("CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
        ring.expect("FSYNC", Sqe::new(op::FSYNC), DENIED)
    })?;
    task_filter(op::NOP, &deny_nop(2))?;
    let got = register::restrict_task(&nop_and_close);
    expect_result("restrictions after a filter", got, -libc::EPERM)?;
    let mut ring = Ring::new(2)?;
    denied_nops("filter", &mut ring, &[2])?;
    ring.expect("FSYNC", Sqe::new(op::FSYNC), -libc::EBADF)?;
    Ok(Outcome::Passed)
}

/// Checks that the child of a restricted task may register filters if the list says so,
/// and never restrictions.
fn restricted_task_may_filter_if_its_list_allows() -> TestResult {
    sandbox::sandboxed()?;
    let restrictions = Restriction::register_op(IORING_REGISTER_RESTRICTIONS);
    let filters = Restriction::register_op(IORING_REGISTER_BPF_FILTER);
    let nop = Restriction::sqe_op(op::NOP);
    for (what, list, restrict, filter) in [
        ("no register list", vec![nop], -libc::EPERM, 0),
        (
            "RESTRICTIONS listed",
            vec![nop, restrictions],
            -libc::EPERM,
            DENIED,
        ),
        ("BPF_FILTER listed", vec![nop, filters], DENIED, 0),
        (
            "both listed",
            vec![nop, restrictions, filters],
            -libc::EPERM,
            0,
        ),
    ] {
        sandbox::in_child(|| {
            expect_result(what, register::restrict_task(&list), 0)?;
            sandbox::in_child(|| {
                let got = register::restrict_task(&[nop]);
                expect_result(&format!("{what}: restrictions"), got, restrict)?;
                let got = register::filter(TASK, op::NOP, &deny_nop(1));
                expect_result(&format!("{what}: filter"), got, filter)?;
                denied_on_new_ring(what, if filter == 0 { &[1] } else { &[] })
            })?;
            denied_on_new_ring("its parent", &[])
        })?;
    }
    Ok(Outcome::Passed)
}

/// A process that has ended but was not reaped, and whose filters hold a lot of memory.
pub struct FilteredZombie {
    process: Pid,
    group: MemoryGroup,
}

impl FilteredZombie {
    /// The least that must be charged, well above the 256 KiB by which each processor
    /// charges ahead.
    const MUCH: u64 = 1536 << 10;

    /// Makes such a process, for which it must run as root.
    pub fn new() -> anyhow::Result<Self> {
        let group = MemoryGroup::new()?;
        let process = sandbox::spawn(|| {
            group.enter()?;
            for opcode in 0..40 {
                task_filter(opcode, &bpf::long(BPF_MAXINSNS, 1))?;
            }
            Ok(())
        })?;
        let dead = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(process), dead)?;
        expect_eq("the end", status, WaitStatus::Exited(process, 0))?;
        Ok(FilteredZombie { process, group })
    }

    /// Returns the number of bytes that are charged to the process, which must be
    /// large.
    pub fn charged(&self) -> anyhow::Result<u64> {
        let held = self.group.charged()?;
        ensure!(held > Self::MUCH, "only {held} bytes are charged to it");
        Ok(held)
    }

    /// Reaps the process and waits until its memory is freed.
    pub fn reap(self) -> anyhow::Result<()> {
        sandbox::join(self.process)?;
        self.group.falls_to(Self::MUCH / 2, kernel::limit(5))?;
        self.group.remove()
    }
}

/// Waits until the memory of reaped tasks has been freed, which happens after a grace
/// period and in a worker. The function makes and reaps another task: when its memory
/// is gone, so is that of tasks that ended before.
pub fn ended_tasks_are_freed() -> anyhow::Result<()> {
    let later = FilteredZombie::new()?;
    later.charged()?;
    later.reap()
}

/// Checks that a child has its filters, and can add to them, after the memory of its
/// parent is freed.
fn child_keeps_filters_after_the_parent_ends() -> TestResult {
    let shared = Shared::<[_; 3]>::new()?;
    let [done, result, go] = &*shared;
    let parent = sandbox::spawn(|| {
        sandbox::sandboxed()?;
        task_filter(op::NOP, &deny_nop(1))?;
        sandbox::spawn(|| {
            // The child waits until its parent's last reference is gone.
            while go.load(SeqCst) == 0 {
                std::thread::sleep(Duration::from_millis(2));
            }
            let outcome = denied_on_new_ring("orphan", &[1])
                .and_then(|()| task_filter(op::NOP, &deny_nop(2)))
                .and_then(|()| denied_on_new_ring("orphan that tightens", &[1, 2]));
            result.store(if outcome.is_ok() { 1 } else { 2 }, SeqCst);
            done.store(1, SeqCst);
            outcome
        })?;
        Ok(())
    })?;
    sandbox::join(parent)?;
    ended_tasks_are_freed()?;
    go.store(1, SeqCst);
    while done.load(SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    expect_eq("the orphan's checks", result.load(SeqCst), 1)?;
    denied_on_new_ring("the grandparent", &[])?;
    Ok(Outcome::Passed)
}

/// Checks that a ring keeps its filters in a task that got it by fork or pidfd_getfd
/// and has none itself.
fn ring_keeps_its_filters_in_another_task() -> TestResult {
    // Over fork: the ring stays filtered for a child without filters.
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &deny_nop(1))?;
    sandbox::in_child(|| {
        denied_on_new_ring("child's own ring", &[])?;
        denied_nops("ring from the parent", &mut ring, &[1])
    })?;

    // Over pidfd_getfd: a task without filters uses a ring made under a task filter.
    const WORDS: usize = PARAMS_SIZE / 4;
    let shared = Shared::<[_; WORDS + 2]>::new()?;
    let (params, rest) = shared.split_at(WORDS);
    let [fd, done] = rest else { unreachable!() };
    let child = sandbox::spawn(|| {
        sandbox::no_new_privs()?;
        task_filter(op::NOP, &deny_nop(2))?;
        let ring = Ring::new(2)?;
        for (to, from) in params.iter().zip(ring.params()) {
            to.store(from, SeqCst);
        }
        fd.store(ring.fd() as u32, SeqCst);
        while done.load(SeqCst) == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    })?;
    while fd.load(SeqCst) == 0 {
        std::thread::sleep(Duration::from_millis(2));
    }
    let copy = sandbox::fd_of(child, fd.load(SeqCst) as i32)?;
    let params: RawParams = std::array::from_fn(|i| params[i].load(SeqCst));
    let mut taken = Ring::attach(copy, params)?;
    denied_nops("ring taken from a filtered task", &mut taken, &[2])?;
    denied_on_new_ring("the taker's own ring", &[])?;
    done.store(1, SeqCst);
    sandbox::join(child)?;
    denied_nops("after its maker is gone", &mut taken, &[2])?;
    Ok(Outcome::Passed)
}

/// Checks that a denial by any filter of a chain denies the request.
fn any_filter_of_a_chain_can_deny() -> TestResult {
    // This test cannot see the order in which filters run. KUnit compares that order,
    // for short filters in `random_owners_match_the_model`, for long ones in
    // `filters_too_long_to_merge_stay_separate`.
    let mut ring = Ring::new(2)?;
    for user_data in 1..=4 {
        ring.must_filter(op::NOP, &deny_nop(user_data))?;
    }
    denied_nops("one filter of a chain denies", &mut ring, &[1, 2, 3, 4])?;
    ring.must_filter(op::NOP, &deny_nop(2))?;
    denied_nops("the newest denies again", &mut ring, &[1, 2, 3, 4])?;
    Ok(Outcome::Passed)
}
