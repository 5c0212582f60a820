//! A whole run in a lab: one server, one archive, some clients, and the proof that every client
//! delivered what was published.
//!
//! The first part is the contract with `seqcast-engine`: the configuration that it is started
//! with, and the line that it prints when it receives.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use seqcast_engine::feed::binaryfile::Writer;
use seqcast_engine::report::Report;
use seqcast_proto::lines::Line;
use serde::Serialize;

use super::command::poll;
use super::outcome::{ClientOutcome, Contents, Outcome, rate_of};
use super::{Error, Host, Lab, Place, Process, Spec, interrupt};
use crate::itch;

/// How engines move frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Link {
    /// AF_XDP.
    Xdp,
    /// Kernel UDP sockets.
    Udp,
}

impl Link {
    /// As configurations name it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Link::Xdp => "xdp",
            Link::Udp => "udp",
        }
    }
}

/// The configuration of one engine, as TOML.
#[derive(Serialize)]
struct Config<'a> {
    engine: EngineConfig<'a>,
    #[serde(flatten)]
    role: Role<'a>,
}

/// What an engine does; each is a list, since an engine can do several things.
#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Role<'a> {
    Publish([Publish<'a>; 1]),
    Subscribe([Subscribe<'a>; 1]),
    Archive([Archive<'a>; 1]),
}

#[derive(Serialize)]
struct EngineConfig<'a> {
    name: &'a str,
    interface: &'a str,
    link: Link,
    mtu: u16,
    report: &'a Path,
    /// Blocks when there is nothing to do: a lab has more engines than cores.
    idle: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line_b: Option<SecondLine<'a>>,
}

/// The interface of line B.
#[derive(Serialize)]
struct SecondLine<'a> {
    interface: &'a str,
    mtu: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<Fault>,
}

/// The group of line B.
#[derive(Clone, Copy, Serialize)]
struct Lines {
    #[serde(skip_serializing_if = "Option::is_none")]
    b: Option<SocketAddrV4>,
}

/// Losses on purpose, on the receiving side.
#[derive(Clone, Copy, Serialize)]
struct Fault {
    drop: f64,
    burst_at: u64,
    burst_len: u64,
    seed: u64,
}

#[derive(Serialize)]
struct Publish<'a> {
    stream: SocketAddrV4,
    lines: Lines,
    source: Messages<'a>,
    state: &'a Path,
    archives: u32,
}

#[derive(Serialize)]
struct Subscribe<'a> {
    stream: SocketAddrV4,
    lines: Lines,
    from: &'static str,
    sink: Messages<'a>,
    exit_at_end: bool,
}

#[derive(Serialize)]
struct Archive<'a> {
    stream: SocketAddrV4,
    lines: Lines,
    dir: &'a Path,
}

/// Where messages come from or go to.
#[derive(Serialize)]
struct Messages<'a> {
    file: &'a Path,
    format: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
}

impl<'a> Messages<'a> {
    fn binaryfile(file: &'a Path, rate: Option<u64>) -> Self {
        Messages {
            file,
            format: "binaryfile",
            rate,
        }
    }
}

/// The start of the line that an engine prints when it receives.
pub(super) fn ready_line(name: &str) -> String {
    format!("ready {name} ")
}

/// What to publish.
#[derive(Clone, Debug)]
pub enum Input {
    /// The messages of a BinaryFILE.
    File(PathBuf),
    /// A made ITCH 5.0 session.
    Made {
        /// Its length in messages.
        messages: u64,
        /// Which one.
        seed: u64,
    },
}

