// SPDX-License-Identifier: GPL-2.0
//! RG: the program `ringfence` as users run it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::{Context, ensure};

use ::ringfence::names::Op;
use ::ringfence::policy::Policy;

use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{self, Implementation, expect_eq, implementation};
use crate::programs;
use crate::ring::Ring;
use crate::sandbox;

pub const TESTS: &[Test] = tests! {
    "ringfence" {
        RG01 doctor_says_what_this_kernel_can_do;
        RG02 exit_statuses_are_those_of_env;
        RG03 command_is_confined;
        RG04 command_cannot_shake_off_its_filters;
        RG05 command_does_not_start_if_a_rule_cannot_be_enforced;
        RG06 command_does_not_start_where_filters_cannot_be_registered;
        RG07 fences_can_be_nested;
        RG08 learned_policy_lets_the_program_through (60 s);
        RG09 learning_follows_children_and_merges (30 s);
        RG10 live_ring_is_shown;
        RG25 learning_under_a_fence_adds_what_it_denies (30 s);
    }
};

const PROGRAM: &str = "/bin/ringfence";

/// Runs the program. Returns its exit status, and all that it said.
fn run(arguments: &[&str]) -> anyhow::Result<(i32, String)> {
    programs::run(&[&[PROGRAM], arguments].concat())
}

/// Runs the program, which must end with `status`. Returns what it said.
fn expect_status(arguments: &[&str], status: i32) -> anyhow::Result<String> {
    programs::expect_status(&[&[PROGRAM], arguments].concat(), status)
}

/// Writes a policy to a file in the directory of this test.
fn write_policy(name: &str, text: &str) -> anyhow::Result<String> {
    let path = format!("/tmp/ringfence-{}-{name}.json", std::process::id());
    fs::write(&path, text).context(path.clone())?;
    Ok(path)
}

fn is_rust() -> bool {
    implementation() == Implementation::Rust
}

