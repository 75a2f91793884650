// SPDX-License-Identifier: GPL-2.0
//! The software NIC (`zcrx_sim`) has two linked ports. The first, [`PORT`], is in this
//! process's network namespace and receives; the other, [`PEER`], is in a namespace of
//! its own and sends. The connections that tests make go to queue [`QUEUE`].

use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

use crate::ethtool::{self, Flow};
use crate::kernel::{expect_eq, expect_result, limit};
use crate::netdev;
use crate::register::PAGE_SIZE;
use crate::rtnl;
use crate::sandbox::{Sysctl, stay_on_cpu};
use crate::stream::{Stream, expect_free};
use crate::wide::{Mapping, WideRing};
use crate::zcrx::{EventDesc, Ifq, Registration, ZCRX_EVENT_ALLOC_FAIL, memory, pinned};

mod transfer;

/// The port that receives.
pub const PORT: &str = "zsim0";
/// The port that sends.
pub const PEER: &str = "zsim1";
/// The receive queue that connections of tests are steered to.
pub const QUEUE: u32 = 1;
/// The number of queues of a port.
pub const QUEUES: u32 = 4;
/// The number of buffers of a queue's ring at first.
pub const RING: usize = 64;

/// The TCP port that tests listen on, on both addresses.
const LISTEN: u16 = 9000;
const KNOBS: &str = "/sys/kernel/debug/zcrx_sim";
/// The setting for the least number of microseconds that a sender waits for an
/// acknowledgement before it sends again, and the default.
const MIN_RTO: &str = "/proc/sys/net/ipv4/tcp_rto_min_us";
const DEFAULT_MIN_RTO: u32 = 200_000;
/// The knobs that make a port misbehave. All are 0 at first.
const MISBEHAVIOUR: [&str; 17] = [
    "page_frags",
    "fail_alloc",
    "fail_mem_alloc",
    "fail_start",
    "fail_stop",
    "spared",
    "fail_close",
    "retry",
    "delay",
    "pack",
    "pool_order",
    "pool_bidirectional",
    "pool_unmapped",
    "pool_foreign",
    "ignore_provider",
    "frag_list",
    "header_ring",
];

/// The counters of a queue, which start at 0 when its port is plugged in.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    pub packets: u64,
    /// Fragments delivered in a provider's buffers.
    pub niov_frags: u64,
    /// Fragments delivered in pages.
    pub page_frags: u64,
    /// Packets that were dropped because there was no buffer for them.
    pub no_buffer: u64,
    /// Times that the ring could not be filled.
    pub alloc_fail: u64,
}

/// The two ports, freshly plugged in, up, and connected.
pub struct Nic {
    /// The interface index of [`PORT`].
    pub index: u32,
    peer: OwnedFd,
    listener: TcpListener,
}

/// Sets a knob of a port.
pub fn set(port: &str, knob: &str, value: i64) -> anyhow::Result<()> {
    let path = format!("{KNOBS}/{port}/{knob}");
    fs::write(&path, value.to_string()).with_context(|| format!("{value} > {path}"))
}

/// Returns the value of a knob of a port.
fn get(port: &str, knob: &str) -> anyhow::Result<i64> {
    let path = format!("{KNOBS}/{port}/{knob}");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().context(path)
}

/// Returns whether the kernel was booted with the ports behind an IOMMU.
pub fn behind_iommu() -> anyhow::Result<bool> {
    Ok(fs::read_to_string("/proc/cmdline")?.contains("zcrx_sim.pci=1"))
}

/// Unplugs a port, whatever it is doing.
pub fn unplug(port: &str) -> anyhow::Result<()> {
    set(port, "plugged", 0)
}

/// Plugs a port in again. It is as new: down, and in the first network namespace.
pub fn plug(port: &str) -> anyhow::Result<()> {
    set(port, "plugged", 1)
}

