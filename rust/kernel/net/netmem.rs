// SPDX-License-Identifier: GPL-2.0

//! Buffers that network devices receive into and whose memory the network stack knows nothing of.
//!
//! [`NetIovs`] are the buffers of one piece of memory. Each is free, or has references: of the page
//! pool that it was put into, of packets, and of user space, to which it was *granted*. How often
//! it was granted is counted, so that user space cannot give back what it has not got.
//!
//! C header: [`include/net/netmem.h`](srctree/include/net/netmem.h)

mod provided;
pub use self::provided::{
    Lookup,
    ProvidedIov, //
};

use crate::{
    bindings,
    io::ResourceSize,
    nospec::index_in,
    num::casts::u32_as_usize,
    prelude::*,
    scatterlist::SGTable,
    sched,
    sync::atomic::{
        Acquire,
        Atomic,
        Full,
        Relaxed,
        Release, //
    },
    types::Opaque,
    warn_on, //
};
use core::{
    mem::ManuallyDrop,
    ptr::{
        null_mut,
        NonNull, //
    }, //
};

/// The lowest bit of a `netmem_ref` that is a `net_iov`.
pub(super) const NET_IOV: bindings::netmem_ref = bindings::NET_IOV as bindings::netmem_ref;

/// How many references a free buffer has: a number that is no other's. Those of a buffer in a pool
/// may be zero for a moment.
const FREE: isize = isize::MIN;

/// Lets others run after each 4,096 buffers: there may be millions.
fn rest_after(number: usize) {
    if number % 4096 == 0 {
        sched::cond_resched();
    }
}

/// What the buffers of one piece of memory share.
///
/// `area` is where C looks for it: each `net_iov` points to it.
#[repr(C)]
struct Owner {
    area: Opaque<bindings::net_iov_area>,
    /// What [`ProvidedIov::tag`] returns.
    tag: Atomic<u64>,
    /// Whose pools the buffers may be put into, once one was.
    provider: Atomic<*mut c_void>,
    iovs: KVVec<Opaque<bindings::net_iov>>,
    /// How many references of each are user space's.
    granted: KVVec<Atomic<i32>>,
}

impl Owner {
    /// # Safety
    ///
    /// `index` must be less than how many there are.
    #[inline]
    unsafe fn iov_unchecked(&self, index: usize) -> Iov<'_> {
        // SAFETY: The caller guarantees it.
        let iov = unsafe { self.iovs.get_unchecked(index) }.get();

        // INVARIANT: The `net_iov` is one of this owner's.
        Iov {
            // SAFETY: A reference is not null.
            iov: unsafe { NonNull::new_unchecked(iov) },
            owner: self,
        }
    }
}

/// One `net_iov`.
///
/// # Invariants
///
/// For the duration of `'a`, `iov` is a valid `net_iov` of `owner`.
#[derive(Clone, Copy)]
struct Iov<'a> {
    iov: NonNull<bindings::net_iov>,
    owner: &'a Owner,
}

impl<'a> Iov<'a> {
    /// # Safety
    ///
    /// For the duration of `'a`, `iov` must be a valid one of [`NetIovs`].
    #[inline]
    unsafe fn from_raw(iov: NonNull<bindings::net_iov>) -> Self {
        // INVARIANT: The caller guarantees it.
        Self {
            iov,
            // SAFETY: The caller guarantees that the `net_iov` is valid. Its owner never changes,
            // and is the first member of an `Owner` that lives as long.
            owner: unsafe { &*(*iov.as_ptr()).owner.cast::<Owner>() },
        }
    }

    /// Its number in the owner's array.
    #[inline]
    fn index(self) -> usize {
        let first = self.owner.iovs.as_ptr().addr();

        self.iov.addr().get().wrapping_sub(first) / size_of::<bindings::net_iov>()
    }

