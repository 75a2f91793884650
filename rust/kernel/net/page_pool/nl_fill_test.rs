// SPDX-License-Identifier: GPL-2.0

//! Unit tests of the netlink attributes of a provider in a message that is nearly full.

#[macros::kunit_tests(rust_kernel_net_page_pool_nl_fill)]
mod tests {
    use super::super::{
        Adapter,
        AllocCache,
        MemoryProvider,
        ProvidedQueue,
        ProviderKind,
        Unused, //
    };
    use crate::{
        bindings,
        net::skbuff::owned::OwnedSkBuff,
        prelude::*,
        sync::Arc, //
    };
    use core::ptr::{
        null_mut,
        NonNull, //
    };

    /// A provider without buffers.
    struct EmptyProvider;

    impl MemoryProvider for EmptyProvider {
        const KIND: ProviderKind = ProviderKind::IoUring;

        fn alloc(&self, _cache: &mut AllocCache<'_>) {}

        fn release(&self, _tag: u64, _index: usize) {}

        fn unmap(&self, _unused: &Unused<'_>) {}
    }

    /// Returns the last `N` bytes of a packet whose bytes are all linear.
    fn last<const N: usize>(skb: &mut OwnedSkBuff) -> [u8; N] {
        let start = skb.len().saturating_sub(N);

        // SAFETY: The packet is valid, belongs to the caller, and has `N` linear bytes there.
        unsafe {
            (*skb.as_ptr())
                .data
                .wrapping_add(start)
                .cast::<[u8; N]>()
                .read()
        }
    }

    /// Adds the attributes of a queue, or of a pool, with buffers of `1 << shift` bytes to messages
    /// with any amount of room. Returns whether this adds exactly the `N` bytes of `want` if there
    /// is room for them, and otherwise fails and adds nothing.
    fn fills_exactly<const N: usize>(shift: u32, is_queue: bool, want: [u8; N]) -> Result<bool> {
        let queue = Arc::pin_init(
            ProvidedQueue::new::<Error>(shift, Ok(EmptyProvider)),
            GFP_KERNEL,
        )?;
        let rxq = if is_queue {
            NonNull::dangling().as_ptr()
        } else {
            null_mut()
        };

        for room in 0..N + 9 {
            let mut skb = OwnedSkBuff::new(256)?;

            skb.leave_room(room)?;
            let before = skb.len();
            // SAFETY: The queue outlives the call, and the message is valid. The function does not
            // access the receive queue: it only checks whether the pointer is null.
            let got = unsafe {
                Adapter::<EmptyProvider>::nl_fill(queue.params(0).mp_priv, skb.as_ptr(), rxq)
            };
            let is_right = if room < N {
                got == EMSGSIZE.to_errno() && skb.len() == before
            } else {
                got == 0 && skb.len() == before + N && last::<N>(&mut skb) == want
            };

            if !is_right {
                pr_info!(
                    "{got} and {} bytes where {room} of {N} fit\n",
                    skb.len() - before
                );
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Returns a nest of one attribute, whose value is `value`.
    fn nest<const N: usize, const V: usize>(kind: u32, value: [u8; V]) -> [u8; N] {
        let len = bindings::NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN as u16;
        let words = [
            (V + 8) as u16,
            kind as u16 | bindings::NLA_F_NESTED as u16,
            (V + 4) as u16,
            len,
        ];
        let mut bytes = [0; N];
        let headers = words.iter().flat_map(|word| word.to_ne_bytes());

        for (byte, from) in bytes.iter_mut().zip(Iterator::chain(headers, value)) {
            *byte = from;
        }
        bytes
    }

    /// A message gets all attributes or none, whatever room it has.
    #[test]
    fn attribute_is_written_whole_or_not_at_all() -> Result {
        let (queue, pool) = (
            bindings::NETDEV_A_QUEUE_IO_URING,
            bindings::NETDEV_A_PAGE_POOL_IO_URING,
        );

        assert!(fills_exactly::<12>(
            12,
            true,
            nest(queue, 4096u32.to_ne_bytes())
        )?);
        assert!(fills_exactly::<12>(
            12,
            false,
            nest(pool, 4096u32.to_ne_bytes())
        )?);
        assert!(fills_exactly::<12>(
            31,
            true,
            nest(queue, (1u32 << 31).to_ne_bytes())
        )?);
        // This size does not fit into 32 bits.
        assert!(fills_exactly::<16>(
            33,
            true,
            nest(queue, (1u64 << 33).to_ne_bytes())
        )?);
        assert!(fills_exactly::<16>(
            33,
            false,
            nest(pool, (1u64 << 33).to_ne_bytes())
        )?);
        Ok(())
    }
}
