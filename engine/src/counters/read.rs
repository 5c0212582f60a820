//! The side of whoever looks.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Buckets;
use super::file::EXTENSION;
use super::layout::{Description, Kind, MAGIC, Part, Values, word};
use crate::process::started_at;

/// How often a file is read until a whole writing is met: one takes a microsecond, ten times a second.
const TRIES: usize = 100;
/// Files that are longer are not an engine's.
const LONGEST: u64 = 64 << 20;

/// Why counters cannot be read.
#[derive(Debug, Error)]
pub enum ReadError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is no file of counters, or of another version of Seqcast.
    #[error("{path} holds no counters that this version of Seqcast knows: {why}")]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The engine writes it each time that it is read.
    #[error("{path} is being written without end")]
    Busy {
        /// The file.
        path: PathBuf,
    },
}

/// A number, or several that belong together.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number.
    Number(Kind, u64),
    /// How often each bucket was met.
    Histogram(Vec<u64>),
    /// Counts by peer.
    Peers(Vec<(SocketAddrV4, u64)>),
}

/// A value with its name.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it is of.
    pub of: Part,
    /// Its name, such as `messages`.
    pub name: String,
    /// What it counts.
    pub help: String,
    /// The value.
    pub value: Value,
}

/// All counters of an engine at one moment.
#[derive(Clone, Debug)]
pub struct Sheet {
    /// The engine's name.
    pub engine: String,
    /// What its link really is.
    pub mode: String,
    /// Its process.
    pub pid: u32,
    /// Whether that process is there.
    pub alive: bool,
    /// When the counters were written: nanoseconds since 1970.
    pub written: u64,
    /// In the order in which the engine lists them.
    pub series: Vec<Series>,
}

/// Files of counters in a directory, by name; none if there is no such directory.
///
/// # Errors
/// When the directory cannot be read.
pub fn list(directory: &Path) -> Result<Vec<PathBuf>, ReadError> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| ReadError::Io {
            path: directory.to_owned(),
            source,
        })?,
    };
    let paths = entries.flatten().map(|entry| entry.path());
    let mut paths: Vec<PathBuf> = paths
        .filter(|p| p.extension().is_some_and(|e| e == EXTENSION))
        .collect();
    paths.sort();
    Ok(paths)
}

/// A copy of a file.
struct Copy(Vec<u8>);

