//! What a client's sink has after the client was killed, was away, or delivered on arrival, with
//! the real binary: exactly what was published.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use common::{LIMIT, World, engine, kill, terminate, until};
use seqcast_engine::feed::{binaryfile, journal};
use seqcast_tools::lab::Place;
use serde_json::Value;

/// Every payload of the input, in order.
fn input(world: &World) -> Vec<Vec<u8>> {
    let mut reader = binaryfile::Reader::new(fs::File::open(&world.input).unwrap());
    let mut messages = Vec::new();
    while let Some(message) = reader.next_message().unwrap() {
        messages.push(message.to_vec());
    }
    messages
}

/// A client that keeps its position.
fn durable(world: &World, name: &str, sink: &str) -> String {
    format!(
        "[[subscribe]]\nstream = \"{}\"\nname = \"{name}\"\nstate = \"{}\"\nsync_ms = 10\nfrom = \"session\"\nexit_at_end = true\nsink = {{ {sink} }}\n",
        world.stream,
        world.path("state.d").display(),
    )
}

fn file_sink(world: &World, name: &str) -> String {
    format!("file = \"{}\"", world.path(&format!("{name}.out")).display())
}

fn log(world: &World, name: &str) -> String {
    fs::read_to_string(world.path(&format!("{name}.log"))).unwrap_or_default()
}

