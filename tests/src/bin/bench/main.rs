// SPDX-License-Identifier: GPL-2.0
//! Measures the cost of filters and zero-copy receive, case by case, in nanoseconds of
//! this machine's clock. Under QEMU with `-icount shift=0` that is the number of
//! instructions executed.
//!
//! Prints a line of JSON for each case. The exit status is 1 if a request did not have
//! the expected result, so that a kernel that allows everything does not look fast.

use std::arch::asm;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::time::{ClockId, clock_gettime};

use io_uring_rs_tests::bpf::{self, OPCODE_WORD, PDU, Program, USER_DATA_LO};
use io_uring_rs_tests::kernel::expect_result;
use io_uring_rs_tests::register::{self, TASK};
use io_uring_rs_tests::ring::{self, IORING_ENTER_GETEVENTS, IORING_SETUP_SUBMIT_ALL, Ring};
use io_uring_rs_tests::sandbox;
use io_uring_rs_tests::sqe::{IOSQE_BUFFER_SELECT, IOSQE_FIXED_FILE, Sqe, op};

mod device;
mod registering;
mod zcrx;

const ENTRIES: u32 = 64;
const WARM_UP: usize = 10;
const BATCHES: usize = 100;
const RINGS: usize = 200;
const CHILDREN: usize = 50;
const GROUPS: usize = 25;
const GROUP: usize = 20;

/// A `user_data` that filters deny.
const DENIED: u32 = 0xdead;

/// An address family that exists, and a socket type that does not.
const FAMILY: i32 = 45;
const NO_TYPE: i32 = 15;

/// A path whose lookup cannot sleep, as a program is not a directory.
const ABSENT: &std::ffi::CStr = c"/init/absent";

/// One number to measure.
struct Case {
    group: &'static str,
    name: &'static str,
    /// The case whose value is subtracted, so that the cost of filters remains.
    base: Option<&'static str>,
    /// The most that Rust may take relative to C, or `None` if the case is only
    /// watched.
    target: Option<f64>,
    work: Work,
}

/// The work that is measured.
enum Work {
    /// Each request among many on one ring.
    Requests(Requests),
    /// Setting up and closing a ring, in a task with or without a filter.
    Ring { filtered: bool },
    /// Fork, exit and wait, in a task with or without a filter.
    Fork { filtered: bool },
    /// Work that measures itself.
    Other(fn() -> anyhow::Result<f64>),
}

struct Requests {
    sqe: Sqe,
    /// The result that each request must have.
    want: i32,
    /// The filters, with the opcode of each.
    filters: Vec<(u8, Program)>,
    /// Requests that the same filters must deny.
    denied: Vec<Sqe>,
}

fn nop(filters: Vec<Program>, denied: &[u32]) -> Work {
    Work::Requests(Requests {
        sqe: Sqe::nop(),
        want: 0,
        filters: filters.into_iter().map(|f| (op::NOP, f)).collect(),
        denied: denied
            .iter()
            .map(|&value| Sqe::nop().user_data(value.into()))
            .collect(),
    })
}

fn nop_other_opcode() -> Work {
    Work::Requests(Requests {
        sqe: Sqe::nop(),
        want: 0,
        filters: vec![(op::FSYNC, bpf::deny())],
        denied: vec![Sqe::new(op::FSYNC)],
    })
}

fn nop_denied() -> Work {
    Work::Requests(Requests {
        sqe: Sqe::nop(),
        want: -libc::EACCES,
        filters: vec![(op::NOP, bpf::deny())],
        denied: vec![],
    })
}

fn socket(filtered: bool) -> Work {
    let filter = (op::SOCKET, bpf::allow_if(PDU, FAMILY as u32));
    let other = Sqe::socket(libc::AF_UNIX, libc::SOCK_STREAM, 0);
    Work::Requests(Requests {
        sqe: Sqe::socket(FAMILY, NO_TYPE, 0),
        want: -libc::EINVAL,
        filters: filtered.then_some(filter).into_iter().collect(),
        denied: filtered.then_some(other).into_iter().collect(),
    })
}

