// SPDX-License-Identifier: GPL-2.0
//! D4: the effects of a denial on a submission. Links and their timeouts are in
//! `links`.

use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::EventFd;

use super::blind_messages::message;
use super::{NOTE, Outcome, Test, TestResult, tests};
use crate::bpf::{self, USER_DATA_LO};
use crate::kernel::{self, Implementation, expect_eq, expect_result};
use crate::nic::wait_until;
use crate::register::{
    self, IORING_REGISTER_FILES, IORING_REGISTER_PERSONALITY, IORING_UNREGISTER_PERSONALITY,
    Restriction, TASK,
};
use crate::ring::{
    Cqe, IORING_CQE_F_MORE, IORING_CQE_F_NOTIF, IORING_SETUP_CQSIZE, IORING_SETUP_R_DISABLED,
    IORING_SETUP_SQE_MIXED, IORING_SETUP_SQPOLL, IORING_SETUP_SUBMIT_ALL, Ring, cqe,
};
use crate::sandbox::{self, Shared, Sysctl};
use crate::sqe::{IOSQE_ASYNC, IOSQE_BUFFER_SELECT, IOSQE_FIXED_FILE, IOSQE_IO_DRAIN, Sqe, op};

pub const TESTS: &[Test] = tests! {
    "filters::submit" {
        FS01 denied_request_completes_with_eacces;
        FS02 denial_ends_the_batch;
        FS03 submit_all_goes_on_after_a_denial;
        FS08 denied_send_zc_posts_its_notification;
        FS09 denied_nop128_takes_two_slots;
        FS10 invalid_sqe_fails_before_the_filter;
        FS11 prep_error_comes_before_the_filter;
        FS12 restriction_comes_before_prep_and_filter_after;
        FS13 armed_multishot_requests_outlive_a_denial;
        FS14 request_on_a_worker_outlives_a_denial;
        FS15 filter_takes_effect_on_a_running_sqpoll_ring;
        FS16 denied_drain_request_does_not_stop_the_ring;
        FS17 send_msg_ring_without_a_ring_is_filtered;
        FS18 denied_requests_keep_no_references;
        FS19 struct_ops_loop_is_untested_without_btf;
        FS20 whole_queue_of_32768_requests_can_be_denied (30 s);
    }
};

const DENIED: i32 = -libc::EACCES;

/// Checks that a denied request completes with EACCES and without flags, and other
/// opcodes are not affected.
fn denied_request_completes_with_eacces() -> TestResult {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::NOP, &bpf::deny())?;
    let got = ring.run_all(&[Sqe::nop().user_data(u64::MAX)])?;
    expect_eq("completion", got, vec![cqe(u64::MAX, DENIED, 0)])?;
    ring.expect("another opcode", Sqe::new(op::CLOSE), -libc::EBADF)?;
    ring.expect_no_cqe()?;
    Ok(Outcome::Passed)
}

/// Makes a ring that denies NOPs whose `user_data` is 1.
fn denies_one(flags: u32) -> anyhow::Result<Ring> {
    let ring = Ring::with(8, flags)?;
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 1))?;
    Ok(ring)
}

/// Adds a NOP for each of these `user_data` to the submission queue.
fn queue_nops(ring: &mut Ring, user_data: &[u64]) -> anyhow::Result<()> {
    for &value in user_data {
        ring.push(Sqe::nop().user_data(value))?;
    }
    Ok(())
}

/// Checks that a submission ends after a denied request, and the next one goes on
/// behind it.
fn denial_ends_the_batch() -> TestResult {
    let mut ring = denies_one(0)?;
    queue_nops(&mut ring, &[1, 2])?;
    expect_eq("first submission", ring.submit()?, 1)?;
    expect_eq("the denied one", ring.cqe()?, cqe(1, DENIED, 0))?;
    expect_eq("nothing else yet", ring.try_cqe(), None)?;
    expect_eq("second submission", ring.submit()?, 1)?;
    expect_eq("the other one", ring.cqe()?, cqe(2, 0, 0))?;

    queue_nops(&mut ring, &[2, 3, 1, 1, 4])?;
    expect_eq("up to the first denial", ring.submit()?, 3)?;
    expect_eq("up to the second denial", ring.submit()?, 1)?;
    expect_eq("the last", ring.submit()?, 1)?;
    let got = ring.cqes(5)?;
    let want = [(2, 0), (3, 0), (1, DENIED), (1, DENIED), (4, 0)];
    expect_eq(
        "completions",
        got,
        want.map(|(ud, res)| cqe(ud, res, 0)).to_vec(),
    )?;
    Ok(Outcome::Passed)
}

