// SPDX-License-Identifier: GPL-2.0

//! The interface queues of a ring, by their ids.
//!
//! A ring keeps them in an xarray, `io_ring_ctx::zcrx_ctxs`. What a queue is, is up to the user of
//! this module: the entries are pointers of [`Arc<T>`].
//!
//! Locks, in this order: `uring_lock` of the ring, which whoever has [`Queues`] holds, and
//! `mmap_lock`, which is taken here for every change, so that whoever maps a queue's memory need
//! hold only that, see [`with_entry`].
//!
//! C header: [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h)

use super::{
    account::Account,
    event::RingRef, //
};
use crate::{
    bindings,
    error::to_result,
    prelude::*,
    sync::{
        lock::{
            mutex::MutexBackend,
            Backend, //
        },
        Arc,
        ArcBorrow,
        Mutex, //
    },
    warn_on, //
};
#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
use crate::{
    sync::static_lock_class,
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::NonNull, //
};

/// Returns the array of queues of a ring.
///
/// # Safety
///
/// `ctx` must point to a valid ring.
unsafe fn array(ctx: NonNull<bindings::io_ring_ctx>) -> *mut bindings::xarray {
    // SAFETY: The caller guarantees validity; the field's address is taken, nothing is read.
    unsafe { &raw mut (*ctx.as_ptr()).zcrx_ctxs }
}

/// Returns the lock under which the array is changed.
///
/// # Safety
///
/// `ctx` must point to a ring that is valid for the duration of `'a`.
unsafe fn mmap_lock<'a>(ctx: NonNull<bindings::io_ring_ctx>) -> &'a Mutex<()> {
    // SAFETY: The caller guarantees validity, and the lock is initialised with the ring.
    unsafe { Mutex::from_raw(&raw mut (*ctx.as_ptr()).mmap_lock) }
}

/// Makes lockdep complain unless the current task holds `lock`. Compiled out without lockdep.
///
/// # Safety
///
/// `lock` must point to an initialised mutex.
#[inline]
unsafe fn assert_held(lock: *mut bindings::mutex) {
    // SAFETY: The caller guarantees that the mutex is valid and initialised.
    unsafe { MutexBackend::assert_is_held(lock) }
}

/// Erases the entry `id`, and returns what it was: null if there was none or it was reserved.
///
/// # Safety
///
/// `ctx` must point to a valid ring whose `uring_lock` is held.
unsafe fn erase(ctx: NonNull<bindings::io_ring_ctx>, id: usize) -> *mut c_void {
    // SAFETY: The ring is valid during the call.
    let _guard = unsafe { mmap_lock(ctx) }.lock();

    // SAFETY: The ring is valid during the call, and so is its array. `mmap_lock` is held.
    unsafe { bindings::xa_erase(array(ctx), id) }
}

/// The interface queues of a ring whose `uring_lock` is held.
///
/// Whatever drops a queue here does so in process context, with `uring_lock` held and `mmap_lock`
/// released, so that a queue may sleep when it is dropped. Queues only go with `&mut self`, so that
/// those borrowed from [`Queues::get`] stay.
///
/// # Invariants
///
/// For the duration of `'a`, the ring is valid, the current task holds its `uring_lock`, and
/// nobody else changes its queues. Each entry of
/// `zcrx_ctxs` is reserved or came from [`Arc::into_raw`] of an `Arc<T>`, which the entry owns;
/// marked ones have been terminated. All changes are made with `mmap_lock` held.
pub struct Queues<'a, T> {
    ctx: NonNull<bindings::io_ring_ctx>,
    entries: PhantomData<&'a Arc<T>>,
}

impl<T: Send + Sync + 'static> Queues<'_, T> {
    /// Makes a handle from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// - While the handle exists, `ctx` must point to a valid ring, and its `uring_lock` be held by
    ///   the current task, also where nobody else has the ring; there must be no other handle.
    /// - The ring's `user` and `mm_account` must not have been released yet.
    /// - `zcrx_ctxs` must be initialised, with `XA_FLAGS_ALLOC`, and only be changed through this
    ///   type, always with the same `T`.
    pub unsafe fn from_raw(ctx: NonNull<bindings::io_ring_ctx>) -> Self {
        // The two lowest bits of a pointer in an xarray must be zero.
        const { assert!(Arc::<T>::DATA_OFFSET.is_multiple_of(4)) };

        // SAFETY: The caller guarantees that the ring is valid; its lock was initialised with it.
        unsafe { assert_held(&raw mut (*ctx.as_ptr()).__bindgen_anon_2.uring_lock) };

        // INVARIANT: The caller guarantees it.
        Self {
            ctx,
            entries: PhantomData,
        }
    }

