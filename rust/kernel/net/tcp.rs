// SPDX-License-Identifier: GPL-2.0

//! TCP sockets, to be read from packet by packet.
//!
//! [`TcpSocket`] is a socket that somebody else keeps open, [`LockedTcpSocket`] one that is locked
//! by the current task. What is in the packets is not here: see [`skbuff`](super::skbuff).
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
    /// Makes a handle from the pointer that C passes.
    ///
    /// Returns [`None`] if something else than TCP's own `tcp_recvmsg` receives from the socket: it
    /// has another protocol, or one on top of TCP owns what it receives. Should such a one, TLS for
    /// instance, be set up while the handle exists, then it has to cope with who still reads from
    /// below it, as it has with calls of `recvmsg` that were under way.
    ///
    /// # Safety
    ///
    /// While the handle exists, `sock` must be a valid socket that stays open: its `sk` must not
    /// change, nor be released if there is one.
    pub unsafe fn from_raw(sock: *mut bindings::socket) -> Option<Self> {
        // SAFETY: The caller guarantees that the socket is valid and its `sk` does not change.
        let sk = NonNull::new(unsafe { (*sock).sk })?;
        // SAFETY: The caller guarantees that `sk` is valid. This is C's `READ_ONCE`, as others may
        // change the field.
        let prot = unsafe { read_volatile(&raw const (*sk.as_ptr()).__sk_common.skc_prot) };
        // SAFETY: A valid `sk` has a valid protocol, whose functions do not change.
        let recvmsg = unsafe { (*prot).recvmsg }?;

        // INVARIANT: The caller guarantees that `sk` is valid and stays so. Only a `struct
        // tcp_sock` has this function, and what a `struct sock` is part of never changes.
        fn_addr_eq(
            recvmsg,
            bindings::tcp_recvmsg as unsafe extern "C" fn(_, _, _, _) -> _,
        )
        .then_some(Self {
            sk,
            open: PhantomData,
        })
    }

    /// Remembers that the flow of the socket is consumed on the current CPU, so that its packets
    /// are steered to there. This is a hint.
    ///
    /// C counterpart: `sock_rps_record_flow`.
    #[inline]
    pub fn record_flow(&self) {
        // SAFETY: By the type invariants, `sk` is valid. The function needs no lock.
        unsafe { bindings::sock_rps_record_flow(self.sk.as_ptr()) };
    }

    /// Locks the socket, for as long as what is returned exists.
    ///
    /// May sleep. Must not be called by a task that has the socket locked already: it would wait
    /// forever.
    ///
    /// C counterpart: `lock_sock`.
    #[inline]
    pub fn lock(&self) -> LockedTcpSocket<'_> {
        // SAFETY: By the type invariants, `sk` is valid.
        unsafe { bindings::lock_sock(self.sk.as_ptr()) };

        // INVARIANT: The socket was just locked, and is unlocked by `drop` only.
        LockedTcpSocket { socket: self }
    }
}

/// A TCP socket that is locked. Dropping this unlocks it.
///
/// While it is locked, nothing that is received gets into its queue.
///
/// # Invariants
///
/// The lock of `socket` is held, and belongs to this object.
#[must_use = "the socket is unlocked immediately when this is dropped"]
pub struct LockedTcpSocket<'a> {
    socket: &'a TcpSocket<'a>,
}

