// SPDX-License-Identifier: GPL-2.0

//! The payload of the context of a request to connect: what filters see of its address. Programs
//! load the arguments of other requests where they are.
//!
//! - `address`: the part of a socket address that filters see.
//!
//! C counterpart: `io_connect_bpf_populate()`.

mod address;

use self::address::Address;
use kernel::io_uring::{
    command::Connect,
    request::{
        FilterContext,
        Request, //
    },
};

/// Creates the context of `request`, with the address if it is one to connect.
pub(super) fn context(request: &Request) -> FilterContext {
    let mut context =
        FilterContext::new(request.opcode(), request.sqe_flags(), request.user_data());

    if let Some(connect) = Connect::of(request) {
        let Address { family, port, addr } = Address::from_bytes(connect.address());

        context.set_connect(family, port, addr);
    }
    context
}
