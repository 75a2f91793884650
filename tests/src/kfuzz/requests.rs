// SPDX-License-Identifier: GPL-2.0
//! Requests: SQEs with fields that are almost valid, their submission, and what their
//! completions say.

use std::time::{Duration, Instant};

use super::machine::{Machine, Mode};
use super::op::Op;
use crate::kernel::{IORING_OP_LAST, describe};
use crate::ring::{IORING_CQE_F_MORE, IORING_ENTER_GETEVENTS, enter};
use crate::sqe::{
    IOSQE_ASYNC, IOSQE_CQE_SKIP_SUCCESS, IOSQE_IO_DRAIN, IOSQE_IO_HARDLINK, IOSQE_IO_LINK, Sqe, op,
};
use crate::wide::WideCqe;
use crate::zcrx::recv_zc;

/// The flag of a completion that says whether a socket has more to read, which depends on
/// when the peer's packets arrive.
const IORING_CQE_F_SOCK_NONEMPTY: u32 = 1 << 2;

/// Opcodes whose requests complete without help, in a worker if not at once.
const COMPLETE: [u8; 27] = [
    op::NOP,
    op::FSYNC,
    op::SYNC_FILE_RANGE,
    op::FALLOCATE,
    op::OPENAT,
    op::CLOSE,
    op::STATX,
    op::FADVISE,
    op::MADVISE,
    op::OPENAT2,
    op::PROVIDE_BUFFERS,
    op::SHUTDOWN,
    op::RENAMEAT,
    op::UNLINKAT,
    op::MKDIRAT,
    op::SYMLINKAT,
    op::LINKAT,
    op::MSG_RING,
    op::FSETXATTR,
    op::SETXATTR,
    op::FGETXATTR,
    op::GETXATTR,
    op::SOCKET,
    op::FTRUNCATE,
    op::BIND,
    FILES_UPDATE,
    EPOLL_CTL,
];
const TIMEOUT: u8 = 11;
const FILES_UPDATE: u8 = 20;
const EPOLL_CTL: u8 = 29;
/// Opcodes that are left out where results are compared: a worker moves bytes between
/// pipes whenever there are some, and writes to whatever descriptor it is given.
const NOT_COMPARED: [u8; 2] = [op::SPLICE, op::TEE];
/// The time for which the interpreter waits for workers.
const PATIENCE: Duration = Duration::from_millis(300);

