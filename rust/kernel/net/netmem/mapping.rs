// SPDX-License-Identifier: GPL-2.0

//! Mapping the memory of buffers for a device.
//!
//! The parent module says how long the mapping lasts.

use super::{
    resched_after,
    NetIovs, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma_memory::DmaMemory,
    io::ResourceSize,
    net::page_pool::Unused,
    prelude::*,
    scatterlist::SGTable,
    sync::atomic::{
        Relaxed,
        Release, //
    },
    warn_on_once, //
};
use core::ptr::null_mut;

impl NetIovs {
    /// Maps `memory` for `dev`, and assigns the mapped addresses to the buffers in the order of
    /// their indices. From then on, the buffers can be put into page pools of `dev`. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EBUSY`] if the buffers are mapped already.
    /// - [`EINVAL`] if `memory` is mapped for another device, or if a buffer would not be
    ///   contiguous, or would not start at a multiple of its size: devices may ignore the low bits
    ///   of an address.
    /// - [`EFAULT`] if `memory` is smaller than the buffers together, or has an address that does
    ///   not fit in a `net_iov`.
    pub fn map(&self, memory: KBox<dyn DmaMemory>, dev: &Device<Bound>) -> Result {
        let owner = self.owner();
        let mut slot = owner.memory.lock();

        if slot.is_some() {
            return Err(EBUSY);
        }
        self.set_addresses(memory.table(dev)?)?;
        // INVARIANT: All buffers have addresses in `memory`, which is kept and is mapped for `dev`.
        // Release, so that a CPU that sees the device sees the addresses.
        *slot = Some(memory);
        owner.dev.store(dev.as_raw(), Release);
        Ok(())
    }

    /// Stores in each buffer the DMA address of the buffer.
    ///
    /// # Errors
    ///
    /// The same as those of [`Self::map`].
    fn set_addresses(&self, table: &SGTable) -> Result {
        let shift = self.owner().shift;
        let size = ResourceSize::checked_shl(1, shift).ok_or(EINVAL)?;
        let mut iovs = self.owner().iovs.iter();

        for entry in table.iter() {
            let len = entry.dma_len();
            let mut address = entry.dma_address();
            let count = usize::try_from(len >> shift)?;

            if (len | address as ResourceSize) & (size - 1) != 0 {
                return Err(EINVAL);
            }
            for (number, iov) in iovs.by_ref().take(count).enumerate() {
                // SAFETY: The `net_iov` is valid. While its owner's `dev` is null, no pool that
                // gives buffers to a device has it. A pool that its driver has destroyed may, if
                // the memory was mapped before; such a pool does not read the address, which is one
                // word.
                if unsafe { bindings::net_mp_niov_set_dma_addr(iov.get(), address) } {
                    return Err(EFAULT);
                }
                address = address.wrapping_add(size as bindings::dma_addr_t);
                resched_after(number);
            }
        }
        iovs.next().map_or(Ok(()), |_| Err(EFAULT))
    }

    /// Ends the mapping, if there is one. May sleep.
    ///
    /// `unused` shows that no pool gives buffers of its provider to a device. If the buffers belong
    /// to another provider, this warns and leaves them mapped.
    pub fn unmap(&self, unused: &Unused<'_>) {
        let owner = self.owner();
        let memory = owner.memory.lock().take();

        if memory.is_none() {
            return;
        }
        if warn_on_once!(!self.claim(unused.provider())) {
            *owner.memory.lock() = memory;
            return;
        }
        // INVARIANT: Nobody can put the buffers into a pool of a device any more: they belong to
        // this provider alone, and it has no pool that asks for buffers.
        owner.dev.store(null_mut(), Relaxed);
        for (number, iov) in owner.iovs.iter().enumerate() {
            // SAFETY: The `net_iov` is valid. Packets that still have it do not read its address,
            // nor do pools that `unused` knows to be destroyed. Zero always fits.
            unsafe { bindings::net_mp_niov_set_dma_addr(iov.get(), 0) };
            resched_after(number);
        }
        drop(memory);
    }
}

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_net_netmem_mapping)]
mod tests {
    use super::{
        super::iov::Iov,
        *, //
    };
    use crate::net::page_pool::ProviderKind;

    /// Returns the addresses that three buffers of `1 << shift` bytes get if `pieces` are mapped
    /// for a device. Each piece is an address and a number of bytes.
    fn mapped_addresses(pieces: [(u64, u32); 3], shift: u32) -> Result<[u64; 3]> {
        let iovs = NetIovs::new(ProviderKind::IoUring, 3, shift)?;
        let mut entries: [bindings::scatterlist; 3] = pin_init::zeroed();
        let mut table: bindings::sg_table = pin_init::zeroed();

        // SAFETY: The array has three entries.
        unsafe { bindings::sg_init_table(entries.as_mut_ptr(), 3) };
        for (entry, (address, len)) in entries.iter_mut().zip(pieces) {
            entry.dma_address = address as bindings::dma_addr_t;
            entry.length = len;
            #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
            {
                entry.dma_length = len;
            }
        }
        table.sgl = entries.as_mut_ptr();
        table.nents = 3;
        // SAFETY: The table and its entries outlive the reference.
        iovs.set_addresses(unsafe { SGTable::from_raw(&raw mut table) })?;

        // SAFETY: The buffer is valid.
        let address =
            |iov: Iov<'_>| unsafe { bindings::page_pool_get_dma_addr_netmem(iov.netmem()) as u64 };
        Ok([0, 1, 2].map(|index| iovs.iov(index).map_or(0, address)))
    }

    #[test]
    fn buffers_need_contiguous_dma_addresses() {
        let odd = [(0x7000, 4096), (0x3000, 4096), (0x1_0000, 4096)];
        assert_eq!(mapped_addresses(odd, 12), Ok([0x7000, 0x3000, 0x1_0000]));
        // No two of these pieces are contiguous.
        assert_eq!(mapped_addresses(odd, 13), Err(EINVAL));
        let long = [(0x8000, 16384), (0x2000, 8192), (0x4000, 8192)];
        assert_eq!(mapped_addresses(long, 12), Ok([0x8000, 0x9000, 0xa000]));
        assert_eq!(mapped_addresses(long, 13), Ok([0x8000, 0xa000, 0x2000]));
        // The first piece is contiguous, but not at a multiple of the larger size.
        let askew = [(0x9000, 16384), (0x2000, 8192), (0x4000, 8192)];
        assert_eq!(mapped_addresses(askew, 12), Ok([0x9000, 0xa000, 0xb000]));
        assert_eq!(mapped_addresses(askew, 13), Err(EINVAL));
        let few = [(0x5000, 4096), (0x2000, 4096), (0x9000, 0)];
        assert_eq!(mapped_addresses(few, 12), Err(EFAULT));
    }
}
