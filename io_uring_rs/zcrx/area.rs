// SPDX-License-Identifier: GPL-2.0

//! Areas: memory into which data is received, cut into buffers.
//!
//! Lock: `Areas::ids_lock`, a mutex, which is held to reserve the id of an area or to give it up.

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
mod race_test;

use super::{
    buffers::Buffers,
    cursor::{
        Place,
        AREA_SHIFT, //
    },
    free_list::FreeAreas,
    memory::Memory,
    table::Table, //
};
use kernel::{
    device::{
        Bound,
        Device, //
    },
    io_uring::{
        account::Account,
        zcrx::AreaReg, //
    },
    net::{
        netmem::ProvidedIov,
        page_pool::{
            AllocCache,
            Unused, //
        }, //
    },
    new_mutex,
    page::{
        SharedPage,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        SetOnce, //
    }, //
};

/// Returns the token of an area: the offset by which user space knows its first byte.
pub(super) fn token(area: u32) -> u64 {
    u64::from(area) << AREA_SHIFT
}

/// The number of buffers that are taken off a free list at once: enough for a packet of 64 KiB.
const BATCH: usize = 16;

/// A piece of memory that is cut into buffers.
#[pin_data]
pub(super) struct Area {
    memory: Memory,
    /// The base-2 logarithm of the size of a buffer, in bytes.
    shift: u32,
    /// The base-2 logarithm of the size of a buffer, in pages.
    page_shift: u32,
    #[pin]
    buffers: Buffers,
}

impl Area {
    /// Creates an area from the memory that `reg` describes, cut into buffers of `1 << shift`
    /// bytes, a page or more. An area for a device must be mapped before it is used. May sleep.
    ///
    /// # Errors
    ///
    /// The errors of [`Memory::new`], and [`ENOMEM`] if memory is short.
    pub(super) fn new(
        account: &Account,
        reg: &AreaReg,
        shift: u32,
        has_device: bool,
    ) -> Result<Pin<KBox<Self>>> {
        Self::of_memory(Memory::new(account, reg, has_device)?, shift, has_device)
    }

    /// Creates an area from `memory`, cut into buffers of `1 << shift` bytes.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, [`EINVAL`] for buffers that are smaller than a page.
    pub(super) fn of_memory(
        memory: Memory,
        shift: u32,
        has_device: bool,
    ) -> Result<Pin<KBox<Self>>> {
        let page_shift = shift.checked_sub(PAGE_SHIFT as u32).ok_or(EINVAL)?;
        let count = u32::try_from(memory.size() >> shift)?;
        let buffers = Buffers::new(count, shift, has_device)?;

        KBox::pin_init(
            pin_init!(Self {
                memory,
                shift,
                page_shift,
                buffers <- buffers,
            }),
            GFP_KERNEL,
        )
    }

    /// Returns whether the kernel can write to the area.
    pub(super) fn is_writable(&self) -> bool {
        self.memory.is_writable()
    }

    /// Returns the buffers of the area.
    pub(super) fn buffers(&self) -> &Buffers {
        &self.buffers
    }

    /// Maps the area for a device. May sleep.
    ///
    /// # Errors
    ///
    /// The errors of [`Memory::map`] and [`Buffers::map`].
    pub(super) fn map(&self, dev: &Device<Bound>) -> Result {
        self.buffers.map(self.memory.map(dev, self.shift)?, dev)
    }

    /// Returns the first page of `buffer`, if the memory consists of pages.
    fn page(&self, buffer: u32) -> Option<SharedPage<'_>> {
        self.memory
            .page((buffer as usize).checked_shl(self.page_shift)?)
    }
}

/// A free buffer to copy data to.
pub(super) struct Buffer<'a> {
    place: Place,
    shift: u32,
    page: SharedPage<'a>,
}

impl<'a> Buffer<'a> {
    /// Returns the first page of the buffer.
    pub(super) fn page(&self) -> SharedPage<'a> {
        self.page
    }

    /// Returns the offset by which user space knows the buffer.
    pub(super) fn offset(&self) -> u64 {
        self.place.offset(self.shift)
    }
}

