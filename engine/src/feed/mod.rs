//! Where published messages come from and delivered messages go to: files, pipes, other programs.
//!
//! Each source and each sink has a thread of its own, joined to the engine's core by a lane, so
//! that a slow disk or a closed pipe never holds up the wire.

use std::io::{self, BufRead, BufReader, Read, Write};

use serde::{Deserialize, Serialize};

pub mod binaryfile;
mod fifo;
pub mod item;
pub mod journal;
mod mold;
mod output;
pub mod position;
pub mod sink;
pub mod source;
pub mod subject;

/// How messages are told apart in a byte stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Nasdaq BinaryFILE: big-endian length of 16 bits, then the message.
    #[default]
    Binaryfile,
    /// One message a line, without its line feed.
    Lines,
    /// Messages one behind the other with nothing between; for sinks only.
    Raw,
    /// One message a line: its subject, a space, its payload. What is read and written as a message
    /// is the whole line.
    #[serde(rename = "subject-lines")]
    SubjectLines,
}

/// Reads messages from a byte stream.
pub enum Reader<R> {
    /// See [`Format::Binaryfile`].
    Binary(binaryfile::Reader<R>),
    /// See [`Format::Lines`] and [`Format::SubjectLines`]; the line that is being read, and how many were read.
    Lines(BufReader<R>, Vec<u8>, u64),
}

impl<R: Read> Reader<R> {
    /// Reads `format` from `source`.
    ///
    /// # Errors
    /// For a format that cannot be read back.
    pub fn new(format: Format, source: R) -> io::Result<Reader<R>> {
        match format {
            Format::Binaryfile => Ok(Reader::Binary(binaryfile::Reader::new(source))),
            Format::Lines | Format::SubjectLines => {
                Ok(Reader::Lines(BufReader::with_capacity(1 << 18, source), Vec::new(), 0))
            }
            Format::Raw => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "format \"raw\" does not tell messages apart: use \"binaryfile\" or \"lines\"",
            )),
        }
    }

    /// The next message, or `None` at the end.
    ///
    /// # Errors
    /// When the stream is cut inside a message, a line is longer than any message, or reading
    /// fails; says where.
    pub fn next_message(&mut self) -> io::Result<Option<&[u8]>> {
        match self {
            Reader::Binary(reader) => reader
                .next_message()
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error)),
            Reader::Lines(reader, line, number) => {
                line.clear();
                let limit = binaryfile::MAX_MESSAGE as u64 + 2;
                let read = reader.by_ref().take(limit).read_until(b'\n', line)?;
                if read == 0 {
                    return Ok(None);
                }
                *number += 1;
                if line.last() == Some(&b'\n') {
                    line.pop();
                } else if read as u64 == limit {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("line {number} is longer than {} bytes", binaryfile::MAX_MESSAGE),
                    ));
                }
                Ok(Some(line))
            }
        }
    }
}

/// Writes one message in `format`.
///
/// # Errors
/// When writing fails.
pub fn write_message(out: &mut impl Write, format: Format, message: &[u8]) -> io::Result<()> {
    match format {
        Format::Binaryfile => {
            // A message of the protocol is never longer than its 16-bit length.
            out.write_all(&(message.len() as u16).to_be_bytes())?;
            out.write_all(message)
        }
        Format::Lines | Format::SubjectLines => {
            out.write_all(message)?;
            out.write_all(b"\n")
        }
        Format::Raw => out.write_all(message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(format: Format, bytes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
        let mut reader = Reader::new(format, bytes)?;
        let mut messages = Vec::new();
        while let Some(message) = reader.next_message()? {
            messages.push(message.to_vec());
        }
        Ok(messages)
    }

    #[test]
    fn what_is_written_is_read_back() {
        let messages: [&[u8]; 4] = [b"one", b"", b"three\0four", &[7; 3000]];
        for format in [Format::Binaryfile, Format::Lines] {
            let mut bytes = Vec::new();
            for message in messages {
                write_message(&mut bytes, format, message).unwrap();
            }
            assert_eq!(all(format, &bytes).unwrap(), messages);
        }
        assert_eq!(
            all(Format::Lines, b"a\nno line feed").unwrap(),
            [b"a".to_vec(), b"no line feed".to_vec()]
        );
    }

    #[test]
    fn cut_and_endless_input_is_named() {
        let error = all(Format::Binaryfile, &[0, 5, 1, 2]).unwrap_err().to_string();
        assert!(error.contains("byte 0"), "{error}");
        let error = all(Format::Lines, &[b'x'; 100_000]).unwrap_err().to_string();
        assert!(error.contains("line 1"), "{error}");
        assert!(all(Format::Raw, b"").is_err());
    }
}
