//! One segment file: a 64-byte header, then records.
//!
//! ```text
//!  0  magic "SEQCSEG\0"   8  u32 version    12  u32 stream
//! 16  u32 session        20  u32 number     24  u32 generation   28  u32 file length
//! 32  zeros              60  u32 CRC32C of bytes 0..60
//! ```

use std::io;
use std::sync::OnceLock;

use seqcast_proto::seq::{Seq, Session, Stream};

use crate::codec::{Fault, Fields, Parser};
use crate::mapping::Mapping;

/// Bytes before the first record.
pub(crate) const HEADER: usize = 64;

const MAGIC: &[u8; 8] = b"SEQCSEG\0";

/// A place in a session's log: segment number and offset. 0 is no place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position(pub(crate) u64);

impl Position {
    pub(crate) const NONE: Position = Position(0);

    pub(crate) fn new(segment: u32, offset: u32) -> Position {
        Position(u64::from(segment) << 32 | u64::from(offset))
    }

    pub(crate) fn segment(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn offset(self) -> u32 {
        self.0 as u32
    }
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) stream: Stream,
    pub(crate) session: Session,
    pub(crate) number: u32,
    pub(crate) generation: u32,
    pub(crate) length: u32,
}

impl Header {
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        Fields::new(MAGIC, self.stream)
            .u32(self.session.0)
            .u32(self.number)
            .u32(self.generation)
            .u32(self.length)
            .padded(HEADER)
            .seal()
    }

    pub(crate) fn parse(bytes: &[u8]) -> Result<Header, Fault> {
        let bytes = bytes.get(..HEADER).ok_or(Fault::Damaged)?;
        let mut fields = Parser::open(bytes, MAGIC)?;
        let mut word = || fields.u32().ok_or(Fault::Damaged);
        let (session, number, generation, length) = (word()?, word()?, word()?, word()?);
        Ok(Header {
            stream: fields.stream,
            session: Session(session),
            number,
            generation,
            length,
        })
    }
}

/// The file name of a segment inside its session's directory.
pub(crate) fn file_name(number: u32) -> String {
    format!("{number:08x}.log")
}

/// The number in a segment's file name.
pub(crate) fn number_of(name: &str) -> Option<u32> {
    let number = u32::from_str_radix(name.strip_suffix(".log")?, 16).ok()?;
    (number > 0 && file_name(number) == name).then_some(number)
}

/// A mapped segment and the generation of its records.
#[derive(Debug)]
pub(crate) struct Mapped {
    pub(crate) map: Mapping,
    pub(crate) generation: u32,
}

/// One segment of a session's log. Mapped when first used.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) number: u32,
    /// File length in bytes.
    pub(crate) length: u32,
    /// Where the records end.
    pub(crate) end: u32,
    /// The highest sequence number stored in it; 0 for none.
    pub(crate) highest: Seq,
    pub(crate) mapped: OnceLock<Mapped>,
}

impl Segment {
    /// The segment's memory, mapped by `map` when this is the first use.
    pub(crate) fn mapped(&self, map: impl FnOnce() -> io::Result<Mapped>) -> io::Result<&Mapped> {
        match self.mapped.get() {
            Some(mapped) => Ok(mapped),
            None => {
                let mapped = map()?;
                Ok(self.mapped.get_or_init(|| mapped))
            }
        }
    }

    /// As [`Segment::mapped`], to write.
    pub(crate) fn mapped_mut(&mut self, map: impl FnOnce() -> io::Result<Mapped>) -> io::Result<&mut Mapped> {
        self.mapped(map)?;
        Ok(self.mapped.get_mut().expect("mapped just now"))
    }
}
