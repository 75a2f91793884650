// SPDX-License-Identifier: GPL-2.0

//! The words of the context that filters see, and where a program finds them.
//!
//! A program that runs on a [`Request`] loads the words from the fields of the request. Only the
//! address of a request to connect must be copied to a [`FilterContext`] first, because it is not
//! in the request.
//!
//! C headers: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h),
//! [`include/uapi/linux/io_uring/bpf_filter.h`](srctree/include/uapi/linux/io_uring/bpf_filter.h),
//! [`io_uring/net.h`](srctree/io_uring/net.h),
//! [`io_uring/openclose.h`](srctree/io_uring/openclose.h)

use super::{
    request::{
        FilterContext,
        Request, //
    },
    Opcode, //
};
use crate::{
    bindings,
    bpf::{
        Field,
        Load,
        Loads, //
    }, //
};
use core::mem::{
    offset_of,
    size_of,
    size_of_val, //
};

/// The number of words of a context.
const WORDS: usize = FilterContext::SIZE as usize / size_of::<u32>();

/// The index of the word with the opcode, the flags of the SQE and the size of the arguments.
const OPCODE_WORD: usize = offset_of!(bindings::io_uring_bpf_ctx, opcode) / size_of::<u32>();

/// The index of the first word of the arguments.
const ARGUMENTS: usize =
    offset_of!(bindings::io_uring_bpf_ctx, __bindgen_anon_1) / size_of::<u32>();

/// The way to load each word of a context.
type Words = [Load; WORDS];

/// Replaces `count` words from number `first` on by those in the object at `offset`.
const fn with(mut words: Words, first: usize, count: usize, offset: usize) -> Words {
    let mut index = 0;

    while index < count {
        words[first + index] = Load::Field(Field::word(offset + index * size_of::<u32>()));
        index += 1;
    }
    words
}

/// The words of a context in memory.
const CONTEXT: Words = with([Load::Constant(0); WORDS], 0, WORDS, 0);

/// The words of a request without arguments, except for the one with the opcode.
const PLAIN: Words = with(
    [Load::Constant(0); WORDS],
    0,
    2,
    offset_of!(bindings::io_kiocb, cqe) + offset_of!(bindings::io_cqe, user_data),
);

/// The offset of the structure that `prep` fills: `io_kiocb_to_cmd()`.
const CMD: usize = offset_of!(bindings::io_kiocb, __bindgen_anon_1);

/// The words of a request to create a socket. The type comes without the flags that user space may
/// combine with it.
const SOCKET: Words = {
    let domain = CMD + offset_of!(bindings::io_socket, domain);
    let socket_type = CMD + offset_of!(bindings::io_socket, type_);
    let protocol = CMD + offset_of!(bindings::io_socket, protocol);
    let mut words = with(PLAIN, ARGUMENTS, 1, domain);

    words[ARGUMENTS + 1] = Load::Field(Field::word(socket_type).masked(bindings::SOCK_TYPE_MASK));
    with(words, ARGUMENTS + 2, 1, protocol)
};

/// The words of a request to open a file: flags, mode and flags of the lookup, 64 bits each.
const OPEN: Words = {
    let how = CMD + offset_of!(bindings::io_open, how);
    let words = with(
        PLAIN,
        ARGUMENTS,
        2,
        how + offset_of!(bindings::open_how, flags),
    );
    let words = with(
        words,
        ARGUMENTS + 2,
        2,
        how + offset_of!(bindings::open_how, mode),
    );

    with(
        words,
        ARGUMENTS + 4,
        2,
        how + offset_of!(bindings::open_how, resolve),
    )
};

/// The flags of the SQE: the lowest byte of those of the request.
const SQE_FLAGS: Field = {
    let flags = offset_of!(bindings::io_kiocb, flags);
    let lowest = if cfg!(target_endian = "little") { 0 } else { 7 };

    Field::byte(flags + lowest).at_byte(offset_of!(bindings::io_uring_bpf_ctx, sqe_flags))
};

// The fields are in the request, and as long as the words that are loaded from them.
const _: () = {
    const SOCKET: bindings::io_socket = pin_init::zeroed();
    const HOW: bindings::open_how = pin_init::zeroed();

    assert!(size_of::<bindings::io_socket>() <= size_of::<bindings::io_cmd_data>());
    assert!(size_of_val(&SOCKET.domain) == 4);
    assert!(size_of_val(&SOCKET.type_) == 4);
    assert!(size_of_val(&SOCKET.protocol) == 4);

    assert!(size_of::<bindings::io_open>() <= size_of::<bindings::io_cmd_data>());
    assert!(size_of_val(&HOW.flags) == 8);
    assert!(size_of_val(&HOW.mode) == 8);
    assert!(size_of_val(&HOW.resolve) == 8);

    // The lowest byte of a request's flags has the flags of its SQE alone.
    assert!(bindings::REQ_F_FAIL_BIT == 8);
};

/// Returns the index of the word at `offset`, which must be a multiple of four.
fn index(offset: u32) -> Option<usize> {
    let offset = usize::try_from(offset).ok()?;

    offset
        .is_multiple_of(size_of::<u32>())
        .then_some(offset / size_of::<u32>())
}

// SAFETY: The words are aligned and inside the structure, all of whose bytes are initialised, as it
// implements `AsBytes`. Nobody can write to it while there is a reference.
unsafe impl Loads for FilterContext {
    type Layout = ();

    fn load(_layout: (), offset: u32) -> Option<Load> {
        CONTEXT.get(index(offset)?).copied()
    }
}

// SAFETY:
// - The fields are inside `struct io_kiocb`: the ones of arguments are in its `cmd`, which is large
//   enough, as is asserted above. They are aligned, as their types are.
// - By the type invariants of `Request`, nobody writes to the request while there is a reference,
//   and the arguments were filled by `prep` if the opcode is the one of the request.
unsafe impl Loads for Request {
    /// The opcode of the request. On a request with another opcode, the words of arguments have any
    /// value.
    type Layout = Opcode;

    fn load(opcode: Opcode, offset: u32) -> Option<Load> {
        let index = index(offset)?;
        let words = match opcode {
            Opcode::SOCKET => &SOCKET,
            Opcode::OPENAT | Opcode::OPENAT2 => &OPEN,
            // The address is elsewhere.
            Opcode::CONNECT if index >= ARGUMENTS => return None,
            _ => &PLAIN,
        };

        if index == OPCODE_WORD {
            let [size, _] = opcode.pdu_size().to_le_bytes();
            let same = u32::from_ne_bytes([opcode.as_u8(), 0, size, 0]);

            return Some(Load::Field(SQE_FLAGS.with(same)));
        }
        words.get(index).copied()
    }
}
