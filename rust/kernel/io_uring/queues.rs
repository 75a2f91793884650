// SPDX-License-Identifier: GPL-2.0

//! The interface queues of a ring, stored under their ids.
//!
//! A ring keeps its queues in an xarray, `io_ring_ctx::zcrx_ctxs`. The user of this module chooses
//! the type `T` of a queue: the entries are pointers of [`Arc<T>`].
//!
//! Locks, in this order: the `uring_lock` of the ring, which the owner of a [`Queues`] holds, and
//! `mmap_lock`. This module takes `mmap_lock` for every change, so that those who map a queue's
//! memory need to hold only that lock: see [`with_queue`].
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
#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
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
    // SAFETY: The caller guarantees that the ring is valid. This takes the address of the field and
    // reads nothing.
    unsafe { &raw mut (*ctx.as_ptr()).zcrx_ctxs }
}

/// Returns the lock that protects changes of the array.
///
/// # Safety
///
/// `ctx` must point to a ring that is valid for the duration of `'a`.
unsafe fn mmap_lock<'a>(ctx: NonNull<bindings::io_ring_ctx>) -> &'a Mutex<()> {
    // SAFETY: The caller guarantees that the ring is valid. The lock was initialised with it.
    unsafe { Mutex::from_raw(&raw mut (*ctx.as_ptr()).mmap_lock) }
}

/// Makes lockdep warn unless the current task holds `lock`. Does nothing without lockdep.
///
/// # Safety
///
/// `lock` must point to an initialised mutex.
#[inline]
unsafe fn assert_held(lock: *mut bindings::mutex) {
    // SAFETY: The caller guarantees that the mutex is valid and initialised.
    unsafe { MutexBackend::assert_is_held(lock) }
}

/// Erases the entry `id`. Returns the pointer that it had, which is null if the entry was reserved
/// or there was none.
///
/// # Safety
///
/// `ctx` must point to a valid ring whose `uring_lock` is held.
unsafe fn erase(ctx: NonNull<bindings::io_ring_ctx>, id: usize) -> *mut c_void {
    // SAFETY: The caller guarantees that the ring is valid during the call.
    let _guard = unsafe { mmap_lock(ctx) }.lock();

    // SAFETY: The caller guarantees that the ring is valid, and so is its array. `mmap_lock` is
    // held.
    unsafe { bindings::xa_erase(array(ctx), id) }
}

/// The interface queues of a ring whose `uring_lock` is held.
///
/// This module drops queues only in process context, with `uring_lock` held and `mmap_lock`
/// released, so that dropping a queue may sleep. Queues are removed only through `&mut self`, so
/// that those borrowed from [`Queues::get`] stay valid.
///
/// # Invariants
///
/// For the duration of `'a`:
///
/// - The ring is valid, the current task holds its `uring_lock`, and nobody else changes its
///   queues.
/// - Each entry of `zcrx_ctxs` is reserved, or came from [`Arc::into_raw`] of an `Arc<T>` and owns
///   that reference. Entries that are marked have been terminated.
/// - All changes are made with `mmap_lock` held.
pub struct Queues<'a, T> {
    ctx: NonNull<bindings::io_ring_ctx>,
    entries: PhantomData<&'a Arc<T>>,
}

