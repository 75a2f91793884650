// SPDX-License-Identifier: GPL-2.0
//! The kernel's trace events about io_uring: an instance of tracefs of this program's own,
//! and the lines that it prints.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::LazyLock;

use regex::Regex;

use crate::names::{Op, Registration};

/// Something that a task did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// The task wrote a line to the instance.
    Marked(String),
    /// The task started another task, with this id.
    Started(u32),
    /// The task made a ring with these `IORING_SETUP_*` flags.
    Created { ring: String, flags: u32 },
    /// A request was accepted. The submitting task may be the ring's own thread.
    Submitted { ring: String, op: Op, flags: u8 },
    /// A request was denied, for this reason.
    Denied {
        ring: String,
        op: Op,
        flags: u8,
        reason: String,
    },
    /// A request whose opcode has a name that is not known here was accepted or denied.
    Unknown { ring: String, name: String },
    /// The task called `io_uring_register(2)`.
    Registered(Registration),
}

/// A line of a trace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Line {
    /// An event of the task with this id.
    Event(u32, Event),
    /// The kernel had to drop this number of events.
    Lost(u64),
}

/// The events that are switched on, without which nothing can be learned.
const EVENTS: &[&str] = &[
    "sched/sched_process_fork",
    "io_uring/io_uring_create",
    "io_uring/io_uring_submit_req",
];
const DENIED: &str = "io_uring/io_uring_denied";
const SYSCALLS: &str = "raw_syscalls/sys_enter";

/// Returns the folder of tracefs, if it is there and may be read.
pub fn folder() -> Option<PathBuf> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    places
        .iter()
        .map(PathBuf::from)
        .find(|place| place.join("events/io_uring").exists())
}

/// An instance of tracefs with the events that this program follows. It goes when this is
/// dropped.
pub struct Instance {
    folder: PathBuf,
    pipe: Option<File>,
    /// Whether calls of `io_uring_register(2)` are seen.
    pub sees_registrations: bool,
    /// The bytes of a line that has not ended yet.
    rest: Vec<u8>,
}

impl Instance {
    /// Makes an instance and switches its events on.
    ///
    /// # Errors
    ///
    /// Fails if tracefs is not mounted, has no events of io_uring, or may not be written.
    pub fn new() -> io::Result<Self> {
        let all = folder().ok_or_else(|| {
            io::Error::new(
                ErrorKind::NotFound,
                "no io_uring events in /sys/kernel/tracing; is tracefs mounted, and is this root?",
            )
        })?;
        let folder = all
            .join("instances")
            .join(format!("ringfence-{}", std::process::id()));
        fs::create_dir(&folder)?;
        let mut instance = Instance {
            folder,
            pipe: None,
            sees_registrations: false,
            rest: Vec::new(),
        };
        // Clocks of two processors differ, and a command's first event must not seem to
        // precede its start. This clock counts the events of all processors.
        instance.write("trace_clock", "counter")?;
        // Some kernels cannot do these, and then show rings by numbers of their own.
        let _ = instance.write("options/hash-ptr", "0");
        let _ = instance.write("buffer_size_kb", "4096");
        for event in EVENTS {
            instance.write(&format!("events/{event}/enable"), "1")?;
        }
        let _ = instance.write(&format!("events/{DENIED}/enable"), "1");
        let number = format!("id == {}", libc::SYS_io_uring_register);
        instance.sees_registrations = instance
            .write(&format!("events/{SYSCALLS}/filter"), &number)
            .and_then(|()| instance.write(&format!("events/{SYSCALLS}/enable"), "1"))
            .is_ok();
        let pipe = instance.folder.join("trace_pipe");
        let options = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(pipe)?;
        instance.pipe = Some(options);
        Ok(instance)
    }

