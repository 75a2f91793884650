// SPDX-License-Identifier: GPL-2.0
//! Zero-copy receive: the structures of its user interface, field by field, and
//! an interface queue, by default without a device, which takes what a socket has
//! by copy.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering;

use anyhow::{Context, ensure};

use crate::kernel::{describe, expect_result};
use crate::register::{PAGE_SIZE, register};
use crate::sandbox;
use crate::sqe::{Sqe, op};
use crate::wide::{Mapping, WideCqe, WideRing};

pub const IORING_REGISTER_ZCRX_IFQ: u32 = 32;
pub const IORING_REGISTER_ZCRX_CTRL: u32 = 36;

/// In `ioprio` of a receive: wait for data first.
pub const IORING_RECVSEND_POLL_FIRST: u16 = 1 << 0;
/// In `ioprio` of a receive: go on until there is no more. Zero-copy receive
/// must have it.
pub const IORING_RECV_MULTISHOT: u16 = 1 << 1;

/// In [`IfqReg::flags`].
pub const ZCRX_REG_IMPORT: u32 = 1;
/// In [`IfqReg::flags`].
pub const ZCRX_REG_NODEV: u32 = 2;
/// In [`AreaReg::flags`].
pub const IORING_ZCRX_AREA_DMABUF: u32 = 1;
/// The bit at which an offset has the area.
pub const AREA_SHIFT: u32 = 48;
/// In [`RegionDesc::flags`].
pub const IORING_MEM_REGION_TYPE_USER: u32 = 1;

/// Event: no buffer for the device.
pub const ZCRX_EVENT_ALLOC_FAIL: u32 = 0;
/// Event: data was copied.
pub const ZCRX_EVENT_COPY: u32 = 1;
/// In [`EventDesc::flags`].
pub const ZCRX_EVENT_DESC_FLAG_STATS: u32 = 1;

pub const ZCRX_CTRL_FLUSH_RQ: u32 = 0;
pub const ZCRX_CTRL_EXPORT: u32 = 1;
pub const ZCRX_CTRL_ARM_EVENT: u32 = 2;
pub const ZCRX_CTRL_ADD_AREA: u32 = 3;

/// Where the refill queue of id 0 is mapped; those of others follow.
pub const IORING_MAP_OFF_ZCRX: i64 = 0x3000_0000;
pub const IORING_OFF_ZCRX_SHIFT: u32 = 16;

/// Most entries that a refill queue has.
pub const MAX_ENTRIES: u32 = 32768;
/// Where the entries of a refill queue begin, on x86-64.
pub const RQES: usize = 128;
/// Where the producer's position is.
pub const TAIL: usize = 64;

/// `struct io_uring_zcrx_offsets`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Offsets {
    pub head: u32,
    pub tail: u32,
    pub rqes: u32,
    pub resv2: u32,
    pub resv: [u64; 2],
}

/// `struct io_uring_zcrx_ifq_reg`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct IfqReg {
    pub if_idx: u32,
    pub if_rxq: u32,
    pub rq_entries: u32,
    pub flags: u32,
    pub area_ptr: u64,
    pub region_ptr: u64,
    pub offsets: Offsets,
    pub zcrx_id: u32,
    pub rx_buf_len: u32,
    pub event_desc: u64,
    pub resv: [u64; 2],
}

/// `struct io_uring_zcrx_area_reg`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct AreaReg {
    pub addr: u64,
    pub len: u64,
    pub rq_area_token: u64,
    pub flags: u32,
    pub dmabuf_fd: u32,
    pub resv2: [u64; 2],
}

/// `struct io_uring_region_desc`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct RegionDesc {
    pub user_addr: u64,
    pub size: u64,
    pub flags: u32,
    pub id: u32,
    pub mmap_offset: u64,
    pub resv: [u64; 4],
}

/// `struct zcrx_event_desc`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct EventDesc {
    pub user_data: u64,
    pub type_mask: u32,
    pub flags: u32,
    pub stats_offset: u64,
    pub resv2: [u64; 9],
}

/// `struct zcrx_stats`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Stats {
    pub copy_count: u64,
    pub copy_bytes: u64,
}

/// `struct zcrx_ctrl`, its union as words: `zcrx_fd` and `event_type` are the
/// low half of the first, `area_ptr` is all of it.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Ctrl {
    pub zcrx_id: u32,
    pub op: u32,
    pub resv: [u64; 2],
    pub union: [u64; 6],
}

/// `struct io_uring_zcrx_rqe`.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Rqe {
    pub off: u64,
    pub len: u32,
    pub pad: u32,
}

const _: () = {
    assert!(size_of::<IfqReg>() == 96);
    assert!(size_of::<AreaReg>() == 48);
    assert!(size_of::<RegionDesc>() == 64);
    assert!(size_of::<EventDesc>() == 96);
    assert!(size_of::<Ctrl>() == 72);
    assert!(size_of::<Rqe>() == 16);
};

