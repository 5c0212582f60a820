//! The frame that all small files share: magic, version, stream, fields, CRC32C. Little-endian.

use std::path::Path;

use seqcast_proto::seq::{Seq, SeqRange, Stream};

use crate::{Error, FORMAT_VERSION, crc32c};

/// Magic, version and stream.
const PREFIX: usize = 16;

/// Builds one sealed block of fields.
pub(crate) struct Fields(Vec<u8>);

impl Fields {
    pub(crate) fn new(magic: &[u8; 8], stream: Stream) -> Fields {
        Fields(magic.to_vec()).u32(FORMAT_VERSION).u32(stream.0)
    }

    pub(crate) fn u32(mut self, value: u32) -> Fields {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Fields {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn bytes(mut self, value: &[u8]) -> Fields {
        self.0.extend_from_slice(value);
        self
    }

    pub(crate) fn ranges(mut self, ranges: &[SeqRange]) -> Fields {
        for r in ranges {
            self = self.u32(r.first.0).u32(r.last.0);
        }
        self
    }

    /// Pads with zeros so that the sealed block has `len` bytes.
    pub(crate) fn padded(mut self, len: usize) -> Fields {
        self.0.resize(len - 4, 0);
        self
    }

    pub(crate) fn seal(self) -> Vec<u8> {
        let crc = crc32c(&self.0);
        self.u32(crc).0
    }
}

/// Why bytes are not a sealed block of the wanted kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    Foreign,
    Version(u32),
    Damaged,
}

impl Fault {
    pub(crate) fn at(self, path: &Path, remedy: &'static str) -> Error {
        let path = path.to_path_buf();
        match self {
            Fault::Foreign => Error::Foreign { path },
            Fault::Version(found) => Error::Version { path, found },
            Fault::Damaged => Error::Damaged {
                path,
                what: "checksum",
                remedy,
            },
        }
    }
}

/// Takes the fields of a sealed block in order.
pub(crate) struct Parser<'a> {
    rest: &'a [u8],
    pub(crate) stream: Stream,
}

impl<'a> Parser<'a> {
    /// Checks magic, version and checksum over the whole of `bytes`.
    pub(crate) fn open(bytes: &'a [u8], magic: &[u8; 8]) -> Result<Parser<'a>, Fault> {
        if bytes.get(..8) != Some(magic) {
            return Err(Fault::Foreign);
        }
        let mut parser = Parser {
            rest: &bytes[8..],
            stream: Stream(0),
        };
        match parser.u32() {
            Some(FORMAT_VERSION) => {}
            Some(found) => return Err(Fault::Version(found)),
            None => return Err(Fault::Damaged),
        }
        let (sealed, crc) = bytes.split_last_chunk::<4>().ok_or(Fault::Damaged)?;
        if sealed.len() < PREFIX || crc32c(sealed) != u32::from_le_bytes(*crc) {
            return Err(Fault::Damaged);
        }
        parser.stream = Stream(u32_at(bytes, 12));
        parser.rest = &sealed[PREFIX..];
        Ok(parser)
    }

    pub(crate) fn bytes<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (value, rest) = self.rest.split_first_chunk::<N>()?;
        self.rest = rest;
        Some(*value)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.bytes().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.bytes().map(u64::from_le_bytes)
    }

    pub(crate) fn range(&mut self) -> Option<SeqRange> {
        SeqRange::new(Seq(self.u32()?), Seq(self.u32()?))
    }
}

/// The little-endian word at `at`, which must lie inside.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the bounds"))
}

/// The little-endian double word at `at`, which must lie inside.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().expect("the caller checked the bounds"))
}
