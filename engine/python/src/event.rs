//! What happened to a stream, and places in it.

use pyo3::prelude::*;
use seqcast_client as client;

/// The kinds, with their numbers, from those of the library.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident)*) => {
        /// What happened. Numbers are those of the documentation of events.
        #[pyclass(eq, eq_int, frozen, hash, module = "seqcast", rename_all = "SCREAMING_SNAKE_CASE", from_py_object)]
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub(crate) enum EventKind {
            /// A kind that this release does not know.
            Unknown = 0,
            $($(#[$doc])* $kind = client::EventKind::$kind as isize,)*
        }

        impl EventKind {
            fn of(kind: client::EventKind) -> EventKind {
                match kind {
                    $(client::EventKind::$kind => EventKind::$kind,)*
                    _ => EventKind::Unknown,
                }
            }
        }
    };
}

kinds! {
    /// `first` is the first message that comes.
    Joined
    /// The engine misses `first` to `last` and asks for them.
    Gap
    /// `first` to `last` will not come.
    Lost
    /// The session is over; `last` was its last message.
    SessionEnded
    /// The next session begins.
    SessionStarted
    /// Nobody knows whether the session had messages from `first` on.
    TailUnknown
    /// The server has not been heard for a second.
    Silent
    /// It is heard again.
    Heard
    /// A second server uses the stream's identity; it is refused.
    DuplicateServer
    /// Line `first` of two is silent.
    LineSilent
    /// It is heard again.
    LineHeard
    /// This program missed `first` to `last` (0: to the session's end) and will not get them.
    Missed
    /// What was missed comes now.
    CatchingUp
    /// That is over; what follows is live.
    CaughtUp
    /// The engine ended or was killed.
    EngineGone
    /// This program is attached again.
    EngineBack
}

/// Something that happened, in its place between the messages.
#[pyclass(eq, frozen, get_all, module = "seqcast")]
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Event {
    kind: EventKind,
    session: u32,
    first: u32,
    last: u32,
    detail: u32,
}

impl Event {
    pub(crate) fn of(event: client::Event) -> Event {
        Event {
            kind: EventKind::of(event.kind),
            session: event.session,
            first: event.first,
            last: event.last,
            detail: event.detail,
        }
    }
}

#[pymethods]
impl Event {
    #[classattr]
    #[expect(non_upper_case_globals, reason = "the interpreter's name")]
    const __match_args__: (&'static str,) = ("kind",);

    fn __repr__(slf: &Bound<'_, Self>) -> PyResult<String> {
        let event = slf.get();
        Ok(format!(
            "Event({}, session={}, first={}, last={}, detail={})",
            slf.getattr("kind")?.repr()?,
            event.session,
            event.first,
            event.last,
            event.detail
        ))
    }
}

/// A message's place in a stream. Later ones compare greater.
#[pyclass(eq, ord, hash, frozen, get_all, module = "seqcast", from_py_object)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Position {
    pub(crate) session: u32,
    pub(crate) sequence: u32,
}

#[pymethods]
impl Position {
    #[classattr]
    #[expect(non_upper_case_globals, reason = "the interpreter's name")]
    const __match_args__: (&'static str, &'static str) = ("session", "sequence");

    #[new]
    fn new(session: u32, sequence: u32) -> Position {
        Position { session, sequence }
    }

    fn __repr__(&self) -> String {
        format!("Position(session={}, sequence={})", self.session, self.sequence)
    }

    fn __getnewargs__(&self) -> (u32, u32) {
        (self.session, self.sequence)
    }
}
