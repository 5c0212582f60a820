//! How often the same is said.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use seqcast_proto::time::{Nanos, SECONDS};
use tracing::callsite::Identifier;

use super::line::Line;

/// Kinds from sources that are told apart; all others share one limit.
const MOST: usize = 1024;

/// Lets the same kind of message from the same source pass so many times in an interval, which begins with
/// the first, and counts the others.
pub(super) struct Limiter {
    burst: u32,
    interval: Duration,
    kinds: HashMap<Key, Kind>,
}

/// A message's place in the program, and a hash of who says it.
type Key = Option<(Identifier, u64)>;

struct Kind {
    since: Instant,
    said: u32,
    suppressed: u64,
    /// The last that was not said.
    last: Option<Line>,
}

/// What becomes of a message.
pub(super) enum Admitted {
    /// It is said, behind what was to be said before.
    Said(Option<Box<Line>>),
    /// It is not said; whether it is the first that is not.
    Suppressed { first: bool },
}

impl Limiter {
    /// A `burst` of 0 means no limit.
    pub(super) fn new(burst: u32, interval: Duration) -> Limiter {
        Limiter {
            burst,
            interval,
            kinds: HashMap::new(),
        }
    }

    pub(super) fn set(&mut self, burst: u32, interval: Duration) {
        (self.burst, self.interval) = (burst, interval);
    }

    pub(super) fn admit(&mut self, kind: Identifier, line: &Line, now: Instant) -> Admitted {
        if self.burst == 0 {
            return Admitted::Said(None);
        }
        let mut hasher = DefaultHasher::new();
        line.source().hash(&mut hasher);
        let mut key = Some((kind, hasher.finish()));
        if self.kinds.len() >= MOST && !self.kinds.contains_key(&key) {
            let interval = self.interval;
            self.kinds
                .retain(|_, kind| kind.suppressed > 0 || now.saturating_duration_since(kind.since) < interval);
            if self.kinds.len() >= MOST {
                key = None;
            }
        }
        let fresh = || Kind {
            since: now,
            said: 0,
            suppressed: 0,
            last: None,
        };
        let kind = self.kinds.entry(key).or_insert_with(fresh);
        let mut before = None;
        if now.saturating_duration_since(kind.since) >= self.interval {
            before = kind.told();
            *kind = fresh();
        }
        if kind.said < self.burst {
            kind.said += 1;
            return Admitted::Said(before.map(Box::new));
        }
        kind.suppressed += 1;
        kind.last = Some(line.clone());
        Admitted::Suppressed {
            first: kind.suppressed == 1,
        }
    }

    /// What was suppressed, of kinds whose interval is over, or of all.
    pub(super) fn expired(&mut self, now: Instant, all: bool) -> Vec<Line> {
        let interval = self.interval;
        let mut told = Vec::new();
        self.kinds.retain(|_, kind| {
            let over = all || now.saturating_duration_since(kind.since) >= interval;
            if over {
                told.extend(kind.told());
            }
            !over
        });
        told
    }

    /// Whether something was suppressed and not told.
    pub(super) fn owes(&self) -> bool {
        self.kinds.values().any(|kind| kind.suppressed > 0)
    }
}

impl Kind {
    fn told(&mut self) -> Option<Line> {
        let count = std::mem::take(&mut self.suppressed);
        self.last.take().map(|line| line.suppressed(count))
    }
}

/// What the duty cycle counts and speaks of: at once when it begins, and then at most every
/// [`Tally::EVERY`], with how many have come since.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    said: u64,
    quiet_until: Nanos,
}

impl Tally {
    /// Shortest pause between two words.
    pub(crate) const EVERY: Nanos = 10 * SECONDS;

    /// How many of `total` are to be spoken of now, if any.
    #[inline]
    pub(crate) fn news(&mut self, total: u64, now: Nanos) -> Option<u64> {
        let new = total.saturating_sub(self.said);
        if new == 0 || now < self.quiet_until {
            return None;
        }
        (self.said, self.quiet_until) = (total, now + Tally::EVERY);
        Some(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::Format;
    use tracing::callsite::Callsite;
    use tracing::subscriber::Interest;
    use tracing::{Level, Metadata};

    /// A place in a program.
    struct Place;

    impl Callsite for Place {
        fn set_interest(&self, _: Interest) {}
        fn metadata(&self) -> &Metadata<'_> {
            unreachable!("nothing asks")
        }
    }

    // As statics of a size, they have addresses of their own.
    static PLACES: [(Place, u8); 2] = [(Place, 0), (Place, 1)];
    const INTERVAL: Duration = Duration::from_secs(10);

    fn kind(n: usize) -> Identifier {
        Identifier(&PLACES[n].0)
    }

    fn line(n: u32) -> Line {
        let text = format!("message {n}");
        Line::plain(Level::WARN, "t", text.clone(), text)
    }

    fn is_said(admitted: &Admitted) -> bool {
        matches!(admitted, Admitted::Said(..))
    }

    #[test]
    fn the_same_is_said_so_often_and_then_counted() {
        let start = Instant::now();
        let mut limiter = Limiter::new(3, INTERVAL);
        let said = (0..10).filter(|n| is_said(&limiter.admit(kind(0), &line(*n), start)));
        assert_eq!(said.count(), 3);
        assert!(is_said(&limiter.admit(kind(1), &line(0), start)), "another kind");
        assert!(limiter.owes() && limiter.expired(start + INTERVAL / 2, false).is_empty());
        let told = limiter.expired(start + INTERVAL, false);
        assert_eq!(told.len(), 1);
        assert_eq!(told[0].written(Format::Text), "suppressed 7 like this: message 9");
        assert!(!limiter.owes() && limiter.kinds.is_empty());
    }

    #[test]
    fn the_next_one_says_first_what_was_not_said() {
        let start = Instant::now();
        let mut limiter = Limiter::new(1, INTERVAL);
        assert!(is_said(&limiter.admit(kind(0), &line(0), start)));
        for n in 1..3 {
            let Admitted::Suppressed { first } = limiter.admit(kind(0), &line(n), start) else {
                panic!("a second one");
            };
            assert_eq!(first, n == 1);
        }
        match limiter.admit(kind(0), &line(3), start + INTERVAL) {
            Admitted::Said(Some(before)) => {
                assert_eq!(before.written(Format::Text), "suppressed 2 like this: message 2");
            }
            _ => panic!("the interval is over"),
        }
        assert!(limiter.expired(start + INTERVAL, true).is_empty());
    }

    #[test]
    fn no_limit_and_the_end() {
        let start = Instant::now();
        let mut limiter = Limiter::new(0, INTERVAL);
        assert!((0..1000).all(|n| is_said(&limiter.admit(kind(0), &line(n), start))));
        limiter.set(1, INTERVAL);
        (0..5).for_each(|n| drop(limiter.admit(kind(0), &line(n), start)));
        assert_eq!(limiter.expired(start, true).len(), 1, "all is told at the end");
    }

    #[test]
    fn a_tally_speaks_at_once_and_then_seldom() {
        let mut tally = Tally::default();
        assert_eq!(tally.news(0, 5), None);
        assert_eq!(tally.news(3, 5), Some(3));
        assert_eq!(tally.news(7, 6), None);
        assert_eq!(tally.news(9, 5 + Tally::EVERY), Some(6));
        assert_eq!(tally.news(9, 5 + 2 * Tally::EVERY), None);
    }
}
