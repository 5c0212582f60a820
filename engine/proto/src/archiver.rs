//! The archiver: stores a stream under its numbers, acknowledges it, and answers for it.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use crate::gaps::{GapConfig, Gaps, nak_stamp};
use crate::io::{ArchiveStore, End, Lookup, Outbox, Record, Refused, Store};
use crate::lines::{Line, LineChange, Lines, LinesConfig, Verdict};
use crate::parties::{NAMED, Parties, Questions, Refuser};
use crate::ranges::RangeSet;
use crate::responder::{RepairConfig, Responder, ResponderStats};
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::{MICROS, MILLIS, Nanos, Now, SECONDS};
use crate::wire::{
    Block, Body, Endpoint, Frame, Header, HeartbeatBody, Kind, MAX_RANGES, Reason, Refusals, Role, Stamp, flags,
    reachable,
};

/// Settings of an archiver.
#[derive(Clone, Copy, Debug)]
pub struct ArchiverConfig {
    /// The stream.
    pub stream: Stream,
    /// The archive's identity, the same after every restart.
    pub origin: u32,
    /// Where queries reach this archive.
    pub local: SocketAddrV4,
    /// Where they reach it over line B, if that is elsewhere.
    pub local_b: Option<SocketAddrV4>,
    /// Listen to both lines of the stream, or to one.
    pub lines: Option<LinesConfig>,
    /// The line that leads to the server, when only one is listened to.
    pub line: Line,
    /// Acknowledge only what is on stable storage.
    pub synced: bool,
    /// Longest time from storing a message to acknowledging it.
    pub ack_delay: Nanos,
    /// Frames stored after which an acknowledgement does not wait for the delay.
    pub ack_frames: u32,
    /// Pause after which acknowledgements are repeated when nothing new was stored.
    pub ack_idle: Nanos,
    /// How repairs are asked for.
    pub gaps: GapConfig,
    /// How repairs are given.
    pub repair: RepairConfig,
    /// Seed of the random pauses.
    pub seed: u64,
}

impl ArchiverConfig {
    /// The defaults for a stream.
    #[must_use]
    pub fn new(stream: Stream, group: SocketAddrV4, local: SocketAddrV4, origin: u32) -> ArchiverConfig {
        ArchiverConfig {
            stream,
            origin,
            local,
            local_b: None,
            lines: None,
            line: Line::A,
            synced: false,
            ack_delay: 500 * MICROS,
            ack_frames: 64,
            ack_idle: SECONDS,
            gaps: GapConfig {
                max_gaps: 512,
                // Only an answer makes an archive give up: a server that is away may come back.
                give_up: Nanos::MAX,
                ..GapConfig::default()
            },
            repair: RepairConfig::new(group),
            seed: u64::from(origin),
        }
    }
}

/// What an archiver has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ArchiverStats {
    /// Messages stored.
    pub stored: u64,
    /// Records stored.
    pub records: u64,
    /// Messages received that were stored already.
    pub duplicates: u64,
    /// Messages in frames that reached behind the recorded end of their session; not stored.
    pub late: u64,
    /// Gaps that opened; with two lines, on both of them.
    pub gaps: u64,
    /// Messages that came by repair.
    pub repaired: u64,
    /// Messages that nobody had.
    pub lost: u64,
    /// Times that the store had no room; nothing is acknowledged then.
    pub full: u64,
    /// Times that the store failed.
    pub failed: u64,
    /// ACK frames sent.
    pub acks: u64,
    /// NAK frames sent.
    pub naks: u64,
    /// Frames of a second server under the same identity.
    pub foreign: u64,
    /// Answers and ENDs of parties that are neither the server nor an archive of the stream.
    pub unasked: u64,
    /// Bytes that were no frame.
    pub malformed: u64,
    /// Repairs given.
    pub repairs: ResponderStats,
}

/// A session that is being recorded, or was lately.
#[derive(Debug)]
struct Recording {
    session: Session,
    previous: Session,
    server_origin: u32,
    /// The store knows the session.
    opened: bool,
    have: RangeSet,
    /// One past the highest number known to exist.
    horizon: Seq,
    /// The server has said all that it knows of the sessions before and after.
    traced: bool,
    /// The lowest number that the server still held when it was last heard.
    oldest: Option<Seq>,
    end: Option<End>,
    /// The store has refused to note it.
    end_unsaved: bool,
    gaps: Gaps,
    /// Something is to be acknowledged.
    dirty: bool,
}

