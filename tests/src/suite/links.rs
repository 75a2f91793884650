// SPDX-License-Identifier: GPL-2.0
//! D4: denials inside chains of linked requests, and the completions that show for
//! them.

use std::os::fd::AsRawFd;

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{expect_eq, expect_result};
use crate::register::{self, Restriction};
use crate::ring::{IORING_CQE_F_NOTIF, IORING_SETUP_R_DISABLED, Ring, cqe};
use crate::sqe::{IOSQE_CQE_SKIP_SUCCESS, IOSQE_IO_HARDLINK, IOSQE_IO_LINK, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::link" {
        FS04 denied_member_cancels_the_link;
        FS05 denied_member_cancels_a_hard_link;
        FS06 denial_shows_in_spite_of_cqe_skip_success;
        FS07 denied_link_timeout_cancels_its_request;
        FS08link denied_send_zc_in_a_failing_link_posts_its_notification;
    }
};

const DENIED: i32 = -libc::EACCES;
const CANCELED: i32 = -libc::ECANCELED;
/// The bit of `user_data` that marks the requests that the filter denies.
const DENY: u64 = 0x100;

/// Makes a ring that denies NOPs marked with [`DENY`].
fn ring() -> anyhow::Result<Ring> {
    let ring = Ring::new(16)?;
    let program = [
        bpf::ld(USER_DATA_LO),
        bpf::jset(DENY as u32, 0, 1),
        bpf::ret(0),
        bpf::ret(1),
    ];
    ring.must_filter(op::NOP, &program)?;
    Ok(ring)
}

/// Submits NOPs, given as (`user_data`, flags), at once. Returns (`user_data`, result)
/// of all completions that follow.
fn submit(nops: &[(u64, u8)]) -> anyhow::Result<Vec<(u64, i32)>> {
    let mut ring = ring()?;
    for &(user_data, flags) in nops {
        ring.push(Sqe::nop().user_data(user_data).flags(flags))?;
    }
    expect_eq("submitted", ring.submit()?, nops.len())?;
    collect(&mut ring)
}

/// Returns all completions that come before that of a request which completes after all
/// others.
fn collect(ring: &mut Ring) -> anyhow::Result<Vec<(u64, i32)>> {
    const MARK: u64 = 0xffff_ffff_0000_0000;
    // FSYNC runs on a worker, so what is pending as task work completes before it.
    ring.push(Sqe::new(op::FSYNC).user_data(MARK))?;
    ring.submit()?;
    let mut seen = Vec::new();
    loop {
        let cqe = ring.cqe()?;
        if cqe.user_data == MARK {
            return Ok(seen);
        }
        expect_eq("completion flags", cqe.flags, 0)?;
        seen.push((cqe.user_data, cqe.res));
    }
}

/// Checks that a denied member of a link gets EACCES and cancels the others, which are
/// filtered nevertheless.
fn denied_member_cancels_the_link() -> TestResult {
    let link = IOSQE_IO_LINK;
    for denied in 0..3 {
        let mut nops = [(1, link), (2, link), (3, 0)];
        nops[denied].0 |= DENY;
        let mut want: Vec<(u64, i32)> = nops.iter().map(|&(ud, _)| (ud, CANCELED)).collect();
        want[denied].1 = DENIED;
        expect_eq(&format!("member {denied} denied"), submit(&nops)?, want)?;
    }
    // All three are filtered, even after the first denial.
    let all = [(1 | DENY, link), (2 | DENY, link), (3 | DENY, 0)];
    let want = all.map(|(ud, _)| (ud, DENIED)).to_vec();
    expect_eq("all denied", submit(&all)?, want)?;
    // A chain that the end of the submission ends, and requests before and after a
    // chain.
    let open_end = submit(&[(1, link), (2 | DENY, link)])?;
    expect_eq(
        "open end",
        open_end,
        vec![(1, CANCELED), (2 | DENY, DENIED)],
    )?;
    let mut around = submit(&[(1, 0), (2, link), (3, 0)])?;
    around.sort();
    expect_eq("nothing denied", around, vec![(1, 0), (2, 0), (3, 0)])?;
    // Without SUBMIT_ALL, a denied last member of a chain ends the batch.
    let mut ring = ring()?;
    for (user_data, flags) in [(1, link), (2 | DENY, 0), (3, 0)] {
        ring.push(Sqe::nop().user_data(user_data).flags(flags))?;
    }
    expect_eq("taken with the denied tail", ring.submit()?, 2)?;
    expect_eq("taken next", ring.submit()?, 1)?;
    let mut got = collect(&mut ring)?;
    got.sort();
    expect_eq("all", got, vec![(1, CANCELED), (3, 0), (2 | DENY, DENIED)])?;
    Ok(Outcome::Passed)
}

/// Checks that a denied member of a hard link cancels the others.
fn denied_member_cancels_a_hard_link() -> TestResult {
    let hard = IOSQE_IO_HARDLINK;
    let got = submit(&[(1, hard), (2 | DENY, hard), (3, hard), (4, 0)])?;
    let want = vec![
        (1, CANCELED),
        (2 | DENY, DENIED),
        (3, CANCELED),
        (4, CANCELED),
    ];
    expect_eq("denied middle", got, want)?;
    let got = submit(&[(1 | DENY, hard), (2, hard), (3, 0)])?;
    expect_eq(
        "denied head",
        got,
        vec![(1 | DENY, DENIED), (2, CANCELED), (3, CANCELED)],
    )?;
    Ok(Outcome::Passed)
}

