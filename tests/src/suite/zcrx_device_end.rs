// SPDX-License-Identifier: GPL-2.0
//! D10: the end of a network device's queue: the ring ends first, or the device, or
//! both at once, while packets and user space still have buffers.

use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::Barrier;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::pause;

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, is_long, tests};
use crate::kernel::{expect_eq, expect_result, has_option, is_debug, result};
use crate::netdev;
use crate::nic::{self, Nic, PORT, QUEUE};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::sandbox::{self, Shared, killed, pins};
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{AreaReg, Ctrl, Ifq, ZCRX_CTRL_ADD_AREA, control, memory, pinned, transfer};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::end" {
        ZN07 ring_may_end_before_the_device_goes_down (60 s);
        ZN08 device_may_go_before_the_ring_ends;
        ZN09 ring_and_device_may_end_at_once (180 s);
        ZN10 unread_packets_keep_the_area (30 s);
        ZN19 leased_queue_ends_with_its_virtual_device (60 s);
        ZN11 ring_may_end_with_all_buffers_in_user_space;
        ZN24 unreported_packets_are_lost_without_harm (60 s);
    }
};

/// Adds an area to a queue. Returns the result.
pub fn add(ring: &WideRing, ifq: &Ifq, area: &mut AreaReg) -> i32 {
    let mut ctrl = Ctrl {
        zcrx_id: ifq.id,
        op: ZCRX_CTRL_ADD_AREA,
        ..Default::default()
    };
    ctrl.union[0] = &raw mut *area as u64;
    control(ring.fd(), &mut ctrl)
}

/// Adds memory to a queue as an area. Returns the result, and the description as the
/// kernel left it.
pub fn add_area(ring: &WideRing, ifq: &Ifq, area: &Mapping) -> (i32, AreaReg) {
    let mut description = AreaReg {
        addr: area.address() as u64,
        len: area.len() as u64,
        ..Default::default()
    };
    let got = add(ring, ifq, &mut description);
    (got, description)
}

/// Receives `buffers` buffers and keeps them. Returns their offsets.
pub fn keep_all(
    ring: &mut WideRing,
    ifq: &Ifq,
    stream: &mut Stream,
    buffers: usize,
) -> anyhow::Result<Vec<u64>> {
    // A packet each. If more were on their way and the first one was lost, the others could
    // take the last buffers, and none would be left for the first when it is sent again.
    const ONE: usize = 1000;
    let mut offsets = Vec::new();
    ring.push(stream.recv(ifq, 0))?;
    while offsets.len() < buffers {
        if stream.untaken() == 0 {
            stream.sender.set_nonblocking(true)?;
            stream.send_some(ONE)?;
        }
        let cqe = ring.cqe()?;
        offsets.push(stream.take(ifq, &cqe)?);
    }
    Ok(offsets)
}

/// Makes a transfer over the queue without zero-copy receive.
pub fn plain(nic: &Nic) -> anyhow::Result<()> {
    let mut stream = nic.stream(1)?;
    let thread = stream.send_later(100 * PAGE_SIZE)?;
    let mut data = vec![0; 100 * PAGE_SIZE];
    stream.read(&mut data)?;
    thread.join().ok().context("the sender panicked")??;
    Ok(())
}

/// Checks that a ring ends before the device goes down, or while it is down, and the
/// queue uses pages again.
fn ring_may_end_before_the_device_goes_down() -> TestResult {
    let nic = Nic::new()?;
    for _ in 0..2 {
        let mut ring = roomy_ring()?;
        let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
        nic.transfer(&mut ring, &ifq, 200 * PAGE_SIZE)?;
        expect_eq("pinned", pinned()?, BUFFERS)?;
        drop((ifq, ring));
        nic.wait_released()?;
        nic::wait_pinned(0)?;
        let before = nic.counts()?;
        plain(&nic)?;
        let after = nic.counts()?;
        expect_eq("provided", after.niov_frags, before.niov_frags)?;
        ensure!(after.page_frags > before.page_frags, "no pages were used");
        nic.down()?;
        nic.up()?;
        plain(&nic)?;
    }
    works(&nic)?;

    // The same works while the device is down.
    let ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.down()?;
    drop((ifq, ring));
    nic::wait_pinned(0)?;
    // A queue can also be registered while the device is down.
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.up()?;
    nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    Ok(Outcome::Passed)
}

