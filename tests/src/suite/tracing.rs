// SPDX-License-Identifier: GPL-2.0
//! D6: the trace event of requests that are denied, which is part of the Rust code.

use std::path::Path;

use super::blind_messages::message;
use super::restrictions::restricted;
use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, OPCODE_WORD, USER_DATA_LO, jset, ld, ret};
use crate::kernel::{Implementation, expect_eq, expect_result, implementation};
use crate::register::{self, DENY_REST, Restriction, TASK, restrict_task, send_msg_ring};
use crate::ring::{IORING_SETUP_SQPOLL, Ring};
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, IOSQE_IO_LINK, Sqe, op};
use crate::trace::{self, Denied, Watch};

pub const TESTS: &[Test] = tests! {
    "restrictions::trace" {
        TE01 each_reason_is_traced;
        TE02 flags_are_those_that_decided;
        TE03 links_and_sqpoll_are_traced;
        TE04 messages_without_a_ring_are_traced;
        TE05 nothing_is_traced_while_the_event_is_off;
    }
};

const DENIED: i32 = -libc::EACCES;

/// Returns the reason to skip a test where filters are in C, which has no such event.
fn skipped() -> anyhow::Result<Option<Outcome>> {
    let is_there = Path::new(trace::ENABLE).exists();
    expect_eq(
        "the event",
        is_there,
        implementation() == Implementation::Rust,
    )?;
    Ok((!is_there).then(|| Outcome::Skipped("filters in C have no such event".to_string())))
}

/// Returns the events without the names of their rings, which must all be the same.
fn taken(watch: &Watch) -> anyhow::Result<Vec<(u64, String, u8, String)>> {
    let events = watch.take()?;
    let mut rings: Vec<&String> = events.iter().map(|event| &event.ring).collect();
    rings.dedup();
    anyhow::ensure!(rings.len() <= 1, "several rings: {events:x?}");
    Ok(events.iter().cloned().map(without_ring).collect())
}

fn without_ring(event: Denied) -> (u64, String, u8, String) {
    (event.user_data, event.opcode, event.flags, event.reason)
}

fn event(user_data: u64, opcode: &str, flags: u8, reason: &str) -> (u64, String, u8, String) {
    (user_data, opcode.to_string(), flags, reason.to_string())
}

