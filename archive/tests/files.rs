//! The archive on real files: what survives, what is refused, what recovery says.

use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

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
    reserve: 0,
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
    let copy = kill_copy(dir);
    drop(archive);
    copy
}

/// What a kill at this moment would leave behind.
fn kill_copy(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    copy_dir(dir, copy.path());
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
            let mut copy = kill_copy(dir.path());
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

/// The segment files of the session, ascending.
fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = fs::read_dir(session_dir(dir)).unwrap();
    let mut paths: Vec<PathBuf> = names
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    paths.sort();
    paths
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(bytes, at).unwrap();
}

/// What opening says, and how many numbers from 1 on are stored without a gap.
fn reopen(dir: &Path) -> (Archive, Vec<What>, u32) {
    let archive = Archive::open(dir, STREAM, SMALL).unwrap();
    let what = archive.recovery().iter().map(|n| n.what.clone()).collect();
    let stored = archive.session(SESSION).unwrap().stored();
    let reach = stored.first_absent(Seq::FIRST).0 - 1;
    (archive, what, reach)
}

#[test]
fn a_torn_last_record_is_cut_and_the_log_goes_on_there() {
    let dir = tempfile::tempdir().unwrap();
    let archive = filled(dir.path(), SMALL, 10, 1000);
    let copy = kill(archive, dir.path());
    // The last of ten records of 1032 bytes: its end never reached the disk.
    overwrite(&segments(copy.path())[0], 64 + 9 * 1032 + 500, &[0; 300]);
    let (mut archive, what, reach) = reopen(copy.path());
    assert_eq!(reach, 9);
    assert!(matches!(&what[0], What::Cut { offset, .. } if *offset == 64 + 9 * 1032));
    assert!(archive.recovery()[0].to_string().contains("cut 00000001.log at 9352"));
    let log = archive.session_mut(SESSION).unwrap();
    append(log, 10, 1, 20).unwrap();
    drop(archive);
    let (archive, what, reach) = reopen(copy.path());
    assert_eq!((what, reach), (vec![], 10));
    assert_holds(archive.session(SESSION).unwrap(), 10, 1, 20);
}

#[test]
fn a_bad_byte_in_the_middle_costs_that_record_or_what_follows_it() {
    let dir = tempfile::tempdir().unwrap();
    let archive = filled(dir.path(), SMALL, 100, 1000);
    let copy = kill(archive, dir.path());
    drop(dir);
    // In a finished segment, which opening trusts: one record is gone, and everyone is told.
    overwrite(&segments(copy.path())[0], 64 + 4 * 1032 + 100, b"!!");
    let (archive, _, reach) = reopen(copy.path());
    assert_eq!(reach, 100);
    let log = archive.session(SESSION).unwrap();
    assert!(log.read(Seq(5)).is_none());
    assert_eq!(log.damaged(), 1);
    assert_holds(log, 6, 1, 1000);
    let mut seen = 0;
    let mut reader = Reader::open(copy.path()).unwrap().session(SESSION).unwrap();
    let found = reader.verify(|_| seen += 1).unwrap();
    assert_eq!(
        (found.damaged, found.progress.records, found.progress.of),
        (1, 99, seen)
    );
    assert_eq!(found.damage[0].offset, 64 + 4 * 1032);
    let firsts: Vec<u32> = reader.in_order(Seq(3)).map(|r| r.unwrap().first.0).collect();
    assert_eq!(firsts, [vec![3, 4], (6..=100).collect()].concat());
    drop(archive);
    // With no checkpoint all is read, and each segment is cut at its first bad record.
    fs::remove_file(session_dir(copy.path()).join("checkpoint")).unwrap();
    let (archive, what, reach) = reopen(copy.path());
    assert_eq!(reach, 4);
    assert!(matches!(what[0], What::NoCheckpoint { .. }));
    assert!(matches!(what[1], What::Cut { .. }));
    let log = archive.session(SESSION).unwrap();
    assert!(log.read(Seq(6)).is_none());
    assert_eq!(log.highest(), Some(Seq(100)));
}

