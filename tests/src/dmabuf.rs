// SPDX-License-Identifier: GPL-2.0
//! dma-bufs in ordinary memory, from `/dev/udmabuf`.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::Context;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::wide::Mapping;

/// `struct udmabuf_create`.
#[repr(C)]
struct Create {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

nix::ioctl_write_ptr!(udmabuf_create, b'u', 0x42, Create);

/// Makes a dma-buf of `len` bytes. Returns the dma-buf and the memory behind it.
pub fn new(len: usize) -> anyhow::Result<(OwnedFd, Mapping)> {
    let memory = memfd_create(c"dmabuf", MFdFlags::MFD_ALLOW_SEALING)?;
    nix::unistd::ftruncate(&memory, len as i64)?;
    fcntl(&memory, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK))?;
    let create = Create {
        memfd: memory.as_raw_fd() as u32,
        flags: 0,
        offset: 0,
        size: len as u64,
    };
    let device = File::options()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")?;
    // SAFETY: the structure is laid out as the kernel's.
    let fd = unsafe { udmabuf_create(device.as_raw_fd(), &create) };
    let fd = fd.context("UDMABUF_CREATE")?;
    // SAFETY: the descriptor is new, and nothing else owns it.
    let buffer = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((buffer, Mapping::new(memory.as_raw_fd(), 0, len)?))
}
