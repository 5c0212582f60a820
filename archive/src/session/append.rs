//! Appending: the hot path, and what it needs now and then.

use std::sync::Arc;

use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session};

use super::{SessionLog, map_chunk, map_segment};
use crate::background::{Jobs, STEP, Unsynced, touched_first};
use crate::index::{CHUNK_ENTRIES, chunk_of};
use crate::mapping::fault;
use crate::prefetch;
use crate::record::{self, Head};
use crate::segment::{self, Position, Segment};
use crate::{AppendError, Error, MAX_RANGES};

/// How far ahead of the records memory is asked for.
const ASK_AHEAD: usize = 2048;
/// How many segments are asked for as early as can be after one was not there in time.
const HURRY: u32 = 16;

/// Numbers that can be appended without a closer look: free, with index entries that can be written to, and
/// none that has the next chunk asked for. Nearly all appends are there.
///
/// Whoever changes what it rests on (what is stored out of order or lost, the floor, the end, the chunks)
/// empties it; the next append finds it anew.
#[derive(Clone, Copy, Debug)]
pub(super) struct Front {
    first: Seq,
    last: Seq,
}

impl Front {
    pub(super) const EMPTY: Front = Front {
        first: Seq::LAST,
        last: Seq(0),
    };

    #[inline]
    fn covers(self, range: SeqRange) -> bool {
        self.first <= range.first && range.last <= self.last
    }
}

impl SessionLog {
    /// Appends a block of `count` consecutive messages, the first of which has number `first`.
    /// The block is copied once. Records may come in any order of numbers.
    ///
    /// What is done for every record is kept short, and what is rare is apart: the processor has
    /// room for a few dozen writes that have not reached its cache yet, and the record itself, in
    /// memory that nothing has touched lately, takes most of it.
    ///
    /// When this returns `Ok`, the record is found by [`SessionLog::read`] and survives the end
    /// of the process, however it ends; a loss of power it survives once it is in
    /// [`SessionLog::synced`].
    ///
    /// # Errors
    /// See [`AppendError`]. Nothing is written then.
    pub fn append(
        &mut self,
        first: Seq,
        count: u16,
        send_ns: u64,
        recv_ns: u64,
        flags: u16,
        block: &[u8],
    ) -> Result<(), AppendError> {
        let range = SeqRange::of(first, u32::from(count))
            .filter(|r| r.first >= Seq::FIRST)
            .ok_or(AppendError::BadRange)?;
        let plain = self.front.covers(range);
        if !plain {
            self.admit(range)?;
        }
        self.prepare(block.len())?;
        if !plain {
            self.open_chunks(range)?;
        }
        self.stored.insert(range).map_err(|_| AppendError::Fragmented)?;
        let end = self.write(record::head(first, count, flags, send_ns, recv_ns), block, Some(range));
        if fault::count() != self.faults {
            self.look_at_faults(Some(range))?;
        }
        self.front.first = range.last.next();
        if !plain {
            self.find_front(range.last);
        }
        self.publish(end);
        Ok(())
    }

    /// Sets the front to what follows all numbers that are known of; `last` was appended just now.
    #[cold]
    fn find_front(&mut self, last: Seq) {
        if last.0 >= self.next_chunk_at {
            self.ask_for_chunk(last);
        }
        let known = [&self.stored, &self.lost].map(|set| set.as_slice().last().map(|r| r.last.next()));
        let first = known.into_iter().flatten().fold(self.floor, Seq::max);
        let chunk = chunk_of(first);
        let end = self.end.map_or(Seq::LAST, |(last, _)| last);
        self.front = if self.index.ready(chunk) {
            let last = Seq((chunk * CHUNK_ENTRIES + (CHUNK_ENTRIES - 1)).min(self.next_chunk_at.saturating_sub(1)));
            Front {
                first,
                last: last.min(end),
            }
        } else {
            Front::EMPTY
        };
    }

