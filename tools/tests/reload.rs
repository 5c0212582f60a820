//! Running engines take other settings at SIGHUP, lose nothing by it, and refuse what they cannot take.
//!
//! As root the hosts are network namespaces joined by a bridge and the link is AF_XDP; otherwise
//! they are processes on loopback and the link is kernel UDP, which the tests say.

mod common;

use std::fs;
use std::process::Command;

use common::{LIMIT, World, engine, terminate, until};

/// Puts words in the place of others in an engine's file, which must be there.
fn edit(world: &World, name: &str, pairs: &[(&str, &str)]) {
    let path = world.path(&format!("{name}.toml"));
    let mut text = fs::read_to_string(&path).unwrap();
    for (from, to) in pairs {
        assert!(text.contains(from), "{from} in {text}");
        text = text.replace(from, to);
    }
    fs::write(path, text).unwrap();
}

fn log(world: &World, name: &str) -> String {
    fs::read_to_string(world.path(&format!("{name}.log"))).unwrap()
}

#[test]
fn rates_change_under_traffic_and_what_needs_a_restart_changes_nothing() {
    let world = World::new(&["server", "archive", "client1"], 40_000);
    let archive = world.start("archive", true, &world.archive());
    let mut client = world.start("client1", true, &world.client("client1", true));
    let server = world.server(2_000, "retain = \"32 MiB\"\nrate = { frames = 1000000 }");
    let mut server = world.start("server", false, &server);
    world.until_delivered("client1", 1);

    // A file that is no good, and one with keys that are fixed among those that are not.
    let good = fs::read_to_string(world.path("server.toml")).unwrap();
    edit(&world, "server", &[("retain", "retian")]);
    server.reload().unwrap();
    world.until_said("server", "unknown field `retian`");
    fs::write(world.path("server.toml"), &good).unwrap();
    edit(
        &world,
        "server",
        &[
            ("rate = 2000", "rate = 500000"),
            ("32 MiB", "64 MiB"),
            ("name = \"server\"", "name = \"other\""),
        ],
    );
    server.reload().unwrap();
    world.until_said(
        "server",
        "reload REFUSED, nothing has changed: needs a restart: [engine] name: \"server\" -> \"other\"; ",
    );
    let retain = format!("[[publish]] {} retain: 33554432 -> 67108864", world.stream);
    world.until_said("server", &retain);
    assert!(
        !log(&world, "server").contains("source.rate"),
        "{}",
        log(&world, "server")
    );

    // At 2000 a second the rest would take longer than this test may.
    fs::write(world.path("server.toml"), &good).unwrap();
    let delivered = world.delivered("client1");
    assert!(delivered * 2 < world.size(), "the old rate is in force");
    edit(
        &world,
        "server",
        &[
            ("rate = 2000", "rate = 20000"),
            ("frames = 1000000", "bytes = 50000000"),
        ],
    );
    server.reload().unwrap();
    for change in [
        "source.rate: 2000.0 -> 20000.0",
        "rate.bytes: 0 -> 50000000",
        "rate.frames: 1000000 -> 0",
    ] {
        world.until_said("server", &format!("reload: [[publish]] {} {change}", world.stream));
    }
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    world.assert_archived();
    let report = &world.report("client1")["subscriptions"][0];
    assert_eq!(report["lost"], 0, "{report}");
    assert_eq!(report["sessions_ended"], 1, "nothing was started anew: {report}");
}

