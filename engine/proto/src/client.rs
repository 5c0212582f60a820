//! The client: delivers a stream, each message once, and gets back what was missed.

use core::net::SocketAddrV4;

use crate::gaps::{GapConfig, Gaps, nak_stamp};
use crate::hold::Hold;
use crate::io::{Application, Delivery, End, Event, Loss, Outbox, Path};
use crate::lines::{Line, Lines, LinesConfig, Verdict};
use crate::parties::{Parties, Refuser};
use crate::ranges::RangeSet;
use crate::seq::{Seq, SeqRange, Session, Stream};
use crate::time::{MILLIS, Nanos, Now};
use crate::wire::{
    Block, Body, Endpoint, Frame, Header, HeartbeatBody, Kind, Reason, Refusals, Role, flags, reachable,
};

use zerocopy::FromBytes;

/// Where a client begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first packet that it sees; nothing older is ever asked for.
    Now,
    /// At the first message of the session that it finds.
    Session,
    /// Right behind this message, however long ago that was.
    After(Session, Seq),
}

/// In what order a client delivers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// In the order of the numbers; what follows a gap waits for the repair.
    #[default]
    Sequence,
    /// As messages arrive; repairs come late and say so. Sessions still follow each other.
    Arrival,
}

/// Settings of a client.
#[derive(Clone, Copy, Debug)]
pub struct ClientConfig {
    /// The stream.
    pub stream: Stream,
    /// Tells this client apart in the NAKs that it sends.
    pub origin: u32,
    /// Where to begin.
    pub start: Start,
    /// In what order to deliver.
    pub order: Order,
    /// How far ahead of the next message a frame may be and still be held, in messages.
    pub window: u32,
    /// Most frames held; their receive buffers are not free meanwhile.
    pub hold_frames: u32,
    /// How repairs are asked for.
    pub gaps: GapConfig,
    /// The group, when NAKs shall be multicast: no address need be known, and clients that missed
    /// the same keep silent when one has asked.
    pub ask_group: Option<SocketAddrV4>,
    /// The group, when a client that resumes shall ask it as long as no heartbeat has named anyone:
    /// what it missed is found while the server is away.
    pub seek_group: Option<SocketAddrV4>,
    /// After this long without a frame of the server the archive is asked whether there is more.
    pub silence: Nanos,
    /// Listen to both lines of the stream, or to one.
    pub lines: Option<LinesConfig>,
    /// The line that leads to whom to ask, when only one is listened to.
    pub line: Line,
    /// Line B's group, to ask there instead of at `ask_group` while line A is silent.
    pub ask_group_b: Option<SocketAddrV4>,
    /// Seed of the random pauses.
    pub seed: u64,
}

impl ClientConfig {
    /// The defaults for a stream.
    #[must_use]
    pub fn new(stream: Stream, origin: u32) -> ClientConfig {
        ClientConfig {
            stream,
            origin,
            start: Start::Now,
            order: Order::Sequence,
            window: 1 << 16,
            hold_frames: 2048,
            gaps: GapConfig::default(),
            ask_group: None,
            seek_group: None,
            silence: 1000 * MILLIS,
            lines: None,
            line: Line::A,
            ask_group_b: None,
            seed: u64::from(origin),
        }
    }
}

/// What a client has seen and done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClientStats {
    /// Messages delivered.
    pub delivered: u64,
    /// Of those, repaired by an archive.
    pub repaired_archive: u64,
    /// Of those, repaired by the server.
    pub repaired_server: u64,
    /// Gaps that opened; with two lines, on both of them.
    pub gaps: u64,
    /// Messages reported as lost.
    pub lost: u64,
    /// Of those, given up since no answer came.
    pub unanswered: u64,
    /// Messages received that had been delivered or were held already.
    pub duplicates: u64,
    /// Frames dropped because they were too far ahead or nothing could be held; repaired later.
    pub overruns: u64,
    /// Times that the application would not take a block.
    pub refused: u64,
    /// Frames of another session that were not used.
    pub other_session: u64,
    /// Frames of a second server under the same identity.
    pub foreign: u64,
    /// Answers and ENDs of parties that are neither the server nor an archive of the stream.
    pub unasked: u64,
    /// Bytes that were no frame.
    pub malformed: u64,
    /// NAK frames sent.
    pub naks: u64,
    /// Ranges that a party refused: it has not seen them yet.
    pub refused_not_yet: u64,
    /// Ranges that a party refused: it keeps them no more.
    pub refused_too_old: u64,
    /// Ranges that a party refused: they are lost for good.
    pub refused_lost: u64,
    /// Ranges that a party refused: it does not know the session.
    pub refused_unknown_session: u64,
    /// Ranges that a party refused: its askers ask too much, this one or all together.
    pub refused_busy: u64,
    /// Smoothed time from a NAK to its first repair, in nanoseconds; 0 before the first.
    pub round_trip: Nanos,
}

