// SPDX-License-Identifier: GPL-2.0
//! Reads the statistics of a network device and steers connections to a queue, with the
//! ioctl that `ethtool` uses, in the network namespace of the calling thread.

use std::net::UdpSocket;
use std::os::fd::AsRawFd;

use anyhow::ensure;

use crate::kernel::expect_result;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_SRXCLSRLINS: u32 = 0x32;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
const ETH_SS_STATS: u32 = 1;
/// The length of a name in bytes.
const NAME: usize = 32;

/// The `flow_type` of a rule: TCP over IPv4 or over IPv6.
#[derive(Clone, Copy, Debug)]
pub enum Flow {
    Tcp4 = 1,
    Tcp6 = 5,
}

/// Performs an operation on a device. `data` begins with the number of the operation,
/// and has room for what the kernel writes to it.
fn ioctl(name: &str, what: &str, data: &mut [u64]) -> anyhow::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // SAFETY: all zeroes is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    ensure!(
        name.len() < request.ifr_name.len(),
        "{name} is too long for the name of a network device"
    );
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = data.as_mut_ptr().cast();
    // SAFETY: the request is laid out as SIOCETHTOOL expects it, and its data has the
    // room that the operation takes.
    let ret = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    let got = crate::kernel::result(ret.into());
    expect_result(&format!("{name}: {what}"), got.min(0), 0)
}

/// Returns two words of 32 bits as one, laid out in memory one after the other.
fn words(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Returns the statistics of a device: the name and the value of each.
pub fn statistics(name: &str) -> anyhow::Result<Vec<(String, u64)>> {
    let mut info = [words(ETHTOOL_GSSET_INFO, 0), 1 << ETH_SS_STATS, 0];
    ioctl(name, "the number of statistics", &mut info)?;
    // The number is in the first four bytes of the word.
    let count = u32::from_ne_bytes(info[2].to_ne_bytes()[..4].try_into()?);

    // The names follow a header of 12 bytes, which is no multiple of 8.
    let mut names = vec![0; 2 + count as usize * NAME / 8];
    names[0] = words(ETHTOOL_GSTRINGS, ETH_SS_STATS);
    names[1] = words(count, 0);
    ioctl(name, "names of statistics", &mut names)?;
    let bytes: Vec<u8> = names.iter().flat_map(|word| word.to_ne_bytes()).collect();

    let mut numbers = vec![0; 1 + count as usize];
    numbers[0] = words(ETHTOOL_GSTATS, count);
    ioctl(name, "statistics", &mut numbers)?;
    let names = bytes[12..].chunks(NAME).map(|name| {
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    });
    Ok(names.zip(numbers[1..].iter().copied()).collect())
}

/// Steers connections to a TCP port to a receive queue of the device.
pub fn steer(name: &str, flow: Flow, port: u16, queue: u32) -> anyhow::Result<()> {
    // `struct ethtool_rxnfc` in words of 64 bits, and the offset of the rule in it.
    let mut data = [0u64; 24];
    const RULE: usize = 16;
    // Offsets in the rule: the values to match, the mask of bits to match, the queue,
    // and the rule's place among the others.
    const VALUES: usize = 4;
    const MASK: usize = 76;
    const QUEUE: usize = 152;
    const LOCATION: usize = 160;
    const ANY: u32 = u32::MAX;
    // The destination port follows two addresses and the source port.
    let at = match flow {
        Flow::Tcp4 => 8 + 2,
        Flow::Tcp6 => 32 + 2,
    };
    let mut put = |at: usize, bytes: &[u8]| {
        for (at, byte) in (RULE + at..).zip(bytes) {
            let mut word = data[at / 8].to_ne_bytes();
            word[at % 8] = *byte;
            data[at / 8] = u64::from_ne_bytes(word);
        }
    };
    put(0, &(flow as u32).to_ne_bytes());
    put(VALUES + at, &port.to_be_bytes());
    put(MASK + at, &[0xff; 2]);
    put(QUEUE, &u64::from(queue).to_ne_bytes());
    put(LOCATION, &ANY.to_ne_bytes());
    data[0] = words(ETHTOOL_SRXCLSRLINS, 0);
    ioctl(name, &format!("steering {flow:?}"), &mut data)
}
