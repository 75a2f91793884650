// SPDX-License-Identifier: GPL-2.0
//! D8: interface queues that are exported from a ring as a file, and imported from
//! there into other rings and processes.

use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, ensure};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::{Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, RingClosed, TakenBuffer, offset};
use crate::kernel::{expect_eq, expect_result};
use crate::sandbox;
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{
    Ctrl, IORING_MAP_OFF_ZCRX, IORING_OFF_ZCRX_SHIFT, IfqReg, Offsets, RQES, Registration, TAIL,
    ZCRX_CTRL_EXPORT, ZCRX_REG_IMPORT, control, memory, region_size, register_ifq,
};

pub const TESTS: &[Test] = tests! {
    "zcrx::share" {
        ZX08 queue_can_be_imported_into_its_own_ring;
        ZX09 importer_receives_after_the_exporter_ends;
        ZX10 rings_and_file_may_close_in_any_order;
        ZX11 file_alone_keeps_a_queue;
        ZX12 each_ring_can_return_buffers_of_the_other;
        ZX13 importer_maps_the_same_refill_queue;
        ZX27 another_process_can_import;
    }
};

pub(super) const ENTRIES: u32 = 64;
pub(super) const PAGES: usize = 8;

fn all() -> Vec<u64> {
    (0..PAGES).map(offset).collect()
}

/// Returns the offsets of all buffers but these.
fn without(taken: &[TakenBuffer]) -> Vec<u64> {
    let mut left = all();
    left.retain(|offset| taken.iter().all(|taken| taken.offset != *offset));
    left
}

/// Builds a valid export operation.
pub(super) fn export_ctrl(id: u32) -> Ctrl {
    Ctrl {
        zcrx_id: id,
        op: ZCRX_CTRL_EXPORT,
        ..Default::default()
    }
}

/// Exports a queue. Returns the file.
pub(super) fn export(consumer: &Consumer) -> anyhow::Result<OwnedFd> {
    export_of(&consumer.ring, consumer.id)
}

/// Exports the queue that a ring has under an id. Returns the file.
pub(super) fn export_of(ring: &WideRing, id: u32) -> anyhow::Result<OwnedFd> {
    let mut ctrl = export_ctrl(id);
    expect_result("export", control(ring.fd(), &mut ctrl), 0)?;
    let fd = ctrl.union[0] as RawFd;
    ensure!(fd > 2, "the file is {fd}");
    // SAFETY: the descriptor is new, and nothing else owns it.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut want = export_ctrl(id);
    want.union[0] = fd as u64;
    expect_eq("the structure after an export", ctrl, want)?;
    Ok(file)
}

/// Builds a valid import of a file.
pub(super) fn import_reg(file: RawFd) -> IfqReg {
    IfqReg {
        if_idx: file as u32,
        flags: ZCRX_REG_IMPORT,
        ..Default::default()
    }
}

/// Imports a file into a ring, which must give the queue this id.
pub(super) fn import_into(ring: &WideRing, file: &OwnedFd, id: u32) -> anyhow::Result<()> {
    let mut reg = import_reg(file.as_raw_fd());
    expect_result("import", register_ifq(ring.fd(), &mut reg), 0)?;
    let want = IfqReg {
        zcrx_id: id,
        offsets: Offsets {
            tail: TAIL as u32,
            rqes: RQES as u32,
            ..Default::default()
        },
        ..import_reg(file.as_raw_fd())
    };
    expect_eq("the structure after an import", reg, want)
}

/// Imports a file into a new ring.
pub(super) fn import(file: &OwnedFd) -> anyhow::Result<Consumer> {
    let ring = WideRing::new(8)?;
    import_into(&ring, file, 0)?;
    Consumer::attach(ring, 0, ENTRIES)
}

/// Closes a ring and waits until it has been taken down.
pub(super) fn close(consumer: Consumer) -> anyhow::Result<()> {
    let gone = RingClosed::watch(consumer.ring.fd())?;
    drop(consumer);
    gone.wait()
}

