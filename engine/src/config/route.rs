//! Subjects in the configuration, and what routes make of tables that name no stream.

use std::net::{Ipv4Addr, SocketAddrV4};

use seqcast_proto::subject::{self, Pattern};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{Config, ConfigError, Publish, Subscribe};
use crate::feed::Format;

/// What stands in place of a stream until routes say which streams are meant.
pub(super) const BY_SUBJECT: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0);

/// `[[route]]`: which stream carries a subject. The first route that takes it counts.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    /// The subjects. Without them: whatever no earlier route takes, also messages without subject.
    #[serde(default, deserialize_with = "patterns", serialize_with = "texts")]
    pub subjects: Option<Vec<Pattern>>,
    /// Multicast group and port.
    pub stream: SocketAddrV4,
    /// The stream's identity; derived from group and port unless given.
    pub id: Option<u32>,
}

/// Reads a list of patterns.
pub(super) fn patterns<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<Pattern>>, D::Error> {
    use serde::de::Error;
    let texts = Vec::<String>::deserialize(deserializer)?;
    if texts.is_empty() {
        return Err(D::Error::custom(
            "an empty list of subjects means nothing: name some, or leave it out for all",
        ));
    }
    let pattern = |text: &String| Pattern::parse(text).map_err(|e| D::Error::custom(format!("subject {text:?}: {e}")));
    texts.iter().map(pattern).collect::<Result<_, _>>().map(Some)
}

/// Writes one.
pub(super) fn texts<S: Serializer>(patterns: &Option<Vec<Pattern>>, serializer: S) -> Result<S::Ok, S::Error> {
    let texts = patterns
        .as_ref()
        .map(|p| p.iter().map(Pattern::as_str).collect::<Vec<_>>());
    texts.serialize(serializer)
}

/// Reads the subject of a source.
pub(super) fn subject<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    use serde::de::Error;
    let text = String::deserialize(deserializer)?;
    subject::check(text.as_bytes()).map_err(|e| D::Error::custom(format!("subject {text:?}: {e}")))?;
    Ok(Some(text))
}

impl Route {
    fn overlaps(&self, wanted: &Pattern) -> bool {
        let taken = self.subjects.as_deref();
        taken.is_none_or(|t| t.iter().any(|p| p.overlaps(wanted)))
    }

    /// Whether no later route can get a message that `wanted` matches.
    fn covers(&self, wanted: &Pattern) -> bool {
        let taken = self.subjects.as_deref();
        taken.is_none_or(|t| t.iter().any(|p| p.covers(wanted)))
    }
}

fn invalid<T>(text: impl Into<String>) -> Result<T, ConfigError> {
    Err(ConfigError::Invalid(text.into()))
}

impl Config {
    /// Numbers the tables, and puts in place of each one without a stream one for each stream that
    /// the routes say.
    pub(super) fn follow_routes(&mut self) -> Result<(), ConfigError> {
        self.check_routes()?;
        let mut publish = Vec::new();
        for (table, mut one) in std::mem::take(&mut self.publish).into_iter().enumerate() {
            one.table = table;
            one.routed = one.stream == BY_SUBJECT;
            if !one.routed {
                publish.push(one);
                continue;
            }
            self.check_routed(&one)?;
            for (stream, id) in self.streams(None) {
                let state = one.state.as_ref().map(|s| s.join(stream.to_string().replace(':', "-")));
                publish.push(Publish {
                    stream,
                    id,
                    state,
                    ..one.clone()
                });
            }
        }
        let mut subscribe = Vec::new();
        for (table, mut one) in std::mem::take(&mut self.subscribe).into_iter().enumerate() {
            one.table = table;
            if one.stream != BY_SUBJECT {
                subscribe.push(one);
                continue;
            }
            let streams = self.streams(one.subjects.as_deref());
            check_by_subject(&one, streams.len())?;
            subscribe.extend(streams.into_iter().map(|(stream, id)| Subscribe {
                stream,
                id,
                ..one.clone()
            }));
        }
        (self.publish, self.subscribe) = (publish, subscribe);
        Ok(())
    }

