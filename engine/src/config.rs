//! The configuration file of one engine (TOML). Unknown keys are refused with their line.
//!
//! `docs/configuration.md` shows every key with its unit, range and default.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};

use seqcast_proto::subject::Pattern;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::feed::Format;
use crate::feed::item::SinkFormat;
use crate::link::{Attach, Bind};

mod change;
mod lines;
mod log;
mod mold;
mod programs;
mod route;
mod trust;
mod worker;

pub use change::{Change, changes};
pub use lines::{Lines, Listen, Outgoing, Second};
pub use log::Log;
pub use mold::{MoldSink, MoldSource, MoldVariant, OnLoss};
pub use programs::Programs;
pub use route::Route;
pub use trust::{Allow, Net, Trust};
pub use worker::{Core, Part, Worker};

/// Why a configuration cannot be used.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The text is not TOML, or not a configuration; names line and column.
    #[error("configuration {path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        message: String,
    },
    /// A value makes no sense.
    #[error("configuration: {0}")]
    Invalid(String),
}

/// A whole configuration.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The process and its interface.
    pub engine: Engine,
    /// What is said to operators.
    #[serde(default)]
    pub log: Log,
    /// Programs beside the engine.
    pub programs: Option<Programs>,
    /// Which streams carry which subjects.
    #[serde(default)]
    pub route: Vec<Route>,
    /// Threads beside the engine's first, each with streams of its own.
    #[serde(default)]
    pub worker: Vec<Worker>,
    /// Streams that this engine publishes. A table without a stream has become one for each
    /// stream of the routes.
    #[serde(default)]
    pub publish: Vec<Publish>,
    /// Streams that this engine receives. A table without a stream has become one for each stream
    /// that its subjects may be on.
    #[serde(default)]
    pub subscribe: Vec<Subscribe>,
    /// Streams that this engine records.
    #[serde(default)]
    pub archive: Vec<Archive>,
}

impl Config {
    /// An engine without a stream.
    #[must_use]
    pub fn of(engine: Engine) -> Config {
        Config {
            engine,
            log: Log::default(),
            programs: None,
            route: Vec::new(),
            worker: Vec::new(),
            publish: Vec::new(),
            subscribe: Vec::new(),
            archive: Vec::new(),
        }
    }
}

/// How frames move.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkKind {
    /// AF_XDP where it works, otherwise kernel sockets; the engine says which and why.
    #[default]
    Auto,
    /// AF_XDP or nothing.
    Xdp,
    /// Kernel UDP sockets.
    Udp,
}

/// What a core does while nothing is to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Idle {
    /// Spin when the engine has a core of its own and there are at least four, otherwise block.
    #[default]
    Auto,
    /// Look again at once: lowest latency, a whole core.
    Spin,
    /// Spin for a short while, then yield, then block.
    Backoff,
    /// Sleep in the kernel until a frame, a message or a timer is due.
    Block,
}

/// What becomes of the engine's capabilities once its link is open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Privileges {
    /// They are dropped; root keeps its access to files.
    #[default]
    Drop,
    /// They are kept.
    Keep,
}

impl Idle {
    /// What an engine does whose thread is pinned or not. `auto` spins on a core of its own where at
    /// least four are there, so that the rest of the machine keeps running; otherwise it blocks.
    #[must_use]
    pub fn in_force(self, pinned: bool) -> Idle {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        match self {
            Idle::Auto if pinned && cores >= 4 => Idle::Spin,
            Idle::Auto => Idle::Block,
            chosen => chosen,
        }
    }
}

/// `[engine]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Engine {
    /// Name in logs and reports.
    #[serde(default = "default_name")]
    pub name: String,
    /// The network interface.
    pub interface: String,
    /// How frames move.
    #[serde(default)]
    pub link: LinkKind,
    /// UDP port for queries and repairs; 0 lets the kernel choose.
    #[serde(default)]
    pub port: u16,
    /// Largest IP packet to use; by default what the interface allows.
    pub mtu: Option<usize>,
    /// Routers that a packet may pass, plus one.
    #[serde(default = "default_ttl")]
    pub ttl: u8,
    /// The core to pin the engine's thread to.
    pub core: Option<Core>,
    /// What to do when there is nothing to do.
    #[serde(default)]
    pub idle: Idle,
    /// What becomes of capabilities once the link is open.
    #[serde(default)]
    pub privileges: Privileges,
    /// The file that shows the counters of the running engine; "off" for none.
    pub counters: Option<PathBuf>,
    /// Where to write the final counters as JSON.
    pub report: Option<PathBuf>,
    /// Unix socket at which `seqcast capture` attaches.
    pub capture: Option<PathBuf>,
    /// Settings of the AF_XDP link.
    #[serde(default)]
    pub xdp: Xdp,
    /// Settings of the kernel link.
    #[serde(default)]
    pub udp: Udp,
    /// Losses on purpose.
    #[serde(default)]
    pub fault: Fault,
    /// The interface of line B, when it is another.
    pub line_b: Option<Second>,
}

