//! An archive and its log.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use seqcast_archive::{Keep as Limits, Options, SyncPolicy};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::seq::{Seq, Stream};
use seqcast_proto::time::{MILLIS, Nanos, Now, SECONDS};

use super::{NAKS_FROM, NAKS_TO, REPAIR_BUDGET, Setting, describe_lines, repair, report_lines, say_line, write_lines};
use crate::config::{self, Ack};
use crate::counters::{Builder, Part, Writing};
use crate::link::Link;
use crate::log::{self, Tally};
use crate::node::outbox::Out;
use crate::node::store::Recorder;
use crate::report::{ArchiveCounts, ArchiveReport};
use crate::stream_id;

/// A stream that is recorded.
pub(in crate::node) struct Record {
    group: SocketAddrV4,
    lines: config::Lines,
    own: SocketAddrV4,
    stream: Stream,
    name: String,
    archiver: Archiver,
    store: Recorder,
    exit_at_end: bool,
    /// Frames of a second server.
    rival: Tally,
    /// When the archive's limits are next looked at.
    tidy_at: Nanos,
    /// Up to where everything is stored, and on disk, when that was last looked at.
    watermarks: (Seq, Seq),
    waits: DiskWait,
    /// Records that could not be read.
    damage: Tally,
    /// It was said that the disk has no room for the reserve.
    lacks_reserve: bool,
    /// The archive's directory.
    dir: PathBuf,
}

/// How long stored messages have waited for the disk.
#[derive(Debug)]
struct DiskWait {
    /// Up to where all was stored at this time, and is not on disk yet.
    mark: (Seq, Nanos),
    time: Nanos,
    /// `sync_ms`; 0: the kernel decides.
    limit: Nanos,
}

impl DiskWait {
    fn new(limit: Nanos) -> DiskWait {
        DiskWait {
            mark: (Seq(0), 0),
            time: 0,
            limit,
        }
    }

    fn look(&mut self, (stored, on_disk): (Seq, Seq), now: Nanos) {
        // Below the mark: another session.
        if on_disk >= self.mark.0 || stored < self.mark.0 {
            self.mark = (stored, now);
        }
        self.time = if on_disk < stored { now - self.mark.1 } else { 0 };
    }

    fn late(&self) -> Nanos {
        if self.limit == 0 {
            0
        } else {
            self.time.saturating_sub(self.limit)
        }
    }
}

/// Time between two looks at an archive's limits.
const TIDY_EVERY: Nanos = SECONDS;

fn limits(config: &config::Archive) -> Limits {
    Limits {
        bytes: config.keep_bytes.map(|bytes| bytes.0),
        age: config.keep_age_s.map(Duration::from_secs),
        sessions: config.keep_sessions,
    }
}

/// When limits are looked at first.
fn tidy_at(limits: &Limits, now: Nanos) -> Nanos {
    if limits.is_all() { Nanos::MAX } else { now }
}

impl Record {
    /// Opens the archive.
    pub(in crate::node) fn open(config: &config::Archive, with: &Setting<'_>) -> Result<Record> {
        let stream = stream_id(config.stream, config.id);
        let options = Options {
            segment_bytes: config.segment.0,
            reserve: config.reserve.map_or(0, |bytes| bytes.0),
            sync: match config.sync_ms {
                0 => SyncPolicy::None,
                ms => SyncPolicy::EveryMs(ms),
            },
            ..Options::default()
        };
        let limits = limits(config);
        let mut store = Recorder::open(&config.dir, stream, options)
            .with_context(|| format!("[[archive]] {}", config.stream))?
            .keeping(limits);
        let archiver = ArchiverConfig {
            synced: config.ack == Ack::Synced,
            repair: repair(config.lines.first(config.stream), &config.repair),
            local_b: with.local_b,
            lines: config.lines.both(),
            line: config.lines.only(),
            ..ArchiverConfig::new(stream, config.stream, with.local, store.identity())
        };
        Ok(Record {
            group: config.stream,
            lines: config.lines,
            own: with.local,
            stream,
            name: with.name.into(),
            archiver: Archiver::new(archiver, with.now.mono, &mut store),
            store,
            exit_at_end: config.exit_at_end,
            rival: Tally::default(),
            tidy_at: tidy_at(&limits, with.now.mono),
            watermarks: (Seq(0), Seq(0)),
            waits: DiskWait::new(Nanos::from(config.sync_ms) * MILLIS),
            damage: Tally::default(),
            dir: config.dir.clone(),
            lacks_reserve: false,
        })
    }

