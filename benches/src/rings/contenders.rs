//! The queues, each in its own best way.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use disruptor::{EventPoller, MultiProducerBarrier, SingleProducerBarrier};
use seqcast_ring::{Broadcaster, Consumer, Producer, Read, Reader};

use super::{DEPTH, Message};

/// The sending side.
pub(super) trait Put: Send {
    /// Puts up to `count` messages, made by `next`, so that they become visible at once if the queue has
    /// a way to do that. Returns how many were taken.
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize;
}

/// The receiving side.
pub(super) trait Take: Send {
    /// Hands what is there to `each`, within a bound. Returns how many there were.
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize;
}

impl Put for Producer {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        let mut taken = 0;
        while taken < count {
            let Ok(mut claim) = self.try_claim(size_of::<Message>()) else {
                break;
            };
            claim.copy_from_slice(&next());
            claim.stage();
            taken += 1;
        }
        self.flush();
        taken
    }
}

impl Take for Consumer {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        let Some(entry) = self.peek() else { return 0 };
        if let Ok(message) = entry.bytes.try_into() {
            each(message);
        }
        self.advance();
        1
    }
}

/// A broadcast ring with a harness that holds the writer back before it overruns the reader, since
/// what was lost cannot be held against what was delivered. The ring itself has no such word.
pub(super) struct Paced<'a> {
    writer: Broadcaster,
    read: &'a CachePadded<AtomicU64>,
    /// What `read` was when last looked at.
    seen: u64,
}

/// The reader with its side of the harness.
pub(super) struct Counted<'a> {
    reader: Reader,
    read: &'a CachePadded<AtomicU64>,
}

/// Messages after which a reader says how far it is.
const SAY_EVERY: u64 = 512;

pub(super) fn paced(read: &CachePadded<AtomicU64>) -> (Paced<'_>, Counted<'_>) {
    let (writer, reader) = seqcast_ring::broadcast(DEPTH, size_of::<Message>());
    (Paced { writer, read, seen: 0 }, Counted { reader, read })
}

impl Put for Paced<'_> {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        for taken in 0..count {
            if self.writer.next() - self.seen >= DEPTH as u64 {
                self.seen = self.read.load(Ordering::Relaxed);
                if self.writer.next() - self.seen >= DEPTH as u64 {
                    return taken;
                }
            }
            let _ = self.writer.publish(0, &next());
        }
        count
    }
}

impl Take for Counted<'_> {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        match self.reader.read() {
            Some(Read::Message { number, bytes, .. }) => {
                if let Ok(message) = bytes.try_into() {
                    each(message);
                }
                if number % SAY_EVERY == 0 {
                    self.read.store(number, Ordering::Relaxed);
                }
                1
            }
            // Cannot happen to a paced ring, and would show as a lower rate.
            Some(Read::Missed { .. }) | None => 0,
        }
    }
}

/// One at a time.
pub(super) struct Rtrb<T>(pub(super) T);
/// In chunks.
pub(super) struct Chunks<T>(pub(super) T);

impl Put for Rtrb<rtrb::Producer<Message>> {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        (0..count)
            .take_while(|_| !self.0.is_full() && self.0.push(next()).is_ok())
            .count()
    }
}

impl Take for Rtrb<rtrb::Consumer<Message>> {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        self.0.pop().map(each).is_ok().into()
    }
}

impl Put for Chunks<rtrb::Producer<Message>> {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        let chunk = self.0.write_chunk_uninit(count);
        chunk.map_or(0, |chunk| chunk.fill_from_iter(std::iter::repeat_with(next)))
    }
}

impl Take for Chunks<rtrb::Consumer<Message>> {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        let count = self.0.slots();
        let chunk = self.0.read_chunk(count);
        chunk.map_or(0, |chunk| chunk.into_iter().map(each).count())
    }
}

impl Put for &ArrayQueue<Message> {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        (0..count)
            .take_while(|_| !self.is_full() && self.push(next()).is_ok())
            .count()
    }
}

impl Take for &ArrayQueue<Message> {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        self.pop().map(each).is_some().into()
    }
}

/// Either producer of the disruptor.
pub(super) struct Publish<T>(pub(super) T);

impl<T: disruptor::Producer<Message> + Send> Put for Publish<T> {
    #[inline]
    fn put(&mut self, count: usize, next: &mut impl FnMut() -> Message) -> usize {
        let done = if count == 1 {
            self.0.try_publish(|event| *event = next()).is_ok()
        } else {
            let published = self
                .0
                .try_batch_publish(count, |events| events.for_each(|event| *event = next()));
            published.is_ok()
        };
        if done { count } else { 0 }
    }
}

/// The disruptor's consumer on a thread of our own; it always takes all that is there.
macro_rules! take_from_poller {
    ($($barrier:ty),*) => {$(
        impl Take for EventPoller<Message, $barrier> {
            #[inline]
            fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
                let Ok(mut events) = self.poll() else { return 0 };
                (&mut events).map(|event| each(*event)).count()
            }
        }
    )*};
}
take_from_poller!(SingleProducerBarrier, MultiProducerBarrier);

/// Two lanes, polled in turn, as the engine polls its producers.
pub(super) struct Lanes(pub(super) [Consumer; 2]);

impl Take for Lanes {
    #[inline]
    fn take(&mut self, each: &mut impl FnMut(Message)) -> usize {
        self.0.iter_mut().map(|lane| lane.take(each)).sum()
    }
}
