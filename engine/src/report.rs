//! What an engine says of itself when it ends.

use crate::programs::HubReport;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::ops::Deref;
use std::path::Path;

use seqcast_proto::lines::{Line, LineStats};
use serde::{Deserialize, Serialize};

use crate::counters::{Buckets, Histogram, counts};
use crate::link::LinkStats;

/// The final counters, as JSON in the file that `report` names. Read back, what an engine did not
/// say is 0 or empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Report {
    /// The engine's name.
    pub name: String,
    /// What the link really is.
    pub mode: String,
    /// The link's counters.
    pub link: LinkStats,
    /// The duty cycle's counters.
    pub cycle: CycleReport,
    /// Streams received.
    pub subscriptions: Vec<SubscriptionReport>,
    /// Streams published.
    pub publications: Vec<PublicationReport>,
    /// Streams recorded.
    pub archives: Vec<ArchiveReport>,
    /// Streams with keys or allow-lists.
    pub trust: Vec<TrustReport>,
    /// Programs beside the engine; only with `[programs]`.
    pub programs: Option<HubReport>,
    /// Each worker's own, if there are several; what stands above is the sum.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workers: Vec<WorkerReport>,
}

/// One worker of an engine that has several.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct WorkerReport {
    /// The engine's name, a dot, the worker's; the engine's name alone for its first thread.
    pub name: String,
    /// The core that it was pinned to.
    pub core: Option<usize>,
    /// What its link really is.
    pub mode: String,
    /// Its link's counters.
    pub link: LinkStats,
    /// Its duty cycle's counters.
    pub cycle: CycleReport,
}

counts! {
    /// The duty cycle.
    pub struct CycleReport {
        /// Turns of the cycle.
        turns: Counter,
        /// Turns in which something was done.
        busy: Counter,
        /// Times that the engine slept in the kernel.
        sleeps: Counter,
        /// Frames that could not be handed to a part of the same engine and were repaired later.
        local_dropped: Counter,
        /// Frames of streams that this engine has nothing to do with, or of no stream at all.
        strangers: Counter,
        /// Nanoseconds in turns that did something.
        busy_ns: Counter,
        /// Nanoseconds in turns that did nothing: spinning.
        idle_ns: Counter,
        /// Nanoseconds asleep in the kernel.
        asleep_ns: Counter,
        /// Nanoseconds of the longest turn that did something.
        longest_turn_ns: Gauge,
        /// Nanoseconds of the longest such turn within a second, the last whole one.
        longest_turn_lately_ns: Gauge,
    }
}

counts! {
    /// What was sealed, opened, and refused before it could change anything.
    pub struct TrustCounts {
        /// Times that the file of keys was read again.
        reloads: Counter,
        /// Frames sealed.
        sealed: Counter,
        /// Frames that were found to be sealed with one of the keys.
        opened: Counter,
        /// Frames with a wrong tag: made without the key, or damaged.
        forged: Counter,
        /// Control frames that had been taken before.
        replayed: Counter,
        /// Frames sealed too far from the present: replays, or clocks that differ.
        stale: Counter,
        /// Frames without a seal, though the stream has keys.
        unkeyed: Counter,
        /// Frames sealed with a key that is not in the file.
        unknown_key: Counter,
        /// Sealed frames, though the stream has no key here.
        keyed: Counter,
        /// Frames of sources that the allow-list does not name.
        not_allowed: Counter,
    }
}

/// A stream's keys, and what was refused.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustReport {
    /// Group and port.
    pub stream: String,
    /// Ids of the keys in force; the first seals.
    pub keys: Vec<u8>,
    /// Its counters.
    #[serde(flatten)]
    pub counts: TrustCounts,
}

impl Deref for TrustReport {
    type Target = TrustCounts;

    fn deref(&self) -> &TrustCounts {
        &self.counts
    }
}

