//! Publishes what a client delivers, and answers those who missed some.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seqcast_mold::answers::Answers;
use seqcast_mold::packet::Refused;
use seqcast_mold::publisher::{Publisher, PublisherConfig};
use seqcast_proto::seq::{Seq, Session, Stream};
use seqcast_proto::time::{MILLIS, Nanos, SECONDS};
use seqcast_proto::wire::Block;
use seqcast_ring::{Consumer, Doorbell};

use super::super::sink::{Part, parts};
use super::shelf::Shelf;
use super::{Clock, Opening, Run, receive, with_link};
use crate::config::{MoldSink, Net};
use crate::link::udp::UdpConfig;
use crate::link::{Fault, Link};
use crate::report::{MoldSinkCounts, MoldSinkReport};

/// How long the thread sleeps at most.
const LOOK: Duration = Duration::from_millis(50);
/// How long a full socket holds the feed up before packets are left to those who ask.
const FULL: u32 = 100;
/// Receive buffers: requests are short.
const FRAMES: usize = 256;

/// The thread's ends of what joins it to its client.
pub(crate) struct Ends {
    pub(crate) lane: Consumer,
    pub(crate) bell: Arc<Doorbell>,
    /// Rung when the lane has room again.
    pub(crate) room: Arc<Doorbell>,
    pub(crate) failed: Arc<AtomicBool>,
}

/// A running publisher.
pub(crate) struct Started {
    /// The last message that it has.
    pub(crate) resume: Option<(Session, Seq)>,
    pub(crate) report: Arc<Mutex<MoldSinkReport>>,
    pub(crate) thread: JoinHandle<io::Result<()>>,
}

/// Opens sockets and log and starts publishing. `interval` is how far the disk may be behind.
pub(crate) fn start(config: &MoldSink, stream: Stream, interval: Duration, ends: Ends) -> io::Result<Started> {
    let report = Arc::new(Mutex::new(MoldSinkReport::default()));
    let (opened, wait) = sync_channel(1);
    let thread = std::thread::Builder::new().name("mold-sink".into()).spawn({
        let (config, report) = (config.clone(), Arc::clone(&report));
        let (room, failed) = (Arc::clone(&ends.room), Arc::clone(&ends.failed));
        move || {
            let group = config.group;
            let result = run(config, stream, interval, ends, report, opened);
            failed.store(result.is_err(), Ordering::Release);
            room.ring();
            result.map_err(|e| io::Error::new(e.kind(), format!("sink mold {group}: {e}")))
        }
    })?;
    match wait.recv() {
        Ok(resume) => Ok(Started { resume, report, thread }),
        // It ended before it had opened everything.
        Err(_) => match thread.join() {
            Ok(result) => Err(result
                .err()
                .unwrap_or_else(|| io::Error::other("the sink's thread ended"))),
            Err(_) => Err(io::Error::other("the sink's thread panicked")),
        },
    }
}

type Opened = SyncSender<Option<(Session, Seq)>>;

fn run(
    config: MoldSink,
    stream: Stream,
    interval: Duration,
    ends: Ends,
    report: Arc<Mutex<MoldSinkReport>>,
    opened: Opened,
) -> io::Result<()> {
    let sync_ms = u32::try_from(interval.as_millis()).unwrap_or(u32::MAX);
    let shelf = Shelf::open(&config, stream, sync_ms)?;
    let udp = UdpConfig {
        port: config.port,
        ttl: config.ttl,
        frames: FRAMES,
        fault: Fault::from(config.fault),
        ..UdpConfig::default()
    };
    let (interface, interface_b) = (config.interface.clone(), config.interface_b.clone());
    let opening = Opening {
        interface: &interface,
        interface_b: interface_b.as_deref(),
        group_b: config.group_b,
        udp,
    };
    with_link(
        &opening,
        Ready {
            config,
            shelf,
            ends,
            report,
            opened,
        },
    )
}

/// All but the link is open.
struct Ready {
    config: MoldSink,
    shelf: Shelf,
    ends: Ends,
    report: Arc<Mutex<MoldSinkReport>>,
    opened: Opened,
}

