//! The AF_XDP link between two network namespaces joined by a veth pair. Needs root.
//!
//! The namespaces have no name: they and all that is in them are gone when the test is, however it
//! ends.
#![cfg(feature = "xdp")]

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use seqcast_engine::link::xdp::{Attach, Bind, XdpConfig, XdpFrame, XdpLink};
use seqcast_engine::link::{Datagram, Fault, Link};

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 7, 7, 7), 31001);
/// How long a test waits for what must come, before it fails.
const PATIENCE: Duration = Duration::from_secs(10);

/// Namespaces A and B, with interface `sqc-a` (10.77.0.1) in A and `sqc-b` (10.77.0.2) in B.
struct Lab {
    home: File,
    a: File,
    b: File,
}

impl Lab {
    fn new() -> Lab {
        Lab::with(1500, 1)
    }

    fn with(mtu: u32, queues: u32) -> Lab {
        let home = this_namespace();
        let namespace = || {
            // SAFETY: moves this thread alone into a new network namespace; no memory is involved.
            let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
            assert_eq!(result, 0, "these tests need root: {}", io::Error::last_os_error());
            run("ip link set lo up");
            this_namespace()
        };
        let lab = Lab {
            home,
            b: namespace(),
            a: namespace(),
        };
        let (pid, b) = (std::process::id(), lab.b.as_raw_fd());
        let queues = format!("numrxqueues {queues} numtxqueues {queues}");
        run(&format!(
            "ip link add sqc-a mtu {mtu} {queues} type veth peer name sqc-b mtu {mtu} {queues} netns /proc/{pid}/fd/{b}"
        ));
        for (namespace, interface, address) in [(&lab.a, "sqc-a", "10.77.0.1"), (&lab.b, "sqc-b", "10.77.0.2")] {
            enter(namespace);
            run(&format!("ip address add {address}/24 dev {interface}"));
            run(&format!("ip link set {interface} up"));
        }
        lab
    }

    fn open_a(&self, change: impl FnOnce(&mut XdpConfig)) -> io::Result<XdpLink> {
        open(&self.a, "sqc-a", change)
    }

    fn open_b(&self, change: impl FnOnce(&mut XdpConfig)) -> io::Result<XdpLink> {
        open(&self.b, "sqc-b", change)
    }

    /// A link on each side, the one in B joined to [`GROUP`].
    fn pair(&self, change: impl Fn(&mut XdpConfig)) -> (XdpLink, XdpLink) {
        let a = self.open_a(&change).unwrap();
        let mut b = self.open_b(&change).unwrap();
        b.join(GROUP).unwrap();
        (a, b)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        enter(&self.home);
    }
}

fn this_namespace() -> File {
    File::open("/proc/thread-self/ns/net").unwrap()
}

fn enter(namespace: &File) {
    // SAFETY: moves this thread alone into the namespace; no memory is involved.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(
        output.status.success(),
        "{command}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn open(namespace: &File, interface: &str, change: impl FnOnce(&mut XdpConfig)) -> io::Result<XdpLink> {
    enter(namespace);
    let mut config = XdpConfig::new(interface);
    // Few and small, so that the tests go around the rings many times.
    (config.frames, config.rx_ring, config.tx_ring) = (512, 128, 128);
    change(&mut config);
    XdpLink::open(&config)
}

fn refusal(result: io::Result<XdpLink>) -> String {
    result.err().expect("should have been refused").to_string()
}

fn assert_conserved(link: &XdpLink) {
    let count = link.frames();
    assert_eq!(
        count.free + count.fill + count.held + count.sending,
        count.total,
        "{count:?}"
    );
}

/// The payload of message `n`: of all lengths up to `longest`, each byte known.
fn payload(n: usize, longest: usize) -> Vec<u8> {
    let length = 1 + (n * 37) % longest;
    (0..length).map(|i| (n * 31 + i) as u8).collect()
}

fn send(link: &mut XdpLink, to: SocketAddrV4, payload: &[u8]) {
    let build = |buffer: &mut [u8]| {
        buffer[..payload.len()].copy_from_slice(payload);
        payload.len()
    };
    assert!(link.send(to, build), "no transmit frame is free");
}

