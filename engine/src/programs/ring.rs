//! The ring of a stream for the programs that receive it.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use seqcast_client::record::{self, BLOCK, BlockHead, EVENT, EventKind, HEAD, flags};
use seqcast_proto::io::{Application, Delivery, Event, Loss, Path};
use seqcast_proto::lines::LineChange;
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_ring::Broadcaster;

use super::SubscribeDesk;

/// Bytes of a slot beside those of a frame.
pub(super) const SLOT_MORE: usize = HEAD;

/// Writes what a client delivers into the ring, and waits for nobody.
pub(crate) struct RingWriter {
    ring: Broadcaster,
    desk: Arc<SubscribeDesk>,
    /// Something was written since the hub was last rung.
    written: bool,
}

impl RingWriter {
    pub(super) fn new(ring: Broadcaster, desk: Arc<SubscribeDesk>) -> RingWriter {
        RingWriter {
            ring,
            desk,
            written: false,
        }
    }

    pub(crate) fn desk(&self) -> &Arc<SubscribeDesk> {
        &self.desk
    }

    /// Has sleeping programs woken if something was written.
    #[inline]
    pub(crate) fn ring(&mut self) {
        if std::mem::take(&mut self.written) {
            self.desk.hub.ring();
        }
    }

    fn note(&mut self, session: Session) {
        if self.desk.session.load(Ordering::Relaxed) != session.0 {
            self.desk.session.store(session.0, Ordering::Release);
        }
        self.written = true;
    }
}

impl Application for RingWriter {
    #[inline]
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        let head = write_head(delivery);
        // Cannot fail: a slot takes what a frame takes.
        let _ = self.ring.publish_behind(BLOCK, &head.encode(), delivery.block.bytes());
        self.note(delivery.session);
        true
    }

    fn event(&mut self, event: Event) {
        let event = record_of(event);
        let _ = self.ring.publish(EVENT, &event.encode());
        if event.session != 0 {
            self.note(Session(event.session));
        }
        self.written = true;
    }
}

/// What is known of delivered messages, as programs see it.
#[inline]
pub(crate) fn write_head(delivery: &Delivery<'_>) -> BlockHead {
    BlockHead {
        session: delivery.session.0,
        first: delivery.block.first().0,
        count: delivery.block.count(),
        flags: match delivery.path {
            Path::Live => 0,
            Path::Archive => flags::REPAIRED,
            Path::Server => flags::REPAIRED | flags::FROM_SERVER,
        },
        time_ns: delivery.time,
    }
}

/// An event as programs see it.
pub(crate) fn record_of(event: Event) -> record::Event {
    let of = |kind, session: Session, first: Seq, last: Seq| record::Event {
        kind,
        session: session.0,
        first: first.0,
        last: last.0,
        detail: 0,
    };
    let range = |kind, session, range: SeqRange| of(kind, session, range.first, range.last);
    let none = Seq(0);
    match event {
        Event::Joined { session, next } => of(EventKind::Joined, session, next, none),
        Event::Gap { session, range: r } => range(EventKind::Gap, session, r),
        Event::Lost { session, range: r, why } => record::Event {
            detail: u32::from(why == Loss::Unanswered),
            ..range(EventKind::Lost, session, r)
        },
        Event::SessionEnded { session, end } => of(EventKind::SessionEnded, session, none, end.last),
        Event::SessionStarted { session } => of(EventKind::SessionStarted, session, none, none),
        Event::TailUnknown { session, from } => of(EventKind::TailUnknown, session, from, none),
        Event::DuplicateServer { session, .. } => of(EventKind::DuplicateServer, session, none, none),
        Event::Silent => record::Event::of(EventKind::Silent),
        Event::Heard => record::Event::of(EventKind::Heard),
        Event::Line(change) => {
            let (kind, line) = match change {
                LineChange::Silent(line) => (EventKind::LineSilent, line),
                LineChange::Heard(line) => (EventKind::LineHeard, line),
            };
            of(kind, Session::NONE, Seq(line as u32), none)
        }
    }
}
