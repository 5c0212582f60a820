//! Keyed streams between real engines: losses are repaired, forgers and replayers change nothing,
//! keys change under load, and strangers are kept out.
//!
//! As root the hosts are network namespaces joined by a bridge and the link is AF_XDP; otherwise
//! they are processes on loopback and the link is kernel UDP, which the tests say.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::process::Command;
use std::time::SystemTime;

use common::wire::Wire;
use common::{LIMIT, START, World, terminate, until};
use seqcast_proto::seal::{self, Seal};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::{Block, Endpoint, Frame, HeartbeatBody, Kind, Role, Stamp, flags, header};
use seqcast_tools::lab::{self, Host, Process};
use serde_json::Value;

/// What [`helper`] shall do in the process that a test starts on a host.
const TASK: &str = "SEQCAST_TRUST_TASK";

fn seqcast(arguments: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_seqcast"))
        .args(arguments)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

fn key_file(world: &World) -> PathBuf {
    let path = world.path("stream.key");
    let (made, text) = seqcast(&["key", "new", path.to_str().unwrap()]);
    assert!(made, "{text}");
    path
}

/// A part's tables with the stream's trust.
fn with(trust: &str, roles: &str) -> String {
    format!("{roles}trust = {{ {trust} }}\n")
}

fn keyed(key: &std::path::Path, roles: &str) -> String {
    with(&format!("key = \"{}\"", key.display()), roles)
}

fn trust(world: &World, name: &str) -> Value {
    world.report(name)["trust"][0].clone()
}

/// Runs [`helper`] on a host.
fn run(world: &World, host: &Host, name: &str, task: &str) -> Process {
    let mut command = host.command(std::env::current_exe().unwrap());
    command.args(["--exact", "helper", "--nocapture", "--test-threads=1"]);
    command.env(TASK, format!("{task} {} {}", world.stream, host.address()));
    Process::spawn(name, command, &world.path(&format!("{name}.log"))).unwrap()
}

/// Not a test: the hostile host of the tests below, in a process of its own.
///
/// `forge` sends frames of every kind, made from what it hears, to the group and to all endpoints
/// that heartbeats name. `replay` records and sends everything again, bit by bit, seconds later.
#[test]
fn helper() {
    let Ok(task) = std::env::var(TASK) else { return };
    let words: Vec<&str> = task.split(' ').collect();
    let [what, group, address] = words[..] else {
        panic!("no such task: {task:?}");
    };
    let group: SocketAddrV4 = group.parse().unwrap();
    let address: Ipv4Addr = address.parse().unwrap();
    let ear = listen(group, address);
    let mouth = UdpSocket::bind((address, 0)).unwrap();
    mouth.set_multicast_loop_v4(true).unwrap();
    println!("\nready");
    let heard = record(&ear, if what == "forge" { 40 } else { 400 });
    let endpoints = endpoints(&heard);
    match what {
        "forge" => heard.iter().for_each(|f| forge(&mouth, group, &endpoints, f)),
        "replay" => {
            for frame in heard.iter().chain(&heard) {
                mouth.send_to(frame, group).unwrap();
                endpoints.iter().for_each(|e| {
                    mouth.send_to(frame, e).unwrap();
                });
            }
        }
        other => panic!("no such task: {other:?}"),
    }
    println!("done {}", mouth.local_addr().unwrap());
}

fn listen(group: SocketAddrV4, address: Ipv4Addr) -> UdpSocket {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&group.into()).unwrap();
    socket.join_multicast_v4(group.ip(), &address).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    socket.into()
}

fn record(ear: &UdpSocket, frames: usize) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2000];
    let mut heard = Vec::new();
    let mut heartbeats = 0;
    while heard.len() < frames || heartbeats < 10 {
        let len = ear.recv(&mut buffer).unwrap();
        heartbeats += u32::from(buffer[3] == Kind::Heartbeat as u8);
        heard.push(buffer[..len].to_vec());
    }
    heard
}

/// Where heartbeats say that server and archives answer.
fn endpoints(heard: &[Vec<u8>]) -> Vec<SocketAddrV4> {
    let beat = heard.iter().rfind(|f| f[3] == Kind::Heartbeat as u8).unwrap();
    let count = usize::from(header(beat).unwrap().count.get());
    let list = &beat[48..48 + 8 * count];
    list.chunks(8)
        .map(|e| SocketAddrV4::new(Ipv4Addr::new(e[0], e[1], e[2], e[3]), u16::from_le_bytes([e[4], e[5]])))
        .collect()
}

type Build<'a> = &'a dyn Fn(&mut [u8]) -> usize;

