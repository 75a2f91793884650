// SPDX-License-Identifier: GPL-2.0
//! D11: interface queues while memory runs out and user memory goes away:
//! registering, adding areas, exporting, importing.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, ensure};

use super::fault_points::{Met, Points, Scenario, prepare, sweep};
use super::zcrx_sharing::{export, export_ctrl, import_reg};
use super::{Outcome, Test, TestResult, slow, test};
use crate::buffers::{Consumer, Held, offset};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::register::PAGE_SIZE;
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{
    AREA_SHIFT, AreaReg, Ctrl, Ifq, Registration, ZCRX_CTRL_ADD_AREA, ZCRX_CTRL_FLUSH_RQ, control,
    memory, register_ifq, transfer,
};

pub const TESTS: &[Test] = &[
    slow("FI10 FI11 FI14 FI15 a queue and its area", 60, fi10),
    slow("FI11 one more area", 60, fi11),
    test("FI12 an area with a hole", fi12),
    slow("FI16 an export", 60, fi16),
    slow("FI17 an import", 60, fi17),
];

const ENTRIES: u32 = 64;
const PAGES: usize = 8;

/// That a ring has no queue with this id.
fn none(ring: &WideRing, id: u32) -> anyhow::Result<()> {
    let mut ctrl = Ctrl {
        zcrx_id: id,
        op: ZCRX_CTRL_FLUSH_RQ,
        ..Default::default()
    };
    expect_result("no queue", control(ring.fd(), &mut ctrl), -libc::ENXIO)
}

/// The first queue of a ring.
struct Register {
    ring: WideRing,
    area: Option<Mapping>,
    registration: Option<Registration>,
    held: Held,
}