/// Checks that a ring can have its own queue under several ids.
fn queue_can_be_imported_into_its_own_ring() -> TestResult {
    let before = Resources::now()?;
    let (mut consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let held = Resources::now()?;
    let file = export(&consumer)?;
    import_into(&consumer.ring, &file, 1)?;
    import_into(&consumer.ring, &file, 2)?;
    drop(file);
    held.expect("imports, without the file")?;
    // It is the same queue under every id.
    let mut taken = Vec::new();
    for id in [1, 0, 2, 1] {
        consumer.refill.id = id;
        taken.push(consumer.take()?);
    }
    for taken in &taken {
        taken.check(&[&area])?;
    }
    consumer.expect_free("the rest", &without(&taken))?;
    for (round, id) in [(1, 2), (2, 0), (3, 1)] {
        consumer.refill.id = id;
        consumer.push_offsets(&[offset(3)]);
        consumer.flush_to(round)?;
        consumer.refill.id = 2 - id;
        consumer.expect_free("what another id gave back", &[offset(3)])?;
    }
    consumer.refill.id = 3;
    let got = control(consumer.ring.fd(), &mut export_ctrl(3));
    expect_result("an id that is not", got, -libc::ENXIO)?;
    drop(consumer);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that a ring that imported a queue receives, returns and exports after the
/// first ring has closed.
fn importer_receives_after_the_exporter_ends() -> TestResult {
    let before = Resources::now()?;
    let (mut exporter, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&exporter)?;
    let mut importer = import(&file)?;
    drop(file);
    let taken = exporter.take_some(2)?;
    exporter.wait_for_data()?;
    close(exporter)?;
    expect_eq(
        "pinned",
        Resources::now()?.pinned,
        before.with_pages(PAGES).pinned,
    )?;
    // Buffers that were handed out stay so, and come back through the other ring.
    for taken in importer.expect_free("the rest", &without(&taken))? {
        taken.check(&[&area])?;
    }
    taken[0].check(&[&area])?;
    importer.push_offsets(&[taken[1].offset]);
    importer.flush_to(1)?;
    importer.expect_free("the buffer of the closed ring", &[taken[1].offset])?;
    // An importing ring can export the queue, too.
    let mut next = import(&export(&importer)?)?;
    close(importer)?;
    next.push_offsets(&all());
    next.flush_to(1 + PAGES as u32)?;
    next.expect_free("in a third ring", &all())?;
    drop(next);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that a ring can get exactly the buffers in `free`, and gives them back.
fn works(consumer: &mut Consumer, area: &Mapping, free: &[u64]) -> anyhow::Result<()> {
    consumer.flush()?;
    for taken in consumer.expect_free("buffers for a ring that is left", free)? {
        taken.check(&[area])?;
    }
    consumer.push_offsets(free);
    consumer.flush()
}

/// Closes a ring just after one of its receives got data.
fn close_busy(mut consumer: Consumer) -> anyhow::Result<()> {
    consumer.send_data()?;
    close(consumer)
}

/// Checks that the first ring, the file and the importing ring close in each order, and
/// the queue ends with the last.
fn rings_and_file_may_close_in_any_order() -> TestResult {
    const EXPORTER: usize = 0;
    const FILE: usize = 1;
    const IMPORTER: usize = 2;
    for order in [
        [EXPORTER, FILE, IMPORTER],
        [EXPORTER, IMPORTER, FILE],
        [FILE, EXPORTER, IMPORTER],
        [FILE, IMPORTER, EXPORTER],
        [IMPORTER, EXPORTER, FILE],
        [IMPORTER, FILE, EXPORTER],
    ] {
        let before = Resources::now()?;
        let (exporter, area) = Consumer::new(ENTRIES, PAGES)?;
        let mut file = Some(export(&exporter)?);
        let importer = import(file.as_ref().context("no file")?)?;
        let pinned = Resources::now()?.pinned;
        let mut rings = [Some(exporter), None, Some(importer)];
        let mut taken = Vec::new();
        for ring in rings.iter_mut().flatten() {
            taken.extend(ring.take_some(2)?);
            ring.wait_for_data()?;
        }
        // One buffer is in the refill queue.
        let back = taken.remove(0).offset;
        if let Some(ring) = &rings[EXPORTER] {
            ring.push_offsets(&[back]);
        }
        let free = without(&taken);

        for (step, closed) in order.into_iter().enumerate() {
            let what = format!("{order:?}, step {step}");
            match rings[closed].take() {
                None => drop(file.take()),
                // With data, the closing ring would take a buffer that the others then
                // miss.
                Some(ring) if step < 2 => close(ring)?,
                Some(ring) => close_busy(ring)?,
            }
            if step < 2 {
                expect_eq(&what, Resources::now()?.pinned, pinned)?;
                for ring in rings.iter_mut().flatten() {
                    works(ring, &area, &free).with_context(|| what.clone())?;
                }
            }
        }
        before.wait(&format!("{order:?}"))?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a file alone keeps a queue as it was, for rings that import it later.
fn file_alone_keeps_a_queue() -> TestResult {
    let before = Resources::now()?;
    let (mut consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    let taken = consumer.take_some(3)?;
    close(consumer)?;
    let alone = before.with_files(1).with_pages(PAGES);
    alone.wait("closing the ring")?;
    // The queue is as it was left, for any ring that imports it.
    let mut importer = import(&file)?;
    for taken in importer.expect_free("the rest", &without(&taken))? {
        taken.check(&[&area])?;
    }
    importer.push_offsets(&[taken[0].offset]);
    importer.flush_to(1)?;
    close(importer)?;
    alone.wait("closing the importing ring")?;
    let mut importer = import(&file)?;
    importer.expect_free("in another ring", &[taken[0].offset])?;
    close(importer)?;
    alone.wait("closing the last ring")?;
    // A copy of the descriptor is the same file.
    let copy = file.try_clone()?;
    drop(file);
    alone.expect("closing one of two")?;
    drop(copy);
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that rings that share a queue return each other's buffers and flush each
/// other's entries.
fn each_ring_can_return_buffers_of_the_other() -> TestResult {
    let before = Resources::now()?;
    let (mut exporter, area) = Consumer::new(ENTRIES, PAGES)?;
    let mut importer = import(&export(&exporter)?)?;
    let (of_importer, of_exporter) = (importer.take_some(3)?, exporter.take_some(3)?);
    for taken in of_importer.iter().chain(&of_exporter) {
        taken.check(&[&area])?;
    }
    // Each ring gives back a buffer of the other, through its own mapping and flush.
    exporter.push_offsets(&[of_importer[0].offset]);
    exporter.flush_to(1)?;
    importer.push_offsets(&[of_exporter[0].offset]);
    importer.flush_to(2)?;
    // Each ring adds an entry that the other ring then flushes.
    exporter.push_offsets(&[of_importer[1].offset]);
    importer.flush_to(3)?;
    importer.push_offsets(&[of_exporter[1].offset]);
    exporter.flush_to(4)?;
    let still = [of_importer[2], of_exporter[2]];
    for taken in importer.expect_free("all but two", &without(&still))? {
        taken.check(&[&area])?;
    }
    exporter.expect_free("none are left for the other", &[])?;
    still[0].check(&[&area])?;
    still[1].check(&[&area])?;
    drop((exporter, importer));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that an importing ring maps the refill queue of the queue that it imported,
/// which outlives the rings.
fn importer_maps_the_same_refill_queue() -> TestResult {
    let before = Resources::now()?;
    let (mut exporter, _area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&exporter)?;
    let ring = WideRing::new(8)?;
    // The first id goes to a queue of this ring.
    let area = memory(1)?;
    let got = Registration::new(ENTRIES, &area).register(ring.fd());
    expect_result("registering", got, 0)?;
    import_into(&ring, &file, 1)?;
    drop(file);
    let importer = Consumer::attach(ring, 1, ENTRIES)?;
    let map = |id: i64| {
        let at = IORING_MAP_OFF_ZCRX + (id << IORING_OFF_ZCRX_SHIFT);
        Mapping::new(importer.ring.fd(), at, region_size(ENTRIES))
    };
    let own = map(0)?;

    expect_eq("length", importer.memory.len(), exporter.memory.len())?;
    for at in (RQES..exporter.memory.len()).step_by(8) {
        exporter.memory.write(at, !(at as u64));
        let seen: u64 = importer.memory.read(at);
        expect_eq("a word that the exporter wrote", seen, !(at as u64))?;
        importer.memory.write(at, at as u64);
        let seen: u64 = exporter.memory.read(at);
        expect_eq("a word that the importer wrote", seen, at as u64)?;
        expect_eq("another queue", own.read::<u64>(at), 0)?;
    }
    exporter.expect_free("at first", &all())?;
    importer.push_offsets(&[offset(2)]);
    expect_eq("tail", exporter.tail(), 1)?;
    importer.flush_to(1)?;
    expect_eq("head", exporter.head(), 1)?;
    expect_eq("head of another queue", own.read::<u32>(0), 0)?;
    exporter.expect_free("after the flush", &[offset(2)])?;

    let error = map(2).err().context("an unknown id can be mapped")?;
    let error = error.downcast_ref::<std::io::Error>();
    let error = error.and_then(|error| error.raw_os_error());
    expect_eq("mapping an unknown id", error, Some(libc::EINVAL))?;

    // The memory outlives the rings that shared it.
    drop(own);
    let kept = map(1)?;
    drop((exporter, importer));
    expect_eq("tail in the end", kept.read::<u32>(TAIL), 1)?;
    drop((kept, area));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Sends a file to another process.
pub(super) fn send_file(socket: &UnixStream, file: &OwnedFd) -> anyhow::Result<()> {
    let files = [file.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&files)];
    let byte = [IoSlice::new(&[0])];
    let fd = socket.as_raw_fd();
    let sent = sendmsg::<()>(fd, &byte, &rights, MsgFlags::empty(), None);
    expect_eq("bytes sent with a file", sent?, 1)
}

/// Receives a file from another process.
pub(super) fn receive_file(socket: &UnixStream) -> anyhow::Result<OwnedFd> {
    let (mut byte, mut space) = ([0], nix::cmsg_space!(RawFd));
    let mut bytes = [IoSliceMut::new(&mut byte)];
    let fd = socket.as_raw_fd();
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(fd, &mut bytes, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(files) = part {
            let file = *files.first().context("no file in the message")?;
            // SAFETY: the descriptor was just received, and nothing else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(file) });
        }
    }
    anyhow::bail!("a message without a file")
}

/// Runs the other process of ZX27. It takes three buffers, then the rest once it is
/// told to, and reports the offset and byte of each.
fn importing_process(mut socket: UnixStream) -> anyhow::Result<()> {
    let file = receive_file(&socket)?;
    let mut importer = import(&file)?;
    let tell = |taken: &[TakenBuffer], mut socket: &UnixStream| -> anyhow::Result<()> {
        for taken in taken {
            socket.write_all(&taken.offset.to_ne_bytes())?;
            socket.write_all(&[taken.byte])?;
        }
        Ok(())
    };
    let first = importer.take_some(3)?;
    tell(&first, &socket)?;
    socket.read_exact(&mut [0])?;
    importer.push_offsets(&[first[1].offset]);
    importer.flush_to(1)?;
    let out = [first[0], first[2]];
    let rest = importer.expect_free("the rest", &without(&out))?;
    tell(&rest, &socket)?;
    socket.read_exact(&mut [0])?;
    // Without the privilege, having the file is not enough.
    sandbox::drop_privileges()?;
    let ring = WideRing::new(2)?;
    let got = register_ifq(ring.fd(), &mut import_reg(file.as_raw_fd()));
    expect_result("import without CAP_NET_ADMIN", got, -libc::EPERM)?;
    importer.push_offsets(&[rest[0].offset]);
    importer.flush_to(2)?;
    importer.expect_free("the ring that has the queue", &[rest[0].offset])?;
    Ok(())
}

/// Checks that another process imports a queue and receives into memory of the process
/// that registered it, which has closed its own.
fn another_process_can_import() -> TestResult {
    let (mut socket, other) = UnixStream::pair()?;
    // Nothing has been made yet that the child could inherit.
    let child = sandbox::spawn(|| importing_process(other.try_clone()?))?;
    drop(other);
    let before = Resources::now()?;
    let (consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    let file = export(&consumer)?;
    send_file(&socket, &file)?;
    let told = |count: usize, socket: &mut UnixStream| -> anyhow::Result<()> {
        for _ in 0..count {
            let mut bytes = [0; 9];
            socket.read_exact(&mut bytes)?;
            let [start @ .., byte] = bytes;
            let offset = u64::from_ne_bytes(start);
            TakenBuffer { offset, byte }.check(&[&area])?;
        }
        Ok(())
    };
    told(3, &mut socket)?;
    // From now on only the other process has the queue, whose area is this process's
    // memory.
    close(consumer)?;
    drop(file);
    socket.write_all(&[0])?;
    told(PAGES - 2, &mut socket)?;
    before.with_pages(PAGES).wait("closing here")?;
    socket.write_all(&[0])?;
    sandbox::join(child)?;
    before.wait("the end of the other process")?;
    Ok(Outcome::Passed)
}
