// SPDX-License-Identifier: GPL-2.0
//! D9: events and statistics of a queue that several tasks share: a disabled ring whose
//! task runs another program, and tasks that copy at the same time.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Context;
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::zcrx_events::{EVENT, arm};
use super::zcrx_receive::restore;
use super::zcrx_sharing::{export_of, import_into, receive_file, send_file};
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::register::{self, PAGE_SIZE};
use crate::ring::{IORING_CQE_F_MORE, IORING_SETUP_R_DISABLED, PARAMS_SIZE, RawParams, Ring};
use crate::sandbox;
use crate::sqe::Sqe;
use crate::stream::{Stream, ended};
use crate::wide::{Mapping, WideRing, ZCRX_SETUP};
use crate::zcrx::{
    EventDesc, Ifq, RQES, RefillQueue, Registration, Stats, ZCRX_EVENT_COPY,
    ZCRX_EVENT_DESC_FLAG_STATS, memory, recv_zc,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::events" {
        BG02 event_after_exec_of_the_ring_maker_is_dropped;
        BG10 statistics_of_two_tasks_lose_no_count (60 s);
    }
};

const ENTRIES: u32 = 64;

/// Runs the first process of BG02. It makes a disabled ring with a queue that reports
/// events, sends both to the parent, and runs another program while a request is
/// pending.
fn run_a_program(mut socket: UnixStream, area: &Mapping) -> anyhow::Result<()> {
    let ring = WideRing::with(8, 256, ZCRX_SETUP | IORING_SETUP_R_DISABLED)?;
    let mut registration = Registration::new(ENTRIES, area);
    registration.with_event = true;
    registration.event = EventDesc {
        user_data: EVENT,
        type_mask: 1 << ZCRX_EVENT_COPY,
        ..Default::default()
    };
    expect_result("registering", registration.register(ring.fd()), 0)?;
    let file = export_of(&ring, registration.reg.zcrx_id)?;
    let words: Vec<u8> = ring.params().iter().flat_map(|w| w.to_ne_bytes()).collect();
    socket.write_all(&words)?;
    socket.write_all(&ring.fd().to_ne_bytes())?;
    send_file(&socket, &file)?;
    // This waits until the parent has taken the ring's file, which no message can
    // carry.
    socket.read_exact(&mut [0])?;

    let (reader, _writer) = nix::unistd::pipe()?;
    let (mut other, mut byte) = (Ring::new(2)?, [0]);
    other.push(Sqe::read(reader.as_raw_fd(), &mut byte))?;
    expect_eq("reads submitted", other.submit()?, 1)?;
    expect_eq("a read without data", other.try_cqe(), None)?;
    // The kernel now cancels pending requests on all rings that this task has made.
    Err(sandbox::nop_probe().exec()).context("exec")
}

/// Checks that an event of a disabled ring whose maker has run another program is
/// dropped, and the ring works once enabled.
///
/// In C, such an event would crash the machine, so that this step is left out.
fn event_after_exec_of_the_ring_maker_is_dropped() -> TestResult {
    const PAGES: usize = 16;
    // Both processes see the memory of the area.
    let shared = memfd_create(c"area", MFdFlags::empty())?;
    nix::unistd::ftruncate(&shared, (PAGES * PAGE_SIZE) as i64)?;
    let area = Mapping::new(shared.as_raw_fd(), 0, PAGES * PAGE_SIZE)?;
    let (mut socket, other) = UnixStream::pair()?;
    let child = sandbox::spawn(|| run_a_program(other.try_clone()?, &area))?;
    drop(other);
    let mut bytes = [0; PARAMS_SIZE];
    socket.read_exact(&mut bytes)?;
    let mut params = RawParams::default();
    for (word, bytes) in params.iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(bytes.try_into()?);
    }
    let mut number = [0; 4];
    socket.read_exact(&mut number)?;
    let ring = sandbox::fd_of(child, RawFd::from_ne_bytes(number))?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    let ring = unsafe { OwnedFd::from_raw_fd(ring) };
    let file = receive_file(&socket)?;
    socket.write_all(&[0])?;
    sandbox::join(child)?;

    let mut ring = WideRing::attach(ring, params)?;
    let mut importer = WideRing::with(8, 256, ZCRX_SETUP)?;
    import_into(&importer, &file, 0)?;
    let ifq = Ifq {
        area,
        token: 0,
        buffer: PAGE_SIZE,
        refill: RefillQueue::map(importer.fd(), 0, ENTRIES)?,
    };
    let mut stream = Stream::new()?;
    let mut receive = || -> anyhow::Result<()> {
        stream.send(20_000)?;
        let left = stream.untaken();
        importer.push(stream.recv(&ifq, left))?;
        stream.take_all(&mut importer, &ifq)?;
        let last = importer.cqe()?;
        expect_eq("the end", last, ended(stream.user_data, 0))
    };
    // In C this would crash the machine: there is no task to wake.
    if zcrx_implementation() == Implementation::Rust {
        receive()?;
        receive()?;
    }
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    ring.submit()?;
    expect_eq("an event from before", ring.try_cqe(), None)?;
    let got = arm(&ring, &ifq, ZCRX_EVENT_COPY);
    expect_result("arming what has not fired", got, -libc::EINVAL)?;
    for _ in 0..2 {
        receive()?;
        let event = ended(EVENT, ZCRX_EVENT_COPY as i32);
        expect_eq("the event", ring.cqe()?, event)?;
        expect_eq("one event", ring.try_cqe(), None)?;
        expect_result("arming", arm(&ring, &ifq, ZCRX_EVENT_COPY), 0)?;
    }
    Ok(Outcome::Passed)
}

