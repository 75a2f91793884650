// SPDX-License-Identifier: GPL-2.0
//! The system calls: registering filters with the calling task, and the smallest use of
//! rings that shows what they do. All unsafe code is here.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use io_uring::{IoUring, cqueue, opcode, squeue};
use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal, signal};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use crate::names::{Op, Registration};
use crate::program::{Fence, Filter, Insn};

/// What a filter decides on: `cmd_type` of `struct io_uring_bpf`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Request = 1,
    Registration = 2,
    Setup = 3,
}

/// `struct io_uring_bpf` with its filter.
#[repr(C)]
struct Description {
    cmd_type: u16,
    cmd_flags: u16,
    resv: u32,
    opcode: u32,
    flags: u32,
    filter_len: u32,
    pdu_size: u8,
    filter_resv: [u8; 3],
    filter_ptr: u64,
    filter_resv2: [u64; 5],
}

const _: () = assert!(size_of::<Description>() == 72);

/// Denies the opcodes that have no filter: `IO_URING_BPF_FILTER_DENY_REST`.
const DENY_REST: u32 = 1;

/// The file descriptor that means the calling task.
pub const TASK: RawFd = -1;

/// Calls `io_uring_register(2)`.
///
/// # Safety
///
/// `argument` must be what the registration takes, with `count` entries.
unsafe fn register(
    fd: RawFd,
    registration: Registration,
    argument: *mut libc::c_void,
    count: u32,
) -> io::Result<i32> {
    let opcode = u32::from(registration.0);
    // SAFETY: the caller passes what the registration takes.
    let ret = unsafe { libc::syscall(libc::SYS_io_uring_register, fd, opcode, argument, count) };
    match ret {
        0.. => Ok(ret as i32),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Registers a filter with the calling task, for this thread and what it starts. With
/// `deny_rest`, opcodes of this kind that have no filter are denied from now on.
///
/// # Errors
///
/// `EACCES` without no_new_privs, `EMSGSIZE` if the kernel shows filters less of the
/// opcode than the program may read, `EINVAL` if it has no such filters or opcode.
pub fn register_filter(kind: Kind, filter: &Filter, deny_rest: bool) -> io::Result<()> {
    register_program(
        kind,
        filter.opcode.into(),
        &filter.program,
        filter.payload,
        deny_rest,
    )
}

fn register_program(
    kind: Kind,
    opcode: u32,
    program: &[Insn],
    payload: u8,
    deny_rest: bool,
) -> io::Result<()> {
    let mut description = Description {
        cmd_type: kind as u16,
        cmd_flags: 0,
        resv: 0,
        opcode,
        flags: if deny_rest { DENY_REST } else { 0 },
        filter_len: program.len() as u32,
        pdu_size: payload,
        filter_resv: [0; 3],
        filter_ptr: program.as_ptr() as u64,
        filter_resv2: [0; 5],
    };
    let argument = (&raw mut description).cast();
    // SAFETY: the argument is one description, and its program lives until the call ends.
    unsafe { register(TASK, Registration::REGISTER_BPF_FILTER, argument, 1) }.map(drop)
}

/// A filter that the kernel does not take, which leaves the calling task with some of the
/// filters before it.
#[derive(Debug, thiserror::Error)]
#[error("the kernel does not take the filter for {what}: {source}{}", meaning(*.kind, .source))]
pub struct NotEnforced {
    pub kind: Kind,
    what: String,
    source: io::Error,
}

/// Explains an error of a registration.
fn meaning(kind: Kind, error: &io::Error) -> &'static str {
    match (error.raw_os_error(), kind) {
        (Some(libc::EMSGSIZE), _) => {
            "; it does not show filters the arguments of this opcode: remove the rule about these, or use a newer kernel"
        }
        (Some(libc::EINVAL), Kind::Setup) => "; it cannot filter the setup of rings",
        (Some(libc::EINVAL), Kind::Registration) => "; it cannot filter registrations",
        (Some(libc::EINVAL), Kind::Request) => "; it has no filters, or does not know this opcode",
        (Some(libc::EBADF), _) => "; it has no filters for tasks",
        (Some(libc::ENOSYS | libc::EPERM), _) => {
            "; io_uring is not there, or seccomp or kernel.io_uring_disabled refuse it"
        }
        (Some(libc::EACCES), _) => "; an earlier filter or restriction refuses registrations",
        (Some(libc::ENOMEM), _) => "; the filters that are there already may be too long",
        _ => "",
    }
}

/// Registers a program for the opcodes from `first` on, which this program does not know.
fn register_unknown(kind: Kind, first: u32, program: &[Insn]) -> Result<(), NotEnforced> {
    for opcode in first.. {
        match register_program(kind, opcode, program, 0, false) {
            Ok(()) => {}
            // The kernel has no opcode with this number.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => break,
            Err(source) => {
                let what = format!("opcode {opcode}");
                return Err(NotEnforced { kind, what, source });
            }
        }
    }
    Ok(())
}

/// Registers all filters of a policy with the calling task.
///
/// # Errors
///
/// Fails with the first filter that the kernel does not take.
pub fn enforce(fence: &Fence) -> Result<(), NotEnforced> {
    let refused = |kind, what: String| move |source| NotEnforced { kind, what, source };
    for (index, filter) in fence.requests.iter().enumerate() {
        let deny_rest = fence.denies_other_requests && index + 1 == fence.requests.len();
        register_filter(Kind::Request, filter, deny_rest)
            .map_err(refused(Kind::Request, Op(filter.opcode).to_string()))?;
    }
    if let Some(program) = &fence.unknown_requests {
        register_unknown(Kind::Request, Op::ALL.len() as u32, program)?;
    }
    if let Some(filter) = &fence.setup {
        register_filter(Kind::Setup, filter, false)
            .map_err(refused(Kind::Setup, "io_uring_setup".to_string()))?;
    }
    // These are last, as they may deny the registration of filters.
    if let Some(program) = &fence.unknown_registrations {
        register_unknown(Kind::Registration, Registration::ALL.len() as u32, program)?;
    }
    for (index, filter) in fence.registrations.iter().enumerate() {
        let deny_rest = fence.denies_other_registrations && index + 1 == fence.registrations.len();
        register_filter(Kind::Registration, filter, deny_rest).map_err(refused(
            Kind::Registration,
            Registration(filter.opcode).to_string(),
        ))?;
    }
    Ok(())
}

/// Keeps the calling thread, and what it starts, from gaining privileges by `execve(2)`.
pub fn set_no_new_privs() -> io::Result<()> {
    // SAFETY: the call takes no pointers.
    match unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `io_uring_register(-1, IORING_REGISTER_SEND_MSG_RING, …)` fail with `EACCES`, by
/// seccomp. Where the kernel lets that call go around filters, this closes the gap. Needs
/// no_new_privs.
pub fn refuse_send_msg_ring() -> io::Result<()> {
    const NR: u32 = 0;
    const FD: u32 = 16;
    const OPCODE: u32 = 24;
    /// The bit that all numbers of the x32 ABI have.
    const X32: u32 = 0x4000_0000;
    /// The bit of an opcode by which a ring is named by its index.
    const BY_INDEX: u32 = 1 << 31;
    let load = |offset| Insn {
        code: (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16,
        jt: 0,
        jf: 0,
        k: offset,
    };
    let and = |k| Insn {
        code: (libc::BPF_ALU | libc::BPF_AND | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k,
    };
    let unless = |k, jf| Insn {
        code: (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16,
        jt: 0,
        jf,
        k,
    };
    let ret = |k| Insn {
        code: (libc::BPF_RET | libc::BPF_K) as u16,
        jt: 0,
        jf: 0,
        k,
    };
    // The system call has the same number on all machines that this program is for, with
    // programs of 32 bits as well.
    let program = [
        load(NR),
        and(!X32),
        unless(libc::SYS_io_uring_register as u32, 6),
        load(OPCODE),
        and(!BY_INDEX),
        unless(Registration::REGISTER_SEND_MSG_RING.0.into(), 3),
        load(FD),
        unless(TASK as u32, 1),
        ret(libc::SECCOMP_RET_ERRNO | libc::EACCES as u32),
        ret(libc::SECCOMP_RET_ALLOW),
    ];
    let description = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_ptr().cast_mut().cast(),
    };
    let mode = libc::SECCOMP_SET_MODE_FILTER;
    // SAFETY: the description names a program that lives until the call ends.
    match unsafe { libc::syscall(libc::SYS_seccomp, mode, 0, &raw const description) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A ring, with the requests that self-tests make.
pub struct Ring(IoUring);

impl Ring {
    pub fn new() -> io::Result<Self> {
        Ok(Ring(IoUring::new(4)?))
    }

    /// Makes a ring with these `IORING_SETUP_*` flags.
    ///
    /// # Errors
    ///
    /// As `io_uring_setup(2)`.
    pub fn with_flags(flags: u32) -> io::Result<()> {
        let mut parameters = [0u32; 30];
        parameters[2] = flags;
        let argument = parameters.as_mut_ptr();
        // SAFETY: the argument has the 120 bytes of `struct io_uring_params`.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, argument) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: nothing else uses the descriptor.
        unsafe { libc::close(fd as RawFd) };
        Ok(())
    }

    /// Returns the descriptor of the ring.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    fn submit(&mut self, entry: &squeue::Entry) -> io::Result<cqueue::Entry> {
        // SAFETY: the requests of self-tests have no pointers.
        unsafe { self.0.submission().push(entry) }.map_err(io::Error::other)?;
        self.0.submit_and_wait(1)?;
        self.0
            .completion()
            .next()
            .ok_or_else(|| io::Error::other("no completion"))
    }

    /// Makes a NOP and returns its result.
    pub fn nop(&mut self) -> io::Result<i32> {
        Ok(self.submit(&opcode::Nop::new().build())?.result())
    }

    /// Sends this ring a message without a ring to send it from.
    ///
    /// # Errors
    ///
    /// `EACCES` if a filter denies `IORING_OP_MSG_RING`.
    pub fn send_msg_ring(&self) -> io::Result<()> {
        // `struct io_uring_sqe` with opcode, fd, and the user data of the message in `off`.
        let mut sqe = [0u64; 8];
        sqe[0] = u64::from(Op::MSG_RING.0) | (self.0.as_raw_fd() as u64) << 32;
        sqe[1] = 1;
        let argument = sqe.as_mut_ptr().cast();
        // SAFETY: the argument is one SQE.
        unsafe { register(TASK, Registration::REGISTER_SEND_MSG_RING, argument, 1) }.map(drop)
    }

    /// Returns whether the ring's probe reports an opcode as supported.
    pub fn probe(&self, op: Op) -> io::Result<bool> {
        let mut probe = io_uring::Probe::new();
        self.0.submitter().register_probe(&mut probe)?;
        Ok(probe.is_supported(op.0))
    }
}

/// Starts a child process that runs `body` and exits with what it returns.
///
/// # Errors
///
/// Fails if the child cannot be made.
pub fn spawn(body: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: this program has one thread, so that the child may do anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let status = body();
            // SAFETY: this leaves at once, without running the parent's destructors.
            unsafe { libc::_exit(status.into()) }
        }
    }
}

/// Sets an environment variable of this process and of the programs that it becomes.
pub fn set_variable(name: &str, value: &Path) {
    // SAFETY: this program has one thread, so that nobody reads the environment meanwhile.
    unsafe { std::env::set_var(name, value) }
}

/// Runs `body` in a child process and returns what it returns.
///
/// # Errors
///
/// Fails if the child cannot be made or is killed.
pub fn in_child(body: impl FnOnce() -> u8) -> io::Result<u8> {
    let child = spawn(body)?;
    loop {
        match waitpid(child, None) {
            Ok(WaitStatus::Exited(_, status)) => return Ok(status as u8),
            Err(Errno::EINTR) => {}
            Ok(_) => return Err(io::Error::other("the self-test was killed")),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The signals that ask this process to end while it waits for a command. Those of the
/// terminal reach the command as well, and are ignored. The others are passed on.
pub struct Signals(libc::sigset_t);

impl Signals {
    /// Takes the signals from now on. Call this when the command runs: it would inherit
    /// this.
    pub fn take() -> Self {
        for interrupt in [Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: no handler is called for a signal that is ignored.
            let _ = unsafe { signal(interrupt, SigHandler::SigIgn) };
        }
        let mut others = SigSet::empty();
        others.add(Signal::SIGTERM);
        others.add(Signal::SIGHUP);
        let _ = others.thread_block();
        Signals(*others.as_ref())
    }

    /// Waits for a signal for some milliseconds. Returns the signal to pass on, if there is
    /// one.
    pub fn wait(&self, milliseconds: u16) -> Option<Signal> {
        let time = libc::timespec {
            tv_sec: i64::from(milliseconds / 1000),
            tv_nsec: i64::from(milliseconds % 1000) * 1_000_000,
        };
        // SAFETY: the set and the time are valid, and no information is asked for.
        let signal = unsafe { libc::sigtimedwait(&self.0, std::ptr::null_mut(), &time) };
        Signal::try_from(signal).ok()
    }
}

/// Returns the path of this program, also where there is no `/proc`.
pub fn own_path() -> io::Result<PathBuf> {
    std::env::current_exe().or_else(|error| {
        // SAFETY: the kernel puts a string there that lives as long as the process.
        let path = unsafe { libc::getauxval(libc::AT_EXECFN) } as *const libc::c_char;
        if path.is_null() {
            return Err(error);
        }
        // SAFETY: the pointer is not null, and the string as above.
        let path = unsafe { CStr::from_ptr(path) };
        Ok(PathBuf::from(path.to_string_lossy().into_owned()))
    })
}

/// Replaces this process by a program, which is searched for in `PATH`. Returns only if
/// that fails.
pub fn exec(command: &[CString]) -> io::Error {
    match nix::unistd::execvp(&command[0], command) {
        Ok(never) => match never {},
        Err(error) => error.into(),
    }
}
