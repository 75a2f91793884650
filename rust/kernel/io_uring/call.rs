// SPDX-License-Identifier: GPL-2.0

//! System calls that filters can deny: registrations by their opcode, and setting up a ring.
//!
//! C headers: [`include/uapi/linux/io_uring.h`](srctree/include/uapi/linux/io_uring.h),
//! [`include/uapi/linux/io_uring/bpf_filter.h`](srctree/include/uapi/linux/io_uring/bpf_filter.h)

use super::{
    request::FilterContext,
    REGISTER_LAST, //
};
use crate::{
    bindings,
    nospec, //
};

/// A call that filters can deny: `io_uring_register()` with an opcode, or `io_uring_setup()`.
///
/// # Invariants
///
/// The value is less than [`Call::COUNT`]. It is an opcode of `io_uring_register()`, or the next
/// number.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::{call::Call, REGISTER_LAST};
///
/// let files = Call::register(2).ok_or(EINVAL)?;
/// assert_eq!((files.index(), files.opcode(), files.pdu_size()), (2, 2, 4));
/// assert_eq!((Call::SETUP.opcode(), Call::SETUP.pdu_size()), (0, 20));
/// assert!(Call::register(REGISTER_LAST as u32).is_none());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call(u8);

const _: () = assert!(Call::COUNT <= 256);

impl Call {
    /// The number of calls.
    pub const COUNT: usize = REGISTER_LAST + 1;

    /// The call that sets up a ring.
    // INVARIANT: The number is the one after the opcodes.
    pub const SETUP: Self = Self(REGISTER_LAST as u8);

    /// Validates an opcode of `io_uring_register()`. Returns [`None`] if there is no such opcode.
    ///
    /// The result is clamped against speculative execution.
    pub fn register(opcode: u32) -> Option<Self> {
        let index = nospec::checked_index(usize::try_from(opcode).ok()?, REGISTER_LAST)?;

        // INVARIANT: The index was just checked.
        Some(Self(u8::try_from(index).ok()?))
    }

    /// Returns the call as a number less than [`Call::COUNT`].
    pub fn index(self) -> usize {
        usize::from(self.0)
    }

    /// Returns the opcode that filters see: zero for a setup.
    pub fn opcode(self) -> u8 {
        if self == Self::SETUP {
            0
        } else {
            self.0
        }
    }

    /// Returns the size in bytes of the arguments that filters see.
    pub fn pdu_size(self) -> u16 {
        if self == Self::SETUP {
            20
        } else {
            4
        }
    }
}

/// The arguments of `io_uring_setup()` that filters see, as the caller gives them.
#[derive(Clone, Copy, Debug)]
pub struct SetupArguments {
    /// The flags, `IORING_SETUP_*`.
    pub flags: u32,
    /// The number of entries of the submission queue.
    pub entries: u32,
    /// The number of entries of the completion queue.
    pub cq_entries: u32,
    /// The number of milliseconds after which the thread that polls goes to sleep.
    pub sq_thread_idle: u32,
    /// The CPU that this thread is bound to.
    pub sq_thread_cpu: u32,
}

impl FilterContext {
    /// Creates the context of a registration `call` with `nr_args`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     io_uring::{call::Call, request::FilterContext},
    ///     transmute::AsBytes, //
    /// };
    ///
    /// let context = FilterContext::for_register(Call::register(7).ok_or(EINVAL)?, 0x10203040);
    /// let bytes = context.as_bytes();
    ///
    /// assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 0, 7, 0, 4, 0, 0, 0, 0, 0]);
    /// assert_eq!(bytes[16..20], 0x10203040u32.to_ne_bytes());
    /// assert!(bytes[20..].iter().all(|&byte| byte == 0));
    /// # Ok::<(), Error>(())
    /// ```
    pub fn for_register(call: Call, nr_args: u32) -> Self {
        let mut context = empty_context(call);

        context.__bindgen_anon_1.registration.nr_args = nr_args;
        Self::from_raw(context)
    }

    /// Creates the context of a setup with `arguments`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     io_uring::{call::SetupArguments, request::FilterContext},
    ///     transmute::AsBytes, //
    /// };
    ///
    /// let context = FilterContext::for_setup(&SetupArguments {
    ///     flags: 1,
    ///     entries: 2,
    ///     cq_entries: 3,
    ///     sq_thread_idle: 4,
    ///     sq_thread_cpu: 5,
    /// });
    /// let bytes = context.as_bytes();
    ///
    /// assert_eq!(bytes[..16], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 20, 0, 0, 0, 0, 0]);
    /// for (word, value) in bytes[16..].chunks(4).zip([1u32, 2, 3, 4, 5, 0]) {
    ///     assert_eq!(word, value.to_ne_bytes());
    /// }
    /// ```
    pub fn for_setup(arguments: &SetupArguments) -> Self {
        let mut context = empty_context(Call::SETUP);
        let setup = bindings::io_uring_bpf_ctx__bindgen_ty_1__bindgen_ty_5 {
            flags: arguments.flags,
            entries: arguments.entries,
            cq_entries: arguments.cq_entries,
            sq_thread_idle: arguments.sq_thread_idle,
            sq_thread_cpu: arguments.sq_thread_cpu,
        };

        context.__bindgen_anon_1.setup = setup;
        Self::from_raw(context)
    }
}

/// Creates the context of `call`, without its arguments. All other bytes are zero.
fn empty_context(call: Call) -> bindings::io_uring_bpf_ctx {
    let mut context: bindings::io_uring_bpf_ctx = pin_init::zeroed();

    context.opcode = call.opcode();
    // This is at most 20.
    context.pdu_size = call.pdu_size() as u8;
    context
}