impl<T: Send + Sync + 'static> Queues<'_, T> {
    /// Creates a handle from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// - While the handle exists, `ctx` must point to a valid ring, and the current task must hold
    ///   its `uring_lock`, even if nobody else has access to the ring. There must be no other
    ///   handle.
    /// - The ring's `user` and `mm_account` must not have been released yet.
    /// - `zcrx_ctxs` must have been initialised with `XA_FLAGS_ALLOC`, and must only be changed
    ///   through this type, always with the same `T`.
    pub unsafe fn from_raw(ctx: NonNull<bindings::io_ring_ctx>) -> Self {
        // The two lowest bits of a pointer in an xarray must be zero.
        const { assert!(Arc::<T>::DATA_OFFSET.is_multiple_of(4)) };

        // SAFETY: The caller guarantees that the ring is valid. Its lock was initialised with it.
        unsafe { assert_held(&raw mut (*ctx.as_ptr()).__bindgen_anon_2.uring_lock) };

        // INVARIANT: The caller guarantees what the type invariants demand.
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

    /// Returns the lock that protects changes of the array.
    fn mmap_lock(&self) -> &Mutex<()> {
        // SAFETY: By the type invariants, the ring is valid as long as `self` is.
        unsafe { mmap_lock(self.ctx) }
    }

    /// Returns the flags that the ring was set up with, `IORING_SETUP_*`.
    pub fn ring_flags(&self) -> u32 {
        // SAFETY: By the type invariants, the ring is valid, and its `uring_lock` is held, without
        // which nobody writes to the flags.
        unsafe { (*self.ctx.as_ptr()).__bindgen_anon_1.flags }
    }

    /// Returns the account to which the ring's memory is charged.
    pub fn account(&self) -> Account {
        // SAFETY: By the type invariants, the ring is valid. It still has its references to the
        // user and the address space, as `from_raw` demands.
        unsafe { Account::from_ring(self.ctx) }
    }

    /// Takes a reference to the ring.
    ///
    /// Returns `None` if the ring was closed and its last reference is gone; then nobody else has a
    /// [`RingRef`] to it either.
    pub fn ring(&self) -> Option<RingRef> {
        // SAFETY: By the type invariants, the ring is valid.
        unsafe { RingRef::try_get(self.ctx) }
    }

    /// Returns whether `ring` is a reference to this ring.
    pub fn belong_to(&self, ring: &RingRef) -> bool {
        ring.refers_to(self.ctx)
    }

    /// Reserves the lowest free id that is at most `max`. May sleep.
    ///
    /// No queue can be found under the id before [`Reservation::publish`].
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
            // array was initialised for allocation, as `from_raw` demands.
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

    /// Returns the queue with this id, even if it has been terminated.
    ///
    /// Returns `None` if there is no such queue or the id is only reserved.
    pub fn get(&self, id: u32) -> Option<ArcBorrow<'_, T>> {
        // SAFETY: By the type invariants, the array is valid.
        let entry = unsafe { bindings::xa_load(self.array(), id as usize) };

        if entry.is_null() {
            return None;
        }
        // SAFETY:
        // - By the type invariants, entries came from `Arc::into_raw`.
        // - The entry owns a reference, and is not erased as long as `self` is borrowed: nobody
        //   else changes the array, and this type does so only with `&mut self`.
        // - No `UniqueArc` exists for the queue, since the entry owns a reference.
        Some(unsafe { ArcBorrow::from_raw(entry.cast::<T>()) })
    }

    /// Marks each queue as terminated, in the order of ids, and then calls `f` with it. May sleep.
    ///
    /// `f` is called without `mmap_lock`, may sleep, and may itself look up queues. The queues stay
    /// in the array until they are [taken](Queues::take). This must be called once, when the ring
    /// goes away: at a queue that was terminated before, it warns and stops.
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
            // - The entry owns a reference, and is not erased as long as `self` is borrowed. `f`
            //   cannot keep its argument for longer than that.
            // - No `UniqueArc` exists for the queue, since the entry owns a reference.
            f(unsafe { ArcBorrow::from_raw(entry.cast::<T>()) });

            // If this fails, `id` was the highest possible one.
            let Some(next) = id.checked_add(1) else {
                return;
            };
            id = next;
        }
    }

    /// Removes a terminated queue from the ring and returns it, or `None` if there is none. May
    /// sleep.
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

        // SAFETY: By the type invariants, the entry came from `Arc::into_raw` and owned that
        // reference. The entry was erased with `mmap_lock` held, so that no `with_queue` uses it
        // any more.
        Some(unsafe { Arc::from_raw(entry.cast::<T>()) })
    }

    /// Frees the array of a ring that is about to be freed itself.
    ///
    /// Queues that have not been taken are leaked, with a warning.
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
        // be used. References that its entries owned are leaked.
        unsafe { bindings::xa_destroy(self.array()) };
    }
}

/// An id that is reserved for a queue. Dropping this frees the id.
///
/// # Invariants
///
/// The same as those of [`Queues`], and the entry `id` is reserved.
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

    /// Publishes the queue under its id. Dropping the result withdraws it. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short. The id is freed and the queue dropped then.
    pub fn publish(self, queue: Arc<T>) -> Result<Published<'a, T>> {
        let entry = Arc::into_raw(queue);
        let old = {
            // SAFETY: By the type invariants, the ring is valid.
            let _guard = unsafe { mmap_lock(self.ctx) }.lock();

            // SAFETY: By the type invariants, the ring is valid, and so is its array.
            // `Queues::from_raw` has checked that the pointer is sufficiently aligned.
            unsafe {
                bindings::xa_store(
                    array(self.ctx),
                    self.id as usize,
                    entry.cast_mut().cast(),
                    GFP_KERNEL.as_raw(),
                )
            }
        };

        // The previous value of a reserved entry is null; anything else is an error.
        if !old.is_null() {
            // SAFETY: The pointer came from `Arc::into_raw` above and was not stored.
            drop(unsafe { Arc::from_raw(entry) });
            return Err(ENOMEM);
        }

        // The new object owns the id, so `self` must not free it.
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
        // The entry is a reservation, which owns nothing.
        unsafe { erase(self.ctx, self.id as usize) };
    }
}

