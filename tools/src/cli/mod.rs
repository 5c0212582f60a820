//! The subcommands: their options, and how they report.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use seqcast_engine::log;

pub(crate) mod archive;
pub(crate) mod bench;
pub(crate) mod capture;
pub(crate) mod generate;
pub(crate) mod host;
pub(crate) mod itch;
pub(crate) mod key;
pub(crate) mod lab;
pub(crate) mod publish;
pub(crate) mod replay;
pub(crate) mod sim;
mod stop;
pub(crate) mod subscribe;
pub(crate) mod watch;

/// How engines are to move frames.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LinkChoice {
    /// AF_XDP where it works, else kernel UDP.
    Auto,
    /// AF_XDP, or an error.
    Xdp,
    /// Kernel UDP.
    Udp,
}

impl LinkChoice {
    /// The same in a configuration.
    fn word(self) -> &'static str {
        match self {
            LinkChoice::Auto => "auto",
            LinkChoice::Xdp => "xdp",
            LinkChoice::Udp => "udp",
        }
    }
}

/// For commands whose work is their output: one whose reader has seen enough (`| head`) is done.
fn done_if_pipe_closed(result: Result<ExitCode>) -> Result<ExitCode> {
    match result {
        Err(error)
            if error
                .chain()
                .any(|cause| cause.downcast_ref().is_some_and(is_pipe_closed)) =>
        {
            Ok(ExitCode::SUCCESS)
        }
        // What was read has its file's name with it.
        Err(error) if error.is::<io::Error>() && error.chain().count() == 1 => {
            Err(error.context("cannot write the output"))
        }
        other => other,
    }
}

/// For commands that have more to do than to tell: they go on when nobody listens.
fn tell(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if is_pipe_closed(&error) => Ok(()),
        other => other,
    }
}

fn is_pipe_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// Says what was done or found, on standard error, whose end (`2>&1 | head`) ends nothing else.
pub(crate) fn say(line: impl Display) {
    tracing::info!(target: log::TOOL, "{line}");
}

/// Says what is not as it should be, or was left out.
pub(crate) fn complain(line: impl Display) {
    tracing::warn!(target: log::TOOL, "{line}");
}

/// A line on the terminal that says how far long work is; nothing if nobody looks at it.
struct Meter {
    start: Instant,
    /// When the line was last written.
    shown: Option<Instant>,
    visible: bool,
}

impl Meter {
    fn new() -> Meter {
        Meter {
            start: Instant::now(),
            shown: None,
            visible: io::stderr().is_terminal(),
        }
    }

    /// Shows what `line` makes of the seconds since the start, ten times a second at most.
    fn show<T: Display>(&mut self, line: impl FnOnce(f64) -> T) {
        const PAUSE: Duration = Duration::from_millis(100);
        if !self.visible || self.shown.is_some_and(|shown| shown.elapsed() < PAUSE) {
            return;
        }
        self.shown = Some(Instant::now());
        let line = line(self.start.elapsed().as_secs_f64().max(1e-3));
        let _ = write!(io::stderr(), "\r\x1b[K{line}");
    }

    /// Shows a line whatever was shown lately.
    fn show_now(&mut self, line: impl Display) {
        self.shown = None;
        self.show(|_| line);
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// How much of something is done, 0 to 1, as a bar.
fn gauge(share: f64) -> String {
    const WIDTH: usize = 24;
    let share = share.clamp(0.0, 1.0);
    let done = (share * WIDTH as f64) as usize;
    format!("[{:-<WIDTH$}] {:3.0} %", "#".repeat(done), share * 100.0)
}

/// Bytes moved, and how fast.
fn pace(bytes: u64, seconds: f64) -> String {
    let megabytes = bytes as f64 / 1e6;
    format!("{megabytes:.0} MB, {:.0} MB/s", megabytes / seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_grow_from_nothing_to_all() {
        assert_eq!(gauge(0.0), "[------------------------]   0 %");
        assert_eq!(gauge(0.5), "[############------------]  50 %");
        assert_eq!(gauge(2.0), "[########################] 100 %");
        assert_eq!(pace(3_000_000, 2.0), "3 MB, 2 MB/s");
    }
}
