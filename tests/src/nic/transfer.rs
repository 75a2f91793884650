// SPDX-License-Identifier: GPL-2.0
//! Transfers from [`super::PEER`] over a queue of [`super::PORT`], all bytes of which are compared.

use std::fs;
use std::net::TcpStream;

use anyhow::Context;

use super::{Nic, free_packets_at_once, limit_sockets, within};
use crate::kernel::{expect_eq, expect_result};
use crate::register::PAGE_SIZE;
use crate::ring::IORING_CQE_F_MORE;
use crate::stream::Stream;
use crate::wide::WideRing;
use crate::zcrx::Ifq;

/// The counts of one transfer.
#[derive(Clone, Copy, Debug)]
pub struct TransferCounts {
    pub completions: u64,
    /// Fragments delivered in the area.
    pub niov_frags: u64,
    /// Fragments delivered in pages.
    pub page_frags: u64,
    /// Packets that were dropped because there was no buffer for them.
    pub no_buffer: u64,
    /// Segments that TCP sent more than once.
    pub retransmissions: u32,
}

impl Nic {
    /// Sends `len` bytes of the pattern through a queue, compares all bytes received,
    /// and gives every buffer back through the refill queue for NAPI to find.
    pub fn transfer(
        &self,
        ring: &mut WideRing,
        ifq: &Ifq,
        len: usize,
    ) -> anyhow::Result<TransferCounts> {
        self.transfer_to("10.9.0.1", ring, ifq, len)
    }

    /// Makes the transfer of [`Self::transfer`] to a given address of [`super::PORT`].
    pub fn transfer_to(
        &self,
        address: &str,
        ring: &mut WideRing,
        ifq: &Ifq,
        len: usize,
    ) -> anyhow::Result<TransferCounts> {
        self.transfer_over(self.connect_to(address)?, ring, ifq, len)
    }

    /// Makes a transfer whose sender sends again only what was lost, not what is merely
    /// late, and has no more under way than the sockets have room for. No packet holds its
    /// buffers once it was read.
    pub fn transfer_without_timeouts(
        &self,
        address: &str,
        ring: &mut WideRing,
        ifq: &Ifq,
        len: usize,
    ) -> anyhow::Result<TransferCounts> {
        const LONG_RTO: u32 = 60_000_000;
        let _room = limit_sockets(ifq.area.len() / PAGE_SIZE / 4)?;
        let _at_once = free_packets_at_once()?;
        let connection = self.connect(address, LONG_RTO)?;
        self.probe_losses(false)?;
        let counts = self.transfer_over(connection, ring, ifq, len);
        self.probe_losses(true)?;
        counts
    }

    /// Sets whether senders probe for the loss of their last segments, which they do by
    /// default.
    fn probe_losses(&self, probe: bool) -> anyhow::Result<()> {
        const PROBES: &str = "/proc/sys/net/ipv4/tcp_early_retrans";
        // The default, or no probes.
        let value = if probe { "3" } else { "0" };
        within(Some(&self.peer), || {
            fs::write(PROBES, value).context(PROBES)
        })
    }

    fn transfer_over(
        &self,
        connection: (TcpStream, TcpStream),
        ring: &mut WideRing,
        ifq: &Ifq,
        len: usize,
    ) -> anyhow::Result<TransferCounts> {
        let mut stream = Stream::over(connection, 1);
        // The first packet of the connection may have been late and sent twice.
        let retransmissions = stream.retransmissions()?;
        let before = self.counts()?;
        let thread = stream.send_later(len)?;
        ring.push(stream.recv(ifq, 0))?;
        let mut completions = 0;
        loop {
            let cqe = ring.cqe()?;
            if cqe.flags & IORING_CQE_F_MORE != 0 {
                completions += 1;
                ifq.return_buffer(stream.take(ifq, &cqe)?);
            } else if cqe.res == -libc::ENOSPC {
                // The completion queue was full.
                ring.push(stream.recv(ifq, 0))?;
            } else {
                expect_result("the end", cqe.res, 0)?;
                break;
            }
        }
        expect_eq("bytes left", stream.untaken(), 0)?;
        thread.join().ok().context("the sender panicked")??;
        let after = self.counts()?;
        Ok(TransferCounts {
            completions,
            niov_frags: after.niov_frags - before.niov_frags,
            page_frags: after.page_frags - before.page_frags,
            no_buffer: after.no_buffer - before.no_buffer,
            retransmissions: stream.retransmissions()? - retransmissions,
        })
    }

    /// Checks that a transfer of `len` bytes copies and loses nothing: each completion
    /// is of a fragment in the area, and there always was a buffer. Returns the number
    /// of completions.
    pub fn zero_copy(&self, ring: &mut WideRing, ifq: &Ifq, len: usize) -> anyhow::Result<u64> {
        self.zero_copy_to("10.9.0.1", ring, ifq, len)
    }

    /// Checks the same of a transfer to a given address of [`super::PORT`].
    pub fn zero_copy_to(
        &self,
        address: &str,
        ring: &mut WideRing,
        ifq: &Ifq,
        len: usize,
    ) -> anyhow::Result<u64> {
        let counts = self.transfer_without_timeouts(address, ring, ifq, len)?;
        expect_eq("packets without a buffer", counts.no_buffer, 0)?;
        expect_eq("segments that were sent again", counts.retransmissions, 0)?;
        expect_eq("fragments in pages", counts.page_frags, 0)?;
        expect_eq("completions", counts.completions, counts.niov_frags)?;
        Ok(counts.completions)
    }
}