/// Where delivery stands.
#[derive(Debug)]
struct Cursor {
    /// [`Session::NONE`] until something of the stream was seen.
    session: Session,
    /// The lowest message that is neither delivered nor lost; in order, the next one to deliver.
    next: Seq,
    /// The highest message delivered in this session; 0 before the first.
    highest: Seq,
    /// The application would not take it.
    blocked: bool,
    stats: ClientStats,
}

impl Cursor {
    /// Offers the application the messages `wanted` of a checked frame.
    fn offer(&mut self, bytes: &[u8], wanted: SeqRange, waited: bool, app: &mut impl Application) -> bool {
        let Ok((header, body)) = Header::ref_from_prefix(bytes) else {
            return true;
        };
        let whole = Block::trusted(header.sequence(), header.count.get(), body);
        let Some(block) = whole.part(wanted, usize::MAX) else {
            return true;
        };
        let path = match (header.kind == Kind::Repair as u8, header.has(flags::FROM_SERVER)) {
            (false, _) => Path::Live,
            (true, false) => Path::Archive,
            (true, true) => Path::Server,
        };
        let delivery = Delivery {
            session: self.session,
            block,
            time: header.time.get(),
            path,
            waited,
            late: wanted.first < self.highest,
        };
        self.blocked = !app.deliver(&delivery);
        if self.blocked {
            self.stats.refused += 1;
            return false;
        }
        let count = u64::from(block.count());
        self.highest = self.highest.max(wanted.last);
        self.stats.delivered += count;
        match path {
            Path::Live => {}
            Path::Archive => self.stats.repaired_archive += count,
            Path::Server => self.stats.repaired_server += count,
        }
        true
    }
}

/// The state machine; `F` is an owned receive frame.
#[derive(Debug)]
pub struct Client<F> {
    config: ClientConfig,
    cursor: Cursor,
    /// The server run that this session is taken from; 0 while unknown.
    server_origin: u32,
    /// One past the highest message known to exist.
    horizon: Seq,
    hold: Hold<F>,
    /// How far ahead of the next message anything is asked for: as far as could be held when frames
    /// ran out, until nothing is missing.
    reach: u32,
    gaps: Gaps,
    /// Given up, in order: reported when their turn comes.
    lost: RangeSet,
    /// Of those, the ones that somebody may have had.
    unanswered: RangeSet,
    /// On arrival: delivered or reported as lost, above the next message.
    done: RangeSet,
    parties: Parties,
    lines: Option<Lines>,
    end: Option<End>,
    ended: bool,
    /// A later session that has been seen.
    upcoming: Session,
    /// The lowest later session of which a party that was asked knows.
    later: Session,
    /// What may follow was given up, and nothing has been heard of it since.
    probed_in_vain: bool,
    heard: Nanos,
    silent: bool,
    duplicate_reported: bool,
}

