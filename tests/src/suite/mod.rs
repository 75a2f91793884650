// SPDX-License-Identifier: GPL-2.0
//! The user-space suite: its groups, each with the tables of tests of its files.
//! `runner` starts every test in a process of its own.

mod blind_messages;
mod boot;
mod bounds;
mod calls;
mod calls_setup;
mod context;
mod context_flags;
mod fault;
mod fault_points;
mod fault_requests;
mod fault_tasks;
mod fdinfo;
mod harness;
mod inheritance;
mod links;
mod ownership;
mod probe;
mod program;
mod program_runs;
mod programs;
mod random;
mod registration;
mod restriction_flags;
mod restrictions;
mod ringfence;
mod ringfence_policies;
mod runner;
pub mod soak;
mod state;
mod stress;
mod stress_anything;
mod stress_rings;
mod submission;
mod task_restrictions;
mod tracing;
mod zcrx_areas;
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
mod zcrx_device_provider;
mod zcrx_device_replaced;
mod zcrx_device_selftest;
mod zcrx_device_stress;
mod zcrx_device_unbind;
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
mod zcrx_receive_end;
mod zcrx_registration;
mod zcrx_restart;
mod zcrx_returns;
mod zcrx_sharing;
mod zcrx_stream;
mod zcrx_stress;
mod zcrx_tasks;
mod zcrx_waiting;
mod zcrx_write_back;

use std::fmt;

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
    /// The name: modules of the catalogue, and a sentence, which is the function's name.
    pub path: &'static str,
    /// A short name, unique in the suite, that stays the same when `path` changes.
    pub tag: &'static str,
    /// The time limit in seconds on a kernel without checkers.
    pub limit: u64,
    pub run: fn() -> TestResult,
}

/// Makes a table of tests. Each module has a line for each test: the tag, the function,
/// and in parentheses the time limit of a test that may take more than ten seconds.
///
/// `scripts/catalogue.py` reads these tables and the functions' documentation.
macro_rules! tests {
    (@limit) => { 10 };
    (@limit $limit:literal) => { $limit };
    ($($module:literal { $($tag:ident $run:ident $(($limit:literal s))?;)* })*) => {
        &[$($($crate::suite::Test {
            path: concat!($module, "::", stringify!($run)),
            tag: stringify!($tag),
            limit: $crate::suite::tests!(@limit $($limit)?),
            run: $run,
        },)*)*]
    };
}
use tests;

/// The tests of one chapter of the catalogue.
pub struct Group {
    /// A short name, unique in the suite.
    pub tag: &'static str,
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
    /// Returns whether `word`, which chooses tests of `group`, chooses this one: it is the
    /// tag of the group or of the test, the test's path, or a module in front of it.
    fn is_chosen(&self, group: &Group, word: &str) -> bool {
        let rest = self.path.strip_prefix(word);
        word == group.tag
            || word == self.tag
            || rest.is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    }
}

impl fmt::Display for Test {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path, self.tag)
    }
}

