//! A small world of servers, archives and clients under one seed: the production state machines
//! over a network that loses, doubles, delays and reorders.
// Each test file uses another part of this.
#![allow(unreachable_pub, dead_code)]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::Bound;

use seqcast_proto::archiver::{Archiver, ArchiverConfig};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::{
    Application, ArchiveStore, Delivery, End, Event, Lookup, Outbox, Record, Refused, ServerStore, Store,
};
use seqcast_proto::responder::RepairConfig;
use seqcast_proto::rng::Rng;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::server::{Inherited, RateLimit, Server, ServerConfig, Source};
use seqcast_proto::time::{MICROS, MILLIS, Nanos, Now, SECONDS};
use seqcast_proto::wire::{Block, HeartbeatBody, Kind, Message, Reason, Stamp};

pub const STREAM: Stream = Stream(7);
pub const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);
const FRAME: usize = 576;
const WALL: Nanos = 1_700_000_000 * SECONDS;

pub fn addr(host: u16) -> SocketAddrV4 {
    let [high, low] = host.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(10, 0, high, low), 4000)
}

fn host(addr: SocketAddrV4) -> u16 {
    let [_, _, high, low] = addr.ip().octets();
    u16::from_be_bytes([high, low])
}

#[derive(Clone)]
struct Kept {
    count: u16,
    time: Nanos,
    bytes: Vec<u8>,
}

#[derive(Default, Clone)]
pub struct Log {
    records: BTreeMap<u32, Kept>,
    lost: Vec<SeqRange>,
    previous: Option<Session>,
    end: Option<End>,
    floor: u32,
}

/// A store in memory that outlives the process that writes it, as a mapped file does.
#[derive(Default, Clone)]
pub struct Disk {
    pub sessions: BTreeMap<u32, Log>,
    pub full: bool,
}

impl Store for Disk {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        let Some(log) = self.sessions.get(&session.0) else {
            return Lookup::Absent(Reason::UnknownSession, Seq(u32::MAX));
        };
        if let Some((first, kept)) = log.records.range(..=seq.0).next_back()
            && seq.0 < first + u32::from(kept.count)
        {
            let block = Block::parse(Seq(*first), kept.count, &kept.bytes).unwrap();
            return Lookup::Found(Record { block, time: kept.time });
        }
        if let Some(lost) = log.lost.iter().find(|r| r.contains(seq)) {
            return Lookup::Absent(Reason::Lost, lost.last);
        }
        if seq.0 < log.floor {
            return Lookup::Absent(Reason::TooOld, Seq(log.floor - 1));
        }
        let upto = log
            .records
            .range(seq.0..)
            .next()
            .map_or(u32::MAX, |(first, _)| first - 1);
        Lookup::Absent(Reason::NotYet, Seq(upto))
    }

    fn end_of(&self, session: Session) -> Option<End> {
        self.sessions.get(&session.0)?.end
    }

    fn previous_of(&self, session: Session) -> Session {
        self.sessions
            .get(&session.0)
            .and_then(|l| l.previous)
            .unwrap_or(Session::NONE)
    }

    fn session_after(&self, session: Session) -> Session {
        let mut later = self.sessions.range((Bound::Excluded(session.0), Bound::Unbounded));
        later.next().map_or(Session::NONE, |(s, _)| Session(*s))
    }
}

impl Disk {
    fn put(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        if self.full {
            return Err(Refused::Full);
        }
        let range = record.block.range().unwrap();
        let log = self
            .sessions
            .get_mut(&session.0)
            .expect("append to an unopened session");
        if let Some((first, kept)) = log.records.range(..=range.last.0).next_back() {
            assert!(first + u32::from(kept.count) <= range.first.0, "{range} stored twice");
        }
        let kept = Kept {
            count: record.block.count(),
            time: record.time,
            bytes: record.block.bytes().to_vec(),
        };
        log.records.insert(range.first.0, kept);
        Ok(())
    }

    fn open(&mut self, session: Session, previous: Session) {
        let old = self.sessions.insert(
            session.0,
            Log {
                previous: Some(previous),
                floor: 1,
                ..Log::default()
            },
        );
        assert!(old.is_none(), "session {session} opened twice");
    }

