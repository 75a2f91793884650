// SPDX-License-Identifier: GPL-2.0

//! Received packets, for reading.
//!
//! A [`SkBuff`] is a packet that somebody else owns, and a [`Chunk`] is a run of its bytes. The
//! bytes may change while they are read, as their memory may be shared with user space or with
//! clones of the packet. So there are no references to them: [`Chunk::copy_to_page`] copies them.
//!
//! Packets are taken from sockets in other modules: see [`tcp`](super::tcp).
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
pub mod owned;

use crate::{
    bindings,
    num::casts::u32_as_usize,
    page::{
        SharedPage,
        PAGE_MASK,
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    types::Opaque, //
};
use core::{
    iter::{
        from_fn,
        successors, //
    },
    marker::PhantomData,
    ptr::NonNull, //
};

/// A packet.
///
/// Its bytes are those of [`Self::linear`], then those of [`Self::frags`], then those of the
/// packets in [`Self::frag_list`].
///
/// Wraps the kernel's `struct sk_buff`.
///
/// # Invariants
///
/// For as long as there is a reference to the packet, it is valid, and nobody changes the place or
/// the number of its bytes, nor frees their memory. The same holds for the packets of its list. The
/// bytes themselves may change.
#[repr(transparent)]
pub struct SkBuff(Opaque<bindings::sk_buff>);

impl SkBuff {
    /// Makes a reference from the pointer that C passes.
    ///
    /// # Safety
    ///
    /// For the duration of `'a`, `skb` must point to a valid packet, and nobody may change its
    /// lengths, its `data` pointer, its fragments or its list, nor release any of them. The same
    /// must hold for the packets of its list, and theirs.
    #[inline]
    pub unsafe fn from_raw<'a>(skb: *const bindings::sk_buff) -> &'a Self {
        // INVARIANT: The caller guarantees what the type invariants demand.
        // SAFETY: The caller guarantees that the packet is valid, and `Self` is a transparent
        // wrapper.
        unsafe { &*skb.cast::<Self>() }
    }

    /// Returns the number of bytes of the packet, in all its parts.
    #[inline]
    pub fn len(&self) -> usize {
        // SAFETY: By the type invariants, the packet is valid, and nobody changes its length.
        u32_as_usize(unsafe { (*self.0.get()).len })
    }

    /// Returns whether the packet has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the bytes that come before all fragments. There may be none.
    ///
    /// C counterpart: `skb->data` and `skb_headlen`.
    #[inline]
    pub fn linear(&self) -> Chunk<'_> {
        let skb = self.0.get();

        // INVARIANT: By the type invariants, the packet is valid and does not change for the
        // duration of the borrow. A valid packet has `skb_headlen` bytes of kernel memory at
        // `data`.
        Chunk {
            // SAFETY: By the type invariants, the packet is valid.
            source: Source::Memory(unsafe { (*skb).data }),
            // SAFETY: By the type invariants, the packet is valid.
            len: u32_as_usize(unsafe { bindings::skb_headlen(skb) }),
            packet: PhantomData,
        }
    }

    /// Returns the shared info, which follows the memory of the linear bytes.
    ///
    /// Clones of the packet share it, and others write to some of its fields: never make a
    /// reference to the whole.
    #[inline]
    fn shared_info(&self) -> *const bindings::skb_shared_info {
        // SAFETY: By the type invariants, the packet is valid.
        unsafe { bindings::skb_shinfo(self.0.get()) }
    }

    /// Returns the fragments: pages, or memory that only a device can access (`net_iov`).
    ///
    /// C counterpart: `skb_shinfo(skb)->frags`.
    #[inline]
    pub fn frags(&self) -> impl Iterator<Item = Chunk<'_>> {
        let shared = self.shared_info();
        // SAFETY: By the type invariants, the packet is valid, so that it has a shared info, and
        // nobody changes the number of its fragments.
        let count = usize::from(unsafe { (*shared).nr_frags });
        // SAFETY: The shared info is valid. This takes an address, and makes no reference.
        let mut next = unsafe { &raw const (*shared).frags }.cast::<bindings::skb_frag_t>();
        let end = next.wrapping_add(count);

        from_fn(move || {
            if next == end {
                return None;
            }
            // SAFETY: By the type invariants, the packet is valid, so that its first `nr_frags`
            // fragments are, too. They do not change for the duration of the borrow, which the
            // iterator and its items do not outlive.
            let chunk = unsafe { Chunk::from_frag(next) };

            next = next.wrapping_add(1);
            Some(chunk)
        })
    }

    /// Returns the packets that hold the rest of this packet's bytes.
    ///
    /// C counterpart: `skb_walk_frags`.
    #[inline]
    pub fn frag_list(&self) -> impl Iterator<Item = &SkBuff> {
        // SAFETY: By the type invariants, the packet is valid, so that it has a shared info, and
        // nobody changes its list.
        let first = unsafe { (*self.shared_info()).frag_list };

        // SAFETY: The pointer is null or points to a packet for which the type invariants hold as
        // long as they hold for `self`, which is borrowed. `SkBuff` is a transparent wrapper.
        let first: Option<&SkBuff> = unsafe { first.cast::<SkBuff>().as_ref() };

        successors(first, |skb| {
            // SAFETY: By the type invariants, the packet is valid, and nobody changes the list that
            // it is in. Packets in such a list are linked by `next`.
            let next = unsafe { (*skb.0.get()).__bindgen_anon_1.__bindgen_anon_1.next };

            // SAFETY: The same as for `first`.
            unsafe { next.cast::<SkBuff>().as_ref() }
        })
    }
}

