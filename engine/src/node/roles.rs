//! The parts that an engine plays: the protocol's state machines joined to logs and feeds.

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seqcast_archive::{Keep as Limits, Options, SyncPolicy};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::client::{Client, ClientConfig, Order, Start};
use seqcast_proto::gaps::GapConfig;
use seqcast_proto::io::{Application, Delivery, Event, Loss, Path};
use seqcast_proto::lines::{Line, LineChange, Lines};
use seqcast_proto::responder::{Cast, RepairConfig};
use seqcast_proto::seal::TRAILER;
use seqcast_proto::seq::{Seq, Stream};
use seqcast_proto::server::{Blocked, Packed, RateLimit, Server, ServerConfig, Source as MessageSource, pack};
use seqcast_proto::time::{MICROS, MILLIS, Nanos, Now, SECONDS};
use seqcast_proto::wire::{Message, max_message};
use seqcast_ring::{Consumer, Doorbell};

use super::catch_up::CatchUps;
use super::filter::{Filter, Wanted};
use super::guard::Guards;
use super::outbox::{Frame, Out};
use super::session;
use super::store::{Keep, Recorder, Retention};
use super::waiting::{Backpressure, Waiting};
use super::window::Window;
use crate::config::{self, Ack, AtEnd, From as StartAt, Query};
use crate::counters::{Builder, Counters, Histogram, Part, Writing};
use crate::feed::sink::{Durable, Sink};
use crate::feed::source::Source;
use crate::feed::subject::Router;
use crate::link::Link;
use crate::programs::{Lanes, RingWriter};
use crate::report::{
    ArchiveCounts, ArchiveReport, Latency, LineCounts, LineReport, MoldSinkReport, MoldSourceReport, PublicationCounts,
    PublicationReport, SubscriptionCounts, SubscriptionReport,
};
use crate::stream_id;

/// DATA frames that one server sends in a turn.
const PUBLISH_BUDGET: usize = 64;
/// REPAIR frames that one server or archive sends in a turn.
const REPAIR_BUDGET: usize = 64;

/// What every part is started with.
pub(super) struct Setting<'a> {
    /// Name of the engine, for messages.
    pub(super) name: &'a str,
    /// The link's own address.
    pub(super) local: SocketAddrV4,
    /// The same over line B, if that is elsewhere.
    pub(super) local_b: Option<SocketAddrV4>,
    /// The link's largest frame.
    pub(super) max_frame: usize,
    /// Received frames that the link can spare.
    pub(super) may_hold: u32,
    /// Wakes the engine.
    pub(super) bell: Arc<Doorbell>,
    /// A random number for this run.
    pub(super) origin: u32,
    /// The start.
    pub(super) now: Now,
}

/// Where a server's messages come from.
pub(super) enum Feed {
    /// A thread of the engine that reads a file or a pipe.
    Thread(Source),
    /// A program in this process, through a lane.
    Lane(Consumer),
    /// A program on the engine's own thread.
    Pull(Box<dyn MessageSource>),
    /// Programs that come and go, each through a lane of its own.
    Attached(Lanes),
}

impl Feed {
    fn lane(&mut self) -> Option<&mut Consumer> {
        match self {
            Feed::Thread(source) => Some(&mut source.lane),
            Feed::Lane(lane) => Some(lane),
            Feed::Pull(_) | Feed::Attached(_) => None,
        }
    }

    /// Messages were taken.
    fn taken(&mut self) {
        if let Some(lane) = self.lane() {
            lane.flush();
        }
        match self {
            Feed::Thread(source) => source.room.ring(),
            Feed::Attached(lanes) => lanes.flush(),
            Feed::Lane(_) | Feed::Pull(_) => {}
        }
    }

    fn stop(&self) {
        if let Feed::Thread(source) = self {
            source.stop();
        }
    }

    /// Waits for the source's thread; what stopped it.
    fn join(self) -> std::io::Result<()> {
        match self {
            Feed::Thread(source) => source.join(),
            Feed::Lane(_) | Feed::Pull(_) | Feed::Attached(_) => Ok(()),
        }
    }
}

impl MessageSource for Feed {
    #[inline]
    fn peek(&mut self) -> Option<Message<'_>> {
        let lane = match self {
            Feed::Thread(source) => &mut source.lane,
            Feed::Lane(lane) => lane,
            Feed::Pull(program) => return program.peek(),
            Feed::Attached(lanes) => return lanes.peek(),
        };
        let entry = lane.peek()?;
        // The tag is the length of the subject in front of the payload.
        let (subject, payload) = entry.bytes.split_at_checked(entry.tag as usize)?;
        Some(Message { subject, payload })
    }

    #[inline]
    fn advance(&mut self) {
        match self {
            Feed::Thread(source) => source.lane.advance(),
            Feed::Lane(lane) => lane.advance(),
            Feed::Pull(program) => program.advance(),
            Feed::Attached(lanes) => lanes.advance(),
        }
    }

    fn pack(&mut self, room: &mut [u8], most: u16) -> Packed {
        match self {
            Feed::Pull(program) => program.pack(room, most),
            Feed::Attached(lanes) => pack(lanes, room, most),
            Feed::Thread(_) | Feed::Lane(_) => pack(self, room, most),
        }
    }

    fn is_finished(&self) -> bool {
        match self {
            Feed::Thread(source) => source.is_finished(),
            Feed::Lane(lane) => lane.is_finished(),
            Feed::Pull(program) => program.is_finished(),
            Feed::Attached(_) => false,
        }
    }
}

