// SPDX-License-Identifier: GPL-2.0

//! The payload of a filter's context: what filters see of the arguments of a request.
//!
//! - `address`: the part of a socket address that filters see.
//!
//! `io_issue_def::filter_pdu_size` says how many bytes of payload an opcode has. C counterparts:
//! `io_socket_bpf_populate()`, `io_openat_bpf_populate()`, `io_connect_bpf_populate()`.

mod address;

use self::address::Address;
use kernel::io_uring::{
    command::{
        Command,
        Connect,
        Open,
        Socket, //
    },
    request::{
        FilterContext,
        Request, //
    },
};

/// The arguments of a request that filters see.
trait Payload {
    /// Writes the arguments to `context`, whose payload must be zero before.
    fn populate(&self, context: &mut FilterContext);
}

impl Payload for Socket<'_> {
    #[inline]
    fn populate(&self, context: &mut FilterContext) {
        context.set_socket(
            self.domain().cast_unsigned(),
            self.socket_type().cast_unsigned(),
            self.protocol().cast_unsigned(),
        );
    }
}

impl Payload for Open<'_> {
    #[inline]
    fn populate(&self, context: &mut FilterContext) {
        context.set_open(self.flags(), self.mode(), self.resolve());
    }
}

impl Payload for Connect<'_> {
    fn populate(&self, context: &mut FilterContext) {
        let Address { family, port, addr } = Address::from_bytes(self.address());

        context.set_connect(family, port, addr);
    }
}

/// Writes the arguments of `request` to `context`, if its opcode has arguments that filters see.
#[inline]
pub(super) fn populate(request: &Request, context: &mut FilterContext) {
    match request.command() {
        Command::Socket(socket) => socket.populate(context),
        Command::Open(open) => open.populate(context),
        Command::Connect(connect) => connect.populate(context),
        Command::Other => {}
    }
}
