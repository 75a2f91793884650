// SPDX-License-Identifier: GPL-2.0
//! D8: control operations on an interface queue, apart from flush, sharing and
//! further areas: the errors of each, and arming events again.

use super::zcrx_sharing::{close, export, import};
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources};
use crate::kernel::{expect_eq, expect_result};
use crate::register::{PAGE_SIZE, Page, TASK, register};
use crate::ring::Ring;
use crate::wide::{WideCqe, WideRing};
use crate::zcrx::{
    Ctrl, EventDesc, IORING_REGISTER_ZCRX_CTRL, IORING_REGISTER_ZCRX_IFQ, Registration,
    ZCRX_CTRL_ARM_EVENT, ZCRX_CTRL_FLUSH_RQ, ZCRX_EVENT_ALLOC_FAIL, ZCRX_EVENT_COPY, control,
    memory,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::control" {
        ZX01 invalid_arguments_ids_and_operations_are_refused;
        ZX02 calls_without_a_ring_are_refused;
        ZX22 event_fires_once_each_time_it_is_armed;
        ZX29 events_survive_the_end_of_another_ring;
    }
};

const ENTRIES: u32 = 64;

/// Checks that each invalid argument, id and operation of IORING_REGISTER_ZCRX_CTRL
/// gives its own error, and nothing is written back.
fn invalid_arguments_ids_and_operations_are_refused() -> TestResult {
    let before = Resources::now()?;
    let (consumer, _area) = Consumer::new(ENTRIES, 2)?;
    let fd = consumer.ring.fd();
    let held = Resources::now()?;
    let flush = Ctrl {
        op: ZCRX_CTRL_FLUSH_RQ,
        ..Default::default()
    };
    let raw =
        |address: *const u8, count| register(fd, IORING_REGISTER_ZCRX_CTRL, address.cast(), count);
    let valid = (&raw const flush).cast();
    expect_result("one argument", raw(valid, 1), -libc::EINVAL)?;
    expect_result("most arguments", raw(valid, u32::MAX), -libc::EINVAL)?;
    expect_result("no address", raw(std::ptr::null(), 0), -libc::EFAULT)?;
    let page = Page::new()?;
    let end = page.address.wrapping_add(PAGE_SIZE - size_of::<Ctrl>());
    expect_result("at the end of a page", raw(end, 0), 0)?;
    let cut = raw(end.wrapping_add(8), 0);
    expect_result("over the end of a page", cut, -libc::EFAULT)?;
    let both = raw(std::ptr::null(), 1);
    expect_result("one argument and no address", both, -libc::EINVAL)?;

    let reserved = |word: usize| {
        let mut ctrl = flush;
        ctrl.resv[word] = 1 << 63;
        ctrl
    };
    let with = |zcrx_id, op| Ctrl {
        zcrx_id,
        op,
        ..Default::default()
    };
    for (what, ctrl, error) in [
        ("reserved bytes", reserved(0), libc::EFAULT),
        ("other reserved bytes", reserved(1), libc::EFAULT),
        ("an id that is not yet", with(1, 0), libc::ENXIO),
        ("the last id", with(u32::MAX, 0), libc::ENXIO),
        ("unknown id and operation", with(1, 4), libc::ENXIO),
        ("operation 4", with(0, 4), libc::EOPNOTSUPP),
        ("the last operation", with(0, u32::MAX), libc::EOPNOTSUPP),
    ] {
        let mut copy = ctrl;
        expect_result(what, control(fd, &mut copy), -error)?;
        expect_eq(what, copy, ctrl)?;
    }
    let mut ctrl = reserved(0);
    (ctrl.zcrx_id, ctrl.op) = (1, 4);
    let got = control(fd, &mut ctrl);
    expect_result("reserved bytes and an unknown id", got, -libc::EFAULT)?;
    let got = control(Ring::new(2)?.fd(), &mut { flush });
    expect_result("a ring that cannot have any", got, -libc::ENXIO)?;

    held.expect("errors")?;
    consumer.flush()?;
    drop((consumer, page));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that registering and controlling queues without a ring gives EINVAL.
fn calls_without_a_ring_are_refused() -> TestResult {
    let before = Resources::now()?;
    let ring = WideRing::new(2)?;
    let area = memory(2)?;
    let mut registration = Registration::new(ENTRIES, &area);
    let unregistered = registration.reg;
    let got = registration.register(TASK);
    expect_result("registering without a ring", got, -libc::EINVAL)?;
    let null = std::ptr::null();
    for opcode in [IORING_REGISTER_ZCRX_IFQ, IORING_REGISTER_ZCRX_CTRL] {
        for count in [0, 1] {
            let got = register(TASK, opcode, null, count);
            expect_result(&format!("{opcode}, {count} times"), got, -libc::EINVAL)?;
        }
    }
    // The same registration works on a ring.
    registration.reg = unregistered;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    expect_eq("id", registration.reg.zcrx_id, 0)?;
    let mut flush = Ctrl::default();
    let got = control(TASK, &mut flush);
    expect_result("flush without a ring", got, -libc::EINVAL)?;
    expect_result("flush", control(ring.fd(), &mut flush), 0)?;
    drop((ring, area));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Builds the completion of an event.
fn event(user_data: u64, kind: u32) -> WideCqe {
    WideCqe {
        user_data,
        res: kind as i32,
        flags: 0,
        extra: Some([0, 0]),
    }
}

/// Arms an event.
fn arm(consumer: &Consumer, kind: u32) -> i32 {
    let mut ctrl = Ctrl {
        zcrx_id: consumer.id,
        op: ZCRX_CTRL_ARM_EVENT,
        ..Default::default()
    };
    ctrl.union[0] = kind.into();
    control(consumer.ring.fd(), &mut ctrl)
}

/// Checks that an event fires once in the first ring each time that it is armed, other
/// arming gives EINVAL, and it ends with the first ring.
fn event_fires_once_each_time_it_is_armed() -> TestResult {
    const DATA: u64 = 0xfeed_0000_beef_1111;
    let before = Resources::now()?;
    let area = memory(8)?;
    let mut registration = Registration::new(ENTRIES, &area);
    registration.with_event = true;
    registration.event = EventDesc {
        user_data: DATA,
        type_mask: 1 << ZCRX_EVENT_ALLOC_FAIL | 1 << ZCRX_EVENT_COPY,
        ..Default::default()
    };
    let mut consumer = Consumer::register(registration)?;
    let held = Resources::now()?;

    let refused = |consumer: &Consumer, when: &str| -> anyhow::Result<()> {
        for kind in [2, 3, 32, 33, u32::MAX] {
            let what = format!("{when}: type {kind}");
            expect_result(&what, arm(consumer, kind), -libc::EINVAL)?;
        }
        for word in 1..12 {
            let mut ctrl = Ctrl {
                op: ZCRX_CTRL_ARM_EVENT,
                ..Default::default()
            };
            ctrl.union[0] = ZCRX_EVENT_COPY.into();
            ctrl.union[word / 2] |= 1 << (32 * (word % 2));
            let what = format!("{when}: reserved word {word}");
            let got = control(consumer.ring.fd(), &mut ctrl);
            expect_result(&what, got, -libc::EINVAL)?;
        }
        let got = arm(consumer, ZCRX_EVENT_ALLOC_FAIL);
        expect_result(&format!("{when}: the other"), got, -libc::EINVAL)
    };
    refused(&consumer, "before any")?;
    let got = arm(&consumer, ZCRX_EVENT_COPY);
    expect_result("arming what is armed", got, -libc::EINVAL)?;

    for round in ["first", "second"] {
        consumer.take()?;
        let fired = consumer.take_others()?;
        expect_eq(round, fired, vec![event(DATA, ZCRX_EVENT_COPY)])?;
        // An event that has fired stays silent, whatever other calls are refused.
        refused(&consumer, round)?;
        consumer.take()?;
        expect_eq("until it is armed", consumer.take_others()?, vec![])?;
        expect_result("arming", arm(&consumer, ZCRX_EVENT_COPY), 0)?;
        let got = arm(&consumer, ZCRX_EVENT_COPY);
        expect_result("arming twice", got, -libc::EINVAL)?;
        expect_eq("for what was before", consumer.take_others()?, vec![])?;
    }
    held.expect("events")?;

    // The first ring gets the event for what other rings receive; they do not.
    let mut importer = import(&export(&consumer)?)?;
    importer.take()?;
    expect_eq("in another ring", importer.take_others()?, vec![])?;
    let fired = consumer.take_others()?;
    expect_eq(
        "in the first ring",
        fired,
        vec![event(DATA, ZCRX_EVENT_COPY)],
    )?;
    let got = arm(&importer, ZCRX_EVENT_COPY);
    expect_result("arming from another ring", got, 0)?;
    // Once the first ring is gone, no event fires.
    close(consumer)?;
    importer.take()?;
    expect_eq("without the first ring", importer.take_others()?, vec![])?;
    let got = arm(&importer, ZCRX_EVENT_COPY);
    expect_result("arming without the first ring", got, -libc::EINVAL)?;

    let (mut without, other) = Consumer::new(ENTRIES, 2)?;
    without.take()?;
    expect_eq("without events", without.take_others()?, vec![])?;
    for kind in [ZCRX_EVENT_ALLOC_FAIL, ZCRX_EVENT_COPY] {
        let got = arm(&without, kind);
        expect_result("arming without events", got, -libc::EINVAL)?;
    }
    drop((importer, area, without, other));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that events go on to the first ring after other rings of the queue have
/// closed.
fn events_survive_the_end_of_another_ring() -> TestResult {
    const DATA: u64 = 0x0ddb_a115_0000_2929;
    let before = Resources::now()?;
    let area = memory(16)?;
    let mut registration = Registration::new(ENTRIES, &area);
    registration.with_event = true;
    registration.event = EventDesc {
        user_data: DATA,
        type_mask: 1 << ZCRX_EVENT_COPY,
        ..Default::default()
    };
    let mut consumer = Consumer::register(registration)?;
    let fired = || vec![event(DATA, ZCRX_EVENT_COPY)];

    // The event has either fired or been armed again when another ring closes.
    for armed in [false, true, false, true] {
        let mut importer = import(&export(&consumer)?)?;
        let mut idle = import(&export(&importer)?)?;
        importer.take()?;
        expect_eq("in the other ring", importer.take_others()?, vec![])?;
        expect_eq("in the first ring", consumer.take_others()?, fired())?;
        if armed {
            expect_result("arming", arm(&consumer, ZCRX_EVENT_COPY), 0)?;
        }
        close(importer)?;
        expect_eq("for a ring that closes", consumer.take_others()?, vec![])?;
        idle.take()?;
        let after = match armed {
            true => fired(),
            false => vec![],
        };
        expect_eq("for a third ring", consumer.take_others()?, after)?;
        expect_result("arming again", arm(&consumer, ZCRX_EVENT_COPY), 0)?;
        // A ring that has received nothing closes as well.
        close(idle)?;
        consumer.take()?;
        expect_eq("alone again", consumer.take_others()?, fired())?;
        expect_result("for the next round", arm(&consumer, ZCRX_EVENT_COPY), 0)?;
    }
    drop((consumer, area));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}
