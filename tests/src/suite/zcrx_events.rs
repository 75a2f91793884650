// SPDX-License-Identifier: GPL-2.0
//! D9: events that report copying, and statistics about it.

use std::fs;

use anyhow::{Context, ensure};

use super::zcrx_receive::restore;
use super::zcrx_sharing::{export_of, import_into};
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, expect_result, has_option, zcrx_implementation};
use crate::register::{self, PAGE_SIZE};
use crate::ring::IORING_SETUP_R_DISABLED;
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{WideCqe, WideRing, ZCRX_SETUP};
use crate::zcrx::{
    Ctrl, EventDesc, Ifq, RQES, Registration, Stats, ZCRX_CTRL_ARM_EVENT, ZCRX_EVENT_ALLOC_FAIL,
    ZCRX_EVENT_COPY, ZCRX_EVENT_DESC_FLAG_STATS, control, memory,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::events" {
        ZV22 copy_event_fires_once_each_time_it_is_armed;
        ZV22disabled event_of_a_disabled_ring_is_dropped;
        ZV22freed events_leave_no_request_behind;
        ZV23 statistics_count_copied_completions;
        ZV24 statistics_go_on_from_overwritten_values;
    }
};

/// The `user_data` of the events.
pub const EVENT: u64 = 0xe7e27;

/// Registers a queue of 64 buffers that reports the events in `type_mask` and keeps
/// statistics. Returns the queue, and the offset of the statistics in its region.
pub fn with_events(ring: &WideRing, type_mask: u32) -> anyhow::Result<(Ifq, usize)> {
    const ENTRIES: u32 = 64;
    let stats = RQES + 16 * ENTRIES as usize;
    let area = memory(64)?;
    let mut registration = Registration::new(ENTRIES, &area);
    registration.event = EventDesc {
        user_data: EVENT,
        type_mask,
        flags: ZCRX_EVENT_DESC_FLAG_STATS,
        stats_offset: stats as u64,
        ..Default::default()
    };
    registration.with_event = true;
    expect_result("registering zcrx", registration.register(ring.fd()), 0)?;
    Ok((Ifq::attach(ring.fd(), registration, area)?, stats))
}

/// Arms an event. Returns the result.
pub fn arm(ring: &WideRing, ifq: &Ifq, event: u32) -> i32 {
    let mut ctrl = Ctrl {
        zcrx_id: ifq.id,
        op: ZCRX_CTRL_ARM_EVENT,
        ..Default::default()
    };
    ctrl.union[0] = event.into();
    control(ring.fd(), &mut ctrl)
}

/// Receives all that was sent. Returns the number of completions, and the events
/// between them.
fn receive(
    ring: &mut WideRing,
    ifq: &Ifq,
    stream: &mut Stream,
) -> anyhow::Result<(u64, Vec<WideCqe>)> {
    let (mut completions, mut events) = (0, Vec::new());
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        if cqe.user_data == EVENT {
            events.push(cqe);
            continue;
        }
        let offset = stream.take(ifq, &cqe)?;
        ifq.return_buffer(offset);
        ifq.flush_all(ring.fd())?;
        completions += 1;
    }
    ring.submit()?;
    while let Some(cqe) = ring.try_cqe() {
        // A request for an exact number of bytes ends with this.
        if cqe != ended(stream.user_data, 0) {
            events.push(cqe);
        }
    }
    Ok((completions, events))
}

/// Returns the number of requests that the kernel has allocated.
fn requests() -> anyhow::Result<usize> {
    let path = "/sys/kernel/slab/io_kiocb/objects";
    let text = fs::read_to_string(path).context(path)?;
    let count = text.split_whitespace().next().unwrap_or_default();
    count.parse().with_context(|| format!("{path}: {text}"))
}

/// Checks that the requests by which events are posted are freed.
///
/// With KASAN, which keeps freed memory for a while, the test is skipped.
fn events_leave_no_request_behind() -> TestResult {
    const EVENTS: usize = 1000;
    // Each CPU keeps some free requests, which count as allocated.
    const KEPT: usize = EVENTS / 2;
    if has_option("CONFIG_KASAN") {
        return Ok(Outcome::Skipped("KASAN keeps what was freed".to_string()));
    }
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
    let (ifq, _) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
    let mut stream = Stream::new()?;
    ring.push(stream.recv(&ifq, 0))?;
    let before = requests()?;
    for _ in 0..EVENTS {
        stream.send(1)?;
        let (_, events) = receive(&mut ring, &ifq, &mut stream)?;
        expect_eq("events", events.len(), 1)?;
        let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
        expect_result("arming", got, 0)?;
    }
    let after = requests()?;
    ensure!(after < before + KEPT, "{before} requests, then {after}");
    Ok(Outcome::Passed)
}

