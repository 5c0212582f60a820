//! One run: the production state machines over a made network, on made disks, in made time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;

use seqcast_engine::node::store::{Recorder, Retention};
use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::{Application, Delivery, Event, Lookup, Outbox, Store};
use seqcast_proto::responder::RepairConfig;
use seqcast_proto::rng::Rng;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::server::{Blocked, RateLimit, Server, ServerConfig, Source};
use seqcast_proto::time::{MICROS, MILLIS, Nanos, Now, SECONDS};
use seqcast_proto::wire::{Body, Frame, Message, Reason, flags, peek};

use super::disk::{Deed, Disk, Stop};
use super::oracle::{Failure, Oracle, Promise, Promises, Truth, Verdict, View, must_be_gone};
use super::plan::{ClientPlan, Fault, Host, Medium, Plan};
use super::trace::{Trace, frame_text};

const STREAM: Stream = Stream(7);
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);
const FRAME: usize = 576;
const WALL: Nanos = 1_700_000_000 * SECONDS;
/// The least time between two turns of one part.
const TURN: Nanos = 5 * MICROS;
/// Frames that a server sends in a turn, and repairs.
const BUDGET: usize = 8;
/// How long after healing everything may take.
const HEALED: Nanos = 20 * SECONDS;
/// Events without progress of time after which a run counts as stuck.
const MAX_EVENTS: u64 = 20_000_000;

fn addr(host: Host) -> SocketAddrV4 {
    let (net, n) = match host {
        Host::Server => (0, 1),
        Host::Archive(n) => (1, n),
        Host::Client(n) => (2, n),
    };
    SocketAddrV4::new(Ipv4Addr::new(10, net, 0, n as u8), 4000)
}

/// What a run did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Simulated time.
    pub simulated: Nanos,
    /// Of that, after healing until everything was delivered.
    pub healing: Nanos,
    /// Messages published.
    pub published: u64,
    /// Messages delivered, over all clients.
    pub delivered: u64,
    /// Messages reported as lost, over all clients.
    pub lost: u64,
    /// Frames sent, each once for each receiver.
    pub frames: u64,
    /// Frames lost, doubled or damaged, refused buffers, and timed faults.
    pub faults: u64,
    /// Messages in REPAIR frames.
    pub repaired: u64,
    /// Messages that did not reach a receiver, or not in order.
    pub missed: u64,
    /// Processes started again.
    pub restarts: u64,
}

struct Sent {
    from: Host,
    to: SocketAddrV4,
    bytes: Rc<[u8]>,
}

struct Out<'a> {
    from: Host,
    sent: &'a mut Vec<Sent>,
    rng: &'a mut Rng,
    no_buffer: u64,
    faults: &'a mut u64,
}

impl Outbox for Out<'_> {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.no_buffer > 0 && self.rng.below(10_000) < self.no_buffer {
            *self.faults += 1;
            return false;
        }
        // Not zeroed: nothing may rely on what is in a buffer.
        let mut bytes = [0xaa; FRAME];
        let len = build(&mut bytes);
        if len > 0 {
            self.sent.push(Sent {
                from: self.from,
                to,
                bytes: bytes[..len].into(),
            });
        }
        true
    }

    fn max_frame(&self) -> usize {
        FRAME
    }
}

/// The file that the server publishes. Each run of the server leaves its mark in what it sends, so
/// that the same number used twice shows.
struct File {
    next: u64,
    until: u64,
    run: u32,
    longest: u64,
    buf: Vec<u8>,
}

impl Source for File {
    fn peek(&mut self) -> Option<Message<'_>> {
        if self.next >= self.until {
            return None;
        }
        self.buf.clear();
        self.buf.extend_from_slice(&self.next.to_le_bytes());
        self.buf.extend_from_slice(&self.run.to_le_bytes());
        let len = 12 + (self.next * 31 % self.longest.max(1)) as usize;
        self.buf.resize(len, self.next as u8);
        Some(Message {
            subject: b"",
            payload: &self.buf,
        })
    }

    fn advance(&mut self) {
        self.next += 1;
    }
}

struct ServerHost {
    machine: Option<Server>,
    disk: Disk<Retention>,
    file: File,
    turn: Nanos,
    runs: u32,
    closed: bool,
    /// Since it was up last.
    lost_power: bool,
}

struct ArchiveHost {
    machine: Option<Archiver>,
    disk: Disk<Recorder>,
    promises: Promises,
    /// How it ended since it was up last; the worst of all.
    stopped: Option<Stop>,
    turn: Nanos,
    synced_at: Nanos,
    stored: u64,
}

struct App {
    stuck: bool,
    got: Vec<Got>,
}

enum Got {
    Message(Session, Seq, Vec<u8>),
    Event(Event),
}

impl Application for App {
    fn deliver(&mut self, d: &Delivery<'_>) -> bool {
        if !self.stuck {
            let messages = d.block.messages();
            let got = messages.map(|(seq, m)| Got::Message(d.session, seq, m.payload.to_vec()));
            self.got.extend(got);
        }
        !self.stuck
    }

    fn event(&mut self, event: Event) {
        self.got.push(Got::Event(event));
    }
}

