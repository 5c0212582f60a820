//! Released segments, to be used again.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use super::lock;
use crate::segment::{Mapped, Segment};
use crate::storage::Storage;

/// Recycled segments kept for reuse; more are removed.
const SPARES: usize = 4;

/// Segments released by any session of the archive, to be used again.
#[derive(Debug)]
pub(crate) struct Pool {
    storage: Arc<dyn Storage>,
    spares: Mutex<Vec<Spare>>,
    next: AtomicU32,
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
    pub(crate) fn new(storage: Arc<dyn Storage>) -> Pool {
        Pool {
            storage,
            spares: Mutex::default(),
            next: AtomicU32::new(1),
        }
    }

    pub(super) fn take(&self, length: usize) -> Option<Spare> {
        let mut spares = lock(&self.spares);
        let at = spares.iter().position(|s| s.mapped.map.bytes().len() == length)?;
        Some(spares.swap_remove(at))
    }

    /// Keeps a released segment for reuse, or removes its file.
    pub(crate) fn give(&self, path: &str, segment: Segment) -> io::Result<()> {
        let Some(mapped) = segment.mapped.into_inner() else {
            return self.storage.remove(path);
        };
        if lock(&self.spares).len() >= SPARES || mapped.map.faults() > 0 {
            return self.storage.remove(path);
        }
        let name = spare_name(self.next.fetch_add(1, Ordering::Relaxed));
        self.storage.rename(path, &name)?;
        lock(&self.spares).push(Spare { name, mapped });
        Ok(())
    }
}
