// SPDX-License-Identifier: GPL-2.0

//! Chains: the filters of one opcode.
//!
//! A chain is a list of programs, newest first: one for each filter. When the first request meets a
//! chain of several short ones, they are fused into one program, which costs one indirect call.
//! This is not done when a filter is registered, as a registration would then compile all filters
//! before it again, and mostly for nothing: filters are registered one after the other.
//!
//! Chains are immutable but for the fused program, and share the programs that they have in common.

use super::fuse;
use kernel::{
    alloc::{
        Flags,
        KVVec, //
    },
    bpf::{
        exemptions::Exemptions,
        Insn, //
    },
    io_uring::{
        sqe_flags::FlagSet,
        Opcode, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SetOnce, //
    }, //
};

/// The number of instructions up to which programs are fused. In longer ones, the calls are a small
/// part of the cost.
const SHORT: usize = 256;

/// A program that can be compiled from checked instructions.
pub(crate) trait Compile: Sized {
    /// Compiles `insns` for requests with this opcode.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of the compiler.
    fn compile(insns: &[Insn], opcode: Opcode) -> Result<Self>;
}

/// The program of one filter, and its instructions, of which fused programs are made.
pub(super) struct Link<P> {
    insns: KVVec<Insn>,
    program: P,
}

/// The filters of an opcode.
pub(super) struct Chain<P> {
    opcode: Opcode,
    /// The programs, newest first.
    links: KVVec<Arc<Link<P>>>,
    /// The flags of the requests that the programs decide on. Those with others are denied at once.
    allowed: FlagSet,
    /// Whether any flags are not in `allowed`.
    tests_flags: bool,
    /// The program that stands for all links: the only one, or the fused one if there is one yet.
    whole: SetOnce<Arc<Link<P>>>,
    /// The mitigations that are left out of all programs.
    exemptions: Exemptions,
    /// Whether somebody has begun to fuse the programs.
    fusing_begun: Atomic<bool>,
}

/// Fuses `newer` and `older`. Returns [`None`] if the result would be longer than [`SHORT`].
///
/// # Errors
///
/// [`ENOMEM`] if memory is short.
fn fuse(newer: &[Insn], older: &[Insn], flags: Flags) -> Result<Option<KVVec<Insn>>> {
    if newer.len().saturating_add(older.len()) > SHORT {
        return Ok(None);
    }
    let max = older.len() + fuse::GLUE_MAX + fuse::EXPANSION_MAX * newer.len();
    let mut backward = KVVec::with_capacity(max, flags)?;
    let mut insns_to_end = KVVec::from_elem(0, newer.len() + 1, flags)?;

    fuse::fuse(newer, older, &mut insns_to_end, |insn| {
        backward.push(insn, flags)?;
        Ok::<_, Error>(())
    })?;
    if backward.len() > SHORT {
        return Ok(None);
    }
    let mut insns = KVVec::with_capacity(backward.len(), flags)?;

    for insn in backward.iter().rev() {
        insns.push(*insn, flags)?;
    }
    Ok(Some(insns))
}

impl<P: Compile> Chain<P> {
    /// Creates a chain that runs `filter` before the filters of `older`, if there are any, on
    /// requests of `opcode` with the flags in `allowed`. `exemptions` are those of the current
    /// task.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of [`Compile::compile`].
    pub(super) fn push(
        older: Option<&Arc<Self>>,
        opcode: Opcode,
        filter: KVVec<Insn>,
        allowed: FlagSet,
        exemptions: Exemptions,
        flags: Flags,
    ) -> Result<Arc<Self>> {
        let program = P::compile(&filter, opcode)?;
        let newest = Link {
            insns: filter,
            program,
        };
        let mut links = KVVec::with_capacity(1 + older.map_or(0, |chain| chain.len()), flags)?;

        links.push(Arc::new(newest, flags)?, flags)?;
        for link in older.iter().flat_map(|chain| &chain.links) {
            links.push(link.clone(), flags)?;
        }
        let exemptions = older.map_or(exemptions, |chain| chain.exemptions.and(exemptions));

        Self::new(opcode, links, allowed, exemptions, flags)
    }

    /// Creates a chain with the programs of this one that denies all flags that are not in
    /// `allowed`.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short.
    pub(super) fn with_allowed(&self, allowed: FlagSet, flags: Flags) -> Result<Arc<Self>> {
        let mut links = KVVec::with_capacity(self.len(), flags)?;

        for link in &self.links {
            links.push(link.clone(), flags)?;
        }
        Self::new(self.opcode, links, allowed, self.exemptions, flags)
    }

    fn new(
        opcode: Opcode,
        links: KVVec<Arc<Link<P>>>,
        allowed: FlagSet,
        exemptions: Exemptions,
        flags: Flags,
    ) -> Result<Arc<Self>> {
        let whole = SetOnce::new();

        if let [only] = links.as_slice() {
            whole.populate(only.clone());
        }
        let chain = Self {
            opcode,
            links,
            tests_flags: allowed != FlagSet::ALL,
            allowed,
            whole,
            exemptions,
            fusing_begun: Atomic::new(false),
        };

        Ok(Arc::new(chain, flags)?)
    }

    /// Fuses the programs into one, which [`Self::whole`] returns from then on. Does nothing if
    /// that was tried before. May sleep.
    ///
    /// If the programs are too long, or memory is short, they stay as they are. They also do, until
    /// another task comes, if mitigations would be left out for the current task that were not for
    /// one that registered a filter.
    pub(super) fn fuse_once(&self, flags: Flags) {
        if self.fusing_begun.load(Relaxed) || !self.exemptions.contains(Exemptions::current()) {
            return;
        }
        if self.fusing_begun.xchg(true, Relaxed) {
            return;
        }
        if let Ok(Some(fused)) = self.fused(flags) {
            self.whole.populate(fused);
        }
    }

    /// Fuses the programs. Returns [`None`] if they are too long.
    ///
    /// # Errors
    ///
    /// [`ENOMEM`] if memory is short, and the errors of [`Compile::compile`].
    fn fused(&self, flags: Flags) -> Result<Option<Arc<Link<P>>>> {
        let mut oldest_first = self.links.iter().rev();
        let mut insns = KVVec::new();

        if let Some(oldest) = oldest_first.next() {
            insns.extend_from_slice(&oldest.insns, flags)?;
        }
        for newer in oldest_first {
            let Some(fused) = fuse(&newer.insns, &insns, flags)? else {
                return Ok(None);
            };

            insns = fused;
        }
        let program = P::compile(&insns, self.opcode)?;

        // Nobody fuses a fused program, so that its instructions are not kept.
        let insns = KVVec::new();
        Ok(Some(Arc::new(Link { insns, program }, flags)?))
    }
}

impl<P> Chain<P> {
    /// Returns the programs, newest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &P> {
        self.links.iter().map(|link| &link.program)
    }

    /// Returns the program that stands for all others, if there is one.
    #[inline]
    pub(super) fn whole(&self) -> Option<&P> {
        self.whole.as_ref().map(|link| &link.program)
    }

    /// Returns the flags of the requests that the programs decide on. Those with others are denied.
    #[inline]
    pub(super) fn allowed(&self) -> &FlagSet {
        &self.allowed
    }

    /// Returns whether a request with `flags` may be allowed, if the programs allow it.
    #[inline]
    pub(super) fn allows_flags(&self, flags: u8) -> bool {
        !self.tests_flags || self.allowed.contains(flags)
    }

    /// Returns the number of programs.
    pub(super) fn len(&self) -> usize {
        self.links.len()
    }
}
