// SPDX-License-Identifier: GPL-2.0

//! The functions that C calls.
//!
//! Each takes raw pointers in, makes safe types of them, makes one call, and gives an errno out.
//!
//! All filters of rings, and all restrictions of tasks, are set by functions of this file, so that
//! they hold `Filters`.

use crate::{
    filter::{
        self,
        Filters, //
    },
    restriction,
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::from_result,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    io_uring::{
        filter_set::FilterSet,
        request::{
            FilterContext,
            Request, //
        },
        restriction::Restriction,
        ring::Ring,
        task::TaskRestriction, //
    },
    prelude::*,
    uaccess::UserPtr, //
};

/// Decides whether `req` may run: zero, or [`EACCES`] if a filter denies it.
///
/// # Safety
///
/// - `filters` must be the ring's cached `bpf_filters`, not null.
/// - `req` must be a request of that ring whose opcode was validated and whose `prep` succeeded.
/// - The ring's `uring_lock` must be held.
#[export]
pub unsafe extern "C" fn __io_uring_run_bpf_filters(
    filters: *mut *mut bindings::io_bpf_filter,
    req: *mut bindings::io_kiocb,
) -> c_int {
    // SAFETY: The cache stands for the set that the ring holds a reference to, and which is only
    // exchanged, together with the cache, under the lock that the caller holds.
    let filters: &Filters = unsafe { FilterSet::contents_from_raw(filters) };
    // SAFETY: The caller guarantees a prepared request, which it alone works on.
    let request = unsafe { Request::from_raw(req) };

    from_result(|| filter::run(filters, request).map(|()| 0))
}

/// Registers a filter with the ring that `res` belongs to.
///
/// # Safety
///
/// `res` must be valid and not null, the ring's `uring_lock` be held, and the caller renew the
/// ring's cached `bpf_filters` before it is released.
#[export]
pub unsafe extern "C" fn io_register_bpf_filter(
    res: *mut bindings::io_restriction,
    arg: *mut bindings::io_uring_bpf,
) -> c_int {
    from_result(|| {
        let res = NonNull::new(res).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that `res` is valid, that nobody else accesses it, and that
        // it renews the ring's copy of the filters before others may use that. All filters are set
        // by this file.
        let owner = unsafe { Restriction::from_raw_mut(res) };
        let set = filter::read(owner.filters(), UserPtr::from_ptr(arg.cast()))?;

        owner.set_filters(set);
        Ok(0)
    })
}

/// Drops the filters of a ring that goes away. Possible in any context.
///
/// # Safety
///
/// `res` must be valid, not null, and nobody else may access it: the ring has no requests any more,
/// and gets none, so that its cached `bpf_filters` is used no more.
#[export]
pub unsafe extern "C" fn io_put_bpf_filters(res: *mut bindings::io_restriction) {
    if let Some(res) = NonNull::new(res) {
        // SAFETY: The caller guarantees that `res` is valid, that nobody else accesses it, and that
        // the ring's copy of the filters is used no more. All filters are set by this file.
        let owner = unsafe { Restriction::<Filters>::from_raw_mut(res) };

        drop(owner.take_filters());
    }
}

/// Shows filters the arguments of a request that makes a socket.
///
/// # Safety
///
/// - `bctx` must be valid, all of its bytes initialised, and accessed by nobody else.
/// - `req` must be a request whose opcode was validated and whose `prep` succeeded.
#[export]
pub unsafe extern "C" fn io_socket_bpf_populate(
    bctx: *mut bindings::io_uring_bpf_ctx,
    req: *mut bindings::io_kiocb,
) {
    // SAFETY: The caller guarantees that the context is valid, initialised and ours, and that the
    // request is prepared; it alone works on both.
    let (context, request) = unsafe { (FilterContext::from_raw(bctx), Request::from_raw(req)) };

    filter::populate(context, request);
}

