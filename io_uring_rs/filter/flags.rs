// SPDX-License-Identifier: GPL-2.0

//! Sets of SQE flags: the filters that read nothing else of a request.
//!
//! A request has one of 128 values of the flags. If a filter of an opcode reads no more than these
//! and what is the same for all requests of the opcode, its verdicts are 128 bits, which are found
//! when it is registered. Then no program is run for it, and several such filters are one set.
//!
//! Uses nothing but `core`, the instructions, the layout of the context, the verdicts and the sets.

use super::{
    context::{
        SQE_FLAGS,
        VALID_SQE_FLAGS,
        WORDS, //
    },
    interpreter,
    verdict::{
        evaluate,
        Bits,
        State,
        Verdict, //
    }, //
};
use kernel::{
    bpf::insn::{
        self,
        Insn, //
    },
    io_uring::sqe_flags::FlagSet, //
};

/// The number of flags that a request can have.
const FLAGS: usize = VALID_SQE_FLAGS.count_ones() as usize;

/// For each flag, the values that contain it.
const CONTAINING: [FlagSet; FLAGS] = {
    let mut sets = [FlagSet::NONE; FLAGS];
    let mut bit = 0;

    while bit < FLAGS {
        sets[bit] = FlagSet::containing(1 << bit);
        bit += 1;
    }
    sets
};

/// The index of the word of the context that contains the flags.
const FLAGS_WORD: usize = SQE_FLAGS / 4;

/// The values of the flags in which the flags in `known` are as in `value`.
///
/// # Invariants
///
/// Both have no bits but those of [`VALID_SQE_FLAGS`], and `value` none that is not in `known`.
#[derive(Clone, Copy)]
struct Cube {
    known: u8,
    value: u8,
}

impl Cube {
    /// All values.
    const ALL: Self = Self { known: 0, value: 0 };

    /// Returns the values of the cube as a set.
    fn set(self) -> FlagSet {
        let mut set = FlagSet::ALL;

        for (bit, containing) in CONTAINING.iter().enumerate() {
            if self.known >> bit & 1 != 0 {
                set = set.and(match self.value >> bit & 1 {
                    0 => containing.complement(),
                    _ => *containing,
                });
            }
        }
        set
    }

    /// Divides the cube by `flag`. Returns the parts without and with it, or [`None`] if it is
    /// known.
    fn split(self, flag: u8) -> Option<[Self; 2]> {
        // INVARIANT: The flag is one of `VALID_SQE_FLAGS`, and becomes a known one.
        (self.known & flag == 0).then(|| {
            [self.value, self.value | flag].map(|value| Self {
                known: self.known | flag,
                value,
            })
        })
    }

    /// Returns what is known of the context of requests with these flags, of which `context` is
    /// known.
    fn context(self, context: &[Bits; WORDS]) -> [Bits; WORDS] {
        let mut refined = *context;
        let at_flags = |flags: u8| {
            let mut bytes = [0; 4];
            bytes[SQE_FLAGS % 4] = flags;
            u32::from_ne_bytes(bytes)
        };

        refined[FLAGS_WORD] = refined[FLAGS_WORD].with(at_flags(self.known), at_flags(self.value));
        refined
    }
}

/// The instructions that finding a set may look at, for each instruction of the program, and the
/// number that any program is granted. Programs of up to 16 instructions need no more, whatever
/// they do; what a longer one takes is less than compiling it.
const STEPS_PER_INSN: usize = 16;
const STEPS: usize = 4_096;

/// Finds the set of flags with which a program allows a request.
struct Search<'a> {
    program: &'a [Insn],
    context: &'a [Bits; WORDS],
    /// Scratch memory: one element for each instruction.
    jumps: &'a mut [Option<State>],
    /// The flags that constants of the program name, which probably decide.
    named: u8,
    /// The number of instructions that may still be looked at.
    steps: usize,
}

