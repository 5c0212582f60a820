//! What the machine itself takes: how long and how often two spinning threads stand still.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use core_affinity::CoreId;
use serde::Serialize;

use crate::pair::pin;

/// Pauses of both cores together.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Jitter {
    /// Share of the time lost in pauses above 1 us.
    pub(crate) lost: f64,
    /// Pauses above 1 us, per second and core.
    pub(crate) above_1us: f64,
    /// Pauses above 10 us, per second and core.
    pub(crate) above_10us: f64,
    /// Pauses above 100 us, per second and core.
    pub(crate) above_100us: f64,
}

/// Watches both cores for `time`.
pub(crate) fn measure(cores: [CoreId; 2], time: Duration) -> Result<Jitter> {
    let threads = cores.map(|core| thread::spawn(move || spin(core, time)));
    let mut sum = Jitter::default();
    for thread in threads {
        let one = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
        sum.lost += one.lost / 2.0;
        sum.above_1us += one.above_1us / 2.0;
        sum.above_10us += one.above_10us / 2.0;
        sum.above_100us += one.above_100us / 2.0;
    }
    Ok(sum)
}

fn spin(core: CoreId, time: Duration) -> Result<Jitter> {
    pin(core)?;
    let mut jitter = Jitter::default();
    let start = Instant::now();
    let mut before = start;
    while before - start < time {
        let now = Instant::now();
        let gap = (now - before).as_nanos();
        if gap > 1_000 {
            jitter.lost += gap as f64;
            jitter.above_1us += 1.0;
            jitter.above_10us += f64::from(u8::from(gap > 10_000));
            jitter.above_100us += f64::from(u8::from(gap > 100_000));
        }
        before = now;
    }
    let seconds = (before - start).as_secs_f64();
    jitter.lost /= seconds * 1e9;
    jitter.above_1us /= seconds;
    jitter.above_10us /= seconds;
    jitter.above_100us /= seconds;
    Ok(jitter)
}
