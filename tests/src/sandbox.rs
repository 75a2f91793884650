// SPDX-License-Identifier: GPL-2.0
//! Changes privileges, and helps tests that need more than one task.

use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, unshare};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Gid, Pid, Uid, fork, setgroups, setresgid, setresuid};

use crate::settings;

/// The user that unprivileged tests become.
const USER: u32 = 1000;

/// Gives up root and with it every capability.
pub fn drop_privileges() -> anyhow::Result<()> {
    let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
    setgroups(&[]).context("setgroups")?;
    setresgid(gid, gid, gid).context("setresgid")?;
    setresuid(uid, uid, uid).context("setresuid")
}

/// Sets no_new_privs, which cannot be undone.
pub fn no_new_privs() -> anyhow::Result<()> {
    nix::sys::prctl::set_no_new_privs().context("PR_SET_NO_NEW_PRIVS")
}

/// Takes the privileges of a sandboxed program: none, and no_new_privs.
pub fn sandboxed() -> anyhow::Result<()> {
    drop_privileges()?;
    no_new_privs()
}

/// Gives up `CAP_IPC_LOCK`, so that the kernel accounts the memory of rings.
pub fn count_locked_memory() -> anyhow::Result<()> {
    const CAP_IPC_LOCK: u32 = 14;
    let header = [0x2008_0522u32, 0];
    let mut sets = [0u32; 6];
    // SAFETY: version 3 of the call takes two times three words, for the calling
    // thread.
    let got = unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) };
    ensure!(got == 0, "capget: {}", std::io::Error::last_os_error());
    // Permitted and effective set: a change of user may have cleared the effective one.
    sets[1] &= !(1 << CAP_IPC_LOCK);
    sets[0] = sets[1];
    // SAFETY: as above.
    let got = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) };
    ensure!(got == 0, "capset: {}", std::io::Error::last_os_error());
    Ok(())
}

/// Becomes a user who has no other process, with every capability but `CAP_IPC_LOCK`.
/// The kernel then accounts the memory of this process's rings, and of no others, to
/// that user.
pub fn be_counted_alone() -> anyhow::Result<()> {
    let uid = Uid::from_raw(100_000 + std::process::id());
    nix::sys::prctl::set_keepcaps(true).context("PR_SET_KEEPCAPS")?;
    setresuid(uid, uid, uid).context("setresuid")?;
    count_locked_memory()
}

/// Enters a new user namespace, in which the process has every capability.
pub fn user_namespace() -> anyhow::Result<()> {
    unshare(CloneFlags::CLONE_NEWUSER).context("unshare(CLONE_NEWUSER)")
}

/// Keeps the calling thread, and the threads that it will make, on one CPU.
pub fn stay_on_cpu(number: usize) -> anyhow::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(number)?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("CPU {number}"))
}

/// Starts a child that runs `body`. The child's exit status says whether that
/// succeeded.
pub fn spawn(body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Pid> {
    // SAFETY: the C library keeps allocation usable in the child, which takes no lock
    // that another thread could hold and leaves without running destructors.
    match unsafe { fork() }.context("fork")? {
        ForkResult::Parent { child } => Ok(child),
        ForkResult::Child => {
            let code = match body() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("child {}: {error:#}", std::process::id());
                    1
                }
            };
            // SAFETY: this leaves at once, without running the parent's destructors.
            unsafe { libc::_exit(code) }
        }
    }
}

/// Waits for a child, which must succeed.
pub fn join(child: Pid) -> anyhow::Result<()> {
    match waitpid(child, None).context("waitpid")? {
        WaitStatus::Exited(_, 0) => Ok(()),
        status => bail!("child failed: {status:?}"),
    }
}

/// Waits for a child, which must have been killed by SIGKILL.
pub fn killed(child: Pid) -> anyhow::Result<()> {
    match waitpid(child, None).context("waitpid")? {
        WaitStatus::Signaled(_, Signal::SIGKILL, _) => Ok(()),
        status => bail!("child was not killed: {status:?}"),
    }
}

/// Runs `body` in a child and waits for it.
pub fn in_child(body: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    join(spawn(body)?)
}

