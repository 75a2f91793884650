// SPDX-License-Identifier: GPL-2.0
//! D10: the kernel's own test of zero-copy receive over a device, iou-zcrx, unchanged:
//! a server in this namespace and a client in the peer's.

use std::process::Stdio;
use std::{fs, thread, time::Duration};

use anyhow::{Context, ensure};

use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{self, expect_eq};
use crate::nic::{self, Nic, QUEUE};
use crate::sandbox::Sysctl;

pub const TESTS: &[Test] = tests! {
    "zcrx::device::selftest" {
        ZN26 iou_zcrx_passes (60 s);
    }
};

/// The server's TCP port, which no other connection of the tests uses.
const PORT: u16 = 9100;

/// Checks whether a server listens on [`PORT`].
fn is_served() -> anyhow::Result<bool> {
    let listening = format!(":{PORT:04X} {:032X}:0000 0A ", 0);
    Ok(fs::read_to_string("/proc/net/tcp6")?.contains(&listening))
}

/// Checks that the kernel's own selftest iou-zcrx passes unchanged, without a fragment
/// in pages.
fn iou_zcrx_passes() -> TestResult {
    let nic = Nic::new()?;
    nic.ethtool(&format!(
        "-N zsim0 flow-type tcp6 dst-port {PORT} action {QUEUE}"
    ))?;
    let _pages = Sysctl::set("vm/nr_hugepages", "16")?;
    // The server waits for five seconds, by the end of which all data must have
    // arrived.
    let size = if kernel::is_debug() { 1 << 16 } else { 1 << 20 };
    for (what, serve, send, size) in [
        ("all that there is", "", "-l 12840", size),
        ("a page at a time", "-o 4", "-l 4096", 4 * 4096),
        ("buffers of two pages", "-x 2", "-l 12840", size),
    ] {
        let before = nic.counts()?;
        let line = format!("iou-zcrx -s -p {PORT} -i zsim0 -q {QUEUE} {serve}");
        let mut server = nic::command(&line, None)?;
        let server = server.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut server = server.spawn().context(line)?;
        while !is_served()? && server.try_wait()?.is_none() {
            thread::sleep(Duration::from_millis(10));
        }
        let line = format!("iou-zcrx -c -h fd09::1 -p {PORT} {send} -z {size}");
        let client = nic.peer_command(&line)?.output().context(line)?;
        let server = server.wait_with_output()?;
        ensure!(
            client.status.success() && server.status.success(),
            "{what}: {client:?} {server:?}"
        );
        let after = nic.counts()?;
        let pages = after.page_frags - before.page_frags;
        expect_eq("fragments in pages", pages, 0)?;
        ensure!(after.niov_frags > before.niov_frags, "{what}: nothing came");
        nic.wait_released()?;
    }
    Ok(Outcome::Passed)
}
