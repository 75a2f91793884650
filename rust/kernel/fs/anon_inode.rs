// SPDX-License-Identifier: GPL-2.0

//! Files with an anonymous inode: file descriptors that represent an object of the kernel.
//!
//! A kind of file is a type that implements [`AnonFile`]. [`create`] creates a file of this kind,
//! which owns its data, and [`with`] finds the data of the file behind a file descriptor. User
//! space can only keep the files and pass them on: they cannot be read, written or mapped.
//!
//! All kinds share one table of operations, whose address distinguishes these files from others.
//! The kinds are distinguished by their [`TypeId`] and by the module that implements them. A table
//! for each kind would not work: the compiler may merge constants that look the same, or make
//! several copies of one, so that an address proves nothing.
//!
//! The shared table has no owner, so each file holds its own reference to the module that
//! implements its kind. `release` drops this reference after it has dropped the data. `release` is
//! part of the `kernel` crate and always built in, so that it can still return when the module is
//! unloaded at that moment.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h)

use crate::{
    bindings,
    error::from_err_ptr,
    fs::file::{
        File,
        LocalFile, //
    },
    module::this_module,
    prelude::*,
    sync::aref::ARef,
    types::ForeignOwnable, //
};
use core::{
    any::TypeId,
    ptr::NonNull, //
};

/// A kind of file with an anonymous inode.
///
/// An open file keeps the module loaded that implements this trait for its kind: [`vtable`] sets
/// `OwnerModule`.
#[vtable]
pub trait AnonFile: Sized + Send + Sync + 'static {
    /// The name of the file in `/proc/<pid>/fd`, for instance `"[eventfd]"`.
    const NAME: &'static CStr;

    /// The data that the file owns.
    type Data: ForeignOwnable + Send + Sync;
}

/// A reference to a module, which keeps the module loaded. For built-in code, which has no module,
/// it refers to none.
///
/// # Invariants
///
/// The module is null, or this object owns one count of its `refcnt`.
struct ModuleRef(*mut bindings::module);

impl ModuleRef {
    /// Takes a reference to a module. Returns [`None`] if the module is being unloaded.
    fn try_get(module: &ThisModule) -> Option<Self> {
        // SAFETY: A `ThisModule` is null or points to the module that contains the code which names
        // it. That code is running, so the module has not been freed.
        let got = unsafe { bindings::try_module_get(module.as_ptr()) };

        // Not `then_some()`: on failure, that would create a reference and drop it, which would put
        // a count that this function does not own.
        // INVARIANT: `try_module_get` succeeded, so that the object owns a count unless there is no
        // module.
        got.then(|| Self(module.as_ptr()))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the module is null or this object owns one of its counts.
        unsafe { bindings::module_put(self.0) };
    }
}

/// The private data of a file.
///
/// # Invariants
///
/// For one `F`, `data` came from `into_foreign` of `F::Data` and is owned by this object, `kind` is
/// the id of `F`, `release` is `release_data::<F>`, and `owner` is `F::OwnerModule`.
struct Private {
    kind: TypeId,
    data: *mut c_void,
    release: unsafe fn(*mut c_void),
    /// Fields are dropped after [`Private::drop`] has run, which calls code of this module.
    owner: ModuleRef,
}

impl Private {
    /// Creates the private data of a file of kind `F`.
    ///
    /// # Errors
    ///
    /// [`ENOENT`], as in C, if the module that implements `F` is being unloaded.
    fn new<F: AnonFile>(data: F::Data) -> Result<Self> {
        let owner = ModuleRef::try_get(this_module::<F::OwnerModule>()).ok_or(ENOENT)?;

        // INVARIANT: All fields are for the same `F`.
        Ok(Self {
            kind: TypeId::of::<F>(),
            data: data.into_foreign(),
            release: release_data::<F>,
            owner,
        })
    }

    /// Returns whether this is the private data of a file of kind `F`.
    fn is_of<F: AnonFile>(&self) -> bool {
        // The id of a type is made from the name of its crate and from its path. Modules may
        // contain crates of the same name, so the id alone is not enough.
        self.kind == TypeId::of::<F>() && self.owner.0 == this_module::<F::OwnerModule>().as_ptr()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, `release` is for this data, which this object owns and to
        // which nobody else has access any more.
        unsafe { (self.release)(self.data) };
    }
}

/// Drops data of a file of kind `F`.
///
/// # Safety
///
/// `data` must have come from `into_foreign` of `F::Data`, and must not be borrowed or used again.
unsafe fn release_data<F: AnonFile>(data: *mut c_void) {
    // SAFETY: The caller guarantees that the data came from `into_foreign` and is not used any
    // more.
    drop(unsafe { <F::Data as ForeignOwnable>::from_foreign(data) });
}

/// A table of file operations.
struct Operations(bindings::file_operations);