/// Checks that when the device is unplugged first, user space keeps its data, a further
/// area gives EFAULT, and other data is copied.
fn device_may_go_before_the_ring_ends() -> TestResult {
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.transfer(&mut ring, &ifq, 200 * PAGE_SIZE)?;
    // The data that user space holds stays intact.
    let mut stream = nic.stream(7)?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send(8 * PAGE_SIZE)?;
    let mut held = Vec::new();
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        held.push((stream.take(&ifq, &cqe)?, ifq.data(&cqe)?.to_vec(), cqe));
    }
    nic::unplug(PORT)?;
    for (_, data, cqe) in &held {
        expect_eq("what is in a buffer", ifq.data(cqe)?, data.as_slice())?;
    }
    let (got, _) = add_area(&ring, &ifq, &memory(8)?);
    expect_result("an area for no device", got, -libc::EFAULT)?;
    // The device is looked at before the memory.
    let mut unaligned = AreaReg {
        addr: 1,
        len: PAGE_SIZE as u64,
        ..Default::default()
    };
    let got = add(&ring, &ifq, &mut unaligned);
    expect_result("an unaligned area for no device", got, -libc::EFAULT)?;

    // Data that arrives in other ways is copied.
    drop(stream);
    ring.submit()?;
    while let Some(cqe) = ring.try_cqe() {
        expect_eq("the old receive", cqe.user_data, 7)?;
    }
    transfer(&mut ring, &ifq, 50 * PAGE_SIZE)?;
    for (offset, _, _) in held {
        ifq.return_buffer(offset);
    }
    ifq.flush_all(ring.fd())?;
    nic::wait_drained()?;
    expect_free(&mut ring, &ifq, BUFFERS)?;
    expect_eq("pinned", pinned()?, BUFFERS)?;
    drop((ifq, ring));
    nic::wait_pinned(0)?;
    drop(nic);

    works(&Nic::new()?)?;
    Ok(Outcome::Passed)
}

/// Unplugs the device while `ring_ends` ends a ring: at the same time, or up to 0.6 ms
/// later, depending on `round`.
fn race(round: u32, ring_ends: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let barrier = Barrier::new(2);
    std::thread::scope(|scope| {
        let unplugging = scope.spawn(|| {
            barrier.wait();
            nic::unplug(PORT)
        });
        barrier.wait();
        std::thread::sleep(Duration::from_micros(u64::from(round % 16) * 40));
        ring_ends()?;
        unplugging.join().ok().context("unplugging panicked")?
    })
}

/// Checks that a ring, or its killed process, and its device end at the same time, many
/// times, and all memory is released.
fn ring_and_device_may_end_at_once() -> TestResult {
    // With checkers a round takes a second.
    let rounds = match is_long() {
        true => 1000,
        false if is_debug() => 30,
        false => 48,
    };
    let mut nic = Nic::new()?;
    let before = pins()?;
    // The last round whose child has registered a queue.
    let last = Shared::<[AtomicU32; 1]>::new()?;
    for round in 1..=rounds {
        let what = format!("round {round}");
        nic.index = nix::net::if_::if_nametoindex(PORT)?;
        netdev::split_headers(nic.index)?;
        if round % 2 == 0 {
            nic.up()?;
        }
        let bound = || {
            let ring = WideRing::new(8)?;
            let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
            anyhow::Ok((ifq, ring))
        };
        if round % 3 == 0 {
            let child = sandbox::spawn(|| {
                let _bound = bound()?;
                last[0].store(round, Ordering::Release);
                loop {
                    pause();
                }
            })?;
            nic::wait_until("the child is registered", || {
                Ok(last[0].load(Ordering::Acquire) == round)
            })?;
            race(round, || Ok(kill(child, Signal::SIGKILL)?)).context(what)?;
            killed(child)?;
        } else {
            let bound = bound().context(what.clone())?;
            race(round, || {
                drop(bound);
                Ok(())
            })
            .context(what)?;
        }
        nic::wait_drained()?;
        nic::wait_until("all pages are let go of", || Ok(pins()? == before))?;
        nic::plug(PORT)?;
    }
    drop(nic);
    works(&Nic::new()?)?;
    Ok(Outcome::Passed)
}