impl<F: AsRef<[u8]>> Client<F> {
    /// A client that has seen nothing. All memory is taken now.
    #[must_use]
    pub fn new(config: ClientConfig, now: Nanos) -> Client<F> {
        let (session, next) = match config.start {
            Start::After(session, seq) => (session, seq.next()),
            Start::Now | Start::Session => (Session::NONE, Seq::FIRST),
        };
        let hold = Hold::new(config.window, config.hold_frames);
        let seek = config.seek_group.filter(|_| session != Session::NONE);
        let done = match config.order {
            Order::Sequence => 0,
            // One behind each gap.
            Order::Arrival => config.gaps.max_gaps,
        };
        // More than can be held is never asked for.
        let gaps = GapConfig {
            ask_window: config.gaps.ask_window.clamp(1, hold.window()),
            skew: config.lines.map_or(0, |l| l.skew),
            ..config.gaps
        };
        Client {
            cursor: Cursor {
                session,
                next,
                highest: Seq(0),
                blocked: false,
                stats: ClientStats::default(),
            },
            server_origin: 0,
            horizon: next,
            reach: hold.window(),
            hold,
            gaps: Gaps::new(gaps, config.seed),
            lost: RangeSet::new(config.gaps.max_gaps),
            unanswered: RangeSet::new(config.gaps.max_gaps),
            done: RangeSet::new(done),
            // Until a heartbeat says otherwise an archive may have what the server lacks.
            parties: Parties::new(true).by_multicast(config.ask_group.or(seek)),
            lines: config.lines.map(Lines::new),
            end: None,
            ended: false,
            upcoming: Session::NONE,
            later: Session::NONE,
            probed_in_vain: false,
            heard: now,
            silent: false,
            duplicate_reported: false,
            config,
        }
    }

    /// Who was asked for repairs, with the number of NAK frames.
    pub fn asked(&self) -> impl Iterator<Item = (SocketAddrV4, u64)> {
        self.gaps.questions.by_party()
    }

    /// What has been seen and done so far.
    #[must_use]
    pub fn stats(&self) -> ClientStats {
        ClientStats {
            naks: self.gaps.questions.all(),
            round_trip: self.gaps.round_trip(),
            ..self.cursor.stats
        }
    }

    /// The session and the lowest message that is neither delivered nor lost, once known.
    #[must_use]
    pub fn position(&self) -> Option<(Session, Seq)> {
        Some((self.cursor.session.known()?, self.cursor.next))
    }

    /// Whether the server has ended the stream and everything has been delivered.
    #[must_use]
    pub fn ended(&self) -> bool {
        self.ended
    }

    /// How many frames are held.
    #[must_use]
    pub fn held(&self) -> usize {
        self.hold.len()
    }

    /// What has come over each line, if both are listened to.
    #[must_use]
    pub fn lines(&self) -> Option<&Lines> {
        self.lines.as_ref()
    }

    /// Takes one received frame of this client's stream that came over `line`.
    #[inline]
    pub fn on_line_frame(&mut self, now: Now, line: Line, from: SocketAddrV4, frame: F, app: &mut impl Application) {
        let Some(lines) = &mut self.lines else {
            return self.on_frame(now, from, frame, app);
        };
        if lines.take(now.mono, line, frame.as_ref()) == Verdict::Use {
            self.on_frame(now, from, frame, app);
        }
        if let Some(lines) = self.lines.as_ref().filter(|l| l.session() == self.cursor.session) {
            self.gaps.hasten(lines.passed(), now.mono);
        }
    }

    /// Takes one received frame of this client's stream.
    pub fn on_frame(&mut self, now: Now, from: SocketAddrV4, frame: F, app: &mut impl Application) {
        let bytes = frame.as_ref();
        let parsed = match Frame::parse(bytes) {
            Ok(parsed) if parsed.header.stream() == self.config.stream => parsed,
            _ => {
                self.cursor.stats.malformed += 1;
                return;
            }
        };
        let header = parsed.header;
        let answer = matches!(parsed.body, Body::Repair(_) | Body::End(_) | Body::Unavailable(_));
        if answer && !self.parties.may_answer(from) {
            self.cursor.stats.unasked += 1;
            return;
        }
        match parsed.body {
            Body::Data(block) => {
                if self.accept_server(header, from, now, app) && self.enter(now, header, block.first(), app) {
                    if self.parties.server().is_none() {
                        self.parties.set_server(from);
                    }
                    if let Some(range) = block.range() {
                        self.on_block(now, range, frame, app);
                    }
                }
            }
            Body::Repair(block) => {
                if header.session() != self.cursor.session {
                    self.cursor.stats.other_session += 1;
                } else if let Some(range) = block.range() {
                    self.on_block(now, range, frame, app);
                }
            }
            Body::Heartbeat(body, endpoints) => {
                if self.accept_server(header, from, now, app) {
                    self.on_heartbeat(now, header, body, endpoints, app);
                }
            }
            Body::End(body) => {
                let end = End {
                    last: header.sequence().prev(),
                    next: Session(body.next_session.get()),
                };
                self.on_end(now, from, header, end, app);
            }
            Body::Unavailable(refusals) => self.on_unavailable(now, from, header, refusals),
            Body::Nak(ranges) => {
                if header.session() == self.cursor.session && header.origin.get() != self.config.origin {
                    for range in ranges.iter() {
                        self.gaps.asked_by_another(range, now.mono);
                    }
                }
            }
            Body::Ack(_) => {}
        }
    }

