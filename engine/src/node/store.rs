//! The append log behind a server and behind an archive.

use std::collections::VecDeque;
use std::path::Path;

use seqcast_archive::{AppendError, Archive, Error, Options, SessionLog, SessionMeta};
use seqcast_proto::io::{ArchiveStore, End, Lookup, Record, Refused, ServerStore, Store};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::server::Inherited;
use seqcast_proto::time::Nanos;
use seqcast_proto::wire::{Block, Reason};

use super::window::Window;

/// One past the highest number that the log ever held.
fn next_of(log: &SessionLog) -> Seq {
    let stored = log.highest().map_or(Seq::FIRST, Seq::next);
    stored.max(log.floor())
}

/// The lowest number that the log still holds; one past the last when it holds none.
fn oldest_of(log: &SessionLog) -> Seq {
    log.stored()
        .as_slice()
        .first()
        .map_or_else(|| next_of(log), |r| r.first)
}

fn look_up(archive: &Archive, session: Session, seq: Seq) -> Lookup<'_> {
    let Some(log) = archive.session(session) else {
        return Lookup::Absent(Reason::UnknownSession, Seq(u32::MAX));
    };
    if let Some(record) = log.read(seq) {
        let block = Block::trusted(record.first, record.count, record.block);
        return Lookup::Found(Record {
            block,
            time: record.send_ns,
        });
    }
    if let Some(lost) = log.lost().range_of(seq) {
        return Lookup::Absent(Reason::Lost, lost.last);
    }
    let oldest = oldest_of(log);
    if seq < oldest {
        return Lookup::Absent(Reason::TooOld, oldest.prev());
    }
    let stored = log.stored().as_slice();
    let above = stored.partition_point(|r| r.first <= seq);
    let upto = stored.get(above).map_or(Seq(u32::MAX), |r| r.first.prev());
    Lookup::Absent(Reason::NotYet, upto)
}

fn end_of(archive: &Archive, session: Session) -> Option<End> {
    let (last, next) = archive.session(session)?.end()?;
    Some(End { last, next })
}

fn previous_of(archive: &Archive, session: Session) -> Session {
    archive.session(session).map_or(Session::NONE, |l| l.meta().previous)
}

/// Turns the log's refusals into the protocol's, and says once what is broken.
fn refused(what: &str, stream: Stream, failed: &mut bool, error: AppendError) -> Refused {
    match error {
        AppendError::Full | AppendError::Fragmented => Refused::Full,
        other => {
            report(what, stream, failed, &other);
            Refused::Failed
        }
    }
}

fn report(what: &str, stream: Stream, failed: &mut bool, error: &dyn std::fmt::Display) {
    if !*failed {
        *failed = true;
        eprintln!("{what} of stream {stream}: {error}");
    }
}

/// Keeps what a server sent until archives have acknowledged it.
pub struct Retention {
    archive: Archive,
    stream: Stream,
    origin: u32,
    /// Most bytes kept.
    limit: u64,
    /// Without archives old messages make room for new ones.
    drop_oldest: bool,
    /// Sessions that were acknowledged throughout and removed: clients may still ask how they ended.
    ended: VecDeque<Inherited>,
    /// Nothing changes between appends but by the helper: looking at every frame is not needed.
    appended: u64,
    failed: bool,
}

