"""Programs beside a Seqcast engine: they publish into it and receive from it through shared memory."""

from collections.abc import Iterator, Sequence
from os import PathLike
from types import TracebackType
from typing import ClassVar, Literal, Self, final

from typing_extensions import Buffer  # of type checkers: no program imports it

__all__ = [
    "BadSubject",
    "Claim",
    "Error",
    "Event",
    "EventKind",
    "Full",
    "Gone",
    "Message",
    "Position",
    "Publisher",
    "Refused",
    "Subscriber",
    "SystemFailure",
    "Timeout",
    "TooLarge",
    "__version__",
]
__version__: str

class Error(Exception):
    """What went wrong."""

    code: int
    """The stable number of its kind."""

class Full(Error):
    """The lane is full until the engine has taken more."""

class Timeout(Error):
    """The time was over first; nothing was done."""

class Gone(Error):
    """No engine is there now; later calls attach by themselves."""

class TooLarge(Error):
    """A message with its subject is longer than one frame carries."""

class BadSubject(Error):
    """No subject, or no pattern."""

class Refused(Error):
    """The engine refuses; `code` says why."""

class SystemFailure(Error):
    """The kernel refuses."""

@final
class Position:
    """A message's place in a stream. Later ones compare greater."""

    __match_args__: ClassVar[tuple[Literal["session"], Literal["sequence"]]]
    @property
    def session(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    def __new__(cls, session: int, sequence: int) -> Self: ...
    def __lt__(self, other: Position, /) -> bool: ...
    def __le__(self, other: Position, /) -> bool: ...
    def __gt__(self, other: Position, /) -> bool: ...
    def __ge__(self, other: Position, /) -> bool: ...
    def __hash__(self) -> int: ...
    def __getnewargs__(self) -> tuple[int, int]: ...

@final
class EventKind:
    """What happened. `int(kind)` is the number in the documentation of events."""

    UNKNOWN: ClassVar[EventKind]
    JOINED: ClassVar[EventKind]
    GAP: ClassVar[EventKind]
    LOST: ClassVar[EventKind]
    SESSION_ENDED: ClassVar[EventKind]
    SESSION_STARTED: ClassVar[EventKind]
    TAIL_UNKNOWN: ClassVar[EventKind]
    SILENT: ClassVar[EventKind]
    HEARD: ClassVar[EventKind]
    DUPLICATE_SERVER: ClassVar[EventKind]
    LINE_SILENT: ClassVar[EventKind]
    LINE_HEARD: ClassVar[EventKind]
    MISSED: ClassVar[EventKind]
    CATCHING_UP: ClassVar[EventKind]
    CAUGHT_UP: ClassVar[EventKind]
    ENGINE_GONE: ClassVar[EventKind]
    ENGINE_BACK: ClassVar[EventKind]
    def __int__(self) -> int: ...
    def __hash__(self) -> int: ...

@final
class Event:
    """Something that happened, in its place between the messages."""

    __match_args__: ClassVar[tuple[Literal["kind"]]]
    @property
    def kind(self) -> EventKind: ...
    @property
    def session(self) -> int: ...
    @property
    def first(self) -> int: ...
    @property
    def last(self) -> int: ...
    @property
    def detail(self) -> int: ...

@final
class Message:
    """A message. Its payload lies in the subscriber's memory until that is asked for the next one."""

    __match_args__: ClassVar[tuple[Literal["sequence"], Literal["subject"], Literal["payload"]]]
    @property
    def session(self) -> int: ...
    @property
    def sequence(self) -> int: ...
    @property
    def position(self) -> Position: ...
    @property
    def time_ns(self) -> int:
        """When the server first sent it; nanoseconds since the Unix epoch."""
    @property
    def flags(self) -> int: ...
    @property
    def subject(self) -> str:
        """Empty when there is none."""
    @property
    def payload(self) -> memoryview:
        """In place, not copied. Released when the subscriber is asked for the next message; ValueError after that."""
    @property
    def repaired(self) -> bool: ...
    @property
    def from_server(self) -> bool: ...
    @property
    def caught_up(self) -> bool: ...
    def __bytes__(self) -> bytes:
        """A copy of the payload. ValueError when the subscriber has been asked for the next message."""
    def __len__(self) -> int: ...
    def __bool__(self) -> Literal[True]: ...

@final
class Claim:
    """Room for the payload of one message: a context manager whose value is the place to write to."""

    def __enter__(self) -> memoryview: ...
    def __exit__(
        self, raised: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def abandon(self) -> None:
        """Gives the claim up; nothing is published."""

@final
class Publisher:
    """Publishes one stream. For one thread at a time."""

    def __new__(
        cls,
        socket: str | PathLike[str],
        *,
        stream: str | None = None,
        name: str = "",
        resend: bool = True,
        patience: float = 0.0,
    ) -> Self:
        """Attaches to an engine, for which it waits `patience` seconds."""
    @property
    def stream(self) -> str: ...
    @property
    def max_message(self) -> int:
        """Longest message with its subject, in bytes. May change when an engine comes back."""
    @property
    def attached(self) -> bool:
        """Whether an engine is there, as far as is known."""
    def publish(self, payload: Buffer, subject: str = "", timeout: float | None = None) -> None:
        """Publishes a copy. Waits for room, or for an engine, at most `timeout` seconds (None: without end; 0: not at
        all, then it raises Full or Gone)."""
    def claim(self, length: int, subject: str = "") -> Claim:
        """Claims room for so many bytes, to be written in place and published at the end of the `with` block, unless
        that raises. Never waits: Full, Gone."""
    def flush(self, timeout: float | None = None) -> None:
        """Waits until the engine has taken everything: it will be sent, whatever happens to this program."""
    def poll(self) -> Event | None:
        """Whether the engine is gone, or back, since it was last asked. Attaches again. Never waits."""
    def close(self) -> None:
        """What was published stays with the engine, which sends it."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *_raised: object) -> None: ...

@final
class Subscriber:
    """Receives one stream, each message once and in order. For one thread at a time."""

    def __new__(
        cls,
        socket: str | PathLike[str],
        *,
        stream: str | None = None,
        name: str = "",
        start: Literal["now", "session"] | Position | None = None,
        subjects: Sequence[str] | None = None,
        recover: bool = True,
        spin: float = 0.0,
        patience: float = 0.0,
    ) -> Self:
        """Attaches to an engine, for which it waits `patience` seconds. Begins now, at the first message of the session,
        or behind a position. `recover`: fetch what was missed. `spin`: seconds to look again and again before a call
        sleeps."""
    @property
    def stream(self) -> str: ...
    @property
    def attached(self) -> bool:
        """Whether an engine is there, as far as is known."""
    @property
    def position(self) -> Position | None:
        """The last message that was handed out, was lost, or was not wanted: where to go on with `start`."""
    def receive(self, timeout: float | None = None) -> Message | Event | None:
        """The next message or event; waits at most `timeout` seconds (None: without end; 0: not at all). None when the
        time was over first."""
    def until_idle(self, timeout: float | None = None) -> Iterator[Message | Event]:
        """What comes, until nothing has come for `timeout` seconds."""
    def __iter__(self) -> Iterator[Message | Event]:
        """What comes, without end."""
    def close(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *_raised: object) -> None: ...
