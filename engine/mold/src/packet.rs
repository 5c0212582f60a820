//! The two formats, which differ in byte order, the width of numbers, and how a session's end is said.

use core::fmt;
use core::str::FromStr;

/// Bytes of a session's name.
const NAME: usize = 10;
/// The count of a MoldUDP64 packet that ends the session.
const END: u16 = 0xffff;
/// Bytes in front of each message.
pub const BLOCK: usize = 2;

/// Which of the two formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// MoldUDP64: big-endian, numbers of 64 bits; a count of 0xFFFF ends a session.
    #[default]
    Mold64,
    /// MoldUDP: little-endian, numbers of 32 bits; a message of length 0 ends a session, so that no
    /// empty message can be sent.
    Mold32,
}

impl Variant {
    /// Bytes of a packet's header, which is also that of a request.
    #[must_use]
    pub const fn header(self) -> usize {
        match self {
            Variant::Mold64 => NAME + 8 + 2,
            Variant::Mold32 => NAME + 4 + 2,
        }
    }

    /// The highest number that "next" can be.
    #[must_use]
    pub const fn last(self) -> u64 {
        match self {
            Variant::Mold64 => u64::MAX,
            Variant::Mold32 => u32::MAX as u64,
        }
    }

    fn put_u16(self, into: &mut [u8], value: u16) {
        into.copy_from_slice(&match self {
            Variant::Mold64 => value.to_be_bytes(),
            Variant::Mold32 => value.to_le_bytes(),
        });
    }

    fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Variant::Mold64 => u16::from_be_bytes(bytes),
            Variant::Mold32 => u16::from_le_bytes(bytes),
        }
    }

    /// Session, number and count, and what follows them.
    fn head(self, bytes: &[u8]) -> Option<(SessionName, u64, u16, &[u8])> {
        let (name, rest) = bytes.split_first_chunk::<NAME>()?;
        let (number, rest) = match self {
            Variant::Mold64 => rest
                .split_first_chunk()
                .map(|(n, rest)| (u64::from_be_bytes(*n), rest))?,
            Variant::Mold32 => rest
                .split_first_chunk()
                .map(|(n, rest)| (u64::from(u32::from_le_bytes(*n)), rest))?,
        };
        let (count, rest) = rest.split_first_chunk()?;
        Some((SessionName(*name), number, self.u16(*count), rest))
    }

    /// Writes a header to the start of `into` and returns its length. A number above
    /// [`Variant::last`] is cut to it.
    fn put_head(self, into: &mut [u8], session: &SessionName, number: u64, count: u16) -> usize {
        let size = self.header();
        into[..NAME].copy_from_slice(&session.0);
        match self {
            Variant::Mold64 => into[NAME..size - 2].copy_from_slice(&number.to_be_bytes()),
            Variant::Mold32 => {
                let number = u32::try_from(number).unwrap_or(u32::MAX);
                into[NAME..size - 2].copy_from_slice(&number.to_le_bytes());
            }
        }
        self.put_u16(&mut into[size - 2..size], count);
        size
    }
}

/// A session's name: ten bytes, shorter ones padded with spaces on the right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionName(pub [u8; NAME]);

impl SessionName {
    /// A number as a name, in decimal digits: 32 bits are ten digits at most.
    #[must_use]
    pub fn of(number: u32) -> SessionName {
        let mut digits = [b' '; NAME];
        let (mut left, mut at) = (number, NAME);
        loop {
            at -= 1;
            digits[at] = b'0' + (left % 10) as u8;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        digits.rotate_left(at);
        SessionName(digits)
    }

    /// The number that the name is in decimal digits, as [`SessionName::of`] writes it.
    #[must_use]
    pub fn number(&self) -> Option<u32> {
        let digits = core::str::from_utf8(self.0.trim_ascii_end()).ok()?;
        let number = digits.parse().ok()?;
        (SessionName::of(number) == *self).then_some(number)
    }
}

/// What a name of a session must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadName;

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a session's name is 1 to 10 printable ASCII characters, without spaces at its end")
    }
}

impl core::error::Error for BadName {}

impl FromStr for SessionName {
    type Err = BadName;

    fn from_str(text: &str) -> Result<SessionName, BadName> {
        let printable = text.bytes().all(|b| (b' '..=b'~').contains(&b));
        if !(1..=NAME).contains(&text.len()) || !printable || text.ends_with(' ') {
            return Err(BadName);
        }
        let mut name = [b' '; NAME];
        name[..text.len()].copy_from_slice(text.as_bytes());
        Ok(SessionName(name))
    }
}

impl fmt::Display for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.trim_ascii_end().escape_ascii())
    }
}

