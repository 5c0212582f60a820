//! Two lines in the configuration: over which groups and interfaces a stream comes.

use std::net::SocketAddrV4;

use seqcast_proto::lines::{Line, LinesConfig};
use seqcast_proto::time::{MICROS, MILLIS};
use serde::{Deserialize, Serialize};

use super::{Config, ConfigError, Engine, Fault, Xdp};

/// `[engine.line_b]`: the interface of line B, when it is another than that of line A.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Second {
    /// The network interface.
    pub interface: String,
    /// UDP port for queries and repairs; 0 lets the kernel choose.
    #[serde(default)]
    pub port: u16,
    /// Largest IP packet to use; by default what the interface allows.
    pub mtu: Option<usize>,
    /// Settings of the AF_XDP link; those of line A unless given.
    pub xdp: Option<Xdp>,
    /// Losses on purpose.
    #[serde(default)]
    pub fault: Fault,
}

/// Which lines a part listens to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Listen {
    /// Both; the first copy of each frame wins.
    #[default]
    Both,
    /// Line A alone.
    A,
    /// Line B alone.
    B,
}

/// `lines` of `[[subscribe]]` and `[[archive]]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lines {
    /// Multicast group and port of line B.
    pub b: Option<SocketAddrV4>,
    /// The lines to listen to.
    pub listen: Listen,
    /// How long a gap on one line waits for the other, in microseconds.
    pub skew_us: u64,
    /// A line is silent when nothing comes over it for this long while the other carries the stream,
    /// in milliseconds.
    pub silence_ms: u64,
}

impl Default for Lines {
    fn default() -> Lines {
        let LinesConfig { skew, silence } = LinesConfig::default();
        Lines {
            b: None,
            listen: Listen::Both,
            skew_us: skew / MICROS,
            silence_ms: silence / MILLIS,
        }
    }
}

/// `lines` of `[[publish]]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Outgoing {
    /// Multicast group and port of line B, which carries the same.
    pub b: Option<SocketAddrV4>,
}

impl Lines {
    /// Settings for listening to both lines.
    #[must_use]
    pub fn both(&self) -> Option<LinesConfig> {
        let both = self.b.is_some() && self.listen == Listen::Both;
        both.then_some(LinesConfig {
            skew: self.skew_us * MICROS,
            silence: self.silence_ms * MILLIS,
        })
    }

    /// The line that leads to the other parties, when only one is listened to.
    #[must_use]
    pub fn only(&self) -> Line {
        match self.listen {
            Listen::B => Line::B,
            Listen::A | Listen::Both => Line::A,
        }
    }

    /// Line A's group, given the stream's, or that of the one line that is listened to.
    #[must_use]
    pub fn first(&self, stream: SocketAddrV4) -> SocketAddrV4 {
        match (self.only(), self.b) {
            (Line::B, Some(group)) => group,
            _ => stream,
        }
    }

    /// The groups to listen to.
    pub fn groups(&self, stream: SocketAddrV4) -> impl Iterator<Item = SocketAddrV4> + use<> {
        let second = self.both().and(self.b);
        std::iter::once(self.first(stream)).chain(second)
    }

    /// The groups of both lines; of one that has only one, that.
    #[must_use]
    pub fn both_groups(&self, stream: SocketAddrV4) -> [SocketAddrV4; 2] {
        [stream, self.b.unwrap_or(stream)]
    }

    /// The line over which a frame came that was sent `to`; `None` with one line.
    #[inline]
    #[must_use]
    pub fn of(&self, to: SocketAddrV4) -> Option<Line> {
        let group = self.b?;
        Some(if to == group { Line::B } else { Line::A })
    }

    fn check(&self, stream: SocketAddrV4) -> Result<(), String> {
        let Some(group) = self.b else {
            return match self.listen {
                Listen::Both => Ok(()),
                _ => Err("`lines` needs `b`, the group of line B".into()),
            };
        };
        check_group(stream, group)?;
        if self.silence_ms == 0 || self.silence_ms * 1000 < 2 * self.skew_us {
            return Err("`lines`: `silence_ms` must be at least 1, and twice as long as `skew_us`".into());
        }
        Ok(())
    }
}

fn check_group(stream: SocketAddrV4, group: SocketAddrV4) -> Result<(), String> {
    if let Err(error) = crate::link::check_group(group) {
        return Err(format!("`lines`: {error}"));
    }
    if group == stream {
        return Err("`lines`: `b` is the group and port of line A: give line B another group or port, also on another interface".into());
    }
    Ok(())
}

impl Engine {
    /// The engine as it were with line B alone, when that has an interface of its own.
    #[must_use]
    pub fn on_line_b(&self) -> Option<Engine> {
        let second = self.line_b.as_ref()?;
        Some(Engine {
            interface: second.interface.clone(),
            port: second.port,
            mtu: second.mtu,
            xdp: second.xdp.clone().unwrap_or_else(|| self.xdp.clone()),
            fault: second.fault,
            ..self.clone()
        })
    }
}

impl Config {
    /// The groups whose streams it receives or records, one for each line.
    pub fn received_groups(&self) -> impl Iterator<Item = SocketAddrV4> {
        let archive = self.archive.iter().flat_map(|a| a.lines.groups(a.stream));
        archive.chain(self.subscribe.iter().flat_map(|s| s.lines.groups(s.stream)))
    }

