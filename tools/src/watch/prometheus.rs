//! Counters in the text format of Prometheus, version 0.0.4.

use std::collections::BTreeMap;
use std::fmt::Write;

use seqcast_engine::counters::{Buckets, Kind, Series, Sheet, Value};

/// Upper bounds of the histograms' buckets, in nanoseconds: 1, 2.5, 5 of each power of ten.
const BOUNDS: [u64; 24] = {
    let mut bounds = [0; 24];
    let mut at = 0;
    let mut power = 1_000;
    while at < 24 {
        bounds[at] = power;
        bounds[at + 1] = power * 5 / 2;
        bounds[at + 2] = power * 5;
        power *= 10;
        at += 3;
    }
    bounds
};

/// All samples of one name.
struct Family {
    help: String,
    kind: &'static str,
    samples: String,
}

/// The content type of [`text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The counters of these engines. What an engine counts in nanoseconds is in seconds here, as is usual
/// there; histograms have coarser buckets than the engine's, whose bounds they meet within 1 %.
#[must_use]
pub fn text(sheets: &[Sheet]) -> String {
    let mut families = BTreeMap::new();
    for sheet in sheets {
        let labels = labels(&[("engine", &sheet.engine), ("pid", &sheet.pid.to_string())]);
        let mut gauge = |name: &str, help: &str, labels: &str, value: f64| {
            sample(&mut families, name, help, "gauge", labels, value);
        };
        gauge(
            "seqcast_up",
            "Whether the engine's process is there.",
            &labels,
            f64::from(u8::from(sheet.alive)),
        );
        let written = sheet.written as f64 / 1e9;
        gauge(
            "seqcast_written_seconds",
            "When the engine last wrote its counters, since 1970.",
            &labels,
            written,
        );
        for series in &sheet.series {
            add(&mut families, sheet, series);
        }
    }
    let mut text = String::new();
    for (name, family) in families {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "# HELP {name} {}\n# TYPE {name} {}\n{}",
            family.help, family.kind, family.samples
        );
    }
    text
}

fn labels(all: &[(&str, &str)]) -> String {
    let all = all.iter().map(|(name, value)| {
        let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        format!("{name}=\"{value}\"")
    });
    all.collect::<Vec<_>>().join(",")
}

fn sample(
    families: &mut BTreeMap<String, Family>,
    name: &str,
    help: &str,
    kind: &'static str,
    labels: &str,
    value: f64,
) {
    let family = family(families, name, help, kind);
    let _ = writeln!(family.samples, "{name}{{{labels}}} {value}");
}

fn family<'a>(
    families: &'a mut BTreeMap<String, Family>,
    name: &str,
    help: &str,
    kind: &'static str,
) -> &'a mut Family {
    families.entry(name.to_owned()).or_insert_with(|| Family {
        help: help.replace('\\', "\\\\").replace('\n', " "),
        kind,
        samples: String::new(),
    })
}

fn add(families: &mut BTreeMap<String, Family>, sheet: &Sheet, series: &Series) {
    let of = &series.of;
    let mut pairs = vec![("engine", sheet.engine.as_str())];
    pairs.extend(of.stream.as_deref().map(|stream| ("stream", stream)));
    pairs.extend(of.line.as_deref().map(|line| ("line", line)));
    // A line has counters of its own, which are no part of its stream's.
    let part = if of.line.is_some() {
        format!("{}_line", of.part)
    } else {
        of.part.clone()
    };
    let (name, scale) = match series.name.strip_suffix("_ns") {
        Some(name) => (format!("seqcast_{part}_{name}_seconds"), 1e9),
        None => (format!("seqcast_{part}_{}", series.name), 1.0),
    };
    let help = match series.help.strip_prefix("Nanoseconds") {
        Some(rest) => format!("Seconds{rest}"),
        None => series.help.clone(),
    };
    match &series.value {
        Value::Number(Kind::Gauge, value) => {
            sample(families, &name, &help, "gauge", &labels(&pairs), *value as f64 / scale);
        }
        Value::Number(Kind::Counter, value) => {
            let name = name + "_total";
            sample(
                families,
                &name,
                &help,
                "counter",
                &labels(&pairs),
                *value as f64 / scale,
            );
        }
        Value::Peers(peers) => {
            for (addr, count) in peers {
                let addr = addr.to_string();
                let labels = labels(&[&pairs[..], &[("peer", &addr)]].concat());
                sample(
                    families,
                    &format!("{name}_total"),
                    &help,
                    "counter",
                    &labels,
                    *count as f64,
                );
            }
        }
        Value::Histogram(counts) => {
            let labels = labels(&pairs);
            let family = family(families, &name, &help, "histogram");
            histogram(&mut family.samples, &name, &labels, counts);
        }
    }
}

