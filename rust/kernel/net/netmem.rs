// SPDX-License-Identifier: GPL-2.0

//! Network buffers whose memory the network stack cannot access: `net_iov`s.
//!
//! [`NetIovs`] are the buffers that one piece of memory is cut into, all of one size. A buffer is
//! free or has references: of the page pool that it is in, of packets, and of user space. A
//! reference of user space is called a *grant*. Grants are also counted by themselves, so that user
//! space cannot give back more of them than it got.
//!
//! [`NetIovs::map`] maps the memory for a device, stores in each buffer its DMA address, and keeps
//! the mapping. Only buffers with an address are put into page pools, and only into those of that
//! device. The mapping ends when the buffers are dropped, which no pool may have then, or by
//! [`NetIovs::unmap`], which demands evidence that no pool gives buffers to a device any more.
//!
//! C header: [`include/net/netmem.h`](srctree/include/net/netmem.h)

mod counts;
mod iov;
mod kind;
mod mapping;
mod provided;
#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
mod race_test;

pub use self::{
    iov::{
        AfterPut, //
        PooledIov,
    },
    kind::ProviderKind,
    provided::{
        Lookup,
        ProvidedIov, //
    }, //
};

use self::{
    counts::FREE,
    iov::{
        Iov,
        Owner, //
    }, //
};
use crate::{
    bindings,
    new_mutex,
    nospec::index_in,
    num::casts::u32_as_usize,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic,
        Relaxed, //
    },
    task::cond_resched,
    types::Opaque,
    warn_on_once, //
};
use core::{
    pin::Pin,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

/// The bit that is set in a `netmem_ref` to a `net_iov`, and clear in one to a page.
pub(super) const NET_IOV: bindings::netmem_ref = bindings::NET_IOV as bindings::netmem_ref;

/// Yields the CPU after every 4,096th buffer: there may be millions.
fn resched_after(number: usize) {
    if number % 4096 == 0 {
        cond_resched();
    }
}

/// The buffers that one piece of memory is cut into.
///
/// # Invariants
///
/// - `owner` came from `KBox::into_raw`, is pinned, and is owned by this object. It is freed only
///   while no buffer is in a pool.
/// - `iovs` and `granted` of the owner have the same number of elements, and are never moved or
///   shortened.
/// - The `owner` of each `net_iov` is this owner. Its `pp` is null while it is in no pool. Its
///   `pp_ref_count` is `FREE` while it is free, and otherwise at least the number of grants.
/// - While the owner's `dev` is not null, each buffer has an address at which `memory` is mapped
///   for that device, and buffers are put only into pools that belong to both that device and
///   `provider`. While `dev` is null, buffers are put only into pools that have no device, which
///   only unit tests create.
pub struct NetIovs {
    owner: NonNull<Owner>,
}

// SAFETY: The buffers are not tied to a task.
unsafe impl Send for NetIovs {}

// SAFETY: All accesses through shared references are atomic, under a lock, or made by the code that
// has taken the buffer.
unsafe impl Sync for NetIovs {}

impl NetIovs {
    /// Creates `count` free buffers of `1 << shift` bytes each, for providers of this `kind`. Their
    /// memory is not mapped yet. May sleep.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub fn new(kind: ProviderKind, count: u32, shift: u32) -> Result<Self> {
        let capacity = u32_as_usize(count);
        let mut iovs = KVVec::with_capacity(capacity, GFP_KERNEL_ACCOUNT)?;
        let mut granted = KVVec::with_capacity(capacity, GFP_KERNEL_ACCOUNT)?;
        let owner = KBox::pin_init(
            pin_init!(Owner {
                area: Opaque::new(bindings::net_iov_area {
                    niovs: null_mut(),
                    num_niovs: capacity,
                    base_virtual: 0,
                }),
                tag: Atomic::new(0),
                provider: Atomic::new(null_mut()),
                dev: Atomic::new(null_mut()),
                shift,
                iovs: KVVec::new(),
                granted: KVVec::new(),
                memory <- new_mutex!(None, "NetIovs::memory"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: The object is not moved out of its allocation, here or by `NetIovs`.
        let owner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(owner) });
        // SAFETY: A pointer from a box is not null.
        let owner = unsafe { NonNull::new_unchecked(owner) };
        // INVARIANT: The owner belongs to this object and has no buffers yet. The invariants hold
        // for the buffers that are added below, before anybody else has this object.
        let this = Self { owner };

        for number in 0..capacity {
            let mut iov: bindings::net_iov = pin_init::zeroed();

            iov.type_ = kind.net_iov_type();
            // A pointer to the whole owner and not only to its area: `Iov::from_raw` casts it back.
            iov.owner = owner.as_ptr().cast();
            iov.desc.pp_ref_count.counter = FREE.try_into()?;
            iovs.push(Opaque::new(iov), GFP_KERNEL_ACCOUNT)?;
            granted.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
            resched_after(number);
        }
        // SAFETY: The owner is valid, and nobody else has a pointer to it yet. Moving the vectors
        // does not move their arrays.
        unsafe {
            (*(*owner.as_ptr()).area.get()).niovs = iovs.as_mut_ptr().cast();
            (*owner.as_ptr()).iovs = iovs;
            (*owner.as_ptr()).granted = granted;
        }
        Ok(this)
    }

    #[inline]
    fn owner(&self) -> &Owner {
        // SAFETY: By the type invariants, the owner is valid as long as `self` is, and nobody has a
        // mutable reference to it.
        unsafe { self.owner.as_ref() }
    }

    /// Sets the value that [`ProvidedIov::tag`] returns for all of these buffers.
    pub fn set_tag(&self, tag: u64) {
        self.owner().tag.store(tag, Relaxed);
    }

    /// Returns the number of buffers.
    pub fn len(&self) -> usize {
        self.owner().iovs.len()
    }

    /// Returns whether there are no buffers.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn iov(&self, index: u64) -> Option<Iov<'_>> {
        let index = index_in(&self.owner().iovs, usize::try_from(index).ok()?)?;

        // SAFETY: `index_in` found that there is such a buffer.
        Some(unsafe { self.owner().iov_unchecked(index) })
    }

    /// Claims the buffers for the pools of `provider`. Returns whether they belong to `provider`
    /// now: the first claim decides, and claims of other providers fail after it.
    fn claim(&self, provider: NonNull<c_void>) -> bool {
        let provider = provider.as_ptr();
        let claimed = self.owner().provider.cmpxchg(null_mut(), provider, Relaxed);

        claimed.is_ok() || claimed == Err(provider)
    }

    /// Returns whether the buffers may be put into pools of `provider` that belong to `dev` and
    /// whose buffers have `1 << shift` bytes. If so, this claims the buffers for `provider`.
    pub(super) fn claim_for(
        &self,
        provider: NonNull<c_void>,
        dev: *mut bindings::device,
        shift: u32,
    ) -> bool {
        // Acquire pairs with the release in `map`: a CPU that sees the device also sees the
        // addresses, which were set before.
        self.owner().dev.load(Acquire) == dev && self.owner().shift == shift && self.claim(provider)
    }

    /// Takes a free buffer, so that the caller can put it into a page pool. Returns its `net_iov`,
    /// or `None` if the buffer is not free.
    #[inline]
    pub(super) fn take(&self, index: u32) -> Option<NonNull<bindings::net_iov>> {
        let iov = self.iov(index.into())?;

        iov.references().take().then_some(iov.iov)
    }

    /// Takes a buffer out of its pool and marks it as free. Returns the tag of its [`NetIovs`], and
    /// the index of the buffer there.
    ///
    /// # Safety
    ///
    /// `netmem` must be a buffer that [`Self::take`] returned and that was then put into a pool.
    /// The pool must be releasing it, and nobody else may have a reference to it.
    pub(super) unsafe fn release(netmem: bindings::netmem_ref) -> (u64, usize) {
        let iov = (netmem & !NET_IOV) as *mut bindings::net_iov;
        // SAFETY: The caller guarantees that the pointer is valid, so that it is not null.
        let iov = unsafe { NonNull::new_unchecked(iov) };
        // SAFETY: The caller guarantees that the `net_iov` is valid and one of a `NetIovs`.
        let iov = unsafe { Iov::from_raw(iov) };
        let named = (iov.owner.tag.load(Relaxed), iov.index());

        // SAFETY: The caller guarantees that the `net_iov` is valid, and that its pool is releasing
        // it.
        unsafe { bindings::net_mp_niov_clear_page_pool(iov.iov.as_ptr()) };
        iov.references().set_free_by_pool();
        named
    }

    /// Grants a free buffer to user space. Returns whether the buffer was free.
    pub fn take_and_grant(&self, index: u32) -> bool {
        match self.iov(index.into()) {
            Some(iov) if iov.references().take() => {
                iov.granted().add();
                true
            }
            _ => false,
        }
    }

    /// Takes back up to `count` grants of a buffer from user space. Returns the state that the
    /// buffer is in afterwards.
    ///
    /// The index may come from user space: it is clamped against speculative execution.
    #[inline]
    pub fn take_back(&self, index: u64, count: u32) -> AfterPut<'_> {
        let Some(iov) = self.iov(index) else {
            return AfterPut::Held;
        };

        match iov.granted().take_back(count) {
            Some(taken) => iov.put(taken),
            None => AfterPut::Held,
        }
    }

    /// Takes back all grants of a buffer from user space. Returns the state that the buffer is in
    /// afterwards.
    pub fn take_back_all(&self, index: u32) -> AfterPut<'_> {
        let Some(iov) = self.iov(index.into()) else {
            return AfterPut::Held;
        };

        match iov.granted().take_back_all() {
            Some(count) => iov.put(count),
            None => AfterPut::Held,
        }
    }
}

