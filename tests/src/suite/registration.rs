// SPDX-License-Identifier: GPL-2.0
//! D1: the filters that registration accepts, the order of its checks, what it writes
//! back, and that a refusal changes nothing.

use std::os::fd::RawFd;

use super::{Outcome, Test, TestResult, tests};
use crate::bpf::{self, Program, USER_DATA_LO};
use crate::kernel::{BPF_MAXINSNS, IORING_OP_LAST, expect_eq, expect_result};
use crate::register::{
    self, DENY_REST, IORING_REGISTER_BPF_FILTER, IORING_REGISTER_RING_FDS,
    IORING_REGISTER_USE_REGISTERED_RING, PAGE_SIZE, Page, Registration, SZ_STRICT, TASK,
    filter_read_only, register as raw_register,
};
use crate::ring::{IORING_SETUP_R_DISABLED, IORING_SETUP_SINGLE_ISSUER, IORING_SETUP_SQPOLL, Ring};
use crate::sandbox;
use crate::sqe::{Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::register" {
        FR01 null_argument_is_refused;
        FR02 only_one_argument_is_accepted_for_a_ring;
        FR03 task_without_privilege_or_no_new_privs_is_refused;
        FR04 only_one_argument_is_accepted_for_a_task;
        FR05 root_needs_no_no_new_privs;
        FR06 cap_sys_admin_of_own_user_namespace_suffices;
        FR07 unknown_cmd_type_is_refused;
        FR08 cmd_flags_and_reserved_field_must_be_zero;
        FR09 opcode_out_of_range_is_refused;
        FR10 unknown_flags_are_refused;
        FR11 reserved_bytes_of_the_filter_must_be_zero;
        FR12 program_has_1_to_4096_instructions;
        FR13 strict_requires_the_exact_pdu_size_of_each_opcode;
        FR14 larger_pdu_size_is_refused_and_corrected;
        FR15 smaller_pdu_size_is_accepted_and_corrected;
        FR16 strict_refuses_smaller_pdu_size;
        FR17 opcode_without_data_refuses_a_pdu_size;
        FR18 argument_must_be_writable_and_whole;
        FR19 failed_write_back_comes_before_the_pdu_size_error;
        FR20 pdu_size_is_written_back_before_the_program_is_checked;
        FR21 pdu_size_error_comes_before_unreadable_program;
        FR22 unreadable_program_is_refused;
        FR23 works_on_enabled_disabled_sqpoll_and_registered_rings;
        FR24 only_the_single_issuer_may_register;
        FR25 registered_ring_flag_is_ignored_for_a_task;
        FR26 refused_filter_leaves_earlier_ones_in_force;
    }
};

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

