// SPDX-License-Identifier: GPL-2.0

//! Classic BPF programs that compute on a plain structure.
//!
//! Seccomp and io_uring let user space hand in classic BPF programs that read words of a small
//! structure instead of a packet. [`Program`] owns one such program, [`Checker`] says which
//! instructions the user of the program admits, and [`Program::run`] runs it.
//!
//! C headers: [`include/linux/filter.h`](srctree/include/linux/filter.h),
//! [`include/uapi/linux/filter.h`](srctree/include/uapi/linux/filter.h)

use crate::{
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    transmute::AsBytes,
    uaccess::UserPtr, //
};
use core::{
    marker::PhantomData,
    mem::size_of,
    ptr::NonNull, //
};

/// The most instructions a program may have: `BPF_MAXINSNS`.
pub const MAX_INSNS: u32 = bindings::BPF_MAXINSNS;

/// `BPF_LD | BPF_W | BPF_ABS`: loads a word of the packet into A.
const LD_W_ABS: u32 = bindings::BPF_LD | bindings::BPF_W | bindings::BPF_ABS;
/// `BPF_LDX | BPF_W | BPF_ABS`: loads a word of the context into A. Kernel-internal.
const LDX_W_ABS: u32 = bindings::BPF_LDX | bindings::BPF_W | bindings::BPF_ABS;
/// `BPF_LD | BPF_W | BPF_LEN`: loads the packet's length into A.
const LD_W_LEN: u32 = bindings::BPF_LD | bindings::BPF_W | bindings::BPF_LEN;
/// `BPF_LDX | BPF_W | BPF_LEN`: loads the packet's length into X.
const LDX_W_LEN: u32 = bindings::BPF_LDX | bindings::BPF_W | bindings::BPF_LEN;
/// `BPF_LD | BPF_IMM`: loads a constant into A.
const LD_IMM: u32 = bindings::BPF_LD | bindings::BPF_IMM;
/// `BPF_LDX | BPF_IMM`: loads a constant into X.
const LDX_IMM: u32 = bindings::BPF_LDX | bindings::BPF_IMM;
/// `BPF_LD | BPF_MEM`: loads a scratch word into A.
const LD_MEM: u32 = bindings::BPF_LD | bindings::BPF_MEM;
/// `BPF_LDX | BPF_MEM`: loads a scratch word into X.
const LDX_MEM: u32 = bindings::BPF_LDX | bindings::BPF_MEM;
/// `BPF_MISC | BPF_TAX`: copies A to X.
const TAX: u32 = bindings::BPF_MISC | bindings::BPF_TAX;
/// `BPF_MISC | BPF_TXA`: copies X to A.
const TXA: u32 = bindings::BPF_MISC | bindings::BPF_TXA;

/// The instruction classes, `BPF_CLASS(code)`.
const CLASS_MASK: u32 = 0x07;

/// What becomes of one instruction of a program from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// It stays as it is. Not for instructions that read a packet.
    Keep,
    /// A load of a packet's word becomes a load of the context's word at the same offset, which
    /// must be a multiple of four.
    LoadContext,
    /// A load of the packet's length becomes a load of this constant.
    LoadConstant(u32),
}

/// Says which instructions the programs of one user may contain.
///
/// The kernel's own checks of classic BPF (known codes, jumps that stay inside, scratch words
/// written before they are read, a `ret` at the end) come first and are not repeated here.
pub trait Checker {
    /// What the programs compute on.
    type Context: AsBytes;

    /// Decides on the instruction with this `code` and operand `k`.
    ///
    /// # Errors
    ///
    /// What creating the program shall fail with if it may not contain the instruction.
    fn check(code: u16, k: u32) -> Result<Action>;
}

