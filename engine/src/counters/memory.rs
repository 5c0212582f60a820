//! Words that are shared with other processes, or with nobody.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use memmap2::{MmapOptions, MmapRaw};

/// Mapped words. Whoever has one of them has the mapping.
#[derive(Clone, Debug)]
pub(super) struct Memory(Arc<MmapRaw>);

impl Memory {
    /// Words of this process alone, all 0.
    pub(super) fn private(words: usize) -> io::Result<Memory> {
        let map = MmapOptions::new().len(words * 8).map_anon()?;
        Ok(Memory(Arc::new(MmapRaw::from(map))))
    }

    /// The words of a file, which keeps its length as long as this lives.
    pub(super) fn of(file: &File, words: usize) -> io::Result<Memory> {
        Ok(Memory(Arc::new(MmapOptions::new().len(words * 8).map_raw(file)?)))
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is as long as its length says, begins at a page and lives as long as
        // `self`; all access to it from this process goes through these atomics. The file was given
        // its blocks before it was mapped, and only its owner could shorten it.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast(), self.0.len() / 8) }
    }
}
