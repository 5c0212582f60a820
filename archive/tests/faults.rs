//! Disks that fill up and disks that fail.

use std::sync::Arc;

use seqcast_archive::storage::{Crash, Faulty, Storage};
use seqcast_archive::{AppendError, Archive, Options, SessionMeta, SyncPolicy, What};
use seqcast_proto::seq::{Seq, Session, Stream};

const STREAM: Stream = Stream(1);
const SESSION: Session = Session(5);
const META: SessionMeta = SessionMeta {
    previous: Session::NONE,
    origin: 0,
    user: 0,
};
const BLOCK: &[u8] = &[7; 2000];

fn options(sync: SyncPolicy, helper: bool) -> Options {
    Options {
        segment_bytes: 1 << 16,
        sync,
        max_bytes: None,
        reserve: 0,
        helper,
    }
}

fn append(archive: &mut Archive, seq: u32) -> Result<(), AppendError> {
    let log = archive.session_mut(SESSION).unwrap();
    log.append(Seq(seq), 1, 0, 0, 0, BLOCK)
}

/// Appends from `next` on until the archive says that it is full, and returns what comes next.
fn fill(archive: &mut Archive, mut next: u32) -> u32 {
    loop {
        match append(archive, next) {
            Ok(()) => next += 1,
            Err(AppendError::Full) => return next,
            Err(e) => panic!("{e}"),
        }
    }
}

#[test]
fn a_full_disk_refuses_whole_records_and_goes_on_when_there_is_space() {
    for helper in [false, true] {
        for sync in [SyncPolicy::None, SyncPolicy::EveryBytes(10_000)] {
            let disk = Arc::new(Faulty::new(1));
            let mut archive = Archive::open_on(disk.clone(), STREAM, options(sync, helper)).unwrap();
            archive.create_session(SESSION, META).unwrap();
            disk.set_capacity((1 << 20) + 5 * (1 << 16));
            let next = fill(&mut archive, 1);
            assert!(next > 100);
            let log = archive.session(SESSION).unwrap();
            assert_eq!(log.highest(), Some(Seq(next - 1)));
            assert!(log.read(Seq(next)).is_none());
            // Space comes from outside.
            disk.set_capacity(u64::MAX);
            while matches!(append(&mut archive, next), Err(AppendError::Full)) {
                std::thread::yield_now();
            }
            assert_eq!(archive.session(SESSION).unwrap().highest(), Some(Seq(next)));
            // Or from releasing, although not even a checkpoint fits the disk.
            disk.set_capacity(0);
            let next = fill(&mut archive, next + 1);
            archive.session_mut(SESSION).unwrap().release_below(Seq(next));
            disk.set_capacity(1 << 21);
            while matches!(append(&mut archive, next), Err(AppendError::Full)) {
                std::thread::yield_now();
            }
            let next = fill(&mut archive, next + 1);
            // A kill on a full disk loses nothing.
            disk.set_capacity(0);
            let disk = Arc::new(disk.crash(Crash::Kill).unwrap());
            let mut archive = Archive::open_on(disk.clone(), STREAM, options(sync, helper)).unwrap();
            assert_eq!(archive.session(SESSION).unwrap().highest(), Some(Seq(next - 1)));
            assert!(archive.recovery().iter().any(|n| n.what == What::DiskFull));
            assert!(matches!(append(&mut archive, next), Err(AppendError::Full)));
            disk.set_capacity(u64::MAX);
            while matches!(append(&mut archive, next), Err(AppendError::Full)) {
                std::thread::yield_now();
            }
        }
    }
}

#[test]
fn a_session_that_finds_no_room_leaves_nothing_behind() {
    let disk = Arc::new(Faulty::new(1));
    let mut archive = Archive::open_on(disk.clone(), STREAM, options(SyncPolicy::None, false)).unwrap();
    disk.set_capacity(1 << 17);
    assert!(archive.create_session(SESSION, META).is_err());
    assert_eq!(archive.sessions().count(), 0);
    disk.set_capacity(u64::MAX);
    archive.create_session(SESSION, META).unwrap();
    append(&mut archive, 1).unwrap();
}

