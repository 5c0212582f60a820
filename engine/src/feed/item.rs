//! A delivered message with what is known of it, and the ways a sink writes it.

use std::io::{self, Write};

use seqcast_proto::seq::{Seq, Session};
use serde::{Deserialize, Serialize};

use super::{Format, write_message};

/// What a message's way was: bits of [`Item::flags`].
pub mod flags {
    /// It was lost on its way and repaired.
    pub const REPAIRED: u16 = 1;
    /// A message of a higher number was delivered before it.
    pub const LATE: u16 = 2;
    /// The repair came from the server, not from an archive.
    pub const FROM_SERVER: u16 = 4;
}

/// A delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item<'a> {
    /// Session of the number.
    pub session: Session,
    /// The number.
    pub seq: Seq,
    /// When the server first sent it; nanoseconds since the Unix epoch.
    pub time: u64,
    /// See [`flags`].
    pub flags: u16,
    /// The subject; empty when there is none.
    pub subject: &'a [u8],
    /// The payload.
    pub payload: &'a [u8],
}

/// How a sink writes messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SinkFormat {
    /// Nasdaq BinaryFILE: big-endian length of 16 bits, then the payload.
    #[default]
    Binaryfile,
    /// One payload a line.
    Lines,
    /// A line each: subject, space, payload.
    #[serde(rename = "subject-lines")]
    SubjectLines,
    /// Payloads one behind the other with nothing between.
    Raw,
    /// A line each: session, number, payload in hexadecimal digits.
    Hex,
    /// A line each: an object with all that is known of the message.
    Json,
}

impl SinkFormat {
    /// The format's name in the configuration.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            SinkFormat::Binaryfile => "binaryfile",
            SinkFormat::Lines => "lines",
            SinkFormat::SubjectLines => "subject-lines",
            SinkFormat::Raw => "raw",
            SinkFormat::Hex => "hex",
            SinkFormat::Json => "json",
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    session: u32,
    sequence: u32,
    time_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    subject_hex: Option<Hex<'a>>,
    repaired: bool,
    late: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    payload_hex: Option<Hex<'a>>,
}

/// Bytes as hexadecimal digits.
struct Hex<'a>(&'a [u8]);

impl std::fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Hex<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The bytes as text, or, when they are none, for their digits.
fn text(bytes: &[u8]) -> (Option<&str>, Option<Hex<'_>>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(text), None),
        Err(_) => (None, Some(Hex(bytes))),
    }
}

/// Writes one message in `format`.
///
/// # Errors
/// When writing fails.
pub fn write_item(out: &mut impl Write, format: SinkFormat, item: &Item<'_>) -> io::Result<()> {
    match format {
        SinkFormat::Binaryfile => write_message(out, Format::Binaryfile, item.payload),
        SinkFormat::Lines => write_message(out, Format::Lines, item.payload),
        SinkFormat::SubjectLines => {
            out.write_all(item.subject)?;
            out.write_all(b" ")?;
            write_message(out, Format::Lines, item.payload)
        }
        SinkFormat::Raw => write_message(out, Format::Raw, item.payload),
        SinkFormat::Hex => writeln!(out, "{} {} {}", item.session, item.seq, Hex(item.payload)),
        SinkFormat::Json => {
            let (subject, subject_hex) = text(item.subject);
            let (payload, payload_hex) = text(item.payload);
            let line = Line {
                session: item.session.0,
                sequence: item.seq.0,
                time_ns: item.time,
                subject,
                subject_hex,
                repaired: item.flags & flags::REPAIRED != 0,
                late: item.flags & flags::LATE != 0,
                payload,
                payload_hex,
            };
            serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
            out.write_all(b"\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(format: SinkFormat, payload: &[u8]) -> String {
        let item = Item {
            session: Session(7),
            seq: Seq(9),
            time: 5,
            flags: flags::LATE | flags::REPAIRED,
            subject: b"md.eq",
            payload,
        };
        let mut out = Vec::new();
        write_item(&mut out, format, &item).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn lines_for_people_and_for_programs() {
        assert_eq!(written(SinkFormat::Hex, b"\x00\xff"), "7 9 00ff\n");
        assert_eq!(written(SinkFormat::SubjectLines, b"two words"), "md.eq two words\n");
        assert_eq!(
            written(SinkFormat::Json, b"say \"hi\"\n"),
            "{\"session\":7,\"sequence\":9,\"time_ns\":5,\"subject\":\"md.eq\",\"repaired\":true,\"late\":true,\
             \"payload\":\"say \\\"hi\\\"\\n\"}\n"
        );
        assert!(written(SinkFormat::Json, b"\xff\x01").ends_with("\"payload_hex\":\"ff01\"}\n"));
    }
}
