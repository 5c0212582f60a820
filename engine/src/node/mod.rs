//! One engine on one core: the duty cycle that joins link, protocol, logs and feeds.
//!
//! A turn reads the clock once, takes a batch of frames from the link, hands each to the parts
//! that play a role in its stream, lets every part do what is due, and gives the link what they
//! sent. Nothing in a turn waits; when a turn finds nothing to do, the idle strategy decides.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seqcast_archive::prefetch;
use seqcast_proto::io::Application;
use seqcast_proto::lines::Line;
use seqcast_proto::seal::TRAILER;
use seqcast_proto::server::Source as MessageSource;
use seqcast_proto::time::{Nanos, Now};
use seqcast_proto::wire::{Kind, endpoints_over, max_message, peek};
use seqcast_ring::{Consumer, Doorbell};

use crate::clock::Clock;
use crate::config::Config;
use crate::counters::{self, Builder, Counters, Part};
use crate::link::{Datagram, Link, LinkStats};
use crate::programs::{Desks, Hub, HubReport, Wakers};
use crate::reload::Reloader;
use crate::report::{CycleReport, Report};

mod catch_up;
mod filter;
mod guard;
mod idle;
mod membership;
mod outbox;
mod regime;
mod roles;
mod session;
pub mod store;
mod waiting;
mod window;

pub use waiting::{Backpressure, Waiting};

use guard::{Guards, Verdict};
use idle::{IdleState, Rest};
use membership::Memberships;
use outbox::{Frame, Local, Mirror, Out};
use regime::Regime;
use roles::{Feed, Publish, Record, Setting, Subscribe, start_sources};

/// Frames taken from the link in one turn.
const RECEIVE_BATCH: usize = 64;

/// How often an engine was asked to stop: once drains and closes, twice leaves at once.
pub type StopRequests = Arc<AtomicUsize>;

/// Programs in the engine's own process that take the place of files and pipes.
///
/// They belong to streams whose configuration says `program = true`.
#[derive(Default)]
pub struct Programs {
    /// Lanes with messages to publish, by stream. An entry's tag is the length of the subject in
    /// front of its payload. Dropping the other side of the lane ends the source.
    pub sources: Vec<(SocketAddrV4, Consumer)>,
    /// Programs on the engine's own thread that publish, by stream: asked for messages in every
    /// turn, which saves the copy into a lane. They must not wait.
    pub publishers: Vec<(SocketAddrV4, Box<dyn MessageSource>)>,
    /// Who takes delivered messages, by stream. Called on the engine's thread, so it must not
    /// wait; it sees the bytes in place in the receive frame.
    pub handlers: Vec<(SocketAddrV4, Box<dyn Application>)>,
}

impl Programs {
    fn feed(&mut self, stream: SocketAddrV4) -> Option<Feed> {
        let lane = take(&mut self.sources, stream).map(Feed::Lane);
        lane.or_else(|| take(&mut self.publishers, stream).map(Feed::Pull))
    }
}

/// Takes the entry of a stream out of a list.
fn take<T>(list: &mut Vec<(SocketAddrV4, T)>, stream: SocketAddrV4) -> Option<T> {
    let at = list.iter().position(|(s, _)| *s == stream)?;
    Some(list.swap_remove(at).1)
}

/// Makes the counters of all parts visible to all.
fn show<F: AsRef<[u8]>>(
    config: &Config,
    mode: &str,
    subscribe: &mut [Subscribe<F>],
    publish: &[Publish],
    record: &[Record],
    guards: &Guards,
    hub: Option<&Hub>,
) -> Result<Counters> {
    let list = |subscribe: &mut [Subscribe<F>]| {
        let mut builder = Builder::default();
        builder.numbers::<LinkStats>(Part::of("link"));
        builder.numbers::<CycleReport>(Part::of("cycle"));
        subscribe.iter_mut().for_each(|part| part.describe(&mut builder));
        publish.iter().for_each(|part| part.describe(&mut builder));
        record.iter().for_each(|part| part.describe(&mut builder));
        guards.describe(&mut builder);
        if hub.is_some() {
            builder.numbers::<HubReport>(Part::of("programs"));
        }
        builder
    };
    let name = &config.engine.name;
    let builder = list(subscribe);
    let counters = match config.engine.counters.as_deref() {
        Some(path) if path == Path::new("off") => builder.open(None, name, mode)?,
        Some(path) => builder.open(Some(path), name, mode)?,
        // Who may not write there has no counters that others see, and runs as well without.
        None => match builder.open(counters::usual(name).as_deref(), name, mode) {
            Ok(counters) => counters,
            Err(_) => list(subscribe).open(None, name, mode)?,
        },
    };
    subscribe.iter_mut().for_each(|part| part.show(&counters));
    Ok(counters)
}

