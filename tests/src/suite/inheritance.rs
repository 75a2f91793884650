// SPDX-License-Identifier: GPL-2.0
//! D5: filters and restrictions together, in all ways by which a task gets and loses
//! them: threads, exec, vfork, and a death that the parent has not noticed yet. Also
//! rings without a file descriptor.

use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::sync::mpsc;

use anyhow::{Context, ensure};
use nix::sched::CloneFlags;
use nix::sys::wait::{WaitStatus, waitpid};

use super::ownership::{
    FilteredZombie, denied_on_new_ring, deny_nop, ended_tasks_are_freed, task_filter, vfork_probe,
};
use super::restrictions::bare_register;
use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::bpf;
use crate::kernel::{self, expect_eq, expect_result};
use crate::register::{
    self, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_FILES, IORING_REGISTER_PERSONALITY,
    IORING_REGISTER_RING_FDS, IORING_REGISTER_USE_REGISTERED_RING, Page, Restriction, TASK,
    restrict_task,
};
use crate::ring::{IORING_ENTER_GETEVENTS, IORING_SETUP_R_DISABLED, RawParams, Ring, enter, setup};
use crate::sandbox;
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::inherit" {
        FO20 exec_takes_the_filters_of_the_calling_thread;
        FO21 zombie_keeps_its_filters_until_reaped;
        FO22 vfork_child_does_not_filter_its_parent;
        FO23 ring_without_a_descriptor_inherits;
        FO24 registered_ring_can_be_filtered_by_index;
        FO25 restrictions_and_filters_are_inherited_together;
        FO26 each_generation_adds_filters_to_inherited_restrictions;
    }
};

const DENIED: i32 = -libc::EACCES;

/// Replaces the process, whichever thread calls, by one that does a NOP and exits with
/// its negated result.
fn exec_probe() -> anyhow::Result<()> {
    Err(sandbox::nop_probe().exec()).context("exec")
}