impl Run for Ready {
    fn run<L: Link>(self, link: L) -> io::Result<()> {
        let Ready {
            config,
            shelf,
            ends,
            report,
            opened,
        } = self;
        let clock = Clock::start();
        let now = clock.now();
        let variant = config.variant.into();
        let most = config.packet.unwrap_or(usize::MAX).min(link.max_payload());
        let groups = [Some(config.group), config.group_b];
        let mut feed = Feed {
            out: Out {
                groups,
                dropped: 0,
                link,
            },
            publisher: Publisher::new(PublisherConfig {
                variant,
                most,
                heartbeat: config.heartbeat_ms * MILLIS,
                end: config.end_ms * MILLIS,
            }),
            answers: Answers::new(variant, most, config.answer_bytes.0, now),
            allow: config.allow,
            answering: config.requests,
            not_allowed: 0,
            fixed: config.session.is_some(),
            open: None,
            stream_ended: false,
            tidy_at: now,
            shelf,
            clock,
            report,
        };
        let resume = feed.resume()?;
        feed.tell();
        // Whoever started the thread waits for this.
        let _ = opened.send(resume);
        let result = feed.serve(ends);
        feed.tell();
        result.and(feed.shelf.close())
    }
}

/// Where packets go.
struct Out<L> {
    groups: [Option<SocketAddrV4>; 2],
    dropped: u64,
    link: L,
}

impl<L: Link> Out<L> {
    fn multicast(&mut self, packet: &[u8]) {
        for group in self.groups.into_iter().flatten() {
            let sent = (0..FULL).any(|attempt| {
                if attempt > 0 {
                    // What failed is said by the next flush of the feed's thread.
                    let _ = self.link.flush();
                    if attempt > 1 {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                }
                self.send(group, packet)
            });
            self.dropped += u64::from(!sent);
        }
    }

    fn send(&mut self, to: SocketAddrV4, packet: &[u8]) -> bool {
        self.link.send(to, |buffer| {
            buffer[..packet.len()].copy_from_slice(packet);
            packet.len()
        })
    }
}

/// The thread's state.
struct Feed<L: Link> {
    out: Out<L>,
    publisher: Publisher,
    answers: Answers,
    allow: Option<Vec<Net>>,
    answering: bool,
    not_allowed: u64,
    /// All sessions have one name.
    fixed: bool,
    /// The stream's session, and how many messages came before it under the feed's name.
    open: Option<(Session, u64)>,
    /// The stream's last session has ended.
    stream_ended: bool,
    tidy_at: Nanos,
    shelf: Shelf,
    clock: Clock,
    report: Arc<Mutex<MoldSinkReport>>,
}

impl<L: Link> Feed<L> {
    /// Goes on with the session of an earlier run, so that its heartbeats are heard at once.
    fn resume(&mut self) -> io::Result<Option<(Session, Seq)>> {
        let last = self.shelf.last();
        if let Some((session, seq)) = last.filter(|(session, _)| !self.shelf.has_ended(*session)) {
            self.begin(session, seq.next())?;
        }
        Ok(last)
    }

    fn begin(&mut self, session: Session, next: Seq) -> io::Result<()> {
        let now = self.clock.now();
        let (name, before) = self.shelf.begin(session)?;
        let out = &mut self.out;
        self.publisher
            .open(now, name, before + u64::from(next.0), &mut |packet| {
                out.multicast(packet)
            });
        (self.open, self.stream_ended) = (Some((session, before)), false);
        Ok(())
    }

    fn serve(&mut self, mut ends: Ends) -> io::Result<()> {
        let mut arrived = Vec::with_capacity(super::BATCH);
        loop {
            let mut result = Ok(());
            let now = self.clock.now();
            let wall = wall();
            let taken = ends.lane.drain(1024, |_, entry| {
                if result.is_ok() {
                    result = self.take(entry, now, wall);
                }
                true
            });
            result?;
            ends.lane.flush();
            if taken > 0 {
                ends.room.ring();
            }
            let asked = receive(&mut self.out.link, &mut arrived)?;
            for datagram in arrived.drain(..) {
                self.answer(now, datagram.from, datagram.frame.as_ref());
            }
            let finished = ends.lane.is_finished();
            let out = &mut self.out;
            if finished && self.stream_ended && !self.publisher.has_ended() {
                // Only now is it known that no other session follows under the name.
                let next = self.publisher.position().map_or(1, |(_, next)| next);
                self.publisher.end(now, next, &mut |packet| out.multicast(packet));
            }
            if ends.lane.peek().is_none() {
                self.publisher.flush(now, &mut |packet| out.multicast(packet));
            }
            let due = self.publisher.poll(now, &mut |packet| out.multicast(packet));
            self.out.link.flush()?;
            if now >= self.tidy_at {
                self.tidy_at = now + SECONDS;
                self.shelf.tidy(wall)?;
                self.tell();
            }
            if finished && (!self.publisher.has_ended() || self.publisher.is_over(now)) {
                return Ok(());
            }
            if taken == 0 && asked == 0 {
                ends.bell.arm();
                if ends.lane.peek().is_none() && (finished || !ends.lane.is_finished()) {
                    let pause = Duration::from_nanos(due.min(self.tidy_at).saturating_sub(self.clock.now()));
                    self.out.link.wait(ends.bell.fd(), pause.min(LOOK))?;
                }
                ends.bell.disarm();
            }
        }
    }

