//! Opening: what is on disk becomes the state that the writer goes on from.
//!
//! A trusted checkpoint stands for all records below its tail; only what lies above is scanned.
//! Without one (the first segment was never finished, the machine went down, a file is missing)
//! every segment is scanned. A scan ends at the first place in a segment that is not a whole
//! record.

use std::collections::BTreeMap;
use std::io;

use seqcast_proto::seq::{Session, Stream};

use crate::background::is_spare;
use crate::codec::{Fault, Fields, Parser};
use crate::session::SessionLog;
use crate::storage::Storage;
use crate::{Error, Shared, session_dir};

mod note;
mod scan;
mod session;

pub use note::{RecoveryNote, What};

use session::Opening;

/// The name of the file that says what a directory is.
pub(crate) const IDENTITY: &str = "archive";
/// The name of the file that says what a session is.
pub(crate) const META: &str = "session";
/// How damaged sessions begin that a repair keeps beside what it made of them.
pub const PUT_ASIDE: &str = "damaged-";
/// How sessions being removed are named.
const GONE: &str = "gone-";

const IDENTITY_MAGIC: &[u8; 8] = b"SEQCARC\0";

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
        } else if name.starts_with(PUT_ASIDE) {
            note(What::LeftAlone {
                file: name,
                why: "a repair put it aside; remove it when nothing of it is wanted",
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
