// SPDX-License-Identifier: GPL-2.0
//! Submission queue entries, field by field, so that a test can also build entries that
//! a careful library would refuse.

use io_uring::{opcode, squeue};

/// The SQE opcodes that the tests name.
pub mod op {
    use super::opcode;

    pub const NOP: u8 = opcode::Nop::CODE;
    pub const POLL_ADD: u8 = opcode::PollAdd::CODE;
    pub const SYNC_FILE_RANGE: u8 = opcode::SyncFileRange::CODE;
    pub const SENDMSG: u8 = opcode::SendMsg::CODE;
    pub const ACCEPT: u8 = opcode::Accept::CODE;
    pub const ASYNC_CANCEL: u8 = opcode::AsyncCancel::CODE;
    pub const LINK_TIMEOUT: u8 = opcode::LinkTimeout::CODE;
    pub const CONNECT: u8 = opcode::Connect::CODE;
    pub const FALLOCATE: u8 = opcode::Fallocate::CODE;
    pub const OPENAT: u8 = opcode::OpenAt::CODE;
    pub const CLOSE: u8 = opcode::Close::CODE;
    pub const STATX: u8 = opcode::Statx::CODE;
    pub const READ: u8 = opcode::Read::CODE;
    pub const READV: u8 = opcode::Readv::CODE;
    pub const WRITE: u8 = opcode::Write::CODE;
    pub const FSYNC: u8 = opcode::Fsync::CODE;
    pub const FADVISE: u8 = opcode::Fadvise::CODE;
    pub const MADVISE: u8 = opcode::Madvise::CODE;
    pub const RECV: u8 = opcode::Recv::CODE;
    pub const OPENAT2: u8 = opcode::OpenAt2::CODE;
    pub const SPLICE: u8 = opcode::Splice::CODE;
    pub const PROVIDE_BUFFERS: u8 = opcode::ProvideBuffers::CODE;
    pub const TEE: u8 = opcode::Tee::CODE;
    pub const SHUTDOWN: u8 = opcode::Shutdown::CODE;
    pub const RENAMEAT: u8 = opcode::RenameAt::CODE;
    pub const UNLINKAT: u8 = opcode::UnlinkAt::CODE;
    pub const MKDIRAT: u8 = opcode::MkDirAt::CODE;
    pub const SYMLINKAT: u8 = opcode::SymlinkAt::CODE;
    pub const LINKAT: u8 = opcode::LinkAt::CODE;
    /// The io-uring crate does not export this opcode.
    pub const MSG_RING: u8 = 40;
    pub const FSETXATTR: u8 = 41;
    pub const SETXATTR: u8 = 42;
    pub const FGETXATTR: u8 = 43;
    pub const GETXATTR: u8 = 44;
    pub const SOCKET: u8 = opcode::Socket::CODE;
    pub const SEND_ZC: u8 = opcode::SendZc::CODE;
    pub const FTRUNCATE: u8 = opcode::Ftruncate::CODE;
    pub const BIND: u8 = opcode::Bind::CODE;
    pub const RECV_ZC: u8 = 58;
    /// Takes two slots of a ring with mixed sizes.
    pub const NOP128: u8 = 63;
}

pub const IOSQE_FIXED_FILE: u8 = 1 << 0;
pub const IOSQE_IO_DRAIN: u8 = 1 << 1;
pub const IOSQE_IO_LINK: u8 = 1 << 2;
pub const IOSQE_IO_HARDLINK: u8 = 1 << 3;
pub const IOSQE_ASYNC: u8 = 1 << 4;
pub const IOSQE_BUFFER_SELECT: u8 = 1 << 5;
pub const IOSQE_CQE_SKIP_SUCCESS: u8 = 1 << 6;

/// Makes a NOP look up its file descriptor among the registered files.
pub const IORING_NOP_FIXED_FILE: u32 = 1 << 2;
/// Makes a NOP look up its file descriptor.
pub const IORING_NOP_FILE: u32 = 1 << 1;