/// Returns the abilities in the order and words of `doctor`, and whether they are there.
fn abilities() -> [(&'static str, bool); 10] {
    let calls = kernel::has_option("CONFIG_IO_URING_BPF_CALLS");
    [
        ("filters", true),
        ("kept across exec", true),
        ("connect arguments", true),
        ("SEND_MSG_RING obeys", is_rust()),
        ("truthful probe", is_rust()),
        ("registration filters", calls),
        ("setup filters", calls),
        ("denials are traced", is_rust()),
        ("requests are traced", true),
        ("refusals are listed", is_rust()),
    ]
}

/// Checks that `doctor` finds out what each implementation can do, one line each.
///
/// In C, messages go around filters, the probe reports what is denied, nothing filters
/// registrations and setups, and nothing says what is denied.
fn doctor_says_what_this_kernel_can_do() -> TestResult {
    let said = expect_status(&["doctor"], 0)?;
    let lines: Vec<&str> = said.lines().collect();
    expect_eq("lines", lines.len(), abilities().len())?;
    for (line, (name, is_there)) in lines.iter().zip(abilities()) {
        let word = if is_there { "yes" } else { "no" };
        let rest = line.strip_prefix(name).map(str::trim_start);
        let consequence = rest.and_then(|rest| rest.strip_prefix(word));
        let consequence = consequence.with_context(|| format!("{name}: not {word}: {line}"))?;
        ensure!(consequence.trim().len() > 10, "no consequence: {line}");
    }
    Ok(Outcome::Passed)
}

/// Checks that the exit status is the command's, and 125, 126 and 127 as in `env` and
/// `timeout`.
fn exit_statuses_are_those_of_env() -> TestResult {
    let allow = ["run", "--allow", "nop", "--"];
    let with = |command: &[&'static str]| [&allow, command].concat();
    expect_status(&with(&["true"]), 0)?;
    expect_status(&with(&["sh", "-c", "exit 3"]), 3)?;
    expect_status(&with(&["no-such-command"]), 127)?;
    let file = format!("/tmp/ringfence-{}-file", std::process::id());
    fs::write(&file, "#!/bin/sh\n")?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    expect_status(&[&allow, &[file.as_str()][..]].concat(), 126)?;
    fs::remove_file(&file)?;

    let wrong = write_policy(
        "wrong",
        r#"{"defaultAction": "deny", "ops": ["IORING_OP_REDA"]}"#,
    )?;
    let said = expect_status(&["run", "--policy", &wrong, "--", "true"], 125)?;
    ensure!(said.contains("IORING_OP_READ"), "no nearest name: {said}");
    expect_status(&["check", &wrong], 125)?;
    fs::remove_file(&wrong)?;
    expect_status(&["run", "--policy", "/no/such/file", "--", "true"], 125)?;
    expect_status(&["run", "--allow", "reda", "--", "true"], 125)?;
    expect_status(&["run", "--", "true"], 125)?;
    expect_status(&["show", "999999"], 125)?;
    Ok(Outcome::Passed)
}

/// Returns the result of a NOP that a program makes under `ringfence run` with these
/// options.
fn nop_under(options: &[&str]) -> anyhow::Result<i32> {
    let probe = ["--", "/proc/self/exe", "--nop-probe"];
    // That path is this program's only once ringfence has become the command.
    let own = std::env::current_exe()?;
    let own = own.to_str().context("the name of this program")?;
    let probe = [probe[0], own, probe[2]];
    let (code, _) = run(&[&["run"], options, &probe].concat())?;
    Ok(-code)
}

/// Checks that a command can do what its policy allows, and nothing else.
fn command_is_confined() -> TestResult {
    expect_eq("allowed", nop_under(&["--allow", "nop"])?, 0)?;
    expect_eq(
        "denied",
        nop_under(&["--allow", "read,write"])?,
        -libc::EACCES,
    )?;
    let policy = write_policy(
        "denied",
        r#"{"defaultAction": "allow", "ops": ["IORING_OP_NOP"]}"#,
    )?;
    expect_eq("listed", nop_under(&["--policy", &policy])?, -libc::EACCES)?;
    fs::write(
        &policy,
        r#"{"defaultAction": "allow", "ops": ["IORING_OP_READ"]}"#,
    )?;
    expect_eq("not listed", nop_under(&["--policy", &policy])?, 0)?;
    fs::remove_file(&policy)?;
    Ok(Outcome::Passed)
}

/// Checks that a command that has used a ring is still confined after it executed another
/// program, and has no_new_privs.
fn command_cannot_shake_off_its_filters() -> TestResult {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("the name of this program")?;
    let script = format!("{own} --nop-probe; exec {own} --nop-probe");
    expect_status(
        &["run", "--allow", "read", "--", "sh", "-c", &script],
        libc::EACCES,
    )?;
    let said = expect_status(
        &[
            "run",
            "--allow",
            "read",
            "--",
            "grep",
            "NoNewPrivs",
            "/proc/self/status",
        ],
        0,
    )?;
    expect_eq("no_new_privs", said.split_whitespace().last(), Some("1"))?;
    Ok(Outcome::Passed)
}

/// Checks that policies with rules for setups or registrations work, or that the command
/// does not start.
///
/// In C, these calls cannot be filtered.
fn command_does_not_start_if_a_rule_cannot_be_enforced() -> TestResult {
    let is_there = kernel::has_option("CONFIG_IO_URING_BPF_CALLS");
    let mark = format!("/tmp/ringfence-{}-started", std::process::id());
    for (name, rule) in [
        ("setup", r#""setup": {"maxEntries": 8}"#),
        (
            "registrations",
            r#""registrations": {"defaultAction": "deny"}"#,
        ),
    ] {
        let policy = write_policy(name, &format!(r#"{{"defaultAction": "allow", {rule}}}"#))?;
        let status = if is_there { 0 } else { 125 };
        let said = expect_status(&["run", "--policy", &policy, "--", "touch", &mark], status)?;
        expect_eq(name, fs::remove_file(&mark).is_ok(), is_there)?;
        ensure!(
            is_there || said.contains("cannot filter"),
            "no reason: {said}"
        );
        fs::remove_file(&policy)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a command does not start if the task may not register filters.
fn command_does_not_start_where_filters_cannot_be_registered() -> TestResult {
    sandbox::in_child(|| {
        crate::kernel::expect_result(
            "restrictions",
            crate::register::restrict_task(&[
                crate::register::Restriction::sqe_op(crate::sqe::op::NOP),
                crate::register::Restriction::flags_allowed(0x7f),
                crate::register::Restriction::register_op(8),
            ]),
            0,
        )?;
        let said = expect_status(&["run", "--allow", "nop", "--", "echo", "started"], 125)?;
        ensure!(
            !said.contains("started\n"),
            "the command has started: {said}"
        );
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

/// Checks that a command in a fence can put a fence around another command, which both
/// confine.
fn fences_can_be_nested() -> TestResult {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("the name of this program")?;
    for (outer, inner, want) in [
        ("nop,read", "nop", 0),
        ("nop,read", "read", libc::EACCES),
        ("read,msg_ring", "nop", libc::EACCES),
    ] {
        let inner = [PROGRAM, "run", "--allow", inner, "--", own, "--nop-probe"];
        let outer = ["run", "--allow", outer, "--"];
        expect_status(&[&outer[..], &inner[..]].concat(), want)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that fio works under the policy that was learned from it, and fails under that
/// policy less one opcode, and says so.
fn learned_policy_lets_the_program_through() -> TestResult {
    let file = format!("/tmp/ringfence-{}-data", std::process::id());
    let filename = format!("--filename={file}");
    let fio = [
        "fio",
        "--name=learned",
        "--ioengine=io_uring",
        "--rw=readwrite",
        "--size=64k",
        "--bs=4k",
        "--thread",
        "--fixedbufs",
        &filename,
    ];
    let policy = write_policy("learned", "")?;
    let learned = expect_status(&[&["learn", "-o", &policy, "--"], &fio[..]].concat(), 0)?;
    for op in ["READ_FIXED", "WRITE_FIXED"] {
        ensure!(learned.contains(op), "{op} is not shown: {learned}");
    }
    let read = Policy::parse(&policy, fs::read_to_string(&policy)?)?;
    ensure!(
        read.ops.contains(&Op::READ_FIXED) && read.ops.len() < 5,
        "{:?}",
        read.ops
    );
    expect_eq(
        "setup",
        read.setup.is_some(),
        kernel::has_option("CONFIG_IO_URING_BPF_CALLS"),
    )?;
    expect_status(&[&["run", "--policy", &policy, "--"], &fio[..]].concat(), 0)?;

    let mut less = read;
    less.ops.remove(&Op::READ_FIXED);
    fs::write(&policy, less.to_json())?;
    let (code, said) = run(&[&["run", "--policy", &policy, "--"], &fio[..]].concat())?;
    ensure!(code != 0, "fio reads although its reads are denied");
    ensure!(
        said.contains("Permission denied"),
        "fio does not say why: {said}"
    );
    let _ = fs::remove_file(&file);
    fs::remove_file(&policy)?;
    Ok(Outcome::Passed)
}

/// Checks that learning follows the children of a command, and leaves other processes out,
/// that `--merge` keeps what was learned before, and that the status is the command's.
fn learning_follows_children_and_merges() -> TestResult {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("the name of this program")?;
    let read = crate::sqe::Sqe::new(crate::sqe::op::READ);
    let policy = write_policy("merged", "")?;
    let before = Policy::allowing([Op::FSYNC]);
    fs::write(&policy, before.to_json())?;
    // The ring of this process is not the command's.
    let other = sandbox::spawn(move || {
        let mut ring = Ring::new(2)?;
        loop {
            ring.run(read)?;
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    })?;
    let script = format!("(sleep 0.1; {own} --nop-probe); exit 7");
    let result = expect_status(
        &["learn", "-o", &policy, "--merge", "--", "sh", "-c", &script],
        7,
    );
    nix::sys::signal::kill(other, nix::sys::signal::Signal::SIGKILL)?;
    sandbox::killed(other)?;
    result?;
    let learned = Policy::parse(&policy, fs::read_to_string(&policy)?)?;
    expect_eq("opcodes", learned.ops, [Op::NOP, Op::FSYNC].into())?;
    fs::remove_file(&policy)?;
    expect_eq(
        "instances",
        fs::read_dir("/sys/kernel/tracing/instances")?.count(),
        0,
    )?;
    Ok(Outcome::Passed)
}

/// Checks that learning from a command in a fence adds what the fence denied, keeps the
/// rules that events do not show, and adds nothing of what `run` tries beforehand. A
/// command that cannot be executed changes nothing.
///
/// In C, no event tells of denied requests, so that nothing is added.
fn learning_under_a_fence_adds_what_it_denies() -> TestResult {
    let own = std::env::current_exe()?;
    let own = own.to_str().context("the name of this program")?;
    let path = write_policy("fenced", "")?;
    let mut before = Policy::allowing([Op::FSYNC, Op::SOCKET]);
    before.socket_families = Some([::ringfence::names::Family::UNIX].into());
    fs::write(&path, before.to_json())?;
    let learn = ["learn", "-o", &path, "--merge", "--"];
    let missing = expect_status(&[&learn[..], &["/nothing/here"]].concat(), 127)?;
    ensure!(missing.contains("/nothing/here"), "{missing}");
    expect_eq("unchanged", fs::read_to_string(&path)?, before.to_json())?;

    let command = [PROGRAM, "run", "--policy", &path, "--", own, "--nop-probe"];
    let said = expect_status(&[&learn[..], &command].concat(), libc::EACCES)?;
    let mut want = before.clone();
    if is_rust() {
        want.ops.insert(Op::NOP);
        ensure!(said.contains("NOP was denied by"), "{said}");
    }
    let learned = Policy::parse(&path, fs::read_to_string(&path)?)?;
    expect_eq("policy", &learned, &want)?;

    let status = if is_rust() { 0 } else { libc::EACCES };
    expect_status(&command[1..], status)?;
    fs::remove_file(&path)?;
    Ok(Outcome::Passed)
}

/// Checks that `show` lists what a ring of a running process refuses.
///
/// In C, that cannot be seen.
fn live_ring_is_shown() -> TestResult {
    let mut policy = Policy::allowing([Op::NOP, Op::READ, Op::SOCKET]);
    policy.denied_sqe_flags = [::ringfence::names::SqeFlag::BUFFER_SELECT].into();
    policy.socket_families = Some([::ringfence::names::Family::UNIX].into());
    let (reader, writer) = nix::unistd::pipe()?;
    let child = sandbox::spawn(move || {
        ::ringfence::run::confine(&policy)?;
        let _ring = Ring::new(2)?;
        nix::unistd::write(&writer, b"!")?;
        loop {
            std::thread::sleep(std::time::Duration::from_secs(1));
        }
    })?;
    nix::unistd::read(&reader, &mut [0])?;
    let said = expect_status(&["show", &child.to_string()], 0);
    nix::sys::signal::kill(child, nix::sys::signal::Signal::SIGKILL)?;
    sandbox::killed(child)?;
    let said = said?;
    let has = |words: &[&str]| {
        said.lines().any(|line| {
            let cells: Vec<&str> = line
                .split(['│', '|'])
                .flat_map(str::split_whitespace)
                .collect();
            cells.join(" ").contains(&words.join(" "))
        })
    };
    match implementation() {
        Implementation::C => ensure!(said.contains("does not list"), "{said}"),
        Implementation::Rust => {
            ensure!(has(&["WRITE", "denied"]), "{said}");
            ensure!(has(&["READ", "denied", "with", "BUFFER_SELECT"]), "{said}");
            ensure!(
                has(&["SOCKET", "a", "program", "decides"])
                    || has(&["SOCKET", "denied", "with", "BUFFER_SELECT;"]),
                "{said}"
            );
        }
    }
    let said = expect_status(&["show", "1"], 0)?;
    ensure!(said.contains("has no descriptors of rings"), "{said}");
    Ok(Outcome::Passed)
}
