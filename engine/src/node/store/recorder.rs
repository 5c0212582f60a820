//! What an archive records.

use std::collections::VecDeque;
use std::path::Path;

use seqcast_archive::{AppendError, Archive, Error, Keep as Limits, Options, Reserve, SessionLog, SessionMeta};
use seqcast_proto::io::{ArchiveStore, End, Lookup, Record, Refused, Store};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::server::Inherited;
use seqcast_proto::time::Nanos;

use super::{Log, refused, report};
use crate::log;

/// Records a stream for an archive.
///
/// What its limits made it give up counts as stored ever after: it was, or would be given up at once.
pub struct Recorder {
    log: Log,
    stream: Stream,
    /// How much is kept.
    limits: Limits,
    failed: bool,
    /// Ends of the newest session's log that are not on disk yet, and how far it was stored then.
    marks: VecDeque<(u64, Seq)>,
    /// That session, and how far it was stored at the last such end that is.
    synced: (Session, Seq),
}

/// Marks that wait for the disk at most; what comes then is told with the next.
const MARKS: usize = 256;

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
            tracing::info!(target: log::ARCHIVE, id = stream.0, "archive of stream {stream}: {note}");
        }
        Ok(Recorder::new(archive, stream))
    }

    /// The same on an archive that is open already.
    #[must_use]
    pub fn new(archive: Archive, stream: Stream) -> Recorder {
        Recorder {
            log: Log::new(archive),
            stream,
            limits: Limits::default(),
            failed: false,
            marks: VecDeque::with_capacity(MARKS),
            synced: (Session::NONE, Seq(0)),
        }
    }

    /// The same, keeping no more than this; see [`Recorder::tidy`].
    #[must_use]
    pub fn keeping(mut self, limits: Limits) -> Recorder {
        self.keep(limits);
        self
    }

    /// Keeps no more than this from now on.
    pub fn keep(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Gives up what the limits exclude, as of the time `now`. To be called every second or so.
    pub fn tidy(&mut self, now: Nanos) {
        if self.limits.is_all() {
            return;
        }
        let archive = &self.log.archive;
        let before: Vec<Inherited> = archive.sessions().filter_map(|s| self.log.known(s)).collect();
        let removed = self.log.archive.retain(&self.limits, now);
        if let Err(error) = &removed {
            report("archive", self.stream, &mut self.failed, error);
        }
        for session in before {
            if self.log.archive.session(session.session).is_none() {
                self.log.remember(session);
            }
        }
    }

    /// Of the newest session: the numbers up to which every message is stored, and is on disk.
    /// What is lost or was given up counts as both.
    pub fn watermarks(&mut self) -> (Seq, Seq) {
        let Some(session) = self.log.archive.sessions().next_back() else {
            return (Seq(0), Seq(0));
        };
        let log = self.log.archive.session_mut(session);
        log.map_or((Seq(0), Seq(0)), |log| (log.stored_up_to(), log.synced_up_to()))
    }

    /// As [`Recorder::watermarks`], without looking at what was synced: the second number is what the
    /// first was when it was asked for before the last sync. To be asked for now and then.
    pub fn watermarks_lately(&mut self) -> (Seq, Seq) {
        let newest = self.log.archive.sessions().next_back();
        let Some(log) = newest.and_then(|s| self.log.archive.session(s)) else {
            return (Seq(0), Seq(0));
        };
        let (end, on_disk) = log.extent();
        let stored = log.stored_up_to();
        if self.synced.0 != log.session() {
            self.marks.clear();
            self.synced = (log.session(), Seq(0));
        }
        if self.marks.len() < MARKS && self.marks.back() != Some(&(end, stored)) {
            self.marks.push_back((end, stored));
        }
        while let Some((_, stored)) = self.marks.pop_front_if(|(end, _)| *end <= on_disk) {
            self.synced.1 = stored;
        }
        (stored, self.synced.1)
    }

    /// How often a stored record was to be read and could not be: damaged, or on a bad place of the disk.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        let archive = &self.log.archive;
        let logs = archive.sessions().filter_map(|s| archive.session(s));
        logs.map(SessionLog::damaged).sum()
    }

    /// How much of its reserve is ready.
    #[must_use]
    pub fn reserve(&self) -> Reserve {
        self.log.archive.reserve()
    }

    /// The archive's identity.
    #[must_use]
    pub fn identity(&self) -> u32 {
        self.log.archive.identity()
    }

    /// How many sessions are held.
    #[must_use]
    pub fn session_count(&self) -> u64 {
        self.log.archive.sessions().count() as u64
    }

    /// Writes everything to disk and goes on.
    ///
    /// # Errors
    /// What the disk said.
    pub fn sync(&mut self) -> Result<(), Error> {
        for session in self.log.archive.sessions().collect::<Vec<_>>() {
            if let Some(log) = self.log.archive.session_mut(session) {
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
        self.log.archive.close()
    }

    fn with(
        &mut self,
        session: Session,
        action: impl FnOnce(&mut SessionLog) -> Result<(), Error>,
    ) -> Result<(), Refused> {
        if self.log.removed(session).is_some() {
            return Ok(());
        }
        let Some(log) = self.log.archive.session_mut(session) else {
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

impl ArchiveStore for Recorder {
    fn append(&mut self, session: Session, record: &Record<'_>, received: Nanos) -> Result<(), Refused> {
        if self.log.removed(session).is_some() {
            return Ok(());
        }
        let Some(log) = self.log.archive.session_mut(session) else {
            return Err(Refused::Failed);
        };
        let block = &record.block;
        match log.append(block.first(), block.count(), record.time, received, 0, block.bytes()) {
            Err(AppendError::Released) => Ok(()),
            done => done.map_err(|e| refused("archive", self.stream, &mut self.failed, e)),
        }
    }

    fn open_session(&mut self, session: Session, previous: Session, origin: u32) -> Result<(), Refused> {
        let meta = SessionMeta {
            previous,
            origin,
            user: 0,
        };
        match self.log.archive.create_session(session, meta) {
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
        if let Some(removed) = self.log.removed(session) {
            SeqRange::new(Seq::FIRST, removed.end.last).into_iter().for_each(each);
        } else if let Some(log) = self.log.archive.session_mut(session) {
            SeqRange::new(Seq::FIRST, log.floor().prev())
                .into_iter()
                .for_each(&mut *each);
            let ranges = if synced { log.synced() } else { log.stored() };
            ranges.as_slice().iter().copied().for_each(each);
        }
    }

    fn lost(&self, session: Session, each: &mut dyn FnMut(SeqRange)) {
        if let Some(log) = self.log.archive.session(session) {
            log.lost().as_slice().iter().copied().for_each(each);
        }
    }

    fn sessions(&self, each: &mut dyn FnMut(Session)) {
        self.log.archive.sessions().for_each(each);
    }
}
