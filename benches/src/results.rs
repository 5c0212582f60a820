//! What was measured: samples by round, ratios within a round, and how they are written.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use serde::Serialize;

use crate::duel::{Measured, Outcome};
use crate::jitter::Jitter;

/// What a row's samples are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Unit {
    /// Medians of latencies. Lower is better.
    Nanoseconds,
    /// Higher is better.
    PerSecond,
}

/// Which row a row is held against, and by what measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Limit {
    /// The other row's contender.
    pub(crate) contender: &'static str,
    /// What it did.
    pub(crate) what: &'static str,
    /// How many messages of the row fill a frame of the other's size: 1 unless frames are shared.
    pub(crate) per_frame: usize,
}

/// One contender at one task.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    group: &'static str,
    contender: &'static str,
    what: &'static str,
    unit: Unit,
    limit: Option<Limit>,
    /// One a round: messages a second, or the round's median latency.
    samples: Vec<f64>,
    /// One a round: frames handed to the kernel a second.
    frames: Vec<f64>,
    /// Of all rounds.
    syscalls_per_frame: Vec<f64>,
    /// Shares of the messages that never arrived.
    lost: Vec<f64>,
    /// p99 of each round.
    p99: Vec<f64>,
    /// Shares of the time that the threads waited for their cores.
    waited: Vec<f64>,
    /// All rounds together.
    #[serde(skip)]
    histogram: Option<Histogram<u64>>,
}

impl Row {
    fn is(&self, name: &Name) -> bool {
        (self.group, self.contender, self.what) == (name.group, name.contender, name.what)
    }
}

/// The least, middle and greatest of some samples.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

fn spread(samples: &[f64]) -> Spread {
    let mut sorted = samples.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else {
        return Spread::default();
    };
    let half = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[half]
    } else {
        f64::midpoint(sorted[half - 1], sorted[half])
    };
    Spread { median, min, max }
}

/// All rows, in the order in which they first came.
#[derive(Default)]
pub(crate) struct Results {
    rows: Vec<Row>,
    jitter: Vec<Jitter>,
}

/// Names a row.
#[derive(Clone, Copy)]
pub(crate) struct Name {
    pub(crate) group: &'static str,
    pub(crate) contender: &'static str,
    pub(crate) what: &'static str,
    pub(crate) limit: Option<Limit>,
}

impl Results {
    fn row(&mut self, name: Name, unit: Unit) -> &mut Row {
        let at = self.rows.iter().position(|row| row.is(&name)).unwrap_or_else(|| {
            self.rows.push(Row {
                group: name.group,
                contender: name.contender,
                what: name.what,
                unit,
                limit: name.limit,
                samples: Vec::new(),
                frames: Vec::new(),
                syscalls_per_frame: Vec::new(),
                lost: Vec::new(),
                p99: Vec::new(),
                waited: Vec::new(),
                histogram: None,
            });
            self.rows.len() - 1
        });
        &mut self.rows[at]
    }

    /// Adds what a round found.
    pub(crate) fn add(&mut self, name: Name, measured: &Measured) {
        match &measured.outcome {
            Outcome::Latency { all, .. } => self.add_latency(name, all),
            Outcome::Rate {
                messages,
                frames,
                syscalls_per_frame,
                lost,
            } => {
                let row = self.row(name, Unit::PerSecond);
                row.samples.push(*messages);
                row.frames.push(*frames);
                row.syscalls_per_frame.push(*syscalls_per_frame);
                row.lost.push(*lost);
            }
        }
        let rows = self.rows.iter_mut();
        for row in rows.filter(|row| row.is(&name)) {
            row.waited.push(measured.waited);
        }
    }

    /// Adds a round's latencies. None at all leave no sample.
    pub(crate) fn add_latency(&mut self, name: Name, histogram: &Histogram<u64>) {
        if histogram.is_empty() {
            return;
        }
        let row = self.row(name, Unit::Nanoseconds);
        row.samples.push(histogram.value_at_quantile(0.5) as f64);
        row.p99.push(histogram.value_at_quantile(0.99) as f64);
        match &mut row.histogram {
            // Both have the same bounds.
            Some(sum) => sum.add(histogram).expect("histograms of one kind"),
            None => row.histogram = Some(histogram.clone()),
        }
    }

    /// Adds a round's rate.
    pub(crate) fn add_rate(&mut self, name: Name, per_second: f64) {
        self.row(name, Unit::PerSecond).samples.push(per_second);
    }