/// Most sessions kept an eye on: as many as a server keeps.
const MAX_RECORDINGS: usize = 64;
/// Separate stored ranges of one session; a frame that would make one more is asked for later.
const MAX_STORED_RANGES: usize = 4096;
/// ACK frames sent in one go for one session.
const ACKS_AT_ONCE: usize = 8;
/// Repair ranges that wait at most.
const REPAIR_JOBS: usize = 1024;
/// Older sessions about which the server is asked with each heartbeat.
const TRACED_AT_ONCE: usize = 4;
/// After this long without a name there is no other archive, and what the server lacks, nobody has.
const ALONE: Nanos = NAMED;

/// The state machine.
#[derive(Debug)]
pub struct Archiver {
    config: ArchiverConfig,
    /// Ascending by session.
    recordings: Vec<Recording>,
    /// Asked for all of them, also those that are gone.
    questions: Questions,
    parties: Parties,
    lines: Option<Lines>,
    /// Where the server is over the line that is not preferred.
    server_otherwise: Option<SocketAddrV4>,
    /// Since when heartbeats have named no other archive.
    alone_since: Option<Nanos>,
    responder: Responder,
    /// Frames stored since the last acknowledgement.
    unacked: u32,
    ack_due: Nanos,
    /// When everything is acknowledged again, in case the server missed it.
    repeat_due: Nanos,
    stats: ArchiverStats,
}

impl Archiver {
    /// An archiver that goes on with what the store holds.
    #[must_use]
    pub fn new<S: ArchiveStore>(config: ArchiverConfig, now: Nanos, store: &mut S) -> Archiver {
        let mut archiver = Archiver {
            recordings: Vec::with_capacity(MAX_RECORDINGS),
            questions: Questions::new(),
            // There may be another archive until heartbeats have named none for long enough.
            parties: Parties::new(true).of_archive([Some(config.local), config.local_b]),
            lines: config.lines.map(Lines::new),
            server_otherwise: None,
            alone_since: None,
            responder: Responder::new(config.stream, config.origin, false, config.repair, REPAIR_JOBS),
            unacked: 0,
            ack_due: now,
            repeat_due: now,
            stats: ArchiverStats::default(),
            config: ArchiverConfig {
                gaps: GapConfig {
                    skew: config.lines.map_or(0, |l| l.skew),
                    ..config.gaps
                },
                ..config
            },
        };
        let mut sessions = Vec::new();
        store.sessions(&mut |s| sessions.push(s));
        for &session in sessions.iter().rev().take(MAX_RECORDINGS).rev() {
            let recording = archiver.recall(session, now, store);
            archiver.recordings.push(recording);
        }
        archiver
    }

    /// What the store holds of a session.
    fn recall<S: ArchiveStore>(&self, session: Session, now: Nanos, store: &mut S) -> Recording {
        let mut recording = self.new_recording(session, store.previous_of(session));
        recording.opened = true;
        store.stored(session, false, &mut |r| recording.have_again(r));
        store.lost(session, &mut |r| recording.have_again(r));
        recording.end = store.end_of(session);
        if let Some(end) = recording.end {
            recording.horizon = recording.horizon.max(end.last.next());
            // Nothing more will be heard of it, so its holes are asked for now.
            recording.miss_absent(now);
        }
        recording
    }

    fn new_recording(&self, session: Session, previous: Session) -> Recording {
        Recording {
            session,
            previous,
            server_origin: 0,
            opened: false,
            have: RangeSet::new(MAX_STORED_RANGES),
            horizon: Seq::FIRST,
            traced: false,
            oldest: None,
            end: None,
            end_unsaved: false,
            gaps: Gaps::new(self.config.gaps, self.config.seed ^ u64::from(session.0)),
            dirty: true,
        }
    }

    /// Who has asked for repairs lately, with the number of its NAK frames.
    pub fn askers(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.responder.askers()
    }

    /// Who was asked for what is missing here, with the number of NAK frames.
    pub fn asked(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.questions.by_party()
    }

    /// Other limits of repairs from now on.
    pub fn set_repair(&mut self, repair: RepairConfig, now: Nanos) {
        self.responder.set_config(repair, now);
        self.config.repair = repair;
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> ArchiverStats {
        ArchiverStats {
            naks: self.questions.all(),
            repairs: self.responder.stats(),
            ..self.stats
        }
    }

    /// Messages known to exist and not stored.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.recordings.iter().map(|r| r.gaps.missing()).sum()
    }

    /// The lowest number of the newest session that is known to exist and not stored.
    #[must_use]
    pub fn first_missing(&self) -> Option<Seq> {
        self.recordings.last()?.gaps.first()
    }

