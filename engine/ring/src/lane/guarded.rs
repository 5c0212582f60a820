//! The reading side of a lane whose producer is another process, which may be broken or hostile.

use std::io;
use std::os::fd::OwnedFd;

use super::{Consumer, Corruption, Entry, Fill, Located, MAX_CAPACITY, MIN_CAPACITY};
use crate::cursor::ReadCursor;
use crate::memory::Region;
use crate::slot;

const WORD: usize = size_of::<u64>();

/// Reads a lane in shared memory: every message is copied out, as words, before it is lent, so that
/// what the reader checks is what it uses, whatever the producer still writes.
pub struct Guarded {
    lane: Consumer,
    copy: Box<[[u8; WORD]]>,
    /// Longest message.
    max_len: usize,
    /// Length and tag of the message in `copy`, the lane's oldest.
    copied: Option<(usize, u32)>,
    /// Nothing is read from here on.
    end: Option<u64>,
}

impl Guarded {
    /// Makes a lane in a memory file that keeps its size, for the process that opens it with
    /// [`Producer::open`](super::Producer::open). `capacity_bytes` as for [`lane`](super::lane()), and at least such
    /// that it takes messages of `max_len`; a longer message counts as corruption.
    ///
    /// # Errors
    /// When the system is out of memory or file descriptors.
    pub fn create(capacity_bytes: usize, max_len: usize) -> io::Result<(Guarded, OwnedFd)> {
        let least = 2 * super::entry_size(max_len.min(MAX_CAPACITY / 4));
        let capacity = capacity_bytes.clamp(MIN_CAPACITY.max(least), MAX_CAPACITY);
        let (region, fd) = Region::shared(capacity.next_power_of_two())?;
        let max_len = max_len.min(region.capacity() / 2 - super::HEADER);
        let guarded = Guarded {
            lane: Consumer {
                cursor: ReadCursor::new(0),
                next: 0,
                corruption: None,
                region,
            },
            copy: vec![[0; WORD]; max_len.div_ceil(WORD)].into(),
            max_len,
            copied: None,
            end: None,
        };
        Ok((guarded, fd))
    }

    /// The oldest message, without consuming it; `None` when there is none or the lane is corrupt.
    #[inline]
    pub fn peek(&mut self) -> Option<Entry<'_>> {
        if self.copied.is_none() {
            let Located { offset, len, tag } = self.locate()?;
            let words = self.lane.region.words(offset, len.next_multiple_of(WORD));
            slot::copy_words(words, &mut self.copy);
            self.copied = Some((len, tag));
        }
        let (len, tag) = self.copied?;
        let bytes = &self.copy.as_flattened()[..len];
        Some(Entry { tag, bytes })
    }

    #[inline]
    fn locate(&mut self) -> Option<Located> {
        if self.end.is_some() && self.is_at_end() {
            return None;
        }
        let available = self.lane.cursor.available(self.lane.region.indices());
        let located = self.lane.locate(available)?;
        if located.len > self.max_len {
            let head = self.lane.cursor.head();
            return self.lane.corrupt(head, located.len as u64, located.len as u32);
        }
        Some(located)
    }

    /// How much of the lane waits to be consumed.
    #[must_use]
    pub fn fill(&self) -> Fill {
        self.lane.fill()
    }

    /// Consumes the message that [`Self::peek`] showed; does nothing when none was. For the producer it is
    /// not taken before the next [`Self::flush`]: until then it would give it to the next reader if this one died.
    #[inline]
    pub fn advance(&mut self) {
        if self.copied.take().is_some() {
            self.lane.advance();
        }
    }

    /// Gives the room of all consumed messages back to the producer.
    #[inline]
    pub fn flush(&mut self) {
        self.lane.flush();
    }

    /// The producer is gone: what it has published up to now is still read, and nothing after it,
    /// whoever else has the memory.
    pub fn end_here(&mut self) {
        let published = self.lane.region.indices().published();
        self.end.get_or_insert(published);
    }

    fn is_at_end(&self) -> bool {
        // Positions wrap; one that the producer made up may lie anywhere.
        self.end
            .is_some_and(|end| end.wrapping_sub(self.lane.cursor.head()).cast_signed() <= 0)
    }

    /// Whether nothing will ever come again: as for [`Consumer::is_finished`], or all that was to be read
    /// of a producer that is gone has been read.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.is_at_end() || self.lane.is_finished()
    }

    /// As for [`Consumer::corruption`].
    #[must_use]
    pub fn corruption(&self) -> Option<Corruption> {
        self.lane.corruption
    }

    /// The message at hand is none: the lane yields nothing more.
    pub fn refuse(&mut self) {
        let (len, _) = self.copied.take().unwrap_or_default();
        let head = self.lane.cursor.head();
        self.lane.corrupt(head, len as u64, len as u32);
    }

    /// Says that the reader goes to sleep, or is awake. Before it sleeps it must issue a sequentially
    /// consistent fence, one for all its lanes, and look at them once more.
    pub fn set_asleep(&self, asleep: bool) {
        self.lane.region.indices().set_asleep(asleep);
    }

    /// A view for another thread that waits on the producer's behalf.
    #[must_use]
    pub fn watch(&self) -> LaneWatch {
        LaneWatch::new(&self.lane.region)
    }
}

/// Sees how far a lane was written and read. Whoever else has the memory can make it say anything.
pub struct LaneWatch(Region);

impl LaneWatch {
    pub(super) fn new(region: &Region) -> LaneWatch {
        LaneWatch(region.clone())
    }

    /// As for [`Producer::taken`](super::Producer::taken).
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.0.indices().taken()
    }

    /// Bytes that the producer says it has published.
    #[must_use]
    pub fn published(&self) -> u64 {
        self.0.indices().published()
    }
}
