//! What a run consists of: servers, archives and clients with their disks and applications.

use std::net::SocketAddrV4;
use std::ops::Range;
use std::rc::Rc;

use seqcast_engine::node::store::{Recorder, Retention};
use seqcast_proto::archiver::Archiver;
use seqcast_proto::client::Client;
use seqcast_proto::io::{Application, Delivery, Event, Outbox};
use seqcast_proto::rng::Rng;
use seqcast_proto::seal::{Seal, TRAILER, is_keyed};
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::server::{Server, Source};
use seqcast_proto::time::Nanos;
use seqcast_proto::wire::{HEADER, Message};

use super::frames::{Frames, Lent};
use super::{FRAME, GROUP, GROUP_B};
use crate::sim::disk::{Disk, Stop};
use crate::sim::oracle::{Promises, View};
use crate::sim::plan::{ClientPlan, Host};

pub(super) struct Sent {
    pub(super) from: Host,
    pub(super) to: SocketAddrV4,
    pub(super) bytes: Rc<[u8]>,
    /// What it carries, once looked at.
    pub(super) carries: Option<Carries>,
}

/// The messages in a frame.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Carries {
    pub(super) session: Session,
    pub(super) first: Seq,
    pub(super) count: u16,
    pub(super) repair: bool,
}

/// A frame without its seal, whoever sealed it.
pub(super) fn unsealed(bytes: &[u8]) -> &[u8] {
    let sealed = is_keyed(bytes) && bytes.len() >= HEADER + TRAILER;
    &bytes[..bytes.len() - if sealed { TRAILER } else { 0 }]
}

pub(super) struct Out<'a> {
    pub(super) from: Host,
    pub(super) sent: &'a mut Vec<Sent>,
    pub(super) rng: &'a mut Rng,
    pub(super) no_buffer: u64,
    pub(super) faults: &'a mut u64,
    /// With the time, if there is a key.
    pub(super) seal: Option<(&'a mut Seal, Nanos)>,
    /// What goes to line A's group goes to line B's as well, with a seal of its own.
    pub(super) mirrors: bool,
}

impl Outbox for Out<'_> {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        if self.no_buffer > 0 && self.rng.below(10_000) < self.no_buffer {
            *self.faults += 1;
            return false;
        }
        // Not zeroed: nothing may rely on what is in a buffer.
        let mut bytes = [0xaa; FRAME];
        let len = build(&mut bytes);
        if len > 0 {
            self.put(to, &mut bytes, len);
            if self.mirrors && to == GROUP {
                self.put(GROUP_B, &mut bytes, len);
            }
        }
        true
    }

    fn max_frame(&self) -> usize {
        FRAME - if self.seal.is_some() { TRAILER } else { 0 }
    }
}

impl Out<'_> {
    fn put(&mut self, to: SocketAddrV4, bytes: &mut [u8], len: usize) {
        let len = match &mut self.seal {
            Some((seal, wall)) => seal.seal(*wall, bytes, len),
            None => len,
        };
        self.sent.push(Sent {
            from: self.from,
            to,
            bytes: bytes[..len].into(),
            carries: None,
        });
    }
}

/// The file that the server publishes. Each run of the server leaves its mark in what it sends, so
/// that the same number used twice shows.
pub(super) struct File {
    pub(super) next: u64,
    pub(super) until: u64,
    pub(super) run: u32,
    pub(super) longest: u64,
    pub(super) buf: Vec<u8>,
}

impl Source for File {
    fn peek(&mut self) -> Option<Message<'_>> {
        if self.next >= self.until {
            return None;
        }
        self.buf.clear();
        self.buf.extend_from_slice(&self.next.to_le_bytes());
        self.buf.extend_from_slice(&self.run.to_le_bytes());
        let len = 12 + (self.next * 31 % self.longest.max(1)) as usize;
        self.buf.resize(len, self.next as u8);
        Some(Message {
            subject: b"",
            payload: &self.buf,
        })
    }

    fn advance(&mut self) {
        self.next += 1;
    }
}

pub(super) struct ServerHost {
    pub(super) machine: Option<Server>,
    pub(super) disk: Disk<Retention>,
    pub(super) file: File,
    pub(super) turn: Nanos,
    pub(super) runs: u32,
    pub(super) closed: bool,
    /// Since it was up last.
    pub(super) lost_power: bool,
}

pub(super) struct ArchiveHost {
    pub(super) machine: Option<Archiver>,
    pub(super) disk: Disk<Recorder>,
    pub(super) promises: Promises,
    /// How it ended since it was up last; the worst of all.
    pub(super) stopped: Option<Stop>,
    pub(super) turn: Nanos,
    pub(super) synced_at: Nanos,
    pub(super) stored: u64,
}

pub(super) struct App {
    pub(super) stuck: bool,
    pub(super) got: Vec<Got>,
    /// The payloads of all messages in `got`.
    pub(super) payloads: Vec<u8>,
}

pub(super) enum Got {
    /// With its place in the payloads.
    Message(Session, Seq, Range<usize>),
    Event(Event),
}

impl App {
    pub(super) fn clear(&mut self) {
        self.got.clear();
        self.payloads.clear();
    }
}

impl Application for App {
    fn deliver(&mut self, d: &Delivery<'_>) -> bool {
        if !self.stuck {
            for (seq, message) in d.block.messages() {
                let start = self.payloads.len();
                self.payloads.extend_from_slice(message.payload);
                let place = start..self.payloads.len();
                self.got.push(Got::Message(d.session, seq, place));
            }
        }
        !self.stuck
    }

    fn event(&mut self, event: Event) {
        self.got.push(Got::Event(event));
    }
}

pub(super) struct ClientHost {
    pub(super) machine: Option<Client<Lent>>,
    pub(super) plan: ClientPlan,
    pub(super) app: App,
    pub(super) view: View,
    pub(super) frames: Frames,
    pub(super) turn: Nanos,
    pub(super) joined: bool,
    pub(super) runs: u32,
    /// The highest number seen, so that what comes out of order is known.
    pub(super) seen: (Session, Seq),
}

/// What a part sends with; each field of the world is lent by itself.
macro_rules! out {
    ($world:expr, $from:expr, $sent:expr) => {
        $crate::sim::world::parts::Out {
            from: $from,
            sent: $sent,
            rng: &mut $world.rng,
            no_buffer: match $world.healed {
                Some(_) => 0,
                None => $world.plan.net.no_buffer,
            },
            faults: &mut $world.counts.faults,
            seal: $world.seals[$from.index()]
                .as_mut()
                .map(|seal| (seal, $crate::sim::world::WALL + $world.now)),
            mirrors: $world.plan.lines.is_some() && !matches!($from, Host::Client(_)),
        }
    };
}
pub(super) use out;
