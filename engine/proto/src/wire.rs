//! The wire format, to the byte.
//!
//! Every frame is one UDP datagram: a fixed header of [`HEADER`] bytes, then a body whose shape the
//! kind decides. All numbers are little-endian. [`Frame::parse`] checks every length and count
//! before anything is used, so that what follows can read in place. `docs/protocol.md` shows the
//! same as tables.

use core::cmp::Ordering;
use core::net::{Ipv4Addr, SocketAddrV4};

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::lines::Line;
use crate::seq::{Seq, SeqRange, Session, Stream};

/// First two bytes of every frame.
pub const MAGIC: [u8; 2] = *b"SQ";
/// The version of the format that this module writes and reads.
pub const VERSION: u8 = 2;
/// Bytes of the fixed header.
pub const HEADER: usize = size_of::<Header>();
/// Bytes in front of each message in a block: payload length, subject length, flags.
pub const MESSAGE_HEADER: usize = size_of::<MessageHeader>();
/// Messages are padded to a multiple of this many bytes.
pub const MESSAGE_ALIGN: usize = 4;
/// Most ranges that one control frame names, so that it fits the smallest frame of 576 bytes.
pub const MAX_RANGES: usize = 40;
/// Most endpoints that one heartbeat names: a server and 15 archives on two lines.
pub const MAX_ENDPOINTS: usize = 32;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Server to group: new messages.
    Data = 1,
    /// Server to group: the next sequence number, and where to ask for repairs.
    Heartbeat = 2,
    /// Archive to server: what is stored.
    Ack = 3,
    /// Client or archive to archive or server: what is missing.
    Nak = 4,
    /// Archive or server to whoever asked, or the group: old messages under their old numbers.
    Repair = 5,
    /// Archive or server to whoever asked: what cannot be repaired here, and why.
    Unavailable = 6,
    /// Server to group, or answer to a NAK: the session has ended.
    End = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        Some(match byte {
            1 => Kind::Data,
            2 => Kind::Heartbeat,
            3 => Kind::Ack,
            4 => Kind::Nak,
            5 => Kind::Repair,
            6 => Kind::Unavailable,
            7 => Kind::End,
            _ => return None,
        })
    }
}

/// Flag bits of the header; the kinds that use each are named.
pub mod flags {
    /// REPAIR, UNAVAILABLE, END: the answer comes from a server; otherwise from an archive.
    pub const FROM_SERVER: u16 = 1;
    /// NAK: the server is asked.
    pub const ASK_SERVER: u16 = 2;
    /// NAK: the archive is asked.
    pub const ASK_ARCHIVE: u16 = 4;
    /// HEARTBEAT: the server keeps each message until an archive has acknowledged it.
    pub const ARCHIVED: u16 = 8;
    /// ACK: the ranges are on stable storage, not only in the archive's memory.
    pub const SYNCED: u16 = 16;
    /// END: whether the session had more messages, and whether others came before the one named
    /// as the next, is not known to its sender.
    pub const UNSURE: u16 = 32;
    /// Every kind: the frame is sealed; the upper byte of the flags is the key's id, and the frame
    /// ends in a trailer, see [`crate::seal`].
    pub const KEYED: u16 = 128;
}

/// The fixed header of every frame.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Header {
    /// [`MAGIC`].
    pub magic: [u8; 2],
    /// [`VERSION`].
    pub version: u8,
    /// A [`Kind`].
    pub kind: u8,
    /// The stream.
    pub stream: U32,
    /// The session that the numbers belong to.
    pub session: U32,
    /// DATA, REPAIR: number of the first message. HEARTBEAT, END: one past the last number used.
    /// Otherwise 0.
    pub sequence: U32,
    /// Nanoseconds since the Unix epoch. DATA, HEARTBEAT, ACK: when the frame was sent. REPAIR: when
    /// the messages were first sent. NAK, UNAVAILABLE, END: see [`Header::question`].
    pub time: U64,
    /// Messages, ranges or endpoints in the body; 0 for END.
    pub count: U16,
    /// See [`flags`].
    pub flags: U16,
    /// Who sent the frame: a server's run, an archive's identity, or a client's. REPAIR: who
    /// repairs.
    pub origin: U32,
}

