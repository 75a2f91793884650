// SPDX-License-Identifier: GPL-2.0
//! D10: a process that has a queue of a network device is killed, and the next process
//! registers that queue as soon as the first has been reaped or has closed its ring.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_receive::roomy_ring;
use super::zcrx_sharing::{export_of, import_into};
use super::{NOTE, Outcome, Test, TestResult, is_long, tests};
use crate::kernel::{expect_eq, expect_result, is_debug, limit};
use crate::nic::{self, Nic};
use crate::register::PAGE_SIZE;
use crate::ring::{IORING_CQE_F_MORE, Ring};
use crate::sandbox::{self, killed, pins};
use crate::sqe::Sqe;
use crate::wide::WideRing;
use crate::zcrx::{Ifq, memory, recv_zc};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::end" {
        ZN40 queue_is_free_as_soon_as_its_process_is_reaped (600 s);
    }
};

/// The number of other rings of the process that is killed, each of which takes time to
/// end.
const OTHERS: usize = 100;

/// Processes that keep the CPUs busy. Dropping this kills them.
struct Load(Vec<Pid>);

impl Load {
    fn new() -> anyhow::Result<Self> {
        let mut load = Load(Vec::new());
        for _ in 0..thread::available_parallelism()?.get() {
            load.0.push(sandbox::spawn(|| {
                loop {
                    std::hint::spin_loop();
                }
            })?);
        }
        Ok(load)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for &child in &self.0 {
            let _ = kill(child, Signal::SIGKILL);
            let _ = killed(child);
        }
    }
}

/// Registers the queue, and tries again as long as another process has it. Returns the
/// queue, and the time until it was free if it was not free at once.
fn register(nic: &Nic, ring: &WideRing) -> anyhow::Result<(Ifq, Option<Duration>)> {
    let area = memory(BUFFERS)?;
    let start = Instant::now();
    let mut waited = None;
    loop {
        let mut registration = nic.registration(ENTRIES, &area);
        let got = registration.register(ring.fd());
        if got != -libc::EEXIST {
            expect_result("registering", got, 0)?;
            return Ok((Ifq::attach(ring.fd(), registration, area)?, waited));
        }
        ensure!(start.elapsed() < limit(10), "the queue is not released");
        thread::sleep(Duration::from_millis(1));
        waited = Some(start.elapsed());
    }
}

/// Makes rings with a pending poll each.
fn other_rings(idle: &UnixStream) -> anyhow::Result<Vec<Ring>> {
    let mut rings = Vec::new();
    for _ in 0..OTHERS {
        let mut ring = Ring::new(1)?;
        ring.push(Sqe::poll(idle.as_raw_fd(), libc::POLLIN))?;
        expect_eq("submitted", ring.submit()?, 1)?;
        rings.push(ring);
    }
    Ok(rings)
}

/// Holds the queue and receives until the process is killed, on two rings if `shared`.
/// Writes to `ready` whether it had to wait for the queue.
fn have_queue(
    nic: &Nic,
    sockets: &[TcpStream; 2],
    shared: bool,
    ready: &UnixStream,
) -> anyhow::Result<()> {
    let mut ring = roomy_ring()?;
    let (ifq, waited) = register(nic, &ring)?;
    let request = recv_zc(sockets[0].as_raw_fd(), ifq.id, 0);
    ring.push(request)?;
    ring.submit()?;
    let mut importer = roomy_ring()?;
    let mut file = None;
    if shared {
        import_into(&importer, file.insert(export_of(&ring, ifq.id)?), 0)?;
        importer.push(recv_zc(sockets[1].as_raw_fd(), 0, 0))?;
        importer.submit()?;
    }
    // Files that were opened last are closed first, and keep those opened before
    // waiting.
    let (idle, _end) = UnixStream::pair()?;
    let _others = other_rings(&idle)?;
    { ready }.write_all(&[waited.is_some().into()])?;
    loop {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE != 0 {
            ifq.return_buffer(cqe.offset()?);
        } else {
            ring.push(request)?;
        }
    }
}

/// Sends until the other end is gone.
fn send(mut sender: TcpStream) {
    while sender.write_all(&[1; 4 * PAGE_SIZE]).is_ok() {}
}

/// Checks that a queue can be registered again as soon as its killed process is reaped
/// or its ring closed.
fn queue_is_free_as_soon_as_its_process_is_reaped() -> TestResult {
    let rounds = match is_long() {
        true => 1000,
        false if is_debug() => 8,
        false => 24,
    };
    let before = pins()?;
    let nic = Nic::new()?;
    let start = Instant::now();
    let load = Load::new()?;
    // The rounds in which the queue was not free after a process was reaped, and after
    // a ring was closed.
    let (mut reaped, mut closed) = (0, 0);
    let mut longest = Duration::ZERO;
    for round in 0..rounds {
        let pairs = [nic.connect_to("10.9.0.1")?, nic.connect_to("fd09::1")?];
        let [(first, first_end), (_second, second_end)] = pairs;
        let sockets = [first_end, second_end];
        let (mut ours, theirs) = UnixStream::pair()?;
        let shared = round % 2 == 0;
        let child = sandbox::spawn(|| have_queue(&nic, &sockets, shared, &theirs))?;
        drop((sockets, theirs));
        let mut waited = [0];
        ours.read_exact(&mut waited).context("the child failed")?;
        closed += u32::from(waited[0]);
        // The child either receives or waits for data.
        let sender = first.try_clone()?;
        let sending = (round % 4 < 2).then(|| thread::spawn(|| send(sender)));
        thread::sleep(Duration::from_millis([0, 2, 10][round % 3]));
        let ring = roomy_ring()?;
        kill(child, Signal::SIGKILL)?;
        killed(child)?;
        let (ifq, waited) = register(&nic, &ring)?;
        reaped += u32::from(waited.is_some());
        longest = longest.max(waited.unwrap_or_default());
        if let Some(sending) = sending {
            sending.join().ok().context("sending panicked")?;
        }
        drop((ifq, ring));
    }
    drop(load);
    println!("{NOTE}{rounds} rounds in {:?}", start.elapsed());
    ensure!(
        (reaped, closed) == (0, 0),
        "of {rounds} rounds, EEXIST after a kill in {reaped}, for {longest:?} at most, and after \
         a close in {closed}"
    );
    nic.wait_released()?;
    nic::wait_until("all pages are let go of", || Ok(pins()? == before))?;
    works(&nic)?;
    Ok(Outcome::Passed)
}
