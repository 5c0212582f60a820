//! Counters of running engines as `seqcast top` and `seqcast metrics` show them.

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use common::{LIMIT, engine, kill, terminate, until};
use seqcast_tools::lab::Process;
use serde_json::Value;
use tempfile::TempDir;

/// An engine that publishes lines, records and receives them.
struct Place {
    dir: TempDir,
    lines: PathBuf,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().unwrap();
        let lines = dir.path().join("lines");
        let text: String = (0..5_000).map(|n| format!("message {n}\n")).collect();
        fs::write(&lines, text).unwrap();
        Place { dir, lines }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, name: &str, port: u16) -> Process {
        let roles = format!(
            "[programs]\n\
             [[publish]]\nstream = \"239.81.7.7:{port}\"\nsource = {{ file = \"{lines}\", format = \"lines\", rate = 20000, at_end = \"stay\" }}\n\
             [[archive]]\nstream = \"239.81.7.7:{port}\"\ndir = \"{archive}\"\n\
             [[subscribe]]\nstream = \"239.81.7.7:{port}\"\nfrom = \"session\"\nsink = {{ file = \"{out}\" }}\n",
            lines = self.lines.display(),
            archive = self.path(&format!("{name}.archive")).display(),
            out = self.path(&format!("{name}.out")).display(),
        );
        self.start_with(name, "", &roles)
    }

    /// An engine with more keys of `[engine]`, and these roles.
    fn start_with(&self, name: &str, more: &str, roles: &str) -> Process {
        let counters = self.path("counters").join(name).with_extension("counters");
        let text = format!(
            "[engine]\nname = \"{name}\"\ninterface = \"lo\"\nlink = \"udp\"\nidle = \"block\"\ncounters = {counters:?}\n{more}\n{roles}"
        );
        fs::create_dir_all(self.path("counters")).unwrap();
        let config = self.path(&format!("{name}.toml"));
        fs::write(&config, text).unwrap();
        let mut command = Command::new(engine());
        command.args(["run", "--config"]).arg(&config);
        let mut process = Process::spawn(name, command, &self.path(&format!("{name}.log"))).unwrap();
        process.wait_line("ready ", LIMIT).unwrap();
        process
    }

    fn seqcast(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_seqcast"));
        command.args(arguments).arg("--counters").arg(self.path("counters"));
        command.output().unwrap()
    }

    /// What `top` says of all engines.
    fn top(&self) -> Vec<Value> {
        let output = self.seqcast(&["top", "--once", "--json", "--interval", "200ms"]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn metrics(&self) -> String {
        String::from_utf8(self.seqcast(&["metrics"]).stdout).unwrap()
    }
}

/// The part of an engine.
fn part<'a>(engine: &'a Value, name: &str) -> &'a Value {
    let parts = engine["parts"].as_array().unwrap();
    parts
        .iter()
        .find(|part| part["part"] == name)
        .unwrap_or_else(|| panic!("no {name} in {engine}"))
}

#[test]
fn a_running_engine_is_seen_and_a_killed_one_is_named() {
    let place = Place::new();
    let (one, two) = (place.start("one", 5101), place.start("two", 5102));
    until("all is delivered and stored", || {
        place.top().iter().all(|engine| {
            let delivered = &part(engine, "subscription")["totals"]["messages"];
            *delivered == 5_000 && part(engine, "archive")["totals"]["stored"] == 5_000
        })
    });
    let engines = place.top();
    assert_eq!(engines.len(), 2);
    let first = &engines[0];
    assert_eq!((&first["engine"], &first["alive"]), (&"one".into(), &true.into()));
    assert!(first["mode"].as_str().unwrap().starts_with("udp on lo"), "{first}");
    assert_eq!(part(first, "publication")["stream"], "239.81.7.7:5101");
    assert_eq!(part(first, "publication")["totals"]["messages"], 5_000);
    assert!(part(first, "cycle")["rates"]["turns"].as_f64() > Some(0.0), "{first}");
    assert!(
        part(first, "cycle")["rates"]["asleep_ns"].as_f64() > Some(1e8),
        "it sleeps nearly all the time: {first}"
    );

    let metrics = place.metrics();
    let line = "seqcast_subscription_messages_total{engine=\"one\",stream=\"239.81.7.7:5101\"} 5000";
    assert!(metrics.contains(line), "{metrics}");
    let count = "seqcast_subscription_latency_live_seconds_count{engine=\"two\",stream=\"239.81.7.7:5102\"} 5000";
    assert!(metrics.contains(count), "{metrics}");
    for zero in [
        "seqcast_trust_not_allowed_total{engine=\"one\",stream=\"239.81.7.7:5101\"} 0",
        "seqcast_programs_attached_total{engine=\"two\"} 0",
    ] {
        assert!(metrics.contains(zero), "{metrics}");
    }

    kill(two);
    let engines = place.top();
    assert_eq!(engines[1]["alive"], false);
    let warning = engines[1]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("process is gone"), "{warning}");
    assert!(place.metrics().contains("seqcast_up{engine=\"two\""));
    // The next engine clears up after it.
    let three = place.start("three", 5103);
    let names: Vec<_> = place.top().iter().map(|engine| engine["engine"].clone()).collect();
    assert_eq!(names, ["one", "three"]);
    terminate(one);
    terminate(three);
    assert_eq!(fs::read_dir(place.path("counters")).unwrap().count(), 0);
}

