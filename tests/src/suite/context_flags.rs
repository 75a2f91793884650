// SPDX-License-Identifier: GPL-2.0
//! D3: `user_data`, the opcode, and the SQE flags as filters see them, which
//! include those that the kernel itself sets while it prepares a request.

use anyhow::ensure;

use super::{Outcome, Test, TestResult, slow, test};
use crate::bpf::{self, OPCODE_WORD, USER_DATA_HI, USER_DATA_LO};
use crate::kernel::expect_eq;
use crate::register::{IORING_REGISTER_FILES, register};
use crate::ring::{Ring, read_context, read_context_on};
use crate::sqe::{
    IORING_NOP_FILE, IORING_NOP_FIXED_FILE, IOSQE_ASYNC, IOSQE_BUFFER_SELECT,
    IOSQE_CQE_SKIP_SUCCESS, IOSQE_FIXED_FILE, IOSQE_IO_DRAIN, IOSQE_IO_HARDLINK, IOSQE_IO_LINK,
    Sqe, op,
};

pub const TESTS: &[Test] = &[
    test("FC01 user_data, low and high half", fc01),
    slow("FC02 word 8 of a NOP is the opcode alone", 20, fc02),
    slow("FC03 every SQE flag", 20, fc03),
    slow("FC04 ASYNC set by prep", 20, fc04),
    slow("FC05 FIXED_FILE set by NOP's prep", 20, fc05),
    test("FC06 ASYNC while the ring is draining", fc06),
];

fn fc01() -> TestResult {
    let user_data = 0x1122_3344_5566_7788;
    let exact = bpf::allow_if_all(&[(USER_DATA_LO, 0x5566_7788), (USER_DATA_HI, 0x1122_3344)]);
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &exact)?;
    ring.expect("exact", Sqe::nop().user_data(user_data), 0)?;
    for bit in 0..64 {
        let other = Sqe::nop().user_data(user_data ^ 1 << bit);
        ring.expect(&format!("bit {bit} flipped"), other, -libc::EACCES)?;
    }
    let swapped = Sqe::nop().user_data(user_data.rotate_left(32));
    ring.expect("halves swapped", swapped, -libc::EACCES)?;
    Ok(Outcome::Passed)
}

fn fc02() -> TestResult {
    let got = read_context(op::NOP, Sqe::nop)?;
    expect_eq("NOP", got, [0; 10])?;
    // NOP is opcode 0, so another one shows that the byte is there.
    let got = read_context(op::FSYNC, || Sqe::new(op::FSYNC).flags(IOSQE_ASYNC))?;
    let word = u32::from_le_bytes([op::FSYNC, IOSQE_ASYNC, 0, 0]);
    expect_eq("FSYNC", got, [0, 0, word, 0, 0, 0, 0, 0, 0, 0])?;
    Ok(Outcome::Passed)
}

/// That byte 9 of a request's context is `want`, and the rest of the word right.
fn flags_are(what: &str, make: impl Fn() -> Sqe, want: u8) -> anyhow::Result<()> {
    let opcode = make().opcode;
    let got = read_context(opcode, make)?;
    let size = crate::register::pdu_size(opcode);
    expect_eq(what, got[2].to_le_bytes(), [opcode, want, size, 0])
}

fn fc03() -> TestResult {
    // A RECV on no file: takes every flag, and always posts a completion.
    let recv = Sqe::new(op::RECV);
    for flags in [
        0,
        IOSQE_FIXED_FILE,
        IOSQE_IO_LINK,
        IOSQE_IO_HARDLINK,
        IOSQE_ASYNC,
        IOSQE_BUFFER_SELECT,
        IOSQE_CQE_SKIP_SUCCESS,
        IOSQE_FIXED_FILE | IOSQE_ASYNC | IOSQE_BUFFER_SELECT | IOSQE_CQE_SKIP_SUCCESS,
    ] {
        flags_are(&format!("flags {flags:#x}"), || recv.flags(flags), flags)?;
    }
    // Draining requests run on a worker, and show that too.
    let drain = IOSQE_IO_DRAIN;
    flags_are("drain", || recv.flags(drain), drain | IOSQE_ASYNC)?;
    // The one bit that the uapi does not define is refused before any filter.
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::RECV, &bpf::deny())?;
    ring.expect("bit 7", recv.flags(1 << 7), -libc::EINVAL)?;
    Ok(Outcome::Passed)
}

