// SPDX-License-Identifier: GPL-2.0

//! A spinlock that disables bottom halves.
//!
//! This module allows Rust code to use the kernel's `spinlock_t` with `spin_lock_bh()`. For data
//! that bottom halves do not access, use the lock in [`spinlock`](super::spinlock).
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
/// It may be taken in task context and in bottom halves, not in interrupt handlers. It is not
/// recursive: the holder must not take it again. Without `CONFIG_SMP` a spinlock has no state, so
/// that a second `lock` or `try_lock` by the holder succeeds, as it does with every spinlock of the
/// kernel. Detecting this would need extra state, which C code that takes the lock would not
/// update.
///
/// It may be released while interrupts are disabled, unlike with `spin_unlock_bh()` in C. That
/// function would run pending bottom halves at once and enable interrupts, although a
/// [`LocalInterruptDisabled`] or the guard of a [`SpinLockIrq`](super::spinlock::SpinLockIrq) on
/// the same CPU guarantees that they are disabled. Here, bottom halves are left to `ksoftirqd` in
/// that case.
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
/// [`LocalInterruptDisabled`]: crate::interrupt::LocalInterruptDisabled
pub type SpinLockBh<T> = Lock<T, SpinLockBhBackend>;

/// A kernel `spinlock_t` lock backend that disables bottom halves.
pub struct SpinLockBhBackend;

/// A [`Guard`] acquired from locking a [`SpinLockBh`].
///
/// This is simply a type alias for a [`Guard`] returned from locking a [`SpinLockBh`]. It will
/// unlock the [`SpinLockBh`], and let bottom halves run again, upon being dropped. Pending bottom
/// halves run at once, unless interrupts are disabled.
pub type SpinLockBhGuard<'a, T> = Guard<'a, T, SpinLockBhBackend>;

/// Releases the lock, and leaves pending bottom halves to `ksoftirqd`. `spin_unlock_bh()` would run
/// them, which enables interrupts.
///
/// # Safety
///
/// It must only be called by the current owner of the lock, with interrupts disabled.
#[cold]
#[inline(never)]
unsafe fn unlock_with_interrupts_disabled(ptr: *mut bindings::spinlock_t) {
    // On PREEMPT_RT, `spin_unlock_bh()` itself leaves pending bottom halves to `ksoftirqd`.
    #[cfg(CONFIG_PREEMPT_RT)]
    // SAFETY: The caller owns the lock.
    unsafe {
        bindings::spin_unlock_bh(ptr)
    };

    #[cfg(not(CONFIG_PREEMPT_RT))]
    {
        // SAFETY: The caller owns the lock.
        unsafe { bindings::spin_unlock(ptr) };
        // SAFETY: Taking the lock disabled bottom halves, and the caller has disabled interrupts,
        // with which this function must be called.
        unsafe { bindings::_local_bh_enable() };
        // SAFETY: The caller has disabled interrupts, so that the CPU does not change.
        let pending = unsafe { bindings::local_softirq_pending() };

        if pending != 0 {
            // Raise one of them again, which wakes `ksoftirqd` to run all of them.
            // SAFETY: The caller has disabled interrupts. This is the number of a bottom half.
            unsafe { bindings::raise_softirq_irqoff(pending.trailing_zeros()) };
        }
    }
}

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
        // The types do not prevent dropping a guard while interrupts are disabled: a guard and a
        // token can be created and dropped in any order.
        // SAFETY: It is always safe to query the state of interrupts.
        if unsafe { bindings::irqs_disabled() } {
            // SAFETY: The safety requirements of this function ensure that `ptr` is valid and that
            // the caller is the owner of the spinlock. Interrupts are disabled.
            return unsafe { unlock_with_interrupts_disabled(ptr) };
        }
        // SAFETY: The safety requirements of this function ensure that `ptr` is valid and that the
        // caller is the owner of the spinlock. Interrupts are enabled.
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

#[macros::kunit_tests(rust_spinlock_bh)]
mod tests {
    use super::*;
    use crate::{
        interrupt::local_interrupt_disable,
        prelude::*,
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            SpinLockBh, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
        types::Opaque, //
    };

    /// A bottom half that records that it ran.
    #[repr(C)]
    struct BottomHalf {
        tasklet: Opaque<bindings::tasklet_struct>,
        ran: Atomic<i32>,
    }

