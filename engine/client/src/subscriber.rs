//! Subscribing through the ring that the engine writes for all programs of a stream.

mod attachment;
mod catch_up;
mod live;

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use seqcast_proto::seq::Seq;
use seqcast_proto::subject::{Matcher, Pattern};
use seqcast_proto::wire::Block;

use crate::call::{Call, Engine, deadline, left};
use crate::error::Error;
use crate::protocol::Role;
use crate::record::{BlockHead, Event, flags};

use attachment::{Link, open};
use catch_up::CatchUp;

/// Fruitless polls after which the clock is looked at.
const LOOK_EVERY: u32 = 64;
/// Time between two looks whether the engine lives.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// Longest sleep without a look.
const SLEEP: Duration = Duration::from_millis(200);

/// A place in a stream: a message's session and number. Later ones compare greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// The session; the later one is greater.
    pub session: u32,
    /// The number within the session, from 1.
    pub sequence: u32,
}

/// Where a subscriber begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum From {
    /// With what comes from now on.
    #[default]
    Now,
    /// With the first message of the session that the engine receives; the archive has the older ones.
    Session,
    /// Right behind this message, however long ago that was.
    After(Position),
}

/// How to subscribe.
#[derive(Clone, Debug)]
pub struct SubscriberOptions {
    /// The stream's group and port; `None`: the only one that the engine has for programs.
    pub stream: Option<SocketAddrV4>,
    /// What the program calls itself in the engine's messages; empty: its file name.
    pub name: String,
    /// How long [`Subscriber::attach`] may wait for an engine; 0: it must be there.
    pub patience: Duration,
    /// Where to begin.
    pub from: From,
    /// Patterns of wanted subjects; none: all messages.
    pub subjects: Vec<String>,
    /// Get what was missed, for being too slow or while the engine was away, from the archive, in its
    /// place. Without it such messages are only reported ([`EventKind::Missed`]).
    pub recover: bool,
    /// How long blocking calls look again and again before they sleep: saves wake-ups, takes a core.
    pub spin: Duration,
}

impl Default for SubscriberOptions {
    fn default() -> SubscriberOptions {
        SubscriberOptions {
            stream: None,
            name: String::new(),
            patience: Duration::ZERO,
            from: From::Now,
            subjects: Vec::new(),
            recover: true,
            spin: Duration::ZERO,
        }
    }
}

/// A delivered message. The bytes are a copy that nobody else writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Session of the number.
    pub session: u32,
    /// The number.
    pub sequence: u32,
    /// When the server first sent it; nanoseconds since the Unix epoch.
    pub time_ns: u64,
    /// See [`flags`].
    pub flags: u16,
    /// The subject; empty when there is none.
    pub subject: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// What a subscriber gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received<'a> {
    /// A message.
    Message(Message<'a>),
    /// An event; it stands in its place between the messages.
    Event(Event),
}

/// Receives one stream through an engine, each message once and in order.
pub struct Subscriber {
    call: Call,
    link: Option<Link>,
    stream: SocketAddrV4,
    from: From,
    recover: bool,
    spin: Duration,
    filter: Option<Matcher>,
    events: VecDeque<Event>,
    /// The block whose messages are being handed out.
    current: Option<Current>,
    /// The message that comes next; `None` before the first.
    next: Option<Position>,
    /// Something may have been missed: events of the ring count again behind its next block.
    adrift: bool,
    /// A block of the ring that was read and waits until what is in front of it has been caught up.
    held: Option<BlockHead>,
    catch_up: Option<CatchUp>,
    fruitless: u32,
    looked: Instant,
}

/// Where a block lies.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Ring,
    CatchUp,
}

struct Current {
    way: Way,
    head: BlockHead,
    /// Number of the next message of the block.
    sequence: u32,
    /// Messages left.
    left: u16,
    /// Where the next message starts, in bytes from the start of the entry.
    offset: usize,
}

enum Step {
    Message { way: Way, at: Current },
    Event(Event),
    Nothing,
}

impl Subscriber {
    /// Attaches to an engine.
    ///
    /// # Errors
    /// [`Error::Gone`] when none is there within `patience`, [`Error::Refused`] when it does not want to,
    /// [`Error::Subject`] for a pattern that is none.
    pub fn attach(engine: &Engine, options: &SubscriberOptions) -> Result<Subscriber, Error> {
        let patterns = options.subjects.iter().map(|text| Pattern::parse(text));
        let patterns = patterns.collect::<Result<Vec<_>, _>>()?;
        let filter = (!patterns.is_empty()).then(|| Matcher::new(patterns.iter().map(|p| (p, 0)), Matcher::SLOTS));
        let mut call = Call::new(engine, Role::Subscribe, options.stream, &options.name);
        let answer = call.complete(options.patience)?;
        let (link, stream, session) = open(&call, answer)?;
        let mut subscriber = Subscriber {
            call: Call::new(engine, Role::Subscribe, Some(stream), &options.name),
            link: Some(link),
            stream,
            from: options.from,
            recover: options.recover,
            spin: options.spin,
            filter,
            events: VecDeque::new(),
            current: None,
            next: None,
            adrift: false,
            held: None,
            catch_up: None,
            fruitless: 0,
            looked: Instant::now(),
        };
        match options.from {
            From::Now => {}
            From::Session if session == 0 => {}
            From::Session => subscriber.begin_at(Position { session, sequence: 1 }),
            From::After(position) => subscriber.begin_at(Position {
                sequence: position.sequence.saturating_add(1),
                ..position
            }),
        }
        Ok(subscriber)
    }

    fn begin_at(&mut self, next: Position) {
        self.next = Some(next);
        self.fetch(next, None);
    }

