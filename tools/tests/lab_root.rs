//! Labs in network namespaces. These tests need root and are passed over without it; with root
//! they fail where such labs are not possible.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use seqcast_tools::lab::{Host, Lab, Place, Process, Spec, Why};

const GROUP: Ipv4Addr = Ipv4Addr::new(239, 81, 0, 1);
const PORT: u16 = 5000;
const LIMIT: Duration = Duration::from_secs(20);
/// What [`helper`] shall do in the process that a test starts on a host.
const HELPER: &str = "SEQCAST_TEST_HELPER";

fn possible() -> bool {
    match Lab::veth_available() {
        Ok(()) => true,
        Err(why @ Why::NotRoot) => {
            eprintln!("passed over: {why}");
            false
        }
        Err(why) => panic!("{why}"),
    }
}

fn lab(hosts: &[&str]) -> Lab {
    Lab::new(&Spec {
        place: Place::Veth,
        hosts: hosts.iter().map(|&name| name.to_owned()).collect(),
        mtu: 1500,
        offloads: true,
        second_line: false,
    })
    .unwrap()
}

fn namespaces(lab: &Lab) -> Vec<String> {
    let names = lab.hosts().iter().filter_map(Host::namespace);
    names.map(str::to_owned).collect()
}

fn exists(namespace: &str) -> bool {
    Path::new("/var/run/netns").join(namespace).exists()
}

/// Starts [`helper`] on a host.
fn start(host: &Host, task: &str, directory: &Path) -> Process {
    let mut command = host.command(std::env::current_exe().unwrap());
    command.args(["--exact", "helper", "--nocapture", "--test-threads=1"]);
    command.env(HELPER, task);
    let log = directory.join(format!("{}.log", host.name()));
    Process::spawn(host.name(), command, &log).unwrap()
}

/// Not a test: what the tests above run on their hosts, in a process of its own.
#[test]
fn helper() {
    let Ok(task) = std::env::var(HELPER) else {
        return;
    };
    match task.split_once(' ').unwrap_or((&task, "")) {
        ("receive", interface) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            if let Ok(interface) = interface.parse() {
                socket.join_multicast_v4(&GROUP, &interface).unwrap();
            }
            println!("\nready");
            let mut buffer = [0; 2000];
            loop {
                let n = socket.recv(&mut buffer).unwrap();
                let text = std::str::from_utf8(&buffer[..n]).unwrap();
                println!("got {text}");
                if text == "end" {
                    break;
                }
            }
        }
        ("send", peers) => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
            socket.send_to(b"to the group", (GROUP, PORT)).unwrap();
            for peer in peers.split(' ') {
                let peer = SocketAddrV4::new(peer.parse().unwrap(), PORT);
                socket.send_to(b"end", peer).unwrap();
            }
        }
        ("hold", _) => {
            let lab = lab(&["a"]);
            println!("\nholds {}", lab.hosts()[0].namespace().unwrap());
            let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            socket.set_read_timeout(Some(LIMIT)).unwrap();
            let waited = socket.recv(&mut [0]).unwrap_err();
            assert_eq!(waited.kind(), ErrorKind::WouldBlock);
        }
        other => panic!("no such task: {other:?}"),
    }
}

#[test]
fn root_multicast_reaches_who_joined_and_nobody_else() {
    if !possible() {
        return;
    }
    let lab = lab(&["server", "member", "other"]);
    let directory = tempfile::tempdir().unwrap();
    let [server, member, other] = lab.hosts() else {
        panic!("three hosts");
    };
    let mut joined = start(member, &format!("receive {}", member.address()), directory.path());
    let mut stranger = start(other, "receive", directory.path());
    joined.wait_line("ready", LIMIT).unwrap();
    stranger.wait_line("ready", LIMIT).unwrap();
    lab.wait_member(GROUP, "member").unwrap();

    let peers = format!("send {} {}", member.address(), other.address());
    start(server, &peers, directory.path()).wait(LIMIT).unwrap();
    joined.wait(LIMIT).unwrap();
    stranger.wait(LIMIT).unwrap();
    assert!(joined.log_tail().contains("got to the group"), "{}", joined.log_tail());
    assert!(
        !stranger.log_tail().contains("got to the group"),
        "{}",
        stranger.log_tail()
    );
}

