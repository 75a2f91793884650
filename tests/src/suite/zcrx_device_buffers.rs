// SPDX-License-Identifier: GPL-2.0
//! D10: single buffers of a network device's queue: used up, given back in both ways
//! and over a restart of the queue, shared by fragments, mixed with pages, and in areas
//! that were added.

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;

use anyhow::{Context, ensure};

use super::zcrx_device::{BUFFERS, ENTRIES};
use super::zcrx_device_end::add_area;
use super::zcrx_events::{EVENT, arm};
use super::zcrx_receive::roomy_ring;
use super::zcrx_returns::give_back_only;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::netdev;
use crate::nic::{self, Nic};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::sqe::Sqe;
use crate::stream::{Stream, ended};
use crate::wide::{WideRing, ZCRX_SETUP};
use crate::zcrx::{
    AREA_SHIFT, EventDesc, Ifq, RQES, Stats, ZCRX_EVENT_ALLOC_FAIL, ZCRX_EVENT_DESC_FLAG_STATS,
    memory, pattern,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::buffers" {
        ZN12 event_fires_when_no_buffer_is_left;
        ZN13 buffers_return_to_their_pool_after_a_restart;
        ZN14 napi_and_flush_consume_the_refill_queue (60 s);
        ZN15 data_in_pages_is_copied;
        ZN16 buffer_with_several_fragments_needs_all_entries;
        ZN20 area_can_be_added_under_load (30 s);
        ZN41 copy_finds_buffers_without_a_flush (30 s);
        ZN49 full_completion_queue_loses_no_data;
        ZN51 end_behind_many_packets_is_reported;
        ZV27device pool_passes_over_invalid_entries_in_bounded_steps;
    }
};

/// Takes completions until all data that was sent has been received. Returns the
/// offsets of the buffers.
fn take_all(ring: &mut WideRing, ifq: &Ifq, stream: &mut Stream) -> anyhow::Result<Vec<u64>> {
    let mut offsets = Vec::new();
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        offsets.push(stream.take(ifq, &cqe)?);
    }
    Ok(offsets)
}

/// Checks that ZCRX_EVENT_ALLOC_FAIL fires once each time that it is armed when the
/// device finds no buffer.
fn event_fires_when_no_buffer_is_left() -> TestResult {
    const FEW: usize = 128;
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq_with_event(&ring, ENTRIES, FEW, EVENT)?;
    let event = ended(EVENT, ZCRX_EVENT_ALLOC_FAIL as i32);
    let refused = -libc::EINVAL;
    let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
    expect_result("armed before it fired", got, refused)?;

    let mut offsets: Vec<u64> = Vec::new();
    for round in 0..3 {
        let mut stream = nic.stream(round)?;
        ring.push(stream.recv(&ifq, 0))?;
        let mut events = 0;
        // Each packet takes one buffer. The event fires when the last buffer is in the
        // ring and the device asks for another.
        while offsets.len() < FEW {
            if stream.untaken() == 0 {
                stream.send_some(100)?;
            }
            let cqe = ring.cqe()?;
            if cqe.user_data == EVENT {
                expect_eq("the event", cqe, event)?;
                events += 1;
                continue;
            }
            offsets.push(stream.take(&ifq, &cqe)?);
        }
        ring.submit()?;
        while let Some(cqe) = ring.try_cqe() {
            expect_eq("the event", cqe, event)?;
            events += 1;
        }
        expect_eq("events", events, 1)?;
        // Further failures are silent until the event is armed again.
        let before = nic.counts()?;
        stream.send_some(100)?;
        nic::wait_until("a packet is dropped", || {
            Ok(nic.counts()?.no_buffer > before.no_buffer)
        })?;
        ring.submit()?;
        expect_eq("once more", ring.try_cqe(), None)?;

        let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
        expect_result("armed", got, 0)?;
        let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
        expect_result("armed twice", got, refused)?;
        // TCP sends the packet again, which again finds no buffer.
        expect_eq("armed again", ring.cqe()?, event)?;
        let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
        expect_result("armed for the next round", got, 0)?;

        for offset in offsets.drain(..) {
            ifq.return_buffer(offset);
        }
        // The packet finds a buffer now, unless NAPI came first and the event fires
        // again.
        while stream.untaken() != 0 {
            let cqe = ring.cqe()?;
            if cqe.user_data == EVENT {
                let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
                expect_result("armed", got, 0)?;
                continue;
            }
            offsets.push(stream.take(&ifq, &cqe)?);
        }
        drop(stream);
        expect_eq("the end of the connection", ring.cqe().is_ok(), true)?;
        for offset in offsets.drain(..) {
            ifq.return_buffer(offset);
        }
        ifq.flush_all(ring.fd())?;
    }
    Ok(Outcome::Passed)
}

