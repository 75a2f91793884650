// SPDX-License-Identifier: GPL-2.0

//! Classic BPF programs that load from a plain structure.
//!
//! Seccomp and io_uring let user space pass in classic BPF programs that load words of a small
//! structure, called the context, instead of a packet. A [`Checker`] decides which instructions
//! such programs may contain, [`read_program`] copies a program from user space, [`Program`] owns a
//! compiled program, and [`Program::run`] runs it. Until a program is compiled, its instructions
//! are plain data: see [`insn`].
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

// `Insn` has the layout of C's `struct sock_filter`.
const _: () = {
    assert!(size_of::<Insn>() == size_of::<bindings::sock_filter>());
    assert!(align_of::<Insn>() == align_of::<bindings::sock_filter>());
    assert!(offset_of!(Insn, code) == offset_of!(bindings::sock_filter, code));
    assert!(offset_of!(Insn, jt) == offset_of!(bindings::sock_filter, jt));
    assert!(offset_of!(Insn, jf) == offset_of!(bindings::sock_filter, jf));
    assert!(offset_of!(Insn, k) == offset_of!(bindings::sock_filter, k));
};

// SAFETY: The structure has no padding, as its size is the sum of the sizes of its fields, and no
// interior mutability.
unsafe impl AsBytes for Insn {}

// SAFETY: All its fields are integers.
unsafe impl FromBytes for Insn {}

/// The maximum number of instructions of a program: `BPF_MAXINSNS`.
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

/// The bits of a code that are the instruction class: `BPF_CLASS(code)`.
const CLASS_MASK: u32 = 0x07;

/// The way to handle one instruction of a program from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keeps the instruction. Not for instructions that read a packet.
    Keep,
    /// Replaces a load of a packet word by a load of the word of the context at the same offset,
    /// which must be a multiple of four.
    LoadContext,
    /// Replaces a load of the packet's length by a load of this constant.
    LoadConstant(u32),
}

/// A policy: it decides which instructions the programs of one subsystem may contain.
///
/// The kernel's own checks of classic BPF come first and are not repeated here: codes are known,
/// jumps stay inside the program, scratch words are written before they are read, and the last
/// instruction is a `ret`.
pub trait Checker {
    /// The structure that the programs load from.
    type Context: AsBytes;

    /// Decides on the instruction with this `code` and operand `k`.
    ///
    /// # Errors
    ///
    /// If the instruction is not allowed, creating the program fails with the error that this
    /// returns.
    fn check(code: u16, k: u32) -> Result<Action>;
}

/// Rewrites `code` and `k` as `action` says.
///
/// This does not trust the [`Checker`]: whatever it decides, no instruction is left that would read
/// anything but the `size` bytes of the context.
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
/// The result is a valid program that `C` allows. Loads of the packet's length have been replaced
/// by loads of the constant that `C` returns for them.
///
/// # Errors
///
/// - [`EINVAL`] if `insns` is null, `len` is zero or above [`MAX_INSNS`], or the kernel's own
///   checks refuse an instruction.
/// - [`EFAULT`] if the instructions cannot be read.
/// - [`ENOMEM`] if memory is short.
/// - The errors of [`Checker::check`].
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
    // SAFETY: The vector is valid for reads of `len` instructions, which have the layout of C's.
    // `len` is not zero, as `bpf_check_classic` requires.
    to_result(unsafe { bindings::bpf_check_classic(program.as_ptr().cast(), len as u32) })?;

    for insn in program.iter_mut() {
        let action = C::check(insn.code, insn.k)?;
        let (code, k) = rewrite(insn.code, insn.k, action, size_of::<C::Context>())?;

        // Loads of the context have a code that `bpf_prog_create_trans` refuses: they are rewritten
        // only when the program is compiled.
        if action != Action::LoadContext {
            (insn.code, insn.k) = (code, k);
        }
    }
    Ok(program)
}

/// A compiled classic BPF program that `C` has checked. It computes a 32-bit value from a
/// `C::Context`.
///
/// Its memory is charged to the memory cgroup of the task that creates it. May be dropped in any
/// context: a work item frees the program.
///
/// # Invariants
///
/// - `prog` was created by `bpf_prog_create_trans` with `check_thunk::<C>`, and this object owns
///   it.
/// - The program reads only its own memory, and `size_of::<C::Context>()` bytes from its context
///   pointer on. It calls no functions.
pub struct Program<C> {
    prog: NonNull<bindings::bpf_prog>,
    checker: PhantomData<fn(C)>,
}

// SAFETY: A program is immutable, may run on several CPUs at once, and may be destroyed in any
// context.
unsafe impl<C> Send for Program<C> {}

