//! What a host and one of its interfaces are like now.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::netlink::{self, Ethtool};
use super::sys;

/// An interface as rtnetlink shows it.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Link {
    pub(super) index: u32,
    /// `ARPHRD_…`
    pub(super) hardware: u16,
    /// `IFF_…`
    pub(super) flags: u32,
    pub(super) name: String,
    /// Bytes of the largest IP packet.
    pub(super) mtu: u32,
    pub(super) has_mac: bool,
    /// Index of the interface that this one lies on, as a VLAN does.
    pub(super) below: Option<u32>,
    /// Index of the bond or bridge that this is a port of.
    pub(super) master: Option<u32>,
    /// What a virtual interface is: "veth", "bond", "vlan".
    pub(super) kind: Option<String>,
    pub(super) xdp_program: Option<u32>,
}

/// Queues in use, and how many there may be.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Channels {
    pub(super) receive: u32,
    pub(super) combined: u32,
    pub(super) most_combined: u32,
}

/// Descriptors of the NIC's own rings.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Rings {
    pub(super) receive: u32,
    pub(super) most_receive: u32,
    pub(super) send: u32,
    pub(super) most_send: u32,
}

/// How long a NIC waits before it tells of what it received.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(super) struct Coalesce {
    /// Microseconds.
    pub(super) receive_us: Option<u32>,
    pub(super) adaptive: Option<bool>,
}

/// Ethernet flow control.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub(super) struct Pause {
    pub(super) autoneg: bool,
    pub(super) receive: bool,
    pub(super) send: bool,
}

/// An offload by its name in the kernel.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Feature {
    pub(super) name: String,
    pub(super) on: bool,
    pub(super) changeable: bool,
}

/// An interrupt of the NIC.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Irq {
    pub(super) number: u32,
    pub(super) cores: BTreeSet<usize>,
}

/// The interface.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Nic {
    pub(super) link: Link,
    /// The name of the bond or bridge that it is a port of.
    pub(super) master: Option<String>,
    /// VLANs that lie on it.
    pub(super) vlans: Vec<String>,
    pub(super) driver: Option<String>,
    pub(super) numa_node: Option<usize>,
    pub(super) channels: Option<Channels>,
    pub(super) rings: Option<Rings>,
    pub(super) coalesce: Option<Coalesce>,
    pub(super) pause: Option<Pause>,
    pub(super) clock: Option<u32>,
    pub(super) features: Vec<Feature>,
    pub(super) irqs: Vec<Irq>,
    /// Nanoseconds.
    pub(super) gro_flush_timeout: Option<u64>,
    pub(super) defer_hard_irqs: Option<u64>,
    /// What IGMP the kernel speaks here now, "V3"; nothing before it joined a group.
    pub(super) igmp: Option<String>,
    pub(super) forced_igmp: Option<u64>,
    /// The stricter of the interface's and everybody's.
    pub(super) reverse_path_filter: Option<u64>,
}

/// A core that the engine may be pinned to.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Core {
    pub(super) number: usize,
    pub(super) numa_node: Option<usize>,
    /// Other hardware threads of it.
    pub(super) siblings: BTreeSet<usize>,
    pub(super) governor: Option<String>,
    /// Sleep states that are allowed.
    pub(super) sleeps: Vec<Sleep>,
}

/// A state that an idle core may sleep in.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Sleep {
    pub(super) name: String,
    pub(super) wake_us: u64,
    /// The file that forbids it.
    pub(super) switch: PathBuf,
}

/// Everything that is looked at.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Facts {
    /// As `uname -r` prints it.
    pub(super) kernel: String,
    pub(super) nic: Nic,
    pub(super) online: BTreeSet<usize>,
    pub(super) isolated: BTreeSet<usize>,
    pub(super) tickless: BTreeSet<usize>,
    /// The engine's, if it is pinned and there is such a core.
    pub(super) core: Option<Core>,
    /// A daemon that moves interrupts about.
    pub(super) irqbalance: bool,
    /// "always", "madvise" or "never".
    pub(super) transparent_huge_pages: Option<String>,
    pub(super) huge_pages: Option<u64>,
    /// Bytes; nothing means without limit.
    pub(super) locked_memory: Option<u64>,
    /// A bit for each capability of this process.
    pub(super) capabilities: u64,
    pub(super) receive_buffer_limit: Option<u64>,
    pub(super) memberships_limit: Option<u64>,
    pub(super) busy_poll_us: Option<u64>,
    pub(super) bpf_jit: Option<u64>,
    pub(super) clock_source: Option<String>,
    pub(super) clock_in_step: Option<bool>,
}

