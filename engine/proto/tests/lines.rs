//! A client on two lines that lose, delay and repeat frames each in their own way: it delivers all,
//! and asks for what neither line has brought, and for nothing else.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use proptest::prelude::*;
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::{Application, Delivery, Event, Outbox};
use seqcast_proto::lines::{Line, LinesConfig};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::time::{MICROS, MILLIS, Nanos, Now};
use seqcast_proto::wire::{
    Body, Endpoint, Frame, HEADER, HeartbeatBody, Kind, Message, Role, Stamp, flags, put_message,
};

const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 4000);
const SERVER_B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 1), 4000);
const STREAM: Stream = Stream(9);
/// Between frames of the server.
const PACE: Nanos = 100 * MICROS;
const SKEW: Nanos = 5 * MILLIS;

fn stamp(sequence: Seq, flags: u16) -> Stamp {
    Stamp {
        stream: STREAM,
        session: Session(3),
        sequence,
        time: 0,
        flags,
        origin: 1,
    }
}

fn data(range: SeqRange, kind: Kind) -> Vec<u8> {
    let mut bytes = vec![0; 1472];
    let mut len = HEADER;
    for n in range.first.0..=range.last.0 {
        let message = Message {
            subject: b"",
            payload: &n.to_le_bytes(),
        };
        len += put_message(&mut bytes[len..], &message).unwrap();
    }
    stamp(range.first, flags::FROM_SERVER).write(&mut bytes, kind, range.len() as u16);
    bytes.truncate(len);
    bytes
}

fn heartbeat(next: Seq) -> Vec<u8> {
    let mut bytes = vec![0; 1472];
    let endpoints = [
        Endpoint::new(SERVER, Role::Server),
        Endpoint::new(SERVER_B, Role::Server).twin(),
    ];
    let body = HeartbeatBody {
        previous_session: 0.into(),
        previous_last: 0.into(),
        oldest: 1.into(),
        acknowledged: 0.into(),
    };
    let len = stamp(next, 0).heartbeat(&mut bytes, &body, &endpoints);
    bytes.truncate(len);
    bytes
}

#[derive(Default)]
struct Asked(Vec<(SocketAddrV4, SeqRange)>);

impl Outbox for Asked {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut bytes = [0; 1472];
        let len = build(&mut bytes);
        if let Body::Nak(ranges) = Frame::parse(&bytes[..len]).unwrap().body {
            self.0.extend(ranges.iter().map(|range| (to, range)));
        }
        true
    }

    fn max_frame(&self) -> usize {
        1472
    }
}

#[derive(Default)]
struct App {
    got: Vec<u32>,
    gaps: BTreeSet<u32>,
    events: Vec<Event>,
}

impl Application for App {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        for (seq, message) in delivery.block.messages() {
            assert_eq!(message.payload, seq.0.to_le_bytes());
            self.got.push(seq.0);
        }
        true
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Gap { range, .. } => self.gaps.extend(range.first.0..=range.last.0),
            Event::Line(_) => self.events.push(event),
            _ => {}
        }
    }
}

/// What a line does to the frames of the server.
#[derive(Clone, Debug)]
struct Way {
    lost: BTreeSet<usize>,
    twice: BTreeSet<usize>,
    /// From this frame on it carries nothing.
    dies: usize,
    delay: Nanos,
}

fn way(frames: usize) -> impl Strategy<Value = Way> {
    (
        prop::collection::btree_set(1..frames, 0..frames / 4),
        prop::collection::btree_set(0..frames, 0..frames / 8),
        prop_oneof![3 => Just(usize::MAX), 1 => 0..frames],
        0..SKEW / 2,
    )
        .prop_map(|(lost, twice, dies, delay)| Way {
            lost,
            twice,
            dies,
            delay,
        })
}