#[test]
fn odd_files_each_have_a_defined_result() {
    let dir = tempfile::tempdir().unwrap();
    let archive = filled(dir.path(), SMALL, 100, 1000);
    let copy = kill(archive, dir.path());
    let inside = session_dir(copy.path());
    fs::write(inside.join("0000000a.log"), b"").unwrap();
    fs::write(inside.join("0000000b.log"), [0; 4096]).unwrap();
    fs::write(
        inside.join("0000000c.log"),
        b"not a segment, but long enough to have a header in it, had it one",
    )
    .unwrap();
    fs::write(inside.join("0000000d.log.tmp"), b"x").unwrap();
    fs::write(inside.join("notes.txt"), b"x").unwrap();
    fs::write(copy.path().join("README"), b"x").unwrap();
    fs::create_dir(copy.path().join("0000000009")).unwrap();
    let (mut archive, what, reach) = reopen(copy.path());
    assert_eq!(reach, 100);
    let count = |wanted: &str| what.iter().filter(|w| format!("{w:?}").starts_with(wanted)).count();
    assert_eq!(
        (count("Removed"), count("LeftAlone"), count("Scanned")),
        (4, 3, 1),
        "{what:?}"
    );
    let log = archive.session_mut(SESSION).unwrap();
    for seq in 101..=200 {
        append(log, seq, 1, 1000).unwrap();
    }
    drop(archive);
    assert!(
        fs::read(inside.join("0000000c.log"))
            .unwrap()
            .starts_with(b"not a segment")
    );
    assert_eq!(reopen(copy.path()).2, 200);
}

#[test]
fn a_truncated_segment_keeps_its_whole_records_and_takes_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let archive = filled(dir.path(), SMALL, 10, 1000);
    let copy = kill(archive, dir.path());
    let first = &segments(copy.path())[0];
    OpenOptions::new()
        .write(true)
        .open(first)
        .unwrap()
        .set_len(5000)
        .unwrap();
    let (mut archive, what, reach) = reopen(copy.path());
    assert_eq!(reach, 4);
    assert!(what.iter().any(|w| matches!(
        w,
        What::Length {
            found: 5000,
            wanted: 65536,
            ..
        }
    )));
    append(archive.session_mut(SESSION).unwrap(), 5, 1, 1000).unwrap();
    drop(archive);
    assert_eq!(segments(copy.path()).len(), 2);
    assert_eq!(reopen(copy.path()).2, 5);
}

#[test]
fn what_is_not_this_archive_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    drop(filled(dir.path(), SMALL, 3, 100));
    let open = |stream| Archive::open(dir.path(), stream, SMALL).map(drop);
    let error = open(Stream(1)).unwrap_err();
    assert!(matches!(
        error,
        Error::Stream {
            found: STREAM,
            wanted: Stream(1),
            ..
        }
    ));
    let identity = dir.path().join("archive");
    let good = fs::read(&identity).unwrap();
    let mut newer = good.clone();
    newer[8] = 9;
    fs::write(&identity, newer).unwrap();
    assert!(matches!(open(STREAM).unwrap_err(), Error::Version { found: 9, .. }));
    fs::write(&identity, b"something else").unwrap();
    let error = open(STREAM).unwrap_err();
    assert!(matches!(error, Error::Foreign { .. }));
    assert!(error.to_string().contains(identity.to_str().unwrap()), "{error}");
    fs::remove_file(&identity).unwrap();
    assert!(matches!(open(STREAM).unwrap_err(), Error::Damaged { .. }));
    fs::write(&identity, good).unwrap();
    let meta = session_dir(dir.path()).join("session");
    let mut bad = fs::read(&meta).unwrap();
    bad[20] ^= 1;
    fs::write(&meta, bad).unwrap();
    assert!(matches!(open(STREAM).unwrap_err(), Error::Damaged { path, .. } if path == meta));
}

