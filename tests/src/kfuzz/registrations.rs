// SPDX-License-Identifier: GPL-2.0
//! Filters, restrictions, and `io_uring_register(2)` calls of every opcode, with
//! structures that are almost valid.

use std::os::fd::RawFd;

use fastrand::Rng;

use super::machine::{Machine, Mode};
use super::op::Op;
use super::values::{STRUCTURES, STRUCTURES_LEN};
use crate::bpf::{self, Program};
use crate::kernel::{BPF_MAXINSNS, IORING_OP_LAST, IORING_REGISTER_LAST, describe};
use crate::model::random_program;
use crate::register::{
    IORING_REGISTER_BPF_FILTER, IORING_REGISTER_RESTRICTIONS, Registration, Restriction, TASK,
    TASK_RESTRICTION_HEADER, register, task_restriction,
};

/// The high bit of a target, which stands for the task.
const ON_TASK: u8 = 0x80;
/// A call that waits for other tasks.
const SYNC_CANCEL: u32 = 24;
/// The number of words that a byte names: once to overwrite the word or two words, and
/// once to overwrite one byte of it.
const WORDS: u8 = 80;

impl Machine<'_> {
    /// Returns the file descriptor that a target stands for.
    fn target(&self, target: u8) -> RawFd {
        if target & ON_TASK != 0 {
            TASK
        } else {
            self.ring_fd(target & !ON_TASK)
        }
    }

    /// Writes a structure to where the kernel reads it, and overwrites one of its fields
    /// if `bend` names one of its words: the structure begins with word `first`. Returns
    /// its address.
    pub fn write_bent<T: Copy>(&self, at: usize, value: T, first: u8, bend: u8, number: u8) -> u64 {
        assert!(at + size_of::<T>() <= STRUCTURES_LEN);
        let blocks = &self.memory.blocks;
        blocks.write(STRUCTURES + at, value);
        let words = size_of::<T>() / 4;
        let word = usize::from(bend % WORDS).wrapping_sub(first.into());
        if bend < 2 * WORDS && word < words {
            let place = STRUCTURES + at + 4 * word;
            let number_there = self.number(number);
            match bend / WORDS {
                0 if number_there > u32::MAX.into() && word % 2 == 0 && word + 1 < words => {
                    blocks.write(place, number_there);
                }
                0 => blocks.write(place, number_there as u32),
                _ => blocks.write(place + usize::from(number % 4), number_there as u8),
            }
        }
        blocks.address() as u64 + (STRUCTURES + at) as u64
    }

    pub fn filter(&mut self, op: Op) {
        let Op::Filter {
            target,
            opcode,
            program,
            value,
            flags,
            bend,
            number,
        } = op
        else {
            return;
        };
        let program = filter_program(program, value);
        let mut said = Registration::new(opcode % (IORING_OP_LAST as u8), &program);
        said.flags = match flags {
            ..192 => u32::from(flags % 16 == 1),
            _ => u32::from(flags % 4),
        };
        let before = said.pdu_size;
        let address = self.write_bent(0, said, 0, bend, number);
        let fd = self.target(target);
        let got = register(fd, IORING_REGISTER_BPF_FILTER, address as *const _, 1);
        let after: Registration = self.memory.blocks.read(STRUCTURES);
        self.result(got);
        if after.pdu_size != before {
            self.log.say(&format!("size {}", after.pdu_size));
        }
    }

    pub fn restrict(&mut self, op: Op) {
        let Op::Restrict {
            target,
            seed,
            count,
            bend,
            number,
        } = op
        else {
            return;
        };
        let list = restrictions(seed, count);
        let bytes = if target & ON_TASK != 0 {
            task_restriction(&list)
        } else {
            task_restriction(&list)[TASK_RESTRICTION_HEADER..].to_vec()
        };
        let mut said = [0u8; 2048];
        said[..bytes.len()].copy_from_slice(&bytes);
        let address = self.write_bent(0, said, 0, bend, number);
        let (fd, count) = match target & ON_TASK {
            0 => (self.target(target), list.len() as u32),
            _ => (TASK, 1),
        };
        let got = register(fd, IORING_REGISTER_RESTRICTIONS, address as *const _, count);
        self.result(got);
    }

    pub fn register(&mut self, op: Op) {
        let Op::Register {
            slot,
            opcode,
            arg,
            count,
        } = op
        else {
            return;
        };
        let opcode = match opcode {
            ..240 => u32::from(opcode) % (IORING_REGISTER_LAST + 1),
            _ => self.number(opcode) as u32,
        };
        if self.mode == Mode::Compare && opcode == SYNC_CANCEL {
            return;
        }
        let count = match count {
            ..128 => u32::from(count % 8),
            _ => self.number(count) as u32,
        };
        let fd = if slot == u8::MAX {
            TASK
        } else {
            self.ring_fd(slot)
        };
        let got = register(fd, opcode, self.number(arg) as *const _, count);
        self.log.say(&format!("{opcode} {}", describe(got)));
    }
}

