// SPDX-License-Identifier: GPL-2.0

//! Network devices.
//!
//! [`NetDevice`] is a reference to one, [`LockedNetDevice`] one whose instance lock is held.
//!
//! C headers: [`include/linux/netdevice.h`](srctree/include/linux/netdevice.h),
//! [`include/net/netdev_queues.h`](srctree/include/net/netdev_queues.h)

use crate::{
    bindings,
    device::{
        Bound,
        Device,
        Normal, //
    },
    prelude::*,
    types::{
        NotThreadSafe,
        Opaque, //
    }, //
};
use core::ptr::NonNull;

/// A reference to a network device.
///
/// The device may be unregistered at any time except while it is locked.
///
/// Wraps a pointer to the kernel's `struct net_device`.
///
/// # Invariants
///
/// `dev` is a valid device. One reference to it is ours, which `tracker` knows.
pub struct NetDevice {
    dev: NonNull<bindings::net_device>,
    tracker: Opaque<bindings::netdevice_tracker>,
}

// The tracker is a pointer, which may be moved.
impl Unpin for NetDevice {}

// SAFETY: References to devices may be given back by any task.
unsafe impl Send for NetDevice {}

// SAFETY: A shared reference only locks the device, which any task may do.
unsafe impl Sync for NetDevice {}

impl NetDevice {
    /// Finds the device with an index in the network namespace of the current task.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn find(ifindex: u32) -> Result<Self> {
        // Indices are positive numbers of type `int`.
        let ifindex = c_int::try_from(ifindex).map_err(|_| ENODEV)?;
        // SAFETY: The function has no preconditions.
        let net = unsafe { bindings::current_net() };
        if net.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `net` is the namespace of the current task. It stays: only the task itself can
        // leave it.
        let dev = unsafe { bindings::netdev_get_by_index_lock(net, ifindex) };
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        // SAFETY: A device that is locked and registered is valid.
        let this = unsafe { Self::new(dev) };

        // SAFETY: `netdev_get_by_index_lock` has locked it.
        unsafe { bindings::netdev_unlock(dev.as_ptr()) };
        Ok(this)
    }

    /// Takes one more reference.
    ///
    /// # Safety
    ///
    /// `dev` must be valid.
    unsafe fn new(dev: NonNull<bindings::net_device>) -> Self {
        let tracker = Opaque::zeroed();

        // INVARIANT: The device is valid, and the reference new.
        // SAFETY: The caller guarantees that the device is valid. The tracker is ours, and empty.
        unsafe { bindings::netdev_hold(dev.as_ptr(), tracker.get(), GFP_KERNEL.as_raw()) };
        Self { dev, tracker }
    }

    /// Locks the device. May sleep: whoever configures the device holds this lock.
    ///
    /// C counterpart: `netdev_lock`.
    pub fn lock(&self) -> LockedNetDevice<'_> {
        // SAFETY: By the type invariants, the device is valid.
        unsafe { bindings::netdev_lock(self.dev.as_ptr()) };
        // INVARIANT: It was just locked.
        LockedNetDevice {
            netdev: self,
            _task: NotThreadSafe,
        }
    }
}

impl Clone for NetDevice {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariants, the device is valid.
        unsafe { Self::new(self.dev) }
    }
}

impl Drop for NetDevice {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is valid and the reference ours.
        unsafe { bindings::netdev_put(self.dev.as_ptr(), self.tracker.get()) };
    }
}

/// A network device whose instance lock is held. Dropping this releases the lock.
///
/// # Invariants
///
/// The current task holds the lock.
#[must_use = "the lock is released when this is dropped"]
pub struct LockedNetDevice<'a> {
    netdev: &'a NetDevice,
    _task: NotThreadSafe,
}

impl LockedNetDevice<'_> {
    /// Returns the device as C knows it. It is valid and locked while `self` exists.
    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.netdev.dev.as_ptr()
    }

    /// Returns whether this is `netdev`.
    pub(super) fn is(&self, netdev: &NetDevice) -> bool {
        self.netdev.dev == netdev.dev
    }

    /// Takes another reference to the device.
    pub(super) fn reference(&self) -> NetDevice {
        self.netdev.clone()
    }

    /// Returns the device that writes what the receive queue `queue` receives.
    ///
    /// That is a device whose driver made the network device: it has queues that can be restarted,
    /// and says itself by what it transfers. A network device may have a parent without a driver,
    /// though, on which nothing can be mapped for as long as it has one; such a parent is refused.
    ///
    /// C counterpart: `netdev_queue_get_dma_dev`.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the network device is not registered any more.
    /// - [`EOPNOTSUPP`] if it transfers nothing by DMA, or by a device that has no driver.
    pub fn dma_device(&self, queue: u32) -> Result<&Device<Bound>> {
        // SAFETY: By the type invariants, the device is valid.
        if !unsafe { bindings::netdev_is_registered(self.as_ptr()) } {
            return Err(ENODEV);
        }
        // SAFETY: By the type invariants, the device is valid and locked.
        let dev = unsafe {
            bindings::netdev_queue_get_dma_dev(
                self.as_ptr(),
                queue,
                bindings::netdev_queue_type_NETDEV_QUEUE_TYPE_RX,
            )
        };
        let dev = NonNull::new(dev).ok_or(EOPNOTSUPP)?;

        // SAFETY: The device stays as long as the network device does. Nobody but the driver core
        // writes the field, as a whole.
        if unsafe { (&raw const (*dev.as_ptr()).driver).read_volatile() }.is_null() {
            return Err(EOPNOTSUPP);
        }
        // SAFETY: The device is valid, and was just seen to have a driver. One that goes away
        // unregisters its network devices first, for which it needs the lock that is held; and with
        // them those that its queues are leased to, for which it needs their locks, of which one is
        // the one that is held.
        Ok(unsafe { Device::<Normal>::from_raw(dev.as_ptr()).as_bound() })
    }
}

impl Drop for LockedNetDevice<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is valid, and the current task holds the lock.
        unsafe { bindings::netdev_unlock(self.as_ptr()) };
    }
}
