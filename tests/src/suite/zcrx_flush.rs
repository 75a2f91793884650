// SPDX-License-Identifier: GPL-2.0
//! D8: flushing the refill queue of an interface queue: which entries give a
//! buffer back, and which only pass.

use std::sync::atomic::Ordering;

use anyhow::{bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::pause;

use super::zcrx_sharing::{export, import_into};
use super::{NOTE, Outcome, Test, TestResult, slow, test};
use crate::buffers::{Consumer, Held, offset};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::sandbox;
use crate::wide::WideRing;
use crate::zcrx::{AREA_SHIFT, Ctrl, MAX_ENTRIES, Rqe, ZCRX_CTRL_FLUSH_RQ, control};

pub const TESTS: &[Test] = &[
    test("ZX14 flush: reserved bytes, empty queue, unknown id", zx14),
    test("ZX15 flush of buffers that nobody has", zx15),
    test("ZX16 flush of entries that say nothing sensible", zx16),
    test("ZX17 flush of an offset that is far too high", zx17),
    test("ZX18 flush with an invalid entry between others", zx18),
    test("ZX19 flush with positions that make no sense", zx19),
    test("ZX20 flush of a buffer twice", zx20),
    test("ZX21 flush of many entries, and of a full queue", zx21),
    slow("ZX31 a kill in the middle of a flush", 60, zx31),
];

/// Entries of the refill queue, and buffers, where nothing else is said.
const ENTRIES: u32 = 64;
const PAGES: usize = 8;

/// Returns where all buffers are.
fn all(pages: usize) -> Vec<u64> {
    (0..pages).map(offset).collect()
}

/// Makes a queue of which every buffer has been handed out.
fn exhausted() -> anyhow::Result<Consumer> {
    let (mut consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    for taken in consumer.expect_free("at first", &all(PAGES))? {
        taken.check(&[&area])?;
    }
    Ok(consumer)
}

fn zx14() -> TestResult {
    let before = Held::now()?;
    let mut consumer = exhausted()?;
    let fd = consumer.ring.fd();
    let held = Held::now()?;
    consumer.flush_to(0)?;
    consumer.push_offsets(&[offset(3)]);
    let valid = Ctrl {
        zcrx_id: consumer.id,
        op: ZCRX_CTRL_FLUSH_RQ,
        ..Default::default()
    };
    let errors = (0..12).map(|word| {
        let mut ctrl = valid;
        ctrl.union[word / 2] = 1 << (32 * (word % 2) + 31);
        (format!("reserved word {word}"), ctrl, libc::EINVAL)
    });
    let unknown = Ctrl {
        zcrx_id: 1,
        ..valid
    };
    let unknown = ("unknown id".to_string(), unknown, libc::ENXIO);
    for (what, ctrl, error) in errors.chain([unknown]) {
        let mut copy = ctrl;
        expect_result(&what, control(fd, &mut copy), -error)?;
        expect_eq(&what, copy, ctrl)?;
        expect_eq("head after an error", consumer.head(), 0)?;
    }
    held.expect("errors")?;
    if zcrx_implementation() == Implementation::C {
        // Where there is none, Rust looks into the queue itself.
        consumer.expect_free("after errors", &[])?;
    }
    consumer.flush_to(1)?;
    consumer.expect_free("after a flush", &[offset(3)])?;
    consumer.flush_to(1)?;
    consumer.expect_free("after an empty flush", &[])?;
    // A ring that has none.
    let other = WideRing::new(2)?;
    let got = control(other.fd(), &mut { valid });
    expect_result("a ring without a queue", got, -libc::ENXIO)?;
    drop((consumer, other));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

fn zx15() -> TestResult {
    let (mut consumer, _area) = Consumer::new(ENTRIES, PAGES)?;
    // Two rounds over the area, so that each buffer is there twice.
    consumer.push_offsets(&all(PAGES));
    consumer.push_offsets(&all(PAGES));
    consumer.flush_to(16)?;
    consumer.expect_free("each once", &all(PAGES))?;
    // Those that are free beside those that are not.
    consumer.push_offsets(&[offset(1), offset(5)]);
    consumer.flush_to(18)?;
    let all = all(PAGES);
    consumer.push_offsets(&all[1..6]);
    consumer.flush_to(23)?;
    consumer.expect_free("each once again", &all[1..6])?;
    Ok(Outcome::Passed)
}

fn zx16() -> TestResult {
    let mut consumer = exhausted()?;
    let at = |off| Rqe {
        off,
        ..Default::default()
    };
    let mut low = at(0);
    low.pad = 1;
    let mut high = at(offset(2));
    high.pad = 1 << 31;
    let invalid = [
        ("the end of the area", at(offset(PAGES))),
        ("the end of all areas", at((1 << AREA_SHIFT) - 1)),
        ("the area after the last", at(1 << AREA_SHIFT)),
        ("an area that cannot be", at(0xffff << AREA_SHIFT)),
        ("all bits", at(u64::MAX)),
        ("a bit of padding", low),
        ("another bit of padding", high),
    ];
    for (number, (what, rqe)) in invalid.into_iter().enumerate() {
        consumer.push(rqe);
        consumer.flush_to(number as u32 + 1)?;
        consumer.expect_free(what, &[])?;
    }
    // The length is the user's own, and so is where in the buffer it is.
    consumer.push(Rqe {
        off: offset(5) + 4095,
        len: u32::MAX,
        pad: 0,
    });
    consumer.flush_to(invalid.len() as u32 + 1)?;
    consumer.expect_free("a valid one", &[offset(5)])?;
    Ok(Outcome::Passed)
}

fn zx17() -> TestResult {
    let mut consumer = exhausted()?;
    let mut head = 0;
    for bit in 44..AREA_SHIFT {
        consumer.push_offsets(&[1 << bit]);
        head += 1;
        consumer.flush_to(head)?;
        let what = format!("bit {bit} at buffer 0");
        match zcrx_implementation() {
            // Such bits go lost.
            Implementation::C => consumer.expect_free(&what, &[0])?,
            Implementation::Rust => consumer.expect_free(&what, &[])?,
        };
    }
    // One that fits into 32 bits is too high for everybody.
    consumer.push_offsets(&[1 << 43]);
    consumer.flush_to(head + 1)?;
    consumer.expect_free("bit 43 at buffer 0", &[])?;
    consumer.push_offsets(&[0]);
    consumer.flush_to(head + 2)?;
    consumer.expect_free("buffer 0 itself", &[0])?;
    Ok(Outcome::Passed)
}

fn zx18() -> TestResult {
    let mut consumer = exhausted()?;
    let valid = [offset(1), offset(6)];
    let area = Rqe {
        off: 1 << AREA_SHIFT,
        ..Default::default()
    };
    let padding = Rqe {
        pad: 1,
        ..Default::default()
    };
    for (start, invalid) in [(0, area), (3, padding)] {
        consumer.push_offsets(&valid[..1]);
        consumer.push(invalid);
        consumer.push_offsets(&valid[1..]);
        match zcrx_implementation() {
            Implementation::C => {
                // The invalid one ends it.
                consumer.flush_to(start + 2)?;
                consumer.expect_free("up to the invalid one", &valid[..1])?;
                consumer.flush_to(start + 3)?;
                consumer.expect_free("after the invalid one", &valid[1..])?;
            }
            Implementation::Rust => {
                consumer.flush_to(start + 3)?;
                consumer.expect_free("around the invalid one", &valid)?;
            }
        }
    }
    // A valid entry of a buffer that nobody has stops nothing.
    consumer.push_offsets(&[valid[0], valid[0], valid[1]]);
    consumer.flush_to(9)?;
    consumer.expect_free("around one too many", &valid)?;
    Ok(Outcome::Passed)
}

/// Checks as [`Consumer::expect_free`], with nothing left in the refill queue that a copy
/// could find there.
fn only_free(consumer: &mut Consumer, what: &str, want: &[u64]) -> anyhow::Result<()> {
    consumer.set_tail(consumer.head());
    consumer.expect_free(what, want).map(drop)
}

fn zx19() -> TestResult {
    let mut consumer = exhausted()?;
    // The kernel does not read where it is: it only writes that.
    consumer.memory.word(0).store(1, Ordering::Release);
    consumer.flush_to(0)?;
    consumer.expect_free("head ahead of tail", &[])?;
    // Too far: a whole queue in one go, all of its entries for buffer 0.
    consumer.set_tail(2 * ENTRIES);
    consumer.flush_to(ENTRIES)?;
    only_free(&mut consumer, "tail too far", &[0])?;
    consumer.set_tail(2 * ENTRIES);
    consumer.flush_to(2 * ENTRIES)?;
    consumer.expect_free("the rest of that", &[0])?;
    consumer.flush_to(2 * ENTRIES)?;
    consumer.expect_free("nothing more", &[])?;
    // Backwards: what is there is read again, a whole queue each time.
    consumer.set_tail(ENTRIES);
    consumer.flush_to(3 * ENTRIES)?;
    only_free(&mut consumer, "tail backwards", &[0])?;
    consumer.set_tail(3 * ENTRIES - 1);
    consumer.flush_to(4 * ENTRIES)?;
    only_free(&mut consumer, "tail one back", &[0])?;
    // The farthest.
    consumer.set_tail(4 * ENTRIES + (1 << 31));
    consumer.flush_to(5 * ENTRIES)?;
    only_free(&mut consumer, "tail half around", &[0])?;
    // And all goes on once it makes sense.
    consumer.set_tail(5 * ENTRIES);
    consumer.flush_to(5 * ENTRIES)?;
    consumer.expect_free("tail at head", &[])?;
    consumer.push_offsets(&all(PAGES));
    consumer.flush_to(5 * ENTRIES + PAGES as u32)?;
    consumer.expect_free("in the end", &all(PAGES))?;
    Ok(Outcome::Passed)
}

fn zx20() -> TestResult {
    let mut consumer = exhausted()?;
    let twice = offset(4);
    consumer.push_offsets(&[twice, twice]);
    consumer.flush_to(2)?;
    consumer.expect_free("twice in one flush", &[twice])?;
    consumer.push_offsets(&[twice]);
    consumer.flush_to(3)?;
    consumer.push_offsets(&[twice]);
    consumer.flush_to(4)?;
    consumer.expect_free("in two flushes", &[twice])?;
    // With another between the two, of which no run is made.
    consumer.push_offsets(&[twice, offset(0), twice]);
    consumer.flush_to(7)?;
    consumer.expect_free("with another between", &[offset(0), twice])?;
    Ok(Outcome::Passed)
}

fn zx21() -> TestResult {
    const MANY: usize = ENTRIES as usize;
    let (mut consumer, area) = Consumer::new(ENTRIES, MANY)?;
    let all = all(MANY);
    consumer.expect_free("at first", &all)?;
    consumer.push_offsets(&all[..33]);
    consumer.flush_to(33)?;
    consumer.expect_free("33", &all[..33])?;
    // The queue is full, and goes around its end.
    consumer.push_offsets(&all);
    consumer.flush_to(33 + ENTRIES)?;
    for taken in consumer.expect_free("a full queue", &all)? {
        taken.check(&[&area])?;
    }
    Ok(Outcome::Passed)
}

fn zx31() -> TestResult {
    const BUFFERS: usize = 512;
    /// Entries in a row that name the same buffer.
    const EACH: u32 = MAX_ENTRIES / BUFFERS as u32;
    /// As many are given back before the kernel looks whether it is to end.
    const BATCH: u32 = 32;
    let before = Held::now()?;
    let (mut consumer, area) = Consumer::new(MAX_ENTRIES, BUFFERS)?;
    let all = all(BUFFERS);
    consumer.expect_free("at first", &all)?;
    let file = export(&consumer)?;
    // The other process has no more than a moment, and this one may lose the CPU.
    for round in 0..50 {
        let (begin, end) = (round * MAX_ENTRIES, (round + 1) * MAX_ENTRIES);
        for offset in all.iter().flat_map(|&at| [at; EACH as usize]) {
            consumer.give_back(offset);
        }
        let child = sandbox::spawn(|| {
            let ring = WideRing::new(2)?;
            import_into(&ring, &file, 0)?;
            Consumer::attach(ring, 0, MAX_ENTRIES)?.flush()?;
            loop {
                pause();
            }
        })?;
        while consumer.head() == begin {
            std::hint::spin_loop();
        }
        kill(child, Signal::SIGKILL)?;
        sandbox::killed(child)?;

        let head = consumer.head();
        let read = head.wrapping_sub(begin);
        expect_eq("a part of a batch", read % BATCH, 0)?;
        ensure!((BATCH..=MAX_ENTRIES).contains(&read), "{read} entries");
        // What was read is given back, and nothing else.
        let (named, left) = (read.div_ceil(EACH) as usize, (read / EACH) as usize);
        consumer.set_tail(head);
        consumer.expect_free("what it has read", &all[..named])?;
        consumer.set_tail(end);
        consumer.flush_to(end)?;
        consumer.expect_free("what it has not read", &all[left..])?;
        if read < MAX_ENTRIES {
            println!("{NOTE}killed after {read} entries, in round {round}");
            drop((consumer, file, area));
            before.wait("closing")?;
            return Ok(Outcome::Passed);
        }
    }
    bail!("each flush went on to its end")
}
