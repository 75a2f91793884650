// SPDX-License-Identifier: GPL-2.0

//! Memory that the kernel and user space share.
//!
//! A [`Region`] is either allocated by the kernel and mapped by user space, or provided by user
//! space and pinned. User space may write to it at any time. Therefore there are no references into
//! it: each access copies one value, by a raw pointer, and counts as marked (`READ_ONCE` and its
//! kin) in the kernel's memory model.
//!
//! How user space finds a region to map is up to C, see `io_mmap_get_region`.
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

/// A region as user space describes it: `struct io_uring_region_desc`, 64 bytes.
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
    /// Describes a region of `size` bytes that the kernel allocates, in unit tests.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub fn of_size(size: u64) -> Self {
        Self(bindings::io_uring_region_desc {
            size,
            ..pin_init::zeroed()
        })
    }

    /// Returns the region's size in bytes. Not validated.
    pub fn size(&self) -> u64 {
        self.0.size
    }

    /// Returns whether user space provides the memory: `IORING_MEM_REGION_TYPE_USER`.
    pub fn is_user_provided(&self) -> bool {
        self.0.flags & bindings::IORING_MEM_REGION_TYPE_USER != 0
    }
}

/// Memory that the kernel and user space share.
///
/// All offsets are in bytes from its beginning. An access to what is not in the region, or not
/// aligned to its own size, does nothing and reads as zero. Offsets are not clamped for
/// speculative execution: compute them from positions that user space chose by masking those.
///
/// The region itself does not change and may be moved; mappings of user space survive it. Drop it
/// in process context, where sleeping is possible.
///
/// C counterpart: `struct io_mapped_region`, see
/// [`include/linux/io_uring_types.h`](srctree/include/linux/io_uring_types.h).
///
/// # Invariants
///
/// - `mr` was made by `io_create_region`, is ours, and nobody writes to it. Its pages are charged
///   to the user of `account`. Nothing points to `mr` itself but what [`Self::as_raw`] gave out.
/// - `base` is aligned to the size of a page, and valid for reads and writes of `size` bytes.
/// - There are no references to the memory. Whoever accesses it does so by methods of this type,
///   all of whose accesses are atomic or volatile, or is user space, or the kernel on behalf of
///   user space as to any other memory of that.
#[repr(C)]
pub struct Region {
    mr: Opaque<bindings::io_mapped_region>,
    account: Account,
    base: *mut u8,
    size: usize,
}

// SAFETY: The pages belong to the region and not to the task that made it, and any task may free
// them.
unsafe impl Send for Region {}

// SAFETY: The region is constant, and its memory is accessed by atomic and volatile accesses only,
// which by the kernel's memory model do not race.
unsafe impl Sync for Region {}

impl Region {
    /// Allocates or pins the memory that `desc` describes, and charges the user of `account`. May
    /// sleep.
    ///
    /// If the kernel allocates, `mmap_offset` becomes the description's offset, by which user space
    /// is to map the region. That may have happened even if this fails.
    ///
    /// C counterpart: `io_create_region` in [`io_uring/memmap.c`](srctree/io_uring/memmap.c).
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if reserved fields, the offset or the id are not zero, a flag is unknown, the
    ///   size is zero, or the size or the address is not a multiple of a page's size.
    /// - [`EFAULT`] if there is an address and user space does not provide the memory, or the other
    ///   way round; if the memory cannot be pinned; or if the task has no address space.
    /// - [`E2BIG`] if the size is above 2^31 - 1 pages, or what a pointer can address.
    /// - [`EOVERFLOW`] if the memory would wrap around, or has too many pages to be pinned.
    /// - [`ENOMEM`] if memory is short or the user has too much of it.
    /// - What pinning of pages fails with.
    pub fn new(account: Account, desc: &mut RegionDesc, mmap_offset: u64) -> Result<Self> {
        // C would truncate it later, where pointers have 32 bits.
        let size = usize::try_from(desc.size()).map_err(|_| E2BIG)?;

        // Pinning is in the current address space, which kernel threads do not have.
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
        // - `mr.ptr` maps `mr.nr_pages` whole pages, which are `size` bytes, since it admits but
        //   multiples of a page's size. They are referenced or pinned, and writable.
        // - Nobody in the kernel knows of the memory yet.
        Ok(Self {
            base: mr.ptr.cast(),
            size,
            mr: Opaque::new(mr),
            account,
        })
    }

