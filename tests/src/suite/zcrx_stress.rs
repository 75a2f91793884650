// SPDX-License-Identifier: GPL-2.0
//! ST: threads that use one interface queue at the same time: buffers that are handed
//! out and given back, a refill queue that is overwritten, and events that never stop.
//! Queues that come and go are in `zcrx_churn`.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Instant;

use anyhow::{Context, ensure};
use fastrand::Rng;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::zcrx_events::{EVENT, arm, with_events};
use super::zcrx_sharing::{export_of, import_into};
use super::{NOTE, Outcome, Test, TestResult, seed, tests};
use crate::buffers::Resources;
use crate::kernel::{self, describe, expect_eq, expect_result};
use crate::register::{IORING_REGISTER_EVENTFD, PAGE_SIZE, register};
use crate::ring::IORING_CQE_F_MORE;
use crate::sqe::Sqe;
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{Mapping, WideCqe, WideRing, ZCRX_SETUP};
use crate::zcrx::{
    IORING_MEM_REGION_TYPE_USER, Ifq, RQES, RefillQueue, Registration, Rqe, TAIL, ZCRX_EVENT_COPY,
    memory,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::stress" {
        ST06 threads_receive_return_and_flush_at_once (30 s);
        ST12 refill_queue_may_be_overwritten_at_any_time (30 s);
        ST13 events_are_armed_by_two_rings_at_once (30 s);
    }
};

/// Runs the part of a thread. A failure ends the test, as the other threads would wait
/// for ever.
pub(super) fn part(what: &str, body: impl FnOnce() -> anyhow::Result<()>) {
    if let Err(error) = body() {
        println!("{what}: {error:#}");
        std::process::exit(1);
    }
}

/// Returns `plain`, or an eighth of it with checkers, which slow everything down.
fn bytes(plain: usize) -> usize {
    if kernel::is_debug() { plain / 8 } else { plain }
}

/// Makes a ring for the calling thread and imports the queue into it.
pub(super) fn importing_ring(file: &OwnedFd) -> anyhow::Result<WideRing> {
    let ring = WideRing::with(8, 64, ZCRX_SETUP)?;
    import_into(&ring, file, 0)?;
    Ok(ring)
}

/// The buffers that user space has.
struct Owned(Vec<AtomicBool>);

impl Owned {
    fn none(pages: usize) -> Self {
        Owned((0..pages).map(|_| AtomicBool::new(false)).collect())
    }

    fn of(&self, offset: u64) -> &AtomicBool {
        &self.0[offset as usize / PAGE_SIZE]
    }

    /// Records that a buffer was handed out, which must have been free.
    fn take(&self, offset: u64) -> anyhow::Result<()> {
        let had = self.of(offset).swap(true, SeqCst);
        ensure!(!had, "{offset:#x} is handed out a second time");
        Ok(())
    }

    /// Records that a buffer is about to be given back, which must be in use.
    fn give(&self, offset: u64) -> anyhow::Result<()> {
        let had = self.of(offset).swap(false, SeqCst);
        ensure!(had, "{offset:#x} is given back a second time");
        Ok(())
    }
}

/// Receives all of a stream, and keeps each buffer for a while. Returns the number of
/// times that a request ended because no buffer was free.
fn receive(
    ring: &mut WideRing,
    ifq: &Ifq,
    stream: &mut Stream,
    owned: &Owned,
    back: &mpsc::Sender<u64>,
) -> anyhow::Result<u32> {
    let mut rng = Rng::with_seed(seed() ^ stream.user_data);
    let mut held: Vec<(WideCqe, Vec<u8>)> = Vec::new();
    let mut used_up = 0;
    ring.push(stream.recv(ifq, 0))?;
    loop {
        let cqe = ring.cqe()?;
        let keep = if cqe.flags & IORING_CQE_F_MORE != 0 {
            owned.take(stream.take(ifq, &cqe)?)?;
            held.push((cqe, ifq.data(&cqe)?.to_vec()));
            rng.usize(..8)
        } else {
            0
        };
        while held.len() > keep {
            let (cqe, bytes) = held.swap_remove(rng.usize(..held.len()));
            ensure!(ifq.data(&cqe)? == bytes, "a buffer in use changed");
            back.send(cqe.offset()?)?;
        }
        if cqe == ended(stream.user_data, 0) {
            expect_eq("bytes left", stream.untaken(), 0)?;
            return Ok(used_up);
        }
        if cqe.flags & IORING_CQE_F_MORE == 0 {
            expect_eq("the end", cqe, ended(stream.user_data, -libc::ENOMEM))?;
            used_up += 1;
            thread::yield_now();
            ring.push(stream.recv(ifq, 0))?;
        }
    }
}

