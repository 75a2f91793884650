// SPDX-License-Identifier: GPL-2.0
//! Runs the stress tests over and over, each time with another seed, until a given time
//! has passed.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use fastrand::Rng;

use super::runner::Runner;
use super::{Test, all};
use crate::kernel;
use crate::ktap::{self, Verdict};
use crate::sandbox::meminfo;

/// The tests of one round. The random sequences come most often, because they can find
/// most.
const ROUND: [&str; 25] = [
    "ST20", "ST01", "ST06", "ST20", "ST02", "ST07", "ST20", "ST03", "ST08", "ST20", "ST04", "ST12",
    "ST15", "ST20", "ST05", "ST13", "ST16", "ZB05", "ST09", "ST10", "ST11", "ST14", "ST17", "ZN09",
    "ZN40",
];

/// The number of bytes by which kernel memory may grow after the first round.
const GROWTH: u64 = 16 << 20;

/// The number of runs of a test, and its last verdict.
struct Tally {
    test: &'static Test,
    runs: u32,
    verdict: Verdict,
}

/// Returns the size of the kernel memory in bytes, without caches that can be
/// reclaimed.
fn kernel_memory() -> anyhow::Result<u64> {
    // This waits for memory that is being freed.
    std::thread::sleep(kernel::limit(1));
    Ok(meminfo("SUnreclaim:")? + meminfo("VmallocUsed:")? + meminfo("Percpu:")?)
}

/// Runs rounds for `minutes` minutes or until a test fails, and prints KTAP. Returns
/// the number of failures.
pub fn run(minutes: u64, seed: u64) -> anyhow::Result<usize> {
    let mut tallies: Vec<Tally> = Vec::new();
    for tag in ROUND {
        let test = all().find(|test| test.tag == tag).context(tag)?;
        if tallies.iter().all(|tally| tally.test.tag != tag) {
            tallies.push(Tally {
                test,
                runs: 0,
                verdict: Verdict::Skipped("no time was left".to_string()),
            });
        }
    }
    ktap::plan(0, tallies.len() + 1);
    ktap::diagnostic(
        0,
        &format!(
            "{minutes} minutes, filters by {}, zero-copy receive by {}, seed {seed}",
            kernel::implementation(),
            kernel::zcrx_implementation()
        ),
    );

    let mut runner = Runner::new()?;
    let (start, limit) = (Instant::now(), Duration::from_secs(60 * minutes));
    let mut rng = Rng::with_seed(seed);
    let mut first_round = None;
    'rounds: for round in 1.. {
        let seconds = start.elapsed().as_secs();
        ktap::diagnostic(0, &format!("round {round} begins after {seconds} s"));
        for tag in ROUND {
            if start.elapsed() >= limit {
                break 'rounds;
            }
            let tally = tallies.iter_mut().find(|tally| tally.test.tag == tag);
            let tally = tally.expect("every test of a round has one");
            tally.verdict = runner.run(tally.test, rng.u64(..), true)?;
            tally.runs += 1;
            if matches!(tally.verdict, Verdict::Failed(_)) {
                break 'rounds;
            }
        }
        if first_round.is_none() {
            first_round = Some(kernel_memory()?);
        }
    }
    report(&tallies, first_round)
}

fn report(tallies: &[Tally], first_round: Option<u64>) -> anyhow::Result<usize> {
    let mut failures = 0;
    for (index, tally) in tallies.iter().enumerate() {
        let Tally {
            test,
            runs,
            verdict,
        } = tally;
        ktap::diagnostic(0, &format!("{}: {runs} runs", test.tag));
        ktap::result(0, index + 1, &test.to_string(), verdict);
        failures += usize::from(matches!(verdict, Verdict::Failed(_)));
    }
    let memory = match first_round {
        None => Verdict::Skipped("not even one round was complete".to_string()),
        Some(before) => match memory_stays(before) {
            Ok(()) => Verdict::Passed,
            Err(error) => Verdict::Failed(format!("{error:#}")),
        },
    };
    failures += usize::from(matches!(memory, Verdict::Failed(_)));
    let name = "kernel memory stays where it was after the first round";
    ktap::result(0, tallies.len() + 1, name, &memory);
    Ok(failures)
}

fn memory_stays(before: u64) -> anyhow::Result<()> {
    let after = kernel_memory()?;
    let (from, to) = (before >> 10, after >> 10);
    ktap::diagnostic(0, &format!("kernel memory: {from} KiB, then {to} KiB"));
    ensure!(after <= before + GROWTH, "it grew from {from} to {to} KiB");
    Ok(())
}
