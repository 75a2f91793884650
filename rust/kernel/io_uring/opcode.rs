// SPDX-License-Identifier: GPL-2.0

//! Request opcodes, their properties in io_uring, and tables indexed by them.
//!
//! C headers: [`include/uapi/linux/io_uring.h`](srctree/include/uapi/linux/io_uring.h),
//! [`io_uring/opdef.h`](srctree/io_uring/opdef.h)

use crate::{
    bindings,
    nospec,
    prelude::*, //
};
use core::ops::{
    Index,
    IndexMut, //
};

/// An opcode that this kernel supports: one of `IORING_OP_*`.
///
/// # Invariants
///
/// The value is less than `IORING_OP_LAST`.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::Opcode;
///
/// assert_eq!(Opcode::new(0).map(|nop| nop.index()), Some(0));
/// assert!(Opcode::new(u32::MAX).is_none());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opcode(u8);

// The opcode field of an SQE has one byte.
const _: () = assert!(super::OP_LAST <= 256);

impl Opcode {
    /// The number of opcodes: `IORING_OP_LAST`.
    pub const COUNT: usize = super::OP_LAST;

    /// The opcode that creates a socket.
    pub const SOCKET: Self = Self::known(bindings::io_uring_op_IORING_OP_SOCKET);
    /// The opcode that connects a socket.
    pub const CONNECT: Self = Self::known(bindings::io_uring_op_IORING_OP_CONNECT);
    /// The opcode that opens a file.
    pub const OPENAT: Self = Self::known(bindings::io_uring_op_IORING_OP_OPENAT);
    /// The opcode that opens a file with a `struct open_how`.
    pub const OPENAT2: Self = Self::known(bindings::io_uring_op_IORING_OP_OPENAT2);

    /// The opcode that sends a message to a ring.
    pub const MSG_RING: Self = Self::known(bindings::io_uring_op_IORING_OP_MSG_RING);

    /// Converts an opcode of the kernel's own list.
    const fn known(opcode: u32) -> Self {
        assert!((opcode as usize) < super::OP_LAST);

        // INVARIANT: The opcode was just checked.
        Self(opcode as u8)
    }

    /// Validates an opcode that came from user space. Returns [`None`] if there is no such opcode.
    ///
    /// The result is clamped against speculative execution, so that it is safe as an index.
    #[inline]
    pub fn new(opcode: u32) -> Option<Self> {
        let index = nospec::checked_index(usize::try_from(opcode).ok()?, Self::COUNT)?;

        // INVARIANT: The index was just checked.
        Some(Self(u8::try_from(index).ok()?))
    }

    /// Converts an opcode that was validated before.
    ///
    /// # Safety
    ///
    /// `opcode` must be less than `IORING_OP_LAST`.
    #[inline]
    pub(super) unsafe fn new_unchecked(opcode: u8) -> Self {
        // INVARIANT: The caller guarantees that the opcode is less than `IORING_OP_LAST`.
        Self(opcode)
    }

    /// Returns all opcodes in ascending order.
    pub fn all() -> impl Iterator<Item = Self> {
        // INVARIANT: There are `COUNT` items, so the last one is `COUNT - 1`. By the assertion
        // above, they all fit in a `u8`.
        (0..=u8::MAX).take(Self::COUNT).map(Self)
    }

    /// Returns the opcode as a number less than [`Opcode::COUNT`].
    #[inline]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Returns the opcode as the byte in an SQE.
    #[inline]
    pub fn as_u8(self) -> u8 {
        self.0
    }

    /// Returns the name of the opcode, without `IORING_OP_`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::io_uring::Opcode;
    ///
    /// assert_eq!(Opcode::OPENAT.name(), c"OPENAT");
    /// ```
    pub fn name(self) -> &'static CStr {
        // SAFETY: The function takes any number, and returns a string literal.
        unsafe { CStr::from_char_ptr(bindings::io_uring_get_opcode(self.0)) }
    }

    /// Returns this opcode's entry in the table of issue definitions.
    #[inline]
    pub(super) fn issue_def(self) -> &'static bindings::io_issue_def {
        let table = (&raw const bindings::io_issue_defs).cast::<bindings::io_issue_def>();

        // SAFETY:
        // - `io_issue_defs` is a constant table of `IORING_OP_LAST` entries, which
        //   `io_uring_optable_init` asserts.
        // - By the type invariants, the index is below that.
        unsafe { &*table.add(self.index()) }
    }

    /// Returns the size in bytes of the opcode's own arguments that filters can see. This is at
    /// most 24, and zero if they can see none.
    #[inline]
    pub fn pdu_size(self) -> u16 {
        self.issue_def().filter_pdu_size
    }
}

/// A table with one `T` per opcode.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::{Opcode, PerOpcode};
///
/// let table = KBox::init(PerOpcode::init(|op| op.as_u8()), GFP_KERNEL)?;
/// assert!(Opcode::all().all(|op| table[op] == op.as_u8()));
/// # Ok::<(), Error>(())
/// ```
#[repr(transparent)]
pub struct PerOpcode<T>([T; Opcode::COUNT]);

impl<T> PerOpcode<T> {
    /// Initialises a table in place by calling `make` for each opcode.
    pub fn init(mut make: impl FnMut(Opcode) -> T) -> impl Init<Self> {
        let array = pin_init::init_array_from_fn::<_, { Opcode::COUNT }, T, _>(move |index| {
            // INVARIANT: The indices of an array of `COUNT` elements are less than `COUNT`.
            make(Opcode(index as u8))
        });
        let init = move |slot: *mut Self| {
            // SAFETY: `slot` is valid for writes of `Self`, which is a transparent wrapper of the
            // array, and is treated as uninitialised on failure.
            unsafe { array.__init(slot.cast::<[T; Opcode::COUNT]>()) }
        };

        // SAFETY: `init` initialises all of `Self` or returns an error, and it never returns one.
        unsafe { pin_init::init_from_closure(init) }
    }

    /// Returns references to all elements, in the order of their opcodes.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter()
    }

    /// Returns mutable references to all elements, in the order of their opcodes.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.0.iter_mut()
    }
}

impl<T> Index<Opcode> for PerOpcode<T> {
    type Output = T;

    #[inline]
    fn index(&self, opcode: Opcode) -> &T {
        // SAFETY: By the invariants of `Opcode`, the index is less than the length of the array.
        unsafe { self.0.get_unchecked(opcode.index()) }
    }
}

impl<T> IndexMut<Opcode> for PerOpcode<T> {
    #[inline]
    fn index_mut(&mut self, opcode: Opcode) -> &mut T {
        // SAFETY: By the invariants of `Opcode`, the index is less than the length of the array.
        unsafe { self.0.get_unchecked_mut(opcode.index()) }
    }
}