impl Engine {
    /// One on an interface, with every other key as it is unless given.
    #[must_use]
    pub fn on(interface: impl Into<String>) -> Engine {
        Engine {
            name: default_name(),
            interface: interface.into(),
            link: LinkKind::default(),
            port: 0,
            mtu: None,
            ttl: default_ttl(),
            core: None,
            idle: Idle::default(),
            privileges: Privileges::default(),
            counters: None,
            report: None,
            capture: None,
            xdp: Xdp::default(),
            udp: Udp::default(),
            fault: Fault::default(),
            line_b: None,
        }
    }
}

fn default_name() -> String {
    "engine".into()
}

fn default_ttl() -> u8 {
    1
}

/// `[engine.xdp]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Xdp {
    /// Receive queues to serve: all that the interface has.
    pub queues: Vec<u32>,
    /// Where the filter runs.
    pub attach: Attach,
    /// Who copies.
    pub bind: Bind,
    /// Bytes of a frame, 2048 or 4096.
    pub frame_size: u32,
    /// Frames for each queue, at least twice `rx_ring` and `tx_ring` together.
    pub frames: u32,
    /// Descriptors of each receive ring, a power of two.
    pub rx_ring: u32,
    /// Frames that may wait to be sent, a power of two.
    pub tx_ring: u32,
}

impl Default for Xdp {
    fn default() -> Xdp {
        Xdp {
            queues: vec![0],
            attach: Attach::Auto,
            bind: Bind::Auto,
            frame_size: 2048,
            frames: 8192,
            rx_ring: 2048,
            tx_ring: 2048,
        }
    }
}

/// `[engine.udp]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Udp {
    /// Receive buffer asked from the kernel, in bytes.
    pub receive_buffer: usize,
    /// Receive buffers of the engine.
    pub frames: usize,
    /// Send runs of equal datagrams as one (UDP GSO), where the kernel can. To be switched off
    /// when a receiver uses generic XDP on a virtual link, which sees such runs uncut.
    pub gso: bool,
}

impl Default for Udp {
    fn default() -> Udp {
        Udp {
            receive_buffer: 8 << 20,
            frames: 4096,
            gso: true,
        }
    }
}

/// `[engine.fault]`
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fault {
    /// Share of arriving frames to drop, 0.0 to 1.0.
    pub drop: f64,
    /// Arriving frame, counted from 0, at which a burst of losses starts.
    pub burst_at: u64,
    /// Frames that the burst drops.
    pub burst_len: u64,
    /// Seed of the choice.
    pub seed: u64,
}

impl std::convert::From<Fault> for crate::link::Fault {
    fn from(fault: Fault) -> crate::link::Fault {
        crate::link::Fault {
            drop_share: fault.drop,
            burst_at: fault.burst_at,
            burst_len: fault.burst_len,
            seed: fault.seed,
        }
    }
}

/// Where messages come from.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// A file.
    pub file: Option<PathBuf>,
    /// A FIFO; made when it is missing.
    pub fifo: Option<PathBuf>,
    /// Standard input.
    #[serde(default)]
    pub stdin: bool,
    /// Programs that attach, with `[programs]`, or one in the engine's own process, see
    /// [`crate::node::Programs`].
    #[serde(default)]
    pub program: bool,
    /// A feed that speaks MoldUDP64 or MoldUDP.
    pub mold: Option<MoldSource>,
    /// How messages are told apart.
    #[serde(default)]
    pub format: Format,
    /// The subject of all messages.
    #[serde(default, deserialize_with = "route::subject")]
    pub subject: Option<String>,
    /// What the subject of each message is made of.
    pub subject_from: Option<SubjectFrom>,
    /// Messages a second; without it as fast as they can be sent.
    pub rate: Option<f64>,
    /// Go on behind the last message that was published before; needs `state` and a file.
    #[serde(default = "yes")]
    pub resume: bool,
    /// What to do when the source ends.
    #[serde(default)]
    pub at_end: AtEnd,
}

fn yes() -> bool {
    true
}

