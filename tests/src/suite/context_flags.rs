// SPDX-License-Identifier: GPL-2.0
//! D3: the `user_data`, opcode and SQE flags that filters see, including the flags that
//! the kernel itself sets while it prepares a request.

use anyhow::ensure;

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, OPCODE_WORD, USER_DATA_HI, USER_DATA_LO};
use crate::kernel::expect_eq;
use crate::register::{IORING_REGISTER_FILES, register};
use crate::ring::{IORING_SETUP_SUBMIT_ALL, Ring, read_context, read_context_on};
use crate::sqe::{
    IORING_NOP_FILE, IORING_NOP_FIXED_FILE, IOSQE_ASYNC, IOSQE_BUFFER_SELECT,
    IOSQE_CQE_SKIP_SUCCESS, IOSQE_FIXED_FILE, IOSQE_IO_DRAIN, IOSQE_IO_HARDLINK, IOSQE_IO_LINK,
    OpenHow, Sqe, op,
};

pub const TESTS: &[Test] = tests! {
    "filters::context" {
        FC01 user_data_is_shown_in_two_words;
        FC02 opcode_and_flags_share_a_word (20 s);
        FC03 every_sqe_flag_is_shown (20 s);
        FC04 async_is_shown_where_prep_sets_it;
        FC05 fixed_file_is_shown_where_prep_of_nop_sets_it (20 s);
        FC06 async_is_shown_while_the_ring_drains;
        FC06link drain_in_a_link_shows_on_what_follows;
    }
};

/// Checks that filters see the low and the high half of user_data in words 0 and 1.
fn user_data_is_shown_in_two_words() -> TestResult {
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

/// Checks that filters see the opcode and the SQE flags in word 2, and zeros in the
/// other words of a plain NOP.
fn opcode_and_flags_share_a_word() -> TestResult {
    let got = read_context(op::NOP, Sqe::nop)?;
    expect_eq("NOP", got, [0; 10])?;
    // NOP is opcode 0, so another opcode shows that the byte is filled in.
    let got = read_context(op::FSYNC, || Sqe::new(op::FSYNC).flags(IOSQE_ASYNC))?;
    let word = u32::from_le_bytes([op::FSYNC, IOSQE_ASYNC, 0, 0]);
    expect_eq("FSYNC", got, [0, 0, word, 0, 0, 0, 0, 0, 0, 0])?;
    Ok(Outcome::Passed)
}

/// Checks that byte 9 of a request's context is `want`, and that the rest of the word
/// is right.
fn flags_are(what: &str, make: impl Fn() -> Sqe, want: u8) -> anyhow::Result<()> {
    let opcode = make().opcode;
    let got = read_context(opcode, make)?;
    let size = crate::register::pdu_size(opcode);
    expect_eq(what, got[2].to_le_bytes(), [opcode, want, size, 0])
}

/// Checks that filters see each SQE flag and combinations of them, and an undefined
/// flag gives EINVAL before they run.
fn every_sqe_flag_is_shown() -> TestResult {
    // A RECV without a file takes every flag and always posts a completion.
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
    // Draining requests run on a worker, so they show ASYNC too.
    let drain = IOSQE_IO_DRAIN;
    flags_are("drain", || recv.flags(drain), drain | IOSQE_ASYNC)?;
    // The kernel refuses the one bit that the uapi does not define before any filter
    // runs.
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::RECV, &bpf::deny())?;
    ring.expect("bit 7", recv.flags(1 << 7), -libc::EINVAL)?;
    Ok(Outcome::Passed)
}

