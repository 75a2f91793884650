// SPDX-License-Identifier: GPL-2.0

//! The scheduler: yielding the CPU, and whether the current task is being killed.
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
    // SAFETY: The function has no preconditions for memory safety. As for all functions that may
    // sleep, the caller must be allowed to sleep, which `might_sleep` checks.
    unsafe { bindings::cond_resched() };
}

/// Returns whether a fatal signal is pending for the current task.
pub fn fatal_signal_pending() -> bool {
    // SAFETY: The current task is valid.
    unsafe { bindings::fatal_signal_pending(Task::current_raw()) != 0 }
}