/// Receives until `count` datagrams have come.
fn receive(link: &mut XdpLink, count: usize) -> Vec<Datagram<XdpFrame>> {
    let mut received = Vec::new();
    let until = Instant::now() + PATIENCE;
    let (_wake, woken) = UnixStream::pair().unwrap();
    while received.len() < count {
        assert!(
            Instant::now() < until,
            "{} of {count} came; {:?}",
            received.len(),
            link.stats()
        );
        link.receive(count - received.len(), |datagram| received.push(datagram))
            .unwrap();
        if received.len() < count {
            link.wait(woken.as_fd(), Duration::from_millis(100)).unwrap();
        }
    }
    received
}

/// Sends `count` messages from `a` to the group in small bursts; returns those that came to `b`,
/// told by their first two bytes, in order.
fn numbers_that_arrive(a: &mut XdpLink, b: &mut XdpLink, count: u16, lost: usize) -> Vec<u16> {
    let mut arrived = Vec::new();
    let number = |datagram: Datagram<XdpFrame>| u16::from_le_bytes(datagram.frame.as_ref().try_into().unwrap());
    for n in 0..count {
        send(a, GROUP, &n.to_le_bytes());
        a.flush().unwrap();
        b.receive(64, |datagram| arrived.push(number(datagram))).unwrap();
    }
    let missing = usize::from(count) - lost - arrived.len();
    arrived.extend(receive(b, missing).into_iter().map(number));
    arrived
}

#[test]
fn root_multicast_arrives_exactly_in_each_mode() {
    for (attach, mode) in [
        (Attach::Driver, "xdp driver copy queue 0 of sqc-b"),
        (Attach::Generic, "xdp generic copy queue 0 of sqc-b"),
    ] {
        let lab = Lab::new();
        let (mut a, mut b) = lab.pair(|config| {
            config.attach = attach;
            config.bind = Bind::Copy;
            config.ttl = 3;
        });
        assert_eq!(b.mode(), mode);
        assert_eq!(b.max_payload(), 1472);
        let longest = a.max_payload();
        let mut bytes = 0;
        for burst in 0..100 {
            let numbers = burst * 20..(burst + 1) * 20;
            for n in numbers.clone() {
                send(&mut a, GROUP, &payload(n, longest));
            }
            a.flush().unwrap();
            for (n, datagram) in numbers.zip(receive(&mut b, 20)) {
                assert_eq!((datagram.from, datagram.to), (a.local(), GROUP));
                assert_eq!(datagram.frame.as_ref(), payload(n, longest), "message {n}");
                bytes += datagram.frame.as_ref().len() as u64;
            }
            assert_conserved(&a);
            assert_conserved(&b);
        }
        let (sent, received) = (a.stats(), b.stats());
        assert_eq!((sent.sent, sent.sent_bytes, sent.sent_by_kernel), (2000, bytes, 0));
        assert_eq!((received.received, received.received_bytes), (2000, bytes));
        assert_eq!(
            (received.receive_dropped, received.malformed, received.fault_dropped),
            (0, 0, 0)
        );
    }
}

#[test]
fn root_the_largest_payload_arrives_and_an_empty_build_sends_nothing() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let largest: Vec<u8> = (0..a.max_payload()).map(|i| i as u8).collect();
    assert!(a.send(GROUP, |_| 0));
    send(&mut a, GROUP, &largest);
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), largest);
    assert_eq!(a.stats().sent, 1);
    assert_conserved(&a);
}

#[test]
fn root_unicast_goes_through_the_kernel_until_the_peer_is_heard() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let (to_a, to_b) = (a.local(), b.local());
    assert_eq!(
        (to_a.ip(), to_b.ip()),
        (&Ipv4Addr::new(10, 77, 0, 1), &Ipv4Addr::new(10, 77, 0, 2))
    );

    send(&mut a, to_b, b"first");
    a.flush().unwrap();
    let datagram = receive(&mut b, 1).remove(0);
    assert_eq!(
        (datagram.from, datagram.to, datagram.frame.as_ref()),
        (to_a, to_b, &b"first"[..])
    );
    assert_eq!(a.stats().sent_by_kernel, 1);

    send(&mut b, datagram.from, b"answer");
    b.flush().unwrap();
    let answer = receive(&mut a, 1).remove(0);
    assert_eq!(
        (answer.from, answer.to, answer.frame.as_ref()),
        (to_b, to_a, &b"answer"[..])
    );
    assert_eq!(b.stats().sent_by_kernel, 0);

    send(&mut a, to_b, b"second");
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), b"second");
    assert_eq!((a.stats().sent, a.stats().sent_by_kernel), (2, 1));

    // What the kernel refuses is counted, and nothing stops.
    send(&mut a, SocketAddrV4::new(Ipv4Addr::BROADCAST, 9), b"lost");
    assert_eq!(a.stats().send_failed, 1);
}

