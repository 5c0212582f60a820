//! What refusals and ends say beyond "not here": that numbers exist, that nothing follows, and
//! which session somebody holds next.

use std::net::{Ipv4Addr, SocketAddrV4};

use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::{Application, Delivery, Event, Loss, Outbox};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::time::{MILLIS, Now, SECONDS};
use seqcast_proto::wire::{Endpoint, Frame, HeartbeatBody, Reason, Role, Stamp, flags};

const STREAM: Stream = Stream(1);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1);
const ARCHIVE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2);
const OLD: Session = Session(10);
const NEW: Session = Session(20);

#[derive(Default)]
struct Events(Vec<Event>);

impl Application for Events {
    fn deliver(&mut self, _: &Delivery<'_>) -> bool {
        true
    }

    fn event(&mut self, event: Event) {
        if !matches!(event, Event::Gap { .. } | Event::Silent | Event::Heard) {
            self.0.push(event);
        }
    }
}

/// Notes the number of the last question.
#[derive(Default)]
struct Questions(u64);

impl Outbox for Questions {
    fn send(&mut self, _: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut frame = [0; 1472];
        let len = build(&mut frame);
        self.0 = Frame::parse(&frame[..len]).unwrap().header.question();
        true
    }

    fn max_frame(&self) -> usize {
        1472
    }
}

/// A client that was delivered message 4 of the old session, and hears the server's new one.
struct Resumed {
    client: Client<Vec<u8>>,
    events: Events,
    questions: Questions,
    now: Now,
}

fn range(first: u32, last: u32) -> SeqRange {
    SeqRange::new(Seq(first), Seq(last)).unwrap()
}

fn stamp(session: Session, sequence: u32, flags: u16) -> Stamp {
    Stamp {
        stream: STREAM,
        session,
        sequence: Seq(sequence),
        time: 0,
        flags,
        origin: 1,
    }
}

impl Resumed {
    fn new() -> Resumed {
        Resumed::after(Seq(4))
    }

    fn after(last: Seq) -> Resumed {
        Resumed::hearing(NEW, last)
    }

    /// One that hears the server of this session.
    fn hearing(session: Session, last: Seq) -> Resumed {
        let config = ClientConfig {
            start: Start::After(OLD, last),
            ..ClientConfig::new(STREAM, 9)
        };
        let mut resumed = Resumed {
            client: Client::new(config, 0),
            events: Events::default(),
            questions: Questions::default(),
            now: Now::default(),
        };
        resumed.heartbeat(session);
        // The server has named all archives by then.
        resumed.now.mono = 6 * SECONDS;
        resumed.heartbeat(session);
        resumed
    }

    fn take(&mut self, from: SocketAddrV4, write: impl FnOnce(&mut [u8]) -> usize) {
        let mut frame = vec![0; 1472];
        let len = write(&mut frame);
        frame.truncate(len);
        self.client.on_frame(self.now, from, frame, &mut self.events);
    }

    fn heartbeat(&mut self, session: Session) {
        let body = HeartbeatBody {
            previous_session: 15.into(),
            previous_last: 0.into(),
            oldest: 1.into(),
            acknowledged: 1.into(),
        };
        let endpoints = [
            Endpoint::new(SERVER, Role::Server),
            Endpoint::new(ARCHIVE, Role::Archive),
        ];
        let next = if session == OLD { 5 } else { 1 };
        let stamp = stamp(session, next, flags::ARCHIVED);
        self.take(SERVER, |buf| stamp.heartbeat(buf, &body, &endpoints));
    }

    fn refuse(&mut self, from: SocketAddrV4, range: SeqRange, reason: Reason, later: u32) {
        let flags = if from == SERVER { flags::FROM_SERVER } else { 0 };
        let stamp = self.answer(later, flags);
        self.take(from, |buf| stamp.unavailable(buf, range, reason, 0));
    }

    /// A stamp in answer to the last question.
    fn answer(&self, sequence: u32, flags: u16) -> Stamp {
        Stamp {
            time: self.questions.0,
            ..stamp(OLD, sequence, flags)
        }
    }

    fn poll(&mut self) {
        self.client.poll(self.now, &mut self.events, &mut self.questions);
    }

    /// Lets the client ask the archive and the server in turn; `answer` says what they say.
    fn rounds(&mut self, answer: impl Fn(&mut Resumed, SocketAddrV4)) {
        for _ in 0..4 {
            for from in [ARCHIVE, SERVER] {
                self.poll();
                answer(self, from);
                self.now.mono += 600 * MILLIS;
            }
        }
        self.poll();
    }
}

