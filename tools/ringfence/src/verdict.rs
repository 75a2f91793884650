// SPDX-License-Identifier: GPL-2.0
//! What a policy decides on a request, a ring or a registration, straight from its rules.
//! Property tests hold the filters of `program` against this.

use std::net::IpAddr;

use crate::names::{Family, Op, Registration, SetupFlag, SqeFlag};
use crate::policy::{Action, Destination, Open, Policy, address_bytes};

/// A request as filters see it.
#[derive(Clone, Debug)]
pub struct Request {
    pub user_data: u64,
    pub op: Op,
    /// The flags of the request after it was prepared, which are not quite those of the
    /// SQE.
    pub flags: u8,
    pub arguments: Arguments,
}

/// The arguments of a request that filters see.
#[derive(Clone, Debug)]
pub enum Arguments {
    /// The opcode shows nothing.
    None,
    Socket {
        family: u32,
        kind: u32,
        protocol: u32,
    },
    Open {
        flags: u64,
        mode: u64,
        resolve: u64,
    },
    Connect {
        family: u32,
        port: u16,
        /// The bytes of the address, which begin with those of IPv4.
        address: [u8; 16],
    },
}

/// The arguments of `io_uring_setup(2)`.
#[derive(Clone, Copy, Debug)]
pub struct Ring {
    pub flags: u32,
    pub entries: u32,
    pub cq_entries: u32,
    /// The time in milliseconds after which the submission thread sleeps.
    pub idle: u32,
    pub cpu: u32,
}

/// Size of what a filter reads, `struct io_uring_bpf_ctx`.
pub const CONTEXT_SIZE: usize = 40;

/// Offsets in `struct io_uring_bpf_ctx`.
pub mod offset {
    pub const OPCODE: u32 = 8;
    pub const PAYLOAD: u32 = 16;
    pub const FAMILY: u32 = PAYLOAD;
    pub const SOCKET_TYPE: u32 = PAYLOAD + 4;
    pub const PORT: u32 = PAYLOAD + 4;
    pub const ADDRESS: u32 = PAYLOAD + 8;
    pub const OPEN_FLAGS: u32 = PAYLOAD;
    pub const RESOLVE: u32 = PAYLOAD + 16;
    pub const SETUP_FLAGS: u32 = PAYLOAD;
    pub const SETUP_ENTRIES: u32 = PAYLOAD + 4;
    pub const SETUP_CQ_ENTRIES: u32 = PAYLOAD + 8;
}

/// Returns the most entries of a submission queue without `IORING_SETUP_CQSIZE` whose
/// completion queue is not larger than one for which `most` entries are asked. The kernel
/// rounds up to powers of two, and makes the completion queue twice as large.
pub fn entries_for(most: u32) -> u32 {
    most.checked_next_power_of_two().unwrap_or(1 << 31) / 2
}

/// Returns the size of the opcode's arguments in the context, in bytes.
pub fn payload_size(op: Op) -> u8 {
    match op {
        Op::SOCKET => 12,
        Op::OPENAT | Op::OPENAT2 | Op::CONNECT => 24,
        _ => 0,
    }
}

/// The socket type that the kernel takes for the family `AF_PACKET` if the family is
/// `AF_INET`.
pub const SOCK_PACKET: u32 = 10;

/// Size of the arguments of `io_uring_setup(2)` in the context, in bytes.
pub const SETUP_SIZE: u8 = 20;

impl Request {
    /// Makes a request without flags or arguments.
    pub fn new(op: Op) -> Self {
        Request {
            user_data: 0,
            op,
            flags: 0,
            arguments: Arguments::None,
        }
    }

    /// Returns the bytes that a filter reads.
    pub fn context(&self) -> [u8; CONTEXT_SIZE] {
        let mut context = [0; CONTEXT_SIZE];
        context[..8].copy_from_slice(&self.user_data.to_ne_bytes());
        context[8] = self.op.0;
        context[9] = self.flags;
        context[10] = payload_size(self.op);
        let payload = &mut context[offset::PAYLOAD as usize..];
        match self.arguments {
            Arguments::None => {}
            Arguments::Socket {
                family,
                kind,
                protocol,
            } => {
                payload[..4].copy_from_slice(&family.to_ne_bytes());
                payload[4..8].copy_from_slice(&kind.to_ne_bytes());
                payload[8..12].copy_from_slice(&protocol.to_ne_bytes());
            }
            Arguments::Open {
                flags,
                mode,
                resolve,
            } => {
                payload[..8].copy_from_slice(&flags.to_ne_bytes());
                payload[8..16].copy_from_slice(&mode.to_ne_bytes());
                payload[16..].copy_from_slice(&resolve.to_ne_bytes());
            }
            Arguments::Connect {
                family,
                port,
                address,
            } => {
                payload[..4].copy_from_slice(&family.to_ne_bytes());
                payload[4..6].copy_from_slice(&port.to_be_bytes());
                payload[8..].copy_from_slice(&address);
            }
        }
        context
    }
}

impl Ring {
    /// Returns the bytes that a filter reads.
    pub fn context(&self) -> [u8; CONTEXT_SIZE] {
        let mut context = [0; CONTEXT_SIZE];
        context[10] = SETUP_SIZE;
        let words = [
            self.flags,
            self.entries,
            self.cq_entries,
            self.idle,
            self.cpu,
        ];
        for (to, word) in context[offset::PAYLOAD as usize..].chunks_mut(4).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        context
    }
}

