// SPDX-License-Identifier: GPL-2.0
//! D9: more data than there are buffers. The buffers come back through an even smaller
//! refill queue, in any order, and among entries that must have no effect.

use std::net::Shutdown;

use anyhow::{Context, ensure};

use super::zcrx_receive::{expect_end, roomy_ring};
use super::{NOTE, Outcome, Test, TestResult, is_long, seed, tests};
use crate::kernel::{self, Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{WideCqe, WideRing, ZCRX_SETUP};
use crate::zcrx::{AREA_SHIFT, Ifq, Rqe};

pub const TESTS: &[Test] = tests! {
    "zcrx::returns" {
        ZV09 request_ends_with_enomem_without_buffers;
        ZV10 twice_the_area_can_be_received;
        ZV31 buffers_are_found_without_a_flush;
        ZV29 completion_lies_within_one_buffer;
        ZB01 large_transfer_with_buffers_returned_at_once (60 s);
        ZB02 large_transfer_with_buffers_returned_when_used_up (60 s);
        ZB03 large_transfer_with_buffers_returned_at_random (60 s);
        ZB04 large_transfer_with_buffers_returned_among_bad_entries (60 s);
        ZB05 very_large_transfer_with_buffers_returned_in_every_way (300 s);
    }
};

/// Checks that a request ends with ENOMEM without a free buffer, and a returned buffer
/// is found again.
///
/// In C, a returned buffer is found only after a flush.
fn request_ends_with_enomem_without_buffers() -> TestResult {
    const PAGES: usize = 4;
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 8, PAGES)?;
    let mut stream = Stream::new()?;
    let last = ended(stream.user_data, -libc::ENOMEM);
    stream.send(50_000)?;
    ring.push(stream.recv(&ifq, 0))?;
    let mut offsets = Vec::new();
    for _ in 0..PAGES {
        let cqe = ring.cqe()?;
        offsets.push(stream.take(&ifq, &cqe)?);
    }
    expect_eq("the end", ring.cqe()?, last)?;
    // Nothing changes until a buffer comes back, and in C, until that is flushed.
    for len in [0, 10] {
        let sqe = stream.recv(&ifq, len);
        expect_end(&mut ring, "without a buffer", sqe, -libc::ENOMEM)?;
    }
    ifq.return_buffer(offsets[2]);
    if zcrx_implementation() == Implementation::C {
        let sqe = stream.recv(&ifq, 0);
        expect_end(&mut ring, "before the flush", sqe, -libc::ENOMEM)?;
        ifq.flush_all(ring.fd())?;
    }

    // One buffer that comes back allows for one completion, in that very buffer.
    ring.push(stream.recv(&ifq, 0))?;
    let cqe = ring.cqe()?;
    expect_eq("the buffer", stream.take(&ifq, &cqe)?, offsets[2])?;
    expect_eq("the end", ring.cqe()?, last)?;

    for &offset in &offsets {
        ifq.return_buffer(offset);
    }
    ifq.flush_all(ring.fd())?;
    ring.push(stream.recv(&ifq, stream.untaken()))?;
    let last = ended(stream.user_data, 0);
    loop {
        // The area may be used up again before the first buffer is back.
        let end = stream.take_until_end(&mut ring, &ifq)?;
        if end == last {
            break;
        }
        expect_result("the end", end.res, -libc::ENOMEM)?;
        ring.push(stream.recv(&ifq, stream.untaken()))?;
    }
    expect_eq("bytes left", stream.untaken(), 0)?;
    expect_free(&mut ring, &ifq, PAGES)?;
    Ok(Outcome::Passed)
}

