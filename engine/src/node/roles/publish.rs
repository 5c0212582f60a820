//! A server, its log and its source.

use std::net::SocketAddrV4;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use seqcast_proto::lines::Line;
use seqcast_proto::seal::TRAILER;
use seqcast_proto::seq::{Seq, Stream};
use seqcast_proto::server::{Blocked, RateLimit, Server, ServerConfig, Source as MessageSource};
use seqcast_proto::time::{MILLIS, Nanos, Now, SECONDS};
use seqcast_proto::wire::max_message;
use seqcast_ring::Fill;

use super::{Feed, NAKS_FROM, REPAIR_BUDGET, Setting, repair};
use crate::config::{self, AtEnd};
use crate::counters::{Builder, Part, Writing};
use crate::feed::source::Source;
use crate::feed::subject::Router;
use crate::link::Link;
use crate::log::{self, Tally};
use crate::node::guard::Guards;
use crate::node::outbox::Out;
use crate::node::session;
use crate::node::store::{Keep, Retention};
use crate::node::waiting::{Backpressure, Waiting};
use crate::node::window::Window;
use crate::report::{MoldSourceCounts, MoldSourceReport, PublicationCounts, PublicationReport};
use crate::stream_id;

/// DATA frames that one server sends in a turn.
const PUBLISH_BUDGET: usize = 64;

/// A stream that is published.
pub(in crate::node) struct Publish {
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
    /// Messages were taken from it, and it was not told.
    took: bool,
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
    /// Messages given up for new ones.
    given_up: Tally,
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
    /// The source subscribes to a feed.
    has_mold: bool,
    /// What a feed that has ended had received.
    feed: Option<MoldSourceReport>,
}

