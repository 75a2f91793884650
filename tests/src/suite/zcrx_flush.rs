// SPDX-License-Identifier: GPL-2.0
//! D8: flushing the refill queue of an interface queue: the entries that give a buffer
//! back, and those that are only passed over.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::ensure;
use nix::sys::signal::{Signal, kill};
use nix::unistd::pause;

use super::zcrx_sharing::{export, import_into};
use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::buffers::{Consumer, Resources, offset};
use crate::kernel::{Implementation, expect_eq, expect_result, limit, zcrx_implementation};
use crate::sandbox;
use crate::wide::WideRing;
use crate::zcrx::{AREA_SHIFT, Ctrl, MAX_ENTRIES, Rqe, ZCRX_CTRL_FLUSH_RQ, control};

pub const TESTS: &[Test] = tests! {
    "zcrx::flush" {
        ZX14 invalid_operation_consumes_nothing;
        ZX15 entries_for_free_buffers_have_no_effect;
        ZX16 invalid_entries_are_passed_over;
        ZX17 high_bits_of_an_offset_are_not_ignored;
        ZX18 valid_entries_around_an_invalid_one_count;
        ZX19 invalid_head_and_tail_do_no_harm;
        ZX20 second_entry_for_a_buffer_has_no_effect;
        ZX21 full_queue_is_consumed_at_once;
        ZX31 killed_process_stops_between_batches (60 s);
    }
};

/// The number of entries of the refill queue and of buffers, unless a test says
/// otherwise.
const ENTRIES: u32 = 64;
const PAGES: usize = 8;

/// Returns the offsets of `pages` buffers.
fn all(pages: usize) -> Vec<u64> {
    (0..pages).map(offset).collect()
}

/// Makes a queue all of whose buffers have been handed out.
fn exhausted() -> anyhow::Result<Consumer> {
    let (mut consumer, area) = Consumer::new(ENTRIES, PAGES)?;
    for taken in consumer.expect_free("at first", &all(PAGES))? {
        taken.check(&[&area])?;
    }
    Ok(consumer)
}

/// Checks that reserved words give EINVAL, an unknown id ENXIO, and neither consumes an
/// entry; flushing an empty queue does nothing.
fn invalid_operation_consumes_nothing() -> TestResult {
    let before = Resources::now()?;
    let mut consumer = exhausted()?;
    let fd = consumer.ring.fd();
    let held = Resources::now()?;
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
        // Without a free buffer, Rust consumes the refill queue itself when it needs
        // one.
        consumer.expect_free("after errors", &[])?;
    }
    consumer.flush_to(1)?;
    consumer.expect_free("after a flush", &[offset(3)])?;
    consumer.flush_to(1)?;
    consumer.expect_free("after an empty flush", &[])?;
    // A ring without a queue.
    let other = WideRing::new(2)?;
    let got = control(other.fd(), &mut { valid });
    expect_result("a ring without a queue", got, -libc::ENXIO)?;
    drop((consumer, other));
    before.wait("closing")?;
    Ok(Outcome::Passed)
}

/// Checks that entries for buffers that are free have no effect.
fn entries_for_free_buffers_have_no_effect() -> TestResult {
    let (mut consumer, _area) = Consumer::new(ENTRIES, PAGES)?;
    // Each buffer is in the refill queue twice.
    consumer.push_offsets(&all(PAGES));
    consumer.push_offsets(&all(PAGES));
    consumer.flush_to(16)?;
    consumer.expect_free("each once", &all(PAGES))?;
    // Now some of the entries are for buffers that are free.
    consumer.push_offsets(&[offset(1), offset(5)]);
    consumer.flush_to(18)?;
    let all = all(PAGES);
    consumer.push_offsets(&all[1..6]);
    consumer.flush_to(23)?;
    consumer.expect_free("each once again", &all[1..6])?;
    Ok(Outcome::Passed)
}