/// Checks that with IORING_SETUP_SUBMIT_ALL, a submission goes on after a denied
/// request.
fn submit_all_goes_on_after_a_denial() -> TestResult {
    let mut ring = denies_one(IORING_SETUP_SUBMIT_ALL)?;
    queue_nops(&mut ring, &[1, 2, 1])?;
    expect_eq("submission", ring.submit()?, 3)?;
    let want = vec![cqe(1, DENIED, 0), cqe(2, 0, 0), cqe(1, DENIED, 0)];
    expect_eq("completions", ring.cqes(3)?, want)?;
    Ok(Outcome::Passed)
}

/// Checks that a denied SEND_ZC completes with EACCES and still posts its notification.
fn denied_send_zc_posts_its_notification() -> TestResult {
    let mut ring = Ring::new(4)?;
    ring.must_filter(op::SEND_ZC, &bpf::deny())?;
    let data = [0u8; 16];
    ring.push(Sqe::new(op::SEND_ZC).buffer(data.as_ptr(), 16).user_data(5))?;
    expect_eq("submitted", ring.submit()?, 1)?;
    let want = vec![
        cqe(5, DENIED, IORING_CQE_F_MORE),
        cqe(5, 0, IORING_CQE_F_NOTIF),
    ];
    expect_eq("completions", ring.cqes(2)?, want)?;
    ring.expect_no_cqe()?;
    Ok(Outcome::Passed)
}

/// Checks that a denied NOP128 takes its two slots of the submission queue.
fn denied_nop128_takes_two_slots() -> TestResult {
    let mut ring = Ring::with(8, IORING_SETUP_SQE_MIXED | IORING_SETUP_SUBMIT_ALL)?;
    let batch = [
        Sqe::new(op::NOP128).user_data(1),
        Sqe::default(),
        Sqe::nop().user_data(2),
    ];
    for (round, want) in [(1, 0), (2, DENIED)] {
        for sqe in batch {
            ring.push(sqe)?;
        }
        expect_eq(&format!("slots taken, round {round}"), ring.submit()?, 3)?;
        let got = ring.cqes(2)?;
        expect_eq("completions", got, vec![cqe(1, want, 0), cqe(2, 0, 0)])?;
        ring.expect_no_cqe()?;
        ring.must_filter(op::NOP128, &bpf::deny())?;
    }
    Ok(Outcome::Passed)
}

/// Checks that an SQE of a denied opcode with invalid ioprio, flags or personality
/// gives its own error, not EACCES.
fn invalid_sqe_fails_before_the_filter() -> TestResult {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::CLOSE, &bpf::deny())?;
    ring.expect("valid", Sqe::new(op::CLOSE), DENIED)?;
    ring.expect("ioprio", Sqe::new(op::CLOSE).ioprio(1), -libc::EINVAL)?;
    ring.expect("flag bit 7", Sqe::new(op::CLOSE).flags(0x80), -libc::EINVAL)?;
    let select = Sqe::new(op::CLOSE).flags(IOSQE_BUFFER_SELECT);
    ring.expect("BUFFER_SELECT", select, -libc::EOPNOTSUPP)?;
    let mut personality = Sqe::new(op::CLOSE);
    personality.personality = 77;
    ring.expect("personality", personality, -libc::EINVAL)?;
    Ok(Outcome::Passed)
}

