// SPDX-License-Identifier: GPL-2.0

//! Memory that drivers share by way of files.
//!
//! [`DmaBuf`] is such memory, [`Attachment`] maps it for a device.
//!
//! C header: [`include/linux/dma-buf.h`](srctree/include/linux/dma-buf.h)

use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    error::from_err_ptr,
    prelude::*,
    scatterlist::SGTable,
    sync::aref::ARef, //
};
use core::ptr::NonNull;

/// Memory behind a file.
///
/// Wraps a pointer to the kernel's `struct dma_buf`.
///
/// # Invariants
///
/// `buf` is valid, and a reference to it is ours.
pub struct DmaBuf {
    buf: NonNull<bindings::dma_buf>,
}

// SAFETY: References may be given back by any task.
unsafe impl Send for DmaBuf {}

// SAFETY: Its size is constant, and attaching locks what it changes.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// The memory behind a file of the current task.
    ///
    /// C counterpart: `dma_buf_get`.
    ///
    /// # Errors
    ///
    /// [`EBADF`] if there is no such file, [`EINVAL`] if there is no such memory behind it.
    pub fn get(fd: u32) -> Result<Self> {
        // There are no negative ones.
        let fd = c_int::try_from(fd).map_err(|_| EBADF)?;
        // SAFETY: The function may be called in any task that has files, as those in system calls
        // have.
        let buf = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;

        // INVARIANT: The reference is new. There is no success with a null pointer.
        Ok(Self {
            buf: NonNull::new(buf).ok_or(EINVAL)?,
        })
    }

    /// The size in bytes.
    pub fn size(&self) -> usize {
        // SAFETY: By the type invariants, it is valid. The size is constant.
        unsafe { (*self.buf.as_ptr()).size }
    }

    /// Another reference.
    fn reference(&self) -> Self {
        // SAFETY: By the type invariants, it is valid, and so is its file.
        unsafe { bindings::get_file((*self.buf.as_ptr()).file) };
        // INVARIANT: The reference is new.
        Self { buf: self.buf }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, a reference is ours.
        unsafe { bindings::dma_buf_put(self.buf.as_ptr()) };
    }
}

/// Memory that is mapped so that a device can write to it.
///
/// # Invariants
///
/// `attachment` attaches `_dev` to `buf`, and `table` is the mapping of it.
pub struct Attachment {
    buf: DmaBuf,
    _dev: ARef<Device>,
    attachment: NonNull<bindings::dma_buf_attachment>,
    table: NonNull<bindings::sg_table>,
}

// SAFETY: It may be detached by any task.
unsafe impl Send for Attachment {}

// SAFETY: The mapping is constant.
unsafe impl Sync for Attachment {}

impl Attachment {
    /// Attaches `dev` to `buf`, and maps that for it. May sleep.
    ///
    /// C counterparts: `dma_buf_attach`, `dma_buf_map_attachment_unlocked`.
    ///
    /// # Errors
    ///
    /// What these give.
    pub fn new(buf: &DmaBuf, dev: &Device<Bound>) -> Result<Self> {
        let buf = buf.reference();
        // SAFETY: Both are valid.
        let attachment =
            from_err_ptr(unsafe { bindings::dma_buf_attach(buf.buf.as_ptr(), dev.as_raw()) })?;
        // SAFETY: It was just attached, and is not locked.
        let table = from_err_ptr(unsafe {
            bindings::dma_buf_map_attachment_unlocked(
                attachment,
                bindings::dma_data_direction::DMA_FROM_DEVICE,
            )
        });

        match table.map(|table| (NonNull::new(table), NonNull::new(attachment))) {
            // INVARIANT: It is attached and mapped.
            Ok((Some(table), Some(attachment))) => Ok(Self {
                buf,
                _dev: dev.into(),
                attachment,
                table,
            }),
            other => {
                // SAFETY: It is attached to this, and not mapped.
                unsafe { bindings::dma_buf_detach(buf.buf.as_ptr(), attachment) };
                Err(other.err().unwrap_or(ENOMEM))
            }
        }
    }

    /// Where the device finds the memory.
    pub fn table(&self) -> &SGTable {
        // SAFETY: By the type invariants, the table is valid while `self` is. As the attachment is
        // not dynamic, the exporter does not change it.
        unsafe { SGTable::from_raw(self.table.as_ptr()) }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this is the mapping, and is not locked. It was made for
        // this direction.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.attachment.as_ptr(),
                self.table.as_ptr(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
            )
        };
        // SAFETY: By the type invariants, it is attached to this, and it is not mapped any more.
        unsafe { bindings::dma_buf_detach(self.buf.buf.as_ptr(), self.attachment.as_ptr()) };
    }
}
