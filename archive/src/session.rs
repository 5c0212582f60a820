//! The log of one session: appending, looking up, releasing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session};

use crate::background::{Background, Jobs, STEP, Unsynced, Written, touched_first};
use crate::checkpoint::{Checkpoint, SessionMeta};
use crate::index::{self, CHUNK_ENTRIES, Index, chunk_of};
use crate::mapping::Mapping;
use crate::record::{self, Entry, Head, Parsed, Record};
use crate::segment::{self, Header, Mapped, Position, Segment};
use crate::storage::Storage;
use crate::{AppendError, Error, MAX_RANGES, Shared};

/// What recovery knows of a session's log.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) meta: SessionMeta,
    /// Ascending by number, with holes where segments were released.
    pub(crate) segments: Vec<Segment>,
    /// The number of the next new segment, above all that were ever used.
    pub(crate) next_segment: u32,
    /// Whether the last segment takes further records.
    pub(crate) open: bool,
    pub(crate) index: Index,
    pub(crate) stored: RangeSet,
    pub(crate) lost: RangeSet,
    pub(crate) end: Option<(Seq, Session)>,
    pub(crate) floor: Seq,
}

impl State {
    pub(crate) fn new(meta: SessionMeta) -> State {
        State {
            meta,
            segments: Vec::new(),
            next_segment: 1,
            open: false,
            index: Index::default(),
            stored: RangeSet::new(MAX_RANGES),
            lost: RangeSet::new(MAX_RANGES),
            end: None,
            floor: Seq(0),
        }
    }

    /// A checkpoint that says that nothing follows it.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            clean: true,
            floor: self.floor,
            end: self.end,
            stored: self.stored.as_slice().to_vec(),
            lost: self.lost.as_slice().to_vec(),
            ..Checkpoint::of(self.segments.iter())
        }
    }
}

/// The log of one session of a stream.
///
/// One thread appends and reads; a helper thread does the file work beside it.
#[derive(Debug)]
pub struct SessionLog {
    session: Session,
    meta: SessionMeta,
    back: Arc<Background>,
    /// Segments by number from `base`; a released one leaves a hole.
    segments: VecDeque<Option<Segment>>,
    base: u32,
    next_segment: u32,
    /// Whether the last segment takes further records.
    open: bool,
    /// Whether the log is ready to be appended to.
    active: bool,
    /// Whether a checkpoint may say that nothing follows its tail.
    clean: bool,
    /// Whether the checkpoint on disk is behind in anything.
    changed: bool,
    /// Whether the helper knows of the log.
    helped: bool,
    index: Index,
    stored: RangeSet,
    synced: RangeSet,
    /// All records below it are in `synced`.
    synced_to: Position,
    lost: RangeSet,
    end: Option<(Seq, Session)>,
    floor: Seq,
    /// No finished segment holds only numbers below this one.
    oldest_top: Seq,
    /// Offset in the current segment from which the helper has something to do.
    wake_at: u32,
    /// Number from which the next index chunk is asked for.
    next_chunk_at: u32,
    damaged: AtomicU64,
}

impl SessionLog {
    pub(crate) fn new(shared: &Shared, session: Session, state: State) -> SessionLog {
        let allocated = state.segments.iter().map(|s| u64::from(s.length)).sum::<u64>()
            + (state.index.numbers().count() * index::CHUNK_BYTES) as u64;
        let tail = state
            .segments
            .last()
            .map_or(Position::NONE, |s| Position::new(s.number, s.end));
        let base = state.segments.first().map_or(state.next_segment, |s| s.number);
        let mut segments = VecDeque::new();
        for segment in state.segments {
            let at = (segment.number - base) as usize;
            segments.resize_with(at, || None);
            segments.push_back(Some(segment));
        }
        let mut log = SessionLog {
            session,
            meta: state.meta,
            back: Arc::new(Background::new(shared, session, allocated, tail)),
            segments,
            base,
            next_segment: state.next_segment,
            open: state.open,
            active: false,
            clean: true,
            changed: false,
            helped: false,
            index: state.index,
            synced: state.stored.clone(),
            stored: state.stored,
            synced_to: tail,
            lost: state.lost,
            end: state.end,
            floor: state.floor,
            oldest_top: Seq(0),
            wake_at: 0,
            next_chunk_at: 0,
            damaged: AtomicU64::new(0),
        };
        log.find_oldest_top();
        log
    }

    /// The session's number.
    #[must_use]
    pub fn session(&self) -> Session {
        self.session
    }