/// Waits for a child until `limit` has passed. Returns the status and the time that the
/// child took, or `None` if it still runs.
pub fn wait_within(child: Pid, limit: Duration) -> anyhow::Result<Option<(WaitStatus, Duration)>> {
    let start = Instant::now();
    loop {
        match waitpid(child, Some(WaitPidFlag::WNOHANG)).context("waitpid")? {
            WaitStatus::StillAlive if start.elapsed() > limit => return Ok(None),
            WaitStatus::StillAlive => std::thread::sleep(Duration::from_millis(5)),
            status => return Ok(Some((status, start.elapsed()))),
        }
    }
}

/// Builds a command that runs this program again to do one NOP on a new ring. The exit
/// status is the NOP's negated result.
pub fn nop_probe() -> std::process::Command {
    let mut command = std::process::Command::new("/proc/self/exe");
    command.arg("--nop-probe");
    command
}

/// Turns the exit status of [`nop_probe`] back into the NOP's result.
pub fn probe_result(status: std::process::ExitStatus) -> anyhow::Result<i32> {
    let code = status.code().context("the probe was killed")?;
    Ok(-code)
}

/// Duplicates the file descriptor of another process into this one.
pub fn fd_of(process: Pid, fd: RawFd) -> anyhow::Result<RawFd> {
    // SAFETY: the calls take no pointers.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, process.as_raw(), 0);
        ensure!(
            pidfd >= 0,
            "pidfd_open: {}",
            std::io::Error::last_os_error()
        );
        let copy = libc::syscall(libc::SYS_pidfd_getfd, pidfd, fd, 0);
        let error = std::io::Error::last_os_error();
        libc::close(pidfd as RawFd);
        ensure!(copy >= 0, "pidfd_getfd: {error}");
        Ok(copy as RawFd)
    }
}

/// Counts the files that this process has open.
pub fn open_files() -> anyhow::Result<usize> {
    Ok(fs::read_dir("/proc/self/fd")?.count())
}

/// A sysctl setting that gets its former value back when this is dropped.
pub struct Sysctl {
    path: String,
    before: String,
}

impl Sysctl {
    pub fn set(name: &str, value: &str) -> anyhow::Result<Self> {
        Self::set_file(&format!("/proc/sys/{name}"), value)
    }

    /// Sets a setting that is not in `/proc/sys`.
    pub fn set_file(path: &str, value: &str) -> anyhow::Result<Self> {
        let path = path.to_string();
        ensure!(
            settings::is_known(&path),
            "{path} would not be restored; add it to FILES in settings.rs"
        );
        let before = fs::read_to_string(&path).with_context(|| path.clone())?;
        fs::write(&path, value).with_context(|| format!("{value} > {path}"))?;
        Ok(Sysctl { path, before })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        // Errors do not matter here, and a test that gave up its privileges cannot
        // write.
        let _ = fs::write(&self.path, &self.before);
    }
}

/// Memory that a process shares with its children, zeroed at first. `T` is meant to be
/// an array of atomics.
pub struct Shared<T> {
    address: *mut T,
}

// SAFETY: the type gives out nothing but shared references to its `T`.
unsafe impl<T: Sync> Sync for Shared<T> {}

impl<const N: usize> Shared<[AtomicU32; N]> {
    pub fn new() -> anyhow::Result<Self> {
        // SAFETY: the call makes a new anonymous mapping, which is never unmapped.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size_of::<[AtomicU32; N]>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        ensure!(address != libc::MAP_FAILED, "mmap failed");
        Ok(Shared {
            address: address.cast(),
        })
    }
}

impl<T> std::ops::Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the memory is mapped for as long as the process lives, and zeroed
        // atomics are valid.
        unsafe { &*self.address }
    }
}

/// A memory cgroup, which shows the memory that the processes in it use.
pub struct MemoryGroup(PathBuf);

impl MemoryGroup {
    pub fn new() -> anyhow::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = root.join("cgroup.subtree_control");
        fs::write(&controllers, "+memory").context("enabling the memory controller")?;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("memory-{}-{number}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("{path:?}"))?;
        Ok(MemoryGroup(path))
    }