/// A batch of buffers that were taken off an area's free list to be filled. Dropping it puts the
/// buffers that were not granted back on the list.
pub(super) struct Batch<'a> {
    areas: &'a Areas,
    area: Option<(u32, &'a Area)>,
    buffers: [u32; BATCH],
    len: usize,
}

impl<'a> Batch<'a> {
    /// Creates an empty batch.
    pub(super) fn new(areas: &'a Areas) -> Self {
        Self {
            areas,
            area: None,
            buffers: [0; BATCH],
            len: 0,
        }
    }

    /// Returns the buffer to be filled next, without removing it. If the batch is empty, up to
    /// `wanted` buffers are taken off a free list before. Returns [`None`] if no area has a free
    /// buffer.
    pub(super) fn peek(&mut self, wanted: usize) -> Option<Buffer<'a>> {
        if self.len == 0 {
            self.refill(wanted);
        }
        let (id, area) = self.area?;
        let buffer = *self.buffers.get(..self.len)?.last()?;

        Some(Buffer {
            place: Place {
                area: id,
                buffer: buffer.into(),
            },
            shift: area.shift,
            page: area.page(buffer)?,
        })
    }

    /// Grants user space the buffer that [`Self::peek`] returned, and removes it from the batch.
    pub(super) fn grant(&mut self) {
        let Some((buffer, left)) = self.buffers.get(..self.len).and_then(<[u32]>::split_last)
        else {
            return;
        };

        if let Some((_, area)) = self.area {
            area.buffers.grant(*buffer);
        }
        self.len = left.len();
    }

    /// Takes up to `wanted` buffers off the free list of an area that has any. The batch must be
    /// empty. Returns whether there was such an area.
    pub(super) fn refill(&mut self, wanted: usize) -> bool {
        let buffers = self.buffers.get_mut(..wanted.clamp(1, BATCH));
        let Some((id, area, count)) = buffers.and_then(|buffers| self.areas.take(buffers)) else {
            return false;
        };

        self.area = Some((id, area));
        self.len = count;
        true
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if let (Some((_, area)), Some(left @ [_, ..])) = (self.area, self.buffers.get(..self.len)) {
            area.buffers.put(left);
        }
    }
}

/// Returns the offset by which user space knows the bytes of `iov`, in an area whose buffers have
/// `1 << shift` bytes.
#[inline]
pub(super) fn offset(iov: &ProvidedIov<'_>, shift: u32) -> u64 {
    let buffer = (iov.index() as u64).wrapping_shl(shift);

    // `iov.offset()` is not past the end of the buffer.
    iov.tag()
        .wrapping_add(buffer)
        .wrapping_add(iov.offset() as u64)
}

/// All areas of a queue, at most 1,024: `ZCRX_MAX_AREAS`. An area is only freed with its queue, so
/// that looking one up takes no lock.
#[pin_data]
pub(super) struct Areas {
    /// The base-2 logarithm of the size of a buffer, in bytes.
    shift: u32,
    table: Table<Pin<KBox<Area>>>,
    /// The areas that have free buffers.
    free: Arc<FreeAreas>,
    /// The area in which free buffers were last found.
    hint: Atomic<u32>,
    /// Held while ids are reserved or given up.
    #[pin]
    ids_lock: Mutex<()>,
}

impl Areas {
    /// Creates a set without areas, for areas with buffers of `1 << shift` bytes.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn new(shift: u32) -> Result<impl PinInit<Self>> {
        let free = FreeAreas::new(Table::<Pin<KBox<Area>>>::CAPACITY)?;

