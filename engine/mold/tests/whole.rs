//! Publisher, re-request server and subscriber over a network that loses, doubles and delays.

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv4Addr;

use proptest::prelude::*;
use seqcast_mold::answers::{Answers, Library};
use seqcast_mold::packet::{Builder, Request, write_beat};
use seqcast_mold::publisher::{Publisher, PublisherConfig};
use seqcast_mold::subscriber::{Event, Reader, Start, Subscriber, SubscriberConfig};
use seqcast_mold::{SessionName, Variant};
use seqcast_proto::rng::Rng;
use seqcast_proto::time::{MILLIS, Nanos, SECONDS};

/// All messages of all sessions, and the ends of those that ended.
#[derive(Default)]
struct Shelf {
    messages: BTreeMap<(SessionName, u64), Vec<u8>>,
    ends: BTreeMap<SessionName, u64>,
}

impl Library for Shelf {
    fn read(&self, session: &SessionName, number: u64, each: &mut dyn FnMut(&[u8]) -> bool) {
        let mut number = number;
        while let Some(message) = self.messages.get(&(*session, number)) {
            if !each(message) {
                return;
            }
            number += 1;
        }
    }

    fn end(&self, session: &SessionName) -> Option<u64> {
        self.ends.get(session).copied()
    }
}

#[derive(Default)]
struct Heard {
    messages: Vec<(SessionName, u64, Vec<u8>)>,
    events: Vec<Event>,
    requests: Vec<(usize, Request)>,
}

impl Reader for Heard {
    fn deliver(&mut self, session: &SessionName, number: u64, message: &[u8]) {
        self.messages.push((*session, number, message.to_vec()));
    }

    fn event(&mut self, event: Event) {
        self.events.push(event);
    }

    fn ask(&mut self, server: usize, request: &Request) {
        self.requests.push((server, *request));
    }
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    variant: Variant,
    sessions: u32,
    messages: u64,
    /// Of a thousand packets of a line, or on the way of a question.
    lose: u64,
    lines: usize,
    servers: usize,
    hold: usize,
}

struct World {
    plan: Plan,
    rng: Rng,
    now: Nanos,
    shelf: Shelf,
    publisher: Publisher,
    answers: Answers,
    subscriber: Subscriber,
    heard: Heard,
    /// Packets on their way: when they arrive, over which line; none for an answer.
    wire: VecDeque<(Nanos, Option<usize>, Vec<u8>)>,
}

impl World {
    fn new(plan: Plan, start: Start) -> World {
        let config = SubscriberConfig {
            variant: plan.variant,
            session: None,
            start,
            servers: plan.servers,
            skew: 2 * MILLIS,
            give_up: 5 * SECONDS,
            hold: plan.hold,
            silence: 3 * SECONDS,
            lines: plan.lines,
        };
        World {
            rng: Rng::new(plan.seed),
            now: SECONDS,
            shelf: Shelf::default(),
            publisher: Publisher::new(PublisherConfig {
                variant: plan.variant,
                most: 200,
                heartbeat: 100 * MILLIS,
                end: SECONDS,
            }),
            answers: Answers::new(plan.variant, 200, 1 << 30, SECONDS),
            subscriber: Subscriber::new(config, SECONDS),
            heard: Heard::default(),
            wire: VecDeque::new(),
            plan,
        }
    }

    fn lost(&mut self) -> bool {
        self.rng.below(1000) < self.plan.lose
    }

    fn send(&mut self, act: impl FnOnce(&mut Publisher, Nanos, &mut dyn FnMut(&[u8]))) {
        let mut sent = Vec::new();
        act(&mut self.publisher, self.now, &mut |packet: &[u8]| {
            sent.push(packet.to_vec())
        });
        for packet in sent {
            for line in 0..self.plan.lines {
                if self.lost() {
                    continue;
                }
                for _ in 0..=u64::from(self.rng.below(50) == 0) {
                    let at = self.now + self.rng.below(MILLIS);
                    self.wire.push_back((at, Some(line), packet.clone()));
                }
            }
        }
    }

