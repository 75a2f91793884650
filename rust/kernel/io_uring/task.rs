// SPDX-License-Identifier: GPL-2.0

//! The restrictions of tasks, which their children inherit.
//!
//! A task points to a [`Restriction`] that never changes, and that it shares with its children.
//! When a task registers restrictions, the pointer is replaced.
//!
//! C header: [`include/linux/sched.h`](srctree/include/linux/sched.h)

use super::{
    filter_set::{
        Contents,
        FilterSet, //
    },
    restriction::Restriction, //
};
use crate::{
    bindings,
    sync::Arc,
    task::Task, //
};
use core::{
    marker::PhantomData,
    mem::ManuallyDrop,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

/// Returns the address of `io_uring_restrict` of a task.
///
/// Others read and write the rest of a task at any time, so that there must be no reference to the
/// whole task.
///
/// # Safety
///
/// `task` must be valid.
unsafe fn restrict_ptr(task: NonNull<bindings::task_struct>) -> *mut *mut bindings::io_restriction {
    // SAFETY: The caller guarantees that the task is valid. This takes the address of the field and
    // reads nothing.
    unsafe { &raw mut (*task.as_ptr()).io_uring_restrict }
}

/// A handle to `io_uring_restrict` of a task.
///
/// # Invariants
///
/// For the duration of `'a`, the task is valid and nobody else accesses its `io_uring_restrict`.
/// That field is null, or came from `Arc::<Restriction<T>>::into_raw` and is a reference that the
/// task owns.
pub struct TaskRestriction<'a, T: Contents> {
    task: NonNull<bindings::task_struct>,
    owned: PhantomData<&'a mut Arc<Restriction<T>>>,
}

impl<T: Contents> TaskRestriction<'_, T> {
    /// Creates a handle to the restrictions of the current task.
    ///
    /// # Safety
    ///
    /// - There must be no other handle for the current task while this one exists. The handle
    ///   cannot be sent to another task, since it contains a pointer.
    /// - All restrictions of tasks must be set through this type with the same `T`.
    pub unsafe fn current() -> Self {
        // SAFETY: The current task is never null.
        let task = unsafe { NonNull::new_unchecked(Task::current_raw()) };

        // INVARIANT: The current task is valid. Once a task runs, only the task itself accesses the
        // field, and the caller guarantees the rest.
        Self {
            task,
            owned: PhantomData,
        }
    }

    /// Creates a handle to the restrictions of another task.
    ///
    /// # Safety
    ///
    /// - `task` must be valid, and must have ended or never have run, so that nobody else accesses
    ///   it.
    /// - All restrictions of tasks must be set through this type with the same `T`.
    pub unsafe fn from_raw(task: NonNull<bindings::task_struct>) -> Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        Self {
            task,
            owned: PhantomData,
        }
    }

    /// Makes a task that is being created share the restrictions of the current task, unless it is
    /// a worker of io_uring: workers never consult restrictions.
    ///
    /// Allocates nothing and cannot fail.
    ///
    /// # Safety
    ///
    /// - `child` must be a valid task that does not run yet and is a copy of the current task: its
    ///   `io_uring_restrict` is a copy of a pointer that the current task owns.
    /// - All restrictions of tasks must be set through this type with the same `T`.
    pub unsafe fn inherit(child: NonNull<bindings::task_struct>) {
        // SAFETY: The caller guarantees that the task is valid.
        let field = unsafe { restrict_ptr(child) };
        // SAFETY: The task does not run yet, so that nobody else writes to its flags or accesses
        // the field.
        let (flags, parents) = unsafe {
            (
                (&raw const (*child.as_ptr()).flags).read(),
                field.replace(null_mut()),
            )
        };

        if parents.is_null() || flags & bindings::PF_IO_WORKER != 0 {
            return;
        }
        // SAFETY: The caller guarantees that the current task owns this pointer. It still owns it
        // afterwards, as the `Arc` made here is not dropped.
        let parents = ManuallyDrop::new(unsafe { Arc::from_raw(parents.cast::<Restriction<T>>()) });

        // SAFETY: The task is valid, and nobody else accesses the field.
        unsafe { field.write(Arc::into_raw(Arc::clone(&parents)).cast_mut().cast()) };
    }

    /// Returns the restrictions, if there are any.
    pub fn get(&self) -> Option<&Restriction<T>> {
        // SAFETY: By the type invariants, the task is valid, and its pointer is null or a
        // reference, which is not dropped while `self` is borrowed.
        unsafe {
            restrict_ptr(self.task)
                .read()
                .cast::<Restriction<T>>()
                .as_ref()
        }
    }

    /// Removes the restrictions and returns them. The result may be dropped in any context.
    pub fn take(&mut self) -> Option<Arc<Restriction<T>>> {
        // INVARIANT: The field becomes null.
        // SAFETY: By the type invariants, the task is valid, and nobody else accesses the field.
        let old = unsafe { restrict_ptr(self.task).replace(null_mut()) };

        // SAFETY: By the type invariants, a pointer that is not null came from `into_raw` and was
        // owned by the task. It was removed from the task, so that the `Arc` owns it now.
        (!old.is_null()).then(|| unsafe { Arc::from_raw(old.cast()) })
    }

    /// Replaces the restrictions, if any, and drops the old ones. May sleep.
    pub fn set(&mut self, new: Arc<Restriction<T>>) {
        let old = self.take();

        // INVARIANT: The field becomes a reference that the task owns. A `Restriction` is a
        // transparent wrapper of what the field points to.
        // SAFETY: By the type invariants, the task is valid, and nobody else accesses the field.
        unsafe { restrict_ptr(self.task).write(Arc::into_raw(new).cast_mut().cast()) };

        // If nobody else has the old restrictions, their filters can be freed here, as this may
        // sleep.
        if let Some(set) = old
            .and_then(Arc::into_unique_or_drop)
            .and_then(|mut old| old.take_filters())
        {
            FilterSet::put(set);
        }
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_io_uring_task)]
mod tests {
    use super::*;
    use crate::{
        io_uring::{
            ring::Ring,
            rules::{
                OpSet,
                Rules, //
            },
            sqe_flags::FlagSet,
            PerOpcode, //
        },
        prelude::*,
        sync::atomic::{
            Atomic,
            Relaxed, //
        },
        time::{
            delay::fsleep,
            Delta, //
        },
    };