/// Checks that entries that name no buffer or have padding are consumed and have no
/// effect.
fn invalid_entries_are_passed_over() -> TestResult {
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
    // The length is user space's own, and an offset may point anywhere into a buffer.
    consumer.push(Rqe {
        off: offset(5) + 4095,
        len: u32::MAX,
        pad: 0,
    });
    consumer.flush_to(invalid.len() as u32 + 1)?;
    consumer.expect_free("a valid one", &[offset(5)])?;
    Ok(Outcome::Passed)
}

/// Checks that an offset with a bit from 43 on names no buffer.
///
/// In C, bits from 44 on are lost, so that such an offset names buffer 0.
fn high_bits_of_an_offset_are_not_ignored() -> TestResult {
    let mut consumer = exhausted()?;
    let mut head = 0;
    for bit in 44..AREA_SHIFT {
        consumer.push_offsets(&[1 << bit]);
        head += 1;
        consumer.flush_to(head)?;
        let what = format!("bit {bit} at buffer 0");
        match zcrx_implementation() {
            // C loses these bits.
            Implementation::C => consumer.expect_free(&what, &[0])?,
            Implementation::Rust => consumer.expect_free(&what, &[])?,
        };
    }
    // An offset that fits into 32 bits is too high in both.
    consumer.push_offsets(&[1 << 43]);
    consumer.flush_to(head + 1)?;
    consumer.expect_free("bit 43 at buffer 0", &[])?;
    consumer.push_offsets(&[0]);
    consumer.flush_to(head + 2)?;
    consumer.expect_free("buffer 0 itself", &[0])?;
    Ok(Outcome::Passed)
}

/// Checks that an invalid entry does not keep a flush from the entries behind it.
///
/// In C, an invalid entry ends the flush, and the next one goes on behind it.
fn valid_entries_around_an_invalid_one_count() -> TestResult {
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
                // The invalid entry ends the flush.
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
    // A valid entry for a buffer that nobody has stops nothing.
    consumer.push_offsets(&[valid[0], valid[0], valid[1]]);
    consumer.flush_to(9)?;
    consumer.expect_free("around an entry for a free buffer", &valid)?;
    Ok(Outcome::Passed)
}

/// Checks that the free buffers are those at the offsets `want`. Empties the refill queue
/// first, so that the receives of [`Consumer::expect_free`] find no entries there.
fn only_free(consumer: &mut Consumer, what: &str, want: &[u64]) -> anyhow::Result<()> {
    consumer.set_tail(consumer.head());
    consumer.expect_free(what, want).map(drop)
}

/// Checks that with any head and tail in the refill queue, a flush consumes at most one
/// queue of entries, and goes on as usual with a valid tail.
fn invalid_head_and_tail_do_no_harm() -> TestResult {
    let mut consumer = exhausted()?;
    // The kernel keeps its own head, and only writes it here.
    consumer.memory.word(0).store(1, Ordering::Release);
    consumer.flush_to(0)?;
    consumer.expect_free("head ahead of tail", &[])?;
    // Tail too far: the kernel consumes a whole queue at once. All its entries are for
    // buffer 0.
    consumer.set_tail(2 * ENTRIES);
    consumer.flush_to(ENTRIES)?;
    only_free(&mut consumer, "tail too far", &[0])?;
    consumer.set_tail(2 * ENTRIES);
    consumer.flush_to(2 * ENTRIES)?;
    consumer.expect_free("the rest of that", &[0])?;
    consumer.flush_to(2 * ENTRIES)?;
    consumer.expect_free("nothing more", &[])?;
    // Tail backwards: the kernel consumes the old entries again, a whole queue each
    // time.
    consumer.set_tail(ENTRIES);
    consumer.flush_to(3 * ENTRIES)?;
    only_free(&mut consumer, "tail backwards", &[0])?;
    consumer.set_tail(3 * ENTRIES - 1);
    consumer.flush_to(4 * ENTRIES)?;
    only_free(&mut consumer, "tail one back", &[0])?;
    // This is the farthest tail.
    consumer.set_tail(4 * ENTRIES + (1 << 31));
    consumer.flush_to(5 * ENTRIES)?;
    only_free(&mut consumer, "tail half around", &[0])?;
    // With a valid tail everything works again.
    consumer.set_tail(5 * ENTRIES);
    consumer.flush_to(5 * ENTRIES)?;
    consumer.expect_free("tail at head", &[])?;
    consumer.push_offsets(&all(PAGES));
    consumer.flush_to(5 * ENTRIES + PAGES as u32)?;
    consumer.expect_free("in the end", &all(PAGES))?;
    Ok(Outcome::Passed)
}