/// Shows filters the arguments of a request that opens a file.
///
/// # Safety
///
/// As for [`io_socket_bpf_populate`].
#[export]
pub unsafe extern "C" fn io_openat_bpf_populate(
    bctx: *mut bindings::io_uring_bpf_ctx,
    req: *mut bindings::io_kiocb,
) {
    // SAFETY: The caller guarantees that the context is valid, initialised and ours, and that the
    // request is prepared; it alone works on both.
    let (context, request) = unsafe { (FilterContext::from_raw(bctx), Request::from_raw(req)) };

    filter::populate(context, request);
}

/// Shows filters the arguments of a request that connects a socket.
///
/// # Safety
///
/// As for [`io_socket_bpf_populate`].
#[export]
pub unsafe extern "C" fn io_connect_bpf_populate(
    bctx: *mut bindings::io_uring_bpf_ctx,
    req: *mut bindings::io_kiocb,
) {
    // SAFETY: The caller guarantees that the context is valid, initialised and ours, and that the
    // request is prepared; it alone works on both.
    let (context, request) = unsafe { (FilterContext::from_raw(bctx), Request::from_raw(req)) };

    filter::populate(context, request);
}

/// Registers restrictions with a ring.
///
/// # Safety
///
/// `ctx` must be a valid ring, not null, whose `uring_lock` is held.
#[export]
pub unsafe extern "C" fn io_register_restrictions(
    ctx: *mut bindings::io_ring_ctx,
    arg: *mut c_void,
    nr_args: c_uint,
) -> c_int {
    from_result(|| {
        let ctx = NonNull::new(ctx).ok_or(EINVAL)?;
        // SAFETY: The caller guarantees that the ring is valid and its lock held.
        let mut ring = unsafe { Ring::from_raw(ctx) };

        restriction::register_ring(&mut ring, UserPtr::from_ptr(arg), nr_args).map(|()| 0)
    })
}

/// Registers restrictions with the current task.
///
/// # Safety
///
/// Only C may call this, in a system call, so that there is no [`TaskRestriction`] for the current
/// task.
#[export]
pub unsafe extern "C" fn io_register_restrictions_task(arg: *mut c_void, nr_args: c_uint) -> c_int {
    // SAFETY: The caller guarantees that there is no other handle. All restrictions of tasks are
    // set by this file.
    let mut task = unsafe { TaskRestriction::current() };

    from_result(|| {
        restriction::register_task(&mut task, UserPtr::from_ptr(arg), nr_args).map(|()| 0)
    })
}

/// Registers a filter with the current task.
///
/// # Safety
///
/// As for [`io_register_restrictions_task`].
#[export]
pub unsafe extern "C" fn io_register_bpf_filter_task(arg: *mut c_void, nr_args: c_uint) -> c_int {
    // SAFETY: The caller guarantees that there is no other handle. All restrictions of tasks are
    // set by this file.
    let mut task = unsafe { TaskRestriction::current() };

    from_result(|| {
        restriction::register_task_filter(&mut task, UserPtr::from_ptr(arg), nr_args).map(|()| 0)
    })
}

/// Returns whether the current task may call `io_uring_register()` with `opcode` and no ring.
///
/// # Safety
///
/// As for [`io_register_restrictions_task`].
#[export]
pub unsafe extern "C" fn io_register_blind_allowed(opcode: c_uint) -> bool {
    // SAFETY: The caller guarantees that there is no other handle. All restrictions of tasks are
    // set by this file.
    let task = unsafe { TaskRestriction::current() };

    restriction::allows_register(&task, opcode)
}

