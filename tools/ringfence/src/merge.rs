// SPDX-License-Identifier: GPL-2.0
//! Adds what one policy allows to another, as when a second run of a command has shown
//! more than the first.

use std::collections::BTreeSet;

use crate::policy::{Action, Open, Policy, Setup};

impl Policy {
    /// Adds what `other` allows. Both must deny by default, as policies do that were
    /// learned.
    ///
    /// # Errors
    ///
    /// Fails if one of them allows by default.
    pub fn merge(&mut self, other: Self) -> Result<(), String> {
        let registers_by_default = |policy: &Self| {
            let registrations = policy.registrations.as_ref();
            registrations.is_some_and(|rule| rule.default_action == Action::Allow)
        };
        for policy in [&*self, &other] {
            if policy.default_action == Action::Allow || registers_by_default(policy) {
                return Err("only policies that deny by default can be merged".to_string());
            }
        }
        self.ops.extend(other.ops);
        self.denied_sqe_flags
            .retain(|flag| other.denied_sqe_flags.contains(flag));
        union(&mut self.socket_families, other.socket_families);
        self.connect = match (self.connect.take(), other.connect) {
            (Some(mut ours), Some(theirs)) => {
                ours.extend(
                    theirs
                        .into_iter()
                        .filter(|it| !ours.contains(it))
                        .collect::<Vec<_>>(),
                );
                Some(ours)
            }
            _ => None,
        };
        self.open = match (self.open.take(), other.open) {
            (Some(ours), Some(theirs)) => {
                Some(ours.merged(theirs)).filter(|open| *open != Open::default())
            }
            _ => None,
        };
        self.setup = match (self.setup.take(), other.setup) {
            (Some(ours), Some(theirs)) => {
                Some(ours.merged(theirs)).filter(|setup| *setup != Setup::default())
            }
            _ => None,
        };
        self.registrations = match (self.registrations.take(), other.registrations) {
            (Some(mut ours), Some(theirs)) => {
                ours.ops.extend(theirs.ops);
                Some(ours)
            }
            _ => None,
        };
        Ok(())
    }
}

/// Extends `ours` to what either allows. `None` allows everything.
fn union<T: Ord>(ours: &mut Option<BTreeSet<T>>, theirs: Option<BTreeSet<T>>) {
    match (ours.as_mut(), theirs) {
        (Some(ours), Some(theirs)) => ours.extend(theirs),
        _ => *ours = None,
    }
}

impl Open {
    /// Returns the weakest rule that allows what either allows.
    fn merged(mut self, other: Self) -> Self {
        union(&mut self.access_modes, other.access_modes);
        self.denied_flags
            .retain(|flag| other.denied_flags.contains(flag));
        self.required_resolve
            .retain(|flag| other.required_resolve.contains(flag));
        self
    }
}

impl Setup {
    /// Returns the weakest rule that allows what either allows.
    fn merged(mut self, other: Self) -> Self {
        union(&mut self.allowed_flags, other.allowed_flags);
        self.max_entries = self
            .max_entries
            .zip(other.max_entries)
            .map(|(a, b)| a.max(b));
        self.max_cq_entries = self
            .max_cq_entries
            .zip(other.max_cq_entries)
            .map(|(a, b)| a.max(b));
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Op;

    #[test]
    fn only_policies_that_deny_can_be_merged() {
        let mut policy = Policy::allowing([Op::READ]);
        let mut other = Policy::allowing([Op::WRITE]);
        policy.merge(other.clone()).unwrap();
        assert_eq!(policy.ops, [Op::READ, Op::WRITE].into());
        other.default_action = Action::Allow;
        assert!(policy.merge(other).is_err());
    }
}
