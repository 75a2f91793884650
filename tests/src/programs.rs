// SPDX-License-Identifier: GPL-2.0
//! Runs programs of the guest that nobody here wrote, confined by `ringfence` or not, for
//! the suite and the demonstration.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use anyhow::{Context, ensure};

use ::ringfence::names::Op;
use ::ringfence::policy::Policy;

/// Runs a command. Returns its exit status, or minus the signal that ended it, and all
/// that it said.
pub fn run(command: &[&str]) -> anyhow::Result<(i32, String)> {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(command[0])
        .args(&command[1..])
        .env("NO_COLOR", "1")
        .env("UV_USE_IO_URING", "1")
        .output()
        .with_context(|| command[0].to_string())?;
    let status = status.code().or(status.signal().map(|signal| -signal));
    let said = [stdout, stderr].concat();
    Ok((
        status.context("neither ended nor killed")?,
        String::from_utf8_lossy(&said).into_owned(),
    ))
}

/// Runs a command, which must end with `status`. Returns what it said.
pub fn expect_status(command: &[&str], status: i32) -> anyhow::Result<String> {
    let (got, said) = run(command)?;
    ensure!(
        got == status,
        "{command:?} ended with {got}, not {status}:\n{said}"
    );
    Ok(said)
}

/// Runs a command under a policy. Returns its status and what it said.
pub fn confined(policy: &str, command: &[&str]) -> anyhow::Result<(i32, String)> {
    let ringfence = ["ringfence", "run", "--policy", policy, "--"];
    run(&[&ringfence, command].concat())
}

/// Learns what a command needs. Returns the policy, and leaves it in the file `policy`.
pub fn learn(policy: &str, command: &[&str]) -> anyhow::Result<Policy> {
    let ringfence = ["ringfence", "learn", "-o", policy, "--"];
    expect_status(&[&ringfence, command].concat(), 0)?;
    Ok(Policy::parse(policy, fs::read_to_string(policy)?)?)
}

/// Takes an opcode out of a policy, and writes it to its file.
pub fn write_without(policy: &str, learned: &Policy, op: Op) -> anyhow::Result<()> {
    let mut less = learned.clone();
    ensure!(less.ops.remove(&op), "{op:?} was not learned");
    fs::write(policy, less.to_json())?;
    Ok(())
}

/// A server that answers one request with a file, which it reads for it.
pub const SERVER: &str = r#"
const fs = require('fs'), http = require('http');
const server = http.createServer((request, response) =>
  fs.readFile(process.argv[2], (error, data) => response.end(error ? error.code : data)));
server.listen(0, '127.0.0.1', () =>
  http.get({ host: '127.0.0.1', port: server.address().port }, response => {
    response.on('data', data => process.stdout.write(data));
    response.on('end', () => server.close());
  }));
"#;
