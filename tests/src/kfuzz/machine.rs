// SPDX-License-Identifier: GPL-2.0
//! The interpreter of programs: what a task has (rings, queues, files, memory), and the
//! operations that make these things. The neighbours have the other operations.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::device::Device;
use super::op::Op;
use super::queues::Queue;
use super::runner::Log;
use super::values::{Memory, PAGES};
use crate::kernel::describe;
use crate::register::{self, PAGE_SIZE};
use crate::ring::{
    IORING_SETUP_CQSIZE, IORING_SETUP_R_DISABLED, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_SQPOLL,
    IORING_SETUP_SUBMIT_ALL, RawParams, setup,
};
use crate::wide::{IORING_SETUP_CQE_MIXED, IORING_SETUP_DEFER_TASKRUN, WideRing, ZCRX_SETUP};
use crate::zcrx::{pattern, tcp_pair};

const IORING_SETUP_NO_MMAP: u32 = 1 << 14;
const IORING_SETUP_REGISTERED_FD_ONLY: u32 = 1 << 15;
/// All setup flags that the kernel has, and one that it does not have.
const SETUP_FLAGS: u32 = (1 << 22) - 1;

/// The number of slots for rings.
pub const RINGS: usize = 4;
/// The most files that programs can name.
const FILES: usize = 64;

/// The way in which programs run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// One operation after the other, without any that depend on timing: the results
    /// follow from the program.
    Compare,
    /// Threads and children run at the same time.
    Race,
}

/// A ring of a program.
pub struct Ring {
    /// The file descriptor, or the index of a registered ring.
    pub fd: RawFd,
    /// The mapped ring, if it can be mapped.
    pub wide: Option<WideRing>,
    /// The requests that were queued and not submitted: their `user_data`, and whether
    /// each completes without help.
    pub queued: VecDeque<(u64, bool)>,
    /// The submitted requests that complete without help and have not yet.
    pub waited_for: Vec<u64>,
    /// Whether the last queued request is linked to the next, and if so, whether all of
    /// the chain complete without help.
    pub chain: Option<bool>,
}

/// A pair of connected files.
pub struct Connection {
    pub sender: RawFd,
    pub receiver: RawFd,
    /// The number of bytes of the pattern that were sent, and received without copying.
    pub sent: usize,
    pub taken: usize,
}

/// A task that runs operations.
pub struct Machine<'a> {
    pub mode: Mode,
    pub log: &'a Log,
    pub device: Option<&'a Device>,
    pub memory: Arc<Memory>,
    pub rings: [Option<Ring>; RINGS],
    pub queues: Vec<Queue>,
    pub files: Vec<RawFd>,
    pub connections: Vec<Connection>,
    /// The queue and the connection of each zero-copy receive, by its `user_data`.
    pub receives: HashMap<u64, (usize, usize)>,
    /// The number of requests so far.
    pub requests: u64,
    /// Whether the program has asked for the device.
    pub on_device: bool,
    /// Whether this is a child or a thread of a child. They make no more.
    pub depth: u32,
}

impl<'a> Machine<'a> {
    pub fn new(mode: Mode, log: &'a Log, device: Option<&'a Device>) -> anyhow::Result<Self> {
        Ok(Machine {
            mode,
            log,
            device,
            memory: Arc::new(Memory::new()?),
            rings: [const { None }; RINGS],
            queues: Vec::new(),
            files: Vec::new(),
            connections: Vec::new(),
            receives: HashMap::new(),
            requests: 0,
            on_device: false,
            depth: 0,
        })
    }

    /// Runs operations, the first of which is number `first` of the program.
    pub fn run(&mut self, first: usize, ops: &[Op]) {
        let mut at = 0;
        while at < ops.len() {
            self.log.begin(first + at, &ops[at]);
            let rest = &ops[at + 1..];
            at += 1;
            match ops[at - 1] {
                Op::Fork { count } => at += self.fork(first + at, count, rest),
                Op::Thread { count } => at += self.thread(first + at, count, rest),
                op => self.step(op),
            }
        }
    }

    /// Runs one operation that has no others in it.
    fn step(&mut self, op: Op) {
        match op {
            Op::Ring { .. } => self.set_up(op),
            Op::Close { slot } => self.close(slot),
            Op::Enable { slot } => {
                let got = register::enable(self.ring_fd(slot));
                self.result(got);
            }
            Op::Filter { .. } => self.filter(op),
            Op::Restrict { .. } => self.restrict(op),
            Op::Sqe { .. } => self.request(op),
            Op::Recv { .. } => self.receive(op),
            Op::Enter { slot, count, flags } => self.enter(slot, count, flags),
            Op::Register { .. } => self.register(op),
            Op::Files { kind } => self.make_files(kind),
            Op::Send { .. } => self.send(op),
            Op::CloseFile { file, how } => self.close_file(file, how),
            Op::Queue { .. } => self.make_queue(op),
            Op::Import { .. } => self.import(op),
            Op::Control { .. } => self.control(op),
            Op::Return { .. } => self.return_buffers(op),
            Op::Entry { .. } => self.add_entries(op),
            Op::Header {
                queue,
                word,
                number,
            } => self.write_header(queue, word, number),
            Op::Exec {} => self.exec(),
            Op::Privileges { kind } => self.give_up_privileges(kind),
            Op::Memory { what, first, pages } => self.change_memory(what, first, pages),
            Op::Signal { kind } => self.signal(kind),
            Op::Device { what, value } => self.change_device(what, value),
            Op::Scribble { queue, first, seed } => self.scribble(queue, first, seed),
            Op::Fork { .. } | Op::Thread { .. } => unreachable!("run() has taken these"),
        }
    }

