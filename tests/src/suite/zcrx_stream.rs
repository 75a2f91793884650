// SPDX-License-Identifier: GPL-2.0
//! D9: what can happen beside the receiving of data: long queues of packets, a full
//! completion queue, completions of two sizes, and rings that are closed.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::eventfd::EventFd;

use super::zcrx_events::{EVENT, arm, with_events};
use super::zcrx_receive::restore;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{expect_eq, expect_result, limit};
use crate::register::PAGE_SIZE;
use crate::ring::{IORING_CQE_F_MORE, IORING_SETUP_SINGLE_ISSUER, enter};
use crate::sandbox;
use crate::sqe::Sqe;
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{
    IORING_CQE_F_32, IORING_CQE_F_SKIP, IORING_SETUP_CQE_MIXED, IORING_SETUP_DEFER_TASKRUN,
    WideCqe, WideRing, ZCRX_SETUP,
};
use crate::zcrx::{Ifq, ZCRX_EVENT_COPY, pinned, recv_zc};

pub const TESTS: &[Test] = tests! {
    "zcrx::stream" {
        ZV12 long_queues_of_packets_take_turns;
        ZV13 full_completion_queue_ends_the_request;
        ZV14 mixed_completions_do_not_wrap;
        ZV25 closing_a_busy_ring_releases_everything;
    }
};

const MIXED_SETUP: u32 =
    IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE_MIXED;

/// Checks that sockets with a thousand packets each take turns after at most 21
/// packets, and other requests come in between.
fn long_queues_of_packets_take_turns() -> TestResult {
    const PACKETS: usize = 1000;
    const POLL: u64 = 2;
    let mut ring = WideRing::with(8, 4096, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), 64, 2 * PACKETS)?;

    // Two sockets have so many packets that none can be emptied at once.
    let mut streams = [Stream::starting_at(0, 0)?, Stream::starting_at(70_000, 1)?];
    for stream in &mut streams {
        restore(stream, &[3000; PACKETS])?;
        ring.push(stream.recv(&ifq, stream.untaken()))?;
    }
    let event = EventFd::new()?;
    ring.push(Sqe::poll(event.as_raw_fd(), libc::POLLIN).user_data(POLL))?;
    ring.submit()?;
    event.write(1)?;

    let (mut order, mut ends) = (Vec::new(), Vec::new());
    while ends.len() < 3 {
        let cqe = ring.cqe()?;
        order.push(cqe.user_data);
        if cqe.flags & IORING_CQE_F_MORE == 0 {
            ends.push(cqe);
            continue;
        }
        let stream = streams.get_mut(cqe.user_data as usize);
        let offset = stream.context("data of no stream")?.take(&ifq, &cqe)?;
        expect_eq("a packet", cqe.res, 3000)?;
        ifq.return_buffer(offset);
        ifq.flush_all(ring.fd())?;
    }
    for stream in &streams {
        expect_eq("bytes left", stream.untaken(), 0)?;
    }
    ends.sort_by_key(|cqe| cqe.user_data);
    let polled = ended(POLL, libc::POLLIN.into());
    expect_eq("the ends", ends, vec![ended(0, 0), ended(1, 0), polled])?;
    // A receive takes 21 packets at once before another one gets its turn.
    for run in order.chunk_by(|one, next| one == next) {
        ensure!(
            run.len() <= 21,
            "{} packets of {} in a row",
            run.len(),
            run[0]
        );
    }
    // Completions of other requests also come in between.
    let at = order.iter().position(|&user_data| user_data == POLL);
    let after = at.map_or(0, |at| order.len() - at);
    ensure!(after > 100, "{after} completions after another request's");
    expect_free(&mut ring, &ifq, 2 * PACKETS)?;

    // As many short packets, which the socket merges.
    let mut stream = Stream::new()?;
    for _ in 0..PACKETS {
        let bytes = stream.next(11);
        stream.sender.write_all(&bytes)?;
    }
    stream.wait_arrived()?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.take_all(&mut ring, &ifq)?;
    Ok(Outcome::Passed)
}

