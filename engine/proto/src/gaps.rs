//! What is missing, and when to ask whom for it.
//!
//! Clients and archives share this. A gap is asked for at the archive first, then at the server,
//! then again with growing pauses, until it is found, refused for good by everyone, or too old.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use crate::io::{Loss, Outbox};
use crate::parties::{Parties, Questions, REFUSED_BY_SERVER, Refuser};
use crate::rng::Rng;
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::{MICROS, MILLIS, Nanos, Now, RoundTrip, SECONDS};
use crate::wire::{Kind, MAX_RANGES, Reason, Stamp, flags};

/// Messages that one range of a question names at least, where there are so many.
const PIECE: u32 = 16;

/// How repairs are asked for.
#[derive(Clone, Copy, Debug)]
pub struct GapConfig {
    /// How long to wait for frames that overtook each other before asking; 0 on a single path.
    pub reorder: Nanos,
    /// How much longer to wait for another line of the stream to fill a gap; see [`Gaps::hasten`].
    pub skew: Nanos,
    /// A random pause of up to this long before the first NAK, so that many clients that missed
    /// the same frame do not ask at once; 0 asks at once.
    pub backoff: Nanos,
    /// As `backoff`, in hundredths of the measured round trip; both add up.
    pub backoff_percent: u32,
    /// Time-out of the first NAK, before any round trip was measured.
    pub initial_timeout: Nanos,
    /// Lowest time-out.
    pub min_timeout: Nanos,
    /// Highest time-out and longest pause between two tries.
    pub max_timeout: Nanos,
    /// After this long a gap is given up and reported as lost.
    pub give_up: Nanos,
    /// Most messages that are asked for and not yet answered at any time.
    pub ask_window: u32,
    /// Most separate gaps tracked; beyond, neighbours are joined and some messages asked for in
    /// vain.
    pub max_gaps: usize,
}

impl Default for GapConfig {
    fn default() -> GapConfig {
        GapConfig {
            reorder: 0,
            skew: 0,
            backoff: 0,
            backoff_percent: 25,
            initial_timeout: 20 * MILLIS,
            min_timeout: 25 * MICROS,
            max_timeout: 500 * MILLIS,
            give_up: 30 * SECONDS,
            ask_window: 8192,
            max_gaps: 1024,
        }
    }
}

const ALL: SeqRange = SeqRange {
    first: Seq::FIRST,
    last: Seq::LAST,
};

#[derive(Clone, Copy, Debug)]
struct Gap {
    range: SeqRange,
    born: Nanos,
    /// When to ask, or to ask again.
    due: Nanos,
    asked_at: Nanos,
    /// Even: the archive's turn; odd: the server's.
    tries: u32,
    /// Questions sent. Only the answer to a single one is a sample of the round trip; that to one of
    /// several tells how long it takes at least.
    questions: u32,
    /// Asked, and neither answered nor timed out.
    open: bool,
    /// The last question about it.
    question: u64,
    /// One bit a party that will never have it.
    refused_by: u16,
    /// The first question whose refusals count: who answers an older one may have it by now.
    since: u64,
    /// When the server's bit was set.
    let_go_at: Nanos,
    /// It waits for another line; nobody has been told of it.
    suspected: bool,
    /// No line will fill it.
    hastened: bool,
}

impl Gap {
    /// Whether nothing was asked or heard about it yet, so that what follows it may join it. Nobody
    /// has refused what was not known when he did.
    fn is_untouched(&self) -> bool {
        self.tries == 0 && self.refused_by == 0 && !self.hastened
    }

    /// Whether this run of the server will never have it.
    fn is_let_go(&self) -> bool {
        self.refused_by & REFUSED_BY_SERVER != 0
    }

    /// Archives' refusals count from this question on.
    fn forget_archives(&mut self, question: u64) {
        self.refused_by &= REFUSED_BY_SERVER;
        self.since = question;
    }
}

/// What keeps a gap from being asked for.
#[derive(Clone, Copy, Debug)]
enum HeldBack {
    /// As many messages as the window allows are outstanding.
    Window,
    /// The caller has no room yet for this number.
    Horizon(Seq),
}

/// The gaps of one session, ascending and disjoint.
#[derive(Debug)]
pub struct Gaps {
    config: GapConfig,
    list: Vec<Gap>,
    /// Most messages asked for at a time, now.
    window: u32,
    batch: Vec<(SocketAddrV4, bool, SeqRange)>,
    rtt: RoundTrip,
    rng: Rng,
    next_due: Nanos,
    /// Why something that is due was not asked for.
    held_back: Option<HeldBack>,
    /// Messages found since the last question.
    freed: u32,
    /// No gap that waits for another line ends below this number.
    suspected_up_to: Seq,
    /// The last question asked.
    asked: u64,
    /// NAK frames sent.
    pub questions: Questions,
}

