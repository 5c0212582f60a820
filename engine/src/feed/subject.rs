//! What messages of a source are about, and which stream takes them.

use std::io::Write;

use seqcast_proto::subject::{self, Matcher, Pattern};
use seqcast_proto::wire::Message;

use super::Format;
use crate::config::{Route, Source, SubjectFrom};

/// Finds the subjects of a source's messages.
pub(super) struct Subjects {
    kind: Kind,
    /// The subject, constant or made for each message.
    text: Vec<u8>,
}

enum Kind {
    Constant,
    Line,
    Itch,
}

impl Subjects {
    pub(super) fn new(config: &Source) -> Subjects {
        let kind = match (config.format, config.subject_from) {
            (Format::SubjectLines, _) => Kind::Line,
            (_, Some(SubjectFrom::Itch)) => Kind::Itch,
            _ => Kind::Constant,
        };
        let text = config.subject.clone().unwrap_or_default();
        Subjects {
            kind,
            text: text.into_bytes(),
        }
    }

    /// Takes what was read apart; says what is wrong with it.
    pub(super) fn split<'a>(&'a mut self, read: &'a [u8]) -> Result<Message<'a>, String> {
        match self.kind {
            Kind::Constant => Ok(Message {
                subject: &self.text,
                payload: read,
            }),
            Kind::Line => {
                let at = read.iter().position(|b| *b == b' ');
                let at = at.ok_or("no space; a line is a subject, a space, and the payload")?;
                let (subject, payload) = (&read[..at], &read[at + 1..]);
                // A line that begins with its space is a message without a subject.
                if !subject.is_empty() {
                    let shown = String::from_utf8_lossy(subject);
                    subject::check(subject).map_err(|e| format!("subject {shown:?}: {e}"))?;
                }
                Ok(Message { subject, payload })
            }
            Kind::Itch => {
                let Some(&[letter, high, low]) = read.first_chunk::<3>().filter(|h| h[0].is_ascii_alphanumeric())
                else {
                    return Err("no ITCH 5.0 message: those begin with a letter and a locate of 2 bytes".into());
                };
                self.text.clear();
                let locate = u16::from_be_bytes([high, low]);
                // Writing to memory does not fail.
                let _ = write!(self.text, "ITCH.{}.{locate}", char::from(letter));
                Ok(Message {
                    subject: &self.text,
                    payload: read,
                })
            }
        }
    }
}

/// Finds the stream that takes a subject.
pub struct Router {
    /// Finds a route.
    matcher: Matcher,
    /// The streams of the routes, as places in the list of all streams.
    streams: Vec<usize>,
    /// The stream of what no other route takes.
    rest: Option<usize>,
}

impl Router {
    /// Follows `routes`. Streams are numbered in the order in which they first appear there.
    #[must_use]
    pub fn new(routes: &[Route]) -> Router {
        let mut known = Vec::new();
        let mut streams = Vec::new();
        for route in routes {
            let found = known.iter().position(|s| *s == route.stream);
            streams.push(found.unwrap_or(known.len()));
            if found.is_none() {
                known.push(route.stream);
            }
        }
        let patterns = routes.iter().zip(0..).flat_map(|(route, number)| {
            let subjects: &[Pattern] = route.subjects.as_deref().unwrap_or_default();
            subjects.iter().map(move |pattern| (pattern, number))
        });
        let rest = routes.iter().position(|r| r.subjects.is_none()).map(|at| streams[at]);
        Router {
            matcher: Matcher::new(patterns, Matcher::SLOTS),
            streams,
            rest,
        }
    }

    /// The stream of the first route that takes the subject.
    pub fn stream_of(&mut self, subject: &[u8]) -> Option<usize> {
        let route = self.matcher.find(subject).first();
        route.map(|r| self.streams[*r as usize]).or(self.rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Subjects {
        Subjects::new(&toml::from_str(&format!("stdin = true\n{text}")).unwrap())
    }

    #[test]
    fn subjects_come_from_the_configuration_the_line_or_the_message() {
        let message = |subject, payload| Message { subject, payload };
        assert_eq!(source("").split(b"a b"), Ok(message(b"", b"a b")));
        assert_eq!(source("subject = \"A.B\"").split(b"a b"), Ok(message(b"A.B", b"a b")));
        let mut lines = source("format = \"subject-lines\"");
        assert_eq!(lines.split(b"A.B two words"), Ok(message(b"A.B", b"two words")));
        assert_eq!(lines.split(b"A "), Ok(message(b"A", b"")));
        assert_eq!(lines.split(b" x"), Ok(message(b"", b"x")));
        for (bad, words) in [
            (&b"word"[..], "no space"),
            (b"A.* x", "for patterns"),
            (b"", "no space"),
        ] {
            let error = lines.split(bad).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        let mut itch = source("subject_from = \"itch\"");
        assert_eq!(itch.split(b"A\x01\x02..."), Ok(message(b"ITCH.A.258", b"A\x01\x02...")));
        assert!(itch.split(b"A\x01").is_err());
        assert!(itch.split(b"*\x01\x02").is_err());
    }

    #[test]
    fn the_first_route_counts_and_the_rest_has_its_own() {
        let route = |subjects: &[&str], stream: &str| Route {
            subjects: (!subjects.is_empty()).then(|| subjects.iter().map(|s| Pattern::parse(s).unwrap()).collect()),
            stream: stream.parse().unwrap(),
            id: None,
        };
        let mut routes = vec![
            route(&["EQ.US.>", "FX.>"], "239.1.1.1:5000"),
            route(&["EQ.>"], "239.1.1.2:5000"),
            route(&["NEWS"], "239.1.1.1:5000"),
        ];
        let mut router = Router::new(&routes);
        for (subject, stream) in [
            ("EQ.US.A", Some(0)),
            ("EQ.DE.A", Some(1)),
            ("NEWS", Some(0)),
            ("X", None),
            ("", None),
        ] {
            assert_eq!(router.stream_of(subject.as_bytes()), stream, "{subject}");
        }
        routes.push(route(&[], "239.1.1.3:5000"));
        let mut router = Router::new(&routes);
        assert_eq!(router.stream_of(b"X"), Some(2));
        assert_eq!(router.stream_of(b""), Some(2));
        assert_eq!(router.stream_of(b"EQ.US.A"), Some(0));
    }
}
