// SPDX-License-Identifier: GPL-2.0
//! D3: the data that filters see for opcodes that have data, byte by byte. The words
//! that every opcode has are in `context_flags`.

use super::{Outcome, Test, TestResult, tests};
use crate::bpf;
use crate::kernel::{expect_eq, expect_result};
use crate::model::Context;
use crate::register::pdu_size;
use crate::ring::{Ring, read_context};
use crate::sqe::{IOSQE_ASYNC, OpenHow, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::context" {
        FC07 opcodes_without_data_show_zeros (20 s);
        FC08 socket_shows_family_type_and_protocol (20 s);
        FC09 socket_shows_an_invalid_family_unchanged (20 s);
        FC10 socket_shows_zeros_after_its_data (20 s);
        FC11 openat_shows_known_flags_and_o_largefile (20 s);
        FC12 openat_with_o_path_drops_other_flags (20 s);
        FC13 openat_shows_mode_only_when_creating (20 s);
        FC14 openat2_shows_how_as_given (20 s);
        FC15 openat2_checks_the_size_before_the_filter (20 s);
        FC16 connect_shows_an_ipv4_address (20 s);
        FC17 connect_shows_only_the_family_of_a_short_ipv4_address (20 s);
        FC18 connect_shows_ipv6_addresses_from_24_bytes_on (20 s);
        FC19 connect_without_address_shows_nothing_of_an_earlier_one (20 s);
        FC20 connect_shows_only_the_family_of_other_addresses (20 s);
        FC21 connect_checks_address_and_length_before_the_filter (20 s);
        FC23 connect_truncates_the_length_to_32_bits (20 s);
    }
};

/// The kernel's O_LARGEFILE; libc defines it as 0 on 64-bit machines.
const O_LARGEFILE: u64 = 0o100000;

/// The SQE flag that the kernel itself sets on requests for a worker.
const ASYNC: u8 = crate::sqe::IOSQE_ASYNC;

/// Builds the context of a request whose `user_data` is 0: opcode, SQE flags, and the
/// words of the opcode's own data.
fn context(opcode: u8, flags: u8, data: [u32; 6]) -> Context {
    let head = u32::from_le_bytes([opcode, flags, pdu_size(opcode), 0]);
    let [a, b, c, d, e, f] = data;
    [0, 0, head, 0, a, b, c, d, e, f]
}

/// Checks that the context that filters see for a request is exactly `want`.
fn sees(what: &str, make: impl Fn() -> Sqe, want: Context) -> anyhow::Result<()> {
    let got = read_context(make().opcode, make)?;
    expect_eq(what, got, want)
}

/// Builds the data of an open: three 64-bit numbers.
fn open_data(flags: u64, mode: u64, resolve: u64) -> [u32; 6] {
    let mut data = [0; 6];
    for (i, value) in [flags, mode, resolve].into_iter().enumerate() {
        data[2 * i] = value as u32;
        data[2 * i + 1] = (value >> 32) as u32;
    }
    data
}

/// Builds the data of a connect: family, port, and up to 16 bytes of address.
fn connect_data(family: i32, port: u16, address: &[u8]) -> [u32; 6] {
    let mut bytes = [0; 16];
    bytes[..address.len()].copy_from_slice(address);
    let word = |i: usize| u32::from_ne_bytes(bytes[4 * i..4 * i + 4].try_into().expect("4 bytes"));
    let port = u32::from(port.to_be());
    [family as u32, port, word(0), word(1), word(2), word(3)]
}

