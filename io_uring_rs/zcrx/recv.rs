// SPDX-License-Identifier: GPL-2.0

//! Receiving the data of a socket: one completion for each buffer. Data that is not in a buffer of
//! the queue is copied to one.

use super::{
    area::{
        self,
        Batch, //
    },
    ifq::{
        Ifq,
        Queue, //
    },
    walk::{
        Taker,
        Walk, //
    }, //
};
use kernel::{
    io_uring::{
        receive::Receive,
        zcrx::EVENT_COPY, //
    },
    net::{
        netmem::Lookup,
        skbuff::{
            Chunk,
            SkBuff, //
        },
        tcp::TcpSocket, //
    },
    page::PAGE_SIZE,
    prelude::*, //
};

/// The result of a receive that did not fail.
pub(crate) enum Received {
    /// The number of bytes received; zero at the end of the stream.
    Bytes(usize),
    /// There may be more data, but other tasks get their turn first.
    Requeue,
}

/// A taker that hands received data to user space.
struct Receiver<'a> {
    ifq: &'a Queue,
    request: &'a Receive<'a>,
    batch: Batch<'a>,
    /// The number of entries of the refill queue that may still be consumed to find free buffers.
    entries_left: u32,
}

impl Receiver<'_> {
    /// Drains the refill queue until a buffer is free, and takes up to `wanted` buffers into the
    /// batch. Returns whether it took any.
    ///
    /// Without this, the request would fail with [`ENOMEM`], as in C, until user space flushes the
    /// queue: a page pool drains the queue only when its device receives, and there may be no
    /// device, or all data may come another way.
    ///
    /// Buffers of page pools go back to their pools, although a pool that drains the queue itself
    /// gets them for less. This is worth it, as the request would end otherwise.
    #[cold]
    fn drain(&mut self, wanted: usize) -> bool {
        let Self {
            ifq,
            batch,
            entries_left,
            ..
        } = self;

        ifq.refill
            .drain_until(&ifq.areas, entries_left, || batch.refill(wanted))
    }
}

/// The state for handing out the fragments of a packet.
struct Fragments<'a, 'r> {
    lookup: Lookup<'a, 'r, Ifq>,
    request: &'r Receive<'r>,
    /// The base-2 logarithm of the size of a buffer, in bytes.
    shift: u32,
}

impl<'r> Taker for Receiver<'r> {
    type Packet<'a> = Fragments<'a, 'r>;

    #[inline]
    fn begin<'a>(&self, skb: &'a SkBuff) -> Self::Packet<'a> {
        Fragments {
            lookup: Lookup::new(skb, self.ifq),
            request: self.request,
            shift: self.ifq.areas.shift(),
        }
    }

    // Always inline: this is most of the cost of a fragment that needs no copy.
    #[inline(always)]
    fn hand_out<'a>(
        &mut self,
        packet: &mut Self::Packet<'a>,
        chunk: Chunk<'a>,
        wanted: usize,
    ) -> Result {
        // A fragment of another provider is memory that a device received for somebody else.
        let iov = packet.lookup.find(&chunk).ok_or(EFAULT)?;

        // A packet has less than 2 GiB.
        if !packet
            .request
            .post(wanted as i32, || area::offset(&iov, packet.shift))
        {
            return Err(ENOSPC);
        }
        // Completions are flushed after the request was issued, so user space cannot give the
        // buffer back before it is granted. The grant also keeps the pool from recycling the
        // buffer.
        iov.grant();
        Ok(())
    }

    // Not inlined, as the loop needs all registers there are.
    #[inline(never)]
    fn copy(&mut self, mut chunk: Chunk<'_>, left: usize) -> Result<usize> {
        let wanted = left.div_ceil(PAGE_SIZE);
        let mut copied = 0;
        let mut result = Ok(());

        if !self.ifq.writable {
            return Err(ENOMEM);
        }
        while !chunk.is_empty() {
            let Some(buffer) = self.batch.peek(wanted) else {
                if self.drain(wanted) {
                    continue;
                }
                result = Err(ENOMEM);
                break;
            };
            let bytes = chunk.copy_to_page(buffer.page());

            if !self.request.post(bytes as i32, || buffer.offset()) {
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

/// Receives data of `socket` into buffers of `ifq`: up to `len` bytes, or any number if `len` is
/// zero. Subtracts the number of bytes received from a `len` that is not zero.
///
/// # Errors
///
/// - [`EAGAIN`] if there is no data yet.
/// - [`ENOTCONN`] if the socket is closed.
/// - [`ENOMEM`] if there is no buffer to copy to, [`ENOSPC`] if there is no room for completions.
/// - [`EFAULT`] for data that can be neither handed out nor copied.
/// - The socket's own error.
pub(crate) fn receive(
    ifq: &Queue,
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
        entries_left: ifq.refill.entries(),
    };
    let bytes = socket.read(count as usize, |skb, offset, len| {
        walk.take(skb, offset, len, &mut receiver)
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
        true if walk.is_unfinished() || socket.is_done() => Ok(Received::Requeue),
        // The request is tried again until it gets zero bytes.
        false if socket.is_done() => Err(EAGAIN),
        _ => Ok(Received::Bytes(bytes)),
    }
}
