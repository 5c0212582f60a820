//! What an engine says to operators: as text, as JSON, to the journal, and not too often.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use common::{LIMIT, START, World, engine, terminate};
use seqcast_tools::lab::{Place, Process};
use serde_json::Value;

/// A server, an archive and a client in one process, over loopback, which has this in its `[log]`.
fn whole(messages: u64, publish: &str, log: &str) -> (World, Command) {
    let world = World::at(Place::Loopback, &["whole"], messages);
    let roles = [
        world.server(50_000, publish),
        world.archive() + "exit_at_end = true\n",
        world.client("whole", true),
    ];
    let config = format!(
        "[engine]\nname = \"whole\"\ninterface = \"lo\"\nlink = \"udp\"\nidle = \"block\"\n[log]\n{log}\n{}",
        roles.concat()
    );
    let path = world.path("whole.toml");
    fs::write(&path, config).unwrap();
    let mut command = Command::new(engine());
    command.args(["run", "--config"]).arg(path);
    (world, command)
}

/// Runs it to its end; what it has said.
fn said(world: &World, command: Command) -> String {
    let log = world.path("whole.log");
    Process::spawn("whole", command, &log).unwrap().wait(LIMIT).unwrap();
    world.assert_equal("whole");
    fs::read_to_string(log).unwrap()
}

#[test]
fn json_has_an_object_a_line_with_what_a_machine_looks_for() {
    let (world, command) = whole(500, "", "format = \"json\"");
    let text = said(&world, command);
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let find = |words: &str| {
        let found = lines.iter().find(|l| l["message"].as_str().unwrap().contains(words));
        found.unwrap_or_else(|| panic!("no {words}: {text}"))
    };
    let ready = find("ready");
    assert_eq!((&ready["engine"], &ready["level"]), (&"whole".into(), &"INFO".into()));
    assert!(ready["mode"].as_str().unwrap().starts_with("udp on lo"), "{ready}");
    let ended = find("ended with message");
    assert_eq!(ended["target"], "seqcast::client");
    assert_eq!(
        (&ended["stream"], &ended["last"]),
        (&Value::from(world.stream.clone()), &500.into())
    );
    assert!(ended["session"].as_u64() > Some(0) && ended["time"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn text_goes_to_the_journal_with_its_level_and_to_a_file_without() {
    let (world, mut command) = whole(10, "", "");
    // As systemd names the stream that it has made standard error.
    let log = fs::File::create(world.path("whole.log")).unwrap().metadata().unwrap();
    command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
    let text = said(&world, command);
    assert!(text.contains("<6>ready whole mode=udp on lo"), "{text}");
    assert!(text.lines().all(|line| line.starts_with('<')), "{text}");

    let (world, mut command) = whole(
        10,
        "",
        "file = \"x.log\"\nformat = \"full\"\nlevel = \"error,client=info\"",
    );
    command.current_dir(world.dir.path());
    assert_eq!(said(&world, command), "");
    let text = fs::read_to_string(world.path("x.log")).unwrap();
    assert!(
        text.contains(&format!(
            "INFO  seqcast::client whole: {}: joined session",
            world.stream
        )),
        "{text}"
    );
    assert!(!text.contains("ready"), "{text}");
}

#[test]
fn what_repeats_is_said_so_often_and_then_counted() {
    let (world, command) = whole(1_000, "range_end = 100", "burst = 2\ninterval_s = 3600");
    let text = said(&world, command);
    let began = text.lines().filter(|l| l.ends_with(" began")).collect::<Vec<_>>();
    assert_eq!(began.len(), 3, "{text}");
    // The end tells what was not said, though the interval is not over.
    let told = format!("whole: {}: suppressed ", world.stream);
    assert!(
        began[2].starts_with(&told) && began[2].contains(" like this: session "),
        "{text}"
    );
    let count = |line: &str| line.split(' ').nth(3).unwrap().parse::<u32>().unwrap();
    assert_eq!(count(began[2]), 1_000 / 100 - 1 - 2, "{text}");
}

#[test]
fn a_reader_that_does_not_read_holds_up_nobody() {
    let (world, mut command) = whole(100, "range_end = 20", "");
    // A pipe that few lines fill, of which nobody reads one.
    let config = world.path("whole.toml");
    let text = fs::read_to_string(&config).unwrap();
    let long = "x".repeat(1000);
    fs::write(&config, text.replace("name = \"whole\"", &format!("name = {long:?}"))).unwrap();
    let (unread, pipe) = nix::unistd::pipe().unwrap();
    nix::fcntl::fcntl(&pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
    let status = command.stderr(pipe).status().unwrap();
    assert!(status.success());
    world.assert_equal("whole");
    drop(unread);
}

#[test]
fn the_last_line_says_why_whatever_the_filter_is() {
    let (world, mut command) = whole(10, "", "");
    command.args(["--log", "off"]);
    let config = world.path("whole.toml");
    let text = fs::read_to_string(&config).unwrap().replace("\"lo\"", "\"nowhere\"");
    fs::write(&config, text).unwrap();
    let output = command.output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && error.starts_with("seqcast-engine: "),
        "{error}"
    );

    for arguments in [["--log", "inof"], ["--log", "cleint"], ["--log-format", "xml"]] {
        let (_world, mut command) = whole(10, "", "");
        let output = command.args(arguments).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && error.contains(arguments[1]), "{error}");
    }
}

#[test]
fn the_command_says_its_lines_in_the_same_ways() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
        let output = command
            .args(arguments)
            .arg("--counters")
            .arg(dir.path())
            .output()
            .unwrap();
        String::from_utf8(output.stderr).unwrap()
    };
    let top = ["top", "--once", "--interval", "100ms"];
    assert!(run(&top).starts_with("no engine shows its counters in "));
    let line: Value = serde_json::from_str(&run(&[&top[..], &["--log-format", "json"]].concat())).unwrap();
    assert_eq!(line["target"], "seqcast::tool");
    assert_eq!(run(&[&top[..], &["--log", "warn"]].concat()), "");
}

#[test]
fn engines_do_not_share_a_file_of_counters() {
    let (world, command) = whole(10, "", "");
    let config = world.path("whole.toml");
    let counters = world.path("shared.counters");
    let text = fs::read_to_string(&config).unwrap().replace("exit_at_end = true", "");
    let text = text.replace("[log]", &format!("counters = {counters:?}\n[log]"));
    fs::write(&config, &text).unwrap();
    let mut first = Process::spawn("whole", command, &world.path("whole.log")).unwrap();
    first.wait_line("ready ", START).unwrap();
    // Only the counters are the same.
    let other = format!(
        "[engine]\nname = \"other\"\ninterface = \"lo\"\nlink = \"udp\"\ncounters = {counters:?}\n{}",
        world.client("other", false)
    );
    fs::write(world.path("other.toml"), other).unwrap();
    let run = || {
        let mut command = Command::new(engine());
        command.args(["run", "--config"]).arg(world.path("other.toml"));
        command
    };
    let refused = String::from_utf8(run().output().unwrap().stderr).unwrap();
    let owner = format!("belong to process {}, which is running", first.id());
    assert!(refused.contains(&owner), "{refused}");
    assert!(counters.exists());
    // One that was killed is in nobody's way.
    drop(first);
    let mut other = Process::spawn("other", run(), &world.path("other.log")).unwrap();
    other.wait_line("ready other", START).unwrap();
    terminate(other);
    assert!(!counters.exists());
}
