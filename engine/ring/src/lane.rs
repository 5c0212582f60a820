//! Single-producer single-consumer ring of variable-length messages.
//!
//! An entry is a header word (length in the low half, tag in the high half) and the message, padded
//! to 8 bytes and never split: an entry that would cross the end is preceded by a filler entry
//! that covers the rest. The two are published together.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use crate::cursor::{Indices, ReadCursor, WriteCursor};
use crate::memory::Region;

/// The smallest lane, in bytes.
pub const MIN_CAPACITY: usize = 64;
/// The largest lane, in bytes.
pub const MAX_CAPACITY: usize = 1 << 30;

const HEADER: usize = 8;
/// The length that marks a filler entry; no message is that long.
const FILLER: u32 = u32::MAX;

/// Makes a lane of `capacity_bytes`, raised to a power of two and to the range [`MIN_CAPACITY`] to
/// [`MAX_CAPACITY`]. A message takes 8 bytes more than its length, rounded up to 8.
#[must_use]
pub fn lane(capacity_bytes: usize) -> (Producer, Consumer) {
    lane_at(capacity_bytes, 0)
}

fn lane_at(capacity_bytes: usize, start: u64) -> (Producer, Consumer) {
    let capacity = capacity_bytes.clamp(MIN_CAPACITY, MAX_CAPACITY).next_power_of_two();
    let region = Region::new(capacity, start);
    let producer = Producer {
        cursor: WriteCursor::new(start, capacity as u64),
        region: region.clone(),
    };
    let consumer = Consumer {
        cursor: ReadCursor::new(start),
        next: start,
        corruption: None,
        region,
    };
    (producer, consumer)
}

/// The bytes that a message of `len` takes.
fn entry_size(len: usize) -> usize {
    HEADER + len.next_multiple_of(8)
}

fn header(len: u32, tag: u32) -> u64 {
    u64::from(len) | u64::from(tag) << 32
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LaneError {
    /// No room until the consumer has read more.
    Full,
    /// Longer than [`Producer::max_len`]: no wait will help.
    TooLarge,
}

impl fmt::Display for LaneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LaneError::Full => "the lane is full until its reader catches up",
            LaneError::TooLarge => "the message is larger than half of the lane",
        })
    }
}

impl std::error::Error for LaneError {}

/// What the producer wrote is not a lane: the consumer stopped before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The position of the bad entry, in bytes since the lane was made.
    pub position: u64,
    /// How many bytes the producer claims to have published there.
    pub available: u64,
    /// The entry's length word; `u32::MAX` stands for a filler entry.
    pub length: u32,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lane corrupt at byte {}: length {:#x} with {} bytes published; drop this producer",
            self.position, self.length, self.available
        )
    }
}

impl std::error::Error for Corruption {}

/// The writing side of a lane. Dropping it closes the lane; what is committed can still be read.
pub struct Producer {
    cursor: WriteCursor,
    region: Region,
}

