//! What a seed stands for: who takes part, how they are set, what goes wrong and when.

use std::fmt;

use seqcast_proto::client::Order;
use seqcast_proto::lines::{Line, LinesConfig};
use seqcast_proto::responder::Cast;
use seqcast_proto::rng::Rng;
use seqcast_proto::time::{MICROS, MILLIS, Nanos, SECONDS};

/// One of the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The server.
    Server,
    /// An archive, from 0.
    Archive(u16),
    /// A client, from 0.
    Client(u16),
}

impl Host {
    /// How many parts a run can have.
    pub(super) const MOST: usize = 7;

    /// A number below [`Host::MOST`] of its own.
    pub(super) fn index(self) -> usize {
        match self {
            Host::Server => 0,
            Host::Archive(n) => 1 + usize::from(n),
            Host::Client(n) => 3 + usize::from(n),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Server => f.write_str("server"),
            Host::Archive(n) => write!(f, "archive{n}"),
            Host::Client(n) => write!(f, "client{n}"),
        }
    }
}

/// What the logs of servers and archives are kept in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// A plain table: fast, for the protocol's sake.
    Table,
    /// The production append log and its recovery, on a disk that tears and fills up.
    Log,
}

/// What the network does to frames. Shares are in 1/10 000 of the frames on each way.
#[derive(Clone, Copy, Debug, Default)]
pub struct Net {
    /// Delay of every frame.
    pub delay: Nanos,
    /// Longest further delay; frames overtake each other.
    pub jitter: Nanos,
    /// Share lost.
    pub loss: u64,
    /// Share at which a burst of losses begins.
    pub bursts: u64,
    /// Mean length of a burst in frames.
    pub burst_frames: u64,
    /// Share that comes twice.
    pub doubles: u64,
    /// Share damaged on the way. The UDP checksum turns that into a loss, and what comes with a
    /// right checksum and is no whole frame must be refused.
    pub garbage: u64,
    /// Share of frames for which the sender finds no free buffer.
    pub no_buffer: u64,
}

/// How a client is set.
#[derive(Clone, Copy, Debug)]
pub struct ClientPlan {
    /// Starts with the session's first message rather than with what it sees first.
    pub whole_session: bool,
    /// In what order it delivers.
    pub order: Order,
    /// Messages that it may hold ahead.
    pub window: u32,
    /// Frames that it may hold.
    pub hold: u32,
    /// Start.
    pub joins: Nanos,
    /// The lines that it listens to, when there are two.
    pub listen: Listen,
}

/// Which of two lines somebody listens to, and is connected to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Both.
    Both,
    /// One alone.
    Only(Line),
}

impl Listen {
    /// Whether it is connected to a line.
    #[must_use]
    pub fn has(self, line: Line) -> bool {
        self == Listen::Both || self == Listen::Only(line)
    }

    /// The line that it asks over first.
    #[must_use]
    pub fn first(self) -> Line {
        match self {
            Listen::Both => Line::A,
            Listen::Only(line) => line,
        }
    }
}

/// The stream takes two ways.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    /// How receivers on both lines deal with them.
    pub config: LinesConfig,
    /// How much later than over line A everything comes over line B.
    pub lag: Nanos,
    /// What the archives listen to.
    pub archives: [Listen; 2],
}

/// What goes wrong at some time for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process is killed; it starts again at the end of the fault.
    Kill(Host),
    /// The machine loses power; as `Kill`, and what was not synced is lost or torn.
    PowerLoss(Host),
    /// Nothing gets from the first to the second.
    Cut(Host, Host),
    /// The disk takes nothing more.
    DiskFull(Host),
    /// The application takes nothing.
    Stuck(Host),
    /// One of two lines carries nothing.
    LineDown(Line),
}

