//! What differs between two configurations, and what of it a running engine takes.

use std::fmt;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Config;

/// A key whose value differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The table: `[engine]`, or `[[publish]] 239.1.1.1:5000`.
    pub table: String,
    /// The key in it, `rate.bytes`; empty for a table that came or went.
    pub key: String,
    /// The value that is in force, as in JSON.
    pub old: String,
    /// The other.
    pub new: String,
    /// Whether a running engine can take it.
    pub live: bool,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Change {
            table, key, old, new, ..
        } = self;
        let dot = if key.is_empty() { "" } else { " " };
        write!(f, "{table}{dot}{key}: {old} -> {new}")
    }
}

/// Keys that a running engine takes, by table. A key stands for those below it.
const LIVE: [(&str, &[&str]); 4] = [
    ("log", &["level", "format", "file", "burst", "interval_s"]),
    (
        "publish",
        &[
            "rate",
            "repair",
            "unacknowledged_max",
            "when_full",
            "source.rate",
            "trust.allow",
        ],
    ),
    ("subscribe", &["subjects", "trust.allow"]),
    (
        "archive",
        &["keep_bytes", "keep_age_s", "keep_sessions", "repair", "trust.allow"],
    ),
];

fn is_live(table: &str, key: &str) -> bool {
    let keys = LIVE
        .iter()
        .find(|(name, _)| *name == table)
        .map_or(&[][..], |(_, keys)| keys);
    let is_below = |live: &&str| {
        key.strip_prefix(*live)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    keys.iter().any(is_below)
}

/// What differs, in the order of the tables. Values count, not how they are written: a key with its
/// default is one that is left out. Tables of streams are the same if group, port and `id` are.
#[must_use]
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut all = Vec::new();
    let mut one = |name: &str, old: Value, new: Value| {
        compare(&mut all, (name, &format!("[{name}]")), "", &old, &new);
    };
    one("engine", value(&old.engine), value(&new.engine));
    one("log", value(&old.log), value(&new.log));
    one("programs", value(&old.programs), value(&new.programs));
    // Their order has a meaning.
    let routes = |config: &Config| Value::from_iter([("routes", value(&config.route))]);
    one("route", routes(old), routes(new));
    let worker = |c: &Config| c.worker.iter().map(|w| (w.name.clone(), value(w))).collect();
    streams(&mut all, "worker", worker(old), worker(new));
    let publish = |c: &Config| c.publish.iter().map(|p| (title(p.stream, p.id), value(p))).collect();
    streams(&mut all, "publish", publish(old), publish(new));
    let subscribe = |c: &Config| c.subscribe.iter().map(|s| (title(s.stream, s.id), value(s))).collect();
    streams(&mut all, "subscribe", subscribe(old), subscribe(new));
    let archive = |c: &Config| c.archive.iter().map(|a| (title(a.stream, a.id), value(a))).collect();
    streams(&mut all, "archive", archive(old), archive(new));
    all
}

fn value(table: &impl Serialize) -> Value {
    // Text, numbers and lists, which JSON has.
    serde_json::to_value(table).unwrap_or_default()
}

fn title(stream: std::net::SocketAddrV4, id: Option<u32>) -> String {
    match id {
        Some(id) => format!("{stream} id {id}"),
        None => stream.to_string(),
    }
}

/// Compares tables of which there are several, by their title.
fn streams(all: &mut Vec<Change>, name: &str, old: Map<String, Value>, mut new: Map<String, Value>) {
    let whole = |title: &str, old: &str, new: &str| Change {
        table: format!("[[{name}]] {title}"),
        key: String::new(),
        old: old.to_owned(),
        new: new.to_owned(),
        live: false,
    };
    for (title, old) in &old {
        match new.remove(title) {
            Some(new) => compare(all, (name, &format!("[[{name}]] {title}")), "", old, &new),
            None => all.push(whole(title, "there", "gone")),
        }
    }
    all.extend(new.keys().map(|title| whole(title, "absent", "there")));
}

