//! What a server keeps on disk.

use std::path::Path;

use seqcast_archive::{Archive, Error, Options, SessionLog, SessionMeta};
use seqcast_proto::io::{End, Lookup, Record, Refused, ServerStore, Store};
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::server::Inherited;

use super::{Log, next_of, oldest_of, refused, report};
use crate::log;

/// Keeps what a server sent until archives have acknowledged it.
pub struct Retention {
    log: Log,
    stream: Stream,
    origin: u32,
    /// Most bytes kept.
    limit: u64,
    /// Old messages make room for new ones.
    drop_oldest: bool,
    /// Messages that had to make room.
    dropped: u64,
    /// Nothing changes between appends but by the helper: looking at every frame is not needed.
    appended: u64,
    failed: bool,
}

/// Bytes after which the log's size is looked at again.
const LOOK_EVERY: u64 = 64 << 10;

impl Retention {
    /// The same, saying nothing when its disk fails: for runs that let it fail on purpose.
    #[must_use]
    pub fn quiet(mut self) -> Retention {
        self.failed = true;
        self
    }

    /// Opens the log in `dir`, or makes it.
    ///
    /// # Errors
    /// As for [`Archive::open`].
    pub fn open(dir: &Path, stream: Stream, origin: u32, limit: u64, drop_oldest: bool) -> Result<Retention, Error> {
        // Small segments, so that acknowledged messages give their room back soon.
        let segment_bytes = (limit / 16).clamp(1 << 20, 16 << 20).next_power_of_two();
        let options = Options {
            segment_bytes: segment_bytes.min(16 << 20),
            ..Options::default()
        };
        let archive = Archive::open(dir, stream, options)?;
        for note in archive.recovery() {
            tracing::info!(target: log::SERVER, id = stream.0, "server log of stream {stream}: {note}");
        }
        Ok(Retention::new(archive, stream, origin, limit, drop_oldest))
    }

    /// The same on a log that is open already. It keeps at most `limit` bytes and takes no more,
    /// or with `drop_oldest` gives up old messages for new ones.
    #[must_use]
    pub fn new(archive: Archive, stream: Stream, origin: u32, limit: u64, drop_oldest: bool) -> Retention {
        Retention {
            log: Log::new(archive),
            stream,
            origin,
            limit,
            drop_oldest,
            dropped: 0,
            appended: LOOK_EVERY,
            failed: false,
        }
    }

    /// Whether old messages make room for new ones.
    pub fn set_drop_oldest(&mut self, drop_oldest: bool) {
        self.drop_oldest = drop_oldest;
        self.appended = LOOK_EVERY;
    }

    /// The sessions of earlier runs, ascending. One that a crash cut off ended with its last
    /// stored number, since nothing is sent before it is stored.
    #[must_use]
    pub fn inherited(&self) -> Vec<Inherited> {
        self.log.archive.sessions().filter_map(|s| self.log.known(s)).collect()
    }

