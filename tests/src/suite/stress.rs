// SPDX-License-Identifier: GPL-2.0
//! Stress tests of filters: many chains at the bound that many tasks share, and a task
//! that must stay killable however long its filters run.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::bounds::{fill, full_chain};
use super::{NOTE, Outcome, Test, TestResult, is_long, seed, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{
    self, IORING_OP_LAST, Implementation, expect_eq, expect_result, implementation,
};
use crate::register::{self, PAGE_SIZE, TASK};
use crate::ring::Ring;
use crate::sandbox::{self, MemoryGroup, Shared, Sysctl, meminfo};
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::stress" {
        ST01 threads_register_fork_and_make_rings_at_once (30 s);
        ST05 full_chains_are_shared_by_1000_tasks (120 s);
        BG01 task_with_a_full_chain_can_be_killed (60 s);
    }
};

const DENIED: i32 = -libc::EACCES;

/// Runs one thread of ST01. It adds filters that deny one `user_data` after the other,
/// and checks that new rings and children have exactly those filters.
fn tighten_and_fork(thread: u64, rounds: u32) -> anyhow::Result<()> {
    let check = |what: &str, denied: u64| -> anyhow::Result<()> {
        let mut ring = Ring::new(2)?;
        for user_data in 0..8 {
            let want = if user_data < denied { DENIED } else { 0 };
            let what = format!("{what} of thread {thread}, NOP {user_data}");
            ring.expect(&what, Sqe::nop().user_data(user_data), want)?;
        }
        Ok(())
    };
    let mut rng = Rng::with_seed(seed() ^ thread);
    let mut denied = 1;
    for _ in 0..rounds {
        match rng.u32(0..3) {
            0 if denied < 8 => {
                let program = bpf::deny_if(USER_DATA_LO, denied as u32);
                let got = register::filter(TASK, op::NOP, &program);
                expect_result("tightening", got, 0)?;
                denied += 1;
            }
            1 => sandbox::in_child(|| check("child", denied))?,
            _ => {}
        }
        check("ring", denied)?;
    }
    check("last ring", denied)
}

/// Checks that threads that register filters, fork and make rings at the same time have
/// exactly their own filters.
fn threads_register_fork_and_make_rings_at_once() -> TestResult {
    println!("{NOTE}seed {}", seed());
    let got = register::filter(TASK, op::NOP, &bpf::deny_if(USER_DATA_LO, 0));
    expect_result("filter that all inherit", got, 0)?;
    let threads: Vec<_> = (0..4)
        .map(|thread| std::thread::spawn(move || tighten_and_fork(thread, 60)))
        .collect();
    for thread in threads {
        thread.join().expect("the thread does not panic")?;
    }
    // None of the threads' filters applies to the thread that started them.
    let mut ring = Ring::new(2)?;
    ring.expect("NOP 0", Sqe::nop(), DENIED)?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), 0)?;
    Ok(Outcome::Passed)
}

/// The number of tasks that share the chains of each of the two owners.
const TASKS: usize = 500;

/// Returns the number of those tasks that are threads of one process. With checkers, a
/// process for each task would take minutes.
fn threads() -> usize {
    if kernel::is_debug() { 10 } else { 1 }
}

/// Returns the number of processes that each owner makes.
fn children() -> usize {
    TASKS / threads()
}

/// Returns the number of chains of each owner. In a soak, the first has one for each
/// opcode and the second the rest of 100; otherwise they have a third of that, and with
/// checkers a fifth.
fn chains() -> [u8; 2] {
    let all = [IORING_OP_LAST as u8, 100 - IORING_OP_LAST as u8];
    let part = match (kernel::is_debug(), is_long()) {
        (true, _) => 5,
        (false, false) => 3,
        (false, true) => 1,
    };
    all.map(|chains| chains / part)
}

/// The memory that the owners, their children and the test share.
struct Stage {
    shared: Shared<[AtomicU32; 2 * TASKS + 2]>,
}

impl Stage {
    /// Returns the process ids of an owner's children.
    fn children(&self, owner: usize) -> &[AtomicU32] {
        &self.shared[owner * TASKS..][..children()]
    }