impl Gaps {
    /// No gaps. All memory is taken now; `seed` decides the random pauses.
    #[must_use]
    pub fn new(config: GapConfig, seed: u64) -> Gaps {
        Gaps {
            // Twice the limit, since gaps are cut when parts of them are asked for, found or refused.
            list: Vec::with_capacity(2 * config.max_gaps),
            batch: Vec::with_capacity(2 * config.max_gaps),
            rtt: RoundTrip::new(config.initial_timeout, config.min_timeout, config.max_timeout),
            rng: Rng::new(seed),
            next_due: Nanos::MAX,
            held_back: None,
            freed: 0,
            suspected_up_to: Seq(u32::MAX),
            asked: 0,
            questions: Questions::new(),
            window: config.ask_window,
            config,
        }
    }

    /// Asks for at most so many messages at a time, and for no more than the configuration allows.
    pub fn set_window(&mut self, messages: u32) {
        self.window = self.config.ask_window.min(messages).max(1);
    }

    /// Whether nothing is missing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The lowest missing number.
    #[must_use]
    pub fn first(&self) -> Option<Seq> {
        self.list.iter().map(|g| g.range.first).min()
    }

    /// The lowest missing number that is not below `seq`.
    #[must_use]
    pub fn first_from(&self, seq: Seq) -> Option<Seq> {
        let at = self.list.partition_point(|g| g.range.last < seq);
        self.list.get(at).map(|g| g.range.first.max(seq))
    }

    /// How many messages are missing, an upper bound.
    #[must_use]
    pub fn missing(&self) -> u64 {
        self.list.iter().map(|g| u64::from(g.range.len())).sum()
    }

    /// Whether [`Gaps::ask`] has something to do. What was held back is asked for in pieces of half
    /// a window, not message by message.
    #[must_use]
    pub fn is_due(&self, now: Nanos, horizon: Seq) -> bool {
        let half = (self.window / 2).max(1);
        now >= self.next_due
            || match self.held_back {
                None => false,
                Some(HeldBack::Window) => self.freed >= half,
                Some(HeldBack::Horizon(from)) => horizon.since(from) >= half,
            }
    }

    /// When [`Gaps::ask`] has something to do even if nothing arrives, in monotonic time.
    #[must_use]
    pub fn next_due(&self) -> Nanos {
        self.next_due
    }

    /// The measured round trip of a repair; 0 before the first.
    #[must_use]
    pub fn round_trip(&self) -> Nanos {
        self.rtt.smoothed()
    }

    /// Forgets everything, for a new session; measured times stay.
    pub fn clear(&mut self) {
        self.list.clear();
        self.next_due = Nanos::MAX;
        self.held_back = None;
        self.suspected_up_to = Seq(u32::MAX);
    }

    /// Notes that `range` is missing. What of it is noted already, as asked for in case it exists, is asked
    /// for as before, and its time to be given up begins now.
    pub fn miss(&mut self, range: SeqRange, now: Nanos) {
        let spread = self.config.backoff + self.rtt.smoothed() * Nanos::from(self.config.backoff_percent) / 100;
        let pause = self.config.reorder + self.config.skew + self.rng.below(spread);
        let due = now + pause;
        let mut from = range.first;
        let mut at = self.list.partition_point(|g| g.range.last < range.first);
        loop {
            let until = match self.list.get(at) {
                Some(g) if g.range.first <= range.last => g.range.first.prev(),
                _ => range.last,
            };
            if let Some(hole) = SeqRange::new(from, until) {
                let before = at.checked_sub(1).map(|i| &mut self.list[i]);
                if let Some(gap) = before
                    && gap.is_untouched()
                    && gap.range.end() == hole.first
                {
                    gap.range.last = hole.last;
                    gap.since = self.asked + 1;
                } else if self.list.len() >= self.config.max_gaps {
                    self.stretch(at, hole, due);
                } else {
                    let gap = Gap {
                        range: hole,
                        born: now,
                        due,
                        asked_at: 0,
                        tries: 0,
                        questions: 0,
                        open: false,
                        question: 0,
                        refused_by: 0,
                        since: self.asked + 1,
                        let_go_at: 0,
                        suspected: self.config.skew > 0,
                        hastened: false,
                    };
                    if gap.suspected {
                        self.suspected_up_to = self.suspected_up_to.min(hole.last);
                    }
                    self.list.insert(at, gap);
                    self.next_due = self.next_due.min(due);
                    at += 1;
                }
            }
            let Some(noted) = self.list.get(at).map(|g| g.range).filter(|r| r.first <= range.last) else {
                return;
            };
            from = noted.end();
            // What comes before was missing before.
            let first = noted.first.max(range.first);
            let part = SeqRange { first, ..noted };
            at = self.isolate(at, part).unwrap_or(at);
            self.list[at].born = now;
            at += 1;
        }
    }

