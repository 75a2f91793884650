// SPDX-License-Identifier: GPL-2.0

//! The memory of an area: pinned pages of user space, or a dma-buf.

#[cfg(CONFIG_DMA_SHARED_BUFFER)]
use kernel::dma_buf::{
    Attachment,
    DmaBuf, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    dma_memory::DmaMemory,
    io::ResourceSize,
    io_uring::{
        account::{
            Account,
            Charge, //
        },
        mapping::PinnedMapping,
        pinned::{
            self,
            PinnedPages, //
        },
        zcrx::{
            AreaReg,
            AREA_DMABUF, //
        }, //
    },
    page::{
        SharedPage,
        PAGE_MASK,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::Arc, //
};

/// The kind of memory of an area.
enum Kind {
    Pages {
        pages: Arc<PinnedPages>,
        _charge: Charge,
    },
    #[cfg(CONFIG_DMA_SHARED_BUFFER)]
    DmaBuf(DmaBuf),
    /// No memory at all, in unit tests.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    NoPages,
}

/// The memory of an area.
pub(super) struct Memory {
    kind: Kind,
    size: usize,
}

impl Memory {
    /// Takes the memory that `reg` describes: pages of user space, which are pinned and charged to
    /// `account`, or a dma-buf. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] for unknown flags, for reserved fields that are not zero, for an address or
    ///   length that is not a multiple of the page size, and for a dma-buf that has no device or is
    ///   too small.
    /// - [`EFAULT`] for an address or a length of zero.
    /// - [`EOVERFLOW`] for memory that ends past the end of the address space.
    /// - [`EBADF`] for a dma-buf whose descriptor is not open.
    /// - [`ENOMEM`] if memory is short, or if the limit on locked memory is reached.
    /// - The errors of pinning.
    pub(super) fn new(account: &Account, reg: &AreaReg, has_device: bool) -> Result<Self> {
        if reg.flags & !AREA_DMABUF != 0 || reg.rq_area_token != 0 || !reg.reserved_is_zero() {
            return Err(EINVAL);
        }
        pinned::validate_range(reg.addr, reg.len)?;
        let (addr, size) = (usize::try_from(reg.addr)?, usize::try_from(reg.len)?);

        if (addr | size) & !PAGE_MASK != 0 {
            return Err(EINVAL);
        }
        if reg.flags & AREA_DMABUF != 0 {
            if !has_device || addr != 0 {
                return Err(EINVAL);
            }
            return Self::of_dmabuf(reg.dmabuf_fd, size);
        }
        if reg.dmabuf_fd != 0 {
            return Err(EINVAL);
        }
        if addr == 0 {
            return Err(EFAULT);
        }
        let pages = PinnedPages::new(addr, size)?;
        let charge = account.charge(pages.account_pages())?;

        Ok(Self {
            kind: Kind::Pages {
                pages: Arc::new(pages, GFP_KERNEL)?,
                _charge: charge,
            },
            size,
        })
    }

    #[cfg(CONFIG_DMA_SHARED_BUFFER)]
    fn of_dmabuf(fd: u32, size: usize) -> Result<Self> {
        let buf = DmaBuf::get(fd)?;

        // Only a dma-buf that is too small is refused here. `map` compares the exact size with the
        // memory that the device can reach, which may be rounded up to whole pages.
        if buf.size().div_ceil(PAGE_SIZE) < size / PAGE_SIZE {
            return Err(EINVAL);
        }
        Ok(Self {
            kind: Kind::DmaBuf(buf),
            size,
        })
    }

    #[cfg(not(CONFIG_DMA_SHARED_BUFFER))]
    fn of_dmabuf(_fd: u32, _size: usize) -> Result<Self> {
        Err(EINVAL)
    }

    /// Creates memory of `size` bytes without pages, for unit tests.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub(super) fn without_pages(size: usize) -> Self {
        Self {
            kind: Kind::NoPages,
            size,
        }
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns whether the kernel can write to the memory.
    pub(super) fn is_writable(&self) -> bool {
        matches!(self.kind, Kind::Pages { .. })
    }

    /// Returns the page with this `index`, if the memory consists of pages and has that many.
    pub(super) fn page(&self, index: usize) -> Option<SharedPage<'_>> {
        match &self.kind {
            Kind::Pages { pages, .. } => pages.get(index),
            #[cfg(CONFIG_DMA_SHARED_BUFFER)]
            Kind::DmaBuf(_) => None,
            #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
            Kind::NoPages => None,
        }
    }

    /// Maps the memory for a device, which receives into buffers of `1 << shift` bytes.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if the device can reach more or less memory than the area has.
    /// - [`ERANGE`] if a buffer would not be in one piece, or not at a multiple of its size.
    ///   Hardware that is given addresses in units of buffers ignores the lower bits.
    /// - The errors of mapping.
    pub(super) fn map(&self, dev: &Device<Bound>, shift: u32) -> Result<KBox<dyn DmaMemory>> {
        let memory = match &self.kind {
            Kind::Pages { pages, .. } => {
                KBox::new(PinnedMapping::new(pages.clone(), dev)?, GFP_KERNEL)?
                    as KBox<dyn DmaMemory>
            }
            #[cfg(CONFIG_DMA_SHARED_BUFFER)]
            Kind::DmaBuf(buf) => {
                KBox::new(Attachment::new(buf, dev)?, GFP_KERNEL)? as KBox<dyn DmaMemory>
            }
            #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
            Kind::NoPages => return Err(EINVAL),
        };
        let (mut total, mut bits): (ResourceSize, ResourceSize) = (0, 0);

        for piece in memory.table(dev)?.iter() {
            total = total.saturating_add(piece.dma_len());
            bits |= piece.dma_len() | piece.dma_address() as ResourceSize;
        }
        if total != self.size as ResourceSize {
            return Err(EINVAL);
        }
        if bits.trailing_zeros() < shift {
            return Err(ERANGE);
        }
        Ok(memory)
    }
}