counts! {
    /// Counters of a stream received.
    pub struct SubscriptionCounts {
        /// The last session.
        session: Gauge,
        /// Messages delivered to the sink.
        messages: Counter,
        /// Their payload bytes.
        bytes: Counter,
        /// Messages delivered in their place whose subjects were not wanted.
        filtered: Counter,
        /// Gaps that opened.
        gaps: Counter,
        /// Messages repaired by an archive.
        repaired_archive: Counter,
        /// Messages repaired by the server.
        repaired_server: Counter,
        /// Messages reported as lost.
        lost: Counter,
        /// Of those, given up since no answer came; the others nobody has any more.
        unanswered: Counter,
        /// Messages that came again.
        duplicates: Counter,
        /// NAK frames sent.
        naks: Counter,
        /// Ranges that a party refused to repair: it has not seen them yet.
        refused_not_yet: Counter,
        /// Ranges that a party refused to repair: it keeps them no more.
        refused_too_old: Counter,
        /// Ranges that a party refused to repair: they are lost for good.
        refused_lost: Counter,
        /// Ranges that a party refused to repair: it does not know the session.
        refused_unknown_session: Counter,
        /// Ranges that a party refused to repair for now: it is asked too much.
        refused_busy: Counter,
        /// Frames dropped because they were too far ahead or nothing could be held.
        overruns: Counter,
        /// Times that the sink had no room.
        refused: Counter,
        /// Frames of a second server under the same identity.
        foreign: Counter,
        /// Answers and ENDs of parties that are neither the server nor an archive of the stream.
        unasked: Counter,
        /// Smoothed time from a NAK to its repair.
        round_trip_ns: Gauge,
        /// Sessions that ended.
        sessions_ended: Counter,
        /// Bytes that wait for the sink's thread; 0 without one.
        sink_used: Gauge,
        /// Bytes for which there is room on the way to it.
        sink_size: Gauge,
        /// Programs that fetch what they missed, or what was before them.
        catching_up: Gauge,
    }
}

/// A stream received.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscriptionReport {
    /// Group and port.
    pub stream: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: SubscriptionCounts,
    /// Latency of messages delivered when their frame arrived.
    pub latency_live_ns: Latency,
    /// Latency of messages that were repaired or waited for a repair.
    pub latency_repaired_ns: Latency,
    /// What the sink sent and answered, if it publishes a feed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mold: Option<MoldSinkReport>,
    /// Each of two lines, if both are listened to.
    pub lines: Vec<LineReport>,
}

impl Deref for SubscriptionReport {
    type Target = SubscriptionCounts;

    fn deref(&self) -> &SubscriptionCounts {
        &self.counts
    }
}

counts! {
    /// Counters of a stream published.
    pub struct PublicationCounts {
        /// The session.
        session: Gauge,
        /// Messages sent.
        messages: Counter,
        /// Their payload bytes.
        bytes: Counter,
        /// DATA frames.
        frames: Counter,
        /// Messages that as many archives as required have acknowledged in this run, of whatever run.
        acknowledged: Counter,
        /// Messages not acknowledged at the end, over all sessions.
        unacknowledged: Gauge,
        /// Messages repaired.
        repaired: Counter,
        /// NAK frames received.
        naks: Counter,
        /// Ranges that one multicast repair answered together with another requester's.
        merged: Counter,
        /// Ranges put off because their requester, or all together, had too many waiting; and NAKs of a
        /// server dropped because repairs had their share of its time.
        put_off: Counter,
        /// Ranges cut short because their requester had not asked at such length.
        limited: Counter,
        /// Frames of another server under the identity of this one.
        foreign: Counter,
        /// ACK frames received.
        acks: Counter,
        /// Turns in which messages waited for acknowledgements: what lacks them filled the room, or was as
        /// much as `unacknowledged_max` allows.
        held_back: Counter,
        /// Turns in which messages waited because the rate was used up.
        rate_limited: Counter,
        /// Messages given up to make room that too few archives had acknowledged (`when_full`).
        dropped_unacknowledged: Counter,
        /// Messages that fit no frame.
        oversize: Counter,
        /// Messages skipped at the start because an earlier run had published them.
        resumed_at: Gauge,
        /// Lanes that messages come through: one for each program, or that of the source's thread.
        lanes: Gauge,
        /// Bytes that wait in them.
        lane_used: Gauge,
        /// Bytes for which there is room in them.
        lane_size: Gauge,
        /// How full the fullest is, in parts of a hundred.
        lane_fullest: Gauge,
    }
}

/// A stream published.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicationReport {
    /// Group and port.
    pub stream: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: PublicationCounts,
    /// What the source received, if it subscribes to a feed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mold: Option<MoldSourceReport>,
}

impl Deref for PublicationReport {
    type Target = PublicationCounts;

    fn deref(&self) -> &PublicationCounts {
        &self.counts
    }
}

counts! {
    /// Counters of a feed published in MoldUDP64 or MoldUDP.
    pub struct MoldSinkCounts {
        /// The next number of the last session.
        next: Gauge,
        /// Messages sent for the first time.
        messages: Counter,
        /// Packets that they came in.
        packets: Counter,
        /// Heartbeats sent.
        heartbeats: Counter,
        /// Packets sent that say the end of a session.
        ends: Counter,
        /// Packets that the kernel had no room for; receivers ask for them.
        dropped: Counter,
        /// Requests received.
        requests: Counter,
        /// Requests answered.
        answers: Counter,
        /// Messages in the answers.
        answered_messages: Counter,
        /// Requests for what is not there, or not any more.
        absent: Counter,
        /// Requests of askers that had enough.
        limited: Counter,
        /// Requests of askers that may not ask.
        not_allowed: Counter,
        /// Datagrams that are no requests.
        malformed: Counter,
    }
}