/// Checks that each completion lies within one buffer from its start, and any offset in
/// a buffer returns it.
fn completion_lies_within_one_buffer() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 512, 512)?;
    let mut stream = Stream::new()?;
    ring.push(stream.recv(&ifq, 0))?;
    for len in [1, 2, 4095, 4096, 4097, 8191, 8193, 12_345, 32_768, 40_000] {
        stream.send(len)?;
        let mut used = Vec::new();
        while stream.untaken() != 0 {
            let cqe = ring.cqe()?;
            ensure!(
                cqe.res as usize <= PAGE_SIZE,
                "{} bytes in one completion",
                cqe.res
            );
            // This checks that the bytes are in one buffer.
            let offset = stream.take(&ifq, &cqe)?;
            expect_eq(
                "offset in a buffer at which a copy begins",
                offset as usize % PAGE_SIZE,
                0,
            )?;
            ensure!(!used.contains(&offset), "a buffer is used twice");
            used.push(offset);
        }
        ensure!(
            used.len() >= len.div_ceil(PAGE_SIZE),
            "{} buffers for {len} bytes",
            used.len()
        );
        for offset in used {
            // Any offset in a buffer stands for that buffer.
            ifq.return_buffer(offset + len as u64 % PAGE_SIZE as u64);
        }
        ifq.flush_all(ring.fd())?;
    }
    stream.sender.shutdown(Shutdown::Write)?;
    expect_eq("the end", ring.cqe()?, ended(stream.user_data, 0))?;
    expect_free(&mut ring, &ifq, 512)?;
    Ok(Outcome::Passed)
}

/// Receives a page at a time, `rounds` times as many as the area holds, and gives each
/// buffer back without a flush. Returns the number of pages received until no buffer
/// was left. That happens in C, which does not consume the refill queue here.
pub(super) fn give_back_only(
    ring: &mut WideRing,
    ifq: &Ifq,
    stream: &mut Stream,
    rounds: usize,
) -> anyhow::Result<usize> {
    let wanted = rounds * ifq.area.len() / PAGE_SIZE;
    let mut pages = 0;
    ring.push(stream.recv(ifq, 0))?;
    'pages: for _ in 0..wanted {
        stream.send(PAGE_SIZE)?;
        while stream.untaken() != 0 {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                let want = ended(stream.user_data, -libc::ENOMEM);
                expect_eq("the end", cqe, want)?;
                break 'pages;
            }
            expect_result("a page", cqe.res, PAGE_SIZE as i32)?;
            pages += 1;
            ifq.return_buffer(stream.take(ifq, &cqe)?);
        }
    }
    match zcrx_implementation() {
        Implementation::Rust => expect_eq("pages", pages, wanted)?,
        Implementation::C => {
            ifq.flush_all(ring.fd())?;
            ring.push(stream.recv(ifq, 0))?;
            stream.take_all(ring, ifq)?;
        }
    }
    stream.sender.shutdown(Shutdown::Write)?;
    expect_eq("the end", ring.cqe()?, ended(stream.user_data, 0))?;
    Ok(pages)
}

/// Checks that returned buffers are found without a flush, even behind a queue of
/// entries that name nothing.
///
/// In C, a flush is needed, so that a request ends with ENOMEM after as many buffers as
/// the area has.
fn buffers_are_found_without_a_flush() -> TestResult {
    const PAGES: usize = 64;
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), PAGES as u32, PAGES)?;
    let mut stream = Stream::new()?;
    let pages = give_back_only(&mut ring, &ifq, &mut stream, 5)?;
    if zcrx_implementation() == Implementation::C {
        expect_eq("bytes in C", pages * PAGE_SIZE, 262_144)?;
    }
    ifq.flush_all(ring.fd())?;
    expect_free(&mut ring, &ifq, PAGES)?;

    // Entries that name no buffer are passed over, a whole queue of them in one call.
    let mut stream = Stream::starting_at(0, 2)?;
    ring.push(stream.recv(&ifq, 0))?;
    let mut offsets = Vec::new();
    for _ in 0..PAGES {
        stream.send(PAGE_SIZE)?;
        offsets.push(stream.take(&ifq, &ring.cqe()?)?);
    }
    stream.send(PAGE_SIZE)?;
    let last = ended(2, -libc::ENOMEM);
    expect_eq("the completion without a buffer", ring.cqe()?, last)?;
    for _ in 1..PAGES {
        ifq.push(Rqe {
            off: u64::MAX,
            ..Default::default()
        });
    }
    ifq.return_buffer(offsets[0]);
    ring.push(stream.recv(&ifq, 0))?;
    let cqe = ring.cqe()?;
    match zcrx_implementation() {
        Implementation::C => expect_eq("in C", cqe, last)?,
        Implementation::Rust => {
            expect_eq("the buffer", stream.take(&ifq, &cqe)?, offsets[0])?;
            expect_eq("unread", ifq.pending(), 0)?;
        }
    }
    Ok(Outcome::Passed)
}