    /// What was known of the session when it started.
    #[must_use]
    pub fn meta(&self) -> &SessionMeta {
        &self.meta
    }

    /// The stored numbers, ascending, neighbours merged.
    #[must_use]
    pub fn stored(&self) -> &RangeSet {
        &self.stored
    }

    /// The stored numbers that a loss of power cannot take any more.
    ///
    /// Follows the sync policy. With [`crate::SyncPolicy::None`] it grows only with
    /// [`SessionLog::sync`]. In memory nothing is safe from a loss of power; it then follows the
    /// policy all the same.
    pub fn synced(&mut self) -> &RangeSet {
        let to = self.back.synced();
        while self.synced_to < to {
            let (number, offset) = (self.synced_to.segment(), self.synced_to.offset());
            let found = self.segment(number.max(self.base)).filter(|s| s.number == number);
            let stop = found.map_or(0, |s| if number == to.segment() { to.offset() } else { s.end });
            if offset >= stop {
                self.synced_to = Position::new(number.saturating_add(1).max(self.base), segment::HEADER as u32).min(to);
                continue;
            }
            let Some(Ok(mapped)) = found.map(|s| self.map_segment(s)) else {
                break;
            };
            let (range, size) = record::peek(&mapped.map.bytes()[offset as usize..]);
            // What is on disk may end within a record.
            if offset as usize + size > stop as usize {
                break;
            }
            if let Some(range) = range
                && let Some(kept) = SeqRange::new(range.first.max(self.floor), range.last)
                && self.synced.insert(kept).is_err()
            {
                break;
            }
            self.synced_to = Position::new(number, offset + size as u32);
        }
        &self.synced
    }

    /// The number up to which every number is stored, lost or released; 0 for none. Counted from
    /// the lowest that the log knows anything of: it may have begun within its session.
    #[must_use]
    pub fn stored_up_to(&self) -> Seq {
        self.reach(&self.stored)
    }

    /// As [`SessionLog::stored_up_to`], with what is stored being in [`SessionLog::synced`].
    pub fn synced_up_to(&mut self) -> Seq {
        self.synced();
        self.reach(&self.synced)
    }

    fn reach(&self, stored: &RangeSet) -> Seq {
        let known = [&self.stored, &self.lost].map(|set| set.as_slice().first().map(|r| r.first));
        let Some(lowest) = known.into_iter().flatten().min() else {
            return self.floor.prev();
        };
        let mut next = self.floor.max(lowest);
        loop {
            let on = self.lost.first_absent(stored.first_absent(next));
            if on == next {
                return next.prev();
            }
            next = on;
        }
    }

    /// The numbers recorded as existing nowhere, ascending.
    #[must_use]
    pub fn lost(&self) -> &RangeSet {
        &self.lost
    }

    /// Whether `seq` is stored.
    #[must_use]
    pub fn contains(&self, seq: Seq) -> bool {
        self.stored.contains(seq)
    }

    /// The highest stored number.
    #[must_use]
    pub fn highest(&self) -> Option<Seq> {
        self.stored.as_slice().last().map(|r| r.last)
    }

    /// Everything below this number has been released ([`SessionLog::release_below`]).
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// The session's last number and the session after it, once known.
    #[must_use]
    pub fn end(&self) -> Option<(Seq, Session)> {
        self.end
    }