/// Checks that ZCRX_EVENT_COPY fires once each time that it is armed, also for data in
/// a packet's linear part.
///
/// In C, data in the linear part does not count.
fn copy_event_fires_once_each_time_it_is_armed() -> TestResult {
    let event = ended(EVENT, ZCRX_EVENT_COPY as i32);
    let refused = -libc::EINVAL;
    for both in [false, true] {
        let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
        let mask = 1 << ZCRX_EVENT_COPY | u32::from(both) << ZCRX_EVENT_ALLOC_FAIL;
        let (ifq, _) = with_events(&ring, mask)?;
        let mut stream = Stream::new()?;
        ring.push(stream.recv(&ifq, 0))?;
        let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
        expect_result("armed before it fired", got, refused)?;
        for round in 0..3 {
            stream.send(20_000)?;
            let (_, events) = receive(&mut ring, &ifq, &mut stream)?;
            expect_eq("events of the first data", events, vec![event])?;
            for len in [1, 20_000] {
                stream.send(len)?;
                let (_, events) = receive(&mut ring, &ifq, &mut stream)?;
                expect_eq("events until it is armed", events, vec![])?;
            }
            let what = format!("arming after round {round}");
            expect_result(&what, arm(&ring, &ifq, ZCRX_EVENT_COPY), 0)?;
            let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
            expect_result("arming twice", got, refused)?;
            // An event reports what comes after it was armed.
            ring.submit()?;
            expect_eq("events without data", ring.try_cqe(), None)?;
        }
    }
    // Without a device no allocation for it can fail, not even when all buffers are
    // used up.
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
    let (ifq, _) = with_events(&ring, 1 << ZCRX_EVENT_ALLOC_FAIL)?;
    expect_free(&mut ring, &ifq, 64)?;
    ring.submit()?;
    expect_eq("events of the area", ring.try_cqe(), None)?;
    let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
    expect_result("what never fired", got, refused)?;
    let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
    expect_result("what cannot fire", got, refused)?;
    linear_event()?;
    Ok(Outcome::Passed)
}

/// Checks whether the linear head of a packet counts as copied. In C only fragments do.
fn linear_event() -> anyhow::Result<()> {
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
    let (ifq, stats) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
    let mut stream = Stream::new()?;
    let event = ended(EVENT, ZCRX_EVENT_COPY as i32);
    let mut received = |parts: &[usize]| {
        restore(&mut stream, parts)?;
        ring.push(stream.recv(&ifq, stream.untaken()))?;
        let (completions, events) = receive(&mut ring, &ifq, &mut stream)?;
        if !events.is_empty() {
            let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
            expect_result("arming", got, 0)?;
        }
        let stats: Stats = ifq.memory.read(stats);
        let stats = (stats.copy_count, stats.copy_bytes);
        anyhow::Ok((completions, events, stats))
    };
    let heads = received(&[3000, 3000])?;
    // The head holds 904 bytes, and one fragment has two pages.
    const FRAGMENT: u64 = 2 * PAGE_SIZE as u64;
    let both = received(&[FRAGMENT as usize + 904])?;
    let (want_heads, want_both) = match zcrx_implementation() {
        Implementation::C => ((2, vec![], (0, 0)), (3, vec![event], (1, FRAGMENT))),
        Implementation::Rust => (
            (2, vec![event], (2, 6000)),
            (3, vec![event], (5, 6000 + FRAGMENT + 904)),
        ),
    };
    expect_eq(
        "completions, events, statistics of heads",
        heads,
        want_heads,
    )?;
    let what = "completions, events, statistics with a fragment";
    expect_eq(what, both, want_both)
}

