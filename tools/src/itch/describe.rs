//! What is in a BinaryFILE of ITCH 5.0 messages.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;

use seqcast_engine::feed::binaryfile::{ReadError, Reader};

use super::{message_length, message_name, timestamp_ns};

/// Problems kept word for word; those after it are only counted.
const PROBLEMS_SHOWN: usize = 10;

/// How often one message type occurs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeCount {
    /// Messages.
    pub messages: u64,
    /// Their bytes, without framing.
    pub bytes: u64,
}

/// Something that ITCH 5.0 does not allow.
#[derive(Debug)]
pub struct Problem {
    /// The message, counted from 1; the one after the last whole one for a truncated file.
    pub message: u64,
    /// Where its length prefix is, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub what: String,
}

/// The contents of a file, in summary. `Display` prints it for people.
#[derive(Debug, Default)]
pub struct Description {
    /// Messages and bytes by type.
    pub types: BTreeMap<u8, TypeCount>,
    /// Whole messages.
    pub messages: u64,
    /// Bytes of whole messages with their framing.
    pub bytes: u64,
    /// The first message's time stamp, ns since midnight.
    pub first_ns: Option<u64>,
    /// The last message's time stamp, ns since midnight.
    pub last_ns: Option<u64>,
    /// Everything that is wrong.
    pub problem_count: u64,
    /// The first of it.
    pub problems: Vec<Problem>,
}

/// Reads `source` to its end in constant memory. What is wrong with the data is part of the answer.
///
/// # Errors
/// Only when the source itself fails.
pub fn describe(source: impl Read) -> Result<Description, ReadError> {
    let mut found = Description::default();
    let mut reader = Reader::new(source);
    loop {
        let offset = reader.offset();
        match reader.next_message() {
            Ok(Some(message)) => found.count(offset, message),
            Ok(None) => break,
            Err(error @ ReadError::Truncated { .. }) => {
                found.problem(found.messages + 1, offset, error.to_string());
                break;
            }
            Err(error) => return Err(error),
        }
    }
    found.bytes = reader.offset();
    Ok(found)
}

impl Description {
    fn count(&mut self, offset: u64, message: &[u8]) {
        self.messages += 1;
        let number = self.messages;
        let Some(&kind) = message.first() else {
            // Nasdaq's end-of-session marker; anything after it belongs to another session.
            return;
        };
        let count = self.types.entry(kind).or_default();
        count.messages += 1;
        count.bytes += message.len() as u64;
        match message_length(kind) {
            None => self.problem(number, offset, format!("type 0x{kind:02x} is unknown")),
            Some(length) if length != message.len() => {
                let what = format!("type {} has {} bytes instead of {length}", kind as char, message.len());
                self.problem(number, offset, what);
            }
            Some(_) => {}
        }
        if let Some(time) = timestamp_ns(message) {
            if let Some(last) = self.last_ns.filter(|&last| time < last) {
                let what = format!("time goes back from {} to {}", Clock(last), Clock(time));
                self.problem(number, offset, what);
            }
            self.first_ns.get_or_insert(time);
            self.last_ns = Some(time);
        }
    }

    fn problem(&mut self, message: u64, offset: u64, what: String) {
        self.problem_count += 1;
        if self.problems.len() < PROBLEMS_SHOWN {
            self.problems.push(Problem { message, offset, what });
        }
    }
}

/// A time of day, ns since midnight.
struct Clock(u64);

impl fmt::Display for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (seconds, ns) = (self.0 / 1_000_000_000, self.0 % 1_000_000_000);
        let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
        write!(f, "{hours:02}:{minutes:02}:{:02}.{ns:09}", seconds % 60)
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} messages, {} bytes with framing", self.messages, self.bytes)?;
        if let (Some(first), Some(last)) = (self.first_ns, self.last_ns) {
            writeln!(f, "from {} to {}", Clock(first), Clock(last))?;
        }
        for (&kind, count) in &self.types {
            writeln!(
                f,
                "  {}  {:>12}  {:>5.1} %  {:>5} bytes each  {}",
                (kind as char).escape_default(),
                count.messages,
                100.0 * count.messages as f64 / self.messages as f64,
                count.bytes / count.messages,
                message_name(kind),
            )?;
        }
        for problem in &self.problems {
            let Problem { message, offset, what } = problem;
            writeln!(f, "message {message} at byte {offset}: {what}")?;
        }
        match self.problem_count.saturating_sub(PROBLEMS_SHOWN as u64) {
            0 => Ok(()),
            more => writeln!(f, "and {more} more problems"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::itch::{Generator, Length, Spec};
    use seqcast_engine::feed::binaryfile::Writer;

    fn framed(messages: &[&[u8]]) -> Vec<u8> {
        let mut writer = Writer::new(Vec::new());
        for message in messages {
            writer.write(message).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn a_made_session_has_nothing_wrong_with_it() {
        let mut writer = Writer::new(Vec::new());
        let mut generator = Generator::new(Spec {
            length: Length::Messages(5_000),
            symbols: 50,
            seed: 7,
        })
        .unwrap();
        while let Some(message) = generator.next_message() {
            writer.write(message).unwrap();
        }
        let file = writer.finish().unwrap();
        let found = describe(&file[..]).unwrap();
        assert_eq!((found.messages, found.bytes), (5_000, file.len() as u64));
        assert_eq!(found.problem_count, 0, "{found}");
        assert_eq!(found.types[&b'R'].messages, 50);
        assert!(
            found
                .to_string()
                .contains("from 03:00:00.000000000 to 20:05:00.000000000")
        );
    }

    #[test]
    fn each_kind_of_damage_is_named_with_its_place() {
        let event = |time: u8| [b'S', 0, 0, 0, 0, 0, 0, 0, 0, 0, time, b'O'];
        let mut file = framed(&[&event(9), &event(5), b"?", b"S", &event(6)]);
        file.truncate(file.len() - 1);
        let found = describe(&file[..]).unwrap();
        let text = found.to_string();
        for want in [
            "message 2 at byte 14: time goes back",
            "message 3 at byte 28: type 0x3f is unknown",
            "message 4 at byte 31: type S has 1 bytes instead of 12",
            "message 5 at byte 34: truncated",
        ] {
            assert!(text.contains(want), "{text}");
        }
        assert_eq!((found.messages, found.problem_count), (4, 4));
    }
}
