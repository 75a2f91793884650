// SPDX-License-Identifier: GPL-2.0
//! ST: queues of a network device under traffic while everything around them changes:
//! areas, rings, processes, the queue, and the device itself.

use std::io::{ErrorKind, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_device_end::add_area;
use super::zcrx_events::{EVENT, arm};
use super::zcrx_receive::roomy_ring;
use super::zcrx_sharing::{export_of, import_into, receive_file, send_file};
use super::{NOTE, Outcome, Test, TestResult, is_long, tests};
use crate::kernel::{expect_eq, expect_result, is_debug};
use crate::netdev;
use crate::nic::{self, Nic, PORT};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::sandbox::{self, killed, pins};
use crate::wide::{Mapping, WideCqe, WideRing, ZCRX_SETUP};
use crate::zcrx::{AREA_SHIFT, Ifq, RefillQueue, ZCRX_EVENT_ALLOC_FAIL, memory, recv_zc};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::stress" {
        ST09 areas_events_and_dumps_under_traffic (60 s);
        ST10 device_and_process_end_under_traffic (120 s);
        ST11 queue_restarts_under_traffic (120 s);
        ST14 process_ends_while_another_has_its_queue (60 s);
        ST17 long_stream_arrives_intact (1800 s);
    }
};

/// The length of the block that the streams repeat. Nothing else has a size that
/// divides it.
const BLOCK: usize = 1_000_003;

fn block() -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(super::seed());
    (0..BLOCK).map(|_| rng.u8(..)).collect()
}

