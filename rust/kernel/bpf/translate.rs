// SPDX-License-Identifier: GPL-2.0

//! Translation of classic BPF to eBPF, which the kernel runs.
//!
//! The kernel's own translation, `bpf_convert_filter`, is for programs that read packets. Programs
//! that load words of an object call nothing and touch nothing else, so that they get by with three
//! registers: R0 is A, R1 points to the object, R2 is X. Each classic instruction becomes up to
//! [`EXPANSION_MAX`] others. Only what is read before it is written is cleared at the start.
//!
//! This module uses only `core` and the instructions, so that it is also built and tested outside
//! the kernel.
//!
//! C headers: [`include/linux/filter.h`](srctree/include/linux/filter.h),
//! [`include/uapi/linux/bpf.h`](srctree/include/uapi/linux/bpf.h)

use super::insn::{
    self,
    Insn, //
};

/// An eBPF instruction: `struct bpf_insn`, 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ebpf {
    code: u8,
    /// The destination and the source register. On little-endian machines, the destination is in
    /// the lower half.
    registers: u8,
    off: i16,
    imm: i32,
}

/// The way to load a word of the context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// The word is the same in all objects.
    Constant(u32),
    /// The word is made of a field of the object.
    Field(Field),
}

/// A word that is made of a byte or a word of an object: `(field & mask) << shift | constant`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    offset: i16,
    /// Whether the field has one byte, not four.
    is_byte: bool,
    mask: u32,
    shift: u8,
    constant: u32,
}

impl Field {
    const fn new(offset: usize, is_byte: bool) -> Self {
        assert!(offset <= i16::MAX as usize);

        Self {
            offset: offset as i16,
            is_byte,
            mask: u32::MAX,
            shift: 0,
            constant: 0,
        }
    }

    /// The four bytes at `offset`, which must fit in an [`i16`]. To be evaluated at compile time.
    pub const fn word(offset: usize) -> Self {
        Self::new(offset, false)
    }

    /// The byte at `offset`, which must fit in an [`i16`]. To be evaluated at compile time.
    pub const fn byte(offset: usize) -> Self {
        Self::new(offset, true)
    }

    /// Only the bits in `mask`.
    pub const fn masked(self, mask: u32) -> Self {
        Self { mask, ..self }
    }

    /// As byte `index` of a word of the context, in the order of bytes in memory, with zeroes in
    /// place of the others.
    pub const fn at_byte(self, index: usize) -> Self {
        let mut only = [0; 4];

        only[index % 4] = u8::MAX;
        Self {
            shift: u32::from_ne_bytes(only).trailing_zeros() as u8,
            ..self
        }
    }

    /// With the bits of `constant` set as well.
    pub const fn with(self, constant: u32) -> Self {
        Self { constant, ..self }
    }
}

/// The maximum number of instructions that take the place of one.
pub const EXPANSION_MAX: usize = 4;

/// The maximum number of instructions that come before the first one.
pub const PROLOGUE_MAX: usize = 2;

/// The number of bytes of a word.
const WORD: u32 = 4;

/// A register of eBPF.
#[derive(Clone, Copy)]
enum Register {
    /// A, which is also the result.
    A = 0,
    /// The pointer to the object.
    Object = 1,
    /// X.
    X = 2,
    /// The pointer to the end of the stack, which has the scratch words.
    Stack = 10,
}

/// Class and mode: `BPF_LDX | BPF_MEM`.
const LDX_MEM: u8 = 0x61;
/// Size of a load: `BPF_B`.
const BYTE: u8 = 0x10;
/// `BPF_STX | BPF_MEM | BPF_W`
const STX_MEM_W: u8 = 0x63;
/// `BPF_ALU`, which computes with 32 bits and clears the upper half of the destination.
const ALU: u8 = 0x04;
/// `BPF_ALU | BPF_MOV`
const MOV: u8 = ALU | 0xb0;
/// `BPF_X`
const X: u8 = 0x08;
/// `BPF_JMP | BPF_JA`
const JA: u8 = 0x05;
/// `BPF_JMP | BPF_EXIT`
const EXIT: u8 = 0x95;
/// `BPF_JMP32`, which compares 32 bits.
const JMP32: u8 = 0x06;
/// Operations of jumps that classic BPF does not have: `BPF_JNE`, `BPF_JLT`, `BPF_JLE`.
const JNE: u8 = 0x50;
const JLT: u8 = 0xa0;
const JLE: u8 = 0xb0;

impl Ebpf {
    fn new(code: u8, dst: Register, src: Register, off: i16, imm: u32) -> Self {
        let (dst, src) = (dst as u8, src as u8);

        Self {
            code,
            registers: if cfg!(target_endian = "little") {
                src << 4 | dst
            } else {
                dst << 4 | src
            },
            off,
            imm: imm as i32,
        }
    }