fn openat(filtered: bool) -> Work {
    let deny_creating = vec![
        bpf::ld(PDU),
        bpf::jset(libc::O_CREAT as u32, 0, 1),
        bpf::ret(0),
        bpf::ret(1),
    ];
    let filter = (op::OPENAT, deny_creating);
    let creating = Sqe::openat(ABSENT, libc::O_CREAT | libc::O_WRONLY, 0o600);
    Work::Requests(Requests {
        sqe: Sqe::openat(ABSENT, libc::O_RDONLY, 0),
        want: -libc::ENOTDIR,
        filters: filtered.then_some(filter).into_iter().collect(),
        denied: filtered.then_some(creating).into_iter().collect(),
    })
}

/// Builds a program that tests one byte of the word that is the same in all requests of
/// an opcode.
fn test_byte(mask: u32, value: u32) -> Program {
    vec![
        bpf::ld(OPCODE_WORD),
        bpf::alu(libc::BPF_AND, mask),
        bpf::jeq(value, 0, 1),
        bpf::ret(1),
        bpf::ret(0),
    ]
}

/// Builds a program that denies requests with any of these flags of the SQE.
fn deny_flags(flags: u8) -> Program {
    let word = u32::from_ne_bytes([0, flags, 0, 0]);
    vec![
        bpf::ld(OPCODE_WORD),
        bpf::jset(word, 0, 1),
        bpf::ret(0),
        bpf::ret(1),
    ]
}

fn deny_value(value: u32) -> Program {
    bpf::deny_if(USER_DATA_LO, value)
}

/// Returns all cases, each after its base if it has one.
fn cases() -> Vec<Case> {
    const NOP: Option<&str> = Some("NOP, no filter");
    const SOCKET: Option<&str> = Some("SOCKET, no filter");
    const OPENAT: Option<&str> = Some("OPENAT, no filter");
    let case = |name, base, target, work| Case {
        group: "",
        name,
        base,
        target,
        work,
    };
    let each_another = (0..16).map(|i| DENIED + i).collect::<Vec<_>>();
    let many = each_another.iter().map(|&value| deny_value(value));
    let opcode = test_byte(0xff, op::NOP.into());
    let pdu_size = test_byte(0xff_0000, 0);
    let flags = deny_flags(IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT);
    let user_data = deny_value(DENIED);
    #[rustfmt::skip]
    let filters = vec![
        case("NOP, no filter", None, Some(1.0), nop(vec![], &[])),
        case("filter for another opcode", NOP, Some(0.24), nop_other_opcode()),
        case("always allows", NOP, Some(0.12), nop(vec![bpf::allow()], &[])),
        case("tests opcode", NOP, Some(0.12), nop(vec![opcode], &[])),
        case("tests pdu_size", NOP, Some(0.12), nop(vec![pdu_size], &[])),
        case("16 always allow", NOP, Some(0.015), nop(vec![bpf::allow(); 16], &[])),
        case("tests user_data", NOP, Some(0.45), nop(vec![user_data.clone()], &[DENIED])),
        case("4 test user_data", NOP, Some(0.25), nop(vec![user_data.clone(); 4], &[DENIED])),
        case("16 test user_data", NOP, Some(0.11), nop(vec![user_data; 16], &[DENIED])),
        case("16 test user_data, each another value", NOP, Some(0.11), nop(many.collect(), &each_another)),
        case("tests SQE flags", NOP, Some(0.072), nop(vec![flags.clone()], &[])),
        case("16 test SQE flags", NOP, Some(0.0083), nop(vec![flags; 16], &[])),
        case("NOP, denied", None, Some(0.9), nop_denied()),
        case("SOCKET, no filter", None, Some(1.0), socket(false)),
        case("tests family", SOCKET, Some(0.5), socket(true)),
        case("OPENAT, no filter", None, Some(1.0), openat(false)),
        case("tests flags", OPENAT, Some(0.5), openat(true)),
    ];
    #[rustfmt::skip]
    let registration = vec![
        case("ring set up and closed", None, None, Work::Ring { filtered: false }),
        case("ring, task with a filter", None, None, Work::Ring { filtered: true }),
        case("fork, exit, wait", None, None, Work::Fork { filtered: false }),
        case("fork, task with a filter", None, None, Work::Fork { filtered: true }),
        case("register the first filter", None, Some(1.0), Work::Other(registering::first)),
        case("register onto 15", None, Some(1.0), Work::Other(registering::onto_fifteen)),
        case("register 16, and their first request", None, Some(1.0), Work::Other(registering::sixteen_and_a_request)),
        case("register 4,096 instructions", None, Some(1.0), Work::Other(registering::longest)),
        case("register the first of a task", None, Some(1.0), Work::Other(registering::task)),
        case("register an allow-list of 40 opcodes", None, Some(0.3), Work::Other(registering::allow_list)),
        case("register tests of SQE flags of 40 opcodes", None, Some(0.3), Work::Other(registering::flag_tests)),
        case("bytes of a filter, 40 of a ring", None, Some(1.0), Work::Other(registering::bytes_of_filter)),
        case("bytes of a ring's set, inherited", None, Some(1.0), Work::Other(registering::bytes_of_ring)),
        case("bytes of a task with a filter", None, Some(1.0), Work::Other(registering::bytes_of_task)),
    ];
    #[rustfmt::skip]
    let zcrx = vec![
        case("zcrx: 4 KiB received", None, Some(0.99), Work::Other(zcrx::receiving)),
        case("zcrx: buffer given back", None, Some(0.9), Work::Other(zcrx::giving_back)),
        case("zcrx: register 64 MiB", None, Some(0.5), Work::Other(zcrx::registering)),
        case("zcrx: no free buffer", None, Some(1.0), Work::Other(zcrx::exhausted_area)),
        case("zcrx: no free buffer, 1,024 areas", Some("zcrx: no free buffer"), Some(0.0), Work::Other(zcrx::exhausted_areas)),
        case("zcrx, NIC: 4 KiB received", None, Some(0.85), Work::Other(device::receiving)),
        case("zcrx, NIC: 4 KiB sent and received", None, Some(1.0), Work::Other(device::whole_system)),
        case("zcrx, NIC: buffer given back", None, Some(0.85), Work::Other(device::giving_back)),
        case("zcrx, NIC: buffer refilled", None, Some(0.85), Work::Other(device::refilling)),
    ];
    let groups = [
        ("filters", filters),
        ("registration", registration),
        ("zero-copy receive", zcrx),
    ];
    let grouped = groups
        .into_iter()
        .flat_map(|(group, cases)| cases.into_iter().map(move |case| Case { group, ..case }));
    grouped.collect()
}

