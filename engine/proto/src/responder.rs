//! Answers NAKs from a store: the same for archives and servers.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::net::SocketAddrV4;

use crate::io::{Lookup, Outbox, Store};
use crate::limit::Bucket;
use crate::seal::TRAILER;
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::{MILLIS, Nanos, Now};
use crate::wire::{EndBody, HEADER, Header, Kind, Ranges, Reason, Refusal, Stamp, WireRange, flags};

/// How repairs are given.
#[derive(Clone, Copy, Debug)]
pub struct RepairConfig {
    /// The stream's group, for repairs that several clients want.
    pub group: SocketAddrV4,
    /// Who gets a repair.
    pub cast: Cast,
    /// When a second client asks for the same numbers within this time, both are answered by one
    /// multicast repair, and further ones by none.
    pub merge: Nanos,
    /// Ranges that one requester may have waiting; more are put off.
    pub per_requester: usize,
    /// How many times as many bytes as it has asked with a requester is answered at most.
    pub amplification: u32,
    /// Bytes of repairs a second, over all requesters; `None`: as the link can carry beside the
    /// live stream.
    pub bytes_per_second: Option<u64>,
}

impl RepairConfig {
    /// The defaults: point to point unless several clients miss the same.
    #[must_use]
    pub fn new(group: SocketAddrV4) -> RepairConfig {
        RepairConfig {
            group,
            cast: Cast::Auto,
            merge: 2 * MILLIS,
            per_requester: 128,
            amplification: 2048,
            bytes_per_second: None,
        }
    }
}

/// To whom repairs go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cast {
    /// To who asked; to the group when several ask for the same.
    #[default]
    Auto,
    /// To who asked, always.
    Unicast,
    /// To the group, always.
    Multicast,
}

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
    /// Ranges cut short because their requester had not asked at such length.
    pub limited: u64,
    /// Ranges that one multicast repair answered together with another requester's.
    pub merged: u64,
}

#[derive(Clone, Copy, Debug)]
struct Job {
    /// Who asked first.
    from: SocketAddrV4,
    /// Who is answered: who asked, or the group.
    to: SocketAddrV4,
    session: Session,
    range: SeqRange,
    /// The last question of who asked first, see [`Header::question`].
    question: u64,
}

/// A range that was taken up lately.
#[derive(Clone, Copy, Debug)]
struct Recent {
    from: SocketAddrV4,
    /// Somebody else's job answers it, to everyone.
    to_group: bool,
    session: Session,
    range: SeqRange,
    question: u64,
    at: Nanos,
}

/// Ranges remembered for merging.
const RECENT: usize = 256;

/// What a requester may still be answered, in bytes.
#[derive(Clone, Copy, Debug)]
struct Account {
    asker: SocketAddrV4,
    credit: u64,
    used: Nanos,
    /// NAK frames since it is known.
    naks: u64,
}

/// Requesters with credit.
#[derive(Debug)]
struct Accounts(Vec<Account>);

/// Requesters of whom credit is kept; of more, those that asked last.
const ACCOUNTS: usize = 256;
/// Most credit that a requester can save.
const MAX_CREDIT: u64 = 4 << 20;
/// Bytes of a frame besides its own: IP and UDP headers, and the seal of a keyed stream. Answers
/// are charged with them, questions not credited.
const OVERHEAD: u64 = 28 + TRAILER as u64;

impl Accounts {
    fn earn(&mut self, asker: SocketAddrV4, bytes: u64, now: Nanos) {
        if let Some(account) = self.0.iter_mut().find(|a| a.asker == asker) {
            account.credit = (account.credit + bytes).min(MAX_CREDIT);
            account.used = now;
            account.naks += 1;
            return;
        }
        let account = Account {
            asker,
            credit: bytes.min(MAX_CREDIT),
            used: now,
            naks: 1,
        };
        if self.0.len() < ACCOUNTS {
            self.0.push(account);
        } else if let Some(oldest) = self.0.iter_mut().min_by_key(|a| a.used) {
            *oldest = account;
        }
    }

    /// Counts a NAK that earns nothing.
    fn note(&mut self, asker: SocketAddrV4) {
        if let Some(account) = self.0.iter_mut().find(|a| a.asker == asker) {
            account.naks += 1;
        }
    }

