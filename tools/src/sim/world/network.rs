//! The network: what becomes of a frame between two parts.

use std::cmp::Reverse;
use std::net::SocketAddrV4;
use std::rc::Rc;

use seqcast_proto::lines::Line;
use seqcast_proto::time::{Nanos, SECONDS};
use seqcast_proto::wire::peek;

use super::parts::{Carries, Sent, out, unsealed};
use super::{BURST, GROUP_B, STREAM, World, addr_on, group};
use crate::sim::plan::{Host, Listen};
use crate::sim::trace::frame_text;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Flying {
    pub(super) at: Nanos,
    pub(super) number: u64,
    pub(super) to: Host,
    pub(super) from: SocketAddrV4,
    /// Where it was sent.
    pub(super) at_addr: SocketAddrV4,
    pub(super) bytes: Rc<[u8]>,
    pub(super) carries: Option<Carries>,
}

/// How much of what one part sends another comes through, lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Passage {
    since: Nanos,
    /// Frames sent, and those that came through: since then, and in the time before.
    now: [u32; 2],
    before: [u32; 2],
}

/// Two of these are the time after which a client gives up.
const LATELY: Nanos = 15 * SECONDS;

impl Passage {
    fn note(&mut self, now: Nanos, through: bool) {
        let age = now - self.since;
        if age >= LATELY {
            self.before = if age < 2 * LATELY { self.now } else { [0; 2] };
            self.now = [0; 2];
            self.since = now;
        }
        self.now[0] += 1;
        self.now[1] += u32::from(through);
    }

    /// The share that came through: all, if nothing was sent.
    fn share(&self, now: Nanos) -> f64 {
        match [0, 1].map(|i| f64::from(self.now[i] + self.before[i])) {
            [sent, through] if sent > 0.0 && now - self.since < 2 * LATELY => through / sent,
            _ => 1.0,
        }
    }
}

/// Whether one time in three at least a question gets from one to the other, and the answer back.
pub(super) fn can_talk(passages: &Passages, now: Nanos, one: Host, other: Host) -> bool {
    let [there, back] = [(one, other), (other, one)].map(|(a, b)| passages[a.index()][b.index()].share(now));
    there * back >= 1.0 / 3.0
}

/// From one part to another.
pub(super) type Passages = [[Passage; Host::MOST]; Host::MOST];

