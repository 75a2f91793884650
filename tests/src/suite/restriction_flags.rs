// SPDX-License-Identifier: GPL-2.0
//! D6: the SQE flags that the restrictions of a ring require and allow, and the place
//! of the check for restrictions among the other checks of an SQE.

use super::restrictions::{answers, answers_if_allowed, bare_register, restricted};
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{expect_eq, expect_result};
use crate::register::{IORING_REGISTER_FILES, IORING_REGISTER_PERSONALITY, Restriction};
use crate::sqe::{
    IOSQE_ASYNC, IOSQE_BUFFER_SELECT, IOSQE_CQE_SKIP_SUCCESS, IOSQE_FIXED_FILE, IOSQE_IO_DRAIN,
    IOSQE_IO_HARDLINK, IOSQE_IO_LINK, Sqe, op,
};

pub const TESTS: &[Test] = tests! {
    "restrictions::flags" {
        RS03 allowed_and_required_flags_are_enforced (60 s);
        RS12 flags_without_opcodes_deny_every_sqe;
        RS14 required_flag_must_be_given_and_others_not;
        RS24 denied_drain_leaves_nothing_waiting;
        RS24order check_comes_between_the_other_checks_of_an_sqe;
        RS25 last_entry_of_each_kind_counts;
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// Checks whether an SQE's flags pass the restrictions, according to the uapi.
fn flags_pass(flags: u8, allowed: u8, required: u8) -> bool {
    flags & required == required && flags & !(allowed | required) == 0
}

/// Checks that each combination of SQE flags is allowed or denied as the allowed and
/// required flags say.
fn allowed_and_required_flags_are_enforced() -> TestResult {
    let all = 0x7f;
    for (allowed, required) in [
        (0, 0),
        (all, 0),
        (0, all & !IOSQE_IO_DRAIN),
        (IOSQE_ASYNC, 0),
        (0, IOSQE_ASYNC),
        (IOSQE_IO_LINK | IOSQE_IO_HARDLINK, IOSQE_FIXED_FILE),
        (IOSQE_IO_DRAIN | IOSQE_ASYNC, IOSQE_ASYNC),
        (all & !IOSQE_BUFFER_SELECT, IOSQE_CQE_SKIP_SUCCESS),
        // No request can have bit 7 set.
        (0xff, 0x80),
    ] {
        let what = format!("allowed {allowed:#x}, required {required:#x}");
        let mut ring = restricted(&[
            Restriction::flags_required(required),
            Restriction::sqe_op(op::RECV),
            Restriction::flags_allowed(allowed),
        ])?;
        // The ring refuses DRAIN after the first request with CQE_SKIP_SUCCESS, so
        // those come last.
        let mut combinations: Vec<u8> = (0..=all).collect();
        combinations.sort_by_key(|flags| flags & IOSQE_CQE_SKIP_SUCCESS);
        let no_drain = IOSQE_CQE_SKIP_SUCCESS | IOSQE_IO_DRAIN;
        for flags in combinations {
            let want = if flags & no_drain == no_drain {
                -libc::EOPNOTSUPP
            } else if flags_pass(flags, allowed, required) {
                -libc::EBADF
            } else {
                DENIED
            };
            let recv = Sqe::new(op::RECV).flags(flags);
            ring.expect(&format!("{what}, flags {flags:#x}"), recv, want)?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that a list of allowed or required flags without SQE opcodes denies every
/// SQE.
fn flags_without_opcodes_deny_every_sqe() -> TestResult {
    for entries in [
        vec![Restriction::flags_allowed(0x7f)],
        vec![Restriction::flags_required(0)],
        vec![
            Restriction::flags_required(0),
            Restriction::register_op(IORING_REGISTER_PERSONALITY),
        ],
    ] {
        let mut ring = restricted(&entries)?;
        expect_eq("SQEs", answers(&mut ring)?, answers_if_allowed(|_| false)?)?;
        let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
        expect_result("listed or free register opcode", got, 1)?;
        let got = bare_register(ring.fd(), IORING_REGISTER_FILES);
        let want = if entries.len() == 2 {
            DENIED
        } else {
            -libc::EFAULT
        };
        expect_result("FILES", got, want)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that an SQE is denied without a required flag or with another one, and flags
/// that the kernel adds do not count.
fn required_flag_must_be_given_and_others_not() -> TestResult {
    let mut ring = restricted(&[
        Restriction::sqe_op(op::NOP),
        Restriction::flags_required(IOSQE_ASYNC),
    ])?;
    ring.expect("missing", Sqe::nop(), DENIED)?;
    ring.expect("there", Sqe::nop().flags(IOSQE_ASYNC), 0)?;
    let extra = Sqe::nop().flags(IOSQE_ASYNC | IOSQE_IO_LINK);
    ring.expect("there, and another", extra, DENIED)?;
    // Restrictions do not check the flags that the kernel adds itself (FC04).
    let mut ring = restricted(&[Restriction::sqe_op(op::FSYNC)])?;
    ring.expect("ASYNC set by prep", Sqe::new(op::FSYNC), -libc::EBADF)?;
    let mut ring = restricted(&[
        Restriction::sqe_op(op::FSYNC),
        Restriction::flags_required(IOSQE_ASYNC),
    ])?;
    ring.expect("required all the same", Sqe::new(op::FSYNC), DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that a request that is denied for its flags, IOSQE_IO_DRAIN included, leaves
/// nothing waiting in the ring.
fn denied_drain_leaves_nothing_waiting() -> TestResult {
    let all = [
        IOSQE_FIXED_FILE,
        IOSQE_IO_DRAIN,
        IOSQE_IO_LINK,
        IOSQE_IO_HARDLINK,
        IOSQE_ASYNC,
        IOSQE_CQE_SKIP_SUCCESS,
    ];
    for denied in all {
        let what = format!("flag {denied:#x}");
        let mut ring = restricted(&[
            Restriction::sqe_op(op::NOP),
            Restriction::flags_allowed(!denied & 0x7f),
        ])?;
        ring.expect(&what, Sqe::nop().flags(denied), DENIED)?;
        // A denied DRAIN leaves nothing waiting in the ring.
        for user_data in 1..4 {
            let nop = Sqe::nop().user_data(user_data);
            ring.expect(&format!("after {what}"), nop, 0)?;
        }
        expect_eq("nothing more", ring.try_cqe(), None)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that errors of any ring come before the restrictions, and those of the
/// request after them.
fn check_comes_between_the_other_checks_of_an_sqe() -> TestResult {
    let mut ring = restricted(&[
        Restriction::sqe_op(op::CLOSE),
        Restriction::flags_allowed(IOSQE_ASYNC),
    ])?;
    let nop = Sqe::nop();
    ring.expect("denied", nop, DENIED)?;
    // Errors for any ring come before the restrictions.
    ring.expect("unknown opcode", Sqe::new(65), INVALID)?;
    ring.expect("unknown flag", nop.flags(0x80), INVALID)?;
    let select = nop.flags(IOSQE_BUFFER_SELECT);
    ring.expect("BUFFER_SELECT", select, -libc::EOPNOTSUPP)?;
    ring.expect("two slots", Sqe::new(op::NOP128), INVALID)?;
    // Errors of this request come after the restrictions.
    ring.expect("ioprio, denied", nop.ioprio(1), DENIED)?;
    ring.expect("ioprio, allowed", Sqe::new(op::CLOSE).ioprio(1), INVALID)?;
    let personality = |sqe: Sqe| Sqe {
        personality: 77,
        ..sqe
    };
    ring.expect("personality, denied", personality(nop), DENIED)?;
    let close = Sqe::new(op::CLOSE);
    ring.expect("personality, allowed", personality(close), INVALID)?;
    ring.expect("prep, denied", nop.op_flags(u32::MAX), DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that the last entry with allowed flags and the last with required flags
/// count.
fn last_entry_of_each_kind_counts() -> TestResult {
    let mut ring = restricted(&[
        Restriction::flags_allowed(0x7f),
        Restriction::flags_required(IOSQE_FIXED_FILE | IOSQE_IO_LINK),
        Restriction::sqe_op(op::NOP),
        Restriction::flags_allowed(IOSQE_IO_LINK),
        Restriction::flags_required(IOSQE_ASYNC),
    ])?;
    for (flags, want) in [
        (0, DENIED),
        (IOSQE_ASYNC, 0),
        (IOSQE_ASYNC | IOSQE_IO_LINK, 0),
        (IOSQE_ASYNC | IOSQE_FIXED_FILE, DENIED),
        (IOSQE_FIXED_FILE | IOSQE_IO_LINK, DENIED),
    ] {
        ring.expect(&format!("flags {flags:#x}"), Sqe::nop().flags(flags), want)?;
    }
    Ok(Outcome::Passed)
}
