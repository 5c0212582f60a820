use super::*;
use crate::io::{End, Record};
use crate::rng::Rng;
use crate::wire::{Block, Body, Frame, MAX_RANGES};
use core::net::Ipv4Addr;
use std::collections::BTreeMap;
use std::vec;

const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);
const SESSION: Session = Session(7);
const MAX_FRAME: usize = 1472;

/// Holds every number, one message of `size` bytes a record; beyond `last` the session ended.
struct Full {
    block: Vec<u8>,
    last: Seq,
}

impl Full {
    fn new(size: usize) -> Full {
        let mut block = vec![0; size];
        block[..2].copy_from_slice(&(size as u16 - 4).to_le_bytes());
        Full {
            block,
            last: Seq(1 << 24),
        }
    }
}

impl Store for Full {
    fn look_up(&self, _: Session, seq: Seq) -> Lookup<'_> {
        let block = Block::trusted(seq, 1, &self.block);
        Lookup::Found(Record { block, time: 0 })
    }

    fn end_of(&self, _: Session) -> Option<End> {
        Some(End {
            last: self.last,
            next: Session::NONE,
        })
    }

    fn previous_of(&self, _: Session) -> Session {
        Session::NONE
    }

    fn session_after(&self, _: Session) -> Session {
        Session::NONE
    }
}

/// Adds up what the wire would carry: headers below and a seal are part of it.
#[derive(Default)]
struct Wire(BTreeMap<SocketAddrV4, u64>);

impl Outbox for Wire {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buf = [0; MAX_FRAME];
        let len = build(&mut buf);
        assert!(Frame::parse(&buf[..len]).is_ok());
        *self.0.entry(to).or_default() += (len + 28 + TRAILER) as u64;
        true
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }
}

fn asker(n: u64) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n as u32), 9)
}

/// Hands a NAK over, whose question is the time; returns its length.
fn ask(responder: &mut Responder, now: Now, from: SocketAddrV4, ranges: &[SeqRange], out: &mut impl Outbox) -> u64 {
    let mut buf = [0; 512];
    let stamp = Stamp {
        time: now.wall,
        ..crate::gaps::nak_stamp(Stream(1), SESSION, 4)
    };
    let len = stamp.ranges(&mut buf, Kind::Nak, ranges.iter().copied());
    let Frame {
        header,
        body: Body::Nak(ranges),
    } = Frame::parse(&buf[..len]).unwrap()
    else {
        panic!("not a NAK")
    };
    responder.on_nak(now, from, header, &ranges, out);
    len as u64
}

#[test]
fn no_requester_gets_more_than_so_many_times_what_it_asked_with() {
    for (amplification, size, askers, cast) in [
        (256, 1440, 1, Cast::Unicast),
        (1024, 8, 5, Cast::Unicast),
        (1024, 1440, 5, Cast::Unicast),
        (1024, 200, 1000, Cast::Unicast),
        (1024, 1440, 5, Cast::Auto),
        (4096, 1440, 300, Cast::Multicast),
    ] {
        let config = RepairConfig {
            amplification,
            cast,
            ..RepairConfig::new(GROUP)
        };
        let mut responder = Responder::new(Stream(1), 3, false, config, 1024);
        let store = Full::new(size);
        let (mut rng, mut out) = (Rng::new(size as u64), Wire::default());
        let mut asked: BTreeMap<SocketAddrV4, u64> = BTreeMap::new();
        for step in 0..3000 {
            let now = Now {
                mono: step * 100_000,
                wall: step,
            };
            let from = asker(rng.below(askers));
            // Greedy: huge ranges, many of them, unknown numbers, numbers behind the end.
            let ranges: Vec<SeqRange> = (0..rng.below(MAX_RANGES as u64 + 1))
                .map(|_| {
                    let first = Seq(1 + rng.below(1 << 25) as u32);
                    SeqRange::new(first, first.plus(rng.below(1 << 20) as u32)).unwrap()
                })
                .collect();
            *asked.entry(from).or_default() += ask(&mut responder, now, from, &ranges, &mut out);
            responder.pump(now, 256, &store, &mut out);
        }
        let times = u64::from(amplification);
        for (to, sent) in out.0.iter().filter(|(to, _)| **to != GROUP) {
            assert!(*sent <= times * asked[to], "{to}: {sent} for {}", asked[to]);
        }
        let (sent, asked): (u64, u64) = (out.0.values().sum(), asked.values().sum());
        assert!(sent <= times * asked, "{sent} for {asked} in all");
        assert!(responder.stats().repaired > 0);
        let is_tight = size == 1440 && amplification <= 1024;
        assert!(!is_tight || responder.stats().limited > 0, "the bound was met");
    }
}

