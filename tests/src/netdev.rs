// SPDX-License-Identifier: GPL-2.0
//! Asks the generic netlink family `netdev` about receive queues and page pools and who
//! provides their memory, leases queues, and binds dma-bufs to them. Also changes ring
//! settings over the family `ethtool`, as Debian's `ethtool` does not know all of them.

use std::os::fd::RawFd;

use anyhow::{Context, bail};
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::genl::{
    AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, Nlattr, NlattrBuilder, NoUserHeader,
};
use neli::nl::{NlPayload, NlmsghdrBuilder};
use neli::router::synchronous::NlRouter;
use neli::socket::synchronous::NlSocketHandle;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;

const NETDEV_CMD_PAGE_POOL_GET: u8 = 5;
const NETDEV_CMD_QUEUE_GET: u8 = 10;
const NETDEV_CMD_BIND_RX: u8 = 13;
const NETDEV_CMD_QUEUE_CREATE: u8 = 16;

const NETDEV_A_PAGE_POOL_ID: u16 = 1;
const NETDEV_A_PAGE_POOL_IFINDEX: u16 = 2;
const NETDEV_A_PAGE_POOL_NAPI_ID: u16 = 3;
const NETDEV_A_PAGE_POOL_INFLIGHT: u16 = 4;
const NETDEV_A_PAGE_POOL_DETACH_TIME: u16 = 6;
const NETDEV_A_PAGE_POOL_IO_URING: u16 = 8;

const NETDEV_A_QUEUE_ID: u16 = 1;
const NETDEV_A_QUEUE_IFINDEX: u16 = 2;
const NETDEV_A_QUEUE_TYPE: u16 = 3;
const NETDEV_A_QUEUE_NAPI_ID: u16 = 4;
const NETDEV_A_QUEUE_IO_URING: u16 = 6;
const NETDEV_A_QUEUE_LEASE: u16 = 8;
const NETDEV_A_LEASE_IFINDEX: u16 = 1;
const NETDEV_A_LEASE_QUEUE: u16 = 2;
const NETDEV_QUEUE_TYPE_RX: u32 = 0;

const NETDEV_A_DMABUF_IFINDEX: u16 = 1;
const NETDEV_A_DMABUF_QUEUES: u16 = 2;
const NETDEV_A_DMABUF_FD: u16 = 3;
const NETDEV_A_DMABUF_ID: u16 = 4;

const NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN: u16 = 1;

const ETHTOOL_MSG_RINGS_SET: u8 = 16;
const ETHTOOL_A_RINGS_HEADER: u16 = 1;
const ETHTOOL_A_RINGS_RX: u16 = 6;
const ETHTOOL_A_RINGS_TCP_DATA_SPLIT: u16 = 11;
const ETHTOOL_A_RINGS_HDS_THRESH: u16 = 17;
const ETHTOOL_A_HEADER_DEV_INDEX: u16 = 1;

/// A message of a generic netlink family.
type Message = Genlmsghdr<u8, u16>;

/// A receive queue.
#[derive(Clone, Debug)]
pub struct Queue {
    pub id: u64,
    pub napi: Option<u64>,
    /// The size of its buffers in bytes, if io_uring provides them.
    pub buffer: Option<u64>,
}

/// A page pool.
#[derive(Clone, Debug)]
pub struct Pool {
    pub id: u64,
    /// The interface index of its device, unless the device is gone.
    pub index: Option<u64>,
    pub napi: Option<u64>,
    /// The number of buffers that are out.
    pub inflight: u64,
    /// Whether its owner has destroyed it while buffers were still out.
    pub detached: bool,
    /// The size of its buffers in bytes.
    pub buffer: u64,
}

/// Decodes an unsigned number of 32 or 64 bits.
fn number(bytes: &[u8]) -> Option<u64> {
    match *bytes {
        [a, b, c, d] => Some(u32::from_ne_bytes([a, b, c, d]).into()),
        [a, b, c, d, e, f, g, h] => Some(u64::from_ne_bytes([a, b, c, d, e, f, g, h])),
        _ => None,
    }
}

fn attribute(message: &Message, kind: u16) -> Option<u64> {
    let handle = message.attrs().get_attr_handle();
    let attribute = handle.get_attribute(kind)?;
    number(attribute.nla_payload().as_ref())
}

/// Returns the size of buffers in bytes from the nested attribute `nest` of io_uring.
fn buffer(message: &Message, nest: u16) -> Option<u64> {
    let handle = message.attrs().get_attr_handle();
    let nested = handle.get_nested_attributes::<u16>(nest).ok()?;
    let size = nested.get_attribute(NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN)?;
    number(size.nla_payload().as_ref())
}

