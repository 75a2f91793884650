// SPDX-License-Identifier: GPL-2.0
//! The uapi structures of zero-copy receive, and an interface queue. By default the
//! queue has no device: the kernel copies data from the socket into its buffers.

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

/// Makes a receive wait for data first. A flag in `ioprio`.
pub const IORING_RECVSEND_POLL_FIRST: u16 = 1 << 0;
/// Makes a receive go on until there is no more data. A flag in `ioprio`, which
/// zero-copy receive requires.
pub const IORING_RECV_MULTISHOT: u16 = 1 << 1;

/// Imports an exported queue. A flag in [`IfqReg::flags`].
pub const ZCRX_REG_IMPORT: u32 = 1;
/// Registers a queue without a device. A flag in [`IfqReg::flags`].
pub const ZCRX_REG_NODEV: u32 = 2;
/// Says that the area is a dma-buf. A flag in [`AreaReg::flags`].
pub const IORING_ZCRX_AREA_DMABUF: u32 = 1;
/// The lowest bit of the area's number in an offset.
pub const AREA_SHIFT: u32 = 48;
/// Says that user memory holds the region. A flag in [`RegionDesc::flags`].
pub const IORING_MEM_REGION_TYPE_USER: u32 = 1;

/// The event that there was no buffer for the device.
pub const ZCRX_EVENT_ALLOC_FAIL: u32 = 0;
/// The event that data was copied.
pub const ZCRX_EVENT_COPY: u32 = 1;
/// Asks for statistics. A flag in [`EventDesc::flags`].
pub const ZCRX_EVENT_DESC_FLAG_STATS: u32 = 1;

pub const ZCRX_CTRL_FLUSH_RQ: u32 = 0;
pub const ZCRX_CTRL_EXPORT: u32 = 1;
pub const ZCRX_CTRL_ARM_EVENT: u32 = 2;
pub const ZCRX_CTRL_ADD_AREA: u32 = 3;

/// The offset at which the refill queue of id 0 is mapped. Those of the other ids
/// follow.
pub const IORING_MAP_OFF_ZCRX: i64 = 0x3000_0000;
pub const IORING_OFF_ZCRX_SHIFT: u32 = 16;

/// The most entries that a refill queue can have.
pub const MAX_ENTRIES: u32 = 32768;
/// The offset of the entries in a refill queue on x86-64.
pub const RQES: usize = 128;
/// The offset of the tail, the producer's position.
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

/// `struct zcrx_ctrl`, with its union as words: `zcrx_fd` and `event_type` are the low
/// half of the first word, `area_ptr` is all of it.
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

/// Runs a control operation.
pub fn control(fd: RawFd, ctrl: &mut Ctrl) -> i32 {
    register(fd, IORING_REGISTER_ZCRX_CTRL, (ctrl as *mut Ctrl).cast(), 0)
}

/// Builds a receive from `socket` into the queue `id` of the same ring, of at most
/// `len` bytes, or without a limit if `len` is 0.
pub fn recv_zc(socket: RawFd, id: u32, len: u32) -> Sqe {
    let mut sqe = Sqe::new(op::RECV_ZC)
        .fd(socket)
        .ioprio(IORING_RECV_MULTISHOT);
    sqe.len = len;
    sqe.file_index = id;
    sqe
}

/// Returns the size in bytes of the region of a refill queue of `entries` entries, in
/// whole pages.
pub fn region_size(entries: u32) -> usize {
    (RQES + 16 * entries as usize).next_multiple_of(PAGE_SIZE)
}

/// Maps `pages` pages of anonymous memory.
pub fn memory(pages: usize) -> anyhow::Result<Mapping> {
    Mapping::anonymous(pages * PAGE_SIZE, 0)
}

/// Returns the number of pages that the calling process has pinned, according to the
/// kernel.
pub fn pinned() -> anyhow::Result<usize> {
    Ok(sandbox::own_memory("VmPin:")? as usize / PAGE_SIZE)
}

/// Returns the offset at which the refill queue of the queue `id` is mapped.
pub fn map_offset(id: u32) -> i64 {
    IORING_MAP_OFF_ZCRX + (i64::from(id) << IORING_OFF_ZCRX_SHIFT)
}

/// A registration of an interface queue, valid until a test changes it.
pub struct Registration {
    pub reg: IfqReg,
    pub area: AreaReg,
    pub region: RegionDesc,
    pub event: EventDesc,
    /// Whether [`Registration::event`] is passed to the kernel.
    pub with_event: bool,
}

impl Registration {
    /// Describes a queue without a device, with a refill queue of `entries` entries
    /// that the kernel allocates, and buffers in `area`.
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

    /// Registers the queue. The fields then hold what the kernel wrote back.
    pub fn register(&mut self, fd: RawFd) -> i32 {
        self.reg.area_ptr = &raw mut self.area as u64;
        self.reg.region_ptr = &raw mut self.region as u64;
        if self.with_event {
            self.reg.event_desc = &raw mut self.event as u64;
        }
        register_ifq(fd, &mut self.reg)
    }
}

/// The refill queue of an interface queue, through which user space gives buffers back.
pub struct RefillQueue {
    /// The id of the queue at the ring that it was mapped from.
    pub id: u32,
    pub entries: u32,
    /// The mapped head, tail and entries, up to the end of the last page.
    pub memory: Mapping,
}

