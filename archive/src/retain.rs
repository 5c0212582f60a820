//! Giving up what is old while the archive runs.

use std::time::Duration;

use seqcast_proto::seq::Session;

use crate::index::CHUNK_BYTES;
use crate::{Archive, Error};

/// How much an archive keeps; by default everything. Whatever one of the limits excludes goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// The most bytes of segments and index over all sessions.
    pub bytes: Option<u64>,
    /// Segments of which every record was received longer ago go.
    pub age: Option<Duration>,
    /// The most sessions, at least 1.
    pub sessions: Option<u32>,
}

impl Keep {
    /// Whether there is no limit.
    #[must_use]
    pub fn is_all(&self) -> bool {
        *self == Keep::default()
    }
}

/// The most segments that one call releases: each writes down the session's state.
const AT_ONCE: usize = 64;

impl Archive {
    /// Gives up what `keep` does not cover, the oldest first, by whole segments. The segment that
    /// a session is being written to stays, so a little more than the limits is kept. An ended
    /// session loses its last segment too; its end stays known until the limit on sessions removes
    /// it. `now_ns` is the time now in terms of the records' receive times.
    ///
    /// Files are removed by the helper thread; to be called every second or so. Returns the
    /// sessions that were removed. Looking a released number up finds nothing; it lies below
    /// [`crate::SessionLog::floor`].
    ///
    /// # Errors
    /// When an emptied session cannot be removed; it is tried again next time.
    pub fn retain(&mut self, keep: &Keep, now_ns: u64) -> Result<Vec<Session>, Error> {
        let mut left = AT_ONCE;
        if let Some(bytes) = keep.bytes {
            while left > 0 && self.sessions.values().map(|log| log.kept_bytes()).sum::<u64>() > bytes {
                if !self.sessions.values_mut().any(|log| log.release_oldest(|_| true)) {
                    break;
                }
                left -= 1;
            }
        }
        if let Some(age) = keep.age {
            let since = now_ns.saturating_sub(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
            for log in self.sessions.values_mut() {
                while left > 0 && log.release_oldest(|received| received < since) {
                    left -= 1;
                }
            }
        }
        let mut removed = Vec::new();
        let most = keep.sessions.map_or(usize::MAX, |n| n.max(1) as usize);
        let excess = self.sessions.len().saturating_sub(most);
        let sessions: Vec<Session> = self.sessions().take(excess).collect();
        for session in sessions {
            let Some(log) = self.session_mut(session) else { continue };
            // Of an ended session the helper removes the files first.
            while left > 0 && log.release_oldest(|_| true) {
                left -= 1;
            }
            if log.bytes() <= CHUNK_BYTES as u64 || log.end().is_none() {
                self.remove_session(session)?;
                removed.push(session);
            }
        }
        Ok(removed)
    }
}