/// What subjects are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SubjectFrom {
    /// Nasdaq ITCH 5.0: `ITCH.`, the message's type letter, a dot, its stock locate.
    Itch,
}

/// What a server does when its source ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AtEnd {
    /// End the stream.
    #[default]
    Close,
    /// Stay and send heartbeats; a FIFO is opened again for the next writer.
    Stay,
}

/// Where messages go to.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sink {
    /// A file, written anew unless a durable client goes on.
    pub file: Option<PathBuf>,
    /// A journal: an append-only file with all that is known of each message.
    pub journal: Option<PathBuf>,
    /// A directory that gets one file for each message.
    pub dir: Option<PathBuf>,
    /// A program and its arguments; messages go to its standard input.
    pub exec: Option<Vec<String>>,
    /// A FIFO; made when it is missing.
    pub fifo: Option<PathBuf>,
    /// Standard output.
    #[serde(default)]
    pub stdout: bool,
    /// Programs that attach, with `[programs]`, or a handler in the engine's own process, see
    /// [`crate::node::Programs`].
    #[serde(default)]
    pub program: bool,
    /// A feed that speaks MoldUDP64 or MoldUDP.
    pub mold: Option<MoldSink>,
    /// How messages are written; BinaryFILE by default. Not for `journal`, `dir` and `mold`.
    pub format: Option<SinkFormat>,
}

/// `rate` of `[[publish]]`: limits on new messages; 0 means none.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Rate {
    /// Bytes of UDP payload a second.
    pub bytes: u64,
    /// Frames a second.
    pub frames: u64,
    /// Bytes at once after a pause; frames in the same proportion.
    pub burst: Bytes,
}

impl Default for Rate {
    fn default() -> Rate {
        Rate {
            bytes: 0,
            frames: 0,
            burst: Bytes(64 << 10),
        }
    }
}

/// To whom repairs go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cast {
    /// To who asked; to the group when several ask for the same.
    #[default]
    Auto,
    /// To who asked, always.
    Unicast,
    /// To the group, always.
    Multicast,
}

/// `repair` of `[[publish]]` and `[[archive]]`: how repairs are given.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Repair {
    /// To whom they go.
    pub cast: Cast,
    /// A second question for the same within this many microseconds is answered to the group.
    pub merge_us: u64,
    /// Bytes of repairs a second; 0 means no limit.
    pub bytes: u64,
    /// How many times as many bytes as it has asked with a requester is answered at most.
    pub amplification: u32,
}

impl Default for Repair {
    fn default() -> Repair {
        Repair {
            cast: Cast::Auto,
            merge_us: 2000,
            bytes: 0,
            amplification: 2048,
        }
    }
}

/// What a server does when it has no room for what is not acknowledged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WhenFull {
    /// Take nothing more from the source.
    Refuse,
    /// Give up the oldest, and count them.
    DropOldest,
}

/// How a client asks for repairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Query {
    /// Point to point, at the addresses that heartbeats name.
    #[default]
    Unicast,
    /// By multicast, so that clients that missed the same ask once.
    Multicast,
}

/// `[[publish]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Publish {
    /// Which table of the file this comes from: those of one table share their source.
    #[serde(skip)]
    pub table: usize,
    /// Whether the routes say which of the source's messages go here.
    #[serde(skip)]
    pub routed: bool,
    /// Multicast group and port.
    #[serde(default = "by_subject")]
    pub stream: SocketAddrV4,
    /// The [`Worker`] that serves it; by default the engine's first thread.
    pub worker: Option<String>,
    /// Its lines.
    #[serde(default)]
    pub lines: Outgoing,
    /// The stream's identity; derived from group and port unless given.
    pub id: Option<u32>,
    /// Where messages come from.
    pub source: Source,
    /// Directory that keeps sessions and unacknowledged messages over a crash; without it they
    /// are kept in memory.
    pub state: Option<PathBuf>,
    /// Archives that must acknowledge a message before it may be dropped.
    #[serde(default)]
    pub archives: usize,
    /// Most bytes of messages kept; see [`Publish::retained`].
    pub retain: Option<Bytes>,
    /// What happens when `retain` is full of what archives have not acknowledged; by default
    /// producers wait. Without archives the oldest are always dropped.
    pub when_full: Option<WhenFull>,
    /// Last sequence number of a session before the next one is opened.
    pub range_end: Option<u32>,
    /// First pause between the last message and a heartbeat, in milliseconds.
    #[serde(default = "default_heartbeat_min")]
    pub heartbeat_min_ms: u64,
    /// Longest pause between heartbeats, in milliseconds.
    #[serde(default = "default_heartbeat_max")]
    pub heartbeat_max_ms: u64,
    /// Limits on new messages.
    #[serde(default)]
    pub rate: Rate,
    /// Messages sent and not acknowledged after which producers are held back; 0: only `retain`
    /// counts.
    #[serde(default)]
    pub unacknowledged_max: u64,
    /// How repairs are given.
    #[serde(default)]
    pub repair: Repair,
    /// Least time for last questions after the end, in milliseconds.
    #[serde(default = "default_linger")]
    pub linger_ms: u64,
    /// Longest wait for outstanding acknowledgements after the end, in milliseconds.
    #[serde(default = "default_linger_max")]
    pub linger_max_ms: u64,
    /// Keys, and whose frames are used.
    #[serde(serialize_with = "trust::in_full")]
    pub trust: Option<Trust>,
}

