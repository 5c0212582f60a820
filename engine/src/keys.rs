//! Files of keys: how they are read and written, and who notices that they have changed.
//!
//! A file holds the keys of a stream, one a line: an id from 0 to 255 and 64 hexadecimal digits.
//! The first seals, all open. A file of exactly 32 bytes is one raw key with id 0.

use std::fmt::Write as _;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use seqcast_proto::seal::{KEY_BYTES, Key, KeyRing, MAX_KEYS};
use thiserror::Error;

use crate::log;

/// Why a file of keys cannot be used.
#[derive(Debug, Error)]
pub enum KeyError {
    /// The file cannot be read or written.
    #[error("key file {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others than its owner can read the file.
    #[error(
        "key file {path} can be used by others (mode {mode:04o}): run `chmod 600 {path}`, and change the key if others may have read it"
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file is not as it should be.
    #[error("key file {path}: {message}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
}

/// One key of a file.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// The number that frames name it by.
    pub id: u8,
    /// The key.
    pub secret: [u8; KEY_BYTES],
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Entry {
    /// A key from the system's source of random numbers.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn random(id: u8) -> io::Result<Entry> {
        let mut secret = [0; KEY_BYTES];
        File::open("/dev/urandom")?.read_exact(&mut secret)?;
        Ok(Entry { id, secret })
    }
}

/// Reads the keys of a file that nobody but its owner can read.
///
/// # Errors
/// Names the file, what is wrong with it and the remedy.
pub fn read(path: &Path) -> Result<Vec<Entry>, KeyError> {
    let failed = |source| KeyError::Io {
        path: path.into(),
        source,
    };
    let mut file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.mode() & 0o077 != 0 {
        return Err(KeyError::Exposed {
            path: path.into(),
            mode: metadata.mode() & 0o7777,
        });
    }
    let mut bytes = Vec::new();
    (&mut file).take(1 << 16).read_to_end(&mut bytes).map_err(failed)?;
    parse(&bytes).map_err(|message| KeyError::Malformed {
        path: path.into(),
        message,
    })
}

/// The keys of a file as the protocol takes them.
///
/// # Errors
/// As for [`read`].
pub fn read_ring(path: &Path) -> Result<KeyRing, KeyError> {
    let keys = read(path)?.iter().map(|e| Key::new(e.id, &e.secret)).collect();
    KeyRing::new(keys).ok_or_else(|| KeyError::Malformed {
        path: path.into(),
        message: "no usable set of keys".into(),
    })
}

fn parse(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    if let Ok(secret) = bytes.try_into() {
        return Ok(vec![Entry { id: 0, secret }]);
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|_| format!("neither {KEY_BYTES} raw bytes nor text: make one with `seqcast key new`"))?;
    let mut keys: Vec<Entry> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let number = number + 1;
        let entry = parse_line(line).ok_or_else(|| {
            format!(
                "line {number}: write an id from 0 to 255 and {} hexadecimal digits",
                2 * KEY_BYTES
            )
        })?;
        if keys.iter().any(|k| k.id == entry.id) {
            return Err(format!("line {number}: id {} is there twice", entry.id));
        }
        keys.push(entry);
    }
    match keys.len() {
        0 => Err("no key in it: make one with `seqcast key new`".into()),
        n if n > MAX_KEYS => Err(format!("{n} keys; at most {MAX_KEYS} are possible")),
        _ => Ok(keys),
    }
}

fn parse_line(line: &str) -> Option<Entry> {
    let mut words = line.split_whitespace();
    let id = words.next()?.parse().ok()?;
    let digits = words.next().filter(|d| d.len() == 2 * KEY_BYTES && d.is_ascii())?;
    let mut secret = [0; KEY_BYTES];
    for (byte, pair) in secret.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    words.next().is_none().then_some(Entry { id, secret })
}

/// Writes a file that only its owner can read, in one step: who reads it sees the old keys or the
/// new ones. `replace` says whether one may be there already.
///
/// # Errors
/// Names the file and what the system said.
pub fn write(path: &Path, keys: &[Entry], replace: bool) -> Result<(), KeyError> {
    let failed = |source| KeyError::Io {
        path: path.into(),
        source,
    };
    let mut text = String::from("# The first key seals, all open. Keep this file from others.\n");
    for key in keys {
        let _ = write!(text, "{} ", key.id);
        key.secret.iter().for_each(|b| {
            let _ = write!(text, "{b:02x}");
        });
        text.push('\n');
    }
    let mut options = File::options();
    options.write(true).create_new(true).mode(0o600);
    let draft = if replace {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        path.with_file_name(name)
    } else {
        path.into()
    };
    let mut file = options.open(&draft).map_err(failed)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
    let named = written.and_then(|()| if replace { fs::rename(&draft, path) } else { Ok(()) });
    named.map_err(|error| {
        let _ = fs::remove_file(&draft);
        failed(error)
    })
}

static RELOADS: AtomicU64 = AtomicU64::new(0);

/// Lets every engine of this process read its keys again within a second, as after SIGHUP. May be
/// called in a signal handler.
pub fn request_reload() {
    RELOADS.fetch_add(1, Ordering::Relaxed);
}

/// How often that was asked for, by anybody.
#[must_use]
pub fn reload_requests() -> u64 {
    RELOADS.load(Ordering::Relaxed)
}

/// How often files are looked at.
const LOOK: Duration = Duration::from_millis(250);

/// What tells a file from the one that was read.
type Identity = (u64, u64, i64, i64, u64, u32);

fn identity(path: &Path) -> Option<Identity> {
    let of = |m: Metadata| (m.dev(), m.ino(), m.mtime(), m.mtime_nsec(), m.size(), m.mode());
    fs::metadata(path).ok().map(of)
}