    /// Runs what is due. Returns when to call again at the latest, in monotonic time.
    pub fn poll(&mut self, now: Now, app: &mut impl Application, out: &mut impl Outbox) -> Nanos {
        if self.cursor.session == Session::NONE {
            return Nanos::MAX;
        }
        if self.cursor.blocked {
            self.drain(app);
        }
        if let Some(change) = self.lines.as_mut().and_then(Lines::poll) {
            app.event(Event::Line(change));
        }
        if now.mono.saturating_sub(self.heard) >= self.config.silence && !self.ended {
            if !self.silent {
                self.silent = true;
                app.event(Event::Silent);
            }
            // Whoever still answers knows whether there was more.
            self.probe(now.mono);
        }
        if self.gaps.is_empty() && self.reach < self.hold.window() {
            self.set_reach(self.hold.window());
        }
        let limit = self.limit();
        if self.gaps.is_due(now.mono, limit) && (!self.cursor.blocked || self.hold.has_room()) {
            let Cursor { session, stats, .. } = &mut self.cursor;
            self.gaps
                .confirm(now.mono, |range| open_gap(*session, range, stats, app));
            while let Some((range, why)) = self.gaps.take_given_up(now.mono, &self.parties) {
                self.give_up(now.mono, range, why, app);
            }
            // What was given up makes room to ask.
            let limit = self.limit();
            let stamp = nak_stamp(self.config.stream, self.cursor.session, self.config.origin);
            self.gaps.ask(now, limit, &self.parties, stamp, out);
        }
        self.finish_session(now.mono, app);
        // Once it is over, questions have times of their own.
        let silence = match self.heard + self.config.silence {
            over if self.ended || over <= now.mono => Nanos::MAX,
            to_come => to_come,
        };
        let retry = if self.cursor.blocked {
            now.mono + MILLIS
        } else {
            Nanos::MAX
        };
        silence.min(retry).min(self.gaps.next_due().max(now.mono + 1))
    }

    /// Nothing from here on is asked for: it could not be held when it comes.
    fn limit(&mut self) -> Seq {
        let reach = self.cursor.next.plus(self.reach);
        if !self.hold.has_room() {
            self.hold.top(self.cursor.next).unwrap_or(reach)
        } else if self.config.order == Order::Arrival && !self.cursor.blocked {
            Seq(u32::MAX)
        } else {
            reach
        }
    }

    /// Whether a frame of the server may be used; keeps watch over its identity.
    fn accept_server(&mut self, header: &Header, from: SocketAddrV4, now: Now, app: &mut impl Application) -> bool {
        let origin = header.origin.get();
        if header.session() == self.cursor.session && self.server_origin != 0 && origin != self.server_origin {
            self.cursor.stats.foreign += 1;
            if !self.duplicate_reported {
                self.duplicate_reported = true;
                app.event(Event::DuplicateServer {
                    session: self.cursor.session,
                    from,
                });
            }
            return false;
        }
        if header.session() < self.cursor.session {
            self.cursor.stats.other_session += 1;
            return false;
        }
        if header.session() == self.cursor.session {
            self.server_origin = origin;
        }
        self.heard = now.mono;
        if self.silent {
            self.silent = false;
            app.event(Event::Heard);
        }
        true
    }

