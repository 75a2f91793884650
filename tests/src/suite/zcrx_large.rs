// SPDX-License-Identifier: GPL-2.0
//! D9: an area that is much larger than memory. Other tasks must run while it is made
//! and destroyed, and what the kernel needs for its buffers is charged, and freed.

use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::buffers::Resources;
use crate::kernel::{expect_eq, expect_result, limit};
use crate::register::PAGE_SIZE;
use crate::sandbox::{self, MemoryGroup, Sysctl, meminfo};
use crate::wide::{Mapping, WideRing};
use crate::zcrx::Registration;

pub const TESTS: &[Test] = tests! {
    "zcrx::memory" {
        BG09 large_area_lets_other_tasks_run (60 s);
        ZR37 memory_for_buffers_is_charged_and_freed (60 s);
    }
};

/// The size of the area in bytes, which makes four million buffers of a page.
const AREA: usize = 16 << 30;
/// The size in bytes of the one huge page behind the whole area.
const HUGE: usize = 2 << 20;

/// Maps one huge page over and over. Returns the mapping, and the address in it where
/// the pages begin.
fn repeated() -> anyhow::Result<(Mapping, usize)> {
    let file = memfd_create(c"huge", MFdFlags::MFD_HUGETLB | MFdFlags::MFD_HUGE_2MB)?;
    nix::unistd::ftruncate(&file, HUGE as i64)?;
    let whole = Mapping::anonymous(AREA + HUGE, libc::MAP_NORESERVE)?;
    let first = (whole.address() as usize).next_multiple_of(HUGE);
    for at in (first..first + AREA).step_by(HUGE) {
        // SAFETY: the range is in a mapping of this function, to which nothing refers.
        let got = unsafe {
            libc::mmap(
                at as *mut _,
                HUGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                file.as_raw_fd(),
                0,
            )
        };
        ensure!(
            got as usize == at,
            "mapping: {}",
            std::io::Error::last_os_error()
        );
    }
    Ok((whole, first))
}

/// Sleeps for a millisecond again and again, with real-time priority, and records each
/// time that it runs.
fn watch(stop: &AtomicBool) -> anyhow::Result<Vec<Instant>> {
    let parameters = libc::sched_param { sched_priority: 50 };
    // SAFETY: the structure is valid, and the call is for this thread.
    let got = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &parameters) };
    expect_eq("SCHED_FIFO", got, 0)?;
    let mut times = Vec::new();
    while !stop.load(Ordering::Acquire) {
        thread::sleep(Duration::from_millis(1));
        times.push(Instant::now());
    }
    Ok(times)
}

/// Checks that other tasks run on the same CPU while an area of many gigabytes is
/// registered and while it is released.
fn large_area_lets_other_tasks_run() -> TestResult {
    /// A single run may be the one at the end of a call.
    const FEW: usize = 5;
    let _pages = Sysctl::set("vm/nr_hugepages", "1")?;
    let (memory, first) = repeated()?;
    let before = Resources::now()?;
    // The watcher inherits this CPU.
    sandbox::stay_on_cpu(0)?;
    let stop = AtomicBool::new(false);
    let (times, calls) = thread::scope(|scope| -> anyhow::Result<_> {
        let watcher = scope.spawn(|| watch(&stop));
        let ring = WideRing::new(2)?;
        let mut registration = Registration::new(64, &memory);
        registration.area.addr = first as u64;
        registration.area.len = AREA as u64;
        let start = Instant::now();
        let got = registration.register(ring.fd());
        let made = Instant::now();
        drop(ring);
        let gone = Instant::now();
        stop.store(true, Ordering::Release);
        let times = watcher.join().ok().context("the watcher panicked")??;
        expect_result("registering", got, 0)?;
        Ok((times, [("made", start, made), ("gone", made, gone)]))
    })?;
    for (what, start, end) in calls {
        let during = times.iter().filter(|&&time| start < time && time < end);
        let (count, took) = (during.count(), end - start);
        println!("{NOTE}{what} in {took:?}, others ran {count} times");
        ensure!(count >= FEW, "{what} in {took:?}, others ran {count} times");
    }
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that the memory that the kernel takes for the buffers of an area is charged to
/// the memory cgroup of the process, and is freed with the ring.
fn memory_for_buffers_is_charged_and_freed() -> TestResult {
    /// The bytes that each buffer takes at least: the pointer to its page, its number in
    /// the list of free buffers, and its count.
    const EACH: u64 = 8 + 4 + 4;
    const ARRAYS: u64 = EACH * (AREA / PAGE_SIZE) as u64;
    /// Half of the smallest array.
    const SLACK: u64 = 2 * (AREA / PAGE_SIZE) as u64;
    let _pages = Sysctl::set("vm/nr_hugepages", "1")?;
    let group = MemoryGroup::new()?;
    sandbox::in_child(|| {
        group.enter()?;
        let (memory, first) = repeated()?;
        let before = Resources::now()?;
        let (charged, mapped) = (group.charged()?, meminfo("VmallocUsed:")?);
        let ring = WideRing::new(2)?;
        let mut registration = Registration::new(64, &memory);
        registration.area.addr = first as u64;
        registration.area.len = AREA as u64;
        expect_result("registering", registration.register(ring.fd()), 0)?;
        let arrays = group.charged()?.saturating_sub(charged);
        // Memory of before may have been freed meanwhile.
        ensure!(
            arrays + SLACK >= ARRAYS,
            "{arrays} bytes are charged, not {ARRAYS}"
        );

        drop(ring);
        before.wait("closing")?;
        group.falls_to(charged + SLACK, limit(10))?;
        let start = Instant::now();
        loop {
            let now = meminfo("VmallocUsed:")?;
            if now <= mapped + SLACK {
                return Ok(());
            }
            ensure!(start.elapsed() < limit(10), "vmalloc: {mapped}, then {now}");
            thread::sleep(Duration::from_millis(20));
        }
    })?;
    group.remove()?;
    Ok(Outcome::Passed)
}
