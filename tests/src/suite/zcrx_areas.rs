// SPDX-License-Identifier: GPL-2.0
//! D8: further areas of an interface queue: those that are refused, receiving into them,
//! their number, the accounting of their memory, and the order of free buffers.

use nix::sys::resource::{Resource, setrlimit};

use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, TakenBuffer, offset};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::register::{PAGE_SIZE, Page};
use crate::sandbox;
use crate::zcrx::{
    AREA_SHIFT, AreaReg, Ctrl, IORING_ZCRX_AREA_DMABUF, ZCRX_CTRL_ADD_AREA, control, memory,
};

const ENTRIES: u32 = 64;
/// The most areas that a queue can have.
const MAX_AREAS: usize = 1024;

pub const TESTS: &[Test] = tests! {
    "zcrx::areas" {
        ZX23 invalid_areas_cannot_be_added;
        ZX24 added_area_is_received_into;
        ZX25 queue_can_have_1024_areas;
        ZX26 added_areas_count_towards_locked_memory;
        ZX32 free_buffers_are_taken_in_a_known_order;
    }
};

/// Adds the area that the structure at `address` describes.
pub(super) fn add_at(consumer: &Consumer, address: u64) -> i32 {
    let mut ctrl = Ctrl {
        zcrx_id: consumer.id,
        op: ZCRX_CTRL_ADD_AREA,
        ..Default::default()
    };
    ctrl.union[0] = address;
    control(consumer.ring.fd(), &mut ctrl)
}

/// Adds an area.
pub(super) fn add(consumer: &Consumer, area: &mut AreaReg) -> i32 {
    add_at(consumer, &raw mut *area as u64)
}

/// Returns the token of the area with the given number.
fn token(area: usize) -> u64 {
    (area as u64) << AREA_SHIFT
}

/// Returns the token that a failed attempt to add area `number` leaves. C writes the
/// token before it makes the area.
fn token_of_failure(number: usize) -> u64 {
    match zcrx_implementation() {
        Implementation::C => token(number),
        Implementation::Rust => 0,
    }
}

