// SPDX-License-Identifier: GPL-2.0
//! Shows what the rings of a running process refuse, as `/proc/PID/fdinfo` lists it.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::RawFd;
use std::sync::LazyLock;
use std::time::Duration;

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use regex::Regex;

use crate::learn::sqe_flags;
use crate::names::{Op, Registration, SqeFlag};

/// What a ring refuses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Refusals {
    /// The registrations that are allowed; all if absent.
    pub registrations: Option<Vec<Registration>>,
    /// The opcodes that a list of restrictions allows; all if absent.
    pub ops: Option<Vec<Op>>,
    /// The flags of SQEs that the list allows and requires.
    pub flags: Option<(u8, u8)>,
    /// What filters do with opcodes. Those that are not here are free.
    pub filters: Vec<Filtered>,
    /// The numbers of programs that decide on registrations, or `None` for those that are
    /// denied. Those that are not here are free.
    pub registration_filters: Vec<(Registration, Option<u32>)>,
}

/// What filters do with an opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Filtered {
    pub op: Op,
    pub decision: Decision,
    /// The cost of all filters of the opcode, of which the kernel allows 32,768.
    pub cost: u32,
}

/// What decides on the requests with an opcode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// Each request is denied.
    Denied,
    /// The flags of the SQE decide, bit `n` of `flags` on those of value `n`, and then the
    /// programs.
    Depends { flags: u128, programs: u32 },
}

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("the pattern is valid")
}

static NUMBERS: LazyLock<Regex> = LazyLock::new(|| pattern(r"^  (register|sqe):((?: [0-9]+)*)$"));
static FLAGS: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^  sqe_flags: allowed 0x([0-9a-f]+), required 0x([0-9a-f]+)$"));
static DENIED: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^  ([0-9]+) [A-Z0-9_]+: denied, cost ([0-9]+) of [0-9]+$"));
static REGISTRATION: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"^  ([0-9]+): (?:denied|programs ([0-9]+)), cost [0-9]+ of [0-9]+$"));
static DEPENDS: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"^  ([0-9]+) [A-Z0-9_]+: flags ([0-9a-f]{32}), programs ([0-9]+), cost ([0-9]+) of [0-9]+$",
    )
});

/// Reads the part of a ring's fdinfo that says what it refuses. Returns `None` if there is
/// no such part, as for a ring without restrictions and filters.
///
/// # Errors
///
/// Fails if there is such a part, and it has a line that is not known.
pub fn parse(fdinfo: &str) -> Result<Option<Refusals>, String> {
    let is_heading =
        |line: &str| ["Restrictions:", "Filters:", "Registration filters:"].contains(&line);
    let mut lines = fdinfo
        .lines()
        .skip_while(|line| !is_heading(line))
        .peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    let mut refusals = Refusals::default();
    for line in lines.take_while(|line| is_heading(line) || line.starts_with(' ')) {
        if !is_heading(line) {
            refusals
                .add(line)
                .ok_or_else(|| format!("this kernel lists what is not known: {line}"))?;
        }
    }
    Ok(Some(refusals))
}

impl Refusals {
    fn add(&mut self, line: &str) -> Option<()> {
        if let Some(parts) = NUMBERS.captures(line) {
            let numbers: Result<Vec<u8>, _> = parts[2].split_whitespace().map(str::parse).collect();
            let numbers = numbers.ok()?;
            match &parts[1] {
                "sqe" => self.ops = Some(numbers.into_iter().map(Op).collect()),
                _ => self.registrations = Some(numbers.into_iter().map(Registration).collect()),
            }
        } else if let Some(parts) = FLAGS.captures(line) {
            let flags = |text| u8::from_str_radix(text, 16).ok();
            self.flags = Some((flags(&parts[1])?, flags(&parts[2])?));
        } else if let Some(parts) = DENIED.captures(line) {
            let op = Op(parts[1].parse().ok()?);
            self.filters.push(Filtered {
                op,
                decision: Decision::Denied,
                cost: parts[2].parse().ok()?,
            });
        } else if let Some(parts) = REGISTRATION.captures(line) {
            let programs = parts.get(2).map(|programs| programs.as_str().parse());
            let registration = Registration(parts[1].parse().ok()?);
            self.registration_filters
                .push((registration, programs.transpose().ok()?));
        } else {
            let parts = DEPENDS.captures(line)?;
            let flags = u128::from_str_radix(&parts[2], 16).ok()?;
            let decision = Decision::Depends {
                flags,
                programs: parts[3].parse().ok()?,
            };
            let (op, cost) = (Op(parts[1].parse().ok()?), parts[4].parse().ok()?);
            self.filters.push(Filtered { op, decision, cost });
        }
        Some(())
    }
}

