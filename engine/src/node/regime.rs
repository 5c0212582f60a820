//! What the engine's time goes into.

use seqcast_proto::time::{Nanos, SECONDS};

use crate::report::CycleReport;

/// What the turn that ends with the next look at the clock was.
#[derive(Debug)]
pub(super) struct Regime {
    last: Nanos,
    /// It did something.
    pub(super) worked: bool,
    /// The engine has slept since.
    pub(super) asleep: bool,
    /// The longest turn that did something since `since`.
    longest: Nanos,
    since: Nanos,
}

impl Regime {
    pub(super) fn new(now: Nanos) -> Regime {
        Regime {
            last: now,
            worked: false,
            asleep: false,
            longest: 0,
            since: now,
        }
    }

    /// A turn begins, so the one before it has ended.
    #[inline]
    pub(super) fn passed(&mut self, now: Nanos, cycle: &mut CycleReport) {
        let took = now.saturating_sub(self.last);
        self.last = now;
        if self.asleep {
            self.asleep = false;
            cycle.asleep_ns += took;
        } else if self.worked {
            cycle.busy_ns += took;
            self.longest = self.longest.max(took);
        } else {
            cycle.idle_ns += took;
        }
    }

    /// Notes the longest turn of each second.
    pub(super) fn look(&mut self, now: Nanos, cycle: &mut CycleReport) {
        cycle.longest_turn_ns = cycle.longest_turn_ns.max(self.longest);
        if now.saturating_sub(self.since) >= SECONDS {
            cycle.longest_turn_lately_ns = self.longest;
            (self.longest, self.since) = (0, now);
        }
    }
}
