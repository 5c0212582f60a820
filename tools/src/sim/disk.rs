//! The logs of servers and archives, and a journal of what was done to them for the oracles.

use std::collections::BTreeMap;
use std::sync::Arc;

use seqcast_archive::storage::{Crash, Faulty};
use seqcast_archive::{Archive, Options, SyncPolicy};
use seqcast_engine::node::store::{Recorder, Retention};
use seqcast_proto::io::{ArchiveStore, End, Lookup, Record, Refused, ServerStore, Store};
use seqcast_proto::rng::Rng;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::server::Inherited;
use seqcast_proto::time::Nanos;
use seqcast_proto::wire::{Block, Reason};

use super::plan::Medium;

#[derive(Debug)]
struct Kept {
    count: u16,
    time: Nanos,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Log {
    records: BTreeMap<u32, Kept>,
    lost: Vec<SeqRange>,
    previous: Session,
    end: Option<End>,
    floor: u32,
    /// Messages taken from the source by earlier sessions.
    user: u64,
}

impl Log {
    fn next(&self) -> u32 {
        let above = self.records.iter().next_back();
        above.map_or(1, |(f, k)| f + u32::from(k.count)).max(self.floor)
    }
}

/// A log in plain memory that outlives the process that writes it, as a mapped file does.
#[derive(Debug)]
struct Table {
    sessions: BTreeMap<u32, Log>,
    /// Records that a loss of power may take, in the order of their writing.
    unsynced: Vec<(u32, u32)>,
    full: bool,
    /// Without archives, only so many messages are kept.
    retain: Option<usize>,
}

impl Table {
    fn new(retain: Option<usize>) -> Table {
        Table {
            sessions: BTreeMap::new(),
            unsynced: Vec::new(),
            full: false,
            retain,
        }
    }

    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        if self.full {
            return Err(Refused::Full);
        }
        let (Some(range), Some(log)) = (record.block.range(), self.sessions.get_mut(&session.0)) else {
            return Err(Refused::Failed);
        };
        let below = log.records.range(..=range.last.0).next_back();
        if below.is_some_and(|(first, kept)| first + u32::from(kept.count) > range.first.0) {
            return Err(Refused::Failed);
        }
        let kept = Kept {
            count: record.block.count(),
            time: record.time,
            bytes: record.block.bytes().to_vec(),
        };
        log.records.insert(range.first.0, kept);
        self.unsynced.push((session.0, range.first.0));
        if let Some(retain) = self.retain {
            self.drop_beyond(retain);
        }
        Ok(())
    }

    fn drop_beyond(&mut self, retain: usize) {
        let mut held: usize = self.sessions.values().map(|l| l.records.len()).sum();
        for log in self.sessions.values_mut() {
            while held > retain
                && let Some((first, kept)) = log.records.pop_first()
            {
                log.floor = first + u32::from(kept.count);
                held -= 1;
            }
        }
    }

    fn open(&mut self, session: Session, previous: Session) -> Result<(), Refused> {
        if self.sessions.contains_key(&session.0) {
            return Err(Refused::Failed);
        }
        let log = Log {
            records: BTreeMap::new(),
            lost: Vec::new(),
            previous,
            end: None,
            floor: 1,
            user: self.taken(),
        };
        self.sessions.insert(session.0, log);
        Ok(())
    }

    fn taken(&self) -> u64 {
        let last = self.sessions.values().next_back();
        last.map_or(0, |l| l.user + u64::from(l.next() - 1))
    }

    fn close(&mut self, session: Session, end: End) -> Result<(), Refused> {
        if let Some(log) = self.sessions.get_mut(&session.0) {
            log.end = Some(end);
        }
        Ok(())
    }

    /// What was written last is lost, from some record on, as recovery cuts the production log.
    fn lose_power(&mut self, rng: &mut Rng) {
        let kept = rng.below(self.unsynced.len() as u64 + 1) as usize;
        let unsynced = std::mem::take(&mut self.unsynced);
        for (session, first) in unsynced.into_iter().skip(kept) {
            if let Some(log) = self.sessions.get_mut(&session) {
                log.records.remove(&first);
                // It was written behind them.
                log.end = None;
            }
        }
    }

    fn inherited(&self) -> Vec<Inherited> {
        self.sessions
            .iter()
            .map(|(session, log)| Inherited {
                session: Session(*session),
                previous: log.previous,
                end: log.end.unwrap_or(End {
                    last: Seq(log.next() - 1),
                    next: Session::NONE,
                }),
            })
            .collect()
    }

    fn oldest(&self, session: Session) -> Seq {
        let Some(log) = self.sessions.get(&session.0) else {
            return Seq::FIRST;
        };
        Seq(log.records.keys().next().map_or_else(|| log.next(), |first| *first))
    }

