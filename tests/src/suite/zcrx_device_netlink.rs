// SPDX-License-Identifier: GPL-2.0
//! D10: netlink messages that are nearly full when a provider adds what it reports
//! about its queue.

use anyhow::{Context, ensure};

use super::zcrx_device::{BUFFERS, ENTRIES};
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::expect_eq;
use crate::netlink::{self, Message, attribute};
use crate::nic::{Nic, QUEUE, run};
use crate::register::PAGE_SIZE;

pub const TESTS: &[Test] = tests! {
    "zcrx::device::netlink" {
        ZN48 nearly_full_messages_stay_whole (30 s);
    }
};

const NETDEV_CMD_QUEUE_GET: u8 = 10;
const NETDEV_A_QUEUE_ID: u16 = 1;
const NETDEV_A_QUEUE_IFINDEX: u16 = 2;
const NETDEV_A_QUEUE_TYPE: u16 = 3;
const NETDEV_A_QUEUE_IO_URING: u16 = 6;
const NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN: u16 = 1;

/// The number of queues of a device that comes first in the dump. Their messages need
/// more than a page.
const QUEUES: usize = 70;

/// A device that only adds messages to the dump. Dropping it removes the device.
struct Filler;

impl Filler {
    fn new() -> anyhow::Result<Self> {
        run(
            &format!("ip link add fill0 numrxqueues {QUEUES} numtxqueues {QUEUES} type dummy"),
            None,
        )?;
        let filler = Filler;
        run("ip link set fill0 up", None)?;
        Ok(filler)
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        let _ = run("ip link del fill0", None);
    }
}

/// Returns the size of the buffers that io_uring provides to a queue. Its nested
/// attribute must hold nothing else.
fn buffer(message: &Message) -> Option<&[u8]> {
    let nest = message.attribute(NETDEV_A_QUEUE_IO_URING)?;
    let size = attribute(nest, NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN)?;
    // The nested attribute takes eight bytes: a header and four bytes of value.
    (nest.len() == 8).then_some(size)
}

/// Checks that the provider's netlink attribute is written whole or not at all,
/// whatever room the message has.
fn nearly_full_messages_stay_whole() -> TestResult {
    let _filler = Filler::new()?;
    let nic = Nic::new()?;
    let ring = roomy_ring()?;
    let _ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    let dump = |size| netlink::dump("netdev", NETDEV_CMD_QUEUE_GET, size);

    // This reads everything at once.
    let reads = dump(30_000)?;
    let all = reads.first().context("no messages")?;
    let is_ours = |message: &&Message| {
        let is = |kind, value: u32| message.attribute(kind) == Some(&value.to_ne_bytes()[..]);
        is(NETDEV_A_QUEUE_IFINDEX, nic.index)
            && is(NETDEV_A_QUEUE_ID, QUEUE)
            && is(NETDEV_A_QUEUE_TYPE, 0)
    };
    let at = all.iter().position(|message| is_ours(&message));
    let at = at.context("the queue is not in the dump")?;
    let size = (PAGE_SIZE as u32).to_ne_bytes();
    expect_eq("the queue's buffer size", buffer(&all[at]), Some(&size[..]))?;
    let told: Vec<&Message> = all.iter().filter(|m| buffer(m).is_some()).collect();
    expect_eq("queues with a provider", told.len(), 1)?;
    let before: usize = all.iter().take(at).map(Message::len).sum();
    let len = all[at].len();
    ensure!(before > PAGE_SIZE, "{before} bytes before it");

    // The room that is left in the message goes from nothing to more than the queue's
    // message takes.
    for room in 0..len + 8 {
        let what = format!("{room} bytes of {len}");
        let reads = dump(before + room)?;
        let fits = if room < len { at } else { at + 1 };
        let first = reads.first().context("no messages")?;
        expect_eq(&what, first.len(), fits)?;
        let again: Vec<Message> = reads.concat();
        expect_eq(&what, again.len(), all.len())?;
        for (number, (message, want)) in again.iter().zip(all).enumerate() {
            expect_eq(&format!("{what}, message {number}"), message, want)?;
        }
    }
    Ok(Outcome::Passed)
}
