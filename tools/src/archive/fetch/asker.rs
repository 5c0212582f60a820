//! Questions to an archive over a link, and the answers.

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use seqcast_engine::clock::Clock;
use seqcast_engine::link::Link;
use seqcast_engine::{keys, stream_id};
use seqcast_proto::gaps::nak_stamp;
use seqcast_proto::io::{End, Outbox};
use seqcast_proto::seal::{CLOCK_SKEW, Seal, TRAILER};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};
use seqcast_proto::time::{MILLIS, Nanos, Now, SECONDS};
use seqcast_proto::wire::{Body, Frame, Kind, Reason, Stamp, flags};

use super::Source;
use crate::archive::replay::{Stop, check};

/// How long an archive may be silent before it is taken to be away.
pub(super) const PATIENCE: Nanos = 5 * SECONDS;
/// Pause after which a single question is asked again.
const AGAIN: Nanos = 100 * MILLIS;
/// Longest sleep before looking whether to stop.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Frames taken from the link at once.
const BATCH: usize = 256;

/// What an archive says to a single question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// It knows the session.
    Here,
    /// The session has ended; which came before it, if that is known.
    Ended(End, Session),
    /// It knows nothing of the session. The lowest later one that it knows, if any.
    Absent(Session),
}

impl Answer {
    fn of(frame: &Frame<'_>) -> Option<Answer> {
        match frame.body {
            Body::Repair(_) => Some(Answer::Here),
            Body::End(_) => ended(frame).map(|(end, previous)| Answer::Ended(end, previous)),
            Body::Unavailable(refusals) => {
                let (_, reason, _) = refusals.iter().next()?;
                Some(match reason {
                    Reason::UnknownSession => Answer::Absent(frame.header.later_session()),
                    _ => Answer::Here,
                })
            }
            _ => None,
        }
    }
}

/// How a session ended, as an END says it, and the session before.
pub(super) fn ended(frame: &Frame<'_>) -> Option<(End, Session)> {
    let Body::End(body) = frame.body else { return None };
    let next = match frame.header.has(flags::UNSURE) {
        true => Session::NONE,
        false => Session(body.next_session.get()),
    };
    let last = frame.header.sequence().prev();
    Some((End { last, next }, Session(body.previous_session.get())))
}

/// Who asks.
pub(super) struct Asker<L> {
    link: L,
    group: SocketAddrV4,
    stream: Stream,
    seal: Option<Seal>,
    clock: Clock,
    origin: u32,
    /// Nothing wakes the link but frames.
    silence: [UnixStream; 2],
    stop: Stop,
}

/// The way to the link, sealed if the stream has a key.
pub(super) struct Out<'a, L> {
    link: &'a mut L,
    seal: Option<&'a mut Seal>,
    wall: Nanos,
}

impl<L: Link> Outbox for Out<'_, L> {
    fn send(&mut self, to: SocketAddrV4, build: impl FnOnce(&mut [u8]) -> usize) -> bool {
        let (seal, wall) = (&mut self.seal, self.wall);
        self.link.send(to, |buf| match (build(buf), seal) {
            (len, Some(seal)) if len > 0 => seal.seal(wall, buf, len),
            (len, _) => len,
        })
    }

    fn max_frame(&self) -> usize {
        self.link.max_payload() - self.seal.as_ref().map_or(0, |_| TRAILER)
    }
}

impl<L: Link> Asker<L> {
    pub(super) fn open(source: &Source, link: L, stop: Stop) -> Result<Asker<L>> {
        let mut clock = Clock::start();
        let seal = match &source.key {
            Some(path) => Some(Seal::new(keys::read_ring(path)?, CLOCK_SKEW, clock.now().wall)),
            None => None,
        };
        let (a, b) = UnixStream::pair().context("cannot make a socket pair")?;
        Ok(Asker {
            link,
            group: source.group,
            stream: stream_id(source.group, source.id),
            seal,
            clock,
            // Answers to another run's questions are none of ours.
            origin: RandomState::new().hash_one(0) as u32 | 1,
            silence: [a, b],
            stop,
        })
    }

    pub(super) fn now(&mut self) -> Now {
        self.clock.now()
    }

    /// The stamp of questions about a session.
    pub(super) fn stamp(&self, session: Session) -> Stamp {
        nak_stamp(self.stream, session, self.origin)
    }

