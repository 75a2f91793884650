// SPDX-License-Identifier: GPL-2.0

//! Memory of user space that is pinned, so that it can be written to from any context.
//!
//! [`PinnedPages`] holds the pages. User space may access them at any time, so each of them is a
//! [`SharedPage`], to which bytes can only be copied.
//!
//! C headers: [`io_uring/memmap.h`](srctree/io_uring/memmap.h),
//! [`io_uring/rsrc.h`](srctree/io_uring/rsrc.h)

use crate::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    nospec::index_in,
    page::{
        SharedPage,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*, //
};
use core::ptr::{
    null_mut,
    NonNull, //
};

/// Checks that a range of user space can be pinned.
///
/// C counterpart: `io_validate_user_buf_range` in [`io_uring/rsrc.c`](srctree/io_uring/rsrc.c).
///
/// # Errors
///
/// - [`EFAULT`] if `len`, in bytes, is zero, or if `len` or `addr` is not in the address space.
/// - [`EINVAL`] if the range is longer than 1 TiB.
/// - [`EOVERFLOW`] if the range wraps around.
///
/// # Examples
///
/// ```
/// use kernel::io_uring::pinned::validate_range;
///
/// assert_eq!(validate_range(0x10000, 0x1000), Ok(()));
/// assert_eq!(validate_range(0x10000, 0), Err(EFAULT));
/// ```
pub fn validate_range(addr: u64, len: u64) -> Result {
    // SAFETY: The function has no preconditions: it only computes with its two arguments.
    to_result(unsafe { bindings::io_validate_user_buf_range(addr, len) })
}

/// Returns the number of pages that the `len` bytes from `addr` on touch, counted as `io_pin_pages`
/// does.
///
/// # Errors
///
/// - [`EINVAL`] if there are none.
/// - [`EOVERFLOW`] if the range, or its last page, wraps around.
fn count_pages(addr: usize, len: usize) -> Result<usize> {
    let end = addr.checked_add(len).ok_or(EOVERFLOW)?;
    let end = end.checked_add(PAGE_SIZE - 1).ok_or(EOVERFLOW)?;

    match (end >> PAGE_SHIFT).checked_sub(addr >> PAGE_SHIFT) {
        None | Some(0) => Err(EINVAL),
        Some(pages) => Ok(pages),
    }
}

/// Pages of user space, pinned for writing and for an unlimited time.
///
/// These are the pages that were mapped at the time of pinning. They are not charged to anybody:
/// see [`Self::account_pages`]. Must be dropped in process context: this frees pages, and may take
/// long.
///
/// # Invariants
///
/// - `pages` was allocated by `kvmalloc`, belongs to this object, and holds `len` pointers that
///   nobody writes to. `len` is not zero.
/// - Each pointer is to a page of which this object owns one pin.
pub struct PinnedPages {
    pages: NonNull<*mut bindings::page>,
    len: usize,
}

// SAFETY: The pages and their array belong to this object and not to the task that pinned them, and
// any task may unpin them.
unsafe impl Send for PinnedPages {}

// SAFETY: The array is constant.
unsafe impl Sync for PinnedPages {}

impl PinnedPages {
    /// Pins all pages that the `len` bytes from `addr` on in the current address space touch. May
    /// sleep, since it may fault in the pages.
    ///
    /// C counterpart: `io_pin_pages` in [`io_uring/memmap.c`](srctree/io_uring/memmap.c).
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there are no bytes.
    /// - [`EOVERFLOW`] if the range wraps around, or has too many pages.
    /// - [`ENOMEM`] if memory is short.
    /// - [`EFAULT`] if not all of the range is mapped and writable, or the task has no address
    ///   space.
    /// - The errors of `pin_user_pages_fast`.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::io_uring::pinned::PinnedPages;
    ///
    /// assert_eq!(PinnedPages::new(0, 0).err(), Some(EINVAL));
    /// assert_eq!(PinnedPages::new(0x1000, usize::MAX).err(), Some(EOVERFLOW));
    /// ```
    pub fn new(addr: usize, len: usize) -> Result<Self> {
        // C checks the same conditions, but warns if there is nothing to pin.
        count_pages(addr, len)?;

        // Pages are pinned in the current address space, and kernel threads have none.
        if current!().mm().is_none() {
            return Err(EFAULT);
        }

        let mut count: c_int = 0;
        // SAFETY: `count` is a local variable, valid for writes. The task has an address space.
        let pages = from_err_ptr(unsafe { bindings::io_pin_pages(addr, len, &mut count) })?;

        // INVARIANT: `io_pin_pages` succeeded, so that the array has `count` pages, which are all
        // pinned, and `count` is positive. It never succeeds with a null pointer.
        Ok(Self {
            pages: NonNull::new(pages).ok_or(ENOMEM)?,
            // CAST: A positive `int` fits.
            len: count as usize,
        })
    }

