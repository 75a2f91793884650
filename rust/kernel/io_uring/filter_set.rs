// SPDX-License-Identifier: GPL-2.0

//! Sets of filters that rings and tasks share.
//!
//! A [`FilterSet`] is immutable and reference counted. Its owners are rings and tasks: they point
//! to it from their [`Restriction`](super::restriction::Restriction). The user of this module
//! chooses the filters and how they decide: these are the [`Contents`] of a set.
//!
//! No RCU is needed. A ring's set is read and replaced only under the ring's `uring_lock`, a task's
//! set only by the task itself, and passing a set on takes a reference first.
//!
//! C headers: [`include/linux/io_uring/filter_set.h`](srctree/include/linux/io_uring/filter_set.h),
//! [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h)

use super::{
    sqe_flags::FlagSet,
    Opcode,
    PerOpcode, //
};
use crate::{
    alloc::Flags,
    bindings,
    prelude::*,
    static_lock_class,
    sync::{
        aref::{
            ARef,
            AlwaysRefCounted, //
        },
        Refcount, //
    },
    types::Opaque,
    workqueue::{
        self,
        impl_has_work,
        Work,
        WorkItem, //
    },
};
use core::{
    mem::offset_of,
    ops::Deref,
    ptr::NonNull, //
};

/// The name of the lock class of the work items of all sets.
///
/// All types of contents share one class, and lockdep requires that its name is a single object. A
/// literal would be a separate object in each crate that creates sets.
static WORK_NAME: &CStr = c"FilterSet::work";

/// The contents of a [`FilterSet`].
///
/// Only built-in code may implement this: after its last owner has gone, a set is freed by a work
/// item, and nothing keeps a module loaded until then.
pub trait Contents: Send + Sync + 'static {
    /// Frees a bounded part of the contents. Returns whether to call this again. May sleep.
    ///
    /// Called repeatedly, in process context, once the set has no owner any more, until it returns
    /// `false`. Other work runs between the calls. After the last call, the contents are dropped,
    /// also in process context, so what is left by then must not take long to drop.
    fn release_step(&mut self) -> bool;
}

/// The contents of a set, and before them what C reads to see whether it must call filters at all.
#[repr(C)]
struct Filtering<T> {
    unfiltered: PerOpcode<FlagSet>,
    contents: T,
}

// The first field has the layout of C's `struct io_unfiltered`.
const _: () = {
    assert!(offset_of!(Filtering<u8>, unfiltered) == 0);
    assert!(size_of::<PerOpcode<FlagSet>>() == size_of::<bindings::io_unfiltered>());
    assert!(align_of::<PerOpcode<FlagSet>>() == align_of::<bindings::io_unfiltered>());
};

/// A set of filters that rings and tasks share.
///
/// It begins with the part that C accesses, a `struct io_bpf_filters`.
///
/// The last reference may be dropped in any context: a work item frees the contents, in steps.
///
/// # Invariants
///
/// - `shared.refs` counts the references. While there are any, nobody has a mutable reference to
///   the set.
/// - `shared.filters` points to `filtering`, or is null if no request need be filtered: then C
///   calls no filter.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::{
///     filter_set::{Contents, FilterSet},
///     sqe_flags::FlagSet,
///     Opcode,
///     PerOpcode, //
/// };
///
/// struct Limit(u32);
///
/// impl Contents for Limit {
///     fn release_step(&mut self) -> bool {
///         false
///     }
/// }
///
/// // All requests are filtered but those that open files.
/// let unfiltered = PerOpcode::init(|op| match op {
///     Opcode::OPENAT => FlagSet::ALL,
///     _ => FlagSet::NONE,
/// });
/// let set = FilterSet::new(unfiltered, Limit(7), GFP_KERNEL)?;
/// let other = set.clone();
/// drop(set);
/// assert_eq!(other.0, 7);
/// assert_eq!(other.unfiltered(Opcode::SOCKET), FlagSet::NONE);
/// # Ok::<(), Error>(())
/// ```
#[pin_data]
#[repr(C)]
pub struct FilterSet<T: Contents> {
    #[pin]
    shared: Opaque<bindings::io_bpf_filters>,
    #[pin]
    work: Work<Self>,
    filtering: Filtering<T>,
}

