// SPDX-License-Identifier: GPL-2.0

//! TCP sockets, for reading packets from.
//!
//! A [`TcpSocket`] is a socket that somebody else keeps open, and a [`LockedTcpSocket`] is a socket
//! that the current task has locked. To read the packets, see [`skbuff`](super::skbuff).
//!
//! C headers: [`include/net/tcp.h`](srctree/include/net/tcp.h),
//! [`include/net/sock.h`](srctree/include/net/sock.h),
//! [`include/net/rps.h`](srctree/include/net/rps.h)

use super::skbuff::SkBuff;
use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*, //
};
use core::{
    marker::PhantomData,
    ptr::{
        fn_addr_eq,
        read_volatile,
        NonNull, //
    }, //
};

/// A TCP socket.
///
/// Wraps a pointer to the kernel's `struct sock`.
///
/// # Invariants
///
/// For the duration of `'a`, `sk` is valid, and is the `struct sock` of a `struct tcp_sock`.
pub struct TcpSocket<'a> {
    sk: NonNull<bindings::sock>,
    open: PhantomData<&'a bindings::socket>,
}

impl TcpSocket<'_> {
    /// Creates a handle from the pointer that C passes.
    ///
    /// Returns [`None`] if data is not received from the socket by TCP's own `tcp_recvmsg`: either
    /// the socket has another protocol, or a protocol on top of TCP, such as TLS, has taken over
    /// receiving. If such a protocol is set up while the handle exists, it has to cope with the
    /// handle as it does with calls of `recvmsg` that are already running.
    ///
    /// # Safety
    ///
    /// While the handle exists, `sock` must be a valid socket that stays open. If it has an `sk`,
    /// that must neither change nor be released.
    pub unsafe fn from_raw(sock: *mut bindings::socket) -> Option<Self> {
        // SAFETY: The caller guarantees that the socket is valid and its `sk` does not change.
        let sk = NonNull::new(unsafe { (*sock).sk })?;
        // SAFETY: The caller guarantees that `sk` is valid. The read is volatile, like C's
        // `READ_ONCE`, since others may change the field.
        let prot = unsafe { read_volatile(&raw const (*sk.as_ptr()).__sk_common.skc_prot) };
        // SAFETY: A valid `sk` has a valid protocol, whose functions do not change.
        let recvmsg = unsafe { (*prot).recvmsg }?;

        // INVARIANT: The caller guarantees that `sk` is valid and stays valid. Only a `struct
        // tcp_sock` has this function, and a `struct sock` never changes the type that it is part
        // of.
        fn_addr_eq(
            recvmsg,
            bindings::tcp_recvmsg as unsafe extern "C" fn(_, _, _, _) -> _,
        )
        .then_some(Self {
            sk,
            open: PhantomData,
        })
    }

    /// Records that the current CPU consumes the flow of the socket, so that packets of the flow
    /// are steered to this CPU. This is a hint.
    ///
    /// C counterpart: `sock_rps_record_flow`.
    #[inline]
    pub fn record_flow(&self) {
        // SAFETY: By the type invariants, `sk` is valid. The function needs no lock.
        unsafe { bindings::sock_rps_record_flow(self.sk.as_ptr()) };
    }

    /// Locks the socket for as long as the returned object exists.
    ///
    /// May sleep. A task that has already locked the socket must not call this: it would deadlock.
    ///
    /// C counterpart: `lock_sock`.
    #[inline]
    pub fn lock(&self) -> LockedTcpSocket<'_> {
        // SAFETY: By the type invariants, `sk` is valid.
        unsafe { bindings::lock_sock(self.sk.as_ptr()) };

        // INVARIANT: The socket was just locked, and only `drop` unlocks it.
        LockedTcpSocket { socket: self }
    }
}

/// A TCP socket that is locked. Dropping this unlocks it.
///
/// While it is locked, no received packet is added to its receive queue.
///
/// # Invariants
///
/// The lock of `socket` is held, and this object owns it.
#[must_use = "the socket is unlocked immediately when this is dropped"]
pub struct LockedTcpSocket<'a> {
    socket: &'a TcpSocket<'a>,
}