    pub(super) fn out(&mut self, now: Now) -> Out<'_, L> {
        Out {
            link: &mut self.link,
            seal: self.seal.as_mut(),
            wall: now.wall,
        }
    }

    /// Sends one question under its number.
    pub(super) fn ask(&mut self, now: Now, question: u64, to: SocketAddrV4, session: Session, range: SeqRange) {
        let stamp = Stamp {
            time: question,
            flags: flags::ASK_ARCHIVE,
            ..self.stamp(session)
        };
        // One that finds no room is asked again.
        self.out(now).send(to, |buf| stamp.ranges(buf, Kind::Nak, [range]));
    }

    /// Hands waiting frames of archives about `session` to `each`, with their senders and lengths, and
    /// says how many datagrams there were.
    pub(super) fn receive(
        &mut self,
        session: Session,
        mut each: impl FnMut(SocketAddrV4, usize, &Frame<'_>) -> Result<()>,
    ) -> Result<usize> {
        self.link.flush().context("the link failed to send")?;
        let Asker {
            link,
            seal,
            clock,
            stream,
            ..
        } = self;
        let wall = clock.now().wall;
        let mut result = Ok(());
        let received = link.receive(BATCH, |datagram| {
            let bytes = datagram.frame.as_ref();
            let len = match seal {
                Some(seal) => seal.open(wall, bytes).unwrap_or(0),
                None => bytes.len(),
            };
            if let Ok(frame) = Frame::parse(&bytes[..len])
                && (frame.header.stream(), frame.header.session()) == (*stream, session)
                && !frame.header.has(flags::FROM_SERVER)
                && result.is_ok()
            {
                result = each(datagram.from, bytes.len(), &frame);
            }
        });
        let received = received.context("the link failed to receive")?;
        result.map(|()| received)
    }

    /// Sleeps until a frame has come, or this time.
    pub(super) fn rest(&mut self, until: Nanos) -> Result<()> {
        check(&self.stop)?;
        self.link.flush().context("the link failed to send")?;
        let left = Duration::from_nanos(until.saturating_sub(self.clock.now().mono));
        if left.is_zero() {
            return Ok(());
        }
        let waited = self.link.wait(self.silence[0].as_fd(), left.min(LOOK_EVERY));
        waited.context("the link failed to wait")
    }

    /// Asks one question of `whom`, or of all archives of the stream, until someone answers.
    ///
    /// # Errors
    /// When nobody does, or the link fails.
    pub(super) fn enquire(
        &mut self,
        whom: Option<SocketAddrV4>,
        session: Session,
        seq: Seq,
    ) -> Result<(SocketAddrV4, Answer)> {
        let start = self.now();
        let range = SeqRange { first: seq, last: seq };
        let (mut due, mut question) = (start.mono, start.wall);
        loop {
            let now = self.now();
            if now.mono >= due {
                due = now.mono + AGAIN;
                question = now.wall.max(question + 1);
                self.ask(now, question, whom.unwrap_or(self.group), session, range);
            }
            let mut answer = None;
            self.receive(session, |from, _, frame| {
                // What answers an older question may be out of date.
                let refusal = !matches!(frame.body, Body::Repair(_));
                let late = refusal && frame.header.question() <= start.wall;
                if answer.is_none() && !late && whom.is_none_or(|w| w == from) {
                    answer = Answer::of(frame).map(|a| (from, a));
                }
                Ok(())
            })?;
            if let Some(answer) = answer {
                return Ok(answer);
            }
            if now.mono - start.mono > PATIENCE {
                self.nobody(whom)?;
            }
            self.rest(due)?;
        }
    }

    /// What to say of an archive that does not answer.
    pub(super) fn nobody(&self, whom: Option<SocketAddrV4>) -> Result<()> {
        let (group, keyed) = (self.group, if self.seal.is_some() { "another key" } else { "a key" });
        let seconds = PATIENCE / SECONDS;
        match whom {
            Some(archive) => bail!(
                "the archive at {archive} of {group} has not answered for {seconds} s: it is not there, or the stream \
                 has {keyed}, or its `trust.allow` does not name this host"
            ),
            None => bail!(
                "no archive of {group} has answered for {seconds} s: none runs there, multicast does not reach it \
                 (name it with --archive ADDRESS:PORT), or the stream has {keyed}"
            ),
        }
    }
}
