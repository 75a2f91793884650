// SPDX-License-Identifier: GPL-2.0
//! The filters that enforce a policy: programs in classic BPF for opcodes, rings and
//! registrations.
//!
//! A program is a sequence of conditions that all must hold, each of which denies the
//! request otherwise. Where a policy lists alternatives, each is a block of conditions
//! that allows the request, or leads to the next block.

use crate::names::{Family, Op, Registration, SetupFlag};
use crate::policy::{Action, Destination, Open, Policy, Ports, address_bytes};
use crate::verdict::{SETUP_SIZE, SOCK_PACKET, entries_for, offset, payload_size};

#[cfg(target_endian = "big")]
compile_error!("filters are written for little-endian machines only");

/// The most instructions that the kernel takes in a program.
pub const MOST_INSNS: usize = 4096;

/// An instruction of classic BPF, laid out as the kernel reads it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Insn {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

const fn insn(code: u32, k: u32) -> Insn {
    Insn {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn load(offset: u32) -> Insn {
    insn(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset)
}

const fn alu(op: u32, k: u32) -> Insn {
    insn(libc::BPF_ALU | op | libc::BPF_K, k)
}

const fn ret(verdict: u32) -> Insn {
    insn(libc::BPF_RET | libc::BPF_K, verdict)
}

const ALLOW: Insn = ret(1);
const DENY: Insn = ret(0);

/// A filter for an opcode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Filter {
    pub opcode: u8,
    pub program: Vec<Insn>,
    /// The bytes of the opcode's arguments that the program may read.
    pub payload: u8,
}

/// The filters that enforce a policy.
///
/// Where a policy denies by default, each opcode that it does not allow has a filter that
/// denies it: `IO_URING_BPF_FILTER_DENY_REST` alone leaves out the opcodes for which the
/// task has inherited a filter, such as those that an outer fence allows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// The filters for requests, by opcode.
    pub requests: Vec<Filter>,
    pub denies_other_requests: bool,
    /// The program for opcodes that are not in the tables of this program.
    pub unknown_requests: Option<Vec<Insn>>,
    /// The filter for `io_uring_setup(2)`.
    pub setup: Option<Filter>,
    /// The filters for `io_uring_register(2)`, by opcode. The last one may be for the
    /// registration of filters.
    pub registrations: Vec<Filter>,
    pub denies_other_registrations: bool,
    /// The program for registrations that are not in the tables of this program.
    pub unknown_registrations: Option<Vec<Insn>>,
}

/// What a filter of an opcode costs each of its requests in the Rust implementation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cost {
    /// Nothing is run or looked up, as the verdict is certain.
    Nothing,
    /// The flags are looked up in a table.
    Lookup,
    /// The program is run.
    Run,
}

/// Returns what a program costs each request in the Rust implementation.
pub fn cost(program: &[Insn]) -> Cost {
    let loads = |offset| program.contains(&load(offset));
    match (0..)
        .step_by(4)
        .take(10)
        .any(|offset| offset != offset::OPCODE && loads(offset))
    {
        true => Cost::Run,
        false if loads(offset::OPCODE) => Cost::Lookup,
        false => Cost::Nothing,
    }
}

/// A program as it is written.
#[derive(Default)]
struct Program(Vec<Insn>);

impl Program {
    fn push(&mut self, insn: Insn) -> &mut Self {
        self.0.push(insn);
        self
    }

    /// Denies the request if the test `op` of A with `k` has the result `if_true`.
    fn deny_if(&mut self, op: u32, k: u32, if_true: bool) -> &mut Self {
        let (jt, jf) = if if_true { (0, 1) } else { (1, 0) };
        let code = (libc::BPF_JMP | op | libc::BPF_K) as u16;
        self.push(Insn { code, jt, jf, k }).push(DENY)
    }

    /// Denies requests with one of the SQE flags `mask`.
    fn deny_flags(&mut self, mask: u8) -> &mut Self {
        if mask == 0 {
            return self;
        }
        let mask = u32::from_ne_bytes([0, mask, 0, 0]);
        self.push(load(offset::OPCODE))
            .deny_if(libc::BPF_JSET, mask, true)
    }

    fn end(&mut self, last: Insn) -> Vec<Insn> {
        self.push(last);
        std::mem::take(&mut self.0)
    }
}

/// A block of conditions under which a request is allowed. Otherwise the program goes on
/// behind the block.
#[derive(Default)]
struct Block(Vec<Step>);

enum Step {
    Insn(Insn),
    /// Leaves the block unless A is `k`.
    Is(u32),
    /// Leaves the block.
    Leave,
}