impl Facts {
    /// Looks at this host, with an interface of this thread's network namespace.
    pub(super) fn read(interface: &str, core: Option<usize>) -> io::Result<Facts> {
        let proc_net = Path::new("/proc/sys/net");
        let online = cores("/sys/devices/system/cpu/online");
        Ok(Facts {
            kernel: text("/proc/sys/kernel/osrelease").unwrap_or_default(),
            nic: Nic::read(interface)?,
            isolated: cores("/sys/devices/system/cpu/isolated"),
            tickless: cores("/sys/devices/system/cpu/nohz_full"),
            core: core.filter(|core| online.contains(core)).map(Core::read),
            online,
            irqbalance: runs("irqbalance"),
            transparent_huge_pages: chosen("/sys/kernel/mm/transparent_hugepage/enabled"),
            huge_pages: number("/proc/sys/vm/nr_hugepages"),
            locked_memory: locked_memory(),
            capabilities: capabilities().unwrap_or(0),
            receive_buffer_limit: number(proc_net.join("core/rmem_max")),
            memberships_limit: number(proc_net.join("ipv4/igmp_max_memberships")),
            busy_poll_us: number(proc_net.join("core/busy_poll")),
            bpf_jit: number(proc_net.join("core/bpf_jit_enable")),
            clock_source: text("/sys/devices/system/clocksource/clocksource0/current_clocksource"),
            clock_in_step: sys::clock_in_step(),
        })
    }

    /// The two first numbers of the kernel's release.
    pub(super) fn kernel_version(&self) -> (u32, u32) {
        let mut parts = self.kernel.split(['.', '-']).map_while(|part| part.parse().ok());
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    }
}

impl Nic {
    fn read(name: &str) -> io::Result<Nic> {
        let links = netlink::links()?;
        let link = links.iter().find(|link| link.name == name).cloned().ok_or_else(|| {
            let names: Vec<&str> = links.iter().map(|link| link.name.as_str()).collect();
            let message = format!("there is no interface {name}; there are {}", names.join(", "));
            io::Error::new(io::ErrorKind::NotFound, message)
        })?;
        let name_of = |index: u32| links.iter().find(|l| l.index == index).map(|l| l.name.clone());
        let is_vlan = |l: &&Link| l.below == Some(link.index) && l.kind.as_deref() == Some("vlan");
        // What `ip netns exec` does not mount shows another namespace's interface of that name.
        let sysfs = Path::new("/sys/class/net").join(name);
        let sysfs = (number(sysfs.join("ifindex")) == Some(u64::from(link.index))).then_some(sysfs);
        let device = sysfs.as_ref().map(|sysfs| sysfs.join("device")).filter(|d| d.exists());
        let driver = device
            .as_ref()
            .and_then(|device| fs::read_link(device.join("driver")).ok());
        let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let settings = Path::new("/proc/sys/net/ipv4/conf");
        let mut ethtool = Ethtool::open(name)?;
        Ok(Nic {
            master: link.master.and_then(name_of),
            vlans: links.iter().filter(is_vlan).map(|l| l.name.clone()).collect(),
            driver: driver.or_else(|| link.kind.clone()),
            // -1 where there is but one node.
            numa_node: device
                .as_ref()
                .and_then(|d| number(d.join("numa_node")))
                .map(|n| n as usize),
            channels: ethtool.channels()?,
            rings: ethtool.rings()?,
            coalesce: ethtool.coalesce()?,
            pause: ethtool.pause()?,
            clock: ethtool.clock()?,
            features: ethtool.features()?,
            irqs: device.as_deref().map(irqs).unwrap_or_default(),
            gro_flush_timeout: sysfs.as_ref().and_then(|s| number(s.join("gro_flush_timeout"))),
            defer_hard_irqs: sysfs.as_ref().and_then(|s| number(s.join("napi_defer_hard_irqs"))),
            igmp: fs::read_to_string("/proc/self/net/igmp")
                .ok()
                .and_then(|text| igmp_of(&text, name)),
            forced_igmp: number(settings.join(name).join("force_igmp_version")),
            reverse_path_filter: number(settings.join(name).join("rp_filter"))
                .max(number(settings.join("all/rp_filter"))),
            link,
        })
    }

