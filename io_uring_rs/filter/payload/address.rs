// SPDX-License-Identifier: GPL-2.0

//! The part of a socket address that filters see.
//!
//! Uses nothing but `core`, so that it is also built and tested outside the kernel.

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// The size in bytes of the structure that holds an IPv4 address: `struct sockaddr_in`.
const IPV4_SIZE: usize = 16;

/// The smallest size in bytes that the IPv6 stack accepts: `SIN6_LEN_RFC2133`.
const IPV6_SIZE: usize = 24;

/// A socket address, as far as filters see it. Fields that filters do not see are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Address {
    /// The address family.
    pub(crate) family: u16,
    /// The port, in network byte order.
    pub(crate) port: [u8; 2],
    /// The address, in network byte order. An IPv4 address takes the first 4 bytes.
    pub(crate) addr: [u8; 16],
}

impl Address {
    /// Reads an address from the bytes that user space passed.
    ///
    /// Reads only the family if it is neither IPv4 nor IPv6, or if there are too few bytes for such
    /// an address. Reads nothing if there are too few for the family.
    pub(crate) fn from_bytes(from: &[u8]) -> Self {
        let mut address = Self::default();

        if let Some(family) = from.first_chunk() {
            address.family = u16::from_ne_bytes(*family);
        }
        let place = match address.family {
            AF_INET if from.len() >= IPV4_SIZE => 4..8,
            AF_INET6 if from.len() >= IPV6_SIZE => 8..24,
            _ => return address,
        };
        copy(&mut address.port, from.get(2..4));
        copy(&mut address.addr, from.get(place));
        address
    }
}

/// Copies `from`, if it is given, to the beginning of `to`.
fn copy(to: &mut [u8], from: Option<&[u8]>) {
    for (to, from) in to.iter_mut().zip(from.unwrap_or_default()) {
        *to = *from;
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_filter_address)]
mod tests {
    use super::*;

    /// Builds an address structure of `family` whose other bytes are their own offsets.
    fn numbered(family: u16) -> [u8; 128] {
        let mut all = [0; 128];

        for (byte, number) in all.iter_mut().zip(0..) {
            *byte = number;
        }
        for (byte, family) in all.iter_mut().zip(family.to_ne_bytes()) {
            *byte = family;
        }
        all
    }

    #[test]
    fn address_is_shown_only_when_complete() {
        for family in [0, 1, AF_INET, AF_INET6, 0xffff] {
            let all = numbered(family);

            for len in 0..=128 {
                let mut expected = Address::default();
                if len >= 2 {
                    expected.family = family;
                }
                match (family, len) {
                    (AF_INET, 16..) => {
                        expected.port = [2, 3];
                        expected.addr = [4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
                    }
                    (AF_INET6, 24..) => {
                        expected.port = [2, 3];
                        expected.addr =
                            [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23];
                    }
                    _ => {}
                }

                assert!(all.get(..len).map(Address::from_bytes) == Some(expected));
            }
        }
    }
}
