// SPDX-License-Identifier: GPL-2.0

//! Chains: the filters of one opcode.
//!
//! A chain is a list of programs, newest first. A new filter is fused in front of the newest
//! program, so that a few filters are one program and cost one indirect call. Fusing compiles that
//! program anew. A long program is therefore left as it is, and the filter becomes a program of its
//! own: otherwise each registration would pay for all filters before it. Chains are immutable and
//! share the programs that they have in common.

use super::{
    context,
    fuse, //
};
use kernel::{
    alloc::{
        Flags,
        KVVec, //
    },
    bpf::{
        Insn,
        MAX_INSNS, //
    },
    prelude::*,
    sync::Arc, //
};

/// The number of instructions up to which a program is fused with any filter. A longer program is
/// only fused with a filter that is no shorter. So a registration compiles at most twice what it
/// was given, or this much more.
const SHORT: usize = 10;

/// A program that can be compiled from checked instructions.
pub(crate) trait Compile: Sized {
    /// Compiles `insns`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of the compiler.
    fn compile(insns: &[Insn]) -> Result<Self>;
}

/// A program that stands for one filter or several, and its instructions, with which the next
/// filter is fused.
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
    /// The older programs, newest first. Empty if all filters are fused into one program.
    older: KVec<Arc<Link<P>>>,
    /// Whether any program loads a word that depends on the arguments of requests.
    reads_arguments: bool,
}

/// Fuses `newer` and `older`. Returns [`None`] if compiling `older` again costs too much, or if the
/// result would be longer than a program may be.
///
/// # Errors
///
/// [`ENOMEM`] if memory is short.
fn fuse(newer: &[Insn], older: &[Insn], flags: Flags) -> Result<Option<KVVec<Insn>>> {
    if older.len() > newer.len().max(SHORT) {
        return Ok(None);
    }
    let max = older.len() + fuse::GLUE_MAX + fuse::EXPANSION_MAX * newer.len();
    let mut backward = KVVec::with_capacity(max, flags)?;
    let mut insns_to_end = KVVec::from_elem(0, newer.len() + 1, flags)?;

    fuse::fuse(newer, older, &mut insns_to_end, |insn| {
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
    /// Creates a chain that runs `filter` before the filters of `older`, if there are any.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of [`Compile::compile`].
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
        let reads_arguments = context::reads_arguments(&newest.insns)
            || links
                .iter()
                .any(|link| context::reads_arguments(&link.insns));
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

    /// Returns the programs, newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &P> {
        self.links().map(|link| &link.program)
    }

    /// Returns the newest program and the older links.
    #[inline]
    pub(super) fn split(&self) -> (&P, &[Arc<Link<P>>]) {
        (&self.newest.program, &self.older)
    }

    /// Returns whether any program loads a word that depends on the arguments of a request. If not,
    /// the arguments need not be copied to the context.
    #[inline]
    pub(super) fn reads_arguments(&self) -> bool {
        self.reads_arguments
    }

    /// Returns the number of programs.
    pub(super) fn len(&self) -> usize {
        1 + self.older.len()
    }
}
