// SPDX-License-Identifier: GPL-2.0
//! D6: restrictions that a task gives itself: the privilege that this takes, the order
//! of checks, and their effect on rings and on registering without a ring.

use std::os::fd::RawFd;

use anyhow::ensure;

use super::restrictions::{
    answers, answers_if_allowed, bare_register, everything, invalid_entries,
};
use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{
    IORING_REGISTER_LAST, Implementation, expect_eq, expect_result, implementation,
};
use crate::register::{
    self, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_FILES,
    IORING_REGISTER_PERSONALITY, IORING_REGISTER_QUERY, IORING_REGISTER_RESTRICTIONS,
    IORING_REGISTER_SEND_MSG_RING, IORING_REGISTER_USE_REGISTERED_RING, PAGE_SIZE, Page,
    Registration, Restriction, TASK, TASK_RESTRICTION_HEADER, register as raw_register,
    restrict_task, task_restriction,
};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SQPOLL, Ring, enter};
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::task" {
        RS16 inherited_list_decides_on_enabling_a_ring;
        RS17 ring_with_inherited_list_refuses_its_own;
        RS17filter ring_with_inherited_filters_accepts_a_list;
        RS18 sqe_list_applies_to_new_rings_and_children;
        RS18register register_list_applies_to_new_rings_and_the_task;
        RS18all leaving_one_entry_out_denies_only_that (30 s);
        RS19 malformed_argument_is_refused;
        RS20 privilege_is_checked_before_the_argument;
        RS20ns cap_sys_admin_of_own_user_namespace_suffices;
        RS21 register_list_applies_without_a_ring;
        RS22 empty_list_denies_everything;
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// Restricts the calling task, which must succeed.
fn restrict(entries: &[Restriction]) -> anyhow::Result<()> {
    expect_result("task restrictions", restrict_task(entries), 0)
}