impl RefillQueue {
    /// Maps the refill queue of the queue `id` of a ring, which has `entries` entries.
    pub fn map(fd: RawFd, id: u32, entries: u32) -> anyhow::Result<Self> {
        let memory = Mapping::new(fd, map_offset(id), region_size(entries))
            .context("mapping the refill queue")?;
        Ok(RefillQueue {
            id,
            entries,
            memory,
        })
    }

    /// Returns the tail, up to which user space has filled the queue.
    pub fn tail(&self) -> u32 {
        self.memory.word(TAIL).load(Ordering::Acquire)
    }

    /// Sets the tail.
    pub fn set_tail(&self, tail: u32) {
        self.memory.word(TAIL).store(tail, Ordering::Release);
    }

    /// Returns the head, up to which the kernel has consumed the queue.
    pub fn head(&self) -> u32 {
        self.memory.word(0).load(Ordering::Acquire)
    }

    /// Returns the number of entries that the kernel has not consumed yet.
    pub fn pending(&self) -> u32 {
        // The head comes first: it may follow the tail while this reads, and a tail read
        // before would then lie behind it.
        let head = self.head();
        self.tail().wrapping_sub(head)
    }

    /// Adds an entry, which need not be valid.
    pub fn push(&self, rqe: Rqe) {
        let tail = self.tail();
        let slot = (tail & (self.entries - 1)) as usize;
        self.memory.write(RQES + 16 * slot, rqe);
        self.set_tail(tail.wrapping_add(1));
    }

    /// Gives back the buffer that a completion handed out.
    pub fn return_buffer(&self, offset: u64) {
        self.push(Rqe {
            off: offset,
            ..Default::default()
        });
    }

    /// Makes the kernel consume entries.
    pub fn flush(&self, fd: RawFd) -> i32 {
        let mut ctrl = Ctrl {
            zcrx_id: self.id,
            op: ZCRX_CTRL_FLUSH_RQ,
            ..Default::default()
        };
        control(fd, &mut ctrl)
    }

    /// Makes the kernel consume all entries. The kernel may stop at an entry that is
    /// not valid, so this calls it as often as needed. Other threads may add entries or
    /// make the kernel consume them at the same time.
    pub fn flush_all(&self, fd: RawFd) -> anyhow::Result<()> {
        loop {
            let head = self.head();
            let pending = self.tail().wrapping_sub(head);
            if pending == 0 {
                return Ok(());
            }
            expect_result("flush", self.flush(fd), 0)?;
            ensure!(
                self.head() != head,
                "the kernel consumed none of {pending} entries"
            );
        }
    }
}

/// An interface queue: its buffers and its refill queue.
pub struct Ifq {
    pub area: Mapping,
    pub token: u64,
    /// The size of a buffer in bytes.
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
    /// Registers a queue with an area of `pages` pages, and `entries` entries in its
    /// refill queue.
    pub fn new(fd: RawFd, entries: u32, pages: usize) -> anyhow::Result<Self> {
        let area = memory(pages)?;
        let mut registration = Registration::new(entries, &area);
        expect_result("registering zcrx", registration.register(fd), 0)?;
        Self::attach(fd, registration, area)
    }

    /// Takes over a registration that succeeded.
    pub fn attach(fd: RawFd, registration: Registration, area: Mapping) -> anyhow::Result<Self> {
        let reg = registration.reg;
        Ok(Ifq {
            area,
            token: registration.area.rq_area_token,
            buffer: reg.rx_buf_len as usize,
            refill: RefillQueue::map(fd, reg.zcrx_id, reg.rq_entries)?,
        })
    }

    /// Unmaps the refill queue, which held a reference to the ring. Returns the memory
    /// of the buffers.
    pub fn into_area(self) -> Mapping {
        self.area
    }

    /// Returns the bytes that a completion hands out, which must be in the first area.
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
        // SAFETY: the bytes are inside the mapping, and the kernel writes to no buffer
        // that it has handed out.
        Ok(unsafe { std::slice::from_raw_parts(self.area.address().add(at), len) })
    }
}

/// Makes a TCP connection over loopback. Returns sender and receiver.
pub fn tcp_pair() -> anyhow::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let sender = TcpStream::connect(listener.local_addr()?)?;
    let (receiver, _) = listener.accept()?;
    sender.set_nodelay(true)?;
    Ok((sender, receiver))
}

/// Builds bytes that depend on their position in a stream.
pub fn pattern(from: usize, len: usize) -> Vec<u8> {
    (from..from + len)
        .map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8)
        .collect()
}

/// Sends `len` bytes of the pattern, receives them with `RECV_ZC`, compares them, and
/// gives every buffer back at once. Makes a new request if the kernel found no free
/// buffer.
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
        ifq.return_buffer(cqe.extra.context("no offset")?[0]);
        expect_result("flush", ifq.flush(ring.fd()), 0)?;
    }
    let last = ring.cqe()?;
    ensure!(
        (last.res, last.flags) == (0, 0),
        "the last completion is {last:x?}"
    );
    let sent = thread.join();
    sent.ok().context("the sender panicked")??;
    // The sender has closed its end, and nothing must be left of what it sent.
    ensure!((&receiver).read(&mut [0])? == 0, "bytes are left");
    Ok(())
}