    /// Returns the region's size in bytes, a multiple of a page's.
    #[inline]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Returns the region as C knows it, to let user space map it. Valid until this object moves or
    /// is dropped; must only be read.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::io_mapped_region {
        self.mr.get()
    }

    /// Returns the address of a `T` in the region, if it is inside and aligned.
    ///
    /// As long as `self` exists, the pointer is aligned and valid for reads and writes of a `T`.
    #[inline]
    fn at<T>(&self, offset: usize) -> Option<*mut T> {
        const { assert!(align_of::<T>() <= PAGE_SIZE) };

        let end = offset.checked_add(size_of::<T>())?;

        if end > self.size || !offset.is_multiple_of(align_of::<T>()) {
            return None;
        }
        // By the type invariants, the result is inside of one allocation.
        Some(self.base.wrapping_add(offset).cast())
    }

    /// Returns the entries of `SIZE` bytes from `offset` on, `count` of them, a power of two, if
    /// all are in the region and aligned.
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
        // INVARIANT: Just checked.
        Some(Entries {
            base: self.base.wrapping_add(offset).cast(),
            mask: count.wrapping_sub(1),
            region: PhantomData,
        })
    }

    /// Sets `len` bytes to zero, one after the other.
    ///
    /// # Errors
    ///
    /// [`EINVAL`] if not all of them are in the region, which then does not change.
    pub fn zero(&self, offset: usize, len: usize) -> Result {
        let end = offset.checked_add(len).ok_or(EINVAL)?;

        if end > self.size {
            return Err(EINVAL);
        }
        for offset in offset..end {
            let byte: *mut u8 = self.at(offset).ok_or(EINVAL)?;
            // SAFETY: `at` returns pointers that are valid for writes. By the type invariants,
            // accesses at the same time are marked or as good as user space's.
            unsafe { byte.write_volatile(0) };
        }
        Ok(())
    }

    /// Loads a word with acquire ordering: `smp_load_acquire`.
    ///
    /// What user space wrote before it stored the word by a release operation is visible
    /// afterwards.
    #[inline]
    pub fn load_acquire_u32(&self, offset: usize) -> u32 {
        self.at(offset).map_or(0, |word: *mut u32| {
            // SAFETY: `at` returns pointers that are valid and aligned. By the type invariants,
            // stores at the same time are marked or as good as user space's.
            unsafe { atomic_load(word, Acquire) }
        })
    }

    /// Stores a word with release ordering: `smp_store_release`.
    ///
    /// Whoever reads the word by an acquire operation sees what the kernel read and wrote before as
    /// done.
    #[inline]
    pub fn store_release_u32(&self, offset: usize, value: u32) {
        if let Some(word) = self.at(offset) {
            // SAFETY: `at` returns pointers that are valid and aligned. By the type invariants,
            // accesses at the same time are marked or as good as user space's.
            unsafe { atomic_store(word, value, Release) };
        }
    }

    /// Adds to a double word, wrapping around, without ordering: `atomic64_add`.
    ///
    /// This is for statistics. No addition gets lost, whoever else adds at the same time, unless
    /// user space writes to the double word.
    #[inline]
    pub fn add_u64(&self, offset: usize, n: u64) {
        if let Some(word) = self.at::<u64>(offset) {
            // SAFETY: `at` returns pointers that are valid and aligned. By the type invariants,
            // accesses at the same time are marked or as good as user space's. The reference goes
            // at once.
            unsafe { Atomic::from_ptr(word) }.add(n, Relaxed);
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY:
        // - By the type invariants, the region was made by `io_create_region` for this user, who is
        //   null or valid as `account`, which is dropped later, has a reference.
        // - Nobody accesses the memory through `self` any more, as that borrows it. Mappings of
        //   user space have references of their own to the pages.
        unsafe { bindings::io_free_region(self.account.user(), self.mr.get()) };
    }
}

/// Entries of `SIZE` bytes each in a region, to be read one by one.
///
/// # Invariants
///
/// For the duration of `'a`, the `mask + 1` entries from `base` on, a power of two, are in the
/// region. `base` and `SIZE` are multiples of eight.
pub struct Entries<'a, const SIZE: usize> {
    base: *const u8,
    mask: u32,
    region: PhantomData<&'a Region>,
}

impl<const SIZE: usize> Entries<'_, SIZE> {
    /// Reads the double word at `AT` of an entry once, without ordering. Entries are numbered
    /// modulo their number.
    #[inline]
    pub fn read_u64<const AT: usize>(&self, entry: u32) -> u64 {
        const { assert!(AT.is_multiple_of(8) && AT + 8 <= SIZE) };

        let at = (entry & self.mask) as usize * SIZE + AT;

        // SAFETY: By the type invariants, this is inside of the region and aligned. By those of
        // `Region`, stores at the same time are marked or as good as user space's.
        unsafe { self.base.wrapping_add(at).cast::<u64>().read_volatile() }
    }

    /// Reads the word at `AT` of an entry once, as [`Self::read_u64`] reads a double word.
    #[inline]
    pub fn read_u32<const AT: usize>(&self, entry: u32) -> u32 {
        const { assert!(AT.is_multiple_of(4) && AT + 4 <= SIZE) };

        let at = (entry & self.mask) as usize * SIZE + AT;

        // SAFETY: By the type invariants, this is inside of the region and aligned. By those of
        // `Region`, stores at the same time are marked or as good as user space's.
        unsafe { self.base.wrapping_add(at).cast::<u32>().read_volatile() }
    }
}
