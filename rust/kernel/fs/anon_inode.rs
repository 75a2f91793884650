// SPDX-License-Identifier: GPL-2.0

//! Files of anonymous inodes: file descriptors that stand for an object of the kernel.
//!
//! A kind of file is a type that implements [`AnonFile`]. [`create`] makes a file of it, which owns
//! its data, and [`with`] finds the data again behind a file descriptor. Other than to be kept and
//! passed on, the files are of no use to user space: they cannot be read, written or mapped.
//!
//! All kinds share one table of operations, whose address tells these files from others; a
//! [`TypeId`] and the module that implements the kind tell the kinds apart. A table for each kind
//! would not do: the compiler may merge constants that look the same, or have several copies of
//! one, so that an address proves nothing.
//!
//! The shared table has no owner, so each file holds its own reference to the module that
//! implements its kind. `release` puts it after the data is dropped. That function is part of the
//! `kernel` crate and always built in, so that it is there to return to even when the module is
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

/// What a file of an anonymous inode stands for.
///
/// An open file keeps the module loaded that implements this trait for its kind: [`vtable`] sets
/// `OwnerModule`.
#[vtable]
pub trait AnonFile: Sized + Send + Sync + 'static {
    /// What the file is called in `/proc/<pid>/fd`, for instance `"[eventfd]"`.
    const NAME: &'static CStr;

    /// What the file owns.
    type Data: ForeignOwnable + Send + Sync;
}

/// A reference to a module, which keeps the module loaded. Code that is built in has no module, and
/// a reference to none.
///
/// # Invariants
///
/// The module is null, or this object owns one count of its `refcnt`.
struct ModuleRef(*mut bindings::module);

impl ModuleRef {
    /// Takes a reference to a module. Returns [`None`] if the module is being unloaded.
    fn try_get(module: &ThisModule) -> Option<Self> {
        // SAFETY: A `ThisModule` is null or points to the module that the code which names it is
        // part of. That code is running, so the module has not been freed.
        let got = unsafe { bindings::try_module_get(module.as_ptr()) };

        // Not `then_some()`, which would make one and drop it, and so put a count that is not ours.
        // INVARIANT: `try_module_get` succeeded, so that a count is ours unless there is no module.
        got.then(|| Self(module.as_ptr()))
    }
}

impl Drop for ModuleRef {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the module is null or one of its counts is ours.
        unsafe { bindings::module_put(self.0) };
    }
}

/// The private data of a file.
///
/// # Invariants
///
/// `data` came from `into_foreign` of `F::Data`, and is owned by this object, for an `F` of which
/// `kind` is the id, `release` is `release_data::<F>`, and `owner` is `F::OwnerModule`.
struct Private {
    kind: TypeId,
    data: *mut c_void,
    release: unsafe fn(*mut c_void),
    /// Fields are dropped after [`Private::drop`] has run, which calls code of this module.
    owner: ModuleRef,
}

impl Private {
    /// Makes the private data of a file of kind `F`.
    ///
    /// # Errors
    ///
    /// [`ENOENT`], as in C, if the module that implements `F` is being unloaded.
    fn new<F: AnonFile>(data: F::Data) -> Result<Self> {
        let owner = ModuleRef::try_get(this_module::<F::OwnerModule>()).ok_or(ENOENT)?;

        // INVARIANT: All of it is of the same `F`.
        Ok(Self {
            kind: TypeId::of::<F>(),
            data: data.into_foreign(),
            release: release_data::<F>,
            owner,
        })
    }

    /// Returns whether this is the private data of a file of kind `F`.
    fn is_of<F: AnonFile>(&self) -> bool {
        // The id of a type is made from the names of its crate and of its path. Modules may have
        // crates of the same name, so the id alone is not enough.
        self.kind == TypeId::of::<F>() && self.owner.0 == this_module::<F::OwnerModule>().as_ptr()
    }
}

impl Drop for Private {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, `release` is for this data, which we own and which nobody
        // gets at any more.
        unsafe { (self.release)(self.data) };
    }
}

/// Drops data of files of kind `F`.
///
/// # Safety
///
/// `data` must have come from `into_foreign` of `F::Data`, and not be borrowed or used again.
unsafe fn release_data<F: AnonFile>(data: *mut c_void) {
    // SAFETY: The caller guarantees it.
    drop(unsafe { <F::Data as ForeignOwnable>::from_foreign(data) });
}

/// A table of file operations.
struct Operations(bindings::file_operations);