    /// Whether the newest session has ended for good and all of it is stored or lost.
    #[must_use]
    pub fn complete(&self) -> bool {
        self.recordings
            .last()
            .is_some_and(|r| r.end.is_some_and(|e| e.next == Session::NONE) && r.gaps.is_empty())
    }

    /// What has come over each line, if both are listened to.
    #[must_use]
    pub fn lines(&self) -> Option<&Lines> {
        self.lines.as_ref()
    }

    /// Whether a line has fallen silent or come back since the last call.
    pub fn line_change(&mut self) -> Option<LineChange> {
        self.lines.as_mut().and_then(Lines::poll)
    }

    /// Takes one received frame of this stream that came over `line`.
    pub fn on_line_frame(
        &mut self,
        now: Now,
        line: Line,
        from: SocketAddrV4,
        bytes: &[u8],
        store: &mut impl ArchiveStore,
        out: &mut impl Outbox,
    ) {
        let Some(lines) = &mut self.lines else {
            return self.on_frame(now, from, bytes, store, out);
        };
        if lines.take(now.mono, line, bytes) == Verdict::Use {
            self.on_frame(now, from, bytes, store, out);
        }
        if let Some(lines) = &self.lines
            && let Some(recording) = self.recordings.last_mut().filter(|r| r.session == lines.session())
        {
            recording.gaps.hasten(lines.passed(), now.mono);
        }
    }

    /// Takes one received frame of this stream.
    pub fn on_frame(
        &mut self,
        now: Now,
        from: SocketAddrV4,
        bytes: &[u8],
        store: &mut impl ArchiveStore,
        out: &mut impl Outbox,
    ) {
        let Ok(frame) = Frame::parse(bytes) else {
            self.stats.malformed += 1;
            return;
        };
        let header = frame.header;
        let session = header.session();
        let answer = matches!(frame.body, Body::Repair(_) | Body::End(_) | Body::Unavailable(_));
        if answer && !self.parties.may_answer(from) {
            // Its own answers to everyone are no news.
            self.stats.unasked += u64::from(from != self.config.local && Some(from) != self.config.local_b);
            return;
        }
        match frame.body {
            Body::Data(block) => {
                if let Some(at) = self.recording_of(header, store) {
                    if self.parties.server().is_none() {
                        self.parties.set_server(from);
                    }
                    self.on_block(now, at, header.time.get(), &block, store);
                }
            }
            Body::Repair(block) => {
                if let Some(at) = self.recordings.iter().position(|r| r.session == session) {
                    self.stats.repaired += u64::from(block.count());
                    self.on_block(now, at, header.time.get(), &block, store);
                }
            }
            Body::Heartbeat(body, endpoints) => {
                if let Some(at) = self.recording_of(header, store) {
                    self.on_heartbeat(now, at, header, body, endpoints, store);
                    self.trace(now, out);
                }
            }
            Body::End(body) => {
                let end = End {
                    last: header.sequence().prev(),
                    next: Session(body.next_session.get()),
                };
                let by_server = header.has(flags::FROM_SERVER);
                let known = self.recordings.iter().position(|r| r.session == session);
                // Of a session that this archive missed as a whole, a server tells it by itself.
                let missed = by_server && self.recordings.last().is_some_and(|r| r.session > session);
                let at = match known {
                    None if missed => Some(self.add_missed(now.mono, session, store)),
                    known => known,
                };
                if let Some(at) = at {
                    if header.has(flags::UNSURE) {
                        self.recordings[at].miss_up_to(end.last.next(), now.mono);
                    } else {
                        self.set_end(now.mono, at, end, store);
                    }
                    let recording = &mut self.recordings[at];
                    if missed {
                        // The server waits for what a loss of power has taken out of this log.
                        recording.miss_absent(now.mono);
                    }
                    let by = Refuser::new(from, header);
                    recording.gaps.ended(end.last, by, &self.parties, now.mono);
                    recording.traced |= by_server;
                    let previous = Session(body.previous_session.get());
                    if previous < session && previous != Session::NONE {
                        recording.previous = previous;
                    }
                    // What another archive has of older sessions it may be about to give up.
                    if by_server {
                        self.on_missed(now.mono, previous, store);
                    }
                    self.on_missed(now.mono, end.next, store);
                }
            }
            // Its own questions it hears as well; those of a client in its engine have the same address.
            Body::Nak(ranges) if header.has(flags::ASK_ARCHIVE) && header.origin.get() != self.config.origin => {
                self.responder.on_nak(now, from, header, &ranges, out);
            }
            Body::Unavailable(refusals) => self.on_unavailable(now.mono, from, header, refusals, store),
            Body::Nak(_) | Body::Ack(_) => {}
        }
    }

