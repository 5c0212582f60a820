//! Who is believed: keys and allow-lists of an engine's streams, checked before anything changes.

use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, Result};
use seqcast_proto::seal::{Seal, Unsealed, is_keyed};
use seqcast_proto::seq::Stream;
use seqcast_proto::time::{MILLIS, Nanos, Now};
use seqcast_proto::wire::{Kind, flags, header};

use crate::config::{Allow, Config, Net, Trust};
use crate::counters::{Builder, Part, Writing};
use crate::keys::Watch;
use crate::log::{self, Tally};
use crate::report::{TrustCounts, TrustReport};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may be used as it is.
    Plain,
    /// It may be used without its trailer.
    Sealed,
    /// It changes nothing.
    Refused,
}

/// Why a frame was refused.
#[derive(Clone, Copy)]
enum Cause {
    Forged,
    Replayed,
    Stale,
    Unkeyed,
    UnknownKey,
    Keyed,
    NotAllowed,
}

const CAUSES: [(Cause, &str); 7] = [
    (Cause::Forged, "were not made with the stream's key, or damaged"),
    (Cause::Replayed, "were sent before: replays"),
    (
        Cause::Stale,
        "were sealed too far from now: replays, or the hosts' clocks differ by more than `trust.clock_skew_ms`",
    ),
    (
        Cause::Unkeyed,
        "are not keyed, but the stream is: set `trust.key` there, or remove it here",
    ),
    (
        Cause::UnknownKey,
        "are sealed with a key that is not in the stream's key file: add it here first",
    ),
    (
        Cause::Keyed,
        "are keyed, but the stream has no key here: set `trust.key`",
    ),
    (Cause::NotAllowed, "come from a source that `trust.allow` does not name"),
];

/// One stream's trust.
struct Guard {
    stream: Stream,
    group: SocketAddrV4,
    seal: Option<Seal>,
    allow: Option<Allow>,
    opened: u64,
    reloads: u64,
    refused: [Refused; CAUSES.len()],
}

/// Frames refused for one cause.
#[derive(Clone, Copy)]
struct Refused {
    count: u64,
    /// How many of them were spoken of.
    said: Tally,
    /// Where the last came from.
    from: SocketAddrV4,
}

/// The trust of all streams of an engine.
pub(super) struct Guards {
    name: String,
    list: Vec<Guard>,
    /// Some stream has a key or an allow-list.
    active: bool,
    /// Reads key files again, those of `watched` in this order.
    watch: Option<Watch>,
    /// Places in the list.
    watched: Vec<usize>,
}

impl Guards {
    /// Reads the keys of all streams.
    ///
    /// # Errors
    /// Names the file of keys that cannot be used, and why.
    pub(super) fn open(config: &Config, now: Now) -> Result<Guards> {
        let mut list: Vec<Guard> = Vec::new();
        let (mut watched, mut paths) = (Vec::new(), Vec::new());
        let mut skews = Vec::new();
        for (group, id, trust) in config.trusts() {
            let stream = crate::stream_id(group, id);
            // Tables of one stream agree; that was checked with the configuration.
            if list.iter().any(|g| g.stream == stream) {
                continue;
            }
            let allow = named(trust);
            if let Some((Trust { clock_skew_ms, .. }, path)) = trust.and_then(|t| Some((t, t.key.as_ref()?))) {
                watched.push(list.len());
                paths.push(path.clone());
                skews.push(clock_skew_ms * MILLIS);
            }
            list.push(Guard {
                stream,
                group,
                seal: None,
                allow: allow.cloned(),
                opened: 0,
                reloads: 0,
                refused: [Refused {
                    count: 0,
                    said: Tally::default(),
                    from: SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0),
                }; CAUSES.len()],
            });
        }
        let name = config.engine.name.clone();
        let mut watch = None;
        if !paths.is_empty() {
            let (started, rings) = Watch::start(&name, paths).context("cannot use a stream's keys")?;
            watch = Some(started);
            for ((at, ring), skew) in watched.iter().zip(rings).zip(skews) {
                list[*at].seal = Some(Seal::new(ring, skew, now.wall));
            }
        }
        let active = list.iter().any(|g| g.seal.is_some() || g.allow.is_some());
        Ok(Guards {
            name,
            list,
            active,
            watch,
            watched,
        })
    }

    /// Takes the allow-lists of another configuration of the same streams.
    pub(super) fn set_allow(&mut self, config: &Config) {
        for (group, id, trust) in config.trusts() {
            let stream = crate::stream_id(group, id);
            if let Some(guard) = self.list.iter_mut().find(|g| g.stream == stream) {
                guard.allow = named(trust).cloned();
            }
        }
        self.active = self.list.iter().any(|g| g.seal.is_some() || g.allow.is_some());
    }

    /// What seals the frames of a stream, if anything does.
    #[inline]
    pub(super) fn seal(&mut self, stream: Stream) -> Option<&mut Seal> {
        if !self.active {
            return None;
        }
        self.list.iter_mut().find(|g| g.stream == stream)?.seal.as_mut()
    }

    /// Checks a frame that the link received, of a stream and kind that its header names.
    #[inline]
    pub(super) fn check(&mut self, now: Now, from: SocketAddrV4, stream: Stream, kind: Kind, bytes: &[u8]) -> Verdict {
        if !self.active && !is_keyed(bytes) {
            return Verdict::Plain;
        }
        match self.list.iter_mut().find(|g| g.stream == stream) {
            Some(guard) => guard.check(now, from, kind, bytes),
            // Nobody here wants it.
            None => Verdict::Plain,
        }
    }

    /// Takes keys that were read again.
    #[inline]
    pub(super) fn renew(&mut self) {
        if let Some(watch) = self.watch.as_mut().filter(|w| w.has_news()) {
            watch.take(|at, ring| {
                let guard = &mut self.list[self.watched[at]];
                guard.reloads += 1;
                if let Some(seal) = &mut guard.seal {
                    seal.set_keys(ring);
                }
            });
        }
    }

    /// Says which frames were refused, now and then.
    pub(super) fn speak(&mut self, now: Nanos) {
        for guard in &mut self.list {
            guard.speak(&self.name, now);
        }
    }

    /// Streams with keys or allow-lists, and those of which keyed frames came without need.
    pub(super) fn report(&self) -> Vec<TrustReport> {
        let noteworthy = |g: &&Guard| g.seal.is_some() || g.allow.is_some() || g.refused.iter().any(|r| r.count > 0);
        self.list.iter().filter(noteworthy).map(Guard::report).collect()
    }

    /// Says what counters there are.
    pub(super) fn describe(&self, to: &mut Builder) {
        for guard in &self.list {
            to.numbers::<TrustCounts>(Part::of_stream("trust", guard.group));
        }
    }

    /// Writes them, in the same order.
    pub(super) fn write_counters(&self, to: &mut Writing<'_>) {
        self.list.iter().for_each(|guard| to.put(&guard.counts()));
    }
}

