// SPDX-License-Identifier: GPL-2.0

//! Zero-copy receive: interface queues.
//!
//! - `cursor`: positions in a refill queue, and what its entries mean.
//! - `area`, `buffers`, `free_list`, `memory`: what is received into, and who has its buffers.
//! - `refill`, `returns`: the queue through which user space gives buffers back.
//! - `provider`: the device that receives, and the buffers that its page pools get.
//! - `event`: telling user space that something happened.
//! - `recv`, `walk`: taking what a socket has.
//! - `register`, `control`: what user space asks for.
//!
//! Two counts keep a queue. Memory lives until the last `Arc` is gone; page pools have one each.
//! Who may still receive into it, rings and exported files, are its users; when the last of them
//! goes, the device gets its queue back, and buffers that user space has are taken back.
//!
//! C counterpart: `io_uring/zcrx.c`.

mod area;
mod buffers;
mod control;
mod cursor;
mod event;
mod free_list;
mod memory;
mod provider;
mod recv;
mod refill;
mod register;
mod returns;
mod walk;

pub(crate) use self::{
    control::control,
    recv::{
        receive,
        Received, //
    },
    register::register, //
};

use self::{
    area::Areas,
    event::Events,
    refill::Refill, //
};
use kernel::{
    device::Device,
    fs::anon_inode::AnonFile,
    io_uring::{
        account::Account,
        queues::Queues,
        region::Region, //
    },
    net::page_pool::ProvidedQueue,
    prelude::*,
    sync::{
        aref::ARef,
        atomic::Acquire,
        Arc,
        Refcount, //
    }, //
};

/// An interface queue, with the device that it may be bound to.
pub(crate) type Queue = ProvidedQueue<Ifq>;

/// What an interface queue is without its binding to a device.
#[pin_data]
pub(crate) struct Ifq {
    account: Account,
    #[pin]
    areas: Areas,
    users: Refcount,
    #[pin]
    events: Events,
    #[pin]
    refill: Refill,
    /// Whether the kernel can write to the areas.
    writable: bool,
    /// The device that writes to the areas, if there is one.
    dev: Option<ARef<Device>>,
}

impl Ifq {
    /// Returns the memory of the refill queue, for whoever maps it.
    pub(crate) fn region(&self) -> &Region {
        self.refill.region()
    }
}

/// Drops a user of `ifq`. The last one gives the device its queue back, and takes back the buffers
/// that user space has.
fn drop_user(ifq: &Queue) {
    if ifq.users.dec_and_test() {
        ifq.close();
        ifq.areas.scrub();
    }
}

/// A user of a queue that is not a ring: an exported file, or who is about to give it to a ring.
pub(crate) struct User(Arc<Queue>);

impl User {
    /// One user more.
    fn new(ifq: Arc<Queue>) -> Self {
        ifq.users.inc();
        Self(ifq)
    }

    /// Leaves the user's place to a ring that has got the queue.
    fn leave(self) {
        self.0.users.inc();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        drop_user(&self.0);
    }
}

#[vtable]
impl AnonFile for User {
    const NAME: &'static CStr = c"[zcrx]";

    type Data = KBox<User>;
}

/// The ring goes away: it uses its queues no more. They stay for the requests that are left.
pub(crate) fn terminate(queues: &Queues<'_, Queue>) {
    queues.terminate(|ifq| {
        ifq.events.disconnect(queues);
        drop_user(&ifq);
    });
}

/// The ring has gone away, with all its requests: they may have taken buffers since.
pub(crate) fn unregister(mut queues: Queues<'_, Queue>) {
    while let Some(ifq) = queues.take() {
        if ifq.users.as_atomic().load(Acquire) == 0 {
            ifq.areas.scrub();
        }
    }
    queues.destroy();
}
