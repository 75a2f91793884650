// SPDX-License-Identifier: GPL-2.0

//! Pages that others may read and write at any time.
//!
//! User space, devices and other parts of the kernel can access such a page while Rust code uses
//! it. So a [`SharedPage`] never gives a reference to its bytes, or a slice of them: bytes are
//! copied to it through a raw pointer, by a function of C.

use crate::bindings;
use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A page that others may access at any time, such as one of user space.
///
/// Several objects may refer to the same page.
///
/// # Invariants
///
/// For the duration of `'a`, `page` is valid, the kernel may write to it, and nobody has a
/// reference to its bytes.
#[derive(Clone, Copy)]
pub struct SharedPage<'a> {
    page: NonNull<bindings::page>,
    owner: PhantomData<&'a bindings::page>,
}

// SAFETY: A page is not tied to a task.
unsafe impl Send for SharedPage<'_> {}

// SAFETY: This object is constant.
unsafe impl Sync for SharedPage<'_> {}

impl<'a> SharedPage<'a> {
    /// Wraps a page that somebody else keeps.
    ///
    /// # Safety
    ///
    /// For the duration of `'a`:
    ///
    /// - `page` must be valid.
    /// - The kernel may write to the page. If it belongs to user space, it must be pinned for
    ///   writing.
    /// - Nobody may have a reference to its bytes.
    #[inline]
    pub unsafe fn from_raw(page: NonNull<bindings::page>) -> Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        Self {
            page,
            owner: PhantomData,
        }
    }

    /// Copies `len` bytes from `src` to the page, from `offset` on.
    ///
    /// Others may write to both meanwhile, and the two may overlap: then the result may be any
    /// mixture of old and new bytes.
    ///
    /// May be called in any context. Does not sleep.
    ///
    /// # Safety
    ///
    /// - `src` must be valid for reads of `len` bytes by C functions.
    /// - `offset + len` must be at most [`PAGE_SIZE`](super::PAGE_SIZE).
    #[inline]
    pub unsafe fn write_raw(self, src: *const u8, offset: usize, len: usize) {
        // SAFETY: By the type invariants, the page is valid.
        let dst = unsafe { bindings::kmap_local_page(self.page.as_ptr()) };

        // This calls C's function and none of `core`, since user space may access the bytes
        // meanwhile. In C, such an access is like a volatile one; in Rust, it would be a data race.
        // The two may overlap, if user space sent a packet from the page that it is now copied to,
        // which rules out `memcpy`.
        //
        // SAFETY:
        // - The caller guarantees that `src` is valid for reads of `len` bytes.
        // - The page is mapped. By the type invariants, it may be written to and there are no
        //   references to its bytes. The caller guarantees that the `len` bytes from `offset` on
        //   are in it.
        unsafe {
            bindings::memmove(
                dst.cast::<u8>().wrapping_add(offset).cast(),
                src.cast(),
                len,
            )
        };

        // SAFETY: This is the address that `kmap_local_page` returned. Nothing was mapped after it.
        unsafe { bindings::kunmap_local(dst) };
    }
}
