// SPDX-License-Identifier: GPL-2.0
//! ST: interface queues that come and go: exports that are passed from process to
//! process, refill queues that are mapped while registrations fail and rings end, and
//! processes that are killed. Stress on a single queue is in `zcrx_stress`.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fastrand::Rng;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::zcrx_sharing::{ENTRIES, PAGES, export, export_of, import, receive_file, send_file};
use super::zcrx_stress::{importing_ring, part};
use super::zcrx_write_back::read_only;
use super::{NOTE, Outcome, Test, TestResult, is_long, seed, tests};
use crate::buffers::{Consumer, Resources, TakenBuffer, offset};
use crate::kernel::{self, expect_eq, expect_result};
use crate::register::PAGE_SIZE;
use crate::sandbox::{self, Shared, killed, pins};
use crate::stream::{Stream, ended};
use crate::wide::{Mapping, WideRing, ZCRX_SETUP};
use crate::zcrx::{Ifq, Registration, TAIL, map_offset, memory, region_size, transfer};

pub const TESTS: &[Test] = tests! {
    "zcrx::stress" {
        ST07 exports_pass_from_process_to_process (60 s);
        ST08 refill_queues_are_mapped_while_rings_end (90 s);
        ST16 processes_are_killed_at_any_time (60 s);
    }
};

/// Returns the greatest lifetime of a process of ST16 in milliseconds.
fn life() -> u64 {
    if kernel::is_debug() { 1000 } else { 80 }
}

/// Returns the number of rounds: `long` in a soak, half of that otherwise, and an
/// eighth with checkers, which slow everything down.
fn rounds(long: u32) -> u32 {
    match (kernel::is_debug(), is_long()) {
        (true, _) => long / 8,
        (false, false) => long / 2,
        (false, true) => long,
    }
}

/// Waits until exactly `want` pages are pinned in the whole system.
fn pins_return(what: &str, want: i64) -> anyhow::Result<()> {
    let start = Instant::now();
    while pins()? != want && start.elapsed() < kernel::limit(5) {
        thread::sleep(Duration::from_millis(2));
    }
    expect_eq(&format!("pages pinned after {what}"), pins()?, want)
}

/// The exclusive right to fill a refill queue, among all processes.
struct Filling<'a>(&'a AtomicU32);

impl<'a> Filling<'a> {
    fn begin(word: &'a AtomicU32) -> Self {
        while word.compare_exchange(0, 1, SeqCst, SeqCst).is_err() {
            thread::yield_now();
        }
        Filling(word)
    }
}

impl Drop for Filling<'_> {
    fn drop(&mut self) {
        self.0.store(0, SeqCst);
    }
}

/// Runs a process of ST07. It imports each queue that comes from one neighbour, uses
/// it, and sends the export or another one to the next neighbour.
fn hand_on(
    from: &UnixStream,
    to: &UnixStream,
    filling: &AtomicU32,
    mut rng: Rng,
) -> anyhow::Result<()> {
    for _ in 0..rounds(32) {
        let file = receive_file(from)?;
        let mut importer = import(&file)?;
        let mut taken: Vec<TakenBuffer> = Vec::new();
        for _ in 0..rng.usize(..4) {
            taken.extend(importer.try_take()?);
        }
        let waits = rng.bool();
        if waits {
            importer.wait_for_data()?;
        }
        // One buffer in a while is not given back.
        if rng.u32(..16) == 0 {
            taken.pop();
        }
        {
            let _filling = Filling::begin(filling);
            for taken in &taken {
                importer.return_buffer(taken.offset);
            }
            if rng.bool() {
                importer.flush()?;
            }
        }
        let file = if rng.bool() { export(&importer)? } else { file };
        send_file(to, &file)?;
        if waits && rng.bool() {
            importer.send_data()?;
        }
    }
    Ok(())
}

