//! Subscribing through the ring that the engine writes for all programs of a stream.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddrV4;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use seqcast_proto::seq::Seq;
use seqcast_proto::subject::{Matcher, Pattern};
use seqcast_proto::wire::Block;
use seqcast_ring::{Consumer, Read, Reader};

use crate::call::{Answer, Call, Engine, deadline, hear, left};
use crate::error::Error;
use crate::protocol::{Refusal, Reply, Request, Role, Wait};
use crate::record::{self, BlockHead, Event, EventKind, HEAD, flags};
use crate::socket::Socket;

/// Fruitless polls after which the clock is looked at.
const LOOK_EVERY: u32 = 64;
/// Time between two looks whether the engine lives.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// Longest sleep without a look.
const SLEEP: Duration = Duration::from_millis(200);
/// Time between two questions for what was missed, when the engine is busy.
const ASK_AGAIN: Duration = Duration::from_millis(50);

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

struct Link {
    socket: Socket,
    ring: Reader,
}

enum CatchUp {
    /// The engine has been asked.
    Asked,
    /// It is to be asked again at this time.
    Later(Instant),
    /// What was missed comes here; a copy of the entry at hand.
    Running(Consumer, Vec<u8>),
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

    /// Reads on in the ring.
    fn load_live(&mut self) -> bool {
        let Some(link) = &mut self.link else { return false };
        match link.ring.read() {
            None => return false,
            Some(Read::Missed { .. }) => self.adrift = true,
            Some(Read::Message {
                tag: record::BLOCK,
                bytes,
                ..
            }) => {
                let Some((head, _)) = BlockHead::decode(bytes) else {
                    return true;
                };
                let first = Position {
                    session: head.session,
                    sequence: head.first,
                };
                self.adrift = false;
                let next = self.arrive_at(first);
                if next >= first {
                    self.begin_block(Way::Ring, head);
                } else if self.recover {
                    self.held = Some(head);
                    self.fetch(next, Some(first));
                } else {
                    self.miss(next, first);
                    self.begin_block(Way::Ring, head);
                }
            }
            Some(Read::Message { bytes, .. }) => {
                if let Some(event) = Event::decode(bytes) {
                    self.on_live_event(event);
                }
            }
        }
        true
    }

    /// The first message that can be had is `first`; which one is wanted?
    fn arrive_at(&mut self, first: Position) -> Position {
        *self.next.get_or_insert_with(|| {
            self.events.push_back(Event {
                session: first.session,
                first: first.sequence,
                ..Event::of(EventKind::Joined)
            });
            match self.from {
                From::Session => Position { sequence: 1, ..first },
                From::Now | From::After(_) => first,
            }
        })
    }

    fn on_live_event(&mut self, event: Event) {
        match event.kind {
            EventKind::Joined => {
                let first = Position {
                    session: event.session,
                    sequence: event.first,
                };
                self.adrift = false;
                let next = self.arrive_at(first);
                if next < first && self.recover {
                    self.fetch(next, Some(first));
                } else if next < first {
                    self.miss(next, first);
                }
            }
            // What it says about messages is said again, or found out, behind the next block.
            _ if self.adrift && is_of_messages(event.kind) => {}
            _ => self.on_event(event),
        }
    }

    /// An event in its place.
    fn on_event(&mut self, event: Event) {
        match event.kind {
            EventKind::Lost => {
                self.next = Some(Position {
                    session: event.session,
                    sequence: event.last.saturating_add(1),
                });
            }
            EventKind::SessionStarted => {
                self.next = Some(Position {
                    session: event.session,
                    sequence: 1,
                });
            }
            _ => {}
        }
        self.events.push_back(event);
    }

    /// Hands out what of a block was not handed out before.
    fn begin_block(&mut self, way: Way, head: BlockHead) -> bool {
        let first = Position {
            session: head.session,
            sequence: head.first,
        };
        let next = self.next.unwrap_or(first).max(first);
        if next.session > head.session || next.sequence > head.last() {
            return false;
        }
        self.next = Some(next);
        let mut current = Current {
            way,
            head,
            sequence: head.first,
            left: head.count,
            offset: HEAD,
        };
        let entry = entry(self.link.as_ref(), self.catch_up.as_ref(), way);
        while current.sequence < next.sequence
            && let Some(message) = entry.and_then(|entry| message_at(entry, &current))
        {
            current.offset += message.encoded_len();
            current.left -= 1;
            current.sequence += 1;
        }
        self.current = Some(current);
        true
    }

