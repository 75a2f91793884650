// SPDX-License-Identifier: GPL-2.0

//! Memory that is received into, buffer by buffer.
//!
//! Lock: `Areas::adding`, held by who reserves the id of an area.

use super::{
    buffers::Buffers,
    cursor::Place, //
};
use kernel::{
    io_uring::{
        account::{
            Account,
            Charge, //
        },
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
    new_mutex,
    nospec,
    page::{
        PAGE_MASK,
        PAGE_SHIFT, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Mutex,
        SetOnce, //
    }, //
};

/// How many buffers are taken off a free list at once: enough for a packet of 64 KiB.
const BATCH: usize = 16;

/// One piece of user memory, cut into buffers of a page each.
#[pin_data]
pub(super) struct Area {
    pages: PinnedPages,
    #[pin]
    buffers: Buffers,
    _charge: Charge,
}

impl Area {
    /// Pins the memory that `reg` describes and has `account` pay for it.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] for unknown flags, values that must be zero, and what is not in whole pages.
    /// - [`EFAULT`] for an address or a length of zero.
    /// - [`EOVERFLOW`] for memory that ends past the end of addresses.
    /// - [`ENOMEM`] if memory is short, or the limit on locked memory is reached.
    /// - What pinning gives.
    pub(super) fn new(account: &Account, reg: &AreaReg) -> Result<Pin<KBox<Self>>> {
        if reg.flags & !AREA_DMABUF != 0 || reg.rq_area_token != 0 || reg.reserved != [0; 2] {
            return Err(EINVAL);
        }
        pinned::validate_range(reg.addr, reg.len)?;
        let (addr, len) = (usize::try_from(reg.addr)?, usize::try_from(reg.len)?);

        // A dma-buf takes a device.
        if (addr | len) & !PAGE_MASK != 0 || reg.flags != 0 || reg.dmabuf_fd != 0 {
            return Err(EINVAL);
        }
        if addr == 0 {
            return Err(EFAULT);
        }
        let pages = PinnedPages::new(addr, len)?;
        let charge = account.charge(pages.account_pages())?;
        let buffers = Buffers::new(u32::try_from(len >> PAGE_SHIFT)?)?;

        KBox::pin_init(
            pin_init!(Self {
                pages,
                buffers <- buffers,
                _charge: charge,
            }),
            GFP_KERNEL,
        )
    }
}

/// A buffer to be filled.
pub(super) struct Buffer<'a> {
    place: Place,
    page: PinnedPage<'a>,
}

impl<'a> Buffer<'a> {
    /// Its memory.
    pub(super) fn page(&self) -> PinnedPage<'a> {
        self.page
    }

    /// What user space calls it.
    pub(super) fn offset(&self) -> u64 {
        self.place.offset(PAGE_SHIFT as u32)
    }
}

/// Buffers that were taken off an area's free list and not used yet. What is left goes back to it.
pub(super) struct Batch<'a> {
    areas: &'a Areas,
    area: Option<(u32, &'a Area)>,
    buffers: [u32; BATCH],
    len: usize,
}

impl<'a> Batch<'a> {
    /// Nothing yet.
    pub(super) fn new(areas: &'a Areas) -> Self {
        Self {
            areas,
            area: None,
            buffers: [0; BATCH],
            len: 0,
        }
    }

    /// The buffer to be used next, if there is any. If some have to be taken for that, it is up to
    /// `wanted` at once.
    pub(super) fn next(&mut self, wanted: usize) -> Option<Buffer<'a>> {
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
            page: area.pages.get(buffer as usize)?,
        })
    }

    /// Counts that user space has the buffer that [`Self::next`] returned, which is gone from here.
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

    /// Takes up to `wanted` buffers from the first area that has any.
    fn refill(&mut self, wanted: usize) {
        let wanted = wanted.clamp(1, BATCH);

        for id in 0..self.areas.len() {
            let (Some(area), Some(buffers)) = (self.areas.get(id), self.buffers.get_mut(..wanted))
            else {
                continue;
            };

            self.len = area.buffers.take(buffers);
            if self.len != 0 {
                self.area = Some((id, area));
                return;
            }
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        if let (Some((_, area)), Some(left @ [_, ..])) = (self.area, self.buffers.get(..self.len)) {
            area.buffers.put(left);
        }
    }
}

/// Areas in each part of the table.
const PART: usize = 32;

type Part = [SetOnce<Pin<KBox<Area>>>; PART];

/// All areas of a queue: `ZCRX_MAX_AREAS`, 1,024 at most. None goes before the queue does, so that
/// looking one up takes no lock.
#[pin_data]
pub(super) struct Areas {
    parts: [SetOnce<KBox<Part>>; PART],
    /// How many ids are in use. There may not be an area yet.
    len: Atomic<u32>,
    /// Held by who changes that.
    #[pin]
    adding: Mutex<()>,
}

impl Areas {
    /// None yet.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            parts: [const { SetOnce::new() }; PART],
            len: Atomic::new(0),
            adding <- new_mutex!((), "zcrx_adding"),
        })
    }

    /// How many ids are in use.
    fn len(&self) -> u32 {
        self.len.load(Acquire)
    }

    fn get(&self, id: u32) -> Option<&Area> {
        let id = nospec::checked_index(id as usize, self.len() as usize)?;
        let part = self.parts.get(id / PART)?.as_ref()?;

        Some(part.get(id % PART)?.as_ref()?)
    }

    /// Reserves the next id.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there are as many as can be, [`ENOMEM`] if memory is short.
    pub(super) fn reserve(&self) -> Result<Reservation<'_>> {
        let _guard = self.adding.lock();
        let id = self.len();
        let part = self.parts.get(id as usize / PART).ok_or(EINVAL)?;

        if part.as_ref().is_none() {
            part.populate(KBox::new(
                [const { SetOnce::new() }; PART],
                GFP_KERNEL_ACCOUNT,
            )?);
        }
        let slot = part.as_ref().and_then(|part| part.get(id as usize % PART));
        let slot = slot.ok_or(EINVAL)?;

        // Below 1,024.
        self.len.store(id.wrapping_add(1), Release);
        Ok(Reservation {
            areas: self,
            id,
            slot,
        })
    }

    /// Gives buffers back that user space names. Those that it does not have are passed over.
    pub(super) fn give_back(&self, places: &[Place]) {
        // Neighbours are mostly of one area.
        for run in places.chunk_by(|a, b| a.area == b.area) {
            if let Some(area) = run.first().and_then(|place| self.get(place.area)) {
                area.buffers.give_back(run);
            }
        }
    }

    /// Takes all buffers back that user space has. May sleep.
    pub(super) fn scrub(&self) {
        for id in 0..self.len() {
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
    /// The id.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Makes the area one of the queue.
    pub(super) fn fill(self, area: Pin<KBox<Area>>) {
        self.slot.populate(area);
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        let _guard = self.areas.adding.lock();

        // An id that is not the last one stays unused.
        if self.slot.as_ref().is_none() && self.areas.len() == self.id.wrapping_add(1) {
            self.areas.len.store(self.id, Release);
        }
    }
}
