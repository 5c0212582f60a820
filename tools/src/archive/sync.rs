//! Filling an archive from another.

use anyhow::{Context, Result, ensure};
use seqcast_archive::{AppendError, Archive, Error, OwnedRecord, Reader, SessionLog, SessionReader};
use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session};
use seqcast_proto::wire::Block;

use super::replay::{self, Stop};

/// What was copied, and what could not be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Messages copied.
    pub messages: u64,
    /// Messages to be copied, as far as that is known: of one session, before all are.
    pub wanted: u64,
    /// Records that they came in.
    pub records: u64,
    /// Bytes of these, without headers.
    pub bytes: u64,
    /// Sessions that were not there before.
    pub sessions: u64,
    /// Messages newly known to exist nowhere.
    pub lost: u64,
    /// Messages that the source has and that could not be read: damaged, or released meanwhile.
    pub unreadable: u64,
    /// Messages that the source has and the target says to exist nowhere; it cannot take them.
    pub denied: u64,
}

impl Copied {
    /// Adds what a further step copied.
    pub fn add(&mut self, more: Copied) {
        self.messages += more.messages;
        self.wanted += more.wanted;
        self.records += more.records;
        self.bytes += more.bytes;
        self.sessions += more.sessions;
        self.lost += more.lost;
        self.unreadable += more.unreadable;
        self.denied += more.denied;
    }
}

/// Copies what `to` lacks of `session`, with its times, and how it ended. What is there stays as it
/// is; a copy that was cut short is taken up where it ended. `progress` is called after each record.
///
/// # Errors
/// When a file cannot be read, the session is another one under the same number, the target
/// cannot take a record, or [`Stopped`](replay::Stopped).
pub fn copy_session(
    from: &SessionReader,
    session: Session,
    to: &mut Archive,
    stop: &Stop,
    progress: &mut dyn FnMut(&Copied),
) -> Result<Copied> {
    let stored = from.stored().as_slice();
    copy_numbers(from, stored, session, to, stop, progress)
}

/// As [`copy_session`], of all records that can be found: behind a damaged one there may be some
/// that opening the session did not find. `unreadable` is not known then.
///
/// # Errors
/// As for [`copy_session`].
pub fn salvage_session(
    from: &SessionReader,
    session: Session,
    to: &mut Archive,
    stop: &Stop,
    progress: &mut dyn FnMut(&Copied),
) -> Result<Copied> {
    let all = SeqRange::new(from.floor().max(Seq::FIRST), Seq::LAST);
    let copied = copy_numbers(from, all.as_slice(), session, to, stop, progress)?;
    Ok(Copied {
        unreadable: 0,
        ..copied
    })
}

/// Copies those of `numbers` that the source has and `to` lacks, and how the session ended.
fn copy_numbers(
    from: &SessionReader,
    numbers: &[SeqRange],
    session: Session,
    to: &mut Archive,
    stop: &Stop,
    progress: &mut dyn FnMut(&Copied),
) -> Result<Copied> {
    let mut copied = Copied::default();
    let log = match to.session(session) {
        Some(log) => {
            // 0: fetched as a whole from another archive, which does not say whose it was.
            let (here, there) = (log.meta().origin, from.meta().origin);
            ensure!(
                here == there || here == 0 || there == 0,
                "session {session} has origin {there:#010x} there and {here:#010x} here: two servers used the same \
                 session number, and their messages cannot be joined"
            );
            to.session_mut(session).context("the session is gone")?
        }
        None => {
            copied.sessions = 1;
            to.create_session(session, *from.meta())?
        }
    };
    if log.stored().is_empty() && log.lost().is_empty() {
        // What the source has released is not missing here either.
        log.release_below(from.floor());
    }
    let wanted = wanted(numbers, log, &mut copied)?;
    if !wanted.is_empty() {
        copied.wanted = wanted.total();
        for record in from.in_log_order() {
            replay::check(stop)?;
            copy_record(&record?, &wanted, log, &mut copied)
                .with_context(|| format!("session {session} cannot be copied on"))?;
            progress(&copied);
        }
        copied.unreadable = wanted.total() - copied.messages;
    }
    for &range in from.lost().as_slice() {
        let before = log.lost().total();
        log.mark_lost(range)?;
        copied.lost += log.lost().total() - before;
    }
    if let Some((last, next)) = from.end()
        && log.end().is_none_or(|(_, known)| known == Session::NONE)
    {
        log.close(last, next)?;
    }
    Ok(copied)
}

