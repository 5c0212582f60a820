//! The kernel-socket link over loopback: no privilege, no network but 127.0.0.1.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use seqcast_engine::link::udp::{UdpConfig, UdpFrame, UdpLink};
use seqcast_engine::link::{Datagram, Fault, Link};

fn open(config: UdpConfig) -> UdpLink {
    UdpLink::open(config).expect("loopback is up")
}

fn link() -> UdpLink {
    open(UdpConfig::default())
}

/// A group of this test alone: the port belongs to `link`.
fn group(link: &UdpLink) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(239, 77, 1, 1), link.local().port())
}

fn send(link: &mut UdpLink, to: SocketAddrV4, payload: &[u8]) {
    let queued = link.send(to, |buffer| {
        buffer[..payload.len()].copy_from_slice(payload);
        payload.len()
    });
    assert!(queued);
}

/// Receives until `count` datagrams have come; fails when they do not come at all.
fn receive(link: &mut UdpLink, count: usize) -> Vec<Datagram<UdpFrame>> {
    let (wake, _never_written) = UnixStream::pair().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut got = Vec::new();
    while got.len() < count {
        assert!(
            Instant::now() < deadline,
            "got {} of {count}: {:?}",
            got.len(),
            link.stats()
        );
        let room = count - got.len();
        if link.receive(room, |datagram| got.push(datagram)).unwrap() == 0 {
            link.wait(wake.as_fd(), Duration::from_secs(1)).unwrap();
        }
    }
    got
}

fn payloads(datagrams: &[Datagram<UdpFrame>]) -> Vec<&[u8]> {
    datagrams.iter().map(|d| d.frame.as_ref()).collect()
}

#[test]
fn multicast_reaches_every_joined_link_but_its_sender() {
    let (mut a, mut b, mut c, mut outsider) = (link(), link(), link(), link());
    let group = group(&a);
    for link in [&mut a, &mut b, &mut c] {
        link.join(group).unwrap();
        link.join(group).unwrap();
    }
    send(&mut a, group, b"one");
    send(&mut a, group, b"two");
    a.flush().unwrap();
    for link in [&mut b, &mut c] {
        let got = receive(link, 2);
        assert_eq!(payloads(&got), [b"one", b"two"]);
        assert!(got.iter().all(|d| d.from == a.local() && d.to == group));
    }
    // What the others hear of b comes after what a sent: nothing of a's own came back.
    send(&mut b, group, b"three");
    send(&mut b, outsider.local(), b"four");
    b.flush().unwrap();
    assert_eq!(payloads(&receive(&mut a, 1)), [b"three"]);
    assert_eq!(payloads(&receive(&mut outsider, 1)), [b"four"]);
    assert_eq!((a.stats().received, a.stats().sent), (1, 2));
}

#[test]
fn groups_on_one_port_are_kept_apart() {
    let (mut a, mut b) = (link(), link());
    let first = group(&a);
    let second = SocketAddrV4::new(Ipv4Addr::new(239, 77, 1, 2), first.port());
    b.join(first).unwrap();
    let mut c = link();
    c.join(second).unwrap();
    send(&mut a, second, b"second");
    send(&mut a, first, b"first");
    a.flush().unwrap();
    assert_eq!(payloads(&receive(&mut b, 1)), [b"first"]);
    assert_eq!(payloads(&receive(&mut c, 1)), [b"second"]);
}

#[test]
fn unicast_carries_addresses_both_ways() {
    let (mut a, mut b) = (link(), link());
    send(&mut a, b.local(), b"ping");
    a.flush().unwrap();
    let got = receive(&mut b, 1);
    assert_eq!((got[0].from, got[0].to), (a.local(), b.local()));
    send(&mut b, got[0].from, b"pong");
    b.flush().unwrap();
    assert_eq!(payloads(&receive(&mut a, 1)), [b"pong"]);
}

