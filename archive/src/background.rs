//! The file work of a session that must not happen while a packet is appended: making and
//! recycling files, touching pages ahead, syncing, checkpoints.
//!
//! A [`Helper`] does it for all sessions of an archive with two threads, so that pages are touched
//! while the disk is waited for: [`Background::ahead`] prepares what the appender will need,
//! [`Background::disk`] writes what it has done. Without a helper the appending thread does the
//! latter itself at the same points, and makes files when it needs them.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

use seqcast_proto::seq::{Seq, Session, Stream};

use crate::checkpoint::Checkpoint;
use crate::error::{copy, is_full};
use crate::index::{self, CHUNK_BYTES};
use crate::mapping::{Mapping, PAGE, Pages};
use crate::segment::{self, Header, Mapped, Position, Segment};
use crate::storage::Storage;
use crate::{Options, SyncPolicy};

/// How far ahead of the writer pages are touched, and how often it asks for more.
const AHEAD: u32 = 4 << 20;
pub(crate) const STEP: u32 = 1 << 20;
/// Recycled segments kept for reuse; more are removed.
const SPARES: usize = 4;
/// How long to wait before space is asked for again on a full disk.
const RETRY: Duration = Duration::from_millis(100);

/// How far the pages of a new segment of `length` bytes are touched.
pub(crate) fn touched_first(length: u32) -> u32 {
    length.min(AHEAD)
}

/// The name of a session's checkpoint inside its directory.
pub(crate) const CHECKPOINT: &str = "checkpoint";

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Segments released by any session of the archive, to be used again.
#[derive(Debug)]
pub(crate) struct Pool {
    storage: Arc<dyn Storage>,
    spares: Mutex<Vec<Spare>>,
    next: AtomicU32,
}

#[derive(Debug)]
struct Spare {
    name: String,
    mapped: Mapped,
}

/// The file name of a spare in the archive's directory.
fn spare_name(number: u32) -> String {
    format!("spare-{number:08x}")
}

/// Whether a name in the archive's directory is a spare's.
///
/// Spares are not used by a later run: after a loss of power one may hold what looks like a
/// segment that was lost, and must not come to life under that segment's name.
pub(crate) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

impl Pool {
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Pool {
        Pool {
            storage,
            spares: Mutex::default(),
            next: AtomicU32::new(1),
        }
    }

    fn take(&self, length: usize) -> Option<Spare> {
        let mut spares = lock(&self.spares);
        let at = spares.iter().position(|s| s.mapped.map.bytes().len() == length)?;
        Some(spares.swap_remove(at))
    }

    /// Keeps a released segment for reuse, or removes its file.
    pub(crate) fn give(&self, path: &str, segment: Segment) -> io::Result<()> {
        let Some(mapped) = segment.mapped.into_inner() else {
            return self.storage.remove(path);
        };
        if lock(&self.spares).len() >= SPARES {
            return self.storage.remove(path);
        }
        let name = spare_name(self.next.fetch_add(1, Ordering::Relaxed));
        self.storage.rename(path, &name)?;
        lock(&self.spares).push(Spare { name, mapped });
        Ok(())
    }
}

/// A place where the helper puts a thing that the appender will need next.
#[derive(Debug)]
pub(crate) struct Slot<T> {
    state: Mutex<State<T>>,
    made: Condvar,
}

#[derive(Debug)]
enum State<T> {
    Empty,
    Wanted(u32),
    Making(u32),
    Ready(u32, T),
    Failed(u32, io::Error),
}

impl<T> Slot<T> {
    fn new() -> Slot<T> {
        Slot {
            state: Mutex::new(State::Empty),
            made: Condvar::new(),
        }
    }

    /// Asks for number `n`, unless the slot is in use.
    pub(crate) fn want(&self, n: u32) {
        let mut state = lock(&self.state);
        if matches!(*state, State::Empty) {
            *state = State::Wanted(n);
        }
    }