    /// How many references there are, or [`FREE`].
    #[inline]
    fn references(self) -> &'a Atomic<isize> {
        // SAFETY: By the type invariants, the `net_iov` is valid. C accesses this field by atomic
        // operations, while the `net_iov` is in a pool; `atomic_long_t` has one member of the size
        // of an `isize`.
        unsafe { Atomic::from_ptr((&raw mut (*self.iov.as_ptr()).desc.pp_ref_count).cast()) }
    }

    /// The pool that it is in, or null. Does not change while somebody has a reference.
    #[inline]
    fn pool(self) -> *mut bindings::page_pool {
        // SAFETY: By the type invariants, the `net_iov` is valid. The field is only written to by
        // who has all references. This is volatile as others may be those.
        unsafe { (&raw const (*self.iov.as_ptr()).desc.pp).read_volatile() }
    }

    /// How many references are user space's.
    #[inline]
    fn granted(self) -> &'a Atomic<i32> {
        // SAFETY: There are as many as there are `net_iov`s, of which this is one.
        unsafe { self.owner.granted.get_unchecked(self.index()) }
    }

    #[inline]
    fn netmem(self) -> bindings::netmem_ref {
        self.iov.addr().get() as bindings::netmem_ref | NET_IOV
    }

    /// Takes it, if it is free.
    fn take(self) -> bool {
        self.references().cmpxchg(FREE, 1, Acquire).is_ok()
    }

    /// Gives references back that were granted: what remains.
    #[inline]
    fn put(self, count: i32) -> TakenBack<'a> {
        let (references, count) = (self.references(), count as isize);

        // Mostly there are no others. Who sees that has no need of an atomic operation.
        if references.load(Acquire) != count && references.fetch_sub(count, Full) != count {
            return TakenBack::Held;
        }
        if self.pool().is_null() {
            references.store(FREE, Release);
            return TakenBack::Free;
        }
        // Pools want it so.
        references.store(1, Relaxed);
        // INVARIANT: It is in a pool, and all references were ours.
        TakenBack::Pooled(PooledIov(self))
    }
}

/// What became of references that user space gave back.
pub enum TakenBack<'a> {
    /// It had none, or others are left.
    Held,
    /// The buffer is free.
    Free,
    /// Nobody but the pool has the buffer.
    Pooled(PooledIov<'a>),
}

/// A buffer in a pool that nobody has a reference to any more. It is to be given back to the pool:
/// to drop this is to lose it.
///
/// # Invariants
///
/// The `net_iov` is in a pool, has one reference, and nobody else refers to it.
pub struct PooledIov<'a>(Iov<'a>);

impl PooledIov<'_> {
    /// The pool that the buffer is in.
    #[inline]
    pub(super) fn pool(&self) -> *mut bindings::page_pool {
        self.0.pool()
    }

    /// The buffer as C knows it.
    #[inline]
    pub(super) fn into_netmem(self) -> bindings::netmem_ref {
        self.0.netmem()
    }

    /// Gives the buffer back to its pool. May be called in any context.
    ///
    /// C counterpart: `page_pool_put_unrefed_netmem`.
    #[inline]
    pub fn put(self) {
        let (pool, netmem) = (self.pool(), self.0.netmem());

        // SAFETY: By the type invariants, the buffer is in that pool, which stays until it has all
        // its buffers back, and nobody refers to the buffer.
        unsafe { bindings::page_pool_put_unrefed_netmem(pool, netmem, u32::MAX, false) };
    }
}

/// Buffers of one piece of memory.
///
/// # Invariants
///
/// - `iovs` and `granted` of the owner have as many elements, and are never moved nor shortened.
/// - Each `net_iov` is of that owner. Its `pp` is null while it is in no pool; its `pp_ref_count`
///   is `FREE` while it is free, and else not below what was granted.
pub struct NetIovs(ManuallyDrop<Pin<KBox<Owner>>>);

// SAFETY: The buffers belong to nobody in particular.
unsafe impl Send for NetIovs {}

// SAFETY: All accesses by way of shared references are atomic, or by who has taken the buffer.
unsafe impl Sync for NetIovs {}