/// Registers an interface queue with a ring.
pub fn register_ifq(fd: RawFd, reg: &mut IfqReg) -> i32 {
    register(fd, IORING_REGISTER_ZCRX_IFQ, (reg as *mut IfqReg).cast(), 1)
}

/// Calls a control operation.
pub fn control(fd: RawFd, ctrl: &mut Ctrl) -> i32 {
    register(fd, IORING_REGISTER_ZCRX_CTRL, (ctrl as *mut Ctrl).cast(), 0)
}

/// Builds a receive from `socket` into the queue `id` of the same ring, of `len` bytes
/// at most, or of all there are if 0.
pub fn recv_zc(socket: RawFd, id: u32, len: u32) -> Sqe {
    let mut sqe = Sqe::new(op::RECV_ZC)
        .fd(socket)
        .ioprio(IORING_RECV_MULTISHOT);
    sqe.len = len;
    sqe.file_index = id;
    sqe
}

/// Returns the bytes that a refill queue of so many entries takes, in whole pages.
pub fn region_size(entries: u32) -> usize {
    (RQES + 16 * entries as usize).next_multiple_of(PAGE_SIZE)
}

/// Anonymous memory, in pages.
pub fn memory(pages: usize) -> anyhow::Result<Mapping> {
    Mapping::anonymous(pages * PAGE_SIZE, 0)
}

/// Returns how many pages the calling process has pinned, as the kernel counts them.
pub fn pinned() -> anyhow::Result<usize> {
    Ok(sandbox::own_memory("VmPin:")? as usize / PAGE_SIZE)
}

/// Returns the offset at which the refill queue of a ring's queue `id` is mapped.
pub fn map_offset(id: u32) -> i64 {
    IORING_MAP_OFF_ZCRX + (i64::from(id) << IORING_OFF_ZCRX_SHIFT)
}

/// What a registration is made of, all valid until a test changes it.
pub struct Registration {
    pub reg: IfqReg,
    pub area: AreaReg,
    pub region: RegionDesc,
    pub event: EventDesc,
    /// Whether [`Registration::event`] is handed in.
    pub with_event: bool,
}

impl Registration {
    /// Describes a queue without a device, with `entries` in its refill queue, which the
    /// kernel allocates, and buffers in `area`.
    pub fn new(entries: u32, area: &Mapping) -> Self {
        Registration {
            reg: IfqReg {
                rq_entries: entries,
                flags: ZCRX_REG_NODEV,
                ..Default::default()
            },
            area: AreaReg {
                addr: area.address() as u64,
                len: area.len() as u64,
                ..Default::default()
            },
            region: RegionDesc {
                size: region_size(entries) as u64,
                ..Default::default()
            },
            event: EventDesc::default(),
            with_event: false,
        }
    }

    /// Registers itself; what the kernel writes back is in the fields.
    pub fn register(&mut self, fd: RawFd) -> i32 {
        self.reg.area_ptr = &raw mut self.area as u64;
        self.reg.region_ptr = &raw mut self.region as u64;
        if self.with_event {
            self.reg.event_desc = &raw mut self.event as u64;
        }
        register_ifq(fd, &mut self.reg)
    }
}

/// The refill queue of a ring's queue, through which buffers are given back.
pub struct RefillQueue {
    /// Of the queue, at the ring that it was mapped from.
    pub id: u32,
    pub entries: u32,
    /// Its positions, entries, and what is behind them.
    pub memory: Mapping,
}

impl RefillQueue {
    /// Maps the one of queue `id` of a ring, which has so many entries.
    pub fn map(fd: RawFd, id: u32, entries: u32) -> anyhow::Result<Self> {
        let memory = Mapping::new(fd, map_offset(id), region_size(entries))
            .context("mapping the refill queue")?;
        Ok(RefillQueue {
            id,
            entries,
            memory,
        })
    }

    /// Returns how far it was filled.
    pub fn tail(&self) -> u32 {
        self.memory.word(TAIL).load(Ordering::Acquire)
    }

    /// Says how far it is filled.
    pub fn set_tail(&self, tail: u32) {
        self.memory.word(TAIL).store(tail, Ordering::Release);
    }

    /// Returns how far the kernel has read it.
    pub fn head(&self) -> u32 {
        self.memory.word(0).load(Ordering::Acquire)
    }

    /// Returns how many entries the kernel has not read yet.
    pub fn unread(&self) -> u32 {
        self.tail().wrapping_sub(self.head())
    }

    /// Puts an entry behind those that are there, whatever it says.
    pub fn push(&self, rqe: Rqe) {
        let tail = self.tail();
        let slot = (tail & (self.entries - 1)) as usize;
        self.memory.write(RQES + 16 * slot, rqe);
        self.set_tail(tail.wrapping_add(1));
    }

    /// Gives back the buffer that a completion handed out.
    pub fn give_back(&self, offset: u64) {
        self.push(Rqe {
            off: offset,
            ..Default::default()
        });
    }

