// SPDX-License-Identifier: GPL-2.0
//! Policies: the JSON in which they are written, and its errors. What a policy decides is
//! in `verdict`, the filters that enforce it are in `program`.
//!
//! The members `defaultAction`, `ops`, `socketFamilies` and `deniedSqeFlags` are those of
//! the proposal for the OCI runtime specification. The others are rules for what filters
//! can see besides.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
/// A subnet of IPv4 or IPv6.
pub use ipnet::IpNet as Subnet;
use miette::{Diagnostic, NamedSource, SourceOffset};
use serde::{Deserialize, Serialize};

use crate::names::{AccessMode, Family, Op, OpenFlag, Registration, Resolve, SetupFlag, SqeFlag};

/// What happens to the opcodes that a list does not name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Denies them, so that the list is one of allowed opcodes.
    Deny,
    /// Allows them, so that the list is one of denied opcodes.
    Allow,
}

/// A policy for the rings of a command.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    pub default_action: Action,
    /// The opcodes that are allowed, or denied if everything else is allowed.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ops: BTreeSet<Op>,
    /// The address families of sockets that `IORING_OP_SOCKET` may make; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_families: Option<BTreeSet<Family>>,
    /// The SQE flags that no request may have.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub denied_sqe_flags: BTreeSet<SqeFlag>,
    /// The addresses that `IORING_OP_CONNECT` may connect to; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Vec<Destination>>,
    /// The files that may be opened; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub open: Option<Open>,
    /// The rings that may be made; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub setup: Option<Setup>,
    /// The registrations that are allowed; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registrations: Option<Registrations>,
}

/// Addresses that may be connected to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(
    untagged,
    deny_unknown_fields,
    expecting = "expected a subnet, such as {\"subnet\": \"10.0.0.0/8\"}, or a family, such as \"AF_UNIX\""
)]
pub enum Destination {
    /// The ports of a subnet.
    #[serde(rename_all = "camelCase")]
    Subnet {
        subnet: IpNet,
        /// The ports; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ports: Option<Vec<Ports>>,
    },
    /// All addresses of a family.
    Family { family: Family },
}

/// A range of ports, both ends of which belong to it. A policy has a number, or a pair
/// such as `[8000, 8999]`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(try_from = "PortsText", into = "PortsText")]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged, expecting = "expected a port or a pair such as [8000, 8999]")]
enum PortsText {
    One(u16),
    Range(u16, u16),
}

impl TryFrom<PortsText> for Ports {
    type Error = String;

    fn try_from(text: PortsText) -> Result<Self, String> {
        let (first, last) = match text {
            PortsText::One(port) => (port, port),
            PortsText::Range(first, last) => (first, last),
        };
        match first <= last {
            true => Ok(Ports { first, last }),
            false => Err(format!("the range of ports [{first}, {last}] is empty")),
        }
    }
}

impl From<Ports> for PortsText {
    fn from(ports: Ports) -> Self {
        match ports.first == ports.last {
            true => PortsText::One(ports.first),
            false => PortsText::Range(ports.first, ports.last),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => write!(f, "{}", self.first),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

/// The files that `IORING_OP_OPENAT` and `IORING_OP_OPENAT2` may open.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Open {
    /// The access modes that are allowed; all if absent. Without a mode that writes,
    /// `O_CREAT`, `O_TRUNC` and `O_TMPFILE` are denied, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_modes: Option<BTreeSet<AccessMode>>,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub denied_flags: BTreeSet<OpenFlag>,
    /// The resolve flags that each open must have. `IORING_OP_OPENAT` has none, and is
    /// denied by any.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub required_resolve: BTreeSet<Resolve>,
}

/// The rings that `io_uring_setup(2)` may make.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Setup {
    /// The flags that are allowed; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_flags: Option<BTreeSet<SetupFlag>>,
    /// The most entries of a submission queue, as asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_entries: Option<u32>,
    /// The most entries of a completion queue, as asked for with `IORING_SETUP_CQSIZE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_cq_entries: Option<u32>,
}

/// The opcodes of `io_uring_register(2)` that are allowed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Registrations {
    pub default_action: Action,
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub ops: BTreeSet<Registration>,
}

