// SPDX-License-Identifier: GPL-2.0
//! D11: interface queues while memory runs out and user memory is unreadable:
//! registering them, and adding areas. Sharing them is in `zcrx_fault_sharing`,
//! publishing them in `zcrx_fault_publish`.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::fault_points::{
    FailNth, Outcomes, Points, Scenario, exhaust, prepare, sweep, without_pages,
};
use super::zcrx_areas::limit_pages;
use super::zcrx_registration::map_error;
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, offset};
use crate::kernel::{Implementation, expect_eq, expect_result, limit, zcrx_implementation};
use crate::register::PAGE_SIZE;
use crate::sandbox::{self, pins};
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{
    AREA_SHIFT, AreaReg, Ctrl, EventDesc, IORING_MEM_REGION_TYPE_USER, Ifq, IfqReg, Offsets, RQES,
    RefillQueue, Registration, TAIL, ZCRX_CTRL_ADD_AREA, ZCRX_CTRL_FLUSH_RQ, ZCRX_EVENT_ALLOC_FAIL,
    ZCRX_EVENT_DESC_FLAG_STATS, control, map_offset, memory, transfer,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::fault" {
        FI10 registering_fails_at_each_allocation (120 s);
        FI11 adding_an_area_fails_at_each_allocation (120 s);
        FI12 memory_with_a_hole_is_unpinned;
        FI15 registering_fails_at_each_user_copy (30 s);
    }
};

pub(super) const ENTRIES: u32 = 64;
pub(super) const PAGES: usize = 8;
/// The region has entries, statistics, and unused pages.
const REGION_PAGES: usize = 3;
/// The offset of the statistics in the region.
const STATS: usize = RQES + 16 * ENTRIES as usize;

/// Checks that a ring has no queue, which could be controlled or mapped.
pub(super) fn expect_no_queue(ring: &WideRing) -> anyhow::Result<()> {
    let mut ctrl = Ctrl {
        op: ZCRX_CTRL_FLUSH_RQ,
        ..Default::default()
    };
    expect_result("no queue", control(ring.fd(), &mut ctrl), -libc::ENXIO)?;
    let error = map_error(ring, 0, map_offset(0), PAGE_SIZE);
    expect_eq("mapping no queue", error, Some(libc::EINVAL))
}

/// Counts the structures that were written back, that of the queue and that of the
/// region, in this order. The first area's is the same before and after. Checks that
/// nothing else has changed, apart from the pointers, which the kernel does not write.
fn written(now: &Registration, before: &Registration) -> anyhow::Result<usize> {
    let before_reg = IfqReg {
        area_ptr: now.reg.area_ptr,
        region_ptr: now.reg.region_ptr,
        event_desc: now.reg.event_desc,
        ..before.reg
    };
    expect_eq("the area's description", now.area, before.area)?;
    expect_eq("the events' description", now.event, before.event)?;
    let reg = IfqReg {
        offsets: Offsets {
            tail: TAIL as u32,
            rqes: RQES as u32,
            ..Default::default()
        },
        rx_buf_len: PAGE_SIZE as u32,
        ..before_reg
    };
    let mut region = before.region;
    if region.user_addr == 0 {
        region.mmap_offset = map_offset(0) as u64;
    }
    if (now.reg, now.region) == (before_reg, before.region) {
        return Ok(0);
    }
    expect_eq("the queue's description", now.reg, reg)?;
    if now.region == before.region {
        return Ok(1);
    }
    expect_eq("the region's description", now.region, region)?;
    Ok(2)
}

/// Registering the first queue of a ring, with the refill queue in user memory if
/// `OWN`. The limit of locked memory is exactly what this takes.
struct Register<const OWN: bool> {
    begin: Resources,
    ring: Option<WideRing>,
    area: Option<Mapping>,
    own: Option<Mapping>,
    offered: Registration,
    registration: Registration,
    got: i32,
    held: Resources,
}

impl<const OWN: bool> Register<OWN> {
    const REGION: usize = if OWN { REGION_PAGES } else { 1 };
    const LOCKED: usize = Self::REGION + PAGES;