    fn highest(&self, session: u32) -> u32 {
        self.sessions[&session]
            .records
            .iter()
            .next_back()
            .map_or(0, |(f, k)| f + u32::from(k.count) - 1)
    }

    /// Every message that is held, by identity.
    pub fn messages(&self) -> HashMap<(u32, u32), Vec<u8>> {
        let mut all = HashMap::new();
        for (session, log) in &self.sessions {
            for (first, kept) in &log.records {
                for (seq, m) in Block::parse(Seq(*first), kept.count, &kept.bytes).unwrap().messages() {
                    all.insert((*session, seq.0), m.payload.to_vec());
                }
            }
        }
        all
    }
}

impl ServerStore for Disk {
    fn has_room(&mut self, _bytes: usize) -> bool {
        // Tells nothing, so that a refused append is met as well.
        true
    }
    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        self.put(session, record)
    }
    fn open_session(&mut self, session: Session, previous: Session) -> Result<(), Refused> {
        self.open(session, previous);
        Ok(())
    }
    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        self.sessions.get_mut(&session.0).unwrap().end = Some(end);
        Ok(())
    }
    fn release_below(&mut self, session: Session, seq: Seq) {
        let log = self.sessions.get_mut(&session.0).unwrap();
        log.floor = seq.0;
        log.records.retain(|first, k| first + u32::from(k.count) > seq.0);
    }
    fn drop_session(&mut self, session: Session) {
        self.sessions.remove(&session.0);
    }
    fn oldest(&self, session: Session) -> Seq {
        let log = &self.sessions[&session.0];
        log.records
            .keys()
            .next()
            .map_or(Seq(self.highest(session.0).max(log.floor - 1) + 1), |f| Seq(*f))
    }
}

impl ArchiveStore for Disk {
    fn append(&mut self, session: Session, record: &Record<'_>, _received: Nanos) -> Result<(), Refused> {
        self.put(session, record)
    }
    fn open_session(&mut self, session: Session, previous: Session, _origin: u32) -> Result<(), Refused> {
        self.open(session, previous);
        Ok(())
    }
    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        if self.full {
            return Err(Refused::Full);
        }
        self.sessions.get_mut(&session.0).unwrap().end = Some(end);
        Ok(())
    }
    fn mark_lost(&mut self, session: Session, range: SeqRange) -> Result<(), Refused> {
        self.sessions.get_mut(&session.0).unwrap().lost.push(range);
        Ok(())
    }
    fn stored(&mut self, session: Session, _synced: bool, each: &mut dyn FnMut(SeqRange)) {
        for (first, kept) in &self.sessions[&session.0].records {
            each(SeqRange::of(Seq(*first), u32::from(kept.count)).unwrap());
        }
    }
    fn lost(&self, session: Session, each: &mut dyn FnMut(SeqRange)) {
        self.sessions[&session.0].lost.iter().copied().for_each(each);
    }
    fn sessions(&self, each: &mut dyn FnMut(Session)) {
        self.sessions.keys().for_each(|s| each(Session(*s)));
    }
}

/// What the network does to frames.
#[derive(Clone, Copy)]
pub struct Net {
    /// Share of frames lost on each way, in 1/1000.
    pub loss: u64,
    /// Share of frames doubled, in 1/1000.
    pub double: u64,
    /// Longest extra delay; frames overtake each other.
    pub jitter: Nanos,
}

pub struct Out<'a> {
    from: SocketAddrV4,
    frames: &'a mut Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)>,
}

impl Outbox for Out<'_> {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let mut buf = vec![0xaa; FRAME];
        let len = build(&mut buf);
        buf.truncate(len);
        if len > 0 {
            self.frames.push((self.from, to, buf));
        }
        true
    }
    fn max_frame(&self) -> usize {
        FRAME
    }
}

/// Messages `n`, `n+1`, ... each with its number and some bytes that follow from it.
pub struct Numbers {
    pub next: u64,
    pub until: u64,
    buf: Vec<u8>,
}

pub fn numbers(next: u64, until: u64) -> Numbers {
    Numbers {
        next,
        until,
        buf: Vec::new(),
    }
}