    /// Returns the array.
    fn array(&self) -> *mut bindings::xarray {
        // SAFETY: By the type invariants, the ring is valid.
        unsafe { array(self.ctx) }
    }

    /// Returns the lock under which the array is changed.
    fn mmap_lock(&self) -> &Mutex<()> {
        // SAFETY: By the type invariants, the ring is valid as long as `self` is.
        unsafe { mmap_lock(self.ctx) }
    }

    /// Returns the flags that the ring was set up with, `IORING_SETUP_*`.
    pub fn ring_flags(&self) -> u32 {
        // SAFETY: By the type invariants, the ring is valid, and whoever writes to the flags holds
        // the lock.
        unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.flags }
    }

    /// Returns the account that pays for the ring's memory.
    pub fn account(&self) -> Account {
        // SAFETY: By the type invariants, the ring is valid, and it still has both references, as
        // `from_raw` demands.
        unsafe { Account::of_ring(self.ctx) }
    }

    /// Takes a reference to the ring.
    ///
    /// `None` if the ring was closed and all its references are gone; then nobody has a [`RingRef`]
    /// to it either.
    pub fn ring(&self) -> Option<RingRef> {
        // SAFETY: By the type invariants, the ring is valid.
        unsafe { RingRef::try_get(self.ctx) }
    }

    /// Returns whether `ring` is a reference to this ring.
    pub fn is_of(&self, ring: &RingRef) -> bool {
        ring.same(self.ctx)
    }

    /// Reserves the lowest free id, up to and including `max`.
    ///
    /// There is nothing to be found at the id until [`Reservation::publish`]. May sleep.
    ///
    /// # Errors
    ///
    /// - [`ENOMEM`] if memory is short.
    /// - [`EBUSY`] if there is no free id.
    pub fn reserve(&mut self, max: u32) -> Result<Reservation<'_, T>> {
        let mut id = 0;
        let limit = bindings::xa_limit { max, min: 0 };

        {
            let _guard = self.mmap_lock().lock();

            // SAFETY: By the type invariants, the array is valid, and `id` is a local variable. The
            // array is one that allocates, as `from_raw` demands.
            to_result(unsafe {
                bindings::xa_alloc(
                    self.array(),
                    &mut id,
                    core::ptr::null_mut(),
                    limit,
                    GFP_KERNEL.as_raw(),
                )
            })?;
        }

        // INVARIANT: The entry was just reserved, and `self` stays borrowed.
        Ok(Reservation {
            ctx: self.ctx,
            id,
            entries: PhantomData,
        })
    }

    /// Returns the queue with this id.
    ///
    /// `None` also if the id is only reserved. Queues that were terminated are still found.
    pub fn get(&self, id: u32) -> Option<ArcBorrow<'_, T>> {
        // SAFETY: By the type invariants, the array is valid.
        let entry = unsafe { bindings::xa_load(self.array(), id as usize) };

        if entry.is_null() {
            return None;
        }
        // SAFETY:
        // - By the type invariants, entries came from `Arc::into_raw`.
        // - The entry owns a reference, and is not erased as long as `self` is borrowed: nobody
        //   else changes the array, and this type only does so with `&mut self`.
        // - A `UniqueArc` could only be had while this was the only reference, not from an entry.
        Some(unsafe { ArcBorrow::from_raw(entry.cast::<T>()) })
    }

    /// Calls `f` for each queue, in the order of ids, and marks it as terminated.
    ///
    /// `f` is called without `mmap_lock`, may sleep and may look at the queues itself.
    /// The queues stay until they are [taken](Queues::take). To be called once, when the ring goes
    /// away: a queue that was terminated before ends it, with a warning. May sleep.
    ///
    /// C counterpart: `io_terminate_zcrx()`.
    pub fn terminate(&self, mut f: impl FnMut(ArcBorrow<'_, T>)) {
        let mut id = 0;

        loop {
            let entry = {
                let _guard = self.mmap_lock().lock();

                // SAFETY: By the type invariants, the array is valid, and `id` is a local variable.
                unsafe {
                    bindings::xa_find(self.array(), &mut id, usize::MAX, bindings::XA_PRESENT)
                }
            };

            if entry.is_null() {
                return;
            }
            // SAFETY: By the type invariants, the array is valid.
            let is_marked = unsafe { bindings::xa_get_mark(self.array(), id, bindings::XA_MARK_1) };
            if warn_on!(is_marked) {
                return;
            }

            {
                let _guard = self.mmap_lock().lock();

                // SAFETY: By the type invariants, the array is valid.
                unsafe { bindings::xa_set_mark(self.array(), id, bindings::XA_MARK_1) };
            }

            // SAFETY:
            // - By the type invariants, entries came from `Arc::into_raw`.
            // - The entry owns a reference, and is not erased as long as `self` is borrowed, which
            //   is longer than `f` can keep what it gets.
            // - A `UniqueArc` could only be had while this was the only reference, not from an
            //   entry.
            f(unsafe { ArcBorrow::from_raw(entry.cast::<T>()) });

            // There is no id above the highest.
            let Some(next) = id.checked_add(1) else {
                return;
            };
            id = next;
        }
    }

    /// Takes a queue that was terminated from the ring, `None` if there is none. May sleep.
    ///
    /// C counterpart: `io_unregister_zcrx()`.
    pub fn take(&mut self) -> Option<Arc<T>> {
        let mut id = 0;
        let entry = {
            let _guard = self.mmap_lock().lock();

            // SAFETY: By the type invariants, the array is valid, and `id` is a local variable.
            unsafe { bindings::xa_find(self.array(), &mut id, usize::MAX, bindings::XA_MARK_1) }
        };

        if entry.is_null() {
            return None;
        }
        // SAFETY: By the type invariants, the ring is valid, and nobody else changes its queues.
        let entry = unsafe { erase(self.ctx, id) };

        // SAFETY: By the type invariants, what was in the array came from `Arc::into_raw` and was
        // owned by its entry, which is gone. `mmap_lock` was held for that, so nobody is in
        // `with_entry` with it any more.
        Some(unsafe { Arc::from_raw(entry.cast::<T>()) })
    }

    /// Frees the array of a ring that is about to be freed itself.
    ///
    /// Queues that were not taken before are leaked, with a warning.
    ///
    /// C counterpart: `io_unregister_zcrx()`.
    pub fn destroy(self) {
        let mut id = 0;
        let _guard = self.mmap_lock().lock();

        // SAFETY: By the type invariants, the array is valid, and `id` is a local variable.
        let left =
            unsafe { bindings::xa_find(self.array(), &mut id, usize::MAX, bindings::XA_PRESENT) };
        warn_on!(!left.is_null());

        // SAFETY: By the type invariants, the array is valid. It is empty afterwards and can still
        // be used; references that its entries owned stay counted.
        unsafe { bindings::xa_destroy(self.array()) };
    }
}