/// A description, three NOPs as (`user_data`, flags), and the completions that must
/// show.
type Case<'a> = (&'a str, [(u64, u8); 3], &'a [(u64, i32)]);

/// Checks that a denied request posts its completion in spite of
/// IOSQE_CQE_SKIP_SUCCESS, and the flag decides which cancelled members do.
fn denial_shows_in_spite_of_cqe_skip_success() -> TestResult {
    let link = IOSQE_IO_LINK;
    let skip = IOSQE_CQE_SKIP_SUCCESS;
    let single = submit(&[(1 | DENY, skip)])?;
    expect_eq("single", single, vec![(1 | DENY, DENIED)])?;

    let (head, middle, tail) = (1, 2, 3);
    let cases: &[Case] = &[
        (
            "denied head, flag on the head",
            [(head | DENY, link | skip), (middle, link), (tail, 0)],
            &[(head | DENY, DENIED)],
        ),
        (
            "denied head, flag on the others",
            [(head | DENY, link), (middle, link | skip), (tail, skip)],
            &[(head | DENY, DENIED), (middle, CANCELED), (tail, CANCELED)],
        ),
        (
            "denied middle, flag on the head",
            [(head, link | skip), (middle | DENY, link), (tail, 0)],
            &[(head, CANCELED)],
        ),
        (
            "denied middle, flag on it",
            [(head, link), (middle | DENY, link | skip), (tail, 0)],
            &[(head, CANCELED), (middle | DENY, DENIED), (tail, CANCELED)],
        ),
        (
            "denied middle, flag on all",
            [
                (head, link | skip),
                (middle | DENY, link | skip),
                (tail, skip),
            ],
            &[(head, CANCELED)],
        ),
        (
            "denied tail, flag on the head",
            [(head, link | skip), (middle, link), (tail | DENY, 0)],
            &[(head, CANCELED)],
        ),
        (
            "denied tail, flag on it",
            [(head, link), (middle, link), (tail | DENY, skip)],
            &[(head, CANCELED), (middle, CANCELED), (tail | DENY, DENIED)],
        ),
    ];
    for (what, nops, want) in cases {
        expect_eq(what, submit(nops)?, want.to_vec())?;
    }
    Ok(Outcome::Passed)
}

/// Submits a read of an empty pipe with a LINK_TIMEOUT linked to it. Returns the
/// completions.
fn linked_timeout(ring: &mut Ring, head_flags: u8) -> anyhow::Result<Vec<(u64, i32)>> {
    let (reader, _writer) = nix::unistd::pipe()?;
    let mut buffer = [0u8; 4];
    let time = [1u64, 0];
    let read = Sqe::read(reader.as_raw_fd(), &mut buffer).user_data(1);
    ring.push(read.flags(IOSQE_IO_LINK | head_flags))?;
    ring.push(
        Sqe::new(op::LINK_TIMEOUT)
            .buffer(time.as_ptr(), 1)
            .user_data(2),
    )?;
    expect_eq("submitted", ring.submit()?, 2)?;
    collect(ring)
}

/// Checks that a LINK_TIMEOUT that a filter or a restriction denies cancels the request
/// to which it is linked.
fn denied_link_timeout_cancels_its_request() -> TestResult {
    let mut filtered = Ring::new(8)?;
    filtered.must_filter(op::LINK_TIMEOUT, &bpf::deny())?;
    let mut got = linked_timeout(&mut filtered, 0)?;
    got.sort();
    expect_eq("by filter", got, vec![(1, CANCELED), (2, CANCELED)])?;
    let mut got = linked_timeout(&mut filtered, IOSQE_CQE_SKIP_SUCCESS)?;
    got.sort();
    let want = vec![(1, CANCELED), (2, CANCELED)];
    expect_eq("by filter, head with CQE_SKIP_SUCCESS", got, want)?;

    let mut restricted = Ring::with(8, IORING_SETUP_R_DISABLED)?;
    const FLAGS_ALLOWED: u16 = 2;
    let flags = Restriction {
        opcode: FLAGS_ALLOWED,
        value: IOSQE_IO_LINK,
        ..Restriction::default()
    };
    let entries = [
        Restriction::sqe_op(op::READ),
        Restriction::sqe_op(op::FSYNC),
        flags,
    ];
    let got = register::restrict_ring(restricted.fd(), &entries);
    expect_result("restrictions", got, 0)?;
    expect_result("enabling", register::enable(restricted.fd()), 0)?;
    let mut got = linked_timeout(&mut restricted, 0)?;
    got.sort();
    expect_eq("by restriction", got, vec![(1, CANCELED), (2, DENIED)])?;
    Ok(Outcome::Passed)
}

/// Checks that a denied SEND_ZC at the end of a link posts its notification.
fn denied_send_zc_in_a_failing_link_posts_its_notification() -> TestResult {
    let mut ring = ring()?;
    ring.must_filter(op::SEND_ZC, &bpf::deny())?;
    let data = [0u8; 16];
    ring.push(Sqe::nop().user_data(1).flags(IOSQE_IO_LINK))?;
    ring.push(Sqe::new(op::SEND_ZC).buffer(data.as_ptr(), 16).user_data(2))?;
    expect_eq("submitted", ring.submit()?, 2)?;
    let mut got = ring.cqes(3)?;
    got.sort_by_key(|cqe| (cqe.user_data, cqe.flags));
    let want = vec![
        cqe(1, CANCELED, 0),
        cqe(2, DENIED, 0),
        cqe(2, 0, IORING_CQE_F_NOTIF),
    ];
    expect_eq("completions", got, want)?;
    ring.expect_no_cqe()?;
    Ok(Outcome::Passed)
}
