//! Receives a feed: puts packets of one or two lines in order and asks for what is missing.
//!
//! Messages are delivered in the order of their numbers, each once. Packets ahead of a gap wait, as far as
//! there is room; what found none is asked for later. A session is finished before the next one begins.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::vec::Vec;

use seqcast_proto::time::{MILLIS, Nanos, RoundTrip, SECONDS};

use crate::packet::{Packet, Request, SessionName, Variant};

/// Requests that are out at once.
const QUESTIONS: usize = 8;
/// Messages of the first request; later ones follow what answers hold.
const FIRST_COUNT: u16 = 32;
/// Longest wait for an answer.
const LONGEST_WAIT: Nanos = SECONDS;
/// Sessions of which late packets are known to be late, and sessions that may wait.
const DONE: usize = 8;
/// Waiting packets that are looked at for what is missing between them.
const NEAR: usize = 1024;
/// What a waiting packet costs besides its bytes.
const OVERHEAD: usize = 96;

/// Where to begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// With the first packet that is seen.
    Now,
    /// With message 1 of the session that is found.
    First,
    /// With this message.
    At(SessionName, u64),
    /// With message 1 of the session that follows this one.
    After(SessionName),
}

/// How a feed is received.
#[derive(Clone, Copy, Debug)]
pub struct SubscriberConfig {
    /// The format.
    pub variant: Variant,
    /// The only session that is taken; any without it.
    pub session: Option<SessionName>,
    /// Where to begin.
    pub start: Start,
    /// Re-request servers; they are numbered from 0.
    pub servers: usize,
    /// How long a gap waits for the other line, or for packets that overtook each other.
    pub skew: Nanos,
    /// Time without any progress after which what is missing is given up.
    pub give_up: Nanos,
    /// Bytes of packets that may wait behind a gap.
    pub hold: usize,
    /// Time without a packet after which a line, or the feed, is silent.
    pub silence: Nanos,
    /// Lines listened to, 1 or 2.
    pub lines: usize,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A session was joined or began, and the next message is this.
    Began(SessionName, u64),
    /// These messages, the last one included, could not be had; delivery goes on behind them.
    Lost(SessionName, u64, u64),
    /// The session ended in front of this number, and all before is delivered or lost.
    Ended(SessionName, u64),
    /// Another session was found, and nobody says whether the old one had messages from here on.
    TailUnknown(SessionName, u64),
    /// Nothing comes over this line, counted from 0.
    Silent(usize),
    /// The line is heard again.
    Heard(usize),
}

/// Who takes messages.
pub trait Reader {
    /// Takes the next message.
    fn deliver(&mut self, session: &SessionName, number: u64, message: &[u8]);
    /// Is told what happened.
    fn event(&mut self, event: Event);
    /// Sends a request to a server.
    fn ask(&mut self, server: usize, request: &Request);
}

/// What came and what was done about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubscriberStats {
    /// Packets of each line.
    pub packets: [u64; 2],
    /// Messages delivered.
    pub messages: u64,
    /// Of these, those that a re-request brought.
    pub repaired: u64,
    /// Packets all of whose messages had come before.
    pub duplicates: u64,
    /// Gaps that opened in front of the next message.
    pub gaps: u64,
    /// Messages given up.
    pub lost: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests without an answer in time.
    pub unanswered: u64,
    /// Packets that found no room to wait.
    pub overruns: u64,
    /// Packets that are no packets.
    pub malformed: u64,
    /// Packets of sessions that are over, or not wanted.
    pub foreign: u64,
    /// Smoothed time from a request to its answer; 0: not measured.
    pub round_trip: Nanos,
}

/// A request without an answer yet.
#[derive(Clone, Copy, Debug)]
struct Question {
    first: u64,
    end: u64,
    asked: Nanos,
    expires: Nanos,
}

/// A packet that waits for those before it.
#[derive(Debug)]
struct Held {
    end: u64,
    arrived: Nanos,
    answer: bool,
    bytes: Vec<u8>,
}

/// Numbers that are missing: the first, one past the last, since when.
type Hole = (u64, u64, Nanos);

/// The receiving side of one feed.
#[derive(Debug)]
pub struct Subscriber {
    config: SubscriberConfig,
    session: Option<SessionName>,
    next: u64,
    /// One past the highest number known to exist, and since when more was known than had come.
    horizon: u64,
    tail_since: Nanos,
    /// Where the session ends.
    end: Option<u64>,
    /// Other sessions that were seen since, their horizons, and since when.
    following: VecDeque<(SessionName, u64, Nanos)>,
    done: VecDeque<SessionName>,
    held: BTreeMap<u64, Held>,
    held_bytes: usize,
    /// When the last message was delivered or given up.
    moved: Nanos,
    /// Whether the gap in front is counted.
    gap_known: bool,
    questions: Vec<Question>,
    count: u16,
    server: usize,
    /// Requests in a row that were not answered.
    misses: u32,
    round_trip: RoundTrip,
    heard: [Nanos; 2],
    silent: [bool; 2],
    stats: SubscriberStats,
}

