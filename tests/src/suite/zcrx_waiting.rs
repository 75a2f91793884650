// SPDX-License-Identifier: GPL-2.0
//! D8: memory whose pinning takes as long as user space likes, and the tasks that have
//! to wait for it.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{Pid, gettid};

use super::zcrx_areas::{add, add_at};
use super::zcrx_device_end::add_area;
use super::zcrx_sharing::{ENTRIES, PAGES, export, import};
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, offset};
use crate::kernel::{Implementation, expect_eq, expect_result, result, zcrx_implementation};
use crate::nic::{self, Nic, PORT};
use crate::register::PAGE_SIZE;
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{AREA_SHIFT, AreaReg, memory, pinned};

pub const TESTS: &[Test] = tests! {
    "zcrx::waiting" {
        ZX28 slow_area_does_not_delay_another;
        ZX30 failed_area_keeps_its_number_unused;
        BG03 device_can_go_while_memory_is_withheld;
    }
};

/// The handshake of userfaultfd: `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// A range, and what to do with it: `struct uffdio_register` or `struct
/// uffdio_zeropage`.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    mode: u64,
    done: u64,
}

/// A range, and whether to protect it: `struct uffdio_writeprotect`.
#[repr(C)]
struct Protection {
    start: u64,
    len: u64,
    mode: u64,
}

const UFFD: u64 = 0xaa;
/// Reports accesses to missing pages. A flag in [`Range::mode`].
const MISSING: u64 = 1;
/// Reports writes to protected pages. A flag in [`Range::mode`].
const PROTECTED: u64 = 2;
/// Protects the range. A flag in [`Protection::mode`].
const PROTECT: u64 = 1;

nix::ioctl_readwrite!(uffdio_api, UFFD, 0x3f, Api);
nix::ioctl_readwrite!(uffdio_register, UFFD, 0x00, Range);
nix::ioctl_read!(uffdio_wake, UFFD, 0x02, [u64; 2]);
nix::ioctl_readwrite!(uffdio_zeropage, UFFD, 0x04, Range);
nix::ioctl_readwrite!(uffdio_writeprotect, UFFD, 0x06, Protection);

/// Memory that can be accessed only once this process serves it: its pages are missing,
/// or protected from being written to.
pub(super) struct Withheld {
    file: OwnedFd,
    pub(super) memory: Mapping,
}

impl Withheld {
    /// Makes memory all of whose pages are missing.
    pub(super) fn new(pages: usize) -> anyhow::Result<Self> {
        Self::with(pages, MISSING)
    }

    /// Makes memory that is withheld as `mode` says.
    fn with(pages: usize, mode: u64) -> anyhow::Result<Self> {
        let memory = memory(pages)?;
        // Without O_NONBLOCK, the file cannot be polled.
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: the call takes nothing but flags.
        let fd = result(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) });
        ensure!(fd >= 0, "userfaultfd: {fd}");
        // SAFETY: the descriptor is new, and nothing else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut api = Api {
            api: UFFD,
            features: 0,
            ioctls: 0,
        };
        // SAFETY: the structure is laid out as the kernel's.
        unsafe { uffdio_api(fd, &mut api) }.context("UFFDIO_API")?;
        let withheld = Withheld { file, memory };
        let mut range = withheld.range(mode);
        // SAFETY: the structure is laid out as the kernel's, and `withheld` owns the
        // memory.
        unsafe { uffdio_register(fd, &mut range) }.context("UFFDIO_REGISTER")?;
        Ok(withheld)
    }

    fn range(&self, mode: u64) -> Range {
        Range {
            start: self.memory.address() as u64,
            len: self.memory.len() as u64,
            mode,
            done: 0,
        }
    }

    /// Waits until a task waits for a page.
    pub(super) fn wait(&self) -> anyhow::Result<()> {
        let mut files = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, PollTimeout::NONE)?;
        expect_eq("events", files[0].revents(), Some(PollFlags::POLLIN))
    }

    /// Protects all pages, which must exist, from being written to.
    fn protect(&self) -> anyhow::Result<()> {
        let Range { start, len, .. } = self.range(0);
        let mut protection = Protection {
            start,
            len,
            mode: PROTECT,
        };
        // SAFETY: the structure is laid out as the kernel's, and `self` owns the
        // memory.
        unsafe { uffdio_writeprotect(self.file.as_raw_fd(), &mut protection) }
            .context("UFFDIO_WRITEPROTECT")?;
        Ok(())
    }

    /// Changes the protection of all pages and wakes the tasks that wait for one, so
    /// that their accesses fail.
    fn deny(&self, protection: i32) -> anyhow::Result<()> {
        let Range { start, len, .. } = self.range(0);
        // SAFETY: `self` owns the mapping, and nothing refers to it.
        let got = unsafe { libc::mprotect(start as *mut _, len as usize, protection) };
        expect_eq("mprotect", got, 0)?;
        // SAFETY: the structure is laid out as the kernel's.
        unsafe { uffdio_wake(self.file.as_raw_fd(), &mut [start, len]) }.context("UFFDIO_WAKE")?;
        Ok(())
    }

    /// Provides all pages.
    pub(super) fn serve(&self) -> anyhow::Result<()> {
        // SAFETY: the structure is laid out as the kernel's, and `self` owns the
        // memory.
        unsafe { uffdio_zeropage(self.file.as_raw_fd(), &mut self.range(0)) }
            .context("UFFDIO_ZEROPAGE")?;
        Ok(())
    }
}

