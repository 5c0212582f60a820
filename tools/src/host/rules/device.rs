//! The interface and its driver.

use super::super::facts::{Facts, Pause};
use super::{Finding, Setting, State, Wish, advice, change, good, set};
use crate::host::{Remedy, Steered};

/// Drivers with AF_XDP zero-copy, and the kernel that first had it, by the kernel's history.
const ZERO_COPY: [(&str, (u32, u32)); 10] = [
    ("i40e", (4, 20)),
    ("ixgbe", (4, 20)),
    ("mlx5_core", (5, 3)),
    ("ice", (5, 5)),
    ("st_gmac", (5, 13)),
    ("stmmaceth", (5, 13)),
    ("igc", (5, 14)),
    ("nfp", (5, 18)),
    ("virtio_net", (6, 11)),
    ("igb", (6, 14)),
];
/// Room in front of a packet in its frame, and for two VLAN tags and the Ethernet header.
const HEADROOM: u32 = 256;
const ETHERNET: u32 = 22;
/// The largest MTU with which a veth takes a program in driver mode.
const VETH_MTU: u32 = 3506;

pub(super) fn kind(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let link = &facts.nic.link;
    let kind = link.kind.as_deref();
    let finding = good(
        "device",
        kind.or(facts.nic.driver.as_deref()).unwrap_or("unknown driver"),
        "AF_XDP serves the queues of one Ethernet device; what lies on top of one only passes packets on",
    );
    Some(match kind {
        _ if !wish.xdp => finding,
        _ if link.hardware != libc::ARPHRD_ETHER || !link.has_mac => finding.but(
            State::Bad,
            advice("no Ethernet: set link = \"udp\" in [engine], or name an Ethernet interface"),
        ),
        Some("bond" | "team") => finding.but(
            State::Poor,
            advice("name one port of it, or each as a line of its own (line_b): a stream then survives the loss of one"),
        ),
        Some("bridge" | "macvlan" | "macvtap" | "ipvlan" | "tun" | "vxlan" | "gre" | "wireguard") => finding.but(
            State::Poor,
            advice("name the device beneath it; here XDP runs in generic mode at best"),
        ),
        Some("vlan") => finding.but(
            State::Poor,
            advice("XDP runs in generic mode here; a port of the switch without tags leaves driver mode and zero-copy open"),
        ),
        Some("veth" | "netkit") => finding.note(),
        _ => finding,
    })
}

pub(super) fn up(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let flags = facts.nic.link.flags;
    let has = |flag: i32| flags & flag as u32 != 0;
    let why = "a link that is down carries nothing, and an engine does not start on it";
    let name = &wish.interface;
    Some(
        match (has(libc::IFF_UP), has(libc::IFF_RUNNING), has(libc::IFF_MULTICAST)) {
            (false, ..) => good("link", "down", why).but(State::Bad, advice(format!("ip link set dev {name} up"))),
            (true, false, _) => good("link", "up, no carrier", why)
                .but(State::Poor, advice("look at the cable and at the switch's port")),
            (.., false) => good("link", "up, without multicast", why)
                .but(State::Bad, advice(format!("ip link set dev {name} multicast on"))),
            _ => good("link", "up", why),
        },
    )
}

pub(super) fn port_of(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let master = facts.nic.master.as_ref()?;
    Some(
        good(
            "port of",
            master.clone(),
            "what XDP redirects never reaches the bond or bridge, and the address belongs to that one",
        )
        .but(
            if wish.xdp { State::Bad } else { State::Poor },
            advice(format!(
                "ip link set dev {} nomaster, and give it an address of its own",
                wish.interface
            )),
        ),
    )
}

pub(super) fn zero_copy(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let why = "with zero-copy the NIC writes into the engine's frames by itself; otherwise the kernel copies each";
    let driver = facts.nic.driver.as_deref().unwrap_or("unknown driver");
    let otherwise = |text: String| {
        let finding = good("zero-copy", text, why);
        if wish.zero_copy {
            finding.but(
                State::Bad,
                advice("bind = \"auto\" in [engine.xdp], or another NIC or kernel"),
            )
        } else {
            finding.note()
        }
    };
    let since = ZERO_COPY
        .iter()
        .find(|(name, _)| *name == driver)
        .map(|(_, since)| *since);
    Some(match since {
        Some(since) if facts.kernel_version() >= since => good(
            "zero-copy",
            format!("{driver} has it since Linux {}.{}", since.0, since.1),
            why,
        ),
        Some((major, minor)) => otherwise(format!("{driver} has it from Linux {major}.{minor} on")),
        None => otherwise(format!(
            "not known for {driver}; the ready line of an engine shows what is in force"
        )),
    })
}