#[test]
fn root_a_kernel_socket_takes_what_we_send_and_its_answer_arrives() {
    let lab = Lab::new();
    let mut a = lab.open_a(|_| ()).unwrap();
    enter(&lab.b);
    let b = UdpSocket::bind(GROUP).unwrap();
    b.join_multicast_v4(GROUP.ip(), &Ipv4Addr::new(10, 77, 0, 2)).unwrap();
    b.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = [0; 2048];
    for length in [1, 2, 3, 4, 5, 64, 1471, 1472] {
        let sent: Vec<u8> = (0..length).map(|i| (i * 13 + 5) as u8).collect();
        send(&mut a, GROUP, &sent);
        a.flush().unwrap();
        // The kernel checks both checksums before it hands over a datagram.
        let (received, from) = b.recv_from(&mut buffer).unwrap();
        assert_eq!(buffer[..received], sent);
        assert_eq!(from, a.local().into());
        b.send_to(&buffer[..received], from).unwrap();
        assert_eq!(receive(&mut a, 1)[0].frame.as_ref(), sent);
    }
}

#[test]
fn root_other_traffic_and_the_membership_are_the_kernels() {
    let lab = Lab::new();
    let (_a, b) = lab.pair(|_| ());
    enter(&lab.b);
    let memberships = std::fs::read_to_string("/proc/thread-self/net/igmp").unwrap();
    // In hexadecimal, as the machine stores it.
    let group = format!("{:08X}", u32::from_ne_bytes(GROUP.ip().octets()));
    assert!(memberships.contains(&group), "{group} not in\n{memberships}");

    let other = UdpSocket::bind("10.77.0.2:0").unwrap();
    other.set_read_timeout(Some(PATIENCE)).unwrap();
    enter(&lab.a);
    let from = UdpSocket::bind("10.77.0.1:0").unwrap();
    from.send_to(b"not for the link", other.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 64];
    let (length, _) = other.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"not for the link");
    let counters = b.filter_counters().unwrap();
    assert!(counters.no_match >= 1 && counters.redirected == 0, "{counters:?}");
}

#[test]
fn root_faults_lose_what_they_say_and_are_counted() {
    let lab = Lab::new();
    let mut a = lab.open_a(|_| ()).unwrap();

    let fault = Fault {
        burst_at: 10,
        burst_len: 5,
        ..Fault::default()
    };
    let mut b = lab.open_b(|config| config.fault = fault).unwrap();
    b.join(GROUP).unwrap();
    let expected: Vec<u16> = (0..10).chain(15..100).collect();
    assert_eq!(numbers_that_arrive(&mut a, &mut b, 100, 5), expected);
    assert_eq!(b.stats().fault_dropped, 5);
    drop(b);

    let fault = Fault {
        drop_share: 1.0,
        ..Fault::default()
    };
    let mut b = lab.open_b(|config| config.fault = fault).unwrap();
    b.join(GROUP).unwrap();
    assert_eq!(numbers_that_arrive(&mut a, &mut b, 100, 100), Vec::<u16>::new());
    assert_eq!(b.stats().fault_dropped, 100);
    drop(b);

    let fault = Fault {
        drop_share: 0.2,
        seed: 42,
        ..Fault::default()
    };
    let mut runs = Vec::new();
    for _ in 0..2 {
        let mut b = lab.open_b(|config| config.fault = fault).unwrap();
        b.join(GROUP).unwrap();
        // One after another, until the filter has seen all of them.
        let mut arrived = Vec::new();
        for n in 0..500u16 {
            send(&mut a, GROUP, &n.to_le_bytes());
            a.flush().unwrap();
            let until = Instant::now() + PATIENCE;
            loop {
                b.receive(64, |datagram| arrived.push(datagram.frame.as_ref().to_vec()))
                    .unwrap();
                if arrived.len() as u64 + b.stats().fault_dropped > n.into() {
                    break;
                }
                assert!(Instant::now() < until, "message {n} neither came nor was dropped");
            }
        }
        let dropped = b.stats().fault_dropped;
        assert!(
            (50..150).contains(&dropped),
            "{dropped} of 500 dropped, expected about 100"
        );
        runs.push(arrived);
    }
    assert!(runs[0] == runs[1], "one seed, two different losses");
}

