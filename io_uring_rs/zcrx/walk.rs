// SPDX-License-Identifier: GPL-2.0

//! Going through what a packet has, part by part.

use core::iter;
use kernel::{
    net::skbuff::{
        Piece,
        SkBuff, //
    },
    prelude::*, //
};

/// How many packets one call takes before others get their turn: `IO_SKBS_PER_CALL_LIMIT`.
const SKBS_PER_CALL: u32 = 20;

/// How deep lists of packets may be nested. The network stack makes them one deep.
const DEPTH: u32 = 4;

/// A part of a packet.
enum Part<'a> {
    Piece(Piece<'a>),
    Packet(&'a SkBuff),
}

impl Part<'_> {
    fn len(&self) -> usize {
        match self {
            Part::Piece(piece) => piece.len(),
            Part::Packet(skb) => skb.len(),
        }
    }
}

/// The parts of a packet, in the order of the bytes.
fn parts(skb: &SkBuff) -> impl Iterator<Item = Part<'_>> {
    let pieces = Iterator::chain(iter::once(skb.linear()), skb.frags());

    Iterator::chain(pieces.map(Part::Piece), skb.frag_list().map(Part::Packet))
}

/// How far it got, from packet to packet.
#[derive(Default)]
pub(super) struct Walk {
    skbs: u32,
    stopped_early: bool,
}

impl Walk {
    /// Whether bytes were left that could have been taken, had it not been others' turn, or had
    /// there been room.
    pub(super) fn left_some(&self) -> bool {
        self.skbs > SKBS_PER_CALL || self.stopped_early
    }