impl_has_work! {
    impl{T: Contents} HasWork<Self> for FilterSet<T> { self.work }
}

// SAFETY: `T` is `Send`, the count is atomic, and the other fields are written only while the set
// has one user.
unsafe impl<T: Contents> Send for FilterSet<T> {}

// SAFETY: `T` is `Sync`, the count is atomic, and the other fields are written only while the set
// has one user.
unsafe impl<T: Contents> Sync for FilterSet<T> {}

impl<T: Contents> FilterSet<T> {
    /// Allocates a set with these contents. Both arguments are initialised in place. Requests whose
    /// SQE has flags that are in `unfiltered` of their opcode are allowed without calling a filter.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub fn new(
        unfiltered: impl Init<PerOpcode<FlagSet>>,
        contents: impl Init<T>,
        flags: Flags,
    ) -> Result<ARef<Self>> {
        let set = KBox::pin_init(
            pin_init!(Self {
                shared: Opaque::new(pin_init::zeroed()),
                work <- Work::new(WORK_NAME, static_lock_class!()),
                filtering <- init!(Filtering {
                    unfiltered <- unfiltered,
                    contents <- contents,
                }),
            }),
            flags,
        )?;
        // SAFETY: The set is not moved from here on: it is freed at its address.
        let set = NonNull::from(KBox::leak(unsafe { Pin::into_inner_unchecked(set) }));

        // SAFETY: The set was just allocated and belongs to this function, so that its fields are
        // valid.
        unsafe {
            let shared = Opaque::cast_into(&raw const (*set.as_ptr()).shared);
            let filtering = &raw mut (*set.as_ptr()).filtering;
            let unfiltered = &(*filtering).unfiltered;

            if unfiltered.iter().any(|flags| *flags != FlagSet::ALL) {
                (*shared).filters = filtering.cast();
            }
        }

        // INVARIANT: `filters` was set above, or is still null as it was initialised. The count
        // becomes one, for the reference that is returned.
        // SAFETY: The set was just allocated, and nobody else has a pointer to it yet. `ARef` takes
        // over the reference that was just counted.
        unsafe {
            set.as_ref().refs().set(1);
            Ok(ARef::from_raw(set))
        }
    }

    /// Returns the count of references.
    fn refs(&self) -> &Refcount {
        let shared = self.shared.get();

        // SAFETY: `shared` is valid, and `Refcount` is a transparent wrapper of `refcount_t`.
        unsafe { &*(&raw mut (*shared).refs).cast::<Refcount>() }
    }

    /// Converts the pointer that C keeps in `io_ring_ctx::bpf_filters` to a reference to a set's
    /// contents.
    ///
    /// # Safety
    ///
    /// `filters` must not be null, and must have been read from the `filters` field of a `struct
    /// io_bpf_filters` that is a `FilterSet<T>`, to which somebody holds a reference for the
    /// duration of `'a`.
    #[inline]
    pub unsafe fn contents_from_raw<'a>(filters: *mut *mut bindings::io_bpf_filter) -> &'a T {
        // SAFETY: By the type invariants, the pointer leads to this field of the set, which the
        // reference keeps alive.
        unsafe { &(*filters.cast::<Filtering<T>>()).contents }
    }

    /// Drops a reference. Unlike dropping an [`ARef`], this may sleep: if it was the last one, the
    /// first part of the contents is freed at once. If that is all, no work item has to run.
    pub fn put(set: ARef<Self>) {
        // SAFETY: The reference comes from an `ARef`.
        if let Some(set) = unsafe { Self::drop_reference(ARef::into_raw(set)) } {
            Self::release(set);
        }
    }

    /// Drops a reference. Returns the set if it was the last one.
    ///
    /// # Safety
    ///
    /// The caller must have a reference to `set`, and not use it again.
    unsafe fn drop_reference(set: NonNull<Self>) -> Option<Pin<KBox<Self>>> {
        // SAFETY: The caller has a reference, so the set is valid.
        if !unsafe { set.as_ref().refs().dec_and_test() } {
            return None;
        }
        // SAFETY:
        // - `FilterSet::new` got the set from a `KBox`, and the last reference is gone.
        // - The set never moved and is not moved now.
        Some(unsafe { Pin::new_unchecked(KBox::from_raw(set.as_ptr())) })
    }

    /// Frees a part of the contents of a set without owners, and leaves what remains to a work
    /// item.
    fn release(mut set: Pin<KBox<Self>>) {
        if set.as_mut().project().filtering.contents.release_step() {
            workqueue::system_dfl().enqueue(set);
        }
    }

    /// Returns the flags of requests of `opcode` that are allowed without calling a filter.
    pub fn unfiltered(&self, opcode: Opcode) -> FlagSet {
        self.filtering.unfiltered[opcode]
    }
}