    /// Checks that the numbers are free.
    #[cold]
    fn admit(&self, range: SeqRange) -> Result<(), AppendError> {
        if range.first < self.floor {
            return Err(AppendError::Released);
        }
        if self.end.is_some_and(|(last, _)| range.last > last) {
            return Err(AppendError::AfterEnd);
        }
        if overlaps(&self.stored, range) {
            return Err(AppendError::Duplicate);
        }
        if overlaps(&self.lost, range) {
            return Err(AppendError::Lost);
        }
        Ok(())
    }

    /// Makes room for a record with `block` bytes in the current segment.
    #[inline]
    fn prepare(&mut self, block: usize) -> Result<(), AppendError> {
        let size = record::size(block);
        if self.active && !self.back.has_failed() {
            let current = self.current();
            if size <= (current.length - current.end) as usize {
                return Ok(());
            }
        }
        self.make_room(block, size)
    }

    #[cold]
    fn make_room(&mut self, block: usize, size: usize) -> Result<(), AppendError> {
        if let Some(error) = self.back.failed() {
            return Err(AppendError::Io(error));
        }
        let limit = self.back.options.segment_bytes as usize - segment::HEADER;
        if size > limit {
            return Err(AppendError::TooLarge {
                size: block,
                limit: limit - record::HEADER,
            });
        }
        if !self.active {
            self.activate().map_err(AppendError::from_io)?;
        }
        let current = self.current();
        if current.end as usize + size > current.length as usize {
            self.roll().map_err(AppendError::from_io)?;
        }
        Ok(())
    }

    #[inline]
    fn current(&mut self) -> &mut Segment {
        self.segments
            .back_mut()
            .and_then(Option::as_mut)
            .expect("an active log has a current segment")
    }

    /// Writes a record for which there is room; returns where it ends.
    #[inline]
    fn write(&mut self, head: Head, block: &[u8], range: Option<SeqRange>) -> Position {
        let current = self
            .segments
            .back_mut()
            .and_then(Option::as_mut)
            .expect("an active log has a current segment");
        let mapped = current.mapped.get_mut().expect("the current segment is mapped");
        let (at, size) = (current.end as usize, record::size(block.len()));
        let bytes = &mut mapped.map.bytes_mut()[at..];
        let length = record::encode(bytes, mapped.generation, head, block);
        // A recycled file may hold an old length word behind the record. It goes before this record
        // is there, but after its bytes are: writes to memory in ascending order are the fast ones.
        if let Some(next) = bytes.get_mut(size..size + 4) {
            next.fill(0);
        }
        if let Some(range) = range {
            self.index.set(range, Position::new(current.number, current.end));
            current.highest = current.highest.max(range.last);
        }
        mapped.map.publish(at, length);
        current.end += size as u32;
        // The memory behind it is cold, and a write to it holds up all writes after it.
        let bytes = mapped.map.bytes();
        let next = at + size + ASK_AHEAD;
        if let Some(bytes) = bytes.get(next..next + size) {
            prefetch::to_write(bytes);
        }
        Position::new(current.number, current.end)
    }

    /// Tells the helper how far the log goes, and wakes it when it has something to do.
    #[inline]
    fn publish(&mut self, end: Position) {
        self.back.publish(end);
        if end.offset() >= self.wake_at {
            self.wake(end.segment(), end.offset());
        }
    }

    #[cold]
    fn wake(&mut self, number: u32, end: u32) {
        let length = self.current().length;
        if end >= length / 2 {
            self.back.want_segment(number + 1);
        }
        self.back.wake_ahead();
        if self.back.options.sync.bytes().is_some() {
            self.back.wake_disk();
        }
        self.plan_wake(end, length);
    }

    /// Sets when the helper is woken next: for each step of pages, half-way for the next segment,
    /// and as often as the sync policy counts bytes.
    fn plan_wake(&mut self, end: u32, length: u32) {
        let every = self.back.options.sync.bytes().unwrap_or(u64::MAX).min(u64::from(STEP)) as u32;
        let half = length / 2;
        self.wake_at = end.saturating_add(every.max(1));
        if end < half {
            self.wake_at = self.wake_at.min(half);
        }
    }

    pub(super) fn engage_helper(&mut self) {
        if !std::mem::replace(&mut self.helped, true) {
            self.back.register();
        }
    }

