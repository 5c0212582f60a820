//! Clients of their own for programs that have missed something: each gets all behind one message, from
//! archive and server, at its own pace.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use seqcast_client::record::{self, BLOCK, EVENT, EventKind, HEAD};
use seqcast_proto::client::{Client, ClientConfig, Start};
use seqcast_proto::io::{Application, Delivery, Event, Outbox};
use seqcast_proto::lines::Line;
use seqcast_proto::seq::{Seq, Session};
use seqcast_proto::time::{Nanos, Now};
use seqcast_proto::wire::{Kind, peek};
use seqcast_ring::Producer;

use super::outbox::{Buffers, LocalFrame};
use crate::programs::{Held, SubscribeDesk, record_of, write_head};

/// Frames that all of a stream's hold together.
const FRAMES: usize = 512;
/// Frames that one may hold.
const HOLD: u32 = 64;
/// Events that may wait for room.
const EVENTS: usize = 1024;

/// The programs of a stream that are catching up.
pub(super) struct CatchUps {
    desk: Arc<SubscribeDesk>,
    config: ClientConfig,
    max_frame: usize,
    active: Vec<CatchUp>,
    /// Taken when the first one comes.
    free: Buffers,
    /// Live frames only say how far the stream is: one a turn is enough.
    heard: bool,
}

struct CatchUp {
    client: Client<LocalFrame>,
    outlet: Outlet,
    fate: Held,
}

/// The lane to a program.
struct Outlet {
    lane: Producer,
    /// Events for which there was no room.
    events: VecDeque<record::Event>,
    written: bool,
}

impl CatchUps {
    /// For a stream whose own client is configured like this.
    pub(super) fn new(desk: Arc<SubscribeDesk>, config: ClientConfig, max_frame: usize) -> CatchUps {
        let config = ClientConfig {
            hold_frames: HOLD,
            window: config.window.min(1 << 14),
            ..config
        };
        CatchUps {
            desk,
            config,
            max_frame,
            active: Vec::new(),
            free: Rc::new(RefCell::new(Vec::new())),
            heard: false,
        }
    }

    #[inline]
    pub(super) fn has_news(&self) -> bool {
        self.desk.wanted.has_news()
    }

    #[inline]
    pub(super) fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    #[cold]
    fn renew(&mut self, now: Now) {
        for wanted in self.desk.wanted.take() {
            if self.free.borrow().is_empty() && self.active.is_empty() {
                let frame = || vec![0; self.max_frame].into_boxed_slice();
                *self.free.borrow_mut() = (0..FRAMES).map(|_| frame()).collect();
            }
            let config = ClientConfig {
                start: Start::After(Session(wanted.session), Seq(wanted.sequence)),
                ..self.config
            };
            self.active.push(CatchUp {
                client: Client::new(config, now.mono),
                outlet: Outlet {
                    lane: wanted.lane,
                    events: VecDeque::new(),
                    written: false,
                },
                fate: wanted.fate,
            });
        }
        self.active.retain(|one| !one.fate.0.gone.load(Ordering::Acquire));
    }

    /// Takes a copy of a frame of the stream.
    #[cold]
    pub(super) fn on_frame(&mut self, now: Now, line: Option<Line>, from: SocketAddrV4, bytes: &[u8]) {
        let is_data = peek(bytes).is_some_and(|(_, kind)| kind == Kind::Data);
        if is_data && std::mem::replace(&mut self.heard, true) {
            return;
        }
        for one in &mut self.active {
            let Some(frame) = LocalFrame::copy(&self.free, bytes) else {
                return;
            };
            match line {
                Some(line) => one.client.on_line_frame(now, line, from, frame, &mut one.outlet),
                None => one.client.on_frame(now, from, frame, &mut one.outlet),
            }
        }
    }

    /// One turn: when the next one is due.
    pub(super) fn turn(&mut self, now: Now, out: &mut impl Outbox) -> Nanos {
        if self.has_news() {
            self.renew(now);
        }
        self.heard = false;
        let mut due = Nanos::MAX;
        let mut written = false;
        for one in &mut self.active {
            one.outlet.put_events();
            due = due.min(one.client.poll(now, &mut one.outlet, out));
            written |= std::mem::take(&mut one.outlet.written);
        }
        // Too many losses for a program that does not read: it will ask again.
        self.active.retain(|one| one.outlet.events.len() < EVENTS);
        if written {
            self.desk.hub.ring();
        }
        due
    }
}

impl Outlet {
    fn put_events(&mut self) {
        while let Some(event) = self.events.front() {
            if self.lane.try_push(EVENT, &[&event.encode()]).is_err() {
                return;
            }
            self.written = true;
            self.events.pop_front();
        }
    }
}

impl Application for Outlet {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        self.put_events();
        if !self.events.is_empty() {
            return false;
        }
        let bytes = delivery.block.bytes();
        let Ok(mut entry) = self.lane.try_claim(HEAD + bytes.len()) else {
            return false;
        };
        let (head, rest) = entry.split_at_mut(HEAD);
        head.copy_from_slice(write_head(delivery).encode().as_flattened());
        rest.copy_from_slice(bytes);
        entry.set_tag(BLOCK);
        entry.commit();
        self.written = true;
        true
    }

    fn event(&mut self, event: Event) {
        let event = record_of(event);
        let tells = matches!(
            event.kind,
            EventKind::Lost | EventKind::SessionEnded | EventKind::SessionStarted | EventKind::TailUnknown
        );
        if tells {
            self.events.push_back(event);
            self.put_events();
        }
    }
}
