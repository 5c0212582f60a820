//! The near end: asks, and measures.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use seqcast_engine::config::Config;

use super::end::{Arrival, End};
use super::far::wall;
use super::report::{Latency, Machine, OneWay, Recovery, Report, Size};
use super::talk::{HEAD, Head, Kind};
use super::{Setting, Streams, noise};
use crate::host::{self, Wish};
use crate::lab::Error;

/// How long the far end may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// Part of each measurement's time before it, which does not count.
const WARM_UP: u32 = 10;
/// Messages that may be on their way in a stream.
const WINDOW: u64 = 4096;
/// Messages that are handed over at once.
const BURST: usize = 512;
/// The longest time that a histogram holds, in ns.
const LONGEST: u64 = 60_000_000_000;

/// What to measure.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How long each measurement takes.
    pub time: Duration,
    /// Sizes of messages in bytes.
    pub sizes: Vec<usize>,
    /// Microseconds between two messages that are sent at a pace.
    pub every_us: u64,
    /// Share of arriving frames to lose, for repairs; 0: not measured.
    pub loss: f64,
    /// Both ends have the same clock.
    pub one_clock: bool,
}

/// An answer that came.
#[derive(Clone, Copy)]
struct Answer {
    head: Head,
    repaired: bool,
}

/// What has come since it was last looked at.
#[derive(Default)]
struct Inbox {
    answers: VecDeque<Answer>,
    far: Option<Machine>,
    /// Messages counted by the far end, and when, by its clock.
    counted: Option<(u64, u64)>,
    phase: u32,
}

struct Near<'a> {
    end: End,
    inbox: Rc<RefCell<Inbox>>,
    streams: Streams,
    start: Instant,
    turns: u32,
    stop: &'a AtomicUsize,
}

/// Measures against a far end. `step` is told what comes next, with its place among all.
///
/// # Errors
/// When the engine cannot be opened or fails, the far end is silent, or `stop` is set.
pub fn measure(
    setting: &Setting,
    streams: Streams,
    plan: &Plan,
    stop: &AtomicUsize,
    mut step: impl FnMut(&str, f64),
) -> Result<Report> {
    let (config, configuration) = setting.config(streams.out, &[streams.back], 0.0)?;
    // A host that cannot be examined can be measured all the same.
    let wishes = Wish::of(&config);
    let findings = wishes.first().and_then(|(_, wish)| host::examine(wish).ok());
    let findings = findings.unwrap_or_default();
    let mut near = Near::open(&config, streams, stop)?;
    let ticks = noise::Ticks::now();
    let mut noise = noise::listen(Duration::from_millis(200));
    let steps = (2 * plan.sizes.len() + 2) as f64;
    let mut done = 0.0;
    let mut next = |what: &str| {
        step(what, done / steps);
        done += 1.0;
    };
    next("looking for the far end");
    let far = near.find_far()?;
    let mut sizes = Vec::new();
    for &bytes in &plan.sizes {
        next(&format!("round trips of {bytes} B"));
        let round_trip = near.round_trips(bytes, plan.time)?;
        next(&format!("messages of {bytes} B as fast as they go"));
        let messages_per_second = near.stream(bytes, plan.time)?;
        sizes.push(Size {
            bytes,
            round_trip,
            messages_per_second,
            bytes_per_second: messages_per_second * bytes as f64,
        });
    }
    next("one way, at a pace");
    let bytes = plan.sizes.first().copied().unwrap_or(HEAD);
    let one_way = Some(near.one_way(bytes, plan)?);
    let mut recovery = None;
    let mut last = near;
    if plan.loss > 0.0 {
        next("repairs");
        let engine = last.end.mode();
        drop(last);
        let (lossy, _) = setting.config(streams.lossy, &[streams.back], plan.loss)?;
        last = Near::open(&lossy, streams, stop).with_context(|| format!("again on {engine}"))?;
        last.find_far()?;
        recovery = Some(last.recovery(bytes, plan)?);
    }
    last.say(Kind::Bye, 0, HEAD);
    for _ in 0..64 {
        last.turn()?;
    }
    noise.stolen = noise::Ticks::now().stolen_since(ticks);
    Ok(Report {
        time: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        near: Machine::this(&last.end.mode()),
        far,
        host: findings,
        configuration,
        noise,
        sizes,
        one_way,
        recovery,
        engine: serde_json::to_value(last.end.report())?,
    })
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, 3).expect("bounds that a histogram takes")
}

