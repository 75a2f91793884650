// SPDX-License-Identifier: GPL-2.0
//! D9: receiving into an interface queue without a device: the fields of a request, the
//! sockets that it accepts, and its end. Areas without free buffers are in
//! `zcrx_returns`, the completion queue in `zcrx_stream`, events in `zcrx_events`.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, ensure};

use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{describe, expect_eq, expect_result, has_option, result};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::sqe::{IOSQE_ASYNC, IOSQE_BUFFER_SELECT, IOSQE_IO_LINK, Sqe, op};
use crate::stream::{Stream, ended, expect_free};
use crate::wide::{WideRing, ZCRX_SETUP};
use crate::zcrx::{IORING_RECV_MULTISHOT, IORING_RECVSEND_POLL_FIRST, Ifq, recv_zc, transfer};

pub const TESTS: &[Test] = tests! {
    "zcrx::receive" {
        ZV01 invalid_requests_are_refused;
        ZV02 files_that_are_not_sockets_are_refused;
        ZV03 sockets_of_other_protocols_are_refused;
        ZV04 unconnected_sockets_are_refused;
        ZV05 page_arrives_intact;
        ZV06 request_ends_after_its_length;
        ZV11 data_from_before_the_request_is_received;
        ZV15 async_request_receives;
        ZV16 cancelled_request_takes_no_more_data;
        ZV17 two_sockets_share_a_queue;
        ZV18 request_stops_at_urgent_data;
        ZV30 link_is_cancelled_unless_all_bytes_came;
    }
};

/// Makes a ring with so many completions that no test here fills it.
pub fn roomy_ring() -> anyhow::Result<WideRing> {
    WideRing::with(8, 1024, ZCRX_SETUP)
}

/// Sets a socket option.
fn set_option<T>(fd: RawFd, level: i32, name: i32, value: &T) -> anyhow::Result<()> {
    let size = size_of::<T>() as libc::socklen_t;
    let value = std::ptr::from_ref(value);
    // SAFETY: the call passes a value and its size.
    let ret = result(unsafe { libc::setsockopt(fd, level, name, value.cast(), size) }.into());
    ensure!(ret == 0, "option {name} of {level}: {}", describe(ret));
    Ok(())
}

/// Puts packets of the given lengths directly into the socket's receive queue, as a
/// process that restores a checkpoint does. A packet of up to a page is all linear
/// data; longer ones have whole pages in fragments of up to 32 KiB. Pollers are not
/// woken, so the request must come afterwards.
pub fn restore(stream: &mut Stream, lengths: &[usize]) -> anyhow::Result<()> {
    const TCP_RECV_QUEUE: i32 = 1;
    const TCP_REPAIR_OFF_NO_WP: i32 = -1;
    let fd = stream.receiver.as_raw_fd();
    let room: i32 = 64 << 20;
    set_option(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &room)?;
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_REPAIR, &1)?;
    set_option(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_REPAIR_QUEUE,
        &TCP_RECV_QUEUE,
    )?;
    for &len in lengths {
        let bytes = stream.next(len);
        expect_eq("bytes restored", stream.receiver.write(&bytes)?, len)?;
    }
    set_option(
        fd,
        libc::IPPROTO_TCP,
        libc::TCP_REPAIR,
        &TCP_REPAIR_OFF_NO_WP,
    )?;
    stream.wait_arrived()
}