/// An id that is reserved for a queue. Dropping it gives the id up.
///
/// # Invariants
///
/// As for [`Queues`], and the entry `id` is reserved.
pub struct Reservation<'a, T> {
    ctx: NonNull<bindings::io_ring_ctx>,
    id: u32,
    entries: PhantomData<&'a mut Arc<T>>,
}

impl<'a, T: Send + Sync + 'static> Reservation<'a, T> {
    /// Returns the id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Publishes the queue at the id. Dropping the result withdraws it. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short; the id is given up, and the queue dropped.
    pub fn publish(self, queue: Arc<T>) -> Result<Published<'a, T>> {
        let entry = Arc::into_raw(queue);
        let old = {
            // SAFETY: By the type invariants, the ring is valid.
            let _guard = unsafe { mmap_lock(self.ctx) }.lock();

            // SAFETY: By the type invariants, the ring is valid, and so is its array. The pointer
            // is aligned as `Queues::from_raw` has checked.
            unsafe {
                bindings::xa_store(
                    array(self.ctx),
                    self.id as usize,
                    entry.cast_mut().cast(),
                    GFP_KERNEL.as_raw(),
                )
            }
        };

        // A reserved entry reads as null: anything else is an error.
        if !old.is_null() {
            // SAFETY: The pointer came from `Arc::into_raw` above and was not stored.
            drop(unsafe { Arc::from_raw(entry) });
            return Err(ENOMEM);
        }

        // The id is the new object's.
        let reservation = ManuallyDrop::new(self);

        // INVARIANT: The entry holds the queue now, and owns the reference to it.
        Ok(Published {
            ctx: reservation.ctx,
            id: reservation.id,
            entries: PhantomData,
        })
    }
}

impl<T> Drop for Reservation<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the ring is valid, and nobody else changes its queues.
        // What is erased is a reservation, which owns nothing.
        unsafe { erase(self.ctx, self.id as usize) };
    }
}

/// A queue that was published and can still be taken back. Dropping it does that, and drops the
/// queue.
///
/// # Invariants
///
/// As for [`Queues`], and the entry `id` holds a queue that is not borrowed.
#[must_use = "dropping this takes the queue back"]
pub struct Published<'a, T> {
    ctx: NonNull<bindings::io_ring_ctx>,
    id: u32,
    entries: PhantomData<&'a mut Arc<T>>,
}

impl<T> Published<'_, T> {
    /// Leaves the queue with the ring.
    pub fn keep(self) {
        core::mem::forget(self);
    }
}

