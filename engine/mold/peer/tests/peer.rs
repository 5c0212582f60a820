//! The same wire as an independent implementation: the crate `moldudp` asks us, and answers us.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use moldudp::{MoldUDP64, MoldUDP64Server};
use seqcast_mold::answers::{Answers, Library};
use seqcast_mold::packet::Request;
use seqcast_mold::publisher::{Publisher, PublisherConfig};
use seqcast_mold::subscriber::{Event, Reader, Start, Subscriber, SubscriberConfig};
use seqcast_mold::{SessionName, Variant};
use seqcast_proto::time::{MILLIS, Nanos, SECONDS};

const MESSAGES: u64 = 500;
const LIMIT: Duration = Duration::from_secs(20);

fn socket() -> (UdpSocket, SocketAddrV4) {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(2))).unwrap();
    let SocketAddr::V4(at) = socket.local_addr().unwrap() else {
        unreachable!("bound to IPv4")
    };
    (socket, at)
}

fn message(number: u64) -> Vec<u8> {
    (0..1 + number % 40).map(|at| (number + at) as u8).collect()
}

struct Heard {
    messages: Vec<Vec<u8>>,
    lost: u64,
    ended: bool,
    socket: UdpSocket,
    server: SocketAddrV4,
}

impl Reader for Heard {
    fn deliver(&mut self, _: &SessionName, number: u64, message: &[u8]) {
        self.messages.push(message.to_vec());
        assert_eq!(number, self.messages.len() as u64);
    }

    fn event(&mut self, event: Event) {
        self.lost += u64::from(matches!(event, Event::Lost(..) | Event::TailUnknown(..)));
        self.ended |= matches!(event, Event::Ended(..));
    }

    fn ask(&mut self, _: usize, request: &Request) {
        let mut bytes = [0; 20];
        let length = request.write(Variant::Mold64, &mut bytes);
        self.socket.send_to(&bytes[..length], self.server).unwrap();
    }
}

#[test]
fn its_server_feeds_our_subscriber() {
    let (downstream, to) = socket();
    let (its_answers, server) = socket();
    its_answers.set_read_timeout(None).unwrap();
    let (questions, _) = socket();
    let peer = MoldUDP64Server::builder()
        .multicast_addr(to)
        .rerequest_bind_addr(server.into())
        .session("PEER".to_owned())
        .heartbeat_interval(Duration::from_millis(20))
        .build();
    let handle = peer
        .start_with_sockets(UdpSocket::bind("127.0.0.1:0").unwrap(), its_answers)
        .unwrap();
    for first in (1..=MESSAGES).step_by(5) {
        let messages = (first..first + 5).map(message).collect();
        // The first packets are lost as well: session 1 is asked for from its start.
        if first % 3 == 1 {
            handle.send_dropped(messages)
        } else {
            handle.send(messages)
        }
    }
    handle.shutdown();

    let config = SubscriberConfig {
        variant: Variant::Mold64,
        session: Some("PEER".parse().unwrap()),
        start: Start::First,
        servers: 1,
        skew: MILLIS,
        give_up: 10 * SECONDS,
        hold: 1 << 20,
        silence: 10 * SECONDS,
        lines: 1,
    };
    let start = Instant::now();
    let mut subscriber = Subscriber::new(config, 0);
    let mut heard = Heard {
        messages: Vec::new(),
        lost: 0,
        ended: false,
        socket: questions,
        server,
    };
    let mut buffer = [0; 2048];
    while !heard.ended {
        assert!(start.elapsed() < LIMIT, "{:?}", subscriber.stats());
        let now = start.elapsed().as_nanos() as Nanos;
        if let Ok(length) = downstream.recv(&mut buffer) {
            subscriber.on_packet(now, 0, &buffer[..length], &mut heard);
        }
        subscriber.poll(now, &mut heard);
        while let Ok(length) = heard.socket.recv(&mut buffer) {
            subscriber.on_answer(now, &buffer[..length], &mut heard);
            subscriber.poll(now, &mut heard);
        }
    }
    assert_eq!(heard.lost, 0);
    assert!(
        heard
            .messages
            .iter()
            .eq((1..=MESSAGES).map(message).collect::<Vec<_>>().iter())
    );
    assert!(subscriber.stats().repaired > MESSAGES / 5, "{:?}", subscriber.stats());
}

