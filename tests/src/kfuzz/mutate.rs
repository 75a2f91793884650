// SPDX-License-Identifier: GPL-2.0
//! Random programs, random changes of programs, and the smaller programs that a program
//! is reduced to.

use fastrand::Rng;

use super::op::{Op, Program, RECORD, Record};

/// The most operations that a program has.
pub const LONGEST: usize = 40;

/// Kinds that random programs contain more often than others, because others need them.
const OFTEN: [&str; 12] = [
    "Ring", "Filter", "Filter", "Sqe", "Sqe", "Recv", "Recv", "Enter", "Enter", "Queue", "Send",
    "Return",
];
/// Kinds that random programs contain seldom, because they end what could follow, or take
/// long.
const SELDOM: [&str; 5] = ["Exec", "Privileges", "Signal", "Device", "Close"];

/// Returns the number of a kind of operations.
fn kind(name: &str) -> u8 {
    let kind = Op::NAMES.iter().position(|other| *other == name);
    kind.expect("the tables above name kinds") as u8
}

/// Builds a random operation.
fn random_op(rng: &mut Rng) -> Op {
    let mut record: Record = std::array::from_fn(|_| rng.u8(..));
    if rng.bool() {
        record[0] = kind(OFTEN[rng.usize(..OFTEN.len())]);
    } else if SELDOM.contains(&Op::NAMES[usize::from(record[0]) % Op::NAMES.len()]) && rng.bool() {
        record[0] = kind("Ring");
    }
    // Small numbers name objects that exist.
    for field in &mut record[1..] {
        if rng.u8(..4) == 0 {
            *field = rng.u8(..4);
        }
    }
    Op::from_record(&record)
}

/// Builds a random program, which begins with a ring.
pub fn random(rng: &mut Rng) -> Program {
    let mut ops = vec![Op::Ring {
        slot: 0,
        kind: rng.u8(..),
        entries: rng.u8(..),
        completions: rng.u8(..),
        flags0: rng.u8(..),
        flags1: rng.u8(..),
        flags2: rng.u8(..),
    }];
    let len = rng.usize(1..LONGEST / 2);
    ops.extend((0..len).map(|_| random_op(rng)));
    Program(ops)
}