// SAFETY: The table is never written to.
unsafe impl Sync for Operations {}

/// The operations of all files that [`create`] makes, and of no others.
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
/// `file` must have been made by [`create_file`] and be about to be freed.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // The data is dropped first, which runs code of a module, and the reference to that module
    // afterwards. It may be unloaded from then on; nothing of it is returned to from here.
    // SAFETY: `create_file` gave the file a pointer from `KBox::into_raw`, which was not changed
    // since; nobody else has the file any more.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<Private>()) });
    0
}

/// Creates a file that owns `data`.
///
/// The data is dropped when the last reference to the file is gone, always in process context,
/// whatever context that reference is dropped in; or right away on errors. The module that
/// implements `F` stays loaded until then. Only `O_ACCMODE` and `O_NONBLOCK` of `flags` count (see
/// [`flags`](super::file::flags)). May sleep.
///
/// C counterpart: `anon_inode_create_getfile()`.
///
/// # Errors
///
/// - [`ENOMEM`] if memory is short.
/// - [`ENFILE`] if there are too many open files in the system.
/// - [`ENOENT`] if the module that implements `F` is being unloaded.
/// - What a security module refuses the inode with.
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
/// /// A file that stands for a number.
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
/// // What is no open file is no number.
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
    // - The table is static, and fit for files whose private data is such a pointer.
    // - No inode to inherit a security context from is needed.
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
        // - What is no error is a valid file, hence not null, of which the one reference is ours.
        // - The file is new and has no descriptor, so nobody is in `fdget_pos` with it.
        Ok(file) => Ok(unsafe { ARef::from_raw(NonNull::new_unchecked(file).cast::<File>()) }),
        Err(error) => {
            // SAFETY: The pointer came from `KBox::into_raw`, and without a file nobody has it.
            drop(unsafe { KBox::from_raw(private) });
            Err(error)
        }
    }
}

/// Returns the private data of a file that [`create`] made, or `None` for other files.
fn private(file: &LocalFile) -> Option<&Private> {
    // SAFETY: The file is valid, and its operations do not change once it has a descriptor.
    let operations = unsafe { (*file.as_ptr()).f_op };

    if !core::ptr::eq(operations, &raw const OPERATIONS.0) {
        return None;
    }
    // SAFETY: The table is private to this module, so `create_file` made the file and gave it this
    // pointer, which stays as it is until `release`. That is not called while there is a reference
    // to the file, and nobody changes what the pointer is to.
    Some(unsafe { &*(*file.as_ptr()).private_data.cast::<Private>() })
}

