// SPDX-License-Identifier: GPL-2.0

//! What user space and zero-copy receive hand to each other.
//!
//! C header: [`include/uapi/linux/io_uring/zcrx.h`](srctree/include/uapi/linux/io_uring/zcrx.h)

use crate::{
    bindings,
    transmute::{
        AsBytes,
        FromBytes, //
    }, //
};
use core::mem::{
    offset_of,
    size_of, //
};

/// Flag of a ring: sizes that are too large are cut.
pub const SETUP_CLAMP: u32 = bindings::IORING_SETUP_CLAMP;
/// Flag of a ring: work is put off until its task asks for completions.
pub const SETUP_DEFER_TASKRUN: u32 = bindings::IORING_SETUP_DEFER_TASKRUN;
/// Flag of a ring: completions have 32 bytes.
pub const SETUP_CQE32: u32 = bindings::IORING_SETUP_CQE32;
/// Flag of a ring: completions may have 32 bytes.
pub const SETUP_CQE_MIXED: u32 = bindings::IORING_SETUP_CQE_MIXED;
/// In [`IfqReg::flags`]: take over a queue that was exported.
pub const REG_IMPORT: u32 = bindings::zcrx_reg_flags_ZCRX_REG_IMPORT;
/// In [`IfqReg::flags`]: a queue without a device.
pub const REG_NODEV: u32 = bindings::zcrx_reg_flags_ZCRX_REG_NODEV;
/// In [`AreaReg::flags`]: memory of a dma-buf.
pub const AREA_DMABUF: u32 = bindings::io_uring_zcrx_area_flags_IORING_ZCRX_AREA_DMABUF;
/// The bit of an offset from which on it names the area.
pub const AREA_SHIFT: u32 = bindings::IORING_ZCRX_AREA_SHIFT;
/// Event: there was no buffer for a device.
pub const EVENT_ALLOC_FAIL: u32 = bindings::zcrx_event_type_ZCRX_EVENT_ALLOC_FAIL;
/// Event: data was copied.
pub const EVENT_COPY: u32 = bindings::zcrx_event_type_ZCRX_EVENT_COPY;
/// How many kinds of events there are.
pub const EVENTS: u32 = bindings::zcrx_event_type___ZCRX_EVENT_TYPE_LAST;
/// In [`EventDesc::flags`]: keep statistics.
pub const EVENT_DESC_STATS: u32 = bindings::zcrx_event_desc_flags_ZCRX_EVENT_DESC_FLAG_STATS;
/// In [`Ctrl::op`]: read the refill queue.
pub const CTRL_FLUSH_RQ: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_FLUSH_RQ;
/// In [`Ctrl::op`]: make a file of the queue.
pub const CTRL_EXPORT: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_EXPORT;
/// In [`Ctrl::op`]: let an event happen again.
pub const CTRL_ARM_EVENT: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_ARM_EVENT;
/// In [`Ctrl::op`]: add memory.
pub const CTRL_ADD_AREA: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_ADD_AREA;
/// Where the refill queue of the first id is mapped: `IORING_MAP_OFF_ZCRX_REGION`.
pub const MAP_OFFSET: u64 = bindings::IORING_MAP_OFF_ZCRX_REGION as u64;
/// By how much ids are shifted to be added to [`MAP_OFFSET`].
pub const MAP_SHIFT: u32 = bindings::IORING_OFF_ZCRX_SHIFT;

/// Where the consumer's position is in a refill queue's memory, in bytes.
pub const RQ_HEAD: usize = offset_of!(bindings::zcrx_rq_hdr, head);
/// Where the producer's position is, in bytes.
pub const RQ_TAIL: usize = offset_of!(bindings::zcrx_rq_hdr, tail);
/// Size of what stands before the entries, without the gap behind it, in bytes.
pub const RQ_HEADER: usize = size_of::<bindings::zcrx_rq_hdr>();
/// Where the entries begin, in bytes.
pub const RQ_ENTRIES: usize = RQ_HEADER.next_multiple_of(bindings::L1_CACHE_BYTES as usize);
/// Size of an entry in bytes: `struct io_uring_zcrx_rqe`, an offset, a length that nobody reads,
/// and padding.
pub const RQE_SIZE: usize = size_of::<bindings::io_uring_zcrx_rqe>();
/// Where the offset stands in an entry.
pub const RQE_OFF: usize = offset_of!(bindings::io_uring_zcrx_rqe, off);
/// Where the padding stands in an entry.
pub const RQE_PAD: usize = offset_of!(bindings::io_uring_zcrx_rqe, __pad);
/// Size of the statistics in bytes: `struct zcrx_stats`, completions and bytes that were copied.
pub const STATS_SIZE: usize = size_of::<bindings::zcrx_stats>();
/// What the statistics must be aligned to.
pub const STATS_ALIGN: usize = align_of::<bindings::zcrx_stats>();
/// Where the number of bytes stands in the statistics.
pub const STATS_BYTES: usize = offset_of!(bindings::zcrx_stats, copy_bytes);