/// Checks that a request ends with ENOSPC when the completion queue is full, and no
/// completion is lost.
fn full_completion_queue_ends_the_request() -> TestResult {
    const ENTRIES: u32 = 4;
    let mut ring = WideRing::with(ENTRIES, ENTRIES, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let mut stream = Stream::new()?;
    stream.send(60_000)?;
    let mut arms = 0;
    while stream.untaken() != 0 {
        ring.push(stream.recv(&ifq, stream.untaken()))?;
        ring.submit()?;
        arms += 1;
        let filled = ring.waiting();
        let mut last = None;
        while let Some(cqe) = ring.try_cqe() {
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                last = Some(cqe);
                break;
            }
            let offset = stream.take(&ifq, &cqe)?;
            ifq.return_buffer(offset);
        }
        expect_eq("a further completion in the queue", ring.try_cqe(), None)?;
        // If there is no room for the last completion, it waits for room and is not
        // lost.
        expect_eq("lost completions", ring.overflow(), 0)?;
        if stream.untaken() != 0 {
            expect_eq("the end", last, None)?;
            expect_eq("completions", filled, ENTRIES)?;
        }
        let res = if stream.untaken() == 0 {
            0
        } else {
            -libc::ENOSPC
        };
        let last = last.map_or_else(|| ring.cqe(), Ok)?;
        expect_eq("the end", last, ended(stream.user_data, res))?;
        ifq.flush_all(ring.fd())?;
    }
    // 60,000 bytes take 15 buffers or more.
    ensure!(arms >= 4, "{arms} requests took it all");
    expect_eq("lost completions", ring.overflow(), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a completion of two slots does not wrap around the end of a mixed queue,
/// and other completions and events take one slot.
fn mixed_completions_do_not_wrap() -> TestResult {
    const ENTRIES: u32 = 8;
    let filler = WideCqe {
        user_data: 0,
        res: 0,
        flags: IORING_CQE_F_SKIP,
        extra: None,
    };
    for nops in 0..ENTRIES {
        let mut ring = WideRing::with(ENTRIES, ENTRIES, MIXED_SETUP)?;
        let ifq = Ifq::new(ring.fd(), 16, 16)?;
        let mut stream = Stream::new()?;
        for _ in 0..nops {
            expect_result("NOP", ring.run(Sqe::nop())?, 0)?;
        }
        expect_eq("slots of NOPs", ring.position(), nops)?;
        ring.push(stream.recv(&ifq, 0))?;
        for _ in 0..10 {
            stream.send(100)?;
            let at = ring.position();
            let cqe = ring.cqe()?;
            let flags = IORING_CQE_F_MORE | IORING_CQE_F_32;
            expect_eq("flags of data", cqe.flags, flags)?;
            let offset = stream.take(&ifq, &cqe)?;
            ifq.return_buffer(offset);
            // A completion of two slots does not wrap around the end.
            let slots = if at % ENTRIES == ENTRIES - 1 {
                expect_eq("the last slot", ring.slot(at), filler)?;
                3
            } else {
                2
            };
            expect_eq("slots", ring.position() - at, slots)?;
        }
        stream.sender.shutdown(std::net::Shutdown::Write)?;
        let at = ring.position();
        let last = WideCqe {
            user_data: stream.user_data,
            res: 0,
            flags: 0,
            extra: None,
        };
        expect_eq("the end", ring.cqe()?, last)?;
        expect_eq("slots of the end", ring.position() - at, 1)?;
        ifq.flush_all(ring.fd())?;
    }
    mixed_full(ENTRIES)?;
    mixed_event(ENTRIES)?;
    Ok(Outcome::Passed)
}

/// Fills a mixed queue, starting from every position.
fn mixed_full(entries: u32) -> anyhow::Result<()> {
    for nops in 0..entries {
        let mut ring = WideRing::with(entries, entries, MIXED_SETUP)?;
        let ifq = Ifq::new(ring.fd(), 64, 64)?;
        let mut stream = Stream::new()?;
        for _ in 0..nops {
            expect_result("NOP", ring.run(Sqe::nop())?, 0)?;
        }
        stream.send(60_000)?;
        while stream.untaken() != 0 {
            ring.push(stream.recv(&ifq, stream.untaken()))?;
            ring.submit()?;
            let mut taken = 0;
            let last = loop {
                let cqe = ring.cqe()?;
                if cqe.flags & IORING_CQE_F_MORE == 0 {
                    break cqe;
                }
                let offset = stream.take(&ifq, &cqe)?;
                ifq.return_buffer(offset);
                taken += 1;
            };
            let res = if stream.untaken() == 0 {
                0
            } else {
                -libc::ENOSPC
            };
            expect_result("the end", last.res, res)?;
            expect_eq("the end is narrow", last.extra, None)?;
            ensure!(
                stream.untaken() == 0 || (3..=4).contains(&taken),
                "{taken} completions fill the queue"
            );
            expect_eq("lost completions", ring.overflow(), 0)?;
            ifq.flush_all(ring.fd())?;
        }
    }
    Ok(())
}

/// Checks that an event takes one slot of a mixed queue.
fn mixed_event(entries: u32) -> anyhow::Result<()> {
    let mut ring = WideRing::with(entries, entries, MIXED_SETUP)?;
    let (ifq, _) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
    let mut stream = Stream::new()?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send(100)?;
    let cqe = ring.cqe()?;
    stream.take(&ifq, &cqe)?;
    let at = ring.position();
    let event = WideCqe {
        user_data: EVENT,
        res: ZCRX_EVENT_COPY as i32,
        flags: 0,
        extra: None,
    };
    expect_eq("the event", ring.cqe()?, event)?;
    expect_eq("slots of the event", ring.position() - at, 1)
}

/// A ring with something under way when it is closed.
struct Busy {
    ring: WideRing,
    ifq: Ifq,
    streams: Vec<Stream>,
    /// The offsets of buffers, and the data in them.
    granted: Vec<(u64, Vec<u8>)>,
}

impl Busy {
    const KINDS: [&str; 5] = [
        "a full queue",
        "buffers in use",
        "a request",
        "an event",
        "all but a full queue",
    ];

    fn new(what: &str) -> anyhow::Result<Self> {
        let ring = WideRing::with(8, 8, ZCRX_SETUP)?;
        let (ifq, _) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
        let mut busy = Busy {
            ring,
            ifq,
            streams: Vec::new(),
            granted: Vec::new(),
        };
        let mut add = |which: &str, does: fn(&mut Busy) -> anyhow::Result<Stream>| {
            if what == which || (what.starts_with("all") && which != Self::KINDS[0]) {
                let stream = does(&mut busy)?;
                busy.streams.push(stream);
            }
            anyhow::Ok(())
        };
        add("a full queue", Self::fill)?;
        add("buffers in use", Self::hold)?;
        add("a request", Self::wait)?;
        add("an event", Self::fire)?;
        Ok(busy)
    }

    /// Compares the data of a completion, and keeps its buffer.
    fn take(&mut self, stream: &mut Stream, cqe: &WideCqe) -> anyhow::Result<()> {
        let bytes = self.ifq.data(cqe)?.to_vec();
        self.granted.push((stream.take(&self.ifq, cqe)?, bytes));
        Ok(())
    }

    /// Fills the completion queue, so that the last completion of the request waits for
    /// room.
    fn fill(&mut self) -> anyhow::Result<Stream> {
        let mut stream = Stream::new()?;
        stream.send(60_000)?;
        self.ring.push(stream.recv(&self.ifq, 0))?;
        self.ring.submit()?;
        expect_eq("completions", self.ring.waiting(), 8)?;
        for slot in 0..8 {
            let cqe = self.ring.slot(slot);
            self.take(&mut stream, &cqe)?;
        }
        Ok(stream)
    }

    /// Receives and keeps the buffers, and arms the event again.
    fn hold(&mut self) -> anyhow::Result<Stream> {
        let mut stream = Stream::starting_at(0, 2)?;
        stream.send(10_000)?;
        self.ring.push(stream.recv(&self.ifq, 10_000))?;
        let mut ended = 0;
        // Both the request and the event must end.
        while ended < 2 {
            let cqe = self.ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                ended += 1;
            } else {
                self.take(&mut stream, &cqe)?;
            }
        }
        let armed = arm(&self.ring, &self.ifq, ZCRX_EVENT_COPY);
        expect_result("arming", armed, 0)?;
        Ok(stream)
    }

    /// Makes a request that waits for data.
    fn wait(&mut self) -> anyhow::Result<Stream> {
        let stream = Stream::starting_at(0, 3)?;
        self.ring.push(stream.recv(&self.ifq, 0))?;
        self.ring.submit()?;
        expect_eq("without data", self.ring.waiting(), 0)?;
        Ok(stream)
    }

    /// Copies data while the request is submitted, so that the event waits until the
    /// task asks for completions.
    fn fire(&mut self) -> anyhow::Result<Stream> {
        let mut stream = Stream::starting_at(0, 4)?;
        stream.send(100)?;
        self.ring.push(stream.recv(&self.ifq, 0))?;
        expect_result("submitting", enter(self.ring.fd(), 1, 0, 0), 1)?;
        let cqe = self.ring.try_cqe().context("nothing was copied")?;
        self.take(&mut stream, &cqe)?;
        expect_eq("the event", self.ring.try_cqe(), None)?;
        Ok(stream)
    }
}

/// Checks that closing a ring with requests and data, or the end of its process,
/// releases its memory and sockets.
fn closing_a_busy_ring_releases_everything() -> TestResult {
    // The ring is closed while the process goes on.
    for what in Busy::KINDS {
        let before = pinned()?;
        let Busy {
            ring,
            ifq,
            mut streams,
            granted,
        } = Busy::new(what)?;
        expect_eq("pinned", pinned()? - before, ifq.area.len() / PAGE_SIZE)?;
        let area = ifq.into_area();
        drop(ring);
        let start = Instant::now();
        while pinned()? != before {
            ensure!(
                start.elapsed() < limit(5),
                "{what}: {} pages stay pinned",
                pinned()? - before
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        for (offset, bytes) in &granted {
            for (at, &byte) in bytes.iter().enumerate() {
                let got: u8 = area.read(*offset as usize + at);
                ensure!(got == byte, "{what}: a buffer changed");
            }
        }
        // The connections still exist, and hold the data that nobody took.
        for stream in &mut streams {
            stream.send(1000)?;
            stream.read_left()?;
        }
    }
    // The ring is closed because the process ends. Its requests' references go with it.
    for what in Busy::KINDS {
        let Stream {
            mut sender,
            receiver,
            ..
        } = Stream::new()?;
        sandbox::in_child(|| {
            let mut busy = Busy::new(what)?;
            let request = recv_zc(receiver.as_raw_fd(), busy.ifq.id, 0);
            busy.ring.push(request)?;
            expect_result("submitting", enter(busy.ring.fd(), 1, 0, 0), 1)?;
            std::mem::forget(busy);
            Ok(())
        })
        .context(what)?;
        drop(receiver);
        sender.set_read_timeout(Some(limit(5)))?;
        let read = sender.read(&mut [0]).context(what)?;
        expect_eq("read from the closed socket", read, 0)?;
    }
    Ok(Outcome::Passed)
}