// SAFETY: A shared program can only be run, which writes only to the stack of the caller.
unsafe impl<C> Sync for Program<C> {}

impl<C: Checker> Program<C> {
    /// Checks instructions and compiles them. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there are no instructions or more than [`MAX_INSNS`], or the kernel's own
    ///   checks refuse one.
    /// - [`ENOMEM`] if memory is short.
    /// - The errors of [`Checker::check`].
    /// - `ENOTSUPP` if the kernel must use the JIT compiler and it failed.
    pub fn new(insns: &[Insn]) -> Result<Self> {
        // Programs load aligned words, and some machines fault on others.
        const { assert!(align_of::<C::Context>() >= align_of::<u32>()) };

        let mut prog = core::ptr::null_mut();
        let mut fprog = bindings::sock_fprog_kern {
            len: u16::try_from(insns.len())?,
            filter: insns.as_ptr().cast_mut().cast(),
        };

        // SAFETY:
        // - `prog` and `fprog` are local variables, valid for writes and reads.
        // - `fprog.filter` is valid for reads of `fprog.len` instructions, and is only read.
        // - `check_thunk` does what a `bpf_aux_classic_check_t` must do.
        to_result(unsafe {
            bindings::bpf_prog_create_trans(&mut prog, &mut fprog, Some(check_thunk::<C>))
        })?;

        // INVARIANT: `bpf_prog_create_trans` succeeded, so that the program passed `check_thunk`
        // and belongs to this function.
        // - Because of `rewrite`, the program reads no context beyond `size_of::<C::Context>()`,
        //   and has none of the packet loads that become calls.
        // - The kernel's checks confine all other accesses to the program's scratch memory.
        Ok(Self {
            prog: NonNull::new(prog).ok_or(EINVAL)?,
            checker: PhantomData,
        })
    }

    /// Runs the program on `context` and returns its result.
    ///
    /// May be called in any context. Other BPF programs must be kept on one CPU and in an RCU
    /// read-side section. This is not needed here: the program accesses only its own stack and
    /// `context`, and `self` keeps it alive. BPF statistics do not count it, as it has no id under
    /// which they could be queried.
    #[inline]
    pub fn run(&self, context: &C::Context) -> u32 {
        // SAFETY:
        // - By the type invariants, the program is valid, calls nothing, and reads at most
        //   `size_of::<C::Context>()` bytes of its context.
        // - `context` is valid for reads of that many bytes, all of which are initialised, as
        //   `C::Context` implements `AsBytes`.
        unsafe {
            bindings::bpf_prog_run_no_stats(self.prog.as_ptr(), core::ptr::from_ref(context).cast())
        }
    }
}

impl<C> Drop for Program<C> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this object owns the program. Nobody runs it any more,
        // since running borrows it.
        unsafe { bindings::bpf_prog_destroy(self.prog.as_ptr()) };
    }
}

/// Checks and rewrites the `len` instructions at `insns`, as a `bpf_aux_classic_check_t`.
///
/// # Safety
///
/// `insns` must be valid for reads and writes of `len` instructions, and nobody else may access
/// them meanwhile.
unsafe extern "C" fn check_thunk<C: Checker>(
    insns: *mut bindings::sock_filter,
    len: c_uint,
) -> c_int {
    from_result(|| {
        // SAFETY: The caller guarantees that there are `len` valid instructions, which nobody else
        // accesses.
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

    /// Converts `code` to the type that codes of instructions have.
    fn as_code(code: u32) -> u16 {
        code.try_into().unwrap_or(u16::MAX)
    }

    #[test]
    fn context_loads_outside_are_refused() {
        let load = |k| rewrite(as_code(LD_W_ABS), k, Action::LoadContext, 40);

        assert_eq!(load(0), Ok((as_code(LDX_W_ABS), 0)));
        assert_eq!(load(36), Ok((as_code(LDX_W_ABS), 36)));
        assert_eq!(load(38), Err(EINVAL));
        assert_eq!(load(40), Err(EINVAL));
        assert_eq!(load(u32::MAX - 3), Err(EINVAL));
        assert_eq!(
            rewrite(as_code(LD_W_ABS), 4, Action::LoadContext, 7),
            Err(EINVAL)
        );
    }

    #[test]
    fn length_loads_become_constants() {
        let load = |code| rewrite(as_code(code), 7, Action::LoadConstant(40), 40);

        assert_eq!(load(LD_W_LEN), Ok((as_code(LD_IMM), 40)));
        assert_eq!(load(LDX_W_LEN), Ok((as_code(LDX_IMM), 40)));
        assert_eq!(load(LD_IMM), Err(EINVAL));
    }

    /// Whatever a checker decides, no load of a packet is left.
    #[test]
    fn no_packet_load_remains() {
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
