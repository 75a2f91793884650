// SPDX-License-Identifier: GPL-2.0

//! Memory that the kernel and user space share.
//!
//! A [`Region`] is either allocated by the kernel and mapped by user space, or provided by user
//! space and pinned. User space may write to it at any time, so there are no references into it.
//! Each access copies one value through a raw pointer, and counts as a marked access (such as
//! `READ_ONCE`) in the kernel's memory model.
//!
//! C finds the region that user space wants to map: see `io_mmap_get_region`.
//!
//! C header: [`io_uring/memmap.h`](srctree/io_uring/memmap.h)

use super::account::Account;
use crate::{
    bindings,
    error::to_result,
    page::PAGE_SIZE,
    prelude::*,
    sync::atomic::{
        atomic_load,
        atomic_store,
        Acquire,
        Atomic,
        Relaxed,
        Release, //
    },
    transmute::{
        AsBytes,
        FromBytes, //
    },
    types::Opaque, //
};
use core::{
    marker::PhantomData,
    mem::{
        offset_of,
        size_of, //
    }, //
};

/// A description of a region by user space: `struct io_uring_region_desc`, 64 bytes.
///
/// C header: [`include/uapi/linux/io_uring.h`](srctree/include/uapi/linux/io_uring.h)
///
/// # Examples
///
/// ```
/// use kernel::{
///     io_uring::region::RegionDesc,
///     transmute::FromBytes, //
/// };
///
/// let mut bytes = [0u8; 64];
/// bytes[8..16].copy_from_slice(&8192u64.to_ne_bytes()); // size
///
/// let desc = RegionDesc::from_bytes_copy(&bytes).ok_or(EINVAL)?;
/// assert_eq!(desc.size(), 8192);
/// assert!(!desc.is_user_provided());
/// # Ok::<(), Error>(())
/// ```
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct RegionDesc(bindings::io_uring_region_desc);

const _: () = {
    assert!(size_of::<RegionDesc>() == 64);
    assert!(offset_of!(bindings::io_uring_region_desc, size) == 8);
    assert!(offset_of!(bindings::io_uring_region_desc, flags) == 16);
    assert!(offset_of!(bindings::io_uring_region_desc, mmap_offset) == 24);
    assert!(offset_of!(bindings::io_uring_region_desc, __resv) == 32);
};

// SAFETY: All fields are integers, for which every bit pattern is valid.
unsafe impl FromBytes for RegionDesc {}

// SAFETY: The fields leave no padding: 8 + 8 + 4 + 4 + 8 + 4 * 8 == 64.
unsafe impl AsBytes for RegionDesc {}

impl RegionDesc {
    /// Creates the description of a region of `size` bytes that the kernel allocates, for unit
    /// tests.
    #[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
    pub fn of_size(size: u64) -> Self {
        Self(bindings::io_uring_region_desc {
            size,
            ..pin_init::zeroed()
        })
    }

    /// Returns the region's size in bytes, which is not validated.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Returns whether user space provides the memory: `IORING_MEM_REGION_TYPE_USER`.
    pub fn is_user_provided(&self) -> bool {
        self.0.flags & bindings::IORING_MEM_REGION_TYPE_USER != 0
    }
}

/// A piece of memory that the kernel and user space share.
///
/// All offsets are in bytes from the beginning of the region. An access that is not within the
/// region, or not aligned to its own size, does nothing and reads as zero. Offsets are not clamped
/// against speculative execution: compute them by masking positions that user space chose.
///
/// The region itself does not change and may be moved. Mappings of user space outlive it. Must be
/// dropped in process context, where sleeping is allowed.
///
/// C counterpart: `struct io_mapped_region`, see
/// [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h).
///
/// # Invariants
///
/// - `mr` was created by `io_create_region` and belongs to this object, and nobody writes to it.
///   Its pages are charged to the user of `account`. The only pointers to `mr` itself are those
///   that [`Self::as_raw`] returned.
/// - `base` is aligned to the size of a page, and valid for reads and writes of `size` bytes.
/// - There are no references to the memory. It is accessed only by methods of this type, whose
///   accesses are all atomic or volatile, by user space, and by the kernel on behalf of user space,
///   like any other user memory.
#[repr(C)]
pub struct Region {
    mr: Opaque<bindings::io_mapped_region>,
    account: Account,
    base: *mut u8,
    size: usize,
}