/// Runs a stream over two lines; what was delivered, and what was asked for and where.
fn run(counts: &[u32], ways: &[Way; 2], silence: Nanos) -> (App, Vec<(SocketAddrV4, SeqRange)>, BTreeSet<u32>) {
    let mut arrivals: Vec<(Nanos, Line, Vec<u8>)> = Vec::new();
    let mut missed_by_both = BTreeSet::new();
    let mut next = Seq::FIRST;
    for (n, &count) in counts.iter().enumerate() {
        let range = SeqRange::of(next, count).unwrap();
        next = range.end();
        let passes = |way: &Way| n < way.dies && !way.lost.contains(&n);
        if !ways.iter().any(passes) {
            missed_by_both.extend(range.first.0..=range.last.0);
        }
        for line in Line::BOTH {
            let way = &ways[line as usize];
            let copies = usize::from(passes(way)) * (1 + usize::from(way.twice.contains(&n)));
            for _ in 0..copies {
                arrivals.push((n as Nanos * PACE + way.delay, line, data(range, Kind::Data)));
            }
        }
    }
    // The end is told of for a while.
    for n in 0..40 {
        for line in Line::BOTH.into_iter().filter(|l| ways[*l as usize].dies == usize::MAX) {
            let at = (counts.len() + n) as Nanos * PACE + ways[line as usize].delay;
            arrivals.push((at, line, heartbeat(next)));
        }
    }
    arrivals.sort_by_key(|(at, ..)| *at);
    let config = ClientConfig {
        start: Start::Session,
        lines: Some(LinesConfig { skew: SKEW, silence }),
        ..ClientConfig::new(STREAM, 5)
    };
    let mut client = Client::new(config, 0);
    let (mut app, mut asked) = (App::default(), Asked::default());
    let mut due = 0;
    let mut answered = 0;
    let mut arrivals = arrivals.into_iter().peekable();
    let end = (counts.len() as Nanos + 400) * PACE + 20 * SKEW;
    while due < end {
        let mono = due.min(arrivals.peek().map_or(end, |(at, ..)| *at)).min(end);
        let now = Now { mono, wall: mono };
        while let Some((_, line, bytes)) = arrivals.next_if(|(at, ..)| *at <= mono) {
            let from = [SERVER, SERVER_B][line as usize];
            client.on_line_frame(now, line, from, bytes, &mut app);
        }
        due = client.poll(now, &mut app, &mut asked).max(mono + 1);
        while answered < asked.0.len() {
            let (to, range) = asked.0[answered];
            answered += 1;
            if let Some(known) = SeqRange::new(range.first, range.last.min(next.prev())) {
                client.on_frame(now, to, data(known, Kind::Repair), &mut app);
            }
        }
        if mono == end {
            break;
        }
        due = due.min(arrivals.peek().map_or(end, |(at, ..)| *at)).min(end);
    }
    (app, asked.0, missed_by_both)
}

fn numbers(counts: &[u32]) -> Vec<u32> {
    (1..=counts.iter().sum::<u32>()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn everything_is_delivered_once_and_only_what_both_lines_missed_is_asked_for(
        counts in prop::collection::vec(1u32..5, 80),
        a in way(80),
        b in way(80),
    ) {
        prop_assume!(a.dies == usize::MAX || b.dies == usize::MAX);
        let (app, asked, missed) = run(&counts, &[a, b], 2 * SKEW);
        prop_assert_eq!(&app.got, &numbers(&counts));
        let asked: BTreeSet<u32> = asked.iter().flat_map(|(_, r)| r.first.0..=r.last.0).collect();
        prop_assert_eq!(&asked, &missed);
        prop_assert_eq!(&app.gaps, &missed);
    }
}

fn clean() -> Way {
    Way {
        lost: BTreeSet::new(),
        twice: BTreeSet::new(),
        dies: usize::MAX,
        delay: 0,
    }
}

#[test]
fn losses_that_do_not_meet_need_no_question() {
    let lossy = |odd: usize| Way {
        lost: (1..400).filter(|n| n % 2 == odd).collect(),
        delay: odd as Nanos * SKEW / 2,
        ..clean()
    };
    let counts = vec![3; 400];
    let (app, asked, _) = run(&counts, &[lossy(0), lossy(1)], 500 * MILLIS);
    assert_eq!(app.got, numbers(&counts));
    assert!(asked.is_empty() && app.gaps.is_empty(), "{asked:?}");
}

#[test]
fn a_dead_line_is_said_and_questions_take_the_other() {
    let dead = Way { dies: 10, ..clean() };
    let lossy = Way {
        lost: [5, 300].into(),
        ..clean()
    };
    let counts = vec![1; 400];
    let (app, asked, _) = run(&counts, &[dead, lossy], 5 * MILLIS);
    assert_eq!(app.got, numbers(&counts));
    assert_eq!(app.events.len(), 1, "{:?}", app.events);
    let range = SeqRange::new(Seq(301), Seq(301)).unwrap();
    assert_eq!(asked.iter().map(|a| a.1).collect::<Vec<_>>(), [range]);
}