/// Checks that buffers that are out when the queue restarts return to the page pool
/// that they came from, which then goes.
fn buffers_return_to_their_pool_after_a_restart() -> TestResult {
    const HELD: usize = 12;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, 2 * ENTRIES, 2 * BUFFERS)?;
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    let mut held: Vec<Vec<u64>> = Vec::new();
    for size in [32, 8, 128] {
        stream.send(HELD * PAGE_SIZE)?;
        held.push(take_all(&mut ring, &ifq, &mut stream)?);
        nic.set_ring(size)?;
        nic.provided()?.context("the provider is gone")?;
        // The old pool waits for the buffers that are out, and a new pool has taken its
        // place.
        nic::wait_until("only what is out is missing", || {
            nic::receive_on_all_cpus()?;
            let pools = netdev::provided_pools()?;
            let waiting = pools.iter().filter(|pool| pool.detached);
            let missing: u64 = waiting.map(|pool| pool.inflight).sum();
            let out: usize = held.iter().map(Vec::len).sum();
            Ok(pools.len() == held.len() + 1 && missing == out as u64)
        })?;
    }
    // New packets use the rest of the area.
    nic.zero_copy(&mut ring, &ifq, 200 * PAGE_SIZE)?;

    // Buffers that are given back, in either way and in any order, return to the pools
    // that they came from.
    for (number, offsets) in held.into_iter().enumerate().rev() {
        for offset in offsets {
            ifq.return_buffer(offset);
        }
        if number == 1 {
            ifq.flush_all(ring.fd())?;
        } else {
            nic.transfer(&mut ring, &ifq, 600 * PAGE_SIZE)?;
        }
    }
    ifq.flush_all(ring.fd())?;
    nic::wait_until("pools that waited are gone", || {
        nic::receive_on_all_cpus()?;
        let pools = netdev::provided_pools()?;
        Ok(pools.len() == 1 && !pools[0].detached)
    })?;
    stream.end(&mut ring)?;
    nic.expect_conserved(&mut ring, &ifq, 2 * BUFFERS)?;
    Ok(Outcome::Passed)
}

/// Checks that many times what the area holds is received, whether NAPI or a flush
/// consumes the refill queue.
fn napi_and_flush_consume_the_refill_queue() -> TestResult {
    const FEW: usize = 160;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, FEW)?;
    let _room = nic::limit_sockets(FEW / 4)?;
    // This is many times as much data as there is room for, without a flush.
    for _ in 0..4 {
        let head = ifq.head();
        let counts = nic.transfer(&mut ring, &ifq, 8 * FEW * PAGE_SIZE)?;
        expect_eq("pages", counts.page_frags, 0)?;
        let read = ifq.head().wrapping_sub(head);
        ensure!(read as usize > 4 * FEW, "NAPI has read {read} entries");
    }
    // The same amount again, with a flush for each buffer.
    let mut stream = nic.stream(1)?;
    let thread = stream.send_later(8 * FEW * PAGE_SIZE)?;
    ring.push(stream.recv(&ifq, 0))?;
    let last = stream.take_until_end(&mut ring, &ifq)?;
    expect_eq("the end", last, ended(1, 0))?;
    expect_eq("bytes left", stream.untaken(), 0)?;
    thread.join().ok().context("the sender panicked")??;
    expect_eq("entries that are not read", ifq.pending(), 0)?;
    drop(stream);
    nic.expect_conserved(&mut ring, &ifq, FEW)?;
    Ok(Outcome::Passed)
}

