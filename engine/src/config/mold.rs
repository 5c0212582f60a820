//! `mold` of a sink and of a source: the way to and from feeds that speak MoldUDP64 or MoldUDP.

use std::net::SocketAddrV4;
use std::path::PathBuf;

use seqcast_mold::{SessionName, Variant};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Bytes, Config, ConfigError, Fault, Format, From, Net, Publish, Subscribe};

/// Which of the two formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MoldVariant {
    /// Big-endian, numbers of 64 bits.
    #[default]
    Moldudp64,
    /// Little-endian, numbers of 32 bits.
    Moldudp,
}

impl std::convert::From<MoldVariant> for Variant {
    fn from(variant: MoldVariant) -> Variant {
        match variant {
            MoldVariant::Moldudp64 => Variant::Mold64,
            MoldVariant::Moldudp => Variant::Mold32,
        }
    }
}

fn session<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SessionName>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let name = text
        .parse()
        .map_err(|e| serde::de::Error::custom(format!("session {text:?}: {e}")))?;
    Ok(Some(name))
}

fn session_text<S: Serializer>(name: &Option<SessionName>, serializer: S) -> Result<S::Ok, S::Error> {
    name.as_ref().map(ToString::to_string).serialize(serializer)
}

/// `mold` of a sink: publishes what is delivered.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MoldSink {
    /// Group and port to send to.
    pub group: SocketAddrV4,
    /// Group and port of line B: the same packets once more.
    pub group_b: Option<SocketAddrV4>,
    /// The network interface; the engine's by default.
    #[serde(default)]
    pub interface: String,
    /// That of line B, if it is another.
    pub interface_b: Option<String>,
    /// The format.
    #[serde(default)]
    pub variant: MoldVariant,
    /// One name for all sessions; by default each has its number for a name.
    #[serde(default, deserialize_with = "session", serialize_with = "session_text")]
    pub session: Option<SessionName>,
    /// UDP port of the re-request server, and source of all that is sent; 0 lets the kernel choose.
    #[serde(default)]
    pub port: u16,
    /// Whether requests are answered.
    #[serde(default = "super::yes")]
    pub requests: bool,
    /// Who may ask; anyone without it.
    pub allow: Option<Vec<Net>>,
    /// Bytes a second that one asker is answered with; all together get four times as much.
    #[serde(default = "default_answers")]
    pub answer_bytes: Bytes,
    /// Bytes of messages kept for requests.
    #[serde(default = "default_retain")]
    pub retain: Bytes,
    /// Bytes of a packet, its header included; by default what the interface takes.
    pub packet: Option<usize>,
    /// Pause after which a heartbeat is sent, in milliseconds.
    #[serde(default = "default_heartbeat")]
    pub heartbeat_ms: u64,
    /// How long the end of a session is said, in milliseconds.
    #[serde(default = "default_end")]
    pub end_ms: u64,
    /// Routers that a packet may pass, plus one.
    #[serde(default = "super::default_ttl")]
    pub ttl: u8,
    /// Losses on purpose among requests.
    #[serde(default)]
    pub fault: Fault,
    /// The directory that keeps what was published, made of the client's `state` and name.
    #[serde(skip)]
    pub kept_in: Option<PathBuf>,
}

/// What a source does when messages cannot be had any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLoss {
    /// Say it, and go on behind them.
    #[default]
    Skip,
    /// End the engine.
    Stop,
}