/// When and in which way a test gives buffers back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Returns {
    /// Gives each back as soon as its completion is seen.
    Eager,
    /// Gives all back when a request ends because there is no buffer.
    Lazy,
    /// Gives random ones back at random times.
    Random,
    /// Gives random ones back at random times, mixed with entries that repeat a buffer,
    /// name a free one, or are garbage.
    Adversarial,
}

/// The number of buffers in the area.
const PAGES: usize = 16;

/// A transfer that is under way.
struct Transfer {
    ring: WideRing,
    ifq: Ifq,
    stream: Stream,
    /// Completions whose buffers have not been given back, and the data in them.
    held: Vec<(WideCqe, Vec<u8>)>,
    rng: fastrand::Rng,
}

impl Transfer {
    /// Receives `len` bytes through [`PAGES`] buffers and a refill queue of `entries`
    /// entries. Returns the number of requests that this took.
    fn run(entries: u32, len: usize, returns: Returns) -> anyhow::Result<usize> {
        let ring = WideRing::with(8, 64, ZCRX_SETUP)?;
        let ifq = Ifq::new(ring.fd(), entries, PAGES)?;
        let mut transfer = Transfer {
            ring,
            ifq,
            stream: Stream::new()?,
            held: Vec::new(),
            rng: fastrand::Rng::with_seed(seed()),
        };
        let thread = transfer.stream.send_later(len)?;
        let requests = transfer.take(returns)?;
        thread.join().ok().context("the sender panicked")??;
        expect_eq("bytes left", transfer.stream.untaken(), 0)?;
        // No buffer was lost, and none is free twice.
        transfer.give_back_all()?;
        expect_free(&mut transfer.ring, &transfer.ifq, PAGES)?;
        Ok(requests)
    }

    fn take(&mut self, returns: Returns) -> anyhow::Result<usize> {
        let mut requests = 0;
        loop {
            self.ring.push(self.stream.recv(&self.ifq, 0))?;
            requests += 1;
            let last = self.take_request(returns)?;
            if last == ended(self.stream.user_data, 0) {
                return Ok(requests);
            }
            let used_up = ended(self.stream.user_data, -libc::ENOMEM);
            expect_eq("the end", last, used_up)?;
            match returns {
                Returns::Eager => {}
                Returns::Lazy => {
                    expect_eq("buffers in use", self.held.len(), PAGES)?;
                    self.give_back_all()?;
                }
                // At least one must come back, or the next request ends the same way.
                Returns::Random | Returns::Adversarial => {
                    for _ in 0..self.held.len().div_ceil(2) {
                        self.give_back_any()?;
                    }
                    self.ifq.flush_all(self.ring.fd())?;
                }
            }
        }
    }

