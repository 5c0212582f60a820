//! `seqcast subscribe`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use seqcast_client::{Engine, Error, Event, EventKind, From, Position, Received, Subscriber, SubscriberOptions, flags};
use seqcast_engine::feed::item::{self, Item, SinkFormat};
use seqcast_proto::seq::{Seq, Session};

use super::archive::{BUFFER, parse_group};
use super::{Meter, done_if_pipe_closed, say, stop};

/// How long to wait for messages before signals are looked at.
const LOOK: Duration = Duration::from_millis(50);

/// An engine that is not there after this time is waited for in words.
const SHORT: Duration = Duration::from_millis(300);

/// Which engine.
#[derive(clap::Args)]
pub(super) struct EngineArgs {
    /// The engine's socket: "socket" of [programs] in its configuration.
    #[arg(long, value_name = "PATH", default_value = "/run/seqcast/engine.sock")]
    socket: PathBuf,
    /// Seconds to wait for the engine: at the start, to take messages, or to come back.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = parse_wait)]
    wait: f64,
}

fn parse_wait(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| (0.0..=1e9).contains(s));
    seconds.ok_or_else(|| "a time is a number of seconds, 0 or more".into())
}

impl EngineArgs {
    /// Attaches with a patience; says so if the engine is waited for.
    pub(super) fn attach<T>(&self, attach: impl Fn(&Engine, Duration) -> Result<T, Error>) -> Result<T, Error> {
        let engine = Engine::at(&self.socket);
        let patience = self.timeout();
        let first = patience.min(SHORT);
        match attach(&engine, first) {
            Err(Error::Gone(_)) if patience > first => {
                let (socket, wait) = (self.socket.display(), self.wait);
                say(format_args!(
                    "seqcast: waiting up to {wait} s for an engine at {socket}"
                ));
                attach(&engine, patience - first)
            }
            attached => attached,
        }
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.wait)
    }
}

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    engine: EngineArgs,
    /// The stream; needed if the engine has several for programs.
    #[arg(long, value_name = "GROUP:PORT", value_parser = parse_group)]
    stream: Option<SocketAddrV4>,
    /// Where to begin: "now", "session" for the first message of the session that the engine receives, or
    /// SESSION:NUMBER for what comes behind that message.
    #[arg(long, value_name = "WHERE", default_value = "now", value_parser = parse_from)]
    from: From,
    /// Only messages with such subjects; may be given several times.
    #[arg(long, value_name = "PATTERN")]
    subject: Vec<String>,
    /// How messages are written.
    #[arg(long, value_enum, default_value_t = OutputFormat::Lines)]
    format: OutputFormat,
    /// Where to: a file, written anew; standard output unless given.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// End after so many messages.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End when a session ends that no other follows within a second.
    #[arg(long)]
    exit_at_end: bool,
    /// Only report what was missed, instead of fetching it from archive or server.
    #[arg(long)]
    no_recover: bool,
}

