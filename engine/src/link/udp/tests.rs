use std::ops::Range;

use super::*;

const A: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1);
const B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 2);

fn queue(datagrams: &[(SocketAddrV4, usize)]) -> SendQueue {
    let mut queue = SendQueue::new(1472);
    for (n, (to, len)) in datagrams.iter().enumerate() {
        assert!(queue.push(*to, |buffer| {
            buffer[..*len].fill(n as u8);
            *len
        }));
    }
    queue
}

/// Destination, bytes and datagrams of each run.
fn runs(queue: &SendQueue, first: usize, gso: bool) -> Vec<(SocketAddrV4, Range<usize>, usize)> {
    let mut runs = Vec::new();
    queue.runs(first, gso, &mut runs);
    runs.into_iter().map(|r| (r.to, r.bytes, r.datagrams)).collect()
}

#[test]
fn a_run_has_one_destination_and_one_size_but_for_its_last() {
    let queue = queue(&[(A, 10), (A, 10), (A, 4), (A, 10), (A, 12), (B, 12), (B, 12), (A, 12)]);
    assert_eq!(
        runs(&queue, 0, true),
        [
            (A, 0..24, 3),
            (A, 24..34, 1),
            (A, 34..46, 1),
            (B, 46..70, 2),
            (A, 70..82, 1)
        ]
    );
    assert_eq!(runs(&queue, 1, true)[0], (A, 10..24, 2));
}

#[test]
fn without_gso_each_datagram_goes_alone() {
    let queue = queue(&[(A, 10), (A, 10), (A, 10)]);
    assert_eq!(runs(&queue, 1, false), [(A, 10..20, 1), (A, 20..30, 1)]);
}

#[test]
fn a_run_is_bounded_in_datagrams_and_in_bytes() {
    let small = queue(&[(A, 1); SEND_QUEUE]);
    assert!(runs(&small, 0, true).iter().all(|(_, _, datagrams)| *datagrams == RUN));
    let large = queue(&[(A, 1472); SEND_QUEUE]);
    let runs = runs(&large, 0, true);
    assert!(runs.iter().all(|(_, bytes, _)| bytes.len() <= RUN_BYTES));
    assert_eq!(runs[0].2, RUN_BYTES / 1472);
}

#[test]
fn what_could_not_be_sent_stays_in_order() {
    let mut queue = queue(&[(A, 100), (A, 50), (B, 70)]);
    queue.remove(1);
    assert!(queue.push(A, |buffer| {
        buffer[..5].fill(9);
        5
    }));
    let expected: Vec<u8> = [vec![1; 50], vec![2; 70], vec![9; 5]].concat();
    assert_eq!(queue.bytes[..queue.end], expected);
    assert_eq!(queue.entries, [(A, 50), (B, 70), (A, 5)]);
    queue.remove(3);
    assert_eq!((queue.end, queue.entries.len()), (0, 0));
}

#[test]
fn a_queue_has_room_for_the_largest_datagrams() {
    let mut queue = queue(&[(A, 1472); SEND_QUEUE]);
    assert!(!queue.push(A, |_| 1));
    queue.remove(1);
    assert!(queue.push(A, |_| 1472));
}

#[test]
fn a_device_that_refuses_runs_still_gets_each_datagram() {
    let open = || UdpLink::open(UdpConfig::default()).unwrap();
    let (mut a, mut b) = (open(), open());
    // The kernel splits no run of a socket that asks for no checksums.
    sys::set_option::<libc::c_int>(a.ports[0].socket.as_fd(), libc::SOL_SOCKET, libc::SO_NO_CHECK, &1).unwrap();
    let sizes = [1472, 1472, 1472, 8, 8];
    for len in sizes {
        assert!(a.send(b.local(), |_| len));
    }
    a.flush().unwrap();
    assert!(a.mode().contains("no gso"));
    assert_eq!(a.stats().sent, 5);
    let mut got = Vec::new();
    while got.len() < sizes.len() {
        b.receive(16, |datagram| got.push(datagram.frame.as_ref().len()))
            .unwrap();
    }
    assert_eq!(got, sizes);
}

#[test]
fn faults_hit_their_share_and_their_burst() {
    let count = |fault| {
        let mut filter = FaultFilter::new(fault);
        (0..100_000).filter(|_| filter.drops_next()).count()
    };
    assert_eq!(count(Fault::default()), 0);
    let share = |drop_share| Fault {
        drop_share,
        ..Fault::default()
    };
    assert_eq!(count(share(1.0)), 100_000);
    assert!((900..1100).contains(&count(share(0.01))));
    let burst = Fault {
        burst_at: 99_990,
        burst_len: 100,
        ..Fault::default()
    };
    assert_eq!(count(burst), 10);
}