    /// The place of the recording that a server's frame belongs to; a new session opens one.
    fn recording_of(&mut self, header: &Header, store: &mut impl ArchiveStore) -> Option<usize> {
        let session = header.session();
        let origin = header.origin.get();
        if let Some(at) = self.recordings.iter().rposition(|r| r.session == session) {
            let recording = &mut self.recordings[at];
            if recording.server_origin != 0 && recording.server_origin != origin {
                self.stats.foreign += 1;
                return None;
            }
            recording.server_origin = origin;
            return Some(at);
        }
        // A server's own frames are of its newest session.
        if self.recordings.last().is_some_and(|r| r.session > session) {
            self.stats.foreign += 1;
            return None;
        }
        let previous = Session::NONE;
        let mut recording = self.new_recording(session, previous);
        recording.server_origin = origin;
        if store.open_session(session, previous, origin).is_err() {
            self.stats.failed += 1;
            return None;
        }
        recording.opened = true;
        Some(self.add(recording))
    }

    fn add(&mut self, recording: Recording) -> usize {
        if self.recordings.len() == MAX_RECORDINGS {
            let settled = self.recordings.iter().position(Recording::is_settled);
            self.recordings.remove(settled.unwrap_or(0));
        }
        let at = self.recordings.partition_point(|r| r.session < recording.session);
        self.recordings.insert(at, recording);
        at
    }

    fn on_block(&mut self, now: Now, at: usize, time: Nanos, block: &Block<'_>, store: &mut impl ArchiveStore) {
        let Some(range) = block.range() else { return };
        let recording = &mut self.recordings[at];
        // Sent by a server that has lost it with its power: its next run has told an end without it, and
        // whoever asks is answered with that end.
        if recording.end.is_some_and(|end| range.last > end.last) {
            self.stats.late += u64::from(block.count());
            return;
        }
        // The first message of a session seen late: heartbeats say how much older ones there are.
        if recording.horizon == Seq::FIRST && recording.have.is_empty() && recording.oldest.is_none() {
            recording.horizon = range.first;
        }
        if let Some(gap) = SeqRange::new(recording.horizon, range.first.prev()) {
            self.stats.gaps += u64::from(self.lines.is_none());
            recording.gaps.miss(gap, now.mono);
        }
        let fresh = range.first >= recording.horizon;
        recording.horizon = recording.horizon.max(range.end());
        let mut new = 0;
        let mut kept = Ok(());
        if fresh {
            kept = recording.store(block, range, time, now.wall, store);
            new = range.len();
        } else {
            let recording = &mut *recording;
            let mut absent = [range; 8];
            let mut count = 0;
            recording.have.absent(range, |r| {
                if count < absent.len() {
                    absent[count] = r;
                    count += 1;
                }
            });
            for part in &absent[..count] {
                kept = kept.and_then(|()| recording.store(block, *part, time, now.wall, store));
                new += part.len();
            }
            self.stats.duplicates += u64::from(range.len() - new.min(range.len()));
        }
        match kept {
            Ok(()) => {
                recording.gaps.found(range, now.mono);
                self.stats.stored += u64::from(new);
                if new > 0 {
                    self.stats.records += 1;
                    self.unacked += 1;
                    recording.dirty = true;
                    self.ack_due = self.ack_due.min(now.mono + self.config.ack_delay);
                    if self.unacked >= self.config.ack_frames {
                        self.ack_due = now.mono;
                    }
                }
            }
            Err(refused) => {
                match refused {
                    Refused::Full => self.stats.full += 1,
                    Refused::Failed => self.stats.failed += 1,
                }
                recording.have.absent(range, |r| recording.gaps.miss(r, now.mono));
            }
        }
    }