/// Removed sessions of which the end is remembered.
const ENDED: usize = 64;
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
            eprintln!("server log of stream {stream}: {note}");
        }
        Ok(Retention::new(archive, stream, origin, limit, drop_oldest))
    }

    /// The same on a log that is open already. It keeps at most `limit` bytes and takes no more,
    /// or with `drop_oldest` gives up old messages for new ones.
    #[must_use]
    pub fn new(archive: Archive, stream: Stream, origin: u32, limit: u64, drop_oldest: bool) -> Retention {
        Retention {
            archive,
            stream,
            origin,
            limit,
            drop_oldest,
            ended: VecDeque::with_capacity(ENDED),
            appended: LOOK_EVERY,
            failed: false,
        }
    }

    /// The sessions of earlier runs, ascending. One that a crash cut off ended with its last
    /// stored number, since nothing is sent before it is stored.
    #[must_use]
    pub fn inherited(&self) -> Vec<Inherited> {
        self.archive
            .sessions()
            .filter_map(|session| {
                let log = self.archive.session(session)?;
                let end = log.end().map_or(
                    End {
                        last: next_of(log).prev(),
                        next: Session::NONE,
                    },
                    |(last, next)| End { last, next },
                );
                Some(Inherited {
                    session,
                    previous: log.meta().previous,
                    end,
                })
            })
            .collect()
    }

    /// How many messages were taken from the source by all sessions so far.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.archive.sessions().next_back().map_or(0, |s| self.taken_through(s))
    }

    fn taken_through(&self, session: Session) -> u64 {
        self.archive
            .session(session)
            .map_or(0, |log| log.meta().user + u64::from(next_of(log).prev().0))
    }

    fn bytes(&self) -> u64 {
        self.archive
            .sessions()
            .filter_map(|s| self.archive.session(s))
            .map(SessionLog::bytes)
            .sum()
    }

    /// Gives up the oldest eighth of the oldest session that holds anything.
    fn drop_some(&mut self) {
        let holds = |s: &Session| {
            let log = self.archive.session(*s);
            log.is_some_and(|l| !l.stored().is_empty())
        };
        let Some(session) = self.archive.sessions().find(holds) else {
            return;
        };
        if let Some(log) = self.archive.session_mut(session) {
            let (oldest, next) = (oldest_of(log), next_of(log));
            log.release_below(oldest.plus(next.since(oldest) / 8 + 1));
        }
    }

    /// Removes ended sessions of which nothing need be kept. The open session and the one before
    /// it stay: the next run tells clients how that one ended.
    fn tidy(&mut self) {
        let Some(latest) = self.archive.sessions().nth_back(1) else {
            return;
        };
        loop {
            let done = |s: &Session| {
                let log = self.archive.session(*s).filter(|l| l.end().is_some());
                *s < latest && log.is_some_and(|l| l.stored().is_empty() || self.drop_oldest)
            };
            let Some(session) = self.archive.sessions().find(done) else {
                return;
            };
            if !self.remove(session) {
                return;
            }
        }
    }

    fn remove(&mut self, session: Session) -> bool {
        if let Some(end) = end_of(&self.archive, session) {
            if self.ended.len() == ENDED {
                self.ended.pop_front();
            }
            self.ended.push_back(Inherited {
                session,
                previous: previous_of(&self.archive, session),
                end,
            });
        }
        // What cannot be removed takes room and is tried again at the next start.
        let removed = self.archive.remove_session(session);
        if let Err(error) = &removed {
            eprintln!("server log of stream {}: {error}", self.stream);
        }
        removed.is_ok()
    }

    /// A session that was removed here, for what is still asked about it.
    fn removed(&self, session: Session) -> Option<&Inherited> {
        self.ended.iter().find(|e| e.session == session)
    }

    /// Writes everything to disk.
    ///
    /// # Errors
    /// What the disk said.
    pub fn close(self) -> Result<(), Error> {
        self.archive.close()
    }
}

impl Store for Retention {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        match self.removed(session) {
            Some(gone) => Lookup::Absent(Reason::TooOld, gone.end.last),
            None => look_up(&self.archive, session, seq),
        }
    }

    fn end_of(&self, session: Session) -> Option<End> {
        let removed = self.removed(session).map(|gone| gone.end);
        removed.or_else(|| end_of(&self.archive, session))
    }

    fn previous_of(&self, session: Session) -> Session {
        let removed = self.removed(session).map(|gone| gone.previous);
        removed.unwrap_or_else(|| previous_of(&self.archive, session))
    }
}

impl ServerStore for Retention {
    fn has_room(&mut self, bytes: usize) -> bool {
        if self.appended < LOOK_EVERY {
            return true;
        }
        if self.drop_oldest {
            for _ in 0..64 {
                if self.bytes() + bytes as u64 <= self.limit {
                    break;
                }
                self.drop_some();
            }
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
        let Some(log) = self.archive.session_mut(session) else {
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
        match self.archive.create_session(session, meta) {
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
        let Some(log) = self.archive.session_mut(session) else {
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
        if let Some(log) = self.archive.session_mut(session) {
            log.release_below(seq);
            self.appended = LOOK_EVERY;
            if log.stored().is_empty() {
                self.tidy();
            }
        }
    }

    fn drop_session(&mut self, session: Session) {
        if self.removed(session).is_none() {
            self.remove(session);
        }
    }

    fn oldest(&self, session: Session) -> Seq {
        match self.removed(session) {
            Some(gone) => gone.end.last.next(),
            None => self.archive.session(session).map_or(Seq::FIRST, oldest_of),
        }
    }
}

/// Where a server keeps what it sent.
pub(super) enum Keep {
    /// In a log that survives the process.
    Log(Retention),
    /// In memory.
    Window(Window),
}

impl Keep {
    /// The sessions of earlier runs, as [`Retention::inherited`].
    pub(super) fn inherited(&self) -> Vec<Inherited> {
        match self {
            Keep::Log(log) => log.inherited(),
            Keep::Window(_) => Vec::new(),
        }
    }

    /// How many messages earlier runs took from their source.
    pub(super) fn taken(&self) -> u64 {
        match self {
            Keep::Log(log) => log.taken(),
            Keep::Window(_) => 0,
        }
    }

    /// Writes to disk what is to stay.
    ///
    /// # Errors
    /// What the disk said.
    pub(super) fn close(self) -> Result<(), Error> {
        match self {
            Keep::Log(log) => log.close(),
            Keep::Window(_) => Ok(()),
        }
    }
}

/// Calls a method of whichever it is.
macro_rules! either {
    ($keep:expr, $store:ident => $call:expr) => {
        match $keep {
            Keep::Log($store) => $call,
            Keep::Window($store) => $call,
        }
    };
}

impl Store for Keep {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        either!(self, s => s.look_up(session, seq))
    }

    fn end_of(&self, session: Session) -> Option<End> {
        either!(self, s => s.end_of(session))
    }

    fn previous_of(&self, session: Session) -> Session {
        either!(self, s => s.previous_of(session))
    }
}

impl ServerStore for Keep {
    #[inline]
    fn has_room(&mut self, bytes: usize) -> bool {
        either!(self, s => s.has_room(bytes))
    }

    #[inline]
    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        either!(self, s => s.append(session, record))
    }

    fn open_session(&mut self, session: Session, previous: Session) -> Result<(), Refused> {
        either!(self, s => s.open_session(session, previous))
    }

    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        either!(self, s => s.close_session(session, end))
    }

    fn release_below(&mut self, session: Session, seq: Seq) {
        either!(self, s => s.release_below(session, seq));
    }

    fn drop_session(&mut self, session: Session) {
        either!(self, s => s.drop_session(session));
    }

    fn oldest(&self, session: Session) -> Seq {
        either!(self, s => s.oldest(session))
    }
}

/// Records a stream for an archive.
pub struct Recorder {
    archive: Archive,
    stream: Stream,
    failed: bool,
}

impl Recorder {
    /// The same, saying nothing when its disk fails: for runs that let it fail on purpose.
    #[must_use]
    pub fn quiet(mut self) -> Recorder {
        self.failed = true;
        self
    }