    /// As [`Gaps::miss`], for what was asked for in vain: not before the longest pause is over.
    pub fn miss_later(&mut self, range: SeqRange, now: Nanos) {
        self.miss(range, now + self.config.max_timeout);
    }

    /// What is missing from `seq` on has its whole time to be given up from now on.
    pub fn renew_from(&mut self, seq: Seq, now: Nanos) {
        let first = self.list.partition_point(|g| g.range.last < seq);
        self.list[first..].iter_mut().for_each(|g| g.born = now);
    }

    /// The list is full: the gap before `at` grows over `hole` and what lies between.
    fn stretch(&mut self, at: usize, hole: SeqRange, due: Nanos) {
        let place = at.saturating_sub(1);
        if let Some(gap) = self.list.get_mut(place) {
            gap.range.first = gap.range.first.min(hole.first);
            gap.range.last = gap.range.last.max(hole.last);
            gap.open = false;
            // Nobody has been asked for what it has grown over.
            gap.refused_by = 0;
            gap.since = self.asked + 1;
            gap.due = gap.due.min(due);
            self.next_due = self.next_due.min(gap.due);
        }
    }

    /// Cuts the gap at `at` so that `part` of it stands alone, and returns its place. `None` when
    /// the list has no room for the pieces.
    fn isolate(&mut self, at: usize, part: SeqRange) -> Option<usize> {
        let whole = self.list[at];
        let before = SeqRange::new(whole.range.first, part.first.prev());
        let after = SeqRange::new(part.end(), whole.range.last);
        if self.list.len() + usize::from(before.is_some()) + usize::from(after.is_some()) > self.list.capacity() {
            return None;
        }
        self.list[at].range = part;
        if let Some(range) = after {
            self.list.insert(at + 1, Gap { range, ..whole });
        }
        let Some(range) = before else { return Some(at) };
        self.list.insert(at, Gap { range, ..whole });
        Some(at + 1)
    }

    /// No line will bring a number below `seq` any more: what waited for that is due at once.
    #[inline]
    pub fn hasten(&mut self, seq: Seq, now: Nanos) {
        if self.suspected_up_to < seq {
            self.hasten_suspected(seq, now);
        }
    }

    fn hasten_suspected(&mut self, seq: Seq, now: Nanos) {
        self.suspected_up_to = Seq(u32::MAX);
        for gap in self.list.iter_mut().filter(|g| g.suspected && !g.hastened) {
            if gap.range.last >= seq {
                self.suspected_up_to = gap.range.last;
                return;
            }
            gap.hastened = true;
            gap.due = gap.due.saturating_sub(self.config.skew).max(now);
            self.next_due = self.next_due.min(gap.due);
        }
    }

    /// Calls `each` with gaps that waited for another line in vain, once with each.
    pub fn confirm(&mut self, now: Nanos, mut each: impl FnMut(SeqRange)) {
        if self.config.skew == 0 {
            return;
        }
        for gap in self.list.iter_mut().filter(|g| g.suspected && g.due <= now) {
            gap.suspected = false;
            each(gap.range);
        }
    }

    /// Notes that `range` has arrived, and returns how many of its numbers were missing.
    pub fn found(&mut self, range: SeqRange, now: Nanos) -> u32 {
        let mut found = 0;
        let mut at = self.list.partition_point(|g| g.range.last < range.first);
        while let Some(gap) = self.list.get_mut(at) {
            let Some(part) = gap.range.intersect(range) else { break };
            found += part.len();
            if gap.open {
                if gap.asked_at != 0 {
                    let took = now.saturating_sub(gap.asked_at);
                    if gap.questions == 1 {
                        self.rtt.sample(took);
                    } else {
                        self.rtt.took_at_least(took);
                    }
                    gap.asked_at = 0;
                }
                // The answer is on its way: what is left of it gets the full time again.
                gap.due = now + self.rtt.timeout();
                gap.born = now;
            }
            match self.isolate(at, part) {
                Some(alone) => {
                    self.list.remove(alone);
                    at = alone;
                }
                // No room to cut a hole: the numbers stay noted, and arrive again in vain.
                None => at += 1,
            }
        }
        self.freed = self.freed.saturating_add(found);
        found
    }