/// Checks that a request of a denied opcode whose preparation fails gives the error of
/// that, not EACCES.
fn prep_error_comes_before_the_filter() -> TestResult {
    let mut ring = Ring::new(2)?;
    ring.must_filter(op::OPENAT, &bpf::deny())?;
    ring.must_filter(op::SOCKET, &bpf::deny())?;
    let open = Sqe::openat(c"/dev/null", libc::O_RDONLY, 0);
    ring.expect("good path", open, DENIED)?;
    let unmapped = Sqe { addr: 8, ..open };
    ring.expect("unmapped path", unmapped, -libc::EFAULT)?;
    let socket = Sqe::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
    ring.expect("good socket", socket, DENIED)?;
    let unknown_flag = Sqe::socket(libc::AF_INET, 1 << 20, 0);
    ring.expect("unknown type flag", unknown_flag, -libc::EINVAL)?;
    let with_address = Sqe { addr: 1, ..socket };
    ring.expect("socket with addr", with_address, -libc::EINVAL)?;
    Ok(Outcome::Passed)
}

/// Checks that restrictions deny a request before it is prepared, and filters after
/// that.
fn restriction_comes_before_prep_and_filter_after() -> TestResult {
    // A path that cannot be read shows whether prep ran.
    let unmapped = Sqe {
        addr: 8,
        ..Sqe::openat(c"/dev/null", libc::O_RDONLY, 0)
    };
    let mut filtered = Ring::new(2)?;
    filtered.must_filter(op::OPENAT, &bpf::deny())?;
    filtered.expect("filter only", unmapped, -libc::EFAULT)?;

    let mut ring = Ring::with(2, IORING_SETUP_R_DISABLED)?;
    ring.must_filter(op::OPENAT, &bpf::deny())?;
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO, 1))?;
    let got = register::restrict_ring(ring.fd(), &[Restriction::sqe_op(op::NOP)]);
    expect_result("restrictions", got, 0)?;
    expect_result("enabling", register::enable(ring.fd()), 0)?;
    ring.expect("both", unmapped, DENIED)?;
    ring.expect("allowed by both", Sqe::nop(), 0)?;
    ring.expect("denied by the filter", Sqe::nop().user_data(1), DENIED)?;
    Ok(Outcome::Passed)
}

const IORING_ACCEPT_MULTISHOT: u16 = 1;
const IORING_POLL_ADD_MULTI: u32 = 1;

/// Checks that multishot ACCEPT and POLL_ADD go on after a filter that denies them was
/// registered.
fn armed_multishot_requests_outlive_a_denial() -> TestResult {
    let mut ring = Ring::new(8)?;
    let listener = TcpListener::bind("127.0.0.1:0").context("bind")?;
    let address = listener.local_addr()?;
    let event = EventFd::new()?;
    let accept = Sqe::new(op::ACCEPT)
        .fd(listener.as_raw_fd())
        .ioprio(IORING_ACCEPT_MULTISHOT)
        .user_data(1);
    let mut poll = Sqe::poll(event.as_raw_fd(), libc::POLLIN).user_data(2);
    poll.len = IORING_POLL_ADD_MULTI;
    for sqe in [accept, poll] {
        ring.push(sqe)?;
    }
    expect_eq("submitted", ring.submit()?, 2)?;

    let mut clients = Vec::new();
    for round in 0..3 {
        clients.push(TcpStream::connect(address)?);
        let got = ring.cqe()?;
        ensure!(
            got.user_data == 1 && got.res >= 0 && got.flags == IORING_CQE_F_MORE,
            "accept {round}: {got:x?}"
        );
        event.write(1)?;
        let want = cqe(2, i32::from(libc::POLLIN), IORING_CQE_F_MORE);
        expect_eq(&format!("poll {round}"), ring.cqe()?, want)?;
        event.read()?;
        if round == 0 {
            ring.must_filter(op::ACCEPT, &bpf::deny())?;
            ring.must_filter(op::POLL_ADD, &bpf::deny())?;
        }
    }
    ring.expect("new accept", accept.user_data(3), DENIED)?;
    ring.expect("new poll", poll.user_data(4), DENIED)?;
    Ok(Outcome::Passed)
}