/// Calls `f` with the data of the file behind a descriptor of the current task, and returns what it
/// returns.
///
/// The file is kept open meanwhile. `f` may sleep. If another task closes the descriptor meanwhile,
/// the data is dropped after `f` returns.
///
/// # Errors
///
/// [`EBADF`] if there is no such file, or if it was not made by [`create`] with the same `F`.
pub fn with<F: AnonFile, R>(
    fd: u32,
    f: impl FnOnce(<F::Data as ForeignOwnable>::Borrowed<'_>) -> R,
) -> Result<R> {
    let file = LocalFile::fget(fd)?;
    let private = private(&file).ok_or(EBADF)?;

    if !private.is_of::<F>() {
        return Err(EBADF);
    }
    // SAFETY: By the type invariants, of which `is_of` has shown that they are about `F`, the data
    // came from `into_foreign` of `F::Data`. It goes back to `from_foreign` when the private data
    // is dropped, which is after the reference to the file is, and that outlives the call.
    Ok(f(unsafe {
        <F::Data as ForeignOwnable>::borrow(private.data)
    }))
}

#[macros::kunit_tests(rust_kernel_anon_inode)]
mod tests {
    use super::*;
    use crate::{
        fs::file::{
            flags::O_CLOEXEC,
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

    /// Data that notes what `watch` returns when the data is dropped.
    struct Noted {
        note: Arc<Atomic<i32>>,
        watch: fn() -> i32,
    }

    impl Drop for Noted {
        fn drop(&mut self) {
            self.note.store((self.watch)(), Relaxed);
        }
    }

    /// Waits up to two seconds until `value` returns `expected`, and returns what it returned last.
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

    /// A file of code that is built in.
    struct BuiltIn;

    #[vtable]
    impl AnonFile for BuiltIn {
        const NAME: &'static CStr = c"[built in]";

        type Data = KBox<Noted>;
    }

    #[test]
    fn dropped_with_the_file() -> Result {
        let note = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let data = Noted {
            note: note.clone(),
            watch: || 1,
        };
        let file = create::<BuiltIn>(KBox::new(data, GFP_KERNEL)?, 0)?;
        let other = file.clone();

        drop(file);
        fsleep(Delta::from_millis(20));
        assert_eq!(note.load(Relaxed), 0);
        drop(other);
        assert_eq!(settle(|| note.load(Relaxed), 1), 1);
        Ok(())
    }

    /// A file of other code, with data of the same type.
    struct Other;

    #[vtable]
    impl AnonFile for Other {
        const NAME: &'static CStr = c"[built in]";

        type Data = KBox<Noted>;
    }

    #[test]
    fn of_another_kind_is_none() -> Result {
        let note = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let data = Noted {
            note: note.clone(),
            watch: || 1,
        };
        let file = create::<BuiltIn>(KBox::new(data, GFP_KERNEL)?, 0)?;
        let reserved = FileDescriptorReservation::get_unused_fd_flags(O_CLOEXEC)?;
        let fd = reserved.reserved_fd();

        assert_eq!(with::<BuiltIn, _>(fd, |_| ()), Err(EBADF));
        reserved.fd_install(file);
        let itself = with::<BuiltIn, _>(fd, |noted| noted.note.load(Relaxed));
        let other = with::<Other, _>(fd, |noted| noted.note.load(Relaxed));
        // SAFETY: The descriptor is of the file above, and nobody else knows of it.
        let closed = unsafe { bindings::close_fd(fd) };

        assert_eq!((itself, other, closed), (Ok(0), Err(EBADF), 0));
        assert_eq!(settle(|| note.load(Relaxed), 1), 1);
        Ok(())
    }

    /// A module that is not loaded, but has a count of references like one that is.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    struct Pretended(Opaque<bindings::module>);

    // SAFETY: Its count is atomic, and its state only changes while there are no files of it.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    unsafe impl Sync for Pretended {}

    #[cfg(CONFIG_MODULE_UNLOAD)]
    static PRETENDED: Pretended = Pretended(Opaque::zeroed());

    #[cfg(CONFIG_MODULE_UNLOAD)]
    impl Pretended {
        /// Returns the count of references.
        fn count() -> i32 {
            // SAFETY: The module is a static; the field is aligned, and atomic for C as well.
            unsafe { Atomic::from_ptr(&raw mut (*PRETENDED.0.get()).refcnt.counter) }.load(Relaxed)
        }

        /// Puts the module into a state, with one reference, which is what a loaded module has.
        fn reset(state: bindings::module_state) {
            // SAFETY: The module is a static, and there are no files of it.
            unsafe {
                (*PRETENDED.0.get()).state = state;
                (*PRETENDED.0.get()).refcnt.counter = 1;
            }
        }
    }

    #[cfg(CONFIG_MODULE_UNLOAD)]
    impl ModuleMetadata for Pretended {
        const NAME: &'static CStr = c"pretended";

        // SAFETY: Whatever has this owner is part of these tests, which keep the static.
        const THIS_MODULE: ThisModule = unsafe { ThisModule::from_ptr(PRETENDED.0.get()) };
    }

    /// A file of a module.
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
    fn keeps_its_module() -> Result {
        let note = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let data = Noted {
            note: note.clone(),
            watch: Pretended::count,
        };

        Pretended::reset(bindings::module_state_MODULE_STATE_LIVE);
        let file = create::<Modular>(KBox::new(data, GFP_KERNEL)?, 0)?;
        let count = Pretended::count();
        drop(file);

        assert_eq!(count, 2);
        assert_eq!(settle(Pretended::count, 1), 1);
        assert_eq!(note.load(Relaxed), 2);
        Ok(())
    }

    /// A module on its way out gets no more files, and the data is dropped.
    #[cfg(CONFIG_MODULE_UNLOAD)]
    #[test]
    fn no_files_of_a_module_that_goes() -> Result {
        let note = Arc::new(Atomic::new(0), GFP_KERNEL)?;
        let data = Noted {
            note: note.clone(),
            watch: || 1,
        };

        Pretended::reset(bindings::module_state_MODULE_STATE_GOING);
        let file = create::<Modular>(KBox::new(data, GFP_KERNEL)?, 0);

        assert!(matches!(file, Err(error) if error == ENOENT));
        assert_eq!(Pretended::count(), 1);
        assert_eq!(note.load(Relaxed), 1);
        Ok(())
    }
}
