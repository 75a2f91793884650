// SPDX-License-Identifier: GPL-2.0

//! Network devices.
//!
//! [`NetDevice`] is a reference to a network device. [`LockedNetDevice`] is a network device whose
//! instance lock is held.
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
/// `dev` is a valid device. This object owns one reference to it, which `tracker` tracks.
pub struct NetDevice {
    dev: NonNull<bindings::net_device>,
    tracker: Opaque<bindings::netdevice_tracker>,
}

// The tracker is a pointer, which may be moved.
impl Unpin for NetDevice {}

// SAFETY: Any task may drop a reference to a device.
unsafe impl Send for NetDevice {}

// SAFETY: A shared reference only locks the device, which any task may do.
unsafe impl Sync for NetDevice {}

impl NetDevice {
    /// Finds the device with this index in the network namespace of the current task.
    ///
    /// # Errors
    ///
    /// [`ENODEV`] if there is none.
    pub fn find(ifindex: u32) -> Result<Self> {
        // Indices are positive values of type `int`.
        let ifindex = c_int::try_from(ifindex).map_err(|_| ENODEV)?;
        let task = current!().as_ptr();
        // SAFETY: Only the current task itself changes this field.
        let namespaces = unsafe { (*task).nsproxy };
        // A task that is exiting has left its namespaces.
        let namespaces = NonNull::new(namespaces).ok_or(ENODEV)?;
        // SAFETY: The current task keeps these namespaces, and the field never changes.
        let net = unsafe { (*namespaces.as_ptr()).net_ns };
        // SAFETY: `net` is the namespace of the current task. It stays valid, since only the task
        // itself can leave it.
        let dev = unsafe { bindings::netdev_get_by_index_lock(net, ifindex) };
        let dev = NonNull::new(dev).ok_or(ENODEV)?;
        // SAFETY: A device that is locked and registered is valid.
        let this = unsafe { Self::new(dev) };

        // SAFETY: `netdev_get_by_index_lock` has locked it.
        unsafe { bindings::netdev_unlock(dev.as_ptr()) };
        Ok(this)
    }

    /// Takes a new reference to the device.
    ///
    /// # Safety
    ///
    /// `dev` must be valid.
    unsafe fn new(dev: NonNull<bindings::net_device>) -> Self {
        let tracker = Opaque::zeroed();

        // INVARIANT: The device is valid, and the reference belongs to the new object.
        // SAFETY: The caller guarantees that the device is valid. The tracker is new and empty.
        unsafe { bindings::netdev_hold(dev.as_ptr(), tracker.get(), GFP_KERNEL.as_raw()) };
        Self { dev, tracker }
    }

    /// Locks the device. May sleep, since those who configure the device hold this lock.
    ///
    /// C counterpart: `netdev_lock`.
    pub fn lock(&self) -> LockedNetDevice<'_> {
        // SAFETY: By the type invariants, the device is valid.
        unsafe { bindings::netdev_lock(self.dev.as_ptr()) };
        // INVARIANT: The lock was just taken.
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
        // SAFETY: By the type invariants, the device is valid and this object owns the reference.
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
    /// Returns the device as a C pointer. It is valid and locked while `self` exists.
    pub(super) fn as_ptr(&self) -> *mut bindings::net_device {
        self.netdev.dev.as_ptr()
    }

    /// Returns whether this is the same device as `netdev`.
    pub(super) fn is(&self, netdev: &NetDevice) -> bool {
        self.netdev.dev == netdev.dev
    }

    /// Takes another reference to the device.
    pub(super) fn reference(&self) -> NetDevice {
        self.netdev.clone()
    }

    /// Returns the device that writes the data of the receive queue `queue` by DMA.
    ///
    /// Usually this is the device whose driver created the network device, or another one that this
    /// driver names. A network device may also have a parent without a driver. Such a parent is
    /// refused: mappings for a device last only as long as it has a driver.
    ///
    /// C counterpart: `netdev_queue_get_dma_dev`.
    ///
    /// # Errors
    ///
    /// - [`ENODEV`] if the network device is not registered any more.
    /// - [`EOPNOTSUPP`] if the network device has no DMA device, or that device has no driver.
    pub fn dma_device(&self, queue: u32) -> Result<&Device<Bound>> {
        // SAFETY: By the type invariants, the device is valid. The read is volatile, like C's
        // `READ_ONCE`.
        let state = unsafe { (&raw const (*self.as_ptr()).reg_state).read_volatile() };

        if u32::from(state) != bindings::netdev_reg_state_NETREG_REGISTERED {
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

        // SAFETY: The device stays as long as the network device does. Only the driver core writes
        // the field, with one store.
        if unsafe { (&raw const (*dev.as_ptr()).driver).read_volatile() }.is_null() {
            return Err(EOPNOTSUPP);
        }
        // SAFETY: The device is valid, and was just found to have a driver. Before the driver is
        // unbound, it unregisters its network devices, and with them the network devices that lease
        // queues of these. Unregistering a device needs its lock, and this network device, whose
        // lock is held, is one of them.
        Ok(unsafe { Device::<Normal>::from_raw(dev.as_ptr()).as_bound() })
    }
}

impl Drop for LockedNetDevice<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the device is valid, and the current task holds the lock.
        unsafe { bindings::netdev_unlock(self.as_ptr()) };
    }
}
