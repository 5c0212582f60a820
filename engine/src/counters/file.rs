//! Who has a file of counters: one engine, until it ends.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::fcntl::{AT_FDCWD, FallocateFlags, Flock, FlockArg, RenameFlags, fallocate, renameat2};
use thiserror::Error;

use super::memory::Memory;
use super::read::{Owner, owner};

/// Where engines have their counters unless they are told otherwise.
pub const DIRECTORY: &str = "/run/seqcast";
/// What the names of these files end with.
pub(super) const EXTENSION: &str = "counters";

/// Why an engine has no counters that others can read.
#[derive(Debug, Error)]
pub enum WriteError {
    /// The file cannot be made.
    #[error("cannot keep counters in {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Another engine has its counters there.
    #[error(
        "counters {path} belong to {by}, which is running: name another file in `counters` of one of the two, or leave the key out"
    )]
    InUse {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        by: String,
    },
    /// Something else has that name.
    #[error(
        "{path} is there and holds no counters, so it is not replaced: remove it, or name another file in `counters`"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
    },
}

/// A file that belongs to this engine alone, and is removed when this is dropped.
///
/// The owner holds a lock on it as long as it lives, which the kernel takes from a process that is killed;
/// who wants the name takes the lock before it looks and removes.
#[derive(Debug)]
pub(super) struct Owned {
    path: PathBuf,
    file: Flock<File>,
}

impl Owned {
    /// Makes the file with room for so many words, which `begin` fills before others can see it. One that
    /// an engine has left that is gone is replaced.
    pub(super) fn create(path: &Path, words: usize, begin: impl Fn(&Memory)) -> Result<(Memory, Owned), WriteError> {
        static DRAFTS: AtomicU32 = AtomicU32::new(0);
        let failed = |source: io::Error| WriteError::Io {
            path: path.to_owned(),
            source,
        };
        let number = DRAFTS.fetch_add(1, Ordering::Relaxed);
        let draft = path.with_extension(format!("{}-{number}.new", std::process::id()));
        let make = || {
            let mut options = File::options();
            let file = options
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(&draft)?;
            // All of it, so that a full disk is met now and not in the mapping.
            fallocate(file.as_fd(), FallocateFlags::empty(), 0, (words * 8) as i64)?;
            let memory = Memory::of(&file, words)?;
            begin(&memory);
            let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error)?;
            Ok((memory, file))
        };
        let put_in_place = || {
            loop {
                match renameat2(AT_FDCWD, &draft, AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
                    Err(nix::Error::EEXIST) => clear(path)?,
                    done => return done.map_err(|error| failed(error.into())),
                }
            }
        };
        let made = make().map_err(failed).and_then(|made| put_in_place().map(|()| made));
        match made {
            Ok((memory, file)) => {
                let path = path.to_owned();
                Ok((memory, Owned { path, file }))
            }
            Err(error) => {
                let _ = fs::remove_file(&draft);
                Err(error)
            }
        }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // The lock goes after the name, so that nobody takes the file for one that was left.
        if is_at(&self.file, &self.path) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether a path leads to this file, and not to one that has taken its place.
fn is_at(file: &File, path: &Path) -> bool {
    let identity = |m: fs::Metadata| (m.dev(), m.ino());
    let (this, there) = (file.metadata().map(identity), fs::symlink_metadata(path).map(identity));
    matches!((this, there), (Ok(this), Ok(there)) if this == there)
}

/// Removes what an engine that is gone has left at a path.
fn clear(path: &Path) -> Result<(), WriteError> {
    let io = |source| WriteError::Io {
        path: path.to_owned(),
        source,
    };
    let in_use = |by| WriteError::InUse {
        path: path.to_owned(),
        by,
    };
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened.map_err(io)?,
    };
    let owner = owner(&file).map_err(io)?;
    let by = match &owner {
        Owner::Process { pid, .. } => format!("process {pid}"),
        Owner::Nobody | Owner::Foreign => "an engine".to_owned(),
    };
    match (Flock::lock(file, FlockArg::LockExclusiveNonblock), owner) {
        (Err((_, nix::Error::EWOULDBLOCK)), _) | (Ok(_), Owner::Process { alive: true, .. }) => Err(in_use(by)),
        (Err((_, error)), _) => Err(io(error.into())),
        (Ok(_), Owner::Foreign) => Err(WriteError::Foreign { path: path.to_owned() }),
        // Another one may have been as quick, and have its own file there now.
        (Ok(file), _) if is_at(&file, path) => fs::remove_file(path).map_err(io),
        (Ok(_), _) => Ok(()),
    }
}

/// Removes what engines that are gone have left in a directory.
pub(super) fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension() == Some(OsStr::new(EXTENSION)) {
            // What is in use, or no engine's, stays; what cannot be removed is in nobody's way.
            let _ = clear(&path);
        }
    }
}
