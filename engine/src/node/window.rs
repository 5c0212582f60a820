//! What a server without a state directory keeps: the latest frames, in memory.

use std::collections::VecDeque;
use std::io;

use seqcast_proto::io::{End, Lookup, Record, Refused, ServerStore, Store};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::time::Nanos;
use seqcast_proto::wire::{Block, Reason};

use memory::{LINE, Memory, Way};

mod memory;

/// Bytes of memory for each frame that can be kept, on average; smaller frames leave room unused.
const BYTES_PER_FRAME: usize = 256;
/// Ended sessions of which the end is remembered.
const ENDED: usize = 64;

/// One frame's messages, in the ring.
#[derive(Clone, Copy, Debug)]
struct Kept {
    session: Session,
    first: Seq,
    count: u16,
    len: u32,
    /// Where the bytes begin, counted on round after round.
    at: u64,
    time: Nanos,
}

impl Kept {
    const NOTHING: Kept = Kept {
        session: Session::NONE,
        first: Seq(0),
        count: 0,
        len: 0,
        at: 0,
        time: 0,
    };

    fn last(&self) -> Seq {
        self.first.plus(u32::from(self.count)).prev()
    }
}

#[derive(Clone, Copy, Debug)]
struct Known {
    session: Session,
    previous: Session,
    next: Seq,
    end: Option<End>,
}

/// Where a frame begins: counted on round after round, and within the ring.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    at: u64,
    offset: usize,
}

/// A ring of frames. All memory is taken, and touched, when it is made.
#[derive(Debug)]
pub(super) struct Window {
    bytes: Memory,
    /// Where the next frame begins, counted on round after round, and where that is in `bytes`.
    tail: Place,
    frames: VecDeque<Kept>,
    most: usize,
    /// Ascending; the last is the open one.
    sessions: VecDeque<Known>,
    /// Old frames make room for new ones; otherwise they stay until they are released.
    drop_oldest: bool,
    /// Messages that had to make room.
    dropped: u64,
}

impl Window {
    /// Keeps at most `bytes` of messages.
    ///
    /// # Errors
    /// When there is not so much memory.
    pub(super) fn new(bytes: u64, drop_oldest: bool) -> io::Result<Window> {
        let size = usize::try_from(bytes).unwrap_or(usize::MAX / 2).max(1 << 16);
        let bytes = Memory::new(size)?;
        let most = size / BYTES_PER_FRAME;
        let mut frames = VecDeque::from(vec![Kept::NOTHING; most]);
        frames.clear();
        Ok(Window {
            bytes,
            tail: Place::default(),
            frames,
            most,
            sessions: VecDeque::with_capacity(ENDED + 1),
            drop_oldest,
            dropped: 0,
        })
    }

    /// Whether old frames make room for new ones.
    pub(super) fn set_drop_oldest(&mut self, drop_oldest: bool) {
        self.drop_oldest = drop_oldest;
    }

    /// Messages given up for new ones.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Where `len` bytes in one piece would begin; `None` when too much is kept for them.
    fn place(&self, len: usize) -> Option<Place> {
        let (size, len) = (self.bytes.len(), len.next_multiple_of(LINE));
        let Place { at, offset } = self.tail;
        // What does not fit before the end of the ring begins at its start.
        let place = if offset + len > size {
            Place {
                at: at + (size - offset) as u64,
                offset: 0,
            }
        } else {
            self.tail
        };
        let oldest = self.frames.front().map_or(place.at, |f| f.at);
        let fits = self.frames.len() < self.most && place.at + len as u64 - oldest <= size as u64;
        fits.then_some(place)
    }

    fn slice(&self, frame: &Kept) -> &[u8] {
        let from = (frame.at % self.bytes.len() as u64) as usize;
        self.bytes.read(from..from + frame.len as usize)
    }

    fn known(&self, session: Session) -> Option<&Known> {
        self.sessions.iter().rfind(|k| k.session == session)
    }

    fn known_mut(&mut self, session: Session) -> Option<&mut Known> {
        self.sessions.iter_mut().rfind(|k| k.session == session)
    }

    /// The frame with this number, if it is kept. The frames of a session lie together, ascending.
    ///
    /// Most that is asked for was sent just now: the search goes back from the newest frame in growing
    /// steps, which stay in the cache, and halves only the last one.
    fn find(&self, session: Session, seq: Seq) -> Option<&Kept> {
        let is_before = |at: usize| (self.frames[at].session, self.frames[at].last()) < (session, seq);
        let (mut low, mut high, mut step) = (0, self.frames.len(), 1);
        while low < high {
            let at = high - step.min(high - low);
            if is_before(at) {
                low = at + 1;
                break;
            }
            (high, step) = (at, 2 * step);
        }
        while low < high {
            let middle = low.midpoint(high);
            if is_before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        self.frames.get(low).filter(|f| f.session == session && f.first <= seq)
    }
}

impl Store for Window {
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_> {
        let Some(known) = self.known(session) else {
            return Lookup::Absent(Reason::UnknownSession, Seq(u32::MAX));
        };
        if let Some(frame) = self.find(session, seq) {
            let block = Block::trusted(frame.first, frame.count, self.slice(frame));
            return Lookup::Found(Record {
                block,
                time: frame.time,
            });
        }
        if seq < known.next {
            return Lookup::Absent(Reason::TooOld, self.oldest(session).prev());
        }
        Lookup::Absent(Reason::NotYet, Seq(u32::MAX))
    }

    fn end_of(&self, session: Session) -> Option<End> {
        self.known(session)?.end
    }

    fn previous_of(&self, session: Session) -> Session {
        self.known(session).map_or(Session::NONE, |k| k.previous)
    }

