// SPDX-License-Identifier: GPL-2.0

//! Buffers of a provider in packets: finding them, and granting them to user space.

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
use super::iov::AfterPut;
use super::{
    counts::Grants,
    iov::{
        Iov,
        Owner, //
    }, //
};
use crate::{
    bindings,
    net::{
        page_pool::{
            MemoryProvider,
            ProvidedQueue, //
        },
        skbuff::{
            Chunk,
            SkBuff, //
        }, //
    },
    sync::atomic::Relaxed, //
};
use core::{
    marker::PhantomData,
    ptr::{
        dangling,
        NonNull, //
    }, //
};

/// A lookup of the buffers of a provider that a packet's fragments are in.
///
/// Mostly they are all of the same [`NetIovs`](super::NetIovs), so a lookup remembers the last one.
///
/// # Invariants
///
/// `owner` is dangling, or the owner of buffers that are in pools of `provider`, and stays valid
/// for the duration of `'a`.
pub struct Lookup<'a, 'p, P> {
    provider: &'p ProvidedQueue<P>,
    owner: *const Owner,
    packet: PhantomData<&'a SkBuff>,
}

impl<'a, 'p, P: MemoryProvider> Lookup<'a, 'p, P> {
    /// Creates a lookup for the fragments of a packet.
    #[inline]
    pub fn new(_skb: &'a SkBuff, provider: &'p ProvidedQueue<P>) -> Self {
        // INVARIANT: `owner` is dangling.
        Self {
            provider,
            owner: dangling(),
            packet: PhantomData,
        }
    }

    /// Returns the buffer that the bytes of `chunk` are in, or `None` if it is not from a pool of
    /// the provider.
    #[inline]
    pub fn find(&mut self, chunk: &Chunk<'a>) -> Option<ProvidedIov<'a>> {
        let (iov, offset) = chunk.net_iov()?;
        // SAFETY: The packet has a reference to the buffer, so that it is valid.
        let owner = unsafe { (*iov.as_ptr()).owner }.cast_const().cast();

        if owner != self.owner {
            self.remember(iov)?;
        }
        // INVARIANT: The buffer belongs to that owner.
        let iov = Iov {
            iov,
            // SAFETY: By the type invariants, `owner` is an owner. It stays as long as its buffers,
            // and a packet that stays for `'a` has one of them.
            owner: unsafe { &*owner },
        };

        Some(ProvidedIov::new(iov, offset))
    }

    /// Remembers the owner of `iov`. Returns `None` if its pool does not belong to the provider.
    #[cold]
    fn remember(&mut self, iov: NonNull<bindings::net_iov>) -> Option<()> {
        // SAFETY: The packet has a reference to the buffer, so that the buffer is valid, and
        // neither its owner nor its pool changes.
        let (pool, owner) = unsafe { ((*iov.as_ptr()).desc.pp, (*iov.as_ptr()).owner) };
        let pool = NonNull::new(pool)?;

        // SAFETY: A pool stays until all its buffers are back, and the packet has one of them.
        if !unsafe { self.provider.provides(pool) } {
            return None;
        }
        // INVARIANT: The pool is one of this provider, whose pools get buffers only from `NetIovs`.
        // So this is the owner of such buffers, which are in no other provider's pools.
        self.owner = owner.cast_const().cast();
        Some(())
    }
}

/// A run of bytes of a packet, in a buffer of a provider.
///
/// # Invariants
///
/// `index` is the index of `iov`.
pub struct ProvidedIov<'a> {
    iov: Iov<'a>,
    index: usize,
    offset: usize,
}

impl<'a> ProvidedIov<'a> {
    #[inline]
    pub(super) fn new(iov: Iov<'a>, offset: usize) -> Self {
        // INVARIANT: `index` is the index of `iov`.
        Self {
            iov,
            index: iov.index(),
            offset,
        }
    }

    /// Returns the tag that [`NetIovs::set_tag`](super::NetIovs::set_tag) set.
    #[inline]
    pub fn tag(&self) -> u64 {
        self.iov.owner.tag.load(Relaxed)
    }

    /// Returns the index of the buffer.
    #[inline]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the offset at which the bytes begin in the buffer.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Grants the buffer to user space once more. It is not freed before that grant is given back.
    ///
    /// The number of outstanding grants becomes negative after 2^31 of them, or stops at 2^30 where
    /// references have 32 bits. From then on, user space can give back less than it got, and the
    /// buffer is not freed.
    #[inline]
    pub fn grant(&self) {
        // SAFETY: By the type invariants, there is such a buffer, and there is a count for each.
        let granted = unsafe { self.iov.owner.granted.get_unchecked(self.index) };

        Grants(granted).add_with(self.iov.references());
    }

    /// Creates a run that covers a whole buffer, which was just taken out of a pool.
    ///
    /// # Safety
    ///
    /// `iov` must be one of [`NetIovs`](super::NetIovs), and the caller must own a reference to it
    /// that is not given back before [`Self::unreference`].
    #[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
    pub(in crate::net) unsafe fn whole(iov: NonNull<bindings::net_iov>) -> Self {
        // SAFETY: The caller guarantees that `iov` is a valid buffer of a `NetIovs`.
        Self::new(unsafe { Iov::from_raw(iov) }, 0)
    }

    /// Returns the buffer as a `netmem_ref`.
    #[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
    pub(in crate::net) fn netmem(&self) -> bindings::netmem_ref {
        self.iov.netmem()
    }

    /// Drops the reference of a packet. Returns the state that the buffer is in afterwards.
    ///
    /// # Safety
    ///
    /// The caller must own a reference and give it up.
    #[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
    pub(in crate::net) unsafe fn unreference(&self) -> AfterPut<'_> {
        self.iov.put(1)
    }
}
