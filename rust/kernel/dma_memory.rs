// SPDX-License-Identifier: GPL-2.0

//! Memory of any kind that a device can write to by DMA.
//!
//! A [`DmaMemory`] stays mapped from its creation until it is dropped or its device loses its
//! driver, whichever comes first. Code that passes the memory's addresses to a device must keep the
//! object for as long as the device may use them.
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

/// A piece of memory that is mapped, so that a device can write to it.
///
/// Values are dropped where sleeping is allowed: this unmaps the memory.
///
/// # Safety
///
/// - The memory is mapped for one device, the one that [`Self::table`] accepts. While the value
///   exists and that device is bound to its driver, the table lists memory that the device can
///   write to. Through the mapping, the device can write to nothing else. The table is the same
///   each time.
/// - This memory may be written to by a device: as long as the value exists, it is not freed, and
///   there is no reference to it.
pub unsafe trait DmaMemory: Send + Sync {
    /// Returns the table of the addresses at which the memory is mapped for `dev`.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the memory is mapped for another device.
    fn table<'a>(&'a self, dev: &'a Device<Bound>) -> Result<&'a SGTable>;
}
