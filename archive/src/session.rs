//! The log of one session: what it knows, and looking up.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session};

use crate::background::{Background, Jobs, Written};
use crate::checkpoint::{Checkpoint, SessionMeta};
use crate::index::{self, Index};
use crate::mapping::{Mapping, fault};
use crate::record::{self, Entry, Parsed, Record};
use crate::segment::{self, Header, Mapped, Position, Segment};
use crate::storage::Storage;
use crate::{AppendError, Error, MAX_RANGES, Shared};

mod append;
mod release;

use append::Front;
pub(crate) use append::overlaps;

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
    /// For how many segments on the next one is asked for at once, not when one is half full.
    hurry: u32,
    /// Number from which the next index chunk is asked for.
    next_chunk_at: u32,
    front: Front,
    /// Faults of mappings ([`fault::count`]) that were looked at.
    faults: u32,
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
            hurry: 0,
            next_chunk_at: 0,
            front: Front::EMPTY,
            faults: fault::count(),
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

    /// Where the log ends, and up to where it is on disk: numbers that grow with it, to be compared.
    #[must_use]
    pub fn extent(&self) -> (u64, u64) {
        (self.back.tail().0, self.back.synced().0)
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
        self.flush()?;
        self.changed = false;
        Ok(())
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
