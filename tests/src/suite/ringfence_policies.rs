// SPDX-License-Identifier: GPL-2.0
//! RG: what the kernel does with requests, messages, setups and registrations under the
//! policies of ringfence, whose library this uses.

use std::ffi::CString;

use ::ringfence::kernel::Kind;
use ::ringfence::names::{
    AccessMode, Family, Op, OpenFlag, Registration, Resolve, SetupFlag, SqeFlag,
};
use ::ringfence::policy::{
    Action, Destination, Open, Policy, Ports, Registrations, Setup, address_bytes,
};
use ::ringfence::verdict::{Arguments, Request, flags_of_kernel};
use anyhow::ensure;

use super::{Outcome, Test, TestResult, seed, tests};
use crate::kernel::{self, expect_eq, expect_result};
use crate::register::{self, IORING_REGISTER_QUERY};
use crate::ring::{RawParams, Ring, setup};
use crate::sandbox;
use crate::sqe::{OpenHow, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "ringfence::policies" {
        RG20 random_policies_decide_as_their_rules_say (60 s);
        RG21 messages_without_a_ring_are_refused;
        RG22 setups_are_decided_by_rules;
        RG23 registrations_are_decided_by_rules;
        RG24 unknown_opcodes_are_not_left_out;
    }
};

/// Makes a file for requests to open.
fn file() -> anyhow::Result<CString> {
    let path = format!("/tmp/ringfence-{}", std::process::id());
    std::fs::write(&path, "")?;
    Ok(CString::new(path)?)
}

/// Random policies and requests, from the seed of this run.
struct Random(fastrand::Rng);

