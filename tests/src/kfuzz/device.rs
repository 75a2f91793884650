// SPDX-License-Identifier: GPL-2.0
//! The software NIC in programs: its knobs, plugs, links and queues, and connections over
//! it. Programs without an operation of this kind do not touch it.

use std::os::fd::IntoRawFd;

use super::machine::{Machine, Mode};
use super::op::{Op, Program};
use crate::nic::{self, Nic, PEER, PORT};

/// The knobs that make the port misbehave, with the largest value that programs set.
const KNOBS: [(&str, i64); 14] = [
    ("page_frags", 1),
    ("fail_alloc", 3),
    ("fail_mem_alloc", 2),
    ("fail_start", 2),
    ("spared", 15),
    ("retry", 4),
    ("delay", 200),
    ("pack", 2048),
    ("pool_bidirectional", 1),
    ("pool_unmapped", 1),
    ("pool_foreign", 1),
    ("ignore_provider", 1),
    ("frag_list", 1),
    ("header_ring", 1),
];

/// The two ports, as programs find them.
pub struct Device(Nic);

impl Device {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Device(Nic::new()?))
    }

    /// Returns the interface index of the port that receives.
    pub fn index(&self) -> u32 {
        self.0.index
    }
}

/// Returns whether a program changes the device.
pub fn is_on_device(program: &Program) -> bool {
    let mut ops = program.0.iter();
    ops.any(|op| matches!(op, Op::Device { .. }))
}

impl Machine<'_> {
    /// Connects over the device, or changes it. Results of traffic depend on timing, so
    /// there is none where results are compared.
    pub fn change_device(&mut self, what: u8, value: u8) {
        let Some(Device(nic)) = self.device else {
            return;
        };
        self.on_device = true;
        let value = i64::from(value);
        let got = match what {
            0..64 if self.mode == Mode::Race => {
                nic.connect_to("10.9.0.1").map(|(sender, receiver)| {
                    let files = self.connect(sender.into_raw_fd(), receiver.into_raw_fd());
                    self.keep(&files);
                })
            }
            0..64 => Ok(()),
            64..160 => {
                let (knob, most) = KNOBS[usize::from(what) % KNOBS.len()];
                nic.set(knob, value % (most + 1))
            }
            160..176 => nic::unplug(PORT),
            176..192 => nic::plug(PORT),
            192..200 => nic::unplug(PEER),
            200..216 => nic.down(),
            216..232 => nic.up(),
            232..244 => nic.set_mtu(1500 + 30 * value as u32),
            _ => nic.set_ring(16 << (value % 4)),
        };
        match got {
            Ok(()) => self.log.say("done"),
            Err(error) => self.log.say(&format!("{error:#}")),
        }
    }
}
