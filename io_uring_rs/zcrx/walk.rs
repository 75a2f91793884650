// SPDX-License-Identifier: GPL-2.0

//! Walking through the data of a packet, part by part.

use kernel::{
    net::skbuff::{
        Chunk,
        SkBuff, //
    },
    prelude::*, //
};

/// The number of packets that one call takes before other tasks get their turn:
/// `IO_SKBS_PER_CALL_LIMIT`. As in C, one more is taken.
const SKBS_PER_CALL: u32 = 20;

/// The depth to which lists of packets may be nested, which bounds recursion. The network stack
/// makes them one deep.
const DEPTH: u32 = 4;

/// A taker of chunks of packets.
pub(super) trait Taker {
    /// The state that the taker keeps for one packet.
    type Packet<'a>;

    /// Begins a packet, or a packet in the list of another one.
    fn begin<'a>(&self, skb: &'a SkBuff) -> Self::Packet<'a>;

    /// Takes the first `wanted` bytes of a chunk that cannot be copied. The chunk has that many.
    /// Takes all of them or none.
    ///
    /// # Errors
    ///
    /// The reason for which none were taken.
    fn hand_out<'a>(
        &mut self,
        packet: &mut Self::Packet<'a>,
        chunk: Chunk<'a>,
        wanted: usize,
    ) -> Result;

    /// Copies bytes of a chunk, which is not empty. `left` is the number of bytes that are wanted
    /// of the chunk and of what follows it. Returns the number of bytes copied.
    ///
    /// # Errors
    ///
    /// The reason for which none were copied.
    fn copy(&mut self, chunk: Chunk<'_>, left: usize) -> Result<usize>;
}

/// The range of a packet that is still to be taken.
struct Remaining {
    /// The number of bytes to skip, because they were taken before.
    skip: usize,
    left: usize,
}

impl Remaining {
    /// Removes from a chunk the bytes to skip.
    #[inline]
    fn begin(&mut self, chunk: &mut Chunk<'_>) {
        if self.skip != 0 {
            let before = self.skip.min(chunk.len());

            chunk.advance(before);
            self.skip = self.skip.wrapping_sub(before);
        }
    }

    /// Returns the first of `chunks` that is not skipped as a whole, without the bytes to skip.
    #[inline]
    fn first<'a>(&mut self, chunks: &mut impl Iterator<Item = Chunk<'a>>) -> Option<Chunk<'a>> {
        loop {
            let mut chunk = chunks.next()?;

            self.begin(&mut chunk);
            if self.skip == 0 {
                return Some(chunk);
            }
        }
    }

    /// Copies the wanted bytes of a chunk. Returns whether to go on: all of them were copied, and
    /// more are wanted.
    #[inline]
    fn copy<T: Taker>(&mut self, mut chunk: Chunk<'_>, taker: &mut T) -> Result<bool> {
        self.begin(&mut chunk);
        let go_on;

        (self.left, go_on) = copy(chunk, self.left, taker)?;
        Ok(go_on)
    }

    /// Takes the wanted bytes of a packet of `len` bytes in a list, by calling `f` with the number
    /// of bytes to skip and the number wanted. Returns whether to go on, as [`Self::copy`] does.
    fn packet(
        &mut self,
        len: usize,
        f: impl FnOnce(usize, usize) -> Result<usize>,
    ) -> Result<bool> {
        let skip = self.skip.min(len);
        let wanted = len.wrapping_sub(skip).min(self.left);

        if wanted != 0 {
            let taken = f(skip, wanted)?.min(wanted);

            self.left = self.left.wrapping_sub(taken);
            if taken != wanted {
                return Ok(false);
            }
        }
        self.skip = self.skip.wrapping_sub(skip);
        Ok(self.left != 0)
    }
}

/// Copies up to `left` bytes of a chunk. Returns the number of bytes that are left after that, and
/// whether to go on.
// Not inlined, as most fragments are not copied. The number is passed by value, so that it can stay
// in a register between those.
#[inline(never)]
fn copy<T: Taker>(mut chunk: Chunk<'_>, left: usize, taker: &mut T) -> Result<(usize, bool)> {
    chunk.truncate(left);
    let wanted = chunk.len();

    if wanted == 0 {
        return Ok((left, left != 0));
    }
    let taken = taker.copy(chunk, left)?.min(wanted);
    let left = left.wrapping_sub(taken);

    Ok((left, taken == wanted && left != 0))
}