    /// Whether the frame's session is the current one; the first frame of all decides it.
    fn enter(&mut self, now: Now, header: &Header, first: Seq, app: &mut impl Application) -> bool {
        let session = header.session();
        if self.cursor.session == Session::NONE && session != Session::NONE {
            self.cursor.session = session;
            self.server_origin = header.origin.get();
            self.cursor.next = if self.config.start == Start::Session {
                Seq::FIRST
            } else {
                first
            };
            self.horizon = self.cursor.next;
            app.event(Event::Joined {
                session,
                next: self.cursor.next,
            });
        }
        if session == self.cursor.session {
            return true;
        }
        if session > self.cursor.session {
            self.note_upcoming(session, now);
        }
        self.cursor.stats.other_session += 1;
        false
    }

    fn on_block(&mut self, now: Now, range: SeqRange, frame: F, app: &mut impl Application) {
        if let Some(gap) = SeqRange::new(self.horizon, range.first.prev()) {
            self.miss(now, gap, app);
        }
        self.horizon = self.horizon.max(range.end());
        let Some(wanted) = SeqRange::new(range.first.max(self.cursor.next), range.last) else {
            self.cursor.stats.duplicates += u64::from(range.len());
            return;
        };
        if self.config.order == Order::Arrival {
            return self.deliver_now(now, range, frame, app);
        }
        let is_next =
            (wanted.first == self.cursor.next || planted!(SkipGap)) && self.hold.get(self.cursor.next).is_none();
        if is_next && !self.cursor.blocked && self.cursor.offer(frame.as_ref(), wanted, false, app) {
            self.cursor.stats.duplicates += u64::from(self.cursor.next.since(range.first));
            if !self.gaps.is_empty() {
                self.gaps.found(range, now.mono);
            }
            if planted!(DeliverTwice) {
                let again = SeqRange::new(range.last, range.last).unwrap_or(range);
                self.cursor.offer(frame.as_ref(), again, false, app);
            }
            self.advance(range.last);
            if (!self.hold.is_empty() || !self.lost.is_empty()) && !planted!(ForgetHeld) {
                self.drain(app);
            }
            return;
        }
        self.keep(now, range, frame);
    }

    fn set_reach(&mut self, messages: u32) {
        self.reach = messages;
        self.gaps.set_window(messages);
    }

    /// Holds a frame that cannot be delivered yet. What cannot be held is noted as missing.
    fn keep(&mut self, now: Now, range: SeqRange, frame: F) {
        let window = SeqRange {
            first: self.cursor.next,
            last: self.cursor.next.plus(self.hold.window() - 1),
        };
        let ahead = range.intersect(window);
        if !self.hold.has_room() {
            self.set_reach(self.hold.messages().max(1));
        }
        if let Some(part) = ahead
            && !self.hold.has_room()
            && let Some(gone) = self.hold.evict_beyond(part.last, self.cursor.next)
        {
            self.cursor.stats.overruns += 1;
            self.gaps.miss(gone, now.mono);
        }
        if let Some(part) = ahead
            && let Ok(new) = self.hold.put(part, frame)
        {
            self.cursor.stats.duplicates += u64::from(part.len() - new);
            self.gaps.found(part, now.mono);
            if let Some(rest) = SeqRange::new(part.end(), range.last) {
                self.gaps.miss(rest, now.mono);
            }
            return;
        }
        let has = |seq| window.contains(seq) && self.hold.get(seq).is_some() || self.done.contains(seq);
        let mut absent = 0;
        let mut at = range.first.max(self.cursor.next);
        while at <= range.last {
            let here = has(at);
            let mut last = at;
            while last < range.last && has(last.next()) == here {
                last = last.next();
            }
            let run = SeqRange { first: at, last };
            if here {
                // Asked for in vain, between two gaps that were joined: not to be asked for again at once.
                self.gaps.found(run, now.mono);
            } else {
                absent += run.len();
                self.gaps.miss(run, now.mono);
                self.gaps.turned_away(run, now.mono);
            }
            at = last.next();
        }
        self.cursor.stats.overruns += u64::from(absent > 0);
        self.cursor.stats.duplicates += u64::from(range.len() - absent);
    }

