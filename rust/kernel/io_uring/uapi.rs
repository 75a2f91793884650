// SPDX-License-Identifier: GPL-2.0

//! Structures that user space passes to io_uring.
//!
//! C headers: [`include/uapi/linux/io_uring.h`](srctree/include/uapi/linux/io_uring.h),
//! [`include/uapi/linux/io_uring/bpf_filter.h`](srctree/include/uapi/linux/io_uring/bpf_filter.h)

use crate::{
    bindings,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::UserPtr, //
};
use core::mem::{
    offset_of,
    size_of, //
};

/// The command that registers a filter: `IO_URING_BPF_CMD_FILTER`.
pub const BPF_CMD_FILTER: u16 = bindings::IO_URING_BPF_CMD_FILTER as u16;

/// The command that registers a filter of registrations: `IO_URING_BPF_CMD_REGISTER`.
pub const BPF_CMD_REGISTER: u16 = bindings::IO_URING_BPF_CMD_REGISTER as u16;

/// The command that registers a filter of setups: `IO_URING_BPF_CMD_SETUP`.
pub const BPF_CMD_SETUP: u16 = bindings::IO_URING_BPF_CMD_SETUP as u16;

/// The flag of a filter whose registration also denies every opcode that has no filter.
pub const BPF_FILTER_DENY_REST: u32 = bindings::IO_URING_BPF_FILTER_DENY_REST;

/// The flag of a filter that is refused unless the caller and the kernel agree on the opcode's pdu
/// size.
pub const BPF_FILTER_SZ_STRICT: u32 = bindings::IO_URING_BPF_FILTER_SZ_STRICT;

/// A description of a filter by user space: `struct io_uring_bpf_filter`, 64 bytes.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct BpfFilter(bindings::io_uring_bpf_filter);

/// The argument of `IORING_REGISTER_BPF_FILTER`: `struct io_uring_bpf`, 72 bytes.
///
/// # Examples
///
/// ```
/// use kernel::{
///     io_uring::uapi::{Bpf, BPF_CMD_FILTER},
///     transmute::FromBytes, //
/// };
///
/// let mut bytes = [0u8; 72];
/// bytes[0] = 1; // cmd_type
/// bytes[8] = 45; // filter.opcode
/// bytes[20] = 12; // filter.pdu_size
///
/// let bpf = Bpf::from_bytes_copy(&bytes).ok_or(EINVAL)?;
/// assert_eq!(bpf.cmd_type(), BPF_CMD_FILTER);
/// assert!(bpf.reserved_is_zero() && bpf.filter().reserved_is_zero());
/// assert_eq!(bpf.filter().opcode(), 45);
/// assert_eq!(bpf.filter().pdu_size(), 12);
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct Bpf(bindings::io_uring_bpf);

const _: () = {
    assert!(size_of::<BpfFilter>() == 64);
    assert!(size_of::<Bpf>() == 72);
    assert!(Bpf::FILTER_OFFSET == 8);
    assert!(offset_of!(bindings::io_uring_bpf_filter, pdu_size) == 12);
    assert!(offset_of!(bindings::io_uring_bpf_filter, filter_ptr) == 16);
    assert!(offset_of!(bindings::io_uring_bpf_filter, resv2) == 24);
    assert!(size_of::<RestrictionEntry>() == 16);
    assert!(offset_of!(bindings::io_uring_restriction, __bindgen_anon_1) == 2);
    assert!(size_of::<TaskRestrictionHeader>() == 16);
    assert!(offset_of!(bindings::io_uring_task_restriction, __bindgen_anon_1) == 16);
};

// SAFETY: All fields are integers, for which every bit pattern is valid.
unsafe impl FromBytes for BpfFilter {}

// SAFETY: The fields leave no padding: 3 * 4 + 1 + 3 + 8 + 5 * 8 == 64.
unsafe impl AsBytes for BpfFilter {}

// SAFETY: All fields are integers, or a union with `BpfFilter` as its only member.
unsafe impl FromBytes for Bpf {}

impl BpfFilter {
    /// Returns the opcode to filter, which is not validated.
    pub fn opcode(&self) -> u32 {
        self.0.opcode
    }

    /// Returns the flags, `IO_URING_BPF_FILTER_*`, which are not validated.
    pub fn flags(&self) -> u32 {
        self.0.flags
    }

    /// Returns the number of instructions, which is not validated.
    pub fn len(&self) -> u32 {
        self.0.filter_len
    }

    /// Returns whether there are no instructions.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of bytes of the opcode's own arguments that the caller knows of.
    pub fn pdu_size(&self) -> u8 {
        self.0.pdu_size
    }

    /// Sets the number of bytes of the opcode's own arguments that there are.
    pub fn set_pdu_size(&mut self, size: u8) {
        self.0.pdu_size = size;
    }

    /// Returns the address of the instructions.
    pub fn insns(&self) -> UserPtr {
        // On 32-bit machines, this drops the upper half, as `u64_to_user_ptr` does.
        UserPtr::from_addr(self.0.filter_ptr as usize)
    }

    /// Returns whether all reserved fields are zero.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.resv == [0; 3] && self.0.resv2 == [0; 5]
    }
}

impl Bpf {
    /// The offset of the filter's description in the structure, in bytes.
    pub const FILTER_OFFSET: usize = offset_of!(bindings::io_uring_bpf, __bindgen_anon_1);

    /// Returns the command, `IO_URING_BPF_CMD_*`, which is not validated.
    pub fn cmd_type(&self) -> u16 {
        self.0.cmd_type
    }

    /// Returns whether the reserved field and the flags are zero. No flags are defined so far.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.cmd_flags == 0 && self.0.resv == 0
    }

    /// Returns the filter's description.
    pub fn filter(&self) -> BpfFilter {
        // SAFETY: The union has no other member, and all its bytes are initialised.
        BpfFilter(unsafe { self.0.__bindgen_anon_1.filter })
    }
}

/// An entry of a list of restrictions: `struct io_uring_restriction`, 16 bytes.
///
/// Its reserved fields are ignored.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RestrictionEntry(bindings::io_uring_restriction);

// SAFETY: All fields are integers, or a union of bytes.
unsafe impl FromBytes for RestrictionEntry {}

impl RestrictionEntry {
    /// Returns the kind of the entry, `IORING_RESTRICTION_*`, which is not validated.
    pub fn kind(&self) -> u16 {
        self.0.opcode
    }

    /// Returns the opcode or the flags that the entry allows or requires, which are not validated.
    pub fn value(&self) -> u8 {
        // SAFETY: Each member of the union is one byte, which is initialised.
        unsafe { self.0.__bindgen_anon_1.sqe_op }
    }
}

/// The header of a list of restrictions for a task: `struct io_uring_task_restriction` without its
/// entries, 16 bytes.
#[repr(transparent)]
pub struct TaskRestrictionHeader(bindings::io_uring_task_restriction);

// SAFETY: All fields are integers, for which every bit pattern is valid. The entries that follow
// are not part of the structure.
unsafe impl FromBytes for TaskRestrictionHeader {}

impl TaskRestrictionHeader {
    /// Returns the number of entries that follow, which is not validated.
    pub fn entries(&self) -> u16 {
        self.0.nr_res
    }

    /// Returns whether the reserved fields and the flags are zero. No flags are defined so far.
    pub fn reserved_is_zero(&self) -> bool {
        self.0.flags == 0 && self.0.resv == [0; 3]
    }
}
