//! Two lines between real engines: what one loses the other brings, and one may fail.

mod common;

use std::fs;

use common::{LIMIT, World, terminate, until};
use seqcast_engine::keys;
use seqcast_proto::lines::Line;
use seqcast_tools::lab::{Lab, Place, Process};
use serde_json::Value;

const MESSAGES: u64 = 30_000;

/// Engines with an interface for each line, if that is possible here.
fn world(hosts: &[&str]) -> Option<World> {
    match Lab::xdp_available() {
        Ok(()) => Some(World::on(Place::Veth, true, hosts, MESSAGES)),
        Err(why) => {
            eprintln!("passed over: {why}");
            None
        }
    }
}

impl World {
    /// Keys of a table whose stream has two lines. Waiting long costs nothing: when both lines have
    /// passed a gap, it is asked for at once.
    fn two_lines(&self, table: &str, listen: &str) -> String {
        let lines = format!(
            "lines = {{ b = \"{}\", listen = \"{listen}\", skew_us = 200_000, silence_ms = 400 }}",
            self.stream_b
        );
        format!("{table}{lines}\n")
    }

    fn server_on_two_lines(&self, rate: u32) -> String {
        let lines = format!("lines = {{ b = \"{}\" }}", self.stream_b);
        self.server(rate, &lines)
    }

    /// Starts an engine on both interfaces of a host; each line drops a burst of its own. Bursts lie early: a
    /// server that was held up catches up in few frames.
    fn start_on_both(&self, name: &str, bursts: [(u64, u64); 2], roles: &str) -> Process {
        let [a, b] = bursts.map(|(at, len)| format!("fault = {{ burst_at = {at}, burst_len = {len} }}"));
        let more = format!("{a}\nline_b = {{ interface = \"eth2\", {b} }}");
        let process = self.start_on(name, "eth1", name, &more, roles);
        if !roles.contains("[[publish]]") {
            self.wait_member(Line::A, name);
            self.wait_member(Line::B, name);
        }
        process
    }
}

fn line<'a>(report: &'a Value, part: &str, line: Line) -> &'a Value {
    &report[part][0]["lines"][line as usize]
}

fn count(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or_else(|| panic!("{key} in {value}"))
}

const NONE: [(u64, u64); 2] = [(0, 0); 2];

#[test]
fn losses_of_one_line_come_over_the_other_without_a_question() {
    let Some(world) = world(&["server", "archive", "both", "a", "b"]) else {
        return;
    };
    let archive = world.two_lines(&world.archive(), "both");
    let archive = world.start_on_both("archive", [(200, 150), (650, 150)], &archive);
    let both = world.two_lines(&world.client("both", true), "both");
    let mut both = world.start_on_both("both", [(400, 210), (850, 260)], &both);
    let a = world.two_lines(&world.client("a", true), "a");
    let mut a = world.start_on("a", "eth1", "a", "", &a);
    world.wait_member(Line::A, "a");
    let b = world.two_lines(&world.client("b", true), "b");
    let mut b = world.start_on("b", "eth2", "b", "fault = { burst_at = 500, burst_len = 50 }", &b);
    world.wait_member(Line::B, "b");
    let mut server = world.start_on_both("server", NONE, &world.server_on_two_lines(20_000));
    for process in [&mut both, &mut a, &mut b, &mut server] {
        process.wait(LIMIT).unwrap();
    }
    terminate(archive);

    for name in ["both", "a", "b"] {
        world.assert_equal(name);
    }
    world.assert_archived();
    let report = world.report("both");
    let client = &report["subscriptions"][0];
    for key in ["naks", "gaps", "lost", "repaired_archive", "repaired_server"] {
        assert_eq!(count(client, key), 0, "{key}: {client:#}");
    }
    let [on_a, on_b] = Line::BOTH.map(|l| line(&report, "subscriptions", l));
    // A frame of data holds at least one message; up to half of those lost may be heartbeats.
    assert!(
        count(on_a, "missed") >= 105 && count(on_b, "missed") >= 130,
        "{client:#}"
    );
    assert!(count(on_a, "gaps") >= 1 && count(on_b, "gaps") >= 1, "{client:#}");
    assert!(count(on_a, "first") >= 130 && count(on_b, "first") >= 105, "{client:#}");
    assert!(count(on_a, "led") + count(on_b, "led") > 500, "{client:#}");
    assert_eq!(count(on_a, "silences") + count(on_b, "silences"), 0, "{client:#}");

    let report = world.report("archive");
    let archive = &report["archives"][0];
    for key in ["gaps", "repaired", "lost", "missing"] {
        assert_eq!(count(archive, key), 0, "{key}: {archive:#}");
    }
    assert!(count(line(&report, "archives", Line::A), "missed") >= 75, "{archive:#}");
    assert!(count(line(&report, "archives", Line::B), "missed") >= 75, "{archive:#}");
    // Who listens to B alone has asked there, and was answered.
    let report = world.report("b");
    let alone = &report["subscriptions"][0];
    assert!(
        count(alone, "repaired_archive") + count(alone, "repaired_server") >= 25,
        "{alone:#}"
    );
}

