// SPDX-License-Identifier: GPL-2.0
//! D10: the provider in whose memory a packet lies. A queue hands out what a device
//! received into the queue's own buffers, and nothing in the memory of another
//! provider, be that a queue of the same device, one of another device, or a dma-buf.

use std::fs;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_receive::roomy_ring;
use super::zcrx_sharing::{export_of, import_into};
use super::{Outcome, Test, TestResult, tests};
use crate::devmem::Devmem;
use crate::kernel::{expect_eq, expect_result, has_option};
use crate::nic::{self, Nic, PEER, QUEUE};
use crate::register::PAGE_SIZE;
use crate::stream::{Stream, ended, expect_free};
use crate::wide::WideRing;
use crate::zcrx::{Ifq, memory, pinned, recv_zc};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::provider" {
        ZN42 data_of_another_queue_is_refused;
        ZN43 data_of_another_device_is_refused (30 s);
        ZN44 data_in_a_foreign_dmabuf_is_refused (30 s);
    }
};

/// The queue next to [`QUEUE`].
const OTHER: u32 = QUEUE + 1;
/// The number of bytes sent at once: a few fragments, so that TCP can merge packets.
const SOME: usize = 2 * PAGE_SIZE;
/// The `user_data` of requests for the streams.
const STREAM: u64 = 0x5eed;

/// A queue and the ring that it is registered with.
struct Receiver {
    ring: WideRing,
    ifq: Ifq,
}

impl Receiver {
    /// Registers a queue of the first port with a new ring.
    fn of(nic: &Nic, queue: u32) -> anyhow::Result<Self> {
        let ring = roomy_ring()?;
        let ifq = nic.ifq_of(queue, &ring, ENTRIES, BUFFERS)?;
        Ok(Receiver { ring, ifq })
    }

    /// Receives without a limit. Checks that this takes exactly `bytes` bytes, which
    /// are compared, and ends with `errno` for what comes next.
    fn stops_after(&mut self, stream: &mut Stream, bytes: usize, errno: i32) -> anyhow::Result<()> {
        let left = stream.untaken();
        self.ring.push(stream.recv(&self.ifq, 0))?;
        let last = stream.take_until_end(&mut self.ring, &self.ifq)?;
        expect_eq("the end", last, ended(STREAM, -errno))?;
        expect_eq("bytes taken", left - stream.untaken(), bytes)
    }

    /// Checks that receives of a stream get nothing but an error.
    fn gets_nothing(&mut self, stream: &mut Stream) -> anyhow::Result<()> {
        for len in [0, 1, SOME] {
            self.ring.push(stream.recv(&self.ifq, len))?;
            let got = self.ring.cqe()?;
            let what = format!("of {len} bytes");
            expect_eq(&what, got, ended(STREAM, -libc::EFAULT))?;
            self.ring.submit()?;
            expect_eq(&what, self.ring.try_cqe(), None)?;
        }
        stream.wait_arrived()
    }

    /// Receives all that is left of a stream.
    fn takes_all(&mut self, stream: &mut Stream) -> anyhow::Result<()> {
        let left = stream.untaken();
        self.ring.push(stream.recv(&self.ifq, left))?;
        let last = stream.take_until_end(&mut self.ring, &self.ifq)?;
        expect_eq("the end", last, ended(STREAM, 0))?;
        expect_eq("bytes left", stream.untaken(), 0)
    }
}

/// Returns the number of times that TCP has merged a packet into one that waited to be
/// read.
fn coalesced() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/net/netstat")?;
    let mut lines = text.lines().filter(|line| line.starts_with("TcpExt:"));
    let names = lines.next().context("no names")?.split_whitespace();
    let values = lines.next().context("no values")?.split_whitespace();
    let mut pairs = names.zip(values);
    let (_, value) = pairs
        .find(|(name, _)| *name == "TCPRcvCoalesce")
        .context("no TCPRcvCoalesce")?;
    Ok(value.parse()?)
}