/// A thread that reads files of keys again when they change.
#[derive(Debug)]
pub(crate) struct Watch {
    shared: Arc<Shared>,
    seen: u64,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Counts rings that were read.
    news: AtomicU64,
    stop: AtomicBool,
    rings: Mutex<Vec<Option<KeyRing>>>,
}

impl Shared {
    fn rings(&self) -> MutexGuard<'_, Vec<Option<KeyRing>>> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watch {
    /// Reads the files now, and again when they change. `name` is for messages.
    ///
    /// # Errors
    /// As for [`read`]; or when no thread can be started.
    pub(crate) fn start(name: &str, paths: Vec<PathBuf>) -> anyhow::Result<(Watch, Vec<KeyRing>)> {
        let before: Vec<_> = paths.iter().map(|p| identity(p)).collect();
        let rings = paths.iter().map(|p| read_ring(p)).collect::<Result<Vec<_>, _>>()?;
        let shared = Arc::new(Shared {
            news: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            rings: Mutex::new(vec![None; paths.len()]),
        });
        let (name, theirs) = (name.to_owned(), Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("keys".into())
            .spawn(move || look(&name, &paths, before, &theirs))?;
        let watch = Watch {
            shared,
            seen: 0,
            thread: Some(thread),
        };
        Ok((watch, rings))
    }

    /// Whether files were read again since [`Watch::take`].
    #[inline]
    pub(crate) fn has_news(&self) -> bool {
        self.shared.news.load(Ordering::Acquire) != self.seen
    }

    /// Hands over the keys of files that were read again, by the files' place.
    pub(crate) fn take(&mut self, mut each: impl FnMut(usize, KeyRing)) {
        self.seen = self.shared.news.load(Ordering::Acquire);
        for (at, ring) in self.shared.rings().iter_mut().enumerate() {
            if let Some(ring) = ring.take() {
                each(at, ring);
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

fn look(name: &str, paths: &[PathBuf], mut known: Vec<Option<Identity>>, shared: &Shared) {
    let mut reloads = RELOADS.load(Ordering::Relaxed);
    while !shared.stop.load(Ordering::Relaxed) {
        thread::park_timeout(LOOK);
        let requested = RELOADS.load(Ordering::Relaxed);
        let forced = requested != reloads;
        reloads = requested;
        for (at, path) in paths.iter().enumerate() {
            let present = identity(path);
            if present == known[at] && !forced {
                continue;
            }
            known[at] = present;
            match read_ring(path) {
                Ok(ring) => {
                    let ids: Vec<String> = ring.ids().map(|id| id.to_string()).collect();
                    let ids = ids.join(", ");
                    tracing::info!(
                        target: log::TRUST, engine = name, file = %path.display(), keys = ids,
                        "{}: keys {ids} are in force, the first seals", path.display()
                    );
                    shared.rings()[at] = Some(ring);
                    shared.news.fetch_add(1, Ordering::Release);
                }
                Err(error) => tracing::error!(
                    target: log::TRUST, engine = name, file = %path.display(),
                    "{error}; the keys that were read before stay in force"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn entry(id: u8) -> Entry {
        Entry {
            id,
            secret: [id; KEY_BYTES],
        }
    }

    #[test]
    fn what_is_written_is_read_and_only_by_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, &[entry(7)], false).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert!(write(&path, &[entry(8)], false).is_err(), "a key is never overwritten");
        write(&path, &[entry(8), entry(7)], true).unwrap();
        assert_eq!(read(&path).unwrap(), [entry(8), entry(7)]);
        assert_eq!(read_ring(&path).unwrap().ids().collect::<Vec<_>>(), [8, 7]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);

        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let message = read(&path).unwrap_err().to_string();
        assert!(message.contains("0640") && message.contains("chmod 600"), "{message}");
    }

    #[test]
    fn raw_keys_and_mistakes() {
        assert_eq!(
            parse(&[5; KEY_BYTES]).unwrap(),
            [Entry {
                id: 0,
                secret: [5; KEY_BYTES]
            }]
        );
        let hex = "ab".repeat(KEY_BYTES);
        assert_eq!(
            parse(format!("# mine\n\n 3 {hex} # new\n").as_bytes()).unwrap()[0].id,
            3
        );
        let many: String = (0..=MAX_KEYS).map(|id| format!("{id} {hex}\n")).collect();
        for (text, words) in [
            (String::new(), "no key in it"),
            (format!("1 {hex}00"), "line 1"),
            (format!("1 {hex}\n256 {hex}"), "line 2"),
            (format!("1 {}", "zz".repeat(KEY_BYTES)), "64 hexadecimal digits"),
            (format!("1 {hex}\n1 {hex}"), "twice"),
            (many, "at most 16"),
        ] {
            let message = parse(text.as_bytes()).unwrap_err();
            assert!(message.contains(words), "{message}");
        }
        assert!(parse(&[0xff; 40]).unwrap_err().contains("seqcast key new"));
    }

    #[test]
    fn changes_are_noticed_and_mistakes_change_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        write(&path, &[entry(1)], false).unwrap();
        let (mut watch, rings) = Watch::start("test", vec![path.clone()]).unwrap();
        assert_eq!(rings[0].ids().collect::<Vec<_>>(), [1]);
        assert!(!watch.has_news());
        write(&path, &[entry(2), entry(1)], true).unwrap();
        let mut ids = Vec::new();
        while ids.is_empty() {
            thread::park_timeout(Duration::from_millis(1));
            watch.take(|_, ring| ids = ring.ids().collect());
        }
        assert_eq!(ids, [2, 1]);
        assert!(!watch.has_news());
    }
}
