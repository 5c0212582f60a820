//! Opening: what is on disk becomes the state that the writer goes on from.
//!
//! A trusted checkpoint stands for all records below its tail; only what lies above is scanned.
//! Without one (the first segment was never finished, the machine went down, a file is missing)
//! every segment is scanned. A scan ends at the first place in a segment that is not a whole
//! record.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::OnceLock;

use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session, Stream};

use crate::background::{CHECKPOINT, is_spare};
use crate::checkpoint::{self, Checkpoint};
use crate::codec::{Fault, Fields, Parser};
use crate::error::is_full;
use crate::index::{self, CHUNK_BYTES, Index, chunk_of};
use crate::mapping::Pages;
use crate::record::{Entry, Scan};
use crate::segment::{self, Header, Mapped, Position, Segment};
use crate::session::{SessionLog, State, map_chunk, overlaps};
use crate::storage::Storage;
use crate::{Error, Shared, session_dir};

/// The name of the file that says what a directory is.
pub(crate) const IDENTITY: &str = "archive";
/// The name of the file that says what a session is.
pub(crate) const META: &str = "session";
/// How sessions being removed are named.
const GONE: &str = "gone-";

const IDENTITY_MAGIC: &[u8; 8] = b"SEQCARC\0";

/// One thing that opening an archive found, and what it did about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryNote {
    /// In which session; [`Session::NONE`] for the archive's own directory.
    pub session: Session,
    /// What it was.
    pub what: What,
}

/// What opening an archive found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The session was not closed in order; what came after its last checkpoint was read.
    Scanned {
        /// Segments read.
        segments: u32,
        /// Records found in them.
        records: u64,
        /// Bytes read.
        bytes: u64,
    },
    /// The checkpoint could not be used, so that all segments were read.
    NoCheckpoint {
        /// Why.
        why: &'static str,
    },
    /// A segment's records end before something that is not a whole record.
    Cut {
        /// The segment file.
        file: String,
        /// Where its records end now.
        offset: u32,
        /// What is wrong there.
        why: &'static str,
    },
    /// A segment file has not the length that it was made with. It takes no further records.
    Length {
        /// The segment file.
        file: String,
        /// Its length.
        found: u64,
        /// What its header says.
        wanted: u64,
    },
    /// Records whose numbers were stored already, or did not fit the limit of ranges.
    Ignored {
        /// How many.
        records: u64,
    },
    /// A file was removed.
    Removed {
        /// The file.
        file: String,
        /// Why.
        why: &'static str,
    },
    /// A file was left alone and is not used.
    LeftAlone {
        /// The file.
        file: String,
        /// Why.
        why: &'static str,
    },
    /// The disk is full: the state found could not be written down, so the next opening reads it
    /// again.
    DiskFull,
}

impl fmt::Display for RecoveryNote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(session) = self.session.known() {
            write!(f, "session {session}: ")?;
        }
        match &self.what {
            What::Scanned {
                segments,
                records,
                bytes,
            } => write!(
                f,
                "was not closed in order; read {bytes} bytes in {segments} segments and found \
                 {records} records after the last checkpoint"
            ),
            What::NoCheckpoint { why } => write!(f, "reads all segments: {why}"),
            What::Cut { file, offset, why } => {
                write!(f, "cut {file} at {offset}: what follows is not a whole record ({why})")
            }
            What::Length { file, found, wanted } => write!(
                f,
                "{file} has {found} bytes and was made with {wanted}; goes on in a new segment"
            ),
            What::Ignored { records } => {
                write!(
                    f,
                    "ignored {records} records whose numbers were stored already or too scattered"
                )
            }
            What::Removed { file, why } => write!(f, "removed {file}: {why}"),
            What::LeftAlone { file, why } => write!(f, "left {file} alone: {why}"),
            What::DiskFull => f.write_str("cannot write a checkpoint, the disk is full"),
        }
    }
}

/// The bytes of the file that says what a directory is.
fn identity_to_bytes(stream: Stream, identity: u32) -> Vec<u8> {
    Fields::new(IDENTITY_MAGIC, stream).u32(identity).seal()
}

pub(crate) fn parse_identity(bytes: &[u8]) -> Result<(Stream, u32), Fault> {
    let mut fields = Parser::open(bytes, IDENTITY_MAGIC)?;
    let identity = fields.u32().ok_or(Fault::Damaged)?;
    Ok((fields.stream, identity))
}

