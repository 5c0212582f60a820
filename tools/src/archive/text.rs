//! Messages as text and in framings that other programs read.

use std::io::{self, Write};

use anyhow::Result;
use seqcast_engine::feed;
use serde::Serialize;

use super::select::Taken;

/// How messages are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line each: session, number, payload in hexadecimal digits.
    Hex,
    /// A line each: an object with numbers, times, subject, and the payload in hexadecimal digits.
    Json,
    /// Payloads in a framing of the engine's.
    Payload(feed::Format),
}

#[derive(Serialize)]
struct Line<'a> {
    session: u32,
    sequence: u32,
    sent_ns: u64,
    received_ns: u64,
    subject: &'a str,
    payload: &'a str,
}

/// Writes messages one after the other.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    format: Format,
    hex: String,
}

impl<W: Write> Writer<W> {
    /// Writes `format` to `out`, which should be buffered.
    pub fn new(out: W, format: Format) -> Writer<W> {
        let hex = String::new();
        Writer { out, format, hex }
    }

    /// Writes the messages of a block.
    ///
    /// # Errors
    /// When writing fails.
    pub fn write(&mut self, taken: &Taken<'_>) -> Result<()> {
        for (seq, message) in taken.block.messages() {
            if let Format::Payload(framing) = self.format {
                feed::write_message(&mut self.out, framing, message.payload)?;
                continue;
            }
            self.hex.clear();
            for byte in message.payload {
                for digit in [byte >> 4, byte & 15] {
                    self.hex.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
                }
            }
            if self.format == Format::Hex {
                writeln!(self.out, "{} {seq} {}", taken.session, self.hex)?;
                continue;
            }
            let line = Line {
                session: taken.session.0,
                sequence: seq.0,
                sent_ns: taken.sent,
                received_ns: taken.received,
                subject: &String::from_utf8_lossy(message.subject),
                payload: &self.hex,
            };
            // Through io::Error, so that a closed pipe stays one.
            serde_json::to_writer(&mut self.out, &line).map_err(io::Error::from)?;
            self.out.write_all(b"\n")?;
        }
        Ok(())
    }

    /// Writes out what is buffered.
    ///
    /// # Errors
    /// When writing fails.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Writes out what is buffered, at the end.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> io::Result<()> {
        self.flush()
    }
}
