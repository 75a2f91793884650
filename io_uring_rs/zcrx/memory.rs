// SPDX-License-Identifier: GPL-2.0

//! The memory of an area: pages of user space that are pinned, or a dma-buf; and how a device finds
//! it.

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
    io::ResourceSize,
    io_uring::{
        account::{
            Account,
            Charge, //
        },
        mapping::PinnedMapping,
        pinned::{
            self,
            PinnedPage,
            PinnedPages, //
        },
        zcrx::{
            AreaReg,
            AREA_DMABUF, //
        }, //
    },
    page::{
        PAGE_MASK,
        PAGE_SIZE, //
    },
    prelude::*,
    scatterlist::SGTable,
    sync::Arc, //
};

/// What memory there is.
enum Kind {
    Pages {
        pages: Arc<PinnedPages>,
        _charge: Charge,
    },
    #[cfg(CONFIG_DMA_SHARED_BUFFER)]
    DmaBuf(DmaBuf),
}

/// The memory of an area.
pub(super) struct Memory {
    kind: Kind,
    size: usize,
}

impl Memory {
    /// The memory that `reg` describes. If it is pages of user space, they are pinned, and
    /// `account` pays for them.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] for unknown flags, values that must be zero, what is not in whole pages, and a
    ///   dma-buf that has no device or is not as large.
    /// - [`EFAULT`] for an address or a length of zero.
    /// - [`EOVERFLOW`] for memory that ends past the end of addresses.
    /// - [`EBADF`] for a dma-buf that is no file.
    /// - [`ENOMEM`] if memory is short, or the limit on locked memory is reached.
    /// - What pinning gives.
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

        // What a device can reach of it, which may be whole pages, is compared when it is mapped.
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

    /// The size in bytes.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Whether the kernel can write to it.
    pub(super) fn is_writable(&self) -> bool {
        matches!(self.kind, Kind::Pages { .. })
    }

    /// A page of it, if it has pages.
    pub(super) fn page(&self, index: usize) -> Option<PinnedPage<'_>> {
        match &self.kind {
            Kind::Pages { pages, .. } => pages.get(index),
            #[cfg(CONFIG_DMA_SHARED_BUFFER)]
            Kind::DmaBuf(_) => None,
        }
    }

    /// Maps it for a device.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if the device reaches more or less than there should be, and what mapping gives.
    pub(super) fn map(&self, dev: &Device<Bound>) -> Result<Mapping> {
        let mapping = match &self.kind {
            Kind::Pages { pages, .. } => Mapping::Pages(PinnedMapping::new(pages.clone(), dev)?),
            #[cfg(CONFIG_DMA_SHARED_BUFFER)]
            Kind::DmaBuf(buf) => Mapping::DmaBuf(Attachment::new(buf, dev)?),
        };
        let total = mapping
            .table()
            .iter()
            .fold(0, |total: ResourceSize, entry| {
                total.saturating_add(entry.dma_len())
            });

        if total != self.size as ResourceSize {
            return Err(EINVAL);
        }
        Ok(mapping)
    }
}

/// Memory that is mapped for a device, until this is dropped.
pub(super) enum Mapping {
    Pages(PinnedMapping),
    #[cfg(CONFIG_DMA_SHARED_BUFFER)]
    DmaBuf(Attachment),
}

impl Mapping {
    /// Where the device finds it.
    pub(super) fn table(&self) -> &SGTable {
        match self {
            Mapping::Pages(mapping) => mapping.table(),
            #[cfg(CONFIG_DMA_SHARED_BUFFER)]
            Mapping::DmaBuf(attachment) => attachment.table(),
        }
    }

    /// The base-2 logarithm of the largest size that buffers can have which are in one piece each.
    pub(super) fn largest_shift(&self) -> u32 {
        self.table()
            .iter()
            .map(|entry| entry.dma_len().trailing_zeros())
            .min()
            .unwrap_or(0)
    }
}
