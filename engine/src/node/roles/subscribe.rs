//! A client, and where its messages go.

use std::cell::RefCell;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seqcast_proto::client::{Client, ClientConfig, Order, Start};
use seqcast_proto::gaps::GapConfig;
use seqcast_proto::io::{Application, Delivery, Event, Loss, Path};
use seqcast_proto::seq::Stream;
use seqcast_proto::subject::Pattern;
use seqcast_proto::time::{MICROS, MILLIS, Nanos, Now};
use seqcast_ring::Fill;

use super::{NAKS_TO, Setting, describe_lines, report_lines, say_line, write_lines};
use crate::config::{self, From as StartAt, Query};
use crate::counters::{Builder, Counters, Histogram, Part, Writing};
use crate::feed::sink::{Durable, Sink};
use crate::link::Link;
use crate::log;
use crate::node::catch_up::CatchUps;
use crate::node::filter::{Filter, Wanted};
use crate::node::outbox::{Frame, Out};
use crate::programs::RingWriter;
use crate::report::{Latency, MoldSinkCounts, MoldSinkReport, SubscriptionCounts, SubscriptionReport};
use crate::stream_id;

/// A stream that is received.
pub(in crate::node) struct Subscribe<F> {
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
    /// Of which subjects it is made.
    subjects: Option<Vec<Pattern>>,
    /// Messages that filters before it did not want.
    filtered: u64,
    now: Now,
    bytes: u64,
    live: Histogram,
    repaired: Histogram,
    sessions_ended: u64,
    /// Where the two histograms are among the engine's counters.
    histograms: [usize; 2],
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
        if let (Event::SessionEnded { session, end }, Target::Sink(sink)) = (&event, &self.target) {
            sink.borrow_mut().ended(*session, end.last);
        }
        self.sessions_ended += u64::from(matches!(event, Event::SessionEnded { .. }));
        self.say(event);
    }
}

impl Outlet {
    /// Messages that were not wanted.
    fn unwanted(&self) -> u64 {
        self.filtered + self.filter.as_ref().map_or(0, Filter::unwanted)
    }

    /// Gaps are counted; the rest is rare and of interest to an operator.
    fn say(&self, event: Event) {
        macro_rules! say {
            ($level:ident, $($fields_and_text:tt)*) => { say_as!(log::CLIENT, $level, $($fields_and_text)*) };
        }
        macro_rules! say_as {
            ($target:expr, $level:ident, $($fields_and_text:tt)*) => {
                tracing::$level!(target: $target, engine = %self.name, stream = %self.group, $($fields_and_text)*)
            };
        }
        match event {
            Event::Gap { .. } => {}
            Event::Joined { session, next } => {
                say!(
                    info,
                    session = session.0,
                    first = next.0,
                    "joined session {session} at message {next}"
                );
            }
            Event::Lost { session, range, why } => {
                let why = match why {
                    Loss::Refused => "nobody has them any more",
                    Loss::Unanswered => "no answer came",
                };
                say_as!(
                    log::CLIENT_LOST,
                    error,
                    session = session.0,
                    first = range.first.0,
                    last = range.last.0,
                    "LOST messages {range} of session {session}: {why}"
                );
            }
            Event::SessionEnded { session, end } => {
                let last = end.last;
                say!(
                    info,
                    session = session.0,
                    last = last.0,
                    "session {session} ended with message {last}"
                );
            }
            Event::SessionStarted { session } => say!(info, session = session.0, "session {session} began"),
            Event::TailUnknown { session, from } => say!(
                warn,
                session = session.0,
                first = from.0,
                "session {session} was cut off; nobody knows whether it had messages from {from} on"
            ),
            Event::DuplicateServer { session, from } => say!(
                error,
                session = session.0,
                peer = %from,
                "a SECOND SERVER at {from} uses session {session} of this stream; its frames are refused: stop one of the two"
            ),
            Event::Silent => say!(warn, "the server is silent"),
            Event::Heard => say!(info, "the server is heard again"),
            Event::Line(change) => say_line!(self.name, self.group, log::CLIENT, change),
        }
    }
}

