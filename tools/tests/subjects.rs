//! Subjects with the real binary: streams by route, clients by subject, losses and kills. What each
//! client writes is what a search of the input finds.

mod common;

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};

use common::{LIMIT, World, kill, terminate};
use seqcast_engine::feed::binaryfile;
use seqcast_tools::lab::{Place, Process};

/// Two streams and what goes where.
struct Routes {
    world: World,
    equities: String,
    rest: String,
}

impl Routes {
    fn new(place: Option<Place>, hosts: &[&str], lines: &str) -> Routes {
        let world = match place {
            Some(place) => World::at(place, hosts, 1000),
            None => World::new(hosts, 1000),
        };
        fs::write(&world.input, lines).unwrap();
        let first: SocketAddrV4 = world.stream.parse().unwrap();
        let [_, _, c, d] = first.ip().octets();
        let second = SocketAddrV4::new(Ipv4Addr::new(239, 83, c, d), first.port() + 1);
        Routes {
            equities: world.stream.clone(),
            rest: second.to_string(),
            world,
        }
    }

    fn tables(&self) -> String {
        format!(
            "[[route]]\nsubjects = [\"EQ.>\"]\nstream = \"{}\"\n[[route]]\nsubjects = [\"FX.>\", \"NEWS\"]\nstream = \"{}\"\n",
            self.equities, self.rest
        )
    }

    fn server(&self, rate: u32) -> String {
        format!(
            "{}[[publish]]\nstate = \"{}\"\narchives = 1\nsource = {{ file = \"{}\", format = \"subject-lines\", rate = {rate} }}\n",
            self.tables(),
            self.world.path("server.d").display(),
            self.world.input.display(),
        )
    }

    fn archive(&self) -> String {
        let one = |stream: &str, name: &str| {
            let dir = self.world.path(name);
            format!("[[archive]]\nstream = \"{stream}\"\ndir = \"{}\"\n", dir.display())
        };
        one(&self.equities, "equities.d") + &one(&self.rest, "rest.d")
    }

    fn client(&self, name: &str, keys: &str) -> String {
        format!(
            "{}[[subscribe]]\n{keys}\nfrom = \"session\"\nexit_at_end = true\nsink = {{ file = \"{}\", format = \"subject-lines\" }}\n",
            self.tables(),
            self.world.path(&format!("{name}.out")).display(),
        )
    }

    /// Starts an engine and waits until it has joined `stream`, unless it only publishes.
    fn start(&mut self, name: &str, stream: &str, fault: bool, roles: &str) -> Process {
        self.world.stream = stream.into();
        self.world.start(name, fault, roles)
    }

