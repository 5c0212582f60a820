//! What is missing, whom to ask for it, and when.
//!
//! Clients and archives share this. A gap is asked for at the archive first, then at the server,
//! then again with growing pauses, until it is found, refused for good by everyone, or too old.

use alloc::vec::Vec;
use core::net::SocketAddrV4;

use crate::io::{Loss, Outbox};
use crate::rng::Rng;
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::{MICROS, MILLIS, Nanos, Now, RoundTrip, SECONDS};
use crate::wire::{Header, Kind, MAX_ENDPOINTS, MAX_RANGES, Reason, Stamp, flags};

/// Most archives that are asked in turn: all that a heartbeat can name.
pub const MAX_ARCHIVES: usize = MAX_ENDPOINTS / 2 - 1;
/// Parties that are known no more whose answers are still taken.
const FORMER: usize = 8;
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

/// Parties whose NAKs are counted one by one: all there are at a time, and some that are gone.
const ASKED: usize = 2 * (MAX_ARCHIVES + 2);

/// NAK frames sent, by whom they went to.
#[derive(Clone, Debug)]
pub struct Questions {
    all: u64,
    to: Vec<(SocketAddrV4, u64)>,
}

impl Questions {
    /// None yet. All memory is taken now.
    #[must_use]
    pub fn new() -> Questions {
        Questions {
            all: 0,
            to: Vec::with_capacity(ASKED),
        }
    }

    fn note(&mut self, to: SocketAddrV4, naks: u64) {
        self.all += naks;
        if let Some((_, sum)) = self.to.iter_mut().find(|(party, _)| *party == to) {
            *sum += naks;
        } else if self.to.len() < ASKED {
            self.to.push((to, naks));
        } else if let Some(least) = self.to.iter_mut().min_by_key(|(_, sum)| *sum) {
            *least = (to, naks);
        }
    }

    /// Moves all of them to another count.
    pub fn pour(&mut self, into: &mut Questions) {
        self.all = 0;
        for (to, naks) in self.to.drain(..) {
            into.note(to, naks);
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.all
    }

    /// Who was asked, and how often. Of more than 34 parties, those asked least are forgotten.
    pub fn by_party(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.to.iter().copied()
    }
}

impl Default for Questions {
    fn default() -> Questions {
        Questions::new()
    }
}

/// Who can be asked.
#[derive(Clone, Debug)]
pub struct Parties {
    archives: [Option<SocketAddrV4>; MAX_ARCHIVES],
    server: Option<SocketAddrV4>,
    /// Known before, the latest first.
    former: [Option<SocketAddrV4>; FORMER],
    /// A heartbeat has named them.
    named: bool,
    /// Where NAKs go when they are multicast; then no address need be known.
    pub group: Option<SocketAddrV4>,
    /// Whether an archive exists, known by address or not. Then no message is given up on the
    /// server's word alone.
    pub archived: bool,
    /// The run of the server that was heard last.
    run: u32,
    /// When it will have named every archive.
    complete_at: Nanos,
}

/// A server names the archives that it has heard, and each is heard at least this often.
pub const NAMED: Nanos = 5 * SECONDS;

impl Parties {
    /// Nobody known yet; `archived` as in [`Parties::archived`].
    #[must_use]
    pub fn new(archived: bool) -> Parties {
        Parties {
            archives: [None; MAX_ARCHIVES],
            server: None,
            former: [None; FORMER],
            named: false,
            group: None,
            archived,
            run: 0,
            complete_at: 0,
        }
    }

    /// The same, asked by multicast if a group is given.
    #[must_use]
    pub fn by_multicast(self, group: Option<SocketAddrV4>) -> Parties {
        Parties { group, ..self }
    }

    /// A heartbeat has come from this run of the server, and says whether it is another than before. One
    /// that has just started does not know all archives yet.
    #[must_use]
    pub fn heard(&mut self, run: u32, now: Nanos) -> bool {
        let changed = self.run != run;
        if changed {
            self.run = run;
            self.complete_at = now + NAMED;
        }
        changed
    }

    /// Takes the archives that a heartbeat names, and says whether they are others than before.
    /// Archives that stay keep their place.
    pub fn set_archives(&mut self, named: impl Iterator<Item = SocketAddrV4> + Clone) -> bool {
        let mut changed = false;
        self.named = true;
        for at in 0..self.archives.len() {
            if let Some(gone) = self.archives[at].filter(|a| named.clone().all(|n| n != *a)) {
                self.archives[at] = None;
                self.remember(gone);
                changed = true;
            }
        }
        for addr in named {
            if !self.archives.contains(&Some(addr))
                && let Some(free) = self.archives.iter_mut().find(|p| p.is_none())
            {
                *free = Some(addr);
                changed = true;
            }
        }
        changed
    }

    /// The server's address, once known.
    #[must_use]
    pub fn server(&self) -> Option<SocketAddrV4> {
        self.server
    }

