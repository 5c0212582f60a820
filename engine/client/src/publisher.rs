//! Publishing through a lane of one's own.

use std::collections::VecDeque;
use std::net::SocketAddrV4;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use seqcast_proto::subject;
use seqcast_ring::{Event as Bell, LaneError, Producer};

use crate::call::{Answer, Call, Engine, deadline, hear, left};
use crate::error::Error;
use crate::protocol::{Reply, Request, Role, Wait};
use crate::record::{Event, EventKind};
use crate::socket::Socket;

/// Claims without progress of the engine after which the clock is looked at.
const LOOK_EVERY: u32 = 8;
/// Time after which an engine that takes nothing is asked whether it lives.
const LOOK_AFTER: Duration = Duration::from_millis(5);
/// Longest sleep without a look.
const SLEEP: Duration = Duration::from_millis(200);
/// Attempts before a full lane is waited for.
const SPINS: u32 = 64;

/// How to publish.
#[derive(Clone, Debug)]
pub struct PublisherOptions {
    /// The stream's group and port; `None`: the only one that the engine has for programs.
    pub stream: Option<SocketAddrV4>,
    /// What the program calls itself in the engine's messages; empty: its file name.
    pub name: String,
    /// How long [`Publisher::attach`] may wait for an engine; 0: it must be there.
    pub patience: Duration,
    /// When the engine was killed, publish what it had not taken through the next one. At most what
    /// it took in its last turn may then be published twice. Without it such messages are dropped.
    pub resend: bool,
}

impl Default for PublisherOptions {
    fn default() -> PublisherOptions {
        PublisherOptions {
            stream: None,
            name: String::new(),
            patience: Duration::ZERO,
            resend: true,
        }
    }
}

/// Publishes one stream through an engine. Not shared between threads: each takes its own.
///
/// Dropping it leaves what was published to the engine, which sends it.
pub struct Publisher {
    call: Call,
    link: Option<Link>,
    resend: bool,
    stream: SocketAddrV4,
    max_message: usize,
    /// What an engine that is gone had not taken, to be published first: subject's length, message.
    backlog: VecDeque<(u32, Vec<u8>)>,
    events: VecDeque<Event>,
    watch: Watch,
}

struct Link {
    socket: Socket,
    lane: Producer,
    wake: Bell,
}

/// Finds out cheaply that an engine may be gone: it takes nothing.
struct Watch {
    taken: u64,
    claims: u32,
    looked: Instant,
}

impl Watch {
    /// Whether it is time to look.
    #[inline]
    fn is_due(&mut self, lane: &Producer) -> bool {
        let taken = lane.taken();
        if taken != self.taken {
            self.taken = taken;
            self.claims = 0;
            return false;
        }
        self.claims += 1;
        self.claims.is_multiple_of(LOOK_EVERY) && self.is_time()
    }

    #[cold]
    fn is_time(&mut self) -> bool {
        let now = Instant::now();
        let due = now.duration_since(self.looked) >= LOOK_AFTER;
        if due {
            self.looked = now;
        }
        due
    }
}

impl Publisher {
    /// Attaches to an engine.
    ///
    /// # Errors
    /// [`Error::Gone`] when none is there within `patience`, [`Error::Refused`] when it does not want to.
    pub fn attach(engine: &Engine, options: &PublisherOptions) -> Result<Publisher, Error> {
        let mut call = Call::new(engine, Role::Publish, options.stream, &options.name);
        let answer = call.complete(options.patience)?;
        let (link, stream, max_message) = open(&call, answer)?;
        // From now on it is this stream, whatever else an engine that comes back has.
        let call = Call::new(engine, Role::Publish, Some(stream), &options.name);
        Ok(Publisher {
            call,
            link: Some(link),
            resend: options.resend,
            stream,
            max_message,
            backlog: VecDeque::new(),
            events: VecDeque::new(),
            watch: Watch {
                taken: 0,
                claims: 0,
                looked: Instant::now(),
            },
        })
    }

    /// The stream's group and port.
    #[must_use]
    pub fn stream(&self) -> SocketAddrV4 {
        self.stream
    }