/// A running engine.
pub struct Node<L: Link> {
    name: String,
    link: L,
    own: SocketAddrV4,
    /// The same over line B, if that is elsewhere.
    own_b: Option<SocketAddrV4>,
    local: Local,
    mirror: Mirror,
    bell: Arc<Doorbell>,
    clock: Clock,
    idle: IdleState,
    guards: Guards,
    publish: Vec<Publish>,
    subscribe: Vec<Subscribe<L::Frame>>,
    record: Vec<Record>,
    memberships: Memberships,
    /// Programs beside the engine.
    hub: Option<Hub>,
    inbox: Vec<Datagram<L::Frame>>,
    stop: StopRequests,
    stopping: bool,
    /// When a part has something to do next, in monotonic time.
    due: Nanos,
    cycle: CycleReport,
    regime: Regime,
    counters: Counters,
    reloader: Reloader,
    /// Turns so far, for who watches from another thread.
    pulse: Arc<AtomicU64>,
}

impl<L: Link> Node<L> {
    /// Joins the groups and opens logs, sources and sinks. `may_hold` is how many received frames
    /// the link can spare at once. `programs` feed and take the streams that are configured so.
    ///
    /// # Errors
    /// Names the part of the configuration that cannot be opened, and why.
    pub fn open(
        config: &Config,
        mut link: L,
        may_hold: u32,
        stop: StopRequests,
        mut programs: Programs,
    ) -> Result<Node<L>> {
        let mut clock = Clock::start();
        let bell = Arc::new(Doorbell::new().context("cannot make an event descriptor")?);
        let own = link.local();
        let own_b = link.local_b();
        let now = clock.now();
        let mut guards = Guards::open(config, now)?;
        let subscriptions = config.subscribe.len().max(1) as u32;
        let setting = Setting {
            name: &config.engine.name,
            local: own,
            local_b: own_b,
            max_frame: link.max_payload(),
            may_hold: (may_hold / subscriptions).max(1),
            bell: Arc::clone(&bell),
            origin: random(),
            now,
        };
        let record = config
            .archive
            .iter()
            .map(|c| Record::open(c, &setting))
            .collect::<Result<Vec<_>>>()?;
        let mut desks = match &config.programs {
            Some(programs) => Some(Desks::new(programs.ring.0, &bell).context("cannot make an event descriptor")?),
            None => None,
        };
        let mut subscribe: Vec<Subscribe<L::Frame>> = Vec::with_capacity(config.subscribe.len());
        let mut before = None;
        for one in &config.subscribe {
            let same_table = before.replace(one.table) == Some(one.table);
            let shared = subscribe.last().filter(|_| same_table).and_then(Subscribe::sink);
            let handler = take(&mut programs.handlers, one.stream);
            let ring = match desks.as_mut().filter(|_| one.sink.program && handler.is_none()) {
                Some(desks) => Some(
                    desks
                        .ring(one.stream, link.max_payload())
                        .with_context(|| format!("[[subscribe]] {}: cannot make the ring for programs", one.stream))?,
                ),
                None => None,
            };
            subscribe.push(Subscribe::open(one, &setting, handler, shared, ring)?);
        }
        let memberships = Memberships::new(config.received_groups(), setting.now.mono);
        let mut groups: Vec<SocketAddrV4> = config.received_groups().collect();
        groups.extend(record.iter().map(Record::group));
        groups.extend(subscribe.iter().map(Subscribe::group));
        for group in config.joined_groups() {
            link.join(group).with_context(|| format!("cannot join {group}"))?;
        }
        let mut publish = Vec::with_capacity(config.publish.len());
        for one in &config.publish {
            let mut feed = programs.feed(one.stream);
            if let Some(desks) = desks.as_mut().filter(|_| one.source.program && feed.is_none()) {
                let sealed = guards.seal(crate::stream_id(one.stream, one.id)).is_some();
                let max = max_message(link.max_payload() - if sealed { TRAILER } else { 0 });
                feed = Some(Feed::Attached(desks.lanes(one.stream, max)));
            }
            publish.push(Publish::open(one, &setting, feed)?);
        }
        start_sources(config, &mut publish, &setting, &mut guards)?;
        let hub = match (&config.programs, desks) {
            (Some(programs), Some(desks)) => Some(Hub::start(programs, desks, Arc::clone(&bell), &config.engine.name)?),
            _ => None,
        };
        let mode = link.mode();
        let counters = show(config, &mode, &mut subscribe, &publish, &record, &guards, hub.as_ref())?;
        groups.retain(|g| config.publish.iter().any(|c| c.stream == *g || c.lines.b == Some(*g)));
        let answered = config.archive.iter().map(|c| (c.stream, c.lines.b));
        let mirrored = config.publish.iter().map(|c| (c.stream, c.lines.b)).chain(answered);
        let mirrored = mirrored.filter_map(|(a, b)| Some((a, b?))).collect();
        Ok(Node {
            name: config.engine.name.clone(),
            own,
            own_b,
            local: Local::new(groups, link.max_payload()),
            mirror: Mirror::new(mirrored, link.max_payload()),
            link,
            bell,
            clock,
            idle: IdleState::new(config.engine.idle, config.engine.core.is_some()),
            guards,
            publish,
            subscribe,
            record,
            memberships,
            hub,
            inbox: Vec::with_capacity(RECEIVE_BATCH),
            stop,
            stopping: false,
            due: 0,
            cycle: CycleReport::default(),
            regime: Regime::new(now.mono),
            counters,
            reloader: Reloader::default(),
            pulse: Arc::default(),
        })
    }