#[test]
fn the_largest_payload_goes_through() {
    assert_eq!(link().max_payload(), 1472);
    let config = UdpConfig {
        mtu: Some(65_535),
        ..UdpConfig::default()
    };
    for config in [UdpConfig::default(), config] {
        let (mut a, mut b) = (open(config.clone()), open(config));
        let payload: Vec<u8> = (0..a.max_payload()).map(|n| n as u8).collect();
        for _ in 0..3 {
            send(&mut a, b.local(), &payload);
        }
        a.flush().unwrap();
        assert_eq!(payloads(&receive(&mut b, 3)), [&payload[..]; 3]);
    }
}

#[test]
fn runs_arrive_as_the_datagrams_that_were_sent() {
    let mut a = link();
    let mut receivers = [link(), link()];
    let group = group(&a);
    for link in &mut receivers {
        link.join(group).unwrap();
    }
    // Equal sizes, a short one that ends a run, a longer one that cannot join it, odd sizes, and
    // more than one run may hold.
    let sizes = [64; 130]
        .into_iter()
        .chain([10, 64, 64, 100, 99, 1472, 1472, 1, 7, 7])
        .chain([1472; 90]);
    let sent: Vec<Vec<u8>> = sizes.enumerate().map(|(n, size)| vec![n as u8; size]).collect();
    for (n, payload) in sent.iter().enumerate() {
        send(&mut a, group, payload);
        if n % 5 == 0 {
            send(&mut a, receivers[0].local(), &[n as u8]);
        }
        if n % 150 == 149 {
            a.flush().unwrap();
        }
    }
    a.flush().unwrap();
    let bytes: usize = sent.iter().map(Vec::len).sum();
    let others = sent.len().div_ceil(5);
    assert_eq!(a.stats().sent as usize, sent.len() + others);
    assert_eq!(a.stats().sent_bytes as usize, bytes + others);

    assert_eq!(payloads(&receive(&mut receivers[1], sent.len())), sent);
    let (multicast, unicast): (Vec<_>, Vec<_>) = receive(&mut receivers[0], sent.len() + others)
        .into_iter()
        .partition(|d| d.to == group);
    assert_eq!(payloads(&multicast), sent);
    assert!(
        unicast
            .iter()
            .map(|d| d.frame.as_ref())
            .eq((0..others).map(|n| [(5 * n) as u8]))
    );
}

#[test]
fn no_more_are_handed_over_than_asked_for() {
    let (mut a, mut b) = (link(), link());
    for n in 0..100u8 {
        send(&mut a, b.local(), &[n; 64]);
    }
    a.flush().unwrap();
    let mut got = receive(&mut b, 1);
    for max in [0, 1, 5, 7] {
        let before = got.len();
        let n = b.receive(max, |datagram| got.push(datagram)).unwrap();
        assert!(n <= max && got.len() == before + n);
    }
    let rest = 100 - got.len();
    got.extend(receive(&mut b, rest));
    assert!(got.iter().map(|d| d.frame.as_ref()).eq((0..100).map(|n| [n; 64])));
}

#[test]
fn held_frames_keep_their_bytes_and_exhaustion_only_delays() {
    const FRAMES: usize = 8;
    let mut a = link();
    let mut b = open(UdpConfig {
        frames: FRAMES,
        ..UdpConfig::default()
    });
    // One at a time, so that no run makes several share a buffer.
    for n in 0..20u8 {
        send(&mut a, b.local(), &[n; 100]);
        a.flush().unwrap();
    }
    let mut held = receive(&mut b, FRAMES);
    let (wake, _never_written) = UnixStream::pair().unwrap();
    for _ in 0..3 {
        assert_eq!(b.receive(64, |_| panic!("a frame from nowhere")).unwrap(), 0);
        // Datagrams wait, but there is nowhere to put them: this must sleep, not spin.
        let syscalls = b.stats().syscalls;
        b.wait(wake.as_fd(), Duration::from_millis(1)).unwrap();
        assert_eq!(b.stats().syscalls, syscalls + 1);
    }
    // Each dropped frame makes room for one more; the others keep their bytes.
    let mut order = Vec::new();
    while order.len() < 12 {
        order.push(held.remove(order.len() % 3).frame.as_ref()[0]);
        held.extend(receive(&mut b, 1));
    }
    order.extend(held.iter().map(|d| d.frame.as_ref()[0]));
    assert!(held.iter().all(|d| d.frame.as_ref() == [d.frame.as_ref()[0]; 100]));
    order.sort_unstable();
    assert!(order.into_iter().eq(0..20));
    // Frames may outlive their link.
    drop(b);
    assert_eq!(held[0].frame.as_ref().len(), 100);
}