#[test]
fn a_second_writer_is_refused_and_readers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = filled(dir.path(), SMALL, 50, 3000);
    let error = Archive::open(dir.path(), STREAM, SMALL).map(drop).unwrap_err();
    assert!(matches!(error, Error::Locked { pid: Some(pid), .. } if pid == std::process::id()));
    assert!(error.to_string().contains(dir.path().to_str().unwrap()));
    let reader = Reader::open(dir.path()).unwrap();
    assert_eq!((reader.stream(), reader.identity()), (STREAM, archive.identity()));
    assert_eq!(reader.sessions().unwrap(), [SESSION]);
    let mut session = reader.session(SESSION).unwrap();
    assert_eq!(session.stored().as_slice(), [range(1, 50)]);
    assert_eq!(session.meta(), &META);
    assert_eq!(session.in_log_order().count(), 50);
    assert_eq!(session.verify(|_| {}).unwrap().damaged, 0);
    // The writer goes on, and recycles what the reader looks at.
    let log = archive.session_mut(SESSION).unwrap();
    log.release_below(Seq(45));
    for seq in 51..=120 {
        append(log, seq, 1, 3000).unwrap();
    }
    assert_eq!(session.verify(|_| {}).unwrap().damaged, 0);
    let read = session.read(Seq(46)).unwrap().unwrap();
    assert_eq!(read.block, block(46, 3000));
    assert_eq!(session.read(Seq(1)).unwrap(), None);
    assert_eq!(reader.session(SESSION).unwrap().stored().as_slice(), [range(45, 76)]);
    assert!(matches!(reader.session(Session(1)), Err(Error::Unknown(Session(1)))));
    drop(archive);
    assert!(Archive::open(dir.path(), STREAM, SMALL).is_ok());
}

