//! What was published, kept for those who ask: an append log of the messages as they came.
//!
//! A log's session is a session of the stream. What its messages' numbers in the feed are, its name in the
//! feed says: sessions with names of their own keep their numbers; behind a fixed name all sessions are
//! counted on, and each log holds how many messages came before it.

use std::io;

use seqcast_archive::{Archive, Keep, Options, SessionLog, SessionMeta, SyncPolicy};
use seqcast_mold::SessionName;
use seqcast_mold::answers::Library;
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::wire::Block;

use crate::config::MoldSink;
use crate::log;

/// Sessions kept at most.
const SESSIONS: u32 = 64;

/// The log.
pub(super) struct Shelf {
    archive: Archive,
    /// The name that all sessions have, if they have one.
    fixed: Option<SessionName>,
    keep: Keep,
}

/// One past the last number that the log held.
fn next_of(log: &SessionLog) -> Seq {
    let stored = log.highest().map_or(Seq::FIRST, Seq::next).max(log.floor());
    log.end().map_or(stored, |(last, _)| last.next().max(stored))
}

impl Shelf {
    /// Opens what an earlier run kept, or makes it; in memory if the client keeps nothing.
    pub(super) fn open(config: &MoldSink, stream: Stream, sync_ms: u32) -> io::Result<Shelf> {
        let retain = config.retain.0;
        let mut options = Options {
            segment_bytes: (retain / 16).clamp(1 << 20, 16 << 20).next_power_of_two().min(16 << 20),
            ..Options::default()
        };
        let archive = match &config.kept_in {
            Some(dir) => {
                options.sync = SyncPolicy::EveryMs(sync_ms.clamp(1, 60_000));
                Archive::open(dir, stream, options)
            }
            None => {
                options.helper = false;
                Archive::in_memory(stream, options)
            }
        };
        let archive = archive.map_err(io::Error::other)?;
        for note in archive.recovery() {
            tracing::info!(target: log::FEED, id = stream.0, "feed of stream {stream}: {note}");
        }
        Ok(Shelf {
            archive,
            fixed: config.session,
            keep: Keep {
                bytes: Some(retain),
                age: None,
                sessions: Some(SESSIONS),
            },
        })
    }

    /// The last message kept.
    pub(super) fn last(&self) -> Option<(Session, Seq)> {
        let mut held = self.archive.sessions().rev().filter_map(|s| self.archive.session(s));
        held.find_map(|log| (next_of(log) > Seq::FIRST).then(|| (log.session(), next_of(log).prev())))
    }

    /// Whether a session is known to have ended.
    pub(super) fn has_ended(&self, session: Session) -> bool {
        self.archive.session(session).is_some_and(|log| log.end().is_some())
    }

    /// Begins a session, unless it has begun: its name in the feed, and how many messages came before it
    /// under that name.
    pub(super) fn begin(&mut self, session: Session) -> io::Result<(SessionName, u64)> {
        if self.archive.session(session).is_none() {
            let newest = self
                .archive
                .sessions()
                .next_back()
                .and_then(|s| self.archive.session(s));
            let before = match (self.fixed, newest) {
                (Some(_), Some(log)) => log.meta().user + u64::from(next_of(log).prev().0),
                _ => 0,
            };
            let meta = SessionMeta {
                previous: newest.map_or(Session::NONE, SessionLog::session),
                origin: 0,
                user: before,
            };
            self.archive.create_session(session, meta).map_err(io::Error::other)?;
        }
        let before = self.archive.session(session).map_or(0, |log| log.meta().user);
        Ok((self.fixed.unwrap_or(SessionName::of(session.0)), before))
    }

    /// Keeps messages of a session that has begun.
    pub(super) fn append(&mut self, session: Session, block: &Block<'_>, time: u64, now: u64) -> io::Result<()> {
        let Some(log) = self.archive.session_mut(session) else {
            return Ok(());
        };
        log.append(block.first(), block.count(), time, now, 0, block.bytes())
            .map_err(|e| io::Error::other(format!("message {} cannot be kept: {e}", block.first())))
    }

    /// Keeps the end of a session that has begun.
    pub(super) fn end_session(&mut self, session: Session, next: Seq) -> io::Result<()> {
        let Some(log) = self.archive.session_mut(session) else {
            return Ok(());
        };
        log.close(next.prev(), Session::NONE).map_err(io::Error::other)
    }

    /// Gives up the oldest beyond what is to be kept. To be called every second or so.
    pub(super) fn tidy(&mut self, now: u64) -> io::Result<()> {
        self.archive.retain(&self.keep, now).map(drop).map_err(io::Error::other)
    }

    /// Writes everything to disk.
    pub(super) fn close(self) -> io::Result<()> {
        self.archive.close().map_err(io::Error::other)
    }

    /// The log that holds a number of the feed, and which of the session's that is.
    fn find(&self, name: &SessionName, number: u64) -> Option<(&SessionLog, Seq)> {
        let seq = |before: u64| u32::try_from(number.checked_sub(before)?).ok().map(Seq);
        match self.fixed {
            Some(fixed) => {
                let mut logs = self.archive.sessions().rev().filter_map(|s| self.archive.session(s));
                let log = logs.find(|log| log.meta().user < number && fixed == *name)?;
                Some((log, seq(log.meta().user)?))
            }
            None => Some((self.archive.session(Session(name.number()?))?, seq(0)?)),
        }
    }
}

impl Library for Shelf {
    fn read(&self, session: &SessionName, number: u64, each: &mut dyn FnMut(&[u8]) -> bool) {
        let mut number = number;
        while let Some((log, seq)) = self.find(session, number)
            && let Some(record) = log.read(seq)
        {
            let block = Block::trusted(record.first, record.count, record.block);
            for (_, message) in block.messages().skip_while(|(s, _)| *s < seq) {
                if !each(message.payload) {
                    return;
                }
                number += 1;
            }
        }
    }

    fn end(&self, session: &SessionName) -> Option<u64> {
        // Behind a fixed name another session may follow at any time.
        if self.fixed.is_some() {
            return None;
        }
        let log = self.archive.session(Session(session.number()?))?;
        log.end().map(|_| u64::from(next_of(log).0))
    }
}
