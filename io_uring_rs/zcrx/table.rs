// SPDX-License-Identifier: GPL-2.0

//! A table in which looking up takes no lock, and from which nothing is removed.

use core::array;
use kernel::{
    nospec,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        SetOnce, //
    }, //
};

/// The number of entries in each part of a table, and of parts.
const PART: usize = 32;

type Part<T> = [SetOnce<T>; PART];

/// A table of up to 1,024 entries by their ids, which are assigned in order.
pub(super) struct Table<T> {
    /// The entries. A part is allocated with its first entry.
    parts: [SetOnce<KBox<Part<T>>>; PART],
    /// The number of ids that are in use. The entry of an id may not be there yet.
    len: Atomic<u32>,
}

impl<T> Table<T> {
    /// The largest number of entries.
    pub(super) const CAPACITY: usize = PART * PART;

    /// Creates an empty table.
    pub(super) fn new() -> Self {
        Self {
            parts: array::from_fn(|_| SetOnce::new()),
            len: Atomic::new(0),
        }
    }

    /// Returns the number of ids that are in use.
    pub(super) fn len(&self) -> u32 {
        self.len.load(Acquire)
    }

    /// Returns the entry with this id, if there is one. The id may come from user space.
    #[inline]
    pub(super) fn get(&self, id: u32) -> Option<&T> {
        let id = nospec::checked_index(id as usize, self.len() as usize)?;
        let part = self.parts.get(id / PART)?.as_ref()?;

        part.get(id % PART)?.as_ref()
    }

    /// Reserves the next id. Returns it, and the place of its entry. Calls of this method and of
    /// [`Self::give_up`] must not run at the same time.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if no id is free, [`ENOMEM`] if memory is short.
    pub(super) fn reserve(&self) -> Result<(u32, &SetOnce<T>)> {
        let id = self.len();
        let part = self.parts.get(id as usize / PART).ok_or(EINVAL)?;

        if part.as_ref().is_none() {
            let entries = array::from_fn(|_| SetOnce::new());

            part.populate(KBox::new(entries, GFP_KERNEL_ACCOUNT)?);
        }
        let entry = part.as_ref().and_then(|part| part.get(id as usize % PART));
        let entry = entry.ok_or(EINVAL)?;

        // The id is below 1,024.
        self.len.store(id.wrapping_add(1), Release);
        Ok((id, entry))
    }

    /// Gives up an id whose entry is not there. Only the last id can be given up. Any other one
    /// stays unused.
    pub(super) fn give_up(&self, id: u32) {
        if self.len() == id.wrapping_add(1) {
            self.len.store(id, Release);
        }
    }
}