    fn on_heartbeat(
        &mut self,
        now: Now,
        at: usize,
        header: &Header,
        body: &HeartbeatBody,
        endpoints: &[Endpoint],
        store: &mut impl ArchiveStore,
    ) {
        let line = self.lines.as_ref().map_or(self.config.line, Lines::preferred);
        let own = [Some(self.config.local), self.config.local_b];
        let others = reachable(endpoints, Role::Archive, line).filter(|a| !own.contains(&Some(*a)));
        if others.clone().next().is_some() {
            self.alone_since = None;
        }
        let alone_since = match self.alone_since {
            None if others.clone().next().is_none() => *self.alone_since.insert(now.mono),
            since => since.unwrap_or(now.mono),
        };
        self.parties.archived = header.has(flags::ARCHIVED) && now.mono.saturating_sub(alone_since) < ALONE;
        if self.parties.heard(header.origin.get(), now.mono) {
            for recording in &mut self.recordings {
                recording.gaps.server_changed();
            }
        }
        if self.parties.set_archives(others, now.mono) {
            for recording in &mut self.recordings {
                recording.gaps.archives_changed();
            }
        }
        self.server_otherwise = reachable(endpoints, Role::Server, line.other())
            .next()
            .filter(|_| self.lines.is_some());
        if let Some(server) = reachable(endpoints, Role::Server, line).next()
            && self.parties.set_server(server)
        {
            self.repeat_due = now.mono;
            self.ack_due = now.mono;
        }
        let recording = &mut self.recordings[at];
        let next = header.sequence();
        let oldest = Seq(body.oldest.get()).max(Seq::FIRST);
        let lowest = recording
            .have
            .as_slice()
            .first()
            .map_or(oldest, |r| r.first.min(oldest));
        if recording.oldest.is_none() {
            // First word of this server: everything that it has or that was missed before.
            recording.horizon = recording.horizon.max(next);
            if let Some(all) = SeqRange::new(lowest, recording.horizon.prev()) {
                let gaps = &mut recording.gaps;
                recording.have.absent(all, |r| gaps.miss(r, now.mono));
            }
            recording.dirty = true;
            self.ack_due = now.mono;
        } else if let Some(gap) = SeqRange::new(recording.horizon, next.prev()) {
            self.stats.gaps += u64::from(self.lines.is_none());
            recording.gaps.miss(gap, now.mono);
            recording.horizon = next;
        }
        recording.oldest = Some(oldest);
        let session = recording.session;
        let previous = Session(body.previous_session.get());
        if let Some(previous) = previous.known().filter(|p| *p < session) {
            recording.previous = previous;
            if let Some(before) = self.recordings.iter_mut().find(|r| r.session == previous)
                && before.end.is_none()
                && before.server_origin != header.origin.get()
            {
                // Another run of the server: its log may hold again what the last one had let go of.
                before.oldest = None;
            }
            self.on_previous(now.mono, session, previous, Seq(body.previous_last.get()), store);
        }
        self.close_forgotten(now.mono, store);
    }

    /// A server says what came before its session.
    fn on_previous(
        &mut self,
        now: Nanos,
        session: Session,
        previous: Session,
        last: Seq,
        store: &mut impl ArchiveStore,
    ) {
        let end = End { last, next: session };
        let at = match self.recordings.iter().position(|r| r.session == previous) {
            Some(at) if self.recordings[at].end == Some(end) => return,
            Some(at) => at,
            None => self.add_missed(now, previous, store),
        };
        self.set_end(now, at, end, store);
    }

    /// Watches a session of which nothing was heard while it was open, and returns its place.
    fn add_missed(&mut self, now: Nanos, session: Session, store: &mut impl ArchiveStore) -> usize {
        let mut held = false;
        store.sessions(&mut |s| held |= s == session);
        let mut recording = if held {
            // The server waits for its acknowledgement, and there is room to watch it only until
            // the next one is heard of.
            self.ack_due = now;
            self.recall(session, now, store)
        } else {
            // The store learns of it with the first message that can be had.
            self.new_recording(session, Session::NONE)
        };
        recording.oldest = Some(Seq::FIRST);
        self.add(recording)
    }

    /// Somebody says that there was a session.
    fn on_missed(&mut self, now: Nanos, session: Session, store: &mut impl ArchiveStore) {
        let known = session == Session::NONE || self.recordings.iter().any(|r| r.session == session);
        let newest = self.recordings.last().map_or(Session::NONE, |r| r.session);
        if !known && session < newest && self.recordings.len() < MAX_RECORDINGS {
            self.add_missed(now, session, store);
        }
    }

    /// Asks the server about older sessions of which it has not told the neighbours: whole sessions
    /// may have passed while this archive was away, and their server keeps them until it asks.
    fn trace(&mut self, now: Now, out: &mut impl Outbox) {
        let Some(server) = self.parties.server() else { return };
        let older = self.recordings.split_last_mut().map_or(&mut [][..], |(_, older)| older);
        // Behind the last number of all there is none to ask for.
        let beyond = |r: &Recording| SeqRange::of(r.horizon.max(r.end.map_or(Seq(0), |e| e.last).next()), 1);
        let untraced = older.iter_mut().rev().filter(|r| !r.traced);
        for (beyond, recording) in untraced.filter_map(|r| Some((beyond(r)?, r))).take(TRACED_AT_ONCE) {
            let stamp = Stamp {
                time: recording.gaps.question(now),
                flags: flags::ASK_SERVER,
                ..nak_stamp(self.config.stream, recording.session, self.config.origin)
            };
            // One that is not sent now comes with the next heartbeat.
            out.send(server, |buf| stamp.ranges(buf, Kind::Nak, [beyond]));
        }
    }

