// SPDX-License-Identifier: GPL-2.0

//! The mitigations from which privileged tasks are exempt.
//!
//! JIT compilers look at the privileges of the task for which they compile a classic program, and
//! leave out mitigations of flaws of the processor if the task could read all memory anyway.
//!
//! C headers: [`include/linux/capability.h`](srctree/include/linux/capability.h),
//! [`include/linux/filter.h`](srctree/include/linux/filter.h)

use crate::{
    bindings,
    ffi::c_int, //
};

/// The mitigations that are left out of the programs of a task.
///
/// Whoever compiles a program in place of others must not leave out more than those did.
///
/// # Examples
///
/// ```
/// use kernel::bpf::exemptions::Exemptions;
///
/// // Kernel threads have all capabilities.
/// assert_eq!(Exemptions::current(), Exemptions::ALL);
/// assert!(Exemptions::ALL.contains(Exemptions::NONE));
/// assert!(!Exemptions::NONE.contains(Exemptions::ALL));
/// assert_eq!(Exemptions::ALL.and(Exemptions::NONE), Exemptions::NONE);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exemptions {
    /// Whether the history of branches is left as it is: with `CAP_SYS_ADMIN`.
    branch_history: bool,
    /// Whether constants are not blinded if the sysctl `net.core.bpf_jit_harden` is 1: with
    /// `CAP_BPF` or `CAP_SYS_ADMIN`.
    constants: bool,
}

impl Exemptions {
    /// The exemptions of a task without privileges.
    pub const NONE: Self = Self {
        branch_history: false,
        constants: false,
    };
    /// The exemptions of a task with all privileges.
    pub const ALL: Self = Self {
        branch_history: true,
        constants: true,
    };

    /// Returns the exemptions of the current task. Must be called in process context.
    pub fn current() -> Self {
        let admin = capable_noaudit(bindings::CAP_SYS_ADMIN);

        Self {
            branch_history: admin,
            constants: admin || capable_noaudit(bindings::CAP_BPF),
        }
    }

    /// Returns the exemptions that are in both.
    pub fn and(self, other: Self) -> Self {
        Self {
            branch_history: self.branch_history && other.branch_history,
            constants: self.constants && other.constants,
        }
    }

    /// Returns whether all exemptions in `other` are in this one, too.
    pub fn contains(self, other: Self) -> bool {
        self.and(other) == other
    }
}

/// Returns whether the current task has `capability`, a `CAP_*`, in the initial user namespace.
/// This is not recorded in the audit log.
fn capable_noaudit(capability: u32) -> bool {
    // SAFETY: The initial user namespace is never freed, and the kernel knows the capability.
    unsafe { bindings::ns_capable_noaudit(&raw mut bindings::init_user_ns, capability as c_int) }
}
