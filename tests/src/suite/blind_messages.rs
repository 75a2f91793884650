// SPDX-License-Identifier: GPL-2.0
//! D6: messages to rings that a task sends without a ring of its own, by
//! IORING_REGISTER_SEND_MSG_RING. In Rust, the restrictions and filters of the task apply
//! to them as they do to MSG_RING requests. In C, they do not.

use std::os::fd::RawFd;

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, OPCODE_WORD, USER_DATA_LO};
use crate::kernel::{Implementation, expect_eq, expect_result, implementation};
use crate::register::{self, DENY_REST, Restriction, TASK, restrict_task, send_msg_ring};
use crate::ring::{Ring, cqe, read_context};
use crate::sandbox;
use crate::sqe::{IOSQE_ASYNC, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::messages" {
        BM01 message_is_denied_as_a_request_is;
        BM02 filters_see_the_context_of_a_request;
        BM03 list_of_the_task_decides_on_messages;
        BM04 errors_come_in_the_order_of_submission;
        BM05 children_inherit_and_rings_do_not_matter;
        BM06 stacked_filters_decide_again_and_again;
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// Builds a message with `user_data` and `res` for another ring.
pub fn message(target: RawFd, user_data: u64, res: u32) -> Sqe {
    let mut sqe = Sqe::new(op::MSG_RING).fd(target).off(user_data);
    sqe.len = res;
    sqe
}

/// Returns `result`, or 0 in C, which neither filters nor restricts messages.
fn in_rust(result: i32) -> i32 {
    match implementation() {
        Implementation::Rust => result,
        Implementation::C => 0,
    }
}

/// Sends a message without a ring, whose result must be `want`, and checks that the
/// message arrives or not.
fn expect_message(what: &str, target: &mut Ring, mark: u64, want: i32) -> anyhow::Result<()> {
    // The message's `user_data` arrives. That of the SQE is for filters.
    let sqe = message(target.fd(), !mark, 5).user_data(mark);
    expect_result(what, send_msg_ring(&sqe), want)?;
    let arrived = (want == 0).then(|| cqe(!mark, 5, 0));
    expect_eq(what, target.try_cqe(), arrived)
}

/// Registers a filter for the messages of the calling task, which must be accepted.
fn filter_messages(program: &[bpf::Insn]) -> anyhow::Result<()> {
    expect_result("filter", register::filter(TASK, op::MSG_RING, program), 0)
}

/// Checks that a message is denied by a filter that always denies, by one that decides
/// by `user_data`, and by IO_URING_BPF_FILTER_DENY_REST, and does not arrive.
///
/// In C, the message arrives.
fn message_is_denied_as_a_request_is() -> TestResult {
    let mut target = Ring::new(8)?;
    sandbox::sandboxed()?;
    expect_message("free", &mut target, 1, 0)?;
    sandbox::in_child(|| {
        filter_messages(&bpf::deny_if(USER_DATA_LO, 2))?;
        let got = register::filter_with(TASK, op::NOP, &bpf::deny(), DENY_REST);
        expect_result("a filter and DENY_REST", got, 0)?;
        expect_message("other user_data", &mut target, 1, 0)?;
        expect_message("denied user_data", &mut target, 2, in_rust(DENIED))?;
        filter_messages(&bpf::deny())?;
        expect_message("denied all", &mut target, 1, in_rust(DENIED))
    })?;
    sandbox::in_child(|| {
        let got = register::filter_with(TASK, op::NOP, &bpf::allow(), DENY_REST);
        expect_result("DENY_REST", got, 0)?;
        expect_message("DENY_REST", &mut target, 1, in_rust(DENIED))
    })?;
    sandbox::in_child(|| {
        filter_messages(&bpf::allow())?;
        let got = register::filter_with(TASK, op::NOP, &bpf::deny(), DENY_REST);
        expect_result("DENY_REST of others", got, 0)?;
        expect_message("allowed", &mut target, 1, 0)
    })?;
    expect_message("parent", &mut target, 1, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that filters see the same context of a message as of a MSG_RING request.
///
/// In C, they do not see messages.
fn filters_see_the_context_of_a_request() -> TestResult {
    let target = Ring::new(8)?;
    sandbox::sandboxed()?;
    let fd = target.fd();
    let want = read_context(op::MSG_RING, || message(fd, 1, 2))?;
    filter_messages(&bpf::read_bit())?;
    let mut got = [0u32; 10];
    for (index, word) in got.iter_mut().enumerate().skip(2) {
        for bit in 0..32 {
            let mark = (index as u64) << 32 | bit;
            let result = send_msg_ring(&message(fd, 1, 2).user_data(mark));
            *word |= u32::from(result != DENIED) << bit;
        }
    }
    if implementation() == Implementation::Rust {
        expect_eq("context", got, want)?;
        expect_eq("opcode word", got[OPCODE_WORD as usize / 4], 40)?;
    } else {
        expect_eq("unfiltered", got[2..].iter().all(|&word| word == !0), true)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that messages are denied if the task's list does not have MSG_RING, or
/// requires flags, which a message cannot have.
///
/// In C, the message arrives.
fn list_of_the_task_decides_on_messages() -> TestResult {
    let mut target = Ring::new(8)?;
    sandbox::sandboxed()?;
    let listed = Restriction::sqe_op(op::MSG_RING);
    let registers = Restriction::register_op(register::IORING_REGISTER_SEND_MSG_RING);
    for (what, list, want) in [
        ("listed", vec![listed], 0),
        ("not listed", vec![Restriction::sqe_op(op::NOP)], DENIED),
        (
            "flags allowed",
            vec![listed, Restriction::flags_allowed(0x7f)],
            0,
        ),
        (
            "flags required",
            vec![listed, Restriction::flags_required(IOSQE_ASYNC)],
            DENIED,
        ),
        (
            "flags alone",
            vec![Restriction::flags_allowed(0x7f)],
            DENIED,
        ),
        ("register opcodes", vec![registers], 0),
        (
            "both",
            vec![registers, Restriction::sqe_op(op::NOP)],
            DENIED,
        ),
    ] {
        sandbox::in_child(|| {
            expect_result(what, restrict_task(&list), 0)?;
            expect_message(what, &mut target, 1, in_rust(want))
        })?;
    }
    Ok(Outcome::Passed)
}

/// Checks that an SQE that is no message at all gives EINVAL, that a list comes before
/// the errors of MSG_RING's prep, a filter after these, and before those of its target.
///
/// In C, neither list nor filter matters.
fn errors_come_in_the_order_of_submission() -> TestResult {
    let mut target = Ring::new(8)?;
    sandbox::sandboxed()?;
    let good = message(target.fd(), 1, 2);
    let bad_prep = good.op_flags(1 << 31);
    let flagged = good.flags(IOSQE_ASYNC);
    let other_opcode = Sqe {
        opcode: op::NOP,
        ..good
    };
    let no_target = good.fd(-1);
    let no_ring = good.fd(0);
    // Descriptors cannot be sent without a ring.
    let send_fd = Sqe { addr: 1, ..good };
    let cases = [bad_prep, flagged, other_opcode, no_target, no_ring, send_fd];
    let check = |what: &str, want: [i32; 6]| -> anyhow::Result<()> {
        for (index, (sqe, want)) in cases.iter().zip(want).enumerate() {
            let what = format!("{what}, case {index}");
            expect_result(&what, send_msg_ring(sqe), want)?;
        }
        Ok(())
    };
    let free = [
        INVALID,
        INVALID,
        INVALID,
        -libc::EBADF,
        -libc::EBADFD,
        INVALID,
    ];
    check("free", free)?;
    let is_rust = implementation() == Implementation::Rust;
    sandbox::in_child(|| {
        filter_messages(&bpf::deny())?;
        let filtered = [INVALID, INVALID, INVALID, DENIED, DENIED, DENIED];
        check("filter", if is_rust { filtered } else { free })
    })?;
    sandbox::in_child(|| {
        let list = [Restriction::sqe_op(op::NOP)];
        expect_result("list", restrict_task(&list), 0)?;
        let denied = [DENIED, INVALID, INVALID, DENIED, DENIED, DENIED];
        check("list", if is_rust { denied } else { free })
    })?;
    expect_result("parent", send_msg_ring(&good), 0)?;
    expect_eq("arrives", target.try_cqe(), Some(cqe(1, 2, 0)))?;
    Ok(Outcome::Passed)
}

/// Checks that children and threads inherit what decides on their messages, and the
/// filters of rings, of the target's too, do not matter.
///
/// In C, the message arrives.
fn children_inherit_and_rings_do_not_matter() -> TestResult {
    let mut target = Ring::new(8)?;
    target.must_filter(op::MSG_RING, &bpf::deny())?;
    sandbox::sandboxed()?;
    let own = Ring::new(2)?;
    own.must_filter(op::MSG_RING, &bpf::deny())?;
    expect_message("filters of rings", &mut target, 1, 0)?;
    filter_messages(&bpf::deny_if(USER_DATA_LO, 1))?;
    sandbox::in_child(|| {
        expect_message("child", &mut target, 1, in_rust(DENIED))?;
        filter_messages(&bpf::deny_if(USER_DATA_LO, 2))?;
        expect_message("child's own", &mut target, 2, in_rust(DENIED))?;
        expect_message("child, allowed", &mut target, 3, 0)
    })?;
    expect_message("parent", &mut target, 2, 0)?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| expect_message("thread", &mut target, 1, in_rust(DENIED)));
        thread.join().expect("the thread does not panic")
    })?;
    Ok(Outcome::Passed)
}

/// Checks that all of sixteen stacked filters decide, on the first message and on later
/// ones.
///
/// In C, the message arrives.
fn stacked_filters_decide_again_and_again() -> TestResult {
    let mut target = Ring::new(32)?;
    sandbox::sandboxed()?;
    for value in 0..16 {
        filter_messages(&bpf::deny_if(USER_DATA_LO, value))?;
    }
    for _ in 0..3 {
        for value in 0..16 {
            expect_message("denied", &mut target, value, in_rust(DENIED))?;
        }
        expect_message("allowed", &mut target, 16, 0)?;
    }
    Ok(Outcome::Passed)
}
