// SPDX-License-Identifier: GPL-2.0
//! D10: queues of a network device whose driver does what few drivers do: it cannot
//! give a queue its own memory back, uses fewer queues than before, has a second pool
//! for headers, or asks again and again for buffers when there are none.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::pause;

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_device_end::{add_area, keep_all, plain};
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{
    Implementation, announce_report, expect_eq, expect_result, result, zcrx_implementation,
};
use crate::netdev;
use crate::nic::{self, Nic, PORT, QUEUE, QUEUES, RING};
use crate::register::PAGE_SIZE;
use crate::sandbox::{self, Shared, Sysctl, killed, pins};
use crate::stream::{Stream, reset_at_close};
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{AREA_SHIFT, Ifq, memory, pinned, transfer};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::driver" {
        ZN27 failed_close_keeps_memory_mapped_until_the_restart (60 s);
        ZN28 failed_close_after_a_kill_keeps_memory_mapped (30 s);
        ZN29 ring_may_end_while_its_queue_is_hidden (60 s);
        ZN30 device_may_go_while_its_queue_is_hidden (30 s);
        ZN31 queue_survives_being_hidden (30 s);
        ZN32 unaligned_large_buffers_are_refused (30 s);
        ZN33 header_pool_is_not_provided;
        ZN34 single_free_buffer_is_found_in_any_area (40 s);
    }
};

/// The core's warning when a driver cannot give a queue its own memory back.
pub const CLOSE_FAILED: &str = "at __netif_mp_close_rxq";
/// The software NIC's report of an address that it cannot write to.
pub const FAULT: &str = "zcrx_sim: DMA fault";

/// The buffers of the area that neither ring nor device has when the ring is closed.
#[derive(Clone, Copy, Debug)]
enum Out {
    Nothing,
    /// Buffers of packets that nobody has read.
    Packets,
    /// All buffers, which user space has.
    All,
}

/// Returns whether memory stays mapped until the driver releases it, as in Rust. C
/// unmaps it before, and then gives the device buffers without an address.
pub fn stays_mapped() -> bool {
    zcrx_implementation() == Implementation::Rust
}

/// Returns the reason for skipping a test where C does what the DMA debugger reports.
pub fn debugger_complains() -> Option<Outcome> {
    let complains = !stays_mapped() && Path::new("/sys/kernel/debug/dma-api").exists();
    complains.then(|| Outcome::Skipped("the DMA debugger complains of what C does".to_string()))
}

/// Receives one byte by recv(2), without waiting, and returns the result.
fn recv_byte(stream: &Stream) -> i32 {
    let mut byte = 0u8;
    let fd = stream.receiver.as_raw_fd();
    // SAFETY: the buffer is one byte.
    let got = unsafe { libc::recv(fd, (&raw mut byte).cast(), 1, libc::MSG_DONTWAIT) };
    result(got as libc::c_long)
}

/// Sends to a queue that was closed but still has its old pool, because the driver
/// failed to replace it.
fn send_to_old_pool(nic: &Nic) -> anyhow::Result<()> {
    let before = nic.counts()?;
    let mut used = before.niov_frags;
    for _ in 0..4 {
        let mut stream = nic.stream(2)?;
        stream.sender.set_nonblocking(true)?;
        stream.send_some(BUFFERS / 4 * PAGE_SIZE)?;
        if !stays_mapped() {
            nic::wait_until("the device has faulted", || Ok(nic.dma_faults()? > 0))?;
            reset_at_close(&stream.sender)?;
            return expect_eq("provided", nic.counts()?.niov_frags, before.niov_frags);
        }
        nic::wait_until("the old pool's buffers are used", || {
            Ok(nic.counts()?.niov_frags >= used + 8)
        })?;
        used = nic.counts()?.niov_frags;
        let mut got = -libc::EAGAIN;
        nic::wait_until("some of it has arrived", || {
            got = recv_byte(&stream);
            Ok(got != -libc::EAGAIN)
        })?;
        expect_result("reading it", got, -libc::EFAULT)?;
    }
    expect_eq("pages", nic.counts()?.page_frags, before.page_frags)
}

