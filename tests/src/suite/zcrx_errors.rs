// SPDX-License-Identifier: GPL-2.0
//! D8: registrations that are wrong in more than one way, or whose error shows only
//! late: which error is returned, and what of user space's structures has been written.

use anyhow::Context;

use super::zcrx_device_end::add;
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::Resources;
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::nic::{self, Nic};
use crate::register::PAGE_SIZE;
use crate::sandbox::Sysctl;
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{
    AREA_SHIFT, AreaReg, IORING_MEM_REGION_TYPE_USER, Ifq, RQES, Registration,
    ZCRX_EVENT_DESC_FLAG_STATS, memory,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::errors" {
        ZX33 misplaced_statistics_leave_the_region_untouched;
        ZX33device area_that_cannot_be_mapped_leaves_nothing_behind (30 s);
    }
};

/// Checks that statistics that are out of place give an error and leave a region in
/// user memory as it was.
///
/// In C, the header of the region has been cleared.
fn misplaced_statistics_leave_the_region_untouched() -> TestResult {
    const ENTRIES: u32 = 64;
    let used = RQES as u64 + 16 * u64::from(ENTRIES);
    let before = Resources::now()?;
    let ring = WideRing::new(2)?;
    let (area, region) = (memory(4)?, memory(1)?);
    let held = Resources::now()?;
    let fill = |at: usize| 0x5a5a_0000_0000_0001 ^ at as u64;
    for (what, offset, error) in [
        ("not aligned", used + 4, libc::EINVAL),
        ("in the entries", used - 8, libc::ERANGE),
        ("in the header", 0, libc::ERANGE),
        ("over the end", PAGE_SIZE as u64 - 8, libc::ERANGE),
    ] {
        for at in (0..PAGE_SIZE).step_by(8) {
            region.write(at, fill(at));
        }
        let mut registration = Registration::new(ENTRIES, &area);
        registration.region.flags = IORING_MEM_REGION_TYPE_USER;
        registration.region.user_addr = region.address() as u64;
        registration.with_event = true;
        registration.event.flags = ZCRX_EVENT_DESC_FLAG_STATS;
        registration.event.stats_offset = offset;
        let described = registration.region;
        let got = registration.register(ring.fd());
        expect_result(what, got, -error)?;
        expect_eq(what, registration.region, described)?;
        held.expect(what)?;
        // C clears the header before it checks the place of the statistics.
        let in_c = zcrx_implementation() == Implementation::C;
        for at in (0..PAGE_SIZE).step_by(8) {
            let want = if in_c && at < RQES { 0 } else { fill(at) };
            let what = format!("{what}: 8 bytes at {at}");
            expect_eq(&what, region.read::<u64>(at), want)?;
        }
    }
    drop((ring, area, region));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that an area whose last buffer is incomplete gives ERANGE, one too many
/// EINVAL, which comes first, and nothing is left behind.
///
/// In C, one area too many that is also incomplete gives ERANGE, and failed attempts
/// leave their token.
fn area_that_cannot_be_mapped_leaves_nothing_behind() -> TestResult {
    const LARGE: usize = 2 * PAGE_SIZE;
    const MAX_AREAS: usize = 1024;
    let _pages = Sysctl::set("vm/nr_hugepages", "8")?;
    let nic = Nic::new()?;
    let ring = roomy_ring()?;
    let all = Mapping::anonymous(10 << 20, libc::MAP_HUGETLB).context("huge pages")?;
    let start = all.address() as u64;
    // The areas do not overlap, as no memory may be mapped for the device twice.
    let nth = |number: usize| AreaReg {
        addr: start + (number * LARGE) as u64,
        len: LARGE as u64,
        ..Default::default()
    };
    let token = |number: usize| (number as u64) << AREA_SHIFT;
    let mut registration = nic.registration(64, &all);
    registration.area = nth(0);
    registration.reg.rx_buf_len = LARGE as u32;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    let ifq = Ifq::attach(ring.fd(), registration, all)?;
    let in_c = zcrx_implementation() == Implementation::C;

    // An area whose last buffer would be incomplete, which mapping finds out.
    let odd = AreaReg {
        len: (LARGE + PAGE_SIZE) as u64,
        ..nth(MAX_AREAS)
    };
    let fails = |what: &str, area: AreaReg, error: i32, number: usize| -> anyhow::Result<()> {
        let mut description = area;
        expect_result(what, add(&ring, &ifq, &mut description), -error)?;
        // In C, the token that was written stays.
        let want = AreaReg {
            rq_area_token: if in_c { token(number) } else { 0 },
            ..area
        };
        expect_eq(what, description, want)
    };
    for number in 1..MAX_AREAS {
        if number <= 2 {
            fails("an odd area", odd, libc::ERANGE, number)?;
        }
        let mut description = nth(number);
        let what = format!("area {number}");
        expect_result(&what, add(&ring, &ifq, &mut description), 0)?;
        expect_eq(&what, description.rq_area_token, token(number))?;
    }
    fails("one more", nth(MAX_AREAS), libc::EINVAL, MAX_AREAS)?;
    // C maps the area before it checks the number of areas.
    let error = if in_c { libc::ERANGE } else { libc::EINVAL };
    fails("an odd one more", odd, error, MAX_AREAS)?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    Ok(Outcome::Passed)
}
