//! Opening an archive of which somebody has changed the files.

use std::fs;
use std::sync::Arc;

use seqcast_archive::storage::{Crash, Faulty, Storage};
use seqcast_archive::{Archive, Options, Reader, SessionMeta, SyncPolicy};
use seqcast_proto::seq::{Seq, Session, Stream};

use crate::{Input, scratch};

const STREAM: Stream = Stream(1);
const SESSION: Session = Session(5);
const OPTIONS: Options = Options {
    segment_bytes: 1 << 16,
    sync: SyncPolicy::None,
    max_bytes: None,
    reserve: 0,
    helper: false,
};

/// Writes records by the input, ends in one of three ways, changes or replaces files by the input,
/// and opens: refused with a reason, or open, every number either read or counted as damaged, and
/// ready to append.
pub(crate) fn open(bytes: &[u8]) {
    let mut input = Input(bytes);
    let mut disk = Arc::new(Faulty::new(u64::from(input.u8())));
    let mut archive = Archive::open_on(disk.clone(), STREAM, OPTIONS).expect("an empty disk");
    let meta = SessionMeta {
        previous: Session(4),
        origin: 1,
        user: 2,
    };
    let log = archive.create_session(SESSION, meta).expect("an empty archive");
    for _ in 0..input.u8() % 24 {
        let (first, count) = (Seq(u32::from(input.u8()) * 2), u16::from(input.u8() % 3));
        let block = vec![input.u8(); usize::from(input.u16() % 20_000)];
        // Refused where it overlaps.
        let _ = log.append(first, count, 0, 0, 0, &block);
    }
    let end = input.u8();
    match end % 3 {
        0 => archive.close().expect("a sound disk"),
        1 => disk = Arc::new(disk.crash(Crash::Kill).expect("enough memory")),
        _ => disk = Arc::new(disk.crash(Crash::PowerLoss).expect("enough memory")),
    }
    damage(&*disk, &mut input);
    // Real files take longer than all else.
    if end >= 0xe0 {
        look(&*disk);
    }

    match Archive::open_on(disk, STREAM, OPTIONS) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(mut archive) => {
            let sessions: Vec<Session> = archive.sessions().collect();
            for session in sessions {
                let log = archive.session_mut(session).expect("a listed session");
                let stored = log.stored().as_slice().to_vec();
                let mut unreadable = 0;
                for seq in stored.iter().flat_map(|r| r.first.0..=r.last.0).take(1024) {
                    match log.read(Seq(seq)) {
                        Some(record) => assert!(record.range().contains(Seq(seq))),
                        None => unreadable += 1,
                    }
                }
                assert!(log.damaged() >= unreadable);
                let free = Seq(100_000);
                if log.append(free, 1, 0, 0, 0, b"new").is_ok() {
                    assert_eq!(log.read(free).expect("just written").block, b"new");
                }
            }
        }
    }
}

/// Paths and lengths of all files.
fn files(disk: &dyn Storage) -> Vec<(String, usize)> {
    let mut files = Vec::new();
    for dir in ["".to_owned(), format!("{:010}", SESSION.0)] {
        for found in disk.list(&dir).unwrap_or_default() {
            let path = if dir.is_empty() {
                found.name
            } else {
                format!("{dir}/{}", found.name)
            };
            files.extend(found.len.map(|len| (path, len as usize)));
        }
    }
    files
}

/// Opens a copy of the files beside no writer: refused with a reason, or each record is where the
/// reader says.
fn look(disk: &dyn Storage) {
    let dir = scratch();
    for (path, _) in files(disk) {
        let path_there = dir.path().join(&path);
        fs::create_dir_all(path_there.parent().expect("a path within")).expect("memory takes all");
        fs::write(path_there, disk.read(&path).expect("a listed file")).expect("memory takes all");
    }
    let session = Reader::open(dir.path()).and_then(|reader| reader.session(SESSION));
    let mut session = match session {
        Ok(session) => session,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    session.verify(|_| {}).expect("files that can be read");
    assert!(session.in_log_order().all(|record| record.is_ok()));
    let mut next = Seq(0);
    for record in session.in_order(Seq::FIRST).take(1024) {
        let range = record.expect("files that can be read").range();
        assert!(range.last >= next);
        next = range.end();
    }
    for seq in (0..64).map(Seq) {
        let found = session.read(seq).expect("files that can be read");
        assert!(found.is_none_or(|record| record.range().contains(seq)));
    }
}

fn damage(disk: &dyn Storage, input: &mut Input<'_>) {
    let files = files(disk);
    while !input.is_empty() && !files.is_empty() {
        let (path, len) = &files[usize::from(input.u8()) % files.len()];
        let how = input.u8();
        let at = if how & 4 == 0 {
            usize::from(input.u8())
        } else {
            input.u32() as usize
        };
        let wanted = usize::from(input.u8() & 63);
        let bytes = input.take(wanted);
        match how & 3 {
            // A file that is gone, or was never whole.
            0 if how & 8 != 0 => drop(disk.remove(path)),
            0 => drop(disk.replace(path, bytes, true)),
            1 => {
                if let Ok(old) = disk.read(path) {
                    drop(disk.replace(path, &old[..at.min(old.len())], true));
                }
            }
            _ => {
                if let Ok(mut map) = disk.map(path)
                    && let Some(place) = map.bytes_mut().get_mut(at % (*len).max(1)..)
                {
                    let n = bytes.len().min(place.len());
                    place[..n].copy_from_slice(&bytes[..n]);
                }
            }
        }
    }
}
