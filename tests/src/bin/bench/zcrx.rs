// SPDX-License-Identifier: GPL-2.0
//! Measures zero-copy receive that copies: receiving, giving buffers back, and
//! registering memory.

use std::io::Write;

use anyhow::ensure;
use nix::sys::socket::{setsockopt, sockopt};

use io_uring_rs_tests::kernel::expect_result;
use io_uring_rs_tests::register::PAGE_SIZE;
use io_uring_rs_tests::ring::IORING_CQE_F_MORE;
use io_uring_rs_tests::stream::Stream;
use io_uring_rs_tests::wide::{Mapping, WideRing, ZCRX_SETUP};
use io_uring_rs_tests::zcrx::{
    AreaReg, Ctrl, Ifq, Registration, ZCRX_CTRL_ADD_AREA, control, memory,
};

use crate::{WARM_UP, median, timed};

/// The number of pages that are received at once.
const PAGES: usize = 32;
const ROUNDS: usize = 200;
/// The number of buffers, and of entries of the refill queue: the greatest number of
/// completions, which may have less than a page each.
const BUFFERS: usize = 128;

/// The size of the memory that is registered in bytes, and the number of registrations.
const REGISTERED: usize = 64 << 20;
const REGISTRATIONS: usize = 20;

/// Measures the nanoseconds per 4 KiB received, and per buffer given back.
fn transfer() -> anyhow::Result<(f64, f64)> {
    // Every completion has room, so that the request is not deferred.
    let mut ring = WideRing::with(8, 2 * BUFFERS as u32, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), BUFFERS as u32, BUFFERS)?;
    let mut stream = Stream::new()?;
    let len = PAGES * PAGE_SIZE;
    setsockopt(&stream.receiver, sockopt::RcvBuf, &(4 * len))?;
    setsockopt(&stream.sender, sockopt::SndBuf, &(4 * len))?;

    let (mut received, mut returned) = (Vec::new(), Vec::new());
    for _ in 0..WARM_UP + ROUNDS {
        stream.send(len)?;
        ring.push(stream.recv(&ifq, len))?;
        let mut submitted = Ok(0);
        received.push(timed(|| submitted = ring.submit_and_wait(1))?);
        ensure!(submitted? == 1, "the request was not taken");

        let mut buffers = 0;
        let last = loop {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                break cqe;
            }
            ifq.return_buffer(stream.take(&ifq, &cqe)?);
            buffers += 1;
        };
        expect_result("the end of a receive", last.res, 0)?;
        ensure!(stream.untaken() == 0, "{} bytes are left", stream.untaken());

        let mut result = 0;
        let took = timed(|| result = ifq.flush(ring.fd()))?;
        expect_result("giving back", result, 0)?;
        ensure!(ifq.pending() == 0, "{} entries are left", ifq.pending());
        returned.push(took / f64::from(buffers));
    }
    let received = median(received.split_off(WARM_UP)) / PAGES as f64;
    Ok((received, median(returned.split_off(WARM_UP))))
}

/// Measures the nanoseconds per 4 KiB received.
pub fn receiving() -> anyhow::Result<f64> {
    Ok(transfer()?.0)
}

/// Measures the nanoseconds per buffer given back.
pub fn giving_back() -> anyhow::Result<f64> {
    Ok(transfer()?.1)
}

/// Measures the nanoseconds of registering a queue with a large area.
pub fn registering() -> anyhow::Result<f64> {
    let area: Mapping = memory(REGISTERED / PAGE_SIZE)?;
    for page in 0..REGISTERED / PAGE_SIZE {
        area.write(page * PAGE_SIZE, 1u8);
    }
    let mut samples = Vec::new();
    for _ in 0..REGISTRATIONS {
        let ring = WideRing::new(8)?;
        let mut registration = Registration::new(BUFFERS as u32, &area);
        let (fd, mut result) = (ring.fd(), 0);
        samples.push(timed(|| result = registration.register(fd))?);
        expect_result("registering", result, 0)?;
    }
    Ok(median(samples))
}

/// Measures a request that finds no free buffer in a queue with `areas` areas of a page.
fn exhausted(areas: usize) -> anyhow::Result<f64> {
    let mut ring = WideRing::with(8, 2 * BUFFERS as u32, ZCRX_SETUP)?;
    let ifq = Ifq::new(ring.fd(), BUFFERS as u32, 1)?;
    let more: Mapping = memory(areas)?;
    for page in 1..areas {
        let area = AreaReg {
            addr: more.address() as u64 + (page * PAGE_SIZE) as u64,
            len: PAGE_SIZE as u64,
            ..Default::default()
        };
        let mut ctrl = Ctrl {
            zcrx_id: ifq.id,
            op: ZCRX_CTRL_ADD_AREA,
            ..Default::default()
        };
        ctrl.union[0] = &raw const area as u64;
        expect_result("adding an area", control(ring.fd(), &mut ctrl), 0)?;
    }
    let stream = Stream::new()?;
    let page = [0; PAGE_SIZE];
    let receive = |ring: &mut WideRing, stream: &Stream| -> anyhow::Result<(f64, i32, usize)> {
        ring.push(stream.recv(&ifq, PAGE_SIZE))?;
        let mut submitted = Ok(0);
        let took = timed(|| submitted = ring.submit_and_wait(1))?;
        ensure!(submitted? == 1, "the request was not taken");
        let mut received = 0;
        loop {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                return Ok((took, cqe.res, received));
            }
            received += 1;
        }
    };
    let mut used = 0;
    while used < areas {
        (&stream.sender).write_all(&page)?;
        used += receive(&mut ring, &stream)?.2;
    }
    (&stream.sender).write_all(&page)?;
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + ROUNDS {
        let (took, result, received) = receive(&mut ring, &stream)?;
        expect_result("receiving without a buffer", result, -libc::ENOMEM)?;
        ensure!(received == 0, "{received} buffers were free");
        samples.push(took);
    }
    Ok(median(samples.split_off(WARM_UP)))
}

/// Measures a request that finds no free buffer in a queue with one area.
pub fn exhausted_area() -> anyhow::Result<f64> {
    exhausted(1)
}

/// Measures a request that finds no free buffer in a queue with as many areas as there can
/// be.
pub fn exhausted_areas() -> anyhow::Result<f64> {
    exhausted(1024)
}
