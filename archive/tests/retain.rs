//! Giving up what is old while the archive runs.

use std::path::Path;
use std::time::Duration;

use seqcast_archive::{AppendError, Archive, Keep, Options, Reader, SessionMeta, SyncPolicy};
use seqcast_proto::seq::{Seq, Session, Stream};

const SEGMENT: u64 = 1 << 16;
const CHUNK: u64 = 1 << 20;
const META: SessionMeta = SessionMeta {
    previous: Session::NONE,
    origin: 1,
    user: 0,
};
/// Records of this size fill a segment with 63.
const BLOCK: usize = 1000;

fn options(helper: bool) -> Options {
    Options {
        segment_bytes: SEGMENT,
        sync: SyncPolicy::None,
        helper,
        ..Options::default()
    }
}

fn open(dir: &Path, helper: bool) -> Archive {
    Archive::open(dir, Stream(1), options(helper)).unwrap()
}

/// Appends single messages; each is received at its number in seconds.
fn fill(archive: &mut Archive, session: Session, numbers: std::ops::RangeInclusive<u32>) {
    if archive.session(session).is_none() {
        archive.create_session(session, META).unwrap();
    }
    let log = archive.session_mut(session).unwrap();
    for seq in numbers {
        let received = u64::from(seq) * 1_000_000_000;
        log.append(Seq(seq), 1, 0, received, 0, &[seq as u8; BLOCK]).unwrap();
    }
}

/// What is held of a session is one range up to `last`, and readable; its first number.
fn held(archive: &Archive, session: Session, last: u32) -> u32 {
    let log = archive.session(session).unwrap();
    let [range] = log.stored().as_slice() else {
        panic!("{:?}", log.stored());
    };
    assert_eq!(range.last, Seq(last));
    for seq in range.first.0..=last {
        assert_eq!(log.read(Seq(seq)).unwrap().block, [seq as u8; BLOCK]);
    }
    assert_eq!(log.floor().max(Seq::FIRST), range.first);
    assert!(log.read(range.first.prev()).is_none());
    assert_eq!(log.damaged(), 0);
    range.first.0
}

#[test]
fn everything_is_kept_unless_limited() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = open(dir.path(), false);
    fill(&mut archive, Session(1), 1..=500);
    assert!(Keep::default().is_all());
    archive.retain(&Keep::default(), u64::MAX).unwrap();
    assert_eq!(archive.session(Session(1)).unwrap().stored().total(), 500);
}

#[test]
fn bytes_are_bounded_by_giving_up_the_oldest_segments() {
    for helper in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = open(dir.path(), helper);
        let keep = Keep {
            bytes: Some(4 * SEGMENT + CHUNK),
            ..Keep::default()
        };
        for round in 0..10 {
            fill(&mut archive, Session(1), round * 100 + 1..=round * 100 + 100);
            assert_eq!(archive.retain(&keep, 0).unwrap(), []);
            let last = (round + 1) * 100;
            let kept = last + 1 - held(&archive, Session(1), last);
            // Three whole segments and what is in the open one.
            assert!(last < 200 || (189..=252).contains(&kept), "{kept} of {last}");
        }
        // Beside the writer a reader sees the same, or what it saw before.
        let mut reader = Reader::open(dir.path()).unwrap().session(Session(1)).unwrap();
        let stored = reader.stored().as_slice().to_vec();
        assert_eq!(stored.last().unwrap().last, Seq(1000));
        let got = reader.in_order(Seq::FIRST).map(|r| r.unwrap().first.0);
        assert!(got.skip_while(|&s| s < 812).eq(812..=1000));
        let first = held(&archive, Session(1), 1000);
        archive.close().unwrap();

        let mut archive = open(dir.path(), helper);
        assert_eq!(archive.recovery(), &[]);
        assert_eq!(held(&archive, Session(1), 1000), first);
        let log = archive.session_mut(Session(1)).unwrap();
        let refused = log.append(Seq(1), 1, 0, 0, 0, &[]);
        assert!(matches!(refused, Err(AppendError::Released)));
    }
}

#[test]
fn the_lowest_numbers_go_first_whatever_came_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = open(dir.path(), false);
    // An archive that was away: new messages come before those that it missed.
    fill(&mut archive, Session(1), 1001..=1100);
    fill(&mut archive, Session(1), 1..=1000);
    let keep = Keep {
        bytes: Some(8 * SEGMENT + CHUNK),
        ..Keep::default()
    };
    archive.retain(&keep, 0).unwrap();
    let first = held(&archive, Session(1), 1100);
    assert!((500..=700).contains(&first), "{first}");
}

