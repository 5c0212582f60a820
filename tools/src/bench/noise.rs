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
    /// Share of all cores' time that a hypervisor gave to others during the whole measurement (`steal` in
    /// `/proc/stat`).
    pub stolen: f64,
}

/// What all cores have done since the machine's start, in clock ticks.
#[derive(Clone, Copy)]
pub(super) struct Ticks {
    all: u64,
    stolen: u64,
}

impl Ticks {
    /// Now. All is 0 where there is no such file.
    pub(super) fn now() -> Ticks {
        Ticks::of(&std::fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn of(stat: &str) -> Ticks {
        let fields = stat.strip_prefix("cpu ").unwrap_or_default().lines().next();
        let fields = fields.unwrap_or_default().split_whitespace();
        // user nice system idle iowait irq softirq steal; what follows is in user and nice already.
        let ticks: Vec<u64> = fields.map_while(|field| field.parse().ok()).take(8).collect();
        Ticks {
            all: ticks.iter().sum(),
            stolen: ticks.get(7).copied().unwrap_or(0),
        }
    }

    /// Share that was stolen since `before`.
    pub(super) fn stolen_since(self, before: Ticks) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        self.stolen.saturating_sub(before.stolen) as f64 / all as f64
    }
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
        stolen: 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stolen_share_is_that_between_two_looks() {
        let before = Ticks::of("cpu  10 0 5 80 1 0 0 4 7 7\ncpu0 1 1\n");
        let after = Ticks::of("cpu  20 0 10 150 1 0 0 19 7 7\n");
        assert!((after.stolen_since(before) - 0.15).abs() < 1e-9);
        assert!(Ticks::of("").stolen_since(Ticks::of("no such line")) == 0.0);
        assert!(Ticks::now().all > 0);
    }
}