impl Guard {
    fn check(&mut self, now: Now, from: SocketAddrV4, kind: Kind, bytes: &[u8]) -> Verdict {
        if let Some(allow) = &self.allow
            && !allows(allow, kind, bytes, *from.ip())
        {
            return self.refuse(Cause::NotAllowed, from);
        }
        let Some(seal) = &mut self.seal else {
            return if is_keyed(bytes) {
                self.refuse(Cause::Keyed, from)
            } else {
                Verdict::Plain
            };
        };
        match seal.open(now.wall, bytes) {
            Ok(_) => {
                self.opened += 1;
                Verdict::Sealed
            }
            Err(Unsealed::Unkeyed) => self.refuse(Cause::Unkeyed, from),
            Err(Unsealed::UnknownKey(_)) => self.refuse(Cause::UnknownKey, from),
            Err(Unsealed::Forged) => self.refuse(Cause::Forged, from),
            Err(Unsealed::Replayed) => self.refuse(Cause::Replayed, from),
            Err(Unsealed::Stale(_)) => self.refuse(Cause::Stale, from),
        }
    }

    #[cold]
    fn refuse(&mut self, cause: Cause, from: SocketAddrV4) -> Verdict {
        let refused = &mut self.refused[cause as usize];
        refused.count += 1;
        refused.from = from;
        Verdict::Refused
    }

    fn speak(&mut self, name: &str, now: Nanos) {
        for (refused, (_, text)) in self.refused.iter_mut().zip(CAUSES) {
            if let Some(frames) = refused.said.news(refused.count, now) {
                let from = refused.from;
                tracing::warn!(
                    target: log::TRUST, engine = name, stream = %self.group, frames, peer = %from,
                    "{frames} frames, the last from {from}, {text}; they were dropped"
                );
            }
        }
    }

    fn report(&self) -> TrustReport {
        TrustReport {
            stream: self.group.to_string(),
            keys: self.seal.iter().flat_map(|s| s.keys().ids()).collect(),
            counts: self.counts(),
        }
    }

    fn counts(&self) -> TrustCounts {
        let count = |cause: Cause| self.refused[cause as usize].count;
        TrustCounts {
            reloads: self.reloads,
            sealed: self.seal.as_ref().map_or(0, Seal::sealed),
            opened: self.opened,
            forged: count(Cause::Forged),
            replayed: count(Cause::Replayed),
            stale: count(Cause::Stale),
            unkeyed: count(Cause::Unkeyed),
            unknown_key: count(Cause::UnknownKey),
            keyed: count(Cause::Keyed),
            not_allowed: count(Cause::NotAllowed),
        }
    }
}