impl Publish {
    /// Whether the oldest messages make room for new ones.
    #[must_use]
    pub fn drops_oldest(&self) -> bool {
        self.archives == 0 || self.when_full == Some(WhenFull::DropOldest)
    }

    /// Most bytes of messages kept: as configured, or 256 MiB in a state directory, 64 MiB in
    /// memory, all of which is taken at the start.
    #[must_use]
    pub fn retained(&self) -> u64 {
        let default = if self.state.is_some() { 256 << 20 } else { 64 << 20 };
        self.retain.map_or(default, |bytes| bytes.0)
    }
}

fn by_subject() -> SocketAddrV4 {
    route::BY_SUBJECT
}

fn default_heartbeat_min() -> u64 {
    1
}

fn default_heartbeat_max() -> u64 {
    100
}

fn default_linger() -> u64 {
    500
}

fn default_linger_max() -> u64 {
    10_000
}

/// Where a subscription begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum From {
    /// At the first packet that is seen.
    #[default]
    Now,
    /// At the first message of the session that is found.
    Session,
}

/// In what order a subscription is delivered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Delivery {
    /// In the order of the numbers; what follows a gap waits for the repair.
    #[default]
    InOrder,
    /// As messages arrive; repairs come late and are marked.
    OnArrival,
}

/// `[[subscribe]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Subscribe {
    /// Which table of the file this comes from: those of one table share their sink.
    #[serde(skip)]
    pub table: usize,
    /// Multicast group and port.
    #[serde(default = "by_subject")]
    pub stream: SocketAddrV4,
    /// The [`Worker`] that serves it; by default the engine's first thread.
    pub worker: Option<String>,
    /// Its lines.
    #[serde(default)]
    pub lines: Lines,
    /// Which messages the sink gets; all without it.
    #[serde(default, deserialize_with = "route::patterns", serialize_with = "route::texts")]
    pub subjects: Option<Vec<Pattern>>,
    /// The stream's identity; derived from group and port unless given.
    pub id: Option<u32>,
    /// The client's name, in messages and in its state; the engine's name by default.
    pub name: Option<String>,
    /// Directory that keeps the position over a crash; the client goes on behind it.
    pub state: Option<PathBuf>,
    /// How long a written message may wait until its position is kept, in milliseconds.
    #[serde(default = "default_confirm")]
    pub sync_ms: u64,
    /// Where to begin without a position.
    #[serde(default)]
    pub from: From,
    /// In what order messages are delivered.
    #[serde(default)]
    pub delivery: Delivery,
    /// Where messages go to.
    pub sink: Sink,
    /// End the engine when the stream has ended and everything is delivered.
    #[serde(default)]
    pub exit_at_end: bool,
    /// How far ahead of the next message a frame may be and still be held, in messages.
    #[serde(default = "default_window")]
    pub window: u32,
    /// Wait for frames that overtook each other, in microseconds, before asking.
    #[serde(default)]
    pub reorder_us: u64,
    /// How repairs are asked for.
    #[serde(default)]
    pub query: Query,
    /// Longest random pause before the first NAK, in microseconds.
    #[serde(default)]
    pub backoff_us: u64,
    /// As `backoff_us`, in hundredths of the measured round trip; both add up.
    #[serde(default = "default_backoff_percent")]
    pub backoff_rtt_percent: u32,
    /// Time after which a gap is reported as lost, in milliseconds.
    #[serde(default = "default_give_up")]
    pub give_up_ms: u64,
    /// Keys, and whose frames are used.
    #[serde(serialize_with = "trust::in_full")]
    pub trust: Option<Trust>,
}

fn default_confirm() -> u64 {
    100
}