/// A range of sequence numbers, both ends included.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct WireRange {
    /// First number, at least [`Seq::FIRST`].
    pub first: U32,
    /// Last number, at least `first` and at most [`Seq::LAST`].
    pub last: U32,
}

/// A range that cannot be repaired by the party asked.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Refusal {
    /// The numbers.
    pub range: WireRange,
    /// A [`Reason`].
    pub reason: u8,
    /// 0.
    pub reserved: u8,
    /// Milliseconds after which asking again makes sense; 0 if it never does, or at once.
    pub retry_ms: U16,
}

/// Why a range cannot be repaired by the party asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Not seen here yet; another party, or a later try, may have it.
    NotYet = 1,
    /// No longer kept here.
    TooOld = 2,
    /// Established to be lost: nobody holds it.
    Lost = 3,
    /// This party knows nothing of the session.
    UnknownSession = 4,
    /// The party has it but answers no more for now.
    Busy = 5,
}

impl Reason {
    fn from_byte(byte: u8) -> Option<Reason> {
        Some(match byte {
            1 => Reason::NotYet,
            2 => Reason::TooOld,
            3 => Reason::Lost,
            4 => Reason::UnknownSession,
            5 => Reason::Busy,
            _ => return None,
        })
    }

    /// Whether the same party will give the same answer for ever.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Reason::TooOld | Reason::Lost | Reason::UnknownSession)
    }

    /// Whether only numbers that were used are refused so: the session reaches beyond them.
    #[must_use]
    pub fn is_of_the_past(self) -> bool {
        matches!(self, Reason::TooOld | Reason::Lost)
    }
}

/// Body of a HEARTBEAT, before its endpoints.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct HeartbeatBody {
    /// The session before this one, or 0 when there was none or it is not known.
    pub previous_session: U32,
    /// The last number of the previous session; 0 when it was empty or is not known.
    pub previous_last: U32,
    /// The lowest number that the server itself still holds.
    pub oldest: U32,
    /// Every number below this one has been acknowledged by as many archives as required.
    pub acknowledged: U32,
}

/// Body of an END.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct EndBody {
    /// The session that follows, or 0 when none has been opened yet.
    pub next_session: U32,
    /// The session before the one that ended, or 0.
    pub previous_session: U32,
}

/// Bit of [`Endpoint::line`]: another way to the party of the endpoint before.
pub const TWIN: u8 = 2;

/// Where repairs can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Endpoint {
    /// IPv4 address, in network order.
    pub ip: [u8; 4],
    /// UDP port.
    pub port: U16,
    /// A [`Role`].
    pub role: u8,
    /// The [`Line`] that leads there; with [`TWIN`], to the party of the endpoint before.
    pub line: u8,
}

/// Who answers at an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Role {
    /// The server.
    Server = 1,
    /// An archive.
    Archive = 2,
}

impl Endpoint {
    /// The endpoint of `role` at `addr`.
    #[must_use]
    pub fn new(addr: SocketAddrV4, role: Role) -> Endpoint {
        Endpoint {
            ip: addr.ip().octets(),
            port: U16::new(addr.port()),
            role: role as u8,
            line: Line::A as u8,
        }
    }

    /// Another way to the party of the endpoint before: over line B.
    #[must_use]
    pub fn twin(self) -> Endpoint {
        Endpoint {
            line: Line::B as u8 | TWIN,
            ..self
        }
    }

    /// The same, reached over `line`.
    #[must_use]
    pub fn over(self, line: Line) -> Endpoint {
        Endpoint {
            line: line as u8,
            ..self
        }
    }

    fn is_twin(&self) -> bool {
        self.line & TWIN != 0
    }

    fn is_over(&self, line: Line) -> bool {
        self.line & !TWIN == line as u8
    }

    /// The address.
    #[must_use]
    pub fn addr(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::from(self.ip), self.port.get())
    }

    /// Whether `role` answers here. Unknown roles of later versions match nothing.
    #[must_use]
    pub fn is(&self, role: Role) -> bool {
        self.role == role as u8
    }
}

