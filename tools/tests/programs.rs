//! Programs beside engines, in processes of their own that are killed.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use common::{START, engine, kill, terminate};
use seqcast_client::{Engine, EventKind, From, Publisher, PublisherOptions, Received, Subscriber, SubscriberOptions};
use seqcast_proto::rng::Rng;
use seqcast_tools::lab::Process;
use serde_json::Value;
use tempfile::TempDir;

const LONG: Option<Duration> = Some(Duration::from_secs(30));

/// An engine's files, and how often it was started.
struct Host {
    dir: TempDir,
    starts: u32,
}

impl Host {
    /// One that publishes, records and receives a stream for programs.
    fn new() -> Host {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::new().unwrap();
        let [_, _, c, d] = std::process::id().to_be_bytes();
        let stream = format!("239.85.{c}.{d}:{}", 22_000 + NEXT.fetch_add(1, Ordering::Relaxed));
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "[engine]\nname = \"host\"\ninterface = \"lo\"\nlink = \"udp\"\nidle = \"block\"\nreport = \"{}\"\n\
             [programs]\nsocket = \"{}\"\n\
             [[publish]]\nstream = \"{stream}\"\nstate = \"{}\"\narchives = 1\nsource = {{ program = true }}\n\
             [[archive]]\nstream = \"{stream}\"\ndir = \"{}\"\n\
             [[subscribe]]\nstream = \"{stream}\"\nsink = {{ program = true }}\n",
            path("report.json"),
            path("socket"),
            path("state"),
            path("archive")
        );
        fs::write(dir.path().join("engine.toml"), config).unwrap();
        Host { dir, starts: 0 }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&mut self) -> Process {
        self.starts += 1;
        let mut command = Command::new(engine());
        command.args(["run", "--config"]).arg(self.path("engine.toml"));
        let log = self.path(&format!("host-{}.log", self.starts));
        let mut process = Process::spawn("host", command, &log).unwrap();
        process.wait_line("ready host ", START).unwrap();
        process
    }

    fn engine(&self) -> Engine {
        Engine::at(self.path("socket"))
    }

    fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap()
    }

    /// A command of the tools, killed when dropped.
    fn tool(&self, arguments: &[&str], input: Stdio) -> Tool {
        let child = Command::new(env!("CARGO_BIN_EXE_seqcast"))
            .arg(arguments[0])
            .arg("--socket")
            .arg(self.path("socket"))
            .args(&arguments[1..])
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Tool(child)
    }
}

struct Tool(Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn publisher(engine: &Engine) -> Publisher {
    Publisher::attach(engine, &PublisherOptions::default()).unwrap()
}

fn subscriber(engine: &Engine) -> Subscriber {
    let options = SubscriberOptions {
        from: From::Session,
        ..SubscriberOptions::default()
    };
    Subscriber::attach(engine, &options).unwrap()
}

/// A message that shows whether it is whole: a number again and again, as often as it likes.
fn numbered(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + number as usize % 60)
}

fn number_of(payload: &[u8]) -> u32 {
    let number = u32::from_le_bytes(*payload.first_chunk().expect("a number"));
    assert_eq!(payload, numbered(number), "not whole");
    number
}