/// Frames of every kind that would do harm, with and without what looks like a seal.
fn forge(mouth: &UdpSocket, group: SocketAddrV4, endpoints: &[SocketAddrV4], heard: &[u8]) {
    let known = header(heard).unwrap();
    let (session, next) = (known.session(), known.sequence());
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let stamp = Stamp {
        stream: known.stream(),
        session,
        sequence: next,
        time: wall.as_nanos() as u64,
        flags: 0,
        origin: known.origin.get(),
    };
    let evil = Block::trusted(next, 1, b"\x04\x00\x00\x00evil");
    let all = SeqRange::new(Seq::FIRST, Seq(1 << 30));
    let beat = HeartbeatBody {
        previous_session: session.0.into(),
        previous_last: 1.into(),
        oldest: 1.into(),
        acknowledged: 0.into(),
    };
    let me = match mouth.local_addr().unwrap() {
        std::net::SocketAddr::V4(me) => me,
        std::net::SocketAddr::V6(_) => unreachable!("bound to IPv4"),
    };
    let parties = [Endpoint::new(me, Role::Server), Endpoint::new(me, Role::Archive)];
    let later = Stamp {
        session: Session(session.0 + 1000),
        ..stamp
    };
    let server = Stamp {
        flags: flags::FROM_SERVER,
        ..stamp
    };
    let ask = Stamp {
        flags: flags::ASK_SERVER | flags::ASK_ARCHIVE,
        ..stamp
    };
    let kinds: [Build<'_>; 9] = [
        &|b| stamp.block(b, Kind::Data, &evil),
        &|b| later.block(b, Kind::Data, &evil),
        &|b| server.block(b, Kind::Repair, &evil),
        &|b| stamp.heartbeat(b, &beat, &parties),
        &|b| later.heartbeat(b, &beat, &parties),
        &|b| Stamp { origin: 66, ..stamp }.ranges(b, Kind::Ack, all),
        &|b| ask.ranges(b, Kind::Nak, all),
        &|b| server.unavailable(b, all.unwrap(), seqcast_proto::wire::Reason::Lost, 0),
        &|b| server.end(b, Session(session.0 + 1000), Session(0)),
    ];
    let mut buffer = [0; 2000];
    for build in kinds {
        let len = build(&mut buffer);
        assert!(Frame::parse(&buffer[..len]).is_ok());
        // As it is; with the seal of a real frame; with a real key's id, but made-up tag.
        let mut guess = buffer[..len].to_vec();
        guess[26] |= flags::KEYED as u8;
        guess[27] = heard[27];
        let mut stolen = guess.clone();
        guess.extend_from_slice(&stamp.time.to_le_bytes());
        guess.extend_from_slice(&[7; 16]);
        stolen.extend_from_slice(&heard[heard.len() - 24..]);
        for bytes in [&buffer[..len], &guess, &stolen] {
            mouth.send_to(bytes, group).unwrap();
            for endpoint in endpoints {
                mouth.send_to(bytes, endpoint).unwrap();
            }
        }
    }
}

/// A stream from a server to an archive and a client with losses, whose tables `trust` completes, while a
/// stranger does its worst; all of it arrives.
fn attack(world: &World, trust: impl Fn(&str) -> String, task: &str) {
    let archive = world.start("archive", true, &trust(&world.archive()));
    let mut client = world.start("client1", true, &trust(&world.client("client1", true)));
    let mut hostile = run(world, world.lab.host("stranger").unwrap(), "stranger", task);
    hostile.wait_line("ready", START).unwrap();
    let mut server = world.start("server", false, &trust(&world.server(8_000, "")));
    hostile.wait(LIMIT).unwrap();
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
}

/// A keyed stream with losses from a server to an archive and a client, and a hostile host.
fn under_attack(task: &str) -> (World, [Value; 3]) {
    let world = World::new(&["server", "archive", "client1", "stranger"], 30_000);
    let key = key_file(&world);
    attack(&world, |text| keyed(&key, text), task);
    let report = &world.report("client1")["subscriptions"][0];
    assert!(report["gaps"].as_u64() > Some(0), "the faults were in force: {report}");
    assert_eq!(
        (&report["lost"], &report["sessions_ended"], &report["foreign"]),
        (&0.into(), &1.into(), &0.into()),
        "{report}"
    );
    let reports = ["server", "archive", "client1"].map(|name| trust(&world, name));
    (world, reports)
}

#[test]
fn forged_frames_of_every_kind_change_nothing_and_are_counted() {
    let (world, reports) = under_attack("forge");
    for report in reports {
        // Made up or stolen seals are two thirds of what was sent, and some of it was lost.
        assert!(report["forged"].as_u64() > Some(100), "{report}");
        assert!(report["unkeyed"].as_u64() > Some(50), "{report}");
        assert_eq!(report["keys"], serde_json::json!([1]), "{report}");
    }
    for name in ["server", "archive", "client1"] {
        let log = fs::read_to_string(world.path(&format!("{name}.log"))).unwrap();
        assert!(log.contains("are not keyed, but the stream is"), "{log}");
        assert!(log.matches("are not keyed").count() < 5, "not for each frame: {log}");
    }
    let server = &world.report("server")["publications"][0];
    assert_eq!(
        (&server["limited"], &server["put_off"], &server["foreign"]),
        (&0.into(), &0.into(), &0.into()),
        "{server}"
    );
}

