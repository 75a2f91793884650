// SPDX-License-Identifier: GPL-2.0

//! Buffers of a provider in packets: which ones they are, and granting them to user space.

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
use super::iov::TakenBack;
use super::iov::{
    Iov,
    Owner,
    GRANTED_MAX, //
};
use crate::{
    bindings,
    net::{
        page_pool::{
            MemoryProvider,
            ProvidedQueue, //
        },
        skbuff::{
            Piece,
            SkBuff, //
        }, //
    },
    sync::atomic::{
        Relaxed,
        Release, //
    }, //
};
use core::{
    marker::PhantomData,
    ptr::{
        dangling,
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
    provider: &'p ProvidedQueue<P>,
    owner: *const Owner,
    packet: PhantomData<&'a SkBuff>,
}

impl<'a, 'p, P: MemoryProvider> Lookup<'a, 'p, P> {
    /// Creates a lookup for the fragments of a packet.
    #[inline]
    pub fn new(_skb: &'a SkBuff, provider: &'p ProvidedQueue<P>) -> Self {
        // INVARIANT: There is no owner yet.
        Self {
            provider,
            owner: dangling(),
            packet: PhantomData,
        }
    }

    /// Returns the buffer that the bytes of a piece are in, or `None` if it is not from a pool of
    /// the provider.
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

        // SAFETY: The pool stays until it has all its buffers back.
        if !unsafe { self.provider.provides(pool) } {
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

    /// Returns the tag that [`NetIovs::set_tag`](super::NetIovs::set_tag) set.
    #[inline]
    pub fn tag(&self) -> u64 {
        self.iov.owner.tag.load(Relaxed)
    }

    /// Returns the number of the buffer.
    #[inline]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Returns the offset at which the bytes begin in the buffer.
    #[inline]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Grants the buffer to user space once more. It is not free before that is given back.
    ///
    /// The number of grants that were not given back may become negative, after 2^31 of them, or
    /// stop at 2^30 where references have 32 bits. Then user space can give back less than it got,
    /// and the buffer is not freed.
    #[inline]
    pub fn grant(&self) {
        // SAFETY: By the type invariants, there is such a buffer, and there are as many counts.
        let granted = unsafe { self.iov.owner.granted.get_unchecked(self.index) };

        if isize::BITS < 64 && granted.load(Relaxed) >= GRANTED_MAX {
            return;
        }
        self.iov.references().add(1, Relaxed);
        // The reference first: user space could give back a grant that it sees at once.
        granted.fetch_add(1, Release);
    }

    /// Makes a run of a whole buffer that was just taken out of a pool.
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

    /// Returns the buffer as C knows it.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub(in crate::net) fn netmem(&self) -> bindings::netmem_ref {
        self.iov.netmem()
    }

    /// Gives back the reference of a packet. Returns what became of the buffer.
    ///
    /// # Safety
    ///
    /// The caller must have a reference, and give it up.
    #[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
    pub(in crate::net) unsafe fn unreference(&self) -> TakenBack<'_> {
        self.iov.put(1)
    }
}
