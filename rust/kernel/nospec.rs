// SPDX-License-Identifier: GPL-2.0

//! Bounds checks that also hold during speculative execution.
//!
//! A bounds check written as a branch does not stop the CPU from executing ahead with an index that
//! is out of range. The functions here also clamp an index that user space chose, before it is used
//! to access an array.
//!
//! C header: [`include/linux/nospec.h`](srctree/include/linux/nospec.h)

use crate::bindings;

/// Checks that `index` is less than `size`, and clamps it against speculative execution.
///
/// Returns [`None`] if `index` is not less than `size`, or if `size` exceeds [`isize::MAX`]: no
/// array has that many elements. For a slice, [`index_in`] is cheaper.
///
/// # Examples
///
/// ```
/// use kernel::nospec::checked_index;
///
/// assert_eq!(checked_index(64, 65), Some(64));
/// assert_eq!(checked_index(65, 65), None);
/// assert_eq!(checked_index(0, 0), None);
/// assert_eq!(checked_index(0, usize::MAX), None);
/// ```
#[inline]
pub fn checked_index(index: usize, size: usize) -> Option<usize> {
    // C's generic `array_index_mask_nospec()` takes the sign of `size - 1 - index` for the borrow
    // of that subtraction. With a larger `size`, it would clamp indices that are in range to zero.
    if index >= size || size > isize::MAX.unsigned_abs() {
        return None;
    }
    // SAFETY: The function has no preconditions: it only computes with its two arguments.
    Some(unsafe { bindings::array_index_nospec(index, size) })
}

/// Checks that `index` is the index of an element of `slice`, and clamps it against speculative
/// execution.
///
/// Returns [`None`] if the slice has no such element.
///
/// # Examples
///
/// ```
/// use kernel::nospec::index_in;
///
/// assert_eq!(index_in(&[7, 8, 9], 2), Some(2));
/// assert_eq!(index_in(&[7, 8, 9], 3), None);
/// assert_eq!(index_in::<u32>(&[], 0), None);
/// ```
#[inline]
pub fn index_in<T>(slice: &[T], index: usize) -> Option<usize> {
    const { assert!(size_of::<T>() != 0) };

    // SAFETY: A slice has at most `isize::MAX` bytes, and each of its elements has at least one.
    unsafe { core::hint::assert_unchecked(slice.len() <= isize::MAX.unsigned_abs()) };

    checked_index(index, slice.len())
}

#[macros::kunit_tests(rust_kernel_nospec)]
mod tests {
    use super::*;

    #[test]
    fn only_indices_in_range_are_returned() {
        const MAX: usize = isize::MAX.unsigned_abs();

        for size in [1, 2, 65, 1 << 16, MAX] {
            assert_eq!(checked_index(0, size), Some(0));
            assert_eq!(checked_index(size - 1, size), Some(size - 1));
            assert_eq!(checked_index(size, size), None);
            assert_eq!(checked_index(usize::MAX, size), None);
        }
        assert_eq!(checked_index(0, 0), None);
    }

    /// Sizes that no array has are refused: with these, C's mask would be wrong on some machines.
    #[test]
    fn sizes_above_isize_max_have_no_valid_index() {
        for size in [1 << (usize::BITS - 1), usize::MAX] {
            for index in [0, 1, size - 1, size] {
                assert_eq!(checked_index(index, size), None);
            }
        }
    }

    #[test]
    fn slice_index_must_be_below_its_length() {
        assert_eq!(index_in(&[7u64, 8, 9], 2), Some(2));
        assert_eq!(index_in(&[7u64, 8, 9], 3), None);
        assert_eq!(index_in::<u64>(&[], 0), None);
    }
}
