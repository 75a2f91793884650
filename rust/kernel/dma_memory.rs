// SPDX-License-Identifier: GPL-2.0

//! Memory that a device can write to, whatever it is made of.
//!
//! A [`DmaMemory`] is mapped from when it is made until it is dropped or its device loses its
//! driver, whichever comes first. Whoever tells a device where the memory is keeps the object for
//! as long as the device may use it.
//!
//! C header: [`include/linux/dma-mapping.h`](srctree/include/linux/dma-mapping.h)

use crate::{
    device::{
        Bound,
        Device, //
    },
    prelude::*,
    scatterlist::SGTable, //
};

/// Memory that is mapped so that a device can write to it.
///
/// Values are dropped where sleeping is allowed: this unmaps the memory.
///
/// # Safety
///
/// - The memory is mapped for one device, the one that [`Self::table`] accepts. From when the value
///   exists until it is dropped or that device is unbound from its driver, the device can write to
///   what the table names, and to nothing else by way of it. The table is the same each time.
/// - What is written to is memory that is meant for that: it is not freed, and no reference to it
///   exists, as long as the value does.
pub unsafe trait DmaMemory: Send + Sync {
    /// Returns where `dev` finds the memory.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the memory is mapped for another device.
    fn table<'a>(&'a self, dev: &'a Device<Bound>) -> Result<&'a SGTable>;
}
