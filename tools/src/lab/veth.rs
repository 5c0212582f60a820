//! Hosts in namespaces, joined by a bridge that snoops IGMP.

use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::command::{poll, run_json};
use super::netns::{Namespace, Owner};
use super::tap::Tap;
use super::{Error, Host, Spec, Why};

const BRIDGE: &str = "br0";
/// A host's interface on each line.
pub(super) const INTERFACES: [&str; 2] = ["eth1", "eth2"];
const PREFIX_LENGTH: u8 = 24;
/// How long hosts may take to answer a query, in 1/100 s (the unit of `ip link`). Below 10 the
/// query would be one of IGMPv1.
const QUERY_RESPONSE: u64 = 10;
const LIMIT: Duration = Duration::from_secs(10);

/// Counts this process's labs, so that several can run at once.
static LABS: AtomicU32 = AtomicU32::new(0);

/// The namespace with the bridge of one line.
pub(super) struct Switch(Namespace);

fn address(line: usize, octet: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 81 + line as u8, 0, octet)
}

pub(super) fn available() -> Result<(), Why> {
    use std::os::unix::fs::MetadataExt;
    // The owner of a process's /proc directory is its effective user.
    let user = std::fs::metadata("/proc/self").map(|m| m.uid());
    if !matches!(user, Ok(0)) {
        return Err(Why::NotRoot);
    }
    find_command("ip", "iproute2")?;
    find_command("bridge", "iproute2")?;
    let probe = || {
        let namespace = Namespace::new(next_prefix()? + "-probe")?;
        namespace.ip(&["link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "1"])?;
        namespace.ip(&["link", "add", "name", "a", "type", "veth", "peer", "name", "b"])
    };
    probe().map(drop).map_err(Why::NoNamespaces)
}

pub(super) fn find_command(command: &'static str, package: &'static str) -> Result<(), Why> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|directory| directory.join(command).is_file());
    found.then_some(()).ok_or(Why::NoCommand { command, package })
}

fn next_prefix() -> Result<String, Error> {
    Ok(Owner::current()?.prefix(LABS.fetch_add(1, Ordering::Relaxed)))
}

pub(super) fn build(spec: &Spec) -> Result<(Vec<Switch>, Vec<Host>), Error> {
    let prefix = next_prefix()?;
    let lines = 1 + usize::from(spec.second_line);
    let switches: Vec<Switch> = (0..lines)
        .map(|line| Switch::new(spec, format!("{prefix}-br{line}")))
        .collect::<Result<_, _>>()?;
    let forwards_from = Instant::now() + Duration::from_millis(10 * QUERY_RESPONSE);

    let mut hosts = Vec::with_capacity(spec.hosts.len());
    for (name, octet) in spec.hosts.iter().zip(1..) {
        let namespace = Namespace::new(format!("{prefix}-{name}"))?;
        for (line, switch) in switches.iter().enumerate() {
            switch.attach(spec, &namespace, name, INTERFACES[line], address(line, octet))?;
        }
        namespace.ip(&["route", "add", "224.0.0.0/4", "dev", INTERFACES[0]])?;
        hosts.push(Host {
            name: name.to_owned(),
            address: address(0, octet),
            interface: INTERFACES[0],
            second: spec.second_line.then_some(INTERFACES[1]),
            namespace: Some(namespace),
        });
    }
    for switch in &switches {
        poll(
            || "the bridge's ports to forward".to_owned(),
            LIMIT,
            || {
                let ports = run_json(&["bridge", "-n", switch.0.name(), "-j", "link", "show"])?;
                let ready = ports.iter().filter(|port| {
                    let flags = port["flags"].as_array();
                    let carrier = flags.is_some_and(|f| f.iter().any(|flag| flag == "LOWER_UP"));
                    carrier && port["state"] == "forwarding"
                });
                Ok((ready.count() == hosts.len() && Instant::now() >= forwards_from).then_some(()))
            },
        )?;
    }
    Ok((switches, hosts))
}

impl Switch {
    fn new(spec: &Spec, name: String) -> Result<Switch, Error> {
        let switch = Switch(Namespace::new(name)?);
        let bridge = &switch.0;
        // The bridge hands nothing to members until its own first query must have been answered, by
        // default 10 s after the querier starts. So the interval is set before the querier is.
        let response = QUERY_RESPONSE.to_string();
        let options = ["mcast_snooping", "1", "mcast_query_response_interval", &response];
        bridge.ip(&[&["link", "add", BRIDGE, "type", "bridge"], &options[..]].concat())?;
        bridge.ip(&["link", "set", "dev", BRIDGE, "type", "bridge", "mcast_querier", "1"])?;
        bridge.ip(&["link", "set", "dev", BRIDGE, "mtu", &spec.mtu.to_string(), "up"])?;
        Ok(switch)
    }

    /// Joins a host to the bridge by its `interface`.
    fn attach(
        &self,
        spec: &Spec,
        namespace: &Namespace,
        name: &str,
        interface: &str,
        address: Ipv4Addr,
    ) -> Result<(), Error> {
        let mtu = spec.mtu.to_string();
        // One queue a side: an AF_XDP socket sees the frames of one queue only.
        let queues = ["mtu", &mtu, "numrxqueues", "1", "numtxqueues", "1"];
        let near = [&["link", "add", "name", name], &queues[..]].concat();
        let far = [&["type", "veth", "peer", "name", interface], &queues[..]].concat();
        let far = [&far[..], &["netns", namespace.name()]].concat();
        self.0.ip(&[near, far].concat())?;
        self.0.ip(&["link", "set", "dev", name, "master", BRIDGE])?;
        // Traffic of groups that nobody joined goes nowhere, as on a good switch.
        let isolate = ["type", "bridge_slave", "mcast_flood", "off"];
        self.0.ip(&[&["link", "set", "dev", name], &isolate[..]].concat())?;
        self.0.ip(&["link", "set", "dev", name, "up"])?;

        if !spec.offloads {
            namespace.exec(&["ethtool", "-K", interface, "tx", "off"])?;
        }
        let with_prefix = format!("{address}/{PREFIX_LENGTH}");
        namespace.ip(&["address", "add", &with_prefix, "dev", interface])?;
        namespace.ip(&["link", "set", "dev", interface, "up"])?;
        Ok(())
    }

    pub(super) fn wait_member(&self, group: Ipv4Addr, port: &str) -> Result<(), Error> {
        let group = group.to_string();
        poll(
            || format!("{port} to join {group} on the bridge"),
            LIMIT,
            || {
                let tables = run_json(&["bridge", "-n", self.0.name(), "-j", "mdb", "show"])?;
                let mut entries = tables.iter().filter_map(|t| t["mdb"].as_array()).flatten();
                let member = entries.any(|e| e["port"] == port && e["grp"] == *group);
                Ok(member.then_some(()))
            },
        )
    }

    pub(super) fn tap(&self) -> io::Result<Tap> {
        Tap::open(&self.0, BRIDGE)
    }

    pub(super) fn set_port(&self, port: &str, state: &str) -> Result<(), Error> {
        self.0.ip(&["link", "set", "dev", port, state]).map(drop)
    }
}