    impl BottomHalf {
        /// Creates a bottom half that is not scheduled.
        fn new() -> Result<Pin<KBox<Self>>> {
            let half = KBox::new(
                Self {
                    tasklet: Opaque::new(pin_init::zeroed()),
                    ran: Atomic::new(0),
                },
                GFP_KERNEL,
            )?;

            // SAFETY: The structure belongs to this function and does not move any more.
            unsafe { bindings::tasklet_setup(half.tasklet.get(), Some(Self::run)) };
            Ok(half.into())
        }

        /// Records that the bottom half ran.
        ///
        /// # Safety
        ///
        /// `tasklet` must be the first field of a `BottomHalf`.
        unsafe extern "C" fn run(tasklet: *mut bindings::tasklet_struct) {
            // SAFETY: The caller guarantees that this is the first field of a `BottomHalf`, which
            // stays valid: `drop` waits until this returns.
            let half = unsafe { &*tasklet.cast::<Self>() };

            half.ran.store(1, Relaxed);
        }

        /// Schedules the bottom half, so that it runs on this CPU as soon as bottom halves are
        /// enabled. Must be called once.
        fn schedule(&self) {
            // SAFETY: The tasklet is initialised and not scheduled. The first bit of its state says
            // whether it is scheduled.
            unsafe {
                (*self.tasklet.get()).state = 1;
                bindings::__tasklet_schedule(self.tasklet.get());
            }
        }

        /// Returns whether the bottom half has run.
        fn has_run(&self) -> bool {
            self.ran.load(Relaxed) != 0
        }

        /// Waits up to two seconds for the bottom half to run. Returns whether it has run.
        fn wait_until_run(&self) -> bool {
            for _ in 0..200 {
                if self.has_run() {
                    break;
                }
                fsleep(Delta::from_millis(10));
            }
            self.has_run()
        }
    }

    impl Drop for BottomHalf {
        fn drop(&mut self) {
            // SAFETY: The tasklet is initialised, and nobody schedules it again.
            unsafe { bindings::tasklet_kill(self.tasklet.get()) };
        }
    }

    #[test]
    fn unlock_runs_pending_bottom_halves() -> Result {
        let lock = KBox::pin_init(new_spinlock_bh!((), "unlocking"), GFP_KERNEL)?;
        let half = BottomHalf::new()?;

        let guard = lock.lock();
        half.schedule();
        let before = half.has_run();
        drop(guard);

        assert!(!before);
        assert!(half.has_run());
        Ok(())
    }

    /// A failed `try_lock` does not change whether bottom halves are enabled.
    #[test]
    fn failed_try_lock_keeps_bottom_halves_disabled() -> Result {
        let lock = KBox::pin_init(new_spinlock_bh!(0, "trying"), GFP_KERNEL)?;
        let half = BottomHalf::new()?;

        let mut guard = lock.try_lock().ok_or(EBUSY)?;
        *guard += 1;
        half.schedule();
        let again = lock.try_lock().is_some();
        let before = half.has_run();
        drop(guard);

        assert!(!again);
        assert!(!before);
        assert!(half.has_run());
        assert_eq!(lock.try_lock().map(|guard| *guard), Some(1));
        Ok(())
    }

    /// Bottom halves enable interrupts while they run, so they must not run while a token
    /// guarantees that interrupts are disabled.
    #[test]
    fn unlock_keeps_interrupts_disabled() -> Result {
        for lock_first in [true, false] {
            let lock: Pin<KBox<SpinLockBh<()>>> =
                KBox::pin_init(new_spinlock_bh!((), "interrupts"), GFP_KERNEL)?;
            let half = BottomHalf::new()?;

            let (guard, interrupts) = if lock_first {
                (lock.lock(), local_interrupt_disable())
            } else {
                let interrupts = local_interrupt_disable();
                (lock.lock(), interrupts)
            };
            half.schedule();
            drop(guard);
            let early = half.has_run();
            // SAFETY: It is always safe to query the state of interrupts.
            let disabled = unsafe { bindings::irqs_disabled() };
            drop(interrupts);

            assert!(!early);
            assert!(disabled);
            assert!(half.wait_until_run());
        }
        Ok(())
    }
}