/// Checks that two rings receive into one queue while threads return buffers and flush,
/// and no buffer is lost or handed out twice.
fn threads_receive_return_and_flush_at_once() -> TestResult {
    const PAGES: usize = 16;
    const ENTRIES: u32 = 8;
    println!("{NOTE}seed {}", seed());
    let before = Resources::now()?;
    let mut ring = WideRing::with(8, 64, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), ENTRIES, PAGES)?;
    let file = export_of(&ring, ifq.id)?;
    let owned = Owned::none(PAGES);
    let (finished, flushes) = (AtomicBool::new(false), AtomicU32::new(0));
    let (back, returned) = mpsc::channel();

    let flush = || -> anyhow::Result<()> {
        let ring = importing_ring(&file)?;
        let mut rng = Rng::with_seed(seed());
        while !finished.load(SeqCst) {
            expect_result("flush", ifq.flush(ring.fd()), 0)?;
            flushes.fetch_add(1, SeqCst);
            if rng.bool() {
                thread::yield_now();
            }
        }
        Ok(())
    };
    let produce = || -> anyhow::Result<()> {
        for offset in returned {
            while ifq.pending() == ENTRIES {
                thread::yield_now();
            }
            // From now on the buffer may be handed out again.
            owned.give(offset)?;
            ifq.return_buffer(offset);
        }
        Ok(())
    };
    let run = |ring: &mut WideRing, stream: usize, back: &mpsc::Sender<u64>| {
        let mut stream = Stream::starting_at(70_000 * stream, stream as u64)?;
        let sender = stream.send_later(bytes(24 << 20))?;
        let used_up = receive(ring, &ifq, &mut stream, &owned, back)?;
        sender.join().ok().context("the sender panicked")??;
        let number = stream.user_data;
        println!("{NOTE}stream {number} found no buffer {used_up} times");
        anyhow::Ok(())
    };
    thread::scope(|scope| {
        scope.spawn(|| part("flushing", flush));
        let producer = scope.spawn(|| part("giving back", produce));
        let other = back.clone();
        let importer = scope.spawn(|| {
            let other = other;
            part("importer", || run(&mut importing_ring(&file)?, 2, &other));
        });
        part("exporter", || run(&mut ring, 1, &back));
        drop(back);
        for thread in [importer, producer] {
            thread.join().expect("a thread that fails ends the test");
        }
        finished.store(true, SeqCst);
    });
    println!("{NOTE}{} flushes", flushes.load(SeqCst));
    // No buffer was lost, and none is free twice.
    ifq.flush_all(ring.fd())?;
    expect_free(&mut ring, &ifq, PAGES)?;
    drop((ring, ifq, file));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// The number of buffers of ST12.
const PAGES: usize = 16;
/// The number of entries in its refill queue.
const ENTRIES: u32 = 256;

/// Writes random data to a refill queue until told to stop.
fn scribble(refill: &RefillQueue, seed: u64, stop: &AtomicBool) {
    let mut rng = Rng::with_seed(seed);
    while !stop.load(SeqCst) {
        match rng.u32(..8) {
            0 => {
                let word = refill.memory.word(4 * rng.usize(..RQES / 4));
                word.store(rng.u32(..), SeqCst);
            }
            1 => refill.memory.word(0).store(rng.u32(..), SeqCst),
            2 => refill.memory.word(TAIL).store(rng.u32(..), SeqCst),
            3 => refill.set_tail(refill.head().wrapping_add(rng.u32(..64))),
            _ => {
                let rqe = Rqe {
                    // Most offsets may be those of buffers in use.
                    off: match rng.u32(..8) {
                        0 => rng.u64(..),
                        _ => rng.u64(..(PAGES * PAGE_SIZE) as u64),
                    },
                    len: rng.u32(..),
                    pad: u32::from(rng.u32(..16) == 0),
                };
                let slot = rng.usize(..refill.entries as usize);
                refill.memory.write(RQES + 16 * slot, rqe);
            }
        }
    }
}

