//! Answers NAKs from a store: the same for archives and servers.

use alloc::collections::VecDeque;
use core::net::SocketAddrV4;

use crate::io::{Lookup, Outbox, Store};
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::Now;
use crate::wire::{HEADER, Kind, Ranges, Reason, Stamp, flags};

/// What a responder has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResponderStats {
    /// NAK frames received.
    pub naks: u64,
    /// Messages sent again.
    pub repaired: u64,
    /// REPAIR frames sent.
    pub frames: u64,
    /// Messages that could not be repaired here.
    pub unavailable: u64,
    /// Ranges put off because too many were waiting.
    pub busy: u64,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    to: SocketAddrV4,
    session: Session,
    range: SeqRange,
}

/// Answers that are on their way, bounded, a fair share for each range.
#[derive(Debug)]
pub struct Responder {
    stream: Stream,
    /// Who answers; carried in each frame.
    pub origin: u32,
    flags: u16,
    jobs: VecDeque<Job>,
    limit: usize,
    stats: ResponderStats,
}

/// Milliseconds after which a requester that was put off may ask again.
const BUSY_RETRY_MS: u16 = 5;
/// REPAIR frames that one job sends before the next job has its turn.
const TURN: usize = 16;

impl Responder {
    /// A responder that keeps at most `limit` ranges waiting. All memory is taken now.
    #[must_use]
    pub fn new(stream: Stream, origin: u32, is_server: bool, limit: usize) -> Responder {
        Responder {
            stream,
            origin,
            flags: if is_server { flags::FROM_SERVER } else { 0 },
            jobs: VecDeque::with_capacity(limit),
            limit,
            stats: ResponderStats::default(),
        }
    }

    /// What has been done so far.
    #[must_use]
    pub fn stats(&self) -> ResponderStats {
        self.stats
    }

    /// Whether answers wait to be sent.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.jobs.is_empty()
    }

    /// Takes the ranges of a NAK.
    pub fn on_nak(&mut self, now: Now, to: SocketAddrV4, session: Session, ranges: &Ranges<'_>, out: &mut impl Outbox) {
        self.stats.naks += 1;
        for range in ranges.iter() {
            let queued = self
                .jobs
                .iter_mut()
                .find(|j| j.to == to && j.session == session && j.range.intersect(range).is_some());
            if let Some(job) = queued {
                // Asked again before it was answered: once is enough.
                job.range.first = job.range.first.min(range.first);
                job.range.last = job.range.last.max(range.last);
            } else if self.jobs.len() < self.limit {
                self.jobs.push_back(Job { to, session, range });
            } else {
                self.stats.busy += 1;
                let stamp = self.stamp(session, Seq(0), now.wall);
                out.send(to, |buf| stamp.unavailable(buf, range, Reason::Busy, BUSY_RETRY_MS));
            }
        }
    }

    /// Sends at most `budget` frames of what was asked for. Returns how many it sent.
    pub fn pump(&mut self, now: Now, budget: usize, store: &impl Store, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        let mut turn = 0;
        while let Some(job) = self.jobs.front_mut() {
            if sent == budget {
                break;
            }
            let (to, session, range) = (job.to, job.session, job.range);
            let rest = match self.answer(now, to, session, range, store, out) {
                Step::Sent(next) => SeqRange::new(next, range.last),
                Step::NoBuffer => break,
            };
            sent += 1;
            turn += 1;
            match rest {
                None => {
                    self.jobs.pop_front();
                    turn = 0;
                }
                Some(range) => {
                    self.jobs[0].range = range;
                    if turn == TURN {
                        self.jobs.rotate_left(1);
                        turn = 0;
                    }
                }
            }
        }
        sent
    }

    /// Sends one frame about the start of `range`; says from where on to go on.
    fn answer(
        &mut self,
        now: Now,
        to: SocketAddrV4,
        session: Session,
        range: SeqRange,
        store: &impl Store,
        out: &mut impl Outbox,
    ) -> Step {
        if let Some(end) = store.end_of(session)
            && range.first > end.last
        {
            let previous = store.previous_of(session);
            let stamp = self.stamp(session, end.last.next(), now.wall);
            return match out.send(to, |buf| stamp.end(buf, end.next, previous)) {
                true => Step::Sent(range.end()),
                false => Step::NoBuffer,
            };
        }
        let room = out.max_frame() - HEADER;
        let (reason, upto) = match store.look_up(session, range.first) {
            Lookup::Found(record) => match record.block.part(range, room) {
                Some(part) => {
                    let stamp = self.stamp(session, part.first(), record.time);
                    if !out.send(to, |buf| stamp.block(buf, Kind::Repair, &part)) {
                        return Step::NoBuffer;
                    }
                    self.stats.frames += 1;
                    self.stats.repaired += u64::from(part.count());
                    return Step::Sent(part.first().plus(u32::from(part.count())));
                }
                // A message that fits no frame of this link, or a record that is not what it says.
                None => (Reason::Lost, range.first),
            },
            Lookup::Absent(reason, upto) => (reason, upto),
        };
        let refused = SeqRange {
            first: range.first,
            last: upto.clamp(range.first, range.last),
        };
        let stamp = self.stamp(session, Seq(0), now.wall);
        if !out.send(to, |buf| stamp.unavailable(buf, refused, reason, 0)) {
            return Step::NoBuffer;
        }
        self.stats.unavailable += u64::from(refused.len());
        Step::Sent(refused.end())
    }

    fn stamp(&self, session: Session, sequence: Seq, time: u64) -> Stamp {
        Stamp {
            stream: self.stream,
            session,
            sequence,
            time,
            flags: self.flags,
            origin: self.origin,
        }
    }
}

enum Step {
    Sent(Seq),
    NoBuffer,
}