    /// All groups that it joins, each once: servers listen as well, for another server on their stream.
    #[must_use]
    pub fn joined_groups(&self) -> Vec<SocketAddrV4> {
        let publish = self.publish.iter().flat_map(|p| [Some(p.stream), p.lines.b]);
        let mut joined: Vec<_> = self.received_groups().chain(publish.flatten()).collect();
        joined.sort_unstable();
        joined.dedup();
        joined
    }

    /// The groups of line B.
    #[must_use]
    pub fn groups_b(&self) -> Vec<SocketAddrV4> {
        let publish = self.publish.iter().map(|p| p.lines.b);
        let subscribe = self.subscribe.iter().map(|s| s.lines.b);
        let archive = self.archive.iter().map(|a| a.lines.b);
        publish.chain(subscribe).chain(archive).flatten().collect()
    }

    pub(super) fn check_lines(&self) -> Result<(), ConfigError> {
        let publish = self.publish.iter().map(|p| {
            let checked = p.lines.b.map_or(Ok(()), |b| check_group(p.stream, b));
            ("publish", p.stream, checked)
        });
        let subscribe = self
            .subscribe
            .iter()
            .map(|s| ("subscribe", s.stream, s.lines.check(s.stream)));
        let archive = self
            .archive
            .iter()
            .map(|a| ("archive", a.stream, a.lines.check(a.stream)));
        for (table, stream, checked) in publish.chain(subscribe).chain(archive) {
            if let Err(what) = checked {
                return Err(ConfigError::Invalid(format!("[[{table}]] {stream}: {what}")));
            }
        }
        let groups = self.groups_b();
        let streams = self.publish.iter().map(|p| p.stream);
        let streams = streams.chain(self.subscribe.iter().map(|s| s.stream));
        let mut streams = streams.chain(self.archive.iter().map(|a| a.stream));
        if let Some(both) = streams.find(|s| groups.contains(s)) {
            return Err(ConfigError::Invalid(format!(
                "{both} is line A of one stream and line B of another: give each line a group or port of its own"
            )));
        }
        match &self.engine.line_b {
            Some(_) if groups.is_empty() => Err(ConfigError::Invalid(
                "[engine.line_b]: no stream has `lines`, so that nothing would use the interface".into(),
            )),
            Some(b) if b.interface == self.engine.interface => Err(ConfigError::Invalid(format!(
                "[engine.line_b]: {} is the interface of line A; leave [engine.line_b] out to use both groups on it",
                b.interface
            ))),
            Some(b) if !(0.0..=1.0).contains(&b.fault.drop) => Err(ConfigError::Invalid(format!(
                "[engine.line_b.fault] drop = {} is not a share from 0.0 to 1.0",
                b.fault.drop
            ))),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn parse(engine: &str, lines: &str) -> Result<Config, String> {
        let text = format!(
            "[engine]\ninterface = \"eth1\"\n{engine}\n[[archive]]\nstream = \"239.1.1.1:5000\"\ndir = \"d\"\n{lines}"
        );
        Config::parse(&text, Path::new("x.toml")).map_err(|e| e.to_string())
    }

    #[test]
    fn one_or_both_lines_are_listened_to() {
        let (a, b): (SocketAddrV4, SocketAddrV4) =
            ("239.1.1.1:5000".parse().unwrap(), "239.2.1.1:5000".parse().unwrap());
        for (listen, groups, only) in [
            ("both", &[a, b][..], Line::A),
            ("a", &[a], Line::A),
            ("b", &[b], Line::B),
        ] {
            let config = parse("", &format!("lines = {{ b = \"{b}\", listen = \"{listen}\" }}")).unwrap();
            let lines = config.archive[0].lines;
            assert_eq!(lines.groups(a).collect::<Vec<_>>(), groups, "{listen}");
            assert_eq!((lines.only(), lines.both().is_some()), (only, groups.len() == 2));
            assert_eq!((lines.of(a), lines.of(b)), (Some(Line::A), Some(Line::B)));
        }
        let one = parse("", "").unwrap().archive[0].lines;
        assert_eq!((one.both(), one.of(a)), (None, None));
    }

    #[test]
    fn mistakes_are_named_with_the_remedy() {
        let second = "line_b = { interface = \"eth2\" }";
        assert!(parse(second, "lines = { b = \"239.2.1.1:5000\" }").is_ok());
        for (engine, lines, words) in [
            ("", "lines = { b = \"239.1.1.1:5000\" }", "another group or port"),
            ("", "lines = { b = \"10.1.1.1:5000\" }", "not a multicast address"),
            ("", "lines = { listen = \"b\" }", "needs `b`"),
            ("", "lines = { b = \"239.2.1.1:5000\", silence_ms = 1 }", "`silence_ms`"),
            ("", "lines = { c = 1 }", "unknown field `c`"),
            (second, "", "no stream has `lines`"),
            (
                "line_b = { interface = \"eth1\" }",
                "lines = { b = \"239.2.1.1:5000\" }",
                "interface of line A",
            ),
            (
                "",
                "lines = { b = \"239.2.1.1:5000\" }\n[[subscribe]]\nstream = \"239.2.1.1:5000\"\nsink = { stdout = true }",
                "line B of another",
            ),
        ] {
            let message = parse(engine, lines).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
    }
}