/// Calls socket(2).
fn socket(family: i32, kind: i32, protocol: i32) -> anyhow::Result<OwnedFd> {
    // SAFETY: the call takes no pointers.
    let fd = result(unsafe { libc::socket(family, kind, protocol) }.into());
    ensure!(fd >= 0, "socket: {}", describe(fd));
    // SAFETY: the descriptor is new, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Checks that a request ends at once with `res`, and posts nothing else.
pub fn expect_end(ring: &mut WideRing, what: &str, sqe: Sqe, res: i32) -> anyhow::Result<()> {
    ring.push(sqe)?;
    expect_eq(what, ring.cqe()?, ended(sqe.user_data, res))?;
    expect_eq("nothing more", ring.try_cqe(), None)
}

/// Checks that each invalid field, flag and id of a receive request gives EINVAL,
/// IOSQE_BUFFER_SELECT EOPNOTSUPP, and the data stays in the socket.
fn invalid_requests_are_refused() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 8, 4)?;
    let mut stream = Stream::new()?;
    // Data is there, which a refused request must leave alone.
    stream.send(100)?;
    let valid = stream.recv(&ifq, 0);
    let with = |change: &dyn Fn(&mut Sqe)| {
        let mut sqe = valid;
        change(&mut sqe);
        sqe
    };
    let mut refused = vec![
        ("addr", with(&|sqe| sqe.addr = 1)),
        ("addr2", with(&|sqe| sqe.off = 1)),
        ("addr3", with(&|sqe| sqe.addr3 = 1)),
        ("the next id", with(&|sqe| sqe.file_index = ifq.id + 1)),
        ("the last id", with(&|sqe| sqe.file_index = u32::MAX)),
        ("no flag", with(&|sqe| sqe.ioprio = 0)),
        (
            "not multishot",
            with(&|sqe| sqe.ioprio = IORING_RECVSEND_POLL_FIRST),
        ),
    ];
    for bit in [0, 6, 14, 31] {
        refused.push(("msg_flags", with(&|sqe| sqe.op_flags = 1 << bit)));
    }
    for bit in 2..16 {
        let flags = IORING_RECV_MULTISHOT | 1 << bit;
        refused.push(("ioprio", with(&|sqe| sqe.ioprio = flags)));
    }
    for (what, sqe) in refused {
        expect_end(&mut ring, what, sqe, -libc::EINVAL)?;
    }
    let select = with(&|sqe| sqe.flags = IOSQE_BUFFER_SELECT);
    expect_end(&mut ring, "BUFFER_SELECT", select, -libc::EOPNOTSUPP)?;

    ring.push(valid)?;
    let cqe = ring.cqe()?;
    stream.take(&ifq, &cqe)?;
    expect_eq("bytes not received", stream.untaken(), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a missing file gives EBADF, and one that is no socket ENOTSOCK.
fn files_that_are_not_sockets_are_refused() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 8, 4)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let file = std::fs::File::open("/proc/self/exe")?;
    let cases = [
        ("no file", -1, libc::EBADF),
        ("a closed file", 1000, libc::EBADF),
        ("the ring itself", ring.fd(), libc::ENOTSOCK),
        ("a pipe to read", reader.as_raw_fd(), libc::ENOTSOCK),
        ("a pipe to write", writer.as_raw_fd(), libc::ENOTSOCK),
        ("a regular file", file.as_raw_fd(), libc::ENOTSOCK),
    ];
    for (what, fd, errno) in cases {
        expect_end(&mut ring, what, recv_zc(fd, ifq.id, 0), -errno)?;
        let mut first = recv_zc(fd, ifq.id, 0);
        first.ioprio |= IORING_RECVSEND_POLL_FIRST;
        expect_end(&mut ring, what, first, -errno)?;
    }
    transfer(&mut ring, &ifq, PAGE_SIZE)?;
    Ok(Outcome::Passed)
}

/// Checks that UDP, AF_UNIX and MPTCP sockets, and those with keys of kernel TLS, give
/// EPROTONOSUPPORT and keep their data.
fn sockets_of_other_protocols_are_refused() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 8, 4)?;
    let refused = -libc::EPROTONOSUPPORT;

    let datagrams = UdpSocket::bind("127.0.0.1:0")?;
    let (unix, mut unix_sender) = UnixStream::pair()?;
    // Data is there, which must stay.
    datagrams.send_to(b"data", datagrams.local_addr()?)?;
    unix_sender.write_all(b"data")?;
    for (what, fd) in [
        ("UDP", datagrams.as_raw_fd()),
        ("AF_UNIX", unix.as_raw_fd()),
    ] {
        expect_end(&mut ring, what, recv_zc(fd, ifq.id, 0), refused)?;
    }
    let mut data = [0; 8];
    expect_eq("bytes left on UDP", datagrams.recv(&mut data)?, 4)?;
    expect_eq("bytes left on AF_UNIX", (&unix).read(&mut data)?, 4)?;

    let missing: Vec<_> = ["CONFIG_MPTCP", "CONFIG_TLS"]
        .into_iter()
        .filter(|option| !has_option(option))
        .collect();
    if !missing.is_empty() {
        return Ok(Outcome::Skipped(format!("the kernel has no {missing:?}")));
    }
    let multipath = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)?;
    let sqe = recv_zc(multipath.as_raw_fd(), ifq.id, 0);
    expect_end(&mut ring, "MPTCP", sqe, refused)?;
    kernel_tls(&mut ring, &ifq)?;
    Ok(Outcome::Passed)
}

