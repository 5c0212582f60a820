//! Running `ip` and its like, and waiting for what they report.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::{Error, interrupt};

/// Runs a command to its end and returns its standard output.
pub(super) fn run(argv: &[&str]) -> Result<String, Error> {
    let output = Command::new(argv[0])
        .args(&argv[1..])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        // Out of the reach of Ctrl-C, which must not cut short what cleans up after it.
        .process_group(0)
        .output()
        .map_err(|error| Error::Start {
            command: argv.join(" "),
            error,
        })?;
    if !output.status.success() {
        return Err(Error::Command {
            command: argv.join(" "),
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a command that prints JSON; no output counts as an empty list.
pub(super) fn run_json(argv: &[&str]) -> Result<Vec<serde_json::Value>, Error> {
    let output = run(argv)?;
    if output.trim().is_empty() {
        return Ok(Vec::new());
    }
    serde_json::from_str(&output).map_err(|error| Error::Output {
        command: argv.join(" "),
        error,
    })
}

/// Asks `state` again and again until it has an answer, the time is over or the user interrupts.
pub(super) fn poll<T>(
    what: impl FnOnce() -> String,
    limit: Duration,
    mut state: impl FnMut() -> Result<Option<T>, Error>,
) -> Result<T, Error> {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(answer) = state()? {
            return Ok(answer);
        }
        interrupt::check()?;
        if start.elapsed() >= limit {
            return Err(Error::Timeout { what: what(), limit });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}
