//! What the state machines ask of whoever drives them.

use core::net::SocketAddrV4;

use crate::lines::LineChange;
use crate::seq::{Seq, SeqRange, Session};
use crate::time::Nanos;
use crate::wire::{Block, Reason};

/// Takes outgoing frames.
pub trait Outbox {
    /// Queues one frame for `to`, built in place: `build` gets a buffer of at least
    /// [`Outbox::max_frame`] bytes and returns how many it used; 0 sends nothing.
    ///
    /// Returns false, without calling `build`, when no buffer is free. The caller then tries again
    /// later; every timer of the protocol survives that.
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool;

    /// The largest frame in bytes.
    fn max_frame(&self) -> usize;
}

/// Messages that were sent under one stamp, as they are kept by an archive or a server.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The messages.
    pub block: Block<'a>,
    /// When the server first sent them; nanoseconds since the Unix epoch.
    pub time: Nanos,
}

/// Answer of a store to the question for one sequence number.
#[derive(Clone, Copy, Debug)]
pub enum Lookup<'a> {
    /// The record that holds the number.
    Found(Record<'a>),
    /// Not held; the same is true of every number up to the one given.
    Absent(Reason, Seq),
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct End {
    /// The last number used; 0 when the session stayed empty.
    pub last: Seq,
    /// The session that follows, or [`Session::NONE`] when none is known.
    pub next: Session,
}

/// Reads what is kept of a stream.
pub trait Store {
    /// Looks up one number.
    fn look_up(&self, session: Session, seq: Seq) -> Lookup<'_>;

    /// How the session ended, if it did and that is known here.
    fn end_of(&self, session: Session) -> Option<End>;

    /// The session before `session`, or [`Session::NONE`].
    fn previous_of(&self, session: Session) -> Session;

    /// The lowest later session of which something is known here, or [`Session::NONE`].
    fn session_after(&self, session: Session) -> Session;
}

/// A store could not take a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// There is no room now; there may be later.
    Full,
    /// The store is broken; the reason was reported where it happened.
    Failed,
}

/// Keeps what a server sent until it is acknowledged.
pub trait ServerStore: Store {
    /// Whether `bytes` more can be kept now.
    fn has_room(&mut self, bytes: usize) -> bool;

    /// Keeps a block under its numbers, which follow those of the last one.
    ///
    /// # Errors
    /// Nothing was kept; the block must not be sent.
    fn append(&mut self, session: Session, record: &Record<'_>) -> Result<(), Refused>;

    /// Opens a session that follows `previous`.
    ///
    /// # Errors
    /// The session must not be used.
    fn open_session(&mut self, session: Session, previous: Session) -> Result<(), Refused>;

    /// Records how a session ended.
    ///
    /// # Errors
    /// The end is not recorded.
    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused>;

    /// Everything of `session` below `seq` may be dropped.
    fn release_below(&mut self, session: Session, seq: Seq);

    /// The whole session may be dropped.
    fn drop_session(&mut self, session: Session);

    /// The lowest number that is still kept of a session; one past the last when none is.
    fn oldest(&self, session: Session) -> Seq;
}

/// Keeps what an archive receives, in any order.
pub trait ArchiveStore: Store {
    /// Keeps a block of which no number is stored yet.
    ///
    /// # Errors
    /// Nothing was kept; the block must not be acknowledged.
    fn append(&mut self, session: Session, record: &Record<'_>, received: Nanos) -> Result<(), Refused>;

    /// Opens a session.
    ///
    /// # Errors
    /// The session cannot be recorded.
    fn open_session(&mut self, session: Session, previous: Session, origin: u32) -> Result<(), Refused>;

    /// Records how a session ended.
    ///
    /// # Errors
    /// The end is not recorded.
    fn close_session(&mut self, session: Session, end: End) -> Result<(), Refused>;

    /// Records that these numbers exist nowhere any more.
    ///
    /// # Errors
    /// The loss is not recorded.
    fn mark_lost(&mut self, session: Session, range: SeqRange) -> Result<(), Refused>;

    /// Calls `each` with what is stored of a session, ascending ranges. With `synced` only what
    /// is on stable storage.
    fn stored(&mut self, session: Session, synced: bool, each: &mut dyn FnMut(SeqRange));

    /// Calls `each` with the numbers of a session that were marked as lost, ascending ranges.
    fn lost(&self, session: Session, each: &mut dyn FnMut(SeqRange));

    /// Calls `each` with every session held, ascending.
    fn sessions(&self, each: &mut dyn FnMut(Session));
}

/// How messages came to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Path {
    /// In the server's own frame.
    Live,
    /// Repaired by an archive.
    Archive,
    /// Repaired by the server.
    Server,
}

/// Messages handed to an application, each once; in order unless the client delivers on arrival.
#[derive(Clone, Copy, Debug)]
pub struct Delivery<'a> {
    /// The session of the numbers.
    pub session: Session,
    /// The messages, in place in the receive frame.
    pub block: Block<'a>,
    /// When the server first sent them; nanoseconds since the Unix epoch.
    pub time: Nanos,
    /// How they came.
    pub path: Path,
    /// Whether they waited here for earlier messages or for the application.
    pub waited: bool,
    /// Whether a message of a higher number was delivered before; never when delivering in order.
    pub late: bool,
}

/// Why messages were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// Every archive and the server have said that they do not have them and never will.
    Refused,
    /// Not all of them have answered for too long: somebody who is away may have them.
    Unanswered,
}

/// What a client tells its application besides messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The stream is there; the first message delivered will be `next`.
    Joined {
        /// The session.
        session: Session,
        /// Number of the first message that will be delivered.
        next: Seq,
    },
    /// Messages are missing and are being asked for.
    Gap {
        /// The session.
        session: Session,
        /// The numbers.
        range: SeqRange,
    },
    /// Messages will never be delivered; delivery goes on behind them.
    Lost {
        /// The session.
        session: Session,
        /// The numbers.
        range: SeqRange,
        /// Why they were given up.
        why: Loss,
    },
    /// All of a session has been delivered.
    SessionEnded {
        /// The session.
        session: Session,
        /// How it ended.
        end: End,
    },
    /// A session that follows has begun.
    SessionStarted {
        /// The session.
        session: Session,
    },
    /// A session ended and nobody can say whether it had messages from `from` on.
    TailUnknown {
        /// The session.
        session: Session,
        /// The first number of which nothing is known.
        from: Seq,
    },
    /// A second server uses the identity of this stream and session; its frames are refused.
    DuplicateServer {
        /// The session.
        session: Session,
        /// The address of the second server.
        from: SocketAddrV4,
    },
    /// Nothing has been heard of the server for the configured time.
    Silent,
    /// The server is heard again.
    Heard,
    /// One of two lines has fallen silent, or is heard again.
    Line(LineChange),
}

/// Takes what a client delivers.
pub trait Application {
    /// Takes the messages, or returns false to be offered the same again later.
    fn deliver(&mut self, delivery: &Delivery<'_>) -> bool;

    /// Takes an event. Events come in their place between the messages.
    fn event(&mut self, event: Event);
}
