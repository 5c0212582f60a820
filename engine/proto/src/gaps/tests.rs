use super::*;
use core::net::Ipv4Addr;
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::vec;

use crate::parties::{AWAITED, NAMED};
use crate::wire::{Body, Frame};

const ARCHIVE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 2);
const SERVER: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 1);

#[derive(Default)]
struct Sent(Vec<(SocketAddrV4, u16, Vec<SeqRange>)>);

impl Outbox for Sent {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buf = [0; 1472];
        let len = build(&mut buf);
        let frame = Frame::parse(&buf[..len]).unwrap();
        let Body::Nak(ranges) = frame.body else {
            panic!("not a NAK")
        };
        // A question may name the same messages in several ranges.
        let mut whole: Vec<SeqRange> = Vec::new();
        for range in ranges.iter() {
            match whole.last_mut() {
                Some(last) if last.end() == range.first => last.last = range.last,
                _ => whole.push(range),
            }
        }
        self.0.push((to, frame.header.flags.get(), whole));
        true
    }

    fn max_frame(&self) -> usize {
        1472
    }
}

fn range(first: u32, count: u32) -> SeqRange {
    SeqRange::of(Seq(first), count).unwrap()
}

fn both() -> Parties {
    let mut parties = Parties::new(true);
    parties.set_server(SERVER);
    parties.set_archives([ARCHIVE].into_iter(), 0);
    parties
}

fn ask(gaps: &mut Gaps, at: Nanos, parties: &Parties) -> Vec<(SocketAddrV4, u16, Vec<SeqRange>)> {
    let mut sent = Sent::default();
    let now = Now { mono: at, wall: at };
    gaps.ask(now, Seq::LAST, parties, nak_stamp(Stream(1), Session(1), 1), &mut sent);
    sent.0
}

/// Refuses in answer to the last question.
fn refuse(gaps: &mut Gaps, range: SeqRange, from: SocketAddrV4, answer: (Reason, u16), parties: &Parties, now: Nanos) {
    refuse_question(gaps.asked, gaps, range, from, answer, parties, now);
}

fn refuse_question(
    question: u64,
    gaps: &mut Gaps,
    range: SeqRange,
    from: SocketAddrV4,
    answer: (Reason, u16),
    parties: &Parties,
    now: Nanos,
) {
    let by = Refuser {
        from,
        is_server: from == SERVER,
        question,
    };
    gaps.refused(range, by, answer, parties, now);
}

const GONE: (Reason, u16) = (Reason::TooOld, 0);

/// These are asked for it in turn, and each has it no more.
fn asked_and_gone(gaps: &mut Gaps, in_turn: &[SocketAddrV4], range: SeqRange, parties: &Parties, now: Nanos) {
    for &party in in_turn {
        assert_eq!(ask(gaps, now, parties)[0].0, party);
        refuse(gaps, range, party, GONE, parties, now);
    }
}

#[test]
fn a_question_is_as_long_as_the_answer_asked_for() {
    for (ranges, least) in [
        (vec![range(1, 1)], 1),
        (vec![range(1, 16), range(20, 17)], 3),
        (vec![range(1, 100)], 7),
        (vec![range(1, 4096)], 35),
        (vec![range(1, 3), range(10, 8192)], 35),
        ((0..40).map(|i| range(1 + 100 * i, 50)).collect(), 40),
    ] {
        let pieces: Vec<SeqRange> = pieces(ranges.iter().copied()).collect();
        assert!((least..=MAX_RANGES).contains(&pieces.len()), "{}", pieces.len());
        let all = |list: &[SeqRange]| list.iter().flat_map(|r| r.first.0..=r.last.0).collect::<Vec<_>>();
        assert_eq!(all(&pieces), all(&ranges));
    }
}

#[test]
fn asks_the_archive_then_the_server_then_pauses() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(5, 3), 100);
    assert_eq!(
        ask(&mut gaps, 100, &parties),
        vec![(ARCHIVE, flags::ASK_ARCHIVE, vec![range(5, 3)])]
    );
    assert_eq!(
        ask(&mut gaps, 200, &parties),
        vec![],
        "an open question is not repeated"
    );

    refuse(&mut gaps, range(5, 3), ARCHIVE, (Reason::NotYet, 0), &parties, 300);
    assert_eq!(
        ask(&mut gaps, 300, &parties),
        vec![(SERVER, flags::ASK_SERVER, vec![range(5, 3)])]
    );

    refuse(&mut gaps, range(5, 3), SERVER, (Reason::NotYet, 0), &parties, 400);
    assert_eq!(ask(&mut gaps, 500, &parties), vec![], "both were asked: pause");
    let pause = GapConfig::default().initial_timeout;
    assert_eq!(ask(&mut gaps, 399 + pause, &parties), vec![]);
    assert_eq!(ask(&mut gaps, 400 + pause, &parties)[0].0, ARCHIVE);
}