impl NetIovs {
    /// Returns whether a buffer is in a pool, or has a reference that is no grant. May sleep.
    fn is_any_held(&self) -> bool {
        let is_held =
            |iov: Iov<'_>| !iov.pool().is_null() || iov.references().exceed(iov.granted());

        (0..self.len()).any(|index| {
            resched_after(index);
            // SAFETY: `index` is less than the number of buffers.
            is_held(unsafe { self.owner().iov_unchecked(index) })
        })
    }
}

impl Drop for NetIovs {
    /// Frees the buffers and ends their mapping. May sleep.
    fn drop(&mut self) {
        // A pool that releases a buffer takes it out first, then marks it as free, and drops its
        // reference to the provider last (see `release`). So no buffer should still be held here.
        // If one is, there is a bug elsewhere. The memory is leaked then, since a pool must not
        // refer to freed memory.
        if !warn_on_once!(self.is_any_held()) {
            // SAFETY: By the type invariants, the pointer came from `KBox::into_raw` and is owned
            // by this object. `drop` runs once, and as no buffer is in a pool, nobody refers to
            // one.
            drop(unsafe { Pin::new_unchecked(KBox::from_raw(self.owner.as_ptr())) });
        }
    }
}

#[cfg(CONFIG_RUST_NET_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_net_netmem)]
mod tests {
    use super::{
        counts::GRANTED_MAX,
        *, //
    };