/// A policy that cannot be used, with the place where it is wrong.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum PolicyError {
    #[error("cannot read the policy {path}: {source}")]
    Read {
        path: String,
        source: std::io::Error,
    },
    #[error("the policy is not valid: {message}")]
    Text {
        message: String,
        #[source_code]
        text: NamedSource<String>,
        #[label("here")]
        at: SourceOffset,
    },
    #[error("the policy is not valid: {0}")]
    Rule(String),
}

impl Policy {
    /// Makes the policy that allows these opcodes and nothing else.
    pub fn allowing(ops: impl IntoIterator<Item = Op>) -> Self {
        Policy {
            default_action: Action::Deny,
            ops: ops.into_iter().collect(),
            socket_families: None,
            denied_sqe_flags: BTreeSet::new(),
            connect: None,
            open: None,
            setup: None,
            registrations: None,
        }
    }

    /// Reads a policy from a file.
    ///
    /// # Errors
    ///
    /// Fails if the file cannot be read, and as [`parse`](Self::parse) does.
    pub fn read(path: &Path) -> Result<Self, PolicyError> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&name, text),
            Err(source) => Err(PolicyError::Read { path: name, source }),
        }
    }

    /// Reads a policy from the `text` of the file `name`.
    ///
    /// # Errors
    ///
    /// Fails if the text is not JSON, has a member or a name that is not known, or a rule
    /// whose meaning is not certain.
    pub fn parse(name: &str, text: String) -> Result<Self, PolicyError> {
        let policy: Self = serde_json::from_str(&text).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let message = error.to_string();
            let place = format!(" at line {line} column {column}");
            PolicyError::Text {
                message: message.strip_suffix(&place).unwrap_or(&message).to_string(),
                at: SourceOffset::from_location(&text, line, column),
                text: NamedSource::new(name, text),
            }
        })?;
        policy.check().map_err(PolicyError::Rule)?;
        Ok(policy)
    }

    /// Returns the policy as JSON that ends with a newline.
    pub fn to_json(&self) -> String {
        let json = serde_json::to_string_pretty(self).expect("a policy has only strings for keys");
        json + "\n"
    }

    /// Refuses rules whose meaning is not certain.
    fn check(&self) -> Result<(), String> {
        if self
            .socket_families
            .as_ref()
            .is_some_and(BTreeSet::is_empty)
        {
            return Err(
                "socketFamilies is empty; leave it out to allow all families, or deny \
                        IORING_OP_SOCKET to allow none"
                    .to_string(),
            );
        }
        if self.connect.as_ref().is_some_and(Vec::is_empty) {
            return Err(
                "connect is empty; leave it out to allow all addresses, or deny \
                        IORING_OP_CONNECT to allow none"
                    .to_string(),
            );
        }
        for destination in self.connect.iter().flatten() {
            match destination {
                Destination::Subnet { subnet, .. } if subnet.trunc() != *subnet => {
                    return Err(format!(
                        "{subnet} has bits behind its prefix; the subnet is {}",
                        subnet.trunc()
                    ));
                }
                Destination::Subnet {
                    subnet,
                    ports: Some(ports),
                } if ports.is_empty() => {
                    return Err(format!(
                        "the ports of {subnet} are empty; leave them out to allow all ports"
                    ));
                }
                _ => {}
            }
        }
        if let Some(open) = &self.open {
            if open.access_modes.as_ref().is_some_and(BTreeSet::is_empty) {
                return Err(
                    "accessModes is empty; leave it out to allow all modes, or deny \
                            IORING_OP_OPENAT and IORING_OP_OPENAT2 to allow none"
                        .to_string(),
                );
            }
            if *open == Open::default() {
                return Err("open has no rule; leave it out".to_string());
            }
        }
        if self.setup.as_ref() == Some(&Setup::default()) {
            return Err("setup has no rule; leave it out".to_string());
        }
        Ok(())
    }
}

impl Open {
    /// Returns the flags that no open may have, those included that the access modes rule
    /// out.
    pub fn all_denied_flags(&self) -> u32 {
        let writing = [OpenFlag::CREAT, OpenFlag::TRUNC, OpenFlag::TMPFILE];
        let reads_only = self.access_modes.as_ref().is_some_and(|modes| {
            !modes.contains(&AccessMode::WRONLY) && !modes.contains(&AccessMode::RDWR)
        });
        let implied = writing.iter().filter(|_| reads_only);
        self.denied_flags
            .iter()
            .chain(implied)
            .fold(0, |flags, flag| flags | flag.0)
    }

