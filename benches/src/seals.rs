//! Sealing a frame and opening it, beside the other fast MAC that is well kept, keyed BLAKE3.

use std::hint::black_box;
use std::time::{Duration, Instant};

use anyhow::Result;
use core_affinity::CoreId;
use seqcast_proto::seal::{CLOCK_SKEW, KEY_BYTES, Key, KeyRing, Seal, TRAILER};
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::wire::{HEADER, Kind, Stamp};

use crate::pair::pin;

/// What is done with each frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    Seal,
    Open,
    Blake3,
}

impl Work {
    pub(crate) const ALL: [Work; 3] = [Work::Seal, Work::Open, Work::Blake3];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Work::Seal => "Seqcast seal",
            Work::Open => "Seqcast open",
            Work::Blake3 => "keyed BLAKE3",
        }
    }
}

/// Bytes of a frame without its seal.
pub(crate) const SIZES: [(usize, &str); 3] = [
    (64, "frame of 64 B"),
    (1024, "frame of 1 KiB"),
    (1400, "frame of 1400 B"),
];

/// Frames between two looks at the clock.
const BATCH: u32 = 4096;

/// Frames a second on a pinned thread.
pub(crate) fn rate(work: Work, size: usize, core: CoreId, time: Duration) -> Result<f64> {
    let secret = [7; KEY_BYTES];
    let ring = KeyRing::new(vec![Key::new(1, &secret)]).expect("one key is a ring");
    std::thread::scope(|scope| {
        let job = scope.spawn(|| {
            pin(core)?;
            let mut seal = Seal::new(ring, CLOCK_SKEW, 0);
            let mut frame = vec![0; size.max(HEADER) + TRAILER];
            let stamp = Stamp {
                stream: Stream(1),
                session: Session(1),
                sequence: Seq(1),
                time: 1,
                flags: 0,
                origin: 1,
            };
            stamp.write(&mut frame, Kind::Data, 1);
            let whole = seal.seal(1, &mut frame, size);
            let (start, mut done) = (Instant::now(), 0);
            while start.elapsed() < time {
                for _ in 0..BATCH {
                    match work {
                        Work::Seal => drop(black_box(seal.seal(1, black_box(&mut frame), size))),
                        Work::Open => drop(black_box(seal.open(1, black_box(&frame[..whole])))),
                        Work::Blake3 => drop(black_box(blake3::keyed_hash(&secret, black_box(&frame[..size])))),
                    }
                }
                done += BATCH;
            }
            Ok(f64::from(done) / start.elapsed().as_secs_f64())
        });
        job.join().unwrap_or_else(|_| anyhow::bail!("the thread panicked"))
    })
}