    /// Longest message with its subject, in bytes. May change when an engine comes back.
    #[must_use]
    pub fn max_message(&self) -> usize {
        self.max_message
    }

    /// Whether an engine is there, as far as is known.
    #[must_use]
    pub fn is_attached(&self) -> bool {
        self.link.is_some()
    }

    /// Claims room for a message with a payload of `len` bytes, to be written in place and committed.
    /// The bytes hold leftovers of earlier messages. `subject` may be empty. Never waits.
    ///
    /// # Errors
    /// [`Error::Full`], [`Error::Gone`], [`Error::TooLarge`], [`Error::Subject`]. Nothing was published.
    #[inline]
    pub fn claim(&mut self, subject: &str, len: usize) -> Result<Claim<'_>, Error> {
        if !subject.is_empty() {
            subject::check(subject.as_bytes())?;
        }
        let due = self.link.as_ref().is_none_or(|link| self.watch.is_due(&link.lane));
        if due || !self.backlog.is_empty() {
            self.look()?;
        }
        let all = subject.len() + len;
        if all > self.max_message {
            return Err(Error::TooLarge {
                len: all,
                max: self.max_message,
            });
        }
        let Some(link) = &mut self.link else {
            return Err(self.call.gone());
        };
        match link.lane.try_claim(all) {
            Ok(mut entry) => {
                entry[..subject.len()].copy_from_slice(subject.as_bytes());
                entry.set_tag(subject.len() as u32);
                Ok(Claim {
                    entry,
                    subject: subject.len(),
                    wake: &link.wake,
                })
            }
            // A lane takes what a frame takes.
            Err(LaneError::Full | LaneError::TooLarge) => Err(Error::Full),
        }
    }

    /// Publishes a message; never waits.
    ///
    /// # Errors
    /// As for [`Self::claim`].
    #[inline]
    pub fn try_publish(&mut self, subject: &str, payload: &[u8]) -> Result<(), Error> {
        let mut claim = self.claim(subject, payload.len())?;
        claim.copy_from_slice(payload);
        claim.commit();
        Ok(())
    }

    /// Publishes a message; waits for room, or for an engine, at most `timeout`. `None`: without end.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::TooLarge`], [`Error::Subject`], [`Error::Refused`]. Nothing was
    /// published.
    #[inline]
    pub fn publish(&mut self, subject: &str, payload: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        match self.try_publish(subject, payload) {
            Err(Error::Full | Error::Gone(_)) => self.publish_patiently(subject, payload, timeout),
            done => done,
        }
    }

    #[cold]
    fn publish_patiently(&mut self, subject: &str, payload: &[u8], timeout: Option<Duration>) -> Result<(), Error> {
        let deadline = deadline(timeout);
        for attempt in 0_u32.. {
            let taken = self.link.as_ref().map(|link| link.lane.taken());
            match self.try_publish(subject, payload) {
                Err(Error::Full) if attempt < SPINS => std::thread::yield_now(),
                Err(Error::Full | Error::Gone(_)) => self.wait(taken, deadline)?,
                done => return done,
            }
        }
        Err(Error::Timeout)
    }

    /// Waits until the engine has taken everything that was published: it is in the server's log, or will
    /// be sent whatever happens to this program.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Refused`].
    pub fn flush(&mut self, timeout: Option<Duration>) -> Result<(), Error> {
        let deadline = deadline(timeout);
        for attempt in 0_u32.. {
            if self.link.is_none() || !self.backlog.is_empty() {
                self.look()?;
            }
            let taken = self.link.as_ref().map(|link| link.lane.taken());
            match &self.link {
                Some(link) if self.backlog.is_empty() && link.lane.is_drained() => return Ok(()),
                Some(_) if attempt < SPINS => std::thread::yield_now(),
                _ => self.wait(taken, deadline)?,
            }
        }
        Err(Error::Timeout)
    }

    /// What has happened since it was last asked: the engine is gone, or back. Also looks whether it is, and
    /// attaches again: a program that seldom publishes calls it now and then. Never waits.
    ///
    /// # Errors
    /// [`Error::Refused`] when an engine is back and refuses.
    pub fn poll(&mut self) -> Result<Option<Event>, Error> {
        self.look()?;
        Ok(self.events.pop_front())
    }

    /// Looks whether the engine lives, and attaches again if it does not.
    #[cold]
    fn look(&mut self) -> Result<(), Error> {
        if let Some(link) = &self.link {
            let mut why = link.lane.is_closed().then(|| "the engine has ended".to_owned());
            let mut refused = None;
            while why.is_none() {
                match hear(&link.socket) {
                    Ok(Some((Reply::Refused { why, text }, _))) => refused = Some(Error::Refused { why, text }),
                    Ok(Some(_)) => {}
                    Ok(None) => break,
                    Err(error) => why = Some(error.to_string()),
                }
            }
            if let Some(why) = why {
                self.lose(&why);
            }
            if let Some(refused) = refused {
                return Err(refused);
            }
        }
        if self.link.is_none()
            && let Some(answer) = self.call.poll()?
        {
            let (link, _, max_message) = open(&self.call, answer)?;
            self.link = Some(link);
            self.max_message = max_message;
            self.events.push_back(Event::of(EventKind::EngineBack));
        }
        self.resend();
        Ok(())
    }

    /// Publishes what an engine that is gone had not taken, as far as there is room.
    fn resend(&mut self) {
        let Some(link) = &mut self.link else { return };
        while let Some((subject, message)) = self.backlog.front() {
            // What fits no frame any more is dropped by the engine, and counted there.
            if link.lane.try_push(*subject, &[message]) == Err(LaneError::Full) {
                break;
            }
            self.backlog.pop_front();
        }
        if link.lane.take_asleep() {
            link.wake.raise();
        }
    }

    fn lose(&mut self, why: &str) {
        let Some(link) = self.link.take() else { return };
        self.call.reset(why);
        self.watch.taken = 0;
        self.events.push_back(Event::of(EventKind::EngineGone));
        if self.resend {
            let mut all = VecDeque::new();
            link.lane
                .into_untaken(|tag, bytes| all.push_back((tag, bytes.to_vec())));
            all.append(&mut self.backlog);
            self.backlog = all;
        }
    }

    /// Sleeps until the engine has taken more than `taken`, or an engine is there.
    fn wait(&mut self, taken: Option<u64>, deadline: Option<Instant>) -> Result<(), Error> {
        let left = left(deadline).unwrap_or(SLEEP).min(SLEEP);
        if left.is_zero() {
            return Err(Error::Timeout);
        }
        match (&self.link, taken) {
            (Some(link), Some(taken)) => {
                let asked = link.socket.send(&Request::Wait(Wait::Room(taken)).encode(), &[]);
                let result = asked.and_then(|()| link.socket.wait(Some(left)));
                if let Err(error) = result {
                    self.lose(&error.to_string());
                }
            }
            (Some(_), None) => {}
            (None, _) => self.call.rest(left),
        }
        self.look()
    }
}

fn open(call: &Call, answer: Answer) -> Result<(Link, SocketAddrV4, usize), Error> {
    let Answer { socket, reply, fds } = answer;
    let (Reply::Lane { stream, max_message }, Ok([lane, wake])) = (reply, <[_; 2]>::try_from(fds)) else {
        return Err(call.system("attach", std::io::ErrorKind::InvalidData.into()));
    };
    let lane = Producer::open(lane.as_fd()).map_err(|error| call.system("open the lane", error))?;
    let max_message = (max_message as usize).min(lane.max_len());
    let wake = Bell::from(wake);
    Ok((Link { socket, lane, wake }, stream, max_message))
}

/// Room for the payload of one message. Dropping it without [`Claim::commit`] publishes nothing.
pub struct Claim<'a> {
    entry: seqcast_ring::Claim<'a>,
    subject: usize,
    wake: &'a Bell,
}

impl Claim<'_> {
    /// Publishes the message.
    #[inline]
    pub fn commit(self) {
        if self.entry.commit_to_sleeper() {
            self.wake.raise();
        }
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        &self.entry[self.subject..]
    }
}

impl DerefMut for Claim<'_> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.entry[self.subject..]
    }
}
