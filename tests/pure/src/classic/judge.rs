// SPDX-License-Identifier: GPL-2.0
//! The checks that a fuzzer runs: whether verdicts on a chain of programs, the flags that
//! each allows, the fused chain, and the translation of all these to eBPF agree with the
//! interpreter. The fuzzer's bytes are turned into the
//! chain, and any bytes give valid programs, so that no input is wasted.

use super::insn::*;
use super::translated::{plain, run_translated, translated};
use super::verdict::Verdict;
use super::{CODES, Context, allowed_flags, as_requests_have_it, evaluate, fused, run, valid};

/// Constants that are likely to matter. Words of contexts are made of them, too.
const NUMBERS: [u32; 8] = [0, 1, 2, 12, 45, 0xff, 0x000c_002d, 0x8000_0000];

/// Bytes that are taken one by one, followed by zeroes without end.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        first
    }

    fn below(&mut self, end: usize) -> usize {
        usize::from(self.byte()) % end
    }

    fn number(&mut self) -> u32 {
        match self.byte() {
            usual @ 0..0xf0 => NUMBERS[usize::from(usual) % NUMBERS.len()],
            _ => u32::from_ne_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
        }
    }

    fn context(&mut self, of: (u8, u16)) -> Context {
        let mut context = [0; 40];
        for word in context.chunks_mut(4) {
            word.copy_from_slice(&self.number().to_ne_bytes());
        }
        as_requests_have_it(&mut context, of);
        context
    }

    /// Makes an instruction that has `behind` others after it.
    fn insn(&mut self, behind: usize) -> Insn {
        let code = match self.below(CODES.len() + 10) {
            usual if usual < CODES.len() => CODES[usual],
            _ => LD_ABS,
        };
        match code {
            LD_ABS => Insn::new(code, 4 * self.below(10) as u32),
            ST | STX | LD_MEM | LDX_MEM => Insn::new(code, self.below(16) as u32),
            JMP_JA => Insn::new(code, self.below(behind) as u32),
            _ if code & 7 == JMP => {
                let (jt, jf) = (self.below(behind), self.below(behind));
                Insn::jump(code, jt as u8, jf as u8, self.number())
            }
            _ => {
                let insn = Insn::new(code, self.number());
                match insn.op() {
                    LSH | RSH if insn.class() == ALU => Insn::new(code, insn.k % 32),
                    DIV if insn.class() == ALU => Insn::new(code, insn.k.max(1)),
                    _ => insn,
                }
            }
        }
    }

    fn program(&mut self) -> Vec<Insn> {
        let len = self.below(24);
        let mut program: Vec<_> = (0..len).map(|pc| self.insn(len - pc)).collect();
        program.push(match self.byte() % 4 {
            0 => Insn::new(RET_A, 0),
            _ => Insn::new(RET_K, self.number()),
        });
        // The kernel refuses programs that read unwritten scratch words before it
        // evaluates or fuses them.
        if valid(&program).is_err() {
            for insn in &mut program {
                insn.code = match insn.code {
                    LD_MEM => LD_IMM,
                    LDX_MEM => LDX_IMM,
                    code => code,
                };
            }
        }
        assert_eq!(valid(&program), Ok(()), "{program:?}");
        program
    }
}

/// Panics if the translation of a program returns something else than the program.
fn judge_translation(program: &[Insn], contexts: &[Context]) {
    let code = translated(program, &plain()).expect("a valid program is refused");
    for context in contexts {
        assert_eq!(
            run_translated(&code, &mut context.clone()),
            run(program, context),
            "{program:?} on {context:?}"
        );
    }
}

/// Panics if a verdict or a set of flags is wrong for some context, if the fused chain
/// decides differently from its programs one by one, or if a translation does.
pub fn judge(data: &[u8]) {
    let mut bytes = Bytes(data);
    let of = (bytes.below(65) as u8, [0, 12, 16, 24][bytes.below(4)]);
    let contexts = [bytes.context(of), bytes.context(of)];
    let chain: Vec<_> = (0..=bytes.below(4)).map(|_| bytes.program()).collect();

    for program in &chain {
        let verdict = evaluate(program, of);
        for context in &contexts {
            let holds = match verdict {
                Verdict::Allow => run(program, context) != 0,
                Verdict::Deny => run(program, context) == 0,
                Verdict::Depends => true,
            };
            assert!(holds, "not {verdict:?}: {program:?} on {context:?}");
        }
        if let Some(set) = allowed_flags(program, of) {
            for context in &contexts {
                let holds = set.contains(context[9]) == (run(program, context) != 0);
                assert!(holds, "not {set:?}: {program:?} on {context:?}");
            }
        }
        judge_translation(program, &contexts);
    }

    let one = chain
        .iter()
        .skip(1)
        .fold(chain[0].clone(), |older, newer| fused(newer, &older));
    assert_eq!(valid(&one), Ok(()), "{one:?} of {chain:?}");
    judge_translation(&one, &contexts);
    for context in &contexts {
        let allowed = chain.iter().all(|program| run(program, context) != 0);
        assert_eq!(
            run(&one, context) != 0,
            allowed,
            "{one:?} of {chain:?} on {context:?}"
        );
    }
}