    /// Takes number `n`, waiting for it when it is being made and making it here when it is not.
    /// With a `helper`, a failure is kept and repeated until the helper has tried again.
    fn take(&self, n: u32, helper: Option<&HelperShared>, make: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let mut state = lock(&self.state);
        while matches!(*state, State::Making(m) if m == n) {
            state = self.made.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        match mem::replace(&mut *state, State::Empty) {
            State::Ready(m, thing) if m == n => return Ok(thing),
            State::Failed(m, error) if m == n => {
                let result = Err(copy(&error));
                *state = State::Failed(m, error);
                return result;
            }
            State::Wanted(m) if m == n => {}
            other => *state = other,
        }
        drop(state);
        let made = make();
        if let (Err(error), Some(helper)) = (&made, helper) {
            let mut state = lock(&self.state);
            if matches!(*state, State::Empty) {
                *state = State::Failed(n, copy(error));
                // It may sleep without a time set: it has to learn that something is to be retried.
                helper.ahead.wake();
            }
        }
        made
    }

    /// Makes what is wanted; with `retry`, also what failed before. Returns whether it is missing.
    fn fill(&self, retry: bool, make: impl FnOnce(u32) -> io::Result<T>) -> bool {
        let mut state = lock(&self.state);
        let n = match *state {
            State::Wanted(n) => n,
            State::Failed(n, _) if retry => n,
            State::Failed(..) => return true,
            _ => return false,
        };
        *state = State::Making(n);
        drop(state);
        let made = make(n);
        let failed = made.is_err();
        *lock(&self.state) = match made {
            Ok(thing) => State::Ready(n, thing),
            Err(error) => State::Failed(n, error),
        };
        self.made.notify_all();
        failed
    }

    /// Empties the slot.
    fn clear(&self) -> Option<(u32, T)> {
        match mem::replace(&mut *lock(&self.state), State::Empty) {
            State::Ready(n, thing) => Some((n, thing)),
            _ => None,
        }
    }
}

/// A segment that was written to and may not be on disk yet.
#[derive(Debug)]
pub(crate) struct Unsynced {
    pub(crate) number: u32,
    pub(crate) pages: Pages,
    /// Where the unsynced bytes start.
    pub(crate) from: u32,
    /// Whether a loss of power leaves the file its name.
    pub(crate) named: bool,
}

/// A part of an index chunk that was written to and may not be on disk yet.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) pages: Pages,
    pub(crate) range: Range<usize>,
}

/// What the appender has handed over.
#[derive(Debug, Default)]
pub(crate) struct Jobs {
    /// Segments opened, in order.
    pub(crate) segments: VecDeque<Unsynced>,
    /// Index chunks written to.
    pub(crate) chunks: BTreeMap<u32, Written>,
    /// The newest state to write down.
    pub(crate) checkpoint: Option<Checkpoint>,
    /// Segments to recycle once a checkpoint without them is written.
    pub(crate) retired: Vec<Segment>,
    /// Index chunks to remove likewise.
    pub(crate) retired_chunks: Vec<u32>,
    /// Nothing is appended for now: what was made ahead is given back. The log's last segment may
    /// be among the retired, and with it how the session ended: the checkpoint must hold that.
    pub(crate) idle: bool,
}

impl Jobs {
    fn absorb(&mut self, new: Jobs) {
        self.segments.extend(new.segments);
        for (number, written) in new.chunks {
            let range = &mut self.chunks.entry(number).or_insert_with(|| written.clone()).range;
            *range = range.start.min(written.range.start)..range.end.max(written.range.end);
        }
        self.checkpoint = new.checkpoint.or(self.checkpoint.take());
        // Nothing of what is released needs to reach the disk any more.
        self.segments
            .retain(|s| new.retired.iter().all(|r| r.number != s.number));
        self.chunks.retain(|c, _| !new.retired_chunks.contains(c));
        self.retired.extend(new.retired);
        self.retired_chunks.extend(new.retired_chunks);
        self.idle = new.idle;
    }
}

/// What is prepared for the appender.
#[derive(Debug, Default)]
struct Ahead {
    current: Option<Current>,
    /// When to try again what could not be made.
    retry_at: Option<Instant>,
}

/// The segment that is appended to.
#[derive(Debug)]
struct Current {
    number: u32,
    pages: Pages,
    /// How far its pages are touched.
    touched: u32,
}

/// What is to be written to disk.
#[derive(Debug)]
struct Work {
    jobs: Jobs,
    last_sync: Instant,
}

