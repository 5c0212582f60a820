//! FIFOs and pipes that are opened, read and written without waiting for ever.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::Mode;

/// How often a wait looks whether it shall stop.
const STEP: Duration = Duration::from_millis(50);
/// How long a reader may take nothing once the engine wants to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the FIFO unless it is there.
fn make(path: &Path) -> io::Result<()> {
    match nix::unistd::mkfifo(path, Mode::from_bits_truncate(0o600)) {
        Ok(()) => Ok(()),
        Err(Errno::EEXIST) if std::fs::metadata(path)?.file_type().is_fifo() => Ok(()),
        Err(Errno::EEXIST) => Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            format!("{} exists and is no FIFO; use `file`, or remove it", path.display()),
        )),
        Err(error) => Err(error.into()),
    }
}

/// Opens the FIFO for reading and waits for a writer. `None` when `stop` was set first.
///
/// # Errors
/// When the path cannot be made or opened.
pub(super) fn open_read(path: &Path, stop: &AtomicBool) -> io::Result<Option<File>> {
    make(path)?;
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    // Readable or hung up: someone has opened the other end since.
    while !wait(&file, PollFlags::POLLIN)? {
        if stop.load(Ordering::Relaxed) {
            return Ok(None);
        }
    }
    Ok(Some(file))
}

/// Opens the FIFO for writing, non-blocking, and waits for a reader. `None` when `stop` was set
/// first.
///
/// # Errors
/// When the path cannot be made or opened.
pub(super) fn open_write(path: &Path, stop: &AtomicBool) -> io::Result<Option<File>> {
    make(path)?;
    loop {
        match OpenOptions::new()
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
        {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => {
                if stop.load(Ordering::Relaxed) {
                    return Ok(None);
                }
                std::thread::sleep(STEP);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits a short while until `file` is ready.
fn wait(file: &impl AsFd, flags: PollFlags) -> io::Result<bool> {
    let mut fds = [PollFd::new(file.as_fd(), flags)];
    match poll(&mut fds, PollTimeout::try_from(STEP).unwrap_or(PollTimeout::ZERO)) {
        Ok(n) => Ok(n > 0),
        Err(Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Reads, waiting for bytes, until the other end is closed or `stop` is set.
pub(super) struct Patient<'a, F> {
    pub(super) file: F,
    pub(super) stop: &'a AtomicBool,
}

impl<F: io::Read + AsFd> io::Read for Patient<'_, F> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Ok(0);
            }
            if !wait(&self.file, PollFlags::POLLIN)? {
                continue;
            }
            match self.file.read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
        }
    }
}

/// Makes writes to a pipe return at once when it is full.
pub(super) fn set_nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_truncate(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// The standard output. Its flags are shared with whoever has it too, such as the shell, so it stays
/// as it is: what a pipe is sure to take is written once there is room, and never waited for.
pub(super) struct StandardOutput {
    file: File,
    /// Bytes to write at once.
    most: usize,
}

impl StandardOutput {
    /// # Errors
    /// When there is none.
    pub(super) fn open() -> io::Result<StandardOutput> {
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        // A pipe that is writable has room for this much. Files never wait for a reader.
        let most = if file.metadata()?.is_file() {
            usize::MAX
        } else {
            nix::libc::PIPE_BUF
        };
        Ok(StandardOutput { file, most })
    }
}

impl AsFd for StandardOutput {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl io::Write for StandardOutput {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if !wait(&self.file, PollFlags::POLLOUT)? {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        self.file.write(&buf[..buf.len().min(self.most)])
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes to a non-blocking pipe and waits for its reader: as long as it takes, but once `stop` is
/// set at most [`PATIENCE`] for each write.
pub(super) struct PatientWriter<F> {
    pipe: F,
    stop: Arc<AtomicBool>,
    /// Its reader had its time: nothing is waited for any more.
    given_up: bool,
}

impl<F> PatientWriter<F> {
    pub(super) fn new(pipe: F, stop: &Arc<AtomicBool>) -> PatientWriter<F> {
        PatientWriter {
            pipe,
            stop: Arc::clone(stop),
            given_up: false,
        }
    }
}

impl<F: io::Write + AsFd> io::Write for PatientWriter<F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut stopped: Option<Instant> = None;
        loop {
            match self.pipe.write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.stop.load(Ordering::Relaxed) {
                let since = stopped.get_or_insert_with(Instant::now);
                self.given_up |= since.elapsed() >= PATIENCE;
            }
            if self.given_up {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("its reader took nothing for {} s at the end", PATIENCE.as_secs()),
                ));
            }
            // Writable, or the reader is gone, which the next write says.
            wait(&self.pipe, PollFlags::POLLOUT)?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
