//! The index protocol of a lane: two positions, each written by one side only. No memory but the
//! positions is touched here, so that the whole protocol runs under loom.
//!
//! Positions count bytes since creation and wrap at 2^64. The producer owns the bytes from `tail` to
//! `head + capacity`, the consumer those from `head` to `tail`; a position is stored with release
//! once its owner is done with the bytes and loaded with acquire before the other side touches them.

use crossbeam_utils::CachePadded;

#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

/// What one side tells the other.
#[repr(C)]
struct Side {
    position: AtomicU64,
    closed: AtomicU32,
    /// The consumer's: whether it sleeps, or is about to.
    asleep: AtomicU32,
}

/// The shared words of a lane, each side's on cache lines of its own.
#[repr(C)]
pub(crate) struct Indices {
    producer: CachePadded<Side>,
    consumer: CachePadded<Side>,
}

impl Indices {
    /// Both sides open and at position `start`.
    pub(crate) fn new(start: u64) -> Self {
        let side = || {
            CachePadded::new(Side {
                position: AtomicU64::new(start),
                closed: AtomicU32::new(0),
                asleep: AtomicU32::new(0),
            })
        };
        Indices {
            producer: side(),
            consumer: side(),
        }
    }

    pub(crate) fn close_producer(&self) {
        self.producer.closed.store(1, Ordering::Release);
    }

    #[cfg(not(loom))]
    pub(crate) fn close_consumer(&self) {
        self.consumer.closed.store(1, Ordering::Release);
    }

    #[cfg(not(loom))]
    pub(crate) fn consumer_closed(&self) -> bool {
        self.consumer.closed.load(Ordering::Acquire) != 0
    }

    /// How far the producer says it has published.
    #[cfg(not(loom))]
    pub(crate) fn published(&self) -> u64 {
        self.producer.position.load(Ordering::Acquire)
    }

    /// How far the consumer says it has read.
    #[cfg(not(loom))]
    pub(crate) fn taken(&self) -> u64 {
        self.consumer.position.load(Ordering::Acquire)
    }

    /// The consumer goes to sleep, or is awake again. Before it sleeps it must issue a sequentially
    /// consistent fence, one for all its lanes, and look at them once more.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.consumer.asleep.store(u32::from(asleep), Ordering::Relaxed);
    }

    /// For the producer, after it has published: whether it is to wake the consumer. True once a sleep.
    #[inline]
    pub(crate) fn take_asleep(&self) -> bool {
        // With the consumer's fence: either its last look sees what was published, or this sees it asleep.
        fence(Ordering::SeqCst);
        self.consumer.asleep.load(Ordering::Relaxed) != 0 && self.consumer.asleep.swap(0, Ordering::Relaxed) != 0
    }

    /// The producer has closed and nothing is left behind `head`. The flag is read first: the
    /// producer sets it after its last position.
    pub(crate) fn finished(&self, head: u64) -> bool {
        self.producer.closed.load(Ordering::Acquire) != 0 && self.producer.position.load(Ordering::Acquire) == head
    }
}

/// The producer's side: its own position and the last seen position of the consumer.
pub(crate) struct WriteCursor {
    tail: u64,
    head: u64,
    capacity: u64,
}

impl WriteCursor {
    pub(crate) fn new(start: u64, capacity: u64) -> Self {
        WriteCursor {
            tail: start,
            head: start,
            capacity,
        }
    }

    #[inline]
    pub(crate) fn tail(&self) -> u64 {
        self.tail
    }

    /// Whether `n` bytes from [`Self::tail`] on belong to the producer.
    #[inline]
    pub(crate) fn has_room(&mut self, shared: &Indices, n: u64) -> bool {
        if self.room() >= n {
            return true;
        }
        self.head = shared.consumer.position.load(Ordering::Acquire);
        self.room() >= n
    }

    /// A head that makes no sense (in shared memory anyone may have written it) leaves no room.
    fn room(&self) -> u64 {
        self.capacity.saturating_sub(self.tail.wrapping_sub(self.head))
    }

    /// Moves past the next `n` bytes; the consumer learns of it with the next [`Self::publish`].
    #[inline]
    pub(crate) fn stage(&mut self, n: u64) {
        self.tail = self.tail.wrapping_add(n);
    }

    /// Gives all staged bytes to the consumer.
    #[inline]
    pub(crate) fn publish(&mut self, shared: &Indices) {
        shared.producer.position.store(self.tail, Ordering::Release);
    }
}

/// The consumer's side: its own position, how much of it the producer knows, and the last seen
/// position of the producer.
pub(crate) struct ReadCursor {
    head: u64,
    published: u64,
    tail: u64,
}

impl ReadCursor {
    pub(crate) fn new(start: u64) -> Self {
        ReadCursor {
            head: start,
            published: start,
            tail: start,
        }
    }

