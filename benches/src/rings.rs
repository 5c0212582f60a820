//! Messages of 64 bytes from core to core inside a process: the engine's lane beside well-known queues.
//!
//! Every consumer copies the message out. Messages go one at a time: none of the queues is given a
//! batch.

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use hdrhistogram::Histogram;

use crate::duel::histogram;
use crate::pair::pin;

type Message = [u8; 64];

/// Messages that the queues hold.
const DEPTH: usize = 4096;
/// A lane with as many messages (and their 8-byte headers) as fit a power of two near it.
const LANE: usize = 256 << 10;

/// The queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    Lane,
    Rtrb,
    ArrayQueue,
    /// Two cache lines written in turn: no queue can be faster there and back.
    Lines,
}

impl Ring {
    pub(crate) const ALL: [Ring; 4] = [Ring::Lines, Ring::Lane, Ring::Rtrb, Ring::ArrayQueue];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Ring::Lane => "Seqcast lane",
            Ring::Rtrb => "rtrb",
            Ring::ArrayQueue => "crossbeam ArrayQueue",
            Ring::Lines => "two cache lines",
        }
    }
}

trait Push: Send {
    fn push(&mut self, message: &Message) -> bool;
}

trait Pop: Send {
    fn pop(&mut self) -> Option<Message>;
}

impl Push for seqcast_ring::Producer {
    #[inline]
    fn push(&mut self, message: &Message) -> bool {
        self.try_push(0, &[message]).is_ok()
    }
}

impl Pop for seqcast_ring::Consumer {
    #[inline]
    fn pop(&mut self) -> Option<Message> {
        let message = self.peek()?.bytes.try_into().ok();
        self.advance();
        message
    }
}

impl Push for rtrb::Producer<Message> {
    #[inline]
    fn push(&mut self, message: &Message) -> bool {
        rtrb::Producer::push(self, *message).is_ok()
    }
}

impl Pop for rtrb::Consumer<Message> {
    #[inline]
    fn pop(&mut self) -> Option<Message> {
        rtrb::Consumer::pop(self).ok()
    }
}

impl Push for &ArrayQueue<Message> {
    #[inline]
    fn push(&mut self, message: &Message) -> bool {
        ArrayQueue::push(self, *message).is_ok()
    }
}

impl Pop for &ArrayQueue<Message> {
    #[inline]
    fn pop(&mut self) -> Option<Message> {
        ArrayQueue::pop(self)
    }
}

/// Messages a second one way; `None` for what is no queue.
pub(crate) fn stream(ring: Ring, cores: [CoreId; 2], time: Duration) -> Result<Option<f64>> {
    Ok(Some(match ring {
        Ring::Lane => {
            let (push, pop) = seqcast_ring::lane(LANE);
            rate(push, pop, cores, time)?
        }
        Ring::Rtrb => {
            let (push, pop) = rtrb::RingBuffer::new(DEPTH);
            rate(push, pop, cores, time)?
        }
        Ring::ArrayQueue => {
            let queue = ArrayQueue::new(DEPTH);
            rate(&queue, &queue, cores, time)?
        }
        Ring::Lines => return Ok(None),
    }))
}

/// Nanoseconds there and back over two rings.
pub(crate) fn round_trip(ring: Ring, cores: [CoreId; 2], time: Duration) -> Result<Histogram<u64>> {
    match ring {
        Ring::Lane => {
            let ((a, b), (c, d)) = (seqcast_ring::lane(LANE), seqcast_ring::lane(LANE));
            trips((a, d), (c, b), cores, time)
        }
        Ring::Rtrb => {
            let ((a, b), (c, d)) = (rtrb::RingBuffer::new(DEPTH), rtrb::RingBuffer::new(DEPTH));
            trips((a, d), (c, b), cores, time)
        }
        Ring::ArrayQueue => {
            let (there, back) = (ArrayQueue::new(DEPTH), ArrayQueue::new(DEPTH));
            trips((&there, &back), (&back, &there), cores, time)
        }
        Ring::Lines => lines(cores, time),
    }
}