#[test]
fn who_asks_at_length_is_answered_in_full() {
    let mut responder = Responder::new(Stream(1), 3, false, RepairConfig::new(GROUP), 1024);
    let (store, mut out) = (Full::new(68), Wire::default());
    let ranges: Vec<SeqRange> = (0..35).map(|i| SeqRange::of(Seq(1 + 64 * i), 64).unwrap()).collect();
    let now = Now { mono: 1, wall: 1 };
    ask(&mut responder, now, asker(1), &ranges, &mut out);
    while responder.pump(now, 64, &store, &mut out) > 0 {}
    assert_eq!(responder.stats().repaired, 35 * 64);
    assert_eq!(responder.stats().limited, 0);
}

/// Records 1 to 3 and 6 to 9 of what was once more.
struct Torn(Option<End>);

impl Store for Torn {
    fn look_up(&self, _: Session, seq: Seq) -> Lookup<'_> {
        match seq.0 {
            4 | 5 => Lookup::Absent(Reason::NotYet, Seq(5)),
            1..=9 => {
                let block = Block::trusted(seq, 1, &[0; 4]);
                Lookup::Found(Record { block, time: 0 })
            }
            _ => Lookup::Absent(Reason::NotYet, Seq(u32::MAX)),
        }
    }

    fn end_of(&self, _: Session) -> Option<End> {
        self.0
    }

    fn previous_of(&self, _: Session) -> Session {
        Session::NONE
    }

    fn session_after(&self, _: Session) -> Session {
        Session::NONE
    }
}

/// Keeps what is refused.
#[derive(Default)]
struct Refusals {
    refused: Vec<(SeqRange, Reason)>,
    /// Who was told so or that it is over, and in answer to which question.
    told: Vec<(SocketAddrV4, u64)>,
    /// Who was sent a repair.
    repaired: Vec<SocketAddrV4>,
}

impl Outbox for Refusals {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buf = [0; MAX_FRAME];
        let len = build(&mut buf);
        let frame = Frame::parse(&buf[..len]).unwrap();
        match frame.body {
            Body::Repair(_) => {
                self.repaired.push(to);
                return true;
            }
            Body::Unavailable(refusals) => {
                self.refused
                    .extend(refusals.iter().map(|(range, reason, _)| (range, reason)));
            }
            _ => {}
        }
        self.told.push((to, frame.header.question()));
        true
    }

    fn max_frame(&self) -> usize {
        MAX_FRAME
    }
}

#[test]
fn a_server_says_of_what_its_closed_log_lacks_that_it_will_never_come() {
    let end = Some(End {
        last: Seq(9),
        next: Session(8),
    });
    let hole = SeqRange::of(Seq(4), 2).unwrap();
    for (is_server, end, reason) in [
        (true, end, Reason::TooOld),
        // It may still be recorded.
        (true, None, Reason::NotYet),
        // Somebody may still repair it.
        (false, end, Reason::NotYet),
    ] {
        let mut responder = Responder::new(Stream(1), 3, is_server, RepairConfig::new(GROUP), 16);
        let now = Now { mono: 1, wall: 1 };
        ask(
            &mut responder,
            now,
            asker(1),
            &[SeqRange::of(Seq(1), 9).unwrap()],
            &mut Wire::default(),
        );
        let mut out = Refusals::default();
        responder.pump(now, 64, &Torn(end), &mut out);
        assert_eq!(out.refused, [(hole, reason)], "server {is_server}, {end:?}");
    }
}

/// The session ended with message 9, and nobody has told what followed; a later one is held.
struct Unlinked;

impl Store for Unlinked {
    fn look_up(&self, _: Session, _: Seq) -> Lookup<'_> {
        Lookup::Absent(Reason::NotYet, Seq(u32::MAX))
    }

    fn end_of(&self, _: Session) -> Option<End> {
        Some(End {
            last: Seq(9),
            next: Session::NONE,
        })
    }

    fn previous_of(&self, _: Session) -> Session {
        Session::NONE
    }

    fn session_after(&self, _: Session) -> Session {
        Session(12)
    }
}

/// Holds nothing below 100.
struct Late;