    /// Whether the session at `at` is known to have followed the one before it in the list.
    fn is_linked(&self, at: usize) -> bool {
        self.recordings[at].previous == self.recordings[at - 1].session
    }

    /// Older sessions whose end no server has told: everyone is asked, and when nobody knows, they
    /// end with what is known of them.
    fn close_forgotten(&mut self, now: Nanos, store: &mut impl ArchiveStore) {
        for at in 0..self.recordings.len().saturating_sub(1) {
            if self.recordings[at].end.is_some_and(|e| e.next != Session::NONE) {
                continue;
            }
            let (follower, linked) = (self.recordings[at + 1].session, self.is_linked(at + 1));
            let recording = &mut self.recordings[at];
            if let Some(end) = recording.end {
                // Without a link it stays open what followed.
                if linked {
                    self.set_end(now, at, End { next: follower, ..end }, store);
                }
            } else if recording.gaps.is_empty() {
                let last = recording.horizon.plus(MAX_RANGES as u32).min(Seq::LAST);
                if let Some(beyond) = SeqRange::new(recording.horizon, last) {
                    recording.gaps.miss(beyond, now);
                } else {
                    // Nothing can lie behind the last number.
                    let next = if linked { follower } else { Session::NONE };
                    self.set_end(now, at, End { last: Seq::LAST, next }, store);
                }
            }
        }
    }

    fn set_end(&mut self, now: Nanos, at: usize, end: End, store: &mut impl ArchiveStore) {
        let recording = &mut self.recordings[at];
        let last = end.last.max(recording.horizon.prev());
        let next = match recording.end {
            Some(known) if end.next == Session::NONE => known.next,
            _ => end.next,
        };
        let end = End { last, next };
        if recording.end == Some(end) {
            return;
        }
        recording.end_unsaved = true;
        recording.gaps.forget_above(last);
        if recording.oldest.is_none()
            && let Some(all) = SeqRange::new(Seq::FIRST, last)
        {
            // No heartbeat came in time to say what the server has: all of it is asked for.
            recording.oldest = Some(Seq::FIRST);
            let gaps = &mut recording.gaps;
            recording.have.absent(all, |r| gaps.miss(r, now));
        }
        recording.miss_up_to(last.next(), now);
        recording.end = Some(end);
        recording.dirty = true;
        self.stats.failed += u64::from(!recording.save_end(store));
        self.ack_due = now;
    }

    fn on_unavailable(
        &mut self,
        now: Nanos,
        from: SocketAddrV4,
        header: &Header,
        refusals: Refusals<'_>,
        store: &mut impl ArchiveStore,
    ) {
        let by = Refuser::new(from, header);
        let by_server = header.has(flags::FROM_SERVER);
        let session = header.session();
        let Some(recording) = self.recordings.iter_mut().find(|r| r.session == session) else {
            return;
        };
        for (range, reason, retry_ms) in refusals.iter() {
            if reason.is_of_the_past() && recording.end.is_none() {
                recording.miss_up_to(range.end(), now);
            }
            recording.traced |= by_server && reason == Reason::UnknownSession;
            recording
                .gaps
                .refused(range, by, (reason, retry_ms), &self.parties, now);
        }
        if refusals.iter().any(|(_, reason, _)| reason == Reason::UnknownSession) {
            self.on_missed(now, header.later_session(), store);
        }
    }

    /// Runs what is due: NAKs, ACKs, repairs. Returns when to call again at the latest.
    pub fn poll(&mut self, now: Now, budget: usize, store: &mut impl ArchiveStore, out: &mut impl Outbox) -> Nanos {
        let known = Known {
            store: &*store,
            recordings: &self.recordings,
            before: now.mono.checked_sub(ALONE),
        };
        self.responder.pump(now, budget, &known, out);
        let mut due = self.responder.next_due(now.mono);
        for at in 0..self.recordings.len() {
            if self.recordings[at].gaps.is_due(now.mono, Seq(u32::MAX)) {
                let stats = &mut self.stats;
                self.recordings[at].gaps.confirm(now.mono, |_| stats.gaps += 1);
                // It gives up only what was refused.
                while let Some((range, _)) = self.recordings[at].gaps.take_given_up(now.mono, &self.parties) {
                    self.give_up(now.mono, at, range, store);
                }
                let recording = &mut self.recordings[at];
                let stamp = nak_stamp(self.config.stream, recording.session, self.config.origin);
                recording.gaps.ask(now, Seq(u32::MAX), &self.parties, stamp, out);
                recording.gaps.questions.pour(&mut self.questions);
            }
            due = due.min(self.recordings[at].gaps.next_due().max(now.mono + 1));
        }
        if now.mono >= self.ack_due {
            self.acknowledge(now, store, out);
        }
        due.min(self.ack_due)
    }

