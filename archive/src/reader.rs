//! Looking into an archive directory beside a live writer, without its lock and without disturbing
//! it.
//!
//! Everything is read with plain reads into memory of the reader's own and checked there, so a
//! segment that the writer recycles meanwhile is noticed and never misread.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

use crate::background::{CHECKPOINT, SYNCED};
use crate::checkpoint::{self, Checkpoint, SessionMeta};
use crate::codec::u32_at;
use crate::error::is_unreadable;
use crate::index::{self, chunk_of, offset_of};
use crate::mapping::PAGE;
use crate::record::{self, Entry, Parsed, Record, Scan};
use crate::recovery::{IDENTITY, META, parse_identity, session_of};
use crate::segment::{self, Header, Position};
use crate::storage::{BOOT_ID, boot_id, list};
use crate::{Error, MAX_RANGES, session_dir};

mod verify;

pub use verify::{Damage, Progress, Verified};

/// A read-only view of an archive directory.
#[derive(Debug)]
pub struct Reader {
    dir: PathBuf,
    stream: Stream,
    identity: u32,
}

impl Reader {
    /// Opens the archive in `dir`, whether or not a writer has it open.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Foreign`], [`Error::Version`] or [`Error::Damaged`] when there is
    /// no archive that this program can read.
    pub fn open(dir: &Path) -> Result<Reader, Error> {
        let path = dir.join(IDENTITY);
        let bytes = fs::read(&path).map_err(Error::io("read", &path))?;
        let (stream, identity) = parse_identity(&bytes).map_err(|fault| fault.at(&path, "restore the file"))?;
        Ok(Reader {
            dir: dir.to_path_buf(),
            stream,
            identity,
        })
    }

    /// The stream that the archive belongs to.
    #[must_use]
    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// The archive's own number, as acknowledgements carry it.
    #[must_use]
    pub fn identity(&self) -> u32 {
        self.identity
    }

    /// The sessions, ascending.
    ///
    /// # Errors
    /// [`Error::Io`] when the directory cannot be read.
    pub fn sessions(&self) -> Result<Vec<Session>, Error> {
        let found = list(&self.dir).map_err(Error::io("read", &self.dir))?;
        let dirs = found.iter().filter(|f| f.len.is_none());
        let mut sessions: Vec<Session> = dirs.filter_map(|f| session_of(&f.name)).collect();
        sessions.sort_unstable();
        Ok(sessions)
    }

    /// A session as it is now. Reads what the writer appended since its last checkpoint.
    ///
    /// # Errors
    /// [`Error::Unknown`], and as for [`Reader::open`].
    pub fn session(&self, session: Session) -> Result<SessionReader, Error> {
        SessionReader::open(self.dir.join(session_dir(session)), self.stream, session)
    }
}

/// A stored block of messages, in memory of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnedRecord {
    /// The number of the block's first message.
    pub first: Seq,
    /// How many messages the block holds, at least 1.
    pub count: u16,
    /// When the server sent it, ns.
    pub send_ns: u64,
    /// When it was received, ns.
    pub recv_ns: u64,
    /// The writer's own bits.
    pub flags: u16,
    /// The messages' bytes.
    pub block: Vec<u8>,
}

impl OwnedRecord {
    /// The same, borrowed.
    #[must_use]
    pub fn as_record(&self) -> Record<'_> {
        Record {
            first: self.first,
            count: self.count,
            send_ns: self.send_ns,
            recv_ns: self.recv_ns,
            flags: self.flags,
            block: &self.block,
        }
    }

    /// The numbers of the block's messages.
    #[must_use]
    pub fn range(&self) -> SeqRange {
        self.as_record().range()
    }
}

impl From<Record<'_>> for OwnedRecord {
    fn from(record: Record<'_>) -> OwnedRecord {
        OwnedRecord {
            first: record.first,
            count: record.count,
            send_ns: record.send_ns,
            recv_ns: record.recv_ns,
            flags: record.flags,
            block: record.block.to_vec(),
        }
    }
}

