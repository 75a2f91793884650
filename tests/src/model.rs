// SPDX-License-Identifier: GPL-2.0
//! A model of filter programs: an interpreter of classic BPF as io_uring runs it, and
//! random valid programs on which to compare the kernel with it.

use fastrand::Rng;
use libc::{
    BPF_ADD, BPF_ALU, BPF_AND, BPF_DIV, BPF_IMM, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_JSET,
    BPF_K, BPF_LD, BPF_LDX, BPF_LEN, BPF_LSH, BPF_MEM, BPF_MUL, BPF_NEG, BPF_OR, BPF_RET, BPF_RSH,
    BPF_ST, BPF_STX, BPF_SUB, BPF_TXA, BPF_X, BPF_XOR,
};

use crate::bpf::{self, BPF_A, CONTEXT_SIZE, Insn, Program};

/// The 40-byte context as words of 32 bits.
pub type Context = [u32; 10];

/// Number of scratch slots.
const SLOTS: u32 = 16;

/// The ALU operations with an operand that the kernel admits.
pub const ALU_OPS: [u32; 9] = [
    BPF_ADD, BPF_SUB, BPF_MUL, BPF_DIV, BPF_AND, BPF_OR, BPF_XOR, BPF_LSH, BPF_RSH,
];

/// The conditional jumps.
const JUMPS: [u32; 4] = [BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET];

/// Runs a valid program on a context. Returns its verdict.
pub fn run(program: &[Insn], context: &Context) -> u32 {
    let (mut a, mut x) = (0u32, 0u32);
    let mut slots = [0u32; SLOTS as usize];
    let mut pc = 0;
    loop {
        let Insn { code, jt, jf, k } = program[pc];
        let code = u32::from(code);
        let operand = if code & BPF_X != 0 { x } else { k };
        pc += 1;
        match code & 7 {
            BPF_LD | BPF_LDX => {
                let value = match code & 0xe0 {
                    BPF_IMM => k,
                    BPF_LEN => CONTEXT_SIZE,
                    BPF_MEM => slots[k as usize],
                    _ => context[k as usize / 4],
                };
                *(if code & 7 == BPF_LD { &mut a } else { &mut x }) = value;
            }
            BPF_ST => slots[k as usize] = a,
            BPF_STX => slots[k as usize] = x,
            BPF_ALU if code & 0xf0 == BPF_DIV && operand == 0 => return 0,
            BPF_ALU => a = alu(code & 0xf0, a, operand),
            BPF_JMP => {
                let jump = match code & 0xf0 {
                    BPF_JEQ => a == operand,
                    BPF_JGT => a > operand,
                    BPF_JGE => a >= operand,
                    BPF_JSET => a & operand != 0,
                    _ => {
                        pc += k as usize;
                        continue;
                    }
                };
                pc += usize::from(if jump { jt } else { jf });
            }
            BPF_RET => return if code & 0x18 == BPF_A { a } else { k },
            _ if code & 0xf8 == BPF_TXA => a = x,
            _ => x = a,
        }
    }
}

fn alu(op: u32, a: u32, operand: u32) -> u32 {
    match op {
        BPF_ADD => a.wrapping_add(operand),
        BPF_SUB => a.wrapping_sub(operand),
        BPF_MUL => a.wrapping_mul(operand),
        BPF_DIV => a / operand,
        BPF_AND => a & operand,
        BPF_OR => a | operand,
        BPF_XOR => a ^ operand,
        // A shift by X counts modulo 32.
        BPF_LSH => a.wrapping_shl(operand),
        BPF_RSH => a.wrapping_shr(operand),
        _ => a.wrapping_neg(),
    }
}

