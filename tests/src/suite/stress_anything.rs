// SPDX-License-Identifier: GPL-2.0
//! Anything that can be said to both interfaces: registrations, control operations and
//! requests that are nearly right, in processes that do them at random. What comes of
//! one cannot be foretold, but it is an errno that the interface knows, what failed
//! has written nothing, and in the end nothing is left.

use std::io::{ErrorKind, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use anyhow::{Context, ensure};
use fastrand::Rng;

use super::zcrx_sharing::import_reg;
use super::{NOTE, Outcome, Test, TestResult, is_long, seed, slow};
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

pub const TESTS: &[Test] = &[slow("ST15 anything, said to both interfaces", 120, st15)];

/// What may be said of an attempt.
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

/// Places in the memory of a process where what it says stands, apart from each other.
const REG: usize = 0;
const REGION: usize = 256;
const AREA: usize = 512;
const EVENT: usize = 768;
const PROGRAM: usize = 1024;
/// Memory to receive into, and of refill queues, in pages.
const PAGES: usize = 64;
/// Where a registration of a filter has the size of what filters see.
const PDU_SIZE: usize = std::mem::offset_of!(Filter, pdu_size);
/// Most rings that a process has, and steps after which it ends.
const RINGS: usize = 6;
const STEPS: u32 = 250;

fn st15() -> TestResult {
    let seed = seed();
    println!("{NOTE}seed {seed}");
    let processes = if is_long() { 600 } else { 24 };
    let mut rng = Rng::with_seed(seed);
    wait_until("what others had is not pinned", || Ok(pins()? == 0))?;
    let counts = Shared::<Counts>::new()?;
    for number in 0..processes {
        let rng = rng.fork();
        // Queues take a privilege, filters are for those who have none.
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
    // All goes on for others.
    let mut ring = WideRing::new(8)?;
    let ifq = Ifq::new(ring.fd(), 64, 4)?;
    transfer(&mut ring, &ifq, 9 * PAGE_SIZE)?;
    Ok(Outcome::Passed)
}

/// How many registrations were done and refused, and how many requests taken.
type Counts = [AtomicU32; 3];

/// A process that speaks at random.
struct Speaker {
    rng: Rng,
    /// What it says, which the kernel is never told to write to otherwise.
    words: Mapping,
    memory: Mapping,
    rings: Vec<WideRing>,
    /// Queues that were exported.
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

    /// Returns an address in the memory that is received into.
    fn at(&self, offset: usize) -> u64 {
        self.memory.address() as u64 + offset as u64
    }

    /// Returns the address of something that it says.
    fn word(&self, offset: usize) -> u64 {
        self.words.address() as u64 + offset as u64
    }

    /// Makes up a number, one that is likely to be special.
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
            // No address of anything.
            _ => self.rng.u64(..) | 1 << 63,
        }
    }

    /// Puts what was to be said where the kernel reads it, with a few fields changed.
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

    /// Picks a ring, or whatever else a number is.
    fn ring(&mut self) -> RawFd {
        if self.chance(12) {
            return self.number() as RawFd;
        }
        match self.rings.len() {
            0 => TASK,
            count => self.rings[self.rng.usize(..count)].fd(),
        }
    }

    /// Makes a ring of a kind that queues, filters and restrictions can be had with.
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

    /// Says something of `T` at [`REG`]: the result. Where it is `EINVAL`, nothing was
    /// written there.
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
                // The size of what filters see is told before the program is looked at.
                after[PDU_SIZE] = before[PDU_SIZE];
            }
            expect_eq("what was said", after, before)?;
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

    /// Writes entries to a refill queue, if it can be mapped.
    fn scribble(&mut self) -> anyhow::Result<()> {
        // Other files might be there to be mapped.
        let Some(fd) = self.rng.choice(&self.rings).map(WideRing::fd) else {
            return Ok(());
        };
        // As long as those that are made here. The first page is there in any case.
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

    /// Submits requests to a ring, those that receive among them.
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
            // Requests of others are not what this is about.
            if ![op::NOP, op::SOCKET, op::RECV_ZC].contains(&said.opcode) {
                said.opcode = sqe.opcode;
            }
            // It would end with whatever result it is told to.
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
        // It is not enabled, or something has overflown.
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

    /// Takes one step, whatever it is.
    fn step(&mut self, counts: &Counts) -> anyhow::Result<()> {
        let got = match self.rng.u32(..16) {
            0 => {
                // Those who may not have one any more go on without.
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

/// Returns whether making a socket of some kind may fail with this, too.
fn is_socket_error(errno: i32) -> bool {
    const MORE: [i32; 4] = [
        libc::EAFNOSUPPORT,
        libc::ESOCKTNOSUPPORT,
        libc::ENOBUFS,
        libc::EPROTOTYPE,
    ];
    MORE.contains(&errno)
}
