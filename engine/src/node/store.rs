//! The append log behind a server and behind an archive.

mod recorder;
mod retention;

use std::collections::VecDeque;

use seqcast_archive::{AppendError, Archive, Error, SessionLog};
use seqcast_proto::io::{End, Lookup, Record, Refused, ServerStore, Store};
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::server::Inherited;
use seqcast_proto::wire::{Block, Reason};

pub use recorder::Recorder;
pub use retention::Retention;

use super::window::Window;
use crate::log;

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

/// Removed sessions of which the end is remembered.
const REMOVED: usize = 64;

/// An archive, and what is remembered of the sessions removed from it: others may still ask.
struct Log {
    archive: Archive,
    removed: VecDeque<Inherited>,
}

impl Log {
    fn new(archive: Archive) -> Log {
        Log {
            archive,
            removed: VecDeque::with_capacity(REMOVED),
        }
    }

    fn removed(&self, session: Session) -> Option<&Inherited> {
        self.removed.iter().find(|r| r.session == session)
    }

    fn remember(&mut self, removed: Inherited) {
        if self.removed.len() == REMOVED {
            self.removed.pop_front();
        }
        self.removed.push_back(removed);
    }

    /// What is known of a session. One without an end is taken to have ended with its last stored
    /// number.
    fn known(&self, session: Session) -> Option<Inherited> {
        let log = self.archive.session(session)?;
        let (last, next) = log.end().unwrap_or((next_of(log).prev(), Session::NONE));
        Some(Inherited {
            session,
            previous: log.meta().previous,
            end: End { last, next },
        })
    }
}

impl Store for Log {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        let Some(log) = self.archive.session(session) else {
            return match self.removed(session) {
                Some(removed) => Lookup::Absent(Reason::TooOld, removed.end.last),
                None => Lookup::Absent(Reason::UnknownSession, Seq(u32::MAX)),
            };
        };
        if let Some(record) = log.read(seq) {
            let block = Block::trusted(record.first, record.count, record.block);
            return Lookup::Found(Record {
                block,
                time: record.send_ns,
            });
        }
        if log.contains(seq) {
            // Damaged: it will not be read here ever again, but others may have it.
            return Lookup::Absent(Reason::TooOld, seq);
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

    fn end_of(&self, session: Session) -> Option<End> {
        match self.archive.session(session) {
            Some(log) => log.end().map(|(last, next)| End { last, next }),
            None => self.removed(session).map(|removed| removed.end),
        }
    }

    fn previous_of(&self, session: Session) -> Session {
        match self.archive.session(session) {
            Some(log) => log.meta().previous,
            None => self.removed(session).map_or(Session::NONE, |removed| removed.previous),
        }
    }

    fn session_after(&self, session: Session) -> Session {
        let removed = self.removed.iter().map(|r| r.session);
        let later = removed.chain(self.archive.sessions()).filter(|s| *s > session);
        later.min().unwrap_or(Session::NONE)
    }
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
        tracing::error!(target: log::ARCHIVE, id = stream.0, "{what} of stream {stream}: {error}");
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

    /// Messages given up for new ones.
    pub(super) fn dropped(&self) -> u64 {
        match self {
            Keep::Log(log) => log.dropped(),
            Keep::Window(window) => window.dropped(),
        }
    }

    /// Whether old messages make room for new ones.
    pub(super) fn set_drop_oldest(&mut self, drop_oldest: bool) {
        match self {
            Keep::Log(log) => log.set_drop_oldest(drop_oldest),
            Keep::Window(window) => window.set_drop_oldest(drop_oldest),
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

    fn session_after(&self, session: Session) -> Session {
        either!(self, s => s.session_after(session))
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
