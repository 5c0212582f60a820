//! What goes wrong when: a list made from a seed, before anything runs.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use seqcast_proto::rng::Rng;
use serde::Serialize;

/// What can go wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// SIGKILL; started again later.
    Kill,
    /// SIGSTOP; SIGCONT later.
    Stop,
    /// A host's cable is pulled, and put back.
    Link,
    /// The file system of the archive is full, or the server's while the archive is halted.
    Disk,
    /// A second server: one with the state directory of the first, and one that numbers frames of
    /// its own as the first one's.
    Double,
    /// A host asks server and archive for everything, again and again.
    Flood,
    /// The wall clock that an engine sees is set forward or back.
    Clock,
    /// A host's interface gets another MTU, and its own again.
    Mtu,
}

/// All kinds, in the order of the table.
pub const KINDS: [Kind; 8] = [
    Kind::Kill,
    Kind::Stop,
    Kind::Link,
    Kind::Disk,
    Kind::Double,
    Kind::Flood,
    Kind::Clock,
    Kind::Mtu,
];

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Kill => "kill",
            Kind::Stop => "stop",
            Kind::Link => "link",
            Kind::Disk => "disk",
            Kind::Double => "double",
            Kind::Flood => "flood",
            Kind::Clock => "clock",
            Kind::Mtu => "mtu",
        })
    }
}

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) kind: Kind,
    /// The part that it strikes: 0 the server, 1 the archive, then the clients. Of [`Kind::Disk`],
    /// whose file system: 0 or 1. Of no meaning to others that strike all.
    pub(super) part: usize,
    /// How long until it is undone.
    pub(super) hold: Duration,
    /// Of [`Kind::Clock`], by how many seconds; of [`Kind::Mtu`], the MTU.
    pub(super) amount: i64,
}

/// Faults that begin together, and the quiet time before them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) pause: Duration,
    pub(super) faults: Vec<Fault>,
}

const MTUS: [i64; 4] = [576, 1000, 1400, 3000];
/// Steps of the clock: leap seconds to wrong days, and before 1970 never.
const CLOCKS: [i64; 8] = [-86_400, -3600, -60, -1, 1, 60, 3600, 86_400];

/// The endless list of steps of a seed.
pub(super) struct Plan {
    rng: Rng,
    kinds: Vec<Kind>,
    parts: usize,
    /// The longest time that most faults last, in ms.
    longest: u64,
    /// Kinds that have not come since all had.
    left: Vec<Kind>,
}

impl Plan {
    /// `kinds` must not be empty; there are `parts` parts, at least a server, an archive, a client.
    /// A campaign that takes `duration` in all has room for each kind, from 16 s up.
    pub(super) fn new(seed: u64, kinds: &[Kind], parts: usize, duration: Duration) -> Plan {
        Plan {
            rng: Rng::new(seed),
            kinds: kinds.to_vec(),
            parts,
            longest: (duration.as_millis() as u64 / 20).clamp(400, 3000),
            left: Vec::new(),
        }
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_millis(from + self.rng.below(to - from))
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.rng.below(from.len() as u64) as usize]
    }

    /// Each kind comes once before any comes again.
    fn kind(&mut self) -> Kind {
        if self.left.is_empty() {
            self.left.clone_from(&self.kinds);
        }
        let at = self.rng.below(self.left.len() as u64) as usize;
        self.left.swap_remove(at)
    }

    fn fault(&mut self, kind: Kind) -> Fault {
        let part = self.rng.below(self.parts as u64) as usize;
        let hold = self.millis(100, self.longest);
        let (part, hold, amount) = match kind {
            Kind::Kill | Kind::Stop | Kind::Link => (part, hold, 0),
            // Segments that were made ahead must be used up first.
            Kind::Disk => (part % 2, self.millis(3000, 5000), 0),
            // Long enough to hear the server first.
            Kind::Double | Kind::Flood => (0, hold.max(Duration::from_millis(400)), 0),
            // Engines look at the wall clock once a second.
            Kind::Clock => (part, hold + Duration::from_millis(1100), self.pick(&CLOCKS)),
            Kind::Mtu => (part, hold, self.pick(&MTUS)),
        };
        Fault {
            kind,
            part,
            hold,
            amount,
        }
    }
}

impl Iterator for Plan {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let pause = self.millis(100, 200 + self.longest / 3);
        let kind = self.kind();
        let mut faults = vec![self.fault(kind)];
        // A third of the steps strike two parts at once. Who takes part in a second server's or a
        // full disk's test must otherwise be well.
        let alone = |kind| matches!(kind, Kind::Double | Kind::Disk);
        if !alone(kind) && self.rng.below(3) == 0 {
            let second = self.pick(&self.kinds.clone());
            let second = self.fault(second);
            if !alone(second.kind) && second.kind != Kind::Flood && second.part != faults[0].part {
                faults.push(second);
            }
        }
        Some(Step { pause, faults })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(300);

    #[test]
    fn a_seed_makes_one_plan_of_all_kinds_and_parts() {
        let steps = |seed| Plan::new(seed, &KINDS, 5, LONG).take(400).collect::<Vec<_>>();
        assert_eq!(steps(7), steps(7));
        assert_ne!(steps(7), steps(8));
        let steps = steps(7);
        for kind in KINDS {
            let of_kind = steps.iter().flat_map(|s| &s.faults).filter(|f| f.kind == kind);
            let mut parts: Vec<usize> = of_kind.map(|f| f.part).collect();
            assert!(parts.len() >= 50, "{kind}: {}", parts.len());
            parts.sort_unstable();
            parts.dedup();
            let reach = match kind {
                Kind::Double | Kind::Flood => 1,
                Kind::Disk => 2,
                _ => 5,
            };
            assert_eq!(parts.len(), reach, "{kind} strikes {parts:?}");
        }
        let pairs = steps.iter().filter(|s| s.faults.len() == 2);
        for step in pairs.clone() {
            assert_ne!(step.faults[0].part, step.faults[1].part, "{step:?}");
        }
        assert!(pairs.count() > 30);
    }

    #[test]
    fn sixteen_seconds_have_room_for_each_kind() {
        let short = Duration::from_secs(16);
        for seed in 0..100 {
            let steps = Plan::new(seed, &KINDS, 5, short).take(KINDS.len());
            let longest = |step: Step| step.pause + step.faults.iter().map(|f| f.hold).max().unwrap();
            assert!(steps.map(longest).sum::<Duration>() < short, "{seed}");
        }
    }

    #[test]
    fn the_first_eight_steps_have_all_kinds() {
        let mut kinds: Vec<Kind> = Plan::new(3, &KINDS, 5, LONG)
            .take(8)
            .map(|s| s.faults[0].kind)
            .collect();
        kinds.sort_unstable();
        assert_eq!(kinds, KINDS);
        assert!(
            Plan::new(3, &[Kind::Stop], 3, LONG)
                .take(20)
                .all(|s| s.faults.iter().all(|f| f.kind == Kind::Stop))
        );
    }
}