    /// Notes that `range` came and could not be taken: it is still missing, but not lost, and who
    /// sent it is asked again as soon as there is room.
    pub fn turned_away(&mut self, range: SeqRange, now: Nanos) {
        let mut at = self.list.partition_point(|g| g.range.last < range.first);
        while let Some(part) = self.list.get(at).and_then(|g| g.range.intersect(range)) {
            let Some(alone) = self.isolate(at, part) else { return };
            let gap = &mut self.list[alone];
            gap.born = now;
            if gap.open {
                gap.open = false;
                gap.tries -= 1;
                gap.due = now;
                self.next_due = self.next_due.min(now);
            }
            at = alone + 1;
        }
    }

    /// Forgets what is missing below `seq`.
    pub fn forget_below(&mut self, seq: Seq) {
        let gone = self.list.partition_point(|g| g.range.last < seq);
        self.list.drain(..gone);
        if let Some(gap) = self.list.first_mut() {
            gap.range.first = gap.range.first.max(seq);
        }
    }

    /// Forgets what is missing above `seq`.
    pub fn forget_above(&mut self, seq: Seq) {
        let keep = self.list.partition_point(|g| g.range.first <= seq);
        self.list.truncate(keep);
        if let Some(gap) = self.list.last_mut() {
            gap.range.last = gap.range.last.min(seq);
        }
    }

    /// Takes a refusal: the next party is asked at once, or all again after a pause. One that answers
    /// a question of long ago says nothing.
    pub fn refused(
        &mut self,
        range: SeqRange,
        by: Refuser,
        (reason, retry_ms): (Reason, u16),
        parties: &Parties,
        now: Nanos,
    ) {
        let bit = if by.is_server {
            REFUSED_BY_SERVER
        } else {
            parties.place_of(by.from).map_or(0, |i| 1 << i)
        };
        let timeout = self.rtt.timeout();
        // A server that does not know a session has nothing of it. An archive may be about to fetch some of it.
        let range = match reason {
            Reason::UnknownSession if by.is_server => ALL,
            _ => range,
        };
        let mut at = self.list.partition_point(|g| g.range.last < range.first);
        while let Some(part) = self.list.get(at).and_then(|g| g.range.intersect(range)) {
            let answers = |oldest: u64| (oldest..=self.asked).contains(&by.question);
            let gap = self.list[at];
            let counts = reason.is_final() && answers(gap.since);
            // An answer of a party that was not asked last changes no timer.
            let ends_wait = gap.open && by.is_server == gap.tries.is_multiple_of(2) && answers(gap.question);
            if !counts && !ends_wait {
                at += 1;
                continue;
            }
            let Some(alone) = self.isolate(at, part) else { return };
            let gap = &mut self.list[alone];
            at = alone + 1;
            let news = counts && bit & !gap.refused_by != 0;
            if news && by.is_server {
                // A server lets go of what archives have stored: one that did not know it when it
                // was asked may have it by now. Their word counts if they are asked from here on.
                gap.refused_by = REFUSED_BY_SERVER;
                gap.let_go_at = now;
                gap.since = self.asked + 1;
            } else if counts {
                gap.refused_by |= bit;
            }
            let settled = parties.all_refuse(gap.refused_by, now);
            if !ends_wait && !settled {
                continue;
            }
            gap.open = false;
            gap.due = if settled {
                // Nothing is left to wait for.
                now
            } else {
                let at_once = match (by.is_server, gap.is_let_go()) {
                    // The server is next.
                    (false, false) => true,
                    // Archives, which count anew.
                    (true, _) => news && parties.has_archive(),
                    // Another archive. Of those asked by multicast the answers are on their way.
                    (false, true) => news && parties.group.is_none() && parties.has_others(gap.refused_by),
                };
                let pause = match at_once {
                    true => 0,
                    false => pause(timeout, gap.tries, self.config.max_timeout),
                };
                now + pause.max(Nanos::from(retry_ms) * MILLIS)
            };
            self.next_due = self.next_due.min(gap.due);
        }
    }