impl Decision {
    /// Says in words what decides.
    fn words(self) -> String {
        let (flags, programs) = match self {
            Decision::Denied => return "denied".to_string(),
            Decision::Depends { flags, programs } => (flags, programs),
        };
        let denied = SqeFlag::ALL
            .iter()
            .filter(|(_, flag)| flags >> flag.0 & 1 == 0);
        let mask = denied.fold(0, |mask, (_, flag)| mask | flag.0);
        let is_mask = (0..128u8).all(|value| (value & mask == 0) == (flags >> value & 1 == 1));
        let by_flags = match (is_mask, mask) {
            (true, 0) => String::new(),
            (true, _) => format!("denied with {}", sqe_flags(mask)),
            (false, _) => "denied with some flags".to_string(),
        };
        let by_programs = match programs {
            0 => return by_flags,
            1 => "a program decides".to_string(),
            _ => format!("{programs} programs decide"),
        };
        match by_flags.is_empty() {
            true => by_programs,
            false => format!("{by_flags}; otherwise {by_programs}"),
        }
    }
}

/// Returns what a ring of a process refuses, or `None` if the kernel lists nothing.
///
/// # Errors
///
/// Fails if the file cannot be read, and with [`WouldBlock`](ErrorKind::WouldBlock) if the
/// ring is in use for a second: then the kernel says nothing about it.
pub fn refusals_of(process: u32, fd: RawFd) -> io::Result<Option<Refusals>> {
    for _ in 0..100 {
        let text = fs::read_to_string(format!("/proc/{process}/fdinfo/{fd}"))?;
        if is_complete(&text) {
            return parse(&text).map_err(io::Error::other);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(ErrorKind::WouldBlock.into())
}

/// Returns whether the kernel wrote about the ring: it does not if the ring is in use.
fn is_complete(fdinfo: &str) -> bool {
    fdinfo.lines().any(|line| line.starts_with("SqMask:"))
}

/// Returns the descriptors of a process that are rings.
fn rings_of(process: u32) -> io::Result<Vec<RawFd>> {
    let mut rings = Vec::new();
    for entry in fs::read_dir(format!("/proc/{process}/fd"))? {
        let entry = entry?;
        // A descriptor may be closed meanwhile.
        let Ok(target) = fs::read_link(entry.path()) else {
            continue;
        };
        if target.as_os_str() == "anon_inode:[io_uring]" {
            rings.extend(entry.file_name().to_string_lossy().parse::<RawFd>());
        }
    }
    rings.sort_unstable();
    Ok(rings)
}

/// Prints what the rings of a process refuse. `is_listed` says whether the kernel lists
/// that.
///
/// # Errors
///
/// Fails if the process is not there or may not be looked at.
pub fn show(process: u32, is_listed: bool) -> io::Result<()> {
    let rings = rings_of(process)?;
    if rings.is_empty() {
        println!("process {process} has no descriptors of rings");
    }
    for fd in rings {
        let refusals = match refusals_of(process, fd) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                println!("ring {fd} is in use, and shows nothing meanwhile; try again");
                continue;
            }
            refusals => refusals?,
        };
        match refusals {
            None if is_listed => println!("ring {fd} refuses nothing"),
            None => println!("ring {fd}: this kernel does not list what rings refuse"),
            Some(refusals) => println!("ring {fd}\n{}", refusals.text()),
        }
    }
    Ok(())
}