impl<'a> Near<'a> {
    fn open(config: &Config, streams: Streams, stop: &'a AtomicUsize) -> Result<Near<'a>> {
        // A far end may have counted for another near end before: no phase has the number of an earlier one.
        let inbox = Rc::new(RefCell::new(Inbox {
            phase: (wall() >> 20) as u32,
            ..Inbox::default()
        }));
        let theirs = Rc::clone(&inbox);
        let end = End::open(config, move |arrival, _| theirs.borrow_mut().take(&arrival))?;
        Ok(Near {
            end,
            inbox,
            streams,
            start: Instant::now(),
            turns: 0,
            stop,
        })
    }

    fn now(&self) -> u64 {
        self.start.elapsed().as_nanos() as u64
    }

    fn turn(&mut self) -> Result<()> {
        self.turns = self.turns.wrapping_add(1);
        self.end.turn(self.turns)?;
        Ok(())
    }

    fn say(&mut self, kind: Kind, number: u64, size: usize) {
        let head = Head {
            kind,
            phase: self.inbox.borrow().phase,
            number,
            sent: self.now(),
            wall: wall(),
        };
        self.end.outbox.borrow_mut().put(head, size);
    }

    /// What comes from now on belongs to something new.
    fn begin(&mut self) {
        let mut inbox = self.inbox.borrow_mut();
        inbox.phase = inbox.phase.wrapping_add(1);
        inbox.answers.clear();
        inbox.counted = None;
    }

    /// Fails when the user has had enough, or the far end is silent since `heard`.
    fn look(&self, heard: Instant) -> Result<()> {
        let signal = self.stop.load(Ordering::Relaxed);
        if signal > 0 {
            return Err(Error::Interrupted { signal: signal as i32 }.into());
        }
        if heard.elapsed() < PATIENCE {
            return Ok(());
        }
        let Streams { out, back, lossy } = self.streams;
        bail!(
            "nothing was heard from the far end for {} s. It must run \"seqcast bench serve\" with the same --group, on a \
             link that carries UDP to {out} and {lossy} there and to {back} back: look for a firewall, a switch that \
             snoops IGMP without a querier, another VLAN, and with AF_XDP for queues that nobody serves (\"seqcast check\")",
            PATIENCE.as_secs()
        )
    }

    fn find_far(&mut self) -> Result<Machine> {
        let (start, mut asked) = (Instant::now(), None::<Instant>);
        loop {
            if let Some(far) = self.inbox.borrow_mut().far.take() {
                return Ok(far);
            }
            if asked.is_none_or(|asked| asked.elapsed() > Duration::from_millis(100)) {
                asked = Some(Instant::now());
                self.say(Kind::Hello, 0, HEAD);
            }
            self.turn()?;
            self.look(start)?;
        }
    }

    fn round_trips(&mut self, size: usize, time: Duration) -> Result<Latency> {
        let mut histogram = histogram();
        self.begin();
        let start = Instant::now();
        for number in 0.. {
            self.say(Kind::Ping, number, size);
            let sent = Instant::now();
            let took = loop {
                self.turn()?;
                let answer = self.inbox.borrow_mut().answers.pop_front();
                match answer.filter(|answer| answer.head.number == number) {
                    Some(answer) => break self.now() - answer.head.sent,
                    None if self.turns.is_multiple_of(1024) => self.look(sent)?,
                    None => {}
                }
            };
            let elapsed = start.elapsed();
            if elapsed > time / WARM_UP {
                histogram.saturating_record(took);
            }
            if elapsed > time + time / WARM_UP {
                break;
            }
        }
        Ok(Latency::of(&histogram))
    }

    /// Messages a second.
    fn stream(&mut self, size: usize, time: Duration) -> Result<f64> {
        self.begin();
        let start = Instant::now();
        let (mut sent, mut heard, mut first, mut last) = (0_u64, start, None::<(u64, u64)>, (0, 0));
        while start.elapsed() < time + time / WARM_UP {
            let room = WINDOW.saturating_sub(sent.saturating_sub(last.0)).min(BURST as u64);
            for _ in 0..room {
                self.say(Kind::Stream, sent, size);
                sent += 1;
            }
            // What was handed over is sent before more is.
            loop {
                self.turn()?;
                if self.end.outbox.borrow().is_empty() {
                    break;
                }
                self.look(heard)?;
            }
            let counted = self.inbox.borrow().counted;
            if let Some(counted) = counted.filter(|counted| counted.0 > last.0) {
                (last, heard) = (counted, Instant::now());
                if start.elapsed() > time / WARM_UP {
                    first.get_or_insert(last);
                }
            }
            self.look(heard)?;
        }
        let (from, since) = first.context("no message was counted")?;
        Ok((last.0 - from) as f64 / ((last.1 - since) as f64 / 1e9).max(1e-9))
    }

    /// Sends at a pace, and gives each answer to `take`.
    fn paced(&mut self, size: usize, plan: &Plan, mut take: impl FnMut(Answer, u64, u64)) -> Result<()> {
        self.begin();
        let pause = Duration::from_micros(plan.every_us.max(1));
        let (start, mut heard) = (Instant::now(), Instant::now());
        let (mut due, mut number) = (start, 0_u64);
        let (until, mut answered) = (start + plan.time, 0_u64);
        let mut sent_wall = VecDeque::new();
        while Instant::now() < until || answered < number && heard.elapsed() < Duration::from_secs(1) {
            let now = Instant::now();
            if now >= due && now < until {
                // One that was missed is not made up for: that would be a burst.
                due = now.max(due + pause);
                self.say(Kind::Ping, number, size);
                sent_wall.push_back((number, wall()));
                number += 1;
            }
            self.turn()?;
            let arrived = self.now();
            loop {
                let Some(answer) = self.inbox.borrow_mut().answers.pop_front() else {
                    break;
                };
                heard = Instant::now();
                answered = answer.head.number + 1;
                while sent_wall.front().is_some_and(|(n, _)| *n < answer.head.number) {
                    sent_wall.pop_front();
                }
                let sent = sent_wall.front().map_or(0, |(_, wall)| *wall);
                take(answer, arrived.saturating_sub(answer.head.sent), sent);
            }
            self.look(heard)?;
        }
        Ok(())
    }

    fn one_way(&mut self, size: usize, plan: &Plan) -> Result<OneWay> {
        // Round trip, and what the far clock says of half of it.
        let mut all = Vec::new();
        self.paced(size, plan, |answer, took, sent_wall| {
            let way = i128::from(answer.head.wall) - i128::from(sent_wall);
            all.push((took, way));
        })?;
        let quickest = all.iter().min().copied().unwrap_or_default();
        let ahead = match plan.one_clock {
            true => 0,
            false => quickest.1 - i128::from(quickest.0 / 2),
        };
        let mut histogram = histogram();
        for (_, way) in all {
            histogram.saturating_record(u64::try_from(way - ahead).unwrap_or(0).max(1));
        }
        Ok(OneWay {
            bytes: size,
            every_us: plan.every_us,
            latency: Latency::of(&histogram),
            one_clock: plan.one_clock,
            error_ns: if plan.one_clock { 0 } else { quickest.0 / 2 },
        })
    }

    fn recovery(&mut self, size: usize, plan: &Plan) -> Result<Recovery> {
        let (mut live, mut repaired) = (histogram(), histogram());
        self.paced(size, plan, |answer, took, _| {
            let to = if answer.repaired { &mut repaired } else { &mut live };
            to.saturating_record(took.max(1));
        })?;
        Ok(Recovery {
            lost_share: plan.loss,
            every_us: plan.every_us,
            live: Latency::of(&live),
            repaired: Latency::of(&repaired),
            given_up: self.end.lost(),
        })
    }
}

impl Inbox {
    /// Takes what the far end says.
    fn take(&mut self, arrival: &Arrival<'_>) {
        let head = arrival.head;
        match head.kind {
            Kind::Hello => self.far = serde_json::from_slice(&arrival.bytes[HEAD..]).ok(),
            Kind::Ping if head.phase == self.phase => self.answers.push_back(Answer {
                head,
                repaired: arrival.repaired,
            }),
            Kind::Count if head.phase == self.phase => self.counted = Some((head.number, head.sent)),
            _ => {}
        }
    }
}