impl NetIovs {
    /// So many buffers, all of them free.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub fn new(count: u32) -> Result<Self> {
        let capacity = u32_as_usize(count);
        let mut iovs = KVVec::with_capacity(capacity, GFP_KERNEL_ACCOUNT)?;
        let mut granted = KVVec::with_capacity(capacity, GFP_KERNEL_ACCOUNT)?;
        let mut owner = KBox::new(
            Owner {
                area: Opaque::new(bindings::net_iov_area {
                    niovs: null_mut(),
                    num_niovs: capacity,
                    base_virtual: 0,
                }),
                tag: Atomic::new(0),
                provider: Atomic::new(null_mut()),
                iovs: KVVec::new(),
                granted: KVVec::new(),
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        let area = owner.area.get();

        for _ in 0..count {
            let mut iov: bindings::net_iov = pin_init::zeroed();

            iov.type_ = bindings::net_iov_type_NET_IOV_IOURING;
            iov.owner = area;
            iov.desc.pp_ref_count.counter = FREE.try_into()?;
            iovs.push(Opaque::new(iov), GFP_KERNEL_ACCOUNT)?;
            granted.push(Atomic::new(0), GFP_KERNEL_ACCOUNT)?;
        }
        // SAFETY: Nobody else has a pointer to it yet.
        unsafe { (*area).niovs = iovs.as_mut_ptr().cast() };
        owner.iovs = iovs;
        owner.granted = granted;
        // INVARIANT: All are of this owner, in no pool and free. Nothing below moves them.
        Ok(Self(ManuallyDrop::new(owner.into())))
    }

    /// Sets what [`ProvidedIov::tag`] returns.
    pub fn set_tag(&self, tag: u64) {
        self.0.tag.store(tag, Relaxed);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iovs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn iov(&self, index: u64) -> Option<Iov<'_>> {
        let index = index_in(&self.0.iovs, usize::try_from(index).ok()?)?;

        // SAFETY: There is such a buffer.
        Some(unsafe { self.0.iov_unchecked(index) })
    }

    /// Takes a free buffer for a page pool of `provider`: what C calls it. It is in no pool yet.
    ///
    /// Only one provider can have them.
    pub(super) fn take(
        &self,
        index: u32,
        provider: NonNull<c_void>,
    ) -> Option<NonNull<bindings::net_iov>> {
        let provider = provider.as_ptr();
        let known = self.0.provider.load(Relaxed);
        let is_theirs = known == provider
            || known.is_null() && {
                let claimed = self.0.provider.cmpxchg(null_mut(), provider, Relaxed);

                claimed.is_ok() || claimed == Err(provider)
            };
        let iov = self.iov(index.into())?;

        (is_theirs && iov.take()).then_some(iov.iov)
    }

    /// Takes a buffer out of its pool: the tag and its number. It is free then.
    ///
    /// # Safety
    ///
    /// `netmem` must be a buffer that was taken by [`Self::take`] and put into a pool, which lets
    /// go of it. Nobody else may refer to it.
    pub(super) unsafe fn release(netmem: bindings::netmem_ref) -> (u64, usize) {
        let iov = (netmem & !NET_IOV) as *mut bindings::net_iov;
        // SAFETY: A valid pointer is not null.
        let iov = unsafe { NonNull::new_unchecked(iov) };
        // SAFETY: The caller guarantees that it is valid.
        let iov = unsafe { Iov::from_raw(iov) };
        let named = (iov.owner.tag.load(Relaxed), iov.index());

        // SAFETY: The caller guarantees that it is valid, and in a pool that lets go of it.
        unsafe { bindings::net_mp_niov_clear_page_pool(iov.iov.as_ptr()) };
        iov.references().store(FREE, Release);
        named
    }

    /// Grants user space a buffer that is free. Returns whether it was.
    pub fn grant_free(&self, index: u32) -> bool {
        match self.iov(index.into()) {
            Some(iov) if iov.take() => {
                iov.granted().fetch_add(1, Release);
                true
            }
            _ => false,
        }
    }

    /// Takes back up to `count` references that user space has to a buffer.
    ///
    /// The index may come from user space: it is clamped for speculative execution.
    #[inline]
    pub fn take_back(&self, index: u64, count: u32) -> TakenBack<'_> {
        let Some(iov) = self.iov(index) else {
            return TakenBack::Held;
        };
        let granted = iov.granted();
        let mut old = granted.load(Relaxed);

        while old > 0 {
            // No more than `old`, so that it fits.
            let taken = old.unsigned_abs().min(count) as i32;

            match granted.cmpxchg(old, old.wrapping_sub(taken), Full) {
                Ok(_) => return iov.put(taken),
                Err(now) => old = now,
            }
        }
        TakenBack::Held
    }

