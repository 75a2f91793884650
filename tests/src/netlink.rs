// SPDX-License-Identifier: GPL-2.0
//! Speaks netlink message by message, for tests that depend on the length of messages
//! or on the socket that asks. The module `netdev` does everything else with that
//! family.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::{Context, bail, ensure};

use crate::kernel::{describe, result};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// Bytes of `struct nlmsghdr` and of `struct genlmsghdr`.
const HEADER: usize = 16;
const GENERIC: usize = 4;

const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

const RTM_SETLINK: u16 = 19;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NEW_IFINDEX: u16 = 49;

/// A message, without its header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    kind: u16,
    pub payload: Vec<u8>,
}

impl Message {
    /// Returns the size of the message with its header in bytes.
    pub fn len(&self) -> usize {
        HEADER + self.payload.len()
    }

    /// Returns whether the message is nothing but a header.
    pub fn is_empty(&self) -> bool {
        self.payload.is_empty()
    }

    /// Returns the value of an attribute of a generic netlink message.
    pub fn attribute(&self, kind: u16) -> Option<&[u8]> {
        attribute(self.payload.get(GENERIC..)?, kind)
    }
}

/// Returns the value of the attribute `kind` in a sequence of attributes.
pub fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    /// Marks an attribute that holds others.
    const NESTED: u16 = 1 << 15;
    while let [a, b, c, d, ..] = *bytes {
        let len = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(4..len)?;
        if u16::from_ne_bytes([c, d]) & !NESTED == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    None
}

/// Encodes an attribute.
fn encode(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + value.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A socket whose reads are all of the same size.
struct Socket {
    file: OwnedFd,
    size: usize,
}

impl Socket {
    fn new(protocol: libc::c_int, size: usize) -> anyhow::Result<Self> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: the call takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) };
        ensure!(fd >= 0, "socket: {}", std::io::Error::last_os_error());
        // SAFETY: the descriptor is new, and nothing else owns it.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Socket { file, size })
    }

    fn send(&self, kind: u16, flags: u16, payload: &[u8]) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        bytes.extend(((HEADER + payload.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(payload);
        let fd = self.file.as_raw_fd();
        // SAFETY: the buffer is this function's and has that many bytes.
        let got = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), 0) };
        ensure!(got == bytes.len() as isize, "send: {got}");
        Ok(())
    }

    /// Reads once. Returns the messages of that read.
    fn receive(&self) -> anyhow::Result<Vec<Message>> {
        let mut bytes = vec![0u8; self.size];
        let fd = self.file.as_raw_fd();
        let to = bytes.as_mut_ptr().cast();
        // SAFETY: the buffer has room for that many bytes.
        let got = unsafe { libc::recv(fd, to, bytes.len(), libc::MSG_TRUNC) };
        let got = result(got as libc::c_long);
        ensure!(got > 0 && got as usize <= self.size, "recv: {got}");
        let mut bytes = bytes.get(..got as usize).context("too many bytes")?;
        let mut messages = Vec::new();
        while let [a, b, c, d, e, f, ..] = *bytes {
            let len = u32::from_ne_bytes([a, b, c, d]) as usize;
            messages.push(Message {
                kind: u16::from_ne_bytes([e, f]),
                payload: bytes
                    .get(HEADER..len)
                    .context("a message is cut off")?
                    .to_vec(),
            });
            bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(messages)
    }

    /// Returns the errno that a message reports, 0 for success.
    fn error(message: &Message) -> anyhow::Result<i32> {
        let bytes = message.payload.first_chunk().context("no error")?;
        Ok(i32::from_ne_bytes(*bytes))
    }
}

/// Dumps what a command of a generic netlink family reports, in reads of `size` bytes.
/// Returns the messages of each read. The kernel fills a read of more than 4 KiB with
/// as many messages as fit.
pub fn dump(family: &str, command: u8, size: usize) -> anyhow::Result<Vec<Vec<Message>>> {
    let socket = Socket::new(libc::NETLINK_GENERIC, size)?;
    let mut name = family.as_bytes().to_vec();
    name.push(0);
    let mut payload = vec![CTRL_CMD_GETFAMILY, 1, 0, 0];
    payload.extend(encode(CTRL_ATTR_FAMILY_NAME, &name));
    socket.send(GENL_ID_CTRL, 0, &payload)?;
    let answer = socket.receive()?;
    let id = answer
        .first()
        .and_then(|m| m.attribute(CTRL_ATTR_FAMILY_ID));
    let id = id
        .and_then(|id| id.first_chunk())
        .with_context(|| format!("no family {family}"))?;

    socket.send(u16::from_ne_bytes(*id), NLM_F_DUMP, &[command, 1, 0, 0])?;
    let mut reads = Vec::new();
    loop {
        let mut messages = socket.receive()?;
        let end = messages.iter().position(|m| m.kind == NLMSG_DONE);
        if let Some(failed) = messages.iter().find(|m| m.kind == NLMSG_ERROR) {
            bail!("{family}: {}", describe(Socket::error(failed)?));
        }
        messages.truncate(end.unwrap_or(messages.len()));
        reads.push(messages);
        if end.is_some() {
            return Ok(reads);
        }
    }
}

/// Moves a network device of this thread's namespace to another namespace, where it
/// gets the given index.
pub fn move_device(index: u32, namespace: RawFd, new_index: u32) -> anyhow::Result<()> {
    let socket = Socket::new(libc::NETLINK_ROUTE, 8192)?;
    // `struct ifinfomsg`.
    let mut payload = vec![0; 4];
    payload.extend(index.to_ne_bytes());
    payload.extend([0; 8]);
    payload.extend(encode(IFLA_NET_NS_FD, &namespace.to_ne_bytes()));
    payload.extend(encode(IFLA_NEW_IFINDEX, &new_index.to_ne_bytes()));
    socket.send(RTM_SETLINK, NLM_F_ACK, &payload)?;
    let answer = socket.receive()?;
    let answer = answer.first().context("no answer")?;
    ensure!(answer.kind == NLMSG_ERROR, "not an answer: {answer:?}");
    match Socket::error(answer)? {
        0 => Ok(()),
        error => bail!("moving a device: {}", describe(error)),
    }
}