    /// Returns the number of pages.
    #[inline]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Returns the pages as a slice of C pointers.
    #[inline]
    fn as_slice(&self) -> &[*mut bindings::page] {
        // SAFETY: By the type invariants, the array holds `len` pointers and nobody writes to it.
        // The allocator never returns more than `isize::MAX` bytes.
        unsafe { core::slice::from_raw_parts(self.pages.as_ptr(), self.len) }
    }

    /// Returns the array of pages as a C pointer, for reading only.
    pub(super) fn as_ptr(&self) -> *mut *mut bindings::page {
        self.pages.as_ptr()
    }

    /// Returns the number of pages to charge: for each run of pages in the same folio, all pages of
    /// that folio once.
    ///
    /// A pin holds a folio as a whole, and a pinned folio does not change its size.
    ///
    /// C counterpart: `io_count_account_pages` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c).
    pub fn account_pages(&self) -> usize {
        let mut last: *mut bindings::folio = null_mut();
        let mut total: usize = 0;

        for &page in self.as_slice() {
            // SAFETY: By the type invariants, the page is valid. As it is pinned, its folio does
            // not change.
            let folio = unsafe { bindings::page_folio(page) };

            if folio != last {
                // SAFETY: `page_folio` returns the valid folio that the page is in.
                let pages = unsafe { bindings::folio_nr_pages(folio) };

                // On overflow, charging fails: nobody can be charged this many pages.
                total = total.saturating_add(pages);
                last = folio;
            }
        }
        total
    }

    /// Returns the page with this index, or [`None`] if there is none.
    ///
    /// The index may come from user space: it is clamped against speculative execution.
    #[inline]
    pub fn get(&self, index: usize) -> Option<SharedPage<'_>> {
        let pages = self.as_slice();
        let page = NonNull::new(*pages.get(index_in(pages, index)?)?)?;

        // SAFETY: By the type invariants, the page is pinned for writing, and it stays pinned while
        // `self` is borrowed. As user space may write to it, nobody has a reference to its bytes.
        Some(unsafe { SharedPage::from_raw(page) })
    }
}

impl Drop for PinnedPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the array holds `len` pages, and this object owns a pin
        // of each. Nobody uses them any more, as each `SharedPage` borrows `self`.
        unsafe { bindings::unpin_user_pages(self.pages.as_ptr(), self.len) };
        // SAFETY: By the type invariants, the array was allocated by `kvmalloc` and belongs to this
        // object.
        unsafe { bindings::kvfree(self.pages.as_ptr().cast()) };
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_io_uring_pinned)]
mod tests {
    use super::*;

    #[test]
    fn every_touched_page_counts() {
        assert_eq!(count_pages(PAGE_SIZE, PAGE_SIZE), Ok(1));
        assert_eq!(count_pages(PAGE_SIZE, PAGE_SIZE + 1), Ok(2));
        assert_eq!(count_pages(PAGE_SIZE + 1, PAGE_SIZE), Ok(2));
        assert_eq!(count_pages(PAGE_SIZE - 1, 2), Ok(2));
        assert_eq!(count_pages(PAGE_SIZE, 0), Err(EINVAL));
    }

    #[test]
    fn wrapping_range_is_refused() {
        assert_eq!(count_pages(1, usize::MAX), Err(EOVERFLOW));
        assert_eq!(count_pages(usize::MAX, 0), Err(EOVERFLOW));
        assert_eq!(count_pages(0, usize::MAX - PAGE_SIZE + 2), Err(EOVERFLOW));
        assert_eq!(
            count_pages(0, usize::MAX - PAGE_SIZE + 1),
            Ok(usize::MAX >> PAGE_SHIFT)
        );
    }

    /// Unit tests run in a kernel thread, which has no user memory.
    #[test]
    fn kernel_thread_cannot_pin() {
        assert!(matches!(
            PinnedPages::new(PAGE_SIZE, PAGE_SIZE),
            Err(error) if error == EFAULT
        ));
        assert!(matches!(
            PinnedPages::new(PAGE_SIZE, 0),
            Err(error) if error == EINVAL
        ));
    }
}