/// The session that a directory's name stands for.
pub(crate) fn session_of(name: &str) -> Option<Session> {
    let session = Session(name.parse().ok()?);
    (session != Session::NONE && session_dir(session) == name).then_some(session)
}

/// Removes a session's directory so that a kill in between leaves no half of it.
pub(crate) fn remove_session(storage: &dyn Storage, session: Session) -> io::Result<()> {
    let dir = session_dir(session);
    let gone = format!("{GONE}{dir}");
    storage.rename(&dir, &gone)?;
    storage.sync_dir("")?;
    storage.remove(&gone)
}

/// Opens everything below the storage's root.
pub(crate) fn open(
    shared: &mut Shared,
    notes: &mut Vec<RecoveryNote>,
) -> Result<(u32, BTreeMap<Session, SessionLog>), Error> {
    let storage = std::sync::Arc::clone(&shared.storage);
    let root = storage.display("");
    let found = storage.list("").map_err(Error::io("read", &root))?;
    let mut note = |what| {
        notes.push(RecoveryNote {
            session: Session::NONE,
            what,
        });
    };
    let mut sessions = Vec::new();
    for item in found {
        let name = item.name;
        let drop = |name: &str| {
            storage
                .remove(name)
                .map_err(Error::io("remove", &storage.display(name)))
        };
        if name == IDENTITY || name == crate::storage::LOCK {
        } else if let Some(session) = session_of(&name).filter(|_| item.len.is_none()) {
            sessions.push(session);
        } else if is_spare(&name) {
            drop(&name)?;
        } else if name.starts_with(GONE) {
            drop(&name)?;
            note(What::Removed {
                file: name,
                why: "the session was being removed",
            });
        } else if name.ends_with(crate::storage::UNFINISHED) {
            drop(&name)?;
            note(What::Removed {
                file: name,
                why: "it was never finished",
            });
        } else {
            note(What::LeftAlone {
                file: name,
                why: "it is not the archive's",
            });
        }
    }
    let identity = open_identity(&*storage, shared.stream, !sessions.is_empty())?;
    sessions.sort_unstable();
    let mut logs = BTreeMap::new();
    for session in sessions {
        let mut opening = Opening {
            shared,
            storage: &*storage,
            session,
            dir: session_dir(session),
            notes,
        };
        if let Some(state) = opening.open()? {
            logs.insert(session, SessionLog::new(shared, session, state));
        }
    }
    Ok((identity, logs))
}

fn open_identity(storage: &dyn Storage, stream: Stream, sessions: bool) -> Result<u32, Error> {
    let path = storage.display(IDENTITY);
    let remedy = "restore the file, or move the directory away";
    match storage.read(IDENTITY) {
        Ok(bytes) => {
            let (found, identity) = parse_identity(&bytes).map_err(|fault| fault.at(&path, remedy))?;
            if found == stream {
                Ok(identity)
            } else {
                Err(Error::Stream {
                    path,
                    found,
                    wanted: stream,
                })
            }
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound && sessions => Err(Error::Damaged {
            path,
            what: "missing beside sessions",
            remedy,
        }),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let random = storage.random().map_err(Error::io("draw an identity for", &path))?;
            let identity = (random as u32).max(1);
            storage
                .replace(IDENTITY, &identity_to_bytes(stream, identity), true)
                .map_err(Error::io("write", &path))?;
            Ok(identity)
        }
        Err(e) => Err(Error::io("read", &path)(e)),
    }
}

/// One session being opened.
struct Opening<'a> {
    shared: &'a Shared,
    storage: &'a dyn Storage,
    session: Session,
    dir: String,
    notes: &'a mut Vec<RecoveryNote>,
}

/// The files of a session by number, with their lengths.
#[derive(Default)]
struct FilesFound {
    segments: BTreeMap<u32, u64>,
    chunks: BTreeMap<u32, u64>,
}

/// What the scan of one segment found.
struct Scanned {
    segment: Segment,
    records: u64,
    /// Its file has the length that it was made with.
    whole: bool,
}

