//! What was measured, with all that a reader who was not there has to know.

use std::fs;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::noise::Noise;
use crate::host::Finding;

/// A report: everything in one file.
#[derive(Serialize)]
pub struct Report {
    /// When it was made.
    pub time: String,
    /// The near end.
    pub near: Machine,
    /// The far end, in its own words.
    pub far: Machine,
    /// What `seqcast check` says of the near end's host and interface.
    pub host: Vec<Finding>,
    /// The near end's configuration.
    pub configuration: String,
    /// What the near end's core loses to others.
    pub noise: Noise,
    /// By size of message.
    pub sizes: Vec<Size>,
    /// The one way of messages sent at a pace; `None` if that was not measured.
    pub one_way: Option<OneWay>,
    /// With frames lost on purpose.
    pub recovery: Option<Recovery>,
    /// The near end's engine at the end, in the form of its own report.
    pub engine: Value,
}

/// A host with an engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Version of this program.
    pub seqcast: String,
    /// Name of the host.
    pub host: String,
    /// Release of the kernel.
    pub kernel: String,
    /// The processor.
    pub processor: String,
    /// Its cores.
    pub cores: usize,
    /// What the link really is.
    pub link: String,
}

/// What was measured with messages of one size.
#[derive(Clone, Debug, Serialize)]
pub struct Size {
    /// Bytes of a message.
    pub bytes: usize,
    /// There and back, one message at a time.
    pub round_trip: Latency,
    /// Messages a second, delivered in order at the far end, as fast as it goes.
    pub messages_per_second: f64,
    /// Bytes of these messages a second.
    pub bytes_per_second: f64,
}

/// Messages sent at a pace.
#[derive(Clone, Debug, Serialize)]
pub struct OneWay {
    /// Bytes of a message.
    pub bytes: usize,
    /// Microseconds between two.
    pub every_us: u64,
    /// From sending to the far end's application.
    pub latency: Latency,
    /// Both ends have one clock. If not, what the far clock is ahead was taken from the quickest round trip, and the
    /// figures may be wrong by half of that.
    pub one_clock: bool,
    /// By how much they may be wrong, in ns.
    pub error_ns: u64,
}

/// Answers of the far end of which the near end has lost some.
#[derive(Clone, Debug, Serialize)]
pub struct Recovery {
    /// Share of the arriving frames that was lost.
    pub lost_share: f64,
    /// Microseconds between two messages.
    pub every_us: u64,
    /// Round trips of those that were not lost.
    pub live: Latency,
    /// Round trips of those that were repaired: sending, loss, question and repair.
    pub repaired: Latency,
    /// Messages that could not be had again.
    pub given_up: u64,
}

/// Times in ns.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Latency {
    /// Messages.
    pub count: u64,
    /// The least.
    pub min_ns: u64,
    /// Half take no longer.
    pub p50_ns: u64,
    /// Nine in ten.
    pub p90_ns: u64,
    /// 99 in 100.
    pub p99_ns: u64,
    /// 999 in 1000.
    pub p999_ns: u64,
    /// The greatest.
    pub max_ns: u64,
    /// Percentiles with their times, for a plot.
    pub percentiles: Vec<(f64, u64)>,
}

impl Latency {
    pub(super) fn of(histogram: &Histogram<u64>) -> Latency {
        let at = |percentile| histogram.value_at_percentile(percentile);
        let points = histogram.iter_quantiles(5);
        Latency {
            count: histogram.len(),
            min_ns: histogram.min(),
            p50_ns: at(50.0),
            p90_ns: at(90.0),
            p99_ns: at(99.0),
            p999_ns: at(99.9),
            max_ns: histogram.max(),
            percentiles: points
                .map(|p| (p.quantile_iterated_to() * 100.0, p.value_iterated_to()))
                .collect(),
        }
    }
}

impl Machine {
    pub(super) fn this(link: &str) -> Machine {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
        let processor = model.map_or("unknown", |model| model.trim_start_matches([' ', '\t', ':']));
        Machine {
            seqcast: env!("CARGO_PKG_VERSION").into(),
            host: read("/proc/sys/kernel/hostname").trim().into(),
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
            processor: processor.into(),
            cores: cpuinfo.lines().filter(|line| line.starts_with("processor")).count(),
            link: link.into(),
        }
    }
}