impl Block {
    /// Adds the condition that the word at `offset`, with `mask`, is `value`.
    fn word(&mut self, offset: u32, mask: u32, value: u32) {
        self.0.push(Step::Insn(load(offset)));
        if mask != u32::MAX {
            self.0.push(Step::Insn(alu(libc::BPF_AND, mask)));
        }
        self.0.push(Step::Is(value));
    }

    /// Adds the condition that the port is in one of the ranges.
    fn ports(&mut self, ranges: &[Ports]) {
        // The port is in network order in the first two bytes of its word, and the others
        // are zero.
        let swapped = [
            load(offset::PORT),
            alu(libc::BPF_RSH, 8),
            insn(libc::BPF_MISC | libc::BPF_TAX, 0),
            load(offset::PORT),
            alu(libc::BPF_AND, 0xff),
            alu(libc::BPF_LSH, 8),
            insn(libc::BPF_ALU | libc::BPF_OR | libc::BPF_X, 0),
        ];
        self.0.extend(swapped.map(Step::Insn));
        for (index, range) in ranges.iter().enumerate() {
            // Behind the ranges, one step leaves the block.
            let to_match = 2 * (ranges.len() - index) - 1;
            let from = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
            let past = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;
            let first = Insn {
                code: from,
                jt: 0,
                jf: 1,
                k: range.first.into(),
            };
            let last = Insn {
                code: past,
                jt: 0,
                jf: to_match as u8,
                k: range.last.into(),
            };
            self.0.extend([Step::Insn(first), Step::Insn(last)]);
        }
        self.0.push(Step::Leave);
    }

    /// Appends the block to `program`.
    fn append(&self, program: &mut Program) {
        for (index, step) in self.0.iter().enumerate() {
            let to_end = self.0.len() - index;
            program.push(match *step {
                Step::Insn(insn) => insn,
                Step::Is(k) => {
                    let code = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
                    Insn {
                        code,
                        jt: 0,
                        jf: to_end as u8,
                        k,
                    }
                }
                Step::Leave => insn(libc::BPF_JMP | libc::BPF_JA, to_end as u32),
            });
        }
        program.push(ALLOW);
    }
}

/// The most ranges of ports in a block, so that jumps to its end fit in a byte.
const MOST_RANGES: usize = 64;

impl Destination {
    fn append(&self, program: &mut Program) {
        let mut block = Block::default();
        block.word(offset::FAMILY, u32::MAX, self.family().0);
        let Destination::Subnet { subnet, ports } = self else {
            return block.append(program);
        };
        let (network, mask) = (
            address_bytes(subnet.network()),
            address_bytes(subnet.netmask()),
        );
        for (index, (network, mask)) in network.chunks(4).zip(mask.chunks(4)).enumerate() {
            let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
            if word(mask) != 0 {
                block.word(
                    offset::ADDRESS + 4 * index as u32,
                    word(mask),
                    word(network),
                );
            }
        }
        match ports {
            None => block.append(program),
            Some(ports) => {
                for ranges in ports.chunks(MOST_RANGES) {
                    let mut block = Block(block.0.iter().map(Step::copy).collect());
                    block.ports(ranges);
                    block.append(program);
                }
            }
        }
    }
}

impl Step {
    fn copy(&self) -> Self {
        match *self {
            Step::Insn(insn) => Step::Insn(insn),
            Step::Is(k) => Step::Is(k),
            Step::Leave => Step::Leave,
        }
    }
}

impl Open {
    fn append(&self, program: &mut Program) {
        let denied = self.all_denied_flags();
        if denied != 0 {
            program
                .push(load(offset::OPEN_FLAGS))
                .deny_if(libc::BPF_JSET, denied, true);
        }
        let required = self.all_required_resolve();
        if required != 0 {
            program
                .push(load(offset::RESOLVE))
                .push(alu(libc::BPF_AND, required))
                .deny_if(libc::BPF_JEQ, required, false);
        }
        for mode in self.access_modes.iter().flatten() {
            let mut block = Block::default();
            block.word(offset::OPEN_FLAGS, libc::O_ACCMODE as u32, mode.0);
            block.append(program);
        }
    }
}