impl Random {
    fn some_of<T: Copy + Ord>(&mut self, all: &[T], percent: u8) -> std::collections::BTreeSet<T> {
        all.iter()
            .copied()
            .filter(|_| self.0.u8(..100) < percent)
            .collect()
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.0.usize(..all.len())]
    }

    fn perhaps<T>(&mut self, make: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.0.bool().then(|| make(self))
    }

    /// Returns an address of few bytes, so that subnets and requests meet.
    fn address(&mut self, is_v4: bool) -> std::net::IpAddr {
        let mut bytes = [0u8; 16];
        bytes.fill_with(|| self.one_of(&[0, 1, 10, 127, 0xff]));
        match is_v4 {
            true => <[u8; 4]>::try_from(&bytes[..4]).expect("four bytes").into(),
            false => bytes.into(),
        }
    }

    fn destination(&mut self) -> Destination {
        if self.0.u8(..4) == 0 {
            return Destination::Family {
                family: self.one_of(&FAMILIES),
            };
        }
        let is_v4 = self.0.bool();
        let length = self.0.u8(..=if is_v4 { 32 } else { 128 });
        let subnet =
            format!("{}/{length}", self.address(is_v4)).parse::<::ringfence::policy::Subnet>();
        let ports = self.perhaps(|random| {
            (0..random.0.usize(1..70))
                .map(|_| {
                    let (a, b) = (random.one_of(&PORTS), random.one_of(&PORTS));
                    Ports {
                        first: a.min(b),
                        last: a.max(b),
                    }
                })
                .collect()
        });
        Destination::Subnet {
            subnet: subnet.expect("a subnet").trunc(),
            ports,
        }
    }

    fn policy(&mut self) -> Policy {
        let all: Vec<Op> = Op::ALL.iter().map(|(_, op)| *op).collect();
        let flags = [SqeFlag::ASYNC, SqeFlag::IO_LINK, SqeFlag::IO_HARDLINK];
        let mut policy = Policy::allowing(self.some_of(&all, 70));
        if self.0.bool() {
            policy.default_action = Action::Allow;
            policy.ops = self.some_of(&all, 20);
        }
        policy.denied_sqe_flags = self.some_of(&flags, 15);
        policy.socket_families = Some(self.some_of(&FAMILIES, 50)).filter(|set| !set.is_empty());
        policy.connect = self.perhaps(|random| {
            (0..random.0.usize(1..5))
                .map(|_| random.destination())
                .collect()
        });
        policy.open = self.perhaps(|random| Open {
            access_modes: Some(random.some_of(&MODES, 50)).filter(|set| !set.is_empty()),
            denied_flags: random.some_of(&OPEN_FLAGS, 20),
            required_resolve: random.some_of(&[Resolve::NO_XDEV, Resolve::CACHED], 20),
        });
        policy
    }

    /// Returns a request as filters see it, whose prep does not fail, and the request
    /// itself. `memory` must live until it was submitted.
    fn request(&mut self, path: &CString, memory: &mut Memory) -> (Request, Sqe) {
        let mut request =
            Request::new(self.one_of(&[Op::NOP, Op::SOCKET, Op::CONNECT, Op::OPENAT, Op::OPENAT2]));
        let sqe = match request.op {
            Op::SOCKET => {
                let family = self.one_of(&FAMILIES);
                let (family, kind) = (family.0, libc::SOCK_STREAM);
                request.arguments = Arguments::Socket {
                    family,
                    kind: kind as u32,
                    protocol: 0,
                };
                Sqe::socket(family as i32, kind, 0)
            }
            Op::CONNECT => {
                let is_v4 = self.0.bool();
                let family = if is_v4 { Family::INET } else { Family::INET6 };
                let (port, address) = (self.one_of(&PORTS), address_bytes(self.address(is_v4)));
                request.arguments = Arguments::Connect {
                    family: family.0,
                    port,
                    address,
                };
                memory.address = [0; 28];
                memory.address[..2].copy_from_slice(&(family.0 as u16).to_ne_bytes());
                memory.address[2..4].copy_from_slice(&port.to_be_bytes());
                let len = if is_v4 {
                    memory.address[4..8].copy_from_slice(&address[..4]);
                    16
                } else {
                    memory.address[8..24].copy_from_slice(&address);
                    28
                };
                Sqe::connect(-1, &memory.address, len)
            }
            Op::OPENAT | Op::OPENAT2 => {
                let flags = self
                    .some_of(&OPEN_FLAGS, 15)
                    .iter()
                    .fold(0, |all, flag| all | flag.0);
                let flags = flags | self.one_of(&MODES).0;
                let resolve = match request.op {
                    Op::OPENAT2 => self
                        .one_of(&[0, Resolve::NO_XDEV.0, Resolve::CACHED.0])
                        .into(),
                    _ => 0,
                };
                memory.how = OpenHow {
                    flags: flags.into(),
                    mode: 0,
                    resolve,
                };
                request.arguments = Arguments::Open {
                    flags: flags.into(),
                    mode: 0,
                    resolve,
                };
                match request.op {
                    Op::OPENAT => Sqe::openat(path, flags as i32, 0),
                    _ => Sqe::openat2(path, &memory.how, size_of::<OpenHow>() as u32),
                }
            }
            _ => Sqe::nop(),
        };
        request.flags = self
            .some_of(
                &[SqeFlag::ASYNC, SqeFlag::IO_LINK, SqeFlag::IO_HARDLINK],
                10,
            )
            .iter()
            .fold(0, |all, flag| all | flag.0);
        let sqe = sqe.flags(request.flags);
        if let Arguments::Open { flags, .. } = request.arguments
            && flags as u32 & (OpenFlag::CREAT.0 | OpenFlag::TRUNC.0) != 0
        {
            request.flags |= flags_of_kernel(request.op);
        }
        (request, sqe)
    }
}