/// A read-only view of one session.
#[derive(Debug)]
pub struct SessionReader {
    dir: PathBuf,
    stream: Stream,
    session: Session,
    meta: SessionMeta,
    /// Segment numbers, and where their records end when that is known.
    segments: BTreeMap<u32, Option<u32>>,
    bytes: u64,
    stored: RangeSet,
    lost: RangeSet,
    end: Option<(Seq, Session)>,
    floor: Seq,
    /// The writer had closed it in order: all is on disk.
    clean: bool,
    /// What is wrong with the checkpoint.
    no_checkpoint: Option<&'static str>,
    /// The files last read from.
    segment_file: Option<(u32, File, u32)>,
    chunk_file: Option<(u32, File)>,
    /// A piece of the index as it was lately, for whoever looks up everything.
    chunk_copy: Option<(u32, Vec<u8>)>,
}

/// What is said of a bad place of a disk.
const UNREADABLE: &str = "the disk cannot read it";

/// A segment read into memory.
struct Loaded {
    bytes: Vec<u8>,
    generation: u32,
    /// Where its pages begin that the disk cannot read; they are zeros.
    unreadable: Vec<usize>,
}

/// What reads the segments of a session.
struct Loader {
    dir: PathBuf,
    stream: Stream,
    session: Session,
}

impl Loader {
    /// Whether a segment's header is the one that its name promises.
    fn header(&self, number: u32, bytes: &[u8]) -> Option<Header> {
        Header::parse(bytes)
            .ok()
            .filter(|h| (h.stream, h.session, h.number) == (self.stream, self.session, number))
    }

    /// Reads a segment; `None` when it was released, or holds nothing of this session.
    fn load(&self, number: u32) -> Result<Option<Loaded>, Error> {
        let path = self.dir.join(segment::file_name(number));
        let (bytes, unreadable) = match read_around(&path) {
            Ok(read) => read,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        Ok(self.header(number, &bytes).map(|h| Loaded {
            bytes,
            generation: h.generation,
            unreadable,
        }))
    }

    /// The generation that a segment has now.
    fn generation(&self, number: u32) -> Option<u32> {
        let mut bytes = [0; segment::HEADER];
        let file = File::open(self.dir.join(segment::file_name(number))).ok()?;
        file.read_exact_at(&mut bytes, 0).ok()?;
        self.header(number, &bytes).map(|h| h.generation)
    }
}

impl SessionReader {
    fn open(dir: PathBuf, stream: Stream, session: Session) -> Result<SessionReader, Error> {
        let path = dir.join(META);
        let bytes = fs::read(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => Error::Unknown(session),
            _ => Error::io("read", &path)(e),
        })?;
        let (_, meta) = checkpoint::parse_meta(&bytes, session).map_err(|fault| fault.at(&path, "restore the file"))?;
        // Without a usable checkpoint every segment is read.
        let (saved, no_checkpoint) = match fs::read(dir.join(CHECKPOINT)) {
            Ok(bytes) => match Checkpoint::parse(&bytes, stream, session) {
                Ok((saved, _)) => (Some(saved), None),
                Err(_) => (None, Some("it is damaged")),
            },
            Err(e) if is_unreadable(&e) => (None, Some(UNREADABLE)),
            Err(_) => (None, None),
        };
        let mut reader = SessionReader {
            dir,
            stream,
            session,
            meta,
            segments: BTreeMap::new(),
            bytes: 0,
            stored: RangeSet::new(MAX_RANGES),
            lost: RangeSet::new(MAX_RANGES),
            end: None,
            floor: Seq(0),
            clean: saved.as_ref().is_some_and(|checkpoint| checkpoint.clean),
            no_checkpoint,
            segment_file: None,
            chunk_file: None,
            chunk_copy: None,
        };
        reader.refresh(saved)?;
        Ok(reader)
    }

