//! Time for the state machines: read once for a batch of frames.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use seqcast_proto::time::{Nanos, Now, SECONDS};

/// Reads the monotonic clock and derives the wall's time from it.
///
/// The wall clock itself is read once a second: stamps then follow it when it is set, while timers
/// never see a step.
#[derive(Debug)]
pub struct Clock {
    start: Instant,
    /// Wall time at `start`, as of the last look.
    wall_at_start: Nanos,
    next_look: Nanos,
}

impl Clock {
    /// A clock that starts now.
    #[must_use]
    pub fn start() -> Clock {
        let mut clock = Clock {
            start: Instant::now(),
            wall_at_start: 0,
            next_look: 0,
        };
        clock.now();
        clock
    }

    /// The present.
    #[inline]
    pub fn now(&mut self) -> Now {
        let mono = nanos(self.start.elapsed());
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
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, nanos);
        self.wall_at_start = wall.saturating_sub(mono);
        self.next_look = mono + SECONDS;
    }
}

fn nanos(duration: Duration) -> Nanos {
    // 584 years fit.
    duration.as_nanos() as Nanos
}