#[test]
fn a_server_that_has_let_go_is_not_asked_again() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 300), 0);
    // No answer at all: then the server, which says it of all that follows too.
    assert_eq!(ask(&mut gaps, 0, &parties)[0].0, ARCHIVE);
    let asked = gaps.next_due();
    gaps.set_window(10);
    assert_eq!(ask(&mut gaps, asked, &parties)[0].0, SERVER);
    refuse(&mut gaps, range(1, 300), SERVER, (Reason::TooOld, 0), &parties, asked);
    // From then on the archive alone is asked: at once, and after a pause for what it has not got yet.
    gaps.set_window(20);
    for round in 0..4 {
        let due = gaps.next_due();
        assert_eq!(due > asked, round > 0, "round {round}");
        let naks = ask(&mut gaps, due, &parties);
        assert!(!naks.is_empty() && naks.iter().all(|nak| nak.0 == ARCHIVE), "{naks:?}");
        refuse(&mut gaps, naks[0].2[0], ARCHIVE, (Reason::NotYet, 0), &parties, due);
    }

    // Another run of it may have that in its log.
    gaps.server_changed();
    let asked = (0..3).flat_map(|_| {
        let due = gaps.next_due();
        ask(&mut gaps, due, &parties)
    });
    assert!(asked.map(|a| a.0).any(|to| to == SERVER));
}

#[test]
fn what_everyone_refuses_is_given_up_without_a_pause() {
    let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 2);
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let mut parties = both();
    parties.set_archives([ARCHIVE, other].into_iter(), 0);
    gaps.miss(range(1, 1), 0);
    // The archives count from when the server has let go of it: one of them was asked before.
    for party in [ARCHIVE, SERVER, other, ARCHIVE] {
        assert_eq!(gaps.take_given_up(5, &parties), None);
        assert!(gaps.is_due(5, Seq::LAST), "{party} is asked at once");
        asked_and_gone(&mut gaps, &[party], range(1, 1), &parties, 5);
    }
    assert!(gaps.is_due(5, Seq::LAST));
    assert_eq!(gaps.take_given_up(5, &parties), Some((range(1, 1), Loss::Refused)));
}

#[test]
fn an_archive_that_refuses_twice_is_not_asked_at_once() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let mut parties = both();
    // A server that has just started may not have named all archives.
    assert!(parties.heard(1, 0));
    gaps.miss(range(1, 1), 0);
    asked_and_gone(&mut gaps, &[ARCHIVE, SERVER, ARCHIVE], range(1, 1), &parties, 5);
    let mut last = 5;
    while last < NAMED {
        assert_eq!(gaps.take_given_up(last, &parties), None);
        let due = gaps.next_due();
        assert!(due >= last + GapConfig::default().initial_timeout);
        last = due;
        asked_and_gone(&mut gaps, &[ARCHIVE], range(1, 1), &parties, due);
    }
    assert_eq!(gaps.take_given_up(last, &parties), Some((range(1, 1), Loss::Refused)));
}

#[test]
fn an_archive_that_is_named_no_more_is_waited_for() {
    let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 2);
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let mut parties = both();
    parties.set_archives([ARCHIVE, other].into_iter(), 0);
    parties.set_archives([ARCHIVE].into_iter(), 1);
    gaps.miss(range(1, 1), 1);
    let mut now = 1;
    asked_and_gone(&mut gaps, &[ARCHIVE, SERVER, ARCHIVE], range(1, 1), &parties, now);
    while now < AWAITED {
        assert_eq!(gaps.take_given_up(now, &parties), None, "it may be starting again");
        now = gaps.next_due();
        asked_and_gone(&mut gaps, &[ARCHIVE], range(1, 1), &parties, now);
    }
    assert_eq!(gaps.take_given_up(now, &parties), Some((range(1, 1), Loss::Refused)));
    // When it is back it is asked, and waited for no longer.
    gaps.miss(range(2, 1), now);
    parties.set_archives([ARCHIVE].into_iter(), now);
    parties.set_archives([ARCHIVE, other].into_iter(), now + 1);
    let back = now;
    while gaps.take_given_up(now, &parties).is_none() {
        now = gaps.next_due().max(now);
        let (party, ..) = ask(&mut gaps, now, &parties)[0];
        refuse(&mut gaps, range(2, 1), party, GONE, &parties, now);
        assert!(now < back + AWAITED);
    }
}