    fn refresh(&mut self, checkpoint: Option<Checkpoint>) -> Result<(), Error> {
        for found in list(&self.dir).map_err(Error::io("read", &self.dir))? {
            self.bytes += found.len.unwrap_or(0);
            if let Some(number) = segment::number_of(&found.name) {
                self.segments.insert(number, None);
            }
        }
        if let Some(checkpoint) = checkpoint {
            (self.floor, self.end) = (checkpoint.floor, checkpoint.end);
            for range in &checkpoint.stored {
                let _ = self.stored.insert(*range);
            }
            for range in &checkpoint.lost {
                let _ = self.lost.insert(*range);
            }
            let listed: BTreeMap<u32, u32> = checkpoint.segments.iter().map(|s| (s.number, s.end)).collect();
            // Below the tail but not listed: released, about to be recycled.
            let tail = checkpoint.tail.segment();
            self.segments
                .retain(|number, _| *number >= tail || listed.contains_key(number));
            for (number, end) in &mut self.segments {
                *end = listed.get(number).copied();
            }
        }
        let last = self
            .segments
            .iter()
            .filter(|(_, end)| end.is_some())
            .map(|(&n, _)| n)
            .next_back();
        let unread: Vec<(u32, Option<u32>)> = self
            .segments
            .iter()
            .filter(|&(&number, end)| end.is_none() || Some(number) == last)
            .map(|(&number, &end)| (number, end))
            .collect();
        for (number, end) in unread {
            let from = end.map_or(segment::HEADER, |end| end as usize);
            let Some(loaded) = self.load(number)? else {
                continue;
            };
            let mut scan = Scan::new(&loaded.bytes, from, loaded.generation);
            for (_, entry) in &mut scan {
                match entry {
                    Entry::Data(record) => {
                        let range = record.range();
                        if let Some(kept) = SeqRange::new(range.first.max(self.floor), range.last) {
                            let _ = self.stored.insert(kept);
                        }
                    }
                    Entry::Lost(range) => {
                        let _ = self.lost.insert(range);
                    }
                    Entry::End(last, next) => self.end = Some((last, next)),
                }
            }
            // The writer may go on from here.
            self.segments.insert(number, None);
        }
        Ok(())
    }

    /// What was known of the session when it started.
    #[must_use]
    pub fn meta(&self) -> &SessionMeta {
        &self.meta
    }

    /// The numbers stored when this was opened, ascending.
    #[must_use]
    pub fn stored(&self) -> &RangeSet {
        &self.stored
    }

    /// The stored numbers of which the writer has said that a loss of power cannot take them: of a live
    /// session all but what its last sync left out. `None` when it has said nothing since the machine
    /// started, as when it never syncs.
    ///
    /// # Errors
    /// [`Error::Io`] when a file is there and cannot be read.
    pub fn synced(&self) -> Result<Option<RangeSet>, Error> {
        let mut synced = self.stored.clone();
        if self.clean {
            return Ok(Some(synced));
        }
        let path = self.path(SYNCED);
        let said = absent_as_none(fs::read(&path)).map_err(Error::io("read", &path))?;
        let epoch = boot_id().map_err(Error::io("read", Path::new(BOOT_ID)))?;
        let to = said.and_then(|bytes| checkpoint::parse_synced(&bytes, self.stream, self.session, epoch));
        let Some(to) = to else { return Ok(None) };
        for (&number, _) in self.segments.range(to.segment()..) {
            let Some(loaded) = self.load(number)? else { continue };
            let whole = number > to.segment();
            for (at, entry) in Scan::new(&loaded.bytes, segment::HEADER, loaded.generation) {
                let Entry::Data(record) = entry else { continue };
                if whole || at + record::size(record.block.len()) > to.offset() as usize {
                    synced.remove(record.range());
                }
            }
        }
        Ok(Some(synced))
    }

    /// The numbers recorded as existing nowhere.
    #[must_use]
    pub fn lost(&self) -> &RangeSet {
        &self.lost
    }

    /// The session's last number and the session after it, once known.
    #[must_use]
    pub fn end(&self) -> Option<(Seq, Session)> {
        self.end
    }

    /// Numbers below it were released.
    #[must_use]
    pub fn floor(&self) -> Seq {
        self.floor
    }

    /// How many segments there were when this was opened.
    #[must_use]
    pub fn segments(&self) -> usize {
        self.segments.len()
    }

