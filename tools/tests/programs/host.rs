//! An engine of a host of its own, and programs beside it.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use seqcast_client::{Engine, From, Publisher, PublisherOptions, Subscriber, SubscriberOptions};
use seqcast_tools::lab::Process;
use serde_json::Value;
use tempfile::TempDir;

use crate::common::{START, engine};

pub(crate) const LONG: Option<Duration> = Some(Duration::from_secs(30));

/// An engine's files, and how often it was started.
pub(crate) struct Host {
    dir: TempDir,
    pub(crate) starts: u32,
}

impl Host {
    /// One that publishes, records and receives a stream for programs.
    pub(crate) fn new() -> Host {
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

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn start(&mut self) -> Process {
        self.starts += 1;
        let mut command = Command::new(engine());
        command.args(["run", "--config"]).arg(self.path("engine.toml"));
        let log = self.path(&format!("host-{}.log", self.starts));
        let mut process = Process::spawn("host", command, &log).unwrap();
        process.wait_line("ready host ", START).unwrap();
        process
    }

    pub(crate) fn engine(&self) -> Engine {
        Engine::at(self.path("socket"))
    }

    pub(crate) fn report(&self) -> Value {
        serde_json::from_slice(&fs::read(self.path("report.json")).unwrap()).unwrap()
    }

    /// A command of the tools, killed when dropped.
    pub(crate) fn tool(&self, arguments: &[&str], input: Stdio) -> Tool {
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

pub(crate) struct Tool(pub(crate) Child);

impl Drop for Tool {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn publisher(engine: &Engine) -> Publisher {
    Publisher::attach(engine, &PublisherOptions::default()).unwrap()
}

pub(crate) fn subscriber(engine: &Engine) -> Subscriber {
    let options = SubscriberOptions {
        from: From::Session,
        ..SubscriberOptions::default()
    };
    Subscriber::attach(engine, &options).unwrap()
}

/// A message that shows whether it is whole: a number again and again, as often as it likes.
pub(crate) fn numbered(number: u32) -> Vec<u8> {
    number.to_le_bytes().repeat(1 + number as usize % 60)
}

pub(crate) fn number_of(payload: &[u8]) -> u32 {
    let number = u32::from_le_bytes(*payload.first_chunk().expect("a number"));
    assert_eq!(payload, numbered(number), "not whole");
    number
}
