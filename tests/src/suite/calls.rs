// SPDX-License-Identifier: GPL-2.0
//! D6: filters of `io_uring_register()` and `io_uring_setup()`, which only kernels with
//! `CONFIG_IO_URING_BPF_CALLS` have. More about setups is in `calls_setup`.

use std::fs;
use std::os::fd::RawFd;

use anyhow::Context;

use super::calls_setup::try_setup;
use super::restrictions::{bare_register, disabled};
use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, Insn, OPCODE_WORD, PDU, USER_DATA_LO, ld, ret};
use crate::kernel::{
    IORING_REGISTER_LAST, Implementation, expect_eq, expect_result, has_option, implementation,
};
use crate::register::{
    self, DENY_REST, IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_FILES,
    IORING_REGISTER_PERSONALITY, IORING_REGISTER_PROBE, IORING_REGISTER_QUERY, Registration, TASK,
};
use crate::ring::{RawParams, Ring, setup};
use crate::sandbox;
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "restrictions::calls" {
        CF01 pdu_size_of_255_tells_whether_calls_can_be_filtered;
        CF02 registration_is_denied_by_opcode_and_nr_args;
        CF03 programs_see_the_whole_context;
        CF04 deny_rest_denies_other_registrations;
        CF07 children_and_new_rings_inherit;
        CF10 filter_applies_to_a_disabled_ring;
        CF11 malformed_registration_changes_nothing;
        CF12 filters_of_registrations_are_in_fdinfo;
        CF13 all_of_several_filters_must_allow;
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// The commands that register filters of calls.
const REGISTER: u16 = 2;
const SETUP: u16 = 3;

/// Returns the reason to skip a test on a kernel that cannot filter calls.
pub fn skipped() -> Option<Outcome> {
    let reason = "the kernel cannot filter calls";
    (!has_option("CONFIG_IO_URING_BPF_CALLS")).then(|| Outcome::Skipped(reason.to_string()))
}

/// Builds a registration of a filter of registrations with `opcode`.
pub fn of_register(opcode: u32, program: &[Insn]) -> Registration {
    Registration {
        cmd_type: REGISTER,
        opcode,
        pdu_size: 4,
        ..Registration::new(op::NOP, program)
    }
}

/// Builds a registration of a filter of setups.
pub fn of_setup(program: &[Insn]) -> Registration {
    Registration {
        cmd_type: SETUP,
        pdu_size: 20,
        ..of_register(0, program)
    }
}

/// Registers a filter of registrations, which must be accepted.
pub fn filter_register(fd: RawFd, opcode: u32, program: &[Insn]) -> anyhow::Result<()> {
    let got = of_register(opcode, program).register(fd);
    expect_result(&format!("filter of registration {opcode}"), got, 0)
}

/// Registers a filter of the task's setups, which must be accepted.
pub fn filter_setup(program: &[Insn]) -> anyhow::Result<()> {
    expect_result("filter of setups", of_setup(program).register(TASK), 0)
}

/// Checks that a filter with a pdu_size of 255 gives EMSGSIZE and gets the size that the
/// kernel shows, where calls can be filtered, and EINVAL where not.
///
/// In C, it gives EINVAL.
fn pdu_size_of_255_tells_whether_calls_can_be_filtered() -> TestResult {
    let exists = has_option("CONFIG_IO_URING_BPF_CALLS");
    expect_eq("option", exists, implementation() == Implementation::Rust)?;
    let ring = Ring::new(2)?;
    sandbox::sandboxed()?;
    let deny = bpf::deny();
    let too_large = |registration| Registration {
        pdu_size: 255,
        ..registration
    };
    for (what, fd, registration, size) in [
        ("ring", ring.fd(), too_large(of_register(0, &deny)), 4),
        ("task", TASK, too_large(of_register(0, &deny)), 4),
        ("setup", TASK, too_large(of_setup(&deny)), 20),
    ] {
        let mut asked = registration;
        let (want, written) = if exists {
            (-libc::EMSGSIZE, size)
        } else {
            (INVALID, 255)
        };
        expect_result(what, asked.register(fd), want)?;
        let want = Registration {
            pdu_size: written,
            ..registration
        };
        expect_eq(what, asked, want)?;
    }
    // Nothing was registered.
    let got = bare_register(Ring::new(2)?.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("registering", got, 1)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring's filter denies registrations by their opcode and nr_args, before
/// these are looked at, and leaves requests and setups alone.
///
/// In C, there are no filters of calls.
fn registration_is_denied_by_opcode_and_nr_args() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    let mut ring = Ring::new(2)?;
    let files =
        |nr_args| register::register(ring.fd(), IORING_REGISTER_FILES, std::ptr::null(), nr_args);
    expect_result("before", files(3), -libc::EFAULT)?;
    filter_register(ring.fd(), IORING_REGISTER_FILES, &bpf::deny_if(PDU, 3))?;
    expect_result("3 files", files(3), DENIED)?;
    expect_result("2 files", files(2), -libc::EFAULT)?;
    filter_register(ring.fd(), IORING_REGISTER_PERSONALITY, &bpf::deny())?;
    let personality = || bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("denied always", personality(), DENIED)?;
    filter_register(ring.fd(), IORING_REGISTER_PERSONALITY, &bpf::allow())?;
    expect_result("stays denied", personality(), DENIED)?;
    // Filters of calls and of requests leave each other in force.
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 1))?;
    ring.must_filter(op::CLOSE, &bpf::allow())?;
    expect_result("denied with filters of requests", personality(), DENIED)?;
    expect_result("3 files with these", files(3), DENIED)?;
    filter_register(ring.fd(), IORING_REGISTER_PROBE, &bpf::deny())?;
    let got = register::filter_with(ring.fd(), op::READ, &bpf::allow(), DENY_REST);
    expect_result("DENY_REST", got, 0)?;
    ring.expect("NOP 1", Sqe::nop().user_data(1), DENIED)?;
    ring.expect("CLOSE", Sqe::new(op::CLOSE), -libc::EBADF)?;
    ring.expect("NOP", Sqe::nop(), 0)?;
    let other = Ring::new(2)?;
    let got = bare_register(other.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("another ring", got, 1)?;
    Ok(Outcome::Passed)
}

/// Checks each word of the context of a registration and of a setup.
///
/// In C, there are no filters of calls.
fn programs_see_the_whole_context() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    // Checks that a program that compares all words with `words` allows the call, and
    // none does that compares one of them with another value.
    let check = |words: [u32; 10],
                 filter: &dyn Fn(&[Insn]) -> anyhow::Result<()>,
                 call: &dyn Fn() -> i32|
     -> anyhow::Result<()> {
        let with = |words: [u32; 10]| -> Vec<(u32, u32)> { (0..).step_by(4).zip(words).collect() };
        sandbox::in_child(|| {
            filter(&bpf::allow_if_all(&with(words)))?;
            let got = call();
            anyhow::ensure!(got != DENIED, "{words:x?} are not the words");
            Ok(())
        })?;
        for index in 0..words.len() {
            let mut other = words;
            other[index] ^= 1 << (index * 3);
            sandbox::in_child(|| {
                filter(&bpf::allow_if_all(&with(other)))?;
                expect_result(&format!("word {index} differs"), call(), DENIED)
            })?;
        }
        Ok(())
    };
    let nr_args = 0x8123_4567;
    check(
        [
            0,
            0,
            IORING_REGISTER_FILES | 4 << 16,
            0,
            nr_args,
            0,
            0,
            0,
            0,
            0,
        ],
        &|program| filter_register(TASK, IORING_REGISTER_FILES, program),
        &|| match Ring::new(2) {
            Ok(ring) => {
                register::register(ring.fd(), IORING_REGISTER_FILES, std::ptr::null(), nr_args)
            }
            Err(_) => 0,
        },
    )?;
    check(
        [0, 0, IORING_REGISTER_QUERY | 4 << 16, 0, 7, 0, 0, 0, 0, 0],
        &|program| filter_register(TASK, IORING_REGISTER_QUERY, program),
        &|| register::register(TASK, IORING_REGISTER_QUERY, std::ptr::null(), 7),
    )?;
    check(
        [
            0,
            0,
            20 << 16,
            0,
            0x8000_0123,
            6,
            17,
            0xffff_fff0,
            0x9876_5432,
            0,
        ],
        &|program| filter_setup(program),
        &|| {
            let mut params = RawParams::default();
            params[1] = 17;
            params[2] = 0x8000_0123;
            params[3] = 0x9876_5432;
            params[4] = 0xffff_fff0;
            setup(6, &mut params)
        },
    )?;
    Ok(Outcome::Passed)
}