    /// Reports what was missed, for good.
    fn miss(&mut self, next: Position, first: Position) {
        self.report(EventKind::Missed, next, Some(first));
        self.next = Some(first);
    }

    /// Says what lies from `next` up to before `first`.
    fn report(&mut self, kind: EventKind, next: Position, first: Option<Position>) {
        let within = first.filter(|first| first.session == next.session);
        self.events.push_back(Event {
            session: next.session,
            first: next.sequence,
            last: within.map_or(0, |first| first.sequence - 1),
            ..Event::of(kind)
        });
        let Some(first) = first.filter(|first| first.session != next.session && kind == EventKind::Missed) else {
            return;
        };
        if first.sequence > 1 {
            self.events.push_back(Event {
                session: first.session,
                first: 1,
                last: first.sequence - 1,
                ..Event::of(kind)
            });
        }
        self.events.push_back(Event {
            session: first.session,
            ..Event::of(EventKind::SessionStarted)
        });
    }

    /// Asks for what was missed from `next` on.
    fn fetch(&mut self, next: Position, first: Option<Position>) {
        self.report(EventKind::CatchingUp, next, first);
        self.ask();
    }

    fn ask(&mut self) {
        let (Some(link), Some(next)) = (&self.link, self.next) else {
            return;
        };
        let request = Request::CatchUp {
            session: next.session,
            sequence: next.sequence - 1,
        };
        // A connection that is gone is noticed when the answer is looked for.
        let _ = link.socket.send(&request.encode(), &[]);
        self.catch_up = Some(CatchUp::Asked);
    }

    /// Reads on in what is being fetched.
    fn load_missed(&mut self) -> Result<bool, Error> {
        // Who is level with the ring goes on there, also when what is fetched keeps up.
        if matches!(self.catch_up, Some(CatchUp::Running(..))) && self.go_live() {
            return Ok(true);
        }
        match &mut self.catch_up {
            None => Ok(false),
            Some(CatchUp::Asked) => self.look(false),
            Some(CatchUp::Later(then)) => {
                let due = Instant::now() >= *then;
                if due {
                    self.ask();
                }
                Ok(due)
            }
            Some(CatchUp::Running(lane, copy)) => {
                let Some(entry) = lane.peek() else {
                    let ended = lane.is_finished();
                    if ended {
                        self.ask();
                    }
                    return Ok(ended || self.go_live());
                };
                copy.clear();
                copy.extend_from_slice(entry.bytes);
                let is_block = entry.tag == record::BLOCK;
                lane.advance();
                if !is_block {
                    let event = Event::decode(copy).filter(|event| is_of_messages(event.kind));
                    event.into_iter().for_each(|event| self.on_event(event));
                } else if let Some((head, _)) = BlockHead::decode(copy)
                    && self.begin_block(Way::CatchUp, head)
                {
                    return Ok(true);
                }
                self.go_live();
                Ok(true)
            }
        }
    }

    /// Goes on with the ring if it has what comes next.
    fn go_live(&mut self) -> bool {
        let (Some(next), Some(link)) = (self.next, &mut self.link) else {
            return false;
        };
        loop {
            let head = match self.held {
                Some(head) => head,
                None => match link.ring.read() {
                    None => return false,
                    Some(Read::Message {
                        tag: record::BLOCK,
                        bytes,
                        ..
                    }) => {
                        let Some((head, _)) = BlockHead::decode(bytes) else {
                            continue;
                        };
                        self.held = Some(head);
                        head
                    }
                    // What it says about messages is said in its place by what is being fetched.
                    Some(Read::Message { bytes, .. }) => {
                        self.events
                            .extend(Event::decode(bytes).filter(|e| !is_of_messages(e.kind)));
                        continue;
                    }
                    Some(Read::Missed { .. }) => continue,
                },
            };
            let first = Position {
                session: head.session,
                sequence: head.first,
            };
            let last = Position {
                session: head.session,
                sequence: head.last(),
            };
            if last < next || link.ring.is_overrun() {
                // Delivered already; or what follows it is gone by now, and is fetched as well.
                self.held = None;
                continue;
            }
            if first > next {
                return false;
            }
            // A connection that is gone is noticed soon enough.
            let _ = link.socket.send(&Request::CaughtUp.encode(), &[]);
            self.held = None;
            self.catch_up = None;
            self.adrift = false;
            self.events.push_back(Event::of(EventKind::CaughtUp));
            self.begin_block(Way::Ring, head);
            return true;
        }
    }

