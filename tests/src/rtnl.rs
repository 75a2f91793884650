// SPDX-License-Identifier: GPL-2.0
//! Sets up network interfaces over rtnetlink in the namespace of the calling thread.
//! This does what `ip` does, which takes half a second to start on a debug kernel.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use anyhow::{Context, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket,
};

use crate::kernel::expect_result;

/// The offset of the errno in an answer, after the header.
const ERROR: usize = 16;

/// A request: its header, a fixed part, and attributes.
struct Request(Vec<u8>);

impl Request {
    fn new(kind: u16, flags: i32, fixed: &[u8]) -> Self {
        let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16;
        let mut bytes = vec![0; 4];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        // The sequence number and the sender's port, both 0.
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        Request(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        self.0.extend((4 + value.len() as u16).to_ne_bytes());
        self.0.extend(kind.to_ne_bytes());
        self.0.extend(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Sends the request, and fails if the kernel refuses it.
    fn run(mut self, what: &str) -> anyhow::Result<()> {
        let length = (self.0.len() as u32).to_ne_bytes();
        self.0[..4].copy_from_slice(&length);
        let socket: OwnedFd = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        let mut answer = [0; 4096];
        send(socket.as_raw_fd(), &self.0, MsgFlags::empty())?;
        let len = recv(socket.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        let kind = u16::from_ne_bytes([answer[4], answer[5]]);
        ensure!(
            len >= ERROR + 4 && i32::from(kind) == libc::NLMSG_ERROR,
            "{what}: the kernel did not answer"
        );
        let errno = i32::from_ne_bytes(answer[ERROR..ERROR + 4].try_into()?);
        expect_result(what, errno, 0)
    }
}

/// Builds the fixed part of a message about an interface, a `struct ifinfomsg`.
fn interface(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn index(name: &str) -> anyhow::Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| name.to_string())
}

/// Brings an interface up or down.
pub fn set_up(name: &str, up: bool) -> anyhow::Result<()> {
    let flag = libc::IFF_UP as u32;
    let fixed = interface(index(name)?, if up { flag } else { 0 }, flag);
    let what = format!("{name}: up {up}");
    Request::new(libc::RTM_NEWLINK, 0, &fixed).run(&what)
}

/// Sets the size of the largest packets that an interface sends.
pub fn set_mtu(name: &str, mtu: u32) -> anyhow::Result<()> {
    let request = Request::new(libc::RTM_NEWLINK, 0, &interface(index(name)?, 0, 0));
    let request = request.attribute(libc::IFLA_MTU, &mtu.to_ne_bytes());
    request.run(&format!("{name}: mtu {mtu}"))
}

/// Moves an interface to another network namespace.
pub fn move_to(name: &str, namespace: BorrowedFd) -> anyhow::Result<()> {
    let request = Request::new(libc::RTM_NEWLINK, 0, &interface(index(name)?, 0, 0));
    let fd = namespace.as_raw_fd();
    let request = request.attribute(libc::IFLA_NET_NS_FD, &fd.to_ne_bytes());
    request.run(&format!("{name}: another namespace"))
}

/// Gives an interface an address, without the search for duplicates on the network.
pub fn add_address(name: &str, address: IpAddr, prefix: u8) -> anyhow::Result<()> {
    const NODAD: u8 = 2;
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    // A `struct ifaddrmsg` with global scope.
    let mut fixed = vec![family as u8, prefix, NODAD, 0];
    fixed.extend(index(name)?.to_ne_bytes());
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    Request::new(libc::RTM_NEWADDR, flags, &fixed)
        .attribute(libc::IFA_LOCAL, &bytes)
        .attribute(libc::IFA_ADDRESS, &bytes)
        .run(&format!("{name}: {address}"))
}