#[test]
fn replayed_frames_change_nothing_and_are_counted() {
    let (_, reports) = under_attack("replay");
    for report in reports {
        assert!(report["replayed"].as_u64() > Some(3), "{report}");
        assert_eq!(report["forged"], 0, "{report}");
    }
}

#[test]
fn keys_change_under_load_without_a_gap() {
    let world = World::new(&["server", "archive", "client1"], 60_000);
    let key = key_file(&world);
    let archive = world.start("archive", false, &keyed(&key, &world.archive()));
    let mut client = world.start("client1", false, &keyed(&key, &world.client("client1", true)));
    let mut server = world.start("server", false, &keyed(&key, &world.server(10_000, "")));
    let path = key.to_str().unwrap();
    let in_force = |ids: &str| {
        for name in ["server", "archive", "client1"] {
            until(&format!("{name} has keys {ids}"), || {
                let log = fs::read_to_string(world.path(&format!("{name}.log"))).unwrap();
                log.contains(&format!("keys {ids} are in force"))
            });
        }
    };
    world.until_delivered("client1", 10);
    for (step, ids) in [
        (vec!["add", path], "1, 2"),
        (vec!["use", path, "2"], "2, 1"),
        (vec!["remove", path, "1"], "2"),
    ] {
        let (done, text) = seqcast(&[&["key"], &step[..]].concat());
        assert!(done, "{text}");
        in_force(ids);
    }
    let delivered = world.delivered("client1");
    assert!(delivered < world.size(), "the keys changed while messages flowed");
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    for name in ["server", "archive", "client1"] {
        let report = trust(&world, name);
        for cause in ["forged", "unknown_key", "unkeyed", "stale", "replayed"] {
            assert_eq!(report[cause], 0, "{name}: {report}");
        }
        assert_eq!(
            (&report["reloads"], &report["keys"][0]),
            (&3.into(), &2.into()),
            "{report}"
        );
    }
    let report = &world.report("client1")["subscriptions"][0];
    assert_eq!((&report["gaps"], &report["lost"]), (&0.into(), &0.into()), "{report}");
}

#[test]
fn an_allow_list_keeps_a_stranger_out_without_keys() {
    let world = World::new(&["server", "archive", "client1", "stranger"], 30_000);
    if world.link != "xdp" {
        eprintln!("passed over: on loopback all hosts have one address");
        return;
    }
    let address = |host: &str| world.lab.host(host).unwrap().address();
    let allow = format!(
        "allow = {{ servers = [\"{}\"], archives = [\"{}\"], clients = [\"{}/32\"] }}",
        address("server"),
        address("archive"),
        address("client1"),
    );
    attack(&world, |text| with(&allow, text), "forge");
    for name in ["server", "archive", "client1"] {
        let report = trust(&world, name);
        assert!(report["not_allowed"].as_u64() > Some(100), "{name}: {report}");
        assert_eq!(world.report(name)["cycle"]["strangers"], 0);
    }
}

/// Asks server and archive for everything, in few words, a thousand times; what they have been asked with.
fn ask_in_few_words(world: &World, session: Session, seal: Option<&mut Seal>) -> (SocketAddrV4, usize) {
    const RANGE: usize = 8;
    let host = world.lab.host("stranger").unwrap();
    let socket = host.udp_socket(0).unwrap();
    let group: SocketAddrV4 = world.stream.parse().unwrap();
    let wall = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let wall = wall.as_nanos() as u64;
    let stamp = Stamp {
        stream: seqcast_engine::stream_id(group, None),
        session,
        sequence: Seq(0),
        time: wall,
        flags: flags::ASK_SERVER | flags::ASK_ARCHIVE,
        origin: 66,
    };
    let mut frame = [0; 1000];
    let mut seal = seal;
    for _ in 0..QUESTIONS {
        let mut len = stamp.ranges(&mut frame, Kind::Nak, SeqRange::new(Seq(1), Seq(1 << 30)));
        if let Some(seal) = &mut seal {
            len = seal.seal(wall, &mut frame, len);
        }
        socket.send_to(&frame[..len], group).unwrap();
    }
    let port = socket.local_addr().unwrap().port();
    let asker = SocketAddrV4::new(host.address(), port);
    (asker, QUESTIONS * (seqcast_proto::wire::HEADER + RANGE))
}

const QUESTIONS: usize = 1_000;