/// `mold` of a source: subscribes to a feed.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct MoldSource {
    /// Group and port of the feed.
    pub group: SocketAddrV4,
    /// Group and port of line B.
    pub group_b: Option<SocketAddrV4>,
    /// The network interface; the engine's by default.
    #[serde(default)]
    pub interface: String,
    /// That of line B, if it is another.
    pub interface_b: Option<String>,
    /// The format.
    #[serde(default)]
    pub variant: MoldVariant,
    /// The only session taken; any without it.
    #[serde(default, deserialize_with = "session", serialize_with = "session_text")]
    pub session: Option<SessionName>,
    /// Where to begin.
    #[serde(default)]
    pub from: From,
    /// Re-request servers, in the order in which they are asked.
    #[serde(default)]
    pub requests: Vec<SocketAddrV4>,
    /// How long a gap waits for the other line, or for packets that overtook each other, in
    /// microseconds.
    #[serde(default = "default_skew")]
    pub skew_us: u64,
    /// Time without progress after which messages are given up, in milliseconds.
    #[serde(default = "default_patience")]
    pub give_up_ms: u64,
    /// Bytes of packets that may wait behind a gap.
    #[serde(default = "default_hold")]
    pub hold: Bytes,
    /// Time without a packet after which a line is silent, in milliseconds.
    #[serde(default = "default_silence")]
    pub silence_ms: u64,
    /// What to do when messages cannot be had.
    #[serde(default)]
    pub on_loss: OnLoss,
    /// Receive buffer asked from the kernel for each socket, in bytes.
    #[serde(default = "default_buffer")]
    pub receive_buffer: usize,
    /// Losses on purpose.
    #[serde(default)]
    pub fault: Fault,
    /// The file that says which message of the feed is which of the stream, made of `state`.
    #[serde(skip)]
    pub map: Option<PathBuf>,
}

fn default_answers() -> Bytes {
    Bytes(32 << 20)
}

fn default_retain() -> Bytes {
    Bytes(1 << 30)
}

fn default_heartbeat() -> u64 {
    1000
}

fn default_end() -> u64 {
    3000
}

fn default_skew() -> u64 {
    1000
}

fn default_patience() -> u64 {
    10_000
}

fn default_hold() -> Bytes {
    Bytes(64 << 20)
}

fn default_silence() -> u64 {
    3000
}

fn default_buffer() -> usize {
    8 << 20
}

impl Config {
    /// Fills in what sinks and sources of feeds take from the tables around them.
    pub(super) fn complete_mold(&mut self) {
        let (engine, workers) = (&self.engine, &self.worker);
        let interface = |worker: &Option<String>| {
            let worker = workers.iter().find(|w| Some(&w.name) == worker.as_ref());
            worker.and_then(|w| w.interface.as_ref()).unwrap_or(&engine.interface)
        };
        for subscribe in &mut self.subscribe {
            let Subscribe {
                sink,
                state,
                name,
                worker,
                ..
            } = subscribe;
            let Some(mold) = &mut sink.mold else { continue };
            if mold.interface.is_empty() {
                mold.interface.clone_from(interface(worker));
            }
            let name = name.as_ref().unwrap_or(&engine.name);
            // A name of its own counts numbers of its own.
            let session = mold
                .session
                .map_or(String::new(), |s| format!("-{}", s.to_string().replace('/', "_")));
            mold.kept_in = state.as_ref().map(|dir| dir.join(format!("{name}.mold{session}")));
        }
        for publish in &mut self.publish {
            let Publish {
                source, state, worker, ..
            } = publish;
            let Some(mold) = &mut source.mold else { continue };
            if mold.interface.is_empty() {
                mold.interface.clone_from(interface(worker));
            }
            mold.map = state.as_ref().filter(|_| source.resume).map(|dir| {
                let mut name = dir.clone().into_os_string();
                name.push(".mold");
                name.into()
            });
        }
    }
}

fn check_groups(group: SocketAddrV4, group_b: Option<SocketAddrV4>, second: bool) -> Result<(), String> {
    for group in [Some(group), group_b].into_iter().flatten() {
        crate::link::check_group(group).map_err(|e| e.to_string())?;
    }
    match group_b {
        Some(b) if b == group => Err("`group_b` must be another group or port than `group`".into()),
        None if second => Err("`interface_b` is for `group_b`: name that as well, or leave both out".into()),
        _ => Ok(()),
    }
}

fn check_fault(fault: Fault) -> Result<(), String> {
    match (0.0..=1.0).contains(&fault.drop) {
        true => Ok(()),
        false => Err(format!("fault.drop = {} is not a share from 0.0 to 1.0", fault.drop)),
    }
}