/// Builds an address of AF_UNIX: the path of a file, or an abstract name if it starts
/// with NUL.
fn unix_address(path: &[u8; 8]) -> [u8; 10] {
    let mut address = [0; 10];
    address[..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    address[2..].copy_from_slice(path);
    address
}

/// Checks that filters see IOSQE_ASYNC for each opcode whose preparation sends it to a
/// worker, and not for others.
///
/// Preparation accepts these requests, although none of them finds its file.
fn async_is_shown_where_prep_sets_it() -> TestResult {
    let path = c"/no/such/file".as_ptr();
    let at = |opcode| {
        let mut sqe = Sqe::new(opcode).fd(libc::AT_FDCWD).buffer(path, 0);
        sqe.off = path as u64;
        sqe
    };
    let buffer = [0u8; 256];
    let xattr = |opcode| {
        let mut sqe = Sqe::new(opcode).buffer(c"user.none".as_ptr(), 0);
        sqe.addr3 = path as u64;
        sqe
    };
    let statx = Sqe::off(at(op::STATX), buffer.as_ptr() as u64);
    let open = |flags| Sqe::openat(c"/no/such/file", flags, 0);
    let how = |flags: i32| OpenHow {
        flags: flags as u64,
        ..OpenHow::default()
    };
    let (create, plain, truncate) = (
        how(libc::O_CREAT | libc::O_WRONLY),
        how(libc::O_WRONLY),
        how(libc::O_TRUNC | libc::O_WRONLY),
    );
    let open2 = |how| Sqe::openat2(c"/no/such/file", how, size_of::<OpenHow>() as u32);
    let advise = |advice: i32| Sqe::new(op::FADVISE).op_flags(advice as u32);
    let (file, abstract_name) = (unix_address(b"/no/such"), unix_address(b"\0no/such"));
    let bind = |address: &[u8]| {
        Sqe::new(op::BIND)
            .buffer(address.as_ptr(), 0)
            .off(address.len() as u64)
    };
    for (what, sqe, to_worker) in [
        ("OPENAT O_CREAT", open(libc::O_RDWR | libc::O_CREAT), true),
        ("OPENAT O_TRUNC", open(libc::O_RDWR | libc::O_TRUNC), true),
        (
            "OPENAT O_TMPFILE",
            open(libc::O_RDWR | libc::O_TMPFILE),
            true,
        ),
        ("OPENAT O_RDWR", open(libc::O_RDWR), false),
        ("OPENAT O_PATH", open(libc::O_PATH | libc::O_CREAT), false),
        ("OPENAT2 O_CREAT", open2(&raw const create), true),
        ("OPENAT2 O_TRUNC", open2(&raw const truncate), true),
        ("OPENAT2 O_WRONLY", open2(&raw const plain), false),
        ("BIND to a file", bind(&file), true),
        ("BIND to an abstract name", bind(&abstract_name), false),
        ("STATX", statx, true),
        ("RENAMEAT", at(op::RENAMEAT), true),
        ("UNLINKAT", Sqe::off(at(op::UNLINKAT), 0), true),
        ("MKDIRAT", Sqe::off(at(op::MKDIRAT), 0), true),
        ("SYMLINKAT", at(op::SYMLINKAT), true),
        ("LINKAT", at(op::LINKAT), true),
        ("SPLICE", Sqe::new(op::SPLICE), true),
        ("TEE", Sqe::new(op::TEE), true),
        ("FSYNC", Sqe::new(op::FSYNC), true),
        ("SYNC_FILE_RANGE", Sqe::new(op::SYNC_FILE_RANGE), true),
        ("FALLOCATE", Sqe::new(op::FALLOCATE), true),
        ("FTRUNCATE", Sqe::new(op::FTRUNCATE), true),
        ("SHUTDOWN", Sqe::new(op::SHUTDOWN), true),
        ("FSETXATTR", xattr(op::FSETXATTR), true),
        ("SETXATTR", xattr(op::SETXATTR), true),
        ("FGETXATTR", xattr(op::FGETXATTR), true),
        ("GETXATTR", xattr(op::GETXATTR), true),
        ("MADVISE", Sqe::new(op::MADVISE), true),
        ("FADVISE DONTNEED", advise(libc::POSIX_FADV_DONTNEED), true),
        ("FADVISE WILLNEED", advise(libc::POSIX_FADV_WILLNEED), true),
        ("FADVISE NORMAL", advise(libc::POSIX_FADV_NORMAL), false),
        ("FADVISE RANDOM", advise(libc::POSIX_FADV_RANDOM), false),
        ("RECV", Sqe::new(op::RECV), false),
        ("CLOSE", Sqe::new(op::CLOSE), false),
    ] {
        let size = crate::register::pdu_size(sqe.opcode);
        for (seen, passes) in [(IOSQE_ASYNC, to_worker), (0, !to_worker)] {
            let word = u32::from_le_bytes([sqe.opcode, seen, size, 0]);
            let mut ring = Ring::new(2)?;
            ring.must_filter(sqe.opcode, &bpf::allow_if(OPCODE_WORD, word))?;
            let denied = ring.run(sqe)? == -libc::EACCES;
            expect_eq(&format!("{what} passes with {seen:#x}"), !denied, passes)?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that filters see IOSQE_FIXED_FILE for a NOP that asks for a fixed file by a
/// flag of its own.
fn fixed_file_is_shown_where_prep_of_nop_sets_it() -> TestResult {
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

/// Returns the results of a poll that waits, a draining NOP and a plain NOP, where
/// `program` is the filter of NOP.
fn while_draining(program: &[bpf::Insn]) -> anyhow::Result<[i32; 3]> {
    let mut ring = Ring::new(8)?;
    ring.must_filter(op::NOP, program)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let pending = Sqe::poll(std::os::fd::AsRawFd::as_raw_fd(&reader), libc::POLLIN);
    ring.push(pending.user_data(1))?;
    ring.push(Sqe::nop().user_data(2).flags(IOSQE_IO_DRAIN))?;
    ring.push(Sqe::nop().user_data(3))?;
    // A denial ends the batch; the next call submits the rest.
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

/// Checks that filters see IOSQE_ASYNC for a draining request and for the one that
/// follows it.
fn async_is_shown_while_the_ring_drains() -> TestResult {
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
        "neither of them shows no flag",
        while_draining(&bpf::deny_if(OPCODE_WORD, 0))?,
        [ready, 0, 0],
    )?;
    Ok(Outcome::Passed)
}

/// Builds a program that allows only requests whose `user_data` and flags are as
/// listed.
fn allow_exactly(requests: &[(u32, u8)]) -> bpf::Program {
    let mut program = Vec::new();
    for &(user_data, flags) in requests {
        program.extend([
            bpf::ld(USER_DATA_LO),
            bpf::jeq(user_data, 0, 4),
            bpf::ld(OPCODE_WORD),
            bpf::jeq(u32::from(flags) << 8, 0, 1),
            bpf::ret(1),
            bpf::ret(0),
        ]);
    }
    program.push(bpf::ret(0));
    program
}

/// Checks the flags that filters see of NOPs that are submitted at once. Each entry of
/// `flags` holds those of the SQE and those seen.
fn seen_at_once(what: &str, flags: &[(u8, u8)]) -> anyhow::Result<()> {
    let seen: Vec<(u32, u8)> = (1..).zip(flags.iter().map(|&(_, seen)| seen)).collect();
    let denied = |seen: &[(u32, u8)]| -> anyhow::Result<bool> {
        let mut ring = Ring::with(8, IORING_SETUP_SUBMIT_ALL)?;
        ring.must_filter(op::NOP, &allow_exactly(seen))?;
        let sqes: Vec<Sqe> = (1..)
            .zip(flags)
            .map(|(user_data, &(given, _))| Sqe::nop().user_data(user_data).flags(given))
            .collect();
        let results = ring.run_all(&sqes)?;
        Ok(results.iter().any(|cqe| cqe.res != 0))
    };
    ensure!(!denied(&seen)?, "{what}: some NOP shows other flags");
    // Expecting one flag less or more of one of the NOPs must fail.
    for i in 0..seen.len() {
        for bit in [IOSQE_IO_DRAIN, IOSQE_ASYNC] {
            let mut other = seen.clone();
            other[i].1 ^= bit;
            ensure!(denied(&other)?, "{what}: NOP {i} shows what it must not");
        }
    }
    Ok(())
}

/// Checks that with IOSQE_IO_DRAIN on a member of a link, filters see the flags that
/// the kernel adds to that member and to what follows the link.
fn drain_in_a_link_shows_on_what_follows() -> TestResult {
    let (link, drain, to_worker) = (IOSQE_IO_LINK, IOSQE_IO_DRAIN, IOSQE_ASYNC);
    seen_at_once(
        "DRAIN on a member drains the head and what follows the link",
        &[
            // The head gets its DRAIN flag only after its filter has run.
            (link, link),
            (link | drain, link | drain | to_worker),
            (0, to_worker),
            (0, drain | to_worker),
            (0, to_worker),
        ],
    )?;
    seen_at_once(
        "DRAIN on the head",
        &[
            (link | drain, link | drain | to_worker),
            (0, to_worker),
            (0, to_worker),
        ],
    )?;
    seen_at_once("no DRAIN", &[(link, link), (0, 0), (to_worker, to_worker)])?;
    Ok(Outcome::Passed)
}