/// `struct io_uring_sqe`. Where the C structure has a union, one field stands for all
/// its uses.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct Sqe {
    pub opcode: u8,
    pub flags: u8,
    pub ioprio: u16,
    pub fd: i32,
    pub off: u64,
    pub addr: u64,
    pub len: u32,
    pub op_flags: u32,
    pub user_data: u64,
    pub buf_index: u16,
    pub personality: u16,
    pub file_index: u32,
    pub addr3: u64,
    pub pad: u64,
}

impl Sqe {
    /// Builds a zeroed SQE with the file descriptor -1.
    pub fn new(opcode: u8) -> Self {
        Sqe {
            opcode,
            fd: -1,
            ..Default::default()
        }
    }

    pub fn user_data(mut self, user_data: u64) -> Self {
        self.user_data = user_data;
        self
    }

    pub fn flags(mut self, flags: u8) -> Self {
        self.flags = flags;
        self
    }

    pub fn fd(mut self, fd: i32) -> Self {
        self.fd = fd;
        self
    }

    /// Sets the address and the length of a buffer.
    pub fn buffer<T>(mut self, address: *const T, len: u32) -> Self {
        self.addr = address as u64;
        self.len = len;
        self
    }

    pub fn off(mut self, off: u64) -> Self {
        self.off = off;
        self
    }

    pub fn op_flags(mut self, flags: u32) -> Self {
        self.op_flags = flags;
        self
    }

    pub fn ioprio(mut self, ioprio: u16) -> Self {
        self.ioprio = ioprio;
        self
    }

    /// Builds a NOP.
    pub fn nop() -> Self {
        Self::new(op::NOP)
    }

    /// Builds a socket(2) request.
    pub fn socket(family: i32, kind: i32, protocol: i32) -> Self {
        let mut sqe = Self::new(op::SOCKET).fd(family).off(kind as u32 as u64);
        sqe.len = protocol as u32;
        sqe
    }

    /// Builds an openat(2) request relative to the working directory.
    pub fn openat(path: &std::ffi::CStr, flags: i32, mode: u32) -> Self {
        Self::new(op::OPENAT)
            .fd(libc::AT_FDCWD)
            .buffer(path.as_ptr(), mode)
            .op_flags(flags as u32)
    }

    /// Builds an openat2(2) request relative to the working directory.
    pub fn openat2(path: &std::ffi::CStr, how: *const OpenHow, size: u32) -> Self {
        Self::new(op::OPENAT2)
            .fd(libc::AT_FDCWD)
            .buffer(path.as_ptr(), size)
            .off(how as u64)
    }

    /// Builds a connect(2) request to an address of `len` bytes.
    pub fn connect(fd: i32, address: &[u8], len: u64) -> Self {
        Self::new(op::CONNECT)
            .fd(fd)
            .buffer(address.as_ptr(), 0)
            .off(len)
    }

    /// Builds a read(2) request at the current position.
    pub fn read(fd: i32, buffer: &mut [u8]) -> Self {
        Self::new(op::READ)
            .fd(fd)
            .buffer(buffer.as_ptr(), buffer.len() as u32)
            .off(u64::MAX)
    }

    /// Builds a poll request that waits for `events` on a file descriptor.
    pub fn poll(fd: i32, events: i16) -> Self {
        Self::new(op::POLL_ADD)
            .fd(fd)
            .op_flags(events as u16 as u32)
    }
}

impl From<Sqe> for squeue::Entry {
    fn from(sqe: Sqe) -> Self {
        // SAFETY: both types are images of the 64 bytes of `struct io_uring_sqe`, and
        // any bytes are a valid image.
        unsafe { std::mem::transmute(sqe) }
    }
}

/// `struct open_how`.
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub struct OpenHow {
    pub flags: u64,
    pub mode: u64,
    pub resolve: u64,
}
