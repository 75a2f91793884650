// SPDX-License-Identifier: GPL-2.0
//! XDP on a network device: a program that passes all packets, and a socket that binds
//! a receive queue.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use anyhow::ensure;

use crate::kernel::{describe, expect_result, result};
use crate::register::PAGE_SIZE;
use crate::wide::Mapping;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Says that the program can handle packets in several buffers.
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
/// Makes the kernel run the program instead of the driver.
const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;

/// Calls bpf(2) with words as its attributes. The command must return a file
/// descriptor.
fn bpf(command: libc::c_int, words: &[u32]) -> anyhow::Result<OwnedFd> {
    let mut fd;
    loop {
        // SAFETY: the call passes the words and their size.
        fd = result(unsafe {
            libc::syscall(libc::SYS_bpf, command, words.as_ptr(), size_of_val(words))
        });
        // Signals and deferred work of a ring interrupt the verifier.
        if fd != -libc::EAGAIN {
            break;
        }
    }
    ensure!(fd >= 0, "bpf({command}): {}", describe(fd));
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Splits an address into two words.
fn halves<T>(pointer: *const T) -> [u32; 2] {
    let address = pointer as u64;
    [address as u32, (address >> 32) as u32]
}

/// Attaches a program that passes all packets. Dropping the result detaches it.
pub fn attach(index: u32) -> anyhow::Result<OwnedFd> {
    // r0 = XDP_PASS; exit
    let program: [u64; 2] = [2 << 32 | 0xb7, 0x95];
    let [program_low, program_high] = halves(program.as_ptr());
    let [license_low, license_high] = halves(c"GPL".as_ptr());
    let load = [
        BPF_PROG_TYPE_XDP,
        program.len() as u32,
        program_low,
        program_high,
        license_low,
        license_high,
        0,
        0,
        0,
        0,
        0,
        BPF_F_XDP_HAS_FRAGS,
    ];
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let link = [
        program.as_raw_fd() as u32,
        index,
        BPF_XDP,
        XDP_FLAGS_SKB_MODE,
    ];
    bpf(BPF_LINK_CREATE, &link)
}

/// A socket that can bind a receive queue, and the memory that it receives into.
pub struct Socket {
    fd: OwnedFd,
    _memory: Mapping,
}

impl Socket {
    /// Makes a socket that is not yet bound to a queue.
    pub fn new() -> anyhow::Result<Self> {
        const CHUNKS: u32 = 16;
        // SAFETY: the call takes no pointers.
        let fd = result(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW, 0) }.into());
        ensure!(fd >= 0, "socket: {}", describe(fd));
        // SAFETY: the descriptor is new, and nothing else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let memory = Mapping::anonymous(CHUNKS as usize * PAGE_SIZE, 0)?;
        let umem = libc::xdp_umem_reg {
            addr: memory.address() as u64,
            len: memory.len() as u64,
            chunk_size: PAGE_SIZE as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(fd.as_raw_fd(), libc::XDP_UMEM_REG, &umem)?;
        for ring in [
            libc::XDP_UMEM_FILL_RING,
            libc::XDP_UMEM_COMPLETION_RING,
            libc::XDP_RX_RING,
        ] {
            set(fd.as_raw_fd(), ring, &CHUNKS)?;
        }
        Ok(Socket {
            fd,
            _memory: memory,
        })
    }

    /// Binds the socket to a queue of a device. Returns the kernel's result.
    pub fn bind(&self, index: u32, queue: u32) -> i32 {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        let size = size_of_val(&address) as libc::socklen_t;
        let address = (&raw const address).cast();
        // SAFETY: the call passes an address and its size.
        result(unsafe { libc::bind(self.fd.as_raw_fd(), address, size) }.into())
    }
}

fn set<T>(fd: RawFd, name: i32, value: &T) -> anyhow::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value).cast();
    // SAFETY: the call passes a value and its size.
    let got = unsafe { libc::setsockopt(fd, libc::SOL_XDP, name, value, size) };
    expect_result(&format!("XDP option {name}"), result(got.into()), 0)
}
