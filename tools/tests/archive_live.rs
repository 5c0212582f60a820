//! The archive of a running engine: every tool beside it while it records, what it gives up by age, what it
//! acknowledges when that must be on disk, and what an engine says of an archive that it cannot use.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::mpsc;
use std::thread;

use common::{LIMIT, World, engine, terminate, until};
use seqcast_archive::{Archive, Options, Reader, SessionMeta};
use seqcast_proto::seq::{Seq, Session, Stream};
use serde_json::Value;

/// `seqcast`, with words, then paths that may be anything.
fn seqcast(words: &str, paths: &[&Path]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    command.args(words.split_whitespace()).args(paths).output().unwrap()
}

fn told(words: &str, paths: &[&Path]) -> String {
    let output = seqcast(words, paths);
    assert!(
        output.status.success(),
        "{words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What is refused, and why.
fn refused(words: &str, paths: &[&Path]) -> String {
    let output = seqcast(words, paths);
    assert_eq!(output.status.code(), Some(1), "{words}");
    String::from_utf8(output.stderr).unwrap()
}

/// The payloads of a file in BinaryFILE framing; the message of number n is the n-th.
fn payloads(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut all = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk() {
        let (payload, rest) = rest.split_at(usize::from(u16::from_be_bytes(*length)));
        all.push(payload);
        bytes = rest;
    }
    all
}

/// The numbers of messages as lines of JSON, which ascend, each with the payload that was published under it.
fn assert_published(lines: &str, input: &[&[u8]]) -> Vec<u64> {
    let numbers: Vec<u64> = lines
        .lines()
        .map(|line| {
            let message: Value = serde_json::from_str(line).unwrap();
            let number = message["sequence"].as_u64().unwrap();
            let hex = input[number as usize - 1].iter().map(|byte| format!("{byte:02x}"));
            assert_eq!(message["payload"], hex.collect::<String>(), "number {number}");
            number
        })
        .collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "not in order, or twice");
    numbers
}

/// Every number that the newest session has.
fn stored(dir: &Path) -> Option<u64> {
    let reader = Reader::open(dir).ok()?;
    let session = *reader.sessions().ok()?.last()?;
    Some(reader.session(session).ok()?.stored().total())
}

#[test]
fn every_tool_beside_an_engine_that_records_is_right_and_disturbs_nothing() {
    const MESSAGES: u64 = 150_000;
    let world = World::new(&["server", "archive"], MESSAGES);
    let dir = &world.path("archive.d");
    let archive = world.start("archive", true, &(world.archive() + "segment = \"64 KiB\"\n"));
    let pid = archive.id();
    let feed = world.path("feed");
    let file = format!("file = \"{}\"", world.input.display());
    let from_fifo = world.server(30_000, "").replace(&file, &format!("fifo = {feed:?}"));
    let mut server = world.start("server", false, &from_fifo);
    let whole = fs::read(&world.input).unwrap();
    let input = payloads(&whole);
    until("the FIFO is made", || feed.exists());
    // The last byte is written when the tools are done, however long they take.
    let (but_last, last) = whole.split_at(whole.len() - 1);
    let (tools_done, write_last) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut feed = File::options().write(true).open(feed).unwrap();
            feed.write_all(but_last).unwrap();
            // Also when the tools have failed.
            let _: Result<(), _> = write_last.recv();
            feed.write_all(last).unwrap();
        });
        run_tools(&world, dir, pid, &input);
        drop(tools_done);
    });
    // The engine noticed nothing: all is acknowledged, recorded once, in order, and as it was sent.
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_archived();
    let (server, archive) = (world.report("server"), world.report("archive"));
    let (server, archive) = (&server["publications"][0], &archive["archives"][0]);
    assert_eq!(server["unacknowledged"], 0, "{server}");
    for none in ["missing", "lost", "full", "failed", "damaged"] {
        assert_eq!(archive[none], 0, "{none}: {archive}");
    }
    let log = fs::read_to_string(world.path("archive.log")).unwrap();
    assert!(!log.contains("ERROR"), "{log}");
    let verified = told("archive verify", &[dir]);
    assert!(verified.contains(": good; "), "{verified}");
}