impl Fault {
    /// Whom it concerns.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        match *self {
            Fault::Kill(host) | Fault::PowerLoss(host) | Fault::DiskFull(host) | Fault::Stuck(host) => vec![host],
            Fault::Cut(from, to) => vec![from, to],
            Fault::LineDown(_) => Vec::new(),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Kill(host) => write!(f, "kill {host}"),
            Fault::PowerLoss(host) => write!(f, "power loss of {host}"),
            Fault::Cut(from, to) => write!(f, "cut from {from} to {to}"),
            Fault::DiskFull(host) => write!(f, "full disk of {host}"),
            Fault::Stuck(host) => write!(f, "stuck application of {host}"),
            Fault::LineDown(line) => write!(f, "line {line} down"),
        }
    }
}

/// A fault and when.
#[derive(Clone, Copy, Debug)]
pub struct Timed {
    /// Start.
    pub at: Nanos,
    /// End.
    pub until: Nanos,
    /// What.
    pub fault: Fault,
}

/// All that determines a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Seed of everything that happens at random while it runs.
    pub seed: u64,
    /// Messages published.
    pub messages: u64,
    /// Longest payload in bytes.
    pub payload: u64,
    /// How long publishing and faults take; then everything is healed.
    pub active: Nanos,
    /// What logs are kept in.
    pub medium: Medium,
    /// How many archives there are.
    pub archives: u16,
    /// How many of them have to acknowledge.
    pub required: usize,
    /// They acknowledge what is on stable storage only.
    pub synced: bool,
    /// Messages that the server keeps when there is no archive.
    pub retain: usize,
    /// Last number of a session.
    pub range_end: Option<u32>,
    /// Bytes a second that the server sends at most; 0: any.
    pub rate: u64,
    /// Most messages not acknowledged; 0: any.
    pub unacknowledged_max: u64,
    /// Clients ask by multicast.
    pub ask_group: bool,
    /// Clients that resume ask by multicast until they know whom to ask.
    pub seek_group: bool,
    /// To whom repairs go.
    pub cast: Cast,
    /// Bytes of repairs a second.
    pub repair_rate: Option<u64>,
    /// The server ends the stream after the last message.
    pub close: bool,
    /// Frames are sealed with a key.
    pub keyed: bool,
    /// There are two lines.
    pub lines: Option<Lines>,
    /// The clients.
    pub clients: Vec<ClientPlan>,
    /// The network.
    pub net: Net,
    /// What goes wrong.
    pub faults: Vec<Timed>,
}

struct Draw(Rng);

impl Draw {
    fn one_in(&mut self, n: u64) -> bool {
        self.0.below(n) == 0
    }

    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.below(high - low + 1)
    }

    /// Evenly over the orders of magnitude, so that small values are as likely as large ones.
    fn scaled(&mut self, low: u64, high: u64) -> u64 {
        let (low, high) = (low as f64, high as f64);
        let share = self.0.below(1 << 20) as f64 / f64::from(1 << 20);
        (low * (high / low).powf(share)) as u64
    }

    /// A share in 1/10 000, or none.
    fn share(&mut self, one_in: u64, most: u64) -> u64 {
        if self.one_in(one_in) { self.scaled(1, most) } else { 0 }
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.0.below(from.len() as u64) as usize]
    }
}

