// SPDX-License-Identifier: GPL-2.0
//! Property tests: for random policies and requests, filters decide what the rules of the
//! policy say, and the kernel's own evaluation finds out as much about them as `check`
//! says. The interpreter and the evaluation are those of tests/pure.

use proptest::collection::{btree_set, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use io_uring_rs_pure::classic::{self, insn::Insn};
use ringfence::names::*;
use ringfence::policy::*;
use ringfence::program::{self, Cost, Fence, Filter, MOST_INSNS};
use ringfence::verdict::{Arguments, Request, Ring, flags_of_kernel, payload_size};

/// Generates a value of a table.
fn of<T: Copy + std::fmt::Debug + 'static>(
    all: &'static [(&'static str, T)],
) -> impl Strategy<Value = T> {
    select(all).prop_map(|(_, value)| value)
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![3 => select(vec![Family::INET, Family::INET6, Family::UNIX]), 1 => of(Family::ALL)]
}

fn port() -> impl Strategy<Value = u16> {
    prop_oneof![
        select(vec![0, 79, 80, 81, 255, 256, 443, 0x5000, 65535]),
        any::<u16>()
    ]
}

/// Addresses are made of few bytes, so that subnets and requests meet.
fn bytes() -> impl Strategy<Value = [u8; 16]> {
    proptest::array::uniform16(select(vec![0u8, 1, 10, 127, 0x80, 0xff]))
}

fn subnet() -> impl Strategy<Value = ipnet::IpNet> {
    (bytes(), any::<bool>(), 0..=128u8).prop_map(|(bytes, is_v4, length)| {
        let net = match is_v4 {
            true => {
                let bytes: [u8; 4] = bytes[..4].try_into().unwrap();
                ipnet::IpNet::new(bytes.into(), length % 33)
            }
            false => ipnet::IpNet::new(bytes.into(), length),
        };
        net.unwrap().trunc()
    })
}

fn ports() -> impl Strategy<Value = Ports> {
    (port(), port()).prop_map(|(a, b)| Ports {
        first: a.min(b),
        last: a.max(b),
    })
}

fn destination() -> impl Strategy<Value = Destination> {
    prop_oneof![
        1 => family().prop_map(|family| Destination::Family { family }),
        4 => (subnet(), option::of(vec(ports(), 1..150)))
            .prop_map(|(subnet, ports)| Destination::Subnet { subnet, ports }),
    ]
}

fn open() -> impl Strategy<Value = Open> {
    let rule = (
        option::of(btree_set(of(AccessMode::ALL), 1..3)),
        btree_set(of(OpenFlag::ALL), 0..4),
        btree_set(of(Resolve::ALL), 0..3),
    );
    rule.prop_map(|(access_modes, denied_flags, required_resolve)| Open {
        access_modes,
        denied_flags,
        required_resolve,
    })
}

fn setup() -> impl Strategy<Value = Setup> {
    let rule = (
        option::of(btree_set(of(SetupFlag::ALL), 0..8)),
        option::of(select(vec![0, 1, 8, 64, u32::MAX])),
        option::of(select(vec![0, 1, 8, 64, u32::MAX])),
    );
    rule.prop_map(|(allowed_flags, max_entries, max_cq_entries)| Setup {
        allowed_flags,
        max_entries,
        max_cq_entries,
    })
}

fn action() -> impl Strategy<Value = Action> {
    select(vec![Action::Deny, Action::Allow])
}

fn policy() -> impl Strategy<Value = Policy> {
    let lists = (
        action(),
        btree_set(of(Op::ALL), 0..40),
        btree_set(of(SqeFlag::ALL), 0..3),
    );
    let rules = (
        option::of(btree_set(family(), 1..4)),
        option::of(vec(destination(), 1..6)),
        option::of(open()),
        option::of(setup()),
        option::of((action(), btree_set(of(Registration::ALL), 0..10))),
    );
    (lists, rules).prop_map(|((default_action, ops, denied_sqe_flags), rules)| Policy {
        default_action,
        ops,
        denied_sqe_flags,
        socket_families: rules.0,
        connect: rules.1,
        open: rules.2,
        setup: rules.3,
        registrations: rules.4.map(|(default_action, ops)| Registrations {
            default_action,
            ops,
        }),
    })
}