/// Checks that kernel TLS keeps a socket from zero-copy receive only once it has keys
/// to decrypt with.
fn kernel_tls(ring: &mut WideRing, ifq: &Ifq) -> anyhow::Result<()> {
    let mut stream = Stream::new()?;
    let fd = stream.receiver.as_raw_fd();
    set_option(fd, libc::IPPROTO_TCP, libc::TCP_ULP, b"tls")?;
    stream.send(100)?;
    ring.push(stream.recv(ifq, 100))?;
    let cqe = ring.cqe()?;
    stream.take(ifq, &cqe)?;
    let last = ended(stream.user_data, 0);
    expect_eq("before there are keys", ring.cqe()?, last)?;

    let keys = libc::tls12_crypto_info_aes_gcm_128 {
        info: libc::tls_crypto_info {
            version: libc::TLS_1_2_VERSION,
            cipher_type: libc::TLS_CIPHER_AES_GCM_128,
        },
        iv: [0; 8],
        key: [0; 16],
        salt: [0; 4],
        rec_seq: [0; 8],
    };
    set_option(fd, libc::SOL_TLS, libc::TLS_RX, &keys)?;
    let sqe = stream.recv(ifq, 0);
    expect_end(ring, "kTLS", sqe, -libc::EPROTONOSUPPORT)
}

/// Checks that sockets that are listening or not connected give ENOTCONN.
fn unconnected_sockets_are_refused() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 8, 4)?;
    let listening = TcpListener::bind("127.0.0.1:0")?;
    let fresh = socket(libc::AF_INET, libc::SOCK_STREAM, 0)?;
    let bound = socket(libc::AF_INET6, libc::SOCK_STREAM, 0)?;
    for (what, fd) in [
        ("listening", listening.as_raw_fd()),
        ("not connected", fresh.as_raw_fd()),
        ("not connected, IPv6", bound.as_raw_fd()),
    ] {
        for len in [0, 1] {
            let sqe = recv_zc(fd, ifq.id, len);
            expect_end(&mut ring, what, sqe, -libc::ENOTCONN)?;
        }
    }
    Ok(Outcome::Passed)
}

/// Checks that a page of data arrives intact.
fn page_arrives_intact() -> TestResult {
    let mut ring = WideRing::new(8)?;
    let ifq = Ifq::new(ring.fd(), 64, 16)?;
    transfer(&mut ring, &ifq, PAGE_SIZE)?;
    Ok(Outcome::Passed)
}

/// Checks that a request with a length ends after that number of bytes and leaves the
/// rest, and otherwise waits for its last byte.
fn request_ends_after_its_length() -> TestResult {
    const LENGTHS: [usize; 7] = [1, 100, 4095, 4096, 4097, 10_000, 20_000];
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let mut stream = Stream::new()?;
    let last = ended(stream.user_data, 0);

    // All data is there: each request takes its part and leaves the rest.
    stream.send(LENGTHS.iter().sum::<usize>() + 77)?;
    for len in LENGTHS {
        let before = stream.untaken();
        ring.push(stream.recv(&ifq, len))?;
        expect_eq("the end", stream.take_until_end(&mut ring, &ifq)?, last)?;
        expect_eq("bytes taken", before - stream.untaken(), len)?;
    }
    expect_eq("bytes left", stream.untaken(), 77)?;

    // The request must wait for its last byte.
    ring.push(stream.recv(&ifq, 100))?;
    stream.take_all(&mut ring, &ifq)?;
    stream.send(22)?;
    stream.take_all(&mut ring, &ifq)?;
    ring.submit()?;
    expect_eq("one byte is missing", ring.try_cqe(), None)?;
    stream.send(10)?;
    expect_eq("the end", stream.take_until_end(&mut ring, &ifq)?, last)?;
    expect_eq("bytes left", stream.untaken(), 9)?;
    stream.read_left()?;
    Ok(Outcome::Passed)
}