/// Returns the result of the NOP of a child that became [`exec_probe`].
fn probed(body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<i32> {
    match waitpid(sandbox::spawn(body)?, None)? {
        WaitStatus::Exited(_, code) => Ok(-code),
        status => anyhow::bail!("{status:?}"),
    }
}

/// Checks that after exec from a thread, the process has the filters of that thread,
/// not of the first one.
fn exec_takes_the_filters_of_the_calling_thread() -> TestResult {
    sandbox::sandboxed()?;
    let of_thread = probed(|| {
        let thread = std::thread::spawn(|| {
            task_filter(op::NOP, &bpf::deny())?;
            exec_probe()
        });
        thread.join().expect("the thread does not panic")
    })?;
    expect_result("the thread has a filter", of_thread, DENIED)?;
    let of_leader = probed(|| {
        let (go, wait) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            wait.recv()?;
            exec_probe()
        });
        task_filter(op::NOP, &bpf::deny())?;
        go.send(())?;
        thread.join().expect("the thread does not panic")
    })?;
    expect_result("the leader has one", of_leader, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that the filters of a zombie are freed when it is reaped.
fn zombie_keeps_its_filters_until_reaped() -> TestResult {
    let zombie = FilteredZombie::new()?;
    // This waits until all that is freed at a task's death, not when it is reaped, is
    // freed.
    ended_tasks_are_freed()?;
    let held = zombie.charged()?;
    println!("{NOTE}{} KiB charged to the zombie", held >> 10);
    zombie.reap()?;
    Ok(Outcome::Passed)
}

/// Checks that a filter of a child that shares the memory of its parent does not apply
/// to the parent.
fn vfork_child_does_not_filter_its_parent() -> TestResult {
    sandbox::sandboxed()?;
    task_filter(op::NOP, &deny_nop(1))?;
    let mut stack = vec![0u8; 256 << 10];
    let child = Box::new(|| {
        let registered = task_filter(op::NOP, &deny_nop(2));
        let seen = registered.and_then(|()| denied_on_new_ring("child", &[1, 2]));
        isize::from(seen.is_err())
    });
    let flags = CloneFlags::CLONE_VM | CloneFlags::CLONE_VFORK | CloneFlags::CLONE_FILES;
    // SAFETY: the parent is suspended until the child is gone.
    let pid = unsafe { nix::sched::clone(child, &mut stack, flags, Some(libc::SIGCHLD)) }?;
    sandbox::join(pid)?;
    denied_on_new_ring("parent", &[1])?;
    Ok(Outcome::Passed)
}

const IORING_SETUP_NO_MMAP: u32 = 1 << 14;
const IORING_SETUP_REGISTERED_FD_ONLY: u32 = 1 << 15;
const IORING_SETUP_NO_SQARRAY: u32 = 1 << 16;
const IORING_ENTER_REGISTERED_RING: u32 = 1 << 4;

/// The indices of words in `struct io_uring_params`.
mod word {
    pub const FLAGS: usize = 2;
    pub const SQ_TAIL: usize = 11;
    pub const SQ_MASK: usize = 12;
    pub const SQ_ADDRESS: usize = 18;
    pub const CQ_HEAD: usize = 20;
    pub const CQ_TAIL: usize = 21;
    pub const CQ_MASK: usize = 22;
    pub const CQ_CQES: usize = 25;
    pub const CQ_ADDRESS: usize = 28;
}

/// A ring in memory of this process without a file descriptor. Only its index among the
/// task's registered rings leads to it.
struct HiddenRing {
    index: RawFd,
    rings: Page,
    sqes: Page,
    params: RawParams,
}

impl HiddenRing {
    fn new(flags: u32) -> anyhow::Result<Self> {
        let (rings, sqes) = (Page::new()?, Page::new()?);
        let mut params = RawParams::default();
        params[word::FLAGS] = flags
            | IORING_SETUP_NO_MMAP
            | IORING_SETUP_REGISTERED_FD_ONLY
            | IORING_SETUP_NO_SQARRAY;
        for (at, page) in [(word::SQ_ADDRESS, &sqes), (word::CQ_ADDRESS, &rings)] {
            let address = page.address as u64;
            params[at] = address as u32;
            params[at + 1] = (address >> 32) as u32;
        }
        let index = setup(4, &mut params);
        ensure!(index >= 0, "io_uring_setup: {}", kernel::describe(index));
        Ok(HiddenRing {
            index,
            rings,
            sqes,
            params,
        })
    }

    /// Returns a word of the rings. `at` is the index in `params` of the word's offset.
    fn shared(&self, at: usize) -> *mut u32 {
        // SAFETY: the kernel keeps its offsets inside the memory that it was given.
        unsafe { self.rings.address.add(self.params[at] as usize).cast() }
    }

    fn get(&self, at: usize) -> u32 {
        // SAFETY: the word is in memory of `self`, and the kernel writes it only in
        // system calls.
        unsafe { self.shared(at).read_volatile() }
    }

    fn set(&self, at: usize, value: u32) {
        // SAFETY: as above.
        unsafe { self.shared(at).write_volatile(value) }
    }

    /// Runs one request. Returns its result.
    fn run(&self, sqe: Sqe) -> anyhow::Result<i32> {
        let tail = self.get(word::SQ_TAIL);
        let slot = (tail & self.get(word::SQ_MASK)) as usize;
        self.sqes.write(slot * size_of::<Sqe>(), &sqe);
        self.set(word::SQ_TAIL, tail + 1);
        let flags = IORING_ENTER_GETEVENTS | IORING_ENTER_REGISTERED_RING;
        expect_result("entering", enter(self.index, 1, 1, flags), 1)?;
        let head = self.get(word::CQ_HEAD);
        ensure!(head != self.get(word::CQ_TAIL), "no completion");
        const CQE_SIZE: usize = 16;
        const RES: usize = 8;
        let cqe = (head & self.get(word::CQ_MASK)) as usize * CQE_SIZE;
        let offset = self.params[word::CQ_CQES] as usize + cqe + RES;
        // SAFETY: the completion is inside the memory, and was written before the tail.
        let res = unsafe { self.rings.address.add(offset).cast::<i32>().read_volatile() };
        self.set(word::CQ_HEAD, head + 1);
        Ok(res)
    }

    /// Checks that exactly the NOPs in `denied` are denied, of those with a `user_data`
    /// from 0 to 4.
    fn denies(&self, what: &str, denied: &[u64]) -> anyhow::Result<()> {
        for user_data in 0..5 {
            let want = if denied.contains(&user_data) {
                DENIED
            } else {
                0
            };
            let got = self.run(Sqe::nop().user_data(user_data))?;
            expect_result(&format!("{what}: NOP {user_data}"), got, want)?;
        }
        Ok(())
    }
}

/// Returns a register opcode with the flag that makes it take a registered ring.
fn through(opcode: u32) -> u32 {
    opcode | IORING_REGISTER_USE_REGISTERED_RING
}

/// Registers a filter for the registered ring with the given index.
fn filter_through(index: RawFd, program: &[bpf::Insn]) -> i32 {
    let mut registration = register::Registration::new(op::NOP, program);
    let arg = (&raw mut registration).cast();
    register::register(index, through(IORING_REGISTER_BPF_FILTER), arg, 1)
}

/// Checks that a ring that is known only by a registered index inherits the task's
/// filters and can have its own filters and restrictions.
fn ring_without_a_descriptor_inherits() -> TestResult {
    sandbox::sandboxed()?;
    task_filter(op::NOP, &deny_nop(1))?;
    sandbox::in_child(|| {
        let ring = HiddenRing::new(0)?;
        ring.denies("inherited", &[1])?;
        expect_result("ring filter", filter_through(ring.index, &deny_nop(2)), 0)?;
        ring.denies("inherited and its own", &[1, 2])?;
        task_filter(op::NOP, &deny_nop(3))?;
        ring.denies("after a filter of the task", &[1, 2])?;
        HiddenRing::new(0)?.denies("the next one", &[1, 3])?;
        denied_on_new_ring("one with a file descriptor", &[1, 3])?;

        let disabled = HiddenRing::new(IORING_SETUP_R_DISABLED)?;
        let list = [Restriction::sqe_op(op::NOP)];
        let arg = list.as_ptr().cast();
        let restrict = through(register::IORING_REGISTER_RESTRICTIONS);
        let got = register::register(disabled.index, restrict, arg, 1);
        expect_result("restrictions", got, 0)?;
        let enable = through(register::IORING_REGISTER_ENABLE_RINGS);
        expect_result("enabling", bare_register(disabled.index, enable), 0)?;
        disabled.denies("restricted", &[1, 3])?;
        let close = disabled.run(Sqe::new(op::CLOSE))?;
        expect_result("CLOSE", close, DENIED)
    })?;
    Ok(Outcome::Passed)
}

/// Registers a ring's own file descriptor. Returns its index.
fn register_fd(ring: &Ring) -> anyhow::Result<RawFd> {
    let mut update = [u64::from(u32::MAX), ring.fd() as u64];
    let arg = (&raw mut update).cast();
    let got = register::register(ring.fd(), IORING_REGISTER_RING_FDS, arg, 1);
    expect_result("registering the ring fd", got, 1)?;
    Ok(update[0] as u32 as RawFd)
}

/// Checks that filters are registered for the ring of a registered index, in a
/// restricted task, too; unused and inherited indices give an error.
fn registered_ring_can_be_filtered_by_index() -> TestResult {
    sandbox::sandboxed()?;
    let listed = [
        IORING_REGISTER_RING_FDS,
        IORING_REGISTER_BPF_FILTER,
        IORING_REGISTER_FILES,
    ];
    let mut list = listed.map(Restriction::register_op).to_vec();
    list.push(Restriction::sqe_op(op::NOP));
    sandbox::in_child(|| {
        expect_result("restrictions", restrict_task(&list), 0)?;
        let mut ring = Ring::new(2)?;
        let index = register_fd(&ring)?;
        let files = through(IORING_REGISTER_FILES);
        expect_result("FILES", bare_register(index, files), -libc::EFAULT)?;
        let other = through(IORING_REGISTER_PERSONALITY);
        expect_result("PERSONALITY", bare_register(index, other), DENIED)?;
        expect_result("a filter", filter_through(index, &deny_nop(1)), 0)?;
        ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
        ring.expect("NOP 2", Sqe::nop().user_data(2), 0)?;
        // The descriptor -1 means the task even with that flag.
        expect_result("the task's filter", filter_through(TASK, &deny_nop(2)), 0)?;
        denied_on_new_ring("the task", &[2])?;
        let nowhere = filter_through(index + 1, &deny_nop(3));
        expect_result("a number not in use", nowhere, -libc::EBADF)?;
        let far = filter_through(1 << 20, &deny_nop(3));
        expect_result("a number out of range", far, -libc::EINVAL)?;
        // Children do not inherit registered rings.
        sandbox::in_child(|| {
            let got = filter_through(index, &deny_nop(3));
            expect_result("in a child", got, -libc::EINVAL)
        })
    })?;
    // A ring that was registered before stays free of what its task does later.
    let mut ring = Ring::new(2)?;
    let index = register_fd(&ring)?;
    list.retain(|entry| u32::from(entry.value) != IORING_REGISTER_BPF_FILTER);
    expect_result("restrictions", restrict_task(&list), 0)?;
    expect_result("a filter", filter_through(index, &deny_nop(1)), 0)?;
    expect_result("the task's", filter_through(TASK, &deny_nop(1)), DENIED)?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
    Ok(Outcome::Passed)
}

/// Checks that new rings deny NOP 1 and CLOSE but not FSYNC, and that the task may add
/// filters but no restrictions.
fn both(what: &str) -> anyhow::Result<()> {
    denied_on_new_ring(what, &[1])?;
    let mut ring = Ring::new(2)?;
    ring.expect(&format!("{what}: CLOSE"), Sqe::new(op::CLOSE), DENIED)?;
    ring.expect(&format!("{what}: FSYNC"), Sqe::new(op::FSYNC), -libc::EBADF)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result(&format!("{what}: register opcode"), got, DENIED)?;
    let got = restrict_task(&[]);
    expect_result(&format!("{what}: restrictions"), got, DENIED)
}

/// Checks that threads and children made by fork, exec, posix_spawn and vfork have the
/// restrictions and the filters of the task, and running threads get neither.
fn restrictions_and_filters_are_inherited_together() -> TestResult {
    sandbox::sandboxed()?;
    let list = [
        Restriction::sqe_op(op::NOP),
        Restriction::sqe_op(op::FSYNC),
        Restriction::register_op(IORING_REGISTER_BPF_FILTER),
    ];
    let (go, wait) = mpsc::channel();
    let sibling = std::thread::spawn(move || -> anyhow::Result<()> {
        wait.recv()?;
        denied_on_new_ring("thread from before", &[])?;
        Ring::new(2)?.expect("its CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)
    });
    expect_result("restrictions", restrict_task(&list), 0)?;
    task_filter(op::NOP, &deny_nop(1))?;
    both("task")?;
    go.send(())?;
    sibling.join().expect("the thread does not panic")?;
    let thread = std::thread::spawn(|| both("thread from after"));
    thread.join().expect("the thread does not panic")?;
    sandbox::in_child(|| {
        both("child")?;
        sandbox::in_child(|| both("grandchild"))
    })?;
    // These processes make a single NOP, which the list allows.
    sandbox::in_child(|| {
        let spawned = || sandbox::probe_result(sandbox::nop_probe().status()?);
        expect_result("posix_spawn, allowed", spawned()?, 0)?;
        expect_result("vfork, allowed", vfork_probe()?, 0)?;
        expect_result("exec, allowed", probed(exec_probe)?, 0)
    })?;
    let without_nop = std::thread::spawn(|| -> anyhow::Result<()> {
        task_filter(op::NOP, &bpf::deny())?;
        let spawned = sandbox::probe_result(sandbox::nop_probe().status()?)?;
        expect_result("posix_spawn, denied", spawned, DENIED)?;
        expect_result("vfork, denied", vfork_probe()?, DENIED)?;
        expect_result("exec, denied", probed(exec_probe)?, DENIED)
    });
    without_nop.join().expect("the thread does not panic")?;
    both("task in the end")?;
    Ok(Outcome::Passed)
}

/// Checks that each of five generations has the restrictions of the first and the
/// filters of all before it.
fn each_generation_adds_filters_to_inherited_restrictions() -> TestResult {
    sandbox::sandboxed()?;
    let nop_and_fsync = [Restriction::sqe_op(op::NOP), Restriction::sqe_op(op::FSYNC)];
    expect_result("restrictions", restrict_task(&nop_and_fsync), 0)?;
    /// Runs a generation: it adds one denied NOP, and has those of its ancestors.
    fn generation(number: u32) -> anyhow::Result<()> {
        task_filter(op::NOP, &deny_nop(number))?;
        let denied: Vec<u64> = (0..=number.into()).collect();
        let mut before = Ring::new(2)?;
        if number < 4 {
            sandbox::in_child(|| generation(number + 1))?;
        }
        let what = format!("generation {number}");
        super::ownership::denied_nops(&what, &mut before, &denied)?;
        denied_on_new_ring(&what, &denied)?;
        let mut ring = Ring::new(2)?;
        ring.expect(&what, Sqe::new(op::CLOSE), DENIED)?;
        ring.expect(&what, Sqe::new(op::FSYNC), -libc::EBADF)?;
        expect_eq(&what, restrict_task(&[]), -libc::EPERM)
    }
    generation(0)?;
    Ok(Outcome::Passed)
}
