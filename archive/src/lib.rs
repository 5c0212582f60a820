//! An append log of packets, found by sequence number.
//!
//! An [`Archive`] is one directory for one stream; below it lies a [`SessionLog`] for each session.
//! Records are blocks of consecutive messages; they may be appended in any order of their numbers,
//! are found by any number they hold, and survive the end of the process however it ends. The same
//! code runs in plain memory ([`Archive::in_memory`]). [`Reader`] looks into a directory beside a
//! live writer. The format and its promises are in `docs/archive.md`.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use seqcast_proto::seq::{Session, Stream};

mod background;
mod checkpoint;
mod codec;
mod crc;
mod error;
mod index;
pub mod mapping;
pub mod prefetch;
mod reader;
mod record;
mod recovery;
mod retain;
mod segment;
mod session;
pub mod storage;

pub use checkpoint::SessionMeta;
pub use crc::{crc32c, crc32c_of};
pub use error::{AppendError, Error};
pub use reader::{Damage, OwnedRecord, Progress, Reader, SessionReader, Verified};
pub use record::Record;
pub use recovery::{PUT_ASIDE, RecoveryNote, What};
pub use retain::Keep;
pub use session::SessionLog;

use background::{Helper, Pool};
use storage::{Files, Memory, Storage};

/// The version of everything in an archive directory.
pub const FORMAT_VERSION: u32 = 1;

/// The most pieces that a session's stored numbers may be in: one more than the gaps it may have.
pub const MAX_RANGES: usize = 1 << 16;

/// When appended records are written to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncPolicy {
    /// When the kernel sees fit. Records survive the process, not a loss of power.
    None,
    /// At least every so many milliseconds (1 to 60 000). Needs the helper thread.
    EveryMs(u32),
    /// After so many bytes (at least 1).
    EveryBytes(u64),
    /// After so many milliseconds or bytes, whichever comes first. Needs the helper thread.
    Every {
        /// Milliseconds, 1 to 60 000.
        ms: u32,
        /// Bytes, at least 1.
        bytes: u64,
    },
}

impl SyncPolicy {
    fn interval(self) -> Option<Duration> {
        match self {
            SyncPolicy::EveryMs(ms) | SyncPolicy::Every { ms, .. } => Some(Duration::from_millis(u64::from(ms))),
            SyncPolicy::None | SyncPolicy::EveryBytes(_) => None,
        }
    }

    fn bytes(self) -> Option<u64> {
        match self {
            SyncPolicy::EveryBytes(bytes) | SyncPolicy::Every { bytes, .. } => Some(bytes),
            SyncPolicy::None | SyncPolicy::EveryMs(_) => None,
        }
    }
}

/// How an archive is kept.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of a new segment file: a power of two from 64 KiB to 1 GiB. A record must fit one.
    pub segment_bytes: u64,
    /// When records are written to disk.
    pub sync: SyncPolicy,
    /// The most bytes that one session's files may take, index and a segment made ahead included;
    /// at least two segments and 2 MiB. `None`: as much as the disk has.
    pub max_bytes: Option<u64>,
    /// Bytes of segments, rounded up to whole ones, whose place on the disk is taken before they are needed, for all sessions: by
    /// the helper thread once the archive is open, again when some were used, and from what is released. They are
    /// no part of `max_bytes`. The next opening makes them anew. 0: none but the one that each session has made ahead.
    pub reserve: u64,
    /// Whether a helper thread makes files, touches pages and syncs, so that appending does
    /// neither. It inherits the affinity of the thread that opens the archive: open it before
    /// pinning that thread. Without it, appending does that work itself, deterministically.
    pub helper: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            segment_bytes: 16 << 20,
            sync: SyncPolicy::None,
            max_bytes: None,
            reserve: 0,
            helper: true,
        }
    }
}

impl Options {
    fn check(&self) -> Result<(), Error> {
        let wrong = |text: String| Err(Error::Invalid(text));
        let bytes = self.segment_bytes;
        if !bytes.is_power_of_two() || !(1 << 16..=1 << 30).contains(&bytes) {
            return wrong(format!(
                "segment_bytes is {bytes}: use a power of two from 65536 to 1073741824"
            ));
        }
        let least = 2 * bytes + 2 * index::CHUNK_BYTES as u64;
        if let Some(max) = self.max_bytes.filter(|&max| max < least) {
            return wrong(format!(
                "max_bytes is {max}: two segments and two pieces of index take {least}"
            ));
        }
        if self
            .sync
            .interval()
            .is_some_and(|i| i.is_zero() || i > Duration::from_secs(60))
        {
            return wrong("sync interval: use 1 to 60000 ms".into());
        }
        if self.sync.interval().is_some() && !self.helper {
            return wrong("syncing by time needs the helper thread: set helper, or sync by bytes".into());
        }
        if self.reserve > 0 && !self.helper {
            return wrong("a reserve is made by the helper thread: set helper, or no reserve".into());
        }
        if self.sync.bytes() == Some(0) {
            return wrong("sync bytes: use at least 1".into());
        }
        Ok(())
    }
}

/// Segments kept ready.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes that are ready.
    pub ready: u64,
    /// Bytes that are to be.
    pub size: u64,
    /// The disk has no room for the rest; it is asked again every second.
    pub refused: bool,
}

/// What all sessions of an archive share.
#[derive(Debug)]
struct Shared {
    storage: Arc<dyn Storage>,
    pool: Arc<Pool>,
    stream: Stream,
    options: Options,
    helper: Option<Helper>,
}

