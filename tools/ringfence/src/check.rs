// SPDX-License-Identifier: GPL-2.0
//! Shows what a policy means: a table by opcode, what each filter costs, and warnings about
//! rules that do something else than one might think.

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};

use crate::learn::sqe_flags;
use crate::names::{Op, Registration, SqeFlag};
use crate::policy::{Action, Policy};
use crate::program::{self, Cost, Fence, Filter};
use crate::verdict::{Request, flags_of_kernel};

/// What a policy does with an opcode.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Row {
    pub op: Op,
    pub verdict: String,
    /// The members of the policy that decide.
    pub by: String,
    /// The number of instructions of the filter, if the opcode has one.
    pub size: Option<usize>,
    /// What happens for each request in C, which runs each filter.
    pub in_c: &'static str,
    /// What happens for each request in Rust.
    pub in_rust: &'static str,
}

/// Returns what a policy does with each opcode.
pub fn rows(policy: &Policy, fence: &Fence) -> Vec<Row> {
    let filter = |op: Op| fence.requests.iter().find(|filter| filter.opcode == op.0);
    Op::ALL
        .iter()
        .map(|&(_, op)| row(policy, op, filter(op)))
        .collect()
}

fn row(policy: &Policy, op: Op, filter: Option<&Filter>) -> Row {
    let (verdict, by) = match policy.lists(op) {
        false => (
            "denied".to_string(),
            list_that_decides(policy, false).to_string(),
        ),
        true => verdict_on_listed(policy, op),
    };
    let in_rust = match filter.map(|filter| program::cost(&filter.program)) {
        None | Some(Cost::Nothing) => "nothing",
        Some(Cost::Lookup) => "lookup",
        Some(Cost::Run) => "program",
    };
    Row {
        op,
        verdict,
        by,
        size: filter.map(|filter| filter.program.len()),
        in_c: if filter.is_some() {
            "program"
        } else {
            "nothing"
        },
        in_rust,
    }
}

/// Returns the member that decides on an opcode that the lists allow, or do not.
fn list_that_decides(policy: &Policy, is_allowed: bool) -> &'static str {
    match (policy.default_action, is_allowed) {
        (Action::Deny, true) | (Action::Allow, false) => "ops",
        (Action::Deny, false) | (Action::Allow, true) => "defaultAction",
    }
}

fn verdict_on_listed(policy: &Policy, op: Op) -> (String, String) {
    let mut conditions = Vec::new();
    let mut by = Vec::new();
    if policy.denied_flags() != 0 {
        conditions.push(format!("without {}", sqe_flags(policy.denied_flags())));
        by.push("deniedSqeFlags");
    }
    match op {
        Op::SOCKET => {
            if let Some(families) = &policy.socket_families {
                let families: Vec<String> =
                    families.iter().map(|family| family.to_string()).collect();
                conditions.push(format!("of {}", families.join(" ")));
                by.push("socketFamilies");
            }
        }
        Op::CONNECT => {
            if let Some(destinations) = &policy.connect {
                let destinations: Vec<String> =
                    destinations.iter().map(|it| it.to_string()).collect();
                conditions.push(format!("to {}", destinations.join(", ")));
                by.push("connect");
            }
        }
        Op::OPENAT | Op::OPENAT2 => {
            if let Some(open) = &policy.open {
                by.push("open");
                if op == Op::OPENAT && open.all_required_resolve() != 0 {
                    return ("denied".to_string(), "open".to_string());
                }
                if let Some(modes) = &open.access_modes {
                    let modes: Vec<String> = modes.iter().map(|mode| mode.to_string()).collect();
                    conditions.push(format!("as {}", modes.join(" ")));
                }
                let all = crate::names::OpenFlag::ALL.iter();
                let denied: Vec<&str> = all
                    .filter(|(_, flag)| flag.0 & open.all_denied_flags() != 0)
                    .map(|(name, _)| *name)
                    .collect();
                if !denied.is_empty() {
                    conditions.push(format!("without {}", denied.join("|")));
                }
                if !open.required_resolve.is_empty() {
                    let flags: Vec<String> = open
                        .required_resolve
                        .iter()
                        .map(|flag| flag.to_string())
                        .collect();
                    conditions.push(format!("with {}", flags.join("|")));
                }
            }
        }
        _ => {}
    }
    if conditions.is_empty() {
        return (
            "allowed".to_string(),
            list_that_decides(policy, true).to_string(),
        );
    }
    (format!("allowed {}", conditions.join(", ")), by.join(", "))
}

/// Returns the short names of opcodes.
fn short(ops: &[Op]) -> String {
    ops.iter()
        .map(|op| op.short())
        .collect::<Vec<_>>()
        .join(", ")
}

