// SPDX-License-Identifier: GPL-2.0
//! D9: how requests to receive end: the peer or this side shuts down, or the peer resets
//! the connection.

use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::zcrx_receive::{expect_end, roomy_ring};
use super::{Outcome, Test, TestResult, tests};
use crate::kernel::{expect_eq, expect_result, result};
use crate::stream::{Stream, ended};
use crate::zcrx::Ifq;

pub const TESTS: &[Test] = tests! {
    "zcrx::receive" {
        ZV07 request_ends_when_the_peer_shuts_down;
        ZV07own request_ends_when_its_own_side_is_shut_down;
        ZV08 request_ends_with_the_error_of_a_reset;
        ZV08end end_of_the_stream_comes_before_a_reset;
    }
};

/// Checks that a request ends with 0 after all data when the peer shuts down, and so do
/// later ones.
fn request_ends_when_the_peer_shuts_down() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let mut stream = Stream::new()?;
    let last = ended(stream.user_data, 0);
    ring.push(stream.recv(&ifq, 0))?;
    for len in [1, 5000, 30_000] {
        stream.send(len)?;
        stream.take_all(&mut ring, &ifq)?;
    }
    ring.submit()?;
    expect_eq("while there may be more", ring.try_cqe(), None)?;
    stream.sender.shutdown(Shutdown::Write)?;
    expect_eq("the end", ring.cqe()?, last)?;

    // The stream has ended for later requests, too, with and without a length.
    for len in [0, 100] {
        let sqe = stream.recv(&ifq, len);
        expect_end(&mut ring, "after the end", sqe, 0)?;
    }

    // The end comes after data that is there already.
    let mut stream = Stream::new()?;
    let thread = stream.send_later(30_000)?;
    thread.join().ok().context("the sender panicked")??;
    stream.wait_arrived()?;
    ring.push(stream.recv(&ifq, 0))?;
    expect_eq("the end", stream.take_until_end(&mut ring, &ifq)?, last)?;
    expect_eq("bytes left", stream.untaken(), 0)?;
    Ok(Outcome::Passed)
}

/// Resets a connection, which connecting to AF_UNSPEC does.
fn reset(stream: &Stream) -> anyhow::Result<()> {
    let nowhere = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as libc::sa_family_t,
        sa_data: [0; 14],
    };
    let size = size_of_val(&nowhere) as libc::socklen_t;
    // SAFETY: the call passes an address and its size.
    let ret = unsafe { libc::connect(stream.sender.as_raw_fd(), &nowhere, size) };
    expect_result("disconnecting", result(ret.into()), 0)
}

/// Checks that a request ends with ECONNRESET, after all data, when the peer resets the
/// connection, and later ones with 0.
fn request_ends_with_the_error_of_a_reset() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    for len in [0, 100_000] {
        let mut stream = Stream::new()?;
        ring.push(stream.recv(&ifq, len))?;
        stream.send(5000)?;
        stream.take_all(&mut ring, &ifq)?;
        reset(&stream)?;
        let last = ended(stream.user_data, -libc::ECONNRESET);
        expect_eq("the end", ring.cqe()?, last)?;
        // The error is reported once; after that the stream has just ended.
        let sqe = stream.recv(&ifq, len);
        expect_end(&mut ring, "after the reset", sqe, 0)?;
    }

    // Data that came before the reset is not lost.
    let mut stream = Stream::new()?;
    stream.send(5000)?;
    reset(&stream)?;
    ring.push(stream.recv(&ifq, 0))?;
    let last = stream.take_until_end(&mut ring, &ifq)?;
    let want = ended(stream.user_data, -libc::ECONNRESET);
    expect_eq("the end", last, want)?;
    expect_eq("bytes left", stream.untaken(), 0)?;
    Ok(Outcome::Passed)
}

/// Waits until `flag` of poll(2) is set for the receiving socket.
fn wait_polled(stream: &Stream, flag: PollFlags) -> anyhow::Result<()> {
    let mut polled = [PollFd::new(stream.receiver.as_fd(), flag)];
    poll(&mut polled, PollTimeout::from(5000u16))?;
    let got = polled[0].revents().context("unknown flags")?;
    ensure!(got.contains(flag), "polled {got:?}, without {flag:?}");
    Ok(())
}

/// Checks that a request ends with 0 if the peer first ends the stream and then resets the
/// connection.
fn end_of_the_stream_comes_before_a_reset() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let stream = Stream::new()?;
    stream.sender.shutdown(Shutdown::Write)?;
    wait_polled(&stream, PollFlags::POLLIN)?;
    reset(&stream)?;
    wait_polled(&stream, PollFlags::POLLERR)?;
    expect_end(&mut ring, "the end", stream.recv(&ifq, 0), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that a request ends with 0 if nothing can be received any more because of a
/// shutdown(2) on this side.
fn request_ends_when_its_own_side_is_shut_down() -> TestResult {
    let mut ring = roomy_ring()?;
    let ifq = Ifq::new(ring.fd(), 64, 64)?;
    let stream = Stream::new()?;
    stream.receiver.shutdown(Shutdown::Read)?;
    expect_end(&mut ring, "the end", stream.recv(&ifq, 0), 0)?;
    Ok(Outcome::Passed)
}