    fn give_up(&mut self, now: Nanos, at: usize, range: SeqRange, store: &mut impl ArchiveStore) {
        let recording = &mut self.recordings[at];
        if let Some(known) = SeqRange::new(range.first, range.last.min(recording.horizon.prev())) {
            let mut lost = Vec::new();
            recording.have.absent(known, |r| lost.push(r));
            for range in lost {
                let marked = recording.open(store);
                match marked.and_then(|()| store.mark_lost(recording.session, range)) {
                    Ok(()) => {
                        self.stats.lost += u64::from(range.len());
                        recording.have_again(range);
                        recording.dirty = true;
                        self.ack_due = now;
                    }
                    Err(_) => {
                        // What is not on record is not acknowledged either.
                        self.stats.failed += 1;
                        recording.gaps.miss_later(range, now);
                    }
                }
            }
        }
        // Somebody may still have what comes before it.
        let is_next = recording
            .gaps
            .first_from(recording.horizon)
            .is_none_or(|f| f > range.first);
        let beyond = range.last >= recording.horizon && is_next && recording.end.is_none();
        if beyond && at + 1 < self.recordings.len() {
            let next = match self.is_linked(at + 1) {
                true => self.recordings[at + 1].session,
                false => Session::NONE,
            };
            let last = self.recordings[at].horizon.prev();
            self.set_end(now, at, End { last, next }, store);
        }
    }

    fn acknowledge(&mut self, now: Now, store: &mut impl ArchiveStore, out: &mut impl Outbox) {
        let mut also = None;
        if now.mono >= self.repeat_due {
            self.repeat_due = now.mono + self.config.ack_idle;
            for recording in &mut self.recordings {
                recording.dirty = true;
                // A disk that was full may have room by now.
                recording.save_end(store);
            }
            // So that the server knows the way over either line.
            also = self.server_otherwise.filter(|s| Some(*s) != self.parties.server());
        }
        self.ack_due = self.repeat_due;
        let Some(server) = self.parties.server() else { return };
        self.unacked = 0;
        let newest = self.recordings.last().map_or(Session::NONE, |r| r.session);
        for recording in self.recordings.iter_mut().filter(|r| r.dirty) {
            recording.dirty = false;
            let stamp = Stamp {
                stream: self.config.stream,
                session: recording.session,
                sequence: Seq(0),
                time: now.wall,
                flags: if self.config.synced { flags::SYNCED } else { 0 },
                origin: self.config.origin,
            };
            // What the server has dropped long ago needs no further word. Of an older session this is
            // another server, whose log may still hold what the last one was about to drop.
            let from = recording
                .oldest
                .filter(|_| recording.session == newest)
                .unwrap_or(Seq::FIRST);
            let mut ranges = [SeqRange {
                first: Seq::FIRST,
                last: Seq::FIRST,
            }; ACKS_AT_ONCE * MAX_RANGES];
            let mut count = 0;
            let mut take = |r: SeqRange| {
                if r.last >= from && count < ranges.len() {
                    ranges[count] = r;
                    count += 1;
                }
            };
            if self.config.synced && !planted!(AckUnsynced) {
                let mut synced = 0;
                store.stored(recording.session, true, &mut |r| {
                    synced += u64::from(r.len());
                    take(r);
                });
                store.lost(recording.session, &mut |r| {
                    synced += u64::from(r.len());
                    take(r);
                });
                if synced < recording.have.total() {
                    // The rest is on its way to the disk.
                    recording.dirty = true;
                    self.ack_due = self.ack_due.min(now.mono + self.config.ack_delay.max(MILLIS));
                }
            } else {
                recording.have.as_slice().iter().copied().for_each(&mut take);
            }
            // An archive that has nothing yet still says that it is there.
            let mut rest = &ranges[..count];
            loop {
                let (frame, later) = rest.split_at(rest.len().min(MAX_RANGES));
                for to in [Some(server), also].into_iter().flatten() {
                    let sent = out.send(to, |buf| stamp.ranges(buf, Kind::Ack, frame.iter().copied()));
                    self.stats.acks += u64::from(sent);
                }
                rest = later;
                if rest.is_empty() {
                    break;
                }
            }
        }
    }

