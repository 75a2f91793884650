// SPDX-License-Identifier: GPL-2.0

//! The user-space interface of zero-copy receive: its structures, flags and offsets.
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

/// The flag of a ring that reduces sizes that are too large, instead of refusing them.
pub const SETUP_CLAMP: u32 = bindings::IORING_SETUP_CLAMP;
/// The flag of a ring that puts off task work until the ring's task asks for completions.
pub const SETUP_DEFER_TASKRUN: u32 = bindings::IORING_SETUP_DEFER_TASKRUN;
/// The flag of a ring whose completion queue entries have 32 bytes.
pub const SETUP_CQE32: u32 = bindings::IORING_SETUP_CQE32;
/// The flag of a ring whose completion queue entries have 16 or 32 bytes.
pub const SETUP_CQE_MIXED: u32 = bindings::IORING_SETUP_CQE_MIXED;
/// The flag of an [`IfqReg`] that imports a queue which was exported.
pub const REG_IMPORT: u32 = bindings::zcrx_reg_flags_ZCRX_REG_IMPORT;
/// The flag of an [`IfqReg`] that registers a queue without a device.
pub const REG_NODEV: u32 = bindings::zcrx_reg_flags_ZCRX_REG_NODEV;
/// The flag of an [`AreaReg`] whose memory is a dma-buf.
pub const AREA_DMABUF: u32 = bindings::io_uring_zcrx_area_flags_IORING_ZCRX_AREA_DMABUF;
/// The lowest bit of the area id in an offset.
pub const AREA_SHIFT: u32 = bindings::IORING_ZCRX_AREA_SHIFT;
/// The event that there was no free buffer for a device.
pub const EVENT_ALLOC_FAIL: u32 = bindings::zcrx_event_type_ZCRX_EVENT_ALLOC_FAIL;
/// The event that data was copied.
pub const EVENT_COPY: u32 = bindings::zcrx_event_type_ZCRX_EVENT_COPY;
/// The number of event types.
pub const EVENT_TYPES: u32 = bindings::zcrx_event_type___ZCRX_EVENT_TYPE_LAST;
/// The flag of an [`EventDesc`] that asks for statistics.
pub const EVENT_DESC_STATS: u32 = bindings::zcrx_event_desc_flags_ZCRX_EVENT_DESC_FLAG_STATS;
/// The `op` of a [`Ctrl`] that drains the refill queue.
pub const CTRL_FLUSH_RQ: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_FLUSH_RQ;
/// The `op` of a [`Ctrl`] that exports the queue as a file.
pub const CTRL_EXPORT: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_EXPORT;
/// The `op` of a [`Ctrl`] that arms an event, so that it is reported again.
pub const CTRL_ARM_EVENT: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_ARM_EVENT;
/// The `op` of a [`Ctrl`] that adds an area.
pub const CTRL_ADD_AREA: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_ADD_AREA;
/// The offset at which user space maps the refill queue with id 0: `IORING_MAP_OFF_ZCRX_REGION`.
pub const MAP_OFFSET: u64 = bindings::IORING_MAP_OFF_ZCRX_REGION as u64;
/// The number of bits by which an id is shifted left before it is added to [`MAP_OFFSET`].
pub const MAP_SHIFT: u32 = bindings::IORING_OFF_ZCRX_SHIFT;