fn main() -> ExitCode {
    let mut status = ExitCode::SUCCESS;
    // Words of the name of a case, with which the kernel's command line can name it.
    let words = std::env::args().nth(1).map(|name| name.replace('_', " "));
    for case in cases() {
        if words.as_ref().is_some_and(|words| *words != case.name) {
            continue;
        }
        // The work that closed rings leave to workers and RCU must not be measured in
        // the next case.
        std::thread::sleep(Duration::from_millis(200));
        // Each case runs in a child, as the filters of a task and the remains of rings
        // would stay.
        if let Err(error) = sandbox::in_child(|| case.run()) {
            println!("bench: {}: {error:#}", case.name);
            status = ExitCode::FAILURE;
        }
    }
    status
}

impl Case {
    fn run(&self) -> anyhow::Result<()> {
        let value = match &self.work {
            Work::Requests(requests) => requests.time()?,
            Work::Ring { filtered } => ring_life(*filtered)?,
            Work::Fork { filtered } => child_life(*filtered)?,
            Work::Other(measure) => measure()?,
        };
        let base = self.base.map_or("null".to_string(), |b| format!("{b:?}"));
        let target = self.target.map_or("null".to_string(), |t| t.to_string());
        println!(
            r#"{{"group": {:?}, "case": {:?}, "base": {base}, "target": {target}, "value": {value:.2}}}"#,
            self.group, self.name
        );
        Ok(())
    }
}

impl Requests {
    /// Creates a ring with the filters.
    fn ring(&self) -> anyhow::Result<Ring> {
        let ring = Ring::with(ENTRIES, IORING_SETUP_SUBMIT_ALL)?;
        for (opcode, program) in &self.filters {
            ring.must_filter(*opcode, program)?;
        }
        Ok(ring)
    }

