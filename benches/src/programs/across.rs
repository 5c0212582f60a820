//! Programs on another core than their engines, with two cores for all.
//!
//! A ping-pong has one message on its way, so that of two engines one has something to do at a time, and
//! of two programs one. Hence both engines share a core here and both programs the other, each turned only while it is
//! its turn, as if it spun alone. Each message meets four crossings from core to core, as with a core for each: program to
//! engine and engine to program, at either end. The way between the engines stays on one core, with and without programs
//! beside them, so that it is no part of the difference.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hdrhistogram::Histogram;
use seqcast_client::Engine;
use seqcast_engine::link::Link;

use super::{Program, spinning};
use crate::duel::{Port, SMALL, histogram};
use crate::engine::EnginePort;
use crate::pair::{End, Pair, Side};

/// Turns without work after which it may be another's turn: a heartbeat came between.
const IDLE: u32 = 1000;
/// Tries between two looks at the clock.
const LOOK: u32 = 1 << 10;
/// The longest wait for the first message that comes back.
const READY_AFTER: Duration = Duration::from_secs(5);
/// A message that is not back by then was lost.
const LOST_AFTER: Duration = Duration::from_millis(100);

/// Round trips, in nanoseconds, of programs within the engines.
pub(crate) fn within<L: Link>(
    pair: &Pair,
    time: Duration,
    open: impl Fn(&Side) -> Result<(L, u32)> + Sync,
) -> Result<Histogram<u64>> {
    thread::scope(|scope| {
        let within = scope.spawn(|| {
            let side = pair.enter(End::Near)?;
            let mut near = EnginePort::open(&side, open(&side)?)?;
            let side = pair.enter(End::Far)?;
            let mut far = EnginePort::open(&side, open(&side)?)?;
            side.pin()?;
            measure(time, |word| turn_about(&mut near, &mut far, word))
        });
        within.join().map_err(|_| anyhow!("a thread panicked"))?
    })
}

/// One message there and back, by two ports of one thread.
fn turn_about(near: &mut impl Port, far: &mut impl Port, word: u64) -> Result<bool> {
    while near.send(word, SMALL, 1)? == 0 {}
    if !until(|| Ok(far.receive()?.word == word))? {
        return Ok(false);
    }
    while far.send(word, SMALL, 1)? == 0 {}
    until(|| Ok(near.receive()?.word == word))
}

/// Tries until it holds; false after too long.
fn until(mut holds: impl FnMut() -> Result<bool>) -> Result<bool> {
    let mut from = None;
    loop {
        for _ in 0..LOOK {
            if holds()? {
                return Ok(true);
            }
        }
        if from.get_or_insert_with(Instant::now).elapsed() > LOST_AFTER {
            return Ok(false);
        }
    }
}

/// Times `trip` again and again; the first tenth is not counted, nor is what was lost.
fn measure(time: Duration, mut trip: impl FnMut(u64) -> Result<bool>) -> Result<Histogram<u64>> {
    let mut all = histogram();
    let begin = Instant::now();
    // A client begins with the first frame that it hears, and an engine looks for new programs now and then only.
    while !trip(u64::MAX)? {
        ensure!(begin.elapsed() < READY_AFTER, "no message comes back");
    }
    let begin = Instant::now();
    let (warm, end) = (begin + time / 10, begin + time / 10 + time);
    let mut lost = 0u32;
    for word in 1.. {
        let start = Instant::now();
        if start >= end {
            break;
        }
        if !trip(word)? {
            lost += 1;
            ensure!(lost < 10, "messages do not come back");
        } else if start >= warm {
            all.saturating_record(start.elapsed().as_nanos() as u64);
        }
    }
    Ok(all)
}

/// Round trips, in nanoseconds, of programs on the other core. `settings` are those of `[programs]`.
pub(crate) fn beside<L: Link>(
    pair: &Pair,
    time: Duration,
    open: impl Fn(&Side) -> Result<(L, u32)> + Sync,
    settings: &str,
) -> Result<Histogram<u64>> {
    let over = AtomicBool::new(false);
    let (tell, told) = mpsc::channel();
    thread::scope(|scope| {
        let engines = scope.spawn(|| {
            let result = turn_engines(pair, &open, settings, tell, &over);
            // Whoever waits for a message learns that none will come.
            over.store(true, Ordering::Relaxed);
            result
        });
        let over = &over;
        let programs = scope.spawn(move || {
            let result = ping_pong(pair, time, &told, over);
            over.store(true, Ordering::Relaxed);
            result
        });
        let programs = programs.join().map_err(|_| anyhow!("a thread panicked"))?;
        engines.join().map_err(|_| anyhow!("a thread panicked"))??;
        programs
    })
}

/// Both engines on the second core. Each has two things to do before it is the other's turn: to take what came, and
/// to send what follows.
fn turn_engines<L: Link>(
    pair: &Pair,
    open: &(impl Fn(&Side) -> Result<(L, u32)> + Sync),
    settings: &str,
    tell: mpsc::Sender<Engine>,
    over: &AtomicBool,
) -> Result<()> {
    let mut nodes = Vec::with_capacity(2);
    for end in [End::Near, End::Far] {
        let side = pair.enter(end)?;
        let (node, engine) = spinning(&side, open(&side)?, settings)?;
        // Nobody listens if the programs have given up.
        let _ = tell.send(engine);
        nodes.push(node);
    }
    drop(tell);
    pair.enter(End::Far)?.pin()?;
    while !over.load(Ordering::Relaxed) {
        for node in &mut nodes {
            let (mut done, mut idle) = (0, 0);
            while done < 2 && idle < IDLE {
                match node.poll()? {
                    true => done += 1,
                    false => idle += 1,
                }
            }
        }
    }
    Ok(())
}

/// Both programs on the first core.
fn ping_pong(pair: &Pair, time: Duration, told: &mpsc::Receiver<Engine>, over: &AtomicBool) -> Result<Histogram<u64>> {
    let [near, far] = [told.recv(), told.recv()].map(|engine| Program::attach(&engine.context("an engine ended")?));
    let (mut near, mut far) = (near?, far?);
    pair.enter(End::Near)?.pin()?;
    measure(time, |word| {
        ensure!(!over.load(Ordering::Relaxed), "an engine ended");
        near.publish(word, SMALL, 1)?;
        if !until(|| Ok(far.take(None)?.word == word))? {
            return Ok(false);
        }
        far.publish(word, SMALL, 1)?;
        until(|| Ok(near.take(None)?.word == word))
    })
}
