// SPDX-License-Identifier: GPL-2.0

//! The functions of filters and restrictions that C calls.
//!
//! Each function takes raw pointers, makes safe types of them, makes one call, and returns an
//! errno.
//!
//! Only functions of this file set the filters of rings and the restrictions of tasks, so that both
//! hold `Filters`. SAFETY comments rely on this as "this file sets all filters", or restrictions.

use crate::{
    filter::{
        self,
        context,
        Filters, //
    },
    report,
    restriction, //
};
use core::{
    mem::{
        offset_of,
        size_of, //
    },
    ptr::NonNull, //
};
use kernel::{
    bindings,
    error::from_result,
    ffi::{
        c_int,
        c_uint,
        c_void, //
    },
    io_uring::{
        denial::DeniedRequest,
        filter_set::FilterSet,
        request::Request,
        restriction::Restriction,
        ring::Ring,
        task::TaskRestriction,
        Opcode, //
    },
    prelude::*,
    seq_file::SeqFile,
    uaccess::UserPtr, //
};

const _: () = {
    type Context = bindings::io_uring_bpf_ctx;

    assert!(offset_of!(Context, user_data) == 0);
    assert!(offset_of!(Context, opcode) == context::OPCODE);
    assert!(offset_of!(Context, sqe_flags) == context::SQE_FLAGS);
    assert!(offset_of!(Context, pdu_size) == context::PDU_SIZE);
    assert!(offset_of!(Context, __bindgen_anon_1) == context::PAYLOAD);
    assert!(size_of::<Context>() == 4 * context::WORDS);
};

/// Returns zero if `req` may run, and [`EACCES`] if a filter denies it.
///
/// # Safety
///
/// - `filters` must be the ring's cached `bpf_filters`, and not null.
/// - `req` must be a request of that ring whose opcode was validated and whose `prep` succeeded,
///   and nobody else may write to it.
/// - The ring's `uring_lock` must be held.
#[export]
pub unsafe extern "C" fn __io_uring_run_bpf_filters(
    filters: *mut *mut bindings::io_bpf_filter,
    req: *mut bindings::io_kiocb,
) -> c_int {
    // SAFETY: The caller guarantees that the pointer is not null. The ring took it from its set of
    // filters, to which it holds a reference. Set and cache are only replaced together, under the
    // lock that the caller holds.
    let filters: &Filters = unsafe { FilterSet::contents_from_raw(filters) };
    // SAFETY: The caller guarantees that the request is prepared, and that nobody else writes to
    // it.
    let request = unsafe { Request::from_raw(req) };

    from_result(|| filter::run(filters, request).map(|()| 0))
}

/// Adds the filter that `arg` describes to those of the ring that `res` belongs to.
///
/// # Safety
///
/// - `res` must be valid and not null.
/// - The ring's `uring_lock` must be held.
/// - The caller must renew the ring's cached `bpf_filters` before it releases the lock.
#[export]
pub unsafe extern "C" fn io_register_bpf_filter(
    res: *mut bindings::io_restriction,
    arg: *mut bindings::io_uring_bpf,
) -> c_int {
    from_result(|| {
        let res = NonNull::new(res).ok_or(EINVAL)?;
        // SAFETY:
        // - The caller guarantees that `res` is valid, and holds the lock, so that nobody else
        //   accesses it.
        // - This file sets all filters.
        // - The caller renews the ring's copy of the filters before others may use it.
        let owner = unsafe { Restriction::from_raw_mut(res) };
        let set = filter::register(
            owner.filters(),
            UserPtr::from_ptr(arg.cast()),
            filter::Owner::Ring,
        )?;

        owner.set_filters(set);
        Ok(0)
    })
}

/// Drops the filters of a ring that is being freed. May be called in any context.
///
/// # Safety
///
/// - `res` must be valid and not null, and nobody else may access it.
/// - The ring must have no requests and get none, so that its cached `bpf_filters` is used no more.
#[export]
pub unsafe extern "C" fn io_put_bpf_filters(res: *mut bindings::io_restriction) {
    if let Some(res) = NonNull::new(res) {
        // SAFETY:
        // - The caller guarantees that `res` is valid, and that nobody else accesses it.
        // - This file sets all filters.
        // - The ring runs no more requests, so that its copy of the filters need not be renewed.
        let owner = unsafe { Restriction::<Filters>::from_raw_mut(res) };

        drop(owner.take_filters());
    }
}