#[test]
fn a_line_that_is_cut_and_comes_back_costs_nothing_but_a_word() {
    let Some(world) = world(&["server", "archive", "both"]) else {
        return;
    };
    let archive = world.two_lines(&world.archive(), "both");
    let archive = world.start_on_both("archive", NONE, &archive);
    let both = world.two_lines(&world.client("both", true), "both");
    // What both lines lose behind the cut is asked for over line B; up to half of the frames may be heartbeats.
    let mut both = world.start_on_both("both", [(0, 0), (4_000, 60)], &both);
    let mut server = world.start_on_both("server", NONE, &world.server_on_two_lines(6_000));
    world.until_delivered("both", 5);
    world.lab.set_link(Line::A, "server", false).unwrap();
    let says = |name: &str, text: &str| {
        let log = fs::read_to_string(world.path(&format!("{name}.log"))).unwrap_or_default();
        log.matches(text).count()
    };
    for name in ["both", "archive"] {
        until(&format!("{name} says that line A is silent"), || {
            says(name, "line A is SILENT") == 1
        });
    }
    world.until_delivered("both", 80);
    world.lab.set_link(Line::A, "server", true).unwrap();
    for name in ["both", "archive"] {
        until(&format!("{name} hears line A again"), || {
            says(name, "line A is heard again") == 1
        });
    }
    both.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("both");
    world.assert_archived();
    let report = world.report("both");
    let client = &report["subscriptions"][0];
    assert_eq!(count(client, "lost"), 0, "{client:#}");
    assert!(
        count(client, "repaired_archive") + count(client, "repaired_server") >= 30,
        "{client:#}"
    );
    let on_a = line(&report, "subscriptions", Line::A);
    assert_eq!(
        (count(on_a, "silences"), on_a["silent"].as_bool()),
        (1, Some(false)),
        "{on_a}"
    );
    assert_eq!(count(line(&report, "subscriptions", Line::B), "silences"), 0);
    assert!(count(on_a, "missed") > 1_000, "{on_a}");
}

#[test]
fn a_keyed_stream_has_two_lines_as_well() {
    let Some(world) = world(&["server", "archive", "both"]) else {
        return;
    };
    let key = world.path("stream.key");
    keys::write(&key, &[keys::Entry::random(1).unwrap()], false).unwrap();
    let keyed = |table: &str| format!("{table}trust = {{ key = {key:?} }}\n");
    let archive = keyed(&world.two_lines(&world.archive(), "both"));
    let archive = world.start_on_both("archive", [(200, 150), (650, 150)], &archive);
    // Line B loses a part of what line A loses: that is repaired, under the key.
    let both = keyed(&world.two_lines(&world.client("both", true), "both"));
    let mut both = world.start_on_both("both", [(300, 900), (600, 200)], &both);
    let mut server = world.start_on_both("server", NONE, &keyed(&world.server_on_two_lines(20_000)));
    both.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("both");
    world.assert_archived();
    let report = world.report("both");
    let client = &report["subscriptions"][0];
    assert_eq!(count(client, "lost"), 0, "{client:#}");
    let repaired = count(client, "repaired_archive") + count(client, "repaired_server");
    assert!(repaired > 0 && count(client, "naks") > 0, "{client:#}");
    for l in Line::BOTH {
        let on = line(&report, "subscriptions", l);
        assert!(count(on, "first") > 0 && count(on, "missed") >= 100, "{report:#}");
    }
    for name in ["server", "archive", "both"] {
        let trust = &world.report(name)["trust"][0];
        assert!(
            count(trust, "sealed") > 0 && count(trust, "opened") > 0,
            "{name}: {trust}"
        );
        // A second copy of a frame is no replay.
        for cause in ["forged", "unkeyed", "unknown_key", "stale", "replayed"] {
            assert_eq!(count(trust, cause), 0, "{name}: {trust}");
        }
    }
}

#[test]
fn two_groups_on_one_interface_are_two_lines() {
    let world = World::at(Place::Loopback, &["server", "archive", "both"], 5_000);
    let archive = world.two_lines(&world.archive(), "both");
    let archive = world.start("archive", false, &archive);
    let both = world.two_lines(&world.client("both", true), "both");
    // Both lines pass the same faults; few frames carry the stream when the machine is busy.
    let interface = world.lab.host("both").unwrap().interface();
    let mut both = world.start_on("both", interface, "both", "fault = { drop = 0.2 }", &both);
    world.wait_member(Line::A, "both");
    let mut server = world.start("server", false, &world.server_on_two_lines(20_000));
    both.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    world.assert_equal("both");
    let report = world.report("both");
    for l in Line::BOTH {
        let on = line(&report, "subscriptions", l);
        assert!(count(on, "frames") > 0 && count(on, "missed") > 0, "{on}");
    }
}