/// Returns what a policy does that one might not think of.
pub fn warnings(policy: &Policy) -> Vec<String> {
    let allows = |op: &Op| policy.lists(*op);
    let among = |ops: &[Op]| -> Vec<Op> { ops.iter().copied().filter(allows).collect() };
    let mut warnings = Vec::new();

    if !policy.allows(&Request::new(Op::EPOLL_CTL)) {
        warnings.push(
            "libuv aborts if EPOLL_CTL is denied: Node.js will not start, unless UV_USE_IO_URING=0 or seccomp \
             keeps it from making rings"
                .to_string(),
        );
    }
    for &(_, flag) in SqeFlag::ALL
        .iter()
        .filter(|(_, flag)| flag.0 & policy.denied_flags() != 0)
    {
        let all = Op::ALL.iter().map(|(_, op)| *op);
        let set: Vec<Op> = all
            .filter(|op| allows(op) && flags_of_kernel(*op) & flag.0 != 0)
            .collect();
        if !set.is_empty() {
            warnings.push(format!(
                "the kernel itself sets {flag} on requests with {}, so that denying {flag} denies these \
                 even where a program does not ask for it",
                short(&set)
            ));
        }
    }
    let draining = SqeFlag::ASYNC.0 | SqeFlag::IO_DRAIN.0;
    if policy.denied_flags() & draining != 0 && policy.denied_flags() & SqeFlag::IO_DRAIN.0 == 0 {
        warnings.push(
            "while a ring drains, the kernel sets IOSQE_ASYNC on any request, which is denied then; deny \
             IOSQE_IO_DRAIN as well"
                .to_string(),
        );
    }
    let is_bounded = policy
        .setup
        .as_ref()
        .is_some_and(|setup| setup.max_entries.or(setup.max_cq_entries).is_some());
    if is_bounded && policy.allows_registration(Registration::REGISTER_RESIZE_RINGS) {
        warnings.push(
            "IORING_REGISTER_RESIZE_RINGS makes rings larger than setup allows; deny it in registrations"
                .to_string(),
        );
    }
    let sending = among(&[Op::SEND, Op::SENDMSG, Op::SEND_ZC, Op::SENDMSG_ZC]);
    if policy.connect.is_some() && !sending.is_empty() {
        warnings.push(format!(
            "{} can send to any address without connecting: datagrams, and TCP with MSG_FASTOPEN",
            short(&sending)
        ));
    }
    for destination in policy
        .connect
        .iter()
        .flatten()
        .filter(|it| it.has_mapped_addresses())
    {
        warnings.push(format!(
            "{destination} has the addresses ::ffff:0:0/96, by which sockets of IPv6 reach IPv4"
        ));
    }
    let without_effect = [
        (
            policy.socket_families.is_some(),
            "socketFamilies",
            &[Op::SOCKET][..],
        ),
        (policy.connect.is_some(), "connect", &[Op::CONNECT][..]),
        (
            policy.open.is_some(),
            "open",
            &[Op::OPENAT, Op::OPENAT2][..],
        ),
    ];
    for (is_there, name, ops) in without_effect {
        if is_there && among(ops).is_empty() {
            warnings.push(format!("{name} has no effect, as {} is denied", short(ops)));
        }
    }
    if policy
        .open
        .as_ref()
        .is_some_and(|open| open.all_required_resolve() != 0)
        && allows(&Op::OPENAT)
    {
        warnings.push("OPENAT has no resolve flags, and is denied by requiredResolve; programs must use OPENAT2".to_string());
    }
    let commands = among(&[Op::URING_CMD, Op::URING_CMD128]);
    if !commands.is_empty() {
        warnings.push(format!(
            "filters do not see the commands of {}, which drivers define",
            short(&commands)
        ));
    }
    warnings
}

/// Prints a table of what a policy does, and warnings.
///
/// # Errors
///
/// Fails if a filter would be too long.
pub fn print(policy: &Policy) -> Result<(), String> {
    let fence = policy.fence()?;
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header([
        "opcode",
        "verdict",
        "by",
        "instructions",
        "run in C",
        "run in Rust",
    ]);
    for row in rows(policy, &fence) {
        let size = row.size.map_or_else(String::new, |size| size.to_string());
        table.add_row([
            row.op.short(),
            row.verdict,
            row.by,
            size,
            row.in_c.to_string(),
            row.in_rust.to_string(),
        ]);
    }
    println!("{table}");
    if let Some(setup) = &policy.setup {
        let flags = setup.allowed_flags.as_ref().map_or_else(
            || "any flags".to_string(),
            |flags| {
                format!(
                    "the flags {}",
                    or_none(flags.iter().map(|flag| flag.short()).collect())
                )
            },
        );
        let most = |most: Option<u32>| {
            most.map_or_else(
                || "any number of".to_string(),
                |most| format!("at most {most}"),
            )
        };
        println!(
            "rings: {flags}, {} entries, {} completions",
            most(setup.max_entries),
            most(setup.max_cq_entries)
        );
    }
    if let Some(rule) = &policy.registrations {
        let verb = match rule.default_action {
            Action::Deny => "allowed",
            Action::Allow => "denied",
        };
        let names = rule
            .ops
            .iter()
            .map(|registration| registration.short())
            .collect();
        println!("registrations {verb}: {}", or_none(names));
    }
    for warning in warnings(policy) {
        println!("warning: {warning}");
    }
    Ok(())
}