/// A feed published in MoldUDP64 or MoldUDP.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MoldSinkReport {
    /// Group and port.
    pub group: String,
    /// Where requests are answered.
    pub requests_at: String,
    /// The last session.
    pub session: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: MoldSinkCounts,
}

counts! {
    /// Counters of a feed in MoldUDP64 or MoldUDP that is received.
    pub struct MoldSourceCounts {
        /// The next number of the last session.
        next: Gauge,
        /// Packets of line A.
        packets_a: Counter,
        /// Packets of line B.
        packets_b: Counter,
        /// Messages handed on.
        messages: Counter,
        /// Of these, those that a request brought.
        repaired: Counter,
        /// Packets all of whose messages had come before.
        duplicates: Counter,
        /// Gaps that opened.
        gaps: Counter,
        /// Messages given up.
        lost: Counter,
        /// Requests sent.
        requests: Counter,
        /// Of these, those that nobody answered in time.
        unanswered: Counter,
        /// Packets that found no room to wait; asked for later.
        overruns: Counter,
        /// Datagrams that are no packets.
        malformed: Counter,
        /// Packets of sessions that are over, or not wanted.
        foreign: Counter,
        /// Datagrams to the port for answers that are of no server asked.
        unasked: Counter,
        /// Smoothed time from a request to its answer; 0: not measured.
        round_trip_ns: Gauge,
        /// Datagrams that the kernel dropped because a receive buffer was full.
        receive_dropped: Counter,
    }
}

/// A feed in MoldUDP64 or MoldUDP that is received.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MoldSourceReport {
    /// Group and port.
    pub group: String,
    /// The last session.
    pub session: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: MoldSourceCounts,
}

counts! {
    /// Counters of a stream recorded.
    pub struct ArchiveCounts {
        /// Sessions held.
        sessions: Gauge,
        /// Messages stored by this run.
        stored: Counter,
        /// Of the newest session: the number up to which every message is stored or known to be lost.
        stored_up_to: Gauge,
        /// The same for what a loss of power cannot take any more.
        synced_up_to: Gauge,
        /// Nanoseconds for which stored messages have waited for the disk; 0 when all are there.
        unsynced_ns: Gauge,
        /// Of these, what is beyond `sync_ms`: the disk cannot follow, or fails; 0 with `sync_ms = 0`.
        sync_late_ns: Gauge,
        /// Records stored by this run.
        records: Counter,
        /// Messages that came by repair.
        repaired: Counter,
        /// Messages that came again.
        duplicates: Counter,
        /// Messages that came from behind the recorded end of their session; not stored.
        late: Counter,
        /// Gaps that opened.
        gaps: Counter,
        /// Messages known to exist and not stored.
        missing: Gauge,
        /// Messages that nobody had.
        lost: Counter,
        /// Times that there was no room.
        full: Counter,
        /// Times that the log failed.
        failed: Counter,
        /// Times that a stored record was to be read and could not be.
        damaged: Counter,
        /// Bytes of segments in reserve that are ready.
        reserve_ready: Gauge,
        /// Bytes that `reserve` asks for.
        reserve_size: Gauge,
        /// 1 while the disk has no room for the rest of it.
        reserve_refused: Gauge,
        /// ACK frames sent.
        acks: Counter,
        /// NAK frames sent.
        naks: Counter,
        /// NAK frames answered.
        naks_answered: Counter,
        /// Ranges that one multicast repair answered together with another requester's.
        merged: Counter,
        /// Ranges put off because their requester, or all together, had too many waiting.
        put_off: Counter,
        /// Ranges cut short because their requester had not asked at such length.
        limited: Counter,
        /// Answers and ENDs of parties that are neither the server nor an archive of the stream.
        unasked: Counter,
        /// Frames of a second server under the same identity.
        foreign: Counter,
        /// Messages sent again.
        repairs: Counter,
    }
}

/// A stream recorded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchiveReport {
    /// Group and port.
    pub stream: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: ArchiveCounts,
    /// Each of two lines, if both are listened to.
    pub lines: Vec<LineReport>,
}

impl Deref for ArchiveReport {
    type Target = ArchiveCounts;

