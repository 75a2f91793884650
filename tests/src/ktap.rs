// SPDX-License-Identifier: GPL-2.0
//! Prints KTAP version 1 and runs each test in a process of its own.

use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, getpgid};

/// Exit status by which a test process says that it was skipped.
pub const SKIPPED: i32 = 77;

/// The outcome of a test.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    Passed,
    Skipped(String),
    Failed(String),
}

/// Prints the plan of a test or of a group of tests.
pub fn plan(indent: usize, tests: usize) {
    println!("{:indent$}KTAP version 1", "");
    println!("{:indent$}1..{tests}", "");
}

/// Prints the plan of a group inside a larger plan.
pub fn subtest(indent: usize, name: &str, tests: usize) {
    println!("{:indent$}KTAP version 1", "");
    println!("{:indent$}# Subtest: {name}", "");
    println!("{:indent$}1..{tests}", "");
}

/// Prints a line that explains the result that follows.
pub fn diagnostic(indent: usize, text: &str) {
    println!("{:indent$}# {text}", "");
}

/// Prints a result line.
pub fn result(indent: usize, number: usize, name: &str, verdict: &Verdict) {
    match verdict {
        Verdict::Passed => println!("{:indent$}ok {number} {name}", ""),
        Verdict::Skipped(reason) => {
            println!("{:indent$}ok {number} {name} # SKIP {reason}", "")
        }
        Verdict::Failed(reason) => {
            diagnostic(indent, &format!("{name}: {reason}"));
            println!("{:indent$}not ok {number} {name}", "");
        }
    }
    // Flushing fails only if nobody reads the output any more.
    let _ = std::io::stdout().flush();
}

/// A program that ended or was killed.
pub struct Finished {
    /// The process group that the program led.
    pub group: Pid,
    /// The exit status, or `None` if the program was killed at the time limit.
    pub status: Option<ExitStatus>,
    /// The kernel's functions in which the program's threads waited at the time limit.
    pub waited_in: Vec<String>,
    pub output: String,
    pub took: Duration,
}

/// The time after which [`run`] says again that a program is running.
const REMINDER: Duration = Duration::from_secs(25);

/// Runs a program in a process group of its own until it ends or the time limit passes,
/// and then kills what is left of the group. Says from time to time that `name` is
/// running. Both output streams go to one unlinked file: with a pipe, a grandchild that
/// lives on would keep the reader waiting.
pub fn run(
    command: &mut Command,
    limit: Duration,
    name: &dyn fmt::Display,
) -> anyhow::Result<Finished> {
    let mut reminder = REMINDER;
    let mut capture = anonymous_file().context("a file for the output")?;
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(capture.try_clone()?)
        .stderr(capture.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("starting {:?}", command.get_program()))?;
    let group = Pid::from_raw(child.id() as i32);

    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if start.elapsed() > limit {
            break None;
        }
        if start.elapsed() > reminder {
            diagnostic(4, &format!("{name} has run for {} s", reminder.as_secs()));
            reminder += REMINDER;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    let took = start.elapsed();
    let waited_in = match status {
        Some(_) => Vec::new(),
        None => wait_channels(group),
    };
    // Fails if the group is empty already, as it should be.
    let _ = killpg(group, Signal::SIGKILL);
    if status.is_none() {
        reap(&mut child);
    }

    let mut output = Vec::new();
    capture.rewind()?;
    capture.read_to_end(&mut output)?;
    Ok(Finished {
        group,
        status,
        waited_in,
        output: String::from_utf8_lossy(&output).into_owned(),
        took,
    })
}

/// Returns the kernel's function in which each thread of a process group waits, if it does.
fn wait_channels(group: Pid) -> Vec<String> {
    let numbers = |path: &str| -> Vec<i32> {
        let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect()
    };
    let mut channels = Vec::new();
    for process in numbers("/proc") {
        if getpgid(Some(Pid::from_raw(process))) != Ok(group) {
            continue;
        }
        for thread in numbers(&format!("/proc/{process}/task")) {
            let path = format!("/proc/{process}/task/{thread}/wchan");
            channels.extend(
                std::fs::read_to_string(path)
                    .ok()
                    .filter(|name| name != "0"),
            );
        }
    }
    channels
}

/// Waits for a killed child for five seconds at most, as a bug in the kernel under test
/// may have made it unkillable.
fn reap(child: &mut std::process::Child) {
    for _ in 0..500 {
        if !matches!(child.try_wait(), Ok(None)) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn anonymous_file() -> anyhow::Result<File> {
    let name = c"output";
    let fd = nix::sys::memfd::memfd_create(name, nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    Ok(File::from(fd))
}

impl Finished {
    /// Translates the exit status: 0 is a pass, 77 a skip, anything else a failure.
    pub fn verdict(&self) -> Verdict {
        let Some(status) = self.status else {
            let seconds = self.took.as_secs();
            let mut reason = format!("no end after {seconds} s");
            if !self.waited_in.is_empty() {
                reason += &format!(", waits in {}", self.waited_in.join(", "));
            }
            return Verdict::Failed(reason);
        };
        match (status.code(), status.signal()) {
            (Some(0), _) => Verdict::Passed,
            (Some(SKIPPED), _) => Verdict::Skipped(self.reason()),
            (Some(code), _) => Verdict::Failed(format!("exit status {code}")),
            (None, Some(signal)) => Verdict::Failed(match Signal::try_from(signal) {
                Ok(signal) => format!("killed by {signal}"),
                Err(_) => format!("killed by signal {signal}"),
            }),
            (None, None) => Verdict::Failed("ended in no known way".to_string()),
        }
    }

    /// Returns the last line of output, in which a skipped program says why.
    fn reason(&self) -> String {
        let last = self.output.lines().rev().find(|line| !line.is_empty());
        last.unwrap_or("no reason given").to_string()
    }
}
