// SPDX-License-Identifier: GPL-2.0

//! Instructions of classic BPF, and the parts that their codes consist of.
//!
//! This module uses only `core`, so that code that works on instructions can also be built and
//! tested outside the kernel.
//!
//! C header: [`include/uapi/linux/filter.h`](srctree/include/uapi/linux/filter.h)

/// An instruction: `struct sock_filter`, 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Insn {
    /// The code: class, size or operation, and mode or operand.
    pub code: u16,
    /// The number of instructions that a conditional jump skips if its condition holds.
    pub jt: u8,
    /// The number of instructions that it skips otherwise.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

impl Insn {
    /// Creates an instruction that is not a conditional jump.
    pub const fn new(code: u16, k: u32) -> Self {
        Self::jump(code, 0, 0, k)
    }

    /// Creates a conditional jump.
    pub const fn jump(code: u16, jt: u8, jf: u8, k: u32) -> Self {
        Self { code, jt, jf, k }
    }

    /// Returns the instruction's class: [`LD`] to [`MISC`].
    pub const fn class(&self) -> u16 {
        self.code & 0x07
    }

    /// Returns the operation of an instruction of class [`ALU`] or [`JMP`].
    pub const fn op(&self) -> u16 {
        self.code & 0xf0
    }

    /// Returns whether the second operand of an [`ALU`] or [`JMP`] instruction is X rather than the
    /// constant.
    pub const fn has_x(&self) -> bool {
        self.code & X != 0
    }
}

/// Class: load into A.
pub const LD: u16 = 0x00;
/// Class: load into X.
pub const LDX: u16 = 0x01;
/// Class: store A.
pub const ST: u16 = 0x02;
/// Class: store X.
pub const STX: u16 = 0x03;
/// Class: compute on A.
pub const ALU: u16 = 0x04;
/// Class: jump.
pub const JMP: u16 = 0x05;
/// Class: return, which ends the program.
pub const RET: u16 = 0x06;
/// Class: copy between A and X.
pub const MISC: u16 = 0x07;

/// Mode of a load: the constant. All codes here load words, the size whose bits are `0x00`.
pub const IMM: u16 = 0x00;
/// Mode of a load: a word of the packet, or of the context that takes its place.
pub const ABS: u16 = 0x20;
/// Mode of a load: a scratch word.
pub const MEM: u16 = 0x60;
/// Mode of a load: the packet's length.
pub const LEN: u16 = 0x80;

/// Operand: the constant.
pub const K: u16 = 0x00;
/// Operand: X.
pub const X: u16 = 0x08;
/// Operand of a return: A.
pub const A: u16 = 0x10;

/// Operation: A + operand.
pub const ADD: u16 = 0x00;
/// Operation: A - operand.
pub const SUB: u16 = 0x10;
/// Operation: A * operand.
pub const MUL: u16 = 0x20;
/// Operation: A / operand. A division by zero ends the program with zero.
pub const DIV: u16 = 0x30;
/// Operation: A | operand.
pub const OR: u16 = 0x40;
/// Operation: A & operand.
pub const AND: u16 = 0x50;
/// Operation: A << operand. Only the low five bits of the operand count.
pub const LSH: u16 = 0x60;
/// Operation: A >> operand. Only the low five bits of the operand count.
pub const RSH: u16 = 0x70;
/// Operation: -A.
pub const NEG: u16 = 0x80;
/// Operation: the remainder of A / operand. A division by zero ends the program with zero.
pub const MOD: u16 = 0x90;
/// Operation: A ^ operand.
pub const XOR: u16 = 0xa0;

/// Jump: always, over as many instructions as the constant says.
pub const JA: u16 = 0x00;
/// Jump: if A == operand.
pub const JEQ: u16 = 0x10;
/// Jump: if A > operand.
pub const JGT: u16 = 0x20;
/// Jump: if A >= operand.
pub const JGE: u16 = 0x30;
/// Jump: if A & operand is not zero.
pub const JSET: u16 = 0x40;

/// Copy: A to X.
pub const TAX: u16 = 0x00;
/// Copy: X to A.
pub const TXA: u16 = 0x80;

/// Loads a word of the context into A.
pub const LD_ABS: u16 = LD | ABS;
/// Loads the context's length into A.
pub const LD_LEN: u16 = LD | LEN;
/// Loads the context's length into X.
pub const LDX_LEN: u16 = LDX | LEN;
/// Loads a constant into A.
pub const LD_IMM: u16 = LD | IMM;
/// Loads a constant into X.
pub const LDX_IMM: u16 = LDX | IMM;
/// Loads a scratch word into A.
pub const LD_MEM: u16 = LD | MEM;
/// Loads a scratch word into X.
pub const LDX_MEM: u16 = LDX | MEM;
/// Returns a constant, which ends the program.
pub const RET_K: u16 = RET | K;
/// Returns A, which ends the program.
pub const RET_A: u16 = RET | A;
/// Jumps always.
pub const JMP_JA: u16 = JMP | JA;
/// Jumps if A equals the constant.
pub const JMP_JEQ_K: u16 = JMP | JEQ | K;
/// Copies A to X.
pub const MISC_TAX: u16 = MISC | TAX;
/// Copies X to A.
pub const MISC_TXA: u16 = MISC | TXA;