impl<T: Contents> Deref for FilterSet<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.filtering.contents
    }
}

// SAFETY: `inc_ref` and `dec_ref` change the count that keeps the set alive, and `FilterSet::new`
// returns only counted sets.
unsafe impl<T: Contents> AlwaysRefCounted for FilterSet<T> {
    fn inc_ref(&self) {
        self.refs().inc();
    }

    unsafe fn dec_ref(set: NonNull<Self>) {
        // SAFETY: The caller has a reference, which this drops.
        if let Some(set) = unsafe { Self::drop_reference(set) } {
            workqueue::system_dfl().enqueue(set);
        }
    }
}

impl<T: Contents> WorkItem for FilterSet<T> {
    type Pointer = Pin<KBox<Self>>;

    fn run(set: Pin<KBox<Self>>) {
        Self::release(set);
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_io_uring_filter_set)]
mod tests {
    use super::*;
    use crate::{
        io_uring::{
            restriction::Restriction,
            rules::Rules,
            SQE_FLAG_VALUES, //
        },
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        task::Task,
        time::{
            delay::fsleep,
            Delta, //
        },
    };
    use core::mem::offset_of;

    /// Contents that count the calls that release them, and need `steps` of these.
    struct Steps {
        steps: u32,
        done: Arc<Atomic<u32>>,
    }

    impl Contents for Steps {
        fn release_step(&mut self) -> bool {
            self.done.fetch_add(1, Relaxed);
            self.steps = self.steps.saturating_sub(1);
            self.steps > 0
        }
    }

    /// Returns the bits for sets that filter all requests.
    fn none() -> impl Init<PerOpcode<FlagSet>> {
        PerOpcode::init(|_| FlagSet::NONE)
    }

