//! One measurement: two ports, one at each end of a cable, and the same loops for every contender.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail};
use crossbeam_utils::CachePadded;
use hdrhistogram::Histogram;

use crate::pair::{LARGEST_MTU, MTU, Pair, Side};

/// A small message, and the UDP payload of an engine frame that holds one such message.
pub(crate) const SMALL: usize = 64;
pub(crate) const SMALL_FRAME: usize = SMALL + OVERHEAD;
/// A large message, and the UDP payload of an engine frame that holds one such message.
pub(crate) const LARGE: usize = 1024;
pub(crate) const LARGE_FRAME: usize = LARGE + OVERHEAD;
/// The UDP payload of an engine frame with as many small messages as an MTU of 1500 takes, and how
/// many that are.
pub(crate) const FULL_FRAME: usize = seqcast_proto::wire::HEADER + FULL_COUNT * SMALL_ENTRY;
pub(crate) const FULL_COUNT: usize = full_count(MTU);
/// The same for the largest MTU.
pub(crate) const LARGEST_FRAME: usize = seqcast_proto::wire::HEADER + LARGEST_COUNT * SMALL_ENTRY;
pub(crate) const LARGEST_COUNT: usize = full_count(LARGEST_MTU);
/// Frames handed to the kernel at once, for every contender.
pub(crate) const BATCH: usize = 64;
/// Frames of a stream that may be on their way: the engine's receive ring. A sender that outran the
/// receiver would measure how fast frames are lost.
const WINDOW: u64 = 2048;
/// A window full for so long has lost its end; the sender goes on.
const STALLED: Duration = Duration::from_millis(5);

const OVERHEAD: usize = seqcast_proto::wire::HEADER + seqcast_proto::wire::MESSAGE_HEADER;
const SMALL_ENTRY: usize = SMALL + seqcast_proto::wire::MESSAGE_HEADER;

/// Small messages in a frame of a packet that the MTU allows, IPv4 and UDP headers and all.
const fn full_count(mtu: u32) -> usize {
    (mtu as usize - 28 - seqcast_proto::wire::HEADER) / SMALL_ENTRY
}

/// The longest wait for anything that cannot fail to happen unless something is broken.
const PATIENCE: Duration = Duration::from_secs(2);
/// A round trip not back after this time is lost, and the next is tried.
const LOST_AFTER: Duration = Duration::from_millis(20);
/// Share of a phase that a thread may wait for its core; above it the phase is measured again.
const DISTURBED: f64 = 0.02;
/// Times that a disturbed phase is measured, at most.
const ATTEMPTS: u64 = 6;
/// Gates of one attempt.
const GATES: u64 = 2;
/// Bits of a stream's word above the message's number: the phase.
const PHASE_SHIFT: u32 = 48;
/// Silence after which a contender without repair has delivered all that it ever will.
const SILENCE: Duration = Duration::from_millis(30);

/// What one call of [`Port::receive`] brought.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Received {
    /// Messages.
    pub(crate) messages: usize,
    /// The first 8 bytes of the newest one.
    pub(crate) word: u64,
}

/// The words of all messages that came, when a phase wants them.
#[derive(Debug, Default)]
pub(crate) struct Words {
    wanted: bool,
    /// First 8 bytes, and whether the message had been lost and was repaired.
    all: Vec<(u64, bool)>,
}

impl Words {
    /// Notes a message.
    #[inline]
    pub(crate) fn note(&mut self, word: u64, repaired: bool) {
        if self.wanted {
            self.all.push((word, repaired));
        }
    }
}

/// The first 8 bytes of a message.
#[inline]
pub(crate) fn word_of(message: &[u8]) -> u64 {
    message.first_chunk().map_or(0, |word| u64::from_ne_bytes(*word))
}

/// What a port has done since it was opened.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Frames handed to the kernel.
    pub(crate) frames: u64,
    /// System calls for sending and receiving.
    pub(crate) syscalls: u64,
}

/// A contender's end.
pub(crate) trait Port {
    /// Whether what is lost on the way is repaired.
    const REPAIRS: bool = false;

    /// Says how long the coming messages are, at both ends.
    fn prepare(&mut self, _size: usize) -> Result<()> {
        Ok(())
    }

