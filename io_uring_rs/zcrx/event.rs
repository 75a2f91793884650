// SPDX-License-Identifier: GPL-2.0

//! Telling user space that something happened, once until it asks again.
//!
//! Locks: one, which disables bottom halves; what wakes the ring's task is locked under it.

use super::Queue;
use kernel::{
    io_uring::{
        event::RingRef,
        queues::Queues,
        zcrx::{
            EventDesc,
            EVENTS,
            EVENT_DESC_STATS, //
        }, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        lock::spinlock_bh::SpinLockBh,
        new_spinlock_bh, //
    }, //
};

/// The events of a queue.
#[pin_data]
pub(super) struct Events {
    /// Which are wanted, a bit each.
    wanted: u32,
    user_data: u64,
    /// Which have happened, a bit each. Changes while `ring` is locked.
    fired: Atomic<u32>,
    /// The ring that events go to, while it takes any.
    #[pin]
    ring: SpinLockBh<Option<RingRef>>,
}

/// Checks what user space says of events.
///
/// # Errors
///
/// [`EINVAL`] for unknown events or flags, values that must be zero, and a place of statistics
/// where none are wanted.
pub(super) fn check(desc: &EventDesc) -> Result {
    if desc.type_mask >> EVENTS != 0
        || desc.flags & !EVENT_DESC_STATS != 0
        || (desc.flags & EVENT_DESC_STATS == 0 && desc.stats_offset != 0)
        || !desc.reserved_is_zero()
    {
        return Err(EINVAL);
    }
    Ok(())
}

impl Events {
    /// Creates the events that `desc`, which was checked, asks for. None is sent before
    /// [`Events::connect`].
    pub(super) fn new(desc: &EventDesc) -> impl PinInit<Self> + use<> {
        let (wanted, user_data) = (desc.type_mask, desc.user_data);

        pin_init!(Self {
            wanted,
            user_data,
            fired: Atomic::new(0),
            ring <- new_spinlock_bh!(None, "zcrx_events"),
        })
    }

    /// Sends events to `ring` from now on, if any are wanted.
    pub(super) fn connect(&self, ring: Option<RingRef>) {
        if self.wanted != 0 {
            *self.ring.lock() = ring;
        }
    }

    /// Stops sending events to the ring of `queues`.
    pub(super) fn disconnect(&self, queues: &Queues<'_, Queue>) {
        drop(self.ring.lock().take_if(|ring| queues.is_of(ring)));
    }

    /// Sends an event, if it is wanted and was not sent since it was armed.
    pub(super) fn send(&self, event: u32) {
        let bit = 1u32.checked_shl(event).unwrap_or(0);

        // Mostly it was not asked for, or has happened.
        if self.wanted & bit == 0 || self.fired.load(Relaxed) & bit != 0 {
            return;
        }
        let ring = self.ring.lock();
        let fired = self.fired.load(Relaxed);
        if fired & bit != 0 {
            return;
        }
        let posted = |ring: &RingRef| ring.post_later(self.user_data, event as i32);

        if ring.as_ref().is_some_and(posted) {
            self.fired.store(fired | bit, Relaxed);
        }
    }

    /// Lets an event that happened happen again.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such event, or it did not happen.
    pub(super) fn arm(&self, event: u32) -> Result {
        let bit = (event < EVENTS).then(|| 1 << event).ok_or(EINVAL)?;
        let _ring = self.ring.lock();
        let fired = self.fired.load(Relaxed);

        if fired & bit == 0 {
            return Err(EINVAL);
        }
        self.fired.store(fired & !bit, Relaxed);
        Ok(())
    }
}