#[test]
fn root_frames_are_conserved_whatever_is_held_or_sent() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let total = b.frames().total;
    assert_eq!((total, b.frames().held), (512, 0));
    let mut held = Vec::new();
    // The engine may hold half of them; the link keeps receiving.
    for n in 0..256 {
        send(&mut a, GROUP, &payload(n, 1400));
        a.flush().unwrap();
        held.extend(receive(&mut b, 1));
        assert_conserved(&a);
        assert_conserved(&b);
        assert_eq!(b.frames().held, n + 1);
    }
    for (n, datagram) in held.iter().enumerate() {
        assert_eq!(datagram.frame.as_ref(), payload(n, 1400), "held message {n} changed");
    }
    // Given back in another order than taken.
    while held.len() > 64 {
        held.swap_remove(held.len() * 7 % 13);
        assert_conserved(&b);
    }
    assert_eq!(b.frames().held, held.len());
    // Many times around every ring.
    for n in 0..3000 {
        send(&mut a, GROUP, &payload(n, 1400));
        a.flush().unwrap();
        assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), payload(n, 1400));
    }
    assert_conserved(&a);
    assert_conserved(&b);
    assert_eq!(b.stats().receive_dropped, 0);

    // Frames outlive the link, and the queue is free once they are gone.
    drop(b);
    let lengths: Vec<usize> = held.iter().map(|datagram| datagram.frame.as_ref().len()).collect();
    assert!(lengths.iter().all(|length| (1..=1400).contains(length)));
    drop(held);
    lab.open_b(|_| ()).unwrap();
}

#[test]
fn root_holding_too_many_frames_loses_counted_datagrams_and_nothing_else() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let receive_frames = 512 - 128;
    let mut held = Vec::new();
    for _ in 0..1000 {
        send(&mut a, GROUP, b"hoarded");
        a.flush().unwrap();
        b.receive(64, |datagram| held.push(datagram)).unwrap();
    }
    let until = Instant::now() + PATIENCE;
    while held.len() as u64 + b.stats().receive_dropped < 1000 {
        b.receive(64, |datagram| held.push(datagram)).unwrap();
        assert!(Instant::now() < until, "{} held, {:?}", held.len(), b.stats());
    }
    assert_eq!(
        (held.len(), b.stats().receive_dropped),
        (receive_frames, 1000 - receive_frames as u64)
    );
    assert_conserved(&b);
    // It can still send, and receives again once frames come back.
    send(&mut b, a.local(), b"help");
    b.flush().unwrap();
    receive(&mut a, 1);
    held.clear();
    b.receive(64, |_| ()).unwrap();
    send(&mut a, GROUP, b"again");
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), b"again");
}

#[test]
fn root_a_wait_ends_with_a_datagram_and_with_the_callers_descriptor() {
    use std::io::Write;
    const FOR_EVER: Duration = Duration::from_secs(1 << 40);
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let (mut wake, woken) = UnixStream::pair().unwrap();
    b.wait(woken.as_fd(), Duration::ZERO).unwrap();

    wake.write_all(b"!").unwrap();
    b.wait(woken.as_fd(), FOR_EVER).unwrap();
    assert_eq!(b.receive(64, |_| ()).unwrap(), 0);

    let (_wake, silent) = UnixStream::pair().unwrap();
    send(&mut a, GROUP, b"wake up");
    a.flush().unwrap();
    b.wait(silent.as_fd(), FOR_EVER).unwrap();
    assert_eq!(
        b.receive(64, |datagram| assert_eq!(datagram.frame.as_ref(), b"wake up"))
            .unwrap(),
        1
    );
}