    /// Publishes an entry of the lane.
    fn take(&mut self, entry: &[u8], now: Nanos, wall: Nanos) -> io::Result<()> {
        for part in parts(entry) {
            match part {
                Part::Block(_, block, ..) if block.count() == 0 => {}
                Part::Block(session, block, _, time) => self.publish(session, &block, time, now, wall)?,
                Part::End(session, next) => self.end(session, next, now)?,
            }
        }
        Ok(())
    }

    /// Keeps the messages of a block, then sends them.
    fn publish(&mut self, session: Session, block: &Block<'_>, time: u64, now: Nanos, wall: Nanos) -> io::Result<()> {
        if self.open.is_none_or(|(open, _)| open != session) {
            self.begin(session, block.first())?;
        }
        self.shelf.append(session, block, time, wall)?;
        let before = self.open.map_or(0, |(_, before)| before);
        let out = &mut self.out;
        for (seq, message) in block.messages() {
            let number = before + u64::from(seq.0);
            let pushed = self
                .publisher
                .push(now, number, message.payload, &mut |packet| out.multicast(packet));
            pushed.map_err(|why| refused(session, seq, message.payload.len(), why))?;
        }
        Ok(())
    }

    fn end(&mut self, session: Session, next: Seq, now: Nanos) -> io::Result<()> {
        // A session without messages, or one that began before the client did.
        if self.open.is_none_or(|(open, _)| open != session) {
            self.begin(session, next)?;
        }
        self.shelf.end_session(session, next)?;
        self.stream_ended = true;
        if !self.fixed {
            let out = &mut self.out;
            self.publisher
                .end(now, u64::from(next.0), &mut |packet| out.multicast(packet));
        }
        Ok(())
    }

    fn answer(&mut self, now: Nanos, from: SocketAddrV4, request: &[u8]) {
        if !self.answering {
            return;
        }
        if self
            .allow
            .as_ref()
            .is_some_and(|nets| !nets.iter().any(|net| net.contains(*from.ip())))
        {
            self.not_allowed += 1;
            return;
        }
        if let Some(answer) = self.answers.answer(now, *from.ip(), request, &self.shelf) {
            self.out.send(from, answer);
        }
    }

    /// Says in the report how things stand.
    fn tell(&mut self) {
        let (sent, asked) = (self.publisher.stats(), self.answers.stats());
        let (session, next) = match self.publisher.position() {
            Some((session, next)) => (session.to_string(), next),
            None => (String::new(), 0),
        };
        let told = MoldSinkReport {
            group: self.out.groups[0].map_or(String::new(), |g| g.to_string()),
            requests_at: self.out.link.local().to_string(),
            session,
            counts: MoldSinkCounts {
                next,
                messages: sent.messages,
                packets: sent.packets,
                heartbeats: sent.heartbeats,
                ends: sent.ends,
                dropped: self.out.dropped,
                requests: asked.requests + self.not_allowed,
                answers: asked.answers,
                answered_messages: asked.messages,
                absent: asked.absent,
                limited: asked.limited,
                not_allowed: self.not_allowed,
                malformed: asked.malformed,
            },
        };
        *self.report.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }
}

fn refused(session: Session, seq: Seq, length: usize, why: Refused) -> io::Error {
    let why = match why {
        Refused::TooLarge => format!("has {length} bytes, more than a packet carries: raise `packet` and the MTU"),
        Refused::Empty => "is empty, which in MoldUDP means the end of the session: use MoldUDP64".into(),
        Refused::Numbers => "has a number beyond those of MoldUDP: use MoldUDP64, or another `session`".into(),
        Refused::Full => "does not follow the one before it".into(),
    };
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("message {seq} of session {session} {why}"),
    )
}

fn wall() -> Nanos {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as Nanos)
}