/// How much a sync writes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    /// All that was appended.
    All,
    /// All but the page that is being filled, if others are there to write: a page that is
    /// written to disk is write-protected, so the next append to it faults. The page is written
    /// next time at the latest, full or not.
    Settled,
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

    /// Asks for the segment and the chunk that are needed next.
    pub(crate) fn want_segment(&self, number: u32) {
        if self.helper.is_some() {
            self.segment.want(number);
        }
    }

    pub(crate) fn want_chunk(&self, number: u32) {
        if self.helper.is_some() {
            self.chunk.want(number);
        }
    }

    /// The new, empty segment `number`.
    pub(crate) fn take_segment(&self, number: u32) -> io::Result<Segment> {
        self.segment
            .take(number, self.helper.as_deref(), || self.make_segment(number))
    }

    /// The new index chunk `number`.
    pub(crate) fn take_chunk(&self, number: u32) -> io::Result<Mapping> {
        self.chunk
            .take(number, self.helper.as_deref(), || self.make_chunk(number))
    }

    fn make_segment(&self, number: u32) -> io::Result<Segment> {
        let length = self.options.segment_bytes;
        self.claim(length)?;
        let made = self.build_segment(number, length as u32);
        made.inspect_err(|_| self.unclaim(length))
    }

    fn build_segment(&self, number: u32, length: u32) -> io::Result<Segment> {
        let path = self.path(&segment::file_name(number));
        let spare = self.pool.take(length as usize);
        let (spare, mut map, generation) = match spare {
            Some(Spare { name, mapped }) => (Some(name), mapped.map, mapped.generation.wrapping_add(1)),
            None => (None, self.storage.create(&path, length as usize)?, 1),
        };
        let header = Header {
            stream: self.stream,
            session: self.session,
            number,
            generation,
            length,
        };
        map.bytes_mut()[..segment::HEADER].copy_from_slice(&header.to_bytes());
        map.publish(segment::HEADER, 0);
        if let Some(spare) = spare {
            self.storage.rename(&spare, &path)?;
        }
        self.ready_pages(&mut map, touched_first(length) as usize);
        Ok(Segment {
            number,
            length,
            end: segment::HEADER as u32,
            highest: Seq(0),
            mapped: Mapped { map, generation }.into(),
        })
    }

    fn make_chunk(&self, number: u32) -> io::Result<Mapping> {
        self.claim(CHUNK_BYTES as u64)?;
        let made = self.storage.create(&self.path(&index::file_name(number)), CHUNK_BYTES);
        let mut map = made.inspect_err(|_| self.unclaim(CHUNK_BYTES as u64))?;
        self.ready_pages(&mut map, CHUNK_BYTES);
        Ok(map)
    }

    /// Makes the first `len` bytes of a new file present; on old kernels all of it, because a
    /// file that is in use can then not be touched ahead.
    fn ready_pages(&self, map: &mut Mapping, len: usize) {
        if self.helper.is_some() && map.pages().populate(0..len).is_err() {
            map.touch();
        }
    }

    /// Prepares what the appender will need and says when there is something to do again.
    fn ahead(&self) -> Option<Instant> {
        let mut ahead = lock(&self.ahead);
        if self.closed.load(Ordering::Acquire) {
            return None;
        }
        self.touch_ahead(&mut ahead);
        let now = Instant::now();
        let retry = self.space.swap(false, Ordering::AcqRel) || ahead.retry_at.is_some_and(|at| at <= now);
        if !self.prepare(retry) {
            ahead.retry_at = None;
        } else if retry || ahead.retry_at.is_none() {
            ahead.retry_at = Some(now + RETRY);
        }
        ahead.retry_at
    }

    /// Makes what was asked for; returns whether something could not be made.
    fn prepare(&self, retry: bool) -> bool {
        let no_segment = self.segment.fill(retry, |n| self.make_segment(n));
        let no_chunk = self.chunk.fill(retry, |n| self.make_chunk(n));
        no_segment || no_chunk
    }

    /// Touches the pages that the appender is about to reach.
    fn touch_ahead(&self, ahead: &mut Ahead) {
        let tail = Position(self.tail.load(Ordering::Acquire));
        if let Some(new) = lock(&self.lead).take() {
            ahead.current = Some(new);
        }
        let Some(current) = ahead.current.as_mut().filter(|c| c.number == tail.segment()) else {
            return;
        };
        let length = current.pages.len() as u32;
        let mut from = current.touched.max(tail.offset());
        while from < length && from < tail.offset().saturating_add(AHEAD) {
            let to = length.min(from.saturating_add(STEP));
            if current.pages.populate(from as usize..to as usize).is_err() {
                return; // An old kernel; the whole segment was touched when it was made.
            }
            from = to;
        }
        current.touched = from;
    }

    /// Writes to disk what is due and says when there is something to do again.
    fn disk(&self) -> Option<Instant> {
        let mut work = lock(&self.work);
        if self.closed.load(Ordering::Acquire) || self.failed.get().is_some() {
            return None;
        }
        let now = Instant::now();
        let written = self.write_checkpoint(&mut work, self.durable());
        if matches!(written, Ok(true)) {
            self.space.store(true, Ordering::Release);
            self.wake_ahead();
        }
        let synced = self.sync_if_due(&mut work, now);
        let mut retry_at = None;
        for error in [written.err(), synced.err()].into_iter().flatten() {
            if is_full(&error) {
                retry_at = Some(now + RETRY);
            } else {
                let _ = self.failed.set(error);
                return None;
            }
        }
        let sync_at = self.options.sync.interval().map(|i| work.last_sync + i);
        retry_at.into_iter().chain(sync_at).min()
    }

    fn collect(&self, work: &mut Work) {
        let new = mem::take(&mut *lock(&self.inbox));
        work.jobs.absorb(new);
    }

    /// Writes what was appended so far to disk.
    fn sync_log(&self, work: &mut Work, extent: Extent) -> io::Result<()> {
        // The tail first: a segment is handed over before the tail moves into it.
        let tail = Position(self.tail.load(Ordering::Acquire));
        self.collect(work);
        let mut reached = tail;
        for segment in &mut work.jobs.segments {
            let to = if segment.number < tail.segment() {
                segment.pages.len() as u32
            } else {
                let settled = tail.offset() / PAGE as u32 * PAGE as u32;
                let skip = extent == Extent::Settled && settled > segment.from;
                let to = if skip { settled } else { tail.offset() };
                reached = Position::new(tail.segment(), to);
                to
            };
            if segment.from < to {
                self.storage.sync(&segment.pages, segment.from as usize..to as usize)?;
                segment.from = to;
            }
            if !segment.named {
                self.storage.sync_dir(&self.dir)?;
                // A recycled file came from there.
                self.storage.sync_dir("")?;
                segment.named = true;
            }
        }
        while work.jobs.segments.front().is_some_and(|s| s.number < tail.segment()) {
            work.jobs.segments.pop_front();
        }
        self.synced.store(reached.0, Ordering::Release);
        work.last_sync = Instant::now();
        Ok(())
    }

    fn sync_if_due(&self, work: &mut Work, now: Instant) -> io::Result<()> {
        let tail = Position(self.tail.load(Ordering::Acquire));
        let synced = self.synced();
        let late = self.options.sync.interval().is_some_and(|i| now >= work.last_sync + i);
        let much = self.options.sync.bytes().is_some_and(|bytes| {
            tail.segment() != synced.segment() || u64::from(tail.offset() - synced.offset()) >= bytes
        });
        if tail == synced {
            if late {
                work.last_sync = now;
            }
            return Ok(());
        }
        match (much, late) {
            (true, _) => self.sync_log(work, Extent::All),
            (false, true) => self.sync_log(work, Extent::Settled),
            (false, false) => Ok(()),
        }
    }

    /// Writes the newest checkpoint, if there is one to write, and recycles what it released.
    /// Returns whether something was recycled.
    fn write_checkpoint(&self, work: &mut Work, durable: bool) -> io::Result<bool> {
        self.collect(work);
        let Some(checkpoint) = work.jobs.checkpoint.take() else {
            return Ok(false);
        };
        let durable = durable || work.jobs.idle;
        // What is handed over from here on belongs to the next checkpoint.
        let mut retired = mem::take(&mut work.jobs.retired);
        let chunks = mem::take(&mut work.jobs.retired_chunks);
        if let Err(error) = self.put_checkpoint(work, &checkpoint, &mut retired, durable) {
            work.jobs.checkpoint.get_or_insert(checkpoint);
            work.jobs.retired.extend(retired);
            work.jobs.retired_chunks.extend(chunks);
            return Err(error);
        }
        if mem::take(&mut work.jobs.idle) {
            self.give_back()?;
        }
        let recycled = !retired.is_empty() || !chunks.is_empty();
        for segment in retired {
            let length = u64::from(segment.length);
            self.pool
                .give(&self.path(&segment::file_name(segment.number)), segment)?;
            self.unclaim(length);
        }
        for chunk in chunks {
            self.storage.remove(&self.path(&index::file_name(chunk)))?;
            self.unclaim(CHUNK_BYTES as u64);
        }
        Ok(recycled)
    }

    fn put_checkpoint(
        &self,
        work: &mut Work,
        checkpoint: &Checkpoint,
        retired: &mut Vec<Segment>,
        durable: bool,
    ) -> io::Result<()> {
        let epoch = if durable {
            self.sync_log(work, Extent::All)?;
            for Written { pages, range } in work.jobs.chunks.values() {
                self.storage.sync(pages, range.clone())?;
            }
            work.jobs.chunks.clear();
            [0; 16]
        } else {
            self.storage.epoch()
        };
        let bytes = checkpoint.to_bytes(epoch, self.stream, self.session);
        loop {
            match self.storage.replace(&self.path(CHECKPOINT), &bytes, durable) {
                // A full disk must not keep released segments from making room on it. Until a
                // checkpoint fits, opening finds one that lists a missing file, and scans.
                Err(e) if is_full(&e) && !retired.is_empty() => {
                    let segment = retired.pop().expect("not empty");
                    self.storage.remove(&self.path(&segment::file_name(segment.number)))?;
                    self.unclaim(u64::from(segment.length));
                }
                done => return done,
            }
        }
    }

    /// Writes everything to disk and records it, before returning.
    pub(crate) fn flush(&self, jobs: Jobs) -> io::Result<()> {
        self.hand_over(jobs);
        let mut work = lock(&self.work);
        if let Some(error) = self.failed() {
            return Err(error);
        }
        self.write_checkpoint(&mut work, true).map(|_| ()).inspect_err(|e| {
            if !is_full(e) {
                let _ = self.failed.set(copy(e));
            }
        })
    }

    /// Removes what was made ahead and not used.
    pub(crate) fn give_back(&self) -> io::Result<()> {
        if let Some((number, segment)) = self.segment.clear() {
            self.storage.remove(&self.path(&segment::file_name(number)))?;
            self.unclaim(u64::from(segment.length));
        }
        if let Some((number, _)) = self.chunk.clear() {
            self.storage.remove(&self.path(&index::file_name(number)))?;
            self.unclaim(CHUNK_BYTES as u64);
        }
        Ok(())
    }
}