/// Checks that registering for a ring with a NULL argument fails with EFAULT and
/// changes nothing.
fn null_argument_is_refused() -> TestResult {
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

/// Checks that registering for a ring with any number of arguments but one fails with
/// EINVAL and changes nothing.
fn only_one_argument_is_accepted_for_a_ring() -> TestResult {
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

/// Checks that a task with neither CAP_SYS_ADMIN nor no_new_privs gets EACCES, before
/// its arguments are looked at.
fn task_without_privilege_or_no_new_privs_is_refused() -> TestResult {
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

/// Checks that registering for a task with no argument or two fails with EINVAL, with a
/// NULL argument with EFAULT, and leaves nothing with the task.
fn only_one_argument_is_accepted_for_a_task() -> TestResult {
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

/// Checks that root registers a filter for itself without no_new_privs.
fn root_needs_no_no_new_privs() -> TestResult {
    task_filter_works()?;
    Ok(Outcome::Passed)
}

/// Checks that an unprivileged task registers a filter for itself once it has
/// CAP_SYS_ADMIN in a user namespace of its own.
fn cap_sys_admin_of_own_user_namespace_suffices() -> TestResult {
    sandbox::drop_privileges()?;
    let got = register::filter(TASK, op::NOP, &bpf::deny());
    expect_result("before the namespace", got, -libc::EACCES)?;
    sandbox::user_namespace()?;
    task_filter_works()?;
    Ok(Outcome::Passed)
}

/// Checks that an unknown cmd_type gives EINVAL, and nothing is written back.
fn unknown_cmd_type_is_refused() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for cmd_type in [0, 4, 0x101, u16::MAX] {
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

/// Checks that each bit of cmd_flags, and a reserved field that is not zero, gives
/// EINVAL.
fn cmd_flags_and_reserved_field_must_be_zero() -> TestResult {
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

/// Checks that an opcode from the first unknown one on gives EINVAL.
fn opcode_out_of_range_is_refused() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for opcode in [IORING_OP_LAST, 256, 1 << 16, u32::MAX] {
        let mut registration = deny_nop(&deny);
        registration.opcode = opcode;
        installed.refuses_untouched(&format!("opcode {opcode}"), registration, -libc::EINVAL)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a filter flag that is not known gives EINVAL, alone or beside known
/// ones.
fn unknown_flags_are_refused() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    for flags in [4, 4 | SZ_STRICT, 1 << 31] {
        let registration = deny_nop(&deny).flags(flags);
        installed.refuses_untouched(&format!("flags {flags:#x}"), registration, -libc::EINVAL)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that each reserved word of the filter that is not zero gives EINVAL.
fn reserved_bytes_of_the_filter_must_be_zero() -> TestResult {
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

/// Checks that a program of 4,096 instructions is accepted, and one of 0 or more than
/// 4,096 gives EINVAL.
fn program_has_1_to_4096_instructions() -> TestResult {
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

/// Checks that with the strict flag, each opcode accepts its exact pdu_size and gives
/// EMSGSIZE for another, with the right one written back.
fn strict_requires_the_exact_pdu_size_of_each_opcode() -> TestResult {
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

/// Checks that a pdu_size above the kernel's gives EMSGSIZE, and the kernel's is
/// written back.
fn larger_pdu_size_is_refused_and_corrected() -> TestResult {
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

/// Checks that a pdu_size below the kernel's is accepted, and the kernel's is written
/// back.
fn smaller_pdu_size_is_accepted_and_corrected() -> TestResult {
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

/// Checks that with the strict flag, a pdu_size other than the kernel's gives EMSGSIZE,
/// and the kernel's is written back.
fn strict_refuses_smaller_pdu_size() -> TestResult {
    let mut installed = Installed::new()?;
    let allow = bpf::allow();
    for flags in [SZ_STRICT, SZ_STRICT | DENY_REST] {
        let written = Registration::new(op::SOCKET, &allow).flags(flags);
        for pdu_size in [0, 8, 13] {
            let registration = Registration {
                pdu_size,
                ..written
            };
            installed.refuses(
                &format!("strict pdu {pdu_size}, flags {flags}"),
                registration,
                -libc::EMSGSIZE,
                written,
            )?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that a pdu_size for an opcode without data gives EMSGSIZE, and 0 is written
/// back.
fn opcode_without_data_refuses_a_pdu_size() -> TestResult {
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

/// Checks that an argument that is read-only, or that the end of a mapping cuts off,
/// gives EFAULT and changes nothing.
fn argument_must_be_writable_and_whole() -> TestResult {
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

/// Checks that a pdu_size that is too large gives EFAULT, not EMSGSIZE, if the kernel's
/// cannot be written back.
fn failed_write_back_comes_before_the_pdu_size_error() -> TestResult {
    let mut installed = Installed::new()?;
    let deny = bpf::deny();
    let mut registration = deny_nop(&deny);
    registration.pdu_size = 1;
    let got = filter_read_only(installed.fd(), &registration)?;
    expect_result("read-only arg, pdu too large", got, -libc::EFAULT)?;
    installed.unchanged("a read-only arg")?;
    Ok(Outcome::Passed)
}

/// Checks that the kernel's pdu_size is written back even if the program then gives
/// EINVAL.
fn pdu_size_is_written_back_before_the_program_is_checked() -> TestResult {
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

/// Checks that a pdu_size that is too large gives EMSGSIZE even if the program cannot
/// be read.
fn pdu_size_error_comes_before_unreadable_program() -> TestResult {
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

/// Checks that a NULL program gives EINVAL, and one that is unmapped, cut off by the
/// end of a mapping or in the kernel's half gives EFAULT.
fn unreadable_program_is_refused() -> TestResult {
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

/// Checks that filters can be registered for rings that are enabled, disabled, with an
/// SQPOLL thread, or known by a registered index.
fn works_on_enabled_disabled_sqpoll_and_registered_rings() -> TestResult {
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

/// Checks that another thread than the issuer of a single-issuer ring gets EEXIST, and
/// nothing is written back.
fn only_the_single_issuer_may_register() -> TestResult {
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

/// Checks that registering for a task gives the same results with
/// IORING_REGISTER_USE_REGISTERED_RING set.
fn registered_ring_flag_is_ignored_for_a_task() -> TestResult {
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

/// Checks that two filters stay in force when a third is refused with EINVAL.
fn refused_filter_leaves_earlier_ones_in_force() -> TestResult {
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