/// A run to make.
#[derive(Clone, Debug)]
pub struct Job {
    /// The program `seqcast-engine`.
    pub engine: PathBuf,
    /// What to publish.
    pub input: Input,
    /// Messages per second, above 0; as fast as it goes if not given.
    pub rate: Option<u64>,
    /// Share of datagrams that each client and the archive lose at random, from 0.0 to below 1.0.
    pub drop: f64,
    /// Datagrams that each client loses in one go; 0 for none.
    pub burst: u64,
    /// How many clients, above 0.
    pub clients: u8,
    /// What hosts are.
    pub place: Place,
    /// How engines move frames.
    pub link: Link,
    /// Send the stream over two lines; each loses on its own.
    pub two_lines: bool,
    /// MTU in bytes.
    pub mtu: u16,
    /// How long the run may take once all are ready; if not given, twice what the rate asks for
    /// and 30 s more.
    pub limit: Option<Duration>,
    /// An empty directory for everything that the run writes.
    pub directory: PathBuf,
}

/// How long an engine may take to start, and the archive to end.
const STEP_LIMIT: Duration = Duration::from_secs(20);
/// The rate that a run without one is at least believed to have, in messages per second.
const SLOWEST: u64 = 20_000;

impl Job {
    /// Makes the run. `progress` gets a line for each step.
    ///
    /// # Errors
    /// When the job is impossible, the lab cannot be made, an engine fails, or the time is over;
    /// the error shows the last lines of the engine's log. That clients deliver something else is
    /// not an error but an outcome.
    pub fn run(&self, progress: &mut dyn FnMut(&str)) -> Result<Outcome> {
        self.check()?;
        let input_file = self.input_file()?;
        let input = Contents::of(&input_file)?;
        ensure!(
            !input.truncated,
            "{} ends inside a message, after {} whole ones",
            input_file.display(),
            input.messages
        );
        progress(&format!("input: {input}"));

        let clients: Vec<String> = (1..=self.clients).map(|i| format!("client{i}")).collect();
        let mut names = vec!["server".to_owned(), "archive".to_owned()];
        names.extend_from_slice(&clients);
        let lab = Lab::new(&Spec {
            place: self.place,
            hosts: names,
            mtu: self.mtu,
            offloads: self.link == Link::Udp,
            second_line: self.two_lines,
        })?;
        for host in lab.hosts() {
            let place = host.namespace().unwrap_or("this machine");
            progress(&format!("{}: {} in {place}", host.name(), host.address()));
        }

        let stream = self.stream();
        let mut archive = self.start_archive(lab.host("archive")?, stream)?;
        let mut receivers = Vec::with_capacity(clients.len());
        for (name, index) in clients.iter().zip(0..) {
            let host = lab.host(name)?;
            receivers.push(self.start_client(host, stream, index, input.messages)?);
        }
        for engine in [&mut archive].into_iter().chain(&mut receivers) {
            let ready = ready_line(engine.name());
            progress(&engine.wait_line(&ready, STEP_LIMIT)?);
            lab.wait_member(*stream.ip(), engine.name())?;
            if let Some(b) = self.lines(stream).b {
                lab.wait_member_on(Line::B, *b.ip(), engine.name())?;
            }
        }

        progress(&format!("publishing on {stream}"));
        let start = Instant::now();
        let limit = self.limit.unwrap_or_else(|| {
            let seconds = 2 * input.messages / self.rate.unwrap_or(SLOWEST);
            Duration::from_secs(30 + seconds)
        });
        let server = self.start_server(lab.host("server")?, stream, &input_file)?;
        receivers.push(server);
        wait_all(&mut receivers, &mut archive, limit)?;
        let seconds = start.elapsed().as_secs_f64();
        archive.terminate()?;
        archive.wait(STEP_LIMIT)?;

        let client = |name: String| {
            let delivered = self.path(&name, "out");
            let report = self.report(&name)?;
            ClientOutcome::new(name, &input_file, &input, &delivered, report)
        };
        Ok(Outcome {
            place: self.place,
            link: self.link,
            seconds,
            rate_asked: self.rate,
            rate_reached: rate_of(&self.path("archive", "d")),
            server: self.report("server")?,
            archive: self.report("archive")?,
            archive_bytes: tree_size(&self.path("archive", "d")).context("cannot measure what the archive holds")?,
            clients: clients.into_iter().map(client).collect::<Result<_>>()?,
            input,
        })
    }

