// SPDX-License-Identifier: GPL-2.0
//! The commands and their arguments, from which the manual pages and the completions of
//! shells are made.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::names::{Op, UnknownName};

/// Confines the io_uring of a command
///
/// The kernel lets a task register filters for the requests of its rings: programs that
/// allow or deny each request by its opcode, its flags and some of its arguments. What the
/// task starts inherits them. ringfence registers the filters for a policy, and becomes a
/// command.
///
/// A policy is JSON: `defaultAction` is "deny" or "allow"; `ops` has the opcodes to which
/// the opposite applies; `socketFamilies` the families that IORING_OP_SOCKET may have;
/// `deniedSqeFlags` the flags that no request may have. `connect` is a list of subnets,
/// each with `subnet` and perhaps `ports` (numbers, and pairs for ranges), or of families.
/// `open` has `accessModes`, `deniedFlags` and `requiredResolve`. `setup` has
/// `allowedFlags`, `maxEntries` and `maxCqEntries`, and `registrations` has
/// `defaultAction` and `ops`; both need a kernel that can filter these. All names are
/// those of the kernel's headers.
///
/// Filters see requests of rings alone. What a command does by ordinary system calls is for
/// seccomp. They see no paths, no file descriptors, and no commands of IORING_OP_URING_CMD.
/// Rings that a command is given by others are not confined.
#[derive(Parser)]
#[command(name = "ringfence", version)]
#[command(after_help = EXIT_STATUS)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

const EXIT_STATUS: &str = "Exit status: that of the command; 125 if ringfence itself fails, 126 if \
the command cannot be executed, 127 if it is not found. `doctor` exits with 1 if this kernel \
cannot enforce policies.";

#[derive(Subcommand)]
pub enum Command {
    /// Runs a command under a policy
    ///
    /// Sets no_new_privs, registers the filters, and becomes the command. Refuses to start
    /// it if this kernel cannot enforce every rule.
    Run(Run),
    /// Runs a command and writes the policy that would have let it through
    ///
    /// Follows the command's tasks by the kernel's trace events, which takes root and
    /// tracefs, and prints what is new as it goes, to standard error. Then names what could
    /// not be seen. Watching ends with the command, even if it leaves processes behind. An
    /// interrupt (Ctrl-C) or SIGTERM ends the command, and the policy is written.
    Learn(Learn),
    /// Shows what a policy allows and what it costs
    Check {
        /// The policy.
        policy: PathBuf,
    },
    /// Finds out what this kernel can do, by trying
    Doctor,
    /// Shows what the rings of a running process refuse
    Show {
        /// The process.
        #[arg(value_name = "PID")]
        process: u32,
    },
    /// Confines the process of an OCI bundle
    ///
    /// Adds this program and the policy to the bundle, has its process started by `run`, and
    /// allows the system calls of io_uring in its seccomp profile. Processes that are added
    /// to the container later (`runc exec`) are not confined by the policy.
    Bundle {
        /// The folder with config.json.
        bundle: PathBuf,
        /// The policy.
        #[arg(long, value_name = "FILE")]
        policy: PathBuf,
    },
    /// Writes the manual pages and the completions of shells to a folder
    #[command(hide = true)]
    Pages { folder: PathBuf },
}

#[derive(Args)]
pub struct Run {
    #[command(flatten)]
    pub policy: PolicyArguments,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct PolicyArguments {
    /// The policy.
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// The opcodes that are allowed, such as read,write,fsync; all others are denied.
    #[arg(long, value_name = "OPCODE", value_delimiter = ',', value_parser = opcode)]
    pub allow: Option<Vec<Op>>,
}

#[derive(Args)]
pub struct Learn {
    /// The file for the policy.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
    /// Adds to the policy that the file has.
    #[arg(long)]
    pub merge: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

fn opcode(name: &str) -> Result<Op, UnknownName> {
    Op::from_short(name)
}

/// Writes a manual page for this program and each command, and the completions of each
/// shell, to `folder`.
pub fn write_pages(folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(Cli::command(), folder)?;
    for shell in Shell::value_variants() {
        clap_complete::generate_to(*shell, &mut Cli::command(), "ringfence", folder)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_needs_one_policy() {
        let parsed = |arguments: &[&str]| {
            Cli::try_parse_from([&["ringfence", "run"], arguments].concat()).is_ok()
        };
        assert!(parsed(&["--allow", "read,IORING_OP_WRITE", "--", "true"]));
        assert!(parsed(&["--policy", "web.json", "--", "true", "--", "x"]));
        assert!(!parsed(&["--", "true"]));
        assert!(!parsed(&[
            "--allow", "read", "--policy", "web.json", "--", "true"
        ]));
        assert!(!parsed(&["--allow", "read", "true"]));
        assert!(!parsed(&["--allow", "read"]));
        assert!(!parsed(&["--allow", "reda", "--", "true"]));
    }

    #[test]
    fn pages_are_written() {
        let folder = tempfile::tempdir().unwrap();
        write_pages(folder.path()).unwrap();
        for (name, text) in [
            ("ringfence.1", "Exit status"),
            ("ringfence-run.1", "no_new_privs"),
            ("ringfence-learn.1", "merge"),
            ("ringfence.bash", "doctor"),
            ("_ringfence", "doctor"),
            ("ringfence.fish", "doctor"),
        ] {
            let page = fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(page.contains(text), "{name} has no {text}");
        }
        assert!(!folder.path().join("ringfence-pages.1").exists());
    }
}