    /// The streams, in the order of the routes, that may carry a message that one of `wanted`
    /// matches; without `wanted` all.
    fn streams(&self, wanted: Option<&[Pattern]>) -> Vec<(SocketAddrV4, Option<u32>)> {
        let may_carry = |at: usize| {
            let (earlier, route) = (&self.route[..at], &self.route[at]);
            wanted.is_none_or(|w| {
                w.iter()
                    .any(|p| route.overlaps(p) && !earlier.iter().any(|e| e.covers(p)))
            })
        };
        let mut streams = Vec::new();
        for (at, route) in self.route.iter().enumerate() {
            if may_carry(at) && !streams.contains(&(route.stream, route.id)) {
                streams.push((route.stream, route.id));
            }
        }
        streams
    }

    fn check_routes(&self) -> Result<(), ConfigError> {
        for (at, route) in self.route.iter().enumerate() {
            let stream = route.stream;
            if let Err(error) = crate::link::check_group(stream) {
                return invalid(format!("[[route]] {error}"));
            }
            if route.subjects.is_none() && at + 1 < self.route.len() {
                return invalid(format!(
                    "[[route]] {stream}: a route without `subjects` takes all that is left, so that later ones get nothing: make it the last"
                ));
            }
            if self.route[..at].iter().any(|r| r.stream == stream && r.id != route.id) {
                return invalid(format!("[[route]] {stream}: give the same `id` to all its routes"));
            }
        }
        Ok(())
    }

    /// Checks a table that publishes to the streams of the routes.
    fn check_routed(&self, publish: &Publish) -> Result<(), ConfigError> {
        let source = &publish.source;
        if self.route.is_empty() {
            return invalid("[[publish]] needs a `stream`, or [[route]] tables that say which subject goes where");
        }
        if publish.id.is_some() {
            return invalid("[[publish]] without `stream`: `id` belongs to the [[route]] tables");
        }
        if publish.lines.b.is_some() {
            return invalid(
                "[[publish]] without `stream`: `lines` needs a stream of its own: use a table for each stream",
            );
        }
        if source.program {
            return invalid("[[publish]] without `stream`: a program publishes to one stream: name it");
        }
        let has_subjects =
            source.subject.is_some() || source.subject_from.is_some() || source.format == Format::SubjectLines;
        if !has_subjects {
            return invalid(
                "[[publish]] without `stream`: the source needs `subject`, `subject_from` or `format = \"subject-lines\"`",
            );
        }
        Ok(())
    }
}

