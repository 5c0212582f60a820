//! Writing, reading, and what is no sheet.
#![allow(
    unreachable_pub,
    dead_code,
    reason = "the macro is for structures that the whole crate shows"
)]

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;

use seqcast_proto::time::Now;

use super::*;

counts! {
    /// For tests.
    pub struct Pair {
        /// One.
        one: Counter,
        /// Two,
        /// at length.
        two: Gauge,
    }
}

fn open(path: Option<&Path>) -> (Counters, Histogram) {
    let mut builder = Builder::default();
    builder.numbers::<Pair>(Part::of("a"));
    builder.peers(Part::of("a"), "from", "Peers.");
    let at = builder.histogram(Part::of("b"), "times", "Times.");
    builder.numbers::<Pair>(Part::of("b"));
    let counters = builder.open(path, "test", "udp on lo").unwrap();
    let histogram = counters.histogram(at);
    (counters, histogram)
}

fn at(mono: u64) -> Now {
    Now { mono, wall: mono + 7 }
}

#[test]
fn a_reader_sees_what_was_written_and_what_it_means() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("test.counters");
    let (mut counters, mut histogram) = open(Some(&path));
    assert!(counters.is_due(0));
    histogram.record(1000, 5);
    let peer = |n: u8| SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, n), 5000);
    counters.write(at(1), |to| {
        to.put(&Pair { one: 1, two: 2 });
        to.peers((1..=20).map(|n| (peer(n), u64::from(n % 19))));
        to.pass_histogram();
        to.put(&Pair { one: 3, two: 4 });
    });
    assert!(!counters.is_due(2));
    let sheet = Sheet::read(&path).unwrap();
    assert_eq!(
        (sheet.engine.as_str(), sheet.mode.as_str(), sheet.written),
        ("test", "udp on lo", 8)
    );
    assert!(sheet.alive && sheet.pid == std::process::id());
    assert_eq!(sheet.number(&Part::of("a"), "two"), Some(2));
    assert_eq!(sheet.number(&Part::of("b"), "one"), Some(3));
    let two = sheet.series.iter().find(|s| s.name == "two").unwrap();
    assert_eq!(two.help, "Two, at length.");
    let Value::Peers(peers) = &sheet.series[2].value else {
        panic!()
    };
    // The highest first.
    assert_eq!((peers.len(), peers[0], peers[1]), (16, (peer(18), 18), (peer(17), 17)));
    let Value::Histogram(buckets) = &sheet.series[3].value else {
        panic!()
    };
    assert_eq!(buckets[Buckets::index(1000)], 5);
    // A part may be left as it was.
    counters.write(at(2), |to| {
        to.keep::<Pair>();
        to.peers(std::iter::empty());
        to.pass_histogram();
        to.put(&Pair { one: 5, two: 6 });
    });
    let sheet = Sheet::read(&path).unwrap();
    assert_eq!(sheet.number(&Part::of("a"), "one"), Some(1));
    assert_eq!(sheet.number(&Part::of("b"), "two"), Some(6));
    drop(counters);
    assert!(!path.exists());
}

#[test]
fn files_of_engines_that_are_gone_are_removed_and_others_stay() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).with_extension("counters");
    let (counters, _) = open(Some(&path("live")));
    let mut bytes = fs::read(path("live")).unwrap();
    // The same process, started at another time.
    bytes[16] ^= 1;
    fs::write(path("gone"), &bytes).unwrap();
    fs::write(path("foreign"), b"something else").unwrap();
    assert!(!Sheet::read(&path("gone")).unwrap().alive);
    let (more, _) = open(Some(&path("more")));
    assert_eq!(
        list(directory.path()).unwrap(),
        [path("foreign"), path("live"), path("more")]
    );
    drop((counters, more));
}

/// Counters of nothing but a pair.
fn try_open(path: &Path) -> Result<Counters, WriteError> {
    let mut builder = Builder::default();
    builder.numbers::<Pair>(Part::of("a"));
    builder.open(Some(path), "test", "udp on lo")
}

#[test]
fn a_file_in_use_is_refused_and_stays_its_owners() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.counters");
    let (mut first, _) = open(Some(&path));
    let refused = try_open(&path).unwrap_err().to_string();
    let owner = format!("process {}", std::process::id());
    for words in [path.to_str().unwrap(), &owner, "another file in `counters`"] {
        assert!(refused.contains(words), "{refused}");
    }
    first.write(at(1), |to| to.put(&Pair { one: 1, two: 2 }));
    assert_eq!(Sheet::read(&path).unwrap().number(&Part::of("a"), "one"), Some(1));
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "no draft is left");
    drop(first);
    let second = try_open(&path).unwrap();
    // Who ends removes nothing that is not its own.
    fs::rename(&path, directory.path().join("moved")).unwrap();
    fs::write(&path, "another's").unwrap();
    drop(second);
    assert_eq!(fs::read(&path).unwrap(), b"another's");
}

#[test]
fn what_a_killed_engine_left_is_replaced_and_what_is_no_counters_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x");
    let (counters, _) = open(Some(&path));
    let whole = fs::read(&path).unwrap();
    drop(counters);
    let mut gone = whole.clone();
    gone[16] ^= 1;
    // Of another version as well; and what a loss of power has left of one.
    let mut newer = gone.clone();
    newer[7] += 1;
    for left in [gone, newer, vec![], vec![0; 100]] {
        fs::write(&path, left).unwrap();
        assert!(try_open(&path).is_ok());
    }
    fs::write(&path, "notes of somebody").unwrap();
    assert!(try_open(&path).unwrap_err().to_string().contains("holds no counters"));
    assert_eq!(fs::read(&path).unwrap(), b"notes of somebody");
    // An engine that holds no lock has written that it lives.
    fs::write(&path, whole).unwrap();
    assert!(try_open(&path).unwrap_err().to_string().contains("which is running"));
}

#[test]
fn another_version_is_refused_in_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.counters");
    let (counters, _) = open(Some(&path));
    let mut bytes = fs::read(&path).unwrap();
    drop(counters);
    bytes[7] += 1;
    fs::write(&path, bytes).unwrap();
    let refused = Sheet::read(&path).unwrap_err().to_string();
    assert!(
        refused.contains("format 2") && refused.contains("format 1"),
        "{refused}"
    );
}

#[test]
fn what_is_no_sheet_is_refused_and_never_panics() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("x.counters");
    let (mut counters, _) = open(Some(&path));
    counters.write(at(1), |_| {});
    let whole = fs::read(&path).unwrap();
    let bad = directory.path().join("bad.counters");
    for cut in (0..whole.len()).step_by(97) {
        fs::write(&bad, &whole[..cut]).unwrap();
        assert!(Sheet::read(&bad).is_err(), "{cut}");
    }
    for word in 0..8 {
        for value in [0, 1, u64::MAX, u64::MAX / 8, 1 << 40] {
            let mut bytes = whole.clone();
            bytes[word * 8..][..8].copy_from_slice(&value.to_ne_bytes());
            fs::write(&bad, &bytes).unwrap();
            let _ = Sheet::read(&bad);
        }
    }
    assert!(Sheet::read(&directory.path().join("none")).is_err());
}