impl Refusals {
    fn text(&self) -> String {
        let mut lines = Vec::new();
        let list = |names: Vec<String>| {
            if names.is_empty() {
                "none".to_string()
            } else {
                names.join(" ")
            }
        };
        if let Some(registrations) = &self.registrations {
            lines.push(format!(
                "registrations allowed: {}",
                list(registrations.iter().map(|it| it.short()).collect())
            ));
        }
        if let Some(ops) = &self.ops {
            lines.push(format!(
                "opcodes allowed by restrictions: {}",
                list(ops.iter().map(|it| it.short()).collect())
            ));
        }
        if let Some((allowed, required)) = self.flags {
            lines.push(format!(
                "SQE flags allowed: {}; required: {}",
                or_none(allowed),
                or_none(required)
            ));
        }
        if !self.filters.is_empty() {
            let mut table = Table::new();
            table.load_style(UTF8_BORDERS_ONLY).set_header([
                "opcode",
                "requests",
                "cost of filters",
            ]);
            for filtered in &self.filters {
                table.add_row([
                    filtered.op.short(),
                    filtered.decision.words(),
                    filtered.cost.to_string(),
                ]);
            }
            lines.push(table.to_string());
        }
        if !self.registration_filters.is_empty() {
            let mut table = Table::new();
            table
                .load_style(UTF8_BORDERS_ONLY)
                .set_header(["registration", "calls"]);
            for (registration, programs) in &self.registration_filters {
                let decision = match programs {
                    None => Decision::Denied,
                    Some(programs) => Decision::Depends {
                        flags: u128::MAX,
                        programs: *programs,
                    },
                };
                table.add_row([registration.short(), decision.words()]);
            }
            lines.push(table.to_string());
        }
        lines.join("\n")
    }
}

fn or_none(flags: u8) -> String {
    if flags == 0 {
        "none".to_string()
    } else {
        sqe_flags(flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FDINFO: &str = "pos:\t0\nflags:\t02000002\nSqMask:\t0x3\nUserFiles:\t1\n    0: /tmp/Filters:\n\
        NAPI:\tdisabled\nRestrictions:\n  register: 8 11\n  sqe: 0 22\n  sqe_flags: allowed 0x10, required 0x0\n\
        Filters:\n  0 NOP: denied, cost 0 of 32768\n  \
        18 OPENAT: flags 0000ffff0000ffff0000ffff0000ffff, programs 0, cost 8 of 32768\n  \
        45 SOCKET: flags ffffffffffffffffffffffffffffffff, programs 2, cost 24 of 32768\n\
        Registration filters:\n  8: denied, cost 0 of 32768\n  37: programs 3, cost 9 of 32768\n";

    /// Without this line, the kernel could not look at the ring.
    #[test]
    fn files_of_rings_in_use_are_incomplete() {
        assert!(is_complete(FDINFO));
        assert!(!is_complete("pos:\t0\nflags:\t02000002\n"));
    }

    #[test]
    fn lists_and_filters_are_read() {
        let refusals = parse(FDINFO).unwrap().unwrap();
        let registrations = [
            Registration::REGISTER_PROBE,
            Registration::REGISTER_RESTRICTIONS,
        ];
        assert_eq!(refusals.registrations.as_deref(), Some(&registrations[..]));
        assert_eq!(refusals.ops.as_deref(), Some(&[Op::NOP, Op::READ][..]));
        assert_eq!(refusals.flags, Some((0x10, 0)));
        let words: Vec<_> = refusals
            .filters
            .iter()
            .map(|it| (it.op.short(), it.decision.words(), it.cost))
            .collect();
        assert_eq!(
            words,
            [
                ("NOP".to_string(), "denied".to_string(), 0),
                ("OPENAT".to_string(), "denied with ASYNC".to_string(), 8),
                ("SOCKET".to_string(), "2 programs decide".to_string(), 24),
            ]
        );
        assert!(
            refusals
                .text()
                .contains("opcodes allowed by restrictions: NOP READ")
        );
    }

    #[test]
    fn rings_without_any_have_no_refusals() {
        assert_eq!(
            parse("pos:\t0\nUserFiles:\t1\n    0: /tmp/Filters:\n"),
            Ok(None)
        );
    }

    /// What a newer kernel lists must not be taken for nothing.
    #[test]
    fn unknown_lines_are_errors() {
        let error = parse("Filters:\n  0 NOP: maybe\n").unwrap_err();
        assert!(error.ends_with("  0 NOP: maybe"), "{error}");
    }

    #[test]
    fn flags_that_are_no_mask_are_named_so() {
        let decision = Decision::Depends {
            flags: 0b10,
            programs: 1,
        };
        assert_eq!(
            decision.words(),
            "denied with some flags; otherwise a program decides"
        );
        assert_eq!(
            Decision::Depends {
                flags: u128::MAX,
                programs: 1
            }
            .words(),
            "a program decides"
        );
    }
}