/// Registers the list of `nr_args` restrictions at `arg` with a ring.
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
        // SAFETY: The caller guarantees that the ring is valid and its lock held, and this is the
        // only handle. This file sets all filters.
        let mut ring = unsafe { Ring::from_raw(ctx) };

        restriction::register_ring(&mut ring, UserPtr::from_ptr(arg), nr_args).map(|()| 0)
    })
}

/// Returns whether `ctx`, a ring, refuses every request with `opcode`.
///
/// # Safety
///
/// `ctx` must be a valid ring, not null, whose `uring_lock` is held.
#[export]
pub unsafe extern "C" fn io_ring_refuses(ctx: *mut bindings::io_ring_ctx, opcode: c_uint) -> bool {
    let (Some(ctx), Some(opcode)) = (NonNull::new(ctx), Opcode::new(opcode)) else {
        return false;
    };
    // SAFETY: The caller guarantees that the ring is valid and its lock held, and this is the only
    // handle. This file sets all filters.
    let ring = unsafe { Ring::from_raw(ctx) };

    restriction::refuses(ring.restriction(), opcode)
}

/// Registers the restrictions that `arg` describes with the current task.
///
/// # Safety
///
/// Only C may call this, in a system call, so that no other [`TaskRestriction`] exists for the
/// current task.
#[export]
pub unsafe extern "C" fn io_register_restrictions_task(arg: *mut c_void, nr_args: c_uint) -> c_int {
    // SAFETY: The caller guarantees that there is no other handle. This file sets all restrictions
    // of tasks.
    let mut task = unsafe { TaskRestriction::current() };

    from_result(|| {
        restriction::register_task(&mut task, UserPtr::from_ptr(arg), nr_args).map(|()| 0)
    })
}

/// Adds the filter that `arg` describes to those of the current task.
///
/// # Safety
///
/// As for [`io_register_restrictions_task`].
#[export]
pub unsafe extern "C" fn io_register_bpf_filter_task(arg: *mut c_void, nr_args: c_uint) -> c_int {
    // SAFETY: The caller guarantees that there is no other handle. This file sets all restrictions
    // of tasks.
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
    // SAFETY: The caller guarantees that there is no other handle. This file sets all restrictions
    // of tasks.
    let task = unsafe { TaskRestriction::current() };

    restriction::allows_register(&task, opcode)
}

/// Returns zero if the restrictions of the current task allow a request with `opcode`, `user_data`
/// and no flags, and [`EACCES`] if not. The request is one that the task makes without a ring.
///
/// # Safety
///
/// As for [`io_register_restrictions_task`].
#[export]
pub unsafe extern "C" fn io_task_check_restriction(opcode: u8, user_data: u64) -> c_int {
    // SAFETY: The caller guarantees that there is no other handle. This file sets all restrictions
    // of tasks.
    let task = unsafe { TaskRestriction::current() };

    from_result(|| {
        let opcode = Opcode::new(opcode.into()).ok_or(EINVAL)?;

        restriction::check_request(&task, &Request::without_ring(opcode, user_data)).map(|()| 0)
    })
}

/// Returns zero if the filters of the current task allow a request with `opcode`, `user_data` and
/// no flags or arguments, and [`EACCES`] if not. The request is one that the task makes without a
/// ring.
///
/// # Safety
///
/// As for [`io_register_restrictions_task`].
#[export]
pub unsafe extern "C" fn io_task_run_filters(opcode: u8, user_data: u64) -> c_int {
    // SAFETY: The caller guarantees that there is no other handle. This file sets all restrictions
    // of tasks.
    let task = unsafe { TaskRestriction::current() };

    from_result(|| {
        let opcode = Opcode::new(opcode.into()).ok_or(EINVAL)?;

        restriction::filter_request(&task, &Request::without_ring(opcode, user_data)).map(|()| 0)
    })
}

/// Traces that the restrictions of `ctx` deny a request with `user_data`, `opcode` and `flags`.
///
/// # Safety
///
/// `ctx` must be a valid ring, not null, whose `uring_lock` is held.
#[export]
pub unsafe extern "C" fn __io_trace_restricted(
    ctx: *mut bindings::io_ring_ctx,
    user_data: u64,
    opcode: u8,
    flags: u8,
) {
    let (Some(ctx), Some(opcode)) = (NonNull::new(ctx), Opcode::new(opcode.into())) else {
        return;
    };
    // SAFETY: The caller guarantees that the ring is valid and its lock held, and this is the only
    // handle. This file sets all filters.
    let ring = unsafe { Ring::<Filters>::from_raw(ctx) };

    ring.trace_denied(&DeniedRequest {
        opcode,
        flags,
        user_data,
        denial: restriction::denial(&ring.restriction().rules(), opcode),
    });
}

