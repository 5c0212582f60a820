//! Takes delivered messages out of a lane and writes them.

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use seqcast_proto::io::{Delivery, Path as Way};
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::wire::Block;
use seqcast_ring::{Consumer, Doorbell, Fill, Producer, lane};

use super::item::{Item, flags};
use super::mold;
use super::output::{Output, describe};
use super::position::{Keeper, Position};
use crate::config::Sink as Config;
use crate::report::MoldSinkReport;

/// Bytes of the lane between a client and its sink.
const LANE: usize = 4 << 20;
/// How long an empty lane may keep a sink from looking whether it shall stop.
const LOOK: Duration = Duration::from_millis(50);
/// What is known of a block, in front of its bytes in the lane.
const HEAD: usize = 24;
/// In the flags of such a head: the session ended in front of the number, and there is no block.
const ENDED: u16 = 1 << 15;
/// Ends of sessions that may wait for room in the lane.
const ENDS: usize = 64;

/// Keeps the position of a durable client.
#[derive(Clone, Copy, Debug)]
pub struct Durable<'a> {
    /// The directory for it.
    pub state: &'a Path,
    /// The client's name.
    pub name: &'a str,
    /// How long a written message may wait for its confirmation.
    pub interval: Duration,
}

/// A running sink.
pub struct Sink {
    lane: Producer,
    /// Wakes the sink's thread.
    bell: Arc<Doorbell>,
    /// Nothing was put in since the last ring.
    quiet: bool,
    durable: bool,
    failed: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    resume: Option<(Session, Seq)>,
    /// Ends of sessions that the lane had no room for, if the sink wants to know them.
    ends: Option<VecDeque<(Session, Seq)>>,
    mold: Option<Arc<Mutex<MoldSinkReport>>>,
    thread: JoinHandle<io::Result<()>>,
}

/// What an entry of the lane holds.
pub(super) enum Part<'a> {
    /// Messages, their session, flags, and when they were first sent.
    Block(Session, Block<'a>, u16, u64),
    /// The session ended in front of this number.
    End(Session, Seq),
}

/// The parts of an entry of a sink's lane.
pub(super) fn parts(mut entry: &[u8]) -> impl Iterator<Item = Part<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = entry.split_first_chunk::<HEAD>()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, time @ ..] = *head;
        let (bytes, rest) = rest.split_at_checked(u32::from_le_bytes([m, n, o, p]) as usize)?;
        entry = rest;
        let session = Session(u32::from_le_bytes([a, b, c, d]));
        let first = Seq(u32::from_le_bytes([e, f, g, h]));
        let flags = u16::from_le_bytes([k, l]);
        if flags & ENDED != 0 {
            return Some(Part::End(session, first));
        }
        let block = Block::trusted(first, u16::from_le_bytes([i, j]), bytes);
        Some(Part::Block(session, block, flags, u64::from_le_bytes(time)))
    })
}

/// Writes what is known of `block` in front of it.
fn put_head(head: &mut [u8], session: Session, block: &Block<'_>, flags: u16, time: u64) {
    head[..4].copy_from_slice(&session.0.to_le_bytes());
    head[4..8].copy_from_slice(&block.first().0.to_le_bytes());
    head[8..10].copy_from_slice(&block.count().to_le_bytes());
    head[10..12].copy_from_slice(&flags.to_le_bytes());
    // A block is part of a frame: its length fits.
    head[12..16].copy_from_slice(&(block.bytes().len() as u32).to_le_bytes());
    head[16..].copy_from_slice(&time.to_le_bytes());
}