#[test]
fn an_engine_is_killed_under_its_programs_and_they_go_on() {
    let mut host = Host::new();
    let mut running = host.start();
    let target = host.engine();
    let done = AtomicBool::new(false);
    let sent = AtomicU32::new(0);
    let running = std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut publisher = publisher(&target);
            let mut number = 0;
            while !done.load(Ordering::Relaxed) {
                publisher.publish("", &numbered(number), LONG).unwrap();
                number += 1;
                sent.store(number, Ordering::Release);
                if number % 256 == 0 {
                    // The disk of a small machine is no match for it; the test is not about that.
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
            publisher.publish("", b"end", LONG).unwrap();
            publisher.flush(LONG).unwrap();
            number
        });
        let reader = scope.spawn(|| {
            let mut subscriber = subscriber(&target);
            let (mut next, mut again) = (0, 0);
            let mut events = Vec::new();
            loop {
                match subscriber.next(LONG).unwrap().expect("something within the time") {
                    Received::Event(event) => {
                        assert!(!matches!(event.kind, EventKind::Lost | EventKind::Missed), "{event:?}");
                        events.push(event.kind);
                    }
                    Received::Message(message) if message.payload == b"end" => return (next, again, events),
                    Received::Message(message) => {
                        let number = number_of(message.payload);
                        assert!(number <= next, "{number} instead of {next}: something is missing");
                        // What the engine had taken in its last turn comes once more, in the next session.
                        again += u32::from(number < next);
                        next = next.max(number + 1);
                    }
                }
            }
        });
        for round in 1..=3 {
            let goal = sent.load(Ordering::Acquire) + 3000;
            common::until("messages were published", || sent.load(Ordering::Acquire) >= goal);
            kill(running);
            running = host.start();
            assert_eq!(host.starts, round + 1);
        }
        let goal = sent.load(Ordering::Acquire) + 3000;
        common::until("messages were published", || sent.load(Ordering::Acquire) >= goal);
        done.store(true, Ordering::Relaxed);
        let published = writer.join().unwrap();
        let (received, again, events) = reader.join().unwrap();
        assert_eq!(received, published);
        let count = |kind| events.iter().filter(|event| **event == kind).count();
        assert_eq!((count(EventKind::EngineGone), count(EventKind::EngineBack)), (3, 3));
        // At most a turn's worth of frames each time.
        assert!(again <= 3 * 64 * 160, "{again}");
        running
    });
    terminate(running);
    assert!(!host.path("socket").exists());
}

#[test]
fn publishers_are_killed_while_they_write_and_leave_nothing_half() {
    let mut host = Host::new();
    let running = host.start();
    let target = host.engine();
    let mut reader = subscriber(&target);
    // One that nobody kills, beside them.
    let mut beside = publisher(&target);
    let input = host.path("input");
    let line = |number: u32| format!("{number} {:x<1$}", "", number as usize % 300);
    let text: String = (0..30_000).map(|number| line(number) + "\n").collect();
    fs::write(&input, text).unwrap();
    let mut rng = Rng::new(7);
    for _ in 0..8 {
        let mut killed = Some(host.tool(&["publish", &input.display().to_string()], Stdio::null()));
        let stop_at = rng.below(3000) as u32 + 1;
        let (mut expected, mut marked) = (0, false);
        // Until the other one's mark and some quiet: its lane is served in turn with the dead one's.
        loop {
            let quiet = if marked { Some(Duration::from_millis(100)) } else { LONG };
            match reader.next(quiet).unwrap() {
                None => break,
                Some(Received::Event(event)) => assert_ne!(event.kind, EventKind::Lost),
                Some(Received::Message(message)) if message.subject == b"mark" => marked = true,
                Some(Received::Message(message)) => {
                    assert_eq!(String::from_utf8_lossy(message.payload), line(expected));
                    expected += 1;
                    if expected == stop_at {
                        killed = None;
                        beside.publish("mark", b"", LONG).unwrap();
                    }
                }
            }
        }
        assert!(killed.is_none() && marked && expected >= stop_at);
    }
    terminate(running);
    let programs = &host.report()["programs"];
    assert_eq!(
        (&programs["broken"], &programs["attached"]),
        (&Value::from(0), &Value::from(10))
    );
}

#[test]
fn subscribers_are_killed_and_the_others_do_not_notice() {
    let mut host = Host::new();
    let running = host.start();
    let target = host.engine();
    let mut reader = subscriber(&target);
    let mut writer = publisher(&target);
    let mut rng = Rng::new(11);
    let mut number = 0;
    for _ in 0..8 {
        let mut victims: Vec<_> = (0..3)
            .map(|_| host.tool(&["subscribe", "--from", "session"], Stdio::null()))
            .collect();
        for _ in 0..3 {
            for _ in 0..rng.below(2000) {
                writer.publish("", &numbered(number), LONG).unwrap();
                number += 1;
            }
            victims.pop();
        }
    }
    writer.publish("", b"end", LONG).unwrap();
    let mut next = 0;
    loop {
        match reader.next(LONG).unwrap().expect("something within the time") {
            Received::Event(event) => assert_ne!(event.kind, EventKind::Lost),
            Received::Message(message) if message.payload == b"end" => break,
            Received::Message(message) => {
                assert_eq!(number_of(message.payload), next);
                next += 1;
            }
        }
    }
    assert_eq!(next, number);
    terminate(running);
    assert_eq!(host.report()["programs"]["broken"], 0);
}

