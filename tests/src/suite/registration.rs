// SPDX-License-Identifier: GPL-2.0
//! D1: the filters that registration accepts, the order of its checks, what it writes
//! back, and that a refusal changes nothing.

use std::os::fd::RawFd;

use super::{Outcome, Test, TestResult, test};
use crate::bpf::{self, Program, USER_DATA_LO};
use crate::kernel::{BPF_MAXINSNS, IORING_OP_LAST, expect_eq, expect_result};
use crate::register::{
    self, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_RING_FDS,
    IORING_REGISTER_USE_REGISTERED_RING, PAGE_SIZE, Page, Registration, SZ_STRICT, TASK,
    filter_read_only, register as raw_register,
};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_SQPOLL, Ring};
use crate::sandbox;
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = &[
    test("FR01 ring: arg NULL", fr01),
    test("FR02 ring: nr_args 0 and 2", fr02),
    test("FR03 task: no no_new_privs, no privilege", fr03),
    test("FR04 task: nr_args 0 and 2", fr04),
    test("FR05 task: root without no_new_privs", fr05),
    test("FR06 task: CAP_SYS_ADMIN of a child user namespace", fr06),
    test("FR07 unknown cmd_type", fr07),
    test("FR08 cmd_flags and resv set", fr08),
    test("FR09 opcode out of range", fr09),
    test("FR10 unknown filter flags", fr10),
    test("FR11 reserved bytes of the filter", fr11),
    test("FR12 filter_len 0, 4097, 4096", fr12),
    test("FR13 exact pdu size of all opcodes, strict", fr13),
    test("FR14 pdu larger than the kernel's", fr14),
    test("FR15 pdu smaller than the kernel's", fr15),
    test("FR16 pdu smaller than the kernel's, strict", fr16),
    test("FR17 pdu for an opcode without one", fr17),
    test("FR18 read-only arg", fr18),
    test("FR19 read-only arg and pdu too large", fr19),
    test("FR20 invalid program: pdu size still written back", fr20),
    test("FR21 pdu too large wins over a bad filter_ptr", fr21),
    test("FR22 filter_ptr NULL, unmapped, straddling", fr22),
    test(
        "FR23 on enabled, disabled, SQPOLL and registered rings",
        fr23,
    ),
    test("FR24 single-issuer ring from another thread", fr24),
    test("FR25 task: USE_REGISTERED_RING bit is ignored", fr25),
    test("FR26 a refused third filter leaves two in force", fr26),
];

/// A ring with filters whose verdicts are known, to check that they stay in force.
struct Installed {
    ring: Ring,
    verdicts: Vec<i32>,
}

impl Installed {
    fn new() -> anyhow::Result<Self> {
        let mut ring = Ring::new(8)?;
        ring.must_filter(op::NOP, &bpf::allow_if(USER_DATA_LO, 7))?;
        ring.must_filter(op::SOCKET, &bpf::deny())?;
        let verdicts = ring.verdicts()?;
        let nops = [verdicts[0], verdicts[1]];
        expect_eq("NOP with user_data 7 and 8", nops, [0, -libc::EACCES])?;
        expect_eq(
            "SOCKET",
            verdicts[2 * usize::from(op::SOCKET)],
            -libc::EACCES,
        )?;
        Ok(Installed { ring, verdicts })
    }

    fn fd(&self) -> RawFd {
        self.ring.fd()
    }

    /// Checks that every opcode has the same result as at the start.
    fn unchanged(&mut self, after: &str) -> anyhow::Result<()> {
        let now = self.ring.verdicts()?;
        expect_eq(&format!("verdicts after {after}"), &now, &self.verdicts)
    }

    /// Checks that a registration is refused with `want`, writes back exactly
    /// `written`, and changes no verdict.
    fn refuses(
        &mut self,
        what: &str,
        mut registration: Registration,
        want: i32,
        written: Registration,
    ) -> anyhow::Result<()> {
        expect_result(what, registration.register(self.fd()), want)?;
        expect_eq(&format!("{what}: struct afterwards"), registration, written)?;
        self.unchanged(what)
    }

