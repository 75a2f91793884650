// SPDX-License-Identifier: GPL-2.0
//! Runs programs, each in a child with a time limit, and reads what the child recorded.

use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use super::device::{Device, is_on_device};
use super::kcov::{Kcov, Reached};
use super::machine::{Machine, Mode};
use super::op::{Op, Program};
use crate::sandbox;
use crate::wide::Mapping;

/// The directory in which programs run, which is empty when one begins.
const FOLDER: &str = "/tmp/kfuzz";
/// The most bytes of a file.
const LARGEST_FILE: u64 = 1 << 20;
/// The time after which a killed child that has not ended is taken for unkillable.
const STUCK: Duration = Duration::from_secs(60);

/// A record that children write, in memory that they share with this process.
pub struct Log {
    memory: Mapping,
    /// Whether results are recorded, and not only where the program is.
    is_full: bool,
}

impl Log {
    /// The size of the record in bytes, and where its text begins.
    const SIZE: usize = 1 << 18;
    const TEXT: usize = 64;
    /// The words for the length of the text, and the number of the operation.
    const LEN: usize = 0;
    const AT: usize = 4;

    fn new() -> anyhow::Result<Self> {
        let file = memfd_create(c"log", MFdFlags::MFD_CLOEXEC)?;
        nix::unistd::ftruncate(&file, Self::SIZE as i64)?;
        Ok(Log {
            memory: Mapping::new(file.as_raw_fd(), 0, Self::SIZE)?,
            is_full: true,
        })
    }

    fn clear(&mut self, mode: Mode) {
        self.memory.word(Self::LEN).store(0, Relaxed);
        self.memory.word(Self::AT).store(0, Relaxed);
        self.is_full = mode == Mode::Compare;
    }

    /// Records that an operation begins.
    pub fn begin(&self, number: usize, op: &Op) {
        self.memory.word(Self::AT).store(number as u32, Relaxed);
        if self.is_full {
            let text = op.to_string();
            let name = text.split(' ').next().unwrap_or_default();
            self.append(&format!("\n{number} {name}:"));
        }
    }

    /// Records what an operation returned.
    pub fn say(&self, text: &str) {
        if self.is_full {
            self.append(&format!(" {text};"));
        }
    }

    fn append(&self, text: &str) {
        let len = self.memory.word(Self::LEN).load(Relaxed) as usize;
        let room = Self::SIZE - Self::TEXT - len;
        for (index, byte) in text.bytes().take(room).enumerate() {
            self.memory.write(Self::TEXT + len + index, byte);
        }
        let len = len + text.len().min(room);
        self.memory.word(Self::LEN).store(len as u32, Relaxed);
    }

    fn text(&self) -> String {
        let len = self.memory.word(Self::LEN).load(Relaxed) as usize;
        let bytes: Vec<u8> = (0..len)
            .map(|at| self.memory.read(Self::TEXT + at))
            .collect();
        String::from_utf8_lossy(&bytes).trim_start().to_string()
    }
}

/// The end of a program, and what it recorded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// A line for each operation.
    pub text: String,
    /// Whether the program was ended by the time limit.
    pub timed_out: bool,
}

impl Outcome {
    /// Returns a number that is the same for equal outcomes.
    pub fn digest(&self) -> u32 {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let hash = self.text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
        (hash ^ hash >> 32) as u32
    }
}

/// A runner of programs.
pub struct Runner {
    log: Log,
    device: Option<Device>,
    kcov: Option<Kcov>,
    pub reached: Reached,
}

impl Runner {
    pub fn new() -> anyhow::Result<Self> {
        fs::create_dir_all(FOLDER)?;
        Ok(Runner {
            log: Log::new()?,
            device: None,
            kcov: Kcov::open()?,
            reached: Reached::new(),
        })
    }

    /// Returns whether this kernel says what it reached.
    pub fn has_kcov(&self) -> bool {
        self.kcov.is_some()
    }

    /// Runs a program until `limit` has passed, and ends whatever is left of it. Returns
    /// what happened, and whether the program reached what none did before.
    pub fn run(
        &mut self,
        program: &Program,
        mode: Mode,
        limit: Duration,
    ) -> anyhow::Result<(Outcome, bool)> {
        let on_device = is_on_device(program);
        if on_device && self.device.is_none() {
            self.device = Some(Device::new().context("the software NIC")?);
        }
        self.log.clear(mode);
        let (log, kcov) = (&self.log, self.kcov.as_ref());
        let device = self.device.as_ref().filter(|_| on_device);
        let child = sandbox::spawn(|| {
            prepare()?;
            kcov.map_or(Ok(()), Kcov::start)?;
            Machine::new(mode, log, device)?.run(0, &program.0);
            Ok(())
        })?;
        let ended = wait_until_end(child, limit)?;
        let is_new = match &self.kcov {
            Some(kcov) => kcov.collect(&mut self.reached),
            None => false,
        };
        if on_device {
            // The next program finds new ports.
            self.device = None;
        }
        clean(FOLDER)?;
        let mut text = self.log.text();
        if let Some(WaitStatus::Signaled(_, signal, _)) = ended {
            text += &format!("\nkilled by {signal}");
        }
        let outcome = Outcome {
            text,
            timed_out: ended.is_none(),
        };
        Ok((outcome, is_new))
    }
}

/// Prepares a child: it cannot write to the report, and signals do not end it by accident.
fn prepare() -> anyhow::Result<()> {
    // SAFETY: the calls change this process alone, and the handler does nothing.
    unsafe {
        libc::setpgid(0, 0);
        let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
        (0..3).for_each(|fd| {
            libc::dup2(null, fd);
        });
        libc::close(null);
        extern "C" fn ignore(_: libc::c_int) {}
        let action = SigAction::new(
            SigHandler::Handler(ignore),
            SaFlags::empty(),
            SigSet::empty(),
        );
        sigaction(Signal::SIGUSR1, &action)?;
        sigaction(Signal::SIGPIPE, &action)?;
        sigaction(Signal::SIGIO, &action)?;
        sigaction(Signal::SIGXFSZ, &action)?;
    }
    // Files in memory must not take all of it.
    setrlimit(Resource::RLIMIT_FSIZE, LARGEST_FILE, LARGEST_FILE)?;
    std::env::set_current_dir(FOLDER).context(FOLDER)
}

/// Waits for a child and kills its process group. Returns the child's status, or `None`
/// if it did not end by itself within `limit`.
fn wait_until_end(child: Pid, limit: Duration) -> anyhow::Result<Option<WaitStatus>> {
    // SAFETY: the call takes no pointers. The child is not reaped yet.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, child.as_raw(), 0) };
    ensure!(fd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new, and nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let ends = |limit: Duration| -> anyhow::Result<bool> {
        use std::os::fd::AsFd;
        let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        Ok(poll(&mut fds, PollTimeout::try_from(limit)?)? == 1)
    };
    let in_time = ends(limit)?;
    let _ = killpg(child, Signal::SIGKILL);
    // SAFETY: the call takes no pointers.
    unsafe { libc::kill(child.as_raw(), libc::SIGKILL) };
    ensure!(ends(STUCK)?, "the program cannot be killed");
    let status = waitpid(child, None)?;
    Ok(in_time.then_some(status))
}

/// Removes what a program left in its directory.
fn clean(folder: &str) -> anyhow::Result<()> {
    for entry in fs::read_dir(folder).context("the directory of programs")? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            fs::remove_dir_all(&path)?;
        } else {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}
