//! What a core does while nothing is to do.

use std::time::Duration;

use crate::config::Idle;

/// Fruitless turns that `backoff` spins before it yields, and yields before it sleeps.
const SPINS: u32 = 2_000;
const YIELDS: u32 = 2_050;
/// Longest sleep: signals are looked at after it.
pub(super) const LONGEST: Duration = Duration::from_millis(50);

/// What to do after a turn without work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rest {
    /// Look again at once.
    Spin,
    /// Let another thread run first.
    Yield,
    /// Sleep until something happens.
    Sleep,
}

/// Counts fruitless turns.
#[derive(Debug)]
pub(super) struct IdleState {
    idle: Idle,
    fruitless: u32,
}

impl IdleState {
    /// Follows the configured strategy.
    #[must_use]
    pub(super) fn new(idle: Idle, pinned: bool) -> IdleState {
        IdleState {
            idle: idle.in_force(pinned),
            fruitless: 0,
        }
    }

    /// Something was done.
    #[inline]
    pub(super) fn worked(&mut self) {
        self.fruitless = 0;
    }

    /// Nothing was to do.
    #[inline]
    pub(super) fn rest(&mut self) -> Rest {
        self.fruitless = self.fruitless.saturating_add(1);
        match self.idle {
            Idle::Spin => Rest::Spin,
            Idle::Backoff if self.fruitless < SPINS => Rest::Spin,
            Idle::Backoff if self.fruitless < YIELDS => Rest::Yield,
            Idle::Backoff | Idle::Block | Idle::Auto => Rest::Sleep,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_spins_yields_and_sleeps_in_turn() {
        let mut idle = IdleState::new(Idle::Backoff, false);
        let mut seen = Vec::new();
        for _ in 0..3_000 {
            let rest = idle.rest();
            if seen.last() != Some(&rest) {
                seen.push(rest);
            }
        }
        assert_eq!(seen, [Rest::Spin, Rest::Yield, Rest::Sleep]);
        idle.worked();
        assert_eq!(idle.rest(), Rest::Spin);
    }
}