/// Generates requests, most of which have arguments that filters see.
fn request() -> impl Strategy<Value = Request> {
    let op = prop_oneof![
        select(vec![Op::SOCKET, Op::CONNECT, Op::OPENAT, Op::OPENAT2]),
        of(Op::ALL)
    ];
    let open = (
        any::<u32>(),
        vec(of(OpenFlag::ALL), 0..3),
        any::<u32>(),
        0..64u64,
    );
    (
        op,
        any::<u64>(),
        prop_oneof![Just(0), 0..128u8],
        family(),
        port(),
        bytes(),
        open,
    )
        .prop_map(
            |(op, user_data, flags, family, port, address, (mode, open_flags, noise, resolve))| {
                let arguments = match op {
                    Op::SOCKET => Arguments::Socket {
                        family: family.0,
                        kind: mode,
                        protocol: noise,
                    },
                    Op::CONNECT => Arguments::Connect {
                        family: family.0,
                        port,
                        address: match family {
                            Family::INET => {
                                address_bytes(<[u8; 4]>::try_from(&address[..4]).unwrap().into())
                            }
                            _ => address,
                        },
                    },
                    Op::OPENAT | Op::OPENAT2 => Arguments::Open {
                        flags: open_flags
                            .iter()
                            .fold(mode & 3, |all, flag| all | flag.0)
                            .into(),
                        mode: noise.into(),
                        resolve: if op == Op::OPENAT { 0 } else { resolve },
                    },
                    _ => Arguments::None,
                };
                Request {
                    user_data,
                    op,
                    flags,
                    arguments,
                }
            },
        )
}

fn insns(filter: &Filter) -> Vec<Insn> {
    let insns = filter.program.iter();
    insns
        .map(|insn| Insn::jump(insn.code, insn.jt, insn.jf, insn.k))
        .collect()
}

/// Returns what the kernel decides: the filter of the opcode, or what happens to opcodes
/// that have none.
fn decided(filters: &[Filter], opcode: u8, denies_rest: bool, context: &[u8; 40]) -> bool {
    match filters.iter().find(|filter| filter.opcode == opcode) {
        Some(filter) => classic::run(&insns(filter), context) != 0,
        None => !denies_rest,
    }
}

