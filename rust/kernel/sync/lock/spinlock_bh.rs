// SPDX-License-Identifier: GPL-2.0

//! A spinlock that keeps bottom halves away.
//!
//! This module allows Rust code to use the kernel's `spinlock_t` with `spin_lock_bh()`. The lock
//! for data that bottom halves do not touch is in [`spinlock`](super::spinlock).
//!
//! C header: [`include/linux/spinlock.h`](srctree/include/linux/spinlock.h)

use super::{
    Backend,
    Guard,
    Lock, //
};
use crate::bindings;

/// Creates a [`SpinLockBh`] initialiser with the given name and a newly-created lock class.
///
/// It uses the name if one is given, otherwise it generates one based on the file name and line
/// number.
#[macro_export]
macro_rules! new_spinlock_bh {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::SpinLockBh::new(
            $inner, $crate::optional_name!($($name)?), $crate::static_lock_class!())
    };
}
pub use new_spinlock_bh;

/// A spinlock that disables bottom halves on its CPU while it is held.
///
/// Exposes the kernel's [`spinlock_t`]. It is for data that both tasks and bottom halves (softirqs,
/// timers, the network's receive path) access, but no interrupt handler does: with a plain
/// [`SpinLock`](super::spinlock::SpinLock) a bottom half could interrupt the holder on its own CPU
/// and wait for it forever.
///
/// It may be taken in task context and in bottom halves. As with `spin_unlock_bh()` in C, it must
/// not be released in interrupt handlers, nor while interrupts are disabled.
///
/// Instances of [`SpinLockBh`] need a lock class and to be pinned. The recommended way to create
/// such instances is with the [`pin_init`](pin_init::pin_init) and [`new_spinlock_bh`] macros.
///
/// # Examples
///
/// ```
/// use kernel::sync::{
///     new_spinlock_bh,
///     SpinLockBh, //
/// };
///
/// #[pin_data]
/// struct Example {
///     #[pin]
///     packets: SpinLockBh<u32>,
/// }
///
/// impl Example {
///     fn new() -> impl PinInit<Self> {
///         pin_init!(Self {
///             packets <- new_spinlock_bh!(0, "Example::packets"),
///         })
///     }
/// }
///
/// let example = KBox::pin_init(Example::new(), GFP_KERNEL)?;
///
/// *example.packets.lock() += 1;
/// assert_eq!(example.packets.try_lock().map(|packets| *packets), Some(1));
/// # Ok::<(), Error>(())
/// ```
///
/// [`spinlock_t`]: srctree/include/linux/spinlock.h
pub type SpinLockBh<T> = Lock<T, SpinLockBhBackend>;

/// A kernel `spinlock_t` lock backend that disables bottom halves.
pub struct SpinLockBhBackend;

/// A [`Guard`] acquired from locking a [`SpinLockBh`].
///
/// This is simply a type alias for a [`Guard`] returned from locking a [`SpinLockBh`]. It will
/// unlock the [`SpinLockBh`], and let bottom halves run again, upon being dropped.
pub type SpinLockBhGuard<'a, T> = Guard<'a, T, SpinLockBhBackend>;

// SAFETY: The underlying kernel `spinlock_t` object ensures mutual exclusion. `relock` uses the
// default implementation that always calls the same locking method.
unsafe impl Backend for SpinLockBhBackend {
    type State = bindings::spinlock_t;
    type GuardState = ();

    #[inline]
    unsafe fn init(
        ptr: *mut Self::State,
        name: *const crate::ffi::c_char,
        key: *mut bindings::lock_class_key,
    ) {
        // SAFETY: The safety requirements ensure that `ptr` is valid for writes, and `name` and
        // `key` are valid for read indefinitely.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: The safety requirements of this function ensure that `ptr` points to valid
        // memory, and that it has been initialised before.
        unsafe { bindings::spin_lock_bh(ptr) }
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, _guard_state: &Self::GuardState) {
        // SAFETY: The safety requirements of this function ensure that `ptr` is valid and that the
        // caller is the owner of the spinlock.
        unsafe { bindings::spin_unlock_bh(ptr) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        // SAFETY: The `ptr` pointer is guaranteed to be valid and initialized before use.
        let result = unsafe { bindings::spin_trylock_bh(ptr) };

        if result != 0 {
            Some(())
        } else {
            None
        }
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The `ptr` pointer is guaranteed to be valid and initialized before use.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}