    /// Bytes that the session's files take, or its memory: what [`crate::Options::max_bytes`]
    /// bounds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.back.allocated()
    }

    /// How many reads found a record that was damaged or could not be mapped.
    #[must_use]
    pub fn damaged(&self) -> u64 {
        self.damaged.load(Ordering::Relaxed)
    }

    /// The stored record that holds `seq`, with its checksum verified; `None` when there is none
    /// or it is damaged (counted by [`SessionLog::damaged`]).
    #[must_use]
    pub fn read(&self, seq: Seq) -> Option<Record<'_>> {
        if seq < self.floor {
            return None;
        }
        let found = self.look_up(seq);
        if found.is_none() && self.stored.contains(seq) {
            self.damaged.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    fn look_up(&self, seq: Seq) -> Option<Record<'_>> {
        let position = self.index.get(seq, |chunk| self.map_chunk(chunk)).ok()?;
        let segment = self.segment(position.segment())?;
        let mapped = self.map_segment(segment).ok()?;
        let bytes = mapped
            .map
            .bytes()
            .get(position.offset() as usize..segment.end as usize)?;
        match record::parse(bytes, mapped.generation) {
            Parsed::Whole(Entry::Data(record), _) if record.range().contains(seq) => Some(record),
            _ => None,
        }
    }

    fn segment(&self, number: u32) -> Option<&Segment> {
        let at = number.checked_sub(self.base)?;
        self.segments.get(at as usize)?.as_ref()
    }

    fn map_segment<'a>(&self, segment: &'a Segment) -> std::io::Result<&'a Mapped> {
        segment.mapped(|| map_segment(&*self.back.storage, self.session, segment.number))
    }

    fn map_chunk(&self, chunk: u32) -> std::io::Result<Mapping> {
        map_chunk(&*self.back.storage, self.session, chunk)
    }

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
        self.admit(range)?;
        self.prepare(block.len())?;
        for chunk in chunk_of(range.first)..=chunk_of(range.last) {
            if !self.index.ready(chunk) {
                self.open_chunk(chunk)?;
            }
        }
        self.stored.insert(range).map_err(|_| AppendError::Fragmented)?;
        self.write(record::head(first, count, flags, send_ns, recv_ns), block, Some(range));
        if range.last.0 >= self.next_chunk_at {
            self.ask_for_chunk(range.last);
        }
        self.publish();
        Ok(())
    }

    /// Checks that the numbers are free.
    #[inline]
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

    /// Writes a record for which there is room.
    #[inline]
    fn write(&mut self, head: Head, block: &[u8], range: Option<SeqRange>) {
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
    }

    /// Tells the helper how far the log goes, and wakes it when it has something to do.
    #[inline]
    fn publish(&mut self) {
        let current = self.current();
        let (number, end, length) = (current.number, current.end, current.length);
        self.back.publish(Position::new(number, end));
        if end >= self.wake_at {
            self.wake(number, end, length);
        }
    }

    #[cold]
    fn wake(&mut self, number: u32, end: u32, length: u32) {
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

    fn engage_helper(&mut self) {
        if !std::mem::replace(&mut self.helped, true) {
            self.back.register();
        }
    }

    /// Starts to write to the log: from here on its checkpoint does not say that it is clean.
    fn activate(&mut self) -> std::io::Result<()> {
        let mut unsynced = None;
        let (storage, session) = (Arc::clone(&self.back.storage), self.session);
        if self.open {
            let current = self.current();
            let (number, from) = (current.number, current.end);
            let mapped = current.mapped_mut(|| map_segment(&*storage, session, number))?;
            let pages = mapped.map.pages();
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
        self.back.wake_disk();
        self.back.wake_ahead();
        Ok(())
    }

    /// Makes the index able to take numbers of `chunk`, if it is not.
    #[cold]
    fn open_chunk(&mut self, chunk: u32) -> Result<(), AppendError> {
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
        done.map_err(|e| Error::Io {
            what: "append to",
            path: self.back.storage.display(&crate::session_dir(self.session)),
            source: match e {
                AppendError::Io(source) => source,
                full => std::io::Error::new(std::io::ErrorKind::StorageFull, full),
            },
        })?;
        self.write(head, &block, None);
        self.publish();
        Ok(())
    }

    /// Releases all numbers below `seq`: they are not found any more, and segments that hold
    /// nothing else are recycled. May be forgotten if the process is killed soon after.
    pub fn release_below(&mut self, seq: Seq) {
        if seq > self.floor {
            self.floor = seq;
            self.changed = true;
            self.stored.remove_below(seq);
            self.synced.remove_below(seq);
            self.lost.remove_below(seq);
        }
        let seq = self.floor;
        if seq <= self.oldest_top {
            return;
        }
        self.changed = true;
        let mut jobs = Jobs::default();
        let finished = self.segments.len().saturating_sub(usize::from(self.open));
        for slot in self.segments.iter_mut().take(finished) {
            if slot.as_ref().is_some_and(|s| s.highest < seq) {
                jobs.retired.extend(slot.take());
            }
        }
        while let Some(None) = self.segments.front() {
            self.segments.pop_front();
            self.base += 1;
        }
        // Of a session that ended below, nothing is indexed any more.
        let over = self.segments.is_empty() && self.end.is_some_and(|(last, _)| last < seq);
        let unindexed = if over { Seq(u32::MAX) } else { seq };
        self.index
            .drop_below(unindexed, |chunk| jobs.retired_chunks.push(chunk));
        jobs.idle = !self.active;
        self.find_oldest_top();
        if !jobs.retired.is_empty() || !jobs.retired_chunks.is_empty() {
            self.engage_helper();
            let newest = self.jobs();
            jobs.chunks = newest.chunks;
            jobs.checkpoint = newest.checkpoint;
            self.back.hand_over(jobs);
            self.back.wake_disk();
        }
    }

    /// Bytes of the segments and the index that are in use: not what is made ahead, nor what is
    /// released and not removed yet.
    #[must_use]
    pub fn kept_bytes(&self) -> u64 {
        let segments = self.segments.iter().flatten().map(|s| u64::from(s.length));
        segments.sum::<u64>() + (self.index.numbers().count() * index::CHUNK_BYTES) as u64
    }

    /// Releases the finished segment with the lowest numbers and all numbers up to its highest, if
    /// there is one and `old` says so of when that was received; returns whether it did. Of an ended
    /// session all segments are finished.
    pub fn release_oldest(&mut self, old: impl FnOnce(u64) -> bool) -> bool {
        let last = self.segments.back().and_then(Option::as_ref);
        let last = last.filter(|_| self.open && self.end.is_some()).map(|s| s.highest);
        let top = self.oldest_top.min(last.unwrap_or(Seq(u32::MAX)));
        if top == Seq(u32::MAX) || !self.look_up(top).is_none_or(|record| old(record.recv_ns)) {
            return false;
        }
        if last == Some(top) {
            // Should a late repair still come, it opens a new one.
            (self.open, self.active) = (false, false);
            self.find_oldest_top();
        }
        self.release_below(top.next());
        true
    }

    fn find_oldest_top(&mut self) {
        let finished = self.segments.len().saturating_sub(usize::from(self.open));
        let tops = self.segments.iter().take(finished).flatten().map(|s| s.highest);
        self.oldest_top = tops.min().unwrap_or(Seq(u32::MAX));
    }

    /// Writes everything to disk, records it in the checkpoint and returns when that is done.
    ///
    /// # Errors
    /// [`Error::Io`] when the disk does not take it.
    pub fn sync(&mut self) -> Result<(), Error> {
        if self.changed { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Error> {
        let jobs = self.jobs();
        let path = crate::session_dir(self.session);
        self.back
            .flush(jobs)
            .map_err(Error::io("sync", &self.back.storage.display(&path)))?;
        self.synced.clone_from(&self.stored);
        self.synced_to = self.back.synced();
        Ok(())
    }

    /// Ends writing: everything on disk, and the checkpoint says that nothing follows it.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if !self.changed {
            return Ok(());
        }
        self.back.shut();
        (self.active, self.clean) = (false, true);
        let path = crate::session_dir(self.session);
        self.back
            .give_back()
            .map_err(Error::io("give back space of", &self.back.storage.display(&path)))?;
        self.flush()
    }

    /// Ends all background work without writing anything down.
    pub(crate) fn shut(&mut self) {
        self.back.shut();
        self.active = false;
    }

    /// Makes everything ready for the first append.
    pub(crate) fn start(&mut self) -> std::io::Result<()> {
        self.activate()?;
        match self.open_chunk(0) {
            Ok(()) => Ok(()),
            Err(AppendError::Io(e)) => Err(e),
            Err(_) => Err(std::io::ErrorKind::StorageFull.into()),
        }
    }

    /// The checkpoint as of now, and the index chunks that it vouches for.
    fn jobs(&mut self) -> Jobs {
        let mut jobs = Jobs {
            checkpoint: Some(self.checkpoint()),
            ..Jobs::default()
        };
        self.index.take_dirty(|number, map, range| {
            let pages = map.pages();
            jobs.chunks.insert(number, Written { pages, range });
        });
        jobs
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint {
            clean: self.clean,
            floor: self.floor,
            end: self.end,
            stored: self.stored.as_slice().to_vec(),
            lost: self.lost.as_slice().to_vec(),
            ..Checkpoint::of(self.segments.iter().flatten())
        }
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

pub(crate) fn map_segment(storage: &dyn Storage, session: Session, number: u32) -> std::io::Result<Mapped> {
    let dir = crate::session_dir(session);
    let map = storage.map(&format!("{dir}/{}", segment::file_name(number)))?;
    match Header::parse(map.bytes()) {
        Ok(header) => Ok(Mapped {
            map,
            generation: header.generation,
        }),
        Err(_) => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

pub(crate) fn map_chunk(storage: &dyn Storage, session: Session, chunk: u32) -> std::io::Result<Mapping> {
    let dir = crate::session_dir(session);
    let map = storage.map(&format!("{dir}/{}", index::file_name(chunk)))?;
    if map.bytes().len() == index::CHUNK_BYTES {
        Ok(map)
    } else {
        Err(std::io::ErrorKind::InvalidData.into())
    }
}