#[test]
fn after_a_failed_sync_nothing_more_is_taken_or_called_synced() {
    for helper in [false, true] {
        let disk = Arc::new(Faulty::new(1));
        let options = options(SyncPolicy::EveryBytes(1), helper);
        let mut archive = Archive::open_on(disk.clone(), STREAM, options).unwrap();
        archive.create_session(SESSION, META).unwrap();
        append(&mut archive, 1).unwrap();
        archive.session_mut(SESSION).unwrap().sync().unwrap();
        disk.break_sync(true);
        let mut next = 2;
        let error = loop {
            match append(&mut archive, next) {
                Ok(()) => next += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, AppendError::Io(_)), "{error}");
        // The disk says that it is well again, but what it failed to write may be gone.
        disk.break_sync(false);
        assert!(matches!(append(&mut archive, next), Err(AppendError::Io(_))));
        let log = archive.session_mut(SESSION).unwrap();
        assert!(log.sync().is_err());
        assert_eq!(log.synced().total(), 1);
        assert!(archive.close().is_err());
    }
}

#[test]
fn a_reserve_holds_the_disk_for_its_archive() {
    const RESERVE: u64 = 4 << 16;
    for sync in [SyncPolicy::None, SyncPolicy::EveryBytes(10_000)] {
        let fill_behind = |reserve| {
            let disk = Arc::new(Faulty::new(1));
            let with_reserve = Options {
                reserve,
                ..options(sync, true)
            };
            let mut archive = Archive::open_on(disk.clone(), STREAM, with_reserve).unwrap();
            archive.create_session(SESSION, META).unwrap();
            until_ready(&archive);
            // Others take all that is left.
            disk.set_capacity(0);
            let next = fill(&mut archive, 1);
            assert_eq!(archive.reserve().ready, 0);
            // What was used is made again as soon as there is room.
            if reserve > 0 {
                while !archive.reserve().refused {
                    std::thread::yield_now();
                }
                disk.set_capacity(u64::MAX);
                until_ready(&archive);
                assert!(!archive.reserve().refused);
            }
            next
        };
        let in_reserve = u64::from(fill_behind(RESERVE) - fill_behind(0)) * BLOCK.len() as u64;
        assert!(
            (RESERVE * 9 / 10..=RESERVE).contains(&in_reserve),
            "{in_reserve} bytes more with {RESERVE} in reserve"
        );
    }
}

#[test]
fn a_reserve_takes_what_is_released_and_is_made_anew_at_each_opening() {
    let disk = Arc::new(Faulty::new(1));
    let options = Options {
        reserve: 8 << 16,
        ..options(SyncPolicy::EveryBytes(10_000), true)
    };
    for round in 0..3 {
        let mut archive = Archive::open_on(disk.clone(), STREAM, options).unwrap();
        assert!(archive.recovery().is_empty(), "{:?}", archive.recovery());
        until_ready(&archive);
        let first = archive
            .session(SESSION)
            .and_then(|log| log.highest())
            .map_or(1, |seq| seq.0 + 1);
        if round == 0 {
            archive.create_session(SESSION, META).unwrap();
        }
        for seq in first..first + 400 {
            append(&mut archive, seq).unwrap();
        }
        archive.session_mut(SESSION).unwrap().release_below(Seq(first + 350));
        until_ready(&archive);
        for seq in first + 350..first + 400 {
            assert_eq!(archive.session(SESSION).unwrap().read(Seq(seq)).unwrap().block, BLOCK);
        }
        archive.close().unwrap();
        // The session, `archive`, at most eight in reserve and those that wait to be removed.
        let spares = disk
            .list("")
            .unwrap()
            .iter()
            .filter(|f| f.name.starts_with("spare-"))
            .count();
        assert_eq!(spares, 8);
    }
}

fn until_ready(archive: &Archive) {
    while archive.reserve().ready < archive.reserve().size {
        std::thread::yield_now();
    }
}

#[test]
fn a_reserve_needs_the_helper() {
    let options = Options {
        reserve: 1,
        ..options(SyncPolicy::None, false)
    };
    let error = Archive::open_on(Arc::new(Faulty::new(1)), STREAM, options).unwrap_err();
    assert!(error.to_string().contains("reserve"), "{error}");
}
