//! The lanes of the programs that publish a stream, as one source.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use seqcast_proto::server::Source;
use seqcast_proto::wire::Message;
use seqcast_ring::Fill;

use super::{NewLane, PublishDesk};

/// Messages taken from a lane before it is the next one's turn.
const BURST: u32 = 64;

/// Takes messages of each lane in turn. Ends when its holder drops it: programs come and go.
pub(crate) struct Lanes {
    desk: Arc<PublishDesk>,
    lanes: Vec<NewLane>,
    /// The lane that is read, and how many more messages of it in a row.
    at: usize,
    left: u32,
    /// Lanes of programs that are gone are still being read.
    ending: bool,
}

impl Lanes {
    pub(super) fn new(desk: Arc<PublishDesk>) -> Lanes {
        Lanes {
            desk,
            lanes: Vec::new(),
            at: 0,
            left: BURST,
            ending: false,
        }
    }

    /// Looks at the desk: new lanes, and programs that are gone.
    #[cold]
    fn renew(&mut self) {
        self.lanes.append(&mut self.desk.lanes.take());
        self.ending = false;
        self.lanes.retain_mut(|lane| {
            if lane.fate.0.gone.load(Ordering::Acquire) {
                lane.lane.end_here();
                self.ending |= !lane.lane.is_finished();
            }
            if lane.lane.corruption().is_some() {
                lane.fate.0.broken.store(true, Ordering::Release);
            }
            !lane.lane.is_finished()
        });
        if self.at >= self.lanes.len() {
            self.at = 0;
        }
        // It waits for lanes that are done.
        self.desk.hub.ring();
    }

    /// Goes to a lane with a message. False when all are empty.
    #[inline]
    fn find(&mut self) -> bool {
        if self.desk.lanes.has_news() {
            self.renew();
        }
        if self.left > 0 && self.lanes.get_mut(self.at).is_some_and(has_message) {
            return true;
        }
        self.find_next()
    }

    fn find_next(&mut self) -> bool {
        let count = self.lanes.len();
        let mut broken = false;
        for step in 1..=count {
            let at = (self.at + step) % count;
            if has_message(&mut self.lanes[at]) {
                (self.at, self.left) = (at, BURST);
                return true;
            }
            broken |= self.lanes[at].lane.corruption().is_some();
        }
        if broken || self.ending {
            self.renew();
        }
        false
    }

    /// Gives back the room of what was taken.
    pub(crate) fn flush(&mut self) {
        for lane in &mut self.lanes {
            lane.lane.flush();
        }
        self.desk.hub.ring();
    }

    /// How full each lane is.
    pub(crate) fn fill(&self) -> impl Iterator<Item = Fill> {
        self.lanes.iter().map(|lane| lane.lane.fill())
    }

    /// Before and after the engine sleeps. Before it, the lanes must be looked at once more after this.
    pub(crate) fn set_asleep(&self, asleep: bool) {
        for lane in &self.lanes {
            lane.lane.set_asleep(asleep);
        }
        fence(Ordering::SeqCst);
    }
}

/// Whether a lane's oldest message can be published. What is none ends the lane.
#[inline]
fn has_message(lane: &mut NewLane) -> bool {
    match lane.lane.peek() {
        None => false,
        // The tag is the length of the subject in front of the payload.
        Some(entry) if entry.tag as usize <= entry.bytes.len().min(Message::MAX_SUBJECT) => true,
        Some(_) => {
            lane.lane.refuse();
            false
        }
    }
}

impl Source for Lanes {
    #[inline]
    fn peek(&mut self) -> Option<Message<'_>> {
        if !self.find() {
            return None;
        }
        let entry = self.lanes[self.at].lane.peek()?;
        let (subject, payload) = entry.bytes.split_at_checked(entry.tag as usize)?;
        Some(Message { subject, payload })
    }

    #[inline]
    fn advance(&mut self) {
        self.left = self.left.saturating_sub(1);
        if let Some(lane) = self.lanes.get_mut(self.at) {
            lane.lane.advance();
        }
    }
}
