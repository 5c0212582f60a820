//! Who is measured on the cable, at what, and against whom.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

#[cfg(feature = "peers")]
use crate::aeron::AeronPort;
#[cfg(feature = "xdp")]
use crate::bare::{BarePort, Mode};
#[cfg(any(feature = "xdp", feature = "peers"))]
use crate::duel::LARGEST_COUNT;
#[cfg(feature = "xdp")]
use crate::duel::LARGEST_FRAME;
use crate::duel::{self, BATCH, FULL_COUNT, FULL_FRAME, LARGE, LARGE_FRAME, Outcome, Phase, SMALL, SMALL_FRAME};
use crate::engine::{self, EnginePort, LinkPort};
use crate::kernel::{How, KernelPort};
use crate::pair::Pair;
#[cfg(feature = "xdp")]
use crate::pair::Side;
#[cfg(any(feature = "xdp", feature = "peers"))]
use crate::pair::{LARGEST_MTU, MTU};
#[cfg(feature = "xdp")]
use crate::programs::across;
use crate::programs::{Apart, InTurn};
use crate::results::{Limit, Name, Results};
use crate::{ONE_WAY, RATE, REPAIR, ROUND_TRIP, is_wanted};

/// A phase and the names of its row.
struct Task {
    phase: Phase,
    what: &'static str,
    against: Option<Limit>,
}

impl Task {
    /// The limit has messages of the same kind: they are not counted by frames.
    fn one_by_one(mut self) -> Task {
        if let Some(limit) = &mut self.against {
            limit.per_frame = 1;
        }
        self
    }
}

/// Tasks that several contenders share.
const TRIP: &str = "";
#[cfg(feature = "xdp")]
const FRAMES_64: &str = "64 B frames, batch 64";
const FRAMES_SMALL: &str = "100 B frames, batch 64";
const FRAMES_ALONE: &str = "100 B frames, one by one";
const FRAMES_LARGE: &str = "1060 B frames, batch 64";
const FRAMES_FULL: &str = "1460 B frames, batch 64";
const MESSAGES_PACKED: &str = "64 B messages, 21 a frame";
const MESSAGES_ALONE: &str = "64 B messages, one by one";
const MESSAGES_LARGE: &str = "1 KiB messages, 1 a frame";
#[cfg(feature = "xdp")]
const FRAMES_LARGEST: &str = "3432 B frames, batch 64";
#[cfg(any(feature = "xdp", feature = "peers"))]
const MESSAGES_LARGEST: &str = "64 B messages, 50 a frame";

const EVERY_US: u64 = 20;

fn trip(size: usize, against: Option<&'static str>) -> Task {
    Task {
        phase: Phase::RoundTrip { size },
        what: TRIP,
        against: against.map(|contender| Limit {
            contender,
            what: TRIP,
            per_frame: 1,
        }),
    }
}

fn paced(size: usize, against: Option<&'static str>) -> Task {
    Task {
        phase: Phase::Paced {
            size,
            every_us: EVERY_US,
        },
        ..trip(size, against)
    }
}

/// Messages are held against raw frames of the size that theirs have.
fn stream(
    size: usize,
    per_frame: usize,
    batch: usize,
    what: &'static str,
    against: Option<(&'static str, &'static str)>,
) -> Task {
    Task {
        phase: Phase::Stream { size, per_frame, batch },
        what,
        against: against.map(|(contender, what)| Limit {
            contender,
            what,
            per_frame,
        }),
    }
}

/// What kernel sockets can do with each size, in their fastest way.
const RUNS: &str = "kernel UDP, GSO";

fn engine_tasks(limit: &'static str) -> Vec<Task> {
    let mut tasks = vec![
        trip(SMALL, Some(limit_of_trips(limit))),
        paced(SMALL, Some(limit_of_trips(limit))),
        stream(SMALL, FULL_COUNT, BATCH, MESSAGES_PACKED, Some((limit, FRAMES_FULL))),
        stream(LARGE, 1, BATCH, MESSAGES_LARGE, Some((limit, FRAMES_LARGE))),
    ];
    if limit == DRIVER {
        tasks.push(stream(SMALL, 1, 1, MESSAGES_ALONE, Some((limit, FRAMES_ALONE))));
    }
    tasks
}