fn all_filters(fence: &Fence) -> impl Iterator<Item = &Filter> {
    fence
        .requests
        .iter()
        .chain(&fence.setup)
        .chain(&fence.registrations)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..Default::default() })]

    /// The filters of a policy decide on requests as its rules do.
    #[test]
    fn requests_are_decided_as_the_rules_say(policy in policy(), requests in vec(request(), 40)) {
        let fence = policy.fence().unwrap();
        for request in &requests {
            let got = decided(&fence.requests, request.op.0, fence.denies_other_requests, &request.context());
            prop_assert_eq!(got, policy.allows(request), "{:?}", request);
        }
    }

    /// Addresses at the edges of the rules themselves are decided as the rules say.
    #[test]
    fn destinations_are_decided_as_the_rules_say(destinations in vec(destination(), 1..4), noise in bytes()) {
        let mut policy = Policy::allowing([Op::CONNECT]);
        policy.connect = Some(destinations.clone());
        let fence = policy.fence().unwrap();
        for destination in &destinations {
            let Destination::Subnet { subnet, ports } = destination else { continue };
            let edges = ports.iter().flatten().flat_map(|range| [range.first, range.last]);
            for port in edges.flat_map(|port| [port.wrapping_sub(1), port, port.wrapping_add(1)]).chain([0]) {
                let length = usize::from(subnet.prefix_len());
                for flipped in [0, length.saturating_sub(1), length, 127, 128] {
                    let mut address = address_bytes(subnet.network());
                    if let Some(byte) = address.get_mut(flipped / 8) {
                        *byte ^= 0x80 >> (flipped % 8);
                    }
                    if flipped == 128 && subnet.prefix_len() == 0 {
                        address = noise;
                    }
                    if subnet.addr().is_ipv4() {
                        address[4..].fill(0);
                    }
                    let family = destination.family().0;
                    let mut request = Request::new(Op::CONNECT);
                    request.arguments = Arguments::Connect { family, port, address };
                    let got = decided(&fence.requests, Op::CONNECT.0, true, &request.context());
                    prop_assert_eq!(got, policy.allows(&request), "{:?}", request);
                }
            }
        }
    }

    /// The filter for rings decides as the rules say.
    #[test]
    fn rings_are_decided_as_the_rules_say(
        policy in policy(),
        flags in vec(of(SetupFlag::ALL), 0..4),
        unknown in option::weighted(0.1, 21..32u32),
        numbers in proptest::array::uniform4(prop_oneof![4 => select(vec![0, 1, 2, 8, 9, 64, 65, u32::MAX]), 1 => any::<u32>()]),
    ) {
        let [entries, cq_entries, idle, cpu] = numbers;
        let flags = flags.iter().fold(unknown.map_or(0, |bit| 1 << bit), |all, flag| all | flag.0);
        let ring = Ring { flags, entries, cq_entries, idle, cpu };
        let filters = Vec::from_iter(policy.fence().unwrap().setup);
        prop_assert_eq!(decided(&filters, 0, false, &ring.context()), policy.allows_ring(&ring));
    }

    /// The filters for registrations decide as the rules say.
    #[test]
    fn registrations_are_decided_as_the_rules_say(policy in policy()) {
        let fence = policy.fence().unwrap();
        for &(name, registration) in Registration::ALL {
            let mut context = [0; 40];
            context[8] = registration.0;
            let got = decided(&fence.registrations, registration.0, fence.denies_other_registrations, &context);
            prop_assert_eq!(got, policy.allows_registration(registration), "{}", name);
        }
    }

    /// The kernel takes each program.
    #[test]
    fn programs_are_valid(policy in policy()) {
        for filter in all_filters(&policy.fence().unwrap()) {
            prop_assert!(filter.program.len() <= MOST_INSNS);
            let insns = insns(filter);
            prop_assert_eq!(classic::valid(&insns), Ok(()), "{:?}", filter);
            prop_assert!(insns.iter().all(classic::is_taken), "{:?}", filter);
        }
    }

    /// The kernel knows the verdict of each program of which `check` says that it costs
    /// nothing, and has a table for each of which `check` says that it is looked up.
    #[test]
    fn costs_are_what_the_kernel_finds(policy in policy()) {
        for filter in &policy.fence().unwrap().requests {
            let of = (filter.opcode, payload_size(Op(filter.opcode)).into());
            let insns = insns(filter);
            let certain = classic::is_certain(&insns, of);
            let looked_up = classic::is_looked_up(&insns, of);
            match program::cost(&filter.program) {
                Cost::Nothing => prop_assert!(certain, "{:?}", filter),
                Cost::Lookup => prop_assert!(looked_up && !certain, "{:?}", filter),
                Cost::Run => prop_assert!(!looked_up, "{:?}", filter),
            }
        }
    }

    /// A policy that was written and read again is the same.
    #[test]
    fn policies_survive_being_written(policy in policy()) {
        let open_has_rule = policy.open.as_ref().is_none_or(|open| *open != Open::default());
        let setup_has_rule = policy.setup.as_ref().is_none_or(|setup| *setup != Setup::default());
        prop_assume!(open_has_rule && setup_has_rule);
        prop_assert_eq!(Policy::parse("test", policy.to_json()).unwrap(), policy);
    }

    /// What one of two policies allows, their merger allows.
    #[test]
    fn merging_allows_what_either_allows(
        policies in (policy(), policy()),
        requests in vec(request(), 20),
    ) {
        let (mut one, mut other) = policies;
        for policy in [&mut one, &mut other] {
            policy.default_action = Action::Deny;
            if let Some(rule) = &mut policy.registrations {
                rule.default_action = Action::Deny;
            }
        }
        let mut both = one.clone();
        both.merge(other.clone()).unwrap();
        for request in &requests {
            let either = one.allows(request) || other.allows(request);
            prop_assert!(!either || both.allows(request), "{:?} {:?}", request, both);
        }
        for &(name, registration) in Registration::ALL {
            let either = one.allows_registration(registration) || other.allows_registration(registration);
            prop_assert_eq!(either, both.allows_registration(registration), "{}", name);
        }
    }
}