/// Runs an engine that must refuse to start or fail, and returns what it said.
fn fails(world: &World, host: &str, roles: &str) -> String {
    let place = world.lab.host(host).unwrap();
    let path = world.path("failing.toml");
    let text = format!(
        "[engine]\nname = \"failing\"\ninterface = \"{}\"\nlink = \"udp\"\n{roles}",
        place.interface()
    );
    fs::write(&path, text).unwrap();
    let out = place
        .command(engine())
        .args(["run", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!out.status.success());
    String::from_utf8(out.stderr).unwrap()
}

/// Kills the client each time it has got on, and starts it again.
fn run_with_kills(world: &World, name: &str, roles: &str, progress: impl Fn() -> u64, total: u64) {
    let archive = world.start("archive", true, &world.archive());
    let mut client = world.start(name, true, roles);
    let mut server = world.start("server", false, &world.server(10_000, ""));
    for percent in [10, 25, 40, 55, 70] {
        until(&format!("{name} has {percent} %"), || {
            assert!(client.try_wait().unwrap().is_none(), "{}", log(world, name));
            // A client that has confirmed nothing yet begins anew, as it should.
            world.path(&format!("state.d/{name}.position")).exists() && progress() * 100 >= total * percent
        });
        kill(client);
        client = world.start(name, true, roles);
        assert!(
            log(world, name).contains("going on behind message"),
            "{}",
            log(world, name)
        );
    }
    server.wait(LIMIT).unwrap();
    client.wait(LIMIT).unwrap();
    terminate(archive);
    let report = &world.report(name)["subscriptions"][0];
    assert_eq!(report["lost"], 0, "{report}");
}

#[test]
fn a_file_is_whole_after_its_client_was_killed_again_and_again() {
    let world = World::new(&["server", "archive", "risk1"], 40_000);
    let roles = durable(&world, "risk1", &file_sink(&world, "risk1"));
    run_with_kills(&world, "risk1", &roles, || world.delivered("risk1"), world.size());
    world.assert_equal("risk1");
}

#[test]
fn a_journal_is_whole_after_its_client_was_killed_again_and_again() {
    let world = World::new(&["server", "archive", "risk1"], 40_000);
    let path = world.path("risk1.journal");
    let roles = durable(&world, "risk1", &format!("journal = {path:?}"));
    let want = input(&world);
    let size = world.size() + 38 * want.len() as u64;
    let length = || fs::metadata(&path).map_or(0, |m| m.len());
    run_with_kills(&world, "risk1", &roles, length, size);
    let mut reader = journal::Reader::open(&path).unwrap();
    let mut last = (0, 0);
    for (n, payload) in want.iter().enumerate() {
        let item = reader.next_item().unwrap().unwrap();
        assert!(item.payload == payload, "message {n} is {item:?}");
        assert!(
            (item.session.0, item.seq.0) > last && item.time > 0,
            "{item:?} after {last:?}"
        );
        last = (item.session.0, item.seq.0);
    }
    assert!(reader.next_item().unwrap().is_none());
}

#[test]
fn a_directory_has_each_message_once_and_whole_after_kills() {
    let world = World::new(&["server", "archive", "risk1"], 12_000);
    let dir = world.path("messages");
    let roles = durable(&world, "risk1", &format!("dir = {dir:?}"));
    let want = input(&world);
    let files = || -> BTreeSet<PathBuf> {
        let entries = fs::read_dir(&dir).into_iter().flatten();
        let paths = entries.map(|e| e.unwrap().path());
        paths.filter(|p| p.extension().is_some_and(|x| x == "msg")).collect()
    };
    let count = || files().len() as u64;
    run_with_kills(&world, "risk1", &roles, count, want.len() as u64);
    let got: Vec<Vec<u8>> = files().iter().map(|p| fs::read(p).unwrap()).collect();
    assert!(got == want, "{} files for {} messages", got.len(), want.len());
    let first = files().pop_first().unwrap();
    let name = first.file_name().unwrap().to_str().unwrap().to_owned();
    assert!(name.ends_with("-0000000001.msg"), "{name}");
}

#[test]
fn a_client_that_was_away_finds_everything_in_any_archive_that_is_left() {
    let world = World::new(&["server", "archive", "spare", "risk1", "client1"], 30_000);
    let roles = durable(&world, "risk1", &file_sink(&world, "risk1"));
    let archive = world.start("archive", false, &world.archive());
    let second = world.archive().replace("archive.d", "spare.d");
    let spare = world.start("spare", false, &second);
    let both = world.server(15_000, "").replace("archives = 1", "archives = 2");
    let away = world.start("risk1", true, &roles);
    let mut other = world.start("client1", false, &world.client("client1", true));
    let server = world.start("server", false, &both);
    world.until_delivered("risk1", 20);
    // Without one it begins anew, as it should, and hears nothing of what was.
    until("its position is kept", || world.path("state.d/risk1.position").exists());
    kill(away);
    world.until_delivered("client1", 50);
    kill(server);
    let mut server = world.start("server", false, &both);
    server.wait(LIMIT).unwrap();
    other.wait(LIMIT).unwrap();
    // No server any more, one archive less, and a start to which nothing was said but where it stood.
    kill(archive);
    let mut back = world.start("risk1", true, &roles);
    back.wait(LIMIT).unwrap();
    world.assert_equal("risk1");
    let report = &world.report("risk1")["subscriptions"][0];
    assert_eq!(
        (&report["lost"], &report["sessions_ended"]),
        (&0.into(), &2.into()),
        "{report}"
    );
    assert!(report["repaired_archive"].as_u64() > Some(10_000), "{report}");
    // A further start finds that there is nothing more, from the other one.
    let archive = world.start("archive", false, &world.archive());
    terminate(spare);
    let mut again = world.start("risk1", false, &roles);
    again.wait(LIMIT).unwrap();
    world.assert_equal("risk1");
    terminate(archive);
}

#[test]
fn a_stopped_client_has_confirmed_all_that_it_wrote() {
    let world = World::new(&["server", "archive", "risk1"], 20_000);
    let roles = durable(&world, "risk1", &file_sink(&world, "risk1")).replace("sync_ms = 10", "sync_ms = 3600000");
    let archive = world.start("archive", false, &world.archive());
    let client = world.start("risk1", false, &roles);
    let mut server = world.start("server", false, &world.server(10_000, ""));
    until("some messages", || world.delivered("risk1") > 0);
    terminate(client);
    let written = world.delivered("risk1");
    let position = fs::read_to_string(world.path("state.d/risk1.position")).unwrap();
    assert!(position.contains(&format!("\nlength {written}\n")), "{position}");
    let mut client = world.start("risk1", false, &roles);
    server.wait(LIMIT).unwrap();
    client.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("risk1");
}

#[test]
fn a_second_client_and_a_changed_sink_are_refused_with_a_remedy() {
    let world = World::new(&["risk1"], 100);
    let roles = durable(&world, "risk1", &file_sink(&world, "risk1"));
    let client = world.start("risk1", false, &roles);
    let error = fails(&world, "risk1", &roles);
    assert!(error.contains("another client \"risk1\" is running"), "{error}");
    kill(client);
    let position = world.path("state.d/risk1.position");
    fs::write(&position, "nonsense\n").unwrap();
    let error = fails(&world, "risk1", &roles);
    assert!(
        error.contains("risk1.position") && error.contains("move this file away"),
        "{error}"
    );
}

#[test]
fn a_program_gets_the_stream_and_its_failure_is_named() {
    let world = World::new(&["server", "archive", "client1", "client2"], 20_000);
    let client = |command: &str| {
        format!(
            "[[subscribe]]\nstream = \"{}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ exec = [\"sh\", \"-c\", '{command}'] }}\n",
            world.stream
        )
    };
    // What the program writes last is there when the engine has ended.
    let out = world.path("client1.out");
    let copy = format!("cat > {0}.part; mv {0}.part {0}", out.display());
    let mut good = world.start("client1", true, &client(&copy));
    let archive = world.start("archive", false, &world.archive());
    let mut bad = world.start("client2", false, &client("head -c 1000 > /dev/null; exit 3"));
    let mut server = world.start("server", false, &world.server(20_000, ""));
    assert!(bad.wait(LIMIT).is_err());
    assert!(
        log(&world, "client2").contains("exit status: 3"),
        "{}",
        log(&world, "client2")
    );
    good.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
}

/// The program of a killed engine ends with its input, and holds nothing of the engine's.
#[test]
fn a_program_inherits_nothing_but_its_standard_streams() {
    let world = World::new(&["client1"], 100);
    let pid = world.path("pid");
    let roles = format!(
        "[[subscribe]]\nstream = \"{}\"\nsink = {{ exec = [\"sh\", \"-c\", 'echo $$ > {1}.part; mv {1}.part {1}; exec cat'] }}\n",
        world.stream,
        pid.display(),
    );
    let client = world.start("client1", false, &roles);
    until("the program runs", || pid.exists());
    let proc = Path::new("/proc").join(fs::read_to_string(&pid).unwrap().trim());
    until("the shell is the program", || {
        fs::read_to_string(proc.join("comm")).is_ok_and(|c| c.trim() == "cat")
    });
    // Sockets, maps and events are the engine's; files may come from whoever started the engine.
    let of_the_engine: Vec<PathBuf> = fs::read_dir(proc.join("fd"))
        .unwrap()
        .filter_map(|e| fs::read_link(e.ok()?.path()).ok())
        .filter(|to| {
            ["socket:", "anon_inode:", "/memfd:"]
                .iter()
                .any(|kind| to.to_string_lossy().starts_with(kind))
        })
        .collect();
    assert!(of_the_engine.is_empty(), "{of_the_engine:?}");
    kill(client);
    until("the program ends", || !proc.exists());
}

#[test]
fn on_arrival_each_message_comes_once_and_late_ones_are_marked() {
    let world = World::new(&["server", "archive", "client1"], 30_000);
    let out = world.path("client1.json-lines");
    let roles = format!(
        "[[subscribe]]\nstream = \"{}\"\nfrom = \"session\"\nexit_at_end = true\ndelivery = \"on-arrival\"\nsink = {{ file = {out:?}, format = \"json\" }}\n",
        world.stream,
    );
    let archive = world.start("archive", true, &world.archive());
    let mut client = world.start("client1", true, &roles);
    let mut server = world.start("server", false, &world.server(20_000, ""));
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    let mut got = BTreeMap::new();
    let mut highest = 0;
    let mut late = 0;
    for line in fs::read_to_string(&out).unwrap().lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let seq = line["sequence"].as_u64().unwrap();
        assert_eq!(line["late"], seq < highest, "{line} after {highest}");
        assert!(line["late"] == false || line["repaired"] == true, "{line}");
        late += u64::from(seq < highest);
        highest = highest.max(seq);
        let payload = match (line["payload"].as_str(), line["payload_hex"].as_str()) {
            (Some(text), None) => text.as_bytes().to_vec(),
            (None, Some(digits)) => (0..digits.len())
                .step_by(2)
                .map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap())
                .collect(),
            _ => panic!("{line}"),
        };
        assert!(got.insert(seq, payload).is_none(), "{seq} came twice");
    }
    assert!(late > 0, "the faults were in force");
    assert!(got.into_values().collect::<Vec<_>>() == input(&world));
}

