// SPDX-License-Identifier: GPL-2.0
//! D11: requests that run out of memory before a filter sees them or after they are
//! done, and filters in a cgroup with little memory.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{bail, ensure};

use super::fault_points::{FailNth, Points, prepare};
use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::bpf;
use crate::kernel::{
    self, BPF_MAXINSNS, CHAIN_BOUND, CHAIN_OVERHEAD, IORING_OP_LAST, Implementation, describe,
    expect_eq, expect_result, implementation,
};
use crate::register::{self, TASK};
use crate::ring::{IORING_ENTER_GETEVENTS, Ring, enter};
use crate::sandbox::{self, MemoryGroup, Shared};
use crate::sqe::{Sqe, op};
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{WideRing, ZCRX_SETUP};
use crate::zcrx::Ifq;

pub const TESTS: &[Test] = tests! {
    "zcrx::fault" {
        FI19 lost_completion_is_counted_and_loses_no_data (30 s);
    }
    "filters::fault" {
        FI20 request_without_memory_fails_before_its_filter (30 s);
        FI22 filters_of_a_small_cgroup_are_bounded (120 s);
        FI23 filters_are_charged_to_their_task (60 s);
    }
};

/// More fault points than any of these calls has.
const MOST: usize = 200;

/// Checks that a completion that neither fits nor can be stored is counted as lost, and
/// its receive consumes no data and no buffer.
fn lost_completion_is_counted_and_loses_no_data() -> TestResult {
    const BUFFERS: usize = 4;
    const LEN: usize = 100;
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let fail = FailNth::open()?;
    let mut dropped = 0;
    for n in 1..MOST {
        // The completion queue is full before data comes.
        let mut ring = WideRing::with(2, 2, ZCRX_SETUP)?;
        let ifq = Ifq::new(ring.fd(), 8, BUFFERS)?;
        let mut stream = Stream::new()?;
        stream.send(LEN)?;
        for user_data in [71, 72] {
            ring.push(Sqe::nop().user_data(user_data))?;
        }
        expect_eq("NOPs", ring.submit()?, 2)?;
        ring.push(stream.recv(&ifq, 0))?;
        let fd = ring.fd();
        let (got, hit) = fail.during(n, || enter(fd, 1, 0, IORING_ENTER_GETEVENTS))?;
        let lost = ring.overflow();
        match (got, lost) {
            (1, 0) => {}
            // The kernel counts a completion that it drops, and reports that once.
            (1, 1) if hit => dropped += 1,
            // The kernel could not even allocate the request.
            (got, 0) if hit && got == -libc::EAGAIN => {
                expect_result("again", enter(fd, 1, 0, IORING_ENTER_GETEVENTS), 1)?;
            }
            other => bail!("fault point {n}: {other:?}"),
        }
        for user_data in [71, 72] {
            expect_eq("a NOP", ring.try_cqe(), Some(ended(user_data, 0)))?;
        }
        if lost == 1 {
            let got = enter(fd, 0, 1, IORING_ENTER_GETEVENTS);
            expect_result("waiting for what was dropped", got, -libc::EBADR)?;
            ring.submit()?;
            expect_eq("completions", ring.try_cqe(), None)?;
        } else {
            let end = ended(stream.user_data, -libc::ENOSPC);
            expect_eq("the end", ring.cqe()?, end)?;
        }
        // The failed receive consumed no data and no buffer.
        ring.push(stream.recv(&ifq, LEN))?;
        stream.take_all(&mut ring, &ifq)?;
        expect_eq("the end", ring.cqe()?, ended(stream.user_data, 0))?;
        expect_eq("dropped in all", ring.overflow(), lost)?;
        if !hit {
            println!("{NOTE}{} fault points", n - 1);
            expect_eq("completions that were dropped", dropped, 1)?;
            let mut roomy = WideRing::with(8, 64, ZCRX_SETUP)?;
            let ifq = Ifq::new(roomy.fd(), 8, BUFFERS)?;
            expect_free(&mut roomy, &ifq, BUFFERS)?;
            return Ok(Outcome::Passed);
        }
    }
    bail!("no end after {MOST} fault points")
}