/// Announces that closing the queue will fail and that, in C, the device will then use
/// unmapped buffers. The first packet that is late can do that at once.
pub fn announce_failed_close() -> anyhow::Result<()> {
    announce_report(CLOSE_FAILED)?;
    if !stays_mapped() {
        announce_report(FAULT)?;
    }
    Ok(())
}

/// Waits until an attempt to close the queue has failed.
pub fn close_failed(nic: &Nic) -> anyhow::Result<()> {
    // This takes the device's lock, which a close holds until its end.
    nic::wait_until("the queue is closed", || Ok(nic.provided()?.is_none()))
}

/// Makes the driver restart the queue, either by itself or because the device goes down
/// and up. This ends the old pool.
fn restart(nic: &Nic, by_itself: bool) -> anyhow::Result<()> {
    if by_itself {
        nic.set("reset", QUEUE.into())?;
    } else {
        nic.down()?;
        nic.up()?;
    }
    nic.wait_released()
}

/// Registers a queue, uses it, and leaves the buffers of `out` in packets of the stream
/// or with user space.
fn used_queue(nic: &Nic, out: Out) -> anyhow::Result<(WideRing, Ifq, Stream)> {
    let _at_once = nic::free_packets_at_once()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.transfer(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    let mut stream = nic.stream(1)?;
    match out {
        Out::Nothing => {}
        Out::Packets => stream.send(16 * PAGE_SIZE)?,
        Out::All => drop(keep_all(&mut ring, &ifq, &mut stream, BUFFERS)?),
    }
    Ok((ring, ifq, stream))
}

/// Closes a queue while a knob makes the driver fail, and checks that this does no
/// harm.
fn failing_close(nic: &Nic, (knob, value): (&str, i32), out: Out) -> anyhow::Result<()> {
    let (ring, ifq, stream) = used_queue(nic, out)?;
    nic.set(knob, value.into())?;
    announce_failed_close()?;
    drop((ifq, ring));
    close_failed(nic)?;
    nic.set(knob, 0)?;
    expect_eq("pinned", pinned()?, BUFFERS)?;
    send_to_old_pool(nic)?;
    if let Out::Packets = out {
        expect_result("packets from before", recv_byte(&stream), -libc::EFAULT)?;
    }
    drop(stream);
    restart(nic, matches!(out, Out::Packets))?;
    nic::wait_pinned(0)?;
    if stays_mapped() {
        expect_eq("faults", nic.dma_faults()?, 0)?;
    }
    nic.set("dma_faults", 0)?;
    plain(nic)
}

/// Checks that when the driver fails to close a queue, its memory stays mapped until
/// the driver restarts the queue or goes.
///
/// In C, it is unmapped, and the device gets buffers without an address; with the DMA
/// debugger, the test is skipped.
fn failed_close_keeps_memory_mapped_until_the_restart() -> TestResult {
    if let Some(skipped) = debugger_complains() {
        return Ok(skipped);
    }
    let nic = Nic::new()?;
    for (failure, out) in [
        (("fail_close", libc::ENOMEM), Out::Nothing),
        (("fail_close", libc::EOPNOTSUPP), Out::Packets),
        (("fail_close", libc::ENOMEM), Out::All),
        (("fail_mem_alloc", 1), Out::Packets),
        // The driver stops the queue and starts it again as it was.
        (("fail_start", 1), Out::All),
        (("fail_stop", 1), Out::Nothing),
    ] {
        let what = format!("{failure:?}, {out:?}");
        failing_close(&nic, failure, out).context(what)?;
    }
    works(&nic)?;

    // The old queue cannot be started again either, and has no pool any more.
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.transfer(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    nic.set("fail_start", 2)?;
    announce_report("Failed to restart old queue in error path")?;
    announce_report(CLOSE_FAILED)?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    restart(&nic, true)?;
    works(&nic)?;

    // Another ring gets the queue next.
    let ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.set("fail_close", libc::ENOMEM.into())?;
    announce_report(CLOSE_FAILED)?;
    drop((ifq, ring));
    close_failed(&nic)?;
    nic.set("fail_close", 0)?;
    works(&nic)?;

    // The device is unplugged.
    let ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.set("fail_close", libc::ENOMEM.into())?;
    announce_report(CLOSE_FAILED)?;
    drop((ifq, ring));
    close_failed(&nic)?;
    nic::unplug(PORT)?;
    nic::wait_drained()?;
    nic::wait_pinned(0)?;
    drop(nic);
    works(&Nic::new()?)?;
    Ok(Outcome::Passed)
}

/// Checks that the memory of a killed process stays mapped and pinned when the driver
/// fails to close its queue.
///
/// In C, it is unmapped; with the DMA debugger, the test is skipped.
fn failed_close_after_a_kill_keeps_memory_mapped() -> TestResult {
    if let Some(skipped) = debugger_complains() {
        return Ok(skipped);
    }
    let nic = Nic::new()?;
    let before = pins()?;
    let ready = Shared::<[AtomicU32; 1]>::new()?;
    let child = sandbox::spawn(|| {
        let mut ring = roomy_ring()?;
        let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
        let mut stream = nic.stream(1)?;
        keep_all(&mut ring, &ifq, &mut stream, BUFFERS / 2)?;
        ready[0].store(1, Ordering::Release);
        loop {
            pause();
        }
    })?;
    nic::wait_until("the child has buffers", || {
        Ok(ready[0].load(Ordering::Acquire) == 1)
    })?;
    nic.set("fail_close", libc::ENOMEM.into())?;
    announce_failed_close()?;
    kill(child, Signal::SIGKILL)?;
    killed(child)?;
    close_failed(&nic)?;
    nic.set("fail_close", 0)?;
    expect_eq("pinned", pins()?, before + BUFFERS as i64)?;
    send_to_old_pool(&nic)?;
    restart(&nic, true)?;
    nic::wait_until("all pages are let go of", || Ok(pins()? == before))?;
    if stays_mapped() {
        expect_eq("faults", nic.dma_faults()?, 0)?;
    }
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Makes the driver use only the queues before [`QUEUE`], without asking the core.
fn hide(nic: &Nic) -> anyhow::Result<()> {
    nic.set("queues", QUEUE.into())?;
    expect_eq("queues", netdev::queues(nic.index)?.len(), QUEUE as usize)
}

/// Makes the driver use all queues again.
fn show(nic: &Nic) -> anyhow::Result<()> {
    nic.set("queues", QUEUES.into())?;
    expect_eq("queues", netdev::queues(nic.index)?.len(), QUEUES as usize)
}

/// Checks that a ring ends while its queue is above the number of queues in use, and
/// the queue uses pages when it is back.
fn ring_may_end_while_its_queue_is_hidden() -> TestResult {
    let nic = Nic::new()?;
    for (out, while_down) in [
        (Out::Nothing, false),
        (Out::Packets, false),
        (Out::All, true),
    ] {
        let (ring, ifq, stream) = used_queue(&nic, out)?;
        hide(&nic)?;
        if while_down {
            nic.down()?;
        }
        drop((ifq, ring, stream));
        nic::wait_drained()?;
        nic::wait_pinned(0)?;
        if while_down {
            nic.up()?;
        }
        show(&nic)?;
        expect_eq("provided", nic.provided()?, None)?;
        let before = nic.counts()?;
        plain(&nic)?;
        let after = nic.counts()?;
        expect_eq("provided", after.niov_frags, before.niov_frags)?;
        ensure!(after.page_frags > before.page_frags, "no pages were used");
        works(&nic)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a device is unplugged while a bound queue is above the number of queues
/// in use.
fn device_may_go_while_its_queue_is_hidden() -> TestResult {
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.transfer(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    hide(&nic)?;
    let unplugging = std::thread::spawn(|| nic::unplug(PORT));
    let gone = nic::wait_until("the device is gone", || Ok(unplugging.is_finished()));
    if gone.is_err() {
        // Unplugging waits for the queue, so the ring must be closed for it to end.
        drop((ifq, ring));
        unplugging.join().ok().context("unplugging panicked")??;
        return gone.map(|()| Outcome::Passed);
    }
    unplugging.join().ok().context("unplugging panicked")??;
    let (got, _) = add_area(&ring, &ifq, &memory(8)?);
    expect_result("an area for no device", got, -libc::EFAULT)?;
    transfer(&mut ring, &ifq, 50 * PAGE_SIZE)?;
    expect_eq("pinned", pinned()?, BUFFERS)?;
    drop((ifq, ring));
    nic::wait_drained()?;
    nic::wait_pinned(0)?;
    drop(nic);
    works(&Nic::new()?)?;
    Ok(Outcome::Passed)
}

/// Checks that a bound queue goes on after it was above the number of queues in use for
/// a while.
fn queue_survives_being_hidden() -> TestResult {
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send(16 * PAGE_SIZE)?;
    let mut held = Vec::new();
    for round in 0..3 {
        hide(&nic)?;
        // The core still refuses settings that a memory provider does not allow.
        nic.ethtool_fails("-G zsim0 tcp-data-split off", "memory provider")?;
        nic::wait_until("the pool waits for what is out", || {
            nic::receive_on_all_cpus()?;
            let pools = netdev::provided_pools()?;
            Ok(pools.iter().all(|pool| pool.detached))
        })?;
        if round == 1 {
            nic.down()?;
            nic.up()?;
        }
        show(&nic)?;
        expect_eq("provided", nic.provided()?, Some(PAGE_SIZE as u64))?;
        while stream.untaken() != 0 {
            let cqe = ring.cqe()?;
            held.push(stream.take(&ifq, &cqe)?);
        }
        nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    }
    for offset in held {
        ifq.return_buffer(offset);
    }
    stream.end(&mut ring)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    Ok(Outcome::Passed)
}

/// Checks that buffers larger than a page at DMA addresses that are not aligned to
/// their size give ERANGE.
///
/// In C, they are accepted, and the device writes elsewhere.
fn unaligned_large_buffers_are_refused() -> TestResult {
    const LARGE: usize = 64 << 10;
    // A packet takes a whole buffer, however small the packet is.
    const LEN: usize = 8 << 20;
    let rust = zcrx_implementation() == Implementation::Rust;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let _pages = Sysctl::set("vm/nr_hugepages", "8")?;
    for beside in [PAGE_SIZE, LARGE / 2, 0] {
        let what = format!("{beside} bytes beside");
        // A small area has few buffers, and a transfer must lose nothing for want of
        // one.
        nic.set_ring(if beside == 0 { RING } else { 8 })?;
        let area = Mapping::anonymous(LEN, libc::MAP_HUGETLB).context("huge pages")?;
        let mut ring = roomy_ring()?;
        let mut registration = nic.registration(ENTRIES, &area);
        registration.area.addr += beside as u64;
        if beside != 0 {
            // The area lies in the first huge page, so it is contiguous.
            registration.area.len = 1 << 20;
        }
        registration.reg.rx_buf_len = LARGE as u32;
        let got = registration.register(ring.fd());
        // An IOMMU maps the area to addresses of its own, which are aligned.
        let aligned = beside == 0 || nic::behind_iommu()?;
        if !aligned && rust {
            expect_result(&what, got, -libc::ERANGE)?;
            expect_eq(&what, nic.provided()?, None)?;
            expect_eq("pinned", pinned()?, 0)?;
            continue;
        }
        expect_result(&what, got, 0)?;
        expect_eq(&what, nic.provided()?, Some(LARGE as u64))?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        if beside == 0 {
            nic.zero_copy(&mut ring, &ifq, 1 << 20)?;
            nic.expect_conserved(&mut ring, &ifq, LEN / LARGE)?;
        } else {
            if !aligned {
                announce_report(FAULT)?;
            }
            let before = nic.counts()?;
            let (mut sender, receiver) = nic.connect_to("10.9.0.1")?;
            sender.write_all(&[1; 100])?;
            nic::wait_until("a packet is written, or is not", || {
                Ok(nic.counts()?.niov_frags > before.niov_frags || nic.dma_faults()? > 0)
            })?;
            expect_eq("written", nic.dma_faults()? == 0, aligned)?;
            reset_at_close(&sender)?;
            drop((sender, receiver));
        }
        drop((ifq, ring));
        nic.wait_released()?;
        nic::wait_pinned(0)?;
        nic.set("dma_faults", 0)?;
    }
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that a driver's second page pool, for headers, has ordinary pages, and data
/// arrives without a copy.
fn header_pool_is_not_provided() -> TestResult {
    let nic = Nic::new()?;
    nic.set("header_ring", 1)?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    // io_uring provides one pool of the queue; the other has ordinary pages.
    expect_eq("pools", netdev::provided_pools()?.len(), 1)?;
    nic.zero_copy(&mut ring, &ifq, 300 * PAGE_SIZE)?;
    nic.zero_copy_to("fd09::1", &mut ring, &ifq, 300 * PAGE_SIZE)?;
    // These packets have their headers in one pool and the rest in the other.
    let mut stream = nic.stream(1)?;
    stream.send(16 * PAGE_SIZE)?;
    nic.set_ring(32)?;
    ring.push(stream.recv(&ifq, 0))?;
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        ifq.return_buffer(stream.take(&ifq, &cqe)?);
    }
    stream.end(&mut ring)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    drop((ifq, ring));
    nic.wait_released()?;
    plain(&nic)?;
    nic.set("header_ring", 0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Receives packet by packet until user space has `buffers` buffers.
fn exhaust(
    ring: &mut WideRing,
    stream: &mut Stream,
    held: &mut Vec<u64>,
    buffers: usize,
) -> anyhow::Result<()> {
    while held.len() < buffers {
        stream.sender.write_all(&[0; 100])?;
        let cqe = ring.cqe()?;
        expect_eq("one packet", cqe.res, 100)?;
        held.push(cqe.offset()?);
    }
    Ok(())
}

/// Checks that one returned buffer is found in any of 64 areas, however often the
/// driver asks.
fn single_free_buffer_is_found_in_any_area() -> TestResult {
    const AREAS: usize = 64;
    const EACH: usize = 2;
    let _at_once = nic::free_packets_at_once()?;
    let nic = Nic::new()?;
    nic.set_ring(8)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, EACH)?;
    let mut areas = Vec::new();
    for _ in 1..AREAS {
        let area = memory(EACH)?;
        let (got, _) = add_area(&ring, &ifq, &area);
        expect_result("adding an area", got, 0)?;
        areas.push(area);
    }
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    ring.submit()?;
    let mut held = Vec::new();
    exhaust(&mut ring, &mut stream, &mut held, AREAS * EACH)?;
    for (round, number) in [AREAS - 1, 0, AREAS / 2, 1, AREAS - 2, 0]
        .into_iter()
        .enumerate()
    {
        let what = format!("round {round}, area {number}");
        // The driver asks once for each packet, or several times.
        let retries = [0, 8, 0][round % 3];
        nic.set("retry", retries)?;
        // One packet is dropped, and TCP sends it again and again.
        let before = nic.counts()?;
        stream.sender.write_all(&[0; 100])?;
        nic::wait_until("a packet is dropped", || {
            Ok(nic.counts()?.no_buffer > before.no_buffer)
        })?;
        let failed = nic.counts()?.alloc_fail - before.alloc_fail;
        ensure!(failed > retries as u64, "{what}: {failed} attempts failed");
        ring.submit()?;
        expect_eq(&what, ring.try_cqe(), None)?;
        let of_area = |offset: &u64| (offset >> AREA_SHIFT) as usize == number;
        let at = held
            .iter()
            .position(of_area)
            .with_context(|| what.clone())?;
        let back = held.swap_remove(at);
        ifq.return_buffer(back);
        if round % 2 == 0 {
            ifq.flush_all(ring.fd())?;
        }
        let cqe = ring.cqe().with_context(|| what.clone())?;
        expect_eq(&what, cqe.res, 100)?;
        expect_eq(&what, cqe.offset()?, back)?;
        held.push(back);
    }
    // All buffers can be received a second time.
    for offset in held.drain(..) {
        ifq.return_buffer(offset);
    }
    exhaust(&mut ring, &mut stream, &mut held, AREAS * EACH)?;
    held.sort_unstable();
    held.dedup();
    expect_eq("different buffers", held.len(), AREAS * EACH)?;
    drop((ifq, ring, stream));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    Ok(Outcome::Passed)
}
