// SPDX-License-Identifier: GPL-2.0
//! The kernel settings that tests change. The runner uses this table to restore them
//! after each test, also after one that was killed.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The files that hold one setting each.
const FILES: [&str; 16] = [
    "/proc/sys/kernel/bpf_stats_enabled",
    "/proc/sys/kernel/hung_task_timeout_secs",
    "/proc/sys/kernel/hung_task_warnings",
    "/proc/sys/net/core/bpf_jit_enable",
    "/proc/sys/net/core/bpf_jit_harden",
    "/proc/sys/net/core/bpf_jit_limit",
    "/proc/sys/net/core/rps_sock_flow_entries",
    "/proc/sys/net/core/skb_defer_max",
    "/proc/sys/net/ipv4/tcp_orphan_retries",
    "/proc/sys/net/ipv4/tcp_rmem",
    "/proc/sys/user/max_user_namespaces",
    "/proc/sys/vm/nr_hugepages",
    "/sys/kernel/slab/io_kiocb/failslab",
    "/sys/kernel/tracing/events/io_uring/io_uring_denied/enable",
    "/sys/module/oracle_test/parameters/programs",
    "/sys/module/oracle_test/parameters/seed",
];

/// The directories each of whose readable and writable files holds a setting: those
/// that make the kernel and the software NIC fail.
const FOLDERS: [&str; 6] = [
    "/sys/kernel/debug/failslab",
    "/sys/kernel/debug/fail_page_alloc",
    "/sys/kernel/debug/fail_usercopy",
    "/sys/kernel/debug/fail_function",
    "/sys/kernel/debug/zcrx_sim/zsim0",
    "/sys/kernel/debug/zcrx_sim/zsim1",
];

/// Returns whether the runner restores this file.
pub fn is_known(path: &str) -> bool {
    FILES.contains(&path)
}

/// The values of all settings at one time.
pub struct Settings(Vec<(PathBuf, String)>);

impl Settings {
    /// Reads the settings that this kernel has.
    pub fn now() -> anyhow::Result<Self> {
        let mut paths: Vec<PathBuf> = FILES.iter().map(PathBuf::from).collect();
        paths.retain(|path| path.exists());
        for folder in FOLDERS.iter().filter(|folder| Path::new(folder).exists()) {
            for entry in fs::read_dir(folder).with_context(|| folder.to_string())? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if metadata.is_file() && metadata.permissions().mode() & 0o600 == 0o600 {
                    paths.push(entry.path());
                }
            }
        }
        // A port must be plugged in last, after its other knobs are back.
        paths.sort_by_key(|path| (path.ends_with("plugged"), path.clone()));
        let read = |path: PathBuf| {
            let value = fs::read_to_string(&path).with_context(|| format!("{path:?}"))?;
            anyhow::Ok((path, value))
        };
        Ok(Settings(
            paths.into_iter().map(read).collect::<Result<_, _>>()?,
        ))
    }

    /// Restores the settings that have changed. Returns their files.
    pub fn restore(&self) -> anyhow::Result<Vec<&Path>> {
        let mut changed = Vec::new();
        for (path, value) in &self.0 {
            let name = || format!("{path:?}");
            if fs::read_to_string(path).with_context(name)? != *value {
                // The file of injected functions takes an empty line, but not an empty
                // write.
                let value = if value.is_empty() { "\n" } else { value };
                fs::write(path, value).with_context(name)?;
                changed.push(path.as_path());
            }
        }
        Ok(changed)
    }
}