// SAFETY: The pages belong to the region and not to the task that created it, and any task may free
// them.
unsafe impl Send for Region {}

// SAFETY: The region is constant. Its memory is accessed only by atomic and volatile accesses,
// which do not race by the kernel's memory model.
unsafe impl Sync for Region {}

impl Region {
    /// Allocates or pins the memory that `desc` describes, and charges the user of `account`. May
    /// sleep.
    ///
    /// If the kernel allocates the memory, this stores `mmap_offset` in `desc`, perhaps even if it
    /// fails. User space maps the region at that offset.
    ///
    /// C counterpart: `io_create_region` in [`io_uring/memmap.c`](srctree/io_uring/memmap.c).
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if reserved fields, the offset or the id are not zero, a flag is unknown, the
    ///   size is zero, or the size or the address is not a multiple of the page size.
    /// - [`EFAULT`] if there is an address and user space does not provide the memory, or the other
    ///   way round; if the memory cannot be pinned; or if the task has no address space.
    /// - [`E2BIG`] if the size exceeds 2^31 - 1 pages, or what a pointer can address.
    /// - [`EOVERFLOW`] if the memory would wrap around, or has too many pages to be pinned.
    /// - [`ENOMEM`] if memory is short or the user would be charged too much.
    /// - The errors of pinning pages.
    pub fn new(account: Account, desc: &mut RegionDesc, mmap_offset: u64) -> Result<Self> {
        // If pointers have 32 bits, C would later truncate the size.
        let size = usize::try_from(desc.size()).map_err(|_| E2BIG)?;

        // Pages are pinned in the current address space, and kernel threads have none.
        if desc.is_user_provided() && current!().mm().is_none() {
            return Err(EFAULT);
        }

        let mut mr: bindings::io_mapped_region = pin_init::zeroed();

        // CAST: C has `unsigned long` for offsets, and truncates them too.
        let mmap_offset = mmap_offset as usize;
        // SAFETY:
        // - The user is null or valid, as `account` has a reference to it.
        // - `mr` and `desc` are valid, and nobody else accesses them; `mr` is all zeroes.
        // - The size fits into a `size_t`.
        // - The task has an address space if one is needed.
        to_result(unsafe {
            bindings::io_create_region(account.user(), &mut mr, &mut desc.0, mmap_offset)
        })?;

        // INVARIANT:
        // - `io_create_region` succeeded, and keeps no pointer to `mr`.
        // - `mr.ptr` maps `mr.nr_pages` whole pages. These are `size` bytes, since only multiples
        //   of the page size are accepted. They are referenced or pinned, and writable.
        // - Nobody in the kernel knows of the memory yet.
        Ok(Self {
            base: mr.ptr.cast(),
            size,
            mr: Opaque::new(mr),
            account,
        })
    }