    /// Sends up to `count` messages of `size` bytes that begin with `word`, and hands them to the
    /// kernel. Returns how many were taken.
    fn send(&mut self, word: u64, size: usize, count: usize) -> Result<usize>;

    /// Takes what has arrived, without waiting.
    fn receive(&mut self) -> Result<Received>;

    /// What [`Port::receive`] has noted.
    fn words(&mut self, with: impl FnOnce(&mut Words));

    /// Counters.
    fn counters(&mut self) -> Counters;

    /// Messages that were given up for lost.
    fn lost(&mut self) -> u64 {
        0
    }
}

/// What is measured between two open ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// One message there and back, again and again.
    RoundTrip {
        /// Bytes of the message.
        size: usize,
    },
    /// One message every so many microseconds, one way.
    Paced {
        /// Bytes of the message.
        size: usize,
        /// Time between two.
        every_us: u64,
    },
    /// As fast as possible.
    Stream {
        /// Bytes of a message.
        size: usize,
        /// Messages of a frame.
        per_frame: usize,
        /// Frames handed over at once.
        batch: usize,
    },
}

impl Phase {
    fn size(self) -> usize {
        match self {
            Phase::RoundTrip { size } | Phase::Paced { size, .. } | Phase::Stream { size, .. } => size,
        }
    }
}

/// What a phase found.
#[derive(Clone, Debug)]
pub(crate) enum Outcome {
    /// Nanoseconds, from the sending of each message to its delivery; `repaired` of those that had been
    /// lost, from the sending of the next message that came by itself, which showed the gap.
    Latency {
        all: Histogram<u64>,
        repaired: Histogram<u64>,
    },
    /// What arrived while the sender was sending.
    Rate {
        /// Messages a second, in order and once if the contender promises that.
        messages: f64,
        /// Frames that the sender handed to the kernel, repairs included, a second.
        frames: f64,
        /// Sender's system calls for each frame.
        syscalls_per_frame: f64,
        /// Share of the messages that never arrived.
        lost: f64,
    },
}

/// A histogram of nanoseconds up to a minute, three digits.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("bounds are valid")
}

/// What the two threads tell each other. Read once a turn, written a few times a phase.
struct Control {
    /// Arrivals at gates.
    arrivals: AtomicU64,
    /// The way there and back is open.
    met: AtomicBool,
    /// Where the present phase stands.
    stage: AtomicU8,
    /// Messages that the sender has sent in the phase, once it has stopped.
    sent: AtomicU64,
    /// The newest message of a stream that the receiver has.
    progress: CachePadded<AtomicU64>,
    /// Nanoseconds that the far end waited for its core in the phase; then both ends together.
    waited: AtomicU64,
    /// Time left for measuring phases again.
    patience: Mutex<Duration>,
    /// The near end wants the phase again.
    again: AtomicBool,
    /// The receiver has all that will come.
    settled: AtomicBool,
    /// One of the two threads has given up.
    failed: AtomicBool,
    /// Why.
    error: Mutex<Option<Error>>,
    epoch: Instant,
}

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOPPED: u8 = 2;

