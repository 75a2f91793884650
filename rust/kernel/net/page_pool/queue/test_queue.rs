// SPDX-License-Identifier: GPL-2.0

//! A queue whose memory counts how often it is mapped, for unit tests.

use super::{
    MemoryProvider,
    ProvidedQueue,
    Unused, //
};
use crate::{
    bindings,
    device::{
        Bound,
        Device, //
    },
    dma_memory::DmaMemory,
    net::{
        netmem::NetIovs,
        page_pool::{
            AllocCache,
            ProviderKind, //
        }, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    scatterlist::SGTable,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// A table of one entry that names no real memory. Dropping it decrements `mapped`.
struct Fake {
    table: KBox<(bindings::sg_table, bindings::scatterlist)>,
    mapped: Arc<Atomic<i32>>,
}

// SAFETY: Nobody changes the table.
unsafe impl Send for Fake {}

// SAFETY: Nobody changes the table.
unsafe impl Sync for Fake {}

// SAFETY: No device of these tests writes anywhere.
unsafe impl DmaMemory for Fake {
    fn table<'a>(&'a self, _dev: &'a Device<Bound>) -> Result<&'a SGTable> {
        // SAFETY: The table is valid, and nobody changes it.
        Ok(unsafe { SGTable::from_raw((&raw const self.table.0).cast_mut()) })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.mapped.fetch_sub(1, Relaxed);
    }
}

/// One buffer for pools, which have no device, and another buffer, which is mapped for a
/// device.
pub(super) struct Provider {
    buffer: NetIovs,
    pub(super) mapped: NetIovs,
}

impl MemoryProvider for Provider {
    const KIND: ProviderKind = ProviderKind::IoUring;

    fn alloc(&self, cache: &mut AllocCache<'_>) {
        // This buffer is for a device, and the pool has none.
        assert_eq!(cache.push_free(&self.mapped, &[0]), 0);
        if self.buffer.take_and_grant(0) {
            let _ = self.buffer.take_back_all(0);
            assert_eq!(cache.push_free(&self.buffer, &[0]), 1);
        }
    }

    fn release(&self, _tag: u64, index: usize) {
        assert_eq!(index, 0);
    }

    fn unmap(&self, unused: &Unused<'_>) {
        self.mapped.unmap(unused);
    }
}

/// A queue, and the number of mappings of its memory.
pub(super) type QueueAndMappings = (Arc<ProvidedQueue<Provider>>, Arc<Atomic<i32>>);

/// Creates memory that counts in `mapped` as mapped until it is dropped.
fn memory(mapped: &Arc<Atomic<i32>>) -> Result<KBox<dyn DmaMemory>> {
    let mut table: KBox<(bindings::sg_table, bindings::scatterlist)> =
        KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;

    // SAFETY: The table has one entry.
    unsafe { bindings::sg_init_table(&raw mut table.1, 1) };
    table.1.dma_address = 0x1000;
    table.1.length = 4096;
    #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
    {
        table.1.dma_length = 4096;
    }
    table.0.sgl = &raw mut table.1;
    table.0.nents = 1;
    mapped.fetch_add(1, Relaxed);
    let fake = Fake {
        table,
        mapped: mapped.clone(),
    };

    Ok(KBox::new(fake, GFP_KERNEL)? as KBox<dyn DmaMemory>)
}

/// Creates a queue in the state that it has after it was bound and before its binding ends.
pub(super) fn bound_queue(dev: &Device<Bound>) -> Result<QueueAndMappings> {
    let mapped = Arc::new(Atomic::new(0), GFP_KERNEL)?;
    let provider = Provider {
        buffer: NetIovs::new(ProviderKind::IoUring, 1, PAGE_SHIFT as u32)?,
        mapped: NetIovs::new(ProviderKind::IoUring, 1, 12)?,
    };

    provider.mapped.map(memory(&mapped)?, dev)?;
    // What is mapped stays so, and what is refused does not.
    assert_eq!(
        provider.mapped.map(memory(&mapped)?, dev).err(),
        Some(EBUSY)
    );
    assert_eq!(mapped.load(Relaxed), 1);
    let queue = Arc::pin_init(
        ProvidedQueue::new::<Error>(PAGE_SHIFT as u32, Ok(provider)),
        GFP_KERNEL,
    )?;
    queue.state.lock().may_be_mapped = true;
    Ok((queue, mapped))
}
