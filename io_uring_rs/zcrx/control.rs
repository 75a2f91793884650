// SPDX-License-Identifier: GPL-2.0

//! Operations on a registered queue: flush, export, arm an event, add an area.

use super::{
    area::{
        token,
        Area, //
    },
    ifq::{
        Queue,
        User, //
    },
    provider,
    register, //
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

/// Carries out the operation in `arg`, a `struct zcrx_ctrl` in user space.
///
/// # Errors
///
/// - [`EFAULT`] if user space cannot be read or written, and, as in C, if reserved fields of the
///   structure itself are not zero.
/// - [`ENXIO`] if the ring has no such queue.
/// - [`EOPNOTSUPP`] for an unknown operation.
/// - [`EINVAL`] for other values that are unknown or reserved.
/// - [`EMFILE`] if the task can have no more files.
/// - [`EFAULT`] for adding an area if the device has gone.
/// - The errors of [`Area::new`] and [`Area::map`].
pub(crate) fn control(queues: &Queues<'_, Queue>, arg: UserPtr) -> Result {
    let mut ctrl: Ctrl = UserSlice::new(arg, size_of::<Ctrl>()).reader().read()?;

    if !ctrl.reserved_is_zero() {
        return Err(EFAULT);
    }
    let ifq: Arc<Queue> = queues.get(ctrl.zcrx_id).ok_or(ENXIO)?.into();

    match ctrl.op {
        CTRL_FLUSH_RQ => {
            if !ctrl.has_no_arguments() {
                return Err(EINVAL);
            }
            ifq.refill.flush(&ifq.areas);
            Ok(())
        }
        CTRL_EXPORT => export(ifq, &mut ctrl, arg),
        CTRL_ARM_EVENT => ifq.events.arm(ctrl.event().ok_or(EINVAL)?),
        CTRL_ADD_AREA => add_area(&ifq, &ctrl),
        _ => Err(EOPNOTSUPP),
    }
}

/// Creates a file that is a user of `ifq`, with which another ring can import the queue, and writes
/// its descriptor to `arg`.
fn export(ifq: Arc<Queue>, ctrl: &mut Ctrl, arg: UserPtr) -> Result {
    if !ctrl.has_no_arguments() {
        return Err(EINVAL);
    }
    let user = KBox::new(User::new(ifq), GFP_KERNEL)?;
    let file = anon_inode::create::<User>(user, O_CLOEXEC)?;
    let fd = FileDescriptorReservation::get_unused_fd_flags(O_CLOEXEC)?;

    // The file is installed last: it could not be taken back if user space cannot be written to.
    ctrl.set_exported_fd(fd.reserved_fd());
    UserSlice::new(arg, size_of::<Ctrl>())
        .writer()
        .write(ctrl)?;
    fd.fd_install(file);
    Ok(())
}

/// Adds the area that `ctrl` describes to `ifq`.
///
/// No lock of the queue or its device is held while memory is pinned or user space is written to,
/// which may take long. The descriptor is written twice: first as it was, because in C the error
/// that it cannot be written comes before all errors of the memory, and then with the token.
fn add_area(ifq: &Queue, ctrl: &Ctrl) -> Result {
    let (to, reserved_is_zero) = ctrl.area();
    let mut reg: AreaReg = register::read(to)?;

    if !reserved_is_zero || reg.rq_area_token != 0 {
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

    // An area cannot be removed again, so its token is written before it is added.
    reg.rq_area_token = token(reservation.id());
    register::write(to, &reg)?;
    provider::add(ifq, reservation, area).inspect_err(|_| {
        reg.rq_area_token = 0;
        let _ = register::write(to, &reg);
    })
}
