//! The filter's verdict on frames of every kind, through `BPF_PROG_TEST_RUN`. Needs root (CAP_BPF,
//! CAP_NET_ADMIN and CAP_NET_RAW); touches no interface.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};

use seqcast_bpf::{Counters, Fault, Filter};

const DROP: u32 = 1;
const PASS: u32 = 2;
const REDIRECT: u32 = 4;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 2, 3), 31001);
const PAYLOAD: usize = 40;

/// An AF_XDP socket that is bound to nothing but has the ring that the socket map asks for.
fn socket() -> OwnedFd {
    // SAFETY: plain system calls; the option's value is a live u32 of the size given.
    unsafe {
        let fd = libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0, "AF_XDP socket: {}", std::io::Error::last_os_error());
        let entries: u32 = 64;
        let set = libc::setsockopt(fd, libc::SOL_XDP, libc::XDP_RX_RING, (&raw const entries).cast(), 4);
        assert_eq!(set, 0, "receive ring: {}", std::io::Error::last_os_error());
        OwnedFd::from_raw_fd(fd)
    }
}

struct Bench {
    filter: Filter,
    _socket: OwnedFd,
}

impl Bench {
    fn new(fault: &Fault) -> Bench {
        let filter = Filter::load(fault, 1).expect("these tests need root");
        let socket = socket();
        filter.add(GROUP).unwrap();
        filter.insert_socket(0, socket.as_fd()).unwrap();
        Bench {
            filter,
            _socket: socket,
        }
    }

    /// The verdict on `frame`, and what the filter counted for it.
    fn run(&self, frame: &[u8]) -> (u32, Counters) {
        let before = self.filter.counters().unwrap();
        let verdict = self.filter.test_run(frame).unwrap();
        let after = self.filter.counters().unwrap();
        let delta = Counters {
            redirected: after.redirected - before.redirected,
            no_socket: after.no_socket - before.no_socket,
            not_udp: after.not_udp - before.not_udp,
            fragment: after.fragment - before.fragment,
            options: after.options - before.options,
            truncated: after.truncated - before.truncated,
            no_match: after.no_match - before.no_match,
            bad_length: after.bad_length - before.bad_length,
            fault_dropped: after.fault_dropped - before.fault_dropped,
        };
        (verdict, delta)
    }
}

/// A datagram to [`GROUP`] behind the given VLAN tags.
fn frame(tags: &[u16]) -> Vec<u8> {
    let mut frame = vec![0x01, 0x00, 0x5e, 1, 2, 3, 2, 0, 0, 0, 0, 1];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 7]);
    }
    frame.extend([0x08, 0x00]);
    frame.extend(datagram(GROUP));
    frame
}

fn datagram(to: SocketAddrV4) -> Vec<u8> {
    let udp = 8 + PAYLOAD as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((20 + udp).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 1, 17, 0, 0, 10, 0, 0, 1]);
    ip.extend(to.ip().octets());
    ip.extend(9u16.to_be_bytes());
    ip.extend(to.port().to_be_bytes());
    ip.extend(udp.to_be_bytes());
    ip.extend([0, 0]);
    ip.extend([0xaa; PAYLOAD]);
    ip
}

const ETH: usize = 14;
const IP: usize = ETH;
const UDP: usize = ETH + 20;

/// A plain frame with some bytes overwritten.
fn with(changes: &[(usize, &[u8])]) -> Vec<u8> {
    let mut frame = frame(&[]);
    for (at, bytes) in changes {
        frame[*at..at + bytes.len()].copy_from_slice(bytes);
    }
    frame
}

macro_rules! expect {
    ($bench:expr, $frame:expr, $verdict:expr, $reason:ident) => {
        let expected = Counters {
            $reason: 1,
            ..Counters::default()
        };
        assert_eq!($bench.run(&$frame), ($verdict, expected));
    };
}

#[test]
fn root_wanted_datagrams_are_redirected_behind_up_to_two_tags() {
    let bench = Bench::new(&Fault::default());
    expect!(bench, frame(&[]), REDIRECT, redirected);
    expect!(bench, frame(&[0x8100]), REDIRECT, redirected);
    expect!(bench, frame(&[0x88a8]), REDIRECT, redirected);
    expect!(bench, frame(&[0x88a8, 0x8100]), REDIRECT, redirected);
    expect!(bench, frame(&[0x8100, 0x8100, 0x8100]), PASS, not_udp);
}

#[test]
fn root_padding_behind_the_datagram_is_no_reason_to_pass() {
    let bench = Bench::new(&Fault::default());
    let mut padded = frame(&[]);
    padded.extend([0; 13]);
    expect!(bench, padded, REDIRECT, redirected);
    // UDP shorter than its IP packet leaves room for UDP options (RFC 9868); the datagram is whole.
    expect!(bench, with(&[(UDP + 4, &[0, 9])]), REDIRECT, redirected);
    expect!(bench, with(&[(UDP + 4, &[0, 8])]), REDIRECT, redirected);
}

