//! Subjects and patterns beside the definition, said the slow way.

use seqcast_proto::subject::{Matcher, Pattern, check};

/// Lines: patterns, and subjects after an empty one. The matcher, twice (the second answer comes from
/// its cache), and each pattern say what the definition says.
pub(crate) fn compare(bytes: &[u8]) {
    let mut lines = bytes.split(|&b| b == b'\n');
    let patterns: Vec<Pattern> = lines
        .by_ref()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| Pattern::parse(std::str::from_utf8(line).ok()?).ok())
        .take(64)
        .collect();
    let mut matcher = Matcher::new(patterns.iter().zip(0..), 8);
    for subject in lines.take(64) {
        let sound = check(subject).is_ok();
        let expected: Vec<u32> = (0..)
            .zip(&patterns)
            .filter(|(_, pattern)| sound && by_definition(pattern.as_str(), subject))
            .map(|(i, _)| i)
            .collect();
        for _ in 0..2 {
            assert_eq!(matcher.find(subject), expected, "{patterns:?} {subject:?}");
        }
        // A pattern by itself answers for subjects alone.
        for (i, pattern) in (0..).zip(&patterns).filter(|_| sound) {
            assert_eq!(
                pattern.matches(subject),
                expected.contains(&i),
                "{pattern:?} {subject:?}"
            );
        }
        // What two patterns both match shows that they overlap, and what one alone matches that the
        // other does not cover it.
        for (i, a) in (0..).zip(&patterns) {
            for (k, b) in (0..).zip(&patterns) {
                let (a_has, b_has) = (expected.contains(&i), expected.contains(&k));
                assert!(!(a_has && b_has) || a.overlaps(b), "{a:?} {b:?} {subject:?}");
                assert!(!b_has || a_has || !a.covers(b), "{a:?} {b:?} {subject:?}");
            }
        }
    }
}

fn by_definition(pattern: &str, subject: &[u8]) -> bool {
    let wanted: Vec<&[u8]> = pattern.as_bytes().split(|&b| b == b'.').collect();
    let had: Vec<&[u8]> = subject.split(|&b| b == b'.').collect();
    match wanted.split_last() {
        Some((&b">", front)) => had.len() > front.len() && same(front, &had[..front.len()]),
        _ => wanted.len() == had.len() && same(&wanted, &had),
    }
}

fn same(wanted: &[&[u8]], had: &[&[u8]]) -> bool {
    wanted.iter().zip(had).all(|(w, h)| *w == b"*" || w == h)
}