impl Opening<'_> {
    fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    fn note(&mut self, what: What) {
        self.notes.push(RecoveryNote {
            session: self.session,
            what,
        });
    }

    fn io<T>(&self, what: &'static str, name: &str, result: io::Result<T>) -> Result<T, Error> {
        result.map_err(Error::io(what, &self.storage.display(&self.path(name))))
    }

    fn remove(&mut self, name: &str, why: Option<&'static str>) -> Result<(), Error> {
        self.io("remove", name, self.storage.remove(&self.path(name)))?;
        if let Some(why) = why {
            self.note(What::Removed {
                file: name.to_owned(),
                why,
            });
        }
        Ok(())
    }

    /// The session's state, or `None` when its making was never finished.
    fn open(&mut self) -> Result<Option<State>, Error> {
        let mut files = self.list()?;
        let Some(meta) = self.meta(files.segments.is_empty())? else {
            return Ok(None);
        };
        let mut state = State::new(meta);
        state.next_segment = files.segments.last_key_value().map_or(0, |(&n, _)| n) + 1;
        for (chunk, len) in std::mem::take(&mut files.chunks) {
            if len == CHUNK_BYTES as u64 {
                state.index.add(chunk, None);
            } else {
                self.remove(&index::file_name(chunk), Some("its length is wrong"))?;
            }
        }
        let saved = self.checkpoint()?;
        let trusted = match &saved {
            Ok((checkpoint, epoch)) => self.distrust(checkpoint, *epoch, &files, &state.index),
            Err(why) => Some(*why),
        };
        if let Ok((checkpoint, _)) = &saved {
            state.floor = checkpoint.floor;
            state.end = checkpoint.end;
            insert_all(&mut state.lost, &checkpoint.lost);
        }
        match (saved, trusted) {
            (Ok((checkpoint, epoch)), None) => {
                insert_all(&mut state.stored, &checkpoint.stored);
                if checkpoint.clean {
                    self.take_listed(&checkpoint, &files, &mut state)?;
                } else {
                    self.scan(Some((&checkpoint, epoch == [0; 16])), &files, &mut state)?;
                }
            }
            (_, why) => {
                if let Some(why) = why.filter(|_| !files.segments.is_empty()) {
                    self.note(What::NoCheckpoint { why });
                }
                self.scan(None, &files, &mut state)?;
            }
        }
        Ok(Some(state))
    }

    fn list(&mut self) -> Result<FilesFound, Error> {
        let mut files = FilesFound::default();
        for item in self.io("read", "", self.storage.list(&self.dir))? {
            let name = item.name.as_str();
            let len = item.len.unwrap_or(0);
            if item.len.is_some() && (name == META || name == CHECKPOINT) {
            } else if item.len.is_some() && name.ends_with(crate::storage::UNFINISHED) {
                self.remove(name, Some("it was never finished"))?;
            } else if let Some(number) = segment::number_of(name).filter(|_| item.len.is_some()) {
                if len == 0 {
                    self.remove(name, Some("it is empty"))?;
                } else {
                    files.segments.insert(number, len);
                }
            } else if let Some(chunk) = index::number_of(name).filter(|_| item.len.is_some()) {
                files.chunks.insert(chunk, len);
            } else {
                self.note(What::LeftAlone {
                    file: item.name,
                    why: "it is not the archive's",
                });
            }
        }
        Ok(files)
    }

    fn meta(&mut self, empty: bool) -> Result<Option<crate::SessionMeta>, Error> {
        let path = self.storage.display(&self.path(META));
        let remedy = "restore the file, or move the session's directory away";
        let bytes = match self.storage.read(&self.path(META)) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound && empty => {
                self.io("remove", "", self.storage.remove(&self.dir))?;
                self.note(What::Removed {
                    file: self.dir.clone(),
                    why: "the session was never started",
                });
                return Ok(None);
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::Damaged {
                    path,
                    what: "missing beside segments",
                    remedy,
                });
            }
            Err(e) => return Err(Error::io("read", &path)(e)),
        };
        let (found, meta) = checkpoint::parse_meta(&bytes, self.session).map_err(|fault| fault.at(&path, remedy))?;
        if found != self.shared.stream {
            return Err(Error::Stream {
                path,
                found,
                wanted: self.shared.stream,
            });
        }
        Ok(Some(meta))
    }

    /// The checkpoint and its epoch, or why there is none to use.
    #[allow(clippy::type_complexity)]
    fn checkpoint(&self) -> Result<Result<(Checkpoint, [u8; 16]), &'static str>, Error> {
        let path = self.path(CHECKPOINT);
        match self.storage.read(&path) {
            Ok(bytes) => match Checkpoint::parse(&bytes, self.shared.stream, self.session) {
                Ok(saved) => Ok(Ok(saved)),
                Err(fault @ Fault::Version(_)) => Err(fault.at(&self.storage.display(&path), "")),
                Err(_) => Ok(Err("the checkpoint is damaged")),
            },
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Err("there is no checkpoint")),
            Err(e) => Err(Error::io("read", &self.storage.display(&path))(e)),
        }
    }

    /// Why the checkpoint does not stand for what is on disk; `None` when it does.
    fn distrust(
        &self,
        checkpoint: &Checkpoint,
        epoch: [u8; 16],
        files: &FilesFound,
        index: &Index,
    ) -> Option<&'static str> {
        let here =
            |s: &checkpoint::Listed| files.segments.get(&s.number) == Some(&u64::from(s.length)) && s.end <= s.length;
        let indexed = |r: &SeqRange| (chunk_of(r.first)..=chunk_of(r.last)).all(|c| index.has(c));
        if epoch != [0; 16] && epoch != self.storage.epoch() {
            Some("the machine was restarted before all was on disk")
        } else if !checkpoint.segments.iter().all(here) {
            Some("a segment is missing or has another length")
        } else if !checkpoint.stored.iter().all(indexed) {
            Some("a piece of the index is missing")
        } else {
            None
        }
    }

    /// Takes over the segments that a clean checkpoint lists.
    fn take_listed(&mut self, checkpoint: &Checkpoint, files: &FilesFound, state: &mut State) -> Result<(), Error> {
        for &number in files.segments.keys() {
            match checkpoint.segments.iter().find(|s| s.number == number) {
                Some(listed) => state.segments.push(unmapped(listed)),
                None => self.remove(&segment::file_name(number), Some("it holds nothing"))?,
            }
        }
        state.open = !state.segments.is_empty();
        Ok(())
    }

    /// Reads the segments from the checkpoint on, or all, and leaves the disk in order.
    fn scan(&mut self, saved: Option<(&Checkpoint, bool)>, files: &FilesFound, state: &mut State) -> Result<(), Error> {
        let (checkpoint, durable) = saved.unzip();
        // Without a checkpoint nothing stays unscanned.
        let durable = durable.unwrap_or(true);
        let tail = checkpoint.map_or(Position::NONE, |c| c.tail);
        let (mut segments, mut records, mut bytes, mut ignored) = (0, 0, 0, 0);
        // Made ahead and never used.
        let mut unused = Vec::new();
        for (&number, &len) in &files.segments {
            let listed = checkpoint.and_then(|c| c.segments.iter().find(|s| s.number == number));
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
        let whole = u64::from(header.length) == len;
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
        for (at, entry) in &mut scan {
            records += 1;
            match entry {
                Entry::Data(record) => {
                    let range = record.range();
                    highest = highest.max(range.last);
                    let Some(kept) = SeqRange::new(range.first.max(state.floor), range.last) else {
                        continue;
                    };
                    if overlaps(&state.stored, kept) || state.stored.insert(kept).is_err() {
                        *ignored += 1;
                        continue;
                    }
                    self.index_range(&mut state.index, kept, Position::new(number, at as u32))?;
                }
                Entry::Lost(range) => {
                    if let Some(range) = SeqRange::new(range.first.max(state.floor), range.last) {
                        insert_all(&mut state.lost, &[range]);
                    }
                }
                Entry::End(last, next) => state.end = Some((last, next)),
            }
        }
        let end = scan.at.min(map.bytes().len()) as u32;
        if let Some(why) = scan.bad {
            self.note(What::Cut { file, offset: end, why });
        }
        let generation = header.generation;
        let segment = Segment {
            number,
            length: map.bytes().len() as u32,
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

    /// Points the index at a record found.
    fn index_range(&self, index: &mut Index, range: SeqRange, at: Position) -> Result<(), Error> {
        for chunk in chunk_of(range.first)..=chunk_of(range.last) {
            if !index.has(chunk) {
                let file = index::file_name(chunk);
                let made = self.storage.create(&self.path(&file), CHUNK_BYTES);
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

/// A segment as a checkpoint lists it, to be mapped when first used.
fn unmapped(listed: &checkpoint::Listed) -> Segment {
    Segment {
        number: listed.number,
        length: listed.length,
        end: listed.end,
        highest: listed.highest,
        mapped: OnceLock::new(),
    }
}

/// Adds ranges as far as the set's limit goes; what does not fit is asked for again.
fn insert_all(set: &mut RangeSet, ranges: &[SeqRange]) {
    for &range in ranges {
        if set.insert(range).is_err() {
            return;
        }
    }
}