impl Machine<'_> {
    pub fn request(&mut self, op: Op) {
        let Op::Sqe {
            slot,
            opcode,
            flags,
            fd,
            addr,
            off,
            len,
            op_flags,
            more,
            number,
            user_data,
        } = op
        else {
            return;
        };
        let mut sqe = Sqe::new(opcode % (IORING_OP_LAST as u8 + 2)).flags(match flags {
            ..128 => flags % 128 & [0, IOSQE_IO_LINK, IOSQE_ASYNC, 0x7f][usize::from(flags) % 4],
            _ => flags,
        });
        sqe.fd = match fd {
            ..192 if !self.files.is_empty() => self.files[usize::from(fd) % self.files.len()],
            192..208 => libc::AT_FDCWD,
            _ => self.number(fd) as i32,
        };
        (sqe.addr, sqe.off) = (self.number(addr), self.number(off));
        (sqe.len, sqe.op_flags) = (self.number(len) as u32, self.number(op_flags) as u32);
        let number = self.number(number);
        match more % 12 {
            0 => sqe.ioprio = number as u16,
            1 => sqe.buf_index = number as u16,
            2 => sqe.personality = number as u16,
            3 => sqe.file_index = number as u32,
            4 => sqe.addr3 = number,
            5 => sqe.pad = number,
            _ => {}
        }
        if self.mode == Mode::Compare {
            self.make_comparable(&mut sqe);
        }
        self.push(slot, sqe, user_data);
    }

    /// Changes a request whose completion would depend on timing.
    fn make_comparable(&self, sqe: &mut Sqe) {
        if NOT_COMPARED.contains(&sqe.opcode) {
            sqe.opcode = op::NOP;
        }
        if [TIMEOUT, op::LINK_TIMEOUT].contains(&sqe.opcode) {
            sqe.addr = self.memory.never();
            // With a count, the end depends on the completions of other requests.
            sqe.off = 0;
        }
        // Requests behind a drained one go to a worker, whatever their opcode.
        sqe.flags &= !IOSQE_IO_DRAIN;
        if !COMPLETE.contains(&sqe.opcode) {
            sqe.flags &= !IOSQE_ASYNC;
        }
    }

    pub fn receive(&mut self, op: Op) {
        let Op::Recv {
            slot,
            queue,
            connection,
            len,
            flags,
            sqe_flags,
        } = op
        else {
            return;
        };
        let (queues, connections) = (self.queues.len(), self.connections.len());
        let mut sqe = match (queues, connections) {
            (0, _) | (_, 0) => recv_zc(self.number(connection) as i32, u32::from(queue), 1),
            _ => {
                let id = self.queues[usize::from(queue) % queues].id;
                let socket = self.connections[usize::from(connection) % connections].receiver;
                recv_zc(socket, id, u32::from(len) * 64)
            }
        };
        if flags % 8 == 0 {
            sqe.ioprio = u16::from(flags / 8);
        }
        if sqe_flags < 64 {
            sqe.flags =
                [0, IOSQE_IO_LINK, IOSQE_ASYNC, IOSQE_CQE_SKIP_SUCCESS][usize::from(sqe_flags) % 4];
        }
        if self.mode == Mode::Compare {
            self.make_comparable(&mut sqe);
        }
        if queues != 0 && connections != 0 {
            let places = (
                usize::from(queue) % queues,
                usize::from(connection) % connections,
            );
            self.receives.insert(self.next_user_data(0), places);
        }
        self.push(slot, sqe, 0);
    }

    /// Returns the `user_data` of the next request: its number, and in the low half a
    /// small number that filters look at.
    fn next_user_data(&self, low: u8) -> u64 {
        self.requests << 32 | u64::from(low % 8)
    }

    /// Queues a request.
    fn push(&mut self, slot: u8, mut sqe: Sqe, user_data: u8) {
        sqe.user_data = self.next_user_data(user_data);
        self.requests += 1;
        let Some(ring) = self.ring(slot) else {
            return;
        };
        let alone = COMPLETE.contains(&sqe.opcode);
        let completes = alone && ring.chain.unwrap_or(true);
        let is_linked = sqe.flags & (IOSQE_IO_LINK | IOSQE_IO_HARDLINK) != 0;
        ring.chain = is_linked.then_some(completes);
        let is_shown = completes && sqe.flags & IOSQE_CQE_SKIP_SUCCESS == 0;
        let Some(wide) = &mut ring.wide else {
            return;
        };
        match wide.push(sqe) {
            Ok(()) => ring.queued.push_back((sqe.user_data, is_shown)),
            Err(_) => self.log.say("full"),
        }
    }

    pub fn enter(&mut self, slot: u8, count: u8, flags: u8) {
        if self.mode == Mode::Compare {
            // C does not look for buffers in the refill queue when it copies.
            self.flush_all();
        }
        let Some(ring) = self.ring(slot) else {
            return;
        };
        let count = match count {
            ..192 => ring.queued.len() as u32,
            _ => u32::from(count) - 192,
        };
        let mut flags = match flags {
            ..240 => IORING_ENTER_GETEVENTS,
            _ => IORING_ENTER_GETEVENTS | 1 << (flags - 240),
        };
        // A queue that is full would be waited for.
        const IORING_ENTER_SQ_WAIT: u32 = 1 << 2;
        flags &= !IORING_ENTER_SQ_WAIT;
        let fd = ring.fd;
        let got = enter(fd, count, 0, flags);
        let taken = usize::try_from(got).unwrap_or(0).min(ring.queued.len());
        let submitted = ring.queued.drain(..taken);
        let completing =
            submitted.filter_map(|(user_data, completes)| completes.then_some(user_data));
        ring.waited_for.extend(completing);
        self.result(got);
        let mut cqes = Vec::new();
        self.take_completions(slot, &mut cqes);
        if self.mode == Mode::Compare {
            let start = Instant::now();
            while !self.is_settled(slot) && start.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_micros(200));
                enter(fd, 0, 0, IORING_ENTER_GETEVENTS);
                self.take_completions(slot, &mut cqes);
            }
            if let Some(ring) = self.ring(slot) {
                // What has not come by now waits for something.
                ring.waited_for.clear();
            }
            // Workers end in any order.
            cqes.sort_by_key(|cqe: &WideCqe| cqe.user_data >> 32);
        }
        for cqe in cqes {
            self.completion(&cqe);
        }
    }

    fn is_settled(&mut self, slot: u8) -> bool {
        self.ring(slot)
            .is_none_or(|ring| ring.waited_for.is_empty())
    }

    /// Takes all completions of a ring.
    fn take_completions(&mut self, slot: u8, cqes: &mut Vec<WideCqe>) {
        // A queue that another task fills must not keep this one for ever.
        const MOST: usize = 1000;
        let Some(ring) = self.ring(slot) else {
            return;
        };
        let Some(wide) = &mut ring.wide else {
            return;
        };
        while cqes.len() < MOST
            && let Some(cqe) = wide.try_cqe()
        {
            if cqe.flags & IORING_CQE_F_MORE == 0 {
                ring.waited_for.retain(|other| *other != cqe.user_data);
            }
            cqes.push(cqe);
        }
    }

    /// Records a completion, and takes the data that it hands out.
    fn completion(&mut self, cqe: &WideCqe) {
        let flags = cqe.flags & !IORING_CQE_F_SOCK_NONEMPTY;
        let name = format!("#{}.{}", cqe.user_data >> 32, cqe.user_data as u32);
        let mut text = format!("{name} {} {flags:#x}", describe(cqe.res));
        if let Some((queue, connection)) = self.receives.get(&cqe.user_data).copied()
            && cqe.flags & IORING_CQE_F_MORE != 0
            && cqe.res > 0
            && let Some([offset, pad]) = cqe.extra
        {
            let len = cqe.res as usize;
            text += &format!(
                " pad {pad} {}",
                self.take_buffer(queue, connection, offset, len)
            );
        }
        self.log.say(&text);
    }
}