/// Starts a thread that sends `len` bytes of repeated blocks and then shuts the sender
/// down. It is no failure if the connection ends early.
fn send_blocks(mut sender: TcpStream, len: usize) -> JoinHandle<anyhow::Result<()>> {
    thread::spawn(move || {
        let block = block();
        let mut sent = 0;
        while sent < len {
            let part = BLOCK.min(len - sent);
            match sender.write_all(&block[..part]) {
                Ok(()) => sent += part,
                Err(error) if error.kind() == ErrorKind::BrokenPipe => return Ok(()),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        sender.shutdown(Shutdown::Write)?;
        Ok(())
    })
}

/// Compares received data with the repeated block, in any number of areas.
struct Receiver {
    block: Vec<u8>,
    taken: usize,
    /// The address of each area, and its size in bytes.
    areas: Vec<(usize, usize)>,
}

impl Receiver {
    fn new(ifq: &Ifq) -> Self {
        Receiver {
            block: block(),
            taken: 0,
            areas: vec![(ifq.area.address() as usize, ifq.area.len())],
        }
    }

    /// Compares the data of a completion with the block. Returns its offset.
    fn take(&mut self, cqe: &WideCqe) -> anyhow::Result<u64> {
        let offset = cqe.offset()?;
        let number = (offset >> AREA_SHIFT) as usize;
        let (address, size) = *self.areas.get(number).context("no such area")?;
        let at = (offset & ((1 << AREA_SHIFT) - 1)) as usize;
        let mut len = usize::try_from(cqe.res)?;
        ensure!(at + len <= size, "{cqe:x?} is behind its area");
        let mut address = address + at;
        while len != 0 {
            let from = self.taken % BLOCK;
            let part = len.min(BLOCK - from);
            // SAFETY: the data is inside memory that stays mapped, and the kernel
            // writes to no buffer that it has handed out.
            let data = unsafe { std::slice::from_raw_parts(address as *const u8, part) };
            ensure!(
                data == &self.block[from..from + part],
                "other bytes, after {}",
                self.taken
            );
            self.taken += part;
            address += part;
            len -= part;
        }
        Ok(offset)
    }
}

/// Returns `plain`, or an eighth of it with checkers, which slow everything down.
fn bytes(plain: usize) -> usize {
    if is_debug() { plain / 8 } else { plain }
}

/// Checks that areas are added, events armed and netlink dumps read while data arrives
/// intact.
fn areas_events_and_dumps_under_traffic() -> TestResult {
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let len = bytes(128 << 20);
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq_with_event(&ring, 32768, 200, EVENT)?;
    let _room = nic::limit_sockets(100)?;
    let mut receiver = Receiver::new(&ifq);
    let (sender, socket) = nic.connect_to("10.9.0.1")?;
    let sending = send_blocks(sender, len);
    let over = AtomicBool::new(false);
    let (mut added, mut events) = (Vec::new(), 0);
    // Buffers are kept until none is left for the first time.
    let mut kept = Some(Vec::new());
    let dumps = thread::scope(|scope| {
        let dumping = scope.spawn(|| {
            let mut dumps = 0;
            while !over.load(Ordering::Relaxed) {
                netdev::queues(nic.index)?;
                netdev::provided_pools()?;
                dumps += 1;
            }
            anyhow::Ok(dumps)
        });
        let mut receive = || {
            let request = recv_zc(socket.as_raw_fd(), ifq.id, 0);
            ring.push(request)?;
            loop {
                let cqe = ring.cqe()?;
                if cqe.user_data == EVENT {
                    events += 1;
                    for offset in kept.take().unwrap_or_default() {
                        ifq.return_buffer(offset);
                    }
                    let got = arm(&ring, &ifq, ZCRX_EVENT_ALLOC_FAIL);
                    expect_result("arming", got, 0)?;
                } else if cqe.flags & IORING_CQE_F_MORE != 0 {
                    let offset = receiver.take(&cqe)?;
                    match &mut kept {
                        Some(kept) => kept.push(offset),
                        None => ifq.return_buffer(offset),
                    }
                } else if cqe.res == -libc::ENOSPC {
                    ring.push(request)?;
                } else {
                    return expect_result("the end", cqe.res, 0);
                }
                if receiver.taken / (len / 16) > added.len() && added.len() < 15 {
                    let area = memory(64)?;
                    let (got, _) = add_area(&ring, &ifq, &area);
                    expect_result("adding an area", got, 0)?;
                    let place = (area.address() as usize, area.len());
                    receiver.areas.push(place);
                    added.push(area);
                }
            }
        };
        let received = receive();
        over.store(true, Ordering::Relaxed);
        let dumps = dumping.join().ok().context("dumping panicked")?;
        received.and(dumps)
    })?;
    expect_eq("bytes", receiver.taken, len)?;
    sending.join().ok().context("sending panicked")??;
    println!("{NOTE}{dumps} dumps, {events} events");
    ensure!(
        dumps > 0 && added.len() == 15 && events > 0,
        "too little happened"
    );
    drop((socket, ifq, ring));
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    Ok(Outcome::Passed)
}

/// Receives until the process is killed, and compares all bytes.
fn receive_for_ever(nic: &Nic, socket: &TcpStream) -> anyhow::Result<()> {
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let mut receiver = Receiver::new(&ifq);
    let request = recv_zc(socket.as_raw_fd(), ifq.id, 0);
    ring.push(request)?;
    loop {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE != 0 {
            ifq.return_buffer(receiver.take(&cqe)?);
        } else {
            ring.push(request)?;
        }
    }
}

/// Checks that a device is unplugged and its process killed under traffic, in each
/// order, and all memory is released.
fn device_and_process_end_under_traffic() -> TestResult {
    let before = pins()?;
    for round in 0..if is_long() { 100 } else { 12 } {
        let nic = Nic::new()?;
        let (sender, socket) = nic.connect_to("10.9.0.1")?;
        let child = sandbox::spawn(|| receive_for_ever(&nic, &socket))?;
        drop(socket);
        let ending = sender.try_clone()?;
        let sending = send_blocks(sender, usize::MAX);
        nic::wait_until("there is traffic", || Ok(nic.counts()?.niov_frags > 100))?;
        let start = Instant::now();
        let unplugging = thread::spawn(|| nic::unplug(PORT));
        let pause = Duration::from_millis([0, 1, 5, 30][round % 4]);
        if round % 3 == 0 {
            unplugging.join().ok().context("unplugging panicked")??;
            kill(child, Signal::SIGKILL)?;
        } else {
            thread::sleep(pause);
            kill(child, Signal::SIGKILL)?;
            unplugging.join().ok().context("unplugging panicked")??;
        }
        let took = start.elapsed();
        ensure!(took < Duration::from_secs(10), "unplugging took {took:?}");
        killed(child)?;
        // The connection may have been closed already.
        let _ = ending.shutdown(Shutdown::Both);
        sending.join().ok().context("sending panicked")??;
    }
    let nic = Nic::new()?;
    nic::wait_drained()?;
    nic::wait_until("all pages are let go of", || Ok(pins()? == before))?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that the queue restarts again and again while data arrives intact.
fn queue_restarts_under_traffic() -> TestResult {
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, 4096, 2 * BUFFERS)?;
    let len = bytes(256 << 20);
    let _room = nic::limit_sockets(BUFFERS)?;
    let mut receiver = Receiver::new(&ifq);
    let (sender, socket) = nic.connect_to("10.9.0.1")?;
    let sending = send_blocks(sender, len);
    let over = AtomicBool::new(false);
    let restarts = thread::scope(|scope| {
        let restarting = scope.spawn(|| {
            let mut restarts = 0;
            while !over.load(Ordering::Relaxed) {
                nic.set_ring(if restarts % 2 == 0 { 128 } else { 64 })?;
                restarts += 1;
                // TCP needs some time to send again what was lost.
                thread::sleep(Duration::from_millis(20));
            }
            anyhow::Ok(restarts)
        });
        let mut receive = || {
            let request = recv_zc(socket.as_raw_fd(), ifq.id, 0);
            ring.push(request)?;
            loop {
                let cqe = ring.cqe()?;
                if cqe.flags & IORING_CQE_F_MORE != 0 {
                    ifq.return_buffer(receiver.take(&cqe)?);
                } else if cqe.res == -libc::ENOSPC {
                    ring.push(request)?;
                } else {
                    return expect_result("the end", cqe.res, 0);
                }
            }
        };
        let received = receive();
        over.store(true, Ordering::Relaxed);
        let restarts = restarting.join().ok().context("restarting panicked")?;
        received.and(restarts)
    })?;
    expect_eq("bytes", receiver.taken, len)?;
    sending.join().ok().context("sending panicked")??;
    println!("{NOTE}{restarts} restarts");
    ensure!(restarts > 1, "too few restarts");
    drop(socket);
    nic.expect_conserved(&mut ring, &ifq, 2 * BUFFERS)?;
    Ok(Outcome::Passed)
}

/// Registers the queue, imports it into a second ring, and starts a receive on each.
/// Sends the exported file to the parent, and runs until it is killed.
fn hold_two_rings(
    nic: &Nic,
    sockets: &[TcpStream; 2],
    area: &Mapping,
    ready: &UnixStream,
) -> anyhow::Result<()> {
    let mut master = roomy_ring()?;
    let mut registration = nic.registration(ENTRIES, area);
    expect_result("registering", registration.register(master.fd()), 0)?;
    let file: OwnedFd = export_of(&master, registration.reg.zcrx_id)?;
    let mut importer = roomy_ring()?;
    import_into(&importer, &file, 0)?;
    for (ring, socket) in [(&mut master, &sockets[0]), (&mut importer, &sockets[1])] {
        ring.push(recv_zc(socket.as_raw_fd(), 0, 0))?;
        ring.submit()?;
    }
    send_file(ready, &file)?;
    loop {
        // The process takes data and never gives buffers back.
        master.submit_and_wait(1)?;
        while master.try_cqe().is_some() {}
        importer.submit()?;
        while importer.try_cqe().is_some() {}
    }
}

/// Checks that a process that registered a queue is killed while another that imported
/// it receives on.
fn process_ends_while_another_has_its_queue() -> TestResult {
    const LEN: usize = 4 << 20;
    let before = pins()?;
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    for round in 0..if is_long() { 50 } else { 4 } {
        // The area is shared memory, so that this process can read it, too.
        let area = memfd_create(c"area", MFdFlags::empty())?;
        nix::unistd::ftruncate(&area, (BUFFERS * PAGE_SIZE) as i64)?;
        let area = Mapping::new(area.as_raw_fd(), 0, BUFFERS * PAGE_SIZE)?;
        let pairs = [nic.connect_to("10.9.0.1")?, nic.connect_to("fd09::1")?];
        let [(first, first_end), (second, second_end)] = pairs;
        let sockets = [first_end, second_end];
        let (ours, theirs) = UnixStream::pair()?;
        let child: Pid = sandbox::spawn(|| hold_two_rings(&nic, &sockets, &area, &theirs))?;
        drop(sockets);
        let file = receive_file(&ours)?;
        let mut ring = roomy_ring()?;
        import_into(&ring, &file, 0)?;
        drop(file);
        let refill = RefillQueue::map(ring.fd(), 0, ENTRIES)?;
        let mut receiver = Receiver {
            block: block(),
            taken: 0,
            areas: vec![(area.address() as usize, area.len())],
        };
        let (sender, socket) = nic.connect_to("10.9.0.1")?;
        let sending = send_blocks(sender, LEN);
        let request = recv_zc(socket.as_raw_fd(), 0, 0);
        ring.push(request)?;
        // The receives of the child are either busy or waiting.
        if round % 2 == 0 {
            (&first).write_all(&[1; 20 * PAGE_SIZE])?;
            (&second).write_all(&[2; 20 * PAGE_SIZE])?;
        }
        let mut over = false;
        loop {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE != 0 {
                refill.return_buffer(receiver.take(&cqe)?);
            } else if cqe.res == -libc::ENOSPC {
                ring.push(request)?;
            } else {
                expect_result("the end", cqe.res, 0)?;
                break;
            }
            if !over && receiver.taken > LEN / 8 {
                kill(child, Signal::SIGKILL)?;
                over = true;
            }
        }
        expect_eq("bytes", receiver.taken, LEN)?;
        sending.join().ok().context("sending panicked")??;
        killed(child)?;
        // This process still has the queue, which ends with it.
        expect_eq("of the queue", nic.provided()?, Some(PAGE_SIZE as u64))?;
        drop((socket, first, second, refill, ring));
        nic.wait_released()?;
    }
    nic::wait_until("all pages are let go of", || Ok(pins()? == before))?;
    works(&nic)?;
    Ok(Outcome::Passed)
}

/// Checks that a long stream, of 10 GiB in a soak, arrives intact and without a copy.
fn long_stream_arrives_intact() -> TestResult {
    let len = bytes(if is_long() { 10 << 30 } else { 64 << 20 });
    let nic = Nic::new()?;
    nic.set_mtu(9000)?;
    let mut ring = WideRing::with(8, 4096, ZCRX_SETUP)?;
    let ifq = nic.ifq(&ring, 4096, 4 * BUFFERS)?;
    let mut receiver = Receiver::new(&ifq);
    let (sender, socket) = nic.connect_to("10.9.0.1")?;
    let start = Instant::now();
    let sending = send_blocks(sender, len);
    let request = recv_zc(socket.as_raw_fd(), ifq.id, 0);
    ring.push(request)?;
    let mut completions = 0u64;
    loop {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE != 0 {
            completions += 1;
            ifq.return_buffer(receiver.take(&cqe)?);
        } else if cqe.res == -libc::ENOSPC {
            ring.push(request)?;
        } else {
            expect_result("the end", cqe.res, 0)?;
            break;
        }
    }
    expect_eq("bytes", receiver.taken, len)?;
    sending.join().ok().context("sending panicked")??;
    let counts = nic.counts()?;
    expect_eq("pages", counts.page_frags, 0)?;
    ensure!(
        completions <= counts.niov_frags,
        "{completions}, {counts:?}"
    );
    let (mib, seconds) = (len >> 20, start.elapsed().as_secs_f32());
    println!("{NOTE}{mib} MiB in {seconds:.1} s, {completions} completions");
    drop(socket);
    nic.expect_conserved(&mut ring, &ifq, 4 * BUFFERS)?;
    Ok(Outcome::Passed)
}
