// SPDX-License-Identifier: GPL-2.0
//! The requests that the demonstration's helper makes, by name. Each goes through a new
//! ring, so that it meets the filters of the moment.

use std::ffi::CStr;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::process::Command;

use anyhow::{Context, bail};
use io_uring::types::{Fd, OpenHow};
use io_uring::{IoUring, opcode, squeue};

use crate::bpf;
use crate::register::{self, TASK};
use crate::sqe::op;

/// The port that the demonstration listens on, on two addresses.
pub const PORT: u16 = 7777;

/// The prefix of a request that a child of the helper is to make.
const CHILD: &str = "child ";

/// Returns the words in which the demonstration shows a request.
pub fn text(request: &str) -> anyhow::Result<&'static str> {
    Ok(match request {
        "nop" => "nop",
        "socket-inet" => "socket(AF_INET, SOCK_STREAM)",
        "socket-inet-dgram" => "socket(AF_INET, SOCK_DGRAM)",
        "socket-inet6" => "socket(AF_INET6, SOCK_STREAM)",
        "socket-unix" => "socket(AF_UNIX, SOCK_STREAM)",
        "socket-unix-dgram" => "socket(AF_UNIX, SOCK_DGRAM)",
        "connect-near" => "connect(127.0.0.1:7777)",
        "connect-far" => "connect(127.0.1.1:7777)",
        "open" => "openat2(\"data\")",
        "open-no-symlinks" => "openat2(\"data\", RESOLVE_NO_SYMLINKS)",
        "open-beneath" => "openat2(\"data\", RESOLVE_BENEATH)",
        "open-in-root" => "openat2(\"data\", RESOLVE_IN_ROOT)",
        "read" => "read(\"data\")",
        "filter-read-allow" => "register a filter: allow READ",
        "filter-socket-allow" => "register a filter: allow every SOCKET",
        "filter-socket-dgram" => "register a filter: SOCKET SOCK_DGRAM only",
        "child socket-inet" => "child: socket(AF_INET, SOCK_STREAM)",
        "child socket-unix" => "child: socket(AF_UNIX, SOCK_STREAM)",
        "child child socket-unix" => "its child: socket(AF_UNIX, SOCK_STREAM)",
        _ => bail!("no request is called {request}"),
    })
}

/// Makes the requests one after the other and prints the result of each.
pub fn ask(requests: &[String]) -> anyhow::Result<()> {
    for request in requests {
        let result = one(request).with_context(|| request.clone())?;
        println!("{result}");
    }
    Ok(())
}

fn one(request: &str) -> anyhow::Result<i32> {
    if let Some(rest) = request.strip_prefix(CHILD) {
        let output = Command::new("/proc/self/exe")
            .args(["ask", rest])
            .output()?;
        let text = String::from_utf8(output.stdout)?;
        return text.trim().parse().context("the child gave no result");
    }
    match request {
        "nop" => run(&opcode::Nop::new().build()),
        "socket-inet" => socket(libc::AF_INET, libc::SOCK_STREAM),
        "socket-inet-dgram" => socket(libc::AF_INET, libc::SOCK_DGRAM),
        "socket-inet6" => socket(libc::AF_INET6, libc::SOCK_STREAM),
        "socket-unix" => socket(libc::AF_UNIX, libc::SOCK_STREAM),
        "socket-unix-dgram" => socket(libc::AF_UNIX, libc::SOCK_DGRAM),
        "connect-near" => connect(Ipv4Addr::new(127, 0, 0, 1)),
        "connect-far" => connect(Ipv4Addr::new(127, 0, 1, 1)),
        "open" => open(0),
        "open-no-symlinks" => open(libc::RESOLVE_NO_SYMLINKS),
        "open-beneath" => open(libc::RESOLVE_BENEATH),
        "open-in-root" => open(libc::RESOLVE_IN_ROOT),
        "read" => read(),
        "filter-read-allow" => Ok(register::filter(TASK, op::READ, &bpf::allow())),
        "filter-socket-allow" => Ok(register::filter(TASK, op::SOCKET, &bpf::allow())),
        "filter-socket-dgram" => {
            const TYPE: u32 = bpf::PDU + 4;
            let program = bpf::allow_if(TYPE, libc::SOCK_DGRAM as u32);
            Ok(register::filter(TASK, op::SOCKET, &program))
        }
        _ => bail!("no request is called {request}"),
    }
}

/// Runs one request on a ring of its own.
fn run(entry: &squeue::Entry) -> anyhow::Result<i32> {
    let mut ring = IoUring::new(1).context("io_uring_setup")?;
    // SAFETY: the callers keep what the entry points to until this function returns.
    unsafe { ring.submission().push(entry)? };
    ring.submit_and_wait(1)?;
    let cqe = ring.completion().next().context("no completion")?;
    Ok(cqe.result())
}

/// Runs a request. If its result is a new file, closes that file.
fn run_and_close(entry: &squeue::Entry) -> anyhow::Result<i32> {
    let result = run(entry)?;
    if result >= 0 {
        // SAFETY: the request has just opened the file, and nothing else owns it.
        drop(unsafe { OwnedFd::from_raw_fd(result) });
    }
    Ok(result)
}

fn socket(family: i32, kind: i32) -> anyhow::Result<i32> {
    run_and_close(&opcode::Socket::new(family, kind, 0).build())
}

fn connect(address: Ipv4Addr) -> anyhow::Result<i32> {
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )?;
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: PORT.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_ne_bytes(address.octets()),
        },
        sin_zero: [0; 8],
    };
    let len = size_of_val(&address) as u32;
    let fd = Fd(socket.as_raw_fd());
    run(&opcode::Connect::new(fd, (&raw const address).cast(), len).build())
}

const DATA: &CStr = c"data";
const FOLDER: Fd = Fd(libc::AT_FDCWD as RawFd);

fn open(resolve: u64) -> anyhow::Result<i32> {
    let how = OpenHow::new().flags(libc::O_RDONLY as u64).resolve(resolve);
    run_and_close(&opcode::OpenAt2::new(FOLDER, DATA.as_ptr(), &how).build())
}

fn read() -> anyhow::Result<i32> {
    let file = std::fs::File::open("data")?;
    let mut buffer = [0u8; 64];
    let fd = Fd(file.as_raw_fd());
    run(&opcode::Read::new(fd, buffer.as_mut_ptr(), buffer.len() as u32).build())
}
