// SPDX-License-Identifier: GPL-2.0
//! D10: what a driver supports and how it sets up its pools: the size of buffers is
//! left to the driver, the driver supports nothing but pages, or its pools map memory
//! for another device or not at all.

use std::fs;

use anyhow::Context;

use super::zcrx_device::{BUFFERS, ENTRIES, refused, works};
use super::zcrx_device_end::add_area;
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{
    Implementation, announce_report, expect_eq, expect_result, zcrx_implementation,
};
use crate::nic::{self, Nic, RING};
use crate::register::PAGE_SIZE;
use crate::zcrx::{Ifq, memory, pinned};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::pools" {
        ZN45 driver_without_other_sizes_is_not_asked_for_one (60 s);
        ZN46 pools_of_another_or_no_device_are_refused (60 s);
    }
};

/// Checks that a driver with pages only gives EOPNOTSUPP for any size that is named,
/// and works if none is.
fn driver_without_other_sizes_is_not_asked_for_one() -> TestResult {
    let nic = Nic::new()?;
    for (large_buffers, asked) in [(0, 0), (0, PAGE_SIZE), (0, 0), (1, PAGE_SIZE), (1, 0)] {
        let what = format!("large buffers {large_buffers}, {asked} bytes");
        nic.set("large_buffers", large_buffers)?;
        let mut ring = roomy_ring()?;
        let area = memory(BUFFERS)?;
        let mut registration = nic.registration(ENTRIES, &area);
        registration.reg.rx_buf_len = asked as u32;
        let got = registration.register(ring.fd());
        if large_buffers == 0 && asked != 0 {
            // A driver that supports only pages cannot be asked for a size, not even
            // for that of a page.
            expect_result(&what, got, -libc::EOPNOTSUPP)?;
            expect_eq(&what, registration.reg.rx_buf_len, asked as u32)?;
            expect_eq(&what, nic.provided()?, None)?;
            expect_eq("pinned", pinned()?, 0)?;
            continue;
        }
        expect_result(&what, got, 0)?;
        expect_eq(&what, registration.reg.rx_buf_len, PAGE_SIZE as u32)?;
        expect_eq(&what, nic.provided()?, Some(PAGE_SIZE as u64))?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        nic.zero_copy(&mut ring, &ifq, 50 * PAGE_SIZE)?;
        // The queue restarts, and is configured the same way.
        nic.set_ring(RING / 2)?;
        nic.zero_copy(&mut ring, &ifq, 50 * PAGE_SIZE)?;
        nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
        nic.set_ring(RING)?;
        let (got, _) = add_area(&ring, &ifq, &memory(8)?);
        expect_result("one more area", got, 0)?;
        drop((ifq, ring));
        nic.wait_released()?;
        nic::wait_pinned(0)?;
    }
    // A driver whose pools have larger buffers by default cannot take these.
    nic.set("pool_order", 1)?;
    refused(&nic, "larger by itself", libc::EINVAL, |_| {})?;
    nic.set("pool_order", 0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Makes warnings that come once per boot come again, and announces the one about a
/// pool of another device.
fn expect_warning() -> anyhow::Result<()> {
    fs::write("/sys/kernel/debug/clear_warn_once", "1").context("clear_warn_once")?;
    announce_report(match zcrx_implementation() {
        Implementation::C => "at io_pp_zc_init",
        Implementation::Rust => "page_pool/queue.rs",
    })
}

/// Checks that page pools that map for another device give EINVAL, and those that do
/// not map EOPNOTSUPP; a bound queue keeps its pool.
fn pools_of_another_or_no_device_are_refused() -> TestResult {
    let nic = Nic::new()?;
    let pools = [
        ("pool_foreign", libc::EINVAL, "Invalid argument"),
        ("pool_unmapped", libc::EOPNOTSUPP, "Operation not supported"),
    ];
    for (knob, errno, reason) in pools {
        let foreign = knob == "pool_foreign";
        nic.set(knob, 1)?;
        if foreign {
            expect_warning()?;
        }
        refused(&nic, knob, errno, |_| {})?;
        nic.set(knob, 0)?;
        works(&nic)?;

        // The driver changes its pools while the queue is bound, which keeps the pool
        // that it has.
        let mut ring = roomy_ring()?;
        let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
        nic.transfer(&mut ring, &ifq, 50 * PAGE_SIZE)?;
        nic.set(knob, 1)?;
        if foreign {
            expect_warning()?;
        }
        nic.ethtool_fails("-G zsim0 rx 32", reason)?;
        nic.set(knob, 0)?;
        expect_eq(knob, nic.provided()?, Some(PAGE_SIZE as u64))?;
        nic.zero_copy(&mut ring, &ifq, 50 * PAGE_SIZE)?;
        nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
        drop((ifq, ring));
        nic.wait_released()?;
        nic::wait_pinned(0)?;
        expect_eq("faults", nic.dma_faults()?, 0)?;
    }
    works(&nic)?;
    Ok(Outcome::Passed)
}