        Ok(pin_init!(Self {
            shift,
            table: Table::new(),
            free,
            hint: Atomic::new(0),
            ids_lock <- new_mutex!((), "zcrx_ids_lock"),
        }))
    }

    /// Returns the base-2 logarithm of the size of a buffer, in bytes.
    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    /// Returns the area with this id, if there is one. The id may come from user space.
    pub(super) fn get(&self, id: u32) -> Option<&Area> {
        self.table.get(id).map(|area| &**area)
    }

    /// Reserves the next id for an area.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if no id is free, [`ENOMEM`] if memory is short.
    pub(super) fn reserve(&self) -> Result<Reservation<'_>> {
        let _guard = self.ids_lock.lock();
        let (id, slot) = self.table.reserve()?;

        Ok(Reservation {
            areas: self,
            id,
            slot,
        })
    }

    /// Takes free buffers of an area that has any. Returns the id of the area, the area, and the
    /// number of buffers taken. Takes no lock if no area has any.
    fn take(&self, buffers: &mut [u32]) -> Option<(u32, &Area, usize)> {
        let hint = self.hint.load(Relaxed);
        let mut from = hint;

        // Each time, other CPUs may take the buffers first, so the number of tries is limited.
        for _ in 0..=self.table.len() {
            let id = self.free.find(from)?;

            if let Some(area) = self.get(id) {
                let count = area.buffers.take(buffers);

                if count != 0 {
                    if id != hint {
                        self.hint.store(id, Relaxed);
                    }
                    return Some((id, area, count));
                }
            }
            from = id.wrapping_add(1);
        }
        None
    }

    /// Puts free buffers into the cache of a pool, until it is full or no area has any.
    pub(super) fn fill_cache(&self, cache: &mut AllocCache<'_>) {
        let mut buffers = [0; AllocCache::CAPACITY];

        loop {
            let room = cache.room();
            let Some((_, area, count)) = buffers
                .get_mut(..room)
                .filter(|buffers| !buffers.is_empty())
                .and_then(|buffers| self.take(buffers))
            else {
                return;
            };
            let taken = buffers.get(..count).unwrap_or(&[]);

            if !area.buffers.adopt(taken, cache) {
                return;
            }
        }
    }

    /// Puts a buffer that a pool has released on the free list: number `buffer` of the area with
    /// this `token`.
    pub(super) fn release(&self, token: u64, buffer: usize) {
        let id = token >> AREA_SHIFT;

        if let (Some(area), Ok(buffer)) = (self.get(id as u32), u32::try_from(buffer)) {
            area.buffers.put(&[buffer]);
        }
    }

    /// Unmaps all areas. `unused` shows that no pool gives their buffers to a device. May sleep.
    pub(super) fn unmap(&self, unused: &Unused<'_>) {
        for id in 0..self.table.len() {
            if let Some(area) = self.get(id) {
                area.buffers.unmap(unused);
            }
        }
    }

    /// Takes back all buffers that user space has. May sleep.
    pub(super) fn scrub(&self) {
        for id in 0..self.table.len() {
            if let Some(area) = self.get(id) {
                area.buffers.scrub();
            }
        }
    }
}

/// An id that is reserved for an area. Dropping it gives the id up.
pub(super) struct Reservation<'a> {
    areas: &'a Areas,
    id: u32,
    slot: &'a SetOnce<Pin<KBox<Area>>>,
}

impl Reservation<'_> {
    /// Returns the id.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Publishes the area under this id. From then on its buffers can be taken.
    pub(super) fn publish(self, area: Pin<KBox<Area>>) {
        area.buffers.set_token(token(self.id));
        self.slot.populate(area);
        // This comes last, so that free buffers are seen when there is an area. It is not ordered:
        // a CPU that sees them and does not find the area yet goes on searching.
        if let Some(area) = self.slot.as_ref() {
            area.buffers.note_in(self.areas.free.clone(), self.id);
        }
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let _guard = self.areas.ids_lock.lock();

        if self.slot.as_ref().is_none() {
            self.areas.table.give_up(self.id);
        }
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_area)]
mod tests {
    use super::{
        super::free_list::FreeList,
        *, //
    };
    use kernel::{
        faux,
        net::page_pool::{
            test_pool::TestPool,
            MemoryProvider,
            ProvidedQueue,
            ProviderKind, //
        }, //
    };

    /// The number of buffers of an area.
    const COUNT: usize = 3;

    /// Creates an area without pages.
    fn area(has_device: bool) -> Result<Pin<KBox<Area>>> {
        let memory = Memory::without_pages(COUNT << PAGE_SHIFT);

        Area::of_memory(memory, PAGE_SHIFT as u32, has_device)
    }