pub fn payload(n: u64) -> Vec<u8> {
    let mut bytes = n.to_le_bytes().to_vec();
    bytes.resize(8 + (n % 37) as usize, n as u8);
    bytes
}

impl Source for Numbers {
    fn peek(&mut self) -> Option<Message<'_>> {
        (self.next < self.until).then(|| {
            self.buf = payload(self.next);
            Message {
                subject: b"",
                payload: &self.buf,
            }
        })
    }
    fn advance(&mut self) {
        self.next += 1;
    }
}

#[derive(Default)]
pub struct App {
    pub got: Vec<(u32, u32, Vec<u8>)>,
    pub events: Vec<Event>,
    /// Numbers of messages that were marked as late.
    pub late: Vec<(u32, u32)>,
    /// Takes nothing while set.
    pub stuck: bool,
}

impl Application for App {
    fn deliver(&mut self, d: &Delivery<'_>) -> bool {
        if !self.stuck {
            self.got
                .extend(d.block.messages().map(|(s, m)| (d.session.0, s.0, m.payload.to_vec())));
            if d.late {
                self.late.extend(d.block.messages().map(|(s, _)| (d.session.0, s.0)));
            }
        }
        !self.stuck
    }
    fn event(&mut self, event: Event) {
        self.events.push(event);
    }
}

pub struct ClientHost {
    pub client: Client<Vec<u8>>,
    pub app: App,
    pub cut_off: bool,
}

type InFlight = Reverse<(Nanos, u64, u16, SocketAddrV4, Vec<u8>)>;

/// Host 1 is the server, 2 the archive, 10.. the clients.
pub struct World {
    pub now: Nanos,
    pub rng: Rng,
    pub net: Net,
    pub server: Option<Server>,
    pub server_disk: Disk,
    pub archive: Option<Archiver>,
    pub archive_disk: Disk,
    pub clients: Vec<ClientHost>,
    pub source: Numbers,
    pub range_end: Seq,
    pub rate: RateLimit,
    pub archives: usize,
    /// New messages reach no client while set.
    pub lose_data: bool,
    /// Clients multicast their NAKs.
    pub ask_group: bool,
    /// Answers are at most so many times as long as questions.
    pub amplification: u32,
    /// Bytes of answers a second that an archive gives.
    pub repair_rate: Option<u64>,
    /// Bytes of frames from one party to another, with their headers.
    pub carried: HashMap<(SocketAddrV4, SocketAddrV4), u64>,
    /// Bytes of answers, with their headers, to addresses of none of the parts.
    pub answered_strangers: u64,
    runs: u32,
    sent: u64,
    flying: BinaryHeap<InFlight>,
}

impl World {
    pub fn new(seed: u64, net: Net, messages: u64) -> World {
        World {
            now: SECONDS,
            rng: Rng::new(seed),
            net,
            server: None,
            server_disk: Disk::default(),
            archive: None,
            archive_disk: Disk::default(),
            clients: Vec::new(),
            source: numbers(0, messages),
            rate: RateLimit::default(),
            range_end: Seq::LAST,
            archives: 1,
            lose_data: false,
            ask_group: false,
            amplification: RepairConfig::new(GROUP).amplification,
            repair_rate: None,
            carried: HashMap::new(),
            answered_strangers: 0,
            runs: 0,
            sent: 0,
            flying: BinaryHeap::new(),
        }
    }

    pub fn now(&self) -> Now {
        Now {
            mono: self.now,
            wall: WALL + self.now,
        }
    }

    /// Starts a server that goes on behind what the last one sent, as a file source does.
    pub fn start_server(&mut self) {
        self.runs += 1;
        let disk = &mut self.server_disk;
        let inherited: Vec<Inherited> = disk
            .sessions
            .iter()
            .map(|(s, log)| {
                let last = Seq(disk.highest(*s).max(log.floor - 1));
                Inherited {
                    session: Session(*s),
                    previous: log.previous.unwrap(),
                    end: log.end.unwrap_or(End {
                        last,
                        next: Session::NONE,
                    }),
                }
            })
            .collect();
        let newest = disk.sessions.keys().next_back().map_or(0, |s| s + 1);
        let session = Session(newest.max((WALL / SECONDS + self.now / SECONDS) as u32));
        let mut config = ServerConfig::new(STREAM, GROUP, addr(1), 1000 + self.runs);
        config.archives = self.archives;
        config.range_end = self.range_end;
        config.rate = self.rate;
        config.repair.amplification = self.amplification;
        self.server = Some(Server::open(config, session, &inherited, self.now, disk).unwrap());
    }

