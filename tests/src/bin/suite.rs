// SPDX-License-Identifier: GPL-2.0
//! The user-space suite. Prints KTAP, and exits with 1 if a test failed.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

use io_uring_rs_tests::ring::Ring;
use io_uring_rs_tests::sqe::Sqe;
use io_uring_rs_tests::suite;

/// Tests io_uring's filters and zero-copy receive from user space.
#[derive(Parser)]
struct Arguments {
    /// Runs only the tests with these tags or paths, or in these groups or modules.
    #[arg(value_name = "TEST", value_delimiter = ',')]
    tests: Vec<String>,
    /// Leaves out the group with this tag.
    #[arg(long, value_name = "GROUP")]
    but: Vec<String>,
    /// Repeats the random choices of an earlier run.
    #[arg(long)]
    seed: Option<u64>,
    /// Runs the stress tests for this number of minutes instead.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
    /// Lists the tests and does not run them.
    #[arg(long)]
    list: bool,
    /// Runs one test in this process, as the runner does.
    #[arg(long, hide = true)]
    only: Option<String>,
    /// Makes that test as thorough as in a soak.
    #[arg(long, hide = true)]
    long: bool,
    /// Makes one NOP and exits with its negated result.
    #[arg(long, hide = true)]
    nop_probe: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(status) => status,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.nop_probe {
        let res = Ring::new(1)?.run(Sqe::nop())?;
        return Ok(ExitCode::from(u8::try_from(-res).context("not an errno")?));
    }
    if let Some(tag) = &arguments.only {
        return Ok(ExitCode::from(suite::run_here(tag)? as u8));
    }
    if arguments.list {
        for test in suite::all() {
            println!("{test}");
        }
        return Ok(ExitCode::SUCCESS);
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let failures = match arguments.soak {
        Some(minutes) => suite::soak::run(minutes, seed)?,
        None => suite::run(&arguments.tests, &arguments.but, seed)?,
    };
    match failures {
        0 => Ok(ExitCode::SUCCESS),
        _ => Ok(ExitCode::FAILURE),
    }
}
