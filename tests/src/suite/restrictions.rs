// SPDX-License-Identifier: GPL-2.0
//! D6: the opcodes that the restrictions of a ring allow, and the lists of restrictions
//! that are accepted. SQE flags are in `restriction_flags`, the restrictions of a task
//! in `task_restrictions`.

use anyhow::ensure;

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{IORING_REGISTER_LAST, describe, expect_eq, expect_result};
use crate::register::{
    self, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_EVENTFD,
    IORING_REGISTER_FILES, IORING_REGISTER_PERSONALITY, IORING_REGISTER_RESTRICTIONS,
    MAX_RESTRICTIONS, PAGE_SIZE, Page, Registration, Restriction, TASK, opcodes,
};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SQPOLL, RawParams, Ring, enter, setup};
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, IOSQE_IO_LINK, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::ring" {
        RS01 single_listed_sqe_opcode_is_allowed (60 s);
        RS02 single_listed_register_opcode_is_allowed (30 s);
        RS04 empty_list_denies_everything;
        RS05 enabled_ring_cannot_be_restricted;
        RS06 disabled_ring_submits_nothing;
        RS07 second_list_is_refused;
        RS08 list_may_have_107_entries;
        RS09 invalid_entry_leaves_no_restrictions;
        RS09efault unreadable_list_comes_before_invalid_entries;
        RS10 refused_list_keeps_inherited_filters;
        RS11 reserved_bytes_of_entries_are_ignored;
        RS13 register_list_leaves_sqes_free;
        RS15 list_applies_from_enabling_on;
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// Makes a ring that is still disabled.
pub fn disabled() -> anyhow::Result<Ring> {
    Ring::with(4, IORING_SETUP_R_DISABLED)
}

/// Restricts a disabled ring, which must succeed, and enables it.
fn restrict_and_enable(ring: &Ring, entries: &[Restriction]) -> anyhow::Result<()> {
    let got = register::restrict_ring(ring.fd(), entries);
    expect_result("restrictions", got, 0)?;
    expect_result("enabling", register::enable(ring.fd()), 0)
}

/// Makes a ring, restricts it and enables it.
pub fn restricted(entries: &[Restriction]) -> anyhow::Result<Ring> {
    let ring = disabled()?;
    restrict_and_enable(&ring, entries)?;
    Ok(ring)
}

/// Returns the result of a zeroed request of each opcode.
pub fn answers(ring: &mut Ring) -> anyhow::Result<Vec<i32>> {
    // ASYNC_CANCEL looks for requests with `user_data` 0, and a worker may still have
    // one.
    opcodes()
        .map(|opcode| ring.run(Sqe::new(opcode).user_data(7)))
        .collect()
}

/// Returns the expected [`answers`] of a ring that denies all but some opcodes. Allowed
/// opcodes have the same results as on a ring without restrictions.
pub fn answers_if_allowed(allowed: impl Fn(u8) -> bool) -> anyhow::Result<Vec<i32>> {
    let free = answers(&mut Ring::new(4)?)?;
    let want = opcodes().map(|opcode| match opcode {
        // These need two slots, which the kernel checks first.
        op::NOP128.. => INVALID,
        _ if allowed(opcode) => free[usize::from(opcode)],
        _ => DENIED,
    });
    Ok(want.collect())
}

/// Calls `io_uring_register(2)` without an argument. Returns its result.
pub fn bare_register(fd: i32, opcode: u32) -> i32 {
    register::register(fd, opcode, std::ptr::null(), 0)
}

/// Checks that a ring has no restrictions.
pub fn expect_free(what: &str, ring: &mut Ring) -> anyhow::Result<()> {
    expect_eq(what, answers(ring)?, answers_if_allowed(|_| true)?)?;
    let recv = Sqe::new(op::RECV).flags(IOSQE_ASYNC);
    ring.expect(&format!("{what}: flags"), recv, -libc::EBADF)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    ensure!(got > 0, "{what}: registering a personality: {got}");
    Ok(())
}