    /// Makes the kernel read it.
    pub fn flush(&self, fd: RawFd) -> i32 {
        let mut ctrl = Ctrl {
            zcrx_id: self.id,
            op: ZCRX_CTRL_FLUSH_RQ,
            ..Default::default()
        };
        control(fd, &mut ctrl)
    }

    /// Makes the kernel read all of it. A kernel may stop at an entry that is not
    /// valid, so this takes as many calls as it takes.
    pub fn flush_all(&self, fd: RawFd) -> anyhow::Result<()> {
        while self.unread() != 0 {
            let before = self.unread();
            expect_result("flush", self.flush(fd), 0)?;
            ensure!(self.unread() < before, "{before} entries stay unread");
        }
        Ok(())
    }
}

/// An interface queue: buffers, and its refill queue.
pub struct Ifq {
    pub area: Mapping,
    pub token: u64,
    /// How large a buffer is.
    pub buffer: usize,
    pub refill: RefillQueue,
}

impl std::ops::Deref for Ifq {
    type Target = RefillQueue;

    fn deref(&self) -> &RefillQueue {
        &self.refill
    }
}

impl Ifq {
    /// Registers one of `pages` buffers with a ring.
    pub fn new(fd: RawFd, entries: u32, pages: usize) -> anyhow::Result<Self> {
        let area = memory(pages)?;
        let mut registration = Registration::new(entries, &area);
        expect_result("registering zcrx", registration.register(fd), 0)?;
        Self::attach(fd, registration, area)
    }

    /// Uses a registration that succeeded.
    pub fn attach(fd: RawFd, registration: Registration, area: Mapping) -> anyhow::Result<Self> {
        let reg = registration.reg;
        Ok(Ifq {
            area,
            token: registration.area.rq_area_token,
            buffer: reg.rx_buf_len as usize,
            refill: RefillQueue::map(fd, reg.zcrx_id, reg.rq_entries)?,
        })
    }

    /// Lets go of the refill queue, and with it of the ring: the buffers.
    pub fn into_area(self) -> Mapping {
        self.area
    }

    /// Returns the bytes that a completion is about, if they are in the first area.
    pub fn data(&self, cqe: &WideCqe) -> anyhow::Result<&[u8]> {
        let [off, pad] = cqe.extra.context("a completion without an offset")?;
        ensure!(pad == 0, "padding is {pad:#x}");
        ensure!(
            off >> AREA_SHIFT == self.token >> AREA_SHIFT,
            "another area: {off:#x}"
        );
        let at = (off - self.token) as usize;
        let len = usize::try_from(cqe.res).with_context(|| describe(cqe.res))?;
        ensure!(
            at / self.buffer == (at + len - 1) / self.buffer && at + len <= self.area.len(),
            "{len} bytes at {at:#x} are not in one buffer"
        );
        // SAFETY: inside the mapping, and the kernel writes to no buffer that it
        // has handed out.
        Ok(unsafe { std::slice::from_raw_parts(self.area.address().add(at), len) })
    }
}

/// Makes a TCP connection over loopback, and returns its two ends.
pub fn tcp_pair() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    sender.set_nodelay(true)?;
    Ok((sender, receiver))
}

/// Builds bytes that tell where in a stream they are.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

/// Sends a pattern and takes it in by `RECV_ZC`, all bytes compared, every buffer
/// given back at once. Where there was none left, it asks again.
pub fn transfer(ring: &mut WideRing, ifq: &Ifq, len: usize) -> anyhow::Result<()> {
    let (mut sender, receiver) = tcp_pair()?;
    let thread = std::thread::spawn(move || sender.write_all(&pattern(0, len)));
    ring.push(recv_zc(receiver.as_raw_fd(), ifq.id, len as u32))?;
    let (mut taken, mut asked_at) = (0, None);
    while taken < len {
        let cqe = ring.cqe()?;
        if cqe.res == -libc::ENOMEM && asked_at != Some(taken) {
            asked_at = Some(taken);
            ring.push(recv_zc(receiver.as_raw_fd(), ifq.id, (len - taken) as u32))?;
            continue;
        }
        ensure!(cqe.res > 0, "after {taken} bytes: {}", describe(cqe.res));
        let data = ifq.data(&cqe)?;
        ensure!(
            data == pattern(taken, data.len()),
            "other bytes than were sent, from {taken} on"
        );
        taken += data.len();
        ifq.give_back(cqe.extra.context("no offset")?[0]);
        expect_result("flush", ifq.flush(ring.fd()), 0)?;
    }
    let last = ring.cqe()?;
    ensure!(
        (last.res, last.flags) == (0, 0),
        "the last completion is {last:x?}"
    );
    let sent = thread.join();
    sent.ok().context("the sender panicked")??;
    // The sender is gone, and nothing is left of what it sent.
    ensure!((&receiver).read(&mut [0])? == 0, "bytes are left");
    Ok(())
}
