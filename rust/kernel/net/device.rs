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
/// The device may be unregistered at any time, but for while it is locked.
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
    /// The device with an index, in the network namespace of the current task.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn find(ifindex: u32) -> Result<Self> {
        // There are no negative ones.
        let ifindex = c_int::try_from(ifindex).map_err(|_| ENODEV)?;
        // SAFETY: The function has no preconditions.
        let net = unsafe { bindings::current_net() };
        if net.is_null() {
            return Err(ENODEV);
        }
        // SAFETY: `net` is the namespace of the current task, which stays while that is here.
        let dev = unsafe { bindings::netdev_get_by_index_lock(net, ifindex) };
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        // SAFETY: A device that is locked and registered is valid.
        let this = unsafe { Self::new(dev) };

        // SAFETY: `netdev_get_by_index_lock` has locked it.
        unsafe { bindings::netdev_unlock(dev.as_ptr()) };
        Ok(this)
    }

    /// One more reference.
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

    /// Locks the device. May sleep.
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

/// A network device whose instance lock is held, which dropping this releases.
///
/// # Invariants
///
/// The current task holds the lock.
pub struct LockedNetDevice<'a> {
    netdev: &'a NetDevice,
    _task: NotThreadSafe,
}

impl LockedNetDevice<'_> {
    /// The device as C knows it: valid and locked while `self` exists.
    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.netdev.dev.as_ptr()
    }

    /// Whether it is this device.
    pub(super) fn is(&self, netdev: &NetDevice) -> bool {
        self.netdev.dev == netdev.dev
    }

    /// Another reference to the device.
    pub(super) fn reference(&self) -> NetDevice {
        self.netdev.clone()
    }

    /// The device that transfers what the receive queue `queue` receives, if there is any.
    ///
    /// C counterpart: `netdev_queue_get_dma_dev`.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the network device is not registered any more.
    /// - [`EOPNOTSUPP`] if it transfers nothing by DMA.
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

        // SAFETY: The device is valid, and has a driver: one that goes away unregisters its network
        // devices first, for which it needs the lock; and with them those that its queues are
        // leased to, for which it needs theirs.
        Ok(unsafe { Device::<Normal>::from_raw(dev.as_ptr()).as_bound() })
    }
}

impl Drop for LockedNetDevice<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is valid, and the current task holds the lock.
        unsafe { bindings::netdev_unlock(self.as_ptr()) };
    }
}