struct ClientHost {
    machine: Option<Client<Rc<[u8]>>>,
    plan: ClientPlan,
    app: App,
    view: View,
    turn: Nanos,
    joined: bool,
    runs: u32,
    /// The highest number seen, so that what comes out of order is known.
    seen: (Session, Seq),
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Flying {
    at: Nanos,
    number: u64,
    to: Host,
    from: SocketAddrV4,
    bytes: Rc<[u8]>,
}

#[derive(Clone, Copy)]
enum Step {
    Begin(usize),
    End(usize),
    Publish,
    Join(u16),
}

/// A run that can be looked at.
pub(super) struct World<'a> {
    plan: &'a Plan,
    now: Nanos,
    rng: Rng,
    healed: Option<Nanos>,
    server: ServerHost,
    archives: Vec<ArchiveHost>,
    clients: Vec<ClientHost>,
    truth: Truth,
    flying: BinaryHeap<Reverse<Flying>>,
    script: BTreeMap<(Nanos, u64), Step>,
    /// How many active faults there are of each kind and place.
    down: BTreeMap<Host, u32>,
    full: BTreeMap<Host, u32>,
    stuck: BTreeMap<Host, u32>,
    cut: BTreeMap<(Host, Host), u32>,
    /// Frames still to be lost in the burst on the way to a host.
    bursts: BTreeMap<Host, u64>,
    /// What a loss of power has taken out of the server's log: it cannot let go of that.
    torn: BTreeSet<(Session, Seq)>,
    /// The last number of each session that the server has let go of.
    released: BTreeMap<Session, Seq>,
    hosts: Vec<Host>,
    number: u64,
    counts: Counts,
    failure: Option<Failure>,
    pub(super) trace: Option<Trace>,
}

impl<'a> World<'a> {
    pub(super) fn new(plan: &'a Plan, trace: Option<Trace>) -> World<'a> {
        let mut rng = Rng::new(plan.seed);
        let retain = (plan.archives == 0).then_some(plan.retain);
        let server = ServerHost {
            machine: None,
            disk: Disk::new(plan.medium, STREAM, rng.next_u64(), retain),
            file: File {
                next: 0,
                until: 0,
                run: 0,
                longest: plan.payload,
                buf: Vec::new(),
            },
            turn: Nanos::MAX,
            runs: 0,
            closed: false,
            lost_power: false,
        };
        let archives = (0..plan.archives)
            .map(|_| ArchiveHost {
                machine: None,
                disk: Disk::new(plan.medium, STREAM, rng.next_u64(), None),
                promises: Promises::default(),
                stopped: None,
                turn: Nanos::MAX,
                synced_at: 0,
                stored: 0,
            })
            .collect();
        let clients = plan.clients.iter().enumerate().map(|(n, plan)| ClientHost {
            machine: None,
            plan: *plan,
            app: App {
                stuck: false,
                got: Vec::new(),
            },
            view: View::new(Host::Client(n as u16), plan.order),
            turn: Nanos::MAX,
            joined: false,
            runs: 0,
            seen: (Session::NONE, Seq(0)),
        });
        let mut world = World {
            now: SECONDS,
            healed: None,
            server,
            archives,
            clients: clients.collect(),
            truth: Truth::default(),
            flying: BinaryHeap::new(),
            script: BTreeMap::new(),
            down: BTreeMap::new(),
            full: BTreeMap::new(),
            stuck: BTreeMap::new(),
            cut: BTreeMap::new(),
            bursts: BTreeMap::new(),
            torn: BTreeSet::new(),
            released: BTreeMap::new(),
            hosts: plan.hosts(),
            number: 0,
            counts: Counts::default(),
            failure: None,
            trace,
            rng,
            plan,
        };
        for (n, fault) in plan.faults.iter().enumerate() {
            world.at(SECONDS + fault.at, Step::Begin(n));
            world.at(SECONDS + fault.until, Step::End(n));
        }
        for (n, client) in plan.clients.iter().enumerate() {
            world.at(SECONDS + client.joins, Step::Join(n as u16));
        }
        world.at(SECONDS, Step::Publish);
        world
    }

    fn at(&mut self, time: Nanos, step: Step) {
        self.number += 1;
        self.script.insert((time, self.number), step);
    }

    fn wall(&self) -> Now {
        Now {
            mono: self.now,
            wall: WALL + self.now,
        }
    }

    fn note(&mut self, who: impl fmt::Display, text: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(self.now - SECONDS, &who.to_string(), text());
        }
    }

    fn judge(&mut self, verdict: Verdict) {
        if let Err((oracle, text)) = verdict
            && self.failure.is_none()
        {
            let at = self.now - SECONDS;
            self.failure = Some(Failure { at, oracle, text });
        }
    }