/// Each tool, on the archive that process `pid` has open and records the stream in.
fn run_tools(world: &World, dir: &Path, pid: u32, input: &[&[u8]]) {
    until("something is recorded", || stored(dir) > Some(1_000));

    let before = stored(dir).unwrap();
    let listed = told("archive ls", &[dir]);
    assert_eq!(listed.lines().count(), 2, "{listed}");
    assert!(told("archive info --session last", &[dir]).contains("on disk"));
    // What was damaged for whoever looks while it is written would be said here.
    let verified = told("archive verify", &[dir]);
    assert!(verified.contains(": good; "), "{verified}");
    let lines = told("archive cat --format json", &[dir]);
    assert!(assert_published(&lines, input).len() as u64 >= before);
    let some = told("archive cat --format json --session last --from 100 --to 199", &[dir]);
    assert!(assert_published(&some, input).iter().all(|n| (100..200).contains(n)));
    let at = |nth: usize| {
        let line: Value = serde_json::from_str(lines.lines().nth(nth).unwrap()).unwrap();
        line["sent_ns"].as_u64().unwrap()
    };
    // By time: all of the frames sent from then on, and nothing sent before.
    let since = at(500);
    for play in ["archive cat", "replay --session last --stdout"] {
        let words = format!("{play} --format json --since @{since} --until @{}", at(900));
        let found = told(&words, &[dir]);
        assert_published(&found, input);
        let first: Value = serde_json::from_str(found.lines().next().unwrap()).unwrap();
        assert_eq!(first["sent_ns"], since, "{words}");
    }
    let exported = world.path("export.jsonl");
    told("archive export --format jsonl --out", &[&exported, dir]);
    assert!(assert_published(&fs::read_to_string(&exported).unwrap(), input).len() as u64 >= before);
    let capture = world.path("export.pcapng");
    told("archive export --format pcapng --out", &[&capture, dir]);
    assert!(fs::read(&capture).unwrap().starts_with(&[0x0a, 0x0d, 0x0d, 0x0a]));
    let copy = world.path("copy.d");
    told("archive sync --from", &[dir, Path::new("--to"), &copy]);
    let copied = told("archive cat --format json", &[&copy]);
    assert!(assert_published(&copied, input).len() as u64 >= before);
    assert!(told("archive prune --keep-sessions 1 --dry-run", &[dir]).starts_with("0 sessions"));
    // What changes an archive leaves one alone that an engine has, and names that engine.
    for (words, paths) in [
        ("archive prune --older-than 1s", vec![dir]),
        ("archive repair", vec![dir]),
        ("archive sync --from", vec![&copy, Path::new("--to"), dir]),
    ] {
        let why = refused(words, &paths);
        assert!(
            why.contains(&format!("is in use by process {pid}: stop it")),
            "{words}: {why}"
        );
    }
    assert!(stored(dir) < Some(input.len() as u64), "the stream is not over");
}

#[test]
fn what_is_too_old_goes_while_the_engine_runs_and_the_rest_stays() {
    let world = World::new(&["server", "archive"], 100_000);
    let dir = &world.path("archive.d");
    let keep = "segment = \"64 KiB\"\nkeep_age_s = 1\n";
    let archive = world.start("archive", false, &(world.archive() + keep));
    let server = world.start(
        "server",
        false,
        &world
            .server(1_000_000, "")
            .replace("rate =", "at_end = \"stay\", rate ="),
    );
    let floor = || {
        let reader = Reader::open(dir).ok()?;
        let session = reader.session(*reader.sessions().ok()?.last()?).ok()?;
        let last = session.stored().as_slice().last()?.last;
        Some((session.floor(), last, session.segments()))
    };
    // All of it is old a second later; only the segment that is being written to stays.
    until("all but the last segment is given up", || {
        floor().is_some_and(|(floor, last, _)| last == Seq(100_000) && floor > Seq(95_000))
    });
    let (oldest, last, _) = floor().unwrap();
    assert!(oldest <= last, "the segment being written to is gone");
    let told = told("archive verify", &[dir]);
    assert!(told.contains(": good; "), "{told}");
    terminate(server);
    terminate(archive);
    let report = &world.report("archive")["archives"][0];
    assert_eq!(
        (&report["missing"], &report["lost"]),
        (&0.into(), &0.into()),
        "{report}"
    );
}