    /// Records the result of a system call.
    pub fn result(&self, got: i32) {
        self.log.say(&describe(got));
    }

    /// Returns the special number that a byte stands for.
    pub fn number(&self, byte: u8) -> u64 {
        self.memory.number(byte, &self.files)
    }

    /// Returns the ring in a slot.
    pub fn ring(&mut self, slot: u8) -> Option<&mut Ring> {
        self.rings[usize::from(slot) % RINGS].as_mut()
    }

    /// Returns the file descriptor of the ring in a slot, or of a file if `slot` is large.
    pub fn ring_fd(&self, slot: u8) -> RawFd {
        if slot >= 240 {
            return self.number(slot) as RawFd;
        }
        match &self.rings[usize::from(slot) % RINGS] {
            Some(ring) => ring.fd,
            None => -1,
        }
    }

    /// Remembers files by which later operations can name them.
    pub fn keep(&mut self, files: &[RawFd]) {
        let room = FILES - self.files.len();
        self.files.extend(files.iter().take(room));
    }

    fn set_up(&mut self, op: Op) {
        let Op::Ring {
            slot,
            kind,
            entries,
            completions,
            flags0,
            flags1,
            flags2,
        } = op
        else {
            return;
        };
        let mut flags = match kind % 12 {
            0..3 => ZCRX_SETUP,
            3 => ZCRX_SETUP | IORING_SETUP_R_DISABLED,
            4 => IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_CQE_MIXED,
            5 => 0,
            6 => IORING_SETUP_R_DISABLED,
            7 => IORING_SETUP_SUBMIT_ALL,
            8 => ZCRX_SETUP | IORING_SETUP_SUBMIT_ALL,
            _ => u32::from_ne_bytes([flags0, flags1, flags2, 0]) & SETUP_FLAGS,
        };
        if self.mode == Mode::Compare {
            // A thread of the kernel submits when it likes.
            flags &= !IORING_SETUP_SQPOLL;
        }
        let mut params = RawParams::default();
        if completions >= 64 {
            flags |= IORING_SETUP_CQSIZE;
            params[1] = u32::from(completions) - 64;
        }
        params[2] = flags;
        params[6] = self.files.last().map_or(0, |fd| *fd as u32);
        if flags & IORING_SETUP_NO_MMAP != 0 {
            // The addresses of the SQEs and of the rings.
            params[18] = self.memory.page(usize::from(flags0)) as u32;
            params[19] = (self.memory.page(usize::from(flags0)) >> 32) as u32;
            params[28] = self.memory.page(usize::from(completions)) as u32;
            params[29] = (self.memory.page(usize::from(completions)) >> 32) as u32;
        }
        let entries = match entries {
            ..224 => 1 << (entries % 6),
            _ => self.number(entries) as u32,
        };
        let fd = setup(entries, &mut params);
        if fd < 0 {
            return self.result(fd);
        }
        self.log.say(&format!("ok {:x?}", &params[..6]));
        let mut wide = None;
        if flags & (IORING_SETUP_NO_MMAP | IORING_SETUP_REGISTERED_FD_ONLY) == 0 {
            // SAFETY: the descriptor is new, and nothing else owns it.
            let owned = unsafe { OwnedFd::from_raw_fd(fd) };
            match WideRing::attach(owned, params) {
                Ok(ring) => wide = Some(ring),
                Err(error) => return self.log.say(&format!("{error:#}")),
            }
        }
        self.close(slot);
        self.keep(&[fd]);
        self.rings[usize::from(slot) % RINGS] = Some(Ring {
            fd,
            wide,
            queued: VecDeque::new(),
            waited_for: Vec::new(),
            chain: None,
        });
    }

    fn close(&mut self, slot: u8) {
        let Some(ring) = self.rings[usize::from(slot) % RINGS].take() else {
            return;
        };
        self.files.retain(|fd| *fd != ring.fd);
        if ring.wide.is_none() {
            // SAFETY: a wrong descriptor is refused.
            unsafe { libc::close(ring.fd) };
        }
    }