fn rate(mut push: impl Push, mut pop: impl Pop, cores: [CoreId; 2], time: Duration) -> Result<f64> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            pin(cores[0])?;
            let mut message = [0; 64];
            for number in 0u64.. {
                message[..8].copy_from_slice(&number.to_ne_bytes());
                while !push.push(&message) {
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    spin_loop();
                }
            }
            Ok(())
        });
        let receiver = scope.spawn(|| {
            let pinned = pin(cores[1]);
            let start = Instant::now();
            let mut count = 0u64;
            for turn in 0u64.. {
                if let Some(message) = pop.pop() {
                    black_box(message);
                    count += 1;
                } else {
                    spin_loop();
                }
                if turn % 1024 == 0 && start.elapsed() >= time {
                    break;
                }
            }
            let rate = count as f64 / start.elapsed().as_secs_f64();
            // The sender notices when the queue is full.
            stop.store(true, Ordering::Relaxed);
            pinned.map(|()| rate)
        });
        let sent: Result<()> = sender.join().map_err(|_| anyhow!("a thread panicked"))?;
        let rate = receiver.join().map_err(|_| anyhow!("a thread panicked"))?;
        sent.and(rate)
    })
}

fn trips(
    (mut push, mut pop): (impl Push, impl Pop),
    (mut push_back, mut pop_there): (impl Push, impl Pop),
    cores: [CoreId; 2],
    time: Duration,
) -> Result<Histogram<u64>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let pinned = pin(cores[1]);
            while !stop.load(Ordering::Relaxed) {
                if let Some(message) = pop_there.pop() {
                    while !push_back.push(&message) {}
                }
            }
            pinned
        });
        let asker = scope.spawn(|| {
            let pinned = pin(cores[0]);
            let mut histogram = histogram();
            let start = Instant::now();
            let mut before = start;
            while before - start < time {
                while !push.push(&[7; 64]) {}
                while black_box(pop.pop()).is_none() {}
                let now = Instant::now();
                histogram.saturating_record((now - before).as_nanos() as u64);
                before = now;
            }
            stop.store(true, Ordering::Relaxed);
            pinned.map(|()| histogram)
        });
        let echoed = echo.join().map_err(|_| anyhow!("a thread panicked"))?;
        let histogram = asker.join().map_err(|_| anyhow!("a thread panicked"))?;
        echoed.and(histogram)
    })
}

/// The floor of [`trips`].
fn lines(cores: [CoreId; 2], time: Duration) -> Result<Histogram<u64>> {
    let [there, back] = [(); 2].map(|()| CachePadded::new(AtomicU64::new(0)));
    let (there, back) = (&there, &back);
    thread::scope(|scope| {
        let echo = scope.spawn(move || {
            let pinned = pin(cores[1]);
            let mut last = 0;
            while last != u64::MAX {
                let now = there.load(Ordering::Acquire);
                if now != last {
                    back.store(now, Ordering::Release);
                    last = now;
                }
            }
            pinned
        });
        let asker = scope.spawn(move || {
            let pinned = pin(cores[0]);
            let mut histogram = histogram();
            let start = Instant::now();
            let mut before = start;
            for number in 1.. {
                there.store(number, Ordering::Release);
                while back.load(Ordering::Acquire) != number {}
                let now = Instant::now();
                histogram.saturating_record((now - before).as_nanos() as u64);
                before = now;
                if now - start >= time {
                    break;
                }
            }
            there.store(u64::MAX, Ordering::Release);
            pinned.map(|()| histogram)
        });
        let echoed = echo.join().map_err(|_| anyhow!("a thread panicked"))?;
        let histogram = asker.join().map_err(|_| anyhow!("a thread panicked"))?;
        echoed.and(histogram)
    })
}