    fn step(&mut self) {
        self.now += MILLIS / 2;
        self.send(|publisher, now, mut out| {
            publisher.poll(now, &mut out);
        });
        let (arrived, later): (VecDeque<_>, VecDeque<_>) = self.wire.drain(..).partition(|p| p.0 <= self.now);
        self.wire = later;
        for (_, line, packet) in arrived {
            match line {
                Some(line) => self.subscriber.on_packet(self.now, line, &packet, &mut self.heard),
                None => self.subscriber.on_answer(self.now, &packet, &mut self.heard),
            }
        }
        self.subscriber.poll(self.now, &mut self.heard);
        for (_, request) in std::mem::take(&mut self.heard.requests) {
            if self.lost() {
                continue;
            }
            let mut bytes = [0; 20];
            let length = request.write(self.plan.variant, &mut bytes);
            let answer = self
                .answers
                .answer(self.now, Ipv4Addr::LOCALHOST, &bytes[..length], &self.shelf);
            if let Some(answer) = answer.map(<[u8]>::to_vec)
                && !self.lost()
            {
                self.wire.push_back((self.now + MILLIS / 3, None, answer));
            }
        }
    }

    fn run(&mut self) {
        for session in 1..=self.plan.sessions {
            let name = SessionName::of(session);
            self.send(|publisher, now, mut out| publisher.open(now, name, 1, &mut out));
            for number in 1..=self.plan.messages {
                let length = 1 + self.rng.below(60) as usize;
                let message: Vec<u8> = (0..length).map(|_| self.rng.below(256) as u8).collect();
                self.shelf.messages.insert((name, number), message.clone());
                self.send(|publisher, now, mut out| publisher.push(now, number, &message, &mut out).unwrap());
                if self.rng.below(3) == 0 {
                    self.send(|publisher, now, mut out| publisher.flush(now, &mut out));
                    self.step();
                }
            }
            self.shelf.ends.insert(name, self.plan.messages + 1);
            let next = self.plan.messages + 1;
            self.send(|publisher, now, mut out| publisher.end(now, next, &mut out));
            // A session may begin before everybody knows that the last one has ended.
            (0..self.rng.below(50)).for_each(|_| self.step());
        }
        (0..40_000).for_each(|_| self.step());
    }

    /// Each message once, in order, and what is missing reported as lost, all of it.
    fn check(&self) -> u64 {
        let mut lost = 0;
        let mut delivered = self.heard.messages.iter().peekable();
        let mut gaps: Vec<_> = self
            .heard
            .events
            .iter()
            .filter_map(|event| match event {
                Event::Lost(session, first, last) => Some((*session, *first, *last)),
                _ => None,
            })
            .collect();
        gaps.reverse();
        for ((session, number), message) in &self.shelf.messages {
            if gaps
                .last()
                .is_some_and(|(s, first, last)| s == session && (*first..=*last).contains(number))
            {
                lost += 1;
                if gaps.last().is_some_and(|gap| gap.2 == *number) {
                    gaps.pop();
                }
                continue;
            }
            let found = delivered.next_if(|(s, n, m)| s == session && n == number && m == message);
            assert!(
                found.is_some(),
                "session {session}: message {number} is neither delivered nor reported"
            );
        }
        assert_eq!(delivered.next(), None);
        assert_eq!(lost, self.subscriber.stats().lost);
        lost
    }
}

