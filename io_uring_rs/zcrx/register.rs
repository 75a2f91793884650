// SPDX-License-Identifier: GPL-2.0

//! Registering interface queues with rings, and importing those of other rings.

use super::{
    area::{
        token,
        Area, //
    },
    event,
    ifq::{
        Ifq,
        Queue,
        User, //
    },
    provider,
    refill::{
        self,
        RefillQueue, //
    }, //
};
use kernel::{
    cred::{
        capable,
        Capability, //
    },
    device::Device,
    fs::anon_inode,
    io_uring::{
        account::Account,
        event::RingRef,
        queues::{
            Queues,
            Reservation, //
        },
        region::{
            Region,
            RegionDesc, //
        },
        zcrx::{
            AreaReg,
            EventDesc,
            IfqReg,
            EVENT_DESC_STATS,
            MAP_OFFSET,
            MAP_SHIFT,
            REG_IMPORT,
            REG_NODEV,
            SETUP_CLAMP,
            SETUP_CQE32,
            SETUP_CQE_MIXED,
            SETUP_DEFER_TASKRUN, //
        }, //
    },
    net::device::NetDevice,
    page::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    },
    prelude::*,
    sync::aref::ARef,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// The largest number of entries of a refill queue: `IO_RQ_MAX_ENTRIES`.
const MAX_ENTRIES: u32 = 32768;

/// The highest id of a queue: the offsets at which queues are mapped have no room for more.
const MAX_ID: u32 = 2047;

/// Reads a structure at the address `from` in user space.
pub(super) fn read<T: FromBytes>(from: u64) -> Result<T> {
    // On 32-bit machines the upper half is dropped, as `u64_to_user_ptr` does.
    UserSlice::new(UserPtr::from_addr(from as usize), size_of::<T>())
        .reader()
        .read()
}

/// Writes a structure to the address `to` in user space.
pub(super) fn write<T: AsBytes>(to: u64, value: &T) -> Result {
    UserSlice::new(UserPtr::from_addr(to as usize), size_of::<T>())
        .writer()
        .write(value)
}

/// Returns the number of entries of a refill queue for which user space asks for `wanted`. With
/// `clamp`, a number that is too large is lowered instead of refused.
fn entries(wanted: u32, clamp: bool) -> Result<u32> {
    match wanted {
        0 => Err(EINVAL),
        1..=MAX_ENTRIES => Ok(wanted.next_power_of_two()),
        _ if clamp => Ok(MAX_ENTRIES),
        _ => Err(EINVAL),
    }
}

/// Returns the base-2 logarithm of the size of buffers for which user space asks for `bytes`. Zero
/// leaves the size to the kernel.
fn buffer_shift(bytes: u32, has_device: bool) -> Result<u32> {
    match bytes as usize {
        0 | PAGE_SIZE => Ok(PAGE_SHIFT as u32),
        size if !size.is_power_of_two() || size < PAGE_SIZE => Err(EINVAL),
        _ if has_device => Ok(bytes.trailing_zeros()),
        // Larger buffers are for devices: copying fills at most one page of a buffer.
        _ => Err(EOPNOTSUPP),
    }
}

/// Checks whether the ring has the features that zero-copy receive needs.
fn ring_supports_zcrx(queues: &Queues<'_, Queue>) -> bool {
    let flags = queues.ring_flags();

    flags & SETUP_DEFER_TASKRUN != 0 && flags & (SETUP_CQE32 | SETUP_CQE_MIXED) != 0
}