/// A socket of the family AF_INET and the type SOCK_PACKET is a packet socket.
#[test]
fn packet_sockets_are_denied_by_their_type() {
    const SOCK_PACKET: u32 = 10;
    let mut policy = Policy::allowing([Op::SOCKET]);
    for (families, is_allowed) in [
        (Some(vec![Family::INET]), false),
        (Some(vec![Family::INET, Family::PACKET]), true),
        (Some(vec![Family::PACKET]), false),
        (None, true),
    ] {
        let has_inet = families
            .as_ref()
            .is_none_or(|all| all.contains(&Family::INET));
        policy.socket_families = families.map(|families| families.into_iter().collect());
        let fence = policy.fence().unwrap();
        let mut request = Request::new(Op::SOCKET);
        for (kind, want) in [(SOCK_PACKET, is_allowed), (1, has_inet)] {
            request.arguments = Arguments::Socket {
                family: Family::INET.0,
                kind,
                protocol: 0,
            };
            let context = request.context();
            let got = decided(&fence.requests, Op::SOCKET.0, true, &context);
            assert_eq!(
                (got, policy.allows(&request)),
                (want, want),
                "{policy:?}, type {kind}"
            );
        }
    }
}

/// An opcode has at most one of the kernel's own flags, which every request may have.
#[test]
fn flags_of_the_kernel_are_flags() {
    for (name, op) in Op::ALL {
        assert!(flags_of_kernel(*op) & !0x7f == 0, "{name}");
    }
}

/// The kernel takes no program of more than 4,096 instructions, so that a policy which
/// needs one is refused.
#[test]
fn programs_that_are_too_long_are_refused() {
    let mut policy = Policy::allowing([Op::CONNECT]);
    let destination = |n: u32| Destination::Subnet {
        subnet: ipnet::IpNet::new(std::net::Ipv4Addr::from(n).into(), 32).unwrap(),
        ports: None,
    };
    policy.connect = Some((0..819).map(destination).collect());
    assert_eq!(
        policy.fence().unwrap().requests[usize::from(Op::CONNECT.0)]
            .program
            .len(),
        819 * 5 + 1
    );
    policy.connect = Some((0..820).map(destination).collect());
    let error = policy.fence().unwrap_err();
    assert_eq!(
        error,
        "the rules for IORING_OP_CONNECT need 4101 instructions, and the kernel takes 4096"
    );
}

/// Opcodes that this program does not know must not escape a rule for all requests.
#[test]
fn flags_are_denied_to_unknown_opcodes() {
    let mut policy = Policy::allowing([]);
    policy.default_action = Action::Allow;
    assert_eq!(policy.fence().unwrap().unknown_requests, None);
    policy.denied_sqe_flags = [SqeFlag::IO_LINK].into();
    let program = policy.fence().unwrap().unknown_requests.unwrap();
    let filter = Filter {
        opcode: 90,
        program,
        payload: 0,
    };
    let context = |flags| {
        Request {
            flags,
            ..Request::new(Op(90))
        }
        .context()
    };
    assert!(classic::run(&insns(&filter), &context(0x7b)) != 0);
    assert!(classic::run(&insns(&filter), &context(4)) == 0);
}

/// An opcode for which a task has inherited a filter is not denied with the rest.
#[test]
fn opcodes_that_are_not_allowed_have_filters_that_deny() {
    let mut policy = Policy::allowing([Op::READ]);
    policy.registrations = Some(Registrations {
        default_action: Action::Deny,
        ops: [Registration::REGISTER_PROBE].into(),
    });
    let fence = policy.fence().unwrap();
    let allowed = |filters: &[Filter]| -> Vec<u8> {
        let allow = |filter: &&Filter| classic::run(&insns(filter), &[0; 40]) != 0;
        filters
            .iter()
            .filter(allow)
            .map(|filter| filter.opcode)
            .collect()
    };
    assert_eq!(fence.requests.len(), Op::ALL.len());
    assert_eq!(allowed(&fence.requests), [Op::READ.0]);
    assert_eq!(fence.registrations.len(), Registration::ALL.len());
    assert_eq!(
        allowed(&fence.registrations),
        [Registration::REGISTER_PROBE.0]
    );
    let last = fence.registrations.last().unwrap();
    assert_eq!(last.opcode, Registration::REGISTER_BPF_FILTER.0);
    for program in [
        fence.unknown_requests.unwrap(),
        fence.unknown_registrations.unwrap(),
    ] {
        let filter = Filter {
            opcode: 90,
            program,
            payload: 0,
        };
        assert_eq!(classic::run(&insns(&filter), &[0; 40]), 0);
    }
}