    pub fn start_archive(&mut self) {
        let mut config = ArchiverConfig::new(STREAM, GROUP, addr(2), 77);
        config.repair.bytes_per_second = self.repair_rate;
        config.repair.amplification = self.amplification;
        self.archive = Some(Archiver::new(config, self.now, &mut self.archive_disk));
    }

    pub fn add_client(&mut self, start: Start) -> usize {
        let mut config = ClientConfig::new(STREAM, 100 + self.clients.len() as u32);
        config.start = start;
        config.window = 512;
        config.hold_frames = 64;
        if self.ask_group {
            config.ask_group = Some(GROUP);
            config.gaps.backoff = MILLIS;
        }
        self.clients.push(ClientHost {
            client: Client::new(config, self.now),
            app: App::default(),
            cut_off: false,
        });
        self.clients.len() - 1
    }

    fn dispatch(&mut self, frames: Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)>) {
        for (from, to, bytes) in frames {
            *self.carried.entry((from, to)).or_default() += 28 + bytes.len() as u64;
            let answers = [Kind::Repair, Kind::Unavailable, Kind::End];
            if to != GROUP && usize::from(host(to)) >= 10 + self.clients.len() {
                let is_answer = answers.iter().any(|kind| bytes[3] == *kind as u8);
                self.answered_strangers += if is_answer { 28 + bytes.len() as u64 } else { 0 };
            }
            let hosts: Vec<u16> = if to == GROUP {
                [1, 2]
                    .into_iter()
                    .chain((0..self.clients.len()).map(|i| 10 + i as u16))
                    .collect()
            } else {
                vec![host(to)]
            };
            for host in hosts.into_iter().filter(|h| addr(*h) != from) {
                if host >= 10 && self.lose_data && bytes[3] == Kind::Data as u8 {
                    continue;
                }
                if self.rng.below(1000) < self.net.loss {
                    continue;
                }
                let copies = 1 + u64::from(self.rng.below(1000) < self.net.double);
                for _ in 0..copies {
                    let delay = 10 * MICROS + self.rng.below(self.net.jitter + 1);
                    self.sent += 1;
                    self.flying
                        .push(Reverse((self.now + delay, self.sent, host, from, bytes.clone())));
                }
            }
        }
    }

    fn arrive(
        &mut self,
        host: u16,
        from: SocketAddrV4,
        bytes: Vec<u8>,
        frames: &mut Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)>,
    ) {
        let now = self.now();
        let mut out = Out {
            from: addr(host),
            frames,
        };
        match host {
            1 => {
                if let Some(server) = &mut self.server {
                    server.on_frame(now, from, &bytes, &mut self.server_disk, &mut out);
                }
            }
            2 => {
                if let Some(archive) = &mut self.archive {
                    archive.on_frame(now, from, &bytes, &mut self.archive_disk, &mut out);
                }
            }
            _ => {
                // Strangers hear nothing.
                let client = usize::from(host).checked_sub(10);
                if let Some(host) = client.and_then(|i| self.clients.get_mut(i))
                    && !host.cut_off
                {
                    host.client.on_frame(now, from, bytes, &mut host.app);
                }
            }
        }
    }

    /// A frame that somebody else has sent; arrives in the next step.
    pub fn inject(&mut self, host: u16, from: SocketAddrV4, bytes: Vec<u8>) {
        self.sent += 1;
        self.flying.push(Reverse((self.now, self.sent, host, from, bytes)));
    }

    /// One step of 20 us: what has arrived, then every part's turn, with `rate` frames published.
    pub fn step(&mut self, rate: usize) {
        self.now += 20 * MICROS;
        let mut frames = Vec::new();
        while let Some(Reverse((at, ..))) = self.flying.peek()
            && *at <= self.now
        {
            let Reverse((_, _, host, from, bytes)) = self.flying.pop().unwrap();
            self.arrive(host, from, bytes, &mut frames);
        }
        let now = self.now();
        if let Some(server) = &mut self.server {
            let mut out = Out {
                from: addr(1),
                frames: &mut frames,
            };
            server.publish(now, rate, &mut self.source, &mut self.server_disk, &mut out);
            server.poll(now, 8, &mut self.server_disk, &mut out);
        }
        if let Some(archive) = &mut self.archive {
            let mut out = Out {
                from: addr(2),
                frames: &mut frames,
            };
            archive.poll(now, 8, &mut self.archive_disk, &mut out);
        }
        for (i, host) in self.clients.iter_mut().enumerate() {
            let mut out = Out {
                from: addr(10 + i as u16),
                frames: &mut frames,
            };
            if !host.cut_off {
                host.client.poll(now, &mut host.app, &mut out);
            }
        }
        self.dispatch(frames);
    }

    /// Steps until `done`, at most `limit` of simulated time.
    pub fn run_until(&mut self, what: &str, limit: Nanos, mut done: impl FnMut(&World) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(
                self.now < end,
                "not within {} ms: {what}; {}",
                limit / MILLIS,
                self.describe()
            );
            // Publishing pauses now and then, as producers do.
            let rate = if self.rng.below(4) == 0 {
                self.rng.below(4) as usize
            } else {
                0
            };
            self.step(rate);
        }
    }

    pub fn describe(&self) -> String {
        let clients: Vec<String> = self
            .clients
            .iter()
            .map(|c| {
                let events: Vec<_> = c
                    .app
                    .events
                    .iter()
                    .filter(|e| !matches!(e, Event::Gap { .. }))
                    .collect();
                format!(
                    "{:?} got {} {:?} {events:?}",
                    c.client.position(),
                    c.app.got.len(),
                    c.client.stats()
                )
            })
            .collect();
        format!(
            "published {} of {}; server {:?} {:?}; archive {:?}; clients {clients:#?}",
            self.source.next,
            self.source.until,
            self.server.as_ref().map(|s| (s.position(), s.unacknowledged())),
            self.server.as_ref().map(Server::stats),
            self.archive.as_ref().map(|a| (a.stats(), a.missing())),
        )
    }

    /// What the running server would say now.
    pub fn heartbeat(&self) -> Vec<u8> {
        let (session, sequence) = self.server.as_ref().unwrap().position();
        let stamp = Stamp {
            stream: STREAM,
            session,
            sequence,
            time: 0,
            flags: 0,
            origin: 1000 + self.runs,
        };
        let body = HeartbeatBody {
            previous_session: 0.into(),
            previous_last: 0.into(),
            oldest: 1.into(),
            acknowledged: 1.into(),
        };
        let mut buf = vec![0; FRAME];
        let len = stamp.heartbeat(&mut buf, &body, &[]);
        buf.truncate(len);
        buf
    }

    pub fn out<'a>(&self, frames: &'a mut Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)>) -> Out<'a> {
        Out { from: addr(1), frames }
    }

    pub fn all_published(&self) -> bool {
        self.source.next == self.source.until
    }

    /// Each client has exactly the published messages from `from` on, in order, each once.
    pub fn check_client(&self, client: usize, from: u64) {
        let got = &self.clients[client].app.got;
        for (i, (session, seq, bytes)) in got.iter().enumerate() {
            assert_eq!(
                *bytes,
                payload(from + i as u64),
                "client {client}, message {i} ({session}, {seq})"
            );
        }
        for pair in got.windows(2) {
            assert!((pair[0].0, pair[0].1) < (pair[1].0, pair[1].1), "order of numbers");
        }
        assert_eq!(got.len() as u64, self.source.until - from, "client {client}");
        let lost = self.clients[client]
            .app
            .events
            .iter()
            .any(|e| matches!(e, Event::Lost { .. } | Event::TailUnknown { .. }));
        assert!(!lost, "client {client} reported a loss");
    }

    pub fn everyone_has(&self, count: u64) -> bool {
        self.clients.iter().all(|c| c.app.got.len() as u64 >= count)
    }
}
