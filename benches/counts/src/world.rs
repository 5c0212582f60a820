//! What surrounds the state machines: stores and links that do the least.

use std::net::SocketAddrV4;

use seqcast_proto::io::{
    Application, ArchiveStore, Delivery, End, Event, Lookup, Outbox, Record, Refused, ServerStore, Store,
};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::server::Source;
use seqcast_proto::time::Nanos;
use seqcast_proto::wire::{Block, Message, Reason};

pub(crate) const FRAME: usize = 1472;

/// Blocks of one session, one behind the other.
#[derive(Default)]
pub(crate) struct Blocks {
    bytes: Vec<u8>,
    /// First number, count, time, place in `bytes`; ascending.
    records: Vec<(u32, u16, Nanos, usize)>,
    end: Option<End>,
}

impl Blocks {
    pub(crate) fn with_room(records: usize) -> Blocks {
        Blocks {
            bytes: Vec::with_capacity(records * FRAME),
            records: Vec::with_capacity(records),
            end: None,
        }
    }

    fn put(&mut self, record: &Record<'_>) {
        let (first, count) = (record.block.first().0, record.block.count());
        self.records.push((first, count, record.time, self.bytes.len()));
        self.bytes.extend_from_slice(record.block.bytes());
    }
}

impl Store for Blocks {
    fn look_up(&self, _session: Session, seq: Seq) -> Lookup<'_> {
        let at = self.records.partition_point(|record| record.0 <= seq.0);
        let Some(&(first, count, time, from)) = at.checked_sub(1).and_then(|at| self.records.get(at)) else {
            return Lookup::Absent(Reason::NotYet, seq);
        };
        let to = self.records.get(at).map_or(self.bytes.len(), |record| record.3);
        let block = Block::trusted(Seq(first), count, &self.bytes[from..to]);
        Lookup::Found(Record { block, time })
    }
    fn end_of(&self, _session: Session) -> Option<End> {
        self.end
    }
    fn previous_of(&self, _session: Session) -> Session {
        Session::NONE
    }
    fn session_after(&self, _session: Session) -> Session {
        Session::NONE
    }
}

impl ServerStore for Blocks {
    fn has_room(&mut self, _bytes: usize) -> bool {
        true
    }
    fn append(&mut self, _session: Session, record: &Record<'_>) -> Result<(), Refused> {
        self.put(record);
        Ok(())
    }
    fn open_session(&mut self, _session: Session, _previous: Session) -> Result<(), Refused> {
        Ok(())
    }
    fn close_session(&mut self, _session: Session, end: End) -> Result<(), Refused> {
        self.end = Some(end);
        Ok(())
    }
    fn release_below(&mut self, _session: Session, _seq: Seq) {}
    fn drop_session(&mut self, _session: Session) {}
    fn oldest(&self, _session: Session) -> Seq {
        Seq(1)
    }
}

impl ArchiveStore for Blocks {
    fn append(&mut self, _session: Session, record: &Record<'_>, _received: Nanos) -> Result<(), Refused> {
        self.put(record);
        Ok(())
    }
    fn open_session(&mut self, _session: Session, _previous: Session, _origin: u32) -> Result<(), Refused> {
        Ok(())
    }
    fn close_session(&mut self, _session: Session, end: End) -> Result<(), Refused> {
        self.end = Some(end);
        Ok(())
    }
    fn mark_lost(&mut self, _session: Session, _range: SeqRange) -> Result<(), Refused> {
        Ok(())
    }
    fn stored(&mut self, _session: Session, _synced: bool, _each: &mut dyn FnMut(SeqRange)) {}
    fn lost(&self, _session: Session, _each: &mut dyn FnMut(SeqRange)) {}
    fn sessions(&self, _each: &mut dyn FnMut(Session)) {}
}

/// A link that keeps the frames if they are wanted.
pub(crate) struct Frames {
    buffer: Box<[u8]>,
    pub(crate) sent: u64,
    pub(crate) kept: Option<Vec<Box<[u8]>>>,
}

impl Frames {
    pub(crate) fn new(keep: bool) -> Frames {
        Frames {
            buffer: vec![0; FRAME].into(),
            sent: 0,
            kept: keep.then(Vec::new),
        }
    }
}

impl Outbox for Frames {
    fn send(&mut self, _to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let len = build(&mut self.buffer);
        self.sent += u64::from(len > 0);
        if let Some(kept) = self.kept.as_mut().filter(|_| len > 0) {
            kept.push(self.buffer[..len].into());
        }
        true
    }
    fn max_frame(&self) -> usize {
        FRAME
    }
}

/// So many messages of 64 bytes.
pub(crate) struct Messages {
    pub(crate) left: u32,
    pub(crate) message: [u8; 64],
}

impl Source for Messages {
    fn peek(&mut self) -> Option<Message<'_>> {
        (self.left > 0).then_some(Message {
            subject: b"",
            payload: &self.message,
        })
    }
    fn advance(&mut self) {
        self.left -= 1;
    }
}

/// Counts what it gets.
#[derive(Default)]
pub(crate) struct Counter(pub(crate) u64);

impl Application for Counter {
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool {
        self.0 += delivery
            .block
            .messages()
            .map(|(_, message)| u64::from(message.payload[0]))
            .sum::<u64>();
        true
    }
    fn event(&mut self, _event: Event) {}
}
