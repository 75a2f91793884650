// SPDX-License-Identifier: GPL-2.0

//! Classic BPF programs that compute on a plain structure.
//!
//! Seccomp and io_uring let user space hand in classic BPF programs that read words of a small
//! structure instead of a packet. [`Checker`] says which instructions the user of the programs
//! admits, [`read_program`] takes one from user space, [`Program`] owns one that was compiled, and
//! [`Program::run`] runs it. Between the two, the instructions are plain data, see [`insn`].
//!
//! C headers: [`include/linux/filter.h`](srctree/include/linux/filter.h),
//! [`include/uapi/linux/filter.h`](srctree/include/uapi/linux/filter.h)

pub mod insn;

pub use self::insn::Insn;

use crate::{
    alloc::{
        Flags,
        KVVec, //
    },
    bindings,
    error::{
        from_result,
        to_result, //
    },
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use core::{
    marker::PhantomData,
    mem::{
        offset_of,
        size_of, //
    },
    ptr::NonNull, //
};

// `Insn` is what C calls `struct sock_filter`.
const _: () = {
    assert!(size_of::<Insn>() == size_of::<bindings::sock_filter>());
    assert!(align_of::<Insn>() == align_of::<bindings::sock_filter>());
    assert!(offset_of!(Insn, code) == offset_of!(bindings::sock_filter, code));
    assert!(offset_of!(Insn, jt) == offset_of!(bindings::sock_filter, jt));
    assert!(offset_of!(Insn, jf) == offset_of!(bindings::sock_filter, jf));
    assert!(offset_of!(Insn, k) == offset_of!(bindings::sock_filter, k));
};

// SAFETY: The structure has no padding, as its size is the sum of its fields', and no interior
// mutability.
unsafe impl AsBytes for Insn {}

// SAFETY: All its fields are integers.
unsafe impl FromBytes for Insn {}

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

/// Copies the `len` instructions at `insns` from user space and checks them. May sleep.
///
/// The result is a valid program that `C` admits, and in which loads of the packet's length have
/// become loads of the constant that `C` gives for them.
///
/// # Errors
///
/// - [`EINVAL`] if `insns` is null, `len` is zero or above [`MAX_INSNS`], or the kernel's own
///   checks refuse an instruction.
/// - [`EFAULT`] if the instructions cannot be read.
/// - [`ENOMEM`] if memory is short.
/// - What [`Checker::check`] gives.
///
/// # Examples
///
/// ```
/// use kernel::{
///     bpf::{insn, read_program, Action, Checker, Insn, Program},
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
///             insn::RET_K => Ok(Action::Keep),
///             _ => Err(EINVAL),
///         }
///     }
/// }
///
/// // A null pointer is refused before it is read.
/// let user = read_program::<Constant>(UserPtr::from_addr(0), 1, GFP_KERNEL);
/// assert_eq!(user.err(), Some(EINVAL));
///
/// let program = Program::<Constant>::new(&[Insn::new(insn::RET_K, 7)])?;
/// assert_eq!(program.run(&[0, 0]), 7);
/// # Ok::<(), Error>(())
/// ```
pub fn read_program<C: Checker>(insns: UserPtr, len: u16, flags: Flags) -> Result<KVVec<Insn>> {
    let len = usize::from(len);

    if insns.as_mut_ptr().is_null() || !(1..=MAX_INSNS as usize).contains(&len) {
        return Err(EINVAL);
    }
    let mut program = KVVec::from_elem(Insn::default(), len, flags)?;

    UserSlice::new(insns, len * size_of::<Insn>())
        .reader()
        .read_slice(program.as_mut_slice().as_bytes_mut())?;
    // SAFETY: The vector is valid for reads of `len` instructions, which have the layout of C's,
    // and `len` is not zero, as `bpf_check_classic` expects.
    to_result(unsafe { bindings::bpf_check_classic(program.as_ptr().cast(), len as u32) })?;

    for insn in program.iter_mut() {
        let action = C::check(insn.code, insn.k)?;
        let (code, k) = rewrite(insn.code, insn.k, action, size_of::<C::Context>())?;

        // What reads the context has a code that only the compiler takes.
        if action != Action::LoadContext {
            (insn.code, insn.k) = (code, k);
        }
    }
    Ok(program)
}

/// A compiled program in classic BPF, checked by `C`, that computes 32 bits from a `C::Context`.
///
/// Its memory is charged to the memory cgroup of the task that creates it. Dropping it is possible
/// in any context: the program is freed by a work item.
///
/// # Invariants
///
/// `prog` was made by `bpf_prog_create_trans` with `check_thunk::<C>` and is owned by this object.
/// Of memory it reads only its own and `size_of::<C::Context>()` bytes from its context pointer on,
/// and it calls no functions.
pub struct Program<C> {
    prog: NonNull<bindings::bpf_prog>,
    checker: PhantomData<fn(C)>,
}

// SAFETY: A program is immutable, may run on several CPUs at once, and may be destroyed anywhere.
unsafe impl<C> Send for Program<C> {}

// SAFETY: A shared program can only be run, which writes to nothing but the stack of who does.
unsafe impl<C> Sync for Program<C> {}

impl<C: Checker> Program<C> {
    /// Checks instructions and compiles them. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there are none or more than [`MAX_INSNS`], or the kernel's own checks refuse
    ///   one.
    /// - [`ENOMEM`] if memory is short.
    /// - What [`Checker::check`] gives.
    /// - `ENOTSUPP` if the JIT compiler must be used and failed.
    pub fn new(insns: &[Insn]) -> Result<Self> {
        // Programs load aligned words, and some machines insist on that.
        const { assert!(align_of::<C::Context>() >= align_of::<u32>()) };

        let mut prog = core::ptr::null_mut();
        let mut fprog = bindings::sock_fprog_kern {
            len: u16::try_from(insns.len())?,
            filter: insns.as_ptr().cast_mut().cast(),
        };

        // SAFETY:
        // - `prog` and `fprog` are local variables, valid for writes and reads.
        // - `fprog.filter` is valid for reads of `fprog.len` instructions, and is only read.
        // - `check_thunk` upholds what is expected of a `bpf_aux_classic_check_t`.
        to_result(unsafe {
            bindings::bpf_prog_create_trans(&mut prog, &mut fprog, Some(check_thunk::<C>))
        })?;

        // INVARIANT: `bpf_prog_create_trans` succeeded, so that the program passed `check_thunk`
        // and is ours. `rewrite` left no instruction in it that reads the context elsewhere than
        // below `size_of::<C::Context>()`, and none of the packet loads that become calls; the
        // kernel's checks confine all other accesses to the program's scratch memory.
        Ok(Self {
            prog: NonNull::new(prog).ok_or(EINVAL)?,
            checker: PhantomData,
        })
    }

    /// Runs the program on `context`, and returns its result.
    ///
    /// May be called in any context. The program need not be kept on one CPU, nor in an RCU
    /// section, as others must: it touches nothing but its own stack and `context`, and `self`
    /// keeps it alive. Statistics of BPF do not count it, as it has no id to be found by.
    #[inline]
    pub fn run(&self, context: &C::Context) -> u32 {
        // SAFETY:
        // - By the type invariants, the program is valid, calls nothing, and reads at most
        //   `size_of::<C::Context>()` bytes of its context.
        // - `context` is valid for reads of that many bytes, all of which are initialised, as
        //   `C::Context` implements `AsBytes`.
        unsafe {
            bindings::bpf_prog_run_bare(self.prog.as_ptr(), core::ptr::from_ref(context).cast())
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

    /// Returns `code` as the type that instructions have.
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