    /// Opens the archive in `dir`.
    ///
    /// # Errors
    /// As for [`Archive::open`].
    pub fn open(dir: &Path, stream: Stream, options: Options) -> Result<Recorder, Error> {
        let archive = Archive::open(dir, stream, options)?;
        for note in archive.recovery() {
            eprintln!("archive of stream {stream}: {note}");
        }
        Ok(Recorder::new(archive, stream))
    }

    /// The same on an archive that is open already.
    #[must_use]
    pub fn new(archive: Archive, stream: Stream) -> Recorder {
        Recorder {
            archive,
            stream,
            failed: false,
        }
    }

    /// The archive's identity.
    #[must_use]
    pub fn identity(&self) -> u32 {
        self.archive.identity()
    }

    /// How many sessions are held.
    #[must_use]
    pub fn session_count(&self) -> u64 {
        self.archive.sessions().count() as u64
    }

    /// Writes everything to disk and goes on.
    ///
    /// # Errors
    /// What the disk said.
    pub fn sync(&mut self) -> Result<(), Error> {
        for session in self.archive.sessions().collect::<Vec<_>>() {
            if let Some(log) = self.archive.session_mut(session) {
                log.sync()?;
            }
        }
        Ok(())
    }

    /// Writes everything to disk and closes the archive.
    ///
    /// # Errors
    /// What the disk said.
    pub fn close(self) -> Result<(), Error> {
        self.archive.close()
    }

    fn with(
        &mut self,
        session: Session,
        action: impl FnOnce(&mut SessionLog) -> Result<(), Error>,
    ) -> Result<(), Refused> {
        let Some(log) = self.archive.session_mut(session) else {
            return Err(Refused::Failed);
        };
        action(log).map_err(|error| {
            report("archive", self.stream, &mut self.failed, &error);
            Refused::Failed
        })
    }
}

impl Store for Recorder {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        look_up(&self.archive, session, seq)
    }

    fn end_of(&self, session: Session) -> Option<End> {
        end_of(&self.archive, session)
    }

    fn previous_of(&self, session: Session) -> Session {
        previous_of(&self.archive, session)
    }
}

impl ArchiveStore for Recorder {
    fn append(&mut self, session: Session, record: &Record<'_>, received: Nanos) -> Result<(), Refused> {
        let Some(log) = self.archive.session_mut(session) else {
            return Err(Refused::Failed);
        };
        let block = &record.block;
        log.append(block.first(), block.count(), record.time, received, 0, block.bytes())
            .map_err(|e| refused("archive", self.stream, &mut self.failed, e))
    }

    fn open_session(&mut self, session: Session, previous: Session, origin: u32) -> Result<(), Refused> {
        let meta = SessionMeta {
            previous,
            origin,
            user: 0,
        };
        match self.archive.create_session(session, meta) {
            Ok(_) => Ok(()),
            Err(error) => {
                report("archive", self.stream, &mut self.failed, &error);
                Err(Refused::Failed)
            }
        }
    }

    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        self.with(session, |log| log.close(end.last, end.next))
    }

    fn mark_lost(&mut self, session: Session, range: SeqRange) -> Result<(), Refused> {
        self.with(session, |log| log.mark_lost(range))
    }

    fn stored(&mut self, session: Session, synced: bool, each: &mut dyn FnMut(SeqRange)) {
        if let Some(log) = self.archive.session_mut(session) {
            let ranges = if synced { log.synced() } else { log.stored() };
            ranges.as_slice().iter().copied().for_each(each);
        }
    }

    fn lost(&self, session: Session, each: &mut dyn FnMut(SeqRange)) {
        if let Some(log) = self.archive.session(session) {
            log.lost().as_slice().iter().copied().for_each(each);
        }
    }

    fn sessions(&self, each: &mut dyn FnMut(Session)) {
        self.archive.sessions().for_each(each);
    }
}