fn or_none(names: Vec<String>) -> String {
    if names.is_empty() {
        "none".to_string()
    } else {
        names.join(" ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Family;
    use crate::policy::{Destination, Open};

    fn row_of(policy: &Policy, op: Op) -> Row {
        rows(policy, &policy.fence().unwrap())[usize::from(op.0)].clone()
    }

    fn has_warning(policy: &Policy, text: &str) -> bool {
        warnings(policy)
            .iter()
            .any(|warning| warning.contains(text))
    }

    #[test]
    fn rows_say_what_decides_and_what_it_costs() {
        let mut policy = Policy::allowing([Op::READ, Op::SOCKET]);
        let row = row_of(&policy, Op::READ);
        assert_eq!(
            (row.verdict.as_str(), row.by.as_str(), row.size),
            ("allowed", "ops", Some(1))
        );
        assert_eq!((row.in_c, row.in_rust), ("program", "nothing"));
        let row = row_of(&policy, Op::WRITE);
        assert_eq!(
            (row.verdict.as_str(), row.by.as_str(), row.size),
            ("denied", "defaultAction", Some(1))
        );
        assert_eq!((row.in_c, row.in_rust), ("program", "nothing"));

        policy.denied_sqe_flags = [SqeFlag::BUFFER_SELECT].into();
        policy.socket_families = Some([Family::INET].into());
        let row = row_of(&policy, Op::READ);
        assert_eq!(
            (row.verdict.as_str(), row.by.as_str()),
            ("allowed without BUFFER_SELECT", "deniedSqeFlags")
        );
        assert_eq!((row.size, row.in_rust), (Some(4), "lookup"));
        let row = row_of(&policy, Op::SOCKET);
        assert_eq!(row.verdict, "allowed without BUFFER_SELECT, of AF_INET");
        assert_eq!(
            (row.by.as_str(), row.in_rust),
            ("deniedSqeFlags, socketFamilies", "program")
        );
    }

    #[test]
    fn an_open_that_needs_resolve_flags_denies_openat() {
        let mut policy = Policy::allowing([Op::OPENAT, Op::OPENAT2]);
        policy.open = Some(Open {
            required_resolve: [crate::names::Resolve::BENEATH].into(),
            ..Default::default()
        });
        assert_eq!(row_of(&policy, Op::OPENAT).verdict, "denied");
        assert_eq!(
            row_of(&policy, Op::OPENAT2).verdict,
            "allowed with RESOLVE_BENEATH"
        );
        assert!(has_warning(&policy, "programs must use OPENAT2"));
    }

    #[test]
    fn users_of_libuv_are_warned() {
        assert!(has_warning(&Policy::allowing([Op::READ]), "libuv aborts"));
        assert!(!has_warning(
            &Policy::allowing([Op::EPOLL_CTL]),
            "libuv aborts"
        ));
    }

    #[test]
    fn flags_that_the_kernel_sets_are_warned_of() {
        let mut policy = Policy::allowing([Op::FSYNC, Op::READ]);
        policy.denied_sqe_flags = [SqeFlag::ASYNC].into();
        assert!(has_warning(
            &policy,
            "IOSQE_ASYNC on requests with FSYNC, so"
        ));
        assert!(has_warning(&policy, "while a ring drains"));
        policy.denied_sqe_flags = [SqeFlag::IO_LINK].into();
        assert!(!has_warning(&policy, "the kernel itself"));
    }

    #[test]
    fn ways_around_connect_are_warned_of() {
        let mut policy = Policy::allowing([Op::CONNECT, Op::SENDMSG]);
        let subnet = |text: &str| Destination::Subnet {
            subnet: text.parse().unwrap(),
            ports: None,
        };
        policy.connect = Some(vec![subnet("10.0.0.0/8"), subnet("fe80::/10")]);
        assert!(has_warning(&policy, "SENDMSG can send to any address"));
        assert!(!has_warning(&policy, "reach IPv4"));
        policy.connect = Some(vec![subnet("::/0")]);
        assert!(has_warning(&policy, "::/0 has the addresses ::ffff:0:0/96"));
        policy.ops = [Op::READ].into();
        assert!(has_warning(&policy, "connect has no effect"));
    }
}