#[test]
fn frames_of_one_run_share_a_buffer_until_the_last_is_dropped() {
    let mut a = link();
    let mut b = open(UdpConfig {
        frames: 2,
        ..UdpConfig::default()
    });
    for round in 0..50u8 {
        for n in 0..40 {
            send(&mut a, b.local(), &[round ^ n; 64]);
        }
        a.flush().unwrap();
        let mut kept: Option<Datagram<UdpFrame>> = None;
        for n in 0..40 {
            let got = receive(&mut b, 1).remove(0);
            assert_eq!(got.frame.as_ref(), [round ^ n; 64]);
            if n == 3 {
                kept = Some(got);
            }
        }
        assert_eq!(kept.unwrap().frame.as_ref(), [round ^ 3; 64]);
    }
}

#[test]
fn a_burst_drops_exactly_its_datagrams() {
    let mut a = link();
    let mut b = open(UdpConfig {
        fault: Fault {
            burst_at: 10,
            burst_len: 5,
            ..Fault::default()
        },
        ..UdpConfig::default()
    });
    for n in 0..30u8 {
        send(&mut a, b.local(), &[n]);
    }
    a.flush().unwrap();
    let got = receive(&mut b, 25);
    assert!(got.iter().map(|d| d.frame.as_ref()[0]).eq((0..10).chain(15..30)));
    assert_eq!((b.stats().received, b.stats().fault_dropped), (25, 5));
}

#[test]
fn random_loss_repeats_with_its_seed() {
    let survivors = |seed| {
        let mut a = link();
        let mut b = open(UdpConfig {
            fault: Fault {
                drop_share: 0.25,
                seed,
                ..Fault::default()
            },
            ..UdpConfig::default()
        });
        for n in 0..=255u8 {
            send(&mut a, b.local(), &[n]);
        }
        a.flush().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut got = Vec::new();
        while (got.len() as u64) < 256 - b.stats().fault_dropped {
            assert!(Instant::now() < deadline, "{:?}", b.stats());
            b.receive(64, |d| got.push(d.frame.as_ref()[0])).unwrap();
        }
        got
    };
    let first = survivors(1);
    assert!((150..235).contains(&first.len()), "{} of 256 survive", first.len());
    assert_eq!(first, survivors(1));
    assert_ne!(first, survivors(2));
}

#[test]
fn a_full_send_queue_refuses_until_flushed() {
    let (mut a, mut b) = (link(), link());
    let to = b.local();
    let mut queued = 0u64;
    while a.send(to, |buffer| {
        buffer[..8].copy_from_slice(&queued.to_le_bytes());
        8
    }) {
        queued += 1;
        assert!(queued < 100_000, "the queue is bounded");
    }
    assert_eq!(a.stats().send_full, 1);
    assert!(!a.send(to, |_| panic!("must not build when full")));
    a.flush().unwrap();
    assert!(a.send(to, |_| 0), "a build of nothing sends nothing");
    a.flush().unwrap();
    let got = receive(&mut b, queued as usize);
    assert!(
        got.iter()
            .map(|d| d.frame.as_ref())
            .eq((0..queued).map(u64::to_le_bytes))
    );
    assert_eq!(a.stats().sent, queued);
}

#[test]
fn a_wait_ends_when_woken() {
    let mut a = link();
    let (wake, mut waker) = UnixStream::pair().unwrap();
    std::io::Write::write_all(&mut waker, b"!").unwrap();
    let start = Instant::now();
    a.wait(wake.as_fd(), Duration::from_secs(60)).unwrap();
    assert!(start.elapsed() < Duration::from_secs(60));
}

