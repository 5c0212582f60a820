use std::collections::BTreeSet;

use super::super::Steered;
use super::super::facts::{Channels, Coalesce, Core, Feature, Irq, Link, Nic, Pause, Rings, Sleep};
use super::*;

/// What is otherwise than on the tuned host.
type Other = fn(&mut Facts, &mut Wish);

/// An engine on a tuned host with a NIC of its own.
fn tuned() -> (Facts, Wish) {
    let link = Link {
        index: 2,
        hardware: libc::ARPHRD_ETHER,
        flags: (libc::IFF_UP | libc::IFF_RUNNING | libc::IFF_MULTICAST) as u32,
        name: "eth1".into(),
        mtu: 1500,
        has_mac: true,
        ..Link::default()
    };
    let nic = Nic {
        link,
        driver: Some("ice".into()),
        numa_node: Some(0),
        channels: Some(Channels {
            receive: 0,
            combined: 1,
            most_combined: 16,
        }),
        rings: Some(Rings {
            receive: 2048,
            most_receive: 8160,
            send: 2048,
            most_send: 8160,
        }),
        coalesce: Some(Coalesce {
            receive_us: Some(0),
            adaptive: Some(false),
        }),
        pause: Some(Pause::default()),
        clock: Some(1),
        features: vec![Feature {
            name: "rx-lro".into(),
            on: false,
            changeable: true,
        }],
        irqs: vec![Irq {
            number: 77,
            cores: BTreeSet::from([0]),
        }],
        gro_flush_timeout: Some(0),
        defer_hard_irqs: Some(0),
        igmp: Some("V3".into()),
        forced_igmp: Some(0),
        reverse_path_filter: Some(2),
        ..Nic::default()
    };
    let facts = Facts {
        kernel: "6.12.9".into(),
        nic,
        online: (0..8).collect(),
        isolated: BTreeSet::from([3]),
        tickless: BTreeSet::from([3]),
        core: Some(Core {
            number: 3,
            numa_node: Some(0),
            siblings: BTreeSet::new(),
            governor: Some("performance".into()),
            sleeps: Vec::new(),
        }),
        transparent_huge_pages: Some("madvise".into()),
        capabilities: u64::MAX,
        receive_buffer_limit: Some(8 << 20),
        memberships_limit: Some(20),
        busy_poll_us: Some(0),
        bpf_jit: Some(1),
        clock_source: Some("tsc".into()),
        clock_in_step: Some(true),
        ..Facts::default()
    };
    let wish = Wish {
        interface: "eth1".into(),
        core: Some(3),
        spins: true,
        xdp: true,
        zero_copy: true,
        queues: vec![0],
        steered: None,
        frame_size: 2048,
        frames: 8192,
        rx_ring: 2048,
        groups: 1,
        receive_buffer: 8 << 20,
    };
    (facts, wish)
}

/// The finding on a topic when something is otherwise than on the tuned host.
fn with(topic: &str, other: impl FnOnce(&mut Facts, &mut Wish)) -> Finding {
    let (mut facts, mut wish) = tuned();
    other(&mut facts, &mut wish);
    let found = judge(&facts, &wish).into_iter().find(|finding| finding.topic == topic);
    found.unwrap_or_else(|| panic!("nothing is said of {topic}"))
}

/// State and commands.
fn told(finding: &Finding) -> (State, Vec<String>) {
    let commands = match &finding.remedy {
        Some(Remedy::Change(changes)) => changes.iter().map(ToString::to_string).collect(),
        Some(Remedy::Advice(text)) => vec![text.clone()],
        None => Vec::new(),
    };
    (finding.state, commands)
}

#[test]
fn a_tuned_host_is_good_in_all() {
    let (facts, wish) = tuned();
    let findings = judge(&facts, &wish);
    assert!(findings.len() > 20);
    for finding in findings {
        assert_eq!(finding.state, State::Good, "{finding:?}");
    }
}

#[test]
fn what_an_engine_would_refuse_is_bad() {
    let bad: &[(&str, Other)] = &[
        ("kernel", |f, _| f.kernel = "5.10.0-28-amd64".into()),
        ("device", |f, _| f.nic.link.hardware = libc::ARPHRD_LOOPBACK),
        ("link", |f, _| f.nic.link.flags = 0),
        ("port of", |f, _| f.nic.master = Some("bond0".into())),
        ("zero-copy", |f, _| f.nic.driver = Some("e1000e".into())),
        ("zero-copy", |f, _| f.nic.driver = Some("igb".into())),
        ("XDP program", |f, _| f.nic.link.xdp_program = Some(4)),
        ("capabilities", |f, _| f.capabilities = 0),
        ("locked memory", |f, _| {
            f.capabilities = 0;
            f.locked_memory = Some(8 << 20);
        }),
        ("MTU", |f, _| f.nic.link.mtu = 9000),
        ("MTU", |f, _| f.nic.link.mtu = 1771),
        ("queues", |_, w| w.queues = vec![0, 1]),
        ("core", |_, w| w.core = Some(8)),
        ("groups", |_, w| w.groups = 21),
    ];
    for (topic, other) in bad {
        let finding = with(topic, other);
        assert_eq!(finding.state, State::Bad, "{finding:?}");
        assert!(finding.remedy.is_some() && !finding.why.is_empty(), "{finding:?}");
    }
}

