// SPDX-License-Identifier: GPL-2.0
//! The user-space suite: its groups, each with the tables of tests of its files.
//! `runner` starts every test in a process of its own.

mod boot;
mod bounds;
mod context;
mod context_flags;
mod fault;
mod fault_points;
mod fault_requests;
mod fault_tasks;
mod harness;
mod inheritance;
mod links;
mod ownership;
mod program;
mod program_runs;
mod random;
mod registration;
mod restriction_flags;
mod restrictions;
mod runner;
pub mod soak;
mod state;
mod stress;
mod stress_anything;
mod stress_rings;
mod submission;
mod task_restrictions;
mod zcrx_churn;
mod zcrx_control;
mod zcrx_device;
mod zcrx_device_buffers;
mod zcrx_device_dmabuf;
mod zcrx_device_driver;
mod zcrx_device_end;
mod zcrx_device_fault;
mod zcrx_device_netlink;
mod zcrx_device_points;
mod zcrx_device_pools;
mod zcrx_device_replaced;
mod zcrx_device_selftest;
mod zcrx_device_stress;
mod zcrx_device_unbind;
mod zcrx_device_whose;
mod zcrx_errors;
mod zcrx_events;
mod zcrx_export;
mod zcrx_fault;
mod zcrx_fault_publish;
mod zcrx_fault_sharing;
mod zcrx_flush;
mod zcrx_large;
mod zcrx_memory;
mod zcrx_receive;
mod zcrx_registration;
mod zcrx_restart;
mod zcrx_returns;
mod zcrx_sharing;
mod zcrx_stream;
mod zcrx_stress;
mod zcrx_tasks;
mod zcrx_waiting;

use anyhow::Context;

use crate::kernel;
use crate::ktap::{self, Verdict};

use runner::Runner;

/// Marks a line of a test's output that is shown even if the test passes.
pub const NOTE: &str = "note: ";

/// The end of a test that does not fail.
pub enum Outcome {
    Passed,
    /// The test was skipped, because the running kernel lacks what it needs.
    Skipped(String),
}

/// The result of a test.
pub type TestResult = anyhow::Result<Outcome>;

/// A test.
pub struct Test {
    /// The id in the catalogue, followed by a description.
    pub name: &'static str,
    /// The time limit in seconds on a kernel without checkers.
    pub limit: u64,
    pub run: fn() -> TestResult,
}

/// Makes a test that takes well under a second.
pub const fn test(name: &'static str, run: fn() -> TestResult) -> Test {
    Test {
        name,
        limit: 10,
        run,
    }
}

/// Makes a test that has a time limit of its own.
pub const fn slow(name: &'static str, limit: u64, run: fn() -> TestResult) -> Test {
    Test { name, limit, run }
}

/// The tests of one chapter of the catalogue.
pub struct Group {
    pub name: &'static str,
    /// The tables of tests, one for each file.
    pub tests: &'static [&'static [Test]],
}

impl Group {
    fn all(&self) -> impl Iterator<Item = &'static Test> {
        self.tests.iter().copied().flatten()
    }
}

impl Test {
    /// Returns the catalogue id, unique in the suite.
    pub fn id(&self) -> &'static str {
        self.name.split(' ').next().unwrap_or(self.name)
    }
}

/// All groups, in the order of the catalogue.
const GROUPS: &[Group] = &[
    Group {
        name: "D0 the kernel",
        tests: &[boot::TESTS, harness::TESTS],
    },
    Group {
        name: "D1 filter registration",
        tests: &[registration::TESTS],
    },
    Group {
        name: "D2 program checks and execution",
        tests: &[program::TESTS, program_runs::TESTS],
    },
    Group {
        name: "D3 context contents",
        tests: &[context_flags::TESTS, context::TESTS],
    },
    Group {
        name: "D4 submission semantics",
        tests: &[submission::TESTS, links::TESTS],
    },
    Group {
        name: "D5 ownership, stacking, inheritance",
        tests: &[ownership::TESTS, inheritance::TESTS],
    },
    Group {
        name: "D6 restrictions",
        tests: &[
            restrictions::TESTS,
            restriction_flags::TESTS,
            task_restrictions::TESTS,
        ],
    },
    Group {
        name: "D7 zcrx registration",
        tests: &[zcrx_registration::TESTS, zcrx_memory::TESTS],
    },
    Group {
        name: "D8 zcrx control and sharing",
        tests: &[
            zcrx_control::TESTS,
            zcrx_export::TESTS,
            zcrx_sharing::TESTS,
            zcrx_flush::TESTS,
            zcrx_waiting::TESTS,
            zcrx_errors::TESTS,
        ],
    },
    Group {
        name: "D9 zcrx receive",
        tests: &[
            zcrx_receive::TESTS,
            zcrx_returns::TESTS,
            zcrx_stream::TESTS,
            zcrx_events::TESTS,
            zcrx_tasks::TESTS,
            zcrx_large::TESTS,
        ],
    },
    Group {
        name: "D10 zcrx with a device",
        tests: &[
            zcrx_device::TESTS,
            zcrx_device_end::TESTS,
            zcrx_restart::TESTS,
            zcrx_device_buffers::TESTS,
            zcrx_device_dmabuf::TESTS,
            zcrx_device_driver::TESTS,
            zcrx_device_pools::TESTS,
            zcrx_device_replaced::TESTS,
            zcrx_device_netlink::TESTS,
            zcrx_device_unbind::TESTS,
            zcrx_device_whose::TESTS,
            zcrx_device_selftest::TESTS,
        ],
    },
    Group {
        name: "D11 fault injection",
        tests: &[
            fault::TESTS,
            fault_tasks::TESTS,
            fault_requests::TESTS,
            zcrx_fault::TESTS,
            zcrx_fault_publish::TESTS,
            zcrx_fault_sharing::TESTS,
            zcrx_device_fault::TESTS,
            zcrx_device_points::TESTS,
        ],
    },
    Group {
        name: "BD length of chains",
        tests: &[bounds::TESTS],
    },
    Group {
        name: "ST stress",
        tests: &[
            stress::TESTS,
            stress_rings::TESTS,
            zcrx_stress::TESTS,
            zcrx_churn::TESTS,
            zcrx_device_stress::TESTS,
            random::TESTS,
            stress_anything::TESTS,
        ],
    },
];