    /// Filters with a number, which count the sets that exist.
    struct Numbered {
        number: usize,
        live: Arc<Atomic<i32>>,
    }

    impl Contents for Numbered {
        fn release_step(&mut self) -> bool {
            self.live.fetch_add(-1, Relaxed);
            false
        }
    }

    /// Creates a task that has only what these tests use.
    fn task() -> Result<KBox<bindings::task_struct>> {
        KBox::init(pin_init::init_zeroed(), GFP_KERNEL)
    }

    /// Creates a handle to a task of these tests.
    fn handle(task: &mut KBox<bindings::task_struct>) -> TaskRestriction<'_, Numbered> {
        // SAFETY: The task belongs to a test. It is borrowed mutably, so that it has no other
        // handle, and it only gets filters of type `Numbered`.
        unsafe { TaskRestriction::from_raw(NonNull::from(&mut **task)) }
    }

    /// Creates a child of `parent`, as fork does.
    fn fork(
        parent: &KBox<bindings::task_struct>,
        flags: u32,
    ) -> Result<KBox<bindings::task_struct>> {
        let mut child = task()?;

        child.io_uring_restrict = parent.io_uring_restrict;
        child.flags = flags;
        // SAFETY: The child's pointer is a copy of its parent's, which does not change meanwhile.
        unsafe { TaskRestriction::<Numbered>::inherit(NonNull::from(&mut *child)) };
        Ok(child)
    }

    /// Creates restrictions that allow one registration, `number`, and whose filters have that
    /// number.
    fn numbered(number: usize, live: &Arc<Atomic<i32>>) -> Result<Arc<Restriction<Numbered>>> {
        let rules = Rules {
            registers_restricted: true,
            register_ops: OpSet::from_iter([number]),
            ..Rules::default()
        };
        let contents = Numbered {
            number,
            live: live.clone(),
        };
        let unfiltered = PerOpcode::init(|_| FlagSet::NONE);
        let filters = FilterSet::new(unfiltered, contents, GFP_KERNEL)?;
        live.fetch_add(1, Relaxed);

        Ok(Arc::new(
            Restriction::new(&rules, Some(filters)),
            GFP_KERNEL,
        )?)
    }

    /// Returns the number of restrictions, if their rules and their filters have the same one.
    fn number_of(restriction: &Restriction<Numbered>) -> Option<usize> {
        let number = restriction.filters()?.number;

        (restriction.rules().allows_register(number)
            && !restriction.rules().allows_register(number + 1))
        .then_some(number)
    }

    /// Waits up to two seconds for all sets to be freed. Returns the number of sets left.
    fn settle(live: &Atomic<i32>) -> i32 {
        for _ in 0..200 {
            if live.load(Relaxed) == 0 {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        live.load(Relaxed)
    }

    #[test]
    fn children_inherit_but_workers_do_not() -> Result {
        let live = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let mut parent = task()?;
        handle(&mut parent).set(numbered(3, &live)?);

        let mut child = fork(&parent, 0)?;
        let mut worker = fork(&parent, bindings::PF_IO_WORKER)?;
        assert_eq!(handle(&mut child).get().and_then(number_of), Some(3));
        assert!(worker.io_uring_restrict.is_null());
        // The child and its parent share one object.
        assert!(core::ptr::eq(
            child.io_uring_restrict,
            parent.io_uring_restrict
        ));

        drop(handle(&mut parent).take());
        fsleep(Delta::from_millis(20));
        assert_eq!(live.load(Relaxed), 1);
        assert_eq!(handle(&mut child).get().and_then(number_of), Some(3));
        drop(handle(&mut child).take());
        drop(handle(&mut worker).take());
        assert_eq!(settle(&live), 0);
        Ok(())
    }

    #[test]
    fn ring_keeps_restrictions_of_its_creation() -> Result {
        let live = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let mut maker = task()?;
        let mut ctx: KBox<bindings::io_ring_ctx> = KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
        // SAFETY: The ring belongs to this test: nobody else accesses it while the handle exists.
        let mut ring = unsafe { Ring::<Numbered>::from_raw(NonNull::from(&mut *ctx)) };

        handle(&mut maker).set(numbered(5, &live)?);
        if let Some(restriction) = handle(&mut maker).get() {
            ring.inherit(restriction);
        }
        assert_eq!(number_of(ring.restriction()), Some(5));
        handle(&mut maker).set(numbered(6, &live)?);
        assert_eq!(number_of(ring.restriction()), Some(5));

        let flags = ctx.__bindgen_anon_1.int_flags;
        assert_eq!(
            flags,
            bindings::IO_RING_F_REG_RESTRICTED | bindings::IO_RING_F_RESTRICT_INHERITED
        );
        // SAFETY: The ring's restrictions have filters, as was checked above.
        let filters = unsafe { (*ctx.restrictions.bpf_filters).filters };
        assert!(core::ptr::eq(ctx.__bindgen_anon_1.bpf_filters, filters));

        drop(handle(&mut maker).take());
        // SAFETY: Nobody else accesses the ring's restrictions.
        let restriction =
            unsafe { Restriction::<Numbered>::from_raw_mut(NonNull::from(&mut ctx.restrictions)) };
        drop(restriction.take_filters());
        assert_eq!(settle(&live), 0);
        Ok(())
    }

    /// Checks that tasks have the restrictions that a model predicts, through every sequence of
    /// three steps, one after the other.
    #[test]
    fn forks_and_exits_match_the_model() -> Result {
        const TASKS: usize = 3;
        // A task gets restrictions, loses them, or is replaced by a child of any task.
        const STEPS: usize = TASKS * (2 + TASKS);
        let live = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        // Each task is stored with the number that its restrictions should have.
        let mut tasks = [(task()?, None), (task()?, None), (task()?, None)];

        for sequence in 0..STEPS * STEPS * STEPS {
            for step in [sequence / STEPS / STEPS, sequence / STEPS, sequence] {
                let (which, step) = (step % TASKS, step / TASKS % (2 + TASKS));
                let child = match step.checked_sub(2).and_then(|parent| tasks.get(parent)) {
                    Some((parent, model)) => Some((fork(parent, 0)?, *model)),
                    None => None,
                };

                let Some((task, model)) = tasks.get_mut(which) else {
                    return Err(EINVAL);
                };
                if step == 0 {
                    *model = Some(sequence % 30);
                    handle(task).set(numbered(sequence % 30, &live)?);
                } else {
                    *model = None;
                    drop(handle(task).take());
                }
                if let Some(child) = child {
                    (*task, *model) = child;
                }
                for (task, model) in &mut tasks {
                    assert_eq!(handle(task).get().and_then(number_of), *model);
                }
            }
        }
        for (task, _) in &mut tasks {
            drop(handle(task).take());
        }
        assert_eq!(settle(&live), 0);
        Ok(())
    }
}
