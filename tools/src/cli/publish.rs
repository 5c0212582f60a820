//! `seqcast publish`.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use seqcast_client::{EventKind, Publisher, PublisherOptions};
use seqcast_engine::feed::{Format, Reader};
use serde::Deserialize;

use super::archive::parse_group;
use super::subscribe::EngineArgs;
use super::{Meter, complain, say};

/// Messages between two looks at the engine and the meter.
const LOOK_EVERY: u64 = 1024;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    /// What to publish, one after the other; "-" for standard input.
    #[arg(value_name = "FILE", default_value = "-")]
    files: Vec<PathBuf>,
    /// The stream; needed if the engine has several for programs.
    #[arg(long, value_name = "GROUP:PORT", value_parser = parse_group)]
    stream: Option<SocketAddrV4>,
    /// How messages are told apart.
    #[arg(long, value_enum, default_value_t = InputFormat::Lines)]
    format: InputFormat,
    /// The subject of messages that have none of their own.
    #[arg(long, value_name = "SUBJECT", default_value = "", hide_default_value = true)]
    subject: String,
    /// Messages a second; as fast as they are taken unless given.
    #[arg(long, value_name = "N", value_parser = parse_rate)]
    rate: Option<f64>,
    /// Publish at most so many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| "a rate is a number above 0".into())
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum InputFormat {
    /// A message a line.
    Lines,
    /// A line each: subject, space, payload.
    SubjectLines,
    /// A line each: the payload in hexadecimal digits; what is in front of it is passed over.
    Hex,
    /// An object a line, with payload or payload_hex, and perhaps subject, as "subscribe" writes them.
    Json,
    /// A big-endian length of 16 bits and the payload.
    Binaryfile,
    /// Each file is one message.
    Raw,
}

/// A message of a line of JSON.
#[derive(Deserialize)]
struct Line {
    subject: Option<String>,
    payload: Option<String>,
    payload_hex: Option<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let publisher = args.engine.attach(|engine, patience| {
        let options = PublisherOptions {
            stream: args.stream,
            name: "seqcast publish".into(),
            patience,
            ..PublisherOptions::default()
        };
        Publisher::attach(engine, &options)
    })?;
    let mut work = Work {
        publisher,
        args,
        start: Instant::now(),
        meter: Meter::new(),
        messages: 0,
        bytes: 0,
    };
    let mut result = Ok(());
    for file in &args.files {
        result = work.file(file);
        if result.is_err() || work.is_done() {
            break;
        }
    }
    work.meter.clear();
    // What was read before something went wrong is published all the same.
    let flushed = work.publisher.flush(Some(args.engine.timeout()));
    work.tell();
    let (messages, stream) = (work.messages, work.publisher.stream());
    say(format_args!(
        "seqcast: published {messages} messages, {} bytes on {stream}",
        work.bytes
    ));
    result?;
    flushed.context("the engine has not taken all of them; those that it has not are dropped now")?;
    Ok(ExitCode::SUCCESS)
}

struct Work<'a> {
    publisher: Publisher,
    args: &'a Args,
    start: Instant,
    meter: Meter,
    messages: u64,
    bytes: u64,
}

impl Work<'_> {
    fn is_done(&self) -> bool {
        self.args.count.is_some_and(|count| self.messages >= count)
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let name = if path == Path::new("-") {
            "standard input".into()
        } else {
            path.display().to_string()
        };
        let input: Box<dyn Read> = if path == Path::new("-") {
            Box::new(io::stdin().lock())
        } else {
            Box::new(File::open(path).with_context(|| format!("cannot read {name}"))?)
        };
        self.messages_of(input).with_context(|| name)
    }

    fn messages_of(&mut self, mut input: Box<dyn Read>) -> Result<()> {
        let format = match self.args.format {
            InputFormat::Raw => {
                let mut whole = Vec::new();
                // One byte more than any message shows that it is too long.
                input.by_ref().take(1 << 16).read_to_end(&mut whole)?;
                return self.publish(None, &whole);
            }
            InputFormat::Binaryfile => Format::Binaryfile,
            InputFormat::Lines | InputFormat::SubjectLines | InputFormat::Hex | InputFormat::Json => Format::Lines,
        };
        let mut reader = Reader::new(format, input)?;
        let mut number = 0_u64;
        while !self.is_done()
            && let Some(read) = reader.next_message()?
        {
            number += 1;
            self.message(read).with_context(|| format!("message {number}"))?;
        }
        Ok(())
    }

    fn message(&mut self, read: &[u8]) -> Result<()> {
        match self.args.format {
            InputFormat::Lines | InputFormat::Binaryfile | InputFormat::Raw => self.publish(None, read),
            InputFormat::SubjectLines => {
                let at = read.iter().position(|byte| *byte == b' ');
                let (subject, rest) =
                    read.split_at(at.context("no space: a line is a subject, a space, and the payload")?);
                let subject = std::str::from_utf8(subject).context("its subject is no text")?;
                self.publish(Some(subject), &rest[1..])
            }
            InputFormat::Hex => {
                let text = std::str::from_utf8(read).context("no hexadecimal digits")?;
                let digits = text.split_ascii_whitespace().next_back().unwrap_or_default();
                self.publish(None, &bytes_of(digits)?)
            }
            InputFormat::Json => {
                let line: Line = serde_json::from_slice(read)?;
                let payload = match (line.payload, line.payload_hex) {
                    (Some(text), None) => text.into_bytes(),
                    (None, Some(digits)) => bytes_of(&digits)?,
                    _ => bail!("an object needs one of \"payload\" and \"payload_hex\""),
                };
                self.publish(line.subject.as_deref(), &payload)
            }
        }
    }

    fn publish(&mut self, subject: Option<&str>, payload: &[u8]) -> Result<()> {
        if let Some(rate) = self.args.rate {
            let due = self.start + Duration::from_secs_f64(self.messages as f64 / rate);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        let subject = subject.filter(|s| !s.is_empty()).unwrap_or(&self.args.subject);
        self.publisher
            .publish(subject, payload, Some(self.args.engine.timeout()))?;
        self.messages += 1;
        self.bytes += payload.len() as u64;
        if self.messages.is_multiple_of(LOOK_EVERY) || self.args.rate.is_some() {
            self.tell();
            let (messages, bytes) = (self.messages, self.bytes as f64 / 1e6);
            self.meter.show(|seconds| {
                format!(
                    "{messages} messages, {bytes:.0} MB, {:.0} messages/s",
                    messages as f64 / seconds
                )
            });
        }
        Ok(())
    }

    /// Says what happened to the engine.
    fn tell(&mut self) {
        while let Ok(Some(event)) = self.publisher.poll() {
            self.meter.clear();
            match event.kind {
                EventKind::EngineGone => complain("seqcast: the engine is gone; waiting for it"),
                EventKind::EngineBack => say("seqcast: the engine is back; going on"),
                _ => {}
            }
        }
    }
}

fn bytes_of(digits: &str) -> Result<Vec<u8>> {
    let value = |digit: u8| char::from(digit).to_digit(16).map(|v| v as u8);
    let (pairs, rest) = digits.as_bytes().as_chunks::<2>();
    let bytes = pairs.iter().map(|[high, low]| Some(value(*high)? << 4 | value(*low)?));
    let bytes: Option<Vec<u8>> = bytes.collect();
    bytes
        .filter(|_| rest.is_empty())
        .with_context(|| format!("{digits:?} are no pairs of hexadecimal digits"))
}
