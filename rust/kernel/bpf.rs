// SPDX-License-Identifier: GPL-2.0

//! Classic BPF programs that load from an object.
//!
//! Seccomp and io_uring let user space pass in classic BPF programs that load words of a small
//! structure, called the context, instead of a packet. A [`Checker`] decides which instructions
//! such programs may contain, and [`read_program`] copies a program from user space. Until a
//! program is compiled, its instructions are plain data: see [`insn`].
//!
//! [`Program`] owns a compiled program, and [`Program::run`] runs it on an object. The context need
//! not exist in memory: the object says by [`Loads`] from which of its fields the words of the
//! context come, and [`mod@translate`] makes eBPF of a program that loads these.
//!
//! C headers: [`include/linux/filter.h`](srctree/include/linux/filter.h),
//! [`include/uapi/linux/filter.h`](srctree/include/uapi/linux/filter.h)

pub mod exemptions;
pub mod insn;
pub mod translate;

pub use self::{
    insn::Insn,
    translate::{
        Field,
        Load, //
    }, //
};

use crate::{
    alloc::{
        Flags,
        KVVec, //
    },
    bindings,
    error::to_result,
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
        size_of,
        size_of_val, //
    },
    ptr::NonNull, //
};
use translate::{
    stack_size,
    translate,
    Ebpf,
    EXPANSION_MAX,
    PROLOGUE_MAX, //
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

// `Ebpf` has the layout of C's `struct bpf_insn`, whose registers are in one byte.
const _: () = {
    assert!(size_of::<Ebpf>() == size_of::<bindings::bpf_insn>());
    assert!(align_of::<Ebpf>() == align_of::<bindings::bpf_insn>());
};

// SAFETY: The structure has no padding, as its size is the sum of the sizes of its fields, and no
// interior mutability.
unsafe impl AsBytes for Insn {}

// SAFETY: All its fields are integers.
unsafe impl FromBytes for Insn {}

/// The maximum number of instructions of a program: `BPF_MAXINSNS`.
pub const MAX_INSNS: u32 = bindings::BPF_MAXINSNS;

/// The number of instructions of which the positions fit on the stack, two bytes each.
const FEW: usize = 32;

/// The way to handle one instruction of a program from user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Keeps the instruction. A load of a word of the packet loads the word of the context.
    Keep,
    /// Replaces a load of the packet's length by a load of this constant.
    LoadConstant(u32),
}

/// A policy: it decides which instructions the programs of one subsystem may contain.
///
/// The kernel's own checks of classic BPF come first and are not repeated here: codes are known,
/// jumps stay inside the program, scratch words are written before they are read, and the last
/// instruction is a `ret`.
pub trait Checker {
    /// Decides on the instruction with this `code` and operand `k`.
    ///
    /// # Errors
    ///
    /// If the instruction is not allowed, reading the program fails with the error that this
    /// returns.
    fn check(code: u16, k: u32) -> Result<Action>;
}

/// An object that programs run on.
///
/// # Safety
///
/// Each [`Field`] that [`Loads::load`] returns must be inside a `Self` and aligned to its size, and
/// nobody may write to it while there is a reference to the object. If the field is not
/// initialised, the program gets any value: it runs outside of what the compiler knows.
pub unsafe trait Loads {
    /// The value that the loads of a program depend on.
    type Layout: Copy;

    /// Returns the way to load the word at `offset` of the context, or [`None`] if there is no such
    /// word.
    fn load(layout: Self::Layout, offset: u32) -> Option<Load>;
}

/// Checks `program` as the kernel checks all classic programs.
///
/// # Errors
///
/// - [`EINVAL`] if there are no instructions or more than [`MAX_INSNS`], or one is refused.
/// - [`ENOMEM`] if memory is short.
fn check_classic(program: &[Insn]) -> Result {
    if !(1..=MAX_INSNS as usize).contains(&program.len()) {
        return Err(EINVAL);
    }
    // SAFETY: The slice is valid for reads of its instructions, which have the layout of C's. There
    // is one at least, as `bpf_check_classic` requires.
    to_result(unsafe { bindings::bpf_check_classic(program.as_ptr().cast(), program.len() as u32) })
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
///     bpf::{insn, read_program, Action, Checker},
///     uaccess::UserPtr, //
/// };
///
/// /// Admits programs that return a constant.
/// struct Constant;
///
/// impl Checker for Constant {
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
    check_classic(&program)?;
    apply::<C>(&mut program)?;
    Ok(program)
}