/// Gives `ctx`, a ring that is being made, the restrictions of the task that makes it.
///
/// # Safety
///
/// - `ctx` must be a valid ring, not null, that has no restrictions and that nobody else knows of.
/// - `src` must be the current task's `io_uring_restrict`, not null.
#[export]
pub unsafe extern "C" fn io_ctx_restriction_clone(
    ctx: *mut bindings::io_ring_ctx,
    src: *mut bindings::io_restriction,
) {
    if let (Some(ctx), Some(src)) = (NonNull::new(ctx), NonNull::new(src)) {
        // SAFETY: The caller guarantees that the ring is valid and known to nobody else, and that
        // the restrictions are those of the current task. They never change.
        let (mut ring, src) =
            unsafe { (Ring::<Filters>::from_raw(ctx), Restriction::from_raw(src)) };

        ring.inherit(src);
    }
}

/// Makes `tsk`, a child that is being made, share the restrictions of the current task. Cannot
/// fail.
///
/// # Safety
///
/// `tsk` must be a valid task that does not run yet, and whose `io_uring_restrict` is the current
/// task's.
#[export]
pub unsafe extern "C" fn __io_uring_fork(tsk: *mut bindings::task_struct) -> c_int {
    if let Some(child) = NonNull::new(tsk) {
        // SAFETY: The caller guarantees that the child does not run yet, and that its pointer is a
        // copy of the current task's. All restrictions of tasks are set by this file.
        unsafe { TaskRestriction::<Filters>::inherit(child) };
    }
    0
}

/// Drops the restrictions of a task that ended or never ran. Possible in any context.
///
/// # Safety
///
/// `tsk` must be a valid task, not null, that nobody else accesses.
#[export]
pub unsafe extern "C" fn io_task_restriction_free(tsk: *mut bindings::task_struct) {
    if let Some(task) = NonNull::new(tsk) {
        // SAFETY: The caller guarantees that nobody else accesses the task. All restrictions of
        // tasks are set by this file.
        let mut task = unsafe { TaskRestriction::<Filters>::from_raw(task) };

        drop(task.take());
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_payload)]
mod tests {
    use super::*;
    use core::mem::size_of;
    use kernel::{
        io_uring::Opcode,
        transmute::AsBytes, //
    };

    /// Returns what filters see of a prepared request for `opcode` with the arguments `cmd` and the
    /// asynchronous data `data`, if there is any.
    fn seen<T>(opcode: Opcode, cmd: T, data: &mut [u8]) -> Result<[u8; 40]> {
        let mut request: KBox<bindings::io_kiocb> =
            KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
        let mut context = FilterContext::new(opcode, 0, 0);
        let mut bytes = [0; 40];

        request.opcode = opcode.as_u8();
        if !data.is_empty() {
            request.async_data = data.as_mut_ptr().cast();
        }
        // SAFETY: The arguments of every opcode fit there, and the request is ours.
        unsafe { (&raw mut request.__bindgen_anon_1).cast::<T>().write(cmd) };
        let defs = (&raw const bindings::io_issue_defs).cast::<bindings::io_issue_def>();
        // SAFETY: The table has an entry for each opcode.
        match unsafe { (*defs.add(opcode.index())).filter_populate } {
            // SAFETY: The request is as its `prep` would leave it; both are ours.
            Some(populate) => unsafe { populate((&raw mut context).cast(), &raw mut *request) },
            // SAFETY: As above.
            None => filter::populate(&mut context, unsafe {
                Request::from_raw(&raw mut *request)
            }),
        }

        for (to, from) in bytes.iter_mut().zip(context.as_bytes()) {
            *to = *from;
        }
        Ok(bytes)
    }

    /// Returns the word of the context at `offset`.
    fn word(bytes: &[u8; 40], offset: usize) -> u32 {
        bytes
            .get(offset..)
            .and_then(|rest| rest.first_chunk().copied())
            .map_or(u32::MAX, u32::from_ne_bytes)
    }