#[test]
fn answers_are_no_more_than_so_many_times_the_questions_with_keys_and_without() {
    const AMPLIFICATION: usize = 256;
    for is_keyed in [false, true] {
        let world = World::new(&["server", "archive", "client1", "stranger"], 20_000);
        let Some(tap) = world.tap() else { return };
        let key = key_file(&world);
        let table = |text: &str| {
            let text = format!("{text}repair = {{ amplification = {AMPLIFICATION} }}\n");
            if is_keyed { keyed(&key, &text) } else { text }
        };
        let archive = world.start("archive", false, &table(&world.archive()));
        let roles = world
            .server(50_000, "")
            .replace("archives = 1", "archives = 0")
            .replace("rate =", "at_end = \"stay\", rate =");
        let server = world.start("server", false, &table(&roles));
        let archived = || lab::archived(&world.path("archive.d")).is_ok_and(|a| a.len() as u64 == world.size());
        until("all is stored", archived);
        let reader = seqcast_archive::Reader::open(&world.path("archive.d")).unwrap();
        let session = reader.sessions().unwrap()[0];
        let mut seal = Seal::new(seqcast_engine::keys::read_ring(&key).unwrap(), seal::CLOCK_SKEW, 0);
        let stranger = ask_in_few_words(&world, session, None);
        let holder = ask_in_few_words(&world, session, Some(&mut seal));
        // Both have got behind the questions when they have answered an honest client that came later.
        let client = if is_keyed {
            keyed(&key, &world.client("client1", false))
        } else {
            world.client("client1", false)
        };
        let client = world.start("client1", false, &client);
        world.until_delivered("client1", 100);
        for process in [client, server, archive] {
            terminate(process);
        }
        world.assert_equal("client1");
        let wire = Wire::of(tap);
        let parties = ["server", "archive"].map(|h| world.address(h));
        // Only who is believed is answered at all: with a key its holders, without one who has no seal.
        let (answered, refused) = if is_keyed {
            (holder, stranger)
        } else {
            (stranger, holder)
        };
        let (bytes, most) = (
            wire.bytes(&parties, answered.0),
            parties.len() * AMPLIFICATION * answered.1,
        );
        assert!(bytes > 100_000 && bytes <= most, "keyed {is_keyed}: {bytes} of {most}");
        assert_eq!(wire.bytes(&parties, refused.0), 0, "keyed {is_keyed}");
        let archive = &world.report("archive")["archives"][0];
        assert!(archive["limited"].as_u64() > Some(0), "keyed {is_keyed}: {archive}");
    }
}

#[test]
fn a_keyed_stream_and_an_unkeyed_part_do_not_meet_and_say_so() {
    let world = World::new(&["server", "archive"], 2_000);
    let key = key_file(&world);
    let archive = world.start("archive", false, &keyed(&key, &world.archive()));
    let server = world.start("server", false, &world.server(8_000, "linger_max_ms = 500"));
    until("the archive has said it", || {
        let log = fs::read_to_string(world.path("archive.log")).unwrap();
        log.contains("are not keyed, but the stream is")
    });
    drop(server);
    terminate(archive);
    assert!(trust(&world, "archive")["unkeyed"].as_u64() > Some(0));
    assert_eq!(world.report("archive")["archives"][0]["stored"], 0);
}

#[test]
fn key_files_that_others_can_read_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new(&["server"], 10);
    let key = key_file(&world);
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let config = world.path("x.toml");
    let text = keyed(&key, &world.server(10, ""));
    fs::write(&config, format!("[engine]\ninterface = \"lo\"\nlink = \"udp\"\n{text}")).unwrap();
    let output = Command::new(common::engine())
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && error.contains("chmod 600"), "{error}");
}

#[test]
fn the_key_command_makes_and_turns_keys() {
    let world = World::new(&["server"], 10);
    let path = world.path("k");
    let path = path.to_str().unwrap();
    assert!(seqcast(&["key", "new", path]).0);
    assert!(!seqcast(&["key", "new", path]).0, "a key is never overwritten");
    for (arguments, listed) in [
        (&["add", path][..], "1 2"),
        (&["add", path], "1 2 3"),
        (&["use", path, "3"], "3 1 2"),
        (&["remove", path, "1"], "3 2"),
    ] {
        let (done, text) = seqcast(&[&["key"], arguments].concat());
        assert!(done, "{text}");
        let (_, text) = seqcast(&["key", "list", path]);
        let ids: Vec<&str> = text.lines().filter_map(|l| l.split_whitespace().next()).collect();
        assert_eq!(ids.join(" "), format!("ID {listed}"), "{text}");
    }
    assert!(!seqcast(&["key", "use", path, "9"]).0);
    assert!(seqcast(&["key", "remove", path, "2"]).0);
    let (done, text) = seqcast(&["key", "remove", path, "3"]);
    assert!(!done && text.contains("last key"), "{text}");
}