// SAFETY: The table is never written to.
unsafe impl Sync for Operations {}

/// The operations of all files that [`create`] creates, and of no others.
///
/// There is no `owner`: this code is always built in, and [`Private`] has the reference to the
/// module that implements the file's kind.
static OPERATIONS: Operations = Operations(bindings::file_operations {
    release: Some(release),
    ..pin_init::zeroed()
});

/// Drops what a file owns: the `release` operation.
///
/// # Safety
///
/// [`create_file`] must have created `file`, and `file` must be about to be freed.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // The data is dropped first, which runs code of a module, and then the reference to that
    // module. From then on, the module may be unloaded: no code of it is returned to from here.
    // SAFETY: `create_file` gave the file a pointer from `KBox::into_raw`, which has not changed
    // since. Nobody else has access to the file any more.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<Private>()) });
    0
}

/// Creates a file that owns `data`.
///
/// The data is dropped when the last reference to the file is gone, or at once on errors. It is
/// always dropped in process context, whatever the context in which that reference is dropped. The
/// module that implements `F` stays loaded until then. `flags` may contain `O_ACCMODE` and
/// `O_NONBLOCK`; others are ignored (see [`flags`](super::file::flags)). May sleep.
///
/// C counterpart: `anon_inode_create_getfile()`.
///
/// # Errors
///
/// - [`ENOMEM`] if memory is short.
/// - [`ENFILE`] if there are too many open files in the system.
/// - [`ENOENT`] if the module that implements `F` is being unloaded.
/// - The error of a security module that refuses the inode.
///
/// # Examples
///
/// ```
/// use kernel::{
///     fs::anon_inode::{
///         self,
///         AnonFile, //
///     },
///     sync::Arc, //
/// };
///
/// /// A file that represents a number.
/// struct Number;
///
/// #[vtable]
/// impl AnonFile for Number {
///     const NAME: &'static CStr = c"[number]";
///
///     type Data = Arc<u32>;
/// }
///
/// let file = anon_inode::create::<Number>(Arc::new(7, GFP_KERNEL)?, 0)?;
/// drop(file);
///
/// // A descriptor without a file is refused.
/// let number = anon_inode::with::<Number, _>(u32::MAX, |number| *number);
/// assert_eq!(number, Err(EBADF));
/// # Ok::<(), Error>(())
/// ```
pub fn create<F: AnonFile>(data: F::Data, flags: u32) -> Result<ARef<File>> {
    let private = KBox::new(Private::new::<F>(data)?, GFP_KERNEL_ACCOUNT)?;

    create_file(F::NAME, private, flags)
}

/// Creates a file of any kind.
fn create_file(name: &CStr, private: KBox<Private>, flags: u32) -> Result<ARef<File>> {
    let private = KBox::into_raw(private);

    // SAFETY:
    // - The name is a valid string, which is copied.
    // - The table is static, and made for files whose private data is such a pointer.
    // - The inode need not inherit a security context from another one.
    // The cast keeps the bits of the flags.
    let file = from_err_ptr(unsafe {
        bindings::anon_inode_create_getfile(
            name.as_char_ptr(),
            &raw const OPERATIONS.0,
            private.cast(),
            flags as c_int,
            core::ptr::null(),
        )
    });

    match file {
        // SAFETY:
        // - If there is no error, this is a valid file, hence not null, and its only reference
        //   belongs to this function.
        // - The file is new and has no descriptor, so nobody uses it through `fdget_pos`.
        Ok(file) => Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file).cast::<File>()) }),
        Err(error) => {
            // SAFETY: The pointer came from `KBox::into_raw`, and without a file nobody else has
            // it.
            drop(unsafe { KBox::from_raw(private) });
            Err(error)
        }
    }
}

/// Returns the private data of a file that [`create`] created, or `None` for other files.
fn private(file: &LocalFile) -> Option<&Private> {
    // SAFETY: The file is valid, and its operations do not change once it has a descriptor.
    let operations = unsafe { (*file.as_ptr()).f_op };

    if !core::ptr::eq(operations, &raw const OPERATIONS.0) {
        return None;
    }
    // SAFETY: The table is private to this module, so `create_file` created the file and gave it
    // this pointer. The pointer does not change until `release`, which is not called while there is
    // a reference to the file, and nobody changes the data that it points to.
    Some(unsafe { &*(*file.as_ptr()).private_data.cast::<Private>() })
}