/// Asks `C` about each instruction, and does what it says.
///
/// # Errors
///
/// [`EINVAL`] if `C` has a constant for something else than a load of the packet's length, and the
/// errors of [`Checker::check`].
fn apply<C: Checker>(program: &mut [Insn]) -> Result {
    for insn in program {
        insn.code = match (C::check(insn.code, insn.k)?, insn.code) {
            (Action::Keep, code) => code,
            (Action::LoadConstant(value), insn::LD_LEN) => {
                insn.k = value;
                insn::LD_IMM
            }
            (Action::LoadConstant(value), insn::LDX_LEN) => {
                insn.k = value;
                insn::LDX_IMM
            }
            (Action::LoadConstant(_), _) => return Err(EINVAL),
        };
    }
    Ok(())
}

/// A compiled classic BPF program, which computes a 32-bit value from a `T`.
///
/// Its memory is charged to the memory cgroup of the task that creates it. May be dropped in any
/// context: a work item frees the program.
///
/// # Invariants
///
/// - `prog` was created by `bpf_prog_alloc_no_stats` and completed by `bpf_prog_select_runtime`,
///   and this object owns it.
/// - The program reads only its own memory and fields of the object that it runs on, as
///   [`Loads::load`] describes them. It calls no functions.
///
/// # Examples
///
/// ```
/// use kernel::bpf::{insn, Field, Insn, Load, Loads, Program};
///
/// #[repr(transparent)]
/// struct Number(u32);
///
/// // SAFETY: A number has four bytes, which are aligned and initialised.
/// unsafe impl Loads for Number {
///     type Layout = ();
///
///     fn load(_: (), offset: u32) -> Option<Load> {
///         (offset == 0).then_some(Load::Field(const { Field::word(0) }))
///     }
/// }
///
/// let load = Insn::new(insn::LD_ABS, 0);
/// let program = Program::<Number>::new(&[load, Insn::new(insn::RET_A, 0)], ())?;
/// assert_eq!(program.run(&Number(7)), 7);
/// # Ok::<(), Error>(())
/// ```
pub struct Program<T> {
    prog: NonNull<bindings::bpf_prog>,
    object: PhantomData<fn(&T)>,
}

// SAFETY: A program is immutable, may run on several CPUs at once, and may be destroyed in any
// context.
unsafe impl<T> Send for Program<T> {}

// SAFETY: A shared program can only be run, which writes only to the stack of the caller.
unsafe impl<T> Sync for Program<T> {}

impl<T: Loads> Program<T> {
    /// Checks instructions and compiles them. May sleep.
    ///
    /// # Errors
    ///
    /// - [`EINVAL`] if there are no instructions or more than [`MAX_INSNS`], if the kernel's own
    ///   checks refuse one, or if one loads a word that is not in `layout`.
    /// - [`ENOMEM`] if memory is short.
    /// - `ENOTSUPP` if the kernel must use the JIT compiler and it failed.
    pub fn new(insns: &[Insn], layout: T::Layout) -> Result<Self> {
        check_classic(insns)?;

        let max = PROLOGUE_MAX + EXPANSION_MAX * insns.len();
        // Most programs are short, and need no memory for this.
        let mut few = [0; FEW];
        let mut many;
        let starts = match few.get_mut(..insns.len()) {
            Some(starts) => starts,
            None => {
                many = KVVec::from_elem(0, insns.len(), GFP_KERNEL)?;
                &mut many
            }
        };
        let mut translated = KVVec::with_capacity(max, GFP_KERNEL)?;

        translate(
            insns,
            |offset| T::load(layout, offset),
            starts,
            |insn| translated.push_within_capacity(insn).ok(),
        )
        .ok_or(EINVAL)?;
        // INVARIANT: The instructions are a translation of ones that the kernel has checked.
        // - The only loads of the object are those that `load` describes.
        // - The kernel's checks confine all other accesses to scratch words, for which there is a
        //   stack.
        Ok(Self {
            prog: compile(&translated, stack_size(insns))?,
            object: PhantomData,
        })
    }

