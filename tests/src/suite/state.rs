// SPDX-License-Identifier: GPL-2.0
//! A model of restrictions and filters as plain data, with which the results of random
//! sequences are compared.

use crate::kernel::{IORING_OP_LAST, IORING_REGISTER_LAST};
use crate::register::{
    IORING_REGISTER_BPF_FILTER, IORING_REGISTER_ENABLE_RINGS, IORING_REGISTER_RESTRICTIONS,
    IORING_RESTRICTION_REGISTER_OP, IORING_RESTRICTION_SQE_FLAGS_ALLOWED,
    IORING_RESTRICTION_SQE_FLAGS_REQUIRED, IORING_RESTRICTION_SQE_OP, Restriction,
};
use crate::sqe::{Sqe, op};

/// The opcodes that the sequences use. NOP succeeds; the others fail because they have
/// no file.
pub const OPCODES: [u8; 5] = [op::NOP, op::CLOSE, op::FSYNC, op::RECV, op::SHUTDOWN];

const DENIED: i32 = -libc::EACCES;

/// The filters of a task or a ring, each of which denies one `user_data`.
#[derive(Clone, Default, Debug)]
pub struct Filters {
    /// The opcode and the denied `user_data` of each filter.
    denials: Vec<(u8, u32)>,
    /// The opcodes that had no filter when DENY_REST was given.
    rest: Vec<u8>,
}

impl Filters {
    pub fn add(&mut self, opcode: u8, user_data: u32, deny_rest: bool) {
        self.denials.push((opcode, user_data));
        if deny_rest {
            let has = |opcode| self.denials.iter().any(|&(other, _)| other == opcode);
            let rest: Vec<u8> = OPCODES.into_iter().filter(|&opcode| !has(opcode)).collect();
            self.rest.extend(rest);
        }
    }

    fn allow(&self, opcode: u8, user_data: u32) -> bool {
        !self.rest.contains(&opcode) && !self.denials.contains(&(opcode, user_data))
    }
}

/// The rules that a list of restrictions makes.
#[derive(Clone, Default, Debug)]
pub struct Rules {
    /// The opcodes allowed, or `None` if all are. The same holds for `register_ops`.
    sqe_ops: Option<Vec<u8>>,
    register_ops: Option<Vec<u32>>,
    flags_allowed: u8,
    flags_required: u8,
}

impl Rules {
    /// Parses a list. Returns `None` if an entry is invalid.
    fn parse(list: &[Restriction]) -> Option<Self> {
        let mut rules = Rules::default();
        if list.is_empty() {
            (rules.sqe_ops, rules.register_ops) = (Some(vec![]), Some(vec![]));
        }
        for &Restriction { opcode, value, .. } in list {
            if opcode != IORING_RESTRICTION_REGISTER_OP {
                rules.sqe_ops.get_or_insert_default();
            }
            match opcode {
                IORING_RESTRICTION_REGISTER_OP if u32::from(value) < IORING_REGISTER_LAST => {
                    let listed = rules.register_ops.get_or_insert_default();
                    listed.push(value.into());
                }
                IORING_RESTRICTION_SQE_OP if u32::from(value) < IORING_OP_LAST => {
                    rules.sqe_ops.get_or_insert_default().push(value);
                }
                IORING_RESTRICTION_SQE_FLAGS_ALLOWED => rules.flags_allowed = value,
                IORING_RESTRICTION_SQE_FLAGS_REQUIRED => rules.flags_required = value,
                _ => return None,
            }
        }
        Some(rules)
    }

    fn allow(&self, opcode: u8, flags: u8) -> bool {
        let listed = self.sqe_ops.as_ref();
        listed.is_none_or(|listed| {
            listed.contains(&opcode)
                && flags & self.flags_required == self.flags_required
                && flags & !(self.flags_allowed | self.flags_required) == 0
        })
    }

    /// Returns 0 if a register opcode is allowed, or else the error.
    fn register(&self, opcode: u32) -> i32 {
        let listed = self.register_ops.as_ref();
        match listed.is_none_or(|listed| listed.contains(&opcode)) {
            true => 0,
            false => DENIED,
        }
    }

    fn restricts_anything(&self) -> bool {
        self.sqe_ops.is_some() || self.register_ops.is_some()
    }
}

/// The restrictions and filters of a task or a ring.
#[derive(Clone, Default, Debug)]
pub struct Object {
    pub rules: Rules,
    pub filters: Filters,
}

impl Object {
    /// Returns the result of registering a filter for a task with this object.
    pub fn may_filter(&self) -> i32 {
        self.rules.register(IORING_REGISTER_BPF_FILTER)
    }

    /// Returns the result of registering a list for a task that has the object
    /// `before`, and the object that it has then if the result is 0.
    pub fn restrict(before: Option<&Object>, list: &[Restriction]) -> (i32, Option<Object>) {
        if let Some(before) = before {
            return match before.rules.register(IORING_REGISTER_RESTRICTIONS) {
                0 => (-libc::EPERM, None),
                denied => (denied, None),
            };
        }
        match Rules::parse(list) {
            None => (-libc::EINVAL, None),
            Some(rules) => {
                let filters = Filters::default();
                (0, Some(Object { rules, filters }))
            }
        }
    }
}

/// The state of a ring.
#[derive(Clone, Debug)]
pub struct RingState {
    pub object: Object,
    pub disabled: bool,
    /// Whether its list of register opcodes came from the task, and so holds while it
    /// is disabled.
    inherited: bool,
}

impl RingState {
    /// Returns the state of a new ring of a task with `object`.
    pub fn new(object: Option<&Object>, disabled: bool) -> Self {
        let object = object.cloned().unwrap_or_default();
        RingState {
            inherited: object.rules.register_ops.is_some(),
            object,
            disabled,
        }
    }

    /// Returns 0 if a register opcode is allowed, or else the error.
    pub fn register(&self, opcode: u32) -> i32 {
        if self.disabled && !self.inherited {
            return 0;
        }
        self.object.rules.register(opcode)
    }

    /// Registers a list of restrictions. Returns the result.
    pub fn restrict(&mut self, list: &[Restriction]) -> i32 {
        let denied = self.register(IORING_REGISTER_RESTRICTIONS);
        if denied != 0 {
            return denied;
        }
        if !self.disabled {
            return -libc::EBADFD;
        }
        if self.object.rules.restricts_anything() {
            return -libc::EBUSY;
        }
        match Rules::parse(list) {
            None => -libc::EINVAL,
            Some(rules) => {
                self.object.rules = rules;
                0
            }
        }
    }

    /// Enables the ring. Returns the result.
    pub fn enable(&mut self) -> i32 {
        let denied = self.register(IORING_REGISTER_ENABLE_RINGS);
        if denied != 0 {
            return denied;
        }
        if !self.disabled {
            return -libc::EBADFD;
        }
        self.disabled = false;
        0
    }

    /// Returns whether a request is allowed.
    pub fn verdict(&self, sqe: Sqe) -> bool {
        self.object.rules.allow(sqe.opcode, sqe.flags)
            && self.object.filters.allow(sqe.opcode, sqe.user_data as u32)
    }
}
