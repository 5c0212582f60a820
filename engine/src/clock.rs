//! Time for the state machines: read once for a batch of frames.

use nix::time::{ClockId, clock_gettime};
use seqcast_proto::time::{Nanos, Now, SECONDS};

/// Reads the monotonic clock and derives the wall's time from it.
///
/// The wall clock itself is read once a second: stamps then follow it when it is set, while timers
/// never see a step.
#[derive(Debug)]
pub struct Clock {
    start: Nanos,
    /// Wall time at `start`, as of the last look.
    wall_at_start: Nanos,
    next_look: Nanos,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Clock {
        let mut clock = Clock {
            start: read(ClockId::CLOCK_MONOTONIC),
            wall_at_start: 0,
            next_look: 0,
        };
        clock.now();
        clock
    }

    /// The present.
    #[inline]
    pub fn now(&mut self) -> Now {
        let mono = read(ClockId::CLOCK_MONOTONIC).saturating_sub(self.start);
        if mono >= self.next_look {
            self.look(mono);
        }
        Now {
            mono,
            wall: self.wall_at_start + mono,
        }
    }

    #[cold]
    fn look(&mut self, mono: Nanos) {
        let wall = read(ClockId::CLOCK_REALTIME);
        self.wall_at_start = wall.saturating_sub(mono);
        self.next_look = mono + SECONDS;
    }
}

/// A clock in nanoseconds, without the checks of the standard library, which cost as much as the
/// reading. Both clocks exist everywhere, and 584 years fit.
#[inline]
fn read(clock: ClockId) -> Nanos {
    clock_gettime(clock).map_or(0, |t| t.tv_sec() as Nanos * SECONDS + t.tv_nsec() as Nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_both_clocks() {
        let mut clock = Clock::start();
        let (a, b) = (clock.now(), clock.now());
        assert!(a.mono <= b.mono && a.wall <= b.wall);
        assert!(b.wall.abs_diff(read(ClockId::CLOCK_REALTIME)) < SECONDS);
    }
}