/// The addresses of all parties of a role: of one with two that over `line`.
pub fn reachable(endpoints: &[Endpoint], role: Role, line: Line) -> impl Iterator<Item = SocketAddrV4> + Clone {
    let chosen = move |at: &usize| {
        let endpoint = &endpoints[*at];
        let has_twin = endpoints.get(at + 1).is_some_and(Endpoint::is_twin);
        endpoint.is(role) && (endpoint.is_over(line) || !endpoint.is_twin() && !has_twin)
    };
    (0..endpoints.len()).filter(chosen).map(|at| endpoints[at].addr())
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct MessageHeader {
    payload: U16,
    subject: u8,
    flags: u8,
}

impl Header {
    /// The stream.
    #[must_use]
    pub fn stream(&self) -> Stream {
        Stream(self.stream.get())
    }

    /// The session.
    #[must_use]
    pub fn session(&self) -> Session {
        Session(self.session.get())
    }

    /// The sequence number; what it says depends on the kind.
    #[must_use]
    pub fn sequence(&self) -> Seq {
        Seq(self.sequence.get())
    }

    /// In an UNAVAILABLE: the lowest later session of which its sender knows, or [`Session::NONE`].
    #[must_use]
    pub fn later_session(&self) -> Session {
        Session(self.sequence.get())
    }

    /// In a NAK: the number of the question, which is the time when it was sent, and grows from one
    /// question of an asker and session to the next. In an UNAVAILABLE and END: the number of the
    /// question that it answers; 0 if nobody has asked.
    #[must_use]
    pub fn question(&self) -> u64 {
        self.time.get()
    }

    /// Whether a flag of [`flags`] is set.
    #[must_use]
    pub fn has(&self, flag: u16) -> bool {
        self.flags.get() & flag != 0
    }
}

impl WireRange {
    /// Within the numbers of a session, so that what follows the range fits as well.
    fn get(self) -> Option<SeqRange> {
        let range = SeqRange::new(Seq(self.first.get()), Seq(self.last.get()))?;
        (Seq::FIRST <= range.first && range.last <= Seq::LAST).then_some(range)
    }
}

impl From<SeqRange> for WireRange {
    fn from(range: SeqRange) -> WireRange {
        WireRange {
            first: U32::new(range.first.0),
            last: U32::new(range.last.0),
        }
    }
}

/// One message: what a program published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Dot-separated subject; empty when the publisher gave none.
    pub subject: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// Longest payload and subject that the format can carry; a frame may be shorter.
    pub const MAX_PAYLOAD: usize = u16::MAX as usize;
    /// Longest subject in bytes.
    pub const MAX_SUBJECT: usize = u8::MAX as usize;

    /// Bytes that the message takes in a block.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        padded(MESSAGE_HEADER + self.subject.len() + self.payload.len())
    }
}

/// The largest payload (with its subject) that fits one frame of `max_frame` bytes of UDP payload.
#[must_use]
pub fn max_message(max_frame: usize) -> usize {
    let room = max_frame.saturating_sub(HEADER) & !(MESSAGE_ALIGN - 1);
    room.saturating_sub(MESSAGE_HEADER).min(Message::MAX_PAYLOAD)
}

fn padded(len: usize) -> usize {
    len.next_multiple_of(MESSAGE_ALIGN)
}

/// Consecutive messages, in wire form.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    first: Seq,
    count: u16,
    bytes: &'a [u8],
}

