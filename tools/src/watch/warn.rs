//! What an operator should know, in words.

use std::time::SystemTime;

use super::summary::{Engine, PartSummary};

/// An engine that wrote nothing for so long is stuck: it writes ten times a second.
const SILENT_S: f64 = 2.0;
/// NAK frames a second from which on a receiver is named.
const MANY_NAKS: f64 = 10.0;
/// A lane or a sink's room that is as full as this is nearly too small, in parts of a hundred.
const FULL_PERCENT: u64 = 90;
/// Data may be on the disk so much later than the configuration says.
const LATE_SYNC_NS: u64 = 2_000_000_000;
/// A turn that took so long held up all streams of the engine.
const SLOW_TURN_NS: u64 = 10_000_000;

/// What is wrong with an engine, worst first.
#[must_use]
pub fn warnings(engine: &Engine) -> Vec<String> {
    let mut all = Vec::new();
    let age = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0.0, |now| now.as_secs_f64() - engine.written as f64 / 1e9);
    if !engine.alive {
        all.push("its process is gone: it was killed, or it crashed".to_owned());
    } else if engine.written > 0 && age > SILENT_S {
        all.push(format!(
            "has written nothing for {age:.0} s: it is stopped, or stuck in a turn"
        ));
    }
    engine
        .parts("subscription")
        .for_each(|part| subscription(part, &mut all));
    engine.parts("archive").for_each(|part| archive(part, &mut all));
    engine.parts("publication").for_each(|part| publication(part, &mut all));
    engine.parts("link").for_each(|part| link(part, &mut all));
    for part in engine.parts("cycle") {
        let longest = part.total("longest_turn_lately_ns");
        if longest > SLOW_TURN_NS {
            let ms = longest / 1_000_000;
            all.push(format!(
                "a turn took {ms} ms: the core was taken away, or a sink or disk held it up"
            ));
        }
    }
    all
}

fn stream(part: &PartSummary) -> &str {
    part.of.stream.as_deref().unwrap_or("?")
}

fn subscription(part: &PartSummary, all: &mut Vec<String>) {
    let stream = stream(part);
    if part.total("lost") > 0 {
        all.push(format!(
            "{stream}: {} messages LOST since the start",
            part.total("lost")
        ));
    }
    if part.total("foreign") > 0 {
        all.push(format!(
            "{stream}: a SECOND SERVER sends under the same identity; it is refused"
        ));
    }
    if part.rate("refused") > 0.0 {
        all.push(format!(
            "{stream}: its sink has no room: what takes the messages is too slow"
        ));
    }
    let (waits, room) = (part.total("sink_used"), part.total("sink_size"));
    if waits * 100 > room * FULL_PERCENT {
        all.push(format!(
            "{stream}: {} kB wait for its sink, of {}: what takes the messages is nearly too slow",
            waits / 1000,
            room / 1000
        ));
    }
    if part.rate("overruns") > 0.0 {
        all.push(format!(
            "{stream}: frames dropped for want of room to hold them: it repairs more than it can keep"
        ));
    }
}

fn archive(part: &PartSummary, all: &mut Vec<String>) {
    let stream = stream(part);
    if part.rate("full") > 0.0 {
        all.push(format!(
            "{stream}: the archive's DISK IS FULL; the server keeps what it does not store"
        ));
    }
    if part.rate("failed") > 0.0 {
        all.push(format!("{stream}: the archive's log FAILS; see its messages"));
    }
    if part.total("reserve_refused") > 0 {
        let [ready, size] = ["reserve_ready", "reserve_size"].map(|name| part.total(name) / 1_000_000);
        all.push(format!(
            "{stream}: the disk has NO ROOM FOR THE RESERVE: {ready} of {size} MB are ready"
        ));
    }
    let late = part.total("sync_late_ns");
    if late > LATE_SYNC_NS {
        all.push(format!(
            "{stream}: what was stored {} s ago is NOT ON THE DISK, and a loss of power takes it: the disk is too slow, or fails",
            part.total("unsynced_ns") / 1_000_000_000
        ));
    }
    if part.total("missing") > 0 && part.rate("repaired") == 0.0 {
        all.push(format!(
            "{stream}: the archive misses {} messages and gets none",
            part.total("missing")
        ));
    }
    if part.total("lost") > 0 {
        all.push(format!(
            "{stream}: {} messages are not in the archive: nobody had them",
            part.total("lost")
        ));
    }
    askers(part, all);
}

fn publication(part: &PartSummary, all: &mut Vec<String>) {
    let stream = stream(part);
    if part.rate("held_back") > 0.0 {
        all.push(format!(
            "{stream}: the source WAITS: {} messages are not acknowledged by the archives",
            part.total("unacknowledged")
        ));
    }
    let full = part.total("lane_fullest");
    if full > FULL_PERCENT {
        all.push(format!(
            "{stream}: a lane into it is {full} % full: messages come faster than they are sent"
        ));
    }
    if part.total("dropped_unacknowledged") > 0 {
        all.push(format!(
            "{stream}: {} messages GIVEN UP that no archive had acknowledged",
            part.total("dropped_unacknowledged")
        ));
    }
    if part.total("foreign") > 0 {
        all.push(format!(
            "{stream}: another server uses this identity: stop one of the two"
        ));
    }
    askers(part, all);
}