    /// Bytes of the session's files when this was opened.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn loader(&self) -> Loader {
        Loader {
            dir: self.dir.clone(),
            stream: self.stream,
            session: self.session,
        }
    }

    /// As [`Loader::load`].
    fn load(&self, number: u32) -> Result<Option<Loaded>, Error> {
        self.loader().load(number)
    }

    /// What is wrong with the header of a segment that does not load; nothing with one that was released or
    /// is being made.
    fn header_fault(&self, number: u32) -> Option<&'static str> {
        let mut bytes = [0; segment::HEADER];
        let file = File::open(self.path(&segment::file_name(number))).ok()?;
        match file.read_exact_at(&mut bytes, 0) {
            Err(e) if is_unreadable(&e) => Some("the disk cannot read its header"),
            Ok(()) if bytes != [0; segment::HEADER] && self.loader().header(number, &bytes).is_none() => {
                Some("its header is damaged")
            }
            _ => None,
        }
    }

    /// All records in the order in which they were appended. Damaged ones are stepped over; see
    /// [`SessionReader::verify`].
    ///
    /// # Errors
    /// The iterator's items are errors when a file cannot be read.
    pub fn in_log_order(&self) -> impl Iterator<Item = Result<OwnedRecord, Error>> + '_ {
        self.segments.keys().flat_map(move |&number| {
            let records: Vec<_> = match self.load(number) {
                Ok(None) => Vec::new(),
                Err(error) => vec![Err(error)],
                Ok(Some(loaded)) => walk(&loaded)
                    .filter_map(|(_, found)| match found {
                        Ok(Entry::Data(record)) => Some(Ok(record.into())),
                        _ => None,
                    })
                    .collect(),
            };
            records
        })
    }

    /// The records from `from` on in the order of their numbers, each once. What is damaged or
    /// was released since is left out.
    ///
    /// # Errors
    /// The iterator's items are errors when a file cannot be read.
    pub fn in_order(&mut self, from: Seq) -> impl Iterator<Item = Result<OwnedRecord, Error>> + '_ {
        let mut next = from;
        std::iter::from_fn(move || {
            loop {
                let ranges = self.stored.as_slice();
                let range = ranges.get(ranges.partition_point(|r| r.last < next))?;
                next = next.max(range.first);
                match self.read(next) {
                    Ok(Some(record)) => {
                        next = record.range().end();
                        return Some(Ok(record));
                    }
                    Ok(None) => next = next.next(),
                    Err(error) => {
                        next = Seq(u32::MAX);
                        return Some(Err(error));
                    }
                }
            }
        })
    }

    /// The stored record that holds `seq`, with its checksum verified; `None` when there is none,
    /// it was released or it is damaged.
    ///
    /// # Errors
    /// [`Error::Io`] when a file is there and cannot be read.
    pub fn read(&mut self, seq: Seq) -> Result<Option<OwnedRecord>, Error> {
        let Some(position) = self.look_up(seq)? else {
            return Ok(None);
        };
        let number = position.segment();
        let path = self.path(&segment::file_name(number));
        let found = self.read_at(number, u64::from(position.offset()));
        let bytes = absent_as_none(found).map_err(Error::io("read", &path))?;
        let Some((bytes, generation)) = bytes else {
            return Ok(None);
        };
        Ok(match record::parse(&bytes, generation) {
            Parsed::Whole(Entry::Data(record), _) if record.range().contains(seq) => Some(record.into()),
            _ => None,
        })
    }

    /// Where the index says that `seq` is.
    fn look_up(&mut self, seq: Seq) -> Result<Option<Position>, Error> {
        let chunk = chunk_of(seq);
        let path = self.path(&index::file_name(chunk));
        let mut entry = [0; 8];
        let mut read = || {
            if self.chunk_file.as_ref().is_none_or(|(c, _)| *c != chunk) {
                self.chunk_file = Some((chunk, File::open(&path)?));
            }
            let (_, file) = self.chunk_file.as_ref().expect("opened just now");
            file.read_exact_at(&mut entry, offset_of(seq) as u64)
        };
        let found = absent_as_none(read()).map_err(Error::io("read", &path))?;
        let position = Position(u64::from_le_bytes(entry));
        Ok(found.map(|()| position).filter(|&p| p != Position::NONE))
    }

    /// As [`SessionReader::look_up`], from a copy of the piece of index, which may be out of date.
    fn look_up_lately(&mut self, seq: Seq) -> Option<Position> {
        let chunk = chunk_of(seq);
        if self.chunk_copy.as_ref().is_none_or(|(c, _)| *c != chunk) {
            let bytes =
                read_around(&self.path(&index::file_name(chunk))).map_or_else(|_| Vec::new(), |(bytes, _)| bytes);
            self.chunk_copy = Some((chunk, bytes));
        }
        let (_, bytes) = self.chunk_copy.as_ref()?;
        let entry = bytes.get(offset_of(seq)..)?.first_chunk()?;
        Some(Position(u64::from_le_bytes(*entry)))
    }

    /// The bytes of the record at `offset`, padded, and the segment's generation.
    fn read_at(&mut self, number: u32, offset: u64) -> io::Result<(Vec<u8>, u32)> {
        if self.segment_file.as_ref().is_none_or(|(n, ..)| *n != number) {
            let file = File::open(self.path(&segment::file_name(number)))?;
            let mut bytes = [0; segment::HEADER];
            file.read_exact_at(&mut bytes, 0)?;
            let header = self.loader().header(number, &bytes).ok_or(io::ErrorKind::NotFound)?;
            self.segment_file = Some((number, file, header.generation));
        }
        let (_, file, generation) = self.segment_file.as_ref().expect("opened just now");
        let mut length = [0; 4];
        file.read_exact_at(&mut length, offset)?;
        let length = u64::from(u32::from_le_bytes(length)).next_multiple_of(8);
        if offset + length > file.metadata()?.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; length as usize];
        file.read_exact_at(&mut bytes, offset)?;
        Ok((bytes, *generation))
    }
}