/// Those of the numbers that the log lacks and may take.
fn wanted(numbers: &[SeqRange], log: &SessionLog, copied: &mut Copied) -> Result<RangeSet> {
    let mut wanted = RangeSet::new(2 * seqcast_archive::MAX_RANGES);
    let mut full = false;
    for &range in numbers {
        let Some(range) = SeqRange::new(range.first.max(log.floor()), range.last) else {
            continue;
        };
        log.stored().absent(range, |hole| full |= wanted.insert(hole).is_err());
    }
    ensure!(!full, "the two archives differ in too many ranges");
    for &range in log.lost().as_slice() {
        let before = wanted.total();
        wanted.remove(range);
        copied.denied += before - wanted.total();
    }
    Ok(wanted)
}

/// Appends the wanted parts of a record that are not there yet.
fn copy_record(record: &OwnedRecord, wanted: &RangeSet, log: &mut SessionLog, copied: &mut Copied) -> Result<()> {
    let (range, ranges) = (record.range(), wanted.as_slice());
    let at = ranges.partition_point(|r| r.last < range.first);
    let mut parts = ranges[at..].iter().map_while(|r| r.intersect(range)).peekable();
    if parts.peek().is_none() {
        return Ok(());
    }
    // Whole but not one of ours: counted as unreadable.
    let Ok(block) = Block::parse(record.first, record.count, &record.block) else {
        return Ok(());
    };
    let stamps = Stamps {
        sent: record.send_ns,
        received: record.recv_ns,
        flags: record.flags,
    };
    parts.try_for_each(|part| append_absent(log, &block, part, stamps, copied))
}

/// What a record has besides its block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stamps {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) flags: u16,
}

/// Appends what is not there yet of a part of a block. Numbers may come twice: in a record and, after
/// a cut, in a later one, or in answers that crossed.
pub(super) fn append_absent(
    log: &mut SessionLog,
    block: &Block<'_>,
    part: SeqRange,
    stamps: Stamps,
    copied: &mut Copied,
) -> Result<()> {
    let mut holes = Vec::new();
    log.stored().absent(part, |hole| holes.push(hole));
    for hole in holes {
        let Some(block) = block.part(hole, usize::MAX) else {
            continue;
        };
        let (first, count) = (block.first(), block.count());
        let Stamps { sent, received, flags } = stamps;
        match log.append(first, count, sent, received, flags, block.bytes()) {
            Ok(()) => {}
            Err(AppendError::AfterEnd | AppendError::Lost) => continue,
            Err(error) => return Err(error.into()),
        }
        copied.records += 1;
        copied.messages += u64::from(count);
        copied.bytes += block.bytes().len() as u64;
    }
    Ok(())
}

/// Copies what `to` lacks of these sessions; one that the source's writer has removed since it was
/// listed is passed over. `progress` is called after each record.
///
/// # Errors
/// As for [`copy_session`].
pub fn copy(
    from: &Reader,
    sessions: &[Session],
    to: &mut Archive,
    stop: &Stop,
    progress: &mut dyn FnMut(Session, &Copied),
) -> Result<Copied> {
    ensure!(
        from.stream() == to.stream(),
        "one archive is of stream {}, the other of stream {}",
        from.stream(),
        to.stream()
    );
    let mut all = Copied::default();
    for &session in sessions {
        let reader = match from.session(session) {
            Ok(reader) => reader,
            Err(Error::Unknown(_)) => continue,
            Err(error) => return Err(error.into()),
        };
        let copied = copy_session(&reader, session, to, stop, &mut |copied| {
            let mut sum = all;
            sum.add(*copied);
            progress(session, &sum);
        })?;
        all.add(copied);
    }
    Ok(all)
}
