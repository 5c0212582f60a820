//! A directory of files.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{Found, Storage};
use crate::Error;
use crate::mapping::{self, Mapping, Pages};

/// The file that a writer holds locked while the archive is open.
pub(crate) const LOCK: &str = "lock";
/// What files are filled with that are to have their memory in large pieces.
static ZEROS: [u8; 256 << 10] = [0; 256 << 10];
/// What unfinished files are called until they are whole.
pub(crate) const UNFINISHED: &str = ".tmp";

/// Files below one directory, locked against a second writer for as long as this lives.
#[derive(Debug)]
pub struct Files {
    root: PathBuf,
    epoch: [u8; 16],
    lock: File,
}

impl Drop for Files {
    fn drop(&mut self) {
        // Closing is not enough: a child that another thread starts just now holds a copy of the
        // descriptor until it runs.
        let _ = self.lock.unlock();
    }
}

impl Files {
    /// Opens or makes the directory and locks it.
    ///
    /// # Errors
    /// [`Error::Locked`] when another process has it open, [`Error::Io`] when it cannot be made.
    pub fn open(root: &Path) -> Result<Files, Error> {
        fs::create_dir_all(root).map_err(Error::io("make directory", root))?;
        let path = root.join(LOCK);
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io("open", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _ = lock.read_to_string(&mut holder);
                return Err(Error::Locked {
                    dir: root.to_path_buf(),
                    pid: holder.trim().parse().ok(),
                });
            }
            Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path)(e)),
        }
        // The number is a courtesy for the error above: failing to leave it (a full disk) is not
        // a reason to refuse.
        let _ = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| write!(lock, "{}", std::process::id()));
        Ok(Files {
            root: root.to_path_buf(),
            epoch: boot_id().map_err(Error::io("read", Path::new(BOOT_ID)))?,
            lock,
        })
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Builds a file under a passing name and moves it to its own when `fill` is done.
    fn build<T>(&self, path: &str, fill: impl FnOnce(&mut File) -> io::Result<T>) -> io::Result<T> {
        let passing = self.path(&format!("{path}{UNFINISHED}"));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&passing)?;
        let made = fill(&mut file).and_then(|made| {
            fs::rename(&passing, self.path(path))?;
            Ok(made)
        });
        if made.is_err() {
            let _ = fs::remove_file(&passing);
        }
        made
    }
}

/// Where the kernel says which start of the machine this is.
pub(crate) const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This start of the machine.
pub(crate) fn boot_id() -> io::Result<[u8; 16]> {
    let text = fs::read_to_string(BOOT_ID)?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))
}

/// The names in a directory.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<Found>> {
    fs::read_dir(dir)?
        .filter_map(|entry| {
            let found = entry.and_then(|entry| {
                let metadata = entry.metadata()?;
                Ok(Found {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    len: (!metadata.is_dir()).then_some(metadata.len()),
                })
            });
            match found {
                // A writer beside has renamed or removed it meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                found => Some(found),
            }
        })
        .collect()
}

/// A mapping gets its pages one by one, a write as large as it is itself.
fn write_zeros(file: &File, len: usize) -> io::Result<()> {
    (0..len)
        .step_by(ZEROS.len())
        .try_for_each(|at| file.write_all_at(&ZEROS[..ZEROS.len().min(len - at)], at as u64))
}

impl Storage for Files {
    fn list(&self, dir: &str) -> io::Result<Vec<Found>> {
        list(&self.path(dir))
    }

    fn create_dir(&self, dir: &str) -> io::Result<()> {
        fs::create_dir(self.path(dir))
    }

    fn read(&self, path: &str) -> io::Result<Vec<u8>> {
        fs::read(self.path(path))
    }

    fn replace(&self, path: &str, bytes: &[u8], durable: bool) -> io::Result<()> {
        self.build(path, |file| {
            file.write_all(bytes)?;
            if durable { file.sync_all() } else { Ok(()) }
        })?;
        if durable {
            let dir = path.rsplit_once('/').map_or("", |(dir, _)| dir);
            self.sync_dir(dir)?;
        }
        Ok(())
    }

    fn inform(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(self.path(path))?;
        file.write_all_at(bytes, 0)
    }

    fn create(&self, path: &str, len: usize, large: bool) -> io::Result<Mapping> {
        self.build(path, |file| {
            mapping::reserve(file, len as u64)?;
            if large {
                write_zeros(file, len)?;
            }
            Mapping::file(file, len)
        })
    }

    fn make_pages(&self, path: &str, len: usize) -> io::Result<()> {
        let file = OpenOptions::new().write(true).open(self.path(path))?;
        write_zeros(&file, len)
    }

    fn map(&self, path: &str) -> io::Result<Mapping> {
        let file = OpenOptions::new().read(true).write(true).open(self.path(path))?;
        let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        Mapping::file(&file, len)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        let path = self.path(path);
        if fs::symlink_metadata(&path)?.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        }
    }

    fn sync(&self, pages: &Pages, range: Range<usize>) -> io::Result<()> {
        pages.let_go(range.clone())?;
        pages.sync(range)
    }

    fn sync_dir(&self, dir: &str) -> io::Result<()> {
        File::open(self.path(dir))?.sync_all()
    }

    fn epoch(&self) -> [u8; 16] {
        self.epoch
    }

    fn random(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn display(&self, path: &str) -> PathBuf {
        self.path(path)
    }
}