    fn make_files(&mut self, kind: u8) {
        match self.new_files(kind) {
            Ok(files) => {
                self.log.say(&format!("{}", files.len()));
                self.keep(&files);
            }
            Err(error) => self.log.say(&format!("{error:#}")),
        }
    }

    /// Makes files of a kind, which live as long as the process.
    fn new_files(&mut self, kind: u8) -> anyhow::Result<Vec<RawFd>> {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
        let made = match kind % 12 {
            0..5 => {
                let (sender, receiver) = tcp_pair()?;
                return Ok(self.connect(sender.into_raw_fd(), receiver.into_raw_fd()));
            }
            5 => {
                let (one, other) = socketpair(
                    AddressFamily::Unix,
                    SockType::Stream,
                    None,
                    SockFlag::SOCK_CLOEXEC,
                )?;
                return Ok(self.connect(one.into_raw_fd(), other.into_raw_fd()));
            }
            6 => {
                let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK)?;
                return Ok(self.connect(write.into_raw_fd(), read.into_raw_fd()));
            }
            7 => OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_NONBLOCK)?).into_raw_fd(),
            8 => {
                let file =
                    nix::sys::memfd::memfd_create(c"file", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
                nix::unistd::write(&file, &pattern(0, 5000))?;
                file.into_raw_fd()
            }
            9 => std::net::TcpListener::bind("127.0.0.1:0")?.into_raw_fd(),
            10 => std::net::UdpSocket::bind("127.0.0.1:0")?.into_raw_fd(),
            _ => {
                let (buffer, memory) = crate::dmabuf::new(4 * PAGE_SIZE)?;
                // The memory must stay, and nothing but the kernel uses it.
                std::mem::forget(memory);
                buffer.into_raw_fd()
            }
        };
        Ok(vec![made])
    }

    /// Remembers a connection. Returns its files.
    pub fn connect(&mut self, sender: RawFd, receiver: RawFd) -> Vec<RawFd> {
        self.connections.push(Connection {
            sender,
            receiver,
            sent: 0,
            taken: 0,
        });
        vec![sender, receiver]
    }

    fn send(&mut self, op: Op) {
        let Op::Send {
            connection,
            len,
            pieces,
        } = op
        else {
            return;
        };
        let count = self.connections.len();
        if count == 0 {
            return;
        }
        let connection = &mut self.connections[usize::from(connection) % count];
        let len = 1 + usize::from(len) * 64;
        let mut sent = 0;
        for _ in 0..1 + pieces % 4 {
            let bytes = pattern(connection.sent, len);
            let (address, flags) = (
                bytes.as_ptr().cast(),
                libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
            );
            // SAFETY: the buffer has this length.
            let mut got = unsafe { libc::send(connection.sender, address, len, flags) };
            if got < 0 {
                // SAFETY: the buffer has this length. Files that are not sockets do not
                // block.
                got = unsafe { libc::write(connection.sender, address, len) };
            }
            if got <= 0 {
                break;
            }
            connection.sent += got as usize;
            sent += got;
        }
        self.log.say(&sent.to_string());
    }

    fn close_file(&mut self, file: u8, how: u8) {
        let count = self.files.len();
        if count == 0 {
            return;
        }
        let fd = self.files[usize::from(file) % count];
        let is_ring = self.rings.iter().flatten().any(|ring| ring.fd == fd);
        // SAFETY: the calls take no pointers.
        let got = match how % 4 {
            0..3 => unsafe { libc::shutdown(fd, i32::from(how % 4)) },
            // The slot of a ring owns its file.
            _ if is_ring => return,
            _ => {
                self.files.retain(|other| *other != fd);
                // SAFETY: as above.
                unsafe { libc::close(fd) }
            }
        };
        self.result(crate::kernel::result(got.into()));
    }

    /// Changes how the memory of areas is mapped, under the kernel's pins.
    fn change_memory(&mut self, what: u8, first: u8, pages: u8) {
        let first = usize::from(first) % PAGES;
        let len = PAGE_SIZE * (1 + usize::from(pages) % (PAGES - first));
        let address = self.memory.page(first) as *mut libc::c_void;
        // SAFETY: the range is in the memory for areas, which this program uses through
        // calls that check addresses.
        let got = unsafe {
            match what % 6 {
                0 => libc::munmap(address, len),
                1 => libc::mprotect(address, len, libc::PROT_NONE),
                2 => libc::mprotect(address, len, libc::PROT_READ),
                3 => libc::madvise(address, len, libc::MADV_DONTNEED),
                4 => libc::madvise(address, len, libc::MADV_HUGEPAGE),
                _ => {
                    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
                    let access = libc::PROT_READ | libc::PROT_WRITE;
                    let new = libc::mmap(address, len, access, flags, -1, 0);
                    -libc::c_int::from(new == libc::MAP_FAILED)
                }
            }
        };
        self.result(crate::kernel::result(got.into()));
    }
}