/// Builds a random valid program. It fills every slot, then loads, computes and jumps
/// forward at random, and returns one bit of the result.
pub fn random_program(rng: &mut Rng) -> Program {
    let body = rng.usize(1..60);
    let mut program = Vec::new();
    for slot in 0..SLOTS {
        program.push(random_load(rng));
        program.push(bpf::st(slot));
    }
    let end = program.len() + body;
    while program.len() < end {
        let left = (end - program.len() - 1) as u32;
        program.push(random_insn(rng, left));
    }
    // A single bit makes both verdicts likely.
    program.push(bpf::alu(BPF_RSH, rng.u32(0..32)));
    program.push(bpf::alu(BPF_AND, 1));
    program.push(bpf::ret_a());
    program
}

fn random_load(rng: &mut Rng) -> Insn {
    match rng.u32(0..4) {
        0 => bpf::ld_imm(rng.u32(..)),
        1 => bpf::ld_len(),
        _ => bpf::ld(4 * rng.u32(0..CONTEXT_SIZE / 4)),
    }
}

fn random_insn(rng: &mut Rng, left: u32) -> Insn {
    let slot = rng.u32(0..SLOTS);
    match rng.u32(0..14) {
        0 | 1 => random_load(rng),
        2 => bpf::ldx_imm(rng.u32(..)),
        3 => bpf::ldx_len(),
        4 => bpf::ld_mem(slot),
        5 => bpf::ldx_mem(slot),
        6 => bpf::st(slot),
        7 => bpf::stx(slot),
        8 => bpf::tax(),
        9 => bpf::txa(),
        10 => {
            if rng.bool() {
                bpf::insn(BPF_ALU | BPF_NEG, 0, 0, 0)
            } else {
                bpf::alu_x(*rng.choice(&ALU_OPS).expect("not empty"))
            }
        }
        11 | 12 => {
            let op = *rng.choice(&ALU_OPS).expect("not empty");
            bpf::alu(
                op,
                match op {
                    BPF_LSH | BPF_RSH => rng.u32(0..32),
                    BPF_DIV => rng.u32(1..),
                    _ => rng.u32(..),
                },
            )
        }
        _ if rng.u32(0..8) == 0 => bpf::ja(rng.u32(0..=left)),
        _ => {
            let op = *rng.choice(&JUMPS).expect("not empty");
            let reach = left.min(255) as u8;
            let source = if rng.bool() { BPF_X } else { BPF_K };
            let (jt, jf) = (rng.u8(0..=reach), rng.u8(0..=reach));
            bpf::insn(BPF_JMP | op | source, jt, jf, rng.u32(..))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTEXT: Context = [5, 6, 0x0102_0304, 0, 9, 0, 0, 0, 0, 0xffff_ffff];

    #[test]
    fn all_words_must_match() {
        let both = |a, b| run(&bpf::allow_if_all(&[(0, a), (4, b)]), &CONTEXT);
        assert_eq!([both(5, 6), both(5, 7), both(4, 6)], [1, 0, 0]);
    }

    #[test]
    fn selected_bit_is_the_verdict() {
        let mut context = CONTEXT;
        let mut word = 0;
        for bit in 0..32 {
            context[0] = bit;
            context[1] = 2;
            word |= run(&bpf::read_bit(), &context) << bit;
        }
        assert_eq!(word, CONTEXT[2]);
    }

    #[test]
    fn programs_have_the_requested_length_and_verdict() {
        for len in [4, 5, 4096] {
            assert_eq!(bpf::long(len, 1).len(), len);
            assert_eq!(run(&bpf::long(len, 0), &CONTEXT), 0);
            assert_eq!(run(&bpf::long(len, 1), &CONTEXT), 1);
        }
        assert_eq!(run(&bpf::filler(1), &CONTEXT), 1);
        assert_eq!(run(&bpf::divide_by_zero(), &CONTEXT), 0);
    }

    #[test]
    fn random_programs_end() {
        let mut rng = Rng::with_seed(1);
        for _ in 0..1000 {
            let program = random_program(&mut rng);
            assert!(run(&program, &CONTEXT) <= 1 && program.len() < 4096);
        }
    }
}
