// SPDX-License-Identifier: GPL-2.0

//! What `/proc/PID/fdinfo/N` says about the restrictions and filters of a ring.
//!
//! A list of restrictions comes first, then a line for each opcode for which filters decide. There
//! is nothing for a ring that has neither, so that its file is as in C:
//!
//! ```text
//! Restrictions:
//!   register: 8 11
//!   sqe: 0 22
//!   sqe_flags: allowed 0x10, required 0x0
//! Filters:
//!   0 NOP: denied, cost 0 of 32768
//!   18 OPENAT: flags 0000ffff0000ffff0000ffff0000ffff, programs 0, cost 8 of 32768
//!   45 SOCKET: flags ffffffffffffffffffffffffffffffff, programs 2, cost 24 of 32768
//! ```
//!
//! If the kernel has filters of registrations, the opcodes of those that are not free follow under
//! `Registration filters:`, with `denied` or the number of programs, and the cost.
//!
//! - `register`, `sqe`: the opcodes that are allowed. The line is missing if all are.
//! - `denied`: each request is. The cost is 0 if that is so because the opcode had no filter.
//! - `flags`: the flags of the SQE with which requests are allowed if the programs allow them, too.
//!   Bit `n` of the hexadecimal number stands for flags of value `n`.
//! - `programs`: the number of filters that look at more of a request, and are run.
//! - `cost`: the cost of all filters of the opcode, see `filter/table.rs`.

#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use crate::filter::calls::CallSlot;
use crate::filter::{
    Filters,
    MAX_COST, //
};
#[cfg(CONFIG_IO_URING_BPF_CALLS)]
use kernel::io_uring::call::Call;
use kernel::{
    io_uring::{
        filter_set::FilterSet,
        restriction::Restriction,
        rules::{
            OpSet,
            Rules,
            OP_LAST,
            REGISTER_LAST, //
        },
        sqe_flags::FlagSet,
        Opcode, //
    },
    seq_file::SeqFile,
    seq_print, //
};

/// Writes the members of `set` that are less than `end`.
fn show_set<const WORDS: usize>(out: &SeqFile, name: &str, set: &OpSet<WORDS>, end: usize) {
    seq_print!(out, "  {}:", name);
    for op in (0..end).filter(|op| set.contains(*op)) {
        seq_print!(out, " {}", op);
    }
    seq_print!(out, "\n");
}

/// Writes the list of restrictions.
fn show_rules(out: &SeqFile, rules: &Rules) {
    seq_print!(out, "Restrictions:\n");
    if rules.registers_restricted {
        show_set(out, "register", &rules.register_ops, REGISTER_LAST);
    }
    if rules.sqes_restricted {
        show_set(out, "sqe", &rules.sqe_ops, OP_LAST);
        seq_print!(
            out,
            "  sqe_flags: allowed {:#x}, required {:#x}\n",
            rules.sqe_flags_allowed,
            rules.sqe_flags_required
        );
    }
}

/// Writes what `set` does with the requests of each opcode that is not free.
fn show_filters(out: &SeqFile, set: &FilterSet<Filters>) {
    let is_filtered = |opcode: &Opcode| set.unfiltered(*opcode) != FlagSet::ALL;

    if Opcode::all().any(|opcode| is_filtered(&opcode)) {
        seq_print!(out, "Filters:\n");
    }
    for opcode in Opcode::all().filter(is_filtered) {
        let summary = Filters::summary(set, opcode);

        seq_print!(out, "  {} {}: ", opcode.index(), opcode.name());
        if Filters::refuses(set, opcode) {
            seq_print!(out, "denied");
        } else {
            let [high, low] = summary.allowed.halves();

            seq_print!(out, "flags {:016x}{:016x}, ", high, low);
            seq_print!(out, "programs {}", summary.programs);
        }
        seq_print!(out, ", cost {} of {}\n", summary.cost, MAX_COST);
    }
}

/// Writes what `set` does with each registration that is not free.
#[cfg(CONFIG_IO_URING_BPF_CALLS)]
fn show_calls(out: &SeqFile, set: &FilterSet<Filters>) {
    let calls = || {
        (0..)
            .map_while(Call::register)
            .map(|call| (call, set.call(call)))
    };
    let is_filtered = |slot: &CallSlot| slot.is_denied() || slot.programs() != 0;

    if calls().any(|(_, slot)| is_filtered(slot)) {
        seq_print!(out, "Registration filters:\n");
    }
    for (call, slot) in calls().filter(|(_, slot)| is_filtered(slot)) {
        seq_print!(out, "  {}: ", call.index());
        if slot.is_denied() {
            seq_print!(out, "denied");
        } else {
            seq_print!(out, "programs {}", slot.programs());
        }
        seq_print!(out, ", cost {} of {}\n", slot.cost(), MAX_COST);
    }
}

/// Writes what a ring with `restriction` refuses.
pub(crate) fn show(out: &SeqFile, restriction: &Restriction<Filters>) {
    let rules = restriction.rules();

    if rules.restricts_anything() {
        show_rules(out, &rules);
    }
    if let Some(set) = restriction.filters() {
        show_filters(out, set);
        #[cfg(CONFIG_IO_URING_BPF_CALLS)]
        show_calls(out, set);
    }
}
