//! What an engine says to operators: [`tracing`] events, written as lines.
//!
//! An event has a level, a target (one of the constants here), a message that reads well alone, and
//! fields: `engine`, `stream`, and what else a machine may want to find, such as `session`, `first` and
//! `last` message, `peer`. A program that embeds the engine takes them with a subscriber of its own, or
//! with [`Log`], which the binaries use.
//!
//! Nothing is said for each packet: the duty cycle counts, and speaks of counts now and then ([`Tally`]).

mod filter;
mod limit;
mod line;
mod output;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config;

pub use filter::{FilterError, parse as parse_filter};
pub(crate) use limit::Tally;
use limit::{Admitted, Limiter};
use line::Line;
use output::Output;

/// The process: its start, its link, its end.
pub const ENGINE: &str = "seqcast::engine";
/// Publishing.
pub const SERVER: &str = "seqcast::server";
/// Receiving.
pub const CLIENT: &str = "seqcast::client";
/// Messages that a client will never get: said each time, since the ranges are all that is left of them.
pub const CLIENT_LOST: &str = "seqcast::client::lost";
/// Recording.
pub const ARCHIVE: &str = "seqcast::archive";
/// Keys and allow-lists.
pub const TRUST: &str = "seqcast::trust";
/// Sources, sinks and feeds of another protocol.
pub const FEED: &str = "seqcast::feed";
/// Messages that a feed will never bring, as [`CLIENT_LOST`].
pub const FEED_LOST: &str = "seqcast::feed::lost";
/// Programs beside the engine.
pub const PROGRAMS: &str = "seqcast::programs";
/// Changes of a running engine.
pub const RELOAD: &str = "seqcast::reload";
/// The `seqcast` command.
pub const TOOL: &str = "seqcast::tool";

/// How a line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `ENGINE: STREAM: what happened`.
    #[default]
    Text,
    /// Time, level and target in front of that.
    Full,
    /// An object with all fields.
    Json,
}

impl std::str::FromStr for Format {
    type Err = String;

    fn from_str(text: &str) -> Result<Format, String> {
        match text {
            "text" => Ok(Format::Text),
            "full" => Ok(Format::Full),
            "json" => Ok(Format::Json),
            _ => Err(format!("{text:?} is no format: write \"text\", \"full\" or \"json\"")),
        }
    }
}

/// Writes events of the whole process.
#[derive(Clone)]
pub struct Log {
    shared: Arc<Shared>,
    filter: reload::Handle<Targets, Registry>,
}

struct Shared {
    format: Mutex<Format>,
    limiter: Mutex<Limiter>,
    output: Output,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Log {
    /// Takes all events of this process from now on. Lines are written by the thread that has something to
    /// say, until [`Log::go_aside`].
    ///
    /// # Errors
    /// When the file cannot be opened, the filter makes no sense, or the process has a subscriber already.
    pub fn install(config: &config::Log) -> io::Result<Log> {
        let targets = filter::parse(&config.level).map_err(io::Error::other)?;
        let (filter, handle) = reload::Layer::new(targets);
        let shared = Arc::new(Shared {
            format: Mutex::new(config.format),
            limiter: Mutex::new(Limiter::new(config.burst, config.interval())),
            output: Output::open(config.file.as_deref())?,
        });
        let lines = Lines(Arc::clone(&shared));
        tracing::subscriber::set_global_default(Registry::default().with(filter).with(lines))
            .map_err(io::Error::other)?;
        Ok(Log { shared, filter: handle })
    }

    /// Lets a thread of its own write from now on, so that a reader who is too slow holds up nobody: lines
    /// for which there is no room are dropped and counted. It has the rights and cores of the caller.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn go_aside(&self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        self.shared.output.go_aside(move || shared.tell_suppressed(false))
    }

    /// Takes another configuration; its file is opened again even if it is the same, so that it may be
    /// rotated.
    ///
    /// # Errors
    /// When the file cannot be opened; then nothing has changed.
    pub fn change(&self, config: &config::Log) -> io::Result<()> {
        let targets = filter::parse(&config.level).map_err(io::Error::other)?;
        self.shared.output.reopen(config.file.as_deref())?;
        self.filter.reload(targets).map_err(io::Error::other)?;
        *lock(&self.shared.format) = config.format;
        lock(&self.shared.limiter).set(config.burst, config.interval());
        Ok(())
    }

    /// Says what ended the process, whatever the filter is.
    pub fn fatal(&self, program: &str, error: &str) {
        let line = Line::plain(Level::ERROR, ENGINE, format!("{program}: {error}"), error.to_owned());
        self.shared.put(&line);
    }

    /// Says what was held back, and waits for all to be written, a second at most.
    pub fn finish(&self) {
        self.shared.tell_suppressed(true);
        self.shared.output.finish();
    }
}

impl Shared {
    fn put(&self, line: &Line) {
        let format = *lock(&self.format);
        self.output.put(line.level, line.written(format));
    }

    /// Says how often something was not said, once it may be said again or `all` is to be told. Whether
    /// there is more to be said later.
    fn tell_suppressed(&self, all: bool) -> bool {
        let (told, owes) = {
            let mut limiter = lock(&self.limiter);
            (limiter.expired(Instant::now(), all), limiter.owes())
        };
        told.iter().for_each(|line| self.put(line));
        owes
    }
}

/// The end of all events.
struct Lines(Arc<Shared>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let line = Line::of(event);
        let kind = event.metadata().callsite();
        if [CLIENT_LOST, FEED_LOST].contains(&event.metadata().target()) {
            self.0.put(&line);
            return;
        }
        let admitted = lock(&self.0.limiter).admit(kind, &line, Instant::now());
        match admitted {
            Admitted::Said(before) => {
                before.iter().for_each(|line| self.0.put(line));
                self.0.put(&line);
            }
            Admitted::Suppressed { first } if first => self.0.output.look(),
            Admitted::Suppressed { .. } => {}
        }
    }
}