/// Returns whether one of this process's workers sleeps.
fn a_worker_sleeps() -> anyhow::Result<bool> {
    for thread in std::fs::read_dir("/proc/self/task")? {
        // The thread may end meanwhile.
        let stat = std::fs::read_to_string(thread?.path().join("stat")).unwrap_or_default();
        if stat.contains("(iou-wrk-") && stat.contains(") S ") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Checks that a READ that waits on a worker completes after a filter that denies READ
/// was registered.
fn request_on_a_worker_outlives_a_denial() -> TestResult {
    let mut ring = Ring::new(4)?;
    let (reader, writer) = nix::unistd::pipe()?;
    let mut buffer = [0u8; 8];
    let read = Sqe::read(reader.as_raw_fd(), &mut buffer).user_data(1);
    ring.push(read.flags(IOSQE_ASYNC))?;
    expect_eq("submitted", ring.submit()?, 1)?;
    wait_until("a worker waits for the pipe", a_worker_sleeps)?;
    ring.must_filter(op::READ, &bpf::deny())?;
    ring.expect("new read", read.user_data(2), DENIED)?;
    expect_eq("still waiting", ring.try_cqe(), None)?;
    nix::unistd::write(&writer, b"four")?;
    expect_eq("old read", ring.cqe()?, cqe(1, 4, 0))?;
    expect_eq("its data", &buffer[..4], b"four")?;
    Ok(Outcome::Passed)
}

/// Checks that a filter that is registered while an SQPOLL thread submits denies each
/// request from some point on.
fn filter_takes_effect_on_a_running_sqpoll_ring() -> TestResult {
    const BATCH: u64 = 16;
    let mut ring = Ring::with(32, IORING_SETUP_SQPOLL)?;
    let fd = ring.fd();
    let start = Instant::now();
    let mut results: Vec<Cqe> = Vec::new();
    let registered_after = std::thread::scope(|scope| -> anyhow::Result<usize> {
        let registrar = scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            register::filter(fd, op::NOP, &bpf::deny())
        });
        let mut next = 0;
        while !registrar.is_finished() {
            let batch: Vec<u64> = (next..next + BATCH).collect();
            next += BATCH;
            queue_nops(&mut ring, &batch)?;
            ring.submit()?;
            results.extend(ring.cqes(BATCH as usize)?);
            ensure!(
                start.elapsed() < kernel::limit(5),
                "registration never ends"
            );
        }
        let got = registrar.join().expect("the thread does not panic");
        expect_result("registration", got, 0)?;
        Ok(results.len())
    })?;
    queue_nops(&mut ring, &[1, 2, 3])?;
    ring.submit()?;
    let after: Vec<i32> = ring.cqes(3)?.iter().map(|cqe| cqe.res).collect();
    expect_eq("after the registration", after, vec![DENIED; 3])?;

    let allowed = results.iter().take_while(|cqe| cqe.res == 0).count();
    for (i, got) in results.iter().enumerate() {
        let want = if i < allowed { 0 } else { DENIED };
        expect_eq("order and verdict", *got, cqe(i as u64, want, 0))?;
    }
    println!("{NOTE}{allowed} of {registered_after} NOPs before the filter");
    ensure!(allowed > 0, "the filter came before the first NOP");
    Ok(Outcome::Passed)
}

/// Checks that a denied draining request completes at once, alone or behind a pending
/// one, and the ring goes on.
fn denied_drain_request_does_not_stop_the_ring() -> TestResult {
    let mut ring = denies_one(IORING_SETUP_SUBMIT_ALL)?;
    let (reader, writer) = nix::unistd::pipe()?;
    // First a denied DRAIN alone, then one behind a request that is still pending.
    ring.push(Sqe::nop().user_data(1).flags(IOSQE_IO_DRAIN))?;
    ring.push(Sqe::nop().user_data(2))?;
    expect_eq("submitted", ring.submit()?, 2)?;
    let mut got = ring.cqes(2)?;
    got.sort_by_key(|cqe| cqe.user_data);
    expect_eq("alone", got, vec![cqe(1, DENIED, 0), cqe(2, 0, 0)])?;

    ring.push(Sqe::poll(reader.as_raw_fd(), libc::POLLIN).user_data(3))?;
    ring.push(Sqe::nop().user_data(1).flags(IOSQE_IO_DRAIN))?;
    ring.push(Sqe::nop().user_data(4))?;
    expect_eq("submitted", ring.submit()?, 3)?;
    expect_eq("denied at once", ring.cqe()?, cqe(1, DENIED, 0))?;
    nix::unistd::write(&writer, b"x")?;
    let mut got = ring.cqes(2)?;
    got.sort_by_key(|cqe| cqe.user_data);
    let want = vec![cqe(3, i32::from(libc::POLLIN), 0), cqe(4, 0, 0)];
    expect_eq("behind a pending one", got, want)?;
    ring.expect("afterwards", Sqe::nop().user_data(5), 0)?;
    Ok(Outcome::Passed)
}

