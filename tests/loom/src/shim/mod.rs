// SPDX-License-Identifier: GPL-2.0
//! What the kernel's files use of the kernel crate, made of what loom has.

pub mod atomic;
mod memory;
mod refcount;
mod region;
mod set_once;

pub mod prelude {
    use super::memory::AllocError;
    pub use super::memory::{GFP_KERNEL_ACCOUNT, KBox, KVVec};

    /// An error, by its name.
    #[derive(Debug, PartialEq, Eq)]
    pub struct Error(&'static str);

    pub const EINVAL: Error = Error("EINVAL");

    impl From<AllocError> for Error {
        fn from(_: AllocError) -> Self {
            Self("ENOMEM")
        }
    }

    pub type Result<T = ()> = std::result::Result<T, Error>;
}

pub mod sync {
    pub use super::atomic::{self, barrier};
    pub use super::memory::Arc;
    pub use super::refcount::Refcount;
    pub use super::set_once::SetOnce;
}

pub mod bitmap {
    pub use super::memory::BitmapVec;
}

pub mod nospec {
    /// Returns `index` if it is less than `len`.
    pub fn checked_index(index: usize, len: usize) -> Option<usize> {
        (index < len).then_some(index)
    }
}

pub mod io_uring {
    pub mod region {
        pub use crate::shim::region::Region;
    }

    pub mod zcrx {
        pub use crate::shim::region::{RQ_ENTRIES, RQ_HEAD, RQ_TAIL, RQE_OFF, RQE_PAD, RQE_SIZE};

        pub const EVENT_TYPES: u32 = 2;
    }
}

pub mod net {
    pub mod netmem {
        /// A buffer that goes back to its pool. No model has any.
        pub struct PooledIov<'a>(#[allow(dead_code)] &'a ());
    }
}

/// Fails in place of a warning.
#[macro_export]
macro_rules! warn_on_once {
    ($cond:expr) => {{
        assert!(!$cond, "warning: {}", stringify!($cond));
        false
    }};
}
