//! Subscribes to a feed and hands its messages to a server.

use std::io;
use std::net::SocketAddrV4;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use seqcast_mold::SessionName;
use seqcast_mold::packet::Request;
use seqcast_mold::subscriber::{Event, Reader, Start, Subscriber, SubscriberConfig};
use seqcast_proto::time::{MICROS, MILLIS};
use seqcast_ring::Doorbell;

use super::map::{Map, Place};
use super::{Clock, Opening, Run, receive, with_link};
use crate::config::{AtEnd, From, MoldSource, OnLoss};
use crate::link::udp::UdpConfig;
use crate::link::{Fault, Link};
use crate::log;
use crate::report::{MoldSourceCounts, MoldSourceReport};

/// How long the thread sleeps at most.
const LOOK: Duration = Duration::from_millis(50);

/// Takes the messages of a feed; false when the source shall stop.
pub(crate) type Offer<'a> = dyn FnMut(u64, &[u8]) -> io::Result<bool> + 'a;

/// What a subscription to a feed is started with.
pub(crate) struct Subscription<'a> {
    pub(crate) config: &'a MoldSource,
    pub(crate) at_end: AtEnd,
    /// Messages that the server's log has ever taken.
    pub(crate) published: u64,
    pub(crate) stop: &'a AtomicBool,
    /// What the thread sleeps at.
    pub(crate) bell: &'a Doorbell,
    pub(crate) report: Arc<Mutex<MoldSourceReport>>,
    /// Called once when the groups are joined.
    pub(crate) opened: &'a mut dyn FnMut(),
    pub(crate) offer: &'a mut Offer<'a>,
}

impl Subscription<'_> {
    /// Receives until the feed has ended, if that ends the source, or until it shall stop.
    pub(crate) fn run(self) -> io::Result<()> {
        let config = self.config;
        let opening = Opening {
            interface: &config.interface,
            interface_b: config.interface_b.as_deref(),
            group_b: config.group_b,
            udp: UdpConfig {
                receive_buffer: config.receive_buffer,
                fault: Fault::from(config.fault),
                ..UdpConfig::default()
            },
        };
        with_link(&opening, self)
    }
}

impl Run for Subscription<'_> {
    fn run<L: Link>(self, mut link: L) -> io::Result<()> {
        let config = self.config;
        let groups = [Some(config.group), config.group_b];
        for group in groups.into_iter().flatten() {
            link.join(group)?;
        }
        let (map, place) = match &config.map {
            Some(path) => {
                let (map, place) = Map::open(path, self.published)?;
                (Some(map), place)
            }
            None => (None, None),
        };
        let start = match (place, config.from) {
            (
                Some(Place {
                    session, ended: true, ..
                }),
                _,
            ) => Start::After(session),
            (Some(place), _) => Start::At(place.session, place.number),
            (None, From::Now) => Start::Now,
            (None, From::Session) => Start::First,
        };
        let clock = Clock::start();
        let subscriber = SubscriberConfig {
            variant: config.variant.into(),
            session: config.session,
            start,
            servers: config.requests.len(),
            skew: config.skew_us * MICROS,
            give_up: config.give_up_ms * MILLIS,
            hold: usize::try_from(config.hold.0).unwrap_or(usize::MAX),
            silence: config.silence_ms * MILLIS,
            lines: groups.into_iter().flatten().count(),
        };
        let mut subscriber = Subscriber::new(subscriber, clock.now());
        let mut taker = Taker {
            group: config.group,
            on_loss: config.on_loss,
            map,
            expected: place.filter(|p| !p.ended).map(|p| (p.session, p.number)),
            count: self.published,
            ended: false,
            running: true,
            failed: None,
            questions: Vec::new(),
            offer: self.offer,
        };
        let mut unasked = 0;
        let mut arrived = Vec::with_capacity(super::BATCH);
        (self.opened)();
        loop {
            let now = clock.now();
            let received = receive(&mut link, &mut arrived)?;
            for datagram in arrived.drain(..) {
                let bytes = datagram.frame.as_ref();
                match groups.iter().position(|group| *group == Some(datagram.to)) {
                    Some(line) => subscriber.on_packet(now, line, bytes, &mut taker),
                    None if config.requests.contains(&datagram.from) => subscriber.on_answer(now, bytes, &mut taker),
                    None => unasked += 1,
                }
            }
            let due = subscriber.poll(now, &mut taker);
            for (server, request) in taker.questions.drain(..) {
                // One that finds no room is asked again.
                link.send(config.requests[server], |buffer| {
                    request.write(config.variant.into(), buffer)
                });
            }
            link.flush()?;
            let over = taker.ended && self.at_end == AtEnd::Close;
            let running = taker.running && !over && !self.stop.load(Ordering::Relaxed);
            if received == 0 || !running {
                let dropped = link.stats().receive_dropped;
                let report = describe(config.group, &subscriber, unasked, dropped);
                *self.report.lock().unwrap_or_else(PoisonError::into_inner) = report;
            }
            if let Some(error) = taker.failed.take() {
                return Err(error);
            }
            if !running {
                return Ok(());
            }
            if received == 0 {
                self.bell.arm();
                if !self.stop.load(Ordering::Relaxed) {
                    let pause = Duration::from_nanos(due.saturating_sub(clock.now()));
                    link.wait(self.bell.fd(), pause.min(LOOK))?;
                }
                self.bell.disarm();
            }
        }
    }
}

