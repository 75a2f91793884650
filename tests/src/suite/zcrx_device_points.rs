// SPDX-License-Identifier: GPL-2.0
//! D11: queues of a network device at every point where an allocation or a user copy
//! can fail. Queues without a device are in `zcrx_fault`.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;

use anyhow::{Context, ensure};

use super::fault_points::{Points, Scenario, prepare, sweep};
use super::zcrx_device_dmabuf::with_dmabuf;
use super::zcrx_device_end::add_area;
use super::zcrx_fault::{by_implementation, expect_no_queue};
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::Resources;
use crate::dmabuf;
use crate::kernel::expect_eq;
use crate::netdev;
use crate::nic::Nic;
use crate::register::PAGE_SIZE;
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{AREA_SHIFT, AreaReg, Ifq, Registration, memory};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::fault" {
        FI10device registering_fails_at_each_point (120 s);
        FI10dmabuf registering_a_dmabuf_fails_at_each_point (120 s);
        FI11device adding_an_area_fails_at_each_point (120 s);
    }
};

const ENTRIES: u32 = 256;
/// More pages than a ring of the device holds.
const PAGES: usize = 160;
/// The number of pages of the area that is added.
const MORE: usize = 16;
/// The number of bytes that are received to show that a queue works.
const SOME: usize = 6 * PAGE_SIZE;

/// The software NIC of all attempts, which are made by children of the process that
/// made it.
static NIC: OnceLock<Nic> = OnceLock::new();

fn nic() -> anyhow::Result<&'static Nic> {
    NIC.get().context("no NIC")
}

/// Checks that no queue of the device has a provider.
fn unbound() -> anyhow::Result<()> {
    expect_eq("provided", nic()?.provided()?, None)?;
    expect_eq("pools", netdev::provided_pools()?.len(), 0)
}

/// Checks that a queue receives into its own buffers.
fn works(ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<()> {
    let mut stream = nic()?.stream(1)?;
    stream.send(SOME)?;
    ring.push(stream.recv(ifq, 0))?;
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        stream.take(ifq, &cqe)?;
    }
    drop(stream);
    expect_eq("the end", ring.cqe()?.res, 0)
}

/// Registering the first queue of a ring.
///
/// All attempts have the same device, so that what a failure did to it shows when data
/// is received in the last one.
struct Bind {
    begin: Resources,
    ring: Option<WideRing>,
    area: Option<Mapping>,
    registration: Option<Registration>,
    held: Resources,
}

