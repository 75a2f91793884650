// SPDX-License-Identifier: GPL-2.0
//! D10: registering queues of a network device, and receiving into them without a copy.
//! Their end is in `zcrx_device_end`, tests of single buffers are in
//! `zcrx_device_buffers`.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{self, Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::netdev;
use crate::nic::{self, Nic, QUEUE, QUEUES};
use crate::register::PAGE_SIZE;
use crate::sandbox::{self, Sysctl};
use crate::wide::{Mapping, WideRing, ZCRX_SETUP};
use crate::xdp;
use crate::zcrx::{
    EventDesc, Ifq, RQES, Registration, Stats, ZCRX_EVENT_DESC_FLAG_STATS, memory, pinned,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::device" {
        ZN01 data_is_not_copied (40 s);
        ZN02 unsuitable_devices_and_queues_are_refused;
        ZN03 driver_that_ignores_the_provider_is_refused;
        ZN04 large_buffers_must_be_contiguous;
        ZN05 unsuitable_pools_are_refused;
        ZN06 netlink_reports_queue_and_pool;
        ZN25 buffers_larger_than_a_dma_segment_are_refused;
        ZN22 channels_of_a_bound_queue_cannot_be_removed;
        ZN50 packets_follow_their_receiver_to_its_cpu;
        ZN52 closed_queues_leave_no_memory_charged (60 s);
    }
};

/// The number of buffers that most tests register.
pub const BUFFERS: usize = 512;
/// The number of entries of their refill queues, which have room for all buffers at
/// once.
pub const ENTRIES: u32 = 512;

/// Checks that all data over a device, IPv4 and IPv6, with and without hardware GRO,
/// arrives in the area without a copy.
fn data_is_not_copied() -> TestResult {
    let len = if kernel::is_debug() { 1 } else { 4 } << 20;
    let nic = Nic::new()?;
    let mut ring = WideRing::with(8, 8192, ZCRX_SETUP)?;
    // With this many buffers no packet is dropped when the receiver is late.
    let area = memory(4096)?;
    let mut registration = nic.registration(4096, &area);
    let stats = RQES + 16 * 4096;
    registration.event = EventDesc {
        flags: ZCRX_EVENT_DESC_FLAG_STATS,
        stats_offset: stats as u64,
        ..Default::default()
    };
    registration.with_event = true;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    expect_eq("size", registration.reg.rx_buf_len, PAGE_SIZE as u32)?;
    let ifq = Ifq::attach(ring.fd(), registration, area)?;

    for (address, mtu, segments) in [
        ("10.9.0.1", 1500, "off"),
        ("10.9.0.1", 1500, "on"),
        ("fd09::1", 9000, "off"),
        ("fd09::1", 9000, "on"),
    ] {
        let what = format!("{address}, MTU {mtu}, hardware GRO {segments}");
        nic.set_mtu(mtu)?;
        nic.ethtool(&format!("-K zsim0 rx-gro-hw {segments}"))?;
        let completions = nic.zero_copy_to(address, &mut ring, &ifq, len)?;
        ensure!(
            completions >= (len / PAGE_SIZE) as u64,
            "{what}: {completions}"
        );
    }
    let copied: Stats = ifq.refill.memory.read(stats);
    expect_eq("copied", copied, Stats::default())?;
    nic.expect_conserved(&mut ring, &ifq, 4096)?;
    Ok(Outcome::Passed)
}

/// Checks that a registration of the queue with one change is refused, and leaves
/// nothing behind.
pub fn refused(
    nic: &Nic,
    what: &str,
    want: i32,
    change: impl FnOnce(&mut Registration),
) -> anyhow::Result<()> {
    let ring = WideRing::new(2)?;
    let area = memory(8)?;
    let mut registration = nic.registration(64, &area);
    change(&mut registration);
    expect_result(what, registration.register(ring.fd()), -want)?;
    let what = format!("after {what}");
    expect_eq(&what, pinned()?, 0)?;
    expect_eq(&what, nic.provided()?, None)?;
    expect_eq(&what, netdev::provided_pools()?.len(), 0)
}