fn fc04() -> TestResult {
    let path = c"/no/such/file".as_ptr();
    let mut statx = Sqe::new(op::STATX).fd(libc::AT_FDCWD).buffer(path, 0);
    let buffer = [0u8; 256];
    statx.off = buffer.as_ptr() as u64;
    let unlink = Sqe::new(op::UNLINKAT).fd(libc::AT_FDCWD).buffer(path, 0);
    let mkdir = Sqe::new(op::MKDIRAT).fd(libc::AT_FDCWD).buffer(path, 0);
    let create = Sqe::openat(c"/no/such/file", libc::O_RDWR | libc::O_CREAT, 0);
    let truncate = Sqe::openat(c"/no/such/file", libc::O_RDWR | libc::O_TRUNC, 0);
    let plain = Sqe::openat(c"/no/such/file", libc::O_RDWR, 0);
    for (what, sqe, want) in [
        ("STATX", statx, IOSQE_ASYNC),
        ("UNLINKAT", unlink, IOSQE_ASYNC),
        ("MKDIRAT", mkdir, IOSQE_ASYNC),
        ("OPENAT O_CREAT", create, IOSQE_ASYNC),
        ("OPENAT O_TRUNC", truncate, IOSQE_ASYNC),
        ("OPENAT O_RDWR", plain, 0),
        ("FSYNC", Sqe::new(op::FSYNC), IOSQE_ASYNC),
        ("SHUTDOWN", Sqe::new(op::SHUTDOWN), IOSQE_ASYNC),
        ("RECV", Sqe::new(op::RECV), 0),
    ] {
        flags_are(what, || sqe, want)?;
    }
    Ok(Outcome::Passed)
}

fn fc05() -> TestResult {
    let mut ring = Ring::new(4)?;
    let files = [0i32];
    let got = register(ring.fd(), IORING_REGISTER_FILES, files.as_ptr().cast(), 1);
    ensure!(got == 0, "registering a file: {got}");
    ring.must_filter(op::NOP, &bpf::read_bit())?;
    let fixed = Sqe::nop()
        .fd(0)
        .op_flags(IORING_NOP_FILE | IORING_NOP_FIXED_FILE);
    let got = read_context_on(&mut ring, || fixed)?;
    expect_eq("fixed file", got[2], u32::from(IOSQE_FIXED_FILE) << 8)?;
    let plain = Sqe::nop().fd(0).op_flags(IORING_NOP_FILE);
    let got = read_context_on(&mut ring, || plain)?;
    expect_eq("plain file", got[2], 0)?;
    Ok(Outcome::Passed)
}

/// Results of [poll that waits, draining NOP, plain NOP], where the filter of
/// NOP decides on the word with the flags.
fn while_draining(program: &[bpf::Insn]) -> anyhow::Result<[i32; 3]> {
    let mut ring = Ring::new(8)?;
    ring.must_filter(op::NOP, program)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let pending = Sqe::poll(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::POLLIN);
    ring.push(pending.user_data(1))?;
    ring.push(Sqe::nop().user_data(2).flags(IOSQE_IO_DRAIN))?;
    ring.push(Sqe::nop().user_data(3))?;
    // A denial ends the batch; the rest goes in with the next one.
    let mut submitted = ring.submit()?;
    while submitted < 3 {
        submitted += ring.submit()?;
    }
    nix::unistd::write(&writer, b"x")?;
    let mut results = [0; 3];
    for cqe in ring.cqes(3)? {
        results[cqe.user_data as usize - 1] = cqe.res;
    }
    Ok(results)
}

fn fc06() -> TestResult {
    let word = |flags: u8| u32::from(flags) << 8;
    let draining = word(IOSQE_IO_DRAIN | IOSQE_ASYNC);
    let after = word(IOSQE_ASYNC);
    let denied = -libc::EACCES;
    let ready = i32::from(libc::POLLIN);
    expect_eq(
        "the draining request shows DRAIN and ASYNC",
        while_draining(&bpf::deny_if(OPCODE_WORD, draining))?,
        [ready, denied, 0],
    )?;
    expect_eq(
        "the next one shows ASYNC",
        while_draining(&bpf::deny_if(OPCODE_WORD, after))?,
        [ready, 0, denied],
    )?;
    expect_eq(
        "and neither shows no flag",
        while_draining(&bpf::deny_if(OPCODE_WORD, 0))?,
        [ready, 0, 0],
    )?;
    Ok(Outcome::Passed)
}
