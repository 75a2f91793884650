// SPDX-License-Identifier: GPL-2.0
//! Random input to both interfaces: processes make registrations, control operations
//! and requests that are almost valid. The result of each is unknown in advance, but it
//! must be an errno that the interface uses. A call that failed must have written
//! nothing, and nothing must be left in the end.

use std::io::{ErrorKind, Write};
use std::mem::offset_of;
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, ensure};
use fastrand::Rng;

use super::zcrx_sharing::import_reg;
use super::{NOTE, Outcome, Test, TestResult, is_long, seed, tests};
use crate::bpf;
use crate::kernel::{IORING_OP_LAST, describe, expect_eq};
use crate::nic::wait_until;
use crate::register::{
    IORING_REGISTER_BPF_FILTER, IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_RESTRICTIONS,
    PAGE_SIZE, Registration as Filter, Restriction, TASK, register, task_restriction,
};
use crate::ring::IORING_SETUP_R_DISABLED;
use crate::sandbox::{self, Shared, pins};
use crate::sqe::{Sqe, op};
use crate::wide::{Mapping, WideRing, ZCRX_SETUP};
use crate::zcrx::{
    AreaReg, Ctrl, EventDesc, IORING_MEM_REGION_TYPE_USER, IORING_REGISTER_ZCRX_CTRL,
    IORING_REGISTER_ZCRX_IFQ, Ifq, IfqReg, RegionDesc, Rqe, ZCRX_CTRL_ADD_AREA, ZCRX_CTRL_EXPORT,
    ZCRX_REG_NODEV, map_offset, memory, recv_zc, region_size, tcp_pair, transfer,
};

pub const TESTS: &[Test] = tests! {
    "random" {
        ST15 any_input_gets_a_known_error_and_leaves_nothing (120 s);
    }
};

/// The errors that an attempt may return.
const ERRNOS: [i32; 22] = [
    libc::E2BIG,
    libc::EACCES,
    libc::EBADF,
    libc::EBADFD,
    libc::EBUSY,
    libc::EEXIST,
    libc::EFAULT,
    libc::EINVAL,
    libc::EMFILE,
    libc::EMSGSIZE,
    libc::ENODEV,
    libc::ENOMEM,
    libc::ENOSPC,
    libc::ENOTCONN,
    libc::ENOTSOCK,
    libc::ENXIO,
    libc::EOPNOTSUPP,
    libc::EOVERFLOW,
    libc::EPERM,
    libc::EPROTONOSUPPORT,
    libc::ERANGE,
    libc::ECANCELED,
];

/// Offsets in the page of a process at which the structures that it passes to the
/// kernel begin.
const REG: usize = 0;
const REGION: usize = 256;
const AREA: usize = 512;
const EVENT: usize = 768;
const PROGRAM: usize = 1024;
/// The number of pages of memory for areas and refill queues.
const PAGES: usize = 64;
/// The offset at which a registration of a filter has the size of the opcode's data.
const PDU_SIZE: usize = offset_of!(Filter, pdu_size);
/// The most rings that a process has, and the number of its steps.
const RINGS: usize = 6;
const STEPS: u32 = 250;

/// Checks that almost valid random input to filters, restrictions and zero-copy receive
/// gives only errors of the interface, and nothing is left.
fn any_input_gets_a_known_error_and_leaves_nothing() -> TestResult {
    let seed = seed();
    println!("{NOTE}seed {seed}");
    let processes = if is_long() { 600 } else { 24 };
    let mut rng = Rng::with_seed(seed);
    wait_until("the pages of other tests are no longer pinned", || {
        Ok(pins()? == 0)
    })?;
    let counts = Shared::<Counts>::new()?;
    for number in 0..processes {
        let rng = rng.fork();
        // Registering queues takes a privilege; filters are for tasks without
        // privileges.
        let child = || {
            if number % 3 == 0 {
                sandbox::sandboxed()?;
            }
            Speaker::new(rng)?.live(&counts)
        };
        sandbox::in_child(child).with_context(|| format!("process {number} of seed {seed}"))?;
    }
    let said = counts.each_ref().map(|count| count.load(Relaxed));
    let [done, refused, requests] = said;
    println!("{NOTE}{done} done, {refused} refused, {requests} requests");
    ensure!(said.iter().all(|&count| count > 100), "{said:?}");
    wait_until("nothing is pinned", || Ok(pins()? == 0))?;
    // The kernel still works for others.
    let mut ring = WideRing::new(8)?;
    let ifq = Ifq::new(ring.fd(), 64, 4)?;
    transfer(&mut ring, &ifq, 9 * PAGE_SIZE)?;
    Ok(Outcome::Passed)
}

