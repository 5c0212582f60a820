//! How the file is laid out, for who writes it and who reads it.

use std::net::SocketAddrV4;

use serde::{Deserialize, Serialize};

/// The first eight bytes.
pub(super) const MAGIC: [u8; 8] = *b"SQCOUNT\x01";

/// Words of eight bytes, in the order of this machine, from the beginning of the file.
pub(super) mod word {
    /// The process that writes.
    pub(crate) const PID: usize = 1;
    /// When it started, in clock ticks since the machine did.
    pub(crate) const STARTED: usize = 2;
    /// Odd while counters are being written, and another number afterwards.
    pub(crate) const TURN: usize = 3;
    /// When they were last written: nanoseconds since 1970.
    pub(crate) const WRITTEN: usize = 4;
    /// Bytes of the description, which is JSON and begins behind this header.
    pub(crate) const DESCRIPTION: usize = 5;
    /// Where the values begin, in words.
    pub(crate) const VALUES: usize = 6;
    /// How many words of values there are.
    pub(crate) const COUNT: usize = 7;
    /// Words of the header.
    pub(crate) const HEADER: usize = 8;
}

/// What a number means over time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It only grows, from 0 at the engine's start.
    Counter,
    /// It comes and goes.
    Gauge,
}

/// One number of a structure of counters.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// What it means over time.
    pub kind: Kind,
}

/// A structure of counters.
pub trait Describe {
    /// Its numbers, in order.
    const FIELDS: &'static [Field];

    /// Their values, in the same order.
    fn each(&self, value: impl FnMut(u64));
}

/// What the numbers of an engine are of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// `link`, `cycle`, `subscription`, `publication`, `archive`, `feed_out`, `feed_in`, `trust`, `programs`.
    pub part: String,
    /// Group and port of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
    /// `A` or `B`, of two lines.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
}

impl Part {
    /// A part of the engine itself.
    #[must_use]
    pub fn of(part: &str) -> Part {
        Part {
            part: part.to_owned(),
            ..Part::default()
        }
    }

    /// What an engine does for a stream.
    #[must_use]
    pub fn of_stream(part: &str, stream: SocketAddrV4) -> Part {
        Part {
            stream: Some(stream.to_string()),
            ..Part::of(part)
        }
    }
}

/// What the file says of itself.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Description {
    pub(super) engine: String,
    pub(super) mode: String,
    pub(super) groups: Vec<Group>,
}

/// Neighbouring values of one part. `at` is in words from the beginning of the values.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Group {
    #[serde(flatten)]
    pub(super) of: Part,
    pub(super) at: usize,
    pub(super) values: Values,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Values {
    /// One word each.
    Numbers(Vec<Number>),
    /// One word for each bucket, see [`super::Buckets`].
    Histogram { name: String, help: String, buckets: usize },
    /// Pairs of words: an IPv4 address times 65536 plus a port, 0 if there is none, and a count.
    Peers { name: String, help: String, slots: usize },
}

#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Number {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) kind: Kind,
}

impl From<&Field> for Number {
    fn from(field: &Field) -> Number {
        Number {
            name: field.name.to_owned(),
            help: field.help.trim().to_owned(),
            kind: field.kind,
        }
    }
}