#[test]
fn who_is_asked_how_full_lanes_are_and_what_feeds_carry_is_seen() {
    let place = Place::new();
    let total = |engine: &str, of: &str, name: &str| {
        let engines = place.top();
        let engine = engines.iter().find(|e| e["engine"] == engine).expect("its counters");
        part(engine, of)["totals"][name].as_u64().expect(name)
    };
    let lines = &place.lines;
    // A client that loses frames asks the archive, which names it.
    let client = place.start_with(
        "client",
        "fault = { drop = 0.1, seed = 4 }",
        &format!(
            "[[subscribe]]\nstream = \"239.81.7.7:5106\"\nfrom = \"session\"\nsink = {{ file = {:?} }}\n",
            place.path("client.out")
        ),
    );
    let one = place.start("one", 5106);
    until("the client has all", || {
        total("client", "subscription", "messages") == 5_000
    });
    until("both have counted the same questions", || {
        let engines = place.top();
        let (client, one) = (&engines[0], &engines[1]);
        let asked = part(client, "subscription")["asked"].as_array().unwrap().clone();
        let naks: u64 = asked.iter().map(|peer| peer["naks"].as_u64().unwrap()).sum();
        assert_eq!(part(client, "subscription")["totals"]["naks"], naks);
        let from: u64 = ["archive", "publication"]
            .iter()
            .flat_map(|role| part(one, role)["peers"].as_array().unwrap())
            .map(|peer| peer["naks"].as_u64().unwrap())
            .sum();
        // Some may have been lost on purpose.
        naks > 0 && from > 0 && from <= naks
    });
    assert!(
        place
            .metrics()
            .contains("seqcast_subscription_naks_to_total{engine=\"client\",stream=\"239.81.7.7:5106\",peer=\"")
    );
    let output = place.seqcast(&["top", "--once"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("NAKs to ") && text.contains("NAKs from "), "{text}");
    terminate(one);
    terminate(client);

    // A source that is faster than its stream may be waits in its lane.
    let slow = place.start_with(
        "slow",
        "",
        &format!(
            "[[publish]]\nstream = \"239.81.7.7:5107\"\nrate = {{ frames = 1 }}\n\
             source = {{ file = {lines:?}, format = \"lines\", at_end = \"stay\" }}\n"
        ),
    );
    until("messages wait in the lane", || {
        total("slow", "publication", "lane_used") > 10_000
    });
    let [lanes, used, size, fullest] =
        ["lanes", "lane_used", "lane_size", "lane_fullest"].map(|name| total("slow", "publication", name));
    assert!(
        lanes == 1 && used <= size && fullest <= used * 100 / size,
        "{lanes} {used} {size} {fullest}"
    );
    // In order it would send what waits, a frame a second.
    kill(slow);

    // A feed, out and in.
    let feed = "group = \"239.81.7.9:5109\"";
    let incoming = place.start_with(
        "in",
        "",
        &format!(
            "[[publish]]\nstream = \"239.81.7.7:5110\"\n[publish.source.mold]\n{feed}\nfrom = \"session\"\nrequests = [\"127.0.0.1:5111\"]\n"
        ),
    );
    let out = place.start_with(
        "out",
        "",
        &format!(
            "[[publish]]\nstream = \"239.81.7.7:5108\"\nsource = {{ file = {lines:?}, format = \"lines\", rate = 50000, at_end = \"stay\" }}\n\
             [[subscribe]]\nstream = \"239.81.7.7:5108\"\nfrom = \"session\"\n[subscribe.sink.mold]\n{feed}\nport = 5111\nheartbeat_ms = 20\n"
        ),
    );
    until("all is in again", || total("in", "feed_in", "messages") == 5_000);
    assert_eq!(total("in", "feed_in", "lost"), 0);
    // Its thread says now and then how things stand.
    until("all is out", || total("out", "feed_out", "messages") == 5_000);
    until("heartbeats are counted", || total("out", "feed_out", "heartbeats") > 0);
    assert!(total("in", "feed_in", "packets_a") > 0);
    assert!(
        place
            .metrics()
            .contains("seqcast_feed_out_packets_total{engine=\"out\",stream=\"239.81.7.7:5108\"}")
    );
    terminate(out);
    terminate(incoming);
}

/// A program of Debian's package `prometheus`, installed or only unpacked by `scripts/setup --test`; or nothing.
fn of_prometheus(program: &str) -> Option<PathBuf> {
    let unpacked = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/prometheus");
    let places = [Path::new("/"), Path::new(unpacked)].map(|root| root.join("usr/bin").join(program));
    let found = places.into_iter().find(|path| path.exists());
    if found.is_none() {
        eprintln!("passed over: no {program}; scripts/setup --test");
    }
    found
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let Some(promtool) = of_prometheus("promtool") else {
        return;
    };
    let place = Place::new();
    let engine = place.start("one", 5104);
    let metrics = place.metrics();
    terminate(engine);
    let mut check = Command::new(promtool);
    check
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut check = check.spawn().unwrap();
    check.stdin.take().unwrap().write_all(metrics.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Ends a program with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of this machine that nobody uses.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// All queries of the dashboard.
fn queries(dashboard: &Value, all: &mut Vec<String>) {
    match dashboard {
        Value::Object(fields) => {
            all.extend(fields.get("expr").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| queries(value, all));
        }
        Value::Array(values) => values.iter().for_each(|value| queries(value, all)),
        _ => {}
    }
}

#[test]
fn every_query_of_the_dashboard_finds_something_in_a_real_prometheus() {
    let Some(prometheus) = of_prometheus("prometheus") else {
        return;
    };
    let place = Place::new();
    let engine = place.start("one", 5105);
    let (ours, theirs) = (free_port(), free_port());
    let mut serve = Command::new(env!("CARGO_BIN_EXE_seqcast"));
    serve
        .args(["metrics", "--listen", &format!("127.0.0.1:{ours}"), "--counters"])
        .arg(place.path("counters"));
    let _serving = Running(serve.stderr(Stdio::null()).spawn().unwrap());
    let config = place.path("prometheus.yml");
    let text = format!(
        "global: {{ scrape_interval: 200ms, scrape_timeout: 200ms }}\n\
         scrape_configs: [{{ job_name: seqcast, static_configs: [{{ targets: ['127.0.0.1:{ours}'] }}] }}]\n"
    );
    fs::write(&config, text).unwrap();
    let mut command = Command::new(prometheus);
    command.arg(format!("--config.file={}", config.display()));
    command.arg(format!("--storage.tsdb.path={}", place.path("tsdb").display()));
    command.arg(format!("--web.listen-address=127.0.0.1:{theirs}"));
    let log = fs::File::create(place.path("prometheus.log")).unwrap();
    let _running = Running(command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap());

    let ask = |query: &str| -> Option<Value> {
        let plain = |byte: u8| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        };
        let query: String = query.bytes().map(plain).collect();
        let mut stream = TcpStream::connect(("127.0.0.1", theirs)).ok()?;
        stream.set_read_timeout(Some(LIMIT)).ok()?;
        write!(stream, "GET /api/v1/query?query={query} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    };
    let finds = |query: &str| {
        let answer = ask(query)?;
        assert_ne!(answer["status"], "error", "{query}: {answer}");
        Some(!answer["data"]["result"].as_array()?.is_empty())
    };
    // Rates need two samples.
    until("Prometheus has samples", || {
        finds("rate(seqcast_cycle_turns_total[1m]) > 0") == Some(true)
    });
    let text = include_str!("../package/grafana.json");
    let mut all = Vec::new();
    queries(&serde_json::from_str(text).unwrap(), &mut all);
    assert!(all.len() >= 12, "{}", all.len());
    for query in &all {
        let query = query.replace("$engine", ".*").replace("$__rate_interval", "1m");
        until(&query, || finds(&query) == Some(true));
    }
    terminate(engine);
}
