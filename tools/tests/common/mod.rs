//! Engines on the hosts of a lab, and what they must have delivered.
// Each test file uses another part of this.
#![allow(unreachable_pub, dead_code)]

pub mod wire;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use seqcast_proto::lines::Line;
use seqcast_tools::itch;
use seqcast_tools::lab::{self, Lab, Place, Process, Spec, Why};
use serde_json::Value;
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(90);
pub const START: Duration = Duration::from_secs(20);

/// The engine's binary, which cargo builds beside this package's own.
pub fn engine() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_seqcast")).with_file_name("seqcast-engine");
    assert!(
        path.exists(),
        "{} is missing: run `cargo build -p seqcast-engine` in the same profile first",
        path.display()
    );
    path
}

/// A lab of one host named "host", unless it needs root and there is none. `found` says what is possible here.
pub fn lone_host(found: Result<(), Why>) -> Option<Lab> {
    match found {
        Ok(()) => {}
        Err(why @ Why::NotRoot) => {
            eprintln!("passed over: {why}");
            return None;
        }
        Err(why) => panic!("{why}"),
    }
    let spec = Spec {
        place: Place::Veth,
        hosts: vec!["host".to_owned()],
        mtu: 1500,
        offloads: true,
        second_line: false,
    };
    Some(Lab::new(&spec).unwrap())
}