#[test]
fn what_the_kernel_drops_is_counted() {
    let mut a = link();
    let mut b = open(UdpConfig {
        receive_buffer: 4096,
        ..UdpConfig::default()
    });
    // One at a time: a dropped run counts once.
    for _ in 0..100 {
        send(&mut a, b.local(), &[0; 1000]);
        a.flush().unwrap();
    }
    let mut received = 0;
    while b.receive(64, |_| received += 1).unwrap() > 0 {}
    assert!(received < 100);
    assert_eq!(received + b.stats().receive_dropped, 100);
    assert_eq!(b.stats().receive_dropped, 100 - received, "counted once");
}

#[test]
fn empty_and_oversized_datagrams_are_no_frames() {
    let mut b = link();
    let other = UdpSocket::bind("127.0.0.1:0").unwrap();
    other.send_to(&[], b.local()).unwrap();
    other.send_to(b"fine", b.local()).unwrap();
    assert_eq!(payloads(&receive(&mut b, 1)), [b"fine"]);
    assert_eq!(b.stats().malformed, 1);
}

#[test]
fn a_destination_that_cannot_be_reached_does_not_stop_the_others() {
    let (mut a, mut b) = (link(), link());
    let closed = link().local();
    let none = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
    for _ in 0..3 {
        send(&mut a, none, b"refused");
        send(&mut a, closed, b"lost");
        send(&mut a, b.local(), b"kept");
        a.flush().unwrap();
        a.receive(16, |_| ()).unwrap();
    }
    assert_eq!(payloads(&receive(&mut b, 3)), [b"kept"; 3]);
    assert_eq!((a.stats().sent, a.stats().send_failed), (6, 3));
}

#[test]
fn errors_name_the_thing_and_the_remedy() {
    let error = |config| UdpLink::open(config).err().expect("must be refused");
    let on = |interface: &str| UdpConfig {
        interface: interface.into(),
        ..UdpConfig::default()
    };
    let e = error(on("nosuch0"));
    assert_eq!(e.kind(), ErrorKind::NotFound);
    assert!(e.to_string().contains("nosuch0") && e.to_string().contains("lo"), "{e}");
    let e = error(on("203.0.113.77"));
    assert!(e.to_string().contains("203.0.113.77"), "{e}");

    let taken = link();
    let e = error(UdpConfig {
        port: taken.local().port(),
        ..UdpConfig::default()
    });
    assert_eq!(e.kind(), ErrorKind::AddrInUse);
    assert!(e.to_string().contains(&taken.local().to_string()), "{e}");

    for mtu in [0, 575, 65_536, 1 << 40] {
        let e = error(UdpConfig {
            mtu: Some(mtu),
            ..UdpConfig::default()
        });
        assert!(e.to_string().contains(&mtu.to_string()), "{e}");
    }
    for drop_share in [-0.1, 1.1, f64::NAN] {
        let fault = Fault {
            drop_share,
            ..Fault::default()
        };
        assert_eq!(
            error(UdpConfig {
                fault,
                ..UdpConfig::default()
            })
            .kind(),
            ErrorKind::InvalidInput
        );
    }
    let e = link().join("10.0.0.1:9".parse().unwrap()).unwrap_err();
    assert!(e.to_string().contains("10.0.0.1"), "{e}");
}

#[test]
fn mode_says_what_is_in_force() {
    let mut by_address = open(UdpConfig {
        interface: "127.0.0.1".into(),
        ..UdpConfig::default()
    });
    let mode = by_address.mode();
    assert!(mode.starts_with(&format!("udp on lo {}", by_address.local())), "{mode}");
    assert!(
        mode.contains("gso") && mode.contains("gro") && mode.contains("receive buffer"),
        "{mode}"
    );
    assert_eq!(by_address.stats().received, 0);
    let without = open(UdpConfig {
        gso: false,
        ..UdpConfig::default()
    });
    assert!(without.mode().contains("no gso"), "{}", without.mode());
}