    /// Takes the cost of a frame of `len` bytes, if there is credit for it.
    fn pay(&mut self, asker: SocketAddrV4, len: usize) -> bool {
        let cost = len as u64 + OVERHEAD;
        let account = self.0.iter_mut().find(|a| a.asker == asker && a.credit >= cost);
        account.map(|a| a.credit -= cost).is_some()
    }

    /// Gives back what a frame did not use.
    fn give_back(&mut self, asker: SocketAddrV4, bytes: usize) {
        if let Some(account) = self.0.iter_mut().find(|a| a.asker == asker) {
            account.credit += bytes as u64;
        }
    }
}

/// Answers that are on their way, bounded, a fair share for each range.
#[derive(Debug)]
pub struct Responder {
    stream: Stream,
    /// Who answers; carried in each frame.
    pub origin: u32,
    flags: u16,
    config: RepairConfig,
    jobs: VecDeque<Job>,
    recent: VecDeque<Recent>,
    accounts: Accounts,
    bucket: Option<Bucket>,
    limit: usize,
    stats: ResponderStats,
}

/// Bytes of repairs at once after a pause, where a rate is set.
const BURST: u64 = 64 << 10;
/// Milliseconds after which a requester that was put off may ask again.
const BUSY_RETRY_MS: u16 = 5;
/// Bytes of an UNAVAILABLE for one range, and of an END.
const REFUSED: usize = HEADER + size_of::<Refusal>();
const ENDED: usize = HEADER + size_of::<EndBody>();
/// REPAIR frames that one job sends before the next job has its turn.
const TURN: usize = 16;

impl Responder {
    /// A responder that keeps at most `limit` ranges waiting. All memory is taken now.
    #[must_use]
    pub fn new(stream: Stream, origin: u32, is_server: bool, config: RepairConfig, limit: usize) -> Responder {
        Responder {
            stream,
            origin,
            flags: if is_server { flags::FROM_SERVER } else { 0 },
            jobs: VecDeque::with_capacity(limit),
            recent: VecDeque::with_capacity(RECENT),
            accounts: Accounts(Vec::with_capacity(ACCOUNTS)),
            // Full at first, so time 0 serves as well as any.
            bucket: config.bytes_per_second.map(|rate| Bucket::new(rate, BURST, 0)),
            config,
            limit,
            stats: ResponderStats::default(),
        }
    }