/// Sends over a queue, which must receive the data in memory of its provider.
fn send_by(nic: &Nic, queue: u32, stream: &mut Stream) -> anyhow::Result<()> {
    nic.steer(queue)?;
    let before = nic.counts_of(queue)?;
    stream.send(SOME)?;
    let after = nic.counts_of(queue)?;
    ensure!(
        after.niov_frags >= before.niov_frags + 2 && after.page_frags == before.page_frags,
        "queue {queue}: {before:?}, {after:?}"
    );
    Ok(())
}

/// Checks that all buffers of two queues of the first port are free once the port is
/// down.
fn expect_conserved(nic: &Nic, receivers: [&mut Receiver; 2]) -> anyhow::Result<()> {
    for receiver in &receivers {
        receiver.ifq.flush_all(receiver.ring.fd())?;
    }
    nic.down()?;
    nic::wait_drained()?;
    for receiver in receivers {
        expect_free(&mut receiver.ring, &receiver.ifq, BUFFERS)?;
    }
    nic.up()
}

/// Checks that packets in the memory of another queue of the device give EFAULT and
/// stay, and each queue receives what is in its own.
fn data_of_another_queue_is_refused() -> TestResult {
    let nic = Nic::new()?;
    let mut own = Receiver::of(&nic, QUEUE)?;
    let mut other = Receiver::of(&nic, OTHER)?;
    let ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), ENTRIES, BUFFERS)?;
    let mut without_device = Receiver { ring, ifq };

    // All the data is in the memory of one queue.
    let mut stream = nic.stream(STREAM)?;
    send_by(&nic, QUEUE, &mut stream)?;
    other.gets_nothing(&mut stream)?;
    without_device.gets_nothing(&mut stream)?;
    own.takes_all(&mut stream)?;
    // Here the receive is waiting before the data arrives.
    other.ring.push(stream.recv(&other.ifq, 0))?;
    other.ring.submit()?;
    expect_eq("before", other.ring.try_cqe(), None)?;
    send_by(&nic, QUEUE, &mut stream)?;
    let got = other.ring.cqe()?;
    expect_eq("as it arrives", got, ended(STREAM, -libc::EFAULT))?;
    own.takes_all(&mut stream)?;

    // The queues' data alternates, and TCP merges as many packets as it can.
    let before = coalesced()?;
    for queue in [QUEUE, OTHER, QUEUE, OTHER, OTHER] {
        send_by(&nic, queue, &mut stream)?;
    }
    let packets = coalesced()? - before;
    ensure!(packets >= 4, "{packets} packets were added to others");
    other.gets_nothing(&mut stream)?;
    own.stops_after(&mut stream, SOME, libc::EFAULT)?;
    own.gets_nothing(&mut stream)?;
    other.stops_after(&mut stream, SOME, libc::EFAULT)?;
    own.stops_after(&mut stream, SOME, libc::EFAULT)?;
    without_device.gets_nothing(&mut stream)?;
    other.takes_all(&mut stream)?;

    // Data that was copied before an error stays received.
    nic.steer(QUEUE)?;
    nic.set("page_frags", -1)?;
    stream.send(SOME)?;
    nic.set("page_frags", 0)?;
    send_by(&nic, QUEUE, &mut stream)?;
    without_device.stops_after(&mut stream, SOME, libc::EFAULT)?;
    own.takes_all(&mut stream)?;

    // A ring that imports the queue receives its data.
    send_by(&nic, QUEUE, &mut stream)?;
    let file = export_of(&own.ring, own.ifq.id)?;
    import_into(&without_device.ring, &file, 1)?;
    drop(file);
    let socket = stream.receiver.as_raw_fd();
    let receive = recv_zc(socket, 1, SOME as u32).user_data(STREAM);
    without_device.ring.push(receive)?;
    while stream.untaken() != 0 {
        let cqe = without_device.ring.cqe()?;
        own.ifq.return_buffer(stream.take(&own.ifq, &cqe)?);
    }
    let last = without_device.ring.cqe()?;
    expect_eq("the end", last, ended(STREAM, 0))?;

    drop(stream);
    expect_conserved(&nic, [&mut own, &mut other])?;
    expect_free(&mut without_device.ring, &without_device.ifq, BUFFERS)?;
    drop((own, other, without_device));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that packets in the memory of another device's queue give EFAULT and stay,