/// Registers the queue that `arg` describes, a `struct io_uring_zcrx_ifq_reg` in user space.
///
/// # Errors
///
/// - [`EPERM`] without `CAP_NET_ADMIN`.
/// - [`EINVAL`] for a ring without the features that are needed, and for values that are unknown,
///   reserved or out of range; [`ERANGE`] for statistics that do not fit.
/// - [`EFAULT`] if user space cannot be read or written.
/// - [`EBADF`] if the file to import is not an exported queue.
/// - [`ENODEV`] if there is no such device.
/// - [`EOPNOTSUPP`] if the device transfers nothing by DMA, and for buffers larger than a page if
///   there is no device or its driver does not support them.
/// - [`ERANGE`] if the device has no such receive queue, or if the memory is in too small pieces.
/// - [`ENOMEM`] if memory is short, or if the limit on locked memory is reached.
/// - [`EBUSY`] if the ring can have no more queues.
pub(crate) fn register(queues: &mut Queues<'_, Queue>, arg: UserPtr) -> Result {
    // The task gets a receive queue of the device for itself, and can see data that is for sockets
    // of other tasks.
    if !capable(Capability::NET_ADMIN) {
        return Err(EPERM);
    }
    if !ring_supports_zcrx(queues) {
        return Err(EINVAL);
    }
    let to = arg.as_mut_ptr() as usize as u64;
    let reg: IfqReg = read(to)?;

    if !reg.reserved_is_zero() || reg.zcrx_id != 0 || reg.flags & !(REG_IMPORT | REG_NODEV) != 0 {
        return Err(EINVAL);
    }
    if reg.flags & REG_IMPORT != 0 {
        return import(queues, to, reg);
    }
    let mut args = Args::read(to, reg, queues.ring_flags() & SETUP_CLAMP != 0)?;
    let account = queues.account();
    let ring = queues.ring();
    let reservation = queues.reserve(MAX_ID)?;
    let user = build(&mut args, account, reservation.id())?;

    publish(&args, ring, user, reservation)
}

/// The arguments of a registration: what user space asks for, and what it is told.
struct Args {
    /// The address of `reg` in user space. `reg` has the addresses of the other structures.
    to: u64,
    reg: IfqReg,
    region: RegionDesc,
    area: AreaReg,
    events: EventDesc,
}

impl Args {
    /// Reads the structures that `reg`, which was read at `to`, points to, and checks all values
    /// that do not depend on the device or on memory. With `clamp`, too many entries are lowered.
    fn read(to: u64, mut reg: IfqReg, clamp: bool) -> Result<Self> {
        let region: RegionDesc = read(reg.region_ptr)?;

        if reg.if_rxq == u32::MAX || reg.rq_entries == 0 {
            return Err(EINVAL);
        }
        let no_device = reg.flags & REG_NODEV != 0;
        if no_device && (reg.if_rxq != 0 || reg.if_idx != 0) {
            return Err(EINVAL);
        }
        reg.rq_entries = entries(reg.rq_entries, clamp)?;
        let area: AreaReg = read(reg.area_ptr)?;
        if area.rq_area_token != 0 {
            return Err(EINVAL);
        }
        let mut events = EventDesc::default();
        if reg.event_desc != 0 {
            events = read(reg.event_desc)?;
        }
        event::check(&events)?;

        Ok(Self {
            to,
            reg,
            region,
            area,
            events,
        })
    }

    /// Returns the device whose receive queue is asked for, or [`None`] if none is.
    ///
    /// The network device is not kept locked while memory is pinned, which may take long.
    /// [`provider::open`] finds it again, and checks that it is the same.
    fn device(&self) -> Result<Option<ARef<Device>>> {
        if self.reg.flags & REG_NODEV != 0 {
            return Ok(None);
        }
        let netdev = NetDevice::find(self.reg.if_idx)?;
        let netdev = netdev.lock();

        Ok(Some(netdev.dma_device(self.reg.if_rxq)?.into()))
    }

    /// Writes the structures back to user space.
    fn write(&self) -> Result {
        write(self.to, &self.reg)?;
        write(self.reg.region_ptr, &self.region)?;
        write(self.reg.area_ptr, &self.area)
    }
}