impl<F: AsRef<[u8]>> Subscribe<F> {
    /// Opens the sink, unless a handler in this process or a ring for programs takes the messages, or a
    /// stream of the same table has opened it: `shared`.
    pub(in crate::node) fn open(
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
            tracing::info!(
                target: log::CLIENT, engine = name, stream = %config.stream, session = session.0, last = seq.0,
                "going on behind message {seq} of session {session}"
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
                subjects: config.subjects.clone(),
                filtered: 0,
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

    /// Takes what is live of another configuration of the same stream: what comes from now on is chosen by
    /// its subjects.
    pub(in crate::node) fn change(&mut self, config: &config::Subscribe, max_frame: usize) {
        if config.subjects == self.app.subjects {
            return;
        }
        self.app.filtered = self.app.unwanted();
        self.app.filter = config.subjects.as_deref().map(|p| Filter::new(p, max_frame));
        self.app.subjects.clone_from(&config.subjects);
    }

    pub(in crate::node) fn stream(&self) -> Stream {
        self.stream
    }

    pub(in crate::node) fn group(&self) -> SocketAddrV4 {
        self.group
    }

    pub(in crate::node) fn on_frame(&mut self, now: Now, from: SocketAddrV4, to: SocketAddrV4, frame: Frame<F>) {
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
    pub(in crate::node) fn turn<L: Link>(&mut self, now: Now, out: &mut Out<'_, L>) -> Nanos {
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
    pub(in crate::node) fn has_news(&self) -> bool {
        self.catch_ups.as_ref().is_some_and(CatchUps::has_news)
    }

    /// The sink, for other streams of the same table.
    pub(in crate::node) fn sink(&self) -> Option<Rc<RefCell<Sink>>> {
        match &self.app.target {
            Target::Sink(sink) => Some(Rc::clone(sink)),
            Target::Handler(_) | Target::Ring(_) => None,
        }
    }

    /// Whether the stream has ended, everything is delivered, and that is what was asked for.
    pub(in crate::node) fn finished(&self) -> bool {
        self.exit_at_end && self.client.ended()
    }

    pub(in crate::node) fn has_failed(&self) -> bool {
        matches!(&self.app.target, Target::Sink(sink) if sink.borrow().has_failed())
    }

    pub(in crate::node) fn report(&self) -> SubscriptionReport {
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
        Part::of_stream("subscription", self.group)
    }

    /// Lists its counters.
    pub(in crate::node) fn describe(&mut self, to: &mut Builder) {
        to.numbers::<SubscriptionCounts>(self.part());
        let live = "Nanoseconds from sending to delivery of messages that nothing held up.";
        let repaired = "Nanoseconds from sending to delivery of messages that were repaired, or waited for a repair.";
        self.app.histograms = [
            to.histogram(self.part(), "latency_live_ns", live),
            to.histogram(self.part(), "latency_repaired_ns", repaired),
        ];
        to.peers(self.part(), "naks_to", NAKS_TO);
        if self.mold().is_some() {
            to.numbers::<MoldSinkCounts>(Part::of_stream("feed_out", self.group));
        }
        describe_lines(&self.part(), self.client.lines(), to);
    }

    /// Lets all see its histograms.
    pub(in crate::node) fn show(&mut self, counters: &Counters) {
        [self.app.live, self.app.repaired] = self.app.histograms.map(|at| counters.histogram(at));
    }

    /// Writes its counters, in the order in which they were listed.
    pub(in crate::node) fn write_counters(&self, to: &mut Writing<'_>) {
        to.put(&self.counts());
        to.pass_histogram();
        to.pass_histogram();
        to.peers(self.client.asked());
        if let Some(told) = self.mold() {
            // Its thread writes it down a few times a second.
            let counts = told.try_lock().ok().map(|told| told.counts);
            to.put_or_keep(counts.as_ref());
        }
        write_lines(self.client.lines(), to);
    }

    fn counts(&self) -> SubscriptionCounts {
        let stats = self.client.stats();
        let filtered = self.app.unwanted();
        let (sink, catching_up) = match &self.app.target {
            Target::Sink(sink) => (sink.borrow().fill(), 0),
            Target::Handler(_) => (Fill::default(), 0),
            Target::Ring(ring) => (Fill::default(), ring.desk().catching_up()),
        };
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
            sink_used: sink.used,
            sink_size: sink.size,
            catching_up: catching_up as u64,
        }
    }

    /// What the sink sends and answers, if it publishes a feed.
    pub(in crate::node) fn mold(&self) -> Option<Arc<Mutex<MoldSinkReport>>> {
        match &self.app.target {
            Target::Sink(sink) => sink.borrow().mold_report(),
            Target::Handler(_) | Target::Ring(_) => None,
        }
    }

    /// Lets the sink write everything, once no other stream has it any more.
    pub(in crate::node) fn close(self) -> Result<()> {
        let last = match self.app.target {
            Target::Sink(sink) => Rc::into_inner(sink).map(RefCell::into_inner),
            Target::Handler(_) | Target::Ring(_) => None,
        };
        last.map_or(Ok(()), Sink::finish)
            .with_context(|| format!("[[subscribe]] {}", self.group))
    }
}
