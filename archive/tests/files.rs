//! The archive on real files: what survives, what is refused, what recovery says.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use seqcast_archive::{AppendError, Archive, Error, Options, Reader, SessionLog, SessionMeta, SyncPolicy, What};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

const STREAM: Stream = Stream(0xfeed);
const SESSION: Session = Session(1_700_000_000);
const META: SessionMeta = SessionMeta {
    previous: Session::NONE,
    origin: 7,
    user: 42,
};
const SMALL: Options = Options {
    segment_bytes: 1 << 16,
    sync: SyncPolicy::None,
    max_bytes: None,
    helper: false,
};

fn range(first: u32, count: u32) -> SeqRange {
    SeqRange::of(Seq(first), count).unwrap()
}

fn block(seq: u32, len: usize) -> Vec<u8> {
    (0..len).map(|i| (seq as usize * 31 + i) as u8).collect()
}

fn append(log: &mut SessionLog, first: u32, count: u16, len: usize) -> Result<(), AppendError> {
    log.append(Seq(first), count, first.into(), 9, 5, &block(first, len))
}

fn assert_holds(log: &SessionLog, first: u32, count: u16, len: usize) {
    for seq in first..first + u32::from(count) {
        let record = log.read(Seq(seq)).unwrap_or_else(|| panic!("number {seq}"));
        assert_eq!((record.first, record.count), (Seq(first), count));
        assert_eq!((record.send_ns, record.recv_ns, record.flags), (first.into(), 9, 5));
        assert_eq!(record.block, block(first, len));
    }
}

/// Ends the archive without its orderly close, as a kill would: the mapped files stay as they are.
fn kill(archive: Archive, dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
    drop(archive);
    copy
}

fn copy_dir(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy_dir(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn session_dir(dir: &Path) -> PathBuf {
    dir.join(format!("{:010}", SESSION.0))
}

fn filled(dir: &Path, options: Options, records: u32, len: usize) -> Archive {
    let mut archive = Archive::open(dir, STREAM, options).unwrap();
    let log = archive.create_session(SESSION, META).unwrap();
    for seq in 1..=records {
        append(log, seq, 1, len).unwrap();
    }
    archive
}

#[test]
fn what_was_appended_is_found_after_an_orderly_stop() {
    for helper in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options { helper, ..SMALL };
        let mut archive = Archive::open(dir.path(), STREAM, options).unwrap();
        let identity = archive.identity();
        let log = archive.create_session(SESSION, META).unwrap();
        // Out of order, over several segments and two pieces of index.
        append(log, 131_000, 500, 1000).unwrap();
        for i in (0..300).rev() {
            append(log, 1 + i * 3, 3, 900).unwrap();
        }
        log.close(Seq(131_499), Session(SESSION.0 + 1)).unwrap();
        log.mark_lost(range(800, 200)).unwrap();
        archive.close().unwrap();

        let archive = Archive::open(dir.path(), STREAM, options).unwrap();
        assert_eq!(archive.recovery(), &[]);
        assert_eq!(archive.identity(), identity);
        assert_eq!(archive.sessions().collect::<Vec<_>>(), [SESSION]);
        let log = archive.session(SESSION).unwrap();
        assert_eq!(log.meta(), &META);
        assert_eq!(log.stored().as_slice(), [range(1, 900), range(131_000, 500)]);
        assert_eq!(log.lost().as_slice(), [range(901, 99)]);
        assert_eq!(log.end(), Some((Seq(131_499), Session(SESSION.0 + 1))));
        assert_eq!(log.highest(), Some(Seq(131_499)));
        for i in 0..300 {
            assert_holds(log, 1 + i * 3, 3, 900);
        }
        assert_holds(log, 131_000, 500, 1000);
        assert!(log.read(Seq(950)).is_none() && !log.contains(Seq(950)));
    }
}

#[test]
fn a_kill_at_any_record_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = filled(dir.path(), SMALL, 0, 0);
    for seq in 1..=130 {
        append(archive.session_mut(SESSION).unwrap(), seq, 1, 1500).unwrap();
        if seq % 13 == 0 {
            let mut copy = tempfile::tempdir().unwrap();
            copy_dir(dir.path(), copy.path());
            // Two kills in a row, with more appended in between.
            for more in 0..2 {
                let mut killed = Archive::open(copy.path(), STREAM, SMALL).unwrap();
                let log = killed.session_mut(SESSION).unwrap();
                assert_eq!(log.stored().as_slice(), [range(1, seq + more)]);
                append(log, seq + more + 1, 1, 1500).unwrap();
                for seq in 1..=seq + more + 1 {
                    assert_holds(log, seq, 1, 1500);
                }
                copy = kill(killed, copy.path());
            }
        }
    }
}