    fn deref(&self) -> &ArchiveCounts {
        &self.counts
    }
}

counts! {
    /// Counters of one of two lines.
    pub struct LineCounts {
        /// DATA frames that came over it.
        frames: Counter,
        /// Of those, the first copies.
        first: Counter,
        /// First copies whose second came over the other line.
        led: Counter,
        /// How much earlier those were, on average.
        lead_mean_ns: Gauge,
        /// How much earlier the earliest was.
        lead_max_ns: Gauge,
        /// Gaps on this line, whether or not the other filled them.
        gaps: Counter,
        /// Messages that never came over this line, whether or not they came over the other.
        missed: Counter,
        /// Times that it fell silent while the other carried the stream.
        silences: Counter,
    }
}

/// One of two lines of a stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LineReport {
    /// `A` or `B`.
    pub line: String,
    /// Group and port.
    pub group: String,
    /// Its counters.
    #[serde(flatten)]
    pub counts: LineCounts,
    /// Whether it is silent now.
    pub silent: bool,
}

impl Deref for LineReport {
    type Target = LineCounts;

    fn deref(&self) -> &LineCounts {
        &self.counts
    }
}

impl From<&LineStats> for LineCounts {
    fn from(stats: &LineStats) -> LineCounts {
        LineCounts {
            frames: stats.frames,
            first: stats.first,
            led: stats.led,
            lead_mean_ns: stats.lead_mean(),
            lead_max_ns: stats.lead_max,
            gaps: stats.gaps,
            missed: stats.missed,
            silences: stats.silences,
        }
    }
}

impl LineReport {
    /// What `line` with this group has carried.
    #[must_use]
    pub fn of(line: Line, group: SocketAddrV4, stats: &LineStats) -> LineReport {
        LineReport {
            line: line.to_string(),
            group: group.to_string(),
            counts: LineCounts::from(stats),
            silent: stats.silent,
        }
    }
}

/// Percentiles of a latency, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Latency {
    /// Messages measured.
    pub count: u64,
    /// Half were faster.
    pub p50: u64,
    /// 99 of 100 were faster.
    pub p99: u64,
    /// 999 of 1000 were faster.
    pub p999: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// Reads the percentiles out of a histogram.
    #[must_use]
    pub fn of(histogram: &Histogram) -> Latency {
        Latency::of_counts(histogram.counts())
    }

    /// Reads them out of how often each of the [`Buckets`] was met; each is its bucket's largest value.
    #[must_use]
    pub fn of_counts(counts: impl Iterator<Item = u64>) -> Latency {
        let counts: Vec<u64> = counts.collect();
        let count: u64 = counts.iter().sum();
        let at = |share: f64| {
            // The first value that so many do not exceed.
            let wanted = ((count as f64 * share).ceil() as u64).max(1);
            let mut seen = 0;
            let bucket = counts.iter().position(|n| {
                seen += n;
                seen >= wanted
            });
            bucket.map_or(0, Buckets::largest)
        };
        Latency {
            count,
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

impl Report {
    /// The report of an engine, made of those of its workers and the cores that they were pinned to; `None`
    /// without any.
    #[must_use]
    pub fn of_workers(name: &str, workers: Vec<(Option<usize>, Report)>) -> Option<Report> {
        let each = |(core, report): &(Option<usize>, Report)| WorkerReport {
            name: report.name.clone(),
            core: *core,
            mode: report.mode.clone(),
            link: report.link,
            cycle: report.cycle,
        };
        let told = workers.iter().map(each).collect();
        let mut reports = workers.into_iter().map(|(_, report)| report);
        let first = reports.next()?;
        if reports.len() == 0 {
            return Some(first);
        }
        let all = reports.fold(first, Report::and);
        Some(Report {
            name: name.to_owned(),
            workers: told,
            ..all
        })
    }

    fn and(mut self, other: Report) -> Report {
        self.mode = format!("{}; {}", self.mode, other.mode);
        self.link = self.link.plus(&other.link);
        self.cycle = self.cycle.plus(&other.cycle);
        self.subscriptions.extend(other.subscriptions);
        self.publications.extend(other.publications);
        self.archives.extend(other.archives);
        self.trust.extend(other.trust);
        self.programs = match (self.programs, other.programs) {
            (Some(one), Some(other)) => Some(one.plus(&other)),
            (one, other) => one.or(other),
        };
        self
    }

    /// Writes the report as one file that is whole or absent.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let mut text = serde_json::to_string_pretty(self)?;
        text.push('\n');
        let partial = path.with_extension("partial");
        fs::write(&partial, text)?;
        fs::rename(&partial, path)
    }
}