#[test]
fn an_archive_that_is_back_under_another_port_is_not_waited_for() {
    let again = SocketAddrV4::new(*ARCHIVE.ip(), 77);
    let elsewhere = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 2);
    let client = || both();
    let archive = || client().of_archive([Some(again), None]);
    for (mut parties, named, is_back) in [
        (client(), again, true),
        (client(), elsewhere, false),
        (archive(), elsewhere, true),
    ] {
        let mut gaps = Gaps::new(GapConfig::default(), 1);
        parties.set_archives([ARCHIVE, named].into_iter(), 0);
        parties.set_archives([named].into_iter(), 1);
        gaps.miss(range(1, 1), 1);
        asked_and_gone(&mut gaps, &[named, SERVER, named], range(1, 1), &parties, 1);
        assert_eq!(gaps.take_given_up(1, &parties).is_some(), is_back, "{named}");
    }
}

#[test]
fn silence_of_the_archive_leads_to_the_server() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 1), 0);
    assert_eq!(ask(&mut gaps, 0, &parties)[0].0, ARCHIVE);
    let due = gaps.next_due();
    assert_eq!(due, GapConfig::default().initial_timeout);
    assert_eq!(ask(&mut gaps, due, &parties)[0].0, SERVER);
}

#[test]
fn the_window_bounds_what_is_outstanding() {
    let config = GapConfig {
        ask_window: 100,
        ..GapConfig::default()
    };
    let mut gaps = Gaps::new(config, 1);
    let parties = both();
    gaps.miss(range(1, 1000), 0);
    assert_eq!(ask(&mut gaps, 0, &parties)[0].2, vec![range(1, 100)]);
    assert_eq!(ask(&mut gaps, 1, &parties), vec![]);
    assert_eq!(gaps.found(range(1, 49), 2), 49);
    assert_eq!(ask(&mut gaps, 2, &parties), vec![], "not in small pieces");
    assert_eq!(gaps.found(range(50, 11), 2), 11);
    assert_eq!(ask(&mut gaps, 2, &parties)[0].2, vec![range(101, 60)]);
}

#[test]
fn a_refusal_of_a_part_leaves_the_rest_alone() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 10), 0);
    ask(&mut gaps, 0, &parties);
    refuse(&mut gaps, range(4, 2), ARCHIVE, (Reason::TooOld, 0), &parties, 1);
    assert_eq!(
        ask(&mut gaps, 1, &parties),
        vec![(SERVER, flags::ASK_SERVER, vec![range(4, 2)])]
    );
    assert_eq!(gaps.take_given_up(2, &parties), None);
    refuse(&mut gaps, range(4, 2), SERVER, (Reason::TooOld, 0), &parties, 2);
    // The archive may have stored it since it was asked, and the server let go of it therefore.
    refuse(&mut gaps, range(4, 2), ARCHIVE, (Reason::TooOld, 0), &parties, 3);
    assert_eq!(gaps.take_given_up(4, &parties), None);
    let again = |(to, _, ranges): &(SocketAddrV4, u16, Vec<SeqRange>)| *to == ARCHIVE && ranges.contains(&range(4, 2));
    let mut due = gaps.next_due();
    while !ask(&mut gaps, due, &parties).iter().any(again) {
        due = gaps.next_due();
    }
    refuse(&mut gaps, range(4, 2), ARCHIVE, (Reason::TooOld, 0), &parties, due);
    assert_eq!(gaps.take_given_up(due, &parties), Some((range(4, 2), Loss::Refused)));
    assert_eq!(gaps.take_given_up(due, &parties), None);
    assert_eq!(gaps.missing(), 8);
}