impl Scenario for Bind {
    fn setup() -> anyhow::Result<Self> {
        let begin = Resources::now()?;
        Ok(Bind {
            begin,
            ring: Some(roomy_ring()?),
            area: Some(memory(PAGES)?),
            registration: None,
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let (Ok(nic), Some(ring), Some(area)) = (nic(), &self.ring, &self.area) else {
            return -libc::EINVAL;
        };
        let registration = self.registration.insert(nic.registration(ENTRIES, area));
        registration.register(ring.fd())
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        expect_no_queue(self.ring.as_ref().context("no ring")?)?;
        unbound()?;
        self.held.wait("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let provided = nic()?.provided()?;
        expect_eq("provided", provided, Some(PAGE_SIZE as u64))?;
        self.held.with_pages(PAGES).wait("registering")?;
        drop((self.ring.take(), self.area.take()));
        nic()?.wait_released()?;
        self.begin.wait("closing")
    }
    fn works(&mut self) -> anyhow::Result<()> {
        let ring = self.ring.as_mut().context("no ring")?;
        let area = self.area.take().context("no area")?;
        let registration = self.registration.take().context("no registration")?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        works(ring, &ifq)
    }
}

/// Registering the first queue of a ring with a dma-buf as its area.
struct BindDmabuf {
    begin: Resources,
    ring: Option<WideRing>,
    dmabuf: Option<(OwnedFd, Mapping)>,
    held: Resources,
}

impl Scenario for BindDmabuf {
    fn setup() -> anyhow::Result<Self> {
        let begin = Resources::now()?;
        Ok(BindDmabuf {
            begin,
            ring: Some(roomy_ring()?),
            dmabuf: Some(dmabuf::new(PAGES * PAGE_SIZE)?),
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let (Ok(nic), Some(ring), Some((fd, area))) = (nic(), &self.ring, &self.dmabuf) else {
            return -libc::EINVAL;
        };
        with_dmabuf(nic, fd.as_raw_fd(), area).register(ring.fd())
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        expect_no_queue(self.ring.as_ref().context("no ring")?)?;
        unbound()?;
        self.held.wait("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let provided = nic()?.provided()?;
        expect_eq("provided", provided, Some(PAGE_SIZE as u64))?;
        // The memory of a dma-buf is not pinned.
        self.held.wait("registering")?;
        drop((self.ring.take(), self.dmabuf.take()));
        nic()?.wait_released()?;
        self.begin.wait("closing")
    }
}

/// Adding an area to a queue.
struct AddArea {
    begin: Resources,
    queue: Option<(WideRing, Ifq)>,
    area: Mapping,
    description: AreaReg,
    got: i32,
    held: Resources,
}

impl Scenario for AddArea {
    fn setup() -> anyhow::Result<Self> {
        let begin = Resources::now()?;
        let ring = roomy_ring()?;
        let ifq = nic()?.ifq(&ring, ENTRIES, PAGES)?;
        Ok(AddArea {
            begin,
            queue: Some((ring, ifq)),
            area: memory(MORE)?,
            description: AreaReg::default(),
            got: 0,
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let Some((ring, ifq)) = &self.queue else {
            return -libc::EINVAL;
        };
        (self.got, self.description) = add_area(ring, ifq, &self.area);
        self.got
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        let copied = self.got == -libc::ENOMEM;
        // C has written the token by then, unless writing it is what failed.
        let token = if copied { by_implementation(1, 0) } else { 0 };
        let want = u64::from(token) << AREA_SHIFT;
        expect_eq("the token", self.description.rq_area_token, want)?;
        self.held.expect("failing")
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let token = self.description.rq_area_token;
        expect_eq("the token", token, 1 << AREA_SHIFT)?;
        self.held.with_pages(MORE).expect("adding")?;
        drop(self.queue.take());
        nic()?.wait_released()?;
        self.begin.wait("closing")
    }
    fn works(&mut self) -> anyhow::Result<()> {
        let (ring, ifq) = self.queue.as_mut().context("no queue")?;
        works(ring, ifq)
    }
}

/// Sweeps all fault points of a scenario, and then its user copies, of which there are
/// exactly `copies`. The number of allocations is not certain, as they may find objects
/// that were freed.
fn sweep_and_exhaust<S: Scenario>(what: &str, copies: u32) -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    ensure!(NIC.set(Nic::new()?).is_ok(), "the NIC was made twice");
    let met = sweep::<S>(what)?;
    ensure!(met.no_memory > 0, "no allocation failed: {met:?}");
    prepare(Points::UserCopies)?;
    let met = sweep::<S>(&format!("user copies of {what}"))?;
    let got = [met.fault, met.no_memory, met.absorbed];
    expect_eq("EFAULT, ENOMEM, absorbed", got, [copies, 0, 0])?;
    Ok(Outcome::Passed)
}

/// Checks that registering a queue of a device fails at each allocation and user copy
/// without effect.
fn registering_fails_at_each_point() -> TestResult {
    // The kernel reads the queue, the region and the area, and writes the same back.
    sweep_and_exhaust::<Bind>("a queue of a device", 6)
}

/// Checks that registering a queue of a device whose area is a dma-buf fails at each
/// allocation and user copy without effect.
fn registering_a_dmabuf_fails_at_each_point() -> TestResult {
    sweep_and_exhaust::<BindDmabuf>("a queue of a device with a dma-buf", 6)
}

/// Checks that adding an area to a queue of a device fails at each allocation and user
/// copy without effect.
///
/// In C, the description is written once instead of twice.
fn adding_an_area_fails_at_each_point() -> TestResult {
    // The kernel reads the operation and the description, and writes the description,
    // in Rust twice.
    sweep_and_exhaust::<AddArea>("one more area of a device", by_implementation(3, 4))
}