impl Producer {
    /// The longest message that the lane takes, in bytes: an entry may fill half of the lane, so
    /// that it always finds contiguous room once the reader has caught up.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.region.capacity() / 2 - HEADER
    }

    /// Claims room for a message of `len` bytes, to be written in place and committed. The bytes
    /// hold leftovers of earlier messages.
    ///
    /// # Errors
    /// [`LaneError::Full`] or [`LaneError::TooLarge`].
    #[inline]
    pub fn try_claim(&mut self, len: usize) -> Result<Claim<'_>, LaneError> {
        if len > self.max_len() {
            return Err(LaneError::TooLarge);
        }
        let capacity = self.region.capacity();
        let offset = self.cursor.tail() as usize & (capacity - 1);
        let size = entry_size(len);
        let rest = capacity - offset;
        let filler = if size <= rest { 0 } else { rest };
        if !self.cursor.has_room(self.region.indices(), (filler + size) as u64) {
            return Err(LaneError::Full);
        }
        let start = (offset + filler) & (capacity - 1);
        let message = self.region.at(start, size).wrapping_add(HEADER);
        Ok(Claim {
            // SAFETY: `at` checked that the entry lies in the region, which `self` keeps alive.
            // `has_room` says that the bytes are the producer's until published, the region's bytes
            // are initialised, and the claim borrows the only producer mutably.
            bytes: unsafe { std::slice::from_raw_parts_mut(message, len) },
            cursor: &mut self.cursor,
            region: &self.region,
            offset,
            filler,
            tag: 0,
        })
    }

    /// Copies a message, given in parts, into the lane.
    ///
    /// # Errors
    /// As for [`Self::try_claim`]; nothing is written then.
    #[inline]
    pub fn try_push(&mut self, tag: u32, parts: &[&[u8]]) -> Result<(), LaneError> {
        let mut claim = self.try_claim(parts.iter().map(|p| p.len()).sum())?;
        let mut at = 0;
        for part in parts {
            claim[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        claim.set_tag(tag);
        claim.commit();
        Ok(())
    }

    /// Publishes all messages that were [staged](Claim::stage).
    #[inline]
    pub fn flush(&mut self) {
        self.cursor.publish(self.region.indices());
    }

    /// Makes a lane in a memory file that keeps its size, for the process that opens it with
    /// [`Consumer::open`] and may do with it what it likes: all that suffers are messages to itself.
    ///
    /// # Errors
    /// When the system is out of memory or file descriptors.
    pub fn create(capacity_bytes: usize) -> io::Result<(Producer, OwnedFd)> {
        let capacity = capacity_bytes.clamp(MIN_CAPACITY, MAX_CAPACITY).next_power_of_two();
        let (region, fd) = Region::shared(capacity)?;
        Ok((Producer::at_start(region), fd))
    }

    fn at_start(region: Region) -> Producer {
        Producer {
            cursor: WriteCursor::new(0, region.capacity() as u64),
            region,
        }
    }

    /// Opens the writing side of a lane that an engine made with [`Guarded::create`].
    ///
    /// # Errors
    /// A file that is no lane, or not sealed against shrinking.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Producer> {
        Ok(Producer::at_start(Region::open(fd)?))
    }

    /// After a commit or flush: whether the consumer sleeps and is to be woken. True once a sleep.
    #[inline]
    #[must_use]
    pub fn take_asleep(&self) -> bool {
        self.region.indices().take_asleep()
    }

    /// Bytes that the consumer has taken since the lane was made; grows when it gives room back.
    #[must_use]
    pub fn taken(&self) -> u64 {
        self.region.indices().taken()
    }

    /// A view for another thread that waits on the other side's behalf.
    #[must_use]
    pub fn watch(&self) -> LaneWatch {
        LaneWatch::new(&self.region)
    }

    /// How much of the lane the consumer has not given back.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let indices = self.region.indices();
        Fill::of(
            indices.published().wrapping_sub(indices.taken()),
            self.region.capacity(),
        )
    }

    /// Whether the consumer has taken all that was published.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.taken() == self.region.indices().published()
    }

    /// Calls `each` with the messages (tag, bytes) that the consumer has not taken and, as it is gone,
    /// never will.
    pub fn into_untaken(self, mut each: impl FnMut(u32, &[u8])) {
        let taken = self.taken();
        let mut rest = Consumer {
            cursor: ReadCursor::new(taken),
            next: taken,
            corruption: None,
            region: self.region.clone(),
        };
        rest.drain(usize::MAX, |tag, bytes| {
            each(tag, bytes);
            true
        });
    }

    /// Whether the consumer is gone: nothing written from now on will be read.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.region.indices().consumer_closed()
    }
}

impl Drop for Producer {
    fn drop(&mut self) {
        self.flush();
        self.region.indices().close_producer();
    }
}

/// Room for one message. Dropping it without [`Claim::commit`] leaves the lane as it was.
pub struct Claim<'a> {
    bytes: &'a mut [u8],
    cursor: &'a mut WriteCursor,
    region: &'a Region,
    offset: usize,
    filler: usize,
    tag: u32,
}