impl Sink {
    /// Opens the target and starts writing. `room` is rung when the lane has room again.
    ///
    /// # Errors
    /// When the target or the position cannot be opened or the thread not started.
    pub fn start(
        config: &Config,
        stream: Stream,
        durable: Option<&Durable<'_>>,
        room: Arc<Doorbell>,
    ) -> io::Result<Sink> {
        let (producer, consumer) = lane(LANE);
        let bell = Arc::new(Doorbell::new()?);
        let failed = Arc::new(AtomicBool::new(false));
        let stop = Arc::new(AtomicBool::new(false));
        if let Some(config) = &config.mold {
            let ends = mold::sink::Ends {
                lane: consumer,
                bell: Arc::clone(&bell),
                room,
                failed: Arc::clone(&failed),
            };
            let interval = durable.map_or(LOOK, |d| d.interval);
            let started = mold::sink::start(config, stream, interval, ends)?;
            return Ok(Sink {
                lane: producer,
                bell,
                quiet: true,
                // Its log is its position.
                durable: false,
                failed,
                stop,
                resume: started.resume,
                ends: Some(VecDeque::with_capacity(ENDS)),
                mold: Some(started.report),
                thread: started.thread,
            });
        }
        let kept = match durable {
            Some(d) => Some(Keeper::open(d.state, d.name, stream, describe(config))?),
            None => None,
        };
        let position = kept.as_ref().and_then(|(_, position)| *position);
        let (output, last) = Output::open(config, stream, durable.is_some(), position.as_ref(), &stop)?;
        let mut writer = Writer {
            output,
            keeper: kept.map(|(keeper, _)| keeper),
            interval: durable.map_or(LOOK, |d| d.interval),
            written: None,
            saved: Instant::now(),
        };
        let (bell_there, failed_there, stop_there) = (Arc::clone(&bell), Arc::clone(&failed), Arc::clone(&stop));
        let thread = std::thread::Builder::new().name("sink".into()).spawn(move || {
            let result = match writer.write_all(consumer, &bell_there, &room, &stop_there) {
                Ok(()) => writer.output.finish(),
                Err(error) => Err(error),
            };
            failed_there.store(result.is_err(), Ordering::Release);
            room.ring();
            result
        })?;
        // A journal without a position knows its last message itself.
        let last = last.filter(|_| durable.is_some());
        Ok(Sink {
            lane: producer,
            bell,
            quiet: true,
            durable: durable.is_some(),
            failed,
            stop,
            resume: position.map(|p| (p.session, p.seq)).or(last),
            ends: None,
            mold: None,
            thread,
        })
    }

    /// The last message that a durable client's sink has, from earlier runs.
    #[must_use]
    pub fn resume(&self) -> Option<(Session, Seq)> {
        self.resume
    }

    /// Whether the position of a durable client is kept.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        self.durable
    }

    /// Takes `blocks` of delivered messages, ascending parts of the delivery, all or none; false
    /// when there is no room now. The position of a durable client moves behind the delivery.
    pub fn put<'a>(&mut self, delivery: &Delivery<'_>, blocks: impl Iterator<Item = Block<'a>> + Clone) -> bool {
        if !self.put_ends() {
            return false;
        }
        let way = match delivery.path {
            Way::Live => 0,
            Way::Archive => flags::REPAIRED,
            Way::Server => flags::REPAIRED | flags::FROM_SERVER,
        };
        let flags = way | if delivery.late { flags::LATE } else { 0 };
        let end = |block: &Block<'_>| block.first().plus(u32::from(block.count()));
        let all_end = end(&delivery.block);
        let tail = self.durable && blocks.clone().last().is_none_or(|b| end(&b) != all_end);
        let blocks = blocks.chain(tail.then(|| Block::trusted(all_end, 0, &[])));
        let Ok(mut entry) = self
            .lane
            .try_claim(blocks.clone().map(|b| HEAD + b.bytes().len()).sum())
        else {
            return false;
        };
        let mut at = 0;
        for block in blocks {
            let (head, bytes) = entry[at..].split_at_mut(HEAD);
            put_head(head, delivery.session, &block, flags, delivery.time);
            bytes[..block.bytes().len()].copy_from_slice(block.bytes());
            at += HEAD + block.bytes().len();
        }
        entry.commit();
        self.quiet = false;
        true
    }

    /// Says that a session ended, if the sink wants to know.
    pub fn ended(&mut self, session: Session, last: Seq) {
        if let Some(ends) = &mut self.ends {
            // A sink that has stood still for so many sessions finds the oldest ended all the same.
            if ends.len() == ENDS {
                ends.pop_front();
            }
            ends.push_back((session, last.next()));
            self.put_ends();
        }
    }

    /// Puts the ends of sessions that wait into the lane; false when there is no room.
    fn put_ends(&mut self) -> bool {
        let Some(ends) = &mut self.ends else { return true };
        while let Some((session, next)) = ends.front() {
            let Ok(mut entry) = self.lane.try_claim(HEAD) else {
                return false;
            };
            put_head(&mut entry, *session, &Block::trusted(*next, 0, &[]), ENDED, 0);
            entry.commit();
            ends.pop_front();
            self.quiet = false;
        }
        true
    }

    /// What a publisher of a feed has sent and answered; complete when it has finished.
    #[must_use]
    pub fn mold_report(&self) -> Option<Arc<Mutex<MoldSinkReport>>> {
        self.mold.clone()
    }

    /// How much waits for the sink's thread.
    pub(crate) fn fill(&self) -> Fill {
        self.lane.fill()
    }

    /// Wakes the sink if something was put in.
    pub fn ring(&mut self) {
        self.put_ends();
        if !self.quiet {
            self.quiet = true;
            self.bell.ring();
        }
    }

    /// Whether writing has failed; [`Sink::finish`] says why.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.failed.load(Ordering::Acquire)
    }

    /// Lets everything be written, and confirmed for a durable client, and waits for it.
    ///
    /// # Errors
    /// What writing failed with.
    pub fn finish(self) -> io::Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.lane);
        self.bell.ring();
        match self.thread.join() {
            Ok(result) => result,
            Err(_) => Err(io::Error::other("the sink's thread panicked")),
        }
    }
}