impl Policy {
    /// Returns the program for an opcode that the lists allow.
    fn program(&self, op: Op) -> Vec<Insn> {
        let mut program = Program::default();
        program.deny_flags(self.denied_flags());
        match op {
            Op::SOCKET if self.socket_families.is_some() => {
                if !self.allows_family(Family::PACKET.0) {
                    // The kernel makes a packet socket of one that asks for this type in
                    // the family AF_INET.
                    program.push(load(offset::SOCKET_TYPE)).deny_if(
                        libc::BPF_JEQ,
                        SOCK_PACKET,
                        true,
                    );
                }
                for family in self.socket_families.iter().flatten() {
                    let mut block = Block::default();
                    block.word(offset::FAMILY, u32::MAX, family.0);
                    block.append(&mut program);
                }
                program.end(DENY)
            }
            Op::CONNECT if self.connect.is_some() => {
                for destination in self.connect.iter().flatten() {
                    destination.append(&mut program);
                }
                program.end(DENY)
            }
            Op::OPENAT | Op::OPENAT2 => match &self.open {
                // An openat has no resolve flags.
                Some(open) if op == Op::OPENAT && open.all_required_resolve() != 0 => vec![DENY],
                Some(open) => {
                    open.append(&mut program);
                    program.end(if open.access_modes.is_some() {
                        DENY
                    } else {
                        ALLOW
                    })
                }
                None => program.end(ALLOW),
            },
            _ => program.end(ALLOW),
        }
    }

    fn setup_filter(&self) -> Option<Filter> {
        let setup = self.setup.as_ref()?;
        let mut program = Program::default();
        if setup.denied_flags() != 0 {
            program.push(load(offset::SETUP_FLAGS)).deny_if(
                libc::BPF_JSET,
                setup.denied_flags(),
                true,
            );
        }
        if let Some(most) = setup.max_entries {
            program
                .push(load(offset::SETUP_ENTRIES))
                .deny_if(libc::BPF_JGT, most, true);
        }
        if let Some(most) = setup.max_cq_entries {
            // Without the flag, the completion queue follows from the submission queue.
            let is_given = Insn {
                code: (libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K) as u16,
                jt: 3,
                jf: 0,
                k: SetupFlag::CQSIZE.0,
            };
            program
                .push(load(offset::SETUP_FLAGS))
                .push(is_given)
                .push(load(offset::SETUP_ENTRIES))
                .deny_if(libc::BPF_JGT, entries_for(most), true)
                .push(load(offset::SETUP_CQ_ENTRIES))
                .deny_if(libc::BPF_JGT, most, true);
        }
        Some(Filter {
            opcode: 0,
            program: program.end(ALLOW),
            payload: SETUP_SIZE,
        })
    }

    /// Returns the filters that enforce this policy.
    ///
    /// # Errors
    ///
    /// Fails if a program would be longer than the kernel takes.
    pub fn fence(&self) -> Result<Fence, String> {
        let denies = self.default_action == Action::Deny;
        let mut requests = Vec::new();
        for &(name, op) in Op::ALL {
            let program = match self.lists(op) {
                true => self.program(op),
                false => vec![DENY],
            };
            if program.len() > MOST_INSNS {
                return Err(format!(
                    "the rules for {name} need {} instructions, and the kernel takes {MOST_INSNS}",
                    program.len()
                ));
            }
            // An opcode without a filter is allowed.
            if denies || program != [ALLOW] {
                let payload = if cost(&program) == Cost::Run {
                    payload_size(op)
                } else {
                    0
                };
                requests.push(Filter {
                    opcode: op.0,
                    program,
                    payload,
                });
            }
        }
        let flags = Program::default()
            .deny_flags(self.denied_flags())
            .end(ALLOW);
        Ok(Fence {
            requests,
            denies_other_requests: denies,
            unknown_requests: match denies {
                true => Some(vec![DENY]),
                false => (flags != [ALLOW]).then_some(flags),
            },
            setup: self.setup_filter(),
            registrations: self.registration_filters(),
            denies_other_registrations: self.denies_registrations(),
            unknown_registrations: self.denies_registrations().then(|| vec![DENY]),
        })
    }

    /// Returns whether registrations are denied by default.
    fn denies_registrations(&self) -> bool {
        let rule = self.registrations.as_ref();
        rule.is_some_and(|rule| rule.default_action == Action::Deny)
    }

    fn registration_filters(&self) -> Vec<Filter> {
        if self.registrations.is_none() {
            return Vec::new();
        }
        let all = Registration::ALL
            .iter()
            .map(|(_, registration)| *registration);
        all.map(|registration| (registration, self.allows_registration(registration)))
            .filter(|(_, is_allowed)| self.denies_registrations() || !is_allowed)
            .map(|(registration, is_allowed)| Filter {
                opcode: registration.0,
                program: vec![if is_allowed { ALLOW } else { DENY }],
                payload: 0,
            })
            .collect()
    }
}