/// The memory that holds the bytes of a [`Chunk`].
#[derive(Clone)]
enum Source {
    /// Memory that the kernel has an address for. The first byte is at this address.
    Memory(*const u8),
    /// Consecutive pages that have to be mapped. `start` is the offset of the first byte from the
    /// start of `page`, and may be in a later page.
    Pages {
        page: NonNull<bindings::page>,
        start: usize,
    },
    /// Memory without pages, which the CPU may not read. `start` is the offset of the first byte.
    NetIov {
        iov: NonNull<bindings::net_iov>,
        start: usize,
    },
}

/// A run of bytes of a packet.
///
/// # Invariants
///
/// For the duration of `'a`, depending on `source`:
///
/// - `Source::Memory`: the memory is valid for reads of `len` bytes.
/// - `Source::Pages`: the descriptors of all pages that the `len` bytes touch follow each other
///   from `page` on. These pages are valid and can be mapped, and `start + len` does not overflow.
/// - `Source::NetIov`: `iov` is valid, and the packet has a reference to it.
///
/// The bytes may change at any time.
#[derive(Clone)]
pub struct Chunk<'a> {
    source: Source,
    len: usize,
    packet: PhantomData<&'a SkBuff>,
}

impl Chunk<'_> {
    /// Creates a chunk from a fragment.
    ///
    /// # Safety
    ///
    /// While the chunk exists, `frag` must be a valid fragment of a packet that does not change.
    #[inline]
    unsafe fn from_frag(frag: *const bindings::skb_frag_t) -> Self {
        // SAFETY: The caller guarantees that the fragment is valid.
        let (iov, start, len) = unsafe {
            (
                bindings::skb_frag_net_iov(frag),
                u32_as_usize(bindings::skb_frag_off(frag)),
                bindings::skb_frag_size(frag),
            )
        };
        let source = if let Some(iov) = NonNull::new(iov) {
            Source::NetIov { iov, start }
        } else {
            // SAFETY: The caller guarantees that the fragment is valid.
            let page = unsafe { bindings::skb_frag_page(frag) };

            match NonNull::new(page) {
                // SAFETY: A valid fragment has a valid page.
                Some(page) if unsafe { bindings::PageHighMem(page.as_ptr()) } != 0 => {
                    Source::Pages { page, start }
                }
                _ => {
                    // SAFETY: A valid fragment has a `net_iov` or a page, so this is a page. It is
                    // not in high memory.
                    let address = unsafe { bindings::lowmem_page_address(page) };

                    Source::Memory(address.cast_const().cast::<u8>().wrapping_add(start))
                }
            }
        };

        // INVARIANT: The caller guarantees that the fragment is valid and does not change.
        // - If it is a `net_iov`, the packet has a reference to it.
        // - If it has a page, its bytes are in a run of pages with consecutive descriptors, all in
        //   the same zone. In high memory, the kernel can map them; otherwise, they have
        //   consecutive addresses. No such run reaches the end of the range of a `usize`.
        Self {
            source,
            len: u32_as_usize(len),
            packet: PhantomData,
        }
    }

    /// Returns the number of bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether there are no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns whether the CPU may read the bytes, which is not so for those of a `net_iov`.
    #[inline]
    pub fn is_copyable(&self) -> bool {
        !matches!(self.source, Source::NetIov { .. })
    }

    /// Returns the `net_iov` that the bytes are in, if any, and the offset of the first byte in it.
    ///
    /// The packet has a reference to the `net_iov`.
    #[cfg(CONFIG_PAGE_POOL)]
    #[inline]
    pub(super) fn net_iov(&self) -> Option<(NonNull<bindings::net_iov>, usize)> {
        match self.source {
            Source::NetIov { iov, start } => Some((iov, start)),
            _ => None,
        }
    }

    /// Removes the first `n` bytes from the chunk, or all if there are fewer.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len);

        // INVARIANT: The bytes that remain were part of the chunk before. `n` is at most
        // `self.len`, so that nothing wraps around.
        match &mut self.source {
            Source::Memory(address) => *address = address.wrapping_add(n),
            Source::Pages { start, .. } | Source::NetIov { start, .. } => {
                *start = start.wrapping_add(n);
            }
        }
        self.len = self.len.wrapping_sub(n);
    }

    /// Removes all but the first `len` bytes from the chunk.
    #[inline]
    pub fn truncate(&mut self, len: usize) {
        // INVARIANT: The bytes that remain were part of the chunk before.
        self.len = self.len.min(len);
    }

    /// Copies bytes to the beginning of `page`, as many as fit, and removes them from the chunk.
    /// Returns the number of bytes copied.
    ///
    /// This is zero if the chunk is empty or [`Self::is_copyable`] is false.
    ///
    /// If user space changes the bytes meanwhile, or the chunk is itself in `page` and overlaps the
    /// destination, the result may be any mixture of old and new bytes.
    ///
    /// May be called in any context. Does not sleep.
    ///
    /// C counterpart: `io_copy_page` in [`io_uring/zcrx.c`](srctree/io_uring/zcrx.c).
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::{
    ///     net::skbuff::SkBuff,
    ///     page::SharedPage, //
    /// };
    ///
    /// /// Copies the first bytes behind the headers of a packet.
    /// fn copy_start(skb: &SkBuff, headers: usize, page: SharedPage<'_>) -> usize {
    ///     let mut chunk = skb.linear();
    ///
    ///     chunk.advance(headers);
    ///     chunk.copy_to_page(page)
    /// }
    /// ```
    #[inline]
    pub fn copy_to_page(&mut self, page: SharedPage<'_>) -> usize {
        let len = self.len.min(PAGE_SIZE);

        match self.source {
            Source::Memory(data) => {
                // SAFETY: By the type invariants, the memory is valid for reads of `self.len`
                // bytes. `len` is at most `PAGE_SIZE`.
                unsafe { page.write_raw(data, 0, len) };
            }
            Source::Pages { page: first, start } => {
                let mut copied: usize = 0;

                while copied < len {
                    // By the type invariants, `start + self.len` does not overflow, and `copied` is
                    // less than `self.len`.
                    let (index, offset, rest) = locate(start.wrapping_add(copied));
                    // Not zero: `rest` is not, and `copied` is less than `len`.
                    let n = rest.min(len.wrapping_sub(copied));

                    // SAFETY: The byte at `offset` of this page belongs to the chunk. By the type
                    // invariants, the page is therefore valid, can be mapped, and has its
                    // descriptor at this index.
                    let src =
                        unsafe { bindings::kmap_local_page(first.as_ptr().wrapping_add(index)) };

                    // SAFETY:
                    // - The page is mapped, and `offset + n` is at most `PAGE_SIZE`.
                    // - `copied + n` is at most `len`, which is at most `PAGE_SIZE`.
                    unsafe { page.write_raw(src.cast::<u8>().wrapping_add(offset), copied, n) };

                    // SAFETY: This is the address that `kmap_local_page` returned. The page that
                    // was mapped after it has been unmapped, as the order of unmapping demands.
                    unsafe { bindings::kunmap_local(src) };

                    copied = copied.wrapping_add(n);
                }
            }
            Source::NetIov { .. } => return 0,
        }
        self.advance(len);
        len
    }
}

