// SPDX-License-Identifier: GPL-2.0

//! The number of users of an interface queue.
//!
//! Uses nothing but atomics.

use kernel::sync::{
    atomic::{
        Full,
        Relaxed, //
    },
    barrier,
    Refcount, //
};

/// The number of users of an interface queue.
///
/// The last user takes back all buffers that user space has. Requests that a ring still has when it
/// ends its use may grant more of them. So the ring takes back buffers once more when it is freed,
/// if there is no user by then.
pub(super) struct Users(Refcount);

impl Users {
    /// Creates the count of a queue with one user.
    pub(super) fn one() -> Self {
        Self(Refcount::new(1))
    }

    /// Counts one more user. There must be one already.
    pub(super) fn add(&self) {
        self.0.inc();
    }

    /// Drops a user. Returns whether it was the last one, which must then take back all buffers.
    pub(super) fn remove(&self) -> bool {
        let is_last = self.0.dec_and_test();

        if is_last {
            // Pairs with the barrier in `are_gone`. Either this user sees the grants of a ring that
            // is being freed, or that ring sees that there is no user. A grant that nobody sees
            // would never be taken back, and would keep its page pool for good.
            barrier::smp_mb(Full);
        }
        is_last
    }

    /// Returns whether there is no user any more. If so, the caller must take back the buffers that
    /// it has granted.
    pub(super) fn are_gone(&self) -> bool {
        // Pairs with the barrier in `remove`.
        barrier::smp_mb(Full);
        self.0.as_atomic().load(Relaxed) == 0
    }
}
