//! From a stream out as MoldUDP64 and in again as another stream: with losses on every way, and with both
//! gateways killed in mid-stream, what comes out is what went in.

mod common;

use std::fs;

use common::{LIMIT, World, kill};
use seqcast_tools::lab::{Place, Process};

const MESSAGES: u64 = 40_000;

struct Bridge {
    world: World,
    variant: &'static str,
    /// The feed's groups; the second one is line B's.
    groups: [String; 2],
    port: u16,
}

impl Bridge {
    fn new(place: Option<Place>, variant: &'static str) -> Bridge {
        let hosts = ["server", "archive", "out", "in", "client"];
        let world = match place {
            Some(place) => World::at(place, &hosts, MESSAGES),
            None => World::new(&hosts, MESSAGES),
        };
        let groups = ["239.82.", "239.83."].map(|from| world.stream.replace("239.82.", from));
        let groups = groups.map(|g| g.replace("239.8", "239.9"));
        let port: u16 = world.stream.rsplit(':').next().unwrap().parse().unwrap();
        Bridge {
            world,
            variant,
            groups,
            port: port + 20_000,
        }
    }

    /// Takes the stream and publishes the feed.
    fn out(&self, more: &str) -> Process {
        let [a, b] = &self.groups;
        let state = self.world.path("out.d");
        let roles = format!(
            "[[subscribe]]\nstream = \"{}\"\nfrom = \"session\"\nexit_at_end = true\nstate = {state:?}\n\
             [subscribe.sink.mold]\ngroup = \"{a}\"\ngroup_b = \"{b}\"\nvariant = \"{}\"\nport = {}\n\
             heartbeat_ms = 20\nend_ms = 2000\nfault = {{ drop = 0.1, seed = 3 }}\n{more}\n",
            self.world.stream, self.variant, self.port
        );
        self.world.start("out", true, &roles)
    }

    /// Takes the feed and publishes it as another stream.
    fn incoming(&self, lines: usize, drop: f64) -> Process {
        let [a, b] = &self.groups;
        let asked = self.world.lab.host("out").unwrap().address();
        let group_b = if lines == 2 {
            format!("group_b = \"{b}\"\n")
        } else {
            String::new()
        };
        let roles = format!(
            "[[publish]]\nstream = \"{}\"\narchives = 1\nstate = {:?}\n\
             [publish.source.mold]\ngroup = \"{a}\"\n{group_b}variant = \"{}\"\nfrom = \"session\"\n\
             requests = [\"{asked}:{}\"]\nfault = {{ burst_at = 300, burst_len = 200, seed = 9, drop = {drop} }}\ngive_up_ms = 1000\n",
            self.world.stream_b,
            self.world.path("in.d"),
            self.variant,
            self.port,
        );
        let interface = self.world.lab.host("in").unwrap().interface();
        let process = self.world.start_on("in", interface, "in", "", &roles);
        self.wait_for(a, "in");
        process
    }

    fn wait_for(&self, group: &str, host: &str) {
        let group: std::net::SocketAddrV4 = group.parse().unwrap();
        self.world.lab.wait_member(*group.ip(), host).unwrap();
    }

    /// Takes the other stream, and keeps it.
    fn client(&self) -> Process {
        let stream = &self.world.stream_b;
        let roles = format!(
            "[[archive]]\nstream = \"{stream}\"\ndir = {:?}\nexit_at_end = true\n\
             [[subscribe]]\nstream = \"{stream}\"\nfrom = \"session\"\nexit_at_end = true\nsink = {{ file = {:?} }}\n",
            self.world.path("archive2.d"),
            self.world.path("client.out"),
        );
        let interface = self.world.lab.host("client").unwrap().interface();
        let process = self.world.start_on("client", interface, "client", "", &roles);
        self.wait_for(stream, "client");
        process
    }
}