#[test]
fn root_a_link_whose_interface_vanishes_fails_and_closes() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let (_wake, woken) = UnixStream::pair().unwrap();
    enter(&lab.a);
    run("ip link del sqc-a");

    send(&mut a, GROUP, b"into the void");
    let error = a.flush().unwrap_err().to_string();
    assert!(error.contains("sqc-a is gone"), "{error}");

    let until = Instant::now() + PATIENCE;
    let error = loop {
        assert!(Instant::now() < until, "wait does not tell");
        let waited = b.wait(woken.as_fd(), Duration::from_millis(100));
        if let Err(error) = waited.and_then(|()| b.receive(64, |_| ())) {
            break error.to_string();
        }
    };
    assert!(error.contains("sqc-b is gone"), "{error}");
    assert_conserved(&a);
    assert_conserved(&b);
}

#[test]
fn root_more_is_queued_than_the_ring_holds_and_the_rest_is_refused() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    let mut refused = 0;
    let mut queued = 0;
    for _ in 0..200 {
        let build = |buffer: &mut [u8]| {
            buffer[..64].fill(1);
            64
        };
        if a.send(GROUP, build) {
            queued += 1;
        } else {
            refused += 1;
        }
    }
    assert_eq!((queued, refused), (128, 72));
    assert_eq!((a.stats().sent, a.stats().send_full), (128, 72));
    a.flush().unwrap();
    receive(&mut b, 128);
    assert!(a.send(GROUP, |_| 1));
    assert_conserved(&a);
}

#[test]
fn root_a_link_opens_again_at_once_after_it_is_dropped() {
    let lab = Lab::new();
    let mut a = lab.open_a(|_| ()).unwrap();
    let mut port = 0;
    for round in 0..5 {
        let mut b = lab.open_b(|config| config.port = port).unwrap();
        b.join(GROUP).unwrap();
        port = b.local().port();
        send(&mut a, GROUP, &[round]);
        a.flush().unwrap();
        assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), [round]);
    }
}

/// Not a test of its own: the process that `root_a_killed_process_leaves_nothing` kills.
#[test]
fn child_that_holds_a_link_until_killed() {
    if std::env::var_os("SQC_XDP_CHILD").is_none() {
        return;
    }
    let mut link = XdpLink::open(&XdpConfig::new("sqc-b")).unwrap();
    link.join(GROUP).unwrap();
    println!("\nopen");
    loop {
        std::thread::park();
    }
}

#[test]
fn root_a_killed_process_leaves_nothing() {
    let lab = Lab::new();
    enter(&lab.b);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_holds_a_link_until_killed", "--nocapture"])
        .env("SQC_XDP_CHILD", "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let opened = lines.any(|line| line.unwrap() == "open");
    let while_it_runs = lab.open_b(|_| ());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(opened);
    assert!(refusal(while_it_runs).contains("already carries XDP program"));

    enter(&lab.b);
    let shown = Command::new("ip")
        .args(["link", "show", "dev", "sqc-b"])
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(!shown.contains("xdp"), "{shown}");
    let (mut a, mut b) = lab.pair(|_| ());
    send(&mut a, GROUP, b"again");
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), b"again");
}

#[test]
fn root_a_foreign_program_is_named_and_left_alone() {
    let lab = Lab::new();
    let mut first = lab.open_b(|_| ()).unwrap();
    first.join(GROUP).unwrap();
    for attach in [Attach::Auto, Attach::Driver, Attach::Generic] {
        let message = refusal(lab.open_b(|config| config.attach = attach));
        assert!(message.contains("sqc-b already carries XDP program id "), "{message}");
        assert!(message.contains("ip link set dev sqc-b xdp off"), "{message}");
    }
    let mut a = lab.open_a(|_| ()).unwrap();
    send(&mut a, GROUP, b"still here");
    a.flush().unwrap();
    assert_eq!(receive(&mut first, 1)[0].frame.as_ref(), b"still here");
}

