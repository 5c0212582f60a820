//! What the archive needs of a disk, and no more.
//!
//! Recovery, index and segments sit above this one trait, so that the same code runs on files,
//! in plain memory, and on a storage that plays crashes, power losses and full disks.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::path::PathBuf;

use crate::mapping::{Mapping, Pages};

mod faulty;
mod files;
mod memory;

pub use faulty::{Crash, Faulty};
pub use files::Files;
pub(crate) use files::{BOOT_ID, LOCK, UNFINISHED, boot_id, list};
pub use memory::Memory;

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The name, without the directory.
    pub name: String,
    /// Length in bytes; `None` for a directory.
    pub len: Option<u64>,
}

/// Where an archive lives. Paths are relative to its root, with `/` between the parts.
pub trait Storage: Send + Sync + Debug {
    /// The names in a directory; `""` is the root.
    ///
    /// # Errors
    /// When it cannot be read.
    fn list(&self, dir: &str) -> io::Result<Vec<Found>>;

    /// Makes a directory; the one above exists.
    ///
    /// # Errors
    /// When it exists or the disk is full.
    fn create_dir(&self, dir: &str) -> io::Result<()>;

    /// A whole small file.
    ///
    /// # Errors
    /// When there is none.
    fn read(&self, path: &str) -> io::Result<Vec<u8>>;

    /// Puts a small file in place as a whole: at any later time it is the old one or the new one.
    /// With `durable` a loss of power does not undo it once this returns; without, it may leave
    /// the file empty.
    ///
    /// # Errors
    /// When the disk is full; the old file is still there then.
    fn replace(&self, path: &str, bytes: &[u8], durable: bool) -> io::Result<()>;

    /// Writes over the start of a small file, or makes it, for whoever looks into the directory beside this
    /// process. A crash may leave anything of it.
    ///
    /// # Errors
    /// When the disk is full or refuses.
    fn inform(&self, path: &str, bytes: &[u8]) -> io::Result<()>;

    /// Makes a zeroed file with every byte reserved and maps it. It appears whole or not at all.
    ///
    /// With `large`, its memory is had in large pieces, in half the time. Such a piece also goes to disk
    /// as a whole, and is write-protected as a whole when it does: not for what is synced often.
    ///
    /// # Errors
    /// [`io::ErrorKind::StorageFull`] when the disk is full.
    fn create(&self, path: &str, len: usize, large: bool) -> io::Result<Mapping>;

    /// Has the memory of a file that was made without `large`, and never written to, in large pieces all the same.
    ///
    /// # Errors
    /// When the disk refuses.
    fn make_pages(&self, _path: &str, _len: usize) -> io::Result<()> {
        Ok(())
    }

    /// Maps a whole file, to read and write. The caller keeps one mapping of a file at a time.
    ///
    /// # Errors
    /// When there is none or it is empty.
    fn map(&self, path: &str) -> io::Result<Mapping>;

    /// Renames a file or a directory, over what was there.
    ///
    /// # Errors
    /// When it does not exist.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file, or a directory with everything in it.
    ///
    /// # Errors
    /// When it does not exist.
    fn remove(&self, path: &str) -> io::Result<()>;

    /// Writes part of a mapped file to disk and waits for it. Its whole pages may leave the page
    /// table: the next access to them is slow once.
    ///
    /// # Errors
    /// When the disk does. What was to be written is then in doubt for good.
    fn sync(&self, pages: &Pages, range: Range<usize>) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// When the disk does.
    fn sync_dir(&self, dir: &str) -> io::Result<()>;

    /// A value that changes when unsynced writes may have been lost: the machine's start.
    fn epoch(&self) -> [u8; 16];

    /// A number that is hard to guess and not returned before.
    ///
    /// # Errors
    /// When the source of randomness fails.
    fn random(&self) -> io::Result<u64>;

    /// The path as people know it, for messages.
    fn display(&self, path: &str) -> PathBuf;
}
