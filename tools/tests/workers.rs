//! Engines with several workers: each stream's own, on a thread, a core and a link of its own.

mod common;

use std::fs;
use std::net::SocketAddrV4;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{LIMIT, START, World, engine, terminate, until};
use seqcast_proto::lines::Line;
use seqcast_tools::lab::{Lab, Place, Process};
use serde_json::Value;

const MESSAGES: u64 = 20_000;
const WORKER: &str = "[[worker]]\nname = \"b\"\n";
const FAULT: &str = "fault = { drop = 0.02, seed = 9 }";
/// The interface of hosts that are joined by a wire of two queues.
const WIRE: &str = "wire";

/// One of two engines: its interface, more keys of `[engine]`, and the table of worker `b`, if it has one.
struct Side<'a> {
    interface: &'a str,
    engine: &'a str,
    worker: &'a str,
}

impl<'a> Side<'a> {
    fn new(interface: &'a str, engine: &'a str, worker: &'a str) -> Side<'a> {
        Side {
            interface,
            engine,
            worker,
        }
    }
}

impl World {
    /// The same table for the second stream, on worker `b`, with other files.
    fn on_b(&self, table: &str) -> String {
        let table = table.replace(&self.stream, &self.stream_b);
        format!("{table}id = 2\nworker = \"b\"\n").replace("server.d", "server_b.d")
    }

    /// One stream of the first worker and one of worker `b`, from the same input.
    fn servers(&self, rate: u32) -> String {
        let server = self.server(rate, "").replace("archives = 1\n", "linger_ms = 2000\n");
        format!("{server}{}", self.on_b(&server))
    }

    fn clients(&self) -> String {
        format!("{}{}", self.client("a", true), self.on_b(&self.client("b", true)))
    }

    fn interface(&self) -> &str {
        self.lab.host("client").unwrap().interface()
    }

    /// Waits until what is sent to both groups reaches a host over the lines that they use.
    fn wait_members(&self, line_b: Line, host: &str) {
        self.wait_member(Line::A, host);
        let group: SocketAddrV4 = self.stream_b.parse().unwrap();
        self.lab.wait_member_on(line_b, *group.ip(), host).unwrap();
    }

    /// Runs both streams between two engines, over losses, and looks at all that was delivered.
    fn run(&self, server: &Side<'_>, client: &Side<'_>, wait: impl FnOnce()) -> Value {
        let with_worker = |side: &Side<'_>, roles: String| match side.worker {
            "" => roles.replace("worker = \"b\"\n", ""),
            worker => roles + worker,
        };
        let start = |name: &str, side: &Side<'_>, roles: String| {
            self.start_on(name, side.interface, name, side.engine, &with_worker(side, roles))
        };
        let mut client = start("client", client, self.clients());
        wait();
        let mut server = start("server", server, self.servers(40_000));
        client.wait(LIMIT).unwrap();
        server.wait(LIMIT).unwrap();
        self.assert_equal("a");
        self.assert_equal("b");
        let report = self.report("client");
        for subscription in report["subscriptions"].as_array().unwrap() {
            assert_eq!(subscription["messages"], MESSAGES, "{subscription}");
            assert_eq!(subscription["lost"], 0);
        }
        report
    }

    /// A configuration that is to be refused, and what the engine says of it.
    fn refused(&self, name: &str, config: &str) -> String {
        let path = self.path(&format!("{name}.toml"));
        fs::write(&path, config).unwrap();
        let mut command = self.lab.host("server").unwrap().command(engine());
        command.args(["run", "--config"]).arg(&path);
        let log = self.path(&format!("{name}.log"));
        let mut process = Process::spawn(name, command, &log).unwrap();
        assert!(process.wait(START).is_err(), "it ends with an error");
        until("the error is written", || {
            fs::read_to_string(&log).is_ok_and(|log| log.contains("seqcast-engine: "))
        });
        let log = fs::read_to_string(&log).unwrap();
        assert!(!log.contains("ready "), "none runs when one cannot: {log}");
        log
    }
}