    /// Takes the server's address, and says whether it is another than before.
    pub fn set_server(&mut self, server: SocketAddrV4) -> bool {
        let changed = self.server != Some(server);
        if changed && let Some(gone) = self.server.replace(server) {
            self.remember(gone);
        }
        changed
    }

    fn remember(&mut self, gone: SocketAddrV4) {
        let known = self.former.iter().position(|f| *f == Some(gone));
        self.former[..=known.unwrap_or(FORMER - 1)].rotate_right(1);
        self.former[0] = Some(gone);
    }

    /// Whether an answer from this address counts: it is that of the server or an archive, now or
    /// lately. Before a heartbeat has named them anyone may answer what was asked by multicast.
    #[must_use]
    pub fn may_answer(&self, from: SocketAddrV4) -> bool {
        let from = Some(from);
        self.server == from
            || self.archives.contains(&from)
            || self.former.contains(&from)
            || self.group.is_some() && !self.named
    }

    /// The `n`-th known archive, counted round and round.
    fn archive(&self, n: u32) -> Option<(usize, SocketAddrV4)> {
        let known = self.archives.iter().flatten().count() as u32;
        let n = n.checked_rem(known)? as usize;
        self.places().nth(n)
    }

    fn places(&self) -> impl Iterator<Item = (usize, SocketAddrV4)> + '_ {
        self.archives.iter().enumerate().filter_map(|(i, a)| Some((i, (*a)?)))
    }

    fn place_of(&self, addr: SocketAddrV4) -> Option<usize> {
        self.places().find(|(_, a)| *a == addr).map(|(i, _)| i)
    }

    /// Whom to ask on a gap's next try, and whether that is the server. Archives have even turns,
    /// the server odd ones; who is not known is passed over, and so is a server that has `let_go`
    /// of it if there is an archive.
    fn turn(&self, tries: &mut u32, let_go: bool) -> Option<(SocketAddrV4, bool)> {
        let has_archive = match self.group {
            Some(_) => self.archived,
            None => self.archive(0).is_some(),
        };
        if let_go && has_archive && !tries.is_multiple_of(2) {
            *tries += 1;
        }
        if let Some(group) = self.group {
            if !has_archive && tries.is_multiple_of(2) {
                *tries += 1;
            }
            return Some((group, !tries.is_multiple_of(2)));
        }
        let archive = self.archive(*tries / 2);
        if tries.is_multiple_of(2) && archive.is_none() || !tries.is_multiple_of(2) && self.server.is_none() {
            *tries += 1;
        }
        if tries.is_multiple_of(2) {
            self.archive(*tries / 2).map(|(_, addr)| (addr, false))
        } else {
            self.server.map(|addr| (addr, true))
        }
    }

    fn nobody(&self) -> bool {
        self.group.is_none() && self.server.is_none() && self.places().next().is_none()
    }

    /// Whether everyone who could have a number has refused it for good.
    fn all_refuse(&self, refused_by: u16, now: Nanos) -> bool {
        if planted!(TrustOneRefusal) && refused_by != 0 {
            return true;
        }
        if self.archived && now < self.complete_at {
            return false;
        }
        let all: u16 = self.places().map(|(i, _)| 1 << i).sum();
        let archives_done = if all == 0 {
            !self.archived
        } else {
            refused_by & all == all
        };
        archives_done && self.server.is_some() && refused_by & REFUSED_BY_SERVER != 0
    }
}

const ALL: SeqRange = SeqRange {
    first: Seq::FIRST,
    last: Seq::LAST,
};

const REFUSED_BY_SERVER: u16 = 1 << MAX_ARCHIVES;

/// Who refuses, and what he was asked.
#[derive(Clone, Copy, Debug)]
pub struct Refuser {
    from: SocketAddrV4,
    is_server: bool,
    /// See [`Header::question`].
    question: u64,
}

impl Refuser {
    /// The sender of an UNAVAILABLE or END.
    #[must_use]
    pub fn new(from: SocketAddrV4, header: &Header) -> Refuser {
        Refuser {
            from,
            is_server: header.has(flags::FROM_SERVER),
            question: header.question(),
        }
    }
}

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
            if counts && by.is_server && !gap.is_let_go() {
                // A server lets go of what archives have stored: one that did not know it when it
                // was asked may have it by now. Their word counts if they are asked from here on.
                gap.refused_by = REFUSED_BY_SERVER;
                gap.let_go_at = now;
                gap.since = self.asked + 1;
            } else if counts {
                gap.refused_by |= bit;
            }
            if !ends_wait {
                continue;
            }
            gap.open = false;
            // Whose refusal leaves nobody else to be asked at once.
            let pause = if by.is_server || gap.is_let_go() {
                pause(timeout, gap.tries, self.config.max_timeout)
            } else {
                0
            };
            gap.due = now + pause.max(Nanos::from(retry_ms) * MILLIS);
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