/// Checks that packets that nobody has read keep page pool and area, cannot be read by
/// recv(2), and the queue works for other rings meanwhile.
fn unread_packets_keep_the_area() -> TestResult {
    let nic = Nic::new()?;
    let ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    stream.send(16 * PAGE_SIZE)?;
    drop((ifq, ring));
    nic::wait_until("the queue is released", || Ok(nic.provided()?.is_none()))?;
    // Its pool waits for these packets, and so does the area.
    for _ in 0..20 {
        let pools = netdev::provided_pools()?;
        expect_eq("pools", pools.len(), 1)?;
        ensure!(pools[0].detached, "{:?}", pools[0]);
        ensure!(pools[0].inflight >= 16, "{:?}", pools[0]);
        expect_eq("pinned", pinned()?, BUFFERS)?;
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    // The packets cannot be read, and trying to do so does no harm.
    let mut byte = 0u8;
    // SAFETY: the buffer is one byte.
    let got = unsafe {
        libc::recv(
            stream.receiver.as_raw_fd(),
            (&raw mut byte).cast(),
            1,
            libc::MSG_DONTWAIT,
        )
    };
    expect_result("reading them", result(got as libc::c_long), -libc::EFAULT)?;
    // The queue works for other rings meanwhile.
    works_beside(&nic)?;
    drop(stream);
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that the queue can be registered again while the pools of others still wait.
fn works_beside(nic: &Nic) -> anyhow::Result<()> {
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    drop((ifq, ring));
    nic::wait_until("the queue is released", || Ok(nic.provided()?.is_none()))
}

/// Checks that a ring ends while user space has all its buffers, before or after the
/// connection.
fn ring_may_end_with_all_buffers_in_user_space() -> TestResult {
    const FEW: usize = 96;
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, FEW)?;
    let mut stream = nic.stream(1)?;
    let mut offsets = keep_all(&mut ring, &ifq, &mut stream, FEW)?;
    offsets.sort_unstable();
    offsets.dedup();
    expect_eq("different buffers", offsets.len(), FEW)?;
    ring.submit()?;
    expect_eq("a completion without a buffer", ring.try_cqe(), None)?;
    drop((ifq, ring));
    nic.wait_released()?;
    drop(stream);
    nic::wait_pinned(0)?;

    // The same, but the connection ends first.
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, FEW)?;
    let mut stream = nic.stream(1)?;
    let offsets = keep_all(&mut ring, &ifq, &mut stream, FEW - 1)?;
    expect_eq("buffers", offsets.len(), FEW - 1)?;
    stream.sender.shutdown(Shutdown::Write)?;
    let last = loop {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE == 0 {
            break cqe;
        }
        stream.take(&ifq, &cqe)?;
    };
    expect_eq("the end", last, ended(1, 0))?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that packets that the device received and has not reported when the queue
/// restarts, ends or is unplugged are lost without harm.
fn unreported_packets_are_lost_without_harm() -> TestResult {
    /// A time in microseconds that is longer than the test.
    const LATE: i64 = 3_600_000_000;
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    stream.sender.set_nonblocking(true)?;
    ring.push(stream.recv(&ifq, 0))?;
    ring.submit()?;
    nic.set("delay", LATE)?;
    let before = nic.counts()?;
    stream.send_some(16 * PAGE_SIZE)?;
    expect_eq(
        "counters before any packet is reported",
        nic.counts()?,
        before,
    )?;
    nic.set_ring(128)?;
    // The packets are lost, and TCP sends them again.
    nic::wait_until("they are sent again", || Ok(stream.retransmissions()? > 0))?;
    expect_eq("after a restart", nic.counts()?, before)?;
    nic.set("delay", 0)?;
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        ifq.return_buffer(stream.take(&ifq, &cqe)?);
    }
    // What is sent again would be counted as part of the next transfer.
    stream.wait_acknowledged()?;
    nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;

    nic.set("delay", LATE)?;
    stream.send_some(16 * PAGE_SIZE)?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    nic.set("delay", 0)?;
    drop(stream);
    works(&nic)?;

    let ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut stream = nic.stream(1)?;
    stream.sender.set_nonblocking(true)?;
    nic.set("delay", LATE)?;
    stream.send_some(16 * PAGE_SIZE)?;
    nic::unplug(PORT)?;
    nic::wait_drained()?;
    drop((ifq, ring));
    nic::wait_pinned(0)?;
    drop((stream, nic));

    // Packets that are merely late are not lost.
    let nic = Nic::new()?;
    nic.set("delay", 1000)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that a queue that is leased to a netkit device belongs to that device and
/// ends with it, while its ring goes on.
fn leased_queue_ends_with_its_virtual_device() -> TestResult {
    if !has_option("CONFIG_NETKIT") {
        return Ok(Outcome::Skipped("the kernel has no netkit".to_string()));
    }
    let nic = Nic::new()?;
    for keep_ring in [true, false] {
        nic.ip("link add nk0 type netkit peer name nk1 numrxqueues 2")?;
        nic.ip("link set nk0 up")?;
        nic.ip("link set nk1 up")?;
        let leasee = nix::net::if_::if_nametoindex("nk1")?;
        let queue = netdev::lease(leasee, nic.index, QUEUE)?;
        let mut ring = roomy_ring()?;
        let area = memory(BUFFERS)?;
        // The queue belongs to the namespace that has the virtual device.
        let mut registration = nic.registration(ENTRIES, &area);
        let got = registration.register(ring.fd());
        expect_result("on the physical device", got, -libc::EOPNOTSUPP)?;
        let mut registration = nic.registration(ENTRIES, &area);
        registration.reg.if_idx = leasee;
        registration.reg.if_rxq = queue;
        let got = registration.register(ring.fd());
        expect_result("on the virtual device", got, 0)?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        expect_eq("provided", nic.provided()?, Some(PAGE_SIZE as u64))?;
        nic.zero_copy(&mut ring, &ifq, 200 * PAGE_SIZE)?;
        if !keep_ring {
            drop((ifq, ring));
            nic.wait_released()?;
            nic.ip("link del nk0")?;
            continue;
        }

        let mut stream = nic.stream(7)?;
        ring.push(stream.recv(&ifq, 0))?;
        stream.send(10 * PAGE_SIZE)?;
        let mut held = Vec::new();
        while stream.untaken() != 0 {
            let cqe = ring.cqe()?;
            held.push(stream.take(&ifq, &cqe)?);
        }
        nic.ip("link del nk0")?;
        expect_eq("provided", nic.provided()?, None)?;
        let (got, _) = add_area(&ring, &ifq, &memory(8)?);
        expect_result("an area for no device", got, -libc::EFAULT)?;
        // Data that comes over the device now is in pages, and is copied.
        stream.send(10 * PAGE_SIZE)?;
        while stream.untaken() != 0 {
            let cqe = ring.cqe()?;
            held.push(stream.take(&ifq, &cqe)?);
        }
        stream.end(&mut ring)?;
        for offset in held {
            ifq.return_buffer(offset);
        }
        ifq.flush_all(ring.fd())?;
        nic::wait_drained()?;
        expect_free(&mut ring, &ifq, BUFFERS)?;
        drop((ifq, ring));
        nic::wait_pinned(0)?;
        works(&nic)?;
    }
    Ok(Outcome::Passed)
}
