// SPDX-License-Identifier: GPL-2.0
//! The trace event of requests that are denied.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, bail};

use crate::sandbox::Sysctl;

/// The file that switches the event on.
pub const ENABLE: &str = "/sys/kernel/tracing/events/io_uring/io_uring_denied/enable";
const PIPE: &str = "/sys/kernel/tracing/trace_pipe";

/// An event: a request that was denied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denied {
    /// The name of the ring, which is a number made from its address.
    pub ring: String,
    pub user_data: u64,
    /// The opcode without `IORING_OP_`.
    pub opcode: String,
    pub flags: u8,
    pub reason: String,
}

/// A watch of the event, which ends when this is dropped.
pub struct Watch {
    pipe: File,
    _enabled: Sysctl,
}

impl Watch {
    /// Switches the event on. This takes root, and reading events does not.
    pub fn new() -> anyhow::Result<Self> {
        let pipe = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(PIPE)
            .context(PIPE)?;
        let watch = Watch {
            pipe,
            _enabled: Sysctl::set_file(ENABLE, "1")?,
        };
        watch.take()?;
        Ok(watch)
    }

    /// Returns the events since the last call.
    pub fn take(&self) -> anyhow::Result<Vec<Denied>> {
        let mut text = Vec::new();
        let mut chunk = vec![0; 65536];
        loop {
            match (&self.pipe).read(&mut chunk) {
                Ok(0) => break,
                Ok(len) => text.extend_from_slice(&chunk[..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context(PIPE),
            }
        }
        let text = String::from_utf8(text)?;
        text.lines()
            .filter_map(|line| line.split_once("io_uring_denied: "))
            .map(|(_, event)| parse(event).with_context(|| event.to_string()))
            .collect()
    }
}

/// Switches the event off although a watch goes on.
pub fn switch_off() -> anyhow::Result<()> {
    fs::write(ENABLE, "0").context(ENABLE)
}

/// Parses the text of an event.
fn parse(event: &str) -> anyhow::Result<Denied> {
    let mut fields = event.splitn(5, ", ");
    let mut field = |name: &str| -> anyhow::Result<&str> {
        match fields.next().and_then(|field| field.strip_prefix(name)) {
            Some(value) => Ok(value),
            None => bail!("no '{name}' in its place"),
        }
    };
    Ok(Denied {
        ring: field("ring ")?.to_string(),
        user_data: u64::from_str_radix(field("user_data 0x")?, 16)?,
        opcode: field("opcode ")?.to_string(),
        flags: u8::from_str_radix(field("flags 0x")?, 16)?,
        reason: field("denied by ")?.to_string(),
    })
}