/// Checks that a second entry for a buffer has no effect, in the same flush or the
/// next.
fn second_entry_for_a_buffer_has_no_effect() -> TestResult {
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
    // Another entry between the two keeps them from being one run.
    consumer.push_offsets(&[twice, offset(0), twice]);
    consumer.flush_to(7)?;
    consumer.expect_free("with another between", &[offset(0), twice])?;
    Ok(Outcome::Passed)
}

/// Checks that one flush consumes a full queue, which wraps around the end.
fn full_queue_is_consumed_at_once() -> TestResult {
    const MANY: usize = ENTRIES as usize;
    let (mut consumer, area) = Consumer::new(ENTRIES, MANY)?;
    let all = all(MANY);
    consumer.expect_free("at first", &all)?;
    consumer.push_offsets(&all[..33]);
    consumer.flush_to(33)?;
    consumer.expect_free("33", &all[..33])?;
    // The queue is full, and its entries wrap around the end.
    consumer.push_offsets(&all);
    consumer.flush_to(33 + ENTRIES)?;
    for taken in consumer.expect_free("a full queue", &all)? {
        taken.check(&[&area])?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a process that is killed in a flush stops after a whole batch of 32
/// entries, and exactly their buffers are free.
fn killed_process_stops_between_batches() -> TestResult {
    const BUFFERS: usize = 512;
    /// The number of successive entries that name the same buffer.
    const EACH: u32 = MAX_ENTRIES / BUFFERS as u32;
    /// The number of buffers that the kernel gives back before it checks for a fatal
    /// signal.
    const BATCH: u32 = 32;
    let before = Resources::now()?;
    let (mut consumer, area) = Consumer::new(MAX_ENTRIES, BUFFERS)?;
    let all = all(BUFFERS);
    consumer.expect_free("at first", &all)?;
    let file = export(&consumer)?;
    // The other process runs for a moment only, and this one may lose the CPU in it, so
    // this takes several rounds, and many on a machine that is busy.
    let start = Instant::now();
    for round in 0.. {
        ensure!(
            start.elapsed() < limit(40),
            "each flush of {round} ended before its process was killed"
        );
        let (begin, end) = (round * MAX_ENTRIES, (round + 1) * MAX_ENTRIES);
        for offset in all.iter().flat_map(|&at| [at; EACH as usize]) {
            consumer.return_buffer(offset);
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
        expect_eq("entries beyond whole batches", read % BATCH, 0)?;
        ensure!((BATCH..=MAX_ENTRIES).contains(&read), "{read} entries");
        // The entries that were consumed gave their buffers back, and no others did.
        let (named, left) = (read.div_ceil(EACH) as usize, (read / EACH) as usize);
        consumer.set_tail(head);
        consumer.expect_free("buffers of the entries consumed", &all[..named])?;
        consumer.set_tail(end);
        consumer.flush_to(end)?;
        consumer.expect_free("buffers of the other entries", &all[left..])?;
        if read < MAX_ENTRIES {
            println!("{NOTE}killed after {read} entries, in round {round}");
            drop((consumer, file, area));
            before.wait("closing")?;
            break;
        }
    }
    Ok(Outcome::Passed)
}
