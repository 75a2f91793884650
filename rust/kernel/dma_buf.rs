// SPDX-License-Identifier: GPL-2.0

//! Memory that drivers share through files.
//!
//! A [`DmaBuf`] is such memory, and an [`Attachment`] is its mapping for a device.
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

/// A reference to the memory behind a file.
///
/// Wraps a pointer to the kernel's `struct dma_buf`.
///
/// # Invariants
///
/// `buf` is valid, and this object owns a reference to it.
pub struct DmaBuf {
    buf: NonNull<bindings::dma_buf>,
}

// SAFETY: Any task may drop a reference.
unsafe impl Send for DmaBuf {}

// SAFETY: The size is constant, and attaching takes locks for what it changes.
unsafe impl Sync for DmaBuf {}

impl DmaBuf {
    /// Returns the memory behind a file descriptor of the current task.
    ///
    /// C counterpart: `dma_buf_get`.
    ///
    /// # Errors
    ///
    /// - [`EBADF`] if there is no such file.
    /// - [`EINVAL`] if the file is not a dma-buf.
    pub fn get(fd: u32) -> Result<Self> {
        // File descriptors are not negative.
        let fd = c_int::try_from(fd).map_err(|_| EBADF)?;
        // SAFETY: The function may be called in any task that has a table of files, as tasks in
        // system calls do.
        let buf = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;

        // INVARIANT: The reference is new. The function never succeeds with a null pointer.
        Ok(Self {
            buf: NonNull::new(buf).ok_or(EINVAL)?,
        })
    }

    /// Returns the size of the memory in bytes.
    pub fn size(&self) -> usize {
        // SAFETY: By the type invariants, `buf` is valid. The size is constant.
        unsafe { (*self.buf.as_ptr()).size }
    }

    /// Takes another reference to the memory.
    fn reference(&self) -> Self {
        // SAFETY: By the type invariants, `buf` is valid, and so is its file.
        unsafe { bindings::get_file((*self.buf.as_ptr()).file) };
        // INVARIANT: The reference is new.
        Self { buf: self.buf }
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this object owns a reference.
        unsafe { bindings::dma_buf_put(self.buf.as_ptr()) };
    }
}

/// An attachment of a device to a dma-buf, with its mapping.
///
/// # Invariants
///
/// `attachment` attaches a device to `buf`, and `table` is the mapping of this attachment.
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
    /// Attaches `dev` to `buf`, and maps `buf` for it.
    ///
    /// # Errors
    ///
    /// The errors of the exporter.
    fn new(buf: &DmaBuf, dev: &Device<Bound>) -> Result<Self> {
        let buf = buf.reference();
        // SAFETY: By its type invariants, the dma-buf is valid. A `Device<Bound>` is valid.
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
            // INVARIANT: The device is attached to `buf`, which was just mapped for it.
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
        // with this direction, and the reservation lock is not held here.
        unsafe {
            bindings::dma_buf_unmap_attachment_unlocked(
                self.attachment.as_ptr(),
                self.table.as_ptr(),
                bindings::dma_data_direction::DMA_FROM_DEVICE,
            )
        };
        // SAFETY: By the type invariants, this is an attachment to this dma-buf. It is not mapped
        // any more.
        unsafe { bindings::dma_buf_detach(self.buf.buf.as_ptr(), self.attachment.as_ptr()) };
    }
}

/// A dma-buf that is mapped, so that a device can write to it.
///
/// The mapping and the attachment end when this is dropped, or when the device loses its driver,
/// whichever comes first.
pub struct Attachment(Devres<Mapped>);

impl Attachment {
    /// Attaches `dev` to `buf`, and maps `buf` for it. May sleep.
    ///
    /// C counterparts: `dma_buf_attach`, `dma_buf_map_attachment_unlocked`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of the exporter.
    pub fn new(buf: &DmaBuf, dev: &Device<Bound>) -> Result<Self> {
        Ok(Self(Devres::new(dev, Mapped::new(buf, dev))?))
    }
}

// SAFETY:
// - The mapping begins when the object is created. Dropping `Mapped` ends it, when this object is
//   dropped or when the device is unbound. As the attachment is not dynamic, the exporter neither
//   moves the memory nor changes the table.
// - The memory belongs to the exporter, which offers it to devices. `Mapped` has a reference to it.
unsafe impl DmaMemory for Attachment {
    fn table<'a>(&'a self, dev: &'a Device<Bound>) -> Result<&'a SGTable> {
        let mapped = self.0.access(dev)?;

        // SAFETY: By the type invariants of `Mapped`, the table is valid. Nobody changes it.
        Ok(unsafe { SGTable::from_raw(mapped.table.as_ptr()) })
    }
}
