// SPDX-License-Identifier: GPL-2.0

//! Pinned memory of user space that a device writes to.
//!
//! C counterpart: `io_import_umem` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c)

use super::pinned::PinnedPages;
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        aref::ARef,
        Arc, //
    },
    types::Opaque, //
};

/// What is in the pages is nothing to the device, so that they are not synced when they are mapped
/// and unmapped, only when a buffer changes hands. And the device may write in any order.
const ATTRS: usize = (bindings::DMA_ATTR_SKIP_CPU_SYNC | bindings::DMA_ATTR_WEAK_ORDERING) as usize;

/// A table of runs of pages.
///
/// # Invariants
///
/// It was set up, and is not moved.
struct Table(KBox<Opaque<bindings::sg_table>>);

impl Table {
    /// The runs in `pages`, none of them longer than `dev` takes.
    fn new(pages: &PinnedPages, dev: &Device<Bound>) -> Result<Self> {
        let table = KBox::new(Opaque::zeroed(), GFP_KERNEL)?;
        let count = u32::try_from(pages.len())?;
        // SAFETY: The device is valid.
        let longest = unsafe { bindings::dma_get_max_seg_size(dev.as_raw()) };
        // Buffers have a power of two of bytes, of which there are the most in a run of so many.
        let longest = 1 << longest.max(PAGE_SIZE as u32).ilog2();

        // SAFETY: The table is ours, and there are `count` valid pages, more than none, to which
        // the function does not write.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                table.get(),
                pages.as_ptr(),
                count,
                0,
                pages.len() * PAGE_SIZE,
                longest,
                GFP_KERNEL_ACCOUNT.as_raw(),
            )
        })?;
        // INVARIANT: It was just set up.
        Ok(Self(table))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, it was set up.
        unsafe { bindings::sg_free_table(self.0.get()) };
    }
}

/// Pinned pages that are mapped so that a device can write to them. They stay pinned meanwhile.
///
/// # Invariants
///
/// `table` is mapped for `dev`.
pub struct PinnedMapping {
    table: Table,
    dev: ARef<Device>,
    _pages: Arc<PinnedPages>,
}

// SAFETY: It may be unmapped by any task.
unsafe impl Send for PinnedMapping {}

// SAFETY: The mapping is constant.
unsafe impl Sync for PinnedMapping {}

impl PinnedMapping {
    /// Maps `pages` for `dev`. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and what `dma_map_sgtable` gives.
    pub fn new(pages: Arc<PinnedPages>, dev: &Device<Bound>) -> Result<Self> {
        let table = Table::new(&pages, dev)?;

        // SAFETY: The device is valid and has a driver, and the table is one of valid pages.
        to_result(unsafe {
            bindings::dma_map_sgtable(
                dev.as_raw(),
                table.0.get(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
                ATTRS,
            )
        })?;
        // INVARIANT: It was just mapped.
        Ok(Self {
            table,
            dev: dev.into(),
            _pages: pages,
        })
    }

    /// Where the device finds the memory.
    pub fn table(&self) -> &SGTable {
        // SAFETY: The table is valid while `self` is, and nobody changes it.
        unsafe { SGTable::from_raw(self.table.0.get()) }
    }
}

impl Drop for PinnedMapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the table is mapped for this device. These are the
        // direction and the attributes that it was mapped with.
        unsafe {
            bindings::dma_unmap_sgtable(
                self.dev.as_raw(),
                self.table.0.get(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
                ATTRS,
            )
        };
    }
}