/// A stream that is published.
pub(super) struct Publish {
    group: SocketAddrV4,
    /// What is sent here came over line B.
    local_b: Option<SocketAddrV4>,
    stream: Stream,
    name: String,
    server: Server,
    store: Keep,
    /// The table of the configuration.
    table: usize,
    /// Gone once it has ended.
    source: Option<Feed>,
    at_end: AtEnd,
    /// Nothing can be sent before this time.
    retry_at: Nanos,
    resumed_at: u64,
    /// Turns in which messages waited for acknowledgements, and for the rate.
    held_back: u64,
    rate_limited: u64,
    /// What messages wait for, since when, and what of it was said.
    waiting: Backpressure,
    waits_since: Option<(Waiting, Nanos)>,
    said: [bool; Waiting::ALL.len()],
    /// Whether it was said that messages were given up for new ones.
    drop_said: bool,
    /// Archives that must acknowledge a message.
    archives: usize,
    /// Since when the source has been asked to stop.
    stopped_at: Option<Nanos>,
    /// How long it may then take until all of it is sent.
    patience: Nanos,
    /// What broke the source off.
    broken: Option<anyhow::Error>,
    /// Another server on this session that was reported.
    rival: Option<SocketAddrV4>,
    failed: bool,
    /// What a feed that has ended had received.
    feed: Option<MoldSourceReport>,
}

impl Publish {
    /// Opens the server's log and a new session. The source is started by [`start_sources`] unless
    /// `program` feeds the stream.
    pub(super) fn open(config: &config::Publish, with: &Setting<'_>, program: Option<Feed>) -> Result<Publish> {
        let stream = stream_id(config.stream, config.id);
        let what = || format!("[[publish]] {}", config.stream);
        let drop_oldest = config.drops_oldest();
        let mut store = match &config.state {
            Some(dir) => {
                let log = Retention::open(dir, stream, with.origin, config.retained(), drop_oldest);
                Keep::Log(log.with_context(what)?)
            }
            None => Keep::Window(Window::new(config.retained(), drop_oldest).with_context(what)?),
        };
        let inherited = store.inherited();
        let remembers = config.source.file.is_some() || config.source.mold.is_some();
        let resumed_at = if config.source.resume && remembers {
            store.taken()
        } else {
            0
        };
        if resumed_at > 0 {
            eprintln!(
                "{}: an earlier run published {resumed_at} messages of {}; going on behind them",
                with.name, config.stream
            );
        }
        let (session, wait) = session::open(with.now.wall, inherited.last().map(|i| i.session));
        let server_config = ServerConfig {
            archives: config.archives,
            heartbeat_min: config.heartbeat_min_ms * MILLIS,
            heartbeat_max: config.heartbeat_max_ms * MILLIS,
            range_end: config.range_end.map_or(Seq::LAST, |n| Seq(n).min(Seq::LAST)),
            linger: config.linger_ms * MILLIS,
            linger_max: config.linger_max_ms * MILLIS,
            rate: RateLimit {
                bytes_per_second: config.rate.bytes,
                frames_per_second: config.rate.frames,
                burst_bytes: config.rate.burst.0,
            },
            unacknowledged_max: config.unacknowledged_max,
            repair: repair(config.stream, &config.repair),
            local_b: with.local_b.filter(|_| config.lines.b.is_some()),
            ..ServerConfig::new(stream, config.stream, with.local, with.origin)
        };
        let server = Server::open(server_config, session, &inherited, with.now.mono, &mut store)
            .map_err(|_| anyhow::anyhow!("cannot open session {session}"))
            .with_context(what)?;
        if config.source.program && program.is_none() {
            bail!(
                "{}: `source = {{ program = true }}`, but no program feeds this stream, and without [programs] none can attach",
                what()
            )
        }
        Ok(Publish {
            group: config.stream,
            local_b: with.local_b,
            stream,
            name: with.name.into(),
            server,
            store,
            table: config.table,
            source: program,
            at_end: config.source.at_end,
            retry_at: with.now.mono + wait,
            resumed_at,
            held_back: 0,
            rate_limited: 0,
            waiting: Backpressure::default(),
            waits_since: None,
            said: [false; Waiting::ALL.len()],
            drop_said: false,
            archives: config.archives,
            stopped_at: None,
            patience: config.linger_max_ms * MILLIS,
            broken: None,
            rival: None,
            failed: false,
            feed: None,
        })
    }