/// A published queue that can still be withdrawn. Dropping this withdraws and drops the queue.
///
/// # Invariants
///
/// The same as those of [`Queues`], and the entry `id` holds a queue that is not borrowed.
#[must_use = "dropping this takes the queue back"]
pub struct Published<'a, T> {
    ctx: NonNull<bindings::io_ring_ctx>,
    id: u32,
    entries: PhantomData<&'a mut Arc<T>>,
}

impl<T> Published<'_, T> {
    /// Leaves the queue with the ring.
    pub fn commit(self) {
        core::mem::forget(self);
    }
}

impl<T> Drop for Published<'_, T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the ring is valid, and nobody else changes its queues.
        let entry = unsafe { erase(self.ctx, self.id as usize) };

        // SAFETY: By the type invariants, the entry came from `Arc::into_raw` and owned that
        // reference. The entry was erased with `mmap_lock` held, so that no `with_queue` uses it
        // any more.
        drop(unsafe { Arc::from_raw(entry.cast::<T>().cast_const()) });
    }
}

/// Calls `f` with the queue `id` of a ring and returns the result, or `None` if there is no such
/// queue.
///
/// This is for code that maps the queue's memory, which need not hold `uring_lock`. `f` runs with
/// `mmap_lock` held, so it must not drop queues or take locks that come before that one.
///
/// C counterpart: `io_zcrx_get_region()`.
///
/// # Safety
///
/// - During the call, `ctx` must point to a valid ring, and the caller must hold its `mmap_lock`.
/// - `zcrx_ctxs` must be initialised, and must only be changed through [`Queues<T>`](Queues).
pub unsafe fn with_queue<T: Send + Sync + 'static, R>(
    ctx: NonNull<bindings::io_ring_ctx>,
    id: u32,
    f: impl FnOnce(&T) -> R,
) -> Option<R> {
    // SAFETY: The caller guarantees that the ring is valid. Its lock was initialised with it.
    unsafe { assert_held(&raw mut (*ctx.as_ptr()).mmap_lock) };

    // SAFETY: The caller guarantees that the ring is valid during the call, and so is its array.
    let entry = unsafe { bindings::xa_load(array(ctx), id as usize) }
        .cast_const()
        .cast::<T>();

    // SAFETY: By the invariants of `Queues`, entries came from `Arc::into_raw` and own a reference.
    // No entry is erased while `mmap_lock` is held.
    unsafe { entry.as_ref() }.map(f)
}

/// A ring that has only queues, for unit tests of how they end.
///
/// # Invariants
///
/// The ring is zeroed except for its locks, its array of queues, and its reference count, which is
/// dead. It does not move.
#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
pub struct TestRing<T> {
    ctx: KBox<Opaque<bindings::io_ring_ctx>>,
    entries: PhantomData<Arc<T>>,
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
impl<T: Send + Sync + 'static> TestRing<T> {
    /// Creates a ring without queues.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub fn new() -> Result<Self> {
        /// Ignores that the last reference was dropped.
        ///
        /// # Safety
        ///
        /// It is always safe to call this.
        unsafe extern "C" fn release(_refs: *mut bindings::percpu_ref) {}

        let ctx: KBox<Opaque<bindings::io_ring_ctx>> =
            KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
        let ring = ctx.get();
        let name = c"test ring".as_char_ptr();

        // SAFETY: The ring belongs to this function, and nobody uses the count yet.
        to_result(unsafe {
            bindings::percpu_ref_init(
                &raw mut (*ring).__bindgen_anon_1.refs,
                Some(release),
                bindings::PERCPU_REF_INIT_DEAD,
                GFP_KERNEL.as_raw(),
            )
        })?;
        // SAFETY: The ring belongs to this function. Nobody uses its locks and its array yet, and
        // they do not move.
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
        // INVARIANT: The ring was zeroed, and the rest was just initialised.
        Ok(Self {
            ctx,
            entries: PhantomData,
        })
    }

    /// Calls `f` with the queues of the ring, while holding the lock of the ring.
    pub fn with<R>(&mut self, f: impl FnOnce(Queues<'_, T>) -> R) -> R {
        let ring = self.ctx.get();
        // SAFETY: The lock was initialised, and stays valid as long as `self`.
        let lock: &Mutex<()> =
            unsafe { Mutex::from_raw(&raw mut (*ring).__bindgen_anon_2.uring_lock) };
        let _guard = lock.lock();

        // SAFETY: By the type invariants, the ring is valid. Its lock is held, and `self` is
        // borrowed, so that there is no other handle. It has no user and no address space. The
        // array is only changed here, with this `T`.
        f(unsafe { Queues::from_raw(NonNull::new_unchecked(ring)) })
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
impl<T> Drop for TestRing<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the count was initialised, and nobody has a reference.
        unsafe {
            bindings::percpu_ref_exit(&raw mut (*self.ctx.get()).__bindgen_anon_1.refs);
        }
    }
}
