// SPDX-License-Identifier: GPL-2.0
//! Translated programs, which the crate `rbpf` runs: it knows nothing of the kernel's
//! code.

use super::insn::Insn;
use super::translate::{EXPANSION_MAX, Ebpf, Field, Load, PROLOGUE_MAX, translate};

/// Returns the loads of a context that is the object itself.
pub fn plain() -> [Load; 10] {
    std::array::from_fn(|word| Load::Field(Field::word(4 * word)))
}

/// Translates a program. Returns it as the bytes that `rbpf` takes, or `None` if it is
/// refused.
pub fn translated(program: &[Insn], loads: &[Load; 10]) -> Option<Vec<u8>> {
    let mut starts = vec![0; program.len()];
    let mut insns: Vec<Ebpf> = Vec::new();
    let load = |offset: u32| loads.get(offset as usize / 4).copied();
    translate(program, load, &mut starts, |insn| {
        insns.push(insn);
        Some(())
    })?;
    assert!(insns.len() <= PROLOGUE_MAX + EXPANSION_MAX * program.len());
    Some(insns.iter().flat_map(Ebpf::bytes).collect())
}

/// Runs a translated program on an object. Fills all other registers with garbage first, as
/// the kernel clears none of them.
pub fn run_translated(code: &[u8], object: &mut [u8]) -> u32 {
    const MOV64_IMM: u8 = 0xb7;
    let mut whole = Vec::new();
    for register in [0, 2, 3, 4, 5, 6, 7, 8, 9] {
        whole.extend([MOV64_IMM, register, 0, 0, 0x5a, 0x5a, 0x5a, 0xda]);
    }
    whole.extend(code);
    let vm = rbpf::EbpfVmRaw::new(Some(&whole)).expect("rbpf refuses the program");
    let result = vm
        .execute_program(object)
        .expect("rbpf cannot run the program");
    u32::try_from(result).expect("the upper half of the result is not zero")
}
