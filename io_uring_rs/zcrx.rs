// SPDX-License-Identifier: GPL-2.0

//! Zero-copy receive (zcrx): a network device writes received data into memory of user space.
//!
//! An interface queue has areas: memory of user space that is cut into buffers. Completions tell
//! user space which buffers have data, and user space gives buffers back through a refill queue. A
//! device that is bound to the interface queue receives into its buffers; all other data is copied
//! to them.
//!
//! - `ifq`, `users`: the interface queue, its construction and its users.
//! - `cursor`: positions in a refill queue, and the meaning of its entries.
//! - `area`, `table`, `buffers`, `free_list`, `memory`: the areas, and who has which of their
//!   buffers.
//! - `refill`, `refill_ring`, `returns`: the refill queue, through which user space gives buffers
//!   back.
//! - `provider`: the binding to a device, whose page pools get their buffers here.
//! - `event`, `fired`: events that user space has asked to be told of.
//! - `recv`, `walk`: receiving the data of a socket.
//! - `register`, `control`: the registrations and operations that user space asks for.
//!
//! C counterpart: `io_uring/zcrx.c`.

mod area;
mod buffers;
mod control;
mod cursor;
mod event;
mod fired;
mod free_list;
mod ifq;
mod memory;
mod provider;
mod recv;
mod refill;
mod refill_ring;
mod register;
mod returns;
mod table;
mod users;
mod walk;

pub(crate) use self::{
    control::control,
    ifq::{
        terminate,
        unregister,
        Queue, //
    },
    recv::{
        receive,
        Received, //
    },
    register::register, //
};
