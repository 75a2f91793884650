// SPDX-License-Identifier: GPL-2.0

//! Events: completions that tell user space that something happened, once until it asks again.
//!
//! Lock: `Events::ring`, which disables bottom halves. While it is held, locks are taken to wake
//! the task of the ring.

use super::{
    fired::Fired,
    ifq::Queue, //
};
use kernel::{
    io_uring::{
        event::RingRef,
        queues::Queues,
        zcrx::{
            EventDesc,
            EVENT_DESC_STATS, //
            EVENT_TYPES,
        }, //
    },
    prelude::*,
    sync::{
        lock::spinlock_bh::SpinLockBh,
        new_spinlock_bh, //
    }, //
};

/// The events of a queue.
#[pin_data]
pub(super) struct Events {
    /// The `user_data` of the completions.
    user_data: u64,
    /// The events that were sent. Changes while `ring` is locked.
    fired: Fired,
    /// The ring to which events are sent, if there is one.
    #[pin]
    ring: SpinLockBh<Option<RingRef>>,
}

/// Checks the description of events that user space passed.
///
/// # Errors
///
/// [`EINVAL`] for unknown events or flags, for reserved fields that are not zero, and for an offset
/// of statistics that are not asked for.
pub(super) fn check(desc: &EventDesc) -> Result {
    if desc.type_mask >> EVENT_TYPES != 0
        || desc.flags & !EVENT_DESC_STATS != 0
        || (desc.flags & EVENT_DESC_STATS == 0 && desc.stats_offset != 0)
        || !desc.reserved_is_zero()
    {
        return Err(EINVAL);
    }
    Ok(())
}

impl Events {
    /// Creates the events that `desc` asks for. `desc` must have been checked. No event is sent
    /// before [`Events::connect`].
    pub(super) fn new(desc: &EventDesc) -> impl PinInit<Self> + use<> {
        let (wanted, user_data) = (desc.type_mask, desc.user_data);

        pin_init!(Self {
            user_data,
            fired: Fired::new(wanted),
            ring <- new_spinlock_bh!(None, "zcrx_events"),
        })
    }

    /// Starts sending events to `ring`, if any are wanted.
    pub(super) fn connect(&self, ring: Option<RingRef>) {
        if self.fired.is_any_wanted() {
            *self.ring.lock() = ring;
        }
    }

    /// Stops sending events to the ring of `queues`.
    pub(super) fn disconnect(&self, queues: &Queues<'_, Queue>) {
        drop(self.ring.lock().take_if(|ring| queues.belong_to(ring)));
    }

    /// Sends an event, if it is wanted and was not sent since it was last armed.
    pub(super) fn send(&self, event: u32) {
        let posted = |ring: &RingRef| ring.post_later(self.user_data, event as i32);

        self.fired.send(
            event,
            || self.ring.lock(),
            |ring| ring.as_ref().is_some_and(posted),
        );
    }

    /// Arms an event that was sent, so that it can be sent again.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such event, or if it was not sent.
    pub(super) fn arm(&self, event: u32) -> Result {
        self.fired.arm(event, || self.ring.lock())
    }
}
