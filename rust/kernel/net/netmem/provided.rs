// SPDX-License-Identifier: GPL-2.0

//! Buffers of a provider in packets: which ones they are, and granting them to user space.

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
use super::TakenBack;
use super::{
    Iov,
    Owner, //
};
use crate::{
    bindings,
    net::{
        page_pool::MemoryProvider,
        skbuff::{
            Piece,
            SkBuff, //
        }, //
    },
    prelude::*,
    sync::atomic::{
        Relaxed,
        Release, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::{
        dangling,
        from_ref,
        NonNull, //
    }, //
};

/// Finds out which fragments of a packet are in buffers of a provider. Mostly they are all of the
/// same [`NetIovs`](super::NetIovs): it remembers those of the last one.
///
/// # Invariants
///
/// `owner` is dangling, or that of buffers which are in pools of `provider`, and stays for the
/// duration of `'a`.
pub struct Lookup<'a, 'p, P> {
    provider: &'p P,
    owner: *const Owner,
    packet: PhantomData<&'a SkBuff>,
}

impl<'a, 'p, P: MemoryProvider> Lookup<'a, 'p, P> {
    /// For the fragments of a packet.
    #[inline]
    pub fn new(_skb: &'a SkBuff, provider: &'p P) -> Self {
        // Providers are told apart by where they are.
        const { assert!(size_of::<P>() != 0) };
        // INVARIANT: There is no owner yet.
        Self {
            provider,
            owner: dangling(),
            packet: PhantomData,
        }
    }

    /// The buffer that the bytes of a piece are in, if the provider gave it to the pool that it is
    /// from.
    #[inline]
    pub fn find(&mut self, piece: &Piece<'a>) -> Option<ProvidedIov<'a>> {
        let (iov, offset) = piece.net_iov()?;
        // SAFETY: The packet has a reference to the buffer, so that it is valid.
        let owner = unsafe { (*iov.as_ptr()).owner }.cast_const().cast();

        if owner != self.owner {
            self.remember(iov)?;
        }
        // INVARIANT: The buffer is one of that owner.
        let iov = Iov {
            iov,
            // SAFETY: By the type invariants, it is an owner, which stays as long as its buffers. A
            // packet that stays for `'a` has one of them.
            owner: unsafe { &*owner },
        };

        Some(ProvidedIov::new(iov, offset))
    }

    #[cold]
    fn remember(&mut self, iov: NonNull<bindings::net_iov>) -> Option<()> {
        // SAFETY: The packet has a reference to the buffer, so that it is valid, and who owns it
        // and which pool it is in does not change.
        let (pool, owner) = unsafe { ((*iov.as_ptr()).desc.pp, (*iov.as_ptr()).owner) };
        let pool = NonNull::new(pool)?;
        // SAFETY: The pool stays until it has all its buffers back. It does not change its
        // provider.
        let provided = unsafe { (*pool.as_ptr()).mp_priv };

        if provided.cast_const() != from_ref(self.provider).cast() {
            return None;
        }
        // INVARIANT: Pools of this provider, of which this is the address, only get buffers out of
        // `NetIovs`. So the owner is such a one, and its buffers are in no others' pools.
        self.owner = owner.cast_const().cast();
        Some(())
    }
}

/// A run of bytes of a packet that is in a buffer of ours.
///
/// # Invariants
///
/// `index` is the number of `iov`.
pub struct ProvidedIov<'a> {
    iov: Iov<'a>,
    index: usize,
    offset: usize,
}

impl<'a> ProvidedIov<'a> {
    #[inline]
    pub(super) fn new(iov: Iov<'a>, offset: usize) -> Self {
        // INVARIANT: That is its number.
        Self {
            iov,
            index: iov.index(),
            offset,
        }
    }

    /// What [`NetIovs::set_tag`](super::NetIovs::set_tag) set.
    #[inline]
    pub fn tag(&self) -> u64 {
        self.iov.owner.tag.load(Relaxed)
    }

    /// The number of the buffer.
    #[inline]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Where the bytes begin in the buffer.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Grants user space the buffer, once more: it is not free before that is given back.
    #[inline]
    pub fn grant(&self) {
        self.iov.references().add(1, Relaxed);
        // In this order, lest user space gives back what is not there yet.
        // SAFETY: By the type invariants, there is such a buffer, and there are as many counts.
        unsafe { self.iov.owner.granted.get_unchecked(self.index) }.fetch_add(1, Release);
    }

    /// The whole of a buffer that was just taken out of a pool.
    ///
    /// # Safety
    ///
    /// `iov` must be one of [`NetIovs`](super::NetIovs), and the caller own a reference to it that
    /// is not given back before [`Self::unreference`].
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub(in crate::net) unsafe fn whole(iov: NonNull<bindings::net_iov>) -> Self {
        // SAFETY: The caller guarantees it.
        Self::new(unsafe { Iov::from_raw(iov) }, 0)
    }

    /// Gives back the reference of a packet: what remains.
    ///
    /// # Safety
    ///
    /// The caller must have a reference, and give it up.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub(in crate::net) unsafe fn unreference(&self) -> TakenBack<'_> {
        self.iov.put(1)
    }
}
