//! What can go wrong, with a stable number for each kind.

use std::io;

use seqcast_proto::subject::SubjectError;

use crate::protocol::Refusal;

/// Why a call did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The lane is full until the engine has read more. Try again, or use a call with a timeout.
    #[error("the lane is full until the engine has taken more")]
    Full,
    /// The time was over first. Nothing was done.
    #[error("the time was over first")]
    Timeout,
    /// No engine is there now. Later calls attach again by themselves.
    #[error("no engine is there now: {0}")]
    Gone(String),
    /// A message and its subject are longer than one frame of the engine's link carries.
    #[error("a message of {len} bytes with its subject; the engine's link carries at most {max}")]
    TooLarge {
        /// Bytes of the message with its subject.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// No subject, or no pattern.
    #[error(transparent)]
    Subject(#[from] SubjectError),
    /// The engine refuses.
    #[error("the engine refuses: {text}")]
    Refused {
        /// Why.
        why: Refusal,
        /// The same for people.
        text: String,
    },
    /// The system refuses.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// A number for each kind, above 0, that never changes.
    #[must_use]
    pub fn code(&self) -> i32 {
        match self {
            Error::Full => 1,
            Error::Timeout => 2,
            Error::Gone(_) => 3,
            Error::TooLarge { .. } => 4,
            Error::Subject(_) => 5,
            Error::System { .. } => 6,
            Error::Refused { why, .. } => 16 + *why as i32,
        }
    }
}
