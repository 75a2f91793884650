// SPDX-License-Identifier: GPL-2.0

//! What is asked of a queue that is there.

use super::{
    area::{
        token,
        Area, //
    },
    provider,
    register,
    Queue,
    User, //
};
use kernel::{
    fs::{
        anon_inode,
        file::{
            flags::O_CLOEXEC,
            FileDescriptorReservation, //
        }, //
    },
    io_uring::{
        queues::Queues,
        zcrx::{
            AreaReg,
            Ctrl,
            CTRL_ADD_AREA,
            CTRL_ARM_EVENT,
            CTRL_EXPORT,
            CTRL_FLUSH_RQ, //
        }, //
    },
    prelude::*,
    sync::Arc,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Does what `arg` asks for, a `struct zcrx_ctrl` in user space.
///
/// # Errors
///
/// - [`EFAULT`] if user space cannot be read or written, and, as in C, if reserved fields of the
///   structure itself are not zero.
/// - [`ENXIO`] if the ring has no such queue.
/// - [`EOPNOTSUPP`] for an unknown operation.
/// - [`EINVAL`] for other values that are unknown or reserved.
/// - [`EMFILE`] if the task can have no more files.
/// - [`EFAULT`] for more memory if the device has gone; those of [`Area::new`] and [`Area::map`].
pub(crate) fn control(queues: &Queues<'_, Queue>, arg: UserPtr) -> Result {
    let mut ctrl: Ctrl = UserSlice::new(arg, size_of::<Ctrl>()).reader().read()?;

    if ctrl.reserved != [0; 2] {
        return Err(EFAULT);
    }
    let ifq: Arc<Queue> = queues.get(ctrl.zcrx_id).ok_or(ENXIO)?.into();

    match ctrl.op {
        CTRL_FLUSH_RQ => {
            if ctrl.arguments != [0; 12] {
                return Err(EINVAL);
            }
            ifq.refill.flush(&ifq.areas);
            Ok(())
        }
        CTRL_EXPORT => export(ifq, &mut ctrl, arg),
        CTRL_ARM_EVENT => {
            let [event, reserved @ ..] = ctrl.arguments;

            if reserved != [0; 11] {
                return Err(EINVAL);
            }
            ifq.events.arm(event)
        }
        CTRL_ADD_AREA => add_area(&ifq, &ctrl),
        _ => Err(EOPNOTSUPP),
    }
}

/// Makes a file of a queue, which keeps it and with which another ring can import it.
fn export(ifq: Arc<Queue>, ctrl: &mut Ctrl, arg: UserPtr) -> Result {
    if ctrl.arguments != [0; 12] {
        return Err(EINVAL);
    }
    let user = KBox::new(User::new(ifq), GFP_KERNEL)?;
    let file = anon_inode::create::<User>(user, O_CLOEXEC)?;
    let fd = FileDescriptorReservation::get_unused_fd_flags(O_CLOEXEC)?;

    ctrl.arguments[0] = fd.reserved_fd();
    UserSlice::new(arg, size_of::<Ctrl>())
        .writer()
        .write(ctrl)?;
    fd.fd_install(file);
    Ok(())
}

/// Adds memory.
///
/// Memory is pinned, and user space written to, while nothing is locked that others need to go on.
/// The descriptor is written twice: that it cannot be written at all comes before whatever else is
/// wrong, as in C.
fn add_area(ifq: &Queue, ctrl: &Ctrl) -> Result {
    let [low, high, reserved @ ..] = ctrl.arguments;
    // As the uapi has them: an address of eight bytes.
    let to = u64::from_ne_bytes(low_and_high(low, high));
    let mut reg: AreaReg = register::read(to)?;

    if reserved != [0; 10] || reg.rq_area_token != 0 {
        return Err(EINVAL);
    }
    let has_device = ifq.dev.is_some();
    if has_device && !ifq.is_bound() {
        return Err(EFAULT);
    }
    register::write(to, &reg)?;

    let area = Area::new(&ifq.account, &reg, ifq.areas.shift(), has_device)?;
    if area.is_writable() != ifq.writable {
        return Err(EINVAL);
    }
    let reservation = ifq.areas.reserve()?;

    // The area cannot be taken back, so that this comes first.
    reg.rq_area_token = token(reservation.id());
    register::write(to, &reg)?;
    provider::add(ifq, reservation, area).inspect_err(|_| {
        reg.rq_area_token = 0;
        let _ = register::write(to, &reg);
    })
}

/// The bytes of two words as they stand in memory.
fn low_and_high(first: u32, second: u32) -> [u8; 8] {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();

    [a, b, c, d, e, f, g, h]
}
