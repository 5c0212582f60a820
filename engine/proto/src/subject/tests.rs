//! Subjects, patterns, and the matcher against the plain definition of a match.

use std::collections::HashSet;
use std::format;
use std::string::String;
use std::vec::Vec;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

fn pattern(text: &str) -> Pattern {
    Pattern::parse(text).unwrap()
}

#[test]
fn subjects_are_checked_and_mistakes_located() {
    let long = "x".repeat(255);
    let most = ["a"; 128].join(".");
    for good in ["A", "EQ.US.AAPL", "a-b_c/d$.1", "Zürich.größe", &long, &most] {
        assert_eq!(check(good.as_bytes()), Ok(()), "{good}");
        assert!(Pattern::parse(good).is_ok(), "{good}");
    }
    for (bad, why) in [
        (&b""[..], SubjectError::Empty),
        (&[b'x'; 256], SubjectError::TooLong(256)),
        (b".", SubjectError::EmptyElement(0)),
        (b".a", SubjectError::EmptyElement(0)),
        (b"a.", SubjectError::EmptyElement(2)),
        (b"a..b", SubjectError::EmptyElement(2)),
        (b"a.b c", SubjectError::Character(3)),
        (b"a\n", SubjectError::Character(1)),
        ("a\u{2003}b".as_bytes(), SubjectError::Character(1)),
        ("a\u{85}".as_bytes(), SubjectError::Character(1)),
        (b"ab\xff", SubjectError::Character(2)),
        (b"a.*", SubjectError::Wildcard(2)),
        (b"a.b>", SubjectError::Wildcard(3)),
    ] {
        assert_eq!(check(bad), Err(why));
    }
}

#[test]
fn wildcards_stand_for_whole_elements() {
    for good in ["*", ">", "*.*", "EQ.*.AAPL", "EQ.>", "*.>"] {
        assert_eq!(pattern(good).as_str(), good);
    }
    for (bad, at) in [
        ("a*", 1),
        ("a.**", 2),
        (">.a", 0),
        ("a.>.b", 2),
        ("a.>>", 2),
        ("x.a>", 3),
    ] {
        assert_eq!(Pattern::parse(bad), Err(SubjectError::Wildcard(at)), "{bad}");
    }
}

#[test]
fn matches_as_documented() {
    for (text, yes, no) in [
        (
            "EQ.US.AAPL",
            &["EQ.US.AAPL"][..],
            &["EQ.US", "EQ.US.AAPL.X", "eq.us.aapl"][..],
        ),
        ("EQ.*", &["EQ.US", "EQ.*x"][..1], &["EQ", "EQ.US.AAPL", "FX.US"]),
        ("EQ.>", &["EQ.US", "EQ.US.AAPL"], &["EQ", "FX.US"]),
        ("*.US.*", &["EQ.US.AAPL"], &["EQ.US", "US.EQ.US"]),
        (">", &["EQ", "EQ.US"], &[]),
    ] {
        let pattern = pattern(text);
        let mut matcher = Matcher::new([(&pattern, 7)], 2);
        for subject in yes {
            assert!(pattern.matches(subject.as_bytes()), "{text} {subject}");
            assert_eq!(matcher.find(subject.as_bytes()), [7], "{text} {subject}");
        }
        for subject in no {
            assert!(!pattern.matches(subject.as_bytes()), "{text} {subject}");
            assert!(matcher.find(subject.as_bytes()).is_empty(), "{text} {subject}");
        }
        for none in [
            &b""[..],
            b".",
            b"EQ.",
            b"EQ..AAPL",
            b"EQ.U S",
            &[b'x'; 300],
            b"\xff.US.A",
        ] {
            assert!(matcher.find(none).is_empty(), "{text} {none:?}");
        }
    }
}

#[test]
fn numbers_come_ascending_and_once() {
    let patterns = ["a.>", "a.*", "a.b", "*.b", ">"].map(pattern);
    let mut matcher = Matcher::new(patterns.iter().zip([9, 3, 9, 5, 1]), 16);
    for _ in 0..2 {
        assert_eq!(matcher.find(b"a.b"), [1, 3, 5, 9]);
    }
    assert!(Matcher::new([], 16).find(b"a.b").is_empty());
}