    /// Returns the number of tasks of both owners that are in place.
    fn ready(&self) -> &AtomicU32 {
        &self.shared[2 * TASKS]
    }

    /// Returns the number of owners that have all their chains.
    fn filled(&self) -> &AtomicU32 {
        &self.shared[2 * TASKS + 1]
    }
}

/// Runs an owner: it registers its chains, makes its children, and waits to be killed.
fn owner(number: usize, stage: &Stage, group: &MemoryGroup, seed: u64) -> anyhow::Result<()> {
    group.enter()?;
    // With SIGCHLD ignored, the kernel reaps the children at once; a zombie would keep
    // its filters.
    // SAFETY: the call installs no handler.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
    for opcode in 0..chains()[number] {
        fill(TASK, opcode)?;
    }
    stage.filled().fetch_add(1, SeqCst);
    let mut rng = Rng::with_seed(seed ^ number as u64);
    for slot in stage.children(number) {
        let choices: Vec<u32> = (0..threads()).map(|_| rng.u32(..)).collect();
        let child = sandbox::spawn(|| members(number, &choices, stage))?;
        slot.store(child.as_raw() as u32, SeqCst);
    }
    wait_for_ever()
}

/// Runs a process of tasks that share the chains, with one thread for each choice.
fn members(number: usize, choices: &[u32], stage: &Stage) -> anyhow::Result<()> {
    let (own, others) = choices.split_first().expect("at least one thread");
    std::thread::scope(|scope| {
        for &choice in others {
            scope.spawn(move || {
                if let Err(error) = member(number, choice, stage) {
                    eprintln!("{error:#}");
                    // SAFETY: this leaves at once, with all its threads.
                    unsafe { libc::_exit(1) };
                }
            });
        }
        member(number, *own, stage)
    })
}

/// Runs a task that shares the chains.
fn member(number: usize, choice: u32, stage: &Stage) -> anyhow::Result<()> {
    let past_bound = match implementation() {
        Implementation::Rust => -libc::ENOMEM,
        Implementation::C => 0,
    };
    let mut rings = Vec::new();
    if choice & 1 != 0 {
        let mut ring = Ring::new(2)?;
        ring.expect("NOP", Sqe::nop(), 0)?;
        rings.push(ring);
    }
    match choice >> 1 & 3 {
        // A further filter, which gives the task a set of its own: for another opcode,
        // or for a chain that is full.
        0 => {
            let got = register::filter(TASK, IORING_OP_LAST as u8 - 1, &bpf::allow());
            let full = chains()[number] == IORING_OP_LAST as u8;
            expect_result("last opcode", got, if full { past_bound } else { 0 })?;
        }
        1 => {
            let got = register::filter(TASK, op::NOP, &bpf::deny_if(USER_DATA_LO, 1));
            expect_result("NOP past the bound", got, past_bound)?;
            let mut ring = Ring::new(2)?;
            let want = if got == 0 { DENIED } else { 0 };
            ring.expect("NOP 1", Sqe::nop().user_data(1), want)?;
            rings.push(ring);
        }
        2 if number == 1 => {
            let ring = Ring::new(2)?;
            ring.must_filter(IORING_OP_LAST as u8 - 2, &bpf::long(100, 0))?;
            rings.push(ring);
        }
        _ => {}
    }
    stage.ready().fetch_add(1, SeqCst);
    wait_for_ever()
}

fn wait_for_ever() -> anyhow::Result<()> {
    loop {
        nix::unistd::pause();
    }
}