/// Checks that data that the device put into pages is copied and counted, and other
/// data is not.
fn data_in_pages_is_copied() -> TestResult {
    const LEN: usize = 300 * PAGE_SIZE;
    let nic = Nic::new()?;
    nic.ethtool("-K zsim0 rx-gro-hw on")?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let area = memory(2 * BUFFERS)?;
    let mut registration = nic.registration(2 * ENTRIES, &area);
    let at = RQES + 16 * 2 * ENTRIES as usize;
    registration.event = EventDesc {
        flags: ZCRX_EVENT_DESC_FLAG_STATS,
        stats_offset: at as u64,
        ..Default::default()
    };
    registration.with_event = true;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    let ifq = Ifq::attach(ring.fd(), registration, area)?;
    let copied = || -> Stats { ifq.refill.memory.read(at) };
    for lists in [0, 1] {
        nic.set("frag_list", lists)?;
        // Some packets are in pages, then all of them, then none.
        for pages in [10, -1, 0] {
            let what = format!("lists {lists}, pages {pages}");
            nic.set("page_frags", pages)?;
            let before = copied();
            let counts = nic.transfer_without_timeouts("10.9.0.1", &mut ring, &ifq, LEN)?;
            let (count, bytes) = (
                copied().copy_count - before.copy_count,
                copied().copy_bytes - before.copy_bytes,
            );
            if pages == -1 {
                expect_eq(&what, counts.niov_frags, 0)?;
                expect_eq(&what, bytes, LEN as u64)?;
            } else if pages == 0 {
                expect_eq(&what, (counts.page_frags, count, bytes), (0, 0, 0))?;
            } else {
                ensure!(counts.page_frags > 0 && counts.niov_frags > 0, "{what}");
            }
            expect_eq(&what, (counts.no_buffer, counts.retransmissions), (0, 0))?;
            let delivered = counts.niov_frags + counts.page_frags;
            expect_eq(&what, counts.completions, delivered)?;
            expect_eq(&what, count, counts.page_frags)?;
            // Buffers with copied data come back only by a flush.
            ifq.flush_all(ring.fd())?;
        }
    }
    nic.expect_conserved(&mut ring, &ifq, 2 * BUFFERS)?;
    Ok(Outcome::Passed)
}

/// Receives four fragments of one buffer. Checks their offsets and returns that of the
/// buffer.
fn four(ring: &mut WideRing, ifq: &Ifq, stream: &mut Stream) -> anyhow::Result<u64> {
    stream.send(PAGE_SIZE)?;
    let offsets = take_all(ring, ifq, stream)?;
    let first = *offsets.first().context("no completion")?;
    let want: Vec<_> = (0..4).map(|part| first + part * 1024).collect();
    expect_eq("parts of a buffer", offsets, want)?;
    expect_eq("the buffer's beginning", first % PAGE_SIZE as u64, 0)?;
    Ok(first)
}

/// Sends packets until NAPI has consumed the refill queue. Adds their buffers to
/// `held`, to be given back later.
fn until_read(
    ring: &mut WideRing,
    ifq: &Ifq,
    stream: &mut Stream,
    held: &mut Vec<u64>,
) -> anyhow::Result<()> {
    for _ in 0..1000 {
        if ifq.pending() == 0 {
            return Ok(());
        }
        held.push(four(ring, ifq, stream)?);
    }
    anyhow::bail!("NAPI does not read the refill queue")
}

/// Checks that a buffer with four fragments is free after as many entries, even among
/// one too many.
///
/// In C, one entry too many in a run keeps the buffer out.
fn buffer_with_several_fragments_needs_all_entries() -> TestResult {
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    nic.set("pack", 1024)?;
    // The number of references that a run of five entries drops of a buffer with four.
    let over = match zcrx_implementation() {
        Implementation::C => 0,
        Implementation::Rust => 4,
    };
    // In the last case, all entries of another buffer come first.
    for (entries, flush, given, is_second) in [
        (4, false, 4, false),
        (5, false, over, false),
        (5, true, 4, false),
        (3, false, 3, false),
        (3, true, 3, true),
    ] {
        let what = format!("{entries} entries, flush {flush}, second {is_second}");
        let mut ring = roomy_ring()?;
        let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
        let mut stream = nic.stream(1)?;
        ring.push(stream.recv(&ifq, 0))?;
        let first = four(&mut ring, &ifq, &mut stream)?;
        if is_second {
            let other = four(&mut ring, &ifq, &mut stream)?;
            for part in 0..4 {
                ifq.return_buffer(other + part * 1024);
            }
        }
        for part in 0..entries {
            ifq.return_buffer(first + part % 4 * 1024);
        }
        let mut held = Vec::new();
        if flush {
            ifq.flush_all(ring.fd())?;
        } else {
            until_read(&mut ring, &ifq, &mut stream, &mut held)?;
        }
        expect_eq(&what, ifq.pending(), 0)?;
        for offset in held {
            for part in 0..4 {
                ifq.return_buffer(offset + part * 1024);
            }
            ifq.flush_all(ring.fd())?;
        }
        stream.end(&mut ring)?;
        let back = usize::from(given == 4);
        nic.down()?;
        nic::wait_until(&what, || {
            nic::receive_on_all_cpus()?;
            let pools = netdev::provided_pools()?;
            let missing: u64 = pools.iter().map(|pool| pool.inflight).sum();
            Ok(missing == 1 - back as u64)
        })?;
        // These entries drop the remaining references, if there are any.
        for _ in given..4 {
            ifq.return_buffer(first);
        }
        nic.up()?;
        nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
        drop((ifq, ring));
        nic.wait_released()?;
    }
    Ok(Outcome::Passed)
}