    /// Moves the calling process into the cgroup.
    pub fn enter(&self) -> anyhow::Result<()> {
        fs::write(self.0.join("cgroup.procs"), "0").context("entering the cgroup")
    }

    /// Sets the number of bytes that may be charged.
    pub fn limit(&self, bytes: u64) -> anyhow::Result<()> {
        fs::write(self.0.join("memory.max"), bytes.to_string()).context("memory.max")
    }

    /// Returns how often `max`, `oom` or `oom_kill` has happened in the cgroup.
    pub fn event(&self, name: &str) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.0.join("memory.events"))?;
        let mut lines = text.lines().filter_map(|line| line.split_once(' '));
        let count = lines.find(|(event, _)| *event == name);
        let (_, count) = count.with_context(|| format!("no {name} in memory.events"))?;
        Ok(count.trim().parse()?)
    }

    /// Returns the most bytes that were ever charged.
    pub fn peak(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.0.join("memory.peak"))?;
        Ok(text.trim().parse()?)
    }

    /// Returns the bytes that are charged now.
    pub fn charged(&self) -> anyhow::Result<u64> {
        let text = fs::read_to_string(self.0.join("memory.current"))?;
        Ok(text.trim().parse()?)
    }

    /// Waits until at most `bytes` bytes are charged. The memory of ended tasks is
    /// freed only after a grace period.
    pub fn falls_to(&self, bytes: u64, limit: Duration) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let charged = self.charged()?;
            if charged <= bytes {
                return Ok(());
            }
            ensure!(
                start.elapsed() < limit,
                "after {limit:?}, {charged} bytes are charged, more than {bytes}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Removes the cgroup, which all processes must have left.
    pub fn remove(self) -> anyhow::Result<()> {
        fs::remove_dir(&self.0).context("removing the cgroup")
    }
}

/// A cgroup with a limit on its number of tasks.
pub struct TaskGroup(PathBuf);

impl TaskGroup {
    /// Makes the cgroup for at most `most` tasks, and moves the calling process into
    /// it.
    pub fn enter(most: u32) -> anyhow::Result<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let controllers = root.join("cgroup.subtree_control");
        fs::write(&controllers, "+pids").context("enabling the pids controller")?;
        let path = root.join(format!("tasks-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("{path:?}"))?;
        fs::write(path.join("pids.max"), most.to_string()).context("pids.max")?;
        fs::write(path.join("cgroup.procs"), "0").context("entering the cgroup")?;
        Ok(TaskGroup(path))
    }
}

impl Drop for TaskGroup {
    fn drop(&mut self) {
        // The process leaves the cgroup, so that it can make tasks again. Errors do not
        // matter.
        let _ = fs::write("/sys/fs/cgroup/cgroup.procs", "0");
        let _ = fs::remove_dir(&self.0);
    }
}

/// Returns a line of `/proc/meminfo` in bytes.
pub fn meminfo(name: &str) -> anyhow::Result<u64> {
    bytes_of("/proc/meminfo", name)
}

/// Returns a line about memory in `/proc/self/status` in bytes.
pub fn own_memory(name: &str) -> anyhow::Result<u64> {
    bytes_of("/proc/self/status", name)
}

/// Counts the page pins of all processes. Only root may read the counters.
pub fn pins() -> anyhow::Result<i64> {
    // Reading this file makes every CPU add its own counters to the totals.
    fs::read("/proc/sys/vm/stat_refresh").context("stat_refresh")?;
    let text = fs::read_to_string("/proc/vmstat")?;
    let count = |name: &str| -> anyhow::Result<i64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let number = line.with_context(|| format!("no {name} in /proc/vmstat"))?;
        Ok(number.trim().parse()?)
    };
    Ok(count("nr_foll_pin_acquired ")? - count("nr_foll_pin_released ")?)
}

/// Returns the number of KiB that follows `name` in a file, in bytes.
fn bytes_of(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path)?;
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    let number = line.and_then(|line| line.split_whitespace().next());
    let number: u64 = number
        .with_context(|| format!("no {name} in {path}"))?
        .parse()?;
    Ok(number << 10)
}