    /// Returns the resolve flags that each open must have.
    pub fn all_required_resolve(&self) -> u32 {
        self.required_resolve
            .iter()
            .fold(0, |flags, flag| flags | flag.0)
    }
}

impl Setup {
    /// Returns the flags that no ring may have.
    pub fn denied_flags(&self) -> u32 {
        let allowed = self.allowed_flags.as_ref();
        allowed.map_or(0, |flags| !flags.iter().fold(0, |all, flag| all | flag.0))
    }
}

impl Destination {
    /// Returns the family of the addresses.
    pub fn family(&self) -> Family {
        match self {
            Destination::Subnet {
                subnet: IpNet::V4(_),
                ..
            } => Family::INET,
            Destination::Subnet {
                subnet: IpNet::V6(_),
                ..
            } => Family::INET6,
            Destination::Family { family } => *family,
        }
    }

    /// Returns whether a subnet of IPv6 has addresses that stand for those of IPv4, which
    /// a socket of IPv6 reaches by them.
    pub fn has_mapped_addresses(&self) -> bool {
        let mapped: IpNet = "::ffff:0:0/96".parse().expect("this is a subnet");
        match self {
            Destination::Subnet {
                subnet: subnet @ IpNet::V6(_),
                ..
            } => subnet.contains(&mapped) || mapped.contains(subnet),
            Destination::Subnet { .. } => false,
            Destination::Family { family } => *family == Family::INET6,
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Destination::Family { family } => write!(f, "{family}"),
            Destination::Subnet {
                subnet,
                ports: None,
            } => write!(f, "{subnet}"),
            Destination::Subnet {
                subnet,
                ports: Some(ports),
            } => {
                let ports: Vec<String> = ports.iter().map(Ports::to_string).collect();
                write!(f, "{subnet} port {}", ports.join(","))
            }
        }
    }
}

