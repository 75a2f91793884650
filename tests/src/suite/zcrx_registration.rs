// SPDX-License-Identifier: GPL-2.0
//! D7: registering interface queues, field by field. Areas and regions are in
//! `zcrx_memory`.

use std::os::fd::{AsRawFd, RawFd};

use nix::sched::{CloneFlags, unshare};

use super::{Outcome, Test, TestResult, tests};
use crate::dmabuf;
use crate::kernel::{expect_eq, expect_result};
use crate::nic;
use crate::register::{
    self, IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_QUERY, PAGE_SIZE, Page, Restriction, TASK,
    register,
};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SINGLE_ISSUER};
use crate::sandbox;
use crate::wide::{
    IORING_SETUP_CLAMP, IORING_SETUP_CQE_MIXED, IORING_SETUP_CQE32, IORING_SETUP_DEFER_TASKRUN,
    WideRing, ZCRX_SETUP,
};
use crate::zcrx::{
    EventDesc, IORING_REGISTER_ZCRX_IFQ, IORING_ZCRX_AREA_DMABUF, Ifq, IfqReg, MAX_ENTRIES, RQES,
    Registration, TAIL, ZCRX_EVENT_DESC_FLAG_STATS, map_offset, memory, pinned, region_size,
    register_ifq, transfer,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::register" {
        ZR01 privilege_is_checked_before_the_argument;
        ZR02 ring_needs_defer_taskrun_and_large_completions;
        ZR03 exactly_one_argument_is_accepted;
        ZR04 unreadable_argument_is_refused;
        ZR05 reserved_fields_and_unknown_flags_are_refused;
        ZR06 unreadable_region_descriptor_is_refused;
        ZR07 queue_and_entries_must_be_given;
        ZR08 device_is_refused_for_a_queue_without_one;
        ZR09 too_many_entries_are_refused_or_clamped;
        ZR10 entries_are_rounded_up_to_a_power_of_two;
        ZR11 unreadable_area_descriptor_is_refused;
        ZR12 invalid_event_descriptor_is_refused;
        ZR18 statistics_must_be_aligned_and_after_the_entries;
        ZR21 dmabuf_without_a_device_is_refused;
        ZR22 only_page_sized_buffers_without_a_device;
        ZR27 unsuitable_devices_are_refused;
        ZR28 device_of_another_namespace_is_not_found;
        ZR29 ring_can_have_two_queues;
        ZR30 disabled_ring_can_have_a_queue;
        ZR32 query_describes_the_interface;
        ZR34 only_the_submitter_task_may_register;
        ZR36 restrictions_of_a_ring_apply;
    }
};

/// An address where nothing is mapped.
const NOWHERE: u64 = 16;

/// Registers a queue that is valid except for one change. Returns the result.
fn offer(fd: RawFd, change: impl FnOnce(&mut Registration)) -> anyhow::Result<i32> {
    let area = memory(4)?;
    let mut registration = Registration::new(64, &area);
    change(&mut registration);
    Ok(registration.register(fd))
}

/// Checks that a registration with one change is refused, and leaves nothing pinned.
pub(super) fn refused(
    ring: &WideRing,
    what: &str,
    want: i32,
    change: impl FnOnce(&mut Registration),
) -> anyhow::Result<()> {
    expect_result(what, offer(ring.fd(), change)?, want)?;
    expect_eq(&format!("pinned after {what}"), pinned()?, 0)
}

/// Returns the errno of mapping `len` bytes at `offset` of a ring, or `None` if that
/// succeeds. `hint` is the address to map at, or 0 for any.
pub(super) fn map_error(ring: &WideRing, hint: usize, offset: i64, len: usize) -> Option<i32> {
    // SAFETY: without MAP_FIXED the call leaves existing mappings alone.
    let got = unsafe {
        libc::mmap(
            hint as *mut _,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            ring.fd(),
            offset,
        )
    };
    let error = std::io::Error::last_os_error().raw_os_error();
    (got == libc::MAP_FAILED).then_some(error).flatten()
}

/// Checks that the next queue of a ring is its first.
pub(super) fn none_so_far(ring: &WideRing) -> anyhow::Result<()> {
    let error = map_error(ring, 0, map_offset(0), PAGE_SIZE);
    expect_eq("mapping the first queue", error, Some(libc::EINVAL))?;
    let ifq = Ifq::new(ring.fd(), 64, 4)?;
    expect_eq("the id of the first queue", ifq.id, 0)
}

