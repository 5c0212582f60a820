//! Bugs planted on purpose, to show that the simulator's rules find them.
//!
//! Only with the feature `mutations`, which no product is built with. One bug at a time, for the
//! whole process.

use core::sync::atomic::{AtomicU32, Ordering};

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Bug {
    /// The server lets go of one message more than was acknowledged.
    ReleaseEarly = 1,
    /// The server sends what its full disk did not keep.
    SendUnkept,
    /// The server numbers the messages of a new session under the old session's number.
    ReuseSession,
    /// The server announces one message fewer than there are, so that a lost tail stays unseen.
    HideTail,
    /// The server takes messages however many are not acknowledged.
    IgnoreLimit,
    /// The server counts one message too many in a frame.
    WrongCount,
    /// Repairs come under the next number.
    WrongAnswer,
    /// A repair is sent again and again.
    RepeatAnswer,
    /// The archive acknowledges what its store refused.
    AckUnstored,
    /// The archive acknowledges as synced what is only stored.
    AckUnsynced,
    /// The client delivers the last message of a frame again.
    DeliverTwice,
    /// The client goes on over a gap without a word.
    SkipGap,
    /// The client leaves what it holds when the gap before it closes.
    ForgetHeld,
    /// The first final refusal counts as everyone's.
    TrustOneRefusal,
    /// The client keeps a frame of which it needs nothing any more.
    KeepFrame,
}

/// All of them.
pub const ALL: [Bug; 15] = [
    Bug::ReleaseEarly,
    Bug::SendUnkept,
    Bug::ReuseSession,
    Bug::HideTail,
    Bug::IgnoreLimit,
    Bug::WrongCount,
    Bug::WrongAnswer,
    Bug::RepeatAnswer,
    Bug::AckUnstored,
    Bug::AckUnsynced,
    Bug::DeliverTwice,
    Bug::SkipGap,
    Bug::ForgetHeld,
    Bug::TrustOneRefusal,
    Bug::KeepFrame,
];

static PLANTED: AtomicU32 = AtomicU32::new(0);

/// Plants a bug in place of the last one, or none.
pub fn plant(bug: Option<Bug>) {
    PLANTED.store(bug.map_or(0, |b| b as u32), Ordering::Relaxed);
}

pub(crate) fn is_planted(bug: Bug) -> bool {
    PLANTED.load(Ordering::Relaxed) == bug as u32
}