/// The offset of the head (the consumer's position) in the memory of a refill queue, in bytes.
pub const RQ_HEAD: usize = offset_of!(bindings::zcrx_rq_hdr, head);
/// The offset of the tail (the producer's position), in bytes.
pub const RQ_TAIL: usize = offset_of!(bindings::zcrx_rq_hdr, tail);
/// The size of the header that precedes the entries, without the gap after it, in bytes.
pub const RQ_HEADER: usize = size_of::<bindings::zcrx_rq_hdr>();
/// The offset of the first entry, in bytes.
pub const RQ_ENTRIES: usize = RQ_HEADER.next_multiple_of(bindings::L1_CACHE_BYTES as usize);
/// The size of an entry, `struct io_uring_zcrx_rqe`, in bytes. An entry has an offset, a length
/// that nobody reads, and padding.
pub const RQE_SIZE: usize = size_of::<bindings::io_uring_zcrx_rqe>();
/// The position of the offset in an entry, in bytes.
pub const RQE_OFF: usize = offset_of!(bindings::io_uring_zcrx_rqe, off);
/// The position of the padding in an entry, in bytes.
pub const RQE_PAD: usize = offset_of!(bindings::io_uring_zcrx_rqe, __pad);
/// The size of the statistics, `struct zcrx_stats`, in bytes. They are the number of completions
/// whose data was copied, and the number of bytes copied.
pub const STATS_SIZE: usize = size_of::<bindings::zcrx_stats>();
/// The alignment of the statistics, in bytes.
pub const STATS_ALIGN: usize = align_of::<bindings::zcrx_stats>();
/// The position of the number of bytes in the statistics, in bytes.
pub const STATS_BYTES: usize = offset_of!(bindings::zcrx_stats, copy_bytes);

/// Declares a wrapper of a uapi structure whose fields are all integers without padding.
///
/// The structure's own fields are accessed through [`Deref`](core::ops::Deref).
macro_rules! wrapper {
    ($(#[$attribute:meta])* $name:ident, $raw:ident, $size:literal) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $name(bindings::$raw);

        const _: () = assert!(size_of::<$name>() == $size);

        // SAFETY: All fields are integers, for which every bit pattern is valid.
        unsafe impl FromBytes for $name {}

        // SAFETY: The fields are integers without padding: the offset of each is a multiple of its
        // size, and the sum of the sizes is the size of the structure.
        unsafe impl AsBytes for $name {}

        impl Default for $name {
            /// Returns a structure whose fields are all zero.
            fn default() -> Self {
                Self(pin_init::zeroed())
            }
        }

        impl core::ops::Deref for $name {
            type Target = bindings::$raw;

            #[inline]
            fn deref(&self) -> &Self::Target {
                &self.0
            }
        }

        impl core::ops::DerefMut for $name {
            #[inline]
            fn deref_mut(&mut self) -> &mut Self::Target {
                &mut self.0
            }
        }
    };
}

wrapper! {
    /// A description of a queue to register: `struct io_uring_zcrx_ifq_reg`, 96 bytes.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     io_uring::zcrx::{IfqReg, RQ_ENTRIES},
    ///     transmute::FromBytes, //
    /// };
    ///
    /// let mut bytes = [0u8; 96];
    /// bytes[8] = 64; // rq_entries
    ///
    /// let mut reg = IfqReg::from_bytes_copy(&bytes).ok_or(EINVAL)?;
    /// assert_eq!(reg.rq_entries, 64);
    /// assert!(reg.reserved_is_zero());
    ///
    /// reg.set_offsets();
    /// assert_eq!(reg.offsets.rqes as usize, RQ_ENTRIES);
    ///
    /// bytes[95] = 1;
    /// let reg = IfqReg::from_bytes_copy(&bytes).ok_or(EINVAL)?;
    /// assert!(!reg.reserved_is_zero());
    /// # Ok::<(), Error>(())
    /// ```
    IfqReg, io_uring_zcrx_ifq_reg, 96
}

impl IfqReg {
    /// Returns whether the reserved fields are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.__resv == [0; 2]
    }

    /// Stores the offsets of the head, the tail and the entries of the refill queue, for user
    /// space.
    pub fn set_offsets(&mut self) {
        // CAST: All three are far below 2^32.
        self.0.offsets.head = RQ_HEAD as u32;
        self.0.offsets.tail = RQ_TAIL as u32;
        self.0.offsets.rqes = RQ_ENTRIES as u32;
    }
}

wrapper! {
    /// A description of an area to receive into: `struct io_uring_zcrx_area_reg`, 48 bytes.
    AreaReg, io_uring_zcrx_area_reg, 48
}

