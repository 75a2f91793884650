// SPDX-License-Identifier: GPL-2.0
//! What the kernel tells of receive queues and page pools over generic netlink,
//! in the family `netdev`: who provides their memory.

use anyhow::Context;
use neli::consts::nl::NlmF;
use neli::consts::socket::NlFamily;
use neli::genl::{
    AttrTypeBuilder, Genlmsghdr, GenlmsghdrBuilder, NlattrBuilder, NoUserHeader,
};
use neli::nl::NlPayload;
use neli::router::synchronous::NlRouter;
use neli::types::{Buffer, GenlBuffer};
use neli::utils::Groups;

const NETDEV_CMD_PAGE_POOL_GET: u8 = 5;
const NETDEV_CMD_QUEUE_GET: u8 = 10;

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
const NETDEV_QUEUE_TYPE_RX: u32 = 0;

const NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN: u16 = 1;

/// A message of the family.
type Message = Genlmsghdr<u8, u16>;

/// A receive queue.
#[derive(Clone, Debug)]
pub struct Queue {
    pub id: u64,
    pub napi: Option<u64>,
    /// The size of its buffers, if io_uring provides them.
    pub buffer: Option<u64>,
}

/// A page pool.
#[derive(Clone, Debug)]
pub struct Pool {
    pub id: u64,
    pub napi: Option<u64>,
    /// How many buffers are out.
    pub inflight: u64,
    /// Whether its owner is done with it and it waits for what is out.
    pub detached: bool,
    /// The size of its buffers, if io_uring provides them.
    pub buffer: Option<u64>,
}

/// An unsigned number of whatever size.
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

/// The size of buffers that the nest of io_uring, of the given type, tells of.
fn buffer(message: &Message, nest: u16) -> Option<u64> {
    let handle = message.attrs().get_attr_handle();
    let nested = handle.get_nested_attributes::<u16>(nest).ok()?;
    let size = nested.get_attribute(NETDEV_A_IO_URING_PROVIDER_INFO_RX_BUF_LEN)?;
    number(size.nla_payload().as_ref())
}

/// Asks with one attribute for all that there are.
fn dump(command: u8, attribute: Option<(u16, u32)>) -> anyhow::Result<Vec<Message>> {
    let (socket, _) = NlRouter::connect(NlFamily::Generic, None, Groups::empty())?;
    let family = socket
        .resolve_genl_family("netdev")
        .context("the family netdev")?;
    let mut attributes = GenlBuffer::<u16, Buffer>::new();
    if let Some((kind, value)) = attribute {
        let kind = AttrTypeBuilder::default().nla_type(kind).build()?;
        let attribute = NlattrBuilder::default().nla_type(kind).nla_payload(value);
        attributes.push(attribute.build()?);
    }
    let request = GenlmsghdrBuilder::<u8, u16, NoUserHeader>::default()
        .cmd(command)
        .version(1)
        .attrs(attributes)
        .build()?;
    let answers = socket.send::<_, _, u16, Message>(
        family,
        NlmF::DUMP | NlmF::ACK,
        NlPayload::Payload(request),
    )?;
    let mut messages = Vec::new();
    for answer in answers {
        if let NlPayload::Payload(message) = answer?.nl_payload() {
            messages.push(message.clone());
        }
    }
    Ok(messages)
}

/// The receive queues of a device of this namespace.
pub fn queues(index: u32) -> anyhow::Result<Vec<Queue>> {
    let messages = dump(
        NETDEV_CMD_QUEUE_GET,
        Some((NETDEV_A_QUEUE_IFINDEX, index)),
    )?;
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

/// The page pools of a device of this namespace.
pub fn pools(index: u32) -> anyhow::Result<Vec<Pool>> {
    let messages = dump(NETDEV_CMD_PAGE_POOL_GET, None)?;
    let of_device = |message: &&Message| {
        attribute(message, NETDEV_A_PAGE_POOL_IFINDEX) == Some(index.into())
    };
    let pool = |message: &Message| {
        Some(Pool {
            id: attribute(message, NETDEV_A_PAGE_POOL_ID)?,
            napi: attribute(message, NETDEV_A_PAGE_POOL_NAPI_ID),
            inflight: attribute(message, NETDEV_A_PAGE_POOL_INFLIGHT).unwrap_or(0),
            detached: attribute(message, NETDEV_A_PAGE_POOL_DETACH_TIME).is_some(),
            buffer: buffer(message, NETDEV_A_PAGE_POOL_IO_URING),
        })
    };
    let pools: Option<_> = messages.iter().filter(of_device).map(pool).collect();
    pools.context("a pool without an id")
}