    /// Adds what the machine took in a round.
    pub(crate) fn add_jitter(&mut self, jitter: Jitter) {
        self.jitter.push(jitter);
    }

    /// How a row stands against its limit, above 1 is better: the spread of the ratios within each
    /// round.
    fn ratio(&self, row: &Row) -> Option<Spread> {
        let limit = row.limit?;
        let of = self
            .rows
            .iter()
            .find(|other| (other.group, other.contender, other.what) == (row.group, limit.contender, limit.what))?;
        let pairs = row.samples.iter().zip(&of.samples);
        let ratios: Vec<f64> = pairs
            .map(|(mine, other)| match row.unit {
                Unit::PerSecond => mine / limit.per_frame as f64 / other,
                Unit::Nanoseconds => other / mine,
            })
            .collect();
        (!ratios.is_empty()).then(|| spread(&ratios))
    }

    /// What programs beside an engine add to a round trip of programs within it: the spread of the
    /// differences within each round, ns, and of the same in round trips of the ring to them.
    fn added(&self, row: &Row) -> Option<(Spread, Spread)> {
        let find = |group, contender| {
            let mut rows = self.rows.iter();
            rows.find(|row| row.group == group && row.contender == contender && row.unit == Unit::Nanoseconds)
        };
        let (within, ring) = (
            find(row.group, row.limit?.contender)?,
            find(crate::RINGS, crate::rings::Ring::Broadcast.name())?,
        );
        let samples = row.samples.iter().zip(&within.samples).zip(&ring.samples);
        let (added, rings): (Vec<f64>, Vec<f64>) = samples
            .map(|((mine, other), ring)| (mine - other, (mine - other) / ring))
            .unzip();
        (!added.is_empty()).then(|| (spread(&added), spread(&rings)))
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let mut group = "";
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| crate::GROUPS.iter().position(|group| *group == row.group));
        for row in rows {
            if row.group != group {
                group = row.group;
                let _ = writeln!(
                    text,
                    "\n{group:46} {:>24} {:>8} {:>7} {:>6} {:>6} {:>6}  against",
                    "median (min-max)", "p99 us", "sys/frm", "lost", "waited", "ratio"
                );
            }
            let Spread { median, min, max } = spread(&row.samples);
            let (scale, unit) = match row.unit {
                Unit::PerSecond => (1e6, "M/s"),
                Unit::Nanoseconds => (1e3, "us"),
            };
            let value = format!("{:.2} ({:.2}-{:.2}) {unit}", median / scale, min / scale, max / scale);
            let some = |samples: &[f64], scale: f64, digits: usize| {
                if samples.is_empty() {
                    String::new()
                } else {
                    format!("{:.digits$}", spread(samples).median * scale)
                }
            };
            let (ratio, against) = match (self.ratio(row), row.limit) {
                (Some(ratio), Some(limit)) => (
                    format!("{:.2}", ratio.median),
                    format!("{} {}", limit.contender, limit.what),
                ),
                _ => (String::new(), String::new()),
            };
            let lost = row.lost.iter().copied().fold(0.0, f64::max);
            let _ = writeln!(
                text,
                "{:21} {:24} {value:>24} {:>8} {:>7} {:>6} {:>6} {ratio:>6}  {against}",
                row.contender,
                row.what,
                some(&row.p99, 1e-3, 1),
                some(&row.syscalls_per_frame, 1.0, 2),
                if row.lost.is_empty() {
                    String::new()
                } else {
                    format!("{:.1}%", lost * 100.0)
                },
                if row.waited.is_empty() {
                    String::new()
                } else {
                    format!("{:.1}%", spread(&row.waited).median * 100.0)
                },
            );
        }
        let beside = crate::network::BESIDE;
        let trips = self.rows.iter().filter(|row| row.group == crate::ROUND_TRIP);
        for row in trips.filter(|row| beside.iter().any(|beside| row.contender.starts_with(beside))) {
            if let Some((added, rings)) = self.added(row) {
                let _ = writeln!(
                    text,
                    "\n{} add {:.2} us ({:.2}-{:.2}) to a round trip: {:.1} ({:.1}-{:.1}) round trips of the ring",
                    row.contender,
                    added.median / 1e3,
                    added.min / 1e3,
                    added.max / 1e3,
                    rings.median,
                    rings.min,
                    rings.max
                );
            }
        }
        let of = |field: fn(&Jitter) -> f64| spread(&self.jitter.iter().map(field).collect::<Vec<_>>());
        let (lost, one, ten, hundred) = (
            of(|j| j.lost * 100.0),
            of(|j| j.above_1us),
            of(|j| j.above_10us),
            of(|j| j.above_100us),
        );
        let _ = writeln!(
            text,
            "\nidle spin, per core: {:.1}% of the time lost ({:.1}-{:.1}); pauses a second above 1 us {:.0}, above 10 us \
             {:.0}, above 100 us {:.0}",
            lost.median, lost.min, lost.max, one.median, ten.median, hundred.median
        );
        text
    }

    /// Writes `table.txt`, `results.json`, one `.hgrm` for each latency, and `latency.svg`.
    pub(crate) fn write(&self, directory: &Path, about: &serde_json::Value) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
        };
        write("table.txt", &self.table())?;
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                serde_json::json!({
                    "row": row,
                    "value": spread(&row.samples),
                    "p99": (!row.p99.is_empty()).then(|| spread(&row.p99)),
                    "frames": (!row.frames.is_empty()).then(|| spread(&row.frames)),
                    "ratio": self.ratio(row),
                })
            })
            .collect();
        let all = serde_json::json!({ "about": about, "jitter": self.jitter, "rows": rows });
        write("results.json", &format!("{}\n", serde_json::to_string_pretty(&all)?))?;
        let mut lines = Vec::new();
        for row in &self.rows {
            if let Some(histogram) = &row.histogram {
                let name = format!("{} {} {}", row.group, row.contender, row.what);
                let file: String = name
                    .chars()
                    .map(|c| {
                        if c.is_ascii_alphanumeric() {
                            c.to_ascii_lowercase()
                        } else {
                            '-'
                        }
                    })
                    .collect();
                write(&format!("{file}.hgrm"), &hgrm(histogram))?;
                if row.group == crate::ROUND_TRIP {
                    lines.push((row.contender, histogram));
                }
            }
        }
        write("latency.svg", &crate::plot::by_percentile("Round trip, 64 B", &lines))
    }
}

