// SPDX-License-Identifier: GPL-2.0
//! Runs a command under a policy: registers the filters with this process, and becomes the
//! command. Refuses to start it if the kernel cannot enforce the policy.

use std::ffi::CString;
use std::io;

use crate::doctor::{self, Answer};
use crate::kernel;
use crate::learn;
use crate::names::Op;
use crate::policy::Policy;

/// The exit statuses of `env` and `timeout`.
pub mod status {
    /// This program failed.
    pub const OWN_FAILURE: u8 = 125;
    /// The command is there and cannot be executed.
    pub const CANNOT_EXECUTE: u8 = 126;
    /// There is no such command.
    pub const NOT_FOUND: u8 = 127;
}

/// The reason why a command did not start.
#[derive(Debug, thiserror::Error, miette::Diagnostic)]
pub enum RunError {
    #[error("{0}")]
    Policy(String),
    #[error("not starting the command: {0}")]
    NotEnforced(#[from] kernel::NotEnforced),
    #[error("not starting the command: {0}")]
    Unsafe(String),
    #[error("cannot give up gaining privileges: {0}")]
    NoNewPrivs(io::Error),
    #[error("cannot execute {command}: {source}")]
    Exec { command: String, source: io::Error },
}

impl RunError {
    /// Returns the exit status that stands for this error.
    pub fn status(&self) -> u8 {
        match self {
            RunError::Exec { source, .. } if source.kind() == io::ErrorKind::NotFound => {
                status::NOT_FOUND
            }
            RunError::Exec { .. } => status::CANNOT_EXECUTE,
            _ => status::OWN_FAILURE,
        }
    }
}

/// Confines this process by a policy.
///
/// # Errors
///
/// Fails if the kernel cannot enforce the policy, which leaves the process with some of
/// its filters.
pub fn confine(policy: &Policy) -> Result<(), RunError> {
    let fence = policy.fence().map_err(RunError::Policy)?;
    match doctor::kept_across_exec() {
        Answer::Yes => {}
        Answer::No => {
            return Err(RunError::Unsafe(
                "this kernel drops the filters of a task that uses a ring and executes a program"
                    .to_string(),
            ));
        }
        // Registering the filters below says better why nothing can be enforced, unless
        // it succeeds.
        Answer::Unknown(reason) => {
            kernel::set_no_new_privs().map_err(RunError::NoNewPrivs)?;
            kernel::enforce(&fence)?;
            return Err(RunError::Unsafe(format!(
                "whether this kernel keeps filters across the execution of a program is unknown: {reason}"
            )));
        }
    }
    // This call takes no SQE flags, and shows filters no arguments, so that only denying
    // the opcode as a whole matters.
    let needs_seccomp = !policy.lists(Op::MSG_RING)
        && match doctor::send_msg_ring_is_filtered() {
            Answer::Yes => false,
            Answer::No => true,
            Answer::Unknown(reason) => {
                return Err(RunError::Unsafe(format!(
                    "whether messages to rings obey the filters of this kernel is unknown: {reason}"
                )));
            }
        };
    kernel::set_no_new_privs().map_err(RunError::NoNewPrivs)?;
    kernel::enforce(&fence)?;
    if needs_seccomp {
        kernel::refuse_send_msg_ring().map_err(|error| {
            RunError::Unsafe(format!(
                "messages to rings go around the filters of this kernel, and seccomp fails: {error}"
            ))
        })?;
    }
    Ok(())
}

/// Confines this process by a policy, and becomes a command. Returns only if that fails.
pub fn run(policy: &Policy, command: &[CString]) -> RunError {
    learn::pause();
    match confine(policy) {
        Err(error) => error,
        Ok(()) => {
            learn::resume();
            RunError::Exec {
                command: command[0].to_string_lossy().into_owned(),
                source: kernel::exec(command),
            }
        }
    }
}