    /// Returns the path of the file to which a task writes to be seen as [`Event::Marked`].
    pub fn marker(&self) -> PathBuf {
        self.folder.join("trace_marker")
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        let path = self.folder.join(file);
        fs::write(&path, value)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// Returns the lines since the last call that are of interest, in the order of their
    /// events. Does not wait.
    pub fn take(&mut self) -> io::Result<Vec<Line>> {
        let mut chunk = vec![0; 1 << 16];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => self.rest.extend_from_slice(&chunk[..length]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        let Some(end) = self.rest.iter().rposition(|&byte| byte == b'\n') else {
            return Ok(Vec::new());
        };
        let text: Vec<u8> = self.rest.drain(..=end).collect();
        Ok(in_order(&String::from_utf8_lossy(&text)))
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // The kernel refuses to remove an instance whose files are open.
        self.pipe = None;
        let _ = fs::remove_dir(&self.folder);
    }
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is valid")
}

/// A line: task, processor, flags, number, event. Names of tasks may contain anything.
static LINE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^.*-([0-9]+) +\[[0-9]+\] +[^ ]+ +([0-9]+): ([a-z_]+): (.*)$"));
static LOST: LazyLock<Regex> = LazyLock::new(|| pattern(r"^CPU:[0-9]+ \[LOST ([0-9]+) EVENTS\]$"));
static STARTED: LazyLock<Regex> = LazyLock::new(|| pattern(r"child_pid=([0-9]+)$"));
static CREATED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^ring ([^ ,]+), .*flags 0x([0-9a-f]+)$"));
static SUBMITTED: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^ring ([^ ,]+), .*opcode ([A-Z0-9_]+), flags 0x([0-9a-f]+), sq_thread [0-9]+$")
});
static DENIAL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"^ring ([^ ,]+), .*opcode ([A-Z0-9_]+), flags 0x([0-9a-f]+), denied by (.+)$")
});
static SYSCALL: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^NR ([0-9]+) \([0-9a-f]+, ([0-9a-f]+), "));

/// Returns the opcode that trace events call by this name.
fn op(name: &str) -> Option<Op> {
    match name {
        "EPOLL" => Some(Op::EPOLL_CTL),
        _ => Op::from_short(name).ok(),
    }
}

/// Returns the lines that are of interest, in the order of their events.
///
/// The kernel looks at one processor's events after the other's, and so may print an event
/// of the second before one that came earlier on the first.
fn in_order(text: &str) -> Vec<Line> {
    let mut lines: Vec<(u64, Line)> = text.lines().filter_map(parse).collect();
    lines.sort_by_key(|(number, _)| *number);
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Returns what a line says, if that is of interest, and the number of its event: 0 for
/// lost events, which have none.
fn parse(line: &str) -> Option<(u64, Line)> {
    if let Some(lost) = LOST.captures(line) {
        return Some((0, Line::Lost(lost[1].parse().ok()?)));
    }
    let parts = LINE.captures(line)?;
    let text = parts.get(4)?.as_str();
    let hexadecimal = |text: &str| u64::from_str_radix(text, 16).ok();
    let event = match &parts[3] {
        "tracing_mark_write" => Event::Marked(text.to_string()),
        "sched_process_fork" => Event::Started(STARTED.captures(text)?[1].parse().ok()?),
        "io_uring_create" => {
            let parts = CREATED.captures(text)?;
            Event::Created {
                ring: parts[1].to_string(),
                flags: hexadecimal(&parts[2])? as u32,
            }
        }
        "io_uring_submit_req" => {
            let parts = SUBMITTED.captures(text)?;
            let flags = hexadecimal(&parts[3])? as u8 & 0x7f;
            let (ring, name) = (parts[1].to_string(), &parts[2]);
            match op(name) {
                Some(op) => Event::Submitted { ring, op, flags },
                None => Event::Unknown {
                    ring,
                    name: name.to_string(),
                },
            }
        }
        "io_uring_denied" => {
            let parts = DENIAL.captures(text)?;
            let flags = hexadecimal(&parts[3])? as u8 & 0x7f;
            let (ring, name) = (parts[1].to_string(), &parts[2]);
            match op(name) {
                Some(op) => Event::Denied {
                    ring,
                    op,
                    flags,
                    reason: parts[4].to_string(),
                },
                None => Event::Unknown {
                    ring,
                    name: name.to_string(),
                },
            }
        }
        "sys_enter" => {
            let parts = SYSCALL.captures(text)?;
            if parts[1].parse() != Ok(libc::SYS_io_uring_register) {
                return None;
            }
            // The uppermost bit says that the ring is named by its index.
            let opcode = hexadecimal(&parts[2])? as u32 & !(1 << 31);
            Event::Registered(Registration(u8::try_from(opcode).ok()?))
        }
        _ => return None,
    };
    let line = Line::Event(parts[1].parse().ok()?, event);
    Some((parts[2].parse().ok()?, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(line: &str) -> Option<(u32, Event)> {
        match parse(line)? {
            (_, Line::Event(task, event)) => Some((task, event)),
            (_, line) => panic!("{line:?}"),
        }
    }

    #[test]
    fn submitted_requests_are_read() {
        let line = "             fio-812     [001] .....    12345678: io_uring_submit_req: ring 00000000c2a1, \
                    req 00000000ffee, user_data 0x7f00, opcode READ_FIXED, flags 0x80000000011, sq_thread 1";
        let ring = "00000000c2a1".to_string();
        let submitted = Event::Submitted {
            ring,
            op: Op::READ_FIXED,
            flags: 0x11,
        };
        assert_eq!(event(line), Some((812, submitted)));
    }

    #[test]
    fn unknown_opcodes_are_named() {
        let line = "a-9 [000] ..... 1: io_uring_submit_req: ring ff0, req ffe, user_data 0x1, opcode TELEPORT, \
             flags 0x0, sq_thread 0";
        let unknown = Event::Unknown {
            ring: "ff0".to_string(),
            name: "TELEPORT".to_string(),
        };
        assert_eq!(event(line), Some((9, unknown)));
    }

    /// The kernel calls one opcode by a name that differs from its header's.
    #[test]
    fn epoll_ctl_is_found_by_its_name_in_traces() {
        assert_eq!(op("EPOLL"), Some(Op::EPOLL_CTL));
        assert_eq!(op("EPOLL_WAIT"), Some(Op::EPOLL_WAIT));
    }

    #[test]
    fn denied_requests_are_read() {
        let line = "node-1 (x) [0] y-77      [000] ..... 1: io_uring_denied: ring ffff888, user_data 0x1, \
                    opcode EPOLL, flags 0x4, denied by filter, certain for the opcode";
        let denied = Event::Denied {
            ring: "ffff888".to_string(),
            op: Op::EPOLL_CTL,
            flags: 4,
            reason: "filter, certain for the opcode".to_string(),
        };
        assert_eq!(event(line), Some((77, denied)));
    }

    #[test]
    fn rings_and_tasks_are_read() {
        let line = " a b-9  [000] d..1.  71: io_uring_create: ring ff0, fd 3 sq size 8, cq size 16, flags 0x3002";
        let created = Event::Created {
            ring: "ff0".to_string(),
            flags: 0x3002,
        };
        assert_eq!(event(line), Some((9, created)));
        let line = "sh-5 [000] ..... 71: sched_process_fork: comm=pid=3 pid=5 child_comm=child_pid=8 child_pid=6";
        assert_eq!(event(line), Some((5, Event::Started(6))));
        let line = "sh-5 [000] ..... 71: tracing_mark_write: ringfence";
        assert_eq!(
            event(line),
            Some((5, Event::Marked("ringfence".to_string())))
        );
    }

    #[test]
    fn registrations_are_read() {
        let line = "sh-5 [000] ..... 71: sys_enter: NR 427 (ffffffff, 8000001f, 7ffe, 1, 0, 0)";
        let registered = Event::Registered(Registration::REGISTER_SEND_MSG_RING);
        assert_eq!(event(line), Some((5, registered)));
        let other = "sh-5 [000] ..... 71: sys_enter: NR 42 (3, 1f, 7ffe, 1, 0, 0)";
        assert_eq!(event(other), None);
    }

    #[test]
    fn lost_events_are_counted() {
        assert_eq!(parse("CPU:1 [LOST 12 EVENTS]"), Some((0, Line::Lost(12))));
        assert_eq!(parse("something else"), None);
    }

    #[test]
    fn lines_are_put_in_order() {
        let text = "sh-6 [001] ..... 9: tracing_mark_write: ringfence\n\
                    sh-5 [000] ..... 10: sys_enter: NR 427 (3, 2, 7ffe, 1, 0, 0)\n\
                    sh-5 [000] ..... 8: sched_process_fork: comm=sh pid=5 child_comm=sh child_pid=6\n";
        let want = [
            Line::Event(5, Event::Started(6)),
            Line::Event(6, Event::Marked("ringfence".to_string())),
            Line::Event(5, Event::Registered(Registration(2))),
        ];
        assert_eq!(in_order(text), want);
    }
}