impl Scenario for Register {
    fn setup() -> anyhow::Result<Self> {
        Ok(Register {
            ring: WideRing::new(8)?,
            area: Some(memory(PAGES)?),
            registration: None,
            held: Held::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let Some(area) = &self.area else {
            return -libc::EINVAL;
        };
        // What was written to an earlier one does not count.
        let registration = self.registration.insert(Registration::new(ENTRIES, area));
        registration.register(self.ring.fd())
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        none(&self.ring, 0)?;
        self.held.expect("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let registration = self.registration.take().context("not registered")?;
        let area = self.area.take().context("no area")?;
        expect_eq("id", registration.reg.zcrx_id, 0)?;
        self.held.with_pages(PAGES).expect("registering")?;
        let ifq = Ifq::attach(self.ring.fd(), registration, area)?;
        transfer(&mut self.ring, &ifq, 3 * PAGE_SIZE + 1)
    }
}

/// A second area.
struct AddArea {
    consumer: Consumer,
    first: Mapping,
    second: Mapping,
    description: AreaReg,
    held: Held,
}

impl Scenario for AddArea {
    fn setup() -> anyhow::Result<Self> {
        let (consumer, first) = Consumer::new(ENTRIES, 1)?;
        Ok(AddArea {
            consumer,
            first,
            second: memory(PAGES)?,
            description: AreaReg::default(),
            held: Held::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        self.description = AreaReg {
            addr: self.second.address() as u64,
            len: self.second.len() as u64,
            ..Default::default()
        };
        let mut ctrl = Ctrl {
            zcrx_id: self.consumer.id,
            op: ZCRX_CTRL_ADD_AREA,
            ..Default::default()
        };
        ctrl.union[0] = &raw mut self.description as u64;
        control(self.consumer.ring.fd(), &mut ctrl)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        self.held.expect("failing")?;
        // No buffer but the one of the first area, which is free again then.
        self.consumer.expect_free("of the first area", &[0])?;
        self.consumer.push_offsets(&[0]);
        self.consumer.flush()
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let token = 1u64 << AREA_SHIFT;
        expect_eq("token", self.description.rq_area_token, token)?;
        self.held.with_pages(PAGES).expect("adding")?;
        let mut all: Vec<u64> = (0..PAGES).map(|index| token + offset(index)).collect();
        all.push(0);
        for taken in self.consumer.expect_free("of both areas", &all)? {
            taken.check(&[&self.first, &self.second])?;
        }
        Ok(())
    }
}

/// A file of a queue.
struct Export {
    consumer: Consumer,
    _area: Mapping,
    file: Option<OwnedFd>,
    held: Held,
}

impl Scenario for Export {
    fn setup() -> anyhow::Result<Self> {
        let (consumer, area) = Consumer::new(ENTRIES, PAGES)?;
        Ok(Export {
            consumer,
            _area: area,
            file: None,
            held: Held::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let mut ctrl = export_ctrl(self.consumer.id);
        let got = control(self.consumer.ring.fd(), &mut ctrl);
        if got == 0 {
            // SAFETY: the kernel has just made it, and nobody else has it.
            self.file = Some(unsafe { OwnedFd::from_raw_fd(ctrl.union[0] as i32) });
        }
        got
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        self.held.expect("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        self.held.with_files(1).expect("exporting")?;
        let file = self.file.take().context("no file")?;
        let ring = WideRing::new(8)?;
        let mut reg = import_reg(file.as_raw_fd());
        expect_result("importing", register_ifq(ring.fd(), &mut reg), 0)?;
        let mut importer = Consumer::attach(ring, reg.zcrx_id, ENTRIES)?;
        importer.take().map(|_| ())
    }
}

/// Another ring's queue.
struct Import {
    consumer: Consumer,
    _area: Mapping,
    file: OwnedFd,
    ring: Option<WideRing>,
    held: Held,
}

impl Scenario for Import {
    fn setup() -> anyhow::Result<Self> {
        let (consumer, area) = Consumer::new(ENTRIES, PAGES)?;
        let file = export(&consumer)?;
        Ok(Import {
            consumer,
            _area: area,
            file,
            ring: Some(WideRing::new(8)?),
            held: Held::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let mut reg = import_reg(self.file.as_raw_fd());
        let fd = self.ring.as_ref().map_or(-1, WideRing::fd);
        register_ifq(fd, &mut reg)
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        none(self.ring.as_ref().context("no ring")?, 0)?;
        self.held.expect("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        self.held.expect("importing")?;
        let ring = self.ring.take().context("no ring")?;
        let mut importer = Consumer::attach(ring, 0, ENTRIES)?;
        // What one takes is not there for the other.
        let mut offsets = Vec::new();
        for taken in [importer.take()?, self.consumer.take()?, importer.take()?] {
            offsets.push(taken.offset);
        }
        offsets.sort_unstable();
        offsets.dedup();
        expect_eq("different buffers", offsets.len(), 3)
    }
}

/// Sweeps what a scenario has of fault points: so many allocations at least, of
/// which some are tried again and then succeed, and just so many user copies.
fn swept<S: Scenario>(what: &str, allocations: u32, copies: u32) -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    let before = Held::now()?;
    let met: Met = sweep::<S>(what)?;
    ensure!(
        met.no_memory + met.absorbed >= allocations,
        "too few allocations failed: {met:?}"
    );
    expect_eq("user copies that failed", met.fault, copies)?;
    before.expect("all of them")?;
    Ok(Outcome::Passed)
}

fn fi10() -> TestResult {
    // In: the queue, the region, the area; out: the same.
    swept::<Register>("a queue and its area", 15, 6)
}

fn fi11() -> TestResult {
    // In: the operation, the description. Out: the description, in Rust twice.
    let copies = match zcrx_implementation() {
        Implementation::C => 3,
        Implementation::Rust => 4,
    };
    swept::<AddArea>("one more area", 8, copies)
}

fn fi12() -> TestResult {
    let ring = WideRing::new(8)?;
    let (mut consumer, area) = Consumer::new(ENTRIES, 1)?;
    let held = Held::now()?;
    let holed = memory(5)?;
    let hole = holed.address().wrapping_add(2 * PAGE_SIZE);
    // SAFETY: our own mapping; nobody touches the page.
    let got = unsafe { libc::munmap(hole.cast(), PAGE_SIZE) };
    ensure!(got == 0, "munmap: {}", std::io::Error::last_os_error());
    let mut description = AreaReg {
        addr: holed.address() as u64,
        len: holed.len() as u64,
        ..Default::default()
    };

    for _ in 0..10 {
        let mut registration = Registration::new(ENTRIES, &holed);
        let got = registration.register(ring.fd());
        expect_result("registering", got, -libc::EFAULT)?;
        none(&ring, 0)?;
        held.expect("registering")?;

        let mut ctrl = Ctrl {
            zcrx_id: consumer.id,
            op: ZCRX_CTRL_ADD_AREA,
            ..Default::default()
        };
        ctrl.union[0] = &raw mut description as u64;
        let got = control(consumer.ring.fd(), &mut ctrl);
        expect_result("adding", got, -libc::EFAULT)?;
        description.rq_area_token = 0;
        held.expect("adding")?;
    }
    consumer.expect_free("of the first area", &[0])?;
    drop(area);
    Ok(Outcome::Passed)
}

fn fi16() -> TestResult {
    swept::<Export>("an export", 6, 2)
}

fn fi17() -> TestResult {
    swept::<Import>("an import", 2, 2)
}