#[test]
fn releasing_recycles_so_that_a_bounded_log_goes_on_for_ever() {
    for helper in [false, true] {
        for memory in [false, true] {
            let dir = tempfile::tempdir().unwrap();
            let options = Options {
                max_bytes: Some((1 << 16) * 8 + (1 << 20) * 3),
                reserve: 0,
                helper,
                ..SMALL
            };
            let mut archive = if memory {
                Archive::in_memory(STREAM, options).unwrap()
            } else {
                Archive::open(dir.path(), STREAM, options).unwrap()
            };
            let log = archive.create_session(SESSION, META).unwrap();
            let (mut next, mut full) = (1, 0);
            while next < 3000 {
                match append(log, next, 1, 2000) {
                    Ok(()) => next += 1,
                    Err(AppendError::Full) => {
                        full += 1;
                        assert!(log.bytes() <= options.max_bytes.unwrap());
                        log.release_below(Seq(next - 10));
                        std::thread::yield_now();
                    }
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(full > 0, "the bound was reached");
            let first = log.stored().as_slice()[0].first;
            assert_eq!(log.stored().as_slice().len(), 1);
            for seq in first.0..next {
                assert_holds(log, seq, 1, 2000);
            }
            assert!(log.read(first.prev()).is_none());
            let error = append(log, 1, 1, 10);
            assert!(matches!(error, Err(AppendError::Released)));
        }
    }
}

#[test]
fn appends_that_make_no_sense_are_refused_and_change_nothing() {
    let mut archive = Archive::in_memory(STREAM, SMALL).unwrap();
    let log = archive.create_session(SESSION, META).unwrap();
    append(log, 10, 5, 100).unwrap();
    log.mark_lost(range(1, 12)).unwrap();
    assert_eq!(log.lost().as_slice(), [range(1, 9)]);
    for (first, count) in [(10, 5), (14, 1), (8, 3), (14, 9)] {
        let refused = append(log, first, count, 1);
        assert!(matches!(refused, Err(AppendError::Duplicate)));
    }
    assert!(matches!(append(log, 3, 1, 1), Err(AppendError::Lost)));
    assert!(matches!(append(log, 0, 1, 1), Err(AppendError::BadRange)));
    assert!(matches!(append(log, 20, 0, 1), Err(AppendError::BadRange)));
    assert!(matches!(append(log, u32::MAX - 1, 2, 1), Err(AppendError::BadRange)));
    let most = (1 << 16) - 64 - 32;
    assert!(matches!(append(log, 20, 1, most + 1), Err(AppendError::TooLarge { limit, .. }) if limit == most));
    append(log, 20, 1, most).unwrap();
    append(log, u32::MAX - 1, 1, 0).unwrap();
    assert_holds(log, u32::MAX - 1, 1, 0);
    assert!(matches!(log.close(Seq(30), Session::NONE), Ok(())));
    assert!(matches!(append(log, 31, 1, 1), Err(AppendError::AfterEnd)));
    assert!(matches!(
        log.close(Seq(31), Session::NONE),
        Err(Error::Closed { was: 30, now: 31, .. })
    ));
    log.close(Seq(30), Session(9)).unwrap();
    log.close(Seq(30), Session::NONE).unwrap();
    assert_eq!(log.end(), Some((Seq(30), Session(9))));
    assert!(matches!(
        archive.create_session(SESSION, META),
        Err(Error::Exists(SESSION))
    ));
    archive.remove_session(SESSION).unwrap();
    assert!(matches!(archive.remove_session(SESSION), Err(Error::Unknown(SESSION))));
    assert!(archive.session(SESSION).is_none());
}

#[test]
fn a_removed_session_is_gone_and_the_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = filled(dir.path(), SMALL, 10, 1000);
    let other = Session(SESSION.0 + 1);
    let meta = SessionMeta {
        previous: SESSION,
        ..META
    };
    append(archive.create_session(other, meta).unwrap(), 1, 1, 10).unwrap();
    archive.remove_session(SESSION).unwrap();
    archive.close().unwrap();
    let archive = Archive::open(dir.path(), STREAM, SMALL).unwrap();
    assert_eq!(archive.sessions().collect::<Vec<_>>(), [other]);
    assert_eq!(archive.session(other).unwrap().meta().previous, SESSION);
}

#[test]
fn options_out_of_range_are_refused() {
    let refused = [
        Options {
            segment_bytes: 1 << 15,
            ..SMALL
        },
        Options {
            segment_bytes: 100_000,
            ..SMALL
        },
        Options {
            segment_bytes: 1 << 31,
            ..SMALL
        },
        Options {
            max_bytes: Some(1 << 20),
            ..SMALL
        },
        Options {
            sync: SyncPolicy::EveryMs(5),
            ..SMALL
        },
        Options {
            sync: SyncPolicy::EveryMs(0),
            helper: true,
            ..SMALL
        },
        Options {
            sync: SyncPolicy::EveryBytes(0),
            ..SMALL
        },
    ];
    for options in refused {
        assert!(
            matches!(Archive::in_memory(STREAM, options), Err(Error::Invalid(_))),
            "{options:?}"
        );
    }
}

#[test]
fn records_become_synced_by_the_policy() {
    for sync in [
        SyncPolicy::EveryMs(1),
        SyncPolicy::EveryBytes(1),
        SyncPolicy::Every { ms: 1, bytes: 1 << 20 },
    ] {
        let dir = tempfile::tempdir().unwrap();
        let options = Options {
            sync,
            helper: true,
            ..SMALL
        };
        let mut archive = filled(dir.path(), options, 100, 1000);
        let log = archive.session_mut(SESSION).unwrap();
        while log.synced().as_slice() != [range(1, 100)] {
            std::thread::yield_now();
        }
    }
}

#[test]
fn what_a_session_begins_with_is_synced_though_nothing_follows() {
    let options = Options {
        sync: SyncPolicy::EveryMs(1),
        helper: true,
        ..SMALL
    };
    // The helper may be on its way to sleep just when the session is new to it, or not.
    for _ in 0..100 {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = filled(dir.path(), options, 1, 10);
        let log = archive.session_mut(SESSION).unwrap();
        while log.synced().as_slice() != [range(1, 1)] {
            std::thread::yield_now();
        }
    }
}

#[test]
fn after_a_kill_only_what_follows_the_last_checkpoint_is_read() {
    for records in [500, 4000] {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = filled(dir.path(), SMALL, records, 1000);
        let copy = kill_copy(dir.path());
        let (_, what, stored) = reopen(copy.path());
        assert_eq!(stored, records);
        // Two segments, however many came before.
        let most = 2 * SMALL.segment_bytes;
        assert!(
            matches!(what[..], [What::Scanned { bytes, .. }] if bytes <= most),
            "{what:?}"
        );

        let log = archive.session_mut(SESSION).unwrap();
        log.sync().unwrap();
        for seq in records + 1..=records + 3 {
            append(log, seq, 1, 1000).unwrap();
        }
        let (_, what, stored) = reopen(kill(archive, dir.path()).path());
        assert_eq!(stored, records + 3);
        let unsynced = What::Scanned {
            segments: 1,
            records: 3,
            bytes: 3 * 1032,
        };
        assert_eq!(what, [unsynced]);
    }
}

#[test]
fn a_reader_sees_beside_the_writer_what_is_stored_and_what_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let seen = || {
        let reader = Reader::open(dir.path()).unwrap().session(SESSION).unwrap();
        let synced = reader.synced().unwrap();
        (reader.stored().total(), synced.map(|s| s.total()))
    };
    let mut archive = filled(dir.path(), SMALL, 10, 1000);
    // Making the session wrote it down, with nothing in it.
    assert_eq!(seen(), (10, Some(0)));
    let log = archive.session_mut(SESSION).unwrap();
    log.sync().unwrap();
    assert_eq!(seen(), (10, Some(10)));
    (11..=200).for_each(|seq| append(log, seq, 1, 1000).unwrap());
    assert_eq!(seen(), (200, Some(10)), "several segments, and no sync");
    log.sync().unwrap();
    append(log, 201, 1, 1000).unwrap();
    assert_eq!(seen(), (201, Some(200)));
    archive.close().unwrap();
    assert_eq!(seen(), (201, Some(201)));
}