impl fmt::Debug for SessionName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// Bytes that are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// A downstream packet: messages, a heartbeat, or the end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// The session.
    pub session: SessionName,
    /// Number of the first message, or the next one's if there is none.
    pub number: u64,
    /// Messages.
    pub count: u16,
    /// The session ends behind them.
    pub end: bool,
    variant: Variant,
    blocks: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet; every message is checked to lie within it. Bytes behind the last one are not looked at.
    ///
    /// # Errors
    /// When it is cut short, its first message has number 0, or its last one no successor.
    pub fn parse(variant: Variant, bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        let (session, number, count, rest) = variant.head(bytes).ok_or(Malformed)?;
        let packet = |count, end, blocks| Packet {
            session,
            number,
            count,
            end,
            variant,
            blocks,
        };
        if variant == Variant::Mold64 && count == END {
            return Ok(packet(0, true, &[]));
        }
        let mut left = rest;
        let mut end = false;
        for at in 0..count {
            let (message, behind) = split(variant, left).ok_or(Malformed)?;
            left = behind;
            end = variant == Variant::Mold32 && message.is_empty() && at + 1 == count;
        }
        let messages = count - u16::from(end);
        if messages > 0 && (number == 0 || number > variant.last() - u64::from(messages)) {
            return Err(Malformed);
        }
        Ok(packet(messages, end, &rest[..rest.len() - left.len()]))
    }

    /// One past the last message.
    #[must_use]
    pub fn next(&self) -> u64 {
        self.number + u64::from(self.count)
    }

    /// The messages, ascending.
    #[must_use]
    pub fn messages(&self) -> Messages<'a> {
        Messages {
            variant: self.variant,
            left: self.count,
            blocks: self.blocks,
        }
    }
}

fn split(variant: Variant, bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk()?;
    rest.split_at_checked(usize::from(variant.u16(*length)))
}

/// The messages of a packet.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    variant: Variant,
    left: u16,
    blocks: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (message, rest) = split(self.variant, self.blocks)?;
        self.blocks = rest;
        Some(message)
    }
}

/// A question for messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Their session.
    pub session: SessionName,
    /// Number of the first one.
    pub first: u64,
    /// How many are wanted, at least 1.
    pub count: u16,
}

impl Request {
    /// Reads a request. Bytes behind it are not looked at.
    ///
    /// # Errors
    /// When it is cut short, or asks for nothing or for number 0.
    pub fn parse(variant: Variant, bytes: &[u8]) -> Result<Request, Malformed> {
        let (session, first, count, _) = variant.head(bytes).ok_or(Malformed)?;
        if first == 0 || count == 0 {
            return Err(Malformed);
        }
        Ok(Request { session, first, count })
    }

    /// Writes the request to the start of `into`, which must hold [`Variant::header`] bytes, and returns
    /// its length.
    pub fn write(&self, variant: Variant, into: &mut [u8]) -> usize {
        variant.put_head(into, &self.session, self.first, self.count)
    }
}

/// Writes a heartbeat, or the end of the session, to the start of `into`, which must hold
/// [`Variant::header`] and [`BLOCK`] bytes; returns its length.
pub fn write_beat(variant: Variant, into: &mut [u8], session: &SessionName, next: u64, end: bool) -> usize {
    match (variant, end) {
        (_, false) => variant.put_head(into, session, next, 0),
        (Variant::Mold64, true) => variant.put_head(into, session, next, END),
        (Variant::Mold32, true) => {
            let head = variant.put_head(into, session, next, 1);
            variant.put_u16(&mut into[head..head + BLOCK], 0);
            head + BLOCK
        }
    }
}

/// Why a message cannot be put into a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// The packet is full, or the message is not the next one of its session.
    Full,
    /// No packet of this size can hold it.
    TooLarge,
    /// It is empty, which in MoldUDP ends the session.
    Empty,
    /// The format's numbers are used up.
    Numbers,
}

/// Builds a packet of messages in a buffer of its own.
#[derive(Clone, Debug)]
pub struct Builder {
    variant: Variant,
    buffer: alloc::vec::Vec<u8>,
    most: usize,
    session: SessionName,
    number: u64,
    count: u16,
}

impl Builder {
    /// For packets of at most `most` bytes, raised to what a header takes.
    #[must_use]
    pub fn new(variant: Variant, most: usize) -> Builder {
        let most = most.max(variant.header() + BLOCK);
        Builder {
            variant,
            buffer: alloc::vec::Vec::with_capacity(most),
            most,
            session: SessionName([b' '; NAME]),
            number: 0,
            count: 0,
        }
    }

    /// Longest message that fits a packet.
    #[must_use]
    pub fn longest(&self) -> usize {
        (self.most - self.variant.header() - BLOCK).min(usize::from(u16::MAX))
    }

    /// Messages put in.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Adds a message.
    ///
    /// # Errors
    /// See [`Refused`]. Nothing is added then.
    pub fn push(&mut self, session: &SessionName, number: u64, message: &[u8]) -> Result<(), Refused> {
        if message.len() > self.longest() {
            return Err(Refused::TooLarge);
        }
        if self.variant == Variant::Mold32 && message.is_empty() {
            return Err(Refused::Empty);
        }
        if number == 0 || number >= self.variant.last() {
            return Err(Refused::Numbers);
        }
        let room = self.buffer.len() + BLOCK + message.len() <= self.most && self.count < END - 1;
        let follows = self.session == *session && self.number + u64::from(self.count) == number;
        if self.count > 0 && !(room && follows) {
            return Err(Refused::Full);
        }
        if self.count == 0 {
            (self.session, self.number) = (*session, number);
            self.buffer.clear();
            self.buffer.resize(self.variant.header(), 0);
        }
        let at = self.buffer.len();
        self.buffer.extend_from_slice(&[0; BLOCK]);
        // Not longer than `longest`.
        self.variant.put_u16(&mut self.buffer[at..], message.len() as u16);
        self.buffer.extend_from_slice(message);
        self.count += 1;
        Ok(())
    }

    /// The packet; the next message begins another one. `None` when none was put in.
    pub fn take(&mut self) -> Option<&[u8]> {
        if self.count == 0 {
            return None;
        }
        self.variant
            .put_head(&mut self.buffer, &self.session, self.number, self.count);
        self.count = 0;
        Some(&self.buffer)
    }
}
