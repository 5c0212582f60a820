//! What an engine says of itself when it ends.

use crate::programs::HubReport;
use std::fs;
use std::io;
use std::net::SocketAddrV4;
use std::path::Path;

use hdrhistogram::Histogram;
use seqcast_proto::lines::{Line, LineStats};
use serde::{Deserialize, Serialize};

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
}

/// The duty cycle.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CycleReport {
    /// Turns of the cycle.
    pub turns: u64,
    /// Turns in which something was done.
    pub busy: u64,
    /// Times that the engine slept in the kernel.
    pub sleeps: u64,
    /// Frames that could not be handed to a part of the same engine and were repaired later.
    pub local_dropped: u64,
    /// Frames of streams that this engine has nothing to do with, or of no stream at all.
    pub strangers: u64,
}

/// A stream's keys, and what was refused before it could change anything.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct TrustReport {
    /// Group and port.
    pub stream: String,
    /// Ids of the keys in force; the first seals.
    pub keys: Vec<u8>,
    /// Times that the file of keys was read again.
    pub reloads: u64,
    /// Frames sealed.
    pub sealed: u64,
    /// Frames that were found to be sealed with one of the keys.
    pub opened: u64,
    /// Frames with a wrong tag: made without the key, or damaged.
    pub forged: u64,
    /// Control frames that had been taken before.
    pub replayed: u64,
    /// Frames sealed too far from the present: replays, or clocks that differ.
    pub stale: u64,
    /// Frames without a seal, though the stream has keys.
    pub unkeyed: u64,
    /// Frames sealed with a key that is not in the file.
    pub unknown_key: u64,
    /// Sealed frames, though the stream has no key here.
    pub keyed: u64,
    /// Frames of sources that the allow-list does not name.
    pub not_allowed: u64,
}

/// A stream received.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SubscriptionReport {
    /// Group and port.
    pub stream: String,
    /// The last session.
    pub session: u32,
    /// Messages delivered to the sink.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// Messages delivered in their place whose subjects were not wanted.
    pub filtered: u64,
    /// Gaps that opened.
    pub gaps: u64,
    /// Messages repaired by an archive.
    pub repaired_archive: u64,
    /// Messages repaired by the server.
    pub repaired_server: u64,
    /// Messages reported as lost.
    pub lost: u64,
    /// Of those, given up since no answer came; the others nobody has any more.
    pub unanswered: u64,
    /// Messages that came again.
    pub duplicates: u64,
    /// NAK frames sent.
    pub naks: u64,
    /// Frames dropped because they were too far ahead or nothing could be held.
    pub overruns: u64,
    /// Times that the sink had no room.
    pub refused: u64,
    /// Frames of a second server under the same identity.
    pub foreign: u64,
    /// Answers and ENDs of parties that are neither the server nor an archive of the stream.
    pub unasked: u64,
    /// Smoothed time from a NAK to its repair.
    pub round_trip_ns: u64,
    /// Sessions that ended.
    pub sessions_ended: u64,
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

/// A stream published.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct PublicationReport {
    /// Group and port.
    pub stream: String,
    /// The session.
    pub session: u32,
    /// Messages sent.
    pub messages: u64,
    /// Their payload bytes.
    pub bytes: u64,
    /// DATA frames.
    pub frames: u64,
    /// Messages that as many archives as required have acknowledged in this run, of whatever run.
    pub acknowledged: u64,
    /// Messages not acknowledged at the end, over all sessions.
    pub unacknowledged: u64,
    /// Messages repaired.
    pub repaired: u64,
    /// NAK frames received.
    pub naks: u64,
    /// Ranges that one multicast repair answered together with another requester's.
    pub merged: u64,
    /// Ranges put off because their requester, or all together, had too many waiting; and NAKs of a
    /// server dropped because repairs had their share of its time.
    pub put_off: u64,
    /// Ranges cut short because their requester had not asked at such length.
    pub limited: u64,
    /// Frames of another server under the identity of this one.
    pub foreign: u64,
    /// ACK frames received.
    pub acks: u64,
    /// Turns in which messages waited for acknowledgements: what lacks them filled the room, or was as
    /// much as `unacknowledged_max` allows.
    pub held_back: u64,
    /// Turns in which messages waited because the rate was used up.
    pub rate_limited: u64,
    /// Messages given up to make room that too few archives had acknowledged (`when_full`).
    pub dropped_unacknowledged: u64,
    /// Messages that fit no frame.
    pub oversize: u64,
    /// Messages skipped at the start because an earlier run had published them.
    pub resumed_at: u64,
    /// What the source received, if it subscribes to a feed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mold: Option<MoldSourceReport>,
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
    /// Its next number.
    pub next: u64,
    /// Messages sent for the first time, and the packets that they came in.
    pub messages: u64,
    /// See `messages`.
    pub packets: u64,
    /// Heartbeats sent.
    pub heartbeats: u64,
    /// Packets sent that say the end of a session.
    pub ends: u64,
    /// Packets that the kernel had no room for; receivers ask for them.
    pub dropped: u64,
    /// Requests received.
    pub requests: u64,
    /// Of these: answered, with so many messages.
    pub answers: u64,
    /// See `answers`.
    pub answered_messages: u64,
    /// Of these: for what is not there, or not any more.
    pub absent: u64,
    /// Of these: from askers that had enough.
    pub limited: u64,
    /// Of these: from askers that may not ask.
    pub not_allowed: u64,
    /// Datagrams that are no requests.
    pub malformed: u64,
}