impl LockedTcpSocket<'_> {
    /// Returns the socket as C knows it. It is valid, a `struct tcp_sock`, and locked.
    #[inline]
    fn as_ptr(&self) -> *mut bindings::sock {
        self.socket.sk.as_ptr()
    }

    /// Takes up to `count` bytes out of the receive queue. Returns the number of bytes taken. Does
    /// not wait for any.
    ///
    /// For each packet that has some, `actor` is called with the packet, where in the packet the
    /// bytes begin that were not taken yet, and how many of them it may take: never zero, and never
    /// more than what is left of `count`. It may be called more than once for a packet. It returns
    /// how many it took; more than it was given count as those. If it takes none or fails, nothing
    /// more is read.
    ///
    /// No more than `i32::MAX` bytes are taken at once, whatever `count` is. Reading ends at urgent
    /// data.
    ///
    /// Returns zero if nothing was there to be taken, or `actor` took nothing from the first
    /// packet. [`Self::is_done`] and its neighbours say whether there will be more.
    ///
    /// C counterpart: `tcp_read_sock` in [`net/ipv4/tcp.c`](srctree/net/ipv4/tcp.c).
    ///
    /// # Errors
    ///
    /// - `ENOTCONN` if the socket listens for connections.
    /// - What `actor` fails with, if nothing was taken before. Otherwise its error is lost.
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
            // C adds up what is taken in an `int`.
            count: count.min(MAX_COUNT),
            arg: bindings::read_descriptor_t__bindgen_ty_1 {
                data: (&raw mut actor).cast(),
            },
            error: 0,
        };

        // SAFETY:
        // - By the type invariants, this is a valid `struct tcp_sock` whose lock is held. It stays
        //   so, as `self` is borrowed, so that `actor` cannot release it.
        // - `desc` is a local variable, valid for reads and writes, and used by nobody else.
        // - `actor_thunk` upholds what is expected of a `sk_read_actor_t`, and is called with
        //   `desc`, whose `arg.data` is a pointer to an `F` that is used by nobody else.
        let ret =
            unsafe { bindings::tcp_read_sock(self.as_ptr(), &mut desc, Some(actor_thunk::<F>)) };

        usize::try_from(ret).map_err(|_| Error::from_errno(ret))
    }

    /// Returns whether all was received that the other side will ever send, and the end of it was
    /// processed: `SOCK_DONE`.
    #[inline]
    pub fn is_done(&self) -> bool {
        // SAFETY: By the type invariants, the socket is valid.
        unsafe { bindings::sock_flag(self.as_ptr(), bindings::sock_flags_SOCK_DONE) }
    }

    /// Takes the error that the socket has met with, if there is one.
    ///
    /// C counterpart: `sock_error`.
    #[inline]
    pub fn take_error(&mut self) -> Option<Error> {
        // SAFETY: By the type invariants, the socket is valid.
        to_result(unsafe { bindings::sock_error(self.as_ptr()) }).err()
    }

    /// Returns whether nothing more is to be received: `RCV_SHUTDOWN`.
    #[inline]
    pub fn is_shutdown(&self) -> bool {
        // C reads the field: for bindgen, `struct sock` is too short behind `sk_lock`, which has a
        // tagged member without a name, as only Microsoft's extensions have it.
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
        // SAFETY: By the type invariants, the socket is valid, and its lock is held and ours.
        unsafe { bindings::release_sock(self.as_ptr()) };
    }
}

/// The most bytes that are taken at once: what fits in an `int`.
const MAX_COUNT: usize = c_int::MAX as usize;

/// Hands bytes of a packet to the `F` that `desc` points to, as a `sk_read_actor_t`.
///
/// Reduces `desc.count`, which is at most [`MAX_COUNT`], by the number of bytes that were taken,
/// and returns that number, or a negative errno. Returns zero if `desc.count` is zero or `len` is:
/// C also calls when all was taken.
///
/// # Safety
///
/// - `desc` must be valid for reads and writes, and its `arg.data` be a pointer to a valid `F`.
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
        // SAFETY: The caller guarantees that the descriptor is valid and ours.
        let desc = unsafe { &mut *desc };
        let len = len.min(desc.count);

        if len == 0 {
            return Ok(0);
        }
        // SAFETY: The caller guarantees that this is a pointer to a valid `F`, and ours.
        let actor = unsafe { &mut *desc.arg.data.cast::<F>() };
        // SAFETY: The caller guarantees that the packet is valid, and that nobody changes or
        // releases it before this function returns. `F` cannot keep the reference any longer.
        let skb = unsafe { SkBuff::from_raw(skb) };
        let taken = actor(skb, usize::try_from(offset)?, len)?.min(len);

        // `taken` is at most `len`, and that at most `desc.count`.
        desc.count = desc.count.wrapping_sub(taken);
        Ok(c_int::try_from(taken)?)
    })
}
