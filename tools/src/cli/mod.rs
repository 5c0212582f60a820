//! The subcommands: their options, and how they report.

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::Result;

pub(crate) mod archive;
pub(crate) mod itch;
pub(crate) mod lab;

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

/// Writes a line to standard error, whose end (`2>&1 | head`) ends nothing else.
pub(crate) fn say(line: impl Display) {
    let _ = writeln!(io::stderr(), "{line}");
}