/// Checks that IORING_REGISTER_SEND_MSG_RING without a ring sends nothing if filters of
/// the task deny MSG_RING.
///
/// In C, the message arrives.
fn send_msg_ring_without_a_ring_is_filtered() -> TestResult {
    let mut target = Ring::new(4)?;
    sandbox::sandboxed()?;
    let got = register::filter(TASK, op::MSG_RING, &bpf::deny());
    expect_result("task filter", got, 0)?;
    let mut ring = Ring::new(4)?;
    let through_ring = message(target.fd(), 0x11, 1);
    ring.expect("MSG_RING of the ring", through_ring, DENIED)?;
    expect_eq("nothing posted", target.try_cqe(), None)?;
    let blind = register::send_msg_ring(&message(target.fd(), 0x22, 2));
    let (want, posted) = match kernel::implementation() {
        Implementation::Rust => (DENIED, None),
        Implementation::C => (0, Some(cqe(0x22, 2, 0))),
    };
    expect_result("SEND_MSG_RING of the task", blind, want)?;
    expect_eq("posted", target.try_cqe(), posted)?;
    Ok(Outcome::Passed)
}

/// Registers the credentials of a child, which is in a user namespace of its own, with
/// a ring. Returns the id of the credentials after the child has ended.
fn personality_of_child(fd: RawFd) -> anyhow::Result<i32> {
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    sandbox::in_child(|| {
        sandbox::user_namespace()?;
        let got = register::register(fd, IORING_REGISTER_PERSONALITY, std::ptr::null(), 0);
        ensure!(got > 0, "registering a personality: {got}");
        shared[0].store(got as u32, Ordering::SeqCst);
        Ok(())
    })?;
    Ok(shared[0].load(Ordering::SeqCst) as i32)
}

/// Returns whether one more user namespace can be made.
fn has_room_for_namespace() -> anyhow::Result<bool> {
    let shared = Shared::<[AtomicU32; 1]>::new()?;
    sandbox::in_child(|| {
        let made = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWUSER);
        let errno = made.err().map_or(0, |errno| errno as u32);
        shared[0].store(errno, Ordering::SeqCst);
        Ok(())
    })?;
    match shared[0].load(Ordering::SeqCst) as i32 {
        0 => Ok(true),
        errno => expect_result("a user namespace", -errno, -libc::ENOSPC).map(|()| false),
    }
}