fn limit_of_trips(limit: &'static str) -> &'static str {
    if limit == RUNS { KERNEL } else { limit }
}

const DRIVER: &str = "bare AF_XDP, driver";
#[cfg(feature = "xdp")]
const GENERIC: &str = "bare AF_XDP, generic";
const KERNEL: &str = "kernel UDP";

#[cfg(any(feature = "xdp", feature = "peers"))]
const ENGINE: &str = "Seqcast xdp, driver";

/// How the names of contenders begin that are programs beside engines.
pub(crate) const BESIDE: [&str; 2] = ["programs", "threads"];

/// Calls of [`Turn::take`] in a round.
const CONTENDERS: u32 = if cfg!(feature = "xdp") { 23 } else { 9 } + if cfg!(feature = "peers") { 4 } else { 0 };

/// One turn of every contender that `only` wants, at the tasks whose name contains
/// `task`. `patience` is the time in which disturbed
/// measurements may be repeated; each contender has an even share of it.
pub(crate) fn round(
    pair: &mut Pair,
    time: Duration,
    patience: Duration,
    [only, task]: [&str; 2],
    directory: &Path,
    results: &mut Results,
) -> Result<()> {
    let mut turn = Turn {
        pair,
        time,
        patience: patience / CONTENDERS,
        only,
        task,
        directory,
        results,
    };
    #[cfg(feature = "xdp")]
    for (name, mode) in [(DRIVER, Mode::Driver), (GENERIC, Mode::Generic)] {
        let tasks = [
            trip(SMALL_FRAME, None),
            paced(SMALL_FRAME, None),
            stream(SMALL, 1, BATCH, FRAMES_64, None),
            stream(SMALL_FRAME, 1, BATCH, FRAMES_SMALL, None),
            stream(SMALL_FRAME, 1, 1, FRAMES_ALONE, None),
            stream(LARGE_FRAME, 1, BATCH, FRAMES_LARGE, None),
            stream(FULL_FRAME, 1, BATCH, FRAMES_FULL, None),
        ];
        turn.take(name, &tasks, |side| BarePort::open(side, mode))?;
    }
    let tasks = [
        trip(SMALL_FRAME, None),
        paced(SMALL_FRAME, None),
        stream(SMALL_FRAME, 1, 1, FRAMES_ALONE, None),
    ];
    turn.take(KERNEL, &tasks, |side| KernelPort::open(side, How::Single))?;
    let tasks = [
        stream(SMALL_FRAME, 1, BATCH, FRAMES_SMALL, None),
        stream(LARGE_FRAME, 1, BATCH, FRAMES_LARGE, None),
        stream(FULL_FRAME, 1, BATCH, FRAMES_FULL, None),
    ];
    turn.take("kernel UDP, sendmmsg", &tasks, |side| KernelPort::open(side, How::Many))?;
    turn.take(RUNS, &tasks, |side| KernelPort::open(side, How::Runs))?;

    #[cfg(feature = "xdp")]
    {
        let link_tasks = |limit| {
            [
                trip(SMALL_FRAME, Some(limit)),
                stream(SMALL_FRAME, 1, BATCH, FRAMES_SMALL, Some((limit, FRAMES_SMALL))),
                stream(SMALL_FRAME, 1, 1, FRAMES_ALONE, Some((limit, FRAMES_ALONE))),
                stream(LARGE_FRAME, 1, BATCH, FRAMES_LARGE, Some((limit, FRAMES_LARGE))),
                stream(FULL_FRAME, 1, BATCH, FRAMES_FULL, Some((limit, FRAMES_FULL))),
            ]
        };
        for (link, engine, limit, mode) in [
            ("link xdp, driver", ENGINE, DRIVER, Mode::Driver),
            ("link xdp, generic", "Seqcast xdp, generic", GENERIC, Mode::Generic),
        ] {
            turn.take(link, &link_tasks(limit), |side| {
                LinkPort::new(side, engine::xdp(side, mode, 0.0)?.0)
            })?;
            turn.take(engine, &engine_tasks(limit), |side| {
                EnginePort::open(side, engine::xdp(side, mode, 0.0)?)
            })?;
            let programs = match mode {
                Mode::Driver => "programs xdp, driver",
                Mode::Generic => "programs xdp, generic",
            };
            turn.take(programs, &program_tasks(engine), |side| {
                InTurn::open(side, engine::xdp(side, mode, 0.0)?)
            })?;
            if mode == Mode::Driver {
                turn.take_across(mode)?;
                turn.take("threads xdp, driver", &[trip(SMALL, Some(engine))], |side| {
                    Apart::open(side, move |side| engine::xdp(side, mode, 0.0))
                })?;
            }
        }
    }
    #[cfg(feature = "xdp")]
    {
        // The limit is the same stream without the greedy client, or without the archive.
        let tasks = [(SMALL, FULL_COUNT, MESSAGES_PACKED), (LARGE, 1, MESSAGES_LARGE)]
            .map(|(size, count, what)| stream(size, count, BATCH, what, Some((ENGINE, what))).one_by_one());
        turn.take("Seqcast xdp, greedy", &tasks, |side| {
            EnginePort::open_greedy(side, engine::xdp(side, Mode::Driver, 0.0)?)
        })?;
        let directory = turn.directory;
        turn.take("Seqcast xdp, archive", &tasks, |side| {
            EnginePort::open_archiving(side, engine::xdp(side, Mode::Driver, 0.0)?, directory)
        })?;
    }
    let tasks = [
        trip(SMALL_FRAME, Some(KERNEL)),
        stream(SMALL_FRAME, 1, BATCH, FRAMES_SMALL, Some((RUNS, FRAMES_SMALL))),
        stream(LARGE_FRAME, 1, BATCH, FRAMES_LARGE, Some((RUNS, FRAMES_LARGE))),
        stream(FULL_FRAME, 1, BATCH, FRAMES_FULL, Some((RUNS, FRAMES_FULL))),
    ];
    turn.take("link udp", &tasks, |side| {
        LinkPort::new(side, engine::udp(side, 0.0)?.0)
    })?;
    turn.take("Seqcast udp", &engine_tasks(RUNS), |side| {
        EnginePort::open(side, engine::udp(side, 0.0)?)
    })?;
    turn.take("programs udp", &program_tasks("Seqcast udp"), |side| {
        InTurn::open(side, engine::udp(side, 0.0)?)
    })?;
    turn.take("threads udp", &[trip(SMALL, Some("Seqcast udp"))], |side| {
        Apart::open(side, |side| engine::udp(side, 0.0))
    })?;

    for (share, xdp, udp) in [
        (0.01, "Seqcast xdp, 1% lost", "Seqcast udp, 1% lost"),
        (0.05, "Seqcast xdp, 5% lost", "Seqcast udp, 5% lost"),
    ] {
        #[cfg(feature = "xdp")]
        turn.take(xdp, &lossy_tasks(DRIVER), |side| {
            EnginePort::open(side, engine::xdp(side, Mode::Driver, share)?)
        })?;
        #[cfg(not(feature = "xdp"))]
        let _ = xdp;
        turn.take(udp, &lossy_tasks(RUNS), |side| {
            EnginePort::open(side, engine::udp(side, share)?)
        })?;
    }
    #[cfg(feature = "peers")]
    for (contender, beside, share) in [
        ("Aeron", ENGINE, 0.0),
        ("Aeron, 1% lost", "Seqcast xdp, 1% lost", 0.01),
        ("Aeron, 5% lost", "Seqcast xdp, 5% lost", 0.05),
    ] {
        turn.take(contender, &aeron_tasks(beside), |side| AeronPort::open(side, share))?;
    }
    #[cfg(any(feature = "xdp", feature = "peers"))]
    if turn.pair.is_veth() {
        turn.pair.set_mtu(LARGEST_MTU)?;
        let result = turn.take_largest();
        turn.pair.set_mtu(MTU)?;
        result?;
    }
    Ok(())
}

/// Aeron, held against the engine at the same.
#[cfg(feature = "peers")]
fn aeron_tasks(engine: &'static str) -> Vec<Task> {
    let mut tasks = vec![
        paced(SMALL, Some(engine)),
        stream(
            SMALL,
            FULL_COUNT,
            BATCH,
            MESSAGES_PACKED,
            Some((engine, MESSAGES_PACKED)),
        )
        .one_by_one(),
        stream(LARGE, 1, BATCH, MESSAGES_LARGE, Some((engine, MESSAGES_LARGE))),
    ];
    if engine == ENGINE {
        tasks.push(trip(SMALL, Some(engine)));
        tasks.push(stream(SMALL, 1, 1, MESSAGES_ALONE, Some((engine, MESSAGES_ALONE))));
    }
    tasks
}

/// Programs beside the engines, held against programs within them.
fn program_tasks(engine: &'static str) -> [Task; 4] {
    [
        trip(SMALL, Some(engine)),
        paced(SMALL, Some(engine)),
        stream(
            SMALL,
            FULL_COUNT,
            BATCH,
            MESSAGES_PACKED,
            Some((engine, MESSAGES_PACKED)),
        )
        .one_by_one(),
        stream(LARGE, 1, BATCH, MESSAGES_LARGE, Some((engine, MESSAGES_LARGE))),
    ]
}

fn lossy_tasks(limit: &'static str) -> [Task; 3] {
    [
        paced(SMALL, None),
        stream(SMALL, FULL_COUNT, BATCH, MESSAGES_PACKED, Some((limit, FRAMES_FULL))),
        stream(LARGE, 1, BATCH, MESSAGES_LARGE, Some((limit, FRAMES_LARGE))),
    ]
}

/// A round in progress.
struct Turn<'a> {
    pair: &'a mut Pair,
    time: Duration,
    patience: Duration,
    only: &'a str,
    task: &'a str,
    /// For what contenders keep in files while they run.
    directory: &'a Path,
    results: &'a mut Results,
}

