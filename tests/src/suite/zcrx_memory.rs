// SPDX-License-Identifier: GPL-2.0
//! D7: the memory of interface queues: areas, regions of refill queues, and the
//! accounting of both.

use std::fs;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, setrlimit};

use super::zcrx_registration::{map_error, refused};
use super::zcrx_sharing::{export_of, import_into, import_reg};
use super::{Outcome, Test, TestResult, tests};
use crate::buffers::Resources;
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::register::PAGE_SIZE;
use crate::sandbox;
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{
    IORING_MAP_OFF_ZCRX, IORING_MEM_REGION_TYPE_USER, IORING_OFF_ZCRX_SHIFT, Ifq, RQES,
    Registration, TAIL, ZCRX_EVENT_DESC_FLAG_STATS, map_offset, memory, pinned, region_size,
    register_ifq, transfer,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::memory" {
        ZR13 region_must_hold_all_entries;
        ZR14 invalid_region_descriptors_are_refused;
        ZR15 region_of_the_kernel_is_zeroed_and_can_be_mapped;
        ZR16 invalid_mappings_of_a_region_are_refused;
        ZR17 limit_on_locked_memory_is_enforced;
        ZR18user only_header_and_statistics_of_a_user_region_are_zeroed;
        ZR19 invalid_areas_are_refused;
        ZR20 area_without_an_address_or_with_a_file_is_refused;
        ZR23 area_may_be_a_huge_page;
        ZR31 ids_end_where_offsets_for_mapping_do (60 s);
        ZR33 part_of_a_huge_page_is_charged_as_a_whole;
    }
};

const PAGE: u64 = PAGE_SIZE as u64;
const HUGE: usize = 2 << 20;

/// Checks that the next queue of a ring is its first and works.
fn none_so_far(ring: &mut WideRing) -> anyhow::Result<()> {
    let ifq = Ifq::new(ring.fd(), 64, 4)?;
    expect_eq("the id of the first queue", ifq.id, 0)?;
    transfer(ring, &ifq, PAGE_SIZE)
}

