//! Where lines go, and who writes them.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use tracing::Level;

use super::lock;

/// Lines that wait for a slow reader.
const ROOM: usize = 16_384;
/// How long the end waits for such a reader.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between two looks at what was suppressed.
const LOOK: Duration = Duration::from_secs(1);

/// The file or standard error, and the thread that writes.
pub(super) struct Output {
    target: std::sync::Arc<Mutex<Target>>,
    writer: OnceLock<SyncSender<Job>>,
    /// Lines for which there was no room.
    dropped: std::sync::Arc<AtomicU64>,
}

enum Target {
    File(File),
    /// Whether the journal reads it, which takes the level from the head of a line.
    Stderr {
        journal: bool,
    },
}

enum Job {
    Line(Level, String),
    /// Something was suppressed.
    Look,
    /// Everything before is to be written.
    End(SyncSender<()>),
}

/// Opens a file to append to.
pub(super) fn open(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).mode(0o640).open(path);
    file.map_err(|error| io::Error::new(error.kind(), format!("log {}: {error}", path.display())))
}

impl Target {
    fn open(path: Option<&Path>) -> io::Result<Target> {
        Ok(match path {
            Some(path) => Target::File(open(path)?),
            None => Target::Stderr {
                journal: is_journal(std::env::var("JOURNAL_STREAM").ok().as_deref()),
            },
        })
    }

    /// What cannot be written is gone: there is nobody to tell.
    fn write(&mut self, level: Level, text: &str) {
        match self {
            Target::File(file) => {
                let _ = file.write_all(format!("{text}\n").as_bytes());
            }
            Target::Stderr { journal } => {
                let priority = if *journal { priority(level) } else { "" };
                let line: String = text.split('\n').map(|line| format!("{priority}{line}\n")).collect();
                let _ = io::stderr().lock().write_all(line.as_bytes());
            }
        }
    }
}

/// Whether the stream that the variable JOURNAL_STREAM names, `DEVICE:INODE`, is standard error.
fn is_journal(named: Option<&str>) -> bool {
    let Some(named) = named else { return false };
    nix::sys::stat::fstat(io::stderr().as_fd()).is_ok_and(|s| format!("{}:{}", s.st_dev, s.st_ino) == named)
}

/// As `sd-daemon(3)` and syslog have them.
fn priority(level: Level) -> &'static str {
    match level {
        Level::ERROR => "<3>",
        Level::WARN => "<4>",
        Level::INFO => "<6>",
        _ => "<7>",
    }
}

impl Output {
    pub(super) fn open(path: Option<&Path>) -> io::Result<Output> {
        Ok(Output {
            target: std::sync::Arc::new(Mutex::new(Target::open(path)?)),
            writer: OnceLock::new(),
            dropped: std::sync::Arc::default(),
        })
    }

    pub(super) fn reopen(&self, path: Option<&Path>) -> io::Result<()> {
        let target = Target::open(path)?;
        *lock(&self.target) = target;
        Ok(())
    }

    /// Starts the thread that writes; it calls `look` about each second while something was suppressed.
    pub(super) fn go_aside(&self, look: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
        let (sender, receiver) = sync_channel(ROOM);
        let (target, dropped) = (self.target.clone(), self.dropped.clone());
        std::thread::Builder::new()
            .name("log".into())
            .spawn(move || write_all(&receiver, &target, &dropped, look))?;
        // A second call has no effect but a thread that ends at once.
        let _ = self.writer.set(sender);
        Ok(())
    }

    pub(super) fn put(&self, level: Level, text: String) {
        let Some(writer) = self.writer.get() else {
            lock(&self.target).write(level, &text);
            return;
        };
        if let Err(TrySendError::Full(_)) = writer.try_send(Job::Line(level, text)) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something was suppressed, of which is to be told.
    pub(super) fn look(&self) {
        if let Some(writer) = self.writer.get() {
            // Without room the next one that is suppressed anew comes through.
            let _ = writer.try_send(Job::Look);
        }
    }

    pub(super) fn finish(&self) {
        let Some(writer) = self.writer.get() else { return };
        let (done, wait) = sync_channel(1);
        if writer.try_send(Job::End(done)).is_ok() {
            let _ = wait.recv_timeout(PATIENCE);
        }
    }
}

fn write_all(jobs: &Receiver<Job>, target: &Mutex<Target>, dropped: &AtomicU64, look: impl Fn() -> bool) {
    // Whether something was suppressed of which is to be told later.
    let mut owes = false;
    loop {
        let job = if owes {
            jobs.recv_timeout(LOOK)
        } else {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        };
        match job {
            Ok(Job::Line(level, text)) => lock(target).write(level, &text),
            Ok(Job::Look) => owes = true,
            Ok(Job::End(done)) => {
                let _ = done.try_send(());
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        if owes {
            owes = look();
        }
        match dropped.swap(0, Ordering::Relaxed) {
            0 => {}
            count => {
                let text = format!("{count} lines of the log are not here: their reader was too slow");
                lock(target).write(Level::WARN, &text);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_journal_is_known_by_its_inode() {
        assert!(!is_journal(None) && !is_journal(Some("")) && !is_journal(Some("8:1")));
        let stat = nix::sys::stat::fstat(io::stderr().as_fd()).unwrap();
        assert!(is_journal(Some(&format!("{}:{}", stat.st_dev, stat.st_ino))));
    }

    #[test]
    fn a_thread_writes_in_order_and_a_file_may_be_rotated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let output = Output::open(Some(&path)).unwrap();
        output.put(Level::INFO, "one".into());
        output.go_aside(|| false).unwrap();
        (0..100).for_each(|n| output.put(Level::WARN, n.to_string()));
        output.finish();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("one\n0\n1\n") && text.ends_with("\n99\n"), "{text}");
        let old = dir.path().join("log.1");
        std::fs::rename(&path, &old).unwrap();
        output.reopen(Some(&path)).unwrap();
        output.put(Level::INFO, "new".into());
        output.finish();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "new\n");
        assert!(output.reopen(Some(dir.path())).is_err(), "a directory");
    }
}