impl World<'_> {
    /// Checks what was sent and gives it to the network.
    pub(super) fn dispatch(&mut self, mut sent: Vec<Sent>) {
        for mut frame in sent.drain(..) {
            let verdict = self.check_frame(&mut frame);
            self.judge(verdict);
            self.note(frame.from, || frame_text(frame.to, unsealed(&frame.bytes)));
            let to_all = Line::BOTH.into_iter().find(|line| frame.to == group(*line));
            for at in 0..self.hosts.len() {
                let host = self.hosts[at];
                let to_one = || Line::BOTH.into_iter().find(|line| frame.to == addr_on(host, *line));
                if let Some(line) = to_all.or_else(to_one)
                    && host != frame.from
                    && self.listen(host).has(line)
                    && self.listen(frame.from).has(line)
                {
                    self.carry(&frame, host, line);
                }
            }
        }
        self.outbox = sent;
    }

    /// The lines that somebody is connected to.
    pub(super) fn listen(&self, host: Host) -> Listen {
        match (&self.plan.lines, host) {
            (None, _) => Listen::Only(Line::A),
            (Some(_), Host::Server) => Listen::Both,
            (Some(lines), Host::Archive(n)) => lines.archives[usize::from(n)],
            (Some(_), Host::Client(n)) => self.plan.clients[usize::from(n)].listen,
        }
    }

    /// Messages in a frame that somebody did not get.
    pub(super) fn miss(&mut self, carries: Option<Carries>) {
        self.counts.missed += carries.map_or(0, |c| u64::from(c.count));
    }

    pub(super) fn carry(&mut self, frame: &Sent, to: Host, line: Line) {
        self.counts.frames += 1;
        let net = &self.plan.net;
        let faulty = self.healed.is_none();
        let cut = self.cut[frame.from.index()][to.index()] > 0;
        let mut lost = cut || !self.is_up(to) || self.lines_down[line as usize] > 0;
        if faulty && !lost {
            let (left, until) = &mut self.bursts[to.index()];
            if *left > 0 && self.now < *until {
                *left -= 1;
                lost = true;
            } else if net.bursts > 0 && self.rng.below(10_000) < net.bursts {
                *left = self.rng.below(2 * net.burst_frames.max(1));
                *until = self.now + BURST;
                lost = true;
            }
            lost |= self.rng.below(10_000) < net.loss;
        }
        if faulty && self.rng.below(10_000) < net.garbage {
            lost = true;
            let garbage = self.garbage(&frame.bytes);
            self.fly(frame, to, line, garbage, None);
        }
        self.passages[frame.from.index()][to.index()].note(self.now, !lost);
        if lost {
            self.counts.faults += 1;
            self.miss(frame.carries);
            if let Some(trace) = &mut self.trace {
                trace.lost(self.now - SECONDS, frame.from, to, unsealed(&frame.bytes));
            }
            return;
        }
        self.fly(frame, to, line, Rc::clone(&frame.bytes), frame.carries);
        if faulty && self.rng.below(10_000) < net.doubles {
            self.counts.faults += 1;
            self.fly(frame, to, line, Rc::clone(&frame.bytes), frame.carries);
        }
    }

    /// What a damaged frame can look like that passes a checksum: cut short, or anything at all.
    pub(super) fn garbage(&mut self, frame: &[u8]) -> Rc<[u8]> {
        let len = self.rng.below(frame.len() as u64) as usize;
        let mut bytes = frame[..len].to_vec();
        if self.rng.below(2) == 0 {
            bytes.fill_with(|| self.rng.next_u64() as u8);
        }
        bytes.into()
    }

    pub(super) fn fly(&mut self, sent: &Sent, to: Host, line: Line, bytes: Rc<[u8]>, carries: Option<Carries>) {
        let net = &self.plan.net;
        let jitter = if self.healed.is_none() {
            self.rng.below(net.jitter + 1)
        } else {
            0
        };
        let lag = match (&self.plan.lines, line) {
            (Some(lines), Line::B) => lines.lag,
            _ => 0,
        };
        self.number += 1;
        self.flying.push(Reverse(Flying {
            at: self.now + net.delay + jitter + lag,
            number: self.number,
            to,
            from: addr_on(sent.from, line),
            at_addr: sent.to,
            bytes,
            carries,
        }));
    }

    pub(super) fn arrive(&mut self, frame: Flying) {
        let Flying {
            to,
            from,
            at_addr,
            bytes,
            carries,
            ..
        } = frame;
        if !self.is_up(to) {
            self.miss(carries);
            return;
        }
        // As the engine hands frames on by stream.
        if peek(&bytes).is_none_or(|(stream, _)| stream != STREAM) {
            return;
        }
        let now = self.wall();
        // As the engine opens seals before it hands frames on.
        let len = match self.seals[to.index()].as_mut().map(|seal| seal.open(now.wall, &bytes)) {
            Some(Ok(len)) => len,
            Some(Err(_)) => {
                self.miss(carries);
                return;
            }
            None => bytes.len(),
        };
        let line = if at_addr == GROUP_B { Line::B } else { Line::A };
        let lines = self.plan.lines.filter(|_| self.listen(to) == Listen::Both);
        let mut sent = std::mem::take(&mut self.outbox);
        let mut out = out!(self, to, &mut sent);
        match to {
            Host::Server => {
                let line = if at_addr == addr_on(to, Line::B) {
                    Line::B
                } else {
                    Line::A
                };
                if let Some(machine) = &mut self.server.machine {
                    machine.on_line_frame(now, line, from, &bytes[..len], &mut self.server.disk, &mut out);
                }
                self.take_server_deeds();
            }
            Host::Archive(n) => {
                let archive = &mut self.archives[usize::from(n)];
                if let Some(machine) = &mut archive.machine {
                    let before = machine.stats().full;
                    let disk = &mut archive.disk;
                    match lines {
                        Some(_) => machine.on_line_frame(now, line, from, &bytes[..len], disk, &mut out),
                        None => machine.on_frame(now, from, &bytes[..len], disk, &mut out),
                    }
                    if machine.stats().full > before {
                        // What a full disk turned away is asked for again.
                        self.miss(carries);
                    }
                }
                self.take_archive_deeds(usize::from(n));
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                if let Some(machine) = &mut client.machine {
                    let before = machine.stats();
                    match (client.frames.lend(bytes, len), lines) {
                        (Some(frame), Some(_)) => machine.on_line_frame(now, line, from, frame, &mut client.app),
                        (Some(frame), None) => machine.on_frame(now, from, frame, &mut client.app),
                        // `look_at` finds it.
                        (None, _) => {}
                    }
                    let after = machine.stats();
                    // Frames for which the client had no room are asked for again.
                    self.counts.missed += 64 * (after.overruns - before.overruns);
                    if let Some(Carries {
                        session,
                        first,
                        count,
                        repair: false,
                    }) = carries
                    {
                        let place = (session, first);
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
}