    fn stored(&self, session: Session, each: &mut dyn FnMut(SeqRange)) {
        let Some(log) = self.sessions.get(&session.0) else {
            return;
        };
        let mut run: Option<SeqRange> = None;
        for (first, kept) in &log.records {
            let Some(range) = SeqRange::of(Seq(*first), kept.count.into()) else {
                continue;
            };
            match &mut run {
                Some(r) if r.end() == range.first => r.last = range.last,
                _ => {
                    if let Some(r) = run.replace(range) {
                        each(r);
                    }
                }
            }
        }
        if let Some(r) = run {
            each(r);
        }
    }
}

impl Store for Table {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        let Some(log) = self.sessions.get(&session.0) else {
            return Lookup::Absent(Reason::UnknownSession, Seq(u32::MAX));
        };
        if let Some((first, kept)) = log.records.range(..=seq.0).next_back()
            && seq.0 < first + u32::from(kept.count)
        {
            let block = Block::trusted(Seq(*first), kept.count, &kept.bytes);
            return Lookup::Found(Record { block, time: kept.time });
        }
        if let Some(lost) = log.lost.iter().find(|r| r.contains(seq)) {
            return Lookup::Absent(Reason::Lost, lost.last);
        }
        let oldest = self.oldest(session);
        if seq < oldest {
            return Lookup::Absent(Reason::TooOld, oldest.prev());
        }
        let above = log.records.range(seq.0..).next();
        let upto = above.map_or(u32::MAX, |(first, _)| first - 1);
        let upto = log
            .lost
            .iter()
            .filter(|r| r.first > seq)
            .fold(upto, |upto, r| upto.min(r.first.0 - 1));
        Lookup::Absent(Reason::NotYet, Seq(upto))
    }

    fn end_of(&self, session: Session) -> Option<End> {
        self.sessions.get(&session.0)?.end
    }

    fn previous_of(&self, session: Session) -> Session {
        self.sessions.get(&session.0).map_or(Session::NONE, |l| l.previous)
    }

    fn session_after(&self, session: Session) -> Session {
        let later = self.sessions.range(session.0 + 1..).next();
        later.map_or(Session::NONE, |(s, _)| Session(*s))
    }
}

/// What was done to a log since the oracles last looked.
#[derive(Debug)]
pub(super) enum Deed {
    /// A server kept a block: from now on these messages exist.
    Kept(Session, Seq, u16, Vec<u8>),
    /// A server let go of everything below.
    Released(Session, Seq),
    /// A server let go of a session.
    Dropped(Session),
    /// An archive noted that nobody has these.
    Lost(Session, SeqRange),
}

/// How a process or its machine ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stop {
    Kill,
    PowerLoss,
}

#[derive(Debug)]
enum Inner<L> {
    Table(Table),
    /// `None` while it cannot be opened, as on a full disk.
    Log(Arc<Faulty>, Option<L>),
}

/// A log and its journal.
#[derive(Debug)]
pub(super) struct Disk<L> {
    inner: Inner<L>,
    stream: Stream,
    drop_oldest: bool,
    pub(super) deeds: Vec<Deed>,
}

/// Opens the production log for one of the two uses.
pub(super) trait Adaptor: Sized {
    fn over(archive: Archive, stream: Stream, drop_oldest: bool) -> Self;
}

/// Bytes that the log of a server without archives keeps: index and segments of a few sessions.
const RETAIN_BYTES: u64 = 16 << 20;

impl Adaptor for Retention {
    fn over(archive: Archive, stream: Stream, drop_oldest: bool) -> Retention {
        Retention::new(
            archive,
            stream,
            0,
            if drop_oldest { RETAIN_BYTES } else { u64::MAX },
            drop_oldest,
        )
        .quiet()
    }
}

impl Adaptor for Recorder {
    fn over(archive: Archive, stream: Stream, _: bool) -> Recorder {
        Recorder::new(archive, stream).quiet()
    }
}

/// Calls the same method on whichever log is there.
macro_rules! on {
    ($self:expr, $log:ident => $call:expr, $absent:expr) => {
        match $self {
            Inner::Table($log) => $call,
            Inner::Log(_, Some($log)) => $call,
            Inner::Log(_, None) => $absent,
        }
    };
}

impl<L: Adaptor> Disk<L> {
    pub(super) fn new(medium: Medium, stream: Stream, seed: u64, retain: Option<usize>) -> Disk<L> {
        let inner = match medium {
            Medium::Table => Inner::Table(Table::new(retain)),
            Medium::Log => Inner::Log(Arc::new(Faulty::new(seed)), None),
        };
        let mut disk = Disk {
            inner,
            stream,
            drop_oldest: retain.is_some(),
            deeds: Vec::new(),
        };
        disk.open();
        disk
    }

