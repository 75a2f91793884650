// SPDX-License-Identifier: GPL-2.0
//! The fuzzer. In the guest it runs programs; on this machine it shows, reduces and
//! judges them for scripts/run-kfuzz.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Parser, Subcommand};
use fastrand::Rng;

use io_uring_rs_tests::kernel::limit;
use io_uring_rs_tests::kfuzz::compare::{self, END, LINE, PROGRAM, RUN};
use io_uring_rs_tests::kfuzz::machine::Mode;
use io_uring_rs_tests::kfuzz::mutate;
use io_uring_rs_tests::kfuzz::op::{Program, read_programs};
use io_uring_rs_tests::kfuzz::runner::{Outcome, Runner};
use io_uring_rs_tests::leftovers::{Leftovers, Scope};
use io_uring_rs_tests::ring::Ring;
use io_uring_rs_tests::sqe::Sqe;

/// The number of digests in a line.
const DIGESTS: usize = 32;
/// The number of runs by which a difference is checked.
const RUNS: usize = 3;
/// The time between two lines that say how far the fuzzer is.
const PERIOD: Duration = Duration::from_secs(10);

/// Fuzzes io_uring with programs of small operations.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    job: Option<Job>,
    /// Makes one NOP and exits with its negated result.
    #[arg(long, hide = true)]
    nop_probe: bool,
}