/// Checks that a request for which memory is short gives ENOMEM before its filter runs,
/// and the next one is filtered.
fn request_without_memory_fails_before_its_filter() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let fail = FailNth::open()?;
    let listener = UdpSocket::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0))?;
    // An address of the family that the filter denies.
    let mut address = [0u8; 16];
    address[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    let (mut without, mut unread) = (0, 0);
    for n in 1..MOST {
        let mut ring = Ring::new(2)?;
        ring.must_filter(op::CONNECT, &bpf::deny_if(bpf::PDU, libc::AF_INET as u32))?;
        let sqe = Sqe::connect(listener.as_raw_fd(), &address, 16).user_data(5);
        ring.push(sqe)?;
        let fd = ring.fd();
        let (got, hit) = fail.during(n, || enter(fd, 1, 0, 0))?;
        if hit && got == -libc::EAGAIN {
            expect_result("again", enter(fd, 1, 0, 0), 1)?;
        } else {
            expect_result("submitted", got, 1)?;
        }
        let cqe = ring.cqe()?;
        expect_eq("user_data and flags", (cqe.user_data, cqe.flags), (5, 0))?;
        match cqe.res {
            res if res == -libc::EACCES => {}
            // The request fails before the filter, which would have denied it, is
            // asked.
            res if res == -libc::ENOMEM && hit => without += 1,
            res if res == -libc::EFAULT && hit => unread += 1,
            res => bail!("fault point {n}: {}", describe(res)),
        }
        ring.expect("the next one", sqe, -libc::EACCES)?;
        if !hit {
            println!("{NOTE}{} fault points", n - 1);
            expect_eq("without memory, unread", (without, unread), (1, 1))?;
            return Ok(Outcome::Passed);
        }
    }
    bail!("no end after {MOST} fault points")
}

/// Checks that the filters that a task can stack fit into a cgroup of 100 MiB.
///
/// In C, only memory bounds them, and the task is killed.
fn filters_of_a_small_cgroup_are_bounded() -> TestResult {
    const LIMIT: u64 = 100 << 20;
    const OF_EACH: u32 = (CHAIN_BOUND / (BPF_MAXINSNS + CHAIN_OVERHEAD)) as u32;
    let group = MemoryGroup::new()?;
    group.limit(LIMIT)?;
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    let registered = &shared[0];
    let child = sandbox::spawn(|| {
        group.enter()?;
        sandbox::sandboxed()?;
        let program = bpf::long(BPF_MAXINSNS, 1);
        for opcode in 0..IORING_OP_LAST as u8 {
            loop {
                match register::filter(TASK, opcode, &program) {
                    0 => registered.fetch_add(1, SeqCst),
                    got => {
                        expect_result("registering", got, -libc::ENOMEM)?;
                        break;
                    }
                };
            }
        }
        Ok(())
    })?;
    match implementation() {
        // Only memory bounds the number of filters.
        Implementation::C => sandbox::killed(child)?,
        Implementation::Rust => sandbox::join(child)?,
    }
    let (count, kills) = (registered.load(SeqCst), group.event("oom_kill")?);
    println!(
        "{NOTE}{count} filters, {kills} killed, {} bytes",
        group.peak()?
    );
    match implementation() {
        Implementation::C => {
            expect_eq("processes that were killed", kills, 1)?;
            ensure!((1000..5000).contains(&count), "{count} filters");
        }
        Implementation::Rust => {
            expect_eq("filters", count, OF_EACH * IORING_OP_LAST)?;
            for event in ["max", "oom", "oom_kill"] {
                expect_eq(event, group.event(event)?, 0)?;
            }
        }
    }
    group.remove()?;
    Ok(Outcome::Passed)
}

/// Checks that the memory of filters, of rings as well, is charged to the task that
/// registers them.
fn filters_are_charged_to_their_task() -> TestResult {
    const RINGS: u64 = 500;
    const LONG: u8 = 60;
    // A set has more than 2 KiB. C has a page of code for each filter instead.
    const OF_SET: u64 = 2 << 10;
    // There are 32 KiB of instructions before their translation, which C does not keep,
    // and 36 KiB after it.
    let of_long: u64 = match implementation() {
        Implementation::Rust => 56 << 10,
        Implementation::C => 24 << 10,
    };
    let group = MemoryGroup::new()?;
    sandbox::in_child(|| {
        group.enter()?;
        let mut rings = Vec::new();
        for _ in 0..RINGS {
            rings.push(Ring::new(2)?);
        }
        let before = group.charged()?;
        for ring in &rings {
            ring.must_filter(op::NOP, &bpf::deny())?;
        }
        let sets = group.charged()?.saturating_sub(before);
        println!("{NOTE}{} KiB for {RINGS} sets", sets >> 10);
        ensure!(sets > RINGS * OF_SET, "too little for the sets");

        let program = bpf::long(BPF_MAXINSNS, 1);
        let before = group.charged()?;
        for opcode in 0..LONG {
            let got = register::filter(TASK, opcode, &program);
            expect_result("a long filter", got, 0)?;
        }
        let long = group.charged()?.saturating_sub(before);
        println!("{NOTE}{} KiB for {LONG} long filters", long >> 10);
        ensure!(long > u64::from(LONG) * of_long, "too little for long ones");
        Ok(())
    })?;
    group.falls_to(1 << 20, kernel::limit(10))?;
    group.remove()?;
    Ok(Outcome::Passed)
}
