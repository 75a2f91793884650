// SPDX-License-Identifier: GPL-2.0
//! What kernel this is, and system-call results as the kernel returns them:
//! zero or more for success, a negative errno for failure.

use std::fmt;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;

/// Number of opcodes that this kernel's uapi defines.
pub const IORING_OP_LAST: u32 = 65;
/// Number of `io_uring_register(2)` opcodes that this kernel's uapi defines.
pub const IORING_REGISTER_LAST: u32 = 38;
/// Most instructions that one program may have.
pub const BPF_MAXINSNS: usize = 4096;
/// The most that a chain may cost in the Rust implementation. A filter costs the number
/// of its instructions plus [`CHAIN_OVERHEAD`].
pub const CHAIN_BOUND: usize = 32768;
/// The cost of a filter on top of its instructions.
pub const CHAIN_OVERHEAD: usize = 4;

/// The implementation of a part of io_uring in the running kernel.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Implementation {
    C,
    Rust,
}

impl fmt::Display for Implementation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Implementation::C => "C",
            Implementation::Rust => "Rust",
        })
    }
}

/// Reads the configuration that the kernel was built with, from `/proc/config.gz`.
pub fn config() -> &'static str {
    static CONFIG: OnceLock<String> = OnceLock::new();
    CONFIG.get_or_init(|| {
        let file =
            fs::File::open("/proc/config.gz").expect("the kernel needs CONFIG_IKCONFIG_PROC");
        let mut text = String::new();
        flate2::read::GzDecoder::new(file)
            .read_to_string(&mut text)
            .expect("/proc/config.gz does not unpack");
        text
    })
}

/// Checks whether an option such as `CONFIG_KASAN` is built in.
pub fn has_option(option: &str) -> bool {
    config()
        .lines()
        .any(|line| line.strip_prefix(option) == Some("=y"))
}

/// Returns the implementation of the filters in the running kernel.
pub fn implementation() -> Implementation {
    if has_option("CONFIG_IO_URING_BPF_RUST") {
        Implementation::Rust
    } else {
        Implementation::C
    }
}

/// Returns the implementation of zero-copy receive in the running kernel.
pub fn zcrx_implementation() -> Implementation {
    if has_option("CONFIG_IO_URING_ZCRX_RUST") {
        Implementation::Rust
    } else {
        Implementation::C
    }
}

/// Checks whether the kernel has the checkers that slow everything down.
pub fn is_debug() -> bool {
    has_option("CONFIG_KASAN")
}

/// Announces on the console that the kernel is about to make one report that contains
/// `words`. That report does not fail the run; its absence does.
pub fn announce_report(words: &str) -> anyhow::Result<()> {
    fs::write("/dev/kmsg", format!("expected report: {words}")).context("/dev/kmsg")
}

/// Returns `seconds` as a time limit, ten times as long on a debug kernel.
pub fn limit(seconds: u64) -> Duration {
    Duration::from_secs(if is_debug() { seconds * 10 } else { seconds })
}

/// Checks whether allocations and user copies can be made to fail.
pub fn has_fault_injection() -> bool {
    Path::new("/sys/kernel/debug/failslab").exists()
        && Path::new("/sys/kernel/debug/fail_usercopy").exists()
}

/// Returns the result of a raw system call in the kernel's own form.
pub fn result(ret: libc::c_long) -> i32 {
    if ret < 0 {
        -Errno::last_raw()
    } else {
        ret as i32
    }
}

/// Describes a kernel result in words, such as `-13 (EACCES)` or `4`.
pub fn describe(result: i32) -> String {
    // The kernel's ENOTSUPP has no name in user space.
    if result == -524 {
        return "-524 (ENOTSUPP)".to_string();
    }
    if (-133..0).contains(&result) {
        return format!("{result} ({:?})", Errno::from_raw(-result));
    }
    result.to_string()
}

/// Checks that a kernel result is `want`. The error names both.
pub fn expect_result(what: &str, got: i32, want: i32) -> anyhow::Result<()> {
    if got != want {
        anyhow::bail!("{what}: got {}, expected {}", describe(got), describe(want));
    }
    Ok(())
}

/// Checks that two values are equal. The error shows both.
pub fn expect_eq<T: PartialEq + fmt::Debug>(what: &str, got: T, want: T) -> anyhow::Result<()> {
    if got != want {
        anyhow::bail!("{what}: got {got:x?}, expected {want:x?}");
    }
    Ok(())
}
