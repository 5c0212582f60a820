//! The connection to an engine that may go away and come back.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use seqcast_ring::{Consumer, Reader};

use super::Subscriber;
use super::catch_up::{ASK_AGAIN, CatchUp};
use crate::call::{Answer, Call, hear};
use crate::error::Error;
use crate::protocol::{Refusal, Reply, Request, Wait};
use crate::record::{Event, EventKind};
use crate::socket::Socket;

pub(super) struct Link {
    pub(super) socket: Socket,
    pub(super) ring: Reader,
}

impl Subscriber {
    /// Hears what the engine says, and whether it lives.
    #[cold]
    pub(super) fn look(&mut self, ended: bool) -> Result<bool, Error> {
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

    pub(super) fn attach_again(&mut self) -> Result<bool, Error> {
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
    pub(super) fn wait(&mut self, longest: Duration) -> Result<(), Error> {
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

pub(super) fn open(call: &Call, answer: Answer) -> Result<(Link, SocketAddrV4, u32), Error> {
    let Answer { socket, reply, fds } = answer;
    let (Reply::Ring { stream, session }, Some(ring)) = (reply, fds.first()) else {
        return Err(call.system("attach", io::ErrorKind::InvalidData.into()));
    };
    let ring = Reader::open(ring.as_fd()).map_err(|error| call.system("open the ring", error))?;
    Ok((Link { socket, ring }, stream, session))
}