/// Returns every test of the suite.
pub fn all() -> impl Iterator<Item = &'static Test> {
    GROUPS.iter().flat_map(Group::all)
}

/// Runs the tests whose name, or whose group's name, starts with one of `prefixes`, or
/// all tests if there are no prefixes, but for groups whose name starts with one of
/// `but`, and prints KTAP. Returns the number of failures.
pub fn run(prefixes: &[String], but: &[String], seed: u64) -> anyhow::Result<usize> {
    let starts = |name: &str, prefixes: &[String]| {
        prefixes
            .iter()
            .any(|prefix| name.starts_with(prefix.as_str()))
    };
    let wanted = |name: &str| prefixes.is_empty() || starts(name, prefixes);
    let groups: Vec<(&str, Vec<&Test>)> = GROUPS
        .iter()
        .filter(|group| !starts(group.name, but))
        .map(|group| {
            let tests = group.all();
            let tests = tests.filter(|test| wanted(group.name) || wanted(test.name));
            (group.name, tests.collect())
        })
        .filter(|(_, tests): &(_, Vec<_>)| !tests.is_empty())
        .collect();
    anyhow::ensure!(
        !groups.is_empty(),
        "no test or group starts with one of {prefixes:?}; leave ONLY out to run all tests"
    );

    let mut runner = Runner::new()?;
    ktap::plan(0, groups.len() + 1);
    ktap::diagnostic(
        0,
        &format!(
            "filters by {}, zero-copy receive by {}, seed {seed}",
            kernel::implementation(),
            kernel::zcrx_implementation()
        ),
    );
    let mut failures = 0;
    for (number, (name, tests)) in groups.iter().enumerate() {
        ktap::subtest(4, name, tests.len());
        let mut failed = 0;
        for (index, test) in tests.iter().enumerate() {
            let verdict = runner.run(test, seed, false)?;
            failed += usize::from(matches!(verdict, Verdict::Failed(_)));
            ktap::result(4, index + 1, test.name, &verdict);
        }
        let verdict = match failed {
            0 => Verdict::Passed,
            _ => Verdict::Failed(format!("{failed} of {} failed", tests.len())),
        };
        ktap::result(0, number + 1, name, &verdict);
        failures += failed;
    }
    let verdict = runner.finish()?;
    failures += usize::from(matches!(verdict, Verdict::Failed(_)));
    ktap::result(0, groups.len() + 1, "EN01 nothing is left", &verdict);
    runner.show_slowest();
    Ok(failures)
}

/// Runs the test with an id in this process. Returns the exit status.
pub fn run_here(id: &str) -> anyhow::Result<i32> {
    let test = all()
        .chain(harness::HIDDEN)
        .find(|test| test.id() == id)
        .with_context(|| format!("no test is called {id}"))?;
    match (test.run)()? {
        Outcome::Passed => Ok(0),
        Outcome::Skipped(reason) => {
            println!("{reason}");
            Ok(ktap::SKIPPED)
        }
    }
}

/// Returns the seed of this run, on which every random choice of a test depends.
pub fn seed() -> u64 {
    static SEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SEED.get_or_init(|| {
        let mut arguments = std::env::args().skip_while(|argument| argument != "--seed");
        arguments
            .nth(1)
            .and_then(|seed| seed.parse().ok())
            .unwrap_or(1)
    })
}

/// Checks whether tests may take a minute or two each, as they do in a soak.
pub fn is_long() -> bool {
    std::env::args().any(|argument| argument == "--long")
}
