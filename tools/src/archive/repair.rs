//! Mending an archive that no engine has open.
//!
//! A damaged session is not mended in place. All that can be read of it is copied into a new one,
//! what is missing there is fetched from another archive, the new one is checked, and only then
//! does it take the old one's place in one step. The old one's files are kept beside it.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use seqcast_archive::storage::Files;
use seqcast_archive::{
    Archive, Options, PUT_ASIDE, Progress, Reader, RecoveryNote, SessionReader, SyncPolicy, Verified,
};
use seqcast_proto::seq::{Seq, SeqRange, Session};

use super::replay::Stop;
use super::select::known;
use super::sync::{self, Copied};

/// One thing that was found or done.
#[derive(Debug)]
pub enum Step {
    /// A session was read throughout.
    Checked(Session, Verified),
    /// A session cannot be read at all.
    Unreadable(Session, String),
    /// A session was made anew.
    Rebuilt {
        /// The session.
        session: Session,
        /// Messages taken over from what was readable.
        kept: u64,
        /// Messages fetched from the other archive.
        fetched: u64,
        /// Messages below the highest known one that it lacks.
        missing: u64,
        /// Where the damaged files are now.
        old: PathBuf,
    },
    /// What opening the archive found and did.
    Recovered(RecoveryNote),
    /// Messages that a good session lacked were fetched from the other archive.
    Fetched(Session, Copied),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Checked(session, found) => {
                for damage in &found.damage {
                    writeln!(f, "session {session}: {damage}")?;
                }
                match found.damaged {
                    0 => write!(f, "session {session}: good, {} records", found.progress.records),
                    n => write!(f, "session {session}: damaged in {n} places"),
                }
            }
            Step::Unreadable(session, why) => write!(f, "session {session}: {why}"),
            Step::Rebuilt {
                session,
                kept,
                fetched,
                missing,
                old,
            } => write!(
                f,
                "session {session}: made anew with {kept} messages of its own and {fetched} of the other archive, \
                 lacks {missing}; the damaged files are in {}",
                old.display()
            ),
            Step::Recovered(note) => write!(f, "{note}"),
            Step::Fetched(session, copied) => write!(
                f,
                "session {session}: fetched {} messages that were missing",
                copied.messages
            ),
        }
    }
}

/// What a repair is doing, for whoever waits.
#[derive(Clone, Copy, Debug)]
pub enum Doing {
    /// A session is read throughout.
    Checking(Session, Progress),
    /// A session is copied.
    Copying(Session, Copied),
}

/// What a repair came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Sessions that were damaged.
    pub damaged: u64,
    /// Messages that those lack now: damaged, or missing before, and in no other archive.
    pub missing: u64,
    /// Sessions that stay as they are, since nothing of them is readable anywhere.
    pub hopeless: u64,
}

/// The new sessions' directory inside the archive's: what opening an archive finds by such a name
/// it takes for never finished, and removes.
const STAGING: &str = "repair.tmp";

/// Mends the archive in `dir`, with what `from` has if given. Hands each step to `tell` once it is
/// done, and to `watch` how far it is. Stopping or killing it at any time leaves an archive that can be opened, or repaired again.
///
/// # Errors
/// When an engine has the archive open, it is no archive, `from` is of another stream, or files
/// cannot be read or written.
pub fn repair(
    dir: &Path,
    from: Option<&Reader>,
    stop: &Stop,
    tell: &mut dyn FnMut(&Step) -> Result<()>,
    watch: &mut dyn FnMut(Doing),
) -> Result<Outcome> {
    let archive = Reader::open(dir)?;
    if let Some(from) = from {
        ensure!(
            from.stream() == archive.stream(),
            "{} is of stream {}, the other archive of stream {}",
            dir.display(),
            archive.stream(),
            from.stream()
        );
    }
    let mut outcome = Outcome::default();
    // Opening it as a writer cuts at the first bad record. What lies behind that can still be read,
    // so damaged sessions are made anew first, under the writer's lock.
    let lock = Files::open(dir).context("only an archive that no engine uses is repaired")?;
    let sessions = archive.sessions()?;
    for &session in &sessions {
        let mended = Mending {
            dir,
            archive: &archive,
            session,
            from,
            stop,
        };
        mended.run(tell, watch, &mut outcome)?;
    }
    drop(lock);

    if outcome.hopeless > 0 {
        // It does not open, and says so better itself.
        return Ok(outcome);
    }
    let mut writer = Archive::open(dir, archive.stream(), options())?;
    for note in writer.recovery() {
        tell(&Step::Recovered(note.clone()))?;
    }
    if let Some(from) = from {
        let there = from.sessions()?;
        for session in sessions.into_iter().filter(|session| there.contains(session)) {
            let mut progress = |copied: &Copied| watch(Doing::Copying(session, *copied));
            let copied = sync::copy_session(&from.session(session)?, session, &mut writer, stop, &mut progress)?;
            if copied.messages > 0 {
                tell(&Step::Fetched(session, copied))?;
            }
        }
    }
    writer.close()?;
    Ok(outcome)
}