    fn check(&self) -> Result<()> {
        ensure!(
            (0.0..1.0).contains(&self.drop),
            "the share to drop must be from 0 to below 1, not {}",
            self.drop
        );
        ensure!(self.clients > 0, "a run needs at least one client");
        ensure!(self.rate != Some(0), "at a rate of 0 nothing would be published");
        let mut entries =
            fs::read_dir(&self.directory).with_context(|| format!("cannot use {}", self.directory.display()))?;
        ensure!(
            entries.next().is_none(),
            "{} is not empty; a run keeps its files in a directory of its own",
            self.directory.display()
        );
        Ok(())
    }

    /// The file to publish, as an absolute path.
    fn input_file(&self) -> Result<PathBuf> {
        match &self.input {
            Input::File(path) => path
                .canonicalize()
                .with_context(|| format!("cannot read {}", path.display())),
            &Input::Made { messages, seed } => {
                let path = self.path("input", "bin");
                let generator = itch::Generator::new(itch::Spec {
                    length: itch::Length::Messages(messages),
                    symbols: 300,
                    seed,
                })?;
                write_session(generator, &path).with_context(|| format!("cannot write {}", path.display()))?;
                Ok(path)
            }
        }
    }

    /// The stream. Runs on loopback share one network, so each takes a group and port by its pid.
    fn stream(&self) -> SocketAddrV4 {
        match self.place {
            Place::Veth => SocketAddrV4::new(Ipv4Addr::new(239, 81, 0, 1), 5000),
            Place::Loopback => {
                let pid = std::process::id();
                let [_, _, high, low] = pid.to_be_bytes();
                let port = 10_000 + (pid % 20_000) as u16;
                SocketAddrV4::new(Ipv4Addr::new(239, 81, high, low), port)
            }
        }
    }

    /// Line B's group: the next one.
    fn lines(&self, stream: SocketAddrV4) -> Lines {
        let next = Ipv4Addr::from_bits(stream.ip().to_bits() ^ 1 << 16);
        Lines {
            b: self.two_lines.then_some(SocketAddrV4::new(next, stream.port())),
        }
    }