/// Walks over a segment's records, past damaged ones: as far as their lengths lead, else to the next
/// place that holds a whole record.
fn walk(loaded: &Loaded) -> impl Iterator<Item = (usize, Result<Entry<'_>, &'static str>)> {
    let (bytes, generation) = (&loaded.bytes, loaded.generation);
    let mut scan = Scan::new(bytes, segment::HEADER, generation);
    std::iter::from_fn(move || {
        if let Some((at, entry)) = scan.next() {
            return Some((at, Ok(entry)));
        }
        let at = scan.at;
        let unreadable = loaded.unreadable.iter().find(|&&page| page + PAGE > at).copied();
        let why = match unreadable {
            Some(_) => UNREADABLE,
            None => scan.bad?,
        };
        bytes.get(at..at + 4)?;
        let length = (u32_at(bytes, at) as usize).next_multiple_of(8);
        let next = Some(at + length).filter(|&next| {
            length >= record::HEADER
                && bytes
                    .get(next..)
                    .is_some_and(|rest| !matches!(record::parse(rest, generation), Parsed::Bad(_)))
        });
        let next = next
            .filter(|_| unreadable.is_none())
            .or_else(|| record::next_whole(bytes, at + 8, generation));
        scan = Scan::new(bytes, next.unwrap_or(bytes.len()), generation);
        Some((at.max(unreadable.unwrap_or(0)), Err(why)))
    })
}

/// The bytes of a file, with zeros for the pages that the disk cannot read, and where those begin.
fn read_around(path: &Path) -> io::Result<(Vec<u8>, Vec<usize>)> {
    match fs::read(path) {
        Err(e) if is_unreadable(&e) => {}
        read => return Ok((read?, Vec::new())),
    }
    let file = File::open(path)?;
    let mut bytes = vec![0; file.metadata()?.len() as usize];
    let mut unreadable = Vec::new();
    for (n, page) in bytes.chunks_mut(PAGE).enumerate() {
        match file.read_exact_at(page, (n * PAGE) as u64) {
            Err(e) if is_unreadable(&e) => {
                page.fill(0);
                unreadable.push(n * PAGE);
            }
            read => read?,
        }
    }
    Ok((bytes, unreadable))
}

/// A file that is gone or too short is no error: the writer released it. Nor is a bad place of the disk,
/// which costs what lies there.
fn absent_as_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(e) if is_unreadable(&e) => Ok(None),
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof) => Ok(None),
        Err(e) => Err(e),
    }
}