#[test]
fn a_file_that_is_shorter_than_its_position_says_is_not_gone_on_with() {
    let world = World::new(&["server", "archive", "risk1"], 5_000);
    let roles = durable(&world, "risk1", &file_sink(&world, "risk1"));
    let archive = world.start("archive", false, &world.archive());
    let mut client = world.start("risk1", false, &roles);
    let mut server = world.start("server", false, &world.server(20_000, ""));
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    // What a crash left behind the position is cut off, even if it is no message.
    let out = fs::File::options().write(true).open(world.path("risk1.out")).unwrap();
    out.write_all_at(b"\xff\xffhalf", world.size()).unwrap();
    let idle = roles.replace("exit_at_end = true", "exit_at_end = false");
    let client = world.start("risk1", false, &idle);
    world.assert_equal("risk1");
    terminate(client);
    out.set_len(world.size() - 1).unwrap();
    let error = fails(&world, "risk1", &roles);
    assert!(
        error.contains("position says") && error.contains("put it back"),
        "{error}"
    );
    fs::remove_file(world.path("risk1.out")).unwrap();
    let error = fails(&world, "risk1", &roles);
    assert!(error.contains("is gone"), "{error}");
}

#[test]
fn standard_output_has_each_format() {
    let world = World::at(Place::Loopback, &["host"], 10);
    fs::write(&world.input, "EQ.US.A one\nEQ.US.B two\n three\n").unwrap();
    let formats = ["raw", "hex", "json", "lines", "subject-lines", "binaryfile"];
    let out = |format: &str| world.path(&format!("{format}.out"));
    let mut clients = formats.map(|format| {
        let config = world.path(&format!("{format}.toml"));
        let text = format!(
            "[engine]\ninterface = \"lo\"\nlink = \"udp\"\n[[subscribe]]\nstream = \"{}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ stdout = true, format = \"{format}\" }}\n",
            world.stream
        );
        fs::write(&config, text).unwrap();
        let mut command = world.lab.host("host").unwrap().command(engine());
        command.args(["run", "--config"]).arg(&config).stdin(Stdio::null());
        command.stdout(fs::File::create(out(format)).unwrap());
        let log = fs::File::create(world.path(&format!("{format}.log"))).unwrap();
        command.stderr(log).spawn().unwrap()
    });
    formats.iter().for_each(|format| world.until_said(format, "ready "));
    let server = world
        .server(1_000, "linger_ms = 1000")
        .replace("archives = 1", "archives = 0");
    let mut server = world.start(
        "host",
        false,
        &server.replace("rate =", "format = \"subject-lines\", rate ="),
    );
    for client in &mut clients {
        assert!(client.wait().unwrap().success());
    }
    server.wait(LIMIT).unwrap();
    let session = &world.report("host")["publications"][0]["session"];
    let written = |format: &str| fs::read(out(format)).unwrap();
    let text = |format: &str| String::from_utf8(written(format)).unwrap();
    assert_eq!(text("raw"), "onetwothree");
    assert_eq!(
        text("hex"),
        format!("{session} 1 6f6e65\n{session} 2 74776f\n{session} 3 7468726565\n")
    );
    assert_eq!(text("lines"), "one\ntwo\nthree\n");
    assert_eq!(text("subject-lines"), "EQ.US.A one\nEQ.US.B two\n three\n");
    assert_eq!(written("binaryfile"), b"\0\x03one\0\x03two\0\x05three");
    let lines: Vec<Value> = text("json").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let got: Vec<_> = lines
        .iter()
        .map(|l| (&l["sequence"], &l["payload"], &l["session"]))
        .collect();
    let want = [("one", 1), ("two", 2), ("three", 3)];
    for ((sequence, payload, of), (message, number)) in got.iter().zip(want) {
        assert_eq!(
            (sequence, payload, of),
            (&&Value::from(number), &&Value::from(message), &session)
        );
    }
    assert_eq!((lines.len(), &lines[0]["subject"]), (3, &"EQ.US.A".into()));
}