#[test]
fn segments_go_when_all_they_hold_is_old_but_the_open_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut archive = open(dir.path(), true);
    fill(&mut archive, Session(1), 1..=500);
    let keep = Keep {
        age: Some(Duration::from_secs(300)),
        ..Keep::default()
    };
    archive.retain(&keep, 500_000_000_000).unwrap();
    let first = held(&archive, Session(1), 500);
    assert!((200 - 63..=200).contains(&first), "{first}");
    archive.retain(&keep, u64::MAX).unwrap();
    let first = held(&archive, Session(1), 500);
    assert!(first > 500 - 63, "only the open segment is left, from {first}");
    // Once the session has ended there is no open segment.
    let log = archive.session_mut(Session(1)).unwrap();
    log.close(Seq(500), Session(2)).unwrap();
    archive.retain(&keep, u64::MAX).unwrap();
    let log = archive.session(Session(1)).unwrap();
    assert!(log.stored().is_empty() && log.read(Seq(500)).is_none());
    assert_eq!((log.floor(), log.end()), (Seq(501), Some((Seq(500), Session(2)))));
    archive.close().unwrap();

    let mut archive = open(dir.path(), true);
    let log = archive.session_mut(Session(1)).unwrap();
    assert_eq!((log.floor(), log.end()), (Seq(501), Some((Seq(500), Session(2)))));
    assert_eq!(log.bytes(), 0, "the end of a session takes no segment");
    let refused = log.append(Seq(500), 1, 0, 0, 0, &[]);
    assert!(matches!(refused, Err(AppendError::Released)));
}

#[test]
fn only_so_many_sessions_are_kept() {
    for helper in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut archive = open(dir.path(), helper);
        for session in 1..=5 {
            fill(&mut archive, Session(session), 1..=300);
            if session < 4 {
                let log = archive.session_mut(Session(session)).unwrap();
                log.close(Seq(300), Session(session + 1)).unwrap();
            }
        }
        let keep = Keep {
            sessions: Some(2),
            ..Keep::default()
        };
        // The helper takes the files away meanwhile.
        let mut removed = Vec::new();
        while removed.len() < 3 {
            removed.extend(archive.retain(&keep, 0).unwrap());
            std::thread::yield_now();
        }
        removed.sort_unstable();
        assert_eq!(removed, [1, 2, 3].map(Session));
        assert_eq!(archive.retain(&keep, 0).unwrap(), []);
        assert_eq!(archive.sessions().collect::<Vec<_>>(), [4, 5].map(Session));
        for session in [4, 5] {
            assert_eq!(held_from_start(&archive, Session(session)), 300);
        }
        archive.close().unwrap();
        let names = std::fs::read_dir(dir.path()).unwrap();
        let mut names: Vec<_> = names.map(|e| e.unwrap().file_name()).collect();
        names.retain(|n| n.to_string_lossy().starts_with("00"));
        assert_eq!(names.len(), 2, "{names:?}");
    }
}

fn held_from_start(archive: &Archive, session: Session) -> u64 {
    let log = archive.session(session).unwrap();
    assert_eq!(log.floor(), Seq(0));
    log.stored().total()
}

#[test]
fn a_killed_archive_forgets_at_most_what_it_gave_up() {
    use seqcast_archive::storage::{Crash, Faulty};
    use std::sync::Arc;
    for seed in 0..20 {
        let mut disk = Arc::new(Faulty::new(seed));
        let opened = |disk: &Arc<Faulty>| Archive::open_on(disk.clone(), Stream(1), options(false)).unwrap();
        let mut archive = opened(&disk);
        fill(&mut archive, Session(1), 1..=300);
        let log = archive.session_mut(Session(1)).unwrap();
        log.close(Seq(300), Session(2)).unwrap();
        log.sync().unwrap();
        fill(&mut archive, Session(2), 1..=400);
        archive.session_mut(Session(2)).unwrap().sync().unwrap();
        let keep = Keep {
            bytes: Some(3 * SEGMENT + CHUNK),
            ..Keep::default()
        };
        archive.retain(&keep, 0).unwrap();
        let how = [Crash::Kill, Crash::PowerLoss][seed as usize % 2];
        disk = Arc::new(disk.crash(how).unwrap());
        let mut archive = opened(&disk);
        let log = archive.session(Session(2)).unwrap();
        assert_eq!(log.stored().as_slice().last().unwrap().last, Seq(400));
        assert_eq!(
            archive.session(Session(1)).unwrap().end(),
            Some((Seq(300), Session(2))),
            "seed {seed}"
        );
        archive.retain(&keep, 0).unwrap();
        assert!(archive.session(Session(1)).unwrap().stored().is_empty());
        let log = archive.session(Session(2)).unwrap();
        let [range] = log.stored().as_slice() else {
            panic!("{:?}", log.stored());
        };
        assert!(range.first > Seq(189) && range.last == Seq(400), "{range}");
        for seq in range.first.0..=400 {
            assert_eq!(log.read(Seq(seq)).unwrap().block, [seq as u8; BLOCK]);
        }
    }
}