fn compare(all: &mut Vec<Change>, table: (&str, &str), key: &str, old: &Value, new: &Value) {
    if old == new {
        return;
    }
    if let (Value::Object(old), Value::Object(new)) = (old, new) {
        // Both are of one structure, and have the same keys.
        for (name, old) in old {
            let key = if key.is_empty() {
                name.clone()
            } else {
                format!("{key}.{name}")
            };
            compare(all, table, &key, old, new.get(name).unwrap_or(&Value::Null));
        }
        return;
    }
    let text = |value: &Value| match value {
        Value::Null => "unset".to_owned(),
        value => value.to_string(),
    };
    all.push(Change {
        table: table.1.to_owned(),
        key: key.to_owned(),
        old: text(old),
        new: text(new),
        live: is_live(table.0, key),
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const BASE: &str = r#"
[engine]
interface = "lo"
[[publish]]
stream = "239.1.1.1:5000"
source = { stdin = true, rate = 1000 }
retain = "64 MiB"
trust = { allow = ["10.0.0.0/8"] }
[[subscribe]]
stream = "239.1.1.2:5000"
sink = { stdout = true }
worker = "b"
[[archive]]
stream = "239.1.1.1:5000"
dir = "a"
trust = { allow = ["10.0.0.0/8"] }
[[worker]]
name = "b"
core = 3
queues = [1]
"#;

    fn config(text: &str) -> Config {
        Config::parse(text, Path::new("x.toml")).unwrap()
    }

    /// What differs when these words are replaced, and whether all of it is live.
    fn differs(pairs: &[(&str, &str)]) -> (Vec<String>, bool) {
        let text = pairs.iter().fold(BASE.to_owned(), |text, (from, to)| {
            assert!(text.contains(from), "{from}");
            text.replace(from, to)
        });
        let all = changes(&config(BASE), &config(&text));
        (
            all.iter().map(ToString::to_string).collect(),
            all.iter().all(|c| c.live),
        )
    }

    #[test]
    fn what_means_the_same_is_no_change() {
        for pairs in [
            &[("\"64 MiB\"", "67108864")][..],
            &[(
                "dir = \"a\"",
                "dir = \"a\"\nsync_ms = 100\nrepair = { merge_us = 2000 }",
            )],
            &[("[engine]", "[log]\nlevel = \"info\"\n[engine]")],
            &[("stdout = true }", "stdout = true }\ntrust = { clock_skew_ms = 10000 }")],
        ] {
            assert_eq!(differs(pairs).0, Vec::<String>::new(), "{pairs:?}");
        }
        // The order of tables of different kinds has none.
        let (engine, rest) = BASE.split_once("[[publish]]").unwrap();
        let (publish, rest) = rest.split_once("[[subscribe]]").unwrap();
        let turned = format!("{engine}[[subscribe]]{rest}[[publish]]{publish}");
        assert_eq!(changes(&config(BASE), &config(&turned)), []);
    }

    #[test]
    fn each_key_is_named_with_both_values() {
        for (from, to, expected, live) in [
            (
                "rate = 1000",
                "rate = 50",
                "[[publish]] 239.1.1.1:5000 source.rate: 1000.0 -> 50.0",
                true,
            ),
            (
                ", rate = 1000",
                "",
                "[[publish]] 239.1.1.1:5000 source.rate: 1000.0 -> unset",
                true,
            ),
            (
                "retain = \"64 MiB\"",
                "retain = \"64 MiB\"\nrate = { bytes = 5 }",
                "[[publish]] 239.1.1.1:5000 rate.bytes: 0 -> 5",
                true,
            ),
            (
                "64 MiB",
                "32 MiB",
                "[[publish]] 239.1.1.1:5000 retain: 67108864 -> 33554432",
                false,
            ),
            (
                "interface = \"lo\"",
                "interface = \"eth1\"",
                "[engine] interface: \"lo\" -> \"eth1\"",
                false,
            ),
            (
                "dir = \"a\"",
                "dir = \"a\"\nkeep_age_s = 60",
                "[[archive]] 239.1.1.1:5000 keep_age_s: unset -> 60",
                true,
            ),
            (
                "stdout = true }",
                "stdout = true }\nsubjects = [\"a.*\"]",
                "[[subscribe]] 239.1.1.2:5000 subjects: unset -> [\"a.*\"]",
                true,
            ),
            (
                "[engine]",
                "[log]\nformat = \"json\"\n[engine]",
                "[log] format: \"text\" -> \"json\"",
                true,
            ),
            ("[engine]", "[programs]\n[engine]", "[programs]", false),
            ("core = 3", "core = \"auto\"", "[[worker]] b core: 3 -> \"auto\"", false),
        ] {
            let (all, all_live) = differs(&[(from, to)]);
            assert!(all.len() == 1 && all[0].starts_with(expected), "{all:?}");
            assert_eq!(all_live, live, "{all:?}");
        }
    }

    #[test]
    fn streams_that_come_and_go_and_lists_of_sources() {
        let (all, live) = differs(&[("239.1.1.2:5000", "239.1.1.3:5000")]);
        assert_eq!(
            all,
            [
                "[[subscribe]] 239.1.1.2:5000: there -> gone",
                "[[subscribe]] 239.1.1.3:5000: absent -> there"
            ]
        );
        assert!(!live);
        let (all, live) = differs(&[("10.0.0.0/8", "10.0.0.7")]);
        assert_eq!(all.len(), 6, "three lists of two tables: {all:?}");
        let expected = "[[publish]] 239.1.1.1:5000 trust.allow.archives: [\"10.0.0.0/8\"] -> [\"10.0.0.7/32\"]";
        assert!(live && all[0] == expected, "{all:?}");
        let (all, live) = differs(&[("trust = { allow", "trust = { key = \"k\", allow")]);
        assert!(!live && all.len() == 2, "{all:?}");
    }
}