#[test]
fn a_reserve_is_made_reported_and_used() {
    let world = World::new(&["server", "archive"], 20_000);
    let dir = &world.path("archive.d");
    let reserve = "segment = \"64 KiB\"\nreserve = \"1 MiB\"\n";
    let archive = world.start("archive", false, &(world.archive() + reserve));
    let spares = || {
        let names = fs::read_dir(dir)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name());
        names
            .filter(|name| name.to_string_lossy().starts_with("spare-"))
            .count()
    };
    until("it is made", || spares() == 16);
    let mut server = world.start("server", false, &world.server(1_000_000, ""));
    server.wait(LIMIT).unwrap();
    until("all is recorded", || stored(dir) == Some(20_000));
    until("it is made again", || spares() == 16);
    terminate(archive);
    let report = &world.report("archive")["archives"][0];
    let reserve = ["reserve_ready", "reserve_size", "reserve_refused"].map(|name| report[name].as_u64());
    assert_eq!(reserve, [Some(1 << 20), Some(1 << 20), Some(0)], "{report}");
    assert!(told("archive verify", &[dir]).contains(": good; "));
}

#[test]
fn nothing_is_acknowledged_before_it_is_on_disk_if_that_is_the_promise() {
    const MESSAGES: u64 = 20_000;
    let world = World::new(&["server", "archive"], MESSAGES);
    let dir = &world.path("archive.d");
    // Synced once a minute, and at the end: until then the kernel has what is stored, and nobody else.
    let promise = "ack = \"synced\"\nsync_ms = 60000\n";
    let archive = world.start("archive", false, &(world.archive() + promise));
    let counters = world.path("counters");
    fs::create_dir(&counters).unwrap();
    let shown = format!("counters = {:?}", counters.join("server.counters"));
    let interface = world.lab.host("server").unwrap().interface();
    let mut server = world.start_on("server", interface, "server", &shown, &world.server(200_000, ""));
    until("all is stored", || stored(dir) == Some(MESSAGES));
    let info = told("archive info --session last", &[dir]);
    assert!(
        info.contains(&format!("0 messages, up to 0; {MESSAGES} stored are not yet")),
        "{info}"
    );
    // The server keeps all of it.
    let top = told("top --once --json --interval 200ms --counters", &[&counters]);
    let top: Value = serde_json::from_str(&top).unwrap();
    let part = top["parts"]
        .as_array()
        .unwrap()
        .iter()
        .find(|part| part["part"] == "publication");
    let unacknowledged = &part.unwrap()["totals"]["unacknowledged"];
    assert_eq!(*unacknowledged, MESSAGES, "{top}");
    terminate(archive);
    server.wait(LIMIT).unwrap();
    let (server, archive) = (world.report("server"), world.report("archive"));
    assert_eq!(server["publications"][0]["acknowledged"], MESSAGES);
    for mark in ["stored_up_to", "synced_up_to"] {
        assert_eq!(archive["archives"][0][mark], MESSAGES, "{archive}");
    }
}

#[test]
fn clients_use_whichever_archive_of_the_stream_answers() {
    let world = World::new(&["server", "archive", "second", "late", "later"], 400_000);
    let roles = [world.archive(), world.archive().replace("archive.d", "second.d")];
    let first = world.start("archive", true, &roles[0]);
    let second = world.start("second", true, &roles[1]);
    // It lets go of what both have, and keeps 8 MiB of it for questions.
    let server = world.server(1_000_000, "retain = \"8 MiB\"\n");
    let server = server.replace("archives = 1", "archives = 2");
    let server = world.start("server", false, &server.replace("rate =", "at_end = \"stay\", rate ="));
    let both = [world.path("archive.d"), world.path("second.d")];
    until("both have it", || both.iter().all(|dir| stored(dir) == Some(400_000)));
    // Each has it alone, in turn.
    terminate(first);
    let late = world.start("late", false, &world.client("late", false));
    world.until_delivered("late", 100);
    terminate(late);
    let first = world.start("archive", false, &roles[0]);
    terminate(second);
    let later = world.start("later", false, &world.client("later", false));
    world.until_delivered("later", 100);
    terminate(later);
    terminate(first);
    terminate(server);
    for client in ["late", "later"] {
        world.assert_equal(client);
        let report = &world.report(client)["subscriptions"][0];
        assert!(report["repaired_archive"].as_u64() > Some(100_000), "{report}");
        assert_eq!(report["lost"], 0, "{report}");
    }
}