#[test]
fn numbers_refused_as_lost_or_too_old_exist_and_are_reported() {
    let mut resumed = Resumed::new();
    resumed.rounds(|r, from| {
        let reason = if from == ARCHIVE { Reason::Lost } else { Reason::TooOld };
        r.refuse(from, range(5, 8), reason, 0);
        // Behind them there is nothing.
        r.refuse(from, range(9, 8200), Reason::UnknownSession, NEW.0);
    });
    let expected = [
        Event::Lost {
            session: OLD,
            range: range(5, 8),
            why: Loss::Refused,
        },
        Event::TailUnknown {
            session: OLD,
            from: Seq(9),
        },
    ];
    assert_eq!(resumed.events.0[..2], expected, "{:?}", resumed.events.0);
}

#[test]
fn an_unknown_tail_leads_to_the_next_session_that_somebody_holds() {
    let mut resumed = Resumed::new();
    resumed.rounds(|r, from| {
        let later = if from == ARCHIVE { 12 } else { NEW.0 };
        r.refuse(from, range(5, 8200), Reason::UnknownSession, later);
    });
    assert!(
        resumed
            .events
            .0
            .contains(&Event::SessionStarted { session: Session(12) }),
        "{:?}",
        resumed.events.0
    );
}

#[test]
fn an_end_before_what_is_known_to_exist_refuses_the_rest() {
    let mut resumed = Resumed::new();
    resumed.refuse(ARCHIVE, range(5, 8), Reason::TooOld, 0);
    resumed.rounds(|r, from| {
        let flags = if from == SERVER { flags::FROM_SERVER } else { 0 };
        let stamp = r.answer(3, flags);
        r.take(from, |buf| stamp.end(buf, Session(15), Session::NONE));
    });
    let events = &resumed.events.0;
    let lost = Event::Lost {
        session: OLD,
        range: range(5, 8),
        why: Loss::Refused,
    };
    assert_eq!(events[0], lost, "{events:?}");
    assert!(
        events.contains(&Event::SessionStarted { session: Session(15) }),
        "{events:?}"
    );
}

#[test]
fn behind_the_last_number_of_all_the_next_session_follows() {
    let mut resumed = Resumed::after(Seq::LAST);
    resumed.poll();
    let started = Event::SessionStarted { session: NEW };
    assert!(resumed.events.0.contains(&started), "{:?}", resumed.events.0);
}

#[test]
fn an_end_by_one_who_does_not_know_what_followed_ends_nothing() {
    let mut resumed = Resumed::new();
    let unsure = stamp(OLD, 5, flags::UNSURE);
    resumed.take(ARCHIVE, |buf| unsure.end(buf, NEW, Session::NONE));
    resumed.poll();
    assert_eq!(resumed.client.position(), Some((OLD, Seq(5))));
    assert_eq!(resumed.events.0, []);
}

#[test]
fn a_tail_is_not_unknown_while_somebody_may_have_its_start() {
    let mut resumed = Resumed::new();
    resumed.rounds(|r, from| {
        r.refuse(from, range(5, 16), Reason::NotYet, 0);
        r.refuse(from, range(17, 8200), Reason::UnknownSession, NEW.0);
    });
    assert_eq!(resumed.events.0, []);
    resumed.rounds(|r, from| r.refuse(from, range(5, 16), Reason::UnknownSession, NEW.0));
    let unknown = Event::TailUnknown {
        session: OLD,
        from: Seq(5),
    };
    assert_eq!(resumed.events.0[0], unknown, "{:?}", resumed.events.0);
}

#[test]
fn what_nobody_could_know_before_a_session_ended_counts_from_its_end() {
    let mut resumed = Resumed::hearing(OLD, Seq(4));
    // Silence: what may follow is asked for, and is not there yet, for longer than anything is waited for.
    for _ in 0..10 {
        resumed.rounds(|r, from| r.refuse(from, range(5, 8200), Reason::NotYet, 0));
        resumed.now.mono += 4 * SECONDS;
    }
    resumed.heartbeat(NEW);
    let ended = resumed.now.mono;
    while resumed.now.mono < ended + 29 * SECONDS {
        resumed.heartbeat(NEW);
        resumed.poll();
        assert_eq!(resumed.events.0, []);
        resumed.now.mono += 300 * MILLIS;
    }
    resumed.now.mono += 2 * SECONDS;
    resumed.poll();
    let unknown = Event::TailUnknown {
        session: OLD,
        from: Seq(5),
    };
    assert_eq!(resumed.events.0.first(), Some(&unknown));
}

#[test]
fn what_may_follow_is_asked_for_in_vain_at_a_measured_pace() {
    let mut resumed = Resumed::hearing(OLD, Seq(4));
    // The server runs, in another session of which nothing arrives; nobody knows of a later one.
    let (from, pause) = (resumed.now.mono, 500 * MILLIS);
    while resumed.now.mono < from + 20 * pause {
        for party in [ARCHIVE, SERVER] {
            resumed.poll();
            resumed.refuse(party, range(5, 8200), Reason::UnknownSession, 0);
            resumed.now.mono += MILLIS;
        }
    }
    let naks = resumed.client.stats().naks;
    assert!((20..=100).contains(&naks), "{naks} questions in 20 pauses");
    assert_eq!(resumed.events.0, []);
}