impl Control {
    fn now(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    fn check(&self) -> Result<()> {
        if self.failed.load(Ordering::Relaxed) {
            bail!("the other end failed");
        }
        Ok(())
    }

    /// Waits for the other end at gate `number`, from 1. Spins: both threads have a core.
    fn gate(&self, number: u64) -> Result<()> {
        self.arrivals.fetch_add(1, Ordering::SeqCst);
        while self.arrivals.load(Ordering::SeqCst) < 2 * number {
            self.check()?;
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Does one end's part, and tells the other end when it fails.
    fn attempt<T>(&self, job: impl FnOnce() -> Result<T>) -> Option<T> {
        job()
            .map_err(|error| {
                // The first error is the cause; the other end's follows from it.
                self.error.lock().expect("no panic inside").get_or_insert(error);
                self.failed.store(true, Ordering::SeqCst);
            })
            .ok()
    }
}

/// A phase's outcome.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    pub(crate) outcome: Outcome,
    /// Share of the time that the threads waited for their cores.
    pub(crate) waited: f64,
}

/// Opens a port at each end and runs the phases, each for `time` after a tenth of it as warm-up.
///
/// A phase that others on the machine disturbed is measured again while that takes no longer than
/// `patience` in all; the least disturbed attempt counts.
pub(crate) fn run<P: Port>(
    pair: &Pair,
    time: Duration,
    patience: Duration,
    phases: &[Phase],
    open: impl Fn(&Side) -> Result<P> + Sync,
) -> Result<Vec<Measured>> {
    let control = Control {
        arrivals: AtomicU64::new(0),
        met: AtomicBool::new(false),
        stage: AtomicU8::new(WARM_UP),
        sent: AtomicU64::new(0),
        progress: CachePadded::default(),
        waited: AtomicU64::new(0),
        patience: Mutex::new(patience),
        again: AtomicBool::new(false),
        settled: AtomicBool::new(false),
        failed: AtomicBool::new(false),
        error: Mutex::new(None),
        epoch: Instant::now(),
    };
    let (near, far) = pair.run(
        |side| {
            Ok(control.attempt(|| {
                let mut port = open(&side)?;
                side.pin()?;
                meet(&mut port, &control)?;
                attempts(phases, &control, |phase, gate| {
                    lead(&mut port, phase, time, gate, &control)
                })
            }))
        },
        |side| {
            Ok(control.attempt(|| {
                let mut port = open(&side)?;
                side.pin()?;
                echo(&mut port, &control)?;
                attempts(phases, &control, |phase, gate| follow(&mut port, phase, gate, &control))
            }))
        },
    )?;
    match (near, far) {
        // Of each phase one end has the outcome; of a stream each has a half.
        (Some(near), Some(far)) => Ok(near
            .into_iter()
            .zip(far)
            .map(|((near, waited), (far, _))| Measured {
                outcome: join(near, far),
                waited: waited as f64 / (2.0 * time.as_nanos() as f64),
            })
            .collect()),
        _ => {
            let error = control.error.into_inner().ok().flatten();
            Err(error.unwrap_or_else(|| anyhow!("an end failed")))
        }
    }
}

/// One end's part of all phases, with how long both ends waited for their cores. Both ends come to
/// the same decisions.
fn attempts(
    phases: &[Phase],
    control: &Control,
    mut measure: impl FnMut(Phase, u64) -> Result<Half>,
) -> Result<Vec<(Half, u64)>> {
    let mut gate = 1;
    let mut kept = Vec::with_capacity(phases.len());
    for phase in phases {
        let mut best: Option<(Half, u64)> = None;
        for _ in 0..ATTEMPTS {
            let half = measure(*phase, gate)?;
            gate += GATES;
            let waited = control.waited.load(Ordering::SeqCst);
            if best.as_ref().is_none_or(|(_, least)| waited < *least) {
                best = Some((half, waited));
            }
            if !control.again.load(Ordering::SeqCst) {
                break;
            }
        }
        kept.extend(best);
    }
    Ok(kept)
}

/// What one end knows of a phase.
enum Half {
    Nothing,
    Latency(Outcome),
    Sent { frames: f64, syscalls_per_frame: f64 },
    Arrived { messages: f64, lost: f64 },
}

fn join(near: Half, far: Half) -> Outcome {
    match (near, far) {
        (Half::Latency(outcome), _) | (_, Half::Latency(outcome)) => outcome,
        (
            Half::Sent {
                frames,
                syscalls_per_frame,
            },
            Half::Arrived { messages, lost },
        ) => Outcome::Rate {
            messages,
            frames,
            syscalls_per_frame,
            lost,
        },
        _ => unreachable!("both ends run the same phases"),
    }
}

/// Nanoseconds that this thread has waited for its core since it began, as the scheduler counts.
fn waiting() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("this kernel does not count waiting")?;
    let waited = text
        .split_ascii_whitespace()
        .nth(1)
        .and_then(|waited| waited.parse().ok());
    waited.context("/proc/thread-self/schedstat is not understood")
}

/// Waits until both ways are open.
fn meet(port: &mut impl Port, control: &Control) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    port.prepare(SMALL)?;
    for word in 1.. {
        if round_trip(port, word, SMALL, control)?.is_some() {
            break;
        }
        if Instant::now() > until {
            bail!("nothing comes back from the other end");
        }
    }
    control.met.store(true, Ordering::SeqCst);
    Ok(())
}