    /// Everything up to `last` is done with.
    fn advance(&mut self, last: Seq) {
        if !self.hold.is_empty()
            && let Some(done) = SeqRange::new(self.cursor.next, last)
        {
            self.hold.drop_range(done.prefix(self.hold.window()));
        }
        self.cursor.next = last.next();
        // What was given up for a nearer frame may have come within another, and what came may not
        // have been cut out of a full list: asked for in vain, it would fill the window of what may
        // be asked for.
        if !self.gaps.is_empty() {
            self.gaps.forget_below(self.cursor.next);
        }
    }

    /// Delivers what has become next, and says what is lost when its turn comes.
    fn drain(&mut self, app: &mut impl Application) {
        if self.config.order == Order::Arrival {
            return self.deliver_held(app);
        }
        loop {
            self.cursor.blocked = false;
            let next = self.cursor.next;
            if let Some((range, why)) = self.lost_from(next) {
                self.report_lost(range, why, app);
                self.advance(range.last);
                self.lost.remove_below(self.cursor.next);
                self.unanswered.remove_below(self.cursor.next);
                continue;
            }
            let Some(frame) = self.hold.get(next) else { return };
            let Some(wanted) = last_of(frame.as_ref()).and_then(|last| SeqRange::new(next, last)) else {
                return;
            };
            if !self.cursor.offer(frame.as_ref(), wanted, true, app) {
                return;
            }
            self.advance(wanted.last);
        }
    }

    /// What is lost from `next` on, all for one reason.
    fn lost_from(&self, next: Seq) -> Option<(SeqRange, Loss)> {
        let lost = self.lost.range_of(next)?;
        let unanswered = self.unanswered.as_slice();
        let (last, why) = match unanswered.get(unanswered.partition_point(|r| r.last < next)) {
            Some(part) if part.first <= next => (part.last, Loss::Unanswered),
            Some(part) => (part.first.prev(), Loss::Refused),
            None => (Seq::LAST, Loss::Refused),
        };
        Some((SeqRange::new(next, last.min(lost.last))?, why))
    }

    fn report_lost(&mut self, range: SeqRange, why: Loss, app: &mut impl Application) {
        let Cursor { session, stats, .. } = &mut self.cursor;
        let messages = u64::from(range.len());
        stats.lost += messages;
        stats.unanswered += if why == Loss::Unanswered { messages } else { 0 };
        app.event(Event::Lost {
            session: *session,
            range,
            why,
        });
    }

    fn on_heartbeat(
        &mut self,
        now: Now,
        header: &Header,
        body: &HeartbeatBody,
        endpoints: &[Endpoint],
        app: &mut impl Application,
    ) {
        self.learn(now, header, endpoints);
        if self.parties.heard(header.origin.get(), now.mono) {
            self.gaps.server_changed();
        }
        if self.cursor.session != Session::NONE && header.session() > self.cursor.session {
            let previous = Session(body.previous_session.get());
            if previous == self.cursor.session {
                let end = End {
                    last: Seq(body.previous_last.get()),
                    next: header.session(),
                };
                self.set_end(now, end);
            } else if let Some(end) = self.end.as_mut().filter(|e| e.next == Session::NONE) {
                if previous == Session::NONE {
                    end.next = header.session();
                } else {
                    // There was a session in between: who knows the end also knows what came next.
                    self.end = None;
                }
            }
        }
        let next = header.sequence();
        if !self.enter(now, header, next, app) {
            return;
        }
        if let Some(gap) = SeqRange::new(self.horizon, next.prev()) {
            self.miss(now, gap, app);
            self.horizon = next;
        }
    }

    /// Messages that exist have not come; with two lines they may come yet.
    fn miss(&mut self, now: Now, gap: SeqRange, app: &mut impl Application) {
        self.gaps.miss(gap, now.mono);
        if self.lines.is_none() {
            open_gap(self.cursor.session, gap, &mut self.cursor.stats, app);
        }
    }

