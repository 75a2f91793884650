// SPDX-License-Identifier: GPL-2.0
//! Classic BPF outside the kernel: the files of the kernel that need only `core`, and
//! an interpreter to compare them with. A crate that uses this module must name its
//! `bpf` at the root, and must be known as `kernel`.

pub mod judge;
pub mod translated;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../rust/kernel/bpf/insn.rs"]
pub mod insn;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../rust/kernel/bpf/translate.rs"]
pub mod translate;

/// The module in which the kernel's files look for their neighbours.
pub mod bpf {
    pub use super::insn::{self, Insn};

    /// What the kernel does with an instruction, as in the kernel crate.
    #[derive(Debug, PartialEq)]
    pub enum Action {
        Keep,
        LoadConstant(u32),
    }
}

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/filter/check.rs"]
pub mod check;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/filter/context.rs"]
pub mod context;

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/filter/verdict.rs"]
pub mod verdict;

// This is formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/filter/interpreter.rs"]
pub mod interpreter;

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/filter/flags.rs"]
pub mod flags;

// Formatted as the kernel is.
#[rustfmt::skip]
#[path = "../../../../io_uring_rs/filter/fuse.rs"]
pub mod fuse;

use crate::io_uring::sqe_flags::FlagSet;
use insn::Insn;
use verdict::Verdict;

pub type Context = [u8; 40];

/// The codes that a filter may contain, except for loads of the context and of lengths,
/// as the numbers of the uapi.
#[rustfmt::skip]
pub const CODES: [u16; 38] = [
    0x00, 0x01, 0x60, 0x61, 0x02, 0x03, 0x07, 0x87,
    0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, 0x44, 0x4c, 0x54, 0x5c,
    0x64, 0x6c, 0x74, 0x7c, 0x84, 0xa4, 0xac,
    0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d,
    0x06, 0x16,
];

/// Runs a program according to the kernel's documentation of classic BPF.
pub fn run(program: &[Insn], context: &Context) -> u32 {
    let (mut a, mut x, mut m) = (0u32, 0u32, [None; 16]);
    let mut pc = 0;
    loop {
        let insn = program[pc];
        pc += 1;
        let b = if insn.code & 0x08 != 0 { x } else { insn.k };
        match insn.code {
            0x20 => {
                let k = insn.k as usize;
                a = u32::from_ne_bytes(context[k..k + 4].try_into().unwrap());
            }
            0x00 => a = insn.k,
            0x01 => x = insn.k,
            0x60 => a = m[insn.k as usize].expect("reads what was not written"),
            0x61 => x = m[insn.k as usize].expect("reads what was not written"),
            0x02 => m[insn.k as usize] = Some(a),
            0x03 => m[insn.k as usize] = Some(x),
            0x07 => x = a,
            0x87 => a = x,
            0x04 | 0x0c => a = a.wrapping_add(b),
            0x14 | 0x1c => a = a.wrapping_sub(b),
            0x24 | 0x2c => a = a.wrapping_mul(b),
            0x34 | 0x3c if b == 0 => return 0,
            0x34 | 0x3c => a /= b,
            0x44 | 0x4c => a |= b,
            0x54 | 0x5c => a &= b,
            0x64 | 0x6c => a <<= b % 32,
            0x74 | 0x7c => a >>= b % 32,
            0x84 => a = a.wrapping_neg(),
            0xa4 | 0xac => a ^= b,
            0x05 => pc += insn.k as usize,
            0x15 | 0x1d => pc += usize::from(if a == b { insn.jt } else { insn.jf }),
            0x25 | 0x2d => pc += usize::from(if a > b { insn.jt } else { insn.jf }),
            0x35 | 0x3d => pc += usize::from(if a >= b { insn.jt } else { insn.jf }),
            0x45 | 0x4d => pc += usize::from(if a & b != 0 { insn.jt } else { insn.jf }),
            0x06 => return insn.k,
            0x16 => return a,
            code => panic!("unknown code {code:#x}"),
        }
    }
}

/// Checks what the kernel requires beyond what makes [`run`] panic: jumps that stay
/// inside, a `ret` at the end, and scratch words that are written before they are read.
/// Like the kernel, this treats the code after a `ret` as reachable.
pub fn valid(program: &[Insn]) -> Result<(), String> {
    let mut written = vec![u16::MAX; program.len()];
    let mut here = 0u16;
    for (pc, insn) in program.iter().enumerate() {
        here &= written[pc];
        let jumps = match insn.code {
            0x05 => vec![insn.k as usize],
            code if code & 7 == 5 => vec![insn.jt.into(), insn.jf.into()],
            _ => vec![],
        };
        for &jump in &jumps {
            let target = written.get_mut((pc + 1).saturating_add(jump));
            *target.ok_or(format!("{pc}: jumps {jump}, outside"))? &= here;
        }
        match insn.code {
            _ if !jumps.is_empty() => here = u16::MAX,
            0x02 | 0x03 => here |= 1 << insn.k,
            0x60 | 0x61 if here & 1 << insn.k == 0 => {
                return Err(format!("{pc}: reads scratch word {}", insn.k));
            }
            _ => {}
        }
    }
    match program.last().map(|insn| insn.code) {
        Some(0x06 | 0x16) => Ok(()),
        last => Err(format!("ends with {last:?}")),
    }
}

/// Turns `context` into one that a request with this opcode and pdu size can have.
pub fn as_requests_have_it(context: &mut Context, (opcode, pdu_size): (u8, u16)) {
    context[8] = opcode;
    context[9] &= 0x7f;
    context[10] = pdu_size as u8;
    context[11..16].fill(0);
    context[16 + usize::from(pdu_size)..].fill(0);
}

pub(crate) fn evaluate(program: &[Insn], (opcode, pdu_size): (u8, u16)) -> Verdict {
    let context = verdict::context(opcode, pdu_size);
    verdict::evaluate(program, &context, &mut vec![None; program.len()])
}

pub(crate) fn allowed_flags(program: &[Insn], (opcode, pdu_size): (u8, u16)) -> Option<FlagSet> {
    let context = verdict::context(opcode, pdu_size);
    flags::allowed(program, &context, &mut vec![None; program.len()])
}

/// Returns whether the kernel knows the verdict of a program on all requests that have this
/// opcode and pdu size.
pub fn is_certain(program: &[Insn], of: (u8, u16)) -> bool {
    evaluate(program, of) != Verdict::Depends
}

/// Returns whether the kernel makes a table of the flags that a program allows.
pub fn is_looked_up(program: &[Insn], of: (u8, u16)) -> bool {
    allowed_flags(program, of).is_some()
}

/// Returns whether the kernel takes an instruction in filters.
pub fn is_taken(insn: &Insn) -> bool {
    check::check(insn.code, insn.k, size_of::<Context>() as u32).is_some()
}

pub fn fused(newer: &[Insn], older: &[Insn]) -> Vec<Insn> {
    let mut program = Vec::new();
    let mut insns_to_end = vec![0; newer.len() + 1];
    fuse::fuse::<()>(newer, older, &mut insns_to_end, |insn| {
        program.push(insn);
        Ok(())
    })
    .unwrap();
    assert!(program.len() <= fuse::EXPANSION_MAX * newer.len() + fuse::GLUE_MAX + older.len());
    program.reverse();
    program
}
