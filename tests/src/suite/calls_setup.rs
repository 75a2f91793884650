// SPDX-License-Identifier: GPL-2.0
//! D6: filters of `io_uring_setup()`, and the privilege and the bound that filters of
//! calls have in common.

use super::calls::{filter_register, filter_setup, of_register, of_setup, skipped};
use super::restrictions::bare_register;
use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, Insn, PDU, jset, ld, ret};
use crate::kernel::{self, BPF_MAXINSNS, CHAIN_BOUND, CHAIN_OVERHEAD, expect_eq, expect_result};
use crate::register::{
    self, IORING_REGISTER_FILES, IORING_REGISTER_PERSONALITY, IORING_REGISTER_PROBE,
    IORING_REGISTER_QUERY, Registration, TASK,
};
use crate::ring::{
    IORING_SETUP_CQSIZE, IORING_SETUP_R_DISABLED, IORING_SETUP_SQPOLL, PARAMS_SIZE, RawParams,
    Ring, setup,
};
use crate::sandbox;

pub const TESTS: &[Test] = tests! {
    "restrictions::calls" {
        CF05 setup_is_denied_by_its_arguments;
        CF06 setup_is_filtered_before_it_is_looked_at;
        CF08 task_needs_the_privilege_to_filter_requests;
        CF09 filters_of_a_call_are_bounded (60 s);
    }
};

const DENIED: i32 = -libc::EACCES;
const INVALID: i32 = -libc::EINVAL;

/// Sets up a ring with `flags` and closes it. Returns 0 or the error.
pub fn try_setup(flags: u32) -> i32 {
    let mut params = RawParams::default();
    params[1] = 8;
    params[2] = flags;
    let fd = setup(4, &mut params);
    if fd >= 0 {
        // SAFETY: the descriptor is that of the new ring, which nobody else has.
        unsafe { libc::close(fd) };
    }
    fd.min(0)
}

/// Checks that setups are denied by a flag, or always, and the task's registrations are
/// not.
///
/// In C, there are no filters of calls.
fn setup_is_denied_by_its_arguments() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    let deny_sqpoll = [ld(PDU), jset(IORING_SETUP_SQPOLL, 0, 1), ret(0), ret(1)];
    filter_setup(&deny_sqpoll)?;
    for (flags, want) in [
        (0, 0),
        (IORING_SETUP_CQSIZE, 0),
        (IORING_SETUP_SQPOLL, DENIED),
        (IORING_SETUP_SQPOLL | IORING_SETUP_R_DISABLED, DENIED),
        (IORING_SETUP_R_DISABLED, 0),
    ] {
        expect_result(&format!("flags {flags:#x}"), try_setup(flags), want)?;
    }
    let earlier = Ring::new(2)?;
    filter_setup(&bpf::deny())?;
    expect_result("denied always", try_setup(0), DENIED)?;
    let got = bare_register(earlier.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("registering", got, 1)?;
    expect_result("query", bare_register(TASK, IORING_REGISTER_QUERY), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that EFAULT and EINVAL for reserved fields come before the filter of setups,
/// and all errors of arguments after it, and a denied setup leaves its parameters as
/// they are.
///
/// In C, there are no filters of calls.
fn setup_is_filtered_before_it_is_looked_at() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    filter_setup(&bpf::deny())?;
    let files = sandbox::open_files()?;
    let mut params = RawParams::default();
    params[2] = u32::MAX;
    let before = params;
    expect_result("unknown flags", setup(0, &mut params), DENIED)?;
    expect_eq("parameters", params, before)?;
    params[7] = 1;
    expect_result("reserved field", setup(1, &mut params), INVALID)?;
    // SAFETY: the kernel validates the pointer.
    let got = unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, PARAMS_SIZE) };
    expect_result("unmapped", kernel::result(got), -libc::EFAULT)?;
    expect_eq("open files", sandbox::open_files()?, files)?;
    Ok(Outcome::Passed)
}

/// Checks that a task cannot filter its calls without no_new_privs or CAP_SYS_ADMIN, and
/// anybody can filter those of a ring.
///
/// In C, there are no filters of calls.
fn task_needs_the_privilege_to_filter_requests() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::drop_privileges()?;
    let deny = bpf::deny();
    let mut filters = [of_register(IORING_REGISTER_QUERY, &deny), of_setup(&deny)];
    for filter in &mut filters {
        expect_result("unprivileged", filter.register(TASK), DENIED)?;
    }
    let ring = Ring::new(2)?;
    filter_register(ring.fd(), IORING_REGISTER_PERSONALITY, &deny)?;
    let got = bare_register(ring.fd(), IORING_REGISTER_PERSONALITY);
    expect_result("ring", got, DENIED)?;
    expect_result("setup", try_setup(0), 0)?;
    sandbox::no_new_privs()?;
    for filter in &mut filters {
        expect_result("no_new_privs", filter.register(TASK), 0)?;
    }
    expect_result("setup", try_setup(0), DENIED)?;
    Ok(Outcome::Passed)
}

/// Builds a program of `len` instructions that denies calls with a first word of
/// arguments of 77.
fn padded(len: usize) -> bpf::Program {
    let mut program = vec![bpf::ld_imm(0); len - 4];
    program.extend(bpf::deny_if(PDU, 77));
    program
}

/// Checks that the filters of a registration, and those of setups, may cost 32,768, and
/// one past that is refused with ENOMEM and changes nothing.
///
/// In C, there are no filters of calls.
fn filters_of_a_call_are_bounded() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    sandbox::sandboxed()?;
    let full = BPF_MAXINSNS + CHAIN_OVERHEAD;
    let count = CHAIN_BOUND / full;
    let last = CHAIN_BOUND - count * full - CHAIN_OVERHEAD;
    let ring = Ring::new(2)?;
    let long = padded(BPF_MAXINSNS);
    for (fd, build) in [
        (ring.fd(), of_register as fn(u32, &[Insn]) -> Registration),
        (TASK, |_, program| of_setup(program)),
    ] {
        for number in 0..count {
            let got = build(IORING_REGISTER_FILES, &long).register(fd);
            expect_result(&format!("filter {number}"), got, 0)?;
        }
        for (len, want) in [
            (BPF_MAXINSNS, -libc::ENOMEM),
            (last + 1, -libc::ENOMEM),
            (last, 0),
            (4, -libc::ENOMEM),
        ] {
            let got = build(IORING_REGISTER_FILES, &padded(len)).register(fd);
            expect_result(&format!("{len} more"), got, want)?;
        }
        let got = build(IORING_REGISTER_FILES, &bpf::deny()).register(fd);
        expect_result("one that denies", got, -libc::ENOMEM)?;
    }
    filter_register(ring.fd(), IORING_REGISTER_PROBE, &long)?;
    for (nr_args, want) in [(77, DENIED), (76, -libc::EFAULT)] {
        let got = register::register(ring.fd(), IORING_REGISTER_FILES, std::ptr::null(), nr_args);
        expect_result(&format!("{nr_args} files"), got, want)?;
    }
    expect_result("setup", try_setup(0), 0)?;
    expect_result("setup with flags 77", try_setup(77), DENIED)?;
    Ok(Outcome::Passed)
}
