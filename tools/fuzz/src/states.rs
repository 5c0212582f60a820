//! A server, an archive and four clients that talk to each other, and a stranger who knows the stream.

use std::net::SocketAddrV4;

use seqcast_proto::client::{Client, ClientConfig, Order, Start};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::{Endpoint, HeartbeatBody, Kind, Message, Reason, Role, Stamp, put_message};

use crate::Input;

// The world of the protocol's own tests.
#[path = "../../../engine/proto/tests/common/mod.rs"]
mod common;

use common::{GROUP, Net, STREAM, World, addr};

const HELD: usize = 64;
/// How many times as long as its questions the answers to a stranger may be.
const AMPLIFICATION: u64 = 8;
/// The client that takes messages as they arrive.
const ON_ARRIVAL: usize = 2;
const KINDS: [Kind; 7] = [
    Kind::Data,
    Kind::Heartbeat,
    Kind::Ack,
    Kind::Nak,
    Kind::Repair,
    Kind::Unavailable,
    Kind::End,
];

/// Whatever the stranger sends to whomever: nobody panics, no store is asked to break its rules, each
/// client delivers once and in its order, and holds no more than it may. Answers to the stranger are
/// no longer than its questions allow.
pub(crate) fn run(bytes: &[u8]) {
    let mut input = Input(bytes);
    let net = Net {
        loss: u64::from(input.u8()),
        double: 50,
        jitter: u64::from(input.u8()) * 1000,
    };
    let mut world = World::new(u64::from(input.u16()), net, 10_000);
    world.amplification = AMPLIFICATION as u32;
    world.start_server();
    world.start_archive();
    world.add_client(Start::Now);
    world.add_client(Start::Session);
    let current = world.server.as_ref().map_or(Session::NONE, |s| s.position().0);
    let first = Seq(u32::from(input.u8() & 15));
    for (order, start) in [
        (Order::Arrival, Start::Session),
        (Order::Sequence, Start::After(current, first)),
    ] {
        let mut config = ClientConfig::new(STREAM, 200 + world.clients.len() as u32);
        (config.order, config.start) = (order, start);
        config.hold_frames = HELD as u32;
        config.seek_group = Some(GROUP);
        let at = world.add_client(start);
        world.clients[at].client = Client::new(config, world.now);
    }
    let mut asked = 0;
    for _ in 0..64 {
        if input.is_empty() {
            break;
        }
        match input.u8() % 8 {
            0 => (0..1 + input.u8() % 16).for_each(|_| world.step(1)),
            1 => {
                // Timers of every length come due.
                world.now += 1 << (input.u8() % 36);
                world.step(0);
            }
            2 => {
                let (host, from) = parties(&mut input);
                let len = usize::from(input.u8());
                let bytes = input.take(len).to_vec();
                asked += bytes.len() as u64;
                world.inject(host, from, bytes);
            }
            3 => restart(&mut world, input.u8()),
            _ => {
                let (host, from) = parties(&mut input);
                let current = world.server.as_ref().map_or(Session::NONE, |s| s.position().0);
                let bytes = frame(&mut input, current, world.now().wall);
                asked += bytes.len() as u64;
                world.inject(host, from, bytes);
                world.step(usize::from(input.u8() & 1));
            }
        }
    }
    (0..8).for_each(|_| world.step(0));
    assert!(world.answered_strangers <= asked * AMPLIFICATION);
    for (i, host) in world.clients.iter().enumerate() {
        assert!(host.client.held() <= HELD);
        let mut got: Vec<_> = host.app.got.iter().map(|(session, seq, _)| (*session, *seq)).collect();
        if i == ON_ARRIVAL {
            // Sessions still follow each other.
            assert!(got.is_sorted_by_key(|(session, _)| *session), "order of sessions");
            got.sort_unstable();
        }
        assert!(got.is_sorted_by(|a, b| a < b), "order of numbers");
    }
}

fn restart(world: &mut World, which: u8) {
    if which & 1 == 0 {
        world.server = None;
        world.start_server();
    } else {
        world.archive = None;
        world.start_archive();
    }
}

fn parties(input: &mut Input<'_>) -> (u16, SocketAddrV4) {
    const HOSTS: [u16; 6] = [1, 2, 10, 11, 12, 13];
    let choice = input.u8();
    let from = match choice >> 2 & 3 {
        0 => addr(99),
        1 => GROUP,
        other => addr(u16::from(other) - 1),
    };
    (HOSTS[usize::from((choice & 3) + (choice >> 7) * 2)], from)
}

/// A number close to an edge, or any.
fn number(input: &mut Input<'_>) -> u32 {
    let small = u32::from(input.u8());
    match small >> 6 {
        0 | 1 => small,
        2 => u32::MAX - (small & 63),
        _ => input.u32(),
    }
}

fn session(input: &mut Input<'_>, current: Session) -> Session {
    let step = input.u8();
    Session(match step >> 6 {
        0 | 1 => current.0,
        2 => current.0.wrapping_add(u32::from(step & 63)).wrapping_sub(8),
        _ => number(input),
    })
}

/// Of long ago, or just now, as the numbers of questions are.
fn time(input: &mut Input<'_>, now: u64) -> u64 {
    let choice = input.u32();
    let time = u64::from(choice);
    if choice & 1 == 0 { time } else { now - time.min(now) }
}

fn frame(input: &mut Input<'_>, current: Session, now: u64) -> Vec<u8> {
    let kind = KINDS[usize::from(input.u8()) % KINDS.len()];
    let stamp = Stamp {
        stream: STREAM,
        session: session(input, current),
        sequence: Seq(number(input)),
        time: time(input, now),
        flags: input.u16(),
        origin: number(input),
    };
    let mut buf = vec![0; 2048];
    let len = match kind {
        Kind::Data | Kind::Repair => {
            let count = 1 + input.u8() % 8;
            let mut at = seqcast_proto::wire::HEADER;
            for _ in 0..count {
                let len = usize::from(input.u8() & 31);
                let payload = input.take(len);
                let message = Message { subject: b"", payload };
                at += put_message(&mut buf[at..], &message).expect("room for eight short messages");
            }
            stamp.write(&mut buf, kind, u16::from(count));
            at
        }
        Kind::Heartbeat => {
            let body = HeartbeatBody {
                previous_session: session(input, current).0.into(),
                previous_last: number(input).into(),
                oldest: number(input).into(),
                acknowledged: number(input).into(),
            };
            let roles = [Role::Server, Role::Archive];
            let named: Vec<Endpoint> = (0..input.u8() % 4)
                .map(|i| Endpoint::new(parties(input).1, roles[usize::from(i & 1)]))
                .collect();
            stamp.heartbeat(&mut buf, &body, &named)
        }
        Kind::Ack | Kind::Nak => {
            let ranges: Vec<SeqRange> = (0..input.u8() % 8)
                .filter_map(|_| SeqRange::new(Seq(number(input)), Seq(number(input))))
                .collect();
            stamp.ranges(&mut buf, kind, ranges)
        }
        Kind::Unavailable => {
            let reasons = [Reason::NotYet, Reason::TooOld, Reason::UnknownSession, Reason::Lost];
            let reason = reasons[usize::from(input.u8() & 3)];
            let (first, last) = (Seq(number(input)), Seq(number(input)));
            let range = SeqRange::new(first, last).unwrap_or(SeqRange { first, last: first });
            stamp.unavailable(&mut buf, range, reason, input.u16())
        }
        Kind::End => stamp.end(&mut buf, session(input, current), session(input, current)),
    };
    buf.truncate(len);
    buf
}