/// All groups, in the order of the catalogue.
const GROUPS: &[Group] = &[
    Group {
        tag: "D0",
        name: "the kernel",
        tests: &[boot::TESTS, harness::TESTS],
    },
    Group {
        tag: "D1",
        name: "filter registration",
        tests: &[registration::TESTS],
    },
    Group {
        tag: "D2",
        name: "program checks and execution",
        tests: &[program::TESTS, program_runs::TESTS],
    },
    Group {
        tag: "D3",
        name: "context contents",
        tests: &[context_flags::TESTS, context::TESTS],
    },
    Group {
        tag: "D4",
        name: "submission semantics",
        tests: &[submission::TESTS, links::TESTS],
    },
    Group {
        tag: "D5",
        name: "ownership, stacking, inheritance",
        tests: &[ownership::TESTS, inheritance::TESTS],
    },
    Group {
        tag: "D6",
        name: "restrictions",
        tests: &[
            restrictions::TESTS,
            restriction_flags::TESTS,
            task_restrictions::TESTS,
            probe::TESTS,
            blind_messages::TESTS,
            tracing::TESTS,
            fdinfo::TESTS,
            calls::TESTS,
            calls_setup::TESTS,
        ],
    },
    Group {
        tag: "D7",
        name: "zcrx registration",
        tests: &[
            zcrx_registration::TESTS,
            zcrx_write_back::TESTS,
            zcrx_memory::TESTS,
        ],
    },
    Group {
        tag: "D8",
        name: "zcrx control and sharing",
        tests: &[
            zcrx_control::TESTS,
            zcrx_areas::TESTS,
            zcrx_export::TESTS,
            zcrx_sharing::TESTS,
            zcrx_flush::TESTS,
            zcrx_waiting::TESTS,
            zcrx_errors::TESTS,
        ],
    },
    Group {
        tag: "D9",
        name: "zcrx receive",
        tests: &[
            zcrx_receive::TESTS,
            zcrx_receive_end::TESTS,
            zcrx_returns::TESTS,
            zcrx_stream::TESTS,
            zcrx_events::TESTS,
            zcrx_tasks::TESTS,
            zcrx_large::TESTS,
        ],
    },
    Group {
        tag: "D10",
        name: "zcrx with a device",
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
            zcrx_device_provider::TESTS,
            zcrx_device_selftest::TESTS,
        ],
    },
    Group {
        tag: "D11",
        name: "fault injection",
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
        tag: "BD",
        name: "length of chains",
        tests: &[bounds::TESTS],
    },
    Group {
        tag: "RG",
        name: "ringfence",
        tests: &[ringfence::TESTS, ringfence_policies::TESTS],
    },
    Group {
        tag: "RP",
        name: "real programs",
        tests: &[programs::TESTS],
    },
    Group {
        tag: "ST",
        name: "stress",
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

/// The name of the check that ends each run.
const END: &str = "harness::runner::nothing_is_left_after_all_tests (EN01)";

/// Returns every test of the suite.
pub fn all() -> impl Iterator<Item = &'static Test> {
    GROUPS.iter().flat_map(Group::all)
}

/// Fails if a word of `words` chooses no test.
fn check(words: &[String]) -> anyhow::Result<()> {
    for word in words {
        let mut tests = GROUPS
            .iter()
            .flat_map(|group| group.all().map(move |test| (group, test)));
        if !tests.any(|(group, test)| test.is_chosen(group, word)) {
            let tags: Vec<&str> = GROUPS.iter().map(|group| group.tag).collect();
            anyhow::bail!(
                "no test, module or group is called {word}; the groups are {}, and \
                 `make test LIST=1` lists all tests",
                tags.join(" ")
            );
        }
    }
    Ok(())
}

/// Runs the tests that one of `words` chooses, or all tests if there are no words, but
/// for groups whose tag is in `but`, and prints KTAP. Returns the number of failures.
pub fn run(words: &[String], but: &[String], seed: u64) -> anyhow::Result<usize> {
    check(words)?;
    check(but)?;
    let groups: Vec<(String, Vec<&Test>)> = GROUPS
        .iter()
        .filter(|group| but.iter().all(|tag| tag != group.tag))
        .map(|group| {
            let chosen = |test: &&Test| {
                words.is_empty() || words.iter().any(|word| test.is_chosen(group, word))
            };
            let tests = group.all().filter(chosen);
            (format!("{} {}", group.tag, group.name), tests.collect())
        })
        .filter(|(_, tests): &(_, Vec<_>)| !tests.is_empty())
        .collect();

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
            ktap::result(4, index + 1, &test.to_string(), &verdict);
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
    ktap::result(0, groups.len() + 1, END, &verdict);
    runner.show_slowest();
    Ok(failures)
}

/// Runs the test with this tag in this process. Returns the exit status.
pub fn run_here(tag: &str) -> anyhow::Result<i32> {
    let test = all()
        .chain(harness::HIDDEN)
        .find(|test| test.tag == tag)
        .with_context(|| format!("no test is called {tag}"))?;
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