    /// Opens the production log, with its recovery.
    fn open(&mut self) {
        let Inner::Log(storage, log) = &mut self.inner else {
            return;
        };
        let options = Options {
            segment_bytes: 1 << 16,
            sync: SyncPolicy::None,
            max_bytes: None,
            reserve: 0,
            // Everything in one thread, so that a seed determines it.
            helper: false,
        };
        let storage: Arc<Faulty> = Arc::clone(storage);
        let archive = Archive::open_on(storage, self.stream, options);
        *log = archive.ok().map(|a| L::over(a, self.stream, self.drop_oldest));
    }

    /// Whether a process can start on it; one that could not open its log tries again.
    pub(super) fn is_open(&mut self) -> bool {
        if let Inner::Log(_, None) = self.inner {
            self.open();
        }
        !matches!(self.inner, Inner::Log(_, None))
    }

    /// Ends the run of the process and leaves what the next one finds.
    pub(super) fn stop(&mut self, how: Stop, rng: &mut Rng) {
        match &mut self.inner {
            Inner::Table(table) => {
                if how == Stop::PowerLoss {
                    table.lose_power(rng);
                }
            }
            Inner::Log(storage, log) => {
                let crash = match how {
                    Stop::Kill => Crash::Kill,
                    Stop::PowerLoss => Crash::PowerLoss,
                };
                if let Ok(next) = storage.crash(crash) {
                    *storage = Arc::new(next);
                }
                *log = None;
                self.open();
            }
        }
    }

    pub(super) fn set_full(&mut self, full: bool) {
        match &mut self.inner {
            Inner::Table(table) => table.full = full,
            Inner::Log(storage, _) => storage.set_capacity(if full { 0 } else { u64::MAX }),
        }
    }
}

impl<L: Store> Disk<L> {
    pub(super) fn holds(&self, session: Session, seq: Seq) -> bool {
        matches!(self.look_up(session, seq), Lookup::Found(_))
    }
}

impl Disk<Retention> {
    pub(super) fn inherited(&self) -> Vec<Inherited> {
        on!(&self.inner, log => log.inherited(), Vec::new())
    }

    pub(super) fn taken(&self) -> u64 {
        on!(&self.inner, log => log.taken(), 0)
    }
}

impl Disk<Recorder> {
    /// How many messages it holds.
    pub(super) fn held(&mut self) -> u64 {
        let (mut sessions, mut held) = (Vec::new(), 0);
        ArchiveStore::sessions(self, &mut |session| sessions.push(session));
        for session in sessions {
            self.stored(session, false, &mut |range| held += u64::from(range.len()));
        }
        held
    }

    /// Whether a loss of power would spare a message that is held. Of the production log only a
    /// loss of power tells.
    pub(super) fn is_safe(&self, session: Session, seq: Seq) -> bool {
        let Inner::Table(table) = &self.inner else { return true };
        let mut unsynced = table.unsynced.iter().rev().filter(|u| u.0 == session.0);
        let count = |first: &u32| Some(u32::from(table.sessions.get(&session.0)?.records.get(first)?.count));
        !unsynced.any(|(_, first)| *first <= seq.0 && count(first).is_some_and(|n| seq.0 < first + n))
    }

    /// Writes everything to stable storage, as the helper thread does in time. Returns whether
    /// the disk took it.
    pub(super) fn sync(&mut self) -> bool {
        match &mut self.inner {
            Inner::Table(table) => table.unsynced.clear(),
            Inner::Log(_, Some(log)) => return log.sync().is_ok(),
            Inner::Log(_, None) => return false,
        }
        true
    }
}

impl<L: Store> Store for Disk<L> {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        let absent = Lookup::Absent(Reason::NotYet, Seq(u32::MAX));
        on!(&self.inner, log => log.look_up(session, seq), absent)
    }

    fn end_of(&self, session: Session) -> Option<End> {
        on!(&self.inner, log => log.end_of(session), None)
    }

    fn previous_of(&self, session: Session) -> Session {
        on!(&self.inner, log => log.previous_of(session), Session::NONE)
    }

    fn session_after(&self, session: Session) -> Session {
        on!(&self.inner, log => log.session_after(session), Session::NONE)
    }
}

