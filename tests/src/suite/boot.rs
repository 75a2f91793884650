// SPDX-License-Identifier: GPL-2.0
//! The messages that the kernel prints at boot.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;

use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, implementation, zcrx_implementation};

pub const TESTS: &[Test] = tests! {
    "kernel::log" {
        BO01 names_the_parts_in_rust;
    }
};

/// Returns the messages of the kernel's log that begin with `prefix`, without that
/// prefix.
fn messages(prefix: &str) -> anyhow::Result<Vec<String>> {
    let mut options = File::options();
    options.read(true).custom_flags(libc::O_NONBLOCK);
    let mut log = options.open("/dev/kmsg").context("/dev/kmsg")?;
    let (mut record, mut messages) = ([0; 8192], Vec::new());
    loop {
        match log.read(&mut record) {
            Ok(len) => {
                let text = String::from_utf8_lossy(&record[..len]);
                // The message follows the metadata of the record.
                let message = text.split_once(';').map_or("", |(_, message)| message);
                let line = message.lines().next().unwrap_or_default();
                messages.extend(line.strip_prefix(prefix).map(str::to_string));
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(messages),
            // The record was overwritten meanwhile; the next read returns the next one.
            Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
            Err(error) => return Err(error).context("/dev/kmsg"),
        }
    }
}

/// Checks that the kernel's log names each part that is in Rust, and no part that is in
/// C.
fn names_the_parts_in_rust() -> TestResult {
    let mut want = Vec::new();
    if implementation() == Implementation::Rust {
        want.push("filters and restrictions in Rust".to_string());
    }
    if zcrx_implementation() == Implementation::Rust {
        want.push("zero-copy receive in Rust".to_string());
    }
    expect_eq("the log", messages("io_uring_rs: ")?, want)?;
    Ok(Outcome::Passed)
}
