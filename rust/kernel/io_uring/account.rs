// SPDX-License-Identifier: GPL-2.0

//! Who pays for memory that user space has the kernel hold.
//!
//! An [`Account`] is what a ring is charged to, a [`Charge`] is what was charged. Memory itself is
//! in [`super::region`] and [`super::pinned`].
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

// SAFETY: The only thing done with a shared user is counting, which is atomic.
unsafe impl Sync for User {}

// SAFETY: By the type invariants, users are always counted. Their memory stays as long as the count
// is not zero.
unsafe impl AlwaysRefCounted for User {
    #[inline]
    fn inc_ref(&self) {
        // SAFETY: The reference shows that the user is valid and its count not zero.
        unsafe { bindings::get_uid(self.0.get()) };
    }

    #[inline]
    unsafe fn dec_ref(obj: NonNull<Self>) {
        // SAFETY: The caller owns a count and gives it up.
        unsafe { bindings::free_uid(obj.cast().as_ptr()) };
    }
}

/// Who pays for a ring's memory.
///
/// That is a user, whose locked memory `RLIMIT_MEMLOCK` limits, and an address space, whose pinned
/// memory is only counted. Each may be absent: rings of tasks with `CAP_IPC_LOCK` have no user to
/// be charged.
///
/// Clones are for the same user and address space. Drop it in process context, as dropping the last
/// reference to an address space may sleep.
///
/// C counterpart: `user` and `mm_account` in `struct io_ring_ctx`, see
/// [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h).
#[derive(Clone)]
pub struct Account {
    user: Option<ARef<User>>,
    mm: Option<ARef<Mm>>,
}

impl Account {
    /// Returns the account that pays for the memory of a ring.
    ///
    /// # Safety
    ///
    /// `ctx` must point to a ring that was set up and whose freeing has not begun, so that its
    /// `user` and `mm_account` are constant, and null or counted.
    pub unsafe fn of_ring(ctx: NonNull<bindings::io_ring_ctx>) -> Self {
        // SAFETY: The caller guarantees that the ring is valid and its `user` constant.
        let user = unsafe { (*ctx.as_ptr()).user };
        // SAFETY: The caller guarantees that the ring is valid and its `mm_account` constant.
        let mm = unsafe { (*ctx.as_ptr()).mm_account };

        Self {
            user: NonNull::new(user).map(|user| {
                // INVARIANT: Users are made with a count and freed when it drops to zero.
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

    /// Returns the user as C knows it, or null. Valid as long as this object or a clone of it
    /// exists.
    pub(super) fn user(&self) -> *mut bindings::user_struct {
        self.user.as_ref().map_or(null_mut(), |user| user.0.get())
    }

    /// Returns the address space as C knows it, or null. Valid as long as [`Self::user`]'s result
    /// is.
    fn mm(&self) -> *mut bindings::mm_struct {
        self.mm.as_ref().map_or(null_mut(), |mm| mm.as_raw())
    }

    /// Charges a number of pages, until the result is dropped.
    ///
    /// The limit is the current task's `RLIMIT_MEMLOCK`. Only users are limited: the pages of the
    /// address space are counted for others to see. Does not sleep.
    ///
    /// C counterpart: `io_account_mem` in [`io_uring/rsrc.c`](srctree/io_uring/rsrc.c).
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the user would have more pages than the limit. Also if there are more of them
    /// than [`isize::MAX`], whoever pays.
    pub fn charge(&self, pages: usize) -> Result<Charge> {
        // C adds this to what the user has already, and does not look for an overflow.
        if pages > isize::MAX.unsigned_abs() {
            return Err(ENOMEM);
        }
        // SAFETY:
        // - The user and the address space are null or valid, as `self` has references to them.
        // - The sum with what the user has does not overflow: no limit is above the number of pages
        //   in an `unsigned long` of bytes, and the user never has more than a limit. What is
        //   counted for the address space is atomic and may wrap around.
        to_result(unsafe { bindings::io_account_mem(self.user(), self.mm(), pages) })?;

        // INVARIANT: `io_account_mem` succeeded.
        Ok(Charge {
            account: self.clone(),
            pages,
        })
    }
}

/// Pages that were charged. Dropping it returns them, and a reference to the account: see
/// [`Account`] for where that may be.
///
/// # Invariants
///
/// `io_account_mem` charged `pages` to `account`, and nothing has returned them.
pub struct Charge {
    account: Account,
    pages: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        // SAFETY:
        // - The user and the address space are null or valid, as `account` has references to them.
        // - By the type invariants, they were charged as many pages.
        unsafe {
            bindings::io_unaccount_mem(self.account.user(), self.account.mm(), self.pages);
        }
    }
}