impl Plan {
    /// The plan of a seed. Each kind of fault is there or not, so that runs differ in kind and no
    /// fault hides what another would show.
    #[must_use]
    pub fn of(seed: u64) -> Plan {
        let mut draw = Draw(Rng::new(seed ^ 0x5eed_5eed));
        let messages = draw.scaled(50, 4000);
        let active = draw.scaled(50 * MILLIS, 4 * SECONDS);
        let archives = draw.pick(&[0, 1, 1, 1, 2, 2]);
        let required = if archives == 0 {
            0
        } else {
            draw.between(1, u64::from(archives)) as usize
        };
        let medium = draw.pick(&[Medium::Table, Medium::Table, Medium::Table, Medium::Log]);
        let mut clients = Vec::new();
        for _ in 0..draw.between(1, 4) {
            let late = draw.one_in(3);
            clients.push(ClientPlan {
                whole_session: draw.one_in(2),
                order: draw.pick(&[Order::Sequence, Order::Sequence, Order::Arrival]),
                window: draw.scaled(64, 4096) as u32,
                hold: draw.scaled(4, 512) as u32,
                joins: if late { draw.between(0, active) } else { 0 },
                listen: Listen::Both,
            });
        }
        let net = Net {
            delay: draw.scaled(2 * MICROS, 2 * MILLIS),
            jitter: if draw.one_in(2) {
                draw.scaled(MICROS, 5 * MILLIS)
            } else {
                0
            },
            loss: draw.share(2, 3000),
            bursts: draw.share(3, 200),
            burst_frames: draw.scaled(2, 200),
            doubles: draw.share(3, 3000),
            garbage: draw.share(3, 500),
            no_buffer: draw.share(4, 2000),
        };
        let mut plan = Plan {
            seed,
            messages,
            payload: draw.scaled(16, 400),
            active,
            medium,
            archives,
            required,
            synced: draw.one_in(3),
            retain: draw.scaled(20, 4000) as usize,
            range_end: draw
                .one_in(3)
                .then(|| draw.scaled((messages / 100).max(5), messages) as u32),
            rate: if draw.one_in(5) {
                draw.scaled(200_000, 20_000_000)
            } else {
                0
            },
            unacknowledged_max: if draw.one_in(5) { draw.scaled(20, 2000) } else { 0 },
            ask_group: draw.one_in(4),
            seek_group: draw.one_in(3),
            cast: draw.pick(&[Cast::Auto, Cast::Auto, Cast::Auto, Cast::Unicast, Cast::Multicast]),
            repair_rate: draw.one_in(5).then(|| draw.scaled(500_000, 20_000_000)),
            close: draw.one_in(3),
            keyed: false,
            lines: None,
            clients,
            net,
            faults: Vec::new(),
        };
        plan.draw_faults(&mut draw);
        plan.keyed = draw.one_in(6);
        if draw.one_in(4) {
            plan.draw_lines(&mut draw);
        }
        if draw.one_in(8) {
            plan.draw_quiet(&mut draw);
        }
        plan
    }

    /// The same faults, with long pauses between them and between messages: the longer timers come due.
    fn draw_quiet(&mut self, draw: &mut Draw) {
        let before = self.active;
        self.active = draw.scaled(10 * SECONDS, 100 * SECONDS);
        let later = |at: Nanos| (u128::from(at) * u128::from(self.active) / u128::from(before)) as Nanos;
        for timed in &mut self.faults {
            let lasts = timed.until - timed.at;
            timed.at = later(timed.at);
            timed.until = (timed.at + lasts).min(self.active);
        }
        for client in &mut self.clients {
            client.joins = later(client.joins);
        }
    }

    fn draw_lines(&mut self, draw: &mut Draw) {
        // Who is on one line alone reaches only others on that line, so it is the same one for all of a run.
        let single = draw.pick(&Line::BOTH);
        let either = [Listen::Both, Listen::Both, Listen::Only(single)];
        // Questions by multicast go to line A's group, as long as that is heard.
        let archives = match (self.ask_group, single) {
            (true, Line::B) => [Listen::Both; 3],
            _ => either,
        };
        self.lines = Some(Lines {
            config: LinesConfig {
                skew: draw.scaled(10 * MICROS, 5 * MILLIS),
                silence: draw.scaled(20 * MILLIS, 500 * MILLIS),
            },
            lag: if draw.one_in(2) {
                draw.scaled(MICROS, 5 * MILLIS)
            } else {
                0
            },
            archives: [draw.pick(&archives), draw.pick(&archives)],
        });
        for client in &mut self.clients {
            client.listen = draw.pick(&either);
        }
        for _ in 0..draw.between(0, 3) {
            let fault = Fault::LineDown(draw.pick(&Line::BOTH));
            let at = draw.between(0, self.active);
            let until = (at + draw.scaled(20 * MICROS, SECONDS)).min(self.active);
            self.faults.push(Timed { at, until, fault });
        }
        self.faults.sort_by_key(|f| f.at);
    }