    /// Takes the completions of one request. Returns the last one.
    fn take_request(&mut self, returns: Returns) -> anyhow::Result<WideCqe> {
        loop {
            let mut next = Some(self.ring.cqe()?);
            // With all completions taken, a buffer that is not held is free.
            while let Some(cqe) = next {
                if cqe.flags & IORING_CQE_F_MORE == 0 {
                    return Ok(cqe);
                }
                self.hold(cqe)?;
                if returns == Returns::Eager {
                    self.give_back_all()?;
                }
                next = self.ring.try_cqe();
            }
            match returns {
                Returns::Eager | Returns::Lazy => {}
                Returns::Random => {
                    for _ in 0..self.rng.usize(..=self.held.len()) {
                        self.give_back_any()?;
                    }
                    if self.rng.bool() {
                        self.ifq.flush_all(self.ring.fd())?;
                    }
                }
                Returns::Adversarial => self.attack()?,
            }
        }
    }

    /// Compares the data of a completion, whose buffer is in use from now on.
    fn hold(&mut self, cqe: WideCqe) -> anyhow::Result<()> {
        let offset = self.stream.take(&self.ifq, &cqe)?;
        for (other, _) in &self.held {
            ensure!(other.offset()? != offset, "{offset:#x} is in use already");
        }
        let bytes = self.ifq.data(&cqe)?.to_vec();
        self.held.push((cqe, bytes));
        Ok(())
    }

    /// Puts an entry into the refill queue, after a flush if the queue is full.
    fn put(&mut self, rqe: Rqe) -> anyhow::Result<()> {
        if self.ifq.pending() == self.ifq.entries {
            self.ifq.flush_all(self.ring.fd())?;
        }
        self.ifq.push(rqe);
        Ok(())
    }

    /// Gives one buffer back, whose data must be unchanged. Returns the entry.
    fn return_buffer(&mut self, index: usize) -> anyhow::Result<Rqe> {
        let (cqe, bytes) = self.held.swap_remove(index);
        ensure!(
            self.ifq.data(&cqe)? == bytes,
            "a buffer changed while it was in use"
        );
        // The length does not count, nor does the offset within the buffer.
        let rqe = Rqe {
            off: cqe.offset()? + self.rng.u64(..PAGE_SIZE as u64),
            len: self.rng.u32(..),
            pad: 0,
        };
        self.put(rqe)?;
        Ok(rqe)
    }

    fn give_back_any(&mut self) -> anyhow::Result<()> {
        if !self.held.is_empty() {
            let index = self.rng.usize(..self.held.len());
            self.return_buffer(index)?;
        }
        Ok(())
    }

    fn give_back_all(&mut self) -> anyhow::Result<()> {
        while let Some(last) = self.held.len().checked_sub(1) {
            self.return_buffer(last)?;
        }
        self.ifq.flush_all(self.ring.fd())
    }

    /// Gives some buffers back among entries that must have no effect. The kernel
    /// consumes all these before it hands out another buffer.
    fn attack(&mut self) -> anyhow::Result<()> {
        let mut returned = Vec::new();
        for _ in 0..self.rng.usize(..12) {
            match self.rng.u32(..4) {
                0 if !self.held.is_empty() => {
                    let index = self.rng.usize(..self.held.len());
                    returned.push(self.return_buffer(index)?);
                }
                1 => {
                    let double = match self.rng.choice(&returned) {
                        Some(&double) => double,
                        None => self.free()?,
                    };
                    self.put(double)?;
                }
                2 => {
                    let free = self.free()?;
                    self.put(free)?;
                }
                _ => {
                    let garbage = self.garbage()?;
                    self.put(garbage)?;
                }
            }
        }
        self.ifq.flush_all(self.ring.fd())
    }

    /// Builds an entry for a buffer that is free, or an invalid one if none is.
    fn free(&mut self) -> anyhow::Result<Rqe> {
        let mut free: Vec<u64> = (0..PAGES).map(|page| (page * PAGE_SIZE) as u64).collect();
        for (cqe, _) in &self.held {
            let offset = cqe.offset()?;
            free.retain(|&other| other != offset);
        }
        match self.rng.choice(&free) {
            Some(&off) => Ok(Rqe {
                off,
                ..Default::default()
            }),
            None => self.garbage(),
        }
    }

