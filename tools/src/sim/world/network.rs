//! The network: what becomes of a frame between two parts.

use std::cmp::Reverse;
use std::net::SocketAddrV4;
use std::rc::Rc;

use seqcast_proto::lines::Line;
use seqcast_proto::time::{Nanos, SECONDS};
use seqcast_proto::wire::{Body, Frame, peek};

use super::parts::{Sent, out, unsealed};
use super::{GROUP_B, STREAM, World, addr_on, group};
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
}

impl World<'_> {
    /// Checks what was sent and gives it to the network.
    pub(super) fn dispatch(&mut self, sent: Vec<Sent>) {
        for frame in sent {
            let verdict = self.check_frame(&frame);
            self.judge(verdict);
            self.note(frame.from, || frame_text(frame.to, unsealed(&frame.bytes)));
            for at in 0..self.hosts.len() {
                let host = self.hosts[at];
                let way = Line::BOTH
                    .into_iter()
                    .find(|line| frame.to == group(*line) || frame.to == addr_on(host, *line));
                if let Some(line) = way
                    && host != frame.from
                    && self.listen(host).has(line)
                    && self.listen(frame.from).has(line)
                {
                    self.carry(&frame, host, line);
                }
            }
        }
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
    pub(super) fn miss(&mut self, bytes: &[u8]) {
        if let Ok(frame) = Frame::parse(unsealed(bytes))
            && let Body::Data(block) | Body::Repair(block) = frame.body
        {
            self.counts.missed += u64::from(block.count());
        }
    }

    pub(super) fn carry(&mut self, frame: &Sent, to: Host, line: Line) {
        self.counts.frames += 1;
        let net = &self.plan.net;
        let faulty = self.healed.is_none();
        let cut = self.cut.get(&(frame.from, to)).is_some_and(|n| *n > 0);
        let mut lost = cut || !self.is_up(to) || self.lines_down[line as usize] > 0;
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
            self.fly(frame, to, line, garbage);
        }
        if lost {
            self.counts.faults += 1;
            self.miss(&frame.bytes);
            if let Some(trace) = &mut self.trace {
                trace.lost(self.now - SECONDS, frame.from, to, unsealed(&frame.bytes));
            }
            return;
        }
        self.fly(frame, to, line, Rc::clone(&frame.bytes));
        if faulty && self.rng.below(10_000) < net.doubles {
            self.counts.faults += 1;
            self.fly(frame, to, line, Rc::clone(&frame.bytes));
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

    pub(super) fn fly(&mut self, sent: &Sent, to: Host, line: Line, bytes: Rc<[u8]>) {
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
        }));
    }

    pub(super) fn arrive(&mut self, frame: Flying) {
        let Flying {
            to,
            from,
            at_addr,
            bytes,
            ..
        } = frame;
        if !self.is_up(to) {
            self.miss(&bytes);
            return;
        }
        // As the engine hands frames on by stream.
        if peek(&bytes).is_none_or(|(stream, _)| stream != STREAM) {
            return;
        }
        let now = self.wall();
        // As the engine opens seals before it hands frames on.
        let len = match self.seals.get_mut(&to).map(|seal| seal.open(now.wall, &bytes)) {
            Some(Ok(len)) => len,
            Some(Err(_)) => {
                self.miss(&bytes);
                return;
            }
            None => bytes.len(),
        };
        let line = if at_addr == GROUP_B { Line::B } else { Line::A };
        let lines = self.plan.lines.filter(|_| self.listen(to) == Listen::Both);
        let mut sent = Vec::new();
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
                        self.miss(&bytes);
                    }
                }
                self.take_archive_deeds(usize::from(n));
            }
            Host::Client(n) => {
                let client = &mut self.clients[usize::from(n)];
                let data = match Frame::parse(&bytes[..len]).map(|f| (f.header.session(), f.body)) {
                    Ok((session, Body::Data(block))) => Some(((session, block.first()), block.count())),
                    _ => None,
                };
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
}
