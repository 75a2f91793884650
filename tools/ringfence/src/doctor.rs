// SPDX-License-Identifier: GPL-2.0
//! Finds out what the running kernel can do, by trying: each test runs in a child process,
//! which registers filters and looks at what they do.

use std::io;
use std::path::Path;
use std::process::Command;

use owo_colors::{OwoColorize, Stream};

use crate::kernel::{self, Kind, Ring};
use crate::names::{Op, Registration, SetupFlag};
use crate::program::{Filter, Insn};

/// The argument with which this program makes one NOP, and exits with its negated result.
pub const NOP_PROBE: &str = "--nop-probe";

/// What a test found out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer {
    Yes,
    No,
    /// The test could not be made, for this reason.
    Unknown(String),
}

/// A thing that a kernel can or cannot do.
pub struct Ability {
    pub name: &'static str,
    /// The consequence of each answer.
    yes: &'static str,
    no: &'static str,
    test: fn() -> Answer,
}

/// All abilities, in the order in which they are shown. Without the first, the others are
/// not tried.
pub const ABILITIES: &[Ability] = &[
    Ability {
        name: "filters",
        yes: "opcodes can be allowed and denied",
        no: "nothing can be enforced; `ringfence run` refuses to start anything",
        test: || try_out(has_filters),
    },
    Ability {
        name: "kept across exec",
        yes: "a command cannot shake off its filters",
        no: "a command that uses a ring and executes a program is free; `ringfence run` refuses \
             to start anything",
        test: kept_across_exec,
    },
    Ability {
        name: "connect arguments",
        yes: "connections can be allowed by address and port",
        no: "`ringfence run` refuses policies with `connect`",
        test: || try_out(has_connect_arguments),
    },
    Ability {
        name: "SEND_MSG_RING obeys",
        yes: "messages to rings obey the filters of MSG_RING",
        no: "a message without a ring goes around filters; where MSG_RING is denied, \
             `ringfence run` refuses such messages by seccomp",
        test: || try_out(send_msg_ring_obeys),
    },
    Ability {
        name: "truthful probe",
        yes: "programs that probe see what is denied, and fall back",
        no: "programs that probe take denied opcodes for supported ones, and fail at run time",
        test: || try_out(probe_is_truthful),
    },
    Ability {
        name: "registration filters",
        yes: "registrations can be allowed and denied",
        no: "`ringfence run` refuses policies with `registrations`; all registrations are open",
        test: || try_out(filters_registrations),
    },
    Ability {
        name: "setup filters",
        yes: "rings can be allowed by their flags and sizes",
        no: "`ringfence run` refuses policies with `setup`; all kinds of rings can be made",
        test: || try_out(filters_setup),
    },
    Ability {
        name: "denials are traced",
        yes: "the trace event io_uring:io_uring_denied says what was denied, and why",
        no: "nothing says what was denied but the results of requests",
        test: || traced("io_uring_denied"),
    },
    Ability {
        name: "requests are traced",
        yes: "`ringfence learn` can see what a command does",
        no: "`ringfence learn` cannot see what a command does",
        test: || traced("io_uring_submit_req"),
    },
    Ability {
        name: "refusals are listed",
        yes: "`ringfence show` can see what rings refuse",
        no: "`ringfence show` cannot see what rings refuse",
        test: || try_out(refusals_are_listed),
    },
];

const ALLOW: &[Insn] = &[Insn {
    code: 6,
    jt: 0,
    jf: 0,
    k: 1,
}];
const DENY: &[Insn] = &[Insn {
    code: 6,
    jt: 0,
    jf: 0,
    k: 0,
}];

fn filter(opcode: u8, program: &[Insn], payload: u8) -> Filter {
    Filter {
        opcode,
        program: program.to_vec(),
        payload,
    }
}

fn deny(op: Op) -> io::Result<()> {
    kernel::register_filter(Kind::Request, &filter(op.0, DENY, 0), false)
}

fn is_access(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EACCES)
}

fn has_filters() -> io::Result<bool> {
    match deny(Op::NOP) {
        // Kernels before filters, and before registrations of tasks.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EBADF)) => {
            return Ok(false);
        }
        result => result?,
    }
    Ok(Ring::new()?.nop()? == -libc::EACCES)
}

fn has_connect_arguments() -> io::Result<bool> {
    match kernel::register_filter(Kind::Request, &filter(Op::CONNECT.0, ALLOW, 24), false) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(false),
        Err(error) => Err(error),
    }
}

fn send_msg_ring_obeys() -> io::Result<bool> {
    deny(Op::MSG_RING)?;
    match Ring::new()?.send_msg_ring() {
        Ok(()) => Ok(false),
        Err(error) if is_access(&error) => Ok(true),
        Err(error) => Err(error),
    }
}

fn probe_is_truthful() -> io::Result<bool> {
    deny(Op::NOP)?;
    Ok(!Ring::new()?.probe(Op::NOP)?)
}

/// Takes `EINVAL` for the answer of a kernel that does not have this kind of filter.
fn has_kind(kind: Kind, filter: &Filter) -> io::Result<bool> {
    match kernel::register_filter(kind, filter, false) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        Err(error) => Err(error),
    }
}

fn filters_registrations() -> io::Result<bool> {
    let denied = Registration::REGISTER_PROBE;
    if !has_kind(Kind::Registration, &filter(denied.0, DENY, 0))? {
        return Ok(false);
    }
    Ok(Ring::new()?
        .probe(Op::NOP)
        .is_err_and(|error| is_access(&error)))
}