/// Checks that each invalid description of a further area gives its own error, is not
/// changed, and adds nothing.
///
/// In C, the token of the area is written before it is made, and stays in the
/// description.
fn invalid_areas_cannot_be_added() -> TestResult {
    let before = Resources::now()?;
    let (mut consumer, area) = Consumer::new(ENTRIES, 2)?;
    let more = memory(2)?;
    let fixed = Page::new()?;
    fixed.write(0, &0u8);
    fixed.protect(libc::PROT_READ)?;
    let hole = Page::new()?;
    let held = Resources::now()?;
    let valid = AreaReg {
        addr: more.address() as u64,
        len: more.len() as u64,
        ..Default::default()
    };

    expect_result("no address", add_at(&consumer, 0), -libc::EFAULT)?;
    let page = Page::new()?;
    let end = PAGE_SIZE - size_of::<AreaReg>() + 8;
    let got = add_at(&consumer, page.address as u64 + end as u64);
    expect_result("over the end of a page", got, -libc::EFAULT)?;
    page.write(0, &valid);
    page.protect(libc::PROT_READ)?;
    let got = add_at(&consumer, page.address as u64);
    expect_result("read-only description", got, -libc::EFAULT)?;
    held.expect("bad addresses")?;
    for word in 1..6 {
        let mut description = valid;
        let mut ctrl = Ctrl {
            op: ZCRX_CTRL_ADD_AREA,
            ..Default::default()
        };
        ctrl.union[0] = &raw mut description as u64;
        ctrl.union[word] = 1 << 63;
        let what = format!("reserved word {word}");
        let got = control(consumer.ring.fd(), &mut ctrl);
        expect_result(&what, got, -libc::EINVAL)?;
        expect_eq(&what, description, valid)?;
    }
    for bit in [0, 48, 63] {
        let mut description = AreaReg {
            rq_area_token: 1 << bit,
            ..valid
        };
        let copy = description;
        let got = add(&consumer, &mut description);
        expect_result("a token", got, -libc::EINVAL)?;
        expect_eq("a token", description, copy)?;
    }

    // Descriptions from which no area can be made.
    let change = |change: fn(&mut AreaReg)| {
        let mut description = valid;
        change(&mut description);
        description
    };
    let dmabuf = |area: &mut AreaReg| (area.addr, area.flags) = (0, IORING_ZCRX_AREA_DMABUF);
    for (what, description, error) in [
        ("a DMA buffer", change(dmabuf), libc::EINVAL),
        (
            "a DMA buffer with an address",
            change(|area| area.flags = IORING_ZCRX_AREA_DMABUF),
            libc::EINVAL,
        ),
        ("a flag", change(|area| area.flags = 2), libc::EINVAL),
        ("reserved", change(|area| area.resv2[0] = 1), libc::EINVAL),
        ("the other", change(|area| area.resv2[1] = 1), libc::EINVAL),
        ("a file", change(|area| area.dmabuf_fd = 1), libc::EINVAL),
        ("no memory", change(|area| area.addr = 0), libc::EFAULT),
        ("no length", change(|area| area.len = 0), libc::EFAULT),
        ("half a page", change(|area| area.len -= 1), libc::EINVAL),
        ("off a page", change(|area| area.addr += 8), libc::EINVAL),
        (
            "more than a TiB",
            change(|area| area.len = (1 << 40) + 4096),
            libc::EINVAL,
        ),
        (
            "around the end",
            change(|area| area.addr = !4095),
            libc::EOVERFLOW,
        ),
        (
            "read-only memory",
            AreaReg {
                addr: fixed.address as u64,
                len: PAGE_SIZE as u64,
                ..Default::default()
            },
            libc::EFAULT,
        ),
        (
            "memory with a hole",
            AreaReg {
                addr: hole.address as u64,
                len: 2 * PAGE_SIZE as u64,
                ..Default::default()
            },
            libc::EFAULT,
        ),
    ] {
        let mut copy = description;
        expect_result(what, add(&consumer, &mut copy), -error)?;
        let want = AreaReg {
            rq_area_token: token_of_failure(1),
            ..description
        };
        expect_eq(what, copy, want)?;
        held.expect(what)?;
    }

    // No failed attempt has added an area.
    consumer.push_offsets(&[token(1)]);
    consumer.flush_to(1)?;
    consumer.expect_free("buffers of the first area", &[offset(0), offset(1)])?;
    let mut description = valid;
    expect_result("a valid one", add(&consumer, &mut description), 0)?;
    let want = AreaReg {
        rq_area_token: token(1),
        ..valid
    };
    expect_eq("a valid one", description, want)?;
    held.with_pages(2).expect("a valid one")?;
    drop((consumer, area, more, fixed, hole, page));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that an added area is received into, with tokens and an end of its own, and
/// leaves buffers of the first area alone.
fn added_area_is_received_into() -> TestResult {
    let before = Resources::now()?;
    let (mut consumer, first) = Consumer::new(ENTRIES, 3)?;
    let second = memory(5)?;
    let held = Resources::now()?;
    let mut description = AreaReg {
        addr: second.address() as u64,
        len: second.len() as u64,
        ..Default::default()
    };
    // The new area does not affect buffers that are out already.
    let mut taken = consumer.take_some(2)?;
    expect_result("adding", add(&consumer, &mut description), 0)?;
    expect_eq("token", description.rq_area_token, token(1))?;
    held.with_pages(5).expect("adding")?;

    taken.push(consumer.take()?);
    let others: Vec<u64> = (0..5).map(|index| token(1) + offset(index)).collect();
    let added = consumer.expect_free("all of the second", &others)?;
    for taken in taken.iter().chain(&added) {
        taken.check(&[&first, &second])?;
    }
    expect_eq("buffers of the first area", taken.len(), 3)?;
    expect_eq(
        "their offsets are in it",
        taken.iter().all(|t| t.offset < token(1)),
        true,
    )?;

    // The two areas have ends of their own.
    for invalid in [offset(3), token(1) + offset(5), token(2)] {
        consumer.push_offsets(&[invalid]);
        consumer.flush()?;
    }
    consumer.expect_free("invalid ones", &[])?;
    let back = [others[4], offset(1), others[2]];
    consumer.push_offsets(&back);
    consumer.flush_to(6)?;
    for taken in consumer.expect_free("of both", &back)? {
        taken.check(&[&first, &second])?;
    }
    drop((consumer, first, second));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that a queue can have 1,024 areas, all of which are received into, and one
/// more gives EINVAL.
///
/// In C, one more leaves its token in the description.
fn queue_can_have_1024_areas() -> TestResult {
    let before = Resources::now()?;
    let (mut consumer, first) = Consumer::new(ENTRIES, 1)?;
    let rest = memory(MAX_AREAS)?;
    // For part of a huge page, the kernel would account all of it, once for each area.
    // Some kernels have no huge pages, so the result is ignored.
    // SAFETY: the mapping is this function's, and keeps its contents.
    unsafe { libc::madvise(rest.address().cast(), rest.len(), libc::MADV_NOHUGEPAGE) };
    let held = Resources::now()?;
    let nth = |number: usize| AreaReg {
        addr: rest.address() as u64 + offset(number),
        len: PAGE_SIZE as u64,
        ..Default::default()
    };
    for number in 1..MAX_AREAS {
        let mut description = nth(number);
        let what = format!("area {number}");
        expect_result(&what, add(&consumer, &mut description), 0)?;
        expect_eq(&what, description.rq_area_token, token(number))?;
    }
    let full = held.with_pages(MAX_AREAS - 1);
    full.expect("all of them")?;
    for _ in 0..2 {
        let mut description = nth(0);
        let got = add(&consumer, &mut description);
        expect_result("one more", got, -libc::EINVAL)?;
        let written = token_of_failure(MAX_AREAS);
        expect_eq("token of one more", description.rq_area_token, written)?;
        full.expect("one more")?;
    }
    let tokens: Vec<u64> = (0..MAX_AREAS).map(token).collect();
    let taken = consumer.expect_free("one buffer of each", &tokens)?;
    let at = |taken: &TakenBuffer| (taken.offset >> AREA_SHIFT) as usize;
    for taken in &taken {
        let byte: u8 = match at(taken) {
            0 => first.read(0),
            number => rest.read(number * PAGE_SIZE),
        };
        expect_eq("a byte in its area", byte, taken.byte)?;
    }
    consumer.push_offsets(&[tokens[MAX_AREAS - 1], token(MAX_AREAS)]);
    consumer.flush_to(2)?;
    consumer.expect_free("of the last", &[tokens[MAX_AREAS - 1]])?;
    drop((consumer, first, rest));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Limits the locked memory of this process to `pages` pages.
pub(super) fn limit_pages(pages: usize) -> anyhow::Result<()> {
    let (bytes, most) = ((pages * PAGE_SIZE) as u64, libc::RLIM_INFINITY);
    Ok(setrlimit(Resource::RLIMIT_MEMLOCK, bytes, most)?)
}

/// Checks that added areas count towards RLIMIT_MEMLOCK to the page, and failed
/// attempts leave nothing charged.
///
/// In C, failed attempts leave their token in the description.
fn added_areas_count_towards_locked_memory() -> TestResult {
    sandbox::count_locked_memory()?;
    let before = Resources::now()?;
    let (mut consumer, first) = Consumer::new(ENTRIES, 1)?;
    let rest = memory(8)?;
    let held = Resources::now()?;
    let part = |from: usize, pages: usize| AreaReg {
        addr: rest.address() as u64 + offset(from),
        len: offset(pages),
        ..Default::default()
    };
    let fails = |consumer: &Consumer, token, from, pages| -> anyhow::Result<()> {
        let mut description = part(from, pages);
        let got = add(consumer, &mut description);
        expect_result("beyond the limit", got, -libc::ENOMEM)?;
        let written = token;
        expect_eq("its token", description.rq_area_token, written)
    };
    // The limit is raised until one more page fits, which gives the number of pages
    // that are charged by now.
    limit_pages(0)?;
    fails(&consumer, token_of_failure(1), 0, 1)?;
    let mut charged = 0;
    let mut description = part(0, 1);
    while add(&consumer, &mut description) == -libc::ENOMEM {
        held.expect("failing")?;
        charged += 1;
        limit_pages(charged)?;
        expect_eq("the search has an end", charged < 4096, true)?;
        description = part(0, 1);
    }
    expect_eq("the first token", description.rq_area_token, token(1))?;
    held.with_pages(1).expect("the first")?;

    // A failed attempt leaves nothing charged, so the limit can be reached to the last
    // page.
    limit_pages(charged + 4)?;
    for _ in 0..10 {
        fails(&consumer, token_of_failure(2), 1, 5)?;
        held.with_pages(1).expect("failing again")?;
    }
    let mut description = part(1, 4);
    expect_result("to the limit", add(&consumer, &mut description), 0)?;
    expect_eq("the second token", description.rq_area_token, token(2))?;
    held.with_pages(5).expect("the second")?;
    fails(&consumer, token_of_failure(3), 5, 1)?;
    let mut all = vec![0, token(1)];
    all.extend((0..4).map(|index| token(2) + offset(index)));
    consumer.expect_free("of all areas", &all)?;

    limit_pages(charged + 5)?;
    let mut description = part(5, 1);
    expect_result("with more room", add(&consumer, &mut description), 0)?;
    expect_eq("the third token", description.rq_area_token, token(3))?;
    drop((consumer, first, rest));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that the buffer that was freed last is taken first, from the area where a
/// buffer was freed last.
///
/// In C, the first area that has a free buffer comes first.
fn free_buffers_are_taken_in_a_known_order() -> TestResult {
    let before = Resources::now()?;
    let (mut consumer, first) = Consumer::new(ENTRIES, 2)?;
    let second = memory(2)?;
    let mut description = AreaReg {
        addr: second.address() as u64,
        len: second.len() as u64,
        ..Default::default()
    };
    expect_result("adding", add(&consumer, &mut description), 0)?;
    // The next buffer is the one of its area that was freed last, and at first the last
    // of the area.
    let taken = consumer.take_some(3)?;
    let offsets: Vec<u64> = taken.iter().map(|taken| taken.offset).collect();
    let last = token(1) + offset(1);
    expect_eq("at first", offsets, vec![offset(1), offset(0), last])?;

    // C begins with the first area, Rust with the area in which a buffer was freed
    // last.
    consumer.push_offsets(&[offset(0), offset(1)]);
    consumer.flush_to(2)?;
    let want = match zcrx_implementation() {
        Implementation::C => [offset(1), offset(0), token(1)],
        Implementation::Rust => [token(1), offset(1), offset(0)],
    };
    let mut all = Vec::new();
    for want in want {
        let taken = consumer.take()?;
        taken.check(&[&first, &second])?;
        expect_eq("the next", taken.offset, want)?;
        all.push(taken.offset);
    }
    consumer.expect_free("one more", &[])?;
    all.push(last);
    consumer.push_offsets(&all);
    consumer.flush_to(6)?;
    consumer.expect_free("all of them", &all)?;
    drop((consumer, first, second));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}
