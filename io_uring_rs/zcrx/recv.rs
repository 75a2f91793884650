// SPDX-License-Identifier: GPL-2.0

//! Receiving: what a socket has, buffer by buffer, a completion for each. What is not in buffers of
//! ours is copied to such.

use super::{
    area::Batch,
    walk::Walk,
    Ifq, //
};
use kernel::{
    io_uring::{
        receive::Receive,
        zcrx::EVENT_COPY, //
    },
    net::{
        skbuff::Piece,
        tcp::TcpSocket, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// How a receive ended that did not fail.
pub(crate) enum Received {
    /// So many bytes; none at the end of the stream.
    Bytes(usize),
    /// There may be more, but it is others' turn.
    Requeue,
}

/// Gives user space what was received.
struct Receiver<'a> {
    ifq: &'a Ifq,
    request: &'a Receive<'a>,
    batch: Batch<'a>,
}

impl Receiver<'_> {
    /// Takes a piece, of which and what follows it `wanted` buffers will be made if it has to be
    /// copied: how many bytes, if any, or why not.
    fn take(&mut self, piece: Piece<'_>, wanted: usize) -> Result<usize> {
        if piece.is_copyable() {
            return self.copy(piece, wanted);
        }
        // If it is not ours, it is what a device received for somebody else.
        let iov = piece.provided_by(self.ifq).ok_or(EFAULT)?;

        if !self
            .request
            .post(piece.len() as u32, self.ifq.areas.offset(&iov))
        {
            return Err(ENOSPC);
        }
        iov.grant();
        Ok(piece.len())
    }

    /// Copies a piece into buffers, of which `wanted` will be in all: how many bytes, if any, or
    /// why not.
    // Not inline, as the loop needs all registers there are.
    #[inline(never)]
    fn copy(&mut self, mut piece: Piece<'_>, wanted: usize) -> Result<usize> {
        let mut copied = 0;
        let mut result = Ok(());

        if !self.ifq.writable {
            return Err(ENOMEM);
        }
        while !piece.is_empty() {
            let Some(buffer) = self.batch.next(wanted) else {
                result = Err(ENOMEM);
                break;
            };
            let bytes = piece.copy_to_page(buffer.page());

            if !self.request.post(bytes as u32, buffer.offset()) {
                result = Err(ENOSPC);
                break;
            }
            self.batch.grant();
            self.ifq.refill.count_copy(bytes as u64);
            copied += bytes;
        }
        match copied {
            0 => result.map(|()| 0),
            copied => {
                self.ifq.events.send(EVENT_COPY);
                Ok(copied)
            }
        }
    }
}

/// Receives what `socket` has into buffers of `ifq`: up to `len` bytes if that is not zero, off
/// which is taken what was received.
///
/// # Errors
///
/// - [`EAGAIN`] if there is nothing yet.
/// - [`ENOTCONN`] if the socket is closed.
/// - [`ENOMEM`] if there is no buffer to copy to, [`ENOSPC`] if there is no room for completions.
/// - [`EFAULT`] for data that cannot be copied.
/// - The socket's own error.
pub(crate) fn receive(
    ifq: &Ifq,
    request: &Receive<'_>,
    socket: &TcpSocket<'_>,
    len: &mut u32,
) -> Result<Received> {
    socket.record_flow();

    let mut socket = socket.lock();
    let count = if *len == 0 { u32::MAX } else { *len };
    let mut walk = Walk::default();
    let mut receiver = Receiver {
        ifq,
        request,
        batch: Batch::new(&ifq.areas),
    };
    let bytes = socket.read(count as usize, |skb, offset, len| {
        walk.take(skb, offset, len, &mut |piece, left| {
            receiver.take(piece, left.div_ceil(PAGE_SIZE))
        })
    })?;

    if *len != 0 {
        *len = len.saturating_sub(bytes as u32);
    }
    if bytes == 0 {
        return if socket.is_done() {
            Ok(Received::Bytes(0))
        } else if let Some(error) = socket.take_error() {
            Err(error)
        } else if socket.is_shutdown() {
            Ok(Received::Bytes(0))
        } else if socket.is_closed() {
            Err(ENOTCONN)
        } else {
            Err(EAGAIN)
        };
    }
    match request.is_multishot() {
        true if walk.left_some() || socket.is_done() => Ok(Received::Requeue),
        // Tried again until there is nothing.
        false if socket.is_done() => Err(EAGAIN),
        _ => Ok(Received::Bytes(bytes)),
    }
}
