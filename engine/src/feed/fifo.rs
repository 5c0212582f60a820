//! FIFOs and pipes that are opened, read and written without waiting for ever.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
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

/// Writes to a non-blocking pipe and waits for its reader: as long as it takes, but once `stop` is
/// set at most [`PATIENCE`] for each write.
pub(super) struct PatientWriter<F> {
    pub(super) pipe: F,
    pub(super) stop: Arc<AtomicBool>,
}

impl<F: io::Write + AsFd> io::Write for PatientWriter<F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let mut stopped = None;
        loop {
            match self.pipe.write(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                other => return other,
            }
            if self.stop.load(Ordering::Relaxed) && stopped.get_or_insert_with(Instant::now).elapsed() >= PATIENCE {
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