fn filters_setup() -> io::Result<bool> {
    let mut policy = crate::policy::Policy::allowing(Op::ALL.iter().map(|(_, op)| *op));
    policy.setup = Some(crate::policy::Setup {
        allowed_flags: Some([SetupFlag::CLAMP].into()),
        ..Default::default()
    });
    let fence = policy.fence().map_err(io::Error::other)?;
    let setup = fence.setup.expect("the policy has a rule for rings");
    if !has_kind(Kind::Setup, &setup)? {
        return Ok(false);
    }
    Ring::with_flags(SetupFlag::CLAMP.0)?;
    let denied = Ring::with_flags(SetupFlag::CLAMP.0 | SetupFlag::SUBMIT_ALL.0);
    Ok(denied.is_err_and(|error| is_access(&error)))
}

fn refusals_are_listed() -> io::Result<bool> {
    deny(Op::NOP)?;
    let ring = Ring::new()?;
    Ok(crate::show::refusals_of(std::process::id(), ring.fd())?.is_some())
}

/// Runs a test in a child process that cannot gain privileges.
fn try_out(test: fn() -> io::Result<bool>) -> Answer {
    const FAILED: u8 = 2;
    let outcome = kernel::in_child(|| match kernel::set_no_new_privs().and_then(|()| test()) {
        Ok(answer) => answer.into(),
        // The errors of system calls are below 128.
        Err(error) => {
            FAILED
                + error
                    .raw_os_error()
                    .and_then(|it| u8::try_from(it).ok())
                    .unwrap_or(0)
        }
    });
    match outcome {
        Ok(0) => Answer::No,
        Ok(1) => Answer::Yes,
        Ok(FAILED) => Answer::Unknown("the self-test failed".to_string()),
        Ok(status) => {
            let error = io::Error::from_raw_os_error(i32::from(status - FAILED));
            Answer::Unknown(error.to_string())
        }
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

/// Returns whether filters stay on a task that used a ring before it executes a program.
pub fn kept_across_exec() -> Answer {
    const CANNOT_EXECUTE: u8 = 255;
    let outcome = kernel::in_child(|| {
        let prepared = kernel::set_no_new_privs()
            .and_then(|()| deny(Op::NOP))
            .and_then(|()| Ring::new()?.nop())
            .and_then(|_| kernel::own_path());
        let Ok(path) = prepared else {
            return CANNOT_EXECUTE;
        };
        let error = std::os::unix::process::CommandExt::exec(Command::new(path).arg(NOP_PROBE));
        drop(error);
        CANNOT_EXECUTE
    });
    match outcome.map(i32::from) {
        Ok(libc::EACCES) => Answer::Yes,
        Ok(0) => Answer::No,
        Ok(_) => Answer::Unknown("the self-test cannot execute this program".to_string()),
        Err(error) => Answer::Unknown(error.to_string()),
    }
}

/// Makes one NOP. Returns the exit status that says what became of it.
pub fn nop_probe() -> u8 {
    let result = Ring::new().and_then(|mut ring| ring.nop());
    result
        .ok()
        .and_then(|result| u8::try_from(-result).ok())
        .unwrap_or(u8::MAX)
}

/// Returns whether messages without a ring obey the filters.
pub fn send_msg_ring_is_filtered() -> Answer {
    try_out(send_msg_ring_obeys)
}

/// Returns whether the kernel has a kind of filter.
pub fn has(kind: Kind) -> Answer {
    match kind {
        Kind::Request => try_out(has_filters),
        Kind::Registration => try_out(filters_registrations),
        Kind::Setup => try_out(filters_setup),
    }
}

/// Returns whether the kernel lists what rings refuse.
pub fn refusals_can_be_listed() -> bool {
    try_out(refusals_are_listed) == Answer::Yes
}

fn traced(event: &str) -> Answer {
    match crate::trace::folder() {
        None => Answer::Unknown("tracefs is not mounted, or not for this user".to_string()),
        Some(folder) => match Path::new(&folder)
            .join("events/io_uring")
            .join(event)
            .exists()
        {
            true => Answer::Yes,
            false => Answer::No,
        },
    }
}

/// Prints a line for each ability. Returns whether `ringfence run` can enforce policies.
pub fn report() -> bool {
    let width = ABILITIES
        .iter()
        .map(|ability| ability.name.len())
        .max()
        .unwrap_or(0);
    let mut can_run = true;
    for (index, ability) in ABILITIES.iter().enumerate() {
        let answer = (ability.test)();
        let (word, consequence) = match &answer {
            Answer::Yes => ("yes", ability.yes.to_string()),
            Answer::No => ("no", ability.no.to_string()),
            Answer::Unknown(reason) => ("unknown", reason.clone()),
        };
        let word = format!("{word:7}");
        let word = match answer {
            Answer::Yes => word
                .if_supports_color(Stream::Stdout, |it| it.green())
                .to_string(),
            Answer::No => word
                .if_supports_color(Stream::Stdout, |it| it.red())
                .to_string(),
            Answer::Unknown(_) => word
                .if_supports_color(Stream::Stdout, |it| it.yellow())
                .to_string(),
        };
        println!("{:width$}  {word}  {consequence}", ability.name);
        let is_needed = index < 2;
        can_run &= !is_needed || answer == Answer::Yes;
        if index == 0 && answer != Answer::Yes {
            break;
        }
    }
    can_run
}