/// Rewrites `code` and `k` as `action` says.
///
/// This does not trust the [`Checker`]: whatever that answers, no instruction is left that would
/// read anything but the `size` bytes of the context.
///
/// # Errors
///
/// [`EINVAL`] if `action` does not fit the instruction.
fn rewrite(code: u16, k: u32, action: Action, size: usize) -> Result<(u16, u32)> {
    let (code, k) = match (u32::from(code), action) {
        (LD_W_ABS, Action::LoadContext) => {
            let end = usize::try_from(k)?.checked_add(size_of::<u32>());
            if !k.is_multiple_of(4) || end.is_none_or(|end| end > size) {
                return Err(EINVAL);
            }
            (LDX_W_ABS, k)
        }
        (LD_W_LEN, Action::LoadConstant(value)) => (LD_IMM, value),
        (LDX_W_LEN, Action::LoadConstant(value)) => (LDX_IMM, value),
        (code, Action::Keep) => match code & CLASS_MASK {
            bindings::BPF_LD | bindings::BPF_LDX => match code {
                LD_IMM | LDX_IMM | LD_MEM | LDX_MEM => (code, k),
                _ => return Err(EINVAL),
            },
            bindings::BPF_MISC => match code {
                TAX | TXA => (code, k),
                _ => return Err(EINVAL),
            },
            _ => (code, k),
        },
        _ => return Err(EINVAL),
    };
    Ok((u16::try_from(code)?, k))
}

/// A program in classic BPF, checked by `C`, that computes 32 bits from a `C::Context`.
///
/// Its memory is charged to the memory cgroup of the task that creates it. Dropping it is possible
/// in any context: the program is freed by a work item.
///
/// # Invariants
///
/// `prog` was made by `bpf_prog_create_from_user` with `check_thunk::<C>` and is owned by this
/// object; of memory it reads only its own and `size_of::<C::Context>()` bytes from its context
/// pointer on.
///
/// # Examples
///
/// ```
/// use kernel::{
///     bpf::{Action, Checker, Program},
///     uaccess::UserPtr, //
/// };
///
/// /// Admits programs that return a constant.
/// struct Constant;
///
/// impl Checker for Constant {
///     type Context = [u32; 2];
///
///     fn check(code: u16, _k: u32) -> Result<Action> {
///         match code {
///             0x06 => Ok(Action::Keep), // ret k
///             _ => Err(EINVAL),
///         }
///     }
/// }
///
/// // A null pointer is refused before it is read.
/// let program = Program::<Constant>::from_user(UserPtr::from_addr(0), 1);
/// assert_eq!(program.err(), Some(EINVAL));
/// ```
pub struct Program<C> {
    prog: NonNull<bindings::bpf_prog>,
    checker: PhantomData<fn(C)>,
}

// SAFETY: A program is immutable, may run on several CPUs at once, and may be destroyed anywhere.
unsafe impl<C> Send for Program<C> {}

// SAFETY: As above.
unsafe impl<C> Sync for Program<C> {}

impl<C: Checker> Program<C> {
    /// Copies `len` instructions (`struct sock_filter`, eight bytes each) from user space, checks
    /// them, and makes a program of them.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if `insns` is null, `len` is zero or above [`MAX_INSNS`], or the kernel's own
    ///   checks refuse an instruction.
    /// - [`EFAULT`] if the instructions cannot be read.
    /// - [`ENOMEM`] if memory is short.
    /// - What [`Checker::check`] gives.
    /// - `ENOTSUPP` if the JIT compiler must be used and failed.
    pub fn from_user(insns: UserPtr, len: u16) -> Result<Self> {
        // Programs load aligned words, and some machines insist on that.
        const { assert!(align_of::<C::Context>() >= align_of::<u32>()) };

        let mut prog = core::ptr::null_mut();
        let mut fprog = bindings::sock_fprog {
            len,
            filter: insns.as_mut_ptr().cast(),
        };

        // SAFETY:
        // - `prog` and `fprog` are local variables, valid for writes and reads.
        // - `fprog.filter` is a user pointer, and is only used as such.
        // - `check_thunk` upholds what is expected of a `bpf_aux_classic_check_t`.
        to_result(unsafe {
            bindings::bpf_prog_create_from_user(
                &mut prog,
                &mut fprog,
                Some(check_thunk::<C>),
                false,
            )
        })?;

        // INVARIANT: `bpf_prog_create_from_user` succeeded, so that the program passed
        // `check_thunk` and is ours. `rewrite` left no instruction in it that reads the context
        // elsewhere than below `size_of::<C::Context>()`, and the kernel's checks confine all
        // other accesses to the program's scratch memory.
        Ok(Self {
            prog: NonNull::new(prog).ok_or(EINVAL)?,
            checker: PhantomData,
        })
    }

