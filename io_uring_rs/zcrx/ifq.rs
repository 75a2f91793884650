// SPDX-License-Identifier: GPL-2.0

//! Interface queues, and those who use them.
//!
//! Two counts keep an interface queue. Its memory lives until the last `Arc` of it is dropped; each
//! page pool has one. Its users are the rings and exported files that may still receive into it:
//! when the last user goes, the device gets its receive queue back, and all buffers that user space
//! has are taken back.

use super::{
    area::Areas,
    event::Events,
    refill::RefillQueue,
    users::Users, //
};
use kernel::{
    device::Device,
    fs::anon_inode::AnonFile,
    io_uring::{
        account::Account,
        queues::Queues,
        region::Region,
        zcrx::EventDesc, //
    },
    net::page_pool::ProvidedQueue,
    prelude::*,
    sync::{
        aref::ARef,
        Arc, //
    }, //
};

/// An interface queue and its binding to a device, if there is one.
pub(crate) type Queue = ProvidedQueue<Ifq>;

/// An interface queue without its binding to a device.
#[pin_data]
pub(crate) struct Ifq {
    pub(super) account: Account,
    #[pin]
    pub(super) areas: Areas,
    users: Users,
    #[pin]
    pub(super) events: Events,
    #[pin]
    pub(super) refill: RefillQueue,
    /// Whether the kernel can write to the areas.
    pub(super) writable: bool,
    /// The device that writes to the areas, if there is one.
    pub(super) dev: Option<ARef<Device>>,
}

impl Ifq {
    /// Creates an interface queue without areas, whose buffers will have `1 << shift` bytes, and
    /// that is not bound to `dev` yet. Returns its first user.
    ///
    /// `account` is charged for the memory of areas. `writable` says whether the kernel can write
    /// to the areas that will be added.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn create(
        account: Account,
        shift: u32,
        refill: impl PinInit<RefillQueue>,
        events: &EventDesc,
        writable: bool,
        dev: Option<ARef<Device>>,
    ) -> Result<User> {
        let areas = Areas::new(shift)?;
        let ifq = Arc::pin_init(
            ProvidedQueue::new(
                shift,
                pin_init!(Self {
                    account,
                    areas <- areas,
                    users: Users::one(),
                    events <- Events::new(events),
                    refill <- refill,
                    writable,
                    dev,
                }),
            ),
            GFP_KERNEL,
        )?;

        Ok(User(ifq))
    }

    /// Returns the memory of the refill queue, which user space maps.
    pub(crate) fn region(&self) -> &Region {
        self.refill.region()
    }
}

/// Drops a user of `ifq`. The last user gives the device its receive queue back, and takes back the
/// buffers that user space has.
fn drop_user(ifq: &Queue) {
    if ifq.users.remove() {
        ifq.close();
        ifq.areas.scrub();
    }
}

/// A user of a queue that is not a ring: an exported file, or a task that is about to give the
/// queue to a ring.
pub(super) struct User(Arc<Queue>);

impl User {
    /// Counts one more user of `ifq`.
    pub(super) fn new(ifq: Arc<Queue>) -> Self {
        ifq.users.add();
        Self(ifq)
    }

    /// Returns the queue.
    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.0
    }

    /// Hands this user's count over to a ring that has got the queue.
    pub(super) fn hand_over(self) {
        self.0.users.add();
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

/// Ends the use of its queues by a ring that is being closed. The ring keeps the queues themselves,
/// for its remaining requests.
pub(crate) fn terminate(queues: &Queues<'_, Queue>) {
    queues.terminate(|ifq| {
        ifq.events.disconnect(queues);
        drop_user(&ifq);
    });
}

/// Takes the queues from a ring that is being freed. Its requests may have handed out buffers after
/// [`terminate`], so the buffers of queues without users are taken back again.
pub(crate) fn unregister(mut queues: Queues<'_, Queue>) {
    while let Some(ifq) = queues.take() {
        if ifq.users.are_gone() {
            ifq.areas.scrub();
        }
    }
    queues.destroy();
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_ifq)]
mod tests {
    use super::*;
    use crate::zcrx::{
        area::Area,
        memory::Memory, //
    };
    use kernel::{
        io_uring::{
            queues::TestRing,
            region::RegionDesc, //
        },
        net::page_pool::test_pool::TestPool,
        page::{
            PAGE_SHIFT,
            PAGE_SIZE, //
        }, //
    };

    /// Registers a queue with one area with a ring, as if for a device.
    fn register(queues: &mut Queues<'_, Queue>) -> Result<Arc<Queue>> {
        const BUFFERS: usize = 100;
        let account = queues.account();
        let shift = PAGE_SHIFT as u32;
        let mut desc = RegionDesc::of_size(PAGE_SIZE as u64);
        let region = Region::new(account.clone(), &mut desc, 0)?;
        let refill = RefillQueue::new(region, 8, None)?;
        let user = Ifq::create(account, shift, refill, &EventDesc::default(), true, None)?;
        let ifq = user.queue().clone();
        let memory = Memory::without_pages(BUFFERS << shift);

        ifq.areas
            .reserve()?
            .publish(Area::of_memory(memory, shift, true)?);
        queues.reserve(0)?.publish(ifq.clone())?.commit();
        user.hand_over();
        Ok(ifq)
    }

    /// Takes back each buffer in `named` once. Returns the number of those that user space had.
    fn take_back(ifq: &Queue, named: &[usize]) -> usize {
        let mut count = 0;

        if let Some(area) = ifq.areas.get(0) {
            for &buffer in named {
                area.buffers()
                    .take_back(buffer as u64, 1, &mut None, &mut |iov| {
                        count += 1;
                        iov.put();
                    });
            }
        }
        count
    }

    /// Checks that buffers are taken back when the ring is freed, unless others use the queue.
    /// Requests that remain after a ring has let go of its queues can still receive packets that
    /// came before.
    #[test]
    fn buffers_received_after_close_are_taken_back() -> Result {
        for is_exported in [false, true] {
            let mut ring = TestRing::<Queue>::new()?;
            let ifq = ring.with(|mut queues| register(&mut queues))?;
            let exported = is_exported.then(|| User::new(ifq.clone()));
            let mut pool = TestPool::new(&ifq)?;
            let before = pool.receive().ok_or(ENOMEM)?;
            let after = [pool.receive().ok_or(ENOMEM)?, pool.receive().ok_or(ENOMEM)?];
            let early = [before.iov().index()];
            let late = [after[0].iov().index(), after[1].iov().index()];

            before.iov().grant();
            drop(before);
            ring.with(|queues| terminate(&queues));
            let left = if is_exported { 1 } else { 0 };
            assert_eq!(take_back(&ifq, &early), left);

            // The ring still has the queue, for its requests.
            assert!(ring.with(|queues| queues.get(0).is_some()));
            for packet in after {
                packet.iov().grant();
            }
            drop(pool);
            ring.with(unregister);
            let left = if is_exported { 2 } else { 0 };
            assert_eq!(take_back(&ifq, &late), left);
            drop(exported);
        }
        Ok(())
    }
}
