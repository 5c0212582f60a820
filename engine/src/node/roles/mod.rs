//! The parts that an engine plays: the protocol's state machines joined to logs and feeds.

use std::net::SocketAddrV4;
use std::sync::Arc;

use seqcast_proto::lines::{Line, Lines};
use seqcast_proto::responder::{Cast, RepairConfig};
use seqcast_proto::time::{MICROS, Now};
use seqcast_ring::Doorbell;

use crate::config;
use crate::counters::{Builder, Part, Writing};
use crate::report::{LineCounts, LineReport};

mod feed;
mod publish;
mod record;
mod subscribe;

pub(super) use feed::Feed;
pub(super) use publish::{Publish, start_sources};
pub(super) use record::Record;
pub(super) use subscribe::Subscribe;

/// REPAIR frames that one server or archive sends in a turn.
const REPAIR_BUDGET: usize = 64;

/// What every part is started with.
pub(super) struct Setting<'a> {
    /// Name of the engine, for messages.
    pub(super) name: &'a str,
    /// The link's own address.
    pub(super) local: SocketAddrV4,
    /// The same over line B, if that is elsewhere.
    pub(super) local_b: Option<SocketAddrV4>,
    /// The link's largest frame.
    pub(super) max_frame: usize,
    /// Received frames that the link can spare.
    pub(super) may_hold: u32,
    /// Wakes the engine.
    pub(super) bell: Arc<Doorbell>,
    /// A random number for this run.
    pub(super) origin: u32,
    /// The start.
    pub(super) now: Now,
}

fn repair(group: SocketAddrV4, config: &config::Repair) -> RepairConfig {
    RepairConfig {
        cast: match config.cast {
            config::Cast::Auto => Cast::Auto,
            config::Cast::Unicast => Cast::Unicast,
            config::Cast::Multicast => Cast::Multicast,
        },
        merge: config.merge_us * MICROS,
        amplification: config.amplification,
        bytes_per_second: (config.bytes > 0).then_some(config.bytes),
        ..RepairConfig::new(group)
    }
}

/// Says what became of a line.
macro_rules! say_line {
    ($name:expr, $group:expr, $target:expr, $change:expr) => {
        match $change {
            seqcast_proto::lines::LineChange::Silent(line) => tracing::warn!(
                target: $target, engine = %$name, stream = %$group, line = %line,
                "line {line} is SILENT; the stream goes on over line {}", line.other()
            ),
            seqcast_proto::lines::LineChange::Heard(line) => tracing::info!(
                target: $target, engine = %$name, stream = %$group, line = %line, "line {line} is heard again"
            ),
        }
    };
}
use say_line;

/// What an engine says of two lines, if a part listens to both.
fn report_lines(lines: Option<&Lines>, groups: [SocketAddrV4; 2]) -> Vec<LineReport> {
    let report = |lines: &Lines| Line::BOTH.map(|line| LineReport::of(line, groups[line as usize], &lines.stats(line)));
    lines.map(report).into_iter().flatten().collect()
}

/// What is said of counts by asker.
const NAKS_FROM: &str = "NAK frames by who sent them: those that sent most.";

const NAKS_TO: &str = "NAK frames by whom they went to: those that were asked most.";

fn describe_lines(part: &Part, lines: Option<&Lines>, to: &mut Builder) {
    for line in Line::BOTH.iter().filter(|_| lines.is_some()) {
        to.numbers::<LineCounts>(Part {
            line: Some(line.to_string()),
            ..part.clone()
        });
    }
}

fn write_lines(lines: Option<&Lines>, to: &mut Writing<'_>) {
    if let Some(lines) = lines {
        Line::BOTH
            .iter()
            .for_each(|line| to.put(&LineCounts::from(&lines.stats(*line))));
    }
}
