// SPDX-License-Identifier: GPL-2.0

//! Chains of filters.
//!
//! A chain is a list of immutable nodes, newest first. Chains share their tails: stacking a filter
//! on an inherited chain makes one node. A chain's cost is bounded, and it is taken apart in a
//! loop, never by recursion.

use core::mem::take;
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::Arc, //
};

/// The most that a chain may cost, as for a path of seccomp filters.
pub(super) const MAX_COST: u32 = 32_768;

/// What a filter costs besides its instructions.
const FILTER_COST: u32 = 4;

/// A filter and those that were there before it.
///
/// # Invariants
///
/// `cost` is the sum over the filters of the chain of their lengths in instructions plus
/// [`FILTER_COST`], and at most [`MAX_COST`].
pub(super) struct Chain<P> {
    payload: P,
    cost: u32,
    next: Option<Arc<Chain<P>>>,
}

// Payloads are never pinned.
impl<P> Unpin for Chain<P> {}

impl<P> Chain<P> {
    /// Puts a filter of `len` instructions in front of `next`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if the chain would cost more than [`MAX_COST`], or memory is short.
    pub(super) fn push(
        next: Option<&Arc<Self>>,
        payload: P,
        len: u16,
        flags: Flags,
    ) -> Result<Arc<Self>> {
        let before = next.map_or(0, |next| next.cost);
        let cost = before + u32::from(len) + FILTER_COST;

        if cost > MAX_COST {
            return Err(ENOMEM);
        }
        // INVARIANT: The sum was just made and checked. It could not overflow: `before` is at most
        // `MAX_COST`.
        let chain = Self {
            payload,
            cost,
            next: next.cloned(),
        };
        Ok(Arc::new(chain, flags)?)
    }

    /// The filters, newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &P> {
        core::iter::successors(Some(self), |chain| chain.next.as_deref())
            .map(|chain| &chain.payload)
    }
}

/// Drops up to `budget` filters from the front of `chain` that nobody shares.
///
/// When it returns with budget left, `chain` is empty.
pub(super) fn release<P>(chain: &mut Option<Arc<Chain<P>>>, budget: &mut u32) {
    while *budget > 0 {
        let Some(node) = chain.take() else {
            return;
        };
        // The rest belongs to others if the node does.
        let Some(node) = Arc::into_unique_or_drop(node) else {
            return;
        };

        *chain = take(&mut Pin::into_inner(node).next);
        *budget -= 1;
    }
}

impl<P> Drop for Chain<P> {
    fn drop(&mut self) {
        release(&mut self.next, &mut u32::MAX.clone());
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_chain)]
mod tests {
    use super::*;
    use kernel::sync::atomic::{
        Atomic,
        Relaxed, //
    };

    /// Counts how often it is dropped.
    struct Counted(Arc<Atomic<u32>>);

    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_add(1, Relaxed);
        }
    }

    fn counter() -> Result<Arc<Atomic<u32>>> {
        Ok(Arc::new(Atomic::new(0), GFP_KERNEL)?)
    }

    #[test]
    fn newest_first() -> Result {
        let first = Chain::push(None, 1, 1, GFP_KERNEL)?;
        let second = Chain::push(Some(&first), 2, 1, GFP_KERNEL)?;
        let third = Chain::push(Some(&second), 3, 1, GFP_KERNEL)?;

        assert!(third.iter().copied().eq([3, 2, 1]));
        assert!(first.iter().copied().eq([1]));
        Ok(())
    }

    /// 7 * (4096 + 4) = 28,700, which leaves room for 4,064 more instructions.
    #[test]
    fn bound_is_exact() -> Result {
        let mut chain = None;

        for _ in 0..7 {
            chain = Some(Chain::push(chain.as_ref(), (), 4096, GFP_KERNEL)?);
        }
        assert_eq!(
            Chain::push(chain.as_ref(), (), 4096, GFP_KERNEL).err(),
            Some(ENOMEM)
        );
        assert_eq!(
            Chain::push(chain.as_ref(), (), 4065, GFP_KERNEL).err(),
            Some(ENOMEM)
        );

        let full = Chain::push(chain.as_ref(), (), 4064, GFP_KERNEL)?;
        assert_eq!(full.cost, MAX_COST);
        assert_eq!(
            Chain::push(Some(&full), (), 1, GFP_KERNEL).err(),
            Some(ENOMEM)
        );
        Ok(())
    }

    /// Drops three chains with a common tail in each of the six orders.
    #[test]
    fn shared_tail_dropped_once() -> Result {
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let tail_drops = counter()?;
            let head_drops = counter()?;
            let mut tail = None;

            for _ in 0..10 {
                let payload = Counted(tail_drops.clone());
                tail = Some(Chain::push(tail.as_ref(), payload, 1, GFP_KERNEL)?);
            }
            let head = || {
                let payload = Counted(head_drops.clone());
                Chain::push(tail.as_ref(), payload, 1, GFP_KERNEL).map(Some)
            };
            let mut heads = [head()?, head()?, head()?];
            drop(tail);

            for (done, &which) in order.iter().enumerate() {
                assert_eq!(tail_drops.load(Relaxed), 0);
                assert_eq!(head_drops.load(Relaxed) as usize, done);
                if let Some(head) = heads.get_mut(which) {
                    drop(head.take());
                }
            }
            assert_eq!(tail_drops.load(Relaxed), 10);
            assert_eq!(head_drops.load(Relaxed), 3);
        }
        Ok(())
    }

    /// Neither way of dropping a long chain recurses.
    #[test]
    fn long_chain() -> Result {
        // Far more than a stack holds; KASAN makes each of them dear.
        const NODES: u32 = if cfg!(CONFIG_KASAN) { 10_000 } else { 100_000 };
        let drops = counter()?;
        let build = || -> Result<_> {
            let mut chain = None;

            for _ in 0..NODES {
                // Longer than the bound admits, to strain what takes it apart.
                chain = Some(Arc::new(
                    Chain {
                        payload: Counted(drops.clone()),
                        cost: 0,
                        next: chain,
                    },
                    GFP_KERNEL,
                )?);
            }
            Ok(chain)
        };

        drop(build()?);
        assert_eq!(drops.load(Relaxed), NODES);

        let mut chain = build()?;
        let mut calls = 0;
        while chain.is_some() {
            let before = drops.load(Relaxed);

            release(&mut chain, &mut 1_000);
            calls += 1;
            assert!(drops.load(Relaxed) - before <= 1_000);
        }
        assert_eq!(drops.load(Relaxed), 2 * NODES);
        assert_eq!(calls, NODES / 1_000);
        Ok(())
    }
}
