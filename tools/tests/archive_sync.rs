//! `seqcast archive sync` over the network: an archive that an engine has open fills another one.

mod common;

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use common::{LIMIT, World, terminate, until};
use seqcast_archive::{Archive, Options, Reader, SessionMeta};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::{Message, put_message};
use seqcast_tools::lab::{Place, Process};

/// Runs `seqcast archive sync` on a host; what follows the options is words.
fn sync(world: &World, host: &str, to: &Path, more: &str) -> Output {
    let place = world.lab.host(host).unwrap();
    let mut command = place.command(Path::new(env!("CARGO_BIN_EXE_seqcast")));
    command.args([
        "archive",
        "sync",
        "--stream",
        &world.stream,
        "--interface",
        place.interface(),
        "--to",
    ]);
    command.arg(to).args(more.split_whitespace());
    command.output().unwrap()
}

fn told(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// What is known of each session; of records their times of sending, messages and payloads.
fn contents(dir: &Path) -> String {
    let archive = Reader::open(dir).unwrap();
    let mut all = String::new();
    for session in archive.sessions().unwrap() {
        let mut reader = archive.session(session).unwrap();
        let (stored, lost) = (reader.stored().as_slice().to_vec(), reader.lost().as_slice().to_vec());
        let (previous, end, floor) = (reader.meta().previous, reader.end(), reader.floor().max(Seq::FIRST));
        all += &format!("{session} after {previous} from {floor}: {stored:?} lost {lost:?} {end:?}\n");
        let mut last = (0, Vec::new());
        for record in reader.in_order(Seq::FIRST) {
            let record = record.unwrap();
            // A record may come in pieces.
            if record.send_ns == last.0 {
                last.1.extend(record.block);
            } else {
                all += &format!("{} {:?}\n", last.0, last.1);
                last = (record.send_ns, record.block);
            }
        }
        all += &format!("{} {:?}\n", last.0, last.1);
        assert_eq!(reader.verify(|_| {}).unwrap().damaged, 0);
    }
    all
}

#[test]
fn an_archive_is_filled_from_a_live_one_beside_its_stream() {
    let world = World::new(&["server", "archive", "copy"], 30_000);
    let key = world.path("key");
    let made = std::process::Command::new(env!("CARGO_BIN_EXE_seqcast"))
        .args(["key", "new"])
        .arg(&key)
        .status()
        .unwrap();
    assert!(made.success());
    let trust = format!("trust = {{ key = \"{}\" }}\n", key.display());
    let archive = world.start("archive", true, &(world.archive() + &trust));
    let mut server = world.start("server", false, &world.server(10_000, &trust));
    let (from, to) = (world.path("archive.d"), world.path("copy.d"));
    let stored = || {
        let reader = Reader::open(&from).ok()?;
        let session = *reader.sessions().ok()?.last()?;
        Some(reader.session(session).ok()?.stored().total())
    };
    until("a third is there", || stored() > Some(10_000));
    let key = format!("--key {}", key.display());
    // Beside the stream: what is there by then, once.
    let first = told(&sync(&world, "copy", &to, &key));
    assert!(first.contains(" copied, 1 sessions new"), "{first}");
    let count = |dir: &Path| {
        let reader = Reader::open(dir).unwrap();
        let session = *reader.sessions().unwrap().last().unwrap();
        reader.session(session).unwrap().stored().total()
    };
    let early = count(&to);
    assert!(early > 10_000, "{early}");
    server.wait(LIMIT).unwrap();
    let second = told(&sync(&world, "copy", &to, &key));
    let rest = count(&from) - early;
    assert!(second.starts_with(&format!("{rest} messages in ")), "{rest}: {second}");
    assert_eq!(contents(&from), contents(&to));
    let third = told(&sync(&world, "copy", &to, &key));
    assert!(
        third.starts_with("0 messages in 0 records copied, 0 sessions new, 0 "),
        "{third}"
    );
    terminate(archive);
    assert_eq!(contents(&from), contents(&to));
}

const META: SessionMeta = SessionMeta {
    previous: Session::NONE,
    origin: 7,
    user: 0,
};

fn options() -> Options {
    Options {
        segment_bytes: 1 << 16,
        helper: false,
        ..Options::default()
    }
}

/// Appends records of three messages, the numbers of which are in `ranges`.
fn append(archive: &mut Archive, session: Session, ranges: &[(u32, u32)]) {
    let log = archive.session_mut(session).unwrap();
    for first in ranges.iter().flat_map(|(first, last)| (*first..*last).step_by(3)) {
        let mut block = Vec::new();
        for seq in first..first + 3 {
            let payload = [seq as u8; 200];
            let message = Message {
                subject: b"s",
                payload: &payload,
            };
            let at = block.len();
            block.resize(at + message.encoded_len(), 0);
            put_message(&mut block[at..], &message).unwrap();
        }
        log.append(Seq(first), 3, u64::from(first) * 1_000, 9, 0, &block)
            .unwrap();
    }
}

/// An archive in which about everything is missing that can be, and an engine that answers for it.
fn odd_archive(world: &World) -> Process {
    let group: std::net::SocketAddrV4 = world.stream.parse().unwrap();
    let stream = seqcast_engine::stream_id(group, None);
    let mut archive = Archive::open(&world.path("archive.d"), stream, options()).unwrap();
    let [old, mid, new] = [1_000, 1_001, 5_000].map(Session);
    archive.create_session(old, META).unwrap();
    // Far from its start, and with holes of which one is known to be lost.
    append(
        &mut archive,
        old,
        &[(1_000_000, 1_003_000), (1_003_300, 1_004_500), (1_004_800, 1_006_000)],
    );
    let log = archive.session_mut(old).unwrap();
    log.release_below(Seq(1_000_900));
    log.mark_lost(SeqRange::of(Seq(1_004_500), 300).unwrap()).unwrap();
    log.close(Seq(1_005_999), mid).unwrap();
    // Empty, and the newest one open.
    let after = |previous| SessionMeta { previous, ..META };
    archive
        .create_session(mid, after(old))
        .unwrap()
        .close(Seq(0), new)
        .unwrap();
    archive.create_session(new, after(mid)).unwrap();
    append(&mut archive, new, &[(1, 301)]);
    archive.close().unwrap();
    world.start("archive", false, &world.archive())
}

#[test]
fn only_what_is_missing_comes_and_at_the_rate_that_was_asked_for() {
    let world = World::at(Place::Loopback, &["archive", "copy"], 100);
    let archive = odd_archive(&world);
    let (from, to) = (world.path("archive.d"), world.path("copy.d"));
    let start = Instant::now();
    let all = told(&sync(&world, "copy", &to, "--rate 1000000"));
    let took = start.elapsed();
    let messages = 2_100 + 1_200 + 1_200 + 300;
    assert!(
        all.starts_with(&format!("{messages} messages in ")) && all.contains("3 sessions new, 300 messages newly"),
        "{all}"
    );
    // A megabyte of payloads, but for what may come at once after a pause.
    assert!(took > Duration::from_millis(500), "{took:?}");
    assert_eq!(contents(&from), contents(&to));

    // Half of a session, holes and a part of a record, and no other session.
    let half = world.path("half.d");
    let mut archive_of = Archive::open(&half, Reader::open(&from).unwrap().stream(), options()).unwrap();
    archive_of.create_session(Session(5_000), META).unwrap();
    append(&mut archive_of, Session(5_000), &[(4, 100), (202, 205)]);
    archive_of.close().unwrap();
    let some = told(&sync(&world, "copy", &half, "--session last"));
    assert!(
        some.starts_with("201 messages in ") && some.contains(" 0 sessions new"),
        "{some}"
    );
    let reader = Reader::open(&half).unwrap();
    assert_eq!(reader.sessions().unwrap(), [Session(5_000)]);
    assert_eq!(
        reader.session(Session(5_000)).unwrap().stored().as_slice(),
        [SeqRange::of(Seq(1), 300).unwrap()]
    );

    let unknown = sync(&world, "copy", &to, "--session 77");
    let why = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(
        !unknown.status.success() && why.contains("session 77 is not in the archive at "),
        "{why}"
    );
    terminate(archive);
    let nobody = sync(&world, "copy", &to, "");
    let why = String::from_utf8_lossy(&nobody.stderr).into_owned();
    assert!(
        !nobody.status.success() && why.contains("no archive of ") && why.contains("--archive"),
        "{why}"
    );
    let before = fs::read_dir(&to).unwrap().count();
    assert_eq!(contents(&from), contents(&to));
    assert_eq!(fs::read_dir(&to).unwrap().count(), before, "nothing is left behind");
}