    /// Returns the bytes of the instruction.
    pub fn bytes(&self) -> [u8; 8] {
        let [off_0, off_1] = self.off.to_ne_bytes();
        let [imm_0, imm_1, imm_2, imm_3] = self.imm.to_ne_bytes();

        [
            self.code,
            self.registers,
            off_0,
            off_1,
            imm_0,
            imm_1,
            imm_2,
            imm_3,
        ]
    }

    /// Creates an instruction that computes `dst` from itself and a constant.
    fn constant(code: u8, dst: Register, imm: u32) -> Self {
        Self::new(code, dst, Register::A, 0, imm)
    }

    /// Creates an instruction that computes `dst` from itself and another register.
    fn register(code: u8, dst: Register, src: Register) -> Self {
        Self::new(code | X, dst, src, 0, 0)
    }

    /// Creates an access to scratch word `index`.
    fn scratch(code: u8, dst: Register, src: Register, index: u32) -> Option<Self> {
        let offset = i16::try_from((index.checked_add(1)?).checked_mul(WORD)?).ok()?;

        Some(Self::new(code, dst, src, -offset, 0))
    }

    const RETURN: Self = Self {
        code: EXIT,
        registers: 0,
        off: 0,
        imm: 0,
    };
}

/// Returns whether `insn` reads A.
fn reads_a(insn: &Insn) -> bool {
    match insn.class() {
        insn::ALU | insn::ST => true,
        insn::JMP => insn.code != insn::JMP_JA,
        insn::RET => insn.code == insn::RET_A,
        insn::MISC => insn.code == insn::MISC_TAX,
        _ => false,
    }
}

/// Returns whether `insn` reads X.
fn reads_x(insn: &Insn) -> bool {
    match insn.class() {
        insn::STX => true,
        insn::ALU | insn::JMP => insn.has_x(),
        insn::MISC => insn.code == insn::MISC_TXA,
        _ => false,
    }
}

/// Returns whether `insn` gives A a new value.
fn writes_a(insn: &Insn) -> bool {
    insn.class() == insn::LD || insn.code == insn::MISC_TXA
}

/// Returns whether `insn` gives X a new value.
fn writes_x(insn: &Insn) -> bool {
    insn.class() == insn::LDX || insn.code == insn::MISC_TAX
}

/// Returns whether a path through `program` may read a register before it writes it. Up to the
/// first jump there is one path. Behind it, every instruction counts that reads the register.
fn is_read_first(program: &[Insn], reads: fn(&Insn) -> bool, writes: fn(&Insn) -> bool) -> bool {
    for (index, insn) in program.iter().enumerate() {
        if reads(insn) {
            return true;
        }
        if writes(insn) {
            return false;
        }
        if insn.class() == insn::JMP {
            return program.iter().skip(index).any(reads);
        }
    }
    false
}

/// The translation of one instruction: up to [`EXPANSION_MAX`] instructions.
#[derive(Default)]
struct Expansion {
    insns: [Ebpf; EXPANSION_MAX],
    len: usize,
}

impl Expansion {
    fn push(&mut self, insn: Ebpf) -> Option<()> {
        *self.insns.get_mut(self.len)? = insn;
        self.len += 1;
        Some(())
    }
}