fn options() -> Options {
    Options {
        sync: SyncPolicy::None,
        helper: false,
        ..Options::default()
    }
}

/// A session to be checked, and made anew if it is damaged.
struct Mending<'a> {
    dir: &'a Path,
    archive: &'a Reader,
    session: Session,
    from: Option<&'a Reader>,
    stop: &'a Stop,
}

impl Mending<'_> {
    fn run(
        &self,
        tell: &mut dyn FnMut(&Step) -> Result<()>,
        watch: &mut dyn FnMut(Doing),
        outcome: &mut Outcome,
    ) -> Result<()> {
        let Mending {
            dir,
            archive,
            session,
            from,
            stop,
        } = *self;
        let own = match archive.session(session) {
            Ok(mut reader) => {
                let found = reader.verify(|progress| watch(Doing::Checking(session, progress)))?;
                let good = found.damaged == 0;
                tell(&Step::Checked(session, found))?;
                if good {
                    return Ok(());
                }
                Some(reader)
            }
            Err(error) => {
                tell(&Step::Unreadable(session, error.to_string()))?;
                None
            }
        };
        outcome.damaged += 1;
        let other = match from {
            Some(from) if from.sessions()?.contains(&session) => Some(from.session(session)?),
            _ => None,
        };
        if own.is_none() && other.is_none() {
            outcome.hopeless += 1;
            return Ok(());
        }

        let staging = dir.join(STAGING);
        if staging.exists() {
            // Of a repair that was cut short.
            fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
        }
        let mut new = Archive::open(&staging, archive.stream(), options())?;
        let mut salvage = |reader: &Option<SessionReader>| match reader {
            Some(reader) => {
                let mut progress = |copied: &Copied| watch(Doing::Copying(session, *copied));
                sync::salvage_session(reader, session, &mut new, stop, &mut progress)
            }
            None => Ok(Copied::default()),
        };
        let (kept, fetched) = (salvage(&own)?.messages, salvage(&other)?.messages);
        new.close()?;
        let missing = check(&staging, session, own.as_ref())?;
        let old = exchange(dir, &staging, session)?;
        outcome.missing += missing;
        tell(&Step::Rebuilt {
            session,
            kept,
            fetched,
            missing,
            old,
        })
    }
}

/// Checks a new session: how many messages below the highest known one it lacks.
fn check(staging: &Path, session: Session, old: Option<&SessionReader>) -> Result<u64> {
    let mut new = Reader::open(staging)?.session(session)?;
    let found = new.verify(|_| {})?;
    ensure!(
        found.damaged == 0,
        "what was just written to {} cannot be read back: the disk is failing; nothing was changed",
        staging.display()
    );
    let mut missing = 0;
    let last = [Some(&new), old]
        .into_iter()
        .flatten()
        .filter_map(known)
        .map(|known| known.last);
    if let Some(range) = last
        .max()
        .and_then(|last| SeqRange::new(new.floor().max(Seq::FIRST), last))
    {
        new.stored().absent(range, |hole| missing += u64::from(hole.len()));
        let lost = new.lost().as_slice().iter().filter_map(|lost| lost.intersect(range));
        missing -= lost.map(|lost| u64::from(lost.len())).sum::<u64>();
    }
    Ok(missing)
}

/// Puts the new session in the old one's place, and the old one's files beside it.
fn exchange(dir: &Path, staging: &Path, session: Session) -> Result<PathBuf> {
    let name = format!("{:010}", session.0);
    let (new, place) = (staging.join(&name), dir.join(&name));
    renameat2(AT_FDCWD, &new, AT_FDCWD, &place, RenameFlags::RENAME_EXCHANGE).with_context(|| {
        format!(
            "cannot exchange {} and {}: does this file system know RENAME_EXCHANGE? Copy the archive to one that does",
            new.display(),
            place.display()
        )
    })?;
    let old = (1..)
        .map(|n| dir.join(format!("{PUT_ASIDE}{name}-{n}")))
        .find(|path| !path.exists())
        .context("no name is free for the damaged files")?;
    fs::rename(&new, &old).with_context(|| format!("cannot move {} to {}", new.display(), old.display()))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .with_context(|| format!("cannot sync {}", dir.display()))?;
    fs::remove_dir_all(staging).with_context(|| format!("cannot remove {}", staging.display()))?;
    Ok(old)
}
