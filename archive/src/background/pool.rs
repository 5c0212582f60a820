//! Segments that are ready for any session of the archive: released ones, and the reserve.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::lock;
use crate::Options;
use crate::segment::{Mapped, Segment};
use crate::storage::Storage;

/// Recycled segments kept for reuse at least; beyond these and the reserve they are removed.
const SPARES: usize = 4;
/// The generation of a segment that was never used.
pub(super) const NEW: u32 = 0;
/// How long to wait before a disk that refused is asked again.
const RETRY: Duration = Duration::from_secs(1);

/// Segments released by any session of the archive, to be used again, and as many more as the reserve asks for.
#[derive(Debug)]
pub(crate) struct Pool {
    storage: Arc<dyn Storage>,
    segment_bytes: u64,
    /// Segments of the reserve.
    wanted: usize,
    spares: Mutex<Vec<Spare>>,
    /// How many these are, for those who must not wait.
    ready: AtomicUsize,
    next: AtomicU32,
    /// The disk has refused a part of the reserve.
    refused: AtomicBool,
}

#[derive(Debug)]
pub(super) struct Spare {
    pub(super) name: String,
    pub(super) mapped: Mapped,
}

/// The file name of a spare in the archive's directory.
fn spare_name(number: u32) -> String {
    format!("spare-{number:08x}")
}

/// Whether a name in the archive's directory is a spare's.
///
/// Spares are not used by a later run: after a loss of power one may hold what looks like a
/// segment that was lost, and must not come to life under that segment's name.
pub(crate) fn is_spare(name: &str) -> bool {
    name.starts_with("spare-")
}

impl Pool {
    pub(crate) fn new(storage: Arc<dyn Storage>, options: &Options) -> Pool {
        Pool {
            storage,
            segment_bytes: options.segment_bytes,
            wanted: options.reserve.div_ceil(options.segment_bytes) as usize,
            spares: Mutex::default(),
            ready: AtomicUsize::new(0),
            next: AtomicU32::new(1),
            refused: AtomicBool::new(false),
        }
    }

    /// Bytes of the reserve that are ready, and of all of it.
    pub(crate) fn reserve(&self) -> (u64, u64) {
        let ready = self.ready.load(Ordering::Relaxed).min(self.wanted);
        (
            ready as u64 * self.segment_bytes,
            self.wanted as u64 * self.segment_bytes,
        )
    }

    /// Whether the disk has refused a part of the reserve, which is not there yet.
    pub(crate) fn is_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Makes one more segment of the reserve, if it is short, and says when to make the next. It rests for as long as that
    /// took: what is appended meanwhile needs memory and disk too.
    pub(super) fn stock(&self) -> Option<Instant> {
        if lock(&self.spares).len() >= self.wanted {
            self.refused.store(false, Ordering::Relaxed);
            return None;
        }
        let from = Instant::now();
        let made = self.make().and_then(|spare| self.put(spare));
        self.refused.store(made.is_err(), Ordering::Relaxed);
        let now = Instant::now();
        Some(match made {
            Ok(()) => now + (now - from),
            Err(_) => now + RETRY,
        })
    }

    /// A file with its place on the disk. Its pages are made when it is taken: those of a large reserve would have left the
    /// caches by then, and appending to them took twice as long as to pages made a moment before.
    fn make(&self) -> io::Result<Spare> {
        let name = self.new_name();
        let map = self.storage.create(&name, self.segment_bytes as usize, false)?;
        Ok(Spare {
            name,
            mapped: Mapped { map, generation: NEW },
        })
    }

    /// Keeps it, unless there are enough by now: then its file is removed.
    fn put(&self, spare: Spare) -> io::Result<()> {
        let mut spares = lock(&self.spares);
        if spares.len() >= self.most() {
            drop(spares);
            return self.storage.remove(&spare.name);
        }
        spares.push(spare);
        self.ready.store(spares.len(), Ordering::Relaxed);
        Ok(())
    }

    /// Segments kept at most.
    fn most(&self) -> usize {
        self.wanted.max(SPARES)
    }

    fn new_name(&self) -> String {
        spare_name(self.next.fetch_add(1, Ordering::Relaxed))
    }

    pub(super) fn take(&self, length: usize) -> Option<Spare> {
        let mut spares = lock(&self.spares);
        // The last one released: of its pages most are in the caches yet.
        let at = spares.iter().rposition(|s| s.mapped.map.bytes().len() == length)?;
        let spare = spares.remove(at);
        self.ready.store(spares.len(), Ordering::Relaxed);
        Some(spare)
    }

    /// Keeps a released segment for reuse, or removes its file.
    pub(crate) fn give(&self, path: &str, segment: Segment) -> io::Result<()> {
        let Some(mapped) = segment.mapped.into_inner() else {
            return self.storage.remove(path);
        };
        let enough = lock(&self.spares).len() >= self.most();
        if enough || mapped.map.faults() > 0 {
            return self.storage.remove(path);
        }
        let name = self.new_name();
        self.storage.rename(path, &name)?;
        self.put(Spare { name, mapped })
    }
}
