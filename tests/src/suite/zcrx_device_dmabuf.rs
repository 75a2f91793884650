// SPDX-License-Identifier: GPL-2.0
//! D10: areas of a network device's queue that are dma-bufs, which the kernel cannot
//! access and does not copy into, and areas that the device cannot reach.

use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};

use anyhow::{Context, ensure};

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_device_end::{add, add_area, keep_all};
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::dmabuf;
use crate::kernel::{expect_eq, expect_result};
use crate::netdev;
use crate::nic::{self, Nic};
use crate::register::PAGE_SIZE;
use crate::stream::{Stream, ended};
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{AreaReg, IORING_ZCRX_AREA_DMABUF, Ifq, Registration, memory, pinned};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::dmabuf" {
        ZN17 dmabuf_is_received_into_without_copies (30 s);
        ZN18 invalid_dmabufs_are_refused;
        ZN23 bounce_buffers_are_synced (60 s);
    }
};

/// Builds a registration of the queue with a dma-buf as its area.
pub(super) fn with_dmabuf(nic: &Nic, fd: RawFd, memory: &Mapping) -> Registration {
    let mut registration = nic.registration(ENTRIES, memory);
    registration.area = AreaReg {
        len: memory.len() as u64,
        flags: IORING_ZCRX_AREA_DMABUF,
        dmabuf_fd: fd as u32,
        ..Default::default()
    };
    registration
}