const FAMILIES: [Family; 4] = [Family::UNIX, Family::INET, Family::INET6, Family::NETLINK];
const PORTS: [u16; 8] = [0, 79, 80, 81, 255, 256, 443, 65535];
const MODES: [AccessMode; 3] = [AccessMode::RDONLY, AccessMode::WRONLY, AccessMode::RDWR];
const OPEN_FLAGS: [OpenFlag; 5] = [
    OpenFlag::CREAT,
    OpenFlag::TRUNC,
    OpenFlag::APPEND,
    OpenFlag::CLOEXEC,
    OpenFlag::NONBLOCK,
];

/// Memory that requests refer to.
#[derive(Default)]
struct Memory {
    address: [u8; 28],
    how: OpenHow,
}

/// Checks with random policies and requests that a request has EACCES exactly if the rules
/// of the policy do not allow it.
fn random_policies_decide_as_their_rules_say() -> TestResult {
    let path = file()?;
    let (mut denied, mut allowed) = (0, 0);
    let count = if kernel::is_debug() { 20 } else { 60 };
    for number in 0..count {
        let mut random = Random(fastrand::Rng::with_seed(seed().wrapping_add(number)));
        let policy = random.policy();
        let fence = policy.fence().map_err(anyhow::Error::msg)?;
        let requests = 100;
        let counts = sandbox::Shared::<[std::sync::atomic::AtomicU32; 2]>::new()?;
        sandbox::in_child(|| {
            sandbox::no_new_privs()?;
            ::ringfence::kernel::enforce(&fence)?;
            let mut ring = Ring::new(2)?;
            for _ in 0..requests {
                let mut memory = Memory::default();
                let (request, sqe) = random.request(&path, &mut memory);
                let res = ring.run(sqe)?;
                let is_denied = res == -libc::EACCES;
                ensure!(
                    is_denied != policy.allows(&request),
                    "policy {number}: {res} for {request:x?} under {}",
                    policy.to_json()
                );
                counts[usize::from(is_denied)].fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if res > 2 {
                    // SAFETY: the descriptor is that of the file or socket that was just
                    // made.
                    unsafe { libc::close(res) };
                }
            }
            Ok(())
        })?;
        allowed += counts[0].load(std::sync::atomic::Ordering::Relaxed);
        denied += counts[1].load(std::sync::atomic::Ordering::Relaxed);
    }
    ensure!(
        denied > 300 && allowed > 300,
        "{denied} denied and {allowed} allowed requests"
    );
    std::fs::remove_file(path.to_str()?)?;
    Ok(Outcome::Passed)
}

/// Checks that a message that is sent without a ring is refused under a policy that denies
/// MSG_RING, and arrives under one that allows it.
fn messages_without_a_ring_are_refused() -> TestResult {
    for (ops, want) in [
        (vec![Op::NOP], -libc::EACCES),
        (vec![Op::NOP, Op::MSG_RING], 0),
    ] {
        sandbox::in_child(|| {
            ::ringfence::run::confine(&Policy::allowing(ops))?;
            let ring = Ring::new(2)?;
            let message = Sqe::new(op::MSG_RING).fd(ring.fd());
            expect_result("message", register::send_msg_ring(&message), want)?;
            // Other calls without a ring are not affected.
            let query =
                register::register(register::TASK, IORING_REGISTER_QUERY, std::ptr::null(), 0);
            ensure!(query != -libc::EACCES, "a query is refused");
            Ok(())
        })?;
    }
    Ok(Outcome::Passed)
}

/// Skips a test where calls cannot be filtered.
fn skipped() -> Option<Outcome> {
    (!kernel::has_option("CONFIG_IO_URING_BPF_CALLS"))
        .then(|| Outcome::Skipped("the kernel does not filter calls".to_string()))
}

/// Sets up a ring and closes it. Returns 0 or the error.
fn try_setup(entries: u32, flags: u32, cq_entries: u32) -> i32 {
    let mut params = RawParams::default();
    params[1] = cq_entries;
    params[2] = flags;
    let fd = setup(entries, &mut params);
    if fd >= 0 {
        // SAFETY: the descriptor is that of the new ring, which nobody else has.
        unsafe { libc::close(fd) };
    }
    fd.min(0)
}