/// Flushes until told to stop. `longest` gets the longest time of a flush in
/// microseconds.
fn flush_until(
    ifq: &Ifq,
    ring: &WideRing,
    stop: &AtomicBool,
    longest: &AtomicU32,
) -> anyhow::Result<()> {
    while !stop.load(SeqCst) {
        let start = Instant::now();
        expect_result("flush", ifq.flush(ring.fd()), 0)?;
        let took = start.elapsed();
        ensure!(took < kernel::limit(2), "a flush took {took:?}");
        longest.fetch_max(took.as_micros() as u32, SeqCst);
    }
    Ok(())
}

/// Receives `len` bytes. Does not compare them, as any buffer may be given back and
/// used again at any time.
fn receive_any(ring: &mut WideRing, ifq: &Ifq, stream: &Stream, len: usize) -> anyhow::Result<()> {
    let mut taken = 0;
    ring.push(stream.recv(ifq, len))?;
    while taken < len {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE != 0 {
            taken += ifq.data(&cqe)?.len();
        } else {
            let what = format!("the end, {}", describe(cqe.res));
            // There are as many completions as buffers, but a buffer may be given back
            // before its completion is seen.
            let enospc = cqe == ended(stream.user_data, -libc::ENOSPC);
            let used_up = cqe == ended(stream.user_data, -libc::ENOMEM);
            ensure!(enospc || used_up, "{what}, after {taken} bytes");
            thread::yield_now();
            ring.push(stream.recv(ifq, len - taken))?;
        }
    }
    expect_eq("bytes", taken, len)?;
    expect_eq("the end", ring.cqe()?, ended(stream.user_data, 0))
}

/// Registers a queue, with its refill queue in user memory if `user`.
fn queue(ring: &WideRing, user: bool) -> anyhow::Result<Ifq> {
    let area = memory(PAGES)?;
    let mut registration = Registration::new(ENTRIES, &area);
    if !user {
        expect_result("registering", registration.register(ring.fd()), 0)?;
        return Ifq::attach(ring.fd(), registration, area);
    }
    let memory = Mapping::anonymous(registration.region.size as usize, 0)?;
    registration.region.flags = IORING_MEM_REGION_TYPE_USER;
    registration.region.user_addr = memory.address() as u64;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    let refill = RefillQueue {
        id: registration.reg.zcrx_id,
        entries: ENTRIES,
        memory,
    };
    Ok(Ifq {
        area,
        token: registration.area.rq_area_token,
        buffer: PAGE_SIZE,
        refill,
    })
}