    /// Runs the program on `object` and returns its result.
    ///
    /// May be called in any context. Other BPF programs must be kept on one CPU and in an RCU
    /// read-side section. This is not needed here: the program accesses only its own stack and
    /// `object`, and `self` keeps it alive. BPF statistics do not count it, as it has no id under
    /// which they could be queried.
    #[inline]
    pub fn run(&self, object: &T) -> u32 {
        // SAFETY:
        // - By the type invariants, the program is valid, calls nothing, and reads no more of the
        //   object than `T` says.
        // - As `T` implements `Loads`, these fields are in `object`, and nobody writes to them.
        unsafe {
            bindings::bpf_prog_run_no_stats(self.prog.as_ptr(), core::ptr::from_ref(object).cast())
        }
    }
}

/// Compiles `insns`, which need `stack_size` bytes of stack. Returns a program that the caller
/// owns.
///
/// The result counts as a classic program, as those do that the kernel translates: the mitigations
/// that are for programs of unprivileged users apply.
///
/// # Errors
///
/// - [`ENOMEM`] if memory is short.
/// - `ENOTSUPP` if the kernel must use the JIT compiler and it failed.
fn compile(insns: &[Ebpf], stack_size: u32) -> Result<NonNull<bindings::bpf_prog>> {
    let size = offset_of!(bindings::bpf_prog, __bindgen_anon_2)
        .checked_add(size_of_val(insns))
        .ok_or(ENOMEM)?
        .max(size_of::<bindings::bpf_prog>());
    let len = u32::try_from(insns.len())?;
    // Nobody could read statistics of the program, as it has no id.
    // SAFETY: There are no preconditions.
    let prog = unsafe { bindings::bpf_prog_alloc_no_stats(u32::try_from(size)?, 0) };
    let prog = NonNull::new(prog).ok_or(ENOMEM)?.as_ptr();

    // SAFETY: The program was just allocated for this number of instructions, with all of its
    // structures, and belongs to this function. `Ebpf` has the layout of C's instructions.
    unsafe {
        (*prog).len = len;
        (*(*prog).aux).stack_depth = stack_size;
        (&raw mut (*prog).__bindgen_anon_2)
            .cast::<Ebpf>()
            .copy_from_nonoverlapping(insns.as_ptr(), insns.len());
    }
    let mut error = 0;
    // SAFETY: The program is complete but for its code, and belongs to this function. Its
    // instructions are valid ones, and its stack is as large as they need.
    let prog = unsafe { bindings::bpf_prog_select_runtime(prog, &mut error) };

    if let Err(error) = to_result(error) {
        // SAFETY: The program belongs to this function, and was not run.
        unsafe { bindings::bpf_prog_free(prog) };
        return Err(error);
    }
    NonNull::new(prog).ok_or(ENOMEM)
}

impl<T> Drop for Program<T> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, this object owns the program. Nobody runs it any more,
        // since running borrows it.
        unsafe { bindings::bpf_prog_free(self.prog.as_ptr()) };
    }
}

#[cfg(CONFIG_RUST_BPF_KUNIT_TEST)]
#[macros::kunit_tests(rust_kernel_bpf)]
mod tests {
    use super::*;

    /// Two words, of which programs see one, and its lowest byte once more.
    #[repr(C)]
    struct Words {
        hidden: u32,
        word: u32,
    }

    const BYTE: usize =
        offset_of!(Words, word) + if cfg!(target_endian = "little") { 0 } else { 3 };

    // SAFETY: The fields are inside the structure, aligned and initialised.
    unsafe impl Loads for Words {
        type Layout = u32;

        fn load(layout: u32, offset: u32) -> Option<Load> {
            match offset {
                0 => Some(Load::Field(const { Field::word(offset_of!(Words, word)) })),
                4 => Some(Load::Field(
                    const { Field::byte(BYTE).masked(0x7f) }
                        .at_byte(1)
                        .with(layout),
                )),
                8 => Some(Load::Constant(layout)),
                _ => None,
            }
        }
    }

    fn load(offset: u32) -> [Insn; 2] {
        [
            Insn::new(insn::LD_ABS, offset),
            Insn::new(insn::RET_A, 0), //
        ]
    }