impl Publish {
    /// Opens the server's log and a new session. The source is started by [`start_sources`] unless
    /// `program` feeds the stream.
    pub(in crate::node) fn open(
        config: &config::Publish,
        with: &Setting<'_>,
        program: Option<Feed>,
    ) -> Result<Publish> {
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
            tracing::info!(
                target: log::SERVER, engine = with.name, stream = %config.stream, messages = resumed_at,
                "an earlier run published {resumed_at} messages; going on behind them"
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
            rate: rate_limit(config.rate),
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
            took: false,
            at_end: config.source.at_end,
            retry_at: with.now.mono + wait,
            resumed_at,
            held_back: 0,
            rate_limited: 0,
            waiting: Backpressure::default(),
            waits_since: None,
            said: [false; Waiting::ALL.len()],
            given_up: Tally::default(),
            archives: config.archives,
            stopped_at: None,
            patience: config.linger_max_ms * MILLIS,
            broken: None,
            rival: None,
            failed: false,
            has_mold: config.source.mold.is_some(),
            feed: None,
        })
    }

    /// Takes what is live of another configuration of the same stream.
    pub(in crate::node) fn change(&mut self, config: &config::Publish, now: Nanos) {
        let repair = repair(config.stream, &config.repair);
        self.server
            .set_limits(rate_limit(config.rate), config.unacknowledged_max, repair, now);
        self.store.set_drop_oldest(config.drops_oldest());
        if let Some(Feed::Thread(source)) = &self.source {
            source.set_rate(config.source.rate);
        }
        // The old rate says no more when the next message may go.
        if matches!(self.waits_since, Some((Waiting::Rate, _))) {
            self.retry_at = self.retry_at.min(now);
        }
        self.said = Default::default();
    }

    pub(in crate::node) fn table(&self) -> usize {
        self.table
    }

    pub(in crate::node) fn stream(&self) -> Stream {
        self.stream
    }

    pub(in crate::node) fn group(&self) -> SocketAddrV4 {
        self.group
    }

    pub(in crate::node) fn on_frame<L: Link>(
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
    pub(in crate::node) fn has_messages(&mut self, now: Now) -> bool {
        now.mono >= self.retry_at && self.source.as_mut().is_some_and(|s| s.peek().is_some())
    }

    /// Before and after a sleep: attached programs wake the engine.
    pub(in crate::node) fn set_asleep(&self, asleep: bool) {
        if let Some(Feed::Attached(lanes)) = &self.source {
            lanes.set_asleep(asleep);
        }
    }

    /// One turn: how many messages were sent, and when the next turn is due.
    pub(in crate::node) fn turn<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> (u64, Nanos) {
        let mut sent = 0;
        if let Some(source) = self.source.as_mut().filter(|_| now.mono >= self.retry_at) {
            let blocked;
            let before = self.server.oversize();
            (sent, blocked) = self.server.publish(now, PUBLISH_BUDGET, source, &mut self.store, out);
            self.took |= sent > 0 || self.server.oversize() != before;
            // Not before it is kept: what was not taken, programs give to the next engine if this one is killed.
            if self.took && self.server.keeps_all() {
                self.took = false;
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

    pub(in crate::node) fn backpressure(&self) -> Backpressure {
        self.waiting.clone()
    }

    /// Messages given up that too few archives had acknowledged.
    fn dropped(&self) -> u64 {
        if self.archives > 0 { self.store.dropped() } else { 0 }
    }

    /// Says what messages have waited for, once for each cause; and how many were given up, now and then.
    #[inline]
    fn say_what_waits(&mut self, now: Now) {
        if let Some(messages) = self.given_up.news(self.dropped(), now.mono) {
            tracing::error!(
                target: log::SERVER, engine = %self.name, stream = %self.group, messages,
                "`retain` is full: GIVING UP the oldest messages, which no archive has acknowledged (`when_full = \"drop-oldest\"`; {messages} so far, counted as `dropped_unacknowledged`)"
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
        let waits_for = what.to_string();
        tracing::warn!(
            target: log::SERVER, engine = %self.name, stream = %self.group, unacknowledged = open, waits_for,
            "{text}"
        );
    }

    /// Looks for another server on this stream.
    ///
    /// # Errors
    /// When one has taken over.
    pub(in crate::node) fn check_rivals(&mut self) -> Result<()> {
        if let Some(by) = self.server.superseded() {
            bail!(
                "[[publish]] {}: a server at {by} has opened a later session of this stream, so this one stops; what it had not sent stays in its source",
                self.group
            );
        }
        if let Some(rival) = self.server.rival().filter(|r| self.rival != Some(*r)) {
            self.rival = Some(rival);
            tracing::error!(
                target: log::SERVER, engine = %self.name, stream = %self.group, peer = %rival,
                "a SECOND SERVER at {rival} uses this session; receivers refuse one of the two: stop it, and give every server a state directory of its own"
            );
        }
        Ok(())
    }

    /// Looks whether the source has ended.
    pub(in crate::node) fn check_source(&mut self, now: Now, stopping: bool) {
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
            tracing::warn!(
                target: log::SERVER, engine = %self.name, stream = %self.group,
                "no room for what the source still had after {} s; it was not sent",
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

    pub(in crate::node) fn is_broken(&self) -> bool {
        self.broken.is_some()
    }

    /// What broke the source off, if that happened.
    pub(in crate::node) fn take_error(&mut self) -> Option<anyhow::Error> {
        self.broken.take()
    }

    /// Ends the stream if it has no source any more.
    pub(in crate::node) fn stop(&mut self, now: Now) {
        if self.source.is_none() {
            let _ = self.server.close(now, &mut self.store);
        }
    }

    /// Whether the server may leave.
    pub(in crate::node) fn finished(&self, now: Now) -> bool {
        self.server.finished(now.mono)
    }

    pub(in crate::node) fn has_failed(&self) -> bool {
        self.failed
    }

    pub(in crate::node) fn report(&self) -> PublicationReport {
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
        Part::of_stream("publication", self.group)
    }

    /// Lists its counters.
    pub(in crate::node) fn describe(&self, to: &mut Builder) {
        to.numbers::<PublicationCounts>(self.part());
        to.peers(self.part(), "naks_from", NAKS_FROM);
        if self.has_mold {
            to.numbers::<MoldSourceCounts>(Part::of_stream("feed_in", self.group));
        }
    }

    /// Writes them, in the same order.
    pub(in crate::node) fn write_counters(&self, to: &mut Writing<'_>) {
        to.put(&self.counts());
        to.peers(self.server.askers());
        if self.has_mold {
            let counts = match &self.source {
                Some(Feed::Thread(source)) => source.mold_counts(),
                _ => self.feed.as_ref().map(|feed| feed.counts),
            };
            to.put_or_keep(counts.as_ref());
        }
    }

    fn counts(&self) -> PublicationCounts {
        let stats = self.server.stats();
        let unacknowledged = self.server.unacknowledged();
        let (mut lanes, mut lane, mut fullest) = (0, Fill::default(), 0);
        if let Some(source) = &self.source {
            source.each_fill(|fill| {
                lanes += 1;
                lane.used += fill.used;
                lane.size += fill.size;
                fullest = fill.percent().max(fullest);
            });
        }
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
            lanes,
            lane_used: lane.used,
            lane_size: lane.size,
            lane_fullest: fullest,
        }
    }

    /// Writes the log to disk. What is not acknowledged stays there for the next run.
    pub(in crate::node) fn close(self) -> Result<()> {
        if let Some(source) = self.source {
            source.stop();
        }
        let unacknowledged = self.server.unacknowledged();
        if unacknowledged > 0 {
            tracing::warn!(
                target: log::SERVER, engine = %self.name, stream = %self.group, unacknowledged,
                "{unacknowledged} messages are not acknowledged; they are kept for the next run if `state` is set"
            );
        }
        self.store
            .close()
            .with_context(|| format!("[[publish]] {}", self.group))
    }
}

fn rate_limit(rate: config::Rate) -> RateLimit {
    RateLimit {
        bytes_per_second: rate.bytes,
        frames_per_second: rate.frames,
        burst_bytes: rate.burst.0,
    }
}

/// Starts the threads that feed `streams`, which were opened in the order of the configuration. The
/// streams of one table share one.
pub(in crate::node) fn start_sources(
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