    /// Returns the region's size in bytes, which is a multiple of the page size.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the region as a C pointer, for mapping it to user space. The pointer is valid until
    /// this object moves or is dropped, and must only be read through.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::io_mapped_region {
        self.mr.get()
    }

    /// Returns the address of a `T` at `offset`, or [`None`] if it is not aligned and within the
    /// region.
    ///
    /// As long as `self` exists, the pointer is aligned and valid for reads and writes of a `T`.
    #[inline]
    fn ptr_at<T>(&self, offset: usize) -> Option<*mut T> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };

        let end = offset.checked_add(size_of::<T>())?;

        if end > self.size || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // By the type invariants, the result is within one allocation.
        Some(self.base.wrapping_add(offset).cast())
    }

    /// Returns `count` entries of `SIZE` bytes each, from `offset` on. Returns [`None`] if `count`
    /// is not a power of two, or if not all entries are aligned and within the region.
    #[inline]
    pub fn entries<const SIZE: usize>(
        &self,
        offset: usize,
        count: u32,
    ) -> Option<Entries<'_, SIZE>> {
        const { assert!(SIZE.is_multiple_of(align_of::<u64>())) };

        let end = SIZE.checked_mul(count as usize)?.checked_add(offset)?;

        if end > self.size || !offset.is_multiple_of(align_of::<u64>()) || !count.is_power_of_two()
        {
            return None;
        }
        // INVARIANT: All of this was just checked.
        Some(Entries {
            base: self.base.wrapping_add(offset).cast(),
            mask: count.wrapping_sub(1),
            region: PhantomData,
        })
    }

    /// Sets `len` bytes from `offset` on to zero, one after the other.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if not all of them are within the region, which then does not change.
    pub fn zero(&self, offset: usize, len: usize) -> Result {
        let end = offset.checked_add(len).ok_or(EINVAL)?;

        if end > self.size {
            return Err(EINVAL);
        }
        for offset in offset..end {
            let byte: *mut u8 = self.ptr_at(offset).ok_or(EINVAL)?;
            // SAFETY: `ptr_at` returns pointers that are valid for writes. By the type invariants,
            // concurrent accesses are marked or like those of user space.
            unsafe { byte.write_volatile(0) };
        }
        Ok(())
    }

    /// Loads a word with acquire ordering: `smp_load_acquire`.
    ///
    /// All that user space wrote before it stored this value with release ordering is visible
    /// afterwards.
    #[inline]
    pub fn load_acquire_u32(&self, offset: usize) -> u32 {
        self.ptr_at(offset).map_or(0, |word: *mut u32| {
            // SAFETY: `ptr_at` returns pointers that are valid and aligned. By the type invariants,
            // concurrent stores are marked or like those of user space.
            unsafe { atomic_load(word, Acquire) }
        })
    }

    /// Stores a word with release ordering: `smp_store_release`.
    ///
    /// If user space loads this value with acquire ordering, then all that the kernel has read and
    /// written before is complete.
    #[inline]
    pub fn store_release_u32(&self, offset: usize, value: u32) {
        if let Some(word) = self.ptr_at(offset) {
            // SAFETY: `ptr_at` returns pointers that are valid and aligned. By the type invariants,
            // concurrent accesses are marked or like those of user space.
            unsafe { atomic_store(word, value, Release) };
        }
    }

    /// Adds to a double word, wrapping around, without ordering: `atomic64_add`.
    ///
    /// This is for statistics. No addition is lost, even if others add at the same time, unless
    /// user space writes to the double word.
    #[inline]
    pub fn add_u64(&self, offset: usize, n: u64) {
        if let Some(word) = self.ptr_at::<u64>(offset) {
            // SAFETY: `ptr_at` returns pointers that are valid and aligned. By the type invariants,
            // concurrent accesses are marked or like those of user space. The reference ends with
            // this statement.
            unsafe { Atomic::from_ptr(word) }.add(n, Relaxed);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY:
        // - By the type invariants, `io_create_region` created the region for this user. The user
        //   is null or valid, as `account` has a reference to it and is dropped later.
        // - Nobody accesses the memory through `self` any more, as that borrows it. Mappings of
        //   user space have references of their own to the pages.
        unsafe { bindings::io_free_region(self.account.user(), self.mr.get()) };
    }
}

/// An array of entries in a region, of `SIZE` bytes each, which are read one by one.
///
/// # Invariants
///
/// For the duration of `'a`, the `mask + 1` entries from `base` on are in the region. Their number
/// is a power of two. `base` and `SIZE` are multiples of eight.
pub struct Entries<'a, const SIZE: usize> {
    base: *const u8,
    mask: u32,
    region: PhantomData<&'a Region>,
}

impl<const SIZE: usize> Entries<'_, SIZE> {
    /// Reads the double word at byte `AT` of an entry once, without ordering. `entry` is taken
    /// modulo the number of entries.
    #[inline]
    pub fn read_u64<const AT: usize>(&self, entry: u32) -> u64 {
        const { assert!(AT.is_multiple_of(8) && AT + 8 <= SIZE) };

        let at = (entry & self.mask) as usize * SIZE + AT;

        // SAFETY: By the type invariants, this is within the region and aligned. By those of
        // `Region`, concurrent stores are marked or like those of user space.
        unsafe { self.base.wrapping_add(at).cast::<u64>().read_volatile() }
    }

    /// Reads the word at byte `AT` of an entry once, as [`Self::read_u64`] reads a double word.
    #[inline]
    pub fn read_u32<const AT: usize>(&self, entry: u32) -> u32 {
        const { assert!(AT.is_multiple_of(4) && AT + 4 <= SIZE) };

        let at = (entry & self.mask) as usize * SIZE + AT;

        // SAFETY: By the type invariants, this is within the region and aligned. By those of
        // `Region`, concurrent stores are marked or like those of user space.
        unsafe { self.base.wrapping_add(at).cast::<u32>().read_volatile() }
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_io_uring_region)]
mod tests {
    use super::*;

