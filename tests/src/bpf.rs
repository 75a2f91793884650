// SPDX-License-Identifier: GPL-2.0
//! A small assembler for classic BPF, and the programs that several tests use.
//!
//! A program reads the 40-byte `struct io_uring_bpf_ctx` in words of 32 bits.
//! It allows the request when it returns anything but 0.

use libc::{
    BPF_ABS, BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JA, BPF_JEQ, BPF_JMP, BPF_JSET,
    BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_MEM, BPF_MISC, BPF_RET, BPF_RSH, BPF_ST, BPF_STX, BPF_TAX,
    BPF_TXA, BPF_W, BPF_X,
};

/// One instruction, laid out as the kernel reads it.
pub type Insn = libc::sock_filter;
/// A classic BPF program.
pub type Program = Vec<Insn>;

/// The return value "from A", which libc leaves out.
pub const BPF_A: u32 = 0x10;

/// Offset of the low half of `user_data` (little endian).
pub const USER_DATA_LO: u32 = 0;
/// Offset of the high half of `user_data` (little endian).
pub const USER_DATA_HI: u32 = 4;
/// Offset of the word that holds opcode, SQE flags and pdu size.
pub const OPCODE_WORD: u32 = 8;
/// Offset of the first word of the opcode's own data.
pub const PDU: u32 = 16;
/// Size of the whole context.
pub const CONTEXT_SIZE: u32 = 40;

/// Builds any instruction.
pub const fn insn(code: u32, jt: u8, jf: u8, k: u32) -> Insn {
    Insn {
        code: code as u16,
        jt,
        jf,
        k,
    }
}

/// Loads the word of the context at `offset` into A.
pub const fn ld(offset: u32) -> Insn {
    insn(BPF_LD | BPF_W | BPF_ABS, 0, 0, offset)
}

/// Loads `k` into A.
pub const fn ld_imm(k: u32) -> Insn {
    insn(BPF_LD | BPF_IMM, 0, 0, k)
}

/// Loads `k` into X.
pub const fn ldx_imm(k: u32) -> Insn {
    insn(BPF_LDX | BPF_IMM, 0, 0, k)
}

/// Loads the size of the context into A.
pub const fn ld_len() -> Insn {
    insn(BPF_LD | BPF_W | BPF_LEN, 0, 0, 0)
}

/// Loads the size of the context into X.
pub const fn ldx_len() -> Insn {
    insn(BPF_LDX | BPF_W | BPF_LEN, 0, 0, 0)
}

/// Loads M\[slot\] into A.
pub const fn ld_mem(slot: u32) -> Insn {
    insn(BPF_LD | BPF_MEM, 0, 0, slot)
}

/// Loads M\[slot\] into X.
pub const fn ldx_mem(slot: u32) -> Insn {
    insn(BPF_LDX | BPF_MEM, 0, 0, slot)
}

/// Stores A in M\[slot\].
pub const fn st(slot: u32) -> Insn {
    insn(BPF_ST, 0, 0, slot)
}

/// Stores X in M\[slot\].
pub const fn stx(slot: u32) -> Insn {
    insn(BPF_STX, 0, 0, slot)
}

/// Computes A = A `op` `k`.
pub const fn alu(op: u32, k: u32) -> Insn {
    insn(BPF_ALU | op | BPF_K, 0, 0, k)
}

/// Computes A = A `op` X.
pub const fn alu_x(op: u32) -> Insn {
    insn(BPF_ALU | op | BPF_X, 0, 0, 0)
}

/// Copies A to X.
pub const fn tax() -> Insn {
    insn(BPF_MISC | BPF_TAX, 0, 0, 0)
}

/// Copies X to A.
pub const fn txa() -> Insn {
    insn(BPF_MISC | BPF_TXA, 0, 0, 0)
}

/// Skips the next `count` instructions.
pub const fn ja(count: u32) -> Insn {
    insn(BPF_JMP | BPF_JA, 0, 0, count)
}

