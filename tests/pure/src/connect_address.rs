// SPDX-License-Identifier: GPL-2.0
//! The part of a CONNECT's address that filters see, computed by the file that the
//! kernel is built from, and compared with a naive reading of the sockaddr structures.

use crate::address::Address;
use proptest::prelude::*;

/// The families' numbers in Linux.
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The ends of the structures: sockaddr_in, and sockaddr_in6 before it had a scope.
const IN: usize = 16;
const IN6: usize = 24;
/// The longest address that the kernel takes.
const STORAGE: usize = 128;

fn parse(bytes: &[u8]) -> Address {
    Address::from_bytes(bytes)
}

/// Returns the part of an address that filters see, and the indices of the bytes that
/// it depends on.
fn model(bytes: &[u8]) -> (Address, Vec<usize>) {
    let mut shown = Address::default();
    if bytes.len() < 2 {
        return (shown, vec![]);
    }
    shown.family = u16::from_ne_bytes([bytes[0], bytes[1]]);
    let place = match shown.family {
        AF_INET if bytes.len() >= IN => 4..8,
        AF_INET6 if bytes.len() >= IN6 => 8..24,
        _ => return (shown, vec![0, 1]),
    };
    shown.port = [bytes[2], bytes[3]];
    shown.addr[..place.len()].copy_from_slice(&bytes[place.clone()]);
    (shown, (0..4).chain(place).collect())
}

/// Generates any address, most often of a family that shows more than the family.
fn sockaddr() -> impl Strategy<Value = Vec<u8>> {
    let family = prop_oneof![Just(AF_INET), Just(AF_INET6), any::<u16>()];
    let rest = prop::collection::vec(any::<u8>(), STORAGE - 2);
    (family, rest, 0..=STORAGE).prop_map(|(family, rest, len)| {
        let mut bytes = family.to_ne_bytes().to_vec();
        bytes.extend(rest);
        bytes.truncate(len);
        bytes
    })
}

proptest! {
    #[test]
    fn address_agrees_with_the_model(bytes in sockaddr()) {
        prop_assert_eq!(parse(&bytes), model(&bytes).0);
    }

    /// Bytes that are not shown have no effect.
    #[test]
    fn address_depends_on_no_other_bytes(bytes in sockaddr(), noise: [u8; STORAGE / 4]) {
        let (shown, used) = model(&bytes);
        let mut changed = bytes;
        for (i, byte) in changed.iter_mut().enumerate() {
            if !used.contains(&i) {
                *byte ^= noise[i % noise.len()];
            }
        }
        prop_assert_eq!(parse(&changed), shown);
    }

    /// Bytes after the complete structure have no effect.
    #[test]
    fn bytes_after_the_address_have_no_effect(bytes in sockaddr(), more: [u8; 8]) {
        let complete = match model(&bytes).0.family {
            AF_INET => bytes.len() >= IN,
            AF_INET6 => bytes.len() >= IN6,
            _ => bytes.len() >= 2,
        };
        prop_assume!(complete);
        let longer: Vec<u8> = bytes.iter().chain(&more).copied().collect();
        prop_assert_eq!(parse(&longer), parse(&bytes));
    }
}

/// Checks every length of one address of each family.
#[test]
fn address_of_every_length_agrees_with_the_model() {
    for family in [0, 1, AF_INET, AF_INET6, 0x0200, 0x0a00, u16::MAX] {
        let mut bytes: Vec<u8> = (0..STORAGE as u8).map(|i| i ^ 0xa5).collect();
        bytes[..2].copy_from_slice(&family.to_ne_bytes());
        for len in 0..=STORAGE {
            let what = format!("family {family:#x}, {len} bytes");
            assert_eq!(parse(&bytes[..len]), model(&bytes[..len]).0, "{what}");
        }
    }
}