    /// Checks the same as [`Self::refuses`] for a registration that writes nothing
    /// back.
    fn refuses_untouched(
        &mut self,
        what: &str,
        registration: Registration,
        want: i32,
    ) -> anyhow::Result<()> {
        self.refuses(what, registration, want, registration)
    }
}

/// Builds a registration for NOP that would deny what [`Installed`] allows.
fn deny_nop(program: &Program) -> Registration {
    Registration::new(op::NOP, program)
}

fn fr01() -> TestResult {
    let mut installed = Installed::new()?;
    let got = raw_register(
        installed.fd(),
        IORING_REGISTER_BPF_FILTER,
        std::ptr::null(),
        1,
    );
    expect_result("arg NULL", got, -libc::EFAULT)?;
    installed.unchanged("arg NULL")?;
    Ok(Outcome::Passed)
}

fn fr02() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for nr_args in [0, 2, u32::MAX] {
        let what = format!("nr_args {nr_args}");
        let registration = deny_nop(&deny);
        let arg = (&raw const registration).cast();
        let got = raw_register(installed.fd(), IORING_REGISTER_BPF_FILTER, arg, nr_args);
        expect_result(&what, got, -libc::EINVAL)?;
        expect_eq(&what, registration, deny_nop(&deny))?;
        installed.unchanged(&what)?;
    }
    Ok(Outcome::Passed)
}

fn fr03() -> TestResult {
    sandbox::drop_privileges()?;
    let deny = bpf::deny();
    let mut registration = deny_nop(&deny);
    // A privileged caller would get this size corrected.
    registration.pdu_size = 1;
    let before = registration;
    for nr_args in [1, 0, 2] {
        let arg = (&raw const registration).cast();
        let got = raw_register(TASK, IORING_REGISTER_BPF_FILTER, arg, nr_args);
        expect_result(&format!("nr_args {nr_args}"), got, -libc::EACCES)?;
    }
    let got = raw_register(TASK, IORING_REGISTER_BPF_FILTER, std::ptr::null(), 1);
    expect_result("arg NULL", got, -libc::EACCES)?;
    expect_eq("struct afterwards", registration, before)?;
    Ring::new(1)?.expect("NOP of a new ring", Sqe::nop(), 0)?;
    Ok(Outcome::Passed)
}

fn fr04() -> TestResult {
    sandbox::sandboxed()?;
    let deny = bpf::deny();
    let registration = deny_nop(&deny);
    for nr_args in [0, 2] {
        let arg = (&raw const registration).cast();
        let got = raw_register(TASK, IORING_REGISTER_BPF_FILTER, arg, nr_args);
        expect_result(&format!("nr_args {nr_args}"), got, -libc::EINVAL)?;
    }
    let got = raw_register(TASK, IORING_REGISTER_BPF_FILTER, std::ptr::null(), 1);
    expect_result("arg NULL", got, -libc::EFAULT)?;
    Ring::new(1)?.expect("NOP of a new ring", Sqe::nop(), 0)?;
    // The kernel would refuse with EPERM if the failed attempts had left an object with
    // the task.
    let got = register::restrict_task(&[register::Restriction::sqe_op(op::NOP)]);
    expect_result("restrictions afterwards", got, 0)?;
    Ok(Outcome::Passed)
}

/// Checks that the calling task may register a filter and that new rings obey it.
fn task_filter_works() -> anyhow::Result<()> {
    let got = register::filter(TASK, op::NOP, &bpf::deny());
    expect_result("task filter", got, 0)?;
    let mut ring = Ring::new(1)?;
    ring.expect("NOP of a new ring", Sqe::nop(), -libc::EACCES)
}

fn fr05() -> TestResult {
    task_filter_works()?;
    Ok(Outcome::Passed)
}

fn fr06() -> TestResult {
    sandbox::drop_privileges()?;
    let got = register::filter(TASK, op::NOP, &bpf::deny());
    expect_result("before the namespace", got, -libc::EACCES)?;
    sandbox::user_namespace()?;
    task_filter_works()?;
    Ok(Outcome::Passed)
}