impl<T> Drop for Published<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the ring is valid, and nobody else changes its queues.
        let entry = unsafe { erase(self.ctx, self.id as usize) };

        // SAFETY: By the type invariants, the entry came from `Arc::into_raw` and owned that
        // reference. It is gone, with `mmap_lock` held, so nobody is in `with_entry` with it.
        drop(unsafe { Arc::from_raw(entry.cast::<T>().cast_const()) });
    }
}

/// Calls `f` with the queue `id` of a ring, and returns what it returns; `None` if there is no such
/// queue.
///
/// For the code that maps the queue's memory, which need not hold `uring_lock`. `f` is called with
/// `mmap_lock` held, so it must not drop queues or take locks that come before that one.
///
/// C counterpart: `io_zcrx_get_region()`.
///
/// # Safety
///
/// - During the call, `ctx` must point to a valid ring, of which the caller holds `mmap_lock`.
/// - `zcrx_ctxs` must be initialised, and only be changed through [`Queues<T>`](Queues).
pub unsafe fn with_entry<T: Send + Sync + 'static, R>(
    ctx: NonNull<bindings::io_ring_ctx>,
    id: u32,
    f: impl FnOnce(&T) -> R,
) -> Option<R> {
    // SAFETY: The ring is valid, and its lock was initialised with it.
    unsafe { assert_held(&raw mut (*ctx.as_ptr()).mmap_lock) };

    // SAFETY: The ring is valid during the call, and so is its array.
    let entry = unsafe { bindings::xa_load(array(ctx), id as usize) }
        .cast_const()
        .cast::<T>();

    // SAFETY: By the invariants of `Queues`, entries came from `Arc::into_raw` and own a reference.
    // None is erased while `mmap_lock` is held.
    unsafe { entry.as_ref() }.map(f)
}

/// A ring that has nothing but queues, for unit tests of their end.
///
/// # Invariants
///
/// The ring is zeroed but for its locks, its array of queues, and its count of references, which is
/// dead. It stays where it is.
#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
pub struct TestRing<T> {
    ctx: KBox<Opaque<bindings::io_ring_ctx>>,
    entries: PhantomData<Arc<T>>,
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
impl<T: Send + Sync + 'static> TestRing<T> {
    /// Creates a ring without queues.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub fn new() -> Result<Self> {
        /// Ignores that the last reference is gone.
        ///
        /// # Safety
        ///
        /// It is always safe to call this.
        unsafe extern "C" fn release(_refs: *mut bindings::percpu_ref) {}

        let ctx: KBox<Opaque<bindings::io_ring_ctx>> =
            KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
        let ring = ctx.get();
        let name = c"test ring".as_char_ptr();

        // SAFETY: The ring is ours, and nobody uses the count yet.
        to_result(unsafe {
            bindings::percpu_ref_init(
                &raw mut (*ring).__bindgen_anon_1.refs,
                Some(release),
                bindings::PERCPU_REF_INIT_DEAD,
                GFP_KERNEL.as_raw(),
            )
        })?;
        // SAFETY: The ring is ours, and nobody uses its locks and its array yet, which stay where
        // they are.
        unsafe {
            bindings::__mutex_init(
                &raw mut (*ring).__bindgen_anon_2.uring_lock,
                name,
                static_lock_class!().as_ptr(),
            );
            bindings::__mutex_init(
                &raw mut (*ring).mmap_lock,
                name,
                static_lock_class!().as_ptr(),
            );
            bindings::xa_init_flags(&raw mut (*ring).zcrx_ctxs, bindings::XA_FLAGS_ALLOC);
        }
        // INVARIANT: All of it was just initialised.
        Ok(Self {
            ctx,
            entries: PhantomData,
        })
    }

    /// Calls `f` with the queues of the ring, whose lock is held meanwhile.
    pub fn with<R>(&mut self, f: impl FnOnce(Queues<'_, T>) -> R) -> R {
        let ring = self.ctx.get();
        // SAFETY: The lock was initialised, and stays as long as `self`.
        let lock: &Mutex<()> =
            unsafe { Mutex::from_raw(&raw mut (*ring).__bindgen_anon_2.uring_lock) };
        let _guard = lock.lock();

        // SAFETY: By the type invariants, the ring is valid. Its lock is held, and `self` borrowed,
        // so that there is no other handle. It has no user and no address space. The array is only
        // changed here, with this `T`.
        f(unsafe { Queues::from_raw(NonNull::new_unchecked(ring)) })
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
impl<T> Drop for TestRing<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the count was initialised, and nobody has a reference.
        unsafe {
            bindings::percpu_ref_exit(&raw mut (*self.ctx.get()).__bindgen_anon_1.refs);
        }
    }
}
