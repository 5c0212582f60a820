//! Two links as one: line A and line B of redundant streams on interfaces of their own.
//!
//! A group belongs to one of the two, so that where a datagram was sent tells over which it came.
//! Unicast goes over B to who was heard there or is said to be there, otherwise over A. One that
//! fails leaves the other at work.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::wait::{poll, pollfd};
use super::{Datagram, Link, LinkStats};
use crate::log;

/// Peers on line B that are remembered; beyond, all are forgotten and learnt again.
const PEERS: usize = 1024;
/// A line that takes nothing for this long is not waited for while the other takes frames.
const STALLED: Duration = Duration::from_millis(10);

/// A [`Link`] over two.
pub struct Pair<L> {
    a: Side<L>,
    b: Side<L>,
    groups_b: Vec<SocketAddrV4>,
    peers_b: HashSet<SocketAddrV4>,
    /// The peer that was noted last.
    noted: Option<SocketAddrV4>,
    /// Where datagrams are built that no line takes.
    scratch: Box<[u8]>,
    polled: Vec<libc::pollfd>,
}

struct Side<L> {
    link: L,
    full_since: Option<Instant>,
    stalled: bool,
    /// Datagrams that were not sent because it was.
    given_up: u64,
    /// What ended it.
    failed: Option<io::Error>,
}

impl<L: Link> Side<L> {
    fn new(link: L) -> Side<L> {
        Side {
            link,
            full_since: None,
            stalled: false,
            given_up: 0,
            failed: None,
        }
    }

    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let sent = self.failed.is_none() && self.link.send(to, build);
        if sent {
            self.full_since = None;
            self.stalled = false;
        } else if !self.stalled {
            let since = *self.full_since.get_or_insert_with(Instant::now);
            self.stalled = self.failed.is_some() || since.elapsed() >= STALLED;
        }
        sent
    }

    /// Notes what a link said. An interface that is gone is left alone from then on.
    fn check<T>(&mut self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let mode = self.link.mode();
                tracing::error!(target: log::ENGINE, mode, "line {mode}: {error}; going on without it");
                self.failed = Some(error);
                None
            }
        }
    }
}

impl<L: Link> Pair<L> {
    /// Line B is used for the groups given, and line A for all others.
    pub fn new(a: L, b: L, groups_b: Vec<SocketAddrV4>) -> Pair<L> {
        let max = a.max_payload().min(b.max_payload());
        Pair {
            a: Side::new(a),
            b: Side::new(b),
            groups_b,
            peers_b: HashSet::with_capacity(2 * PEERS),
            noted: None,
            scratch: vec![0; max].into(),
            polled: Vec::with_capacity(16),
        }
    }

    fn is_b(&self, to: SocketAddrV4) -> bool {
        if to.ip().is_multicast() {
            self.groups_b.contains(&to)
        } else {
            self.peers_b.contains(&to)
        }
    }

    /// # Errors
    /// When neither line works any more.
    fn check(&self) -> io::Result<()> {
        match (&self.a.failed, &self.b.failed) {
            (Some(a), Some(_)) => Err(io::Error::new(a.kind(), format!("both lines have failed; line A: {a}"))),
            _ => Ok(()),
        }
    }
}

fn note(peers: &mut HashSet<SocketAddrV4>, peer: SocketAddrV4) {
    if peers.len() == PEERS && !peers.contains(&peer) {
        peers.clear();
    }
    peers.insert(peer);
}

impl<L: Link> Link for Pair<L> {
    type Frame = L::Frame;

    fn receive(&mut self, max: usize, mut each: impl FnMut(Datagram<L::Frame>)) -> io::Result<usize> {
        let mut received = 0;
        let (peers, noted, mine) = (&mut self.peers_b, &mut self.noted, self.a.link.local());
        if self.a.failed.is_none() {
            let result = self.a.link.receive(max, |datagram| {
                if datagram.to == mine && !peers.is_empty() && peers.remove(&datagram.from) {
                    *noted = None;
                }
                each(datagram);
            });
            received += self.a.check(result).unwrap_or(0);
        }
        if self.b.failed.is_none() {
            let result = self.b.link.receive(max, |datagram| {
                if *noted != Some(datagram.from) {
                    note(peers, datagram.from);
                    *noted = Some(datagram.from);
                }
                each(datagram);
            });
            received += self.b.check(result).unwrap_or(0);
        }
        Ok(received)
    }

    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let (side, other) = if self.is_b(to) {
            (&mut self.b, &self.a)
        } else {
            (&mut self.a, &self.b)
        };
        let mut build = Some(build);
        let sent = side.send(to, |buf| build.take().map_or(0, |build| build(buf)));
        // While the other carries the stream, a line that is down is only lost.
        if let Some(build) = build.filter(|_| !sent && side.stalled && !other.stalled) {
            side.given_up += 1;
            build(&mut self.scratch);
            return true;
        }
        sent
    }

    fn flush(&mut self) -> io::Result<()> {
        for side in [&mut self.a, &mut self.b] {
            if side.failed.is_none() {
                let result = side.link.flush();
                side.check(result);
            }
        }
        self.check()
    }

    fn join(&mut self, group: SocketAddrV4) -> io::Result<()> {
        if self.is_b(group) {
            self.b.link.join(group)
        } else {
            self.a.link.join(group)
        }
    }

    fn rejoin(&mut self, group: SocketAddrV4) -> io::Result<()> {
        let side = if self.is_b(group) { &mut self.b } else { &mut self.a };
        if side.failed.is_none() {
            let result = side.link.rejoin(group);
            side.check(result);
        }
        self.check()
    }

    fn wait(&mut self, wake: BorrowedFd<'_>, mut timeout: Duration) -> io::Result<()> {
        self.polled.clear();
        self.polled.push(pollfd(wake.as_raw_fd(), libc::POLLIN));
        for side in [&self.a, &self.b].into_iter().filter(|s| s.failed.is_none()) {
            timeout = timeout.min(side.link.watch(&mut self.polled));
        }
        if timeout.is_zero() {
            return Ok(());
        }
        poll(&mut self.polled, timeout)
    }

    fn max_payload(&self) -> usize {
        self.scratch.len()
    }

    fn local(&self) -> SocketAddrV4 {
        self.a.link.local()
    }

    fn mode(&self) -> String {
        format!("A: {}; B: {}", self.a.link.mode(), self.b.link.mode())
    }

    fn stats(&mut self) -> LinkStats {
        let mut stats = self.a.link.stats().plus(&self.b.link.stats());
        stats.send_failed += self.a.given_up + self.b.given_up;
        stats
    }

    fn local_b(&self) -> Option<SocketAddrV4> {
        Some(self.b.link.local())
    }

    fn is_over_b(&mut self, peer: SocketAddrV4) {
        note(&mut self.peers_b, peer);
    }
}