    fn learn(&mut self, now: Now, header: &Header, endpoints: &[Endpoint]) {
        self.parties.archived = header.has(flags::ARCHIVED);
        let line = self.lines.as_ref().map_or(self.config.line, Lines::preferred);
        self.parties.group = match line {
            Line::B if self.lines.is_some() => self.config.ask_group_b,
            _ => self.config.ask_group,
        };
        if self
            .parties
            .set_archives(reachable(endpoints, Role::Archive, line), now.mono)
        {
            self.gaps.archives_changed();
        }
        if let Some(server) = reachable(endpoints, Role::Server, line).next() {
            self.parties.set_server(server);
        }
    }

    fn on_end(&mut self, now: Now, from: SocketAddrV4, header: &Header, end: End, app: &mut impl Application) {
        let session = header.session();
        if self.cursor.session == Session::NONE && end.next != Session::NONE {
            // Of an older session, told to others: what is there now is yet to be heard.
            return;
        }
        if self.cursor.session == Session::NONE || session > self.cursor.session {
            // The end of a session that this client never saw; what follows will say the rest.
            if self.enter(now, header, header.sequence(), app) {
                self.set_end(now, end);
            }
        } else if session == self.cursor.session {
            self.heard = now.mono;
            if header.has(flags::UNSURE) {
                self.miss_up_to(end.last.next(), now);
                self.note_later(end.next, now);
            } else {
                self.set_end(now, end);
            }
            // A server that lost power may not know what it sent last.
            let by = Refuser::new(from, header);
            self.gaps.ended(end.last, by, &self.parties, now.mono);
        }
    }

    /// Notes how the current session ends. What is known to exist is never cut off.
    fn set_end(&mut self, now: Now, end: End) {
        let last = end.last.max(self.horizon.prev());
        let next = match self.end {
            Some(known) if end.next == Session::NONE => known.next,
            _ => end.next,
        };
        self.miss_up_to(last.next(), now);
        self.gaps.forget_above(last);
        self.end = Some(End { last, next });
    }

    /// There is a later session.
    fn note_upcoming(&mut self, session: Session, now: Now) {
        if self.upcoming <= self.cursor.session {
            // What may follow was asked for while nobody could know. From here on somebody may.
            self.gaps.renew_from(self.horizon, now.mono);
            self.probed_in_vain = false;
        }
        self.upcoming = self.upcoming.max(session);
    }

    /// Somebody who does not know what follows the current session knows of a later one.
    fn note_later(&mut self, later: Session, now: Now) {
        if later > self.cursor.session {
            self.note_upcoming(later, now);
            self.later = self.later.known().map_or(later, |l| l.min(later));
        }
    }

    /// All numbers below `end` exist, as somebody who does not send them has told.
    fn miss_up_to(&mut self, end: Seq, now: Now) {
        if let Some(gap) = SeqRange::new(self.horizon, end.prev()) {
            self.cursor.stats.gaps += u64::from(self.lines.is_none());
            self.gaps.miss(gap, now.mono);
            self.horizon = end;
        }
    }

    fn on_unavailable(&mut self, now: Now, from: SocketAddrV4, header: &Header, refusals: Refusals<'_>) {
        if header.session() != self.cursor.session {
            return;
        }
        let by = Refuser::new(from, header);
        for (range, reason, retry_ms) in refusals.iter() {
            let stats = &mut self.cursor.stats;
            *match reason {
                Reason::NotYet => &mut stats.refused_not_yet,
                Reason::TooOld => &mut stats.refused_too_old,
                Reason::Lost => &mut stats.refused_lost,
                Reason::UnknownSession => &mut stats.refused_unknown_session,
                Reason::Busy => &mut stats.refused_busy,
            } += 1;
            if reason.is_of_the_past() && self.end.is_none() {
                self.miss_up_to(range.end(), now);
            }
            if reason == Reason::UnknownSession {
                self.note_later(header.later_session(), now);
            }
            self.gaps
                .refused(range, by, (reason, retry_ms), &self.parties, now.mono);
        }
    }

