// SPDX-License-Identifier: GPL-2.0
//! PID 1 of the guest. It sets the machine up, runs the one job that the kernel command
//! line names after `--`, prints the job's exit status, and restarts the machine, which
//! ends QEMU.
//!
//! - `suite [TEST,…]`: the user-space suite, or only these tests
//! - `nothing`: no job, as when only KUnit is to run
//! - `soak MINUTES [SEED]`: the suite's stress tests for a number of minutes
//! - `demo`: the demonstration
//! - `bench`: the measurements
//! - `external SECONDS NAME…`: programs in /external, reported as KTAP
//! - `shell`: an interactive shell on the console

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitStatus, wait};
use nix::unistd::Pid;

use io_uring_rs_tests::ktap::{self, Verdict};

/// The directories of programs. Programs with glibc find their libraries without help.
const PATH: &str = "/bin:/sbin:/usr/bin:/usr/sbin";

fn main() {
    let status = match set_up().and_then(|()| work()) {
        Ok(status) => status,
        Err(error) => {
            println!("init: {error:#}");
            1
        }
    };
    println!("# exit {status}");
    flush();
    // An emulated serial line needs the time to send its last bytes.
    std::thread::sleep(Duration::from_millis(50));
    // QEMU is told to end instead. Only kernels with ACPI could switch the machine off.
    let _ = reboot(RebootMode::RB_AUTOBOOT);
    // If that fails, the end of PID 1 stops the machine.
}

/// Mounts file systems, brings up the network, sets limits, and directs the output.
fn set_up() -> anyhow::Result<()> {
    for (kind, target) in [
        ("proc", "/proc"),
        ("sysfs", "/sys"),
        ("devtmpfs", "/dev"),
        ("tmpfs", "/tmp"),
        ("debugfs", "/sys/kernel/debug"),
        ("cgroup2", "/sys/fs/cgroup"),
    ] {
        fs::create_dir_all(target).with_context(|| target.to_string())?;
        mount(
            Some(kind),
            target,
            Some(kind),
            MsFlags::empty(),
            None::<&str>,
        )
        .with_context(|| format!("mounting {kind} on {target}"))?;
    }
    // Some kernels have no pseudo-terminals, or no trace events.
    for (path, target) in [
        ("/dev/pts", "devpts"),
        ("/dev/shm", "tmpfs"),
        ("/sys/kernel/tracing", "tracefs"),
    ] {
        let _ = fs::create_dir(path);
        let _ = mount(
            Some(target),
            path,
            Some(target),
            MsFlags::empty(),
            None::<&str>,
        );
    }
    direct_output()?;
    nix::unistd::sethostname("guest").context("sethostname")?;
    loopback_up().context("bringing lo up")?;
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, 65536),
        (Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY),
        (Resource::RLIMIT_NPROC, libc::RLIM_INFINITY),
    ] {
        setrlimit(resource, limit, limit).with_context(|| format!("{resource:?}"))?;
    }
    // SAFETY: PID 1 has a single thread at this point.
    unsafe {
        std::env::set_var("PATH", PATH);
        std::env::set_var("HOME", "/root");
        std::env::set_var("TERM", "linux");
    }
    std::env::set_current_dir("/tmp").context("/tmp")
}

/// Directs standard output to the second serial line if there is one.
fn direct_output() -> anyhow::Result<()> {
    // Type 0 is a port without hardware.
    let port = fs::read_to_string("/sys/class/tty/ttyS1/type").unwrap_or_default();
    let device = match port.trim() {
        "" | "0" => "/dev/console",
        _ => "/dev/ttyS1",
    };
    let output = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(device)
        .with_context(|| device.to_string())?;
    for stream in 0..3 {
        // SAFETY: the call replaces the standard streams, which nothing borrows.
        if unsafe { libc::dup2(output.as_raw_fd(), stream) } < 0 {
            bail!("{device}: {}", std::io::Error::last_os_error());
        }
    }
    if output.as_raw_fd() < 3 {
        std::mem::forget(output);
    }
    Ok(())
}

fn loopback_up() -> anyhow::Result<()> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeroes is a valid `ifreq`; name and flags are filled in below.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is laid out as SIOCSIFFLAGS expects it.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    if ret < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(())
}

/// Runs the job that the command line names. Returns the job's exit status.
fn work() -> anyhow::Result<i32> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (job, rest) = arguments
        .split_first()
        .context("no job on the kernel command line; add one after --, such as `-- suite`")?;
    match job.as_str() {
        "suite" => suite(rest),
        "soak" => soak(rest),
        "demo" => run("/bin/demo", &[]),
        "bench" => run("/bin/bench", rest),
        "external" => external(rest),
        "shell" => shell(),
        "nothing" => Ok(0),
        _ => bail!(
            "unknown job {job:?}: suite, soak, demo, bench, external, shell and nothing are known"
        ),
    }
}

/// Runs a program to its end, and reaps orphans meanwhile. Returns its exit status.
fn run(program: &str, arguments: &[String]) -> anyhow::Result<i32> {
    let mut command = Command::new(program);
    command.args(arguments);
    spawn_and_reap(command).with_context(|| program.to_string())
}