    /// How many messages were taken from the source by all sessions so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.log
            .archive
            .sessions()
            .next_back()
            .map_or(0, |s| self.taken_through(s))
    }

    fn taken_through(&self, session: Session) -> u64 {
        self.log
            .archive
            .session(session)
            .map_or(0, |log| log.meta().user + u64::from(next_of(log).prev().0))
    }

    fn bytes(&self) -> u64 {
        self.log
            .archive
            .sessions()
            .filter_map(|s| self.log.archive.session(s))
            .map(SessionLog::bytes)
            .sum()
    }

    /// Messages given up for new ones.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Bytes in use. What the helper has not removed yet does not count: it would be given up twice.
    fn kept_bytes(&self) -> u64 {
        let logs = self.log.archive.sessions().filter_map(|s| self.log.archive.session(s));
        logs.map(SessionLog::kept_bytes).sum::<u64>() + self.log.archive.segment_bytes()
    }

    /// Gives up the oldest segment of the oldest session that can spare one.
    fn drop_some(&mut self) -> bool {
        let sessions: Vec<Session> = self.log.archive.sessions().collect();
        for session in sessions {
            let Some(log) = self.log.archive.session_mut(session) else {
                continue;
            };
            let before = log.stored().total();
            if log.release_oldest(|_| true) {
                self.dropped += before - log.stored().total();
                return true;
            }
        }
        false
    }

    /// Removes ended sessions of which nothing need be kept. The open session and the one before
    /// it stay: the next run tells clients how that one ended.
    fn tidy(&mut self) {
        let Some(latest) = self.log.archive.sessions().nth_back(1) else {
            return;
        };
        loop {
            let done = |s: &Session| {
                let log = self.log.archive.session(*s).filter(|l| l.end().is_some());
                *s < latest && log.is_some_and(|l| l.stored().is_empty() || self.drop_oldest)
            };
            let Some(session) = self.log.archive.sessions().find(done) else {
                return;
            };
            if !self.remove(session) {
                return;
            }
        }
    }

    fn remove(&mut self, session: Session) -> bool {
        if let Some(known) = self.log.known(session) {
            self.log.remember(known);
        }
        // What cannot be removed takes room and is tried again at the next start.
        let removed = self.log.archive.remove_session(session);
        if let Err(error) = &removed {
            tracing::error!(target: log::SERVER, id = self.stream.0, "server log of stream {}: {error}", self.stream);
        }
        removed.is_ok()
    }

    /// Writes everything to disk.
    ///
    /// # Errors
    /// What the disk said.
    pub fn close(self) -> Result<(), Error> {
        self.log.archive.close()
    }
}

impl Store for Retention {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        self.log.look_up(session, seq)
    }

    fn end_of(&self, session: Session) -> Option<End> {
        self.log.end_of(session)
    }

    fn previous_of(&self, session: Session) -> Session {
        self.log.previous_of(session)
    }

    fn session_after(&self, session: Session) -> Session {
        self.log.session_after(session)
    }
}

impl ServerStore for Retention {
    fn has_room(&mut self, bytes: usize) -> bool {
        if self.appended < LOOK_EVERY {
            return true;
        }
        if self.drop_oldest {
            while self.kept_bytes() + bytes as u64 > self.limit && self.drop_some() {}
            self.appended = 0;
            return true;
        }
        let room = self.bytes() + bytes as u64 <= self.limit;
        if room {
            self.appended = 0;
        }
        room
    }

    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        let Some(log) = self.log.archive.session_mut(session) else {
            return Err(Refused::Failed);
        };
        let block = &record.block;
        self.appended += block.bytes().len() as u64;
        log.append(block.first(), block.count(), record.time, record.time, 0, block.bytes())
            .map_err(|e| refused("server log", self.stream, &mut self.failed, e))
    }

    fn open_session(&mut self, session: Session, previous: Session) -> Result<(), Refused> {
        let meta = SessionMeta {
            previous,
            origin: self.origin,
            user: self.taken(),
        };
        match self.log.archive.create_session(session, meta) {
            Ok(_) => {
                self.tidy();
                Ok(())
            }
            Err(error) => {
                report("server log", self.stream, &mut self.failed, &error);
                Err(Refused::Failed)
            }
        }
    }

    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        let Some(log) = self.log.archive.session_mut(session) else {
            return Ok(());
        };
        if log.end() == Some((end.last, end.next)) {
            return Ok(());
        }
        log.close(end.last, end.next).map_err(|error| {
            report("server log", self.stream, &mut self.failed, &error);
            Refused::Failed
        })
    }

    fn release_below(&mut self, session: Session, seq: Seq) {
        if let Some(log) = self.log.archive.session_mut(session) {
            log.release_below(seq);
            self.appended = LOOK_EVERY;
            if log.stored().is_empty() {
                self.tidy();
            }
        }
    }

    fn drop_session(&mut self, session: Session) {
        if self.log.removed(session).is_none() {
            self.remove(session);
        }
    }

    fn oldest(&self, session: Session) -> Seq {
        match self.log.removed(session) {
            Some(removed) => removed.end.last.next(),
            None => self.log.archive.session(session).map_or(Seq::FIRST, oldest_of),
        }
    }
}