    /// Takes back all references that user space has to a buffer.
    pub fn take_back_all(&self, index: u32) -> TakenBack<'_> {
        let Some(iov) = self.iov(index.into()) else {
            return TakenBack::Held;
        };

        if iov.granted().load(Relaxed) == 0 {
            return TakenBack::Held;
        }
        match iov.granted().xchg(0, Full) {
            0 => TakenBack::Held,
            count => iov.put(count),
        }
    }

    /// Tells devices where the buffers are: one after the other, `1 << shift` bytes each, in the
    /// memory that `table` maps. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if a buffer would not be in one piece.
    /// - [`EFAULT`] if the memory is not as large as the buffers, or has addresses that a device
    ///   cannot be told.
    pub fn set_dma(&self, table: &SGTable, shift: u32) -> Result {
        let size = ResourceSize::checked_shl(1, shift).ok_or(EINVAL)?;
        let mut iovs = self.0.iovs.iter();

        for entry in table.iter() {
            let len = entry.dma_len();
            let count = usize::try_from(len >> shift)?;

            if len & (size - 1) != 0 {
                return Err(EINVAL);
            }
            let mut address = entry.dma_address();

            for (number, iov) in iovs.by_ref().take(count).enumerate() {
                // SAFETY: The `net_iov` is valid. Its address is one word, so that a pool that it
                // is in already finds the old one or the new one.
                if unsafe { bindings::net_mp_niov_set_dma_addr(iov.get(), address) } {
                    return Err(EFAULT);
                }
                address = address.wrapping_add(size as bindings::dma_addr_t);
                rest_after(number);
            }
        }
        iovs.next().map_or(Ok(()), |_| Err(EFAULT))
    }

    /// Tells devices nothing of where the buffers are. May sleep.
    pub fn clear_dma(&self) {
        for (number, iov) in self.0.iovs.iter().enumerate() {
            // SAFETY: The `net_iov` is valid. Zero can always be set.
            unsafe { bindings::net_mp_niov_set_dma_addr(iov.get(), 0) };
            rest_after(number);
        }
    }
}

impl Drop for NetIovs {
    fn drop(&mut self) {
        // A pool that lets go of a buffer first leaves it, and gives up its reference last.
        let is_held = |iov: Iov<'_>| {
            let left = match iov.granted().load(Relaxed) {
                0 => FREE,
                granted => granted as isize,
            };

            !iov.pool().is_null() || iov.references().load(Acquire) != left
        };
        // SAFETY: There are as many.
        let mut iovs = (0..self.len()).map(|index| unsafe { self.0.iov_unchecked(index) });

        // What a pool refers to must stay, come what may.
        if !warn_on!(iovs.any(is_held)) {
            // SAFETY: This is done once, and nobody refers to the buffers.
            unsafe { ManuallyDrop::drop(&mut self.0) };
        }
    }
}

#[cfg(CONFIG_RUST_IO_URING_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_net_netmem)]
mod tests {
    use super::*;

    fn take_back(iovs: &NetIovs, index: u64, count: u32) -> Option<bool> {
        match iovs.take_back(index, count) {
            TakenBack::Held => None,
            TakenBack::Free => Some(true),
            TakenBack::Pooled(_) => Some(false),
        }
    }

    #[test]
    fn numbers() -> Result {
        let iovs = NetIovs::new(3)?;

        assert_eq!(iovs.len(), 3);
        for index in 0..3 {
            assert_eq!(iovs.iov(index).map(Iov::index), Some(index as usize));
        }
        assert!(iovs.iov(3).is_none());
        assert!(NetIovs::new(0)?.is_empty());
        Ok(())
    }