#[test]
fn root_an_mtu_that_does_not_fit_is_named_with_the_remedy() {
    let lab = Lab::with(3600, 1);
    let message = refusal(lab.open_b(|_| ()));
    assert!(
        message.contains("2048") && message.contains("3600") && message.contains("frame_size = 4096"),
        "{message}"
    );

    let message = refusal(lab.open_b(|config| (config.frame_size, config.attach) = (4096, Attach::Driver)));
    assert!(
        message.contains("3600") && message.contains("3506") && message.contains("generic"),
        "{message}"
    );

    // Left to itself, the link takes generic mode, says why, and carries the whole MTU.
    let (mut a, mut b) = lab.pair(|config| config.frame_size = 4096);
    assert!(
        b.mode()
            .starts_with("xdp generic copy queue 0 of sqc-b (driver mode refused: "),
        "{}",
        b.mode()
    );
    let largest: Vec<u8> = (0..a.max_payload()).map(|i| (i / 7) as u8).collect();
    assert_eq!(largest.len(), 3572);
    send(&mut a, GROUP, &largest);
    a.flush().unwrap();
    assert_eq!(receive(&mut b, 1)[0].frame.as_ref(), largest);
}

#[test]
fn root_every_receive_queue_is_served_or_the_link_refuses() {
    let lab = Lab::with(1500, 2);
    let message = refusal(lab.open_b(|_| ()));
    assert!(
        message.contains("2 receive queues") && message.contains("ethtool -L sqc-b combined 1"),
        "{message}"
    );
    let message = refusal(lab.open_b(|config| config.queues = vec![0, 1, 2]));
    assert!(message.contains("no receive queue 2"), "{message}");

    let mut b = lab.open_b(|config| config.queues = vec![0, 1]).unwrap();
    assert!(b.mode().contains("queues 0,1 of sqc-b"), "{}", b.mode());
    enter(&lab.a);
    // The kernel spreads flows over the queues by their ports.
    let sockets: Vec<UdpSocket> = (0..32).map(|_| UdpSocket::bind("10.77.0.1:0").unwrap()).collect();
    for socket in &sockets {
        socket.send_to(b"one of many flows", b.local()).unwrap();
    }
    let received = receive(&mut b, sockets.len());
    assert!(
        received
            .iter()
            .all(|datagram| datagram.frame.as_ref() == b"one of many flows")
    );
    assert_eq!(b.frames().total, 1024);
    assert_conserved(&b);
}

