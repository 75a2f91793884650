// SPDX-License-Identifier: GPL-2.0
//! Rings that are used, get filters, and are closed at the same time.

use std::os::fd::RawFd;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use anyhow::{Context, ensure};
use fastrand::Rng;
use nix::unistd::Pid;

use super::{NOTE, Outcome, Test, TestResult, seed, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{self, BPF_MAXINSNS, expect_eq, expect_result};
use crate::register::{self, DENY_REST, TASK};
use crate::ring::{Cqe, IORING_SETUP_SQPOLL, Ring, enter};
use crate::sandbox::{self, MemoryGroup, Shared};
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::stress" {
        ST02 ring_gets_filters_while_threads_submit (30 s);
        ST03 sqpoll_rings_end_while_filters_are_registered (30 s);
        ST04 rings_come_and_go_on_all_cpus (60 s);
    }
};

const DENIED: i32 = -libc::EACCES;

/// The filters that a ring gets one after the other, and how many registrations have
/// begun and are done. Filter N denies NOPs with N in the low half of `user_data`.
#[derive(Default)]
struct Progress {
    begun: AtomicU32,
    done: AtomicU32,
}

impl Progress {
    /// Registers the next filter. Returns the result.
    fn register(&self, fd: RawFd, flags: u32) -> i32 {
        let number = self.begun.fetch_add(1, SeqCst) + 1;
        let program = bpf::deny_if(USER_DATA_LO, number);
        let got = register::filter_with(fd, op::NOP, &program, flags);
        if got == 0 {
            self.done.store(number, SeqCst);
        }
        got
    }

    /// Builds a NOP that filter `number` denies. Its `user_data` also records the
    /// number of filters that are done.
    fn nop(&self, number: u32) -> Sqe {
        let done = self.done.load(SeqCst);
        Sqe::nop().user_data(u64::from(done) << 32 | u64::from(number))
    }

    /// Checks the completion of such a NOP. It must be denied if its filter was done
    /// when the NOP was built, and must not be denied if its filter has not begun yet.
    fn check(&self, cqe: Cqe) -> anyhow::Result<()> {
        let number = cqe.user_data as u32;
        let done = (cqe.user_data >> 32) as u32;
        if number <= done {
            expect_result(&format!("NOP {number}, {done} filters"), cqe.res, DENIED)
        } else if number > self.begun.load(SeqCst) {
            expect_result(&format!("NOP {number}, too early"), cqe.res, 0)
        } else {
            ensure!([0, DENIED].contains(&cqe.res), "{cqe:x?}");
            Ok(())
        }
    }
}

/// Checks that each NOP that threads submit to a ring that gets filters completes, and
/// is denied from its filter on.
fn ring_gets_filters_while_threads_submit() -> TestResult {
    const THREADS: u64 = 4;
    const FILTERS: u32 = 60;
    const BATCH: usize = 8;
    println!("{NOTE}seed {}", seed());
    let ring = Ring::with(256, crate::ring::IORING_SETUP_SUBMIT_ALL)?;
    let fd = ring.fd();
    let ring = Mutex::new(ring);
    let progress = Progress::default();
    let submitted = AtomicU32::new(0);
    let completed = AtomicU32::new(0);

    // Threads take turns only to fill and empty the queues.
    let reap = |ring: &mut Ring| -> anyhow::Result<()> {
        while let Some(cqe) = ring.try_cqe() {
            progress.check(cqe)?;
            completed.fetch_add(1, SeqCst);
        }
        Ok(())
    };
    let submitter = |number: u64| -> anyhow::Result<()> {
        let mut rng = Rng::with_seed(seed() ^ number);
        while progress.done.load(SeqCst) < FILTERS {
            {
                let mut ring = ring.lock().expect("no thread panics");
                for _ in 0..BATCH {
                    ring.push(progress.nop(rng.u32(1..=FILTERS)))?;
                }
            }
            let taken = enter(fd, BATCH as u32, 0, 0);
            ensure!(taken >= 0, "entering: {}", kernel::describe(taken));
            submitted.fetch_add(BATCH as u32, SeqCst);
            reap(&mut ring.lock().expect("no thread panics"))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let submitters: Vec<_> = (0..THREADS)
            .map(|number| scope.spawn(move || submitter(number)))
            .collect();
        for _ in 0..FILTERS {
            std::thread::sleep(Duration::from_millis(5));
            expect_result("registering", progress.register(fd, 0), 0)?;
        }
        for thread in submitters {
            thread.join().expect("the thread does not panic")?;
        }
        Ok(())
    })?;

    let mut ring = ring.into_inner()?;
    ring.submit()?;
    reap(&mut ring)?;
    let (submitted, completed) = (submitted.into_inner(), completed.load(SeqCst));
    expect_eq("completions", completed, submitted)?;
    println!("{NOTE}{submitted} NOPs between {FILTERS} filters");
    for number in 1..=FILTERS + 1 {
        let nop = Sqe::nop().user_data(number.into());
        let want = if number <= FILTERS { DENIED } else { 0 };
        ring.expect(&format!("NOP {number} in the end"), nop, want)?;
    }
    Ok(Outcome::Passed)
}