/// Runs a program. Reaps every child until it ends, as PID 1 becomes the parent of all
/// orphans.
fn spawn_and_reap(mut command: Command) -> anyhow::Result<i32> {
    let child = Pid::from_raw(command.spawn()?.id() as i32);
    loop {
        match wait()? {
            WaitStatus::Exited(pid, code) if pid == child => return Ok(code),
            WaitStatus::Signaled(pid, signal, _) if pid == child => {
                println!("init: {:?} was killed by {signal}", command.get_program());
                return Ok(128 + signal as i32);
            }
            _ => {}
        }
    }
}

/// Runs the suite, and searches for memory leaks if the kernel has kmemleak.
fn suite(arguments: &[String]) -> anyhow::Result<i32> {
    let leaks = Path::new("/sys/kernel/debug/kmemleak");
    let searching = leaks.exists() && fs::write(leaks, "clear").is_ok();
    let status = run("/bin/suite", arguments)?;
    if !searching {
        return Ok(status);
    }
    // kmemleak reports a block only if it is old enough and two scans agree.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_secs(6));
        fs::write(leaks, "scan").context("kmemleak scan")?;
    }
    let found = fs::read_to_string(leaks).context("kmemleak")?;
    if found.trim().is_empty() {
        println!("# kmemleak found nothing");
        return Ok(status);
    }
    // The console has the kernel's other reports, too.
    fs::write("/dev/console", &found).context("/dev/console")?;
    println!("# kmemleak found leaks, see the console");
    Ok(if status == 0 { 1 } else { status })
}

/// Runs the suite's stress tests for minutes or hours.
fn soak(arguments: &[String]) -> anyhow::Result<i32> {
    let (minutes, seed) = arguments
        .split_first()
        .context("soak without a time; give MINUTES [SEED]")?;
    let mut options = vec!["--soak".to_string(), minutes.clone()];
    if let Some(seed) = seed.first() {
        options.extend(["--seed".to_string(), seed.clone()]);
    }
    suite(&options)
}

/// Runs programs that were built elsewhere, and prints a KTAP line for each.
fn external(arguments: &[String]) -> anyhow::Result<i32> {
    let (seconds, names) = arguments
        .split_first()
        .context("external without a time limit; give SECONDS NAME…")?;
    let seconds = seconds
        .parse()
        .with_context(|| format!("the time limit is {seconds}; give a number of seconds"))?;
    let limit = Duration::from_secs(seconds);
    ktap::plan(0, names.len());
    let mut failures = 0;
    for (index, name) in names.iter().enumerate() {
        let verdict =
            run_external(name, limit).unwrap_or_else(|error| Verdict::Failed(format!("{error:#}")));
        failures += usize::from(matches!(verdict, Verdict::Failed(_)));
        ktap::result(0, index + 1, name, &verdict);
        reap_orphans();
    }
    Ok(i32::from(failures != 0))
}

/// Runs one program in a directory of its own.
fn run_external(name: &str, limit: Duration) -> anyhow::Result<Verdict> {
    let folder = format!("/tmp/{name}");
    fs::create_dir_all(&folder).with_context(|| folder.clone())?;
    let mut command = Command::new(format!("/external/{name}"));
    command.current_dir(&folder);
    let finished = ktap::run(&mut command, limit, &name)?;
    for line in finished.output.lines() {
        ktap::diagnostic(0, line);
    }
    let (verdict, took) = (finished.verdict(), finished.took.as_secs_f32());
    let ended = finished.status.map_or_else(
        || "ended by the time limit".to_string(),
        |status| status.to_string(),
    );
    ktap::diagnostic(0, &format!("{name}: {ended}, {took:.1} s"));
    let _ = fs::remove_dir_all(&folder);
    Ok(verdict)
}

/// Reaps the orphans that programs left to PID 1.
fn reap_orphans() {
    let options = nix::sys::wait::WaitPidFlag::WNOHANG;
    while let Ok(status) = nix::sys::wait::waitpid(None, Some(options)) {
        if status == WaitStatus::StillAlive {
            break;
        }
    }
}

/// Runs a shell with job control on the console.
fn shell() -> anyhow::Result<i32> {
    // /dev/console cannot be a controlling terminal, so the device behind it is opened.
    let active = fs::read_to_string("/sys/class/tty/console/active").context("the console")?;
    let name = active
        .split_whitespace()
        .last()
        .context("there is no console")?;
    let path = format!("/dev/{name}");
    let terminal = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(&path)
        .context(path)?;
    let mut command = Command::new("/bin/sh");
    command
        .arg0("-sh")
        .current_dir("/root")
        .stdin(terminal.try_clone()?)
        .stdout(terminal.try_clone()?)
        .stderr(terminal.try_clone()?);
    // SAFETY: the closure makes only system calls between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::setsid() < 0 || libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let status = spawn_and_reap(command).context("/bin/sh")?;
    // A program that the shell left running would keep the terminal.
    let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
    Ok(status)
}

/// Waits until the serial line has sent everything.
fn flush() {
    use std::io::Write;
    let _ = std::io::stdout().flush();
    let _ = nix::sys::termios::tcdrain(std::io::stdout().as_fd());
}