/// Set in the child process of the test below: the archive's directory.
const CHILD: &str = "SEQCAST_ARCHIVE_TEST_DIR";

/// Not a test of its own: what the child process of the next test runs until it is killed.
#[test]
fn child_appends_until_killed() {
    let Some(dir) = std::env::var_os(CHILD) else {
        return;
    };
    let options = Options { helper: true, ..SMALL };
    let mut archive = Archive::open(Path::new(&dir), STREAM, options).unwrap();
    if archive.session(SESSION).is_none() {
        archive.create_session(SESSION, META).unwrap();
    }
    let log = archive.session_mut(SESSION).unwrap();
    // In pairs the wrong way round, so that numbers and log differ in order.
    let start = log.highest().map_or(1, |h| h.0 + 1) | 1;
    for seq in (start..).step_by(2) {
        for seq in [seq + 1, seq] {
            if !log.contains(Seq(seq)) {
                append(log, seq, 1, 700).unwrap();
                println!("appended {seq}");
            }
        }
    }
}

#[test]
fn a_killed_process_loses_nothing_that_it_reported() {
    let dir = tempfile::tempdir().unwrap();
    let mut reported: Vec<u32> = Vec::new();
    for round in 1..=6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_appends_until_killed", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut number = || -> Option<u32> {
            loop {
                let line = lines.next()?.ok()?;
                if let Some((_, number)) = line.split_once("appended ") {
                    return number.parse().ok();
                }
            }
        };
        for _ in 0..round * 97 {
            reported.push(number().expect("the child appends"));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What was still in the pipe when it died was reported too. The very last line may be cut.
        let mut rest: Vec<u32> = std::iter::from_fn(number).collect();
        rest.pop();
        reported.extend(rest);

        let options = Options { helper: true, ..SMALL };
        let archive = Archive::open(dir.path(), STREAM, options).unwrap();
        let log = archive.session(SESSION).unwrap();
        for &seq in &reported {
            assert_holds(log, seq, 1, 700);
        }
        assert!(archive.recovery().iter().all(|n| !matches!(n.what, What::Cut { .. })));
        drop(archive);
        let mut reader = Reader::open(dir.path()).unwrap().session(SESSION).unwrap();
        assert_eq!(reader.verify(|_| {}).unwrap().damaged, 0);
    }
}