    /// Hears what the engine says, and whether it lives.
    #[cold]
    fn look(&mut self, ended: bool) -> Result<bool, Error> {
        let mut changed = false;
        let why = loop {
            let Some(link) = &self.link else { return Ok(changed) };
            match hear(&link.socket) {
                Ok(None) if ended => break "the engine has ended".to_owned(),
                Ok(None) => return Ok(changed),
                Ok(Some((reply, fds))) => {
                    changed = true;
                    if let Err(error) = self.on_reply(reply, fds) {
                        break error.to_string();
                    }
                }
                Err(error) => break error.to_string(),
            }
        };
        self.lose(&why);
        Ok(true)
    }

    fn on_reply(&mut self, reply: Reply, fds: Vec<OwnedFd>) -> io::Result<()> {
        let asked = matches!(self.catch_up, Some(CatchUp::Asked));
        match reply {
            Reply::CatchUp if asked => {
                let fd = fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
                self.catch_up = Some(CatchUp::Running(Consumer::open(fd.as_fd())?, Vec::new()));
                Ok(())
            }
            Reply::Refused { why: Refusal::Busy, .. } if asked => {
                self.catch_up = Some(CatchUp::Later(Instant::now() + ASK_AGAIN));
                Ok(())
            }
            Reply::Refused { text, .. } => Err(io::Error::other(text)),
            _ => Ok(()),
        }
    }

    /// The engine is gone; what it has put into the ring has been read.
    fn lose(&mut self, why: &str) {
        self.link = None;
        self.current = None;
        self.held = None;
        self.catch_up = None;
        self.call.reset(why);
        self.events.push_back(Event::of(EventKind::EngineGone));
    }

    fn attach_again(&mut self) -> Result<bool, Error> {
        let Some(answer) = self.call.poll()? else {
            return Ok(false);
        };
        let (link, _, _) = open(&self.call, answer)?;
        self.link = Some(link);
        self.events.push_back(Event::of(EventKind::EngineBack));
        self.adrift = true;
        if let Some(next) = self.next.filter(|_| self.recover) {
            self.fetch(next, None);
        }
        Ok(true)
    }

    /// Sleeps until something may have come.
    fn wait(&mut self, longest: Duration) -> Result<(), Error> {
        let Some(link) = &self.link else {
            self.call.rest(longest);
            return Ok(());
        };
        let (wait, longest) = match &self.catch_up {
            None => (Some(Wait::Message(link.ring.next())), longest),
            Some(CatchUp::Running(lane, _)) => (Some(Wait::CatchUp(lane.position())), longest),
            Some(CatchUp::Asked) => (None, longest),
            Some(CatchUp::Later(_)) => (None, longest.min(ASK_AGAIN)),
        };
        let asked = wait.map_or(Ok(()), |wait| link.socket.send(&Request::Wait(wait).encode(), &[]));
        match asked.and_then(|()| link.socket.wait(Some(longest))) {
            // The ring is looked at once more before anything is said to be over.
            Ok(true) if self.catch_up.is_some() || !self.has_live() => self.look(false).map(drop),
            Ok(_) => Ok(()),
            Err(error) if !self.has_live() => {
                self.lose(&error.to_string());
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    fn has_live(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.ring.has_next())
    }
}

/// Whether an event says something about messages, so that it is true in one place only.
fn is_of_messages(kind: EventKind) -> bool {
    matches!(
        kind,
        EventKind::Lost | EventKind::SessionEnded | EventKind::SessionStarted | EventKind::TailUnknown
    )
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

fn open(call: &Call, answer: Answer) -> Result<(Link, SocketAddrV4, u32), Error> {
    let Answer { socket, reply, fds } = answer;
    let (Reply::Ring { stream, session }, Some(ring)) = (reply, fds.first()) else {
        return Err(call.system("attach", io::ErrorKind::InvalidData.into()));
    };
    let ring = Reader::open(ring.as_fd()).map_err(|error| call.system("open the ring", error))?;
    Ok((Link { socket, ring }, stream, session))
}