/// Checks that hundreds of denied requests leave no open file, buffer, credentials or
/// fixed file in use.
fn denied_requests_keep_no_references() -> TestResult {
    const ROUNDS: usize = 300;
    let mut ring = Ring::new(4)?;
    let fd = ring.fd();
    // The pipe shows the end of file once the last reference to its other end is gone.
    let (end, file) = nix::unistd::pipe()?;
    let files = [file.as_raw_fd()];
    let got = register::register(fd, IORING_REGISTER_FILES, files.as_ptr().cast(), 1);
    expect_result("registering a file", got, 0)?;
    drop(file);
    // Another user namespace can be made once the last reference to the credentials is
    // gone.
    let _one = Sysctl::set("user/max_user_namespaces", "1")?;
    let personality = personality_of_child(fd)?;

    // One buffer for RECV to select.
    let mut buffer = [0u8; 16];
    let mut provide = Sqe::new(op::PROVIDE_BUFFERS).fd(1);
    provide = provide.buffer(buffer.as_mut_ptr(), buffer.len() as u32);
    provide.buf_index = 9;
    ring.expect("providing a buffer", provide, 0)?;
    let (left, right) = std::os::unix::net::UnixStream::pair()?;
    std::io::Write::write_all(&mut &left, b"hello")?;

    let denied = bpf::deny_if(USER_DATA_LO, 1);
    for opcode in [
        op::OPENAT,
        op::OPENAT2,
        op::CONNECT,
        op::SENDMSG,
        op::READ,
        op::RECV,
    ] {
        ring.must_filter(opcode, &denied)?;
    }
    let address = [0u8; 128];
    // SAFETY: all zeroes is a valid, empty message.
    let header: libc::msghdr = unsafe { std::mem::zeroed() };
    let how = crate::sqe::OpenHow::default();
    let mut recv = Sqe::new(op::RECV)
        .fd(right.as_raw_fd())
        .flags(IOSQE_BUFFER_SELECT);
    recv.len = buffer.len() as u32;
    recv.buf_index = 9;
    let mut read = Sqe::read(0, &mut buffer).flags(IOSQE_FIXED_FILE);
    read.personality = personality as u16;
    let requests = [
        Sqe::openat(c"/dev/null", libc::O_RDONLY, 0),
        Sqe::openat2(c"/dev/null", &how, size_of_val(&how) as u32),
        Sqe::connect(left.as_raw_fd(), &address, 128),
        Sqe::new(op::SENDMSG)
            .fd(left.as_raw_fd())
            .buffer(&header, 1),
        read,
        recv,
    ];
    let before = sandbox::open_files()?;
    for _ in 0..ROUNDS {
        for sqe in requests {
            ring.expect("denied", sqe.user_data(1), DENIED)?;
        }
    }
    expect_eq("open files", sandbox::open_files()?, before)?;

    // The buffer and the data in the socket are still there.
    ring.push(recv.user_data(2))?;
    ring.submit()?;
    let got = ring.cqe()?;
    // The upper half of the flags is the number of the buffer.
    expect_eq("received into buffer 0", (got.res, got.flags >> 16), (5, 0))?;
    expect_eq("a buffer was used", got.flags & 1, 1)?;

    // The file and the credentials can be released, because denied requests hold no
    // reference.
    expect_eq(
        "room while they are known",
        has_room_for_namespace()?,
        false,
    )?;
    let got = register::register(
        fd,
        IORING_UNREGISTER_PERSONALITY,
        std::ptr::null(),
        personality as u32,
    );
    expect_result("unregistering the personality", got, 0)?;
    wait_until("the credentials are gone", has_room_for_namespace)?;
    let ended = || {
        let mut files = [PollFd::new(end.as_fd(), PollFlags::POLLIN)];
        poll(&mut files, PollTimeout::ZERO)?;
        Ok(files[0].revents() == Some(PollFlags::POLLHUP))
    };
    expect_eq("the file's end while it is known", ended()?, false)?;
    const IORING_UNREGISTER_FILES: u32 = 3;
    let got = register::register(fd, IORING_UNREGISTER_FILES, std::ptr::null(), 0);
    expect_result("unregistering the file", got, 0)?;
    wait_until("the file is gone", ended)?;
    Ok(Outcome::Passed)
}

/// Checks that (not tested yet) a ring that a BPF struct_ops loop drives is filtered;
/// this fails once the kernel has BTF.
fn struct_ops_loop_is_untested_without_btf() -> TestResult {
    if std::path::Path::new("/sys/kernel/btf/vmlinux").exists() {
        anyhow::bail!("this kernel has BTF, so the loop could be loaded: write this test");
    }
    let reason = "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF): no struct_ops loop can be loaded";
    Ok(Outcome::Skipped(reason.to_string()))
}

/// Checks that each of 32,768 denied requests in one submission gets its completion.
fn whole_queue_of_32768_requests_can_be_denied() -> TestResult {
    const ENTRIES: u32 = 32768;
    let mut ring = Ring::with(ENTRIES, IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE)?;
    ring.must_filter(op::NOP, &bpf::deny_if(USER_DATA_LO + 4, 0))?;
    for i in 0..ENTRIES {
        ring.push(Sqe::nop().user_data(i.into()))?;
    }
    expect_eq("submitted", ring.submit()?, ENTRIES as usize)?;
    for i in 0..ENTRIES {
        let got = ring.try_cqe().context("a completion is missing")?;
        expect_eq("completion", got, cqe(i.into(), DENIED, 0))?;
    }
    Ok(Outcome::Passed)
}