impl Claim<'_> {
    /// Sets the number that travels with the message; 0 unless set. Its meaning is the caller's.
    pub fn set_tag(&mut self, tag: u32) {
        self.tag = tag;
    }

    /// Publishes the message, and those staged before it.
    #[inline]
    pub fn commit(self) {
        self.stage_and(WriteCursor::publish);
    }

    /// As [`Self::commit`]; says whether the consumer sleeps and is to be woken, as
    /// [`Producer::take_asleep`] does.
    #[inline]
    #[must_use]
    pub fn commit_to_sleeper(self) -> bool {
        let region = self.region;
        self.commit();
        region.indices().take_asleep()
    }

    /// Puts the message into the lane, to be published with later ones by [`Producer::flush`] or
    /// [`Claim::commit`].
    #[inline]
    pub fn stage(self) {
        self.stage_and(|_, _| ());
    }

    #[inline]
    fn stage_and(self, then: impl FnOnce(&mut WriteCursor, &Indices)) {
        let size = entry_size(self.bytes.len());
        let start = (self.offset + self.filler) & (self.region.capacity() - 1);
        // The length fits: it is at most half of MAX_CAPACITY.
        let word = header(self.bytes.len() as u32, self.tag);
        // SAFETY: both words lie in the region (checked by `at`) and are 8-byte aligned, because
        // the entries start aligned and sizes and the capacity are multiples of 8. Both belong to
        // the producer until `publish`, and neither overlaps `bytes`.
        unsafe {
            if self.filler > 0 {
                self.region
                    .at(self.offset, HEADER)
                    .cast::<u64>()
                    .write(header(FILLER, 0));
            }
            self.region.at(start, HEADER).cast::<u64>().write(word);
        }
        self.cursor.stage((self.filler + size) as u64);
        then(self.cursor, self.region.indices());
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Claim<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

/// How full a lane is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Bytes that wait, headers and padding included.
    pub used: u64,
    /// Bytes for which there is room.
    pub size: u64,
}

impl Fill {
    /// In shared memory the other side can make it say anything, but no more than the lane takes.
    fn of(used: u64, capacity: usize) -> Fill {
        let size = capacity as u64;
        Fill {
            used: used.min(size),
            size,
        }
    }

    /// Parts of a hundred.
    #[must_use]
    pub fn percent(self) -> u64 {
        self.used * 100 / self.size.max(1)
    }
}

/// One message of a lane, lent from the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The number that the producer set.
    pub tag: u32,
    /// The message. When the lane is shared with a process that is not trusted, copy the bytes
    /// before checking them: that process can still change them.
    pub bytes: &'a [u8],
}

/// Where an entry's message lies.
struct Located {
    offset: usize,
    len: usize,
    tag: u32,
}

/// The reading side of a lane. Dropping it tells the producer that nobody reads any more.
pub struct Consumer {
    cursor: ReadCursor,
    /// Where the entry behind the peeked one starts; the cursor's head when nothing is peeked.
    next: u64,
    corruption: Option<Corruption>,
    region: Region,
}