/// Sends one queue of ST07 through the processes. Its maker keeps it open if `keep`.
fn wander(keep: bool, filling: &AtomicU32, rng: &mut Rng) -> anyhow::Result<()> {
    const PROCESSES: usize = 3;
    let (held, pinned) = (Resources::now()?, pins()?);
    let sockets = (0..PROCESSES).map(|_| UnixStream::pair());
    let sockets = sockets.collect::<std::io::Result<Vec<_>>>()?;
    // Nothing has been made yet that the children could inherit.
    let children = (0..PROCESSES).map(|number| {
        let (from, to) = (&sockets[number].1, &sockets[(number + 1) % PROCESSES].0);
        let rng = rng.fork();
        sandbox::spawn(|| hand_on(from, to, filling, rng))
    });
    let children = children.collect::<anyhow::Result<Vec<Pid>>>()?;

    let (consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    for (socket, _) in &sockets {
        send_file(socket, &file)?;
    }
    drop(file);
    let consumer = keep.then_some(consumer);
    for child in children {
        sandbox::join(child)?;
    }
    // Each process got and sent one file per round. This closes those that are still
    // under way.
    drop(sockets);
    if let Some(mut consumer) = consumer {
        let all: Vec<u64> = (0..PAGES).map(offset).collect();
        consumer.push_offsets(&all);
        consumer.flush()?;
        for taken in consumer.expect_free("after the last process", &all)? {
            taken.check(&[&area])?;
        }
    }
    held.wait("closing")?;
    pins_return("closing", pinned)
}

/// Checks that queues that are passed from process to process as files work in each,
/// and end with the last.
fn exports_pass_from_process_to_process() -> TestResult {
    println!("{NOTE}seed {}", seed());
    let filling = Shared::<[AtomicU32; 1]>::new()?;
    let mut rng = Rng::with_seed(seed());
    for round in 0..rounds(24) {
        wander(round % 2 == 0, &filling[0], &mut rng).with_context(|| format!("round {round}"))?;
    }
    Ok(Outcome::Passed)
}

/// The progress of a ring of ST08.
#[derive(Default)]
struct Progress {
    /// The number of queues that the ring has.
    queues: AtomicU32,
    /// Whether the ring gets no more queues. Until then, a queue whose registration is
    /// about to fail exists for a moment.
    over: AtomicBool,
    /// Whether the ring has been closed for a while.
    stop: AtomicBool,
}

/// The most queues that a ring of ST08 gets.
const QUEUES: u32 = 3;

/// Maps refill queues of a ring, and unmaps them, until told to stop. Returns the
/// number of maps that succeeded.
fn map_around(ring: OwnedFd, progress: &Progress, mut rng: Rng) -> anyhow::Result<u32> {
    let (mut kept, mut maps): (Vec<Mapping>, u32) = (Vec::new(), 0);
    while !progress.stop.load(SeqCst) {
        let id = rng.u32(..=QUEUES);
        let over = progress.over.load(SeqCst);
        let queues = progress.queues.load(SeqCst);
        let got = Mapping::new(ring.as_raw_fd(), map_offset(id), region_size(ENTRIES));
        match got {
            Ok(mapping) => {
                ensure!(id < queues || !over, "queue {id} is mapped, of {queues}");
                expect_eq("a tail", mapping.read::<u32>(TAIL), 0)?;
                kept.push(mapping);
                maps += 1;
            }
            Err(error) => {
                let error = error.downcast_ref::<std::io::Error>();
                let error = error.and_then(|error| error.raw_os_error());
                expect_eq("the error of a map", error, Some(libc::EINVAL))?;
                ensure!(id >= queues, "queue {id} is not mapped, of {queues}");
            }
        }
        if kept.len() > rng.usize(..6) {
            kept.swap_remove(rng.usize(..kept.len()));
        }
    }
    // Either the ring's file or a mapping may be the last reference to the ring.
    if rng.bool() {
        drop(ring);
    }
    Ok(maps)
}

/// Runs a ring of ST08: some registrations fail, some succeed, and then the ring ends.
/// Returns the number of maps of its refill queues.
fn fail_and_end(rng: &mut Rng) -> anyhow::Result<u32> {
    let progress = Progress::default();
    let maps = AtomicU32::new(0);
    let ring = WideRing::new(2)?;
    let area = memory(2)?;
    let copies = [
        ring.as_fd().try_clone_to_owned()?,
        ring.as_fd().try_clone_to_owned()?,
    ];
    let seeds = copies.map(|copy| (copy, rng.fork()));
    thread::scope(|scope| {
        for (copy, rng) in seeds {
            let (progress, maps) = (&progress, &maps);
            scope.spawn(move || {
                part("mapping", || {
                    maps.fetch_add(map_around(copy, progress, rng)?, SeqCst);
                    Ok(())
                });
            });
        }
        part("registering", || {
            for _ in 0..12 {
                let queues = progress.queues.load(SeqCst);
                if queues < QUEUES && rng.u32(..3) == 0 {
                    let mut registration = Registration::new(ENTRIES, &area);
                    expect_result("registering", registration.register(ring.fd()), 0)?;
                    expect_eq("the id", registration.reg.zcrx_id, queues)?;
                    progress.queues.store(queues + 1, SeqCst);
                } else {
                    let got = read_only(ring.fd(), rng.bool())?;
                    expect_result("what cannot be written back", got, -libc::EFAULT)?;
                }
            }
            progress.over.store(true, SeqCst);
            drop(ring);
            thread::sleep(Duration::from_micros(rng.u64(..2000)));
            progress.stop.store(true, SeqCst);
            Ok(())
        });
    });
    Ok(maps.into_inner())
}

/// Checks that refill queues are mapped while registrations fail and rings end, and no
/// page stays pinned.
fn refill_queues_are_mapped_while_rings_end() -> TestResult {
    println!("{NOTE}seed {}", seed());
    let (held, pinned) = (Resources::now()?, pins()?);
    let mut rng = Rng::with_seed(seed());
    let mut maps = 0;
    for round in 0..rounds(120) {
        maps += fail_and_end(&mut rng).with_context(|| format!("round {round}"))?;
        held.wait("closing")?;
    }
    println!("{NOTE}{maps} times a refill queue was mapped");
    ensure!(maps != 0, "nothing was mapped");
    pins_return("all", pinned)?;
    Ok(Outcome::Passed)
}

/// Receives a little and gives back each buffer at once. Another ring may flush the
/// queue at the same time.
fn receive_some(ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<()> {
    let mut stream = Stream::new()?;
    let sender = stream.send_later(100_000)?;
    ring.push(stream.recv(ifq, 0))?;
    loop {
        let cqe = ring.cqe()?;
        if cqe == ended(stream.user_data, 0) {
            break;
        }
        if cqe == ended(stream.user_data, -libc::ENOMEM) {
            ring.push(stream.recv(ifq, 0))?;
            continue;
        }
        ifq.return_buffer(stream.take(ifq, &cqe)?);
        while ifq.pending() != 0 {
            expect_result("flush", ifq.flush(ring.fd()), 0)?;
        }
    }
    sender.join().ok().context("the sender panicked")??;
    Ok(())
}

/// Runs a process of ST16, which registers, exports, imports and receives until it is
/// killed. Counts the queues registered and closed.
fn victim(counts: &[AtomicU32; 2]) -> anyhow::Result<()> {
    // The limit has room for a few queues, so that pages still charged to killed
    // processes would add up and exceed it.
    const LOCKED: u64 = 160 * PAGE_SIZE as u64;
    sandbox::count_locked_memory()?;
    setrlimit(Resource::RLIMIT_MEMLOCK, LOCKED, LOCKED).context("RLIMIT_MEMLOCK")?;
    loop {
        let held = Resources::now()?;
        let mut ring = WideRing::with(8, 64, ZCRX_SETUP)?;
        let ifq = Ifq::new(ring.fd(), 8, 2 * PAGES)?;
        let file = export_of(&ring, ifq.id)?;
        counts[0].fetch_add(1, SeqCst);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                part("importing", || {
                    let ring = importing_ring(&file)?;
                    while !done.load(SeqCst) {
                        expect_result("flush", ifq.flush(ring.fd()), 0)?;
                        drop(export_of(&ring, 0)?);
                    }
                    Ok(())
                });
            });
            part("receiving", || receive_some(&mut ring, &ifq));
            done.store(true, SeqCst);
        });
        drop((ring, ifq, file));
        held.wait("closing")?;
        counts[1].fetch_add(1, SeqCst);
    }
}

/// Checks that processes that register, receive and close are killed at random times,
/// and no page stays pinned.
fn processes_are_killed_at_any_time() -> TestResult {
    println!("{NOTE}seed {}", seed());
    let pinned = pins()?;
    let mut rng = Rng::with_seed(seed());
    let counts = Shared::<[AtomicU32; 2]>::new()?;
    for round in 0..rounds(200) {
        let child = sandbox::spawn(|| victim(&counts))?;
        thread::sleep(Duration::from_micros(rng.u64(..1000 * life())));
        kill(child, Signal::SIGKILL)?;
        killed(child).with_context(|| format!("process {round}"))?;
        pins_return(&format!("process {round}"), pinned)?;
    }
    let [began, ended] = [0, 1].map(|count| counts[count].load(SeqCst));
    println!("{NOTE}{began} queues were registered, {ended} closed before the kill");
    ensure!(began > ended, "no process was killed while it had a queue");
    // The kernel still works.
    let mut ring = WideRing::new(8)?;
    let ifq = Ifq::new(ring.fd(), ENTRIES, PAGES)?;
    transfer(&mut ring, &ifq, 100_000)?;
    Ok(Outcome::Passed)
}