/// The numbers of successful calls, of refused calls, and of requests submitted.
type Counts = [AtomicU32; 3];

/// A process that makes calls at random.
struct Speaker {
    rng: Rng,
    /// The structures that it passes to the kernel. No other structure tells the kernel
    /// to write here.
    words: Mapping,
    memory: Mapping,
    rings: Vec<WideRing>,
    /// Files of exported queues.
    files: Vec<RawFd>,
    connection: (TcpStream, TcpStream),
    trail: String,
}

impl Speaker {
    fn new(rng: Rng) -> anyhow::Result<Self> {
        let connection = tcp_pair()?;
        connection.0.set_nonblocking(true)?;
        Ok(Speaker {
            rng,
            words: memory(1)?,
            memory: memory(PAGES)?,
            rings: Vec::new(),
            files: Vec::new(),
            connection,
            trail: String::new(),
        })
    }

    fn chance(&mut self, of: u32) -> bool {
        self.rng.u32(..of) == 0
    }

    /// Returns an address in the memory for areas and refill queues.
    fn at(&self, offset: usize) -> u64 {
        self.memory.address() as u64 + offset as u64
    }

    /// Returns the address of a structure in [`Self::words`].
    fn word(&self, offset: usize) -> u64 {
        self.words.address() as u64 + offset as u64
    }

