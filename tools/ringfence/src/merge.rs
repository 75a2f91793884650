// SPDX-License-Identifier: GPL-2.0
//! Adds what one policy allows to another, as when a second run of a command has shown
//! more than the first.

use std::collections::BTreeSet;

use crate::policy::{Action, Open, Policy, Setup};

impl Policy {
    /// Adds what `learned` allows, the policy that was learned from a run. It has no rules
    /// about arguments, which events do not show, and none that the kernel of that run
    /// could not have enforced. Such rules stay as they are here.
    ///
    /// # Errors
    ///
    /// Those of [`Self::merge`].
    pub fn add_learned(&mut self, mut learned: Self) -> Result<(), String> {
        learned.socket_families = self.socket_families.clone();
        learned.connect = self.connect.clone();
        learned.open = self.open.clone();
        learned.setup = match (learned.setup, &self.setup) {
            (Some(seen), Some(ours)) => Some(Setup {
                allowed_flags: seen.allowed_flags,
                ..ours.clone()
            }),
            (_, ours) => ours.clone(),
        };
        if learned.registrations.is_none() || self.registrations.is_none() {
            learned.registrations = self.registrations.clone();
        }
        self.merge(learned)
    }

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
    use crate::names::{Op, Registration, SetupFlag, SqeFlag};
    use crate::policy::Registrations;

    /// Rules about what events do not show stay when a run is merged, and what it did is
    /// allowed.
    #[test]
    fn learned_policies_change_no_other_rules() {
        let text = r#"{"defaultAction": "deny", "ops": ["IORING_OP_SOCKET"],
            "socketFamilies": ["AF_INET"],
            "deniedSqeFlags": ["IOSQE_IO_LINK", "IOSQE_FIXED_FILE"],
            "connect": [{"subnet": "10.0.0.0/8"}],
            "open": {"accessModes": ["O_RDONLY"]},
            "setup": {"allowedFlags": ["IORING_SETUP_CLAMP"], "maxEntries": 8, "maxCqEntries": 64},
            "registrations": {"defaultAction": "deny", "ops": ["IORING_REGISTER_FILES"]}}"#;
        let before = Policy::parse("policy", text.to_string()).unwrap();
        let mut learned = Policy::allowing([Op::READ]);
        learned.denied_sqe_flags = [SqeFlag::FIXED_FILE, SqeFlag::BUFFER_SELECT].into();

        let mut without_calls = before.clone();
        without_calls.add_learned(learned.clone()).unwrap();
        let mut want = before.clone();
        want.ops.insert(Op::READ);
        want.denied_sqe_flags = [SqeFlag::FIXED_FILE].into();
        assert_eq!(without_calls, want);

        learned.setup = Some(Setup {
            allowed_flags: Some([SetupFlag::SQPOLL].into()),
            ..Default::default()
        });
        learned.registrations = Some(Registrations {
            default_action: Action::Deny,
            ops: [Registration::REGISTER_BUFFERS].into(),
        });
        let mut with_calls = before.clone();
        with_calls.add_learned(learned.clone()).unwrap();
        want.setup.as_mut().unwrap().allowed_flags =
            Some([SetupFlag::CLAMP, SetupFlag::SQPOLL].into());
        let ops = [Registration::REGISTER_FILES, Registration::REGISTER_BUFFERS];
        want.registrations.as_mut().unwrap().ops = ops.into();
        assert_eq!(with_calls, want);

        // A policy without these rules gets none.
        let mut without_rules = Policy::allowing([Op::WRITE]);
        without_rules.add_learned(learned).unwrap();
        assert!(without_rules.setup.is_none() && without_rules.registrations.is_none());
    }

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