    /// Where the file of one host with this extension is.
    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.directory.join(format!("{name}.{extension}"))
    }

    fn start_server(&self, host: &Host, stream: SocketAddrV4, input: &Path) -> Result<Process> {
        let role = Role::Publish([Publish {
            stream,
            lines: self.lines(stream),
            source: Messages::binaryfile(input, self.rate),
            state: &self.path("server", "d"),
            archives: 1,
        }]);
        self.start(host, role, None)
    }

    fn start_archive(&self, host: &Host, stream: SocketAddrV4) -> Result<Process> {
        let dir = &self.path("archive", "d");
        let lines = self.lines(stream);
        let fault = (self.drop > 0.0).then_some(Fault {
            drop: self.drop,
            burst_at: 0,
            burst_len: 0,
            seed: 1,
        });
        self.start(host, Role::Archive([Archive { stream, lines, dir }]), fault)
    }

    /// Client `index` loses its burst of datagrams early in the run. The bursts of neighbours
    /// overlap by half, so that some messages are missed by one client and some by several.
    fn start_client(&self, host: &Host, stream: SocketAddrV4, index: u64, messages: u64) -> Result<Process> {
        let fault = (self.drop > 0.0 || self.burst > 0).then_some(Fault {
            drop: self.drop,
            burst_at: messages / 100 + index % 3 * self.burst / 2,
            burst_len: self.burst,
            seed: 2 + index,
        });
        let sink = self.path(host.name(), "out");
        let role = Role::Subscribe([Subscribe {
            stream,
            lines: self.lines(stream),
            from: "session",
            sink: Messages::binaryfile(&sink, None),
            exit_at_end: true,
        }]);
        self.start(host, role, fault)
    }

    fn start(&self, host: &Host, role: Role, fault: Option<Fault>) -> Result<Process> {
        let config = Config {
            engine: EngineConfig {
                name: host.name(),
                interface: host.interface(),
                link: self.link,
                mtu: self.mtu,
                report: &self.path(host.name(), "json"),
                idle: "block",
                fault,
                line_b: host.second_interface().map(|interface| SecondLine {
                    interface,
                    mtu: self.mtu,
                    // Other losses than on line A, with as many.
                    fault: fault.map(|f| Fault {
                        burst_at: f.burst_at + 2 * f.burst_len,
                        seed: f.seed + 1000,
                        ..f
                    }),
                }),
            },
            role,
        };
        let path = self.path(host.name(), "toml");
        let text = toml::to_string(&config).context("a path is not UTF-8")?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        let mut command = host.command(&self.engine);
        command.arg("run").arg("--config").arg(&path);
        Ok(Process::spawn(host.name(), command, &self.path(host.name(), "log"))?)
    }

    fn report(&self, name: &str) -> Result<Report> {
        let path = self.path(name, "json");
        let text = fs::read_to_string(&path).with_context(|| format!("{name} left no report in {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("the report of {name} in {}", path.display()))
    }
}

/// Waits until all of `engines` have ended well, while `archive` must go on.
fn wait_all(engines: &mut [Process], archive: &mut Process, limit: Duration) -> Result<()> {
    let waited = poll(
        || "the run to end".to_owned(),
        limit,
        || {
            if let Some(status) = archive.try_wait()? {
                return Err(archive.ended(status));
            }
            let mut running = false;
            for engine in &mut *engines {
                match engine.try_wait()? {
                    Some(status) if !status.success() => return Err(engine.ended(status)),
                    Some(_) => {}
                    None => running = true,
                }
            }
            Ok((!running).then_some(()))
        },
    );
    if let Err(error @ Error::Timeout { .. }) = waited {
        let mut text = error.to_string();
        for engine in engines {
            if engine.try_wait()?.is_none() {
                text += &format!("\n{} still runs; its last lines:\n", engine.name());
                text += &engine.log_tail();
            }
        }
        text += &format!("\nthe archive's last lines:\n{}", archive.log_tail());
        bail!(text);
    }
    Ok(waited?)
}

/// Writes a made session as a BinaryFILE.
pub(super) fn write_session(mut generator: itch::Generator, path: &Path) -> Result<()> {
    let mut writer = Writer::new(File::create(path)?);
    let mut written = 0u64;
    while let Some(message) = generator.next_message() {
        writer.write(message)?;
        written += 1;
        interrupt::check_every(written)?;
    }
    Ok(writer.finish().map(drop)?)
}

/// The bytes of all files in a directory and those below it; 0 if there is none.
pub(super) fn tree_size(directory: &Path) -> io::Result<u64> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(0),
        other => other?,
    };
    let mut bytes = 0;
    for entry in entries {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() {
            tree_size(&entry.path())?
        } else {
            metadata.len()
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job() -> Job {
        Job {
            engine: PathBuf::from("/bin/seqcast-engine"),
            input: Input::Made {
                messages: 10_000,
                seed: 1,
            },
            rate: Some(50_000),
            drop: 0.01,
            burst: 400,
            clients: 1,
            place: Place::Veth,
            link: Link::Xdp,
            two_lines: false,
            mtu: 1500,
            limit: None,
            directory: PathBuf::from("/run"),
        }
    }

    #[test]
    fn impossible_jobs_are_refused_before_anything_starts() {
        let empty = tempfile::tempdir().unwrap();
        let refused = |change: fn(&mut Job)| {
            let mut job = job();
            job.directory = empty.path().to_owned();
            change(&mut job);
            format!("{:#}", job.run(&mut |_| ()).unwrap_err())
        };
        assert!(refused(|job| job.drop = 1.0).contains("not 1"));
        assert!(refused(|job| job.clients = 0).contains("at least one client"));
        assert!(refused(|job| job.rate = Some(0)).contains("rate of 0"));
        assert!(refused(|job| job.directory = "/proc".into()).contains("not empty"));
        assert!(refused(|job| job.input = Input::File("/no/file".into())).contains("/no/file"));
    }
}