/// Checks that a dma-buf is received into without a copy; data in other memory gives
/// ENOMEM and stays in the socket.
fn dmabuf_is_received_into_without_copies() -> TestResult {
    let _at_once = nic::free_packets_at_once()?;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let (buffer, area) = dmabuf::new(BUFFERS * PAGE_SIZE)?;
    let mut registration = with_dmabuf(&nic, buffer.as_raw_fd(), &area);
    expect_result("registering", registration.register(ring.fd()), 0)?;
    // The queue holds a reference of its own.
    drop(buffer);
    expect_eq("pinned", pinned()?, 0)?;
    expect_eq("of the queue", nic.provided()?, Some(PAGE_SIZE as u64))?;
    let ifq = Ifq::attach(ring.fd(), registration, area)?;
    nic.zero_copy(&mut ring, &ifq, 2 << 20)?;

    // Data in other memory cannot be copied to the dma-buf, although buffers are free.
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send(PAGE_SIZE)?;
    stream.take_all(&mut ring, &ifq)?;
    nic.set("page_frags", 1)?;
    stream.send(PAGE_SIZE)?;
    let refused = ended(1, -libc::ENOMEM);
    expect_eq("a page", ring.cqe()?, refused)?;
    // The data stays in the socket, from which it can be read.
    stream.read(&mut [0; PAGE_SIZE])?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send(PAGE_SIZE)?;
    stream.take_all(&mut ring, &ifq)?;
    stream.end(&mut ring)?;
    // The same holds for data that comes over loopback.
    let mut stream = Stream::starting_at(0, 1)?;
    ring.push(stream.recv(&ifq, 0))?;
    stream.send(100)?;
    expect_eq("over loopback", ring.cqe()?, refused)?;
    stream.read_left()?;

    // All areas of a queue are of the same kind.
    let (got, _) = add_area(&ring, &ifq, &memory(8)?);
    expect_result("an area of memory", got, -libc::EINVAL)?;

    // Each buffer is free, once.
    ifq.flush_all(ring.fd())?;
    let mut stream = nic.stream(1)?;
    let mut offsets = keep_all(&mut ring, &ifq, &mut stream, BUFFERS)?;
    offsets.sort_unstable();
    offsets.dedup();
    expect_eq("different buffers", offsets.len(), BUFFERS)?;
    drop((ifq, ring, stream));
    nic.wait_released()?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that dma-bufs of another size, other files, and a dma-buf for a queue of
/// memory give errors and leave nothing behind.
fn invalid_dmabufs_are_refused() -> TestResult {
    let nic = Nic::new()?;
    let ring = WideRing::new(2)?;
    let (buffer, area) = dmabuf::new(16 * PAGE_SIZE)?;
    let fd = buffer.as_raw_fd();
    let file = File::open("/proc/self/exe")?;
    type Case<'a> = (&'a str, RawFd, i32, fn(&mut Registration));
    let cases: [Case; 9] = [
        ("shorter", fd, libc::EINVAL, |r| {
            r.area.len -= PAGE_SIZE as u64
        }),
        ("longer", fd, libc::EINVAL, |r| {
            r.area.len += PAGE_SIZE as u64
        }),
        ("not whole pages", fd, libc::EINVAL, |r| r.area.len -= 1),
        ("an offset", fd, libc::EINVAL, |r| {
            r.area.addr = PAGE_SIZE as u64
        }),
        ("no file", -1, libc::EBADF, |_| {}),
        ("a closed file", 1000, libc::EBADF, |_| {}),
        ("a regular file", file.as_raw_fd(), libc::EINVAL, |_| {}),
        ("a ring", ring.fd(), libc::EINVAL, |_| {}),
        ("an unknown flag", fd, libc::EINVAL, |r| r.area.flags |= 2),
    ];
    for (what, fd, errno, change) in cases {
        let mut registration = with_dmabuf(&nic, fd, &area);
        change(&mut registration);
        expect_result(what, registration.register(ring.fd()), -errno)?;
        expect_eq(what, nic.provided()?, None)?;
        expect_eq(what, netdev::provided_pools()?.len(), 0)?;
    }
    // A dma-buf cannot be added to a queue of memory.
    let mut roomy = roomy_ring()?;
    let ifq = nic.ifq(&roomy, ENTRIES, BUFFERS)?;
    let mut description = AreaReg {
        len: area.len() as u64,
        flags: IORING_ZCRX_AREA_DMABUF,
        dmabuf_fd: fd as u32,
        ..Default::default()
    };
    let got = add(&roomy, &ifq, &mut description);
    expect_result("to a queue of memory", got, -libc::EINVAL)?;
    nic.expect_conserved(&mut roomy, &ifq, BUFFERS)?;
    drop((ifq, roomy));
    nic.wait_released()?;

    let mut registration = with_dmabuf(&nic, fd, &area);
    expect_result("as it is", registration.register(ring.fd()), 0)?;
    drop((buffer, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    Ok(Outcome::Passed)
}

/// Returns the bytes of memory, eight at a time.
fn contents(memory: &Mapping) -> Vec<u64> {
    let offsets = (0..memory.len()).step_by(8);
    offsets.map(|at| memory.read(at)).collect()
}

/// Checks that all data arrives intact through bounce buffers, what was copied to the
/// area stays there when it is unmapped, and an area with no room there gives EIO.
fn bounce_buffers_are_synced() -> TestResult {
    /// Enough for the device's ring, a full socket and one more large packet. If the pages
    /// are contiguous, more of them do not fit in the bounce buffers.
    const FEW: usize = 64;
    let command_line = std::fs::read_to_string("/proc/cmdline")?;
    if !command_line.contains("swiotlb=force") {
        return Ok(Outcome::Skipped(
            "the kernel was not booted with swiotlb=force".to_string(),
        ));
    }
    let nic = Nic::new()?;
    nic.set_ring(8)?;
    nic.set_mtu(4148)?;
    let _room = nic::limit_sockets(8)?;
    for dmabuf in [false, true] {
        let mut ring = roomy_ring()?;
        let (buffer, shared) = dmabuf::new(FEW * PAGE_SIZE)?;
        let (mut registration, area) = if dmabuf {
            let registration = with_dmabuf(&nic, buffer.as_raw_fd(), &shared);
            (registration, shared)
        } else {
            let area = memory(FEW)?;
            (nic.registration(ENTRIES, &area), area)
        };
        let got = registration.register(ring.fd());
        expect_result(&format!("dma-buf {dmabuf}"), got, 0)?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        let counts = nic.transfer(&mut ring, &ifq, 1 << 20);
        let counts = counts.with_context(|| format!("dma-buf {dmabuf}"))?;
        expect_eq("pages", counts.page_frags, 0)?;
        if dmabuf {
            drop((ifq, ring));
        } else {
            // This copies data to all buffers, and nothing arrives after it.
            nic.expect_conserved(&mut ring, &ifq, FEW)?;
            nic.down()?;
            let area = ifq.into_area();
            let before = contents(&area);
            drop(ring);
            nic::wait_pinned(0)?;
            ensure!(contents(&area) == before, "unmapping changed the area");
            nic.up()?;
        }
        nic.wait_released()?;
        nic::wait_pinned(0)?;
    }

    // Mapping more memory than the bounce buffers have room for fails, and leaves
    // nothing behind.
    let ring = WideRing::new(2)?;
    let area = memory(128 << 20 >> 12)?;
    let got = nic.registration(ENTRIES, &area).register(ring.fd());
    expect_result("128 MiB", got, -libc::EIO)?;
    expect_eq("pinned", pinned()?, 0)?;
    expect_eq("provided", nic.provided()?, None)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, FEW)?;
    let counts = nic.transfer(&mut ring, &ifq, 1 << 18).context("after it")?;
    expect_eq("pages", counts.page_frags, 0)?;
    nic.expect_conserved(&mut ring, &ifq, FEW)?;
    drop((ifq, ring));
    nic.wait_released()?;
    Ok(Outcome::Passed)
}