#[derive(Subcommand)]
enum Job {
    /// Runs programs and keeps those that reach new code.
    Explore {
        seed: u64,
        seconds: u64,
        corpus: PathBuf,
    },
    /// Runs programs from number FIRST on, and prints digests of their records.
    Digest {
        seed: u64,
        first: u64,
        seconds: u64,
        corpus: PathBuf,
    },
    /// Runs the programs of a file and prints their records.
    Record { programs: PathBuf },
    /// Runs the programs of a file several times, with threads and children at the same
    /// time. Prints the number of each before it begins.
    Repeat { programs: PathBuf, times: u64 },
    /// Prints a program of a run.
    Show {
        seed: u64,
        number: u64,
        initial: usize,
        corpus: PathBuf,
    },
    /// Prints the simpler programs that a program is reduced to.
    Simpler { program: String },
    /// Judges the programs of two reports.
    Judge { c: PathBuf, rust: PathBuf },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let done = if arguments.nop_probe {
        nop_probe()
    } else {
        arguments.job.context("no job is given").and_then(run)
    };
    done.unwrap_or_else(|error| {
        println!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn nop_probe() -> anyhow::Result<ExitCode> {
    let res = Ring::new(1)?.run(Sqe::nop())?;
    Ok(ExitCode::from(u8::try_from(-res).context("not an errno")?))
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<Program>> {
    let text = fs::read_to_string(path).with_context(|| format!("{path:?}"))?;
    read_programs(&text).with_context(|| format!("{path:?}"))
}

fn run(job: Job) -> anyhow::Result<ExitCode> {
    match job {
        Job::Explore {
            seed,
            seconds,
            corpus,
        } => explore(seed, Duration::from_secs(seconds), read(&corpus)?)?,
        Job::Digest {
            seed,
            first,
            seconds,
            corpus,
        } => digest(seed, first, Duration::from_secs(seconds), &read(&corpus)?)?,
        Job::Record { programs } => record(&read(&programs)?)?,
        Job::Repeat { programs, times } => repeat(&read(&programs)?, times)?,
        Job::Show {
            seed,
            number,
            initial,
            corpus,
        } => {
            let program = mutate::program(seed, number, initial, &read(&corpus)?);
            println!("{program}");
        }
        Job::Simpler { program } => {
            for simpler in mutate::simpler(&program.parse()?) {
                println!("{simpler}");
            }
        }
        Job::Judge { c, rust } => judge(&c, &rust)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns the time limit of a program.
fn program_limit(mode: Mode, number: u64) -> Duration {
    match mode {
        Mode::Compare => limit(20),
        // Some are killed in the middle of what they do.
        Mode::Race if number % 5 == 0 => Duration::from_millis(1 + number % 37),
        Mode::Race => limit(2),
    }
}

fn explore(seed: u64, time: Duration, mut corpus: Vec<Program>) -> anyhow::Result<()> {
    let mut runner = Runner::new()?;
    if !runner.has_kcov() {
        println!("# this kernel has no KCOV, so nothing new is found");
    }
    let initial = corpus.len();
    let (start, mut shown) = (Instant::now(), Instant::now());
    let mut number = 0;
    while start.elapsed() < time {
        let program = mutate::program(seed, number, initial, &corpus);
        let mode = match number % 3 {
            2 => Mode::Race,
            _ => Mode::Compare,
        };
        println!("try {number} {} {mode:?}", corpus.len());
        let (_, is_new) = runner.run(&program, mode, program_limit(mode, number))?;
        if is_new && number >= initial as u64 {
            println!("new {program}");
            corpus.push(program);
        }
        number += 1;
        if shown.elapsed() > PERIOD {
            shown = Instant::now();
            show_progress(number, corpus.len(), runner.reached.count);
        }
    }
    show_progress(number, corpus.len(), runner.reached.count);
    expect_nothing_left()
}

fn show_progress(programs: u64, corpus: usize, reached: usize) {
    println!("progress {programs} programs, a corpus of {corpus}, {reached} steps");
}

fn digest(seed: u64, first: u64, time: Duration, corpus: &[Program]) -> anyhow::Result<()> {
    let mut runner = Runner::new()?;
    let start = Instant::now();
    let mut number = first;
    while start.elapsed() < time {
        let mut digests = Vec::new();
        let begin = number;
        while digests.len() < DIGESTS && start.elapsed() < time {
            let program = mutate::program(seed, number, corpus.len(), corpus);
            let (outcome, _) = run_compared(&mut runner, &program)?;
            digests.push(match outcome.timed_out {
                true => "-".to_string(),
                false => format!("{:08x}", outcome.digest()),
            });
            number += 1;
        }
        println!("digests {begin} {}", digests.join(" "));
    }
    expect_nothing_left()
}

fn run_compared(runner: &mut Runner, program: &Program) -> anyhow::Result<(Outcome, bool)> {
    runner.run(program, Mode::Compare, program_limit(Mode::Compare, 0))
}

fn record(programs: &[Program]) -> anyhow::Result<()> {
    let mut runner = Runner::new()?;
    for (number, program) in programs.iter().enumerate() {
        println!("{PROGRAM}{number}");
        let mut known: Vec<Outcome> = Vec::new();
        for _ in 0..RUNS {
            let (outcome, _) = run_compared(&mut runner, program)?;
            if known.contains(&outcome) {
                continue;
            }
            println!("{RUN}");
            for line in outcome.text.lines() {
                println!("{LINE}{line}");
            }
            known.push(outcome);
        }
        println!("{END}{number}");
    }
    Ok(())
}

fn repeat(programs: &[Program], times: u64) -> anyhow::Result<()> {
    let mut runner = Runner::new()?;
    for (number, program) in programs.iter().enumerate() {
        for time in 0..times {
            println!("try {number} {time}");
            let mode = match time % 2 {
                0 => Mode::Compare,
                _ => Mode::Race,
            };
            let limit = program_limit(mode, Rng::with_seed(time).u64(..));
            runner.run(program, mode, limit)?;
        }
    }
    expect_nothing_left()
}

/// Fails if programs left something behind that does not go.
fn expect_nothing_left() -> anyhow::Result<()> {
    let left = Leftovers::wait(Scope::Everywhere, &mut Leftovers::default())?;
    if !left.is_empty() {
        bail!("programs left {left}");
    }
    Ok(())
}

fn judge(c: &PathBuf, rust: &PathBuf) -> anyhow::Result<()> {
    let report = |path: &PathBuf| compare::read_report(&fs::read_to_string(path)?);
    let rust = report(rust)?;
    for (number, c) in report(c)? {
        if let Some(rust) = rust.get(&number) {
            println!("{number} {}", compare::judge(&c, rust));
        }
    }
    Ok(())
}