fn plans() -> impl Strategy<Value = Plan> {
    let shape = (1..4_u32, 1..400_u64, 0..300_u64, 1..3_usize);
    (
        any::<u64>(),
        any::<bool>(),
        shape,
        prop::sample::select(vec![2_000, 1 << 20]),
    )
        .prop_map(|(seed, mold32, (sessions, messages, lose, lines), hold)| Plan {
            seed,
            variant: if mold32 { Variant::Mold32 } else { Variant::Mold64 },
            sessions,
            messages,
            lose,
            lines,
            servers: 2,
            hold,
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn with_a_server_nothing_is_lost(plan in plans()) {
        let mut world = World::new(plan, Start::At(SessionName::of(1), 1));
        world.run();
        prop_assert_eq!(world.check(), 0);
        let ended = world.heard.events.iter().filter(|e| matches!(e, Event::Ended(..))).count();
        prop_assert_eq!(ended, plan.sessions as usize);
    }

    #[test]
    fn without_a_server_all_that_is_missing_is_reported(plan in plans()) {
        let plan = Plan { servers: 0, sessions: 1, ..plan };
        let mut world = World::new(plan, Start::At(SessionName::of(1), 1));
        world.run();
        let lost = world.check();
        prop_assert!(plan.lose > 0 || lost == 0);
    }
}

const PLAN: Plan = Plan {
    seed: 1,
    variant: Variant::Mold64,
    sessions: 1,
    messages: 1000,
    lose: 200,
    lines: 1,
    servers: 1,
    hold: 1 << 20,
};

#[test]
fn two_lines_ask_less_than_one() {
    let requests = |lines| {
        let mut world = World::new(Plan { lines, ..PLAN }, Start::First);
        world.run();
        assert_eq!(world.check(), 0);
        world.subscriber.stats().requests
    };
    assert!(requests(2) * 2 < requests(1));
}

#[test]
fn who_comes_late_gets_everything_in_full_packets() {
    let mut world = World::new(Plan { lose: 0, ..PLAN }, Start::First);
    let name = SessionName::of(7);
    for number in 1..=5000 {
        world.shelf.messages.insert((name, number), vec![b'm'; 20]);
    }
    world.send(|publisher, now, mut out| publisher.open(now, name, 5001, &mut out));
    while world.heard.messages.len() < 5000 {
        world.step();
        assert!(world.now < 60 * SECONDS, "{:?}", world.subscriber.stats());
    }
    assert_eq!(world.check(), 0);
    let stats = world.subscriber.stats();
    assert_eq!(stats.repaired, 5000);
    // 180 bytes hold 8 messages of 22; the first questions and the tries for more hold less.
    assert!(
        world.answers.stats().answers < 5000 / 8 * 3 / 2,
        "{:?}",
        world.answers.stats()
    );
}

#[test]
fn an_answer_is_one_packet_of_what_is_there() {
    let mut shelf = Shelf::default();
    let name: SessionName = "S".parse().unwrap();
    for number in [1, 2, 3, 5] {
        shelf.messages.insert((name, number), vec![number as u8; 50]);
    }
    let mut answers = Answers::new(Variant::Mold64, 150, 2000, 0);
    let mut ask = |now, first, count, shelf: &Shelf| {
        let mut bytes = [0; 20];
        let length = Request {
            session: name,
            first,
            count,
        }
        .write(Variant::Mold64, &mut bytes);
        let answer = answers.answer(now, Ipv4Addr::LOCALHOST, &bytes[..length], shelf)?;
        let packet = seqcast_mold::packet::Packet::parse(Variant::Mold64, answer).unwrap();
        Some((packet.number, packet.count, packet.end))
    };
    assert_eq!(ask(0, 1, 1, &shelf), Some((1, 1, false)));
    assert_eq!(ask(SECONDS, 1, 100, &shelf), Some((1, 2, false)), "two fit");
    assert_eq!(
        ask(2 * SECONDS, 3, 100, &shelf),
        Some((3, 1, false)),
        "up to what is missing"
    );
    assert_eq!(ask(3 * SECONDS, 4, 1, &shelf), None);
    assert_eq!(ask(3 * SECONDS, 6, 1, &shelf), None, "not yet");
    shelf.ends.insert(name, 6);
    assert_eq!(ask(4 * SECONDS, 6, 1, &shelf), Some((6, 0, true)));
    assert_eq!(ask(4 * SECONDS, 4, 1, &shelf), None, "lost before the end is no end");
    let now = 5 * SECONDS;
    let answered = (0..100).filter(|_| ask(now, 1, 2, &shelf).is_some()).count();
    assert!(answered < 5, "2000 bytes a second are {answered} answers");
    assert!(answers.stats().limited > 90);
}

#[test]
fn a_session_that_ends_unheard_is_found_to_have_ended() {
    for servers in [0, 1] {
        let mut world = World::new(
            Plan {
                lose: 0,
                servers,
                ..PLAN
            },
            Start::Now,
        );
        let (old, new) = (SessionName::of(1), SessionName::of(2));
        world.shelf.messages.insert((old, 1), b"first".to_vec());
        world.send(|p, now, mut out| p.open(now, old, 1, &mut out));
        world.send(|p, now, mut out| p.push(now, 1, b"first", &mut out).unwrap());
        world.send(|p, now, mut out| p.flush(now, &mut out));
        (0..10).for_each(|_| world.step());
        // Message 2 and the end are sent to nobody.
        world.shelf.messages.insert((old, 2), b"second".to_vec());
        world.shelf.ends.insert(old, 3);
        world.shelf.messages.insert((new, 1), b"third".to_vec());
        world.send(|p, now, mut out| p.open(now, new, 1, &mut out));
        world.send(|p, now, mut out| p.push(now, 1, b"third", &mut out).unwrap());
        world.send(|p, now, mut out| p.flush(now, &mut out));
        (0..100).for_each(|_| world.step());
        let events = &world.heard.events;
        assert!(events.contains(&Event::Began(new, 1)), "{events:?}");
        if servers > 0 {
            assert_eq!(world.check(), 0);
        } else {
            assert!(events.contains(&Event::TailUnknown(old, 2)), "{events:?}");
            assert!(
                events.contains(&Event::Lost(new, 1, 1)),
                "what came meanwhile: {events:?}"
            );
        }
    }
}

/// What a stranger's packets say is at the end of the numbers, in one session and the next.
#[test]
fn the_last_numbers_are_delivered_asked_for_and_counted() {
    let variant = Variant::Mold64;
    let last = variant.last();
    let config = SubscriberConfig {
        variant,
        session: None,
        start: Start::Now,
        servers: 1,
        skew: 0,
        give_up: SECONDS,
        hold: 1 << 20,
        silence: 3 * SECONDS,
        lines: 1,
    };
    let message = |session: &SessionName, number: u64| {
        let mut builder = Builder::new(variant, 200);
        builder.push(session, number, b"message").unwrap();
        builder.take().unwrap().to_vec()
    };
    let beat = |session: &SessionName, next: u64, end: bool| {
        let mut into = [0; 20];
        write_beat(variant, &mut into, session, next, end);
        into
    };
    let [one, two, three] = [1, 2, 3].map(SessionName::of);
    let mut heard = Heard::default();
    let mut subscriber = Subscriber::new(config, 0);
    subscriber.on_packet(1, 0, &message(&one, last - 9), &mut heard);
    subscriber.on_packet(1, 0, &message(&one, last - 1), &mut heard);
    subscriber.poll(1, &mut heard);
    let request = Request {
        session: one,
        first: last - 8,
        count: 7,
    };
    assert_eq!(heard.requests, [(0, request)]);
    for number in last - 8..last - 1 {
        subscriber.on_answer(2, &message(&one, number), &mut heard);
    }
    assert_eq!(heard.messages.len(), 9);
    assert_eq!(subscriber.position(), Some((one, last)));

    // Another session is seen, but nothing can follow in this one: nobody is asked whether it does.
    subscriber.on_packet(3, 0, &message(&two, 1), &mut heard);
    subscriber.poll(3, &mut heard);
    assert_eq!(heard.requests.len(), 1);
    subscriber.on_packet(4, 0, &beat(&one, last, true), &mut heard);

    // Two sessions of which all is lost but what came.
    for (session, now) in [(two, 5), (three, 6)].map(|(session, at)| (session, at * SECONDS)) {
        subscriber.on_packet(now, 0, &beat(&session, last, true), &mut heard);
        subscriber.poll(now + SECONDS, &mut heard);
    }
    let ended = |session| heard.events.contains(&Event::Ended(session, last));
    assert!([one, two, three].into_iter().all(ended), "{:?}", heard.events);
    assert_eq!(subscriber.stats().lost, u64::MAX);
}