    /// Starts to write to the log: from here on its checkpoint does not say that it is clean.
    pub(super) fn activate(&mut self) -> std::io::Result<()> {
        let mut unsynced = None;
        let (storage, session) = (Arc::clone(&self.back.storage), self.session);
        if self.open {
            let current = self.current();
            let (number, from) = (current.number, current.end);
            let mapped = current.mapped_mut(|| map_segment(&*storage, session, number))?;
            let pages = mapped.map.pages();
            self.back.expect_syncs(&pages);
            self.back.lead(number, &pages, from);
            unsynced = Some(Unsynced {
                number,
                pages,
                from,
                named: true,
            });
        }
        (self.clean, self.changed) = (false, true);
        self.back.flush(Jobs {
            segments: unsynced.into_iter().collect(),
            checkpoint: Some(self.checkpoint()),
            ..Jobs::default()
        })?;
        if self.open {
            let (end, length) = {
                let current = self.current();
                (current.end, current.length)
            };
            self.plan_wake(end, length);
        } else {
            self.roll()?;
        }
        self.engage_helper();
        self.active = true;
        Ok(())
    }

    /// Goes on in a new segment.
    fn roll(&mut self) -> std::io::Result<()> {
        let in_time = !self.open || self.back.has_segment(self.next_segment);
        self.hurry = if in_time { self.hurry.saturating_sub(1) } else { HURRY };
        let segment = self.back.take_segment(self.next_segment)?;
        let pages = segment.mapped.get().expect("a new segment is mapped").map.pages();
        self.back.lead(segment.number, &pages, touched_first(segment.length));
        if self.open {
            let top = self.current().highest;
            self.oldest_top = self.oldest_top.min(top);
        }
        let (number, end, length) = (segment.number, segment.end, segment.length);
        if self.segments.is_empty() {
            self.base = number;
        }
        self.segments.resize_with((number - self.base) as usize, || None);
        self.segments.push_back(Some(segment));
        self.next_segment = number + 1;
        self.open = true;
        let mut jobs = self.jobs();
        jobs.segments.push_back(Unsynced {
            number,
            pages,
            from: 0,
            named: false,
        });
        self.back.hand_over(jobs);
        self.back.publish(Position::new(number, end));
        self.plan_wake(end, length);
        if self.hurry > 0 {
            self.back.want_segment(self.next_segment);
        }
        self.back.wake_disk();
        self.back.wake_ahead();
        Ok(())
    }

    /// Makes the index able to take the numbers of `range`.
    #[cold]
    fn open_chunks(&mut self, range: SeqRange) -> Result<(), AppendError> {
        // A record has at most 65 535 numbers, a chunk has room for more: two at most.
        for chunk in [chunk_of(range.first), chunk_of(range.last)] {
            if !self.index.ready(chunk) {
                self.open_chunk(chunk)?;
            }
        }
        Ok(())
    }

    /// Makes the index able to take numbers of `chunk`, if it is not.
    #[cold]
    pub(super) fn open_chunk(&mut self, chunk: u32) -> Result<(), AppendError> {
        let (storage, session) = (&*self.back.storage, self.session);
        if self.index.has(chunk) {
            self.index
                .map(chunk, |chunk| map_chunk(storage, session, chunk))
                .map_err(AppendError::from_io)?;
        } else {
            let map = self.back.take_chunk(chunk).map_err(AppendError::from_io)?;
            self.index.add(chunk, Some(map));
        }
        Ok(())
    }

    /// Has the index chunk after that of `seq` made, once `seq` is in the second half of its own.
    #[cold]
    fn ask_for_chunk(&mut self, seq: Seq) {
        let chunk = chunk_of(seq);
        let half = chunk * CHUNK_ENTRIES + CHUNK_ENTRIES / 2;
        if seq.0 < half {
            self.next_chunk_at = half;
            return;
        }
        self.next_chunk_at = half.saturating_add(CHUNK_ENTRIES);
        if chunk < chunk_of(Seq::LAST) && !self.index.has(chunk + 1) {
            self.back.want_chunk(chunk + 1);
            self.back.wake_ahead();
        }
    }