#[test]
fn who_is_let_in_by_a_changed_list_gets_what_it_missed() {
    let world = World::new(&["server", "archive", "client1"], 20_000);
    if world.link != "xdp" {
        eprintln!("passed over: on loopback all hosts have one address");
        return;
    }
    let address = |host: &str| world.lab.host(host).unwrap().address();
    let allow = |roles: String| {
        format!(
            "{roles}trust = {{ allow = {{ archives = [\"{}\"], clients = [\"192.0.2.1\"] }} }}\n",
            address("archive")
        )
    };
    let mut archive = world.start("archive", false, &allow(world.archive()));
    let mut client = world.start("client1", true, &world.client("client1", true));
    let mut server = world.start("server", false, &allow(world.server(5_000, "")));
    // Its questions are not heard, and it waits in front of its first gap.
    world.until_said("archive", "`trust.allow` does not name");
    world.until_said("server", "`trust.allow` does not name");
    let mine = format!("clients = [\"{}\", \"192.0.2.0/24\"]", address("client1"));
    for (name, process) in [("archive", &mut archive), ("server", &mut server)] {
        edit(&world, name, &[("clients = [\"192.0.2.1\"]", &mine)]);
        process.reload().unwrap();
        world.until_said(name, "trust.allow.clients: [\"192.0.2.1/32\"] -> ");
    }
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("client1");
    let report = &world.report("client1")["subscriptions"][0];
    assert!(report["gaps"].as_u64() > Some(0) && report["lost"] == 0, "{report}");
}

#[test]
fn subjects_retention_and_the_log_change_while_messages_flow() {
    let world = World::new(&["server", "archive", "chooser", "client1"], 20_000);
    let mut archive = world.start("archive", false, &world.archive());
    let chooser = world.client("chooser", true) + "subjects = [\"b.*\"]\n";
    let mut chooser = world.start("chooser", false, &chooser);
    let mut client = world.start("client1", false, &world.client("client1", true));
    let server = world
        .server(8_000, "range_end = 4000")
        .replace("rate =", "subject = \"a.b\", rate =");
    let mut server = world.start("server", false, &server);
    world.until_delivered("client1", 20);
    edit(
        &world,
        "chooser",
        &[
            ("b.*", "a.*"),
            ("[[subscribe]]", "[log]\nformat = \"json\"\n[[subscribe]]"),
        ],
    );
    chooser.reload().unwrap();
    world.until_said("chooser", "subjects: [\\\"b.*\\\"] -> [\\\"a.*\\\"]");
    for process in [&mut chooser, &mut client, &mut server] {
        process.wait(LIMIT).unwrap();
    }
    world.assert_equal("client1");
    let report = &world.report("chooser")["subscriptions"][0];
    let [messages, filtered] = ["messages", "filtered"].map(|name| report[name].as_u64().unwrap());
    assert!(messages > 0 && filtered > 0, "{report}");
    assert_eq!(messages + filtered, 20_000, "{report}");
    // Each message is wanted, or not, by the old subjects or by the new ones, so the end is whole.
    let (got, all) = (
        fs::read(world.path("chooser.out")).unwrap(),
        fs::read(&world.input).unwrap(),
    );
    assert!(all.ends_with(&got), "{} of {} bytes", got.len(), all.len());

    let sessions = || {
        let reader = seqcast_archive::Reader::open(&world.path("archive.d")).unwrap();
        reader.sessions().unwrap().len()
    };
    assert_eq!(sessions(), 5);
    edit(&world, "archive", &[("dir =", "keep_sessions = 2\ndir =")]);
    archive.reload().unwrap();
    until("old sessions are gone", || sessions() == 2);
    terminate(archive);
}

#[test]
fn a_check_says_before_what_a_reload_would_do() {
    let world = World::new(&["server"], 10);
    let base = format!("[engine]\ninterface = \"lo\"\n{}", world.server(10, ""));
    let check = |new: &str| {
        let (old, new) = (world.path("old.toml"), {
            fs::write(world.path("new.toml"), new).unwrap();
            world.path("new.toml")
        });
        fs::write(&old, &base).unwrap();
        let mut command = Command::new(engine());
        command.args(["check", "--config"]).arg(new).arg("--running").arg(old);
        let output = command.output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    };
    let (good, text) = check(&base);
    assert!(good && text.contains("no key has another value"), "{text}");
    let (good, text) = check(&base.replace("rate = 10", "rate = 20"));
    assert!(
        good && text.contains("live    [[publish]]") && text.contains("10.0 -> 20.0"),
        "{text}"
    );
    let (good, text) = check(&base.replace("rate = 10", "rate = 20").replace("\"lo\"", "\"eth1\""));
    assert!(!good && text.contains("RESTART [engine] interface"), "{text}");
    assert!(
        text.contains("needs a restart: [engine] interface") && !text.contains("restart: [[publish"),
        "{text}"
    );
}