/// Builds an attribute that holds a number of 32 bits.
fn word(kind: u16, value: u32) -> anyhow::Result<Nlattr<u16, Buffer>> {
    let kind = AttrTypeBuilder::default().nla_type(kind).build()?;
    Ok(NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(value)
        .build()?)
}

/// Sends a request to a family. Returns all messages of the answer, and the socket that
/// received them. The answers of `netdev` lack the multipart flag, without which neli's
/// router would stop after the first message, so this function uses a socket.
fn ask_by_socket(
    family: &str,
    command: u8,
    flags: NlmF,
    attributes: Vec<Nlattr<u16, Buffer>>,
) -> anyhow::Result<(Vec<Message>, NlSocketHandle)> {
    let (router, _) = NlRouter::connect(NlFamily::Generic, None, Groups::empty())?;
    let id = router.resolve_genl_family(family);
    let id = id.with_context(|| family.to_string())?;
    let request = GenlmsghdrBuilder::<u8, u16, NoUserHeader>::default()
        .cmd(command)
        .version(1)
        .attrs(attributes.into_iter().collect::<GenlBuffer<_, _>>())
        .build()?;
    let request = NlmsghdrBuilder::default()
        .nl_type(id)
        .nl_flags(NlmF::REQUEST | NlmF::ACK | flags)
        .nl_payload(NlPayload::Payload(request))
        .build()?;
    let socket = NlSocketHandle::connect(NlFamily::Generic, None, Groups::empty())?;
    socket.send(&request)?;
    let mut messages = Vec::new();
    let mut ended = false;
    while !ended {
        for answer in socket.recv::<u16, Message>()?.0 {
            match answer?.nl_payload() {
                NlPayload::Payload(message) => messages.push(message.clone()),
                NlPayload::Err(error) => bail!("{family}: {error}"),
                // An acknowledgement ends a dump, or reports success.
                NlPayload::Ack(_) | NlPayload::DumpExtAck(_) | NlPayload::Empty => ended = true,
            }
        }
    }
    Ok((messages, socket))
}

/// Sends a request to a family. Returns all messages of the answer.
fn ask(
    family: &str,
    command: u8,
    flags: NlmF,
    attributes: Vec<Nlattr<u16, Buffer>>,
) -> anyhow::Result<Vec<Message>> {
    Ok(ask_by_socket(family, command, flags, attributes)?.0)
}

/// Builds an attribute that holds other attributes.
fn nest(kind: u16, attributes: &[Nlattr<u16, Buffer>]) -> anyhow::Result<Nlattr<u16, Buffer>> {
    let kind = AttrTypeBuilder::default()
        .nla_type(kind)
        .nla_nested(true)
        .build()?;
    let mut nest = NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(Buffer::new())
        .build()?;
    for attribute in attributes {
        nest = nest.nest(attribute)?;
    }
    Ok(nest)
}

/// Changes a setting of a device's rings, which restarts its queues.
fn set_rings(index: u32, setting: Nlattr<u16, Buffer>) -> anyhow::Result<()> {
    let device = word(ETHTOOL_A_HEADER_DEV_INDEX, index)?;
    let header = nest(ETHTOOL_A_RINGS_HEADER, &[device])?;
    let attributes = vec![header, setting];
    ask("ethtool", ETHTOOL_MSG_RINGS_SET, NlmF::empty(), attributes).map(drop)
}

/// Makes a device split packets into headers and payload.
pub fn split_headers(index: u32) -> anyhow::Result<()> {
    const ENABLED: u8 = 2;
    let kind = AttrTypeBuilder::default()
        .nla_type(ETHTOOL_A_RINGS_TCP_DATA_SPLIT)
        .build()?;
    let split = NlattrBuilder::default()
        .nla_type(kind)
        .nla_payload(ENABLED)
        .build()?;
    set_rings(index, split)
}

/// Sets the number of buffers of a device's receive rings.
pub fn set_ring(index: u32, buffers: u32) -> anyhow::Result<()> {
    set_rings(index, word(ETHTOOL_A_RINGS_RX, buffers)?)
}

/// Makes a device leave payload of up to `bytes` bytes with the headers.
pub fn set_split_threshold(index: u32, bytes: u32) -> anyhow::Result<()> {
    set_rings(index, word(ETHTOOL_A_RINGS_HDS_THRESH, bytes)?)
}