pub(super) fn program(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let why = "an interface takes one XDP program; the second engine or tool is refused";
    Some(match facts.nic.link.xdp_program {
        None => good("XDP program", "none", why),
        Some(id) => good(
            "XDP program",
            format!("id {id}: an engine that runs here, or another tool's"),
            why,
        )
        .but(
            State::Bad,
            advice(format!(
                "stop that engine; for a tool's: ip link set dev {} xdp off, or bpftool link detach",
                wish.interface
            )),
        ),
    })
}

pub(super) fn mtu(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let mtu = facts.nic.link.mtu;
    let why = "a packet shares its frame with 256 bytes of headroom; what does not fit is refused at the start";
    if !wish.xdp {
        return Some(good(
            "MTU",
            mtu.to_string(),
            "one MTU on all hosts: a larger frame is lost each time",
        ));
    }
    let holds = wish.frame_size.saturating_sub(HEADROOM + ETHERNET);
    let is = format!("{mtu}, frames of {} hold {holds}", wish.frame_size);
    let finding = good("MTU", is, why);
    let name = &wish.interface;
    Some(if mtu > holds && mtu <= 4096 - HEADROOM - ETHERNET {
        finding.but(
            State::Bad,
            advice(format!(
                "frame_size = 4096 in [engine.xdp], or ip link set dev {name} mtu {holds}"
            )),
        )
    } else if mtu > holds {
        let most = 4096 - HEADROOM - ETHERNET;
        finding.but(
            State::Bad,
            advice(format!(
                "ip link set dev {name} mtu {most}, with frame_size = 4096 in [engine.xdp]"
            )),
        )
    } else if facts.nic.driver.as_deref() == Some("veth") && mtu > VETH_MTU {
        finding.but(
            State::Poor,
            advice(format!(
                "ip link set dev {name} mtu {VETH_MTU}: driver mode refuses more"
            )),
        )
    } else {
        finding
    })
}

pub(super) fn queues(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let why = "a NIC spreads what arrives over its queues; frames of a queue that no engine serves are lost to it";
    let channels = facts.nic.channels?;
    let there = channels.receive + channels.combined;
    let served = wish.queues.len() as u32;
    let is = format!("{there} receive, {served} served");
    let finding = good("queues", is, why);
    if let Some(beyond) = wish.queues.iter().find(|queue| **queue >= there) {
        return Some(finding.but(
            State::Bad,
            advice(format!("queues in [engine.xdp]: there is no queue {beyond}")),
        ));
    }
    if there <= served {
        return Some(finding);
    }
    let first = wish.queues.iter().copied().eq(0..served);
    Some(if first && channels.receive == 0 {
        finding.but(State::Bad, set(wish, Setting::Queues, served))
    } else if first && channels.combined == 0 {
        finding.but(State::Bad, set(wish, Setting::ReceiveQueues, served))
    } else if facts
        .nic
        .feature("rx-ntuple-filter")
        .is_some_and(|f| f.on || f.changeable)
    {
        finding.but(
            State::Bad,
            advice(format!(
                "list all queues in [engine.xdp], or steer: ethtool -K {0} rx-ntuple-filter on; \
                 ethtool -N {0} flow-type udp4 dst-ip GROUP dst-port PORT action {1}",
                wish.interface,
                wish.queues.first().unwrap_or(&0)
            )),
        )
    } else {
        finding.but(State::Bad, advice("list all queues in [engine.xdp]"))
    })
}