/// Checks that areas that are added while data arrives are used, and all data arrives
/// intact.
fn area_can_be_added_under_load() -> TestResult {
    const LEN: usize = 16 << 20;
    const FEW: usize = 256;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, 4096, FEW)?;
    let _room = nic::limit_sockets(50)?;
    let mut areas = vec![(ifq.area.address() as usize, FEW)];
    let mut added = Vec::new();
    let stream = nic.stream(1)?;
    let (mut taken, mut of_area) = (0, [0u64; 4]);
    let mut held = VecDeque::new();

    let mut sender = stream.sender.try_clone()?;
    let thread = std::thread::spawn(move || {
        for at in (0..LEN).step_by(1 << 20) {
            sender.write_all(&pattern(at, 1 << 20))?;
        }
        sender.shutdown(Shutdown::Write)
    });
    ring.push(stream.recv(&ifq, 0))?;
    let last = loop {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE == 0 {
            break cqe;
        }
        let offset = cqe.offset()?;
        let number = (offset >> AREA_SHIFT) as usize;
        let (address, pages) = *areas.get(number).context("an area that is not there")?;
        let at = (offset & ((1 << AREA_SHIFT) - 1)) as usize;
        let len = cqe.res as usize;
        ensure!(at + len <= pages * PAGE_SIZE, "{cqe:x?} is behind its area");
        // SAFETY: the data is inside memory that stays mapped, and the kernel writes to
        // no buffer that it has handed out.
        let data = unsafe { std::slice::from_raw_parts((address + at) as *const u8, len) };
        ensure!(data == pattern(taken, len), "other bytes, from {taken} on");
        taken += len;
        of_area[number] += 1;
        // So many buffers are kept for a while that every area gets used.
        held.push_back(offset);
        while held.len() > FEW * areas.len() - 150 {
            ifq.return_buffer(held.pop_front().context("none held")?);
        }
        if taken > areas.len() * LEN / 8 && areas.len() < 4 {
            let area = memory(FEW)?;
            let (got, description) = add_area(&ring, &ifq, &area);
            expect_result("adding an area", got, 0)?;
            let token = (areas.len() as u64) << AREA_SHIFT;
            expect_eq("token", description.rq_area_token, token)?;
            areas.push((area.address() as usize, FEW));
            added.push(area);
        }
    };
    expect_eq("the end", (last.res, taken), (0, LEN))?;
    thread.join().ok().context("the sender panicked")??;
    ensure!(of_area.iter().all(|&count| count > 0), "{of_area:?}");
    for offset in held {
        ifq.return_buffer(offset);
    }
    ifq.flush_all(ring.fd())?;
    drop(stream);
    nic.down()?;
    nic::wait_drained()?;
    nic.up()?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    Ok(Outcome::Passed)
}

