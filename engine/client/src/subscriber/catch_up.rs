//! Getting what was missed from the archive, until it meets the ring.

use std::time::{Duration, Instant};

use seqcast_ring::{Consumer, Read};

use super::live::is_of_messages;
use super::{Position, Subscriber, Way};
use crate::error::Error;
use crate::protocol::Request;
use crate::record::{self, BlockHead, Event, EventKind};

/// Time between two questions for what was missed, when the engine is busy.
pub(super) const ASK_AGAIN: Duration = Duration::from_millis(50);

/// How far that is.
pub(super) enum CatchUp {
    /// The engine has been asked.
    Asked,
    /// It is to be asked again at this time.
    Later(Instant),
    /// What was missed comes here; a copy of the entry at hand.
    Running(Consumer, Vec<u8>),
}

impl Subscriber {
    /// Asks for what was missed from `next` on.
    pub(super) fn fetch(&mut self, next: Position, first: Option<Position>) {
        self.report(EventKind::CatchingUp, next, first);
        self.ask();
    }

    fn ask(&mut self) {
        let (Some(link), Some(next)) = (&self.link, self.next) else {
            return;
        };
        let request = Request::CatchUp {
            session: next.session,
            sequence: next.sequence - 1,
        };
        // A connection that is gone is noticed when the answer is looked for.
        let _ = link.socket.send(&request.encode(), &[]);
        self.catch_up = Some(CatchUp::Asked);
    }

    /// Reads on in what is being fetched.
    pub(super) fn load_missed(&mut self) -> Result<bool, Error> {
        // Who is level with the ring goes on there, also when what is fetched keeps up.
        if matches!(self.catch_up, Some(CatchUp::Running(..))) && self.go_live() {
            return Ok(true);
        }
        match &mut self.catch_up {
            None => Ok(false),
            Some(CatchUp::Asked) => self.look(false),
            Some(CatchUp::Later(then)) => {
                let due = Instant::now() >= *then;
                if due {
                    self.ask();
                }
                Ok(due)
            }
            Some(CatchUp::Running(lane, copy)) => {
                let Some(entry) = lane.peek() else {
                    let ended = lane.is_finished();
                    if ended {
                        self.ask();
                    }
                    return Ok(ended || self.go_live());
                };
                copy.clear();
                copy.extend_from_slice(entry.bytes);
                let is_block = entry.tag == record::BLOCK;
                lane.advance();
                if !is_block {
                    let event = Event::decode(copy).filter(|event| is_of_messages(event.kind));
                    event.into_iter().for_each(|event| self.on_event(event));
                } else if let Some((head, _)) = BlockHead::decode(copy)
                    && self.begin_block(Way::CatchUp, head)
                {
                    return Ok(true);
                }
                self.go_live();
                Ok(true)
            }
        }
    }

    /// Goes on with the ring if it has what comes next.
    fn go_live(&mut self) -> bool {
        let (Some(next), Some(link)) = (self.next, &mut self.link) else {
            return false;
        };
        loop {
            let head = match self.held {
                Some(head) => head,
                None => match link.ring.read() {
                    None => return false,
                    Some(Read::Message {
                        tag: record::BLOCK,
                        bytes,
                        ..
                    }) => {
                        let Some((head, _)) = BlockHead::decode(bytes) else {
                            continue;
                        };
                        self.held = Some(head);
                        head
                    }
                    // What it says about messages is said in its place by what is being fetched.
                    Some(Read::Message { bytes, .. }) => {
                        self.events
                            .extend(Event::decode(bytes).filter(|e| !is_of_messages(e.kind)));
                        continue;
                    }
                    Some(Read::Missed { .. }) => continue,
                },
            };
            let first = Position {
                session: head.session,
                sequence: head.first,
            };
            let last = Position {
                session: head.session,
                sequence: head.last(),
            };
            if last < next || link.ring.is_overrun() {
                // Delivered already; or what follows it is gone by now, and is fetched as well.
                self.held = None;
                continue;
            }
            if first > next {
                return false;
            }
            // A connection that is gone is noticed soon enough.
            let _ = link.socket.send(&Request::CaughtUp.encode(), &[]);
            self.held = None;
            self.catch_up = None;
            self.adrift = false;
            self.events.push_back(Event::of(EventKind::CaughtUp));
            self.begin_block(Way::Ring, head);
            return true;
        }
    }
}