    #[test]
    fn socket() -> Result {
        let mut cmd: bindings::io_socket = pin_init::zeroed();
        cmd.domain = -2;
        cmd.type_ = 0o2000005;
        cmd.protocol = 0x10203040;

        let bytes = seen(Opcode::SOCKET, cmd, &mut [])?;
        assert_eq!(word(&bytes, 8).to_ne_bytes(), [45, 0, 12, 0]);
        assert_eq!(word(&bytes, 16), 0xffff_fffe);
        assert_eq!(word(&bytes, 20), 5);
        assert_eq!(word(&bytes, 24), 0x10203040);
        assert_eq!(bytes[28..], [0; 12]);
        Ok(())
    }

    #[test]
    fn open() -> Result {
        for opcode in [Opcode::OPENAT, Opcode::OPENAT2] {
            let mut cmd: bindings::io_open = pin_init::zeroed();
            cmd.how.flags = 0x0102_0304_0506_0708;
            cmd.how.mode = 0x1112_1314_1516_1718;
            cmd.how.resolve = 0x2122_2324_2526_2728;

            let bytes = seen(opcode, cmd, &mut [])?;
            assert_eq!(bytes[8..16], [opcode.as_u8(), 0, 24, 0, 0, 0, 0, 0]);
            assert_eq!(bytes[16..24], 0x0102_0304_0506_0708u64.to_ne_bytes());
            assert_eq!(bytes[24..32], 0x1112_1314_1516_1718u64.to_ne_bytes());
            assert_eq!(bytes[32..40], 0x2122_2324_2526_2728u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Whatever stands past the length that user space gave makes no difference.
    #[test]
    fn connect_ignores_what_is_not_there() -> Result {
        for family in [0u16, 1, 2, 10, 0xffff] {
            for len in 0..=128 {
                let mut results = [[0; 40]; 2];

                for (result, poison) in results.iter_mut().zip([0x5a, 0xa5]) {
                    let mut address = [poison; 128];
                    for (byte, number) in address.iter_mut().zip(0..len) {
                        *byte = number;
                    }
                    for (byte, part) in address
                        .iter_mut()
                        .take(len.into())
                        .zip(family.to_ne_bytes())
                    {
                        *byte = part;
                    }
                    let mut cmd: bindings::io_connect = pin_init::zeroed();
                    cmd.addr_len = len.into();
                    *result = seen(Opcode::CONNECT, cmd, &mut address)?;
                }
                let [bytes, other] = results;

                assert_eq!(bytes, other);
                assert_eq!(bytes[8..16], [16, 0, 24, 0, 0, 0, 0, 0]);
                let family = if len < 2 { 0 } else { family };
                assert_eq!(word(&bytes, 16), u32::from(family));
                match (family, len) {
                    (2, 16..) => {
                        assert_eq!(bytes[20..28], [2, 3, 0, 0, 4, 5, 6, 7]);
                        assert_eq!(bytes[28..], [0; 12]);
                    }
                    (10, 24..) => {
                        assert_eq!(bytes[20..28], [2, 3, 0, 0, 8, 9, 10, 11]);
                        assert_eq!(
                            bytes[28..],
                            [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]
                        );
                    }
                    _ => assert_eq!(bytes[20..], [0; 20]),
                }
            }
        }
        Ok(())
    }

    /// A request may have no asynchronous data, and then has no address.
    #[test]
    fn connect_without_an_address() -> Result {
        let mut cmd: bindings::io_connect = pin_init::zeroed();
        cmd.addr_len = 16;

        let bytes = seen(Opcode::CONNECT, cmd, &mut [])?;
        assert_eq!(bytes[8..16], [16, 0, 24, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..], [0; 24]);
        Ok(())
    }

    /// No opcode has a size in C's table and no payload here, or the other way round.
    #[test]
    fn sizes_are_those_of_the_table() -> Result {
        for opcode in Opcode::all() {
            // Enough for every view: no length, no pointers.
            let bytes = seen(opcode, [0u64; 6], &mut [0; 128])?;

            assert_eq!(u16::from(bytes[10]), opcode.pdu_size());
        }
        assert_eq!(size_of::<FilterContext>(), 40);
        Ok(())
    }
}