/// HdrHistogram's text of percentiles, values in microseconds.
fn hgrm(histogram: &Histogram<u64>) -> String {
    let mut text = format!(
        "{:>12} {:>14} {:>10} {:>14}\n\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    );
    let mut count = 0;
    for value in histogram.iter_quantiles(5) {
        count += value.count_since_last_iteration();
        let quantile = value.quantile_iterated_to();
        let value = value.value_iterated_to() as f64 / 1e3;
        let _ = write!(text, "{value:12.3} {quantile:14.12} {count:10}");
        if quantile < 1.0 {
            let _ = write!(text, " {:14.2}", 1.0 / (1.0 - quantile));
        }
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "#[Mean    = {:12.3}, StdDeviation   = {:12.3}]\n#[Max     = {:12.3}, Total count    = {:12}]",
        histogram.mean() / 1e3,
        histogram.stdev() / 1e3,
        histogram.max() as f64 / 1e3,
        histogram.len()
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_of_odd_and_even_counts() {
        let odd = spread(&[3.0, 1.0, 2.0]);
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 3.0));
        assert_eq!(spread(&[4.0, 1.0]).median, 2.5);
    }

    #[test]
    fn ratios_pair_samples_of_one_round() {
        let name = |contender, limit| Name {
            group: "g",
            contender,
            what: "w",
            limit,
        };
        let limit = Limit {
            contender: "limit",
            what: "w",
            per_frame: 1,
        };
        let mut results = Results::default();
        for (raw, ours) in [(100.0, 90.0), (10.0, 9.0), (1.0, 0.9)] {
            results.add_rate(name("limit", None), raw);
            results.add_rate(name("ours", Some(limit)), ours);
        }
        let ratio = results.ratio(&results.rows[1]).expect("a limit");
        assert!((ratio.min - 0.9).abs() < 1e-9 && (ratio.max - 0.9).abs() < 1e-9);
    }

    #[test]
    fn hgrm_ends_with_the_maximum() {
        let mut histogram = crate::duel::histogram();
        for value in 1..=1000 {
            histogram.saturating_record(value * 1000);
        }
        let text = hgrm(&histogram);
        assert!(text.contains("Total count    =         1000"), "{text}");
        assert!(text.contains("1.000000000000       1000"), "{text}");
    }
}