    /// The counters so far.
    pub fn report(&mut self) -> Report {
        self.cycle.local_dropped = self.local.dropped;
        Report {
            name: self.name.clone(),
            mode: self.link.mode(),
            link: self.link.stats(),
            cycle: self.cycle,
            subscriptions: self.subscribe.iter().map(Subscribe::report).collect(),
            publications: self.publish.iter().map(Publish::report).collect(),
            archives: self.record.iter().map(Record::report).collect(),
            trust: self.guards.report(),
            programs: self.hub.as_ref().map(Hub::report),
            workers: Vec::new(),
        }
    }

    /// The number of turns so far, for a watchdog on another thread: an engine that is alive makes
    /// at least twenty a second.
    pub fn pulse(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.pulse)
    }

    /// Takes other configurations while it runs.
    #[must_use]
    pub fn reloader(&self) -> Reloader {
        self.reloader.clone()
    }

    /// Says what a published stream's messages wait for, to its producer, whatever thread that is on;
    /// `None` when this engine does not publish the stream.
    pub fn backpressure(&self, stream: SocketAddrV4) -> Option<Backpressure> {
        let publish = self.publish.iter().find(|p| p.group() == stream);
        publish.map(Publish::backpressure)
    }

    /// Where programs of this process find the engine; only with `[programs]`.
    #[must_use]
    pub fn programs(&self) -> Option<seqcast_client::Engine> {
        self.hub.as_ref().map(Hub::engine)
    }

    /// What the link really is.
    pub fn mode(&self) -> String {
        self.link.mode()
    }

    /// Runs until everything that was asked for is done, or the engine is told to stop, and closes
    /// all in order. The report is made however it ends.
    ///
    /// # Errors
    /// When the link, a log, a source or a sink fails. What can be closed in order is closed.
    pub fn run(mut self) -> (Report, Result<()>) {
        let result = self.cycle();
        self.close(result)
    }

    fn cycle(&mut self) -> Result<()> {
        loop {
            if self.poll()? {
                self.idle.worked();
                continue;
            }
            let now = self.clock.now();
            if self.look_around(now)? {
                return Ok(());
            }
            match self.idle.rest() {
                Rest::Spin => std::hint::spin_loop(),
                Rest::Yield => std::thread::yield_now(),
                Rest::Sleep => self.sleep(now, idle::LONGEST)?,
            }
        }
    }

    /// One turn of the duty cycle, for a program that drives the engine from a loop of its own.
    /// Says whether something was done.
    ///
    /// # Errors
    /// When the link fails.
    #[inline]
    pub fn poll(&mut self) -> Result<bool> {
        let now = self.clock.now();
        self.regime.passed(now.mono, &mut self.cycle);
        self.guards.renew();
        let mut sent = 0;
        // What waits to be sent does not wait for what has arrived.
        if self.publish.iter_mut().any(|p| p.has_messages(now)) {
            sent = self.turns(now);
            self.link.flush().context("the link failed to send")?;
        }
        let received = self.receive(now)?;
        if received > 0 || now.mono >= self.due || self.hub.is_some() && self.has_news() {
            sent += self.turns(now);
        }
        self.link.flush().context("the link failed to send")?;
        self.cycle.turns += 1;
        self.pulse.store(self.cycle.turns, Ordering::Relaxed);
        let worked = received > 0 || sent > 0 || !self.local.is_empty();
        self.cycle.busy += u64::from(worked);
        self.regime.worked = worked;
        if self.counters.is_due(now.mono) {
            self.show_counters(now);
            self.take_news(now);
        }
        Ok(worked)
    }

    fn has_news(&self) -> bool {
        self.subscribe.iter().any(Subscribe::has_news)
    }

    /// For a program that drives the engine with [`Node::poll`] when a turn found nothing to do: looks
    /// at what needs no look in every turn, then waits for a frame or a timer, for `longest` at most.
    /// Says whether all that the engine was asked for is done.
    ///
    /// # Errors
    /// When the link, a log, a source or a sink has failed, or another server has taken over; then
    /// [`Node::run`] closes what can be closed.
    pub fn rest(&mut self, longest: Duration) -> Result<bool> {
        let now = self.clock.now();
        let done = self.look_around(now)?;
        if !done {
            self.sleep(now, longest.min(idle::LONGEST))?;
        }
        Ok(done)
    }

    /// Takes a batch of frames and hands each to the parts that play a role in its stream.
    fn receive(&mut self, now: Now) -> Result<usize> {
        let inbox = &mut self.inbox;
        let received = self
            .link
            .receive(RECEIVE_BATCH, |datagram| inbox.push(datagram))
            .context("the link failed to receive")?;
        let mut inbox = std::mem::take(&mut self.inbox);
        let mut waiting = inbox.drain(..).peekable();
        while let Some(Datagram { from, to, frame }) = waiting.next() {
            // While this one is dealt with, the next one comes from the core that received it.
            if let Some(next) = waiting.peek() {
                prefetch::to_read(next.frame.as_ref());
            }
            self.admit(now, from, to, frame);
        }
        drop(waiting);
        self.inbox = inbox;
        while let Some((to, frame)) = self.local.next() {
            self.dispatch(now, self.own, to, Frame::Local(frame));
        }
        Ok(received)
    }

    /// Checks a frame of the link before anything of it is used. Frames of this engine's own parts
    /// have never left its memory.
    #[inline]
    fn admit(&mut self, now: Now, from: SocketAddrV4, to: SocketAddrV4, frame: L::Frame) {
        let bytes = frame.as_ref();
        let verdict = match peek(bytes) {
            Some((stream, kind)) => self.guards.check(now, from, stream, kind, bytes),
            None => Verdict::Plain,
        };
        match verdict {
            Verdict::Plain => self.dispatch(now, from, to, Frame::Link(frame)),
            Verdict::Sealed => self.dispatch(now, from, to, Frame::Sealed(frame)),
            Verdict::Refused => {}
        }
    }

    #[inline]
    fn dispatch(&mut self, now: Now, from: SocketAddrV4, to: SocketAddrV4, frame: Frame<L::Frame>) {
        let bytes = frame.as_ref();
        let Some((stream, kind)) = peek(bytes) else {
            self.cycle.strangers += 1;
            return;
        };
        if kind == Kind::Heartbeat {
            self.memberships.heard(to, now.mono);
            if self.own_b.is_some() {
                for endpoint in endpoints_over(bytes, Line::B) {
                    self.link.is_over_b(endpoint);
                }
            }
        }
        let seal = self.guards.seal(stream);
        let mut out = Out::new(&mut self.link, &mut self.local, &mut self.mirror, self.own, seal, now);
        let mut known = false;
        for record in self.record.iter_mut().filter(|r| r.stream() == stream) {
            known = true;
            record.on_frame(now, from, to, bytes, &mut out);
        }
        match kind {
            Kind::Ack | Kind::Nak => {
                for publish in self.publish.iter_mut().filter(|p| p.stream() == stream) {
                    known = true;
                    publish.on_frame(now, from, to, bytes, &mut out);
                }
                // Clients keep silent about what another one asks everyone for.
                let clients = self
                    .subscribe
                    .iter_mut()
                    .filter(|_| kind == Kind::Nak && from != self.own);
                if let Some(subscribe) = clients.into_iter().find(|s| s.stream() == stream) {
                    known = true;
                    subscribe.on_frame(now, from, to, frame);
                }
            }
            Kind::Data | Kind::Heartbeat | Kind::Repair | Kind::Unavailable | Kind::End => {
                // A server listens to its own group for another one; itself it does not hear.
                for publish in self
                    .publish
                    .iter_mut()
                    .filter(|p| p.stream() == stream && from != self.own)
                {
                    known = true;
                    publish.on_frame(now, from, to, bytes, &mut out);
                }
                if let Some(subscribe) = self.subscribe.iter_mut().find(|s| s.stream() == stream) {
                    known = true;
                    subscribe.on_frame(now, from, to, frame);
                }
            }
        }
        self.cycle.strangers += u64::from(!known);
    }

    /// Lets every part do what is due, and notes when something is due next. Says how many messages were
    /// sent.
    fn turns(&mut self, now: Now) -> u64 {
        let mut sent = 0;
        let mut due = Nanos::MAX;
        for publish in &mut self.publish {
            let seal = self.guards.seal(publish.stream());
            let mut out = Out::new(&mut self.link, &mut self.local, &mut self.mirror, self.own, seal, now);
            let (messages, next) = publish.turn(now, &mut out);
            sent += messages;
            due = due.min(next);
        }
        for record in &mut self.record {
            let seal = self.guards.seal(record.stream());
            let mut out = Out::new(&mut self.link, &mut self.local, &mut self.mirror, self.own, seal, now);
            due = due.min(record.turn(now, &mut out));
        }
        for subscribe in &mut self.subscribe {
            let seal = self.guards.seal(subscribe.stream());
            let mut out = Out::new(&mut self.link, &mut self.local, &mut self.mirror, self.own, seal, now);
            due = due.min(subscribe.turn(now, &mut out));
        }
        self.mirror.send(&mut self.link);
        self.due = due;
        sent
    }

    /// What needs no look in every turn: ended sources, failed sinks, requests to stop. Says
    /// whether the engine is done.
    fn look_around(&mut self, now: Now) -> Result<bool> {
        let requests = self.stop.load(Ordering::Relaxed);
        if requests > 0 && !self.stopping {
            self.stopping = true;
            if let Some(hub) = &self.hub {
                hub.close();
            }
        }
        self.memberships
            .look(now.mono, &mut self.link)
            .context("cannot join a group again")?;
        for record in &mut self.record {
            record.check_rivals(now.mono);
            record.check_disk(now.mono);
        }
        self.guards.speak(now.mono);
        for publish in &mut self.publish {
            publish.check_rivals()?;
            publish.check_source(now, self.stopping);
            if self.stopping {
                publish.stop(now);
            }
            if publish.has_failed() {
                bail!(
                    "[[publish]] {}: the server's log has failed, see above",
                    publish.group()
                );
            }
        }
        if let Some(failed) = self.subscribe.iter().find(|s| s.has_failed()) {
            // Closing says what happened.
            bail!("[[subscribe]] {}: the sink has failed", failed.group());
        }
        if requests > 1 {
            return Ok(true);
        }
        let published = self.publish.iter().all(|p| p.finished(now));
        let received = self.stopping || self.subscribe.iter().all(Subscribe::finished);
        let recorded = self.stopping || self.record.iter().all(Record::finished);
        let done = published && received && recorded;
        // A source that broke off ends the engine, once its streams have been ended in order.
        let is_at_work = |table| self.publish.iter().any(|p| p.table() == table && !p.finished(now));
        let broken = self
            .publish
            .iter()
            .position(|p| p.is_broken() && !is_at_work(p.table()));
        let error = broken.and_then(|at| self.publish[at].take_error());
        error.map_or(Ok(done), Err)
    }

    fn sleep(&mut self, now: Now, longest: Duration) -> Result<()> {
        self.bell.arm();
        if self.hub.is_some() {
            self.publish.iter().for_each(|p| p.set_asleep(true));
        }
        let waiting = self.publish.iter_mut().any(|p| p.has_messages(now)) || self.has_news();
        let pause = Duration::from_nanos(self.due.saturating_sub(now.mono)).min(longest);
        if !waiting && !pause.is_zero() {
            self.cycle.sleeps += 1;
            self.regime.asleep = true;
            let wakers = self.hub.as_ref().map(Hub::wakers);
            let wake = wakers.map_or_else(|| self.bell.fd(), Wakers::fd);
            self.link.wait(wake, pause).context("the link failed to wait")?;
            if let Some(wakers) = wakers {
                wakers.forget();
            }
        }
        if self.hub.is_some() {
            self.publish.iter().for_each(|p| p.set_asleep(false));
        }
        self.bell.disarm();
        Ok(())
    }

    /// Lets all see the counters as they are now.
    #[cold]
    fn show_counters(&mut self, now: Now) {
        let (link, cycle) = (&mut self.link, &mut self.cycle);
        cycle.local_dropped = self.local.dropped;
        self.regime.look(now.mono, cycle);
        self.counters.write(now, |to| {
            // A link asks the kernel.
            if to.seldom {
                to.put(&link.stats());
            } else {
                to.keep::<LinkStats>();
            }
            to.put(cycle);
            self.subscribe.iter().for_each(|part| part.write_counters(to));
            self.publish.iter().for_each(|part| part.write_counters(to));
            self.record.iter_mut().for_each(|part| part.write_counters(to));
            self.guards.write_counters(to);
            if let Some(hub) = &self.hub {
                to.put(&hub.report());
            }
        });
    }

    /// Takes what is live of another configuration, if one waits.
    #[cold]
    fn take_news(&mut self, now: Now) {
        let Some(config) = self.reloader.news() else { return };
        self.guards.set_allow(&config);
        for publish in &mut self.publish {
            let mut tables = config.publish.iter();
            if let Some(table) = tables.find(|t| crate::stream_id(t.stream, t.id) == publish.stream()) {
                publish.change(table, now.mono);
            }
        }
        for subscribe in &mut self.subscribe {
            let mut tables = config.subscribe.iter();
            if let Some(table) = tables.find(|t| crate::stream_id(t.stream, t.id) == subscribe.stream()) {
                subscribe.change(table, self.link.max_payload());
            }
        }
        for record in &mut self.record {
            let mut tables = config.archive.iter();
            if let Some(table) = tables.find(|t| crate::stream_id(t.stream, t.id) == record.stream()) {
                record.change(table, now.mono);
            }
        }
        // What waited for a limit looks at the new one.
        self.due = now.mono;
        self.reloader.taken();
    }

    /// Closes everything in order, whatever happened before.
    fn close(mut self, mut result: Result<()>) -> (Report, Result<()>) {
        let now = self.clock.now();
        self.reloader.end();
        for record in &mut self.record {
            let seal = self.guards.seal(record.stream());
            let mut out = Out::new(&mut self.link, &mut self.local, &mut self.mirror, self.own, seal, now);
            let said = record.say_goodbye(now, &mut out);
            result = result.and(said);
        }
        // The last acknowledgements; when the link has failed there is nobody to tell.
        let _ = self.link.flush();
        let mut report = self.report();
        for (subscribe, told) in self.subscribe.into_iter().zip(&mut report.subscriptions) {
            let mold = subscribe.mold();
            // The sink's own error says more than that it has failed.
            let closed = subscribe.close();
            told.mold = mold.map(|latest| latest.lock().unwrap_or_else(PoisonError::into_inner).clone());
            result = if closed.is_err() { closed } else { result };
        }
        for publish in self.publish {
            result = result.and(publish.close());
        }
        for record in self.record {
            result = result.and(record.close());
        }
        (report, result)
    }
}

/// A number that other runs do not have; not 0.
fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    // The standard library's hasher is seeded by the system for each process.
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    (hasher.finish() as u32).max(1)
}
