// SPDX-License-Identifier: GPL-2.0
//! D8: exporting an interface queue, its errors and the file that it makes, and the
//! errors of importing. What an import can do is in `zcrx_sharing`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::zcrx_sharing::{ENTRIES, PAGES, export, export_ctrl, import, import_into, import_reg};
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources};
use crate::dmabuf;
use crate::kernel::{expect_eq, expect_result};
use crate::register::{PAGE_SIZE, Page, register};
use crate::ring::IORING_SETUP_SINGLE_ISSUER;
use crate::sandbox;
use crate::wide::{
    IORING_SETUP_CQE_MIXED, IORING_SETUP_CQE32, IORING_SETUP_DEFER_TASKRUN, WideRing,
};
use crate::zcrx::{
    IORING_REGISTER_ZCRX_CTRL, IORING_REGISTER_ZCRX_IFQ, IfqReg, Registration, ZCRX_REG_NODEV,
    control, register_ifq,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::export" {
        ZX03 reserved_bytes_must_be_zero;
        ZX04 file_can_only_be_imported;
        ZX05 failed_write_back_leaves_no_file;
        ZX06 no_free_descriptor_leaves_nothing_behind;
        ZX07 invalid_imports_are_refused;
    }
};

/// Checks that each reserved byte of an export that is not zero gives EINVAL.
fn reserved_bytes_must_be_zero() -> TestResult {
    let before = Resources::now()?;
    let (consumer, _area) = Consumer::new(ENTRIES, PAGES)?;
    let held = Resources::now()?;
    for bit in (0..48 * 8).step_by(8) {
        let mut ctrl = export_ctrl(0);
        ctrl.union[bit / 64] = 1 << (bit % 64);
        let copy = ctrl;
        let got = control(consumer.ring.fd(), &mut ctrl);
        expect_result(&format!("bit {bit}"), got, -libc::EINVAL)?;
        expect_eq("the structure afterwards", ctrl, copy)?;
    }
    held.expect("errors")?;
    drop(export(&consumer)?);
    held.expect("an export and its end")?;
    drop(consumer);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that an export makes a close-on-exec file called anon_inode:[zcrx], which can
/// be imported and neither read nor written.
fn file_can_only_be_imported() -> TestResult {
    let before = Resources::now()?;
    let (consumer, _area) = Consumer::new(ENTRIES, PAGES)?;
    let held = Resources::now()?;
    let file = export(&consumer)?;
    held.with_files(1).expect("an export")?;
    let flags = fcntl(&file, FcntlArg::F_GETFD)?;
    expect_eq("descriptor flags", flags, FdFlag::FD_CLOEXEC.bits())?;
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    expect_eq("name", link.to_str(), Some("anon_inode:[zcrx]"))?;
    // The file can be imported, but not read or written.
    let file = File::from(file);
    let error = (&file).read(&mut [0]).err();
    let error = error.and_then(|error| error.raw_os_error());
    expect_eq("reading", error, Some(libc::EINVAL))?;
    let error = (&file).write(&[0]).err();
    let error = error.and_then(|error| error.raw_os_error());
    expect_eq("writing", error, Some(libc::EBADF))?;
    // Another export makes another file.
    let file = OwnedFd::from(file);
    let other = export(&consumer)?;
    held.with_files(2).expect("two exports")?;
    let importers = [import(&file)?, import(&other)?];
    drop((importers, file, other));
    held.wait("closing all of them")?;
    drop(consumer);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that an export into a read-only page gives EFAULT, and leaves no file,
/// descriptor or reference.
fn failed_write_back_leaves_no_file() -> TestResult {
    let before = Resources::now()?;
    let (consumer, _area) = Consumer::new(ENTRIES, PAGES)?;
    let held = Resources::now()?;
    let lowest = export(&consumer)?.as_raw_fd();
    let page = Page::new()?;
    page.write(0, &export_ctrl(0));
    page.protect(libc::PROT_READ)?;
    for _ in 0..10 {
        let got = register(
            consumer.ring.fd(),
            IORING_REGISTER_ZCRX_CTRL,
            page.address.cast(),
            0,
        );
        expect_result("a read-only page", got, -libc::EFAULT)?;
        held.expect("an error")?;
    }
    // Not even a descriptor's number is used up.
    expect_eq("file", export(&consumer)?.as_raw_fd(), lowest)?;
    // No reference is leaked, or the memory would stay pinned.
    drop(consumer);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that an export without a free descriptor gives EMFILE and leaves nothing
/// behind.
fn no_free_descriptor_leaves_nothing_behind() -> TestResult {
    let before = Resources::now()?;
    let (consumer, _area) = Consumer::new(ENTRIES, PAGES)?;
    let held = Resources::now()?;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    for _ in 0..10 {
        let mut ctrl = export_ctrl(0);
        setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
        let got = control(consumer.ring.fd(), &mut ctrl);
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
        expect_result("without a descriptor", got, -libc::EMFILE)?;
        expect_eq("the structure afterwards", ctrl, export_ctrl(0))?;
        held.expect("an error")?;
    }
    drop(export(&consumer)?);
    held.expect("an export and its end")?;
    drop(consumer);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Returns a pidfd of this process.
fn pidfd() -> anyhow::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, std::process::id(), 0) };
    ensure!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Checks that files of other kinds, fields that an import does not have, unsuitable
/// rings and missing privilege each give their own error.
fn invalid_imports_are_refused() -> TestResult {
    let before = Resources::now()?;
    let (consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    let ring = WideRing::new(8)?;
    let null = File::open("/dev/null")?;
    // Other files on the same pseudo file system, of each kind that is available.
    let event = EventFd::new()?;
    let poll = Epoll::new(EpollCreateFlags::empty())?;
    let process = pidfd()?;
    let (dmabuf, behind) = dmabuf::new(PAGE_SIZE)?;
    // A file without data of its own.
    let empty = memfd_create(c"empty", MFdFlags::empty())?;
    let closed = null.try_clone()?.as_raw_fd();
    let held = Resources::now()?;
    let valid = import_reg(file.as_raw_fd());
    // The fields that a registration without import has.
    let mut like = Registration::new(ENTRIES, &area);
    let mut change = |change: &dyn Fn(&mut IfqReg, &mut Registration)| {
        let mut reg = valid;
        change(&mut reg, &mut like);
        reg
    };
    for (what, reg, error) in [
        ("a closed file", import_reg(closed), libc::EBADF),
        ("no file", import_reg(-1), libc::EBADF),
        ("a device", import_reg(null.as_raw_fd()), libc::EBADF),
        ("the ring", import_reg(ring.fd()), libc::EBADF),
        ("an event", import_reg(event.as_raw_fd()), libc::EBADF),
        ("a poll", import_reg(poll.0.as_raw_fd()), libc::EBADF),
        ("a process", import_reg(process.as_raw_fd()), libc::EBADF),
        ("a dma-buf", import_reg(dmabuf.as_raw_fd()), libc::EBADF),
        ("memory", import_reg(empty.as_raw_fd()), libc::EBADF),
        ("a queue", change(&|reg, _| reg.if_rxq = 1), libc::EINVAL),
        (
            "the last queue",
            change(&|reg, _| reg.if_rxq = u32::MAX),
            libc::EINVAL,
        ),
        (
            "entries",
            change(&|reg, like| reg.rq_entries = like.reg.rq_entries),
            libc::EINVAL,
        ),
        (
            "an area",
            change(&|reg, like| reg.area_ptr = &raw mut like.area as u64),
            libc::EINVAL,
        ),
        (
            "a region",
            change(&|reg, like| reg.region_ptr = &raw mut like.region as u64),
            libc::EINVAL,
        ),
        (
            "an event",
            change(&|reg, like| reg.event_desc = &raw mut like.event as u64),
            libc::EINVAL,
        ),
        (
            "without a device",
            change(&|reg, _| reg.flags |= ZCRX_REG_NODEV),
            libc::EINVAL,
        ),
        ("a flag", change(&|reg, _| reg.flags |= 4), libc::EINVAL),
        ("an id", change(&|reg, _| reg.zcrx_id = 1), libc::EINVAL),
        ("reserved", change(&|reg, _| reg.resv[0] = 1), libc::EINVAL),
        ("and more", change(&|reg, _| reg.resv[1] = 1), libc::EINVAL),
        // The kernel checks all fields before it looks up the file.
        (
            "a queue of a closed file",
            IfqReg {
                if_rxq: 1,
                ..import_reg(closed)
            },
            libc::EINVAL,
        ),
    ] {
        let mut copy = reg;
        let got = register_ifq(ring.fd(), &mut copy);
        expect_result(what, got, -error)?;
        expect_eq(what, copy, reg)?;
        held.expect(what)?;
    }

    let (single, defer) = (IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_DEFER_TASKRUN);
    for (what, flags) in [
        ("narrow completions", single | defer),
        ("eager task work", single | IORING_SETUP_CQE32),
        ("eager task work, mixed", single | IORING_SETUP_CQE_MIXED),
    ] {
        let other = WideRing::with(2, 0, flags)?;
        let got = register_ifq(other.fd(), &mut { valid });
        expect_result(what, got, -libc::EINVAL)?;
    }
    let refused = || {
        let other = WideRing::new(2)?;
        let got = register_ifq(other.fd(), &mut { valid });
        expect_result("without CAP_NET_ADMIN", got, -libc::EPERM)
    };
    sandbox::in_child(|| {
        sandbox::drop_privileges()?;
        refused()?;
        sandbox::user_namespace()?;
        refused().context("in a namespace of one's own")
    })?;

    // An id that could not be written back is free again.
    let page = Page::new()?;
    page.write(0, &valid);
    page.protect(libc::PROT_READ)?;
    let address = page.address.cast();
    let got = register(ring.fd(), IORING_REGISTER_ZCRX_IFQ, address, 1);
    expect_result("a read-only page", got, -libc::EFAULT)?;
    held.expect("all errors")?;
    import_into(&ring, &file, 0)?;
    drop((consumer, ring, file, null, page));
    drop((event, poll, process, dmabuf, behind, empty));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}