fn parse_from(text: &str) -> Result<From, String> {
    let position = || {
        let (session, sequence) = text.split_once(':')?;
        let (session, sequence) = (session.parse().ok()?, sequence.parse().ok()?);
        Some(From::After(Position { session, sequence }))
    };
    match text {
        "now" => Ok(From::Now),
        "session" => Ok(From::Session),
        _ => position().ok_or_else(|| "write now, session, or SESSION:NUMBER".into()),
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputFormat {
    /// The payload and a line feed.
    Lines,
    /// A line each: subject, space, payload.
    SubjectLines,
    /// A line each: session, number, payload in hexadecimal digits.
    Hex,
    /// A line each: an object with all that is known of the message.
    Json,
    /// A big-endian length of 16 bits and the payload.
    Binaryfile,
    /// Payloads with nothing between.
    Raw,
}

impl OutputFormat {
    fn of(self) -> SinkFormat {
        match self {
            OutputFormat::Lines => SinkFormat::Lines,
            OutputFormat::SubjectLines => SinkFormat::SubjectLines,
            OutputFormat::Hex => SinkFormat::Hex,
            OutputFormat::Json => SinkFormat::Json,
            OutputFormat::Binaryfile => SinkFormat::Binaryfile,
            OutputFormat::Raw => SinkFormat::Raw,
        }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let options = SubscriberOptions {
        stream: args.stream,
        name: "seqcast subscribe".into(),
        from: args.from,
        subjects: args.subject.clone(),
        recover: !args.no_recover,
        ..SubscriberOptions::default()
    };
    let mut subscriber = args.engine.attach(|engine, patience| {
        let options = SubscriberOptions {
            patience,
            ..options.clone()
        };
        Subscriber::attach(engine, &options)
    })?;
    say(format_args!("seqcast: subscribed to {}", subscriber.stream()));
    match &args.out {
        Some(path) => {
            let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
            receive(args, &mut subscriber, file).with_context(|| incomplete(path))
        }
        None => done_if_pipe_closed(receive(args, &mut subscriber, io::stdout().lock())),
    }
}

fn incomplete(path: &Path) -> String {
    format!("{} is not complete", path.display())
}

fn receive(args: &Args, subscriber: &mut Subscriber, out: impl Write) -> Result<ExitCode> {
    let stop = stop::on_signals()?;
    let mut out = BufWriter::with_capacity(BUFFER, out);
    let mut meter = Meter::new();
    let format = args.format.of();
    let (mut messages, mut bytes) = (0_u64, 0_u64);
    // Since when a session has ended, or the engine was gone.
    let (mut ended, mut gone) = (None, None);
    while args.count.is_none_or(|count| messages < count) && stop.load(Ordering::Relaxed) == 0 {
        // Whoever reads sees what is there before this sleeps.
        let received = match subscriber.try_next()? {
            None => {
                out.flush()?;
                subscriber.next(Some(LOOK))?
            }
            received => received,
        };
        match received {
            None => {}
            Some(Received::Message(message)) => {
                let known = message.flags & (flags::REPAIRED | flags::FROM_SERVER);
                let caught_up = if message.flags & flags::CAUGHT_UP != 0 {
                    item::flags::REPAIRED
                } else {
                    0
                };
                item::write_item(
                    &mut out,
                    format,
                    &Item {
                        session: Session(message.session),
                        seq: Seq(message.sequence),
                        time: message.time_ns,
                        flags: known | caught_up,
                        subject: message.subject,
                        payload: message.payload,
                    },
                )?;
                messages += 1;
                bytes += message.payload.len() as u64;
                ended = None;
                // With the output on a terminal the messages themselves show how far it is.
                if messages.is_multiple_of(1024) && args.out.is_some() {
                    meter.show(|seconds| {
                        format!(
                            "{messages} messages, {:.0} MB, {:.0} messages/s",
                            bytes as f64 / 1e6,
                            messages as f64 / seconds
                        )
                    });
                }
            }
            Some(Received::Event(event)) => {
                meter.clear();
                match event.kind {
                    EventKind::SessionEnded => ended = Some(Instant::now()),
                    EventKind::SessionStarted => ended = None,
                    EventKind::EngineGone => gone = Some(Instant::now()),
                    EventKind::EngineBack => gone = None,
                    _ => {}
                }
                if let Some(text) = tell(&event) {
                    say(format_args!("seqcast: {text}"));
                }
            }
        }
        if args.exit_at_end && ended.is_some_and(|at: Instant| at.elapsed() >= Duration::from_secs(1)) {
            break;
        }
        if gone.is_some_and(|at: Instant| at.elapsed() >= args.engine.timeout()) {
            out.flush()?;
            anyhow::bail!("the engine did not come back within {} s", args.engine.wait);
        }
    }
    out.flush()?;
    meter.clear();
    let last = subscriber.position().map_or(String::new(), |p| {
        format!("; the last was {}:{}", p.session, p.sequence)
    });
    say(format_args!(
        "seqcast: received {messages} messages, {bytes} bytes{last}"
    ));
    stop::outcome(&stop)?;
    Ok(ExitCode::SUCCESS)
}

/// An event for people; `None` if it is of no interest to them.
fn tell(event: &Event) -> Option<String> {
    let Event {
        session, first, last, ..
    } = *event;
    let range = if last == 0 {
        format!("{first} and what follows")
    } else {
        format!("{first} to {last}")
    };
    Some(match event.kind {
        EventKind::Lost => format!("LOST messages {range} of session {session}"),
        EventKind::Missed => format!("MISSED messages {range} of session {session}: too slow, or the engine was away"),
        EventKind::CatchingUp => format!("fetching messages {range} of session {session}"),
        EventKind::CaughtUp => "caught up".into(),
        EventKind::EngineGone => "the engine is gone; waiting for it".into(),
        EventKind::EngineBack => "the engine is back".into(),
        EventKind::SessionEnded => format!("session {session} ended with message {last}"),
        EventKind::SessionStarted => format!("session {session} began"),
        EventKind::TailUnknown => {
            format!("session {session} was cut off; nobody knows whether it had messages from {first} on")
        }
        EventKind::Silent => "the server is silent".into(),
        EventKind::Heard => "the server is heard again".into(),
        EventKind::DuplicateServer => "a SECOND SERVER uses the stream's identity".into(),
        _ => return None,
    })
}
