//! The dense index: for each sequence number the position of the record that holds it.
//!
//! Chunk files of 1 MiB hold 2^17 positions of 8 bytes each, little-endian, with nothing else in
//! them. An entry may be stale (from numbers released, or cut off by recovery), so whoever
//! follows one checks that the record there holds the number.

use std::io;
use std::ops::{Range, RangeInclusive};
use std::sync::OnceLock;

use seqcast_proto::seq::{Seq, SeqRange};

use crate::codec::u64_at;
use crate::mapping::Mapping;
use crate::segment::Position;

/// Binary logarithm of the positions in a chunk.
const CHUNK_BITS: u32 = 17;
/// Positions in a chunk.
pub(crate) const CHUNK_ENTRIES: u32 = 1 << CHUNK_BITS;
/// Bytes of a chunk file.
pub(crate) const CHUNK_BYTES: usize = (CHUNK_ENTRIES as usize) * 8;

/// The chunk that holds a number's entry.
pub(crate) fn chunk_of(seq: Seq) -> u32 {
    seq.0 >> CHUNK_BITS
}

/// The file name of a chunk inside its session's directory.
pub(crate) fn file_name(chunk: u32) -> String {
    format!("{chunk:04x}.idx")
}

/// The chunk in a chunk's file name.
pub(crate) fn number_of(name: &str) -> Option<u32> {
    let chunk = u32::from_str_radix(name.strip_suffix(".idx")?, 16).ok()?;
    (chunk <= chunk_of(Seq::LAST) && file_name(chunk) == name).then_some(chunk)
}

/// Where in its chunk file a number's entry lies.
pub(crate) fn offset_of(seq: Seq) -> usize {
    (seq.0 & (CHUNK_ENTRIES - 1)) as usize * 8
}

#[derive(Debug, Default)]
pub(crate) struct Chunk {
    map: OnceLock<Mapping>,
    /// The bytes written since they were last handed to a checkpoint; empty for none.
    dirty: Range<usize>,
}

/// The chunks of one session.
#[derive(Debug, Default)]
pub(crate) struct Index {
    chunks: Vec<Option<Chunk>>,
    /// No chunk below this one exists.
    lowest: u32,
    dirty: Vec<u32>,
}

impl Index {
    /// Whether the chunk exists.
    pub(crate) fn has(&self, chunk: u32) -> bool {
        self.slot(chunk).is_some()
    }

    #[inline]
    fn slot(&self, chunk: u32) -> Option<&Chunk> {
        self.chunks.get(chunk as usize)?.as_ref()
    }

    /// Takes in a chunk, mapped or (`None`) to be mapped when first used.
    pub(crate) fn add(&mut self, chunk: u32, map: Option<Mapping>) {
        let at = chunk as usize;
        if self.chunks.len() <= at {
            self.chunks.resize_with(at + 1, || None);
        }
        self.chunks[at] = Some(Chunk {
            map: map.map_or_else(OnceLock::new, OnceLock::from),
            dirty: 0..0,
        });
        self.lowest = self.lowest.min(chunk);
    }

    /// Where `seq` is stored, as far as the index knows. `map` maps a chunk not used so far.
    pub(crate) fn get(&self, seq: Seq, map: impl FnOnce(u32) -> io::Result<Mapping>) -> io::Result<Position> {
        let number = chunk_of(seq);
        let Some(chunk) = self.slot(number) else {
            return Ok(Position::NONE);
        };
        let bytes = match chunk.map.get() {
            Some(mapping) => mapping,
            None => {
                let mapping = map(number)?;
                chunk.map.get_or_init(|| mapping)
            }
        }
        .bytes();
        Ok(Position(u64_at(bytes, offset_of(seq))))
    }

    /// Makes the chunk ready for [`Index::set`]. It must exist.
    pub(crate) fn map(&mut self, chunk: u32, map: impl FnOnce(u32) -> io::Result<Mapping>) -> io::Result<()> {
        if let Some(Some(slot)) = self.chunks.get(chunk as usize)
            && slot.map.get().is_none()
        {
            let mapping = map(chunk)?;
            slot.map.get_or_init(|| mapping);
        }
        Ok(())
    }