impl Search<'_> {
    /// Returns what the program decides on requests with the flags of `cube`. Returns [`None`] when
    /// this took enough time.
    fn evaluate(&mut self, cube: Cube) -> Option<Verdict> {
        self.steps = self.steps.checked_sub(self.program.len())?;
        self.jumps.fill(None);
        Some(evaluate(
            self.program,
            &cube.context(self.context),
            self.jumps,
        ))
    }

    /// Divides `cube`, on which the verdict depends on the flags, by a flag that decides a part.
    /// Returns the parts, each with its verdict, or `Some(None)` if no flag decides a part alone.
    /// Returns [`None`] when this took enough time.
    fn divide(&mut self, cube: Cube) -> Option<Option<[(Cube, Verdict); 2]>> {
        let flags = || (0..FLAGS).map(|flag| 1 << flag);
        let named = self.named;

        for flag in flags()
            .filter(|flag| named & flag != 0)
            .chain(flags().filter(|flag| named & flag == 0))
        {
            let Some([without, with]) = cube.split(flag) else {
                continue;
            };
            let parts = [
                (without, self.evaluate(without)?),
                (with, self.evaluate(with)?),
            ];

            if parts
                .iter()
                .any(|(_, verdict)| *verdict != Verdict::Depends)
            {
                return Some(Some(parts));
            }
        }
        Some(None)
    }

    /// Runs the program with each value of the flags in `cube`. Returns those with which it allows
    /// a request, or [`None`] when this took enough time. Unlike [`evaluate`], this finds what a
    /// program keeps in scratch words.
    fn run_each(&mut self, cube: Cube) -> Option<FlagSet> {
        let mut set = FlagSet::NONE;

        for value in (0..=VALID_SQE_FLAGS).filter(|value| value & cube.known == cube.value) {
            self.steps = self.steps.checked_sub(self.program.len())?;
            // INVARIANT: The value has no other bits.
            let exact = Cube {
                known: VALID_SQE_FLAGS,
                value,
            };
            let words = exact.context(self.context).map(Bits::get);

            if interpreter::run(self.program, &words)? != 0 {
                set = set.or(exact.set());
            }
        }
        Some(set)
    }
}

/// Returns the values of the flags with which `program` allows requests of which `context` is
/// known. Returns [`None`] if that depends on anything else in a request, or would take too long to
/// find out.
///
/// The program must have been checked. `jumps` is scratch memory, one element for each instruction.
pub(crate) fn allowed(
    program: &[Insn],
    context: &[Bits; WORDS],
    jumps: &mut [Option<State>],
) -> Option<FlagSet> {
    let is_known = |word: u32| {
        let word = usize::try_from(word).ok();
        let bits = word.and_then(|word| Some((word, context.get(word)?)));

        bits.is_some_and(|(word, bits)| word == FLAGS_WORD || bits.get().is_some())
    };
    if !program
        .iter()
        .all(|insn| insn.code != insn::LD_ABS || is_known(insn.k / 4))
    {
        return None;
    }
    let named = program
        .iter()
        .map(|insn| insn.k.to_ne_bytes()[SQE_FLAGS % 4])
        .fold(0, |named, flags| named | flags);
    let mut search = Search {
        program,
        context,
        jumps,
        named,
        steps: STEPS + STEPS_PER_INSN * program.len(),
    };
    let mut set = FlagSet::NONE;
    // The parts that are not looked at yet: of each division one, and the last one's other.
    let mut parts = [(Cube::ALL, Verdict::Depends); FLAGS + 1];
    let mut len = 1;

    while let Some((cube, verdict)) = parts.get(..len)?.last().copied() {
        len -= 1;
        match verdict {
            Verdict::Allow => set = set.or(cube.set()),
            Verdict::Deny => {}
            Verdict::Depends => match search.divide(cube)? {
                Some(divided) => {
                    for part in divided {
                        *parts.get_mut(len)? = part;
                        len += 1;
                    }
                }
                None => set = set.or(search.run_each(cube)?),
            },
        }
    }
    Some(set)
}
