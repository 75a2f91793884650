// SPDX-License-Identifier: GPL-2.0

//! The instructions of classic BPF that a filter may contain.
//!
//! Uses nothing but `core` and [`Action`]. The kernel's own checks (known codes, jumps, scratch
//! words, the final `ret`) come before [`check`].

use kernel::bpf::{
    insn::*,
    Action, //
};

/// The codes of allowed instructions that stay as they are.
const KEPT: [u16; 38] = [
    RET_K,
    RET_A,
    ALU | ADD | K,
    ALU | ADD | X,
    ALU | SUB | K,
    ALU | SUB | X,
    ALU | MUL | K,
    ALU | MUL | X,
    ALU | DIV | K,
    ALU | DIV | X,
    ALU | AND | K,
    ALU | AND | X,
    ALU | OR | K,
    ALU | OR | X,
    ALU | XOR | K,
    ALU | XOR | X,
    ALU | LSH | K,
    ALU | LSH | X,
    ALU | RSH | K,
    ALU | RSH | X,
    ALU | NEG,
    LD | IMM,
    LDX | IMM,
    LD | MEM,
    LDX | MEM,
    ST,
    STX,
    MISC | TAX,
    MISC | TXA,
    JMP | JA,
    JMP | JEQ | K,
    JMP | JEQ | X,
    JMP | JGE | K,
    JMP | JGE | X,
    JMP | JGT | K,
    JMP | JGT | X,
    JMP | JSET | K,
    JMP | JSET | X,
];

/// Returns what becomes of the instruction with this `code` and operand `k`, in a program that runs
/// on a context of `size` bytes, or [`None`] if a filter may not contain it.
///
/// A load of a word of the packet stays: it loads a word of the context, which must be inside it
/// and aligned. A load of the packet's length becomes a load of `size`.
pub(crate) fn check(code: u16, k: u32, size: u32) -> Option<Action> {
    match code {
        LD_ABS if k < size && k.is_multiple_of(4) => Some(Action::Keep),
        LD_LEN | LDX_LEN => Some(Action::LoadConstant(size)),
        _ if KEPT.contains(&code) => Some(Action::Keep),
        _ => None,
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_check)]
mod tests {
    use super::*;

    /// Checks every code with a context of 40 bytes. The codes that the uapi documents as allowed
    /// are written out as numbers.
    #[test]
    fn only_documented_codes_are_accepted() {
        const KEPT: [u16; 38] = [
            0x06, 0x16, // ret
            0x04, 0x0c, 0x14, 0x1c, 0x24, 0x2c, 0x34, 0x3c, // add sub mul div
            0x44, 0x4c, 0x54, 0x5c, 0x64, 0x6c, 0x74, 0x7c, // or and lsh rsh
            0xa4, 0xac, 0x84, // xor neg
            0x00, 0x01, 0x60, 0x61, 0x02, 0x03, // ld ldx st stx
            0x07, 0x87, // tax txa
            0x05, 0x15, 0x1d, 0x25, 0x2d, 0x35, 0x3d, 0x45, 0x4d, // jumps
        ];

        for code in 0..=u16::MAX {
            let expected = match code {
                0x20 => Some(Action::Keep),
                0x80 | 0x81 => Some(Action::LoadConstant(40)),
                _ if KEPT.contains(&code) => Some(Action::Keep),
                _ => None,
            };

            assert_eq!(check(code, 0, 40), expected);
        }
    }

    #[test]
    fn loads_must_be_aligned_and_inside_the_context() {
        for k in 0..200 {
            let expected = (k < 40 && k % 4 == 0).then_some(Action::Keep);

            assert_eq!(check(LD_ABS, k, 40), expected);
        }
        // At these offsets, socket filters find the kernel's ancillary data.
        assert_eq!(check(LD_ABS, 0xffff_f000, 40), None);
        assert_eq!(check(LD_ABS, u32::MAX - 3, 40), None);
    }
}