    /// Waits up to two seconds for `done` to reach `count`. Returns the value of `done`.
    fn settle(done: &Atomic<u32>, count: u32) -> u32 {
        for _ in 0..200 {
            if done.load(Relaxed) >= count {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        done.load(Relaxed)
    }

    /// Checks what C reads of a set: bits for the flags of each opcode, and no more if all are set.
    #[test]
    fn c_pointer_leads_to_the_contents() -> Result {
        let done = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let steps = |done| Steps { steps: 1, done };
        let unfiltered = |op| match op {
            Opcode::OPENAT => FlagSet::containing(0b100_0001),
            Opcode::SOCKET => FlagSet::ALL,
            _ => FlagSet::NONE,
        };
        let set = FilterSet::new(PerOpcode::init(unfiltered), steps(done.clone()), GFP_KERNEL)?;
        let shared = set.shared.get();

        assert_eq!(offset_of!(FilterSet<Steps>, shared), 0);
        // SAFETY: The set is alive, and `filters` was set when the set was created.
        let filters = unsafe { (*shared).filters };
        // SAFETY: As above.
        let contents = unsafe { FilterSet::<Steps>::contents_from_raw(filters) };
        assert!(core::ptr::eq(contents, &**set));
        assert_eq!(set.unfiltered(Opcode::SOCKET), FlagSet::ALL);

        // SAFETY: As above: it points to this part of the set.
        let bits = unsafe { &(*filters.cast::<bindings::io_unfiltered>()).bits };
        let is_set = |bit: usize| {
            let word = bits.as_flattened().get(bit / c_ulong::BITS as usize);

            word.is_some_and(|word| word >> (bit % c_ulong::BITS as usize) & 1 != 0)
        };
        for op in Opcode::all() {
            for flags in 0..=0x7f {
                let bit = op.index() * SQE_FLAG_VALUES + usize::from(flags);
                assert_eq!(is_set(bit), unfiltered(op).contains(flags));
            }
        }

        let all = PerOpcode::init(|_| FlagSet::ALL);
        let empty = FilterSet::new(all, steps(done), GFP_KERNEL)?;
        // SAFETY: The set is alive, and nobody writes to it.
        assert!(unsafe { (*empty.shared.get()).filters }.is_null());
        Ok(())
    }

    #[test]
    fn last_reference_frees_the_set_in_steps() -> Result {
        let done = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let contents = Steps {
            steps: 5,
            done: done.clone(),
        };
        let mut first = Restriction::new(&Rules::default(), None);

        assert!(first.filters().is_none());
        first.set_filters(FilterSet::new(none(), contents, GFP_KERNEL)?);
        let second = first.clone();
        drop(first.take_filters());
        assert!(first.filters().is_none());
        assert!(second.filters().is_some());
        fsleep(Delta::from_millis(20));
        assert_eq!(done.load(Relaxed), 0);

        drop(second);
        assert_eq!(settle(&done, 5), 5);
        fsleep(Delta::from_millis(20));
        assert_eq!(done.load(Relaxed), 5);
        Ok(())
    }

    /// Checks that a set that is replaced is freed at once, as replacing it may sleep.
    #[test]
    fn replaced_set_is_freed_at_once() -> Result {
        let done = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let steps = |done| Steps { steps: 1, done };
        let mut owner = Restriction::new(&Rules::default(), None);

        owner.set_filters(FilterSet::new(none(), steps(done.clone()), GFP_KERNEL)?);
        owner.set_filters(FilterSet::new(none(), steps(done.clone()), GFP_KERNEL)?);
        assert_eq!(done.load(Relaxed), 1);
        drop(owner);
        assert_eq!(settle(&done, 2), 2);
        Ok(())
    }

    /// Contents that note the task that releases them.
    struct Noted(Arc<Atomic<usize>>);

    impl Contents for Noted {
        fn release_step(&mut self) -> bool {
            self.0.store(Task::current_raw() as usize, Relaxed);
            false
        }
    }

    /// Checks that dropping a reference, which is allowed in any context, leaves the contents to
    /// another task, and [`FilterSet::put`] does not.
    #[test]
    fn dropped_reference_leaves_the_contents_to_a_worker() -> Result {
        let releaser = Arc::new(Atomic::new(0usize), GFP_KERNEL)?;
        let this = Task::current_raw() as usize;

        let set = FilterSet::new(none(), Noted(releaser.clone()), GFP_KERNEL)?;
        FilterSet::put(set);
        assert_eq!(releaser.load(Relaxed), this);

        releaser.store(0, Relaxed);
        drop(FilterSet::new(none(), Noted(releaser.clone()), GFP_KERNEL)?);
        for _ in 0..200 {
            if releaser.load(Relaxed) != 0 {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        assert!(releaser.load(Relaxed) != 0);
        assert!(releaser.load(Relaxed) != this);
        Ok(())
    }
}
