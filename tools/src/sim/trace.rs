//! Who did what when, for people.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::net::SocketAddrV4;

use seqcast_proto::seq::SeqRange;
use seqcast_proto::time::{MICROS, Nanos};
use seqcast_proto::wire::{Body, Frame, flags};

use super::plan::Host;

/// The latest lines of a run.
#[derive(Clone, Debug)]
pub struct Trace {
    lines: VecDeque<String>,
    keep: usize,
    left_out: u64,
}

impl Trace {
    /// Keeps the latest `keep` lines.
    #[must_use]
    pub fn new(keep: usize) -> Trace {
        Trace {
            lines: VecDeque::new(),
            keep: keep.max(1),
            left_out: 0,
        }
    }

    pub(super) fn push(&mut self, at: Nanos, who: &str, what: String) {
        if self.lines.len() == self.keep {
            self.lines.pop_front();
            self.left_out += 1;
        }
        let micros = at as f64 / MICROS as f64;
        self.lines.push_back(format!("{micros:>14.3} us  {who:<9} {what}"));
    }

    pub(super) fn lost(&mut self, at: Nanos, from: Host, to: Host, bytes: &[u8]) {
        self.push(
            at,
            "",
            format!("  lost on the way from {from} to {to}: {}", body_text(bytes)),
        );
    }

    /// The lines, oldest first.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(String::as_str)
    }

    /// How many lines before them were left out.
    #[must_use]
    pub fn left_out(&self) -> u64 {
        self.left_out
    }
}

pub(super) fn frame_text(to: SocketAddrV4, bytes: &[u8]) -> String {
    let [_, net, _, n] = to.ip().octets();
    // On line B as on line A, see `addr_on`.
    let whom = match (to.ip().is_multicast(), net % 16) {
        (true, 2) => "all on B".into(),
        (true, _) => "all".into(),
        (_, 0) => Host::Server.to_string(),
        (_, 1) => Host::Archive(n.into()).to_string(),
        _ => Host::Client(n.into()).to_string(),
    };
    format!("-> {whom:<9} {}", body_text(bytes))
}

fn list(ranges: impl Iterator<Item = SeqRange>) -> String {
    let mut text = String::new();
    for (n, range) in ranges.enumerate() {
        if n == 6 {
            text += " ...";
            break;
        }
        let _ = write!(text, " {range}");
    }
    text
}

fn body_text(bytes: &[u8]) -> String {
    let Ok(frame) = Frame::parse(bytes) else {
        return format!("{} bytes that are no frame", bytes.len());
    };
    let session = frame.header.session();
    match frame.body {
        Body::Data(block) => format!("DATA {session}:{}", list(block.range().into_iter())),
        Body::Repair(block) => format!("REPAIR {session}:{}", list(block.range().into_iter())),
        Body::Heartbeat(body, endpoints) => format!(
            "HEARTBEAT {session} next {} previous {}:{} oldest {} acknowledged {} endpoints {}",
            frame.header.sequence(),
            body.previous_session,
            body.previous_last,
            body.oldest,
            body.acknowledged,
            endpoints.len()
        ),
        Body::Ack(ranges) => format!("ACK {session}:{}", list(ranges.iter())),
        Body::Nak(ranges) => {
            let whom = if frame.header.has(flags::ASK_SERVER) {
                "server"
            } else {
                "archive"
            };
            let question = frame.header.question();
            format!("NAK {question} to {whom} {session}:{}", list(ranges.iter()))
        }
        Body::Unavailable(refusals) => {
            let mut text = format!("UNAVAILABLE to {} {session}:", frame.header.question());
            for (range, reason, _) in refusals.iter() {
                let _ = write!(text, " {range} {reason:?}");
            }
            text
        }
        Body::End(body) => format!(
            "END to {} {session} next number {} next session {}",
            frame.header.question(),
            frame.header.sequence(),
            body.next_session
        ),
    }
}
