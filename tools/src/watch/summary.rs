//! Two looks at an engine, made into rates and percentiles.

use std::collections::BTreeMap;

use seqcast_engine::counters::{Kind, Part, Series, Sheet, Value};
use seqcast_engine::report::Latency;
use serde::Serialize;

use super::warn::warnings;

/// An engine between two looks.
#[derive(Clone, Debug, Serialize)]
pub struct Engine {
    /// Its name.
    pub engine: String,
    /// What its link really is.
    pub mode: String,
    /// Its process.
    pub pid: u32,
    /// Whether that process is there.
    pub alive: bool,
    /// When its counters were written: nanoseconds since 1970.
    pub written: u64,
    /// Seconds between the two looks; 0 for one look, which knows no rates.
    pub seconds: f64,
    /// Its link, its duty cycle and its streams.
    pub parts: Vec<PartSummary>,
    /// What is wrong, in words.
    pub warnings: Vec<String>,
}

/// A part of an engine.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PartSummary {
    /// What it is.
    #[serde(flatten)]
    pub of: Part,
    /// All numbers, since the engine's start.
    pub totals: BTreeMap<String, u64>,
    /// Counters by second.
    pub rates: BTreeMap<String, f64>,
    /// Latencies of what was delivered between the looks, or since the start with one look.
    pub latencies: BTreeMap<String, Latency>,
    /// NAK frames by who sent them.
    pub peers: Vec<Peer>,
    /// NAK frames by whom they went to.
    pub asked: Vec<Peer>,
}

/// Who asks for repairs, or is asked.
#[derive(Clone, Debug, Serialize)]
pub struct Peer {
    /// Its address.
    pub address: String,
    /// NAK frames since the engine's start.
    pub naks: u64,
    /// By second.
    pub rate: f64,
}

impl Engine {
    /// What `now` says, and what changed since `before`, if that is of the same process.
    #[must_use]
    pub fn between(before: Option<&Sheet>, now: &Sheet) -> Engine {
        let before = before.filter(|b| b.pid == now.pid && b.engine == now.engine && b.written < now.written);
        let seconds = before.map_or(0.0, |b| (now.written - b.written) as f64 / 1e9);
        let mut parts: Vec<PartSummary> = Vec::new();
        for series in &now.series {
            let at = parts.iter().position(|part| part.of == series.of).unwrap_or_else(|| {
                parts.push(PartSummary {
                    of: series.of.clone(),
                    ..PartSummary::default()
                });
                parts.len() - 1
            });
            let old = before.and_then(|b| b.series.iter().find(|s| s.of == series.of && s.name == series.name));
            parts[at].add(series, old.map(|old| &old.value), seconds);
        }
        let mut engine = Engine {
            engine: now.engine.clone(),
            mode: now.mode.clone(),
            pid: now.pid,
            alive: now.alive,
            written: now.written,
            seconds,
            parts,
            warnings: Vec::new(),
        };
        engine.warnings = warnings(&engine);
        engine
    }

    /// The parts of one kind, such as `subscription`, without those of single lines.
    pub fn parts(&self, part: &str) -> impl Iterator<Item = &PartSummary> {
        self.parts
            .iter()
            .filter(move |p| p.of.part == part && p.of.line.is_none())
    }

    /// The share of its time that the engine was at work, 0 to 1, since the look before.
    #[must_use]
    pub fn busy(&self) -> f64 {
        let cycle = self.parts("cycle").next();
        let rate = |name: &str| cycle.map_or(0.0, |cycle| cycle.rate(name));
        let all = rate("busy_ns") + rate("idle_ns") + rate("asleep_ns");
        if all > 0.0 { rate("busy_ns") / all } else { 0.0 }
    }
}

impl PartSummary {
    fn add(&mut self, series: &Series, old: Option<&Value>, seconds: f64) {
        let name = &series.name;
        let by_second = |more: u64| more as f64 / seconds;
        match (&series.value, old) {
            (Value::Number(kind, now), old) => {
                self.totals.insert(name.clone(), *now);
                if let (Kind::Counter, Some(Value::Number(_, old))) = (kind, old) {
                    self.rates.insert(name.clone(), by_second(now.saturating_sub(*old)));
                }
            }
            (Value::Histogram(now), old) => {
                let latency = match old {
                    Some(Value::Histogram(old)) => {
                        Latency::of_counts(now.iter().zip(old).map(|(n, o)| n.saturating_sub(*o)))
                    }
                    _ => Latency::of_counts(now.iter().copied()),
                };
                self.latencies.insert(name.clone(), latency);
            }
            (Value::Peers(now), old) => {
                let before = |addr| match old {
                    Some(Value::Peers(old)) => old.iter().find(|(a, _)| *a == addr).map(|(_, n)| *n),
                    _ => None,
                };
                let peers = now
                    .iter()
                    .map(|(addr, naks)| Peer {
                        address: addr.to_string(),
                        naks: *naks,
                        rate: match old {
                            Some(_) => by_second(naks.saturating_sub(before(*addr).unwrap_or(0))),
                            None => 0.0,
                        },
                    })
                    .collect();
                if name == "naks_to" {
                    self.asked = peers;
                } else {
                    self.peers = peers;
                }
            }
        }
    }

    /// A number since the engine's start; 0 if there is none of this name.
    #[must_use]
    pub fn total(&self, name: &str) -> u64 {
        self.totals.get(name).copied().unwrap_or(0)
    }

    /// How fast it grows, by second; 0 if that is not known.
    #[must_use]
    pub fn rate(&self, name: &str) -> f64 {
        self.rates.get(name).copied().unwrap_or(0.0)
    }
}
