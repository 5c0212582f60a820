//! The engine's side.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use nix::fcntl::{FallocateFlags, fallocate};
use seqcast_proto::time::{MILLIS, Nanos, Now, SECONDS};
use thiserror::Error;

use super::layout::{Describe, Description, Group, MAGIC, Number, Part, Values, word};
use super::memory::Memory;
use super::{Buckets, Histogram, read};

/// Where engines have their counters unless they are told otherwise.
pub const DIRECTORY: &str = "/run/seqcast";
/// What the names of these files end with.
pub(super) const EXTENSION: &str = "counters";
/// Peers that are named.
const PEERS: usize = 16;
/// Time between two writings.
const EVERY: Nanos = 100 * MILLIS;
/// Time between two looks at what costs system calls.
const SELDOM: Nanos = SECONDS;

/// Why an engine has no counters that others can read.
#[derive(Debug, Error)]
#[error("cannot keep counters in {path}")]
pub struct WriteError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// The file of an engine of this process that was told of none; nothing if it may have none there.
pub(crate) fn usual(engine: &str) -> Option<PathBuf> {
    /// Engines of this process: they may have one name.
    static ENGINES: AtomicU32 = AtomicU32::new(0);
    fs::create_dir_all(DIRECTORY).ok()?;
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    let name: String = engine.chars().map(plain).collect();
    let mut file = format!("{name}-{}", std::process::id());
    match ENGINES.fetch_add(1, Ordering::Relaxed) {
        0 => {}
        more => file += &format!("-{more}"),
    }
    Some(Path::new(DIRECTORY).join(file + "." + EXTENSION))
}

/// Lists what there will be before there is room for it.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    groups: Vec<Group>,
    words: usize,
}

impl Builder {
    fn group(&mut self, of: Part, values: Values, words: usize) -> usize {
        let at = self.words;
        self.groups.push(Group { of, at, values });
        self.words += words;
        at
    }

    /// Room for the numbers of `T`, in the order in which [`Writing::put`] gets them.
    pub(crate) fn numbers<T: Describe>(&mut self, of: Part) {
        let numbers = T::FIELDS.iter().map(Number::from).collect();
        self.group(of, Values::Numbers(numbers), T::FIELDS.len());
    }

    /// Room for peers with a count each.
    pub(crate) fn peers(&mut self, of: Part, name: &str, help: &str) {
        let (name, help, slots) = (name.to_owned(), help.to_owned(), PEERS);
        self.group(of, Values::Peers { name, help, slots }, 2 * slots);
    }

    /// Room for a histogram, which [`Counters::histogram`] gives out.
    pub(crate) fn histogram(&mut self, of: Part, name: &str, help: &str) -> usize {
        let (name, help) = (name.to_owned(), help.to_owned());
        let buckets = Buckets::COUNT;
        self.group(of, Values::Histogram { name, help, buckets }, buckets)
    }

    /// Makes the file, or memory of this process alone without one. Files of engines that are gone
    /// are removed from its directory.
    pub(crate) fn open(self, path: Option<&Path>, engine: &str, mode: &str) -> Result<Counters, WriteError> {
        let description = Description {
            engine: engine.to_owned(),
            mode: mode.to_owned(),
            groups: self.groups,
        };
        // It is made of text and numbers, which JSON has.
        let text = serde_json::to_vec(&description).unwrap_or_default();
        let values = word::HEADER + text.len().div_ceil(8);
        let words = values + self.words;
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| WriteError { path, source }
        };
        let (memory, file) = match path {
            Some(path) => {
                sweep(path.parent().unwrap_or(Path::new(".")));
                let memory = create(path, words).map_err(failed(path))?;
                (memory, Some(path.to_owned()))
            }
            None => (Memory::private(words).map_err(failed(Path::new("memory")))?, None),
        };
        let counters = Counters {
            memory,
            values,
            file,
            due: 0,
            seldom: 0,
        };
        counters.begin(&text, self.words);
        Ok(counters)
    }
}

fn create(path: &Path, words: usize) -> io::Result<Memory> {
    // One of the same name belongs to an engine that is gone, or to none at all.
    let draft = path.with_extension("new");
    let mut options = OpenOptions::new();
    let file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&draft)?;
    // All of it, so that a full disk is met now and not in the mapping.
    fallocate(file.as_fd(), FallocateFlags::empty(), 0, (words * 8) as i64)?;
    let memory = Memory::of(&file, words)?;
    fs::rename(&draft, path)?;
    Ok(memory)
}

