//! What stands in the rings from the engine to programs: blocks of messages, and events.

use seqcast_proto::seq::{Seq, SeqRange};
use seqcast_proto::wire::Block;

/// Tag of a block of messages.
pub const BLOCK: u32 = 0;
/// Tag of an event.
pub const EVENT: u32 = 1;
/// Words in front of a block's messages.
pub const HEAD_WORDS: usize = 3;
/// Bytes in front of a block's messages.
pub const HEAD: usize = HEAD_WORDS * 8;

/// What a message's way was: bits of a message's flags.
pub mod flags {
    /// It was lost on its way to the engine and repaired.
    pub const REPAIRED: u16 = 1;
    /// The repair came from the server, not from an archive.
    pub const FROM_SERVER: u16 = 4;
    /// The program had missed it; it was asked for again.
    pub const CAUGHT_UP: u16 = 8;
}

/// What is known of a block of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// Session of the numbers.
    pub session: u32,
    /// Number of the first message.
    pub first: u32,
    /// How many messages.
    pub count: u16,
    /// See [`flags`].
    pub flags: u16,
    /// When the server first sent them; nanoseconds since the Unix epoch.
    pub time_ns: u64,
}

impl BlockHead {
    /// The words in front of the messages.
    #[must_use]
    pub fn encode(&self) -> [[u8; 8]; HEAD_WORDS] {
        let numbers = u64::from(self.session) | u64::from(self.first) << 32;
        let kind = u64::from(self.count) | u64::from(self.flags) << 16;
        [numbers.to_le_bytes(), kind.to_le_bytes(), self.time_ns.to_le_bytes()]
    }

    /// Head and messages of an entry; `None` if it is none.
    #[must_use]
    pub fn decode(entry: &[u8]) -> Option<(BlockHead, Block<'_>)> {
        let (head, bytes) = entry.split_first_chunk::<HEAD>()?;
        let [numbers, kind, time_ns] = *head.as_chunks::<8>().0 else {
            return None;
        };
        let (numbers, kind) = (u64::from_le_bytes(numbers), u64::from_le_bytes(kind));
        let head = BlockHead {
            session: numbers as u32,
            first: (numbers >> 32) as u32,
            count: kind as u16,
            flags: (kind >> 16) as u16,
            time_ns: u64::from_le_bytes(time_ns),
        };
        SeqRange::of(Seq(head.first), u32::from(head.count))?;
        Some((head, Block::trusted(Seq(head.first), head.count, bytes)))
    }

    /// Number of the last message.
    #[must_use]
    pub fn last(&self) -> u32 {
        self.first + (u32::from(self.count) - 1)
    }
}

/// What happened to a stream, or between program and engine. The numbers are stable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[non_exhaustive]
pub enum EventKind {
    /// The stream is there; `first` of `session` is the first message that will be delivered.
    Joined = 1,
    /// The engine misses messages and asks for them. Information only.
    Gap = 2,
    /// These messages will not come; delivery goes on behind them. `detail` 0: nobody has them any more;
    /// 1: not everybody who may have them has answered for too long.
    Lost = 3,
    /// All of `session` has been delivered; `last` was its last message, 0 if it had none.
    SessionEnded = 4,
    /// `session` has begun, which follows the one before.
    SessionStarted = 5,
    /// `session` ended, and nobody knows whether it had messages from `first` on.
    TailUnknown = 6,
    /// The server has not been heard for a second.
    Silent = 7,
    /// It is heard again.
    Heard = 8,
    /// A second server uses the stream's identity; it is refused.
    DuplicateServer = 9,
    /// Line `first` of two (0: A, 1: B) has fallen silent.
    LineSilent = 10,
    /// It is heard again.
    LineHeard = 11,
    /// This program was too slow, or away: it has missed these messages, and will not get them.
    /// `last` 0: up to the end of `session`, which is not known here.
    Missed = 32,
    /// As `Missed`, and they are being fetched: they come next, then [`EventKind::CaughtUp`]. `last` 0: up
    /// to what comes live.
    CatchingUp = 33,
    /// What was missed has been delivered; what follows is live.
    CaughtUp = 34,
    /// The engine is gone: ended, or killed. This program goes on by itself when one is back.
    EngineGone = 35,
    /// An engine is there again.
    EngineBack = 36,
}

impl EventKind {
    fn of(code: u32) -> Option<EventKind> {
        use EventKind as K;
        let all = [
            K::Joined,
            K::Gap,
            K::Lost,
            K::SessionEnded,
            K::SessionStarted,
            K::TailUnknown,
            K::Silent,
            K::Heard,
            K::DuplicateServer,
            K::LineSilent,
            K::LineHeard,
        ];
        all.into_iter().find(|kind| *kind as u32 == code)
    }
}

/// Something that happened. What `session`, `first`, `last` and `detail` mean depends on the kind; 0 where
/// they mean nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The session.
    pub session: u32,
    /// The first number of a range.
    pub first: u32,
    /// The last number of a range, itself in it.
    pub last: u32,
    /// More about some kinds.
    pub detail: u32,
}

impl Event {
    /// An event without numbers.
    #[must_use]
    pub fn of(kind: EventKind) -> Event {
        Event {
            kind,
            session: 0,
            first: 0,
            last: 0,
            detail: 0,
        }
    }

    /// The bytes of an entry.
    #[must_use]
    pub fn encode(&self) -> [u8; 20] {
        let words = [self.kind as u32, self.session, self.first, self.last, self.detail];
        let mut bytes = [0; 20];
        for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *to = word.to_le_bytes();
        }
        bytes
    }

    /// The event of an entry; `None` if it is none, or one of a later version.
    #[must_use]
    pub fn decode(entry: &[u8]) -> Option<Event> {
        let words = <&[u8; 20]>::try_from(entry).ok()?.as_chunks::<4>().0;
        let [kind, session, first, last, detail] = *words else {
            return None;
        };
        Some(Event {
            kind: EventKind::of(u32::from_le_bytes(kind))?,
            session: u32::from_le_bytes(session),
            first: u32::from_le_bytes(first),
            last: u32::from_le_bytes(last),
            detail: u32::from_le_bytes(detail),
        })
    }
}