    /// Builds an entry that is not valid, but may look like one for a buffer in use.
    fn garbage(&mut self) -> anyhow::Result<Rqe> {
        let held = match self.rng.choice(&self.held) {
            Some((cqe, _)) => cqe.offset()?,
            None => 0,
        };
        let mut rqe = Rqe {
            off: held,
            ..Default::default()
        };
        match self.rng.u32(..5) {
            0 => rqe.pad = self.rng.u32(1..),
            1 => rqe.off |= self.rng.u64(1..1 << 16) << AREA_SHIFT,
            2 => rqe.off = self.rng.u64(PAGES as u64..1 << 32) * PAGE_SIZE as u64,
            3 => rqe.off = u64::MAX,
            _ => rqe.off = (PAGES * PAGE_SIZE) as u64,
        }
        Ok(rqe)
    }
}

/// Checks that twice what the area holds is received through smaller refill queues.
fn twice_the_area_can_be_received() -> TestResult {
    const LEN: usize = 2 * PAGES * PAGE_SIZE;
    for entries in [1, 2, 4, 16] {
        Transfer::run(entries, LEN, Returns::Eager)?;
        let requests = Transfer::run(entries, LEN, Returns::Lazy)?;
        ensure!(requests >= 2, "{requests} request took it all");
    }
    Ok(Outcome::Passed)
}

/// The number of entries in the refill queue of a large transfer.
const ENTRIES: u32 = 8;
/// The number of bytes of a large transfer.
const LARGE: usize = 64 << 20;

/// Checks that 64 MiB arrive intact when each buffer is returned at once.
fn large_transfer_with_buffers_returned_at_once() -> TestResult {
    Transfer::run(ENTRIES, LARGE, Returns::Eager)?;
    Ok(Outcome::Passed)
}

/// Checks that 64 MiB arrive intact when buffers are returned once the area is used up.
fn large_transfer_with_buffers_returned_when_used_up() -> TestResult {
    let requests = Transfer::run(ENTRIES, LARGE, Returns::Lazy)?;
    // Each request takes no more than the area holds.
    let least = LARGE / (PAGES * PAGE_SIZE);
    ensure!(requests >= least, "{requests} requests took it all");
    Ok(Outcome::Passed)
}

/// Checks that 64 MiB arrive intact when buffers are returned in random order.
fn large_transfer_with_buffers_returned_at_random() -> TestResult {
    Transfer::run(ENTRIES, LARGE, Returns::Random)?;
    Ok(Outcome::Passed)
}

/// Checks that 64 MiB arrive intact when buffers are returned among invalid and
/// repeated entries.
fn large_transfer_with_buffers_returned_among_bad_entries() -> TestResult {
    Transfer::run(ENTRIES, LARGE, Returns::Adversarial)?;
    Ok(Outcome::Passed)
}

/// Checks that up to a GiB, in a soak, arrives intact through a small area, with
/// buffers returned in each of the four ways.
fn very_large_transfer_with_buffers_returned_in_every_way() -> TestResult {
    // Each way gets a quarter of it. An eighth of a GiB takes 5 s in an emulator.
    let each = match (is_long(), kernel::is_debug()) {
        (true, false) => 256 << 20,
        (false, false) => 32 << 20,
        (true, true) => 32 << 20,
        (false, true) => 8 << 20,
    };
    println!("{NOTE}seed {}, {} MiB", seed(), (4 * each) >> 20);
    for returns in [
        Returns::Eager,
        Returns::Lazy,
        Returns::Random,
        Returns::Adversarial,
    ] {
        let start = std::time::Instant::now();
        let requests =
            Transfer::run(ENTRIES / 2, each, returns).with_context(|| format!("{returns:?}"))?;
        let seconds = start.elapsed().as_secs_f32();
        println!("{NOTE}{returns:?}: {requests} requests, {seconds:.1} s");
    }
    Ok(Outcome::Passed)
}
