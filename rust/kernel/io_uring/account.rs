// SPDX-License-Identifier: GPL-2.0

//! Accounting of memory that the kernel holds on behalf of user space.
//!
//! An [`Account`] is the user and the address space that a ring's memory is charged to. A
//! [`Charge`] is a number of pages that was charged. The memory itself is in [`super::region`] and
//! [`super::pinned`].
//!
//! C headers: [`io_uring/rsrc.h`](srctree/io_uring/rsrc.h),
//! [`include/linux/sched/user.h`](srctree/include/linux/sched/user.h)

use crate::{
    bindings,
    error::to_result,
    mm::Mm,
    prelude::*,
    sync::aref::{
        ARef,
        AlwaysRefCounted, //
    },
    types::Opaque, //
};
use core::ptr::{
    null_mut,
    NonNull, //
};

/// A user, whose locked memory is limited.
///
/// Wraps the kernel's `struct user_struct`.
///
/// # Invariants
///
/// Values of this type are always reference-counted by `get_uid` and `free_uid`.
#[repr(transparent)]
struct User(Opaque<bindings::user_struct>);

// SAFETY: `free_uid` may be called by another task than the one that called `get_uid`.
unsafe impl Send for User {}

// SAFETY: Through a shared reference, a user is only counted, which is atomic.
unsafe impl Sync for User {}

// SAFETY: By the type invariants, users are always counted. Their memory stays valid as long as the
// count is not zero.
unsafe impl AlwaysRefCounted for User {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: As there is a reference, the user is valid and its count is not zero.
        unsafe { bindings::get_uid(self.0.get()) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller owns a reference and gives it up.
        unsafe { bindings::free_uid(obj.cast().as_ptr()) };
    }
}

/// The user and the address space that a ring's memory is charged to.
///
/// `RLIMIT_MEMLOCK` limits the locked memory of the user, while the pinned memory of the address
/// space is only counted. Each may be absent: rings of tasks with `CAP_IPC_LOCK` charge no user.
///
/// A clone has the same user and address space. Must be dropped in process context, since dropping
/// the last reference to an address space may sleep.
///
/// C counterpart: `user` and `mm_account` in `struct io_ring_ctx`, see
/// [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h).
#[derive(Clone)]
pub struct Account {
    user: Option<ARef<User>>,
    mm: Option<ARef<Mm>>,
}

impl Account {
    /// Returns the account to which the memory of a ring is charged.
    ///
    /// # Safety
    ///
    /// `ctx` must point to a ring that was set up and that has not begun to be freed, so that its
    /// `user` and `mm_account` are constant, and null or counted.
    pub unsafe fn from_ring(ctx: NonNull<bindings::io_ring_ctx>) -> Self {
        // SAFETY: The caller guarantees that the ring is valid and its `user` constant.
        let user = unsafe { (*ctx.as_ptr()).user };
        // SAFETY: The caller guarantees that the ring is valid and its `mm_account` constant.
        let mm = unsafe { (*ctx.as_ptr()).mm_account };

        Self {
            user: NonNull::new(user).map(|user| {
                // INVARIANT: A user is created with a count, and freed when the count drops to
                // zero.
                // SAFETY: The user is valid, as the ring has a reference to it, and `User` is a
                // transparent wrapper.
                ARef::from(unsafe { user.cast::<User>().as_ref() })
            }),
            mm: NonNull::new(mm).map(|mm| {
                // SAFETY: The address space is valid, as the ring has a reference to it.
                ARef::from(unsafe { Mm::from_raw(mm.as_ptr()) })
            }),
        }
    }

    /// Creates an account of neither a user nor an address space, for unit tests.
    #[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
    pub(super) fn of_nobody() -> Self {
        Self {
            user: None,
            mm: None,
        }
    }

    /// Returns the user as a C pointer, or null. The pointer is valid as long as this object or a
    /// clone of it exists.
    pub(super) fn user(&self) -> *mut bindings::user_struct {
        self.user.as_ref().map_or(null_mut(), |user| user.0.get())
    }

    /// Returns the address space as a C pointer, or null. The pointer is valid as long as that of
    /// [`Self::user`] is.
    fn mm(&self) -> *mut bindings::mm_struct {
        self.mm.as_ref().map_or(null_mut(), |mm| mm.as_raw())
    }

    /// Charges a number of pages until the result is dropped. Does not sleep.
    ///
    /// The limit is the current task's `RLIMIT_MEMLOCK`. It applies only to the user: the pages of
    /// the address space are only counted, as statistics.
    ///
    /// C counterpart: `io_account_mem` in [`io_uring/rsrc.c`](srctree/io_uring/rsrc.c).
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the user would have more pages than the limit, or if `pages` exceeds
    /// [`isize::MAX`], even if there is no user.
    pub fn charge(&self, pages: usize) -> Result<Charge> {
        // C adds this to the number of pages that the user already has, without an overflow check.
        if pages > isize::MAX.unsigned_abs() {
            return Err(ENOMEM);
        }
        // SAFETY:
        // - The user and the address space are null or valid, as `self` has references to them.
        // - Adding `pages` to those of the user does not overflow: no limit exceeds the number of
        //   pages that an `unsigned long` of bytes can have, and the user never has more pages than
        //   a limit. The counter of the address space is atomic and may wrap around.
        to_result(unsafe { bindings::io_account_mem(self.user(), self.mm(), pages) })?;

        // INVARIANT: `io_account_mem` has charged these pages.
        Ok(Charge {
            account: self.clone(),
            pages,
        })
    }
}

/// A number of pages that was charged. Dropping this uncharges them, and drops a reference to the
/// account: [`Account`] says in which context this is allowed.
///
/// # Invariants
///
/// `io_account_mem` charged `pages` to `account`, and nothing has uncharged them since.
pub struct Charge {
    account: Account,
    pages: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        // SAFETY:
        // - The user and the address space are null or valid, as `account` has references to them.
        // - By the type invariants, this number of pages was charged to them.
        unsafe {
            bindings::io_unaccount_mem(self.account.user(), self.account.mm(), self.pages);
        }
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_io_uring_account)]
mod tests {
    use super::*;

    /// Checks that a number of pages that C would take for a negative one is refused, even if
    /// there is nobody to charge.
    #[test]
    fn too_many_pages_are_refused() {
        let account = Account::of_nobody();
        let most = isize::MAX.unsigned_abs();

        for (pages, expected) in [
            (0, None),
            (1, None),
            (most, None),
            (most + 1, Some(ENOMEM)),
            (usize::MAX, Some(ENOMEM)),
        ] {
            assert_eq!(account.charge(pages).err(), expected);
        }
    }
}