/// Locates the byte `at` in a run of pages. Returns the index of its page, its offset in that page,
/// and the number of bytes from there to the end of the page, which is not zero.
#[inline]
fn locate(at: usize) -> (usize, usize, usize) {
    let offset = at & !PAGE_MASK;

    // `offset` is less than `PAGE_SIZE`.
    (at >> PAGE_SHIFT, offset, PAGE_SIZE.wrapping_sub(offset))
}

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_net_skbuff)]
mod tests {
    use super::*;
    use crate::{
        page::Page,
        prelude::*, //
    };

    /// Creates a chunk of pages that are treated as high memory, though they are not.
    fn chunk(len: usize) -> Chunk<'static> {
        Chunk {
            source: Source::Pages {
                page: NonNull::dangling(),
                start: 5,
            },
            len,
            packet: PhantomData,
        }
    }

    #[test]
    fn truncate_and_advance_stay_inside_the_chunk() {
        let mut whole = chunk(100);

        #[cfg(CONFIG_PAGE_POOL)]
        assert!(whole.net_iov().is_none());

        whole.truncate(200);
        assert_eq!(whole.len(), 100);
        whole.advance(30);
        whole.truncate(60);
        assert_eq!(whole.len(), 60);
        assert!(matches!(whole.source, Source::Pages { start: 35, .. }));
        whole.advance(usize::MAX);
        assert!(whole.is_empty());
        assert!(matches!(whole.source, Source::Pages { start: 95, .. }));
    }

    /// Copies a chunk of two consecutive pages until nothing is left. The chunk begins at the
    /// offset `start` and has `len` bytes.
    fn copy_all(first: NonNull<bindings::page>, start: usize, len: usize) -> Result<KVec<u8>> {
        let mut chunk = Chunk {
            source: Source::Pages { page: first, start },
            len,
            packet: PhantomData,
        };
        let to = Page::alloc_page(GFP_KERNEL)?;
        // SAFETY: The page stays until the end of this function, which has no references to its
        // bytes and lets nobody else write to it.
        let shared = unsafe { SharedPage::from_raw(NonNull::new(to.as_ptr()).ok_or(EINVAL)?) };
        let mut all = KVec::new();

        while !chunk.is_empty() {
            let mut bytes = KVec::from_elem(0, PAGE_SIZE, GFP_KERNEL)?;
            let copied = chunk.copy_to_page(shared);

            // SAFETY: The buffer has room for a page, and nobody writes to the page.
            unsafe { to.read_raw(bytes.as_mut_ptr(), 0, copied) }?;
            all.extend_from_slice(bytes.get(..copied).ok_or(EINVAL)?, GFP_KERNEL)?;
            if copied == 0 {
                break;
            }
        }
        Ok(all)
    }

    /// Pages that have to be mapped are copied one after the other.
    #[test]
    fn copy_crosses_page_boundaries() -> Result {
        const ORDER: u32 = 1;
        let byte = |index: usize| (index % 251) as u8;
        // SAFETY: The function may be called where sleeping is allowed, as in this test.
        let pages = unsafe { bindings::alloc_pages(GFP_KERNEL.as_raw(), ORDER) };
        let first = NonNull::new(pages).ok_or(ENOMEM)?;
        // SAFETY: The pages were just allocated, and are not in high memory.
        let bytes = unsafe { bindings::lowmem_page_address(first.as_ptr()) }.cast::<u8>();
        let mut wrong = 0;

        for index in 0..2 * PAGE_SIZE {
            // SAFETY: This is in one of the two pages, which belong to this test.
            unsafe { bytes.add(index).write(byte(index)) };
        }
        for (start, len) in [
            (0, 1),
            (7, 100),
            (PAGE_SIZE - 1, 2),
            (PAGE_SIZE - 100, 300),
            (PAGE_SIZE + 3, PAGE_SIZE - 3),
            (10, PAGE_SIZE + 50),
            (0, 2 * PAGE_SIZE),
        ] {
            let copied = copy_all(first, start, len)?;

            if !copied.iter().copied().eq((start..start + len).map(byte)) {
                wrong += 1;
            }
        }
        // SAFETY: The pages were allocated above with this order, and nobody uses them any more.
        unsafe { bindings::__free_pages(first.as_ptr(), ORDER) };
        assert_eq!(wrong, 0);
        Ok(())
    }

    #[test]
    fn each_copy_step_stays_in_one_page() {
        assert_eq!(locate(0), (0, 0, PAGE_SIZE));
        assert_eq!(locate(PAGE_SIZE - 1), (0, PAGE_SIZE - 1, 1));
        assert_eq!(locate(PAGE_SIZE), (1, 0, PAGE_SIZE));
        assert_eq!(locate(3 * PAGE_SIZE + 5), (3, 5, PAGE_SIZE - 5));
    }
}