    /// Returns a random number, most often a special one.
    fn number(&mut self) -> u64 {
        match self.rng.u32(..12) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.rng.u32(..64),
            3 => (1u64 << self.rng.u32(..64)).wrapping_sub(1),
            4 => self.rng.u64(..8),
            5 => {
                let page = self.rng.usize(..PAGES);
                self.at(PAGE_SIZE * page)
            }
            6 => {
                let byte = self.rng.usize(..2 * PAGE_SIZE);
                self.at(byte)
            }
            7 => PAGE_SIZE as u64 * self.rng.u64(..PAGES as u64),
            8 => 0xffff_8880_0000_0000,
            9 => self.rng.u64(..70),
            10 => self.files.last().map_or(3, |&file| file as u64),
            // This is not the address of anything.
            _ => self.rng.u64(..) | 1 << 63,
        }
    }

    /// Writes a structure to where the kernel reads it, half the time with one or two
    /// fields changed.
    fn say<T: Copy>(&mut self, at: usize, what: T) {
        self.words.write(at, what);
        if self.rng.bool() {
            return;
        }
        for _ in 0..self.rng.u32(1..3) {
            let number = self.number();
            let size = 1 << self.rng.u32(..4);
            let field = at + size * self.rng.usize(..size_of::<T>() / size);
            match size {
                1 => self.words.write(field, number as u8),
                2 => self.words.write(field, number as u16),
                4 => self.words.write(field, number as u32),
                _ => self.words.write(field, number),
            }
        }
    }

    /// Picks a ring, or rarely any other number.
    fn ring(&mut self) -> RawFd {
        if self.chance(12) {
            return self.number() as RawFd;
        }
        match self.rings.len() {
            0 => TASK,
            count => self.rings[self.rng.usize(..count)].fd(),
        }
    }

    /// Makes a ring of a kind that can have queues, filters and restrictions.
    fn set_up(&mut self) -> anyhow::Result<()> {
        let disabled = if self.chance(4) {
            IORING_SETUP_R_DISABLED
        } else {
            0
        };
        let ring = WideRing::with(8, 64, ZCRX_SETUP | disabled)?;
        if self.rings.len() == RINGS {
            let old = self.rng.usize(..RINGS);
            self.rings.swap_remove(old);
        }
        self.rings.push(ring);
        Ok(())
    }

    /// Passes a `T` at [`REG`] to a registration, and returns the result. Checks that a
    /// call that fails with `EINVAL` has written nothing there.
    fn register<T: Copy>(&mut self, fd: RawFd, opcode: u32, said: T) -> anyhow::Result<i32> {
        self.say(REG, said);
        let count = match opcode {
            IORING_REGISTER_ZCRX_CTRL => 0,
            _ => 1,
        };
        let count = if self.chance(16) {
            self.number() as u32
        } else {
            count
        };
        let bytes = |words: &Mapping| -> Vec<u8> {
            let all = REG..REG + size_of::<T>();
            all.map(|at| words.read(at)).collect()
        };
        let before = bytes(&self.words);
        let got = register(fd, opcode, self.words.address().cast(), count);
        self.trail
            .push_str(&format!("\n{opcode} on {fd}: {}", describe(got)));
        if got == -libc::EINVAL {
            let mut after = bytes(&self.words);
            if opcode == IORING_REGISTER_BPF_FILTER {
                // The kernel writes back the size of the opcode's data before it checks
                // the program.
                after[PDU_SIZE] = before[PDU_SIZE];
            }
            expect_eq("the structure after EINVAL", after, before)?;
        }
        Ok(got)
    }

    fn filter(&mut self) -> anyhow::Result<i32> {
        let opcode = self.rng.u32(..IORING_OP_LAST) as u8;
        let program = match self.rng.u32(..4) {
            0 => bpf::allow(),
            1 => bpf::allow_if(bpf::PDU, self.rng.u32(..4)),
            2 => bpf::deny_if(bpf::USER_DATA_LO, self.rng.u32(..8)),
            _ => bpf::filler(2 + self.rng.usize(..12)),
        };
        for (number, insn) in program.iter().enumerate() {
            self.words
                .write(PROGRAM + number * size_of_val(insn), *insn);
        }
        if self.chance(4) {
            let (at, number) = (self.rng.usize(..8 * program.len()), self.number());
            self.words.write(PROGRAM + at, number as u8);
        }
        let mut said = Filter::new(opcode, &program);
        said.filter_ptr = self.word(PROGRAM);
        said.flags = if self.chance(8) { 1 } else { 0 };
        let fd = if self.chance(4) { TASK } else { self.ring() };
        self.register(fd, IORING_REGISTER_BPF_FILTER, said)
    }

    fn restrict(&mut self) -> anyhow::Result<i32> {
        let entries: Vec<Restriction> = (0..self.rng.usize(1..4))
            .map(|_| Restriction {
                opcode: self.rng.u16(..5),
                value: self.rng.u8(..70),
                ..Default::default()
            })
            .collect();
        if self.chance(8) {
            let mut said = [0; 64];
            let bytes = task_restriction(&entries);
            said[..bytes.len()].copy_from_slice(&bytes);
            return self.register(TASK, IORING_REGISTER_RESTRICTIONS, said);
        }
        let fd = self.ring();
        self.register(fd, IORING_REGISTER_RESTRICTIONS, entries[0])
    }

    fn queue(&mut self) -> anyhow::Result<i32> {
        let entries = 1 << self.rng.u32(..8);
        let own = self.chance(3);
        let page = |rng: &mut Rng| rng.usize(..PAGES - 8);
        let (first, header) = (page(&mut self.rng), page(&mut self.rng));
        let area = AreaReg {
            addr: self.at(PAGE_SIZE * first),
            len: PAGE_SIZE as u64 * self.rng.u64(1..8),
            ..Default::default()
        };
        let region = RegionDesc {
            size: region_size(entries) as u64 + PAGE_SIZE as u64,
            flags: if own { IORING_MEM_REGION_TYPE_USER } else { 0 },
            user_addr: if own { self.at(PAGE_SIZE * header) } else { 0 },
            ..Default::default()
        };
        let event = EventDesc {
            user_data: 1,
            type_mask: self.rng.u32(..4),
            flags: 1,
            stats_offset: region.size - 64,
            ..Default::default()
        };
        self.say(AREA, area);
        self.say(REGION, region);
        self.say(EVENT, event);
        // The kernel allocates eight bytes for each page before it looks at the pages. For
        // these sizes that may be all the memory that this machine has.
        for at in [
            AREA + offset_of!(AreaReg, len),
            REGION + offset_of!(RegionDesc, size),
        ] {
            if (1 << 36..1 << 42).contains(&self.words.read::<u64>(at)) {
                self.words.write(at, 1u64 << 35);
            }
        }
        let said = IfqReg {
            rq_entries: entries,
            flags: ZCRX_REG_NODEV,
            area_ptr: self.word(AREA),
            region_ptr: self.word(REGION),
            event_desc: if self.chance(2) { self.word(EVENT) } else { 0 },
            ..Default::default()
        };
        let said = match self.files.last().copied() {
            Some(file) if self.chance(3) => import_reg(file),
            _ => said,
        };
        let fd = self.ring();
        self.register(fd, IORING_REGISTER_ZCRX_IFQ, said)
    }

    fn control(&mut self) -> anyhow::Result<i32> {
        let mut said = Ctrl {
            zcrx_id: self.rng.u32(..3),
            op: self.rng.u32(..5),
            ..Default::default()
        };
        if said.op == ZCRX_CTRL_ADD_AREA {
            said.union[0] = self.word(AREA);
            let page = self.rng.usize(..PAGES);
            let area = AreaReg {
                addr: self.at(PAGE_SIZE * page),
                len: PAGE_SIZE as u64,
                ..Default::default()
            };
            self.say(AREA, area);
        }
        let fd = self.ring();
        let got = self.register(fd, IORING_REGISTER_ZCRX_CTRL, said)?;
        let made: Ctrl = self.words.read(REG);
        if got == 0 && made.op == ZCRX_CTRL_EXPORT {
            self.files.push(made.union[0] as RawFd);
        }
        Ok(got)
    }

    /// Writes entries to the refill queue of a ring, if it has one.
    fn scribble(&mut self) -> anyhow::Result<()> {
        // Only rings are mapped, as the number of any other file could map something
        // else.
        let Some(fd) = self.rng.choice(&self.rings).map(WideRing::fd) else {
            return Ok(());
        };
        // The refill queues made here are at least this long. Their first page always
        // exists.
        let len = region_size(1) + PAGE_SIZE;
        let Ok(refill) = Mapping::new(fd, map_offset(self.rng.u32(..3)), len) else {
            return Ok(());
        };
        for at in (64..PAGE_SIZE).step_by(16).take(self.rng.usize(1..64)) {
            let entry = Rqe {
                off: self.number(),
                ..Default::default()
            };
            refill.write(at, entry);
        }
        refill.write(64, self.number() as u32);
        Ok(())
    }

    /// Submits requests, among them receives, to a ring.
    fn submit(&mut self) -> anyhow::Result<u32> {
        if let Err(error) = self.connection.0.write(&[7; 3000]) {
            ensure!(error.kind() == ErrorKind::WouldBlock, "sending: {error}");
        }
        let socket = self.connection.1.as_raw_fd();
        let mut sqes = Vec::new();
        for _ in 0..self.rng.u32(1..4) {
            let sqe = match self.rng.u32(..4) {
                0 => Sqe::nop().user_data(self.rng.u64(..8)),
                1 => Sqe::socket(self.rng.i32(..20), self.rng.i32(..6), 0),
                _ => recv_zc(socket, self.rng.u32(..3), 1 + self.rng.u32(..5000)),
            };
            self.say(PROGRAM, sqe);
            let mut said: Sqe = self.words.read(PROGRAM);
            // This test is not about requests of other opcodes.
            if ![op::NOP, op::SOCKET, op::RECV_ZC].contains(&said.opcode) {
                said.opcode = sqe.opcode;
            }
            // With flags, a NOP ends with any result that the SQE gives.
            if said.opcode == op::NOP {
                said.op_flags = 0;
            }
            sqes.push(said);
        }
        let count = self.rings.len();
        if count == 0 {
            return Ok(0);
        }
        let which = self.rng.usize(..count);
        let ring = &mut self.rings[which];
        for sqe in sqes {
            if ring.push(sqe).is_err() {
                break;
            }
        }
        // Submitting fails if the ring is disabled or a queue has overflown.
        let Ok(submitted) = ring.submit() else {
            return Ok(0);
        };
        while let Some(cqe) = ring.try_cqe() {
            let known = cqe.res >= 0 || ERRNOS.contains(&-cqe.res) || is_socket_error(-cqe.res);
            ensure!(known, "a request ends with {}", describe(cqe.res));
        }
        Ok(submitted)
    }

    fn live(&mut self, counts: &Counts) -> anyhow::Result<()> {
        for _ in 0..STEPS {
            self.step(counts).with_context(|| self.trail.clone())?;
        }
        Ok(())
    }

    /// Takes one random step.
    fn step(&mut self, counts: &Counts) -> anyhow::Result<()> {
        let got = match self.rng.u32(..16) {
            0 => {
                // A process with restrictions may be unable to make another ring, and
                // goes on without.
                let _ = self.set_up();
                return Ok(());
            }
            1 => {
                let fd = self.ring();
                register(fd, IORING_REGISTER_ENABLE_RINGS, std::ptr::null(), 0)
            }
            2 => return self.scribble(),
            3..=5 => {
                counts[2].fetch_add(self.submit()?, Relaxed);
                return Ok(());
            }
            6 | 7 => self.filter()?,
            8 => self.restrict()?,
            9..=12 => self.queue()?,
            _ => self.control()?,
        };
        ensure!(got >= 0 || ERRNOS.contains(&-got), "{}", describe(got));
        counts[usize::from(got < 0)].fetch_add(1, Relaxed);
        Ok(())
    }
}

/// Returns whether the error is one that only making a socket adds.
fn is_socket_error(errno: i32) -> bool {
    const MORE: [i32; 4] = [
        libc::EAFNOSUPPORT,
        libc::ESOCKTNOSUPPORT,
        libc::ENOBUFS,
        libc::EPROTOTYPE,
    ];
    MORE.contains(&errno)
}