/// The name of a change to something valid, and the change.
type Change<T> = (&'static str, fn(&mut T));

/// Checks that each change is refused with EINVAL.
fn all_invalid(changes: &[Change<Registration>]) -> TestResult {
    let ring = WideRing::new(2)?;
    for (what, change) in changes {
        refused(&ring, what, -libc::EINVAL, change)?;
    }
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that registering a queue without CAP_NET_ADMIN, or with it in a user
/// namespace of one's own, gives EPERM, whatever the argument.
fn privilege_is_checked_before_the_argument() -> TestResult {
    sandbox::in_child(|| {
        let ring = WideRing::new(2)?;
        sandbox::drop_privileges()?;
        for arg in [NOWHERE, u64::MAX] {
            let got = register(ring.fd(), IORING_REGISTER_ZCRX_IFQ, arg as *const _, 1);
            expect_result("without CAP_NET_ADMIN", got, -libc::EPERM)?;
        }
        Ok(())
    })?;
    // The capability in one's own user namespace is not enough.
    sandbox::in_child(|| {
        let ring = WideRing::new(2)?;
        sandbox::user_namespace()?;
        let got = register(ring.fd(), IORING_REGISTER_ZCRX_IFQ, NOWHERE as *const _, 1);
        expect_result("CAP_NET_ADMIN of a namespace", got, -libc::EPERM)
    })?;
    Ok(Outcome::Passed)
}

/// Checks that a ring without IORING_SETUP_DEFER_TASKRUN or without completions of 32
/// bytes gives EINVAL, and mixed completions suffice.
fn ring_needs_defer_taskrun_and_large_completions() -> TestResult {
    for (what, flags) in [
        ("no flags", 0),
        (
            "no DEFER_TASKRUN",
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_CQE32,
        ),
        (
            "completions of 16 bytes",
            IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN,
        ),
    ] {
        let ring = WideRing::with(2, 0, flags)?;
        // The kernel checks the ring before it looks at the argument.
        let got = register(ring.fd(), IORING_REGISTER_ZCRX_IFQ, NOWHERE as *const _, 1);
        expect_result(what, got, -libc::EINVAL)?;
        refused(&ring, what, -libc::EINVAL, |_| {})?;
    }
    let mixed = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE_MIXED;
    let ring = WideRing::with(2, 0, mixed)?;
    expect_result("mixed completions", offer(ring.fd(), |_| {})?, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a NULL argument and a number of arguments other than one give EINVAL.
fn exactly_one_argument_is_accepted() -> TestResult {
    let ring = WideRing::new(2)?;
    let mut reg = IfqReg::default();
    for (what, arg, count) in [
        ("a null pointer", std::ptr::null_mut(), 1),
        ("none", &raw mut reg, 0),
        ("two", &raw mut reg, 2),
    ] {
        let got = register(ring.fd(), IORING_REGISTER_ZCRX_IFQ, arg.cast(), count);
        expect_result(what, got, -libc::EINVAL)?;
    }
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that an argument that is unmapped, or that the end of a mapping cuts off,
/// gives EFAULT.
fn unreadable_argument_is_refused() -> TestResult {
    let ring = WideRing::new(2)?;
    let page = Page::new()?;
    // All but the last bytes of the structure can be read.
    let at = page
        .address
        .wrapping_add(PAGE_SIZE - size_of::<IfqReg>() + 8);
    for arg in [NOWHERE as *const u8, at] {
        let got = register(ring.fd(), IORING_REGISTER_ZCRX_IFQ, arg.cast(), 1);
        expect_result("unreadable", got, -libc::EFAULT)?;
    }
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that reserved words, an id and unknown flags give EINVAL.
fn reserved_fields_and_unknown_flags_are_refused() -> TestResult {
    all_invalid(&[
        ("first reserved word", |r| r.reg.resv[0] = 1),
        ("second reserved word", |r| r.reg.resv[1] = 1 << 63),
        ("an id", |r| r.reg.zcrx_id = 1),
        ("flag 4", |r| r.reg.flags |= 4),
        ("flag 2^31", |r| r.reg.flags |= 1 << 31),
    ])
}

/// Checks that a region descriptor that cannot be read gives EFAULT, before the errors
/// of other fields.
fn unreadable_region_descriptor_is_refused() -> TestResult {
    let ring = WideRing::new(2)?;
    let area = memory(4)?;
    for region in [0, NOWHERE, u64::MAX - 63] {
        let mut valid = Registration::new(64, &area);
        valid.reg.area_ptr = &raw mut valid.area as u64;
        valid.reg.region_ptr = region;
        // The error of the region comes before that of other fields.
        valid.reg.rq_entries = 0;
        let got = register_ifq(ring.fd(), &mut valid.reg);
        expect_result("region descriptor", got, -libc::EFAULT)?;
    }
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that the receive queue 0xffffffff and zero entries give EINVAL.
fn queue_and_entries_must_be_given() -> TestResult {
    all_invalid(&[
        ("no receive queue", |r| r.reg.if_rxq = u32::MAX),
        // The number of the queue is checked before the device is looked up.
        ("no receive queue of no device", |r| {
            r.reg.flags = 0;
            r.reg.if_idx = u32::MAX;
            r.reg.if_rxq = u32::MAX;
        }),
        ("no entries", |r| r.reg.rq_entries = 0),
    ])
}

/// Checks that naming a device or a receive queue together with ZCRX_REG_NODEV gives
/// EINVAL.
fn device_is_refused_for_a_queue_without_one() -> TestResult {
    all_invalid(&[
        ("a device", |r| r.reg.if_idx = 1),
        ("a receive queue", |r| r.reg.if_rxq = 1),
    ])
}

/// Checks that more than 32,768 entries give EINVAL, and are cut to 32,768 with
/// IORING_SETUP_CLAMP.
fn too_many_entries_are_refused_or_clamped() -> TestResult {
    let ring = WideRing::new(2)?;
    for entries in [MAX_ENTRIES + 1, u32::MAX] {
        refused(&ring, "too many entries", -libc::EINVAL, |r| {
            r.reg.rq_entries = entries;
            r.region.size = region_size(2 * MAX_ENTRIES) as u64;
        })?;
    }
    none_so_far(&ring)?;

    let ring = WideRing::with(2, 0, ZCRX_SETUP | IORING_SETUP_CLAMP)?;
    let area = memory(4)?;
    for entries in [MAX_ENTRIES, MAX_ENTRIES + 1, u32::MAX] {
        let mut registration = Registration::new(MAX_ENTRIES, &area);
        registration.reg.rq_entries = entries;
        expect_result("clamped", registration.register(ring.fd()), 0)?;
        expect_eq("entries", registration.reg.rq_entries, MAX_ENTRIES)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that the number of entries is rounded up to a power of two and written back.
fn entries_are_rounded_up_to_a_power_of_two() -> TestResult {
    let ring = WideRing::new(2)?;
    let area = memory(4)?;
    for (wanted, got) in [
        (1, 1),
        (2, 2),
        (3, 4),
        (100, 128),
        (128, 128),
        (20000, 32768),
    ] {
        let mut registration = Registration::new(got, &area);
        registration.reg.rq_entries = wanted;
        expect_result("registering", registration.register(ring.fd()), 0)?;
        expect_eq("entries", registration.reg.rq_entries, got)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that an area descriptor that cannot be read gives EFAULT, and one with a
/// token EINVAL, before the errors of the device.
fn unreadable_area_descriptor_is_refused() -> TestResult {
    let ring = WideRing::new(2)?;
    let area = memory(4)?;
    for pointer in [0, NOWHERE, u64::MAX - 47] {
        let mut valid = Registration::new(64, &area);
        valid.reg.region_ptr = &raw mut valid.region as u64;
        valid.reg.area_ptr = pointer;
        let got = register_ifq(ring.fd(), &mut valid.reg);
        expect_result("area descriptor", got, -libc::EFAULT)?;
    }
    refused(&ring, "a token", -libc::EINVAL, |r| {
        r.area.rq_area_token = 1
    })?;
    refused(&ring, "a token, and no such device", -libc::EINVAL, |r| {
        r.area.rq_area_token = 1;
        r.reg.flags = 0;
        r.reg.if_idx = 12345;
    })?;
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that unknown events and flags, reserved words and an offset without
/// statistics give EINVAL, and an unreadable event descriptor EFAULT.
fn invalid_event_descriptor_is_refused() -> TestResult {
    let ring = WideRing::new(2)?;
    refused(&ring, "unreadable", -libc::EFAULT, |r| {
        r.reg.event_desc = NOWHERE;
    })?;
    let changes: [Change<EventDesc>; 7] = [
        ("unknown event", |e| e.type_mask = 4),
        ("unknown event 31", |e| e.type_mask = 1 << 31),
        ("unknown flag", |e| e.flags = 2),
        ("a place for no statistics", |e| e.stats_offset = 2048),
        ("first reserved word", |e| e.resv2[0] = 1),
        ("last reserved word", |e| e.resv2[8] = 1),
        ("unknown flag beside a known one", |e| {
            e.flags = 2 | ZCRX_EVENT_DESC_FLAG_STATS;
            e.stats_offset = 2048;
        }),
    ];
    for (what, change) in changes {
        refused(&ring, what, -libc::EINVAL, |r| {
            r.with_event = true;
            change(&mut r.event);
        })?;
    }
    none_so_far(&ring)?;
    let got = offer(ring.fd(), |r| {
        r.with_event = true;
        r.event.type_mask = 3;
    })?;
    expect_result("both events", got, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that statistics that are not aligned give EINVAL, and those that overlap
/// header or entries or leave the region ERANGE.
fn statistics_must_be_aligned_and_after_the_entries() -> TestResult {
    let ring = WideRing::new(2)?;
    let (used, size) = (RQES + 16 * 64, region_size(64));
    let stats = |offset: usize| {
        move |r: &mut Registration| {
            r.with_event = true;
            r.event.flags = ZCRX_EVENT_DESC_FLAG_STATS;
            r.event.stats_offset = offset as u64;
        }
    };
    for (what, offset, want) in [
        ("not aligned", used + 4, libc::EINVAL),
        ("not aligned, and out of range", 4, libc::EINVAL),
        ("in the header", 0, libc::ERANGE),
        ("in the last entry", used - 8, libc::ERANGE),
        ("half behind the end", size - 8, libc::ERANGE),
        ("behind the end", size, libc::ERANGE),
        ("where addresses end", usize::MAX - 7, libc::ERANGE),
    ] {
        refused(&ring, what, -want, stats(offset))?;
    }
    none_so_far(&ring)?;
    for offset in [used, size - 16] {
        expect_result("that fits", offer(ring.fd(), stats(offset))?, 0)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a dma-buf as the area of a queue without a device gives EINVAL.
fn dmabuf_without_a_device_is_refused() -> TestResult {
    all_invalid(&[
        ("a dma-buf", |r| r.area.flags = IORING_ZCRX_AREA_DMABUF),
        ("a dma-buf with a file", |r| {
            r.area.flags = IORING_ZCRX_AREA_DMABUF;
            r.area.addr = 0;
            r.area.dmabuf_fd = 1;
        }),
    ])?;
    let ring = WideRing::new(2)?;
    let (dmabuf, _memory) = dmabuf::new(PAGE_SIZE)?;
    // The dma-buf itself pins memory.
    let got = offer(ring.fd(), |r| {
        r.area.flags = IORING_ZCRX_AREA_DMABUF;
        (r.area.addr, r.area.len) = (0, PAGE_SIZE as u64);
        r.area.dmabuf_fd = dmabuf.as_raw_fd() as u32;
    })?;
    expect_result("a dma-buf that could be used", got, -libc::EINVAL)?;
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that buffers of a queue without a device are pages; larger powers of two give
/// EOPNOTSUPP, and other sizes EINVAL.
fn only_page_sized_buffers_without_a_device() -> TestResult {
    let ring = WideRing::new(2)?;
    let page = PAGE_SIZE as u32;
    for (bytes, want) in [
        (3, libc::EINVAL),
        (page / 2, libc::EINVAL),
        (page + 1, libc::EINVAL),
        (2 * page, libc::EOPNOTSUPP),
        (1 << 31, libc::EOPNOTSUPP),
    ] {
        let what = format!("buffers of {bytes} bytes");
        refused(&ring, &what, -want, |r| r.reg.rx_buf_len = bytes)?;
    }
    none_so_far(&ring)?;
    let got = offer(ring.fd(), |r| r.reg.rx_buf_len = page)?;
    expect_result("buffers of a page", got, 0)?;
    Ok(Outcome::Passed)
}

/// Turns a registration into one for the device with this index.
fn on_device(index: u32) -> impl FnOnce(&mut Registration) {
    move |r| {
        r.reg.flags = 0;
        r.reg.if_idx = index;
    }
}

/// Returns the index of an existing network device.
fn device(name: &str) -> anyhow::Result<u32> {
    Ok(nix::net::if_::if_nametoindex(name)?)
}

/// Checks that a device that does not exist gives ENODEV, and lo, dummy and veth give
/// EOPNOTSUPP.
fn unsuitable_devices_are_refused() -> TestResult {
    let ring = WideRing::new(2)?;
    for (what, index, want) in [
        ("no device", 0, libc::ENODEV),
        ("an unknown device", 12345, libc::ENODEV),
        ("an index that is negative in C", 1 << 31, libc::ENODEV),
        ("the last index", u32::MAX, libc::ENODEV),
        ("lo", device("lo")?, libc::EOPNOTSUPP),
        ("dummy0", device("dummy0")?, libc::EOPNOTSUPP),
    ] {
        refused(&ring, what, -want, on_device(index))?;
    }
    unshare(CloneFlags::CLONE_NEWNET)?;
    nic::run("ip link add veth0 type veth peer veth1", None)?;
    let veth = on_device(device("veth0")?);
    refused(&ring, "veth", -libc::EOPNOTSUPP, veth)?;
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a device of another network namespace gives ENODEV.
fn device_of_another_namespace_is_not_found() -> TestResult {
    let index = device("dummy0")?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    let ring = WideRing::new(2)?;
    refused(&ring, "a device elsewhere", -libc::ENODEV, on_device(index))?;
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a ring receives into two queues.
fn ring_can_have_two_queues() -> TestResult {
    let mut ring = WideRing::new(8)?;
    let first = Ifq::new(ring.fd(), 64, 8)?;
    let second = Ifq::new(ring.fd(), 16, 4)?;
    expect_eq("ids", (first.id, second.id), (0, 1))?;
    for _ in 0..2 {
        transfer(&mut ring, &first, 3 * PAGE_SIZE)?;
        transfer(&mut ring, &second, 5 * PAGE_SIZE + 1)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a queue that is registered while the ring is disabled works once it is
/// enabled.
fn disabled_ring_can_have_a_queue() -> TestResult {
    let mut ring = WideRing::with(8, 0, ZCRX_SETUP | IORING_SETUP_R_DISABLED)?;
    let ifq = Ifq::new(ring.fd(), 64, 8)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    transfer(&mut ring, &ifq, 2 * PAGE_SIZE)?;
    Ok(Outcome::Passed)
}

/// Queries the kernel. Returns the answer, which must have `size` bytes, as words.
fn query(fd: RawFd, number: u32, size: u32) -> anyhow::Result<[u32; 12]> {
    let mut answer = [0u32; 12];
    // This is `struct io_uring_query_hdr`.
    let mut header = [0u32; 10];
    let to = &raw mut answer as u64;
    header[2] = to as u32;
    header[3] = (to >> 32) as u32;
    header[4] = number;
    header[5] = size;
    let got = register(fd, IORING_REGISTER_QUERY, header.as_mut_ptr().cast(), 0);
    expect_result("query", got, 0)?;
    expect_eq("size and result", (header[5], header[6]), (size, 0))?;
    Ok(answer)
}

/// Checks that IORING_REGISTER_QUERY returns the flags, operations, sizes and events of
/// zero-copy receive, with and without a ring.
fn query_describes_the_interface() -> TestResult {
    let ring = WideRing::new(2)?;
    for fd in [TASK, ring.fd()] {
        let want = [3, 0, 1, 0, 4, 3, 2 * TAIL as u32, TAIL as u32, 0, 0, 0, 0];
        expect_eq("zcrx", query(fd, 1, 40)?, want)?;
        let want = [3, 16, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        expect_eq("events of zcrx", query(fd, 3, 48)?, want)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a task that is not the submitter of the ring gets EEXIST.
fn only_the_submitter_task_may_register() -> TestResult {
    let ring = WideRing::new(2)?;
    sandbox::in_child(|| {
        let got = offer(ring.fd(), |_| {})?;
        expect_result("of another task", got, -libc::EEXIST)
    })?;
    none_so_far(&ring)?;
    Ok(Outcome::Passed)
}

/// Checks that a restricted ring registers queues only if its list says so.
fn restrictions_of_a_ring_apply() -> TestResult {
    let enable = Restriction::register_op(IORING_REGISTER_ENABLE_RINGS);
    for (what, more, want) in [
        ("not listed", None, -libc::EACCES),
        (
            "listed",
            Some(Restriction::register_op(IORING_REGISTER_ZCRX_IFQ)),
            0,
        ),
    ] {
        let ring = WideRing::with(2, 0, ZCRX_SETUP | IORING_SETUP_R_DISABLED)?;
        let list: Vec<_> = [enable].into_iter().chain(more).collect();
        expect_result("restricting", register::restrict_ring(ring.fd(), &list), 0)?;
        expect_result("enabling", register::enable(ring.fd()), 0)?;
        expect_result(what, offer(ring.fd(), |_| {})?, want)?;
    }
    Ok(Outcome::Passed)
}