/// Checks that the event has the ring, `user_data`, opcode, flags and reason of each
/// denied request, and there is none for those that are allowed or fail otherwise.
///
/// In C, there is no such event.
fn each_reason_is_traced() -> TestResult {
    if let Some(skipped) = skipped()? {
        return Ok(skipped);
    }
    let watch = Watch::new()?;
    let high = 0xfedc_ba98_7654_3210;

    let mut ring = restricted(&[
        Restriction::sqe_op(op::NOP),
        Restriction::sqe_op(op::RECV),
        Restriction::flags_allowed(IOSQE_ASYNC),
    ])?;
    ring.expect("allowed", Sqe::nop(), 0)?;
    ring.expect("fails", Sqe::new(op::RECV), -libc::EBADF)?;
    ring.expect("opcode", Sqe::new(op::CLOSE).user_data(high), DENIED)?;
    let linked = Sqe::nop().user_data(7).flags(IOSQE_IO_LINK);
    ring.expect("flags", linked, DENIED)?;
    let want = vec![
        event(high, "CLOSE", 0, "restriction on opcodes"),
        event(7, "NOP", IOSQE_IO_LINK, "restriction on flags"),
    ];
    expect_eq("restrictions", taken(&watch)?, want)?;

    // What a list and a filter deny is of one ring.
    let mut ring = restricted(&[Restriction::sqe_op(op::NOP)])?;
    ring.must_filter(op::NOP, &bpf::deny())?;
    ring.expect("list", Sqe::new(op::CLOSE).user_data(1), DENIED)?;
    ring.expect("filter", Sqe::nop().user_data(2), DENIED)?;
    let want = vec![
        event(1, "CLOSE", 0, "restriction on opcodes"),
        event(2, "NOP", 0, "filter, certain for the opcode"),
    ];
    expect_eq("list and filter", taken(&watch)?, want)?;

    let mut ring = Ring::new(2)?;
    let deny_async = [
        ld(OPCODE_WORD),
        jset(u32::from(IOSQE_ASYNC) << 8, 0, 1),
        ret(0),
        ret(1),
    ];
    ring.must_filter(op::NOP, &deny_async)?;
    ring.must_filter(op::CLOSE, &bpf::deny())?;
    ring.must_filter(op::RECV, &bpf::deny_if(USER_DATA_LO, 5))?;
    ring.must_filter(op::RECV, &deny_async)?;
    let got = register::filter_with(ring.fd(), op::SHUTDOWN, &bpf::allow(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    ring.must_filter(op::READ, &bpf::deny())?;
    let recv = Sqe::new(op::RECV);
    for (sqe, result) in [
        (Sqe::nop().user_data(1), 0),
        (Sqe::nop().user_data(2).flags(IOSQE_ASYNC), DENIED),
        (Sqe::new(op::CLOSE).user_data(high), DENIED),
        (recv.user_data(4), -libc::EBADF),
        (recv.user_data(5), DENIED),
        (recv.user_data(6).flags(IOSQE_ASYNC), DENIED),
        (Sqe::new(op::FSYNC).user_data(7), DENIED),
        (Sqe::new(op::READ).user_data(8), DENIED),
        (Sqe::new(op::SHUTDOWN).user_data(9), -libc::EBADF),
    ] {
        ring.expect(&format!("{sqe:x?}"), sqe, result)?;
    }
    let want = vec![
        event(2, "NOP", IOSQE_ASYNC, "filter, certain for the flags"),
        event(high, "CLOSE", 0, "filter, certain for the opcode"),
        event(5, "RECV", 0, "filter"),
        event(6, "RECV", IOSQE_ASYNC, "filter, certain for the flags"),
        event(7, "FSYNC", IOSQE_ASYNC, "DENY_REST"),
        event(8, "READ", 0, "DENY_REST"),
    ];
    expect_eq("filters", taken(&watch)?, want)?;
    Ok(Outcome::Passed)
}

/// Checks that the event has the flags of the SQE if a list denies a request, and those
/// that the filter saw if a filter does.
///
/// In C, there is no such event.
fn flags_are_those_that_decided() -> TestResult {
    if let Some(skipped) = skipped()? {
        return Ok(skipped);
    }
    let watch = Watch::new()?;
    // FSYNC always goes to a worker.
    let fsync = Sqe::new(op::FSYNC).user_data(1);
    restricted(&[Restriction::sqe_op(op::NOP)])?.expect("list", fsync, DENIED)?;
    let want = vec![event(1, "FSYNC", 0, "restriction on opcodes")];
    expect_eq("list", taken(&watch)?, want)?;
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::FSYNC, &bpf::deny_if(USER_DATA_LO, 1))?;
    ring.expect("filter", fsync, DENIED)?;
    let want = vec![event(1, "FSYNC", IOSQE_ASYNC, "filter")];
    expect_eq("filter", taken(&watch)?, want)?;
    Ok(Outcome::Passed)
}

/// Checks that each denied request of a chain is traced, and those of an SQPOLL ring
/// are.
///
/// In C, there is no such event.
fn links_and_sqpoll_are_traced() -> TestResult {
    if let Some(skipped) = skipped()? {
        return Ok(skipped);
    }
    let watch = Watch::new()?;
    let mut ring = Ring::new(8)?;
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 2))?;
    let linked = Sqe::nop().flags(IOSQE_IO_LINK);
    let chain = [
        linked.user_data(1),
        linked.user_data(2),
        Sqe::nop().user_data(2),
    ];
    ring.run_all(&chain)?;
    let want = vec![
        event(2, "NOP", IOSQE_IO_LINK, "filter"),
        event(2, "NOP", 0, "filter"),
    ];
    expect_eq("chain", taken(&watch)?, want)?;
    let mut polled = Ring::with(8, IORING_SETUP_SQPOLL)?;
    polled.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 2))?;
    polled.expect("denied", Sqe::nop().user_data(2), DENIED)?;
    let want = vec![event(2, "NOP", 0, "filter")];
    expect_eq("SQPOLL", taken(&watch)?, want)?;
    Ok(Outcome::Passed)
}