/// Checks that a request receives data that was there before it, and goes on with later
/// data.
fn data_from_before_the_request_is_received() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    for flags in [0, IORING_RECVSEND_POLL_FIRST] {
        let mut stream = Stream::new()?;
        let mut sqe = stream.recv(&ifq, 0);
        sqe.ioprio |= flags;
        stream.send(20_000)?;
        ring.push(sqe)?;
        stream.take_all(&mut ring, &ifq)?;
        // The request goes on with data that comes later.
        stream.send(20_000)?;
        stream.take_all(&mut ring, &ifq)?;
        stream.sender.shutdown(std::net::Shutdown::Write)?;
        let last = ended(stream.user_data, 0);
        expect_eq("the end", ring.cqe()?, last)?;

        // It does not end either when there is no data at first.
        let mut stream = Stream::new()?;
        let mut sqe = stream.recv(&ifq, 5000);
        sqe.ioprio |= flags;
        ring.push(sqe)?;
        ring.submit()?;
        expect_eq("without data", ring.try_cqe(), None)?;
        stream.send(5000)?;
        let last = ended(stream.user_data, 0);
        expect_eq("the end", stream.take_until_end(&mut ring, &ifq)?, last)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a request with IOSQE_ASYNC receives as others do.
fn async_request_receives() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    for early in [true, false] {
        let mut stream = Stream::new()?;
        if early {
            stream.send(20_000)?;
        }
        ring.push(stream.recv(&ifq, 0).flags(IOSQE_ASYNC))?;
        ring.submit()?;
        if !early {
            stream.send(20_000)?;
        }
        stream.take_all(&mut ring, &ifq)?;
        stream.send(10_000)?;
        stream.take_all(&mut ring, &ifq)?;
        stream.sender.shutdown(std::net::Shutdown::Write)?;
        let last = ended(stream.user_data, 0);
        expect_eq("the end", ring.cqe()?, last)?;
    }
    Ok(Outcome::Passed)
}

/// Checks that a cancelled request ends with ECANCELED, and later data stays in the
/// socket.
fn cancelled_request_takes_no_more_data() -> TestResult {
    const CANCEL: u64 = 100;
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let mut stream = Stream::new()?;
    let mut cancel = Sqe::new(op::ASYNC_CANCEL).user_data(CANCEL);
    cancel.addr = stream.user_data;

    ring.push(stream.recv(&ifq, 0))?;
    stream.send(10_000)?;
    let mut granted = Vec::new();
    while stream.untaken() != 0 {
        let cqe = ring.cqe()?;
        let bytes = ifq.data(&cqe)?.to_vec();
        granted.push((cqe, bytes));
        stream.take(&ifq, &cqe)?;
    }
    ring.push(cancel)?;
    let mut ends = [ring.cqe()?, ring.cqe()?];
    ends.sort_by_key(|cqe| cqe.user_data);
    let want = [ended(stream.user_data, -libc::ECANCELED), ended(CANCEL, 0)];
    expect_eq("the ends", ends, want)?;
    expect_end(&mut ring, "cancelled twice", cancel, -libc::ENOENT)?;

    // Data that is sent now waits in the socket, and the kernel writes to no buffer.
    stream.send(10_000)?;
    ring.submit()?;
    expect_eq("after the end", ring.try_cqe(), None)?;
    for (cqe, bytes) in &granted {
        ensure!(ifq.data(cqe)? == bytes, "a buffer changed");
        ifq.return_buffer(cqe.offset()?);
    }
    ifq.flush_all(ring.fd())?;
    ring.push(stream.recv(&ifq, stream.untaken()))?;
    let last = ended(stream.user_data, 0);
    expect_eq("the end", stream.take_until_end(&mut ring, &ifq)?, last)?;
    expect_free(&mut ring, &ifq, 64)?;
    Ok(Outcome::Passed)
}

/// Checks that two sockets receive into one queue at the same time.
fn two_sockets_share_a_queue() -> TestResult {
    const LEN: usize = 256 << 10;
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 1024)?;
    let mut streams = [
        Stream::starting_at(0, 0)?,
        Stream::starting_at(1_000_003, 1)?,
    ];
    let mut threads = Vec::new();
    for stream in &mut streams {
        ring.push(stream.recv(&ifq, 0))?;
        threads.push(stream.send_later(LEN)?);
    }
    let mut ends = Vec::new();
    while ends.len() < 2 {
        let cqe = ring.cqe()?;
        if cqe.flags & IORING_CQE_F_MORE == 0 {
            ends.push(cqe);
            continue;
        }
        let stream = streams.get_mut(cqe.user_data as usize);
        let offset = stream.context("data of no stream")?.take(&ifq, &cqe)?;
        ifq.return_buffer(offset);
        ifq.flush_all(ring.fd())?;
    }
    for thread in threads {
        thread.join().ok().context("a sender panicked")??;
    }
    ends.sort_by_key(|cqe| cqe.user_data);
    expect_eq("the ends", ends, vec![ended(0, 0), ended(1, 0)])?;
    for stream in &streams {
        expect_eq("bytes left", stream.untaken(), 0)?;
    }
    expect_free(&mut ring, &ifq, 1024)?;
    Ok(Outcome::Passed)
}

