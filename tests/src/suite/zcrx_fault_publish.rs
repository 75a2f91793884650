// SPDX-License-Identifier: GPL-2.0
//! D11: interface queues that cannot be published under their id. That takes no memory,
//! as the id was reserved before, so that no allocation that fails gets there: here
//! `xa_store()` itself is made to fail.

use std::os::fd::AsRawFd;
use std::path::Path;

use super::zcrx_device::{BUFFERS, works};
use super::zcrx_device_fault::Faults;
use super::zcrx_fault::{ENTRIES, PAGES, expect_no_queue};
use super::zcrx_sharing::{export, import_into, import_reg};
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, offset};
use crate::kernel::{expect_eq, expect_result};
use crate::netdev;
use crate::nic::{self, Nic};
use crate::wide::WideRing;
use crate::zcrx::{
    IfqReg, Offsets, RQES, Registration, TAIL, memory, pinned, register_ifq, transfer,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::fault" {
        FI14 publishing_fails_without_effect (60 s);
    }
};

/// What `xa_store()` returns where memory is short: `XA_ERROR(-ENOMEM)`.
const NO_MEMORY: i64 = -libc::ENOMEM as i64 * 4 + 2;

/// Runs `act`, in which `xa_store()` fails once. Returns its result.
fn failing(stores: &Faults, act: impl FnOnce() -> i32) -> anyhow::Result<i32> {
    stores.fail(1)?;
    let got = act();
    expect_eq("failures left", stores.left()?, 0)?;
    Ok(got)
}

/// Checks that what was offered was not written to, but for the pointers, which are not
/// the kernel's.
fn unwritten(now: &Registration, before: &Registration) -> anyhow::Result<()> {
    let reg = IfqReg {
        area_ptr: now.reg.area_ptr,
        region_ptr: now.reg.region_ptr,
        ..before.reg
    };
    expect_eq("the queue's description", now.reg, reg)?;
    expect_eq("the area's description", now.area, before.area)?;
    expect_eq("the region's description", now.region, before.region)
}

/// Refuses a queue without a device.
fn without_device(stores: &Faults) -> anyhow::Result<()> {
    let begin = Resources::now()?;
    let (mut ring, area) = (WideRing::new(8)?, memory(PAGES)?);
    let held = Resources::now()?;
    let mut registration = Registration::new(ENTRIES, &area);
    let got = failing(stores, || registration.register(ring.fd()))?;
    expect_result("a queue", got, -libc::ENOMEM)?;
    unwritten(&registration, &Registration::new(ENTRIES, &area))?;
    expect_no_queue(&ring)?;
    held.expect("failing")?;

    // Its id is free, and the ring as good as before.
    let mut registration = Registration::new(ENTRIES, &area);
    expect_result("again", registration.register(ring.fd()), 0)?;
    expect_eq("id", registration.reg.zcrx_id, 0)?;
    held.with_pages(PAGES).expect("registering")?;
    let ifq = crate::zcrx::Ifq::attach(ring.fd(), registration, area)?;
    transfer(&mut ring, &ifq, 10_000)?;

    // A second one does no harm to the first.
    let second = memory(PAGES)?;
    let mut registration = Registration::new(ENTRIES, &second);
    let got = failing(stores, || registration.register(ring.fd()))?;
    expect_result("a second queue", got, -libc::ENOMEM)?;
    held.with_pages(PAGES).expect("failing")?;
    transfer(&mut ring, &ifq, 10_000)?;
    drop((ifq, ring));
    begin.wait("closing")
}

/// Refuses a queue of a device, which must get it back.
fn of_device(stores: &Faults) -> anyhow::Result<()> {
    let nic = Nic::new()?;
    let (ring, area) = (WideRing::new(8)?, memory(BUFFERS)?);
    let mut registration = nic.registration(ENTRIES, &area);
    let got = failing(stores, || registration.register(ring.fd()))?;
    expect_result("a queue of a device", got, -libc::ENOMEM)?;
    unwritten(&registration, &nic.registration(ENTRIES, &area))?;
    expect_no_queue(&ring)?;
    expect_eq("provided", nic.provided()?, None)?;
    expect_eq("pools", netdev::provided_pools()?.len(), 0)?;
    expect_eq("pinned", pinned()?, 0)?;
    super::zcrx_device_end::plain(&nic)?;

    let mut registration = nic.registration(ENTRIES, &area);
    expect_result("again", registration.register(ring.fd()), 0)?;
    drop(ring);
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    works(&nic)
}

/// Refuses the queue of another ring, which goes on.
fn imported(stores: &Faults) -> anyhow::Result<()> {
    let begin = Resources::now()?;
    let (mut consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    let taken = consumer.take()?;
    let ring = WideRing::new(8)?;
    let mut reg = import_reg(file.as_raw_fd());
    let got = failing(stores, || register_ifq(ring.fd(), &mut reg))?;
    expect_result("an import", got, -libc::ENOMEM)?;
    // That was written before.
    let want = IfqReg {
        offsets: Offsets {
            tail: TAIL as u32,
            rqes: RQES as u32,
            ..Default::default()
        },
        ..import_reg(file.as_raw_fd())
    };
    expect_eq("what an import writes", reg, want)?;
    expect_no_queue(&ring)?;

    // Nobody has left who was not there: what is taken stays so.
    let free = (0..PAGES).map(offset).filter(|at| *at != taken.offset);
    let free = consumer.expect_free("free ones", &free.collect::<Vec<u64>>())?;
    taken.check(&[&area])?;
    for taken in &free {
        consumer.push_offsets(&[taken.offset]);
    }
    consumer.flush()?;
    drop(consumer);
    import_into(&ring, &file, 0)?;
    drop(file);
    let mut importer = Consumer::attach(ring, 0, ENTRIES)?;
    let free = (0..PAGES).map(offset).filter(|at| *at != taken.offset);
    importer.expect_free("free ones", &free.collect::<Vec<u64>>())?;
    drop((importer, area));
    begin.wait("closing")
}

/// Checks that a queue, one of a device, and an import that cannot be published under
/// their id give ENOMEM without effect.
fn publishing_fails_without_effect() -> TestResult {
    if !Path::new(Faults::FUNCTIONS).exists() {
        let reason = "the kernel has no CONFIG_FAIL_FUNCTION";
        return Ok(Outcome::Skipped(reason.to_string()));
    }
    let stores = Faults::function_with("xa_store", &format!("{NO_MEMORY:#x}"))?;
    without_device(&stores)?;
    of_device(&stores)?;
    imported(&stores)?;
    Ok(Outcome::Passed)
}
