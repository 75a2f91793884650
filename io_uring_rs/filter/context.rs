// SPDX-License-Identifier: GPL-2.0

//! The layout of the context that filters run on: `struct io_uring_bpf_ctx`.
//!
//! A context begins with `user_data`. The opcode, the flags of the SQE and the size of the payload
//! follow, a byte each, and then padding. The payload comes last.
//!
//! Uses nothing but `core` and the instructions. [`crate::exports`] checks that the offsets are
//! those of C.

use kernel::bpf::insn::{
    self,
    Insn, //
};

/// The offset of the opcode, in bytes.
pub(crate) const OPCODE: usize = 8;

/// The offset of the flags of the SQE.
pub(crate) const SQE_FLAGS: usize = 9;

/// The flags that a request can have. The other bit is always zero.
pub(crate) const VALID_SQE_FLAGS: u8 = 0x7f;

/// The offset of the size of the payload.
pub(crate) const PDU_SIZE: usize = 10;

/// The offset of the payload: the arguments that filters see of a request.
pub(crate) const PAYLOAD: usize = 16;

/// The number of 32-bit words.
pub(crate) const WORDS: usize = 10;

/// Returns whether `insns` load a word of the payload.
pub(crate) fn reads_payload(insns: &[Insn]) -> bool {
    insns
        .iter()
        .any(|insn| insn.code == insn::LD_ABS && insn.k as usize >= PAYLOAD)
}
