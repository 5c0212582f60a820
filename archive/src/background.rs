//! The file work of a session that must not happen while a packet is appended: making and
//! recycling files, touching pages ahead, syncing, checkpoints.
//!
//! A [`Helper`] does it for all sessions of an archive with two threads, so that pages are touched
//! while the disk is waited for: [`Background::ahead`] prepares what the appender will need,
//! [`Background::disk`] writes what it has done. Without a helper the appending thread does the
//! latter itself at the same points, and makes files when it needs them.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use seqcast_proto::seq::{Session, Stream};

use crate::error::copy;
use crate::mapping::{Mapping, Pages};
use crate::segment::{Position, Segment};
use crate::storage::Storage;
use crate::{Options, SyncPolicy};

mod ahead;
mod disk;
mod helper;
mod jobs;
mod pool;
mod slot;

pub(crate) use ahead::{STEP, touched_first};
pub(crate) use helper::Helper;
pub(crate) use jobs::{Jobs, Unsynced, Written};
pub(crate) use pool::{Pool, is_spare};

use ahead::{Ahead, Current};
use disk::Work;
use helper::HelperShared;
use slot::Slot;

/// The name of a session's checkpoint inside its directory.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The name of the file that says how far a session's log is on disk.
pub(crate) const SYNCED: &str = "synced";

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The background half of one session.
#[derive(Debug)]
pub(crate) struct Background {
    pub(crate) storage: Arc<dyn Storage>,
    pub(crate) pool: Arc<Pool>,
    pub(crate) options: Options,
    stream: Stream,
    session: Session,
    dir: String,
    helper: Option<Arc<HelperShared>>,
    /// All records below this position are whole.
    tail: AtomicU64,
    /// All records below this position are on disk.
    synced: AtomicU64,
    /// Bytes of the session's files.
    allocated: AtomicU64,
    segment: Slot<Segment>,
    chunk: Slot<Mapping>,
    inbox: Mutex<Jobs>,
    /// A segment that `ahead` does not know of yet. Apart, because the appender must not wait.
    lead: Mutex<Option<Current>>,
    /// Held while the appender's needs are prepared.
    ahead: Mutex<Ahead>,
    /// Held while files are written to disk.
    work: Mutex<Work>,
    /// Files were given back: what could not be made may fit now.
    space: AtomicBool,
    /// The write to disk that failed: nothing written since can be vouched for.
    failed: OnceLock<io::Error>,
    closed: AtomicBool,
}

impl Background {
    pub(crate) fn new(shared: &crate::Shared, session: Session, allocated: u64, tail: Position) -> Background {
        Background {
            storage: Arc::clone(&shared.storage),
            pool: Arc::clone(&shared.pool),
            options: shared.options,
            stream: shared.stream,
            session,
            dir: crate::session_dir(session),
            helper: shared.helper.as_ref().map(|h| Arc::clone(&h.shared)),
            tail: AtomicU64::new(tail.0),
            synced: AtomicU64::new(tail.0),
            allocated: AtomicU64::new(allocated),
            segment: Slot::new(),
            chunk: Slot::new(),
            inbox: Mutex::default(),
            lead: Mutex::default(),
            ahead: Mutex::default(),
            space: AtomicBool::new(false),
            work: Mutex::new(Work {
                jobs: Jobs::default(),
                last_sync: Instant::now(),
            }),
            failed: OnceLock::new(),
            closed: AtomicBool::new(false),
        }
    }

    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    fn durable(&self) -> bool {
        self.options.sync != SyncPolicy::None
    }

    /// Lets the helper know of this session.
    pub(crate) fn register(self: &Arc<Self>) {
        if let Some(helper) = &self.helper {
            lock(&helper.sessions).push(Arc::clone(self));
            // Whoever was woken for it before it was listed found nothing to do, and sleeps.
            helper.disk.wake();
            helper.ahead.wake();
        }
    }

    /// Ends all background work; when this returns, none is under way.
    pub(crate) fn shut(&self) {
        self.closed.store(true, Ordering::Release);
        if let Some(helper) = &self.helper {
            lock(&helper.sessions).retain(|s| !std::ptr::eq(&**s, self));
        }
        drop(lock(&self.ahead));
        drop(lock(&self.work));
    }

    /// Has the work ahead of the appender done that was asked for: soon, if there is a helper.
    pub(crate) fn wake_ahead(&self) {
        if let Some(helper) = &self.helper {
            helper.ahead.wake();
        }
    }

    /// Has the work on disk done that was handed over: soon by the helper, or here.
    pub(crate) fn wake_disk(&self) {
        match &self.helper {
            Some(helper) => helper.disk.wake(),
            None => {
                self.disk();
            }
        }
    }

    /// Makes `pages` the ones that are touched ahead; they are present up to `touched`.
    pub(crate) fn lead(&self, number: u32, pages: &Pages, touched: u32) {
        if self.helper.is_some() {
            let pages = pages.clone();
            *lock(&self.lead) = Some(Current { number, pages, touched });
        }
    }

    pub(crate) fn hand_over(&self, jobs: Jobs) {
        lock(&self.inbox).absorb(jobs);
    }

    #[inline]
    pub(crate) fn publish(&self, tail: Position) {
        self.tail.store(tail.0, Ordering::Release);
    }

    pub(crate) fn tail(&self) -> Position {
        Position(self.tail.load(Ordering::Acquire))
    }

    pub(crate) fn synced(&self) -> Position {
        Position(self.synced.load(Ordering::Acquire))
    }

    pub(crate) fn allocated(&self) -> u64 {
        self.allocated.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn has_failed(&self) -> bool {
        self.failed.get().is_some()
    }

    pub(crate) fn failed(&self) -> Option<io::Error> {
        self.failed.get().map(copy)
    }

    /// Takes nothing more: what was written since cannot be vouched for.
    pub(crate) fn fail(&self, error: io::Error) {
        let _ = self.failed.set(error);
    }

    fn claim(&self, bytes: u64) -> io::Result<()> {
        let limit = self.options.max_bytes.unwrap_or(u64::MAX);
        let claim = |now: u64| now.checked_add(bytes).filter(|&sum| sum <= limit);
        self.allocated
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, claim)
            .map(|_| ())
            .map_err(|_| io::ErrorKind::QuotaExceeded.into())
    }

    fn unclaim(&self, bytes: u64) {
        self.allocated.fetch_sub(bytes, Ordering::Relaxed);
    }
}