impl Turn<'_> {
    /// Who is measured on a cable of the largest MTU.
    #[cfg(any(feature = "xdp", feature = "peers"))]
    fn take_largest(&mut self) -> Result<()> {
        let small = |against| stream(SMALL, LARGEST_COUNT, BATCH, MESSAGES_LARGEST, Some(against));
        const LARGEST_ENGINE: &str = "Seqcast xdp, MTU 3506";
        #[cfg(feature = "xdp")]
        {
            const LIMIT: (&str, &str) = ("bare AF_XDP, MTU 3506", FRAMES_LARGEST);
            let frames = |against| stream(LARGEST_FRAME, 1, BATCH, FRAMES_LARGEST, against);
            let mode = Mode::Driver;
            self.take(LIMIT.0, &[trip(SMALL_FRAME, None), frames(None)], |side| {
                BarePort::open(side, mode)
            })?;
            self.take("link xdp, MTU 3506", &[frames(Some(LIMIT))], |side| {
                LinkPort::new(side, engine::xdp(side, mode, 0.0)?.0)
            })?;
            self.take(LARGEST_ENGINE, &[trip(SMALL, Some(LIMIT.0)), small(LIMIT)], |side| {
                EnginePort::open(side, engine::xdp(side, mode, 0.0)?)
            })?;
        }
        #[cfg(feature = "peers")]
        self.take(
            "Aeron, MTU 3506",
            &[small((LARGEST_ENGINE, MESSAGES_LARGEST)).one_by_one()],
            |side| AeronPort::open(side, 0.0),
        )?;
        Ok(())
    }

    /// Engines of both ends on one core: with their programs within, and with programs on the other core, through
    /// rings of two sizes.
    #[cfg(feature = "xdp")]
    fn take_across(&mut self, mode: Mode) -> Result<()> {
        let within = "Seqcast xdp, one core";
        let (beside, small_ring) = ("programs xdp, other core", "programs xdp, other core, small ring");
        if !TRIP.contains(self.task)
            || ![within, beside, small_ring]
                .iter()
                .any(|name| is_wanted(self.only, name))
        {
            return Ok(());
        }
        let open = |side: &Side| engine::xdp(side, mode, 0.0);
        let (pair, time) = (&*self.pair, self.time);
        for (contender, limit, trips) in [
            (within, None, across::within(pair, time, open)),
            (beside, Some(within), across::beside(pair, time, open, "")),
            (
                small_ring,
                Some(within),
                across::beside(pair, time, open, "ring = \"512 KiB\""),
            ),
        ] {
            let trips = trips.context(contender)?;
            let name = Name {
                group: ROUND_TRIP,
                contender,
                what: TRIP,
                limit: trip(SMALL, limit).against,
            };
            self.results.add_latency(name, &trips);
        }
        Ok(())
    }

    fn take<P: duel::Port>(
        &mut self,
        contender: &'static str,
        tasks: &[Task],
        open: impl Fn(&crate::pair::Side) -> Result<P> + Sync,
    ) -> Result<()> {
        let tasks: Vec<&Task> = tasks.iter().filter(|task| task.what.contains(self.task)).collect();
        if tasks.is_empty() || !is_wanted(self.only, contender) {
            return Ok(());
        }
        let phases: Vec<Phase> = tasks.iter().map(|task| task.phase).collect();
        let outcomes =
            duel::run(self.pair, self.time, self.patience, &phases, open).with_context(|| contender.to_owned())?;
        for (task, outcome) in tasks.iter().zip(&outcomes) {
            let group = match task.phase {
                Phase::RoundTrip { .. } => ROUND_TRIP,
                Phase::Paced { .. } => ONE_WAY,
                Phase::Stream { .. } => RATE,
            };
            let name = Name {
                group,
                contender,
                what: task.what,
                limit: task.against,
            };
            self.results.add(name, outcome);
            if let Outcome::Latency { repaired, .. } = &outcome.outcome {
                let name = Name {
                    group: REPAIR,
                    what: "",
                    ..name
                };
                self.results.add_latency(name, repaired);
            }
        }
        Ok(())
    }
}
