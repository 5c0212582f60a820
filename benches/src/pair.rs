//! Two hosts joined by a cable: two network namespaces and veth pairs between them, no switch.
//!
//! The namespaces have no names: they live as long as the descriptors here and the threads inside,
//! so that nothing is left however this process ends.

use std::fs::File;
use std::net::Ipv4Addr;
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

/// One veth pair. Both ends have the same name in their namespaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cable {
    pub(crate) interface: &'static str,
    /// Third octet of its addresses, and last of its Ethernet addresses but one.
    subnet: u8,
    mtu: u16,
}

/// The cable.
pub(crate) const WIDE: Cable = Cable {
    interface: "wide",
    subnet: 1,
    mtu: 1500,
};
impl Cable {
    /// The IPv4 address of an end.
    pub(crate) fn address(self, end: End) -> Ipv4Addr {
        Ipv4Addr::new(10, 82, self.subnet, 1 + end as u8)
    }

    /// The Ethernet address of an end.
    pub(crate) fn mac(self, end: End) -> [u8; 6] {
        [2, 0, 0, 0, self.subnet, 1 + end as u8]
    }
}

/// The two namespaces.
pub(crate) struct Pair {
    namespaces: [File; 2],
    cores: [CoreId; 2],
}

/// A thread's place: in a namespace, and on a core once it is pinned.
pub(crate) struct Side {
    pub(crate) end: End,
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
    /// Makes the namespaces and cables. Needs root.
    pub(crate) fn new(cores: [CoreId; 2]) -> Result<Pair> {
        let namespaces = [new_namespace()?, new_namespace()?];
        let pair = Pair { namespaces, cores };
        pair.lay(WIDE)?;
        Ok(pair)
    }

    fn lay(&self, cable: Cable) -> Result<()> {
        use std::os::fd::AsRawFd;
        let Cable { interface, mtu, .. } = cable;
        let mac = |end| cable.mac(end).map(|byte| format!("{byte:02x}")).join(":");
        let far = format!("/proc/{}/fd/{}", std::process::id(), self.namespaces[1].as_raw_fd());
        // One queue a side: an AF_XDP socket sees the frames of one queue only.
        let end = |end| format!("{interface} address {} mtu {mtu} numrxqueues 1 numtxqueues 1", mac(end));
        let add = format!(
            "link add {} type veth peer {} netns {far}",
            end(End::Near),
            end(End::Far)
        );
        self.inside(End::Near, || ip(&add))?;
        for end in [End::Near, End::Far] {
            let address = cable.address(end);
            self.inside(end, || {
                ip(&format!("address add {address}/24 dev {interface}"))?;
                ip(&format!("link set dev {interface} up"))
            })?;
        }
        Ok(())
    }

    fn inside<T: Send>(&self, end: End, job: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(&self.namespaces[end as usize], CloneFlags::CLONE_NEWNET).context("cannot enter a namespace")?;
                job()
            });
            thread.join().map_err(|_| anyhow!("a thread panicked"))?
        })
    }

    /// Runs one job at each end, both at once.
    pub(crate) fn run<A: Send, B: Send>(
        &self,
        near: impl FnOnce(Side) -> Result<A> + Send,
        far: impl FnOnce(Side) -> Result<B> + Send,
    ) -> Result<(A, B)> {
        let side = |end| Side {
            end,
            core: self.cores[end as usize],
        };
        let (near, far) = thread::scope(|scope| {
            let far = scope.spawn(|| self.inside(End::Far, || far(side(End::Far))));
            let near = self.inside(End::Near, || near(side(End::Near)));
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

/// Runs `ip` in this thread's namespace.
fn ip(arguments: &str) -> Result<()> {
    let output = Command::new("ip")
        .args(arguments.split_ascii_whitespace())
        .stdin(Stdio::null())
        .output()
        .context("cannot run `ip`; install the package iproute2")?;
    if !output.status.success() {
        bail!("`ip {arguments}`: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