#[test]
fn what_goes_out_as_moldudp64_comes_in_again() {
    let bridge = Bridge::new(None, "moldudp64");
    let world = &bridge.world;
    let _archive = world.start("archive", true, &world.archive());
    let mut client = bridge.client();
    let mut incoming = bridge.incoming(1, 0.05);
    let mut out = bridge.out("");
    let mut server = world.start("server", false, &world.server(20_000, ""));
    for process in [&mut server, &mut out, &mut incoming, &mut client] {
        process.wait(LIMIT).unwrap();
    }
    world.assert_equal("client");
    let sent = &world.report("out")["subscriptions"][0]["mold"];
    let got = &world.report("in")["publications"][0]["mold"];
    assert_eq!(
        (&sent["messages"], &sent["next"]),
        (&MESSAGES.into(), &(MESSAGES + 1).into()),
        "{sent}"
    );
    assert!(
        sent["ends"].as_u64() > Some(1) && sent["answers"].as_u64() > Some(0),
        "{sent}"
    );
    assert_eq!((&got["messages"], &got["lost"]), (&MESSAGES.into(), &0.into()), "{got}");
    assert!(
        got["gaps"].as_u64() > Some(5) && got["repaired"].as_u64() > Some(0),
        "the faults were in force: {got}"
    );
    // A session of the stream is one of the feed, and numbers are the same.
    assert_eq!(
        sent["session"].as_str(),
        Some(&*world.report("server")["publications"][0]["session"].to_string())
    );
}

#[test]
fn killed_gateways_lose_nothing_and_double_nothing() {
    let bridge = Bridge::new(Some(Place::Loopback), "moldudp64");
    let world = &bridge.world;
    let _archive = world.start("archive", true, &world.archive());
    let mut client = bridge.client();
    // The client of the other stream must not take the end of a killed gateway for the end of all.
    let mut incoming = bridge.incoming(2, 0.05);
    let out = bridge.out("session = \"ITCH\"");
    let mut server = world.start("server", false, &world.server(15_000, "range_end = 15000"));
    world.until_delivered("client", 20);
    kill(out);
    let mut out = bridge.out("session = \"ITCH\"");
    world.until_delivered("client", 45);
    kill(incoming);
    incoming = bridge.incoming(2, 0.05);
    world.until_delivered("client", 60);
    kill(incoming);
    kill(out);
    // On a busy machine it may have all messages by now: it listens before the end is said again.
    incoming = bridge.incoming(2, 0.05);
    out = bridge.out("session = \"ITCH\"");
    for process in [&mut server, &mut out, &mut incoming, &mut client] {
        process.wait(LIMIT).unwrap();
    }
    world.assert_equal("client");
    // One name over three sessions of the stream: numbers count on.
    let sent = &world.report("out")["subscriptions"][0]["mold"];
    assert_eq!(
        (&sent["session"], &sent["next"]),
        (&"ITCH".into(), &(MESSAGES + 1).into()),
        "{sent}"
    );
    let got = &world.report("in")["publications"][0];
    assert!(got["resumed_at"].as_u64() > Some(0), "{got}");
    assert_eq!(got["mold"]["lost"], 0, "{got}");
}

#[test]
fn moldudp_of_32_bits_works_the_same_and_a_server_that_is_away_is_said() {
    let bridge = Bridge::new(Some(Place::Loopback), "moldudp");
    let world = &bridge.world;
    let _archive = world.start("archive", true, &world.archive());
    let mut client = bridge.client();
    // Nobody answers, one line only: what was dropped is lost, and said.
    let mut incoming = bridge.incoming(1, 0.0);
    let mut out = bridge.out("requests = false");
    let mut server = world.start("server", false, &world.server(20_000, ""));
    for process in [&mut server, &mut out, &mut incoming, &mut client] {
        process.wait(LIMIT).unwrap();
    }
    let got = &world.report("in")["publications"][0]["mold"];
    let lost = got["lost"].as_u64().unwrap();
    assert!(lost > 0, "{got}");
    assert_eq!(got["messages"].as_u64(), Some(MESSAGES - lost), "{got}");
    let said = fs::read_to_string(world.path("in.log")).unwrap();
    assert!(said.contains("LOST messages"), "{said}");
    assert!(world.delivered("client") > 0 && world.delivered("client") < world.size());
}