impl Subscriber {
    /// A subscriber that has heard nothing.
    #[must_use]
    pub fn new(config: SubscriberConfig, now: Nanos) -> Subscriber {
        let at = match config.start {
            Start::At(session, next) => Some((session, next.max(1))),
            Start::Now | Start::First | Start::After(_) => None,
        };
        let next = at.map_or(1, |(_, next)| next);
        let mut done = VecDeque::with_capacity(DONE);
        if let Start::After(session) = config.start {
            done.push_back(session);
        }
        Subscriber {
            config,
            session: at.map(|(session, _)| session),
            next,
            horizon: next,
            tail_since: now,
            end: None,
            following: VecDeque::with_capacity(DONE),
            done,
            held: BTreeMap::new(),
            held_bytes: 0,
            moved: now,
            gap_known: false,
            questions: Vec::with_capacity(QUESTIONS),
            count: FIRST_COUNT,
            server: 0,
            misses: 0,
            round_trip: RoundTrip::new(100 * MILLIS, 2 * MILLIS, LONGEST_WAIT),
            heard: [now; 2],
            silent: [false; 2],
            stats: SubscriberStats::default(),
        }
    }

    /// What came so far.
    #[must_use]
    pub fn stats(&self) -> SubscriberStats {
        SubscriberStats {
            round_trip: self.round_trip.smoothed(),
            ..self.stats
        }
    }

    /// The session and its next message.
    #[must_use]
    pub fn position(&self) -> Option<(SessionName, u64)> {
        self.session.map(|session| (session, self.next))
    }

    /// Takes a packet of a line, 0 or 1.
    pub fn on_packet(&mut self, now: Nanos, line: usize, bytes: &[u8], reader: &mut impl Reader) {
        let line = line.min(1);
        let Ok(packet) = Packet::parse(self.config.variant, bytes) else {
            self.stats.malformed += 1;
            return;
        };
        self.stats.packets[line] += 1;
        self.heard[line] = now;
        if core::mem::take(&mut self.silent[line]) {
            reader.event(Event::Heard(line));
        }
        let name = packet.session;
        let unwanted = self.config.session.is_some_and(|wanted| wanted != name);
        if unwanted || self.done.contains(&name) {
            self.stats.foreign += 1;
            return;
        }
        match self.session {
            None => {
                // Whoever saw a session's end knows that the next one's first message is 1.
                let whole = self.config.start == Start::First || !self.done.is_empty();
                let next = if whole { 1 } else { packet.number.max(1) };
                self.begin(now, name, next, reader);
            }
            Some(current) if current != name => {
                let room = self.following.len() < DONE;
                match self.following.iter_mut().find(|f| f.0 == name) {
                    Some((_, horizon, _)) => *horizon = packet.next().max(*horizon),
                    // One more is found when there is room for it.
                    None if room => {
                        self.following.push_back((name, packet.next().max(1), now));
                    }
                    None => self.stats.foreign += 1,
                }
                return;
            }
            Some(_) => {}
        }
        self.take(now, &packet, bytes, false, reader);
    }

    /// Takes a packet of a re-request server.
    pub fn on_answer(&mut self, now: Nanos, bytes: &[u8], reader: &mut impl Reader) {
        let Ok(packet) = Packet::parse(self.config.variant, bytes) else {
            self.stats.malformed += 1;
            return;
        };
        if self.session != Some(packet.session) {
            self.stats.foreign += 1;
            return;
        }
        let asked = |q: &Question| (q.first..q.end).contains(&packet.number);
        if let Some(at) = self.questions.iter().position(asked) {
            let question = self.questions.swap_remove(at);
            if self.misses == 0 {
                self.round_trip.sample(now.saturating_sub(question.asked));
            }
            self.misses = 0;
            // One answer is one packet: it tells how many messages fit.
            if packet.next() < question.end {
                self.count = packet.count.max(1);
            } else {
                self.count = self.count.saturating_add(self.count / 8 + 1).min(u16::MAX / 2);
            }
        }
        self.take(now, &packet, bytes, true, reader);
    }