/// The number of batches that each of the two tasks of BG10 receives, and of packets in
/// each. Each packet gets a completion of its own.
const BATCHES: usize = 24;
const PACKETS: usize = 900;
/// The bytes of a packet. The memory that holds one has no room for the next one.
const LEN: usize = 190;

/// Makes two tasks, each on a CPU of its own, go on at the same time: when both have
/// incremented `ready`, which has happened `times` times before.
fn meet(ready: &AtomicU32, times: u32) {
    ready.fetch_add(1, Ordering::AcqRel);
    while ready.load(Ordering::Acquire) < 2 * (times + 1) {
        std::hint::spin_loop();
    }
}

/// Receives into the exported queue at the same time as the other task.
fn copy(
    cpu: usize,
    file: &OwnedFd,
    refill: &Mutex<RefillQueue>,
    ready: &AtomicU32,
) -> anyhow::Result<()> {
    sandbox::stay_on_cpu(cpu)?;
    let mut ring = WideRing::with(8, 1024, ZCRX_SETUP)?;
    import_into(&ring, file, 0)?;
    for batch in 0..BATCHES {
        let mut stream = Stream::new()?;
        restore(&mut stream, &[LEN; PACKETS])?;
        let socket = stream.receiver.as_raw_fd();
        ring.push(recv_zc(socket, 0, (PACKETS * LEN) as u32))?;
        meet(ready, batch as u32);
        let mut offsets = Vec::new();
        loop {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                expect_result("the end", cqe.res, 0)?;
                break;
            }
            expect_result("bytes of a packet", cqe.res, LEN as i32)?;
            offsets.push(cqe.offset()?);
        }
        expect_eq("packets", offsets.len(), PACKETS)?;
        // The refill queue may have one producer at a time.
        let refill = refill.lock().unwrap_or_else(PoisonError::into_inner);
        for offset in offsets {
            refill.return_buffer(offset);
        }
        refill.flush_all(ring.fd())?;
    }
    Ok(())
}

/// Checks that two rings that copy at the same time lose no count in the statistics.
///
/// In C, this data does not count at all, as it is in the linear part of packets.
fn statistics_of_two_tasks_lose_no_count() -> TestResult {
    const ENTRIES: u32 = 2048;
    let stats = RQES + 16 * ENTRIES as usize;
    let ring = WideRing::new(8)?;
    let area = memory(2 * PACKETS + 16)?;
    let mut registration = Registration::new(ENTRIES, &area);
    registration.with_event = true;
    registration.event.flags = ZCRX_EVENT_DESC_FLAG_STATS;
    registration.event.stats_offset = stats as u64;
    expect_result("registering", registration.register(ring.fd()), 0)?;
    let file = export_of(&ring, 0)?;
    let refill = Mutex::new(RefillQueue::map(ring.fd(), 0, ENTRIES)?);
    let ready = AtomicU32::new(0);
    thread::scope(|scope| -> anyhow::Result<()> {
        let (file, refill, ready) = (&file, &refill, &ready);
        let tasks = [0, 1].map(|cpu| scope.spawn(move || copy(cpu, file, refill, ready)));
        for task in tasks {
            task.join().ok().context("a task panicked")??;
        }
        Ok(())
    })?;
    let packets = (2 * BATCHES * PACKETS) as u64;
    let want = match zcrx_implementation() {
        // C does not count data in a packet's linear part.
        Implementation::C => Stats::default(),
        Implementation::Rust => Stats {
            copy_count: packets,
            copy_bytes: packets * LEN as u64,
        },
    };
    let refill = refill.into_inner().unwrap_or_else(PoisonError::into_inner);
    let got: Stats = refill.memory.read(stats);
    expect_eq("statistics", got, want)?;
    Ok(Outcome::Passed)
}