    fn offer(area: &Mapping, own: &Mapping) -> Registration {
        let mut registration = Registration::new(ENTRIES, area);
        if OWN {
            registration.region.flags = IORING_MEM_REGION_TYPE_USER;
            registration.region.user_addr = own.address() as u64;
            registration.region.size = own.len() as u64;
            registration.with_event = true;
            registration.event = EventDesc {
                // Without a device, this event never occurs.
                type_mask: 1 << ZCRX_EVENT_ALLOC_FAIL,
                flags: ZCRX_EVENT_DESC_FLAG_STATS,
                stats_offset: STATS as u64,
                ..Default::default()
            };
        }
        registration
    }

    fn fd(&self) -> RawFd {
        self.ring.as_ref().map_or(-1, WideRing::fd)
    }

    /// Checks that only the shared part of the user's memory may have been zeroed:
    /// either all of that part, as it must be if `zeroed`, or nothing.
    fn expect_own(&self, zeroed: bool) -> anyhow::Result<()> {
        let own = self.own.as_ref().context("no memory")?;
        let zeroed = zeroed || own.read::<u64>(0) == 0;
        for at in (0..own.len()).step_by(8) {
            let shared = OWN && (at < RQES || (STATS..STATS + 16).contains(&at));
            let want = if shared && zeroed { 0 } else { u64::MAX };
            expect_eq(&format!("8 bytes at {at}"), own.read::<u64>(at), want)?;
        }
        Ok(())
    }