#[test]
fn memory_is_taken_once() {
    let patterns: Vec<Pattern> = (0..300)
        .map(|i| pattern(&["a", "*"].repeat(i % 8 + 1).join(".")))
        .collect();
    let mut matcher = Matcher::new(patterns.iter().zip(0..), 2);
    let sizes = |m: &Matcher| m.capacities();
    let before = sizes(&matcher);
    // Far more subjects than slots, of all lengths, with many results each.
    for i in 0..20_000_usize {
        let subject = format!("{}.{i}", ["a"; 126][..i % 120 + 1].join("."));
        let want = patterns.iter().filter(|p| p.matches(subject.as_bytes())).count();
        assert_eq!(matcher.find(subject.as_bytes()).len(), want);
    }
    let deep = ["a"; 128].join(".");
    let wild: Vec<Pattern> = [["*"; 128].join("."), deep.clone()]
        .iter()
        .map(|t| pattern(t))
        .collect();
    let mut tall = Matcher::new(wild.iter().zip(0..), 2);
    let tall_before = sizes(&tall);
    assert_eq!(tall.find(deep.as_bytes()), [0, 1]);
    assert_eq!((sizes(&matcher), sizes(&tall)), (before, tall_before));
}

/// Few elements, so that patterns and subjects often meet.
#[test]
fn what_was_forgotten_is_never_found_again() {
    let patterns = [pattern("A.*"), pattern("*.7.>")];
    let mut matcher = Matcher::new(patterns.iter().zip(0..), 2);
    let rest = "x".repeat(200);
    // Few fit: all is forgotten more often than the cache can count.
    for n in 0..200_000_u32 {
        let subject = format!("A.{}.{rest}", n % 10);
        let want: &[u32] = if n % 10 == 7 { &[1] } else { &[] };
        assert_eq!(matcher.find(subject.as_bytes()), want, "{n}");
    }
}

fn element() -> impl Strategy<Value = &'static str> {
    prop::sample::select(&["a", "ab", "EURUSD-spot"][..])
}

fn subject() -> impl Strategy<Value = String> {
    vec(element(), 1..6).prop_map(|e| e.join("."))
}

fn any_pattern() -> impl Strategy<Value = Pattern> {
    let part = prop_oneof![3 => element(), 2 => Just("*")];
    (vec(part, 0..5), any::<bool>()).prop_filter_map("at least one element", |(mut parts, rest)| {
        if rest {
            parts.push(">");
        }
        Pattern::parse(&parts.join(".")).ok()
    })
}

/// All subjects of up to five elements; "x" stands for the elements that no pattern names.
fn universe() -> Vec<String> {
    let mut all: Vec<String> = Vec::new();
    let mut longest: Vec<String> = std::vec![String::new()];
    for _ in 0..6 {
        longest = longest
            .iter()
            .flat_map(|s| {
                ["a", "ab", "EURUSD-spot", "x"].map(|e| if s.is_empty() { e.into() } else { format!("{s}.{e}") })
            })
            .collect();
        all.extend(longest.iter().cloned());
    }
    all
}

proptest! {
    #[test]
    fn the_matcher_finds_what_the_definition_says(
        patterns in vec(any_pattern(), 0..40),
        subjects in vec(subject(), 1..60),
        slots in 1_usize..64,
    ) {
        // Every third number is used twice.
        let ids = (0_u32..).map(|i| i - u32::from(i % 3 == 2));
        let mut matcher = Matcher::new(patterns.iter().zip(ids.clone()), slots);
        for subject in subjects.iter().chain(&subjects) {
            let matching = patterns.iter().zip(ids.clone()).filter(|(p, _)| p.matches(subject.as_bytes()));
            let mut want: Vec<u32> = matching.map(|(_, id)| id).collect();
            want.dedup();
            prop_assert_eq!(matcher.find(subject.as_bytes()), &want[..], "{}", subject);
        }
    }

    #[test]
    fn whatever_comes_is_matched_as_defined_or_refused(
        subject in vec(prop::sample::select(&b"aab..*>\xc3\xa4 "[..]), 0..300),
        patterns in vec(any_pattern(), 1..5),
    ) {
        let mut matcher = Matcher::new(patterns.iter().zip(0..), 8);
        let wanted = |p: &Pattern| check(&subject).is_ok() && p.matches(&subject);
        let want: Vec<u32> = patterns.iter().zip(0..).filter(|(p, _)| wanted(p)).map(|(_, id)| id).collect();
        prop_assert_eq!(matcher.find(&subject), &want[..]);
    }

    #[test]
    fn overlap_and_cover_are_what_sets_of_subjects_say(a in any_pattern(), b in any_pattern()) {
        let of = |p: &Pattern| universe().into_iter().filter(|s| p.matches(s.as_bytes())).collect::<HashSet<_>>();
        let (of_a, of_b) = (of(&a), of(&b));
        prop_assert_eq!(a.overlaps(&b), !of_a.is_disjoint(&of_b));
        prop_assert_eq!(a.covers(&b), of_a.is_superset(&of_b));
        prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
        prop_assert!(a.covers(&a));
    }
}