/// Where things are in a refill queue: `struct io_uring_zcrx_offsets`, 32 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Offsets {
    /// [`RQ_HEAD`].
    pub head: u32,
    /// [`RQ_TAIL`].
    pub tail: u32,
    /// [`RQ_ENTRIES`].
    pub rqes: u32,
    /// Left as it came.
    pub reserved: u32,
    /// Left as it came.
    pub reserved2: [u64; 2],
}

/// What describes a queue: `struct io_uring_zcrx_ifq_reg`, 96 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct IfqReg {
    /// The device, or the file to import.
    pub if_idx: u32,
    /// The receive queue of the device.
    pub if_rxq: u32,
    /// Entries of the refill queue.
    pub rq_entries: u32,
    /// [`REG_IMPORT`], [`REG_NODEV`].
    pub flags: u32,
    /// The user's [`AreaReg`].
    pub area_ptr: u64,
    /// The user's region descriptor.
    pub region_ptr: u64,
    /// Filled in by the kernel.
    pub offsets: Offsets,
    /// Filled in by the kernel.
    pub zcrx_id: u32,
    /// Size of a buffer in bytes, or zero.
    pub rx_buf_len: u32,
    /// The user's [`EventDesc`], or zero.
    pub event_desc: u64,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// What describes memory to receive into: `struct io_uring_zcrx_area_reg`, 48 bytes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct AreaReg {
    /// Where it is.
    pub addr: u64,
    /// Its size in bytes.
    pub len: u64,
    /// Filled in by the kernel: what is added to offsets into this area.
    pub rq_area_token: u64,
    /// [`AREA_DMABUF`].
    pub flags: u32,
    /// The file of the dma-buf.
    pub dmabuf_fd: u32,
    /// Must be zero.
    pub reserved: [u64; 2],
}

/// What describes events: `struct zcrx_event_desc`, 96 bytes.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct EventDesc {
    /// What the completions of events carry.
    pub user_data: u64,
    /// Which events are wanted, a bit each.
    pub type_mask: u32,
    /// [`EVENT_DESC_STATS`].
    pub flags: u32,
    /// Where statistics go in the memory of the refill queue, in bytes.
    pub stats_offset: u64,
    /// Must be zero.
    pub reserved: [u64; 9],
}

/// A control operation: `struct zcrx_ctrl`, 72 bytes.
///
/// `arguments` is its union: the file of [`CTRL_EXPORT`] and the event of [`CTRL_ARM_EVENT`] are
/// its first four bytes, the address of [`CTRL_ADD_AREA`] its first eight; the rest must be zero.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ctrl {
    /// The queue.
    pub zcrx_id: u32,
    /// `CTRL_*`.
    pub op: u32,
    /// Must be zero.
    pub reserved: [u64; 2],
    /// See above.
    pub arguments: [u32; 12],
}

const _: () = {
    assert!(size_of::<Offsets>() == size_of::<bindings::io_uring_zcrx_offsets>());
    assert!(size_of::<IfqReg>() == size_of::<bindings::io_uring_zcrx_ifq_reg>());
    assert!(offset_of!(IfqReg, offsets) == offset_of!(bindings::io_uring_zcrx_ifq_reg, offsets));
    assert!(offset_of!(IfqReg, zcrx_id) == offset_of!(bindings::io_uring_zcrx_ifq_reg, zcrx_id));
    assert!(size_of::<AreaReg>() == size_of::<bindings::io_uring_zcrx_area_reg>());
    assert!(offset_of!(AreaReg, flags) == offset_of!(bindings::io_uring_zcrx_area_reg, flags));
    assert!(size_of::<EventDesc>() == size_of::<bindings::zcrx_event_desc>());
    assert!(size_of::<Ctrl>() == size_of::<bindings::zcrx_ctrl>());
    assert!(offset_of!(Ctrl, arguments) == offset_of!(bindings::zcrx_ctrl, __bindgen_anon_1));
    assert!(RQE_SIZE == 16);
};

macro_rules! plain {
    ($($name:ty),*) => {$(
        // SAFETY: All fields are integers, for which every bit pattern is valid.
        unsafe impl FromBytes for $name {}

        // SAFETY: The fields are integers that leave no padding: each stands at a multiple of its
        // size, and the sum of the sizes is that of the structure.
        unsafe impl AsBytes for $name {}
    )*};
}

plain!(IfqReg, AreaReg, EventDesc, Ctrl);