struct All;

impl Library for All {
    fn read(&self, _: &SessionName, number: u64, each: &mut dyn FnMut(&[u8]) -> bool) {
        let _ = (number..=MESSAGES).all(|number| each(&message(number)));
    }

    fn end(&self, _: &SessionName) -> Option<u64> {
        Some(MESSAGES + 1)
    }
}

#[test]
fn our_publisher_feeds_its_client() {
    let (its_downstream, to) = socket();
    let (its_questions, _) = socket();
    for socket in [&its_downstream, &its_questions] {
        socket.set_read_timeout(None).unwrap();
    }
    let (ours, server) = socket();
    let client = MoldUDP64::builder()
        .multicast_addr(to)
        .interface_addr(Ipv4Addr::LOCALHOST)
        .rerequest_server_addrs(vec![server.into()])
        .expected_session_ident("1700000000".to_owned())
        .expected_seq_num(1)
        .build();
    let (received, _ask) = client
        .start_with_sockets(its_downstream, its_questions, &[server.into()])
        .unwrap();

    let config = PublisherConfig {
        variant: Variant::Mold64,
        most: 300,
        heartbeat: SECONDS,
        end: u64::MAX,
    };
    let mut publisher = Publisher::new(config);
    let mut answers = Answers::new(Variant::Mold64, 1400, 1 << 30, 0);
    let session = SessionName::of(1_700_000_000);
    let mut sent = 0;
    let mut send = |packet: &[u8]| {
        // Every fourth packet is lost.
        sent += 1;
        if sent % 4 != 0 {
            ours.send_to(packet, to).unwrap();
        }
    };
    publisher.open(0, session, 1, &mut send);
    for number in 1..=MESSAGES {
        publisher.push(0, number, &message(number), &mut send).unwrap();
    }
    publisher.flush(0, &mut send);
    // Its client takes the end's count for messages: it is sent when all else has come.
    let mut got = BTreeMap::new();
    let mut buffer = [0; 2048];
    let start = Instant::now();
    let mut beats = 0;
    let mut end = 0;
    while got.len() < MESSAGES as usize || end == 0 {
        assert!(start.elapsed() < LIMIT, "{} of {MESSAGES} messages", got.len());
        if let Ok((length, from)) = ours.recv_from(&mut buffer) {
            let answer = answers.answer(0, Ipv4Addr::LOCALHOST, &buffer[..length], &All);
            if let Some(answer) = answer {
                ours.send_to(answer, from).unwrap();
            }
        }
        beats += 1;
        publisher.poll(beats * SECONDS, &mut |packet: &[u8]| {
            ours.send_to(packet, to).unwrap();
        });
        if got.len() == MESSAGES as usize {
            publisher.end(beats * SECONDS, MESSAGES + 1, &mut |_: &[u8]| {});
        }
        while let Ok(datagram) = received.try_recv() {
            let packet = moldudp::Packet::new(datagram.bytes());
            assert_eq!(packet.session_ident(), "1700000000");
            match packet.packet_kind() {
                moldudp::PacketKind::EndOfSession => end = packet.seq_num(),
                moldudp::PacketKind::Heartbeat => assert_eq!(packet.seq_num(), MESSAGES + 1),
                moldudp::PacketKind::Standard => {
                    for (number, block) in (packet.seq_num()..).zip(packet.iter()) {
                        got.insert(number, block.data().to_vec());
                    }
                }
            }
        }
    }
    assert_eq!(end, MESSAGES + 1);
    assert!(
        got.into_iter()
            .eq((1..=MESSAGES).map(|number| (number, message(number))))
    );
    assert!(answers.stats().answers > 0);
}