    /// Asks for what may lie behind the known end of the session.
    fn probe(&mut self, now: Nanos) {
        if self.end.is_none() && self.gaps.is_empty() {
            let last = self.horizon.plus(self.config.gaps.ask_window.max(1) - 1);
            match SeqRange::new(self.horizon, last.min(Seq::LAST)) {
                Some(beyond) if self.probed_in_vain => self.gaps.miss_later(beyond, now),
                Some(beyond) => self.gaps.miss(beyond, now),
                // Nothing can lie behind the last number.
                None if self.upcoming > self.cursor.session => {
                    self.end = Some(End {
                        last: Seq::LAST,
                        next: self.later.known().unwrap_or(self.upcoming),
                    });
                }
                None => {}
            }
        }
    }

    /// Nobody has these messages, or nobody answered for too long.
    fn give_up(&mut self, now: Nanos, range: SeqRange, why: Loss, app: &mut impl Application) {
        // Numbers that nobody has sent were only asked for in case they exist.
        if let Some(known) = SeqRange::new(range.first.max(self.cursor.next), range.last.min(self.horizon.prev())) {
            // Only numbers within the window can be held; all beyond it are absent.
            let mut from = known.first;
            let window_end = self.cursor.next.plus(self.hold.window());
            for seq in (known.first.0..known.last.next().min(window_end).0).map(Seq) {
                if self.hold.get(seq).is_some() {
                    self.lose(now, SeqRange::new(from, seq.prev()), why, app);
                    from = seq.next();
                }
            }
            self.lose(now, SeqRange::new(from, known.last), why, app);
            if !self.cursor.blocked {
                self.drain(app);
            }
        }
        // Somebody may still have what comes before it.
        let is_next = self.gaps.first_from(self.horizon).is_none_or(|f| f > range.first);
        if range.last < self.horizon || !is_next || self.end.is_some() {
            return;
        }
        self.probed_in_vain = true;
        if self.upcoming > self.cursor.session {
            app.event(Event::TailUnknown {
                session: self.cursor.session,
                from: self.horizon,
            });
            self.end = Some(End {
                last: self.horizon.prev(),
                // None that anybody holds is passed over.
                next: self.later.known().unwrap_or(self.upcoming),
            });
        }
    }

    fn lose(&mut self, now: Nanos, range: Option<SeqRange>, why: Loss, app: &mut impl Application) {
        let Some(range) = range else { return };
        if self.config.order == Order::Arrival {
            return self.lose_now(now, range, why, app);
        }
        let noted = match why {
            Loss::Refused => Ok(()),
            Loss::Unanswered => self.unanswered.insert(range),
        };
        if noted.and_then(|()| self.lost.insert(range)).is_err() {
            // Too many separate losses at once: this one waits for its turn.
            self.unanswered.remove(range);
            self.gaps.miss_later(range, now);
        }
    }

    /// Goes on to the next session when the current one is done.
    fn finish_session(&mut self, now: Nanos, app: &mut impl Application) {
        if self.upcoming > self.cursor.session {
            self.probe(now);
        }
        let Some(end) = self.end else { return };
        if self.cursor.next <= end.last || self.cursor.blocked {
            return;
        }
        if !self.ended {
            self.ended = true;
            app.event(Event::SessionEnded {
                session: self.cursor.session,
                end,
            });
        }
        let next = end.next;
        if next <= self.cursor.session {
            return;
        }
        self.ended = false;
        self.end = None;
        self.cursor.session = next;
        self.cursor.next = Seq::FIRST;
        self.cursor.highest = Seq(0);
        self.horizon = Seq::FIRST;
        self.later = Session::NONE;
        self.probed_in_vain = false;
        self.server_origin = 0;
        self.duplicate_reported = false;
        self.hold.clear();
        self.gaps.clear();
        self.lost.clear();
        self.unanswered.clear();
        self.done.clear();
        app.event(Event::SessionStarted { session: next });
        // In a session that is over, or whose server is silent, no frame would tell what there is.
        if self.upcoming > next || self.silent {
            self.probe(now);
        }
    }
}

fn open_gap(session: Session, range: SeqRange, stats: &mut ClientStats, app: &mut impl Application) {
    stats.gaps += 1;
    app.event(Event::Gap { session, range });
}

fn last_of(bytes: &[u8]) -> Option<Seq> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    SeqRange::of(header.sequence(), u32::from(header.count.get())).map(|r| r.last)
}

mod arrival;

#[cfg(test)]
mod tests;