fn fr07() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for cmd_type in [0, 2, u16::MAX] {
        let mut registration = deny_nop(&deny);
        registration.cmd_type = cmd_type;
        registration.pdu_size = 1;
        installed.refuses_untouched(
            &format!("cmd_type {cmd_type}"),
            registration,
            -libc::EINVAL,
        )?;
    }
    Ok(Outcome::Passed)
}

fn fr08() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for bit in 0..16 {
        let mut registration = deny_nop(&deny);
        registration.cmd_flags = 1 << bit;
        installed.refuses_untouched(
            &format!("cmd_flags bit {bit}"),
            registration,
            -libc::EINVAL,
        )?;
    }
    for resv in [1, 1 << 31] {
        let mut registration = deny_nop(&deny);
        registration.resv = resv;
        installed.refuses_untouched(&format!("resv {resv:#x}"), registration, -libc::EINVAL)?;
    }
    Ok(Outcome::Passed)
}

fn fr09() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for opcode in [IORING_OP_LAST, 256, 1 << 16, u32::MAX] {
        let mut registration = deny_nop(&deny);
        registration.opcode = opcode;
        installed.refuses_untouched(&format!("opcode {opcode}"), registration, -libc::EINVAL)?;
    }
    Ok(Outcome::Passed)
}

fn fr10() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for flags in [4, 4 | SZ_STRICT, 1 << 31] {
        let registration = deny_nop(&deny).flags(flags);
        installed.refuses_untouched(&format!("flags {flags:#x}"), registration, -libc::EINVAL)?;
    }
    Ok(Outcome::Passed)
}

fn fr11() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for i in 0..3 {
        let mut registration = deny_nop(&deny);
        registration.filter_resv[i] = 1 << (3 * i);
        installed.refuses_untouched(&format!("resv[{i}]"), registration, -libc::EINVAL)?;
    }
    for i in 0..5 {
        let mut registration = deny_nop(&deny);
        registration.filter_resv2[i] = 1 << (15 * i);
        installed.refuses_untouched(&format!("resv2[{i}]"), registration, -libc::EINVAL)?;
    }
    Ok(Outcome::Passed)
}

fn fr12() -> TestResult {
    let mut installed = Installed::new()?;
    let too_long = bpf::long(BPF_MAXINSNS + 1, 0);
    for len in [0, BPF_MAXINSNS + 1, 1 << 16, 0xffff_ffff] {
        let mut registration = deny_nop(&too_long);
        registration.filter_len = len as u32;
        registration.pdu_size = 1;
        installed.refuses_untouched(&format!("filter_len {len}"), registration, -libc::EINVAL)?;
    }
    let longest = bpf::long(BPF_MAXINSNS, 0);
    let ring = &mut installed.ring;
    ring.must_filter(op::NOP, &longest)?;
    ring.expect("NOP after 4096", Sqe::nop().user_data(7), -libc::EACCES)?;
    Ok(Outcome::Passed)
}

fn fr13() -> TestResult {
    let mut ring = Ring::new(8)?;
    let allow = bpf::allow();
    for opcode in register::opcodes() {
        let want = Registration::new(opcode, &allow).flags(SZ_STRICT);
        let mut registration = want;
        let what = format!("opcode {opcode}, pdu {}", registration.pdu_size);
        expect_result(&what, registration.register(ring.fd()), 0)?;
        expect_eq(&what, registration, want)?;

        registration.pdu_size ^= 0x80;
        expect_result(&what, registration.register(ring.fd()), -libc::EMSGSIZE)?;
        expect_eq(&format!("{what}, written back"), registration, want)?;
    }
    ring.expect("NOP", Sqe::nop(), 0)?;
    Ok(Outcome::Passed)
}

fn fr14() -> TestResult {
    let mut installed = Installed::new()?;
    let allow = bpf::allow();
    let written = Registration::new(op::SOCKET, &allow);
    for pdu_size in [13, 24, 255] {
        let registration = Registration {
            pdu_size,
            ..written
        };
        installed.refuses(
            &format!("SOCKET with pdu {pdu_size}"),
            registration,
            -libc::EMSGSIZE,
            written,
        )?;
    }
    Ok(Outcome::Passed)
}