/// Checks that an event of a disabled ring is dropped, and does not count as fired.
///
/// In C, the event is kept until the ring is enabled, counts as fired, and may make the
/// kernel follow a null pointer.
fn event_of_a_disabled_ring_is_dropped() -> TestResult {
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP | IORING_SETUP_R_DISABLED)?;
    let (ifq, _) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
    let mut other = WideRing::with(8, 256, ZCRX_SETUP)?;
    import_into(&other, &export_of(&ring, ifq.id)?, ifq.id)?;
    let mut stream = Stream::new()?;
    let event = ended(EVENT, ZCRX_EVENT_COPY as i32);

    stream.send(20_000)?;
    other.push(stream.recv(&ifq, 0))?;
    let (_, events) = receive(&mut other, &ifq, &mut stream)?;
    expect_eq("events of the other ring", events, vec![])?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    ring.submit()?;
    let (kept, armed) = match zcrx_implementation() {
        Implementation::C => (Some(event), 0),
        Implementation::Rust => (None, -libc::EINVAL),
    };
    expect_eq("the event from before", ring.try_cqe(), kept)?;
    let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
    expect_result("arming what fired before", got, armed)?;

    // From now on the ring works like any other.
    stream.send(20_000)?;
    let (_, events) = receive(&mut other, &ifq, &mut stream)?;
    expect_eq("events of the other ring", events, vec![])?;
    ring.submit()?;
    expect_eq("the event", ring.try_cqe(), Some(event))?;
    expect_eq("one event", ring.try_cqe(), None)?;
    Ok(Outcome::Passed)
}

/// Checks that the statistics count each completion with copied data, and its bytes.
///
/// In C, they count fragments of packets.
fn statistics_count_copied_completions() -> TestResult {
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
    let (ifq, stats) = with_events(&ring, 0)?;
    let mut stream = Stream::new()?;
    let mut want = Stats::default();
    let compare = |ifq: &Ifq, want| {
        let got: Stats = ifq.memory.read(stats);
        expect_eq("statistics", got, want)
    };
    compare(&ifq, want)?;
    ring.push(stream.recv(&ifq, 0))?;

    // Pieces shorter than a buffer have a completion each.
    for len in [1, 100, 1000, 2000] {
        for _ in 0..5 {
            stream.send(len)?;
            let (completions, events) = receive(&mut ring, &ifq, &mut stream)?;
            expect_eq("events that nobody asked for", events, vec![])?;
            want.copy_count += completions;
            want.copy_bytes += len as u64;
            compare(&ifq, want)?;
        }
    }
    // Fragments have eight pages each. C counts fragments, although the uapi speaks of
    // completions.
    const FRAGMENT: usize = 8 * PAGE_SIZE;
    for fragments in [1, 2, 1] {
        let mut stream = Stream::new()?;
        restore(&mut stream, &[fragments * FRAGMENT])?;
        ring.push(stream.recv(&ifq, stream.untaken()))?;
        let (completions, _) = receive(&mut ring, &ifq, &mut stream)?;
        expect_eq("completions", completions, 8 * fragments as u64)?;
        want.copy_count += match zcrx_implementation() {
            Implementation::C => fragments as u64,
            Implementation::Rust => completions,
        };
        want.copy_bytes += (fragments * FRAGMENT) as u64;
        compare(&ifq, want)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that the statistics go on, wrapping, from values that user space wrote over
/// them.
fn statistics_go_on_from_overwritten_values() -> TestResult {
    let mut ring = WideRing::with(8, 256, ZCRX_SETUP)?;
    let (ifq, stats) = with_events(&ring, 1 << ZCRX_EVENT_COPY)?;
    let mut stream = Stream::new()?;
    ring.push(stream.recv(&ifq, 0))?;
    for number in [u64::MAX, 0, 1 << 63, u64::MAX - 99, 0x0123_4567_89ab_cdef] {
        let scribbled = Stats {
            copy_count: number,
            copy_bytes: number.rotate_left(1),
        };
        ifq.memory.write(stats, scribbled);
        stream.send(1000)?;
        let (completions, _) = receive(&mut ring, &ifq, &mut stream)?;
        let added = Stats {
            copy_count: scribbled.copy_count.wrapping_add(completions),
            copy_bytes: scribbled.copy_bytes.wrapping_add(1000),
        };
        let got: Stats = ifq.memory.read(stats);
        ensure!(got == added, "{scribbled:x?} became {got:x?}");
    }
    // Nothing else depends on the statistics.
    let (_, events) = receive(&mut ring, &ifq, &mut stream)?;
    expect_eq("events", events, vec![])?;
    expect_result("arming", arm(&ring, &ifq, ZCRX_EVENT_COPY), 0)?;
    Ok(Outcome::Passed)
}