/// The sink's thread.
struct Writer {
    output: Output,
    keeper: Option<Keeper>,
    interval: Duration,
    /// The last message written and not confirmed yet.
    written: Option<(Session, Seq)>,
    saved: Instant,
}

impl Writer {
    fn write_all(
        &mut self,
        mut lane: Consumer,
        bell: &Doorbell,
        room: &Doorbell,
        stop: &Arc<AtomicBool>,
    ) -> io::Result<()> {
        if !self.output.connect(stop)? {
            return Ok(());
        }
        loop {
            let mut result = Ok(());
            let taken = lane.drain(1024, |_, entry| {
                if result.is_ok() {
                    result = self.write_entry(entry);
                }
                true
            });
            result?;
            lane.flush();
            if taken > 0 {
                room.ring();
                if self.is_due() {
                    self.confirm()?;
                }
                continue;
            }
            self.output.flush()?;
            if lane.is_finished() {
                return self.confirm();
            }
            if self.is_due() {
                self.confirm()?;
            }
            self.output.check()?;
            bell.arm();
            if lane.peek().is_none() && !lane.is_finished() {
                bell.wait(self.longest_rest());
            }
            bell.disarm();
        }
    }

    fn is_due(&self) -> bool {
        self.keeper.is_some() && self.written.is_some() && self.saved.elapsed() >= self.interval
    }

    fn longest_rest(&self) -> Duration {
        match self.written {
            Some(_) if self.keeper.is_some() => self.interval.saturating_sub(self.saved.elapsed()).min(LOOK),
            _ => LOOK,
        }
    }

    /// First the data, then the position: after a crash between the two the data is longer.
    fn confirm(&mut self) -> io::Result<()> {
        let Some(keeper) = &mut self.keeper else {
            return Ok(());
        };
        let Some((session, seq)) = self.written.take() else {
            return Ok(());
        };
        let length = self.output.sync()?;
        keeper.save(&Position { session, seq, length })?;
        self.saved = Instant::now();
        Ok(())
    }

    /// Writes an entry of the lane: blocks, each behind its head.
    fn write_entry(&mut self, entry: &[u8]) -> io::Result<()> {
        for part in parts(entry) {
            let Part::Block(session, block, flags, time) = part else {
                continue;
            };
            for (seq, message) in block.messages() {
                self.output.write(&Item {
                    session,
                    seq,
                    time,
                    flags,
                    subject: message.subject,
                    payload: message.payload,
                })?;
            }
            self.written = Some((session, block.first().plus(u32::from(block.count())).prev()));
        }
        Ok(())
    }
}