impl AreaReg {
    /// Returns whether the reserved fields are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.__resv2 == [0; 2]
    }
}

wrapper! {
    /// A description of the events that user space subscribes to: `struct zcrx_event_desc`, 96
    /// bytes.
    EventDesc, zcrx_event_desc, 96
}

impl EventDesc {
    /// Returns whether the reserved fields are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.__resv2 == [0; 9]
    }
}

wrapper! {
    /// A control operation: `struct zcrx_ctrl`, 72 bytes.
    ///
    /// The arguments of the operation are a union. All its members consist of integers, so that
    /// each method below may read the member of its operation. Bytes that the operation does not
    /// use must be zero: [`Self::event`] returns [`None`] if they are not, and [`Self::area`]
    /// tells.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     io_uring::zcrx::Ctrl,
    ///     transmute::FromBytes, //
    /// };
    ///
    /// let mut bytes = [0u8; 72];
    /// bytes[24] = 1;
    ///
    /// let ctrl = Ctrl::from_bytes_copy(&bytes).ok_or(EINVAL)?;
    /// assert_eq!(ctrl.event(), Some(1));
    /// assert_eq!(ctrl.area(), (1, true));
    /// assert!(!ctrl.has_no_arguments());
    ///
    /// bytes[28] = 1;
    /// let ctrl = Ctrl::from_bytes_copy(&bytes).ok_or(EINVAL)?;
    /// assert_eq!(ctrl.event(), None);
    /// assert_eq!(ctrl.area(), (1 << 32 | 1, true));
    ///
    /// bytes[71] = 1;
    /// let ctrl = Ctrl::from_bytes_copy(&bytes).ok_or(EINVAL)?;
    /// assert_eq!(ctrl.area(), (1 << 32 | 1, false));
    /// # Ok::<(), Error>(())
    /// ```
    Ctrl, zcrx_ctrl, 72
}

impl Ctrl {
    /// Returns whether the reserved fields before the arguments are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.__resv == [0; 2]
    }

    /// Returns whether all bytes of the arguments are zero, as [`CTRL_FLUSH_RQ`] and
    /// [`CTRL_EXPORT`] require.
    pub fn has_no_arguments(&self) -> bool {
        // SAFETY: This member covers all bytes of the union, which are integers.
        unsafe { self.0.__bindgen_anon_1.zc_flush.__resv == [0; 6] }
    }

    /// Returns the event type that [`CTRL_ARM_EVENT`] names, or [`None`] if the bytes after it are
    /// not zero.
    pub fn event(&self) -> Option<u32> {
        // SAFETY: All members of the union are integers.
        let arguments = unsafe { self.0.__bindgen_anon_1.zc_arm_event };

        (arguments.__resv == [0; 11]).then_some(arguments.event_type)
    }

    /// Returns the address of the [`AreaReg`] for [`CTRL_ADD_AREA`], and whether the bytes after it
    /// are zero. The caller checks both, so that errors are found in the order that C has.
    pub fn area(&self) -> (u64, bool) {
        // SAFETY: All members of the union are integers.
        let arguments = unsafe { self.0.__bindgen_anon_1.zc_area };

        (arguments.area_ptr, arguments.__resv == [0; 5])
    }

    /// Sets the file descriptor that [`CTRL_EXPORT`] returns to user space.
    pub fn set_exported_fd(&mut self, fd: u32) {
        self.0.__bindgen_anon_1.zc_export.zcrx_fd = fd;
    }
}

const _: () = {
    assert!(offset_of!(bindings::zcrx_ctrl, __bindgen_anon_1) == 24);
    assert!(size_of::<bindings::zcrx_ctrl_flush_rq>() == 48);
    assert!(size_of::<bindings::zcrx_ctrl_export>() == 48);
    assert!(size_of::<bindings::zcrx_ctrl_arm_event>() == 48);
    assert!(size_of::<bindings::zcrx_ctrl_add_area>() == 48);
    assert!(RQE_SIZE == 16);
};