/// The archive's helper threads.
#[derive(Debug)]
pub(crate) struct Helper {
    shared: Arc<HelperShared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
pub(crate) struct HelperShared {
    sessions: Mutex<Vec<Arc<Background>>>,
    ahead: Handle,
    disk: Handle,
    stop: AtomicBool,
}

/// A helper thread, once it has started.
#[derive(Debug, Default)]
struct Handle(OnceLock<Thread>);

impl Handle {
    fn wake(&self) {
        if let Some(thread) = self.0.get() {
            thread.unpark();
        }
    }
}

impl HelperShared {
    fn run(&self, step: fn(&Background) -> Option<Instant>) {
        while !self.stop.load(Ordering::Acquire) {
            let sessions = lock(&self.sessions).clone();
            let next = sessions.iter().filter_map(|s| step(s)).min();
            drop(sessions);
            match next {
                Some(at) => thread::park_timeout(at.saturating_duration_since(Instant::now())),
                None => thread::park(),
            }
        }
    }
}

impl Helper {
    pub(crate) fn start() -> io::Result<Helper> {
        let mut helper = Helper {
            shared: Arc::new(HelperShared::default()),
            threads: Vec::new(),
        };
        helper.spawn("seqcast-ahead", |shared| &shared.ahead, Background::ahead)?;
        helper.spawn("seqcast-disk", |shared| &shared.disk, Background::disk)?;
        Ok(helper)
    }

    fn spawn(
        &mut self,
        name: &str,
        handle: fn(&HelperShared) -> &Handle,
        step: fn(&Background) -> Option<Instant>,
    ) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let thread = thread::Builder::new()
            .name(name.into())
            .spawn(move || shared.run(step))?;
        let _ = handle(&self.shared).0.set(thread.thread().clone());
        self.threads.push(thread);
        Ok(())
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.ahead.wake();
        self.shared.disk.wake();
        for thread in self.threads.drain(..) {
            // A panic of the helper was reported when it happened.
            let _ = thread.join();
        }
        lock(&self.shared.sessions).clear();
    }
}