impl<'a> Block<'a> {
    /// A block of exactly `count` well-formed messages, numbered from `first`.
    ///
    /// # Errors
    /// When the bytes hold fewer or more, or the numbers leave the range of a session.
    pub fn parse(first: Seq, count: u16, bytes: &'a [u8]) -> Result<Block<'a>, WireError> {
        let numbers = SeqRange::of(first, u32::from(count));
        if first < Seq::FIRST || numbers.is_none() {
            return Err(WireError::Numbers);
        }
        let mut walk = Walk::default();
        for _ in 0..count {
            // A message that leaves the block leaves no room for the next, or for the end.
            walk.step(bytes).ok_or(WireError::Message)?;
        }
        match walk.at.cmp(&bytes.len()) {
            Ordering::Equal => Ok(Block { first, count, bytes }),
            Ordering::Less => Err(WireError::Length),
            Ordering::Greater => Err(WireError::Message),
        }
    }

    /// A block whose bytes were checked before, for example when they were stored. Reading a
    /// block that is not well-formed ends early; it never reads out of bounds.
    #[must_use]
    pub fn trusted(first: Seq, count: u16, bytes: &'a [u8]) -> Block<'a> {
        Block { first, count, bytes }
    }

    /// The numbers of the messages; `None` for an empty block.
    #[must_use]
    pub fn range(&self) -> Option<SeqRange> {
        SeqRange::of(self.first, u32::from(self.count))
    }

    /// Number of the first message.
    #[must_use]
    pub fn first(&self) -> Seq {
        self.first
    }

    /// How many messages.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// The messages in wire form.
    #[must_use]
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The messages with their numbers, ascending.
    #[inline]
    pub fn messages(&self) -> impl Iterator<Item = (Seq, Message<'a>)> + use<'a> {
        let Block { first, count, bytes } = *self;
        let mut walk = Walk::default();
        (0..u32::from(count)).map_while(move |i| {
            let (start, len) = walk.step(bytes)?;
            let body = bytes.get(start..start + len)?.get(MESSAGE_HEADER..)?;
            let (subject, body) = body.split_at_checked(usize::from(walk.head.subject))?;
            let payload = body.get(..usize::from(walk.head.payload.get()))?;
            Some((first.plus(i), Message { subject, payload }))
        })
    }

    /// Bytes of all payloads together.
    #[inline]
    #[must_use]
    pub fn payload_bytes(&self) -> u64 {
        let mut walk = Walk::default();
        let sizes = (0..self.count).map_while(|_| {
            walk.step(self.bytes)?;
            Some(u64::from(walk.head.payload.get()))
        });
        sizes.sum()
    }

    /// The part of the block whose numbers lie in `wanted`, at most `max_bytes` long.
    #[must_use]
    pub fn part(&self, wanted: SeqRange, max_bytes: usize) -> Option<Block<'a>> {
        let range = self.range()?.intersect(wanted)?;
        if range.first == self.first && range.len() == u32::from(self.count) && self.bytes.len() <= max_bytes {
            return Some(*self);
        }
        let mut walk = Walk::default();
        for _ in 0..range.first.since(self.first) {
            walk.step(self.bytes)?;
        }
        let (start, mut end, mut count) = (walk.at, walk.at, 0u16);
        while u32::from(count) < range.len() && walk.step(self.bytes).is_some() {
            if walk.at > self.bytes.len() || walk.at - start > max_bytes {
                break;
            }
            end = walk.at;
            count += 1;
        }
        (count > 0).then(|| Block {
            first: range.first,
            count,
            bytes: &self.bytes[start..end],
        })
    }
}

/// Goes through a block, message by message.
#[derive(Clone, Copy)]
struct Walk {
    /// Where the next message begins.
    at: usize,
    /// Header of the message that was passed last, and how much room that took.
    head: MessageHeader,
    len: usize,
}

impl Default for Walk {
    fn default() -> Walk {
        Walk {
            at: 0,
            head: MessageHeader::new_zeroed(),
            len: MESSAGE_HEADER,
        }
    }
}

impl Walk {
    /// Passes one message: where it begins, and how much room it takes, which may be more than there
    /// is. `None` when not even its header is there.
    ///
    /// Messages are mostly as long as the one before. To compare the headers, rather than to reckon
    /// with each, lets the processor guess where the next one is and read it before it has this one.
    #[inline]
    fn step(&mut self, bytes: &[u8]) -> Option<(usize, usize)> {
        let (head, _) = MessageHeader::ref_from_prefix(bytes.get(self.at..)?).ok()?;
        if head.as_bytes() != self.head.as_bytes() {
            self.head = *head;
            self.len = padded(MESSAGE_HEADER + usize::from(head.subject) + usize::from(head.payload.get()));
        }
        let start = self.at;
        self.at += self.len;
        Some((start, self.len))
    }
}

/// Writes `message` at the start of `out` and returns its length, or `None` when it does not fit.
#[inline]
pub fn put_message(out: &mut [u8], message: &Message<'_>) -> Option<usize> {
    let (subject, payload) = (message.subject, message.payload);
    let len = message.encoded_len();
    let (front, body) = out.get_mut(..len)?.split_first_chunk_mut::<MESSAGE_HEADER>()?;
    *front = zerocopy::transmute!(MessageHeader {
        payload: U16::new(u16::try_from(payload.len()).ok()?),
        subject: u8::try_from(subject.len()).ok()?,
        flags: 0,
    });
    // The padding, which lies in the last word; the payload then covers the rest of that.
    if let Some(last) = body.last_chunk_mut::<MESSAGE_ALIGN>() {
        *last = [0; MESSAGE_ALIGN];
    }
    if !subject.is_empty() {
        body[..subject.len()].copy_from_slice(subject);
    }
    copy(&mut body[subject.len()..][..payload.len()], payload);
    Some(len)
}

/// Copies between slices of one length. Payloads are mostly short, and for these a call of the
/// library's copy costs more than the copying: two pieces of a fixed size, which may overlap, do it.
#[inline]
fn copy(to: &mut [u8], from: &[u8]) {
    #[inline]
    fn ends<const N: usize>(to: &mut [u8], from: &[u8]) {
        if let (Some(to), Some(from)) = (to.first_chunk_mut::<N>(), from.first_chunk::<N>()) {
            *to = *from;
        }
        if let (Some(to), Some(from)) = (to.last_chunk_mut::<N>(), from.last_chunk::<N>()) {
            *to = *from;
        }
    }
    match from.len() {
        8..16 => ends::<8>(to, from),
        16..32 => ends::<16>(to, from),
        32..64 => ends::<32>(to, from),
        64..=128 => ends::<64>(to, from),
        _ => to.copy_from_slice(from),
    }
}

/// Why bytes are not a frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WireError {
    /// Shorter than a header.
    Short,
    /// Another protocol.
    Magic,
    /// A version that this build does not speak.
    Version(u8),
    /// A kind that this version does not know.
    Kind(u8),
    /// The body is shorter or longer than its counts say.
    Length,
    /// A message inside the block leaves it.
    Message,
    /// Sequence numbers that no session can hold, or an empty range.
    Numbers,
}

impl core::fmt::Display for WireError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            WireError::Short => write!(f, "shorter than a frame's header of {HEADER} bytes"),
            WireError::Magic => write!(f, "not a Seqcast frame"),
            WireError::Version(v) => {
                write!(f, "frame version {v}; this build speaks version {VERSION}")
            }
            WireError::Kind(k) => write!(f, "unknown frame kind {k}"),
            WireError::Length => write!(f, "body length disagrees with its counts"),
            WireError::Message => write!(f, "a message leaves its frame"),
            WireError::Numbers => write!(f, "sequence numbers outside of a session"),
        }
    }
}

