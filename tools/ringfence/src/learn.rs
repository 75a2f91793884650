// SPDX-License-Identifier: GPL-2.0
//! Runs a command, follows what its tasks do with rings by the kernel's trace events, and
//! makes the policy that would have let it through.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ffi::CString;
use std::io::{self, Read, Write};

use nix::sys::signal::kill;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::doctor::{self, Answer};
use crate::kernel::{self, Kind, Signals};
use crate::names::{Op, Registration, SetupFlag, SqeFlag};
use crate::policy::{Action, Policy, Registrations, Setup};
use crate::run::RunError;
use crate::trace::{Event, Instance, Line};

/// What a task writes to be followed, before it becomes the command.
const BEGIN: &str = "ringfence: the command begins";
/// What `ringfence run` writes so as not to be followed while it tries the kernel.
const PAUSE: &str = "ringfence: self-tests begin";
/// The environment variable with the file that both are written to.
const MARKER: &str = "RINGFENCE_MARKER";

/// Tells the `ringfence learn` that runs this process, if one does, to look away until
/// [`resume`] is called.
pub fn pause() {
    mark(PAUSE);
}

/// Ends what [`pause`] began.
pub fn resume() {
    mark(BEGIN);
}

fn mark(text: &str) {
    if let Some(path) = std::env::var_os(MARKER) {
        // Without privileges, the command learns less.
        let _ = std::fs::write(path, text);
    }
}

/// What the tasks of a command did with rings.
#[derive(Default)]
pub struct Seen {
    tasks: HashSet<u32>,
    rings: HashSet<String>,
    pub ops: BTreeSet<Op>,
    /// The flags of the requests, as filters see them.
    pub flags: u8,
    pub setup_flags: u32,
    pub registrations: BTreeSet<Registration>,
    pub denied: BTreeMap<Op, String>,
    /// The opcodes of which programs, which look at arguments, denied requests.
    pub denied_by_rules: BTreeSet<Op>,
    /// The names of opcodes in events that this program does not know.
    pub unknown: BTreeSet<String>,
    /// Whether a task of the command used a ring that none of them made.
    pub uses_foreign_rings: bool,
    pub lost: u64,
}

impl Seen {
    /// Takes note of a line. Returns what to show about it, if it is something new.
    pub fn note(&mut self, line: Line) -> Option<String> {
        let (task, event) = match line {
            Line::Lost(count) => {
                self.lost += count;
                return None;
            }
            Line::Event(task, event) => (task, event),
        };
        let is_ours = self.tasks.contains(&task);
        match event {
            Event::Marked(text) => {
                match text.trim() {
                    BEGIN => self.tasks.insert(task),
                    PAUSE => self.tasks.remove(&task),
                    _ => false,
                };
                None
            }
            Event::Started(child) => {
                if is_ours {
                    self.tasks.insert(child);
                } else {
                    // The number of a task that has ended is used again.
                    self.tasks.remove(&child);
                }
                None
            }
            Event::Created { ring, flags } => {
                if !is_ours {
                    self.rings.remove(&ring);
                    return None;
                }
                let is_new = self.setup_flags | flags != self.setup_flags || self.rings.is_empty();
                self.rings.insert(ring);
                self.setup_flags |= flags;
                is_new.then(|| format!("a ring with the flags {}", names_of(flags)))
            }
            Event::Submitted { ring, op, flags } => {
                if !self.rings.contains(&ring) {
                    self.uses_foreign_rings |= is_ours;
                    return None;
                }
                let is_new = self.ops.insert(op) | (self.flags | flags != self.flags);
                self.flags |= flags;
                is_new.then(|| match flags {
                    0 => op.short(),
                    _ => format!("{} with {}", op.short(), sqe_flags(flags)),
                })
            }
            Event::Denied {
                ring,
                op,
                flags,
                reason,
            } => {
                if !self.rings.contains(&ring) && !is_ours {
                    return None;
                }
                // The policy is to let this through, too.
                self.ops.insert(op);
                self.flags |= flags;
                if reason == "filter" {
                    self.denied_by_rules.insert(op);
                }
                let is_new = self.denied.insert(op, reason.clone()).is_none();
                is_new.then(|| format!("{} was denied by {reason}", op.short()))
            }
            Event::Unknown { ring, name } => {
                let is_followed = self.rings.contains(&ring) || is_ours;
                (is_followed && self.unknown.insert(name.clone()))
                    .then(|| format!("the unknown opcode {name}"))
            }
            Event::Registered(registration) => {
                if !is_ours || !self.registrations.insert(registration) {
                    return None;
                }
                // Such a message obeys the filters of this opcode.
                if registration == Registration::REGISTER_SEND_MSG_RING {
                    self.ops.insert(Op::MSG_RING);
                }
                Some(format!("the registration {}", registration.short()))
            }
        }
    }