/// Builds the filter program that two bytes choose.
fn filter_program(kind: u8, value: u8) -> Program {
    let user_data = u32::from(value % 8);
    match kind {
        0..24 => bpf::allow(),
        24..40 => bpf::deny(),
        40..80 => bpf::deny_if(bpf::USER_DATA_LO, user_data),
        80..100 => bpf::allow_if(bpf::USER_DATA_LO, user_data),
        100..120 => bpf::allow_if(bpf::PDU, u32::from(value) % 12),
        120..140 => vec![
            bpf::ld(bpf::OPCODE_WORD),
            bpf::jset(u32::from(value) << 8, 0, 1),
            bpf::ret(0),
            bpf::ret(1),
        ],
        140..148 => bpf::read_bit(),
        148..156 => bpf::divide_by_zero(),
        156..164 => bpf::filler(1 + usize::from(value)),
        164..166 => bpf::long(BPF_MAXINSNS, 1),
        166..172 => bpf::long(4 + usize::from(value), u32::from(value) % 2),
        // A program with one byte changed is refused most often.
        172..196 => {
            let mut program = random_program(&mut Rng::with_seed(u64::from(value)));
            let at = usize::from(kind) * 7 % program.len();
            match kind % 3 {
                0 => program[at].k ^= 1 << (value % 32),
                1 => program[at].code ^= 1 << (value % 8),
                _ => program[at].jt ^= 1 << (value % 8),
            }
            program
        }
        _ => {
            let seed = u64::from(kind) << 8 | u64::from(value);
            random_program(&mut Rng::with_seed(seed))
        }
    }
}

/// Builds the list of restrictions that two bytes choose. Most lists allow most of what
/// programs do.
fn restrictions(seed: u8, count: u8) -> Vec<Restriction> {
    let mut rng = Rng::with_seed(u64::from(seed) << 8 | u64::from(count));
    let mut list = Vec::new();
    if count < 128 {
        let opcodes = (0..IORING_OP_LAST as u8).filter(|_| rng.u8(..8) != 0);
        list.extend(opcodes.map(Restriction::sqe_op));
        list.push(Restriction::flags_allowed(seed));
    }
    if count % 3 == 0 {
        let opcodes = (0..IORING_REGISTER_LAST).filter(|_| rng.u8(..8) != 0);
        list.extend(opcodes.map(Restriction::register_op));
    }
    if count % 16 == 7 {
        list.push(Restriction::flags_required(seed));
    }
    if count % 32 == 9 {
        let any = Restriction {
            opcode: rng.u16(..6),
            value: rng.u8(..),
            ..Default::default()
        };
        list.insert(rng.usize(..=list.len()), any);
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_and_lists_fit() {
        for kind in 0..=u8::MAX {
            for value in 0..=u8::MAX {
                let program = filter_program(kind, value);
                assert!((1..=BPF_MAXINSNS).contains(&program.len()));
                assert!(task_restriction(&restrictions(kind, value)).len() <= 2048);
            }
        }
    }
}
