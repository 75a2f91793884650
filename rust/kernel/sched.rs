// SPDX-License-Identifier: GPL-2.0

//! Letting others run, and knowing when to stop.
//!
//! C headers: [`include/linux/sched.h`](srctree/include/linux/sched.h),
//! [`include/linux/sched/signal.h`](srctree/include/linux/sched/signal.h)

use crate::{
    bindings,
    task::Task, //
};

/// Lets other tasks run if they have waited long enough. May sleep, so no spinlock may be held.
pub fn cond_resched() {
    crate::task::might_sleep();
    // SAFETY: The function has no preconditions for memory safety. Whether sleeping is allowed here
    // is the caller's business, as with all functions that may sleep; `might_sleep` checks it.
    unsafe { bindings::cond_resched() };
}

/// Returns whether the current task is about to be killed.
pub fn fatal_signal_pending() -> bool {
    // SAFETY: The current task is valid.
    unsafe { bindings::fatal_signal_pending(Task::current_raw()) != 0 }
}