    /// Whether [`Index::set`] may be called for numbers of this chunk.
    #[inline]
    pub(crate) fn ready(&self, chunk: u32) -> bool {
        self.slot(chunk).is_some_and(|c| c.map.get().is_some())
    }

    /// Records that every number of `range` is stored at `position`. Its chunks must be ready.
    #[inline]
    pub(crate) fn set(&mut self, range: SeqRange, position: Position) {
        if chunk_of(range.first) == chunk_of(range.last) {
            self.set_within(range, position);
        } else {
            self.set_across(range, position);
        }
    }

    #[cold]
    fn set_across(&mut self, range: SeqRange, position: Position) {
        let mut from = range.first;
        loop {
            let last = range.last.min(Seq(from.0 | (CHUNK_ENTRIES - 1)));
            self.set_within(SeqRange { first: from, last }, position);
            if last == range.last {
                return;
            }
            from = last.next();
        }
    }

    /// As [`Index::set`], for numbers of one chunk.
    #[inline(always)]
    fn set_within(&mut self, range: SeqRange, position: Position) {
        let (number, start, end) = (chunk_of(range.first), offset_of(range.first), offset_of(range.last) + 8);
        let chunk = self.chunks[number as usize].as_mut().expect("the chunk is ready");
        if chunk.dirty.is_empty() {
            chunk.dirty = start..end;
            self.dirty.push(number);
        } else {
            // Written only where it changes: it mostly grows at its end.
            if start < chunk.dirty.start {
                chunk.dirty.start = start;
            }
            chunk.dirty.end = chunk.dirty.end.max(end);
        }
        let bytes = chunk.map.get_mut().expect("the chunk is ready").bytes_mut();
        let (first, more) = bytes[start..end].as_chunks_mut().0.split_at_mut(1);
        first[0] = position.0.to_le_bytes();
        for entry in more {
            *entry = position.0.to_le_bytes();
        }
    }

    /// The chunks of which pages that were used could not be read.
    pub(crate) fn spoiled(&self) -> impl Iterator<Item = u32> + '_ {
        let chunks = self.chunks.iter().enumerate();
        let spoiled = |chunk: &Chunk| chunk.map.get().is_some_and(|map| map.faults() > 0);
        chunks.filter_map(move |(number, chunk)| chunk.as_ref().is_some_and(spoiled).then_some(number as u32))
    }

    /// Lets go of the memory of chunks of which pages could not be read, and says whether one of them is
    /// among `of`. They are mapped anew when next used. What was written to them is to be taken before
    /// ([`Index::take_dirty`]).
    pub(crate) fn let_go_of_spoiled(&mut self, of: RangeInclusive<u32>) -> bool {
        let spoiled: Vec<u32> = self.spoiled().collect();
        for &chunk in &spoiled {
            if let Some(chunk) = &mut self.chunks[chunk as usize] {
                chunk.map.take();
            }
        }
        spoiled.iter().any(|chunk| of.contains(chunk))
    }

    /// The chunks written to since the last call, their memory, and which bytes of it.
    pub(crate) fn take_dirty(&mut self, mut each: impl FnMut(u32, &Mapping, Range<usize>)) {
        for number in self.dirty.drain(..) {
            if let Some(Some(chunk)) = self.chunks.get_mut(number as usize) {
                let written = std::mem::take(&mut chunk.dirty);
                each(number, chunk.map.get().expect("written to, so mapped"), written);
            }
        }
    }

    /// Forgets every chunk whose numbers are all below `seq`, and names each.
    pub(crate) fn drop_below(&mut self, seq: Seq, mut each: impl FnMut(u32)) {
        while self.lowest < chunk_of(seq) && (self.lowest as usize) < self.chunks.len() {
            if self.chunks[self.lowest as usize].take().is_some() {
                each(self.lowest);
            }
            self.lowest += 1;
        }
    }

    /// The chunks that exist, ascending.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        let chunks = self.chunks.iter().enumerate();
        chunks.filter_map(|(number, chunk)| chunk.as_ref().map(|_| number as u32))
    }
}
