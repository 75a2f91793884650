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
/// In `flags` of an [`IfqReg`]: take over a queue that was exported.
pub const REG_IMPORT: u32 = bindings::zcrx_reg_flags_ZCRX_REG_IMPORT;
/// In `flags` of an [`IfqReg`]: a queue without a device.
pub const REG_NODEV: u32 = bindings::zcrx_reg_flags_ZCRX_REG_NODEV;
/// In `flags` of an [`AreaReg`]: memory of a dma-buf.
pub const AREA_DMABUF: u32 = bindings::io_uring_zcrx_area_flags_IORING_ZCRX_AREA_DMABUF;
/// The bit of an offset from which on it names the area.
pub const AREA_SHIFT: u32 = bindings::IORING_ZCRX_AREA_SHIFT;
/// Event: there was no buffer for a device.
pub const EVENT_ALLOC_FAIL: u32 = bindings::zcrx_event_type_ZCRX_EVENT_ALLOC_FAIL;
/// Event: data was copied.
pub const EVENT_COPY: u32 = bindings::zcrx_event_type_ZCRX_EVENT_COPY;
/// The number of kinds of events.
pub const EVENTS: u32 = bindings::zcrx_event_type___ZCRX_EVENT_TYPE_LAST;
/// In `flags` of an [`EventDesc`]: keep statistics.
pub const EVENT_DESC_STATS: u32 = bindings::zcrx_event_desc_flags_ZCRX_EVENT_DESC_FLAG_STATS;
/// In `op` of a [`Ctrl`]: read the refill queue.
pub const CTRL_FLUSH_RQ: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_FLUSH_RQ;
/// In `op` of a [`Ctrl`]: make a file of the queue.
pub const CTRL_EXPORT: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_EXPORT;
/// In `op` of a [`Ctrl`]: let an event happen again.
pub const CTRL_ARM_EVENT: u32 = bindings::zcrx_ctrl_op_ZCRX_CTRL_ARM_EVENT;
/// In `op` of a [`Ctrl`]: add memory.
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

/// Declares what wraps a structure of the uapi, all of whose fields are integers without padding.
///
/// The structure's own fields are reached through [`Deref`](core::ops::Deref).
macro_rules! wrapper {
    ($(#[$attribute:meta])* $name:ident, $raw:ident, $size:literal) => {
        $(#[$attribute])*
        #[derive(Clone, Copy)]
        #[repr(transparent)]
        pub struct $name(bindings::$raw);

        const _: () = assert!(size_of::<$name>() == $size);

        // SAFETY: All fields are integers, for which every bit pattern is valid.
        unsafe impl FromBytes for $name {}

        // SAFETY: The fields are integers that leave no padding: each stands at a multiple of its
        // size, and the sum of the sizes is that of the structure.
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
    /// A queue as user space describes it: `struct io_uring_zcrx_ifq_reg`, 96 bytes.
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

    /// Tells user space where things are in the refill queue.
    pub fn set_offsets(&mut self) {
        // All three are far below 2^32.
        self.0.offsets.head = RQ_HEAD as u32;
        self.0.offsets.tail = RQ_TAIL as u32;
        self.0.offsets.rqes = RQ_ENTRIES as u32;
    }
}

wrapper! {
    /// Memory to receive into, as user space describes it: `struct io_uring_zcrx_area_reg`, 48
    /// bytes.
    AreaReg, io_uring_zcrx_area_reg, 48
}

impl AreaReg {
    /// Returns whether the reserved fields are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.__resv2 == [0; 2]
    }
}

wrapper! {
    /// Events that user space wants to be told of: `struct zcrx_event_desc`, 96 bytes.
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
    /// The arguments of the operation are a union, of which each method below takes one member for
    /// valid: all of them are integers. A method returns [`None`] if a field that the operation
    /// does not have is not zero.
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
    /// Returns whether the reserved fields in front of the arguments are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.__resv == [0; 2]
    }

    /// Returns whether all bytes of the arguments are zero, as [`CTRL_FLUSH_RQ`] and
    /// [`CTRL_EXPORT`] want them.
    pub fn has_no_arguments(&self) -> bool {
        // SAFETY: This member has all bytes of the union, which are integers.
        unsafe { self.0.__bindgen_anon_1.zc_flush.__resv == [0; 6] }
    }

    /// Returns the event of [`CTRL_ARM_EVENT`].
    pub fn event(&self) -> Option<u32> {
        // SAFETY: All members of the union are integers.
        let arguments = unsafe { self.0.__bindgen_anon_1.zc_arm_event };

        (arguments.__resv == [0; 11]).then_some(arguments.event_type)
    }

    /// Returns the address of the [`AreaReg`] of [`CTRL_ADD_AREA`], and whether the fields behind
    /// it are zero: user space is told of either error in its own order.
    pub fn area(&self) -> (u64, bool) {
        // SAFETY: All members of the union are integers.
        let arguments = unsafe { self.0.__bindgen_anon_1.zc_area };

        (arguments.area_ptr, arguments.__resv == [0; 5])
    }

    /// Sets the file that [`CTRL_EXPORT`] has made.
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