/// Fills a refill queue with entries that name no buffer, behind one that does if
/// `is_mixed`, and receives until all are consumed. Returns the numbers of entries that
/// were consumed at once.
fn steps(nic: &Nic, is_mixed: bool) -> anyhow::Result<Vec<u32>> {
    const NOTHING: u32 = 1000;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, 1024, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send_some(100)?;
    let offset = stream.take(&ifq, &ring.cqe()?)?;
    if is_mixed {
        ifq.return_buffer(offset);
    }
    for _ in 0..NOTHING {
        ifq.return_buffer(7 << AREA_SHIFT);
    }
    let (mut steps, mut head) = (Vec::new(), ifq.head());
    // The driver asks for a buffer for each packet; the pool asks for several at once,
    // but less often.
    while head != NOTHING + u32::from(is_mixed) {
        stream.send_some(100)?;
        stream.take(&ifq, &ring.cqe()?)?;
        let before = std::mem::replace(&mut head, ifq.head());
        if head != before {
            steps.push(head - before);
        }
    }
    stream.end(&mut ring)?;
    drop((ifq, ring));
    nic.wait_released()?;
    Ok(steps)
}

/// Checks that a page pool that looks for buffers passes over invalid entries, at most
/// 256 at once.
///
/// In C, it looks at up to 512.
fn pool_passes_over_invalid_entries_in_bounded_steps() -> TestResult {
    let nic = Nic::new()?;
    let got = steps(&nic, false)?;
    if zcrx_implementation() == Implementation::C {
        expect_eq("entries that were read at once", got, vec![256, 512, 232])?;
        return Ok(Outcome::Passed);
    }
    expect_eq(
        "entries that were read at once",
        got,
        vec![256, 256, 256, 232],
    )?;
    // The pool's cache has less room for the entries behind a valid one.
    let got = steps(&nic, true)?;
    expect_eq("behind a valid one", got, vec![256, 256, 256, 233])?;
    Ok(Outcome::Passed)
}

/// Checks that data that is copied finds returned buffers without a flush.
///
/// In C, it finds only those that were free at the start.
fn copy_finds_buffers_without_a_flush() -> TestResult {
    // The ring and the pool hold most of these.
    const FEW: usize = 160;
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, FEW)?;
    nic.transfer(&mut ring, &ifq, 10 * PAGE_SIZE)?;
    ensure!(ifq.pending() != 0, "the pool has its buffers back already");
    // This data comes over loopback, so the device does not consume the refill queue.
    let pages = give_back_only(&mut ring, &ifq, &mut Stream::new()?, 4)?;
    if zcrx_implementation() == Implementation::C {
        ensure!(pages < FEW, "{pages} pages were copied");
    }
    nic.expect_conserved(&mut ring, &ifq, FEW)?;
    Ok(Outcome::Passed)
}

/// Checks that a receive that finds no room for its completion ends with ENOSPC, and
/// consumes no data.
fn full_completion_queue_loses_no_data() -> TestResult {
    const LEN: usize = 100;
    let nic = Nic::new()?;
    let mut ring = WideRing::with(2, 2, ZCRX_SETUP)?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    stream.send(LEN)?;
    stream.wait_arrived()?;
    for user_data in [71, 72] {
        ring.push(Sqe::nop().user_data(user_data))?;
    }
    expect_eq("NOPs", ring.submit()?, 2)?;
    ring.push(stream.recv(&ifq, 0))?;
    expect_eq("receives", ring.submit()?, 1)?;
    for user_data in [71, 72] {
        expect_eq("a NOP", ring.try_cqe(), Some(ended(user_data, 0)))?;
    }
    let end = ended(stream.user_data, -libc::ENOSPC);
    expect_eq("the end", ring.cqe()?, end)?;

    ring.push(stream.recv(&ifq, LEN))?;
    stream.take_all(&mut ring, &ifq)?;
    expect_eq("the end", ring.cqe()?, ended(stream.user_data, 0))?;
    drop((ifq, ring));
    nic.wait_released()?;
    Ok(Outcome::Passed)
}

/// Checks that the end of a stream is reported if it arrived before a request that takes
/// the packets before it in two steps: nothing arrives afterwards that could wake the
/// request.
fn end_behind_many_packets_is_reported() -> TestResult {
    // A request takes 21 packets at most before others get their turn.
    const PACKETS: usize = 30;
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    for packet in 0..PACKETS {
        // TCP merges packets if their memory is of the same kind.
        nic.set("page_frags", (packet % 2) as i64)?;
        stream.send(100)?;
    }
    stream.finish()?;
    ring.push(stream.recv(&ifq, 0))?;
    let last = stream.take_until_end(&mut ring, &ifq)?;
    expect_eq("the end", last, ended(1, 0))?;
    expect_eq("bytes left", stream.untaken(), 0)?;
    Ok(Outcome::Passed)
}
