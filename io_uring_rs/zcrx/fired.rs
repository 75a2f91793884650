// SPDX-License-Identifier: GPL-2.0

//! The events of a queue that were sent, and not armed again since then.
//!
//! Uses nothing but atomics, and the lock that the caller names.

use kernel::{
    io_uring::zcrx::EVENT_TYPES,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier, //
    }, //
};

/// The events that user space wants, and those that were sent since they were last armed.
pub(super) struct Fired {
    /// The events that user space wants, a bit each.
    wanted: u32,
    /// The events that were sent since they were last armed, a bit each. Changes under a lock.
    fired: Atomic<u32>,
}

impl Fired {
    /// Creates a set of events, of which user space wants those in `wanted`. None was sent.
    pub(super) fn new(wanted: u32) -> Self {
        Self {
            wanted,
            fired: Atomic::new(0),
        }
    }

    /// Returns whether user space wants any events.
    pub(super) fn is_any_wanted(&self) -> bool {
        self.wanted != 0
    }

    /// Calls `post` if an event is wanted and was not sent since it was last armed. The event is
    /// marked as sent if `post` returns `true`.
    ///
    /// `lock` locks what all calls of this method and of [`Self::arm`] lock, and `post` gets its
    /// guard.
    pub(super) fn send<G>(
        &self,
        event: u32,
        lock: impl FnOnce() -> G,
        post: impl FnOnce(&G) -> bool,
    ) {
        let bit = 1u32.checked_shl(event).unwrap_or(0);

        if self.wanted & bit == 0 {
            return;
        }
        // Pairs with the barrier in `arm`. User space may arm an event and then look for what the
        // event would tell, such as the statistics of copies. Either this CPU sees that the event
        // is armed, or user space sees what was stored before.
        barrier::smp_mb(Full);
        // Usually the event was sent already, which is seen without the lock.
        if self.fired.load(Relaxed) & bit != 0 {
            return;
        }
        let guard = lock();
        let fired = self.fired.load(Relaxed);

        if fired & bit != 0 {
            return;
        }
        // An event that cannot be posted is not marked as sent, so that it can be sent later.
        if post(&guard) {
            self.fired.store(fired | bit, Relaxed);
        }
    }

    /// Arms an event that was sent, so that it can be sent again. `lock` is that of
    /// [`Self::send`].
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if there is no such event, or if it was not sent.
    pub(super) fn arm<G>(&self, event: u32, lock: impl FnOnce() -> G) -> Result {
        let bit = (event < EVENT_TYPES).then(|| 1 << event).ok_or(EINVAL)?;
        let _guard = lock();
        let fired = self.fired.load(Relaxed);

        if fired & bit == 0 {
            return Err(EINVAL);
        }
        self.fired.store(fired & !bit, Relaxed);
        // Pairs with the barrier in `send`.
        barrier::smp_mb(Full);
        Ok(())
    }
}