    fn draw_faults(&mut self, draw: &mut Draw) {
        let hosts = self.hosts();
        let disks: Vec<Host> = hosts
            .iter()
            .copied()
            .filter(|h| !matches!(h, Host::Client(_)))
            .collect();
        let clients: Vec<Host> = (0..self.clients.len() as u16).map(Host::Client).collect();
        let durable: Vec<Host> = clients
            .iter()
            .zip(&self.clients)
            .filter(|(_, c)| c.order == Order::Sequence)
            .map(|(h, _)| *h)
            .collect();
        let longest = (self.active / 2).min(1500 * MILLIS);
        for kind in 0..7 {
            if !draw.one_in(3) {
                continue;
            }
            for _ in 0..draw.between(1, 4) {
                let fault = match kind {
                    0 => Fault::Kill(Host::Server),
                    1 if self.archives > 0 => Fault::Kill(Host::Archive(draw.0.below(self.archives.into()) as u16)),
                    2 if !durable.is_empty() => Fault::Kill(draw.pick(&durable)),
                    3 => Fault::PowerLoss(draw.pick(&disks)),
                    4 => Fault::DiskFull(draw.pick(&disks)),
                    5 => Fault::Stuck(draw.pick(&clients)),
                    6 => {
                        let from = draw.pick(&hosts);
                        Fault::Cut(from, draw.pick(&hosts))
                    }
                    _ => continue,
                };
                let at = draw.between(0, self.active);
                let until = (at + draw.scaled(20 * MICROS, longest)).min(self.active);
                self.faults.push(Timed { at, until, fault });
                if let Fault::Cut(from, to) = fault
                    && draw.one_in(2)
                {
                    let fault = Fault::Cut(to, from);
                    self.faults.push(Timed { at, until, fault });
                }
            }
        }
        self.faults.sort_by_key(|f| f.at);
    }

    /// Everyone who takes part.
    #[must_use]
    pub fn hosts(&self) -> Vec<Host> {
        let archives = (0..self.archives).map(Host::Archive);
        let clients = (0..self.clients.len() as u16).map(Host::Client);
        [Host::Server].into_iter().chain(archives).chain(clients).collect()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "seed {}: {} messages of up to {} B in {} ms, logs in {:?}, {} archives ({} must acknowledge{})",
            self.seed,
            self.messages,
            self.payload,
            self.active / MILLIS,
            self.medium,
            self.archives,
            self.required,
            if self.synced { " what is synced" } else { "" },
        )?;
        writeln!(
            f,
            "  range_end {:?}, rate {}, unacknowledged_max {}, retain {}, ask_group {}, seek_group {}, cast {:?}, repair_rate {:?}, close {}",
            self.range_end,
            self.rate,
            self.unacknowledged_max,
            self.retain,
            self.ask_group,
            self.seek_group,
            self.cast,
            self.repair_rate,
            self.close
        )?;
        writeln!(f, "  {:?}", self.net)?;
        if self.keyed {
            writeln!(f, "  sealed with a key")?;
        }
        if let Some(lines) = &self.lines {
            writeln!(f, "  two lines: {lines:?}")?;
        }
        for (n, client) in self.clients.iter().enumerate() {
            writeln!(f, "  client{n}: {client:?}")?;
        }
        for timed in &self.faults {
            writeln!(
                f,
                "  {} us to {} us: {}",
                timed.at / MICROS,
                timed.until / MICROS,
                timed.fault
            )?;
        }
        Ok(())
    }
}