    /// The stream's group and port.
    #[must_use]
    pub fn stream(&self) -> SocketAddrV4 {
        self.stream
    }

    /// Whether an engine is there, as far as is known.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// The last message that was handed out, or was lost or not wanted, in its place; what a program keeps to
    /// go on behind it with [`From::After`]. `None` before the first; the sequence is 0 when a session
    /// has begun and nothing of it came yet.
    #[must_use]
    pub fn position(&self) -> Option<Position> {
        self.next.map(|next| Position {
            sequence: next.sequence - 1,
            ..next
        })
    }

    /// The next message or event; never waits. `None`: there is nothing now.
    ///
    /// # Errors
    /// [`Error::Refused`] when the engine was gone, and one that is back refuses.
    #[inline]
    pub fn try_next(&mut self) -> Result<Option<Received<'_>>, Error> {
        let step = self.step()?;
        Ok(self.received(step))
    }

    /// The next message or event; waits for it at most `timeout`, `None` without end. Returns `None` when
    /// the time was over first.
    ///
    /// # Errors
    /// As for [`Self::try_next`].
    pub fn next(&mut self, timeout: Option<Duration>) -> Result<Option<Received<'_>>, Error> {
        let mut step = self.step()?;
        if matches!(step, Step::Nothing) {
            let start = Instant::now();
            let deadline = deadline(timeout);
            loop {
                step = self.step()?;
                if !matches!(step, Step::Nothing) {
                    break;
                }
                let left = left(deadline).unwrap_or(SLEEP).min(SLEEP);
                if left.is_zero() {
                    return Ok(None);
                }
                if start.elapsed() < self.spin {
                    std::hint::spin_loop();
                } else {
                    self.wait(left)?;
                }
            }
        }
        Ok(self.received(step))
    }

    /// Hands everything that comes to `handler` until it breaks, or nothing has come for `timeout`. Returns
    /// what it broke with.
    ///
    /// # Errors
    /// As for [`Self::try_next`].
    pub fn run<B>(
        &mut self,
        timeout: Option<Duration>,
        mut handler: impl FnMut(Received<'_>) -> ControlFlow<B>,
    ) -> Result<Option<B>, Error> {
        while let Some(received) = self.next(timeout)? {
            if let ControlFlow::Break(value) = handler(received) {
                return Ok(Some(value));
            }
        }
        Ok(None)
    }

    fn received(&self, step: Step) -> Option<Received<'_>> {
        let (way, at) = match step {
            Step::Nothing => return None,
            Step::Event(event) => return Some(Received::Event(event)),
            Step::Message { way, at } => (way, at),
        };
        let message = message_at(entry(self.link.as_ref(), self.catch_up.as_ref(), way)?, &at)?;
        let caught_up = if way == Way::CatchUp { flags::CAUGHT_UP } else { 0 };
        Some(Received::Message(Message {
            session: at.head.session,
            sequence: at.sequence,
            time_ns: at.head.time_ns,
            flags: at.head.flags | caught_up,
            subject: message.subject,
            payload: message.payload,
        }))
    }

    #[inline]
    fn step(&mut self) -> Result<Step, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Step::Event(event));
            }
            if self.current.is_some() {
                match self.hand_out() {
                    Some(step) => return Ok(step),
                    None => continue,
                }
            }
            if !self.load()? {
                return Ok(Step::Nothing);
            }
            self.fruitless = 0;
        }
    }

    /// The next wanted message of the current block.
    #[inline]
    fn hand_out(&mut self) -> Option<Step> {
        let current = self.current.as_mut()?;
        let entry = entry(self.link.as_ref(), self.catch_up.as_ref(), current.way);
        while current.left > 0
            && let Some(message) = entry.and_then(|entry| message_at(entry, current))
        {
            let at = Current { ..*current };
            current.offset += message.encoded_len();
            current.left -= 1;
            current.sequence += 1;
            let session = current.head.session;
            self.next = Some(Position {
                session,
                sequence: current.sequence,
            });
            if self.filter.as_mut().is_none_or(|f| !f.find(message.subject).is_empty()) {
                return Some(Step::Message { way: at.way, at });
            }
        }
        self.current = None;
        None
    }

    /// Looks for more. Whether anything has changed.
    fn load(&mut self) -> Result<bool, Error> {
        if self.link.is_none() {
            return self.attach_again();
        }
        let found = if self.catch_up.is_some() {
            self.load_missed()?
        } else {
            self.load_live()
        };
        if found {
            return Ok(true);
        }
        self.fruitless += 1;
        let ended = self.link.as_ref().is_some_and(|link| link.ring.is_finished());
        if ended || self.fruitless.is_multiple_of(LOOK_EVERY) && self.looked.elapsed() >= LOOK_AFTER {
            self.looked = Instant::now();
            return self.look(ended);
        }
        Ok(false)
    }
}

/// The entry that a block lies in.
#[inline]
fn entry<'a>(link: Option<&'a Link>, catch_up: Option<&'a CatchUp>, way: Way) -> Option<&'a [u8]> {
    match (way, link, catch_up) {
        (Way::Ring, Some(link), _) => Some(link.ring.last()),
        (Way::CatchUp, _, Some(CatchUp::Running(_, copy))) => Some(copy),
        _ => None,
    }
}

/// The next message of a block.
#[inline]
fn message_at<'a>(entry: &'a [u8], at: &Current) -> Option<seqcast_proto::wire::Message<'a>> {
    let rest = entry.get(at.offset..)?;
    let block = Block::trusted(Seq(at.sequence), at.left, rest);
    block.messages().next().map(|(_, message)| message)
}