    fn begin(&mut self, now: Nanos, session: SessionName, next: u64, reader: &mut impl Reader) {
        self.session = Some(session);
        (self.next, self.horizon) = (next, next);
        (self.end, self.moved, self.gap_known) = (None, now, false);
        reader.event(Event::Began(session, next));
    }

    fn take(&mut self, now: Nanos, packet: &Packet<'_>, bytes: &[u8], answer: bool, reader: &mut impl Reader) {
        let known = self.horizon.max(packet.next());
        if known > self.horizon {
            if self.covered_to() >= self.horizon {
                self.tail_since = now;
            }
            self.horizon = known;
        }
        if packet.end {
            self.end = Some(self.horizon);
        }
        if packet.count > 0 {
            if packet.next() <= self.next {
                self.stats.duplicates += 1;
            } else if packet.number <= self.next {
                self.deliver(now, packet, answer, reader);
                self.drain(now, reader);
            } else {
                self.hold(now, packet, bytes, answer);
            }
        }
        self.finish(now, reader);
    }

    /// Hands on what is new in a packet that holds the next message.
    fn deliver(&mut self, now: Nanos, packet: &Packet<'_>, answer: bool, reader: &mut impl Reader) {
        // Not more than the packet's count.
        let known = (self.next - packet.number) as usize;
        // Numbers come second: behind the last message there may be none.
        for (message, number) in packet.messages().skip(known).zip(self.next..) {
            reader.deliver(&packet.session, number, message);
        }
        let new = packet.next() - self.next;
        self.stats.messages += new;
        self.stats.repaired += if answer { new } else { 0 };
        self.next = packet.next();
        (self.moved, self.gap_known) = (now, false);
    }

    /// Delivers what waited for the messages before it.
    fn drain(&mut self, now: Nanos, reader: &mut impl Reader) {
        while let Some(first) = self.held.first_entry().filter(|held| *held.key() <= self.next) {
            let held = first.remove();
            self.held_bytes -= held.bytes.len() + OVERHEAD;
            if held.end > self.next
                && let Ok(packet) = Packet::parse(self.config.variant, &held.bytes)
            {
                self.deliver(now, &packet, held.answer, reader);
            }
        }
    }

    fn hold(&mut self, now: Nanos, packet: &Packet<'_>, bytes: &[u8], answer: bool) {
        let end = packet.next();
        let before = self.held.range(..=packet.number).next_back();
        if before.is_some_and(|(_, held)| held.end >= end) {
            self.stats.duplicates += 1;
            return;
        }
        if !self.gap_known {
            self.gap_known = true;
            self.stats.gaps += 1;
        }
        self.held_bytes += bytes.len() + OVERHEAD;
        let held = Held {
            end,
            arrived: now,
            answer,
            bytes: bytes.into(),
        };
        if let Some(shorter) = self.held.insert(packet.number, held) {
            self.held_bytes -= shorter.bytes.len() + OVERHEAD;
        }
        // None lies within another, so that the last one reaches farthest.
        while let Some((&at, within)) = self.held.range(packet.number + 1..).next()
            && within.end <= end
        {
            self.held_bytes -= within.bytes.len() + OVERHEAD;
            self.held.remove(&at);
        }
        // Those nearest to the gap are kept.
        while self.held_bytes > self.config.hold {
            let Some((_, farthest)) = self.held.pop_last() else {
                break;
            };
            self.held_bytes -= farthest.bytes.len() + OVERHEAD;
            self.stats.overruns += 1;
            if self.covered_to() < self.horizon {
                self.tail_since = self.tail_since.max(farthest.arrived);
            }
        }
    }

    /// One past the last number behind which nothing has come.
    fn covered_to(&self) -> u64 {
        self.held.values().map(|held| held.end).next_back().unwrap_or(self.next)
    }

