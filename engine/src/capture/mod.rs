//! Copies of what an engine sends and receives, for who attaches to watch: AF_XDP goes past every
//! place where the system's own tools look.
//!
//! The engine's thread copies frames into a lane for each watcher, and drops and counts those that find no
//! room: it never waits. Threads of their own hand lanes out to a Unix socket. With no watcher a
//! batch of received frames costs one look at a word, and a sent frame one at a flag.
//!
//! - [`request`]: what a watcher asks for.
//! - [`record`]: what it gets.
//! - [`Socket`]: where it attaches.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use seqcast_ring::{Doorbell, LaneError, Producer};

use crate::link::{Datagram, Link, LinkStats};

pub mod record;
pub mod request;
mod socket;

pub use socket::Socket;

use record::Head;
use request::Request;

/// Bytes of the lane to one watcher.
const LANE: usize = 8 << 20;
/// Watchers at a time.
pub const WATCHERS: usize = 4;

/// Where the engine's thread and those who attach watchers meet.
#[derive(Default)]
struct Exchange {
    /// Whether there is a watcher, or one waits: looked at for each batch.
    active: AtomicBool,
    waiting: Mutex<Vec<Watcher>>,
}

/// One that watches, as the engine's thread sees it.
struct Watcher {
    lane: Producer,
    bell: Arc<Doorbell>,
    request: Request,
    /// Frames wanted that found no room since the last one that did.
    dropped: u32,
}

impl Watcher {
    fn copy(&mut self, head: Head, bytes: &[u8]) {
        if !self.request.wants(bytes) {
            return;
        }
        let kept = &bytes[..bytes.len().min(self.request.snap as usize)];
        let head = Head {
            dropped: self.dropped,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            ..head
        };
        match self.lane.try_push(0, &[&head.to_bytes(), kept]) {
            Ok(()) => self.dropped = 0,
            Err(LaneError::Full | LaneError::TooLarge) => self.dropped = self.dropped.saturating_add(1),
        }
    }
}

/// A link whose frames can be watched.
pub struct Tapped<L> {
    link: L,
    exchange: Arc<Exchange>,
    /// As of the last batch received.
    watched: bool,
    watchers: Vec<Watcher>,
    local: SocketAddrV4,
}

impl<L: Link> Tapped<L> {
    /// The link as it was, but open to those who attach at `socket`; to nobody without one.
    pub fn new(link: L, socket: Option<&Socket>) -> Tapped<L> {
        Tapped {
            local: link.local(),
            link,
            exchange: socket.map(Socket::exchange).unwrap_or_default(),
            watched: false,
            watchers: Vec::with_capacity(WATCHERS),
        }
    }

    /// Lets new watchers in and those go that have left.
    #[cold]
    fn look_at_watchers(&mut self) {
        let mut waiting = self.exchange.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        self.watchers.append(&mut waiting);
        self.watchers.retain(|watcher| !watcher.lane.is_closed());
        self.watched = !self.watchers.is_empty();
        self.exchange.active.store(self.watched, Ordering::Relaxed);
    }

    #[inline(never)]
    fn receive_watched(&mut self, max: usize, mut each: impl FnMut(Datagram<L::Frame>)) -> io::Result<usize> {
        self.look_at_watchers();
        let (watchers, time) = (&mut self.watchers, wall());
        self.link.receive(max, |datagram| {
            let head = Head {
                from: datagram.from,
                to: datagram.to,
                ..Head::received(time)
            };
            for watcher in watchers.iter_mut() {
                watcher.copy(head, datagram.frame.as_ref());
            }
            each(datagram);
        })
    }

    #[inline(never)]
    fn send_watched(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let (watchers, local) = (&mut self.watchers, self.local);
        self.link.send(to, |buffer| {
            let length = build(buffer);
            let head = Head {
                from: local,
                to,
                ..Head::sent(wall())
            };
            for watcher in watchers.iter_mut().filter(|_| length > 0) {
                watcher.copy(head, &buffer[..length]);
            }
            length
        })
    }
}

impl<L: Link> Link for Tapped<L> {
    type Frame = L::Frame;

    #[inline]
    fn receive(&mut self, max: usize, each: impl FnMut(Datagram<L::Frame>)) -> io::Result<usize> {
        if self.exchange.active.load(Ordering::Relaxed) {
            return self.receive_watched(max, each);
        }
        self.link.receive(max, each)
    }

    #[inline]
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.watched {
            return self.send_watched(to, build);
        }
        self.link.send(to, build)
    }

    #[inline]
    fn flush(&mut self) -> io::Result<()> {
        if self.watched {
            self.watchers.iter().for_each(|watcher| watcher.bell.ring());
        }
        self.link.flush()
    }

    fn join(&mut self, group: SocketAddrV4) -> io::Result<()> {
        self.link.join(group)
    }

    fn rejoin(&mut self, group: SocketAddrV4) -> io::Result<()> {
        self.link.rejoin(group)
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, timeout: Duration) -> io::Result<()> {
        self.link.wait(wake, timeout)
    }

    fn max_payload(&self) -> usize {
        self.link.max_payload()
    }

    fn local(&self) -> SocketAddrV4 {
        self.local
    }

    fn mode(&self) -> String {
        self.link.mode()
    }

    fn stats(&mut self) -> LinkStats {
        self.link.stats()
    }

    fn watch(&self, fds: &mut Vec<libc::pollfd>) -> Duration {
        self.link.watch(fds)
    }

    fn local_b(&self) -> Option<SocketAddrV4> {
        self.link.local_b()
    }

    fn is_over_b(&mut self, peer: SocketAddrV4) {
        self.link.is_over_b(peer);
    }
}

fn wall() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}