/// Runs one round of ST12: receives everything, or closes the ring in the middle.
fn overwritten(round: u64, close: bool, longest: &AtomicU32) -> anyhow::Result<()> {
    let before = Resources::now()?;
    let mut ring = WideRing::with(8, 64, ZCRX_SETUP)?;
    // A mapping of the ring would keep the ring from being closed.
    let ifq = queue(&ring, close)?;
    let (flushed, scribbled) = (AtomicBool::new(false), AtomicBool::new(false));
    let file = export_of(&ring, ifq.id)?;
    let mut stream = Stream::new()?;
    let len = bytes(2 << 20);
    let sender = stream.send_later(len)?;

    thread::scope(|scope| {
        let scribbler = scope.spawn(|| scribble(&ifq.refill, seed() ^ round, &scribbled));
        let flusher = scope.spawn(|| {
            part("flushing", || {
                let ring = importing_ring(&file)?;
                drop(file);
                flush_until(&ifq, &ring, &flushed, longest)
            });
        });
        let stop_flushing = || {
            flushed.store(true, SeqCst);
            flusher.join().expect("a thread that fails ends the test");
        };
        // This must come before buffers are counted, as the scribbler may give back
        // buffers that are in use.
        let stop_scribbling = || {
            scribbled.store(true, SeqCst);
            scribbler.join().expect("it does not fail");
        };
        part("receiving", || {
            if close {
                receive_any(&mut ring, &ifq, &stream, len / 2)?;
                ring.push(stream.recv(&ifq, 0))?;
                ring.submit()?;
                drop((ring, stream));
                // The sender fails when nobody receives any more.
                let _ = sender.join();
                stop_flushing();
                before.wait("closing")?;
                stop_scribbling();
                return Ok(());
            }
            receive_any(&mut ring, &ifq, &stream, len)?;
            sender.join().ok().context("the sender panicked")??;
            stop_scribbling();
            stop_flushing();
            everything_is_there(&mut ring, &ifq)
        });
    });
    Ok(())
}

/// Checks that every buffer comes back once when nobody interferes any more.
fn everything_is_there(ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<()> {
    // The first flush may find nothing to consume and then leave a wrong head as it is.
    // With the tail set from that head, the second flush consumes entries and writes
    // the right head.
    for _ in 0..2 {
        expect_result("flush", ifq.flush(ring.fd()), 0)?;
        ifq.set_tail(ifq.head());
    }
    for page in 0..PAGES {
        ifq.return_buffer((page * PAGE_SIZE) as u64);
    }
    ifq.flush_all(ring.fd())?;
    expect_free(ring, ifq, PAGES)
}

/// Checks that overwriting the refill queue with random data at any time does no harm,
/// and every buffer is there afterwards.
fn refill_queue_may_be_overwritten_at_any_time() -> TestResult {
    println!("{NOTE}seed {}", seed());
    let before = Resources::now()?;
    let longest = AtomicU32::new(0);
    for round in 0..8 {
        let close = round % 2 == 1;
        overwritten(round, close, &longest).with_context(|| format!("round {round}"))?;
        before.wait("a round")?;
    }
    println!("{NOTE}a flush took {} us at most", longest.load(SeqCst));
    Ok(Outcome::Passed)
}

/// The `user_data` of polls.
const POLL: u64 = 0x706f_6c6c;

/// The state that the rings of ST13 share.
struct Storm {
    ifq: Ifq,
    /// The right to fill the refill queue.
    filling: Mutex<()>,
    /// The number of events, and the number of times that the event was armed.
    fired: AtomicU32,
    armed: AtomicU32,
}

impl Storm {
    fn arm(&self, ring: &WideRing) -> anyhow::Result<bool> {
        match arm(ring, &self.ifq, ZCRX_EVENT_COPY) {
            0 => {
                self.armed.fetch_add(1, SeqCst);
                Ok(true)
            }
            // The event has not fired since it was armed.
            error => expect_result("arming", error, -libc::EINVAL).map(|()| false),
        }
    }

    /// Takes all of a stream, arms the event after each completion, and polls `polled`
    /// again and again.
    fn take(
        &self,
        ring: &mut WideRing,
        stream: &mut Stream,
        polled: BorrowedFd,
    ) -> anyhow::Result<()> {
        let poll = Sqe::poll(polled.as_raw_fd(), libc::POLLIN).user_data(POLL);
        let event = ended(EVENT, ZCRX_EVENT_COPY as i32);
        let (mut waits, mut over) = (false, false);
        ring.push(stream.recv(&self.ifq, 0))?;
        while !over {
            let cqe = ring.cqe()?;
            if cqe == event {
                self.fired.fetch_add(1, SeqCst);
            } else if cqe.user_data == POLL {
                expect_eq(
                    "what a file is ready for",
                    cqe,
                    ended(POLL, libc::POLLIN.into()),
                )?;
                waits = false;
            } else if cqe.flags & IORING_CQE_F_MORE != 0 {
                let offset = stream.take(&self.ifq, &cqe)?;
                let _filling = self.filling.lock().expect("no thread panics");
                self.ifq.return_buffer(offset);
                self.ifq.flush_all(ring.fd())?;
                if !waits {
                    ring.push(poll)?;
                    waits = true;
                }
            } else {
                over = cqe == ended(stream.user_data, 0);
                if !over {
                    let full = [-libc::ENOMEM, -libc::ENOSPC].contains(&cqe.res);
                    ensure!(full, "the end is {cqe:x?}, {}", describe(cqe.res));
                    ring.push(stream.recv(&self.ifq, 0))?;
                }
            }
            self.arm(ring)?;
        }
        expect_eq("bytes left", stream.untaken(), 0)
    }
}

/// Waits for two rings and for the eventfd of one of them, as an event loop does.
fn watch(rings: [OwnedFd; 2], events: &EventFd, stop: &AtomicBool) -> anyhow::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLET;
    for ring in &rings {
        epoll.add(ring, EpollEvent::new(flags, 0))?;
    }
    epoll.add(events, EpollEvent::new(flags, 1))?;
    let mut ready = [EpollEvent::empty(); 4];
    while !stop.load(SeqCst) {
        let count = epoll.wait(&mut ready, 10u16)?;
        if ready[..count].iter().any(|event| event.data() == 1) {
            events.read()?;
        }
    }
    Ok(())
}