    /// Records that the session ends at `last` (0: without a message) and goes on as `next`.
    /// Survives what an append survives. Saying it again changes nothing.
    ///
    /// # Errors
    /// [`Error::Closed`] when it was closed at another number; [`Error::Io`] when there is no
    /// room to record it.
    pub fn close(&mut self, last: Seq, next: Session) -> Result<(), Error> {
        match self.end {
            Some((was, known)) if was == last && (known == next || next == Session::NONE) => {
                return Ok(());
            }
            Some((was, _)) if was != last => {
                return Err(Error::Closed {
                    session: self.session,
                    was: was.0,
                    now: last.0,
                });
            }
            _ => {}
        }
        self.control(record::end(last, next))?;
        self.front = Front::EMPTY;
        self.end = Some((last, next));
        Ok(())
    }

    /// Records that the numbers of `range` that are not stored exist nowhere. Survives what an
    /// append survives.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no room to record it.
    pub fn mark_lost(&mut self, range: SeqRange) -> Result<(), Error> {
        let Some(range) = SeqRange::new(range.first.max(self.floor).max(Seq::FIRST), range.last) else {
            return Ok(());
        };
        self.front = Front::EMPTY;
        let mut holes = Vec::new();
        self.stored.absent(range, |hole| holes.push(hole));
        for hole in holes {
            let known = self.lost.range_of(hole.first);
            if known.is_some_and(|k| k.last >= hole.last) {
                continue;
            }
            self.control(record::lost(hole))?;
            let added = self.lost.insert(hole);
            added.map_err(|_| Error::Invalid(format!("more than {MAX_RANGES} lost ranges")))?;
        }
        Ok(())
    }

    fn control(&mut self, (head, block): (Head, [u8; 4])) -> Result<(), Error> {
        let done = self.prepare(block.len());
        done.map_err(|e| self.cannot_append(e))?;
        let end = self.write(head, &block, None);
        let done = self.look_at_faults(None);
        done.map_err(|e| self.cannot_append(e))?;
        self.publish(end);
        Ok(())
    }

    fn cannot_append(&self, error: AppendError) -> Error {
        Error::Io {
            what: "append to",
            path: self.back.storage.display(&crate::session_dir(self.session)),
            source: match error {
                AppendError::Io(source) => source,
                full => std::io::Error::new(std::io::ErrorKind::StorageFull, full),
            },
        }
    }

    /// A page of some mapping could not be had. If it was one that was written to just now, the record is
    /// not in the file: it is not stored.
    #[cold]
    fn look_at_faults(&mut self, range: Option<SeqRange>) -> Result<(), AppendError> {
        self.faults = fault::count();
        self.front = Front::EMPTY;
        let unreadable = || std::io::Error::from_raw_os_error(libc::EIO);
        let spoiled = self.current().mapped.get().is_some_and(|m| m.map.faults() > 0);
        if spoiled {
            // Records before it may have gone the same way: nothing more can be vouched for.
            self.back.fail(unreadable());
        }
        if let Some(range) = range {
            self.stored.remove(range);
            let jobs = self.jobs();
            self.back.hand_over(jobs);
            let chunks = chunk_of(range.first)..=chunk_of(range.last);
            if self.index.let_go_of_spoiled(chunks) || spoiled {
                return Err(AppendError::Io(unreadable()));
            }
            self.stored.insert(range).map_err(|_| AppendError::Fragmented)?;
        } else if spoiled {
            return Err(AppendError::Io(unreadable()));
        }
        Ok(())
    }
}

/// Whether the set holds any number of `range`.
pub(crate) fn overlaps(set: &RangeSet, range: SeqRange) -> bool {
    let ranges = set.as_slice();
    // Most appends lie above everything stored.
    if ranges.last().is_none_or(|r| r.last < range.first) {
        return false;
    }
    let at = ranges.partition_point(|r| r.last < range.first);
    ranges.get(at).is_some_and(|r| r.first <= range.last)
}