/// Waits until `condition` returns true. `what` describes that condition in the error.
pub fn wait_until(
    what: &str,
    mut condition: impl FnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition()? {
        ensure!(start.elapsed() < limit(5), "timed out: waited until {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}

/// Waits until no page pool has buffers that io_uring provided, including the pools of
/// devices that are gone. A packet that was freed on another CPU gives its buffers back
/// with the next packet there.
pub fn wait_drained() -> anyhow::Result<()> {
    wait_until("all pools of the area are gone", || {
        receive_on_all_cpus()?;
        Ok(netdev::provided_pools()?.is_empty())
    })
}

/// Waits until this process has exactly `pages` pages pinned.
pub fn wait_pinned(pages: usize) -> anyhow::Result<()> {
    wait_until(&format!("{pages} pages are pinned"), || {
        Ok(pinned()? == pages)
    })
}

/// Makes every CPU receive a packet, upon which it frees the packets that others left
/// to it.
pub fn receive_on_all_cpus() -> anyhow::Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let send = |cpu| {
        stay_on_cpu(cpu)?;
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.send_to(&[0], socket.local_addr()?)?;
        socket.recv(&mut [0])?;
        anyhow::Ok(())
    };
    for cpu in 0..cpus {
        let sent = std::thread::spawn(move || send(cpu)).join();
        sent.ok().context("the sender panicked")??;
    }
    Ok(())
}

/// Makes packets that were read be freed at once, until the result is dropped. Otherwise a
/// CPU keeps those that it has received until it receives again, and with them buffers
/// that were given back: too many for a test that needs each of a few.
pub fn free_packets_at_once() -> anyhow::Result<Sysctl> {
    Sysctl::set("net/core/skb_defer_max", "0")
}

/// Keeps the receive buffer of each socket from growing beyond `buffers` pages, until the
/// result is dropped. It begins with the 32 pages of its listener all the same. Packets
/// that came after a lost one must not take all buffers: the lost packet needs a buffer
/// when it is sent again.
pub fn limit_sockets(buffers: usize) -> anyhow::Result<Sysctl> {
    let bytes = buffers * PAGE_SIZE;
    let first = bytes.min(1 << 17);
    Sysctl::set("net/ipv4/tcp_rmem", &format!("4096 {first} {bytes}"))
}

/// Builds a command from a line of words, to run in another network namespace if one is
/// given.
pub fn command(line: &str, namespace: Option<&OwnedFd>) -> anyhow::Result<Command> {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().context("no command")?);
    command.args(words);
    if let Some(namespace) = namespace {
        let fd = namespace.try_clone()?;
        let enter = move || Ok(setns(fd.as_fd(), CloneFlags::CLONE_NEWNET)?);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe { command.pre_exec(enter) };
    }
    Ok(command)
}

/// Runs a command. Returns its status and output.
fn output(line: &str, namespace: Option<&OwnedFd>) -> anyhow::Result<Output> {
    let mut command = command(line, namespace)?;
    command.output().with_context(|| line.to_string())
}

/// Runs a command that must succeed. Returns what it printed.
pub fn run(line: &str, namespace: Option<&OwnedFd>) -> anyhow::Result<String> {
    succeeded(line, output(line, namespace)?)
}

/// Returns what a command printed, or an error if the command failed.
fn succeeded(line: &str, output: Output) -> anyhow::Result<String> {
    if !output.status.success() {
        bail!("{line}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Runs `act` on a thread in `namespace`, or on this thread if that is `None`.
fn within<R: Send>(
    namespace: Option<&OwnedFd>,
    act: impl FnOnce() -> anyhow::Result<R> + Send,
) -> anyhow::Result<R> {
    let Some(namespace) = namespace else {
        return act();
    };
    let enter_and_act = || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        act()
    };
    let acted = std::thread::scope(|scope| scope.spawn(enter_and_act).join());
    acted.ok().context("a thread panicked")?
}

/// Gives a port its addresses and brings it up.
fn bring_up(
    port: &str,
    addresses: [(&str, u8); 2],
    namespace: Option<&OwnedFd>,
) -> anyhow::Result<()> {
    within(namespace, || {
        for (address, prefix) in addresses {
            rtnl::add_address(port, address.parse()?, prefix)?;
        }
        rtnl::set_up(port, true)
    })
}

/// Makes a network namespace that lives as long as a file descriptor refers to it.
fn new_namespace() -> anyhow::Result<OwnedFd> {
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        anyhow::Ok(File::open("/proc/thread-self/ns/net")?.into())
    });
    made.join().ok().context("making a namespace panicked")?
}

impl Nic {
    /// Replugs both ports and brings them up with header split on.
    pub fn new() -> anyhow::Result<Self> {
        // An orphaned socket keeps the packets that came after a lost one, and their
        // buffers, until it has retried this often.
        const ORPHAN_RETRIES: &str = "/proc/sys/net/ipv4/tcp_orphan_retries";
        fs::write(ORPHAN_RETRIES, "1").context(ORPHAN_RETRIES)?;
        for port in [PORT, PEER] {
            expect_eq("IOMMU", get(port, "iommu")? == 1, behind_iommu()?)?;
            unplug(port)?;
            set(port, "dma_faults", 0)?;
            for knob in MISBEHAVIOUR {
                set(port, knob, 0)?;
            }
            set(port, "max_seg_size", u32::MAX.into())?;
            plug(port)?;
        }
        // A process that ended a moment ago may still have had a queue.
        wait_drained()?;
        let nic = Nic {
            index: nix::net::if_::if_nametoindex(PORT)?,
            peer: new_namespace()?,
            listener: TcpListener::bind(("::", LISTEN))?,
        };
        nic.move_to_peer(PEER)?;
        netdev::split_headers(nic.index)?;
        nic.configure()?;
        let addresses = [("10.9.0.2", 24), ("fd09::2", 64)];
        bring_up(PEER, addresses, Some(&nic.peer))?;
        Ok(nic)
    }

    /// Gives [`PORT`] its addresses, steers the tests' connections to
    /// [`QUEUE`] and brings it up.
    pub fn configure(&self) -> anyhow::Result<()> {
        for flow in [Flow::Tcp4, Flow::Tcp6] {
            ethtool::steer(PORT, flow, LISTEN, QUEUE)?;
        }
        bring_up(PORT, [("10.9.0.1", 24), ("fd09::1", 64)], None)
    }

    /// Moves a port to the namespace of [`PEER`].
    pub fn move_to_peer(&self, port: &str) -> anyhow::Result<()> {
        rtnl::move_to(port, self.peer.as_fd())
    }

    /// Runs `f` on this thread in the namespace of [`PEER`].
    pub fn in_peer_namespace<R>(&self, f: impl FnOnce() -> anyhow::Result<R>) -> anyhow::Result<R> {
        let here = File::open("/proc/thread-self/ns/net")?;
        setns(&self.peer, CloneFlags::CLONE_NEWNET)?;
        let got = f();
        setns(here, CloneFlags::CLONE_NEWNET)?;
        got
    }

    /// Steers connections over IPv4 to another queue from now on.
    pub fn steer(&self, queue: u32) -> anyhow::Result<()> {
        // This replaces the first rule.
        self.ethtool(&format!(
            "-N zsim0 flow-type tcp4 dst-port {LISTEN} action {queue} loc 0"
        ))?;
        Ok(())
    }

    /// Runs `ip` in the namespace of [`PORT`].
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ip {arguments}"), None)
    }

    /// Runs `ip` in the namespace of [`PEER`].
    pub fn peer_ip(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ip {arguments}"), Some(&self.peer))
    }

    /// Runs `ethtool` in the namespace of [`PEER`].
    pub fn peer_ethtool(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ethtool {arguments}"), Some(&self.peer))
    }

    /// Builds a command to be started in the namespace of [`PEER`].
    pub fn peer_command(&self, line: &str) -> anyhow::Result<Command> {
        command(line, Some(&self.peer))
    }

    /// Runs `ethtool` in the namespace of [`PORT`].
    pub fn ethtool(&self, arguments: &str) -> anyhow::Result<String> {
        run(&format!("ethtool {arguments}"), None)
    }

    /// Checks that `ethtool` fails in the namespace of [`PORT`], with `reason` in its
    /// error message.
    pub fn ethtool_fails(&self, arguments: &str, reason: &str) -> anyhow::Result<()> {
        let output = output(&format!("ethtool {arguments}"), None)?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(!output.status.success(), "ethtool {arguments} did not fail");
        ensure!(said.contains(reason), "ethtool {arguments}: {said}");
        Ok(())
    }

    /// Sets a knob of [`PORT`].
    pub fn set(&self, knob: &str, value: i64) -> anyhow::Result<()> {
        set(PORT, knob, value)
    }

    /// Returns the number of times that [`PORT`] was to write to an address that it
    /// cannot reach.
    pub fn dma_faults(&self) -> anyhow::Result<i64> {
        get(PORT, "dma_faults")
    }

    pub fn up(&self) -> anyhow::Result<()> {
        rtnl::set_up(PORT, true)
    }

    pub fn down(&self) -> anyhow::Result<()> {
        rtnl::set_up(PORT, false)
    }

    /// Sets the size of the largest packets that both ports send.
    pub fn set_mtu(&self, mtu: u32) -> anyhow::Result<()> {
        rtnl::set_mtu(PORT, mtu)?;
        within(Some(&self.peer), || rtnl::set_mtu(PEER, mtu))
    }

    /// Sets the number of buffers of each receive ring, which restarts the queues.
    pub fn set_ring(&self, buffers: usize) -> anyhow::Result<()> {
        let index = nix::net::if_::if_nametoindex(PORT)?;
        netdev::set_ring(index, u32::try_from(buffers)?)
    }

    /// Returns the counters of [`QUEUE`].
    pub fn counts(&self) -> anyhow::Result<Counts> {
        self.counts_of(QUEUE)
    }

    /// Returns the counters of a queue.
    pub fn counts_of(&self, queue: u32) -> anyhow::Result<Counts> {
        let statistics = ethtool::statistics(PORT)?;
        let count = |name: &str| -> anyhow::Result<u64> {
            let name = format!("rx{queue}_{name}");
            let found = statistics.iter().find(|(other, _)| *other == name);
            Ok(found.with_context(|| name.clone())?.1)
        };
        Ok(Counts {
            packets: count("packets")?,
            niov_frags: count("niov_frags")?,
            page_frags: count("page_frags")?,
            no_buffer: count("no_buffer")?,
            alloc_fail: count("alloc_fail")?,
        })
    }

    /// Connects from [`PEER`] to an address of [`PORT`]. Returns sender and receiver.
    pub fn connect_to(&self, address: &str) -> anyhow::Result<(TcpStream, TcpStream)> {
        self.connect(address, DEFAULT_MIN_RTO)
    }

    /// Connects. `min_rto` is the least number of microseconds that the sender waits
    /// for an acknowledgement before it sends again. Returns sender and receiver.
    fn connect(&self, address: &str, min_rto: u32) -> anyhow::Result<(TcpStream, TcpStream)> {
        let address = SocketAddr::new(address.parse()?, LISTEN);
        let namespace = self.peer.try_clone()?;
        let connecting = std::thread::spawn(move || {
            setns(namespace, CloneFlags::CLONE_NEWNET)?;
            // A socket takes the setting over when it is made.
            fs::write(MIN_RTO, min_rto.to_string()).context(MIN_RTO)?;
            anyhow::Ok(TcpStream::connect(address)?)
        });
        let (receiver, _) = self.listener.accept()?;
        let sender = connecting.join().ok().context("connecting panicked")??;
        sender.set_nodelay(true)?;
        Ok((sender, receiver))
    }

    /// Makes a connection whose received bytes are compared with those sent.
    pub fn stream(&self, user_data: u64) -> anyhow::Result<Stream> {
        Ok(Stream::over(self.connect_to("10.9.0.1")?, user_data))
    }

    /// Builds a registration of [`QUEUE`].
    pub fn registration(&self, entries: u32, area: &Mapping) -> Registration {
        let mut registration = Registration::new(entries, area);
        registration.reg.flags = 0;
        registration.reg.if_idx = self.index;
        registration.reg.if_rxq = QUEUE;
        registration
    }

    /// Registers [`QUEUE`] with a ring, with an area of `pages` pages.
    pub fn ifq(&self, ring: &WideRing, entries: u32, pages: usize) -> anyhow::Result<Ifq> {
        self.ifq_of(QUEUE, ring, entries, pages)
    }

    /// Registers a queue with a ring, with an area of `pages` pages.
    pub fn ifq_of(
        &self,
        queue: u32,
        ring: &WideRing,
        entries: u32,
        pages: usize,
    ) -> anyhow::Result<Ifq> {
        let area = memory(pages)?;
        let mut registration = self.registration(entries, &area);
        registration.reg.if_rxq = queue;
        expect_result("registering", registration.register(ring.fd()), 0)?;
        Ifq::attach(ring.fd(), registration, area)
    }

    /// Registers [`QUEUE`] with a ring that gets an event with `user_data` when the
    /// device finds no buffer.
    pub fn ifq_with_event(
        &self,
        ring: &WideRing,
        entries: u32,
        pages: usize,
        user_data: u64,
    ) -> anyhow::Result<Ifq> {
        let area = memory(pages)?;
        let mut registration = self.registration(entries, &area);
        registration.event = EventDesc {
            user_data,
            type_mask: 1 << ZCRX_EVENT_ALLOC_FAIL,
            ..Default::default()
        };
        registration.with_event = true;
        expect_result("registering", registration.register(ring.fd()), 0)?;
        Ifq::attach(ring.fd(), registration, area)
    }

    /// Returns the size of the buffers that io_uring provides to [`QUEUE`] in bytes, or
    /// `None` if it provides none.
    pub fn provided(&self) -> anyhow::Result<Option<u64>> {
        let queues = netdev::queues(self.index)?;
        let queue = queues.iter().find(|queue| queue.id == u64::from(QUEUE));
        Ok(queue.context("the queue is gone")?.buffer)
    }

    /// Waits until [`QUEUE`] has no provider, and none of a provider's buffers is out.
    pub fn wait_released(&self) -> anyhow::Result<()> {
        wait_until("the queue is released", || Ok(self.provided()?.is_none()))?;
        wait_drained()
    }

    /// Takes the device down and checks that all `buffers` buffers of the area are free
    /// then.
    pub fn expect_conserved(
        &self,
        ring: &mut WideRing,
        ifq: &Ifq,
        buffers: usize,
    ) -> anyhow::Result<()> {
        ifq.flush_all(ring.fd())?;
        self.down()?;
        wait_drained()?;
        expect_free(ring, ifq, buffers)?;
        self.up()
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        // Errors do not matter: the next `Nic` sets all knobs again.
        for port in [PORT, PEER] {
            for knob in MISBEHAVIOUR {
                let _ = set(port, knob, 0);
            }
        }
    }
}
