// SPDX-License-Identifier: GPL-2.0
//! D0: checks what the suite depends on: that a killed test leaves nothing behind, and
//! that the kernel reports tasks that hang.

use std::fs;
use std::io::{PipeReader, PipeWriter, Write};
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, ensure};

use super::runner::Runner;
use super::zcrx_waiting::Withheld;
use super::{Outcome, Test, TestResult, seed, tests};
use crate::kernel::{announce_report, expect_eq};
use crate::ktap::Verdict;
use crate::nic::{self, PEER, PORT, wait_until};
use crate::register::PAGE_SIZE;
use crate::sandbox::{self, Sysctl, pins};
use crate::wide::WideRing;
use crate::zcrx::Ifq;

pub const TESTS: &[Test] = tests! {
    "harness::runner" {
        BO02 killed_test_leaves_nothing_behind;
    }
    "harness::kernel" {
        BO03 watchdogs_are_on;
        BO04 hung_task_is_reported (20 s);
    }
};

/// A test that only another test runs.
pub const HIDDEN: &[Test] = tests! {
    "harness::runner" {
        BO02hangs never_ends (1 s);
    }
};

/// The file that [`never_ends`] creates when it has changed everything.
const READY: &str = "/tmp/hangs";
const HARDEN: &str = "net/core/bpf_jit_harden";
const FAILSLAB: &str = "/sys/kernel/debug/failslab/ignore-gfp-wait";
const PAGES: usize = 4;

/// Changes settings of each kind, pins memory, starts a child, and never ends.
fn never_ends() -> TestResult {
    let _harden = Sysctl::set(HARDEN, "2")?;
    nic::set(PORT, "retry", 7)?;
    nic::unplug(PEER)?;
    if Path::new(FAILSLAB).exists() {
        fs::write(FAILSLAB, "N").context(FAILSLAB)?;
    }
    let ring = WideRing::new(8)?;
    let _ifq = Ifq::new(ring.fd(), 64, PAGES)?;
    expect_eq("pins", pins()?, PAGES as i64)?;
    sandbox::spawn(|| wait_for_ever(&ring))?;
    fs::write(READY, "")?;
    wait_for_ever(&ring)?;
    Ok(Outcome::Passed)
}

fn wait_for_ever(_ring: &WideRing) -> anyhow::Result<()> {
    loop {
        nix::unistd::pause();
    }
}

/// Reads the settings that [`never_ends`] changes.
fn settings() -> anyhow::Result<Vec<String>> {
    let knobs = "/sys/kernel/debug/zcrx_sim";
    let mut paths = vec![
        format!("/proc/sys/{HARDEN}"),
        format!("{knobs}/{PORT}/retry"),
        format!("{knobs}/{PEER}/plugged"),
    ];
    if Path::new(FAILSLAB).exists() {
        paths.push(FAILSLAB.to_string());
    }
    let read = |path: &String| fs::read_to_string(path).with_context(|| path.clone());
    paths.iter().map(read).collect()
}

/// Checks that after a test was killed at its time limit, the runner says where it waited
/// and has restored the settings, and nothing of the test is left.
fn killed_test_leaves_nothing_behind() -> TestResult {
    let before = settings()?;
    let verdict = Runner::new()?.run(&HIDDEN[0], seed(), false)?;
    fs::remove_file(READY).context("the test was killed before it was ready")?;
    let Verdict::Failed(reason) = verdict else {
        anyhow::bail!("the verdict is {verdict:?}");
    };
    ensure!(reason.starts_with("no end after"), "{reason}");
    ensure!(reason.contains(", waits in "), "{reason}");
    ensure!(!reason.contains("leaves"), "{reason}");
    expect_eq("settings", settings()?, before)?;
    expect_eq("pins", pins()?, 0)?;
    Ok(Outcome::Passed)
}

/// Reads a number of seconds, or a switch, from a file.
fn number(path: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_string())?;
    text.trim().parse().with_context(|| path.to_string())
}

/// Checks that the kernel's watchdogs for lockups, hung tasks and workqueues are on.
fn watchdogs_are_on() -> TestResult {
    for switch in ["watchdog", "soft_watchdog"] {
        expect_eq(switch, number(&format!("/proc/sys/kernel/{switch}"))?, 1)?;
    }
    for seconds in [
        "/proc/sys/kernel/watchdog_thresh",
        "/proc/sys/kernel/hung_task_timeout_secs",
        "/sys/module/workqueue/parameters/watchdog_thresh",
    ] {
        ensure!(number(seconds)? > 0, "{seconds} is 0");
    }
    Ok(Outcome::Passed)
}

/// Checks that the kernel reports a task that waits uninterruptibly for a pipe that
/// another task has locked.
fn hung_task_is_reported() -> TestResult {
    const REPORTED: &str = "/proc/sys/kernel/hung_task_detect_count";
    let _quick = Sysctl::set("kernel/hung_task_timeout_secs", "1")?;
    let before = number(REPORTED)?;
    announce_report("blocked for more than 1 seconds")?;
    let withheld = Withheld::new(1)?;
    let (_reader, writer): (PipeReader, PipeWriter) = std::io::pipe()?;
    let mut copy = writer.try_clone()?;
    thread::scope(|scope| {
        let holding = scope.spawn(|| {
            // SAFETY: the slice is inside the mapping. Reading it blocks until the page
            // is served.
            let bytes = unsafe {
                std::slice::from_raw_parts(withheld.memory.address().cast_const(), PAGE_SIZE)
            };
            { &writer }.write_all(bytes)
        });
        withheld.wait()?;
        let hanging = scope.spawn(move || copy.write_all(&[1]));
        let reported = wait_until("a task that hangs is reported", || {
            thread::sleep(Duration::from_millis(50));
            Ok(number(REPORTED)? > before)
        });
        withheld.serve()?;
        for writing in [holding, hanging] {
            writing.join().ok().context("writing panicked")??;
        }
        reported
    })?;
    Ok(Outcome::Passed)
}
