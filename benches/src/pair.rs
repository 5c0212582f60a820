//! Two hosts joined by a cable: two network namespaces and one veth pair between them, no switch;
//! or two network cards of this machine with a real cable between them.
//!
//! The namespaces have no names: they live as long as the descriptors here and the threads inside,
//! so that nothing is left however this process ends. Network cards then go back by themselves.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use core_affinity::CoreId;
use nix::sched::{CloneFlags, setns, unshare};

/// Which end of the cable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Sends first; on the first core.
    Near,
    /// Receives or echoes; on the second core.
    Far,
}

impl End {
    pub(crate) fn other(self) -> End {
        match self {
            End::Near => End::Far,
            End::Far => End::Near,
        }
    }

    fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 82, 0, 1 + self as u8)
    }
}

/// Whose interfaces the two hosts have.
#[derive(Clone, Debug)]
pub(crate) enum Cable {
    /// A veth pair of our own.
    Veth,
    /// Interfaces of this machine that are joined by a cable and not in use: near and far.
    Cards([String; 2]),
}

const VETH: &str = "cable";

/// The MTU of a cable unless said otherwise.
pub(crate) const MTU: u32 = 1500;
/// The largest MTU with which a veth pair takes a program in driver mode, whose packets must fit a page.
pub(crate) const LARGEST_MTU: u32 = 3506;

/// The two namespaces.
pub(crate) struct Pair {
    namespaces: [File; 2],
    cores: [CoreId; 2],
    interfaces: [String; 2],
    macs: [[u8; 6]; 2],
    zero_copy: bool,
    mtu: u32,
    is_veth: bool,
}

/// A thread's place: in a namespace with one interface, and on a core once it is pinned.
#[cfg_attr(
    not(feature = "xdp"),
    expect(dead_code, reason = "bare AF_XDP alone needs Ethernet addresses")
)]
#[derive(Clone)]
pub(crate) struct Side {
    pub(crate) end: End,
    pub(crate) interface: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) mac: [u8; 6],
    pub(crate) peer_address: Ipv4Addr,
    pub(crate) peer_mac: [u8; 6],
    /// AF_XDP in driver mode is to be bound with zero-copy.
    pub(crate) zero_copy: bool,
    /// The cable's MTU.
    pub(crate) mtu: u32,
    core: CoreId,
}

impl Side {
    /// Pins the thread. Done after contenders are opened, as their helper threads inherit the affinity.
    pub(crate) fn pin(&self) -> Result<()> {
        pin(self.core)
    }
}

/// Pins the calling thread.
pub(crate) fn pin(core: CoreId) -> Result<()> {
    if !core_affinity::set_for_current(core) {
        bail!("the kernel refuses to pin a thread to core {}", core.id);
    }
    Ok(())
}

/// The two first cores that this process may use.
pub(crate) fn two_cores() -> Result<[CoreId; 2]> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    match cores[..] {
        [first, second, ..] => Ok([first, second]),
        _ => bail!("this process may use {} core(s); the benchmarks need two", cores.len()),
    }
}

impl Pair {
    /// Makes the namespaces and lays the cable. Needs root.
    pub(crate) fn new(cores: [CoreId; 2], cable: &Cable, zero_copy: bool) -> Result<Pair> {
        let namespaces = [new_namespace()?, new_namespace()?];
        let path = |end: usize| format!("/proc/{}/fd/{}", std::process::id(), namespaces[end].as_raw_fd());
        let interfaces = match cable {
            Cable::Veth => {
                // One queue a side: an AF_XDP socket sees the frames of one queue only.
                let end = format!("{VETH} numrxqueues 1 numtxqueues 1 netns");
                let add = format!("link add {end} {} type veth peer {end} {}", path(0), path(1));
                ip(&add)?;
                [VETH.to_owned(), VETH.to_owned()]
            }
            Cable::Cards(names) => {
                for name in names {
                    check_unused(name)?;
                }
                for (end, name) in names.iter().enumerate() {
                    ip(&format!("link set dev {name} netns {}", path(end)))?;
                }
                names.clone()
            }
        };
        let mut pair = Pair {
            namespaces,
            cores,
            interfaces,
            macs: [[0; 6]; 2],
            zero_copy,
            mtu: MTU,
            is_veth: matches!(cable, Cable::Veth),
        };
        for end in [End::Near, End::Far] {
            let interface = &pair.interfaces[end as usize];
            pair.macs[end as usize] = pair.inside(end, || {
                ip(&format!("address add {}/24 dev {interface}", end.address()))?;
                ip(&format!("link set dev {interface} mtu {MTU} up"))?;
                mac_of(interface)
            })?;
        }
        Ok(pair)
    }