/// Checks that rings can be made as the rules of the policy say.
///
/// In C, there are no filters of calls.
fn setups_are_decided_by_rules() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    let mut policy = Policy::allowing([Op::NOP]);
    policy.setup = Some(Setup {
        allowed_flags: Some([SetupFlag::CQSIZE, SetupFlag::CLAMP].into()),
        max_entries: Some(8),
        max_cq_entries: Some(32),
    });
    sandbox::in_child(|| {
        ::ringfence::run::confine(&policy)?;
        let (cqsize, denied) = (SetupFlag::CQSIZE.0, -libc::EACCES);
        for (entries, flags, cq_entries, want) in [
            (8, 0, 0, 0),
            (9, 0, 0, denied),
            (8, cqsize, 32, 0),
            (8, cqsize, 33, denied),
            (8, SetupFlag::SUBMIT_ALL.0, 0, denied),
            (8, SetupFlag::SQPOLL.0 | SetupFlag::CLAMP.0, 0, denied),
            (8, 1 << 31, 0, denied),
        ] {
            expect_result(
                &format!("{entries}, {flags:#x}"),
                try_setup(entries, flags, cq_entries),
                want,
            )?;
        }
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

/// Checks that registrations succeed as the rules of the policy say, and that filters can
/// no longer be registered if they are not listed.
///
/// In C, there are no filters of calls.
fn registrations_are_decided_by_rules() -> TestResult {
    if let Some(skipped) = skipped() {
        return Ok(skipped);
    }
    let mut policy = Policy::allowing([Op::NOP]);
    let ops = [Registration::REGISTER_PROBE].into();
    policy.registrations = Some(Registrations {
        default_action: Action::Deny,
        ops,
    });
    sandbox::in_child(|| {
        ::ringfence::run::confine(&policy)?;
        let ring = Ring::new(2)?;
        let probe = Registration::REGISTER_PROBE.0.into();
        let call = |opcode| register::register(ring.fd(), opcode, std::ptr::null(), 0);
        ensure!(call(probe) != -libc::EACCES, "what is listed is denied");
        for opcode in (0..Registration::ALL.len() as u32).filter(|it| *it != probe) {
            expect_result(
                &format!("registration {opcode}"),
                call(opcode),
                -libc::EACCES,
            )?;
        }
        let filter = ::ringfence::program::Filter {
            opcode: 0,
            program: policy.fence().map_err(anyhow::Error::msg)?.requests[0]
                .program
                .clone(),
            payload: 0,
        };
        let more = ::ringfence::kernel::register_filter(Kind::Request, &filter, false);
        expect_eq(
            "a filter",
            more.map_err(|error| error.raw_os_error()),
            Err(Some(libc::EACCES)),
        )
    })?;
    Ok(Outcome::Passed)
}

/// Checks that the tables of ringfence have all opcodes of this kernel, so that a policy
/// that allows by default leaves none out.
fn unknown_opcodes_are_not_left_out() -> TestResult {
    expect_eq("opcodes", Op::ALL.len() as u32, kernel::IORING_OP_LAST)?;
    expect_eq(
        "registrations",
        Registration::ALL.len() as u32,
        kernel::IORING_REGISTER_LAST,
    )?;
    let mut policy = Policy::allowing([]);
    policy.default_action = Action::Allow;
    policy.denied_sqe_flags = [SqeFlag::ASYNC].into();
    sandbox::in_child(|| {
        ::ringfence::run::confine(&policy)?;
        let mut ring = Ring::new(2)?;
        expect_result(
            "with the flag",
            ring.run(Sqe::nop().flags(SqeFlag::ASYNC.0))?,
            -libc::EACCES,
        )?;
        expect_result("without", ring.run(Sqe::nop())?, 0)
    })?;
    Ok(Outcome::Passed)
}