fn default_window() -> u32 {
    1 << 16
}

fn default_backoff_percent() -> u32 {
    25
}

fn default_give_up() -> u64 {
    30_000
}

/// What an acknowledgement stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ack {
    /// The message is in the archive's log and survives the end of its process.
    #[default]
    Stored,
    /// The message is on stable storage and survives a loss of power.
    Synced,
}

/// `[[archive]]`
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Multicast group and port.
    pub stream: SocketAddrV4,
    /// The [`Worker`] that serves it; by default the engine's first thread.
    pub worker: Option<String>,
    /// The stream's identity; derived from group and port unless given.
    pub id: Option<u32>,
    /// Its lines.
    #[serde(default)]
    pub lines: Lines,
    /// The archive's directory.
    pub dir: PathBuf,
    /// What an acknowledgement stands for.
    #[serde(default)]
    pub ack: Ack,
    /// How far behind the disk may be, in milliseconds; 0 leaves it to the kernel.
    #[serde(default = "default_sync")]
    pub sync_ms: u32,
    /// How repairs are given.
    #[serde(default)]
    pub repair: Repair,
    /// Bytes of a segment file, a power of two.
    #[serde(default = "default_segment")]
    pub segment: Bytes,
    /// Bytes of segments made before they are needed, and kept ready; by default none.
    pub reserve: Option<Bytes>,
    /// Most bytes of segments and index kept over all sessions; by default all.
    pub keep_bytes: Option<Bytes>,
    /// Seconds after which a segment goes of which all was received before; by default never.
    pub keep_age_s: Option<u64>,
    /// Most sessions kept; by default all.
    pub keep_sessions: Option<u32>,
    /// End the engine when the stream has ended and all of it is stored.
    #[serde(default)]
    pub exit_at_end: bool,
    /// Keys, and whose frames are used.
    #[serde(serialize_with = "trust::in_full")]
    pub trust: Option<Trust>,
}

fn default_sync() -> u32 {
    100
}

fn default_segment() -> Bytes {
    Bytes(16 << 20)
}

/// Bytes of an archive's reserve at most.
const MOST_RESERVE: u64 = 64 << 40;

/// A number of bytes: an integer, or text such as `"256 MiB"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes(pub u64);

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(u64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(n) => Ok(Bytes(n)),
            Either::Text(text) => parse_bytes(&text).map(Bytes).ok_or_else(|| {
                serde::de::Error::custom(format!(
                    "{text:?} is not a number of bytes; write 1048576, \"64 KiB\", \"256 MiB\" or \"10 GiB\""
                ))
            }),
        }
    }
}

fn parse_bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return None,
    };
    text[..digits].parse::<u64>().ok()?.checked_mul(unit)
}