/// Submits NOPs to a ring with an SQPOLL thread while another thread registers filters
/// for it. Ends in the middle of that: with the ring closed if `close`, or else with
/// the process.
fn end_while_registering(rng: &mut Rng, close: bool) -> anyhow::Result<()> {
    const FILTERS: u32 = 1000;
    let mut ring = Ring::with(64, IORING_SETUP_SQPOLL)?;
    let fd = ring.fd();
    let progress = std::sync::Arc::new(Progress::default());
    let registrar = std::thread::spawn({
        let progress = progress.clone();
        move || {
            for number in 0..FILTERS {
                let flags = if number % 16 == 15 { DENY_REST } else { 0 };
                match progress.register(fd, flags) {
                    0 => {}
                    // The ring is closed.
                    error if error == -libc::EBADF => return Ok(()),
                    other => return expect_result("registering", other, 0),
                }
            }
            Ok(())
        }
    });
    let rounds = rng.u32(1..6);
    for round in 0..rounds {
        for _ in 0..16 {
            ring.push(progress.nop(rng.u32(1..=FILTERS)))?;
        }
        ring.submit()?;
        // The last ones stay in the queue, where the end of the ring finds them.
        for _ in 0..if round + 1 == rounds { 4 } else { 16 } {
            progress.check(ring.cqe()?)?;
        }
    }
    if !close {
        return Ok(());
    }
    drop(ring);
    registrar.join().expect("the thread does not panic")
}

/// Checks that rings with SQPOLL threads end while filters are registered for them, and
/// their memory is freed.
fn sqpoll_rings_end_while_filters_are_registered() -> TestResult {
    let rounds = if kernel::is_debug() { 10 } else { 40 };
    println!("{NOTE}seed {}", seed());
    let group = MemoryGroup::new()?;
    let mut rng = Rng::with_seed(seed());
    for round in 0..rounds {
        let mut rng = rng.fork();
        sandbox::in_child(|| {
            group.enter()?;
            end_while_registering(&mut rng, round % 2 == 0)
        })
        .with_context(|| format!("round {round}"))?;
    }
    const LEFT: u64 = 1 << 20;
    group.falls_to(LEFT, kernel::limit(10))?;
    group.remove()?;
    Ok(Outcome::Passed)
}

/// Makes rings on one CPU, gives some of them a filter, and closes them in another
/// order.
fn come_and_go(cpu: usize, rounds: u32, rng: &mut Rng) -> anyhow::Result<()> {
    sandbox::stay_on_cpu(cpu)?;
    let mut rings: Vec<(Ring, bool)> = Vec::new();
    for _ in 0..rounds {
        if rings.len() == 8 {
            rings.swap_remove(rng.usize(..rings.len()));
        }
        let ring = Ring::new(2)?;
        let own = rng.bool();
        if own {
            ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 2))?;
        }
        rings.push((ring, own));
        let chosen = rng.usize(..rings.len());
        let (ring, own) = &mut rings[chosen];
        for (user_data, denied) in [(0, false), (1, true), (2, *own)] {
            let want = if denied { DENIED } else { 0 };
            ring.expect(
                &format!("NOP {user_data}"),
                Sqe::nop().user_data(user_data),
                want,
            )?;
        }
    }
    Ok(())
}

/// Checks that rings of filtered tasks come and go on all CPUs, and only the tasks'
/// filters stay charged.
fn rings_come_and_go_on_all_cpus() -> TestResult {
    let rounds = if kernel::is_debug() { 40 } else { 400 };
    println!("{NOTE}seed {}", seed());
    let cpus = std::thread::available_parallelism()?.get();
    let group = MemoryGroup::new()?;
    let held = Shared::<[AtomicU32; 1]>::new()?;
    sandbox::in_child(|| {
        group.enter()?;
        register_heavily()?;
        let base = group.charged()?;
        let children: Vec<Pid> = (0..2 * cpus)
            .map(|number| {
                sandbox::spawn(|| {
                    let mut rng = Rng::with_seed(seed() ^ number as u64);
                    come_and_go(number % cpus, rounds, &mut rng)
                })
            })
            .collect::<anyhow::Result<_>>()?;
        for child in children {
            sandbox::join(child)?;
        }
        // The filters of the task are still charged, and nothing else.
        const SLACK: u64 = 1 << 20;
        group.falls_to(base + SLACK, kernel::limit(10))?;
        let mut ring = Ring::new(2)?;
        ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
        ring.expect("NOP 2", Sqe::nop().user_data(2), 0)?;
        held[0].store((base >> 10) as u32, SeqCst);
        Ok(())
    })?;
    let held = u64::from(held[0].load(SeqCst)) << 10;
    println!("{NOTE}{} KiB charged to a task with filters", held >> 10);
    group.falls_to(held / 2, kernel::limit(10))?;
    group.remove()?;
    Ok(Outcome::Passed)
}

/// Registers filters that take a few megabytes, one of which denies NOP 1.
fn register_heavily() -> anyhow::Result<()> {
    for opcode in (1..50).chain(1..50) {
        let long = bpf::long(BPF_MAXINSNS, 1);
        expect_result("a long filter", register::filter(TASK, opcode, &long), 0)?;
    }
    let program = bpf::deny_if(USER_DATA_LO, 1);
    expect_result("filter", register::filter(TASK, op::NOP, &program), 0)
}
