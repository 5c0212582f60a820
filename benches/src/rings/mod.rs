//! Messages of 64 bytes from core to core inside a process: the engine's rings beside well-known queues.
//!
//! Every consumer copies the message out. Who can take or give many at once does so where the row
//! says "batches".

use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use core_affinity::CoreId;
use crossbeam_queue::ArrayQueue;
use crossbeam_utils::CachePadded;
use disruptor::{BusySpin, build_multi_producer, build_single_producer};
use hdrhistogram::Histogram;

use crate::duel::histogram;
use crate::pair::pin;
use contenders::{Chunks, Lanes, Publish, Put, Rtrb, Take};

mod contenders;
#[cfg(feature = "peers")]
mod iceoryx;

type Message = [u8; 64];

/// Messages that the queues hold.
const DEPTH: usize = 4096;
/// A lane with as many messages (and their 8-byte headers) as fit a power of two near it.
const LANE: usize = 256 << 10;

/// The queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ring {
    /// Two cache lines written in turn: no queue can be faster there and back.
    Lines,
    ArrayQueue,
    Rtrb,
    Disruptor,
    #[cfg(feature = "peers")]
    Iceoryx,
    Lane,
    Broadcast,
}

impl Ring {
    pub(crate) const ALL: &[Ring] = &[
        Ring::Lines,
        Ring::ArrayQueue,
        Ring::Rtrb,
        Ring::Disruptor,
        #[cfg(feature = "peers")]
        Ring::Iceoryx,
        Ring::Lane,
        Ring::Broadcast,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Ring::Lines => "two cache lines",
            Ring::ArrayQueue => "crossbeam ArrayQueue",
            Ring::Rtrb => "rtrb",
            Ring::Disruptor => "disruptor",
            #[cfg(feature = "peers")]
            Ring::Iceoryx => "iceoryx2",
            Ring::Lane => "Seqcast lane",
            Ring::Broadcast => "Seqcast broadcast",
        }
    }

    /// Whom the ring is held against.
    pub(crate) fn rival(self, load: Load) -> Option<&'static str> {
        let rival = match (self, load) {
            (Ring::Lane, _) => Ring::Disruptor,
            (Ring::Broadcast, _) => Ring::Rtrb,
            _ => Ring::ArrayQueue,
        };
        (rival != self && (load != Load::Batches || rival != Ring::ArrayQueue)).then(|| rival.name())
    }
}

/// How messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    One,
    /// Messages that become visible together.
    Batches,
    /// Two producers on one core, one message at a time. A full queue makes them yield.
    TwoProducers,
}

impl Load {
    pub(crate) const ALL: [Load; 3] = [Load::One, Load::Batches, Load::TwoProducers];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Load::One => "one at a time",
            Load::Batches => "batches of 32",
            Load::TwoProducers => "two producers",
        }
    }
}

/// Messages a second one way; `None` where the queue has no such way.
pub(crate) fn stream(ring: Ring, load: Load, cores: [CoreId; 2], time: Duration) -> Result<Option<f64>> {
    let run = Run {
        cores,
        time,
        batch: if load == Load::Batches { 32 } else { 1 },
    };
    let lane = || seqcast_ring::lane(LANE);
    let two = load == Load::TwoProducers;
    Ok(Some(match ring {
        Ring::Lane if two => {
            let [(a, c), (b, d)] = [lane(), lane()];
            run.rate([a, b], Lanes([c, d]))?
        }
        Ring::Lane => {
            let (put, take) = lane();
            run.rate([put], take)?
        }
        Ring::Broadcast if load == Load::One => {
            let read = CachePadded::new(AtomicU64::new(0));
            let (put, take) = contenders::paced(&read);
            run.rate([put], take)?
        }
        Ring::Rtrb if load == Load::One => {
            let (put, take) = rtrb::RingBuffer::new(DEPTH);
            run.rate([Rtrb(put)], Rtrb(take))?
        }
        Ring::Rtrb if load == Load::Batches => {
            let (put, take) = rtrb::RingBuffer::new(DEPTH);
            run.rate([Chunks(put)], Chunks(take))?
        }
        Ring::ArrayQueue if two => {
            let queue = ArrayQueue::new(DEPTH);
            run.rate([&queue, &queue], &queue)?
        }
        Ring::ArrayQueue if load == Load::One => {
            let queue = ArrayQueue::new(DEPTH);
            run.rate([&queue], &queue)?
        }
        Ring::Disruptor if two => {
            let (take, builder) = build_multi_producer(DEPTH, || [0; 64], BusySpin).new_event_poller();
            let put = builder.build();
            run.rate([Publish(put.clone()), Publish(put)], take)?
        }
        Ring::Disruptor => {
            let (take, builder) = build_single_producer(DEPTH, || [0; 64], BusySpin).new_event_poller();
            run.rate([Publish(builder.build())], take)?
        }
        #[cfg(feature = "peers")]
        Ring::Iceoryx if two => {
            let (puts, take) = iceoryx::topic::<2>("two")?;
            run.rate(puts, take)?
        }
        #[cfg(feature = "peers")]
        Ring::Iceoryx if load == Load::One => {
            let (put, take) = iceoryx::topic::<1>("one")?;
            run.rate(put, take)?
        }
        _ => return Ok(None),
    }))
}