/// Checks that the queue can be registered, and works.
pub fn works(nic: &Nic) -> anyhow::Result<()> {
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    drop((ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)
}

/// Checks that header split that is off, queues that do not exist, are taken or have
/// XDP or AF_XDP give errors, and a taken queue keeps its settings.
fn unsuitable_devices_and_queues_are_refused() -> TestResult {
    let nic = Nic::new()?;
    for split in ["off", "auto"] {
        nic.ethtool(&format!("-G zsim0 tcp-data-split {split}"))?;
        refused(&nic, split, libc::EINVAL, |_| {})?;
    }
    nic.ethtool("-G zsim0 tcp-data-split on")?;
    netdev::set_split_threshold(nic.index, 1)?;
    refused(&nic, "a threshold", libc::EINVAL, |_| {})?;
    netdev::set_split_threshold(nic.index, 0)?;

    for queue in [QUEUES, QUEUES + 1, u32::MAX - 1] {
        let what = format!("queue {queue}");
        refused(&nic, &what, libc::ERANGE, |r| r.reg.if_rxq = queue)?;
    }

    let program = xdp::attach(nic.index)?;
    refused(&nic, "an XDP program", libc::EEXIST, |_| {})?;
    drop(program);
    let socket = xdp::Socket::new()?;
    expect_result("AF_XDP", socket.bind(nic.index, QUEUE), 0)?;
    refused(&nic, "AF_XDP", libc::EBUSY, |_| {})?;
    drop(socket);
    // The socket is taken down later, when nothing reads its state any more.
    nic::wait_until("the socket's queue is free", || {
        let ring = WideRing::new(2)?;
        let area = memory(8)?;
        let got = nic.registration(64, &area).register(ring.fd());
        drop(ring);
        nic.wait_released()?;
        Ok(got == 0)
    })?;
    nic::wait_pinned(0)?;

    let ring = WideRing::new(2)?;
    let ifq = nic.ifq(&ring, 64, 8)?;
    let (other, area) = (WideRing::new(2)?, memory(8)?);
    for fd in [ring.fd(), other.fd()] {
        let got = nic.registration(64, &area).register(fd);
        expect_result("a queue that is taken", got, -libc::EEXIST)?;
    }
    expect_eq("pinned", pinned()?, 8)?;
    nic.ethtool_fails("-G zsim0 tcp-data-split off", "memory provider")?;
    ensure!(
        netdev::set_split_threshold(nic.index, 1).is_err(),
        "a threshold while the queue is taken"
    );
    ensure!(
        xdp::attach(nic.index).is_err(),
        "an XDP program while the queue is taken"
    );
    // Another queue of the same device is free.
    let mut registration = nic.registration(64, &area);
    registration.reg.if_rxq = QUEUE + 1;
    expect_result("another queue", registration.register(other.fd()), 0)?;
    drop((other, ifq, ring));
    nic.wait_released()?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that a driver that does not use the memory of the provider gives ENODATA.
fn driver_that_ignores_the_provider_is_refused() -> TestResult {
    let nic = Nic::new()?;
    nic.set("ignore_provider", 1)?;
    refused(&nic, "ignored", libc::ENODATA, |_| {})?;
    nic.set("ignore_provider", 0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Maps memory no two successive pages of which are physically adjacent: every other
/// page of memory that may be adjacent.
fn scattered(pages: usize) -> anyhow::Result<Mapping> {
    let from = memory(2 * pages)?;
    let to = memory(pages)?;
    // SAFETY: the mapping is this function's, and keeps its contents.
    unsafe { libc::madvise(from.address().cast(), from.len(), libc::MADV_NOHUGEPAGE) };
    for page in 0..2 * pages {
        from.write(page * PAGE_SIZE, page);
    }
    for page in 0..pages {
        // SAFETY: the call moves a page of one mapping of this function over a page of
        // another.
        let got = unsafe {
            libc::mremap(
                from.address().add(2 * page * PAGE_SIZE).cast(),
                PAGE_SIZE,
                PAGE_SIZE,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                to.address().add(page * PAGE_SIZE).cast::<libc::c_void>(),
            )
        };
        ensure!(got != libc::MAP_FAILED, "mremap failed");
    }
    Ok(to)
}

/// Checks that buffers of two pages need a driver that supports them and contiguous
/// memory, and then hold more than a page each.
fn large_buffers_must_be_contiguous() -> TestResult {
    const LARGE: u32 = 2 * PAGE_SIZE as u32;
    let nic = Nic::new()?;
    let _pages = Sysctl::set("vm/nr_hugepages", "4")?;
    let huge = || Mapping::anonymous(4 << 20, libc::MAP_HUGETLB).context("huge pages");
    let large = |r: &mut Registration| r.reg.rx_buf_len = LARGE;
    refused(&nic, "half a page", libc::EINVAL, |r| {
        r.reg.rx_buf_len = 2048
    })?;
    // A driver without support for other sizes refuses every size that is given, even
    // that of a page.
    nic.set("large_buffers", 0)?;
    let area = huge()?;
    for size in [PAGE_SIZE as u32, LARGE] {
        refused(&nic, "unsupported", libc::EOPNOTSUPP, |r| {
            r.area.addr = area.address() as u64;
            r.area.len = area.len() as u64;
            r.reg.rx_buf_len = size;
        })?;
    }
    drop(area);
    nic.set("large_buffers", 1)?;

    let ring = WideRing::new(2)?;
    let area = scattered(64)?;
    let mut registration = nic.registration(64, &area);
    large(&mut registration);
    let got = registration.register(ring.fd());
    // An IOMMU maps the pieces to one contiguous range.
    let want = if nic::behind_iommu()? {
        0
    } else {
        -libc::ERANGE
    };
    expect_result("scattered", got, want)?;
    expect_eq("pinned", pinned()?, if want == 0 { 64 } else { 0 })?;
    drop(ring);
    nic.wait_released()?;
    nic::wait_pinned(0)?;

    let area = huge()?;
    let buffers = area.len() / LARGE as usize;
    let mut ring = roomy_ring()?;
    let mut registration = nic.registration(ENTRIES, &area);
    large(&mut registration);
    expect_result("huge pages", registration.register(ring.fd()), 0)?;
    expect_eq("size", registration.reg.rx_buf_len, LARGE)?;
    expect_eq("of the queue", nic.provided()?, Some(LARGE.into()))?;
    let ifq = Ifq::attach(ring.fd(), registration, area)?;
    nic.set_mtu(9000)?;
    let completions = nic.zero_copy(&mut ring, &ifq, 4 << 20)?;
    // The buffers must hold more than a page each.
    ensure!(
        completions < (4 << 20) / PAGE_SIZE as u64,
        "{completions} completions"
    );
    nic.expect_conserved(&mut ring, &ifq, buffers)?;
    drop((ifq, ring));
    nic.wait_released()?;

    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that buffers larger than the device's longest DMA segment give ERANGE.
///
/// In C, they are accepted, and the DMA debugger reports them; with it, the test is
/// skipped.
fn buffers_larger_than_a_dma_segment_are_refused() -> TestResult {
    const LONGEST: u32 = 64 << 10;
    let rust = zcrx_implementation() == Implementation::Rust;
    if !rust && Path::new("/sys/kernel/debug/dma-api").exists() {
        return Ok(Outcome::Skipped(
            "the DMA debugger complains of what C does".to_string(),
        ));
    }
    let _at_once = nic::free_packets_at_once()?;
    // Sockets are charged for whole buffers, and drop packets beyond their limit.
    let _room = Sysctl::set("net/ipv4/tcp_rmem", "4096 8388608 8388608")?;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let _pages = Sysctl::set("vm/nr_hugepages", "4")?;
    let huge = || Mapping::anonymous(4 << 20, libc::MAP_HUGETLB).context("huge pages");
    nic.set("max_seg_size", LONGEST.into())?;
    for (size, longer) in [(LONGEST, false), (2 * LONGEST, true)] {
        let what = format!("{size} bytes");
        let area = huge()?;
        let buffers = area.len() / size as usize;
        let mut ring = roomy_ring()?;
        let mut registration = nic.registration(ENTRIES, &area);
        registration.reg.rx_buf_len = size;
        let got = registration.register(ring.fd());
        if longer && rust {
            expect_result(&what, got, -libc::ERANGE)?;
            expect_eq(&what, nic.provided()?, None)?;
            expect_eq("pinned", pinned()?, 0)?;
            continue;
        }
        expect_result(&what, got, 0)?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        nic.set_ring(16)?;
        // The smallest packet takes a whole buffer, so that fewer bytes than the area has
        // may be under way.
        let before = nic.counts()?;
        let mut stream = nic.stream(1)?;
        ring.push(stream.recv(&ifq, 0))?;
        for _ in 0..16 {
            stream.send(LONGEST as usize)?;
            stream.take_all(&mut ring, &ifq)?;
        }
        stream.end(&mut ring)?;
        let after = nic.counts()?;
        expect_eq("without a buffer", after.no_buffer, before.no_buffer)?;
        expect_eq("fragments in pages", after.page_frags, before.page_frags)?;
        nic.expect_conserved(&mut ring, &ifq, buffers)?;
        drop((ifq, ring));
        nic.wait_released()?;
        nic::wait_pinned(0)?;
    }
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that a driver whose page pool has larger buffers gives EINVAL, and one that
/// sends from its pool EOPNOTSUPP.
fn unsuitable_pools_are_refused() -> TestResult {
    let nic = Nic::new()?;
    for (knob, want) in [
        ("pool_order", libc::EINVAL),
        ("pool_bidirectional", libc::EOPNOTSUPP),
    ] {
        nic.set(knob, 1)?;
        refused(&nic, knob, want, |_| {})?;
        nic.set(knob, 0)?;
    }
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that netlink reports the provider, NAPI and buffer size of the queue and of
/// its page pool, and neither while the device is down.
fn netlink_reports_queue_and_pool() -> TestResult {
    let nic = Nic::new()?;
    let size = Some(PAGE_SIZE as u64);
    expect_eq("queues", netdev::queues(nic.index)?.len(), QUEUES as usize)?;
    expect_eq("before", nic.provided()?, None)?;
    expect_eq("pools before", netdev::provided_pools()?.len(), 0)?;

    let ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    for queue in netdev::queues(nic.index)? {
        let want = size.filter(|_| queue.id == u64::from(QUEUE));
        expect_eq(&format!("queue {}", queue.id), queue.buffer, want)?;
        if queue.buffer.is_some() {
            let pools = netdev::provided_pools()?;
            expect_eq("pools", pools.len(), 1)?;
            expect_eq("size", Some(pools[0].buffer), size)?;
            expect_eq("device", pools[0].index, Some(nic.index.into()))?;
            ensure!(queue.napi.is_some(), "the queue has no NAPI");
            expect_eq("NAPI", pools[0].napi, queue.napi)?;
            // The ring has its buffers, and the pool has some more in its cache.
            ensure!(
                pools[0].inflight >= nic::RING as u64 && !pools[0].detached,
                "{:?}",
                pools[0]
            );
        }
    }
    // A device that is down has neither queues nor pools.
    nic.down()?;
    expect_eq("queues while down", netdev::queues(nic.index)?.len(), 0)?;
    expect_eq("pools while down", netdev::provided_pools()?.len(), 0)?;
    nic.up()?;
    expect_eq("when up again", nic.provided()?, size)?;
    expect_eq("pools when up", netdev::provided_pools()?.len(), 1)?;
    drop((ifq, ring));
    nic.wait_released()?;
    Ok(Outcome::Passed)
}

/// Checks that the channels of the device cannot be reduced below a bound queue.
fn channels_of_a_bound_queue_cannot_be_removed() -> TestResult {
    let nic = Nic::new()?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    // No rule may be the reason for the refusal.
    for line in nic.ethtool("-n zsim0")?.lines() {
        if let Some(rule) = line.strip_prefix("Filter: ") {
            nic.ethtool(&format!("-N zsim0 delete {rule}"))?;
        }
    }
    // The core demands one channel more than the queue needs.
    for channels in [1, 2] {
        let setting = format!("-L zsim0 combined {channels}");
        nic.ethtool_fails(&setting, "memory provider")?;
        expect_eq("still there", nic.provided()?, Some(PAGE_SIZE as u64))?;
    }
    nic.ethtool("-L zsim0 combined 3")?;
    nic.ethtool("-N zsim0 flow-type tcp4 dst-port 9000 action 1")?;
    nic.zero_copy(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    nic.expect_conserved(&mut ring, &ifq, BUFFERS)?;
    Ok(Outcome::Passed)
}

/// Returns the number of packets that other CPUs have passed on to CPU `number`, because
/// their receiver runs there.
fn steered_to(number: usize) -> anyhow::Result<u64> {
    const RECEIVED_RPS: usize = 9;
    let statistics = fs::read_to_string("/proc/net/softnet_stat")?;
    let line = statistics.lines().nth(number).context("no such CPU")?;
    let count = line.split_whitespace().nth(RECEIVED_RPS);
    Ok(u64::from_str_radix(count.context(line.to_string())?, 16)?)
}

/// Checks that receiving tells the kernel on which CPU it does, so that receive flow
/// steering has the next packets processed there.
fn packets_follow_their_receiver_to_its_cpu() -> TestResult {
    const FLOWS: &str = "/sys/class/net/zsim0/queues";
    const ROUNDS: u64 = 20;
    let nic = Nic::new()?;
    let _steering = Sysctl::set("net/core/rps_sock_flow_entries", "256")?;
    fs::write(format!("{FLOWS}/rx-{QUEUE}/rps_flow_cnt"), "256")?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    // Accepting the connection also tells where its receiver is.
    sandbox::stay_on_cpu(0)?;
    let mut stream = nic.stream(1)?;
    ring.push(stream.recv(&ifq, 0))?;
    ring.submit()?;
    let before = steered_to(1)?;
    for _ in 0..ROUNDS {
        // The device receives on the CPU that sends.
        sandbox::stay_on_cpu(0)?;
        stream.send(100)?;
        sandbox::stay_on_cpu(1)?;
        stream.take_all(&mut ring, &ifq)?;
    }
    // The first packet comes before the first receive.
    let steered = steered_to(1)? - before;
    ensure!(
        steered >= ROUNDS / 2,
        "{steered} of {ROUNDS} packets were steered"
    );
    stream.end(&mut ring)?;
    Ok(Outcome::Passed)
}

/// Checks that queues that come and go leave no memory of the kernel charged to the
/// memory cgroup of their process.
fn closed_queues_leave_no_memory_charged() -> TestResult {
    const ROUNDS: usize = 64;
    /// The number of pages. As none of them are adjacent, the table of their addresses
    /// takes 32 bytes for each.
    const PAGES: usize = 2048;
    /// A quarter of what the tables of all rounds take. The kernel charges memory in
    /// advance for each CPU.
    const SLACK: u64 = (ROUNDS * PAGES * 32 / 4) as u64;
    let nic = Nic::new()?;
    let group = sandbox::MemoryGroup::new()?;
    sandbox::in_child(|| {
        group.enter()?;
        let area = scattered(PAGES)?;
        let come_and_go = || {
            let ring = WideRing::new(2)?;
            let got = nic.registration(ENTRIES, &area).register(ring.fd());
            expect_result("registering", got, 0)?;
            drop(ring);
            nic.wait_released()?;
            nic::wait_pinned(0)
        };
        come_and_go()?;
        let charged = group.charged()?;
        for _ in 0..ROUNDS {
            come_and_go()?;
        }
        group.falls_to(charged + SLACK, kernel::limit(10))
    })?;
    group.remove()?;
    works(&nic)?;
    Ok(Outcome::Passed)
}