#[test]
fn a_refusal_of_an_old_question_says_nothing() {
    let late = (Reason::UnknownSession, 0);
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 1), 0);
    ask(&mut gaps, 0, &parties);
    let old = gaps.asked;
    // The answer does not come. The server is asked, which has let go of it meanwhile; then the archive again.
    let due = gaps.next_due();
    assert_eq!(ask(&mut gaps, due, &parties)[0].0, SERVER);
    refuse(&mut gaps, range(1, 1), SERVER, (Reason::TooOld, 0), &parties, due);
    let due = gaps.next_due();
    assert_eq!(ask(&mut gaps, due, &parties)[0].0, ARCHIVE);
    let open = gaps.next_due();
    // One that nobody has asked, as of a former run, is no better.
    for question in [0, old, gaps.asked + 1] {
        refuse_question(question, &mut gaps, range(1, 1), ARCHIVE, late, &parties, due);
        assert_eq!(gaps.take_given_up(due, &parties), None);
        assert_eq!(gaps.next_due(), open, "the wait goes on");
    }
    refuse(&mut gaps, range(1, 1), ARCHIVE, late, &parties, due);
    assert_eq!(gaps.take_given_up(due, &parties), Some((range(1, 1), Loss::Refused)));
}

#[test]
fn all_archives_answer_a_question_to_everyone() {
    let other = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 3), 2);
    let group = SocketAddrV4::new(Ipv4Addr::new(239, 0, 0, 1), 1);
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let mut parties = Parties::new(true).by_multicast(Some(group));
    parties.set_server(SERVER);
    parties.set_archives([ARCHIVE, other].into_iter(), 0);
    gaps.miss(range(1, 1), 0);
    let mut now = 0;
    for round in 0..2 {
        assert_eq!(gaps.take_given_up(now, &parties), None, "round {round}");
        assert_eq!(ask(&mut gaps, now, &parties)[0].1, flags::ASK_ARCHIVE);
        let to_archives = gaps.asked;
        let refused = (Reason::TooOld, 0);
        refuse(&mut gaps, range(1, 1), ARCHIVE, refused, &parties, now);
        // The first answer leads to the server, once; the second comes later.
        let next = ask(&mut gaps, now + 1, &parties);
        assert_eq!(next.first().map(|n| n.1), (round == 0).then_some(flags::ASK_SERVER));
        refuse_question(to_archives, &mut gaps, range(1, 1), other, refused, &parties, now + 1);
        if round == 0 {
            refuse(&mut gaps, range(1, 1), SERVER, refused, &parties, now + 1);
        }
        now = gaps.next_due();
    }
    assert_eq!(gaps.take_given_up(now, &parties), Some((range(1, 1), Loss::Refused)));
}

#[test]
fn the_server_alone_cannot_declare_a_loss_while_an_archive_exists() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let mut parties = Parties::new(true);
    parties.set_server(SERVER);
    gaps.miss(range(1, 1), 0);
    assert_eq!(ask(&mut gaps, 0, &parties)[0].0, SERVER);
    refuse(&mut gaps, range(1, 1), SERVER, (Reason::TooOld, 0), &parties, 1);
    assert_eq!(
        gaps.take_given_up(1, &parties),
        None,
        "the archive may come back with it"
    );
    let limit = GapConfig::default().give_up;
    assert_eq!(
        gaps.take_given_up(limit, &parties),
        Some((range(1, 1), Loss::Unanswered)),
        "but not for ever"
    );

    gaps.miss(range(1, 1), 0);
    parties.archived = false;
    ask(&mut gaps, 0, &parties);
    refuse(&mut gaps, range(1, 1), SERVER, (Reason::TooOld, 0), &parties, 1);
    assert_eq!(
        gaps.take_given_up(1, &parties),
        Some((range(1, 1), Loss::Refused)),
        "no archive: its word is final"
    );
}

#[test]
fn a_refusal_counts_for_what_was_known_then_and_no_more() {
    for (max_gaps, later) in [(1024, range(11, 10)), (1, range(30, 1))] {
        let config = GapConfig {
            max_gaps,
            ..GapConfig::default()
        };
        let mut gaps = Gaps::new(config, 1);
        let mut parties = Parties::new(false);
        parties.set_server(SERVER);
        gaps.miss(range(1, 10), 0);
        ask(&mut gaps, 0, &parties);
        refuse(&mut gaps, range(1, 10), SERVER, (Reason::TooOld, 0), &parties, 1);
        gaps.miss(later, 2);
        while let Some((lost, _)) = gaps.take_given_up(3, &parties) {
            assert_eq!(lost.intersect(later), None, "at most {max_gaps} gaps");
        }
        assert!(gaps.asks_for(later.first) && gaps.asks_for(later.last));
    }
}

