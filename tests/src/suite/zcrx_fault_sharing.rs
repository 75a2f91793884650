// SPDX-License-Identifier: GPL-2.0
//! D11: interface queues that are exported and imported while memory runs out and user
//! memory is unreadable. An export without a free descriptor is ZX06.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, ensure};

use super::fault_points::{Points, Scenario, prepare};
use super::zcrx_fault::{ENTRIES, PAGES, by_implementation, expect_no_queue, sweep_and_exhaust};
use super::zcrx_sharing::{export, export_ctrl, import_reg};
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, offset};
use crate::kernel::{expect_eq, expect_result};
use crate::wide::WideRing;
use crate::zcrx::{Ctrl, IfqReg, control, register_ifq};

pub const TESTS: &[Test] = tests! {
    "zcrx::fault" {
        FI16 exporting_fails_at_each_allocation (60 s);
        FI17 importing_survives_a_failed_allocation (60 s);
    }
};

/// Exporting a queue when the table of files must grow for it.
struct Export {
    begin: Resources,
    consumer: Option<Consumer>,
    files: Vec<File>,
    ctrl: Ctrl,
    held: Resources,
}

impl Scenario for Export {
    fn setup() -> anyhow::Result<Self> {
        const TABLE: RawFd = 64;
        let begin = Resources::now()?;
        // Only the queue keeps the area.
        let (consumer, _) = Consumer::new(ENTRIES, PAGES)?;
        let mut files = vec![File::open("/dev/null")?];
        while files
            .last()
            .is_some_and(|file| file.as_raw_fd() < TABLE - 1)
        {
            files.push(files[0].try_clone()?);
        }
        Ok(Export {
            begin,
            ctrl: export_ctrl(consumer.id),
            consumer: Some(consumer),
            files,
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let Some(consumer) = &self.consumer else {
            return -libc::EINVAL;
        };
        self.ctrl = export_ctrl(consumer.id);
        control(consumer.ring.fd(), &mut self.ctrl)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        let consumer = self.consumer.as_ref().context("no queue")?;
        expect_eq(
            "the structure afterwards",
            self.ctrl,
            export_ctrl(consumer.id),
        )?;
        self.held.expect("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        self.held.with_files(1).expect("exporting")?;
        let mut consumer = self.consumer.take().context("no queue")?;
        let fd = self.ctrl.union[0] as RawFd;
        let mut want = export_ctrl(consumer.id);
        want.union[0] = fd as u64;
        expect_eq("the structure afterwards", self.ctrl, want)?;
        ensure!(fd > 2, "the file is {fd}");
        // SAFETY: the kernel has just made the descriptor, and nothing else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let taken = consumer.take()?;
        drop(consumer);

        let ring = WideRing::new(8)?;
        let mut reg = import_reg(file.as_raw_fd());
        expect_result("importing", register_ifq(ring.fd(), &mut reg), 0)?;
        let mut importer = Consumer::attach(ring, reg.zcrx_id, ENTRIES)?;
        // Buffers that were taken stay so, because the file kept the queue.
        let free = (0..PAGES).map(offset).filter(|at| *at != taken.offset);
        importer.expect_free("free ones", &free.collect::<Vec<u64>>())?;
        drop((importer, file));
        self.files.clear();
        self.begin.wait("closing")
    }
}

/// Importing a queue of another ring.
struct Import {
    begin: Resources,
    consumer: Option<Consumer>,
    taken: u64,
    file: Option<OwnedFd>,
    ring: Option<WideRing>,
    reg: IfqReg,
    held: Resources,
}

impl Scenario for Import {
    fn setup() -> anyhow::Result<Self> {
        let begin = Resources::now()?;
        let (mut consumer, _) = Consumer::new(ENTRIES, PAGES)?;
        let file = export(&consumer)?;
        Ok(Import {
            begin,
            taken: consumer.take()?.offset,
            consumer: Some(consumer),
            reg: import_reg(file.as_raw_fd()),
            file: Some(file),
            ring: Some(WideRing::new(8)?),
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let (Some(file), Some(ring)) = (&self.file, &self.ring) else {
            return -libc::EINVAL;
        };
        self.reg = import_reg(file.as_raw_fd());
        register_ifq(ring.fd(), &mut self.reg)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        let file = self.file.as_ref().context("no file")?;
        expect_eq(
            "the structure afterwards",
            self.reg,
            import_reg(file.as_raw_fd()),
        )?;
        expect_no_queue(self.ring.as_ref().context("no ring")?)?;
        self.held.expect("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        expect_eq("id", self.reg.zcrx_id, 0)?;
        self.held.expect("importing")?;
        let mut consumer = self.consumer.take().context("no queue")?;
        let ring = self.ring.take().context("no ring")?;
        let mut importer = Consumer::attach(ring, 0, ENTRIES)?;
        // A buffer that one ring takes is not free for the other. No failure ended the
        // queue's last user, which would have taken all buffers back.
        let mut taken = vec![self.taken, importer.take()?.offset];
        taken.push(consumer.take()?.offset);
        drop((consumer, self.file.take()));
        let free = (0..PAGES).map(offset).filter(|at| !taken.contains(at));
        importer.expect_free("free ones", &free.collect::<Vec<u64>>())?;
        drop(importer);
        self.begin.wait("closing")
    }
}

/// Checks that an export fails at each allocation and user copy without effect.
///
/// In C, there are fewer allocations.
fn exporting_fails_at_each_allocation() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    sweep_and_exhaust::<Export>("an export", by_implementation(3, 5), Some(2))?;
    Ok(Outcome::Passed)
}

/// Checks that an import retries its one allocation, and fails without effect where
/// memory stays short or a user copy fails.
fn importing_survives_a_failed_allocation() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    // An import allocates only a node of the array of queues, and retries that. A
    // single failure does no harm, and without memory this is the only point.
    let (met, refused) = sweep_and_exhaust::<Import>("an import", 0, Some(2))?;
    expect_eq("imports that failed", met.no_memory, 0)?;
    ensure!(met.absorbed > 0, "no allocation failed: {met:?}");
    expect_eq("points without memory", refused, 1)?;
    Ok(Outcome::Passed)
}