impl Config {
    /// Reads and checks a configuration file.
    ///
    /// # Errors
    /// Names the file, the line and what to do.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.into(),
            source,
        })?;
        Config::parse(&text, path)
    }

    /// Checks the text of a configuration; `path` is for messages.
    ///
    /// # Errors
    /// As for [`Config::read`].
    pub fn parse(text: &str, path: &Path) -> Result<Config, ConfigError> {
        let mut config: Config = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.into(),
            message: error.to_string(),
        })?;
        config.follow_routes()?;
        config.complete_mold();
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: String| Err(ConfigError::Invalid(text));
        if self.publish.is_empty() && self.subscribe.is_empty() && self.archive.is_empty() {
            return invalid("nothing to do: add [[publish]], [[subscribe]] or [[archive]]".into());
        }
        for (table, ids) in [
            (
                "publish",
                self.publish.iter().map(|p| (p.stream, p.id)).collect::<Vec<_>>(),
            ),
            ("subscribe", self.subscribe.iter().map(|s| (s.stream, s.id)).collect()),
            ("archive", self.archive.iter().map(|a| (a.stream, a.id)).collect()),
        ] {
            for (i, (stream, id)) in ids.iter().enumerate() {
                if let Err(error) = crate::link::check_group(*stream) {
                    return invalid(format!("[[{table}]] {error}"));
                }
                let identity = crate::stream_id(*stream, *id);
                if let Some((other, _)) = ids[..i].iter().find(|(s, d)| crate::stream_id(*s, *d) == identity) {
                    return invalid(format!(
                        "[[{table}]] {other} and {stream} have the same identity {identity}: give one of them another `id`, or drop it"
                    ));
                }
            }
        }
        self.check_trust()?;
        self.log.check().map_err(ConfigError::Invalid)?;
        let programs = self.programs.as_ref().map_or(Ok(()), Programs::check);
        programs.map_err(ConfigError::Invalid)?;
        let repairs = self.publish.iter().map(|p| (p.stream, p.repair));
        let repairs = repairs.chain(self.archive.iter().map(|a| (a.stream, a.repair)));
        for (stream, repair) in repairs {
            if !(256..=1 << 20).contains(&repair.amplification) {
                return invalid(format!(
                    "stream {stream}: `repair.amplification` must be 256 to 1048576"
                ));
            }
        }
        for publish in &self.publish {
            let source = &publish.source;
            let sources = [
                source.file.is_some(),
                source.fifo.is_some(),
                source.stdin,
                source.program,
                source.mold.is_some(),
            ];
            if sources.iter().filter(|s| **s).count() != 1 {
                return invalid(format!(
                    "[[publish]] {}: the source needs one of `file`, `fifo`, `stdin = true`, `mold` or `program = true`",
                    publish.stream
                ));
            }
            if source.format == Format::Raw {
                return invalid(format!(
                    "[[publish]] {}: format \"raw\" does not tell messages apart; use \"binaryfile\" or \"lines\"",
                    publish.stream
                ));
            }
            let subjects = [
                source.subject.is_some(),
                source.subject_from.is_some(),
                source.format == Format::SubjectLines,
            ];
            if subjects.iter().filter(|s| **s).count() > 1 {
                return invalid(format!(
                    "[[publish]] {}: subjects come from one of `subject`, `subject_from` and format \"subject-lines\"",
                    publish.stream
                ));
            }
            if source.program && (source.subject.is_some() || source.subject_from.is_some()) {
                return invalid(format!(
                    "[[publish]] {}: a program gives each message its subject: leave out `subject` and `subject_from`",
                    publish.stream
                ));
            }
            if source.rate.is_some_and(|r| !(r.is_finite() && r > 0.0)) {
                return invalid(format!(
                    "[[publish]] {}: `rate` must be above 0 messages a second",
                    publish.stream
                ));
            }
            if publish.heartbeat_min_ms == 0 || publish.heartbeat_max_ms < publish.heartbeat_min_ms {
                return invalid(format!(
                    "[[publish]] {}: `heartbeat_min_ms` must be at least 1 and at most `heartbeat_max_ms`",
                    publish.stream
                ));
            }
            if publish.range_end == Some(0) {
                return invalid(format!(
                    "[[publish]] {}: `range_end` must be at least 1",
                    publish.stream
                ));
            }
            if publish.retained() < 8 << 20 {
                return invalid(format!(
                    "[[publish]] {}: `retain` must be at least \"8 MiB\"",
                    publish.stream
                ));
            }
            if publish.archives == 0 && publish.when_full == Some(WhenFull::Refuse) {
                return invalid(format!(
                    "[[publish]] {}: `when_full = \"refuse\"` needs `archives` above 0, else nothing ever makes room",
                    publish.stream
                ));
            }
            if publish.archives > 15 {
                return invalid(format!("[[publish]] {}: `archives` can be at most 15", publish.stream));
            }
        }
        self.check_lines()?;
        self.check_workers()?;
        mold::check(self)?;
        self.subscribe.iter().try_for_each(Subscribe::check)?;
        for archive in &self.archive {
            if !archive.segment.0.is_power_of_two() || !(1 << 16..=1 << 30).contains(&archive.segment.0) {
                return invalid(format!(
                    "[[archive]] {}: `segment` must be a power of two from \"64 KiB\" to \"1 GiB\"",
                    archive.stream
                ));
            }
            if archive
                .keep_bytes
                .is_some_and(|b| b.0 < 2 * archive.segment.0 + (2 << 20))
            {
                return invalid(format!(
                    "[[archive]] {}: `keep_bytes` must be at least two segments and \"2 MiB\" of index",
                    archive.stream
                ));
            }
            if archive.reserve.is_some_and(|b| b.0 > MOST_RESERVE) {
                return invalid(format!(
                    "[[archive]] {}: `reserve` can be at most \"64 TiB\"",
                    archive.stream
                ));
            }
            if archive.keep_age_s == Some(0) || archive.keep_sessions == Some(0) {
                return invalid(format!(
                    "[[archive]] {}: `keep_age_s` and `keep_sessions` must be at least 1; leave them out to keep all",
                    archive.stream
                ));
            }
            if archive.sync_ms > 60_000 {
                return invalid(format!(
                    "[[archive]] {}: `sync_ms` can be at most 60000",
                    archive.stream
                ));
            }
            if archive.ack == Ack::Synced && archive.sync_ms == 0 {
                return invalid(format!(
                    "[[archive]] {}: `ack = \"synced\"` needs `sync_ms` above 0, else nothing is ever acknowledged",
                    archive.stream
                ));
            }
        }
        Ok(())
    }
}

