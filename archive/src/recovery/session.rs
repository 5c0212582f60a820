//! Opening one session: which of its files can be trusted.

use std::collections::BTreeMap;
use std::io;
use std::sync::OnceLock;

use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{SeqRange, Session};

use super::{META, RecoveryNote, What};
use crate::background::{CHECKPOINT, SYNCED};
use crate::checkpoint::{self, Checkpoint};
use crate::codec::Fault;
use crate::error::is_unreadable;
use crate::index::{self, CHUNK_BYTES, Index, chunk_of};
use crate::segment::{self, Segment};
use crate::session::State;
use crate::storage::Storage;
use crate::{Error, Shared};

/// One session being opened.
pub(super) struct Opening<'a> {
    pub(super) shared: &'a Shared,
    pub(super) storage: &'a dyn Storage,
    pub(super) session: Session,
    pub(super) dir: String,
    pub(super) notes: &'a mut Vec<RecoveryNote>,
}

/// The files of a session by number, with their lengths.
#[derive(Default)]
pub(super) struct FilesFound {
    pub(super) segments: BTreeMap<u32, u64>,
    pub(super) chunks: BTreeMap<u32, u64>,
}

impl Opening<'_> {
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}/{name}", self.dir)
    }

    pub(super) fn note(&mut self, what: What) {
        self.notes.push(RecoveryNote {
            session: self.session,
            what,
        });
    }

    pub(super) fn io<T>(&self, what: &'static str, name: &str, result: io::Result<T>) -> Result<T, Error> {
        result.map_err(Error::io(what, &self.storage.display(&self.path(name))))
    }

    pub(super) fn remove(&mut self, name: &str, why: Option<&'static str>) -> Result<(), Error> {
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
    pub(super) fn open(&mut self) -> Result<Option<State>, Error> {
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
        let spoiled: Vec<u32> = state.index.spoiled().collect();
        if spoiled.is_empty() {
            return Ok(Some(state));
        }
        // Made anew elsewhere on the disk, from all segments.
        drop(state);
        for chunk in spoiled {
            self.remove(&index::file_name(chunk), Some("the disk cannot read all of it"))?;
        }
        self.open()
    }

    fn list(&mut self) -> Result<FilesFound, Error> {
        let mut files = FilesFound::default();
        for item in self.io("read", "", self.storage.list(&self.dir))? {
            let name = item.name.as_str();
            let len = item.len.unwrap_or(0);
            if item.len.is_some() && [META, CHECKPOINT, SYNCED].contains(&name) {
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
            Err(e) if is_unreadable(&e) => Ok(Err("the disk cannot read the checkpoint")),
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
        let listed = checkpoint.by_number();
        for &number in files.segments.keys() {
            match listed.get(&number) {
                Some(listed) => state.segments.push(unmapped(listed)),
                None => self.remove(&segment::file_name(number), Some("it holds nothing"))?,
            }
        }
        state.open = !state.segments.is_empty();
        Ok(())
    }
}

/// A segment as a checkpoint lists it, to be mapped when first used.
pub(super) fn unmapped(listed: &checkpoint::Listed) -> Segment {
    Segment {
        number: listed.number,
        length: listed.length,
        end: listed.end,
        highest: listed.highest,
        mapped: OnceLock::new(),
    }
}

/// Adds ranges as far as the set's limit goes; what does not fit is asked for again.
pub(super) fn insert_all(set: &mut RangeSet, ranges: &[SeqRange]) {
    for &range in ranges {
        if set.insert(range).is_err() {
            return;
        }
    }
}