    /// Other limits from now on. What waits is answered by them.
    pub fn set_config(&mut self, config: RepairConfig, now: Nanos) {
        if config.bytes_per_second != self.config.bytes_per_second {
            self.bucket = config.bytes_per_second.map(|rate| Bucket::new(rate, BURST, now));
        }
        self.config = config;
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

    /// When the next answer can be sent; `Nanos::MAX` when none waits.
    #[must_use]
    pub fn next_due(&self, now: Nanos) -> Nanos {
        match &self.bucket {
            _ if self.jobs.is_empty() => Nanos::MAX,
            None => now,
            Some(bucket) => bucket.opens_at().max(now),
        }
    }

    /// A NAK was dropped unread.
    pub(crate) fn on_dropped_nak(&mut self, from: SocketAddrV4) {
        self.accounts.note(from);
    }

    /// Who has asked lately, with the number of its NAK frames.
    pub fn askers(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.accounts.0.iter().map(|account| (account.asker, account.naks))
    }

    /// Takes the ranges of a NAK.
    pub fn on_nak(&mut self, now: Now, from: SocketAddrV4, nak: &Header, ranges: &Ranges<'_>, out: &mut impl Outbox) {
        let (session, question) = (nak.session(), nak.question());
        self.stats.naks += 1;
        while self
            .recent
            .front()
            .is_some_and(|r| now.mono.saturating_sub(r.at) >= self.config.merge)
        {
            self.recent.pop_front();
        }
        let asked = HEADER + ranges.iter().count() * size_of::<WireRange>();
        let earned = asked as u64 * u64::from(self.config.amplification);
        self.accounts.earn(from, earned, now.mono);
        let mut waiting = self.jobs.iter().filter(|j| j.from == from).count();
        for range in ranges.iter() {
            let asked = Recent {
                from,
                to_group: false,
                session,
                range,
                question,
                at: now.mono,
            };
            if self.config.cast == Cast::Auto && self.merge(asked) {
                continue;
            }
            let again = self
                .jobs
                .iter_mut()
                .find(|j| j.from == from && j.session == session && touches(j.range, range));
            if let Some(job) = again {
                // Asked again before it was answered: once is enough.
                job.range.first = job.range.first.min(range.first);
                job.range.last = job.range.last.max(range.last);
                job.question = job.question.max(question);
            } else if self.jobs.len() < self.limit && waiting < self.config.per_requester {
                waiting += 1;
                let to_group = self.config.cast == Cast::Multicast;
                let job = Job {
                    from,
                    to: if to_group { self.config.group } else { from },
                    session,
                    range,
                    question,
                };
                self.jobs.push_back(job);
                self.remember(asked);
            } else {
                self.stats.busy += 1;
                self.put_off(from, session, range, question, out);
            }
        }
    }

    /// Tells who asked to ask again later, unless it has not paid even for that.
    fn put_off(
        &mut self,
        asker: SocketAddrV4,
        session: Session,
        range: SeqRange,
        question: u64,
        out: &mut impl Outbox,
    ) {
        if self.accounts.pay(asker, REFUSED) {
            let stamp = self.stamp(session, Seq(0), question);
            out.send(asker, |buf| stamp.unavailable(buf, range, Reason::Busy, BUSY_RETRY_MS));
        }
    }

    /// Whether another requester's repair serves this one as well.
    fn merge(&mut self, asked: Recent) -> bool {
        let Recent {
            from,
            session,
            range,
            question,
            ..
        } = asked;
        let to_group = Recent {
            to_group: true,
            ..asked
        };
        let covers = |s: Session, r: SeqRange| s == session && r.first <= range.first && range.last <= r.last;
        if self.recent.iter().any(|r| r.to_group && covers(r.session, r.range)) {
            // It is on its way to everyone.
            self.stats.merged += 1;
            self.remember(to_group);
            return true;
        }
        if let Some(job) = self
            .jobs
            .iter_mut()
            .find(|j| j.from != from && covers(j.session, j.range))
        {
            self.stats.merged += 1;
            job.to = self.config.group;
            let range = job.range;
            self.remember(Recent { range, ..to_group });
            return true;
        }
        let answered = self.recent.iter().any(|r| r.from != from && covers(r.session, r.range));
        if answered && self.jobs.len() < self.limit {
            // Two have missed it, so others may have as well: once more, for all of them.
            self.stats.merged += 1;
            self.jobs.push_back(Job {
                from,
                to: self.config.group,
                session,
                range,
                question,
            });
            self.remember(to_group);
            return true;
        }
        false
    }

    fn remember(&mut self, asked: Recent) {
        if self.recent.len() == RECENT {
            self.recent.pop_front();
        }
        self.recent.push_back(asked);
    }

    /// Refusals are not shared, since each answers one question: whoever waits for the answer to `job`
    /// gets one of his own to `refused`. Returns the last question of who asked first.
    fn part_ways(&mut self, job: &Job, refused: SeqRange) -> u64 {
        let Responder {
            jobs, recent, limit, ..
        } = self;
        let mut last = job.question;
        recent.retain(|asked| {
            let common = asked.range.intersect(refused).filter(|_| asked.session == job.session);
            let Some(range) = common else { return true };
            if asked.from == job.from {
                last = last.max(asked.question);
                return false;
            }
            let own = Job {
                from: asked.from,
                to: asked.from,
                session: asked.session,
                range,
                question: asked.question,
            };
            let again = |j: &&mut Job| j.from == own.from && j.session == own.session && j.range == range;
            if let Some(known) = jobs.iter_mut().find(again) {
                known.question = known.question.max(own.question);
            } else if asked.to_group && jobs.len() < *limit {
                jobs.push_back(own);
            }
            false
        });
        // Nothing may be free to send it now.
        if let Some(front) = jobs.front_mut() {
            front.question = last;
        }
        last
    }

    /// Sends at most `budget` frames of what was asked for. Returns how many it sent.
    pub fn pump(&mut self, now: Now, budget: usize, store: &impl Store, out: &mut impl Outbox) -> usize {
        let mut sent = 0;
        let mut turn = 0;
        while let Some(job) = self.jobs.front_mut() {
            let open = self.bucket.as_mut().is_none_or(|b| b.is_open(now.mono));
            if sent == budget || !open {
                break;
            }
            let job = *job;
            let (from, range) = (job.from, job.range);
            // Paid before, so that whatever is sent is covered.
            let most = out.max_frame();
            let rest = if self.accounts.pay(from, most) {
                let step = self.answer(now, &job, store, out);
                let Step::Sent { next, len } = step else {
                    self.accounts.give_back(from, most + OVERHEAD as usize);
                    break;
                };
                self.accounts.give_back(from, most.saturating_sub(len));
                SeqRange::new(next, range.last)
            } else {
                self.stats.limited += 1;
                self.put_off(from, job.session, range, job.question, out);
                None
            };
            sent += 1;
            turn += 1;
            match rest {
                None if planted!(RepeatAnswer) => {}
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

    /// Sends one frame about the start of what `job` asks for; says from where on to go on.
    fn answer(&mut self, now: Now, job: &Job, store: &impl Store, out: &mut impl Outbox) -> Step {
        let Job { session, range, .. } = *job;
        let end = store.end_of(session);
        if let Some(end) = end
            && range.first > end.last
        {
            let previous = store.previous_of(session);
            let question = self.part_ways(job, range);
            let mut stamp = self.stamp(session, end.last.next(), question);
            let mut next = end.next;
            if next == Session::NONE {
                // Who holds a later session and was not told what followed does not guess.
                next = store.session_after(session);
                stamp.flags |= if next == Session::NONE { 0 } else { flags::UNSURE };
            }
            return match out.send(job.from, |buf| stamp.end(buf, next, previous)) {
                true => Step::Sent {
                    next: range.end(),
                    len: ENDED,
                },
                false => Step::NoBuffer,
            };
        }
        let room = out.max_frame() - HEADER;
        let (reason, upto) = match store.look_up(session, range.first) {
            Lookup::Found(record) => match record.block.part(range, room) {
                Some(part) => {
                    let number = if planted!(WrongAnswer) {
                        part.first().next()
                    } else {
                        part.first()
                    };
                    let stamp = self.stamp(session, number, record.time);
                    if !out.send(job.to, |buf| stamp.block(buf, Kind::Repair, &part)) {
                        return Step::NoBuffer;
                    }
                    if let Some(bucket) = &mut self.bucket {
                        bucket.take((HEADER + part.bytes().len()) as u64, now.mono);
                    }
                    self.stats.frames += 1;
                    self.stats.repaired += u64::from(part.count());
                    return Step::Sent {
                        next: part.first().plus(u32::from(part.count())),
                        len: HEADER + part.bytes().len(),
                    };
                }
                // A message that fits no frame of this link, or a record that is not what it says.
                None => (Reason::Lost, range.first),
            },
            // Nobody sends a server what its closed log lacks, such as what a loss of power has torn
            // out of it.
            Lookup::Absent(Reason::NotYet, upto) if self.flags & flags::FROM_SERVER != 0 => match end {
                Some(end) => (Reason::TooOld, upto.min(end.last)),
                None => (Reason::NotYet, upto),
            },
            Lookup::Absent(reason, upto) => (reason, upto),
        };
        // Who learns of the past learns all of it at once, be it more than was asked for.
        let last = if reason.is_of_the_past() { Seq::LAST } else { range.last };
        let refused = SeqRange {
            first: range.first,
            last: upto.clamp(range.first, last),
        };
        let later = match reason {
            Reason::UnknownSession => store.session_after(session),
            _ => Session::NONE,
        };
        let question = self.part_ways(job, refused);
        let stamp = self.stamp(session, Seq(later.0), question);
        if !out.send(job.from, |buf| stamp.unavailable(buf, refused, reason, 0)) {
            return Step::NoBuffer;
        }
        let next = refused.end().min(range.end());
        self.stats.unavailable += u64::from(next.since(range.first));
        Step::Sent { next, len: REFUSED }
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

/// Whether two ranges overlap or one follows the other.
fn touches(a: SeqRange, b: SeqRange) -> bool {
    a.first <= b.end() && b.first <= a.end()
}

enum Step {
    /// A frame of this length; where to go on.
    Sent {
        next: Seq,
        len: usize,
    },
    NoBuffer,
}

#[cfg(test)]
mod tests;