impl Policy {
    /// Returns whether the lists allow an opcode, whatever its requests are like.
    pub fn lists(&self, op: Op) -> bool {
        self.ops.contains(&op) == (self.default_action == Action::Deny)
    }

    /// Returns the SQE flags that no request may have.
    pub fn denied_flags(&self) -> u8 {
        self.denied_sqe_flags
            .iter()
            .fold(0, |flags, flag| flags | flag.0)
    }

    /// Returns whether the policy allows a request.
    pub fn allows(&self, request: &Request) -> bool {
        self.lists(request.op)
            && request.flags & self.denied_flags() == 0
            && match (request.op, &request.arguments) {
                (Op::SOCKET, Arguments::Socket { family, kind, .. }) => {
                    self.allows_socket(*family, *kind)
                }
                (
                    Op::CONNECT,
                    Arguments::Connect {
                        family,
                        port,
                        address,
                    },
                ) => self.allows_connect(*family, *port, address),
                (Op::OPENAT | Op::OPENAT2, Arguments::Open { flags, resolve, .. }) => self
                    .open
                    .as_ref()
                    .is_none_or(|open| open.allows(*flags, *resolve)),
                _ => true,
            }
    }

    /// Returns whether the rule for families allows a socket. If it does not allow packet
    /// sockets, it also denies the type that stands for them in the family `AF_INET`.
    fn allows_socket(&self, family: u32, kind: u32) -> bool {
        let is_packet = kind == SOCK_PACKET && self.socket_families.is_some();
        self.allows_family(family) && (!is_packet || self.allows_family(Family::PACKET.0))
    }

    pub(crate) fn allows_family(&self, family: u32) -> bool {
        let families = self.socket_families.as_ref();
        families.is_none_or(|families| families.contains(&Family(family)))
    }

    fn allows_connect(&self, family: u32, port: u16, address: &[u8; 16]) -> bool {
        let destinations = self.connect.as_ref();
        destinations.is_none_or(|all| all.iter().any(|one| one.matches(family, port, address)))
    }

    /// Returns whether the policy allows a ring to be made.
    pub fn allows_ring(&self, ring: &Ring) -> bool {
        self.setup.as_ref().is_none_or(|setup| {
            ring.flags & setup.denied_flags() == 0
                && setup.max_entries.is_none_or(|most| ring.entries <= most)
                && setup.max_cq_entries.is_none_or(|most| {
                    let is_given = ring.flags & SetupFlag::CQSIZE.0 != 0;
                    ring.cq_entries <= most && (is_given || ring.entries <= entries_for(most))
                })
        })
    }

    /// Returns whether the policy allows a registration.
    pub fn allows_registration(&self, registration: Registration) -> bool {
        self.registrations.as_ref().is_none_or(|rule| {
            rule.ops.contains(&registration) == (rule.default_action == Action::Deny)
        })
    }
}

impl Open {
    fn allows(&self, flags: u64, resolve: u64) -> bool {
        let (flags, required) = (flags as u32, u64::from(self.all_required_resolve()));
        let access = flags & libc::O_ACCMODE as u32;
        self.access_modes
            .as_ref()
            .is_none_or(|modes| modes.iter().any(|mode| mode.0 == access))
            && flags & self.all_denied_flags() == 0
            && resolve & required == required
    }
}

impl Destination {
    fn matches(&self, family: u32, port: u16, address: &[u8; 16]) -> bool {
        let Destination::Subnet { subnet, ports } = self else {
            return self.family() == Family(family);
        };
        let length = usize::from(subnet.prefix_len());
        let network = address_bytes(subnet.network());
        let bit = |bytes: &[u8; 16], n: usize| bytes[n / 8] >> (7 - n % 8) & 1;
        self.family() == Family(family)
            && (0..length).all(|n| bit(address, n) == bit(&network, n))
            && ports.as_ref().is_none_or(|ports| {
                ports
                    .iter()
                    .any(|range| (range.first..=range.last).contains(&port))
            })
    }
}

/// Returns the flags that the kernel itself may set on requests with this opcode before
/// filters see them. Draining is left out: it adds `IOSQE_ASYNC` to any request.
pub fn flags_of_kernel(op: Op) -> u8 {
    match op {
        Op::NOP => SqeFlag::FIXED_FILE.0,
        Op::OPENAT
        | Op::OPENAT2
        | Op::BIND
        | Op::STATX
        | Op::RENAMEAT
        | Op::UNLINKAT
        | Op::MKDIRAT
        | Op::SYMLINKAT
        | Op::LINKAT
        | Op::SPLICE
        | Op::TEE
        | Op::FSYNC
        | Op::SYNC_FILE_RANGE
        | Op::FALLOCATE
        | Op::FTRUNCATE
        | Op::SHUTDOWN
        | Op::FSETXATTR
        | Op::SETXATTR
        | Op::FGETXATTR
        | Op::GETXATTR
        | Op::MADVISE
        | Op::FADVISE => SqeFlag::ASYNC.0,
        _ => 0,
    }
}

/// Returns the family and the bytes of an address, as a connect shows them.
pub fn shown(address: IpAddr) -> (u32, [u8; 16]) {
    let family = if address.is_ipv4() {
        Family::INET
    } else {
        Family::INET6
    };
    (family.0, address_bytes(address))
}
