//! The archive against a plain map, through kills and losses of power at random points.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;
use seqcast_archive::storage::{Crash, Faulty};
use seqcast_archive::{AppendError, Archive, Options, SessionMeta, SyncPolicy};
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

const STREAM: Stream = Stream(1);
const SESSION: Session = Session(5);

#[derive(Clone, Debug)]
enum Op {
    Append { first: u32, count: u16, len: usize },
    Release(u32),
    Lose(u32, u32),
    Sync,
    Stop,
    Kill,
    PowerLoss,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let append = (1u32..400, 1u16..5, 0usize..6000);
    let op = prop_oneof![
        30 => append.prop_map(|(first, count, len)| Op::Append { first: first * 4, count, len }),
        // Next to the end of the first piece of index, so that records lie across it.
        5 => (131_060u32..131_080, 1u16..5).prop_map(|(first, count)| Op::Append { first, count, len: 100 }),
        2 => (1u32..1600).prop_map(Op::Release),
        1 => (1u32..1600, 1u32..20).prop_map(|(first, n)| Op::Lose(first, n)),
        1 => Just(Op::Sync),
        1 => Just(Op::Stop),
        2 => Just(Op::Kill),
        2 => Just(Op::PowerLoss),
    ];
    prop::collection::vec(op, 1..150)
}

/// What must be stored (value) for each number, and whether a loss of power may take it.
#[derive(Default)]
struct Model {
    records: BTreeMap<u32, (u16, Vec<u8>)>,
    lost: Vec<SeqRange>,
    floor: u32,
}

impl Model {
    fn overlaps(&self, first: u32, count: u16) -> bool {
        let last = first + u32::from(count) - 1;
        self.records
            .iter()
            .any(|(&f, (n, _))| f <= last && first < f + u32::from(*n))
    }

    fn check(&self, archive: &mut Archive) {
        let log = archive.session_mut(SESSION).unwrap();
        let mut wanted = std::collections::BTreeSet::new();
        for (&first, (count, block)) in &self.records {
            for seq in (first..first + u32::from(*count)).filter(|&s| s >= self.floor) {
                wanted.insert(seq);
                let record = log.read(Seq(seq)).unwrap_or_else(|| panic!("number {seq} is gone"));
                assert_eq!((record.first, record.count), (Seq(first), *count));
                assert_eq!(record.block, block);
            }
        }
        let stored = log.stored().as_slice().iter();
        let stored: Vec<u32> = stored.flat_map(|r| r.first.0..=r.last.0).collect();
        assert_eq!(stored, wanted.into_iter().collect::<Vec<_>>());
        assert_eq!(log.damaged(), 0);
    }

    /// Takes over what a crash may have changed, having checked that it was allowed to.
    fn adopt(&mut self, archive: &mut Archive, synced: &[SeqRange], how: Crash) {
        let log = archive.session_mut(SESSION).unwrap();
        let safe = |first: u32| synced.iter().any(|r| r.contains(Seq(first)));
        for (&first, (count, block)) in &self.records {
            let last = first + u32::from(*count) - 1;
            if last < self.floor {
                continue;
            }
            match log.read(Seq(last)) {
                Some(record) => assert_eq!((record.first, record.block), (Seq(first), &block[..])),
                None => assert!(how == Crash::PowerLoss && !safe(last), "number {last} is gone"),
            }
        }
        // A release may be forgotten. Set it again, as its owner would.
        log.release_below(Seq(self.floor));
        self.records.retain(|&first, (count, _)| {
            first + u32::from(*count) - 1 < self.floor.max(1) || log.contains(Seq(first + u32::from(*count) - 1))
        });
        if how == Crash::Kill {
            for lost in &self.lost {
                for seq in lost.first.0.max(self.floor)..=lost.last.0 {
                    assert!(log.lost().contains(Seq(seq)), "lost {seq} forgotten");
                }
            }
        } else {
            self.lost = log.lost().as_slice().to_vec();
        }
    }
}

fn run(ops: Vec<Op>, sync: SyncPolicy, seed: u64) {
    let options = Options {
        segment_bytes: 1 << 16,
        sync,
        max_bytes: None,
        reserve: 0,
        helper: false,
    };
    let mut disk = Arc::new(Faulty::new(seed));
    let mut archive = Archive::open_on(disk.clone(), STREAM, options).unwrap();
    let meta = SessionMeta {
        previous: Session(4),
        origin: 1,
        user: 2,
    };
    archive.create_session(SESSION, meta).unwrap();
    let mut model = Model::default();
    for (step, op) in ops.into_iter().enumerate() {
        let log = archive.session_mut(SESSION).unwrap();
        match op {
            Op::Append { first, count, len } => {
                let block: Vec<u8> = (0..len).map(|i| (step * 7 + i) as u8).collect();
                let range = SeqRange::of(Seq(first), count.into()).unwrap();
                let done = log.append(Seq(first), count, 0, 0, 0, &block);
                if first < model.floor {
                    assert!(matches!(done, Err(AppendError::Released)));
                } else if model.overlaps(first, count) {
                    assert!(matches!(done, Err(AppendError::Duplicate)));
                } else if model.lost.iter().any(|l| l.intersect(range).is_some()) {
                    assert!(matches!(done, Err(AppendError::Lost)));
                } else {
                    done.unwrap();
                    model.records.insert(first, (count, block));
                }
            }
            Op::Release(floor) => {
                log.release_below(Seq(floor));
                model.floor = model.floor.max(floor);
                let floor = model.floor;
                model.lost = log.lost().as_slice().to_vec();
                assert!(model.lost.iter().all(|l| l.last.0 >= floor));
            }
            Op::Lose(first, n) => {
                log.mark_lost(SeqRange::of(Seq(first), n).unwrap()).unwrap();
                model.lost = log.lost().as_slice().to_vec();
            }
            Op::Sync => {
                log.sync().unwrap();
                let synced = log.synced().clone();
                assert_eq!(synced.as_slice(), log.stored().as_slice());
            }
            Op::Stop => {
                archive.close().unwrap();
                archive = Archive::open_on(disk.clone(), STREAM, options).unwrap();
                assert_eq!(archive.recovery(), &[]);
                model.check(&mut archive);
            }
            Op::Kill | Op::PowerLoss => {
                let how = if matches!(op, Op::Kill) {
                    Crash::Kill
                } else {
                    Crash::PowerLoss
                };
                let synced = log.synced().as_slice().to_vec();
                disk = Arc::new(disk.crash(how).unwrap());
                archive = Archive::open_on(disk.clone(), STREAM, options).unwrap();
                model.adopt(&mut archive, &synced, how);
                model.check(&mut archive);
            }
        }
    }
    model.check(&mut archive);
    assert_eq!(archive.session(SESSION).unwrap().meta(), &meta);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_plain_map_without_syncs(ops in ops(), seed: u64) {
        run(ops, SyncPolicy::None, seed);
    }

    #[test]
    fn agrees_with_a_plain_map_with_syncs(ops in ops(), seed: u64, bytes in 1u64..40_000) {
        run(ops, SyncPolicy::EveryBytes(bytes), seed);
    }
}