    /// Takes the answer of a party that its session ended with `last`: what lies behind it will never
    /// come from there.
    pub fn ended(&mut self, last: Seq, by: Refuser, parties: &Parties, now: Nanos) {
        if let Some(beyond) = SeqRange::new(last.next(), Seq::LAST) {
            self.refused(beyond, by, (Reason::TooOld, 0), parties, now);
        }
    }

    /// Whether `seq` is still hoped for: missing, and not refused for good by the server at
    /// `before` or earlier. And the last number in a row for which the same holds.
    #[must_use]
    pub fn hope(&self, seq: Seq, before: Option<Nanos>) -> (bool, Seq) {
        match self.list.get(self.list.partition_point(|g| g.range.last < seq)) {
            Some(gap) if gap.range.first <= seq => {
                let gone = gap.is_let_go() && before.is_some_and(|before| gap.let_go_at <= before);
                (!gone, gap.range.last)
            }
            Some(gap) => (false, gap.range.first.prev()),
            None => (false, Seq::LAST),
        }
    }

    /// Whether `seq` is noted as missing.
    #[must_use]
    pub fn asks_for(&self, seq: Seq) -> bool {
        let at = self.list.partition_point(|g| g.range.last < seq);
        self.list.get(at).is_some_and(|g| g.range.first <= seq)
    }

    /// Another client has asked everyone for `range`: what of it was not asked for yet waits for
    /// the answer to that.
    pub fn asked_by_another(&mut self, range: SeqRange, now: Nanos) {
        let timeout = self.rtt.timeout();
        let mut at = self.list.partition_point(|g| g.range.last < range.first);
        while let Some(part) = self.list.get(at).and_then(|g| g.range.intersect(range)) {
            if self.list[at].tries > 0 {
                at += 1;
                continue;
            }
            let Some(alone) = self.isolate(at, part) else { return };
            let gap = &mut self.list[alone];
            gap.tries = 1;
            gap.due = now + timeout;
            at = alone + 1;
        }
    }

    /// The archives have changed: what archives said for good counts no more.
    pub fn archives_changed(&mut self) {
        for gap in &mut self.list {
            gap.forget_archives(self.asked + 1);
        }
    }

    /// The server was started again: what the run before had let go of may be in its log yet.
    pub fn server_changed(&mut self) {
        for gap in &mut self.list {
            gap.refused_by = 0;
            gap.since = self.asked + 1;
        }
    }

    /// The number of a new question.
    pub fn question(&mut self, now: Now) -> u64 {
        self.asked = now.wall.max(self.asked + 1);
        self.asked
    }

    /// Sends the NAKs that are due for numbers below `horizon`. `stamp` names stream, session and
    /// who asks; its flags are set here.
    pub fn ask(&mut self, now: Now, horizon: Seq, parties: &Parties, stamp: Stamp, out: &mut impl Outbox) {
        if !self.is_due(now.mono, horizon) {
            return;
        }
        self.batch.clear();
        self.held_back = None;
        self.freed = 0;
        let timeout = self.rtt.timeout();
        let question = self.question(now);
        let mut outstanding: u32 = 0;
        for gap in &mut self.list {
            if gap.open && gap.due <= now.mono {
                gap.open = false;
                if !gap.tries.is_multiple_of(2) {
                    // An archive that is away may hold it, or have passed it on to one that did
                    // not have it yet: they count as refusing only when all do in a row.
                    gap.forget_archives(question);
                }
            } else if gap.open {
                outstanding = outstanding.saturating_add(gap.range.len());
            }
        }
        let mut at = 0;
        while at < self.list.len() {
            let room = self.window.saturating_sub(outstanding);
            let gap = &mut self.list[at];
            if gap.range.first >= horizon {
                self.held_back = Some(HeldBack::Horizon(gap.range.first));
                // What cannot be asked for does not grow too old either.
                self.list[at..].iter_mut().for_each(|g| g.born = now.mono);
                break;
            }
            if gap.open || gap.due > now.mono {
                at += 1;
                continue;
            }
            if room == 0 {
                self.held_back = Some(HeldBack::Window);
                break;
            }
            let let_go = gap.is_let_go();
            let Some((to, server)) = parties.turn(&mut gap.tries, let_go) else {
                // Nobody to ask yet: a heartbeat will name someone.
                gap.due = now.mono + timeout;
                at += 1;
                continue;
            };
            let asked = gap.range.prefix(room.min(horizon.since(gap.range.first)));
            if asked != gap.range {
                // Without room for the rest the whole gap counts as asked; it comes due again.
                let _ = self.isolate(at, asked);
            }
            let gap = &mut self.list[at];
            if gap.questions == 0 {
                gap.born = now.mono;
            }
            if parties.group.is_some() && !server {
                // All archives are asked at once and answer anew.
                gap.forget_archives(question);
            }
            gap.tries += 1;
            gap.questions += 1;
            gap.question = question;
            gap.open = true;
            gap.asked_at = now.mono;
            gap.due = now.mono + pause(timeout, gap.tries, self.config.max_timeout);
            outstanding = outstanding.saturating_add(gap.range.len());
            self.batch.push((to, server, asked));
            at += 1;
        }
        self.send_batch(
            Stamp {
                time: question,
                ..stamp
            },
            out,
        );
        // Open questions free the window when their time is over, wherever they are.
        self.next_due = self
            .list
            .iter()
            .filter(|g| g.due > now.mono && (g.open || g.range.first < horizon))
            .map(|g| g.due)
            .min()
            .unwrap_or(Nanos::MAX);
        // Room that comes in less than half windows is enough in time: there may be no more of it
        // before this gap is closed.
        if let Some(HeldBack::Horizon(_)) = self.held_back {
            self.next_due = self.next_due.min(now.mono + self.config.max_timeout);
        }
    }