impl Consumer {
    /// Opens the reading side of a lane that an engine made with [`Producer::create`].
    ///
    /// # Errors
    /// A file that is no lane, or not sealed against shrinking.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Consumer> {
        Ok(Consumer {
            cursor: ReadCursor::new(0),
            next: 0,
            corruption: None,
            region: Region::open(fd)?,
        })
    }

    /// Bytes of the lane that were consumed since it was made.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.cursor.head()
    }

    /// How much of the lane waits to be consumed.
    #[must_use]
    pub fn fill(&self) -> Fill {
        let waiting = self.region.indices().published().wrapping_sub(self.cursor.head());
        Fill::of(waiting, self.region.capacity())
    }

    /// The oldest message, without consuming it; `None` when there is none or the lane is corrupt.
    #[inline]
    pub fn peek(&mut self) -> Option<Entry<'_>> {
        let available = self.cursor.available_after_release(self.region.indices());
        let Located { offset, len, tag } = self.locate(available)?;
        let bytes = self.bytes(offset, len);
        Some(Entry { tag, bytes })
    }

    /// A message that [`Self::locate`] has found.
    #[inline]
    fn bytes(&self, offset: usize, len: usize) -> &[u8] {
        // SAFETY: `at` checks that the message lies in the region, which `self` keeps alive. The bytes are
        // initialised and the consumer's until the head moves past them, which takes `&mut self` and so
        // ends this borrow.
        unsafe { std::slice::from_raw_parts(self.region.at(offset, len), len) }
    }

    /// Finds the oldest message of so many bytes and checks that its entry lies in the region.
    #[inline]
    fn locate(&mut self, mut available: u64) -> Option<Located> {
        let capacity = self.region.capacity();
        let mut head = self.cursor.head();
        if available == 0 || self.corruption.is_some() {
            return None;
        }
        // Everything below is read from memory that the producer may have filled with anything.
        // A filler entry is followed by a message at offset 0, so the second turn decides.
        for filler_allowed in [true, false] {
            let offset = head as usize & (capacity - 1);
            let rest = capacity - offset;
            let word = self.header_at(offset);
            let (length, tag) = (word as u32, (word >> 32) as u32);
            // `rest` is at least HEADER: positions and the capacity are multiples of 8.
            if available > capacity as u64 || available < HEADER as u64 {
                return self.corrupt(head, available, length);
            }
            if length == FILLER && filler_allowed && (rest as u64) < available {
                head = head.wrapping_add(rest as u64);
                available -= rest as u64;
                continue;
            }
            let len = length as usize;
            if len > rest - HEADER || entry_size(len) as u64 > available {
                return self.corrupt(head, available, length);
            }
            self.next = head.wrapping_add(entry_size(len) as u64);
            let offset = offset + HEADER;
            return Some(Located { offset, len, tag });
        }
        self.corrupt(head, available, FILLER)
    }

    /// Reads the header word at `offset`, once, whatever the other side does to it meanwhile.
    #[inline]
    fn header_at(&self, offset: usize) -> u64 {
        // The consumer's own position only moves by whole entries, so the offset is a multiple of 8.
        self.region.words(offset, HEADER)[0].load(Ordering::Relaxed)
    }

    #[cold]
    fn corrupt(&mut self, position: u64, available: u64, length: u32) -> Option<Located> {
        self.corruption = Some(Corruption {
            position,
            available,
            length,
        });
        None
    }

    /// Consumes the entry that [`Self::peek`] showed; does nothing when none was. The room goes back
    /// to the producer with the next [`Self::flush`] or when all that was seen is consumed.
    #[inline]
    pub fn advance(&mut self) {
        self.cursor.consume(self.next);
    }

    /// Gives the room of all consumed messages back to the producer.
    #[inline]
    pub fn flush(&mut self) {
        self.cursor.release(self.region.indices());
    }

    /// Hands at most `max` messages (tag, bytes) to `f` until it returns false, which leaves that
    /// message in the lane. Returns how many were consumed and gives their room back.
    #[inline]
    pub fn drain(&mut self, max: usize, mut f: impl FnMut(u32, &[u8]) -> bool) -> usize {
        let mut n = 0;
        while n < max {
            match self.peek() {
                Some(entry) if f(entry.tag, entry.bytes) => self.advance(),
                _ => break,
            }
            n += 1;
        }
        self.flush();
        n
    }

    /// Whether nothing will ever come again: the producer has closed and everything is consumed, or
    /// the lane is corrupt.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.corruption.is_some() || self.region.indices().finished(self.cursor.head())
    }

    /// What was wrong, when the producer wrote something that is not a message. The lane then
    /// yields nothing more and counts as finished.
    #[must_use]
    pub fn corruption(&self) -> Option<Corruption> {
        self.corruption
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.region.indices().close_consumer();
    }
}

mod guarded;

pub use guarded::{Guarded, LaneWatch};

#[cfg(test)]
mod tests;