/// Sends the next byte of a stream as urgent.
fn send_urgent(stream: &mut Stream) -> anyhow::Result<()> {
    let byte = stream.next(1);
    let fd = stream.sender.as_raw_fd();
    // SAFETY: the pointer is to one byte of `byte`.
    let sent = unsafe { libc::send(fd, byte.as_ptr().cast(), 1, libc::MSG_OOB) };
    expect_result("an urgent byte", result(sent as libc::c_long), 1)
}

/// Checks that a request stops at the mark of urgent data and goes on once that was
/// read.
fn request_stops_at_urgent_data() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let mut stream = Stream::new()?;
    // With this option the urgent byte is part of the stream and is compared, too.
    let receiver = stream.receiver.as_raw_fd();
    set_option(receiver, libc::SOL_SOCKET, libc::SO_OOBINLINE, &1)?;
    stream.send(5000)?;
    send_urgent(&mut stream)?;
    stream.wait_arrived()?;
    stream.send(3000)?;

    // The request receives up to the mark, and no further.
    ring.push(stream.recv(&ifq, 0))?;
    while stream.untaken() > 3001 {
        let cqe = ring.cqe()?;
        let offset = stream.take(&ifq, &cqe)?;
        ifq.return_buffer(offset);
    }
    expect_eq("bytes before the mark", stream.untaken(), 3001)?;
    ring.submit()?;
    expect_eq("at the mark", ring.try_cqe(), None)?;
    stream.send(100)?;
    ring.submit()?;
    expect_eq("with more data behind it", ring.try_cqe(), None)?;

    // Reading past the mark lets the request go on.
    stream.read(&mut [0; 10])?;
    stream.send(1000)?;
    stream.take_all(&mut ring, &ifq)?;
    stream.sender.shutdown(std::net::Shutdown::Write)?;
    let last = ended(stream.user_data, 0);
    expect_eq("the end", ring.cqe()?, last)?;
    ifq.flush_all(ring.fd())?;
    expect_free(&mut ring, &ifq, 64)?;
    Ok(Outcome::Passed)
}

/// Checks that a request that is linked behind a receive is cancelled unless the
/// receive got the number of bytes asked for.
fn link_is_cancelled_unless_all_bytes_came() -> TestResult {
    const NOP: u64 = 50;
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 16)?;
    // The end of the stream is a failure; receiving the last byte asked for is not.
    for (len, nop) in [(0, -libc::ECANCELED), (5000, 0), (5001, -libc::ECANCELED)] {
        let mut stream = Stream::new()?;
        ring.push(stream.recv(&ifq, len).flags(IOSQE_IO_LINK))?;
        ring.push(Sqe::nop().user_data(NOP))?;
        ring.submit()?;
        expect_eq("before data", ring.try_cqe(), None)?;
        stream.send(5000)?;
        stream.sender.shutdown(std::net::Shutdown::Write)?;
        let last = stream.take_until_end(&mut ring, &ifq)?;
        expect_eq("the receive", last, ended(stream.user_data, 0))?;
        expect_eq("bytes left", stream.untaken(), 0)?;
        expect_eq("the NOP", ring.cqe()?, ended(NOP, nop))?;
    }
    // Running out of buffers is a failure as well.
    let mut stream = Stream::new()?;
    let small = Ifq::new(ring.fd(), 8, 1)?;
    stream.send(5000)?;
    ring.push(stream.recv(&small, 0).flags(IOSQE_IO_LINK))?;
    ring.push(Sqe::nop().user_data(NOP))?;
    let cqe = ring.cqe()?;
    let offset = stream.take(&small, &cqe)?;
    let last = ended(stream.user_data, -libc::ENOMEM);
    expect_eq("the receive", ring.cqe()?, last)?;
    expect_eq("the NOP", ring.cqe()?, ended(NOP, -libc::ECANCELED))?;
    small.return_buffer(offset);
    small.flush_all(ring.fd())?;
    stream.read_left()?;
    Ok(Outcome::Passed)
}