impl LockedTcpSocket<'_> {
    /// Returns the socket as a C pointer to a valid `struct tcp_sock`, which is locked.
    #[inline]
    fn as_ptr(&self) -> *mut bindings::sock {
        self.socket.sk.as_ptr()
    }

    /// Takes up to `count` bytes out of the receive queue. Returns the number of bytes taken. Does
    /// not wait for data.
    ///
    /// `actor` is called for each packet in the queue, perhaps more than once. Its arguments are
    /// the packet, the offset of the first byte that was not taken yet, and the number of bytes
    /// that it may take, which is neither zero nor more than what is left of `count`. It returns
    /// the number of bytes that it took; a larger number than it was allowed is cut down to that.
    /// If it takes none or fails, reading ends.
    ///
    /// At most `i32::MAX` bytes are taken, whatever `count` is. Reading also ends at urgent data.
    ///
    /// Returns zero if there is no data, or if `actor` took none of the first packet.
    /// [`Self::is_done`] and the methods after it tell whether more data will come.
    ///
    /// C counterpart: `tcp_read_sock` in [`net/ipv4/tcp.c`](srctree/net/ipv4/tcp.c).
    ///
    /// # Errors
    ///
    /// - `ENOTCONN` if the socket listens for connections.
    /// - The error of `actor`, if no bytes were taken before. Otherwise that error is lost.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::net::tcp::TcpSocket;
    ///
    /// /// Throws away what was received, up to `count` bytes.
    /// fn discard(socket: &TcpSocket<'_>, count: usize) -> Result<usize> {
    ///     socket.lock().read(count, |_skb, _offset, len| Ok(len))
    /// }
    /// ```
    pub fn read<F>(&mut self, count: usize, mut actor: F) -> Result<usize>
    where
        F: FnMut(&SkBuff, usize, usize) -> Result<usize>,
    {
        let mut desc = bindings::read_descriptor_t {
            written: 0,
            // C adds up the bytes that are taken in an `int`.
            count: count.min(MAX_COUNT),
            arg: bindings::read_descriptor_t__bindgen_ty_1 {
                data: (&raw mut actor).cast(),
            },
            error: 0,
        };

        // SAFETY:
        // - By the type invariants, this is a valid `struct tcp_sock` whose lock is held. `actor`
        //   cannot release the lock, as `self` is borrowed.
        // - `desc` is a local variable, valid for reads and writes, that nobody else uses.
        // - `actor_thunk` does what a `sk_read_actor_t` must do, and is called with `desc`, whose
        //   `arg.data` points to an `F` that nobody else uses.
        let ret =
            unsafe { bindings::tcp_read_sock(self.as_ptr(), &mut desc, Some(actor_thunk::<F>)) };

        usize::try_from(ret).map_err(|_| Error::from_errno(ret))
    }

    /// Returns whether the FIN of the peer was processed, so that all data that it will ever send
    /// has arrived: `SOCK_DONE`.
    #[inline]
    pub fn is_done(&self) -> bool {
        // SAFETY: By the type invariants, the socket is valid.
        unsafe { bindings::sock_flag(self.as_ptr(), bindings::sock_flags_SOCK_DONE) }
    }

    /// Returns the pending error of the socket, if there is one, and clears it.
    ///
    /// C counterpart: `sock_error`.
    #[inline]
    pub fn take_error(&mut self) -> Option<Error> {
        // SAFETY: By the type invariants, the socket is valid.
        to_result(unsafe { bindings::sock_error(self.as_ptr()) }).err()
    }

    /// Returns whether receiving was shut down: `RCV_SHUTDOWN`.
    #[inline]
    pub fn is_shutdown(&self) -> bool {
        // A helper in C reads the field, since bindgen gets the layout of `struct sock` wrong after
        // `sk_lock`: it leaves out a tagged member without a name, which is a Microsoft extension
        // of C.
        //
        // SAFETY: By the type invariants, the socket is valid.
        unsafe { bindings::sk_is_rcv_shutdown(self.as_ptr()) }
    }

    /// Returns whether the socket is not connected: its state is `TCP_CLOSE`.
    #[inline]
    pub fn is_closed(&self) -> bool {
        // SAFETY: By the type invariants, the socket is valid. The field is volatile in C.
        let state = unsafe { read_volatile(&raw const (*self.as_ptr()).__sk_common.skc_state) };

        u32::from(state) == bindings::TCP_CLOSE
    }
}

impl Drop for LockedTcpSocket<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the socket is valid, and this object owns its lock.
        unsafe { bindings::release_sock(self.as_ptr()) };
    }
}

/// The largest number of bytes that one call takes, so that it fits in an `int`.
const MAX_COUNT: usize = c_int::MAX as usize;

/// Passes bytes of a packet to the `F` that `desc` points to, as a `sk_read_actor_t`.
///
/// Subtracts the number of bytes taken from `desc.count`, which is at most [`MAX_COUNT`]. Returns
/// that number, or a negative errno. Returns zero if `desc.count` or `len` is zero: when
/// `desc.count` becomes zero and the packet has bytes left, C calls once more.
///
/// # Safety
///
/// - `desc` must be valid for reads and writes, and its `arg.data` must point to a valid `F`.
///   Nobody else may access either meanwhile.
/// - `skb` must be a valid packet that nobody changes or releases meanwhile.
unsafe extern "C" fn actor_thunk<F>(
    desc: *mut bindings::read_descriptor_t,
    skb: *mut bindings::sk_buff,
    offset: c_uint,
    len: usize,
) -> c_int
where
    F: FnMut(&SkBuff, usize, usize) -> Result<usize>,
{
    from_result(|| {
        // SAFETY: The caller guarantees that the descriptor is valid, and that nobody else uses it.
        let desc = unsafe { &mut *desc };
        let len = len.min(desc.count);

        if len == 0 {
            return Ok(0);
        }
        // SAFETY: The caller guarantees that this points to a valid `F`, and that nobody else uses
        // it.
        let actor = unsafe { &mut *desc.arg.data.cast::<F>() };
        // SAFETY: The caller guarantees that the packet is valid, and that nobody changes or
        // releases it before this function returns. `F` cannot keep the reference beyond the call.
        let skb = unsafe { SkBuff::from_raw(skb) };
        let taken = actor(skb, usize::try_from(offset)?, len)?.min(len);

        // `taken` is at most `len`, which is at most `desc.count`.
        desc.count = desc.count.wrapping_sub(taken);
        Ok(c_int::try_from(taken)?)
    })
}