#[test]
fn what_there_was_no_room_for_is_asked_of_the_same_party_at_once() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 4), 0);
    for at in 1..5 {
        assert_eq!(
            ask(&mut gaps, at, &parties),
            [(ARCHIVE, flags::ASK_ARCHIVE, vec![range(1, 4)])]
        );
        gaps.turned_away(range(1, 4), at);
    }
}

#[test]
fn what_found_no_room_does_not_grow_too_old() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 4), 0);
    ask(&mut gaps, 1, &parties);
    let late = 2 * GapConfig::default().give_up;
    gaps.turned_away(range(1, 4), late);
    assert_eq!(gaps.take_given_up(late, &parties), None);
}

#[test]
fn what_was_asked_for_in_case_it_exists_has_its_time_from_when_it_does() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let parties = both();
    gaps.miss(range(1, 100), 0);
    ask(&mut gaps, 1, &parties);
    let give_up = GapConfig::default().give_up;
    let sent = give_up - SECONDS;
    gaps.miss(range(5, 10), sent);
    let too_late = |from, count| Some((range(from, count), Loss::Unanswered));
    assert_eq!(gaps.take_given_up(1 + give_up, &parties), too_late(1, 4));
    assert_eq!(gaps.take_given_up(sent + give_up - 1, &parties), None);
    assert_eq!(gaps.take_given_up(sent + give_up, &parties), too_late(5, 96));
}

#[test]
fn a_new_run_of_the_server_may_not_have_named_all_archives_yet() {
    let mut gaps = Gaps::new(GapConfig::default(), 1);
    let mut parties = both();
    let start = SECONDS;
    assert!(parties.heard(7, start) && !parties.heard(7, start));
    gaps.miss(range(1, 1), start);
    let mut now = start;
    while gaps.list[0].refused_by.count_ones() < 2 {
        for (to, ..) in ask(&mut gaps, now, &parties) {
            refuse(&mut gaps, range(1, 1), to, (Reason::TooOld, 0), &parties, now);
        }
        now = gaps.next_due();
    }
    assert!(now < start + NAMED);
    assert_eq!(gaps.take_given_up(now, &parties), None, "another archive may have it");
    let refused = Some((range(1, 1), Loss::Refused));
    assert_eq!(gaps.take_given_up(start + NAMED, &parties), refused);
}

#[test]
fn progress_keeps_a_long_catch_up_alive() {
    let config = GapConfig {
        ask_window: 10,
        ..GapConfig::default()
    };
    let mut gaps = Gaps::new(config, 1);
    let parties = both();
    gaps.miss(range(1, 1000), 0);
    let mut now = 0;
    for step in 0..100 {
        ask(&mut gaps, now, &parties);
        now += SECONDS;
        gaps.found(range(1 + step * 10, 10), now);
        assert_eq!(gaps.take_given_up(now, &parties), None);
    }
    assert!(gaps.is_empty());
}

proptest! {
    /// Whatever is missed, found, refused and asked: nothing missing is ever forgotten, the list
    /// stays sorted and bounded, and what is not missing is only noted when the list is full.
    #[test]
    fn never_forgets(ops in prop::collection::vec((0u8..5, 1u32..300, 1u32..20), 1..200), max_gaps in 2usize..40) {
        let config = GapConfig { max_gaps, ask_window: 64, ..GapConfig::default() };
        let mut gaps = Gaps::new(config, 7);
        let parties = both();
        let mut missing = BTreeSet::new();
        for (step, (op, first, count)) in ops.into_iter().enumerate() {
            let now = step as Nanos * MILLIS;
            let r = range(first, count);
            match op {
                0 | 1 => { gaps.miss(r, now); missing.extend(r.first.0..=r.last.0); }
                2 => { gaps.found(r, now); for s in r.first.0..=r.last.0 { missing.remove(&s); } }
                3 => refuse(&mut gaps, r, if first % 2 == 0 { ARCHIVE } else { SERVER }, (Reason::NotYet, 0), &parties, now),
                _ => { ask(&mut gaps, now, &parties); }
            }
            prop_assert!(gaps.list.len() <= 2 * max_gaps);
            for pair in gaps.list.windows(2) {
                prop_assert!(pair[0].range.last < pair[1].range.first);
            }
            for s in &missing {
                prop_assert!(gaps.list.iter().any(|g| g.range.contains(Seq(*s))), "{} forgotten", s);
            }
        }
    }
}
