//! A ring with one writer and any number of readers, none of which can slow the writer or each
//! other: readers write nothing. A reader that falls a whole ring behind is told exactly what it
//! missed.
//!
//! Message `n` lies in slot `n mod slots`. The memory may be shared with processes that are not
//! trusted: a reader checks all that it reads, and can be given memory that it cannot write.

use std::fmt;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::slot::{self, Found};
use crate::words::{Mapping, Words};

/// The most slots of a broadcast ring.
pub const MAX_SLOTS: usize = 1 << 20;
/// The longest message that any broadcast ring takes, in bytes.
pub const MAX_MESSAGE: usize = 64 << 10;

const WORD: usize = size_of::<u64>();
const LINE: usize = 64 / WORD;
/// Slots are a multiple of so many words.
const UNIT: usize = 2;
/// Words of the format, then of the writer's position, each on lines of their own, then the slots.
const MAGIC_AT: usize = 0;
const SLOTS_AT: usize = 1;
const STRIDE_AT: usize = 2;
const HEAD_AT: usize = 2 * LINE;
const CLOSED_AT: usize = HEAD_AT + 1;
const SLOTS_START: usize = 4 * LINE;
const MAGIC: u64 = u64::from_le_bytes(*b"sqcring1");

/// Where the slots lie. Each side keeps its own copy: what memory says is believed once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    mask: u64,
    /// Words of a slot.
    stride: usize,
}

impl Shape {
    fn new(slots: usize, max_len: usize) -> Shape {
        let slots = slots.clamp(2, MAX_SLOTS).next_power_of_two();
        let words = slot::HEADER + max_len.min(MAX_MESSAGE).div_ceil(WORD);
        Shape {
            mask: slots as u64 - 1,
            // Slots of 64 B messages thus lie on two lines each, wherever they begin.
            stride: words.next_multiple_of(UNIT),
        }
    }

    /// What the words say, if it is a ring that fits them.
    fn of(words: &[AtomicU64]) -> Option<Shape> {
        let word = |at: usize| words.get(at).map(|word| word.load(Ordering::Acquire));
        let (slots, stride) = (word(SLOTS_AT)?, word(STRIDE_AT)?);
        let longest = (slot::HEADER + MAX_MESSAGE / WORD).next_multiple_of(UNIT) as u64;
        let sound = word(MAGIC_AT)? == MAGIC
            && slots.is_power_of_two()
            && (2..=MAX_SLOTS as u64).contains(&slots)
            && (UNIT as u64..=longest).contains(&stride);
        let shape = Shape {
            mask: slots.wrapping_sub(1),
            stride: stride as usize,
        };
        (sound && words.len() >= shape.words()).then_some(shape)
    }

    fn words(self) -> usize {
        SLOTS_START + (self.mask as usize + 1) * self.stride
    }

    fn max_len(self) -> usize {
        (self.stride - slot::HEADER) * WORD
    }

    #[inline]
    fn slot(self, words: &[AtomicU64], number: u64) -> &[AtomicU64] {
        &words[SLOTS_START + (number & self.mask) as usize * self.stride..][..self.stride]
    }
}

/// Makes a ring of this process with one reader; more come from [`Reader::clone`].
///
/// `slots` is raised to a power of two from 2 to [`MAX_SLOTS`]; a slot takes messages of at least
/// `max_len` bytes, [`MAX_MESSAGE`] at most. A slot takes 16 bytes more than its message.
#[must_use]
pub fn broadcast(slots: usize, max_len: usize) -> (Broadcaster, Reader) {
    let shape = Shape::new(slots, max_len);
    let writer = Broadcaster::new(Words::new(shape.words()), shape);
    let reader = Reader::new(Arc::clone(&writer.words), shape);
    (writer, reader)
}

/// A message longer than the ring's slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge {
    /// Bytes of the message.
    pub len: usize,
    /// Bytes that the ring takes.
    pub max_len: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a message of {} bytes for a ring of {}", self.len, self.max_len)
    }
}

impl std::error::Error for TooLarge {}

/// The writing side. Dropping it closes the ring; what is in it can still be read.
pub struct Broadcaster {
    words: Arc<Words>,
    shape: Shape,
    /// Number of the next message.
    next: u64,
}

impl Broadcaster {
    /// Makes a ring in a memory file that other processes open with [`Reader::open`]. They cannot write
    /// it, shrink it or map it for writing. Sizes as in [`broadcast`].
    ///
    /// # Errors
    /// When the system is out of memory or file descriptors.
    pub fn shared(slots: usize, max_len: usize) -> io::Result<(Broadcaster, OwnedFd)> {
        let shape = Shape::new(slots, max_len);
        let (mapping, fd) = Mapping::create(shape.words(), false)?;
        Ok((Broadcaster::new(Words::mapped(mapping), shape), fd))
    }

    fn new(words: Words, shape: Shape) -> Broadcaster {
        words[SLOTS_AT].store(shape.mask + 1, Ordering::Relaxed);
        words[STRIDE_AT].store(shape.stride as u64, Ordering::Relaxed);
        words[MAGIC_AT].store(MAGIC, Ordering::Release);
        Broadcaster {
            words: Arc::new(words),
            shape,
            next: 0,
        }
    }

    /// The longest message, in bytes.
    #[must_use]
    pub fn max_len(&self) -> usize {
        self.shape.max_len()
    }

    /// Number of the next message; the first is 0.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// A view for another thread that waits on readers' behalf.
    #[must_use]
    pub fn watch(&self) -> BroadcastWatch {
        BroadcastWatch(Arc::clone(&self.words))
    }