    /// Runs to the end, or to the first rule that is broken.
    pub(super) fn run(&mut self) -> (Counts, Option<Failure>) {
        for n in 0..self.plan.archives {
            self.start(Host::Archive(n));
        }
        self.start(Host::Server);
        let heal_at = SECONDS + self.plan.active;
        let mut events = 0;
        while self.failure.is_none() {
            let next = self.next_time();
            if self.healed.is_none() && next >= heal_at {
                self.now = heal_at;
                self.heal();
                continue;
            }
            self.now = next.max(self.now);
            self.advance();
            events += 1;
            if events % 1024 == 0 {
                let verdict = self.check_repairs();
                self.judge(verdict);
            }
            if self.healed.is_some_and(|at| self.now - at > HEALED) || events > MAX_EVENTS {
                let text = self.what_is_missing().unwrap_or_else(|| "events without end".into());
                self.judge(Err((Oracle::Liveness, text)));
            } else if self.healed.is_some() && events % 16 == 0 && self.is_done() {
                break;
            }
        }
        if self.failure.is_none() {
            let verdict = self.check_repairs();
            self.judge(verdict);
        }
        self.counts.simulated = self.now - SECONDS;
        self.counts.healing = self.healed.map_or(0, |at| self.now - at);
        self.counts.published = self.truth.messages();
        self.counts.delivered = self.clients.iter().map(|c| c.view.delivered).sum();
        self.counts.lost = self.clients.iter().map(|c| c.view.lost).sum();
        (self.counts, self.failure.take())
    }

    fn next_time(&self) -> Nanos {
        let flying = self.flying.peek().map_or(Nanos::MAX, |Reverse(f)| f.at);
        let script = self.script.keys().next().map_or(Nanos::MAX, |(at, _)| *at);
        let archives = self.archives.iter().map(|a| a.turn).min().unwrap_or(Nanos::MAX);
        let clients = self.clients.iter().map(|c| c.turn).min().unwrap_or(Nanos::MAX);
        // With nothing at all to do, time goes on until the run counts as stuck.
        let idle = self.now + SECONDS;
        flying
            .min(script)
            .min(self.server.turn)
            .min(archives)
            .min(clients)
            .min(idle)
    }