#[test]
fn a_name_is_one_engines_own_and_is_taken_over_from_a_dead_one() {
    let mut host = Host::new();
    let first = host.start();
    let refusal = |host: &Host| {
        let other = fs::read_to_string(host.path("engine.toml")).unwrap();
        // Another engine, but for the socket's name.
        let other = other
            .replace("/state\"", "/state2\"")
            .replace("/archive\"", "/archive2\"");
        let path = host.path("other.toml");
        fs::write(&path, other).unwrap();
        let output = Command::new(engine())
            .args(["run", "--config"])
            .arg(&path)
            .output()
            .unwrap();
        (
            output.status.code(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (status, said) = refusal(&host);
    assert!(status == Some(1) && said.contains("another engine listens"), "{said}");
    drop(publisher(&host.engine()));
    kill(first);
    assert!(host.path("socket").exists(), "a killed engine leaves its name");
    let second = host.start();
    drop(publisher(&host.engine()));
    terminate(second);
    fs::write(host.path("socket"), "mine").unwrap();
    let (status, said) = refusal(&host);
    assert!(status == Some(1) && said.contains("no socket"), "{said}");
    assert_eq!(fs::read(host.path("socket")).unwrap(), b"mine");
}

#[test]
fn the_commands_publish_and_subscribe_in_every_format() {
    let mut host = Host::new();
    let running = host.start();
    let formats: [(&str, &[u8]); 5] = [
        ("lines", b"one\ntwo\n\nfour\n"),
        ("subject-lines", b"a.b one\nmd.eq two\n c\nx d e\n"),
        ("hex", b"00ff\n01\n7f80\nab\n"),
        ("json", b"{\"subject\":\"a\",\"payload\":\"x\"}\n{\"payload_hex\":\"ff00\"}\n{\"payload\":\"\"}\n{\"payload\":\"y\"}\n"),
        ("binaryfile", b"\0\x01a\0\x02bc\0\0\0\x03def"),
    ];
    for (format, input) in formats {
        let path = host.path("input");
        fs::write(&path, input).unwrap();
        let out = host.path("out");
        let path_text = |path: &Path| path.display().to_string();
        let mut listener = host.tool(
            &[
                "subscribe",
                "--count",
                "4",
                "--format",
                format,
                "--out",
                &path_text(&out),
            ],
            Stdio::null(),
        );
        // It has its place once the file is there.
        common::until("it listens", || out.exists());
        let mut speaker = host.tool(
            &["publish", "--format", format, "--rate", "10000"],
            Stdio::from(fs::File::open(&path).unwrap()),
        );
        assert!(speaker.0.wait().unwrap().success());
        assert!(listener.0.wait().unwrap().success());
        let got = fs::read(&out).unwrap();
        match format {
            "hex" => {
                let fields: Vec<_> = got
                    .split(|b| *b == b'\n')
                    .filter_map(|l| l.split(|b| *b == b' ').nth(2))
                    .collect();
                assert_eq!(fields, [&b"00ff"[..], b"01", b"7f80", b"ab"]);
            }
            "json" => {
                let lines: Vec<Value> = got
                    .split(|b| *b == b'\n')
                    .filter(|l| !l.is_empty())
                    .map(|l| serde_json::from_slice(l).unwrap())
                    .collect();
                assert_eq!(lines.len(), 4);
                assert_eq!((&lines[0]["subject"], &lines[0]["payload"]), (&"a".into(), &"x".into()));
                assert_eq!(lines[1]["payload_hex"], "ff00");
            }
            _ => assert_eq!(
                String::from_utf8_lossy(&got),
                String::from_utf8_lossy(input),
                "{format}"
            ),
        }
        fs::remove_file(&out).unwrap();
    }
    let mut nobody = host.tool(&["publish", "--stream", "239.1.1.1:9"], Stdio::null());
    assert_eq!(nobody.0.wait().unwrap().code(), Some(1));
    terminate(running);
}
