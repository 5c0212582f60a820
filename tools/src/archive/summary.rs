//! A session in short.

use seqcast_archive::{Error, OwnedRecord, SessionReader};
use seqcast_proto::ranges::RangeSet;
use seqcast_proto::seq::{Seq, SeqRange, Session};

use super::select::known;
use super::{utc_millis, utc_nanos};
use crate::table;

/// A session in short, as it was when it was opened.
#[derive(Debug)]
pub struct Summary {
    /// Its number.
    pub session: Session,
    /// The stored messages with the lowest and with the highest numbers that can be read.
    pub ends: Option<(OwnedRecord, OwnedRecord)>,
    /// Messages stored.
    pub messages: u64,
    /// Messages that exist nowhere.
    pub lost: u64,
    /// Ranges of numbers that should be there and are neither stored nor lost.
    pub gaps: Vec<SeqRange>,
    /// Bytes of files.
    pub bytes: u64,
    /// The last number and the next session, once the session has ended.
    pub end: Option<(Seq, Session)>,
}

impl Summary {
    /// Reads a session's first and last record and adds up the rest.
    ///
    /// # Errors
    /// When a file cannot be read.
    pub fn of(session: Session, reader: &mut SessionReader) -> Result<Summary, Error> {
        let first = reader.in_order(Seq::FIRST).next().transpose()?;
        let highest = reader.stored().as_slice().last().map(|r| r.last);
        let last = match highest {
            Some(highest) => reader.read(highest)?,
            None => None,
        };
        let mut present = RangeSet::new(2 * seqcast_archive::MAX_RANGES);
        for &range in reader.stored().as_slice().iter().chain(reader.lost().as_slice()) {
            // Each set has at most half as many pieces as fit.
            let _ = present.insert(range);
        }
        let mut gaps = Vec::new();
        if let Some(known) = known(reader) {
            present.absent(known, |gap| gaps.push(gap));
        }
        Ok(Summary {
            session,
            // A damaged last record takes its time with it.
            ends: first.map(|first| (first.clone(), last.unwrap_or(first))),
            messages: reader.stored().total(),
            lost: reader.lost().total(),
            gaps,
            bytes: reader.bytes(),
            end: reader.end(),
        })
    }

    fn end(&self) -> String {
        match self.end {
            None => "open".to_owned(),
            Some((last, Session::NONE)) => format!("at {last}"),
            Some((last, next)) => format!("at {last}, then {next}"),
        }
    }
}

/// One line for each session.
#[must_use]
pub fn list(sessions: &[Summary]) -> String {
    let head = [
        "session",
        "first sent",
        "last sent",
        "messages",
        "lost",
        "gaps",
        "bytes",
        "end",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(sessions.iter().map(|session| {
        let sent = |record: &OwnedRecord| utc_millis(record.send_ns);
        [
            session.session.to_string(),
            session.ends.as_ref().map_or("-".to_owned(), |(first, _)| sent(first)),
            session.ends.as_ref().map_or("-".to_owned(), |(_, last)| sent(last)),
            session.messages.to_string(),
            session.lost.to_string(),
            session.gaps.len().to_string(),
            session.bytes.to_string(),
            session.end(),
        ]
    }));
    let left = [false, true, true, false, false, false, false, true];
    table::render(&[], left, &rows)
}

/// Everything that is known of a session without reading all of it.
///
/// # Errors
/// As for [`Summary::of`].
pub fn describe(session: Session, reader: &mut SessionReader) -> Result<String, Error> {
    let summary = Summary::of(session, reader)?;
    let total = |ranges: &[SeqRange]| ranges.iter().map(|r| u64::from(r.len())).sum::<u64>();
    let listed = |ranges: &[SeqRange]| match ranges {
        [] => "none".to_owned(),
        ranges => {
            let mut text = format!("{} messages: ", total(ranges));
            let shown: Vec<String> = ranges.iter().take(SHOWN).map(SeqRange::to_string).collect();
            text += &shown.join(", ");
            if ranges.len() > SHOWN {
                text += &format!(" and {} ranges more", ranges.len() - SHOWN);
            }
            text
        }
    };
    let known = |session: Session| match session {
        Session::NONE => "not known".to_owned(),
        session => session.to_string(),
    };
    let mut rows = Vec::new();
    let mut row = |name: &str, value: String| rows.push([format!("  {name}"), value]);
    if let Some((first, last)) = &summary.ends {
        row("first sent", utc_nanos(first.send_ns));
        row("last sent", utc_nanos(last.send_ns));
        row("last received", utc_nanos(last.recv_ns));
    }
    row("stored", listed(reader.stored().as_slice()));
    row("on disk", on_disk(reader)?);
    row("lost", listed(reader.lost().as_slice()));
    row("gaps", listed(&summary.gaps));
    if reader.floor() > Seq::FIRST {
        row("released", format!("all below {}", reader.floor()));
    }
    row(
        "files",
        format!("{} bytes, {} segments", reader.bytes(), reader.segments()),
    );
    row("end", summary.end());
    row("session before", known(reader.meta().previous));
    row("origin", format!("{:#010x}", reader.meta().origin));
    Ok(format!(
        "session {session}\n{}",
        table::render(&[], [true, true], &rows)
    ))
}

/// How much of what is stored a loss of power cannot take.
fn on_disk(reader: &SessionReader) -> Result<String, Error> {
    let Some(synced) = reader.synced()? else {
        return Ok("not known: the writer has not synced since the machine started".to_owned());
    };
    let behind = reader.stored().total() - synced.total();
    let up_to = synced.as_slice().last().map_or(Seq(0), |r| r.last);
    Ok(match behind {
        0 => "all that is stored".to_owned(),
        behind => format!(
            "{} messages, up to {up_to}; {behind} stored are not yet",
            synced.total()
        ),
    })
}

/// Ranges that are listed one by one.
const SHOWN: usize = 10;