/// The archive of one stream.
///
/// Dropping it writes everything to disk and closes it in order, as [`Archive::close`] does, but
/// cannot report an error.
#[derive(Debug)]
pub struct Archive {
    sessions: BTreeMap<Session, SessionLog>,
    shared: Shared,
    identity: u32,
    notes: Vec<RecoveryNote>,
}

/// The directory of a session inside the archive's.
fn session_dir(session: Session) -> String {
    format!("{:010}", session.0)
}

impl Archive {
    /// Opens the archive in `dir`, or makes it. Sessions that were not closed in order are
    /// recovered; [`Archive::recovery`] says what was found.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it open; [`Error::Foreign`], [`Error::Version`],
    /// [`Error::Stream`] or [`Error::Damaged`] when the directory holds something else than this
    /// stream's archive; [`Error::Invalid`] for options out of range.
    pub fn open(dir: &Path, stream: Stream, options: Options) -> Result<Archive, Error> {
        options.check()?;
        Archive::open_on(Arc::new(Files::open(dir)?), stream, options)
    }

    /// An empty archive in anonymous memory, which ends with the process.
    ///
    /// # Errors
    /// [`Error::Invalid`] for options out of range.
    pub fn in_memory(stream: Stream, options: Options) -> Result<Archive, Error> {
        Archive::open_on(Arc::new(Memory), stream, options)
    }

    /// As [`Archive::open`], on any storage.
    ///
    /// # Errors
    /// As for [`Archive::open`].
    pub fn open_on(storage: Arc<dyn Storage>, stream: Stream, options: Options) -> Result<Archive, Error> {
        options.check()?;
        let helper = if options.helper {
            let started = Helper::start();
            Some(started.map_err(Error::io("start the helper thread of", &storage.display("")))?)
        } else {
            None
        };
        let mut shared = Shared {
            pool: Arc::new(Pool::new(Arc::clone(&storage), &options)),
            storage,
            stream,
            options,
            helper,
        };
        let mut notes = Vec::new();
        let (identity, sessions) = recovery::open(&mut shared, &mut notes)?;
        // What an earlier run left of its own was removed.
        if let Some(helper) = shared.helper.as_ref().filter(|_| options.reserve > 0) {
            helper.stock(&shared.pool);
        }
        Ok(Archive {
            sessions,
            shared,
            identity,
            notes,
        })
    }

    /// The archive's random number, not 0, which stays with its directory.
    #[must_use]
    pub fn identity(&self) -> u32 {
        self.identity
    }

    /// The stream.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.shared.stream
    }

    /// How much of the [reserve](Options::reserve) is ready.
    #[must_use]
    pub fn reserve(&self) -> Reserve {
        let (ready, size) = self.shared.pool.reserve();
        Reserve {
            ready,
            size,
            refused: self.shared.pool.is_refused(),
        }
    }

    /// The size of a new segment.
    #[must_use]
    pub fn segment_bytes(&self) -> u64 {
        self.shared.options.segment_bytes
    }

    /// The sessions, ascending.
    pub fn sessions(&self) -> impl DoubleEndedIterator<Item = Session> + '_ {
        self.sessions.keys().copied()
    }

    /// The log of a session.
    #[must_use]
    pub fn session(&self, session: Session) -> Option<&SessionLog> {
        self.sessions.get(&session)
    }

    /// The log of a session, to append to.
    pub fn session_mut(&mut self, session: Session) -> Option<&mut SessionLog> {
        self.sessions.get_mut(&session)
    }

    /// Starts a session's log, with its first segment and piece of index ready.
    ///
    /// # Errors
    /// [`Error::Exists`]; [`Error::Io`] when the disk is full or refuses.
    pub fn create_session(&mut self, session: Session, meta: SessionMeta) -> Result<&mut SessionLog, Error> {
        if session == Session::NONE {
            return Err(Error::Invalid("session 0 stands for no session".into()));
        }
        if self.sessions.contains_key(&session) {
            return Err(Error::Exists(session));
        }
        let mut log = SessionLog::new(&self.shared, session, session::State::new(meta));
        let storage = &*self.shared.storage;
        let dir = session_dir(session);
        let bytes = checkpoint::meta_to_bytes(self.shared.stream, session, &meta);
        let made = storage
            .create_dir(&dir)
            .and_then(|()| storage.replace(&format!("{dir}/{}", recovery::META), &bytes, true))
            .and_then(|()| storage.sync_dir(""))
            .and_then(|()| log.start());
        if let Err(error) = made {
            log.shut();
            if error.kind() != io::ErrorKind::AlreadyExists {
                // What cannot be removed now is when the archive is next opened.
                let _ = recovery::remove_session(storage, session);
            }
            return Err(Error::io("start session in", &storage.display(&dir))(error));
        }
        Ok(self.sessions.entry(session).or_insert(log))
    }

    /// Removes a session with all it stores.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Io`] when its files cannot be removed.
    pub fn remove_session(&mut self, session: Session) -> Result<(), Error> {
        let mut log = self.sessions.remove(&session).ok_or(Error::Unknown(session))?;
        log.shut();
        let storage = &*self.shared.storage;
        recovery::remove_session(storage, session).map_err(Error::io("remove", &storage.display(&session_dir(session))))
    }

    /// What opening found and did.
    #[must_use]
    pub fn recovery(&self) -> &[RecoveryNote] {
        &self.notes
    }

    /// Writes everything to disk and closes the archive in order: opening it again scans nothing.
    ///
    /// # Errors
    /// The first error; all sessions are tried.
    pub fn close(mut self) -> Result<(), Error> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), Error> {
        let mut result = Ok(());
        for log in self.sessions.values_mut() {
            result = result.and(log.finish());
        }
        result
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // The next opening finds out what did not reach the disk and says so.
        let _ = self.finish();
    }
}
