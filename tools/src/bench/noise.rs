//! What a core loses to others while it only looks at the clock.

use std::time::{Duration, Instant};

use serde::Serialize;

/// A step of the clock above this is time that the core did something else.
const STEP: Duration = Duration::from_micros(1);

/// What an idle spin has seen.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Noise {
    /// Share of the time that was lost.
    pub lost: f64,
    /// The longest pause in ns.
    pub longest_ns: u64,
}

/// Spins for so long.
pub(super) fn listen(time: Duration) -> Noise {
    let start = Instant::now();
    let (mut before, mut lost, mut longest) = (start, Duration::ZERO, Duration::ZERO);
    while before - start < time {
        let now = Instant::now();
        let step = now - before;
        if step > STEP {
            lost += step;
            longest = longest.max(step);
        }
        before = now;
    }
    Noise {
        lost: lost.as_secs_f64() / (before - start).as_secs_f64().max(1e-9),
        longest_ns: longest.as_nanos() as u64,
    }
}
