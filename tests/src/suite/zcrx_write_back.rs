// SPDX-License-Identifier: GPL-2.0
//! D7: what the kernel writes back when an interface queue is registered, and what
//! happens if it cannot.

use std::os::fd::RawFd;

use super::zcrx_registration::none_so_far;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{expect_eq, expect_result};
use crate::register::{PAGE_SIZE, Page, register};
use crate::wide::WideRing;
use crate::zcrx::{
    IORING_REGISTER_ZCRX_IFQ, IfqReg, Offsets, RQES, Registration, TAIL, map_offset, memory, pinned,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::register" {
        ZR24 failed_write_back_leaves_no_queue;
        ZR25 failed_write_back_of_the_area_leaves_no_queue;
        ZR26 offsets_id_and_sizes_are_written_back;
    }
};

/// The offsets of the descriptors of [`read_only`] in its pages.
const AREA_AT: usize = 512;
const REGION_AT: usize = 1024;

/// Registers a queue with descriptors that cannot be written back: all of them if
/// `all`, or else only that of the area.
pub(super) fn read_only(fd: RawFd, all: bool) -> anyhow::Result<i32> {
    let memory = memory(4)?;
    let mut registration = Registration::new(64, &memory);
    let (page, area_page) = (Page::new()?, Page::new()?);
    area_page.write(AREA_AT, &registration.area);
    page.write(REGION_AT, &registration.region);
    registration.reg.area_ptr = area_page.address as u64 + AREA_AT as u64;
    registration.reg.region_ptr = page.address as u64 + REGION_AT as u64;
    page.write(0, &registration.reg);
    area_page.protect(libc::PROT_READ)?;
    if all {
        page.protect(libc::PROT_READ)?;
    }
    Ok(register(
        fd,
        IORING_REGISTER_ZCRX_IFQ,
        page.address.cast(),
        1,
    ))
}

/// Checks that descriptors that are all read-only give EFAULT, and leave no queue and
/// no pinned page.
fn failed_write_back_leaves_no_queue() -> TestResult {
    let ring = WideRing::new(2)?;
    for _ in 0..3 {
        expect_result("read-only", read_only(ring.fd(), true)?, -libc::EFAULT)?;
        expect_eq("pinned", pinned()?, 0)?;
    }
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a read-only area descriptor gives EFAULT, and leaves no queue and no
/// pinned page.
fn failed_write_back_of_the_area_leaves_no_queue() -> TestResult {
    let ring = WideRing::new(2)?;
    for _ in 0..3 {
        let got = read_only(ring.fd(), false)?;
        expect_result("the last one is read-only", got, -libc::EFAULT)?;
        expect_eq("pinned", pinned()?, 0)?;
    }
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that the offsets of the refill queue, the id, the buffer size and the offset
/// for mmap are written back, and nothing else.
fn offsets_id_and_sizes_are_written_back() -> TestResult {
    let ring = WideRing::new(2)?;
    let area = memory(4)?;
    for id in 0..4 {
        let mut registration = Registration::new(64, &area);
        // The kernel also writes the offset that is zero.
        registration.reg.offsets.head = u32::MAX;
        let (reg, region) = (registration.reg, registration.region);
        expect_result("registering", registration.register(ring.fd()), 0)?;
        let want = IfqReg {
            area_ptr: registration.reg.area_ptr,
            region_ptr: registration.reg.region_ptr,
            offsets: Offsets {
                head: 0,
                tail: TAIL as u32,
                rqes: RQES as u32,
                ..reg.offsets
            },
            zcrx_id: id,
            rx_buf_len: PAGE_SIZE as u32,
            ..reg
        };
        expect_eq("description", registration.reg, want)?;
        let offset = registration.region.mmap_offset;
        expect_eq("offset", offset, map_offset(id) as u64)?;
        expect_eq("size", registration.region.size, region.size)?;
        expect_eq("token", registration.area.rq_area_token, 0)?;
        expect_eq("address", registration.area.addr, area.address() as u64)?;
    }
    Ok(Outcome::Passed)
}