    #[inline]
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// How many bytes from [`Self::head`] on belong to the consumer. Looks for new ones when all seen
    /// bytes are consumed.
    #[inline]
    pub(crate) fn available(&mut self, shared: &Indices) -> u64 {
        if self.tail == self.head {
            self.tail = shared.producer.position.load(Ordering::Acquire);
        }
        self.tail.wrapping_sub(self.head)
    }

    /// The same; before it looks for new ones it gives the consumed bytes back.
    #[inline]
    pub(crate) fn available_after_release(&mut self, shared: &Indices) -> u64 {
        if self.tail == self.head {
            self.release(shared);
        }
        self.available(shared)
    }

    /// Consumes up to position `to`; the producer learns of it with the next [`Self::release`].
    #[inline]
    pub(crate) fn consume(&mut self, to: u64) {
        self.head = to;
    }

    /// Gives all consumed bytes back to the producer.
    pub(crate) fn release(&mut self, shared: &Indices) {
        if self.published != self.head {
            self.published = self.head;
            shared.consumer.position.store(self.head, Ordering::Release);
        }
    }
}

#[cfg(all(test, loom))]
mod tests {
    use super::*;
    use loom::cell::UnsafeCell;
    use loom::sync::Arc;
    use loom::thread;

    const CAPACITY: u64 = 2;

    struct Ring {
        indices: Indices,
        // loom reports an access that is not ordered after the other side's.
        slots: [UnsafeCell<u64>; CAPACITY as usize],
    }

    fn slot(ring: &Ring, position: u64) -> &UnsafeCell<u64> {
        &ring.slots[(position % CAPACITY) as usize]
    }

    /// Every value arrives once and in order, slots are never touched by both sides at once, and a
    /// closed lane reads as finished only when it is empty.
    fn check(start: u64, values: u64, release_each: bool) {
        loom::model(move || {
            let ring = Arc::new(Ring {
                indices: Indices::new(start),
                slots: [UnsafeCell::new(0), UnsafeCell::new(0)],
            });
            let producer = thread::spawn({
                let ring = ring.clone();
                move || {
                    let mut cursor = WriteCursor::new(start, CAPACITY);
                    for value in 1..=values {
                        while !cursor.has_room(&ring.indices, 1) {
                            thread::yield_now();
                        }
                        // SAFETY: loom checks the access.
                        slot(&ring, cursor.tail()).with_mut(|p| unsafe { *p = value });
                        cursor.stage(1);
                        cursor.publish(&ring.indices);
                    }
                    ring.indices.close_producer();
                }
            });
            let mut cursor = ReadCursor::new(start);
            let mut expected = 1;
            loop {
                let finished = ring.indices.finished(cursor.head());
                let n = cursor.available_after_release(&ring.indices);
                assert!(n <= CAPACITY);
                assert!(!finished || n == 0);
                for _ in 0..n {
                    // SAFETY: loom checks the access.
                    let value = slot(&ring, cursor.head()).with(|p| unsafe { *p });
                    assert_eq!(value, expected);
                    expected += 1;
                    cursor.consume(cursor.head().wrapping_add(1));
                    if release_each {
                        cursor.release(&ring.indices);
                    }
                }
                if finished {
                    break;
                }
                if n == 0 {
                    thread::yield_now();
                }
            }
            assert_eq!(expected, values + 1);
            producer.join().unwrap();
        });
    }

    #[test]
    fn values_arrive_in_order_when_released_in_batches() {
        check(0, 3, false);
    }

    #[test]
    fn values_arrive_in_order_when_released_one_by_one() {
        check(0, 3, true);
    }

    /// A consumer that sleeps when it finds nothing is woken by each producer whose lane it armed.
    #[test]
    fn no_wake_up_is_lost_between_two_lanes_and_their_reader() {
        let mut model = loom::model::Builder::new();
        // All interleavings pass too, in minutes.
        model.preemption_bound = Some(3);
        model.check(|| {
            let event = Arc::new(crate::event::Event::new().unwrap());
            let lanes = [(); 2].map(|()| Arc::new(Indices::new(0)));
            let producers = lanes.clone().map(|lane| {
                let event = event.clone();
                thread::spawn(move || {
                    let mut cursor = WriteCursor::new(0, CAPACITY);
                    cursor.stage(1);
                    cursor.publish(&lane);
                    if lane.take_asleep() {
                        event.raise();
                    }
                })
            });
            let mut cursors = [(); 2].map(|()| ReadCursor::new(0));
            let mut seen = |lanes: &[Arc<Indices>; 2]| cursors.iter_mut().zip(lanes).all(|(c, l)| c.available(l) == 1);
            while !seen(&lanes) {
                lanes.iter().for_each(|lane| lane.set_asleep(true));
                fence(Ordering::SeqCst);
                if !seen(&lanes) {
                    event.wait();
                }
                lanes.iter().for_each(|lane| lane.set_asleep(false));
                event.clear();
            }
            producers.map(|p| p.join().unwrap());
        });
    }

    #[test]
    fn positions_may_wrap() {
        check(u64::MAX, 3, false);
    }
}