fn histogram(samples: &mut String, name: &str, labels: &str, counts: &[u64]) {
    let (mut below, mut at) = (0, 0);
    for bound in BOUNDS {
        let end = Buckets::index(bound) + 1;
        below += counts[at.min(counts.len())..end.min(counts.len())].iter().sum::<u64>();
        at = end;
        let _ = writeln!(
            samples,
            "{name}_bucket{{{labels},le=\"{}\"}} {below}",
            bound as f64 / 1e9
        );
    }
    let count: u64 = counts.iter().sum();
    let sum: f64 = counts
        .iter()
        .enumerate()
        .map(|(i, n)| *n as f64 * Buckets::largest(i) as f64)
        .sum();
    let _ = writeln!(samples, "{name}_bucket{{{labels},le=\"+Inf\"}} {count}");
    let _ = writeln!(
        samples,
        "{name}_sum{{{labels}}} {}\n{name}_count{{{labels}}} {count}",
        sum / 1e9
    );
}

#[cfg(test)]
mod tests {
    use seqcast_engine::counters::Part;

    use super::*;

    #[test]
    fn numbers_histograms_and_peers_are_written_as_prometheus_reads_them() {
        let of = Part {
            part: "subscription".into(),
            stream: Some("239.1.1.1:5000".into()),
            line: None,
        };
        let series = |name: &str, value| Series {
            of: of.clone(),
            name: name.into(),
            help: "Nanoseconds of it.".into(),
            value,
        };
        let mut counts = vec![0; Buckets::COUNT];
        counts[Buckets::index(900)] = 2;
        counts[Buckets::index(40_000)] = 1;
        let sheet = Sheet {
            engine: "a\"b".into(),
            mode: String::new(),
            pid: 7,
            alive: true,
            written: 1_500_000_000,
            series: vec![
                series("messages", Value::Number(Kind::Counter, 5)),
                series("round_trip_ns", Value::Number(Kind::Gauge, 250)),
                series("naks_from", Value::Peers(vec![("10.0.0.1:9".parse().unwrap(), 3)])),
                series("latency_ns", Value::Histogram(counts)),
            ],
        };
        let text = text(&[sheet]);
        for line in [
            "seqcast_up{engine=\"a\\\"b\",pid=\"7\"} 1",
            "# TYPE seqcast_subscription_messages_total counter",
            "seqcast_subscription_messages_total{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\"} 5",
            "# HELP seqcast_subscription_round_trip_seconds Seconds of it.",
            "seqcast_subscription_round_trip_seconds{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\"} 0.00000025",
            "seqcast_subscription_naks_from_total{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\",peer=\"10.0.0.1:9\"} 3",
            "# TYPE seqcast_subscription_latency_seconds histogram",
            "seqcast_subscription_latency_seconds_bucket{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\",le=\"0.000001\"} 2",
            "seqcast_subscription_latency_seconds_bucket{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\",le=\"0.00005\"} 3",
            "seqcast_subscription_latency_seconds_bucket{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\",le=\"+Inf\"} 3",
            "seqcast_subscription_latency_seconds_count{engine=\"a\\\"b\",stream=\"239.1.1.1:5000\"} 3",
        ] {
            assert!(text.lines().any(|l| l == line), "{line}\n{text}");
        }
    }
}
