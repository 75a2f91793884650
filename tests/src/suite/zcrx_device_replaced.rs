// SPDX-License-Identifier: GPL-2.0
//! D10: a network device that is replaced by another one with the same index while
//! memory is being pinned for it.

use std::fs::File;
use std::os::fd::AsRawFd;

use super::zcrx_device::{ENTRIES, works};
use super::zcrx_waiting::{Withheld, meanwhile};
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::netlink;
use crate::nic::{self, Nic, PEER, PORT};
use crate::register::PAGE_SIZE;
use crate::wide::WideRing;
use crate::zcrx::pinned;

pub const TESTS: &[Test] = tests! {
    "zcrx::device::replaced" {
        ZN47 memory_is_not_given_to_another_device (60 s);
    }
};

/// The number of buffers: more than a ring of the device has.
const PAGES: usize = 96;

/// The device that takes the first one's place.
#[derive(Clone, Copy, Debug)]
enum Successor {
    /// The other port, which does DMA with another device.
    Other,
    /// The same port, plugged in again.
    Same,
    /// A device that does no DMA.
    Dummy,
}

impl Successor {
    /// Unplugs the port and puts the successor in its place.
    fn replace(self, nic: &Nic, here: &File) -> anyhow::Result<()> {
        let to = |port: &str| {
            let index = nix::net::if_::if_nametoindex(port)?;
            netlink::move_device(index, here.as_raw_fd(), nic.index)
        };
        nic::unplug(PORT)?;
        match self {
            Successor::Other => nic.in_peer_namespace(|| to(PEER)),
            Successor::Same => {
                nic::plug(PORT)?;
                nic.move_to_peer(PORT)?;
                nic.in_peer_namespace(|| to(PORT))?;
                nic.ethtool("-G zsim0 tcp-data-split on")?;
                // A device that is down reports no queues.
                nic.up()
            }
            Successor::Dummy => nic
                .ip(&format!("link add dummy7 index {} type dummy", nic.index))
                .map(drop),
        }
    }
}

/// Checks that memory is not given to a device that replaced the one it was pinned for,
/// unless the hardware is the same.
///
/// In C, the device cannot be replaced meanwhile.
fn memory_is_not_given_to_another_device() -> TestResult {
    let in_c = zcrx_implementation() == Implementation::C;
    for (successor, want) in [
        (Successor::Other, -libc::ENODEV),
        (Successor::Same, 0),
        (Successor::Dummy, -libc::EOPNOTSUPP),
    ] {
        let what = format!("{successor:?}");
        let nic = Nic::new()?;
        // The other port must be valid in every other respect.
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
        // C holds the device's lock until it has the memory and the queue.
        expect_result(&what, got, if in_c { 0 } else { want })?;
        if !in_c {
            let (pages, buffer) = match want {
                0 => (PAGES, Some(PAGE_SIZE as u64)),
                _ => (0, None),
            };
            expect_eq(&what, held, (pages, buffer))?;
        }
        nic::wait_drained()?;
        nic::wait_pinned(0)?;
        if let Successor::Dummy = successor {
            nic.ip("link del dummy7")?;
        }
        drop(nic);
        works(&Nic::new()?)?;
    }
    Ok(Outcome::Passed)
}
