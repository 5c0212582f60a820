//! Why messages wait in front of the engine, for whoever brings them.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use seqcast_proto::server::Blocked;

/// Why the engine takes no messages of a stream for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Waiting {
    /// The bytes or frames a second of `rate` are used up.
    Rate = 1,
    /// As many messages as `unacknowledged_max` says are sent and not acknowledged.
    Unacknowledged,
    /// `retain` is full of messages that too few archives have acknowledged.
    Full,
    /// The link sends no more for now.
    Link,
    /// The stream was ended or its log has failed, or another server has taken over: nothing more will be
    /// taken.
    Ended,
}

impl Waiting {
    pub(super) const ALL: [Waiting; 5] = [
        Waiting::Rate,
        Waiting::Unacknowledged,
        Waiting::Full,
        Waiting::Link,
        Waiting::Ended,
    ];

    pub(super) fn of(blocked: Blocked) -> Waiting {
        match blocked {
            Blocked::Rate(_) => Waiting::Rate,
            Blocked::Unacknowledged => Waiting::Unacknowledged,
            Blocked::Full => Waiting::Full,
            Blocked::NoBuffer => Waiting::Link,
            Blocked::StoreFailed | Blocked::Closed | Blocked::Superseded(_) => Waiting::Ended,
        }
    }
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Waiting::Rate => "`rate` is used up",
            Waiting::Unacknowledged => "`unacknowledged_max` messages are not acknowledged",
            Waiting::Full => "`retain` is full of what is not acknowledged",
            Waiting::Link => "the link is busy",
            Waiting::Ended => "the stream takes no more",
        })
    }
}

/// Tells the producer of a stream, on any thread, what its messages wait for.
#[derive(Clone, Debug, Default)]
pub struct Backpressure(Arc<AtomicU8>);

impl Backpressure {
    /// What the engine found when it looked last; `None` when it took all that there was.
    ///
    /// A producer whose lane is full asks this: `None` then only means that the engine has not come
    /// to it yet.
    #[must_use]
    pub fn reason(&self) -> Option<Waiting> {
        // Nothing else is published with it.
        let code = self.0.load(Ordering::Relaxed);
        Waiting::ALL.into_iter().find(|w| *w as u8 == code)
    }

    #[inline]
    pub(super) fn set(&self, waiting: Option<Waiting>) {
        let code = waiting.map_or(0, |w| w as u8);
        // Written only when it changes, so that producers keep the line.
        if self.0.load(Ordering::Relaxed) != code {
            self.0.store(code, Ordering::Relaxed);
        }
    }
}
