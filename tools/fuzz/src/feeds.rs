//! Files of users: messages, journals, configurations.

use std::path::Path;

use seqcast_engine::config::Config;
use seqcast_engine::feed::{Format, Reader, binaryfile, journal, write_message};
use seqcast_tools::itch;

/// All formats end, or name the place; messages of a sound BinaryFILE written again are the same bytes.
pub(crate) fn binaryfile(bytes: &[u8]) {
    for format in [Format::Binaryfile, Format::Lines] {
        let mut reader = Reader::new(format, bytes).expect("a format that can be read");
        let mut written = Vec::new();
        loop {
            match reader.next_message() {
                Ok(Some(message)) => write_message(&mut written, format, message).expect("memory takes all"),
                Ok(None) => break,
                Err(error) => {
                    assert!(!error.to_string().is_empty());
                    break;
                }
            }
        }
        let whole = written.strip_suffix(b"\n").unwrap_or(&written);
        assert!(bytes.starts_with(if format == Format::Lines { whole } else { &written }));
    }
    let mut reader = binaryfile::Reader::new(bytes);
    while let Ok(Some(_)) = reader.next_message() {
        assert!(reader.offset() <= bytes.len() as u64);
    }
}

/// A description counts no more than there is.
pub(crate) fn itch(bytes: &[u8]) {
    if let Ok(found) = itch::describe(bytes) {
        assert!(found.bytes <= bytes.len() as u64);
        assert!(found.problems.len() as u64 <= found.problem_count);
        // An empty message, the end of a session, has no type.
        assert!(found.types.values().map(|t| t.messages).sum::<u64>() <= found.messages);
    }
}

/// A journal ends, or names the place; the place moves on and stays within.
pub(crate) fn journal(bytes: &[u8]) {
    let Ok(mut reader) = journal::Reader::new(bytes) else {
        return;
    };
    let mut at = reader.offset();
    while let Ok(Some(_)) = reader.next_item() {
        assert!(reader.offset() > at && reader.offset() <= bytes.len() as u64);
        at = reader.offset();
    }
}

/// A configuration is taken, or refused with a text.
pub(crate) fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Err(error) = Config::parse(text, Path::new("engine.toml")) {
        assert!(!error.to_string().is_empty());
    }
}