    const KIND: ProviderKind = ProviderKind::IoUring;

    fn take_back(iovs: &NetIovs, index: u64, count: u32) -> Option<bool> {
        match iovs.take_back(index, count) {
            AfterPut::Held => None,
            AfterPut::Free => Some(true),
            AfterPut::Pooled(_) => Some(false),
        }
    }

    #[test]
    fn buffers_are_numbered_from_zero() -> Result {
        let iovs = NetIovs::new(KIND, 3, 12)?;

        assert_eq!(iovs.len(), 3);
        for index in 0..3 {
            assert_eq!(iovs.iov(index).map(Iov::index), Some(index as usize));
        }
        assert!(iovs.iov(3).is_none());
        assert!(NetIovs::new(KIND, 0, 12)?.is_empty());
        Ok(())
    }

    /// A buffer can be taken by one party at a time.
    #[test]
    fn buffer_is_taken_once() -> Result {
        let iovs = NetIovs::new(KIND, 2, 12)?;

        assert!(iovs.take(0).is_some());
        assert!(iovs.take(0).is_none());
        assert!(!iovs.take_and_grant(0));
        assert!(iovs.take_and_grant(1));
        assert!(iovs.take(1).is_none());
        assert!(iovs.take(2).is_none());
        assert!(!iovs.take_and_grant(2));

        // A buffer on its way back to its pool has no references for a moment.
        let references = iovs.iov(0).ok_or(EINVAL)?.references().0;

        references.store(0, Relaxed);
        assert!(iovs.take(0).is_none());
        assert!(!iovs.take_and_grant(0));
        // The buffer is in no pool: let it be freed.
        references.store(FREE, Relaxed);
        Ok(())
    }

    /// User space cannot give back more than it was granted.
    #[test]
    fn no_more_than_granted_is_taken_back() -> Result {
        let iovs = NetIovs::new(KIND, 4, 12)?;

        assert_eq!(take_back(&iovs, 0, 1), None);
        assert!(iovs.take_and_grant(0));
        assert_eq!(take_back(&iovs, 0, 0), None);
        assert_eq!(take_back(&iovs, 0, 9), Some(true));
        assert_eq!(take_back(&iovs, 0, 1), None);

        // A buffer is granted once for each run of bytes received in it.
        assert!(iovs.take_and_grant(1));
        let received = ProvidedIov::new(iovs.iov(1).ok_or(EINVAL)?, 7);

        received.grant();
        received.grant();
        iovs.set_tag(5);
        assert_eq!(
            (received.tag(), received.index(), received.offset()),
            (5, 1, 7)
        );
        assert_eq!(take_back(&iovs, 1, 2), None);
        assert_eq!(take_back(&iovs, 1, 1), Some(true));

        // None of these indices exists.
        for index in [4, 1 << 32, 1 << 32 | 2, u64::MAX] {
            assert_eq!(take_back(&iovs, index, 1), None);
        }

        for index in [2, 4, u32::MAX] {
            assert!(matches!(iovs.take_back_all(index), AfterPut::Held));
        }
        assert!(iovs.take_and_grant(2));
        assert!(matches!(iovs.take_back_all(2), AfterPut::Free));
        assert!(iovs.take_and_grant(2));
        ProvidedIov::new(iovs.iov(2).ok_or(EINVAL)?, 0).grant();
        assert!(matches!(iovs.take_back_all(2), AfterPut::Free));
        assert!(iovs.take_and_grant(2));
        Ok(())
    }

