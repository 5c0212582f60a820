//! Nasdaq BinaryFILE framing: each message is a big-endian `u16` length and that many bytes.
//!
//! The framing carries any bytes. A length of 0 is legal (Nasdaq marks the end of a session with
//! it) and is handed on as an empty message.

use std::io::{self, BufWriter, Read, Write};

/// The longest message that the framing can carry, in bytes.
pub const MAX_MESSAGE: usize = u16::MAX as usize;

const PREFIX: usize = 2;
const BUFFER: usize = 256 * 1024;

/// Why a file could not be read on.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file ends inside a message.
    #[error(
        "truncated: the message at byte {offset} needs {needed} bytes with its length prefix, \
         but the file ends after {found} of them"
    )]
    Truncated {
        /// Where in the file the cut message starts, in bytes.
        offset: u64,
        /// Bytes that the message takes, prefix included; 2 if even the prefix is cut.
        needed: usize,
        /// Bytes that are there.
        found: usize,
    },
    /// The source failed.
    #[error("reading at byte {offset}: {error}")]
    Io {
        /// How many bytes of whole messages were read before, in bytes.
        offset: u64,
        /// What the operating system said.
        error: io::Error,
    },
}

/// Reads messages one by one from a stream of any length, in constant memory.
pub struct Reader<R> {
    source: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    offset: u64,
}

impl<R: Read> Reader<R> {
    /// Reads from `source`; it is buffered here, so it need not be.
    pub fn new(source: R) -> Self {
        Reader {
            source,
            buffer: vec![0; BUFFER].into_boxed_slice(),
            start: 0,
            end: 0,
            offset: 0,
        }
    }

    /// The offset of the next message's length prefix, in bytes from where reading began.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The next message without its prefix, or `None` at the end of the source.
    ///
    /// # Errors
    /// When the source ends inside a message or fails; the error says at which byte.
    pub fn next_message(&mut self) -> Result<Option<&[u8]>, ReadError> {
        match self.fill(PREFIX)? {
            0 => return Ok(None),
            found if found < PREFIX => return Err(self.truncated(PREFIX, found)),
            _ => {}
        }
        let prefix = [self.buffer[self.start], self.buffer[self.start + 1]];
        let needed = PREFIX + usize::from(u16::from_be_bytes(prefix));
        let found = self.fill(needed)?;
        if found < needed {
            return Err(self.truncated(needed, found));
        }
        let message = self.start + PREFIX..self.start + needed;
        self.start += needed;
        self.offset += needed as u64;
        Ok(Some(&self.buffer[message]))
    }

    /// Makes `needed` bytes readable at `start` if the source still has them; returns how many
    /// are, at most `needed`.
    fn fill(&mut self, needed: usize) -> Result<usize, ReadError> {
        if self.end - self.start < needed && self.start + needed > self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        while self.end - self.start < needed {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => break,
                Ok(n) => self.end += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let offset = self.offset;
                    return Err(ReadError::Io { offset, error });
                }
            }
        }
        Ok(needed.min(self.end - self.start))
    }

    fn truncated(&self, needed: usize, found: usize) -> ReadError {
        ReadError::Truncated {
            offset: self.offset,
            needed,
            found,
        }
    }
}

/// Writes messages one by one, buffered. Call [`Writer::finish`]: dropping loses late errors.
pub struct Writer<W: Write> {
    sink: BufWriter<W>,
}

impl<W: Write> Writer<W> {
    /// Writes to `sink`; it is buffered here, so it need not be.
    pub fn new(sink: W) -> Self {
        Writer {
            sink: BufWriter::with_capacity(BUFFER, sink),
        }
    }

    /// Appends one message.
    ///
    /// # Errors
    /// When the message is longer than [`MAX_MESSAGE`] or the sink fails.
    pub fn write(&mut self, message: &[u8]) -> io::Result<()> {
        let length = u16::try_from(message.len()).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a message of {} bytes does not fit BinaryFILE, which carries at most {MAX_MESSAGE}",
                    message.len()
                ),
            )
        })?;
        self.sink.write_all(&length.to_be_bytes())?;
        self.sink.write_all(message)
    }

    /// Writes out what is buffered and gives the sink back.
    ///
    /// # Errors
    /// When the sink fails.
    pub fn finish(self) -> io::Result<W> {
        self.sink.into_inner().map_err(io::IntoInnerError::into_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives out one byte a call: the worst way a pipe can split messages.
    struct Trickle<'a>(&'a [u8]);

    impl Read for Trickle<'_> {
        fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
            let n = usize::from(!self.0.is_empty() && !into.is_empty());
            into[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for message in messages {
            writer.write(message).unwrap();
        }
        writer.finish().unwrap()
    }

    fn read_all(source: impl Read) -> Result<Vec<Vec<u8>>, ReadError> {
        let mut reader = Reader::new(source);
        let mut messages = Vec::new();
        while let Some(message) = reader.next_message()? {
            messages.push(message.to_vec());
        }
        Ok(messages)
    }

    #[test]
    fn messages_of_every_size_come_back_however_the_source_splits_them() {
        let longest = vec![7; MAX_MESSAGE];
        // Enough of the longest to cross the end of the reader's buffer more than once.
        let mut messages: Vec<&[u8]> = vec![b"", b"a", b"itch"];
        messages.extend([&longest[..]; 9]);
        let bytes = framed(&messages);
        assert_eq!(bytes[..8], [0, 0, 0, 1, b'a', 0, 4, b'i']);
        assert_eq!(read_all(&bytes[..]).unwrap(), messages);
        assert_eq!(read_all(Trickle(&bytes)).unwrap(), messages);
        assert!(read_all(&b""[..]).unwrap().is_empty());
    }

    #[test]
    fn a_cut_file_is_reported_with_the_offset_of_the_cut_message() {
        let bytes = framed(&[b"first", b"second"]);
        for (length, want) in [
            (
                8,
                "message at byte 7 needs 2 bytes with its length prefix, but the file ends after 1",
            ),
            (
                12,
                "message at byte 7 needs 8 bytes with its length prefix, but the file ends after 5",
            ),
        ] {
            let error = read_all(&bytes[..length]).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn a_message_that_does_not_fit_is_refused_and_writes_nothing() {
        let mut writer = Writer::new(Vec::new());
        assert!(writer.write(&vec![0; MAX_MESSAGE + 1]).is_err());
        assert!(writer.finish().unwrap().is_empty());
    }
}