/// Translates `insn`. `jump(skipped, at)` returns the offset of a jump that skips `skipped` classic
/// instructions and is instruction `at` of the expansion. The number of instructions does not
/// depend on these offsets.
///
/// Returns [`None`] for what is no instruction of a checked program.
fn expand(
    insn: &Insn,
    load: &impl Fn(u32) -> Option<Load>,
    jump: impl Fn(u32, usize) -> Option<i16>,
) -> Option<Expansion> {
    use Register::{
        Object,
        Stack,
        A,
        X, //
    };
    let mut out = Expansion::default();

    match (insn.class(), insn.code) {
        (_, insn::LD_ABS) => match load(insn.k)? {
            Load::Constant(value) => out.push(Ebpf::constant(MOV, A, value))?,
            Load::Field(field) => {
                let size = if field.is_byte { BYTE } else { 0 };

                out.push(Ebpf::new(LDX_MEM | size, A, Object, field.offset, 0))?;
                if field.mask != u32::MAX {
                    out.push(Ebpf::constant(ALU | insn::AND as u8, A, field.mask))?;
                }
                if field.shift != 0 {
                    out.push(Ebpf::constant(ALU | insn::LSH as u8, A, field.shift.into()))?;
                }
                if field.constant != 0 {
                    out.push(Ebpf::constant(ALU | insn::OR as u8, A, field.constant))?;
                }
            }
        },
        (_, insn::LD_IMM) => out.push(Ebpf::constant(MOV, A, insn.k))?,
        (_, insn::LD_MEM) => out.push(Ebpf::scratch(LDX_MEM, A, Stack, insn.k)?)?,
        (_, insn::LDX_IMM) => out.push(Ebpf::constant(MOV, X, insn.k))?,
        (_, insn::LDX_MEM) => out.push(Ebpf::scratch(LDX_MEM, X, Stack, insn.k)?)?,
        (_, insn::ST) => out.push(Ebpf::scratch(STX_MEM_W, Stack, A, insn.k)?)?,
        (_, insn::STX) => out.push(Ebpf::scratch(STX_MEM_W, Stack, X, insn.k)?)?,
        (_, insn::MISC_TAX) => out.push(Ebpf::register(MOV, X, A))?,
        (_, insn::MISC_TXA) => out.push(Ebpf::register(MOV, A, X))?,
        (insn::ALU, _) => {
            let code = ALU | u8::try_from(insn.op()).ok()?;

            match (insn.op(), insn.has_x()) {
                (insn::NEG, _) => out.push(Ebpf::constant(code, A, 0))?,
                (insn::DIV | insn::MOD, true) => {
                    // A classic program that divides by zero ends and returns zero.
                    out.push(Ebpf::new(JMP32 | JNE, X, A, 2, 0))?;
                    out.push(Ebpf::constant(MOV, A, 0))?;
                    out.push(Ebpf::RETURN)?;
                    out.push(Ebpf::register(code, A, X))?;
                }
                (_, true) => out.push(Ebpf::register(code, A, X))?,
                (_, false) => out.push(Ebpf::constant(code, A, insn.k))?,
            }
        }
        (_, insn::JMP_JA) => out.push(Ebpf::new(JA, A, A, jump(insn.k, 0)?, 0))?,
        (insn::JMP, _) => {
            let (jt, jf) = (insn.jt.into(), insn.jf.into());
            let opposite = match insn.op() {
                insn::JEQ => Some(JNE),
                insn::JGT => Some(JLE),
                insn::JGE => Some(JLT),
                _ => None,
            };
            let conditional = |op: u8, skipped| {
                let (src, imm, code) = if insn.has_x() {
                    (X, 0, JMP32 | op | self::X)
                } else {
                    (A, insn.k, JMP32 | op)
                };

                Some(Ebpf::new(code, A, src, jump(skipped, 0)?, imm))
            };

            match opposite {
                // One jump suffices if the other way leads to the next instruction.
                Some(opposite) if jt == 0 => out.push(conditional(opposite, jf)?)?,
                _ => {
                    out.push(conditional(u8::try_from(insn.op()).ok()?, jt)?)?;
                    if jf != 0 {
                        out.push(Ebpf::new(JA, A, A, jump(jf, 1)?, 0))?;
                    }
                }
            }
        }
        (_, insn::RET_K) => {
            out.push(Ebpf::constant(MOV, A, insn.k))?;
            out.push(Ebpf::RETURN)?;
        }
        (_, insn::RET_A) => out.push(Ebpf::RETURN)?,
        _ => return None,
    }
    Some(out)
}

/// Translates `program`, which must have been checked, and passes the result to `push`, instruction
/// by instruction. `load` returns the way to load the word at an offset of the context.
///
/// `starts` is scratch memory, one element for each instruction.
///
/// # Errors
///
/// [`None`] if `load` or `push` returns it, or for what is no checked program.
pub fn translate(
    program: &[Insn],
    load: impl Fn(u32) -> Option<Load>,
    starts: &mut [u16],
    mut push: impl FnMut(Ebpf) -> Option<()>,
) -> Option<()> {
    let starts = starts.get_mut(..program.len())?;

    for (register, needed) in [
        (Register::A, is_read_first(program, reads_a, writes_a)),
        (Register::X, is_read_first(program, reads_x, writes_x)),
    ] {
        if needed {
            push(Ebpf::constant(MOV, register, 0))?;
        }
    }

    // Jumps are relative, so what comes first does not count.
    let mut len = 0u16;
    for (insn, start) in program.iter().zip(starts.iter_mut()) {
        *start = len;
        len = len.checked_add(expand(insn, &load, |_, _| Some(0))?.len.try_into().ok()?)?;
    }

    for (index, insn) in program.iter().enumerate() {
        let here = *starts.get(index)?;
        let jump = |skipped, at| {
            let target = index
                .checked_add(1)?
                .checked_add(usize::try_from(skipped).ok()?)?;
            let next = usize::from(here).checked_add(at)?.checked_add(1)?;

            i16::try_from(usize::from(*starts.get(target)?).checked_sub(next)?).ok()
        };
        let expansion = expand(insn, &load, jump)?;

        for insn in expansion.insns.iter().take(expansion.len) {
            push(*insn)?;
        }
    }
    Some(())
}

/// Returns the number of bytes of stack that `program` needs for its scratch words.
pub fn stack_size(program: &[Insn]) -> u32 {
    program
        .iter()
        .filter(|insn| {
            matches!(insn.class(), insn::ST | insn::STX)
                || matches!(insn.code, insn::LD_MEM | insn::LDX_MEM)
        })
        .map(|insn| insn.k.saturating_add(1).saturating_mul(WORD))
        .max()
        .unwrap_or(0)
}