#[test]
fn what_costs_latency_or_frames_is_poor() {
    let poor: &[(&str, Other)] = &[
        ("device", |f, _| f.nic.link.kind = Some("bond".into())),
        ("link", |f, _| f.nic.link.flags &= !(libc::IFF_RUNNING as u32)),
        ("IGMP", |f, _| f.nic.igmp = Some("V2".into())),
        ("return path", |f, w| {
            w.xdp = false;
            f.nic.reverse_path_filter = Some(1);
        }),
        ("core", |_, w| w.core = None),
        ("isolation", |f, _| f.isolated.clear()),
        ("NUMA", |f, _| f.nic.numa_node = Some(1)),
        ("siblings", |f, _| {
            f.core.as_mut().unwrap().siblings = BTreeSet::from([7])
        }),
        ("clock source", |f, _| f.clock_source = Some("hpet".into())),
        ("clock", |f, _| f.clock_in_step = Some(false)),
    ];
    for (topic, other) in poor {
        let finding = with(topic, other);
        assert_eq!(finding.state, State::Poor, "{finding:?}");
        assert!(finding.remedy.is_some(), "{finding:?}");
    }
}

#[test]
fn what_can_be_changed_comes_with_the_command() {
    let changes: &[(&str, Other, &[&str])] = &[
        (
            "queues",
            |f, _| f.nic.channels.as_mut().unwrap().combined = 8,
            &["ethtool -L eth1 combined 1"],
        ),
        (
            "NIC rings",
            |f, _| f.nic.rings.as_mut().unwrap().receive = 512,
            &["ethtool -G eth1 rx 2048"],
        ),
        (
            "coalescing",
            |f, _| {
                let coalesce = f.nic.coalesce.as_mut().unwrap();
                (coalesce.receive_us, coalesce.adaptive) = (Some(50), Some(true));
            },
            &["ethtool -C eth1 adaptive-rx off", "ethtool -C eth1 rx-usecs 0"],
        ),
        (
            "flow control",
            |f, _| f.nic.pause.as_mut().unwrap().receive = true,
            &["ethtool -A eth1 autoneg off rx off tx off"],
        ),
        (
            "LRO",
            |f, _| f.nic.features[0].on = true,
            &["ethtool -K eth1 rx-lro off"],
        ),
        (
            "deferral",
            |f, _| f.nic.gro_flush_timeout = Some(20_000),
            &[
                "echo 0 > /sys/class/net/eth1/napi_defer_hard_irqs",
                "echo 0 > /sys/class/net/eth1/gro_flush_timeout",
            ],
        ),
        (
            "VLAN offload",
            |f, _| {
                f.nic.vlans = vec!["eth1.7".into()];
                f.nic.features[0] = Feature {
                    name: "rx-vlan-hw-parse".into(),
                    on: true,
                    changeable: true,
                };
            },
            &["ethtool -K eth1 rx-vlan-hw-parse off"],
        ),
        (
            "IGMP",
            |f, _| f.nic.forced_igmp = Some(2),
            &["sysctl -w net.ipv4.conf.eth1.force_igmp_version=0"],
        ),
        (
            "receive buffer",
            |f, w| {
                w.xdp = false;
                f.capabilities = 0;
                f.receive_buffer_limit = Some(212_992);
            },
            &["sysctl -w net.core.rmem_max=8388608"],
        ),
        (
            "governor",
            |f, _| f.core.as_mut().unwrap().governor = Some("powersave".into()),
            &["echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor"],
        ),
        (
            "sleep",
            |f, w| {
                w.spins = false;
                f.core.as_mut().unwrap().sleeps = vec![Sleep {
                    name: "C6".into(),
                    wake_us: 170,
                    switch: "/sys/c6/disable".into(),
                }];
            },
            &["echo 1 > /sys/c6/disable"],
        ),
        (
            "interrupts",
            |f, _| f.nic.irqs[0].cores = BTreeSet::from([3]),
            &["echo 0,1,2,4,5,6,7 > /proc/irq/77/smp_affinity_list"],
        ),
        (
            "huge pages",
            |f, _| f.transparent_huge_pages = Some("always".into()),
            &["echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"],
        ),
        (
            "BPF compiler",
            |f, _| f.bpf_jit = Some(0),
            &["sysctl -w net.core.bpf_jit_enable=1"],
        ),
    ];
    for (topic, other, commands) in changes {
        let finding = with(topic, other);
        assert!(finding.state >= State::Poor, "{finding:?}");
        assert_eq!(told(&finding).1, *commands, "{finding:?}");
    }
}

#[test]
fn who_sleeps_between_packets_keeps_coalescing() {
    let finding = with("coalescing", |f, w| {
        w.spins = false;
        f.nic.coalesce.as_mut().unwrap().receive_us = Some(50);
    });
    assert_eq!(told(&finding), (State::Note, Vec::new()));
}

#[test]
fn queues_that_cannot_be_joined_are_steered() {
    let finding = with("queues", |f, w| {
        f.nic.channels.as_mut().unwrap().combined = 8;
        f.nic.features[0] = Feature {
            name: "rx-ntuple-filter".into(),
            on: false,
            changeable: true,
        };
        w.queues = vec![3];
    });
    let (state, commands) = told(&finding);
    assert_eq!(state, State::Bad);
    assert!(commands[0].contains("dst-port PORT action 3"), "{commands:?}");
}

#[test]
fn each_worker_that_shares_a_nic_says_what_must_come_on_its_queue() {
    let finding = with("steering", |_, w| {
        w.steered = Some(Steered {
            queue: 1,
            groups: vec!["239.1.1.2:5000".parse().unwrap()],
            port: 7001,
        });
    });
    let (state, commands) = told(&finding);
    assert_eq!(state, State::Note);
    assert!(
        commands[0].contains("dst-ip 239.1.1.2 dst-port 5000 action 1")
            && commands[0].contains("dst-port 7001 action 1"),
        "{commands:?}"
    );
}