    /// Creates a region of a page, in which each byte is `0xff`.
    fn region() -> Result<Region> {
        let size = PAGE_SIZE as u64;
        let region = Region::new(Account::of_nobody(), &mut RegionDesc::of_size(size), 0)?;

        for offset in (0..PAGE_SIZE).step_by(4) {
            region.store_release_u32(offset, u32::MAX);
        }
        Ok(region)
    }

    /// Unit tests run in a kernel thread, which has no user memory.
    #[test]
    fn kernel_thread_cannot_provide_the_memory() {
        let mut desc = RegionDesc::of_size(PAGE_SIZE as u64);

        desc.0.user_addr = PAGE_SIZE as u64;
        desc.0.flags = bindings::IORING_MEM_REGION_TYPE_USER;
        let result = Region::new(Account::of_nobody(), &mut desc, 0);

        assert_eq!(result.err(), Some(EFAULT));
    }

    #[test]
    fn access_outside_of_the_region_does_nothing() -> Result {
        let region = region()?;

        // Outside, partly outside, or not aligned.
        for offset in [PAGE_SIZE, PAGE_SIZE - 2, 2, usize::MAX - 1, usize::MAX - 3] {
            assert_eq!(region.load_acquire_u32(offset), 0);
            region.store_release_u32(offset, 0);
            region.add_u64(offset, 1);
        }
        region.add_u64(PAGE_SIZE - 4, 1);
        for (offset, len) in [
            (PAGE_SIZE - 4, 5),
            (PAGE_SIZE, 1),
            (0, PAGE_SIZE + 1),
            (usize::MAX, 1),
            (1, usize::MAX),
        ] {
            assert_eq!(region.zero(offset, len), Err(EINVAL));
        }
        for offset in (0..PAGE_SIZE).step_by(4) {
            assert_eq!(region.load_acquire_u32(offset), u32::MAX);
        }
        Ok(())
    }

    #[test]
    fn zero_stays_inside_its_range() -> Result {
        let region = region()?;

        region.zero(8, 3)?;
        region.zero(PAGE_SIZE, 0)?;
        assert_eq!(region.load_acquire_u32(4), u32::MAX);
        assert_eq!(
            region.load_acquire_u32(8),
            u32::from_ne_bytes([0, 0, 0, 0xff])
        );
        assert_eq!(region.load_acquire_u32(12), u32::MAX);
        Ok(())
    }

    /// Checks that all entries are in the region and aligned, and that their number is a power of
    /// two, as an index is reduced by a mask.
    #[test]
    fn entries_are_inside_the_region() -> Result {
        const SIZE: usize = 16;
        const MOST: u32 = (PAGE_SIZE / SIZE) as u32;
        let region = region()?;
        let fit = |offset, count| region.entries::<SIZE>(offset, count).is_some();

        assert!(fit(0, MOST) && fit(PAGE_SIZE - SIZE, 1) && fit(8, MOST / 2));
        for (offset, count) in [
            (0, 0),
            (0, 3),
            (0, 2 * MOST),
            (0, u32::MAX),
            (8, MOST),
            (4, 1),
            (PAGE_SIZE, 1),
            (usize::MAX, 1),
        ] {
            assert!(!fit(offset, count));
        }
        let entries = region.entries::<SIZE>(SIZE, 2).ok_or(EINVAL)?;

        region.store_release_u32(2 * SIZE + 8, 7);
        region.store_release_u32(2 * SIZE + 12, 7);
        for entry in [1, 3, u32::MAX] {
            assert_eq!(entries.read_u32::<8>(entry), 7);
            assert_eq!(entries.read_u64::<8>(entry), 7 << 32 | 7);
        }
        Ok(())
    }
}
