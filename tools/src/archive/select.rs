//! Which messages of an archive to take, and taking them in order.

use anyhow::{Context, Result, bail, ensure};
use seqcast_archive::{Error, OwnedRecord, Reader, SessionMeta, SessionReader};
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::Block;

/// Which sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// All, in order.
    #[default]
    All,
    /// The newest.
    Last,
    /// This one.
    One(Session),
}

/// Which messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Selection {
    /// Of which sessions.
    pub session: Which,
    /// The first message's number; needs one session.
    pub from: Option<Seq>,
    /// The last message's number; needs one session.
    pub to: Option<Seq>,
    /// Nothing that was sent before, in ns since the Unix epoch. Times are taken to grow with
    /// numbers, as a server's do unless its clock is set back.
    pub since: Option<u64>,
    /// Nothing that was sent later, in ns since the Unix epoch.
    pub until: Option<u64>,
}

/// Consecutive messages out of one record.
#[derive(Clone, Copy, Debug)]
pub struct Taken<'a> {
    /// Their session.
    pub session: Session,
    /// What is known of it.
    pub meta: &'a SessionMeta,
    /// The numbers that are taken of it, where they are there.
    pub of: SeqRange,
    /// When the server sent them, in ns since the Unix epoch.
    pub sent: u64,
    /// When the archive received them, in ns since the Unix epoch.
    pub received: u64,
    /// Those of the record's messages that are selected.
    pub block: Block<'a>,
}

impl Taken<'_> {
    /// How much of what is taken of its session lies before it, 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from(self.block.first().since(self.of.first)) / f64::from(self.of.len())
    }
}

/// How much was taken, and what of the selection was not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Walked {
    /// Messages taken.
    pub messages: u64,
    /// Messages that the archive knows to exist nowhere.
    pub lost: u64,
    /// Other messages below the highest one that the archive has not got.
    pub missing: u64,
    /// Messages that the archive has and that could not be read: damaged, or released meanwhile.
    pub unreadable: u64,
}

impl Selection {
    /// The numbers of the selected sessions, ascending.
    ///
    /// # Errors
    /// When the directory cannot be read, there is no such session, or a range of numbers is
    /// asked for without saying of which session.
    pub fn sessions(&self, archive: &Reader) -> Result<Vec<Session>> {
        let sessions = archive.sessions()?;
        Ok(match self.session {
            Which::One(session) if sessions.contains(&session) => vec![session],
            Which::One(session) => return Err(Error::Unknown(session).into()),
            Which::Last => vec![*sessions.last().context("the archive has no sessions")?],
            Which::All => {
                ensure!(
                    sessions.len() <= 1 || (self.from.is_none() && self.to.is_none()),
                    "each session of an archive has numbers of its own, and this one has {} sessions: \
                     say which one with --session",
                    sessions.len()
                );
                sessions
            }
        })
    }

    /// Hands the selected messages to `each`, in the order of sessions and numbers.
    ///
    /// # Errors
    /// As for [`Selection::sessions`]; when a file cannot be read, a stored block is not one of
    /// ours, or `each` fails.
    pub fn walk(&self, archive: &Reader, each: &mut dyn FnMut(Taken<'_>) -> Result<()>) -> Result<Walked> {
        let (first, last) = (self.from.unwrap_or(Seq::FIRST), self.to.unwrap_or(Seq::LAST));
        let Some(range) = SeqRange::new(first.max(Seq::FIRST), last.min(Seq::LAST)) else {
            bail!("no number lies from {first} to {last}");
        };
        let mut walked = Walked::default();
        for session in self.sessions(archive)? {
            match archive.session(session) {
                Ok(mut reader) => self.walk_session(session, &mut reader, range, each, &mut walked)?,
                // Removed by the writer since it was listed.
                Err(Error::Unknown(_)) if self.session == Which::All => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(walked)
    }

    fn walk_session(
        &self,
        session: Session,
        reader: &mut SessionReader,
        range: SeqRange,
        each: &mut dyn FnMut(Taken<'_>) -> Result<()>,
        walked: &mut Walked,
    ) -> Result<()> {
        let (mut first, mut last) = (range.first.max(reader.floor()), range.last);
        if let Some(since) = self.since {
            first = first.max(first_since(reader, since)?);
        }
        if let Some(until) = self.until {
            last = last.min(first_since(reader, until.saturating_add(1))?.prev());
        }
        let Some(range) = known(reader).and_then(|known| known.intersect(SeqRange::new(first, last)?)) else {
            return Ok(());
        };
        let count = |ranges: &[SeqRange]| -> u64 {
            let inside = ranges.iter().filter_map(|r| r.intersect(range));
            inside.map(|r| u64::from(r.len())).sum()
        };
        let stored = count(reader.stored().as_slice());
        let lost = count(reader.lost().as_slice());
        walked.lost += lost;
        walked.missing += u64::from(range.len()).saturating_sub(stored + lost);

        let meta = *reader.meta();
        let mut taken = 0;
        for record in reader.in_order(range.first) {
            let OwnedRecord {
                first,
                count,
                send_ns,
                recv_ns,
                block,
                ..
            } = record?;
            if first > range.last {
                break;
            }
            let block = Block::parse(first, count, &block)
                .with_context(|| format!("session {session}: the block stored from number {first} on"))?;
            if let Some(block) = block.part(range, usize::MAX) {
                taken += u64::from(block.count());
                each(Taken {
                    session,
                    of: range,
                    meta: &meta,
                    sent: send_ns,
                    received: recv_ns,
                    block,
                })?;
            }
        }
        walked.messages += taken;
        walked.unreadable += stored.saturating_sub(taken);
        Ok(())
    }
}

/// From the first number that was not released to the highest that is known to exist.
#[must_use]
pub fn known(reader: &SessionReader) -> Option<SeqRange> {
    let stored = reader.stored().as_slice().last().map(|r| r.last);
    let lost = reader.lost().as_slice().last().map(|r| r.last);
    let highest = stored.max(lost).max(reader.end().map(|(last, _)| last))?;
    SeqRange::new(reader.floor().max(Seq::FIRST), highest)
}

/// The number of the first stored message sent at `since` or later, by bisection; past all stored
/// ones if there is none.
fn first_since(reader: &mut SessionReader, since: u64) -> Result<Seq, Error> {
    let Some(last) = reader.stored().as_slice().last().map(|r| r.last) else {
        return Ok(Seq::FIRST);
    };
    // All stored below `low` is earlier; at `high` and above nothing is.
    let (mut low, mut high) = (Seq::FIRST, last.next());
    while low < high {
        let middle = low.plus(high.since(low) / 2);
        let earlier = match reader.in_order(middle).next().transpose()? {
            Some(record) => record.send_ns < since,
            None => false,
        };
        if earlier {
            low = middle.next();
        } else {
            high = middle;
        }
    }
    Ok(low)
}