    /// Publishes a message over the oldest one, whether or not anybody has read that. Returns its
    /// number. `tag` travels along.
    ///
    /// # Errors
    /// A message longer than [`Self::max_len`].
    #[inline]
    pub fn publish(&mut self, tag: u32, message: &[u8]) -> Result<u64, TooLarge> {
        self.publish_behind(tag, &[], message)
    }

    /// As [`Self::publish`], a message of two parts, the first of them whole words.
    ///
    /// # Errors
    /// As for [`Self::publish`], counting both.
    #[inline]
    pub fn publish_behind(&mut self, tag: u32, head: &[[u8; WORD]], message: &[u8]) -> Result<u64, TooLarge> {
        let (len, max_len) = (size_of_val(head) + message.len(), self.max_len());
        if len > max_len {
            return Err(TooLarge { len, max_len });
        }
        let number = self.next;
        slot::write(self.shape.slot(&self.words, number), number, tag, head, message);
        self.next = number + 1;
        self.words[HEAD_AT].store(self.next, Ordering::Release);
        Ok(number)
    }
}

/// Sees how far a ring was written, for another thread of the writer's process.
pub struct BroadcastWatch(Arc<Words>);

impl BroadcastWatch {
    /// Number of the next message.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.0[HEAD_AT].load(Ordering::Acquire)
    }
}

impl Drop for Broadcaster {
    fn drop(&mut self) {
        self.words[CLOSED_AT].store(1, Ordering::Release);
    }
}

/// What a reader finds next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read<'a> {
    /// A message, copied out of the ring.
    Message {
        /// Its number.
        number: u64,
        /// What the writer gave along.
        tag: u32,
        /// Its bytes.
        bytes: &'a [u8],
    },
    /// Messages that were overwritten before they were read. The next one follows them.
    Missed {
        /// The first of them.
        first: u64,
        /// How many.
        count: u64,
    },
}

/// The reading side. A clone reads on from the same message by itself.
pub struct Reader {
    words: Arc<Words>,
    shape: Shape,
    next: u64,
    corrupt: bool,
    buffer: Box<[[u8; WORD]]>,
    /// Bytes of the last message in it.
    filled: usize,
}

impl Reader {
    /// Opens a ring that another process made with [`Broadcaster::shared`]; starts with the next
    /// message to come.
    ///
    /// # Errors
    /// A file that is no ring, or not sealed against shrinking.
    pub fn open(fd: BorrowedFd<'_>) -> io::Result<Reader> {
        let words = Words::mapped(Mapping::open(fd, false)?);
        let shape = Shape::of(&words).ok_or_else(|| io::Error::other("this memory holds no broadcast ring"))?;
        Ok(Reader::new(Arc::new(words), shape))
    }

    fn new(words: Arc<Words>, shape: Shape) -> Reader {
        Reader {
            next: words[HEAD_AT].load(Ordering::Acquire),
            words,
            shape,
            corrupt: false,
            buffer: vec![[0; WORD]; shape.max_len() / WORD].into(),
            filled: 0,
        }
    }

    /// Number of the message that is read next.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// The next message, or what was missed before it; `None` when there is none yet.
    #[inline]
    pub fn read(&mut self) -> Option<Read<'_>> {
        let number = self.next;
        match slot::read(self.shape.slot(&self.words, number), number, &mut self.buffer) {
            Found::Nothing => None,
            Found::Message { tag, len } => {
                self.next = number.wrapping_add(1);
                self.filled = len;
                let bytes = &self.buffer.as_flattened()[..len];
                Some(Read::Message { number, tag, bytes })
            }
            Found::Overrun => self.overrun(),
            Found::Corrupt { .. } => {
                self.corrupt = true;
                None
            }
        }
    }

    /// The message that was read last; it stays here until the next one is read.
    #[inline]
    #[must_use]
    pub fn last(&self) -> &[u8] {
        &self.buffer.as_flattened()[..self.filled]
    }

    /// Whether there is something to [read](Self::read).
    #[must_use]
    pub fn has_next(&self) -> bool {
        self.words[HEAD_AT].load(Ordering::Acquire) != self.next
    }

    /// Whether the next message has been overwritten already, so that [`Self::read`] will report what was
    /// missed.
    #[must_use]
    pub fn is_overrun(&self) -> bool {
        let head = self.words[HEAD_AT].load(Ordering::Acquire);
        head.wrapping_sub(self.next) > self.shape.mask
    }

    /// Goes on with what is half a ring behind the writer: older messages would be gone too before they
    /// are read.
    #[cold]
    fn overrun(&mut self) -> Option<Read<'_>> {
        let first = self.next;
        let head = self.words[HEAD_AT].load(Ordering::Acquire);
        let count = head.wrapping_sub(first);
        if count <= self.shape.mask {
            // The slot was taken again, so the writer is a ring ahead, or lies.
            self.corrupt = true;
            return None;
        }
        let count = count - self.shape.mask.div_ceil(2);
        self.next = first.wrapping_add(count);
        Some(Read::Missed { first, count })
    }

    /// Whether nothing will ever come again: the writer has closed and everything is read, or the
    /// memory does not hold what a writer writes. A writer that was killed does not close.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        let word = |at: usize| self.words[at].load(Ordering::Acquire);
        self.corrupt || word(CLOSED_AT) != 0 && word(HEAD_AT) == self.next
    }

    /// Whether the reader stopped at something that no writer writes.
    #[must_use]
    pub fn is_corrupt(&self) -> bool {
        self.corrupt
    }
}

impl Clone for Reader {
    fn clone(&self) -> Reader {
        Reader {
            words: Arc::clone(&self.words),
            buffer: vec![[0; WORD]; self.buffer.len()].into(),
            filled: 0,
            ..*self
        }
    }
}

#[cfg(test)]
mod tests;