    /// Takes what is live of another configuration of the same stream.
    pub(in crate::node) fn change(&mut self, config: &config::Archive, now: Nanos) {
        let limits = limits(config);
        self.tidy_at = tidy_at(&limits, now);
        self.store.keep(limits);
        let repair = repair(config.lines.first(config.stream), &config.repair);
        self.archiver.set_repair(repair, now);
    }

    pub(in crate::node) fn stream(&self) -> Stream {
        self.stream
    }

    pub(in crate::node) fn group(&self) -> SocketAddrV4 {
        self.group
    }

    pub(in crate::node) fn on_frame<L: Link>(
        &mut self,
        now: Now,
        from: SocketAddrV4,
        to: SocketAddrV4,
        bytes: &[u8],
        out: &mut Out<'_, L>,
    ) {
        // What this engine's own server sends takes no line.
        match self.lines.of(to).filter(|_| from != self.own) {
            Some(line) => self
                .archiver
                .on_line_frame(now, line, from, bytes, &mut self.store, out),
            None => self.archiver.on_frame(now, from, bytes, &mut self.store, out),
        }
    }

    /// One turn: when the next one is due.
    pub(in crate::node) fn turn<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> Nanos {
        if now.mono >= self.tidy_at {
            self.tidy_at = now.mono + TIDY_EVERY;
            self.store.tidy(now.wall);
        }
        if let Some(change) = self.archiver.line_change() {
            say_line!(self.name, self.group, log::ARCHIVE, change);
        }
        let due = self.archiver.poll(now, REPAIR_BUDGET, &mut self.store, out);
        due.min(self.tidy_at)
    }

    /// Whether the stream has ended, all of it is stored, and that is what was asked for.
    pub(in crate::node) fn finished(&self) -> bool {
        self.exit_at_end && self.archiver.complete()
    }

    /// Says it when a second server was heard.
    pub(in crate::node) fn check_rivals(&mut self, now: Nanos) {
        if let Some(frames) = self.rival.news(self.archiver.stats().foreign, now) {
            tracing::error!(
                target: log::ARCHIVE, engine = %self.name, stream = %self.group, frames,
                "a SECOND SERVER sends on this stream under an identity in use, or an old session; its frames are refused: stop it"
            );
        }
    }

    /// Says it when the disk has no room for the reserve, and when a stored record could not be read.
    pub(in crate::node) fn check_disk(&mut self, now: Nanos) {
        let reserve = self.store.reserve();
        if reserve.refused && !self.lacks_reserve {
            tracing::warn!(
                target: log::ARCHIVE, engine = %self.name, stream = %self.group, ready = reserve.ready, size = reserve.size,
                "the disk has no room for the reserve: {} of {} bytes are ready in {dir}; it is tried again every second. Make room, or set a smaller `reserve`",
                reserve.ready, reserve.size, dir = self.dir.display()
            );
        }
        self.lacks_reserve = reserve.refused;
        if let Some(times) = self.damage.news(self.store.damaged(), now) {
            tracing::error!(
                target: log::ARCHIVE, engine = %self.name, stream = %self.group, times,
                "a stored record CANNOT BE READ; who asks for it is sent to others. What is damaged: `seqcast archive verify {dir}`; to mend it, stop this engine and run `seqcast archive repair {dir}`",
                dir = self.dir.display()
            );
        }
    }

