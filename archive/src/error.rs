//! What can go wrong, in words that name the thing and the remedy.

use std::io;
use std::path::{Path, PathBuf};

use seqcast_proto::seq::{Session, Stream};

use crate::FORMAT_VERSION;

/// Why an archive cannot be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On which file or directory.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process has the archive open for writing.
    #[error(
        "archive {} is in use by {}: stop it, or use another directory",
        dir.display(),
        pid.map_or("another process".into(), |p| format!("process {p}"))
    )]
    Locked {
        /// The archive's directory.
        dir: PathBuf,
        /// The other process, if it left its number.
        pid: Option<u32>,
    },
    /// The file was not written by this program.
    #[error(
        "{} is not a Seqcast archive file: move it away, or use another directory",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file has a format that this program does not know.
    #[error(
        "{} has archive format {found}, this program knows {FORMAT_VERSION}: use the version that \
         wrote it, or another directory",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// The archive belongs to another stream.
    #[error(
        "{} belongs to stream {found}, not {wanted}: give each stream its own directory",
        path.display()
    )]
    Stream {
        /// The file.
        path: PathBuf,
        /// The stream it belongs to.
        found: Stream,
        /// The stream that was asked for.
        wanted: Stream,
    },
    /// The file is ours but its contents are not whole.
    #[error("{} is damaged ({what}): {remedy}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// The session exists already.
    #[error("session {0} exists already in this archive: sessions are never reused")]
    Exists(Session),
    /// No such session.
    #[error("session {0} is not in this archive")]
    Unknown(Session),
    /// The session was closed with another last number.
    #[error("session {session} was closed before at another number: {was}, now {now}")]
    Closed {
        /// The session.
        session: Session,
        /// Its recorded last number.
        was: u32,
        /// The number now given.
        now: u32,
    },
    /// An option or argument is out of range.
    #[error("archive: {0}")]
    Invalid(String),
}

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Io {
            what,
            path: path.to_path_buf(),
            source,
        }
    }
}

/// Why a record was not appended. Nothing of it was written.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The session's bound is reached or the disk is full. Later appends work again once
    /// [`crate::SessionLog::release_below`] or the disk gives space back.
    #[error("the archive is full (its bound or its disk)")]
    Full,
    /// The log holds at least one of the numbers already.
    #[error("the archive holds at least one of these numbers already")]
    Duplicate,
    /// At least one of the numbers was declared lost.
    #[error("at least one of these numbers was declared lost")]
    Lost,
    /// At least one of the numbers lies below what was released.
    #[error("at least one of these numbers was released already")]
    Released,
    /// The session was closed below the record's last number.
    #[error("the session ends below these numbers")]
    AfterEnd,
    /// No messages, number 0, or numbers past the last that a session may use.
    #[error("not a range of sequence numbers")]
    BadRange,
    /// The record does not fit a segment.
    #[error("a block of {size} bytes does not fit a segment, which takes {limit}")]
    TooLarge {
        /// The block's size in bytes.
        size: usize,
        /// The most a segment takes, in bytes.
        limit: usize,
    },
    /// The stored numbers are in too many pieces; fill gaps first.
    #[error("the stored numbers are in more than {} pieces", crate::MAX_RANGES)]
    Fragmented,
    /// The operating system refused; the log takes nothing more until it is opened again when a
    /// write to disk failed.
    #[error("the archive cannot write: {0}")]
    Io(#[source] io::Error),
}

impl AppendError {
    pub(crate) fn from_io(error: io::Error) -> AppendError {
        if is_full(&error) {
            AppendError::Full
        } else {
            AppendError::Io(error)
        }
    }
}

/// Whether the error says that space ran out.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::OutOfMemory
    )
}

/// Whether the error says that the disk could not read.
pub(crate) fn is_unreadable(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EIO)
}

/// The same error again, without the text that only custom errors carry.
pub(crate) fn copy(error: &io::Error) -> io::Error {
    error
        .raw_os_error()
        .map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
