// SPDX-License-Identifier: GPL-2.0

//! The kinds of providers of network buffers.

use crate::bindings;

/// The kind of a provider: what the network stack and user space take its buffers for.
///
/// `NET_IOV_DMABUF` is no kind: C takes the owner of such a buffer for its own binding of a
/// dma-buf. It does not look at the owners of buffers of other kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProviderKind {
    /// Zero-copy receive of io_uring: `NET_IOV_IOURING`.
    IoUring,
}

impl ProviderKind {
    /// Returns the type of the provider's `net_iov`s: `enum net_iov_type`.
    pub(in crate::net) fn net_iov_type(self) -> bindings::net_iov_type {
        match self {
            Self::IoUring => bindings::net_iov_type_NET_IOV_IOURING,
        }
    }

    /// Returns the netlink attribute that describes the provider of a receive queue.
    pub(in crate::net) fn queue_attribute(self) -> u32 {
        match self {
            Self::IoUring => bindings::NETDEV_A_QUEUE_IO_URING,
        }
    }

    /// Returns the netlink attribute that describes the provider of a page pool.
    pub(in crate::net) fn pool_attribute(self) -> u32 {
        match self {
            Self::IoUring => bindings::NETDEV_A_PAGE_POOL_IO_URING,
        }
    }

    /// Returns the netlink attribute, in one of the above, for the size of the buffers.
    pub(in crate::net) fn buffer_size_attribute(self) -> u32 {
        match self {
            Self::IoUring => bindings::NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN,
        }
    }
}
