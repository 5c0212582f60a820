use super::*;
use crate::seq::Stream;
use crate::wire::{Endpoint, HEADER, Role, Stamp, reachable};
use Verdict::{Copy, Use};

const SILENCE: Nanos = 100 * MILLIS;

fn lines() -> Lines {
    Lines::new(LinesConfig {
        silence: SILENCE,
        ..LinesConfig::default()
    })
}

fn frame(kind: Kind, session: u32, first: u32, count: u16) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    let stamp = Stamp {
        stream: Stream(1),
        session: Session(session),
        sequence: Seq(first),
        time: 0,
        flags: 0,
        origin: 7,
    };
    stamp.write(&mut bytes, kind, count);
    bytes
}

fn data(lines: &mut Lines, now: Nanos, line: Line, first: u32) -> Verdict {
    lines.take(now, line, &frame(Kind::Data, 1, first, 2))
}

#[test]
fn the_first_copy_wins_on_whichever_line() {
    let mut lines = lines();
    for (now, line, first, verdict) in [
        (10, Line::A, 1, Use),
        (15, Line::B, 1, Copy),
        (20, Line::B, 3, Use),
        (50, Line::A, 3, Copy),
        (60, Line::A, 3, Copy),
        (70, Line::A, 5, Use),
        (70, Line::A, 5, Copy),
        (80, Line::B, 5, Copy),
    ] {
        if (now, line, first) == (60, Line::A, 3) {
            // A copy of a copy: forgotten here, told by the state machine.
            assert_eq!(data(&mut lines, now, line, first), Use);
            continue;
        }
        assert_eq!(
            data(&mut lines, now, line, first),
            verdict,
            "{first} on {line} at {now}"
        );
    }
    let (a, b) = (lines.stats(Line::A), lines.stats(Line::B));
    assert_eq!((a.led, a.lead_total, a.lead_max, a.lead_mean()), (2, 15, 10, 7));
    assert_eq!((b.led, b.lead_total, b.lead_max), (1, 30, 30));
    assert_eq!((a.missed, b.missed), (0, 0));
}

#[test]
fn a_line_is_told_apart_by_what_it_alone_has_missed() {
    let mut lines = lines();
    for first in [1, 3, 5, 7, 9] {
        if first != 3 {
            data(&mut lines, 0, Line::A, first);
        }
        if first != 7 && first != 9 {
            assert_eq!(data(&mut lines, 0, Line::B, first), if first == 3 { Use } else { Copy });
        }
    }
    assert_eq!(lines.passed(), Seq(7));
    // A heartbeat shows that the tail is missing.
    lines.take(0, Line::B, &frame(Kind::Heartbeat, 1, 11, 0));
    assert_eq!(lines.passed(), Seq(11));
    let (a, b) = (lines.stats(Line::A), lines.stats(Line::B));
    assert_eq!((a.gaps, a.missed, a.frames, a.first), (1, 2, 4, 4));
    assert_eq!((b.gaps, b.missed, b.frames, b.first), (1, 4, 3, 1));
}

#[test]
fn frames_that_overtake_each_other_on_a_line_are_not_missed() {
    let mut lines = lines();
    for first in [1, 3, 5, 7] {
        data(&mut lines, 0, Line::A, first);
    }
    for first in [1, 5, 3, 7] {
        assert_eq!(data(&mut lines, 9, Line::B, first), Copy, "{first}");
    }
    assert_eq!((lines.stats(Line::B).missed, lines.stats(Line::A).led), (0, 4));
}

#[test]
fn a_line_that_misses_all_fills_no_memory() {
    let mut lines = lines();
    for n in 0..3 * MAX_WAITING as u32 {
        assert_eq!(data(&mut lines, 0, Line::A, 2 * n + 1), Use);
    }
    let track = &lines.tracks[0];
    assert_eq!(
        (track.waiting.len(), track.waiting.capacity()),
        (MAX_WAITING, MAX_WAITING)
    );
    // Too late to be recognised: the state machine sees it.
    assert_eq!(data(&mut lines, 0, Line::B, 1), Use);
}