    pub(super) fn table(&self) -> usize {
        self.table
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    pub(super) fn group(&self) -> SocketAddrV4 {
        self.group
    }

    pub(super) fn on_frame<L: Link>(
        &mut self,
        now: Now,
        from: SocketAddrV4,
        to: SocketAddrV4,
        bytes: &[u8],
        out: &mut Out<'_, L>,
    ) {
        let line = if self.local_b == Some(to) { Line::B } else { Line::A };
        self.server.on_line_frame(now, line, from, bytes, &mut self.store, out);
    }

    /// Whether messages wait that could be sent.
    pub(super) fn has_messages(&mut self, now: Now) -> bool {
        now.mono >= self.retry_at && self.source.as_mut().is_some_and(|s| s.peek().is_some())
    }

    /// Before and after a sleep: attached programs wake the engine.
    pub(super) fn set_asleep(&self, asleep: bool) {
        if let Some(Feed::Attached(lanes)) = &self.source {
            lanes.set_asleep(asleep);
        }
    }

    /// One turn: how many messages were sent, and when the next turn is due.
    pub(super) fn turn<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> (u64, Nanos) {
        let mut sent = 0;
        if let Some(source) = self.source.as_mut().filter(|_| now.mono >= self.retry_at) {
            let blocked;
            (sent, blocked) = self.server.publish(now, PUBLISH_BUDGET, source, &mut self.store, out);
            if sent > 0 {
                source.taken();
            }
            self.note(now, sent, blocked.map(Waiting::of));
            match blocked {
                None | Some(Blocked::Closed) => {}
                // The link is flushed after each turn.
                Some(Blocked::NoBuffer) => {}
                Some(Blocked::Rate(opens)) => {
                    self.rate_limited += 1;
                    self.retry_at = opens;
                }
                Some(Blocked::Unacknowledged | Blocked::Full) => {
                    self.held_back += 1;
                    self.retry_at = now.mono + MILLIS;
                }
                Some(Blocked::StoreFailed) => self.failed = true,
                // Looked at with the rest that needs no look in every turn.
                Some(Blocked::Superseded(_)) => self.retry_at = Nanos::MAX,
            }
        }
        self.say_what_waits(now);
        let due = self.server.poll(now, REPAIR_BUDGET, &mut self.store, out);
        let retry = if self.retry_at > now.mono {
            self.retry_at
        } else {
            Nanos::MAX
        };
        (sent, due.min(retry))
    }

    /// Notes what messages wait for. Those of a full log, or behind the limit of what is not
    /// acknowledged, wait as long as none is sent; a rate lets some pass all the time.
    #[inline]
    fn note(&mut self, now: Now, sent: u64, waiting: Option<Waiting>) {
        self.waiting.set(waiting);
        let since = match (waiting, self.waits_since) {
            (Some(Waiting::Rate), Some(was @ (Waiting::Rate, _))) => Some(was),
            (Some(new), Some(was @ (old, _))) if new == old && sent == 0 => Some(was),
            (Some(new), _) => Some((new, now.mono)),
            (None, _) => None,
        };
        self.waits_since = since;
    }

    pub(super) fn backpressure(&self) -> Backpressure {
        self.waiting.clone()
    }

    /// Messages given up that too few archives had acknowledged.
    fn dropped(&self) -> u64 {
        if self.archives > 0 { self.store.dropped() } else { 0 }
    }

    /// Says once what messages have waited for, or had to be given up for.
    #[inline]
    fn say_what_waits(&mut self, now: Now) {
        if !self.drop_said && self.dropped() > 0 {
            self.drop_said = true;
            eprintln!(
                "{}: {}: `retain` is full: GIVING UP the oldest messages, which no archive has acknowledged (`when_full = \"drop-oldest\"`; counted as `dropped_unacknowledged`)",
                self.name, self.group
            );
        }
        let Some((what, since)) = self.waits_since else { return };
        if now.mono - since >= SECONDS && !self.said[what as usize - 1] {
            self.said[what as usize - 1] = true;
            self.say_that_it_waits(what);
        }
    }

    #[cold]
    fn say_that_it_waits(&self, what: Waiting) {
        let (open, archives) = (self.server.unacknowledged(), self.archives);
        let text = match what {
            Waiting::Full => format!(
                "no room for new messages: {open} are not acknowledged by {archives} archives; the source waits. Start the archives, raise `retain`, or give up the oldest with `when_full = \"drop-oldest\"`"
            ),
            Waiting::Unacknowledged => format!(
                "no new messages: {open} are not acknowledged by {archives} archives, as many as `unacknowledged_max` allows; the source waits. Start the archives, or raise `unacknowledged_max`"
            ),
            Waiting::Rate => "`rate` is used up all the time; the source waits, and nothing is dropped".into(),
            // A link that sends nothing has messages of its own, and so has what ended a stream.
            Waiting::Link | Waiting::Ended => return,
        };
        eprintln!("{}: {}: {text}", self.name, self.group);
    }

    /// Looks for another server on this stream.
    ///
    /// # Errors
    /// When one has taken over.
    pub(super) fn check_rivals(&mut self) -> Result<()> {
        if let Some(by) = self.server.superseded() {
            bail!(
                "[[publish]] {}: a server at {by} has opened a later session of this stream, so this one stops; what it had not sent stays in its source",
                self.group
            );
        }
        if let Some(rival) = self.server.rival().filter(|r| self.rival != Some(*r)) {
            self.rival = Some(rival);
            eprintln!(
                "{}: {}: a SECOND SERVER at {rival} uses this session; receivers refuse one of the two: stop it, and give every server a state directory of its own",
                self.name, self.group
            );
        }
        Ok(())
    }

    /// Looks whether the source has ended.
    pub(super) fn check_source(&mut self, now: Now, stopping: bool) {
        let Some(source) = &mut self.source else {
            return;
        };
        if stopping {
            source.stop();
            self.stopped_at.get_or_insert(now.mono);
        }
        // A program that does not stop by itself is not waited for; what it has put in is sent.
        let program = !matches!(source, Feed::Thread(_));
        let ended = source.is_finished() || stopping && program && source.peek().is_none();
        let ended = ended && !self.server.is_stuck();
        // Nor is room waited for without end: what was not sent stays in the source.
        let waited = self.stopped_at.map_or(0, |since| now.mono.saturating_sub(since));
        if !ended && waited < self.patience.max(1) {
            return;
        }
        if !ended {
            eprintln!(
                "{}: {}: no room for what the source still had after {} s; it was not sent",
                self.name,
                self.group,
                self.patience / SECONDS
            );
        }
        let Some(source) = self.source.take() else { return };
        if let Feed::Thread(source) = &source {
            self.feed = source.mold_report();
        }
        let result = source.join();
        if stopping || self.at_end == AtEnd::Close || result.is_err() {
            // What was read is sent; the end is announced even when the source broke off.
            let _ = self.server.close(now, &mut self.store);
        }
        self.broken = result.with_context(|| format!("[[publish]] {}", self.group)).err();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// What broke the source off, if that happened.
    pub(super) fn take_error(&mut self) -> Option<anyhow::Error> {
        self.broken.take()
    }

    /// Ends the stream if it has no source any more.
    pub(super) fn stop(&mut self, now: Now) {
        if self.source.is_none() {
            let _ = self.server.close(now, &mut self.store);
        }
    }

    /// Whether the server may leave.
    pub(super) fn finished(&self, now: Now) -> bool {
        self.server.finished(now.mono)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(super) fn report(&self) -> PublicationReport {
        PublicationReport {
            stream: self.group.to_string(),
            counts: self.counts(),
            mold: match &self.source {
                Some(Feed::Thread(source)) => source.mold_report(),
                _ => self.feed.clone(),
            },
        }
    }

    fn part(&self) -> Part {
        Part {
            part: "publication".to_owned(),
            stream: Some(self.group.to_string()),
            line: None,
        }
    }

    /// Lists its counters.
    pub(super) fn describe(&self, to: &mut Builder) {
        to.numbers::<PublicationCounts>(self.part());
        to.peers(self.part(), "naks_from", NAKS_FROM);
    }

    /// Writes them, in the same order.
    pub(super) fn write_counters(&self, to: &mut Writing<'_>) {
        to.put(&self.counts());
        to.peers(self.server.askers());
    }

    fn counts(&self) -> PublicationCounts {
        let stats = self.server.stats();
        let unacknowledged = self.server.unacknowledged();
        PublicationCounts {
            session: self.server.position().0.0.into(),
            messages: stats.messages,
            bytes: stats.bytes,
            frames: stats.frames,
            acknowledged: stats.acknowledged,
            unacknowledged,
            repaired: stats.repairs.repaired,
            naks: stats.repairs.naks,
            merged: stats.repairs.merged,
            put_off: stats.repairs.busy + stats.naks_dropped,
            limited: stats.repairs.limited,
            foreign: stats.foreign,
            acks: stats.acks,
            held_back: self.held_back,
            rate_limited: self.rate_limited,
            dropped_unacknowledged: self.dropped(),
            oversize: stats.oversize,
            resumed_at: self.resumed_at,
        }
    }

    /// Writes the log to disk. What is not acknowledged stays there for the next run.
    pub(super) fn close(self) -> Result<()> {
        if let Some(source) = self.source {
            source.stop();
        }
        if self.server.unacknowledged() > 0 {
            eprintln!(
                "{}: {} messages of {} are not acknowledged; they are kept for the next run if `state` is set",
                self.name,
                self.server.unacknowledged(),
                self.group,
            );
        }
        self.store
            .close()
            .with_context(|| format!("[[publish]] {}", self.group))
    }
}

/// Starts the threads that feed `streams`, which were opened in the order of the configuration. The
/// streams of one table share one.
pub(super) fn start_sources(
    config: &config::Config,
    mut streams: &mut [Publish],
    with: &Setting<'_>,
    guards: &mut Guards,
) -> Result<()> {
    for tables in config.publish.chunk_by(|a, b| a.table == b.table) {
        let (these, later) = streams.split_at_mut(tables.len());
        streams = later;
        let Some(table) = tables.first().filter(|t| !t.source.program) else {
            continue;
        };
        let router = table.routed.then(|| Router::new(&config.route));
        let skip = these.iter().map(|p| p.resumed_at).collect();
        // The streams of one table have one trust.
        let sealed = these.iter().any(|p| guards.seal(p.stream).is_some());
        let max = max_message(with.max_frame - if sealed { TRAILER } else { 0 });
        let sources = Source::start(&table.source, router, skip, max, Arc::clone(&with.bell))
            .with_context(|| format!("[[publish]] {}", table.stream))?;
        for (publish, source) in these.iter_mut().zip(sources) {
            publish.source = Some(Feed::Thread(source));
        }
    }
    Ok(())
}

/// A stream that is received.
pub(super) struct Subscribe<F> {
    group: SocketAddrV4,
    lines: config::Lines,
    stream: Stream,
    client: Client<Frame<F>>,
    app: Outlet,
    /// Programs that fetch what they missed; only with a ring.
    catch_ups: Option<CatchUps>,
    exit_at_end: bool,
}

/// Where a client's messages go, and what is measured on the way.
struct Outlet {
    name: String,
    group: SocketAddrV4,
    target: Target,
    /// Without it every message is wanted.
    filter: Option<Filter>,
    now: Now,
    bytes: u64,
    live: Histogram,
    repaired: Histogram,
    sessions_ended: u64,
    /// Where the two histograms are among the engine's counters.
    histograms: [usize; 2],
}

fn repair(group: SocketAddrV4, config: &config::Repair) -> RepairConfig {
    RepairConfig {
        cast: match config.cast {
            config::Cast::Auto => Cast::Auto,
            config::Cast::Unicast => Cast::Unicast,
            config::Cast::Multicast => Cast::Multicast,
        },
        merge: config.merge_us * MICROS,
        amplification: config.amplification,
        bytes_per_second: (config.bytes > 0).then_some(config.bytes),
        ..RepairConfig::new(group)
    }
}

/// Who takes delivered messages.
enum Target {
    /// A thread of the engine that writes a file or a pipe, shared by the streams of one table.
    Sink(Rc<RefCell<Sink>>),
    /// A handler in this process, which sees the bytes in the receive frame.
    Handler(Box<dyn Application>),
    /// Programs that come and go.
    Ring(RingWriter),
}

impl Application for Outlet {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        let taken = match (&mut self.target, &mut self.filter) {
            (Target::Sink(sink), Some(filter)) => filter.put(delivery, &mut sink.borrow_mut()),
            (Target::Sink(sink), None) => sink
                .borrow_mut()
                .put(delivery, std::iter::once(delivery.block))
                .then(|| Wanted::all(&delivery.block)),
            (Target::Ring(ring), _) => ring.deliver(delivery).then(|| Wanted::all(&delivery.block)),
            (Target::Handler(handler), _) => handler.deliver(delivery).then(|| Wanted::all(&delivery.block)),
        };
        let Some(wanted) = taken else { return false };
        self.bytes += wanted.bytes;
        let latency = self.now.wall.saturating_sub(delivery.time).max(1);
        let live = delivery.path == Path::Live && !delivery.waited;
        let histogram = if live { &mut self.live } else { &mut self.repaired };
        histogram.record(latency, wanted.messages);
        true
    }

    fn event(&mut self, event: Event) {
        match &mut self.target {
            Target::Handler(handler) => handler.event(event),
            Target::Ring(ring) => ring.event(event),
            Target::Sink(_) => {}
        }
        // Gaps are counted; the rest is rare and of interest to an operator.
        let text = match event {
            Event::Gap { .. } => return,
            Event::Joined { session, next } => format!("joined session {session} at message {next}"),
            Event::Lost { session, range, why } => {
                let why = match why {
                    Loss::Refused => "nobody has them any more",
                    Loss::Unanswered => "no answer came",
                };
                format!("LOST messages {range} of session {session}: {why}")
            }
            Event::SessionEnded { session, end } => {
                self.sessions_ended += 1;
                if let Target::Sink(sink) = &self.target {
                    sink.borrow_mut().ended(session, end.last);
                }
                format!("session {session} ended with message {}", end.last)
            }
            Event::SessionStarted { session } => format!("session {session} began"),
            Event::TailUnknown { session, from } => {
                format!("session {session} was cut off; nobody knows whether it had messages from {from} on")
            }
            Event::DuplicateServer { session, from } => format!(
                "a SECOND SERVER at {from} uses session {session} of this stream; its frames are refused: stop one of the two"
            ),
            Event::Silent => "the server is silent".into(),
            Event::Heard => "the server is heard again".into(),
            Event::Line(change) => say(change),
        };
        eprintln!("{}: {}: {text}", self.name, self.group);
    }
}

fn say(change: LineChange) -> String {
    match change {
        LineChange::Silent(line) => format!("line {line} is SILENT; the stream goes on over line {}", line.other()),
        LineChange::Heard(line) => format!("line {line} is heard again"),
    }
}

/// What an engine says of two lines, if a part listens to both.
fn report_lines(lines: Option<&Lines>, groups: [SocketAddrV4; 2]) -> Vec<LineReport> {
    let report = |lines: &Lines| Line::BOTH.map(|line| LineReport::of(line, groups[line as usize], &lines.stats(line)));
    lines.map(report).into_iter().flatten().collect()
}

/// What is said of counts by asker.
const NAKS_FROM: &str = "NAK frames by who sent them: those that sent most.";

fn describe_lines(part: &Part, lines: Option<&Lines>, to: &mut Builder) {
    for line in Line::BOTH.iter().filter(|_| lines.is_some()) {
        to.numbers::<LineCounts>(Part {
            line: Some(line.to_string()),
            ..part.clone()
        });
    }
}

fn write_lines(lines: Option<&Lines>, to: &mut Writing<'_>) {
    if let Some(lines) = lines {
        Line::BOTH
            .iter()
            .for_each(|line| to.put(&LineCounts::from(&lines.stats(*line))));
    }
}

impl<F: AsRef<[u8]>> Subscribe<F> {
    /// Opens the sink, unless a handler in this process or a ring for programs takes the messages, or a
    /// stream of the same table has opened it: `shared`.
    pub(super) fn open(
        config: &config::Subscribe,
        with: &Setting<'_>,
        handler: Option<Box<dyn Application>>,
        shared: Option<Rc<RefCell<Sink>>>,
        ring: Option<RingWriter>,
    ) -> Result<Subscribe<F>> {
        let stream = stream_id(config.stream, config.id);
        let what = || format!("[[subscribe]] {}", config.stream);
        let name = config.name.as_deref().unwrap_or(with.name);
        let durable = config.state.as_deref().map(|state| Durable {
            state,
            name,
            interval: Duration::from_millis(config.sync_ms),
        });
        let desk = ring.as_ref().map(|ring| Arc::clone(ring.desk()));
        let target = match (handler, shared, ring) {
            (Some(handler), ..) => Target::Handler(handler),
            (None, Some(sink), _) => Target::Sink(sink),
            (None, None, Some(_)) if config.delivery == config::Delivery::OnArrival => {
                bail!(
                    "{}: programs that attach get messages in order: leave out `delivery`",
                    what()
                )
            }
            (None, None, Some(ring)) => Target::Ring(ring),
            (None, None, None) if config.sink.program => {
                bail!(
                    "{}: `sink = {{ program = true }}`, but no handler takes this stream, and without [programs] none can attach",
                    what()
                )
            }
            (None, None, None) => {
                let sink = Sink::start(&config.sink, stream, durable.as_ref(), Arc::clone(&with.bell));
                Target::Sink(Rc::new(RefCell::new(sink.with_context(what)?)))
            }
        };
        let resume = match &target {
            Target::Sink(sink) => sink.borrow().resume(),
            Target::Handler(_) | Target::Ring(_) => None,
        };
        if let Some((session, seq)) = resume {
            eprintln!(
                "{name}: {}: going on behind message {seq} of session {session}",
                config.stream
            );
        }
        let defaults = ClientConfig::new(stream, with.origin);
        let client = ClientConfig {
            start: match (resume, config.from) {
                (Some((session, seq)), _) => Start::After(session, seq),
                (None, StartAt::Now) => Start::Now,
                (None, StartAt::Session) => Start::Session,
            },
            order: match config.delivery {
                config::Delivery::InOrder => Order::Sequence,
                config::Delivery::OnArrival => Order::Arrival,
            },
            seek_group: Some(config.lines.first(config.stream)),
            lines: config.lines.both(),
            line: config.lines.only(),
            ask_group_b: config.lines.b.filter(|_| config.query == Query::Multicast),
            window: config.window,
            hold_frames: with.may_hold,
            ask_group: (config.query == Query::Multicast).then_some(config.lines.first(config.stream)),
            gaps: GapConfig {
                reorder: config.reorder_us * MICROS,
                backoff: config.backoff_us * MICROS,
                backoff_percent: config.backoff_rtt_percent,
                give_up: config.give_up_ms * MILLIS,
                ..defaults.gaps
            },
            ..defaults
        };
        Ok(Subscribe {
            group: config.stream,
            lines: config.lines,
            stream,
            client: Client::new(client, with.now.mono),
            catch_ups: desk.map(|desk| CatchUps::new(desk, client, with.max_frame)),
            app: Outlet {
                name: name.into(),
                group: config.stream,
                target,
                filter: config.subjects.as_deref().map(|p| Filter::new(p, with.max_frame)),
                now: with.now,
                bytes: 0,
                live: Histogram::new().with_context(what)?,
                repaired: Histogram::new().with_context(what)?,
                sessions_ended: 0,
                histograms: [0; 2],
            },
            exit_at_end: config.exit_at_end,
        })
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    pub(super) fn group(&self) -> SocketAddrV4 {
        self.group
    }

    pub(super) fn on_frame(&mut self, now: Now, from: SocketAddrV4, to: SocketAddrV4, frame: Frame<F>) {
        self.app.now = now;
        // What this engine's own server sends takes no line.
        let line = self.lines.of(to).filter(|_| !matches!(frame, Frame::Local(_)));
        if let Some(catch_ups) = self.catch_ups.as_mut().filter(|c| !c.is_idle()) {
            catch_ups.on_frame(now, line, from, frame.as_ref());
        }
        match line {
            Some(line) => self.client.on_line_frame(now, line, from, frame, &mut self.app),
            None => self.client.on_frame(now, from, frame, &mut self.app),
        }
    }

    /// One turn: when the next one is due.
    pub(super) fn turn<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> Nanos {
        self.app.now = now;
        let due = self.client.poll(now, &mut self.app, out);
        match &mut self.app.target {
            Target::Sink(sink) => sink.borrow_mut().ring(),
            Target::Ring(ring) => ring.ring(),
            Target::Handler(_) => {}
        }
        match &mut self.catch_ups {
            Some(catch_ups) => due.min(catch_ups.turn(now, out)),
            None => due,
        }
    }

    /// Whether a program wants to catch up, or is done with it.
    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.catch_ups.as_ref().is_some_and(CatchUps::has_news)
    }

    /// The sink, for other streams of the same table.
    pub(super) fn sink(&self) -> Option<Rc<RefCell<Sink>>> {
        match &self.app.target {
            Target::Sink(sink) => Some(Rc::clone(sink)),
            Target::Handler(_) | Target::Ring(_) => None,
        }
    }

    /// Whether the stream has ended, everything is delivered, and that is what was asked for.
    pub(super) fn finished(&self) -> bool {
        self.exit_at_end && self.client.ended()
    }

    pub(super) fn has_failed(&self) -> bool {
        matches!(&self.app.target, Target::Sink(sink) if sink.borrow().has_failed())
    }

    pub(super) fn report(&self) -> SubscriptionReport {
        SubscriptionReport {
            stream: self.group.to_string(),
            counts: self.counts(),
            latency_live_ns: Latency::of(&self.app.live),
            latency_repaired_ns: Latency::of(&self.app.repaired),
            // Complete when the sink is closed.
            mold: self
                .mold()
                .map(|told| told.lock().unwrap_or_else(PoisonError::into_inner).clone()),
            lines: report_lines(self.client.lines(), self.lines.both_groups(self.group)),
        }
    }

    fn part(&self) -> Part {
        Part {
            part: "subscription".to_owned(),
            stream: Some(self.group.to_string()),
            line: None,
        }
    }

    /// Lists its counters.
    pub(super) fn describe(&mut self, to: &mut Builder) {
        to.numbers::<SubscriptionCounts>(self.part());
        let live = "Nanoseconds from sending to delivery of messages that nothing held up.";
        let repaired = "Nanoseconds from sending to delivery of messages that were repaired, or waited for a repair.";
        self.app.histograms = [
            to.histogram(self.part(), "latency_live_ns", live),
            to.histogram(self.part(), "latency_repaired_ns", repaired),
        ];
        describe_lines(&self.part(), self.client.lines(), to);
    }

    /// Lets all see its histograms.
    pub(super) fn show(&mut self, counters: &Counters) {
        [self.app.live, self.app.repaired] = self.app.histograms.map(|at| counters.histogram(at));
    }

    /// Writes its counters, in the order in which they were listed.
    pub(super) fn write_counters(&self, to: &mut Writing<'_>) {
        to.put(&self.counts());
        to.pass_histogram();
        to.pass_histogram();
        write_lines(self.client.lines(), to);
    }

    fn counts(&self) -> SubscriptionCounts {
        let stats = self.client.stats();
        let filtered = self.app.filter.as_ref().map_or(0, Filter::unwanted);
        SubscriptionCounts {
            session: self.client.position().map_or(0, |(s, _)| s.0.into()),
            messages: stats.delivered - filtered,
            bytes: self.app.bytes,
            filtered,
            gaps: stats.gaps,
            repaired_archive: stats.repaired_archive,
            repaired_server: stats.repaired_server,
            lost: stats.lost,
            duplicates: stats.duplicates,
            naks: stats.naks,
            refused_not_yet: stats.refused_not_yet,
            refused_too_old: stats.refused_too_old,
            refused_lost: stats.refused_lost,
            refused_unknown_session: stats.refused_unknown_session,
            refused_busy: stats.refused_busy,
            unanswered: stats.unanswered,
            overruns: stats.overruns,
            refused: stats.refused,
            foreign: stats.foreign,
            unasked: stats.unasked,
            round_trip_ns: stats.round_trip,
            sessions_ended: self.app.sessions_ended,
        }
    }

    /// What the sink sends and answers, if it publishes a feed.
    pub(super) fn mold(&self) -> Option<Arc<Mutex<MoldSinkReport>>> {
        match &self.app.target {
            Target::Sink(sink) => sink.borrow().mold_report(),
            Target::Handler(_) | Target::Ring(_) => None,
        }
    }

    /// Lets the sink write everything, once no other stream has it any more.
    pub(super) fn close(self) -> Result<()> {
        let last = match self.app.target {
            Target::Sink(sink) => Rc::into_inner(sink).map(RefCell::into_inner),
            Target::Handler(_) | Target::Ring(_) => None,
        };
        last.map_or(Ok(()), Sink::finish)
            .with_context(|| format!("[[subscribe]] {}", self.group))
    }
}

/// A stream that is recorded.
pub(super) struct Record {
    group: SocketAddrV4,
    lines: config::Lines,
    own: SocketAddrV4,
    stream: Stream,
    name: String,
    archiver: Archiver,
    store: Recorder,
    exit_at_end: bool,
    /// A second server was reported.
    rival: bool,
    /// When the archive's limits are next looked at.
    tidy_at: Nanos,
    /// Up to where everything is stored, and on disk, when that was last looked at.
    watermarks: (Seq, Seq),
    /// Damage was reported.
    damage: bool,
    /// The archive's directory.
    dir: PathBuf,
}

/// Time between two looks at an archive's limits.
const TIDY_EVERY: Nanos = SECONDS;

impl Record {
    /// Opens the archive.
    pub(super) fn open(config: &config::Archive, with: &Setting<'_>) -> Result<Record> {
        let stream = stream_id(config.stream, config.id);
        let options = Options {
            segment_bytes: config.segment.0,
            sync: match config.sync_ms {
                0 => SyncPolicy::None,
                ms => SyncPolicy::EveryMs(ms),
            },
            ..Options::default()
        };
        let limits = Limits {
            bytes: config.keep_bytes.map(|bytes| bytes.0),
            age: config.keep_age_s.map(Duration::from_secs),
            sessions: config.keep_sessions,
        };
        let mut store = Recorder::open(&config.dir, stream, options)
            .with_context(|| format!("[[archive]] {}", config.stream))?
            .keeping(limits);
        let archiver = ArchiverConfig {
            synced: config.ack == Ack::Synced,
            repair: repair(config.lines.first(config.stream), &config.repair),
            local_b: with.local_b,
            lines: config.lines.both(),
            line: config.lines.only(),
            ..ArchiverConfig::new(stream, config.stream, with.local, store.identity())
        };
        Ok(Record {
            group: config.stream,
            lines: config.lines,
            own: with.local,
            stream,
            name: with.name.into(),
            archiver: Archiver::new(archiver, with.now.mono, &mut store),
            store,
            exit_at_end: config.exit_at_end,
            rival: false,
            tidy_at: if limits.is_all() { Nanos::MAX } else { with.now.mono },
            watermarks: (Seq(0), Seq(0)),
            damage: false,
            dir: config.dir.clone(),
        })
    }

    pub(super) fn stream(&self) -> Stream {
        self.stream
    }

    pub(super) fn group(&self) -> SocketAddrV4 {
        self.group
    }

    pub(super) fn on_frame<L: Link>(
        &mut self,
        now: Now,
        from: SocketAddrV4,
        to: SocketAddrV4,
        bytes: &[u8],
        out: &mut Out<'_, L>,
    ) {
        // What this engine's own server sends takes no line.
        match self.lines.of(to).filter(|_| from != self.own) {
            Some(line) => self
                .archiver
                .on_line_frame(now, line, from, bytes, &mut self.store, out),
            None => self.archiver.on_frame(now, from, bytes, &mut self.store, out),
        }
    }

    /// One turn: when the next one is due.
    pub(super) fn turn<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> Nanos {
        if now.mono >= self.tidy_at {
            self.tidy_at = now.mono + TIDY_EVERY;
            self.store.tidy(now.wall);
        }
        if let Some(change) = self.archiver.line_change() {
            eprintln!("{}: {}: {}", self.name, self.group, say(change));
        }
        let due = self.archiver.poll(now, REPAIR_BUDGET, &mut self.store, out);
        due.min(self.tidy_at)
    }

    /// Whether the stream has ended, all of it is stored, and that is what was asked for.
    pub(super) fn finished(&self) -> bool {
        self.exit_at_end && self.archiver.complete()
    }

    /// Says it when a second server was heard.
    pub(super) fn check_rivals(&mut self) {
        if !self.rival && self.archiver.stats().foreign > 0 {
            self.rival = true;
            eprintln!(
                "{}: {}: a SECOND SERVER sends on this stream under an identity in use, or an old session; its frames are refused: stop it",
                self.name, self.group
            );
        }
    }

    /// Says it when a stored record could not be read.
    pub(super) fn check_damage(&mut self) {
        if !self.damage && self.store.damaged() > 0 {
            self.damage = true;
            eprintln!(
                "{}: {}: a stored record CANNOT BE READ; who asks for it is sent to others. What is damaged: `seqcast archive verify {dir}`; to mend it, stop this engine and run `seqcast archive repair {dir}`",
                self.name,
                self.group,
                dir = self.dir.display()
            );
        }
    }

    /// Syncs and sends the last acknowledgements.
    pub(super) fn say_goodbye<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> Result<()> {
        let synced = self.store.sync();
        let exact = self.store.watermarks();
        self.note_watermarks(exact);
        synced.with_context(|| format!("[[archive]] {}", self.group))?;
        self.archiver.close(now, &mut self.store, out);
        Ok(())
    }

    fn note_watermarks(&mut self, (stored, on_disk): (Seq, Seq)) {
        // What is missing may lie below all that is stored.
        let below = self.archiver.first_missing().map_or(stored, Seq::prev);
        self.watermarks = (stored.min(below), on_disk.min(below));
    }

    pub(super) fn report(&self) -> ArchiveReport {
        ArchiveReport {
            stream: self.group.to_string(),
            counts: self.counts(),
            lines: report_lines(self.archiver.lines(), self.lines.both_groups(self.group)),
        }
    }

    fn part(&self) -> Part {
        Part {
            part: "archive".to_owned(),
            stream: Some(self.group.to_string()),
            line: None,
        }
    }

    /// Lists its counters.
    pub(super) fn describe(&self, to: &mut Builder) {
        to.numbers::<ArchiveCounts>(self.part());
        to.peers(self.part(), "naks_from", NAKS_FROM);
        describe_lines(&self.part(), self.archiver.lines(), to);
    }

    /// Writes them, in the same order.
    pub(super) fn write_counters(&mut self, to: &mut Writing<'_>) {
        let lately = self.store.watermarks_lately();
        self.note_watermarks(lately);
        to.put(&self.counts());
        to.peers(self.archiver.askers());
        write_lines(self.archiver.lines(), to);
    }

    fn counts(&self) -> ArchiveCounts {
        let stats = self.archiver.stats();
        ArchiveCounts {
            sessions: self.store.session_count(),
            stored: stats.stored,
            stored_up_to: self.watermarks.0.0.into(),
            synced_up_to: self.watermarks.1.0.into(),
            records: stats.records,
            repaired: stats.repaired,
            duplicates: stats.duplicates,
            late: stats.late,
            gaps: stats.gaps,
            missing: self.archiver.missing(),
            lost: stats.lost,
            full: stats.full,
            failed: stats.failed,
            damaged: self.store.damaged(),
            acks: stats.acks,
            naks_answered: stats.repairs.naks,
            merged: stats.repairs.merged,
            put_off: stats.repairs.busy,
            limited: stats.repairs.limited,
            unasked: stats.unasked,
            foreign: stats.foreign,
            repairs: stats.repairs.repaired,
        }
    }

    /// Closes the archive in order.
    pub(super) fn close(self) -> Result<()> {
        self.store
            .close()
            .with_context(|| format!("[[archive]] {}", self.group))
    }
}
