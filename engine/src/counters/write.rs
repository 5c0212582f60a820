//! The engine's side.

use std::fs;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering, fence};

use seqcast_proto::time::{MILLIS, Nanos, Now, SECONDS};

use super::file::{DIRECTORY, EXTENSION, Owned, WriteError, sweep};
use super::layout::{Describe, Description, Group, MAGIC, Number, Part, Values, word};
use super::memory::Memory;
use super::{Buckets, Histogram, read};

/// Peers that are named.
const PEERS: usize = 16;
/// Time between two writings.
const EVERY: Nanos = 100 * MILLIS;
/// Time between two looks at what costs system calls.
const SELDOM: Nanos = SECONDS;

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
    ///
    /// # Errors
    /// When the file cannot be made, or belongs to another engine.
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
        let begin = |memory: &Memory| begin(memory, &text, values, self.words);
        let (memory, file) = match path {
            Some(path) => {
                sweep(path.parent().unwrap_or(Path::new(".")));
                let (memory, file) = Owned::create(path, words, begin)?;
                (memory, Some(file))
            }
            None => {
                let memory = Memory::private(words).map_err(|source| WriteError::Io {
                    path: "memory".into(),
                    source,
                })?;
                begin(&memory);
                (memory, None)
            }
        };
        Ok(Counters {
            memory,
            values,
            _file: file,
            due: 0,
            seldom: 0,
        })
    }
}

/// Fills in what stands in front of the values.
fn begin(memory: &Memory, description: &[u8], values: usize, count: usize) {
    let put = |at: usize, value: u64| memory.words()[at].store(value, Ordering::Relaxed);
    let (pid, started) = read::this_process();
    for (at, piece) in description.chunks(8).enumerate() {
        let mut bytes = [0; 8];
        bytes[..piece.len()].copy_from_slice(piece);
        put(word::HEADER + at, u64::from_ne_bytes(bytes));
    }
    put(word::PID, u64::from(pid));
    put(word::STARTED, started);
    put(word::DESCRIPTION, description.len() as u64);
    put(word::VALUES, values as u64);
    put(word::COUNT, count as u64);
    // Last: without it there is nothing to be read.
    memory.words()[0].store(u64::from_ne_bytes(MAGIC), Ordering::Release);
}

/// The counters of an engine.
#[derive(Debug)]
pub(crate) struct Counters {
    memory: Memory,
    /// Where the values begin.
    values: usize,
    /// Removed with the counters.
    _file: Option<Owned>,
    due: Nanos,
    seldom: Nanos,
}

/// One writing.
pub(crate) struct Writing<'a> {
    memory: &'a Memory,
    at: usize,
    /// Whether what costs system calls shall be looked at.
    pub(crate) seldom: bool,
    /// Monotonic time.
    pub(crate) now: Nanos,
}

impl Counters {
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
            now: now.mono,
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

    /// The numbers of the next group, which stays as it is without.
    pub(crate) fn put_or_keep<T: Describe>(&mut self, counts: Option<&T>) {
        match counts {
            Some(counts) => self.put(counts),
            None => self.keep::<T>(),
        }
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
