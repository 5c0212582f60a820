//! One run: the production state machines over a made network, on made disks, in made time.

mod checks;
mod faults;
mod frames;
mod network;
mod parts;
mod turns;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use seqcast_proto::lines::Line;
use seqcast_proto::rng::Rng;
use seqcast_proto::seal::Seal;
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::time::{MICROS, Nanos, Now, SECONDS};

use super::disk::Disk;
use super::oracle::{Failure, Oracle, Promises, Truth, Verdict, View};
use super::plan::{Host, Plan};
use super::trace::Trace;
use frames::Frames;
use network::{Flying, Passages};
use parts::{App, ArchiveHost, ClientHost, File, Sent, ServerHost};

const STREAM: Stream = Stream(7);
const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);
/// Line B's group.
const GROUP_B: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 2, 1, 1), 5000);
const FRAME: usize = 576;
const WALL: Nanos = 1_700_000_000 * SECONDS;
/// The least time between two turns of one part.
const TURN: Nanos = 5 * MICROS;
/// Frames that a server sends in a turn, and repairs.
const BUDGET: usize = 8;
/// The longest burst of losses: where little is sent, one of so many frames would outlast a client's patience.
const BURST: Nanos = SECONDS;
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

/// Where a part is on a line: on B, if there is one, somewhere else than on A.
fn addr_on(host: Host, line: Line) -> SocketAddrV4 {
    let a = addr(host);
    match line {
        Line::A => a,
        Line::B => SocketAddrV4::new(Ipv4Addr::from(u32::from(*a.ip()) + (16 << 16)), a.port()),
    }
}

/// The group of a line.
fn group(line: Line) -> SocketAddrV4 {
    [GROUP, GROUP_B][line as usize]
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
    down: [u32; Host::MOST],
    full: [u32; Host::MOST],
    stuck: [u32; Host::MOST],
    cut: [[u32; Host::MOST]; Host::MOST],
    /// Of each line.
    lines_down: [u32; 2],
    /// Of the parts that are up, when there is a key.
    seals: [Option<Seal>; Host::MOST],
    /// Frames still to be lost in the burst on the way to a host, and when it ends all the same.
    bursts: [(u64, Nanos); Host::MOST],
    passages: Passages,
    /// Whether anybody has lost power.
    power_lost: bool,
    /// Room for what is sent in one turn.
    outbox: Vec<Sent>,
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
                payloads: Vec::new(),
            },
            view: View::new(Host::Client(n as u16), plan.order),
            frames: Frames::new(plan.hold),
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
            down: [0; Host::MOST],
            full: [0; Host::MOST],
            stuck: [0; Host::MOST],
            cut: [[0; Host::MOST]; Host::MOST],
            lines_down: [0; 2],
            seals: Default::default(),
            bursts: [(0, 0); Host::MOST],
            passages: Passages::default(),
            power_lost: false,
            outbox: Vec::new(),
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
}