fn fr15() -> TestResult {
    let mut ring = Ring::new(8)?;
    let deny = bpf::deny();
    let written = Registration::new(op::SOCKET, &deny);
    for pdu_size in [0, 8, 11] {
        let mut registration = Registration {
            pdu_size,
            ..written
        };
        expect_result("smaller pdu", registration.register(ring.fd()), 0)?;
        expect_eq("written back", registration, written)?;
    }
    let socket = Sqe::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    ring.expect("SOCKET", socket, -libc::EACCES)?;
    Ok(Outcome::Passed)
}

fn fr16() -> TestResult {
    let mut installed = Installed::new()?;
    let allow = bpf::allow();
    let written = Registration::new(op::SOCKET, &allow).flags(SZ_STRICT);
    for pdu_size in [0, 8, 13] {
        let registration = Registration {
            pdu_size,
            ..written
        };
        installed.refuses(
            &format!("strict pdu {pdu_size}"),
            registration,
            -libc::EMSGSIZE,
            written,
        )?;
    }
    Ok(Outcome::Passed)
}

fn fr17() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    let written = deny_nop(&deny);
    let registration = Registration {
        pdu_size: 1,
        ..written
    };
    installed.refuses("NOP with pdu 1", registration, -libc::EMSGSIZE, written)?;
    Ok(Outcome::Passed)
}

fn fr18() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    let got = filter_read_only(installed.fd(), &deny_nop(&deny))?;
    expect_result("read-only arg", got, -libc::EFAULT)?;
    installed.unchanged("a read-only arg")?;

    // A structure that the end of the mapping cuts off.
    let page = Page::new()?;
    page.write(PAGE_SIZE - 64, &[0u8; 64]);
    // SAFETY: the address is inside the page.
    let arg = unsafe { page.address.add(PAGE_SIZE - 64) };
    let got = raw_register(installed.fd(), IORING_REGISTER_BPF_FILTER, arg.cast(), 1);
    expect_result("arg cut off", got, -libc::EFAULT)?;
    installed.unchanged("an arg cut off")?;
    Ok(Outcome::Passed)
}

fn fr19() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    let mut registration = deny_nop(&deny);
    registration.pdu_size = 1;
    let got = filter_read_only(installed.fd(), &registration)?;
    expect_result("read-only arg, pdu too large", got, -libc::EFAULT)?;
    installed.unchanged("a read-only arg")?;
    Ok(Outcome::Passed)
}

fn fr20() -> TestResult {
    let mut installed = Installed::new()?;
    let no_end = vec![bpf::ld_imm(1)];
    let written = Registration::new(op::SOCKET, &no_end);
    let registration = Registration {
        pdu_size: 8,
        ..written
    };
    installed.refuses("program without RET", registration, -libc::EINVAL, written)?;
    Ok(Outcome::Passed)
}

fn fr21() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    let mut written = Registration::new(op::SOCKET, &deny);
    written.filter_ptr = 8;
    let registration = Registration {
        pdu_size: 24,
        ..written
    };
    installed.refuses("both wrong", registration, -libc::EMSGSIZE, written)?;
    Ok(Outcome::Passed)
}

fn fr22() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny_if(USER_DATA_LO, 7);
    let page = Page::new()?;
    let last = PAGE_SIZE - size_of_val(&deny[0]);
    page.write(last, &deny[0]);
    let straddling = page.address as u64 + last as u64;
    let kernel_half = 1 << 63;
    for (what, pointer, want) in [
        ("NULL", 0, -libc::EINVAL),
        ("unmapped", 8, -libc::EFAULT),
        ("straddling", straddling, -libc::EFAULT),
        ("in the kernel's half", kernel_half, -libc::EFAULT),
    ] {
        let mut registration = deny_nop(&deny);
        registration.filter_ptr = pointer;
        installed.refuses_untouched(&format!("filter_ptr {what}"), registration, want)?;
    }
    Ok(Outcome::Passed)
}