    /// Creates a set with one area without pages.
    fn areas() -> Result<Pin<KBox<Areas>>> {
        let areas = KBox::pin_init(Areas::new(PAGE_SHIFT as u32)?, GFP_KERNEL)?;

        areas.reserve()?.publish(area(false)?);
        Ok(areas)
    }

    /// Returns the number of free buffers of the first area, and leaves them free.
    fn free(areas: &Areas) -> Option<usize> {
        let mut all = [0; COUNT + 1];
        let buffers = areas.get(0)?.buffers();
        let count = buffers.take(&mut all);

        buffers.put(all.get(..count)?);
        Some(count)
    }

    /// An area may be noted as one that has free buffers just when others take them. The search
    /// ends nevertheless.
    #[test]
    fn search_ends_although_an_area_looks_free() -> Result {
        let areas = areas()?;
        let mut list = FreeList::new(1)?;
        let mut buffers = [0; COUNT];

        assert_eq!(
            areas.take(&mut buffers).map(|(_, _, count)| count),
            Some(COUNT)
        );
        // There is no area with this id, so that nobody finds out that it has no buffers.
        list.note_in(areas.free.clone(), 9);
        assert!(areas.take(&mut buffers).is_none());
        Ok(())
    }

    /// If an area looks free and is not, others are searched.
    #[test]
    fn search_goes_on_after_an_area_that_only_looks_free() -> Result {
        let areas = areas()?;
        let mut list = FreeList::new(1)?;
        let mut buffers = [0; COUNT];

        list.note_in(areas.free.clone(), 9);
        areas.hint.store(9, Relaxed);
        assert_eq!(
            areas.take(&mut buffers).map(|(id, _, count)| (id, count)),
            Some((0, COUNT))
        );
        Ok(())
    }

    /// An id that is given up can be used again if no later one is in use.
    #[test]
    fn only_the_last_id_is_given_up() -> Result {
        let areas = areas()?;
        let (first, second) = (areas.reserve()?, areas.reserve()?);

        drop(first);
        second.publish(area(false)?);
        assert!(areas.get(1).is_none());
        assert!(areas.get(2).is_some());
        assert_eq!(areas.reserve()?.id(), 3);
        assert_eq!(areas.reserve()?.id(), 3);
        Ok(())
    }

    #[test]
    fn granting_needs_a_buffer() -> Result {
        let areas = areas()?;
        let mut batch = Batch::new(&areas);

        batch.grant();
        assert_eq!(free(&areas), Some(COUNT));
        // It has buffers, but these have no page to copy to.
        assert!(batch.peek(1).is_none());
        assert_eq!(free(&areas), Some(COUNT - 1));
        drop(batch);
        assert_eq!(free(&areas), Some(COUNT));
        Ok(())
    }

    #[test]
    fn memory_without_pages_cannot_be_mapped() -> Result {
        let registration = faux::Registration::new(c"zcrx_area", None)?;
        let dev: &Device<Bound> = registration.as_ref().as_ref();

        assert_eq!(area(true)?.map(dev), Err(EINVAL));
        Ok(())
    }

    /// A provider whose areas are for no device.
    #[pin_data]
    struct Provider {
        #[pin]
        areas: Areas,
    }

    impl MemoryProvider for Provider {
        const KIND: ProviderKind = ProviderKind::IoUring;

        fn alloc(&self, cache: &mut AllocCache<'_>) {
            self.areas.fill_cache(cache);
        }

        fn release(&self, tag: u64, index: usize) {
            self.areas.release(tag, index);
        }

        fn unmap(&self, unused: &Unused<'_>) {
            self.areas.unmap(unused);
        }
    }

    #[test]
    fn buffers_that_a_pool_refuses_stay_free() -> Result {
        let areas = Areas::new(PAGE_SHIFT as u32)?;
        let queue = Arc::pin_init(
            ProvidedQueue::new(PAGE_SHIFT as u32, pin_init!(Provider { areas <- areas })),
            GFP_KERNEL,
        )?;

        queue.areas.reserve()?.publish(area(false)?);
        assert!(TestPool::new(&queue)?.receive().is_none());
        assert_eq!(free(&queue.areas), Some(COUNT));
        Ok(())
    }
}