    fn session_after(&self, session: Session) -> Session {
        let later = self.sessions.iter().map(|k| k.session).find(|s| *s > session);
        later.unwrap_or(Session::NONE)
    }
}

impl ServerStore for Window {
    fn has_room(&mut self, bytes: usize) -> bool {
        while self.drop_oldest && self.place(bytes).is_none() {
            let Some(frame) = self.frames.pop_front() else {
                return false;
            };
            self.dropped += u64::from(frame.count);
        }
        self.place(bytes).is_some()
    }

    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused> {
        let block = &record.block;
        let from = block.bytes();
        let Place { at, offset } = self.place(from.len()).ok_or(Refused::Full)?;
        let next = block.range().map(SeqRange::end).ok_or(Refused::Failed)?;
        self.known_mut(session).ok_or(Refused::Failed)?.next = next;
        // Frames of one turn bear one time.
        let way = match self.frames.back() {
            Some(before) if before.time == record.time => Way::OneOfMany,
            _ => Way::Alone,
        };
        self.bytes.write(offset, from, way);
        let size = from.len().next_multiple_of(LINE);
        self.tail = Place {
            at: at + size as u64,
            offset: offset + size,
        };
        self.frames.push_back(Kept {
            session,
            first: block.first(),
            count: block.count(),
            len: from.len() as u32,
            at,
            time: record.time,
        });
        Ok(())
    }

    fn open_session(&mut self, session: Session, previous: Session) -> Result<(), Refused> {
        if self.sessions.len() > ENDED {
            self.sessions.pop_front();
        }
        self.sessions.push_back(Known {
            session,
            previous,
            next: Seq::FIRST,
            end: None,
        });
        Ok(())
    }

    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused> {
        if let Some(known) = self.known_mut(session) {
            known.end = Some(end);
        }
        Ok(())
    }

    fn release_below(&mut self, session: Session, seq: Seq) {
        // Frames go in the order in which they came; a later session's wait for an earlier one's.
        while self
            .frames
            .front()
            .is_some_and(|f| f.session == session && f.last() < seq)
        {
            self.frames.pop_front();
        }
    }

    fn drop_session(&mut self, session: Session) {
        while self.frames.front().is_some_and(|f| f.session <= session) {
            self.frames.pop_front();
        }
    }

    fn oldest(&self, session: Session) -> Seq {
        let at = self.frames.partition_point(|f| f.session < session);
        match self.frames.get(at).filter(|f| f.session == session) {
            Some(frame) => frame.first,
            None => self.known(session).map_or(Seq::FIRST, |k| k.next),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use seqcast_proto::wire::{Message, put_message};

    const SESSION: Session = Session(7);

    fn append(window: &mut Window, first: u32, count: u16, size: usize) -> Result<(), Refused> {
        let payload = vec![first as u8; size];
        let mut bytes = vec![0; usize::from(count) * (size + 8)];
        let mut len = 0;
        for _ in 0..count {
            let message = Message {
                subject: b"",
                payload: &payload,
            };
            len += put_message(&mut bytes[len..], &message).unwrap();
        }
        let block = Block::parse(Seq(first), count, &bytes[..len]).unwrap();
        ServerStore::append(
            window,
            SESSION,
            &Record {
                block,
                time: u64::from(first),
            },
        )
    }

    fn found(window: &Window, seq: u32) -> Option<u32> {
        match window.look_up(SESSION, Seq(seq)) {
            Lookup::Found(record) => {
                let first = record.block.first().0;
                for (_, message) in record.block.messages() {
                    assert!(
                        message.payload.iter().all(|b| *b == first as u8),
                        "the bytes of {first}"
                    );
                }
                assert_eq!(record.time, u64::from(first));
                Some(first)
            }
            Lookup::Absent(..) => None,
        }
    }

    #[test]
    fn the_latest_frames_are_found_and_older_ones_make_room() {
        let mut window = Window::new(1 << 16, true).unwrap();
        window.open_session(SESSION, Session::NONE).unwrap();
        let mut next = 1;
        for round in 0..2000u32 {
            let size = 100 + (round % 13) as usize * 90;
            assert!(window.has_room(3 * (size + 8)));
            append(&mut window, next, 3, size).unwrap();
            next += 3;
            let oldest = window.oldest(SESSION).0;
            assert_eq!(found(&window, next - 1), Some(next - 3));
            assert_eq!(found(&window, oldest), Some(oldest));
            assert_eq!(found(&window, oldest - 1), None);
            assert_eq!(found(&window, next), None);
        }
        assert!(window.oldest(SESSION).0 > 5000);
        assert!(matches!(
            window.look_up(SESSION, Seq(1)),
            Lookup::Absent(Reason::TooOld, _)
        ));
    }

    #[test]
    fn unreleased_frames_hold_new_ones_back() {
        let mut window = Window::new(1 << 16, false).unwrap();
        window.open_session(SESSION, Session::NONE).unwrap();
        let mut next = 1;
        while window.has_room(1008) {
            append(&mut window, next, 1, 1000).unwrap();
            next += 1;
        }
        assert_eq!(append(&mut window, next, 1, 1000), Err(Refused::Full));
        assert_eq!(found(&window, 1), Some(1));
        window.release_below(SESSION, Seq(3));
        assert_eq!(window.oldest(SESSION), Seq(3));
        assert!(window.has_room(1008));
        append(&mut window, next, 1, 1000).unwrap();
        for seq in 3..=next {
            assert_eq!(found(&window, seq), Some(seq));
        }
        window.release_below(SESSION, Seq(next + 1));
        assert_eq!(window.oldest(SESSION), Seq(next + 1), "the next one, when none is left");
    }
}