impl Copy {
    fn word(&self, at: usize) -> Option<u64> {
        let bytes = self.0.get(at * 8..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    }

    fn words(&self, at: usize, count: usize) -> Option<impl Iterator<Item = u64>> {
        let bytes = self.0.get(at.checked_mul(8)?..at.checked_add(count)?.checked_mul(8)?)?;
        Some(bytes.as_chunks().0.iter().map(|word| u64::from_ne_bytes(*word)))
    }

    fn owner(&self) -> Option<(u32, u64)> {
        (self.0.first_chunk() == Some(&MAGIC))
            .then(|| Some((self.word(word::PID)? as u32, self.word(word::STARTED)?)))
            .flatten()
    }

    /// What is wrong with its beginning.
    fn strangeness(&self) -> String {
        match self.0.first_chunk::<8>() {
            Some(magic) if magic[..7] == MAGIC[..7] => {
                format!("it has format {}, this version has format {}", magic[7], MAGIC[7])
            }
            _ => "it begins otherwise".to_owned(),
        }
    }

    fn description(&self) -> Result<Description, String> {
        let length = self.word(word::DESCRIPTION).unwrap_or(0) as usize;
        let start = word::HEADER * 8;
        let end = start.checked_add(length).ok_or("its description has no end")?;
        let text = self.0.get(start..end).ok_or("its description is cut short")?;
        serde_json::from_slice(text).map_err(|error| error.to_string())
    }

    fn series(&self, groups: Vec<super::layout::Group>) -> Option<Vec<Series>> {
        let values = usize::try_from(self.word(word::VALUES)?).ok()?;
        let mut all = Vec::new();
        for group in groups {
            let at = values.checked_add(group.at)?;
            let of = group.of;
            match group.values {
                Values::Numbers(numbers) => {
                    let words = self.words(at, numbers.len())?;
                    all.extend(numbers.into_iter().zip(words).map(|(number, value)| Series {
                        of: of.clone(),
                        name: number.name,
                        help: number.help,
                        value: Value::Number(number.kind, value),
                    }));
                }
                Values::Histogram { name, help, buckets } => {
                    if buckets != Buckets::COUNT {
                        return None;
                    }
                    let value = Value::Histogram(self.words(at, buckets)?.collect());
                    all.push(Series { of, name, help, value });
                }
                Values::Peers { name, help, slots } => {
                    let words: Vec<u64> = self.words(at, slots.checked_mul(2)?)?.collect();
                    let pairs = words.as_chunks().0.iter().filter(|[addr, _]| *addr != 0);
                    let peers = pairs.map(|[addr, count]| {
                        let ip = Ipv4Addr::from_bits((addr >> 16) as u32);
                        (SocketAddrV4::new(ip, *addr as u16), *count)
                    });
                    let value = Value::Peers(peers.collect());
                    all.push(Series { of, name, help, value });
                }
            }
        }
        Some(all)
    }
}

fn copy(mut file: &File) -> io::Result<Copy> {
    let length = file.metadata()?.len();
    if length > LONGEST {
        return Err(io::Error::other("too long for counters"));
    }
    let mut bytes = Vec::with_capacity(length as usize);
    file.read_to_end(&mut bytes).map(|_| Copy(bytes))
}

impl Sheet {
    /// Reads the counters of an engine, all of one moment but for the histograms, which it writes as it
    /// delivers.
    ///
    /// # Errors
    /// As [`ReadError`] says.
    pub fn read(path: &Path) -> Result<Sheet, ReadError> {
        let io = |source| ReadError::Io {
            path: path.to_owned(),
            source,
        };
        let foreign = |why: &str| ReadError::Foreign {
            path: path.to_owned(),
            why: why.to_owned(),
        };
        for _ in 0..TRIES {
            let file = File::open(path).map_err(io)?;
            let first = copy(&file).map_err(io)?;
            let (pid, started) = first.owner().ok_or_else(|| foreign(&first.strangeness()))?;
            let turn = first.word(word::TURN).unwrap_or(1);
            // The numbers are of one writing if none has begun since.
            let mut again = [0; 8];
            file.read_exact_at(&mut again, word::TURN as u64 * 8).map_err(io)?;
            if turn % 2 == 1 || u64::from_ne_bytes(again) != turn {
                std::thread::yield_now();
                continue;
            }
            let description = first.description().map_err(|why| foreign(&why))?;
            return Ok(Sheet {
                pid,
                alive: started_at(pid) == Some(started),
                written: first.word(word::WRITTEN).unwrap_or(0),
                series: first
                    .series(description.groups)
                    .ok_or_else(|| foreign("its values are cut short"))?,
                engine: description.engine,
                mode: description.mode,
            });
        }
        Err(ReadError::Busy { path: path.to_owned() })
    }

    /// The number of this name of a part.
    #[must_use]
    pub fn number(&self, of: &Part, name: &str) -> Option<u64> {
        let series = self.series.iter().find(|s| s.of == *of && s.name == name)?;
        match series.value {
            Value::Number(_, value) => Some(value),
            _ => None,
        }
    }
}

/// Whose a file is.
pub(super) enum Owner {
    /// An engine's, of this version or another.
    Process {
        /// Its process.
        pid: u32,
        /// Whether that is there.
        alive: bool,
    },
    /// That of an engine, which was cut off before it had written what it is.
    Nobody,
    /// Something else.
    Foreign,
}

pub(super) fn owner(file: &File) -> io::Result<Owner> {
    let copy = copy(file)?;
    let magic = copy.0.first_chunk::<8>();
    if copy.0.is_empty() || magic == Some(&[0; 8]) {
        return Ok(Owner::Nobody);
    }
    // The last byte is the version; who writes stands at the same place in all of them.
    let known = magic.is_some_and(|magic| magic[..7] == MAGIC[..7]);
    Ok(match (copy.word(word::PID), copy.word(word::STARTED)) {
        (Some(pid), Some(started)) if known => {
            let pid = pid as u32;
            let alive = started_at(pid) == Some(started);
            Owner::Process { pid, alive }
        }
        _ => Owner::Foreign,
    })
}

/// This process, and when it started.
pub(super) fn this_process() -> (u32, u64) {
    let pid = std::process::id();
    (pid, started_at(pid).unwrap_or(0))
}
