//! Reading on in the ring, block by block and event by event.

use seqcast_ring::Read;

use super::{Current, From, Position, Subscriber, Way, entry, message_at};
use crate::record::{self, BlockHead, Event, EventKind, HEAD};

impl Subscriber {
    /// Reads on in the ring.
    pub(super) fn load_live(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        match link.ring.read() {
            None => return false,
            Some(Read::Missed { .. }) => self.adrift = true,
            Some(Read::Message {
                tag: record::BLOCK,
                bytes,
                ..
            }) => {
                let Some((head, _)) = BlockHead::decode(bytes) else {
                    return true;
                };
                let first = Position {
                    session: head.session,
                    sequence: head.first,
                };
                self.adrift = false;
                let next = self.arrive_at(first);
                if next >= first {
                    self.begin_block(Way::Ring, head);
                } else if self.recover {
                    self.held = Some(head);
                    self.fetch(next, Some(first));
                } else {
                    self.miss(next, first);
                    self.begin_block(Way::Ring, head);
                }
            }
            Some(Read::Message { bytes, .. }) => {
                if let Some(event) = Event::decode(bytes) {
                    self.on_live_event(event);
                }
            }
        }
        true
    }

    /// The first message that can be had is `first`; which one is wanted?
    fn arrive_at(&mut self, first: Position) -> Position {
        *self.next.get_or_insert_with(|| {
            self.events.push_back(Event {
                session: first.session,
                first: first.sequence,
                ..Event::of(EventKind::Joined)
            });
            match self.from {
                From::Session => Position { sequence: 1, ..first },
                From::Now | From::After(_) => first,
            }
        })
    }

    fn on_live_event(&mut self, event: Event) {
        match event.kind {
            EventKind::Joined => {
                let first = Position {
                    session: event.session,
                    sequence: event.first,
                };
                self.adrift = false;
                let next = self.arrive_at(first);
                if next < first && self.recover {
                    self.fetch(next, Some(first));
                } else if next < first {
                    self.miss(next, first);
                }
            }
            // What it says about messages is said again, or found out, behind the next block.
            _ if self.adrift && is_of_messages(event.kind) => {}
            _ => self.on_event(event),
        }
    }

    /// An event in its place.
    pub(super) fn on_event(&mut self, event: Event) {
        match event.kind {
            EventKind::Lost => {
                self.next = Some(Position {
                    session: event.session,
                    sequence: event.last.saturating_add(1),
                });
            }
            EventKind::SessionStarted => {
                self.next = Some(Position {
                    session: event.session,
                    sequence: 1,
                });
            }
            _ => {}
        }
        self.events.push_back(event);
    }

    /// Hands out what of a block was not handed out before.
    pub(super) fn begin_block(&mut self, way: Way, head: BlockHead) -> bool {
        let first = Position {
            session: head.session,
            sequence: head.first,
        };
        let next = self.next.unwrap_or(first).max(first);
        if next.session > head.session || next.sequence > head.last() {
            return false;
        }
        self.next = Some(next);
        let mut current = Current {
            way,
            head,
            sequence: head.first,
            left: head.count,
            offset: HEAD,
        };
        let entry = entry(self.link.as_ref(), self.catch_up.as_ref(), way);
        while current.sequence < next.sequence
            && let Some(message) = entry.and_then(|entry| message_at(entry, &current))
        {
            current.offset += message.encoded_len();
            current.left -= 1;
            current.sequence += 1;
        }
        self.current = Some(current);
        true
    }

    /// Reports what was missed, for good.
    fn miss(&mut self, next: Position, first: Position) {
        self.report(EventKind::Missed, next, Some(first));
        self.next = Some(first);
    }

    /// Says what lies from `next` up to before `first`.
    pub(super) fn report(&mut self, kind: EventKind, next: Position, first: Option<Position>) {
        let within = first.filter(|first| first.session == next.session);
        self.events.push_back(Event {
            session: next.session,
            first: next.sequence,
            last: within.map_or(0, |first| first.sequence - 1),
            ..Event::of(kind)
        });
        let Some(first) = first.filter(|first| first.session != next.session && kind == EventKind::Missed) else {
            return;
        };
        if first.sequence > 1 {
            self.events.push_back(Event {
                session: first.session,
                first: 1,
                last: first.sequence - 1,
                ..Event::of(kind)
            });
        }
        self.events.push_back(Event {
            session: first.session,
            ..Event::of(EventKind::SessionStarted)
        });
    }
}

/// Whether an event says something about messages, so that it is true in one place only.
pub(super) fn is_of_messages(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Lost | EventKind::SessionEnded | EventKind::SessionStarted | EventKind::TailUnknown
    )
}
