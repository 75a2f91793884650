// SPDX-License-Identifier: GPL-2.0

//! Bounds checks that hold under speculation.
//!
//! A bounds check written as a branch does not stop the CPU from running ahead with an index that
//! is out of range. An index that user space chose is clamped here before it reaches an array.
//!
//! C header: [`include/linux/nospec.h`](srctree/include/linux/nospec.h)

use crate::bindings;

/// Checks that `index` is below `size`, and clamps it for speculative execution.
///
/// Returns [`None`] if `index` is not below `size`.
///
/// # Examples
///
/// ```
/// use kernel::nospec::checked_index;
///
/// assert_eq!(checked_index(64, 65), Some(64));
/// assert_eq!(checked_index(65, 65), None);
/// assert_eq!(checked_index(0, 0), None);
/// ```
#[inline]
pub fn checked_index(index: usize, size: usize) -> Option<usize> {
    if index >= size {
        return None;
    }
    // SAFETY: The function has no preconditions: it computes on its two arguments alone.
    Some(unsafe { bindings::array_index_nospec(index, size) })
}
