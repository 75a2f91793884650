// SPDX-License-Identifier: GPL-2.0
//! Finds what tests must not leave behind: processes, rings that are still being taken
//! down, page pools, and pinned pages.

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

/// The number of seconds in which all leftovers must go. A page pool checks once a
/// second whether its buffers have come back.
const SECONDS: u64 = 6;
/// The flag of a task that says that it is a kernel thread.
const PF_KTHREAD: u64 = 0x0020_0000;

/// The scope of a search for leftovers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The processes of one group, and what they may have left.
    Group(Pid),
    /// All processes, and everything that they may have left.
    Everywhere,
}

/// The leftovers that are there.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Leftovers {
    /// Each leftover, described in words.
    descriptions: BTreeSet<String>,
    /// The number of page pins, whichever process holds them.
    pins: i64,
}

impl Leftovers {
    fn now(scope: Scope) -> anyhow::Result<Self> {
        let mut descriptions = BTreeSet::new();
        match scope {
            Scope::Group(group) => {
                if killpg(group, None).is_ok() {
                    descriptions.insert(format!("processes of group {group}"));
                }
            }
            Scope::Everywhere => descriptions.extend(processes()?),
        }
        let everywhere = scope == Scope::Everywhere;
        for pool in netdev::pools_left(everywhere)? {
            descriptions.insert(format!("page pool {pool}"));
        }
        Ok(Leftovers {
            descriptions,
            pins: pins()?,
        })
    }

    /// Waits until there are no leftovers but those `known` already. Returns the others
    /// that remain when time is up.
    pub fn wait(scope: Scope, known: &mut Self) -> anyhow::Result<Self> {
        let start = Instant::now();
        loop {
            let now = Self::now(scope)?;
            let new = Leftovers {
                descriptions: now
                    .descriptions
                    .difference(&known.descriptions)
                    .cloned()
                    .collect(),
                pins: now.pins - known.pins,
            };
            if new == Leftovers::default() || start.elapsed() > limit(SECONDS) {
                *known = now;
                return Ok(new);
            }
            if new
                .descriptions
                .iter()
                .any(|description| description.starts_with("page"))
            {
                // Another CPU may have to free the buffers of packets.
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
        let mut words: Vec<String> = self.descriptions.iter().cloned().collect();
        if self.pins != 0 {
            words.push(format!("{} pins of pages", self.pins));
        }
        f.write_str(&words.join(", "))
    }
}

/// Returns all processes but this one and the first, and the kernel workers that are
/// taking a ring down.
fn processes() -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    let own = std::process::id();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // The process may have ended meanwhile.
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
        // The name of a worker that is taking a ring down ends in this.
        if is_kernel && name.ends_with("+iou_exit") {
            found.push(format!("worker {name} of a ring"));
        } else if !is_kernel && pid != own && pid != 1 {
            found.push(format!("process {pid} ({name})"));
        }
    }
    Ok(found)
}
