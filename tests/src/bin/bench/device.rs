// SPDX-License-Identifier: GPL-2.0
//! Measures zero-copy receive that does not copy, over the software NIC: receiving,
//! giving buffers back, and refilling the device's page pool.

use std::io::Write;

use anyhow::ensure;
use nix::sys::socket::{setsockopt, sockopt};

use io_uring_rs_tests::kernel::{expect_eq, expect_result};
use io_uring_rs_tests::nic::Nic;
use io_uring_rs_tests::register::PAGE_SIZE;
use io_uring_rs_tests::ring::IORING_CQE_F_MORE;
use io_uring_rs_tests::stream::Stream;
use io_uring_rs_tests::wide::{WideRing, ZCRX_SETUP};
use io_uring_rs_tests::zcrx::Ifq;

use crate::{WARM_UP, measure, median, timed};

/// The MTU at which each packet has a page of payload.
const MTU: u32 = 4148;
/// The number of pages that are received at once.
const PAGES: usize = 32;
const ROUNDS: usize = 200;
/// The number of buffers, and of entries of the refill queue.
const BUFFERS: usize = 512;

/// A connection over the NIC, and a ring to receive from it.
struct Link {
    ring: WideRing,
    ifq: Ifq,
    stream: Stream,
    nic: Nic,
    /// Whether a profile counts what sends and what receives.
    profiled: (bool, bool),
}

impl Link {
    fn new(buffers: usize, profiled: (bool, bool)) -> anyhow::Result<Self> {
        let nic = Nic::new()?;
        nic.set_mtu(MTU)?;
        let ring = WideRing::with(8, BUFFERS as u32, ZCRX_SETUP)?;
        let ifq = nic.ifq(&ring, BUFFERS as u32, buffers)?;
        let stream = nic.stream(1)?;
        let len = PAGES * PAGE_SIZE;
        setsockopt(&stream.receiver, sockopt::RcvBuf, &(4 * len))?;
        setsockopt(&stream.sender, sockopt::SndBuf, &(4 * len))?;
        Ok(Link {
            ring,
            ifq,
            stream,
            nic,
            profiled,
        })
    }

    /// Sends `pages` pages and waits until they can be received. Returns the
    /// nanoseconds that sending took.
    fn send(&mut self, pages: usize) -> anyhow::Result<f64> {
        let bytes = self.stream.next(pages * PAGE_SIZE);
        let mut sent = Ok(());
        let took = measure(
            || sent = self.stream.sender.write_all(&bytes),
            self.profiled.0,
        )?;
        sent?;
        self.stream.wait_arrived()?;
        Ok(took)
    }

    /// Receives `pages` pages. Returns the nanoseconds that this took, and the offsets
    /// of the buffers.
    fn receive(&mut self, pages: usize) -> anyhow::Result<(f64, Vec<u64>)> {
        let request = self.stream.recv(&self.ifq, pages * PAGE_SIZE);
        self.ring.push(request)?;
        let mut submitted = Ok(0);
        let took = measure(|| submitted = self.ring.submit_and_wait(1), self.profiled.1)?;
        ensure!(submitted? == 1, "the request was not taken");

        let mut offsets = Vec::new();
        loop {
            let cqe = self.ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                expect_result("the end of a receive", cqe.res, 0)?;
                expect_eq("completions", offsets.len(), pages)?;
                return Ok((took, offsets));
            }
            expect_eq("bytes in a buffer", cqe.res as usize, PAGE_SIZE)?;
            offsets.push(self.stream.take(&self.ifq, &cqe)?);
        }
    }

    fn return_buffer(&self, offsets: impl IntoIterator<Item = u64>) {
        for offset in offsets {
            self.ifq.return_buffer(offset);
        }
    }

    /// Checks that nothing was copied: all payload was in the area.
    fn check(&self) -> anyhow::Result<()> {
        let counts = self.nic.counts()?;
        expect_eq("fragments in pages", counts.page_frags, 0)?;
        ensure!(counts.niov_frags > 0, "nothing came by the queue");
        Ok(())
    }
}

/// Measures the nanoseconds per 4 KiB of receiving alone, and of sending and receiving.
/// The device consumes the refill queue.
fn transfer(profiled: (bool, bool)) -> anyhow::Result<(f64, f64)> {
    let mut link = Link::new(BUFFERS, profiled)?;
    let (mut receiver, mut system) = (Vec::new(), Vec::new());
    for _ in 0..WARM_UP + ROUNDS {
        let sending = link.send(PAGES)?;
        let (receiving, offsets) = link.receive(PAGES)?;
        link.return_buffer(offsets);
        receiver.push(receiving);
        system.push(sending + receiving);
    }
    link.check()?;
    let per_page = |samples: &mut Vec<f64>| median(samples.split_off(WARM_UP)) / PAGES as f64;
    Ok((per_page(&mut receiver), per_page(&mut system)))
}

/// Measures the nanoseconds per 4 KiB received.
pub fn receiving() -> anyhow::Result<f64> {
    Ok(transfer((false, true))?.0)
}

/// Measures the nanoseconds per 4 KiB sent and received.
pub fn whole_system() -> anyhow::Result<f64> {
    Ok(transfer((true, true))?.1)
}

/// Measures the nanoseconds per buffer given back by a system call.
pub fn giving_back() -> anyhow::Result<f64> {
    let mut link = Link::new(BUFFERS, (false, false))?;
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + ROUNDS {
        link.send(PAGES)?;
        let (_, offsets) = link.receive(PAGES)?;
        link.return_buffer(offsets);
        let mut result = 0;
        samples.push(timed(|| result = link.ifq.flush(link.ring.fd()))?);
        expect_result("giving back", result, 0)?;
        expect_eq("entries left", link.ifq.pending(), 0)?;
    }
    link.check()?;
    Ok(median(samples.split_off(WARM_UP)) / PAGES as f64)
}

/// Measures the nanoseconds per buffer that the device gets from the refill queue: the
/// difference between a packet for which 33 buffers come back and one for which a
/// single buffer does, per buffer.
pub fn refilling() -> anyhow::Result<f64> {
    const RING: usize = 64;
    const MANY: usize = 33;
    // The device's ring holds all buffers at first.
    let mut link = Link::new(RING, (true, false))?;
    let mut held = Vec::new();
    let take = |link: &mut Link, held: &mut Vec<u64>, pages: usize| -> anyhow::Result<f64> {
        let took = link.send(pages)?;
        held.extend(link.receive(pages)?.1);
        Ok(took)
    };
    for _ in 0..MANY + 7 {
        take(&mut link, &mut held, 1)?;
    }
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + ROUNDS {
        let mut timed_with = |count: usize| -> anyhow::Result<f64> {
            link.return_buffer(held.drain(..count));
            let took = take(&mut link, &mut held, 1)?;
            expect_eq("entries left", link.ifq.pending(), 0)?;
            for _ in 1..count {
                take(&mut link, &mut held, 1)?;
            }
            Ok(took)
        };
        let (one, many) = (timed_with(1)?, timed_with(MANY)?);
        samples.push(many - one);
    }
    link.check()?;
    Ok(median(samples.split_off(WARM_UP)) / (MANY - 1) as f64)
}