/// What an engine says that is to record 239.0.1.2:5000 in `dir` and cannot.
fn cannot_record(dir: &Path) -> String {
    let config = dir.with_extension("toml");
    let text = format!(
        "[engine]\nname = \"a\"\ninterface = \"lo\"\nlink = \"udp\"\ncounters = \"off\"\n[[archive]]\nstream = \"239.0.1.2:5000\"\ndir = {dir:?}\n"
    );
    fs::write(&config, text).unwrap();
    let output = Command::new(engine())
        .args(["run", "--config"])
        .arg(&config)
        .output()
        .unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn an_engine_that_cannot_use_its_archive_names_the_file_and_the_remedy() {
    const STREAM: Stream = Stream(0x0102_1388);
    let files = tempfile::tempdir().unwrap();
    let made = |name: &str, stream| {
        let dir = files.path().join(name);
        let mut archive = Archive::open(&dir, stream, Options::default()).unwrap();
        let meta = SessionMeta {
            previous: Session::NONE,
            origin: 7,
            user: 0,
        };
        archive.create_session(Session(9), meta).unwrap();
        (dir, archive)
    };
    let assert_said = |dir: &Path, file: &str, words: &[&str]| {
        let said = cannot_record(dir);
        let file = if file.is_empty() {
            dir.to_owned()
        } else {
            dir.join(file)
        }
        .display()
        .to_string();
        for wanted in words.iter().copied().chain(["[[archive]] 239.0.1.2:5000", &file]) {
            assert!(said.contains(wanted), "no `{wanted}` in: {said}");
        }
    };
    let change = |dir: &Path, file: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(dir.join(file)).unwrap();
        change(&mut bytes);
        fs::write(dir.join(file), bytes).unwrap();
    };

    let (dir, archive) = made("used", STREAM);
    let holder = format!("is in use by process {}: stop it", std::process::id());
    assert_said(&dir, "", &[holder.as_str(), "or use another directory"][..]);
    drop(archive);

    let (dir, _) = made("other", Stream(1));
    assert_said(
        &dir,
        "archive",
        &["belongs to stream", "give each stream its own directory"],
    );

    for file in ["archive", "0000000009/session"] {
        let name = file.replace('/', ".");
        let (dir, _) = made(&format!("{name}.newer"), STREAM);
        change(&dir, file, &|bytes| bytes[8] = 2);
        let remedy = "use the version that wrote it, or another directory";
        assert_said(&dir, file, &["archive format 2, this program knows 1", remedy]);

        let (dir, _) = made(&format!("{name}.damaged"), STREAM);
        change(&dir, file, &|bytes| bytes[17] ^= 1);
        assert_said(&dir, file, &["is damaged", "restore the file"]);

        let (dir, _) = made(&format!("{name}.cut"), STREAM);
        change(&dir, file, &|bytes| bytes.truncate(18));
        assert_said(&dir, file, &["restore the file"]);
    }
    let (dir, _) = made("checkpoint.newer", STREAM);
    change(&dir, "0000000009/checkpoint", &|bytes| bytes[8] = 2);
    let remedy = "use the version that wrote it, or another directory";
    assert_said(&dir, "0000000009/checkpoint", &["archive format 2", remedy]);

    let (dir, _) = made("foreign", STREAM);
    change(&dir, "archive", &|bytes| *bytes = b"something else".to_vec());
    assert_said(&dir, "archive", &[]);
    let (dir, _) = made("gone", STREAM);
    fs::remove_file(dir.join("archive")).unwrap();
    assert_said(&dir, "archive", &["missing beside sessions", "restore the file"]);
    fs::write(files.path().join("file"), b"not a directory").unwrap();
    assert_said(&files.path().join("file"), "", &[]);
}