/// Each of two workers has moved a stream of its own.
fn assert_both_worked(report: &Value) {
    let workers = report["workers"].as_array().unwrap();
    let received = |part: &Value| part["link"]["received"].as_u64().unwrap();
    let names: Vec<&Value> = workers.iter().map(|worker| &worker["name"]).collect();
    assert_eq!(names, ["client", "client.b"]);
    assert_eq!(received(report), workers.iter().map(received).sum::<u64>());
    for worker in workers {
        assert!(received(worker) > 100, "{worker}");
        assert_eq!(worker["link"]["misrouted"], 0, "{worker}");
    }
}

fn xdp_world(second_line: bool) -> Option<World> {
    if let Err(why) = Lab::xdp_available() {
        eprintln!("passed over: {why}");
        return None;
    }
    Some(World::on(Place::Veth, second_line, &["server", "client"], MESSAGES))
}

/// Joins the hosts by a wire of two queues beside the switch. What is sent from one of them arrives on the
/// same of the other, as on a NIC whose rules say so; a switch spreads streams as it likes.
fn xdp_world_with_two_queues() -> Option<World> {
    let world = xdp_world(false)?;
    let place = |host: &str| world.lab.host(host).unwrap();
    let ip = |host: &str, arguments: &[&str]| {
        let output = place(host).command("ip").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
    };
    let queues = ["numrxqueues", "2", "numtxqueues", "2"];
    let peer = place("client").namespace().unwrap();
    let near = [&["link", "add", "name", WIRE], &queues[..]].concat();
    let far = [&["type", "veth", "peer", "name", WIRE], &queues[..], &["netns", peer]].concat();
    ip("server", &[near, far].concat());
    for (host, address) in [("server", "10.79.0.1/24"), ("client", "10.79.0.2/24")] {
        ip(host, &["address", "add", address, "dev", WIRE]);
        ip(host, &["link", "set", "dev", WIRE, "up"]);
        let output = place(host)
            .command("ethtool")
            .args(["-K", WIRE, "tx", "off"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    Some(world)
}

#[test]
fn two_workers_share_an_interface_over_kernel_sockets() {
    let world = World::at(Place::Loopback, &["server", "client"], MESSAGES);
    let server = Side::new(world.interface(), "", WORKER);
    let worker = format!("{WORKER}fault = {{ drop = 0.02, seed = 8 }}\n");
    let client = Side::new(world.interface(), FAULT, &worker);
    let report = world.run(&server, &client, || world.wait_members(Line::A, "client"));
    assert_both_worked(&report);
    for worker in report["workers"].as_array().unwrap() {
        assert!(worker["link"]["fault_dropped"].as_u64() > Some(0), "{worker}");
    }
}

#[test]
fn each_worker_has_an_interface_and_a_core_of_its_own() {
    let Some(world) = xdp_world(true) else { return };
    let worker = format!("{WORKER}interface = \"eth2\"\ncore = \"auto\"\n");
    let server = Side::new(world.interface(), "", &worker);
    let worker = format!("{worker}fault = {{ drop = 0.02, seed = 8 }}\n");
    let client = Side::new(world.interface(), FAULT, &worker);
    let report = world.run(&server, &client, || world.wait_members(Line::B, "client"));
    assert_both_worked(&report);
    let mode = report["mode"].as_str().unwrap();
    assert_eq!(mode.matches("xdp").count(), 2, "{report}");
    assert!(report["workers"][1]["core"].is_u64(), "{report}");
}

#[test]
fn two_workers_share_the_queues_of_one_interface() {
    let Some(world) = xdp_world_with_two_queues() else {
        return;
    };
    let worker = format!("{WORKER}queues = [1]\n");
    let report = world.run(&Side::new(WIRE, "", &worker), &Side::new(WIRE, FAULT, &worker), || ());
    assert_both_worked(&report);
    let workers = report["workers"].as_array().unwrap();
    for (queue, worker) in workers.iter().enumerate() {
        let mode = worker["mode"].as_str().unwrap();
        assert!(mode.contains(&format!(" queue {queue} of ")), "{mode}");
    }
    // The one filter has a socket for each queue, and is counted once. A heartbeat may come before a worker has
    // opened its queue, or after it has closed it.
    let [first, second] = [0, 1].map(|at| &workers[at]["link"]);
    let [redirected, no_socket] =
        ["filter_redirected", "filter_no_socket"].map(|name| first[name].as_u64().expect("a number"));
    assert!(redirected > 0 && no_socket * 10 < redirected, "{first}");
    assert!(first["fault_dropped"].as_u64() > Some(0), "{first}");
    assert_eq!(second["filter_redirected"], 0, "{second}");
}

#[test]
fn one_worker_serves_two_queues_to_which_two_workers_send() {
    let Some(world) = xdp_world_with_two_queues() else {
        return;
    };
    let worker = format!("{WORKER}queues = [1]\n");
    // Nothing is lost, since what it asks leaves from queue 0 and so reaches only one of the two.
    let engine = "xdp = { queues = [0, 1] }";
    let report = world.run(&Side::new(WIRE, "", &worker), &Side::new(WIRE, engine, ""), || ());
    assert_eq!(report["workers"], Value::Null, "one worker reports as ever");
    assert_eq!(report["link"]["filter_no_socket"], 0);
    assert!(report["mode"].as_str().unwrap().contains("queues 0,1 of "), "{report}");
}

#[test]
fn what_comes_on_another_workers_queue_is_counted_and_named() {
    let Some(world) = xdp_world_with_two_queues() else {
        return;
    };
    let worker = format!("{WORKER}queues = [1]\n");
    // It sends both streams from queue 0.
    let engine = "xdp = { queues = [0, 1] }";
    let roles = without_end(&world) + &worker;
    let more = format!("counters = \"{}\"", world.path("client.counters").display());
    let client = world.start_on("client", WIRE, "client", &more, &roles);
    let roles = world.servers(1000).replace("worker = \"b\"\n", "");
    let server = world.start_on("server", WIRE, "server", engine, &roles);
    until("the counter is shown with the remedy", || {
        let top = seqcast(&["top", "--once", "--interval", "200ms"], world.dir.path());
        top.contains("frames of another worker's streams") && top.contains("ethtool -N")
    });
    world.until_delivered("a", 1);
    assert_eq!(world.delivered("b"), 0);
    terminate(client);
    terminate(server);
    let report = world.report("client");
    assert!(report["workers"][0]["link"]["misrouted"].as_u64() > Some(0), "{report}");
}

fn without_end(world: &World) -> String {
    world.clients().replace("exit_at_end = true", "exit_at_end = false")
}

#[test]
fn what_one_worker_cannot_do_ends_all_and_is_named() {
    let world = World::at(Place::Loopback, &["server", "client"], 10);
    let config = |worker: &str, servers: &str| {
        format!("[engine]\nname = \"x\"\ninterface = \"lo\"\nlink = \"udp\"\nidle = \"block\"\n{servers}{worker}")
    };
    let servers = world.servers(1000);
    let (first, second) = servers.split_at(servers.rfind("[[publish]]").unwrap());
    let gone = second.replace("input.bin", "gone.bin");
    let log = world.refused("open", &config(WORKER, &format!("{first}{gone}")));
    assert!(
        log.contains("[[worker]] b: [[publish]]") && log.contains("gone.bin"),
        "{log}"
    );
    let log = world.refused("core", &config(&format!("{WORKER}core = 100_000\n"), &servers));
    assert!(log.contains("[[worker]] b core = 100000 is not there"), "{log}");

    // One that fails while it runs takes the other along, in order.
    let dead = world
        .client("a", false)
        .replace("sink = { file", "sink = { exec = [\"false\"] } #");
    let other = world.on_b(&world.client("b", false));
    let mut client = world.start_on(
        "client",
        world.interface(),
        "client",
        "",
        &format!("{dead}{other}{WORKER}"),
    );
    let roles = world.servers(1000) + WORKER;
    let mut server = world.start_on("server", world.interface(), "server", "", &roles);
    assert!(client.wait(LIMIT).is_err(), "its sink fails");
    world.until_said("client", "seqcast-engine: [engine]: ");
    server.wait(LIMIT).unwrap();
}

#[test]
fn an_order_reaches_all_workers_and_all_are_shown() {
    let world = World::at(Place::Loopback, &["server", "client"], 40_000);
    let counters = world.path("server.counters");
    let more = format!("counters = \"{}\"", counters.display());
    let roles = world.servers(10).replace("linger_ms = 2000", "linger_ms = 10") + WORKER;
    let mut server = world.start_on("server", world.interface(), "server", &more, &roles);

    // A key that needs a restart, of one, holds back what the other could take.
    let path = world.path("server.toml");
    let good = fs::read_to_string(&path).unwrap();
    let faster = good.replace("rate = 10 ", "rate = 20 ");
    assert_eq!(good.matches("rate = 10 ").count(), 2, "{good}");
    fs::write(&path, faster.replace(WORKER, &format!("{WORKER}port = 5999\n"))).unwrap();
    server.reload().unwrap();
    world.until_said("server", "needs a restart: [[worker]] b port: 0 -> 5999");
    let log = || fs::read_to_string(world.path("server.log")).unwrap();
    assert!(!log().contains("source.rate: 10.0 -> 20.0"), "{}", log());
    fs::write(&path, faster).unwrap();
    server.reload().unwrap();
    for stream in [world.stream.clone(), format!("{} id 2", world.stream_b)] {
        world.until_said(
            "server",
            &format!("reload: [[publish]] {stream} source.rate: 10.0 -> 20.0"),
        );
    }

    // Each worker has its counters beside those of the first.
    assert!(counters.exists() && world.path("server-b.counters").exists());
    let top = seqcast(&["top", "--once", "--json", "--interval", "200ms"], world.dir.path());
    let mut names: Vec<String> = top
        .lines()
        .map(|line| {
            serde_json::from_str::<Value>(line).unwrap()["engine"]
                .as_str()
                .unwrap()
                .to_owned()
        })
        .collect();
    names.sort();
    assert_eq!(names, ["server", "server.b"], "{top}");
    let metrics = seqcast(&["metrics"], world.dir.path());
    assert!(
        metrics.contains("engine=\"server\"") && metrics.contains("engine=\"server.b\""),
        "{metrics}"
    );
    terminate(server);
    assert!(!counters.exists() && !world.path("server-b.counters").exists());
}

fn seqcast(arguments: &[&str], counters: &Path) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    let output = command
        .args(arguments)
        .arg("--counters")
        .arg(counters)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn programs_reach_each_workers_streams_at_its_own_socket() {
    let world = World::at(Place::Loopback, &["server", "client"], 10);
    let programs = format!("[programs]\nsocket = \"{}\"\n", world.path("x.sock").display());
    let table =
        |stream: &str| format!("[[publish]]\nstream = \"{stream}\"\nsource = {{ program = true }}\nlinger_ms = 10\n");
    let roles = format!(
        "{programs}{}{}{WORKER}",
        table(&world.stream),
        world.on_b(&table(&world.stream))
    );
    let server = world.start_on("server", world.interface(), "server", "", &roles);
    for (socket, own, other) in [
        ("x.sock", &world.stream, &world.stream_b),
        ("x-b.sock", &world.stream_b, &world.stream),
    ] {
        let publish = |stream: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
            command.arg("publish").arg("--socket").arg(world.path(socket));
            command.args(["--wait", "0.2", "--stream", stream]);
            command.stdin(Stdio::null()).output().unwrap()
        };
        let output = publish(own);
        assert!(output.status.success(), "{output:?}");
        let output = publish(other);
        assert!(!output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(text.contains(other.as_str()), "{text}");
    }
    terminate(server);
}