fn fr23() -> TestResult {
    let mut enabled = Ring::new(4)?;
    enabled.expect("NOP before", Sqe::nop(), 0)?;
    enabled.must_filter(op::NOP, &bpf::deny())?;
    enabled.expect("enabled", Sqe::nop(), -libc::EACCES)?;

    let mut disabled = Ring::with(4, IORING_SETUP_R_DISABLED)?;
    disabled.must_filter(op::NOP, &bpf::deny())?;
    expect_result("enabling", register::enable(disabled.fd()), 0)?;
    disabled.expect("disabled, then enabled", Sqe::nop(), -libc::EACCES)?;

    let mut polled = Ring::with(4, IORING_SETUP_SQPOLL)?;
    polled.expect("SQPOLL before", Sqe::nop(), 0)?;
    polled.must_filter(op::NOP, &bpf::deny())?;
    polled.expect("SQPOLL", Sqe::nop(), -libc::EACCES)?;

    let mut registered = Ring::new(4)?;
    // struct io_uring_rsrc_update: index (any), reserved, fd.
    let mut update = [u32::MAX as u64, registered.fd() as u64];
    let arg = (&raw mut update).cast();
    let got = raw_register(registered.fd(), IORING_REGISTER_RING_FDS, arg, 1);
    expect_result("registering the ring fd", got, 1)?;
    let index = update[0] as u32 as RawFd;
    let deny = bpf::deny();
    let mut registration = deny_nop(&deny);
    let got = raw_register(
        index,
        IORING_REGISTER_BPF_FILTER | IORING_REGISTER_USE_REGISTERED_RING,
        (&raw mut registration).cast(),
        1,
    );
    expect_result("through the registered fd", got, 0)?;
    registered.expect("registered ring", Sqe::nop(), -libc::EACCES)?;
    Ok(Outcome::Passed)
}

fn fr24() -> TestResult {
    let mut ring = Ring::with(4, IORING_SETUP_SINGLE_ISSUER)?;
    let fd = ring.fd();
    let deny = bpf::deny();
    let before = deny_nop(&deny);
    let (got, after) = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut registration = before;
            (registration.register(fd), registration)
        });
        other.join().expect("the thread does not panic")
    });
    expect_result("from another thread", got, -libc::EEXIST)?;
    expect_eq("struct afterwards", after, before)?;
    ring.expect("NOP", Sqe::nop(), 0)?;
    ring.must_filter(op::NOP, &bpf::deny())?;
    ring.expect("NOP", Sqe::nop(), -libc::EACCES)?;
    Ok(Outcome::Passed)
}

fn fr25() -> TestResult {
    let with_bit = IORING_REGISTER_BPF_FILTER | IORING_REGISTER_USE_REGISTERED_RING;
    let deny = bpf::deny();
    let mut registration = deny_nop(&deny);
    let arg = (&raw mut registration).cast();
    sandbox::in_child(|| {
        sandbox::drop_privileges()?;
        let got = raw_register(TASK, with_bit, arg, 1);
        expect_result("without no_new_privs", got, -libc::EACCES)
    })?;
    sandbox::sandboxed()?;
    expect_result(
        "nr_args 0",
        raw_register(TASK, with_bit, arg, 0),
        -libc::EINVAL,
    )?;
    expect_result("nr_args 1", raw_register(TASK, with_bit, arg, 1), 0)?;
    Ring::new(1)?.expect("NOP of a new ring", Sqe::nop(), -libc::EACCES)?;
    Ok(Outcome::Passed)
}

fn fr26() -> TestResult {
    let mut ring = Ring::new(4)?;
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 1))?;
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 2))?;
    let bad = vec![
        bpf::insn(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, 0),
        bpf::ret(0),
    ];
    expect_result("third filter", ring.filter(op::NOP, &bad), -libc::EINVAL)?;
    for (user_data, want) in [(1, -libc::EACCES), (2, -libc::EACCES), (3, 0)] {
        let what = format!("NOP {user_data}");
        ring.expect(&what, Sqe::nop().user_data(user_data), want)?;
    }
    Ok(Outcome::Passed)
}