/// Builds the queue that `args` describe, with its first area, and binds it to its device if there
/// is one. Notes in `args` what user space is to be told. Returns the first user of the queue:
/// dropping it closes the queue.
///
/// `id` is the id that the queue will have, which decides where user space maps it.
fn build(args: &mut Args, account: Account, id: u32) -> Result<User> {
    let size = refill::size(args.reg.rq_entries);

    if size.is_none_or(|size| size as u64 > args.region.size()) {
        return Err(EINVAL);
    }
    let region = Region::new(
        account.clone(),
        &mut args.region,
        MAP_OFFSET + (u64::from(id) << MAP_SHIFT),
    )?;
    let wants_stats = args.events.flags & EVENT_DESC_STATS != 0;
    let stats = wants_stats.then_some(args.events.stats_offset);
    let refill = RefillQueue::new(region, args.reg.rq_entries, stats)?;

    let dev = args.device()?;
    let has_device = dev.is_some();
    let shift = buffer_shift(args.reg.rx_buf_len, has_device)?;
    let area = Area::new(&account, &args.area, shift, has_device)?;
    let writable = area.is_writable();
    let user = Ifq::create(account, shift, refill, &args.events, writable, dev)?;
    let ifq = user.queue();

    let first = ifq.areas.reserve()?;
    args.area.rq_area_token = token(first.id());
    if has_device {
        provider::open(ifq, &args.reg, first, area)?;
    } else {
        first.publish(area);
    }
    args.reg.zcrx_id = id;
    // `shift` is 31 at most.
    args.reg.rx_buf_len = 1 << shift;
    args.reg.set_offsets();
    Ok(user)
}

/// Publishes the queue of `user` under the id of `reservation`, tells user space of it, and gives
/// it to the ring, to which its events go from then on.
///
/// The ring keeps the queue only once user space was told of it: if that fails, it is withdrawn and
/// closed.
fn publish(
    args: &Args,
    ring: Option<RingRef>,
    user: User,
    reservation: Reservation<'_, Queue>,
) -> Result {
    let ifq = user.queue().clone();
    let published = reservation.publish(ifq.clone())?;

    args.write()?;
    published.commit();
    user.hand_over();
    ifq.events.connect(ring);
    Ok(())
}

/// Imports a queue that another ring has exported as a file.
fn import(queues: &mut Queues<'_, Queue>, to: u64, mut reg: IfqReg) -> Result {
    if reg.if_rxq != 0 || reg.rq_entries != 0 || reg.area_ptr != 0 || reg.region_ptr != 0 {
        return Err(EINVAL);
    }
    if reg.event_desc != 0 || reg.flags != REG_IMPORT {
        return Err(EINVAL);
    }
    // This user keeps the queue from being closed by its last other user until the ring has it.
    let user = anon_inode::with::<User, _>(reg.if_idx, |user| User::new(user.queue().clone()))?;
    let reservation = queues.reserve(MAX_ID)?;

    reg.zcrx_id = reservation.id();
    reg.set_offsets();
    write(to, &reg)?;
    reservation.publish(user.queue().clone())?.commit();
    user.hand_over();
    Ok(())
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_zcrx_register)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_rounded_up_and_clamped() {
        for clamp in [false, true] {
            assert_eq!(entries(0, clamp), Err(EINVAL));
            assert_eq!(entries(1, clamp), Ok(1));
            assert_eq!(entries(3, clamp), Ok(4));
            assert_eq!(entries(16385, clamp), Ok(32768));
            assert_eq!(entries(32768, clamp), Ok(32768));
        }
        for many in [32769, 1 << 31, u32::MAX] {
            assert_eq!(entries(many, false), Err(EINVAL));
            assert_eq!(entries(many, true), Ok(32768));
        }
    }

    #[test]
    fn buffer_size_is_a_page_or_larger_power_of_two() {
        let page = PAGE_SIZE as u32;
        let shift = PAGE_SHIFT as u32;

        for has_device in [false, true] {
            assert_eq!(buffer_shift(0, has_device), Ok(shift));
            assert_eq!(buffer_shift(page, has_device), Ok(shift));
            for none in [1, page / 2, page - 1, page + 1, 3 * page, u32::MAX] {
                assert_eq!(buffer_shift(none, has_device), Err(EINVAL));
            }
        }
        for larger in [2 * page, 1 << 31] {
            assert_eq!(buffer_shift(larger, false), Err(EOPNOTSUPP));
        }
        assert_eq!(buffer_shift(2 * page, true), Ok(shift + 1));
        assert_eq!(buffer_shift(1 << 31, true), Ok(31));
    }
}