    /// What is missing, ascending, as far as it is near.
    fn holes(&self) -> impl Iterator<Item = Hole> + '_ {
        let mut covered = self.next;
        let between = self.held.iter().take(NEAR).filter_map(move |(&first, held)| {
            let hole = (covered < first).then_some((covered, first, held.arrived));
            covered = covered.max(held.end);
            hole
        });
        let reached = self.covered_to();
        // Whether the session went on is asked for as well, when another one was seen.
        let probe = self
            .following
            .front()
            .filter(|_| self.end.is_none() && self.horizon == reached && reached < self.config.variant.last());
        let end = self.horizon + u64::from(probe.is_some());
        let since = probe.map_or(self.tail_since, |&(_, _, since)| since);
        let tail = reached < end && self.held.len() <= NEAR;
        between.chain(tail.then_some((reached, end, since)))
    }

    /// Does what is due; says when it is to be called next.
    pub fn poll(&mut self, now: Nanos, reader: &mut impl Reader) -> Nanos {
        let mut due = self.look_for_silence(now, reader);
        loop {
            let Some((first, end, since)) = self.holes().next() else {
                break;
            };
            let patience = if self.config.servers == 0 {
                since + self.config.skew
            } else {
                since.max(self.moved) + self.config.give_up.max(self.config.skew)
            };
            if now < patience {
                due = due.min(patience);
                break;
            }
            self.give_up(now, first, end, reader);
        }
        if self.config.servers > 0 && self.session.is_some() {
            due = due.min(self.ask(now, reader));
        }
        due
    }

    fn give_up(&mut self, now: Nanos, first: u64, end: u64, reader: &mut impl Reader) {
        let Some(session) = self.session else { return };
        if first >= self.horizon {
            // The probe behind the last message known of.
            reader.event(Event::TailUnknown(session, first));
            self.end = Some(self.horizon);
        } else {
            let end = end.min(self.horizon);
            // Two sessions of a stranger's may each have lost all that there can be.
            self.stats.lost = self.stats.lost.saturating_add(end - first);
            reader.event(Event::Lost(session, first, end - 1));
            self.next = end;
            (self.moved, self.gap_known) = (now, false);
            self.drain(now, reader);
        }
        self.finish(now, reader);
    }

    /// Asks for what is missing and not asked for; says when it is due again.
    fn ask(&mut self, now: Nanos, reader: &mut impl Reader) -> Nanos {
        let next = self.next;
        self.questions.retain(|q| q.end > next);
        let before = self.questions.len();
        self.questions.retain(|q| now < q.expires);
        let expired = before - self.questions.len();
        self.stats.unanswered += expired as u64;
        if expired > 0 && self.questions.is_empty() {
            self.misses = self.misses.saturating_add(1);
            self.server = (self.server + 1) % self.config.servers;
        }
        let Some(session) = self.session else { return Nanos::MAX };
        let timeout = (self.round_trip.timeout() << self.misses.min(10)).min(LONGEST_WAIT);
        let mut due = Nanos::MAX;
        let mut wanted = Vec::with_capacity(QUESTIONS);
        let free = QUESTIONS - self.questions.len();
        for (mut first, end, since) in self.holes() {
            if now < since + self.config.skew {
                due = due.min(since + self.config.skew);
                continue;
            }
            while first < end && wanted.len() < free {
                let asked = self.questions.iter().find(|q| (q.first..q.end).contains(&first));
                if let Some(question) = asked {
                    first = question.end;
                    continue;
                }
                let later = self.questions.iter().map(|q| q.first).filter(|at| *at > first);
                let stop = later.min().unwrap_or(end).min(end);
                let stop = stop.min(first.saturating_add(u64::from(self.count)));
                wanted.push((first, stop));
                first = stop;
            }
            if wanted.len() == free {
                break;
            }
        }
        for (first, end) in wanted {
            // At most `self.count` apart.
            let count = (end - first) as u16;
            reader.ask(self.server, &Request { session, first, count });
            self.stats.requests += 1;
            self.questions.push(Question {
                first,
                end,
                asked: now,
                expires: now + timeout,
            });
        }
        let expires = self.questions.iter().map(|q| q.expires).min();
        due.min(expires.unwrap_or(Nanos::MAX))
    }

    /// Ends the session if all of it is delivered or given up, and goes on with the one that follows.
    fn finish(&mut self, now: Nanos, reader: &mut impl Reader) {
        let Some(session) = self.session else { return };
        if self.end.is_none_or(|end| self.next < end.max(self.horizon)) {
            return;
        }
        reader.event(Event::Ended(session, self.next));
        if self.done.len() == DONE {
            self.done.pop_front();
        }
        self.done.push_back(session);
        self.questions.clear();
        self.held.clear();
        (self.held_bytes, self.session, self.end) = (0, None, None);
        if let Some((name, horizon, _)) = self.following.pop_front() {
            self.begin(now, name, 1, reader);
            (self.horizon, self.tail_since) = (horizon, now);
        }
    }

    fn look_for_silence(&mut self, now: Nanos, reader: &mut impl Reader) -> Nanos {
        let mut due = Nanos::MAX;
        for line in 0..self.config.lines.min(2) {
            let limit = self.heard[line].saturating_add(self.config.silence);
            if self.silent[line] {
                continue;
            }
            if now >= limit {
                self.silent[line] = true;
                reader.event(Event::Silent(line));
            } else {
                due = due.min(limit);
            }
        }
        due
    }
}