    fn written(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.world.path(&format!("{name}.out"))).unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

/// Lines with subjects of four kinds, and payloads of all lengths.
fn lines(count: usize) -> String {
    let line = |i: usize| {
        let subject = match i % 7 {
            0 | 3 => format!("EQ.US.S{:02}", i % 50),
            1 => format!("EQ.DE.S{:02}", i % 50),
            2 => format!("FX.EURUSD.{}", ["SPOT", "1M"][i / 7 % 2]),
            4 => format!("FX.US.S{:02}", i % 50),
            5 => "NEWS".into(),
            _ => format!("EQ.US.S{:02}.BOOK", i % 50),
        };
        format!("{subject} {i} {}\n", "x".repeat(i % 90))
    };
    (0..count).map(line).collect()
}

/// The lines of `text` whose subject is wanted.
fn search(text: &str, wanted: impl Fn(&[&str]) -> bool) -> Vec<String> {
    let is_wanted = |line: &&str| {
        let (subject, _) = line.split_once(' ').unwrap();
        wanted(&subject.split('.').collect::<Vec<_>>())
    };
    text.lines().filter(is_wanted).map(str::to_owned).collect()
}

#[test]
fn each_client_gets_what_it_asked_for_from_the_streams_that_have_it() {
    let input = lines(40_000);
    let hosts = ["server", "archive", "equities", "spot", "both"];
    let mut routes = Routes::new(None, &hosts, &input);
    let (first, second) = (routes.equities.clone(), routes.rest.clone());
    let archive = routes.start("archive", &second, true, &routes.archive());
    let by_stream = format!("stream = \"{first}\"\nsubjects = [\"EQ.US.*\"]");
    let clients = [
        ("equities", &first, by_stream.as_str()),
        ("spot", &second, "subjects = [\"FX.*.SPOT\"]"),
        ("both", &second, "subjects = [\"*.US.*\", \"FX.EURUSD.>\"]"),
    ]
    .map(|(name, stream, keys)| routes.start(name, stream, true, &routes.client(name, keys)));
    let server = routes.start("server", &first, false, &routes.server(20_000));
    // A server that is killed goes on behind what each of its streams has.
    common::until("a part is delivered", || routes.world.delivered("equities") > 300_000);
    kill(server);
    let mut server = routes.start("server", &first, false, &routes.server(20_000));
    for mut client in clients {
        client.wait(LIMIT).unwrap();
    }
    server.wait(LIMIT).unwrap();
    terminate(archive);

    assert!(routes.written("equities") == search(&input, |s| matches!(s, ["EQ", "US", _])));
    assert!(routes.written("spot") == search(&input, |s| matches!(s, ["FX", _, "SPOT"])));
    // Streams have no common order: each is searched for by itself.
    let both = routes.written("both").join("\n");
    let wanted = |s: &[&str]| matches!(s, [_, "US", _] | ["FX", "EURUSD", ..]);
    for stream in [["EQ"].as_slice(), &["FX", "NEWS"]] {
        let got = search(&both, |s| stream.contains(&s[0]));
        assert!(
            got == search(&input, |s| stream.contains(&s[0]) && wanted(s)),
            "{stream:?}"
        );
    }
    let streams = [("equities", 1), ("spot", 1), ("both", 2)];
    for (name, count) in streams {
        let report = routes.world.report(name);
        let subscriptions = report["subscriptions"].as_array().unwrap();
        assert_eq!(subscriptions.len(), count, "{name}");
        let sum = |key: &str| subscriptions.iter().map(|s| s[key].as_u64().unwrap()).sum::<u64>();
        assert_eq!(sum("lost"), 0, "{name}");
        assert!(sum("gaps") > 0, "{name}: the faults were in force");
        assert_eq!(sum("messages"), routes.written(name).len() as u64, "{name}");
        let carried = |s: &[&str]| match name {
            "equities" => s[0] == "EQ",
            "spot" => s[0] != "EQ",
            _ => true,
        };
        let all = search(&input, carried).len() as u64;
        assert_eq!(
            sum("messages") + sum("filtered"),
            all,
            "{name}: all of its streams, nothing else"
        );
    }
}

#[test]
fn a_subject_without_a_route_ends_the_source_loudly() {
    let input = "EQ.A 1\nFX.B 2\nCM.OIL 3\nEQ.A 4\n";
    let mut routes = Routes::new(Some(Place::Loopback), &["host"], input);
    let second = routes.rest.clone();
    let roles = routes.archive() + &routes.client("host", "subjects = [\">\"]");
    let roles =
        roles.replace("dir =", "exit_at_end = true\ndir =") + &routes.server(1000).replace(&routes.tables(), "");
    let mut whole = routes.start("host", &second, false, &roles);
    let error = whole.wait(LIMIT).unwrap_err().to_string();
    assert!(error.contains("message 3") && error.contains("\"CM.OIL\""), "{error}");
    let written = routes.written("host");
    assert_eq!(written.len(), 2, "both streams ended in order");
}

#[test]
fn a_durable_client_with_a_filter_goes_on_after_a_kill() {
    let world = World::new(&["server", "archive", "client1"], 40_000);
    let archive = world.start("archive", false, &world.archive());
    let roles = format!(
        "{}state = \"{}\"\nsync_ms = 5\nsubjects = [\"ITCH.E.*\", \"ITCH.P.*\"]\n",
        world.client("client1", true),
        world.path("client.d").display(),
    );
    let client = world.start("client1", true, &roles);
    let server = world
        .server(20_000, "")
        .replace("rate =", "subject_from = \"itch\", rate =");
    let mut server = world.start("server", false, &server);
    let mut reader = binaryfile::Reader::new(fs::File::open(&world.input).unwrap());
    let mut want = binaryfile::Writer::new(Vec::new());
    while let Some(message) = reader.next_message().unwrap() {
        if matches!(message[0], b'E' | b'P') {
            want.write(message).unwrap();
        }
    }
    let want = want.finish().unwrap();
    let part = want.len() as u64 / 3;
    common::until("a third is delivered", || world.delivered("client1") > part);
    kill(client);
    let mut client = world.start("client1", true, &roles);
    client.wait(LIMIT).unwrap();
    server.wait(LIMIT).unwrap();
    terminate(archive);
    assert!(fs::read(world.path("client1.out")).unwrap() == want);
    let report = &world.report("client1")["subscriptions"][0];
    assert!(report["filtered"].as_u64() > Some(0), "{report}");
}