/// Checks that DENY_REST with a filter of a registration denies all other registrations
/// without a filter, and neither requests nor setups, and the other way round.
///
/// In C, there are no filters of calls.
fn deny_rest_denies_other_registrations() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    sandbox::in_child(|| {
        filter_register(TASK, IORING_REGISTER_FILES, &bpf::allow())?;
        let allow = bpf::allow();
        let mut rest = of_register(IORING_REGISTER_PERSONALITY, &allow).flags(DENY_REST);
        expect_result("DENY_REST", rest.register(TASK), 0)?;
        let mut ring = Ring::new(2)?;
        for opcode in 0..IORING_REGISTER_LAST {
            let want = match opcode {
                IORING_REGISTER_FILES => -libc::EFAULT,
                IORING_REGISTER_PERSONALITY => 1,
                _ => DENIED,
            };
            expect_result(&format!("{opcode}"), bare_register(ring.fd(), opcode), want)?;
            let want = match opcode {
                IORING_REGISTER_FILES | IORING_REGISTER_PERSONALITY => INVALID,
                _ => DENIED,
            };
            let what = format!("{opcode} without a ring");
            expect_result(&what, bare_register(TASK, opcode), want)?;
        }
        ring.expect("NOP", Sqe::nop(), 0)
    })?;
    sandbox::in_child(|| {
        let allow = bpf::allow();
        let got = register::filter_with(TASK, op::NOP, &allow, DENY_REST);
        expect_result("DENY_REST of requests", got, 0)?;
        let got = of_setup(&allow).flags(DENY_REST).register(TASK);
        expect_result("DENY_REST of setups", got, 0)?;
        let mut ring = Ring::new(2)?;
        let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
        expect_result("registering", got, 1)?;
        ring.expect("READ", Sqe::new(op::READ), DENIED)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that children and new rings inherit filters of calls, earlier rings do not
/// have them, and what a child or ring adds does not apply to the task.
///
/// In C, there are no filters of calls.
fn children_and_new_rings_inherit() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    let personality = |ring: &Ring| bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    let earlier = Ring::new(2)?;
    filter_register(TASK, IORING_REGISTER_PERSONALITY, &bpf::deny())?;
    expect_result("earlier ring", personality(&earlier), 1)?;
    let inherited = Ring::new(2)?;
    expect_result("new ring", personality(&inherited), DENIED)?;
    let query = || bare_register(TASK, IORING_REGISTER_QUERY);
    sandbox::in_child(|| {
        expect_result("child's ring", personality(&Ring::new(2)?), DENIED)?;
        expect_result("parent's ring, in a child", personality(&earlier), 2)?;
        filter_setup(&bpf::deny())?;
        filter_register(TASK, IORING_REGISTER_QUERY, &bpf::deny())?;
        expect_result("setup of the child", try_setup(0), DENIED)?;
        expect_result("query of the child", query(), DENIED)?;
        sandbox::in_child(|| {
            expect_result("setup of a grandchild", try_setup(0), DENIED)?;
            expect_result("query of a grandchild", query(), DENIED)
        })
    })?;
    expect_result("setup of the task", try_setup(0), 0)?;
    expect_result("query of the task", query(), 0)?;
    filter_register(inherited.fd(), IORING_REGISTER_QUERY, &bpf::deny())?;
    let on_ring = bare_register(inherited.fd(), IORING_REGISTER_QUERY);
    expect_result("query of the ring", on_ring, DENIED)?;
    expect_result("query of the task", query(), 0)?;
    let got = std::thread::spawn(move || Ring::new(2).map(|ring| personality(&ring)));
    let got = got.join().expect("the thread does not panic")?;
    expect_result("ring of a thread", got, DENIED)?;
    Ok(Outcome::Passed)
}

/// Checks that a filter of a disabled ring applies at once, to enabling it as well.
///
/// In C, there are no filters of calls.
fn filter_applies_to_a_disabled_ring() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    let ring = disabled()?;
    filter_register(ring.fd(), IORING_REGISTER_ENABLE_RINGS, &bpf::deny())?;
    expect_result("enabling", register::enable(ring.fd()), DENIED)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("another", got, 1)?;
    Ok(Outcome::Passed)
}