/// even after that queue has ended.
fn data_of_another_device_is_refused() -> TestResult {
    let nic = Nic::new()?;
    let mut here = Receiver::of(&nic, QUEUE)?;
    // Everything that the other device receives comes over its queue.
    nic.peer_ip("link set lo up")?;
    nic.peer_ethtool("-G zsim1 tcp-data-split on")?;
    nic.peer_ethtool("-X zsim1 weight 0 1 0 0")?;
    let mut there = nic.in_peer_namespace(|| {
        let (ring, area) = (roomy_ring()?, memory(BUFFERS)?);
        let mut registration = nic.registration(ENTRIES, &area);
        registration.reg.if_idx = nix::net::if_::if_nametoindex(PEER)?;
        expect_result("registering", registration.register(ring.fd()), 0)?;
        let ifq = Ifq::attach(ring.fd(), registration, area)?;
        Ok(Receiver { ring, ifq })
    })?;
    expect_eq("pinned", pinned()?, 2 * BUFFERS)?;

    let (sender, receiver): (TcpStream, TcpStream) = nic.connect_to("10.9.0.1")?;
    let back = (receiver.try_clone()?, sender.try_clone()?);
    let mut stream = Stream::over((sender, receiver), STREAM);
    send_by(&nic, QUEUE, &mut stream)?;
    there.gets_nothing(&mut stream)?;
    here.takes_all(&mut stream)?;

    // The same holds in the other direction.
    let mut back = Stream::over(back, STREAM);
    back.send(SOME)?;
    here.gets_nothing(&mut back)?;
    there.takes_all(&mut back)?;

    // Unread packets in the memory of the other queue do not harm this one.
    back.send(SOME)?;
    drop(there);
    here.gets_nothing(&mut back)?;
    send_by(&nic, QUEUE, &mut stream)?;
    here.takes_all(&mut stream)?;
    drop((stream, back));
    nic.in_peer_namespace(nic::wait_drained)?;
    nic::wait_pinned(BUFFERS)?;
    nic.expect_conserved(&mut here.ring, &here.ifq, BUFFERS)?;
    drop(here);
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that packets in a dma-buf that was bound for devmem TCP give EFAULT, and
/// recvmsg(2) receives them.
fn data_in_a_foreign_dmabuf_is_refused() -> TestResult {
    if !has_option("CONFIG_NET_DEVMEM") {
        let reason = "the kernel has no CONFIG_NET_DEVMEM";
        return Ok(Outcome::Skipped(reason.to_string()));
    }
    let nic = Nic::new()?;
    let mut own = Receiver::of(&nic, QUEUE)?;
    let foreign = Devmem::bind(nic.index, OTHER, BUFFERS)?;

    let mut stream = nic.stream(STREAM)?;
    send_by(&nic, OTHER, &mut stream)?;
    own.gets_nothing(&mut stream)?;
    // The data can be received in the way that fits its memory.
    foreign.take(&mut stream, SOME)?;

    // The data of this queue is in the middle. The kernel finds it merged with the last
    // packet's.
    let before = coalesced()?;
    for queue in [OTHER, QUEUE, OTHER] {
        send_by(&nic, queue, &mut stream)?;
    }
    let packets = coalesced()? - before;
    ensure!(packets >= 2, "{packets} packets were added to others");
    own.gets_nothing(&mut stream)?;
    foreign.take(&mut stream, SOME)?;
    own.stops_after(&mut stream, SOME, libc::EFAULT)?;
    own.gets_nothing(&mut stream)?;
    expect_eq("bytes left", stream.untaken(), SOME)?;

    drop((stream, foreign));
    nic.expect_conserved(&mut own.ring, &own.ifq, BUFFERS)?;
    // The queue that had the dma-buf can be registered.
    let mut other = Receiver::of(&nic, OTHER)?;
    let mut stream = nic.stream(STREAM)?;
    send_by(&nic, OTHER, &mut stream)?;
    own.gets_nothing(&mut stream)?;
    other.takes_all(&mut stream)?;
    drop(stream);
    expect_conserved(&nic, [&mut own, &mut other])?;
    drop((own, other));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    nic.steer(QUEUE)?;
    works(&nic)?;
    Ok(Outcome::Passed)
}
