// SPDX-License-Identifier: GPL-2.0

//! Packets that unit tests build, to test code that reads packets.
//!
//! C header: [`include/linux/skbuff.h`](srctree/include/linux/skbuff.h)

use super::SkBuff;
use crate::{
    bindings,
    net::page_pool::{
        test_pool::Packet,
        ProviderKind, //
    },
    prelude::*, //
};
use core::{
    ops::Deref,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

/// A packet that is built piece by piece.
///
/// # Invariants
///
/// `skb` is a valid packet that this object owns, and its linear part has room for `room` more
/// bytes. Its fragments that are not pages are those of `net_iovs` and `received`.
pub struct OwnedSkBuff {
    skb: NonNull<bindings::sk_buff>,
    room: usize,
    net_iovs: KVec<KBox<bindings::net_iov>>,
    /// The packets that were received into buffers of pools.
    received: KVec<Packet<'static>>,
}

impl OwnedSkBuff {
    /// Creates an empty packet with room for `room` linear bytes.
    pub fn new(room: usize) -> Result<Self> {
        // SAFETY: The function has no preconditions. -1 stands for any NUMA node.
        let skb =
            unsafe { bindings::__alloc_skb(u32::try_from(room)?, GFP_KERNEL.as_raw(), 0, -1) };

        // INVARIANT: The packet is new, and has the room that was requested.
        Ok(Self {
            skb: NonNull::new(skb).ok_or(ENOMEM)?,
            room,
            net_iovs: KVec::new(),
            received: KVec::new(),
        })
    }

    /// Appends linear bytes. Fails if there are bytes that are not linear.
    pub fn put(&mut self, bytes: &[u8]) -> Result {
        if self.len() != self.linear().len() {
            return Err(EINVAL);
        }
        self.room = self.room.checked_sub(bytes.len()).ok_or(ENOSPC)?;

        // SAFETY: By the type invariants, the packet is valid and has the room. All its bytes are
        // linear.
        let to = unsafe { bindings::skb_put(self.skb.as_ptr(), u32::try_from(bytes.len())?) };
        // SAFETY: The bytes at `to` were just added to the packet, which this object owns.
        unsafe { to.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    /// Returns the index of the next fragment, or an error if there is no room for one.
    fn next_frag(&self) -> Result<c_int> {
        // SAFETY: By the type invariants, the packet is valid.
        let index = u32::from(unsafe { (*bindings::skb_shinfo(self.skb.as_ptr())).nr_frags });

        if index >= bindings::MAX_SKB_FRAGS {
            return Err(ENOSPC);
        }
        Ok(c_int::try_from(index)?)
    }

    /// Puts a fragment at `index`. The packet takes over the reference to the page or `net_iov`.
    ///
    /// # Safety
    ///
    /// - `index` must be what [`Self::next_frag`] returned.
    /// - `netmem` must be valid, with `len` bytes from `offset` on, and have a reference.
    unsafe fn add(
        &mut self,
        index: c_int,
        netmem: bindings::netmem_ref,
        offset: c_int,
        len: c_int,
    ) {
        // SAFETY: By the type invariants, the packet is valid. The caller guarantees that the
        // memory is valid, and that there is room for the fragment.
        unsafe {
            bindings::skb_add_rx_frag_netmem(
                self.skb.as_ptr(),
                index,
                netmem,
                offset,
                len,
                len.unsigned_abs(),
            )
        };
    }

    /// Appends a fragment with these bytes, which begin at `offset` in its first page.
    pub fn add_frag(&mut self, offset: usize, bytes: &[u8]) -> Result {
        let len = offset.checked_add(bytes.len()).ok_or(EINVAL)?;
        // Do all that can fail before pages are allocated, so that nothing has to be undone.
        let index = self.next_frag()?;
        let (start, count) = (c_int::try_from(offset)?, c_int::try_from(bytes.len())?);
        let mut frag: bindings::page_frag = pin_init::zeroed();

        // SAFETY: The descriptor is valid and empty.
        if !unsafe {
            bindings::skb_page_frag_refill(u32::try_from(len)?, &mut frag, GFP_KERNEL.as_raw())
        } {
            return Err(ENOMEM);
        }
        if (frag.size as usize) < len {
            // SAFETY: The page was just allocated, and belongs to this function.
            unsafe { bindings::put_page(frag.page) };
            return Err(EINVAL);
        }
        // SAFETY: The pages were just allocated, belong to this function, and are not in high
        // memory. They have at least `len` bytes.
        unsafe {
            bindings::lowmem_page_address(frag.page)
                .cast::<u8>()
                .add(offset)
                .copy_from(bytes.as_ptr(), bytes.len())
        };
        // SAFETY: The pages are valid and have the bytes. Their reference goes to the packet.
        unsafe { self.add(index, frag.page as bindings::netmem_ref, start, count) };
        Ok(())
    }

    /// Appends a fragment that only a device can access.
    pub fn add_net_iov(&mut self, len: usize) -> Result {
        let index = self.next_frag()?;
        let len = c_int::try_from(len)?;
        let mut net_iov: KBox<bindings::net_iov> = KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
        // The lowest bit is set in a `net_iov` and clear in a page.
        let netmem = &raw mut *net_iov as bindings::netmem_ref | 1;

        // The network stack does not count references to this type.
        net_iov.type_ = ProviderKind::IoUring.net_iov_type();
        self.net_iovs.push(net_iov, GFP_KERNEL)?;
        // SAFETY: The object stays as long as the packet, and nobody accesses its contents.
        unsafe { self.add(index, netmem, 0, len) };
        Ok(())
    }

    /// Appends a fragment of `len` bytes, from `offset` on, of the one-page buffer that `packet`
    /// was received into. The buffer goes back to its pool when this packet is dropped.
    pub fn add_received(&mut self, packet: Packet<'static>, offset: usize, len: usize) -> Result {
        let index = self.next_frag()?;
        let (offset, len) = (c_int::try_from(offset)?, c_int::try_from(len)?);
        let netmem = packet.iov().netmem();

        self.received.push(packet, GFP_KERNEL)?;
        // SAFETY: The buffer stays as long as the packet. The network stack does not count
        // references to this type: `received` has the reference.
        unsafe { self.add(index, netmem, offset, len) };
        Ok(())
    }

    /// Leaves room for exactly `room` linear bytes, by appending zeroes. Fails if there are bytes
    /// that are not linear.
    pub fn leave_room(&mut self, room: usize) -> Result {
        if self.len() != self.linear().len() {
            return Err(EINVAL);
        }
        // SAFETY: By the type invariants, the packet is valid. All its bytes are linear.
        let tailroom = unsafe { bindings::skb_tailroom(self.skb.as_ptr()) };
        let filled = usize::try_from(tailroom)?.checked_sub(room).ok_or(ENOSPC)?;

        // SAFETY: The packet has at least this much room.
        let to = unsafe { bindings::skb_put(self.skb.as_ptr(), u32::try_from(filled)?) };
        // SAFETY: The bytes at `to` were just added to the packet, which this object owns.
        unsafe { to.cast::<u8>().write_bytes(0, filled) };
        // INVARIANT: This is the room that is left.
        self.room = room;
        Ok(())
    }

    /// Returns the packet as a C pointer, for functions that append linear bytes to it.
    pub(in crate::net) fn as_ptr(&mut self) -> *mut bindings::sk_buff {
        self.skb.as_ptr()
    }

    /// Appends another packet to the fragment list.
    pub fn append(&mut self, mut other: OwnedSkBuff) -> Result {
        // Reserve the space first, so that nothing fails once a buffer has moved.
        self.net_iovs.reserve(other.net_iovs.len(), GFP_KERNEL)?;
        self.received.reserve(other.received.len(), GFP_KERNEL)?;
        for packet in core::mem::take(&mut other.received) {
            self.received.push(packet, GFP_KERNEL)?;
        }
        for net_iov in core::mem::take(&mut other.net_iovs) {
            self.net_iovs.push(net_iov, GFP_KERNEL)?;
        }
        let other = core::mem::ManuallyDrop::new(other);

        // SAFETY: By the type invariants, this object owns both packets, which are valid. The list
        // ends with a null pointer, which is replaced by a pointer to the other packet.
        unsafe {
            let skb = self.skb.as_ptr();
            let len = (*other.skb.as_ptr()).len;
            let mut at = &raw mut (*bindings::skb_shinfo(skb)).frag_list;

            while !(*at).is_null() {
                at = &raw mut (**at).__bindgen_anon_1.__bindgen_anon_1.next;
            }
            *at = other.skb.as_ptr();
            (*skb).len += len;
            (*skb).data_len += len;
        }
        Ok(())
    }
}

impl Deref for OwnedSkBuff {
    type Target = SkBuff;

    fn deref(&self) -> &SkBuff {
        // SAFETY: By the type invariants, the packet is valid and owned by this object. All methods
        // that change it take `&mut self`.
        unsafe { SkBuff::from_raw(self.skb.as_ptr()) }
    }
}

impl Drop for OwnedSkBuff {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this object owns the packet. The packet has no socket.
        unsafe {
            bindings::sk_skb_reason_drop(
                null_mut(),
                self.skb.as_ptr(),
                bindings::skb_drop_reason_SKB_CONSUMED,
            )
        };
    }
}

#[macros::kunit_tests(rust_kernel_net_skbuff_owned)]
mod tests {
    use super::*;
    use crate::{
        net::skbuff::Chunk,
        page::{
            Page,
            SharedPage,
            PAGE_SIZE, //
        }, //
    };

    /// Creates bytes that differ from their neighbours, and from the bytes at the same offset in
    /// the neighbouring pages.
    fn pattern(from: usize, len: usize) -> Result<KVec<u8>> {
        let mut bytes = KVec::with_capacity(len, GFP_KERNEL)?;

        for at in from..from + len {
            bytes.push((at ^ (at >> 8) ^ (at >> 12)) as u8, GFP_KERNEL)?;
        }
        Ok(bytes)
    }

    /// Makes a destination for copies from a page, to which nobody else may write meanwhile.
    fn shared(page: &Page) -> Result<SharedPage<'_>> {
        let page = NonNull::new(page.as_ptr()).ok_or(EINVAL)?;

        // SAFETY: The page is borrowed as long as the returned object exists. These tests have no
        // references to its bytes.
        Ok(unsafe { SharedPage::from_raw(page) })
    }

    /// Reads all bytes of a chunk, page by page.
    fn read(mut chunk: Chunk<'_>) -> Result<KVec<u8>> {
        let page = Page::alloc_page(GFP_KERNEL)?;
        let to = shared(&page)?;
        let mut all = KVec::new();

        while !chunk.is_empty() {
            let len = chunk.copy_to_page(to);
            let mut bytes = KVec::from_elem(0, len, GFP_KERNEL)?;

            assert!(len != 0 && len <= PAGE_SIZE);
            // SAFETY: Nobody writes to the page, and the buffer has room for `len` bytes.
            unsafe { page.read_raw(bytes.as_mut_ptr(), 0, len)? };
            all.extend_from_slice(&bytes, GFP_KERNEL)?;
        }
        Ok(all)
    }

    #[test]
    fn parts_are_listed_in_order() -> Result {
        let mut skb = OwnedSkBuff::new(200)?;

        assert!(skb.is_empty());
        skb.put(&[1; 100])?;
        skb.put(&[2; 100])?;
        assert_eq!(skb.put(&[3]), Err(ENOSPC));
        skb.add_frag(0, &[4; 7])?;
        skb.add_frag(5, &[5; 9])?;
        for len in [30, 40] {
            let mut other = OwnedSkBuff::new(0)?;

            other.add_frag(0, &pattern(0, len)?)?;
            skb.append(other)?;
        }

        assert_eq!(skb.len(), 286);
        assert_eq!(read(skb.linear())?[99..101], [1, 2]);
        assert!(skb.frags().map(|frag| frag.len()).eq([7, 9]));
        assert!(skb.frag_list().map(|skb| skb.len()).eq([30, 40]));
        assert!(skb.frag_list().all(|skb| skb.linear().is_empty()));
        Ok(())
    }

    /// Fragments are copied whatever their offset is and however many pages they have.
    #[test]
    fn fragments_at_any_offset_are_copied() -> Result {
        for (offset, len) in [
            (0, 1),
            (0, PAGE_SIZE),
            (4000, 200),
            (3, 3 * PAGE_SIZE),
            (4095, 9000),
        ] {
            let mut skb = OwnedSkBuff::new(0)?;
            let bytes = pattern(offset, len)?;

            skb.add_frag(offset, &bytes)?;
            let chunk = skb.frags().next().ok_or(EINVAL)?;

            assert!(chunk.is_copyable());
            assert_eq!(read(chunk.clone())?[..], bytes[..]);

            let mut part = chunk;
            part.advance(len / 3);
            part.truncate(len / 2);
            assert_eq!(read(part)?[..], bytes[len / 3..len / 3 + len / 2]);
        }
        Ok(())
    }

    #[test]
    fn device_memory_is_not_copied() -> Result {
        let mut skb = OwnedSkBuff::new(0)?;
        let page = Page::alloc_page(GFP_KERNEL)?;

        skb.add_net_iov(500)?;
        let mut chunk = skb.frags().next().ok_or(EINVAL)?;

        assert_eq!(chunk.len(), 500);
        assert!(!chunk.is_copyable());
        assert_eq!(chunk.copy_to_page(shared(&page)?), 0);
        assert_eq!(chunk.len(), 500);
        Ok(())
    }
}