    /// Sends the last acknowledgements before leaving. In `synced` mode the caller syncs first.
    pub fn close(&mut self, now: Now, store: &mut impl ArchiveStore, out: &mut impl Outbox) {
        self.repeat_due = now.mono;
        self.acknowledge(now, store, out);
    }
}

/// What the store holds, and what else is known of numbers that it does not hold.
struct Known<'a, S> {
    store: &'a S,
    recordings: &'a [Recording],
    /// What the server has refused since then may yet come from an archive that was away.
    before: Option<Nanos>,
}

impl<S: Store> Store for Known<'_, S> {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        let found = self.store.look_up(session, seq);
        let Lookup::Absent(Reason::NotYet, upto) = found else {
            return found;
        };
        let nothing_more = Lookup::Absent(Reason::UnknownSession, upto);
        let Some(recording) = self.recordings.iter().find(|r| r.session == session) else {
            // Not watched any more.
            return nothing_more;
        };
        // What is not asked for any more will not come. What the server has let go of comes from
        // another archive or not at all: two that miss the same must not wait for each other.
        match recording.gaps.hope(seq, self.before) {
            (false, last) if seq < recording.horizon => {
                Lookup::Absent(Reason::TooOld, last.min(upto).min(recording.horizon.prev()))
            }
            (false, _) if recording.gaps.asks_for(seq) => nothing_more,
            _ => found,
        }
    }

    fn end_of(&self, session: Session) -> Option<End> {
        self.store.end_of(session)
    }

    fn previous_of(&self, session: Session) -> Session {
        self.store.previous_of(session)
    }

    fn session_after(&self, session: Session) -> Session {
        self.store.session_after(session)
    }
}

impl Recording {
    /// Notes all that is not held of what exists.
    fn miss_absent(&mut self, now: Nanos) {
        let Recording { have, gaps, .. } = self;
        if let Some(all) = SeqRange::new(Seq::FIRST, self.horizon.prev()) {
            have.absent(all, |r| gaps.miss(r, now));
        }
    }

    /// Tells the store how the session ended, if it does not know yet. False if it refuses.
    fn save_end(&mut self, store: &mut impl ArchiveStore) -> bool {
        let Some(end) = self.end.filter(|_| self.end_unsaved) else {
            return true;
        };
        if end.last < Seq::FIRST && !self.opened {
            // Empty: nothing will come that opens it, yet clients ask what followed it.
            self.opened = store.open_session(self.session, self.previous, 0).is_ok();
        }
        self.end_unsaved = match self.opened {
            true => store.close_session(self.session, end).is_err(),
            // One with messages is opened, and ended, with the first that is stored.
            false => end.last < Seq::FIRST,
        };
        !self.end_unsaved
    }

    /// Whether nothing more is to be expected of it.
    fn is_settled(&self) -> bool {
        self.end.is_some_and(|e| e.next != Session::NONE) && self.gaps.is_empty()
    }

    /// All numbers below `end` exist.
    fn miss_up_to(&mut self, end: Seq, now: Nanos) {
        if let Some(gap) = SeqRange::new(self.horizon, end.prev()) {
            self.gaps.miss(gap, now);
            self.horizon = end;
        }
    }

    fn have_again(&mut self, range: SeqRange) {
        // The set is as large as what is stored may be scattered; beyond, some is fetched again
        // and found to be there.
        let _ = self.have.insert(range);
        self.horizon = self.horizon.max(range.end());
    }

    /// Sees to it that the store knows the session.
    fn open(&mut self, store: &mut impl ArchiveStore) -> Result<(), Refused> {
        if !self.opened {
            store.open_session(self.session, self.previous, self.server_origin)?;
            self.opened = true;
            self.end_unsaved = self.end.is_some();
            self.save_end(store);
        }
        Ok(())
    }

    fn store(
        &mut self,
        block: &Block<'_>,
        range: SeqRange,
        time: Nanos,
        received: Nanos,
        store: &mut impl ArchiveStore,
    ) -> Result<(), Refused> {
        self.open(store)?;
        let Some(block) = block.part(range, usize::MAX) else {
            return Ok(());
        };
        self.have.insert(range).map_err(|_| Refused::Full)?;
        let kept = store.append(self.session, &Record { block, time }, received);
        if kept.is_err() && !planted!(AckUnstored) {
            self.have.remove(range);
        }
        kept
    }
}
