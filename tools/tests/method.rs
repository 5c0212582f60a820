//! The method of distribution and recovery with the real binary: what happens while the archive is
//! away, how several ask for the same, how fast a source may go, and whose word a stream is.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use common::wire::Wire;
use common::{LIMIT, World, kill, terminate, until};
use seqcast_archive::{Archive, Options, SessionMeta};
use seqcast_engine::config::Config;
use seqcast_engine::link::udp::{UdpConfig, UdpLink};
use seqcast_engine::node::{Node, Programs, StopRequests, Waiting};
use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::wire::Body;
use seqcast_ring::LaneError;
use seqcast_tools::lab::Process;

#[test]
fn an_archive_that_was_away_fills_itself_from_the_server() {
    let world = World::new(&["server", "archive", "client1", "client2"], 40_000);
    let archive = world.start("archive", true, &world.archive());
    let names = ["client1", "client2"];
    let clients = names.map(|name| world.start(name, true, &world.client(name, true)));
    let mut server = world.start("server", false, &world.server(15_000, ""));
    world.until_delivered("client1", 30);
    kill(archive);
    // The server goes on, and answers. One that has just lost what the archive had stored waits for it.
    until("a client delivers 70 %", || {
        names
            .iter()
            .any(|name| world.delivered(name) * 100 >= world.size() * 70)
    });
    let archive = world.start("archive", false, &world.archive());
    for mut client in clients {
        client.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    terminate(archive);
    names.iter().for_each(|name| world.assert_equal(name));
    world.assert_archived();
    let client = &world.report("client1")["subscriptions"][0];
    for who in ["repaired_archive", "repaired_server"] {
        assert!(
            client[who].as_u64() > Some(0),
            "the archive first, without it the server: {client}"
        );
    }
    let server = &world.report("server")["publications"][0];
    assert_eq!(server["unacknowledged"], 0, "{server}");
    let archive = &world.report("archive")["archives"][0];
    assert!(
        archive["repaired"].as_u64() > Some(40_000 / 10),
        "it fetched what passed while it was away: {archive}"
    );
}

#[test]
fn shared_losses_are_repaired_once_and_questions_to_the_group_need_no_address() {
    let world = World::new(&["server", "client1", "client2", "client3"], 20_000);
    let tap = world.tap();
    // All three lose the same burst; two ask the server, one the group.
    let clients: Vec<Process> = [("client1", ""), ("client2", ""), ("client3", "query = \"multicast\"\n")]
        .map(|(name, keys)| world.start(name, true, &(world.client(name, true) + keys)))
        .into();
    let roles = world
        .server(10_000, "linger_ms = 2000\nrepair = { merge_us = 50000 }")
        .replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    for mut client in clients {
        client.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    for name in ["client1", "client2", "client3"] {
        world.assert_equal(name);
        let client = &world.report(name)["subscriptions"][0];
        assert!(client["gaps"].as_u64() > Some(0), "the faults were in force: {client}");
    }
    assert!(world.report("client3")["subscriptions"][0]["naks"].as_u64() > Some(0));
    let server = &world.report("server")["publications"][0];
    assert!(server["merged"].as_u64() > Some(0), "{server}");
    let Some(tap) = tap else { return };
    let wire = Wire::of(tap);
    let group: SocketAddrV4 = world.stream.parse().unwrap();
    let (server, asks_the_group) = (world.address("server"), world.address("client3"));
    let asked = |client: &str| wire.questions(world.address(client));
    assert!(
        asked("client1")
            .iter()
            .chain(&asked("client2"))
            .all(|q| *q.to.ip() == server)
    );
    let questions = wire.questions(asks_the_group);
    assert!(
        !questions.is_empty() && questions.iter().all(|q| q.to == group),
        "{questions:?}"
    );
    // What is shared goes to all of them at once.
    assert!(!wire.answers(*group.ip()).is_empty());
}

#[test]
fn a_rate_limit_holds_the_source_back_and_drops_nothing() {
    const BYTES: u64 = 600_000;
    let world = World::new(&["server", "archive", "client1"], 20_000);
    let archive = world.start("archive", false, &world.archive());
    let mut client = world.start("client1", true, &world.client("client1", true));
    let start = Instant::now();
    let roles = world.server(1_000_000, &format!("rate = {{ bytes = {BYTES}, burst = \"16 KiB\" }}"));
    let mut server = world.start("server", false, &roles);
    client.wait(LIMIT).unwrap();
    let took = start.elapsed();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    // Frames carry more than the payload, so that it took longer still.
    let payload = world.size() - 2 * 20_000;
    let least = Duration::from_secs_f64((payload - (16 << 10)) as f64 / BYTES as f64);
    assert!(took >= least, "{took:?} for {payload} bytes at {BYTES}/s");
}

#[test]
fn repairs_and_frames_have_rates_of_their_own() {
    const MESSAGES: u64 = 20_000;
    let world = World::new(&["server", "client1", "late"], MESSAGES);
    let mut start = Instant::now();
    let mut client = world.start("client1", false, &world.client("client1", true));
    let more = "linger_ms = 60000\nrate = { frames = 400, burst = \"15000\" }\nrepair = { bytes = 500000 }";
    let roles = world.server(1_000_000, more).replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    client.wait(LIMIT).unwrap();
    let took = start.elapsed();
    world.until_said("server", "`rate` is used up");
    // Everything is a repair to who comes when the stream is over.
    start = Instant::now();
    let mut late = world.start("late", false, &world.client("late", true));
    late.wait(LIMIT).unwrap();
    let repairs_took = start.elapsed();
    server.terminate().unwrap();
    server.terminate().unwrap();
    server.wait(LIMIT).unwrap();
    world.assert_equal("client1");
    world.assert_equal("late");
    let server = &world.report("server")["publications"][0];
    let count = |key: &str| server[key].as_u64().unwrap();
    // Ten frames at once, then so many a second.
    assert!(
        took >= Duration::from_secs_f64((count("frames") - 10) as f64 / 400.0),
        "{took:?}: {server}"
    );
    assert_eq!(
        (count("messages"), count("repaired") >= MESSAGES),
        (MESSAGES, true),
        "{server}"
    );
    assert!(count("rate_limited") > 0, "{server}");
    let payload = world.size() - 2 * MESSAGES;
    let least = Duration::from_secs_f64((payload - (64 << 10)) as f64 / 500_000.0);
    assert!(repairs_took >= least, "{repairs_took:?} for {payload} bytes");
}

#[test]
fn a_program_is_told_what_its_messages_wait_for() {
    let dir = tempfile::TempDir::new().unwrap();
    let free = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let group = SocketAddrV4::new(Ipv4Addr::new(239, 77, 9, 1), free.local_addr().unwrap().port());
    let cases = [
        ("rate = { bytes = 20000, burst = \"2000\" }", Waiting::Rate),
        ("archives = 1\nunacknowledged_max = 100", Waiting::Unacknowledged),
        ("archives = 1\nretain = \"8 MiB\"", Waiting::Full),
    ];
    for (limits, reason) in cases {
        let state = dir.path().join(format!("{reason:?}"));
        let text = format!(
            "[engine]\ninterface = \"lo\"\n[[publish]]\nstream = \"{group}\"\nstate = {state:?}\nsource = {{ program = true }}\n{limits}"
        );
        let (mut lane, consumer) = seqcast_ring::lane(1 << 16);
        let programs = Programs {
            sources: vec![(group, consumer)],
            ..Programs::default()
        };
        let config = Config::parse(&text, Path::new("test")).unwrap();
        let link = UdpLink::open(UdpConfig::default()).unwrap();
        let mut node = Node::open(&config, link, 1024, StopRequests::default(), programs).unwrap();
        let backpressure = node.backpressure(group).unwrap();
        let mut refused = 0;
        until(&format!("{reason:?}"), || {
            while lane.try_push(0, &[&[7; 1_000]]).is_ok() {}
            refused += 1;
            node.poll().unwrap();
            backpressure.reason() == Some(reason)
        });
        // It is a state, not an event: it lasts as long as its cause does.
        assert_eq!(
            lane.try_push(0, &[&[7; 1_000]]).and_then(|()| loop {
                lane.try_push(0, &[&[7; 1_000]])?;
            }),
            Err::<(), _>(LaneError::Full)
        );
        assert_eq!(backpressure.reason(), Some(reason), "{refused} looks");
        let report = &node.report().publications[0];
        assert_eq!(report.rate_limited > 0, reason == Waiting::Rate, "{report:?}");
        assert_eq!(report.held_back > 0, reason != Waiting::Rate, "{report:?}");
    }
}

#[test]
fn a_server_paced_by_acknowledgements_is_never_further_ahead_than_it_may() {
    const MOST: u32 = 500;
    let world = World::new(&["server", "archive", "client1"], 20_000);
    let tap = world.tap();
    let mut client = world.start("client1", false, &world.client("client1", true));
    let mut server = world.start(
        "server",
        false,
        &world.server(1_000_000, &format!("unacknowledged_max = {MOST}")),
    );
    world.until_said("server", "as many as `unacknowledged_max` allows");
    let archive = world.start("archive", false, &world.archive());
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    let report = &world.report("server")["publications"][0];
    assert!(report["held_back"].as_u64() > Some(0), "{report}");
    let Some(tap) = tap else { return };
    let mut acknowledged = RangeSet::new(1000);
    for (_, frame) in Wire::of(tap).frames() {
        match frame.body {
            Body::Ack(ranges) => ranges.iter().for_each(|r| acknowledged.insert(r).unwrap()),
            Body::Data(block) => {
                // The last frame may go beyond it.
                let open = block.first().since(acknowledged.first_absent(Seq::FIRST));
                assert!(open < MOST, "{open} before message {}", block.first());
            }
            _ => {}
        }
    }
    assert_eq!(acknowledged.first_absent(Seq::FIRST), Seq(20_001));
}

/// Makes a state directory whose next session will be one that the clock reaches in many years.
fn state_of_the_future(world: &World, name: &str) {
    let group: SocketAddrV4 = world.stream.parse().unwrap();
    let stream = seqcast_engine::stream_id(group, None);
    let mut log = Archive::open(&world.path(name), stream, Options::default()).unwrap();
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 1,
        user: 0,
    };
    log.create_session(FUTURE, meta).unwrap();
    log.close().unwrap();
}

const FUTURE: Session = Session(4_000_000_000);

#[test]
fn a_second_server_under_the_same_identity_is_refused_by_everyone_loudly() {
    let world = World::new(&["server", "archive", "client1", "second"], 60_000);
    // As if somebody had copied the state directory: both will open the same session.
    for name in ["server.d", "second.d"] {
        state_of_the_future(&world, name);
    }
    let archive = world.start("archive", false, &world.archive());
    let mut client = world.start("client1", false, &world.client("client1", true));
    let roles = world
        .server(10_000, "linger_ms = 2000")
        .replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    world.until_delivered("client1", 20);
    let lines = world.path("second.lines");
    fs::write(&lines, "what the second server says\n".repeat(20_000)).unwrap();
    let other = roles
        .replace("server.d", "second.d")
        .replace("input.bin\", rate", "second.lines\", format = \"lines\", rate");
    let second = world.start("second", false, &other);
    for name in ["client1", "server", "second"] {
        world.until_said(name, "a SECOND SERVER at ");
    }
    world.until_said("archive", "a SECOND SERVER sends ");
    // Its end is not believed either.
    terminate(second);
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    let session = FUTURE.0 + 1;
    for (name, part) in [
        ("client1", "subscriptions"),
        ("server", "publications"),
        ("archive", "archives"),
    ] {
        let report = &world.report(name)[part][0];
        assert!(report["foreign"].as_u64() > Some(0), "{name}: {report}");
        assert!(part == "archives" || report["session"] == session, "{name}: {report}");
    }
    assert_eq!(world.report("client1")["subscriptions"][0]["lost"], 0);
}

#[test]
fn a_second_server_is_refused_or_takes_over_and_is_named() {
    let world = World::new(&["server", "client1", "second"], 60_000);
    let client = world.start("client1", false, &world.client("client1", false));
    let roles = world.server(10_000, "").replace("archives = 1", "archives = 0");
    let mut server = world.start("server", false, &roles);
    world.until_delivered("client1", 20);
    // With the directory of the first it is refused, and the first goes on.
    let refused = std::panic::catch_unwind(|| world.start_as("second", "copy", false, &roles));
    let refused = *refused.err().unwrap().downcast::<String>().unwrap();
    assert!(refused.contains("is in use by"), "{refused}");
    // With one of its own it opens a later session: the first is fenced, and says who did it.
    let own = roles.replace("server.d", "second.d");
    let second = world.start_as("second", "second", false, &own);
    let fenced = server.wait(LIMIT).unwrap_err().to_string();
    assert!(fenced.contains("has opened a later session"), "{fenced}");
    let log = world.path("client1.log");
    until("the client goes on with the later session", || {
        fs::read_to_string(&log).unwrap().contains(" began")
    });
    terminate(second);
    terminate(client);
}

#[test]
fn a_lost_state_directory_never_reuses_a_session() {
    let world = World::new(&["server", "archive", "client1"], 4_000);
    // It holds every number of every session to one message.
    let tap = world.tap();
    let archive = world.start("archive", false, &world.archive());
    let client = world.start("client1", false, &world.client("client1", false));
    for run in 1..=2 {
        let mut server = world.start("server", false, &world.server(20_000, ""));
        server.wait(LIMIT).unwrap();
        world.until_delivered("client1", 100 * run);
        fs::remove_dir_all(world.path("server.d")).unwrap();
    }
    terminate(client);
    terminate(archive);
    tap.map(Wire::of);
    let whole = fs::read(&world.input).unwrap();
    assert!(fs::read(world.path("client1.out")).unwrap() == whole.repeat(2));
    assert_eq!(world.report("client1")["subscriptions"][0]["sessions_ended"], 2);
    assert_eq!(world.report("archive")["archives"][0]["sessions"], 2);
}