/// Waits until `count` reaches `want`. Fails if a process ends first.
fn wait_until(what: &str, count: &AtomicU32, want: u32, limit: Duration) -> anyhow::Result<()> {
    let start = Instant::now();
    while count.load(SeqCst) < want {
        if let Ok(WaitStatus::Exited(pid, code)) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            bail!("{what}: process {pid} ended with status {code}");
        }
        let there = count.load(SeqCst);
        ensure!(
            start.elapsed() < limit,
            "{what}: {there} of {want} after {limit:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    println!("{NOTE}{what}: {:.1} s", start.elapsed().as_secs_f32());
    Ok(())
}

/// Reaps all children. Returns the time that this took.
fn reap_all(limit: Duration) -> anyhow::Result<Duration> {
    let start = Instant::now();
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => {
                ensure!(start.elapsed() < limit, "children are left after {limit:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(_) => {}
            Err(nix::errno::Errno::ECHILD) => return Ok(start.elapsed()),
            Err(error) => return Err(error).context("waitpid"),
        }
    }
}

/// Uses each resource a little, so that what the kernel caches for the next use (memory
/// of the JIT, stacks of ended tasks) is there before memory is measured.
fn fill_caches() -> anyhow::Result<()> {
    sandbox::in_child(|| {
        for opcode in 0..4 {
            fill(TASK, opcode)?;
        }
        let children: Vec<Pid> = (0..32)
            .map(|_| sandbox::spawn(wait_for_ever))
            .collect::<anyhow::Result<_>>()?;
        Ring::new(2)?.expect("NOP", Sqe::nop(), 0)?;
        for &child in &children {
            kill(child, Signal::SIGKILL)?;
        }
        reap_all(kernel::limit(5)).map(drop)
    })
}

/// Returns the bytes of vmalloc in use, once the memory of ended tasks has been freed.
fn settled_vmalloc() -> anyhow::Result<u64> {
    let (start, mut lowest, mut since) = (Instant::now(), u64::MAX, Instant::now());
    // As long as the number falls, memory is still being freed.
    while since.elapsed() < Duration::from_secs(1) && start.elapsed() < kernel::limit(10) {
        let mapped = meminfo("VmallocUsed:")?;
        if mapped < lowest {
            (lowest, since) = (mapped, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(lowest)
}

/// Returns the bytes of vmalloc memory by the function in the kernel that allocated
/// them.
fn vmalloc_by_caller() -> anyhow::Result<BTreeMap<String, u64>> {
    let mut sizes = BTreeMap::new();
    for line in fs::read_to_string("/proc/vmallocinfo")?.lines() {
        let mut words = line.split_whitespace().skip(2);
        let caller = words.next().unwrap_or("nobody").to_string();
        // A mapping without pages is not memory.
        let pages = words.find_map(|word| word.strip_prefix("pages="));
        let pages: u64 = pages.map_or(Ok(0), str::parse)?;
        *sizes.entry(caller).or_default() += pages * PAGE_SIZE as u64;
    }
    Ok(sizes)
}

/// Waits until memory is back near its former size.
fn memory_returns(
    group: &MemoryGroup,
    vmalloc: u64,
    callers: &BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    const SLACK: u64 = 4 << 20;
    // With checkers, the kernel caches stacks and their shadow for longer.
    let kept = if kernel::is_debug() { 2 * SLACK } else { SLACK };
    let (start, limit) = (Instant::now(), kernel::limit(10));
    loop {
        let (charged, mapped) = (group.charged()?, meminfo("VmallocUsed:")?);
        if charged < SLACK && mapped < vmalloc + kept {
            let seconds = start.elapsed().as_secs_f32();
            println!(
                "{NOTE}memory is back after {seconds:.1} s: {} KiB charged",
                charged >> 10
            );
            return Ok(());
        }
        if start.elapsed() > limit {
            for (caller, now) in vmalloc_by_caller()? {
                let before = callers.get(&caller).copied().unwrap_or(0);
                if now > before + (64 << 10) {
                    println!(
                        "{NOTE}{caller}: {} KiB, then {} KiB",
                        before >> 10,
                        now >> 10
                    );
                }
            }
            bail!(
                "after {limit:?}, {charged} bytes are charged and vmalloc grew from {vmalloc} to {mapped}"
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Checks that chains at the bound that a thousand tasks share are freed when these are
/// killed in random order.
fn full_chains_are_shared_by_1000_tasks() -> TestResult {
    let seed = seed();
    println!("{NOTE}seed {seed}");
    // Orphans become children of this process, not of init.
    nix::sys::prctl::set_child_subreaper(true)?;
    let stage = Stage {
        shared: Shared::<[AtomicU32; 2 * TASKS + 2]>::new()?,
    };
    let group = MemoryGroup::new()?;
    // With checkers, the JIT would take minutes to compile 3 million instructions.
    let jit = if kernel::is_debug() { "0" } else { "1" };
    let _jit = Sysctl::set("net/core/bpf_jit_enable", jit)?;
    fill_caches()?;
    let vmalloc = settled_vmalloc()?;
    let callers = vmalloc_by_caller()?;
    let mut owners = Vec::new();
    for number in 0..2 {
        owners.push(sandbox::spawn(|| owner(number, &stage, &group, seed))?);
    }
    let limit = kernel::limit(90);
    let chains = u64::from(chains()[0]) + u64::from(chains()[1]);
    let registered = format!("{chains} chains registered");
    wait_until(&registered, stage.filled(), 2, limit)?;
    let sharing = format!("{} tasks share them", 2 * TASKS);
    wait_until(&sharing, stage.ready(), 2 * TASKS as u32, limit)?;
    let (charged, mapped) = (group.charged()?, meminfo("VmallocUsed:")?);
    println!(
        "{NOTE}{} MiB charged, vmalloc grew by {} MiB",
        charged >> 20,
        mapped.saturating_sub(vmalloc) >> 20
    );
    // An instruction takes at least 8 bytes, unless the chains are not there.
    let instructions = chains * full_chain().sum::<usize>() as u64;
    ensure!(
        mapped > vmalloc + 8 * instructions,
        "too little memory for {chains} chains"
    );

    let ids = (0..2).flat_map(|number| stage.children(number));
    let mut pids: Vec<Pid> = ids
        .map(|id| Pid::from_raw(id.load(SeqCst) as i32))
        .collect();
    pids.extend(&owners);
    Rng::with_seed(seed).shuffle(&mut pids);
    for (i, &pid) in pids.iter().enumerate() {
        kill(pid, Signal::SIGKILL).with_context(|| format!("killing {pid}"))?;
        // Pauses let memory be freed in between.
        if i % 100 == 99 {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let took = reap_all(kernel::limit(20))?;
    println!(
        "{NOTE}all gone {:.1} s after the last signal",
        took.as_secs_f32()
    );
    memory_returns(&group, vmalloc, &callers)?;
    group.remove()?;
    Ok(Outcome::Passed)
}

/// Checks that a task whose full submission queue runs a chain at the bound ends within
/// seconds when it is killed.
fn task_with_a_full_chain_can_be_killed() -> TestResult {
    const ENTRIES: usize = 4096;
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    let started = &shared[0];
    let child = sandbox::spawn(|| {
        sandbox::drop_privileges()?;
        let mut ring = Ring::new(ENTRIES as u32)?;
        fill(ring.fd(), op::NOP)?;
        if implementation() == Implementation::Rust {
            // The long stall would need 200 filters of 4,096 instructions.
            let got = ring.filter(op::NOP, &bpf::long(4096, 1));
            expect_result("past the bound", got, -libc::ENOMEM)?;
        }
        for i in 0..ENTRIES {
            ring.push(Sqe::nop().user_data(i as u64))?;
        }
        loop {
            expect_eq("submitted", ring.submit()?, ENTRIES)?;
            started.store(1, SeqCst);
            for i in 0..ENTRIES {
                expect_result("a NOP", ring.cqe()?.res, 0)?;
                ring.push(Sqe::nop().user_data(i as u64))?;
            }
        }
    })?;
    while started.load(SeqCst) == 0 {
        if let Some((status, _)) = sandbox::wait_within(child, Duration::ZERO)? {
            bail!("the child ended early: {status:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    // The child is submitting the next requests, or taking completions.
    kill(child, Signal::SIGKILL)?;
    let limit = kernel::limit(5);
    match sandbox::wait_within(child, limit)? {
        Some((WaitStatus::Signaled(_, Signal::SIGKILL, _), took)) => {
            println!("{NOTE}gone {} ms after SIGKILL", took.as_millis());
        }
        Some((status, _)) => bail!("the child was not killed: {status:?}"),
        None => bail!("still there {limit:?} after SIGKILL"),
    }
    Ok(Outcome::Passed)
}