/// Adds a queue to a virtual device that stands for a queue of a physical one. Returns
/// the id of the new queue.
pub fn lease(virtual_index: u32, index: u32, queue: u32) -> anyhow::Result<u32> {
    let receive = || word(NETDEV_A_QUEUE_TYPE, NETDEV_QUEUE_TYPE_RX);
    let leased = [word(NETDEV_A_QUEUE_ID, queue)?, receive()?];
    let lease = [
        word(NETDEV_A_LEASE_IFINDEX, index)?,
        nest(NETDEV_A_LEASE_QUEUE, &leased)?,
    ];
    let attributes = vec![
        word(NETDEV_A_QUEUE_IFINDEX, virtual_index)?,
        receive()?,
        nest(NETDEV_A_QUEUE_LEASE, &lease)?,
    ];
    let answer = ask("netdev", NETDEV_CMD_QUEUE_CREATE, NlmF::empty(), attributes)?;
    let id = answer.iter().find_map(|m| attribute(m, NETDEV_A_QUEUE_ID));
    Ok(u32::try_from(id.context("no id")?)?)
}

/// A dma-buf that is bound to a receive queue. Dropping it unbinds the dma-buf.
pub struct BoundDmabuf {
    pub id: u32,
    _socket: NlSocketHandle,
}

/// Binds a dma-buf to a receive queue, whose memory it is from then on.
pub fn bind_dmabuf(index: u32, queue: u32, dmabuf: RawFd) -> anyhow::Result<BoundDmabuf> {
    let queue = [
        word(NETDEV_A_QUEUE_ID, queue)?,
        word(NETDEV_A_QUEUE_TYPE, NETDEV_QUEUE_TYPE_RX)?,
    ];
    let attributes = vec![
        word(NETDEV_A_DMABUF_IFINDEX, index)?,
        nest(NETDEV_A_DMABUF_QUEUES, &queue)?,
        word(NETDEV_A_DMABUF_FD, dmabuf as u32)?,
    ];
    let (answer, socket) = ask_by_socket("netdev", NETDEV_CMD_BIND_RX, NlmF::empty(), attributes)?;
    let id = answer.iter().find_map(|m| attribute(m, NETDEV_A_DMABUF_ID));
    Ok(BoundDmabuf {
        id: u32::try_from(id.context("no id")?)?,
        _socket: socket,
    })
}

/// Returns the receive queues of a device in this network namespace.
pub fn queues(index: u32) -> anyhow::Result<Vec<Queue>> {
    let attributes = vec![word(NETDEV_A_QUEUE_IFINDEX, index)?];
    let messages = ask("netdev", NETDEV_CMD_QUEUE_GET, NlmF::DUMP, attributes)?;
    let receive = |message: &&Message| {
        attribute(message, NETDEV_A_QUEUE_TYPE) == Some(NETDEV_QUEUE_TYPE_RX.into())
    };
    let queue = |message: &Message| {
        Some(Queue {
            id: attribute(message, NETDEV_A_QUEUE_ID)?,
            napi: attribute(message, NETDEV_A_QUEUE_NAPI_ID),
            buffer: buffer(message, NETDEV_A_QUEUE_IO_URING),
        })
    };
    let queues: Option<_> = messages.iter().filter(receive).map(queue).collect();
    queues.context("a queue without an id")
}

/// Returns the page pools of devices in this network namespace whose buffers io_uring
/// provides.
pub fn provided_pools() -> anyhow::Result<Vec<Pool>> {
    let messages = ask("netdev", NETDEV_CMD_PAGE_POOL_GET, NlmF::DUMP, Vec::new())?;
    let pool = |message: &Message| {
        let buffer = buffer(message, NETDEV_A_PAGE_POOL_IO_URING)?;
        Some(Pool {
            id: attribute(message, NETDEV_A_PAGE_POOL_ID)?,
            index: attribute(message, NETDEV_A_PAGE_POOL_IFINDEX),
            napi: attribute(message, NETDEV_A_PAGE_POOL_NAPI_ID),
            inflight: attribute(message, NETDEV_A_PAGE_POOL_INFLIGHT).unwrap_or(0),
            detached: attribute(message, NETDEV_A_PAGE_POOL_DETACH_TIME).is_some(),
            buffer,
        })
    };
    Ok(messages.iter().filter_map(pool).collect())
}

/// Returns the ids of page pools of devices in this network namespace whose buffers
/// io_uring provides. With `all`, adds the ids of all other pools that wait for buffers
/// although their owner is gone.
pub fn pools_left(all: bool) -> anyhow::Result<Vec<u64>> {
    let messages = ask("netdev", NETDEV_CMD_PAGE_POOL_GET, NlmF::DUMP, Vec::new())?;
    let is_left = |message: &&Message| {
        let detached = attribute(message, NETDEV_A_PAGE_POOL_DETACH_TIME).is_some();
        buffer(message, NETDEV_A_PAGE_POOL_IO_URING).is_some() || all && detached
    };
    let ids = messages.iter().filter(is_left);
    let ids: Option<_> = ids
        .map(|message| attribute(message, NETDEV_A_PAGE_POOL_ID))
        .collect();
    ids.context("a page pool without an id")
}
