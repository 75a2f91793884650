// SPDX-License-Identifier: GPL-2.0
//! D10: network devices whose parent device loses its driver, or has none.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use super::zcrx_device::{BUFFERS, ENTRIES, works};
use super::zcrx_device_driver::{
    announce_failed_close, close_failed, debugger_complains, stays_mapped,
};
use super::zcrx_receive::roomy_ring;
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{Implementation, expect_eq, expect_result, zcrx_implementation};
use crate::netdev;
use crate::nic::{self, Nic, PORT};
use crate::register::PAGE_SIZE;
use crate::zcrx::{memory, pinned};

pub const TESTS: &[Test] = tests! {
    "zcrx::device::unbind" {
        ZN35 memory_is_unmapped_before_the_driver_goes (30 s);
        ZN36 device_without_a_driver_is_refused (30 s);
    }
};

/// The driver of the parent device of a port.
struct Driver {
    /// The driver's directory in sysfs.
    folder: PathBuf,
    /// The name of the parent device in that directory.
    device: OsString,
}

impl Driver {
    /// Finds the driver of a port, which must be plugged in.
    fn of(port: &str) -> anyhow::Result<Self> {
        let device = Path::new("/sys/class/net").join(port).join("device");
        let folder = fs::canonicalize(device.join("driver")).context("its driver")?;
        let device = fs::canonicalize(device).context("its device")?;
        let device = device.file_name().context("no name")?.to_owned();
        Ok(Self { folder, device })
    }

    /// Writes the device's name to a file of the driver, `bind` or `unbind`.
    fn tell(&self, what: &str) -> anyhow::Result<()> {
        let path = self.folder.join(what);
        fs::write(&path, self.device.as_encoded_bytes())
            .with_context(|| format!("{:?} > {}", self.device, path.display()))
    }

    /// Unbinds the driver, which removes the network device.
    fn unbind(&self) -> anyhow::Result<()> {
        self.tell("unbind")
    }

    /// Returns whether the device has the driver.
    fn is_bound(&self) -> bool {
        self.folder.join(&self.device).exists()
    }
}

impl Drop for Driver {
    /// Binds the driver again, which other tests need.
    fn drop(&mut self) {
        if !self.is_bound() {
            self.tell("bind").expect("binding the driver again");
        }
    }
}

/// Checks that the memory of a pool whose queue failed to close is unmapped before the
/// driver goes, and stays pinned for unread packets.
///
/// In C, it is unmapped earlier, while the device still uses it; with the DMA debugger,
/// the test is skipped.
fn memory_is_unmapped_before_the_driver_goes() -> TestResult {
    if let Some(skipped) = debugger_complains() {
        return Ok(skipped);
    }
    let nic = Nic::new()?;
    let driver = Driver::of(PORT)?;
    let mut ring = roomy_ring()?;
    let ifq = nic.ifq(&ring, ENTRIES, BUFFERS)?;
    nic.transfer(&mut ring, &ifq, 100 * PAGE_SIZE)?;
    let mut stream = nic.stream(1)?;
    stream.send(16 * PAGE_SIZE)?;

    nic.set("fail_close", libc::ENOMEM.into())?;
    announce_failed_close()?;
    drop((ifq, ring));
    close_failed(&nic)?;
    nic.set("fail_close", 0)?;
    expect_eq("pinned", pinned()?, BUFFERS)?;
    if !stays_mapped() {
        // Buffers that the driver still has are without an address, so that this does not
        // arrive.
        stream.sender.set_nonblocking(true)?;
        stream.send_some(PAGE_SIZE)?;
        nic::wait_until("the device has faulted", || Ok(nic.dma_faults()? > 0))?;
    }

    // The unread packets keep the pool. The DMA debugger, which tracks mappings of PCI
    // devices, reports what is still mapped when the driver is gone.
    driver.unbind()?;
    ensure!(!driver.is_bound(), "the driver is still there");
    let pools = netdev::provided_pools()?;
    expect_eq("pools", pools.len(), 1)?;
    ensure!(pools.iter().all(|pool| pool.detached), "the pool is in use");
    expect_eq("pinned", pinned()?, BUFFERS)?;
    drop(stream);
    nic::wait_drained()?;
    nic::wait_pinned(0)?;
    drop((driver, nic));
    works(&Nic::new()?)?;
    Ok(Outcome::Passed)
}

/// Checks that a device whose parent has no driver gives EOPNOTSUPP.
///
/// In C, it is accepted.
fn device_without_a_driver_is_refused() -> TestResult {
    let rust = zcrx_implementation() == Implementation::Rust;
    let mut nic = Nic::new()?;
    let driver = Driver::of(PORT)?;
    driver.unbind()?;
    nic::plug(PORT)?;
    nic.index = nix::net::if_::if_nametoindex(PORT)?;
    nic.ethtool("-G zsim0 tcp-data-split on")?;
    nic.configure()?;

    let ring = roomy_ring()?;
    let area = memory(BUFFERS)?;
    let got = nic.registration(ENTRIES, &area).register(ring.fd());
    expect_result("no driver", got, if rust { -libc::EOPNOTSUPP } else { 0 })?;
    expect_eq("provided", nic.provided()?.is_some(), !rust)?;
    drop(ring);
    nic.wait_released()?;
    nic::wait_pinned(0)?;
    drop((driver, nic));
    works(&Nic::new()?)?;
    Ok(Outcome::Passed)
}
