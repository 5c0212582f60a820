//! Files of users: messages, journals, configurations.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use seqcast_engine::config::Config;
use seqcast_engine::feed::position::Keeper;
use seqcast_engine::feed::{Format, Reader, binaryfile, journal, write_message};
use seqcast_engine::keys;
use seqcast_proto::seal::MAX_KEYS;
use seqcast_proto::seq::Stream;
use seqcast_tools::itch;

use crate::scratch;

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

/// A position and a file of keys are taken, or refused with a text; a position comes back as it was saved.
pub(crate) fn saved(bytes: &[u8]) {
    const STREAM: Stream = Stream(7);
    let dir = scratch();
    let open = || Keeper::open(dir.path(), "client", STREAM, "file out".to_owned());
    let (sealed, text) = bytes.split_first().unwrap_or((&0, bytes));
    let mut position = text.to_vec();
    if sealed & 1 != 0 {
        // The right checksum, so that what lies behind it is reached.
        let seal = format!("crc32c {:#010x}\n", crc_fast::crc32_iscsi(text));
        position.extend_from_slice(seal.as_bytes());
    }
    fs::write(dir.path().join("client.position"), position).expect("memory takes all");
    match open() {
        Ok((mut keeper, Some(position))) => {
            keeper.save(&position).expect("memory takes all");
            drop(keeper);
            assert_eq!(open().expect("saved just now").1, Some(position));
        }
        Ok((_, None)) => unreachable!("the file is there"),
        Err(error) => assert!(!error.to_string().is_empty()),
    }

    let path = dir.path().join("keys");
    fs::write(&path, text).expect("memory takes all");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("an own file");
    match keys::read(&path) {
        Ok(entries) => {
            assert!((1..=MAX_KEYS).contains(&entries.len()));
            assert_eq!(
                keys::read_ring(&path).expect("the same file").ids().count(),
                entries.len()
            );
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