    /// Syncs and sends the last acknowledgements.
    pub(in crate::node) fn say_goodbye<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> Result<()> {
        let synced = self.store.sync();
        let exact = self.store.watermarks();
        self.note_watermarks(exact);
        synced.with_context(|| format!("[[archive]] {}", self.group))?;
        self.archiver.close(now, &mut self.store, out);
        Ok(())
    }

    fn note_watermarks(&mut self, (stored, on_disk): (Seq, Seq)) {
        // What is missing may lie below all that is stored.
        let below = self.archiver.first_missing().map_or(stored, Seq::prev);
        self.watermarks = (stored.min(below), on_disk.min(below));
    }

    pub(in crate::node) fn report(&self) -> ArchiveReport {
        ArchiveReport {
            stream: self.group.to_string(),
            counts: self.counts(),
            lines: report_lines(self.archiver.lines(), self.lines.both_groups(self.group)),
        }
    }

    fn part(&self) -> Part {
        Part::of_stream("archive", self.group)
    }

    /// Lists its counters.
    pub(in crate::node) fn describe(&self, to: &mut Builder) {
        to.numbers::<ArchiveCounts>(self.part());
        to.peers(self.part(), "naks_from", NAKS_FROM);
        to.peers(self.part(), "naks_to", NAKS_TO);
        describe_lines(&self.part(), self.archiver.lines(), to);
    }

    /// Writes them, in the same order.
    pub(in crate::node) fn write_counters(&mut self, to: &mut Writing<'_>) {
        let lately = self.store.watermarks_lately();
        self.note_watermarks(lately);
        self.waits.look(self.watermarks, to.now);
        to.put(&self.counts());
        to.peers(self.archiver.askers());
        to.peers(self.archiver.asked());
        write_lines(self.archiver.lines(), to);
    }

    fn counts(&self) -> ArchiveCounts {
        let stats = self.archiver.stats();
        let reserve = self.store.reserve();
        ArchiveCounts {
            sessions: self.store.session_count(),
            stored: stats.stored,
            stored_up_to: self.watermarks.0.0.into(),
            synced_up_to: self.watermarks.1.0.into(),
            unsynced_ns: self.waits.time,
            sync_late_ns: self.waits.late(),
            records: stats.records,
            repaired: stats.repaired,
            duplicates: stats.duplicates,
            late: stats.late,
            gaps: stats.gaps,
            missing: self.archiver.missing(),
            lost: stats.lost,
            full: stats.full,
            failed: stats.failed,
            damaged: self.store.damaged(),
            reserve_ready: reserve.ready,
            reserve_size: reserve.size,
            reserve_refused: reserve.refused.into(),
            acks: stats.acks,
            naks: stats.naks,
            naks_answered: stats.repairs.naks,
            merged: stats.repairs.merged,
            put_off: stats.repairs.busy,
            limited: stats.repairs.limited,
            unasked: stats.unasked,
            foreign: stats.foreign,
            repairs: stats.repairs.repaired,
        }
    }

    /// Closes the archive in order.
    pub(in crate::node) fn close(self) -> Result<()> {
        self.store
            .close()
            .with_context(|| format!("[[archive]] {}", self.group))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_for_the_disk_is_timed_from_when_it_was_stored() {
        let mut waits = DiskWait::new(100);
        for (stored, on_disk, now, time, late) in [
            (0, 0, 5, 0, 0),
            (7, 0, 10, 0, 0),
            // Up to 9: from 10 on, when 7 were.
            (9, 3, 60, 50, 0),
            (9, 3, 150, 140, 40),
            // The first 7 are there; the others were seen at 160 for the first time.
            (12, 7, 160, 0, 0),
            (12, 8, 200, 40, 0),
            (12, 12, 210, 0, 0),
            // Another session.
            (2, 0, 220, 0, 0),
            (3, 0, 400, 180, 80),
        ] {
            waits.look((Seq(stored), Seq(on_disk)), now);
            assert_eq!((waits.time, waits.late()), (time, late), "{stored} {on_disk} at {now}");
        }
        waits.limit = 0;
        assert_eq!(waits.late(), 0);
    }
}