/// Checks that messages that are sent without a ring are traced as such.
///
/// In C, there is no such event, and messages are not denied.
fn messages_without_a_ring_are_traced() -> TestResult {
    if let Some(skipped) = skipped()? {
        return Ok(skipped);
    }
    let watch = Watch::new()?;
    let mut target = Ring::new(8)?;
    target.must_filter(op::NOP, &bpf::deny())?;
    target.expect("NOP", Sqe::nop(), DENIED)?;
    let ring = watch.take()?.pop().map(|event| event.ring);
    let mark = 0x8765_4321_0000_0009;
    let sqe = message(target.fd(), 1, 2).user_data(mark);
    let expect_events = |what: &str, reason: &str| -> anyhow::Result<()> {
        let events = watch.take()?;
        let names = |event: &Denied| Some(&event.ring) != ring.as_ref();
        expect_eq("names of the ring", events.iter().all(names), true)?;
        // The address of no ring is printed as it is: zero.
        let is_null = |event: &Denied| event.ring.bytes().all(|byte| byte == b'0');
        expect_eq("no ring", events.iter().all(is_null), true)?;
        let events: Vec<_> = events.into_iter().map(without_ring).collect();
        expect_eq(what, events, vec![event(mark, "MSG_RING", 0, reason)])
    };
    sandbox::in_child(|| {
        sandbox::sandboxed()?;
        let got = register::filter(TASK, op::MSG_RING, &bpf::deny());
        expect_result("filter", got, 0)?;
        expect_result("message", send_msg_ring(&sqe), DENIED)
    })?;
    expect_events("filter", "filter, certain for the opcode")?;
    sandbox::in_child(|| {
        sandbox::sandboxed()?;
        let got = register::filter(TASK, op::MSG_RING, &bpf::deny_if(USER_DATA_LO, 9));
        expect_result("filter", got, 0)?;
        expect_result("message", send_msg_ring(&sqe), DENIED)?;
        expect_result("another", send_msg_ring(&sqe.user_data(8)), 0)
    })?;
    expect_events("program", "filter")?;
    sandbox::in_child(|| {
        sandbox::sandboxed()?;
        let list = [Restriction::sqe_op(op::NOP)];
        expect_result("list", restrict_task(&list), 0)?;
        expect_result("message", send_msg_ring(&sqe), DENIED)
    })?;
    expect_events("list", "restriction on opcodes")?;
    Ok(Outcome::Passed)
}

/// Checks that denials leave no event while the event is off, and leave one again
/// afterwards.
///
/// In C, there is no such event.
fn nothing_is_traced_while_the_event_is_off() -> TestResult {
    if let Some(skipped) = skipped()? {
        return Ok(skipped);
    }
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &bpf::deny())?;
    ring.expect("before", Sqe::nop(), DENIED)?;
    let watch = Watch::new()?;
    expect_eq("before", watch.take()?, vec![])?;
    trace::switch_off()?;
    ring.expect("off", Sqe::nop(), DENIED)?;
    expect_eq("off", watch.take()?, vec![])?;
    drop(watch);
    let watch = Watch::new()?;
    ring.expect("on", Sqe::nop(), DENIED)?;
    expect_eq("on", watch.take()?.len(), 1)?;
    Ok(Outcome::Passed)
}
