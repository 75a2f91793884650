// SPDX-License-Identifier: GPL-2.0
//! The demonstration. A task gives itself filters and starts programs, whose requests
//! are then allowed or refused; and a file is received into memory that a program has
//! lent to the kernel. Every line shows the request, what decided on it, and the
//! result. The exit status is 1 if any line is not as expected.

use std::io::Write;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};

use io_uring_rs_tests::bpf::{self, Program};
use io_uring_rs_tests::kernel::{self, Implementation};
use io_uring_rs_tests::register::{DENY_REST, Registration, TASK};
use io_uring_rs_tests::requests::{self, PORT};
use io_uring_rs_tests::sandbox;
use io_uring_rs_tests::sqe::op;

mod programs;
mod zcrx;

/// Shows io_uring's filters at work.
#[derive(Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Job>,
}

#[derive(Subcommand)]
enum Job {
    /// Makes requests through io_uring and prints the result of each.
    Ask { requests: Vec<String> },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Some(Job::Ask { requests }) => requests::ask(&requests).map(|()| true),
        None => tell(),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The expected result of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Expected {
    Allowed,
    Refused,
}
use Expected::{Allowed, Refused};

/// A filter that a task gives itself.
struct Filter {
    opcode: u8,
    flags: u32,
    program: Program,
}

fn filter(opcode: u8, program: Program) -> Filter {
    Filter {
        opcode,
        flags: 0,
        program,
    }
}

/// A request, what decides on it, and the expected result.
type Line = (&'static str, &'static str, Expected);

/// The number of lines shown so far, and of those that were not as expected.
#[derive(Default)]
struct Story {
    lines: usize,
    wrong: usize,
}

impl Story {
    fn scene(&self, title: &str) {
        println!("\n{title}");
        println!("    {:<44} {:<34} result", "request", "decided by");
    }

    fn line(&mut self, asked: &str, decider: &str, result: &str, right: bool) {
        self.lines += 1;
        self.wrong += usize::from(!right);
        let mark = if right { "ok" } else { "WRONG" };
        println!("    {asked:<44} {decider:<34} {result:<20} {mark}");
        // Without output the demonstration is useless, so a failure may panic.
        std::io::stdout().flush().expect("standard output");
    }

    /// Starts the helper under filters and shows the results of its requests.
    fn helper(&mut self, filters: Vec<Filter>, lines: &[Line]) -> anyhow::Result<()> {
        let mut command = Command::new("/proc/self/exe");
        command
            .arg("ask")
            .args(lines.iter().map(|(request, ..)| request));
        confine(&mut command, filters);
        let output = command.output().context("starting the helper")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let mut results = text.lines();
        for &(request, decider, expected) in lines {
            let result: i32 = match results.next().and_then(|line| line.parse().ok()) {
                Some(result) => result,
                None => anyhow::bail!(
                    "the helper gave no result for {request}: {}",
                    String::from_utf8_lossy(&output.stderr)
                ),
            };
            let right = match expected {
                Allowed => result >= 0,
                Refused => result == -libc::EACCES,
            };
            self.line(requests::text(request)?, decider, &in_words(result), right);
        }
        ensure!(
            output.status.success(),
            "the helper ended with {}",
            output.status
        );
        Ok(())
    }

