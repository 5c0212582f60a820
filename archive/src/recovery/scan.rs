//! Reading the records that no checkpoint stands for, and leaving the disk in order.

use std::collections::BTreeMap;
use std::io;

use seqcast_proto::seq::{Seq, SeqRange};

use super::What;
use super::session::{FilesFound, Opening, insert_all, unmapped};
use crate::Error;
use crate::background::CHECKPOINT;
use crate::checkpoint::Checkpoint;
use crate::codec::Fault;
use crate::error::is_full;
use crate::index::{self, CHUNK_BYTES, Index, chunk_of};
use crate::mapping::Pages;
use crate::record::{Entry, Scan, next_whole};
use crate::segment::{self, Header, Mapped, Position, Segment};
use crate::session::{State, map_chunk, overlaps};

/// What the scan of one segment found.
struct Scanned {
    segment: Segment,
    records: u64,
    /// Its file has the length that it was made with.
    whole: bool,
}

impl Opening<'_> {
    /// Reads the segments from the checkpoint on, or all, and leaves the disk in order.
    pub(super) fn scan(
        &mut self,
        saved: Option<(&Checkpoint, bool)>,
        files: &FilesFound,
        state: &mut State,
    ) -> Result<(), Error> {
        let (checkpoint, durable) = saved.unzip();
        // Without a checkpoint nothing stays unscanned.
        let durable = durable.unwrap_or(true);
        let tail = checkpoint.map_or(Position::NONE, |c| c.tail);
        let (mut segments, mut records, mut bytes, mut ignored) = (0, 0, 0, 0);
        // Made ahead and never used.
        let mut unused = Vec::new();
        let listed_by_number = checkpoint.map(Checkpoint::by_number).unwrap_or_default();
        for (&number, &len) in &files.segments {
            let listed = listed_by_number.get(&number).copied();
            if number < tail.segment() {
                match listed {
                    Some(listed) => state.segments.push(unmapped(listed)),
                    // Released by this checkpoint; the kill came before it was recycled.
                    None => self.remove(&segment::file_name(number), None)?,
                }
                continue;
            }
            let from = listed.map(|l| (l.end, l.highest));
            let Some(scanned) = self.scan_segment(number, len, from, state, &mut ignored)? else {
                continue;
            };
            segments += 1;
            records += scanned.records;
            bytes += u64::from(scanned.segment.end) - from.map_or(0, |(end, _)| u64::from(end));
            if scanned.segment.end == segment::HEADER as u32 {
                unused.push(number);
            } else {
                state.segments.push(scanned.segment);
                state.open = scanned.whole;
            }
        }
        for number in unused {
            self.remove(&segment::file_name(number), None)?;
        }
        if ignored > 0 {
            self.note(What::Ignored { records: ignored });
        }
        if segments > 0 {
            self.note(What::Scanned {
                segments,
                records,
                bytes,
            });
        }
        self.settle(durable, state)
    }

    /// Reads one segment. `None` when the file holds no records of this session.
    fn scan_segment(
        &mut self,
        number: u32,
        len: u64,
        from: Option<(u32, Seq)>,
        state: &mut State,
        ignored: &mut u64,
    ) -> Result<Option<Scanned>, Error> {
        let file = segment::file_name(number);
        let map = self.io("map", &file, self.storage.map(&self.path(&file)))?;
        let header = match Header::parse(map.bytes()) {
            Ok(header) => header,
            Err(fault @ Fault::Version(_)) => {
                return Err(fault.at(&self.storage.display(&self.path(&file)), ""));
            }
            Err(_) if map.faults() > 0 => {
                let why = "the disk cannot read its header";
                self.note(What::LeftAlone { file, why });
                return Ok(None);
            }
            Err(fault) => {
                if map.bytes().iter().take(segment::HEADER).all(|&b| b == 0) {
                    self.remove(&file, Some("it was made and never used"))?;
                } else {
                    let why = match fault {
                        Fault::Foreign => "it is not a segment",
                        _ => "its header is damaged",
                    };
                    self.note(What::LeftAlone { file, why });
                }
                return Ok(None);
            }
        };
        if header.stream != self.shared.stream {
            let why = "it belongs to another stream";
            self.note(What::LeftAlone { file, why });
            return Ok(None);
        }
        if (header.session, header.number) != (self.session, number) {
            self.remove(&file, Some("it was released, and its new header was lost"))?;
            return Ok(None);
        }
        let mut whole = u64::from(header.length) == len;
        if !whole {
            self.note(What::Length {
                file: file.clone(),
                found: len,
                wanted: u64::from(header.length),
            });
        }
        let (start, mut highest) = from.unwrap_or((segment::HEADER as u32, Seq(0)));
        let mut records = 0;
        let mut scan = Scan::new(map.bytes(), start as usize, header.generation);
        loop {
            for (at, entry) in &mut scan {
                records += 1;
                highest = highest.max(self.take(entry, Position::new(number, at as u32), state, ignored)?);
            }
            if map.faults() == 0 {
                break;
            }
            if whole {
                let (file, offset) = (file.clone(), scan.at as u32);
                self.note(What::Unreadable { file, offset });
                whole = false;
            }
            // Behind what the disk cannot read there may be more.
            let Some(next) = next_whole(map.bytes(), scan.at + 8, header.generation) else {
                break;
            };
            scan = Scan::new(map.bytes(), next, header.generation);
        }
        let length = map.bytes().len() as u32;
        let mut end = length.min(scan.at as u32);
        if map.faults() > 0 {
            // Nothing is written to it any more.
            end = length;
        } else if let Some(why) = scan.bad {
            self.note(What::Cut { file, offset: end, why });
        }
        let generation = header.generation;
        let segment = Segment {
            number,
            length,
            end,
            highest,
            mapped: Mapped { map, generation }.into(),
        };
        Ok(Some(Scanned {
            segment,
            records,
            whole,
        }))
    }

    /// Takes over one record found; returns the highest number in it, 0 for none.
    fn take(&self, entry: Entry<'_>, at: Position, state: &mut State, ignored: &mut u64) -> Result<Seq, Error> {
        match entry {
            Entry::Data(record) => {
                let range = record.range();
                let kept = SeqRange::new(range.first.max(state.floor), range.last);
                if let Some(kept) = kept {
                    if overlaps(&state.stored, kept) || state.stored.insert(kept).is_err() {
                        *ignored += 1;
                    } else {
                        self.index_range(&mut state.index, kept, at)?;
                    }
                }
                return Ok(range.last);
            }
            Entry::Lost(range) => {
                if let Some(range) = SeqRange::new(range.first.max(state.floor), range.last) {
                    insert_all(&mut state.lost, &[range]);
                }
            }
            Entry::End(last, next) => state.end = Some((last, next)),
        }
        Ok(Seq(0))
    }

    /// Points the index at a record found.
    fn index_range(&self, index: &mut Index, range: SeqRange, at: Position) -> Result<(), Error> {
        for chunk in chunk_of(range.first)..=chunk_of(range.last) {
            if !index.has(chunk) {
                let file = index::file_name(chunk);
                let made = self.storage.create(&self.path(&file), CHUNK_BYTES, false);
                index.add(chunk, Some(self.io("make", &file, made)?));
            }
            if !index.ready(chunk) {
                let mapped = index.map(chunk, |c| map_chunk(self.storage, self.session, c));
                self.io("map", &index::file_name(chunk), mapped)?;
            }
        }
        index.set(range, at);
        Ok(())
    }

    fn sync(&self, file: &str, pages: io::Result<Pages>) -> Result<(), Error> {
        let synced = pages.and_then(|pages| self.storage.sync(&pages, 0..pages.len()));
        self.io("sync", file, synced)
    }

    /// Clears what follows the last record, so that nothing there is ever taken for one, puts
    /// all that was scanned on disk and writes down that it is in order.
    ///
    /// `durable` says that what was not scanned is on disk already.
    fn settle(&mut self, durable: bool, state: &mut State) -> Result<(), Error> {
        if let Some(last) = state.segments.last_mut().filter(|_| state.open) {
            let end = last.end as usize;
            if let Some(mapped) = last.mapped.get_mut() {
                for page in mapped.map.bytes_mut()[end..].chunks_mut(4096) {
                    // Reading is cheaper than writing zeros over zeros.
                    if page.iter().any(|&b| b != 0) {
                        page.fill(0);
                    }
                }
                if mapped.map.faults() > 0 {
                    let (file, offset) = (segment::file_name(last.number), last.end);
                    (last.end, state.open) = (last.length, false);
                    self.note(What::Unreadable { file, offset });
                }
            }
        }
        for segment in &state.segments {
            let file = segment::file_name(segment.number);
            match segment.mapped.get() {
                Some(mapped) => self.sync(&file, Ok(mapped.map.pages()))?,
                None if durable => {}
                None => {
                    let map = self.storage.map(&self.path(&file));
                    self.sync(&file, map.map(|m| m.pages()))?;
                }
            }
        }
        let mut written = BTreeMap::new();
        state
            .index
            .take_dirty(|chunk, map, _| drop(written.insert(chunk, map.pages())));
        for chunk in state.index.numbers() {
            let pages = match written.remove(&chunk) {
                Some(pages) => Ok(pages),
                None if durable => continue,
                None => map_chunk(self.storage, self.session, chunk).map(|m| m.pages()),
            };
            self.sync(&index::file_name(chunk), pages)?;
        }
        let written = self.storage.sync_dir(&self.dir).and_then(|()| {
            let bytes = state.checkpoint().to_bytes([0; 16], self.shared.stream, self.session);
            self.storage.replace(&self.path(CHECKPOINT), &bytes, true)
        });
        match written {
            Err(e) if is_full(&e) => self.note(What::DiskFull),
            written => self.io("write", CHECKPOINT, written)?,
        }
        Ok(())
    }
}