    #[test]
    fn programs_see_the_described_fields() -> Result {
        let words = Words {
            hidden: 0,
            word: 0x1234_56ff,
        };
        let run = |offset, layout| -> Result<u32> {
            Ok(Program::<Words>::new(&load(offset), layout)?.run(&words))
        };
        let byte_1 = u32::from_ne_bytes([0, 0x7f, 0, 0]);

        assert_eq!(words.hidden, 0);
        assert_eq!(run(0, 0), Ok(0x1234_56ff));
        assert_eq!(run(4, 0), Ok(byte_1));
        assert_eq!(
            run(4, u32::from_ne_bytes([1, 0, 2, 3])),
            Ok(byte_1 | u32::from_ne_bytes([1, 0, 2, 3]))
        );
        assert_eq!(run(8, 9), Ok(9));
        Ok(())
    }

    /// Other loads, and programs that the kernel's checks refuse, are not compiled.
    #[test]
    fn other_loads_are_refused() {
        let refused = |insns: &[Insn]| Program::<Words>::new(insns, 0).err() == Some(EINVAL);

        assert!(refused(&load(12)));
        assert!(refused(&load(u32::MAX - 3)));
        // A byte of the packet.
        assert!(refused(&[Insn::new(0x30, 0), Insn::new(insn::RET_A, 0)]));
        assert!(refused(&[
            Insn::new(insn::LD_LEN, 0),
            Insn::new(insn::RET_A, 0)
        ]));
        assert!(refused(&[]));
        assert!(refused(&[Insn::new(insn::LD_IMM, 0)]));
        // A scratch word that was not written.
        assert!(refused(&[
            Insn::new(insn::LD_MEM, 0),
            Insn::new(insn::RET_A, 0)
        ]));
        assert!(refused(&[
            Insn::new(insn::ST, 16),
            Insn::new(insn::RET_A, 0)
        ]));
    }

    /// A checker may have constants for lengths alone.
    #[test]
    fn constants_for_other_loads_are_refused() {
        struct Constants;

        impl Checker for Constants {
            fn check(code: u16, k: u32) -> Result<Action> {
                match code {
                    insn::RET_A => Ok(Action::Keep),
                    _ => Ok(Action::LoadConstant(k + 1)),
                }
            }
        }

        for (load, k, want) in [
            (insn::LD_LEN, 7, Ok((insn::LD_IMM, 8))),
            (insn::LDX_LEN, 7, Ok((insn::LDX_IMM, 8))),
            (insn::LD_ABS, 4, Err(EINVAL)),
            (insn::LD_IMM, 4, Err(EINVAL)),
        ] {
            let mut program = [Insn::new(load, k), Insn::new(insn::RET_A, 0)];
            let got = apply::<Constants>(&mut program);

            assert_eq!(got.map(|()| (program[0].code, program[0].k)), want);
        }
    }

    /// A program that divides by zero ends and returns zero.
    #[test]
    fn division_by_zero_ends_the_program() -> Result {
        for (op, quotient) in [(insn::DIV, 4), (insn::MOD, 3)] {
            let program = [
                Insn::new(insn::LD_ABS, 0),
                Insn::new(insn::MISC_TAX, 0),
                Insn::new(insn::LD_IMM, 23),
                Insn::new(insn::ALU | insn::X | op, 0),
                Insn::new(insn::ALU | insn::K | insn::ADD, 1),
                Insn::new(insn::RET_A, 0),
            ];
            let program = Program::<Words>::new(&program, 0)?;

            assert_eq!(program.run(&Words { hidden: 0, word: 5 }), quotient + 1);
            assert_eq!(program.run(&Words { hidden: 0, word: 0 }), 0);
        }
        Ok(())
    }

    /// Scratch words keep their values, up to the last one.
    #[test]
    fn scratch_words_are_on_the_stack() -> Result {
        let words = Words { hidden: 0, word: 5 };
        let program = [
            Insn::new(insn::LD_ABS, 0),
            Insn::new(insn::ST, 15),
            Insn::new(insn::LD_IMM, 1),
            Insn::new(insn::ST, 0),
            Insn::new(insn::LD_MEM, 15),
            Insn::new(insn::RET_A, 0),
        ];

        let program = Program::<Words>::new(&program, 0)?;

        assert_eq!(program.run(&words), 5);
        // SAFETY: The program and what it points to are valid, and nobody changes them.
        let stack = unsafe { (*(*program.prog.as_ptr()).aux).stack_depth };

        // An interrupt overwrites what is past the end of the stack.
        assert!(stack >= 16 * size_of::<u32>() as u32);
        Ok(())
    }
}