#[test]
fn root_other_traffic_passes() {
    let bench = Bench::new(&Fault::default());
    expect!(bench, with(&[(12, &[0x08, 0x06])]), PASS, not_udp);
    expect!(bench, with(&[(12, &[0x86, 0xdd])]), PASS, not_udp);
    expect!(bench, with(&[(IP + 9, &[6])]), PASS, not_udp);
    expect!(bench, with(&[(IP + 19, &[4])]), PASS, no_match);
    expect!(bench, with(&[(UDP + 2, &30000u16.to_be_bytes())]), PASS, no_match);
}

#[test]
fn root_fragments_and_options_pass() {
    let bench = Bench::new(&Fault::default());
    expect!(bench, with(&[(IP + 6, &[0x20, 0])]), PASS, fragment);
    expect!(bench, with(&[(IP + 6, &[0x00, 1])]), PASS, fragment);
    expect!(bench, with(&[(IP + 6, &[0x3f, 0xff])]), PASS, fragment);
    expect!(bench, with(&[(IP, &[0x46])]), PASS, options);
    expect!(bench, with(&[(IP, &[0x4f])]), PASS, options);
}

#[test]
fn root_headers_that_do_not_agree_pass() {
    let bench = Bench::new(&Fault::default());
    let ip_total = (20 + 8 + PAYLOAD) as u16;
    expect!(bench, with(&[(IP, &[0x44])]), PASS, bad_length);
    expect!(bench, with(&[(IP, &[0x65])]), PASS, bad_length);
    expect!(bench, with(&[(UDP + 4, &[0, 0])]), PASS, bad_length);
    expect!(bench, with(&[(UDP + 4, &[0, 7])]), PASS, bad_length);
    expect!(
        bench,
        with(&[(UDP + 4, &(ip_total - 19).to_be_bytes())]),
        PASS,
        bad_length
    );
    expect!(bench, with(&[(UDP + 4, &[0xff, 0xff])]), PASS, bad_length);
    expect!(bench, with(&[(IP + 2, &[0, 27])]), PASS, bad_length);
    expect!(bench, with(&[(IP + 2, &(ip_total + 1).to_be_bytes())]), PASS, truncated);
    expect!(bench, with(&[(IP + 2, &[0xff, 0xff])]), PASS, truncated);
}

#[test]
fn root_a_frame_cut_anywhere_passes() {
    let bench = Bench::new(&Fault::default());
    for tags in [&[][..], &[0x8100], &[0x88a8, 0x8100]] {
        let whole = frame(tags);
        // The kernel runs no frame below an Ethernet header.
        for length in ETH..whole.len() {
            expect!(bench, whole[..length], PASS, truncated);
        }
    }
}

#[test]
fn root_a_destination_or_a_socket_can_be_taken_out_again() {
    let bench = Bench::new(&Fault::default());
    bench.filter.remove_socket(0).unwrap();
    expect!(bench, frame(&[]), PASS, no_socket);
    bench.filter.remove(GROUP).unwrap();
    expect!(bench, frame(&[]), PASS, no_match);
    let error = bench.filter.remove(GROUP).unwrap_err().to_string();
    assert!(error.contains("239.1.2.3:31001"), "{error}");
}

#[test]
fn root_faults_drop_only_wanted_datagrams_and_repeat() {
    let drops = |fault: &Fault| -> Vec<bool> {
        let bench = Bench::new(fault);
        let unwanted = with(&[(IP + 19, &[4])]);
        let run = |_| {
            assert_eq!(bench.run(&unwanted).0, PASS);
            match bench.run(&frame(&[])) {
                (DROP, counted) => counted.fault_dropped == 1,
                (verdict, _) => {
                    assert_eq!(verdict, REDIRECT);
                    false
                }
            }
        };
        (0..400).map(run).collect()
    };
    let quarter = Fault {
        drop_below: 1 << 30,
        seed: 7,
        ..Fault::default()
    };
    let first = drops(&quarter);
    let dropped = first.iter().filter(|dropped| **dropped).count();
    assert!(
        (60..140).contains(&dropped),
        "{dropped} of 400 dropped, expected about 100"
    );
    assert_eq!(first, drops(&quarter));
    assert_ne!(first, drops(&Fault { seed: 8, ..quarter }));
    assert!(
        drops(&Fault {
            drop_below: 1 << 32,
            ..quarter
        })
        .iter()
        .all(|dropped| *dropped)
    );

    let burst = drops(&Fault {
        burst_at: 5,
        burst_len: 3,
        ..Fault::default()
    });
    let at: Vec<usize> = (0..burst.len()).filter(|&i| burst[i]).collect();
    assert_eq!(at, [5, 6, 7]);
}
