// SPDX-License-Identifier: GPL-2.0
//! What tests must not leave behind: processes, rings that are still taken down,
//! page pools, and pinned pages.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::killpg;
use nix::unistd::Pid;

use crate::kernel::limit;
use crate::netdev;
use crate::nic::receive_on_all_cpus;
use crate::sandbox::pins;

/// How long it takes until all is gone, at most. A page pool looks once a second
/// whether its buffers have come back.
const SECONDS: u64 = 6;
/// In the flags of a task: it is one of the kernel's.
const PF_KTHREAD: u64 = 0x0020_0000;

/// How thoroughly to look.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Look {
    /// At what the processes of one group may have left.
    Group(Pid),
    /// At everything, with every process that there is.
    Everywhere,
}

/// What is there that nobody should have any more.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Leftovers {
    /// Each in words.
    things: BTreeSet<String>,
    /// Pins of pages, whoever has them.
    pins: i64,
}

impl Leftovers {
    fn now(look: Look) -> anyhow::Result<Self> {
        let mut things = BTreeSet::new();
        match look {
            Look::Group(group) => {
                if killpg(group, None).is_ok() {
                    things.insert(format!("processes of group {group}"));
                }
            }
            Look::Everywhere => things.extend(processes()?),
        }
        let everywhere = look == Look::Everywhere;
        for pool in netdev::pools_left(everywhere)? {
            things.insert(format!("page pool {pool}"));
        }
        Ok(Leftovers {
            things,
            pins: pins()?,
        })
    }

    /// Waits until there is nothing but what is `known`. Returns what else there still
    /// is in the end.
    pub fn wait(look: Look, known: &mut Self) -> anyhow::Result<Self> {
        let start = Instant::now();
        loop {
            let now = Self::now(look)?;
            let new = Leftovers {
                things: now.things.difference(&known.things).cloned().collect(),
                pins: now.pins - known.pins,
            };
            if new == Leftovers::default() || start.elapsed() > limit(SECONDS) {
                *known = now;
                return Ok(new);
            }
            if new.things.iter().any(|thing| thing.starts_with("page")) {
                // Buffers of packets may be left to another CPU.
                receive_on_all_cpus()?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn is_empty(&self) -> bool {
        *self == Leftovers::default()
    }
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut words: Vec<String> = self.things.iter().cloned().collect();
        if self.pins != 0 {
            words.push(format!("{} pins of pages", self.pins));
        }
        f.write_str(&words.join(", "))
    }
}

/// Returns the processes but for this one and the first, and the kernel's workers that
/// take a ring down.
fn processes() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let own = std::process::id();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // It may have ended meanwhile.
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            continue;
        };
        let (Some((_, rest)), Some((head, tail))) = (stat.split_once('('), stat.rsplit_once(") "))
        else {
            continue;
        };
        let name = &rest[..head.len() - (stat.len() - rest.len())];
        let flags = tail.split(' ').nth(6).and_then(|word| word.parse().ok());
        let is_kernel = flags.unwrap_or(0u64) & PF_KTHREAD != 0;
        // A worker that is at it has this behind its name.
        if is_kernel && name.ends_with("+iou_exit") {
            found.push(format!("worker {name} of a ring"));
        } else if !is_kernel && pid != own && pid != 1 {
            found.push(format!("process {pid} ({name})"));
        }
    }
    Ok(found)
}
