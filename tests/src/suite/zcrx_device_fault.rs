// SPDX-License-Identifier: GPL-2.0
//! D11: queues of a network device while its driver or memory allocation fails.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use super::zcrx_device::{BUFFERS, ENTRIES, refused, works};
use super::zcrx_events::EVENT;
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{expect_eq, has_fault_injection};
use crate::nic::{Nic, QUEUE, RING};
use crate::register::PAGE_SIZE;
use crate::stream::ended;
use crate::zcrx::ZCRX_EVENT_ALLOC_FAIL;

pub const TESTS: &[Test] = tests! {
    "zcrx::device::fault" {
        FI13 queue_survives_a_failing_driver (60 s);
        FI18 lost_event_fires_again;
        FI21 reception_resumes_after_failed_allocations (30 s);
    }
};

/// Checks that a driver that cannot allocate, start or stop a queue gives its error,
/// and the queue and a bound provider go on.
fn queue_survives_a_failing_driver() -> TestResult {
    let nic = Nic::new()?;
    let failures = [
        ("fail_mem_alloc", libc::ENOMEM),
        ("fail_start", libc::EIO),
        ("fail_stop", libc::EIO),
    ];
    for (knob, errno) in failures {
        nic.set(knob, 1)?;
        refused(&nic, knob, errno, |_| {})?;
        // The queue is as it was.
        super::zcrx_device_end::plain(&nic)?;
        works(&nic)?;
    }
    // The same, while the queue is bound and another setting restarts all queues.
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.set("spared", !(1 << QUEUE) & 0xf)?;
    for (knob, errno) in failures {
        nic.set(knob, 1)?;
        let reason = std::io::Error::from_raw_os_error(errno).to_string();
        let reason = reason.split(" (os").next().context("no words")?;
        nic.ethtool_fails("-G zsim0 rx 32", reason)?;
        expect_eq(knob, nic.provided()?, Some(PAGE_SIZE as u64))?;
        nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;
        nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    }
    Ok(Outcome::Passed)
}

/// A directory of fault injection in debugfs. Its faults end when this is dropped.
pub(super) struct Faults {
    folder: &'static str,
    /// Files, and the values to write to them in the end.
    undo: Vec<(String, String)>,
}

impl Faults {
    const REQUESTS: &str = "/sys/kernel/slab/io_kiocb/failslab";
    pub(super) const FUNCTIONS: &str = "/sys/kernel/debug/fail_function";

    fn new(folder: &'static str) -> anyhow::Result<Self> {
        let faults = Faults {
            folder,
            undo: vec![(format!("{folder}/probability"), "0".to_string())],
        };
        faults.set("times", 0)?;
        faults.set("task-filter", 0)?;
        faults.set("interval", 1)?;
        faults.set("verbose", 0)?;
        faults.set("probability", 100)?;
        Ok(faults)
    }

    /// Makes allocations of requests that must not wait fail.
    fn requests() -> anyhow::Result<Self> {
        let mut faults = Self::new("/sys/kernel/debug/failslab")?;
        faults.write(Self::REQUESTS.to_string(), "1", "0")?;
        faults.write(format!("{}/cache-filter", faults.folder), "1", "0")?;
        faults.set("ignore-gfp-wait", 1)?;
        Ok(faults)
    }

    /// Makes calls of a function fail that returns 0 on failure.
    fn function(name: &str) -> anyhow::Result<Self> {
        Self::function_with(name, "0")
    }

    /// Makes calls of a function fail that returns `value` on failure.
    pub(super) fn function_with(name: &str, value: &str) -> anyhow::Result<Self> {
        let mut faults = Self::new(Self::FUNCTIONS)?;
        let folder = faults.folder;
        faults.write(format!("{folder}/inject"), name, &format!("!{name}"))?;
        fs::write(format!("{folder}/{name}/retval"), value).context("retval")?;
        Ok(faults)
    }

    fn write(&mut self, path: String, value: &str, after: &str) -> anyhow::Result<()> {
        fs::write(&path, value).with_context(|| path.clone())?;
        self.undo.push((path, after.to_string()));
        Ok(())
    }

    fn set(&self, name: &str, value: i64) -> anyhow::Result<()> {
        let path = format!("{}/{name}", self.folder);
        fs::write(&path, value.to_string()).context(path)
    }