/// A feed in MoldUDP64 or MoldUDP that is received.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct MoldSourceReport {
    /// Group and port.
    pub group: String,
    /// The last session.
    pub session: String,
    /// Its next number.
    pub next: u64,
    /// Packets of each line.
    pub packets: [u64; 2],
    /// Messages handed on.
    pub messages: u64,
    /// Of these, those that a request brought.
    pub repaired: u64,
    /// Packets all of whose messages had come before.
    pub duplicates: u64,
    /// Gaps that opened.
    pub gaps: u64,
    /// Messages given up.
    pub lost: u64,
    /// Requests sent.
    pub requests: u64,
    /// Of these, those that nobody answered in time.
    pub unanswered: u64,
    /// Packets that found no room to wait; asked for later.
    pub overruns: u64,
    /// Datagrams that are no packets.
    pub malformed: u64,
    /// Packets of sessions that are over, or not wanted.
    pub foreign: u64,
    /// Datagrams to the port for answers that are of no server asked.
    pub unasked: u64,
    /// Smoothed time from a request to its answer; 0: not measured.
    pub round_trip_ns: u64,
    /// Datagrams that the kernel dropped because a receive buffer was full.
    pub receive_dropped: u64,
}

/// A stream recorded.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ArchiveReport {
    /// Group and port.
    pub stream: String,
    /// Sessions held.
    pub sessions: u64,
    /// Messages stored by this run.
    pub stored: u64,
    /// Of the newest session: the number up to which every message is stored or known to be lost.
    pub stored_up_to: u32,
    /// The same for what a loss of power cannot take any more.
    pub synced_up_to: u32,
    /// Records stored by this run.
    pub records: u64,
    /// Messages that came by repair.
    pub repaired: u64,
    /// Messages that came again.
    pub duplicates: u64,
    /// Messages that came from behind the recorded end of their session; not stored.
    pub late: u64,
    /// Gaps that opened.
    pub gaps: u64,
    /// Messages known to exist and not stored.
    pub missing: u64,
    /// Messages that nobody had.
    pub lost: u64,
    /// Times that there was no room.
    pub full: u64,
    /// Times that the log failed.
    pub failed: u64,
    /// ACK frames sent.
    pub acks: u64,
    /// NAK frames answered.
    pub naks_answered: u64,
    /// Ranges that one multicast repair answered together with another requester's.
    pub merged: u64,
    /// Ranges put off because their requester, or all together, had too many waiting.
    pub put_off: u64,
    /// Ranges cut short because their requester had not asked at such length.
    pub limited: u64,
    /// Answers and ENDs of parties that are neither the server nor an archive of the stream.
    pub unasked: u64,
    /// Frames of a second server under the same identity.
    pub foreign: u64,
    /// Messages sent again.
    pub repairs: u64,
    /// Each of two lines, if both are listened to.
    pub lines: Vec<LineReport>,
}

/// One of two lines of a stream.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct LineReport {
    /// `A` or `B`.
    pub line: String,
    /// Group and port.
    pub group: String,
    /// DATA frames that came over it.
    pub frames: u64,
    /// Of those, the first copies.
    pub first: u64,
    /// First copies whose second came over the other line.
    pub led: u64,
    /// How much earlier those were, on average.
    pub lead_mean_ns: u64,
    /// How much earlier the earliest was.
    pub lead_max_ns: u64,
    /// Gaps on this line, whether or not the other filled them.
    pub gaps: u64,
    /// Messages that never came over this line, whether or not they came over the other.
    pub missed: u64,
    /// Times that it fell silent while the other carried the stream.
    pub silences: u64,
    /// Whether it is silent now.
    pub silent: bool,
}

impl LineReport {
    /// What `line` with this group has carried.
    #[must_use]
    pub fn of(line: Line, group: SocketAddrV4, stats: &LineStats) -> LineReport {
        LineReport {
            line: line.to_string(),
            group: group.to_string(),
            frames: stats.frames,
            first: stats.first,
            led: stats.led,
            lead_mean_ns: stats.lead_mean(),
            lead_max_ns: stats.lead_max,
            gaps: stats.gaps,
            missed: stats.missed,
            silences: stats.silences,
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
    pub fn of(histogram: &Histogram<u64>) -> Latency {
        Latency {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.5),
            p99: histogram.value_at_quantile(0.99),
            p999: histogram.value_at_quantile(0.999),
            max: histogram.max(),
        }
    }
}

impl Report {
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