/// Traces that the filters of `ctx` deny `req`.
///
/// # Safety
///
/// - `ctx` must be a valid ring, not null, whose `uring_lock` is held.
/// - `req` must be a request of that ring whose opcode was validated and whose `prep` succeeded,
///   and nobody else may write to it.
#[export]
pub unsafe extern "C" fn __io_trace_filtered(
    ctx: *mut bindings::io_ring_ctx,
    req: *mut bindings::io_kiocb,
) {
    let Some(ctx) = NonNull::new(ctx) else {
        return;
    };
    // SAFETY: The caller guarantees that the ring is valid and its lock held, and this is the only
    // handle. This file sets all filters.
    let ring = unsafe { Ring::<Filters>::from_raw(ctx) };
    // SAFETY: The caller guarantees that the request is prepared, and that nobody else writes to
    // it.
    let request = unsafe { Request::from_raw(req) };

    if let Some(set) = ring.restriction().filters() {
        ring.trace_denied(&filter::denied(set, request));
    }
}

/// Writes to `m`, the fdinfo of `ctx`, what that ring refuses.
///
/// # Safety
///
/// - `ctx` must be a valid ring, not null, whose `uring_lock` is held.
/// - `m` must be valid, and nobody else may access it.
#[export]
pub unsafe extern "C" fn io_show_restrictions(
    ctx: *mut bindings::io_ring_ctx,
    m: *mut bindings::seq_file,
) {
    let Some(ctx) = NonNull::new(ctx) else {
        return;
    };
    // SAFETY: The caller guarantees that the ring is valid and its lock held, and this is the only
    // handle. This file sets all filters.
    let ring = unsafe { Ring::from_raw(ctx) };
    // SAFETY: The caller guarantees that `m` is valid, and that nobody else accesses it.
    let out = unsafe { SeqFile::from_raw(m) };

    report::show(out, ring.restriction());
}

/// Gives `ctx`, a ring that is being created, the restrictions of the task that creates it.
///
/// # Safety
///
/// - `ctx` must be a valid ring, not null, that has no restrictions and is not published yet.
/// - `src` must be the current task's `io_uring_restrict`, not null.
#[export]
pub unsafe extern "C" fn io_ctx_restriction_clone(
    ctx: *mut bindings::io_ring_ctx,
    src: *mut bindings::io_restriction,
) {
    if let (Some(ctx), Some(src)) = (NonNull::new(ctx), NonNull::new(src)) {
        // SAFETY: The caller guarantees that the ring is valid and not published, and that the
        // restrictions are those of the current task, which never change. This file sets all
        // filters.
        let (mut ring, src) =
            unsafe { (Ring::<Filters>::from_raw(ctx), Restriction::from_raw(src)) };

        ring.inherit(src);
    }
}

/// Makes `tsk`, a child that is being created, share the restrictions of the current task.
///
/// Always returns zero. In C, this can fail, because it allocates a copy.
///
/// # Safety
///
/// `tsk` must be a valid task that does not run yet, and its `io_uring_restrict` must be a copy of
/// the current task's.
#[export]
pub unsafe extern "C" fn __io_uring_fork(tsk: *mut bindings::task_struct) -> c_int {
    if let Some(child) = NonNull::new(tsk) {
        // SAFETY: The caller guarantees that the child does not run yet, and that its pointer is a
        // copy of the current task's. This file sets all restrictions of tasks.
        unsafe { TaskRestriction::<Filters>::inherit(child) };
    }
    0
}

/// Drops the restrictions of a task that has ended or never ran. May be called in any context.
///
/// # Safety
///
/// `tsk` must be a valid task, not null, that nobody else accesses.
#[export]
pub unsafe extern "C" fn io_task_restriction_free(tsk: *mut bindings::task_struct) {
    if let Some(task) = NonNull::new(tsk) {
        // SAFETY: The caller guarantees that the task is valid and that nobody else accesses it.
        // This file sets all restrictions of tasks.
        let mut task = unsafe { TaskRestriction::<Filters>::from_raw(task) };

        drop(task.take());
    }
}

#[cfg(CONFIG_IO_URING_RS_KUNIT_TEST)]
#[kernel::macros::kunit_tests(io_uring_payload)]
mod tests {
    use super::*;
    use crate::filter::FilterProgram;
    use kernel::bpf::{
        insn,
        Insn,
        Load,
        Loads, //
    };

    /// Programs that return the words of the context of requests with an opcode.
    struct Words {
        opcode: Opcode,
        programs: KVec<FilterProgram>,
    }