/// Skips `jt` instructions if A == `k`, else `jf`.
pub const fn jeq(k: u32, jt: u8, jf: u8) -> Insn {
    insn(BPF_JMP | BPF_JEQ | BPF_K, jt, jf, k)
}

/// Skips `jt` instructions if A & `k`, else `jf`.
pub const fn jset(k: u32, jt: u8, jf: u8) -> Insn {
    insn(BPF_JMP | BPF_JSET | BPF_K, jt, jf, k)
}

/// Ends with the verdict `k`.
pub const fn ret(k: u32) -> Insn {
    insn(BPF_RET | BPF_K, 0, 0, k)
}

/// Ends with the verdict A.
pub const fn ret_a() -> Insn {
    insn(BPF_RET | BPF_A, 0, 0, 0)
}

/// Allows everything.
pub fn allow() -> Program {
    vec![ret(1)]
}

/// Denies everything.
pub fn deny() -> Program {
    vec![ret(0)]
}

/// Allows requests whose word at `offset` is `value`, denies the others.
pub fn allow_if(offset: u32, value: u32) -> Program {
    vec![ld(offset), jeq(value, 0, 1), ret(1), ret(0)]
}

/// Denies requests whose word at `offset` is `value`, allows the others.
pub fn deny_if(offset: u32, value: u32) -> Program {
    vec![ld(offset), jeq(value, 0, 1), ret(0), ret(1)]
}

/// Allows requests whose words are all as listed.
pub fn allow_if_all(words: &[(u32, u32)]) -> Program {
    let mut program: Program = words
        .iter()
        .enumerate()
        .flat_map(|(i, &(offset, value))| {
            let to_deny = 2 * (words.len() - 1 - i) + 1;
            [ld(offset), jeq(value, 0, to_deny as u8)]
        })
        .collect();
    program.extend([ret(1), ret(0)]);
    program
}

/// The low half of a `user_data` that no other test uses.
const UNUSED: u32 = 0x5eed_f00d;

/// Builds a program of exactly `len` instructions, all but one of which run, that
/// returns `verdict`. Every instruction depends on `user_data`, one value of which gets
/// the other verdict, so that the kernel cannot know the verdict without running the
/// program.
pub fn long(len: usize, verdict: u32) -> Program {
    assert!(len >= 4, "too short for a load, a branch and two verdicts");
    let addends = (0..len - 4).map(|i| i as u32 | 1);
    let sum = addends.clone().fold(UNUSED, u32::wrapping_add);
    let mut program = vec![ld(USER_DATA_LO)];
    program.extend(addends.map(|addend| alu(BPF_ADD, addend)));
    program.push(jeq(sum, 1, 0));
    program.push(ret(verdict));
    program.push(ret(u32::from(verdict == 0)));
    program
}

/// Builds a program of `len` instructions, at least 1, that always allows.
pub fn filler(len: usize) -> Program {
    let mut program = vec![ld_imm(1); len - 1];
    program.push(ret(1));
    program
}

/// Builds a program whose verdict is one bit of the context: the high half of
/// `user_data` selects the word, the low half the bit in it. Words 0 and 1 are
/// `user_data` itself and cannot be selected.
pub fn read_bit() -> Program {
    let words: Vec<u32> = (2..CONTEXT_SIZE / 4).collect();
    let mut program = vec![ld(USER_DATA_LO), tax(), ld(USER_DATA_HI)];
    for &word in &words {
        program.push(jeq(word, 0, 4));
        program.push(ld(word * 4));
        program.push(alu_x(BPF_RSH));
        program.push(alu(BPF_AND, 1));
        program.push(ret_a());
    }
    program.push(ret(0));
    program
}

/// Ends in a division by zero, which the kernel turns into a denial.
pub fn divide_by_zero() -> Program {
    vec![ld_imm(1), alu_x(BPF_DIV), ret(1)]
}