/// Waits for a state that other processes bring about.
pub fn until(what: &str, mut state: impl FnMut() -> bool) {
    let start = Instant::now();
    while !state() {
        assert!(start.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

pub struct World {
    // Processes are started anew by name; the lab goes after them.
    pub lab: Lab,
    pub dir: TempDir,
    pub stream: String,
    /// Line B's group.
    pub stream_b: String,
    pub link: &'static str,
    pub input: PathBuf,
}

impl World {
    pub fn new(hosts: &[&str], messages: u64) -> World {
        let place = match Lab::xdp_available() {
            Ok(()) => Place::Veth,
            Err(why) => {
                eprintln!("over kernel UDP on loopback, since {why}");
                Place::Loopback
            }
        };
        World::at(place, hosts, messages)
    }

    pub fn at(place: Place, hosts: &[&str], messages: u64) -> World {
        World::on(place, false, hosts, messages)
    }

    pub fn on(place: Place, second_line: bool, hosts: &[&str], messages: u64) -> World {
        let dir = TempDir::new().unwrap();
        let input = dir.path().join("input.bin");
        let spec = itch::Spec {
            length: itch::Length::Messages(messages),
            symbols: 50,
            seed: messages,
        };
        let mut writer = seqcast_engine::feed::binaryfile::Writer::new(fs::File::create(&input).unwrap());
        let mut generator = itch::Generator::new(spec).unwrap();
        while let Some(message) = generator.next_message() {
            writer.write(message).unwrap();
        }
        writer.finish().unwrap();
        let lab = Lab::new(&Spec {
            place,
            hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
            mtu: 1500,
            offloads: place == Place::Loopback,
            second_line,
        })
        .unwrap();
        // Runs on loopback share one network: each takes a group of its own.
        let pid = std::process::id();
        let [_, _, c, d] = pid.to_be_bytes();
        let salt = dir
            .path()
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0u16, |h, b| h.wrapping_mul(31) ^ u16::from(*b));
        let port = 20_000 + salt % 20_000;
        let (stream, stream_b) = (format!("239.82.{c}.{d}:{port}"), format!("239.83.{c}.{d}:{port}"));
        let link = if place == Place::Veth { "xdp" } else { "udp" };
        World {
            lab,
            dir,
            stream,
            stream_b,
            link,
            input,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn start(&self, host: &str, fault: bool, roles: &str) -> Process {
        self.start_as(host, host, fault, roles)
    }

    pub fn start_as(&self, host: &str, name: &str, fault: bool, roles: &str) -> Process {
        let fault = if fault {
            let seed = name.bytes().map(u64::from).sum::<u64>();
            format!("fault = {{ drop = 0.02, burst_at = 700, burst_len = 150, seed = {seed} }}")
        } else {
            String::new()
        };
        let interface = self.lab.host(host).unwrap().interface();
        let process = self.start_on(host, interface, name, &fault, roles);
        if roles.contains("[[subscribe]]") || roles.contains("[[archive]]") {
            self.wait_member(Line::A, host);
        }
        process
    }

    /// Waits until what is sent over a line reaches a host.
    pub fn wait_member(&self, line: Line, host: &str) {
        let group = [&self.stream, &self.stream_b][line as usize];
        let group: std::net::SocketAddrV4 = group.parse().unwrap();
        self.lab.wait_member_on(line, *group.ip(), host).unwrap();
    }

    /// Starts an engine on an interface of a host, with more keys of `[engine]`.
    pub fn start_on(&self, host: &str, interface: &str, name: &str, more: &str, roles: &str) -> Process {
        let place = self.lab.host(host).unwrap();
        let config = format!(
            "[engine]\nname = \"{name}\"\ninterface = \"{interface}\"\nlink = \"{}\"\nidle = \"block\"\nreport = \"{}\"\n{more}\n{roles}",
            self.link,
            self.path(&format!("{name}.json")).display(),
        );
        let path = self.path(&format!("{name}.toml"));
        fs::write(&path, config).unwrap();
        let mut command = place.command(engine());
        command.args(["run", "--config"]).arg(&path);
        let mut process = Process::spawn(name, command, &self.path(&format!("{name}.log"))).unwrap();
        process.wait_line(&format!("ready {name} "), START).unwrap();
        process
    }

    pub fn server(&self, rate: u32, more: &str) -> String {
        format!(
            "[[publish]]\nstream = \"{}\"\nsource = {{ file = \"{}\", rate = {rate} }}\nstate = \"{}\"\narchives = 1\n{more}\n",
            self.stream,
            self.input.display(),
            self.path("server.d").display(),
        )
    }

    pub fn archive(&self) -> String {
        format!(
            "[[archive]]\nstream = \"{}\"\ndir = \"{}\"\n",
            self.stream,
            self.path("archive.d").display(),
        )
    }

    pub fn client(&self, name: &str, exit_at_end: bool) -> String {
        format!(
            "[[subscribe]]\nstream = \"{}\"\nfrom = \"session\"\nsink = {{ file = \"{}\" }}\nexit_at_end = {exit_at_end}\n",
            self.stream,
            self.path(&format!("{name}.out")).display(),
        )
    }

    pub fn delivered(&self, name: &str) -> u64 {
        fs::metadata(self.path(&format!("{name}.out"))).map_or(0, |m| m.len())
    }

    pub fn size(&self) -> u64 {
        fs::metadata(&self.input).unwrap().len()
    }

    /// Waits until a process has said this on standard error.
    pub fn until_said(&self, name: &str, words: &str) {
        until(&format!("{name} says `{words}`"), || {
            fs::read_to_string(self.path(&format!("{name}.log"))).is_ok_and(|log| log.contains(words))
        });
    }

    /// Waits until a client has written this share of the input.
    pub fn until_delivered(&self, name: &str, percent: u64) {
        until(&format!("{name} delivers {percent} %"), || {
            self.delivered(name) * 100 >= self.size() * percent
        });
    }

    pub fn assert_equal(&self, name: &str) {
        let got = fs::read(self.path(&format!("{name}.out"))).unwrap();
        let want = fs::read(&self.input).unwrap();
        let same = got.iter().zip(&want).take_while(|(a, b)| a == b).count();
        assert!(
            got == want,
            "{name} delivered {} of {} bytes, equal up to byte {same}; its log:\n{}",
            got.len(),
            want.len(),
            fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default(),
        );
    }

    pub fn report(&self, name: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(&format!("{name}.json"))).unwrap()).unwrap()
    }

    /// The messages of an archive in the order of sessions and numbers, framed as the input is.
    pub fn assert_archived(&self) {
        assert!(
            lab::archived(&self.path("archive.d")).unwrap() == fs::read(&self.input).unwrap(),
            "the archive holds something else"
        );
    }
}

pub fn terminate(mut process: Process) {
    process.terminate().unwrap();
    process.wait(START).unwrap();
}

/// SIGKILL, at once.
pub fn kill(process: Process) {
    drop(process);
}
