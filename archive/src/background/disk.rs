//! Writing to disk what was appended, and the checkpoint that vouches for it.

use std::io;
use std::mem;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::ahead::RETRY;
use super::jobs::{Jobs, Written};
use super::{Background, CHECKPOINT, SYNCED, lock};
use crate::checkpoint::{Checkpoint, synced_to_bytes};
use crate::error::{copy, is_full};
use crate::index::{self, CHUNK_BYTES};
use crate::mapping::PAGE;
use crate::segment::{self, Position, Segment};

/// What is to be written to disk.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) jobs: Jobs,
    pub(super) last_sync: Instant,
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

impl Background {
    /// Writes to disk what is due and says when there is something to do again.
    pub(super) fn disk(&self) -> Option<Instant> {
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
                self.fail(error);
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
        let said = synced_to_bytes(self.stream, self.session, self.storage.epoch(), reached);
        // For others to see. Should it not be written, they know of less than there is.
        let _ = self.storage.inform(&self.path(SYNCED), &said);
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
                self.fail(copy(e));
            }
        })
    }
}
