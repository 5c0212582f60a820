//! What has gone over the wire of a lab, frame by frame, and what any of it must hold to.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use seqcast_proto::lines::Line;
use seqcast_proto::seq::{Seq, SeqRange};
use seqcast_proto::wire::{Body, Frame, Reason, flags};
use seqcast_tools::lab::{Seen, Tap};

use super::World;

/// All frames of a run, in order.
pub struct Wire(Vec<Seen>);

/// A NAK frame.
#[derive(Clone, Copy, Debug)]
pub struct Question {
    pub to: SocketAddrV4,
    /// From its first number to its last.
    pub range: SeqRange,
    pub asks_archive: bool,
    pub asks_server: bool,
}

/// A range of a REPAIR or an UNAVAILABLE.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    pub from: SocketAddrV4,
    pub to: SocketAddrV4,
    pub range: SeqRange,
    /// Why it was refused, if it was, and the milliseconds until asking again.
    pub refused: Option<(Reason, u16)>,
}

impl World {
    /// Taps the switch; on loopback there is none.
    pub fn tap(&self) -> Option<Tap> {
        (self.link == "xdp").then(|| self.lab.tap(Line::A).unwrap())
    }

    pub fn address(&self, host: &str) -> Ipv4Addr {
        self.lab.host(host).unwrap().address()
    }
}

impl Wire {
    /// Ends the tap. One identity never carries two messages, whatever the run was about.
    pub fn of(tap: Tap) -> Wire {
        let wire = Wire(tap.finish().unwrap());
        let mut messages = HashMap::new();
        for (seen, frame) in wire.frames() {
            let (Body::Data(block) | Body::Repair(block)) = frame.body else {
                continue;
            };
            let session = frame.header.session();
            for (seq, message) in block.messages() {
                let was = messages.insert((session, seq), message);
                assert!(
                    was.is_none_or(|was| was == message),
                    "message {seq} of session {session} was {was:?}, and comes from {} as {message:?}",
                    seen.from
                );
            }
        }
        wire
    }

    pub fn frames(&self) -> impl Iterator<Item = (&Seen, Frame<'_>)> {
        self.0
            .iter()
            .filter_map(|seen| Some((seen, Frame::parse(&seen.bytes).ok()?)))
    }

    /// The questions of a host, in order.
    pub fn questions(&self, from: Ipv4Addr) -> Vec<Question> {
        let sent = self.frames().filter(|(seen, _)| *seen.from.ip() == from);
        let questions = sent.filter_map(|(seen, frame)| {
            let Body::Nak(ranges) = frame.body else { return None };
            Some(Question {
                to: seen.to,
                range: SeqRange::new(
                    ranges.iter().map(|r| r.first).min()?,
                    ranges.iter().map(|r| r.last).max()?,
                )?,
                asks_archive: frame.header.has(flags::ASK_ARCHIVE),
                asks_server: frame.header.has(flags::ASK_SERVER),
            })
        });
        questions.collect()
    }

    /// What was answered to an address or group, in order.
    pub fn answers(&self, to: Ipv4Addr) -> Vec<Answer> {
        let mut answers = Vec::new();
        for (seen, frame) in self.frames().filter(|(seen, _)| *seen.to.ip() == to) {
            let answer = |range, refused| Answer {
                from: seen.from,
                to: seen.to,
                range,
                refused,
            };
            match frame.body {
                Body::Repair(block) => answers.extend(block.range().map(|r| answer(r, None))),
                Body::Unavailable(refusals) => {
                    answers.extend(
                        refusals
                            .iter()
                            .map(|(range, reason, ms)| answer(range, Some((reason, ms)))),
                    );
                }
                _ => {}
            }
        }
        answers
    }

    /// Bytes from the hosts `from` to `to`, with their IP and UDP headers.
    pub fn bytes(&self, from: &[Ipv4Addr], to: SocketAddrV4) -> usize {
        let sent = self.0.iter().filter(|s| from.contains(s.from.ip()) && s.to == to);
        sent.map(|s| s.bytes.len() + 28).sum()
    }
}

/// The ranges that a client has reported as lost on standard error, in order.
pub fn reported_lost(log: &str) -> Vec<SeqRange> {
    let reports = log
        .lines()
        .filter_map(|l| l.split_once("LOST messages ")?.1.split(' ').next());
    let number = |text: &str| Seq(text.parse().unwrap());
    let ranges = reports.map(|text| match text.split_once('-') {
        Some((first, last)) => SeqRange::new(number(first), number(last)),
        None => SeqRange::new(number(text), number(text)),
    });
    ranges.map(Option::unwrap).collect()
}