fn askers(part: &PartSummary, all: &mut Vec<String>) {
    for peer in part.peers.iter().filter(|peer| peer.rate >= MANY_NAKS) {
        all.push(format!(
            "{}: {} asks for repairs {:.0} times a second: it loses frames",
            stream(part),
            peer.address,
            peer.rate
        ));
    }
}

fn link(part: &PartSummary, all: &mut Vec<String>) {
    if part.rate("receive_dropped") > 0.0 {
        all.push(format!(
            "the kernel drops {:.0} frames a second: the engine is too slow or has no core of its own",
            part.rate("receive_dropped")
        ));
    }
    if part.rate("filter_no_socket") > 0.0 {
        all.push("frames arrive on a queue that the engine does not serve: see `seqcast check`".to_owned());
    }
    if part.total("misrouted") > 0 {
        all.push(format!(
            "{} frames of another worker's streams came on this one's queue and were lost: `ethtool -N` steers them, see `seqcast check --config`",
            part.total("misrouted")
        ));
    }
    if part.rate("send_failed") > 0.0 {
        all.push(format!(
            "the kernel refuses {:.0} frames a second: route or firewall",
            part.rate("send_failed")
        ));
    }
    if part.rate("malformed") > 0.0 {
        all.push(format!("{:.0} malformed frames a second", part.rate("malformed")));
    }
}

#[cfg(test)]
mod tests {
    use seqcast_engine::counters::Part;

    use super::*;
    use crate::watch::summary::Peer;

    /// What is said of an engine with one part, which has these totals, and rates of the same amount.
    fn said(part: &str, numbers: &[(&str, u64)]) -> Vec<String> {
        let of = Part {
            stream: Some("239.1.1.1:5000".to_owned()),
            ..Part::of(part)
        };
        warnings(&engine(PartSummary {
            of,
            totals: numbers.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect(),
            rates: numbers
                .iter()
                .map(|(name, n)| ((*name).to_owned(), *n as f64))
                .collect(),
            ..PartSummary::default()
        }))
    }

    fn engine(part: PartSummary) -> Engine {
        Engine {
            engine: "test".to_owned(),
            mode: "udp".to_owned(),
            pid: 1,
            alive: true,
            written: 0,
            seconds: 1.0,
            parts: vec![part],
            warnings: Vec::new(),
        }
    }

    #[test]
    fn each_trouble_has_its_words_and_health_has_none() {
        for (part, name, words) in [
            ("subscription", "lost", "7 messages LOST"),
            ("subscription", "foreign", "SECOND SERVER"),
            ("subscription", "refused", "its sink has no room"),
            ("subscription", "overruns", "for want of room"),
            ("archive", "full", "DISK IS FULL"),
            ("archive", "failed", "log FAILS"),
            ("archive", "reserve_refused", "NO ROOM FOR THE RESERVE"),
            ("archive", "missing", "misses 7 messages"),
            ("archive", "lost", "nobody had them"),
            ("publication", "held_back", "the source WAITS"),
            ("publication", "dropped_unacknowledged", "7 messages GIVEN UP"),
            ("publication", "foreign", "another server"),
            ("link", "receive_dropped", "drops 7 frames a second"),
            ("link", "filter_no_socket", "does not serve"),
            ("link", "send_failed", "refuses 7 frames"),
            ("link", "malformed", "7 malformed"),
        ] {
            let all = said(part, &[(name, 7)]);
            assert!(all.len() == 1 && all[0].contains(words), "{part} {name}: {all:?}");
            assert_eq!(said(part, &[(name, 0), ("messages", 9)]), Vec::<String>::new());
        }
        assert_eq!(
            said("archive", &[("missing", 7), ("repaired", 1)]),
            Vec::<String>::new(),
            "it gets some"
        );
        for (part, numbers, words) in [
            (
                "subscription",
                [("sink_used", 950_000), ("sink_size", 1_000_000)],
                "950 kB wait for its sink",
            ),
            ("publication", [("lane_fullest", 97), ("lanes", 1)], "97 % full"),
            (
                "archive",
                [("sync_late_ns", 3_000_000_000), ("unsynced_ns", 3_100_000_000)],
                "stored 3 s ago is NOT ON THE DISK",
            ),
        ] {
            let all = said(part, &numbers);
            assert!(all.len() == 1 && all[0].contains(words), "{part}: {all:?}");
            let half = numbers.map(|(name, n)| (name, if name == "sink_size" { n } else { n / 2 }));
            assert_eq!(said(part, &half), Vec::<String>::new());
        }
        let all = said("cycle", &[("longest_turn_lately_ns", 25_000_000)]);
        assert!(all[0].contains("a turn took 25 ms"), "{all:?}");
    }

    #[test]
    fn who_is_gone_stuck_or_asks_too_much_is_named() {
        let mut gone = engine(PartSummary::default());
        gone.alive = false;
        assert!(warnings(&gone)[0].contains("its process is gone"));
        let mut stuck = engine(PartSummary::default());
        stuck.written = 1;
        assert!(warnings(&stuck)[0].contains("has written nothing for"));
        let peer = |rate| Peer {
            address: "10.0.0.7:4000".to_owned(),
            naks: 5,
            rate,
        };
        let asked = engine(PartSummary {
            of: Part::of("publication"),
            peers: vec![peer(50.0), peer(1.0)],
            ..PartSummary::default()
        });
        let all = warnings(&asked);
        assert!(
            all.len() == 1 && all[0].contains("10.0.0.7:4000 asks for repairs 50 times"),
            "{all:?}"
        );
    }
}