    /// Makes the next `times` calls fail, or all of them if `times` is negative.
    pub(super) fn fail(&self, times: i64) -> anyhow::Result<()> {
        self.set("times", times)
    }

    /// Returns the number of calls that are still to fail.
    pub(super) fn left(&self) -> anyhow::Result<i64> {
        let text = fs::read_to_string(format!("{}/times", self.folder))?;
        Ok(text.trim().parse()?)
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        for (path, value) in self.undo.iter().rev() {
            let _ = fs::write(path, value);
        }
    }
}

/// Checks that an event for which memory is short counts as not fired, and the next
/// failure reports it.
fn lost_event_fires_again() -> TestResult {
    const FEW: usize = 96;
    if !has_fault_injection() || !Path::new(Faults::REQUESTS).exists() {
        return Ok(Outcome::Skipped(
            "the kernel cannot make the allocation of a request fail".to_string(),
        ));
    }
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq_with_event(&ring, ENTRIES, FEW, EVENT)?;

    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    ring.submit()?;
    let requests = Faults::requests()?;
    requests.fail(3)?;
    let mut taken = 0;
    // This takes packets until the ring cannot be filled any more.
    while requests.left()? == 3 {
        ensure!(taken < FEW, "no event occurred");
        stream.send(100)?;
        let cqe = ring.cqe()?;
        ensure!(cqe.user_data != EVENT, "an event without a request");
        stream.take(&ifq, &cqe)?;
        taken += 1;
    }
    ring.submit()?;
    let before = requests.left()?;
    if before > 0 {
        expect_eq("an event that is lost", ring.try_cqe(), None)?;
    }
    // The event counts as not fired, so the next failure reports it.
    let mut event = None;
    while event.is_none() && taken < FEW {
        stream.send_some(100)?;
        let cqe = ring.cqe()?;
        if cqe.user_data == EVENT {
            event = Some(cqe);
        } else {
            stream.take(&ifq, &cqe)?;
            taken += 1;
        }
    }
    let want = Some(ended(EVENT, ZCRX_EVENT_ALLOC_FAIL as i32));
    expect_eq("the event", event, want)?;
    expect_eq("failures left", requests.left()?, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that reception resumes after the driver got no buffers for a while.
fn reception_resumes_after_failed_allocations() -> TestResult {
    let nic = Nic::new()?;
    starved(&nic, &|times| nic.set("fail_alloc", times))?;
    if Path::new(Faults::FUNCTIONS).exists() {
        let pools = Faults::function("page_pool_alloc_netmems")?;
        starved(&nic, &|times| pools.fail(times))?;
    }
    Ok(Outcome::Passed)
}

/// Receives while allocations of buffers fail. `fail` makes the given number of the
/// next ones fail, or all if that is negative.
fn starved(nic: &Nic, fail: &dyn Fn(i64) -> anyhow::Result<()>) -> anyhow::Result<()> {
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    // First a few allocations fail, then more in a row.
    for failures in [1, 4, 16] {
        let before = nic.counts()?;
        fail(failures)?;
        let tally = nic.transfer(&mut ring, &ifq, 1 << 20)?;
        expect_eq("pages", tally.page_frags, 0)?;
        let after = nic.counts()?;
        let failed = after.alloc_fail - before.alloc_fail;
        ensure!(failed >= failures as u64, "{failed} of {failures} failed");
    }
    fail(-1)?;
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    ring.submit()?;
    // The buffers in the ring are used up, and then packets are dropped.
    let dropped = nic.counts()?.no_buffer;
    while nic.counts()?.no_buffer == dropped {
        stream.send_some(16 * PAGE_SIZE)?;
        while let Some(cqe) = ring.try_cqe() {
            ifq.return_buffer(stream.take(&ifq, &cqe)?);
        }
        ring.submit()?;
    }
    fail(0)?;
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        ifq.return_buffer(stream.take(&ifq, &cqe)?);
    }
    stream.end(&mut ring)?;
    nic.zero_copy(&mut ring, &ifq, 1 << 20)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    // This queue begins without a buffer.
    fail(8)?;
    nic.set_ring(128)?;
    nic.transfer(&mut ring, &ifq, 1 << 20)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    nic.set_ring(RING)?;
    drop((ifq, ring));
    nic.wait_released()
}