    /// Takes up to `len` bytes from `offset` of a packet on: how many, if any, or why not.
    ///
    /// `copy` takes a piece and how many bytes are to come of the same packet, with this one, and
    /// says how many it took.
    ///
    /// # Errors
    ///
    /// - [`EAGAIN`] if it is others' turn.
    /// - [`EFAULT`] if lists of packets are nested too deep.
    /// - What `copy` fails with.
    pub(super) fn take<F>(
        &mut self,
        skb: &SkBuff,
        offset: usize,
        len: usize,
        copy: &mut F,
    ) -> Result<usize>
    where
        F: FnMut(Piece<'_>, usize) -> Result<usize>,
    {
        self.descend(skb, offset, len, DEPTH, copy)
    }

    fn descend<F>(
        &mut self,
        skb: &SkBuff,
        offset: usize,
        len: usize,
        depth: u32,
        copy: &mut F,
    ) -> Result<usize>
    where
        F: FnMut(Piece<'_>, usize) -> Result<usize>,
    {
        self.skbs = self.skbs.saturating_add(1);
        if self.skbs > SKBS_PER_CALL + 1 {
            return Err(EAGAIN);
        }
        let mut result = Ok(());
        let mut taken = 0;
        // The part's first byte in the packet.
        let mut begin = 0;

        // One after the other, until one is not taken whole.
        for part in parts(skb) {
            if taken == len {
                break;
            }
            let end = begin + part.len();
            let at = offset + taken;

            if at < end {
                let wanted = (end - at).min(len - taken);
                let bytes = match part {
                    Part::Piece(mut piece) => {
                        piece.advance(at - begin);
                        piece.truncate(wanted);
                        copy(piece, len - taken)
                    }
                    Part::Packet(skb) => match depth.checked_sub(1) {
                        Some(depth) => self.descend(skb, at - begin, wanted, depth, copy),
                        None => Err(EFAULT),
                    },
                };

                match bytes {
                    Ok(bytes) => taken += bytes.min(wanted),
                    Err(error) => result = Err(error),
                }
                if offset + taken != at + wanted {
                    break;
                }
            }
            begin = end;
        }
        if taken < len {
            self.stopped_early = true;
        }
        // What was taken wins over an error.
        match taken {
            0 => result.map(|()| 0),
            taken => Ok(taken),
        }
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_walk)]
mod tests {
    use super::*;
    use kernel::net::skbuff::owned::OwnedSkBuff;

    /// A packet with a linear part, fragments, and a list of packets with a fragment each.
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

    /// What is taken of a packet by who takes every piece whole until it has `room` bytes: the
    /// result, and the lengths of the pieces.
    fn take(
        walk: &mut Walk,
        skb: &SkBuff,
        offset: usize,
        len: usize,
        mut room: usize,
    ) -> (Result<usize>, KVec<usize>) {
        let mut pieces = KVec::new();
        let result = walk.take(skb, offset, len, &mut |piece, left| {
            assert!(piece.len() <= left && left <= len);
            if !piece.is_copyable() {
                return Err(EFAULT);
            }
            let bytes = piece.len().min(room);

            if bytes == 0 {
                return Err(ENOSPC);
            }
            room -= bytes;
            pieces.push(bytes, GFP_KERNEL)?;
            Ok(bytes)
        });

        (result, pieces)
    }

    /// As [`take`], of a packet of which all may be taken.
    fn check(skb: &SkBuff, offset: usize, len: usize, want: &[usize]) {
        let mut walk = Walk::default();
        let (result, pieces) = take(&mut walk, skb, offset, len, usize::MAX);

        assert_eq!(result, Ok(want.iter().sum()));
        assert_eq!(pieces[..], want[..]);
        assert_eq!(walk.left_some(), result != Ok(len));
    }

    #[test]
    fn linear_only() -> Result {
        let skb = packet(100, &[], &[])?;

        check(&skb, 0, 100, &[100]);
        check(&skb, 30, 70, &[70]);
        check(&skb, 30, 20, &[20]);
        check(&skb, 99, 1, &[1]);
        check(&skb, 0, 0, &[]);
        // More than there is.
        check(&skb, 90, 20, &[10]);
        check(&skb, 100, 1, &[]);
        Ok(())
    }

    /// From each part on.
    #[test]
    fn all_kinds_of_parts() -> Result {
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

    /// What follows a part that was not taken whole is not taken.
    #[test]
    fn no_room() -> Result {
        let skb = packet(100, &[200, 300], &[30, 40])?;

        for (room, want) in [
            (40, &[40][..]),
            (100, &[100]),
            (150, &[100, 50]),
            (601, &[100, 200, 300, 1]),
            (640, &[100, 200, 300, 30, 10]),
        ] {
            let mut walk = Walk::default();
            let (result, pieces) = take(&mut walk, &skb, 0, 670, room);

            assert_eq!(result, Ok(room));
            assert_eq!(pieces[..], want[..]);
            assert!(walk.left_some());
        }
        let mut walk = Walk::default();

        assert_eq!(take(&mut walk, &skb, 0, 670, 0).0, Err(ENOSPC));
        assert_eq!(take(&mut walk, &skb, 610, 1, 0).0, Err(ENOSPC));
        assert!(walk.left_some());
        Ok(())
    }

    /// The packet itself is one.
    #[test]
    fn packets_in_a_row() -> Result {
        let skb = packet(1, &[], &[1; 22])?;
        let mut walk = Walk::default();

        assert_eq!(take(&mut walk, &skb, 0, 23, usize::MAX).0, Ok(21));
        assert!(walk.left_some());
        assert_eq!(take(&mut walk, &skb, 0, 23, usize::MAX).0, Err(EAGAIN));

        let one = packet(1, &[], &[])?;
        let mut walk = Walk::default();

        for number in 1..=21 {
            assert_eq!(take(&mut walk, &one, 0, 1, usize::MAX).0, Ok(1));
            assert_eq!(walk.left_some(), number > 20);
        }
        assert_eq!(take(&mut walk, &one, 0, 1, usize::MAX).0, Err(EAGAIN));
        Ok(())
    }

    #[test]
    fn nested_lists() -> Result {
        let mut skb = packet(1, &[], &[])?;

        for depth in 0..=DEPTH + 1 {
            let all = depth as usize + 1;
            let (result, _) = take(&mut Walk::default(), &skb, 0, all, usize::MAX);

            // The innermost one is out of reach in the end.
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

    /// What a device received for somebody else.
    #[test]
    fn memory_of_devices() -> Result {
        let mut skb = packet(10, &[20], &[])?;

        skb.add_net_iov(30)?;
        let mut walk = Walk::default();

        assert_eq!(take(&mut walk, &skb, 0, 60, usize::MAX).0, Ok(30));
        assert!(walk.left_some());
        assert_eq!(take(&mut walk, &skb, 30, 30, usize::MAX).0, Err(EFAULT));
        Ok(())
    }
}