impl Config {
    /// Group, identity and trust of each table that names a stream.
    pub(crate) fn trusts(&self) -> impl Iterator<Item = (SocketAddrV4, Option<u32>, Option<&Trust>)> {
        let publish = self.publish.iter().map(|p| (p.stream, p.id, p.trust.as_ref()));
        let subscribe = self.subscribe.iter().map(|s| (s.stream, s.id, s.trust.as_ref()));
        let archive = self.archive.iter().map(|a| (a.stream, a.id, a.trust.as_ref()));
        publish.chain(subscribe).chain(archive)
    }

    fn check_trust(&self) -> Result<(), ConfigError> {
        let all: Vec<_> = self.trusts().collect();
        for (i, (stream, id, trust)) in all.iter().enumerate() {
            if let Some(Err(wrong)) = trust.map(Trust::check) {
                return Err(ConfigError::Invalid(format!("stream {stream}: {wrong}")));
            }
            let identity = crate::stream_id(*stream, *id);
            let differs = |o: &&(SocketAddrV4, _, _)| crate::stream_id(o.0, o.1) == identity && o.2 != *trust;
            if all[..i].iter().any(|o| differs(&o)) {
                return Err(ConfigError::Invalid(format!(
                    "stream {stream}: its tables have different `trust`; give all of them the same"
                )));
            }
        }
        Ok(())
    }
}