/// The allow-lists of a stream, if it has any.
fn named(trust: Option<&Trust>) -> Option<&Allow> {
    trust.map(|t| &t.allow).filter(|a| **a != Allow::default())
}

/// Whether `from` may send a frame of this kind.
fn allows(allow: &Allow, kind: Kind, bytes: &[u8], from: Ipv4Addr) -> bool {
    let named = |list: &Option<Vec<Net>>| list.as_ref().is_none_or(|l| l.iter().any(|n| n.contains(from)));
    match kind {
        Kind::Data | Kind::Heartbeat => named(&allow.servers),
        Kind::Ack => named(&allow.archives),
        Kind::Nak => named(&allow.clients) || named(&allow.archives),
        Kind::Repair | Kind::Unavailable | Kind::End => {
            let by_server = header(bytes).is_some_and(|h| h.has(flags::FROM_SERVER));
            named(if by_server { &allow.servers } else { &allow.archives })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seqcast_proto::seal::{CLOCK_SKEW, Key, KeyRing};
    use seqcast_proto::seq::{Seq, Session};
    use seqcast_proto::time::SECONDS;
    use seqcast_proto::wire::Stamp;
    use std::path::Path;

    const NOW: Now = Now {
        mono: 0,
        wall: 1_800_000_000 * SECONDS,
    };

    fn guards(trust: &str) -> Guards {
        let text = format!(
            "[engine]\ninterface = \"lo\"\n[[subscribe]]\nstream = \"239.1.1.1:5000\"\n{trust}\nsink = {{ stdout = true }}"
        );
        let config = Config::parse(&text, Path::new("x.toml")).unwrap();
        Guards::open(&config, NOW).unwrap()
    }

    fn frame(kind: Kind, flags: u16, seal: Option<&mut Seal>) -> Vec<u8> {
        let mut out = vec![0; 128];
        let stamp = Stamp {
            stream: Stream(0x0101_1388),
            session: Session(9),
            sequence: Seq(1),
            time: NOW.wall,
            flags,
            origin: 4,
        };
        stamp.write(&mut out, kind, 0);
        let len = seal.map_or(32, |s| s.seal(NOW.wall + 1, &mut out, 32));
        out.truncate(len);
        out
    }

    fn check(guards: &mut Guards, from: &str, kind: Kind, bytes: &[u8]) -> Verdict {
        guards.check(NOW, from.parse().unwrap(), Stream(0x0101_1388), kind, bytes)
    }

    #[test]
    fn only_named_sources_send_what_they_may() {
        let mut guards = guards(
            "trust = { allow = { servers = [\"10.0.0.1\"], archives = [\"10.0.1.0/24\"], clients = [\"10.0.2.0/24\"] } }",
        );
        let server = flags::FROM_SERVER;
        for (kind, flags, from, verdict) in [
            (Kind::Data, 0, "10.0.0.1:9", Verdict::Plain),
            (Kind::Data, 0, "10.0.1.1:9", Verdict::Refused),
            (Kind::Heartbeat, 0, "10.0.2.1:9", Verdict::Refused),
            (Kind::Ack, 0, "10.0.1.9:9", Verdict::Plain),
            (Kind::Ack, 0, "10.0.2.9:9", Verdict::Refused),
            (Kind::Nak, 0, "10.0.1.9:9", Verdict::Plain),
            (Kind::Nak, 0, "10.0.2.9:9", Verdict::Plain),
            (Kind::Nak, 0, "10.0.3.9:9", Verdict::Refused),
            (Kind::Repair, 0, "10.0.1.9:9", Verdict::Plain),
            (Kind::Repair, server, "10.0.1.9:9", Verdict::Refused),
            (Kind::End, server, "10.0.0.1:9", Verdict::Plain),
            (Kind::End, 0, "10.0.2.1:9", Verdict::Refused),
        ] {
            let bytes = frame(kind, flags, None);
            assert_eq!(check(&mut guards, from, kind, &bytes), verdict, "{kind:?} from {from}");
        }
        assert_eq!(guards.report()[0].not_allowed, 6);
    }

    #[test]
    fn keyed_frames_where_no_key_is_are_refused_and_counted() {
        let mut guards = guards("");
        let ring = KeyRing::new(vec![Key::new(1, &[1; 32])]).unwrap();
        let mut seal = Seal::new(ring, CLOCK_SKEW, 0);
        let plain = frame(Kind::Data, 0, None);
        assert_eq!(check(&mut guards, "10.0.0.1:9", Kind::Data, &plain), Verdict::Plain);
        assert!(guards.report().is_empty());
        let keyed = frame(Kind::Data, 0, Some(&mut seal));
        assert_eq!(check(&mut guards, "10.0.0.1:9", Kind::Data, &keyed), Verdict::Refused);
        assert_eq!(guards.report()[0].keyed, 1);
    }
}