    /// Whether the cable is of our own making.
    pub(crate) fn is_veth(&self) -> bool {
        self.is_veth
    }

    /// Changes the MTU of both ends, which nobody must have open.
    pub(crate) fn set_mtu(&mut self, mtu: u32) -> Result<()> {
        for end in [End::Near, End::Far] {
            let interface = &self.interfaces[end as usize];
            self.inside(end, || ip(&format!("link set dev {interface} mtu {mtu}")))?;
        }
        self.mtu = mtu;
        Ok(())
    }

    /// Moves the calling thread, which has to be one of its own, to the host at an end.
    pub(crate) fn enter(&self, end: End) -> Result<Side> {
        setns(&self.namespaces[end as usize], CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
        Ok(self.side(end))
    }

    fn inside<T: Send>(&self, end: End, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter(end)?;
                job()
            });
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        })
    }

    fn side(&self, end: End) -> Side {
        Side {
            end,
            interface: self.interfaces[end as usize].clone(),
            address: end.address(),
            mac: self.macs[end as usize],
            peer_address: end.other().address(),
            peer_mac: self.macs[end.other() as usize],
            zero_copy: self.zero_copy,
            mtu: self.mtu,
            core: self.cores[end as usize],
        }
    }

    /// Runs one job at each end, both at once.
    pub(crate) fn run<A: Send, B: Send>(
        &self,
        near: impl FnOnce(Side) -> Result<A> + Send,
        far: impl FnOnce(Side) -> Result<B> + Send,
    ) -> Result<(A, B)> {
        let (near, far) = thread::scope(|scope| {
            let far = scope.spawn(|| self.inside(End::Far, || far(self.side(End::Far))));
            let near = self.inside(End::Near, || near(self.side(End::Near)));
            (near, far.join().map_err(|_| anyhow!("a thread panicked")))
        });
        Ok((near?, far??))
    }
}

fn new_namespace() -> Result<File> {
    thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
        // Before there is an interface: neighbour discovery would be noise among what is measured.
        for which in ["all", "default"] {
            // A kernel without IPv6 has no such file.
            let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6"), "1");
        }
        ip("link set lo up")?;
        File::open("/proc/thread-self/ns/net").context("cannot open a network namespace")
    })
    .join()
    .map_err(|_| anyhow!("a thread panicked"))?
}

/// Refuses an interface that somebody uses: it would lose its addresses.
fn check_unused(name: &str) -> Result<()> {
    let shown = ip(&format!("-o address show dev {name}"))?;
    if shown.contains(" inet ") {
        bail!("{name} has an IPv4 address, so it is in use; name interfaces that are free and joined by a cable");
    }
    Ok(())
}

/// The Ethernet address of an interface of this thread's namespace.
fn mac_of(interface: &str) -> Result<[u8; 6]> {
    let shown = ip(&format!("-o link show dev {interface}"))?;
    let text = shown
        .split_once("link/ether ")
        .map(|(_, rest)| &rest[..17.min(rest.len())]);
    let text = text.with_context(|| format!("{interface} is no Ethernet interface"))?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16));
    let bytes = bytes.collect::<Result<Vec<u8>, _>>()?;
    bytes[..].try_into().context("an Ethernet address has 6 bytes")
}

/// Runs `ip` in this thread's namespace; returns what it printed.
fn ip(arguments: &str) -> Result<String> {
    let output = Command::new("ip")
        .args(arguments.split_ascii_whitespace())
        .stdin(Stdio::null())
        .output()
        .context("cannot run `ip`; install the package iproute2")?;
    if !output.status.success() {
        bail!("`ip {arguments}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
