// SPDX-License-Identifier: GPL-2.0

//! Files of anonymous inodes: file descriptors that stand for an object of the kernel.
//!
//! A kind of file is a type that implements [`AnonFile`]. [`create`] makes a file of it, which owns
//! its data, and [`with`] finds the data again behind a file descriptor. Other than to be kept and
//! passed on, the files are of no use to user space: they cannot be read, written or mapped.
//!
//! All kinds share one table of operations, whose address tells these files from others; a
//! [`TypeId`] tells the kinds apart. A table for each kind would not do: the compiler may merge
//! constants that look the same, or have several copies of one, so that an address proves nothing.
//!
//! C header: [`include/linux/anon_inodes.h`](srctree/include/linux/anon_inodes.h)

use crate::{
    bindings,
    error::from_err_ptr,
    fs::file::{
        File,
        LocalFile, //
    },
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
/// For code that is built in: an open file does not keep a module loaded.
pub trait AnonFile: Sized + Send + Sync + 'static {
    /// What the file is called in `/proc/<pid>/fd`, for instance `"[eventfd]"`.
    const NAME: &'static CStr;

    /// What the file owns.
    type Data: ForeignOwnable + Send + Sync;
}

/// The private data of a file.
///
/// # Invariants
///
/// `data` came from `into_foreign` of `F::Data`, and is owned by this object, for an `F` of which
/// `kind` is the id and `release` is `release_data::<F>`.
struct Private {
    kind: TypeId,
    data: *mut c_void,
    release: unsafe fn(*mut c_void),
}

impl Private {
    fn new<F: AnonFile>(data: F::Data) -> Self {
        // INVARIANT: All of it is of the same `F`.
        Self {
            kind: TypeId::of::<F>(),
            data: data.into_foreign(),
            release: release_data::<F>,
        }
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
/// This code is always built in, so that there is no owner to count references to.
static OPERATIONS: Operations = Operations(bindings::file_operations {
    release: Some(release),
    ..pin_init::zeroed()
});

/// The `release` operation.
///
/// # Safety
///
/// `file` must have been made by [`create_file`] and be about to be freed.
unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
    // SAFETY: `create_file` gave the file a pointer from `KBox::into_raw`, which was not changed
    // since; nobody else has the file any more.
    drop(unsafe { KBox::from_raw((*file).private_data.cast::<Private>()) });
    0
}

/// Creates a file that owns `data`.
///
/// The data is dropped when the last reference to the file is gone, always in process context,
/// whatever context that reference is dropped in; or right away on errors. Of `flags`, `O_ACCMODE`
/// and `O_NONBLOCK` count (see [`flags`](super::file::flags)). May sleep.
///
/// C counterpart: `anon_inode_create_getfile()`.
///
/// # Errors
///
/// - [`ENOMEM`] if memory is short.
/// - [`ENFILE`] if there are too many open files in the system.
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
    let private = KBox::new(Private::new::<F>(data), GFP_KERNEL_ACCOUNT)?;

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

/// The private data of a file that [`create`] made, or `None` for other files.
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
/// The file is kept open meanwhile.
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

    if private.kind != TypeId::of::<F>() {
        return Err(EBADF);
    }
    // SAFETY: By the type invariants, the data came from `into_foreign` of `F::Data`. It goes back
    // to `from_foreign` when the private data is dropped, which is after the reference to the file
    // is, and that outlives the call.
    Ok(f(unsafe {
        <F::Data as ForeignOwnable>::borrow(private.data)
    }))
}