    /// Returns the policy that allows what was seen. Rules for rings and registrations are
    /// left out if `filters_setup` or `filters_registrations` are false.
    pub fn policy(&self, filters_setup: bool, filters_registrations: bool) -> Policy {
        let mut policy = Policy::allowing(self.ops.iter().copied());
        // The kernel itself sets the other two on requests, depending on their arguments.
        let unstable = SqeFlag::ASYNC.0 | SqeFlag::IO_DRAIN.0;
        let all = SqeFlag::ALL.iter().map(|(_, flag)| *flag);
        policy.denied_sqe_flags = all
            .filter(|flag| flag.0 & (self.flags | unstable) == 0)
            .collect();
        if filters_setup {
            let all = SetupFlag::ALL.iter().map(|(_, flag)| *flag);
            let seen = all.filter(|flag| flag.0 & self.setup_flags != 0).collect();
            policy.setup = Some(Setup {
                allowed_flags: Some(seen),
                ..Default::default()
            });
        }
        if filters_registrations {
            policy.registrations = Some(Registrations {
                default_action: Action::Deny,
                ops: self.registrations.clone(),
            });
        }
        policy
    }

    /// Returns what the policy does not say because it was not seen.
    pub fn unseen(&self, has_setup: bool, has_registrations: bool) -> Vec<String> {
        let mut unseen = Vec::new();
        let mut say = |is_so: bool, text: &str| {
            if is_so {
                unseen.push(text.to_string());
            }
        };
        say(
            self.lost != 0,
            "the kernel dropped events, so that opcodes may be missing: run the command again with --merge",
        );
        say(
            self.ops.contains(&Op::SOCKET),
            "the families of sockets: all are allowed; add socketFamilies",
        );
        say(
            self.ops.contains(&Op::CONNECT),
            "the addresses of connections: all are allowed; add connect",
        );
        say(
            self.ops.contains(&Op::OPENAT) || self.ops.contains(&Op::OPENAT2),
            "how files are opened: everything is allowed; add open",
        );
        let unknown: Vec<&str> = self.unknown.iter().map(String::as_str).collect();
        say(
            !unknown.is_empty(),
            &format!(
                "opcodes that this ringfence does not know, and denies: {}",
                unknown.join(", ")
            ),
        );
        let names: Vec<String> = self.denied_by_rules.iter().map(|op| op.short()).collect();
        say(
            !names.is_empty(),
            &format!(
                "which arguments of {} were denied: change the rules about them",
                names.join(", ")
            ),
        );
        say(
            self.uses_foreign_rings,
            "requests on rings that the command was given: its filters do not apply to these",
        );
        say(
            !has_setup,
            "the flags of rings are not in the policy: this kernel cannot filter them",
        );
        say(
            !has_registrations,
            "registrations are not in the policy: this kernel cannot filter them, or does not show them",
        );
        unseen
    }
}

fn names_of(flags: u32) -> String {
    let all = SetupFlag::ALL
        .iter()
        .filter(|(_, flag)| flags & flag.0 != 0);
    let names: Vec<String> = all.map(|(_, flag)| flag.short()).collect();
    if names.is_empty() {
        "none".to_string()
    } else {
        names.join("|")
    }
}

/// Returns the names of SQE flags.
pub fn sqe_flags(flags: u8) -> String {
    let all = SqeFlag::ALL.iter().filter(|(_, flag)| flags & flag.0 != 0);
    all.map(|(_, flag)| flag.short())
        .collect::<Vec<_>>()
        .join("|")
}

/// What came of a command.
pub struct Learned {
    pub policy: Policy,
    pub unseen: Vec<String>,
    /// The command's exit status, or 128 and the number of the signal that ended it.
    pub status: u8,
    /// Whether the command could be executed at all.
    pub was_executed: bool,
}