pub(super) fn steering(_: &Facts, wish: &Wish) -> Option<Finding> {
    let Steered { queue, groups, port } = wish.steered.as_ref()?;
    let rule = |to: String| {
        let interface = &wish.interface;
        format!("ethtool -N {interface} flow-type udp4 {to} action {queue}")
    };
    let groups = groups
        .iter()
        .map(|g| rule(format!("dst-ip {} dst-port {}", g.ip(), g.port())));
    let own = match port {
        0 => "give the worker a `port`, and steer that as well".to_owned(),
        port => rule(format!("dst-port {port}")),
    };
    let finding = good(
        "steering",
        format!("to queue {queue}, for one worker of several"),
        "a NIC spreads streams over its queues as it likes: what comes on another worker's is lost (`misrouted`)",
    );
    let rules: Vec<String> = groups.chain([own]).collect();
    Some(finding.but(State::Note, advice(rules.join("; "))))
}

pub(super) fn rings(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let rings = facts.nic.rings?;
    let is = format!(
        "{} to receive of {}, {} to send of {}",
        rings.receive, rings.most_receive, rings.send, rings.most_send
    );
    let finding = good(
        "NIC rings",
        is,
        "the NIC's receive ring holds a burst while the engine is busy; a short one drops it in the NIC",
    );
    let receive = wish.rx_ring.min(rings.most_receive);
    if rings.receive < receive {
        return Some(finding.but(State::Poor, set(wish, Setting::ReceiveRing, receive)));
    }
    Some(finding)
}

pub(super) fn coalescing(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let coalesce = facts.nic.coalesce?;
    let us = coalesce.receive_us.unwrap_or(0);
    let adaptive = coalesce.adaptive == Some(true);
    let finding = good(
        "coalescing",
        if adaptive {
            "adaptive".to_owned()
        } else {
            format!("{us} us")
        },
        "the NIC tells of packets only after this time: it is added to each message's latency",
    );
    if us == 0 && !adaptive {
        return Some(finding);
    }
    if !wish.spins {
        // Whoever sleeps between packets saves interrupts with it.
        return Some(finding.note());
    }
    let mut changes = Vec::new();
    if adaptive {
        changes.push(change(wish, Setting::AdaptiveCoalescing, "off"));
    }
    changes.push(change(wish, Setting::Coalescing, 0));
    Some(finding.but(State::Poor, Remedy::Change(changes)))
}

pub(super) fn flow_control(facts: &Facts, wish: &Wish) -> Option<Finding> {
    let pause = facts.nic.pause?;
    let why = "one slow receiver's pause frames stop the sender's port, and with it the stream for all";
    if !pause.receive && !pause.send {
        return Some(good("flow control", "off", why));
    }
    let off = set(wish, Setting::Pause, "off");
    Some(good("flow control", on_and_off(pause), why).but(State::Poor, off))
}

fn on_and_off(pause: Pause) -> &'static str {
    match (pause.receive, pause.send) {
        (true, true) => "on",
        (true, false) => "on for what it receives",
        _ => "on for what it sends",
    }
}

pub(super) fn large_receive(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let why = "packets that the NIC has joined fit no frame; most drivers refuse XDP while this is on";
    let on: Vec<&str> = ["rx-lro", "rx-gro-hw"]
        .into_iter()
        .filter(|name| facts.nic.feature(name).is_some_and(|feature| feature.on))
        .collect();
    if on.is_empty() {
        return Some(good("LRO", "off", why));
    }
    let changes = on
        .iter()
        .map(|name| change(wish, Setting::Feature((*name).to_owned()), "off"));
    Some(good("LRO", format!("{} on", on.join(" and ")), why).but(State::Bad, Remedy::Change(changes.collect())))
}

pub(super) fn vlan(facts: &Facts, wish: &Wish) -> Option<Finding> {
    if !wish.xdp {
        return None;
    }
    let feature = facts.nic.feature("rx-vlan-hw-parse")?;
    let finding = good(
        "VLAN offload",
        if feature.on {
            "on: the NIC takes tags off"
        } else {
            "off"
        },
        "XDP does not see a tag that the NIC took off: streams of different VLANs on one group become one",
    );
    Some(match (feature.on, facts.nic.vlans.is_empty()) {
        (false, _) => finding,
        // A virtual NIC passes on what it gets; nothing is taken off in there.
        _ if !feature.changeable || facts.nic.driver.as_deref() == Some("veth") => finding.note(),
        (true, true) => finding.note(),
        (true, false) => finding.but(
            State::Poor,
            set(wish, Setting::Feature("rx-vlan-hw-parse".to_owned()), "off"),
        ),
    })
}