    fn send_batch(&mut self, stamp: Stamp, out: &mut impl Outbox) {
        // Few parties: one pass for each, so that each frame names as many ranges as fit.
        while let Some(&(to, server, _)) = self.batch.first() {
            let stamp = Stamp {
                flags: if server { flags::ASK_SERVER } else { flags::ASK_ARCHIVE },
                ..stamp
            };
            let chosen = self
                .batch
                .iter()
                .filter(|b| b.0 == to && b.1 == server)
                .map(|b| b.2)
                .take(MAX_RANGES);
            // A frame that cannot be sent now is covered by the time-out.
            if out.send(to, |buf| stamp.ranges(buf, Kind::Nak, pieces(chosen))) {
                self.questions.note(to, 1);
            }
            let mut sent = 0;
            self.batch.retain(|b| {
                let gone = b.0 == to && b.1 == server && sent < MAX_RANGES;
                sent += usize::from(gone);
                !gone
            });
        }
    }

    /// Takes out a gap that nobody will ever fill, as far as can be known, and says why: everyone
    /// refused it for good, or nobody has answered for too long.
    pub fn take_given_up(&mut self, now: Nanos, parties: &Parties) -> Option<(SeqRange, Loss)> {
        let why = |g: &Gap| {
            let waited = g.tries > 0 || parties.nobody();
            let too_long = waited && now.saturating_sub(g.born) >= self.config.give_up;
            let refused = parties.all_refuse(g.refused_by, now).then_some(Loss::Refused);
            refused.or(too_long.then_some(Loss::Unanswered))
        };
        let (at, why) = self.list.iter().enumerate().find_map(|(at, g)| Some((at, why(g)?)))?;
        Some((self.list.remove(at).range, why))
    }
}

/// The first two tries, one for each party, have the plain time-out; then it doubles.
fn pause(timeout: Nanos, tries: u32, max: Nanos) -> Nanos {
    let doublings = (tries.saturating_sub(1) / 2).min(16);
    (timeout << doublings).min(max)
}

/// The same messages in more ranges, if they are many: an answer may be so many times as long as the
/// question, so who asks for much asks at length.
fn pieces(ranges: impl Iterator<Item = SeqRange> + Clone) -> impl Iterator<Item = SeqRange> {
    let (count, total) = ranges
        .clone()
        .fold((0, 0u32), |(n, sum), r| (n + 1, sum.saturating_add(r.len())));
    // Each range may end in a shorter piece.
    let room = (MAX_RANGES as u32).saturating_sub(count).max(1);
    let size = total.div_ceil(room).max(PIECE);
    ranges.flat_map(move |range| {
        (0..range.len().div_ceil(size)).filter_map(move |i| {
            let first = range.first.plus(i * size);
            SeqRange::new(first, range.last.min(first.plus(size - 1)))
        })
    })
}

/// The stamp of a NAK, but for what [`Gaps::ask`] sets: time and flags.
#[must_use]
pub fn nak_stamp(stream: Stream, session: Session, origin: u32) -> Stamp {
    Stamp {
        stream,
        session,
        sequence: Seq(0),
        time: 0,
        flags: 0,
        origin,
    }
}

#[cfg(test)]
mod tests;