impl core::error::Error for WireError {}

/// A parsed frame; everything in it has been checked.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// The fixed header.
    pub header: &'a Header,
    /// What the kind carries.
    pub body: Body<'a>,
}

/// The body of a frame by kind.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// [`Kind::Data`].
    Data(Block<'a>),
    /// [`Kind::Repair`].
    Repair(Block<'a>),
    /// [`Kind::Heartbeat`].
    Heartbeat(&'a HeartbeatBody, &'a [Endpoint]),
    /// [`Kind::Ack`].
    Ack(Ranges<'a>),
    /// [`Kind::Nak`].
    Nak(Ranges<'a>),
    /// [`Kind::Unavailable`].
    Unavailable(Refusals<'a>),
    /// [`Kind::End`].
    End(&'a EndBody),
}

/// Ranges of a control frame, each valid.
#[derive(Clone, Copy, Debug)]
pub struct Ranges<'a>(&'a [WireRange]);

impl<'a> Ranges<'a> {
    /// The ranges in the order of the frame.
    pub fn iter(&self) -> impl Iterator<Item = SeqRange> + use<'a> {
        self.0.iter().filter_map(|r| r.get())
    }
}

/// Refused ranges of an UNAVAILABLE, each valid.
#[derive(Clone, Copy, Debug)]
pub struct Refusals<'a>(&'a [Refusal]);

impl<'a> Refusals<'a> {
    /// Range, reason and milliseconds until asking again, in the order of the frame.
    pub fn iter(&self) -> impl Iterator<Item = (SeqRange, Reason, u16)> + use<'a> {
        self.0
            .iter()
            .filter_map(|r| Some((r.range.get()?, Reason::from_byte(r.reason)?, r.retry_ms.get())))
    }
}

/// The header in front of `bytes`, whatever they are.
#[inline]
#[must_use]
pub fn header(bytes: &[u8]) -> Option<&Header> {
    Header::ref_from_prefix(bytes).ok().map(|(header, _)| header)
}

/// The stream and kind of what looks like a frame of ours: enough to hand it to the right part.
#[inline]
#[must_use]
pub fn peek(bytes: &[u8]) -> Option<(Stream, Kind)> {
    let (header, _) = Header::ref_from_prefix(bytes).ok()?;
    (header.magic == MAGIC && header.version == VERSION)
        .then(|| Some((header.stream(), Kind::from_byte(header.kind)?)))?
}

/// The addresses that a HEARTBEAT says are reached over `line`; none of any other frame.
pub fn endpoints_over(bytes: &[u8], line: Line) -> impl Iterator<Item = SocketAddrV4> {
    let endpoints = match Frame::parse(bytes) {
        Ok(Frame {
            body: Body::Heartbeat(_, endpoints),
            ..
        }) => endpoints,
        _ => &[],
    };
    let named = endpoints.iter().filter(move |e| e.is_over(line));
    named.map(Endpoint::addr)
}

impl<'a> Frame<'a> {
    /// Checks and takes apart one UDP payload.
    ///
    /// # Errors
    /// Says what is wrong; nothing of such a frame may be used.
    pub fn parse(bytes: &'a [u8]) -> Result<Frame<'a>, WireError> {
        let (header, body) = Header::ref_from_prefix(bytes).map_err(|_| WireError::Short)?;
        if header.magic != MAGIC {
            return Err(WireError::Magic);
        }
        if header.version != VERSION {
            return Err(WireError::Version(header.version));
        }
        let kind = Kind::from_byte(header.kind).ok_or(WireError::Kind(header.kind))?;
        let count = header.count.get();
        let body = match kind {
            Kind::Data | Kind::Repair => {
                if count == 0 {
                    return Err(WireError::Numbers);
                }
                let block = Block::parse(header.sequence(), count, body)?;
                if kind == Kind::Data {
                    Body::Data(block)
                } else {
                    Body::Repair(block)
                }
            }
            Kind::Heartbeat => {
                let (head, rest) = HeartbeatBody::ref_from_prefix(body).map_err(|_| WireError::Length)?;
                if header.sequence() < Seq::FIRST {
                    return Err(WireError::Numbers);
                }
                Body::Heartbeat(head, list(rest, count, MAX_ENDPOINTS)?)
            }
            Kind::Ack => Body::Ack(ranges(body, count)?),
            Kind::Nak => Body::Nak(ranges(body, count)?),
            Kind::Unavailable => {
                let refusals: &[Refusal] = list(body, count, MAX_RANGES)?;
                if refusals.iter().any(|r| r.range.get().is_none()) {
                    return Err(WireError::Numbers);
                }
                Body::Unavailable(Refusals(refusals))
            }
            Kind::End => {
                if header.sequence() < Seq::FIRST {
                    return Err(WireError::Numbers);
                }
                Body::End(EndBody::ref_from_bytes(body).map_err(|_| WireError::Length)?)
            }
        };
        Ok(Frame { header, body })
    }
}

fn list<T: FromBytes + KnownLayout + Immutable + Unaligned>(
    bytes: &[u8],
    count: u16,
    max: usize,
) -> Result<&[T], WireError> {
    let list = <[T]>::ref_from_bytes_with_elems(bytes, usize::from(count)).map_err(|_| WireError::Length)?;
    if list.len() > max {
        return Err(WireError::Length);
    }
    Ok(list)
}

fn ranges(bytes: &[u8], count: u16) -> Result<Ranges<'_>, WireError> {
    let ranges: &[WireRange] = list(bytes, count, MAX_RANGES)?;
    if ranges.iter().any(|r| r.get().is_none()) {
        return Err(WireError::Numbers);
    }
    Ok(Ranges(ranges))
}

/// What the header of an outgoing frame says besides its kind and count.
#[derive(Clone, Copy, Debug)]
pub struct Stamp {
    /// The stream.
    pub stream: Stream,
    /// The session.
    pub session: Session,
    /// See [`Header::sequence`].
    pub sequence: Seq,
    /// See [`Header::time`].
    pub time: u64,
    /// See [`flags`].
    pub flags: u16,
    /// See [`Header::origin`].
    pub origin: u32,
}

impl Stamp {
    /// Writes the header into the first [`HEADER`] bytes of `out`.
    ///
    /// # Panics
    /// When `out` is shorter; every link's frames are longer.
    pub fn write(&self, out: &mut [u8], kind: Kind, count: u16) {
        let header = Header {
            magic: MAGIC,
            version: VERSION,
            kind: kind as u8,
            stream: U32::new(self.stream.0),
            session: U32::new(self.session.0),
            sequence: U32::new(self.sequence.0),
            time: U64::new(self.time),
            count: U16::new(count),
            flags: U16::new(self.flags),
            origin: U32::new(self.origin),
        };
        out[..HEADER].copy_from_slice(header.as_bytes());
    }

    /// Writes a frame of kind [`Kind::Data`] or [`Kind::Repair`] around a finished block and
    /// returns its length.
    ///
    /// # Panics
    /// When `out` is too short for the block.
    pub fn block(&self, out: &mut [u8], kind: Kind, block: &Block<'_>) -> usize {
        self.write(out, kind, block.count());
        let end = HEADER + block.bytes().len();
        out[HEADER..end].copy_from_slice(block.bytes());
        end
    }

    /// Writes a HEARTBEAT and returns its length; endpoints past [`MAX_ENDPOINTS`] are left out.
    pub fn heartbeat(&self, out: &mut [u8], body: &HeartbeatBody, endpoints: &[Endpoint]) -> usize {
        let endpoints = &endpoints[..endpoints.len().min(MAX_ENDPOINTS)];
        self.write(out, Kind::Heartbeat, endpoints.len() as u16);
        let at = put(out, HEADER, body.as_bytes());
        put(out, at, endpoints.as_bytes())
    }

    /// Writes an ACK or NAK and returns its length; ranges past [`MAX_RANGES`] are left out.
    pub fn ranges(&self, out: &mut [u8], kind: Kind, ranges: impl IntoIterator<Item = SeqRange>) -> usize {
        let mut at = HEADER;
        let mut count = 0;
        for range in ranges.into_iter().take(MAX_RANGES) {
            at = put(out, at, WireRange::from(range).as_bytes());
            count += 1;
        }
        self.write(out, kind, count);
        at
    }

    /// Writes an UNAVAILABLE for one range and returns its length.
    pub fn unavailable(&self, out: &mut [u8], range: SeqRange, reason: Reason, retry_ms: u16) -> usize {
        self.write(out, Kind::Unavailable, 1);
        let refusal = Refusal {
            range: range.into(),
            reason: reason as u8,
            reserved: 0,
            retry_ms: U16::new(retry_ms),
        };
        put(out, HEADER, refusal.as_bytes())
    }

    /// Writes an END and returns its length.
    pub fn end(&self, out: &mut [u8], next: Session, previous: Session) -> usize {
        self.write(out, Kind::End, 0);
        let body = EndBody {
            next_session: U32::new(next.0),
            previous_session: U32::new(previous.0),
        };
        put(out, HEADER, body.as_bytes())
    }
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    let end = at + bytes.len();
    out[at..end].copy_from_slice(bytes);
    end
}

#[cfg(test)]
mod tests;