    /// Runs the program on `context`, and returns its result.
    ///
    /// May be called in task and softirq context.
    #[inline]
    pub fn run(&self, context: &C::Context) -> u32 {
        // SAFETY:
        // - By the type invariants, the program is valid, and reads at most
        //   `size_of::<C::Context>()` bytes of its context.
        // - `context` is valid for reads of that many bytes, all of which are initialised, as
        //   `C::Context` implements `AsBytes`.
        unsafe {
            bindings::bpf_prog_run_pin_on_cpu(
                self.prog.as_ptr(),
                core::ptr::from_ref(context).cast(),
            )
        }
    }
}

impl<C> Drop for Program<C> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the program is ours, and nobody runs it any more since
        // running borrows it.
        unsafe { bindings::bpf_prog_destroy(self.prog.as_ptr()) };
    }
}

/// Checks and rewrites the `len` instructions at `insns`, as a `bpf_aux_classic_check_t`.
///
/// # Safety
///
/// `insns` must be valid for reads and writes of `len` instructions, with no other access to them
/// meanwhile.
unsafe extern "C" fn check_thunk<C: Checker>(
    insns: *mut bindings::sock_filter,
    len: c_uint,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller guarantees `len` valid, exclusively accessed instructions.
        let insns = unsafe { core::slice::from_raw_parts_mut(insns, usize::try_from(len)?) };

        for insn in insns {
            let action = C::check(insn.code, insn.k)?;

            (insn.code, insn.k) = rewrite(insn.code, insn.k, action, size_of::<C::Context>())?;
        }
        Ok(0)
    })
}

#[cfg(CONFIG_RUST_BPF_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_bpf)]
mod tests {
    use super::*;

    /// `code` as the type that instructions have.
    fn narrow(code: u32) -> u16 {
        code.try_into().unwrap_or(u16::MAX)
    }

    #[test]
    fn context_loads_stay_inside() {
        let load = |k| rewrite(narrow(LD_W_ABS), k, Action::LoadContext, 40);

        assert_eq!(load(0), Ok((narrow(LDX_W_ABS), 0)));
        assert_eq!(load(36), Ok((narrow(LDX_W_ABS), 36)));
        assert_eq!(load(38), Err(EINVAL));
        assert_eq!(load(40), Err(EINVAL));
        assert_eq!(load(u32::MAX - 3), Err(EINVAL));
        assert_eq!(
            rewrite(narrow(LD_W_ABS), 4, Action::LoadContext, 7),
            Err(EINVAL)
        );
    }

    #[test]
    fn lengths_become_constants() {
        let load = |code| rewrite(narrow(code), 7, Action::LoadConstant(40), 40);

        assert_eq!(load(LD_W_LEN), Ok((narrow(LD_IMM), 40)));
        assert_eq!(load(LDX_W_LEN), Ok((narrow(LDX_IMM), 40)));
        assert_eq!(load(LD_IMM), Err(EINVAL));
    }

    /// Whatever a checker answers, no packet load survives.
    #[test]
    fn packet_loads_never_survive() {
        for code in 0..=u16::MAX {
            for action in [Action::Keep, Action::LoadContext, Action::LoadConstant(0)] {
                let Ok((code, _)) = rewrite(code, 0, action, 40) else {
                    continue;
                };
                let code = u32::from(code);
                let class = code & CLASS_MASK;

                if class == bindings::BPF_LD || class == bindings::BPF_LDX {
                    assert!(matches!(
                        code,
                        LD_IMM | LDX_IMM | LD_MEM | LDX_MEM | LDX_W_ABS
                    ));
                }
            }
        }
    }
}