/// Sends back what comes until the near end has heard it.
fn echo(port: &mut impl Port, control: &Control) -> Result<()> {
    port.prepare(SMALL)?;
    while !control.met.load(Ordering::SeqCst) {
        let received = port.receive()?;
        if received.messages > 0 {
            while port.send(received.word, SMALL, 1)? == 0 {}
        }
        control.check()?;
    }
    Ok(())
}

/// The time there and back, or `None` if it got lost.
fn round_trip(port: &mut impl Port, word: u64, size: usize, control: &Control) -> Result<Option<u64>> {
    let start = Instant::now();
    while port.send(word, size, 1)? == 0 {}
    for turn in 1u64.. {
        let received = port.receive()?;
        if received.messages > 0 && received.word == word {
            return Ok(Some(start.elapsed().as_nanos() as u64));
        }
        if turn.is_multiple_of(256) {
            control.check()?;
            if start.elapsed() > LOST_AFTER {
                break;
            }
        }
    }
    Ok(None)
}

/// The near end of a phase.
fn lead(port: &mut impl Port, phase: Phase, time: Duration, gate: u64, control: &Control) -> Result<Half> {
    port.prepare(phase.size())?;
    control.stage.store(WARM_UP, Ordering::SeqCst);
    control.settled.store(false, Ordering::SeqCst);
    control.progress.store(0, Ordering::SeqCst);
    control.gate(gate)?;
    let waited_before = waiting()?;
    let warm = Instant::now() + time / 10;
    let end = warm + time;
    let mut sent = 0u64;
    let half = match phase {
        Phase::RoundTrip { size } => {
            let mut all = histogram();
            // Words above those of other phases, so that no late echo is mistaken.
            for word in control.now().. {
                let now = Instant::now();
                if now >= end {
                    break;
                }
                let trip = round_trip(port, word, size, control)?;
                sent += 1;
                if now >= warm {
                    trip.into_iter().for_each(|trip| all.saturating_record(trip));
                }
            }
            Half::Latency(Outcome::Latency {
                all,
                repaired: histogram(),
            })
        }
        Phase::Paced { size, every_us } => {
            let every = every_us * 1000;
            let mut due = control.now();
            loop {
                let now = control.now();
                if now < due {
                    port.receive()?;
                    continue;
                }
                let instant = Instant::now();
                if instant >= end {
                    break;
                }
                if instant >= warm {
                    control.stage.store(MEASURE, Ordering::Relaxed);
                }
                // What this machine's own pauses swallowed is not made up for in a burst.
                due = now + every;
                sent += port.send(now, size, 1)? as u64;
            }
            Half::Nothing
        }
        Phase::Stream { size, per_frame, batch } => {
            let (window, batch) = (WINDOW * per_frame as u64, batch * per_frame);
            let mark = gate << PHASE_SHIFT;
            let mut full_since: Option<Instant> = None;
            let mut before = port.counters();
            let mut start = Instant::now();
            let mut measuring = false;
            loop {
                let now = Instant::now();
                if now >= end {
                    break;
                }
                let full = sent + batch as u64 > control.progress.load(Ordering::Relaxed) + window;
                if !full || now - *full_since.get_or_insert(now) > STALLED {
                    full_since = None;
                    sent += port.send(mark + sent + 1, size, batch)? as u64;
                } else {
                    port.receive()?;
                }
                if !measuring && now >= warm {
                    measuring = true;
                    before = port.counters();
                    start = now;
                    control.stage.store(MEASURE, Ordering::Relaxed);
                }
            }
            let after = port.counters();
            let frames = (after.frames - before.frames) as f64;
            Half::Sent {
                frames: frames / start.elapsed().as_secs_f64(),
                syscalls_per_frame: (after.syscalls - before.syscalls) as f64 / frames.max(1.0),
            }
        }
    };
    let waited = waiting()? - waited_before;
    control.sent.store(sent, Ordering::SeqCst);
    control.stage.store(STOPPED, Ordering::SeqCst);
    // A reliable contender now answers what is still asked for.
    while !control.settled.load(Ordering::Acquire) {
        port.send(0, 0, 0)?;
        port.receive()?;
        control.check()?;
    }
    let waited = waited + control.waited.load(Ordering::SeqCst);
    control.waited.store(waited, Ordering::SeqCst);
    let disturbed = waited as f64 > DISTURBED * 2.0 * time.as_nanos() as f64;
    let mut patience = control.patience.lock().expect("no panic inside");
    let again = disturbed && *patience >= time;
    if again {
        *patience = patience.saturating_sub(warm.elapsed());
    }
    control.again.store(again, Ordering::SeqCst);
    control.gate(gate + 1)?;
    Ok(half)
}