    /// In one place at a time.
    #[test]
    fn taking() -> Result {
        let iovs = NetIovs::new(2)?;

        assert!(iovs.take(0, NonNull::dangling()).is_some());
        assert!(iovs.take(0, NonNull::dangling()).is_none());
        assert!(!iovs.grant_free(0));
        assert!(iovs.grant_free(1));
        assert!(iovs.take(1, NonNull::dangling()).is_none());
        assert!(iovs.take(2, NonNull::dangling()).is_none());
        assert!(!iovs.grant_free(2));

        // A pool that gets it back has none for a moment.
        let references = iovs.iov(0).ok_or(EINVAL)?.references();

        references.store(0, Relaxed);
        assert!(iovs.take(0, NonNull::dangling()).is_none());
        assert!(!iovs.grant_free(0));
        // No pool got it after all: it must not be freed as long as one may.
        references.store(FREE, Relaxed);
        Ok(())
    }

    /// What three buffers of 4 KiB or 8 KiB are told if these pieces, address and bytes each, are
    /// mapped for a device.
    fn told(pieces: [(u64, u32); 3], shift: u32) -> Result<[u64; 3]> {
        let iovs = NetIovs::new(3)?;
        let mut entries: [bindings::scatterlist; 3] = pin_init::zeroed();
        let mut table: bindings::sg_table = pin_init::zeroed();

        // SAFETY: There are so many entries.
        unsafe { bindings::sg_init_table(entries.as_mut_ptr(), 3) };
        for (entry, (address, len)) in entries.iter_mut().zip(pieces) {
            entry.dma_address = address as bindings::dma_addr_t;
            entry.length = len;
            #[cfg(CONFIG_NEED_SG_DMA_LENGTH)]
            {
                entry.dma_length = len;
            }
        }
        table.sgl = entries.as_mut_ptr();
        table.nents = 3;
        // SAFETY: The table and its entries stay while it is used.
        iovs.set_dma(unsafe { SGTable::from_raw(&raw mut table) }, shift)?;

        // SAFETY: The buffer is valid.
        let address =
            |iov: Iov<'_>| unsafe { bindings::page_pool_get_dma_addr_netmem(iov.netmem()) as u64 };
        Ok([0, 1, 2].map(|index| iovs.iov(index).map_or(0, address)))
    }

    #[test]
    fn addresses() {
        let odd = [(0x7000, 4096), (0x3000, 4096), (0x1_0000, 4096)];
        assert_eq!(told(odd, 12), Ok([0x7000, 0x3000, 0x1_0000]));
        // No two of them are in a row.
        assert_eq!(told(odd, 13), Err(EINVAL));
        let long = [(0x8000, 16384), (0x2000, 8192), (0x4000, 8192)];
        assert_eq!(told(long, 12), Ok([0x8000, 0x9000, 0xa000]));
        assert_eq!(told(long, 13), Ok([0x8000, 0xa000, 0x2000]));
        let few = [(0x5000, 4096), (0x2000, 4096), (0x9000, 0)];
        assert_eq!(told(few, 12), Err(EFAULT));
    }

    /// No more than was granted.
    #[test]
    fn taking_back() -> Result {
        let iovs = NetIovs::new(4)?;

        assert_eq!(take_back(&iovs, 0, 1), None);
        assert!(iovs.grant_free(0));
        assert_eq!(take_back(&iovs, 0, 0), None);
        assert_eq!(take_back(&iovs, 0, 9), Some(true));
        assert_eq!(take_back(&iovs, 0, 1), None);

        // As often as its bytes were received.
        assert!(iovs.grant_free(1));
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

        // None of these is there.
        for index in [4, 1 << 32, 1 << 32 | 2, u64::MAX] {
            assert_eq!(take_back(&iovs, index, 1), None);
        }

        assert!(matches!(iovs.take_back_all(2), TakenBack::Held));
        assert!(iovs.grant_free(2));
        assert!(matches!(iovs.take_back_all(2), TakenBack::Free));
        assert!(iovs.grant_free(2));
        Ok(())
    }

    /// Somebody else has a reference, too.
    #[test]
    fn held_elsewhere() -> Result {
        let iovs = NetIovs::new(1)?;
        let iov = iovs.iov(0).ok_or(EINVAL)?;

        assert!(iovs.grant_free(0));
        iov.references().add(1, Relaxed);
        assert_eq!(take_back(&iovs, 0, 1), None);
        assert_eq!(iov.references().load(Relaxed), 1);
        iov.references().store(FREE, Relaxed);
        Ok(())
    }
}