    /// However often a buffer is granted, it is not freed before it was given back as often.
    #[test]
    fn grant_count_cannot_overflow() -> Result {
        let iovs = NetIovs::new(KIND, 1, 12)?;
        let iov = iovs.iov(0).ok_or(EINVAL)?;
        let received = ProvidedIov::new(iov, 0);

        assert!(iovs.take_and_grant(0));
        if isize::BITS < 64 {
            iov.granted().0.store(GRANTED_MAX - 1, Relaxed);
            iov.references().0.store(GRANTED_MAX as isize - 1, Relaxed);
            for _ in 0..3 {
                received.grant();
                assert_eq!(iov.granted().0.load(Relaxed), GRANTED_MAX);
                assert_eq!(iov.references().0.load(Relaxed), GRANTED_MAX as isize);
            }
            assert_eq!(take_back(&iovs, 0, u32::MAX), Some(true));
            return Ok(());
        }
        iov.granted().0.store(i32::MAX, Relaxed);
        iov.references().0.store(i32::MAX as isize, Relaxed);
        received.grant();
        assert_eq!(iov.granted().0.load(Relaxed), i32::MIN);
        assert_eq!(iov.references().0.load(Relaxed), 1 << 31);
        assert_eq!(take_back(&iovs, 0, 1), None);
        assert_eq!(iov.references().0.load(Relaxed), 1 << 31);
        iov.granted().0.store(0, Relaxed);
        iov.references().0.store(FREE, Relaxed);
        Ok(())
    }

    /// Buffers go only into pools of their own device, size and provider.
    #[test]
    fn pool_must_match_device_size_and_provider() -> Result {
        let iovs = NetIovs::new(KIND, 1, 12)?;
        let (one, other) = (NonNull::<u32>::dangling(), NonNull::<u64>::dangling());
        let (dev, others) = (one.as_ptr().cast(), other.as_ptr().cast());

        assert!(!iovs.claim_for(one.cast(), dev, 12));
        iovs.owner().dev.store(dev, Relaxed);
        assert!(!iovs.claim_for(one.cast(), others, 12));
        assert!(!iovs.claim_for(one.cast(), null_mut(), 12));
        assert!(!iovs.claim_for(one.cast(), dev, 13));
        assert!(!iovs.claim_for(one.cast(), dev, 11));
        assert!(iovs.claim_for(one.cast(), dev, 12));
        assert!(!iovs.claim_for(other.cast(), dev, 12));
        assert!(iovs.claim_for(one.cast(), dev, 12));
        Ok(())
    }

    /// A buffer that user space has may be dropped, and one that anybody else has may not.
    #[test]
    fn held_buffers_are_noticed() -> Result {
        let iovs = NetIovs::new(KIND, 2, 12)?;
        let iov = iovs.iov(1).ok_or(EINVAL)?;

        assert!(!iovs.is_any_held());
        assert!(iovs.take_and_grant(1));
        assert!(!iovs.is_any_held());
        ProvidedIov::new(iov, 0).grant();
        assert!(!iovs.is_any_held());
        iov.references().0.add(1, Relaxed);
        assert!(iovs.is_any_held());
        iov.references().0.fetch_sub(1, Relaxed);
        assert!(!iovs.is_any_held());
        assert!(iovs.take(0).is_some());
        assert!(iovs.is_any_held());
        iovs.iov(0)
            .ok_or(EINVAL)?
            .references()
            .0
            .store(FREE, Relaxed);
        assert!(!iovs.is_any_held());
        Ok(())
    }

    /// A buffer is not freed while somebody else has a reference to it.
    #[test]
    fn not_freed_while_referenced() -> Result {
        let iovs = NetIovs::new(KIND, 1, 12)?;
        let iov = iovs.iov(0).ok_or(EINVAL)?;

        assert!(iovs.take_and_grant(0));
        iov.references().0.add(1, Relaxed);
        assert_eq!(take_back(&iovs, 0, 1), None);
        assert_eq!(iov.references().0.load(Relaxed), 1);
        iov.references().0.store(FREE, Relaxed);
        Ok(())
    }
}