/// The far end of a phase.
fn follow<Q: Port>(port: &mut Q, phase: Phase, gate: u64, control: &Control) -> Result<Half> {
    port.prepare(phase.size())?;
    // Late echoes of the phase before.
    while port.receive()?.messages > 0 {}
    let lost_before = port.lost();
    control.gate(gate)?;
    let waited_before = waiting()?;
    port.words(|words| {
        words.all.clear();
        words.wanted = matches!(phase, Phase::Paced { .. });
    });
    let (mut all, mut repaired) = (histogram(), histogram());
    // When repaired messages were delivered that wait for the one that showed their gap.
    let mut pending = Vec::with_capacity(64);
    let mut arrived = 0u64;
    let mut measured_from: Option<(Instant, u64)> = None;
    // When the sender had stopped, and what came until then.
    let mut stopped: Option<(Instant, f64)> = None;
    let mut last = Instant::now();
    let mut waited = 0;
    for turn in 1u64.. {
        let received = port.receive()?;
        arrived += received.messages as u64;
        let stage = control.stage.load(Ordering::Relaxed);
        if received.messages > 0 {
            match phase {
                Phase::RoundTrip { size } => while port.send(received.word, size, 1)? == 0 {},
                Phase::Paced { .. } => {
                    let now = control.now();
                    port.words(|words| {
                        for (sent, was_repaired) in words.all.drain(..).filter(|_| stage != WARM_UP) {
                            all.saturating_record(now.saturating_sub(sent).max(1));
                            if was_repaired {
                                pending.push(now);
                            } else {
                                // What was repaired before its follower was sent was not seen by it.
                                let took = pending.drain(..).filter_map(|then: u64| then.checked_sub(sent));
                                took.for_each(|took| repaired.saturating_record(took.max(1)));
                            }
                        }
                    });
                }
                // The word has the number, from 1, of the first message of the newest batch.
                Phase::Stream { .. } if received.word >> PHASE_SHIFT == gate => {
                    let number = received.word & ((1 << PHASE_SHIFT) - 1);
                    control.progress.store(number, Ordering::Relaxed);
                }
                // A late message of the phase before.
                Phase::Stream { .. } => arrived -= received.messages as u64,
            }
        }
        if turn.is_multiple_of(1024) {
            control.check()?;
        }
        if stage == WARM_UP {
            continue;
        }
        let (from, count) = *measured_from.get_or_insert_with(|| (Instant::now(), arrived));
        if stage == MEASURE {
            continue;
        }
        let now = Instant::now();
        if stopped.is_none() {
            waited = waiting()? - waited_before;
        }
        let (since, _) = *stopped.get_or_insert_with(|| {
            let seconds = (now - from).as_secs_f64().max(1e-9);
            (now, (arrived - count) as f64 / seconds)
        });
        if received.messages > 0 || since == now {
            last = now;
        }
        let complete = arrived + (port.lost() - lost_before) >= control.sent.load(Ordering::SeqCst);
        let patience = if Q::REPAIRS { PATIENCE } else { SILENCE };
        if complete || now - last > patience || now - since > PATIENCE {
            break;
        }
    }
    control.waited.store(waited, Ordering::SeqCst);
    control.settled.store(true, Ordering::Release);
    control.gate(gate + 1)?;
    let sent = control.sent.load(Ordering::SeqCst).max(1);
    Ok(match phase {
        Phase::RoundTrip { .. } => Half::Nothing,
        Phase::Paced { .. } => Half::Latency(Outcome::Latency { all, repaired }),
        Phase::Stream { .. } => Half::Arrived {
            messages: stopped.map_or(0.0, |(_, rate)| rate),
            lost: 1.0 - arrived.min(sent) as f64 / sent as f64,
        },
    })
}
