//! A loss of power before each single change that the archive makes to its disk, in turn.

use std::collections::BTreeMap;
use std::sync::Arc;

use seqcast_archive::storage::{Crash, Faulty};
use seqcast_archive::{Archive, Error, Options, SessionMeta, SyncPolicy};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

const STREAM: Stream = Stream(1);
const FIRST: Session = Session(5);
const SECOND: Session = Session(6);

fn options() -> Options {
    Options {
        segment_bytes: 1 << 16,
        sync: SyncPolicy::EveryBytes(4_000),
        max_bytes: None,
        reserve: 0,
        helper: false,
    }
}

/// What whoever wrote to the archive was told.
#[derive(Default)]
struct Promised {
    sessions: Vec<Session>,
    /// Numbers that a loss of power cannot take, with how many each session has taken in all.
    synced: BTreeMap<Session, Vec<SeqRange>>,
    taken: BTreeMap<Session, u32>,
    /// Numbers below were given up.
    floors: BTreeMap<Session, u32>,
    /// The losses and the end of the first session are on disk.
    ended: bool,
    removed: bool,
}

fn block(seq: u32) -> Vec<u8> {
    vec![seq as u8; 100 + seq as usize * 37 % 3000]
}

fn append(archive: &mut Archive, session: Session, upto: u32, promised: &mut Promised) -> Result<(), Error> {
    let log = archive.session_mut(session).expect("it was made");
    let taken = promised.taken.entry(session).or_default();
    while *taken < upto {
        let seq = *taken + 1;
        // One number that exists nowhere.
        if seq != 40 {
            let done = log.append(Seq(seq), 1, 1, 2, 0, &block(seq));
            done.map_err(|e| Error::Invalid(e.to_string()))?;
        }
        *taken = seq;
        promised.synced.insert(session, log.synced().as_slice().to_vec());
    }
    Ok(())
}

/// Everything that changes a disk: sessions made, filled, given up, ended and removed, orderly stops and a
/// kill with its recovery. Ends with the first error.
fn life(disk: &mut Arc<Faulty>, promised: &mut Promised) -> Result<(), Error> {
    let meta = SessionMeta {
        previous: Session::NONE,
        origin: 1,
        user: 0,
    };
    let mut archive = Archive::open_on(disk.clone(), STREAM, options())?;
    archive.create_session(FIRST, meta)?;
    promised.sessions.push(FIRST);
    append(&mut archive, FIRST, 150, promised)?;
    let log = archive.session_mut(FIRST).expect("made");
    log.mark_lost(SeqRange::of(Seq(40), 1).expect("a number"))?;
    promised.floors.insert(FIRST, 60);
    log.release_below(Seq(60));
    append(&mut archive, FIRST, 230, promised)?;
    archive.close()?;

    let mut archive = Archive::open_on(disk.clone(), STREAM, options())?;
    append(&mut archive, FIRST, 300, promised)?;
    let killed = disk.crash(Crash::Kill).map_err(|e| Error::Invalid(e.to_string()))?;
    drop(archive);
    *disk = Arc::new(killed);

    let mut archive = Archive::open_on(disk.clone(), STREAM, options())?;
    append(&mut archive, FIRST, 350, promised)?;
    let log = archive.session_mut(FIRST).expect("recovered");
    log.close(Seq(350), SECOND)?;
    log.sync()?;
    promised.ended = true;
    promised.synced.insert(FIRST, log.synced().as_slice().to_vec());
    archive.create_session(SECOND, meta)?;
    promised.sessions.push(SECOND);
    append(&mut archive, SECOND, 120, promised)?;
    // From here on it may be there or not.
    promised.removed = true;
    archive.remove_session(FIRST)?;
    append(&mut archive, SECOND, 160, promised)?;
    archive.close()
}

fn check(disk: &Arc<Faulty>, promised: &Promised, what: &str) {
    let mut archive = Archive::open_on(disk.clone(), STREAM, options()).unwrap_or_else(|e| panic!("{what}: {e}"));
    for &session in &promised.sessions {
        let gone = session == FIRST && promised.removed;
        let Some(log) = archive.session_mut(session) else {
            assert!(gone, "{what}: session {session} is gone");
            continue;
        };
        let floor = promised.floors.get(&session).copied().unwrap_or(0);
        for range in promised.synced.get(&session).into_iter().flatten() {
            for seq in range.first.0.max(floor)..=range.last.0 {
                assert!(
                    log.read(Seq(seq)).is_some(),
                    "{what}: number {seq} of {session} was acknowledged"
                );
            }
        }
        let highest = promised.taken.get(&session).copied().unwrap_or(0) + 1;
        for range in log.stored().as_slice() {
            assert!(range.last.0 <= highest, "{what}: {range} was never written");
            for seq in range.first.0..=range.last.0 {
                let record = log
                    .read(Seq(seq))
                    .unwrap_or_else(|| panic!("{what}: number {seq} is not what it says"));
                assert_eq!(record.block, block(seq), "{what}: number {seq}");
            }
        }
        assert_eq!(log.damaged(), 0, "{what}");
        if session == FIRST && promised.ended {
            assert_eq!(log.end(), Some((Seq(350), SECOND)), "{what}");
        }
        // It goes on.
        let next = log.highest().map_or(Seq::FIRST, Seq::next).max(log.floor());
        if log.end().is_none() {
            log.append(next, 1, 1, 2, 0, &block(next.0))
                .unwrap_or_else(|e| panic!("{what}: {e}"));
            assert_eq!(log.read(next).unwrap().block, block(next.0));
        }
    }
    archive.close().unwrap_or_else(|e| panic!("{what}: {e}"));
    let archive = Archive::open_on(disk.clone(), STREAM, options()).unwrap();
    assert_eq!(archive.recovery(), &[], "{what}");
}

#[test]
fn power_lost_before_any_change_to_the_disk_takes_nothing_that_was_acknowledged() {
    let mut disk = Arc::new(Faulty::new(0));
    life(&mut disk, &mut Promised::default()).unwrap();
    let changes = disk.changes();
    assert!(changes > 250, "{changes}");
    for cut in 0..changes {
        for seed in 0..3 {
            let mut disk = Arc::new(Faulty::new(cut << 8 | seed));
            disk.lose_power_after(cut);
            let mut promised = Promised::default();
            let ended = life(&mut disk, &mut promised);
            assert!(ended.is_err(), "cut {cut}: the last change was not reached");
            let disk = Arc::new(disk.crash(Crash::PowerLoss).unwrap());
            check(&disk, &promised, &format!("cut {cut} of {changes}, seed {seed}"));
        }
    }
}