/// Builds program `number` of the run with `seed`: one of the first `initial` programs of
/// the corpus, then a change of a program of the corpus most often, else a new one. The
/// same arguments give the same program.
pub fn program(seed: u64, number: u64, initial: usize, corpus: &[Program]) -> Program {
    if number < initial as u64 {
        return corpus[number as usize].clone();
    }
    let mut rng = Rng::with_seed(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    if corpus.is_empty() || rng.u8(..8) == 0 {
        return random(&mut rng);
    }
    let mut program = corpus[rng.usize(..corpus.len())].clone();
    if rng.u8(..4) == 0 {
        splice(&mut program, &corpus[rng.usize(..corpus.len())], &mut rng);
    }
    for _ in 0..1 + rng.u8(..5) {
        change(&mut program, &mut rng);
    }
    program
}

/// Appends the end of another program to the beginning of this one.
fn splice(program: &mut Program, other: &Program, rng: &mut Rng) {
    program.0.truncate(rng.usize(..=program.0.len()));
    program.0.extend(&other.0[rng.usize(..=other.0.len())..]);
    program.0.truncate(LONGEST);
}

/// Makes one random change: a field, or an operation that is added, doubled, moved or
/// left out.
pub fn change(program: &mut Program, rng: &mut Rng) {
    let ops = &mut program.0;
    let at = rng.usize(..=ops.len());
    if at == ops.len() || (ops.len() < LONGEST && rng.u8(..4) == 0) {
        if ops.len() < LONGEST {
            ops.insert(at, random_op(rng));
        }
        return;
    }
    match rng.u8(..10) {
        0 => {
            ops.remove(at);
        }
        1 if ops.len() < LONGEST => {
            let op = ops[at];
            ops.insert(rng.usize(..=ops.len()), op);
        }
        2 => {
            let op = ops.remove(at);
            ops.insert(rng.usize(..=ops.len()), op);
        }
        _ => {
            let mut record = ops[at].record();
            change_field(&mut record, ops[at].fields(), rng);
            ops[at] = Op::from_record(&record);
        }
    }
}

/// Changes one of the first `fields` fields of a record.
fn change_field(record: &mut Record, fields: usize, rng: &mut Rng) {
    if fields == 0 {
        return;
    }
    let field = &mut record[1 + rng.usize(..fields)];
    *field = match rng.u8(..6) {
        0 => field.wrapping_add(1),
        1 => field.wrapping_sub(1),
        2 => *field ^ 1 << rng.u8(..8),
        3 => rng.u8(..4),
        _ => rng.u8(..),
    };
}

/// Returns simpler programs than this one, the simplest first: with a run of operations
/// left out, or with a field that is zero or half as large.
pub fn simpler(program: &Program) -> Vec<Program> {
    let len = program.0.len();
    let mut found = Vec::new();
    let mut run = len / 2;
    while run > 0 {
        for from in (0..=len - run).step_by(run.div_ceil(2)) {
            let mut ops = program.0.clone();
            ops.drain(from..from + run);
            found.push(Program(ops));
        }
        run /= 2;
    }
    for (at, op) in program.0.iter().enumerate() {
        for field in 1..RECORD {
            let value = op.record()[field];
            let mut smaller = vec![0, value / 2, value.saturating_sub(1)];
            smaller.dedup();
            for less in smaller.into_iter().filter(|less| *less < value) {
                let mut record = op.record();
                record[field] = less;
                let mut ops = program.0.clone();
                ops[at] = Op::from_record(&record);
                found.push(Program(ops));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_follow_from_seed_and_number() {
        let corpus = [
            random(&mut Rng::with_seed(1)),
            random(&mut Rng::with_seed(2)),
        ];
        for number in 0..1000 {
            let made = program(7, number, 1, &corpus);
            assert_eq!(made, program(7, number, 1, &corpus));
            assert!(made.0.len() <= LONGEST);
        }
        assert_eq!(program(7, 0, 1, &corpus), corpus[0]);
        let hundred = |seed| -> Vec<Program> {
            (1..100)
                .map(|number| program(seed, number, 1, &corpus))
                .collect()
        };
        assert_ne!(hundred(7), hundred(8));
    }

    #[test]
    fn changes_reach_every_kind_and_most_lengths() {
        let mut rng = Rng::with_seed(3);
        let mut program = Program::default();
        let (mut kinds, mut lengths) = ([false; 256], [false; LONGEST + 1]);
        for _ in 0..20_000 {
            change(&mut program, &mut rng);
            lengths[program.0.len()] = true;
            for op in &program.0 {
                kinds[usize::from(op.record()[0])] = true;
            }
        }
        assert!(kinds[..Op::NAMES.len()].iter().all(|reached| *reached));
        assert!(lengths[1..].iter().all(|reached| *reached));
    }

    /// Reduces a program as far as a condition stays true.
    fn reduce(mut program: Program, holds: impl Fn(&Program) -> bool) -> Program {
        while let Some(next) = simpler(&program).into_iter().find(|next| holds(next)) {
            program = next;
        }
        program
    }

    #[test]
    fn programs_are_reduced_to_what_matters() {
        let mut rng = Rng::with_seed(4);
        for _ in 0..50 {
            let mut program = random(&mut rng);
            program.0.push(Op::Send {
                connection: 9,
                len: 77,
                pieces: 5,
            });
            program.0.push(random_op(&mut rng));
            let has = |program: &Program| {
                let mut ops = program.0.iter();
                ops.any(|op| matches!(op, Op::Send { len: 50.., .. }))
            };
            let least = Op::Send {
                connection: 0,
                len: 50,
                pieces: 0,
            };
            assert_eq!(reduce(program, has), Program(vec![least]));
        }
    }

    #[test]
    fn simpler_programs_are_simpler() {
        let program = random(&mut Rng::with_seed(5));
        let sum = |program: &Program| -> u64 {
            let bytes = program.bytes();
            (bytes.len() as u64) << 32 | bytes.iter().map(|byte| u64::from(*byte)).sum::<u64>()
        };
        let all = simpler(&program);
        assert!(all.iter().all(|other| sum(other) < sum(&program)));
        assert!(simpler(&Program::default()).is_empty());
    }
}