/// Removes what engines that are gone have left.
fn sweep(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.extension() == Some(OsStr::new(EXTENSION)) && read::is_stale(&path) {
            let _ = fs::remove_file(path);
        }
    }
}

/// The counters of an engine.
#[derive(Debug)]
pub(crate) struct Counters {
    memory: Memory,
    /// Where the values begin.
    values: usize,
    file: Option<PathBuf>,
    due: Nanos,
    seldom: Nanos,
}

/// One writing.
pub(crate) struct Writing<'a> {
    memory: &'a Memory,
    at: usize,
    /// Whether what costs system calls shall be looked at.
    pub(crate) seldom: bool,
}

impl Counters {
    fn begin(&self, description: &[u8], count: usize) {
        let put = |at: usize, value: u64| self.memory.words()[at].store(value, Ordering::Relaxed);
        let (pid, started) = read::this_process();
        for (at, piece) in description.chunks(8).enumerate() {
            let mut bytes = [0; 8];
            bytes[..piece.len()].copy_from_slice(piece);
            put(word::HEADER + at, u64::from_ne_bytes(bytes));
        }
        put(word::PID, u64::from(pid));
        put(word::STARTED, started);
        put(word::DESCRIPTION, description.len() as u64);
        put(word::VALUES, self.values as u64);
        put(word::COUNT, count as u64);
        // Last: without it there is nothing to be read.
        self.memory.words()[0].store(u64::from_ne_bytes(MAGIC), Ordering::Release);
    }

    /// The histogram for which there is room at `at`.
    pub(crate) fn histogram(&self, at: usize) -> Histogram {
        Histogram::within(self.memory.clone(), self.values + at)
    }

    /// Whether counters are to be written again.
    #[inline]
    pub(crate) fn is_due(&self, now: Nanos) -> bool {
        now >= self.due
    }

    /// Lets `all` put every number.
    pub(crate) fn write(&mut self, now: Now, all: impl FnOnce(&mut Writing<'_>)) {
        self.due = now.mono + EVERY;
        let seldom = now.mono >= self.seldom;
        if seldom {
            self.seldom = now.mono + SELDOM;
        }
        let words = self.memory.words();
        let turn = words[word::TURN].load(Ordering::Relaxed);
        words[word::TURN].store(turn + 1, Ordering::Relaxed);
        // Who sees any of what follows sees that it is being written.
        fence(Ordering::Release);
        all(&mut Writing {
            memory: &self.memory,
            at: self.values,
            seldom,
        });
        words[word::WRITTEN].store(now.wall, Ordering::Relaxed);
        words[word::TURN].store(turn + 2, Ordering::Release);
    }
}

impl Writing<'_> {
    fn word(&mut self, value: u64) {
        if let Some(word) = self.memory.words().get(self.at) {
            word.store(value, Ordering::Relaxed);
        }
        self.at += 1;
    }

    /// The numbers of the next group.
    pub(crate) fn put<T: Describe>(&mut self, counts: &T) {
        counts.each(|value| self.word(value));
    }

    /// The next group stays as it is.
    pub(crate) fn keep<T: Describe>(&mut self) {
        self.at += T::FIELDS.len();
    }

    /// A histogram, which is written as it is recorded.
    pub(crate) fn pass_histogram(&mut self) {
        self.at += Buckets::COUNT;
    }

    /// The peers of the next group: those with the highest counts.
    pub(crate) fn peers(&mut self, peers: impl Iterator<Item = (SocketAddrV4, u64)>) {
        let mut most = [None; PEERS];
        for peer in peers {
            // Each takes the place of a lesser one, which goes on to find its own.
            let mut peer = Some(peer);
            for slot in &mut most {
                let count = |p: &Option<(SocketAddrV4, u64)>| p.map_or(0, |(_, count)| count);
                if count(&peer) > count(slot) {
                    std::mem::swap(&mut peer, slot);
                }
            }
        }
        for peer in most {
            let (addr, count) = peer.map_or((0, 0), |(addr, count)| {
                (u64::from(addr.ip().to_bits()) << 16 | u64::from(addr.port()), count)
            });
            self.word(addr);
            self.word(count);
        }
    }
}

impl Drop for Counters {
    fn drop(&mut self) {
        if let Some(file) = &self.file {
            let _ = fs::remove_file(file);
        }
    }
}
