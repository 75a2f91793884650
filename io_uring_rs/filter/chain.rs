// SPDX-License-Identifier: GPL-2.0

//! Chains of filters.
//!
//! Each new filter is fused in front of the program that was there before it, so that a few filters
//! are one program. That program has to be compiled anew each time. Not to pay for all filters with
//! each, a long one is left as it is, and a chain goes on with another. Chains are immutable and
//! share what they have in common.

use super::fuse;
use kernel::{
    alloc::{
        Flags,
        KVVec, //
    },
    bpf::{
        insn,
        Insn,
        MAX_INSNS, //
    },
    prelude::*,
    sync::Arc, //
};

/// Programs of up to so many instructions are fused with any filter, longer ones only with those
/// that are no shorter. So registering compiles at most as much again as it was given, or this.
const SHORT: usize = 10;

/// What makes a program out of checked instructions.
pub(crate) trait Compile: Sized {
    /// Compiles `insns`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and what the compiler gives.
    fn compile(insns: &[Insn]) -> Result<Self>;
}

/// A program that stands for one filter or several, and the instructions that it was made of, from
/// which the next one is made.
pub(super) struct Link<P> {
    insns: KVVec<Insn>,
    program: P,
}

impl<P> Link<P> {
    /// Returns the program.
    #[inline]
    pub(super) fn program(&self) -> &P {
        &self.program
    }
}

/// The filters of an opcode.
pub(super) struct Chain<P> {
    newest: Arc<Link<P>>,
    /// Newest first. Empty if there are few filters.
    older: KVec<Arc<Link<P>>>,
    /// Whether any reads what depends on the arguments of requests.
    reads_arguments: bool,
}

/// Checks whether `insns` load any word that depends on the arguments of a request.
fn reads_arguments(insns: &[Insn]) -> bool {
    insns
        .iter()
        .any(|insn| insn.code == insn::LD_ABS && (insn.k == 8 || insn.k >= 16))
}

/// Fuses `newer` and `older`. Returns [`None`] if that costs too much, or would be longer than a
/// program may be.
///
/// # Errors
///
/// [`ENOMEM`] if memory is short.
fn fuse(newer: &[Insn], older: &[Insn], flags: Flags) -> Result<Option<KVVec<Insn>>> {
    if older.len() > newer.len().max(SHORT) {
        return Ok(None);
    }
    let most = older.len() + fuse::JOINT + fuse::GROWTH * newer.len();
    let mut backward = KVVec::with_capacity(most, flags)?;
    let mut left = KVVec::from_elem(0, newer.len() + 1, flags)?;

    fuse::fuse(newer, older, &mut left, |insn| {
        backward.push(insn, flags)?;
        Ok::<_, Error>(())
    })?;
    if backward.len() > MAX_INSNS as usize {
        return Ok(None);
    }
    let mut insns = KVVec::with_capacity(backward.len(), flags)?;

    for insn in backward.iter().rev() {
        insns.push(*insn, flags)?;
    }
    Ok(Some(insns))
}

impl<P: Compile> Chain<P> {
    /// Puts a filter in front of `older`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and those of [`Compile::compile`].
    pub(super) fn push(
        older: Option<&Arc<Self>>,
        filter: KVVec<Insn>,
        flags: Flags,
    ) -> Result<Arc<Self>> {
        let fused = match older {
            Some(chain) => fuse(&filter, &chain.newest.insns, flags)?,
            None => None,
        };
        let replaced = usize::from(fused.is_some());
        let insns = fused.unwrap_or(filter);
        let program = P::compile(&insns)?;
        let newest = Arc::new(Link { insns, program }, flags)?;
        let mut links = KVec::new();

        for link in older.iter().flat_map(|chain| chain.links()).skip(replaced) {
            links.push(link.clone(), flags)?;
        }
        let reads_arguments =
            reads_arguments(&newest.insns) || links.iter().any(|link| reads_arguments(&link.insns));
        let chain = Self {
            newest,
            older: links,
            reads_arguments,
        };
        Ok(Arc::new(chain, flags)?)
    }
}

impl<P> Chain<P> {
    /// Returns the links, newest first.
    fn links(&self) -> impl Iterator<Item = &Arc<Link<P>>> {
        Iterator::chain(core::iter::once(&self.newest), &self.older)
    }

    /// Returns the programs, newest first. A request is allowed if all of them allow it.
    pub(super) fn iter(&self) -> impl Iterator<Item = &P> {
        self.links().map(|link| &link.program)
    }

    /// Returns the newest program, and the older links.
    #[inline]
    pub(super) fn split(&self) -> (&P, &[Arc<Link<P>>]) {
        (&self.newest.program, &self.older)
    }

    /// Checks whether any program loads a word that depends on the arguments of a request. If none
    /// does, they need not be copied to the context.
    #[inline]
    pub(super) fn reads_arguments(&self) -> bool {
        self.reads_arguments
    }

    /// Returns the number of programs.
    pub(super) fn len(&self) -> usize {
        1 + self.older.len()
    }
}