/// The progress of one call, over all packets that it takes.
#[derive(Default)]
pub(super) struct Walk {
    skbs: u32,
    /// Whether fewer bytes of a packet were taken than wanted.
    stopped_early: bool,
}

impl Walk {
    /// Returns whether bytes may be left that could be taken by another call: this one had to let
    /// other tasks run, or a packet was not taken as far as wanted.
    pub(super) fn is_unfinished(&self) -> bool {
        self.skbs > SKBS_PER_CALL || self.stopped_early
    }

    /// Feeds up to `len` bytes of `skb`, starting at `offset`, to `taker`. Returns the number of
    /// bytes taken.
    ///
    /// # Errors
    ///
    /// - [`EAGAIN`] if the call has taken its share of packets.
    /// - [`EFAULT`] if lists of packets are nested too deep.
    /// - The errors of `taker`.
    pub(super) fn take<T: Taker>(
        &mut self,
        skb: &SkBuff,
        offset: usize,
        len: usize,
        taker: &mut T,
    ) -> Result<usize> {
        self.descend(skb, offset, len, DEPTH, taker)
    }

    fn descend<T: Taker>(
        &mut self,
        skb: &SkBuff,
        offset: usize,
        len: usize,
        depth: u32,
        taker: &mut T,
    ) -> Result<usize> {
        self.skbs = self.skbs.saturating_add(1);
        if self.skbs > SKBS_PER_CALL + 1 {
            return Err(EAGAIN);
        }
        let mut remaining = Remaining {
            skip: offset,
            left: len,
        };
        let result = self.take_parts(skb, &mut remaining, depth, taker);

        if remaining.left != 0 {
            self.stopped_early = true;
        }
        // If bytes were taken, the error is dropped: the next call meets it again.
        match len.wrapping_sub(remaining.left) {
            0 => result.map(|()| 0),
            taken => Ok(taken),
        }
    }

    /// Takes one part of a packet after the other, and stops after one that is not taken whole.
    fn take_parts<'a, T: Taker>(
        &mut self,
        skb: &'a SkBuff,
        remaining: &mut Remaining,
        depth: u32,
        taker: &mut T,
    ) -> Result {
        let mut packet = taker.begin(skb);
        let linear = skb.linear();

        if !linear.is_empty() && !remaining.copy(linear, taker)? {
            return Ok(());
        }
        // Only the first fragments have bytes to skip.
        let mut frags = skb.frags();
        let mut next = remaining.first(&mut frags);

        while let Some(chunk) = next {
            if chunk.is_copyable() {
                if !remaining.copy(chunk, taker)? {
                    return Ok(());
                }
            } else {
                match chunk.len().min(remaining.left) {
                    0 if remaining.left == 0 => return Ok(()),
                    0 => {}
                    wanted => {
                        taker.hand_out(&mut packet, chunk, wanted)?;
                        remaining.left = remaining.left.wrapping_sub(wanted);
                    }
                }
            }
            next = frags.next();
        }
        for skb in skb.frag_list() {
            let go_on = remaining.packet(skb.len(), |skip, wanted| {
                let depth = depth.checked_sub(1).ok_or(EFAULT)?;

                self.descend(skb, skip, wanted, depth, taker)
            })?;

            if !go_on {
                return Ok(());
            }
        }
        Ok(())
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_walk)]
mod tests {
    use super::*;
    use kernel::net::skbuff::owned::OwnedSkBuff;

    /// Builds a packet with a linear part, fragments, and a list of packets with a fragment each.
    fn packet(linear: usize, frags: &[usize], list: &[usize]) -> Result<OwnedSkBuff> {
        let mut skb = OwnedSkBuff::new(linear)?;

        skb.put(&KVec::from_elem(0, linear, GFP_KERNEL)?)?;
        for &len in frags {
            skb.add_frag(0, &KVec::from_elem(0, len, GFP_KERNEL)?)?;
        }
        for &len in list {
            skb.append(packet(0, &[len], &[])?)?;
        }
        Ok(skb)
    }

