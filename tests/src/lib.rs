// SPDX-License-Identifier: GPL-2.0
//! The code that the programs of the guest share: rings, cBPF programs, registration,
//! privileges, KTAP, and the user-space suite itself.

pub mod bpf;
pub mod buffers;
pub mod devmem;
pub mod dmabuf;
pub mod ethtool;
pub mod kernel;
pub mod ktap;
pub mod leftovers;
pub mod model;
pub mod netdev;
pub mod netlink;
pub mod nic;
pub mod programs;
pub mod register;
pub mod requests;
pub mod ring;
pub mod rtnl;
pub mod sandbox;
pub mod settings;
pub mod sqe;
pub mod stream;
pub mod suite;
pub mod trace;
pub mod wide;
pub mod xdp;
pub mod zcrx;