/// Checks that two rings receive and arm an event at the same time, and it fires once
/// each time that it was armed.
fn events_are_armed_by_two_rings_at_once() -> TestResult {
    let before = Resources::now()?;
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
    let (ifq, _) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
    let file = export_of(&ring, ifq.id)?;
    let events = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
    let fd = events.as_raw_fd();
    let got = register(
        ring.fd(),
        IORING_REGISTER_EVENTFD,
        (&raw const fd).cast(),
        1,
    );
    expect_result("registering an eventfd", got, 0)?;
    let storm = Storm {
        ifq,
        filling: Mutex::new(()),
        fired: AtomicU32::new(0),
        armed: AtomicU32::new(0),
    };
    let stop = AtomicBool::new(false);
    let len = bytes(16 << 20);

    let run = |ring: &mut WideRing, number: u64, polled: BorrowedFd| {
        let mut stream = Stream::starting_at(0, number)?;
        let sender = stream.send_later(len)?;
        storm.take(ring, &mut stream, polled)?;
        sender.join().ok().context("the sender panicked")??;
        anyhow::Ok(())
    };
    let master = ring.as_fd().try_clone_to_owned()?;
    thread::scope(|scope| {
        let importer = scope.spawn(|| {
            part("importer", || {
                let mut ring = importing_ring(&file)?;
                let rings = [master.try_clone()?, ring.as_fd().try_clone_to_owned()?];
                scope.spawn(|| part("watching", || watch(rings, &events, &stop)));
                run(&mut ring, 2, master.as_fd())
            });
        });
        part("exporter", || run(&mut ring, 1, events.as_fd()));
        importer.join().expect("a thread that fails ends the test");
        stop.store(true, SeqCst);
    });

    // Some events may still have to be posted. After that, the number of events is the
    // number of times that the event was armed, or one more.
    let (mut fired, armed) = (storm.fired.load(SeqCst), storm.armed.load(SeqCst));
    for _ in 0..2 {
        ring.submit()?;
        while let Some(cqe) = ring.try_cqe() {
            if cqe.user_data == EVENT {
                fired += 1;
            }
        }
    }
    println!("{NOTE}{fired} events, asked for {armed} times");
    expect_eq("lost completions", ring.overflow(), 0)?;
    ensure!(fired > 1, "hardly an event");
    let happened = storm.arm(&ring)?;
    expect_eq("events", fired, armed + u32::from(happened))?;

    // No event comes in between here.
    let mut other = WideRing::with(8, 256, ZCRX_SETUP)?;
    import_into(&other, &file, 0)?;
    expect_free(&mut other, &storm.ifq, 64)?;
    drop((ring, other, storm, file, master, events));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}
