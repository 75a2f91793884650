// SPDX-License-Identifier: GPL-2.0
//! Raw `io_uring_register(2)`, for what the io-uring crate does not offer and for calls
//! that are wrong on purpose.

use std::os::fd::RawFd;

use crate::bpf::Insn;
use crate::kernel::{IORING_OP_LAST, IORING_REGISTER_LAST, result};
use crate::sqe::{Sqe, op};

pub const IORING_REGISTER_FILES: u32 = 2;
pub const IORING_REGISTER_EVENTFD: u32 = 4;
pub const IORING_REGISTER_PROBE: u32 = 8;
pub const IORING_REGISTER_PERSONALITY: u32 = 9;
pub const IORING_UNREGISTER_PERSONALITY: u32 = 10;
pub const IORING_REGISTER_RESTRICTIONS: u32 = 11;
pub const IORING_REGISTER_ENABLE_RINGS: u32 = 12;
pub const IORING_REGISTER_RING_FDS: u32 = 20;
pub const IORING_REGISTER_SEND_MSG_RING: u32 = 31;
pub const IORING_REGISTER_QUERY: u32 = 35;
pub const IORING_REGISTER_BPF_FILTER: u32 = 37;
/// Says that the file descriptor is the index of a registered ring.
pub const IORING_REGISTER_USE_REGISTERED_RING: u32 = 1 << 31;

pub const IORING_RESTRICTION_REGISTER_OP: u16 = 0;
pub const IORING_RESTRICTION_SQE_OP: u16 = 1;
pub const IORING_RESTRICTION_SQE_FLAGS_ALLOWED: u16 = 2;
pub const IORING_RESTRICTION_SQE_FLAGS_REQUIRED: u16 = 3;
/// Most entries that a list of restrictions may have.
pub const MAX_RESTRICTIONS: usize = 4 + IORING_REGISTER_LAST as usize + IORING_OP_LAST as usize;

/// Means the calling task when it is given as the file descriptor.
pub const TASK: RawFd = -1;

/// Denies the opcodes without a filter from now on.
pub const DENY_REST: u32 = 1;
/// Requires the size of the opcode's data to be exactly the kernel's.
pub const SZ_STRICT: u32 = 2;

/// `struct io_uring_bpf` with its filter. It has 72 bytes and no padding, so that a
/// comparison covers every byte.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    pub cmd_type: u16,
    pub cmd_flags: u16,
    pub resv: u32,
    pub opcode: u32,
    pub flags: u32,
    pub filter_len: u32,
    pub pdu_size: u8,
    pub filter_resv: [u8; 3],
    pub filter_ptr: u64,
    pub filter_resv2: [u64; 5],
}

const _: () = assert!(size_of::<Registration>() == 72);

impl Registration {
    /// Builds a valid registration of `program`, which must outlive the registration.
    pub fn new(opcode: u8, program: &[Insn]) -> Self {
        Registration {
            cmd_type: 1,
            cmd_flags: 0,
            resv: 0,
            opcode: opcode.into(),
            flags: 0,
            filter_len: program.len() as u32,
            pdu_size: pdu_size(opcode),
            filter_resv: [0; 3],
            filter_ptr: program.as_ptr() as u64,
            filter_resv2: [0; 5],
        }
    }

    /// Sets `IO_URING_BPF_FILTER_*` flags.
    pub fn flags(mut self, flags: u32) -> Self {
        self.flags = flags;
        self
    }

    /// Registers the filter for a ring, or for the calling task if `fd` is [`TASK`].
    pub fn register(&mut self, fd: RawFd) -> i32 {
        register(
            fd,
            IORING_REGISTER_BPF_FILTER,
            (self as *mut Self).cast(),
            1,
        )
    }
}

/// Returns the size of the opcode's data that the kernel shows to filters, in bytes.
pub fn pdu_size(opcode: u8) -> u8 {
    match opcode {
        op::SOCKET => 12,
        op::OPENAT | op::OPENAT2 | op::CONNECT => 24,
        _ => 0,
    }
}

/// Calls `io_uring_register(2)` itself.
#[expect(
    clippy::not_unsafe_ptr_arg_deref,
    reason = "the kernel looks at the pointer, and checks it"
)]
pub fn register(fd: RawFd, opcode: u32, arg: *const libc::c_void, nr_args: u32) -> i32 {
    // SAFETY: the kernel validates every pointer that it is given.
    result(unsafe { libc::syscall(libc::SYS_io_uring_register, fd, opcode, arg, nr_args) })
}

/// Registers a valid program for an opcode.
pub fn filter(fd: RawFd, opcode: u8, program: &[Insn]) -> i32 {
    Registration::new(opcode, program).register(fd)
}

/// Registers a valid program for an opcode, with flags.
pub fn filter_with(fd: RawFd, opcode: u8, program: &[Insn], flags: u32) -> i32 {
    Registration::new(opcode, program).flags(flags).register(fd)
}

