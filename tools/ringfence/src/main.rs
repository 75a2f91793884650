// SPDX-License-Identifier: GPL-2.0
//! The program `ringfence`. See the library for what it does.

use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use miette::{Context, IntoDiagnostic, Result, miette};

use ringfence::cli::{Cli, Command, Learn, PolicyArguments, write_pages};
use ringfence::doctor::{self, NOP_PROBE};
use ringfence::policy::Policy;
use ringfence::run::{self, status};
use ringfence::{bundle, check, learn, show};

fn main() -> ExitCode {
    // The self-test executes this program with the filters that it tests.
    if std::env::args_os()
        .nth(1)
        .is_some_and(|argument| argument == NOP_PROBE)
    {
        return doctor::nop_probe().into();
    }
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are no failures.
            let is_failure = error.use_stderr();
            let _ = error.print();
            return if is_failure {
                status::OWN_FAILURE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match obey(cli.command) {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("ringfence: {error:?}");
            status::OWN_FAILURE.into()
        }
    }
}

/// Carries out a command. Returns the exit status.
fn obey(command: Command) -> Result<u8> {
    match command {
        Command::Run(arguments) => {
            let policy = policy(arguments.policy)?;
            let error = run::run(&policy, &c_strings(arguments.command)?);
            let status = error.status();
            eprintln!("ringfence: {error}");
            Ok(status)
        }
        Command::Learn(arguments) => learn(arguments),
        Command::Check { policy } => {
            check::print(&Policy::read(&policy)?).map_err(|error| miette!("{error}"))?;
            Ok(0)
        }
        Command::Doctor => Ok(u8::from(!doctor::report())),
        Command::Show { process } => {
            let show = show::show(process, doctor::refusals_can_be_listed());
            show.into_diagnostic()
                .wrap_err_with(|| format!("cannot look at process {process}"))?;
            Ok(0)
        }
        Command::Bundle { bundle, policy } => {
            bundle::bundle(&bundle, &Policy::read(&policy)?)?;
            Ok(0)
        }
        Command::Pages { folder } => {
            write_pages(&folder)
                .into_diagnostic()
                .wrap_err_with(|| folder.display().to_string())?;
            Ok(0)
        }
    }
}

fn policy(arguments: PolicyArguments) -> Result<Policy> {
    match (arguments.policy, arguments.allow) {
        (Some(path), _) => Ok(Policy::read(&path)?),
        (None, ops) => Ok(Policy::allowing(ops.unwrap_or_default())),
    }
}

fn c_strings(command: Vec<OsString>) -> Result<Vec<CString>> {
    let strings = command
        .into_iter()
        .map(|text| CString::new(text.into_vec()));
    strings.collect::<Result<_, _>>().into_diagnostic()
}

fn learn(arguments: Learn) -> Result<u8> {
    // A file that cannot be merged is found before the command runs.
    let before = match arguments.merge {
        true => Some(Policy::read(&arguments.output)?),
        false => None,
    };
    let learned = learn::learn(&c_strings(arguments.command)?)
        .into_diagnostic()
        .wrap_err("cannot follow the command")?;
    if !learned.was_executed {
        return Ok(learned.status);
    }
    let policy = match before {
        None => learned.policy,
        Some(mut policy) => {
            policy
                .add_learned(learned.policy)
                .map_err(|error| miette!("{error}"))?;
            policy
        }
    };
    write(&arguments.output, &policy)?;
    for unseen in learned.unseen {
        eprintln!("ringfence: not seen: {unseen}");
    }
    Ok(learned.status)
}

/// Writes a policy, whole or not at all.
fn write(path: &Path, policy: &Policy) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    std::fs::write(&new, policy.to_json())
        .and_then(|()| std::fs::rename(&new, path))
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot write {}", path.display()))
}