/// Checks that unknown opcodes, sizes, flags and reserved fields, and invalid programs
/// give the errors that they give for filters of requests, and nothing is registered.
///
/// In C, there are no filters of calls.
fn malformed_registration_changes_nothing() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    let ring = Ring::new(2)?;
    let deny = bpf::deny();
    let good = of_register(IORING_REGISTER_PERSONALITY, &deny);
    let of_setup = of_setup(&deny);
    let no_ret = [bpf::ld_imm(1)];
    for (what, fd, registration, want) in [
        ("setup of a ring", ring.fd(), of_setup, INVALID),
        (
            "opcode 38",
            TASK,
            Registration {
                opcode: IORING_REGISTER_LAST,
                ..good
            },
            INVALID,
        ),
        (
            "opcode of a setup",
            TASK,
            Registration {
                opcode: 1,
                ..of_setup
            },
            INVALID,
        ),
        (
            "command 4",
            TASK,
            Registration {
                cmd_type: 4,
                ..good
            },
            INVALID,
        ),
        (
            "cmd_flags",
            TASK,
            Registration {
                cmd_flags: 1,
                ..good
            },
            INVALID,
        ),
        ("flags", TASK, Registration { flags: 4, ..good }, INVALID),
        (
            "no program",
            TASK,
            Registration {
                filter_len: 0,
                ..good
            },
            INVALID,
        ),
        (
            "null",
            TASK,
            Registration {
                filter_ptr: 0,
                ..good
            },
            INVALID,
        ),
        (
            "unmapped",
            TASK,
            Registration {
                filter_ptr: 8,
                ..good
            },
            -libc::EFAULT,
        ),
        (
            "pdu_size",
            TASK,
            Registration {
                pdu_size: 5,
                ..good
            },
            -libc::EMSGSIZE,
        ),
        (
            "strict pdu_size",
            TASK,
            Registration {
                pdu_size: 0,
                flags: register::SZ_STRICT,
                ..good
            },
            -libc::EMSGSIZE,
        ),
        (
            "program without RET",
            TASK,
            of_register(IORING_REGISTER_PERSONALITY, &no_ret),
            INVALID,
        ),
        (
            "load past the context",
            ring.fd(),
            of_register(IORING_REGISTER_PERSONALITY, &[ld(40), ret(0)]),
            INVALID,
        ),
    ] {
        let mut registration = registration;
        expect_result(what, registration.register(fd), want)?;
    }
    for ring in [ring, Ring::new(2)?] {
        let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
        expect_result("afterwards", got, 1)?;
    }
    // A smaller size is accepted: such a filter does not read the rest.
    let mut smaller = Registration {
        pdu_size: 0,
        ..good
    };
    expect_result("smaller pdu_size", smaller.register(TASK), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that the fdinfo of a ring lists the registrations that filters deny or decide
/// on.
///
/// In C, there are no filters of calls.
fn filters_of_registrations_are_in_fdinfo() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    let ring = Ring::new(2)?;
    let lines = || -> anyhow::Result<Vec<String>> {
        let path = format!("/proc/self/fdinfo/{}", ring.fd());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let shown = text
            .lines()
            .skip_while(|line| *line != "Registration filters:");
        Ok(shown.map(str::to_string).collect())
    };
    filter_register(ring.fd(), IORING_REGISTER_FILES, &bpf::allow())?;
    expect_eq("allowed", lines()?, vec![])?;
    filter_register(ring.fd(), IORING_REGISTER_FILES, &bpf::deny_if(PDU, 3))?;
    filter_register(ring.fd(), IORING_REGISTER_PROBE, &bpf::deny())?;
    // What is denied already costs as much as the rest.
    filter_register(ring.fd(), IORING_REGISTER_PROBE, &bpf::allow())?;
    for opcode in [0, IORING_REGISTER_LAST - 1] {
        filter_register(ring.fd(), opcode, &bpf::deny_if(PDU, 3))?;
    }
    let want = [
        "Registration filters:",
        "  0: programs 1, cost 8 of 32768",
        "  2: programs 1, cost 13 of 32768",
        "  8: denied, cost 10 of 32768",
        "  37: programs 1, cost 8 of 32768",
    ];
    expect_eq("filters", lines()?, want.map(str::to_string).to_vec())?;
    Ok(Outcome::Passed)
}

/// Checks that each of many filters of a call can deny it, whatever the order.
///
/// In C, there are no filters of calls.
fn all_of_several_filters_must_allow() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    let ring = Ring::new(2)?;
    for value in 0..40 {
        filter_register(ring.fd(), IORING_REGISTER_FILES, &bpf::deny_if(PDU, value))?;
        // Neither of these depends on anything.
        let never = bpf::deny_if(OPCODE_WORD, 0);
        filter_register(ring.fd(), IORING_REGISTER_FILES, &never)?;
    }
    for nr_args in 0..80 {
        let want = if nr_args < 40 { DENIED } else { -libc::EFAULT };
        let got = register::register(ring.fd(), IORING_REGISTER_FILES, std::ptr::null(), nr_args);
        expect_result(&format!("{nr_args} files"), got, want)?;
    }
    Ok(Outcome::Passed)
}
