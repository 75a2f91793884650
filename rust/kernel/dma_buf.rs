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
    devres::Devres,
    dma_memory::DmaMemory,
    error::from_err_ptr,
    prelude::*,
    scatterlist::SGTable, //
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
    /// Gets the memory behind a file of the current task.
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

    /// Returns the size in bytes.
    pub fn size(&self) -> usize {
        // SAFETY: By the type invariants, it is valid. The size is constant.
        unsafe { (*self.buf.as_ptr()).size }
    }

    /// Takes another reference.
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

/// The attachment of a device to a dma-buf, with its mapping.
///
/// # Invariants
///
/// `attachment` attaches a device to `buf`, and `table` is the mapping of it.
struct Mapped {
    buf: DmaBuf,
    attachment: NonNull<bindings::dma_buf_attachment>,
    table: NonNull<bindings::sg_table>,
}

// SAFETY: Any task may detach the device.
unsafe impl Send for Mapped {}

// SAFETY: The mapping is constant.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Attaches `dev` to `buf`, and maps that for it.
    ///
    /// # Errors
    ///
    /// What the exporter gives.
    fn new(buf: &DmaBuf, dev: &Device<Bound>) -> Result<Self> {
        let buf = buf.reference();
        // SAFETY: The dma-buf is valid by its type invariants, the device as a `Device<Bound>`.
        let attachment =
            from_err_ptr(unsafe { bindings::dma_buf_attach(buf.buf.as_ptr(), dev.as_raw()) })?;
        // SAFETY: The device was just attached, and the reservation lock is not held here.
        let table = from_err_ptr(unsafe {
            bindings::dma_buf_map_attachment_unlocked(
                attachment,
                bindings::dma_data_direction::DMA_FROM_DEVICE,
            )
        });

        match table.map(|table| (NonNull::new(table), NonNull::new(attachment))) {
            // INVARIANT: The device is attached to `buf`, which was mapped for it.
            Ok((Some(table), Some(attachment))) => Ok(Self {
                buf,
                attachment,
                table,
            }),
            other => {
                // SAFETY: The device is attached to this dma-buf, which is not mapped for it.
                unsafe { bindings::dma_buf_detach(buf.buf.as_ptr(), attachment) };
                Err(other.err().unwrap_or(ENOMEM))
            }
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, `table` is the mapping of this attachment. It was made
        // for this direction, and the reservation lock is not held here.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.attachment.as_ptr(),
                self.table.as_ptr(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
            )
        };
        // SAFETY: By the type invariants, the attachment is one to this dma-buf, which is not
        // mapped any more.
        unsafe { bindings::dma_buf_detach(self.buf.buf.as_ptr(), self.attachment.as_ptr()) };
    }
}

/// A dma-buf that is mapped so that a device can write to it.
///
/// The mapping, and with it the attachment, ends when this is dropped, or when the device loses its
/// driver, whichever comes first.
pub struct Attachment(Devres<Mapped>);

impl Attachment {
    /// Attaches `dev` to `buf`, and maps that for it. May sleep.
    ///
    /// C counterparts: `dma_buf_attach`, `dma_buf_map_attachment_unlocked`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and what the exporter gives.
    pub fn new(buf: &DmaBuf, dev: &Device<Bound>) -> Result<Self> {
        Ok(Self(Devres::new(dev, Mapped::new(buf, dev))?))
    }
}

// SAFETY:
// - The mapping is made when the object is, and undone by the drop of `Mapped`, which happens when
//   this object is dropped or when the device is unbound. As the attachment is not dynamic, the
//   exporter neither moves the memory nor changes the table.
// - The memory is the exporter's, which offers it to devices. `Mapped` has a reference to it.
unsafe impl DmaMemory for Attachment {
    fn table<'a>(&'a self, dev: &'a Device<Bound>) -> Result<&'a SGTable> {
        let mapped = self.0.access(dev)?;

        // SAFETY: By the type invariants of `Mapped`, the table is valid. Nobody changes it.
        Ok(unsafe { SGTable::from_raw(mapped.table.as_ptr()) })
    }
}