/// Checks that a region too small for header and entries gives EINVAL.
fn region_must_hold_all_entries() -> TestResult {
    let mut ring = WideRing::new(8)?;
    for entries in [253, 256, 32768] {
        // Entries and header, rounded up, take a page and 128 bytes or more.
        refused(&ring, "one page", -libc::EINVAL, |r| {
            r.reg.rq_entries = entries;
            r.region.size = PAGE;
        })?;
    }
    none_so_far(&mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that each invalid flag, address, size, id and reserved word of a region
/// descriptor gives its own error and leaves no queue.
fn invalid_region_descriptors_are_refused() -> TestResult {
    type Change = fn(&mut Registration);
    let mut ring = WideRing::new(8)?;
    let changes: [(&str, i32, Change); 13] = [
        ("first reserved word", libc::EINVAL, |r| {
            r.region.resv[0] = 1
        }),
        ("last reserved word", libc::EINVAL, |r| r.region.resv[3] = 1),
        ("unknown flag", libc::EINVAL, |r| r.region.flags = 2),
        ("an address, not of the user's", libc::EFAULT, |r| {
            r.region.user_addr = PAGE;
        }),
        ("the user's, without an address", libc::EFAULT, |r| {
            r.region.flags = IORING_MEM_REGION_TYPE_USER;
        }),
        ("an id", libc::EINVAL, |r| r.region.id = 1),
        ("an offset", libc::EINVAL, |r| r.region.mmap_offset = PAGE),
        ("no whole pages", libc::EINVAL, |r| r.region.size += 1),
        ("more pages than can be counted", libc::E2BIG, |r| {
            r.region.size = 1 << 43;
        }),
        ("all there could be", libc::E2BIG, |r| {
            r.region.size = u64::MAX - PAGE + 1;
        }),
        ("an address within a page", libc::EINVAL, |r| {
            r.region.flags = IORING_MEM_REGION_TYPE_USER;
            r.region.user_addr = PAGE + 8;
        }),
        ("an address that wraps", libc::EOVERFLOW, |r| {
            r.region.flags = IORING_MEM_REGION_TYPE_USER;
            r.region.user_addr = u64::MAX - PAGE + 1;
            r.region.size = 2 * PAGE;
        }),
        ("an address where nothing is", libc::EFAULT, |r| {
            r.region.flags = IORING_MEM_REGION_TYPE_USER;
            r.region.user_addr = PAGE;
        }),
    ];
    for (what, want, change) in changes {
        refused(&ring, what, -want, change)?;
    }
    none_so_far(&mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a region that the kernel allocates is all zeros, and several mappings of
/// it show the same memory.
fn region_of_the_kernel_is_zeroed_and_can_be_mapped() -> TestResult {
    let mut ring = WideRing::new(8)?;
    let ifq = Ifq::new(ring.fd(), 512, 4)?;
    for offset in [0, TAIL] {
        expect_eq("a position", ifq.memory.read::<u32>(offset), 0)?;
    }
    let bytes = region_size(512);
    let kept: Vec<u8> = (0..bytes).map(|at| ifq.memory.read(at)).collect();
    expect_eq(
        "bytes that are not zero",
        kept.iter().any(|&b| b != 0),
        false,
    )?;
    // A second mapping shows the same memory.
    let again = Mapping::new(ring.fd(), IORING_MAP_OFF_ZCRX, bytes)?;
    ifq.memory.write(RQES + 8, 0x1234_5678u32);
    expect_eq(
        "a word in the other map",
        again.read::<u32>(RQES + 8),
        0x1234_5678,
    )?;
    transfer(&mut ring, &ifq, 6 * PAGE_SIZE)?;
    expect_eq(
        "position in the other map",
        again.read::<u32>(0),
        ifq.head(),
    )?;
    Ok(Outcome::Passed)
}

/// Checks that mapping less than a region or at a fixed address, an unknown id, or a
/// region in user memory fails.
fn invalid_mappings_of_a_region_are_refused() -> TestResult {
    let ring = WideRing::new(8)?;
    let ifq = Ifq::new(ring.fd(), 512, 4)?;
    let (offset, bytes) = (IORING_MAP_OFF_ZCRX, region_size(512));
    let next = offset + (1 << IORING_OFF_ZCRX_SHIFT);
    let free = 0x1000_0000;
    for (what, hint, offset, len, want) in [
        ("all", 0, offset, bytes, None),
        ("more", 0, offset, 2 * bytes, None),
        ("less", 0, offset, bytes - PAGE_SIZE, Some(libc::EFAULT)),
        ("at a place", free, offset, bytes, Some(libc::EINVAL)),
        ("another id", 0, next, bytes, Some(libc::EINVAL)),
        ("the last id", 0, 0x37ff_0000, bytes, Some(libc::EINVAL)),
    ] {
        expect_eq(what, map_error(&ring, hint, offset, len), want)?;
    }
    drop(ifq);

    // A region in user memory cannot be mapped through the ring.
    let (area, region) = (memory(4)?, memory(1)?);
    let mut registration = Registration::new(64, &area);
    registration.region.flags = IORING_MEM_REGION_TYPE_USER;
    registration.region.user_addr = region.address() as u64;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    expect_eq("offset", registration.region.mmap_offset, 0)?;
    let got = map_error(&ring, 0, next, PAGE_SIZE);
    expect_eq("the user's region", got, Some(libc::EINVAL))?;
    Ok(Outcome::Passed)
}

/// Checks that areas and regions past RLIMIT_MEMLOCK give ENOMEM, and failed attempts
/// leave nothing charged.
fn limit_on_locked_memory_is_enforced() -> TestResult {
    sandbox::in_child(|| {
        sandbox::count_locked_memory()?;
        setrlimit(Resource::RLIMIT_MEMLOCK, 64 * PAGE, 64 * PAGE)?;
        let mut ring = WideRing::new(8)?;
        let (small, large) = (memory(16)?, memory(128)?);
        let held = Resources::now()?;
        for _ in 0..20 {
            let mut registration = Registration::new(64, &large);
            let got = registration.register(ring.fd());
            expect_result("an area past the limit", got, -libc::ENOMEM)?;
            held.expect("an area past the limit")?;

            let mut registration = Registration::new(64, &small);
            registration.region.size = 128 * PAGE;
            let got = registration.register(ring.fd());
            expect_result("a region past the limit", got, -libc::ENOMEM)?;
            held.expect("a region past the limit")?;
        }
        // None of the failed registrations left anything charged.
        let ifq = Ifq::new(ring.fd(), 64, 16)?;
        expect_eq("id", ifq.id, 0)?;
        expect_eq("pinned", pinned()?, 16)?;
        transfer(&mut ring, &ifq, 2 * PAGE_SIZE)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that the kernel clears the header and the statistics of a region in user
/// memory, and no other byte.
fn only_header_and_statistics_of_a_user_region_are_zeroed() -> TestResult {
    let ring = WideRing::new(8)?;
    let (area, region) = (memory(4)?, memory(1)?);
    let used = RQES + 16 * 64;
    for offset in (0..PAGE_SIZE).step_by(8) {
        region.write(offset, u64::MAX);
    }
    let mut registration = Registration::new(64, &area);
    registration.region.flags = IORING_MEM_REGION_TYPE_USER;
    registration.region.user_addr = region.address() as u64;
    registration.with_event = true;
    registration.event.flags = ZCRX_EVENT_DESC_FLAG_STATS;
    registration.event.stats_offset = used as u64 + 8;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    for offset in (0..PAGE_SIZE).step_by(8) {
        let zeroed = offset < RQES || (used + 8..used + 24).contains(&offset);
        let want = if zeroed { 0 } else { u64::MAX };
        let what = format!("8 bytes at {offset}");
        expect_eq(&what, region.read::<u64>(offset), want)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that each invalid flag, address, length and reserved word of an area, and
/// memory that cannot be written, gives its own error and leaves nothing pinned.
fn invalid_areas_are_refused() -> TestResult {
    let mut ring = WideRing::new(8)?;
    type Change = fn(&mut Registration);
    let changes: [(&str, i32, Change); 12] = [
        ("unknown flag", libc::EINVAL, |r| r.area.flags = 2),
        ("first reserved word", libc::EINVAL, |r| r.area.resv2[0] = 1),
        ("second reserved word", libc::EINVAL, |r| {
            r.area.resv2[1] = 1
        }),
        ("no length", libc::EFAULT, |r| r.area.len = 0),
        ("an address within a page", libc::EINVAL, |r| {
            r.area.addr += 8
        }),
        ("a length within a page", libc::EINVAL, |r| r.area.len -= 8),
        ("less than a page", libc::EINVAL, |r| r.area.len = 8),
        ("more than 2^40 bytes", libc::EINVAL, |r| {
            r.area.len = (1 << 40) + PAGE;
        }),
        ("an end that wraps", libc::EOVERFLOW, |r| {
            r.area.addr = u64::MAX - PAGE + 1;
            r.area.len = 2 * PAGE;
        }),
        ("nothing there", libc::EFAULT, |r| r.area.addr = PAGE),
        ("memory of the kernel", libc::EFAULT, |r| {
            r.area.addr = 0xffff_8880_0000_0000;
        }),
        ("a length that is nothing but huge", libc::EINVAL, |r| {
            r.area.len = 1 << 63;
        }),
    ];
    for (what, want, change) in changes {
        refused(&ring, what, -want, change)?;
    }

    let area = memory(4)?;
    let protect = |protection| {
        // SAFETY: the range is the last page of this function's own mapping.
        let got = unsafe {
            let page = area.address().add(3 * PAGE_SIZE);
            libc::mprotect(page.cast(), PAGE_SIZE, protection)
        };
        expect_eq("mprotect", got, 0)
    };
    for (what, protection) in [
        ("a page that can only be read", libc::PROT_READ),
        ("a page that cannot be touched", libc::PROT_NONE),
    ] {
        protect(protection)?;
        let got = Registration::new(64, &area).register(ring.fd());
        expect_result(what, got, -libc::EFAULT)?;
        expect_eq("pinned", pinned()?, 0)?;
    }
    none_so_far(&mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that an area of memory with a dma-buf's descriptor gives EINVAL, and one at
/// address 0 EFAULT, even if there is memory.
fn area_without_an_address_or_with_a_file_is_refused() -> TestResult {
    let mut ring = WideRing::new(8)?;
    refused(&ring, "a file", -libc::EINVAL, |r| r.area.dmabuf_fd = 1)?;
    refused(&ring, "address 0", -libc::EFAULT, |r| r.area.addr = 0)?;
    let lowest = Mapping::at_zero(PAGE_SIZE)?;
    refused(&ring, "memory at address 0", -libc::EFAULT, |r| {
        r.area.addr = 0;
        r.area.len = PAGE;
    })?;
    drop(lowest);
    none_so_far(&mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a huge page can be an area.
fn area_may_be_a_huge_page() -> TestResult {
    let _pages = sandbox::Sysctl::set("vm/nr_hugepages", "2")?;
    let area = Mapping::anonymous(HUGE, libc::MAP_HUGETLB)?;
    let mut ring = WideRing::new(8)?;
    let mut registration = Registration::new(64, &area);
    expect_result("registering", registration.register(ring.fd()), 0)?;
    expect_eq("pinned", pinned()?, HUGE / PAGE_SIZE)?;
    let ifq = Ifq::attach(ring.fd(), registration, area)?;
    transfer(&mut ring, &ifq, 9 * PAGE_SIZE + 5)?;
    Ok(Outcome::Passed)
}

/// Checks that an area of one page of a huge page is charged as the whole huge page.
fn part_of_a_huge_page_is_charged_as_a_whole() -> TestResult {
    /// Makes huge pages of existing memory.
    const MADV_COLLAPSE: i32 = 25;
    if fs::metadata("/sys/kernel/mm/transparent_hugepage").is_err() {
        return Ok(Outcome::Skipped("no transparent huge pages".to_string()));
    }
    let both = memory(2 * HUGE / PAGE_SIZE)?;
    let first = (both.address() as usize).next_multiple_of(HUGE);
    let inside = first - both.address() as usize;
    both.write(inside, 1u8);
    // SAFETY: the range is inside the mapping, and may change its pages.
    let got = unsafe { libc::madvise(first as *mut _, HUGE, MADV_COLLAPSE) };
    expect_eq("making a huge page", got, 0)?;

    let ring = WideRing::new(8)?;
    let mut registration = Registration::new(64, &both);
    registration.area.addr = (first + 5 * PAGE_SIZE) as u64;
    registration.area.len = PAGE;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    // Pinning one page keeps all of the huge page.
    expect_eq("pinned", pinned()?, HUGE / PAGE_SIZE)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring has at most 2,048 queues, as many as can be mapped; one more,
/// registered or imported, gives EBUSY and changes nothing.
///
/// In C, the registration and the import past that succeed, and their refill queues
/// cannot be mapped.
fn ids_end_where_offsets_for_mapping_do() -> TestResult {
    const IDS: u32 = 2048;
    let before = Resources::now()?;
    let ring = WideRing::new(2)?;
    let area = memory(1)?;
    let add = |id: u32| {
        let mut registration = Registration::new(1, &area);
        let got = registration.register(ring.fd());
        if got == 0 {
            expect_eq("id", registration.reg.zcrx_id, id)?;
            expect_eq(
                "offset",
                registration.region.mmap_offset as i64,
                map_offset(id),
            )?;
        }
        anyhow::Ok((got, registration.region.mmap_offset as i64))
    };
    for id in 0..IDS - 1 {
        expect_result("registering", add(id)?.0, 0)?;
    }
    let (got, offset) = add(IDS - 1)?;
    expect_result("the last that can be mapped", got, 0)?;
    Mapping::new(ring.fd(), offset, PAGE_SIZE)?;
    // This queue belongs to another ring.
    let other = WideRing::new(2)?;
    let more = memory(3)?;
    let got = Registration::new(1, &more).register(other.fd());
    expect_result("a queue of another ring", got, 0)?;
    let file = export_of(&other, 0)?;

    match zcrx_implementation() {
        Implementation::C => {
            let (got, offset) = add(IDS)?;
            expect_result("one more", got, 0)?;
            // No offset maps this one.
            let error = map_error(&ring, 0, offset, PAGE_SIZE);
            expect_eq("mapping it", error, Some(libc::EINVAL))?;
            import_into(&ring, &file, IDS + 1)?;
            let error = map_error(&ring, 0, map_offset(IDS + 1), PAGE_SIZE);
            expect_eq("mapping an import", error, Some(libc::EINVAL))?;
        }
        Implementation::Rust => {
            let held = pinned()?;
            let mut registration = Registration::new(1, &area);
            for _ in 0..2 {
                let got = registration.register(ring.fd());
                expect_result("one more", got, -libc::EBUSY)?;
                expect_eq("its id", registration.reg.zcrx_id, 0)?;
                expect_eq("its offset", registration.region.mmap_offset, 0)?;
                expect_eq("pinned", pinned()?, held)?;

                let mut reg = import_reg(file.as_raw_fd());
                let got = register_ifq(ring.fd(), &mut reg);
                expect_result("an import past the last", got, -libc::EBUSY)?;
                let asked = import_reg(file.as_raw_fd());
                expect_eq("the structure afterwards", reg, asked)?;
            }
            // Another ring has room for the queue.
            import_into(&WideRing::new(2)?, &file, 0)?;
        }
    }
    // Nothing keeps the queues that could not be imported.
    drop((ring, other, area));
    let alone = before.with_files(1).with_pages(3);
    match zcrx_implementation() {
        Implementation::C => {}
        Implementation::Rust => alone.wait("closing the rings")?,
    }
    drop(file);
    before.wait("closing the file")?;
    drop(more);
    Ok(Outcome::Passed)
}