    /// Measures the nanoseconds per request, from submission to completion.
    fn time(&self) -> anyhow::Result<f64> {
        // A denied request leaves a ring in a state in which its next requests cost more.
        let mut denying = self.ring()?;
        for &sqe in &self.denied {
            denying.expect("a request to be denied", sqe, -libc::EACCES)?;
        }
        let mut ring = self.ring()?;
        let mut samples = Vec::new();
        for _ in 0..WARM_UP + BATCHES {
            for i in 0..ENTRIES {
                ring.push(self.sqe.user_data(i.into()))?;
            }
            let (fd, mut taken) = (ring.fd(), 0);
            samples.push(timed(|| {
                taken = ring::enter(fd, ENTRIES, ENTRIES, IORING_ENTER_GETEVENTS);
            })?);
            expect_result("requests taken", taken, ENTRIES as i32)?;
            for _ in 0..ENTRIES {
                let cqe = ring.try_cqe().context("a completion is missing")?;
                expect_result("a request", cqe.res, self.want)?;
            }
        }
        Ok(median(samples.split_off(WARM_UP)) / f64::from(ENTRIES))
    }
}

/// Measures the nanoseconds of a ring from its setup to its close.
fn ring_life(filtered: bool) -> anyhow::Result<f64> {
    filter_task(filtered)?;
    let life = || -> anyhow::Result<()> {
        let fd = ring::setup(ENTRIES, &mut Default::default());
        ensure!(fd >= 0, "io_uring_setup: {fd}");
        // SAFETY: nothing else owns the descriptor.
        ensure!(unsafe { libc::close(fd) } == 0, "close failed");
        Ok(())
    };
    together(life)
}

/// Measures the nanoseconds of a child from its fork until it has been waited for.
fn child_life(filtered: bool) -> anyhow::Result<f64> {
    filter_task(filtered)?;
    together(|| sandbox::in_child(|| Ok(())))
}

/// Registers a filter for the calling task if `filtered`.
fn filter_task(filtered: bool) -> anyhow::Result<()> {
    if filtered {
        let result = register::filter(TASK, op::NOP, &deny_value(DENIED));
        expect_result("registering", result, 0)?;
        expect_filtered(&mut Ring::new(1)?)?;
    }
    Ok(())
}

/// Checks that a filter on `user_data` is in force.
fn expect_filtered(ring: &mut Ring) -> anyhow::Result<()> {
    let denied = Sqe::nop().user_data(DENIED.into());
    ring.expect("a NOP to be denied", denied, -libc::EACCES)?;
    ring.expect("a NOP to be allowed", Sqe::nop(), 0)
}

/// Measures the nanoseconds that `work` takes, and lets `make profile` count it.
fn timed(work: impl FnOnce()) -> anyhow::Result<f64> {
    measure(work, true)
}

/// Measures the nanoseconds that `work` takes. The plugin of QEMU that makes profiles
/// counts the instructions between two no-ops, which it knows by their displacements.
#[inline(always)]
fn measure(work: impl FnOnce(), profiled: bool) -> anyhow::Result<f64> {
    let begin = now()?;
    if profiled {
        // SAFETY: This is an instruction that does nothing.
        unsafe {
            asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00",
                ".ascii \"bgn!\"",
                options(nostack)
            )
        };
    }
    work();
    if profiled {
        // SAFETY: As above.
        unsafe {
            asm!(
                ".byte 0x0f, 0x1f, 0x84, 0x00",
                ".ascii \"end!\"",
                options(nostack)
            )
        };
    }
    Ok((now()? - begin).as_nanos() as f64)
}

fn now() -> anyhow::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC_RAW)?.into())
}

/// Returns the median, which leaves out samples with a timer tick in them.
fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples[samples.len() / 2]
}

/// Measures work that continues in the kernel after the call, many calls together, as
/// workers and RCU run at any time.
fn together(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut samples = Vec::new();
    for _ in 0..WARM_UP + GROUPS {
        let mut result = Ok(());
        samples.push(timed(|| result = (0..GROUP).try_for_each(|_| work()))?);
        result?;
    }
    Ok(median(samples.split_off(WARM_UP)) / GROUP as f64)
}