    impl Words {
        fn new(opcode: Opcode) -> Result<Self> {
            let mut programs = KVec::new();

            for offset in (0..4 * context::WORDS as u32).step_by(4) {
                let program = [
                    Insn::new(insn::LD_ABS, offset),
                    Insn::new(insn::RET_A, 0), //
                ];

                programs.push(FilterProgram::new(&program, opcode)?, GFP_KERNEL)?;
            }
            Ok(Self { opcode, programs })
        }

        /// Returns the context that filters see of a prepared request with the arguments `cmd` and
        /// the asynchronous data `data`, if that is not empty.
        fn seen<T>(&self, cmd: T, data: &mut [u8]) -> Result<[u8; 40]> {
            let mut request: KBox<bindings::io_kiocb> =
                KBox::init(pin_init::init_zeroed(), GFP_KERNEL)?;
            let mut bytes = [0; 40];

            request.opcode = self.opcode.as_u8();
            if !data.is_empty() {
                request.async_data = data.as_mut_ptr().cast();
            }
            // SAFETY: The field has room for the arguments of every opcode, and only this function
            // has the request.
            unsafe { (&raw mut request.__bindgen_anon_1).cast::<T>().write(cmd) };
            // SAFETY: The request is as its `prep` would leave it, and only this function has it.
            let request = unsafe { Request::from_raw(&raw mut *request) };

            for (program, to) in self.programs.iter().zip(bytes.chunks_mut(4)) {
                to.copy_from_slice(&program.run(request, &mut None).to_ne_bytes());
            }
            Ok(bytes)
        }
    }

    /// Returns the word of the context at `offset`.
    fn word(bytes: &[u8; 40], offset: usize) -> u32 {
        bytes
            .get(offset..)
            .and_then(|rest| rest.first_chunk().copied())
            .map_or(u32::MAX, u32::from_ne_bytes)
    }

    #[test]
    fn socket_is_shown_without_type_flags() -> Result {
        let mut cmd: bindings::io_socket = pin_init::zeroed();
        cmd.domain = -2;
        cmd.type_ = 0o2000005;
        cmd.protocol = 0x10203040;

        let bytes = Words::new(Opcode::SOCKET)?.seen(cmd, &mut [])?;
        assert_eq!(word(&bytes, 8).to_ne_bytes(), [45, 0, 12, 0]);
        assert_eq!(word(&bytes, 16), 0xffff_fffe);
        assert_eq!(word(&bytes, 20), 5);
        assert_eq!(word(&bytes, 24), 0x10203040);
        assert_eq!(bytes[28..], [0; 12]);
        Ok(())
    }

    #[test]
    fn open_how_is_shown() -> Result {
        for opcode in [Opcode::OPENAT, Opcode::OPENAT2] {
            let mut cmd: bindings::io_open = pin_init::zeroed();
            cmd.how.flags = 0x0102_0304_0506_0708;
            cmd.how.mode = 0x1112_1314_1516_1718;
            cmd.how.resolve = 0x2122_2324_2526_2728;

            let bytes = Words::new(opcode)?.seen(cmd, &mut [])?;
            assert_eq!(bytes[8..16], [opcode.as_u8(), 0, 24, 0, 0, 0, 0, 0]);
            assert_eq!(bytes[16..24], 0x0102_0304_0506_0708u64.to_ne_bytes());
            assert_eq!(bytes[24..32], 0x1112_1314_1516_1718u64.to_ne_bytes());
            assert_eq!(bytes[32..40], 0x2122_2324_2526_2728u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Checks that bytes past the length that user space passed make no difference.
    #[test]
    fn connect_ignores_bytes_past_addr_len() -> Result {
        let words = Words::new(Opcode::CONNECT)?;

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
                    *result = words.seen(cmd, &mut address)?;
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

    /// Checks that a request without asynchronous data has no address.
    #[test]
    fn connect_without_async_data_shows_no_address() -> Result {
        let mut cmd: bindings::io_connect = pin_init::zeroed();
        cmd.addr_len = 16;

        let bytes = Words::new(Opcode::CONNECT)?.seen(cmd, &mut [])?;
        assert_eq!(bytes[8..16], [16, 0, 24, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..], [0; 24]);
        Ok(())
    }

    /// The arguments that filters see of each opcode are as long as C's table says.
    #[test]
    fn payload_sizes_match_c_table() {
        for opcode in Opcode::all() {
            let words = (context::PAYLOAD..4 * context::WORDS)
                .step_by(4)
                .filter(|&offset| Request::load(opcode, offset as u32) != Some(Load::Constant(0)));

            assert_eq!(4 * words.count(), usize::from(opcode.pdu_size()));
        }
    }
}
