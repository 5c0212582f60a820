//! The simulator finds planted bugs, and nothing in the product.

use std::collections::BTreeSet;
use std::env;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use seqcast_proto::mutations::{ALL, Bug, plant};
use seqcast_tools::sim::{Oracle, Plan, Trace, run, shrink};

/// A planted bug is there for the whole process: one test at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a planted bug away, also after a panic.
struct Planted;

impl Planted {
    fn new(bug: Bug) -> Planted {
        plant(Some(bug));
        Planted
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        plant(None);
    }
}

fn check(seed: u64) {
    if let Some(failure) = run(&Plan::of(seed), None).failure {
        panic!("seed {seed}: {failure}\nsee: seqcast sim --seed {seed} --shrink");
    }
}

/// Each broke a rule before something was mended: a client without room asked again at once for what it held, and
/// took the archive's rate from the others; clients asked a server again and again for what it had let go of, and
/// paused each time before they asked the archive; two archives did not ask a server that was started again for what
/// its run before had let go of, and its log held.
const MENDED: [u64; 8] = [
    5_132_081, 5_055_708, 5_171_236, 5_161_590, 5_216_649, 9_587_146, 11_285_261, 12_013_022,
];

#[test]
fn fixed_seeds_break_no_rule() {
    let _alone = alone();
    (0..200).chain(MENDED).for_each(check);
}

/// Plays seeds that nobody has seen, for SEQCAST_SIM_SECONDS: 15 unless set. One that fails is named, and
/// `seqcast sim --seed N` plays it again.
#[test]
fn fresh_seeds_break_no_rule() {
    let _alone = alone();
    let seconds = env::var("SEQCAST_SIM_SECONDS").ok().and_then(|s| s.parse().ok());
    let until = Instant::now() + Duration::from_secs(seconds.unwrap_or(15));
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let mut seed = since.as_secs() << 20;
    while Instant::now() < until {
        check(seed);
        seed += 1;
    }
}

#[test]
fn a_seed_gives_the_same_run_each_time() {
    let _alone = alone();
    for seed in [3, 9, 11] {
        let timeline = || {
            let outcome = run(&Plan::of(seed), Some(Trace::new(usize::MAX)));
            outcome.trace.unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
        };
        let first = timeline();
        assert!(first.len() > 100);
        assert!(first == timeline(), "seed {seed}");
    }
}

/// The rules that may notice a bug.
fn oracles(bug: Bug) -> &'static [Oracle] {
    match bug {
        Bug::ReleaseEarly => &[Oracle::Release],
        Bug::SendUnkept | Bug::ReuseSession | Bug::WrongAnswer => &[Oracle::Identity],
        Bug::HideTail | Bug::ForgetHeld => &[Oracle::Liveness],
        Bug::IgnoreLimit => &[Oracle::Bounds],
        Bug::WrongCount => &[Oracle::Wire],
        Bug::RepeatAnswer => &[Oracle::Repairs],
        // Where only what is synced counts, it is never acknowledged at all.
        Bug::AckUnstored => &[Oracle::Promise, Oracle::Liveness],
        Bug::AckUnsynced => &[Oracle::Promise],
        Bug::DeliverTwice | Bug::SkipGap => &[Oracle::Delivery],
        Bug::TrustOneRefusal => &[Oracle::Loss],
        Bug::KeepFrame => &[Oracle::Frames],
    }
}

#[test]
fn each_planted_bug_is_found() {
    let _alone = alone();
    let mut broken = BTreeSet::new();
    for bug in ALL {
        let planted = Planted::new(bug);
        let found = (0..300).find_map(|seed| Some((seed, run(&Plan::of(seed), None).failure?)));
        let Some((seed, failure)) = found else {
            panic!("{bug:?} is not found by 300 seeds");
        };
        assert!(
            oracles(bug).contains(&failure.oracle),
            "{bug:?}, seed {seed}: {failure}"
        );
        broken.insert(failure.oracle);
        drop(planted);
    }
    // The last rule counts them all.
    let rules = Oracle::Liveness as usize + 1;
    assert_eq!(broken.len(), rules, "each rule is broken by a bug: {broken:?}");
}

#[test]
fn a_failure_is_shrunk_and_told() {
    let _alone = alone();
    let _planted = Planted::new(Bug::SkipGap);
    let (plan, failure) = (0..300)
        .map(Plan::of)
        .find_map(|plan| Some((plan.clone(), run(&plan, None).failure?)))
        .expect("a failure");
    let (small, told) = shrink(&plan, failure.clone(), 300);
    assert_eq!(told.oracle, failure.oracle);
    assert!(small.messages < plan.messages && small.faults.len() <= plan.faults.len());
    let again = run(&small, Some(Trace::new(50)));
    assert_eq!(again.failure.unwrap().text, told.text, "the small plan fails by itself");
    let lines: Vec<String> = again.trace.unwrap().lines().map(str::to_owned).collect();
    assert!(
        lines.iter().any(|l| l.contains("server") && l.contains("DATA")),
        "{lines:#?}"
    );
}
