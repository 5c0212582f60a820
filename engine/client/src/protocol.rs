//! What programs and their engine say to each other over the socket. Little-endian; one host only.

use std::net::{Ipv4Addr, SocketAddrV4};

/// Version of the socket's messages, of the rings and of what is in them.
pub const VERSION: u16 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"SQPG");
/// Longest name of a program, in bytes.
pub const MAX_NAME: usize = 64;
/// Longest text of a refusal, in bytes.
const MAX_TEXT: usize = 1024;
/// Most streams that an engine lists.
pub const MAX_STREAMS: usize = 256;

/// What a program does with a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It publishes: the engine makes a lane.
    Publish = 1,
    /// It receives: the engine gives it the stream's ring.
    Subscribe = 2,
}

/// What a program waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// That the engine has taken more of the lane than this, in bytes.
    Room(u64),
    /// That the ring has message of this number.
    Message(u64),
    /// That more has been put into the catch-up lane than this, in bytes.
    CatchUp(u64),
}

/// What a program says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// The first word of all: which stream it wants, and as what.
    Attach {
        /// The program's version of all this.
        version: u16,
        /// What it will do.
        role: Role,
        /// The stream's group; none: the only one that there is.
        stream: Option<SocketAddrV4>,
        /// What it calls itself, for messages.
        name: String,
    },
    /// Instead of that: which streams there are. The engine answers and closes.
    List,
    /// It is about to sleep: it wants to hear [`Reply::Wake`] when this is so.
    Wait(Wait),
    /// It wants all behind this message again, from the archive.
    CatchUp {
        /// The session.
        session: u32,
        /// The number.
        sequence: u32,
    },
    /// It needs no more of that.
    CaughtUp,
}

/// Why an engine refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Refusal {
    /// It speaks another version.
    Version = 1,
    /// This user may not.
    Permission = 2,
    /// It has no such stream for programs.
    Stream = 3,
    /// No more programs are admitted.
    Full = 4,
    /// The program broke the rules; what it sent is not used.
    Broken = 5,
    /// Nothing can be asked for again now: others are catching up.
    Busy = 6,
    /// The engine cannot make what the program needs.
    System = 7,
}

impl Refusal {
    fn of(code: u16) -> Refusal {
        match code {
            1 => Refusal::Version,
            2 => Refusal::Permission,
            3 => Refusal::Stream,
            4 => Refusal::Full,
            6 => Refusal::Busy,
            7 => Refusal::System,
            _ => Refusal::Broken,
        }
    }
}

/// A stream that programs may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// Its group and port.
    pub group: SocketAddrV4,
    /// Whether programs may publish.
    pub publish: bool,
    /// Whether programs may subscribe.
    pub subscribe: bool,
}

/// What the engine says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Beside it: the lane and the event that wakes the engine.
    Lane {
        /// The stream.
        stream: SocketAddrV4,
        /// Longest message with its subject, in bytes.
        max_message: u32,
    },
    /// Beside it: the ring.
    Ring {
        /// The stream.
        stream: SocketAddrV4,
        /// The session that is being received; 0 before the first.
        session: u32,
    },
    /// Beside it: the lane with what was asked for again.
    CatchUp,
    /// What the program waits for is there.
    Wake,
    /// It does not want to.
    Refused {
        /// Why.
        why: Refusal,
        /// The same for people.
        text: String,
    },
    /// The streams for programs.
    Streams(Vec<StreamInfo>),
}

struct Out(Vec<u8>);

impl Out {
    fn new(kind: u16) -> Out {
        Out(kind.to_le_bytes().into())
    }
    fn u16(mut self, n: u16) -> Out {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn u32(mut self, n: u32) -> Out {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Out {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn group(self, group: SocketAddrV4) -> Out {
        self.u32(group.ip().to_bits()).u16(group.port())
    }
    fn text(mut self, text: &str, max: usize) -> Vec<u8> {
        self.0.extend(&text.as_bytes()[..text.floor_char_boundary(max)]);
        self.0
    }
}

struct In<'a>(&'a [u8]);

impl<'a> In<'a> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*head)
    }
    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_le_bytes)
    }
    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }
    fn group(&mut self) -> Option<SocketAddrV4> {
        Some(SocketAddrV4::new(Ipv4Addr::from_bits(self.u32()?), self.u16()?))
    }
    fn text(self, max: usize) -> Option<String> {
        (self.0.len() <= max).then(|| String::from_utf8_lossy(self.0).into_owned())
    }
    fn end<T>(self, value: T) -> Option<T> {
        self.0.is_empty().then_some(value)
    }
}

const NO_GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