impl Subscribe {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |text: &str| Err(ConfigError::Invalid(format!("[[subscribe]] {}: {text}", self.stream)));
        let sink = &self.sink;
        let sinks = [
            sink.file.is_some(),
            sink.journal.is_some(),
            sink.dir.is_some(),
            sink.exec.is_some(),
            sink.fifo.is_some(),
            sink.stdout,
            sink.program,
            sink.mold.is_some(),
        ];
        if sinks.iter().filter(|s| **s).count() != 1 {
            return invalid(
                "the sink needs one of `file`, `journal`, `dir`, `exec`, `fifo`, `mold` or `stdout = true`",
            );
        }
        if sink.exec.as_ref().is_some_and(Vec::is_empty) {
            return invalid("`exec` needs a program: exec = [\"program\", \"argument\"]");
        }
        if sink.format.is_some()
            && (sink.journal.is_some() || sink.dir.is_some() || sink.mold.is_some() || sink.program)
        {
            return invalid("`format` is for `file`, `fifo`, `stdout` and `exec`: leave it out");
        }
        if self.subjects.is_some() && sink.program {
            return invalid(
                "a handler sees whole blocks in place: leave out `subjects` and let it ask a `seqcast_proto::subject::Matcher`",
            );
        }
        if let Some(name) = &self.name {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if !(1..=64).contains(&name.len()) || name.starts_with('.') || !name.chars().all(allowed) {
                return invalid("`name` must be 1 to 64 letters, digits, `.`, `_` or `-`, and not begin with a dot");
            }
        }
        if self.state.is_some() {
            if sink.program {
                return invalid("`state` needs a sink of the engine: a program keeps its position itself");
            }
            if self.delivery == Delivery::OnArrival {
                return invalid("`state` needs `delivery = \"in-order\"`: a position says that all before it is there");
            }
            if self.sync_ms == 0 {
                return invalid("`sync_ms` must be at least 1");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[engine]
interface = "lo"
[[publish]]
stream = "239.1.1.1:5000"
source = { stdin = true }
"#;

    fn error(text: &str) -> String {
        Config::parse(text, Path::new("x.toml")).unwrap_err().to_string()
    }

    #[test]
    fn a_short_configuration_is_enough() {
        let config = Config::parse(GOOD, Path::new("x.toml")).unwrap();
        assert_eq!(config.publish[0].retained(), 64 << 20);
        assert_eq!(config.engine.link, LinkKind::Auto);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let text = GOOD.replace("[[publish]]", "[[publish]]\nretian = 5");
        let message = error(&text);
        assert!(message.contains("retian") && message.contains("line 5"), "{message}");
    }

    #[test]
    fn mistakes_are_named_with_the_remedy() {
        for (from, to, expected) in [
            ("239.1.1.1:5000", "10.1.1.1:5000", "is not a multicast address"),
            (
                "stdin = true",
                "stdin = true, file = \"x\"",
                "one of `file`, `fifo`, `stdin",
            ),
            ("stdin = true", "stdin = true, rate = -1", "`rate` must be above 0"),
            ("[[publish]]", "[[publish]]\nretain = \"12 furlongs\"", "write 1048576"),
            ("[[publish]]", "[[publish]]\nretain = \"1 MiB\"", "at least \"8 MiB\""),
            (
                "interface = \"lo\"",
                "interface = \"lo\"\nlink = \"dpdk\"",
                "unknown variant `dpdk`",
            ),
        ] {
            let message = error(&GOOD.replace(from, to));
            assert!(message.contains(expected), "{message}");
        }
        assert!(error("[engine]\ninterface = \"lo\"").contains("nothing to do"));
        let twice = format!("{GOOD}[[publish]]\nstream = \"239.1.1.1:5000\"\nsource = {{ stdin = true }}");
        assert!(error(&twice).contains("the same identity"));
    }

    #[test]
    fn what_is_kept_is_checked() {
        let archive = |more: &str| {
            format!("[engine]\ninterface = \"lo\"\n[[archive]]\nstream = \"239.1.1.1:5000\"\ndir = \"a\"\n{more}")
        };
        let config = Config::parse(
            &archive("keep_bytes = \"1 GiB\"\nkeep_age_s = 86400\nkeep_sessions = 5"),
            Path::new("x.toml"),
        )
        .unwrap();
        let kept = &config.archive[0];
        assert_eq!(kept.keep_bytes, Some(Bytes(1 << 30)));
        assert_eq!((kept.keep_age_s, kept.keep_sessions), (Some(86400), Some(5)));
        assert_eq!(kept.reserve, None);
        let config = Config::parse(&archive("reserve = \"4 GiB\""), Path::new("x.toml")).unwrap();
        assert_eq!(config.archive[0].reserve, Some(Bytes(4 << 30)));
        assert!(error(&archive("reserve = \"65 TiB\"")).contains("64 TiB"));
        assert!(error(&archive("keep_bytes = \"32 MiB\"")).contains("two segments"));
        assert!(error(&archive("keep_age_s = 0")).contains("leave them out"));
        assert!(error(&archive("keep_sessions = 0")).contains("leave them out"));

        let publish = |more: &str| GOOD.replace("[[publish]]", &format!("[[publish]]\n{more}"));
        for (more, drops) in [
            ("", true),
            ("archives = 1", false),
            ("archives = 1\nwhen_full = \"refuse\"", false),
            ("archives = 1\nwhen_full = \"drop-oldest\"", true),
        ] {
            let config = Config::parse(&publish(more), Path::new("x.toml")).unwrap();
            assert_eq!(config.publish[0].drops_oldest(), drops, "{more}");
        }
        assert!(error(&publish("when_full = \"refuse\"")).contains("needs `archives`"));
    }

    #[test]
    fn subscriptions_are_checked() {
        let text = |more: &str, sink: &str| {
            format!(
                "[engine]\ninterface = \"lo\"\n[[subscribe]]\nstream = \"239.1.1.1:5000\"\n{more}\nsink = {{ {sink} }}"
            )
        };
        for (more, sink) in [
            ("", "exec = [\"cat\", \"-u\"], format = \"json\""),
            ("delivery = \"on-arrival\"", "journal = \"j\""),
            ("name = \"risk-1\"\nstate = \"s\"", "dir = \"d\""),
        ] {
            Config::parse(&text(more, sink), Path::new("x.toml")).unwrap();
        }
        for (more, sink, words) in [
            ("", "dir = \"a\", stdout = true", "one of `file`"),
            ("", "exec = []", "`exec` needs a program"),
            ("", "dir = \"a\", format = \"raw\"", "`format` is for"),
            ("name = \"../x\"", "stdout = true", "`name` must be"),
            ("state = \"s\"\ndelivery = \"on-arrival\"", "stdout = true", "in-order"),
            ("state = \"s\"", "program = true", "a sink of the engine"),
            ("state = \"s\"\nsync_ms = 0", "stdout = true", "`sync_ms`"),
        ] {
            let message = error(&text(more, sink));
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [("5", 5), ("64 KiB", 65536), ("256MiB", 256 << 20), ("2 GiB", 2 << 30)] {
            assert_eq!(parse_bytes(text), Some(bytes));
        }
        for text in ["", "MiB", "5 MB", "-1", "99999999999 TiB"] {
            assert_eq!(parse_bytes(text), None, "{text}");
        }
    }
}
