//! Recovery as the switch of the lab sees it, with the real binary: who asks whom for what, in which
//! order, and what is answered. Needs root; on loopback there is no switch to tap.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use common::wire::{Wire, reported_lost};
use common::{LIMIT, START, World, terminate, until};
use seqcast_engine::feed::binaryfile;
use seqcast_proto::lines::Line;
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::{Body, Kind, Reason, Stamp, flags};
use seqcast_tools::lab::{Lab, Process};

fn world(hosts: &[&str], messages: u64) -> Option<World> {
    match Lab::xdp_available() {
        Ok(()) => Some(World::new(hosts, messages)),
        Err(why) => {
            eprintln!("passed over: {why}");
            None
        }
    }
}

impl World {
    /// Starts a client that misses so many datagrams in a row, once.
    fn start_missing(&self, name: &str, at: u32, len: u32, roles: &str) -> Process {
        let fault = format!("fault = {{ burst_at = {at}, burst_len = {len} }}");
        let process = self.start_on(name, "eth1", name, &fault, roles);
        self.wait_member(Line::A, name);
        process
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.path(&format!("{name}.log"))).unwrap()
    }

    /// The messages of the input.
    fn messages(&self) -> Vec<Vec<u8>> {
        let mut reader = binaryfile::Reader::new(fs::File::open(&self.input).unwrap());
        let mut all = Vec::new();
        while let Some(message) = reader.next_message().unwrap() {
            all.push(message.to_vec());
        }
        all
    }

    /// A client has written all messages but those with these numbers, in their order.
    fn assert_all_but(&self, name: &str, lost: &[SeqRange]) {
        let mut want = binaryfile::Writer::new(Vec::new());
        for (message, seq) in self.messages().iter().zip(1..) {
            if !lost.iter().any(|l| (l.first..=l.last).contains(&Seq(seq))) {
                want.write(message).unwrap();
            }
        }
        let got = fs::read(self.path(&format!("{name}.out"))).unwrap();
        assert!(got == want.finish().unwrap(), "{name}: all but {lost:?}");
    }
}

const MESSAGES: u64 = 24_000;