/// Checks a table that receives `streams` streams of the routes.
fn check_by_subject(subscribe: &Subscribe, streams: usize) -> Result<(), ConfigError> {
    let sink = &subscribe.sink;
    if streams == 0 {
        return invalid("[[subscribe]] needs a `stream`, or subjects that a [[route]] takes");
    }
    if subscribe.id.is_some() {
        return invalid("[[subscribe]] without `stream`: `id` belongs to the [[route]] tables");
    }
    if subscribe.lines.b.is_some() {
        return invalid(
            "[[subscribe]] without `stream`: `lines` needs a stream of its own: use a table for each stream",
        );
    }
    if streams > 1 && (subscribe.state.is_some() || sink.journal.is_some() || sink.dir.is_some()) {
        return invalid(format!(
            "[[subscribe]] without `stream`: its subjects are on {streams} streams, but `state`, `journal` and `dir` keep one: use a [[subscribe]] with `stream` for each"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    const ROUTES: &str = r#"
[engine]
interface = "lo"
[[route]]
subjects = ["EQ.US.>", "EQ.CA.>"]
stream = "239.1.1.1:5000"
[[route]]
subjects = ["EQ.*.*"]
stream = "239.1.1.2:5000"
id = 7
[[route]]
subjects = ["FX.>"]
stream = "239.1.1.1:5000"
[[route]]
stream = "239.1.1.9:5000"
"#;

    fn parse(more: &str) -> Result<Config, String> {
        Config::parse(&format!("{ROUTES}\n{more}"), Path::new("x.toml")).map_err(|e| e.to_string())
    }

    fn joined(subjects: &str) -> Vec<u8> {
        let config = parse(&format!("[[subscribe]]\n{subjects}\nsink = {{ stdout = true }}")).unwrap();
        let last = |s: &Subscribe| s.stream.ip().octets()[3];
        config.subscribe.iter().map(last).collect()
    }

    #[test]
    fn a_subscription_joins_the_streams_that_may_carry_it() {
        for (subjects, streams) in [
            ("", &[1, 2, 9][..]),
            ("subjects = [\">\"]", &[1, 2, 9]),
            ("subjects = [\"EQ.US.AAPL\"]", &[1]),
            ("subjects = [\"EQ.US.*\", \"FX.EURUSD\"]", &[1]),
            ("subjects = [\"EQ.*.AAPL\"]", &[1, 2]),
            ("subjects = [\"EQ.DE.SAP\"]", &[2]),
            ("subjects = [\"EQ.DE.>\"]", &[2, 9]),
            ("subjects = [\"NEWS\"]", &[9]),
        ] {
            assert_eq!(joined(subjects), streams, "{subjects}");
        }
    }

    #[test]
    fn a_publication_serves_every_stream_of_the_routes() {
        let config =
            parse("[[publish]]\nstate = \"s\"\nsource = { stdin = true, format = \"subject-lines\" }").unwrap();
        let all = config.publish.iter();
        let all: Vec<_> = all
            .map(|p| (p.stream.to_string(), p.id, p.state.clone().unwrap()))
            .collect();
        assert_eq!(
            all,
            [
                ("239.1.1.1:5000".into(), None, "s/239.1.1.1-5000".into()),
                ("239.1.1.2:5000".into(), Some(7), "s/239.1.1.2-5000".into()),
                ("239.1.1.9:5000".into(), None, "s/239.1.1.9-5000".into()),
            ]
        );
        assert!(config.publish.iter().all(|p| p.table == 0 && p.routed));
    }

    #[test]
    fn mistakes_are_named_with_the_remedy() {
        let publish = "[[publish]]\nsource = { stdin = true, subject = \"A\" }";
        for (more, words) in [
            ("[[publish]]\nsource = { stdin = true }", "needs `subject`"),
            (&publish.replace("stdin = true", "program = true"), "one stream"),
            (&publish.replace("source", "id = 5\nsource"), "belongs to the [[route]]"),
            (&publish.replace("\"A\"", "\"A.*\""), "for patterns"),
            (
                &format!("[[route]]\nstream = \"239.1.1.3:5000\"\n{publish}"),
                "make it the last",
            ),
            ("[[subscribe]]\nsubjects = []\nsink = { stdout = true }", "empty list"),
            (
                "[[subscribe]]\nsubjects = [\"A..B\"]\nsink = { stdout = true }",
                "empty element at byte 2",
            ),
            ("[[subscribe]]\nsink = { dir = \"d\" }", "3 streams"),
            (
                "[[subscribe]]\nstream = \"239.1.1.1:5000\"\nsubjects = [\"A\"]\nsink = { program = true }",
                "Matcher",
            ),
            (
                "[[publish]]\nstream = \"239.1.1.1:5000\"\nsource = { stdin = true, format = \"subject-lines\", subject = \"A\" }",
                "one of",
            ),
        ] {
            let error = parse(more).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let bare = "[engine]\ninterface = \"lo\"\n";
        for (more, words) in [
            (publish, "needs a `stream`"),
            ("[[subscribe]]\nsink = { stdout = true }", "needs a `stream`"),
        ] {
            let error = Config::parse(&format!("{bare}{more}"), Path::new("x.toml")).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
        }
    }
}