    /// Checks that a queue of the same size can be registered once nothing is charged
    /// to the user.
    fn again(&self) -> anyhow::Result<()> {
        let (area, own) = (memory(PAGES)?, memory(REGION_PAGES)?);
        let start = Instant::now();
        loop {
            // Rings take locked memory, too, so that making one can fail until the old
            // one is taken down.
            if let Ok(ring) = WideRing::new(8) {
                let got = Self::offer(&area, &own).register(ring.fd());
                if got == 0 {
                    return Ok(());
                }
                expect_result("the same again", got, -libc::ENOMEM)?;
            }
            ensure!(start.elapsed() < limit(3), "pages stay charged");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl<const OWN: bool> Scenario for Register<OWN> {
    fn setup() -> anyhow::Result<Self> {
        sandbox::be_counted_alone()?;
        limit_pages(Self::LOCKED)?;
        let begin = Resources::now()?;
        let ring = WideRing::new(8)?;
        let (area, own) = (memory(PAGES)?, memory(REGION_PAGES)?);
        for at in (0..own.len()).step_by(8) {
            own.write(at, u64::MAX);
        }
        Ok(Register {
            begin,
            ring: Some(ring),
            offered: Self::offer(&area, &own),
            registration: Self::offer(&area, &own),
            area: Some(area),
            own: Some(own),
            got: 0,
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let (Some(area), Some(own)) = (&self.area, &self.own) else {
            return -libc::EINVAL;
        };
        self.registration = Self::offer(area, own);
        self.got = self.registration.register(self.fd());
        self.got
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        expect_no_queue(self.ring.as_ref().context("no ring")?)?;
        self.held.expect("failing")?;
        let written = written(&self.registration, &self.offered)?;
        // FI15 checks which structures are written before each failing copy.
        ensure!(
            written == 0 || self.got == -libc::EFAULT,
            "{written} descriptions were written before memory was short"
        );
        self.expect_own(false)
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let written = written(&self.registration, &self.offered)?;
        // The structure of a region in user memory is the same before and after.
        expect_eq("descriptions written", written, if OWN { 1 } else { 2 })?;
        self.expect_own(OWN)?;
        self.held.with_pages(PAGES).expect("registering")?;
        // The memory is charged in full: there is no room for another page.
        let more = memory(1)?;
        let got = Registration::new(1, &more).register(self.fd());
        expect_result("one more", got, -libc::ENOMEM)?;
        self.held.with_pages(PAGES).expect("one more")?;

        let mut ring = self.ring.take().context("no ring")?;
        let own = self.own.take().context("no memory")?;
        let refill = if OWN {
            RefillQueue {
                id: 0,
                entries: ENTRIES,
                memory: own,
            }
        } else {
            RefillQueue::map(ring.fd(), 0, ENTRIES)?
        };
        let ifq = Ifq {
            area: self.area.take().context("no area")?,
            token: 0,
            buffer: PAGE_SIZE,
            refill,
        };
        transfer(&mut ring, &ifq, 3 * PAGE_SIZE + 1)?;
        drop((ifq, ring));
        self.begin.wait("closing")?;
        self.again()
    }
}

/// Returns the token of the area with the given number.
fn token(area: usize) -> u64 {
    (area as u64) << AREA_SHIFT
}

/// Adding one area more than fit into the first part of Rust's table of areas. The
/// limit of locked memory is exactly what this takes.
struct AddArea {
    begin: Resources,
    consumer: Option<Consumer>,
    /// The memory of the earlier areas, a page each.
    first: Mapping,
    second: Mapping,
    description: AreaReg,
    got: i32,
    held: Resources,
}

impl AddArea {
    const EARLIER: usize = 32;
    const LOCKED: usize = 1 + Self::EARLIER + PAGES;

    fn offer(area: &Mapping) -> AreaReg {
        AreaReg {
            addr: area.address() as u64,
            len: area.len() as u64,
            ..Default::default()
        }
    }
}

/// Adds an area to a queue. Returns the result.
fn add(consumer: &Consumer, area: &mut AreaReg) -> i32 {
    let mut ctrl = Ctrl {
        zcrx_id: consumer.id,
        op: ZCRX_CTRL_ADD_AREA,
        ..Default::default()
    };
    ctrl.union[0] = &raw mut *area as u64;
    control(consumer.ring.fd(), &mut ctrl)
}

/// Returns the description after adding it has failed. C has written the token by then,
/// unless writing it is what failed.
fn after_failure(offered: AreaReg, number: usize, copied: bool) -> AreaReg {
    let written = copied && zcrx_implementation() == Implementation::C;
    AreaReg {
        rq_area_token: if written { token(number) } else { 0 },
        ..offered
    }
}

impl Scenario for AddArea {
    fn setup() -> anyhow::Result<Self> {
        sandbox::be_counted_alone()?;
        limit_pages(Self::LOCKED)?;
        let begin = Resources::now()?;
        let first = memory(Self::EARLIER)?;
        let nth = |number: usize| AreaReg {
            addr: first.address() as u64 + offset(number),
            len: PAGE_SIZE as u64,
            ..Default::default()
        };
        let mut registration = Registration::new(ENTRIES, &first);
        registration.area = nth(0);
        let consumer = Consumer::register(registration)?;
        for number in 1..Self::EARLIER {
            let got = add(&consumer, &mut nth(number));
            expect_result("adding earlier ones", got, 0)?;
        }
        Ok(AddArea {
            begin,
            consumer: Some(consumer),
            first,
            second: memory(PAGES)?,
            description: AreaReg::default(),
            got: 0,
            held: Resources::now()?,
        })
    }
    fn act(&mut self) -> i32 {
        let Some(consumer) = &self.consumer else {
            return -libc::EINVAL;
        };
        self.description = Self::offer(&self.second);
        self.got = add(consumer, &mut self.description);
        self.got
    }
    fn unchanged(&mut self) -> anyhow::Result<()> {
        self.held.expect("failing")?;
        let offered = Self::offer(&self.second);
        let copied = self.got == -libc::ENOMEM;
        let want = after_failure(offered, Self::EARLIER, copied);
        expect_eq("description", self.description, want)?;
        // The queue still receives into the other areas.
        let consumer = self.consumer.as_mut().context("no queue")?;
        let taken = consumer.take()?;
        taken.check(&[&self.first])?;
        consumer.push_offsets(&[taken.offset]);
        consumer.flush()
    }
    fn done(&mut self) -> anyhow::Result<()> {
        let offered = Self::offer(&self.second);
        let want = AreaReg {
            rq_area_token: token(Self::EARLIER),
            ..offered
        };
        expect_eq("description", self.description, want)?;
        self.held.with_pages(PAGES).expect("adding")?;
        let mut consumer = self.consumer.take().context("no queue")?;
        // The memory is charged in full: there is no room for another page.
        let more = memory(1)?;
        let got = add(&consumer, &mut Self::offer(&more));
        expect_result("one more", got, -libc::ENOMEM)?;
        self.held.with_pages(PAGES).expect("one more")?;

        let mut all: Vec<u64> = (0..Self::EARLIER).map(token).collect();
        all.extend((0..PAGES).map(|index| token(Self::EARLIER) + offset(index)));
        for taken in consumer.expect_free("of all areas", &all)? {
            let byte: u8 = match (taken.offset >> AREA_SHIFT) as usize {
                Self::EARLIER => {
                    let at = taken.offset - token(Self::EARLIER);
                    self.second.read(at as usize)
                }
                number => self.first.read(number * PAGE_SIZE),
            };
            expect_eq("a byte in its area", byte, taken.byte)?;
        }
        drop(consumer);
        self.begin.wait("closing")
    }
}

/// Waits until the number of pins is `before` again, as rings are taken down after
/// their processes.
fn expect_pins(before: i64, what: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    while pins()? != before && start.elapsed() < limit(3) {
        std::thread::sleep(Duration::from_millis(20));
    }
    expect_eq(&format!("pins after {what}"), pins()?, before)
}

/// Returns the number for the implementation that runs.
pub(super) fn by_implementation(c: u32, rust: u32) -> u32 {
    match zcrx_implementation() {
        Implementation::C => c,
        Implementation::Rust => rust,
    }
}

/// Sweeps the fault points of a scenario, of which there must be at least `allocations`
/// allocations that are not retried and exactly `copies` user copies, if that number is
/// certain. Then makes memory run out for good, which also fails the allocations that
/// are retried. Returns the outcomes of single failures, and the number of points at
/// which memory had run out.
pub(super) fn sweep_and_exhaust<S: Scenario>(
    what: &str,
    allocations: u32,
    copies: Option<u32>,
) -> anyhow::Result<(Outcomes, u32)> {
    let before = pins()?;
    let met: Outcomes = sweep::<S>(what)?;
    ensure!(
        met.no_memory >= allocations,
        "too few allocations failed: {met:?}"
    );
    if let Some(copies) = copies {
        expect_eq("user copies that failed", met.fault, copies)?;
    }
    expect_pins(before, "single failures")?;
    let refused = exhaust::<S>(what)?;
    // Two allocations that are smaller than a step may count as one point.
    ensure!(
        refused >= allocations.div_ceil(2).max(1),
        "refused at {refused} points only"
    );
    expect_pins(before, "the end of memory")?;
    Ok((met, refused))
}

/// Checks that registering a queue, with a region of the kernel or of the user, fails
/// at each allocation and user copy without effect.
///
/// In C, there are more allocations.
fn registering_fails_at_each_allocation() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    // The kernel reads the queue, the region and the area, and writes the same back.
    sweep_and_exhaust::<Register<false>>("a queue", by_implementation(9, 5), Some(6))?;
    // Mapping pages that are not contiguous takes objects that the kernel may have
    // cached, so the number of points varies. FI15 counts the copies.
    sweep_and_exhaust::<Register<true>>("a queue in own memory", by_implementation(9, 5), None)?;
    without_pages::<Register<false>>("a queue")?;
    Ok(Outcome::Passed)
}

/// Checks that adding an area fails at each allocation and user copy without effect.
///
/// In C, there are more allocations, the description is written once, and a failure
/// leaves the token in it.
fn adding_an_area_fails_at_each_allocation() -> TestResult {
    if let Some(skipped) = prepare(Points::All)? {
        return Ok(skipped);
    }
    // The kernel reads the operation and the description, and writes the description,
    // in Rust twice.
    sweep_and_exhaust::<AddArea>(
        "one more area",
        by_implementation(9, 5),
        Some(by_implementation(3, 4)),
    )?;
    Ok(Outcome::Passed)
}

/// Checks that an area, region or further area with a page that is read-only gives
/// EFAULT, and all its pages are unpinned unchanged.
///
/// In C, a failed further area leaves its token in the description.
fn memory_with_a_hole_is_unpinned() -> TestResult {
    let ring = WideRing::new(8)?;
    let unpinned = pins()?;
    let (mut consumer, area) = Consumer::new(ENTRIES, 1)?;
    let (held, pinned) = (Resources::now()?, pins()?);
    expect_eq("pins of an area", pinned, unpinned + 1)?;
    const HOLED: usize = 5;
    for hole in 0..HOLED {
        let holed = memory(HOLED)?;
        for page in 0..HOLED {
            holed.write(page * PAGE_SIZE, page as u8 + 1);
        }
        let at = holed.address().wrapping_add(hole * PAGE_SIZE);
        // SAFETY: the mapping is this function's, and nothing writes to the page.
        let got = unsafe { libc::mprotect(at.cast(), PAGE_SIZE, libc::PROT_READ) };
        ensure!(got == 0, "mprotect: {}", std::io::Error::last_os_error());
        let unchanged = |what: &str| -> anyhow::Result<()> {
            held.expect(what)?;
            expect_eq(&format!("pins after {what}"), pins()?, pinned)?;
            for page in 0..HOLED {
                let byte: u8 = holed.read(page * PAGE_SIZE);
                expect_eq("a byte of the memory", byte, page as u8 + 1)?;
            }
            Ok(())
        };

        let mut registration = Registration::new(ENTRIES, &holed);
        let offered = registration.area;
        let got = registration.register(ring.fd());
        expect_result("an area", got, -libc::EFAULT)?;
        expect_eq("description", registration.area, offered)?;
        expect_no_queue(&ring)?;
        unchanged("an area")?;

        let mut registration = Registration::new(ENTRIES, &area);
        registration.region.flags = IORING_MEM_REGION_TYPE_USER;
        registration.region.user_addr = holed.address() as u64;
        registration.region.size = holed.len() as u64;
        let offered = registration.region;
        let got = registration.register(ring.fd());
        expect_result("a region", got, -libc::EFAULT)?;
        expect_eq("description", registration.region, offered)?;
        expect_no_queue(&ring)?;
        unchanged("a region")?;

        let offered = AddArea::offer(&holed);
        let mut description = offered;
        let got = add(&consumer, &mut description);
        expect_result("one more area", got, -libc::EFAULT)?;
        let want = after_failure(offered, 1, true);
        expect_eq("description", description, want)?;
        unchanged("one more area")?;
    }
    consumer.expect_free("buffers of the first area", &[0])?;
    Ok(Outcome::Passed)
}

/// Checks that each of the seven user copies of a registration gives EFAULT when it
/// fails, and leaves no queue.
fn registering_fails_at_each_user_copy() -> TestResult {
    if let Some(skipped) = prepare(Points::UserCopies)? {
        return Ok(skipped);
    }
    let fail = FailNth::open()?;
    // The kernel reads the queue, the region, the area and the events, and writes the
    // queue, the region and the area.
    const COPIES: usize = 7;
    let offer = |ring: &WideRing, area: &Mapping, copy| {
        let mut registration = Registration::new(ENTRIES, area);
        registration.with_event = true;
        registration.event.type_mask = 1 << ZCRX_EVENT_ALLOC_FAIL;
        let mut offered = Registration::new(ENTRIES, area);
        offered.event = registration.event;
        let (ret, hit) = fail.during(copy, || registration.register(ring.fd()))?;
        anyhow::Ok((ret, hit, written(&registration, &offered)?))
    };
    for copy in 1..=COPIES {
        let what = format!("copy {copy}");
        let begin = Resources::now()?;
        let (mut ring, area) = (WideRing::new(8)?, memory(PAGES)?);
        let held = Resources::now()?;
        let before = copy.saturating_sub(COPIES - 2);
        let got = offer(&ring, &area, copy)?;
        expect_eq(&what, got, (-libc::EFAULT, true, before))?;
        expect_no_queue(&ring)?;
        held.expect(&what)?;

        // There are no more user copies than these.
        let got = offer(&ring, &area, COPIES + 1)?;
        expect_eq("result, failure, written", got, (0, false, 2))?;
        held.with_pages(PAGES).expect("registering")?;
        let refill = RefillQueue::map(ring.fd(), 0, ENTRIES)?;
        let ifq = Ifq {
            area,
            token: 0,
            buffer: PAGE_SIZE,
            refill,
        };
        transfer(&mut ring, &ifq, 2 * PAGE_SIZE)?;
        drop((ifq, ring));
        begin.wait("closing")?;
    }
    let met = sweep::<Register<true>>("user copies, own memory")?;
    let got = [met.fault, met.no_memory, met.absorbed];
    expect_eq("EFAULT, ENOMEM, absorbed", got, [COPIES as u32, 0, 0])?;
    Ok(Outcome::Passed)
}
