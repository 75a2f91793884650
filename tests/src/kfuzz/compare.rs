// SPDX-License-Identifier: GPL-2.0
//! Compares what programs recorded on the C and on the Rust kernel. A report has, for
//! each program, the records of some runs:
//!
//! ```text
//! program 17
//! run
//! | 0 Ring: ok …;
//! | 1 Filter: 0;
//! end 17
//! ```

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, ensure};

/// The marks of lines in a report.
pub const PROGRAM: &str = "program ";
pub const RUN: &str = "run";
pub const LINE: &str = "| ";
pub const END: &str = "end ";

/// A difference that is right.
struct Deviation {
    /// The heading in deviations.rst.
    heading: &'static str,
    /// Accepts what an operation of this name gave on C and on Rust.
    accepts: fn(name: &str, c: &str, rust: &str) -> bool,
}

/// All deviations that programs can meet. What follows the first in a program is not
/// compared.
const DEVIATIONS: &[Deviation] = &[
    Deviation {
        heading: "Chains are bounded",
        accepts: |name, c, rust| {
            name == "Filter" && c.starts_with("0;") && rust.starts_with("-12 (ENOMEM)")
        },
    },
    Deviation {
        heading: "A copy looks for buffers in the refill queue",
        accepts: |name, c, rust| {
            name == "Enter" && c.contains("-12 (ENOMEM)") && !rust.contains("-12 (ENOMEM)")
        },
    },
    Deviation {
        heading: "What fails in more than one way",
        accepts: |name, c, rust| {
            let fails = |text: &str| {
                let result = text.trim_start_matches("op 3: ");
                result.starts_with('-') && result.matches(';').count() == 1
            };
            ["Queue", "Control"].contains(&name) && fails(c) && fails(rust)
        },
    },
];

/// The judgement of a program.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Judgement {
    /// Both kernels gave the same record at least once.
    Same,
    /// They differ as a known deviation says.
    Known(&'static str),
    /// They differ in this operation, which gave this on C and on Rust.
    Different { at: String, c: String, rust: String },
}

impl fmt::Display for Judgement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Judgement::Same => f.write_str("same"),
            Judgement::Known(heading) => write!(f, "deviation: {heading}"),
            Judgement::Different { at, c, rust } => {
                write!(f, "different: {at} | C: {c} | Rust: {rust}")
            }
        }
    }
}

/// The records of one program: the lines of each run.
pub type Runs = Vec<Vec<String>>;

/// Reads a report. The last program may have no end; it is left out.
pub fn read_report(text: &str) -> anyhow::Result<BTreeMap<u64, Runs>> {
    let mut programs = BTreeMap::new();
    let mut runs = Runs::new();
    for line in text.lines() {
        if line.starts_with(PROGRAM) {
            runs.clear();
        } else if line == RUN {
            runs.push(Vec::new());
        } else if let Some(line) = line.strip_prefix(LINE) {
            let run = runs.last_mut().context("a line before the first run")?;
            run.push(line.to_string());
        } else if let Some(number) = line.strip_prefix(END) {
            let number = number.trim().parse().context("the number of a program")?;
            ensure!(!runs.is_empty(), "program {number} has no runs");
            programs.insert(number, std::mem::take(&mut runs));
        }
    }
    Ok(programs)
}

/// Judges a program by its runs on both kernels.
pub fn judge(c: &Runs, rust: &Runs) -> Judgement {
    if c.iter().any(|run| rust.contains(run)) {
        return Judgement::Same;
    }
    let (c, rust) = (&c[0], &rust[0]);
    let number = c.iter().zip(rust).take_while(|(c, rust)| c == rust).count();
    let line = |run: &[String]| run.get(number).cloned().unwrap_or_default();
    let (c, rust) = (line(c), line(rust));
    let split = |line: &str| match line.split_once(": ") {
        Some((at, results)) => (at.to_string(), results.to_string()),
        None => (line.trim_end_matches(':').to_string(), String::new()),
    };
    let ((at, c), (other, rust)) = (split(&c), split(&rust));
    if at == other {
        let name = at.split(' ').nth(1).unwrap_or_default();
        let known = DEVIATIONS
            .iter()
            .find(|known| (known.accepts)(name, &c, &rust));
        if let Some(known) = known {
            return Judgement::Known(known.heading);
        }
    }
    // One of them may have ended before.
    let at = if at.is_empty() { other } else { at };
    Judgement::Different { at, c, rust }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(runs: &[&str]) -> Runs {
        let lines = |run: &&str| run.split('/').map(str::to_string).collect();
        runs.iter().map(lines).collect()
    }

    fn different(at: &str, c: &str, rust: &str) -> Judgement {
        Judgement::Different {
            at: at.to_string(),
            c: c.to_string(),
            rust: rust.to_string(),
        }
    }

    #[test]
    fn headings_are_in_the_documentation() {
        let text = include_str!("../../../Documentation/io_uring_rs/deviations.rst");
        for Deviation { heading, .. } in DEVIATIONS {
            assert!(text.contains(&format!("\n{heading}\n   ")), "{heading}");
        }
    }

    #[test]
    fn reports_are_read_up_to_the_last_end() {
        let text = "# noise\nprogram 3\nrun\n| a\n| b\nrun\n| a\nend 3\nprogram 4\nrun\n| x\n";
        let report = read_report(text).unwrap();
        assert_eq!(report, BTreeMap::from([(3, runs(&["a/b", "a"]))]));
        assert!(read_report("| a\n").is_err() && read_report("end 3\n").is_err());
    }

    #[test]
    fn a_difference_is_one_that_no_run_lacks() {
        let same = judge(&runs(&["a/b", "a/c"]), &runs(&["a/d", "a/b"]));
        assert_eq!(same, Judgement::Same);
        let c = runs(&["0 Ring: ok;/1 Close: 0;/2 Exec: 0;"]);
        let rust = runs(&["0 Ring: ok;/1 Close: -9 (EBADF);/2 Exec: 0;"]);
        assert_eq!(judge(&c, &rust), different("1 Close", "0;", "-9 (EBADF);"));
        let shorter = runs(&["0 Ring: ok;"]);
        assert_eq!(judge(&c, &shorter), different("1 Close", "0;", ""));
    }

    #[test]
    fn deviations_are_accepted_one_way_only() {
        let one = |c: &str, rust: &str| judge(&runs(&[c]), &runs(&[rust]));
        let bounded = one("4 Filter: 0;", "4 Filter: -12 (ENOMEM);");
        assert_eq!(bounded, Judgement::Known("Chains are bounded"));
        assert_ne!(bounded, one("4 Filter: -12 (ENOMEM);", "4 Filter: 0;"));
        let order = one("4 Queue: -22 (EINVAL);", "4 Queue: -14 (EFAULT);");
        assert_eq!(order, Judgement::Known("What fails in more than one way"));
        let succeeds = one("4 Queue: -22 (EINVAL);", "4 Queue: 0; (0, 1);");
        assert!(matches!(succeeds, Judgement::Different { .. }));
        let other = one("4 Close: -22 (EINVAL);", "4 Close: -14 (EFAULT);");
        assert!(matches!(other, Judgement::Different { .. }));
    }
}