#[test]
fn root_a_pulled_cable_ends_membership_until_it_is_back() {
    if !possible() {
        return;
    }
    let lab = lab(&["server", "member"]);
    let directory = tempfile::tempdir().unwrap();
    let [server, member] = lab.hosts() else {
        panic!("two hosts");
    };
    let task = format!("receive {}", member.address());
    let mut receiver = start(member, &task, directory.path());
    receiver.wait_line("ready", LIMIT).unwrap();
    lab.wait_member(GROUP, "member").unwrap();
    lab.link_down("member").unwrap();
    start(server, "send 127.0.0.1", directory.path()).wait(LIMIT).unwrap();
    lab.link_up("member").unwrap();
    lab.wait_member(GROUP, "member").unwrap();
    let task = format!("send {}", member.address());
    start(server, &task, directory.path()).wait(LIMIT).unwrap();
    receiver.wait(LIMIT).unwrap();
    assert_eq!(receiver.log_tail().matches("got to the group").count(), 1);
    assert!(lab.link_down("nobody").is_err());
}

#[test]
fn root_interfaces_are_as_specified() {
    if !possible() {
        return;
    }
    let lab = Lab::new(&Spec {
        place: Place::Veth,
        hosts: vec!["a".to_owned()],
        mtu: 3000,
        offloads: false,
        second_line: false,
    })
    .unwrap();
    let host = &lab.hosts()[0];
    let says = |program: &str, arguments: &[&str]| {
        let output = host.command(program).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let link = says("ip", &["-4", "address", "show", host.interface()]);
    assert!(link.contains("mtu 3000") && link.contains("10.81.0.1/24"), "{link}");
    let features = says("ethtool", &["-k", host.interface()]);
    assert!(features.contains("tx-checksumming: off"), "{features}");
    assert_eq!(says("ip", &["-6", "address"]), "");
    let queues = says("ls", &["/sys/class/net/eth1/queues"]);
    assert_eq!(queues.split_whitespace().collect::<Vec<_>>(), ["rx-0", "tx-0"]);
}

#[test]
fn root_dropping_a_lab_ends_its_programs_and_removes_its_namespaces() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let lab = lab(&["a", "b"]);
    let names = namespaces(&lab);
    assert!(names.len() == 2 && names.iter().all(|name| exists(name)));
    let mut sleeper = start(&lab.hosts()[0], "receive", directory.path());
    sleeper.wait_line("ready", LIMIT).unwrap();
    drop(lab);
    assert!(!names.iter().any(|name| exists(name)));
    let ended = sleeper.wait(LIMIT).unwrap_err().to_string();
    assert!(ended.contains("signal: 9"), "{ended}");
}

#[test]
fn root_a_panic_leaves_nothing() {
    if !possible() {
        return;
    }
    let mut names = Vec::new();
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let lab = lab(&["a", "b"]);
        names = namespaces(&lab);
        panic!("on purpose");
    }));
    assert!(panicked.is_err() && names.len() == 2);
    assert!(!names.iter().any(|name| exists(name)));
}

#[test]
fn root_what_a_killed_process_leaves_is_swept_and_what_lives_is_not() {
    if !possible() {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let mut holder = {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "helper", "--nocapture", "--test-threads=1"]);
        command.env(HELPER, "hold");
        Process::spawn("holder", command, &directory.path().join("log")).unwrap()
    };
    let line = holder.wait_line("holds ", LIMIT).unwrap();
    let orphan = line.strip_prefix("holds ").unwrap();
    // This process's pid, but another start: a pid that was used before.
    let reused = format!("sqc-{}-t1-0-a", std::process::id());
    let added = Command::new("ip").args(["netns", "add", &reused]).status();
    assert!(added.unwrap().success());
    let alive = lab(&["a"]);
    assert!(exists(orphan));

    drop(holder);
    Lab::sweep().unwrap();
    assert!(!exists(orphan) && !exists(&reused));
    assert!(exists(alive.hosts()[0].namespace().unwrap()));
}