#[test]
fn root_an_unfit_interface_is_refused_with_the_remedy() {
    let lab = Lab::new();
    enter(&lab.b);
    let message = refusal(lab.open_b(|config| config.interface = "sqc-none".into()));
    assert!(message.contains("no interface sqc-none"), "{message}");
    let message = refusal(lab.open_b(|config| config.interface = "lo".into()));
    assert!(message.contains("lo is no Ethernet interface"), "{message}");
    let taken = UdpSocket::bind("10.77.0.2:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let message = refusal(lab.open_b(|config| config.port = port));
    assert!(message.contains(&format!("UDP 10.77.0.2:{port} is taken")), "{message}");
    let message = refusal(lab.open_b(|config| config.bind = Bind::ZeroCopy));
    assert!(
        message.contains("no zero-copy") && message.contains("bind = auto"),
        "{message}"
    );
    run("ip address flush dev sqc-b");
    let message = refusal(lab.open_b(|_| ()));
    assert!(
        message.contains("sqc-b has no IPv4 address") && message.contains("ip address add"),
        "{message}"
    );
    run("ip link set sqc-b down");
    let message = refusal(lab.open_b(|_| ()));
    assert!(
        message.contains("sqc-b is down") && message.contains("ip link set dev sqc-b up"),
        "{message}"
    );
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_BPF: u32 = 39;

/// Runs `what` with this thread's capabilities cut down to `kept`.
fn with_only<T>(kept: &[u32], what: impl FnOnce() -> T) -> T {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // Effective, permitted and inheritable sets; the low words, then the high words.
    let mut before = [0u32; 6];
    // SAFETY: the kernel fills the two sets of three words that version 3 asks for.
    let result = unsafe { libc::syscall(libc::SYS_capget, header.as_mut_ptr(), before.as_mut_ptr()) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    let mut set = |words: &[u32; 6]| {
        // SAFETY: as above; the kernel only reads the sets.
        let result = unsafe { libc::syscall(libc::SYS_capset, header.as_mut_ptr(), words.as_ptr()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    };
    let mut reduced = before;
    (reduced[0], reduced[3]) = (0, 0);
    for capability in kept {
        reduced[if *capability < 32 { 0 } else { 3 }] |= 1 << (capability % 32);
    }
    set(&reduced);
    let result = what();
    set(&before);
    result
}

#[test]
fn root_a_missing_capability_is_named_and_three_suffice() {
    let lab = Lab::new();
    enter(&lab.b);
    // 1 MiB: the frames below fit it, the usual ones do not. Threads that may lock memory do not mind.
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the kernel fills `limit`, then reads it.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit), 0);
        limit.rlim_cur = 1 << 20;
        assert_eq!(libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit), 0);
    }

    let mut config = XdpConfig::new("sqc-b");
    let refused = |kept: &[u32], config: &XdpConfig| refusal(with_only(kept, || XdpLink::open(config)));
    for kept in [&[][..], &[CAP_BPF, CAP_NET_RAW], &[CAP_NET_ADMIN, CAP_NET_RAW]] {
        let message = refused(kept, &config);
        assert!(
            message.contains("not permitted to load the XDP filter: needs CAP_BPF and CAP_NET_ADMIN"),
            "{message}"
        );
    }
    let message = refused(&[CAP_BPF, CAP_NET_ADMIN], &config);
    assert!(message.contains("needs CAP_NET_RAW"), "{message}");
    let all = [CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW];
    let message = refused(&all, &config);
    assert!(
        message.contains("8192 frames") && message.contains("ulimit -l"),
        "{message}"
    );

    (config.frames, config.rx_ring, config.tx_ring) = (256, 64, 64);
    // The filter with its fault code in must load with them too.
    (config.fault.burst_at, config.fault.burst_len) = (1000, 1);
    let mut b = with_only(&all, || XdpLink::open(&config)).unwrap();
    with_only(&[], || b.join(GROUP)).unwrap();
    let mut a = lab.open_a(|_| ()).unwrap();
    send(&mut a, GROUP, b"no more needed");
    a.flush().unwrap();
    // Once open, nothing is needed any more.
    let received = with_only(&[], || receive(&mut b, 1));
    assert_eq!(received[0].frame.as_ref(), b"no more needed");
}

#[test]
fn root_groups_are_joined_once_and_checked() {
    let lab = Lab::new();
    let (mut a, mut b) = lab.pair(|_| ());
    b.join(GROUP).unwrap();
    let same_group = SocketAddrV4::new(*GROUP.ip(), 31002);
    b.join(same_group).unwrap();
    send(&mut a, same_group, b"second port");
    send(&mut a, SocketAddrV4::new(*GROUP.ip(), 31003), b"nobody's");
    send(&mut a, GROUP, b"first port");
    a.flush().unwrap();
    let received = receive(&mut b, 2);
    assert_eq!((received[0].to, received[1].to), (same_group, GROUP));
    for wrong in ["10.1.1.1:5", "239.1.1.1:0", "224.0.0.5:5"] {
        b.join(wrong.parse().unwrap()).unwrap_err();
    }
}

#[test]
fn a_configuration_that_cannot_work_is_refused_before_anything_is_touched() {
    let refused = |change: fn(&mut XdpConfig)| {
        let mut config = XdpConfig::new("sqc-none");
        change(&mut config);
        refusal(XdpLink::open(&config))
    };
    for (message, expected) in [
        (refused(|config| config.queues.clear()), "queues is empty"),
        (refused(|config| config.queues = vec![0, 1, 0]), "queue 0 again"),
        (refused(|config| config.frame_size = 1500), "2048 or 4096"),
        (refused(|config| config.rx_ring = 1000), "power of two"),
        (refused(|config| config.tx_ring = 32), "power of two"),
        (refused(|config| config.frames = 4096), "at least 8192"),
        (refused(|config| config.ttl = 0), "ttl = 0"),
        (refused(|config| config.fault.drop_share = f64::NAN), "0.0 to 1.0"),
        (refused(|config| config.fault.drop_share = 1.1), "0.0 to 1.0"),
    ] {
        assert!(message.contains(expected), "{message}");
    }
}
