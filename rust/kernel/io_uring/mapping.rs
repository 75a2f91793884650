// SPDX-License-Identifier: GPL-2.0

//! Pinned memory of user space that is mapped for a device, which writes to it.
//!
//! C counterpart: `io_import_umem` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c)

use super::pinned::PinnedPages;
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    devres::Devres,
    dma_memory::DmaMemory,
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
use core::ptr::NonNull;

/// The attributes of a mapping.
///
/// The device only writes to the memory, whatever it contains. So pages are not synced when they
/// are mapped and unmapped; instead, each buffer is synced when it passes to or from the device.
/// The device may write in any order.
const ATTRS: usize = (bindings::DMA_ATTR_SKIP_CPU_SYNC | bindings::DMA_ATTR_WEAK_ORDERING) as usize;

/// A scatter-gather table of runs of pages.
///
/// # Invariants
///
/// The table was set up, with valid pages.
struct Table(KBox<Opaque<bindings::sg_table>>);

// SAFETY: Any task may free the table.
unsafe impl Send for Table {}

// SAFETY: The table does not change while it is shared.
unsafe impl Sync for Table {}

impl Table {
    /// Creates a table of the runs of consecutive pages in `pages`. No run is longer than `dev`
    /// supports.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    fn new(pages: &PinnedPages, dev: &Device<Bound>) -> Result<Self> {
        let table = KBox::new(Opaque::zeroed(), GFP_KERNEL)?;
        let count = u32::try_from(pages.len())?;
        // SAFETY: A `Device<Bound>` is valid.
        let longest = unsafe { bindings::dma_get_max_seg_size(dev.as_raw()) };
        // Round down to a power of two, like the size of a buffer, so that a run holds whole
        // buffers. A run cannot be shorter than a page.
        let longest = 1 << longest.max(PAGE_SIZE as u32).ilog2();

        // SAFETY:
        // - The table is in a box of this function.
        // - The array has `count` valid pages, and `count` is not zero. The function does not write
        //   to it.
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
        // INVARIANT: The table was just set up.
        Ok(Self(table))
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the table was set up.
        unsafe { bindings::sg_free_table(self.0.get()) };
    }
}

/// A table that is mapped, so that a device can write to its pages.
///
/// # Invariants
///
/// The table that `table` points to is mapped for `dev`, and stays valid while this object exists.
struct Mapped {
    table: NonNull<bindings::sg_table>,
    dev: ARef<Device>,
}

// SAFETY: Any task may unmap the table.
unsafe impl Send for Mapped {}

// SAFETY: The mapping is constant.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Maps `table` for `dev`.
    ///
    /// # Errors
    ///
    /// The errors of `dma_map_sgtable`.
    ///
    /// # Safety
    ///
    /// `table` must outlive the result.
    unsafe fn new(table: &Table, dev: &Device<Bound>) -> Result<Self> {
        // SAFETY:
        // - A `Device<Bound>` is valid, and has a driver.
        // - By the type invariants of `Table`, the table was set up, with valid pages.
        to_result(unsafe {
            bindings::dma_map_sgtable(
                dev.as_raw(),
                table.0.get(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
                ATTRS,
            )
        })?;
        // INVARIANT: The table was just mapped, and the caller guarantees that it outlives the
        // result.
        Ok(Self {
            table: NonNull::new(table.0.get()).ok_or(EINVAL)?,
            dev: dev.into(),
        })
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY:
        // - By the type invariants, the table is valid and mapped for this device. `Devres` drops
        //   this object before the device loses its driver.
        // - The table was mapped with this direction and these attributes.
        unsafe {
            bindings::dma_unmap_sgtable(
                self.dev.as_raw(),
                self.table.as_ptr(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
                ATTRS,
            )
        };
    }
}

/// Pinned pages that are mapped, so that a device can write to them.
///
/// The pages stay pinned for as long as this object exists. They are unmapped when it is dropped,
/// or when the device loses its driver, whichever comes first.
// Fields are dropped in this order: the table must outlive its mapping, and the pages the table.
pub struct PinnedMapping {
    mapped: Devres<Mapped>,
    _table: Table,
    _pages: Arc<PinnedPages>,
}

impl PinnedMapping {
    /// Maps `pages` for `dev`. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of `dma_map_sgtable`.
    pub fn new(pages: Arc<PinnedPages>, dev: &Device<Bound>) -> Result<Self> {
        let table = Table::new(&pages, dev)?;
        // SAFETY: The table outlives the `Mapped`. It is in a box, so that it does not move, and
        // its field comes after the `Devres`, so that it is dropped later. When a `Devres` has been
        // dropped, its content has been, too; if creating the `Devres` fails, that drops the
        // content.
        let mapped = Devres::new(dev, unsafe { Mapped::new(&table, dev) })?;

        Ok(Self {
            mapped,
            _table: table,
            _pages: pages,
        })
    }
}

// SAFETY:
// - The mapping begins when the object is created. Dropping `Mapped` ends it, when this object is
//   dropped or when the device is unbound. The table names the pinned pages.
// - The pages belong to user space, stay pinned, and the kernel has no references to them.
unsafe impl DmaMemory for PinnedMapping {
    fn table<'a>(&'a self, dev: &'a Device<Bound>) -> Result<&'a SGTable> {
        let mapped = self.mapped.access(dev)?;

        // SAFETY: By the type invariants of `Mapped`, the table is valid. Nobody changes it.
        Ok(unsafe { SGTable::from_raw(mapped.table.as_ptr()) })
    }
}