    /// A taker that takes chunks whole until it has `room` bytes, and notes their lengths.
    struct Greedy {
        len: usize,
        room: usize,
        chunks: KVec<usize>,
    }

    impl Taker for Greedy {
        type Packet<'a> = ();

        fn begin<'a>(&self, _skb: &'a SkBuff) {}

        fn hand_out<'a>(&mut self, (): &mut (), _chunk: Chunk<'a>, _wanted: usize) -> Result {
            Err(EFAULT)
        }

        fn copy(&mut self, chunk: Chunk<'_>, left: usize) -> Result<usize> {
            assert!(!chunk.is_empty() && chunk.len() <= left && left <= self.len);
            let bytes = chunk.len().min(self.room);

            if bytes == 0 {
                return Err(ENOSPC);
            }
            self.room -= bytes;
            self.chunks.push(bytes, GFP_KERNEL)?;
            Ok(bytes)
        }
    }

    /// Takes a packet with a taker that has `room`. Returns the result, and the lengths of the
    /// chunks.
    fn take(
        walk: &mut Walk,
        skb: &SkBuff,
        offset: usize,
        len: usize,
        room: usize,
    ) -> (Result<usize>, KVec<usize>) {
        let mut taker = Greedy {
            len,
            room,
            chunks: KVec::new(),
        };
        let result = walk.take(skb, offset, len, &mut taker);

        (result, taker.chunks)
    }

    /// Checks the chunks that [`take`] takes of a packet if there is room for all of it.
    fn check(skb: &SkBuff, offset: usize, len: usize, want: &[usize]) {
        let mut walk = Walk::default();
        let (result, chunks) = take(&mut walk, skb, offset, len, usize::MAX);

        assert_eq!(result, Ok(want.iter().sum()));
        assert_eq!(chunks[..], want[..]);
        assert_eq!(walk.is_unfinished(), result != Ok(len));
    }

    #[test]
    fn linear_part_is_taken_from_offset_to_end() -> Result {
        let skb = packet(100, &[], &[])?;

        check(&skb, 0, 100, &[100]);
        check(&skb, 30, 70, &[70]);
        check(&skb, 30, 20, &[20]);
        check(&skb, 99, 1, &[1]);
        check(&skb, 0, 0, &[]);
        // This is more than there is.
        check(&skb, 90, 20, &[10]);
        check(&skb, 100, 1, &[]);
        Ok(())
    }

    /// Checks walks that begin in each kind of part.
    #[test]
    fn linear_part_fragments_and_list_are_taken_in_order() -> Result {
        let skb = packet(100, &[200, 5000], &[30, 40])?;

        check(&skb, 0, 5370, &[100, 200, 5000, 30, 40]);
        check(&skb, 100, 5270, &[200, 5000, 30, 40]);
        check(&skb, 150, 5220, &[150, 5000, 30, 40]);
        check(&skb, 300, 1, &[1]);
        check(&skb, 5299, 2, &[1, 1]);
        check(&skb, 5300, 70, &[30, 40]);
        check(&skb, 5310, 30, &[20, 10]);
        check(&skb, 5369, 1, &[1]);

        let skb = packet(0, &[7], &[])?;
        check(&skb, 0, 7, &[7]);
        Ok(())
    }

    /// Checks that nothing is taken after a part that was not taken whole.
    #[test]
    fn walk_stops_at_a_part_taken_incompletely() -> Result {
        let skb = packet(100, &[200, 300], &[30, 40])?;

        for (room, want) in [
            (40, &[40][..]),
            (100, &[100]),
            (150, &[100, 50]),
            (601, &[100, 200, 300, 1]),
            (640, &[100, 200, 300, 30, 10]),
        ] {
            let mut walk = Walk::default();
            let (result, chunks) = take(&mut walk, &skb, 0, 670, room);

            assert_eq!(result, Ok(room));
            assert_eq!(chunks[..], want[..]);
            assert!(walk.is_unfinished());
        }
        let mut walk = Walk::default();

        assert_eq!(take(&mut walk, &skb, 0, 670, 0).0, Err(ENOSPC));
        assert_eq!(take(&mut walk, &skb, 610, 1, 0).0, Err(ENOSPC));
        assert!(walk.is_unfinished());
        Ok(())
    }

    /// A taker that takes at most ten bytes of each chunk, and notes the lengths of what it took.
    struct Short(KVec<usize>);

    impl Taker for Short {
        type Packet<'a> = ();

        fn begin<'a>(&self, _skb: &'a SkBuff) {}

        fn hand_out<'a>(&mut self, (): &mut (), _chunk: Chunk<'a>, _wanted: usize) -> Result {
            Err(EFAULT)
        }

        fn copy(&mut self, chunk: Chunk<'_>, _left: usize) -> Result<usize> {
            let bytes = chunk.len().min(10);

            self.0.push(bytes, GFP_KERNEL)?;
            Ok(bytes)
        }
    }

    /// Checks that no part is taken after one that was not taken whole, although it could be: the
    /// bytes between the two would be lost.
    #[test]
    fn walk_leaves_no_gap() -> Result {
        let skb = packet(100, &[200, 300], &[30, 40])?;

        for offset in [0, 50, 100, 150, 300, 600, 610, 630] {
            let mut walk = Walk::default();
            let mut taker = Short(KVec::new());

            assert_eq!(walk.take(&skb, offset, 670 - offset, &mut taker), Ok(10));
            assert_eq!(taker.0[..], [10]);
            assert!(walk.is_unfinished());
        }
        Ok(())
    }

    /// Checks the limit on packets. A packet counts besides the packets in its list.
    #[test]
    fn one_walk_takes_at_most_21_packets() -> Result {
        let skb = packet(1, &[], &[1; 22])?;
        let mut walk = Walk::default();

        assert_eq!(take(&mut walk, &skb, 0, 23, usize::MAX).0, Ok(21));
        assert!(walk.is_unfinished());
        assert_eq!(take(&mut walk, &skb, 0, 23, usize::MAX).0, Err(EAGAIN));

        let one = packet(1, &[], &[])?;
        let mut walk = Walk::default();

        for number in 1..=21 {
            assert_eq!(take(&mut walk, &one, 0, 1, usize::MAX).0, Ok(1));
            assert_eq!(walk.is_unfinished(), number > 20);
        }
        assert_eq!(take(&mut walk, &one, 0, 1, usize::MAX).0, Err(EAGAIN));
        Ok(())
    }

    #[test]
    fn nesting_of_lists_is_limited() -> Result {
        let mut skb = packet(1, &[], &[])?;

        for depth in 0..=DEPTH + 1 {
            let all = depth as usize + 1;
            let (result, _) = take(&mut Walk::default(), &skb, 0, all, usize::MAX);

            // The innermost packet is out of reach in the end.
            assert_eq!(result, Ok(all.min(DEPTH as usize + 1)));

            let mut outer = packet(1, &[], &[])?;
            outer.append(skb)?;
            skb = outer;
        }
        let mut only = packet(0, &[], &[])?;
        only.append(skb)?;
        let (result, _) = take(&mut Walk::default(), &only, DEPTH as usize, 1, usize::MAX);
        assert_eq!(result, Err(EFAULT));
        Ok(())
    }

    /// Checks that a walk ends at a chunk that can be neither copied nor handed out. Tests in
    /// `provider` check whose memory is handed out.
    #[test]
    fn chunk_that_nobody_takes_ends_the_walk() -> Result {
        let mut skb = packet(10, &[20], &[])?;

        skb.add_net_iov(30)?;
        let mut walk = Walk::default();

        assert_eq!(take(&mut walk, &skb, 0, 60, usize::MAX).0, Ok(30));
        assert!(walk.is_unfinished());
        assert_eq!(take(&mut walk, &skb, 30, 30, usize::MAX).0, Err(EFAULT));
        Ok(())
    }
}