impl Request {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Request::Attach {
                version,
                role,
                stream,
                name,
            } => Out::new(1)
                .u32(MAGIC)
                .u16(*version)
                .u16(*role as u16)
                .group(stream.unwrap_or(NO_GROUP))
                .text(name, MAX_NAME),
            Request::List => Out::new(2).u32(MAGIC).0,
            Request::Wait(wait) => {
                let (what, than) = match *wait {
                    Wait::Room(n) => (1, n),
                    Wait::Message(n) => (2, n),
                    Wait::CatchUp(n) => (3, n),
                };
                Out::new(3).u16(what).u64(than).0
            }
            Request::CatchUp { session, sequence } => Out::new(4).u32(*session).u32(*sequence).0,
            Request::CaughtUp => Out::new(5).0,
        }
    }

    /// What the bytes say; `None` if that is nothing that a program says. Of another version's
    /// [`Request::Attach`] only the version counts.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Request> {
        let mut from = In(bytes);
        match from.u16()? {
            1 => {
                if from.u32()? != MAGIC {
                    return None;
                }
                let version = from.u16()?;
                if version != VERSION {
                    return Some(Request::Attach {
                        version,
                        role: Role::Subscribe,
                        stream: None,
                        name: String::new(),
                    });
                }
                let role = match from.u16()? {
                    1 => Role::Publish,
                    2 => Role::Subscribe,
                    _ => return None,
                };
                let group = from.group()?;
                Some(Request::Attach {
                    version,
                    role,
                    stream: (group != NO_GROUP).then_some(group),
                    name: from.text(MAX_NAME)?,
                })
            }
            2 => (from.u32()? == MAGIC).then_some(Request::List),
            3 => {
                let (what, than) = (from.u16()?, from.u64()?);
                let wait = match what {
                    1 => Wait::Room(than),
                    2 => Wait::Message(than),
                    3 => Wait::CatchUp(than),
                    _ => return None,
                };
                from.end(Request::Wait(wait))
            }
            4 => {
                let (session, sequence) = (from.u32()?, from.u32()?);
                from.end(Request::CatchUp { session, sequence })
            }
            5 => from.end(Request::CaughtUp),
            _ => None,
        }
    }
}

impl Reply {
    /// The message's bytes.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        match self {
            Reply::Lane { stream, max_message } => Out::new(1).group(*stream).u32(*max_message).0,
            Reply::Ring { stream, session } => Out::new(2).group(*stream).u32(*session).0,
            Reply::CatchUp => Out::new(3).0,
            Reply::Wake => Out::new(4).0,
            Reply::Refused { why, text } => Out::new(5).u16(*why as u16).text(text, MAX_TEXT),
            Reply::Streams(streams) => {
                let mut out = Out::new(6);
                for stream in &streams[..streams.len().min(MAX_STREAMS)] {
                    let roles = u16::from(stream.publish) | u16::from(stream.subscribe) << 1;
                    out = out.group(stream.group).u16(roles);
                }
                out.0
            }
        }
    }

    /// What the bytes say; `None` if that is nothing that an engine says.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Reply> {
        let mut from = In(bytes);
        match from.u16()? {
            1 => {
                let (stream, max_message) = (from.group()?, from.u32()?);
                from.end(Reply::Lane { stream, max_message })
            }
            2 => {
                let (stream, session) = (from.group()?, from.u32()?);
                from.end(Reply::Ring { stream, session })
            }
            3 => from.end(Reply::CatchUp),
            4 => from.end(Reply::Wake),
            5 => {
                let why = Refusal::of(from.u16()?);
                let text = from.text(MAX_TEXT)?;
                Some(Reply::Refused { why, text })
            }
            6 => {
                let mut streams = Vec::new();
                while !from.0.is_empty() && streams.len() < MAX_STREAMS {
                    let (group, roles) = (from.group()?, from.u16()?);
                    streams.push(StreamInfo {
                        group,
                        publish: roles & 1 != 0,
                        subscribe: roles & 2 != 0,
                    });
                }
                from.end(Reply::Streams(streams))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GROUP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(239, 1, 1, 1), 5000);

    #[test]
    fn what_is_said_is_understood() {
        let attach = |stream, role| Request::Attach {
            version: VERSION,
            role,
            stream,
            name: "risk".into(),
        };
        for request in [
            attach(Some(GROUP), Role::Publish),
            attach(None, Role::Subscribe),
            Request::List,
            Request::Wait(Wait::Room(7)),
            Request::Wait(Wait::Message(u64::MAX)),
            Request::Wait(Wait::CatchUp(0)),
            Request::CatchUp {
                session: 5,
                sequence: 6,
            },
            Request::CaughtUp,
        ] {
            assert_eq!(Request::decode(&request.encode()), Some(request));
        }
        let info = StreamInfo {
            group: GROUP,
            publish: true,
            subscribe: false,
        };
        for reply in [
            Reply::Lane {
                stream: GROUP,
                max_message: 1400,
            },
            Reply::Ring {
                stream: GROUP,
                session: 9,
            },
            Reply::CatchUp,
            Reply::Wake,
            Reply::Refused {
                why: Refusal::Full,
                text: "64 programs".into(),
            },
            Reply::Streams(vec![info; MAX_STREAMS]),
        ] {
            let bytes = reply.encode();
            assert!(bytes.len() <= crate::socket::MAX_MESSAGE);
            assert_eq!(Reply::decode(&bytes), Some(reply));
        }
    }

    #[test]
    fn what_nobody_says_is_nothing() {
        for len in 0..40 {
            for byte in 0..=255 {
                let bytes = vec![byte; len];
                let _ = (Request::decode(&bytes), Reply::decode(&bytes));
            }
        }
        let good = Request::Wait(Wait::Room(7)).encode();
        assert_eq!(Request::decode(&good[..good.len() - 1]), None);
        assert_eq!(Request::decode(&[&good[..], &[0]].concat()), None);
    }
}