    /// Starts fio under filters and shows the result of its reads.
    fn fio(
        &mut self,
        filters: Vec<Filter>,
        decider: &str,
        expected: Expected,
    ) -> anyhow::Result<()> {
        let mut command = Command::new("/usr/bin/fio");
        command
            .args(["--name=demo", "--ioengine=io_uring", "--rw=read", "--bs=4k"])
            .args(["--size=256k", "--iodepth=8", "--filename=data", "--thread"]);
        confine(&mut command, filters);
        let output = command.output().context("starting fio")?;
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.concat();
        let read = text
            .lines()
            .map(str::trim)
            .find(|line| line.starts_with("READ:"));
        let refused = text.contains("Permission denied");
        let (result, right) = match expected {
            Allowed => (
                read.is_some(),
                output.status.success() && read.is_some() && !refused,
            ),
            Refused => (!refused, !output.status.success() && refused),
        };
        let result = match (result, refused) {
            (true, false) => "allowed",
            (_, true) => "refused (EACCES)",
            (false, false) => "failed",
        };
        self.line(
            "fio --ioengine=io_uring --rw=read, 256 KiB",
            decider,
            result,
            right,
        );
        let quoted = text.lines().map(str::trim).find(|line| {
            line.starts_with("READ:")
                || line.contains("Permission denied")
                || !right && !line.is_empty()
        });
        if let Some(line) = quoted {
            println!("      fio says: {}", shortened(line));
        }
        Ok(())
    }
}

/// Returns the beginning of a line, as far as it fits on the screen.
fn shortened(line: &str) -> String {
    line.chars().take(110).collect()
}

/// Describes a result in words.
fn in_words(result: i32) -> String {
    match result {
        0.. => "allowed".to_string(),
        _ if result == -libc::EACCES => "refused (EACCES)".to_string(),
        _ => format!("failed: {}", kernel::describe(result)),
    }
}

/// Makes a command start without privileges, with no_new_privs, and under filters.
fn confine(command: &mut Command, filters: Vec<Filter>) {
    let confine = move || {
        sandbox::sandboxed().map_err(std::io::Error::other)?;
        for filter in &filters {
            let mut registration =
                Registration::new(filter.opcode, &filter.program).flags(filter.flags);
            let result = registration.register(TASK);
            if result != 0 {
                return Err(std::io::Error::from_raw_os_error(-result));
            }
        }
        Ok(())
    };
    // SAFETY: this process has one thread, so that the child may call anything.
    unsafe { command.pre_exec(confine) };
}

/// Runs the whole demonstration. Returns whether every line was as expected.
fn tell() -> anyhow::Result<bool> {
    let release = nix::sys::utsname::uname()?
        .release()
        .to_string_lossy()
        .into_owned();
    println!(
        "Linux {release}: io_uring filters implemented in {}, zero-copy receive in {}",
        kernel::implementation(),
        kernel::zcrx_implementation()
    );
    let folder = "/tmp/demo";
    std::fs::create_dir_all(folder)?;
    std::env::set_current_dir(folder)?;
    std::fs::write("data", vec![0x5au8; 256 << 10])?;
    let listeners = ["127.0.0.1", "127.0.1.1"].map(|address| TcpListener::bind((address, PORT)));
    for listener in &listeners {
        ensure!(
            listener.is_ok(),
            "port {PORT} is in use: end its user: {listener:?}"
        );
    }

    let mut story = Story::default();
    no_filter(&mut story)?;
    network(&mut story)?;
    files(&mut story)?;
    deny_rest(&mut story)?;
    inheritance(&mut story)?;
    stacking(&mut story)?;
    fio(&mut story)?;
    programs::tell(&mut story)?;
    zcrx::tell(&mut story)?;

    println!();
    match story.wrong {
        0 => println!("All {} results are as expected.", story.lines),
        wrong => println!("{wrong} of {} results are WRONG.", story.lines),
    }
    Ok(story.wrong == 0)
}

const NOBODY: &str = "no filter";

fn no_filter(story: &mut Story) -> anyhow::Result<()> {
    story.scene("A program without filters may make any request.");
    story.helper(
        vec![],
        &[
            ("socket-inet", NOBODY, Allowed),
            ("socket-unix", NOBODY, Allowed),
            ("connect-near", NOBODY, Allowed),
            ("connect-far", NOBODY, Allowed),
            ("open", NOBODY, Allowed),
            ("read", NOBODY, Allowed),
        ],
    )
}

/// Builds a filter that allows SOCKET for IPv4 only.
fn inet_only() -> Filter {
    filter(op::SOCKET, bpf::allow_if(bpf::PDU, libc::AF_INET as u32))
}

/// Builds a filter that allows CONNECT to the subnet 127.0.0.0/24 only.
fn subnet_only() -> Filter {
    const ADDRESS: u32 = bpf::PDU + 8;
    let subnet = u32::from_ne_bytes([127, 0, 0, 0]);
    let mask = u32::from_ne_bytes([255, 255, 255, 0]);
    let program = vec![
        bpf::ld(bpf::PDU),
        bpf::jeq(libc::AF_INET as u32, 0, 4),
        bpf::ld(ADDRESS),
        bpf::alu(libc::BPF_AND, mask),
        bpf::jeq(subnet, 0, 1),
        bpf::ret(1),
        bpf::ret(0),
    ];
    filter(op::CONNECT, program)
}

fn network(story: &mut Story) -> anyhow::Result<()> {
    const FAMILY: &str = "SOCKET: AF_INET only";
    const SUBNET: &str = "CONNECT: 127.0.0.0/24 only";
    story.scene("A task sets no_new_privs, filters sockets and addresses, and starts a program.");
    story.helper(
        vec![inet_only(), subnet_only()],
        &[
            ("socket-inet", FAMILY, Allowed),
            ("socket-inet6", FAMILY, Refused),
            ("socket-unix", FAMILY, Refused),
            ("connect-near", SUBNET, Allowed),
            ("connect-far", SUBNET, Refused),
        ],
    )
}

/// Builds a filter that allows OPENAT2 only for paths that cannot leave the starting
/// directory.
fn resolved_only() -> Filter {
    const RESOLVE: u32 = bpf::PDU + 16;
    let either = (libc::RESOLVE_IN_ROOT | libc::RESOLVE_BENEATH) as u32;
    let program = vec![
        bpf::ld(RESOLVE),
        bpf::jset(either, 0, 1),
        bpf::ret(1),
        bpf::ret(0),
    ];
    filter(op::OPENAT2, program)
}

fn files(story: &mut Story) -> anyhow::Result<()> {
    const RESOLVE: &str = "OPENAT2: IN_ROOT or BENEATH only";
    story.scene("Files may be opened only where the path cannot lead out of the folder.");
    story.helper(
        vec![resolved_only()],
        &[
            ("open", RESOLVE, Refused),
            ("open-no-symlinks", RESOLVE, Refused),
            ("open-beneath", RESOLVE, Allowed),
            ("open-in-root", RESOLVE, Allowed),
        ],
    )
}

/// Builds a filter that allows one opcode and denies all others for good.
fn only(opcode: u8) -> Filter {
    Filter {
        opcode,
        flags: DENY_REST,
        program: bpf::allow(),
    }
}

fn deny_rest(story: &mut Story) -> anyhow::Result<()> {
    const REST: &str = "NOP: allow, DENY_REST";
    story.scene("One opcode is allowed, and DENY_REST refuses all others.");
    story.helper(
        vec![only(op::NOP)],
        &[
            ("nop", REST, Allowed),
            ("read", REST, Refused),
            ("socket-inet", REST, Refused),
            ("filter-read-allow", "no_new_privs is set", Allowed),
            ("read", "DENY_REST, which no filter undoes", Refused),
        ],
    )
}

fn inheritance(story: &mut Story) -> anyhow::Result<()> {
    const INHERITED: &str = "SOCKET: AF_INET only (inherited)";
    story.scene("A program that the filtered program starts inherits its filters.");
    story.helper(
        vec![inet_only()],
        &[
            ("child socket-inet", INHERITED, Allowed),
            ("child socket-unix", INHERITED, Refused),
            ("child child socket-unix", INHERITED, Refused),
        ],
    )
}

fn stacking(story: &mut Story) -> anyhow::Result<()> {
    const FIRST: &str = "SOCKET: AF_INET only";
    const OPEN: &str = "no_new_privs is set";
    story.scene("Filters add up: each further filter can only restrict more.");
    story.helper(
        vec![inet_only()],
        &[
            ("socket-unix", FIRST, Refused),
            ("filter-socket-allow", OPEN, Allowed),
            ("socket-unix", "still SOCKET: AF_INET only", Refused),
            ("socket-inet", "both filters", Allowed),
            ("filter-socket-dgram", OPEN, Allowed),
            ("socket-inet", "the newest: SOCK_DGRAM only", Refused),
            ("socket-inet-dgram", "all three filters", Allowed),
            ("socket-unix-dgram", "the oldest: AF_INET only", Refused),
        ],
    )
}

fn fio(story: &mut Story) -> anyhow::Result<()> {
    story.scene("fio, which was not written for filters, reads a file.");
    story.fio(vec![], NOBODY, Allowed)?;
    // It uses READ only if the probe of its ring reports READ and WRITE as supported, and
    // READV otherwise. In Rust, the probe reports nothing that filters deny.
    let allow_write = filter(op::WRITE, bpf::allow());
    let filters = vec![allow_write, only(op::READ)];
    story.fio(filters, "READ, WRITE: allow, DENY_REST", Allowed)?;
    let deny = |opcode| filter(opcode, bpf::deny());
    let expected = match kernel::implementation() {
        Implementation::C => Refused,
        Implementation::Rust => Allowed,
    };
    story.fio(vec![deny(op::READ)], "READ: deny", expected)?;
    let filters = vec![deny(op::READ), deny(op::READV)];
    story.fio(filters, "READ, READV: deny", Refused)
}