/// Runs a command to its end and learns from it. Prints what is new as it goes.
///
/// # Errors
///
/// Fails if the events of the kernel cannot be followed.
pub fn learn(command: &[CString]) -> io::Result<Learned> {
    // These are tried before anything is followed.
    let filters_setup = doctor::has(Kind::Setup) == Answer::Yes;
    let mut filters_registrations = doctor::has(Kind::Registration) == Answer::Yes;
    let mut instance = Instance::new()?;
    filters_registrations &= instance.sees_registrations;
    let marker = instance.marker();
    // The end of the command closes this, and so does its execution.
    let (mut failure, mut fails) = io::pipe()?;

    let child = kernel::spawn(|| {
        kernel::set_variable(MARKER, &marker);
        let source = match std::fs::write(&marker, BEGIN) {
            Ok(()) => kernel::exec(command),
            Err(error) => error,
        };
        let _ = fails.write_all(&[1]);
        let command = command[0].to_string_lossy().into_owned();
        let error = RunError::Exec { command, source };
        eprintln!("ringfence: {error}");
        error.status()
    })?;
    let signals = Signals::take();
    drop(fails);
    let mut seen = Seen::default();
    let status = loop {
        let ended = waitpid(child, Some(WaitPidFlag::WNOHANG))?;
        for line in instance.take()? {
            if let Some(news) = seen.note(line) {
                eprintln!("ringfence: {news}");
            }
        }
        match ended {
            WaitStatus::Exited(_, status) => break status as u8,
            WaitStatus::Signaled(_, signal, _) => break 128 + signal as u8,
            _ => {
                if let Some(signal) = signals.wait(20) {
                    // The command may have ended meanwhile.
                    let _ = kill(child, signal);
                }
            }
        }
    };
    let was_executed = failure.read(&mut [0])? == 0;
    Ok(Learned {
        was_executed,
        policy: seen.policy(filters_setup, filters_registrations),
        unseen: seen.unseen(filters_setup, filters_registrations),
        status,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(task: u32, event: Event) -> Line {
        Line::Event(task, event)
    }

    fn submitted(task: u32, ring: &str, op: Op, flags: u8) -> Line {
        event(
            task,
            Event::Submitted {
                ring: ring.to_string(),
                op,
                flags,
            },
        )
    }

    fn created(task: u32, ring: &str, flags: u32) -> Line {
        event(
            task,
            Event::Created {
                ring: ring.to_string(),
                flags,
            },
        )
    }

    /// Makes what was seen of a command that begins as task 10.
    fn begun() -> Seen {
        let mut seen = Seen::default();
        seen.note(event(10, Event::Marked(BEGIN.to_string())));
        seen
    }

    fn denied(ring: &str, op: Op, flags: u8, reason: &str) -> Line {
        event(
            10,
            Event::Denied {
                ring: ring.to_string(),
                op,
                flags,
                reason: reason.to_string(),
            },
        )
    }

    #[test]
    fn only_the_tasks_of_the_command_are_followed() {
        let mut seen = begun();
        seen.note(event(10, Event::Started(11)));
        seen.note(event(5, Event::Started(12)));
        seen.note(created(11, "a", 0));
        seen.note(created(12, "b", 2));
        assert_eq!(
            seen.note(submitted(11, "a", Op::READ, 0)).as_deref(),
            Some("READ")
        );
        assert_eq!(seen.note(submitted(11, "a", Op::READ, 0)), None);
        assert_eq!(seen.note(submitted(12, "b", Op::WRITE, 0)), None);
        assert_eq!(seen.ops, [Op::READ].into());
        assert_eq!(seen.setup_flags, 0);
        assert!(!seen.uses_foreign_rings);
    }

    /// What a fence denies is learned, but not what is tried before the command runs in it.
    #[test]
    fn requests_in_a_fence_are_learned_without_its_self_tests() {
        let mut seen = begun();
        seen.note(created(10, "a", 0));
        seen.note(event(10, Event::Marked(format!("{PAUSE}\n"))));
        seen.note(event(10, Event::Started(11)));
        seen.note(created(11, "b", SetupFlag::SQPOLL.0));
        seen.note(submitted(11, "b", Op::WRITE, 0));
        let registration = Registration::REGISTER_SEND_MSG_RING;
        seen.note(event(11, Event::Registered(registration)));
        seen.note(event(10, Event::Marked(BEGIN.to_string())));
        assert_eq!((seen.ops.len(), seen.setup_flags), (0, 0));

        let link = SqeFlag::IO_LINK.0;
        seen.note(denied(
            "a",
            Op::READV,
            link,
            "filter, certain for the flags",
        ));
        seen.note(denied("b", Op::FSYNC, 0, "filter, certain for the opcode"));
        seen.note(denied("a", Op::SOCKET, 0, "filter"));
        seen.note(Line::Event(
            99,
            Event::Denied {
                ring: "c".to_string(),
                op: Op::CLOSE,
                flags: 0,
                reason: "filter".to_string(),
            },
        ));
        let policy = seen.policy(false, false);
        assert_eq!(policy.ops, [Op::READV, Op::FSYNC, Op::SOCKET].into());
        assert!(!policy.denied_sqe_flags.contains(&SqeFlag::IO_LINK));
        let unseen = seen.unseen(true, true);
        assert!(
            unseen
                .iter()
                .any(|text| text.contains("of SOCKET were denied")),
            "{unseen:?}"
        );
    }

    /// A ring's own thread submits for it, and is no task of the command that is seen to
    /// start.
    #[test]
    fn requests_of_submission_threads_count() {
        let mut seen = begun();
        seen.note(created(10, "a", SetupFlag::SQPOLL.0));
        assert!(
            seen.note(submitted(99, "a", Op::FSYNC, SqeFlag::ASYNC.0))
                .is_some()
        );
        assert_eq!(seen.ops, [Op::FSYNC].into());
    }

    #[test]
    fn rings_and_tasks_that_are_used_again_are_others() {
        let mut seen = begun();
        seen.note(created(10, "a", 0));
        seen.note(created(5, "a", 0));
        assert_eq!(seen.note(submitted(5, "a", Op::READ, 0)), None);
        seen.note(event(10, Event::Started(11)));
        seen.note(event(5, Event::Started(11)));
        seen.note(created(11, "b", 0));
        assert_eq!(seen.note(submitted(11, "b", Op::READ, 0)), None);
        assert_eq!(seen.ops, BTreeSet::new());
    }

    #[test]
    fn rings_from_outside_are_named() {
        let mut seen = begun();
        seen.note(submitted(10, "x", Op::READ, 0));
        assert!(seen.uses_foreign_rings);
        let unseen = seen.unseen(true, true);
        assert!(
            unseen[0].contains("rings that the command was given"),
            "{unseen:?}"
        );
    }

    #[test]
    fn policies_allow_what_was_seen() {
        let mut seen = begun();
        seen.note(created(10, "a", SetupFlag::SINGLE_ISSUER.0));
        seen.note(submitted(10, "a", Op::READ, SqeFlag::IO_LINK.0));
        seen.note(event(10, Event::Registered(Registration::REGISTER_FILES)));
        let policy = seen.policy(true, true);
        assert_eq!(policy.ops, [Op::READ].into());
        let denied = [
            SqeFlag::FIXED_FILE,
            SqeFlag::IO_HARDLINK,
            SqeFlag::BUFFER_SELECT,
            SqeFlag::CQE_SKIP_SUCCESS,
        ];
        assert_eq!(policy.denied_sqe_flags, denied.into());
        assert_eq!(
            policy.setup.unwrap().allowed_flags,
            Some([SetupFlag::SINGLE_ISSUER].into())
        );
        assert_eq!(
            policy.registrations.unwrap().ops,
            [Registration::REGISTER_FILES].into()
        );
        let without = seen.policy(false, false);
        assert!(without.setup.is_none() && without.registrations.is_none());
    }

    /// A message without a ring obeys the filters of messages.
    #[test]
    fn messages_without_a_ring_are_allowed() {
        let mut seen = begun();
        seen.note(event(
            10,
            Event::Registered(Registration::REGISTER_SEND_MSG_RING),
        ));
        assert!(seen.policy(false, false).ops.contains(&Op::MSG_RING));
    }

    #[test]
    fn what_was_not_seen_is_named() {
        let mut seen = begun();
        seen.note(created(10, "a", 0));
        for op in [Op::SOCKET, Op::CONNECT, Op::OPENAT2] {
            seen.note(submitted(10, "a", op, 0));
        }
        seen.note(Line::Lost(3));
        assert_eq!(seen.unseen(true, true).len(), 4);
        assert_eq!(seen.unseen(false, false).len(), 6);
        let unknown = |ring: &str| Event::Unknown {
            ring: ring.to_string(),
            name: "TELEPORT".to_string(),
        };
        assert_eq!(seen.note(event(5, unknown("z"))), None);
        assert!(seen.note(event(5, unknown("a"))).is_some());
        assert_eq!(seen.note(event(10, unknown("a"))), None);
        assert_eq!(seen.unseen(true, true).len(), 5);
        assert_eq!(begun().unseen(true, true), Vec::<String>::new());
    }
}