    /// Everything that is due now.
    fn advance(&mut self) {
        while let Some((&(at, number), &step)) = self.script.first_key_value()
            && at <= self.now
        {
            self.script.remove(&(at, number));
            self.step(step);
        }
        while let Some(Reverse(first)) = self.flying.peek()
            && first.at <= self.now
            && self.failure.is_none()
        {
            if let Some(Reverse(frame)) = self.flying.pop() {
                self.arrive(frame);
            }
        }
        if self.server.turn <= self.now {
            self.server_turn();
        }
        for n in 0..self.archives.len() {
            if self.archives[n].turn <= self.now {
                self.archive_turn(n);
            }
        }
        for n in 0..self.clients.len() {
            if self.clients[n].turn <= self.now {
                self.client_turn(n);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Publish => self.publish_more(),
            Step::Join(n) => {
                self.clients[usize::from(n)].joined = true;
                self.start(Host::Client(n));
            }
            Step::Begin(n) => self.begin(self.plan.faults[n].fault),
            Step::End(n) => {
                if self.healed.is_none() {
                    self.end(self.plan.faults[n].fault);
                }
            }
        }
    }

    /// Producers come in bursts with pauses between.
    fn publish_more(&mut self) {
        let plan = self.plan;
        let burst = 1 + self.rng.below(2 * (plan.messages / 60).max(1));
        self.server.file.until = (self.server.file.until + burst).min(plan.messages);
        self.server.turn = self.server.turn.min(self.now);
        if self.server.file.until < plan.messages {
            let pause = 1 + self.rng.below(plan.active / 30);
            self.at(self.now + pause, Step::Publish);
        }
    }

    fn begin(&mut self, fault: Fault) {
        if self.healed.is_some() {
            return;
        }
        self.counts.faults += 1;
        self.note("FAULT", || format!("{fault}"));
        match fault {
            Fault::Kill(host) => self.stop(host, Stop::Kill),
            Fault::PowerLoss(host) => self.stop(host, Stop::PowerLoss),
            Fault::Cut(from, to) => *self.cut.entry((from, to)).or_default() += 1,
            Fault::DiskFull(host) => {
                *self.full.entry(host).or_default() += 1;
                self.set_full(host);
            }
            Fault::Stuck(host) => {
                *self.stuck.entry(host).or_default() += 1;
                self.set_stuck(host);
            }
        }
    }

    fn end(&mut self, fault: Fault) {
        self.note("END", || format!("{fault}"));
        let less = |count: &mut u32| *count = count.saturating_sub(1);
        match fault {
            Fault::Kill(host) | Fault::PowerLoss(host) => {
                less(self.down.entry(host).or_default());
                self.start(host);
            }
            Fault::Cut(from, to) => less(self.cut.entry((from, to)).or_default()),
            Fault::DiskFull(host) => {
                less(self.full.entry(host).or_default());
                self.set_full(host);
            }
            Fault::Stuck(host) => {
                less(self.stuck.entry(host).or_default());
                self.set_stuck(host);
            }
        }
    }

    fn set_full(&mut self, host: Host) {
        let full = self.full.get(&host).is_some_and(|n| *n > 0);
        match host {
            Host::Server => self.server.disk.set_full(full),
            Host::Archive(n) => self.archives[usize::from(n)].disk.set_full(full),
            Host::Client(_) => {}
        }
    }

    fn set_stuck(&mut self, host: Host) {
        let stuck = self.stuck.get(&host).is_some_and(|n| *n > 0);
        if let Host::Client(n) = host {
            self.clients[usize::from(n)].app.stuck = stuck;
        }
    }

    /// All faults end; from here on everything must come to rest.
    fn heal(&mut self) {
        self.note("HEAL", || "the network is perfect and everyone is up".into());
        self.healed = Some(self.now);
        self.down.clear();
        self.cut.clear();
        self.full.clear();
        self.stuck.clear();
        self.bursts.clear();
        self.server.file.until = self.plan.messages;
        for host in self.hosts.clone() {
            self.set_full(host);
            self.set_stuck(host);
            if let Host::Client(n) = host {
                self.clients[usize::from(n)].joined = true;
            }
            self.start(host);
            self.wake(host);
        }
    }

    fn wake(&mut self, host: Host) {
        let now = self.now;
        match host {
            Host::Server => self.server.turn = now,
            Host::Archive(n) => self.archives[usize::from(n)].turn = now,
            Host::Client(n) => self.clients[usize::from(n)].turn = now,
        }
    }

    fn is_up(&self, host: Host) -> bool {
        match host {
            Host::Server => self.server.machine.is_some(),
            Host::Archive(n) => self.archives[usize::from(n)].machine.is_some(),
            Host::Client(n) => self.clients[usize::from(n)].machine.is_some(),
        }
    }

    fn stop(&mut self, host: Host, how: Stop) {
        *self.down.entry(host).or_default() += 1;
        match host {
            Host::Server => {
                self.server.machine = None;
                self.server.turn = Nanos::MAX;
                self.take_server_deeds();
                self.server.disk.stop(how, &mut self.rng);
                self.server.lost_power |= how == Stop::PowerLoss;
            }
            Host::Archive(n) => {
                let archive = &mut self.archives[usize::from(n)];
                archive.machine = None;
                archive.turn = Nanos::MAX;
                archive.disk.stop(how, &mut self.rng);
                // What the last run did not sync, the next one does.
                archive.stored = u64::MAX;
                archive.stopped = archive.stopped.max(Some(how));
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                client.machine = None;
                client.turn = Nanos::MAX;
                client.app.got.clear();
                client.view.restart();
            }
        }
    }

    /// What an archive has promised is there after its end.
    fn check_promises(&mut self, n: usize, how: Stop) {
        let ArchiveHost { disk, promises, .. } = &mut self.archives[n];
        let mut broken = None;
        let mut gone = Vec::new();
        for (session, seq, promise) in promises.binding() {
            let kept = match disk.look_up(session, seq) {
                Lookup::Found(_) => true,
                Lookup::Absent(reason, _) => reason == Reason::Lost,
            };
            if kept {
                continue;
            }
            if how == Stop::Kill || *promise == Promise::Synced {
                broken.get_or_insert((session, seq));
            }
            gone.push((session, seq));
            *promise = Promise::Void;
        }
        for (session, seq) in gone {
            if World::holder(&self.server, &self.archives, session, seq).is_none() {
                self.truth.forget(session.0, seq.0);
            }
        }
        if let Some((session, seq)) = broken {
            let text = format!("archive{n} has acknowledged {session}:{seq} and lost it by {how:?}");
            self.judge(Err((Oracle::Promise, text)));
        }
    }

    fn start(&mut self, host: Host) {
        if self.is_up(host) || self.down.get(&host).is_some_and(|n| *n > 0) {
            return;
        }
        let now = self.now;
        match host {
            Host::Server => self.start_server(),
            Host::Archive(n) => {
                let archive = &mut self.archives[usize::from(n)];
                if !archive.disk.is_open() {
                    archive.turn = now + 10 * MILLIS;
                    return;
                }
                if let Some(how) = archive.stopped.take() {
                    self.check_promises(usize::from(n), how);
                }
                let archive = &mut self.archives[usize::from(n)];
                let config = ArchiverConfig {
                    synced: self.plan.synced,
                    repair: repair(self.plan),
                    ..ArchiverConfig::new(STREAM, GROUP, addr(host), 500 + u32::from(n))
                };
                archive.machine = Some(Archiver::new(config, now, &mut archive.disk));
                archive.turn = now;
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                if !client.joined {
                    return;
                }
                client.runs += 1;
                let mut config = ClientConfig::new(STREAM, 10_000 + 100 * u32::from(n) + client.runs);
                config.start = match client.view.saved {
                    Some((session, seq)) => Start::After(session, seq),
                    None if client.plan.whole_session => Start::Session,
                    None => Start::Now,
                };
                // What it was away for it catches up with.
                self.counts.missed += match config.start {
                    Start::After(session, seq) => self.truth.behind(session, seq),
                    Start::Session => self.truth.messages(),
                    Start::Now => 0,
                };
                config.order = client.plan.order;
                config.window = client.plan.window;
                config.hold_frames = client.plan.hold;
                config.seed = self.rng.next_u64();
                if self.plan.ask_group {
                    config.ask_group = Some(GROUP);
                    config.gaps.backoff = MILLIS;
                }
                config.seek_group = self.plan.seek_group.then_some(GROUP);
                client.machine = Some(Client::new(config, now));
                client.turn = now;
                if client.runs > 1 {
                    self.counts.restarts += 1;
                }
            }
        }
        self.note("START", || format!("{host}"));
    }

    fn start_server(&mut self) {
        let plan = self.plan;
        let server = &mut self.server;
        if !server.disk.is_open() {
            server.turn = self.now + 10 * MILLIS;
            return;
        }
        let inherited = server.disk.inherited();
        if std::mem::take(&mut server.lost_power) {
            for known in &inherited {
                self.truth.withdraw(known.session, known.end.last.next());
                let released = self.released.get(&known.session).map_or(Seq::FIRST, |s| s.next());
                for seq in (released.0..=known.end.last.0).map(Seq) {
                    if !server.disk.holds(known.session, seq) {
                        self.torn.insert((known.session, seq));
                    }
                }
            }
        }
        let newest = inherited.last().map_or(0, |i| i.session.0 + 1);
        let session = Session(newest.max(((WALL + self.now) / SECONDS) as u32));
        server.runs += 1;
        let mut config = ServerConfig::new(STREAM, GROUP, addr(Host::Server), 1000 + server.runs);
        config.archives = plan.required;
        config.range_end = plan.range_end.map_or(Seq::LAST, Seq);
        config.rate = RateLimit {
            bytes_per_second: plan.rate,
            frames_per_second: 0,
            burst_bytes: 20_000,
        };
        config.unacknowledged_max = plan.unacknowledged_max;
        config.repair = repair(plan);
        server.file.next = server.disk.taken();
        server.file.run = server.runs;
        server.closed = false;
        let opened = Server::open(config, session, &inherited, self.now, &mut server.disk);
        match opened {
            Ok(machine) => {
                server.machine = Some(machine);
                server.turn = self.now;
                self.counts.restarts += u64::from(self.server.runs > 1);
                self.note("server", || {
                    format!("opens session {session} behind {}", newest.max(1) - 1)
                });
            }
            Err(_) => {
                // Its disk refuses: whoever runs it tries again.
                server.turn = self.now + 10 * MILLIS;
            }
        }
        self.take_server_deeds();
    }

    fn server_turn(&mut self) {
        if self.server.machine.is_none() {
            self.server.turn = Nanos::MAX;
            self.start(Host::Server);
            return;
        }
        let now = self.wall();
        let mut sent = Vec::new();
        let (plan, healed) = (self.plan, self.healed.is_some());
        let ServerHost {
            machine,
            disk,
            file,
            turn,
            closed,
            ..
        } = &mut self.server;
        let Some(machine) = machine else { return };
        let mut out = Out {
            from: Host::Server,
            sent: &mut sent,
            rng: &mut self.rng,
            no_buffer: if healed { 0 } else { plan.net.no_buffer },
            faults: &mut self.counts.faults,
        };
        let before = machine.unacknowledged();
        let (taken, blocked) = machine.publish(now, BUDGET, file, disk, &mut out);
        let limit = plan.unacknowledged_max;
        let overrun = limit > 0 && plan.required > 0 && before >= limit && taken > 0;
        let retry = match blocked {
            Some(Blocked::Rate(opens)) => opens,
            Some(Blocked::Unacknowledged | Blocked::Full) => now.mono + MILLIS,
            Some(Blocked::Closed | Blocked::Superseded(_)) => Nanos::MAX,
            Some(Blocked::NoBuffer | Blocked::StoreFailed) => now.mono,
            None if file.next < file.until => now.mono,
            None => Nanos::MAX,
        };
        if healed && plan.close && !*closed && file.next == plan.messages && !machine.is_stuck() {
            *closed = machine.close(now, disk).is_ok();
        }
        let due = machine.poll(now, BUDGET, disk, &mut out);
        *turn = due.min(retry).max(now.mono + TURN);
        if overrun {
            let text =
                format!("the server takes {taken} messages while {before} of at most {limit} are not acknowledged");
            self.judge(Err((Oracle::Bounds, text)));
        }
        self.take_server_deeds();
        self.dispatch(sent);
        if blocked == Some(Blocked::StoreFailed) {
            self.note("server", || "its store has failed: it ends".into());
            self.stop(Host::Server, Stop::Kill);
            *self.down.entry(Host::Server).or_default() -= 1;
            self.server.turn = self.now + 10 * MILLIS;
        }
    }

    fn archive_turn(&mut self, n: usize) {
        let now = self.wall();
        let host = Host::Archive(n as u16);
        let mut sent = Vec::new();
        let no_buffer = if self.healed.is_some() {
            0
        } else {
            self.plan.net.no_buffer
        };
        let archive = &mut self.archives[n];
        let Some(machine) = &mut archive.machine else {
            archive.turn = Nanos::MAX;
            self.start(host);
            return;
        };
        let mut sync_due = Nanos::MAX;
        if self.plan.synced || self.plan.medium == Medium::Log {
            let stored = machine.stats().stored;
            if stored != archive.stored && now.mono >= archive.synced_at + 3 * MILLIS {
                archive.synced_at = now.mono;
                if archive.disk.sync() {
                    archive.stored = stored;
                } else {
                    sync_due = now.mono + 10 * MILLIS;
                }
            } else if stored != archive.stored {
                sync_due = archive.synced_at + 3 * MILLIS;
            }
        }
        let mut out = Out {
            from: host,
            sent: &mut sent,
            rng: &mut self.rng,
            no_buffer,
            faults: &mut self.counts.faults,
        };
        let due = machine.poll(now, BUDGET, &mut archive.disk, &mut out);
        archive.turn = due.min(sync_due).max(now.mono + TURN);
        self.take_archive_deeds(n);
        self.dispatch(sent);
    }

    fn client_turn(&mut self, n: usize) {
        let now = self.wall();
        let mut sent = Vec::new();
        let client = &mut self.clients[n];
        let Some(machine) = &mut client.machine else {
            client.turn = Nanos::MAX;
            return;
        };
        let mut out = Out {
            from: Host::Client(n as u16),
            sent: &mut sent,
            rng: &mut self.rng,
            no_buffer: if self.healed.is_some() {
                0
            } else {
                self.plan.net.no_buffer
            },
            faults: &mut self.counts.faults,
        };
        let due = machine.poll(now, &mut client.app, &mut out);
        client.turn = due.max(now.mono + TURN);
        let held = machine.held();
        if held > client.plan.hold as usize {
            let text = format!("client{n} holds {held} frames of {}", client.plan.hold);
            self.judge(Err((Oracle::Bounds, text)));
        }
        self.look_at(n);
        self.dispatch(sent);
    }

    /// Who holds a message, up or down.
    fn holder(server: &ServerHost, archives: &[ArchiveHost], session: Session, seq: Seq) -> Option<Host> {
        if server.disk.holds(session, seq) {
            return Some(Host::Server);
        }
        let at = archives.iter().position(|a| a.disk.holds(session, seq))?;
        Some(Host::Archive(at as u16))
    }

    /// Checks what an application was given.
    fn look_at(&mut self, n: usize) {
        let World {
            server,
            archives,
            clients,
            truth,
            ..
        } = self;
        let client = &mut clients[n];
        let holder = |session, seq| World::holder(server, archives, session, seq);
        let mut verdict = Ok(());
        let mut notes = Vec::new();
        for got in client.app.got.drain(..) {
            let view = &mut client.view;
            verdict = match got {
                Got::Message(session, seq, payload) => {
                    let message = Message {
                        subject: b"",
                        payload: &payload,
                    };
                    view.on_message(truth, session, seq, &message)
                }
                Got::Event(event) => {
                    if self.trace.is_some() {
                        notes.push(format!("{event:?}"));
                    }
                    match event {
                        Event::Joined { session, next } => view.on_joined(session, next, client.plan.whole_session),
                        Event::Lost { session, range, .. } => view.on_lost(truth, session, range, &holder),
                        Event::TailUnknown { session, from } => view.on_tail_unknown(truth, session, from, &holder),
                        Event::SessionStarted { session } => view.on_session(truth, session, &holder),
                        _ => Ok(()),
                    }
                }
            };
            if verdict.is_err() {
                break;
            }
        }
        for note in notes {
            self.note(Host::Client(n as u16), || note);
        }
        self.judge(verdict);
    }

    fn take_server_deeds(&mut self) {
        for deed in std::mem::take(&mut self.server.disk.deeds) {
            match deed {
                Deed::Kept(session, first, count, bytes) => {
                    let verdict = self.truth.publish(session, first, count, &bytes);
                    self.judge(verdict);
                }
                Deed::Released(session, seq) => self.check_release(session, seq.prev()),
                Deed::Dropped(session) => self.check_release(session, self.truth.last(session)),
                Deed::Lost(..) => {}
            }
        }
    }

    fn check_release(&mut self, session: Session, last: Seq) {
        let from = self.released.insert(session, last).map_or(Seq::FIRST, Seq::next);
        let required = self.plan.required;
        if required == 0 {
            return;
        }
        let acknowledged = |seq| {
            let archives = self.archives.iter();
            archives.filter(|a| a.promises.is_given(session, seq)).count()
        };
        let wrong = self
            .truth
            .due(session, from)
            .take_while(|s| *s <= last)
            .filter(|s| !self.torn.contains(&(session, *s)))
            .map(|seq| (seq, acknowledged(seq)))
            .find(|(_, by)| *by < required);
        if let Some((seq, by)) = wrong {
            let text =
                format!("the server lets go of {session}:{seq}, which {by} of {required} archives have acknowledged");
            self.judge(Err((Oracle::Release, text)));
        }
    }

    fn take_archive_deeds(&mut self, n: usize) {
        for deed in std::mem::take(&mut self.archives[n].disk.deeds) {
            let Deed::Lost(session, range) = deed else { continue };
            self.note(Host::Archive(n as u16), || format!("notes {session}:{range} as lost"));
            let host = Host::Archive(n as u16);
            let holder = |session, seq| World::holder(&self.server, &self.archives, session, seq);
            let verdict = (range.first.0..=range.last.0)
                .map(Seq)
                .filter(|seq| self.truth.payload(session, *seq).is_some())
                .try_for_each(|seq| must_be_gone(&self.truth, host, session, seq, &holder));
            self.judge(verdict);
        }
    }

    /// Checks what was sent and gives it to the network.
    fn dispatch(&mut self, sent: Vec<Sent>) {
        for frame in sent {
            let verdict = self.check_frame(&frame);
            self.judge(verdict);
            self.note(frame.from, || frame_text(frame.to, &frame.bytes));
            for at in 0..self.hosts.len() {
                let host = self.hosts[at];
                if host != frame.from && (frame.to == GROUP || frame.to == addr(host)) {
                    self.carry(&frame, host);
                }
            }
        }
    }

    fn check_frame(&mut self, sent: &Sent) -> Verdict {
        let parsed = Frame::parse(&sent.bytes);
        let Ok(frame) = parsed else {
            let text = format!("{} sends a frame that the parser refuses: {parsed:?}", sent.from);
            return Err((Oracle::Wire, text));
        };
        let session = frame.header.session();
        match frame.body {
            Body::Data(block) | Body::Repair(block) => {
                for (seq, message) in block.messages() {
                    self.truth.check(session, seq, &message, sent.from)?;
                }
                if matches!(frame.body, Body::Repair(_)) {
                    self.counts.repaired += u64::from(block.count());
                }
            }
            Body::Ack(ranges) => {
                if let Host::Archive(n) = sent.from {
                    let synced = frame.header.has(flags::SYNCED);
                    return self.check_ack(usize::from(n), session, ranges.iter(), synced);
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An archive has what it acknowledges, with the right bytes.
    fn check_ack(
        &mut self,
        n: usize,
        session: Session,
        ranges: impl Iterator<Item = SeqRange>,
        synced: bool,
    ) -> Verdict {
        let ArchiveHost { disk, promises, .. } = &mut self.archives[n];
        let promises = promises.of(session);
        let promised = if synced { Promise::Synced } else { Promise::Stored };
        for seq in ranges.flat_map(|r| (r.first.0..=r.last.0).map(Seq)) {
            let place = seq.0 as usize - 1;
            if matches!(promises.get(place), Some(Promise::Stored | Promise::Synced)) {
                continue;
            }
            let wrong = match disk.look_up(session, seq) {
                Lookup::Found(record) => {
                    let stored = record.block.messages().find(|(s, _)| *s == seq).map(|(_, m)| m.payload);
                    stored.is_none() || stored != self.truth.payload(session, seq)
                }
                Lookup::Absent(reason, _) => reason != Reason::Lost,
            };
            if wrong {
                let text = format!("archive{n} acknowledges {session}:{seq}, which it does not hold");
                return Err((Oracle::Promise, text));
            }
            if synced && !disk.is_safe(session, seq) {
                let text = format!("archive{n} acknowledges {session}:{seq} as synced, which it has not synced");
                return Err((Oracle::Promise, text));
            }
            if promises.len() <= place {
                promises.resize(place + 1, Promise::None);
            }
            promises[place] = promised;
        }
        Ok(())
    }

    /// Messages in a frame that somebody did not get.
    fn miss(&mut self, bytes: &[u8]) {
        if let Ok(frame) = Frame::parse(bytes)
            && let Body::Data(block) | Body::Repair(block) = frame.body
        {
            self.counts.missed += u64::from(block.count());
        }
    }

    fn carry(&mut self, frame: &Sent, to: Host) {
        self.counts.frames += 1;
        let net = &self.plan.net;
        let faulty = self.healed.is_none();
        let cut = self.cut.get(&(frame.from, to)).is_some_and(|n| *n > 0);
        let mut lost = cut || !self.is_up(to);
        if faulty && !lost {
            let left = self.bursts.entry(to).or_default();
            if *left > 0 {
                *left -= 1;
                lost = true;
            } else if net.bursts > 0 && self.rng.below(10_000) < net.bursts {
                *left = self.rng.below(2 * net.burst_frames.max(1));
                lost = true;
            }
            lost |= self.rng.below(10_000) < net.loss;
        }
        if faulty && self.rng.below(10_000) < net.garbage {
            lost = true;
            let garbage = self.garbage(&frame.bytes);
            self.fly(frame.from, to, garbage);
        }
        if lost {
            self.counts.faults += 1;
            self.miss(&frame.bytes);
            if let Some(trace) = &mut self.trace {
                trace.lost(self.now - SECONDS, frame.from, to, &frame.bytes);
            }
            return;
        }
        self.fly(frame.from, to, Rc::clone(&frame.bytes));
        if faulty && self.rng.below(10_000) < net.doubles {
            self.counts.faults += 1;
            self.fly(frame.from, to, Rc::clone(&frame.bytes));
        }
    }

    /// What a damaged frame can look like that passes a checksum: cut short, or anything at all.
    fn garbage(&mut self, frame: &[u8]) -> Rc<[u8]> {
        let len = self.rng.below(frame.len() as u64) as usize;
        let mut bytes = frame[..len].to_vec();
        if self.rng.below(2) == 0 {
            bytes.fill_with(|| self.rng.next_u64() as u8);
        }
        bytes.into()
    }

    fn fly(&mut self, from: Host, to: Host, bytes: Rc<[u8]>) {
        let net = &self.plan.net;
        let jitter = if self.healed.is_none() {
            self.rng.below(net.jitter + 1)
        } else {
            0
        };
        self.number += 1;
        self.flying.push(Reverse(Flying {
            at: self.now + net.delay + jitter,
            number: self.number,
            to,
            from: addr(from),
            bytes,
        }));
    }

    fn arrive(&mut self, frame: Flying) {
        let Flying { to, from, bytes, .. } = frame;
        if !self.is_up(to) {
            self.miss(&bytes);
            return;
        }
        // As the engine hands frames on by stream.
        if peek(&bytes).is_none_or(|(stream, _)| stream != STREAM) {
            return;
        }
        let now = self.wall();
        let mut sent = Vec::new();
        let mut out = Out {
            from: to,
            sent: &mut sent,
            rng: &mut self.rng,
            no_buffer: if self.healed.is_some() {
                0
            } else {
                self.plan.net.no_buffer
            },
            faults: &mut self.counts.faults,
        };
        match to {
            Host::Server => {
                if let Some(machine) = &mut self.server.machine {
                    machine.on_frame(now, from, &bytes, &mut self.server.disk, &mut out);
                }
                self.take_server_deeds();
            }
            Host::Archive(n) => {
                let archive = &mut self.archives[usize::from(n)];
                if let Some(machine) = &mut archive.machine {
                    let before = machine.stats().full;
                    machine.on_frame(now, from, &bytes, &mut archive.disk, &mut out);
                    if machine.stats().full > before {
                        // What a full disk turned away is asked for again.
                        self.miss(&bytes);
                    }
                }
                self.take_archive_deeds(usize::from(n));
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                let data = match Frame::parse(&bytes).map(|f| (f.header.session(), f.body)) {
                    Ok((session, Body::Data(block))) => Some(((session, block.first()), block.count())),
                    _ => None,
                };
                if let Some(machine) = &mut client.machine {
                    let before = machine.stats();
                    machine.on_frame(now, from, bytes, &mut client.app);
                    let after = machine.stats();
                    // Frames for which the client had no room are asked for again.
                    self.counts.missed += 64 * (after.overruns - before.overruns);
                    if let Some((place, count)) = data {
                        // What comes late may have been asked for meanwhile; what comes before its
                        // session is due will be.
                        let early = after.other_session > before.other_session;
                        if place < client.seen || early {
                            self.counts.missed += u64::from(count);
                        }
                        client.seen = client.seen.max(place);
                    }
                }
                self.look_at(usize::from(n));
            }
        }
        self.wake(to);
        self.dispatch(sent);
    }

    fn is_done(&self) -> bool {
        self.what_is_missing().is_none()
    }

    /// What keeps a healed run from its end.
    fn what_is_missing(&self) -> Option<String> {
        let Some(server) = &self.server.machine else {
            return Some("the server cannot start".into());
        };
        if self.server.file.next < self.plan.messages || server.is_stuck() {
            return Some(format!(
                "the server has taken {} of {} messages",
                self.server.file.next, self.plan.messages
            ));
        }
        if server.unacknowledged() > 0 {
            return Some(format!(
                "{} messages are not acknowledged; archives miss {:?}",
                server.unacknowledged(),
                self.archives
                    .iter()
                    .map(|a| a.machine.as_ref().map(Archiver::missing))
                    .collect::<Vec<_>>()
            ));
        }
        for (n, client) in self.clients.iter().enumerate() {
            let Some(machine) = &client.machine else {
                return Some(format!("client{n} is not up"));
            };
            if client.view.at.is_none() {
                return Some(format!("client{n} has not joined"));
            }
            if let Some((session, seq)) = client.view.first_due(&self.truth) {
                let holder = World::holder(&self.server, &self.archives, session, seq);
                return Some(format!(
                    "client{n} at {:?} has not got {session}:{seq}, held by {holder:?}; {:?}",
                    machine.position(),
                    machine.stats()
                ));
            }
            if self.plan.close && !machine.ended() {
                return Some(format!(
                    "client{n} at {:?} does not know that the stream has ended",
                    machine.position()
                ));
            }
        }
        None
    }

    /// Repairs are some few for each message missed, and some to catch up with.
    fn check_repairs(&self) -> Verdict {
        let Counts { repaired, missed, .. } = self.counts;
        // A merged repair goes to everyone, and a question may be asked again before its answer.
        let most = 2000 + 20 * missed;
        if repaired > most {
            let text = format!("{repaired} messages were repaired, {missed} missed");
            return Err((Oracle::Repairs, text));
        }
        Ok(())
    }
}

fn repair(plan: &Plan) -> RepairConfig {
    RepairConfig {
        cast: plan.cast,
        bytes_per_second: plan.repair_rate,
        ..RepairConfig::new(GROUP)
    }
}
