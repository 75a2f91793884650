// SPDX-License-Identifier: GPL-2.0
//! The names that a policy may contain, with their numbers: those of the kernel's headers
//! as of Linux 7.3. A name that is not in these tables is an error that says which known
//! name is nearest.

/// A name that no table has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {kind} {name}{}", hint(.nearest))]
pub struct UnknownName {
    pub kind: &'static str,
    pub name: String,
    /// The known name that differs least, if any is similar.
    pub nearest: Option<&'static str>,
}

fn hint(nearest: &Option<&'static str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; the nearest name is {name}"))
}

/// Returns the candidate that is most like `name`, if any is alike at all.
fn nearest(name: &str, candidates: impl Iterator<Item = &'static str>) -> Option<&'static str> {
    let name = name.to_uppercase();
    candidates
        .map(|candidate| (strsim::osa_distance(&name, candidate), candidate))
        .min_by_key(|&(distance, _)| distance)
        .filter(|&(distance, candidate)| distance <= candidate.len() / 2)
        .map(|(_, candidate)| candidate)
}

/// Makes a type for the numbers of a table, which is written as a name in a policy.
macro_rules! names {
    ($(#[$doc:meta])* $type:ident: $number:ty, $kind:literal, $prefix:literal
        [$($name:ident = $value:expr,)*]) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[derive(serde::Serialize, serde::Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(pub $number);

        impl $type {
            $(pub const $name: Self = Self($value);)*

            /// All names with their values, in the order of the header.
            pub const ALL: &'static [(&'static str, Self)] =
                &[$((concat!($prefix, stringify!($name)), Self::$name),)*];

            /// Returns the name in the header, if this value has one.
            pub fn name(self) -> Option<&'static str> {
                Self::ALL.iter().find(|(_, value)| *value == self).map(|(name, _)| *name)
            }

            /// Returns the name without the prefix that all names of this kind have. A
            /// value without a name is shown as its number.
            pub fn short(self) -> String {
                match self.name() {
                    Some(name) => name[$prefix.len()..].to_string(),
                    None => format!("{:#x}", self.0),
                }
            }

            /// Finds a value by its short name, in letters of any case.
            ///
            /// # Errors
            ///
            /// Fails if no value has this name.
            pub fn from_short(name: &str) -> Result<Self, UnknownName> {
                let upper = name.to_uppercase();
                match upper.strip_prefix($prefix) {
                    Some(_) => Self::try_from(upper),
                    None => Self::try_from(format!("{}{upper}", $prefix)).map_err(|error| UnknownName {
                        name: name.to_string(),
                        nearest: error.nearest.map(|name| &name[$prefix.len()..]),
                        ..error
                    }),
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = UnknownName;

            fn try_from(name: String) -> Result<Self, UnknownName> {
                match Self::ALL.iter().find(|(known, _)| *known == name) {
                    Some((_, value)) => Ok(*value),
                    None => Err(UnknownName {
                        kind: $kind,
                        nearest: nearest(&name, Self::ALL.iter().map(|(known, _)| *known)),
                        name,
                    }),
                }
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                match self.name() {
                    Some(name) => f.write_str(name),
                    None => write!(f, "{:#x}", self.0),
                }
            }
        }
    };
}

names! {
    /// An opcode of a request: `IORING_OP_*`.
    Op: u8, "opcode", "IORING_OP_" [
        NOP = 0, READV = 1, WRITEV = 2, FSYNC = 3, READ_FIXED = 4, WRITE_FIXED = 5,
        POLL_ADD = 6, POLL_REMOVE = 7, SYNC_FILE_RANGE = 8, SENDMSG = 9, RECVMSG = 10,
        TIMEOUT = 11, TIMEOUT_REMOVE = 12, ACCEPT = 13, ASYNC_CANCEL = 14,
        LINK_TIMEOUT = 15, CONNECT = 16, FALLOCATE = 17, OPENAT = 18, CLOSE = 19,
        FILES_UPDATE = 20, STATX = 21, READ = 22, WRITE = 23, FADVISE = 24, MADVISE = 25,
        SEND = 26, RECV = 27, OPENAT2 = 28, EPOLL_CTL = 29, SPLICE = 30,
        PROVIDE_BUFFERS = 31, REMOVE_BUFFERS = 32, TEE = 33, SHUTDOWN = 34, RENAMEAT = 35,
        UNLINKAT = 36, MKDIRAT = 37, SYMLINKAT = 38, LINKAT = 39, MSG_RING = 40,
        FSETXATTR = 41, SETXATTR = 42, FGETXATTR = 43, GETXATTR = 44, SOCKET = 45,
        URING_CMD = 46, SEND_ZC = 47, SENDMSG_ZC = 48, READ_MULTISHOT = 49, WAITID = 50,
        FUTEX_WAIT = 51, FUTEX_WAKE = 52, FUTEX_WAITV = 53, FIXED_FD_INSTALL = 54,
        FTRUNCATE = 55, BIND = 56, LISTEN = 57, RECV_ZC = 58, EPOLL_WAIT = 59,
        READV_FIXED = 60, WRITEV_FIXED = 61, PIPE = 62, NOP128 = 63, URING_CMD128 = 64,
    ]
}

names! {
    /// An opcode of `io_uring_register(2)`: `IORING_REGISTER_*` and, without that prefix,
    /// `IORING_UNREGISTER_*`.
    Registration: u8, "registration", "IORING_" [
        REGISTER_BUFFERS = 0, UNREGISTER_BUFFERS = 1, REGISTER_FILES = 2,
        UNREGISTER_FILES = 3, REGISTER_EVENTFD = 4, UNREGISTER_EVENTFD = 5,
        REGISTER_FILES_UPDATE = 6, REGISTER_EVENTFD_ASYNC = 7, REGISTER_PROBE = 8,
        REGISTER_PERSONALITY = 9, UNREGISTER_PERSONALITY = 10, REGISTER_RESTRICTIONS = 11,
        REGISTER_ENABLE_RINGS = 12, REGISTER_FILES2 = 13, REGISTER_FILES_UPDATE2 = 14,
        REGISTER_BUFFERS2 = 15, REGISTER_BUFFERS_UPDATE = 16, REGISTER_IOWQ_AFF = 17,
        UNREGISTER_IOWQ_AFF = 18, REGISTER_IOWQ_MAX_WORKERS = 19, REGISTER_RING_FDS = 20,
        UNREGISTER_RING_FDS = 21, REGISTER_PBUF_RING = 22, UNREGISTER_PBUF_RING = 23,
        REGISTER_SYNC_CANCEL = 24, REGISTER_FILE_ALLOC_RANGE = 25,
        REGISTER_PBUF_STATUS = 26, REGISTER_NAPI = 27, UNREGISTER_NAPI = 28,
        REGISTER_CLOCK = 29, REGISTER_CLONE_BUFFERS = 30, REGISTER_SEND_MSG_RING = 31,
        REGISTER_ZCRX_IFQ = 32, REGISTER_RESIZE_RINGS = 33, REGISTER_MEM_REGION = 34,
        REGISTER_QUERY = 35, REGISTER_ZCRX_CTRL = 36, REGISTER_BPF_FILTER = 37,
    ]
}

names! {
    /// A flag of an SQE: `IOSQE_*`.
    SqeFlag: u8, "SQE flag", "IOSQE_" [
        FIXED_FILE = 1 << 0, IO_DRAIN = 1 << 1, IO_LINK = 1 << 2, IO_HARDLINK = 1 << 3,
        ASYNC = 1 << 4, BUFFER_SELECT = 1 << 5, CQE_SKIP_SUCCESS = 1 << 6,
    ]
}

names! {
    /// A flag of `io_uring_setup(2)`: `IORING_SETUP_*`.
    SetupFlag: u32, "setup flag", "IORING_SETUP_" [
        IOPOLL = 1 << 0, SQPOLL = 1 << 1, SQ_AFF = 1 << 2, CQSIZE = 1 << 3, CLAMP = 1 << 4,
        ATTACH_WQ = 1 << 5, R_DISABLED = 1 << 6, SUBMIT_ALL = 1 << 7,
        COOP_TASKRUN = 1 << 8, TASKRUN_FLAG = 1 << 9, SQE128 = 1 << 10, CQE32 = 1 << 11,
        SINGLE_ISSUER = 1 << 12, DEFER_TASKRUN = 1 << 13, NO_MMAP = 1 << 14,
        REGISTERED_FD_ONLY = 1 << 15, NO_SQARRAY = 1 << 16, HYBRID_IOPOLL = 1 << 17,
        CQE_MIXED = 1 << 18, SQE_MIXED = 1 << 19, SQ_REWIND = 1 << 20,
    ]
}

names! {
    /// An address family of sockets: `AF_*`.
    Family: u32, "address family", "AF_" [
        UNSPEC = 0, UNIX = 1, INET = 2, AX25 = 3, IPX = 4, APPLETALK = 5, NETROM = 6,
        BRIDGE = 7, ATMPVC = 8, X25 = 9, INET6 = 10, ROSE = 11, NETBEUI = 13,
        SECURITY = 14, KEY = 15, NETLINK = 16, PACKET = 17, ASH = 18, ECONET = 19,
        ATMSVC = 20, RDS = 21, SNA = 22, IRDA = 23, PPPOX = 24, WANPIPE = 25, LLC = 26,
        IB = 27, MPLS = 28, CAN = 29, TIPC = 30, BLUETOOTH = 31, IUCV = 32, RXRPC = 33,
        ISDN = 34, PHONET = 35, IEEE802154 = 36, CAIF = 37, ALG = 38, NFC = 39,
        VSOCK = 40, KCM = 41, QIPCRTR = 42, SMC = 43, XDP = 44, MCTP = 45,
    ]
}

names! {
    /// An access mode of an open: one of the values of the bits `O_ACCMODE`.
    AccessMode: u32, "access mode", "O_" [
        RDONLY = libc::O_RDONLY as u32, WRONLY = libc::O_WRONLY as u32,
        RDWR = libc::O_RDWR as u32,
    ]
}

names! {
    /// A flag of an open, as the bits that no other name shares.
    OpenFlag: u32, "open flag", "O_" [
        CREAT = libc::O_CREAT as u32, EXCL = libc::O_EXCL as u32,
        NOCTTY = libc::O_NOCTTY as u32, TRUNC = libc::O_TRUNC as u32,
        APPEND = libc::O_APPEND as u32, NONBLOCK = libc::O_NONBLOCK as u32,
        DSYNC = libc::O_DSYNC as u32, SYNC = (libc::O_SYNC & !libc::O_DSYNC) as u32,
        DIRECT = libc::O_DIRECT as u32, DIRECTORY = libc::O_DIRECTORY as u32,
        NOFOLLOW = libc::O_NOFOLLOW as u32, NOATIME = libc::O_NOATIME as u32,
        CLOEXEC = libc::O_CLOEXEC as u32, PATH = libc::O_PATH as u32,
        TMPFILE = (libc::O_TMPFILE & !libc::O_DIRECTORY) as u32, EMPTYPATH = 1 << 26,
    ]
}

names! {
    /// A flag of `openat2(2)` that limits how a path is resolved: `RESOLVE_*`.
    Resolve: u32, "resolve flag", "RESOLVE_" [
        NO_XDEV = 0x01, NO_MAGICLINKS = 0x02, NO_SYMLINKS = 0x04, BENEATH = 0x08,
        IN_ROOT = 0x10, CACHED = 0x20,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_names_come_with_the_nearest() {
        let error = Op::try_from("IORING_OP_REDA".to_string()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "unknown opcode IORING_OP_REDA; the nearest name is IORING_OP_READ"
        );
        let error = Op::from_short("opnat").unwrap_err();
        assert_eq!(error.nearest, Some("OPENAT"));
        let error = Family::try_from("something else".to_string()).unwrap_err();
        assert_eq!(error.to_string(), "unknown address family something else");
    }

    #[test]
    fn short_names_are_found_in_any_case() {
        assert_eq!(Op::from_short("read"), Ok(Op::READ));
        assert_eq!(Op::from_short("IORING_OP_READ"), Ok(Op::READ));
        assert_eq!(Op::READ_FIXED.short(), "READ_FIXED");
        assert_eq!(Op(200).short(), "0xc8");
    }

    /// Policies are written as the headers spell names, so that other spellings are
    /// errors.
    #[test]
    fn policies_have_full_names_only() {
        assert!(Op::try_from("READ".to_string()).is_err());
        assert!(Op::try_from("ioring_op_read".to_string()).is_err());
    }

    #[test]
    fn numbers_are_dense() {
        assert!((0..65).eq(Op::ALL.iter().map(|(_, op)| op.0)));
        assert!(
            (0..38).eq(Registration::ALL
                .iter()
                .map(|(_, registration)| registration.0))
        );
        assert!((0..7).eq(SqeFlag::ALL.iter().map(|(_, flag)| flag.0.trailing_zeros())));
        assert!(
            (0..21).eq(SetupFlag::ALL
                .iter()
                .map(|(_, flag)| flag.0.trailing_zeros()))
        );
    }

    /// The build root has the header of the kernel that this project is for.
    #[test]
    fn names_are_those_of_the_header() {
        let header = std::fs::read_to_string("/usr/include/linux/io_uring.h").unwrap();
        let names = |pattern: &str| -> Vec<String> {
            let pattern = regex::Regex::new(pattern).unwrap();
            let found = pattern.captures_iter(&header);
            found.map(|name| name[1].to_string()).collect()
        };
        let all = |names: &mut dyn Iterator<Item = &'static str>| -> Vec<String> {
            names.map(str::to_string).collect()
        };
        let mut ops = names(r"(?m)^\t(IORING_OP_[A-Z0-9_]+),$");
        assert_eq!(ops.pop().as_deref(), Some("IORING_OP_LAST"));
        assert_eq!(ops, all(&mut Op::ALL.iter().map(|(name, _)| *name)));
        assert_eq!(
            names(r"(?m)^\t(IORING_(?:UN)?REGISTER_[A-Z0-9_]+)\t*=\s[0-9]+,$"),
            all(&mut Registration::ALL.iter().map(|(name, _)| *name))
        );
        assert_eq!(
            names(r"(?m)^#define (IORING_SETUP_[A-Z0-9_]+)\t+\(1U << [0-9]+\)"),
            all(&mut SetupFlag::ALL.iter().map(|(name, _)| *name))
        );
        assert_eq!(
            names(r"(?m)^#define (IOSQE_[A-Z0-9_]+)\t+\(1U << "),
            all(&mut SqeFlag::ALL.iter().map(|(name, _)| *name))
        );
    }
}
