//! Checking that everything is as it was written.

use std::fmt;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;

use super::{Loaded, SessionReader, walk};
use crate::Error;
use crate::background::CHECKPOINT;
use crate::record::{self, Entry, Record};
use crate::segment::{self, Position};

/// Something in an archive that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In which file.
    pub file: PathBuf,
    /// At which byte of it.
    pub offset: u64,
    /// What is wrong.
    pub why: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}: {}", self.file.display(), self.offset, self.why)
    }
}

/// How far [`SessionReader::verify`] is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Segments read.
    pub segments: u64,
    /// Segments that there are to read.
    pub of: u64,
    /// Records checked.
    pub records: u64,
    /// Bytes of records checked.
    pub bytes: u64,
}

/// What [`SessionReader::verify`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// What was read.
    pub progress: Progress,
    /// How many places are damaged.
    pub damaged: u64,
    /// The first of them, at most [`Verified::LISTED`].
    pub damage: Vec<Damage>,
}

impl Verified {
    /// The most damaged places that are listed one by one.
    pub const LISTED: usize = 1000;

    fn add(&mut self, damage: Damage) {
        self.damaged += 1;
        if self.damage.len() < Verified::LISTED {
            self.damage.push(damage);
        }
    }
}

impl SessionReader {
    /// Checks every record's checksum and that the index finds it. `progress` is called after
    /// each segment.
    ///
    /// # Errors
    /// [`Error::Io`] when a file cannot be read; damage is no error.
    pub fn verify(&mut self, mut progress: impl FnMut(Progress)) -> Result<Verified, Error> {
        let mut found = Verified::default();
        found.progress.of = self.segments.len() as u64;
        if let Some(why) = self.no_checkpoint.map(str::to_owned) {
            let file = self.path(CHECKPOINT);
            found.add(Damage { file, offset: 0, why });
        }
        let segments = self.segments.clone();
        let numbers: Vec<u32> = segments.keys().copied().collect();
        let loader = self.loader();
        thread::scope(|scope| {
            // While one is checked, the next is read.
            let (read, to_check) = mpsc::sync_channel(1);
            scope.spawn(move || {
                // Fails when the checking has, and then nobody wants more.
                numbers
                    .into_iter()
                    .try_for_each(|number| read.send(loader.load(number)))
            });
            for ((number, end), loaded) in segments.into_iter().zip(to_check) {
                self.verify_segment(number, end, loaded?, &mut found)?;
                found.progress.segments += 1;
                progress(found.progress);
            }
            Ok(found)
        })
    }

    fn verify_segment(
        &mut self,
        number: u32,
        end: Option<u32>,
        loaded: Option<Loaded>,
        found: &mut Verified,
    ) -> Result<(), Error> {
        let file = self.path(&segment::file_name(number));
        let Some(loaded) = loaded else {
            let listed = end.is_some() && file.exists();
            let fault = self.header_fault(number).or(listed.then_some("it has no header"));
            if let Some(why) = fault.map(str::to_owned) {
                found.add(Damage { file, offset: 0, why });
            }
            return Ok(());
        };
        let mut reached = segment::HEADER;
        for (at, entry) in walk(&loaded) {
            reached = at;
            let why = match entry {
                Ok(Entry::Data(record)) => {
                    found.progress.records += 1;
                    let size = record::size(record.block.len());
                    found.progress.bytes += size as u64;
                    reached += size;
                    self.misplaced(number, at, &record)?
                }
                Ok(Entry::Lost(_) | Entry::End(..)) => {
                    reached += record::size(4);
                    None
                }
                Err(why) => Some(why.to_owned()),
            };
            // A segment that was recycled while it was read shows in its header.
            if let Some(why) = why
                && self.loader().generation(number) == Some(loaded.generation)
            {
                let (file, offset) = (file.clone(), at as u64);
                found.add(Damage { file, offset, why });
            }
        }
        if let Some(end) = end.filter(|&end| reached < end as usize) {
            let (offset, why) = (reached as u64, format!("records end here, not at {end}"));
            found.add(Damage { file, offset, why });
        }
        Ok(())
    }

    /// What is wrong with the index entries of a record.
    fn misplaced(&mut self, number: u32, at: usize, record: &Record<'_>) -> Result<Option<String>, Error> {
        let range = record.range();
        for seq in [range.first.max(self.floor), range.last] {
            let here = Position::new(number, at as u32);
            if seq >= self.floor && self.look_up_lately(seq) != Some(here) && self.read(seq)?.is_none() {
                return Ok(Some(format!("the index does not find number {seq}")));
            }
        }
        Ok(None)
    }
}