/// Checks whether a thread of this process is in an uninterruptible sleep.
fn is_uninterruptible(thread: Pid) -> anyhow::Result<bool> {
    let stat = fs::read_to_string(format!("/proc/self/task/{thread}/stat"))?;
    // The state follows the name, which is in parentheses.
    let state = stat.rsplit(") ").next().context("no state")?;
    Ok(state.starts_with('D'))
}

/// Describes memory as an area.
fn description(memory: &Mapping) -> AreaReg {
    AreaReg {
        addr: memory.address() as u64,
        len: memory.len() as u64,
        ..Default::default()
    }
}

/// Checks that adding an area does not wait for another one whose pages are slow to
/// come.
///
/// In C, it waits, and the slow area gets the lower number.
fn slow_area_does_not_delay_another() -> TestResult {
    let before = Resources::now()?;
    let (consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    let withheld = Withheld::new(2)?;
    let more = memory(3)?;
    let waits = zcrx_implementation() == Implementation::C;
    let (main, served, added) = (gettid(), AtomicBool::new(false), AtomicBool::new(false));

    thread::scope(|scope| -> anyhow::Result<()> {
        // Another ring of the same queue adds memory whose pages are missing.
        let other = scope.spawn(|| -> anyhow::Result<AreaReg> {
            let importer = import(&file)?;
            let mut slow = description(&withheld.memory);
            expect_result("adding slowly", add(&importer, &mut slow), 0)?;
            Ok(slow)
        });
        withheld.wait()?;
        let server = scope.spawn(|| -> anyhow::Result<()> {
            // This waits until the main thread either has added its area or waits as
            // well.
            while !added.load(Ordering::Acquire) && !is_uninterruptible(main)? {
                thread::sleep(Duration::from_millis(5));
            }
            served.store(true, Ordering::Release);
            withheld.serve()
        });

        let mut quick = description(&more);
        let got = add(&consumer, &mut quick);
        let waited = served.load(Ordering::Acquire);
        added.store(true, Ordering::Release);
        expect_result("adding meanwhile", got, 0)?;
        expect_eq("whether it waited", waited, waits)?;
        server.join().ok().context("the server panicked")??;
        let slow = other.join().ok().context("the other ring panicked")??;

        let tokens = match waits {
            true => (1, 2),
            false => (2, 1),
        };
        let got = (slow.rq_area_token, quick.rq_area_token);
        expect_eq(
            "tokens",
            got,
            (tokens.0 << AREA_SHIFT, tokens.1 << AREA_SHIFT),
        )
    })?;
    drop(file);

    // All areas can be received into.
    let mut consumer = consumer;
    let count = PAGES + (withheld.memory.len() + more.len()) / PAGE_SIZE;
    let taken = consumer.take_some(count)?;
    for taken in &taken {
        if taken.offset >> AREA_SHIFT == 0 {
            taken.check(&[&area])?;
        }
    }
    let firsts = taken.iter().filter(|taken| taken.offset < offset(PAGES));
    expect_eq("buffers in the first area", firsts.count(), PAGES)?;
    consumer.expect_free("more", &[])?;
    drop((consumer, area, withheld, more));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that the number of an area that fails while another is added stays unused,
/// and counts towards the limit.
///
/// In C, the other area waits and gets the number.
fn failed_area_keeps_its_number_unused() -> TestResult {
    const MAX_AREAS: u64 = 1024;
    let before = Resources::now()?;
    let (mut consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    let withheld = Withheld::new(2)?;
    // The kernel writes to this page when nothing else can fail.
    let page = Withheld::with(1, PROTECTED)?;
    let failing = description(&withheld.memory);
    page.memory.write(0, failing);
    let (more, third) = (memory(3)?, memory(1)?);
    let mut quick = description(&more);
    let (main, held) = (gettid(), Resources::now()?);

    let got = thread::scope(|scope| -> anyhow::Result<i32> {
        let first = scope.spawn(|| -> anyhow::Result<i32> {
            let importer = import(&file)?;
            Ok(add_at(&importer, page.memory.address() as u64))
        });
        withheld.wait()?;
        match zcrx_implementation() {
            // In C, the second waits until the first, which has a number already, has
            // failed.
            Implementation::C => {
                let denier = scope.spawn(|| -> anyhow::Result<()> {
                    while !is_uninterruptible(main)? {
                        thread::sleep(Duration::from_millis(5));
                    }
                    withheld.deny(libc::PROT_NONE)
                });
                expect_result("adding meanwhile", add(&consumer, &mut quick), 0)?;
                denier.join().ok().context("the denier panicked")??;
            }
            // In Rust, the first has a number once it waits to write its description.
            Implementation::Rust => {
                page.protect()?;
                withheld.serve()?;
                page.wait()?;
                expect_result("adding meanwhile", add(&consumer, &mut quick), 0)?;
                page.deny(libc::PROT_READ)?;
            }
        }
        first.join().ok().context("the first panicked")?
    })?;
    expect_result("the first", got, -libc::EFAULT)?;
    let (mine, written) = match zcrx_implementation() {
        Implementation::C => (1, 1),
        Implementation::Rust => (2, 0),
    };
    let want = AreaReg {
        rq_area_token: written << AREA_SHIFT,
        ..failing
    };
    expect_eq("its description", page.memory.read::<AreaReg>(0), want)?;
    expect_eq("the second", quick.rq_area_token, mine << AREA_SHIFT)?;
    held.with_pages(3).wait("failing")?;
    drop(file);

    // The next area gets the next number, and all but the failed one are areas.
    let mut next = description(&third);
    expect_result("the next", add(&consumer, &mut next), 0)?;
    expect_eq("the next", next.rq_area_token, (mine + 1) << AREA_SHIFT)?;
    let mut free: Vec<u64> = (0..PAGES).map(offset).collect();
    free.extend((0..3).map(|index| quick.rq_area_token + offset(index)));
    free.push(next.rq_area_token);
    consumer.expect_free("buffers of three areas", &free)?;
    if mine == 2 {
        consumer.push_offsets(&[1 << AREA_SHIFT]);
        consumer.flush_to(1)?;
        consumer.expect_free("buffers of the failed area", &[])?;
    }
    // A number that stays unused counts towards the limit.
    for number in mine + 2..MAX_AREAS {
        let mut last = description(&third);
        expect_result("another", add(&consumer, &mut last), 0)?;
        expect_eq("another", last.rq_area_token, number << AREA_SHIFT)?;
    }
    let got = add(&consumer, &mut description(&third));
    expect_result("one too many", got, -libc::EINVAL)?;
    drop((consumer, area, withheld, page, more, third));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Unplugs the device while the kernel waits for memory in `act`. `act` ends after
/// that, or in C, before. Returns the result of `act`.
fn unplugged<R: Send>(withheld: &Withheld, act: impl FnOnce() -> R + Send) -> anyhow::Result<R> {
    meanwhile(withheld, act, || nic::unplug(PORT))
}

/// Changes the device while the kernel waits for memory in `act`. `act` ends after
/// that, or in C, before. Returns the result of `act`.
pub(super) fn meanwhile<R: Send>(
    withheld: &Withheld,
    act: impl FnOnce() -> R + Send,
    change: impl FnOnce() -> anyhow::Result<()> + Send,
) -> anyhow::Result<R> {
    let gone = AtomicBool::new(false);
    thread::scope(|scope| {
        let acting = scope.spawn(act);
        withheld.wait()?;
        let unplugging = scope.spawn(|| {
            let changed = change();
            gone.store(true, Ordering::Release);
            changed
        });
        match zcrx_implementation() {
            Implementation::C => {
                thread::sleep(Duration::from_secs(1));
                ensure!(!gone.load(Ordering::Acquire), "C did not wait");
            }
            // The runner ends a test that waits for ever.
            Implementation::Rust => {
                while !gone.load(Ordering::Acquire) {
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
        withheld.serve()?;
        unplugging.join().ok().context("unplugging panicked")??;
        acting.join().ok().context("the ring panicked")
    })
}

/// Checks that a device is unplugged while memory for its queue is being pinned, which
/// then fails with ENODEV, and for a further area with EFAULT.
///
/// In C, unplugging waits, and both succeed.
fn device_can_go_while_memory_is_withheld() -> TestResult {
    let in_c = zcrx_implementation() == Implementation::C;
    // A further area of a queue.
    let nic = Nic::new()?;
    let withheld = Withheld::new(4)?;
    let (got, written, pinned) = unplugged(&withheld, || {
        let ring = WideRing::new(8)?;
        let ifq = nic.ifq(&ring, ENTRIES, PAGES)?;
        let (got, written) = add_area(&ring, &ifq, &withheld.memory);
        anyhow::Ok((got, written, pinned()?))
    })??;
    expect_result("adding", got, if in_c { 0 } else { -libc::EFAULT })?;
    // The token that was written before is taken back.
    let want = AreaReg {
        rq_area_token: u64::from(in_c) << AREA_SHIFT,
        ..description(&withheld.memory)
    };
    expect_eq("its description", written, want)?;
    let all = if in_c { PAGES + 4 } else { PAGES };
    expect_eq("pinned", pinned, all)?;
    nic::wait_drained()?;
    nic::wait_pinned(0)?;
    drop(nic);

    // The first area of a queue.
    let nic = Nic::new()?;
    let withheld = Withheld::new(4)?;
    let got = unplugged(&withheld, || {
        let ring = WideRing::new(8)?;
        anyhow::Ok(
            nic.registration(ENTRIES, &withheld.memory)
                .register(ring.fd()),
        )
    })??;
    expect_result("registering", got, if in_c { 0 } else { -libc::ENODEV })?;
    nic::wait_drained()?;
    nic::wait_pinned(0)?;
    drop(nic);
    Nic::new()?;
    Ok(Outcome::Passed)
}