impl MoldSink {
    fn check(&self, of: &Subscribe) -> Result<(), String> {
        check_groups(self.group, self.group_b, self.interface_b.is_some())?;
        check_fault(self.fault)?;
        if of.subjects.is_some() {
            return Err("`subjects` would leave gaps that its receivers ask for for ever: leave them out".into());
        }
        if of.delivery == super::Delivery::OnArrival {
            return Err("it needs `delivery = \"in-order\"`: packets hold consecutive messages".into());
        }
        if self.retain.0 < 8 << 20 {
            return Err("`retain` must be at least \"8 MiB\"".into());
        }
        if self.heartbeat_ms == 0 || self.answer_bytes.0 == 0 {
            return Err("`heartbeat_ms` and `answer_bytes` must be at least 1".into());
        }
        if self.packet.is_some_and(|bytes| !(64..=65_507).contains(&bytes)) {
            return Err("`packet` must be 64 to 65507 bytes".into());
        }
        Ok(())
    }
}

impl MoldSource {
    fn check(&self, of: &Publish) -> Result<(), String> {
        check_groups(self.group, self.group_b, self.interface_b.is_some())?;
        check_fault(self.fault)?;
        if of.routed {
            return Err("it feeds one stream: give the table its `stream`".into());
        }
        if of.source.format != Format::Binaryfile || of.source.rate.is_some() {
            return Err("`format` and `rate` are for what is read: leave them out".into());
        }
        if self.hold.0 < 1 << 20 || self.silence_ms == 0 {
            return Err("`hold` must be at least \"1 MiB\" and `silence_ms` at least 1".into());
        }
        if self.from == From::Session && self.requests.is_empty() {
            return Err("`from = \"session\"` needs `requests`: nobody else has what was sent before".into());
        }
        if self.requests.len() > 16 {
            return Err("`requests` names at most 16 servers".into());
        }
        Ok(())
    }
}

/// Checks all sinks and sources of feeds.
pub(super) fn check(config: &Config) -> Result<(), ConfigError> {
    let wrong =
        |table: &str, stream, why: String| Err(ConfigError::Invalid(format!("[[{table}]] {stream}: `mold`: {why}")));
    for one in &config.subscribe {
        let Some(mold) = &one.sink.mold else { continue };
        if let Err(why) = mold.check(one) {
            return wrong("subscribe", one.stream, why);
        }
        if config.subscribe.iter().filter(|o| o.table == one.table).count() > 1 {
            return wrong(
                "subscribe",
                one.stream,
                "it takes one stream: give the table its `stream`".into(),
            );
        }
    }
    for one in &config.publish {
        if let Some(Err(why)) = one.source.mold.as_ref().map(|mold| mold.check(one)) {
            return wrong("publish", one.stream, why);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(publish: &str, subscribe: &str) -> Result<Config, String> {
        let text = format!(
            "[engine]\ninterface = \"lo\"\nname = \"e\"\n\
             [[publish]]\nstream = \"239.1.1.1:5000\"\nstate = \"s/log\"\nsource = {{ mold = {{ group = \"239.1.2.1:6000\"{publish} }} }}\n\
             [[subscribe]]\nstream = \"239.1.1.2:5000\"\nstate = \"s\"\nsink = {{ mold = {{ group = \"239.1.2.2:6000\"{subscribe} }} }}\n"
        );
        Config::parse(&text, Path::new("x.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn defaults_come_from_the_tables_around() {
        let config = parse("", ", session = \"A/1\"").unwrap();
        let (source, sink) = (
            config.publish[0].source.mold.as_ref().unwrap(),
            config.subscribe[0].sink.mold.as_ref().unwrap(),
        );
        assert_eq!((&*source.interface, &*sink.interface), ("lo", "lo"));
        assert_eq!(source.map.as_deref(), Some(Path::new("s/log.mold")));
        assert_eq!(sink.kept_in.as_deref(), Some(Path::new("s/e.mold-A_1")));
    }

    #[test]
    fn mistakes_are_named_with_the_remedy() {
        for (publish, subscribe, words) in [
            (", group_b = \"239.1.2.1:6000\"", "", "another group"),
            (", interface_b = \"eth1\"", "", "`interface_b` is for `group_b`"),
            (", from = \"session\"", "", "needs `requests`"),
            (", hold = 5", "", "1 MiB"),
            (", variant = \"soupbin\"", "", "unknown variant"),
            ("", ", session = \"12345678901\"", "1 to 10 printable"),
            ("", ", retain = \"1 MiB\"", "8 MiB"),
            ("", ", packet = 10", "64 to 65507"),
            ("", ", fault = { drop = 2.0 }", "0.0 to 1.0"),
        ] {
            let message = parse(publish, subscribe).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
