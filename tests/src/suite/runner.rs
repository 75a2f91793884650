// SPDX-License-Identifier: GPL-2.0
//! Runs tests one after the other, each in a process of its own. After each test,
//! restores the settings and waits for the end of what the test left behind.

use std::cmp::Reverse;
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::{NOTE, Test};
use crate::kernel;
use crate::ktap::{self, Finished, Verdict};
use crate::leftovers::{Leftovers, Scope};
use crate::settings::Settings;

/// A runner of tests, which records how long they take.
pub struct Runner {
    /// The settings before the first test.
    settings: Settings,
    /// The leftovers of earlier tests, which have failed for them.
    known: Leftovers,
    times: Vec<(Duration, &'static Test)>,
}

impl Runner {
    pub fn new() -> anyhow::Result<Self> {
        Ok(Runner {
            settings: Settings::now().context("settings")?,
            known: Leftovers::default(),
            times: Vec::new(),
        })
    }

    /// Runs one test, at its full length if `long`, and shows its notes. The test also
    /// fails if it leaves something behind that is not gone in time.
    pub fn run(&mut self, test: &'static Test, seed: u64, long: bool) -> anyhow::Result<Verdict> {
        let mut command = Command::new("/proc/self/exe");
        command.args(["--only", test.tag, "--seed", &seed.to_string()]);
        if long {
            command.arg("--long");
        }
        let finished = ktap::run(&mut command, kernel::limit(test.limit), test)
            .with_context(|| format!("running {test}"))?;
        let mut verdict = finished.verdict();
        for path in self.settings.restore().context("settings")? {
            if finished.status.is_none() {
                ktap::diagnostic(4, &format!("{}: {} is put back", test.tag, path.display()));
            }
        }
        let left = Leftovers::wait(Scope::Group(finished.group), &mut self.known)?;
        if !left.is_empty() {
            let reason = format!("{}, leaves {left}", in_words(&verdict));
            verdict = Verdict::Failed(reason);
        }
        show_output(test, &finished, &verdict);
        self.times.push((finished.took, test));
        Ok(verdict)
    }

    /// Waits until nothing is left of any test.
    pub fn finish(&mut self) -> anyhow::Result<Verdict> {
        let left = Leftovers::wait(Scope::Everywhere, &mut self.known)?;
        Ok(if left.is_empty() {
            Verdict::Passed
        } else {
            Verdict::Failed(format!("{left} are left"))
        })
    }

    /// Shows the tests that took longest.
    pub fn show_slowest(&mut self) {
        const SHOWN: usize = 30;
        self.times.sort_by_key(|(took, _)| Reverse(*took));
        let sum: Duration = self.times.iter().map(|(took, _)| took).sum();
        let seconds = sum.as_secs_f32();
        ktap::diagnostic(0, &format!("all tests took {seconds:.1} s, the slowest:"));
        for (took, test) in self.times.iter().take(SHOWN) {
            ktap::diagnostic(0, &format!("{:6.1} s  {test}", took.as_secs_f32()));
        }
    }
}

fn in_words(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Passed => "passed".to_string(),
        Verdict::Skipped(reason) => format!("skipped ({reason})"),
        Verdict::Failed(reason) => reason.clone(),
    }
}

/// Shows a test's notes, and all its output if it failed.
fn show_output(test: &Test, finished: &Finished, verdict: &Verdict) {
    let failed = matches!(verdict, Verdict::Failed(_));
    for line in finished.output.lines() {
        if let Some(note) = line.strip_prefix(NOTE) {
            ktap::diagnostic(4, &format!("{}: {note}", test.tag));
        } else if failed {
            ktap::diagnostic(4, line);
        }
    }
}
