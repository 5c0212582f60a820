//! One event as a line.

use std::fmt::{Debug, Write as _};
use std::time::SystemTime;

use tracing::field::{Field, Visit};
use tracing::{Event, Level};

use super::Format;

/// What an event says.
#[derive(Clone, Debug)]
pub(super) struct Line {
    pub(super) level: Level,
    target: &'static str,
    engine: Option<String>,
    stream: Option<String>,
    message: String,
    /// What stands in a line of text, if not names in front of the message.
    text: Option<String>,
    /// The other fields, with their values in JSON.
    fields: Vec<(&'static str, String)>,
}

fn quoted(text: &str) -> String {
    // Text can always be written.
    serde_json::to_string(text).unwrap_or_default()
}

impl Line {
    pub(super) fn of(event: &Event<'_>) -> Line {
        let metadata = event.metadata();
        let mut line = Line::plain(*metadata.level(), metadata.target(), String::new(), String::new());
        line.text = None;
        event.record(&mut line);
        line
    }

    /// A message with another text.
    pub(super) fn plain(level: Level, target: &'static str, text: String, message: String) -> Line {
        Line {
            level,
            target,
            engine: None,
            stream: None,
            message,
            text: Some(text),
            fields: Vec::new(),
        }
    }

    /// Who says it: messages of one kind from different ones are told apart.
    pub(super) fn source(&self) -> (Option<&str>, Option<&str>) {
        (self.engine.as_deref(), self.stream.as_deref())
    }

    /// Says that so many like this one were not said; it is the last of them.
    pub(super) fn suppressed(mut self, count: u64) -> Line {
        let last = self.text.take().unwrap_or(self.message);
        self.message = format!("suppressed {count} like this: {last}");
        self.fields.push(("suppressed", count.to_string()));
        self
    }

    /// Without its line feed; text may have several lines.
    pub(super) fn written(&self, format: Format) -> String {
        match format {
            Format::Text => self.text(),
            Format::Full => {
                let (level, target) = (self.level, self.target);
                format!("{} {level:5} {target} {}", now(), self.text())
            }
            Format::Json => self.json(),
        }
    }

    fn text(&self) -> String {
        if let Some(text) = &self.text {
            return text.clone();
        }
        let names = [&self.engine, &self.stream].into_iter().flatten();
        let mut text: String = names.flat_map(|name| [name.as_str(), ": "]).collect();
        text += &self.message;
        text
    }

    fn json(&self) -> String {
        let (level, target) = (self.level, self.target);
        let mut json = format!("{{\"time\":\"{}\",\"level\":\"{level}\",\"target\":\"{target}\"", now());
        let mut put = |name: &str, value: &str| {
            let _ = write!(json, ",\"{name}\":{value}");
        };
        for (name, value) in [("engine", &self.engine), ("stream", &self.stream)] {
            if let Some(value) = value {
                put(name, &quoted(value));
            }
        }
        self.fields.iter().for_each(|(name, value)| put(name, value));
        put("message", &quoted(&self.message));
        json + "}"
    }

    fn put(&mut self, field: &Field, value: String) {
        match field.name() {
            "message" => self.message = value,
            "text" => self.text = Some(value),
            "engine" => self.engine = Some(value),
            "stream" => self.stream = Some(value),
            name => self.fields.push((name, quoted(&value))),
        }
    }
}

fn now() -> humantime::Rfc3339Timestamp {
    humantime::format_rfc3339_micros(SystemTime::now())
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.put(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.to_owned());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.fields.push((field.name(), value.to_string()));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.fields.push((field.name(), value.to_string()));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.fields.push((field.name(), value.to_string()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line {
            engine: Some("ticks".to_owned()),
            stream: Some("239.1.1.1:5000".to_owned()),
            text: None,
            fields: vec![("session", "7".to_owned()), ("peer", quoted("10.0.0.1:\"9\""))],
            ..Line::plain(
                Level::WARN,
                super::super::CLIENT,
                String::new(),
                "line \"A\"".to_owned(),
            )
        }
    }

    #[test]
    fn a_line_of_text_names_engine_and_stream_in_front() {
        assert_eq!(line().written(Format::Text), "ticks: 239.1.1.1:5000: line \"A\"");
        let full = line().written(Format::Full);
        let (time, rest) = full.split_once(' ').unwrap();
        assert!(humantime::parse_rfc3339(time).is_ok(), "{full}");
        assert_eq!(rest, "WARN  seqcast::client ticks: 239.1.1.1:5000: line \"A\"");
        let plain = Line::plain(Level::INFO, "t", "ready ticks".to_owned(), "ready".to_owned());
        assert_eq!(plain.written(Format::Text), "ready ticks");
    }

    #[test]
    fn json_has_all_fields_with_their_types() {
        let json: serde_json::Value = serde_json::from_str(&line().written(Format::Json)).unwrap();
        assert_eq!((&json["level"], &json["session"]), (&"WARN".into(), &7.into()));
        assert_eq!(json["peer"], "10.0.0.1:\"9\"");
        assert_eq!(
            (&json["engine"], &json["message"]),
            (&"ticks".into(), &"line \"A\"".into())
        );
        let json: serde_json::Value = serde_json::from_str(&line().suppressed(1234).written(Format::Json)).unwrap();
        assert_eq!(json["suppressed"], 1234);
        assert_eq!(json["message"], "suppressed 1234 like this: line \"A\"");
    }
}