/// Takes what the subscriber has put in order.
struct Taker<'a> {
    group: SocketAddrV4,
    on_loss: OnLoss,
    map: Option<Map>,
    /// The message that would be taken without a further line in the map.
    expected: Option<(SessionName, u64)>,
    /// Messages handed on, those of earlier runs included.
    count: u64,
    ended: bool,
    running: bool,
    failed: Option<io::Error>,
    questions: Vec<(usize, Request)>,
    offer: &'a mut Offer<'a>,
}

impl Taker<'_> {
    fn note(&mut self, place: Place) {
        if let Some(map) = &mut self.map
            && let Err(error) = map.note(self.count, place)
        {
            self.failed.get_or_insert(error);
        }
    }
}

impl Reader for Taker<'_> {
    fn deliver(&mut self, session: &SessionName, number: u64, message: &[u8]) {
        if !self.running || self.failed.is_some() {
            return;
        }
        if self.expected != Some((*session, number)) {
            self.note(Place {
                session: *session,
                number,
                ended: false,
            });
        }
        self.expected = Some((*session, number + 1));
        if self.failed.is_some() {
            return;
        }
        match (self.offer)(number, message) {
            Ok(taken) => {
                self.count += u64::from(taken);
                self.running &= taken;
            }
            Err(error) => self.failed = Some(error),
        }
    }

    fn event(&mut self, event: Event) {
        let group = self.group;
        macro_rules! say {
            ($level:ident, $($fields_and_text:tt)*) => {
                tracing::$level!(target: log::FEED, feed = %group, $($fields_and_text)*)
            };
        }
        match event {
            Event::Began(session, next) => {
                say!(info, session = %session, first = next, "feed {group}: session {session} from message {next} on");
            }
            Event::Lost(session, first, last) => {
                let text =
                    format!("LOST messages {first} to {last} of session {session}: no re-request server has them");
                tracing::error!(
                    target: log::FEED_LOST, feed = %group, session = %session, first, last, "feed {group}: {text}"
                );
                if self.on_loss == OnLoss::Stop {
                    self.failed.get_or_insert_with(|| io::Error::other(text));
                }
            }
            Event::Ended(session, next) => {
                self.ended = true;
                self.note(Place {
                    session,
                    number: next,
                    ended: true,
                });
                say!(info, session = %session, "feed {group}: session {session} ended in front of message {next}");
            }
            Event::TailUnknown(session, next) => say!(
                warn,
                session = %session,
                first = next,
                "feed {group}: session {session} was followed by another; nobody knows whether it had messages from {next} on"
            ),
            Event::Silent(line) => say!(warn, "feed {group}: line {} is SILENT", ['A', 'B'][line]),
            Event::Heard(line) => say!(info, "feed {group}: line {} is heard again", ['A', 'B'][line]),
        }
    }

    fn ask(&mut self, server: usize, request: &Request) {
        self.questions.push((server, *request));
    }
}

fn describe(group: SocketAddrV4, subscriber: &Subscriber, unasked: u64, receive_dropped: u64) -> MoldSourceReport {
    let stats = subscriber.stats();
    let (session, next) = match subscriber.position() {
        Some((session, next)) => (session.to_string(), next),
        None => (String::new(), 0),
    };
    let [packets_a, packets_b] = stats.packets;
    MoldSourceReport {
        group: group.to_string(),
        session,
        counts: MoldSourceCounts {
            next,
            packets_a,
            packets_b,
            messages: stats.messages,
            repaired: stats.repaired,
            duplicates: stats.duplicates,
            gaps: stats.gaps,
            lost: stats.lost,
            requests: stats.requests,
            unanswered: stats.unanswered,
            overruns: stats.overruns,
            malformed: stats.malformed,
            foreign: stats.foreign,
            unasked,
            round_trip_ns: stats.round_trip,
            receive_dropped,
        },
    }
}
