//! Time as the protocol sees it: numbers that the caller hands in.

/// Nanoseconds. Timers count from any fixed start and never go back; stamps on the wire count from
/// the Unix epoch. Which of the two a value is, its name says (`now`, `wall`).
pub type Nanos = u64;

/// One microsecond in [`Nanos`].
pub const MICROS: Nanos = 1_000;
/// One millisecond in [`Nanos`].
pub const MILLIS: Nanos = 1_000_000;
/// One second in [`Nanos`].
pub const SECONDS: Nanos = 1_000_000_000;

/// An instant: the timers' time and the wall's time, read once for a batch of frames.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Monotonic time, for timers.
    pub mono: Nanos,
    /// Time since the Unix epoch, for stamps.
    pub wall: Nanos,
}

/// Estimate of how long an answer takes, after Jacobson and Karels as in RFC 6298, section 2:
/// `rto = srtt + 4 * rttvar`, kept within bounds. Only answers to first questions are samples
/// (Karn's rule), which the caller sees to; those to repeated ones tell a least time.
#[derive(Clone, Copy, Debug)]
pub struct RoundTrip {
    smoothed: Nanos,
    variance: Nanos,
    min: Nanos,
    max: Nanos,
}

impl RoundTrip {
    /// An estimate without samples whose time-out is `initial`, later kept from `min` to `max`.
    #[must_use]
    pub fn new(initial: Nanos, min: Nanos, max: Nanos) -> RoundTrip {
        RoundTrip {
            smoothed: 0,
            variance: initial / 4,
            min,
            max,
        }
    }

    /// Takes one measured round trip.
    pub fn sample(&mut self, rtt: Nanos) {
        if self.smoothed == 0 {
            self.smoothed = rtt.max(1);
            self.variance = rtt / 2;
        } else {
            let off = self.smoothed.abs_diff(rtt);
            self.variance = (3 * self.variance + off) / 4;
            self.smoothed = ((7 * self.smoothed + rtt) / 8).max(1);
        }
    }

    /// Takes the time since a repeated question was asked last, when an answer comes: to which of
    /// them is unknown, so that it took this long at least. Without it a round trip that has grown past the
    /// time-out would not be noticed.
    pub fn took_at_least(&mut self, rtt: Nanos) {
        if rtt > self.smoothed {
            self.sample(rtt);
        }
    }

    /// How long to wait for an answer before asking again.
    #[must_use]
    pub fn timeout(&self) -> Nanos {
        (self.smoothed + 4 * self.variance).clamp(self.min, self.max)
    }

    /// The smoothed round trip; 0 before the first sample.
    #[must_use]
    pub fn smoothed(&self) -> Nanos {
        self.smoothed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_samples_within_its_bounds() {
        let mut rtt = RoundTrip::new(20 * MILLIS, MILLIS, SECONDS);
        assert_eq!(rtt.timeout(), 20 * MILLIS);
        for _ in 0..100 {
            rtt.sample(5 * MILLIS);
        }
        assert_eq!(rtt.smoothed(), 5 * MILLIS);
        assert!(rtt.timeout() < 6 * MILLIS);
        for _ in 0..100 {
            rtt.sample(10 * MICROS);
        }
        assert_eq!(rtt.timeout(), MILLIS, "never below the floor");
        rtt.sample(100 * SECONDS);
        assert_eq!(rtt.timeout(), SECONDS, "never above the ceiling");
    }

    #[test]
    fn answers_to_repeated_questions_only_raise_it() {
        let mut rtt = RoundTrip::new(20 * MILLIS, MICROS, SECONDS);
        rtt.sample(10 * MICROS);
        let before = rtt.timeout();
        rtt.took_at_least(9 * MICROS);
        assert_eq!(
            rtt.timeout(),
            before,
            "that one was lost, or this one was quick: nobody knows"
        );
        rtt.took_at_least(300 * MICROS);
        assert!(rtt.timeout() > 300 * MICROS, "it has grown");
    }
}