    pub(super) fn feature(&self, name: &str) -> Option<&Feature> {
        self.features.iter().find(|feature| feature.name == name)
    }
}

impl Core {
    fn read(number: usize) -> Core {
        let directory = PathBuf::from(format!("/sys/devices/system/cpu/cpu{number}"));
        let mut siblings = cores(directory.join("topology/thread_siblings_list"));
        siblings.remove(&number);
        let names = list(&directory);
        let node = names.iter().find_map(|name| name.strip_prefix("node")?.parse().ok());
        let states = directory.join("cpuidle");
        let sleeps = list(&states).into_iter().filter_map(|name| {
            let state = states.join(name);
            let switch = state.join("disable");
            (self::number(&switch)? == 0).then(|| Sleep {
                name: text(state.join("name")).unwrap_or_default(),
                wake_us: self::number(state.join("latency")).unwrap_or(0),
                switch,
            })
        });
        Core {
            number,
            numa_node: node,
            siblings,
            governor: text(directory.join("cpufreq/scaling_governor")),
            sleeps: sleeps.collect(),
        }
    }
}

fn text(path: impl AsRef<Path>) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: impl AsRef<Path>) -> Option<u64> {
    text(path)?.parse().ok()
}

/// Names in a directory, in order.
fn list(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The word in brackets: `always [madvise] never`.
pub(super) fn chosen(path: impl AsRef<Path>) -> Option<String> {
    let text = text(path)?;
    Some(text.split_once('[')?.1.split_once(']')?.0.to_owned())
}

fn cores(path: impl AsRef<Path>) -> BTreeSet<usize> {
    text(path).map(|list| parse_cores(&list)).unwrap_or_default()
}

/// A list as the kernel writes it: `0-3,8`.
fn parse_cores(list: &str) -> BTreeSet<usize> {
    let ranges = list.split(',').filter_map(|range| {
        let (first, last) = range.trim().split_once('-').unwrap_or((range.trim(), range.trim()));
        Some(first.parse::<usize>().ok()?..=last.parse::<usize>().ok()?)
    });
    ranges.flatten().collect()
}

fn irqs(device: &Path) -> Vec<Irq> {
    let numbers = list(&device.join("msi_irqs"))
        .into_iter()
        .filter_map(|name| name.parse().ok());
    let irqs = numbers.map(|number| Irq {
        number,
        cores: cores(format!("/proc/irq/{number}/smp_affinity_list")),
    });
    irqs.collect()
}

/// The version in the line of an interface: `2  eth0  :  1  V3`.
fn igmp_of(table: &str, interface: &str) -> Option<String> {
    let mut lines = table
        .lines()
        .map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    lines.find_map(|words| match words.as_slice() {
        [_, name, rest @ ..] if name.trim_end_matches(':') == interface => rest.last().map(|w| (*w).to_owned()),
        _ => None,
    })
}

/// Whether a process of this name runs.
fn runs(name: &str) -> bool {
    let processes = list(Path::new("/proc"))
        .into_iter()
        .filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
    processes
        .into_iter()
        .any(|pid| text(format!("/proc/{pid}/comm")).as_deref() == Some(name))
}

fn capabilities() -> Option<u64> {
    let status = text("/proc/self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn locked_memory() -> Option<u64> {
    let limits = text("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lists_are_read() {
        assert_eq!(parse_cores("0-2,5"), BTreeSet::from([0, 1, 2, 5]));
        assert_eq!(parse_cores(""), BTreeSet::new());
        let table = "Idx\tDevice    : Count Querier\tGroup    Users Timer\tReporter\n\
                     1\tlo        :     1      V3\n\t\t\t\t010000E0     1 0:00000000\t\t0\n\
                     2\teth1      :     3      V2\n";
        assert_eq!(igmp_of(table, "eth1").as_deref(), Some("V2"));
        assert_eq!(igmp_of(table, "eth2"), None);
        let facts = Facts {
            kernel: "6.1.0-18-amd64".into(),
            ..Facts::default()
        };
        assert_eq!(facts.kernel_version(), (6, 1));
    }
}