/// Builds a `struct sockaddr_in`, followed by bytes that filters must not see.
fn inet(port: u16, address: [u8; 4]) -> [u8; 128] {
    let mut bytes = [0x5a; 128];
    bytes[0..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[4..8].copy_from_slice(&address);
    bytes
}

/// Builds a `struct sockaddr_in6` with flow info and scope set.
fn inet6(port: u16, address: [u8; 16]) -> [u8; 128] {
    let mut bytes = [0x5a; 128];
    bytes[0..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
    bytes[2..4].copy_from_slice(&port.to_be_bytes());
    bytes[8..24].copy_from_slice(&address);
    bytes
}

const V4: [u8; 4] = [192, 0, 2, 33];
const V6: [u8; 16] = [0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

/// Checks that filters see zeros after the flags of opcodes that have no data.
fn opcodes_without_data_show_zeros() -> TestResult {
    let mut buffer = [0u8; 8];
    let plain = [
        Sqe::nop(),
        Sqe::read(-1, &mut buffer),
        Sqe::new(op::CLOSE),
        Sqe::poll(-1, libc::POLLIN),
        Sqe::new(op::ACCEPT),
        Sqe::new(op::RECV),
    ];
    for sqe in plain {
        let what = format!("opcode {}", sqe.opcode);
        sees(&what, || sqe, context(sqe.opcode, 0, [0; 6]))?;
    }
    Ok(Outcome::Passed)
}

/// Checks that filters see the family, the type without its flags, and the protocol of
/// SOCKET.
fn socket_shows_family_type_and_protocol() -> TestResult {
    let (cloexec, nonblock) = (libc::SOCK_CLOEXEC, libc::SOCK_NONBLOCK);
    for (family, kind, protocol) in [
        (libc::AF_INET, libc::SOCK_STREAM, 0),
        (
            libc::AF_INET6,
            libc::SOCK_DGRAM | cloexec,
            libc::IPPROTO_UDP,
        ),
        (libc::AF_UNIX, libc::SOCK_SEQPACKET | cloexec | nonblock, 0),
        // A protocol beyond those of any family: the call itself fails later.
        (libc::AF_INET, libc::SOCK_RAW, 0x7eee_dddd),
    ] {
        let what = format!("socket({family}, {kind:#x}, {protocol})");
        let data = [family as u32, (kind & 0xf) as u32, protocol as u32, 0, 0, 0];
        let make = || Sqe::socket(family, kind, protocol);
        sees(&what, make, context(op::SOCKET, 0, data))?;
    }
    // The largest number that fits into the bits of the type.
    let odd = Sqe::socket(libc::AF_INET, 0xf, 0);
    let data = [libc::AF_INET as u32, 0xf, 0, 0, 0, 0];
    sees("type 15", || odd, context(op::SOCKET, 0, data))?;
    Ok(Outcome::Passed)
}

/// Checks that filters see all 32 bits of a SOCKET's family, even of one that is
/// negative or too large.
fn socket_shows_an_invalid_family_unchanged() -> TestResult {
    for family in [-1, i32::MIN, 0x1_0000] {
        let data = [family as u32, libc::SOCK_STREAM as u32, 0, 0, 0, 0];
        let make = || Sqe::socket(family, libc::SOCK_STREAM, 0);
        sees(
            &format!("domain {family}"),
            make,
            context(op::SOCKET, 0, data),
        )?;
    }
    Ok(Outcome::Passed)
}

/// Checks that filters see zeros after the protocol of a SOCKET, whatever its unused
/// fields are.
fn socket_shows_zeros_after_its_data() -> TestResult {
    // Every bit that prep accepts in the request's own fields is set.
    let make = || {
        let mut sqe = Sqe::socket(-1, 0xf, -1);
        sqe.off |= 0xffff_ffff_0000_0000;
        sqe.addr3 = u64::MAX;
        sqe.pad = u64::MAX;
        sqe
    };
    let data = [u32::MAX, 0xf, u32::MAX, 0, 0, 0];
    sees("SOCKET", make, context(op::SOCKET, 0, data))?;
    Ok(Outcome::Passed)
}

/// Checks that filters see the known flags of OPENAT, with O_LARGEFILE added and
/// unknown ones dropped.
fn openat_shows_known_flags_and_o_largefile() -> TestResult {
    let make = || Sqe::openat(c"/no/such/file", libc::O_RDONLY, 0o777);
    let data = open_data(O_LARGEFILE, 0, 0);
    sees("O_RDONLY", make, context(op::OPENAT, 0, data))?;

    let flags = libc::O_RDWR | libc::O_APPEND | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let make = || Sqe::openat(c"/no/such/file", flags, 0);
    let data = open_data(flags as u64 | O_LARGEFILE, 0, 0);
    sees("several flags", make, context(op::OPENAT, 0, data))?;

    // Bits that open(2) does not know are dropped before filters see the flags.
    let make = || Sqe::openat(c"/no/such/file", libc::O_WRONLY | 1 << 30, 0);
    let data = open_data(libc::O_WRONLY as u64 | O_LARGEFILE, 0, 0);
    sees("unknown flag", make, context(op::OPENAT, 0, data))?;
    Ok(Outcome::Passed)
}

/// Checks that filters see only the flags that O_PATH allows beside it.
fn openat_with_o_path_drops_other_flags() -> TestResult {
    let make = || Sqe::openat(c"/no/such/file", libc::O_PATH | libc::O_RDWR, 0);
    let data = open_data(libc::O_PATH as u64, 0, 0);
    sees("O_PATH | O_RDWR", make, context(op::OPENAT, 0, data))?;

    let kept = libc::O_PATH | libc::O_DIRECTORY | libc::O_NOFOLLOW | libc::O_CLOEXEC;
    let flags = kept | libc::O_RDWR | libc::O_CREAT | libc::O_APPEND;
    let make = || Sqe::openat(c"/no/such/file", flags, 0o644);
    // O_CREAT is dropped before it can force the request to a worker.
    let got = read_context(op::OPENAT, make)?;
    expect_eq(
        "all that O_PATH allows",
        got[4..10].to_vec(),
        open_data(kept as u64, 0, 0).to_vec(),
    )?;
    Ok(Outcome::Passed)
}

/// Checks that filters see the mode of OPENAT, cut to its valid bits, only with O_CREAT
/// or O_TMPFILE.
fn openat_shows_mode_only_when_creating() -> TestResult {
    let make = || Sqe::openat(c"/no/such/file", libc::O_RDWR, 0o7777);
    let data = open_data(libc::O_RDWR as u64 | O_LARGEFILE, 0, 0);
    sees("mode without O_CREAT", make, context(op::OPENAT, 0, data))?;

    let flags = libc::O_RDWR | libc::O_CREAT;
    let make = || Sqe::openat(c"/no/such/file", flags, 0xffff_ffff);
    let data = open_data(flags as u64 | O_LARGEFILE, 0o7777, 0);
    sees("mode masked", make, context(op::OPENAT, ASYNC, data))?;

    let flags = libc::O_RDWR | libc::O_TMPFILE;
    let make = || Sqe::openat(c"/no/such/dir", flags, 0o640);
    let data = open_data(flags as u64 | O_LARGEFILE, 0o640, 0);
    sees(
        "mode with O_TMPFILE",
        make,
        context(op::OPENAT, ASYNC, data),
    )?;
    Ok(Outcome::Passed)
}

/// Builds an OPENAT2 of a path that does not exist.
fn openat2(how: &OpenHow) -> Sqe {
    Sqe::openat2(c"no/such/file", how, size_of::<OpenHow>() as u32)
}

/// Checks that filters see flags, mode and resolve of OPENAT2 as they are given,
/// invalid bits included.
fn openat2_shows_how_as_given() -> TestResult {
    let how = OpenHow {
        resolve: libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_SYMLINKS,
        ..OpenHow::default()
    };
    let data = open_data(O_LARGEFILE, 0, how.resolve);
    sees("resolve", || openat2(&how), context(op::OPENAT2, 0, data))?;

    // None of these bits is valid, and filters see all of them.
    let odd = OpenHow {
        flags: 0xfedc_ba98_0000_0000 | libc::O_WRONLY as u64,
        mode: 0x1122_3344_5566_7788,
        resolve: 0x99aa_bbcc_ddee_ff00,
    };
    let data = open_data(odd.flags | O_LARGEFILE, odd.mode, odd.resolve);
    sees(
        "invalid bits",
        || openat2(&odd),
        context(op::OPENAT2, 0, data),
    )?;

    let path = OpenHow {
        flags: libc::O_PATH as u64,
        ..OpenHow::default()
    };
    let data = open_data(path.flags, 0, 0);
    sees("O_PATH", || openat2(&path), context(op::OPENAT2, 0, data))?;
    Ok(Outcome::Passed)
}

/// Checks that a wrong size of OPENAT2's argument, or an unreadable argument, gives its
/// own error before a filter runs.
fn openat2_checks_the_size_before_the_filter() -> TestResult {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::OPENAT2, &bpf::deny())?;
    let mut how = [0u64; 4];
    let at = |how: &[u64; 4], size| Sqe::openat2(c"no/such/file", how.as_ptr().cast(), size);
    ring.expect("size 24", at(&how, 24), -libc::EACCES)?;
    ring.expect("size 32, zero tail", at(&how, 32), -libc::EACCES)?;
    ring.expect("size 23", at(&how, 23), -libc::EINVAL)?;
    ring.expect("size 0", at(&how, 0), -libc::EINVAL)?;
    how[3] = 1;
    ring.expect("size 32, tail set", at(&how, 32), -libc::E2BIG)?;
    // A dangling pointer is an address in the first page, where nothing is mapped.
    let unmapped = Sqe::openat2(c"no/such/file", std::ptr::dangling(), 24);
    ring.expect("how unmapped", unmapped, -libc::EFAULT)?;
    Ok(Outcome::Passed)
}

/// Checks that filters see exactly `data` for a CONNECT with `len` bytes of `address`.
fn connect_sees(address: &[u8; 128], len: u64, data: [u32; 6]) -> anyhow::Result<()> {
    let make = || Sqe::connect(-1, address, len);
    sees(
        &format!("address of {len:#x} bytes"),
        make,
        context(op::CONNECT, 0, data),
    )
}

/// Checks that filters see the port and address of a CONNECT to an IPv4 address of 16
/// bytes or more.
fn connect_shows_an_ipv4_address() -> TestResult {
    let full = connect_data(libc::AF_INET, 8080, &V4);
    for len in [16, 17, 28, 128] {
        connect_sees(&inet(8080, V4), len, full)?;
    }
    let high = connect_data(libc::AF_INET, 0xfffe, &[255, 254, 253, 252]);
    connect_sees(&inet(0xfffe, [255, 254, 253, 252]), 16, high)?;
    let address = inet(8080, V4);
    let with_flag = || Sqe::connect(-1, &address, 16).flags(IOSQE_ASYNC);
    let want = context(op::CONNECT, IOSQE_ASYNC, full);
    sees("address, and a flag", with_flag, want)?;
    Ok(Outcome::Passed)
}

/// Checks that filters see only the family of an IPv4 address of fewer than 16 bytes.
fn connect_shows_only_the_family_of_a_short_ipv4_address() -> TestResult {
    for len in [15, 8, 2] {
        let family_only = connect_data(libc::AF_INET, 0, &[]);
        connect_sees(&inet(8080, V4), len, family_only)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that filters see the port and address of an IPv6 address of 24 bytes or more,
/// and only the family of a shorter one.
fn connect_shows_ipv6_addresses_from_24_bytes_on() -> TestResult {
    let full = connect_data(libc::AF_INET6, 443, &V6);
    for len in [28, 24, 128] {
        connect_sees(&inet6(443, V6), len, full)?;
    }
    for len in [23, 16, 2] {
        connect_sees(&inet6(443, V6), len, connect_data(libc::AF_INET6, 0, &[]))?;
    }
    // An IPv4-mapped IPv6 address is shown as the IPv6 address that it is.
    let mut mapped = [0; 16];
    mapped[10..12].fill(0xff);
    mapped[12..].copy_from_slice(&V4);
    connect_sees(
        &inet6(80, mapped),
        28,
        connect_data(libc::AF_INET6, 80, &mapped),
    )?;
    Ok(Outcome::Passed)
}

/// Checks that filters see zeros for a CONNECT without an address right after one with
/// an address.
fn connect_without_address_shows_nothing_of_an_earlier_one() -> TestResult {
    let address = inet6(443, V6);
    for len in [0, 1] {
        let mut ring = Ring::new(4)?;
        ring.must_filter(op::CONNECT, &bpf::read_bit())?;
        // Each bit is read right after a CONNECT with a whole address, whose memory the
        // next request is likely to get.
        let mut got: Context = [0; 10];
        for (index, word) in got.iter_mut().enumerate().skip(2) {
            for bit in 0..32u64 {
                let user_data = (index as u64) << 32 | bit;
                ring.run(Sqe::connect(-1, &address, 28).user_data(user_data))?;
                let res = ring.run(Sqe::connect(-1, &address, len).user_data(user_data))?;
                *word |= u32::from(res != -libc::EACCES) << bit;
            }
        }
        let what = format!("address of {len} bytes after one of 28");
        expect_eq(&what, got, context(op::CONNECT, 0, [0; 6]))?;
    }
    Ok(Outcome::Passed)
}

/// Checks that filters see only the family of addresses other than IPv4 and IPv6.
fn connect_shows_only_the_family_of_other_addresses() -> TestResult {
    let mut unix = [b'x'; 128];
    unix[0..2].copy_from_slice(&(libc::AF_UNIX as u16).to_ne_bytes());
    let mut unspec = inet(8080, V4);
    unspec[0..2].copy_from_slice(&(libc::AF_UNSPEC as u16).to_ne_bytes());
    for len in [2, 3, 9, 15, 110] {
        connect_sees(&unix, len, connect_data(libc::AF_UNIX, 0, &[]))?;
    }
    for len in [2, 15, 16, 28] {
        connect_sees(&unspec, len, [0; 6])?;
    }
    let mut unknown = inet(8080, V4);
    unknown[0..2].copy_from_slice(&0xffffu16.to_ne_bytes());
    connect_sees(&unknown, 28, connect_data(0xffff, 0, &[]))?;
    Ok(Outcome::Passed)
}

/// Checks that a CONNECT of more than 128 bytes gives EINVAL, and one with an unmapped
/// address EFAULT, before a filter runs.
fn connect_checks_address_and_length_before_the_filter() -> TestResult {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::CONNECT, &bpf::deny())?;
    let address = inet(80, V4);
    for len in [129, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, u64::MAX] {
        let connect = Sqe::connect(-1, &address, len);
        ring.expect(&format!("length {len:#x}"), connect, -libc::EINVAL)?;
    }
    ring.expect("length 128", Sqe::connect(-1, &address, 128), -libc::EACCES)?;
    let mut unmapped = Sqe::connect(-1, &address, 16);
    unmapped.addr = 8;
    ring.expect("address unmapped", unmapped, -libc::EFAULT)?;
    let got = ring.run(Sqe::connect(-1, &address, 0))?;
    expect_result("length 0", got, -libc::EACCES)?;
    Ok(Outcome::Passed)
}

/// Checks that only the low 32 bits of a CONNECT's length count.
fn connect_truncates_the_length_to_32_bits() -> TestResult {
    let full = connect_data(libc::AF_INET, 8080, &V4);
    connect_sees(&inet(8080, V4), (1 << 32) + 16, full)?;
    connect_sees(&inet(8080, V4), 1 << 32, [0; 6])?;
    Ok(Outcome::Passed)
}
