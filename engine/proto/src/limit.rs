//! Limits on rates.

use crate::time::{Nanos, SECONDS};

/// A token bucket: so many units a second, and so many at once after a pause.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    per_second: u64,
    burst: u64,
    tokens: u64,
    /// Time up to which tokens have been given.
    filled: Nanos,
}

impl Bucket {
    /// A full bucket. A `burst` below one unit a millisecond is raised to it, so that a caller
    /// that comes once a millisecond reaches the rate.
    #[must_use]
    pub fn new(per_second: u64, burst: u64, now: Nanos) -> Bucket {
        let burst = burst.max(per_second / 1000).max(1);
        Bucket {
            per_second: per_second.max(1),
            burst,
            tokens: burst,
            filled: now,
        }
    }

    fn fill(&mut self, now: Nanos) {
        let passed = now.saturating_sub(self.filled);
        let new =
            u64::try_from(u128::from(passed) * u128::from(self.per_second) / u128::from(SECONDS)).unwrap_or(u64::MAX);
        if new == 0 {
            return;
        }
        self.tokens = self.tokens.saturating_add(new).min(self.burst);
        // Only the time that the new tokens stand for has been used.
        let used = u128::from(new) * u128::from(SECONDS) / u128::from(self.per_second);
        self.filled = if self.tokens == self.burst {
            now
        } else {
            self.filled + u64::try_from(used).unwrap_or(passed)
        };
    }

    /// Whether something may be sent now. What is sent may then cost more than there is: the next
    /// one waits the longer.
    pub fn is_open(&mut self, now: Nanos) -> bool {
        if self.tokens == 0 {
            self.fill(now);
        }
        self.tokens > 0
    }

    /// Takes the cost of what was sent.
    pub fn take(&mut self, cost: u64, now: Nanos) {
        self.fill(now);
        if cost <= self.tokens {
            self.tokens -= cost;
        } else {
            // The debt is paid in time.
            let debt = u128::from(cost - self.tokens) * u128::from(SECONDS) / u128::from(self.per_second);
            self.tokens = 0;
            self.filled = self.filled.max(now) + u64::try_from(debt).unwrap_or(SECONDS);
        }
    }

    /// When the bucket opens.
    #[must_use]
    pub fn opens_at(&self) -> Nanos {
        if self.tokens > 0 {
            return 0;
        }
        self.filled + SECONDS.div_ceil(self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::{MICROS, MILLIS};

    /// Sends units of `cost` whenever allowed, at the given step; returns units sent in 10 s.
    fn run(per_second: u64, burst: u64, cost: u64, step: Nanos) -> u64 {
        let mut bucket = Bucket::new(per_second, burst, 0);
        let mut sent = 0;
        let mut now = 0;
        while now < 10 * SECONDS {
            while bucket.is_open(now) {
                bucket.take(cost, now);
                sent += cost;
            }
            assert!(bucket.opens_at() > now);
            now += step;
        }
        sent
    }

    #[test]
    fn the_rate_holds_whatever_the_cost_and_the_step() {
        for (rate, burst, cost, step) in [
            (1_000_000, 10_000, 1_472, 20 * MICROS),
            (1_000_000, 10_000, 1_472, MILLIS),
            (1_000, 1, 1, 7 * MICROS),
            (50_000_000, 100_000, 9_000, 333),
            (10, 1, 100, MILLIS),
        ] {
            let sent = run(rate, burst, cost, step);
            let most = 10 * rate + burst.max(rate / 1000) + cost;
            assert!(sent <= most, "{sent} of at most {most}");
            assert!(sent + cost >= 10 * rate * 98 / 100, "{sent} of {}", 10 * rate);
        }
    }

    #[test]
    fn a_pause_saves_no_more_than_the_burst() {
        let mut bucket = Bucket::new(1000, 50, 0);
        let mut sent = 0;
        while bucket.is_open(100 * SECONDS) {
            bucket.take(1, 100 * SECONDS);
            sent += 1;
        }
        assert_eq!(sent, 50);
    }
}
