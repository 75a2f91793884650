// SPDX-License-Identifier: GPL-2.0

//! Privileges of the current task.
//!
//! C header: [`include/linux/capability.h`](srctree/include/linux/capability.h)

use crate::{
    bindings,
    ffi::c_int,
    task::Task, //
};

/// A capability: one of `CAP_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability(u32);

impl Capability {
    /// The capability to administer networks.
    pub const NET_ADMIN: Self = Self(bindings::CAP_NET_ADMIN);
    /// The capability to administer the system.
    pub const SYS_ADMIN: Self = Self(bindings::CAP_SYS_ADMIN);
}

/// Returns whether the current task has a capability in its own user namespace.
///
/// The check is not recorded in the audit log. It is for callers that accept something else instead
/// of the capability.
///
/// # Examples
///
/// ```
/// use kernel::capability::{self, Capability};
///
/// // Kernel threads have all of them.
/// assert!(capability::current_has_noaudit(Capability::SYS_ADMIN));
/// ```
pub fn current_has_noaudit(capability: Capability) -> bool {
    // SAFETY:
    // - The user namespace of the current task lives as long as its credentials, which only the
    //   task itself can change.
    // - `capability` is one that the kernel knows.
    unsafe { bindings::ns_capable_noaudit(bindings::current_user_ns(), capability.0 as c_int) }
}

/// Returns whether the current task has a capability in the initial user namespace.
///
/// If the task does not have it, this may be recorded in the audit log. Security modules are called
/// in either case, so this must only be called in process context.
pub fn current_has(capability: Capability) -> bool {
    // SAFETY: `capability` is one that the kernel knows.
    unsafe { bindings::capable(capability.0 as c_int) }
}

/// Returns whether the current task has given up gaining privileges by `execve()`:
/// `PR_SET_NO_NEW_PRIVS`.
pub fn current_has_no_new_privs() -> bool {
    // SAFETY: The current task is valid.
    unsafe { bindings::task_no_new_privs(Task::current_raw()) }
}
