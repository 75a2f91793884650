// SPDX-License-Identifier: GPL-2.0
//! Receive queues whose memory is a dma-buf that was bound over netlink (`devmem` in
//! the kernel), and recvmsg(2) from sockets whose packets lie in it.

use std::os::fd::AsRawFd;

use anyhow::{Context, ensure};

use crate::dmabuf;
use crate::kernel::{expect_eq, result};
use crate::netdev::{self, BoundDmabuf};
use crate::register::PAGE_SIZE;
use crate::stream::Stream;
use crate::wide::Mapping;

const SO_DEVMEM_DMABUF: libc::c_int = 79;
const SO_DEVMEM_DONTNEED: libc::c_int = 80;
const MSG_SOCK_DEVMEM: libc::c_int = 0x200_0000;

/// The place of received bytes in a dma-buf: `struct dmabuf_cmsg`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Fragment {
    offset: u64,
    size: u32,
    token: u32,
    dmabuf: u32,
    flags: u32,
}

/// The fragments to give back: `struct dmabuf_token`.
#[repr(C)]
struct Tokens {
    start: u32,
    count: u32,
}

/// A receive queue whose memory is a dma-buf. Dropping it unbinds the dma-buf.
pub struct Devmem {
    binding: BoundDmabuf,
    memory: Mapping,
}

impl Devmem {
    /// Binds a new dma-buf of `pages` pages to a receive queue.
    pub fn bind(index: u32, queue: u32, pages: usize) -> anyhow::Result<Self> {
        let (buffer, memory) = dmabuf::new(pages * PAGE_SIZE)?;
        let binding = netdev::bind_dmabuf(index, queue, buffer.as_raw_fd())?;
        Ok(Devmem { binding, memory })
    }

    /// Receives `len` bytes of a stream, compares them all, and gives their fragments
    /// back.
    pub fn take(&self, stream: &mut Stream, len: usize) -> anyhow::Result<()> {
        let left = stream.untaken();
        while left - stream.untaken() < len {
            let fragments = receive(stream, len - (left - stream.untaken()))?;
            ensure!(!fragments.is_empty(), "bytes in no fragment");
            for fragment in fragments {
                expect_eq("dma-buf", fragment.dmabuf, self.binding.id)?;
                let start = usize::try_from(fragment.offset)?;
                let bytes: Vec<u8> = (start..start + fragment.size as usize)
                    .map(|at| self.memory.read(at))
                    .collect();
                stream.compare(&bytes)?;
                return_buffer(stream, fragment.token)?;
            }
        }
        Ok(())
    }
}

/// Receives up to `len` bytes. Returns the fragments that they are in.
fn receive(stream: &Stream, len: usize) -> anyhow::Result<Vec<Fragment>> {
    // recvmsg copies bytes that are in no fragment to this buffer.
    let mut linear = vec![0u8; len];
    let mut control = [0u64; 512];
    let mut part = libc::iovec {
        iov_base: linear.as_mut_ptr().cast(),
        iov_len: linear.len(),
    };
    // SAFETY: all zeroes is a valid structure.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control);
    let fd = stream.receiver.as_raw_fd();
    let flags = MSG_SOCK_DEVMEM | libc::MSG_DONTWAIT;
    // SAFETY: the message names memory of this function and its size.
    let got = result(unsafe { libc::recvmsg(fd, &raw mut message, flags) } as libc::c_long);
    ensure!(got > 0, "recvmsg: {got}");
    expect_eq("flags", message.msg_flags & libc::MSG_CTRUNC, 0)?;

    let mut fragments = Vec::new();
    // SAFETY: the kernel has filled the message.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: a header that is not null lies in `control`.
    while let Some(this) = unsafe { header.as_ref() } {
        let kind = (this.cmsg_level, this.cmsg_type);
        expect_eq("kind", kind, (libc::SOL_SOCKET, SO_DEVMEM_DMABUF))?;
        // SAFETY: a header of this kind is followed by such a structure, which may be
        // unaligned.
        fragments.push(unsafe { libc::CMSG_DATA(header).cast::<Fragment>().read_unaligned() });
        // SAFETY: as above.
        header = unsafe { libc::CMSG_NXTHDR(&raw const message, header) };
    }
    let bytes: usize = fragments.iter().map(|f| f.size as usize).sum();
    expect_eq("bytes in fragments", bytes, usize::try_from(got)?)?;
    Ok(fragments)
}

/// Gives a fragment back.
fn return_buffer(stream: &Stream, token: u32) -> anyhow::Result<()> {
    let tokens = Tokens {
        start: token,
        count: 1,
    };
    // SAFETY: the pointer is to one structure of the given size.
    let got = unsafe {
        libc::setsockopt(
            stream.receiver.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_DEVMEM_DONTNEED,
            (&raw const tokens).cast(),
            size_of_val(&tokens) as libc::socklen_t,
        )
    };
    expect_eq("fragments given back", got, 1).context("SO_DEVMEM_DONTNEED")
}