/// Registers a filter from a page that the kernel can read but not write to.
pub fn filter_read_only(fd: RawFd, registration: &Registration) -> anyhow::Result<i32> {
    let page = Page::new()?;
    page.write(0, registration);
    page.protect(libc::PROT_READ)?;
    Ok(register(
        fd,
        IORING_REGISTER_BPF_FILTER,
        page.address.cast(),
        1,
    ))
}

/// Size of `struct io_uring_task_restriction` before its entries.
pub const TASK_RESTRICTION_HEADER: usize = 16;

/// `struct io_uring_restriction`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Restriction {
    pub opcode: u16,
    pub value: u8,
    pub resv: u8,
    pub resv2: [u32; 3],
}

impl Restriction {
    /// Allows one `io_uring_register(2)` opcode.
    pub fn register_op(value: u32) -> Self {
        Restriction {
            opcode: IORING_RESTRICTION_REGISTER_OP,
            value: value as u8,
            ..Default::default()
        }
    }

    /// Allows one SQE opcode.
    pub fn sqe_op(value: u8) -> Self {
        Restriction {
            opcode: IORING_RESTRICTION_SQE_OP,
            value,
            ..Default::default()
        }
    }

    /// Allows these SQE flags.
    pub fn flags_allowed(value: u8) -> Self {
        Restriction {
            opcode: IORING_RESTRICTION_SQE_FLAGS_ALLOWED,
            value,
            ..Default::default()
        }
    }

    /// Requires these SQE flags.
    pub fn flags_required(value: u8) -> Self {
        Restriction {
            opcode: IORING_RESTRICTION_SQE_FLAGS_REQUIRED,
            value,
            ..Default::default()
        }
    }
}

/// Registers restrictions for a ring that is still disabled.
pub fn restrict_ring(fd: RawFd, entries: &[Restriction]) -> i32 {
    register(
        fd,
        IORING_REGISTER_RESTRICTIONS,
        entries.as_ptr().cast(),
        entries.len() as u32,
    )
}

/// Lays out a `struct io_uring_task_restriction`, followed by its entries, as bytes.
pub fn task_restriction(entries: &[Restriction]) -> Vec<u8> {
    let mut bytes = vec![0u8; TASK_RESTRICTION_HEADER];
    bytes[2..4].copy_from_slice(&(entries.len() as u16).to_ne_bytes());
    for entry in entries {
        bytes.extend(entry.opcode.to_ne_bytes());
        bytes.extend([entry.value, entry.resv]);
        bytes.extend(entry.resv2.iter().flat_map(|word| word.to_ne_bytes()));
    }
    bytes
}

/// Registers restrictions for the calling task.
pub fn restrict_task(entries: &[Restriction]) -> i32 {
    let bytes = task_restriction(entries);
    register(TASK, IORING_REGISTER_RESTRICTIONS, bytes.as_ptr().cast(), 1)
}

/// Posts a message to another ring without having a ring.
pub fn send_msg_ring(sqe: &Sqe) -> i32 {
    register(
        TASK,
        IORING_REGISTER_SEND_MSG_RING,
        (sqe as *const Sqe).cast(),
        1,
    )
}

/// Enables a ring that was set up disabled.
pub fn enable(fd: RawFd) -> i32 {
    register(fd, IORING_REGISTER_ENABLE_RINGS, std::ptr::null(), 0)
}

/// Returns every opcode of the uapi.
pub fn opcodes() -> impl Iterator<Item = u8> {
    0..IORING_OP_LAST as u8
}

/// Two pages of memory, the second of which cannot be accessed.
pub struct Page {
    pub address: *mut u8,
}

/// The size of a page on this machine.
pub const PAGE_SIZE: usize = 4096;

impl Page {
    pub fn new() -> anyhow::Result<Self> {
        // SAFETY: the call makes a new anonymous mapping.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                2 * PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        anyhow::ensure!(address != libc::MAP_FAILED, "mmap failed");
        // SAFETY: the range is the second page of the new mapping.
        let ret =
            unsafe { libc::mprotect(address.byte_add(PAGE_SIZE), PAGE_SIZE, libc::PROT_NONE) };
        anyhow::ensure!(ret == 0, "mprotect failed");
        Ok(Page {
            address: address.cast(),
        })
    }

    /// Copies a value to a byte offset of the first page.
    pub fn write<T: Copy>(&self, offset: usize, value: &T) {
        assert!(offset + size_of::<T>() <= PAGE_SIZE);
        // SAFETY: the bytes are in the first page, which tests write to only before
        // they protect it.
        unsafe { std::ptr::write_unaligned(self.address.add(offset).cast(), *value) };
    }

    /// Sets the protection of the first page.
    pub fn protect(&self, protection: libc::c_int) -> anyhow::Result<()> {
        // SAFETY: the range is the first page of a mapping that `self` owns.
        let ret = unsafe { libc::mprotect(self.address.cast(), PAGE_SIZE, protection) };
        anyhow::ensure!(ret == 0, "mprotect failed");
        Ok(())
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: `self` owns the mapping, and nothing refers to it any more.
        unsafe { libc::munmap(self.address.cast(), 2 * PAGE_SIZE) };
    }
}