#[test]
fn the_archive_is_asked_then_the_server_then_both_again_until_the_range_is_lost() {
    let Some(world) = world(&["server", "archive", "heard", "ignored", "late"], MESSAGES) else {
        return;
    };
    // The archive answers no client, the server all but one: for those they are silent.
    let allow = |archive: &str, clients: &[&str]| {
        format!("trust = {{ allow = {{ archives = [\"{archive}\"], clients = {clients:?} }} }}\n")
    };
    let [archive_ip, server_ip, heard, ignored, late] =
        ["archive", "server", "heard", "ignored", "late"].map(|h| world.address(h));
    let nobody = "10.255.0.1";
    let tap = world.tap().unwrap();
    let archive = world.start("archive", false, &(world.archive() + &allow(nobody, &[nobody])));
    let clients = [("heard", ""), ("ignored", "give_up_ms = 1500\n")]
        .map(|(name, keys)| world.start_missing(name, 600, 20, &(world.client(name, true) + keys)));
    let answered = [heard, late].map(|ip| ip.to_string());
    let more = allow(&archive_ip.to_string(), &answered.each_ref().map(String::as_str));
    let roles = world
        .server(8_000, &format!("linger_ms = 2000\nheartbeat_max_ms = 20\n{more}"))
        .replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    let roles = world
        .client("late", true)
        .replace("from = \"session\"", "from = \"now\"");
    until("the stream has begun", || world.delivered("heard") > 0);
    let late_client = world.start_missing("late", 1_500, 20, &roles);
    for mut process in clients.into_iter().chain([late_client]) {
        process.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    terminate(archive);
    let wire = Wire::of(tap);
    let group: SocketAddrV4 = world.stream.parse().unwrap();

    // The first number that a client missed, and how often it asked for it: point to point, and the
    // parties have their turns.
    let missed = |client: Ipv4Addr| {
        let questions = wire.questions(client);
        let number = questions[0].range.first;
        let turns = questions
            .iter()
            .filter(|q| (q.range.first..=q.range.last).contains(&number));
        for (turn, question) in turns.clone().enumerate() {
            let (party, archive) = [(archive_ip, true), (server_ip, false)][turn % 2];
            assert_eq!(*question.to.ip(), party, "turn {turn} of {questions:?}");
            assert_eq!((question.asks_archive, question.asks_server), (archive, !archive));
        }
        (number, turns.count())
    };
    // Silence of the archive: the server repairs.
    let (number, turns) = missed(heard);
    let answers = wire.answers(heard);
    assert!(
        turns >= 2 && answers.iter().all(|a| *a.from.ip() == server_ip),
        "{answers:?}"
    );
    let repair = answers.iter().find(|a| a.refused.is_none()).unwrap();
    assert_eq!(repair.range.first, number);
    world.assert_equal("heard");
    // Silence of both: with pauses that grow from 20 to 500 ms, 1.5 s are enough for a dozen questions.
    let (number, turns) = missed(ignored);
    assert!((4..=20).contains(&turns), "{turns}");
    assert!(wire.answers(ignored).is_empty());
    let lost = reported_lost(&world.log("ignored"));
    assert_eq!(lost[0].first, number);
    // In one piece, all of which was asked for. How long it is depends on the heartbeats among the datagrams; and while
    // nobody answers, a slow machine finds no room for messages that came, which are lost as well.
    assert!(lost.get(1).is_none_or(|l| l.first > lost[0].end()), "{lost:?}");
    let questions = wire.questions(ignored);
    let asked = |seq: Seq| questions.iter().any(|q| (q.range.first..=q.range.last).contains(&seq));
    assert!((lost[0].first.0..=lost[0].last.0).map(Seq).all(asked), "{lost:?}");
    let report = &world.report("ignored")["subscriptions"][0];
    assert_eq!(report["lost"], lost.iter().map(|l| l.len()).sum::<u32>(), "{report}");
    world.assert_all_but("ignored", &lost);
    // Who joins late begins there, and asks for nothing that came before.
    missed(late);
    let joined = world.log("late");
    let joined = joined.split_once("at message ").unwrap().1.lines().next().unwrap();
    let joined = Seq(joined.parse().unwrap());
    assert!(Seq::FIRST < joined);
    assert!(wire.questions(late).iter().all(|q| joined < q.range.first), "{joined}");
    // Nobody's loss was anyone else's.
    assert!(wire.answers(*group.ip()).is_empty());
    // The archive has acknowledged each message, by its number, to the server alone.
    let mut acknowledged = vec![false; 1 + MESSAGES as usize];
    for (seen, frame) in wire.frames() {
        if let Body::Ack(ranges) = frame.body {
            assert_eq!((*seen.from.ip(), *seen.to.ip()), (archive_ip, server_ip));
            for range in ranges.iter() {
                acknowledged[range.first.0 as usize..=range.last.0 as usize].fill(true);
            }
        }
    }
    assert!(acknowledged[1..].iter().all(|a| *a));
}

/// Messages of [`LARGE`] bytes, so that few of them fill the smallest archive and server log.
fn large_input(world: &World) {
    let mut writer = binaryfile::Writer::new(fs::File::create(&world.input).unwrap());
    for n in 0..LARGE_MESSAGES {
        let mut message = [n as u8; LARGE];
        message[..4].copy_from_slice(&n.to_be_bytes());
        writer.write(&message).unwrap();
    }
    writer.finish().unwrap();
}

const LARGE: usize = 1_300;
const LARGE_MESSAGES: u32 = 12_000;

#[test]
fn what_the_archive_gave_up_comes_from_the_server_and_what_both_gave_up_is_lost_by_name() {
    let Some(world) = world(&["server", "archive", "late", "stranger"], 10) else {
        return;
    };
    large_input(&world);
    let keep = "segment = \"64 KiB\"\nkeep_bytes = \"3 MiB\"\nrepair = { amplification = 256 }\n";
    let archive = world.start("archive", false, &(world.archive() + keep));
    let tap = world.tap().unwrap();
    let roles = world
        .server(20_000, "retain = \"8 MiB\"\n")
        .replace("archives = 1", "archives = 0")
        .replace("rate =", "at_end = \"stay\", rate =");
    let server = world.start("server", false, &roles);
    let held = || {
        let archive = seqcast_archive::Reader::open(&world.path("archive.d")).ok()?;
        let session = *archive.sessions().ok()?.first()?;
        let log = archive.session(session).ok()?;
        let stored = log.stored().as_slice();
        Some((session, SeqRange::new(stored.first()?.first, stored.last()?.last)?))
    };
    until("the archive holds the end and no more than it may", || {
        held().is_some_and(|(_, held)| held.last.0 == LARGE_MESSAGES && held.len() < 2_500)
    });
    // Before there is a client that hears them, and so puts its own questions off.
    let refused = ask_in_person(&world, held().unwrap().0);
    let late = world.start("late", false, &world.client("late", false));
    until("what is left is delivered", || {
        let Some(report) = reported_lost(&world.log("late")).last().copied() else {
            return false;
        };
        let left = u64::from(LARGE_MESSAGES - report.last.0);
        world.delivered("late") == left * (LARGE as u64 + 2)
    });
    terminate(late);
    terminate(server);
    terminate(archive);
    let wire = Wire::of(tap);

    // The server says in each heartbeat what it still has.
    let oldest = wire.frames().filter_map(|(_, frame)| match frame.body {
        Body::Heartbeat(body, _) => Some(body.oldest.get()),
        _ => None,
    });
    let lost = SeqRange::new(Seq::FIRST, Seq(oldest.last().unwrap()).prev()).unwrap();
    let reported = reported_lost(&world.log("late"));
    assert!(
        reported.iter().zip(&reported[1..]).all(|(a, b)| a.end() == b.first),
        "{reported:?}"
    );
    assert_eq!(
        (reported[0].first, reported.last().unwrap().last),
        (lost.first, lost.last)
    );
    let report = &world.report("late")["subscriptions"][0];
    assert_eq!(report["lost"], lost.len(), "{report}");
    assert!(report["refused_too_old"].as_u64() >= Some(2), "by both: {report}");
    for who in ["repaired_archive", "repaired_server"] {
        assert!(report[who].as_u64() > Some(0), "{report}");
    }
    world.assert_all_but("late", &[lost]);
    // Of the first message: the archive was asked and has it no more; then the server.
    let [late, archive, server] = ["late", "archive", "server"].map(|h| world.address(h));
    let questions = wire.questions(late);
    let turns = questions.iter().filter(|q| q.range.first == Seq::FIRST);
    let turns: Vec<Ipv4Addr> = turns.map(|q| *q.to.ip()).collect();
    assert!(turns.starts_with(&[archive, server]), "{questions:?}");
    let answers = wire.answers(late);
    for party in [archive, server] {
        let first = answers.iter().find(|a| *a.from.ip() == party).unwrap();
        assert_eq!(
            (first.range.first, first.refused),
            (Seq::FIRST, Some((Reason::TooOld, 0)))
        );
    }
    assert_eq!(
        refused,
        [Reason::TooOld, Reason::NotYet, Reason::UnknownSession, Reason::Busy]
    );
}

/// Asks by hand for what cannot be had, and returns why not; who shall ask again is told when.
fn ask_in_person(world: &World, session: Session) -> Vec<Reason> {
    let socket = world.lab.host("stranger").unwrap().udp_socket(0).unwrap();
    socket.set_read_timeout(Some(START)).unwrap();
    let group: SocketAddrV4 = world.stream.parse().unwrap();
    let reason = |ask: u16, session: Session, first: u32, last: u32| {
        let stamp = Stamp {
            stream: seqcast_engine::stream_id(group, None),
            session,
            sequence: Seq(0),
            time: 0,
            flags: ask,
            origin: 77,
        };
        let mut frame = [0; 1500];
        let len = stamp.ranges(&mut frame, Kind::Nak, SeqRange::new(Seq(first), Seq(last)));
        socket.send_to(&frame[..len], group).unwrap();
        loop {
            let len = socket.recv(&mut frame).unwrap();
            if let Body::Unavailable(refusals) = seqcast_proto::wire::Frame::parse(&frame[..len]).unwrap().body {
                let (_, reason, retry_ms) = refusals.iter().next().unwrap();
                assert_eq!(retry_ms > 0, reason == Reason::Busy, "{reason:?} after {retry_ms} ms");
                return reason;
            }
        }
    };
    let next = LARGE_MESSAGES + 1;
    vec![
        reason(flags::ASK_SERVER, session, 1, 1),
        reason(flags::ASK_SERVER, session, next, next),
        reason(flags::ASK_SERVER, Session(session.0 + 1), 1, 1),
        // 40 bytes pay for a tenth of this.
        reason(flags::ASK_ARCHIVE, session, next - 100, next - 1),
    ]
}

#[test]
fn a_repair_to_the_group_spares_others_their_questions() {
    let Some(world) = world(&["server", "first", "second"], 8_000) else {
        return;
    };
    let tap = world.tap().unwrap();
    // Both miss the same. The second waits for frames that overtook each other, and has all before it asks.
    let clients = [
        ("first", "query = \"multicast\"\n"),
        ("second", "reorder_us = 2000000\n"),
    ]
    .map(|(name, keys)| world.start_missing(name, 300, 40, &(world.client(name, true) + keys)));
    let roles = world
        .server(5_000, "repair = { cast = \"multicast\" }")
        .replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    for mut client in clients {
        client.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    let wire = Wire::of(tap);
    let group: SocketAddrV4 = world.stream.parse().unwrap();
    let [first, second] = ["first", "second"].map(|h| world.address(h));
    for name in ["first", "second"] {
        world.assert_equal(name);
        let report = &world.report(name)["subscriptions"][0];
        // Heartbeats may be among the frames that it missed.
        assert!(report["repaired_server"].as_u64() >= Some(20), "{report}");
    }
    let questions = wire.questions(first);
    assert!(
        !questions.is_empty() && questions.iter().all(|q| q.to == group),
        "{questions:?}"
    );
    assert!(wire.questions(second).is_empty());
    assert!(!wire.answers(*group.ip()).is_empty());
    assert!(wire.answers(first).is_empty() && wire.answers(second).is_empty());
}