/// Calls `f` with the data of the file behind a descriptor of the current task, and returns the
/// result.
///
/// The file is kept open meanwhile. `f` may sleep. If another task closes the descriptor meanwhile,
/// the data is dropped after `f` returns.
///
/// # Errors
///
/// [`EBADF`] if there is no such file, or if it was not created by [`create`] with the same `F`.
pub fn with<F: AnonFile, R>(
    fd: u32,
    f: impl FnOnce(<F::Data as ForeignOwnable>::Borrowed<'_>) -> R,
) -> Result<R> {
    let file = LocalFile::fget(fd)?;
    let private = private(&file).ok_or(EBADF)?;

    if !private.is_of::<F>() {
        return Err(EBADF);
    }
    // SAFETY: `is_of` has shown that the type invariants hold for `F`, so that the data came from
    // `into_foreign` of `F::Data`. It goes back to `from_foreign` when the private data is dropped,
    // which is after the reference to the file is dropped, and that outlives the call.
    Ok(f(unsafe {
        <F::Data as ForeignOwnable>::borrow(private.data)
    }))
}

#[macros::kunit_tests(rust_kernel_anon_inode)]
mod tests {
    use super::*;
    use crate::{
        error::to_result,
        fs::file::{
            flags::{
                O_ACCMODE,
                O_CLOEXEC,
                O_NONBLOCK,
                O_RDWR, //
            },
            FileDescriptorReservation, //
        },
        sync::{
            atomic::{
                Atomic,
                Relaxed, //
            },
            Arc, //
        },
        time::{
            delay::fsleep,
            Delta, //
        }, //
    };
    #[cfg(CONFIG_MODULE_UNLOAD)]
    use crate::{
        types::Opaque,
        ModuleMetadata, //
    };

    /// Data that, when it is dropped, stores the result of `watch`.
    struct Noted {
        note: Arc<Atomic<i32>>,
        watch: fn() -> i32,
    }

    impl Noted {
        /// Returns the data of a file, and its note, which is zero.
        fn new(watch: fn() -> i32) -> Result<(KBox<Self>, Arc<Atomic<i32>>)> {
            let note = Arc::new(Atomic::new(0), GFP_KERNEL)?;
            let data = Noted {
                note: note.clone(),
                watch,
            };

            Ok((KBox::new(data, GFP_KERNEL)?, note))
        }
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            self.note.store((self.watch)(), Relaxed);
        }
    }

    /// Waits up to two seconds until `value` returns `expected`. Returns its last result.
    ///
    /// Files that a kernel thread closes are released by a work item.
    fn settle(value: impl Fn() -> i32, expected: i32) -> i32 {
        for _ in 0..200 {
            if value() == expected {
                break;
            }
            fsleep(Delta::from_millis(10));
        }
        value()
    }

    /// A kind of file of built-in code.
    struct BuiltIn;

    #[vtable]
    impl AnonFile for BuiltIn {
        const NAME: &'static CStr = c"[built in]";

        type Data = KBox<Noted>;
    }

    #[test]
    fn data_is_dropped_with_the_last_reference() -> Result {
        let (data, note) = Noted::new(|| 1)?;
        let file = create::<BuiltIn>(data, 0)?;
        let other = file.clone();

        drop(file);
        fsleep(Delta::from_millis(20));
        assert_eq!(note.load(Relaxed), 0);
        drop(other);
        assert_eq!(settle(|| note.load(Relaxed), 1), 1);
        Ok(())
    }

    /// A file has the flags that are its own, and not those of a descriptor.
    #[test]
    fn file_has_its_flags() -> Result {
        let flags = O_RDWR | O_NONBLOCK | O_CLOEXEC;
        let (data, _) = Noted::new(|| 1)?;
        let file = create::<BuiltIn>(data, flags)?;

        assert_eq!(
            file.flags() & (O_ACCMODE | O_NONBLOCK | O_CLOEXEC),
            O_RDWR | O_NONBLOCK
        );
        Ok(())
    }

    /// Another kind of file, with data of the same type.
    struct Other;

    #[vtable]
    impl AnonFile for Other {
        const NAME: &'static CStr = c"[built in]";

        type Data = KBox<Noted>;
    }

    /// Returns what `f` returns for a descriptor that refers to `file` meanwhile.
    fn with_descriptor<R>(file: ARef<File>, f: impl FnOnce(u32) -> R) -> Result<R> {
        let reserved = FileDescriptorReservation::get_unused_fd_flags(O_CLOEXEC)?;
        let fd = reserved.reserved_fd();

        reserved.fd_install(file);
        let result = f(fd);
        // SAFETY: The descriptor refers to the file above, and nobody else knows it.
        to_result(unsafe { bindings::close_fd(fd) })?;
        Ok(result)
    }

    /// A descriptor that is reserved has no file.
    #[test]
    fn reserved_descriptor_is_refused() -> Result {
        let reserved = FileDescriptorReservation::get_unused_fd_flags(O_CLOEXEC)?;

        assert_eq!(
            with::<BuiltIn, _>(reserved.reserved_fd(), |_| ()),
            Err(EBADF)
        );
        Ok(())
    }

    #[test]
    fn file_of_another_type_is_refused() -> Result {
        let (data, note) = Noted::new(|| 1)?;
        let file = create::<BuiltIn>(data, 0)?;
        let (itself, other) = with_descriptor(file, |fd| {
            (
                with::<BuiltIn, _>(fd, |noted| noted.note.load(Relaxed)),
                with::<Other, _>(fd, |noted| noted.note.load(Relaxed)),
            )
        })?;

        assert_eq!((itself, other), (Ok(0), Err(EBADF)));
        assert_eq!(settle(|| note.load(Relaxed), 1), 1);
        Ok(())
    }

    /// The operations of files that somebody else creates, with data that looks like ours.
    static FOREIGN: Operations = Operations(bindings::file_operations {
        release: Some(release),
        ..pin_init::zeroed()
    });

    #[test]
    fn file_with_other_operations_is_refused() -> Result {
        let (data, note) = Noted::new(|| 1)?;
        let file = create::<BuiltIn>(data, 0)?;

        // SAFETY: The file has no descriptor yet, so that nobody else uses it. The table is static,
        // and releases the data as the other one does.
        unsafe { (*file.as_ptr()).f_op = &raw const FOREIGN.0 };
        let got = with_descriptor(file, |fd| with::<BuiltIn, _>(fd, |_| ()))?;

        assert_eq!(got, Err(EBADF));
        assert_eq!(settle(|| note.load(Relaxed), 1), 1);
        Ok(())
    }

    /// A module that is not loaded, but has a reference count like a loaded one.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    struct Pretended(Opaque<bindings::module>);

    // SAFETY: Its count is atomic, and its state only changes while no file refers to it.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    unsafe impl Sync for Pretended {}

    #[cfg(CONFIG_MODULE_UNLOAD)]
    static PRETENDED: Pretended = Pretended(Opaque::zeroed());

    #[cfg(CONFIG_MODULE_UNLOAD)]
    impl Pretended {
        /// Returns the number of references.
        fn count() -> i32 {
            // SAFETY: The module is a static; the field is aligned, and atomic for C as well.
            unsafe { Atomic::from_ptr(&raw mut (*PRETENDED.0.get()).refcnt.counter) }.load(Relaxed)
        }

        /// Sets the state of the module, and the number of references to one, as a loaded module
        /// has.
        fn reset(state: bindings::module_state) {
            // SAFETY: The module is a static, and no file refers to it.
            unsafe {
                (*PRETENDED.0.get()).state = state;
                (*PRETENDED.0.get()).refcnt.counter = 1;
            }
        }
    }

    #[cfg(CONFIG_MODULE_UNLOAD)]
    impl ModuleMetadata for Pretended {
        const NAME: &'static CStr = c"pretended";

        // SAFETY: Everything that has this owner is part of these tests, which keep the static.
        const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(PRETENDED.0.get()) };
    }

    /// A kind of file of a module.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    struct Modular;

    #[cfg(CONFIG_MODULE_UNLOAD)]
    #[vtable]
    impl AnonFile for Modular {
        const NAME: &'static CStr = c"[modular]";

        type Data = KBox<Noted>;
        type OwnerModule = Pretended;
    }

    /// The reference is taken with the file, and put after the data was dropped.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    #[test]
    fn file_keeps_its_module_loaded() -> Result {
        let (data, note) = Noted::new(Pretended::count)?;

        Pretended::reset(bindings::module_state_MODULE_STATE_LIVE);
        let file = create::<Modular>(data, 0)?;
        let count = Pretended::count();
        drop(file);

        assert_eq!(count, 2);
        assert_eq!(settle(Pretended::count, 1), 1);
        assert_eq!(note.load(Relaxed), 2);
        Ok(())
    }

    /// Modules may contain crates of the same name, whose types then have the same ids.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    #[test]
    fn type_of_another_module_is_another_one() -> Result {
        let (data, _) = Noted::new(|| 1)?;

        Pretended::reset(bindings::module_state_MODULE_STATE_LIVE);
        let mut private = Private::new::<Modular>(data)?;

        assert!(private.is_of::<Modular>());
        assert!(!private.is_of::<BuiltIn>());
        private.kind = TypeId::of::<BuiltIn>();
        assert!(!private.is_of::<BuiltIn>());
        Ok(())
    }

    /// No file can be created for a module that is being unloaded, and the data is dropped.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    #[test]
    fn unloading_module_creates_no_files() -> Result {
        let (data, note) = Noted::new(|| 1)?;

        Pretended::reset(bindings::module_state_MODULE_STATE_GOING);
        let file = create::<Modular>(data, 0);

        assert!(matches!(file, Err(error) if error == ENOENT));
        assert_eq!(Pretended::count(), 1);
        assert_eq!(note.load(Relaxed), 1);
        Ok(())
    }
}