/// Returns the bytes of an address, followed by zeroes.
pub fn address_bytes(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => {
            let mut bytes = [0; 16];
            bytes[..4].copy_from_slice(&address.octets());
            bytes
        }
        IpAddr::V6(address) => address.octets(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Policy, String> {
        Policy::parse("test", text.to_string()).map_err(|error| error.to_string())
    }

    fn refused(text: &str) -> String {
        parse(text).expect_err(text)
    }

    #[test]
    fn the_proposal_for_oci_is_understood() {
        let policy = parse(
            r#"{"defaultAction": "deny", "ops": ["IORING_OP_READ", "IORING_OP_SOCKET"],
                "socketFamilies": ["AF_UNIX", "AF_INET"], "deniedSqeFlags": ["IOSQE_BUFFER_SELECT"]}"#,
        )
        .unwrap();
        assert_eq!(policy.default_action, Action::Deny);
        assert_eq!(policy.ops, [Op::READ, Op::SOCKET].into());
        assert_eq!(
            policy.socket_families,
            Some([Family::UNIX, Family::INET].into())
        );
        assert_eq!(policy.denied_sqe_flags, [SqeFlag::BUFFER_SELECT].into());
    }

    #[test]
    fn the_rules_beyond_it_are_understood() {
        let policy = parse(
            r#"{"defaultAction": "allow",
                "connect": [{"subnet": "10.0.0.0/8", "ports": [443, [8000, 8999]]}, {"family": "AF_UNIX"}],
                "open": {"accessModes": ["O_RDONLY"], "deniedFlags": ["O_PATH"], "requiredResolve": ["RESOLVE_BENEATH"]},
                "setup": {"allowedFlags": ["IORING_SETUP_CLAMP"], "maxEntries": 64},
                "registrations": {"defaultAction": "deny", "ops": ["IORING_REGISTER_PROBE", "IORING_UNREGISTER_FILES"]}}"#,
        )
        .unwrap();
        let ports = vec![
            Ports {
                first: 443,
                last: 443,
            },
            Ports {
                first: 8000,
                last: 8999,
            },
        ];
        let subnet = "10.0.0.0/8".parse().unwrap();
        let subnet = Destination::Subnet {
            subnet,
            ports: Some(ports),
        };
        assert_eq!(
            policy.connect,
            Some(vec![
                subnet,
                Destination::Family {
                    family: Family::UNIX
                }
            ])
        );
        assert_eq!(policy.setup.unwrap().denied_flags(), !SetupFlag::CLAMP.0);
        let registrations = policy.registrations.unwrap();
        assert_eq!(
            registrations.ops,
            [Registration::UNREGISTER_FILES, Registration::REGISTER_PROBE].into()
        );
    }

    /// A rule that is not understood must never be left out.
    #[test]
    fn unknown_members_are_refused() {
        for text in [
            r#"{"defaultAction": "deny", "deniedOps": []}"#,
            r#"{"defaultAction": "deny", "open": {"accessModes": ["O_RDONLY"], "flags": []}}"#,
            r#"{"defaultAction": "deny", "setup": {"maxEntries": 8, "flags": []}}"#,
            r#"{"defaultAction": "deny", "registrations": {"defaultAction": "deny", "op": []}}"#,
            r#"{"defaultAction": "deny", "connect": [{"subnet": "10.0.0.0/8", "port": [1]}]}"#,
            r#"{"defaultAction": "deny", "connect": [{"family": "AF_INET", "ports": [1]}]}"#,
            r#"{"defaultAction": "log"}"#,
            r#"{"ops": []}"#,
        ] {
            refused(text);
        }
        assert!(
            refused(r#"{"defaultAction": "deny", "deniedOps": []}"#)
                .contains("unknown field `deniedOps`")
        );
    }

    #[test]
    fn errors_say_where_they_are() {
        let text = "{\"defaultAction\": \"deny\",\n \"ops\": [\"IORING_OP_REDA\"]}".to_string();
        let Err(PolicyError::Text { message, at, text }) = Policy::parse("test", text) else {
            panic!("the policy is accepted");
        };
        assert_eq!(
            message,
            "unknown opcode IORING_OP_REDA; the nearest name is IORING_OP_READ"
        );
        let behind = &text.inner()[..at.offset()];
        assert!(behind.ends_with("IORING_OP_REDA\""), "{behind}");
    }

    #[test]
    fn rules_without_a_certain_meaning_are_refused() {
        for (rule, message) in [
            (r#""socketFamilies": []"#, "socketFamilies is empty"),
            (r#""connect": []"#, "connect is empty"),
            (
                r#""connect": [{"subnet": "10.0.0.0/8", "ports": []}]"#,
                "the ports of 10.0.0.0/8 are empty",
            ),
            (
                r#""connect": [{"subnet": "10.0.0.1/8"}]"#,
                "the subnet is 10.0.0.0/8",
            ),
            (r#""open": {"accessModes": []}"#, "accessModes is empty"),
            (r#""open": {}"#, "open has no rule"),
            (r#""setup": {}"#, "setup has no rule"),
        ] {
            let error = refused(&format!(r#"{{"defaultAction": "deny", {rule}}}"#));
            assert!(error.contains(message), "{error}");
        }
    }

    #[test]
    fn wrong_ports_are_refused() {
        for ports in ["65536", "-1", "[9, 8]", "\"80\"", "[1, 2, 3]", "[]"] {
            let rule = format!(r#"{{"subnet": "::/0", "ports": [{ports}]}}"#);
            refused(&format!(
                r#"{{"defaultAction": "deny", "connect": [{rule}]}}"#
            ));
        }
    }

    /// An open for reading can truncate and make files.
    #[test]
    fn reading_rules_out_flags_that_write() {
        let modes = |modes: &[AccessMode]| Open {
            access_modes: Some(modes.iter().copied().collect()),
            ..Default::default()
        };
        let writing = OpenFlag::CREAT.0 | OpenFlag::TRUNC.0 | OpenFlag::TMPFILE.0;
        assert_eq!(modes(&[AccessMode::RDONLY]).all_denied_flags(), writing);
        assert_eq!(
            modes(&[AccessMode::RDONLY, AccessMode::WRONLY]).all_denied_flags(),
            0
        );
        assert_eq!(modes(&[AccessMode::RDWR]).all_denied_flags(), 0);
        assert_eq!(Open::default().all_denied_flags(), 0);
    }

    #[test]
    fn subnets_of_mapped_addresses_are_found() {
        let subnet = |text: &str| Destination::Subnet {
            subnet: text.parse().unwrap(),
            ports: None,
        };
        assert!(subnet("::/0").has_mapped_addresses());
        assert!(subnet("::ffff:10.0.0.0/104").has_mapped_addresses());
        assert!(!subnet("fe80::/10").has_mapped_addresses());
        assert!(!subnet("0.0.0.0/0").has_mapped_addresses());
    }
}
