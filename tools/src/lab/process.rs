//! A program that runs on a host and is gone when its handle is.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use super::command::poll;
use super::{Error, sys};

/// Lines of a log that an error shows.
const TAIL: usize = 20;
/// Bytes of a log that are looked at: the first ones for a line, the last ones for an error.
const LOOK: u64 = 256 * 1024;

/// A running program whose output goes to a log file. Dropping it kills the program.
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command, best one from [`super::Host::command`], with standard output and standard
    /// error in the file `log` and nothing to read.
    ///
    /// # Errors
    /// When the log cannot be written or the program not be started.
    pub fn spawn(name: &str, mut command: Command, log: &Path) -> Result<Process, Error> {
        let spawned = File::create(log).and_then(|out| {
            let both = out.try_clone()?;
            command
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(both)
                // Ctrl-C ends the lab, and the lab ends its programs.
                .process_group(0)
                .spawn()
        });
        match spawned {
            Ok(child) => Ok(Process {
                name: name.to_owned(),
                log: log.to_owned(),
                child,
                status: None,
            }),
            Err(error) => Err(Error::Start {
                command: format!("{command:?} > {}", log.display()),
                error,
            }),
        }
    }

    /// The name it was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The exit status, if it has ended.
    ///
    /// # Errors
    /// When the operating system does not tell.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, Error> {
        if self.status.is_none() {
            self.status = self.child.try_wait().map_err(|error| Error::Start {
                command: format!("wait for {}", self.name),
                error,
            })?;
        }
        Ok(self.status)
    }

    /// Waits until the log has a whole line that starts with `prefix`, and returns it.
    ///
    /// # Errors
    /// When the program ends before, or the time is over; both show the log's last lines.
    pub fn wait_line(&mut self, prefix: &str, limit: Duration) -> Result<String, Error> {
        let (name, log) = (self.name.clone(), self.log.clone());
        poll(
            || format!("{name} to print \"{prefix}\"; its last lines:\n{}", tail(&log)),
            limit,
            || {
                // The status first: what a program prints before it ends is in the log then.
                let status = self.try_wait()?;
                let text = read(&self.log, SeekFrom::Start(0));
                let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
                if let Some(line) = lines.find(|line| line.starts_with(prefix)) {
                    return Ok(Some(line.trim_end().to_owned()));
                }
                match status {
                    Some(status) => Err(self.ended(status)),
                    None => Ok(None),
                }
            },
        )
    }

    /// Waits for the program to end.
    ///
    /// # Errors
    /// When it fails, or the time is over; both show the log's last lines.
    pub fn wait(&mut self, limit: Duration) -> Result<(), Error> {
        let (name, log) = (self.name.clone(), self.log.clone());
        let hangs = || format!("{name} to end; its last lines:\n{}", tail(&log));
        let status = poll(hangs, limit, || self.try_wait())?;
        if status.success() {
            Ok(())
        } else {
            Err(self.ended(status))
        }
    }

    /// Asks the program to end (SIGTERM).
    ///
    /// # Errors
    /// When the signal cannot be sent; not if it has already ended.
    pub fn terminate(&mut self) -> Result<(), Error> {
        self.signal(libc::SIGTERM)
    }

    /// Asks the program to read its configuration again (SIGHUP).
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub fn reload(&mut self) -> Result<(), Error> {
        self.signal(libc::SIGHUP)
    }

    /// Halts the program (SIGSTOP), wherever it is, until [`Process::resume`].
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub fn halt(&mut self) -> Result<(), Error> {
        self.signal(libc::SIGSTOP)
    }

    /// Lets a halted program go on (SIGCONT).
    ///
    /// # Errors
    /// As [`Process::terminate`].
    pub fn resume(&mut self) -> Result<(), Error> {
        self.signal(libc::SIGCONT)
    }

    fn signal(&mut self, signal: i32) -> Result<(), Error> {
        // Once reaped, the pid may be someone else's.
        if self.try_wait()?.is_some() {
            return Ok(());
        }
        sys::signal(self.child.id(), signal).map_err(|error| Error::Start {
            command: format!("signal {}", self.name),
            error,
        })
    }

    /// Its pid.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The error for having ended, with the last lines of the log.
    pub(super) fn ended(&self, status: ExitStatus) -> Error {
        Error::Ended {
            what: self.name.clone(),
            status,
            log: tail(&self.log),
        }
    }

    /// The last lines of the log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if it has already been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// At most [`LOOK`] bytes of a file as text; why there is none, if there is none.
fn read(path: &Path, from: SeekFrom) -> String {
    let read = || {
        let mut file = File::open(path)?;
        file.seek(from)?;
        let mut bytes = Vec::new();
        file.take(LOOK).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_or_else(
        |error: io::Error| format!("(no log: {error})"),
        |bytes| String::from_utf8_lossy(&bytes).into_owned(),
    )
}

fn tail(path: &Path) -> String {
    let length = path.metadata().map_or(0, |m| m.len());
    let text = read(path, SeekFrom::Start(length.saturating_sub(LOOK)));
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "  (nothing)".to_owned();
    }
    let last = &lines[lines.len().saturating_sub(TAIL)..];
    last.iter().map(|line| format!("  {line}\n")).collect()
}
