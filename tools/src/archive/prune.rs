//! Removing old sessions from an archive that no engine has open.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use seqcast_archive::{Archive, Options, Reader, RecoveryNote, SyncPolicy};
use seqcast_proto::seq::Session;

/// Which sessions may go: those that no rule keeps.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The newest so many stay.
    pub keep_sessions: usize,
    /// Sessions whose last message was received within this time stay, or cannot be read. One
    /// without messages counts from its number, which is the second of its start, or later.
    pub older_than: Option<Duration>,
}

/// A session that may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Old {
    /// Its number.
    pub session: Session,
    /// When its last message was received, in ns since the Unix epoch; if it has none, when it
    /// was started; not known if that message is damaged.
    pub last_ns: Option<u64>,
    /// Bytes of its files.
    pub bytes: u64,
}

impl Rules {
    /// The sessions that may go at the time `now`, in ns since the Unix epoch. Changes nothing, and
    /// works beside a writer.
    ///
    /// # Errors
    /// When the archive or one of its sessions cannot be read.
    pub fn old_sessions(&self, dir: &Path, now: u64) -> Result<Vec<Old>> {
        let archive = Reader::open(dir)?;
        let mut sessions = archive.sessions()?;
        sessions.truncate(sessions.len().saturating_sub(self.keep_sessions));
        let mut old = Vec::new();
        for session in sessions {
            let mut reader = archive.session(session)?;
            let started = u64::from(session.0) * 1_000_000_000;
            let last_ns = match reader.stored().as_slice().last() {
                Some(range) => reader.read(range.last)?.map(|record| record.recv_ns),
                None => Some(started),
            };
            let age = last_ns.map(|last| Duration::from_nanos(now.saturating_sub(last)));
            if self.older_than.is_none_or(|limit| age.is_some_and(|age| age > limit)) {
                let bytes = reader.bytes();
                old.push(Old {
                    session,
                    last_ns,
                    bytes,
                });
            }
        }
        Ok(old)
    }

    /// Removes them, and hands each to `removed` when it is gone; what opening the archive had to
    /// recover goes to `note` before.
    ///
    /// # Errors
    /// As for [`Rules::old_sessions`], and when an engine has the archive open or files cannot be
    /// removed.
    pub fn prune(
        &self,
        dir: &Path,
        now: u64,
        mut note: impl FnMut(&RecoveryNote),
        mut removed: impl FnMut(&Old) -> Result<()>,
    ) -> Result<()> {
        // Opening for writing would make an archive where there is none.
        let stream = Reader::open(dir)?.stream();
        let options = Options {
            sync: SyncPolicy::None,
            helper: false,
            ..Options::default()
        };
        let mut archive =
            Archive::open(dir, stream, options).context("only an archive that no engine uses is pruned")?;
        archive.recovery().iter().for_each(&mut note);
        for old in self.old_sessions(dir, now)? {
            archive.remove_session(old.session)?;
            removed(&old)?;
        }
        Ok(archive.close()?)
    }
}