impl Store for Late {
    fn look_up(&self, _: Session, seq: Seq) -> Lookup<'_> {
        match seq.0 {
            ..100 => Lookup::Absent(Reason::TooOld, Seq(99)),
            _ => Lookup::Absent(Reason::NotYet, Seq(u32::MAX)),
        }
    }

    fn end_of(&self, _: Session) -> Option<End> {
        None
    }

    fn previous_of(&self, _: Session) -> Session {
        Session::NONE
    }

    fn session_after(&self, _: Session) -> Session {
        Session::NONE
    }
}

#[test]
fn a_refusal_tells_all_that_was_used_and_nothing_of_what_may_come() {
    for (first, count, told) in [(5, 1, (5, 99)), (98, 4, (98, 99)), (100, 3, (100, 102))] {
        let mut responder = Responder::new(Stream(1), 3, false, RepairConfig::new(GROUP), 16);
        let (now, mut out) = (Now { mono: 1, wall: 1 }, Refusals::default());
        let asked = SeqRange::of(Seq(first), count).unwrap();
        ask(&mut responder, now, asker(1), &[asked], &mut out);
        responder.pump(now, 64, &Late, &mut out);
        let range = out.refused[0].0;
        assert_eq!((range.first.0, range.last.0), told);
        assert_eq!(responder.stats().unavailable, u64::from(count));
    }
}

#[test]
fn who_was_not_told_what_followed_does_not_guess() {
    struct End(Option<(u16, Session)>);
    impl Outbox for End {
        fn send(&mut self, _: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
            let mut buf = [0; MAX_FRAME];
            let len = build(&mut buf);
            let frame = Frame::parse(&buf[..len]).unwrap();
            if let Body::End(body) = frame.body {
                self.0 = Some((frame.header.flags.get(), Session(body.next_session.get())));
            }
            true
        }

        fn max_frame(&self) -> usize {
            MAX_FRAME
        }
    }
    let mut responder = Responder::new(Stream(1), 3, false, RepairConfig::new(GROUP), 16);
    let (now, mut out) = (Now { mono: 1, wall: 1 }, End(None));
    ask(
        &mut responder,
        now,
        asker(1),
        &[SeqRange::of(Seq(10), 1).unwrap()],
        &mut out,
    );
    responder.pump(now, 64, &Unlinked, &mut out);
    assert_eq!(out.0, Some((flags::UNSURE, Session(12))));
}

#[test]
fn each_who_asked_is_refused_by_himself_in_answer_to_his_last_question() {
    let end = Some(End {
        last: Seq(9),
        next: Session(8),
    });
    let refused: Vec<(SeqRange, Reason)> = vec![(SeqRange::of(Seq(4), 2).unwrap(), Reason::TooOld); 3];
    for (range, refusals) in [(SeqRange::of(Seq(4), 2), refused), (SeqRange::of(Seq(10), 3), vec![])] {
        let mut responder = Responder::new(Stream(1), 3, true, RepairConfig::new(GROUP), 16);
        let mut out = Refusals::default();
        for (question, from) in [(5, 1), (6, 2), (7, 3), (8, 2), (9, 1)] {
            let now = Now {
                mono: 1,
                wall: question,
            };
            ask(&mut responder, now, asker(from), &[range.unwrap()], &mut out);
        }
        responder.pump(Now { mono: 2, wall: 99 }, 64, &Torn(end), &mut out);
        out.told.sort();
        out.told.dedup_by_key(|(to, _)| *to);
        assert_eq!(out.told, [(asker(1), 9), (asker(2), 8), (asker(3), 7)]);
        assert_eq!(out.refused, refusals);
        assert!(responder.is_idle() && out.repaired.is_empty());
    }
}

#[test]
fn a_repair_that_several_want_goes_to_everyone_once_and_a_refusal_beside_it_to_each() {
    let mut responder = Responder::new(Stream(1), 3, true, RepairConfig::new(GROUP), 16);
    let mut out = Refusals::default();
    for from in 1..=3 {
        let now = Now {
            mono: 1,
            wall: 10 + from,
        };
        let range = SeqRange::of(Seq(3), 2).unwrap();
        ask(&mut responder, now, asker(from), &[range], &mut out);
    }
    responder.pump(Now { mono: 2, wall: 99 }, 64, &Torn(None), &mut out);
    assert_eq!(out.repaired, [GROUP]);
    assert_eq!(out.told, [(asker(1), 11), (asker(2), 12), (asker(3), 13)]);
}