/// Nanoseconds there and back over two rings.
pub(crate) fn round_trip(ring: Ring, cores: [CoreId; 2], time: Duration) -> Result<Histogram<u64>> {
    match ring {
        Ring::Lane => {
            let ((a, b), (c, d)) = (seqcast_ring::lane(LANE), seqcast_ring::lane(LANE));
            trips((a, d), (c, b), cores, time)
        }
        Ring::Broadcast => {
            let read = [(); 2].map(|()| CachePadded::new(AtomicU64::new(0)));
            let ((a, b), (c, d)) = (contenders::paced(&read[0]), contenders::paced(&read[1]));
            trips((a, d), (c, b), cores, time)
        }
        Ring::Rtrb => {
            let ((a, b), (c, d)) = (rtrb::RingBuffer::new(DEPTH), rtrb::RingBuffer::new(DEPTH));
            trips((Rtrb(a), Rtrb(d)), (Rtrb(c), Rtrb(b)), cores, time)
        }
        Ring::ArrayQueue => {
            let (there, back) = (ArrayQueue::new(DEPTH), ArrayQueue::new(DEPTH));
            trips((&there, &back), (&back, &there), cores, time)
        }
        Ring::Disruptor => {
            let (b, there) = build_single_producer(DEPTH, || [0; 64], BusySpin).new_event_poller();
            let (d, back) = build_single_producer(DEPTH, || [0; 64], BusySpin).new_event_poller();
            trips((Publish(there.build()), d), (Publish(back.build()), b), cores, time)
        }
        #[cfg(feature = "peers")]
        Ring::Iceoryx => {
            let (([a], b), ([c], d)) = (iceoryx::topic("there")?, iceoryx::topic("back")?);
            trips((a, d), (c, b), cores, time)
        }
        Ring::Lines => lines(cores, time),
    }
}

/// A measurement of rate.
struct Run {
    cores: [CoreId; 2],
    time: Duration,
    batch: usize,
}

impl Run {
    /// Messages a second. All producers run on the first core.
    fn rate<P: Put, const N: usize>(&self, puts: [P; N], mut take: impl Take) -> Result<f64> {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let senders = puts.map(|mut put| {
                let stop = &stop;
                scope.spawn(move || -> Result<()> {
                    pin(self.cores[0])?;
                    let mut number = 0u64;
                    let mut next = || {
                        let mut message = [0; 64];
                        message[..8].copy_from_slice(&number.to_ne_bytes());
                        number += 1;
                        message
                    };
                    loop {
                        if put.put(self.batch, &mut next) > 0 {
                            continue;
                        }
                        if stop.load(Ordering::Relaxed) {
                            return Ok(());
                        }
                        if N > 1 {
                            thread::yield_now();
                        } else {
                            spin_loop();
                        }
                    }
                })
            });
            let pinned = pin(self.cores[1]);
            let start = Instant::now();
            let mut count = 0;
            for turn in 0u64.. {
                match take.take(&mut |message| {
                    black_box(message);
                }) {
                    0 => spin_loop(),
                    taken => count += taken,
                }
                if turn % 1024 == 0 && start.elapsed() >= self.time {
                    break;
                }
            }
            let rate = count as f64 / start.elapsed().as_secs_f64();
            // The senders notice when the queue is full.
            stop.store(true, Ordering::Relaxed);
            for sender in senders {
                sender.join().map_err(|_| anyhow!("a thread panicked"))??;
            }
            pinned.map(|()| rate)
        })
    }
}

fn trips(
    (mut put, mut take): (impl Put, impl Take),
    (mut put_back, mut take_there): (impl Put, impl Take),
    cores: [CoreId; 2],
    time: Duration,
) -> Result<Histogram<u64>> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let echo = scope.spawn(|| {
            let pinned = pin(cores[1]);
            while !stop.load(Ordering::Relaxed) {
                take_there.take(&mut |message| while put_back.put(1, &mut || message) == 0 {});
            }
            pinned
        });
        let asker = scope.spawn(|| {
            let pinned = pin(cores[0]);
            let mut histogram = histogram();
            let start = Instant::now();
            let mut before = start;
            while before - start < time {
                while put.put(1, &mut || [7; 64]) == 0 {}
                while take.take(&mut |message| {
                    black_box(message);
                }) == 0
                {}
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