#[test]
fn a_silent_line_is_reported_once_and_no_longer_waited_for() {
    let mut lines = lines();
    data(&mut lines, 0, Line::A, 1);
    data(&mut lines, 0, Line::B, 1);
    let mut changes = std::vec::Vec::new();
    for n in 1..30 {
        data(&mut lines, n * SILENCE / 10, Line::B, 2 * n as u32 + 1);
        changes.extend(lines.poll());
    }
    assert_eq!(changes, [LineChange::Silent(Line::A)]);
    assert_eq!((lines.preferred(), lines.passed()), (Line::B, Seq(61)));
    data(&mut lines, 3 * SILENCE, Line::A, 61);
    assert_eq!(lines.poll(), Some(LineChange::Heard(Line::A)));
    assert_eq!((lines.poll(), lines.preferred()), (None, Line::A));
    assert_eq!(lines.stats(Line::A).silences, 1);
}

#[test]
fn a_pause_of_both_or_of_the_host_is_no_silence_of_one() {
    let mut lines = lines();
    data(&mut lines, 0, Line::A, 1);
    for late in 1..5 {
        // What came over A is read first, long after.
        data(&mut lines, 10 * late * SILENCE, Line::A, 2 * late as u32 + 1);
        assert_eq!(lines.poll(), None);
        data(&mut lines, 10 * late * SILENCE + 1, Line::B, 2 * late as u32 + 1);
        assert_eq!(lines.poll(), None);
    }
}

#[test]
fn the_next_session_begins_anew_and_strangers_change_nothing() {
    let mut lines = lines();
    data(&mut lines, 0, Line::A, 1);
    let mut foreign = frame(Kind::Data, 1, 1, 2);
    *foreign.last_mut().unwrap() ^= 1;
    assert_eq!(lines.take(0, Line::B, &foreign), Use, "another server's");
    assert_eq!(
        lines.take(0, Line::B, &frame(Kind::Data, 1, 1, 1)),
        Use,
        "another count"
    );
    assert_eq!(lines.take(0, Line::B, &frame(Kind::Repair, 1, 1, 2)), Use);
    assert_eq!(lines.take(0, Line::B, b"SQ"), Use);
    assert_eq!(lines.take(0, Line::B, &frame(Kind::Data, 2, 1, 2)), Use);
    assert_eq!((lines.session(), lines.passed()), (Session(2), Seq(0)));
    assert_eq!(
        lines.take(0, Line::A, &frame(Kind::Data, 1, 3, 2)),
        Use,
        "of the last session"
    );
    assert_eq!(lines.take(0, Line::A, &frame(Kind::Data, 2, 1, 2)), Copy);
}

#[test]
fn a_party_is_asked_over_one_line_whichever_lines_it_is_on() {
    let at = |n: u8| core::net::SocketAddrV4::new([10, 0, 0, n].into(), 1);
    let archive = |n| Endpoint::new(at(n), Role::Archive);
    let named = [
        Endpoint::new(at(1), Role::Server),
        Endpoint::new(at(2), Role::Server).twin(),
        archive(3),
        archive(4).over(Line::B),
        archive(5),
        archive(6).twin(),
        archive(7),
    ];
    for (role, line, expected) in [
        (Role::Server, Line::A, &[1][..]),
        (Role::Server, Line::B, &[2]),
        (Role::Archive, Line::A, &[3, 4, 5, 7]),
        (Role::Archive, Line::B, &[3, 4, 6, 7]),
    ] {
        let found = reachable(&named, role, line).map(|a| a.ip().octets()[3]);
        assert_eq!(found.collect::<std::vec::Vec<_>>(), expected, "{role:?} over {line}");
    }
}

#[test]
fn a_line_that_comes_back_in_one_turn_with_the_other_is_heard() {
    let mut lines = lines();
    data(&mut lines, 0, Line::A, 1);
    let mut now = 0;
    while lines.poll() != Some(LineChange::Silent(Line::A)) {
        now += SILENCE / 4;
        data(&mut lines, now, Line::B, 1);
    }
    assert_eq!(lines.preferred(), Line::B);
    // Both are read before anybody looks, A's copy first.
    now += SILENCE / 4;
    for line in Line::BOTH {
        data(&mut lines, now, line, 9);
    }
    assert_eq!(lines.poll(), Some(LineChange::Heard(Line::A)));
    assert_eq!(lines.preferred(), Line::A);
}