/// Checks that a ring that inherited a register list is enabled only if the list has
/// IORING_REGISTER_ENABLE_RINGS.
fn inherited_list_decides_on_enabling_a_ring() -> TestResult {
    sandbox::sandboxed()?;
    let files = Restriction::register_op(IORING_REGISTER_FILES);
    let enable = Restriction::register_op(IORING_REGISTER_ENABLE_RINGS);
    let restrictions = Restriction::register_op(IORING_REGISTER_RESTRICTIONS);
    sandbox::in_child(|| {
        restrict(&[files])?;
        let ring = Ring::with(2, IORING_SETUP_R_DISABLED)?;
        for _ in 0..2 {
            expect_result("enabling", register::enable(ring.fd()), DENIED)?;
            expect_result("entering", enter(ring.fd(), 1, 0, 0), -libc::EBADFD)?;
            let got = register::restrict_ring(ring.fd(), &[enable]);
            expect_result("a list of its own", got, DENIED)?;
        }
        // Nobody else can enable the ring either.
        sandbox::in_child(|| expect_result("child", register::enable(ring.fd()), DENIED))?;
        let got = bare_register(ring.fd(), IORING_REGISTER_FILES);
        expect_result("FILES", got, -libc::EFAULT)
    })?;
    sandbox::in_child(|| {
        restrict(&[enable, restrictions])?;
        let mut ring = Ring::with(2, IORING_SETUP_R_DISABLED)?;
        let got = bare_register(ring.fd(), IORING_REGISTER_FILES);
        expect_result("FILES while disabled", got, DENIED)?;
        let got = register::restrict_ring(ring.fd(), &[files]);
        expect_result("a list of its own", got, -libc::EBUSY)?;
        expect_result("enabling", register::enable(ring.fd()), 0)?;
        expect_result("again", register::enable(ring.fd()), -libc::EBADFD)?;
        ring.expect("NOP", Sqe::nop(), 0)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that a ring that inherited restrictions gives EBUSY for a list of its own.
fn ring_with_inherited_list_refuses_its_own() -> TestResult {
    sandbox::sandboxed()?;
    restrict(&[Restriction::sqe_op(op::NOP)])?;
    let mut ring = Ring::with(2, IORING_SETUP_R_DISABLED)?;
    for entries in [
        vec![Restriction::sqe_op(op::CLOSE)],
        vec![Restriction::register_op(IORING_REGISTER_FILES)],
        invalid_entries(),
    ] {
        let got = register::restrict_ring(ring.fd(), &entries);
        expect_result("a list of its own", got, -libc::EBUSY)?;
    }
    // No register list was inherited, so enabling needs no permission.
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    let want = answers_of_restricted(&[op::NOP])?;
    expect_eq("SQEs", answers(&mut ring)?, want)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("registering", got, 1)?;
    Ok(Outcome::Passed)
}

/// Returns the expected [`answers`] of a ring of a restricted task that allows only
/// `allowed`, which may contain NOP and CLOSE. Unlike [`answers_if_allowed`], this
/// needs no ring without restrictions.
fn answers_of_restricted(allowed: &[u8]) -> anyhow::Result<Vec<i32>> {
    // The results of NOP and CLOSE are known; the other opcodes are denied.
    let want = crate::register::opcodes().map(|opcode| match opcode {
        op::NOP if allowed.contains(&opcode) => 0,
        op::CLOSE if allowed.contains(&opcode) => -libc::EBADF,
        op::NOP128.. => INVALID,
        _ => DENIED,
    });
    Ok(want.collect())
}

/// Checks that a ring that inherited filters only accepts one list of its own.
fn ring_with_inherited_filters_accepts_a_list() -> TestResult {
    sandbox::sandboxed()?;
    let got = register::filter(TASK, op::NOP, &bpf::deny_if(USER_DATA_LO, 1));
    expect_result("task filter", got, 0)?;
    let mut ring = Ring::with(2, IORING_SETUP_R_DISABLED)?;
    let list = [Restriction::sqe_op(op::NOP)];
    let got = register::restrict_ring(ring.fd(), &list);
    expect_result("a list of its own", got, 0)?;
    let got = register::restrict_ring(ring.fd(), &list);
    expect_result("a second one", got, -libc::EBUSY)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    ring.expect("NOP 0", Sqe::nop(), 0)?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), DENIED)?;
    Ring::new(2)?.expect("CLOSE elsewhere", Sqe::new(op::CLOSE), -libc::EBADF)?;
    // Unlike an inherited list, the ring's own applies only once the ring is enabled.
    let ring = Ring::with(2, IORING_SETUP_R_DISABLED)?;
    let list = [Restriction::register_op(IORING_REGISTER_FILES)];
    let got = register::restrict_ring(ring.fd(), &list);
    expect_result("a list of register opcodes", got, 0)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("one that is not listed", got, DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that new rings, with and without SQPOLL, allow NOP and CLOSE and nothing
/// else.
fn only_nop_and_close(what: &str) -> anyhow::Result<()> {
    let want = answers_of_restricted(&[op::NOP, op::CLOSE])?;
    for flags in [0, IORING_SETUP_SQPOLL] {
        let mut ring = Ring::with(4, flags)?;
        expect_eq(
            &format!("{what}, flags {flags:#x}"),
            answers(&mut ring)?,
            want.clone(),
        )?;
        ring.expect(what, Sqe::nop().flags(IOSQE_ASYNC), DENIED)?;
    }
    Ok(())
}

/// Checks that a task's list of SQE opcodes applies to its new rings, threads and
/// children, not to earlier rings, and a second list gives EPERM.
fn sqe_list_applies_to_new_rings_and_children() -> TestResult {
    sandbox::sandboxed()?;
    let mut earlier = Ring::new(4)?;
    let free = answers_if_allowed(|_| true)?;
    let list = [Restriction::sqe_op(op::CLOSE), Restriction::sqe_op(op::NOP)];
    restrict(&list)?;
    only_nop_and_close("task")?;
    expect_eq("ring made before", answers(&mut earlier)?, free.clone())?;
    for again in [&list[..], &[], &invalid_entries()] {
        expect_result("a second list", restrict_task(again), -libc::EPERM)?;
    }
    only_nop_and_close("task after it")?;
    sandbox::in_child(|| {
        only_nop_and_close("child")?;
        expect_result("child's own list", restrict_task(&list), -libc::EPERM)?;
        sandbox::in_child(|| only_nop_and_close("grandchild"))?;
        // A ring keeps the restrictions that it was made with, whichever task uses it.
        expect_eq(
            "ring made before, in a child",
            answers(&mut earlier)?,
            free.clone(),
        )
    })?;
    let thread = std::thread::spawn(|| only_nop_and_close("thread"));
    thread.join().expect("the thread does not panic")?;
    // The restrictions of a task do not apply to its registrations on a free ring.
    let got = bare_register(earlier.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("registering on the ring made before", got, 1)?;
    Ok(Outcome::Passed)
}

/// Checks that a task's list of register opcodes applies to its new rings and children,
/// and not to earlier rings.
fn register_list_applies_to_new_rings_and_the_task() -> TestResult {
    sandbox::sandboxed()?;
    let earlier = Ring::new(4)?;
    let listed = [IORING_REGISTER_PERSONALITY, IORING_REGISTER_QUERY];
    restrict(&listed.map(Restriction::register_op))?;
    let check = |what: &str| -> anyhow::Result<()> {
        let mut ring = Ring::new(4)?;
        for opcode in 0..IORING_REGISTER_LAST {
            let want = match opcode {
                IORING_REGISTER_PERSONALITY => 1,
                // Without an argument, this is an empty query.
                IORING_REGISTER_QUERY => 0,
                _ => DENIED,
            };
            let got = bare_register(ring.fd(), opcode);
            expect_result(&format!("{what}: register opcode {opcode}"), got, want)?;
        }
        ring.expect(what, Sqe::nop(), 0)?;
        ring.expect(what, Sqe::nop().flags(IOSQE_ASYNC), 0)
    };
    check("task")?;
    sandbox::in_child(|| check("child"))?;
    let got = bare_register(earlier.fd(), IORING_REGISTER_FILES);
    expect_result("FILES on the ring made before", got, -libc::EFAULT)?;

    // Registering a ring's file descriptor is an operation of that ring, which is free.
    let mut update = [u64::from(u32::MAX), earlier.fd() as u64];
    let arg = (&raw mut update).cast();
    let got = raw_register(earlier.fd(), register::IORING_REGISTER_RING_FDS, arg, 1);
    expect_result("registering the free ring's fd", got, 1)?;
    let index = update[0] as u32 as RawFd;
    let through = |opcode| bare_register(index, opcode | IORING_REGISTER_USE_REGISTERED_RING);
    expect_result(
        "FILES through it",
        through(IORING_REGISTER_FILES),
        -libc::EFAULT,
    )?;
    Ok(Outcome::Passed)
}

/// Checks that a list with all entries but one denies what that entry allows, and
/// nothing else.
fn leaving_one_entry_out_denies_only_that() -> TestResult {
    sandbox::sandboxed()?;
    let all = everything();
    let free = answers_if_allowed(|_| true)?;
    for left_out in (0..all.len()).step_by(3).chain([all.len() - 1]) {
        sandbox::in_child(|| {
            let mut entries = all.clone();
            let Restriction { opcode, value, .. } = entries.remove(left_out);
            restrict(&entries)?;
            let what = format!("without kind {opcode}, value {value}");
            let mut ring = Ring::new(4)?;
            let mut want = free.clone();
            let (sqe_op, register_op) = (opcode == 1, opcode == 0);
            if sqe_op && value < op::NOP128 {
                want[usize::from(value)] = DENIED;
            } else if opcode == 3 && left_out == all.len() - 1 {
                // The other entry of this kind, which requires ASYNC, comes last now.
                want = answers_of_restricted(&[])?;
            }
            expect_eq(&what, answers(&mut ring)?, want)?;
            for opcode in 0..IORING_REGISTER_LAST {
                let got = bare_register(ring.fd(), opcode);
                let denied = register_op && u32::from(value) == opcode;
                ensure!(
                    (got == DENIED) == denied,
                    "{what}: register opcode {opcode}: {got}"
                );
            }
            Ok(())
        })?;
    }
    Ok(Outcome::Passed)
}

/// Registers restrictions for the calling task, with these bytes as the argument.
fn offer(bytes: &[u8], nr_args: u32) -> i32 {
    raw_register(
        TASK,
        IORING_REGISTER_RESTRICTIONS,
        bytes.as_ptr().cast(),
        nr_args,
    )
}

/// Registers restrictions for the calling task. The argument is at the end of a page, so
/// that the kernel cannot read past it.
fn offer_at_end(page: &Page, bytes: &[u8]) -> i32 {
    let start = PAGE_SIZE - bytes.len();
    for (i, byte) in bytes.iter().enumerate() {
        page.write(start + i, byte);
    }
    // SAFETY: the address is inside the page.
    let arg = unsafe { page.address.add(start) };
    raw_register(TASK, IORING_REGISTER_RESTRICTIONS, arg.cast(), 1)
}

/// Checks that unknown flags, reserved bytes, invalid entries and too many of them give
/// EINVAL, unreadable parts EFAULT, and leave nothing with the task.
fn malformed_argument_is_refused() -> TestResult {
    sandbox::sandboxed()?;
    let good = task_restriction(&[Restriction::sqe_op(op::NOP)]);
    for nr_args in [0, 2, u32::MAX] {
        expect_result(
            &format!("nr_args {nr_args}"),
            offer(&good, nr_args),
            INVALID,
        )?;
    }
    for bit in 0..16 {
        let mut bytes = good.clone();
        bytes[bit / 8] |= 1 << (bit % 8);
        expect_result(&format!("flags bit {bit}"), offer(&bytes, 1), INVALID)?;
    }
    for byte in 4..TASK_RESTRICTION_HEADER {
        let mut bytes = good.clone();
        bytes[byte] = 0x80;
        expect_result(&format!("reserved byte {byte}"), offer(&bytes, 1), INVALID)?;
    }
    for invalid in invalid_entries() {
        let entries = [Restriction::sqe_op(op::CLOSE), invalid];
        let what = format!("kind {}, value {}", invalid.opcode, invalid.value);
        expect_result(&what, restrict_task(&entries), INVALID)?;
    }
    let mut too_many = everything();
    too_many.push(Restriction::sqe_op(op::NOP));
    expect_result("108 entries", restrict_task(&too_many), INVALID)?;

    let page = Page::new()?;
    let fault = -libc::EFAULT;
    let got = raw_register(TASK, IORING_REGISTER_RESTRICTIONS, std::ptr::null(), 1);
    expect_result("NULL", got, fault)?;
    let got = offer_at_end(&page, &good[..TASK_RESTRICTION_HEADER - 1]);
    expect_result("header cut off", got, fault)?;
    let got = offer_at_end(&page, &good[..TASK_RESTRICTION_HEADER]);
    expect_result("entries unreadable", got, fault)?;
    let got = offer_at_end(&page, &good[..good.len() - 1]);
    expect_result("entry cut off", got, fault)?;
    // The kernel checks the header before it reads the list, and reads the whole list
    // before it checks any entry.
    let mut invalid_first = task_restriction(&[invalid_entries()[0]; 2]);
    invalid_first.truncate(TASK_RESTRICTION_HEADER + 16);
    let got = offer_at_end(&page, &invalid_first);
    expect_result("second entry unreadable, first invalid", got, fault)?;
    for (what, change) in [("flags", 0), ("reserved", 4)] {
        let mut header = good[..TASK_RESTRICTION_HEADER].to_vec();
        header[change] = 1;
        let got = offer_at_end(&page, &header);
        expect_result(&format!("{what}, entries unreadable"), got, INVALID)?;
    }
    for count in [108u16, u16::MAX] {
        let mut header = good[..TASK_RESTRICTION_HEADER].to_vec();
        header[2..4].copy_from_slice(&count.to_ne_bytes());
        let got = offer_at_end(&page, &header);
        expect_result(&format!("{count} entries, unreadable"), got, INVALID)?;
    }

    // No failed attempt left an object behind, and the kernel writes nothing back.
    Ring::new(2)?.expect("CLOSE of a new ring", Sqe::new(op::CLOSE), -libc::EBADF)?;
    page.write(0, &<[u8; 32]>::try_from(&good[..])?);
    page.protect(libc::PROT_READ)?;
    let got = raw_register(TASK, IORING_REGISTER_RESTRICTIONS, page.address.cast(), 1);
    expect_result("from read-only memory", got, 0)?;
    Ring::new(2)?.expect("CLOSE of a new ring", Sqe::new(op::CLOSE), DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that every attempt to register restrictions returns `want`, whatever its
/// argument.
fn refused(what: &str, want: i32) -> anyhow::Result<()> {
    let good = task_restriction(&[Restriction::sqe_op(op::NOP)]);
    expect_result(&format!("{what}: valid"), offer(&good, 1), want)?;
    expect_result(&format!("{what}: nr_args 0"), offer(&good, 0), want)?;
    expect_result(&format!("{what}: no entry"), restrict_task(&[]), want)?;
    let got = raw_register(TASK, IORING_REGISTER_RESTRICTIONS, std::ptr::null(), 1);
    expect_result(&format!("{what}: NULL"), got, want)
}

/// Checks that a task without privilege or no_new_privs gets EACCES, and a restricted
/// or filtered one EPERM or EACCES, whatever the argument.
fn privilege_is_checked_before_the_argument() -> TestResult {
    let nop = Restriction::sqe_op(op::NOP);
    let files = Restriction::register_op(IORING_REGISTER_FILES);
    let restrictions = Restriction::register_op(IORING_REGISTER_RESTRICTIONS);
    sandbox::in_child(|| {
        sandbox::drop_privileges()?;
        refused("no privilege", DENIED)?;
        Ring::new(2)?.expect("CLOSE of a new ring", Sqe::new(op::CLOSE), -libc::EBADF)?;
        sandbox::no_new_privs()?;
        restrict(&[nop])
    })?;
    // Root needs no no_new_privs. Its restrictions stay when it becomes another user.
    for (what, list, want) in [
        ("SQE list", vec![nop], -libc::EPERM),
        ("register list", vec![files], DENIED),
        ("both", vec![nop, files], DENIED),
        ("RESTRICTIONS listed", vec![restrictions], -libc::EPERM),
        ("empty list", vec![], DENIED),
    ] {
        sandbox::in_child(|| {
            restrict(&list)?;
            refused(&format!("{what}, root"), want)?;
            sandbox::drop_privileges()?;
            refused(&format!("{what}, unprivileged"), want)?;
            sandbox::in_child(|| refused(&format!("{what}, child"), want))
        })?;
    }
    sandbox::in_child(|| {
        let got = register::filter(TASK, op::NOP, &bpf::allow());
        expect_result("task filter", got, 0)?;
        sandbox::drop_privileges()?;
        refused("filter only, unprivileged", -libc::EPERM)?;
        // The privilege is checked each time.
        let got = register::filter(TASK, op::NOP, &bpf::deny());
        expect_result("another filter", got, DENIED)?;
        Ring::new(2)?.expect("NOP", Sqe::nop(), 0)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that CAP_SYS_ADMIN in a user namespace of its own lets a task restrict
/// itself, and the namespace without the capability does not.
fn cap_sys_admin_of_own_user_namespace_suffices() -> TestResult {
    sandbox::drop_privileges()?;
    refused("before the namespace", DENIED)?;
    sandbox::user_namespace()?;
    sandbox::in_child(|| {
        restrict(&[Restriction::sqe_op(op::CLOSE)])?;
        let mut ring = Ring::new(2)?;
        ring.expect("NOP", Sqe::nop(), DENIED)?;
        ring.expect("CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
        let got = register::filter(TASK, op::CLOSE, &bpf::deny());
        expect_result("filter", got, 0)?;
        refused("once more", -libc::EPERM)
    })?;
    // Without the capability, a user namespace of one's own is not enough.
    // SAFETY: the call passes an empty set of version 3, for the calling thread.
    let got = unsafe {
        let header = [0x2008_0522u32, 0];
        let sets = [0u32; 6];
        libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr())
    };
    expect_eq("dropping the capabilities", got, 0)?;
    refused("without the capability", DENIED)?;
    let got = register::filter(TASK, op::NOP, &bpf::deny());
    expect_result("filter without the capability", got, DENIED)?;
    Ok(Outcome::Passed)
}

/// Returns the result of a register opcode without a ring and without an argument.
fn blind(opcode: u32) -> i32 {
    bare_register(TASK, opcode)
}

/// Returns the expected result of an allowed opcode without a ring and without an
/// argument.
fn blind_answer(opcode: u32) -> i32 {
    match opcode {
        IORING_REGISTER_QUERY => 0,
        _ => INVALID,
    }
}

/// Checks that a task's list of register opcodes applies to each opcode that works
/// without a ring. A list of SQE opcodes applies to messages alone.
///
/// In C, messages are free if SQE opcodes alone are listed.
fn register_list_applies_without_a_ring() -> TestResult {
    sandbox::sandboxed()?;
    let target = Ring::new(4)?;
    let mut message = Sqe::new(op::MSG_RING).fd(target.fd());
    message.len = 1;
    for opcode in 0..IORING_REGISTER_LAST {
        let got = blind(opcode);
        expect_result(&format!("{opcode}, free"), got, blind_answer(opcode))?;
    }
    expect_result("message, free", register::send_msg_ring(&message), 0)?;
    let with_bit = |opcode| opcode | IORING_REGISTER_USE_REGISTERED_RING;
    let known = [
        IORING_REGISTER_SEND_MSG_RING,
        IORING_REGISTER_QUERY,
        IORING_REGISTER_RESTRICTIONS,
        IORING_REGISTER_BPF_FILTER,
    ];
    // Lists of one opcode that works without a ring, or of one that does not.
    for listed in known.into_iter().chain([IORING_REGISTER_FILES, 0]) {
        sandbox::in_child(|| {
            restrict(&[Restriction::register_op(listed)])?;
            for opcode in 0..IORING_REGISTER_LAST {
                let want = match opcode {
                    _ if opcode != listed => DENIED,
                    IORING_REGISTER_RESTRICTIONS => -libc::EPERM,
                    _ => blind_answer(opcode),
                };
                let what = format!("{opcode}, {listed} listed");
                expect_result(&what, blind(opcode), want)?;
                expect_result(
                    &format!("{what}, with the bit"),
                    blind(with_bit(opcode)),
                    want,
                )?;
            }
            for opcode in [IORING_REGISTER_LAST, 63, 64, 1 << 30] {
                expect_result(&format!("unknown opcode {opcode}"), blind(opcode), INVALID)?;
            }
            let want = |opcode| if opcode == listed { 0 } else { DENIED };
            let got = register::send_msg_ring(&message);
            expect_result("message", got, want(IORING_REGISTER_SEND_MSG_RING))?;
            let program = bpf::allow();
            let mut registration = Registration::new(op::SOCKET, &program);
            registration.pdu_size = 1;
            let got = registration.register(TASK);
            expect_result("filter", got, want(IORING_REGISTER_BPF_FILTER))?;
            let written = if got == 0 { 12 } else { 1 };
            expect_eq("pdu size afterwards", registration.pdu_size, written)
        })?;
    }
    // A list of SQE opcodes leaves all register opcodes free, but not the message.
    restrict(&[Restriction::sqe_op(op::NOP)])?;
    for opcode in 0..IORING_REGISTER_LAST {
        let want = match opcode {
            IORING_REGISTER_RESTRICTIONS => -libc::EPERM,
            _ => blind_answer(opcode),
        };
        expect_result(&format!("{opcode}, SQE list"), blind(opcode), want)?;
    }
    let want = match implementation() {
        Implementation::Rust => DENIED,
        Implementation::C => 0,
    };
    expect_result("message, SQE list", register::send_msg_ring(&message), want)?;
    Ok(Outcome::Passed)
}

/// Checks that an empty list denies every SQE and register opcode of the task and its
/// children.
fn empty_list_denies_everything() -> TestResult {
    sandbox::sandboxed()?;
    restrict(&[])?;
    let check = |what: &str| -> anyhow::Result<()> {
        let mut ring = Ring::new(4)?;
        let none = answers_of_restricted(&[])?;
        expect_eq(what, answers(&mut ring)?, none)?;
        for opcode in 0..IORING_REGISTER_LAST {
            let what = format!("{what}: register opcode {opcode}");
            expect_result(&what, bare_register(ring.fd(), opcode), DENIED)?;
            expect_result(&format!("{what} without a ring"), blind(opcode), DENIED)?;
        }
        let disabled = Ring::with(4, IORING_SETUP_R_DISABLED)?;
        expect_result(what, register::enable(disabled.fd()), DENIED)?;
        let mut polled = Ring::with(4, IORING_SETUP_SQPOLL)?;
        polled.expect(what, Sqe::nop(), DENIED)
    };
    check("task")?;
    sandbox::in_child(|| check("child"))?;
    Ok(Outcome::Passed)
}