impl ServerStore for Disk<Retention> {
    fn has_room(&mut self, bytes: usize) -> bool {
        match &mut self.inner {
            // Tells nothing, so that a refused append is met as well.
            Inner::Table(_) => true,
            Inner::Log(_, log) => log.as_mut().is_some_and(|l| l.has_room(bytes)),
        }
    }

    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        match &mut self.inner {
            Inner::Table(table) => table.append(session, record)?,
            Inner::Log(_, Some(log)) => ServerStore::append(log, session, record)?,
            Inner::Log(_, None) => return Err(Refused::Failed),
        }
        let block = &record.block;
        self.deeds.push(Deed::Kept(
            session,
            block.first(),
            block.count(),
            block.bytes().to_vec(),
        ));
        Ok(())
    }

    fn open_session(&mut self, session: Session, previous: Session) -> Result<(), Refused> {
        match &mut self.inner {
            Inner::Table(table) => table.open(session, previous),
            Inner::Log(_, Some(log)) => ServerStore::open_session(log, session, previous),
            Inner::Log(_, None) => Err(Refused::Failed),
        }
    }

    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        match &mut self.inner {
            Inner::Table(table) => table.close(session, end),
            Inner::Log(_, Some(log)) => ServerStore::close_session(log, session, end),
            Inner::Log(_, None) => Err(Refused::Failed),
        }
    }

    fn release_below(&mut self, session: Session, seq: Seq) {
        self.deeds.push(Deed::Released(session, seq));
        match &mut self.inner {
            Inner::Table(table) => {
                if let Some(log) = table.sessions.get_mut(&session.0) {
                    log.floor = log.floor.max(seq.0);
                    log.records.retain(|first, k| first + u32::from(k.count) > seq.0);
                }
            }
            Inner::Log(_, Some(log)) => log.release_below(session, seq),
            Inner::Log(_, None) => {}
        }
    }

    fn drop_session(&mut self, session: Session) {
        self.deeds.push(Deed::Dropped(session));
        match &mut self.inner {
            Inner::Table(table) => drop(table.sessions.remove(&session.0)),
            Inner::Log(_, Some(log)) => log.drop_session(session),
            Inner::Log(_, None) => {}
        }
    }

    fn oldest(&self, session: Session) -> Seq {
        on!(&self.inner, log => log.oldest(session), Seq::FIRST)
    }
}

impl ArchiveStore for Disk<Recorder> {
    fn append(&mut self, session: Session, record: &Record<'_>, received: Nanos) -> Result<(), Refused> {
        match &mut self.inner {
            Inner::Table(table) => table.append(session, record),
            Inner::Log(_, Some(log)) => ArchiveStore::append(log, session, record, received),
            Inner::Log(_, None) => Err(Refused::Failed),
        }
    }

    fn open_session(&mut self, session: Session, previous: Session, origin: u32) -> Result<(), Refused> {
        match &mut self.inner {
            Inner::Table(table) => table.open(session, previous),
            Inner::Log(_, Some(log)) => ArchiveStore::open_session(log, session, previous, origin),
            Inner::Log(_, None) => Err(Refused::Failed),
        }
    }

    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        match &mut self.inner {
            Inner::Table(table) => table.close(session, end),
            Inner::Log(_, Some(log)) => ArchiveStore::close_session(log, session, end),
            Inner::Log(_, None) => Err(Refused::Failed),
        }
    }

    fn mark_lost(&mut self, session: Session, range: SeqRange) -> Result<(), Refused> {
        self.deeds.push(Deed::Lost(session, range));
        match &mut self.inner {
            Inner::Table(table) => {
                let log = table.sessions.get_mut(&session.0).ok_or(Refused::Failed)?;
                log.lost.push(range);
                log.lost.sort();
                Ok(())
            }
            Inner::Log(_, Some(log)) => log.mark_lost(session, range),
            Inner::Log(_, None) => Err(Refused::Failed),
        }
    }

    fn stored(&mut self, session: Session, synced: bool, each: &mut dyn FnMut(SeqRange)) {
        match &mut self.inner {
            Inner::Table(table) if synced && !table.unsynced.is_empty() => {
                let unsynced = table.unsynced.iter().filter(|u| u.0 == session.0);
                let mut held = Vec::new();
                for (_, first) in unsynced {
                    let log = table.sessions.get_mut(&session.0);
                    held.extend(log.and_then(|l| l.records.remove_entry(first)));
                }
                table.stored(session, each);
                if let Some(log) = table.sessions.get_mut(&session.0) {
                    log.records.extend(held);
                }
            }
            Inner::Table(table) => table.stored(session, each),
            Inner::Log(_, Some(log)) => log.stored(session, synced, each),
            Inner::Log(_, None) => {}
        }
    }

    fn lost(&self, session: Session, each: &mut dyn FnMut(SeqRange)) {
        match &self.inner {
            Inner::Table(table) => {
                if let Some(log) = table.sessions.get(&session.0) {
                    log.lost.iter().copied().for_each(each);
                }
            }
            Inner::Log(_, Some(log)) => log.lost(session, each),
            Inner::Log(_, None) => {}
        }
    }

    fn sessions(&self, each: &mut dyn FnMut(Session)) {
        match &self.inner {
            Inner::Table(table) => table.sessions.keys().for_each(|s| each(Session(*s))),
            Inner::Log(_, Some(log)) => ArchiveStore::sessions(log, each),
            Inner::Log(_, None) => {}
        }
    }
}
