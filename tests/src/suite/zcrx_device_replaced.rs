// SPDX-License-Identifier: GPL-2.0
//! D10: a network device that gives way to another one, of the same index, while memory
//! is pinned for it.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::zcrx_device::{ENTRIES, works};
use super::zcrx_waiting::{Withheld, meanwhile};
use super::{Outcome, Test, TestResult, slow};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::netlink;
use crate::nic::{self, Nic, PEER, PORT};
use crate::register::PAGE_SIZE;
use crate::wide::WideRing;
use crate::zcrx::pinned;

pub const TESTS: &[Test] = &[slow(
    "ZN47 a device that is replaced while memory is withheld",
    60,
    zn47,
)];

/// Buffers: more than a ring of the device has.
const PAGES: usize = 96;

/// What takes the device's place.
#[derive(Clone, Copy, Debug)]
enum Successor {
    /// The other port, which transfers by another device.
    Other,
    /// The same port, put in again.
    Same,
    /// A device that transfers nothing.
    Dummy,
}

impl Successor {
    /// Puts it into the place of the port, which is pulled out.
    fn replace(self, nic: &Nic, here: &File) -> anyhow::Result<()> {
        let to = |port: &str| {
            let index = nix::net::if_::if_nametoindex(port)?;
            netlink::move_device(index, here.as_raw_fd(), nic.index)
        };
        nic::unplug(PORT)?;
        match self {
            Successor::Other => nic.at_peer(|| to(PEER)),
            Successor::Same => {
                nic::plug(PORT)?;
                nic.move_to_peer(PORT)?;
                nic.at_peer(|| to(PORT))?;
                nic.ethtool("-G zsim0 tcp-data-split on")?;
                // Or it would tell of no queues.
                nic.up()
            }
            Successor::Dummy => nic
                .ip(&format!("link add dummy7 index {} type dummy", nic.index))
                .map(drop),
        }
    }
}

fn zn47() -> TestResult {
    let in_c = zcrx_implementation() == Implementation::C;
    for (successor, want) in [
        (Successor::Other, -libc::ENODEV),
        (Successor::Same, 0),
        (Successor::Dummy, -libc::EOPNOTSUPP),
    ] {
        let what = format!("{successor:?}");
        let nic = Nic::new()?;
        // Nothing but the device itself is to be wrong with it.
        nic.peer_ethtool("-G zsim1 tcp-data-split on")?;
        let here = File::open("/proc/self/ns/net")?;
        let withheld = Withheld::new(PAGES)?;
        let act = || {
            let ring = WideRing::new(8)?;
            let mut registration = nic.registration(ENTRIES, &withheld.memory);
            let got = registration.register(ring.fd());
            let held = (pinned()?, nic.provided().ok().flatten());
            anyhow::Ok((got, held))
        };
        let (got, held) = meanwhile(&withheld, act, || successor.replace(&nic, &here))??;
        // C has the device locked until it has the memory, and the queue.
        expect_result(&what, got, if in_c { 0 } else { want })?;
        if !in_c {
            let (pages, buffer) = match want {
                0 => (PAGES, Some(PAGE_SIZE as u64)),
                _ => (0, None),
            };
            expect_eq(&what, held, (pages, buffer))?;
        }
        nic::drained()?;
        nic::wait_pinned(0)?;
        if let Successor::Dummy = successor {
            nic.ip("link del dummy7")?;
        }
        drop(nic);
        works(&Nic::new()?)?;
    }
    Ok(Outcome::Passed)
}