/// Checks that a list with one SQE opcode allows that opcode and denies every other
/// with EACCES.
fn single_listed_sqe_opcode_is_allowed() -> TestResult {
    let free = answers_if_allowed(|_| true)?;
    ensure!(!free.contains(&DENIED), "denied without restrictions");
    for allowed in opcodes() {
        let mut ring = restricted(&[Restriction::sqe_op(allowed)])?;
        let want = answers_if_allowed(|opcode| opcode == allowed)?;
        expect_eq(
            &format!("opcode {allowed} allowed"),
            answers(&mut ring)?,
            want,
        )?;
    }
    // Several opcodes, out of order, one of them twice.
    let some = [op::SOCKET, op::NOP, op::CLOSE, op::NOP];
    let mut ring = restricted(&some.map(Restriction::sqe_op))?;
    let want = answers_if_allowed(|opcode| some.contains(&opcode))?;
    expect_eq("several", answers(&mut ring)?, want)?;
    Ok(Outcome::Passed)
}

/// Checks that a list with one register opcode allows that opcode, denies every other
/// with EACCES, and leaves SQEs alone.
fn single_listed_register_opcode_is_allowed() -> TestResult {
    for allowed in 0..IORING_REGISTER_LAST {
        let mut ring = restricted(&[Restriction::register_op(allowed)])?;
        for opcode in 0..IORING_REGISTER_LAST {
            let got = bare_register(ring.fd(), opcode);
            let want = if opcode == allowed {
                bare_register(Ring::new(4)?.fd(), opcode)
            } else {
                DENIED
            };
            expect_result(&format!("{opcode}, {allowed} allowed"), got, want)?;
            ensure!(opcode != allowed || got != DENIED, "{opcode} is denied");
        }
        let got = bare_register(ring.fd(), IORING_REGISTER_LAST);
        expect_result("first unknown opcode", got, INVALID)?;
        ring.expect("NOP", Sqe::nop(), 0)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that an empty list denies every SQE and register opcode, and a NULL list
/// gives EINVAL.
fn empty_list_denies_everything() -> TestResult {
    let ring = disabled()?;
    for entries in [0, 1, MAX_RESTRICTIONS as u32] {
        let null = std::ptr::null();
        let got = register::register(ring.fd(), IORING_REGISTER_RESTRICTIONS, null, entries);
        expect_result(&format!("NULL, {entries} entries"), got, INVALID)?;
    }
    // The kernel reads nothing of an empty list.
    for address in [std::ptr::dangling::<u64>(), &0u64] {
        let mut ring = disabled()?;
        let got = register::register(ring.fd(), IORING_REGISTER_RESTRICTIONS, address.cast(), 0);
        expect_result("empty list", got, 0)?;
        expect_result("enabling", register::enable(ring.fd()), 0)?;
        let want = answers_if_allowed(|_| false)?;
        expect_eq("SQEs", answers(&mut ring)?, want)?;
        for opcode in 0..IORING_REGISTER_LAST {
            let got = bare_register(ring.fd(), opcode);
            expect_result(&format!("register opcode {opcode}"), got, DENIED)?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that restricting a ring that is enabled gives EBADFD and has no effect.
fn enabled_ring_cannot_be_restricted() -> TestResult {
    let mut enabled = Ring::new(4)?;
    let mut was_disabled = disabled()?;
    expect_result("enabling", register::enable(was_disabled.fd()), 0)?;
    expect_result("again", register::enable(was_disabled.fd()), -libc::EBADFD)?;
    for ring in [&mut enabled, &mut was_disabled] {
        let got = register::restrict_ring(ring.fd(), &[Restriction::sqe_op(op::NOP)]);
        expect_result("valid list", got, -libc::EBADFD)?;
        let got = bare_register(ring.fd(), IORING_REGISTER_RESTRICTIONS);
        expect_result("NULL", got, -libc::EBADFD)?;
        expect_free("afterwards", ring)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a disabled ring gives EBADFD for io_uring_enter, and a shared SQPOLL
/// thread submits nothing of it.
fn disabled_ring_submits_nothing() -> TestResult {
    const IORING_ENTER_SQ_WAKEUP: u32 = 1 << 1;
    const IORING_SETUP_ATTACH_WQ: u32 = 1 << 5;
    let mut enabled = Ring::with(4, IORING_SETUP_SQPOLL)?;
    for flags in [0, IORING_SETUP_SQPOLL | IORING_SETUP_ATTACH_WQ] {
        let what = format!("setup flags {flags:#x}");
        let mut params = RawParams::default();
        params[2] = flags | IORING_SETUP_R_DISABLED;
        // The ring whose SQPOLL thread the new one shares, if it has one.
        params[6] = enabled.fd() as u32;
        let fd = setup(4, &mut params);
        ensure!(fd >= 0, "{what}: {}", describe(fd));
        let mut ring = Ring::attach(fd, params)?;
        ring.push(Sqe::nop().user_data(1))?;
        for (submit, wait, with) in [(1, 0, 0), (0, 0, 0), (1, 0, IORING_ENTER_SQ_WAKEUP)] {
            let got = enter(ring.fd(), submit, wait, with);
            expect_result(&format!("{what}: {submit}, {with}"), got, -libc::EBADFD)?;
        }
        // By the second of these requests, the thread has looked at each ring that it
        // serves.
        for _ in 0..2 {
            enabled.expect("the other ring of the thread", Sqe::nop(), 0)?;
        }
        expect_eq(&what, ring.try_cqe(), None)?;
        expect_result("enabling", register::enable(ring.fd()), 0)?;
        ring.submit()?;
        expect_eq(&what, ring.cqe()?, crate::ring::cqe(1, 0, 0))?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a second list gives EBUSY and leaves the first in force.
fn second_list_is_refused() -> TestResult {
    // The kind of the first list does not matter.
    let lists: [&[Restriction]; 4] = [
        &[Restriction::sqe_op(op::NOP)],
        &[Restriction::register_op(IORING_REGISTER_FILES)],
        &[Restriction::sqe_op(op::NOP), Restriction::flags_allowed(0)],
        &[],
    ];
    for (i, first) in lists.into_iter().enumerate() {
        let mut ring = disabled()?;
        let got = register::restrict_ring(ring.fd(), first);
        expect_result(&format!("list {i}"), got, 0)?;
        for second in lists {
            let got = register::restrict_ring(ring.fd(), second);
            expect_result(&format!("after list {i}"), got, -libc::EBUSY)?;
        }
        let got = bare_register(ring.fd(), IORING_REGISTER_RESTRICTIONS);
        expect_result("NULL", got, -libc::EBUSY)?;
        expect_result("enabling", register::enable(ring.fd()), 0)?;
        let nop = if i == 3 { DENIED } else { 0 };
        ring.expect("NOP", Sqe::nop(), nop)?;
        let close = if i == 1 { -libc::EBADF } else { DENIED };
        ring.expect("CLOSE", Sqe::new(op::CLOSE), close)?;
    }
    Ok(Outcome::Passed)
}

/// Builds the longest list: every opcode of both kinds, and in the end all SQE flags
/// allowed.
pub fn everything() -> Vec<Restriction> {
    let mut entries: Vec<Restriction> = vec![
        Restriction::flags_allowed(0),
        Restriction::flags_required(IOSQE_ASYNC),
    ];
    entries.extend(opcodes().map(Restriction::sqe_op));
    entries.extend((0..IORING_REGISTER_LAST).map(Restriction::register_op));
    entries.push(Restriction::flags_allowed(0x7f));
    entries.push(Restriction::flags_required(0));
    assert_eq!(entries.len(), MAX_RESTRICTIONS);
    entries
}

/// Checks that a list of 107 entries is accepted, and a longer one gives EINVAL before
/// it is read.
fn list_may_have_107_entries() -> TestResult {
    let mut ring = disabled()?;
    let mut entries = everything();
    entries.push(Restriction::sqe_op(op::NOP));
    let got = register::restrict_ring(ring.fd(), &entries);
    expect_result("108 entries", got, INVALID)?;
    for count in [MAX_RESTRICTIONS as u32 + 1, 1 << 28, u32::MAX] {
        let arg = std::ptr::dangling::<u64>().cast();
        let got = register::register(ring.fd(), IORING_REGISTER_RESTRICTIONS, arg, count);
        expect_result(&format!("{count} entries, unmapped"), got, INVALID)?;
    }
    entries.pop();
    restrict_and_enable(&ring, &entries)?;
    expect_free("all 107 entries", &mut ring)?;
    // The same entry in all places.
    let mut ring = restricted(&vec![Restriction::sqe_op(op::NOP); MAX_RESTRICTIONS])?;
    let want = answers_if_allowed(|opcode| opcode == op::NOP)?;
    expect_eq("107 times NOP", answers(&mut ring)?, want)?;
    Ok(Outcome::Passed)
}

/// Builds entries that the kernel does not know.
pub fn invalid_entries() -> Vec<Restriction> {
    let entry = |opcode, value| Restriction {
        opcode,
        value,
        ..Restriction::default()
    };
    let mut entries: Vec<Restriction> = [4, 5, 0x100, 0x101, u16::MAX]
        .map(|opcode| entry(opcode, 0))
        .into();
    entries.extend([38, 39, 63, 64, 127, 128, 255].map(Restriction::register_op));
    entries.extend([65, 66, 127, 128, 255].map(Restriction::sqe_op));
    entries
}

/// Checks that an invalid entry anywhere in a list gives EINVAL, and the ring is as
/// free as before.
fn invalid_entry_leaves_no_restrictions() -> TestResult {
    for invalid in invalid_entries() {
        let what = format!("kind {}, value {}", invalid.opcode, invalid.value);
        let valid = [
            Restriction::register_op(IORING_REGISTER_FILES),
            Restriction::sqe_op(op::CLOSE),
            Restriction::flags_allowed(IOSQE_IO_LINK),
            Restriction::flags_required(IOSQE_ASYNC),
        ];
        for position in [0, 2, 4] {
            let mut entries = valid.to_vec();
            entries.insert(position, invalid);
            let mut free = disabled()?;
            let got = register::restrict_ring(free.fd(), &entries);
            expect_result(&what, got, INVALID)?;
            expect_result("enabling", register::enable(free.fd()), 0)?;
            free.expect(&format!("{what}: NOP"), Sqe::nop(), 0)?;
            let got = bare_register(free.fd(), IORING_REGISTER_PERSONALITY);
            ensure!(got > 0, "{what}: registering a personality: {got}");

            let retried = disabled()?;
            let got = register::restrict_ring(retried.fd(), &entries);
            expect_result(&what, got, INVALID)?;
            let mut retried = retried;
            restrict_and_enable(&retried, &[Restriction::sqe_op(op::NOP)])?;
            retried.expect(&format!("{what}: NOP again"), Sqe::nop(), 0)?;
            let linked = Sqe::nop().flags(IOSQE_IO_LINK);
            retried.expect(&format!("{what}: flags"), linked, DENIED)?;
            let close = Sqe::new(op::CLOSE).flags(IOSQE_ASYNC);
            retried.expect(&format!("{what}: CLOSE"), close, DENIED)?;
            let got = bare_register(retried.fd(), IORING_REGISTER_PERSONALITY);
            ensure!(got > 0, "{what}: registering a personality: {got}");
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that a list that cannot be read to its end gives EFAULT, even if its
/// beginning is invalid.
fn unreadable_list_comes_before_invalid_entries() -> TestResult {
    let mut ring = disabled()?;
    let size = size_of::<Restriction>();
    let page = Page::new()?;
    for readable in [1, 2] {
        let start = PAGE_SIZE - readable * size;
        for i in 0..readable {
            page.write(start + i * size, &invalid_entries()[0]);
        }
        // SAFETY: the address is inside the page.
        let list = unsafe { page.address.add(start) };
        for entries in [readable as u32 + 1, 100] {
            let got = register::register(
                ring.fd(),
                IORING_REGISTER_RESTRICTIONS,
                list.cast(),
                entries,
            );
            let what = format!("{readable} entries of {entries} can be read");
            expect_result(&what, got, -libc::EFAULT)?;
        }
    }
    // Half an entry cannot be read either.
    // SAFETY: the address is inside the page.
    let half = unsafe { page.address.add(PAGE_SIZE - size / 2) };
    let got = register::register(ring.fd(), IORING_REGISTER_RESTRICTIONS, half.cast(), 1);
    expect_result("half an entry", got, -libc::EFAULT)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    expect_free("afterwards", &mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring keeps the filters that it inherited when a list is refused, and
/// shares them with the task as before.
fn refused_list_keeps_inherited_filters() -> TestResult {
    sandbox::sandboxed()?;
    let deny_nop = |user_data| bpf::deny_if(USER_DATA_LO, user_data);
    let got = register::filter(TASK, op::NOP, &deny_nop(1));
    expect_result("task filter", got, 0)?;
    let refused = [
        Restriction::sqe_op(op::CLOSE),
        Restriction::flags_required(IOSQE_ASYNC),
        Restriction::register_op(IORING_REGISTER_FILES),
        Restriction::sqe_op(65),
    ];

    // After a retry that succeeds, both the filters and the list hold.
    let mut both = disabled()?;
    for _ in 0..3 {
        let got = register::restrict_ring(both.fd(), &refused);
        expect_result("refused list", got, INVALID)?;
    }
    restrict_and_enable(&both, &[Restriction::sqe_op(op::NOP)])?;
    both.expect("NOP 0", Sqe::nop(), 0)?;
    both.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    both.expect("CLOSE", Sqe::new(op::CLOSE), DENIED)?;

    // Without a retry, only the filters hold, and the ring still shares them with the
    // task.
    let mut ring = disabled()?;
    let got = register::restrict_ring(ring.fd(), &refused);
    expect_result("refused list", got, INVALID)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    ring.expect("NOP 2", Sqe::nop().user_data(2), 0)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
    ring.must_filter(op::NOP, &deny_nop(2))?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    ring.expect("NOP 2", Sqe::nop().user_data(2), DENIED)?;
    drop(ring);
    let mut of_task = Ring::new(2)?;
    of_task.expect("NOP 1 of another ring", Sqe::nop().user_data(1), DENIED)?;
    of_task.expect("NOP 2 of another ring", Sqe::nop().user_data(2), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that the reserved bytes of entries have no effect.
fn reserved_bytes_of_entries_are_ignored() -> TestResult {
    let entries = [
        Restriction::sqe_op(op::NOP),
        Restriction::flags_allowed(IOSQE_ASYNC),
        Restriction::register_op(IORING_REGISTER_PERSONALITY),
    ]
    .map(|entry| Restriction {
        resv: 0xff,
        resv2: [1, u32::MAX, 0x8000_0000],
        ..entry
    });
    let mut ring = restricted(&entries)?;
    ring.expect("NOP", Sqe::nop().flags(IOSQE_ASYNC), 0)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), DENIED)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("listed register opcode", got, 1)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_FILES);
    expect_result("another one", got, DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that a list of register opcodes alone allows every SQE.
fn register_list_leaves_sqes_free() -> TestResult {
    let mut ring = restricted(&[Restriction::register_op(IORING_REGISTER_PERSONALITY)])?;
    expect_free("SQEs", &mut ring)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_FILES);
    expect_result("FILES", got, DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring's list does not apply while the ring is disabled, and from then
/// on also to filters.
fn list_applies_from_enabling_on() -> TestResult {
    let mut ring = disabled()?;
    let listed = [Restriction::register_op(IORING_REGISTER_FILES)];
    let got = register::restrict_ring(ring.fd(), &listed);
    expect_result("restrictions", got, 0)?;
    let program = bpf::deny_if(USER_DATA_LO, 1);
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("personality while disabled", got, 1)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_EVENTFD);
    expect_result("eventfd while disabled", got, INVALID)?;
    ring.must_filter(op::NOP, &program)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;

    for opcode in [
        IORING_REGISTER_PERSONALITY,
        IORING_REGISTER_EVENTFD,
        IORING_REGISTER_ENABLE_RINGS,
        IORING_REGISTER_RESTRICTIONS,
        IORING_REGISTER_BPF_FILTER,
    ] {
        let what = format!("register opcode {opcode} afterwards");
        expect_result(&what, bare_register(ring.fd(), opcode), DENIED)?;
    }
    let mut registration = Registration::new(op::SOCKET, &program);
    registration.pdu_size = 1;
    let before = registration;
    expect_result(
        "a filter afterwards",
        registration.register(ring.fd()),
        DENIED,
    )?;
    expect_eq("its struct", registration, before)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_FILES);
    expect_result("the one listed", got, -libc::EFAULT)?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    ring.expect("NOP 2", Sqe::nop().user_data(2), 0)?;
    Ok(Outcome::Passed)
}
